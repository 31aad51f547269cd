//! Ports of virtual services: order, reuse, timeouts.

use crate::bed::{VM1, v4, v6};
use dataplane::{Connection, Instant, VirtualService, VirtualServiceSpec};
use net::tcp::{ACK, FIN, SYN};

fn service(protocol: u8) -> VirtualService {
    let spec = VirtualServiceSpec {
        protocol,
        address: v4("1.2.3.4"),
        port: 53,
        service: v6("2001:db8::53"),
        service_port: 5353,
    };
    VirtualService::new(v6("fc00:1::1"), 258, spec, 30, 7)
}

fn connection(machine_port: u16) -> Connection {
    Connection {
        port: VM1,
        attachment: 1,
        machine: v4("10.100.1.1"),
        machine_port,
    }
}

#[test]
fn hashes_that_all_implementations_share() {
    for (port, hash) in [
        (12345, 0x8884_0b07),
        (12346, 0x8046_02ac),
        (12348, 0xcb18_0130_u32),
    ] {
        assert_eq!(connection(port).path_hash(), hash);
    }
    let slots = [12345, 12348, 12351, 12357].map(|port| connection(port).path_hash() % 10);
    assert_eq!(slots[..2], [1, 6]);
    assert_eq!(
        [12351, 12357].map(|port| connection(port).path_hash()),
        [0x53cc_8cad, 0x0803_13ce]
    );
    assert_eq!(service(17).underlay(), v6("fc00:1::d0ff:4000:201:0"));
}

#[test]
fn ports_are_given_out_in_turn_and_reused_after_a_rest() {
    let mut service = service(17);
    let start = Instant::from_secs(100);
    let out =
        |service: &mut VirtualService, port, now| service.outgoing(connection(port), None, now);
    assert_eq!(out(&mut service, 1, start), Some(1025));
    assert_eq!(out(&mut service, 2, start), Some(1026));
    assert_eq!(
        out(&mut service, 1, start),
        Some(1025),
        "a connection keeps its port"
    );
    assert_eq!(service.incoming(1026, None, start), Some(connection(2)));
    for unknown in [1024, 1027, 80, 65535] {
        assert_eq!(service.incoming(unknown, None, start), None);
    }
    assert_eq!(service.live(start.plus_secs(30)), 2);
    assert_eq!(service.live(start.plus_secs(31)), 0);
    let later = start.plus_secs(31);
    assert_eq!(
        out(&mut service, 3, later),
        Some(1027),
        "next in turn, not the lowest free"
    );
    // Once around: 1024 is the last of the turn, then the rested ones.
    for index in 0..64_508_u32 {
        let got = out(
            &mut service,
            10_000_u16.wrapping_add(index as u16),
            later.plus_secs(u64::from(index) / 60_000),
        );
        assert!(got.is_some());
    }
}

#[test]
fn full_and_freed() {
    let mut service = service(17);
    let start = Instant::from_secs(100);
    for index in 0..64_512_u32 {
        let who = Connection {
            attachment: index,
            ..connection(7)
        };
        let port = service.outgoing(who, None, start);
        let expected = if index == 64_511 {
            1024
        } else {
            1025 + index as u16
        };
        assert_eq!(port, Some(expected));
    }
    assert_eq!(
        service.outgoing(connection(8), None, start.plus_secs(30)),
        None,
        "all in use"
    );
    let later = start.plus_secs(31);
    assert_eq!(service.outgoing(connection(8), None, later), Some(1025));
    let first = Connection {
        attachment: 0,
        ..connection(7)
    };
    assert_eq!(
        service.outgoing(first, None, later),
        Some(1026),
        "its port was given away"
    );
}

#[test]
fn established_tcp_is_kept_for_a_day() {
    let mut service = service(6);
    let start = Instant::from_secs(100);
    let who = connection(1);
    service.outgoing(who, Some(SYN), start).unwrap();
    service.incoming(1025, Some(SYN | ACK), start).unwrap();
    service.outgoing(who, Some(ACK), start).unwrap();
    assert_eq!(service.live(start.plus_secs(86_400)), 1);
    assert_eq!(service.live(start.plus_secs(86_401)), 0);
    service.incoming(1025, Some(FIN | ACK), start).unwrap();
    assert_eq!(service.live(start.plus_secs(31)), 0);
}
