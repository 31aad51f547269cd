//! Connection tracking: the slow walk of a packet that no cached entry answers, and the TCP state machine.
//!
//! State never causes a drop by itself; it decides how long an idle flow is remembered. Sequence numbers are not checked.

use crate::cls::{L4, Overlay};
use crate::counters::Node;
use crate::flow::adjacency::{AdjacencyTable, Tunnel};
use crate::flow::key::{Keyed, Scope, Tuple};
use crate::flow::table::FlowTable;
use crate::flow::{Action, Entry, NONE, Service};
use crate::fragments::PieceKey;
use crate::graph::{Context, Output, Previous, Source, Walk};
use crate::nat64::{GROWTH, GROWTH_MAX};
use crate::packet::Packet;
use crate::stages::slow::{self, Marks};
use crate::stages::{self, snat};
use crate::tables::Tables;
use crate::time::Instant;
use crate::underlay::UnderlayKind;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::{flow, hops, ipip, mss, pmtu, route_lookup};
use core::net::IpAddr;
use net::tcp::{ACK, FIN, RST, SYN};

/// How far a TCP connection has got, from the control bits of both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum TcpState {
    /// No handshake seen (also: not TCP).
    None,
    /// SYN seen.
    NewSyn,
    /// SYN+ACK of the other side seen.
    NewSynAck,
    /// Handshake complete; remembered for a day.
    Established,
    /// One side has closed an established connection.
    FinWait,
    /// Reset, or closed by both.
    RstFin,
}

/// Whether a segment can change the state: any SYN, FIN or RST, and what may complete a handshake.
#[inline(always)]
pub(crate) const fn may_advance(entry: &Entry, flags: u8) -> bool {
    flags & (SYN | FIN | RST) | entry.flags & Entry::TRACKED != 0
}

/// Advances the state by one segment that `entry` answers. Bits other than SYN, ACK, FIN, RST (ECN, PSH, URG) do not matter.
#[cold]
#[inline(never)]
pub(crate) fn advance(flows: &mut FlowTable, entry: u32, flags: u8) {
    let side = (entry & 1) as u8;
    let Some(record) = flows.cold_mut(entry) else {
        return;
    };
    let from_opener = side == record.syn_side;
    let next = match flags & (SYN | ACK | FIN | RST) {
        bits if bits & RST != 0 => TcpState::RstFin,
        bits if bits & FIN != 0 => match record.tcp {
            TcpState::Established => TcpState::FinWait,
            TcpState::None
            | TcpState::NewSyn
            | TcpState::NewSynAck
            | TcpState::FinWait
            | TcpState::RstFin => TcpState::RstFin,
        },
        SYN if matches!(record.tcp, TcpState::None | TcpState::RstFin) => {
            record.syn_side = side;
            TcpState::NewSyn
        }
        bits if bits == SYN | ACK && !from_opener && record.tcp == TcpState::NewSyn => {
            TcpState::NewSynAck
        }
        ACK if from_opener && record.tcp == TcpState::NewSynAck => TcpState::Established,
        _ => record.tcp,
    };
    record.tcp = next;
    let waits_for_ack = next == TcpState::NewSynAck;
    for entry in [entry & !1, entry | 1] {
        if let Some(entry) = flows.entry_mut(entry) {
            entry.flags &= !Entry::TRACKED;
            entry.flags |= if waits_for_ack { Entry::TRACKED } else { 0 };
        }
    }
}

/// What a search for a packet's connection found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lookup {
    pub keyed: Keyed,
    /// The entry, if there is one.
    pub found: Option<u32>,
}

