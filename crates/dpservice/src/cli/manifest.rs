//! Objects in files: the form that `-o json` and `-o yaml` print.

use super::args::{
    Create, CreateFirewallRule, CreateInterface, CreateLoadBalancer, CreateNat, CreateNeighborNat,
    CreatePrefix, CreateRoute, CreateVirtualIp, Delete, LbTarget, NeighborNatKey, Prefix,
};
use super::commands::route_name;
use super::{CliError, values};
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Objects in one call at most.
const OBJECTS_MAX: usize = 10_000;

#[derive(Deserialize)]
#[serde(tag = "kind")]
enum Manifest {
    Interface {
        metadata: InterfaceMeta,
        spec: InterfaceSpec,
    },
    Prefix {
        metadata: PrefixMeta,
        spec: PrefixSpec,
    },
    Route {
        metadata: RouteMeta,
        spec: RouteSpec,
    },
    LoadBalancerPrefix {
        metadata: PrefixMeta,
        spec: PrefixSpec,
    },
    VirtualIP {
        metadata: PrefixMeta,
        spec: VirtualIpSpec,
    },
    LoadBalancer {
        metadata: InterfaceMeta,
        spec: LoadBalancerSpec,
    },
    LoadBalancerTarget {
        metadata: TargetMeta,
        spec: TargetSpec,
    },
    Nat {
        metadata: PrefixMeta,
        spec: NatSpec,
    },
    NeighborNat {
        metadata: NeighborMeta,
        spec: NatSpec,
    },
    FirewallRule {
        metadata: PrefixMeta,
        spec: RuleSpec,
    },
}

#[derive(Deserialize)]
struct VirtualIpSpec {
    vip_ip: IpAddr,
    underlay_route: Option<Ipv6Addr>,
}

#[derive(Deserialize)]
struct LoadBalancerSpec {
    vni: u32,
    loadbalanced_ip: IpAddr,
    #[serde(default)]
    loadbalanced_ports: Vec<PortSpec>,
    underlay_route: Option<Ipv6Addr>,
}

#[derive(Deserialize)]
struct PortSpec {
    protocol: u32,
    port: u16,
}

#[derive(Deserialize)]
struct TargetMeta {
    loadbalancer_id: String,
}

#[derive(Deserialize)]
struct TargetSpec {
    target_ip: IpAddr,
}

#[derive(Deserialize)]
struct NeighborMeta {
    nat_ip: IpAddr,
}

#[derive(Deserialize)]
struct NatSpec {
    nat_ip: Option<IpAddr>,
    min_port: u32,
    max_port: u32,
    #[serde(default)]
    vni: u32,
    underlay_route: Option<Ipv6Addr>,
}

#[derive(Deserialize)]
struct RuleSpec {
    id: String,
    direction: String,
    action: String,
    #[serde(default)]
    priority: u32,
    source_prefix: String,
    destination_prefix: String,
    #[serde(default)]
    protocol_filter: FilterSpec,
}

#[derive(Default, Deserialize)]
struct FilterSpec {
    #[serde(rename = "Filter")]
    filter: Option<TransportSpec>,
}

/// As printed: the transport's name and its numbers, where a missing one is 0.
#[derive(Deserialize)]
enum TransportSpec {
    Tcp(PortsSpec),
    Udp(PortsSpec),
    Icmp(IcmpSpec),
}

#[derive(Deserialize)]
struct PortsSpec {
    #[serde(default)]
    src_port_lower: i32,
    #[serde(default)]
    src_port_upper: i32,
    #[serde(default)]
    dst_port_lower: i32,
    #[serde(default)]
    dst_port_upper: i32,
}

#[derive(Deserialize)]
struct IcmpSpec {
    #[serde(default)]
    icmp_type: i32,
    #[serde(default)]
    icmp_code: i32,
}

#[derive(Deserialize)]
struct InterfaceMeta {
    id: String,
}

#[derive(Deserialize)]
struct PrefixMeta {
    interface_id: String,
}

#[derive(Deserialize)]
struct RouteMeta {
    vni: u32,
}

#[derive(Deserialize)]
struct InterfaceSpec {
    vni: u32,
    device: String,
    primary_ipv4: Option<Ipv4Addr>,
    primary_ipv6: Option<Ipv6Addr>,
    underlay_route: Option<Ipv6Addr>,
    #[serde(default)]
    pxe: PxeSpec,
    #[serde(default)]
    metering: MeteringSpec,
    #[serde(default)]
    hostname: String,
}

#[derive(Default, Deserialize)]
struct PxeSpec {
    #[serde(default)]
    next_server: String,
    #[serde(default)]
    boot_filename: String,
}

#[derive(Default, Deserialize)]
struct MeteringSpec {
    #[serde(default)]
    total_rate: u64,
    #[serde(default)]
    public_rate: u64,
}

#[derive(Deserialize)]
struct PrefixSpec {
    prefix: String,
    underlay_route: Option<Ipv6Addr>,
}

