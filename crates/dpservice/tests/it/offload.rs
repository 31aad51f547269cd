//! The life of a flow in a NIC: a NIC that carries out rules stands in front of the service's ports.

use crate::harness::*;
use dataplane::offload::interpret::{self, Outcome};
use dataplane::offload::{Nic, OffloadCounters, Rule, Stays};
use dataplane::{EngineConfig, PortConfig, PortId, PortKind};
use dpservice::devices::{Driver, gateway_mac, machine_device, uplink_device};
use dpservice::service;
use dpservice::worker::{self, Settings};
use net::{Mac, Vni};
use ports::offload::{Hits, Refusal, RuleDevice, RuleHandle};
use ports::{Frame, MemoryPeer, memory};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const UPLINK: PortId = PortId(0);
const MACHINE: PortId = PortId(1);
const GUEST_MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
/// Flows age so many times faster. A NIC's counters are read every quarter of a second, which must stay below the timeout.
const CLOCK_RATE: u32 = 8;
const TIMEOUT_S: u32 = 5;
const NEIGHBOUR: Ipv6Addr = Ipv6Addr::new(0xfc00, 2, 0, 0, 0xd000, 0, 0, 1);

/// A switch of two ports with rules. What no rule is about goes to the service.
#[derive(Default)]
struct Switch {
    rules: BTreeMap<u64, (Vec<Rule>, Hits)>,
    next: u64,
    refuses: bool,
    refused: u64,
}

#[derive(Clone)]
struct FakeNic(Arc<Mutex<Switch>>);

impl RuleDevice for FakeNic {
    fn nic(&self) -> Nic {
        Nic {
            mtus: vec![Some(9000), Some(1500)],
        }
    }

    fn install(&mut self, rules: &[Rule]) -> Result<RuleHandle, Refusal> {
        let mut switch = self.0.lock().unwrap();
        if switch.refuses {
            switch.refused += 1;
            let reason = "cannot".to_owned();
            return Err(Refusal { reason });
        }
        let handle = switch.next;
        switch.next += 1;
        switch
            .rules
            .insert(handle, (rules.to_vec(), Hits::default()));
        Ok(RuleHandle(handle))
    }

    fn hits(&mut self, rules: RuleHandle) -> Option<Hits> {
        self.0
            .lock()
            .unwrap()
            .rules
            .get(&rules.0)
            .map(|found| found.1)
    }

    fn remove(&mut self, rules: RuleHandle) {
        self.0.lock().unwrap().rules.remove(&rules.0);
    }
}

/// What a frame became.
#[derive(Debug, PartialEq, Eq)]
enum Went {
    Hardware(PortId, Vec<u8>),
    Software,
}

impl FakeNic {
    /// A frame reaches the NIC on `port`; what it does not handle goes to the service's end of the port.
    fn receive(&self, port: PortId, frame: &[u8], service: &MemoryPeer) -> Went {
        let mut switch = self.0.lock().unwrap();
        for (rules, hits) in switch.rules.values_mut() {
            if let Some(place) = interpret::matching(rules.iter(), port, frame)
                && let Outcome::Port(to, bytes) = interpret::carry_out(&rules[place], frame)
            {
                hits.packets += 1;
                hits.bytes += frame.len() as u64;
                return Went::Hardware(to, bytes);
            }
        }
        drop(switch);
        assert!(service.send(frame));
        Went::Software
    }

    fn installed(&self) -> usize {
        self.0.lock().unwrap().rules.len()
    }
}

struct Bed {
    nic: FakeNic,
    fabric: MemoryPeer,
    machine: MemoryPeer,
    worker: worker::Handle,
    threads: worker::Threads,
}

impl Bed {
    async fn new() -> Bed {
        let port = |name, kind, mac| PortConfig { name, kind, mac };
        let ports = vec![
            port(uplink_device(0), PortKind::Uplink(0), UPLINK_MAC),
            port(machine_device(0), PortKind::Machine, gateway_mac(HOST, 0)),
        ];
        let config = EngineConfig {
            flow_timeout_s: TIMEOUT_S,
            ..EngineConfig::new(HOST, ports)
        };
        let (uplink, fabric) = memory::pair("pf0", UPLINK_MAC, 9000).unwrap();
        let (port, machine) = memory::pair("vm0", gateway_mac(HOST, 0), 1500).unwrap();
        let nic = FakeNic(Arc::default());
        let (worker, threads, _lost) = service::start_threads_with::<Frame>(
            &config,
            vec![Driver::native(vec![uplink])],
            Settings {
                clock_rate: CLOCK_RATE,
                ..Settings::default()
            },
            Some(Box::new(nic.clone())),
        )
        .await
        .unwrap();
        worker.call(configure).await.unwrap();
        let driver = Driver::native(vec![port]);
        assert!(
            worker
                .attach(MACHINE, driver, |_| true)
                .await
                .unwrap()
                .unwrap()
        );
        Bed {
            nic,
            fabric,
            machine,
            worker,
            threads,
        }
    }

    async fn counters(&self) -> OffloadCounters {
        let all = self
            .worker
            .inspect(|inspection| inspection.worker.offload_counters().clone());
        all.await.unwrap().remove(0)
    }

    /// Flows known to the worker.
    async fn flows(&self) -> usize {
        let all = self
            .worker
            .inspect(|inspection| inspection.worker.flow_saturation().0);
        all.await.unwrap().remove(0)
    }