/// Finds or begins the connection of a packet, decides it, and sends the packet accordingly.
///
/// Nothing is remembered of packets that no stage lets pass, so refused traffic cannot fill the table.
pub(crate) fn track(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
    overlay: &Overlay,
    ip_offset: usize,
) -> Result<Verdict, DropReason> {
    cx.counters.count(Node::Conntrack);
    let l4 = overlay.l4?;
    let ip = packet.frame().get(ip_offset..).unwrap_or_default();
    if cx.tables.settings.decrement_hops && !hops::has_more(ip) {
        return pmtu::answer_exceeded(cx, packet, overlay);
    }
    match l4 {
        L4::Flow { tuple, tcp_flags } => {
            let number = connection(cx, &tuple)?;
            if let Some(flags) = tcp_flags {
                advance(cx.flows, number, flags);
            }
            let sent = forward(cx, packet, overlay, ip_offset, (number, tuple))?;
            if overlay.piece.is_some_and(|piece| piece.has_more)
                && let (Verdict::Transmit(_), Some(key)) = (sent, piece_key(cx, overlay))
            {
                let displaced = cx.fragments.remember(key, tuple, cx.now);
                cx.counters.fragments_displaced += u64::from(displaced);
            }
            Ok(sent)
        }
        L4::Later => {
            let key = piece_key(cx, overlay).ok_or(DropReason::Bug)?;
            let known = cx.fragments.find(&key, cx.now);
            let tuple = known.ok_or(DropReason::FragmentUnknown)?;
            let number = connection(cx, &tuple)?;
            forward(cx, packet, overlay, ip_offset, (number, tuple))
        }
        L4::Error { quoted } => error(cx, packet, overlay, &quoted, ip_offset),
    }
}

/// What all pieces of a fragmented packet show; `None` if it is whole.
fn piece_key(cx: &Context<'_>, overlay: &Overlay) -> Option<PieceKey> {
    overlay.piece_key(cx.scope().place(cx.ingress()))
}

/// Sends a packet of a connection, which is decided.
pub(crate) fn forward(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
    overlay: &Overlay,
    ip_offset: usize,
    (number, tuple): (u32, Tuple),
) -> Result<Verdict, DropReason> {
    let entry = cx.flows.entry_mut(number).ok_or(DropReason::Bug)?;
    entry.last_seen = cx.now;
    let entry = *entry;
    slow::admit(
        cx,
        entry.flags,
        overlay.length,
        Instant::from_coarse(cx.now),
    )?;
    clamp(cx, &entry, packet, overlay, ip_offset);
    let place = (ip_offset, overlay.length, overlay.layout);
    let fits = inner_max(cx, &entry);
    if !entry.has(Entry::FAMILY) {
        return match (send(cx, &entry, packet, place), fits) {
            (Err(DropReason::PacketTooBig), Some(mtu)) => pmtu::answer(cx, packet, overlay, mtu),
            (sent, _) => sent,
        };
    }
    // What was IPv6 becomes shorter by the difference of the headers; what is told holds for whole packets and for pieces.
    let (shrinks, told) = match (overlay.source.is_ipv6(), overlay.piece) {
        (true, Some(_)) => (GROWTH_MAX as u16, GROWTH as u16),
        (true, None) => (GROWTH as u16, GROWTH as u16),
        (false, _) => (0, 0),
    };
    if let Some(mtu) = fits
        && let longest = mtu.saturating_add(shrinks)
        && overlay.length > longest
        && !packet.is_cut_to(ip_offset, longest)
    {
        return pmtu::answer(cx, packet, overlay, mtu.saturating_add(told));
    }
    if let Some(mtu) = pmtu::outgrown(cx, &entry, packet, (overlay, ip_offset)) {
        return pmtu::answer_sender(cx, packet, overlay, (ip_offset, mtu));
    }
    let other = cx.flows.entry(number ^ 1).ok_or(DropReason::Bug)?;
    let (key, to) = (other.key, other.key.tuple().inverted());
    let range = ip_offset..ip_offset + usize::from(overlay.length);
    let range = slow::change_family(packet, range, &tuple, &to)?;
    // The delivery header is of the family that the packet has now: the other entry's.
    let entry = Entry { key, ..entry };
    let length = u16::try_from(range.len()).map_err(|_| DropReason::Bug)?;
    send(cx, &entry, packet, (range.start, length, overlay.layout))
}

