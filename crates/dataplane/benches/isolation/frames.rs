//! Frames that try everything.

use super::region::{BALANCED, EDGE, HOST, Machine, NAT, Policy, TENANTS, VIP, neighbour};
use std::net::{Ipv4Addr, Ipv6Addr};

/// xorshift64*.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u32) -> u32 {
        (((self.next() >> 32) * u64::from(end)) >> 32) as u32
    }

    fn word(&mut self) -> u16 {
        (self.next() >> 40) as u16
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.below(from.len() as u32) as usize).copied()
    }
}

const V4: &[Ipv4Addr] = &[
    Ipv4Addr::new(10, 0, 0, 1),
    Ipv4Addr::new(10, 0, 0, 2),
    Ipv4Addr::new(10, 0, 0, 1),
    Ipv4Addr::new(10, 0, 0, 2),
    Ipv4Addr::new(10, 1, 0, 9),
    Ipv4Addr::new(10, 1, 200, 9),
    Ipv4Addr::new(10, 2, 0, 7),
    BALANCED,
    VIP,
    NAT,
    Ipv4Addr::new(8, 8, 8, 8),
    Ipv4Addr::new(127, 0, 0, 1),
    Ipv4Addr::new(169, 254, 0, 1),
    Ipv4Addr::new(224, 0, 0, 1),
    Ipv4Addr::BROADCAST,
    Ipv4Addr::UNSPECIFIED,
];

const V6: &[Ipv6Addr] = &[
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 9),
    Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0x0808, 0x0808),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2),
    Ipv6Addr::LOCALHOST,
    Ipv6Addr::UNSPECIFIED,
];

const PORTS: &[u16] = &[
    53, 67, 68, 80, 80, 443, 443, 546, 547, 1_024, 1_025, 1_030, 2_048, 2_100, 4_789,
];

/// Makes frames of a region.
#[derive(Debug, Default)]
pub struct Frames {
    underlays: Vec<Ipv6Addr>,
}

impl Frames {
    /// Takes note of the underlay addresses there are; machines know them, say, from a leak.
    pub fn learn(&mut self, policy: &Policy) {
        self.underlays = policy.entrances.keys().copied().collect();
    }

    /// A frame of a machine, or from the fabric.
    pub fn make(&self, random: &mut Random, machine: Option<Machine>, frame: &mut Vec<u8>) {
        frame.clear();
        for _ in 0..2 {
            // Any of a few hardware addresses: the gateway's, the own one, somebody's, everybody's.
            let last = [0, 1, 2, 3].map(|bits| random.word() as u8 & bits);
            let first = if random.below(16) == 0 { 0xff } else { 2 };
            frame.extend([first, 0, 0, last[3], last[1], last[2]]);
        }
        match machine {
            Some(_) if random.below(40) == 0 => arp(random, frame),
            Some(machine) => {
                let source = (random.below(2) == 0).then_some(machine);
                let start = frame.len();
                frame.extend([0x86, 0xdd]);
                self.packet(random, source, 0, frame);
                set_type(frame, start);
            }
            None => {
                frame.extend([0x86, 0xdd]);
                self.tunnel(random, 0, frame);
            }
        }
        if random.below(10) == 0 {
            mutilate(random, frame);
        }
    }

    /// An IPv6 packet with another one inside, to an underlay address.
    fn tunnel(&self, random: &mut Random, depth: u8, frame: &mut Vec<u8>) {
        let source = match random.below(4) {
            0 => EDGE,
            1 => neighbour(random.below(u32::from(TENANTS)) as u16),
            _ => random.pick(&self.underlays).unwrap_or(EDGE),
        };
        let destination = match random.below(16) {
            0 => HOST,
            1 => neighbour(0),
            _ => random.pick(&self.underlays).unwrap_or(HOST),
        };
        let start = frame.len();
        header6(frame, 41, source, destination);
        self.packet(random, None, depth + 1, frame);
        let is_v4 = frame.get(start + 40).is_some_and(|first| first >> 4 == 4);
        if is_v4 && let Some(next) = frame.get_mut(start + 6) {
            *next = 4;
        }
        set_length6(frame, start);
    }

