//! Tables as rows of text. Names of columns are those that operators of comparable services know.

use super::explain::{interface_id, kind_name};
use super::{Inspector, invalid, stopping};
use crate::telemetry::Facts;
use crate::worker::Plane;
use dataplane::{FlowOutput, FlowRow, FlowService, RuleDirection, RuleFilter, VniType};
use net::{Prefix, protocol};
use proto::inspection::{ListRowsRequest, ListRowsResponse, Row, RowFilter, Table};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tonic::Status;

/// Rows of an answer unless its request says otherwise, and at most.
const ROWS: usize = 1_000;
const ROWS_MAX: usize = 10_000;

/// What of a row filters look at.
#[derive(Clone, Debug, Default)]
struct Keys {
    interfaces: Vec<String>,
    addresses: Vec<Prefix>,
    ports: Vec<u16>,
    vni: Option<u32>,
}

impl Keys {
    fn interface(mut self, id: &str) -> Keys {
        self.interfaces.push(id.to_owned());
        self
    }

    fn address(mut self, address: impl Into<IpAddr>) -> Keys {
        self.addresses.push(Prefix::host(address.into()));
        self
    }

    fn prefix(mut self, prefix: Prefix) -> Keys {
        self.addresses.push(prefix);
        self
    }

    fn port(mut self, port: u16) -> Keys {
        self.ports.push(port);
        self
    }

    fn vni(mut self, vni: u32) -> Keys {
        self.vni = Some(vni);
        self
    }
}

#[derive(Clone, Debug, Default)]
struct Filter {
    interface: Option<String>,
    address: Option<IpAddr>,
    port: Option<u16>,
    vni: Option<u32>,
}

impl Filter {
    fn parse(filter: RowFilter) -> Result<Filter, Status> {
        let RowFilter {
            interface_id,
            address,
            port,
            vni,
        } = filter;
        Ok(Filter {
            interface: Some(interface_id).filter(|id| !id.is_empty()),
            address: match address.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| invalid("filter.address"))?),
            },
            port: match port {
                0 => None,
                port => Some(u16::try_from(port).map_err(|_| invalid("filter.port"))?),
            },
            vni: Some(vni).filter(|vni| *vni != 0),
        })
    }

    fn matches(&self, keys: &Keys) -> bool {
        let interface = self.interface.as_ref();
        interface.is_none_or(|id| keys.interfaces.contains(id))
            && self
                .address
                .is_none_or(|address| keys.addresses.iter().any(|prefix| prefix.contains(address)))
            && self.port.is_none_or(|port| keys.ports.contains(&port))
            && self.vni.is_none_or(|vni| keys.vni == Some(vni))
    }
}

/// Rows that match, until there are enough.
struct Rows {
    columns: &'static [&'static str],
    filter: Filter,
    limit: usize,
    rows: Vec<Row>,
    truncated: bool,
}

impl Rows {
    fn push(&mut self, keys: &Keys, cells: Vec<String>) {
        if !self.filter.matches(keys) {
            return;
        }
        if self.rows.len() < self.limit {
            self.rows.push(Row { cells });
        } else {
            self.truncated = true;
        }
    }
}

pub(super) async fn list(
    inspector: &Inspector,
    request: ListRowsRequest,
) -> Result<ListRowsResponse, Status> {
    let table = Table::try_from(request.table).map_err(|_| invalid("table"))?;
    let mut rows = Rows {
        columns: columns(table),
        filter: Filter::parse(request.filter.unwrap_or_default())?,
        limit: match request.limit as usize {
            0 => ROWS,
            limit => limit.min(ROWS_MAX),
        },
        rows: Vec::new(),
        truncated: false,
    };
    rows = match table {
        Table::Flows => flows(inspector, rows).await?,
        Table::Nat => nat(inspector, rows).await?,
        Table::Tables | Table::Ports => facts(inspector, table, rows).await?,
        Table::Snat
        | Table::Dnat
        | Table::Routes
        | Table::Interfaces
        | Table::Underlay
        | Table::LoadBalancers
        | Table::Firewall
        | Table::Vnis => {
            let names = inspector.devices.clone();
            let filled = inspector.worker.call(move |plane| {
                let mut rows = rows;
                configured(plane, table, &names, &mut rows);
                rows
            });
            filled.await.map_err(stopping)?
        }
    };
    Ok(ListRowsResponse {
        columns: rows.columns.iter().map(|name| (*name).to_owned()).collect(),
        rows: rows.rows,
        truncated: rows.truncated,
    })
}

