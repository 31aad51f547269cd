//! Two instances that tell each other: by their link in this process, and as operators run them.

use crate::fabric::{enter_private_namespace, ip};
use crate::harness::{Client, DEADLINE, Server, create_route, interface, ip as address, outcome};
use dataplane::sync::{Message, NatUse};
use dataplane::{NatEnd, NatRemote, NatSource, PortId};
use dpservice::sync::{Control, Link, Room, make};
use dpservice::worker::Settings;
use net::Mac;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proto::dpdk;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const OK: &str = "0 Success";
const MACHINE: PortId = PortId(1);

#[test]
fn connections_survive_the_death_of_the_active_instance() {
    enter_private_namespace();
    ip("link set lo up");
    let folder = tempfile::tempdir().unwrap();
    let executable = env!("CARGO_BIN_EXE_dpservice");
    std::os::unix::fs::symlink(executable, folder.path().join("dpservice-cli")).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/takeover.py");
    let output = Command::new("/usr/bin/python3")
        .args([script, executable])
        .arg(folder.path())
        .output()
        .expect("Debian's python3 with python3-scapy: cargo xtask setup");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// An instance with one machine behind NAT, and its end of the link.
struct Instance {
    server: Server,
    control: Option<Control>,
    client: Client,
    _tasks: JoinSet<anyhow::Result<()>>,
}

impl Instance {
    async fn new(link: Link, standby: bool) -> Instance {
        let settings = Settings {
            standby,
            ..Settings::default()
        };
        let server = Server::start_with(true, settings).await;
        let mut client = server.initialized().await;
        let created = client.create_interface(interface("vm1", "net_tap2", "10.0.0.1", "::"));
        assert_eq!(outcome!(created), OK);
        let route = client.create_route(create_route(100, "0.0.0.0/0", "fc00:9::1"));
        assert_eq!(outcome!(route), OK);
        let nat = client.create_nat(dpdk::CreateNatRequest {
            interface_id: "vm1".into(),
            nat_ip: address("172.20.1.1"),
            min_port: 1_024,
            max_port: 65_535,
            preferred_underlay_route: Vec::new(),
        });
        assert_eq!(outcome!(nat), OK);
        let room = Room {
            nat: 450_000,
            services: 0,
        };
        let (control, sync) = make(link, server.worker.clone(), room);
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(sync.run(standby, shutdown));
        Instance {
            server,
            control: Some(control),
            client,
            _tasks: tasks,
        }
    }

    fn count(&self, name: &str) -> u64 {
        let counters = self.server.worker.sync_counters().unwrap();
        let named = [
            counters.sent.entries().collect::<Vec<_>>(),
            counters.ignored.entries().collect(),
            counters.kept.entries().collect(),
            counters.taken.entries().collect(),
        ];
        let found = named.iter().flatten().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("no counter {name}")).1
    }

    async fn until(&self, name: &str, value: u64) {
        let wait = async {
            while self.count(name) != value {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, wait).await;
        let counters = self.server.worker.sync_counters();
        waited.unwrap_or_else(|_| panic!("{name} is not {value}: {counters:?}"));
    }
}

/// Both ends of a link that keeps frames apart.
fn wire() -> (UnixDatagram, Link) {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    (ours.into(), Link::new(theirs).unwrap())
}

/// Ethernet and IPv4 without options, UDP without checksum.
fn datagram(source: u16, destination: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1];
    packet.extend([9, 9, 9, 9]);
    let sum = net::checksum::checksum(&packet).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.extend([0, 8, 0, 0]);
    let header = [&[0x66; 6][..], &[0x52, 0x54, 0, 0, 0, 1], &[8, 0]];
    [header.concat(), packet].concat()
}

