//! Two instances on one host: what one tells, byte for byte, and what the other makes of it when its turn comes.

use crate::bed::*;
use crate::build::{self, address};
use crate::scene::*;

use dataplane::sync::{Message, NatUse, NoMessage, VirtualUse};
use dataplane::{
    Instant, NatEnd, NatRemote, NatSource, NotTaken, PortId, SharePlace, VIRTUAL_CONNECTIONS_MAX,
    VirtualServiceSpec, Worker, nat_source_hash, owner, owner_of_message,
};
use net::tcp::{ACK, SYN};
use net::{Mac, Vni};
use proptest::prelude::*;
use std::collections::BTreeSet;

const VM1_IP: &str = "10.100.1.1";
const VM1_IP6: &str = "2000:100:1::1";
const HEADER: &str = "026470730002 026470730001 88b5";

fn bytes(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|digit| !digit.is_whitespace())
        .map(|digit| digit.to_digit(16).unwrap() as u8)
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn used(source: (&str, u16), end: u16, remote: (u8, &str, u16)) -> NatUse {
    NatUse {
        source: NatSource {
            vni: Vni::new(100).unwrap(),
            address: address(source.0),
            port: source.1,
        },
        end: NatEnd {
            address: v4(NAT),
            port: end,
        },
        remote: NatRemote {
            protocol: remote.0,
            address: v4(remote.1),
            port: remote.2,
        },
    }
}

/// Little endian but for checksum and the addresses and ports of virtual services; sizes 42, 36, 17, 8 and 0 behind the type.
#[test]
fn messages_byte_for_byte() {
    let tcp = used((VM1_IP, 1240), 0x1234, (6, "45.86.6.6", 80));
    let tcp_bytes = "64000000 0101640a 000000000000000000000000 00 d804 \
                     010015ac 3412 0606562d 5000 06";
    let echo = used((VM1_IP, 0x0777), 100, (1, "45.86.6.6", 0));
    let echo_bytes = "64000000 0101640a 000000000000000000000000 00 7707 \
                      010015ac 6400 0606562d 7707 01";
    let echo6 = used((VM1_IP6, 0x0777), 100, (1, "45.86.6.6", 0));
    let echo6_bytes = "64000000 20000100000100000000000000000001 01 7707 \
                       010015ac 6400 0606562d 7707 3a";
    let connection = VirtualUse {
        protocol: 17,
        address: v4("1.2.3.4"),
        port: 53,
        slot: 0x0102,
        machine_port: PortId(3),
        machine: v4(VM1_IP),
        source_port: 12_345,
    };
    let mac = Mac([0x52, 0x54, 0, 0xab, 0xcd, 0xef]);
    for (message, expected, size) in [
        (
            Message::NatTaken(tcp, PortId(2)),
            format!("01 {tcp_bytes} 0200 0000 0000"),
            42,
        ),
        (
            Message::NatTaken(echo, PortId(2)),
            format!("01 {echo_bytes} 0200 0800 0000"),
            42,
        ),
        (
            Message::NatTaken(echo6, PortId(0x0203)),
            format!("01 {echo6_bytes} 0302 8000 0000"),
            42,
        ),
        (Message::NatGivenBack(tcp), format!("02 {tcp_bytes}"), 36),
        (
            Message::VirtualConnection(connection),
            "03 01020304 0035 0201 0a640101 3039 0300 11".to_owned(),
            17,
        ),
        (
            Message::MachineMac(PortId(3), mac),
            "04 0300 525400abcdef".to_owned(),
            8,
        ),
        (Message::Request, "05".to_owned(), 0),
    ] {
        let expected = bytes(&format!("{HEADER} {expected}"));
        assert_eq!(hex(&message.emit()), hex(&expected));
        assert_eq!(expected.len(), 14 + 1 + size);
        assert_eq!(Message::parse(&expected), Ok(message));
        // Links pad short frames.
        let padded = [&expected[..], &[0; 46]].concat();
        assert_eq!(Message::parse(&padded), Ok(message));
        for length in 14..expected.len() {
            let cut = Message::parse(&expected[..length]);
            assert_eq!(cut, Err(NoMessage::Truncated), "{length} bytes");
        }
    }
    // What another implementation may fill in and we need not know.
    let other = bytes(&format!("{HEADER} 01 {tcp_bytes} 0200 0300 beef"));
    assert_eq!(
        Message::parse(&other),
        Ok(Message::NatTaken(tcp, PortId(2)))
    );
}