fn columns(table: Table) -> &'static [&'static str] {
    match table {
        Table::Tables => &["TABLE", "ENTRIES", "CAPACITY"],
        Table::Flows => &[
            "VNI",
            "PROTO",
            "SOURCE",
            "DESTINATION",
            "DIRECTION",
            "SERVICE",
            "LEAVES_FROM",
            "LEAVES_TO",
            "OUTPUT",
            "INTERFACE_ID",
            "STATE",
            "AGE",
            "TIMEOUT",
            "CURRENT",
        ],
        Table::Nat => &[
            "VNI",
            "SRC_IP",
            "SRC_PORT",
            "NAT_IP",
            "NAT_PORT",
            "FLOWS",
            "INTERFACE_ID",
        ],
        Table::Snat => &[
            "VNI",
            "IP",
            "VIP_IP",
            "NAT_IP",
            "MIN_PORT",
            "MAX_PORT",
            "UL_VIP",
            "UL_NAT",
            "INTERFACE_ID",
        ],
        Table::Dnat => &["VIP", "VNI", "IP", "MIN_PORT", "MAX_PORT", "UNDERLAY"],
        Table::Routes => &["VNI", "PREFIX", "NEXT_HOP", "NEXT_HOP_VNI"],
        Table::Interfaces => &[
            "IFACE_ID", "PORT", "DEVICE", "VNI", "IPV4", "IPV6", "UNDERLAY", "MAC",
        ],
        Table::Underlay => &[
            "UNDERLAY_IP",
            "TYPE",
            "VNI",
            "PORT_ID",
            "INTERFACE_ID",
            "PREFIX",
        ],
        Table::LoadBalancers => &["LB_ID", "VNI", "IP", "PORTS", "UNDERLAY", "TARGETS"],
        Table::Firewall => &[
            "INTERFACE_ID",
            "RULE_ID",
            "DIRECTION",
            "ACTION",
            "PRIORITY",
            "SOURCE",
            "DESTINATION",
            "PROTO",
            "HITS",
        ],
        Table::Vnis => &["VNI", "INTERFACES", "ROUTES"],
        Table::Ports => &[
            "PORT",
            "DEVICE",
            "LINK",
            "RX_PACKETS",
            "RX_BYTES",
            "TX_PACKETS",
            "TX_BYTES",
        ],
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMPV6 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

fn end(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}:{port}"),
        IpAddr::V6(address) => format!("[{address}]:{port}"),
    }
}

fn flow_keys(row: &FlowRow, owner: &str) -> Keys {
    [row.shows, row.leaves].into_iter().fold(
        Keys::default().interface(owner).vni(row.vni.get()),
        |keys, tuple| {
            keys.address(tuple.source)
                .address(tuple.destination)
                .port(tuple.source_port)
                .port(tuple.destination_port)
        },
    )
}

/// Interface ids by port.
async fn owners(inspector: &Inspector) -> Result<BTreeMap<u16, String>, Status> {
    let listed = inspector.worker.call(|plane| {
        let interfaces = plane.engine.interfaces();
        interfaces
            .map(|interface| (interface.port.0, interface.spec.id.clone()))
            .collect()
    });
    listed.await.map_err(stopping)
}

async fn flows(inspector: &Inspector, mut rows: Rows) -> Result<Rows, Status> {
    let owners = owners(inspector).await?;
    let (filter, known) = (rows.filter.clone(), owners.clone());
    let owner_of = |owners: &BTreeMap<u16, String>, row: &FlowRow| {
        let owner = row.owner.and_then(|port| owners.get(&port.0).cloned());
        owner.unwrap_or_default()
    };
    let found = inspector.worker.collect_flows(rows.limit, move |row| {
        let keys = flow_keys(&row, &owner_of(&known, &row));
        filter.matches(&keys).then_some(row)
    });
    let (found, is_complete) = found.await.map_err(stopping)?;
    rows.truncated = !is_complete;
    rows.rows = found
        .into_iter()
        .map(|row| Row {
            cells: flow_cells(inspector, &row, owner_of(&owners, &row)),
        })
        .collect();
    Ok(rows)
}