/// Tells both ends of a TCP handshake what fits, if that is asked for.
fn clamp(
    cx: &Context<'_>,
    entry: &Entry,
    packet: &mut dyn Packet,
    overlay: &Overlay,
    ip_offset: usize,
) {
    let Ok(L4::Flow {
        tcp_flags: Some(flags),
        ..
    }) = overlay.l4
    else {
        return;
    };
    if flags & mss::flags(cx.tables.settings.mss_clamp) == 0 {
        return;
    }
    let transport = ip_offset + overlay.layout.transport..ip_offset + usize::from(overlay.length);
    if let Some(limit) = mss::limit(cx, entry, overlay.source.is_ipv6())
        && let Some(segment) = packet.frame_mut().get_mut(transport)
    {
        mss::clamp(segment, limit);
    }
}

/// The longest packet that fits the tunnel of an entry, if it has one.
fn inner_max(cx: &Context<'_>, entry: &Entry) -> Option<u16> {
    match entry.action {
        Action::Encap => cx.adjacencies.get(entry.target).map(|to| to.inner_max),
        Action::Undecided | Action::Deliver => None,
    }
}

/// Sends a packet as an entry prescribes.
fn send(
    cx: &mut Context<'_>,
    entry: &Entry,
    packet: &mut dyn Packet,
    place: (usize, u16, flow::rewrite::Layout),
) -> Result<Verdict, DropReason> {
    let (_, length, _) = place;
    let sent = ipip::apply(entry, cx.adjacencies, &cx.tables.ports, packet, place)?;
    if cx.tables.settings.decrement_hops {
        hops::decrement(packet, length);
    }
    cx.counters
        .count_many(Node::IpipEncap, u64::from(entry.action == Action::Encap));
    Ok(Verdict::Transmit(sent))
}

/// The decided entry for a tuple that just came in.
fn connection(cx: &mut Context<'_>, tuple: &Tuple) -> Result<u32, DropReason> {
    let keyed = cx.flows.keyed(cx.scope(), tuple).ok_or(DropReason::Bug)?;
    let found = cx.flows.find(&keyed);
    if let Some(number) = found
        && let Some(entry) = cx.flows.entry(number)
        && entry.ingress == cx.ingress()
        && !slow::is_current(cx, entry)
        && is_owner_attached(cx.tables, cx.flows, number)
    {
        // What comes out differently is decided below.
        cx.keeps(number);
    }
    decide(cx, &Lookup { keyed, found }, tuple)
}

/// The same for a search that is done; whether an entry can be kept has been found out.
pub(crate) fn decide(
    cx: &mut Context<'_>,
    Lookup { keyed, found }: &Lookup,
    tuple: &Tuple,
) -> Result<u32, DropReason> {
    if let Some(entry) = *found {
        let is_live = is_owner_attached(cx.tables, cx.flows, entry);
        let found = cx.flows.entry(entry).ok_or(DropReason::Bug)?;
        let is_current = found.ingress == cx.ingress() && slow::is_current(cx, found);
        if is_live && (is_current || redecide(cx, entry, tuple)?) {
            return Ok(entry);
        }
        // The interface that opened this connection is gone, or it is translated differently now: what follows is a new connection.
        end(cx, entry);
    }
    create(cx, keyed, tuple)
}

fn create(cx: &mut Context<'_>, keyed: &Keyed, tuple: &Tuple) -> Result<u32, DropReason> {
    let mut walk = Walk::new(*tuple);
    stages::process(cx, &mut walk)?;
    let created = remember(cx, keyed, &walk);
    if created.is_err() && matches!(walk.service, Service::Nat | Service::Nat64) {
        let given = (&mut *cx.nat, &mut *cx.journal);
        snat::give_back(given, cx.vni, &walk.tuple, &walk.leaves);
    }
    created
}

