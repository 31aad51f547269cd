//! Packet filters: what the user's policies say, what the interface is to enforce, and what its data plane enforces.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::meta::{IpPrefix, LabelSelector, Protocol as ApiProtocol, selects};
use api::networking::{
    NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, ObjectSelector, PeerKind, PolicyType,
};
use controller::object;
use metalnet::parse_services;
use metalnet::services::{Action, Direction, Matching, Ports, Rule};
use net::icmp;

use super::ends::{Nic, nics};
use super::{Walk, broken, note, unknown, warning};
use crate::model::{Hop, Packet, Protocol, Source, Stage};
use crate::snapshot::{Objects, Snapshot};

/// What the policies of the user say about a connection at one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Intent {
    /// No policy restricts the direction.
    Free,
    Allowed {
        policy: String,
        rule: String,
    },
    /// No rule of these policies allows it.
    Denied {
        policies: Vec<String>,
    },
}

/// What a set of rules does with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    NoRules,
    Accepts(String),
    /// By a rule that denies, or because none accepts.
    Drops(Option<String>),
}

impl Decision {
    fn passes(&self) -> bool {
        matches!(self, Self::NoRules | Self::Accepts(_))
    }
}

impl<'a> Walk<'a> {
    /// The filter of an interface. `packet` as the filter sees it: source before, destination after translation.
    pub(super) fn filter(&mut self, nic: &Nic<'a>, direction: Direction, packet: &Packet) {
        let intent = intent(self.snapshot, nic, direction, packet);
        let wanted = nic
            .metal
            .map(|metal| parse_services::rules(&metal.spec.firewall_rules));
        let installed = self.installed(nic);
        let stage = match direction {
            Direction::Ingress => Stage::Ingress,
            Direction::Egress => Stage::Egress,
        };
        let way = match direction {
            Direction::Ingress => "in",
            Direction::Egress => "out",
        };
        let wanted = match wanted {
            Some(Ok(rules)) => Some(rules),
            Some(Err(_)) | None => None,
        };
        let live = installed.map(|rules| decide(&rules, direction, packet));
        let planned = wanted
            .as_ref()
            .map(|rules| decide(rules, direction, packet));
        let allowed = !matches!(intent, Intent::Denied { .. });
        let passes = live
            .as_ref()
            .or(planned.as_ref())
            .map_or(allowed, Decision::passes);
        let happens = if passes {
            format!("may {} {}", if way == "in" { "come" } else { "go" }, way)
        } else {
            "is dropped by the packet filter".to_owned()
        };
        let mut hop = Hop::new(nic.host(), stage, happens).because(reason(&intent, nic, way));
        if !self.snapshot.objects.unlisted.is_empty() {
            self.unlisted(&mut hop, &["networkpolicies"]);
        }
        judge(
            &mut hop,
            nic,
            way,
            &intent,
            planned.as_ref(),
            live.as_ref(),
            packet,
        );
        self.push(hop);
    }

    /// The rules that the data plane of an interface has, if it could be asked and has the interface.
    fn installed(&self, nic: &Nic<'_>) -> Option<BTreeMap<String, Rule>> {
        let interface = self.live(nic)?;
        let rules = interface.services.rules.iter();
        Some(
            rules
                .filter_map(|(id, rule)| Some((id.clone(), (*rule)?)))
                .collect(),
        )
    }

    /// Says that a kind which decides could not be listed.
    pub(super) fn unlisted(&self, hop: &mut Hop, kinds: &[&str]) {
        for kind in kinds {
            if let Some(why) = self.snapshot.objects.unlisted.get(*kind) {
                let text = format!("{kind} could not be read: {why}");
                hop.find(
                    unknown("NotListed", Source::Objects, text)
                        .next(format!("kubectl auth can-i list {kind}")),
                );
            }
        }
    }
}

/// Whether any set of policies lets a connection reach an interface; for choosing among targets.
pub(super) fn admits(snapshot: &Snapshot, nic: &Nic<'_>, packet: &Packet) -> bool {
    !matches!(
        intent(snapshot, nic, Direction::Ingress, packet),
        Intent::Denied { .. }
    )
}

