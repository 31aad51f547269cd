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

/// An address in two words, IPv4 in the upper half of the first.
fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [u64::from(address.to_bits()) << 32, 0],
        IpAddr::V6(address) => [(address.to_bits() >> 64) as u64, address.to_bits() as u64],
    }
}

/// Sets of transports, between addresses of certain families: see [`kinds`].
const TCP: u16 = 1;
const UDP: u16 = 2;
const ICMP: u16 = 4;

/// Three bits for every pair of families. Both ends differ if the family is translated.
fn kinds(transports: u16, source: IpAddr, destination: IpAddr) -> u16 {
    let families = u16::from(source.is_ipv6()) + 2 * u16::from(destination.is_ipv6());
    transports << (3 * families)
}

/// A packet in numbers: what a rule's [`Test`] compares.
#[derive(Clone, Copy, Debug)]
struct Subject {
    /// Source and destination.
    addresses: [u64; 4],
    kind: u16,
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
        let (source, destination) = (packet.source, packet.destination);
        let ([a, b], [c, d]) = (words(source), words(destination));
        Subject {
            addresses: [a, b, c, d],
            kind: kinds(transport, source, destination),
            numbers,
        }
    }
}

/// What a rule asks for, worked out once: the first packet of a connection may meet many rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Test {
    /// Source and destination, and their significant bits.
    addresses: [u64; 4],
    masks: [u64; 4],
    kinds: u16,
    ranges: [Range; 2],
}

/// A range of numbers, so that one comparison tells what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u16,
    /// The last one's distance from the first.
    span: u16,
}

impl Range {
    const ANY: Range = Range {
        first: 0,
        span: u16::MAX,
    };

    /// `None` if it is empty.
    fn new(first: u16, last: u16) -> Option<Range> {
        let span = last.checked_sub(first)?;
        Some(Range { first, span })
    }

    fn of_ports(given: PortMatch) -> Option<Range> {
        let PortMatch { lower, upper } = given;
        match lower {
            None => Some(Range::ANY),
            Some(lower) => Range::new(lower, upper.unwrap_or(u16::MAX)),
        }
    }

    fn exactly(given: Option<u8>) -> Option<Range> {
        match given {
            None => Some(Range::ANY),
            Some(value) => Range::new(value.into(), value.into()),
        }
    }

    fn has(self, number: u16) -> bool {
        number.wrapping_sub(self.first) <= self.span
    }
}

/// The significant bits of an address of which `length` are given, in two words.
fn masks(address: IpAddr, length: u8) -> [u64; 2] {
    let ones = |count: u32| u64::MAX.checked_shl(64 - count).unwrap_or(0);
    let length = u32::from(length);
    match address {
        IpAddr::V4(_) => [ones(length.min(32)), 0],
        IpAddr::V6(_) => [
            ones(length.min(64)),
            ones(length.saturating_sub(64).min(64)),
        ],
    }
}

impl Test {
    fn of(rule: &FirewallRule) -> Test {
        let (transports, ranges) = match rule.filter {
            RuleFilter::Any => (TCP | UDP | ICMP, [Some(Range::ANY); 2]),
            RuleFilter::Tcp {
                source,
                destination,
            } => (TCP, [source, destination].map(Range::of_ports)),
            RuleFilter::Udp {
                source,
                destination,
            } => (UDP, [source, destination].map(Range::of_ports)),
            RuleFilter::Icmp { kind, code } => (ICMP, [kind, code].map(Range::exactly)),
        };
        // A rule for no port matches no transport.
        let (transports, ranges) = match ranges {
            [Some(one), Some(two)] => (transports, [one, two]),
            _ => (0, [Range::ANY; 2]),
        };
        let (source, destination) = (rule.source.prefix(), rule.destination.prefix());
        let (from, to) = (source.address(), destination.address());
        let ([a, b], [c, d]) = (words(from), words(to));
        let ([e, f], [g, h]) = (masks(from, source.len()), masks(to, destination.len()));
        Test {
            addresses: [a, b, c, d],
            masks: [e, f, g, h],
            kinds: kinds(transports, from, to),
            ranges,
        }
    }

    fn matches(&self, subject: &Subject) -> bool {
        let pairs = self.addresses.iter().zip(&subject.addresses);
        let differing = pairs.zip(&self.masks);
        let differing = differing.fold(0, |bits, ((one, two), mask)| bits | (one ^ two) & mask);
        let ([one, two], [from, to]) = (self.ranges, subject.numbers);
        self.kinds & subject.kind != 0 && differing == 0 && one.has(from) && two.has(to)
    }
}
