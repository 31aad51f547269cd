//! What the process tells monitoring: one [`Facts`], gathered on request, shown as telemetry commands ([`commands`]) and as Prometheus
//! metrics ([`crate::metrics`]).
//!
//! Names are those that existing dashboards and scripts know. Where our engine works differently, the nearest truth is told: a stage is called
//! once per packet, so its calls are its packets; a packet that the flow cache answers counts as passing `conntrack`; cycles and memory of
//! stages are not measured and are 0.

pub mod commands;

use crate::sync::SyncCounters;
use crate::worker::{self, Handle, Stopped};
use dataplane::offload::OffloadCounters;
use dataplane::{
    Counters, EngineConfig, FlowService, Node, PortCounters, PortId, PortKind,
    VIRTUAL_CONNECTIONS_MAX,
};
use net::protocol;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Stages that telemetry has always known, in its order. Our own `flow_cache` is part of `conntrack` there.
const STAGES: [Node; 17] = [
    Node::Cls,
    Node::Arp,
    Node::Ipv6Nd,
    Node::Conntrack,
    Node::Dhcp,
    Node::Dhcpv6,
    Node::Dnat,
    Node::Ipv4Lookup,
    Node::Ipv6Lookup,
    Node::Snat,
    Node::Firewall,
    Node::Lb,
    Node::PacketRelay,
    Node::IpipDecap,
    Node::IpipEncap,
    Node::Virtsvc,
    Node::Drop,
];

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Most entries there can be.
    pub capacity: u64,
    /// Entries.
    pub entries: u64,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortFacts {
    /// Device name.
    pub name: String,
    /// Whether it has a link; a machine port: whether an interface uses it and its device is there.
    pub link: bool,
    /// What the driver counted, under the names of DPDK's extended statistics; empty without driver.
    pub statistics: Vec<(String, u64)>,
}

/// Memory of DPDK, by the names that its telemetry uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heap(pub [(&'static str, u64); 7]);

/// The heaps of this process; none without DPDK.
fn heaps() -> Vec<Heap> {
    #[cfg(feature = "dpdk")]
    let heaps = crate::dpdk::heaps();
    #[cfg(not(feature = "dpdk"))]
    let heaps = Vec::new();
    heaps
}

/// Everything that is told.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Packets per stage, with receiving and transmitting stages of each port.
    pub stages: Vec<(String, u64)>,
    /// Live connections with network NAT per interface.
    pub nat_ports: BTreeMap<String, u64>,
    /// Firewall rules per interface.
    pub firewall_rules: BTreeMap<String, u64>,
    /// Live connections per virtual service, as `UDP:<ip>:<port>`.
    pub virtual_services: Vec<(String, u64)>,
    /// Tables.
    pub tables: Vec<Table>,
    /// Ports.
    pub ports: Vec<PortFacts>,
    /// Counters of the engine, one per packet thread, each of a moment of its own.
    pub engines: Vec<Counters>,
    /// What was counted about flows in a NIC, one per packet thread.
    pub offload: Vec<OffloadCounters>,
    /// Counters of the packet threads.
    pub threads: worker::Counters,
    /// Memory of DPDK, one heap per memory node.
    pub heaps: Vec<Heap>,
    /// What instances tell each other, if there is a link.
    pub sync: Option<Arc<SyncCounters>>,
    /// What drivers counted, by port and queue.
    pub drivers: Vec<(PortId, usize, ports::Counters)>,
}

/// What the configuration side knows.
struct Configured {
    interfaces: Vec<(PortId, String, u64)>,
    tables: Vec<dataplane::TableSize>,
    links: Vec<bool>,
    periodic: u64,
}

/// What a packet thread knows.
struct Observed {
    thread: usize,
    engine: Counters,
    offload: OffloadCounters,
    thread_counters: worker::Counters,
    drivers: Vec<(PortId, ports::Counters)>,
    /// Entries and capacity.
    flows: (usize, usize),
    nat_ports: (usize, usize),
    nat_uses: (usize, usize),
    services: Vec<(String, u64)>,
}

impl Facts {
    /// Gathers all facts. The packet threads are asked between two bursts, for a bounded time each.
    ///
    /// # Errors
    /// If the threads have ended.
    pub async fn gather(worker: &Handle, devices: &[String]) -> Result<Facts, Stopped> {
        let ports = devices.len();
        let configured = worker.call(move |plane| configured(plane, ports)).await?;
        let observed = worker.inspect(observe).await?;
        let translated = worker.collect_flows(usize::MAX, |row| {
            let is_nat = matches!(row.service, FlowService::Nat | FlowService::Nat64);
            row.owner.filter(|_| is_nat && !row.is_reply)
        });
        let (translated, _) = translated.await?;
        let mut facts = assemble(devices, configured, observed, &translated);
        facts.sync = worker.sync_counters().cloned();
        if let Some(sync) = &facts.sync {
            let frames = sync.received.entries().map(|(_, count)| count);
            facts.stages.push(("sync".to_owned(), frames.sum()));
        }
        Ok(facts)
    }

