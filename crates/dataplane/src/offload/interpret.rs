//! What a NIC would do: rules, carried out on bytes.
//!
//! The meaning of patterns and actions is taken from [`super::rule`] and the RFCs, not from the engine: headers are found by walking the packet, and
//! checksums are added up afresh.

use super::rule::{Action, Ipv4Match, Ipv6Match, Item, Rule};
use crate::verdict::PortId;
use core::net::Ipv6Addr;

const ETHERNET: usize = 14;
const IPV6: usize = 40;

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The NIC sends it out of a port.
    Port(PortId, Vec<u8>),
    /// Software gets it as it is.
    Software,
}

/// The rule among `rules` that counts for a frame that came in on `port`: its place.
#[must_use]
pub fn matching<'r>(
    rules: impl IntoIterator<Item = &'r Rule>,
    port: PortId,
    frame: &[u8],
) -> Option<usize> {
    let numbered = rules.into_iter().enumerate();
    let fitting = numbered.filter(|(_, rule)| rule.port == port && fits(&rule.pattern, frame));
    fitting
        .min_by_key(|(_, rule)| rule.priority)
        .map(|(place, _)| place)
}

/// Carries out the actions of a rule on a frame that matches it.
#[must_use]
pub fn carry_out(rule: &Rule, frame: &[u8]) -> Outcome {
    let mut frame = frame.to_vec();
    for action in &rule.actions {
        match action {
            Action::RawDecap(length) => {
                frame.drain(..(*length).min(frame.len()));
            }
            Action::RawEncap(header) => encap(&mut frame, header),
            Action::SetDestinationMac(mac) => put(&mut frame, 0, &mac.0),
            Action::SetSourceMac(mac) => put(&mut frame, 6, &mac.0),
            Action::SetIpv4Source(address) => put(&mut frame, ETHERNET + 12, &address.octets()),
            Action::SetIpv4Destination(address) => {
                put(&mut frame, ETHERNET + 16, &address.octets());
            }
            Action::SetIpv6Source(address) => put(&mut frame, ETHERNET + 8, &address.octets()),
            Action::SetIpv6Destination(address) => {
                put(&mut frame, ETHERNET + 24, &address.octets());
            }
            Action::SetSourcePort(port) => set_port(&mut frame, 0, *port),
            Action::SetDestinationPort(port) => set_port(&mut frame, 2, *port),
            Action::SetTtl(value) => {
                let place = ttl_place(&frame);
                put(&mut frame, place, &[*value]);
            }
            Action::DecrementTtl => {
                let place = ttl_place(&frame);
                let value = byte(&frame, place).saturating_sub(1);
                put(&mut frame, place, &[value]);
            }
            Action::Count | Action::Age { .. } => {}
            Action::Software => return Outcome::Software,
            Action::Port(port) => return Outcome::Port(*port, frame),
        }
        if changes_sums(action) {
            renew_sums(&mut frame);
        }
    }
    Outcome::Software
}

fn changes_sums(action: &Action) -> bool {
    matches!(
        action,
        Action::SetIpv4Source(_)
            | Action::SetIpv4Destination(_)
            | Action::SetSourcePort(_)
            | Action::SetDestinationPort(_)
            | Action::SetTtl(_)
            | Action::DecrementTtl
    )
}

fn byte(frame: &[u8], place: usize) -> u8 {
    frame.get(place).copied().unwrap_or(0)
}

fn word(frame: &[u8], place: usize) -> u16 {
    u16::from_be_bytes([byte(frame, place), byte(frame, place + 1)])
}

fn put(frame: &mut [u8], place: usize, bytes: &[u8]) {
    if let Some(room) = frame.get_mut(place..place + bytes.len()) {
        room.copy_from_slice(bytes);
    }
}

fn is_ipv4(frame: &[u8]) -> bool {
    word(frame, 12) == 0x0800
}

fn ttl_place(frame: &[u8]) -> usize {
    ETHERNET + if is_ipv4(frame) { 8 } else { 7 }
}

fn transport_place(frame: &[u8]) -> usize {
    ETHERNET + if is_ipv4(frame) { 20 } else { IPV6 }
}

fn set_port(frame: &mut [u8], offset: usize, port: u16) {
    let place = transport_place(frame) + offset;
    put(frame, place, &port.to_be_bytes());
}

fn encap(frame: &mut Vec<u8>, header: &[u8]) {
    let inner = frame.len();
    frame.splice(0..0, header.iter().copied());
    if header.len() == ETHERNET + IPV6 {
        let length = u16::try_from(inner).unwrap_or(u16::MAX);
        put(frame, ETHERNET + 4, &length.to_be_bytes());
    }
}

