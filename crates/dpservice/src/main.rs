//! The service, and with `cli` or `inspect` as first argument its client.

fn main() -> std::process::ExitCode {
    dpservice::program::main()
}