#[test]
fn frames_that_are_no_messages() {
    let key = "0101640a 000000000000000000000000 00 d804 010015ac 3412 0606562d 5000";
    for (frame, expected) in [
        (String::new(), NoMessage::Foreign),
        ("0264707300020264707300018".repeat(2), NoMessage::Foreign),
        (
            "026470730002 026470730001 86dd 05".to_owned(),
            NoMessage::Foreign,
        ),
        (HEADER.to_owned(), NoMessage::Truncated),
        (format!("{HEADER} 00"), NoMessage::Type(0)),
        (format!("{HEADER} 06"), NoMessage::Type(6)),
        (
            format!("{HEADER} 02 00000001 {key} 06"),
            NoMessage::Field("VNI"),
        ),
        (
            format!("{HEADER} 02 64000000 {key} 2f"),
            NoMessage::Field("protocol"),
        ),
        // Echo of the other family.
        (
            format!("{HEADER} 02 64000000 {key} 3a"),
            NoMessage::Field("protocol"),
        ),
        (
            format!(
                "{HEADER} 02 64000000 {} 06",
                key.replace(" 00 d804", " 02 d804")
            ),
            NoMessage::Field("address family"),
        ),
        (
            format!("{HEADER} 03 01020304 0035 0201 0a640101 3039 0300 01"),
            NoMessage::Field("protocol"),
        ),
        (
            format!("{HEADER} 04 0300 ffffffffffff"),
            NoMessage::Field("MAC address"),
        ),
    ] {
        assert_eq!(Message::parse(&bytes(&frame)), Err(expected), "{frame}");
    }
}

proptest! {
    #[test]
    fn any_bytes(kind in 0..8_u8, payload in proptest::collection::vec(any::<u8>(), 0..64)) {
        let frame = [bytes(HEADER), vec![kind], payload].concat();
        if let Ok(message) = Message::parse(&frame) {
            let again = message.emit();
            prop_assert_eq!(Message::parse(&again), Ok(message));
        }
    }
}

fn bed() -> Bed {
    let mut config = config();
    config.virtual_services = [17, 6]
        .map(|protocol| VirtualServiceSpec {
            protocol,
            address: v4("1.2.3.4"),
            port: 53,
            service: v6("2001:db8::53"),
            service_port: 5353,
        })
        .to_vec();
    let mut bed = Bed::with(config);
    bed.default_routes(V100);
    bed.engine
        .create_nat("vm1", address(NAT), range(100, 104), None)
        .unwrap();
    bed
}

fn told(worker: &mut Worker) -> Vec<Message> {
    let mut messages = Vec::new();
    worker.fetch_journal(|message| messages.push(message));
    messages
}

fn everything(bed: &Bed) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut place = Some(SharePlace::START);
    while let Some(from) = place {
        place = bed
            .worker
            .visit_shared(bed.engine.tables(), bed.now, from, |message| {
                messages.push(message);
            });
    }
    messages
}

/// Takes a message over as an instance does when its turn comes.
fn adopt(bed: &mut Bed, message: &Message) -> Result<(), NotTaken> {
    let (tables, now) = (bed.engine.tables(), bed.now);
    match message {
        Message::NatTaken(used, machine) => bed.worker.adopt_nat(tables, *machine, used, now),
        Message::VirtualConnection(used) => bed.worker.adopt_virtual(tables, used, (now, now)),
        other => panic!("{other:?}"),
    }
}

/// The NAT port that a packet to the internet leaves with.
fn leaves_with(bed: &mut Bed, ip: &[u8]) -> u16 {
    match bed.guest(VM1, ip) {
        Out::Tunnel(_, _, _, inner) => ports(&inner).0,
        out => panic!("{out:?}"),
    }
}

