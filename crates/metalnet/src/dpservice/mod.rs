//! The conversation with dpservice: one function per call, and the task that notices when an instance comes and goes.
//!
//! A call is carried out as asked; deciding what to call and what a refusal means is the agent's part. `services` has the
//! calls for public addresses, packet filters and load balancers, `list` reads the inventory, `wire` translates values.

mod list;
mod services;
mod wire;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use proto::dpdk::{self, dpd_kironcore_client::DpdKironcoreClient};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::agent::Input;
use crate::model::Uid;
use crate::plan::observed::{Hop, Observed};
use crate::plan::ops::{DpDone, DpError, DpOp, InterfaceRequest, RouteKey, code};
use wire::{address, id, to_address, to_prefix, to_rule};

/// A generated client; clones share the connection.
pub type Client = DpdKironcoreClient<Channel>;

/// How long one call may take before it counts as lost.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between attempts to reach dpservice. It starts in milliseconds, and so should we notice.
pub const CONNECT_INTERVAL: Duration = Duration::from_millis(20);
/// Pause between looks at an instance that offers no health stream.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Largest reply taken, in bytes: a full table of routes is a few MiB.
const REPLY_MAX: usize = 64 << 20;
const SERVICE: &str = "dpdkironcore.v1.DPDKironcore";
/// Weight sent with routes; dpservice ignores it.
const WEIGHT: u32 = 100;

/// The way to the present instance, if there is one.
#[derive(Debug, Clone)]
pub struct Service {
    current: watch::Receiver<Option<Client>>,
    recheck: Arc<Notify>,
}

impl Service {
    /// Asks the supervisor to look whether the instance is still the same.
    pub fn recheck(&self) {
        self.recheck.notify_one();
    }

    /// Carries out one call.
    pub async fn call(&self, op: &DpOp) -> Result<DpDone, DpError> {
        let client = self.current.borrow().clone();
        let Some(client) = client else {
            return Err(DpError::Unavailable("not connected".to_owned()));
        };
        call(client, op).await
    }
}

/// Keeps a connection to `endpoint` and reports, until shutdown, which instance answers.
pub async fn supervise(
    endpoint: Endpoint,
    current: watch::Sender<Option<Client>>,
    recheck: Arc<Notify>,
    inputs: mpsc::Sender<Input>,
    shutdown: CancellationToken,
) {
    let supervisor = Supervisor {
        endpoint,
        current,
        recheck,
        inputs,
    };
    tokio::select! {
        () = supervisor.run() => {}
        () = shutdown.cancelled() => {}
    }
}

/// The two halves that [`supervise`] and its users share.
pub fn channel() -> (watch::Sender<Option<Client>>, Service) {
    let (sender, current) = watch::channel(None);
    let recheck = Arc::new(Notify::new());
    (sender, Service { current, recheck })
}

impl Service {
    /// The bell that [`Service::recheck`] rings.
    pub fn bell(&self) -> Arc<Notify> {
        self.recheck.clone()
    }
}

/// `host:port` as an endpoint with the limits above.
pub fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(1))
        .timeout(CALL_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true))
}

/// Everything that the instance behind `channel` holds, for those who only look.
///
/// # Errors
/// The instance cannot be reached, waits for Initialize, or answers what cannot be read.
pub async fn inventory(channel: Channel) -> Result<Observed, DpError> {
    let client = DpdKironcoreClient::new(channel).max_decoding_message_size(REPLY_MAX);
    list::list(client).await
}

struct Supervisor {
    endpoint: Endpoint,
    current: watch::Sender<Option<Client>>,
    recheck: Arc<Notify>,
    inputs: mpsc::Sender<Input>,
}

impl Supervisor {
    async fn run(&self) {
        let mut failures = 0u64;
        loop {
            if let Ok(channel) = self.endpoint.connect().await {
                let client =
                    DpdKironcoreClient::new(channel.clone()).max_decoding_message_size(REPLY_MAX);
                if let Ok(instance) = identify(client.clone()).await {
                    failures = 0;
                    self.current.send_replace(Some(client.clone()));
                    self.report(Input::DpUp { instance }).await;
                    self.hold(client, channel).await;
                    self.current.send_replace(None);
                    self.report(Input::DpDown).await;
                    tracing::warn!("dpservice went away");
                    continue;
                }
            }
            if failures == 0 {
                tracing::info!(address = %self.endpoint.uri(), "waiting for dpservice");
            }
            failures += 1;
            tokio::time::sleep(CONNECT_INTERVAL).await;
        }
    }

    /// Returns when the connection is gone, or the instance does not answer any more.
    async fn hold(&self, client: Client, channel: Channel) {
        let gone = wait_gone(client.clone(), channel);
        tokio::pin!(gone);
        loop {
            tokio::select! {
                () = &mut gone => return,
                () = self.recheck.notified() => {}
            }
            // Calls fail in bursts; one look answers for all of them.
            tokio::time::sleep(CONNECT_INTERVAL).await;
            match identify(client.clone()).await {
                Ok(instance) => self.report(Input::DpUp { instance }).await,
                Err(_) => return,
            }
        }
    }

