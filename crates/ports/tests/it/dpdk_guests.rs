//! What guests behind DPDK's vhost leave to be done. The guest's side is DPDK's virtio-user in the same process; lengths, numbers and checksums
//! are computed here, not by the code under test.

use crate::dpdk::{config, open_with, socket, start_with};
use crate::{drivers::KernelWire, enter_private_namespace, ip};
use ::dpdk::{Config, Eal, Headers, Mbuf, Pool, Queue, Unfinished};
use ports::contract::Peer;
use ports::dpdk::DpdkPort;
use ports::{AfPacket, Port, af_packet::Select};
use std::time::{Duration, Instant};

/// `RTE_ETH_TX_OFFLOAD_*`: UDP and TCP checksums, TCP segmentation, packets of several buffers.
const SENDS_UNFINISHED: u64 = 1 << 2 | 1 << 3 | 1 << 5 | 1 << 15;
/// `RTE_ETH_RX_OFFLOAD_*`: UDP and TCP checksums, large receive, packets of several buffers.
const TAKES_UNFINISHED: u64 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 13;
const DEADLINE: Duration = Duration::from_secs(20);
const ETHERNET: usize = 14;
const PAYLOAD_PER_FRAME: usize = 1_400;

/// A vhost port and the guest behind it.
struct Guest {
    port: DpdkPort,
    queue: Queue,
    pool: Pool,
}

impl Guest {
    /// `arguments`: more ones of net_vhost; the others: offloads of the guest.
    fn new(arguments: &str, tx_offloads: u64, rx_offloads: u64) -> Guest {
        let config = config("net_vhost");
        let mut path = String::new();
        let port = open_with("net_vhost", config, None, |number| {
            path = socket(number);
            format!("iface={path}{arguments}")
        });
        let pool = Eal::get().expect("started").pool(1_024, 40_000);
        let pool = pool.expect("memory for large buffers");
        let offloads = Config {
            tx_offloads,
            rx_offloads,
            ..config
        };
        let device = start_with("net_virtio_user", offloads, Some(&pool), |_| {
            format!("path={path},queues=1")
        });
        let queue = device.into_queues().pop().expect("one queue");
        let deadline = Instant::now() + DEADLINE;
        while port.link() != Some(true) {
            assert!(Instant::now() < deadline, "link");
            std::thread::yield_now();
        }
        Guest { port, queue, pool }
    }

    /// The guest sends a frame; the port gets it.
    fn send(&mut self, frame: &[u8], unfinished: Option<(Unfinished, Headers)>) -> Mbuf {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let mut packet = self.pool.alloc().expect("buffers are given back");
            packet.clear();
            assert!(packet.place(packet.headroom(), frame.len()));
            packet.frame_mut().copy_from_slice(frame);
            if let Some((unfinished, headers)) = unfinished {
                packet.set_unfinished(Some(unfinished));
                packet.describe(headers);
            }
            // The queue works only once both ends have agreed.
            self.queue.send(&mut [&mut packet]);
            let mut packets = [Mbuf::default()];
            if self.port.rx_burst(&mut packets) == Ok(1) {
                let [packet] = packets;
                return packet;
            }
            assert!(Instant::now() < deadline, "nothing arrives");
        }
    }

    /// What arrives in the guest, and what is left to be done for it.
    fn receive(&mut self) -> (Vec<u8>, ::dpdk::Left) {
        let deadline = Instant::now() + DEADLINE;
        let mut packets = [Mbuf::default()];
        while self.queue.receive(&mut packets) == 0 {
            assert!(Instant::now() < deadline, "nothing arrives in the guest");
        }
        let [mut packet] = packets;
        assert!(packet.is_contiguous());
        (packet.frame().to_vec(), packet.take_left())
    }
}

/// A wire behind DPDK's packet socket.
fn wire() -> (DpdkPort, KernelWire) {
    enter_private_namespace();
    let config = config("net_af_packet");
    let mut peer = String::new();
    let port = open_with("net_af_packet", config, None, |number| {
        peer = format!("g{number}");
        ip(&format!("link add gf{number} type veth peer name {peer}"));
        ip(&format!("link set gf{number} up"));
        ip(&format!("link set {peer} up"));
        format!("iface=gf{number}")
    });
    let peer = AfPacket::open(&peer, Select::All).expect("peer");
    (port, KernelWire(peer))
}

