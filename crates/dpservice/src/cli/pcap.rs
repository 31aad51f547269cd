//! Capture files in the format that every packet analyser reads (pcap, version 2.4, nanosecond times).

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Most bytes of a frame.
pub(super) const FRAME_BYTES_MAX: u32 = 9_216;
/// Times are in nanoseconds.
const MAGIC: u32 = 0xa1b2_3c4d;
/// Frames are Ethernet frames.
const LINK_TYPE: u32 = 1;

/// An open file.
pub(super) struct Writer(BufWriter<File>);

impl Writer {
    /// Creates or replaces a file.
    pub(super) fn create(path: &Path) -> std::io::Result<Writer> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&MAGIC.to_le_bytes())?;
        for version in [2_u16, 4] {
            file.write_all(&version.to_le_bytes())?;
        }
        for word in [0, 0, FRAME_BYTES_MAX, LINK_TYPE] {
            file.write_all(&word.to_le_bytes())?;
        }
        Ok(Writer(file))
    }

    /// Adds the beginning of a frame of `length` bytes.
    pub(super) fn write(&mut self, time_ns: u64, length: u32, frame: &[u8]) -> std::io::Result<()> {
        let seconds = u32::try_from(time_ns / 1_000_000_000).unwrap_or(u32::MAX);
        let nanoseconds = (time_ns % 1_000_000_000) as u32;
        let kept = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        for word in [seconds, nanoseconds, kept, length] {
            self.0.write_all(&word.to_le_bytes())?;
        }
        self.0.write_all(frame)
    }

    /// Writes what is still waiting.
    pub(super) fn finish(mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}