/// Makes the entries of a connection that has taken its walk.
pub(crate) fn remember(
    cx: &mut Context<'_>,
    keyed: &Keyed,
    walk: &Walk,
) -> Result<u32, DropReason> {
    let output = walk.output.ok_or(DropReason::Bug)?;
    let (from, to) = (walk.tuple, walk.leaves);
    let scope = answer_scope(cx, &output);
    let is_same = from == to;
    let back = if is_same {
        Some(cx.flows.hasher().answers(&keyed.key, scope))
    } else {
        cx.flows.keyed(scope, &to.inverted())
    };
    let back = back.ok_or(DropReason::Bug)?;
    if let Some(other) = cx.flows.find(&back) {
        // Both cannot be told apart by their answers: the newer one gets them.
        end(cx, other);
    }
    let (action, target) = resolve(cx, &output, &to)?;
    let mut forward = Entry {
        key: keyed.key,
        last_seen: cx.now,
        target,
        ingress: cx.ingress(),
        action,
        ..Entry::FREE
    };
    let mut backward = Entry {
        key: back.key,
        last_seen: cx.now,
        ..Entry::FREE
    };
    let changes_family = from.source.is_ipv4() != to.source.is_ipv4();
    let is_possible = is_same
        || changes_family
        || flow::rewrite::prescribe(&mut forward, &from, &to)
            && flow::rewrite::prescribe(&mut backward, &to.inverted(), &from.inverted());
    if !is_possible {
        release_target(cx.adjacencies, action, target);
        return Err(DropReason::Bug);
    }
    Marks::of(cx, walk).put(&mut forward);
    let entries = [(keyed.place, &forward), (back.place, &backward)];
    let owner = (cx.machine, cx.generation);
    let created = cx.flows.insert(entries, owner, walk.service);
    let Some(number) = created else {
        release_target(cx.adjacencies, action, target);
        return Err(DropReason::FlowTableFull);
    };
    cx.counters.flows_created += 1;
    Ok(number)
}

/// Completes a decision.
fn settle(
    cx: &mut Context<'_>,
    number: u32,
    (action, target): (Action, u32),
    walk: &Walk,
) -> Result<(), DropReason> {
    let (ingress, marks) = (cx.ingress(), Marks::of(cx, walk));
    let entry = cx.flows.entry_mut(number).ok_or(DropReason::Bug)?;
    (entry.action, entry.target) = (action, target);
    entry.ingress = ingress;
    marks.put(entry);
    Ok(())
}

/// Decides an entry anew; false if the connection must begin anew because it would be translated differently, or be answered from the other
/// side of this host.
fn redecide(cx: &mut Context<'_>, number: u32, tuple: &Tuple) -> Result<bool, DropReason> {
    let known = previous(cx, number, tuple).ok_or(DropReason::Bug)?;
    let mut walk = Walk::new(*tuple);
    walk.previous = Some(known);
    if number & 1 == 0 {
        stages::process(cx, &mut walk)?;
        if walk.begin_anew || (walk.leaves, walk.service) != (known.leaves, known.service) {
            return Ok(false);
        }
    } else {
        if !snat::stands(cx, number, (tuple, &known)) {
            return Ok(false);
        }
        walk.leaves = known.leaves;
        route_lookup::process(cx, &mut walk)?;
    }
    let output = walk.output.ok_or(DropReason::Bug)?;
    let answers = cx.flows.entry(number ^ 1).ok_or(DropReason::Bug)?;
    if number & 1 == 0 && answers.key.scope() != answer_scope(cx, &output) {
        return Ok(false);
    }
    let entry = cx.flows.entry(number).ok_or(DropReason::Bug)?;
    let (action, held) = (entry.action, entry.target);
    let resolved = exchange(cx, (action, held), &output, &walk.leaves)?;
    cx.counters.flows_redecided += u64::from(action != Action::Undecided);
    settle(cx, number, resolved, &walk)?;
    Ok(true)
}

