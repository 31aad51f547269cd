//! Tells a machine that its packet has no hops left, or that it does not fit through the tunnel: "fragmentation needed" (RFC 1191 §4) and "packet too big" (RFC 4443
//! §3.2). And tells who sends to a machine through NAT64 that his packet would be too long for it as IPv6.
//!
//! The overlay never fragments, so an IPv4 packet that would allow it is answered too: silence would be a black hole.

use crate::cls::{L4, Overlay};
use crate::flow::{Action, Coarse, Entry};
use crate::graph::{Context, Source};
use crate::nat64::{GROWTH, GROWTH_MAX};
use crate::packet::Packet;
use crate::route_lookup::check_forwardable;
use crate::stages::relay::way_back;
use crate::verdict::{DropReason, Verdict};
use crate::{GATEWAY_IPV4, GATEWAY_IPV6};
use core::net::IpAddr;
use net::Ethernet;
use net::ethernet::{self, HEADER_LEN as ETHERNET_LEN};
use net::icmp::{ErrorMessage, QUOTE_MAX};
use net::ipv4;

/// ICMP destination unreachable, code "fragmentation needed".
const V4: [u8; 2] = [3, 4];
/// ICMPv6 packet too big.
const V6: [u8; 2] = [2, 0];
/// Time exceeded in transit.
const EXCEEDED_V4: [u8; 2] = [11, 0];
const EXCEEDED_V6: [u8; 2] = [3, 0];
const HOP_LIMIT: u8 = 64;
/// Smallest MTU of IPv6 (RFC 8200 §5), which devices of machines have at least.
const IPV6_MTU_MIN: u16 = 1280;
/// In byte 6 of an IPv4 header.
const DONT_FRAGMENT: u8 = 0x40;
/// Errors that can be sent at once, and about how many per second afterwards: one per [`Coarse`] unit.
const ERRORS_MAX: u32 = 64;

/// Keeps errors from being more than a trickle (RFC 4443 §2.4 (f)).
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorBudget {
    left: u32,
    filled: Coarse,
}

impl ErrorBudget {
    pub(crate) const FULL: ErrorBudget = ErrorBudget {
        left: ERRORS_MAX,
        filled: Coarse(0),
    };

