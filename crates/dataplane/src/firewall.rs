//! Packet filter of one interface.
//!
//! A direction without rules accepts everything. With rules, what no rule accepts is dropped. Rules are tried by priority, the lowest
//! number first; at the same priority those that drop come before those that accept, then the older before the newer. The
//! verdict is taken for the first packet of a connection, on addresses as the machine sees them, and holds for its answers.

use crate::flow::key::{Transport, Tuple};
use crate::objects::{FirewallAction, FirewallRule, RuleDirection, RuleFilter, RulePrefix};
use core::net::IpAddr;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Rules per interface. Beyond: status 208.
pub const FIREWALL_RULES_MAX: usize = 4_096;

/// The transport of a packet as rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// TCP with source and destination port.
    Tcp(u16, u16),
    /// UDP with source and destination port.
    Udp(u16, u16),
    /// ICMP or ICMPv6 with type and code.
    Icmp(u8, u8),
}

/// What rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterPacket {
    /// Source, before any translation.
    pub source: IpAddr,
    /// Destination, after any translation.
    pub destination: IpAddr,
    /// Transport.
    pub transport: Filtered,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// It may pass.
    Accept,
    /// A rule drops it, or none accepts it.
    Drop,
}

/// A rule in force, with the number of connections it decided.
#[derive(Clone, Debug)]
struct Entry {
    rule: Arc<FirewallRule>,
    hits: Arc<AtomicU64>,
}

/// The rules of an interface.
#[derive(Clone, Debug, Default)]
pub struct Firewall {
    /// In the order in which they were added.
    listed: Vec<Entry>,
    /// In the order in which they are tried, per direction.
    ingress: Vec<Entry>,
    egress: Vec<Entry>,
}

impl Firewall {
    /// Rules in the order in which they were added.
    pub fn rules(&self) -> impl Iterator<Item = &FirewallRule> {
        self.listed.iter().map(|entry| entry.rule.as_ref())
    }

    /// Number of rules.
    #[must_use]
    pub fn len(&self) -> usize {
        self.listed.len()
    }

    /// Whether there are no rules, and so everything passes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// A rule by its id.
    #[must_use]
    pub fn rule(&self, id: &str) -> Option<&FirewallRule> {
        self.rules().find(|rule| rule.id == id)
    }

    /// Connections that a rule has decided so far, ids in the order of [`Firewall::rules`].
    pub fn hits(&self) -> impl Iterator<Item = (&str, u64)> {
        self.listed
            .iter()
            .map(|entry| (entry.rule.id.as_str(), entry.hits.load(Ordering::Relaxed)))
    }

    /// Adds a rule; false if there are [`FIREWALL_RULES_MAX`] already.
    #[must_use]
    pub fn add(&mut self, rule: FirewallRule) -> bool {
        if self.listed.len() >= FIREWALL_RULES_MAX {
            return false;
        }
        let order = order(&rule);
        let entry = Entry {
            rule: Arc::new(rule),
            hits: Arc::default(),
        };
        let tried = match entry.rule.direction {
            RuleDirection::Ingress => &mut self.ingress,
            RuleDirection::Egress => &mut self.egress,
        };
        let place = tried.partition_point(|other| self::order(&other.rule) <= order);
        tried.insert(place, entry.clone());
        self.listed.push(entry);
        true
    }

    /// Removes a rule; false if there is no such rule.
    #[must_use]
    pub fn remove(&mut self, id: &str) -> bool {
        let before = self.listed.len();
        for entries in [&mut self.listed, &mut self.ingress, &mut self.egress] {
            entries.retain(|entry| entry.rule.id != id);
        }
        self.listed.len() != before
    }

    /// Decides a packet that goes to (`Ingress`) or comes from (`Egress`) the machine, and counts a hit of the deciding rule.
    #[must_use]
    pub fn decide(&self, direction: RuleDirection, packet: &FilterPacket) -> Filter {
        let (filter, entry) = self.judge(direction, packet);
        if let Some(entry) = entry {
            entry.hits.fetch_add(1, Ordering::Relaxed);
        }
        filter
    }

