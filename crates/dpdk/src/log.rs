//! What DPDK logs, line by line.
#![allow(unsafe_code, reason = "is called by DPDK")]

use crate::eal::Error;
use crate::sys;
use std::ffi::c_char;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Longest line; a longer one is cut into several.
const LINE_MAX: usize = 1_024;

/// How much a line matters, from DPDK's eight levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Errors and worse.
    Error,
    /// Warnings.
    Warning,
    /// Notices and information.
    Info,
    /// The rest.
    Debug,
}

impl Level {
    fn of(number: u32) -> Level {
        match number {
            0..=4 => Level::Error,
            5 => Level::Warning,
            6 | 7 => Level::Info,
            _ => Level::Debug,
        }
    }
}

/// Takes a line.
pub type Sink = fn(Level, &str);

static SINK: OnceLock<Sink> = OnceLock::new();
/// The line that is being written.
static LINE: Mutex<String> = Mutex::new(String::new());

/// Gives everything that DPDK logs from now on to `sink`, instead of standard error. Only the first call counts.
///
/// # Errors
/// `ENOMEM`.
pub fn log_to(sink: Sink) -> Result<(), Error> {
    if SINK.set(sink).is_err() {
        return Ok(());
    }
    // SAFETY: the function lives as long as the process.
    Error::check(unsafe { sys::okm_log_to(Some(write)) }).map(drop)
}

unsafe extern "C" fn write(level: u32, text: *const c_char, length: usize) {
    let Some(sink) = SINK.get() else { return };
    if text.is_null() {
        return;
    }
    // SAFETY: the stream hands over a buffer of that length, which is not used after the return.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length) };
    let text = String::from_utf8_lossy(bytes);
    let mut whole = Vec::new();
    {
        let mut line = LINE.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in text.split_inclusive('\n') {
            line.push_str(piece.trim_end_matches('\n'));
            if piece.ends_with('\n') || line.len() >= LINE_MAX {
                whole.push(std::mem::take(&mut *line));
            }
        }
    }
    // Not under the lock: the sink may make DPDK log.
    for line in whole.iter().filter(|line| !line.trim().is_empty()) {
        sink(Level::of(level), line.trim());
    }
}
