//! Services with state of their own when several threads share the packets: every packet goes to the worker that [`dataplane::owner`] names,
//! and each worker knows only its own connections.

use crate::bed::*;
use crate::build::{self, address};
use crate::scene::*;
use core::net::Ipv6Addr;
use dataplane::{PortId, Verdict, VirtualServiceSpec, Worker, owner};
use net::Mac;
use net::tcp::SYN;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// A bed whose worker changes with every packet.
struct Threads {
    bed: Bed,
    others: Vec<Option<Worker>>,
}

impl Threads {
    fn new(bed: Bed, count: usize) -> Threads {
        let others = (0..count).map(|_| Some(bed.engine.worker())).collect();
        Threads { bed, others }
    }

    /// Lets the owner of a frame handle it.
    fn with_owner<R>(
        &mut self,
        port: PortId,
        frame: &[u8],
        handle: impl FnOnce(&mut Bed) -> R,
    ) -> R {
        let number = owner(self.bed.engine.tables(), port, frame, self.others.len());
        let own = self.others[number].take().unwrap();
        let resting = core::mem::replace(&mut self.bed.worker, own);
        let result = handle(&mut self.bed);
        let own = core::mem::replace(&mut self.bed.worker, resting);
        self.others[number] = Some(own);
        result
    }

    fn guest(&mut self, port: PortId, ip: &[u8]) -> Out {
        self.with_owner(port, &from_guest(ip), |bed| bed.guest(port, ip))
    }

    fn fabric(&mut self, to: Ipv6Addr, ip: &[u8]) -> Out {
        let frame = from_fabric(to, ip);
        self.with_owner(PF0, &frame, |bed| bed.fabric(to, ip))
    }

    fn workers(&mut self) -> impl Iterator<Item = &mut Worker> {
        self.others.iter_mut().flatten()
    }

