//! The service by the name that scripts written for the reference call.

fn main() -> std::process::ExitCode {
    dpservice::program::main()
}