fn flow_cells(inspector: &Inspector, row: &FlowRow, owner: String) -> Vec<String> {
    let output = match row.output {
        FlowOutput::Undecided => "undecided".to_owned(),
        FlowOutput::Deliver(port) => inspector.device(port),
        FlowOutput::Encap {
            port, destination, ..
        } => format!("{destination} by {}", inspector.device(port)),
    };
    let age = row.idle_s;
    vec![
        row.vni.to_string(),
        protocol_name(row.shows.protocol),
        end(row.shows.source, row.shows.source_port),
        end(row.shows.destination, row.shows.destination_port),
        if row.is_reply { "reply" } else { "org" }.to_owned(),
        row.service.name().to_owned(),
        end(row.leaves.source, row.leaves.source_port),
        end(row.leaves.destination, row.leaves.destination_port),
        output,
        owner,
        row.state.to_owned(),
        format!("{:02}:{:02}:{:02}", age / 3_600, age / 60 % 60, age % 60),
        row.timeout_s.to_string(),
        if row.is_current { "yes" } else { "no" }.to_owned(),
    ]
}

async fn nat(inspector: &Inspector, mut rows: Rows) -> Result<Rows, Status> {
    let owners = owners(inspector).await?;
    let found = inspector.worker.collect_flows(usize::MAX, |row| {
        let is_nat = matches!(row.service, FlowService::Nat | FlowService::Nat64);
        let (from, to) = (row.shows, row.leaves);
        (is_nat && !row.is_reply).then_some((
            (row.vni.get(), from.source, from.source_port),
            (to.source, to.source_port, row.owner),
        ))
    });
    let (found, _) = found.await.map_err(stopping)?;
    let mut mappings = BTreeMap::new();
    for (source, end) in found {
        mappings
            .entry((source, end))
            .and_modify(|count| *count += 1)
            .or_insert(1_u64);
    }
    for (((vni, address, port), (nat, nat_port, owner)), count) in mappings {
        let owner = owner.and_then(|port| owners.get(&port.0).cloned());
        let owner = owner.unwrap_or_default();
        let keys = Keys::default().interface(&owner).vni(vni);
        let keys = keys.address(address).address(nat).port(port).port(nat_port);
        let cells = vec![
            vni.to_string(),
            address.to_string(),
            port.to_string(),
            nat.to_string(),
            nat_port.to_string(),
            count.to_string(),
            owner,
        ];
        rows.push(&keys, cells);
    }
    Ok(rows)
}

async fn facts(inspector: &Inspector, table: Table, mut rows: Rows) -> Result<Rows, Status> {
    let facts = Facts::gather(&inspector.worker, &inspector.devices).await;
    let facts = facts.map_err(stopping)?;
    if table == Table::Tables {
        for table in &facts.tables {
            let cells = vec![
                table.name.clone(),
                table.entries.to_string(),
                table.capacity.to_string(),
            ];
            rows.push(&Keys::default(), cells);
        }
        return Ok(rows);
    }
    let owners = owners(inspector).await?;
    for (number, port) in (0_u16..).zip(&facts.ports) {
        let statistic = |name: &str| {
            let found = port.statistics.iter().find(|(known, _)| known == name);
            found.map_or_else(String::new, |(_, value)| value.to_string())
        };
        let owner = owners.get(&number).map_or("", String::as_str);
        let cells = vec![
            number.to_string(),
            port.name.clone(),
            if port.link { "up" } else { "down" }.to_owned(),
            statistic("rx_good_packets"),
            statistic("rx_good_bytes"),
            statistic("tx_good_packets"),
            statistic("tx_good_bytes"),
        ];
        rows.push(&Keys::default().interface(owner), cells);
    }
    Ok(rows)
}

