//! Puts the parts together: opens the uplinks, starts the packet thread, serves until told to stop.

use crate::args::{Args, UplinkDriver};
use crate::devices::{self, Devices, Taps};
use crate::grpc::{self, Health, Service, Serving};
use crate::metrics;
use crate::uplink::{self, Uplink};
use crate::worker::{self, Handle, Plane};
use anyhow::Context;
use dataplane::{Dhcp, Engine, EngineConfig, PortConfig, PortId, PortKind, UnderlaySeed};
use net::Mac;
use ports::af_packet::Select;
use ports::{AfPacket, ETHERNET_LEN, Port, Tap};
use proto::dpdk::dpd_kironcore_server::DpdKironcoreServer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic_health::pb::health_server::HealthServer;

/// Interval of HTTP/2 pings on idle connections.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Requests and watches of one connection at the same time.
const STREAMS_MAX: u32 = 256;
/// How long requests may take to finish after a shutdown was asked for.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes that encapsulation adds.
const ENCAPSULATION_LEN: usize = 40;

/// An engine's configuration with its drivers: everything a running service is made of.
pub struct Parts {
    /// Ports: uplinks first, then machine ports.
    pub engine: EngineConfig,
    /// Opened uplinks in the order of their ports.
    pub uplinks: Vec<Box<dyn Port>>,
    /// Opens machine devices; index 0 belongs to the port after the last uplink.
    pub devices: Arc<dyn Devices>,
    /// Whether ListRoutes reports IPv6 routes.
    pub list_ipv6_routes: bool,
}

/// Runs the service of this host until `shutdown`.
///
/// # Errors
/// A bad combination of options, an uplink that cannot be opened, an address that cannot be listened on.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    args.validate()?;
    let listener = TcpListener::bind(SocketAddr::new(args.grpc_bind, args.grpc_port))
        .await
        .with_context(|| {
            format!(
                "cannot listen on {} port {}",
                args.grpc_bind, args.grpc_port
            )
        })?;
    let names: Vec<String> = args.pf0.iter().chain(&args.pf1).cloned().collect();
    let uplinks = open_uplinks(&args, &names)?;
    for uplink in &uplinks {
        let needed = usize::from(args.dhcp_mtu) + ENCAPSULATION_LEN;
        if uplink.mtu() < needed {
            tracing::warn!(
                interface_name = uplink.name(),
                value = uplink.mtu(),
                min = needed,
                "MTU of uplink is too small for full-sized packets of machines: lower --dhcp-mtu"
            );
        }
    }
    let taps = Taps {
        prefix: args.tap_prefix.clone(),
        host: args.ipv6,
        mtu: args.dhcp_mtu,
    };
    let macs: Vec<Mac> = uplinks.iter().map(|uplink| uplink.mac()).collect();
    let parts = Parts {
        engine: engine_config(&args, &macs),
        uplinks,
        devices: Arc::new(taps),
        list_ipv6_routes: args.list_ipv6_routes,
    };
    let (handle, thread, lost) = start_worker(&parts.engine, parts.uplinks)?;
    let mut tasks = JoinSet::new();
    watch_uplinks(&args, names, &handle, &mut tasks, &shutdown).await?;
    if let Some(address) = args.metrics_bind_address {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} for metrics"))?;
        let devices = parts
            .engine
            .ports
            .iter()
            .map(|port| port.name.clone())
            .collect();
        tasks.spawn(metrics::serve(
            listener,
            devices,
            handle.clone(),
            shutdown.clone(),
        ));
    }
    let service = service(
        &parts.engine,
        parts.devices,
        parts.list_ipv6_routes,
        handle.clone(),
    );
    tasks.spawn(serve(service, lost, listener, shutdown.clone()));
    let result = supervise(&mut tasks, &shutdown).await;
    thread.stop(handle);
    result
}

/// Waits for the end of all tasks; the first failure (or unexpected end) stops the others.
async fn supervise(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut result = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = ended
            .context("a task ended abnormally")
            .and_then(|ended| ended);
        let unexpected = !shutdown.is_cancelled();
        if result.is_ok() {
            result = match ended {
                Ok(()) if unexpected => {
                    Err(anyhow::anyhow!("a part of the service ended by itself"))
                }
                ended => ended,
            };
        }
        shutdown.cancel();
    }
    result
}

fn open_uplinks(args: &Args, names: &[String]) -> anyhow::Result<Vec<Box<dyn Port>>> {
    let open = |(number, name): (u16, &String)| -> anyhow::Result<Box<dyn Port>> {
        Ok(match args.uplink_driver {
            UplinkDriver::AfPacket => Box::new(AfPacket::open(name, Select::Underlay(args.ipv6))?),
            UplinkDriver::Tap => {
                let mtu = usize::from(args.dhcp_mtu) + ENCAPSULATION_LEN;
                // Apart from all machine ports.
                let mac = devices::machine_mac(args.ipv6, u16::MAX - number);
                Box::new(Tap::create(name, mac, mtu)?)
            }
        })
    };
    (0..)
        .zip(names)
        .map(open)
        .collect::<anyhow::Result<_>>()
        .context("cannot open uplink")
}