    /// Lets all connections end.
    fn rest(&mut self) {
        for second in 0..120 {
            let now = dataplane::Instant::from_secs(1_000 + second);
            for worker in self.workers() {
                worker.tick(now);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    machine: usize,
    kind: u8,
    port: u16,
    remote: u8,
    remote_port: u16,
}

fn attempt() -> impl Strategy<Value = Attempt> {
    (0..3_usize, 0..6_u8, 1..9_u16, 0..6_u8, 80..83_u16).prop_map(
        |(machine, kind, port, remote, remote_port)| Attempt {
            machine,
            kind,
            port,
            remote,
            remote_port,
        },
    )
}

/// The attempt's packet, and its answer as the machine has to see it (but for the fields that translation sets).
fn packets(attempt: &Attempt) -> (Vec<u8>, Vec<u8>) {
    let Attempt {
        machine,
        kind,
        port,
        remote,
        remote_port,
    } = *attempt;
    let is_v6 = kind >= 3;
    let near = match (machine, is_v6) {
        (1, false) => "10.100.1.2",
        (_, false) => "10.100.1.1",
        (1, true) => "2000:100:1::2",
        (_, true) => "2000:100:1::1",
    };
    let far = if is_v6 {
        format!("64:ff9b::2d56:60{remote}")
    } else {
        format!("45.86.6.{remote}")
    };
    let (there, back) = ((near, port), (far.as_str(), remote_port));
    match kind % 3 {
        0 => (build::tcp(there, back, SYN), build::tcp(back, there, SYN)),
        1 => (
            build::udp(there, back, b"data"),
            build::udp(back, there, b"data"),
        ),
        _ => (
            build::echo(near, &far, true, port),
            build::echo(&far, near, false, port),
        ),
    }
}

/// What a translated packet shows outside: protocol, NAT port, remote address, remote port.
type Outside = (u8, u16, [u8; 4], u16);

fn outside(ip: &[u8]) -> Outside {
    let (near, far) = ports(ip);
    let far = if ip[9] == 1 { 0 } else { far };
    (ip[9], near, ip[16..20].try_into().unwrap(), far)
}

/// The answer that the remote end gives to a translated packet.
fn answer(ip: &[u8]) -> Vec<u8> {
    let text = |at: usize| std::net::Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    let (near, far) = (text(12).to_string(), text(16).to_string());
    let (from, to) = ports(ip);
    match ip[9] {
        6 => build::tcp((&far, to), (&near, from), SYN),
        17 => build::udp((&far, to), (&near, from), b"data"),
        _ => build::echo(&far, &near, false, from),
    }
}

/// Where the transport of a delivered error's quotation begins, and that transport's two first words.
fn quoted(ip: &[u8]) -> &[u8] {
    let start = if ip[0] >> 4 == 4 { 28 } else { 48 };
    &ip[start..]
}

fn check_nat(threads: &mut Threads, underlay: &[Ipv6Addr; 3], attempts: &[Attempt]) {
    let machines = [VM1, VM2, VM3];
    let mut users: BTreeMap<Outside, (usize, Vec<u8>)> = BTreeMap::new();
    let mut busy = BTreeSet::new();
    for attempt in attempts {
        let (sent, seen) = packets(attempt);
        let inner = match threads.guest(machines[attempt.machine], &sent) {
            Out::Tunnel(_, _, _, inner) => inner,
            Out::Dropped(dataplane::DropReason::NatExhausted) => continue,
            other => panic!("{other:?}"),
        };
        let used = outside(&inner);
        let user = (attempt.machine, sent.clone());
        let known = users.entry(used).or_insert_with(|| user.clone());
        assert_eq!(*known, user, "two connections look alike from outside");
        for (number, worker) in threads.others.iter().enumerate() {
            if worker.as_ref().unwrap().nat().saturation().0 > 0 {
                busy.insert(number);
            }
        }
        // The answer, by whichever share's address of the network it comes.
        let to = match attempt.machine {
            2 => underlay[2],
            _ => underlay[usize::from(attempt.port) % 2],
        };
        let Out::Machine(port, got) = threads.fabric(to, &answer(&inner)) else {
            panic!("the answer to {attempt:?} got lost");
        };
        assert_eq!(port, machines[attempt.machine]);
        assert_eq!(ports(&got), ports(&seen));
        // A router on the way complains.
        let from = "198.51.100.7";
        let error = build::icmp(from, NAT, 3, 1, [0; 4], &inner[..28]);
        let Out::Machine(port, got) = threads.fabric(to, &error) else {
            panic!("the error about {attempt:?} got lost");
        };
        assert_eq!(port, machines[attempt.machine]);
        let start = if sent[0] >> 4 == 4 { 20 } else { 40 };
        let shown = &quoted(&got)[start..start + 8];
        assert_eq!(shown[..2], sent[start..start + 2], "{attempt:?}");
        assert_eq!(shown[4..6], sent[start + 4..start + 6]);
    }
    let uses: usize = threads.workers().map(|w| w.nat().saturation().0).sum();
    assert_eq!(uses, users.len());
    assert!(users.len() < 20 || busy.len() > 1, "one thread does it all");
    threads.rest();
    for worker in threads.workers() {
        assert_eq!(worker.nat().saturation().0, 0, "uses left behind");
        assert_eq!(worker.nat().mappings_len(), 0, "mappings left behind");
        assert_eq!(worker.flow_saturation().0, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Three machines of two networks share four ports of one address.
    #[test]
    fn nat_ports_are_never_given_twice(
        count in 2..5_usize,
        attempts in prop::collection::vec(attempt(), 1..120),
    ) {
        let mut bed = Bed::public();
        let underlay = ["vm1", "vm2", "vm3"].map(|id| {
            bed.engine.create_nat(id, address(NAT), range(100, 104), None).unwrap()
        });
        check_nat(&mut Threads::new(bed, count), &underlay, &attempts);
    }
}

#[test]
fn a_virtual_address_on_the_same_host() {
    let mut bed = Bed::public();
    bed.engine.create_vip("vm2", address(VIP), None).unwrap();
    let mut threads = Threads::new(bed, 4);
    for port in 1..200 {
        let sent = build::tcp(("10.100.1.1", port), (VIP, 80), SYN);
        let seen = build::tcp(("10.100.1.1", port), ("10.100.1.2", 80), SYN);
        assert_eq!(threads.guest(VM1, &sent), Out::Machine(VM2, seen));
        let sent = build::tcp(("10.100.1.2", 80), ("10.100.1.1", port), SYN);
        let seen = build::tcp((VIP, 80), ("10.100.1.1", port), SYN);
        assert_eq!(threads.guest(VM2, &sent), Out::Machine(VM1, seen));
    }
}

/// The ports of a segment tell its worker; of its later pieces, only what the receiving thread saw of the first one.
#[test]
fn pieces_of_a_segment_follow_the_first() {
    let mut bed = Bed::public();
    bed.engine
        .create_nat("vm1", address(NAT), range(100, 400), None)
        .unwrap();
    let mut sorter = bed.engine.sorter();
    let mut threads = Threads::new(bed, 4);
    let mut busy = BTreeSet::new();
    for port in 1..100 {
        let (near, far) = (v4("10.100.1.1"), v4(PUBLIC));
        let mut segment = build::tcp(("10.100.1.1", 9), (PUBLIC, port), SYN)[20..].to_vec();
        segment.extend([9; 12]);
        let (first, last) = segment.split_at(24);
        let pieces = [(0x2000, first), (3, last)]
            .map(|(fragment, bytes)| build::ipv4_with(6, near, far, fragment, &[], bytes));
        let mut numbers = Vec::new();
        for piece in pieces {
            let frame = from_guest(&piece);
            let now = threads.bed.now;
            let tables = threads.bed.engine.tables();
            let number = sorter.owner(tables, VM1, &frame, 4, now);
            numbers.push(number);
            let own = threads.others[number].take().unwrap();
            let resting = core::mem::replace(&mut threads.bed.worker, own);
            let (verdict, bytes) = threads.bed.send(VM1, &frame);
            assert_eq!(verdict, Verdict::Transmit(PF0));
            assert_eq!(bytes[66..70], v4(NAT).octets());
            let own = core::mem::replace(&mut threads.bed.worker, resting);
            threads.others[number] = Some(own);
        }
        assert_eq!(numbers[0], numbers[1]);
        let whole = from_guest(&build::tcp(("10.100.1.1", 9), (PUBLIC, port), SYN));
        let tables = threads.bed.engine.tables();
        assert_eq!(owner(tables, VM1, &whole, 4), numbers[0]);
        busy.insert(numbers[0]);
    }
    assert_eq!(busy.len(), 4);
}

#[test]
fn a_virtual_service_hands_out_its_ports_once() {
    let spec = |index: u16| VirtualServiceSpec {
        protocol: 17,
        address: v4("1.2.3.4"),
        port: 153 + index,
        service: v6("2001:db8::53"),
        service_port: 5_353 + index,
    };
    let mut config = config();
    config.virtual_services = (0..16).map(spec).collect();
    let mut threads = Threads::new(Bed::with(config), 4);
    let mut seen = BTreeSet::new();
    let mut busy = BTreeSet::new();
    for port in 0..200_u16 {
        let (machine, near) =
            [(VM1, "10.100.1.1"), (VM2, "10.100.1.2")][usize::from(port / 16 % 2)];
        let service = port % 16;
        let ask = from_guest(&build::udp((near, 1000), ("1.2.3.4", 153 + service), b"?"));
        let (verdict, frame) = threads.with_owner(machine, &ask, |bed| bed.send(machine, &ask));
        assert_eq!(verdict, Verdict::Transmit(PF0));
        let from = Ipv6Addr::from(<[u8; 16]>::try_from(&frame[22..38]).unwrap());
        let (used, _) = ports(&frame[14..]);
        if port < 32 {
            assert!(seen.insert((service, used)), "given twice");
        }
        busy.insert(owner(threads.bed.engine.tables(), machine, &ask, 4));
        let reply = build::udp(
            ("2001:db8::53", 5_353 + service),
            (&from.to_string(), used),
            b"!",
        );
        let reply = build::ethernet(Mac([0x22; 6]), ROUTER_MAC, 0x86dd, &reply);
        let (verdict, _) = threads.with_owner(PF0, &reply, |bed| bed.send(PF0, &reply));
        assert_eq!(verdict, Verdict::Transmit(machine));
    }
    assert!(busy.len() > 1, "one thread serves all");
}