    /// A sum over all packet threads.
    pub fn sum(&self, value: impl Fn(&Counters) -> u64) -> u64 {
        self.engines.iter().map(value).sum()
    }

    /// Number of interfaces.
    #[must_use]
    pub fn interfaces(&self) -> usize {
        self.firewall_rules.len()
    }
}

fn configured(plane: &mut worker::Plane, ports: usize) -> Configured {
    let engine = &plane.engine;
    let interfaces = engine.interfaces().map(|interface| {
        let id = interface.spec.id.clone();
        let rules = engine.firewall_rules(&id).map_or(0, Iterator::count);
        (interface.port, id, rules as u64)
    });
    let ids = (0..ports).map(|port| PortId(port as u16));
    Configured {
        interfaces: interfaces.collect(),
        tables: engine.table_sizes(),
        links: ids
            .map(|port| match engine.port_kind(port) {
                Some(PortKind::Uplink(_)) => engine.has_link(port),
                Some(PortKind::Machine) | None => plane.is_attached(port),
            })
            .collect(),
        periodic: plane.periodic_packets(),
    }
}

fn observe(inspection: worker::Inspection<'_>) -> Observed {
    let worker::Inspection {
        thread,
        worker,
        tables: _,
        now,
        counters,
        drivers,
    } = inspection;
    let (uses, uses_max) = worker.nat().saturation();
    let services = worker.virtual_services().iter().map(|service| {
        let spec = service.spec();
        let transport = if spec.protocol == protocol::UDP {
            "UDP"
        } else {
            "TCP"
        };
        let name = format!("{transport}:{}:{}", spec.address, spec.port);
        (name, service.live(now) as u64)
    });
    Observed {
        thread,
        services: services.collect(),
        engine: worker.counters().clone(),
        offload: worker.offload_counters().clone(),
        thread_counters: counters,
        drivers,
        flows: worker.flow_saturation(),
        nat_ports: (worker.nat().mappings_len(), uses_max),
        nat_uses: (uses, uses_max),
    }
}

fn assemble(
    devices: &[String],
    configured: Configured,
    observed: Vec<Observed>,
    translated: &[PortId],
) -> Facts {
    let mut facts = Facts {
        stages: Vec::new(),
        nat_ports: BTreeMap::new(),
        firewall_rules: BTreeMap::new(),
        virtual_services: Vec::new(),
        tables: tables(&configured, &observed),
        ports: Vec::new(),
        engines: Vec::new(),
        offload: Vec::new(),
        threads: worker::Counters::default(),
        heaps: heaps(),
        sync: None,
        drivers: Vec::new(),
    };
    for (port, id, rules) in &configured.interfaces {
        let count = translated.iter().filter(|owner| *owner == port).count();
        facts.nat_ports.insert(id.clone(), count as u64);
        facts.firewall_rules.insert(id.clone(), *rules);
    }
    for one in observed {
        for (index, (name, live)) in one.services.into_iter().enumerate() {
            match facts.virtual_services.get_mut(index) {
                Some((_, sum)) => *sum += live,
                None => facts.virtual_services.push((name, live)),
            }
        }
        facts.threads.add(one.thread_counters);
        facts.engines.push(one.engine);
        facts.offload.push(one.offload);
        let drivers = one.drivers.into_iter();
        let queues = drivers.map(|(port, counters)| (port, one.thread, counters));
        facts.drivers.extend(queues);
    }
    facts.stages = stages(&facts, devices.len(), configured.periodic);
    facts.ports = devices
        .iter()
        .enumerate()
        .map(|(index, name)| PortFacts {
            name: name.clone(),
            link: configured.links.get(index).copied().unwrap_or(false),
            statistics: statistics(&facts, PortId(index as u16)),
        })
        .collect();
    facts
}