/// The engine's configuration for uplinks with these addresses.
fn engine_config(args: &Args, uplinks: &[Mac]) -> EngineConfig {
    let uplink = |(number, mac): (u8, &Mac)| PortConfig {
        name: devices::uplink_device(number),
        kind: PortKind::Uplink(number),
        mac: *mac,
    };
    let machine = |index| PortConfig {
        name: devices::machine_device(index),
        kind: PortKind::Machine,
        mac: devices::gateway_mac(args.ipv6, index),
    };
    let ports = (0..)
        .zip(uplinks)
        .map(uplink)
        .chain((0..args.tap_count).map(machine))
        .collect();
    let (seed, hash_seed) = uuid::Uuid::new_v4().as_u64_pair();
    EngineConfig {
        dhcp: Dhcp {
            mtu: args.dhcp_mtu,
            dns_ipv4: args.dhcp_dns.clone(),
            dns_ipv6: args.dhcpv6_dns.clone(),
        },
        ipv6_overlay: args.enable_ipv6_overlay,
        wcmp_percent: args.wcmp,
        flow_timeout_s: args.flow_timeout,
        underlay_seed: UnderlaySeed::Random(seed),
        hash_seed,
        ..EngineConfig::new(args.ipv6, ports)
    }
}

/// Ports whose device disappeared.
pub type Lost = mpsc::Receiver<PortId>;

/// Starts the packet thread with its uplinks.
///
/// # Errors
/// If the process is out of descriptors or threads.
pub fn start_worker(
    config: &EngineConfig,
    uplinks: Vec<Box<dyn Port>>,
) -> anyhow::Result<(Handle, worker::Thread, Lost)> {
    let frame_max = uplinks
        .iter()
        .map(|uplink| uplink.mtu() + ETHERNET_LEN)
        .max()
        .unwrap_or(0);
    let engine = Engine::new(config.clone());
    let (lost, lost_ports) = mpsc::channel(worker::LOST_MAX);
    let mut plane = Plane::new(engine, config.ports.len(), frame_max, lost)?;
    for (number, uplink) in (0..).zip(uplinks) {
        plane.attach(PortId(number), uplink)?;
    }
    let (handle, thread) = worker::start(plane).context("cannot start the packet thread")?;
    Ok((handle, thread, lost_ports))
}

/// The gRPC service over a running packet thread.
#[must_use]
pub fn service(
    config: &EngineConfig,
    devices: Arc<dyn Devices>,
    list_ipv6_routes: bool,
    worker: Handle,
) -> Service {
    let is_machine = |port: &PortConfig| port.kind == PortKind::Machine;
    let machine_ports_start = config.ports.iter().position(is_machine).unwrap_or(0);
    Service {
        worker,
        devices,
        machine_ports_start: u16::try_from(machine_ports_start).unwrap_or(u16::MAX),
        host: config.host,
        uuid: uuid::Uuid::new_v4().hyphenated().to_string().to_uppercase(),
        list_ipv6_routes,
        initialized: AtomicBool::new(false),
    }
}

async fn watch_uplinks(
    args: &Args,
    names: Vec<String>,
    worker: &Handle,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    match args.uplink_driver {
        UplinkDriver::AfPacket => {
            if let Err(error) = uplink::discard_underlay(args.ipv6).await {
                tracing::warn!(%error, "Cannot add the blackhole route of the overlay's addresses");
            }
            let select = Select::Underlay(args.ipv6);
            let uplinks = (0..)
                .zip(names)
                .map(|(number, device)| Uplink {
                    port: PortId(number),
                    device,
                    select,
                })
                .collect();
            tasks.spawn(uplink::watch(uplinks, worker.clone(), shutdown.clone()));
        }
        UplinkDriver::Tap => {
            // There is no router behind a TAP: whoever reads it takes every frame.
            let count = names.len() as u16;
            worker
                .call(move |plane| {
                    for number in 0..count {
                        plane.engine.set_next_hop(PortId(number), Some(Mac::ZERO));
                    }
                })
                .await?;
        }
    }
    Ok(())
}

/// Serves gRPC and health on `listener` until `shutdown`, and restores `lost` machine devices.
///
/// # Errors
/// If the server fails.
pub async fn serve(
    service: Service,
    mut lost: Lost,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let address = listener
        .local_addr()
        .context("cannot tell the listening address")?;
    // The socket listens already: whoever connects from here on is answered.
    let (serving, health) = watch::channel(Serving::Listening);
    tracing::info!(
        grpc_server_address = %address,
        ipv6 = %service.host,
        uuid = service.uuid,
        version = crate::VERSION,
        "Server started and listening"
    );
    let stopping = {
        let shutdown = shutdown.clone();
        async move {
            shutdown.cancelled().await;
            // Watchers learn it before their connections end.
            serving.send_replace(Serving::Stopping);
        }
    };
    let service = Arc::new(service);
    let restoring = {
        let service = Arc::clone(&service);
        async move {
            while let Some(port) = lost.recv().await {
                grpc::restore(&service, port).await;
            }
        }
    };
    let server = async {
        tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .max_concurrent_streams(STREAMS_MAX)
            .add_service(DpdKironcoreServer::from_arc(service))
            .add_service(HealthServer::new(Health(health)))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopping)
            .await
            .context("the gRPC server failed")
    };
    let deadline = async {
        shutdown.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = server => result,
        // Ends only with the packet thread.
        () = restoring => Ok(()),
        () = deadline => Ok(()),
    }
}
