//! Fragmented packets whose family changes: through NAT64, and to virtual services and back.

use crate::bed::*;
use crate::build::{self, address};
use crate::fragments::{back, cut, cut6, out, whole};
use crate::scene::*;
use core::net::Ipv6Addr;
use dataplane::{DropReason, Packet, PacketBuf, Verdict, VirtualServiceSpec, owner};
use net::Mac;
use net::tcp::ACK;
use std::collections::BTreeSet;

const VM1_IP: &str = "10.100.1.1";
const VM1_IP6: &str = "2000:100:1::1";
const VIRTUAL: &str = "1.2.3.4";
const SERVICE: &str = "2001:db8::53";
const LONG: &[u8] = &[7; 40];

/// The packet of which these are the two pieces. Its hop limit is 63, like that of a built one.
fn whole6(pieces: [&[u8]; 2], identification: u32) -> Vec<u8> {
    let [first, last] = pieces;
    assert_eq!(first[8..40], last[8..40], "both have the same addresses");
    for (piece, position) in [(first, 1), (last, 3 << 3)] {
        assert_eq!(piece[6], 44);
        let length = u16::from_be_bytes([piece[4], piece[5]]);
        assert_eq!(usize::from(length), piece.len() - 40);
        let expected = u64::from(piece[40]) << 56 | position << 32 | u64::from(identification);
        assert_eq!(piece[40..48], expected.to_be_bytes(), "fragment header");
    }
    let end = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&first[at..at + 16]).unwrap());
    let payload = [&first[48..], &last[48..]].concat();
    let packet = build::ipv6(first[40], end(8), end(24), &payload);
    check_checksums(&packet);
    packet
}

/// An IPv4 port that the pieces show, and the packet.
fn down(bed: &mut Bed, packet: &[u8]) -> (u16, Vec<u8>) {
    let [first, last] = cut6(packet).map(|piece| out(bed, &piece).unwrap());
    let chosen = u16::from_be_bytes([first[20], first[21]]);
    (chosen, whole([&first, &last]))
}

#[test]
fn pieces_through_nat64() {
    let mut bed = Bed::public();
    let underlay = bed
        .engine
        .create_nat("vm1", address(NAT), range(100, 104), None)
        .unwrap();
    let sent = build::udp((VM1_IP6, 1024), (PUBLIC6, 1234), LONG);
    let (chosen, seen) = down(&mut bed, &sent);
    assert_eq!(seen, build::udp((NAT, chosen), (PUBLIC, 1234), LONG));
    assert!((100..104).contains(&chosen));
    let answer = build::udp((PUBLIC, 1234), (NAT, chosen), LONG);
    let [first, last] = cut(&answer).map(|piece| back(&mut bed, underlay, &piece).unwrap());
    let expected = build::udp((PUBLIC6, 1234), (VM1_IP6, 1024), LONG);
    assert_eq!(whole6([&first, &last], 0x1234), expected);

    let sent = build::tcp_with((VM1_IP6, 9), (PUBLIC6, 443), ACK, LONG);
    let (chosen, seen) = down(&mut bed, &sent);
    let expected = build::tcp_with((NAT, chosen), (PUBLIC, 443), ACK, LONG);
    assert_eq!(seen, expected);
    let answer = build::tcp_with((PUBLIC, 443), (NAT, chosen), ACK, LONG);
    let [first, last] = cut(&answer).map(|piece| back(&mut bed, underlay, &piece).unwrap());
    let expected = build::tcp_with((PUBLIC6, 443), (VM1_IP6, 9), ACK, LONG);
    assert_eq!(whole6([&first, &last], 0x1234), expected);
}

#[test]
fn an_error_about_a_piece_that_went_through_nat64() {
    let mut bed = Bed::public();
    let underlay = bed
        .engine
        .create_nat("vm1", address(NAT), range(100, 104), None)
        .unwrap();
    let [first, _] = cut6(&build::udp((VM1_IP6, 1024), (PUBLIC6, 1234), LONG));
    let quoted = out(&mut bed, &first).unwrap();
    let error = build::icmp("192.0.2.1", NAT, 3, 4, [0, 0, 5, 120], &quoted);
    let Out::Machine(VM1, seen) = bed.fabric(underlay, &error) else {
        panic!("not delivered")
    };
    let mut known = first;
    // The upper half of the identification is not in IPv4.
    known[44..46].fill(0);
    let expected = build::icmp("64:ff9b::c000:201", VM1_IP6, 2, 0, [0, 0, 5, 140], &known);
    assert_eq!(hex(&seen[48..]), hex(&expected[48..]), "the quotation");
    assert_eq!(seen[40..48], expected[40..48], "the error");
}