fn tables(configured: &Configured, observed: &[Observed]) -> Vec<Table> {
    let sum = |pick: fn(&Observed) -> (usize, usize), factor: u64| {
        let pairs = observed.iter().map(pick);
        pairs.fold((0, 0), |(entries, capacity), (more, room)| {
            (
                entries + more as u64 * factor,
                capacity + room as u64 * factor,
            )
        })
    };
    let table = |name: &str, (entries, capacity)| Table {
        name: name.to_owned(),
        capacity,
        entries,
    };
    let known = |name: &str| {
        let found = configured.tables.iter().find(|size| size.name == name);
        table(
            name,
            found.map_or((0, 0), |size| (size.entries, size.capacity)),
        )
    };
    let mut tables = vec![
        known("interface_table"),
        // Both directions of a connection have an entry.
        table("conntrack_table", sum(|one| one.flows, 2)),
        known("dnat_table"),
        known("snat_table"),
        table("nat_portmap_table", sum(|one| one.nat_ports, 1)),
        table("nat_portoverload_table", sum(|one| one.nat_uses, 1)),
        known("loadbalancer_table"),
        known("loadbalancer_id_table"),
        known("vni_table"),
        known("vnf_table"),
        known("reverse_vnf_table"),
    ];
    let services = observed.first().map_or(0, |one| one.services.len());
    tables.extend((0..services).map(|index| {
        let live = observed.iter().filter_map(|one| one.services.get(index));
        let entries = live.map(|(_, live)| live).sum();
        let capacity = (VIRTUAL_CONNECTIONS_MAX * observed.len()) as u64;
        table(&format!("virtsvc_table_{index}"), (entries, capacity))
    }));
    tables
}

/// Packets per stage: those of the engine, then reception and transmission per port.
fn stages(facts: &Facts, ports: usize, periodic: u64) -> Vec<(String, u64)> {
    let stage = |node: &Node| {
        let cached = match node {
            Node::Conntrack => facts.sum(|engine| engine.node(Node::FlowCache)),
            _ => 0,
        };
        let count = facts.sum(|engine| engine.node(*node)) + cached;
        (node.name().to_owned(), count)
    };
    let mut stages: Vec<_> = STAGES.iter().map(stage).collect();
    stages.push(("rx_periodic".to_owned(), periodic));
    let ports = ports.min(EngineConfig::PORTS_MAX);
    let port = |index: usize, value: fn(PortCounters) -> u64| {
        facts.sum(|engine| value(engine.port(PortId(index as u16))))
    };
    for index in 0..ports {
        let received = port(index, |counters| counters.rx_packets);
        stages.push((format!("rx-{index}-0"), received));
    }
    for index in 0..ports {
        let sent = port(index, |counters| counters.tx_packets);
        stages.push((format!("tx-{index}"), sent));
    }
    stages
}

/// What the driver of a port counted, under the names of DPDK's extended statistics.
fn statistics(facts: &Facts, port: PortId) -> Vec<(String, u64)> {
    let mut queues: Vec<_> = facts
        .drivers
        .iter()
        .filter(|(owner, _, _)| *owner == port)
        .map(|(_, queue, counters)| (*queue, counters))
        .collect();
    if queues.is_empty() {
        return Vec::new();
    }
    queues.sort_by_key(|(queue, _)| *queue);
    let sum = |value: fn(&ports::Counters) -> u64| -> u64 {
        queues.iter().map(|(_, counters)| value(counters)).sum()
    };
    let failed = |counters: &ports::Counters| {
        counters.tx_full + counters.tx_oversize + counters.tx_down + counters.tx_errors
    };
    let mut all = vec![
        ("rx_good_packets".to_owned(), sum(|c| c.rx_packets)),
        ("tx_good_packets".to_owned(), sum(|c| c.tx_packets)),
        ("rx_good_bytes".to_owned(), sum(|c| c.rx_bytes)),
        ("tx_good_bytes".to_owned(), sum(|c| c.tx_bytes)),
        ("rx_missed_errors".to_owned(), sum(|c| c.rx_full)),
        ("rx_errors".to_owned(), sum(|c| c.rx_unusable)),
        ("tx_errors".to_owned(), sum(failed)),
        // Drivers own their buffers and hand out as many frames as fit.
        ("rx_mbuf_allocation_errors".to_owned(), 0),
        ("rx_super".to_owned(), sum(|c| c.rx_super)),
    ];
    for (queue, counters) in &queues {
        all.extend([
            (format!("rx_q{queue}_packets"), counters.rx_packets),
            (format!("rx_q{queue}_bytes"), counters.rx_bytes),
            (format!("rx_q{queue}_errors"), counters.rx_unusable),
        ]);
    }
    for (queue, counters) in &queues {
        all.extend([
            (format!("tx_q{queue}_packets"), counters.tx_packets),
            (format!("tx_q{queue}_bytes"), counters.tx_bytes),
        ]);
    }
    all
}
