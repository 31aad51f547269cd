//! Puts the parts together: opens the uplinks, starts the packet thread, serves until told to stop.

use crate::args::{Args, Firewall, UplinkDriver, UplinkSegmentation};
use crate::devices::{self, Devices, Driver, Taps};
use crate::grpc::{self, Health, Service, Serving};
use crate::inspection::Inspector;
use crate::metrics;
use crate::standby;
use crate::sync;
use crate::uplink::{self, Uplink};
use crate::worker::{self, Handle, Settings};
use anyhow::Context;
use dataplane::{
    Dhcp, Engine, EngineConfig, FirewallMode, PortConfig, PortId, PortKind, UnderlaySeed,
};
use net::Mac;
use ports::af_packet::{Segmentation, Select};
use ports::offload::RuleDevice;
use ports::{AfPacket, AfXdp, Frame, OpenError, Port, Tap};
use proto::dpdk::dpd_kironcore_server::DpdKironcoreServer;
use proto::inspection::inspection_server::InspectionServer;
use std::collections::BTreeSet;
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
/// Interval of periodic packets to machines.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
/// How often a machine's device that could not be made anew is tried again.
const RESTORE_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes that encapsulation adds.
const ENCAPSULATION_LEN: usize = 40;

/// An engine's configuration with its drivers: everything a running service is made of.
struct Parts {
    /// Ports: uplinks first, then machine ports.
    engine: EngineConfig,
    /// Opened uplinks in the order of their ports.
    uplinks: Vec<Driver>,
    /// Their MTUs.
    mtus: Vec<usize>,
    /// Who watches what the kernel knows of them.
    watched: Vec<Uplink>,
    /// The kernel gets a copy of what comes in on an uplink.
    kernel_copies: bool,
    /// Handles flows by itself.
    nic: Option<Box<dyn RuleDevice>>,
    /// Opens machine devices; index 0 belongs to the port after the last uplink.
    devices: Arc<dyn Devices>,
}

/// Runs the service of this host until `shutdown`.
///
/// # Errors
/// A bad combination of options, an uplink that cannot be opened, an address that cannot be listened on.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    args.validate()?;
    prepare_process(&args);
    let listener = TcpListener::bind(SocketAddr::new(args.grpc_bind, args.grpc_port))
        .await
        .with_context(|| {
            format!(
                "cannot listen on {} port {}",
                args.grpc_bind, args.grpc_port
            )
        })?;
    #[cfg(feature = "dpdk")]
    if !args.eal.is_empty() {
        let layout = crate::dpdk::Layout::new(&args, usize::from(args.workers))?;
        let parts = dpdk_parts(&args, layout)?;
        return serve_parts::<::dpdk::Mbuf>(args, parts, listener, shutdown).await;
    }
    let parts = native_parts(&args)?;
    serve_parts::<Frame>(args, parts, listener, shutdown).await
}

/// What concerns the process as a whole.
fn prepare_process(args: &Args) {
    tracing::info!(value = crate::VERSION, ipv6 = %args.ipv6, "Starting DP service");
    for (option, reason) in args.without_effect() {
        tracing::warn!(name = option, value = reason, "Option has no effect");
    }
    // Bits of core(5): every kind of mapping.
    if args.debug_coredumps
        && let Err(error) = std::fs::write("/proc/self/coredump_filter", "0x7f")
    {
        tracing::warn!(%error, "Cannot let core dumps contain all memory");
    }
}

