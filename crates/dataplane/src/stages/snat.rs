//! Source translation (node `snat`) of what leaves by a default route: VIP, network NAT, and NAT64; and giving NAT ports back.

use crate::counters::Node;
use crate::flow::key::{Transport, Tuple};
use crate::flow::{Entry, Service};
use crate::graph::{Context, Output, Previous, Source, Walk};
use crate::nat64;
use crate::objects::Nat;
use crate::port_map::{NatEnd, NatError, NatRemote, NatSource, PortMap};
use crate::route_lookup::check_forwardable;
use crate::sync::{Journal, Message, NatUse};
use crate::verdict::DropReason;
use core::net::{IpAddr, Ipv4Addr};
use net::{Vni, protocol};

pub(crate) fn process(cx: &mut Context<'_>, walk: &mut Walk) -> Result<(), DropReason> {
    let leaves_host = matches!(walk.output, Some(Output::Encap { .. }));
    if !matches!(cx.source, Source::Machine) || !walk.public || !leaves_host {
        return Ok(());
    }
    let Some(attached) = cx.attached(cx.machine) else {
        return Ok(());
    };
    let services = &attached.services;
    match (walk.tuple.source, walk.leaves.destination) {
        (IpAddr::V4(source), IpAddr::V4(remote))
            if attached.interface.spec.ipv4 == Some(source) =>
        {
            match (services.nat, services.vip) {
                (Some(nat), _) => translate(cx, walk, nat, remote, Service::Nat),
                (None, Some(vip)) => {
                    cx.counters.count(Node::Snat);
                    walk.leaves.source = IpAddr::V4(vip.address);
                    walk.service = Service::Vip;
                    Ok(())
                }
                (None, None) => Ok(()),
            }
        }
        (IpAddr::V6(_), IpAddr::V6(destination)) => {
            match (services.nat, nat64::embedded(destination)) {
                (Some(nat), Some(remote)) => {
                    // What must not be forwarded, must not be so as IPv4 either (RFC 6052 §3.1).
                    let shown = IpAddr::V4(remote);
                    check_forwardable(shown, shown)?;
                    translate(cx, walk, nat, remote, Service::Nat64)
                }
                (Some(_), None) | (None, _) => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Whether the translation that the answers of a connection undo is still in force. Its first direction finds out by taking the walk anew;
/// answers show `tuple` and would leave as before.
pub(crate) fn stands(cx: &Context<'_>, number: u32, (tuple, before): (&Tuple, &Previous)) -> bool {
    let leaves = &before.leaves;
    match before.service {
        Service::Vip => [
            (leaves.source, tuple.source),
            (tuple.destination, leaves.destination),
        ]
        .into_iter()
        .all(|(public, private)| public == private || is_vip(cx, public, private)),
        Service::Nat | Service::Nat64 => {
            let owner = cx.flows.cold(number).map(|cold| cold.owner_port);
            let attached = owner.and_then(|owner| cx.attached(owner));
            attached
                .and_then(|attached| attached.services.nat)
                .is_some_and(|nat| {
                    IpAddr::V4(nat.address) == tuple.destination
                        && nat.ports.contains(tuple.destination_port)
                })
        }
        Service::None | Service::NeighbourNat | Service::LoadBalancer => true,
    }
}

fn is_vip(cx: &Context<'_>, public: IpAddr, private: IpAddr) -> bool {
    let IpAddr::V4(address) = public else {
        return false;
    };
    let translated = cx.tables.services.translated(cx.vni, address);
    let machine = translated.and_then(|translated| translated.vip);
    machine.is_some_and(|(_, machine)| IpAddr::V4(machine) == private)
}

fn translate(
    cx: &mut Context<'_>,
    walk: &mut Walk,
    nat: Nat,
    remote: Ipv4Addr,
    service: Service,
) -> Result<(), DropReason> {
    cx.counters.count(Node::Snat);
    let source = source(cx.vni, &walk.tuple);
    let end = match walk.previous {
        None => {
            let remote = self::remote(&walk.tuple, remote).ok_or(DropReason::Bug)?;
            let end = cx.nat.allocate(source, remote, nat.address, nat.ports);
            let end = end.map_err(|error| match error {
                NatError::Exhausted | NatError::Conflict => DropReason::NatExhausted,
                NatError::Full => DropReason::NatTableFull,
            })?;
            let used = NatUse {
                source,
                end,
                remote,
            };
            let machine = cx.machine;
            cx.journal.note(|| Message::NatTaken(used, machine));
            end
        }
        Some(previous) => {
            let known = previous.leaves;
            let is_valid = previous.service == service
                && known.source == IpAddr::V4(nat.address)
                && nat.ports.contains(known.source_port);
            walk.begin_anew = !is_valid;
            NatEnd {
                address: nat.address,
                port: known.source_port,
            }
        }
    };
    walk.service = service;
    walk.leaves.source = IpAddr::V4(end.address);
    walk.leaves.destination = IpAddr::V4(remote);
    walk.leaves.source_port = end.port;
    if matches!(walk.tuple.transport, Transport::Echo { .. }) {
        walk.leaves.destination_port = end.port;
    }
    Ok(())
}

fn source(vni: Vni, tuple: &Tuple) -> NatSource {
    NatSource {
        vni,
        address: tuple.source,
        port: tuple.source_port,
    }
}

fn remote(tuple: &Tuple, address: Ipv4Addr) -> Option<NatRemote> {
    match tuple.transport {
        Transport::Tcp | Transport::Udp => Some(NatRemote {
            address,
            port: tuple.destination_port,
            protocol: super::port_protocol(tuple.transport)?,
        }),
        Transport::Echo { .. } => Some(NatRemote::echo(address)),
    }
}

/// What another instance has to know of a connection, by what a packet shows `from` before and `leaves` after translation.
pub(crate) fn shared(vni: Vni, from: &Tuple, leaves: &Tuple) -> Option<NatUse> {
    let (IpAddr::V4(address), IpAddr::V4(remote)) = (leaves.source, leaves.destination) else {
        return None;
    };
    Some(NatUse {
        source: source(vni, from),
        end: NatEnd {
            address,
            port: leaves.source_port,
        },
        remote: self::remote(leaves, remote)?,
    })
}

/// What a packet of a connection that another instance has translated shows, before and after translation, and who is responsible.
pub(crate) fn shown(used: &NatUse) -> Option<(Tuple, Tuple, Service)> {
    let transport = match used.remote.protocol {
        protocol::TCP => Transport::Tcp,
        protocol::UDP => Transport::Udp,
        protocol::ICMP => Transport::Echo { request: true },
        _ => return None,
    };
    let (destination, service) = match used.source.address {
        IpAddr::V4(_) => (IpAddr::V4(used.remote.address), Service::Nat),
        IpAddr::V6(_) => (
            IpAddr::V6(nat64::embed(used.remote.address)),
            Service::Nat64,
        ),
    };
    // An echo has its identifier at both ends.
    let (from_port, to_port) = match transport {
        Transport::Echo { .. } => (used.source.port, used.end.port),
        Transport::Tcp | Transport::Udp => (used.remote.port, used.remote.port),
    };
    let from = Tuple {
        source: used.source.address,
        destination,
        source_port: used.source.port,
        destination_port: from_port,
        transport,
    };
    let leaves = Tuple {
        source: IpAddr::V4(used.end.address),
        destination: IpAddr::V4(used.remote.address),
        source_port: used.end.port,
        destination_port: to_port,
        transport,
    };
    Some((from, leaves, service))
}

/// Gives the NAT port of a connection back, of which a packet shows `from` before and `leaves` after translation.
pub(crate) fn give_back(
    (nat, journal): (&mut PortMap, &mut Journal),
    vni: Vni,
    from: &Tuple,
    leaves: &Tuple,
) {
    if let Some(used) = shared(vni, from, leaves)
        && nat.release(used.source, used.remote, used.end)
    {
        journal.note(|| Message::NatGivenBack(used));
    }
}

/// The same for the two entries of a connection that ends.
pub(crate) fn end(
    given: (&mut PortMap, &mut Journal),
    [forward, backward]: [&Entry; 2],
    service: Service,
) {
    match service {
        Service::Nat | Service::Nat64 => {
            let leaves = backward.key.tuple().inverted();
            give_back(
                given,
                forward.key.scope().vni(),
                &forward.key.tuple(),
                &leaves,
            );
        }
        Service::None | Service::Vip | Service::NeighbourNat | Service::LoadBalancer => {}
    }
}
