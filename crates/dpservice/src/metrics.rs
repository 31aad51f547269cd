//! Monitoring over HTTP: Prometheus metrics at `/metrics`, telemetry commands at their own paths, both made from [`Facts`].
//!
//! Metrics named `dps_…` and `dpdk_…` have the names, labels and types that existing dashboards query (all of them gauges); what the process
//! counts beyond them is named `dpservice_…`.

use crate::sync::{Named, SyncCounters};
use crate::telemetry::{Facts, commands};
use crate::worker::Handle;
use anyhow::Context;
use dataplane::offload::{OffloadCounters, Stays};
use dataplane::{DropReason, Node};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Connections served at the same time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 16;
/// How long a client may keep a connection.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(30);

macro_rules! labels {
    ($($name:ident { $($label:ident: $kind:ty),+ })*) => {
        $(#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name { $($label: $kind),+ })*
    };
}

labels! {
    PortLabels { device: String, counter: &'static str }
    NodeLabels { graph_node: &'static str }
    ReasonLabels { reason: &'static str }
    StatLabels { name: String, stat: String }
    DeviceLabels { name: String }
    HostNodeLabels { node: String, graph_node: String }
    InterfaceLabels { interface_id: String }
    ServiceLabels { address: String }
    HeapLabels { node: String, info: &'static str }
    TableLabels { table: String, stat: &'static str }
    SyncLabels { what: &'static str }
}

/// A gauge of counts.
type Count = Gauge<u64, AtomicU64>;

/// Serves metrics and telemetry on `listener` until `shutdown`. `devices` are the names of the engine's ports.
///
/// # Errors
/// None after the start; failing connections are their clients' concern.
pub async fn serve(
    listener: TcpListener,
    devices: Vec<String>,
    worker: Handle,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let address = listener
        .local_addr()
        .context("cannot tell the listening address")?;
    tracing::info!(path = %address, "Metrics are served");
    let devices: Arc<[String]> = devices.into();
    let mut connections = JoinSet::new();
    loop {
        let full = connections.len() >= CONNECTIONS_MAX;
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if !full => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, Arc::clone(&devices), worker.clone()));
                }
            }
        }
    }
}

async fn connection(stream: TcpStream, devices: Arc<[String]>, worker: Handle) {
    let answer = hyper::service::service_fn(|request: Request<Incoming>| {
        respond(request, &devices, &worker)
    });
    let serving =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
    // A client that breaks off or lingers is not our failure.
    let _ = tokio::time::timeout(CONNECTION_TIME_MAX, serving).await;
}

async fn respond(
    request: Request<Incoming>,
    devices: &[String],
    worker: &Handle,
) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    let path = request.uri().path();
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED);
    }
    let Ok(facts) = Facts::gather(worker, devices).await else {
        return plain(StatusCode::SERVICE_UNAVAILABLE);
    };
    if path != "/metrics" {
        return match commands::answer(&facts, path) {
            Some(answer) => Response::builder()
                .header("content-type", "application/json")
                .body(Full::from(answer.to_string())),
            None => plain(StatusCode::NOT_FOUND),
        };
    }
    match render(&facts, &host_name()) {
        Ok(text) => Response::builder()
            .header(
                "content-type",
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )
            .body(Full::from(text)),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn plain(status: StatusCode) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    Response::builder().status(status).body(Full::default())
}

/// Name of this host as dashboards know it: `NODE_NAME`, else what the kernel says.
fn host_name() -> String {
    std::env::var("NODE_NAME").unwrap_or_else(|_| {
        let name = nix::unistd::gethostname().unwrap_or_default();
        name.to_string_lossy().into_owned()
    })
}

/// All metrics as text. `host` is the value of the label `node`.
///
/// # Errors
/// Never in practice: writing text to memory does not fail.
pub fn render(facts: &Facts, host: &str) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let mut known = Registry::default();
    register_known(&mut known, facts, host);
    register_ports(&mut known, facts);
    let own = known.sub_registry_with_prefix("dpservice");
    register_own(own, facts);
    encode(&mut text, &known)?;
    Ok(text)
}

fn gauge<L: Clone + std::hash::Hash + Eq>(family: &Family<L, Count>, labels: &L, value: u64) {
    family.get_or_create(labels).set(value);
}

