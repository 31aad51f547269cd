//! A hypervisor's data plane: the real packet engine behind the calls that metalnet makes. What dpservice and its client do between
//! the two (encoding, threads) is left out; codes and effects are the same.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::{
    ConfigError, Engine, EngineConfig, FirewallAction, FirewallRule, Instant, InterfaceSpec,
    LbPort, LoadBalancerSpec, Metering, PacketBuf, PortConfig, PortId, PortKind, PortMatch,
    RuleDirection, RuleFilter, RulePrefix, UnderlaySeed, Verdict, Worker,
};
use metalnet::model::Uid;
use metalnet::plan::observed::{Balancer, Hop, Installed, Interface, Neighbor, Observed, Services};
use metalnet::plan::ops::{
    BalancerRequest, DpDone, DpError, DpOp, InterfaceRequest, Part, RULE_CHANGING, code,
};
use metalnet::services::{
    Action, BalancedPort, Direction, Matching, NatShare, Ports, Rule, Transport,
};
use net::{Mac, PortRange, Prefix, Vni};

/// Machine devices of a hypervisor.
pub const DEVICES: u32 = 12;
const UPLINKS: u16 = 2;

/// One life of a data plane.
pub struct Plane {
    pub uuid: String,
    pub engine: Engine,
    worker: Worker,
}

fn refused(error: ConfigError) -> DpError {
    DpError::Code {
        code: error.code(),
        message: error.name().to_owned(),
    }
}

fn done(result: Result<(), ConfigError>) -> Result<DpDone, DpError> {
    result.map(|()| DpDone::Done).map_err(refused)
}

fn underlay(result: Result<Ipv6Addr, ConfigError>) -> Result<DpDone, DpError> {
    result.map(DpDone::Underlay).map_err(refused)
}