#[test]
fn pieces_that_have_no_counterpart() {
    let mut bed = Bed::public();
    let underlay = bed
        .engine
        .create_nat("vm1", address(NAT), range(100, 104), None)
        .unwrap();
    let ping = build::icmp(VM1_IP6, PUBLIC6, 128, 0, [0, 9, 0, 1], LONG);
    let [first, last] = cut6(&ping).map(|piece| out(&mut bed, &piece));
    assert_eq!(first, Err(DropReason::NotTranslatable));
    assert_eq!(last, Err(DropReason::FragmentUnknown));
    let (chosen, _) = down(
        &mut bed,
        &build::udp((VM1_IP6, 1024), (PUBLIC6, 1234), LONG),
    );
    // IPv6 demands the checksum that it lacks.
    let mut answer = build::udp((PUBLIC, 1234), (NAT, chosen), LONG);
    answer[26..28].fill(0);
    let [first, last] = cut(&answer).map(|piece| back(&mut bed, underlay, &piece));
    assert_eq!(first, Err(DropReason::NotTranslatable));
    assert_eq!(last, Err(DropReason::FragmentUnknown));
}

/// A piece loses its fragment header, too. What is told fits whole packets.
#[test]
fn what_fits_the_tunnel_after_nat64() {
    let mut bed = Bed::public();
    bed.engine.set_uplink_mtu(PF0, 1_500);
    bed.engine
        .create_nat("vm1", address(NAT), range(100, 104), None)
        .unwrap();
    let (from, to) = ((VM1_IP6, 1024), (PUBLIC6, 1234));
    let datagram = |length: usize| build::udp(from, to, &vec![7; length - 48]);
    let piece = |length: usize| {
        let header = [17, 0, 0, 1, 1, 2, 3, 4];
        let bytes = [&header[..], &datagram(length - 8)[40..]].concat();
        build::ipv6(44, v6(from.0), v6(to.0), &bytes)
    };
    let mut largest = |make: &dyn Fn(usize) -> Vec<u8>| {
        let mut told = |length: usize| {
            bed.now = bed.now.plus_secs(1);
            let (verdict, frame) = bed.send(VM1, &from_guest(&make(length)));
            let is_sent = verdict == Verdict::Transmit(PF0);
            (!is_sent).then(|| u32::from_be_bytes(*frame[58..].first_chunk().unwrap()))
        };
        let refused = (1_400..1_700).find_map(|length| Some((length, told(length)?)));
        let (length, mtu) = refused.unwrap();
        (length - 1, mtu as usize)
    };
    let (packet, told) = largest(&datagram);
    assert_eq!(packet, told);
    assert_eq!(largest(&piece), (packet + 8, told));
}

/// What a machine hands over in one piece, to be cut into segments of `segment_len` bytes by the port that sends it.
struct SuperFrame {
    packet: PacketBuf,
    tcp_len: usize,
    segment_len: usize,
}

impl Packet for SuperFrame {
    fn frame(&self) -> &[u8] {
        self.packet.frame()
    }

    fn frame_mut(&mut self) -> &mut [u8] {
        self.packet.frame_mut()
    }

    fn reframe(&mut self, remove: usize, add: usize, keep: usize) -> bool {
        Packet::reframe(&mut self.packet, remove, add, keep)
    }

    fn resize(&mut self, length: usize) -> bool {
        self.packet.resize(length)
    }

    fn clear(&mut self) {
        self.packet.clear();
    }

    fn is_cut_to(&self, ip_offset: usize, length: u16) -> bool {
        dataplane::wire_len(self.frame(), self.tcp_len, self.segment_len)
            <= ip_offset + usize::from(length)
    }
}

/// Of what is cut on its way out, the pieces have to fit.
#[test]
fn super_frames_through_nat64() {
    let mut bed = Bed::public();
    bed.engine.set_uplink_mtu(PF0, 1_500);
    bed.engine
        .create_nat("vm1", address(NAT), range(100, 101), None)
        .unwrap();
    let sent = build::tcp_with((VM1_IP6, 1024), (PUBLIC6, 80), ACK, &[7; 5_000]);
    let left = build::tcp_with((NAT, 100), (PUBLIC, 80), ACK, &[7; 5_000]);
    let mut send = |segment_len| {
        let mut packet = PacketBuf::with_frame_max(9_100);
        assert!(packet.fill(&from_guest(&sent)));
        let tcp_len = sent.len() - 40;
        let mut packet = SuperFrame {
            packet,
            tcp_len,
            segment_len,
        };
        let verdict = bed.process(VM1, &mut packet);
        (verdict, packet.frame().to_vec())
    };
    // The tunnel's header, that of IPv4 and that of TCP.
    let fits = 1_500 - 40 - 20 - 20;
    let (verdict, frame) = send(fits);
    assert_eq!(verdict, Verdict::Transmit(PF0));
    assert_eq!(hex(&frame[54 + 20..]), hex(&left[20..]));
    assert_eq!(send(fits + 1).0, Verdict::Reply(VM1));
}

fn services() -> Bed {
    let mut config = config();
    config.virtual_services = [17, 6]
        .map(|protocol| VirtualServiceSpec {
            protocol,
            address: v4(VIRTUAL),
            port: 53,
            service: v6(SERVICE),
            service_port: 5353,
        })
        .to_vec();
    Bed::with(config)
}