    /// The same without counting, with the rule that decides; there is none if the direction has no rules, or none that matches.
    #[must_use]
    pub fn explain(
        &self,
        direction: RuleDirection,
        packet: &FilterPacket,
    ) -> (Filter, Option<&FirewallRule>) {
        let (filter, entry) = self.judge(direction, packet);
        (filter, entry.map(|entry| entry.rule.as_ref()))
    }

    /// Rules of a direction.
    #[must_use]
    pub fn count(&self, direction: RuleDirection) -> usize {
        self.tried(direction).len()
    }

    fn tried(&self, direction: RuleDirection) -> &[Entry] {
        match direction {
            RuleDirection::Ingress => &self.ingress,
            RuleDirection::Egress => &self.egress,
        }
    }

    fn judge(&self, direction: RuleDirection, packet: &FilterPacket) -> (Filter, Option<&Entry>) {
        let tried = self.tried(direction);
        if tried.is_empty() {
            return (Filter::Accept, None);
        }
        let Some(entry) = tried.iter().find(|entry| matches(&entry.rule, packet)) else {
            return (Filter::Drop, None);
        };
        let filter = match entry.rule.action {
            FirewallAction::Accept => Filter::Accept,
            FirewallAction::Drop => Filter::Drop,
        };
        (filter, Some(entry))
    }
}

impl FilterPacket {
    /// The first packet of a flow as rules see it.
    pub(crate) fn of(tuple: &Tuple) -> FilterPacket {
        let (source, destination) = (tuple.source, tuple.destination);
        let ports = (tuple.source_port, tuple.destination_port);
        let transport = match tuple.transport {
            Transport::Tcp => Filtered::Tcp(ports.0, ports.1),
            Transport::Udp => Filtered::Udp(ports.0, ports.1),
            Transport::Echo { request } => {
                let kind = match (destination, request) {
                    (IpAddr::V4(_), true) => net::icmp::ECHO_REQUEST,
                    (IpAddr::V4(_), false) => net::icmp::ECHO_REPLY,
                    (IpAddr::V6(_), true) => net::icmp::V6_ECHO_REQUEST,
                    (IpAddr::V6(_), false) => net::icmp::V6_ECHO_REPLY,
                };
                Filtered::Icmp(kind, 0)
            }
        };
        FilterPacket {
            source,
            destination,
            transport,
        }
    }
}

/// Sort key: smaller is tried earlier.
fn order(rule: &FirewallRule) -> (u32, bool) {
    (rule.priority, rule.action == FirewallAction::Accept)
}

fn matches(rule: &FirewallRule, packet: &FilterPacket) -> bool {
    let is_there = |given: &RulePrefix, address| given.prefix().contains(address);
    is_there(&rule.source, packet.source)
        && is_there(&rule.destination, packet.destination)
        && transport_matches(rule, packet.transport)
}

fn transport_matches(rule: &FirewallRule, transport: Filtered) -> bool {
    match (rule.filter, transport) {
        (RuleFilter::Any, _) => true,
        (
            RuleFilter::Tcp {
                source,
                destination,
            },
            Filtered::Tcp(from, to),
        )
        | (
            RuleFilter::Udp {
                source,
                destination,
            },
            Filtered::Udp(from, to),
        ) => source.contains(from) && destination.contains(to),
        (RuleFilter::Icmp { kind, code }, Filtered::Icmp(packet_kind, packet_code)) => {
            kind.is_none_or(|kind| kind == packet_kind)
                && code.is_none_or(|code| code == packet_code)
        }
        (
            RuleFilter::Tcp { .. } | RuleFilter::Udp { .. } | RuleFilter::Icmp { .. },
            Filtered::Tcp(..) | Filtered::Udp(..) | Filtered::Icmp(..),
        ) => false,
    }
}
