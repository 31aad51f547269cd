//! The gRPC service `dpdkironcore.v1.DPDKironcore`.
//!
//! Three layers of failure, which clients tell apart: gRPC `ABORTED` until Initialize, gRPC `INVALID_ARGUMENT` with a fixed text for input that
//! does not parse (nothing was changed), and gRPC OK with a `status.code` for a request that was refused. `parse` knows the texts; the engine
//! knows the codes; the modules beside this one translate, one per kind of object.

mod balancers;
mod capture;
pub mod errors;
mod firewall;
mod health;
mod interfaces;
mod nat;
mod parse;
mod prefixes;
mod routes;
mod server;

pub use health::{Health, Serving};
pub use interfaces::restore;

use crate::devices::Devices;
use crate::inspection::Inspector;
use crate::worker::{Handle, Stopped};
use dataplane::ConfigError;
use proto::code;
use proto::dpdk::{
    CheckInitializedRequest, CheckInitializedResponse, GetVersionRequest, GetVersionResponse,
    InitializeRequest, InitializeResponse, Status,
};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Full name of the service.
pub const SERVICE: &str = proto::dpdk::dpd_kironcore_server::SERVICE_NAME;

/// The service: translates between the protocol and jobs of the packet thread.
pub struct Service {
    /// Way to the packet thread.
    pub worker: Handle,
    /// Opens machine devices.
    pub devices: Arc<dyn Devices>,
    /// Answers questions about all of this.
    pub inspector: Inspector,
    /// Port number of the first machine port; the ports before it are uplinks.
    pub machine_ports_start: u16,
    /// This host's underlay address.
    pub host: Ipv6Addr,
    /// Identity of this process, upper case.
    pub uuid: String,
    /// Whether ListRoutes reports IPv6 routes.
    pub list_ipv6_routes: bool,
    /// Initialize has succeeded; it never becomes false again.
    pub initialized: AtomicBool,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The input does not parse; the text is part of the protocol. gRPC `INVALID_ARGUMENT`.
    Invalid(String),
    /// Refused, reported in `status` of a gRPC reply that is OK.
    Refused(u32),
    /// No Initialize yet. gRPC `ABORTED`.
    NotInitialized,
    /// The packet thread has ended. gRPC `INTERNAL`.
    Stopped,
}

impl Failure {
    pub(crate) fn invalid(what: &str) -> Failure {
        Failure::Invalid(format!("Invalid {what}"))
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::Refused(error.code())
    }
}

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Failure {
        Failure::Stopped
    }
}

/// Tells that requests are answered from now on; start scripts wait for this line.
pub fn log_ready(address: std::net::SocketAddr, uuid: &str) {
    tracing::debug!(value = uuid, "Identity of this process");
    tracing::info!(grpc_server_address = %address, "Server started and listening");
}

fn success() -> Status {
    Status {
        code: code::OK,
        message: code::SUCCESS_MESSAGE.to_owned(),
    }
}

fn refusal(value: u32) -> Status {
    Status {
        code: value,
        message: code::name(value).unwrap_or("UNKNOWN").to_owned(),
    }
}

impl Service {
    fn require_initialized(&self) -> Result<(), Failure> {
        if self.initialized.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(Failure::NotInitialized)
        }
    }
}

async fn initialize(
    service: &Service,
    _: InitializeRequest,
) -> Result<InitializeResponse, Failure> {
    service
        .worker
        .call(|plane| plane.engine.initialize())
        .await?;
    service.initialized.store(true, Ordering::Release);
    Ok(InitializeResponse {
        status: None,
        uuid: service.uuid.clone(),
    })
}

async fn check_initialized(
    service: &Service,
    _: CheckInitializedRequest,
) -> Result<CheckInitializedResponse, Failure> {
    Ok(CheckInitializedResponse {
        status: None,
        uuid: service.uuid.clone(),
    })
}

async fn get_version(
    _: &Service,
    request: GetVersionRequest,
) -> Result<GetVersionResponse, Failure> {
    let GetVersionRequest {
        client_protocol,
        client_name,
        client_version,
    } = request;
    for (value, name) in [
        (&client_protocol, "client_protocol"),
        (&client_name, "client_name"),
        (&client_version, "client_version"),
    ] {
        if value.is_empty() || value.len() > parse::ID_LEN_MAX {
            return Err(Failure::invalid(name));
        }
    }
    tracing::info!(
        proto_ver = client_protocol,
        client_name,
        client_ver = client_version,
        "Client identified itself"
    );
    Ok(GetVersionResponse {
        status: None,
        service_protocol: crate::VERSION.to_owned(),
        service_version: crate::VERSION.to_owned(),
    })
}
