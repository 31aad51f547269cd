//! Neighbour discovery (node `ipv6_nd`, RFC 4861): the gateway `fe80::1` as router and neighbour.

use crate::GATEWAY_IPV6;
use crate::counters::Node;
use crate::graph::Context;
use crate::packet::Packet;
use crate::reply::join;
use crate::verdict::{DropReason, Verdict};
use core::net::Ipv6Addr;
use net::{Ethernet, Mac, checksum, ethernet, icmp, ipv6, protocol};

/// Hop limit of every neighbour discovery packet (RFC 4861 §7.1).
const HOP_LIMIT: u8 = 255;
/// Option: link-layer address of the sender.
const SOURCE_LINK_LAYER: u8 = 1;
/// Option: link-layer address of the target.
const TARGET_LINK_LAYER: u8 = 2;
/// Neighbour advertisement flags: router, override.
const ROUTER_OVERRIDE: u8 = 0xa0;
/// Neighbour advertisement flag: solicited.
const SOLICITED: u8 = 0x40;
/// Router advertisement: hop limit 255, addresses and other configuration by DHCPv6, the longest lifetime, no timers. There is no
/// prefix option: the machine's address is a /128 and everything is reached over the gateway.
const ROUTER_FIELDS: [u8; 12] = [0xff, 0xc0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];

/// Answers a neighbour or router solicitation, given its source and ICMPv6 message.
pub(crate) fn process(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
) -> Result<Verdict, DropReason> {
    cx.counters.count(Node::Ipv6Nd);
    let port = cx.tables.port(cx.machine).ok_or(DropReason::Bug)?;
    let own = port
        .interface
        .as_ref()
        .and_then(|attached| attached.interface.spec.ipv6);
    if !cx.tables.settings.ipv6_overlay || own.is_none() {
        return Err(DropReason::NdDisabled);
    }
    let machine = Ethernet::new_checked(packet.frame())
        .map_err(|_| DropReason::Runt)?
        .source();
    let crate::cls::FromMachine::Solicitation(source, message) =
        crate::cls::from_machine(packet.frame())?
    else {
        return Err(DropReason::Bug);
    };
    let (answer, flags) = if source.is_unspecified() {
        (ipv6::ALL_NODES, ROUTER_OVERRIDE)
    } else {
        (source, ROUTER_OVERRIDE | SOLICITED)
    };
    if message.first() == Some(&icmp::V6_ROUTER_SOLICITATION) {
        packet.clear();
        router_advertisement(packet, port.mac, machine, answer)?;
        return Ok(Verdict::Reply(cx.machine));
    }
    let target = message.get(8..24).and_then(<[u8]>::first_chunk::<16>);
    let target = Ipv6Addr::from_octets(*target.ok_or(DropReason::NdMalformed)?);
    if target != GATEWAY_IPV6 {
        return Err(DropReason::NdNotForGateway);
    }
    if !machine.is_group() {
        port.learned.learn(machine);
    }
    packet.clear();
    let mut body = [0; 28];
    let option = link_layer(TARGET_LINK_LAYER, port.mac);
    join(
        &mut body,
        &[&[flags, 0, 0, 0], &GATEWAY_IPV6.octets(), &option],
    );
    let kind = icmp::V6_NEIGHBOUR_ADVERTISEMENT;
    emit(packet, port.mac, machine, answer, kind, &body)?;
    Ok(Verdict::Reply(cx.machine))
}

/// Writes a router advertisement to an empty packet.
pub(crate) fn router_advertisement(
    packet: &mut dyn Packet,
    from: Mac,
    to: Mac,
    destination: Ipv6Addr,
) -> Result<(), DropReason> {
    let mut body = [0; 20];
    join(
        &mut body,
        &[&ROUTER_FIELDS, &link_layer(SOURCE_LINK_LAYER, from)],
    );
    emit(
        packet,
        from,
        to,
        destination,
        icmp::V6_ROUTER_ADVERTISEMENT,
        &body,
    )
}

/// Writes an unsolicited neighbour advertisement to an empty packet.
pub(crate) fn unsolicited_advertisement(
    packet: &mut dyn Packet,
    from: Mac,
) -> Result<(), DropReason> {
    let mut body = [0; 20];
    join(
        &mut body,
        &[&[ROUTER_OVERRIDE, 0, 0, 0], &GATEWAY_IPV6.octets()],
    );
    let kind = icmp::V6_NEIGHBOUR_ADVERTISEMENT;
    emit(
        packet,
        from,
        Mac::IPV6_ALL_NODES,
        ipv6::ALL_NODES,
        kind,
        &body,
    )
}

const fn link_layer(option: u8, mac: Mac) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac.0;
    [option, 1, a, b, c, d, e, f]
}

/// Ethernet, IPv6 from the gateway, ICMPv6 type `kind` code 0 with checksum and `body`.
fn emit(
    packet: &mut dyn Packet,
    from: Mac,
    to: Mac,
    destination: Ipv6Addr,
    kind: u8,
    body: &[u8],
) -> Result<(), DropReason> {
    let payload_len = (4 + body.len()) as u16;
    if !packet.resize(ethernet::HEADER_LEN + ipv6::HEADER_LEN + usize::from(payload_len)) {
        return Err(DropReason::Bug);
    }
    let header = ipv6::Header {
        payload_len,
        next_header: protocol::ICMPV6,
        hop_limit: HOP_LIMIT,
        source: GATEWAY_IPV6,
        destination,
    };
    let pseudo = checksum::pseudo_v6(
        GATEWAY_IPV6,
        destination,
        protocol::ICMPV6,
        u32::from(payload_len),
    );
    let sum = checksum::finish(checksum::sum(checksum::sum(pseudo, &[kind, 0, 0, 0]), body));
    let [c0, c1] = sum.to_be_bytes();
    let link = ethernet::header(to, from, ethernet::TYPE_IPV6);
    join(
        packet.frame_mut(),
        &[&link, &header.emit(), &[kind, 0, c0, c1], body],
    );
    Ok(())
}
