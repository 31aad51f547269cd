//! Super-frames inside a tunnel that the kernel cuts, or passes on whole.

use crate::{enter_private_namespace, ip};
use net::checksum;
use ports::af_packet::{Segmentation, Select};
use ports::{AfPacket, Frame, Port};
use std::process::Command;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(10);
const PAYLOAD: usize = 61_000;
/// Payload per segment, which fills the MTU of 1500 behind the tunnel's header and IPv6.
const SEGMENT: usize = 1400;

/// TCP from a machine, as a kernel hands it to a TAP: the checksum is the pseudo header's, and the payload belongs into many frames.
fn inner(is_v6: bool) -> Vec<u8> {
    let tcp_len = 20 + PAYLOAD;
    let mut ip = Vec::new();
    let pseudo = if is_v6 {
        let (a, b) = ([0xfd; 16], [0xfe; 16]);
        ip.extend([0x60, 0, 0, 0]);
        ip.extend((tcp_len as u16).to_be_bytes());
        ip.extend([6, 64]);
        ip.extend(a);
        ip.extend(b);
        checksum::pseudo_v6(a.into(), b.into(), 6, tcp_len as u32)
    } else {
        let (a, b) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        ip.extend([0x45, 0]);
        ip.extend((20 + tcp_len as u16).to_be_bytes());
        ip.extend([0, 7, 0x40, 0, 64, 6, 0, 0]);
        ip.extend(a);
        ip.extend(b);
        let sum = checksum::checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        checksum::pseudo_v4(a.into(), b.into(), 6, tcp_len as u16)
    };
    ip.extend([0x04, 0xd2, 0, 80]);
    ip.extend(1000_u32.to_be_bytes());
    ip.extend([0, 0, 0, 1, 0x50, 0x18, 0x10, 0]);
    ip.extend((!checksum::finish(pseudo)).to_be_bytes());
    ip.extend([0, 0]);
    ip.extend((0..PAYLOAD).map(|place| (place / 7) as u8));
    ip
}

fn tunnelled(inner: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((inner.len() as u16).to_be_bytes());
    frame.extend([if inner[0] >> 4 == 6 { 41 } else { 4 }, 64]);
    frame.extend([0xfc; 32]);
    frame.extend(inner);
    frame
}

/// Sum of the inner TCP segment with its pseudo header: zero if the checksum is right.
fn residue(frame: &[u8]) -> u16 {
    let ip = &frame[54..];
    let (header_len, addresses) = if ip[0] >> 4 == 6 {
        (40, &ip[8..40])
    } else {
        assert_eq!(checksum::checksum(&ip[..20]), 0, "inner IPv4 checksum");
        (20, &ip[12..20])
    };
    let tcp = &ip[header_len..];
    let mut covered = addresses.to_vec();
    covered.extend([0, 6]);
    covered.extend((tcp.len() as u16).to_be_bytes());
    covered.extend(tcp);
    checksum::checksum(&covered)
}

/// Waits until the kernel has put the wire to work: until then it drops what is sent, and says that it left.
fn settle(uplink: &mut AfPacket, wire: &mut AfPacket) {
    let probe = [[2; 12].as_slice(), &[0x88, 0xb5], &[0; 46]].concat();
    let mut packets = [Frame::new()];
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut packet = Frame::new();
        assert!(packet.fill(&probe));
        uplink.tx_burst(&mut [&mut packet]);
        let filled = wire.rx_burst(&mut packets).expect("device exists");
        if packets
            .iter()
            .take(filled)
            .any(|packet| packet.frame() == probe)
        {
            return;
        }
        assert!(Instant::now() < deadline, "the wire stays silent");
        std::thread::yield_now();
    }
}

/// What arrives at the other end of a wire when a super-frame is sent in `segmentation`.
fn arrivals(frame: &[u8], segmentation: Segmentation, capable: bool) -> (Vec<Vec<u8>>, u64) {
    enter_private_namespace();
    ip("link add pf0 type veth peer name r0");
    if !capable {
        let status = Command::new("ethtool")
            .args(
                "-K pf0 tso off gso off tx-ipxip6-segmentation off tx-checksumming off".split(' '),
            )
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.expect("cannot run `ethtool`: install it").success());
    }
    ip("link set pf0 up");
    ip("link set r0 up");
    let mut wire = AfPacket::open("r0", Select::All).expect("open wire");
    let mut ports =
        AfPacket::open_queues("pf0", Select::All, 1, segmentation).expect("open uplink");
    let uplink = ports.first_mut().expect("one queue");
    assert_eq!(uplink.segmentation(), segmentation);
    settle(uplink, &mut wire);
    let mut packet = Frame::new();
    assert!(packet.fill_super(frame, frame.len() - PAYLOAD - 20, SEGMENT));
    let sent = uplink.tx_burst(&mut [&mut packet]);
    assert_eq!(sent, 1, "{:?}", uplink.counters());
    let mut received = Vec::new();
    let mut payload = 0;
    let headers_len = frame.len() - PAYLOAD;
    let mut packets: Vec<Frame> = (0..8).map(|_| Frame::new()).collect();
    let deadline = Instant::now() + DEADLINE;
    while payload < PAYLOAD {
        assert!(Instant::now() < deadline, "{payload} bytes came");
        let filled = wire.rx_burst(&mut packets).expect("device exists");
        for packet in packets.iter().take(filled) {
            // The kernel's own neighbour discovery is not ours.
            if packet.frame().get(22..38) == Some(&[0xfc; 16]) {
                payload += packet.len() - headers_len;
                received.push(packet.frame().to_vec());
            }
        }
    }
    (received, wire.counters().rx_super)
}