fn reason(intent: &Intent, nic: &Nic<'_>, way: &str) -> String {
    match intent {
        Intent::Free => format!("no policy restricts what goes {way} at {}", nic.label()),
        Intent::Allowed { policy, rule } => format!("policy {policy} allows it: {rule}"),
        Intent::Denied { policies } => format!(
            "{} {} {}: no rule allows it",
            if policies.len() == 1 {
                "policy"
            } else {
                "policies"
            },
            policies.join(", "),
            if policies.len() == 1 {
                "denies"
            } else {
                "deny"
            }
        ),
    }
}

/// Findings: what ends the packet, and where the three accounts differ.
fn judge(
    hop: &mut Hop,
    nic: &Nic<'_>,
    way: &str,
    intent: &Intent,
    planned: Option<&Decision>,
    live: Option<&Decision>,
    packet: &Packet,
) {
    let allowed = !matches!(intent, Intent::Denied { .. });
    let namespace = object::namespace(nic.user);
    let effective = live.or(planned).map_or(allowed, Decision::passes);
    let catching_up = format!(
        "kubectl --namespace {namespace} get networkpolicies; wait, or look at the log of metalnetlet and of metalnet on {}",
        nic.host()
    );
    match (allowed, effective) {
        (false, false) => {
            if let Intent::Denied { policies } = intent {
                let text = format!(
                    "policy {} denies {} {} at {}",
                    policies.join(", "),
                    if way == "in" { "incoming" } else { "outgoing" },
                    what(packet),
                    nic.label()
                );
                let first = policies.first().cloned().unwrap_or_default();
                let section = if way == "in" { "ingress" } else { "egress" };
                hop.find(broken("PolicyDenies", Source::Objects, text).next(format!(
                    "kubectl --namespace {namespace} describe networkpolicy {first}; allow it with a rule in spec.{section}"
                )));
            }
        }
        (true, false) => {
            let who = if live.is_some() {
                Source::Dpservice
            } else {
                Source::Objects
            };
            let text = format!(
                "the policies allow {}, but the rules in force at {} drop it: they are behind",
                what(packet),
                nic.label()
            );
            hop.find(broken("FilterBehind", who, text).next(catching_up.clone()));
        }
        (false, true) => {
            let text = format!(
                "the policies deny {}, but the rules in force at {} let it through: they are behind",
                what(packet),
                nic.label()
            );
            hop.find(warning("FilterBehind", Source::Dpservice, text).next(catching_up.clone()));
        }
        (true, true) => {}
    }
    if let Some(Decision::Accepts(rule) | Decision::Drops(Some(rule))) = live {
        hop.find(note(
            "FilterRule",
            Source::Dpservice,
            format!("decided by rule {rule}"),
        ));
    }
    if let (Some(planned), Some(live)) = (planned, live)
        && planned.passes() == live.passes()
        && planned != live
    {
        let text = format!(
            "{} enforces other rules than wanted at {}, with the same result for this packet",
            nic.host(),
            nic.label()
        );
        hop.find(warning("FilterDiffers", Source::Dpservice, text).next(catching_up));
    }
}

fn what(packet: &Packet) -> String {
    if packet.protocol.has_ports() {
        format!("{} {}", packet.protocol.name(), packet.destination_port)
    } else {
        packet.protocol.name().to_owned()
    }
}

// ---- the user's policies ---------------------------------------------------------------------------------------------------

fn intent(snapshot: &Snapshot, nic: &Nic<'_>, direction: Direction, packet: &Packet) -> Intent {
    let objects = &snapshot.objects;
    let namespace = object::namespace(nic.user);
    let none = BTreeMap::new();
    let labels = nic.user.metadata.labels.as_ref().unwrap_or(&none);
    let restricting = objects.policies.iter().filter(|policy| {
        object::namespace(*policy) == namespace
            && !object::is_deleting(*policy)
            && policy.spec.network_ref.name == nic.network_name()
            && selects(&policy.spec.network_interface_selector, labels)
            && restricts(policy, direction)
    });
    let peer = match direction {
        Direction::Ingress => packet.source,
        Direction::Egress => packet.destination,
    };
    let mut policies = Vec::new();
    for policy in restricting {
        let name = object::name(policy).to_owned();
        let rules = rules(policy, direction);
        let found = rules.iter().enumerate().find(|(_, (peers, ports))| {
            reaches(objects, policy, peers, peer) && opens(ports, packet)
        });
        if let Some((index, (peers, ports))) = found {
            let rule = format!("rule {}, {}", index + 1, describe(peers, ports));
            return Intent::Allowed { policy: name, rule };
        }
        policies.push(name);
    }
    if policies.is_empty() {
        Intent::Free
    } else {
        Intent::Denied { policies }
    }
}