fn native_parts(args: &Args) -> anyhow::Result<Parts> {
    let names: Vec<String> = args.pf0.iter().chain(&args.pf1).cloned().collect();
    let opened = open_uplinks(args, &names)?;
    let mut ports = Vec::new();
    let mut uplinks = Vec::new();
    let mut mtus = Vec::new();
    for (number, queues) in (0..).zip(opened) {
        let Some(first) = queues.first() else {
            continue;
        };
        check_mtu(args, first.name(), first.mtu());
        mtus.push(first.mtu());
        ports.push(PortConfig {
            name: devices::uplink_device(number),
            kind: PortKind::Uplink(number),
            mac: first.mac(),
        });
        uplinks.push(Driver::Native(queues));
    }
    ports.extend((0..args.tap_count).map(|index| PortConfig {
        name: devices::machine_device(index),
        kind: PortKind::Machine,
        mac: devices::gateway_mac(args.ipv6, index),
    }));
    let taps = Taps {
        prefix: args.tap_prefix.clone(),
        host: args.ipv6,
        mtu: args.dhcp_mtu,
        queues: usize::from(args.workers),
    };
    // A TAP that this process made has no router behind it unless the kernel says so: whoever reads takes every frame.
    let fallback = (args.uplink_driver == UplinkDriver::Tap).then_some(Mac::ZERO);
    let watched = (0..).zip(&names).map(|(number, device)| {
        let args = args.clone();
        let name = device.clone();
        Uplink {
            port: PortId(number),
            device: Some(device.clone()),
            fallback,
            open: Arc::new(move || open_uplink(&args, number, &name).map(Driver::Native)),
        }
    });
    Ok(Parts {
        engine: engine_config(args, ports),
        uplinks,
        mtus,
        watched: watched.collect(),
        kernel_copies: args.uplink_driver == UplinkDriver::AfPacket,
        nic: None,
        devices: Arc::new(taps),
    })
}

#[cfg(feature = "dpdk")]
fn dpdk_parts(args: &Args, layout: crate::dpdk::Layout) -> anyhow::Result<Parts> {
    let layout = Arc::new(layout);
    let mut mtus = Vec::new();
    for (name, mtu) in layout.uplink_mtus() {
        check_mtu(args, &name, mtu);
        mtus.push(mtu);
    }
    let mut uplinks = Vec::new();
    let mut watched = Vec::new();
    let mut kernel_copies = false;
    for (number, (device, copies)) in layout.uplinks().into_iter().enumerate() {
        uplinks.push(
            layout
                .open_uplink(number)
                .with_context(|| format!("cannot open uplink {device}"))?,
        );
        kernel_copies |= copies;
        let layout = Arc::clone(&layout);
        // A TAP has no router behind it, and a device that the kernel does not know has none that it could tell: whoever reads takes
        // every frame.
        let fallback = (args.nic_type == crate::args::NicType::Tap).then_some(Mac::ZERO);
        watched.push(Uplink {
            port: PortId(number as u16),
            device: Some(device),
            fallback,
            open: Arc::new(move || layout.open_uplink(number)),
        });
    }
    Ok(Parts {
        engine: engine_config(args, layout.ports()),
        uplinks,
        mtus,
        watched,
        kernel_copies,
        nic: layout.nic(),
        devices: layout,
    })
}

fn check_mtu(args: &Args, name: &str, mtu: usize) {
    let needed = usize::from(args.dhcp_mtu) + ENCAPSULATION_LEN;
    if mtu < needed {
        tracing::warn!(
            interface_name = name,
            value = mtu,
            min = needed,
            "MTU of uplink is too small for full-sized packets of machines: lower --dhcp-mtu"
        );
    }
}