    /// Whether one more error may be sent.
    pub(crate) fn take(&mut self, now: Coarse) -> bool {
        self.left = self
            .left
            .saturating_add(now.since(self.filled))
            .min(ERRORS_MAX);
        self.filled = now;
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

/// Turns a machine's packet, whose IP packet is larger than `mtu`, into the answer to it.
pub(crate) fn answer(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
    overlay: &Overlay,
    mtu: u16,
) -> Result<Verdict, DropReason> {
    let too_big = Complaint {
        v4: V4,
        v6: V6,
        parameter: u32::from(mtu),
        reason: DropReason::PacketTooBig,
    };
    complain(cx, packet, overlay, &too_big)
}

/// Turns a machine's packet that has no hops left into the answer to it.
pub(crate) fn answer_exceeded(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
    overlay: &Overlay,
) -> Result<Verdict, DropReason> {
    // No error about what is for a group, nor to whom nobody can answer (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)).
    check_forwardable(overlay.source, overlay.destination)?;
    let exceeded = Complaint {
        v4: EXCEEDED_V4,
        v6: EXCEEDED_V6,
        parameter: 0,
        reason: DropReason::HopsExceeded,
    };
    complain(cx, packet, overlay, &exceeded)
}

/// An ICMP error by family, and what is counted where none is sent.
#[derive(Clone, Copy, Debug)]
struct Complaint {
    v4: [u8; 2],
    v6: [u8; 2],
    parameter: u32,
    reason: DropReason,
}

/// What the sender of an IPv4 packet is told if it becomes longer than its machine's MTU as IPv6.
pub(crate) fn outgrown(
    cx: &Context<'_>,
    entry: &Entry,
    packet: &dyn Packet,
    (overlay, ip_offset): (&Overlay, usize),
) -> Option<u16> {
    if overlay.source.is_ipv6() || entry.action != Action::Deliver {
        return None;
    }
    let mtu = cx.tables.settings.dhcp.mtu.max(IPV6_MTU_MIN);
    too_long_as_v6(mtu, packet, (overlay, ip_offset))
}

/// The MTU that the sender of an IPv4 packet is told if the packet does not fit a link of `mtu` as IPv6.
pub(crate) fn too_long_as_v6(
    mtu: u16,
    packet: &dyn Packet,
    (overlay, ip_offset): (&Overlay, usize),
) -> Option<u16> {
    let added = match overlay.piece {
        Some(_) => GROWTH_MAX,
        None => GROWTH,
    };
    // Options are not carried over.
    let options = overlay.layout.transport.saturating_sub(ipv4::HEADER_LEN);
    let fits = mtu
        .saturating_sub(added as u16)
        .saturating_add(options as u16);
    if overlay.length <= fits || packet.is_cut_to(ip_offset, fits) {
        return None;
    }
    let flags = packet.frame().get(ip_offset + 6)?;
    // Who may cut the packet will, so what is told has to hold for pieces (RFC 7915 §4.1).
    let is_whole = overlay.piece.is_none() && flags & DONT_FRAGMENT != 0;
    let told = if is_whole { GROWTH } else { GROWTH_MAX };
    Some(mtu.saturating_sub(told as u16))
}

/// Turns a packet from the fabric, whose IP packet begins `ip_offset` bytes into the frame and is too long for the machine it is for, into the
/// answer to who sent it: in the name of the address it was sent to, by the way it came.
pub(crate) fn answer_sender(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
    overlay: &Overlay,
    (ip_offset, mtu): (usize, u16),
) -> Result<Verdict, DropReason> {
    let too_big = DropReason::PacketTooBig;
    if !is_plain(overlay) || !cx.errors.take(cx.now) {
        return Err(too_big);
    }
    let (port, mut header) = way_back(cx, packet.frame(), overlay)?;
    let [kind, code] = match overlay.source {
        IpAddr::V4(_) => V4,
        IpAddr::V6(_) => V6,
    };
    let message = ErrorMessage {
        source: overlay.destination,
        destination: overlay.source,
        kind,
        code,
        parameter: u32::from(mtu),
        ttl: HOP_LIMIT,
    };
    let length = message.packet_len(message.quote_len(usize::from(overlay.length)));
    [header[18], header[19]] = (length as u16).to_be_bytes();
    write(packet, (overlay, ip_offset), &message, header, too_big)?;
    Ok(Verdict::Reply(port))
}

/// No error about an error, nor about a later fragment (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)).
fn is_plain(overlay: &Overlay) -> bool {
    match overlay.l4 {
        Ok(L4::Flow { .. }) => true,
        Ok(L4::Error { .. } | L4::Later) | Err(_) => false,
    }
}

/// Puts a message about a packet, whose IP packet begins `ip_offset` bytes into the frame, in its place, behind a header. `reason`: why it is
/// dropped if that does not fit.
fn write<const FRONT: usize>(
    packet: &mut dyn Packet,
    (overlay, ip_offset): (&Overlay, usize),
    message: &ErrorMessage,
    header: [u8; FRONT],
    reason: DropReason,
) -> Result<(), DropReason> {
    let mut quote = [0; QUOTE_MAX];
    let quoted = message.quote_len(usize::from(overlay.length));
    let quote = quote.get_mut(..quoted).ok_or(DropReason::Bug)?;
    let ip = packet.frame().get(ip_offset..).unwrap_or_default();
    quote.copy_from_slice(ip.get(..quoted).ok_or(DropReason::Bug)?);
    packet.clear();
    if !packet.resize(FRONT + message.packet_len(quoted)) {
        return Err(reason);
    }
    let (front, rest) = packet
        .frame_mut()
        .split_first_chunk_mut::<FRONT>()
        .ok_or(DropReason::Bug)?;
    *front = header;
    let is_written = message.emit(rest, quote);
    is_written.then_some(()).ok_or(DropReason::Bug)
}

fn complain(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
    overlay: &Overlay,
    complaint: &Complaint,
) -> Result<Verdict, DropReason> {
    let is_machine = matches!(cx.source, Source::Machine);
    if !is_machine || !is_plain(overlay) || !cx.errors.take(cx.now) {
        return Err(complaint.reason);
    }
    let port = cx.tables.port(cx.machine).ok_or(DropReason::Bug)?;
    let frame = Ethernet::new_checked(packet.frame()).map_err(|_| DropReason::Runt)?;
    let to_mac = frame.source();
    let (source, [kind, code], ethertype) = match overlay.source {
        IpAddr::V4(_) => (IpAddr::V4(GATEWAY_IPV4), complaint.v4, ethernet::TYPE_IPV4),
        IpAddr::V6(_) => (IpAddr::V6(GATEWAY_IPV6), complaint.v6, ethernet::TYPE_IPV6),
    };
    let message = ErrorMessage {
        source,
        destination: overlay.source,
        kind,
        code,
        parameter: complaint.parameter,
        ttl: HOP_LIMIT,
    };
    let header = ethernet::header(to_mac, port.mac, ethertype);
    let place = (overlay, ETHERNET_LEN);
    write(packet, place, &message, header, complaint.reason)?;
    Ok(Verdict::Reply(cx.machine))
}