#[derive(Deserialize)]
struct RouteSpec {
    prefix: String,
    next_hop: Option<NextHop>,
}

#[derive(Deserialize)]
struct NextHop {
    vni: u32,
    address: IpAddr,
}

impl Create {
    /// Kind and name.
    pub(super) fn identity(&self) -> (&'static str, String) {
        match self {
            Create::Interface(args) => ("Interface", args.id.clone()),
            Create::Prefix(args) => ("Prefix", args.prefix.to_string()),
            Create::Route(args) => ("Route", route_name(&args.prefix, args.next_hop_vni)),
            Create::LbPrefix(args) => ("LoadBalancerPrefix", args.prefix.to_string()),
            Create::VirtualIp(args) => {
                ("VirtualIP", format!("on interface: {}", args.interface_id))
            }
            Create::LoadBalancer(args) => ("LoadBalancer", args.id.clone()),
            Create::LbTarget(args) => (
                "LoadBalancerTarget",
                format!("on loadbalancer: {}", args.lb_id),
            ),
            Create::Nat(args) => ("Nat", args.interface_id.clone()),
            Create::NeighborNat(args) => ("NeighborNat", args.key.nat_ip.to_string()),
            Create::FirewallRule(args) => (
                "FirewallRule",
                format!("{}/{}", args.interface_id, args.rule_id),
            ),
        }
    }

    pub(super) fn into_delete(self) -> Delete {
        match self {
            Create::Interface(args) => Delete::Interface { id: args.id },
            Create::Prefix(args) => Delete::Prefix {
                prefix: args.prefix,
                interface_id: args.interface_id,
            },
            Create::Route(args) => Delete::Route {
                prefix: args.prefix,
                vni: args.vni,
            },
            Create::LbPrefix(args) => Delete::LbPrefix {
                prefix: args.prefix,
                interface_id: args.interface_id,
            },
            Create::VirtualIp(args) => Delete::VirtualIp {
                interface_id: args.interface_id,
            },
            Create::LoadBalancer(args) => Delete::LoadBalancer { id: args.id },
            Create::LbTarget(args) => Delete::LbTarget(args),
            Create::Nat(args) => Delete::Nat {
                interface_id: args.interface_id,
            },
            Create::NeighborNat(args) => Delete::NeighborNat(args.key),
            Create::FirewallRule(args) => Delete::FirewallRule {
                interface_id: args.interface_id,
                rule_id: args.rule_id,
            },
        }
    }
}

impl Delete {
    /// Kind and name.
    pub(super) fn identity(&self) -> (&'static str, String) {
        match self {
            Delete::Interface { id } => ("Interface", id.clone()),
            Delete::Prefix { prefix, .. } => ("Prefix", prefix.to_string()),
            Delete::Route { prefix, .. } => ("Route", route_name(prefix, 0)),
            Delete::LbPrefix { prefix, .. } => ("LoadBalancerPrefix", prefix.to_string()),
            Delete::VirtualIp { interface_id } => {
                ("VirtualIP", format!("on interface: {interface_id}"))
            }
            Delete::LoadBalancer { id } => ("LoadBalancer", id.clone()),
            Delete::LbTarget(args) => (
                "LoadBalancerTarget",
                format!("on loadbalancer: {}", args.lb_id),
            ),
            Delete::Nat { interface_id } => ("Nat", interface_id.clone()),
            Delete::NeighborNat(key) => ("NeighborNat", key.nat_ip.to_string()),
            Delete::FirewallRule {
                interface_id,
                rule_id,
            } => ("FirewallRule", format!("{interface_id}/{rule_id}")),
        }
    }
}

/// Reads all objects of files and of the files in directories, in order.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<Create>, CliError> {
    let mut objects = Vec::new();
    for path in paths {
        for file in files(path)? {
            let text = std::fs::read_to_string(&file).map_err(|error| at(&file, &error))?;
            for document in documents(&text) {
                let manifest: Manifest =
                    serde_saphyr::from_str(document).map_err(|error| at(&file, &error))?;
                objects.push(convert(manifest).map_err(|error| at(&file, &error))?);
                if objects.len() > OBJECTS_MAX {
                    return Err(CliError::client(format!("more than {OBJECTS_MAX} objects")));
                }
            }
        }
    }
    Ok(objects)
}

fn at(path: &Path, error: &dyn std::fmt::Display) -> CliError {
    CliError::client(format!("{}: {error}", path.display()))
}

fn files(path: &Path) -> Result<Vec<PathBuf>, CliError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|error| at(path, &error))?;
    let mut found = Vec::new();
    for entry in entries {
        let file = entry.map_err(|error| at(path, &error))?.path();
        let extension = file.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("json" | "yaml" | "yml")) {
            found.push(file);
        }
    }
    found.sort();
    Ok(found)
}

/// YAML documents of a text; JSON is one of them.
fn documents(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n---")
        .map(|document| document.trim_start_matches("---"))
        .filter(|document| {
            document
                .lines()
                .any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        })
}

