//! Checksums and segments against values computed independently of the code under test.

use super::*;

/// IPv4 in IPv6, TCP with `payload` bytes, sequence 1000, FIN|PSH|ACK|CWR.
fn tunnelled(payload: usize) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([0x86, 0xdd]);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(((40 + payload) as u16).to_be_bytes());
    frame.extend([4, 64]);
    frame.extend([0xfc; 32]);
    let total = (40 + payload) as u16;
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x04, 0xd2, 0, 80]);
    frame.extend(1000_u32.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0x50, 0x99, 0x10, 0, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|i| i as u8));
    frame
}

fn header(kind: u8, size: u16, start: u16, offset: u16) -> [u8; VNET_HEADER_LEN] {
    let mut bytes = [0; VNET_HEADER_LEN];
    bytes[0] = NEEDS_CHECKSUM;
    bytes[1] = kind;
    bytes[4..6].copy_from_slice(&size.to_ne_bytes());
    bytes[6..8].copy_from_slice(&start.to_ne_bytes());
    bytes[8..10].copy_from_slice(&offset.to_ne_bytes());
    bytes
}

/// Sum of the TCP segment with its pseudo header: zero if the checksum is right.
fn tcp_residue(segment: &[u8]) -> u16 {
    let tcp = &segment[74..];
    let mut covered = segment[66..74].to_vec();
    covered.extend([0, 6]);
    covered.extend((tcp.len() as u16).to_be_bytes());
    covered.extend(tcp);
    checksum::checksum(&covered)
}

#[test]
fn super_frame_becomes_wire_frames() {
    let frame = tunnelled(2500);
    let packet = accepted(&frame, &header(GSO_TCPV4 | GSO_ECN, 1000, 74, 16));
    assert_eq!(wire_len(&packet), 1094);
    let cut = cut(&packet).expect("TCP");
    let mut segments = Vec::new();
    for number in 0..cut.count() {
        let mut segment = Segment::EMPTY;
        assert!(cut.write(packet.frame(), number, &mut segment));
        segments.push(segment.parts(packet.frame()).concat());
    }
    assert_eq!(
        segments.iter().map(Vec::len).collect::<Vec<_>>(),
        [1094, 1094, 594]
    );
    let mut payload = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        let length = segment.len();
        assert_eq!(
            u16::from_be_bytes([segment[18], segment[19]]) as usize,
            length - 54
        );
        assert_eq!(
            u16::from_be_bytes([segment[56], segment[57]]) as usize,
            length - 54
        );
        assert_eq!(
            u16::from_be_bytes([segment[58], segment[59]]) as usize,
            7 + number
        );
        assert_eq!(checksum::checksum(&segment[54..74]), 0);
        assert_eq!(tcp_residue(segment), 0);
        let sequence = u32::from_be_bytes([segment[78], segment[79], segment[80], segment[81]]);
        assert_eq!(sequence, 1000 + 1000 * number as u32);
        let flags = [0x90, 0x10, 0x19][number];
        assert_eq!(segment[87], flags, "segment {number}");
        payload.extend_from_slice(&segment[94..]);
    }
    assert_eq!(payload, frame[94..]);
}

