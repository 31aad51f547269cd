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
use core::net::IpAddr;
use net::Ethernet;
use net::ethernet::{self, HEADER_LEN as ETHERNET_LEN};
use net::icmp::{ErrorMessage, QUOTE_MAX};

/// ICMP destination unreachable, code "fragmentation needed".
const V4: [u8; 2] = [3, 4];
/// ICMPv6 packet too big.
const V6: [u8; 2] = [2, 0];
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
    let (source, [kind, code], ethertype) = match overlay.source {
        IpAddr::V4(_) => (IpAddr::V4(GATEWAY_IPV4), V4, ethernet::TYPE_IPV4),
        IpAddr::V6(_) => (IpAddr::V6(GATEWAY_IPV6), V6, ethernet::TYPE_IPV6),
    };
    let message = ErrorMessage {
        source,
        destination: overlay.source,
        kind,
        code,
        parameter: u32::from(mtu),
        ttl: HOP_LIMIT,
    };
    let mut quote = [0; QUOTE_MAX];
    let quoted = message.quote_len(usize::from(overlay.length));
    let quote = quote.get_mut(..quoted).ok_or(DropReason::Bug)?;
    let bytes = frame.payload().get(..quoted).ok_or(DropReason::Bug)?;
    quote.copy_from_slice(bytes);
    packet.clear();
    if !packet.resize(ETHERNET_LEN + message.packet_len(quoted)) {
        return Err(DropReason::PacketTooBig);
    }
    let (front, rest) = packet
        .frame_mut()
        .split_first_chunk_mut::<ETHERNET_LEN>()
        .ok_or(DropReason::Bug)?;
    *front = ethernet::header(to_mac, port.mac, ethertype);
    if !message.emit(rest, quote) {
        return Err(DropReason::Bug);
    }
    Ok(Verdict::Reply(cx.machine))
}
