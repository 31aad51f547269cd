//! A Prefix answers the PrefixAllocations that name it.
//!
//! The Prefix's own status lists which allocation has which part. A part is given by writing that list, only on the exact version
//! it was planned from; the allocation's status follows and says no more than the list does. So of two writers that decide at
//! the same time one fails and plans again, and one that stops between the two writes is continued by whoever comes next: with
//! the same part, because the list says so. A part returns only when an uncached read shows that its allocation is gone.

use std::collections::{HashMap, HashSet};

use api::{
    conditions::{self, Verdict},
    ipam::{Prefix, PrefixAllocation, PrefixAllocationPhase, PrefixGrant},
    meta::{Condition, IpPrefix},
};
use controller::{Key, Op, Plan, Target, World, object};
use serde_json::{Value, json};

use super::{
    blocks::{Free, Request},
    is_compatible, phase, request,
};
use crate::index::ALLOCATION_PARENT;

/// Parts that one Prefix can give: its list must fit into one object.
pub const ALLOCATIONS_MAX: usize = 16_384;
/// Allocations answered by one plan. The write of the list wakes the Prefix again.
pub const SERVED_MAX: usize = 256;
/// Allocations whose absence one plan proves.
pub const GONE_MAX: usize = 64;

/// What is to be written, in this order.
#[derive(Default)]
pub(super) struct Served {
    /// Proofs that allocations are gone whose parts return.
    pub gone: Vec<Op>,
    /// The new list; `None` when the shown one is right.
    pub list: Option<Vec<PrefixGrant>>,
    /// What the allocations are told.
    pub answers: Vec<Op>,
    /// Whether anything is still given.
    pub empty: bool,
}

/// Decides about all allocations that name the Prefix. One that is being deleted gives nothing any more, but takes back.
pub(super) fn serve(world: &World, parent: &Prefix) -> Served {
    let mut served = Served::default();
    let Some(own) = parent.spec.prefix else {
        served.empty = true;
        return served;
    };
    let key = Key::of(parent).to_string();
    let allocations = world.indexed::<PrefixAllocation>(ALLOCATION_PARENT, &key);
    let shown: &[PrefixGrant] = match &parent.status {
        Some(status) => &status.allocations,
        None => &[],
    };
    let mut list = kept(parent, shown, &allocations, &mut served);
    found(parent, own, &allocations, &mut list, &mut served);
    let given: HashMap<&str, IpPrefix> = shown
        .iter()
        .map(|grant| (grant.uid.as_str(), grant.prefix))
        .collect();
    let mut free = Free::new(own, list.iter().map(|grant| grant.prefix));
    let open = allocations
        .iter()
        .filter(|allocation| phase(allocation) == PrefixAllocationPhase::Pending)
        .filter(|allocation| !object::is_deleting(&***allocation));
    for allocation in open {
        if served.answers.len() >= SERVED_MAX {
            break;
        }
        let answer = match given.get(object::uid(&**allocation)) {
            Some(prefix) => Answer::Given(*prefix),
            None if object::is_deleting(parent) => Answer::Wait(
                "ParentDeleting",
                format!("Prefix {} is being deleted", object::name(parent)),
            ),
            None => decide(parent, allocation, &free, list.len()),
        };
        if let Answer::Given(prefix) = answer
            && !given.contains_key(object::uid(&**allocation))
        {
            free.remove(prefix);
            list.push(grant(allocation, prefix));
        }
        served
            .answers
            .extend(tell(allocation, answer, world.now_ms()));
    }
    list.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.uid.cmp(&b.uid)));
    served.empty = list.is_empty();
    served.list = (list != shown || used(&list) != shown_used(parent)).then_some(list);
    served
}

fn shown_used(parent: &Prefix) -> &[IpPrefix] {
    match &parent.status {
        Some(status) => &status.used,
        None => &[],
    }
}

fn grant(allocation: &PrefixAllocation, prefix: IpPrefix) -> PrefixGrant {
    PrefixGrant {
        name: object::name(allocation).to_owned(),
        uid: object::uid(allocation).to_owned(),
        prefix,
    }
}

/// The part of the list that stays. Allocations that nobody sees any more must be proven gone first.
fn kept(
    parent: &Prefix,
    shown: &[PrefixGrant],
    allocations: &[std::sync::Arc<PrefixAllocation>],
    served: &mut Served,
) -> Vec<PrefixGrant> {
    let by_uid: HashMap<&str, &PrefixAllocation> = allocations
        .iter()
        .map(|allocation| (object::uid(&**allocation), &**allocation))
        .collect();
    let mut kept = Vec::new();
    for grant in shown {
        let stays = match by_uid.get(grant.uid.as_str()) {
            // Failed is final, so the part was never used.
            Some(allocation) => match phase(allocation) {
                PrefixAllocationPhase::Failed => false,
                PrefixAllocationPhase::Pending => true,
                PrefixAllocationPhase::Allocated => result(allocation) == Some(grant.prefix),
            },
            None if served.gone.len() < GONE_MAX => {
                let namespace = object::namespace(parent);
                served.gone.push(Op::RequireGone {
                    target: Target::new::<PrefixAllocation>(namespace, &grant.name),
                    uid: grant.uid.clone(),
                });
                false
            }
            None => true,
        };
        if stays {
            kept.push(grant.clone());
        }
    }
    kept
}

