//! Telling somebody what becomes of packets, one by one.
//!
//! A packet thread without a tracer pays one test per burst. With one it decides packets singly and compares the counters of stages before and
//! after, so what is told is what happened, not what a second implementation believes. The way to the listener is a bounded queue; what does not
//! fit is left out and counted, so a slow listener delays no packet.

use dataplane::{Counters, FlowTuple, Node, PortId, Verdict};
use net::{Ethernet, Icmp, Icmpv6, Ipv4, Ipv6, Tcp, Udp, ethernet, icmp, protocol};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;
use tokio::sync::mpsc;

/// Told packets that wait for the listener.
pub const TRACED_MAX: usize = 1_024;
/// Most bytes of a frame that are told.
pub const FRAME_BYTES_MAX: usize = 9_216;

/// Which packets are told. `None` and the empty list match everything.
#[derive(Clone, Debug, Default)]
pub struct TraceFilter {
    /// Machine port that a packet comes from or goes to, and the underlay addresses that stand for it.
    pub machine: Option<(PortId, Vec<Ipv6Addr>)>,
    /// Source or destination, inside the tunnel.
    pub address: Option<IpAddr>,
    /// Source or destination port, or echo identifier.
    pub port: Option<u16>,
    /// IP protocol.
    pub protocol: Option<u8>,
    /// Only what is discarded.
    pub drops: bool,
    /// Bytes of each frame that are told.
    pub frame_bytes: usize,
}

/// A packet and what became of it.
#[derive(Clone, Debug)]
pub struct Traced {
    /// When it was decided.
    pub time: SystemTime,
    /// Port it came in on.
    pub ingress: PortId,
    /// What it showed, if it is an IP packet.
    pub shows: Option<FlowTuple>,
    /// Where its tunnel ended.
    pub underlay: Option<Ipv6Addr>,
    /// Length of the frame, and its beginning.
    pub length: usize,
    /// As it came in.
    pub frame: Vec<u8>,
    /// Stages it passed.
    pub stages: Vec<Node>,
    /// The outcome.
    pub verdict: Verdict,
    /// Length afterwards.
    pub length_after: usize,
    /// As it leaves; empty if it is discarded.
    pub frame_after: Vec<u8>,
}

/// What is known of a packet before it is decided.
pub struct Seen {
    traced: Traced,
    nodes: [u64; Node::IN_ORDER.len()],
    is_of_machine: bool,
}

/// Tells a listener about packets. Shared by all packet threads.
#[derive(Debug)]
pub struct Tracer {
    filter: TraceFilter,
    listener: mpsc::Sender<Traced>,
    lost: AtomicU64,
}

impl Tracer {
    /// A tracer and what its listener gets.
    #[must_use]
    pub fn new(filter: TraceFilter) -> (Tracer, mpsc::Receiver<Traced>) {
        let (listener, traced) = mpsc::channel(TRACED_MAX);
        let lost = AtomicU64::new(0);
        let tracer = Tracer {
            filter,
            listener,
            lost,
        };
        (tracer, traced)
    }

    /// Packets left out because the listener did not keep up.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether nobody listens any more.
    pub(super) fn is_over(&self) -> bool {
        self.listener.is_closed()
    }

    /// Looks at a packet before it is decided; `None` if it is certainly not wanted.
    pub(super) fn before(
        &self,
        ingress: PortId,
        frame: &[u8],
        counters: &Counters,
    ) -> Option<Seen> {
        let shown = show(frame);
        let tuple = shown.map(|shown| shown.tuple);
        let underlay = shown.and_then(|shown| shown.underlay);
        if !self.matches(tuple) {
            return None;
        }
        let is_of_machine = match &self.filter.machine {
            Some((port, addresses)) => {
                *port == ingress || underlay.is_some_and(|underlay| addresses.contains(&underlay))
            }
            None => true,
        };
        let traced = Traced {
            time: SystemTime::now(),
            ingress,
            shows: tuple,
            underlay,
            length: frame.len(),
            frame: self.cut(frame),
            stages: Vec::new(),
            verdict: Verdict::Drop(dataplane::DropReason::Bug),
            length_after: 0,
            frame_after: Vec::new(),
        };
        Some(Seen {
            traced,
            nodes: Node::IN_ORDER.map(|node| counters.node(node)),
            is_of_machine,
        })
    }