fn restricts(policy: &NetworkPolicy, direction: Direction) -> bool {
    let (word, has_rules) = match direction {
        Direction::Ingress => (PolicyType::Ingress, !policy.spec.ingress.is_empty()),
        Direction::Egress => (PolicyType::Egress, !policy.spec.egress.is_empty()),
    };
    policy.spec.policy_types.contains(&word) || has_rules
}

/// Peers and ports of one rule, of either direction.
type Clause<'a> = (&'a [NetworkPolicyPeer], &'a [NetworkPolicyPort]);

fn rules(policy: &NetworkPolicy, direction: Direction) -> Vec<Clause<'_>> {
    match direction {
        Direction::Ingress => policy
            .spec
            .ingress
            .iter()
            .map(|rule| (rule.from.as_slice(), rule.ports.as_slice()))
            .collect(),
        Direction::Egress => policy
            .spec
            .egress
            .iter()
            .map(|rule| (rule.to.as_slice(), rule.ports.as_slice()))
            .collect(),
    }
}

fn reaches(
    objects: &Objects,
    policy: &NetworkPolicy,
    peers: &[NetworkPolicyPeer],
    address: IpAddr,
) -> bool {
    let covers = |prefix: &IpPrefix| {
        net::Prefix::new(prefix.addr(), prefix.bits()).is_some_and(|p| p.contains(address))
    };
    let is_peer = |peer: &NetworkPolicyPeer| match peer {
        NetworkPolicyPeer {
            ip_block: Some(block),
            object_selector: _,
        } => covers(&block.cidr) && !block.except.iter().any(covers),
        NetworkPolicyPeer {
            ip_block: None,
            object_selector: Some(selector),
        } => chosen(objects, policy, selector).contains(&address),
        NetworkPolicyPeer {
            ip_block: None,
            object_selector: None,
        } => false,
    };
    peers.is_empty() || peers.iter().any(is_peer)
}

/// Addresses of the objects that a selector chooses.
fn chosen(objects: &Objects, policy: &NetworkPolicy, selector: &ObjectSelector) -> Vec<IpAddr> {
    let namespace = object::namespace(policy);
    let network = policy.spec.network_ref.name.as_str();
    let labels = selector.labels();
    match selector.kind {
        PeerKind::NetworkInterface => nics(objects)
            .filter(|nic| {
                object::namespace(nic.user) == namespace
                    && nic.network_name() == network
                    && fits(&labels, nic.user)
            })
            .flat_map(|nic| nic.addresses())
            .collect(),
        PeerKind::LoadBalancer => objects
            .balancers
            .iter()
            .filter(|b| object::namespace(*b) == namespace && b.spec.network_ref.name == network)
            .filter(|b| fits(&labels, *b))
            .flat_map(|b| b.status.iter().flat_map(|s| s.ips.iter().map(|ip| ip.0)))
            .collect(),
        PeerKind::VirtualIP => objects
            .virtual_ips
            .iter()
            .filter(|vip| object::namespace(*vip) == namespace && fits(&labels, *vip))
            .filter_map(|vip| Some(vip.status.as_ref()?.ip?.0))
            .collect(),
    }
}

fn fits<K: kube::Resource>(labels: &LabelSelector, object: &K) -> bool {
    object::selects(Some(labels), object.meta().labels.as_ref())
}

