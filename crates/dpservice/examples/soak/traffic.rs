//! Traffic: machines talk to neighbours, to another host and to the internet, the fabric answers what came out, and now and then somebody sends
//! nonsense.

use crate::host::{EDGE, HOST, NEIGHBOUR, balanced};
use net::{Mac, ethernet, ipv4, ipv6, protocol};
use ports::MemoryPeer;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Machines, and the networks they share.
pub const MACHINES: u16 = 12;
pub const VNIS: u16 = 4;
/// Frames per step and pause between two steps: what a loaded machine can do beside other work.
const STEP_FRAMES: usize = 64;
const STEP_PAUSE: Duration = Duration::from_millis(4);
/// UDP port of the canary.
const CANARY_PORT: u16 = 7;
const TUNNEL_LEN: usize = 54;

/// The other ends of all ports.
#[derive(Clone)]
pub struct Wires {
    pub uplinks: Vec<MemoryPeer>,
    pub machines: Vec<MemoryPeer>,
}

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
}

pub struct Traffic {
    wires: Mutex<Wires>,
    seed: u64,
    canaries: AtomicU64,
    pauses: AtomicBool,
}

impl Traffic {
    pub fn new(seed: u64, wires: Wires) -> Traffic {
        Traffic {
            wires: Mutex::new(wires),
            seed,
            canaries: AtomicU64::new(0),
            pauses: AtomicBool::new(false),
        }
    }

    /// Canaries that came through.
    pub fn canaries(&self) -> u64 {
        self.canaries.load(Ordering::Relaxed)
    }

    pub fn rewire(&self, wires: Wires) {
        *self.wires.lock().unwrap_or_else(PoisonError::into_inner) = wires;
    }

    /// Nothing new is sent; what comes out is still taken.
    pub fn pause(&self) {
        self.pauses.store(true, Ordering::Relaxed);
    }

    /// Until the other end of `running` is gone.
    fn run(&self, running: &Receiver<()>) {
        let mut random = Random::new(self.seed);
        while running.recv_timeout(STEP_PAUSE) == Err(RecvTimeoutError::Timeout) {
            let wires = self
                .wires
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let is_paused = self.pauses.load(Ordering::Relaxed);
            for number in 0..STEP_FRAMES {
                if !is_paused {
                    send(&wires, &mut random, number == 0);
                }
            }
            for (peer, uplink) in wires.uplinks.iter().zip(0_u8..) {
                while let Some(frame) = peer.receive() {
                    self.at_the_fabric(&wires, (peer, uplink), &frame, is_paused);
                }
            }
            for peer in &wires.machines {
                while peer.receive().is_some() {}
            }
        }
    }

    /// Answers what came out: both ends exchanged, outside and inside.
    fn at_the_fabric(
        &self,
        wires: &Wires,
        (peer, uplink): (&MemoryPeer, u8),
        frame: &[u8],
        is_paused: bool,
    ) {
        let mut answer = frame.to_vec();
        let Some((outer, inner)) = answer.split_first_chunk_mut::<TUNNEL_LEN>() else {
            return;
        };
        let is_v6 = inner.first().is_some_and(|first| first >> 4 == 6);
        let (start, width, ports) = if is_v6 { (8, 16, 40) } else { (12, 4, 20) };
        let is_canary = inner.get(ports + 2..ports + 4) == Some(&CANARY_PORT.to_be_bytes());
        if is_canary {
            self.canaries.fetch_add(1, Ordering::Relaxed);
        }
        if is_paused || is_canary {
            return;
        }
        outer[..12].rotate_left(6);
        outer[22..54].rotate_left(16);
        if let Some(addresses) = inner.get_mut(start..start + 2 * width) {
            addresses.rotate_left(width);
        }
        if let Some(ports) = inner.get_mut(ports..ports + 4) {
            ports.rotate_left(2);
        }
        // Now and then by the other uplink, as a fabric may.
        let other = wires.uplinks.get(usize::from(1 - uplink));
        let to = if frame.len().is_multiple_of(7) {
            other
        } else {
            Some(peer)
        };
        to.map(|to| to.send(&answer));
    }
}

/// Begins; dropping the sender ends it.
pub fn spawn(traffic: &std::sync::Arc<Traffic>) -> io::Result<(JoinHandle<()>, Sender<()>)> {
    let traffic = std::sync::Arc::clone(traffic);
    let (running, ends) = channel();
    let builder = std::thread::Builder::new().name("traffic".to_owned());
    let thread = builder.spawn(move || traffic.run(&ends))?;
    Ok((thread, running))
}