    /// Sends a packet of the machine into the NIC.
    fn send(&self) -> Went {
        self.nic.receive(MACHINE, &frame(), &self.machine)
    }

    /// What the service put on the uplink.
    async fn put_out(&self) -> Vec<u8> {
        eventually(|| async { self.fabric.receive() }).await
    }
}

fn configure(plane: &mut worker::Plane) {
    let engine = &mut plane.engine;
    engine.initialize();
    engine.set_uplink_mtu(UPLINK, 9000);
    engine.set_next_hop(UPLINK, Some(ROUTER_MAC));
    let vni = Vni::new(100).unwrap();
    engine
        .create_interface(dataplane::InterfaceSpec {
            id: "vm".to_owned(),
            device: machine_device(0),
            vni,
            ipv4: Some(OWN),
            ipv6: None,
            pxe: None,
            metering: dataplane::Metering::default(),
            preferred_underlay: None,
            hostname: None,
        })
        .unwrap();
    let next_hop = IpAddr::V6(NEIGHBOUR);
    engine
        .create_route(
            vni,
            IpAddr::V4(Ipv4Addr::new(10, 0, 1, 0)),
            24,
            next_hop,
            100,
        )
        .unwrap();
}

/// A UDP packet of the machine.
fn frame() -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0];
    ip.extend(OWN.octets());
    ip.extend(FAR.octets());
    let sum = net::checksum::checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    ip.extend([0x12, 0x34, 0x56, 0x78, 0, 12, 0, 0, 1, 2, 3, 4]);
    [&gateway_mac(HOST, 0).0[..], &GUEST_MAC.0, &[0x08, 0], &ip].concat()
}

/// Waits until `look` finds something.
async fn eventually<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> T {
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "timed out");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_flow_moves_into_the_nic_lives_there_and_comes_back() {
    let bed = Bed::new().await;
    assert_eq!(bed.send(), Went::Software);
    let by_software = bed.put_out().await;
    eventually(|| async { (bed.nic.installed() == 1).then_some(()) }).await;

    // In the NIC, with the same bytes, and nothing of it reaches software.
    let Went::Hardware(UPLINK, by_hardware) = bed.send() else {
        panic!("not handled");
    };
    assert_eq!(by_hardware, by_software);
    assert_eq!(bed.fabric.receive(), None);

    // Its counters keep it alive for longer than the timeout, although software sees no packet.
    let begin = std::time::Instant::now();
    eventually(|| async {
        assert!(matches!(bed.send(), Went::Hardware(..)));
        (begin.elapsed() * CLOCK_RATE > Duration::from_secs(2 * u64::from(TIMEOUT_S))).then_some(())
    })
    .await;
    assert_eq!(bed.flows().await, 1);
    let counted = eventually(|| async {
        let counters = bed.counters().await;
        (counters.packets > 100).then_some(counters)
    })
    .await;
    assert_eq!(counted.flows, 1, "answers have not been seen");
    assert_eq!(counted.bytes, counted.packets * frame().len() as u64);

    // A change that concerns it: rules go, software decides anew, and the NIC gets the new answer.
    let moved = Ipv6Addr::new(0xfc00, 3, 0, 0, 0xd000, 0, 0, 1);
    bed.worker
        .call(move |plane| {
            let vni = Vni::new(100).unwrap();
            let prefix = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 0));
            plane.engine.delete_route(vni, prefix, 24).unwrap();
            let next_hop = IpAddr::V6(moved);
            let created = plane.engine.create_route(vni, prefix, 24, next_hop, 100);
            created.unwrap();
        })
        .await
        .unwrap();
    eventually(|| async { (bed.nic.installed() == 0).then_some(()) }).await;
    assert_eq!(bed.send(), Went::Software);
    let anew = bed.put_out().await;
    assert_eq!(anew[38..54], moved.octets());
    let again = eventually(|| async {
        match bed.send() {
            Went::Hardware(_, bytes) => Some(bytes),
            Went::Software => None,
        }
    })
    .await;
    assert_eq!(again, anew);

    // Without packets it ends, and its rules with it.
    eventually(|| async { (bed.nic.installed() == 0).then_some(()) }).await;
    eventually(|| async { (bed.flows().await == 0).then_some(()) }).await;
    let counters = bed.counters().await;
    assert_eq!((counters.flows, counters.installed), (0, counters.removed));
    let Bed {
        nic,
        worker,
        threads,
        ..
    } = bed;
    tokio::task::spawn_blocking(move || threads.stop(worker))
        .await
        .unwrap();
    assert_eq!(Arc::strong_count(&nic.0), 1, "the thread has let go");
}

#[tokio::test]
async fn what_the_nic_refuses_stays_in_software() {
    let bed = Bed::new().await;
    bed.nic.0.lock().unwrap().refuses = true;
    assert_eq!(bed.send(), Went::Software);
    bed.put_out().await;
    let counters = eventually(|| async {
        let counters = bed.counters().await;
        (counters.stays(Stays::Refused) == 1).then_some(counters)
    })
    .await;
    assert_eq!((counters.flows, counters.installed), (0, 0));
    for _ in 0..100 {
        assert_eq!(bed.send(), Went::Software);
        bed.put_out().await;
    }
    assert_eq!(bed.nic.0.lock().unwrap().refused, 1, "asked once");
}