/// The Internet checksum over parts, each of which but the last has an even length (RFC 1071).
fn sum(parts: &[&[u8]]) -> u16 {
    let mut total: u64 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            let high = pair.first().copied().unwrap_or(0);
            total += u64::from(high) << 8 | u64::from(low);
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

/// Adds up the checksums of the outermost IPv4 header and of what follows it. IPv6 has none of its own, and its addresses only change
/// where another packet, not a transport header, follows.
fn renew_sums(frame: &mut [u8]) {
    if !is_ipv4(frame) {
        return;
    }
    put(frame, ETHERNET + 10, &[0, 0]);
    let header = sum(&[frame.get(ETHERNET..ETHERNET + 20).unwrap_or_default()]);
    put(frame, ETHERNET + 10, &header.to_be_bytes());
    let place = ETHERNET + 20;
    let field = place
        + match byte(frame, ETHERNET + 9) {
            6 => 16,
            17 if word(frame, place + 6) != 0 => 6,
            _ => return,
        };
    put(frame, field, &[0, 0]);
    let end = ETHERNET + usize::from(word(frame, ETHERNET + 2));
    let segment = frame.get(place..end).unwrap_or_default();
    let length = (segment.len() as u16).to_be_bytes();
    let addresses = frame.get(ETHERNET + 12..ETHERNET + 20).unwrap_or_default();
    let protocol = [0, byte(frame, ETHERNET + 9)];
    let mut value = sum(&[addresses, &protocol, &length, segment]);
    if value == 0 && byte(frame, ETHERNET + 9) == 17 {
        value = 0xffff;
    }
    put(frame, field, &value.to_be_bytes());
}

/// Whether the headers of a frame are those of a pattern.
fn fits(pattern: &[Item], frame: &[u8]) -> bool {
    let mut rest = frame;
    for item in pattern {
        let length = match item {
            Item::Ethernet { ethertype } => (word(rest, 12) == *ethertype).then_some(ETHERNET),
            Item::Ipv4(wanted) => fits_ipv4(wanted, rest).then_some(20),
            Item::Ipv6(wanted) => fits_ipv6(wanted, rest).then_some(IPV6),
            Item::Tcp {
                source,
                destination,
            } => {
                let has_ports = word(rest, 0) == *source && word(rest, 2) == *destination;
                // FIN, SYN, RST.
                (has_ports && byte(rest, 13) & 0b111 == 0).then_some(20)
            }
            Item::Udp {
                source,
                destination,
            } => (word(rest, 0) == *source && word(rest, 2) == *destination).then_some(8),
            Item::Echo { kind, identifier } => {
                let is_it = byte(rest, 0) == *kind && byte(rest, 1) == 0;
                (is_it && word(rest, 4) == *identifier).then_some(8)
            }
        };
        let Some(behind) = length.and_then(|length| rest.get(length..)) else {
            return false;
        };
        rest = behind;
    }
    true
}

fn fits_ipv4(wanted: &Ipv4Match, header: &[u8]) -> bool {
    let Ipv4Match {
        source,
        destination,
        protocol,
        ttl,
    } = wanted;
    // Version 4, five words; neither "more fragments" nor an offset.
    byte(header, 0) == 0x45
        && word(header, 6) & 0x3fff == 0
        && byte(header, 9) == *protocol
        && ttl.is_none_or(|ttl| byte(header, 8) == ttl)
        && header.get(12..16) == Some(&source.octets())
        && header.get(16..20) == Some(&destination.octets())
}

fn fits_ipv6(wanted: &Ipv6Match, header: &[u8]) -> bool {
    let Ipv6Match {
        source,
        destination,
        next_header,
        hop_limit,
        unmarked,
    } = wanted;
    let address = |place: usize| {
        let octets = header.get(place..place + 16);
        octets.and_then(|octets| Some(Ipv6Addr::from_octets(octets.try_into().ok()?)))
    };
    let is_under = |(prefix, length): &(Ipv6Addr, u8)| {
        let ignored = 128 - u32::from(*length).min(128);
        address(24).is_some_and(|found| {
            let difference = found.to_bits() ^ prefix.to_bits();
            difference.checked_shr(ignored).unwrap_or(0) == 0
        })
    };
    byte(header, 0) >> 4 == 6
        && next_header.is_none_or(|wanted| byte(header, 6) == wanted)
        && hop_limit.is_none_or(|wanted| byte(header, 7) == wanted)
        && (!unmarked || (word(header, 0), word(header, 2)) == (0x6000, 0))
        && source.is_none_or(|wanted| address(8) == Some(wanted))
        && destination.as_ref().is_none_or(is_under)
}
