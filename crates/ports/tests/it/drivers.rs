//! One suite over all drivers.

use crate::{enter_private_namespace, ip};
use dataplane::Packet;
use net::Mac;
use ports::af_packet::Select;
use ports::contract::{Pair, Peer, check};
use ports::{AfPacket, AfXdp, Frame, MemoryPeer, Port, Tap, memory};

const MAC: Mac = Mac([0x02, 0, 0, 0, 0, 9]);

struct MemoryWire(MemoryPeer);

impl Peer for MemoryWire {
    fn send(&mut self, frame: &[u8]) {
        assert!(self.0.send(frame), "queue is full");
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        self.0.receive()
    }
}

/// The kernel's end of the wire, through a packet socket.
pub struct KernelWire(pub AfPacket);

impl Peer for KernelWire {
    fn send(&mut self, frame: &[u8]) {
        let mut packet = Frame::new();
        assert!(packet.fill(frame), "frame fits");
        assert_eq!(
            self.0.tx_burst(&mut [&mut packet]),
            1,
            "{:?}",
            self.0.counters()
        );
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut packets = [Frame::new()];
        let filled = self.0.rx_burst(&mut packets).expect("device exists");
        packets
            .iter()
            .take(filled)
            .map(|packet| packet.frame().to_vec())
            .next()
    }
}

fn passes<P: Packet + Default>(mut make: impl FnMut() -> Pair<P>) {
    if let Err(violation) = check(&mut make) {
        panic!("{violation}");
    }
}

#[test]
fn memory() {
    passes(|| {
        let (port, peer) = memory::pair("memory0", MAC, 1500).expect("descriptors");
        Pair {
            port: Box::new(port),
            peer: Box::new(MemoryWire(peer)),
            blank: Box::new(Frame::new),
        }
    });
}

#[test]
fn tap() {
    enter_private_namespace();
    let mut count = 0;
    passes(|| {
        count += 1;
        let name = format!("tap{count}");
        let port = Tap::create(&name, MAC, 1500).expect("create TAP");
        ip(&format!("link set {name} up"));
        let wire = AfPacket::open(&name, Select::All).expect("open the kernel's end");
        Pair {
            port: Box::new(port),
            peer: Box::new(KernelWire(wire)),
            blank: Box::new(Frame::new),
        }
    });
}

#[test]
fn af_packet() {
    enter_private_namespace();
    let mut count = 0;
    passes(|| {
        count += 1;
        ip(&format!("link add pf{count} type veth peer name r{count}"));
        ip(&format!("link set pf{count} up"));
        ip(&format!("link set r{count} up"));
        let port = AfPacket::open(&format!("pf{count}"), Select::All).expect("open port");
        let wire = AfPacket::open(&format!("r{count}"), Select::All).expect("open peer");
        Pair {
            port: Box::new(port),
            peer: Box::new(KernelWire(wire)),
            blank: Box::new(Frame::new),
        }
    });
}

#[test]
fn af_xdp() {
    enter_private_namespace();
    let mut count = 0;
    passes(|| {
        count += 1;
        ip(&format!("link add pf{count} type veth peer name r{count}"));
        ip(&format!("link set pf{count} up"));
        ip(&format!("link set r{count} up"));
        let mut queues = AfXdp::open(&format!("pf{count}"), Select::All).expect("open port");
        let port = queues.pop().expect("one queue");
        assert!(queues.is_empty(), "veth has one queue");
        let wire = AfPacket::open(&format!("r{count}"), Select::All).expect("open peer");
        Pair {
            port: Box::new(port),
            peer: Box::new(KernelWire(wire)),
            blank: Box::new(Frame::new),
        }
    });
}
