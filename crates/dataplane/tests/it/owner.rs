//! Both directions of a connection, and errors about it, belong to the same worker.

use dataplane::{
    Engine, EngineConfig, InterfaceSpec, Metering, PortConfig, PortId, PortKind, owner,
};
use net::{Mac, Vni};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const HOST: Ipv6Addr = Ipv6Addr::new(0xfc00, 1, 0, 0, 0, 0, 0, 1);
const UPLINK: PortId = PortId(0);
const FIRST: PortId = PortId(1);
const SECOND: PortId = PortId(2);
const WORKERS: usize = 4;

fn engine() -> Engine {
    let port = |name: &str, kind| PortConfig {
        name: name.to_owned(),
        kind,
        mac: Mac([2, 0, 0, 0, 0, 1]),
    };
    let ports = vec![
        port("u0", PortKind::Uplink(0)),
        port("m1", PortKind::Machine),
        port("m2", PortKind::Machine),
    ];
    let mut engine = Engine::new(EngineConfig::new(HOST, ports));
    engine.initialize();
    for (number, device) in [(1, "m1"), (2, "m2")] {
        let spec = InterfaceSpec {
            id: device.to_owned(),
            device: device.to_owned(),
            vni: Vni::new(100).unwrap(),
            ipv4: Some(Ipv4Addr::new(10, 0, 0, number)),
            ipv6: Some(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, number.into())),
            pxe: None,
            metering: Metering::default(),
            preferred_underlay: None,
            hostname: None,
        };
        engine.create_interface(spec).unwrap();
    }
    engine
}

/// An IP packet with TCP ports, or with an ICMP error that quotes `payload`.
fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
            ip.extend(source.octets());
            ip.extend(destination.octets());
            ip
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut ip = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            ip.extend(source.octets());
            ip.extend(destination.octets());
            ip
        }
        _ => panic!("one family"),
    };
    ip.extend(payload);
    ip
}

fn tcp(from: u16, to: u16) -> Vec<u8> {
    let mut header = [from.to_be_bytes(), to.to_be_bytes()].concat();
    header.extend([0; 16]);
    header
}

fn machine_frame(ip: &[u8]) -> Vec<u8> {
    let kind = if ip[0] >> 4 == 4 {
        [8, 0]
    } else {
        [0x86, 0xdd]
    };
    [&[2; 12][..], &kind, ip].concat()
}

fn uplink_frame(ip: &[u8]) -> Vec<u8> {
    let next = if ip[0] >> 4 == 4 { 4 } else { 41 };
    let mut frame = vec![2; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, next, 64]);
    frame.extend([0xfc; 32]);
    frame.extend(ip);
    frame
}

fn remote(number: u16, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2000, 1, 0, 0, 0, 0, 0, number).into()
    } else {
        Ipv4Addr::from_bits(0x0a01_0000 | u32::from(number)).into()
    }
}

fn local(number: u8, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 0, 0, number).into()
    }
}

#[test]
fn both_directions_and_errors_meet() {
    let engine = engine();
    let owned = |port, frame: &[u8]| owner(engine.tables(), port, frame, WORKERS);
    let mut spread = [0; WORKERS];
    for v6 in [false, true] {
        let (icmp, unreachable, start) = if v6 { (58, 1, 40) } else { (1, 3, 20) };
        for number in 0..500 {
            let (near, far) = (local(1, v6), remote(number, v6));
            let out = packet(near, far, 6, &tcp(number, 443));
            let back = packet(far, near, 6, &tcp(443, number));
            let owner = owned(FIRST, &machine_frame(&out));
            spread[owner] += 1;
            assert_eq!(owned(UPLINK, &uplink_frame(&back)), owner, "{far}");
            // The address may be translated on this host: only the far end counts.
            let translated = packet(far, local(99, v6), 6, &tcp(443, 1024));
            assert_eq!(owned(UPLINK, &uplink_frame(&translated)), owner, "{far}");
            // Somebody on the way complains about what we sent, and the machine about what came.
            let quote = |quoted: &[u8]| {
                let mut message = vec![unreachable, 0, 0, 0, 0, 0, 0, 0];
                message.extend(&quoted[..start + 8]);
                message
            };
            let error = packet(remote(999, v6), near, icmp, &quote(&out));
            assert_eq!(owned(UPLINK, &uplink_frame(&error)), owner, "{far}");
            let error = packet(near, far, icmp, &quote(&back));
            assert_eq!(owned(FIRST, &machine_frame(&error)), owner, "{far}");
            // Between machines of this host.
            let out = packet(near, local(2, v6), 6, &tcp(number, 443));
            let back = packet(local(2, v6), near, 6, &tcp(443, number));
            assert_eq!(
                owned(FIRST, &machine_frame(&out)),
                owned(SECOND, &machine_frame(&back)),
            );
        }
    }
    assert!(spread.iter().all(|count| *count > 200), "{spread:?}");
}

/// What a machine sends to a balanced address goes round by the fabric, even if a neighbour serves it.
#[test]
fn answers_of_a_target_meet_the_requests_that_the_fabric_brought() {
    let mut engine = engine();
    for v6 in [false, true] {
        let (served, virtual_address) = (local(200, v6), local(100, v6));
        let length = if v6 { 128 } else { 32 };
        engine.create_lb_prefix("m2", served, length, None).unwrap();
        let client = if v6 {
            local(1, true)
        } else {
            engine.create_vip("m1", virtual_address, None).unwrap();
            virtual_address
        };
        let owned = |port, frame: &[u8]| owner(engine.tables(), port, frame, WORKERS);
        for number in 0..100 {
            let request = packet(client, served, 6, &tcp(number, 443));
            let answer = packet(served, client, 6, &tcp(443, number));
            assert_eq!(
                owned(UPLINK, &uplink_frame(&request)),
                owned(SECOND, &machine_frame(&answer)),
                "at the target"
            );
            let sent = packet(local(1, v6), served, 6, &tcp(number, 443));
            assert_eq!(
                owned(FIRST, &machine_frame(&sent)),
                owned(UPLINK, &uplink_frame(&answer)),
                "at the client"
            );
        }
    }
}

#[test]
fn what_belongs_to_no_connection_stays_in_order() {
    let engine = engine();
    for length in 0..80 {
        let frame = machine_frame(&packet(local(1, true), remote(1, true), 6, &tcp(1, 2)));
        let cut = &frame[..length.min(frame.len())];
        for port in [UPLINK, FIRST, PortId(77)] {
            assert!(owner(engine.tables(), port, cut, WORKERS) < WORKERS);
            assert_eq!(owner(engine.tables(), port, cut, 1), 0);
        }
    }
    let arp = [&[0xff; 12][..], &[8, 6], &[0; 28]].concat();
    assert_eq!(owner(engine.tables(), SECOND, &arp, WORKERS), 2);
}
