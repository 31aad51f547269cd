//! DPDK's software devices against the contract. One environment for the whole test process; devices are added while it runs.

use crate::{drivers::KernelWire, enter_private_namespace, ip};
use dataplane::PortId;
use dataplane::offload::{Action, Ipv4Match, Ipv6Match, Item, Nic, Rule, isolation};
use dpdk::{Config, Device, Eal, Mbuf, Pool};
use ports::contract::{Pair, Peer, check};
use ports::dpdk::{DpdkPort, DpdkRules, RulePorts};
use ports::offload::{RuleDevice, RuleHandle};
use ports::{AfPacket, Port, af_packet::Select};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Buffers of the pool; the long run of the contract uses more than that.
const BUFFERS: u32 = 16_384;

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
    open_with(driver, config(driver), None, arguments)
}

/// The same with another configuration, and perhaps a pool of its own.
pub fn open_with(
    driver: &str,
    config: Config,
    pool: Option<&Pool>,
    arguments: impl FnOnce(u32) -> String,
) -> DpdkPort {
    let mut queues = DpdkPort::of(start_with(driver, config, pool, arguments)).expect("describe");
    queues.pop().expect("one queue")
}

/// One queue, and nothing that a driver may or may not have.
pub fn config(driver: &str) -> Config {
    Config {
        queues: 1,
        descriptors: 256,
        // The descriptor of a vhost queue is readable from the start.
        interrupts: driver != "net_vhost",
        tx_offloads: 0,
        rx_offloads: 0,
        isolated: false,
    }
}

fn start(driver: &str, arguments: impl FnOnce(u32) -> String) -> Device {
    start_with(driver, config(driver), None, arguments)
}

pub fn start_with(
    driver: &str,
    config: Config,
    pool: Option<&Pool>,
    arguments: impl FnOnce(u32) -> String,
) -> Device {
    let (eal, shared) = environment();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("{driver}{number}");
    eal.attach(&format!("{name},{}", arguments(number)))
        .expect("add device");
    let info = eal.ports().into_iter().find(|info| info.name == name);
    let port = info.expect("port exists").port;
    eal.open(port, pool.unwrap_or(shared), config)
        .expect("start port")
}

/// Another port of DPDK as the other end.
struct DpdkWire(DpdkPort);

impl Peer for DpdkWire {
    fn send(&mut self, frame: &[u8]) {
        let (_, pool) = environment();
        let mut packet = pool.alloc().expect("buffers are given back");
        packet.clear();
        assert!(packet.place(packet.headroom(), frame.len()));
        packet.frame_mut().copy_from_slice(frame);
        // Before both ends have agreed, nothing is taken.
        self.0.tx_burst(&mut [&mut packet]);
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut packets = [Mbuf::default()];
        let filled = self.0.rx_burst(&mut packets).expect("device exists");
        let mut filled = packets.iter().take(filled);
        filled.next().map(|packet| packet.frame().to_vec())
    }
}

/// Frames of several lengths pass both ways, in order. (The whole contract wants eight devices of a kind; DPDK has room for 32 in all.)
fn carries(mut port: DpdkPort, mut wire: impl Peer) {
    // Devices that are joined by a socket take a moment.
    let deadline = Instant::now() + Duration::from_secs(20);
    while port.link() != Some(true) {
        assert!(Instant::now() < deadline, "link");
        std::thread::yield_now();
    }
    let frames: Vec<Vec<u8>> = [60, 61, 64, 590, 1_400, 1_514]
        .into_iter()
        .cycle()
        .take(120)
        .enumerate()
        .map(|(number, length)| {
            let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x88, 0xb5];
            frame.resize(length, number as u8);
            frame
        })
        .collect();
    let mut packets: [Mbuf; 4] = std::array::from_fn(|_| Mbuf::default());
    // The other end may begin to listen a moment after it says so: the first frame is sent until it arrives.
    let probe = vec![0xff; 60];
    while port.rx_burst(&mut packets) == Ok(0) {
        wire.send(&probe);
        assert!(Instant::now() < deadline, "nothing arrives");
        std::thread::yield_now();
    }
    for frame in &frames {
        wire.send(frame);
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let filled = port.rx_burst(&mut packets[..1]).expect("device exists");
            let arrived = packets.first().map(Mbuf::frame).unwrap_or_default();
            // Some of the first ones may still be on their way.
            if filled == 1 && arrived != probe {
                assert_eq!(arrived, frame);
                break;
            }
            assert!(Instant::now() < deadline, "a frame did not arrive");
        }
    }
    // A memif client offers its buffers when it looks for the first time.
    while wire.receive().is_some() {}
    let (_, pool) = environment();
    for frame in &frames {
        let mut packet = pool.alloc().expect("buffers are given back");
        packet.clear();
        assert!(packet.place(packet.headroom(), frame.len()));
        packet.frame_mut().copy_from_slice(frame);
        assert_eq!(port.tx_burst(&mut [&mut packet]), 1);
        let deadline = Instant::now() + Duration::from_secs(5);
        let arrived = loop {
            if let Some(arrived) = wire.receive() {
                break arrived;
            }
            assert!(Instant::now() < deadline, "a frame was not sent");
        };
        assert_eq!(&arrived, frame);
    }
}

