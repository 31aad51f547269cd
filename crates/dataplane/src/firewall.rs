//! Packet filter of one interface.
//!
//! A direction without rules accepts everything. With rules, what no rule accepts is dropped. Rules are tried by priority, the lowest
//! number first; at the same priority those that drop come before those that accept, then the older before the newer. The
//! verdict is taken for the first packet of a connection, on addresses as the machine sees them, and holds for its answers.

use crate::flow::key::{Transport, Tuple};
use crate::objects::{FirewallAction, FirewallRule, PortMatch, RuleDirection, RuleFilter};
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
    test: Test,
    rule: Arc<FirewallRule>,
    hits: Arc<AtomicU64>,
}

/// A rule that comes or goes: which packets may be judged differently since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RuleChange {
    pub direction: RuleDirection,
    /// `None` if it is the only rule of its direction, so that it matters whether there is one.
    test: Option<Test>,
}

impl RuleChange {
    /// Whether the change may matter to a packet.
    pub(crate) fn concerns(&self, packet: impl FnOnce() -> FilterPacket) -> bool {
        self.test
            .as_ref()
            .is_none_or(|test| test.matches(&Subject::of(&packet())))
    }
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
            test: Test::of(&rule),
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

    /// What the coming or going of one of these rules may concern; `None` if there is no such rule.
    pub(crate) fn change(&self, id: &str) -> Option<RuleChange> {
        let entry = self.listed.iter().find(|entry| entry.rule.id == id)?;
        let direction = entry.rule.direction;
        let is_only = self.count(direction) == 1;
        Some(RuleChange {
            direction,
            test: (!is_only).then_some(entry.test),
        })
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
        let subject = Subject::of(packet);
        let Some(entry) = tried.iter().find(|entry| entry.test.matches(&subject)) else {
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

/// An address as a number: family, and bits aligned to the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbered {
    bits: u128,
    is_v6: bool,
}

impl Numbered {
    fn of(address: IpAddr) -> Numbered {
        match address {
            IpAddr::V4(address) => Numbered {
                bits: u128::from(address.to_bits()) << 96,
                is_v6: false,
            },
            IpAddr::V6(address) => Numbered {
                bits: address.to_bits(),
                is_v6: true,
            },
        }
    }
}

/// Sets of transports.
const TCP: u8 = 1;
const UDP: u8 = 2;
const ICMP: u8 = 4;

/// A packet in numbers: what a rule's [`Test`] compares.
#[derive(Clone, Copy, Debug)]
struct Subject {
    source: Numbered,
    destination: Numbered,
    transport: u8,
    /// Ports, or type and code.
    numbers: [u16; 2],
}

impl Subject {
    fn of(packet: &FilterPacket) -> Subject {
        let (transport, numbers) = match packet.transport {
            Filtered::Tcp(from, to) => (TCP, [from, to]),
            Filtered::Udp(from, to) => (UDP, [from, to]),
            Filtered::Icmp(kind, code) => (ICMP, [kind.into(), code.into()]),
        };
        Subject {
            source: Numbered::of(packet.source),
            destination: Numbered::of(packet.destination),
            transport,
            numbers,
        }
    }
}

/// What a rule asks for, worked out once: the first packet of a connection may meet many rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Test {
    source: Numbered,
    destination: Numbered,
    /// Significant bits of both.
    lengths: [u8; 2],
    transports: u8,
    /// First and last.
    ranges: [(u16, u16); 2],
}

impl Test {
    fn of(rule: &FirewallRule) -> Test {
        const ANY: (u16, u16) = (0, u16::MAX);
        let ports = |given: PortMatch| match given {
            PortMatch { lower: None, .. } => ANY,
            PortMatch {
                lower: Some(lower),
                upper,
            } => (lower, upper.unwrap_or(u16::MAX)),
        };
        let exactly = |given: Option<u8>| given.map_or(ANY, |value| (value.into(), value.into()));
        let (transports, ranges) = match rule.filter {
            RuleFilter::Any => (TCP | UDP | ICMP, [ANY; 2]),
            RuleFilter::Tcp {
                source,
                destination,
            } => (TCP, [ports(source), ports(destination)]),
            RuleFilter::Udp {
                source,
                destination,
            } => (UDP, [ports(source), ports(destination)]),
            RuleFilter::Icmp { kind, code } => (ICMP, [exactly(kind), exactly(code)]),
        };
        let (source, destination) = (rule.source.prefix(), rule.destination.prefix());
        Test {
            source: Numbered::of(source.address()),
            destination: Numbered::of(destination.address()),
            lengths: [source.len(), destination.len()],
            transports,
            ranges,
        }
    }

    fn matches(&self, subject: &Subject) -> bool {
        let covers = |prefix: &Numbered, length: u8, address: &Numbered| {
            prefix.is_v6 == address.is_v6
                && (prefix.bits ^ address.bits).leading_zeros() >= u32::from(length)
        };
        let within = |(first, last): (u16, u16), number| (first..=last).contains(&number);
        let ([of_source, of_destination], [one, two]) = (self.lengths, self.ranges);
        let [from, to] = subject.numbers;
        self.transports & subject.transport != 0
            && covers(&self.source, of_source, &subject.source)
            && covers(&self.destination, of_destination, &subject.destination)
            && within(one, from)
            && within(two, to)
    }
}