/// All the NAT's ports are in use towards one server, so that most connections do not have the port that they would be given now.
fn busy(bed: &mut Bed) -> Vec<(u16, u16)> {
    // Hashes of neighbouring ports differ by chance in the first place to try.
    let sources = [2000, 2002, 2005, 2009];
    sources
        .map(|source| {
            let syn = build::tcp((VM1_IP, source), (PUBLIC, 80), SYN);
            (source, leaves_with(bed, &syn))
        })
        .to_vec()
}

#[test]
fn translated_connections_go_on_with_their_ports() {
    let mut active = bed();
    active.worker.keep_journal();
    let connections = busy(&mut active);
    let messages = told(&mut active.worker);
    assert_eq!(messages.len(), 4);
    // Without what was told, one of them would get another port.
    let displaced = connections.iter().find(|(source, port)| {
        let source = used((VM1_IP, *source), 0, (6, PUBLIC, 80)).source;
        u32::from(*port) != 100 + nat_source_hash(&source) % 4
    });
    let (source, port) = *displaced.expect("none was displaced");
    for comes_first in ["machine", "server"] {
        let mut standby = bed();
        for message in messages.iter().rev() {
            assert_eq!(adopt(&mut standby, message), Ok(()));
        }
        assert_eq!(standby.worker.nat().saturation().0, 4);
        let underlay = standby.engine.nat("vm1").unwrap().underlay;
        let answer = build::tcp((PUBLIC, 80), (NAT, port), ACK);
        let seen = build::tcp((PUBLIC, 80), (VM1_IP, source), ACK);
        if comes_first == "server" {
            assert_eq!(standby.fabric(underlay, &answer), Out::Machine(VM1, seen));
        }
        let sent = build::tcp((VM1_IP, source), (PUBLIC, 80), ACK);
        assert_eq!(leaves_with(&mut standby, &sent), port, "{comes_first}");
        // A connection that nobody told of finds no port, as before.
        let syn = build::tcp((VM1_IP, 2999), (PUBLIC, 80), SYN);
        assert!(matches!(standby.guest(VM1, &syn), Out::Dropped(_)));
        // Those of which nothing is heard end after the timeout.
        standby.now = standby.now.plus_secs(29);
        standby.worker.tick(standby.now);
        assert_eq!(standby.worker.nat().saturation().0, 4);
        standby.now = standby.now.plus_secs(3);
        standby.worker.tick(standby.now);
        assert_eq!(standby.worker.nat().saturation().0, 0);
    }
}

#[test]
fn nat64_and_echo_go_on() {
    let mut active = bed();
    active.worker.keep_journal();
    let mut sent = Vec::new();
    for packet in [
        build::udp((VM1_IP6, 1024), (PUBLIC6, 1234), b"abc"),
        build::echo(VM1_IP6, PUBLIC6, true, 0x77),
        build::echo(VM1_IP, PUBLIC, true, 0x78),
        build::udp((VM1_IP, 1024), (PUBLIC, 53), b"abc"),
    ] {
        let port = leaves_with(&mut active, &packet);
        sent.push((packet, port));
    }
    let messages = told(&mut active.worker);
    assert_eq!(messages.len(), 4);
    let mut standby = bed();
    for message in &messages {
        // What goes through the wire is what comes out of it.
        assert_eq!(Message::parse(&message.emit()), Ok(*message));
        assert_eq!(adopt(&mut standby, message), Ok(()));
    }
    let known = standby.worker.flow_saturation().0;
    for (packet, port) in sent {
        assert_eq!(leaves_with(&mut standby, &packet), port);
    }
    assert_eq!(standby.worker.flow_saturation().0, known, "no new ones");
}

