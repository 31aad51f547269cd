//! Own commands on DPDK's telemetry socket.
#![allow(unsafe_code, reason = "calls into DPDK and is called by it")]

use crate::eal::Error;
use crate::sys;
use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::OnceLock;

/// Entries that DPDK lets an object have.
const ENTRIES_MAX: usize = 256;

/// A value in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A number.
    Number(u64),
    /// An object. Names may have letters, digits, `_` and `/`; DPDK refuses others, so `_` stands for those.
    Object(Vec<(String, Answer)>),
}

/// Answers a command; `None` is an error to the client. Called on DPDK's telemetry threads.
pub type Responder = dyn Fn(&str) -> Option<Answer> + Send + Sync;

static RESPONDER: OnceLock<Box<Responder>> = OnceLock::new();

/// Lets DPDK's telemetry socket answer `commands` (with what each is about) by asking `responder`. To be called once.
///
/// # Errors
/// A name that DPDK does not accept, or too many commands.
pub fn register_command(commands: &[(&str, &str)], responder: Box<Responder>) -> Result<(), Error> {
    if RESPONDER.set(responder).is_err() {
        return Err(Error(17));
    }
    for (command, help) in commands {
        let (Ok(command), Ok(help)) = (CString::new(*command), CString::new(*help)) else {
            return Err(Error(22));
        };
        // SAFETY: NUL-terminated strings that DPDK copies, and a function that lives as long as the process.
        Error::check(unsafe {
            sys::rte_telemetry_register_cmd(command.as_ptr(), Some(respond), help.as_ptr())
        })?;
    }
    Ok(())
}

unsafe extern "C" fn respond(
    command: *const c_char,
    _parameters: *const c_char,
    data: *mut sys::rte_tel_data,
) -> c_int {
    if command.is_null() || data.is_null() {
        return -1;
    }
    // SAFETY: DPDK passes the NUL-terminated name of the command.
    let command = unsafe { CStr::from_ptr(command) };
    let answer = RESPONDER
        .get()
        .zip(command.to_str().ok())
        .and_then(|(responder, command)| responder(command));
    match answer {
        Some(Answer::Object(entries)) => {
            // SAFETY: the object to be filled in, which DPDK made for this call.
            unsafe { fill(data, &entries) };
            0
        }
        Some(Answer::Number(_)) | None => -1,
    }
}

/// # Safety
/// `data` is a valid, empty telemetry value that nobody else uses.
unsafe fn fill(data: *mut sys::rte_tel_data, entries: &[(String, Answer)]) {
    // SAFETY: by the caller.
    unsafe { sys::rte_tel_data_start_dict(data) };
    for (name, value) in entries.iter().take(ENTRIES_MAX) {
        let Some(name) = permitted(name) else {
            continue;
        };
        match value {
            Answer::Number(number) => {
                // SAFETY: a valid object, and a string that DPDK copies.
                unsafe { sys::rte_tel_data_add_dict_u64(data, name.as_ptr(), *number) };
            }
            Answer::Object(inner) => {
                // SAFETY: a fresh value; DPDK frees it with the outer one (`keep` 0), unless it does not take it.
                unsafe {
                    let object = sys::rte_tel_data_alloc();
                    if object.is_null() {
                        continue;
                    }
                    fill(object, inner);
                    if sys::rte_tel_data_add_dict_container(data, name.as_ptr(), object, 0) != 0 {
                        sys::rte_tel_data_free(object);
                    }
                }
            }
        }
    }
}

fn permitted(name: &str) -> Option<CString> {
    let permitted: String = name
        .chars()
        .map(|letter| match letter {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '/' => letter,
            _ => '_',
        })
        .collect();
    CString::new(permitted).ok()
}
