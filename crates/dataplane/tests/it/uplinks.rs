//! Two uplinks: preference, failure, load sharing by the hash that all implementations agree on.

use crate::bed::*;
use crate::build;
use dataplane::{DropReason, Verdict, jhash};

fn sent(bed: &mut Bed, packet: &[u8]) -> Verdict {
    bed.send(VM1, &from_guest(packet)).0
}

#[test]
fn the_second_uplink_stands_in() {
    let mut bed = Bed::new();
    for packet in [
        build::udp(("10.100.1.1", 1), ("10.100.2.1", 2), b""),
        build::udp(("2000:100:1::1", 1), ("2000:100:2::1", 2), b""),
    ] {
        assert_eq!(sent(&mut bed, &packet), Verdict::Transmit(PF0));
        bed.engine.set_link(PF0, false);
        assert_eq!(sent(&mut bed, &packet), Verdict::Transmit(PF1));
        bed.engine.set_link(PF0, true);
        assert_eq!(sent(&mut bed, &packet), Verdict::Transmit(PF0));
        bed.engine.set_next_hop(PF0, None);
        assert_eq!(sent(&mut bed, &packet), Verdict::Transmit(PF1));
        bed.engine.set_link(PF1, false);
        assert_eq!(sent(&mut bed, &packet), Verdict::Drop(DropReason::NoUplink));
        bed.engine.set_link(PF1, true);
        bed.engine.set_next_hop(PF0, Some(ROUTER_MAC));
    }
    // Not an uplink: ignored.
    bed.engine.set_link(VM1, false);
    bed.engine.set_next_hop(VM1, None);
    assert_eq!(
        bed.send(
            VM2,
            &from_guest(&build::echo("10.100.1.2", "10.100.1.1", true, 1))
        )
        .0,
        Verdict::Transmit(VM1)
    );
}

#[test]
fn shares_follow_the_common_hash() {
    let mut config = config();
    config.wcmp_percent = 50;
    let mut bed = Bed::empty(config);
    bed.attach(spec("vm1", VM1, V100, "10.100.1.1", "2000:100:1::1"));
    bed.attach(spec("vm2", VM2, V100, "10.100.1.2", ""));
    bed.route(V100, "0.0.0.0", 0);
    // Slots of the published vectors: 0 and 2 are uplink 0's, 8 and 6 are uplink 1's.
    assert_eq!(
        sent(
            &mut bed,
            &build::echo("10.100.1.1", "10.100.2.102", true, 0)
        ),
        Verdict::Transmit(PF0)
    );
    assert_eq!(
        sent(
            &mut bed,
            &build::echo("10.100.1.1", "10.100.2.125", true, 0)
        ),
        Verdict::Transmit(PF1)
    );
    for (port, uplink) in [(100, PF0), (120, PF1)] {
        let packet = build::tcp(("10.100.1.2", 1240), ("45.86.6.6", port), 0x02);
        assert_eq!(
            bed.send(VM2, &from_guest(&packet)).0,
            Verdict::Transmit(uplink)
        );
    }
    // A slot moves only when its uplink is down.
    bed.engine.set_link(PF1, false);
    assert_eq!(
        sent(
            &mut bed,
            &build::echo("10.100.1.1", "10.100.2.125", true, 0)
        ),
        Verdict::Transmit(PF0)
    );
    bed.engine.set_link(PF1, true);
    bed.engine.set_link(PF0, false);
    assert_eq!(
        sent(
            &mut bed,
            &build::echo("10.100.1.1", "10.100.2.102", true, 0)
        ),
        Verdict::Transmit(PF1)
    );
}

/// Key of 44 bytes: destination, protocol, destination port or identifier, source, kind, source port or type, VNI 100.
fn key(
    to: [u8; 4],
    protocol: u8,
    to_port: u16,
    from: [u8; 4],
    kind: u8,
    from_port: u16,
) -> Vec<u8> {
    let address = |octets: [u8; 4]| {
        let mut bytes = octets.to_vec();
        bytes.reverse();
        bytes.resize(17, 0);
        bytes
    };
    let mut key = address(to);
    key.push(protocol);
    key.extend(to_port.to_le_bytes());
    key.extend(address(from));
    key.push(kind);
    key.extend(from_port.to_le_bytes());
    key.extend(100_u32.to_le_bytes());
    key
}

#[test]
fn hash_vectors() {
    let vm1 = [10, 100, 1, 1];
    for (key, hash) in [
        (
            key([172, 22, 2, 1], 17, 1234, [45, 86, 6, 6], 0, 53),
            0xea89_f889,
        ),
        (
            key([172, 22, 2, 1], 17, 1234, [45, 86, 6, 106], 0, 53),
            0xf35d_4eec,
        ),
        (key([10, 100, 2, 102], 1, 0, vm1, 0, 8), 0xbcbb_84d0),
        (key([10, 100, 2, 125], 1, 0, vm1, 0, 8), 0x2b89_a5d0),
        (
            key([45, 86, 6, 6], 6, 100, [10, 100, 1, 2], 0, 1240),
            0x8765_faec,
        ),
        (
            key([45, 86, 6, 6], 6, 120, [10, 100, 1, 2], 0, 1240),
            0x1b1f_f116,
        ),
        (key([45, 86, 6, 6], 6, 503, vm1, 3, 1256), 0x7e5d_d5ab),
        (key([45, 86, 6, 6], 6, 505, vm1, 3, 1256), 0x851c_38b1),
        (key([45, 86, 6, 206], 1, 80, vm1, 3, 8), 0x8774_0322),
    ] {
        assert_eq!(jhash(&key), hash, "{key:02x?}");
    }
    // Other lengths: NAT port map (23 bytes), virtual-service connection (8 bytes), address and VNI (8 bytes).
    let mut port_map = 100_u32.to_le_bytes().to_vec();
    port_map.extend([1, 1, 100, 10]);
    port_map.resize(21, 0);
    port_map.extend(1024_u16.to_le_bytes());
    assert_eq!(jhash(&port_map), 0x7540_a119);
    assert_eq!(jhash(&[2, 0, 0x30, 0x39, 10, 100, 1, 1]), 0x8884_0b07);
    assert_eq!(jhash(&[1, 1, 100, 10, 100, 0, 0, 0]), 0xd5e4_8915);
}
