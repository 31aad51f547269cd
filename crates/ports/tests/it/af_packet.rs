//! What only packet sockets do: select, leave the kernel alone, undo offloads.

use crate::{enter_private_namespace, ip};
use net::checksum;
use ports::af_packet::Select;
use ports::{AfPacket, AfXdp, Frame, Port};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(10);

fn ipv6_frame(destination: &str, next_header: u8) -> Vec<u8> {
    let destination: std::net::Ipv6Addr = destination.parse().expect("address");
    let mut frame = vec![2; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, next_header, 64]);
    frame.extend([0xfd; 16]);
    frame.extend(destination.octets());
    frame
}

#[test]
fn an_uplink_receives_only_the_underlay() {
    enter_private_namespace();
    ip("link add pf0 type veth peer name r0");
    ip("link set pf0 up");
    ip("link set r0 up");
    let host = "fc00:1::1".parse().expect("address");
    let uplink = AfPacket::open("pf0", Select::Underlay(host)).expect("open uplink");
    receives_only_the_underlay(uplink);
}

#[test]
fn an_xdp_program_selects_the_same() {
    enter_private_namespace();
    ip("link add pf0 type veth peer name r0");
    ip("link set pf0 up");
    ip("link set r0 up");
    let host = "fc00:1::1".parse().expect("address");
    let mut kernel = AfPacket::open("pf0", Select::All).expect("open the kernel's view");
    let mut uplinks = AfXdp::open("pf0", Select::Underlay(host)).expect("open uplink");
    receives_only_the_underlay(uplinks.pop().expect("one queue"));
    // The rest, and only the rest, went to the kernel.
    let mut packets: Vec<Frame> = (0..16).map(|_| Frame::new()).collect();
    assert_eq!(kernel.rx_burst(&mut packets), Ok(5));
}

fn receives_only_the_underlay(mut uplink: impl Port) {
    let mut fabric = AfPacket::open("r0", Select::All).expect("open fabric");
    let (ipip, ipv6, tcp) = (4, 41, 6);
    let cases = [
        ("fc00:1::1", tcp, false),
        ("fc00:1::1", ipip, true),
        ("fc00:1::8000:0:1", ipv6, true),
        ("fc00:1::8000:0:1", tcp, false),
        ("fc00:1::d000:0:0:1", tcp, true),
        ("fc00:1::dfff:0:0:1", tcp, true),
        ("fc00:1::e000:0:0:1", tcp, false),
        ("fc00:2::d000:0:0:1", ipip, false),
        ("fd00:1::d000:0:0:1", ipip, false),
    ];
    for (destination, next_header, _) in cases {
        let mut packet = Frame::new();
        assert!(packet.fill(&ipv6_frame(destination, next_header)));
        assert_eq!(fabric.tx_burst(&mut [&mut packet]), 1);
    }
    let expected: Vec<Vec<u8>> = cases
        .iter()
        .filter(|case| case.2)
        .map(|(destination, next_header, _)| ipv6_frame(destination, *next_header))
        .collect();
    let mut received = Vec::new();
    let mut packets: Vec<Frame> = (0..16).map(|_| Frame::new()).collect();
    let deadline = Instant::now() + DEADLINE;
    while received.len() < expected.len() && Instant::now() < deadline {
        let filled = uplink.rx_burst(&mut packets).expect("device exists");
        received.extend(
            packets
                .iter()
                .take(filled)
                .map(|packet| packet.frame().to_vec()),
        );
    }
    assert_eq!(received, expected);
}

#[test]
fn super_frames_of_a_veth_peer_leave_as_wire_frames() {
    enter_private_namespace();
    // Kernel TCP over veth: unfinished checksums and frames of up to 64 KiB.
    for (port, peer) in [("pf0", "r0"), ("pf1", "r1")] {
        ip(&format!("link add {port} type veth peer name {peer}"));
        ip(&format!("link set {port} up"));
        ip(&format!("link set {peer} up"));
    }
    ip("address add 10.1.0.1/24 dev r0");
    let mut uplink = AfPacket::open("pf0", Select::All).expect("open uplink");
    let mut out = AfPacket::open("pf1", Select::All).expect("open the way out");
    let mut wire = AfPacket::open("r1", Select::All).expect("open wire");
    ip(&format!(
        "neighbour add 10.1.0.2 lladdr {} dev r0",
        uplink.mac()
    ));

    let sender = std::thread::spawn(flood);
    let mut machine = Acknowledger::default();
    let mut packets: Vec<Frame> = (0..8).map(|_| Frame::new()).collect();
    let deadline = Instant::now() + DEADLINE;
    while machine.payload < 1 << 20 {
        assert!(
            Instant::now() < deadline,
            "stuck at {}: {:?}",
            machine.payload,
            uplink.counters()
        );
        let filled = uplink.rx_burst(&mut packets).expect("device exists");
        let mut frames: Vec<&mut Frame> = packets.iter_mut().take(filled).collect();
        assert_eq!(out.tx_burst(&mut frames), filled, "{:?}", out.counters());
        let filled = wire.rx_burst(&mut packets).expect("device exists");
        for packet in packets.iter().take(filled) {
            assert!(
                packet.len() <= 1500 + 14,
                "{} bytes exceed the MTU",
                packet.len()
            );
            if let Some(answer) = machine.answer(packet.frame()) {
                let mut packet = Frame::new();
                assert!(packet.fill(&answer));
                assert_eq!(uplink.tx_burst(&mut [&mut packet]), 1);
            }
        }
    }
    let counters = uplink.counters();
    assert!(counters.rx_super > 0, "no super-frame came: {counters:?}");
    assert_eq!(counters.rx_unusable, 0);
    drop(sender);
}