fn result(allocation: &PrefixAllocation) -> Option<IpPrefix> {
    allocation.status.as_ref()?.prefix
}

/// Allocations that somebody else answered are taken into the list, as far as they do not contradict it.
fn found(
    parent: &Prefix,
    own: IpPrefix,
    allocations: &[std::sync::Arc<PrefixAllocation>],
    list: &mut Vec<PrefixGrant>,
    served: &mut Served,
) {
    let listed: HashSet<String> = list.iter().map(|grant| grant.uid.clone()).collect();
    for allocation in allocations {
        let unlisted = phase(allocation) == PrefixAllocationPhase::Allocated
            && !listed.contains(object::uid(&**allocation));
        let Some(prefix) = result(allocation).filter(|_| unlisted) else {
            continue;
        };
        if own.contains(prefix) && !list.iter().any(|grant| grant.prefix.overlaps(prefix)) {
            list.push(grant(allocation, prefix));
        } else {
            let note = format!(
                "PrefixAllocation {} says it has {prefix}, which was not given to it",
                object::name(&**allocation)
            );
            served.answers.push(Op::event(
                parent,
                true,
                "AllocationConflict",
                "Allocate",
                note,
            ));
        }
    }
}

#[derive(Clone)]
enum Answer {
    Given(IpPrefix),
    Wait(&'static str, String),
    Never(String),
}

fn decide(parent: &Prefix, allocation: &PrefixAllocation, free: &Free, given: usize) -> Answer {
    let name = object::name(parent);
    let Some(wanted) = request(allocation) else {
        return Answer::Never("asks for nothing".to_owned());
    };
    let own = parent.spec.prefix.map(|own| own.to_string());
    let own = own.unwrap_or_default();
    if !is_compatible(parent, allocation.spec.ip_family, wanted) {
        return Answer::Never(format!(
            "Prefix {name} ({own}) gives parts of its own family that are longer than itself only"
        ));
    }
    if given >= ALLOCATIONS_MAX {
        let message =
            format!("Prefix {name} has given {ALLOCATIONS_MAX} parts, which is its limit");
        return Answer::Wait("TooManyAllocations", message);
    }
    match (free.find(wanted), wanted) {
        (Some(prefix), _) => Answer::Given(prefix),
        (None, Request::Prefix(prefix)) => Answer::Wait(
            "NotFree",
            format!("{prefix} is not free in Prefix {name} ({own})"),
        ),
        (None, Request::Length(bits)) => Answer::Wait(
            "NoRoom",
            format!("Prefix {name} ({own}) has no free block of length {bits}"),
        ),
    }
}

/// The status of an allocation, if it does not say so already.
fn tell(allocation: &PrefixAllocation, answer: Answer, now_ms: u64) -> Option<Op> {
    let (word, prefix, verdict) = match answer {
        Answer::Given(prefix) => (
            PrefixAllocationPhase::Allocated,
            Some(prefix),
            Verdict::ready("Allocated", format!("got {prefix}")),
        ),
        Answer::Wait(reason, message) => (
            PrefixAllocationPhase::Pending,
            None,
            Verdict::not_ready(reason, message),
        ),
        Answer::Never(message) => (
            PrefixAllocationPhase::Failed,
            None,
            Verdict::not_ready("Incompatible", message),
        ),
    };
    let shown: &[Condition] = match &allocation.status {
        Some(status) => &status.conditions,
        None => &[],
    };
    let generation = allocation.metadata.generation;
    let conditions = conditions::renewed(shown, &[verdict], generation, now_ms);
    let mut status = json!({});
    if phase(allocation) != word {
        status["phase"] = json!(word);
        status["lastPhaseTransitionTime"] = json!(conditions::at(now_ms));
    }
    if let Some(prefix) = prefix {
        status["prefix"] = json!(prefix);
    }
    if let Some(conditions) = conditions {
        status["conditions"] = json!(conditions);
    }
    let says_something = status.as_object().is_some_and(|map| !map.is_empty());
    says_something.then(|| locked_status(allocation, status))
}

/// A status patch on exactly this version: a namesake that came later must not get it.
pub(super) fn locked_status<K: controller::Object>(object: &K, status: Value) -> Op {
    Op::Patch {
        target: Target::of(object),
        body: json!({
            "metadata": { "resourceVersion": object.meta().resource_version },
            "status": status,
        }),
        status: true,
    }
}

/// The parts of a list, in the order of their text.
pub(super) fn used(list: &[PrefixGrant]) -> Vec<IpPrefix> {
    let mut used: Vec<(String, IpPrefix)> = list
        .iter()
        .map(|grant| (grant.prefix.to_string(), grant.prefix))
        .collect();
    used.sort();
    used.into_iter().map(|(_, prefix)| prefix).collect()
}

/// Everything in the order that keeps the promise of this file.
pub(super) fn write(parent: &Prefix, served: Served, plan: &mut Plan) {
    let Served {
        gone,
        list,
        answers,
        empty: _,
    } = served;
    if let Some(list) = list {
        plan.extend(gone);
        let status = json!({ "used": used(&list), "allocations": list });
        plan.push(locked_status(parent, status));
    }
    plan.extend(answers);
}