/// What a connection was decided to be before, whose entry shows `tuple`.
pub(crate) fn previous(cx: &Context<'_>, number: u32, tuple: &Tuple) -> Option<Previous> {
    let entry = cx.flows.entry(number)?;
    let service = cx.flows.cold(number)?.service;
    let leaves = if entry.has(Entry::TRANSLATED) || service == Service::Nat64 {
        cx.flows.entry(number ^ 1)?.key.tuple().inverted()
    } else {
        *tuple
    };
    let target = match (service, entry.action) {
        (Service::LoadBalancer, Action::Encap) => {
            let adjacency = cx.adjacencies.get(entry.target)?;
            Some(adjacency.destination())
        }
        (Service::LoadBalancer, Action::Deliver) => {
            let attached = cx.attached(PortId(entry.target as u16));
            let served = attached.map(|attached| attached.services.lb_prefixes.iter());
            let address = tuple.destination;
            let found = served.and_then(|mut all| all.find(|(prefix, _)| prefix.contains(address)));
            found.map(|(_, underlay)| *underlay)
        }
        _ => None,
    };
    Some(Previous {
        leaves,
        service,
        target,
    })
}

/// Where answers will come in: where the packets go, but those that only turn round here are answered at the same address.
fn answer_scope(cx: &Context<'_>, output: &Output) -> Scope {
    match (cx.source, output) {
        (_, Output::Deliver(_)) => Scope::machine(cx.vni),
        (Source::Machine, Output::Encap { .. }) => Scope::fabric(cx.vni),
        (Source::Tunnel { endpoint, .. }, Output::Encap { .. }) => endpoint.scope,
    }
}

/// What an entry stores of an output. An adjacency has one reference more afterwards.
fn resolve(
    cx: &mut Context<'_>,
    output: &Output,
    leaves: &Tuple,
) -> Result<(Action, u32), DropReason> {
    exchange(cx, (Action::Undecided, NONE), output, leaves)
}

/// The same in place of what is `held`. If there is no room, nothing changes.
fn exchange(
    cx: &mut Context<'_>,
    (action, held): (Action, u32),
    output: &Output,
    leaves: &Tuple,
) -> Result<(Action, u32), DropReason> {
    match output {
        Output::Deliver(port) => {
            release_target(cx.adjacencies, action, held);
            Ok((Action::Deliver, u32::from(port.0)))
        }
        Output::Encap {
            uplink,
            source,
            destination,
        } => {
            let tunnel = Tunnel {
                uplink: *cx.tables.uplink(*uplink)?,
                is_v6: leaves.destination.is_ipv6(),
                source: *source,
                destination: *destination,
            };
            let index = match action {
                Action::Encap => cx.adjacencies.exchange(held, &tunnel),
                Action::Undecided | Action::Deliver => cx.adjacencies.acquire_tunnel(&tunnel),
            };
            Ok((Action::Encap, index.ok_or(DropReason::AdjacencyTableFull)?))
        }
    }
}

fn release_target(adjacencies: &mut AdjacencyTable, action: Action, target: u32) {
    match action {
        Action::Encap => adjacencies.release(target),
        Action::Undecided | Action::Deliver => {}
    }
}

/// Gives back what an entry holds.
pub(crate) fn release(adjacencies: &mut AdjacencyTable, entry: &Entry) {
    release_target(adjacencies, entry.action, entry.target);
}

/// Ends a connection before its time.
fn end(cx: &mut Context<'_>, number: u32) {
    let (forward, backward) = (number & !1, number | 1);
    if let (Some(one), Some(two), Some(record)) = (
        cx.flows.entry(forward),
        cx.flows.entry(backward),
        cx.flows.cold(forward),
    ) {
        snat::end((cx.nat, cx.journal), [one, two], record.service);
        release(cx.adjacencies, one);
        release(cx.adjacencies, two);
    }
    cx.flows.forget(number);
}