    async fn report(&self, input: Input) {
        if self.inputs.send(input).await.is_err() {
            tracing::debug!("the agent has stopped");
        }
    }
}

/// The instance's id, or `None` if it says that it waits for Initialize. Only that very answer counts: any other
/// failure says nothing about the instance, and initialising a live one would drop its routes.
async fn identify(mut client: Client) -> Result<Option<String>, Status> {
    match client
        .check_initialized(dpdk::CheckInitializedRequest {})
        .await
    {
        Ok(reply) => Ok(Some(reply.into_inner().uuid)),
        Err(status) if status.code() == Code::Aborted => Ok(None),
        Err(status) => Err(status),
    }
}

/// Waits until the health stream breaks; where there is none, until a look at the instance fails or shows another.
async fn wait_gone(client: Client, channel: Channel) {
    let request = HealthCheckRequest {
        service: SERVICE.to_owned(),
    };
    match HealthClient::new(channel).watch(request).await {
        Ok(reply) => {
            let mut stream = reply.into_inner();
            while let Ok(Some(health)) = stream.message().await {
                tracing::debug!(status = health.status, "health of dpservice");
            }
        }
        Err(status) => {
            tracing::debug!(code = ?status.code(), "dpservice offers no health stream");
            let first = identify(client.clone()).await.ok().flatten();
            loop {
                tokio::time::sleep(POLL_INTERVAL).await;
                match identify(client.clone()).await {
                    Ok(instance) if first.is_none() || instance == first => {}
                    Ok(_) | Err(_) => return,
                }
            }
        }
    }
}

async fn call(mut client: Client, op: &DpOp) -> Result<DpDone, DpError> {
    match op {
        DpOp::Initialize => {
            let reply = client
                .initialize(dpdk::InitializeRequest {})
                .await
                .map_err(transport)?
                .into_inner();
            accepted(reply.status)?;
            Ok(DpDone::Instance(reply.uuid))
        }
        DpOp::List => list::list(client)
            .await
            .map(|inventory| DpDone::Inventory(Box::new(inventory))),
        DpOp::CreateInterface { uid, request } => create_interface(client, uid, request).await,
        DpOp::DeleteInterface { uid } => {
            let request = dpdk::DeleteInterfaceRequest {
                interface_id: id(uid),
            };
            done(client.delete_interface(request).await, |reply| reply.status)
        }
        DpOp::CreatePrefix { uid, prefix } => {
            let request = dpdk::CreatePrefixRequest {
                interface_id: id(uid),
                prefix: Some(to_prefix(prefix)),
                preferred_underlay_route: Vec::new(),
            };
            let reply = client
                .create_prefix(request)
                .await
                .map_err(transport)?
                .into_inner();
            created(reply.status, &reply.underlay_route)
        }
        DpOp::DeletePrefix { uid, prefix } => {
            let request = dpdk::DeletePrefixRequest {
                interface_id: id(uid),
                prefix: Some(to_prefix(prefix)),
            };
            done(client.delete_prefix(request).await, |reply| reply.status)
        }
        DpOp::CreatePart { uid, part } => services::create_part(client, uid, part).await,
        DpOp::DeleteVip { uid } => {
            let interface_id = id(uid);
            let request = dpdk::DeleteVipRequest { interface_id };
            done(client.delete_vip(request).await, |reply| reply.status)
        }
        DpOp::DeleteNat { uid } => {
            let interface_id = id(uid);
            let request = dpdk::DeleteNatRequest { interface_id };
            done(client.delete_nat(request).await, |reply| reply.status)
        }
        DpOp::DeleteTargetPrefix { uid, prefix } => {
            let request = dpdk::DeleteLoadBalancerPrefixRequest {
                interface_id: id(uid),
                prefix: Some(to_prefix(prefix)),
            };
            let reply = client.delete_load_balancer_prefix(request).await;
            done(reply, |reply| reply.status)
        }
        DpOp::DeleteRule { uid, id } => services::delete_rule(&mut client, uid, id).await,
        DpOp::ReplaceRule { uid, id, rule } => services::replace_rule(client, uid, id, rule).await,
        DpOp::CreateBalancer { uid, request } => {
            services::create_balancer(client, uid, request).await
        }
        DpOp::DeleteBalancer { uid } => {
            let loadbalancer_id = id(uid);
            let request = dpdk::DeleteLoadBalancerRequest { loadbalancer_id };
            let reply = client.delete_load_balancer(request).await;
            done(reply, |reply| reply.status)
        }
        DpOp::CreateTarget { uid, target } => {
            let request = dpdk::CreateLoadBalancerTargetRequest {
                loadbalancer_id: id(uid),
                target_ip: Some(to_address((*target).into())),
            };
            let reply = client.create_load_balancer_target(request).await;
            done(reply, |reply| reply.status)
        }
        DpOp::DeleteTarget { uid, target } => {
            let request = dpdk::DeleteLoadBalancerTargetRequest {
                loadbalancer_id: id(uid),
                target_ip: Some(to_address((*target).into())),
            };
            let reply = client.delete_load_balancer_target(request).await;
            done(reply, |reply| reply.status)
        }
        DpOp::CreateNeighbor { neighbor, underlay } => {
            services::create_neighbor(&mut client, *neighbor, *underlay).await
        }
        DpOp::ReplaceNeighbor { neighbor, underlay } => {
            match services::delete_neighbor(&mut client, *neighbor).await {
                Err(error) if error.code() != Some(code::NOT_FOUND) => return Err(error),
                Ok(_) | Err(_) => {}
            }
            services::create_neighbor(&mut client, *neighbor, *underlay).await
        }
        DpOp::DeleteNeighbor { neighbor } => {
            services::delete_neighbor(&mut client, *neighbor).await
        }
        DpOp::CreateRoute { key, hop } => create_route(&mut client, *key, *hop, false).await,
        DpOp::ReplaceRoute { key, hop } => {
            // Our dpservice changes the next hop between two packets; one that cannot says that the route exists.
            match create_route(&mut client, *key, *hop, true).await {
                Err(error) if error.code() == Some(code::ROUTE_EXISTS) => {}
                settled => return settled,
            }
            match delete_route(&mut client, *key).await {
                Err(error) if error.code() != Some(code::ROUTE_NOT_FOUND) => return Err(error),
                Ok(_) | Err(_) => {}
            }
            create_route(&mut client, *key, *hop, false).await
        }
        DpOp::DeleteRoute { key } => delete_route(&mut client, *key).await,
    }
}

