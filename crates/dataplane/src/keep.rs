//! Keeping decisions: after a change of configuration, a cached decision that the change does not concern stays, and one that depends on it in
//! one respect has only that looked at again. What comes out differently is left to the complete decision anew ([`crate::conntrack`]).

use crate::conntrack;
use crate::firewall::FilterPacket;
use crate::flow::adjacency::{AdjacencyTable, Tunnel};
use crate::flow::key::Tuple;
use crate::flow::table::FlowTable;
use crate::flow::{Action, Entry, Ingress};
use crate::graph::{Context, Output, Source};
use crate::history::Change;
use crate::objects::RuleDirection;
use crate::route_lookup;
use crate::stages::{self, slow};
use crate::tables::Tables;
use crate::underlay::UnderlayKind;
use crate::verdict::PortId;
use core::net::IpAddr;
use net::Prefix;

/// Which parts of a decision changes may concern: a set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doubt(u8);

impl Doubt {
    pub(crate) const NONE: Doubt = Doubt(0);
    const ALL: Doubt = Doubt(1);
    const ROUTE: Doubt = Doubt(2);
    const FILTER: Doubt = Doubt(4);
    const TARGET: Doubt = Doubt(8);

    const fn has(self, part: Doubt) -> bool {
        self.0 & part.0 != 0
    }

    /// The part, if so.
    const fn when(self, is_so: bool) -> Doubt {
        if is_so { self } else { Doubt::NONE }
    }
}

/// What it takes to find doubts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub tables: &'a Tables,
    pub flows: &'a FlowTable,
    pub adjacencies: &'a AdjacencyTable,
    pub source: Source<'a>,
}

/// What changed since an entry was decided and may make its decision different. The packet at hand must have come in where the entry says.
pub(crate) fn doubt(view: &View<'_>, number: u32) -> Doubt {
    let Some(entry) = view.flows.entry(number) else {
        return Doubt::ALL;
    };
    // A change of the address family is understood by the complete decision only.
    if entry.action == Action::Undecided || entry.has(Entry::FAMILY) {
        return Doubt::ALL;
    }
    let (then, now) = (slow::epoch(entry.epoch), view.tables.epoch);
    let Some(changes) = view.tables.history.since(then, now) else {
        return Doubt::ALL;
    };
    changes.fold(Doubt::NONE, |Doubt(bits), change| {
        Doubt(bits | cast(view, change, (number, entry)).0)
    })
}

/// Declares a decision current if what is in doubt about it comes out the same, or differs in the tunnel only, which is exchanged. False leaves
/// it to the complete decision.
pub(crate) fn confirm(cx: &mut Context<'_>, number: u32, doubt: Doubt) -> bool {
    let mut is_moved = false;
    if doubt != Doubt::NONE
        && (doubt.has(Doubt::ALL) || !is_confirmed(cx, number, doubt, &mut is_moved))
    {
        return false;
    }
    let counter = if is_moved {
        &mut cx.counters.flows_redecided
    } else {
        &mut cx.counters.flows_kept
    };
    declare(cx.flows, counter, number, cx.tables.epoch);
    true
}

/// Declares a decision current, and counts it.
pub(crate) fn declare(flows: &mut FlowTable, counter: &mut u64, number: u32, epoch: u32) {
    if let Some(entry) = flows.entry_mut(number) {
        entry.epoch = slow::current(entry.epoch, epoch);
        *counter += 1;
    }
}

/// Looks at what is in doubt.
fn is_confirmed(cx: &mut Context<'_>, number: u32, doubt: Doubt, is_moved: &mut bool) -> bool {
    (!doubt.has(Doubt::TARGET) || is_target_kept(cx, number))
        && (!doubt.has(Doubt::ROUTE) || is_way_open(cx, number, is_moved))
        && (!doubt.has(Doubt::FILTER) || is_let_pass(cx, number))
}

/// What one change puts in doubt.
fn cast(view: &View<'_>, change: &Change, (number, entry): (u32, &Entry)) -> Doubt {
    let is_first_direction = number & 1 == 0;
    let in_network = |vni| entry.key.scope().vni() == vni;
    let goes_to = |address| is_first_direction && entry.key.ends().1 == address;
    match *change {
        Change::Everything => Doubt::ALL,
        Change::Nothing => Doubt::NONE,
        Change::Endpoints => Doubt::ALL.when(matches!(view.source, Source::Tunnel { .. })),
        Change::Uplink { port, moves } => {
            let concerned =
                entry.action == Action::Encap && (moves || leaves_by(view, entry) == Some(port));
            let part = if is_steered(view.source, entry) {
                Doubt::ALL
            } else {
                Doubt::ROUTE
            };
            part.when(concerned)
        }
        Change::Routes { vni, prefix } => Doubt::ROUTE.when(
            in_network(vni)
                && !is_steered(view.source, entry)
                && prefix.is_none_or(|prefix| is_under(view.flows, (number, entry), prefix)),
        ),
        Change::Services(port) => Doubt::ALL.when(entry.ingress == Ingress::machine(port)),
        Change::Filter { port, rule } => {
            let is_judged = match rule.direction {
                RuleDirection::Egress => entry.ingress == Ingress::machine(port),
                RuleDirection::Ingress => delivers_to(entry, port),
            };
            // What a rule that came or went does not match is judged as before.
            let packet = || FilterPacket::of(&judged(view.flows, (number, entry)));
            Doubt::FILTER.when(is_first_direction && is_judged && rule.concerns(packet))
        }
        Change::Address { vni, address } => Doubt::ALL.when(in_network(vni) && goes_to(address)),
        Change::Targets { vni, address } => {
            let is_it = is_balanced(view.source) && in_network(vni) && goes_to(address);
            Doubt::TARGET.when(is_it)
        }
    }
}

