//! Forwarding: local delivery, encapsulation, decapsulation, the checks on both, and the flow cache.

use crate::bed::*;
use crate::build;
use dataplane::{DropReason, Verdict};
use net::Mac;

/// Outer packet as the overlay sends it, spelled out byte by byte.
fn encapsulated(
    uplink: u8,
    from: core::net::Ipv6Addr,
    to: core::net::Ipv6Addr,
    inner: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(ROUTER_MAC.0);
    frame.extend([0x22, 0x22, 0x22, 0x22, 0x22, uplink]);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((inner.len() as u16).to_be_bytes());
    frame.extend([if inner[0] >> 4 == 4 { 4 } else { 41 }, 64]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(inner);
    frame
}

fn delivered(bed: &Bed, port: dataplane::PortId, mac: Mac, ip: &[u8]) -> Vec<u8> {
    let ethertype = if ip[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    build::ethernet(mac, bed.port_mac(port), ethertype, ip)
}

#[test]
fn remote_ipv4_is_encapsulated_first_slowly_then_from_the_cache() {
    let mut bed = Bed::new();
    let request = build::echo("10.100.1.1", "10.100.2.102", true, 7);
    let outer = encapsulated(0, bed.underlay("vm1"), neighbour(), &request);
    let frame = from_guest(&request);
    let slow = [
        ("conntrack", 1),
        ("ipv4_lookup", 1),
        ("ipip_encap", 1),
        ("flows created", 1),
    ];
    bed.check(VM1, &frame, Verdict::Transmit(PF0), &outer, &slow);
    let fast = [("flow_cache", 1), ("ipip_encap", 1)];
    bed.check(VM1, &frame, Verdict::Transmit(PF0), &outer, &fast);
    // The reply finds the same flow and decides its own direction once.
    let reply = build::echo("10.100.2.102", "10.100.1.1", false, 7);
    let frame = from_fabric(bed.underlay("vm1"), &reply);
    let inner = delivered(&bed, VM1, bed.port_mac(VM1), &reply);
    bed.check(
        PF0,
        &frame,
        Verdict::Transmit(VM1),
        &inner,
        &[("ipip_decap", 1), ("conntrack", 1)],
    );
    let fast = [("flow_cache", 1), ("ipip_decap", 1)];
    bed.check(PF0, &frame, Verdict::Transmit(VM1), &inner, &fast);
    // Whichever uplink it comes in on.
    bed.check(PF1, &frame, Verdict::Transmit(VM1), &inner, &fast);
    assert_eq!(bed.worker.flow_saturation(), (1, 1_000));
}