/// Writes a megabyte and a half to a machine that does not exist but for the test.
fn flood() {
    let mut stream = TcpStream::connect("10.1.0.2:80").expect("connect");
    let _ = stream.write_all(&vec![7; 3 << 19]);
}

/// The smallest TCP receiver: checks every checksum and acknowledges in-order data.
#[derive(Default)]
struct Acknowledger {
    next: u32,
    payload: usize,
}

impl Acknowledger {
    /// Frame: Ethernet, IPv4, TCP.
    fn answer(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let ip = &frame[14..];
        if frame[12..14] != [8, 0] || ip[9] != 6 {
            return None;
        }
        assert_eq!(checksum::checksum(&ip[..20]), 0, "IPv4 checksum");
        let tcp = &ip[20..];
        let mut covered = ip[12..20].to_vec();
        covered.extend([0, 6]);
        covered.extend((tcp.len() as u16).to_be_bytes());
        covered.extend(tcp);
        assert_eq!(checksum::checksum(&covered), 0, "TCP checksum");
        let sequence = u32::from_be_bytes(tcp[4..8].try_into().expect("four bytes"));
        let payload = tcp.len() - usize::from(tcp[12] >> 4) * 4;
        let syn = tcp[13] & 2 != 0;
        if syn {
            self.next = sequence.wrapping_add(1);
        } else if sequence == self.next {
            self.next = self.next.wrapping_add(payload as u32);
            self.payload += payload;
        }
        (syn || payload > 0).then(|| self.acknowledge(frame, syn))
    }

    fn acknowledge(&self, frame: &[u8], syn: bool) -> Vec<u8> {
        let (ip, tcp) = (&frame[14..34], &frame[34..]);
        let options: &[u8] = if syn {
            &[2, 4, 0x05, 0xac, 1, 3, 3, 7]
        } else {
            &[]
        };
        let reply = [&frame[6..12], &frame[..6], &[8, 0]].concat();
        let ip_len = 40 + options.len();
        let mut header = vec![0x45, 0, 0, ip_len as u8, 0, 0, 0, 0, 64, 6, 0, 0];
        header.extend_from_slice(&ip[16..20]);
        header.extend_from_slice(&ip[12..16]);
        let sum = checksum::checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut segment = [&tcp[2..4], &tcp[..2]].concat();
        // Our initial sequence number is 0: the handshake counts as one.
        segment.extend(u32::from(!syn).to_be_bytes());
        segment.extend(self.next.to_be_bytes());
        let flags = if syn { 0x12 } else { 0x10 };
        segment.extend([
            (((20 + options.len()) / 4) << 4) as u8,
            flags,
            0xff,
            0xff,
            0,
            0,
            0,
            0,
        ]);
        segment.extend_from_slice(options);
        let mut covered = header[12..20].to_vec();
        covered.extend([0, 6]);
        covered.extend((segment.len() as u16).to_be_bytes());
        covered.extend_from_slice(&segment);
        let sum = checksum::checksum(&covered);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        [reply, header, segment].concat()
    }
}

#[test]
fn the_kernel_keeps_its_traffic() {
    enter_private_namespace();
    std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0").expect("IPv6 on");
    ip("link set lo up");
    ip("address add fc00:1::1/128 dev lo nodad");
    // An own connection over lo, with the uplink driver on it: the filter takes nothing and the kernel answers.
    let host = "fc00:1::1".parse().expect("address");
    let mut uplink = AfPacket::open("lo", Select::Underlay(host)).expect("open");
    let listener = TcpListener::bind("[fc00:1::1]:0").expect("listen");
    let address = listener.local_addr().expect("address");
    // The address becomes usable some time after it was added.
    let deadline = Instant::now() + DEADLINE;
    let mut client = loop {
        match TcpStream::connect(address) {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < deadline, "connect: {error}"),
        }
    };
    client.write_all(b"hello").expect("write");
    let (mut server, _) = listener.accept().expect("accept");
    let mut text = [0; 5];
    std::io::Read::read_exact(&mut server, &mut text).expect("read");
    assert_eq!(&text, b"hello");
    assert_eq!(uplink.rx_burst(&mut [Frame::new()]), Ok(0));
    assert_eq!(uplink.counters().rx_packets, 0);
}
