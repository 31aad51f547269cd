//! Objects of the services as trees and table rows.

use super::commands::{bare, prefix_text, text};
use super::output::{Object, Tree};
use proto::dpdk;
use proto::dpdk::captured_interface::Spec;
use proto::dpdk::protocol_filter::Filter;

type Fields = Vec<(&'static str, Tree)>;
type Cells = Vec<(&'static str, String)>;

fn address_text(address: Option<&dpdk::IpAddress>) -> String {
    address
        .map(|address| text(&address.address))
        .unwrap_or_default()
}

/// A field that is left out while it is empty.
fn push_text(fields: &mut Fields, key: &'static str, value: &str) {
    if !value.is_empty() {
        fields.push((key, Tree::text(value)));
    }
}

fn object(
    kind: &'static str,
    name: String,
    metadata: Fields,
    spec: Fields,
    cells: Cells,
) -> Object {
    Object {
        spec,
        ..bare(kind, name, metadata, cells)
    }
}

pub(super) fn lb_prefix(mut prefix: Object) -> Object {
    prefix.kind = "LoadBalancerPrefix";
    prefix
}

pub(super) fn virtual_ip(interface_id: &str, vip: &str, underlay: &[u8]) -> Object {
    let underlay = text(underlay);
    let mut spec = Vec::new();
    push_text(&mut spec, "vip_ip", vip);
    push_text(&mut spec, "underlay_route", &underlay);
    object(
        "VirtualIP",
        format!("on interface: {interface_id}"),
        vec![("interface_id", Tree::text(interface_id))],
        spec,
        vec![
            ("InterfaceID", interface_id.to_owned()),
            ("VirtualIP", vip.to_owned()),
            ("UnderlayRoute", underlay),
        ],
    )
}

pub(super) fn load_balancer(balancer: &dpdk::Loadbalancer) -> Object {
    let id = text(&balancer.id);
    let address = address_text(balancer.ip.as_ref());
    let underlay = text(&balancer.underlay_route);
    let ports: Vec<String> = balancer
        .ports
        .iter()
        .map(|port| format!("{}/{}", port.protocol().as_str_name(), port.port))
        .collect();
    let port_trees = balancer.ports.iter().map(|port| {
        Tree::Map(vec![
            ("protocol", Tree::number(port.protocol.unsigned_abs())),
            ("port", Tree::number(port.port)),
        ])
    });
    let mut spec = vec![("vni", Tree::number(balancer.vni))];
    push_text(&mut spec, "loadbalanced_ip", &address);
    if !ports.is_empty() {
        spec.push(("loadbalanced_ports", Tree::List(port_trees.collect())));
    }
    push_text(&mut spec, "underlay_route", &underlay);
    object(
        "LoadBalancer",
        id.clone(),
        vec![("id", Tree::text(&id))],
        spec,
        vec![
            ("ID", id),
            ("VNI", balancer.vni.to_string()),
            ("LbVipIP", address),
            ("Lbports", ports.join(",")),
            ("UnderlayRoute", underlay),
        ],
    )
}

pub(super) fn lb_target(balancer: &str, target: &str) -> Object {
    let version = if target.contains(':') { "IPV6" } else { "IPV4" };
    object(
        "LoadBalancerTarget",
        format!("on loadbalancer: {balancer}"),
        vec![("loadbalancer_id", Tree::text(balancer))],
        vec![("target_ip", Tree::text(target))],
        vec![
            ("IpVersion", version.to_owned()),
            ("Address", target.to_owned()),
        ],
    )
}

fn nat_spec(nat_ip: &str, (min, max): (u32, u32), underlay: &str, vni: u32) -> Fields {
    let mut spec = Vec::new();
    push_text(&mut spec, "nat_ip", nat_ip);
    spec.push(("min_port", Tree::number(min)));
    spec.push(("max_port", Tree::number(max)));
    push_text(&mut spec, "underlay_route", underlay);
    spec.push(("vni", Tree::number(vni)));
    spec
}

/// The NAT of one interface.
pub(super) fn nat(interface_id: &str, nat_ip: &str, ports: (u32, u32), underlay: &[u8]) -> Object {
    let underlay = text(underlay);
    object(
        "Nat",
        interface_id.to_owned(),
        vec![("interface_id", Tree::text(interface_id))],
        nat_spec(nat_ip, ports, &underlay, 0),
        vec![
            ("InterfaceID", interface_id.to_owned()),
            ("NatIP", nat_ip.to_owned()),
            ("MinPort", ports.0.to_string()),
            ("MaxPort", ports.1.to_string()),
            ("UnderlayRoute", underlay),
        ],
    )
}

/// An entry of a list, which belongs to an interface of this host unless it has an underlay address.
pub(super) fn nat_entry(entry: &dpdk::NatEntry) -> Object {
    let machine = address_text(entry.nat_ip.as_ref());
    let nat_ip = address_text(entry.actual_nat_ip.as_ref());
    let underlay = text(&entry.underlay_route);
    let kind = if underlay.is_empty() {
        "Local"
    } else {
        "Neighbor"
    };
    let ports = (entry.min_port, entry.max_port);
    let mut spec = nat_spec(&machine, ports, &underlay, entry.vni);
    push_text(&mut spec, "actual_nat_ip", &nat_ip);
    object(
        "Nat",
        nat_ip.clone(),
        Vec::new(),
        spec,
        vec![
            ("VNI", entry.vni.to_string()),
            ("IP", machine),
            ("MinPort", ports.0.to_string()),
            ("MaxPort", ports.1.to_string()),
            ("UnderlayRoute", underlay),
            ("NatIP", nat_ip),
            ("NatType", kind.to_owned()),
        ],
    )
}

pub(super) fn neighbor_nat(vni: u32, nat_ip: &str, ports: (u32, u32), underlay: &str) -> Object {
    let mut spec = vec![
        ("vni", Tree::number(vni)),
        ("min_port", Tree::number(ports.0)),
        ("max_port", Tree::number(ports.1)),
    ];
    push_text(&mut spec, "underlay_route", underlay);
    object(
        "NeighborNat",
        nat_ip.to_owned(),
        vec![("nat_ip", Tree::text(nat_ip))],
        spec,
        vec![
            ("VNI", vni.to_string()),
            ("NatIP", nat_ip.to_owned()),
            ("MinPort", ports.0.to_string()),
            ("MaxPort", ports.1.to_string()),
            ("UnderlayRoute", underlay.to_owned()),
        ],
    )
}

pub(super) fn firewall_rule(interface_id: &str, rule: &dpdk::FirewallRule) -> Object {
    let id = text(&rule.id);
    let prefix = |prefix: Option<&dpdk::Prefix>| prefix.map(prefix_text).unwrap_or_default();
    let source = prefix(rule.source_prefix.as_ref());
    let destination = prefix(rule.destination_prefix.as_ref());
    let direction = match rule.direction() {
        dpdk::TrafficDirection::Ingress => "Ingress",
        dpdk::TrafficDirection::Egress => "Egress",
    };
    let action = match rule.action() {
        dpdk::FirewallAction::Accept => "Accept",
        dpdk::FirewallAction::Drop => "Drop",
    };
    let filter = rule.protocol_filter.unwrap_or_default().filter;
    let (tree, protocol) = show_filter(filter);
    object(
        "FirewallRule",
        format!("{interface_id}/{id}"),
        vec![("interface_id", Tree::text(interface_id))],
        vec![
            ("id", Tree::text(&id)),
            ("direction", Tree::text(direction)),
            ("action", Tree::text(action)),
            ("priority", Tree::number(rule.priority)),
            ("source_prefix", Tree::text(&source)),
            ("destination_prefix", Tree::text(&destination)),
            ("protocol_filter", Tree::Map(vec![("Filter", tree)])),
        ],
        vec![
            ("InterfaceID", interface_id.to_owned()),
            ("RuleID", id),
            ("Direction", direction.to_owned()),
            ("Src", source),
            ("Dst", destination),
            ("Action", action.to_owned()),
            ("Protocol", protocol),
            ("Priority", rule.priority.to_string()),
        ],
    )
}

/// The filter as a tree, where zeroes are left out, and in one cell.
fn show_filter(filter: Option<Filter>) -> (Tree, String) {
    let ports = |values: [i32; 4]| {
        let keys = [
            "src_port_lower",
            "src_port_upper",
            "dst_port_lower",
            "dst_port_upper",
        ];
        let fields: Vec<(&'static str, i32)> = keys.into_iter().zip(values).collect();
        numbers(&fields)
    };
    let (name, fields) = match filter {
        None => return (Tree::Null, "Any".to_owned()),
        Some(Filter::Tcp(tcp)) => (
            "Tcp",
            ports([
                tcp.src_port_lower,
                tcp.src_port_upper,
                tcp.dst_port_lower,
                tcp.dst_port_upper,
            ]),
        ),
        Some(Filter::Udp(udp)) => (
            "Udp",
            ports([
                udp.src_port_lower,
                udp.src_port_upper,
                udp.dst_port_lower,
                udp.dst_port_upper,
            ]),
        ),
        Some(Filter::Icmp(icmp)) => (
            "Icmp",
            numbers(&[("icmp_type", icmp.icmp_type), ("icmp_code", icmp.icmp_code)]),
        ),
    };
    let cell = fields
        .iter()
        .map(|(key, value)| match value {
            Tree::Signed(value) => format!("{key}:{value}"),
            _ => (*key).to_owned(),
        })
        .collect::<Vec<_>>()
        .join(" ");
    let shown = format!("{}:{{{cell}}}", name.to_ascii_lowercase());
    (Tree::Map(vec![(name, Tree::Map(fields))]), shown)
}

fn numbers(fields: &[(&'static str, i32)]) -> Fields {
    fields
        .iter()
        .filter(|(_, value)| *value != 0)
        .map(|(key, value)| (*key, Tree::Signed(i64::from(*value))))
        .collect()
}

fn capture_config(config: &dpdk::CaptureConfig) -> Fields {
    let mut fields = Vec::new();
    push_text(
        &mut fields,
        "sink_node_ipv6",
        &address_text(config.sink_node_ip.as_ref()),
    );
    for (key, port) in [
        ("udp_src_port", config.udp_src_port),
        ("udp_dst_port", config.udp_dst_port),
    ] {
        if port != 0 {
            fields.push((key, Tree::number(port)));
        }
    }
    fields
}

/// Captured ports: kind and name.
fn captured(config: &dpdk::CaptureConfig) -> Vec<(&'static str, String)> {
    let named = config.interfaces.iter().map(|interface| {
        let name = match &interface.spec {
            Some(Spec::VfName(name)) => text(name),
            Some(Spec::PfIndex(number)) => number.to_string(),
            None => "0".to_owned(),
        };
        match interface.interface_type() {
            dpdk::CaptureInterfaceType::SinglePf => ("pf", name),
            dpdk::CaptureInterfaceType::SingleVf => ("vf", name),
        }
    });
    named.collect()
}

fn capture_interfaces(config: &dpdk::CaptureConfig) -> Tree {
    let shown = captured(config).into_iter().map(|(kind, name)| {
        Tree::Map(vec![
            ("interface_type", Tree::text(kind)),
            ("interface_info", Tree::text(name)),
        ])
    });
    Tree::List(shown.collect())
}

fn capture_cells(config: &dpdk::CaptureConfig) -> Cells {
    let of = |wanted| {
        let found = captured(config).into_iter();
        let names: Vec<String> = found
            .filter(|(kind, _)| *kind == wanted)
            .map(|(_, name)| name)
            .collect();
        names.join(",")
    };
    vec![
        ("SinkNodeIP", address_text(config.sink_node_ip.as_ref())),
        ("UdpSrcPort", config.udp_src_port.to_string()),
        ("UdpDstPort", config.udp_dst_port.to_string()),
        ("PF Interfaces", of("pf")),
        ("VF Interfaces", of("vf")),
    ]
}

pub(super) fn capture_start(config: &dpdk::CaptureConfig) -> Object {
    object(
        "CaptureStart",
        address_text(config.sink_node_ip.as_ref()),
        vec![("capture_config", Tree::Map(capture_config(config)))],
        vec![("interfaces", capture_interfaces(config))],
        capture_cells(config),
    )
}

pub(super) fn capture_stop(count: u32) -> Object {
    object(
        "CaptureStop",
        "capture stopped".to_owned(),
        Vec::new(),
        vec![("iface_cnt", Tree::number(count))],
        vec![("Stopped Interface", count.to_string())],
    )
}

pub(super) fn capture_status(active: bool, config: &dpdk::CaptureConfig) -> Object {
    let operation = if active { "ACTIVE" } else { "NOT_ACTIVE" };
    let mut spec = vec![
        ("operation_status", Tree::Bool(active)),
        ("capture_config", Tree::Map(capture_config(config))),
    ];
    if !config.interfaces.is_empty() {
        spec.push(("interfaces", capture_interfaces(config)));
    }
    let mut cells = vec![("Operation Status", operation.to_owned())];
    cells.extend(capture_cells(config));
    object(
        "CaptureStatus",
        "get capture status".to_owned(),
        Vec::new(),
        spec,
        cells,
    )
}