#[test]
fn a_late_listener_hears_the_same() {
    let mut active = bed();
    active.worker.keep_journal();
    busy(&mut active);
    let ask = build::udp((VM1_IP, 9), ("1.2.3.4", 53), b"?");
    let _ = active.send(VM1, &from_guest(&ask));
    // A connection that is not translated is nobody's concern.
    let other = build::udp((VM1_IP, 9), ("10.100.2.1", 53), b"?");
    let _ = active.send(VM1, &from_guest(&other));
    let text = |messages: Vec<Message>| {
        let texts = messages.iter().map(|message| hex(&message.emit()));
        texts.collect::<BTreeSet<String>>()
    };
    let journal = text(told(&mut active.worker));
    assert_eq!(journal.len(), 5);
    assert_eq!(text(everything(&active)), journal);
    assert_eq!(told(&mut active.worker), [], "told once");
    // What a machine that is gone has left is not told as its successor's.
    active.engine.delete_interface("vm1").unwrap();
    assert_eq!(everything(&active), []);
    active.attach(spec("vm1", VM1, V100, VM1_IP, VM1_IP6));
    assert_eq!(everything(&active), []);
}

#[test]
fn what_ends_is_given_back() {
    let mut active = bed();
    active.worker.keep_journal();
    busy(&mut active);
    let begun = told(&mut active.worker);
    active.now = active.now.plus_secs(40);
    active.worker.tick(active.now);
    let ended = told(&mut active.worker);
    let uses = |messages: &[Message]| {
        let uses = messages.iter().map(|message| match message {
            Message::NatTaken(used, VM1) | Message::NatGivenBack(used) => *used,
            other => panic!("{other:?}"),
        });
        uses.collect::<BTreeSet<NatUse>>()
    };
    assert!(
        ended
            .iter()
            .all(|end| matches!(end, Message::NatGivenBack(_)))
    );
    assert_eq!(uses(&begun), uses(&ended));
    assert_eq!(everything(&active), []);
}

#[test]
fn what_does_not_fit_is_not_taken_over() {
    let taken = |used| Message::NatTaken(used, VM1);
    let first = used((VM1_IP, 2000), 101, (6, PUBLIC, 80));
    let mut bed = bed();
    for (used, machine) in [
        // Another port than the interface's share.
        (used((VM1_IP, 2000), 200, (6, PUBLIC, 80)), VM1),
        // A machine without NAT, and no machine.
        (first, VM2),
        (first, PF0),
        (first, PortId(9_999)),
    ] {
        let message = Message::NatTaken(used, machine);
        assert_eq!(adopt(&mut bed, &message), Err(NotTaken::NotConfigured));
    }
    let mut foreign = first;
    foreign.source.vni = Vni::new(200).unwrap();
    assert_eq!(
        adopt(&mut bed, &taken(foreign)),
        Err(NotTaken::NotConfigured)
    );
    // Not behind a default route here: it would go on untranslated.
    for inside in ["10.100.1.2", "10.100.2.9"] {
        let local = used((VM1_IP, 2000), 101, (6, inside, 80));
        assert_eq!(adopt(&mut bed, &taken(local)), Err(NotTaken::NotConfigured));
    }
    assert_eq!(bed.worker.nat().mappings_len(), 0);
    assert_eq!(bed.worker.nat().saturation().0, 0);
    assert_eq!(bed.worker.flow_saturation().0, 0);
    assert_eq!(adopt(&mut bed, &taken(first)), Ok(()));
    // Again is no harm.
    assert_eq!(adopt(&mut bed, &taken(first)), Ok(()));
    assert_eq!(bed.worker.nat().saturation().0, 1);
    // The same port towards the same server, for another machine's port.
    let second = used((VM1_IP, 2001), 101, (6, PUBLIC, 80));
    assert_eq!(adopt(&mut bed, &taken(second)), Err(NotTaken::Conflict));
    // Another port for the same connection.
    let second = used((VM1_IP, 2000), 102, (6, PUBLIC, 80));
    assert_eq!(adopt(&mut bed, &taken(second)), Err(NotTaken::Conflict));
    assert_eq!(bed.worker.nat().saturation().0, 1);
    assert_eq!(bed.worker.nat().mappings_len(), 1);
}

