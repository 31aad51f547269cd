//! Tells a machine that its packet does not fit through the tunnel: "fragmentation needed" (RFC 1191 §4) and "packet too big" (RFC 4443
//! §3.2).
//!
//! The overlay never fragments, so an IPv4 packet that would allow it is answered too: silence would be a black hole.

use crate::cls::{L4, Overlay};
use crate::flow::Coarse;
use crate::flow::key::Transport;
use crate::graph::{Context, Source};
use crate::packet::Packet;
use crate::verdict::{DropReason, Verdict};
use crate::{GATEWAY_IPV4, GATEWAY_IPV6};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use net::ethernet::{self, HEADER_LEN as ETHERNET_LEN};
use net::{Ethernet, Mac, checksum, ipv4, ipv6, protocol};

/// ICMP destination unreachable, code "fragmentation needed".
const V4: [u8; 2] = [3, 4];
/// ICMPv6 packet too big.
const V6: [u8; 2] = [2, 0];
/// ICMP header with the MTU.
const ICMP_LEN: usize = 8;
/// Longest answers (RFC 1812 §4.3.2.3, RFC 4443 §2.4 (c)).
const ANSWER_V4_MAX: usize = 576;
const ANSWER_V6_MAX: usize = 1_280;
const QUOTE_MAX: usize = ANSWER_V6_MAX - ipv6::HEADER_LEN - ICMP_LEN;
const HOP_LIMIT: u8 = 64;
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
    // No error about an error, nor about a later fragment (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)).
    let is_plain = match overlay.l4 {
        Ok(L4::Flow { tuple, .. }) => tuple.transport != Transport::Fragment,
        Ok(L4::Error { .. }) | Err(_) => false,
    };
    let is_machine = matches!(cx.source, Source::Machine);
    if !is_machine || !is_plain || !cx.errors.take(cx.now) {
        return Err(DropReason::PacketTooBig);
    }
    let port = cx.tables.port(cx.machine).ok_or(DropReason::Bug)?;
    let frame = Ethernet::new_checked(packet.frame()).map_err(|_| DropReason::Runt)?;
    let to_mac = frame.source();
    let mut quote = [0; QUOTE_MAX];
    let header_len = match overlay.source {
        IpAddr::V4(_) => ipv4::HEADER_LEN,
        IpAddr::V6(_) => ipv6::HEADER_LEN,
    };
    let answer_max = match overlay.source {
        IpAddr::V4(_) => ANSWER_V4_MAX,
        IpAddr::V6(_) => ANSWER_V6_MAX,
    };
    let quoted = usize::from(overlay.length).min(answer_max - header_len - ICMP_LEN);
    let quote = quote.get_mut(..quoted).ok_or(DropReason::Bug)?;
    let bytes = frame.payload().get(..quoted).ok_or(DropReason::Bug)?;
    quote.copy_from_slice(bytes);
    packet.clear();
    if !packet.resize(ETHERNET_LEN + header_len + ICMP_LEN + quoted) {
        return Err(DropReason::PacketTooBig);
    }
    let written = match overlay.source {
        IpAddr::V4(to) => write_v4(packet.frame_mut(), (port.mac, to_mac), to, mtu, quote),
        IpAddr::V6(to) => write_v6(packet.frame_mut(), (port.mac, to_mac), to, mtu, quote),
    };
    written.ok_or(DropReason::Bug)?;
    Ok(Verdict::Reply(cx.machine))
}

fn write_v4(
    frame: &mut [u8],
    (from, to): (Mac, Mac),
    machine: Ipv4Addr,
    mtu: u16,
    quote: &[u8],
) -> Option<()> {
    let header = ipv4::Header {
        payload_len: (ICMP_LEN + quote.len()) as u16,
        ttl: HOP_LIMIT,
        protocol: protocol::ICMP,
        source: GATEWAY_IPV4,
        destination: machine,
    };
    let ethernet = ethernet::header(to, from, ethernet::TYPE_IPV4);
    write(frame, &ethernet, &header.emit(), V4, mtu, quote, 0)
}

fn write_v6(
    frame: &mut [u8],
    (from, to): (Mac, Mac),
    machine: Ipv6Addr,
    mtu: u16,
    quote: &[u8],
) -> Option<()> {
    let length = ICMP_LEN + quote.len();
    let header = ipv6::Header {
        payload_len: length as u16,
        next_header: protocol::ICMPV6,
        hop_limit: HOP_LIMIT,
        source: GATEWAY_IPV6,
        destination: machine,
    };
    let ethernet = ethernet::header(to, from, ethernet::TYPE_IPV6);
    let pseudo = checksum::pseudo_v6(GATEWAY_IPV6, machine, protocol::ICMPV6, length as u32);
    write(frame, &ethernet, &header.emit(), V6, mtu, quote, pseudo)
}

/// Writes a frame of exactly the length of its parts.
fn write(
    frame: &mut [u8],
    ethernet: &[u8; ETHERNET_LEN],
    header: &[u8],
    [kind, code]: [u8; 2],
    mtu: u16,
    quote: &[u8],
    pseudo: u32,
) -> Option<()> {
    let (front, rest) = frame.split_first_chunk_mut::<ETHERNET_LEN>()?;
    *front = *ethernet;
    let (front, rest) = rest.split_at_mut_checked(header.len())?;
    front.copy_from_slice(header);
    let (front, body) = rest.split_first_chunk_mut::<ICMP_LEN>()?;
    let [m0, m1] = mtu.to_be_bytes();
    *front = [kind, code, 0, 0, 0, 0, m0, m1];
    let sum = checksum::sum(checksum::sum(pseudo, front), quote);
    [front[2], front[3]] = checksum::finish(sum).to_be_bytes();
    body.get_mut(..quote.len())?.copy_from_slice(quote);
    Some(())
}