fn register_known(registry: &mut Registry, facts: &Facts, host: &str) {
    let by_interface = |counts: &BTreeMap<String, u64>| {
        let family = Family::<InterfaceLabels, Count>::default();
        for (id, count) in counts {
            let interface_id = id.clone();
            gauge(&family, &InterfaceLabels { interface_id }, *count);
        }
        family
    };
    registry.register(
        "dps_nat_used_ports_count",
        "Live connections with network NAT",
        by_interface(&facts.nat_ports),
    );
    registry.register(
        "dps_firewall_rules_count",
        "Firewall rules",
        by_interface(&facts.firewall_rules),
    );
    let services = Family::<ServiceLabels, Count>::default();
    for (address, live) in &facts.virtual_services {
        let address = address.clone();
        gauge(&services, &ServiceLabels { address }, *live);
    }
    registry.register(
        "dps_virtsvc_used_ports_count",
        "Live connections of virtual services",
        services,
    );
    let stages = Family::<HostNodeLabels, Count>::default();
    for (stage, count) in &facts.stages {
        let labels = HostNodeLabels {
            node: host.to_owned(),
            graph_node: stage.clone(),
        };
        gauge(&stages, &labels, *count);
    }
    registry.register("dps_graph_call_count", "Calls of a stage", stages);
    if !facts.heaps.is_empty() {
        let heaps = Family::<HeapLabels, Count>::default();
        for (info, value) in facts.heaps.iter().flat_map(|heap| heap.0) {
            let node = host.to_owned();
            gauge(&heaps, &HeapLabels { node, info }, value);
        }
        registry.register("dpdk_heap_info", "Memory of DPDK", heaps);
    }
    let tables = Family::<TableLabels, Count>::default();
    for table in &facts.tables {
        for (stat, value) in [("capacity", table.capacity), ("entries", table.entries)] {
            let table = table.name.clone();
            gauge(&tables, &TableLabels { table, stat }, value);
        }
    }
    registry.register(
        "dps_hash_table_saturation",
        "Capacity and entries of tables",
        tables,
    );
}

/// What drivers count, sorted by name into bytes, packets, errors and the rest, in this order of tests.
fn register_ports(registry: &mut Registry, facts: &Facts) {
    let [bytes, packets, errors, rest] = [(); 4].map(|()| Family::<StatLabels, Count>::default());
    let links = Family::<DeviceLabels, Count>::default();
    for port in &facts.ports {
        let name = port.name.clone();
        if !name.contains("representor") {
            gauge(&links, &DeviceLabels { name }, u64::from(port.link));
        }
        for (stat, value) in &port.statistics {
            let family = match stat {
                stat if stat.contains("bytes") => &bytes,
                stat if stat.contains("packets") => &packets,
                stat if stat.contains("errors") => &errors,
                _ => &rest,
            };
            let (name, stat) = (port.name.clone(), stat.clone());
            gauge(family, &StatLabels { name, stat }, *value);
        }
    }
    for (name, help, family) in [
        ("dpdk_ethdev_bytes_total", "Bytes of a port", bytes),
        ("dpdk_ethdev_packets_total", "Packets of a port", packets),
        ("dpdk_ethdev_errors_total", "Errors of a port", errors),
        ("dpdk_ethdev_misc", "Other statistics of a port", rest),
    ] {
        registry.register(name, help, family);
    }
    registry.register("dpdk_ethdev_link_status", "1 up, 0 down", links);
}