fn configured(plane: &Plane, table: Table, devices: &[String], rows: &mut Rows) {
    match table {
        Table::Snat => snat(plane, rows),
        Table::Dnat => dnat(plane, rows),
        Table::Routes => routes(plane, rows),
        Table::Interfaces => interfaces(plane, devices, rows),
        Table::Underlay => underlay(plane, rows),
        Table::LoadBalancers => load_balancers(plane, rows),
        Table::Firewall => firewall(plane, rows),
        Table::Vnis => vnis(plane, rows),
        Table::Tables | Table::Flows | Table::Nat | Table::Ports => {}
    }
}

fn optional<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

fn snat(plane: &Plane, rows: &mut Rows) {
    let engine = &plane.engine;
    for interface in engine.interfaces() {
        let id = &interface.spec.id;
        let (vip, nat) = (engine.vip(id).ok(), engine.nat(id).ok());
        if vip.is_none() && nat.is_none() {
            continue;
        }
        let vni = interface.spec.vni.get();
        let mut keys = Keys::default().interface(id).vni(vni);
        for address in interface
            .spec
            .ipv4
            .into_iter()
            .chain(vip.map(|vip| vip.address))
        {
            keys = keys.address(address);
        }
        if let Some(nat) = nat {
            keys = keys.address(nat.address);
        }
        let cells = vec![
            vni.to_string(),
            optional(interface.spec.ipv4),
            optional(vip.map(|vip| vip.address)),
            optional(nat.map(|nat| nat.address)),
            optional(nat.map(|nat| nat.ports.first())),
            optional(nat.map(|nat| nat.ports.end())),
            optional(vip.map(|vip| vip.underlay)),
            optional(nat.map(|nat| nat.underlay)),
            id.clone(),
        ];
        rows.push(&keys, cells);
    }
}

fn dnat(plane: &Plane, rows: &mut Rows) {
    let engine = &plane.engine;
    let mut push =
        |vni: u32, address: Ipv4Addr, machine: Option<Ipv4Addr>, ports, underlay: Ipv6Addr| {
            let keys = Keys::default().vni(vni).address(address).address(underlay);
            let (first, last): (String, String) = ports;
            // Network NAT stands for no machine in particular.
            let machine = machine.unwrap_or(Ipv4Addr::UNSPECIFIED);
            let cells = vec![
                address.to_string(),
                vni.to_string(),
                machine.to_string(),
                first,
                last,
                underlay.to_string(),
            ];
            rows.push(&keys, cells);
        };
    for interface in engine.interfaces() {
        let vni = interface.spec.vni.get();
        if let Ok(vip) = engine.vip(&interface.spec.id) {
            let none = (String::new(), String::new());
            push(vni, vip.address, interface.spec.ipv4, none, vip.underlay);
        }
        if let Ok(nat) = engine.nat(&interface.spec.id) {
            let ports = (nat.ports.first().to_string(), nat.ports.end().to_string());
            push(vni, nat.address, None, ports, nat.underlay);
        }
    }
    let every = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    for nat in engine.neighbor_nats(every).unwrap_or_default() {
        let ports = (nat.ports.first().to_string(), nat.ports.end().to_string());
        push(nat.vni.get(), nat.address, None, ports, nat.underlay);
    }
}

fn routes(plane: &Plane, rows: &mut Rows) {
    for route in plane.engine.routes(None).unwrap_or_default() {
        let vni = route.vni.get();
        let keys = Keys::default().vni(vni).prefix(route.prefix);
        let keys = keys.address(route.next_hop);
        let cells = vec![
            vni.to_string(),
            route.prefix.to_string(),
            route.next_hop.to_string(),
            route.next_hop_vni.to_string(),
        ];
        rows.push(&keys, cells);
    }
}

fn interfaces(plane: &Plane, devices: &[String], rows: &mut Rows) {
    for interface in plane.engine.interfaces() {
        let spec = &interface.spec;
        let mut keys = Keys::default().interface(&spec.id).vni(spec.vni.get());
        keys = keys.address(interface.underlay);
        for address in spec
            .ipv4
            .map(IpAddr::V4)
            .into_iter()
            .chain(spec.ipv6.map(IpAddr::V6))
        {
            keys = keys.address(address);
        }
        let cells = vec![
            spec.id.clone(),
            interface.port.0.to_string(),
            devices
                .get(interface.port.index())
                .cloned()
                .unwrap_or_default(),
            spec.vni.to_string(),
            optional(spec.ipv4),
            optional(spec.ipv6),
            interface.underlay.to_string(),
            optional(plane.engine.machine_mac(interface.port)),
        ];
        rows.push(&keys, cells);
    }
}

