//! The command line client `dpservice-cli`.
//!
//! `args` is the grammar, `commands` makes the calls and turns replies into objects, `output` prints objects in four formats,
//! `manifest` reads them back from files. Exit codes: 0 done, 1 the request could not be made, 2 the service refused it.

mod args;
mod commands;
mod inspect;
mod manifest;
mod output;
mod pcap;
mod services;
mod show_services;
mod values;

use args::{Cli, Format};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use output::Printed;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

/// Exit code when the request could not be made: bad arguments, no connection, a gRPC error.
const EXIT_CLIENT: u8 = 1;
/// Exit code when the service answered with a failure status.
const EXIT_SERVER: u8 = 2;
/// `code` of an error that this client found.
const CLIENT_ERROR_CODE: u32 = 1000;

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CliError {
    /// Found by this client.
    #[error("client error: {0}")]
    Client(String),
    /// The call failed.
    #[error("grpc error: {message}")]
    Grpc {
        /// gRPC code.
        code: u32,
        /// Its text.
        message: String,
    },
    /// The service refused.
    #[error("server error: {code}, {message}")]
    Server {
        /// Status code of the service.
        code: u32,
        /// Its name.
        message: String,
    },
}

impl CliError {
    fn client(text: impl Into<String>) -> CliError {
        CliError::Client(text.into())
    }

    /// Source, code and text as JSON and YAML show them.
    fn parts(&self) -> (&'static str, u32, &str) {
        match self {
            CliError::Client(text) => ("client", CLIENT_ERROR_CODE, text),
            CliError::Grpc { code, message } => ("grpc", *code, message),
            CliError::Server { code, message } => ("server", *code, message),
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            CliError::Client(_) | CliError::Grpc { .. } => EXIT_CLIENT,
            CliError::Server { .. } => EXIT_SERVER,
        }
    }
}

impl From<tonic::Status> for CliError {
    fn from(status: tonic::Status) -> CliError {
        let code = u32::try_from(status.code() as i32).unwrap_or(0);
        CliError::Grpc {
            code,
            message: status.message().to_owned(),
        }
    }
}

/// Runs the client with `arguments`, the program's name first.
#[must_use]
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args::fold_flag_case(arguments)) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed output cannot be told about either.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(EXIT_CLIENT),
            };
        }
    };
    let (text, code) = if let args::Command::Completion { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "dpservice-cli", &mut script);
        (script, 0)
    } else {
        let (text, code) = execute(&cli);
        (text.into_bytes(), code)
    };
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(&text).and_then(|()| stdout.flush());
    match written {
        Ok(()) => ExitCode::from(code),
        Err(_) => ExitCode::from(EXIT_CLIENT),
    }
}

fn execute(cli: &Cli) -> (String, u8) {
    let format = cli.output.unwrap_or_else(|| cli.command.default_format());
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::client(error.to_string()))
        .and_then(|runtime| runtime.block_on(commands::run(cli, format)));
    let mut text = String::new();
    let mut code = 0;
    match outcome {
        Ok(printed) => {
            for item in printed {
                if let Printed::Failed { error, .. } = &item {
                    code = code.max(error.exit_code());
                }
                text.push_str(&output::render(&item, format, cli.pretty, cli.wide));
            }
        }
        Err(error) => {
            code = error.exit_code();
            text = output::render_error(&error, format, cli.pretty);
        }
    }
    (text, code)
}

impl args::Command {
    fn default_format(&self) -> Format {
        match self {
            args::Command::Create(_) | args::Command::Delete(_) | args::Command::Reset(_) => {
                Format::Name
            }
            args::Command::Get(_)
            | args::Command::List(_)
            | args::Command::Init
            | args::Command::Capture(_)
            | args::Command::Inspect(_)
            | args::Command::Completion { .. } => Format::Table,
        }
    }
}