async fn create_interface(
    mut client: Client,
    uid: &Uid,
    request: &InterfaceRequest,
) -> Result<DpDone, DpError> {
    let InterfaceRequest {
        vni,
        device,
        ipv4,
        ipv6,
        total_rate,
        public_rate,
        hostname,
        rules,
    } = request;
    // The unspecified address switches a family off.
    let ipv4 = ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED).to_string();
    let ipv6 = ipv6.unwrap_or(Ipv6Addr::UNSPECIFIED).to_string();
    let request = dpdk::CreateInterfaceRequest {
        interface_type: dpdk::InterfaceType::Virtual.into(),
        interface_id: id(uid),
        vni: vni.get(),
        ipv4_config: Some(dpdk::IpConfig {
            primary_address: ipv4.into_bytes(),
        }),
        ipv6_config: Some(dpdk::IpConfig {
            primary_address: ipv6.into_bytes(),
        }),
        pxe_config: None,
        device_name: device.clone(),
        metering_parameters: Some(dpdk::MeteringParams {
            total_rate: *total_rate,
            public_rate: *public_rate,
        }),
        preferred_underlay_route: Vec::new(),
        hostname: hostname.clone(),
        firewall_rules: rules.iter().map(|(id, rule)| to_rule(id, rule)).collect(),
    };
    let reply = client
        .create_interface(request)
        .await
        .map_err(transport)?
        .into_inner();
    let done = created(reply.status, &reply.underlay_route)?;
    Ok(match done {
        DpDone::Underlay(underlay) if reply.firewall_rules_created => DpDone::Guarded(underlay),
        done => done,
    })
}

async fn create_route(
    client: &mut Client,
    key: RouteKey,
    hop: Hop,
    replace: bool,
) -> Result<DpDone, DpError> {
    let route = dpdk::Route {
        prefix: Some(to_prefix(&key.prefix)),
        nexthop_vni: hop.vni.get(),
        nexthop_address: Some(to_address(hop.address.into())),
        weight: WEIGHT,
    };
    let request = dpdk::CreateRouteRequest {
        vni: key.vni.get(),
        route: Some(route),
        replace,
    };
    done(client.create_route(request).await, |reply| reply.status)
}

async fn delete_route(client: &mut Client, key: RouteKey) -> Result<DpDone, DpError> {
    let route = dpdk::Route {
        prefix: Some(to_prefix(&key.prefix)),
        ..dpdk::Route::default()
    };
    let request = dpdk::DeleteRouteRequest {
        vni: key.vni.get(),
        route: Some(route),
    };
    done(client.delete_route(request).await, |reply| reply.status)
}

fn done<T>(
    reply: Result<Response<T>, Status>,
    status: impl FnOnce(T) -> Option<dpdk::Status>,
) -> Result<DpDone, DpError> {
    accepted(status(reply.map_err(transport)?.into_inner()))?;
    Ok(DpDone::Done)
}

/// What was created has an underlay address.
fn created(status: Option<dpdk::Status>, underlay: &[u8]) -> Result<DpDone, DpError> {
    accepted(status)?;
    Ok(DpDone::Underlay(address(underlay, "underlay route")?))
}

fn accepted(status: Option<dpdk::Status>) -> Result<(), DpError> {
    match status {
        None | Some(dpdk::Status { code: 0, .. }) => Ok(()),
        Some(dpdk::Status { code, message }) => Err(DpError::Code { code, message }),
    }
}

fn transport(status: Status) -> DpError {
    match status.code() {
        Code::Aborted => DpError::Uninitialized,
        Code::InvalidArgument | Code::Unimplemented => {
            DpError::Argument(status.message().to_owned())
        }
        code => DpError::Unavailable(format!("{code:?}: {}", status.message())),
    }
}