fn underlay(plane: &Plane, rows: &mut Rows) {
    for row in plane.engine.endpoints() {
        let owner = interface_id(plane, row.port);
        let mut keys = Keys::default().interface(&owner).vni(row.vni.get());
        keys = keys.address(row.underlay);
        if let Some(prefix) = row.prefix {
            keys = keys.prefix(prefix);
        }
        let cells = vec![
            row.underlay.to_string(),
            kind_name(row.kind).to_owned(),
            row.vni.to_string(),
            row.port.0.to_string(),
            owner,
            optional(row.prefix),
        ];
        rows.push(&keys, cells);
    }
}

fn load_balancers(plane: &Plane, rows: &mut Rows) {
    for balancer in plane.engine.load_balancers() {
        let targets = plane.engine.load_balancer_targets(&balancer.id);
        let targets = targets.unwrap_or_default();
        let mut keys = Keys::default()
            .vni(balancer.vni.get())
            .address(balancer.address);
        for target in &targets {
            keys = keys.address(*target);
        }
        for port in &balancer.ports {
            keys = keys.port(port.port);
        }
        let ports = balancer.ports.iter();
        let ports = ports.map(|port| format!("{}/{}", protocol_name(port.protocol), port.port));
        let cells = vec![
            balancer.id.clone(),
            balancer.vni.to_string(),
            balancer.address.to_string(),
            ports.collect::<Vec<_>>().join(","),
            optional(balancer.preferred_underlay),
            targets
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(","),
        ];
        rows.push(&keys, cells);
    }
}

fn firewall(plane: &Plane, rows: &mut Rows) {
    let engine = &plane.engine;
    for interface in engine.interfaces() {
        let id = &interface.spec.id;
        let hits: BTreeMap<String, u64> = engine
            .firewall_hits(id)
            .unwrap_or_default()
            .into_iter()
            .collect();
        for rule in engine.firewall_rules(id).into_iter().flatten() {
            let (source, destination) = (rule.source.prefix(), rule.destination.prefix());
            let keys = Keys::default().interface(id).vni(interface.spec.vni.get());
            let keys = keys.prefix(source).prefix(destination);
            let transport = match rule.filter {
                RuleFilter::Any => "any",
                RuleFilter::Tcp { .. } => "tcp",
                RuleFilter::Udp { .. } => "udp",
                RuleFilter::Icmp { .. } => "icmp",
            };
            let cells = vec![
                id.clone(),
                rule.id.clone(),
                match rule.direction {
                    RuleDirection::Ingress => "ingress",
                    RuleDirection::Egress => "egress",
                }
                .to_owned(),
                match rule.action {
                    dataplane::FirewallAction::Drop => "drop",
                    dataplane::FirewallAction::Accept => "accept",
                }
                .to_owned(),
                rule.priority.to_string(),
                source.to_string(),
                destination.to_string(),
                transport.to_owned(),
                hits.get(&rule.id).copied().unwrap_or(0).to_string(),
            ];
            rows.push(&keys, cells);
        }
    }
}

fn vnis(plane: &Plane, rows: &mut Rows) {
    let engine = &plane.engine;
    let interfaces: Vec<_> = engine.interfaces().map(|one| one.spec.vni).collect();
    let balanced = engine.load_balancers().map(|balancer| balancer.vni);
    let all: BTreeSet<_> = interfaces.iter().copied().chain(balanced).collect();
    for vni in all {
        debug_assert_eq!(engine.vni_in_use(vni, VniType::Ipv4), Ok(true));
        let attached = interfaces.iter().filter(|other| **other == vni).count();
        let routes = engine.routes(Some(vni)).map_or(0, |routes| routes.len());
        let cells = vec![vni.to_string(), attached.to_string(), routes.to_string()];
        rows.push(&Keys::default().vni(vni.get()), cells);
    }
}