async fn serve_parts<P: devices::Kind>(
    args: Args,
    parts: Parts,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Parts {
        engine,
        uplinks,
        mtus,
        watched,
        kernel_copies,
        nic,
        devices,
    } = parts;
    let settings = Settings {
        workers: usize::from(args.workers),
        poll: args.poll,
        standby: args.active_lockfile.is_some(),
        clock_rate: 1,
    };
    let lock = match &args.active_lockfile {
        Some(path) => Some(standby::request(path)?),
        None => None,
    };
    let (handle, threads, lost) = start_threads_with::<P>(&engine, uplinks, settings, nic).await?;
    handle
        .call(move |plane| {
            for (number, mtu) in (0..).zip(mtus) {
                let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
                plane.engine.set_uplink_mtu(PortId(number), mtu);
            }
        })
        .await?;
    let mut tasks = JoinSet::new();
    let sync = match &args.sync_tap {
        Some(name) => {
            let link = sync::Link::open(name)?;
            let room = sync::Room::of(&engine, settings.workers);
            let (control, link) = sync::make(link, handle.clone(), room);
            tasks.spawn(link.run(settings.standby, shutdown.clone()));
            Some(control)
        }
        None => None,
    };
    if let Some(lock) = lock {
        tasks.spawn(standby::hold(lock, handle.clone(), sync, shutdown.clone()));
    }
    watch_uplinks(
        &args,
        watched,
        kernel_copies,
        &handle,
        &mut tasks,
        &shutdown,
    )
    .await?;
    if let Some(address) = args.metrics_bind_address {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} for metrics"))?;
        let devices = engine.ports.iter().map(|port| port.name.clone()).collect();
        tasks.spawn(metrics::serve(
            listener,
            devices,
            handle.clone(),
            shutdown.clone(),
        ));
    }
    #[cfg(feature = "dpdk")]
    if !args.eal.is_empty() {
        let devices = engine.ports.iter().map(|port| port.name.clone()).collect();
        let serving = crate::dpdk::serve_telemetry(devices, handle.clone(), shutdown.clone());
        tasks.spawn(serving);
    }
    let service = service(&engine, devices, args.list_ipv6_routes, handle.clone());
    tasks.spawn(serve(service, lost, listener, shutdown.clone()));
    let result = supervise(&mut tasks, &shutdown).await;
    threads.stop(handle);
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

type Queues = Vec<Box<dyn Port<Frame>>>;

fn open_uplinks(args: &Args, names: &[String]) -> anyhow::Result<Vec<Queues>> {
    (0..)
        .zip(names)
        .map(|(number, name)| open_uplink(args, number, name))
        .collect::<Result<_, _>>()
        .context("cannot open uplink")
}

fn open_uplink(args: &Args, number: u16, name: &str) -> Result<Queues, OpenError> {
    let queues = usize::from(args.workers);
    Ok(match args.uplink_driver {
        UplinkDriver::AfPacket => {
            let wanted = match args.uplink_segmentation {
                UplinkSegmentation::Kernel => Segmentation::Kernel,
                UplinkSegmentation::Dpservice => Segmentation::Here,
            };
            let select = Select::Underlay(args.ipv6);
            let opened = AfPacket::open_queues(name, select, queues, wanted)?;
            if opened.iter().any(|queue| queue.segmentation() != wanted) {
                tracing::warn!(
                    interface_name = name,
                    "The kernel cannot cut tunnelled TCP (before Linux 6.6, or without CAP_BPF): done here"
                );
            }
            opened
                .into_iter()
                .map(|queue| Box::new(queue) as _)
                .collect()
        }
        UplinkDriver::AfXdp => {
            let ports = AfXdp::open(name, Select::Underlay(args.ipv6))?;
            if ports.len() > queues {
                return Err(OpenError {
                    device: name.to_owned(),
                    action: "serve every receive queue by a packet thread: raise --workers, or lower the number with ethtool -L",
                    cause: std::io::Error::from(std::io::ErrorKind::InvalidInput),
                });
            }
            ports.into_iter().map(|port| Box::new(port) as _).collect()
        }
        UplinkDriver::Tap => {
            let mtu = usize::from(args.dhcp_mtu) + ENCAPSULATION_LEN;
            // Apart from all machine ports.
            let mac = devices::machine_mac(args.ipv6, u16::MAX - number);
            let taps = Tap::create_queues(name, mac, mtu, queues)?;
            // Nobody else knows when, and without link nothing would be sent.
            taps.first().map_or(Ok(()), Tap::bring_up)?;
            taps.into_iter().map(|queue| Box::new(queue) as _).collect()
        }
    })
}

/// The engine's configuration for these ports.
fn engine_config(args: &Args, ports: Vec<PortConfig>) -> EngineConfig {
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
        virtual_services: args.virtual_services.clone(),
        firewall: match args.firewall {
            Firewall::Enforce => FirewallMode::Enforce,
            Firewall::Observe => FirewallMode::Observe,
        },
        mss_clamp: args.mss_clamp,
        decrement_hops: args.decrement_hops,
        limits: args.limits.limits(),
        ..EngineConfig::new(args.ipv6, ports)
    }
}

