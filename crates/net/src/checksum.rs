//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use core::net::{Ipv4Addr, Ipv6Addr};

/// One's-complement sum of `bytes` as big-endian words on top of `initial`; an odd last byte is padded with zero.
#[must_use]
pub fn sum(initial: u32, bytes: &[u8]) -> u32 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let mut total = u64::from(initial);
    for pair in pairs {
        total += u64::from(u16::from_be_bytes(*pair));
    }
    if let [last] = rest {
        total += u64::from(u16::from_be_bytes([*last, 0]));
    }
    let total = (total & 0xffff_ffff) + (total >> 32);
    fold_to_u32(total)
}

const fn fold_to_u32(total: u64) -> u32 {
    ((total & 0xffff_ffff) + (total >> 32)) as u32
}

/// Folds a sum and complements it: the value for a checksum field.
#[must_use]
pub const fn finish(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The checksum of `bytes`, whose checksum field must hold zero; zero is returned for data with a valid field.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    finish(sum(0, bytes))
}

/// Sum of the IPv4 pseudo header (RFC 9293 §3.1, RFC 768).
#[must_use]
pub fn pseudo_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: u16) -> u32 {
    let start = u32::from(protocol) + u32::from(length);
    sum(sum(start, &source.octets()), &destination.octets())
}

/// Sum of the IPv6 pseudo header (RFC 8200 §8.1).
#[must_use]
pub fn pseudo_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, length: u32) -> u32 {
    let start = u32::from(protocol) + (length >> 16) + (length & 0xffff);
    sum(sum(start, &source.octets()), &destination.octets())
}

/// New field value after one 16-bit word of the covered data changed (RFC 1624 §3, equation 3).
#[must_use]
pub const fn update(field: u16, old: u16, new: u16) -> u16 {
    finish((!field) as u32 + (!old) as u32 + new as u32)
}

/// The value for the checksum field of UDP: like [`finish`], but never zero, which would mean "none" (RFC 768).
#[must_use]
pub const fn udp(sum: u32) -> u16 {
    match finish(sum) {
        0 => 0xffff,
        other => other,
    }
}
