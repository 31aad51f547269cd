//! Hostile frames, made from a seed: random bytes, and what a tenant or a fabric could send, mutated. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

/// Longest frame; more than the 1514 bytes that a machine may send.
const FRAME_MAX: usize = 1_700;
/// Bytes changed in one frame at most.
const MUTATIONS_MAX: usize = 8;
/// Values that parsers get wrong more often than others.
const EDGES: [u8; 8] = [0x00, 0x01, 0x04, 0x29, 0x3a, 0x7f, 0x80, 0xff];

/// Whom the frames are about.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Ethernet addresses of the sender and of the receiver.
    pub source: [u8; 6],
    pub destination: [u8; 6],
    /// Overlay addresses that exist; sources and destinations are drawn from these.
    pub ipv4: Vec<Ipv4Addr>,
    pub ipv6: Vec<Ipv6Addr>,
    /// Underlay addresses. Empty for a machine port; otherwise frames are tunnelled to one of these.
    pub underlay: Vec<Ipv6Addr>,
}

/// Makes one frame after the other; the same seed makes the same frames.
#[derive(Debug)]
pub struct Generator {
    random: SmallRng,
    target: Target,
}

impl Generator {
    pub fn new(seed: u64, target: Target) -> Generator {
        Generator {
            random: SmallRng::seed_from_u64(seed),
            target,
        }
    }

    /// The next frame: one in six of plain random bytes, the others from a valid frame.
    pub fn next_frame(&mut self) -> Vec<u8> {
        let mut frame = match self.random.random_range(0..6) {
            0 => self.noise(),
            1 => self.valid(),
            2 => {
                let mut frame = self.valid();
                let keep = self.random.random_range(0..=frame.len());
                frame.truncate(keep);
                frame
            }
            3 => {
                let mut frame = self.valid();
                let noise = self.noise();
                let at = self.random.random_range(0..=frame.len());
                frame.splice(at..at, noise);
                frame
            }
            _ => {
                let mut frame = self.valid();
                self.mutate(&mut frame);
                frame
            }
        };
        frame.truncate(FRAME_MAX);
        frame
    }