/// Ports whose device disappeared.
pub type Lost = mpsc::Receiver<PortId>;

/// Starts the packet threads and gives them the uplinks.
///
/// # Errors
/// If the process is out of descriptors or threads.
pub async fn start_threads<P: devices::Kind>(
    config: &EngineConfig,
    uplinks: Vec<Driver>,
    settings: Settings,
) -> anyhow::Result<(Handle, worker::Threads, Lost)> {
    start_threads_with::<P>(config, uplinks, settings, None).await
}

/// The same with a NIC that handles flows by itself.
///
/// # Errors
/// As above.
pub async fn start_threads_with<P: devices::Kind>(
    config: &EngineConfig,
    uplinks: Vec<Driver>,
    settings: Settings,
    nic: Option<Box<dyn RuleDevice>>,
) -> anyhow::Result<(Handle, worker::Threads, Lost)> {
    let engine = Engine::new(config.clone());
    let (lost, lost_ports) = mpsc::channel(worker::LOST_MAX);
    let (handle, threads) = worker::start::<P>(engine, config.ports.len(), settings, &lost, nic)
        .context("cannot start the packet threads")?;
    for (number, uplink) in (0..).zip(uplinks) {
        handle
            .attach(PortId(number), uplink, |_| true)
            .await?
            .context("cannot watch an uplink")?;
    }
    Ok((handle, threads, lost_ports))
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
        inspector: Inspector::new(config, worker.clone()),
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
    uplinks: Vec<Uplink>,
    kernel_copies: bool,
    worker: &Handle,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    if kernel_copies && let Err(error) = uplink::discard_underlay(args.ipv6).await {
        tracing::warn!(%error, "Cannot add the blackhole route of the overlay's addresses");
    }
    let (known, unknown): (Vec<_>, Vec<_>) = uplinks
        .into_iter()
        .partition(|uplink| uplink.is_known_to_kernel());
    // There is no router that the kernel could know: whoever reads takes every frame.
    let unknown: Vec<PortId> = unknown.iter().map(|uplink| uplink.port).collect();
    worker
        .call(move |plane| {
            for port in unknown {
                plane.engine.set_next_hop(port, Some(Mac::ZERO));
            }
        })
        .await?;
    if !known.is_empty() {
        tasks.spawn(uplink::watch(known, worker.clone(), shutdown.clone()));
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
    grpc::log_ready(address, &service.uuid);
    let stopping = {
        let shutdown = shutdown.clone();
        async move {
            shutdown.cancelled().await;
            // Watchers learn it before their connections end.
            serving.send_replace(Serving::Stopping);
        }
    };
    let inspector = service.inspector.clone();
    let service = Arc::new(service);
    let restoring = {
        let service = Arc::clone(&service);
        async move {
            let mut missing = BTreeSet::new();
            loop {
                tokio::select! {
                    port = lost.recv() => match port {
                        Some(port) => missing.insert(port),
                        None => return,
                    },
                    () = tokio::time::sleep(RESTORE_INTERVAL), if !missing.is_empty() => false,
                };
                for port in missing.clone() {
                    if grpc::restore(&service, port).await {
                        missing.remove(&port);
                    }
                }
            }
        }
    };
    let announcing = async {
        loop {
            tokio::time::sleep(ANNOUNCE_INTERVAL).await;
            if service.worker.call(|plane| plane.tick()).await.is_err() {
                return;
            }
        }
    };
    let server = async {
        tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .max_concurrent_streams(STREAMS_MAX)
            .layer(proto::whole::Whole)
            .add_service(DpdKironcoreServer::from_arc(Arc::clone(&service)))
            .add_service(HealthServer::new(Health(health)))
            .add_service(InspectionServer::new(inspector))
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
        // These end only with the packet threads.
        () = restoring => Ok(()),
        () = announcing => Ok(()),
        () = deadline => Ok(()),
    }
}