/// An instance with several packet threads may have mapped a machine's port more than once, and this one may have fewer.
#[test]
fn a_machines_port_may_come_with_several_nat_ports() {
    let mut bed = bed();
    let underlay = bed.engine.nat("vm1").unwrap().underlay;
    let told = [
        used((VM1_IP, 2000), 101, (6, PUBLIC, 80)),
        used((VM1_IP, 2000), 103, (6, PUBLIC, 81)),
        used((VM1_IP, 2000), 103, (6, PUBLIC, 82)),
    ];
    for used in told {
        let message = Message::NatTaken(used, VM1);
        assert_eq!(adopt(&mut bed, &message), Ok(()));
    }
    for used in told {
        let (port, end) = (used.remote.port, used.end.port);
        let answer = build::tcp((PUBLIC, port), (NAT, end), ACK);
        let seen = build::tcp((PUBLIC, port), (VM1_IP, 2000), ACK);
        assert_eq!(bed.fabric(underlay, &answer), Out::Machine(VM1, seen));
        let sent = build::tcp((VM1_IP, 2000), (PUBLIC, port), ACK);
        assert_eq!(leaves_with(&mut bed, &sent), end);
    }
    assert_eq!(bed.worker.nat().saturation().0, 3);
    bed.now = bed.now.plus_secs(40);
    bed.worker.tick(bed.now);
    assert_eq!(bed.worker.nat().saturation().0, 0);
    assert_eq!(bed.worker.nat().mappings_len(), 0);
}

/// Nobody tells when a connection to a virtual service ends, so in time every place has been told about. The change must not take all of them
/// for live connections: new ones would find no place until those have timed out.
#[test]
fn virtual_services_have_places_after_the_change() {
    let mut bed = bed();
    let place = |slot: u16| VirtualUse {
        protocol: 17,
        address: v4("1.2.3.4"),
        port: 53,
        slot,
        machine_port: VM1,
        machine: v4(VM1_IP),
        source_port: slot,
    };
    // The latest one is number 700; those before it were told a second apart, and numbers 701 and up before number 0.
    let last = VIRTUAL_CONNECTIONS_MAX as u16 - 1;
    let latest_first = (0..=700).rev().chain((701..=last).rev());
    let tables = bed.engine.tables();
    let now = Instant::from_secs(200_000);
    for (age, slot) in latest_first.enumerate() {
        let told = Instant::from_secs(200_000 - age as u64);
        let adopted = bed.worker.adopt_virtual(tables, &place(slot), (told, now));
        assert_eq!(adopted, Ok(()));
    }
    bed.now = now;
    let asks = |bed: &mut Bed, port| {
        let ask = build::udp((VM1_IP, port), ("1.2.3.4", 53), b"?");
        let (verdict, frame) = bed.send(VM1, &from_guest(&ask));
        assert_eq!(verdict, dataplane::Verdict::Transmit(PF0), "{port}");
        ports(&frame[14..]).0 - 1024
    };
    // Known ones stay where they are, however old, and new ones get the places that have rested longest.
    assert_eq!(asks(&mut bed, 700), 700);
    assert_eq!(asks(&mut bed, 702), 702);
    assert_eq!(asks(&mut bed, 65_000), 701);
    assert_eq!(asks(&mut bed, 65_001), 703);
}