fn ask(bed: &mut Bed, ip: &[u8]) -> Result<Vec<u8>, DropReason> {
    match bed.send(VM1, &from_guest(ip)) {
        (Verdict::Drop(reason), _) => Err(reason),
        (verdict, frame) => {
            assert_eq!(verdict, Verdict::Transmit(PF0));
            Ok(frame[14..].to_vec())
        }
    }
}

fn outside(ip: &[u8]) -> Vec<u8> {
    build::ethernet(Mac([0x22; 6]), ROUTER_MAC, 0x86dd, ip)
}

fn answer(bed: &mut Bed, ip: &[u8]) -> Result<Vec<u8>, DropReason> {
    match bed.send(PF0, &outside(ip)) {
        (Verdict::Drop(reason), _) => Err(reason),
        (verdict, frame) => {
            assert_eq!(verdict, Verdict::Transmit(VM1));
            Ok(frame[14..].to_vec())
        }
    }
}

#[test]
fn pieces_to_a_virtual_service_and_back() {
    let mut bed = services();
    let udp = |from: (&str, u16), to: (&str, u16)| build::udp(from, to, LONG);
    let tcp = |from: (&str, u16), to: (&str, u16)| build::tcp_with(from, to, ACK, LONG);
    type Make<'a> = &'a dyn Fn((&str, u16), (&str, u16)) -> Vec<u8>;
    let makes: [(Make<'_>, &str); 2] = [
        (&udp, "fc00:1::d0ff:4000:0:0"),
        (&tcp, "fc00:1::d0ff:4000:100:0"),
    ];
    for (make, own) in makes {
        let question = cut(&make((VM1_IP, 12_345), (VIRTUAL, 53)));
        let [first, last] = &question;
        assert_eq!(ask(&mut bed, last), Err(DropReason::FragmentUnknown));
        let sent = [ask(&mut bed, first), ask(&mut bed, last)].map(Result::unwrap);
        let expected = make((own, 1025), (SERVICE, 5353));
        assert_eq!(whole6([&sent[0], &sent[1]], 0x1234), expected);
        let [first, last] = cut6(&make((SERVICE, 5353), (own, 1025)));
        assert_eq!(answer(&mut bed, &last), Err(DropReason::FragmentUnknown));
        let got = [answer(&mut bed, &first), answer(&mut bed, &last)].map(Result::unwrap);
        let expected = make((VIRTUAL, 53), (VM1_IP, 12_345));
        assert_eq!(whole([&got[0], &got[1]]), expected);
        bed.now = bed.now.plus_secs(31);
        assert_eq!(answer(&mut bed, &last), Err(DropReason::FragmentUnknown));
        let question = &question[1];
        assert_eq!(ask(&mut bed, question), Err(DropReason::FragmentUnknown));
    }
    let mut bare = build::udp((VM1_IP, 1), (VIRTUAL, 53), LONG);
    bare[26..28].fill(0);
    let [first, last] = cut(&bare);
    assert_eq!(ask(&mut bed, &first), Err(DropReason::NotTranslatable));
    assert_eq!(ask(&mut bed, &last), Err(DropReason::FragmentUnknown));
    // Another port of the service's machine is no service.
    let [first, _] = cut6(&udp((SERVICE, 5354), ("fc00:1::d0ff:4000:0:0", 1025)));
    assert_eq!(answer(&mut bed, &first), Err(DropReason::UplinkNotTunnel));
}

/// All pieces belong to the packet thread that handed out the source port.
#[test]
fn pieces_of_a_virtual_service_meet_in_one_thread() {
    const THREADS: usize = 4;
    let mut config = config();
    config.virtual_services = (0..16)
        .map(|index| VirtualServiceSpec {
            protocol: 17,
            address: v4(VIRTUAL),
            port: 153 + index,
            service: v6(SERVICE),
            service_port: 5_353 + index,
        })
        .collect();
    let bed = Bed::with(config);
    let mut sorter = bed.engine.sorter();
    let tables = bed.engine.tables();
    let mut busy = BTreeSet::new();
    for index in 0..16_u16 {
        let question = build::udp((VM1_IP, 9), (VIRTUAL, 153 + index), LONG);
        let expected = owner(tables, VM1, &from_guest(&question), THREADS);
        for piece in cut(&question) {
            let frame = from_guest(&piece);
            let found = sorter.owner(tables, VM1, &frame, THREADS, bed.now);
            assert_eq!(found, expected, "service {index}");
        }
        let own = format!("fc00:1::d0ff:4000:{:x}:0", index << 8);
        let reply = build::udp((SERVICE, 5_353 + index), (&own, 1025), LONG);
        assert_eq!(owner(tables, PF0, &outside(&reply), THREADS), expected);
        for piece in cut6(&reply) {
            assert_eq!(owner(tables, PF0, &outside(&piece), THREADS), expected);
        }
        busy.insert(expected);
    }
    assert!(busy.len() > 1, "one thread serves all");
}
