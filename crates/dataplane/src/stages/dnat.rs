//! Destination translation (node `dnat`): addresses that stand for machines, and ports that belong to other hosts.

use crate::counters::Node;
use crate::flow::Service;
use crate::graph::{Context, Source, Walk};
use crate::services::Translated;
use crate::underlay::UnderlayKind;
use crate::verdict::DropReason;
use core::net::IpAddr;

pub(crate) fn process(cx: &mut Context<'_>, walk: &mut Walk) -> Result<(), DropReason> {
    if walk.output.is_some() {
        return Ok(());
    }
    let tables = cx.tables;
    let translated = match walk.tuple.destination {
        IpAddr::V4(address) => tables.services.translated(cx.vni, address),
        IpAddr::V6(_) => None,
    };
    match (cx.source, translated) {
        (Source::Tunnel { endpoint, .. }, translated) => match (endpoint.kind, translated) {
            // Each by the underlay address that was made for it.
            (UnderlayKind::Vip, Some(translated)) if translated.is_vip_of(endpoint.port) => {
                cx.counters.count(Node::Dnat);
                to_vip(walk, translated)?.ok_or(DropReason::Bug)
            }
            (UnderlayKind::Nat, Some(translated)) if translated.vip.is_none() => {
                cx.counters.count(Node::Dnat);
                to_neighbor(cx, walk, translated)
            }
            (UnderlayKind::Vip | UnderlayKind::Nat, _) => Err(DropReason::DestinationForeign),
            (
                UnderlayKind::Interface
                | UnderlayKind::AliasPrefix
                | UnderlayKind::LbPrefix
                | UnderlayKind::LoadBalancer,
                _,
            ) => Ok(()),
        },
        (Source::Machine, None) => Ok(()),
        (Source::Machine, Some(translated)) => {
            cx.counters.count(Node::Dnat);
            // A shared address of the own network is not reachable from inside: nobody could tell whose port is meant.
            to_vip(walk, translated)?.ok_or(DropReason::NatUnsolicited)
        }
    }
}

/// To the host that owns the NAT port.
fn to_neighbor(
    cx: &Context<'_>,
    walk: &mut Walk,
    translated: &Translated,
) -> Result<(), DropReason> {
    let owner = translated.neighbor(walk.tuple.destination_port);
    let owner = owner.ok_or(DropReason::NatUnsolicited)?;
    walk.service = Service::NeighbourNat;
    walk.output = Some(cx.hairpin(owner)?);
    Ok(())
}

/// `None` if the address does not stand for one machine alone.
fn to_vip(walk: &mut Walk, translated: &Translated) -> Result<Option<()>, DropReason> {
    let Some((_, machine)) = translated.vip else {
        return Ok(None);
    };
    walk.leaves.destination = IpAddr::V4(machine);
    walk.service = Service::Vip;
    Ok(Some(()))
}