    /// An IP packet, under the machine's own addresses or anybody's.
    fn packet(&self, random: &mut Random, own: Option<Machine>, depth: u8, frame: &mut Vec<u8>) {
        if depth < 3 && random.below(24) == 0 {
            return self.tunnel(random, depth, frame);
        }
        let start = frame.len();
        if random.below(3) > 0 {
            let source = own.map_or_else(|| v4(random), Machine::v4);
            let destination = v4(random);
            frame.extend([0x45, 0, 0, 0, 0, random.word() as u8, 0, 0, 64, 0, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
            let protocol = match random.below(12) {
                0..=4 => 17,
                5..=7 => 6,
                8 | 9 => 1,
                10 if depth < 3 => {
                    self.packet(random, None, depth + 1, frame);
                    4
                }
                _ => random.pick(&[4, 41, 47, 50, 132]).unwrap_or(47),
            };
            transport(random, protocol, (source, destination), frame);
            finish4(random, protocol, start, frame);
        } else {
            let source = own.map_or_else(|| self.v6(random), Machine::v6);
            let destination = self.v6(random);
            let protocol = match random.below(12) {
                0..=3 => 17,
                4 | 5 => 6,
                6..=8 => 58,
                9 => 44,
                10 => 43,
                _ => random.pick(&[0, 4, 41, 47, 60]).unwrap_or(41),
            };
            header6(frame, protocol, source, destination);
            let mut inside = protocol;
            if matches!(protocol, 0 | 43 | 44 | 60) {
                inside = random.pick(&[6, 17, 58]).unwrap_or(17);
                let low = random.pick(&[0, 1, 8, 9]).unwrap_or(0);
                frame.extend([inside, 0, 0, low, 0, 0, 0, random.word() as u8 & 3]);
            }
            if matches!(protocol, 4 | 41) && depth < 3 {
                self.packet(random, None, depth + 1, frame);
            } else {
                transport(random, inside, (BALANCED, NAT), frame);
            }
            set_length6(frame, start);
        }
    }

    fn v6(&self, random: &mut Random) -> Ipv6Addr {
        match random.below(8) {
            // Addresses that stand for another tenant's network.
            0 => random.pick(&self.underlays).unwrap_or(HOST),
            1 => neighbour(random.below(u32::from(TENANTS)) as u16),
            _ => random.pick(V6).unwrap_or(HOST),
        }
    }
}

fn v4(random: &mut Random) -> Ipv4Addr {
    match random.below(32) {
        0 => Ipv4Addr::from_bits(random.next() as u32),
        _ => random.pick(V4).unwrap_or(BALANCED),
    }
}

fn transport(
    random: &mut Random,
    protocol: u8,
    (source, destination): (Ipv4Addr, Ipv4Addr),
    frame: &mut Vec<u8>,
) {
    let port = |random: &mut Random| {
        let other = 2_048 + random.below(8 * u32::from(TENANTS)) as u16;
        let known = random.pick(PORTS).unwrap_or(other);
        if known == 2_048 { other } else { known }.to_be_bytes()
    };
    match protocol {
        17 => {
            frame.extend(port(random));
            frame.extend(port(random));
            frame.extend([0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        }
        6 => {
            frame.extend(port(random));
            frame.extend(port(random));
            let flags = random.word() as u8 & 0x17;
            frame.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 255, 255, 0, 0, 0, 0]);
        }
        1 => {
            let kind = random.pick(&[0, 8, 8, 3, 11, 5, 9, 13]).unwrap_or(8);
            frame.extend([kind, 0, 0, 0]);
            frame.extend(port(random));
            frame.extend([0, 1]);
            if matches!(kind, 3 | 11) {
                // About a packet the other way.
                let inside = random.pick(&[6, 17]).unwrap_or(17);
                frame.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, inside, 0, 0]);
                frame.extend(destination.octets());
                frame.extend(source.octets());
                frame.extend(port(random));
                frame.extend(port(random));
                frame.extend([0, 8, 0, 0]);
            }
        }
        58 => {
            // Echo, solicitations, advertisements, redirects.
            let kinds = [128, 129, 133, 134, 135, 136, 137, 1, 2, 130, 143];
            frame.extend([random.pick(&kinds).unwrap_or(134), 0, 0, 0]);
            frame.extend(port(random));
            frame.extend([0; 2]);
            frame.extend(random.pick(V6).unwrap_or(HOST).octets());
            frame.extend([1, 1, 2, 0, 0, 0, 0, 9]);
        }
        _ => frame.extend([0; 16]),
    }
}

fn arp(random: &mut Random, frame: &mut Vec<u8>) {
    let opcode = 1 + random.below(2) as u8;
    frame.extend([
        8,
        6,
        0,
        1,
        8,
        0,
        6,
        4,
        0,
        opcode,
        2,
        0,
        0,
        0,
        0,
        random.word() as u8,
    ]);
    frame.extend(v4(random).octets());
    frame.extend([0; 6]);
    frame.extend(v4(random).octets());
}

fn mutilate(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(4) {
        0 => frame.truncate(random.below(frame.len() as u32) as usize),
        1 => frame.extend([0; 16]),
        _ => {
            let at = random.below(frame.len() as u32) as usize;
            if let Some(byte) = frame.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
    }
}

fn header6(frame: &mut Vec<u8>, next: u8, source: Ipv6Addr, destination: Ipv6Addr) {
    frame.extend([0x60, 0, 0, 0, 0, 0, next, 64]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
}

fn set_length6(frame: &mut [u8], start: usize) {
    let length = (frame.len().saturating_sub(start + 40)) as u16;
    if let Some(place) = frame.get_mut(start + 4..start + 6) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// Protocol, length, now and then a fragment, and the checksum.
fn finish4(random: &mut Random, protocol: u8, start: usize, frame: &mut [u8]) {
    let length = (frame.len() - start) as u16;
    let piece = match random.below(24) {
        0 => 0x2000,
        1 => 0x2001,
        2 => 0x0003,
        _ => 0,
    };
    let Some(header) = frame.get_mut(start..start + 20) else {
        return;
    };
    let mut put = |at: usize, word: u16| {
        if let Some(place) = header.get_mut(at..at + 2) {
            place.copy_from_slice(&word.to_be_bytes());
        }
    };
    put(2, length);
    put(6, piece);
    put(8, (64 << 8) | u16::from(protocol));
    let sum = net::checksum::checksum(header).to_be_bytes();
    if let Some(place) = header.get_mut(10..12) {
        place.copy_from_slice(&sum);
    }
}

/// The type of a frame by the version of what is behind it.
fn set_type(frame: &mut [u8], at: usize) {
    let is_v4 = frame.get(at + 2).is_some_and(|first| first >> 4 == 4);
    if is_v4 && let Some(place) = frame.get_mut(at..at + 2) {
        place.copy_from_slice(&[8, 0]);
    }
}
