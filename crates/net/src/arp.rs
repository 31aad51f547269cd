//! ARP for IPv4 over Ethernet (RFC 826).

use crate::{Mac, Malformed};
use core::net::Ipv4Addr;

/// Length of the only supported form.
pub const LEN: usize = 28;
/// Opcode "request".
pub const REQUEST: u16 = 1;
/// Opcode "reply".
pub const REPLY: u16 = 2;

/// A well-formed Ethernet/IPv4 ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 request, 2 reply; others exist and are passed through.
    pub opcode: u16,
    /// Hardware address of the sender.
    pub sender_mac: Mac,
    /// Protocol address of the sender (0.0.0.0 in a probe, RFC 5227 §1.1).
    pub sender_ip: Ipv4Addr,
    /// Hardware address of the target, zero in requests.
    pub target_mac: Mac,
    /// Protocol address asked for.
    pub target_ip: Ipv4Addr,
}

impl Arp {
    /// Hardware type Ethernet, protocol IPv4, address lengths 6 and 4.
    const FIXED: [u8; 6] = [0, 1, 8, 0, 6, 4];

    /// Parses the payload of a frame; trailing padding is ignored.
    pub fn new_checked(bytes: &[u8]) -> Result<Arp, Malformed> {
        let packet: &[u8; LEN] = bytes.first_chunk().ok_or(Malformed::Truncated)?;
        let (fixed, rest) = packet
            .split_first_chunk::<6>()
            .ok_or(Malformed::Truncated)?;
        if *fixed != Self::FIXED {
            return Err(Malformed::Version);
        }
        let rest: &[u8; 22] = rest.first_chunk().ok_or(Malformed::Truncated)?;
        let [
            o0,
            o1,
            a,
            b,
            c,
            d,
            e,
            f,
            s0,
            s1,
            s2,
            s3,
            g,
            h,
            i,
            j,
            k,
            l,
            t0,
            t1,
            t2,
            t3,
        ] = *rest;
        Ok(Arp {
            opcode: u16::from_be_bytes([o0, o1]),
            sender_mac: Mac([a, b, c, d, e, f]),
            sender_ip: Ipv4Addr::new(s0, s1, s2, s3),
            target_mac: Mac([g, h, i, j, k, l]),
            target_ip: Ipv4Addr::new(t0, t1, t2, t3),
        })
    }

    /// The wire form.
    #[must_use]
    pub const fn emit(&self) -> [u8; LEN] {
        let Arp {
            opcode,
            sender_mac,
            sender_ip,
            target_mac,
            target_ip,
        } = *self;
        let [f0, f1, f2, f3, f4, f5] = Self::FIXED;
        let [o0, o1] = opcode.to_be_bytes();
        let [a, b, c, d, e, f] = sender_mac.0;
        let [s0, s1, s2, s3] = sender_ip.octets();
        let [g, h, i, j, k, l] = target_mac.0;
        let [t0, t1, t2, t3] = target_ip.octets();
        [
            f0, f1, f2, f3, f4, f5, o0, o1, a, b, c, d, e, f, s0, s1, s2, s3, g, h, i, j, k, l, t0,
            t1, t2, t3,
        ]
    }
}