/// A place for a socket that no other test uses.
pub fn socket(number: u32) -> String {
    let name = format!("okm-ports-{}-{number}.sock", std::process::id());
    std::env::temp_dir().join(name).display().to_string()
}

#[test]
fn net_memif() {
    let mut path = String::new();
    let port = open("net_memif", |number| {
        path = socket(number);
        format!("role=server,id=1,socket={path},socket-abstract=no")
    });
    let wire = open("net_memif", |_| {
        format!("role=client,id=1,socket={path},socket-abstract=no")
    });
    carries(port, DpdkWire(wire));
}

#[test]
fn net_vhost() {
    let mut path = String::new();
    let port = open("net_vhost", |number| {
        path = socket(number);
        format!("iface={path}")
    });
    // A guest's side.
    let wire = open("net_virtio_user", |_| format!("path={path},queues=1"));
    carries(port, DpdkWire(wire));
}

#[test]
fn net_pcap() {
    enter_private_namespace();
    let (port, wire) = veth("net_pcap", |name| {
        format!("rx_iface_in={name},tx_iface={name}")
    });
    carries(port, KernelWire(wire));
}

#[test]
fn net_af_xdp() {
    enter_private_namespace();
    let (port, wire) = veth("net_af_xdp", |name| format!("iface={name}"));
    carries(port, KernelWire(wire));
}

/// A device of DPDK on one end of a pair of kernel devices, whose other end is the wire.
fn veth(driver: &str, arguments: impl FnOnce(&str) -> String) -> (DpdkPort, AfPacket) {
    let mut peer = String::new();
    let port = open(driver, |number| {
        let own = format!("pf{number}");
        peer = format!("r{number}");
        ip(&format!("link add {own} type veth peer name {peer}"));
        ip(&format!("link set {own} up"));
        ip(&format!("link set {peer} up"));
        arguments(&own)
    });
    (port, AfPacket::open(&peer, Select::All).expect("peer"))
}

/// Software devices switch nothing by themselves: they say so, and nothing stays behind.
#[test]
fn software_devices_refuse_rules() {
    enter_private_namespace();
    let tap = start("net_tap", |number| format!("iface=rtap{number}"));
    let pcap = start("net_pcap", |number| {
        ip(&format!(
            "link add rp{number} type veth peer name rr{number}"
        ));
        ip(&format!("link set rp{number} up"));
        format!("iface=rp{number}")
    });
    for device in [tap, pcap] {
        let port = PortId(0);
        let ports = Arc::new(RulePorts::default());
        let number = device.info().expect("started").port;
        let nic = Nic {
            mtus: vec![Some(1500)],
        };
        let mut rules = DpdkRules::new(nic, Arc::clone(&ports));
        let rule = every_item_and_action(port);
        let stopped = rules.install(std::slice::from_ref(&rule));
        assert_eq!(
            stopped.expect_err("unknown port").reason,
            "the port is not started"
        );
        ports.started(port, number, &device);
        let refusal = rules.install(&[rule]).expect_err("software cannot");
        assert!(!refusal.reason.is_empty());
        assert!(rules.hits(RuleHandle(0)).is_none());
        drop(device);
        let rule = isolation(port, "fc00:1::1".parse().expect("address"));
        let stopped = rules.install(&[rule]);
        assert_eq!(
            stopped.expect_err("stopped").reason,
            "the port is not started"
        );
    }
}

fn every_item_and_action(port: PortId) -> Rule {
    let address = "fc00:1::1".parse().expect("address");
    let v4 = "10.0.0.1".parse().expect("address");
    let mac = net::Mac([2, 0, 0, 0, 0, 1]);
    Rule {
        port,
        transfer: true,
        priority: 1,
        pattern: vec![
            Item::Ethernet { ethertype: 0x86dd },
            Item::Ipv6(Ipv6Match {
                source: Some(address),
                destination: Some((address, 128)),
                next_header: Some(4),
                hop_limit: Some(1),
                unmarked: true,
            }),
            Item::Ipv4(Ipv4Match {
                source: v4,
                destination: v4,
                protocol: 17,
                ttl: Some(1),
            }),
            Item::Udp {
                source: 1,
                destination: 2,
            },
        ],
        actions: vec![
            Action::Count,
            Action::Age { timeout_s: 30 },
            Action::SetIpv4Source(v4),
            Action::SetIpv4Destination(v4),
            Action::SetIpv6Source(address),
            Action::SetIpv6Destination(address),
            Action::SetSourcePort(1),
            Action::SetDestinationPort(2),
            Action::SetSourceMac(mac),
            Action::SetDestinationMac(mac),
            Action::SetTtl(64),
            Action::DecrementTtl,
            Action::RawDecap(14),
            Action::RawEncap(vec![0; 54]),
            Action::Port(port),
        ],
    }
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