fn opens(ports: &[NetworkPolicyPort], packet: &Packet) -> bool {
    let is_open = |port: &NetworkPolicyPort| {
        let protocol = match port.protocol.unwrap_or(ApiProtocol::TCP) {
            ApiProtocol::TCP => Protocol::Tcp,
            ApiProtocol::UDP => Protocol::Udp,
            ApiProtocol::SCTP => return false,
        };
        let Some(first) = port.port.filter(|first| *first != 0) else {
            return protocol == packet.protocol;
        };
        let last = port.end_port.unwrap_or(first);
        protocol == packet.protocol && (first..=last).contains(&i32::from(packet.destination_port))
    };
    ports.is_empty() || ports.iter().any(is_open)
}

fn describe(peers: &[NetworkPolicyPeer], ports: &[NetworkPolicyPort]) -> String {
    let peer = |peer: &NetworkPolicyPeer| match peer {
        NetworkPolicyPeer {
            ip_block: Some(block),
            ..
        } => block.cidr.to_string(),
        NetworkPolicyPeer {
            object_selector: Some(selector),
            ..
        } => {
            let labels: Vec<String> = selector
                .match_labels
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            format!("{} {}", selector.kind, labels.join(","))
        }
        NetworkPolicyPeer { .. } => "nobody".to_owned(),
    };
    let port = |port: &NetworkPolicyPort| {
        let protocol = port.protocol.unwrap_or(ApiProtocol::TCP);
        match (port.port, port.end_port) {
            (None, _) => format!("all {protocol}"),
            (Some(first), Some(last)) if last != first => format!("{protocol} {first}-{last}"),
            (Some(first), _) => format!("{protocol} {first}"),
        }
    };
    let peers: Vec<String> = peers.iter().map(peer).collect();
    let ports: Vec<String> = ports.iter().map(port).collect();
    let or = |list: Vec<String>, all: &str| {
        if list.is_empty() {
            all.to_owned()
        } else {
            list.join(" or ")
        }
    };
    format!("{} for {}", or(ports, "all ports"), or(peers, "everybody"))
}

// ---- rules as a data plane tries them --------------------------------------------------------------------------------------

/// By priority, the lowest number first; at the same priority those that deny come first. A direction without rules accepts everything;
/// with rules, what none accepts is dropped.
fn decide(rules: &BTreeMap<String, Rule>, direction: Direction, packet: &Packet) -> Decision {
    let mut tried: Vec<(&String, &Rule)> = rules
        .iter()
        .filter(|(_, rule)| rule.direction == direction)
        .collect();
    if tried.is_empty() {
        return Decision::NoRules;
    }
    tried.sort_by_key(|(_, rule)| (rule.priority, rule.action == Action::Accept));
    match tried.into_iter().find(|(_, rule)| matches(rule, packet)) {
        None => Decision::Drops(None),
        Some((id, rule)) => match rule.action {
            Action::Accept => Decision::Accepts(id.clone()),
            Action::Deny => Decision::Drops(Some(id.clone())),
        },
    }
}

fn matches(rule: &Rule, packet: &Packet) -> bool {
    let within =
        |ports: Ports, port: u16| ports.is_none_or(|(first, last)| (first..=last).contains(&port));
    let is_here =
        rule.source.contains(packet.source) && rule.destination.contains(packet.destination);
    let kind_of_echo = if packet.source.is_ipv6() {
        icmp::V6_ECHO_REQUEST
    } else {
        icmp::ECHO_REQUEST
    };
    is_here
        && match (rule.matching, packet.protocol) {
            (Matching::Any, _) => true,
            (
                Matching::Tcp {
                    source,
                    destination,
                },
                Protocol::Tcp,
            )
            | (
                Matching::Udp {
                    source,
                    destination,
                },
                Protocol::Udp,
            ) => within(source, packet.source_port) && within(destination, packet.destination_port),
            (Matching::Icmp { kind, code }, Protocol::Icmp | Protocol::Icmpv6) => {
                kind.is_none_or(|kind| kind == kind_of_echo) && code.is_none_or(|code| code == 0)
            }
            (Matching::Tcp { .. } | Matching::Udp { .. } | Matching::Icmp { .. }, _) => false,
        }
}