fn leaves_by(view: &View<'_>, entry: &Entry) -> Option<PortId> {
    view.adjacencies.get(entry.target).map(|to| to.port)
}

/// Whether a route to `prefix` may be about the sender of an entry's packets or the receiver.
fn is_under(flows: &FlowTable, (number, entry): (u32, &Entry), prefix: Prefix) -> bool {
    if !entry.has(Entry::TRANSLATED) {
        return entry.key.is_under(prefix);
    }
    let (source, destination) = ends(flows, (number, entry));
    prefix.contains(source) || prefix.contains(destination)
}

/// The sender of an entry's packets as they come in, and the receiver as they leave.
fn ends(flows: &FlowTable, (number, entry): (u32, &Entry)) -> (IpAddr, IpAddr) {
    let (source, destination) = entry.key.ends();
    let answers = flows.entry(number ^ 1);
    match answers.filter(|_| entry.has(Entry::TRANSLATED)) {
        Some(answers) => (source, answers.key.ends().0),
        None => (source, destination),
    }
}

/// The packets of an entry as the packet filter sees them.
fn judged(flows: &FlowTable, (number, entry): (u32, &Entry)) -> Tuple {
    let (source, destination) = ends(flows, (number, entry));
    Tuple {
        source,
        destination,
        ..entry.key.tuple()
    }
}

/// Whether a stage before the route lookup found the way: to a load balancer's target, or to the owner of a NAT port.
fn is_steered(source: Source<'_>, entry: &Entry) -> bool {
    is_balanced(source) || matches!(source, Source::Tunnel { .. }) && entry.action == Action::Encap
}

fn is_balanced(source: Source<'_>) -> bool {
    match source {
        Source::Tunnel { endpoint, .. } => endpoint.kind == UnderlayKind::LoadBalancer,
        Source::Machine => false,
    }
}

fn delivers_to(entry: &Entry, port: PortId) -> bool {
    entry.action == Action::Deliver && entry.target == u32::from(port.0)
}

/// Whether the route lookup still ends with the same machine, or with a tunnel: if that is another one, it takes the place of the former.
/// Nothing else of a decision depends on which host a packet goes to.
fn is_way_open(cx: &mut Context<'_>, number: u32, is_moved: &mut bool) -> bool {
    let Some(entry) = cx.flows.entry(number) else {
        return false;
    };
    let (_, destination) = ends(cx.flows, (number, entry));
    let Ok(way) = route_lookup::find(cx, &entry.key.tuple(), destination) else {
        return false;
    };
    if entry.has(Entry::BY_DEFAULT) != way.public {
        return false;
    }
    match way.output {
        Output::Deliver(port) => delivers_to(entry, port),
        Output::Encap {
            uplink,
            source,
            destination: host,
        } => {
            let Ok(uplink) = cx.tables.uplink(uplink) else {
                return false;
            };
            let tunnel = Tunnel {
                uplink: *uplink,
                is_v6: destination.is_ipv6(),
                source,
                destination: host,
            };
            entry.action == Action::Encap && lead(cx, number, &tunnel, is_moved)
        }
    }
}

/// Leads the packets of an entry, which have a tunnel, into this one. False if there is no room for it.
fn lead(cx: &mut Context<'_>, number: u32, tunnel: &Tunnel, is_moved: &mut bool) -> bool {
    let Some(entry) = cx.flows.entry_mut(number) else {
        return false;
    };
    let Some(target) = cx.adjacencies.exchange(entry.target, tunnel) else {
        return false;
    };
    *is_moved = target != entry.target;
    entry.target = target;
    true
}

/// Whether the packet filters of both ends still let a connection pass.
fn is_let_pass(cx: &mut Context<'_>, number: u32) -> bool {
    let Some(entry) = cx.flows.entry(number) else {
        return false;
    };
    let receiver = match entry.action {
        Action::Deliver => Some(PortId(entry.target as u16)),
        Action::Encap | Action::Undecided => None,
    };
    let packet = FilterPacket::of(&judged(cx.flows, (number, entry)));
    stages::decide_filter(cx, &packet, receiver).is_ok()
}

/// Whether a load-balanced connection's target is still one.
fn is_target_kept(cx: &Context<'_>, number: u32) -> bool {
    let Some(entry) = cx.flows.entry(number) else {
        return false;
    };
    let tuple = entry.key.tuple();
    let balancer = cx.tables.services.balancer(cx.vni, tuple.destination);
    let target = conntrack::previous(cx, number, &tuple).and_then(|previous| previous.target);
    match (balancer, target) {
        (Some(balancer), Some(target)) => balancer.targets.contains(target),
        (None, _) | (_, None) => false,
    }
}
