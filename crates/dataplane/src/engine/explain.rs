//! What would become of a packet: the packet is decided for real, but by a worker of its own on a copy of the tables, so nothing changes.
//!
//! Two things a rehearsal cannot know. The NAT port of a new connection is one of its interface's, not necessarily the one that a live worker
//! would choose; and rate limits are taken as not exhausted.

use super::Engine;
use crate::cls::{self, FromMachine};
use crate::config::PortKind;
use crate::counters::Node;
use crate::firewall::{Filter, FilterPacket, Firewall};
use crate::flow::key::Tuple;
use crate::inspect::{FlowRow, FlowTuple};
use crate::ipip;
use crate::objects::RuleDirection;
use crate::packet::PacketBuf;
use crate::tables::{Tables, Target};
use crate::time::Instant;
use crate::underlay::UnderlayKind;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::worker::{KnownConnection, Worker, shown};
use core::net::{IpAddr, Ipv6Addr};
use net::{Prefix, Vni};
use std::sync::Arc;

/// Longest frame that can be explained.
const FRAME_MAX: usize = 9_216;

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteTarget {
    /// To an interface's own address on this port.
    Own(PortId),
    /// To a further prefix of the interface on this port.
    Alias(PortId),
    /// To another host.
    Remote {
        /// Underlay address of the next hop.
        next_hop: Ipv6Addr,
        /// As it was given with the route.
        vni: u32,
    },
}

/// The route that a destination takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteFact {
    /// Virtual network.
    pub vni: Vni,
    /// Longest prefix that contains the destination.
    pub prefix: Prefix,
    /// Where it leads.
    pub target: RouteTarget,
}

/// What a packet filter says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterFact {
    /// Port of the machine whose filter it is.
    pub port: PortId,
    /// Rules of this direction. Without any, everything passes.
    pub rules: usize,
    /// The rule that decides; with rules but without this one, the packet is dropped because none accepts it.
    pub rule: Option<String>,
    /// Whether the packet passes.
    pub accepts: bool,
}

/// What would become of a packet, and why.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Machine port that it is about: the sender's, or the one behind the tunnel.
    pub machine: Option<PortId>,
    /// Virtual network.
    pub vni: Option<Vni>,
    /// For packets from an uplink: what the outer destination stands for.
    pub endpoint: Option<UnderlayKind>,
    /// What the packet shows (an ICMP error: what the packets show that travel like it).
    pub shows: Option<FlowTuple>,
    /// It belongs to a connection that is tracked already; then filters are not asked.
    pub is_known: bool,
    /// The stages it would pass, in order.
    pub stages: Vec<Node>,
    /// Route of its destination.
    pub route: Option<RouteFact>,
    /// The sender's filter, if the sender is a machine of this host.
    pub egress: Option<FilterFact>,
    /// The receiver's filter, if the receiver is a machine of this host.
    pub ingress: Option<FilterFact>,
    /// The connection as it would be afterwards.
    pub flow: Option<FlowRow>,
    /// The outcome.
    pub verdict: Verdict,
    /// The packet as it would leave; as it came, if it would be dropped.
    pub frame: Vec<u8>,
}

impl Engine {
    /// What would become of a frame that came in on `port` now, if its connection were `known` (see [`Worker::known_connection`]) or new.
    #[must_use]
    pub fn explain(
        &self,
        port: PortId,
        frame: &[u8],
        known: Option<&KnownConnection>,
        now: Instant,
    ) -> Explanation {
        let tables = rehearsal(&self.tables, port);
        let mut worker = Worker::rehearsing(&tables, known);
        let mut packet = PacketBuf::with_frame_max(FRAME_MAX);
        let verdict = if packet.fill(frame) {
            worker.process(&tables, port, &mut packet, now)
        } else {
            Verdict::Drop(DropReason::PacketTooBig)
        };
        let is_dropped = matches!(verdict, Verdict::Drop(_));
        let subject = subject(&tables, port, frame);
        let counters = worker.counters();
        let passed = |node: &Node| counters.node(*node) > 0;
        let mut explanation = Explanation {
            machine: subject.as_ref().and_then(|subject| subject.machine),
            vni: subject.as_ref().map(|subject| subject.vni),
            endpoint: subject.as_ref().and_then(|subject| subject.endpoint),
            shows: subject
                .as_ref()
                .and_then(|subject| subject.tuple)
                .map(FlowTuple::from),
            is_known: known.is_some_and(KnownConnection::is_tracked),
            stages: Node::IN_ORDER.into_iter().filter(passed).collect(),
            route: None,
            egress: None,
            ingress: None,
            flow: None,
            verdict,
            frame: if is_dropped {
                frame.to_vec()
            } else {
                packet.frame().to_vec()
            },
        };
        if let Some(subject) = subject
            && let Some(tuple) = subject.tuple
        {
            let shows = FlowTuple::from(tuple);
            worker.visit_flows(&tables, now, 0, |row| {
                if row.shows == shows {
                    explanation.flow = Some(row);
                }
            });
            add_facts(&tables, port, &subject, tuple, &mut explanation);
        }
        explanation
    }
}

