//! The lookup3 hash (Bob Jenkins, 2006) exactly as DPDK's `rte_jhash` computes it.
//!
//! Used only where two implementations must agree: the choice of uplink, NAT ports and load-balancer targets. The flow table
//! has its own, faster and keyed hash.

use core::net::IpAddr;

/// Start value of all hashes of the service.
const INITIAL: u32 = 0xfee1_900d;

/// Hash of `key` of any length.
#[must_use]
pub fn jhash(key: &[u8]) -> u32 {
    let start = 0xdead_beef_u32
        .wrapping_add(key.len() as u32)
        .wrapping_add(INITIAL);
    let mut state = [start; 3];
    let mut rest = key;
    while let Some((block, tail)) = rest.split_first_chunk::<12>()
        && !tail.is_empty()
    {
        state = mix(add(state, block));
        rest = tail;
    }
    let mut last = [0; 12];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    let [_, _, c] = finish(add(state, &last));
    c
}

fn add([a, b, c]: [u32; 3], block: &[u8; 12]) -> [u32; 3] {
    let [k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, k10, k11] = *block;
    [
        a.wrapping_add(u32::from_le_bytes([k0, k1, k2, k3])),
        b.wrapping_add(u32::from_le_bytes([k4, k5, k6, k7])),
        c.wrapping_add(u32::from_le_bytes([k8, k9, k10, k11])),
    ]
}

/// One step of the mixing round: `x` is reduced by `y`, blurred with it, and `y` grows by `z`.
fn step(x: u32, y: u32, z: u32, rotate: u32) -> (u32, u32) {
    (x.wrapping_sub(y) ^ y.rotate_left(rotate), y.wrapping_add(z))
}

fn mix([a, b, c]: [u32; 3]) -> [u32; 3] {
    let (a, c) = step(a, c, b, 4);
    let (b, a) = step(b, a, c, 6);
    let (c, b) = step(c, b, a, 8);
    let (a, c) = step(a, c, b, 16);
    let (b, a) = step(b, a, c, 19);
    let (c, b) = step(c, b, a, 4);
    [a, b, c]
}

fn finish([a, b, c]: [u32; 3]) -> [u32; 3] {
    let blur = |x: u32, y: u32, rotate: u32| (x ^ y).wrapping_sub(y.rotate_left(rotate));
    let c = blur(c, b, 14);
    let a = blur(a, c, 11);
    let b = blur(b, a, 25);
    let c = blur(c, b, 16);
    let a = blur(a, c, 4);
    let b = blur(b, a, 14);
    let c = blur(c, b, 24);
    [a, b, c]
}

/// An address inside a hashed key: 16 bytes and a flag for IPv6; IPv4 in host order, little endian, in the first four.
pub(crate) fn address_bytes(address: IpAddr) -> [u8; 17] {
    let mut bytes = [0; 17];
    let (address_part, flag) = bytes.split_at_mut(16);
    match address {
        IpAddr::V4(a) => {
            for (to, from) in address_part.iter_mut().zip(a.to_bits().to_le_bytes()) {
                *to = from;
            }
        }
        IpAddr::V6(a) => {
            address_part.copy_from_slice(&a.octets());
            flag.fill(1);
        }
    }
    bytes
}
