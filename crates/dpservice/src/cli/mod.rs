//! The command line client `dpservice-cli`.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the client with `arguments`, the program's name first.
#[must_use]
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    drop(arguments);
    ExitCode::SUCCESS
}