/// A copy of the tables in which a packet from `port` can do nothing that lasts.
fn rehearsal(tables: &Arc<Tables>, port: PortId) -> Tables {
    let mut copy = Tables::clone(tables);
    Arc::make_mut(&mut copy.settings).is_rehearsal = true;
    if let Some(port) = Arc::make_mut(&mut copy.ports).get_mut(port.index()) {
        port.learned = Arc::new(port.learned.copied());
        if let Some(attached) = &mut port.interface {
            let services = Arc::make_mut(&mut attached.services);
            (services.total_meter, services.public_meter) = (None, None);
        }
    }
    copy
}

/// Whose packet it is.
struct Subject {
    machine: Option<PortId>,
    vni: Vni,
    endpoint: Option<UnderlayKind>,
    tuple: Option<Tuple>,
}

fn subject(tables: &Tables, port: PortId, frame: &[u8]) -> Option<Subject> {
    let found = tables.port(port)?;
    match found.kind {
        PortKind::Machine => {
            let tuple = match cls::from_machine(frame) {
                Ok(FromMachine::Overlay(overlay)) => shown(&overlay),
                Ok(_) | Err(_) => None,
            };
            Some(Subject {
                machine: Some(port),
                vni: found.interface.as_ref()?.interface.spec.vni,
                endpoint: None,
                tuple,
            })
        }
        PortKind::Uplink(_) => {
            let tunnelled = ipip::decap(tables, frame).ok()?;
            let endpoint = tunnelled.endpoint;
            let overlay = cls::from_tunnel(tunnelled.protocol, tunnelled.inner);
            let has_machine = endpoint.kind != UnderlayKind::LoadBalancer;
            Some(Subject {
                machine: has_machine.then_some(endpoint.port),
                vni: endpoint.vni,
                endpoint: Some(endpoint.kind),
                tuple: overlay.ok().and_then(|overlay| shown(&overlay)),
            })
        }
    }
}

/// Route and filters of a packet, as the stages look them up.
fn add_facts(
    tables: &Tables,
    port: PortId,
    subject: &Subject,
    tuple: Tuple,
    explanation: &mut Explanation,
) {
    let destination = match (&explanation.flow, subject.endpoint) {
        (Some(flow), _) if flow.leaves.destination.is_ipv4() == tuple.destination.is_ipv4() => {
            flow.leaves.destination
        }
        (_, Some(UnderlayKind::Vip) | None) => virtual_address(tables, subject.vni, &tuple),
        (_, Some(_)) => tuple.destination,
    };
    explanation.route = route(tables, subject.vni, destination);
    let seen = FilterPacket::of(&Tuple {
        destination,
        ..tuple
    });
    let filter = |port, direction| filter_fact(tables, port, direction, &seen);
    if subject.endpoint.is_none() {
        explanation.egress = filter(port, RuleDirection::Egress);
    }
    let receiver = match (explanation.verdict, subject.endpoint, explanation.route) {
        (Verdict::Transmit(port), _, _) => Some(port),
        (
            _,
            Some(UnderlayKind::Interface | UnderlayKind::AliasPrefix | UnderlayKind::LbPrefix),
            _,
        ) => subject.machine,
        (_, _, Some(route)) => match route.target {
            RouteTarget::Own(port) | RouteTarget::Alias(port) => Some(port),
            RouteTarget::Remote { .. } => None,
        },
        (_, _, None) => None,
    };
    explanation.ingress = receiver.and_then(|port| filter(port, RuleDirection::Ingress));
}

/// The machine behind an address that stands for it alone, else the address itself.
fn virtual_address(tables: &Tables, vni: Vni, tuple: &Tuple) -> IpAddr {
    let translated = match tuple.destination {
        IpAddr::V4(address) => tables.services.translated(vni, address),
        IpAddr::V6(_) => None,
    };
    let vip = translated.and_then(|translated| translated.vip);
    vip.map_or(tuple.destination, |(_, machine)| IpAddr::V4(machine))
}

fn route(tables: &Tables, vni: Vni, destination: IpAddr) -> Option<RouteFact> {
    let networks = tables.vnis.iter().flatten();
    let routes = networks.into_iter().find(|routes| routes.vni == vni)?;
    let (length, target) = routes.lookup(destination)?;
    Some(RouteFact {
        vni,
        prefix: Prefix::new(destination, length)?,
        target: match target {
            Target::Own(port) => RouteTarget::Own(port),
            Target::Alias(port) => RouteTarget::Alias(port),
            Target::Remote { underlay, vni } => RouteTarget::Remote {
                next_hop: underlay,
                vni,
            },
        },
    })
}

fn filter_fact(
    tables: &Tables,
    port: PortId,
    direction: RuleDirection,
    packet: &FilterPacket,
) -> Option<FilterFact> {
    let attached = tables.port(port)?.interface.as_ref()?;
    let firewall: &Firewall = &attached.services.firewall;
    let (filter, rule) = firewall.explain(direction, packet);
    Some(FilterFact {
        port,
        rules: firewall.count(direction),
        rule: rule.map(|rule| rule.id.clone()),
        accepts: filter == Filter::Accept,
    })
}