    /// Tells what became of it.
    pub(super) fn after(&self, seen: Seen, verdict: Verdict, frame: &[u8], counters: &Counters) {
        let Seen {
            mut traced,
            nodes,
            is_of_machine,
        } = seen;
        let (to, is_dropped) = match verdict {
            Verdict::Drop(_) => (None, true),
            Verdict::Transmit(to) | Verdict::Reply(to) => (Some(to), false),
        };
        let goes_there = match (&self.filter.machine, to) {
            (Some((port, _)), Some(to)) => *port == to,
            (Some(_), None) | (None, _) => false,
        };
        if !(is_of_machine || goes_there) || (self.filter.drops && !is_dropped) {
            return;
        }
        let passed = Node::IN_ORDER.into_iter().zip(nodes);
        let passed = passed.filter(|(node, before)| counters.node(*node) != *before);
        traced.stages = passed.map(|(node, _)| node).collect();
        traced.verdict = verdict;
        if !is_dropped {
            (traced.length_after, traced.frame_after) = (frame.len(), self.cut(frame));
        }
        if self.listener.try_send(traced).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn cut(&self, frame: &[u8]) -> Vec<u8> {
        let length = self
            .filter
            .frame_bytes
            .min(FRAME_BYTES_MAX)
            .min(frame.len());
        frame.get(..length).unwrap_or_default().to_vec()
    }

    fn matches(&self, tuple: Option<FlowTuple>) -> bool {
        let TraceFilter {
            machine: _,
            address,
            port,
            protocol,
            drops: _,
            frame_bytes: _,
        } = &self.filter;
        let Some(tuple) = tuple else {
            return address.is_none() && port.is_none() && protocol.is_none();
        };
        let ends = [tuple.source, tuple.destination];
        let ports = [tuple.source_port, tuple.destination_port];
        address.is_none_or(|address| ends.contains(&address))
            && port.is_none_or(|port| ports.contains(&port))
            && protocol.is_none_or(|protocol| protocol == tuple.protocol)
    }
}

/// What a frame shows to somebody who looks on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Of the packet inside the tunnel, if there is one.
    pub tuple: FlowTuple,
    /// Where the tunnel ends.
    pub underlay: Option<Ipv6Addr>,
}

/// Addresses and ports of a frame; `None` if it is no IP packet.
#[must_use]
pub fn show(frame: &[u8]) -> Option<Shown> {
    let frame = Ethernet::new_checked(frame).ok()?;
    let packet = frame.payload();
    match frame.ethertype() {
        ethernet::TYPE_IPV4 => Some(Shown {
            tuple: tuple_v4(packet)?,
            underlay: None,
        }),
        ethernet::TYPE_IPV6 => {
            let outer = Ipv6::new_checked(packet).ok()?;
            let inner = match outer.next_header() {
                protocol::IPV4 => tuple_v4(outer.payload()),
                protocol::IPV6 => tuple_v6(outer.payload()),
                _ => None,
            };
            Some(match inner {
                Some(tuple) => Shown {
                    tuple,
                    underlay: Some(outer.destination()),
                },
                None => Shown {
                    tuple: tuple_v6(packet)?,
                    underlay: None,
                },
            })
        }
        _ => None,
    }
}

fn tuple_v4(packet: &[u8]) -> Option<FlowTuple> {
    let ip = Ipv4::new_checked(packet).ok()?;
    let ends = (IpAddr::V4(ip.source()), IpAddr::V4(ip.destination()));
    let upper = if ip.is_fragment() { &[] } else { ip.payload() };
    Some(with_ports(ends, ip.protocol(), upper))
}

fn tuple_v6(packet: &[u8]) -> Option<FlowTuple> {
    let ip = Ipv6::new_checked(packet).ok()?;
    let ends = (IpAddr::V6(ip.source()), IpAddr::V6(ip.destination()));
    Some(match ip.upper() {
        Ok(net::ipv6::Upper::Transport {
            protocol, bytes, ..
        }) => with_ports(ends, protocol, bytes),
        Ok(_) | Err(_) => with_ports(ends, ip.next_header(), &[]),
    })
}

fn with_ports((source, destination): (IpAddr, IpAddr), protocol: u8, upper: &[u8]) -> FlowTuple {
    let ports = match protocol {
        protocol::TCP => Tcp::new_checked(upper)
            .map(|tcp| (tcp.source(), tcp.destination()))
            .ok(),
        protocol::UDP => Udp::new_checked(upper)
            .map(|udp| (udp.source(), udp.destination()))
            .ok(),
        protocol::ICMP => Icmp::new_checked(upper)
            .ok()
            .filter(|icmp| matches!(icmp.kind(), icmp::ECHO_REQUEST | icmp::ECHO_REPLY))
            .map(|icmp| (icmp.identifier(), icmp.identifier())),
        protocol::ICMPV6 => Icmpv6::new_checked(upper)
            .ok()
            .filter(|icmp| matches!(icmp.kind(), icmp::V6_ECHO_REQUEST | icmp::V6_ECHO_REPLY))
            .map(|icmp| (icmp.identifier(), icmp.identifier())),
        _ => None,
    };
    let (source_port, destination_port) = ports.unwrap_or_default();
    FlowTuple {
        source,
        destination,
        protocol,
        source_port,
        destination_port,
    }
}