fn check_cut(frame: &[u8], frames: &[Vec<u8>]) {
    let headers_len = frame.len() - PAYLOAD;
    let mut payload: Vec<u8> = Vec::new();
    for (number, cut) in frames.iter().enumerate() {
        assert!(cut.len() <= headers_len + SEGMENT, "{} bytes", cut.len());
        let outer_len = usize::from(u16::from_be_bytes([cut[18], cut[19]]));
        assert_eq!(outer_len, cut.len() - 54, "outer length");
        assert_eq!(cut[20..54], frame[20..54], "outer header");
        let tcp = headers_len - 20;
        let sequence = u32::from_be_bytes(cut[tcp + 4..tcp + 8].try_into().expect("four bytes"));
        assert_eq!(sequence, 1000 + (number * SEGMENT) as u32);
        assert_eq!(residue(cut), 0, "segment {number}");
        payload.extend(&cut[headers_len..]);
    }
    assert_eq!(payload, frame[headers_len..]);
}

#[test]
fn a_wire_that_cannot_gets_frames_of_its_mtu_whoever_cuts() {
    for is_v6 in [false, true] {
        let frame = tunnelled(&inner(is_v6));
        let count = PAYLOAD.div_ceil(SEGMENT);
        let (here, _) = arrivals(&frame, Segmentation::Here, true);
        check_cut(&frame, &here);
        let (kernel, _) = arrivals(&frame, Segmentation::Kernel, false);
        check_cut(&frame, &kernel);
        assert_eq!((here.len(), kernel.len()), (count, count));
    }
}

#[test]
fn a_kernel_on_the_other_end_gets_it_whole() {
    for is_v6 in [false, true] {
        let frame = tunnelled(&inner(is_v6));
        let (whole, supers) = arrivals(&frame, Segmentation::Kernel, true);
        assert_eq!((whole.len(), supers), (1, 1));
        assert_eq!(whole[0], frame);
    }
}

#[test]
fn a_super_frame_of_too_long_segments_is_refused_and_counted() {
    enter_private_namespace();
    ip("link add pf0 mtu 1400 type veth peer name r0");
    ip("link set pf0 up");
    ip("link set r0 up");
    for segmentation in [Segmentation::Here, Segmentation::Kernel] {
        let mut ports =
            AfPacket::open_queues("pf0", Select::All, 1, segmentation).expect("open uplink");
        let uplink = ports.first_mut().expect("one queue");
        let frame = tunnelled(&inner(false));
        let mut packet = Frame::new();
        assert!(packet.fill_super(&frame, 74, SEGMENT));
        assert_eq!(uplink.tx_burst(&mut [&mut packet]), 0);
        assert_eq!(uplink.counters().tx_oversize, 1);
    }
}

#[test]
fn two_instances_on_one_device_do_not_disturb_each_other() {
    enter_private_namespace();
    ip("link add pf0 type veth peer name r0");
    ip("link set pf0 up");
    ip("link set r0 up");
    let mut wire = AfPacket::open("r0", Select::All).expect("open wire");
    let open = || AfPacket::open_queues("pf0", Select::All, 2, Segmentation::Kernel);
    let frame = tunnelled(&inner(false));
    settle(&mut open().expect("probe")[0], &mut wire);
    for mut ports in [open().expect("first"), open().expect("second")] {
        let mut packet = Frame::new();
        assert!(packet.fill_super(&frame, 74, SEGMENT));
        assert_eq!(ports[0].tx_burst(&mut [&mut packet]), 1);
    }
    let mut packets: Vec<Frame> = (0..8).map(|_| Frame::new()).collect();
    let deadline = Instant::now() + DEADLINE;
    let mut came = 0;
    while came < 2 {
        assert!(Instant::now() < deadline, "{came} came");
        let filled = wire.rx_burst(&mut packets).expect("device exists");
        came += packets
            .iter()
            .take(filled)
            .filter(|packet| packet.frame() == frame)
            .count();
    }
}