/// Sends an ICMP error about a packet of a tracked connection.
///
/// The error travels like the answers to the quoted packet, which was sent by the one who gets the error (RFC 5508 §4: match the embedded
/// packet), and the quotation is translated like they are. The host of a load balancer does not remember connections for long, so there the
/// quotation alone decides.
fn error(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
    overlay: &Overlay,
    quoted: &Tuple,
    ip_offset: usize,
) -> Result<Verdict, DropReason> {
    route_lookup::check_forwardable(overlay.source, overlay.destination)?;
    let from = quoted.inverted();
    if quoted.source != overlay.destination {
        return Err(DropReason::IcmpUnrelated);
    }
    let keyed = cx.flows.keyed(cx.scope(), &from);
    let keyed = keyed.ok_or(DropReason::IcmpUnrelated)?;
    let known = cx.flows.find(&keyed);
    let mut place = ip_offset..ip_offset + usize::from(overlay.length);
    let mut walk = Walk::new(from);
    if is_balanced(cx) {
        walk.previous = known.and_then(|number| previous(cx, number, &from));
        stages::balance(cx, &mut walk)?;
    } else if belongs_elsewhere(cx, &from, known) {
        stages::dnat(cx, &mut walk)?;
    } else {
        let known = known.ok_or(DropReason::IcmpUnrelated)?;
        let other = cx.flows.entry(known ^ 1).ok_or(DropReason::Bug)?;
        let to = other.key.tuple().inverted();
        walk.tuple.source = overlay.source;
        let changes_family = from.source.is_ipv4() != to.source.is_ipv4();
        if !(changes_family && matches!(cx.source, Source::Machine)) {
            walk.leaves.destination = to.destination;
        }
        route_lookup::process(cx, &mut walk)?;
        walk.leaves = to;
        if from != to {
            place = slow::translate_error(packet, place, overlay.source, &from, &to)?;
        }
    }
    let output = walk.output.ok_or(DropReason::Bug)?;
    let (action, target) = resolve(cx, &output, &walk.leaves)?;
    let key = cx.flows.keyed(cx.scope(), &walk.leaves);
    let once = Entry {
        key: key.ok_or(DropReason::Bug)?.key,
        action,
        target,
        ..Entry::FREE
    };
    let length = u16::try_from(place.len()).map_err(|_| DropReason::Bug)?;
    let sent = send(cx, &once, packet, (place.start, length, overlay.layout));
    release(cx.adjacencies, &once);
    sent
}

/// Whether an error from the fabric is about a packet from a NAT port that another host has: it is relayed like answers to that port.
fn belongs_elsewhere(cx: &Context<'_>, from: &Tuple, known: Option<u32>) -> bool {
    let Source::Tunnel { endpoint, .. } = cx.source else {
        return false;
    };
    let IpAddr::V4(address) = from.destination else {
        return false;
    };
    let service = known
        .and_then(|number| cx.flows.cold(number))
        .map(|record| record.service);
    endpoint.kind == UnderlayKind::Nat
        && service.is_none_or(|service| service == Service::NeighbourNat)
        && cx
            .tables
            .services
            .translated(cx.vni, address)
            .is_some_and(|translated| translated.neighbor(from.destination_port).is_some())
}

fn is_balanced(cx: &Context<'_>) -> bool {
    match cx.source {
        Source::Tunnel { endpoint, .. } => endpoint.kind == UnderlayKind::LoadBalancer,
        Source::Machine => false,
    }
}

pub(crate) fn is_owner_attached(tables: &Tables, flows: &FlowTable, entry: u32) -> bool {
    flows.cold(entry).is_some_and(|record| {
        record.owner == 0 || generation_at(tables, record.owner_port) == Some(record.owner)
    })
}

fn generation_at(tables: &Tables, port: PortId) -> Option<u32> {
    Some(tables.port(port)?.interface.as_ref()?.generation)
}
