//! Clamping of the largest segment that TCP peers announce to what fits the tunnel, for networks in which "fragmentation needed" gets
//! lost. Only segments with SYN carry the option (RFC 9293 §3.7.1); its checksum is updated by the difference.

use crate::config::MssClamp;
use crate::edit::{Change, set_word, word};
use crate::flow::{Action, Entry};
use crate::graph::{Context, Source};
use net::{ipv4, ipv6, tcp};

const TCP_HEADER_LEN: usize = 20;
/// Kinds of options: end of list, no operation, maximum segment size.
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT: u8 = 2;
const CHECKSUM: usize = 16;

/// Flags of TCP segments that have to be looked at.
pub(crate) const fn flags(clamp: MssClamp) -> u8 {
    match clamp {
        MssClamp::Off => 0,
        MssClamp::Tunnel | MssClamp::At(_) => tcp::SYN,
    }
}

/// The largest segment for packets that an entry answers; `None` if there is no need.
pub(crate) fn limit(cx: &Context<'_>, entry: &Entry, is_v6: bool) -> Option<u16> {
    let tunnel = match (cx.source, entry.action) {
        (_, Action::Encap) => cx.adjacencies.get(entry.target)?.inner_max,
        (Source::Tunnel { .. }, _) => {
            let uplinks = cx.tables.uplinks.iter().flatten();
            let mtu = uplinks.map(|uplink| uplink.mtu).min()?;
            mtu.saturating_sub(ipv6::HEADER_LEN as u16)
        }
        // Between machines of this host there is no tunnel.
        (Source::Machine, Action::Deliver | Action::Undecided) => return None,
    };
    let headers = TCP_HEADER_LEN
        + if is_v6 {
            ipv6::HEADER_LEN
        } else {
            ipv4::HEADER_LEN
        };
    match cx.tables.settings.mss_clamp {
        MssClamp::Off => None,
        MssClamp::Tunnel => Some(tunnel.saturating_sub(headers as u16)),
        MssClamp::At(limit) => Some(limit),
    }
}

/// Lowers the announced segment size of the TCP segment in `bytes` to `limit`; options that make no sense are left alone.
pub(crate) fn clamp(bytes: &mut [u8], limit: u16) {
    let Some(at) = find(bytes) else {
        return;
    };
    if word(bytes, at).is_none_or(|announced| announced <= limit) {
        return;
    }
    let mut change = Change::default();
    if at.is_multiple_of(2) {
        set_word(bytes, at, limit, &mut change);
    } else if let Some(pair) = bytes.get_mut(at..at + 2) {
        // At an odd offset, the bytes belong to two words of the sum; exchanged, they count the same (RFC 1071 §2 (B)).
        let [high, low] = limit.to_be_bytes();
        let old = [pair.last().copied(), pair.first().copied()].map(Option::unwrap_or_default);
        change.replace(&old, &[low, high]);
        pair.copy_from_slice(&[high, low]);
    }
    change.write(bytes, CHECKSUM);
}

/// Where the value of the option is.
fn find(bytes: &[u8]) -> Option<usize> {
    let end = usize::from(bytes.get(12)? >> 4) * 4;
    let options = bytes.get(..end)?;
    let mut at = TCP_HEADER_LEN;
    while at < end {
        match *options.get(at)? {
            END => return None,
            NO_OPERATION => at += 1,
            kind => {
                let length = usize::from(*options.get(at + 1)?);
                if kind == MAXIMUM_SEGMENT && length == 4 {
                    return (at + 4 <= end).then_some(at + 2);
                }
                // An option is at least its kind and its length.
                at += length.max(2);
            }
        }
    }
    None
}
