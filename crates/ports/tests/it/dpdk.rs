//! DPDK's software devices against the contract. One environment for the whole test process; devices are added while it runs.

use crate::{drivers::KernelWire, enter_private_namespace, ip};
use dpdk::{Config, Eal, Mbuf, Pool};
use ports::contract::{Pair, check};
use ports::dpdk::DpdkPort;
use ports::{AfPacket, Port, af_packet::Select};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Buffers of the pool; the long run of the contract uses more than that.
const BUFFERS: u32 = 4096;

static NUMBER: AtomicU32 = AtomicU32::new(0);

fn environment() -> &'static (&'static Eal, Pool) {
    static ENVIRONMENT: OnceLock<(&'static Eal, Pool)> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        // On a thread of its own, which DPDK ties to its core.
        let start = || {
            let arguments =
                "-l 0 --no-huge --no-pci --no-shconf --no-telemetry -m 256 --log-level=error";
            let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
            Eal::init(&arguments).expect("start DPDK")
        };
        let eal = std::thread::spawn(start).join().expect("start DPDK");
        (eal, eal.pool(BUFFERS, 2048).expect("pool"))
    })
}

/// Adds a device and opens it with one queue.
fn open(driver: &str, arguments: impl FnOnce(u32) -> String) -> DpdkPort {
    let (eal, pool) = environment();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("{driver}{number}");
    eal.attach(&format!("{name},{}", arguments(number)))
        .expect("add device");
    let info = eal.ports().into_iter().find(|info| info.name == name);
    let config = Config {
        queues: 1,
        descriptors: 256,
        interrupts: true,
        tx_offloads: 0,
    };
    let device = eal
        .open(info.expect("port exists").port, pool, config)
        .expect("start port");
    let mut queues = DpdkPort::of(device).expect("describe");
    queues.pop().expect("one queue")
}

fn passes(mut make: impl FnMut() -> (DpdkPort, AfPacket)) {
    let (_, pool) = environment();
    let mut make = || {
        let (port, wire) = make();
        assert_eq!(port.link(), Some(true), "link");
        Pair::<Mbuf> {
            port: Box::new(port),
            peer: Box::new(KernelWire(wire)),
            blank: Box::new(|| pool.alloc().expect("buffers are given back")),
        }
    };
    if let Err(violation) = check(&mut make) {
        panic!("{violation}");
    }
}

#[test]
fn net_tap() {
    enter_private_namespace();
    passes(|| {
        let mut name = String::new();
        let port = open("net_tap", |number| {
            name = format!("dtap{number}");
            format!("iface={name}")
        });
        assert!(port.readiness().is_some(), "net_tap has receive interrupts");
        (
            port,
            AfPacket::open(&name, Select::All).expect("kernel's end"),
        )
    });
}

#[test]
fn net_af_packet() {
    enter_private_namespace();
    passes(|| {
        let mut peer = String::new();
        let port = open("net_af_packet", |number| {
            peer = format!("r{number}");
            ip(&format!("link add pf{number} type veth peer name {peer}"));
            ip(&format!("link set pf{number} up"));
            ip(&format!("link set {peer} up"));
            format!("iface=pf{number}")
        });
        (port, AfPacket::open(&peer, Select::All).expect("peer"))
    });
}

#[test]
fn a_buffer_is_edited_in_place_within_its_bounds() {
    use dataplane::Packet;
    let (_, pool) = environment();
    let mut packet = pool.alloc().expect("buffer");
    packet.clear();
    assert!(packet.resize(60));
    packet.frame_mut().copy_from_slice(&[7; 60]);
    assert!(packet.reframe(14, 54, 40));
    assert_eq!(packet.len(), 94, "54 new bytes, 40 of the old ones");
    assert_eq!(packet.frame().get(54..), Some(&[7; 40][..]));
    assert!(!packet.prepend(128), "no headroom for that");
    assert!(!packet.reframe(95, 0, 0), "not as long as that");
    assert!(!packet.resize(4000), "no room for that");
    assert_eq!(packet.len(), 94, "unchanged");
    let vacant = Mbuf::default();
    assert_eq!((vacant.len(), vacant.headroom()), (0, 0));
}