/// One's complement sum, as a number that is all ones if a checksum among the bytes is right.
fn folded(bytes: &[u8], start: u32) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum = words.fold(start, u32::wrapping_add);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Sum of the pseudo header of layer 4, which is `length` bytes long.
fn pseudo(frame: &[u8], protocol: u8, length: usize) -> u16 {
    let addresses = match frame[ETHERNET] >> 4 {
        4 => &frame[26..34],
        _ => &frame[22..54],
    };
    folded(addresses, u32::from(protocol) + length as u32)
}

/// A frame up to layer 4, which is `length` bytes long.
fn headers(is_v6: bool, protocol: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![0x66; 12];
    if is_v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((length as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend([0xfd; 15]);
        frame.push(1);
        frame.extend([0xfd; 15]);
        frame.push(2);
        return frame;
    }
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend((20 + length as u16).to_be_bytes());
    frame.extend([0, 7, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let checksum = !folded(&frame[ETHERNET..], 0);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// TCP with the pseudo header's sum in place of the checksum, as a kernel leaves it; sequence 5000, flags PSH and ACK.
fn tcp(is_v6: bool, payload: usize, segment_len: usize) -> (Vec<u8>, (Unfinished, Headers)) {
    let length = 20 + payload;
    let mut frame = headers(is_v6, 6, length);
    let start = frame.len();
    let seed = pseudo(&frame, 6, length);
    frame.extend([0x04, 0xd2, 0, 80]);
    frame.extend(5_000_u32.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0x50, 0x18, 0x10, 0]);
    frame.extend(seed.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((0..payload).map(|at| (at / 7) as u8));
    let unfinished = Unfinished {
        tcp_len: length as u32,
        segment_len: segment_len as u16,
    };
    let headers = Headers {
        ip_start: 14,
        is_v6,
        tcp_start: start as u16,
        tcp_header_len: 20,
    };
    (frame, (unfinished, headers))
}

/// Whether the checksum of layer 4, which starts at `start`, is right.
fn is_right(frame: &[u8], protocol: u8, start: usize) -> bool {
    let covered = &frame[start..];
    let seed = pseudo(frame, protocol, covered.len());
    folded(covered, u32::from(seed)) == 0xffff
}

fn arrived(wire: &mut KernelWire) -> Vec<u8> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        // The kernel speaks for itself on a new device.
        match wire.receive() {
            Some(frame) if frame[..12] == [0x66; 12] => return frame,
            Some(_) | None => assert!(Instant::now() < deadline, "nothing on the wire"),
        }
    }
}

/// On the wire are frames of 1400 bytes of payload each, as if the guest had sent them so.
fn is_cut(port: &mut DpdkPort, wire: &mut KernelWire, mut packet: Mbuf, is_v6: bool) {
    let whole = packet.frame().to_vec();
    let start = if is_v6 { 54 } else { 34 };
    assert_eq!(port.tx_burst(&mut [&mut packet]), 1);
    let mut payload = Vec::new();
    let count = (whole.len() - start - 20).div_ceil(PAYLOAD_PER_FRAME);
    for number in 0..count {
        let frame = arrived(wire);
        let body = &frame[start + 20..];
        let last = number + 1 == count;
        assert!(last || body.len() == PAYLOAD_PER_FRAME, "frame {number}");
        let total = u16::from_be_bytes([frame[16], frame[17]]) as usize;
        let length = u16::from_be_bytes([frame[18], frame[19]]) as usize;
        if is_v6 {
            assert_eq!(length, frame.len() - start, "payload length of IPv6");
        } else {
            assert_eq!(total, frame.len() - ETHERNET, "total length of IPv4");
            assert_eq!(length, 7 + number, "identification");
            assert_eq!(folded(&frame[ETHERNET..start], 0), 0xffff);
        }
        let sequence = frame[start + 4..start + 8].try_into().expect("four bytes");
        let sequence = u32::from_be_bytes(sequence);
        assert_eq!(sequence as usize, 5_000 + number * PAYLOAD_PER_FRAME);
        let flags = if last { 0x18 } else { 0x10 };
        assert_eq!(frame[start + 13], flags, "PSH only in the last one");
        assert!(is_right(&frame, 6, start), "checksum of frame {number}");
        payload.extend_from_slice(body);
    }
    assert_eq!(payload, &whole[start + 20..]);
}

/// Devices are few (DPDK has room for 32 in all), so one test goes through everything.
#[test]
fn what_guests_leave_undone_is_done_or_passed_on_to_a_guest() {
    let (mut uplink, mut outside) = wire();
    let mut receiver = Guest::new("", 0, TAKES_UNFINISHED);
    for marking in ["", ",legacy-ol-flags=0"] {
        let arguments = format!(",tso=1,linear-buffer=1,ext-buffer=1{marking}");
        let mut sender = Guest::new(&arguments, SENDS_UNFINISHED, 0);
        for is_v6 in [false, true] {
            super_frame(
                &mut sender,
                &mut receiver,
                (&mut uplink, &mut outside),
                is_v6,
            );
            for payload in [40, 1_000] {
                let (frame, described) = tcp(is_v6, payload, 0);
                let start = usize::from(described.1.tcp_start);
                let wire = (&mut uplink, &mut outside);
                checksum(&mut sender, &mut receiver, wire, (&frame, described, start));
            }
        }
        assert_eq!(sender.port.counters().rx_super, 4);
        // CWR belongs to the first frame only, which vhost cannot say: the guest gets frames.
        let (mut frame, described) = tcp(false, 3_000, PAYLOAD_PER_FRAME);
        frame[34 + 13] |= 0x80;
        let mut packet = sender.send(&frame, Some(described));
        assert_eq!(receiver.port.tx_burst(&mut [&mut packet]), 1);
        for flags in [0x90, 0x10, 0x18] {
            let (got, left) = receiver.receive();
            assert_eq!((got[34 + 13], left), (flags, ::dpdk::Left::Nothing));
            assert!(is_right(&got, 6, 34));
        }
    }
}

/// It is cut for a wire, and passed on whole to a guest.
fn super_frame(
    sender: &mut Guest,
    receiver: &mut Guest,
    (uplink, outside): (&mut DpdkPort, &mut KernelWire),
    is_v6: bool,
) {
    let (frame, described) = tcp(is_v6, 20_000, PAYLOAD_PER_FRAME);
    let packet = sender.send(&frame, Some(described));
    assert_eq!(packet.len(), frame.len(), "in one piece");
    is_cut(uplink, outside, packet, is_v6);

    let mut packet = sender.send(&frame, Some(described));
    assert_eq!(receiver.port.tx_burst(&mut [&mut packet]), 1);
    let (got, left) = receiver.receive();
    assert_eq!(left, ::dpdk::Left::Segments(PAYLOAD_PER_FRAME as u16));
    // All but the checksum, which the guest does not look at.
    let checksum = usize::from(described.1.tcp_start) + 16;
    assert_eq!(got[..checksum], frame[..checksum]);
    assert_eq!(got[checksum + 2..], frame[checksum + 2..]);
}

/// It is written for a wire; a guest gets it written, or as it was.
fn checksum(
    sender: &mut Guest,
    receiver: &mut Guest,
    (uplink, outside): (&mut DpdkPort, &mut KernelWire),
    (frame, described, start): (&[u8], (Unfinished, Headers), usize),
) {
    assert!(!is_right(frame, 6, start), "not written yet");
    let mut packet = sender.send(frame, Some(described));
    assert_eq!(uplink.tx_burst(&mut [&mut packet]), 1);
    assert!(is_right(&arrived(outside), 6, start), "on the wire");

    let mut packet = sender.send(frame, Some(described));
    assert_eq!(receiver.port.tx_burst(&mut [&mut packet]), 1);
    let (got, left) = receiver.receive();
    let is_unwritten = left == ::dpdk::Left::Checksum && got == frame;
    assert!(is_unwritten || is_right(&got, 6, start), "guest: {left:?}");
}