fn register_own(registry: &mut Registry, facts: &Facts) {
    let nodes = Family::<NodeLabels, Counter>::default();
    for node in Node::ALL {
        let labels = NodeLabels {
            graph_node: node.name(),
        };
        let packets = facts.sum(|engine| engine.node(*node));
        nodes.get_or_create(&labels).inc_by(packets);
    }
    registry.register("graph_packets", "Packets that passed a stage", nodes);
    let drops = Family::<ReasonLabels, Counter>::default();
    for reason in DropReason::ALL {
        let labels = ReasonLabels {
            reason: reason.name(),
        };
        let packets = facts.sum(|engine| engine.drops(*reason));
        drops.get_or_create(&labels).inc_by(packets);
    }
    registry.register(
        "dropped_packets",
        "Packets discarded by the engine, by reason",
        drops,
    );
    register_offload(registry, facts);
    if let Some(sync) = &facts.sync {
        register_sync(registry, sync);
    }
    let ports = Family::<PortLabels, Counter>::default();
    for (port, _, counters) in &facts.drivers {
        let port = facts.ports.get(port.index());
        for (counter, value) in counters.entries() {
            let device = port.map(|port| port.name.clone()).unwrap_or_default();
            ports
                .get_or_create(&PortLabels { device, counter })
                .inc_by(value);
        }
    }
    registry.register("port", "What the driver of a port counted", ports);
    let thread = &facts.threads;
    let single = [
        (
            "flows_created",
            "Flows created",
            facts.sum(|engine| engine.flows_created),
        ),
        (
            "flows_expired",
            "Flows forgotten after their timeout",
            facts.sum(|engine| engine.flows_expired),
        ),
        (
            "flows_redecided",
            "Flows decided again after a change",
            facts.sum(|engine| engine.flows_redecided),
        ),
        (
            "flows_kept",
            "Flows whose decision a change left as it was",
            facts.sum(|engine| engine.flows_kept),
        ),
        (
            "fragments_displaced",
            "Fragmented packets forgotten early because there were too many",
            facts.sum(|engine| engine.fragments_displaced),
        ),
        (
            "no_device",
            "Packets for a port without device",
            thread.no_device,
        ),
        (
            "devices_lost",
            "Devices that disappeared",
            thread.devices_lost,
        ),
        ("sleeps", "Times a packet thread slept", thread.sleeps),
        (
            "handed_over",
            "Packets handed to another packet thread",
            thread.handed_over,
        ),
        (
            "hand_over_full",
            "Packets dropped because another packet thread did not keep up",
            thread.hand_over_full,
        ),
        (
            "standby",
            "Packets discarded while another instance works",
            thread.standby,
        ),
        (
            "sync_untold",
            "Connections that the other instance was not told of because too many came at once",
            thread.untold,
        ),
        (
            "mirrored",
            "Frames sent to the receiver of a capture",
            thread.mirrored,
        ),
        (
            "mirror_failed",
            "Frames of a capture that could not be sent to its receiver",
            thread.mirror_failed,
        ),
    ];
    for (name, help, value) in single {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    }
    let interfaces = Count::default();
    interfaces.set(facts.interfaces() as u64);
    registry.register("interfaces", "Attached interfaces", interfaces);
}

/// What instances tell each other.
fn register_sync(registry: &mut Registry, sync: &SyncCounters) {
    fn named<const N: usize>(counts: &Named<N>) -> Family<SyncLabels, Counter> {
        let family = Family::<SyncLabels, Counter>::default();
        for (what, count) in counts.entries() {
            family.get_or_create(&SyncLabels { what }).inc_by(count);
        }
        family
    }
    for (name, help, family) in [
        (
            "sync_sent",
            "Messages sent to the other instance",
            named(&sync.sent),
        ),
        (
            "sync_received",
            "Messages received from it",
            named(&sync.received),
        ),
        (
            "sync_taken",
            "Connections taken over from it",
            named(&sync.taken),
        ),
        (
            "sync_ignored",
            "Frames from it that did nothing, by reason",
            named(&sync.ignored),
        ),
        (
            "sync_not_taken",
            "Connections that could not be taken over, by reason",
            named(&sync.not_taken),
        ),
    ] {
        registry.register(name, help, family);
    }
    let unsent: Counter = Counter::default();
    unsent.inc_by(sync.unsent.load(Ordering::Relaxed));
    registry.register("sync_unsent", "Messages that could not be written", unsent);
    let kept = Family::<SyncLabels, Count>::default();
    for (what, count) in sync.kept.entries() {
        gauge(&kept, &SyncLabels { what }, count);
    }
    registry.register(
        "sync_kept",
        "Connections of the other instance kept for the change",
        kept,
    );
}

/// Flows in a NIC.
fn register_offload(registry: &mut Registry, facts: &Facts) {
    let sum = |value: fn(&OffloadCounters) -> u64| facts.offload.iter().map(value).sum::<u64>();
    let flows = Count::default();
    flows.set(sum(|counters| counters.flows));
    registry.register(
        "offload_flows",
        "Directions of connections that the NIC handles",
        flows,
    );
    for (name, help, value) in [
        (
            "offload_installed",
            "Flows whose rules came into force",
            sum(|counters| counters.installed),
        ),
        (
            "offload_removed",
            "Flows whose rules were taken back",
            sum(|counters| counters.removed),
        ),
        (
            "offload_queue_full",
            "Times that the queue to the NIC had no room",
            sum(|counters| counters.queue_full),
        ),
        (
            "offload_packets",
            "Packets that the NIC handled",
            sum(|counters| counters.packets),
        ),
        (
            "offload_bytes",
            "Bytes that the NIC handled",
            sum(|counters| counters.bytes),
        ),
    ] {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    }
    let stays = Family::<ReasonLabels, Counter>::default();
    for reason in Stays::ALL {
        let labels = ReasonLabels {
            reason: reason.name(),
        };
        let flows = facts.offload.iter().map(|counters| counters.stays(*reason));
        stays.get_or_create(&labels).inc_by(flows.sum());
    }
    registry.register(
        "offload_stays",
        "Decisions of flows that stayed in software, by reason",
        stays,
    );
}