fn convert(manifest: Manifest) -> Result<Create, String> {
    let prefix = |text: String| {
        text.parse::<Prefix>()
            .map_err(|error| format!("{text}: {error}"))
    };
    Ok(match manifest {
        Manifest::Interface { metadata, spec } => Create::Interface(CreateInterface {
            id: metadata.id,
            vni: spec.vni,
            ipv4: spec.primary_ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            ipv6: spec.primary_ipv6.unwrap_or(Ipv6Addr::UNSPECIFIED),
            device: spec.device,
            underlay: spec.underlay_route,
            pxe_server: spec.pxe.next_server,
            pxe_file_name: spec.pxe.boot_filename,
            total_meter_rate: spec.metering.total_rate,
            public_meter_rate: spec.metering.public_rate,
            hostname: spec.hostname,
        }),
        Manifest::Prefix { metadata, spec } => Create::Prefix(CreatePrefix {
            prefix: prefix(spec.prefix)?,
            interface_id: metadata.interface_id,
            underlay: spec.underlay_route,
        }),
        Manifest::Route { metadata, spec } => {
            let hop = spec.next_hop.ok_or("spec.next_hop is missing")?;
            Create::Route(CreateRoute {
                prefix: prefix(spec.prefix)?,
                next_hop_vni: hop.vni,
                next_hop_ip: hop.address,
                vni: metadata.vni,
            })
        }
        Manifest::LoadBalancerPrefix { metadata, spec } => Create::LbPrefix(CreatePrefix {
            prefix: prefix(spec.prefix)?,
            interface_id: metadata.interface_id,
            underlay: spec.underlay_route,
        }),
        Manifest::VirtualIP { metadata, spec } => Create::VirtualIp(CreateVirtualIp {
            vip: spec.vip_ip,
            interface_id: metadata.interface_id,
            underlay: spec.underlay_route,
        }),
        Manifest::LoadBalancer { metadata, spec } => Create::LoadBalancer(CreateLoadBalancer {
            id: metadata.id,
            vni: spec.vni,
            vip: spec.loadbalanced_ip,
            lbports: spec
                .loadbalanced_ports
                .into_iter()
                .map(|port| format!("{}/{}", port.protocol, port.port).parse())
                .collect::<Result<_, _>>()?,
            underlay: spec.underlay_route,
        }),
        Manifest::LoadBalancerTarget { metadata, spec } => Create::LbTarget(LbTarget {
            target_ip: spec.target_ip,
            lb_id: metadata.loadbalancer_id,
        }),
        Manifest::Nat { metadata, spec } => Create::Nat(CreateNat {
            interface_id: metadata.interface_id,
            nat_ip: spec.nat_ip.ok_or("spec.nat_ip is missing")?,
            minport: spec.min_port,
            maxport: spec.max_port,
            underlay: spec.underlay_route,
        }),
        Manifest::NeighborNat { metadata, spec } => Create::NeighborNat(CreateNeighborNat {
            key: NeighborNatKey {
                nat_ip: metadata.nat_ip,
                vni: spec.vni,
                minport: spec.min_port,
                maxport: spec.max_port,
            },
            underlayroute: spec
                .underlay_route
                .ok_or("spec.underlay_route is missing")?,
        }),
        Manifest::FirewallRule { metadata, spec } => {
            Create::FirewallRule(convert_rule(metadata.interface_id, spec)?)
        }
    })
}

fn convert_rule(interface_id: String, spec: RuleSpec) -> Result<CreateFirewallRule, String> {
    const ANY: i32 = -1;
    let mut rule = CreateFirewallRule {
        interface_id,
        rule_id: spec.id,
        direction: values::direction(&spec.direction)?,
        action: values::action(&spec.action)?,
        src: spec.source_prefix.parse()?,
        dst: spec.destination_prefix.parse()?,
        priority: spec.priority,
        protocol: None,
        src_port_min: ANY,
        src_port_max: ANY,
        dst_port_min: ANY,
        dst_port_max: ANY,
        icmp_type: ANY,
        icmp_code: ANY,
    };
    let mut set_ports = |transport, ports: PortsSpec| {
        rule.protocol = Some(transport);
        rule.src_port_min = ports.src_port_lower;
        rule.src_port_max = ports.src_port_upper;
        rule.dst_port_min = ports.dst_port_lower;
        rule.dst_port_max = ports.dst_port_upper;
    };
    match spec.protocol_filter.filter {
        None => {}
        Some(TransportSpec::Tcp(ports)) => set_ports(values::Transport::Tcp, ports),
        Some(TransportSpec::Udp(ports)) => set_ports(values::Transport::Udp, ports),
        Some(TransportSpec::Icmp(icmp)) => {
            rule.protocol = Some(values::Transport::Icmp);
            (rule.icmp_type, rule.icmp_code) = (icmp.icmp_type, icmp.icmp_code);
        }
    }
    Ok(rule)
}
