//! The client.

fn main() -> std::process::ExitCode {
    dpservice::cli::main(std::env::args_os().collect())
}
