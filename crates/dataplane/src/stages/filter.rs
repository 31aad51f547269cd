//! The packet filter (node `firewall`): may the first packet of a connection leave its machine, and may it reach the other?

use crate::counters::Node;
use crate::firewall::{Filter, FilterPacket, Firewall};
use crate::flow::key::Tuple;
use crate::graph::{Context, Output, Source, Walk};
use crate::objects::{FirewallMode, RuleDirection};
use crate::verdict::{DropReason, PortId};

pub(crate) fn process(cx: &mut Context<'_>, walk: &Walk) -> Result<(), DropReason> {
    cx.counters.count(Node::Firewall);
    // The source as it was sent, the destination as it will be received.
    let packet = FilterPacket::of(&Tuple {
        destination: walk.leaves.destination,
        ..walk.tuple
    });
    let receiver = match walk.output {
        Some(Output::Deliver(port)) => Some(port),
        Some(Output::Encap { .. }) | None => None,
    };
    decide(cx, &packet, receiver)
}

/// The same for a connection that is looked at again, which does not count as passing the stage. `receiver`: the machine of this host that
/// gets its packets.
pub(crate) fn decide(
    cx: &mut Context<'_>,
    packet: &FilterPacket,
    receiver: Option<PortId>,
) -> Result<(), DropReason> {
    if matches!(cx.source, Source::Machine)
        && let Some(services) = cx.services()
    {
        let reason = DropReason::FirewallEgress;
        check(
            cx,
            &services.firewall,
            RuleDirection::Egress,
            packet,
            reason,
        )?;
    }
    if let Some(attached) = receiver.and_then(|port| cx.attached(port)) {
        let (firewall, reason) = (&attached.services.firewall, DropReason::FirewallIngress);
        check(cx, firewall, RuleDirection::Ingress, packet, reason)?;
    }
    Ok(())
}

fn check(
    cx: &mut Context<'_>,
    firewall: &Firewall,
    direction: RuleDirection,
    packet: &FilterPacket,
    reason: DropReason,
) -> Result<(), DropReason> {
    // A rehearsal leaves no trace, not even a hit of a rule.
    let decided = if cx.tables.settings.is_rehearsal {
        firewall.explain(direction, packet).0
    } else {
        firewall.decide(direction, packet)
    };
    match (decided, cx.tables.settings.firewall) {
        (Filter::Accept, _) => Ok(()),
        (Filter::Drop, FirewallMode::Enforce) => Err(reason),
        (Filter::Drop, FirewallMode::Observe) => {
            cx.counters.firewall_observed += 1;
            Ok(())
        }
    }
}