#[test]
fn connections_to_virtual_services_keep_their_ports() {
    let mut active = bed();
    active.worker.keep_journal();
    let asks = [300, 301, 302].map(|port| build::tcp((VM1_IP, port), ("1.2.3.4", 53), SYN));
    let shown: Vec<u16> = asks
        .iter()
        .map(|ask| ports(&active.send(VM1, &from_guest(ask)).1[14..]).0)
        .collect();
    let messages = told(&mut active.worker);
    assert_eq!(messages.len(), 3);
    let mut standby = bed();
    for message in [&messages[2], &messages[1], &messages[2]] {
        let again =
            *message == messages[2] && standby.worker.virtual_services()[1].live(standby.now) == 2;
        let expected = if again {
            Err(NotTaken::Conflict)
        } else {
            Ok(())
        };
        assert_eq!(adopt(&mut standby, message), expected);
    }
    // First the answer, then the machine.
    let own = "fc00:1::d0ff:4000:100:0";
    let answer = build::tcp(("2001:db8::53", 5353), (own, shown[2]), SYN | ACK);
    let frame = build::ethernet(Mac([0x22; 6]), ROUTER_MAC, 0x86dd, &answer);
    let (verdict, frame) = standby.send(PF0, &frame);
    assert_eq!(verdict, dataplane::Verdict::Transmit(VM1));
    assert_eq!(ports(&frame[14..]), (53, 302));
    let (_, frame) = standby.send(VM1, &from_guest(&asks[1]));
    assert_eq!(ports(&frame[14..]).0, shown[1]);
    // Not known here: a machine with another address, a service.
    let Message::VirtualConnection(known) = messages[0] else {
        panic!("{messages:?}")
    };
    for other in [
        VirtualUse {
            machine: v4("10.100.1.9"),
            ..known
        },
        VirtualUse { port: 54, ..known },
        VirtualUse {
            machine_port: PF0,
            ..known
        },
    ] {
        let message = Message::VirtualConnection(other);
        assert_eq!(adopt(&mut standby, &message), Err(NotTaken::NotConfigured));
    }
    let outside = VirtualUse {
        slot: u16::MAX,
        ..known
    };
    let message = Message::VirtualConnection(outside);
    assert_eq!(adopt(&mut standby, &message), Err(NotTaken::Conflict));
}

/// The other instance may have another number of packet threads; what it takes over belongs to the thread that gets the packets.
#[test]
fn connections_go_to_the_thread_of_their_packets() {
    const THREADS: usize = 5;
    let mut active = bed();
    active.engine.delete_nat("vm1").unwrap();
    let underlay = active
        .engine
        .create_nat("vm1", address(NAT), range(1_000, 3_000), None)
        .unwrap();
    active.worker.keep_journal();
    let mut busy = BTreeSet::new();
    for number in 0..60_u16 {
        let remote = format!("45.86.6.{number}");
        let remote6 = format!("64:ff9b::2d56:6{number:02x}");
        let packet = match number % 5 {
            0 => build::tcp((VM1_IP, 9), (&remote, 1000 + number), SYN),
            1 => build::udp((VM1_IP, 9), (&remote, 1000 + number), b"?"),
            2 => build::echo(VM1_IP, &remote, true, number),
            3 => build::tcp((VM1_IP6, 9), (&remote6, 1000 + number), SYN),
            _ => build::udp((VM1_IP, 1000 + number), ("1.2.3.4", 53), b"?"),
        };
        let (_, frame) = active.send(VM1, &from_guest(&packet));
        let messages = told(&mut active.worker);
        let [message] = messages[..] else {
            panic!("{messages:?}")
        };
        let tables = active.engine.tables();
        let told = owner_of_message(tables, &message, THREADS);
        assert_eq!(
            told,
            Some(owner(tables, VM1, &from_guest(&packet), THREADS))
        );
        if number % 5 < 2 {
            // The answer as well.
            let port = ports(&frame[54..]).0;
            let answer = if number % 5 == 0 {
                build::tcp((&remote, 1000 + number), (NAT, port), ACK)
            } else {
                build::udp((&remote, 1000 + number), (NAT, port), b"!")
            };
            let answer = from_fabric(underlay, &answer);
            assert_eq!(told, Some(owner(tables, PF0, &answer, THREADS)));
        }
        busy.insert(told);
    }
    assert_eq!(busy.len(), THREADS);
    let elsewhere = Message::MachineMac(VM1, Mac([2; 6]));
    assert_eq!(
        owner_of_message(active.engine.tables(), &elsewhere, THREADS),
        None
    );
}

#[test]
fn addresses_of_machines() {
    let bed = Bed::new();
    let mac = Mac([0x52, 0x54, 0, 9, 9, 9]);
    assert!(bed.engine.learn_machine_mac(VM1, mac));
    assert_eq!(bed.engine.machine_mac(VM1), Some(mac));
    assert!(!bed.engine.learn_machine_mac(PF0, mac));
    assert!(!bed.engine.learn_machine_mac(PortId(9_999), mac));
}
