//! TTL and hop limit, if the data plane is told to count as a router: one less per packet, and "time exceeded" (RFC 792, RFC 4443 §3.3) to
//! the machine whose packet has none left. Without the option nobody sees this hop, and an overlay that loops is stopped by the outer
//! hop limit only.

use crate::edit::{Change, set_word, word};
use crate::packet::Packet;

/// Whether an IP packet has hops left for one more router.
#[inline]
pub(crate) fn has_more(ip: &[u8]) -> bool {
    left(ip).is_none_or(|left| left > 1)
}

fn left(ip: &[u8]) -> Option<u8> {
    match ip.first()? >> 4 {
        4 => ip.get(8).copied(),
        _ => ip.get(7).copied(),
    }
}

/// Takes one hop from the IP packet of `length` bytes at the end of a frame.
#[inline]
pub(crate) fn decrement<P: Packet + ?Sized>(packet: &mut P, length: u16) {
    let start = packet.len().saturating_sub(usize::from(length));
    let Some(ip) = packet.frame_mut().get_mut(start..) else {
        return;
    };
    if ip.first().map(|first| first >> 4) == Some(4) {
        if let Some(hops) = word(ip, 8) {
            let mut change = Change::default();
            set_word(ip, 8, hops.wrapping_sub(0x0100), &mut change);
            change.write(ip, 10);
        }
    } else if let Some(hops) = ip.get_mut(7) {
        *hops = hops.wrapping_sub(1);
    }
}
