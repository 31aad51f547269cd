//! Load balancing (node `lb`): which target a connection to a load balancer's address goes to.
//!
//! The packet itself is not changed: targets own the address and answer directly. A connection keeps its target as long as that is one.

use crate::counters::Node;
use crate::flow::Service;
use crate::graph::{Context, Output, Source, Walk};
use crate::route_lookup::path_hash;
use crate::services::Balancer;
use crate::underlay::{HostPart, UnderlayKind};
use crate::verdict::DropReason;
use core::net::Ipv6Addr;

/// Steers packets that came in at the underlay address of a load balancer.
pub(crate) fn process(cx: &mut Context<'_>, walk: &mut Walk) -> Result<(), DropReason> {
    match cx.source {
        Source::Tunnel { endpoint, .. } if endpoint.kind == UnderlayKind::LoadBalancer => {}
        Source::Tunnel { .. } | Source::Machine => return Ok(()),
    }
    cx.counters.count(Node::Lb);
    let tables = cx.tables;
    let balancer = tables.services.balancer(cx.vni, walk.tuple.destination);
    let balancer = balancer.ok_or(DropReason::DestinationForeign)?;
    let protocol = super::port_protocol(walk.tuple.transport).ok_or(DropReason::LbUnserved)?;
    if !balancer.serves(protocol, walk.tuple.destination_port) {
        return Err(DropReason::LbUnserved);
    }
    let target = choose(cx, balancer, walk).ok_or(DropReason::LbNoTarget)?;
    walk.service = Service::LoadBalancer;
    walk.output = Some(output(cx, walk, target)?);
    Ok(())
}

fn choose(cx: &Context<'_>, balancer: &Balancer, walk: &Walk) -> Option<Ipv6Addr> {
    let known = walk.previous.and_then(|previous| previous.target);
    let kept = known.filter(|target| balancer.targets.contains(*target));
    kept.or_else(|| {
        let hash = path_hash(cx.vni.get(), &walk.tuple, 0);
        balancer.targets.select(hash)
    })
}

/// To a machine of this host, or on to another host.
fn output(cx: &Context<'_>, walk: &Walk, target: Ipv6Addr) -> Result<Output, DropReason> {
    if !cx.tables.is_host_prefix(target) {
        return cx.hairpin(target);
    }
    let found = cx.tables.underlay.lookup(HostPart::of(target));
    let (_, endpoint) = found.ok_or(DropReason::UnderlayUnknown)?;
    let serves = |prefix: net::Prefix| prefix.contains(walk.tuple.destination);
    let is_target = endpoint.kind == UnderlayKind::LbPrefix
        && endpoint.vni == cx.vni
        && endpoint.prefix.is_some_and(serves);
    if is_target {
        Ok(Output::Deliver(endpoint.port))
    } else {
        Err(DropReason::DestinationForeign)
    }
}