    fn noise(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; self.random.random_range(0..=FRAME_MAX)];
        self.random.fill_bytes(&mut bytes);
        bytes
    }

    fn mutate(&mut self, frame: &mut [u8]) {
        for _ in 0..self.random.random_range(1..=MUTATIONS_MAX) {
            let at = self.random.random_range(0..frame.len().max(1));
            let value = if self.random.random() {
                self.random.random()
            } else {
                EDGES.choose(&mut self.random).copied().unwrap_or_default()
            };
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
    }

    /// A frame as a well-behaved sender would send it, but for its checksums.
    fn valid(&mut self) -> Vec<u8> {
        let (ethertype, packet) = match self.random.random_range(0..8) {
            0 => (0x0806, self.arp()),
            1..=3 => (0x0800, self.ipv4()),
            _ => (0x86dd, self.ipv6()),
        };
        let underlay = self.target.underlay.choose(&mut self.random).copied();
        match underlay {
            None => self.ethernet(ethertype, &packet),
            Some(end) => {
                let next_header = if ethertype == 0x0800 { 4 } else { 41 };
                let source = Ipv6Addr::from_bits(self.random.random());
                let outer = ipv6_header(next_header, packet.len(), source, end);
                self.ethernet(0x86dd, &[outer.as_slice(), &packet].concat())
            }
        }
    }

    fn ethernet(&self, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let Target {
            source,
            destination,
            ..
        } = &self.target;
        [
            destination.as_slice(),
            source,
            &ethertype.to_be_bytes(),
            payload,
        ]
        .concat()
    }

    fn arp(&mut self) -> Vec<u8> {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, self.random.random_range(1..=2)];
        packet.extend(self.target.source);
        packet.extend(self.address_v4().octets());
        packet.extend([0; 6]);
        packet.extend([169, 254, 0, 1]);
        packet
    }

    fn address_v4(&mut self) -> Ipv4Addr {
        let known = self.target.ipv4.choose(&mut self.random).copied();
        known.unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    fn address_v6(&mut self) -> Ipv6Addr {
        let known = self.target.ipv6.choose(&mut self.random).copied();
        known.unwrap_or(Ipv6Addr::UNSPECIFIED)
    }

    fn ipv4(&mut self) -> Vec<u8> {
        let (protocol, payload) = self.transport(1);
        let (source, destination) = (self.address_v4(), self.address_v4());
        let total = 20 + payload.len();
        let mut packet = vec![0x45, 0];
        packet.extend((total as u16).to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(payload);
        packet
    }

    fn ipv6(&mut self) -> Vec<u8> {
        let (protocol, payload) = self.transport(58);
        let source = self.address_v6();
        let destination = match self.random.random_range(0..4) {
            0 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2),
            _ => self.address_v6(),
        };
        let mut packet = ipv6_header(protocol, payload.len(), source, destination);
        packet.extend(payload);
        packet
    }

    /// A TCP, UDP or ICMP message, now and then to a DHCP port, with extension headers or of another protocol.
    fn transport(&mut self, icmp: u8) -> (u8, Vec<u8>) {
        let mut body = vec![0; self.random.random_range(0..200)];
        self.random.fill_bytes(&mut body);
        let port = |random: &mut SmallRng| match random.random_range(0..4) {
            0 => 67_u16,
            1 => 547,
            _ => random.random(),
        };
        let ports = [port(&mut self.random), port(&mut self.random)];
        let ports = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
        match self.random.random_range(0..5) {
            0 => {
                let flags = self.random.random_range(0..64);
                let rest = [0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
                (6, [ports.as_slice(), &rest, &body].concat())
            }
            1 => {
                let length = ((8 + body.len()) as u16).to_be_bytes();
                (17, [ports.as_slice(), &length, &[0, 0], &body].concat())
            }
            2 => (
                [0, 43, 44, 60, 132][self.random.random_range(0..5)],
                [[17, 0].as_slice(), &body].concat(),
            ),
            _ => {
                let kind =
                    [0, 3, 8, 11, 128, 129, 133, 134, 135, 136][self.random.random_range(0..10)];
                (
                    icmp,
                    [[kind, 0, 0, 0, 0, 1, 0, 1].as_slice(), &body].concat(),
                )
            }
        }
    }
}

fn ipv6_header(next_header: u8, length: usize, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend((length as u16).to_be_bytes());
    header.extend([next_header, 64]);
    header.extend(source.octets());
    header.extend(destination.octets());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(underlay: Vec<Ipv6Addr>) -> Target {
        Target {
            source: [2; 6],
            destination: [4; 6],
            ipv4: vec![Ipv4Addr::new(10, 0, 0, 1)],
            ipv6: vec![Ipv6Addr::LOCALHOST],
            underlay,
        }
    }

    #[test]
    fn a_seed_decides_everything_and_frames_are_of_all_sorts() {
        let mut one = Generator::new(1, target(vec![]));
        let mut two = Generator::new(1, target(vec![]));
        let frames: Vec<Vec<u8>> = (0..2_000).map(|_| one.next_frame()).collect();
        assert!(frames.iter().all(|frame| *frame == two.next_frame()));
        assert!(frames.iter().all(|frame| frame.len() <= FRAME_MAX));
        for ethertype in [[8, 6], [8, 0], [0x86, 0xdd]] {
            assert!(
                frames
                    .iter()
                    .any(|frame| frame.get(12..14) == Some(&ethertype))
            );
        }
        assert!(frames.iter().any(|frame| frame.len() < 14));
        assert!(frames.iter().any(|frame| frame.len() == FRAME_MAX));
    }

    #[test]
    fn frames_for_an_uplink_are_tunnelled_to_the_given_addresses() {
        let end = Ipv6Addr::new(0xfd4c, 1, 1, 0, 0xd000, 0, 0, 7);
        let mut generator = Generator::new(2, target(vec![end]));
        let tunnelled = (0..200)
            .map(|_| generator.valid())
            .filter(|frame| frame.get(38..54) == Some(&end.octets()))
            .count();
        assert_eq!(tunnelled, 200);
    }
}
