//! ARP responder (node `arp`): answers for the gateway and learns the machine's hardware address.

use crate::GATEWAY_IPV4;
use crate::counters::Node;
use crate::graph::Context;
use crate::packet::Packet;
use crate::verdict::{DropReason, Verdict};
use core::net::Ipv4Addr;
use net::{Arp, Ethernet, Mac, arp, ethernet};

/// Answers or consumes an ARP packet of a machine.
///
/// Any ARP whose sender is the interface's own IPv4 address teaches us the machine's hardware address. Requests for the gateway
/// are answered whoever asks (a probe has no sender address yet). Everything else is none of our business.
pub(crate) fn process(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
) -> Result<Verdict, DropReason> {
    cx.counters.count(Node::Arp);
    let frame = Ethernet::new_checked(packet.frame()).map_err(|_| DropReason::Runt)?;
    let request = Arp::new_checked(frame.payload()).map_err(|_| DropReason::ArpMalformed)?;
    let port = cx.tables.port(cx.machine).ok_or(DropReason::Bug)?;
    let own = port
        .interface
        .as_ref()
        .and_then(|attached| attached.interface.spec.ipv4);
    let learned = own == Some(request.sender_ip) && !frame.source().is_group();
    if learned {
        port.learned.learn_from_arp(frame.source());
    }
    if request.opcode != arp::REQUEST || request.target_ip != GATEWAY_IPV4 {
        return Err(if learned {
            DropReason::ArpLearned
        } else {
            DropReason::ArpNotForGateway
        });
    }
    let reply = Arp {
        opcode: arp::REPLY,
        sender_mac: port.mac,
        sender_ip: GATEWAY_IPV4,
        target_mac: request.sender_mac,
        target_ip: request.sender_ip,
    };
    emit(packet, request.sender_mac, port.mac, &reply)?;
    Ok(Verdict::Reply(cx.machine))
}

/// A request that tells everyone the gateway's hardware address; with `target` set to the machine's address it also makes the
/// machine tell its own.
pub(crate) fn gratuitous(
    packet: &mut dyn Packet,
    mac: Mac,
    target: Ipv4Addr,
) -> Result<(), DropReason> {
    packet.clear();
    let announcement = Arp {
        opcode: arp::REQUEST,
        sender_mac: mac,
        sender_ip: GATEWAY_IPV4,
        target_mac: Mac::ZERO,
        target_ip: target,
    };
    emit(packet, Mac::BROADCAST, mac, &announcement)
}

fn emit(packet: &mut dyn Packet, to: Mac, from: Mac, arp: &Arp) -> Result<(), DropReason> {
    if !packet.resize(ethernet::HEADER_LEN + arp::LEN) {
        return Err(DropReason::Bug);
    }
    let frame = packet.frame_mut();
    ethernet::emit(frame, to, from, ethernet::TYPE_ARP);
    let body = frame
        .get_mut(ethernet::HEADER_LEN..)
        .ok_or(DropReason::Bug)?;
    body.copy_from_slice(&arp.emit());
    Ok(())
}