/// Deleting what is not there is no failure of a replacement.
fn absent_is_fine(result: Result<(), ConfigError>) -> Result<(), DpError> {
    match result {
        Err(error) if ![code::NOT_FOUND, code::ROUTE_NOT_FOUND].contains(&error.code()) => {
            Err(refused(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Plane {
    /// Life number `life` of the data plane of a host.
    pub fn new(host: Ipv6Addr, seed: u64, life: u64) -> Plane {
        let port = |index: u16| {
            let kind = match index {
                0 | 1 => PortKind::Uplink(index as u8),
                _ => PortKind::Machine,
            };
            PortConfig {
                name: format!("net_tap{index}"),
                kind,
                mac: Mac([0x02, 0, 0, 0, 0, index as u8]),
            }
        };
        let ports = (0..UPLINKS + DEVICES as u16).map(port).collect();
        let mut config = EngineConfig::new(host, ports);
        config.ipv6_overlay = true;
        config.underlay_seed =
            UnderlaySeed::Random(seed ^ life.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        config.hash_seed = seed;
        config.limits.flows_max = 512;
        config.limits.adjacencies_max = 256;
        config.limits.nat_max = 512;
        let mut engine = Engine::new(config);
        for uplink in 0..UPLINKS {
            engine.set_next_hop(PortId(uplink), Some(Mac::ZERO));
        }
        let worker = engine.worker();
        let [a, b] = [(seed >> 16) as u32, life as u32];
        Plane {
            uuid: format!("{a:08X}-0000-4000-8000-{b:012X}"),
            engine,
            worker,
        }
    }

    /// Who answers, as a new connection learns it.
    pub fn instance(&self) -> Option<String> {
        self.engine.is_initialized().then(|| self.uuid.clone())
    }

    /// The device of an interface.
    pub fn port_of(&self, uid: &str) -> Option<PortId> {
        self.engine.interface(uid).ok().map(|found| found.port)
    }

    pub fn process(&mut self, port: PortId, packet: &mut PacketBuf, now: Instant) -> Verdict {
        self.engine.process(&mut self.worker, port, packet, now)
    }

    /// Carries out a call.
    pub fn call(&mut self, op: &DpOp) -> Result<DpDone, DpError> {
        if !self.engine.is_initialized() && !matches!(op, DpOp::Initialize) {
            return Err(DpError::Uninitialized);
        }
        let engine = &mut self.engine;
        match op {
            DpOp::Initialize => {
                engine.initialize();
                Ok(DpDone::Instance(self.uuid.clone()))
            }
            DpOp::List => Ok(DpDone::Inventory(Box::new(self.inventory()))),
            DpOp::CreateInterface { uid, request } => create_interface(engine, uid, request),
            DpOp::DeleteInterface { uid } => done(engine.delete_interface(uid.as_str())),
            DpOp::CreatePrefix { uid, prefix } => {
                underlay(engine.create_prefix(uid.as_str(), prefix.address(), prefix.len(), None))
            }
            DpOp::DeletePrefix { uid, prefix } => {
                done(engine.delete_prefix(uid.as_str(), prefix.address(), prefix.len()))
            }
            DpOp::CreatePart { uid, part } => create_part(engine, uid.as_str(), part),
            DpOp::DeleteVip { uid } => done(engine.delete_vip(uid.as_str())),
            DpOp::DeleteNat { uid } => done(engine.delete_nat(uid.as_str())),
            DpOp::DeleteTargetPrefix { uid, prefix } => {
                done(engine.delete_lb_prefix(uid.as_str(), prefix.address(), prefix.len()))
            }
            DpOp::DeleteRule { uid, id } => done(engine.delete_firewall_rule(uid.as_str(), id)),
            DpOp::ReplaceRule { uid, id, rule } => replace_rule(engine, uid.as_str(), id, rule),
            DpOp::CreateBalancer { uid, request } => create_balancer(engine, uid, request),
            DpOp::DeleteBalancer { uid } => done(engine.delete_load_balancer(uid.as_str())),
            DpOp::CreateTarget { uid, target } => {
                done(engine.create_load_balancer_target(uid.as_str(), IpAddr::V6(*target)))
            }
            DpOp::DeleteTarget { uid, target } => {
                done(engine.delete_load_balancer_target(uid.as_str(), IpAddr::V6(*target)))
            }
            DpOp::CreateNeighbor { neighbor, underlay } => {
                done(create_neighbor(engine, *neighbor, *underlay))
            }
            DpOp::ReplaceNeighbor { neighbor, underlay } => {
                absent_is_fine(delete_neighbor(engine, *neighbor))?;
                done(create_neighbor(engine, *neighbor, *underlay))
            }
            DpOp::DeleteNeighbor { neighbor } => done(delete_neighbor(engine, *neighbor)),
            DpOp::CreateRoute { key, hop } => done(engine.create_route(
                key.vni,
                key.prefix.address(),
                key.prefix.len(),
                IpAddr::V6(hop.address),
                hop.vni.get(),
            )),
            DpOp::ReplaceRoute { key, hop } => done(engine.replace_route(
                key.vni,
                key.prefix.address(),
                key.prefix.len(),
                IpAddr::V6(hop.address),
                hop.vni.get(),
            )),
            DpOp::DeleteRoute { key } => {
                done(engine.delete_route(key.vni, key.prefix.address(), key.prefix.len()))
            }
        }
    }

    /// Everything the engine holds, as metalnet lists it.
    pub fn inventory(&self) -> Observed {
        let engine = &self.engine;
        let mut observed = Observed::default();
        for interface in engine.interfaces() {
            if let Some(uid) = Uid::new(&interface.spec.id) {
                observed.insert_interface(uid, self.observe(interface));
            }
        }
        for spec in engine.load_balancers() {
            let Some(uid) = Uid::new(&spec.id) else {
                continue;
            };
            let targets = engine.load_balancer_targets(&spec.id).unwrap_or_default();
            let balancer = Balancer {
                vni: spec.vni,
                address: spec.address,
                ports: spec.ports.iter().map(balanced_port).collect(),
                underlay: spec.preferred_underlay.unwrap_or(Ipv6Addr::UNSPECIFIED),
                targets: targets.into_iter().collect(),
            };
            observed.insert_balancer(uid, balancer);
        }
        let neighbors = engine.neighbor_nats(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        for shared in neighbors.unwrap_or_default() {
            let share = NatShare {
                address: shared.address,
                ports: shared.ports,
            };
            let neighbor = Neighbor {
                vni: shared.vni,
                share,
            };
            observed.set_neighbor(neighbor, Some(shared.underlay));
        }
        for route in engine.routes(None).unwrap_or_default() {
            if let Some(vni) = Vni::new(route.next_hop_vni) {
                let address = route.next_hop;
                let hop = Installed::Hop(Hop { vni, address });
                observed.set_route(route.vni, route.prefix, Some(hop));
            }
        }
        observed
    }

    fn observe(&self, interface: &dataplane::Interface) -> Interface {
        let InterfaceSpec {
            id,
            device,
            vni,
            ipv4,
            ipv6,
            pxe: _,
            metering,
            preferred_underlay: _,
            hostname,
        } = interface.spec.clone();
        let engine = &self.engine;
        let collect = |list: Result<&[(Prefix, Ipv6Addr)], ConfigError>| -> BTreeMap<_, _> {
            list.unwrap_or_default().iter().copied().collect()
        };
        let rules = engine.firewall_rules(&id).map(|rules| {
            let shown = rules.map(|rule| (rule.id.clone(), observe_rule(rule)));
            shown.collect::<BTreeMap<_, _>>()
        });
        let nat = engine.nat(&id).ok().map(|nat| {
            let share = NatShare {
                address: nat.address,
                ports: nat.ports,
            };
            (share, nat.underlay)
        });
        let vip = engine.vip(&id).ok();
        Interface {
            vni,
            ipv4,
            ipv6,
            device,
            total_rate: metering.total_rate,
            public_rate: metering.public_rate,
            hostname: hostname.unwrap_or_default(),
            underlay: interface.underlay,
            prefixes: collect(engine.prefixes(&id)),
            services: Services {
                vip: vip.map(|vip| (vip.address, vip.underlay)),
                nat,
                targets: collect(engine.lb_prefixes(&id)),
                rules: rules.unwrap_or_default(),
            },
        }
    }
}

/// An interface with its rules, or neither.
fn create_interface(
    engine: &mut Engine,
    uid: &Uid,
    request: &InterfaceRequest,
) -> Result<DpDone, DpError> {
    let created = engine.create_interface(interface_spec(uid, request));
    let underlay = created
        .map(|interface| interface.underlay)
        .map_err(refused)?;
    for (id, rule) in &request.rules {
        if let Err(error) = create_rule(engine, uid.as_str(), id, rule) {
            done(engine.delete_interface(uid.as_str()))?;
            return Err(error);
        }
    }
    Ok(match request.rules.is_empty() {
        true => DpDone::Underlay(underlay),
        false => DpDone::Guarded(underlay),
    })
}

fn interface_spec(uid: &Uid, request: &InterfaceRequest) -> InterfaceSpec {
    let InterfaceRequest {
        vni,
        device,
        ipv4,
        ipv6,
        total_rate,
        public_rate,
        hostname,
        rules: _,
    } = request.clone();
    InterfaceSpec {
        id: uid.as_str().to_owned(),
        device,
        vni,
        ipv4,
        ipv6,
        pxe: None,
        metering: Metering {
            total_rate,
            public_rate,
        },
        preferred_underlay: None,
        hostname: Some(hostname).filter(|hostname| !hostname.is_empty()),
    }
}

fn create_part(engine: &mut Engine, id: &str, part: &Part) -> Result<DpDone, DpError> {
    match part {
        Part::Vip(address) => underlay(engine.create_vip(id, IpAddr::V4(*address), None)),
        Part::Nat(NatShare { address, ports }) => {
            underlay(engine.create_nat(id, IpAddr::V4(*address), *ports, None))
        }
        Part::Target(prefix) => {
            underlay(engine.create_lb_prefix(id, prefix.address(), prefix.len(), None))
        }
        Part::Rule { id: rule_id, rule } => create_rule(engine, id, rule_id, rule),
    }
}

fn create_rule(
    engine: &mut Engine,
    id: &str,
    rule_id: &str,
    rule: &Rule,
) -> Result<DpDone, DpError> {
    let rule = firewall_rule(rule_id, rule)
        .ok_or_else(|| DpError::Argument("a prefix of a rule is none".to_owned()))?;
    done(engine.create_firewall_rule(id, rule))
}

fn replace_rule(
    engine: &mut Engine,
    id: &str,
    rule_id: &str,
    rule: &Rule,
) -> Result<DpDone, DpError> {
    absent_is_fine(engine.delete_firewall_rule(id, RULE_CHANGING))?;
    create_rule(engine, id, RULE_CHANGING, rule)?;
    absent_is_fine(engine.delete_firewall_rule(id, rule_id))?;
    create_rule(engine, id, rule_id, rule)?;
    absent_is_fine(engine.delete_firewall_rule(id, RULE_CHANGING))?;
    Ok(DpDone::Done)
}

fn create_balancer(
    engine: &mut Engine,
    uid: &Uid,
    request: &BalancerRequest,
) -> Result<DpDone, DpError> {
    let BalancerRequest {
        vni,
        address,
        ports,
    } = request.clone();
    let port = |port: BalancedPort| LbPort {
        protocol: match port.transport {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        },
        port: port.port,
    };
    underlay(engine.create_load_balancer(LoadBalancerSpec {
        id: uid.as_str().to_owned(),
        vni,
        address,
        ports: ports.into_iter().map(port).collect(),
        preferred_underlay: None,
    }))
}

fn balanced_port(port: &LbPort) -> BalancedPort {
    BalancedPort {
        transport: match port.protocol {
            6 => Transport::Tcp,
            _ => Transport::Udp,
        },
        port: port.port,
    }
}

fn create_neighbor(
    engine: &mut Engine,
    neighbor: Neighbor,
    underlay: Ipv6Addr,
) -> Result<(), ConfigError> {
    let Neighbor { vni, share } = neighbor;
    engine.create_neighbor_nat(IpAddr::V4(share.address), vni, share.ports, underlay)
}

fn delete_neighbor(engine: &mut Engine, neighbor: Neighbor) -> Result<(), ConfigError> {
    let Neighbor { vni, share } = neighbor;
    engine.delete_neighbor_nat(IpAddr::V4(share.address), vni, share.ports)
}

fn firewall_rule(id: &str, rule: &Rule) -> Option<FirewallRule> {
    let Rule {
        direction,
        action,
        priority,
        source,
        destination,
        matching,
    } = *rule;
    let ports = |ports: Ports| PortMatch {
        lower: ports.map(|(first, _)| first),
        upper: ports.map(|(_, last)| last),
    };
    Some(FirewallRule {
        id: id.to_owned(),
        direction: match direction {
            Direction::Ingress => RuleDirection::Ingress,
            Direction::Egress => RuleDirection::Egress,
        },
        action: match action {
            Action::Accept => FirewallAction::Accept,
            Action::Deny => FirewallAction::Drop,
        },
        priority: u32::from(priority),
        source: RulePrefix::new(source.address(), source.len())?,
        destination: RulePrefix::new(destination.address(), destination.len())?,
        filter: match matching {
            Matching::Any => RuleFilter::Any,
            Matching::Tcp {
                source,
                destination,
            } => RuleFilter::Tcp {
                source: ports(source),
                destination: ports(destination),
            },
            Matching::Udp {
                source,
                destination,
            } => RuleFilter::Udp {
                source: ports(source),
                destination: ports(destination),
            },
            Matching::Icmp { kind, code } => RuleFilter::Icmp { kind, code },
        },
    })
}

fn observe_rule(rule: &FirewallRule) -> Option<Rule> {
    let ports = |ports: PortMatch| -> Ports {
        ports
            .lower
            .map(|lower| (lower, ports.upper.unwrap_or(u16::MAX)))
    };
    Some(Rule {
        direction: match rule.direction {
            RuleDirection::Ingress => Direction::Ingress,
            RuleDirection::Egress => Direction::Egress,
        },
        action: match rule.action {
            FirewallAction::Accept => Action::Accept,
            FirewallAction::Drop => Action::Deny,
        },
        priority: u16::try_from(rule.priority).ok()?,
        source: rule.source.prefix(),
        destination: rule.destination.prefix(),
        matching: match rule.filter {
            RuleFilter::Any => Matching::Any,
            RuleFilter::Tcp {
                source,
                destination,
            } => Matching::Tcp {
                source: ports(source),
                destination: ports(destination),
            },
            RuleFilter::Udp {
                source,
                destination,
            } => Matching::Udp {
                source: ports(source),
                destination: ports(destination),
            },
            RuleFilter::Icmp { kind, code } => Matching::Icmp { kind, code },
        },
    })
}

/// The ports of a share.
pub fn overlap(one: &NatShare, two: &NatShare) -> bool {
    let NatShare { address, ports }: NatShare = *one;
    let other: PortRange = two.ports;
    address == two.address && ports.overlaps(&other)
}