pub fn machine_address(machine: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 1 + machine as u8)
}

pub fn machine_address6(machine: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1 + machine)
}

/// One frame from somewhere.
fn send(wires: &Wires, random: &mut Random, is_canary: bool) {
    let machine = if is_canary {
        0
    } else {
        random.below(u32::from(MACHINES)) as u16
    };
    let Some(peer) = wires.machines.get(usize::from(machine)) else {
        return;
    };
    let number = random.below(1 << 16) as u16;
    let [high, low] = number.to_be_bytes();
    let neighbour = (machine + VNIS * (number % 3)) % MACHINES;
    let (source, source6) = (machine_address(machine), machine_address6(machine));
    let kind = if is_canary { 0 } else { random.below(10) };
    let ip = match kind {
        0..=2 => {
            let port = if is_canary { CANARY_PORT } else { 53 };
            packet4(
                source,
                Ipv4Addr::new(10, 1, high, low),
                (1_024 + number % 4_096, port),
            )
        }
        3 | 4 => packet4(
            source,
            machine_address(neighbour),
            (1_024 + number % 64, 80),
        ),
        5 | 6 => packet4(
            source,
            Ipv4Addr::new(8, 8, 8, low),
            (1_024 + number % 512, 443),
        ),
        7 => {
            let far = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, number);
            packet6(source6, far, (1_024 + number % 512, 443))
        }
        8 => {
            let far = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0x0808, u16::from(low));
            packet6(source6, far, (1_024 + number % 512, 443))
        }
        _ => return nonsense(wires, random, number),
    };
    let ethertype = if ip.first().is_some_and(|first| first >> 4 == 6) {
        ethernet::TYPE_IPV6
    } else {
        ethernet::TYPE_IPV4
    };
    peer.send(&[&header(ethertype)[..], &ip].concat());
}

/// From the fabric to nobody in particular: a spoofed tunnel to an underlay address that may exist, or bytes; and requests to the load balancers.
fn nonsense(wires: &Wires, random: &mut Random, number: u16) {
    let [high, low] = number.to_be_bytes();
    let inner = packet4(
        Ipv4Addr::new(9, 9, high, low),
        match balanced(number % VNIS) {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        },
        (1_024 + number % 512, 80),
    );
    let host = HOST.to_bits() >> 64 << 64;
    let at = Ipv6Addr::from_bits(host | (0xd000_0001 << 32) | u128::from(random.below(200)));
    let from = if number.is_multiple_of(2) {
        EDGE
    } else {
        NEIGHBOUR
    };
    let outer = ipv6::Header {
        payload_len: inner.len() as u16,
        next_header: protocol::IPV4,
        hop_limit: 64,
        source: from,
        destination: at,
    };
    let mut frame = [&header(ethernet::TYPE_IPV6)[..], &outer.emit(), &inner].concat();
    if number.is_multiple_of(5) {
        let end = frame.len() as u32;
        frame.truncate(random.below(end) as usize);
    }
    let uplink = wires
        .uplinks
        .get(usize::from(number) % wires.uplinks.len().max(1));
    uplink.map(|uplink| uplink.send(&frame));
}

fn header(ethertype: u16) -> [u8; 14] {
    ethernet::header(Mac([2, 0, 0, 1, 0, 0]), Mac([2, 0, 0, 7, 0, 0]), ethertype)
}

fn udp((source, destination): (u16, u16)) -> Vec<u8> {
    let words = [source, destination, 16, 0];
    let mut bytes = words.map(u16::to_be_bytes).concat();
    bytes.extend([0; 8]);
    bytes
}

fn packet4(source: Ipv4Addr, destination: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
    let payload = udp(ports);
    let header = ipv4::Header {
        payload_len: payload.len() as u16,
        ttl: 64,
        protocol: protocol::UDP,
        source,
        destination,
    };
    [&header.emit()[..], &payload].concat()
}

fn packet6(source: Ipv6Addr, destination: Ipv6Addr, ports: (u16, u16)) -> Vec<u8> {
    let mut payload = udp(ports);
    if let Some(sum) = payload.get_mut(6..8) {
        // Any but zero, which IPv6 does not allow; nobody here looks at it.
        sum.copy_from_slice(&[0x12, 0x34]);
    }
    let header = ipv6::Header {
        payload_len: payload.len() as u16,
        next_header: protocol::UDP,
        hop_limit: 64,
        source,
        destination,
    };
    [&header.emit()[..], &payload].concat()
}