#[test]
fn unfinished_checksum_is_finished() {
    let mut frame = tunnelled(33);
    let tcp_len = (frame.len() - 74) as u16;
    let seed = checksum::pseudo_v4([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 6, tcp_len);
    let seed = !checksum::finish(seed);
    frame[90..92].copy_from_slice(&seed.to_be_bytes());
    let offload = Offload::parse(&header(GSO_NONE, 0, 74, 16)).expect("known");
    assert!(finish_checksum(&offload, &mut frame));
    assert_eq!(tcp_residue(&frame), 0);
}

/// A plain IPv4 frame with TCP from `source`, `payload` bytes long.
fn plain(source: [u8; 4], payload: usize) -> Vec<u8> {
    let mut frame = tunnelled(payload);
    frame.drain(14..54);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[26..30].copy_from_slice(&source);
    frame
}

#[test]
fn a_machines_super_frame_is_described_with_the_final_addresses() {
    let mut packet = accepted(
        &plain([10, 0, 0, 1], 2500),
        &header(GSO_TCPV4, 1000, 34, 16),
    );
    // What the engine does to a packet whose source it translates.
    packet.frame_mut()[26..30].copy_from_slice(&[192, 0, 2, 1]);
    let described = describe(&mut packet).expect("plain TCP");
    assert_eq!(described, {
        // The test frame has CWR set.
        let mut expected = header(GSO_TCPV4 | GSO_ECN, 1000, 34, 16);
        expected[2..4].copy_from_slice(&54_u16.to_ne_bytes());
        expected
    });
    let tcp_len = (packet.len() - 34) as u16;
    let pseudo = checksum::pseudo_v4([192, 0, 2, 1].into(), [10, 0, 0, 2].into(), 6, tcp_len);
    let seed = !checksum::finish(pseudo);
    assert_eq!(packet.frame()[50..52], seed.to_be_bytes());
}

#[test]
fn a_super_frame_in_our_tunnel_is_described_for_a_device_with_the_program() {
    let mut packet = accepted(&tunnelled(2500), &header(GSO_TCPV4, 1000, 74, 16));
    assert!(describe(&mut packet).is_none(), "not without");
    let described = describe_tunnelled(&mut packet).expect("our tunnel");
    let mut expected = header(GSO_TCPV4 | GSO_ECN, 1000, 74, 16);
    expected[2..4].copy_from_slice(&94_u16.to_ne_bytes());
    assert_eq!(described, expected);
    let tcp_len = (packet.len() - 74) as u16;
    let pseudo = checksum::pseudo_v4([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 6, tcp_len);
    let seed = !checksum::finish(pseudo);
    assert_eq!(packet.frame()[90..92], seed.to_be_bytes());
    // With an option in front of the inner packet it is not ours: the program would not know where to cut.
    let mut frame = tunnelled(2500);
    frame[20] = 60;
    frame.splice(54..54, [4, 0, 1, 4, 0, 0, 0, 0]);
    let mut packet = accepted(&frame, &header(GSO_TCPV4, 1000, 82, 16));
    assert!(describe_tunnelled(&mut packet).is_none());
    assert!(cut(&packet).is_some());
}

#[test]
fn a_tunnelled_frame_is_not_described_but_finished() {
    let mut packet = accepted(&tunnelled(300), &header(GSO_NONE, 0, 74, 16));
    assert!(describe(&mut packet).is_none(), "a tunnel");
    assert!(finish(&mut packet));
    assert_eq!(tcp_residue(packet.frame()), 0);
    assert!(finish(&mut packet), "nothing is left to do");
}

fn accepted(frame: &[u8], header: &[u8; VNET_HEADER_LEN]) -> Frame {
    let mut packet = Frame::new();
    assert!(packet.fill(frame));
    assert!(accept(header, &mut packet));
    packet
}

#[test]
fn nonsense_is_refused() {
    let refused = |frame: &[u8], header: &[u8; VNET_HEADER_LEN]| {
        let mut packet = Frame::new();
        assert!(packet.fill(frame));
        !accept(header, &mut packet) || {
            packet.pending.is_some_and(Pending::is_super) && cut(&packet).is_none()
        }
    };
    let frame = tunnelled(100);
    assert!(refused(&frame, &header(3, 100, 0, 0)), "UDP fragmentation");
    for (size, start) in [(0, 74), (50, 73), (50, 5000), (50, 14)] {
        let header = header(GSO_TCPV4, size, start, 16);
        assert!(refused(&frame, &header), "size {size}, start {start}");
    }
    for length in 0..94 {
        let header = header(GSO_TCPV4, 50, 74, 16);
        assert!(refused(&frame[..length], &header), "length {length}");
    }
    assert!(refused(&frame, &header(GSO_NONE, 0, 99, 95)));
    // Longer frames are left to the sender: it must notice.
    let mut packet = accepted(&tunnelled(400), &header(GSO_NONE, 0, 75, 16));
    assert!(!finish(&mut packet));
}
