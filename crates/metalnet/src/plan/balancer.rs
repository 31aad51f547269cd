//! The next steps for one load balancer, from what is wanted to what is there.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use super::desired::{Block, Want};
use super::nic::{Warning, reason};
use super::observed::Balancer;
use super::ops::{BalancerRequest, DpError, DpOp};
use super::rib::Heard;
use crate::model::{State, Uid};
use crate::services::{BALANCER_FINALIZER, BalancerSpec, LoadBalancer};

/// Everything the plan for one load balancer looks at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub uid: &'a Uid,
    pub object: Option<&'a LoadBalancer>,
    pub want: Want<'a, BalancerSpec>,
    /// What dpservice holds; `None` if there is nothing, or if that is not known (`live` false).
    pub balancer: Option<&'a Balancer>,
    /// Whether the inventory is current.
    pub live: bool,
    /// Whether another load balancer that is about to go still holds the address.
    pub occupied: bool,
    /// The targets it should have.
    pub targets: &'a BTreeSet<Ipv6Addr>,
    /// How far the targets are known.
    pub heard: Heard,
    /// Targets that their last announcer has taken back, which counts whatever else is known.
    pub withdrawn: &'a BTreeSet<Ipv6Addr>,
    /// The last failure that was not transient.
    pub failure: Option<&'a DpError>,
}

/// Steps to take now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub dp: Vec<DpOp>,
    pub finalizers: Option<Vec<String>>,
    pub state: Option<State>,
    pub warning: Option<Warning>,
}

/// Plans the next steps.
pub fn plan(view: View<'_>) -> Plan {
    match (view.want, view.object) {
        (Want::Unknown, _) => Plan::default(),
        (Want::Absent, _) | (Want::Blocked(_) | Want::Present { .. }, None) => teardown(view),
        (Want::Blocked(block), Some(object)) => blocked(object, block),
        (Want::Present { spec, vni }, Some(object)) => {
            let mut plan = Plan::default();
            // The finalizer comes before the first trace in the data plane, or a deletion could overtake us.
            if !object.meta.has_finalizer(BALANCER_FINALIZER) {
                let mut finalizers = object.meta.finalizers.clone();
                finalizers.push(BALANCER_FINALIZER.to_owned());
                plan.finalizers = Some(finalizers);
                return plan;
            }
            if !view.live {
                return plan;
            }
            plan.dp = match view.balancer {
                None if view.occupied => Vec::new(),
                None => vec![DpOp::CreateBalancer {
                    uid: view.uid.clone(),
                    request: Box::new(BalancerRequest {
                        vni,
                        address: spec.address,
                        ports: spec.ports.clone(),
                    }),
                }],
                // Nothing of it can be changed in place.
                Some(balancer) if !balancer.matches(spec, vni) => vec![DpOp::DeleteBalancer {
                    uid: view.uid.clone(),
                }],
                Some(balancer) => targets(view, balancer),
            };
            let stands = view
                .balancer
                .is_some_and(|balancer| balancer.matches(spec, vni));
            // What failed may not be wanted any more.
            let done = stands && plan.dp.is_empty();
            if let Some(failure) = view.failure.filter(|_| !done) {
                let note = failure.to_string();
                return with(plan, object, State::Error, "DataPlane", note);
            }
            if stands {
                plan.state = Some(State::Ready).filter(|state| object.state != Some(*state));
            }
            plan
        }
    }
}

/// New targets come before old ones go, so that there is always somewhere to send a packet; a target that its host took
/// back goes at once.
fn targets(view: View<'_>, balancer: &Balancer) -> Vec<DpOp> {
    let uid = view.uid;
    let missing = view.targets.difference(&balancer.targets);
    let missing = missing.map(|target| DpOp::CreateTarget {
        uid: uid.clone(),
        target: *target,
    });
    let extra = balancer.targets.difference(view.targets);
    let extra = extra
        .filter(|target| view.heard == Heard::All || view.withdrawn.contains(target))
        .map(|target| DpOp::DeleteTarget {
            uid: uid.clone(),
            target: *target,
        });
    let full = balancer.targets.len() + view.targets.difference(&balancer.targets).count()
        > crate::services::BALANCER_TARGETS_MAX;
    if full {
        let extra: Vec<DpOp> = extra.collect();
        return if extra.is_empty() {
            missing.collect()
        } else {
            extra
        };
    }
    missing.chain(extra).collect()
}

fn teardown(view: View<'_>) -> Plan {
    let mut plan = Plan::default();
    if !view.live {
        return plan;
    }
    if view.balancer.is_some() {
        plan.dp = vec![DpOp::DeleteBalancer {
            uid: view.uid.clone(),
        }];
        return plan;
    }
    let held = |object: &&LoadBalancer| {
        object.meta.deleting && object.meta.has_finalizer(BALANCER_FINALIZER)
    };
    if let Some(object) = view.object.filter(held) {
        let rest = object
            .meta
            .finalizers
            .iter()
            .filter(|f| *f != BALANCER_FINALIZER);
        plan.finalizers = Some(rest.cloned().collect());
    }
    plan
}

fn blocked(object: &LoadBalancer, block: Block) -> Plan {
    let invalid = object.spec.as_ref().err().map(ToString::to_string);
    let (state, warning) = reason(block, &object.network, invalid);
    with(Plan::default(), object, state, warning.reason, warning.note)
}

fn with(
    mut plan: Plan,
    object: &LoadBalancer,
    state: State,
    reason: &'static str,
    note: String,
) -> Plan {
    plan.state = Some(state).filter(|state| object.state != Some(*state));
    plan.warning = Some(Warning { reason, note });
    plan
}