#[tokio::test]
async fn many_connections_are_told_to_a_late_listener() {
    const CONNECTIONS: u16 = 3_000;
    let (ours, link) = wire();
    let active = Instance::new(link, false).await;
    // The first thing it tells, when it has begun.
    active.until("port_mac", 1).await;
    let machine = active.server.machine(0);
    for number in 0..CONNECTIONS {
        while !machine.send(&datagram(10_000 + number, 53)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The fabric takes what comes, and so does the other instance, if there were one.
        while active.server.fabric.receive().is_some() {}
        while ours.recv(&mut [0; 128]).is_ok() {}
    }
    let all = u64::from(CONNECTIONS);
    let drain = async {
        loop {
            while ours.recv(&mut [0; 128]).is_ok() {}
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = drain => {}
        () = active.until("nat_create", all) => {}
    }
    while ours.recv(&mut [0; 128]).is_ok() {}
    // Both ways by hand, as a bridge would.
    let (theirs, link) = wire();
    let mut standby = Instance::new(link, true).await;
    let bridge = async {
        let mut frame = [0; 128];
        loop {
            for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
                while let Ok(length) = from.recv(&mut frame) {
                    while to.send(&frame[..length]).is_err() {
                        tokio::time::sleep(Duration::from_micros(100)).await;
                    }
                }
            }
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
    };
    tokio::select! {
        () = bridge => {}
        () = standby.until("nat", all) => {}
    }
    assert_eq!(standby.server.worker.counters().await.unwrap().untold, 0);
    standby.control.take().unwrap().take_over().await;
    let taken = standby.server.worker.sync_counters().unwrap();
    assert_eq!(taken.taken.entries().next(), Some(("nat", all)));
    assert!(taken.not_taken.entries().all(|(_, count)| count == 0));
    assert_eq!(standby.count("role"), 0);
}

#[tokio::test]
async fn messages_for_the_other_role_and_noise_are_counted_and_do_nothing() {
    let (ours, link) = wire();
    let active = Instance::new(link, false).await;
    let mac = Message::MachineMac(MACHINE, Mac([2, 9, 9, 9, 9, 9]));
    let known = active
        .server
        .worker
        .call(|plane| plane.engine.machine_mac(MACHINE));
    let known = known.await.unwrap();
    ours.send(&mac.emit()).unwrap();
    ours.send(&[0; 60]).unwrap();
    ours.send(&mac.emit()[..15]).unwrap();
    active.until("truncated", 1).await;
    assert_eq!((active.count("role"), active.count("foreign")), (1, 1));
    let (ours, link) = wire();
    let standby = Instance::new(link, true).await;
    ours.send(&Message::Request.emit()).unwrap();
    standby.until("role", 1).await;
    ours.send(&mac.emit()).unwrap();
    let beyond = Message::MachineMac(PortId(999), Mac([2, 9, 9, 9, 9, 9]));
    ours.send(&beyond.emit()).unwrap();
    standby.until("field", 1).await;
    for (instance, expected) in [(&active, known), (&standby, Some(Mac([2, 9, 9, 9, 9, 9])))] {
        let mac = instance
            .server
            .worker
            .call(|plane| plane.engine.machine_mac(MACHINE));
        assert_eq!(mac.await.unwrap(), expected);
    }
    // It asks again and again until somebody answers; a request was waiting for us at once.
    let mut frame = [0; 128];
    let length = ours.recv(&mut frame).unwrap();
    assert_eq!(frame[..length], Message::Request.emit()[..]);
}

/// A connection is that of a machine, not of whoever is on its port by the time of the change.
#[tokio::test]
async fn what_was_told_goes_with_the_interface() {
    let (ours, link) = wire();
    let mut standby = Instance::new(link, true).await;
    // The interface has been seen by the time of the second request.
    standby.until("request_dump", 2).await;
    let told = |port: u16| {
        let used = NatUse {
            source: NatSource {
                vni: net::Vni::new(100).unwrap(),
                address: "10.0.0.1".parse().unwrap(),
                port,
            },
            end: NatEnd {
                address: "172.20.1.1".parse().unwrap(),
                port: 2_000,
            },
            remote: NatRemote {
                address: "198.51.100.1".parse().unwrap(),
                port,
                protocol: 17,
            },
        };
        Message::NatTaken(used, MACHINE)
    };
    ours.send(&told(1).emit()).unwrap();
    standby.until("nat", 1).await;
    let id = b"vm1".to_vec();
    let deleted = standby
        .client
        .delete_interface(dpdk::DeleteInterfaceRequest { interface_id: id });
    assert_eq!(outcome!(deleted), OK);
    let again = interface("vm2", "net_tap2", "10.0.0.1", "::");
    let created = standby.client.create_interface(again);
    assert_eq!(outcome!(created), OK);
    standby.until("nat", 0).await;
    // The new one's are kept.
    ours.send(&told(2).emit()).unwrap();
    standby.until("nat", 1).await;
}

/// Whoever rebuilds the bridge and its devices must not leave the instances deaf.
#[tokio::test]
async fn a_device_that_is_removed_is_opened_anew() {
    enter_private_namespace();
    ip("link set lo up");
    let link = Link::open("sync0").unwrap();
    let standby = Instance::new(link, true).await;
    standby.until("request_dump", 1).await;
    for requests in [2, 3] {
        ip("link delete sync0");
        // It asks at once, as after its start.
        standby.until("request_dump", requests).await;
    }
}

/// The other instance's end is gone: nothing else is concerned, and its turn comes all the same.
#[tokio::test]
async fn a_link_that_breaks_costs_nothing_else() {
    let (ours, link) = wire();
    let mut standby = Instance::new(link, true).await;
    drop(ours);
    let turn = standby.control.take().unwrap().take_over();
    tokio::time::timeout(DEADLINE, turn).await.unwrap();
    standby.server.worker.activate();
    let machine = standby.server.machine(0);
    assert!(machine.send(&datagram(10_000, 53)));
    let forwarded = async {
        while standby
            .server
            .fabric
            .receive()
            .is_none_or(|frame| frame[12..14] != [0x86, 0xdd])
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, forwarded).await.unwrap();
}
