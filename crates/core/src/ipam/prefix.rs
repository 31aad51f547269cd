//! Prefix: a root is allocated at once, a child asks with a PrefixAllocation; an allocated Prefix answers those that name it.
//!
//! A PrefixAllocation cannot change its mind. One that failed, or that waits at a parent without room while another parent has
//! some, is replaced, ever more slowly. A Prefix is held by its finalizer while parts of it are given.

use std::{sync::Arc, time::Duration};

use api::{
    conditions::{self, READY, Verdict},
    ids,
    ipam::{Prefix, PrefixAllocation, PrefixAllocationPhase, PrefixPhase},
    meta::{Condition, IpFamily},
    names::{annotation, finalizer, label},
};
use controller::{Controller, Key, Op, Plan, Source, Target, World, object};
use serde_json::json;

use super::{
    blocks::Request,
    fits, gives, is_allocated, phase, request,
    serve::{locked_status, serve, write},
    wanted,
};
use crate::index::{self, ALLOCATION_REQUESTER, PREFIX_WAITING_FAMILY, PREFIX_WAITING_PARENT};

/// Pause before the first replacement of an allocation; it doubles each time.
const RETRY_MIN: Duration = Duration::from_millis(5);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(1000);

pub struct PrefixController;

impl Controller for PrefixController {
    fn name(&self) -> &'static str {
        "prefix"
    }

    fn sources(&self) -> Vec<Source> {
        let prefixes = index::prefixes().keys(|prefix, world| {
            let own = Key::of(prefix);
            let mut keys = vec![own.clone()];
            // Also one that no longer gives, or is gone: those that wait for it say why they wait.
            let named = world.indexed::<Prefix>(PREFIX_WAITING_PARENT, &own.to_string());
            keys.extend(named.iter().map(|child| Key::of(&**child)));
            if gives(prefix) {
                let family = index::family_key(&own.namespace, prefix.spec.ip_family);
                let selecting = world.indexed::<Prefix>(PREFIX_WAITING_FAMILY, &family);
                keys.extend(
                    selecting
                        .iter()
                        .filter(|child| selects(child, prefix))
                        .map(|child| Key::of(&**child)),
                );
            }
            keys
        });
        let allocations = index::allocations().keys(|allocation, _| {
            let namespace = object::namespace(allocation);
            let owner = object::controller_of(allocation).filter(|owner| owner.kind == "Prefix");
            let owner = owner.map(|owner| owner.name.clone());
            let parent = allocation.spec.prefix_ref.as_ref();
            let parent = parent.map(|parent| parent.name.clone());
            owner
                .into_iter()
                .chain(parent)
                .map(|name| Key::new(namespace, name))
                .collect()
        });
        vec![prefixes.build(), allocations.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let Some(prefix) = world.by_key::<Prefix>(key) else {
            return plan;
        };
        if object::is_deleting(&*prefix) {
            leave(world, &prefix, &mut plan);
            return plan;
        }
        // Nothing is given before the finalizer is there to take it back.
        if let Some(op) = hold(&prefix) {
            plan.push(op);
            return plan;
        }
        if prefix.spec.is_root() {
            let verdict = Verdict::ready("Allocated", "a root of the address plan");
            plan.extend(report(&prefix, true, verdict, world.now_ms()));
        } else {
            ask(world, &prefix, &mut plan);
        }
        // One write of a status per plan: each is on the version that was read.
        if plan.ops.is_empty() && is_allocated(&prefix) {
            write(&prefix, serve(world, &prefix), &mut plan);
        }
        plan
    }
}

/// The finalizer. A single address has no parts to wait for, and most Prefixes are single addresses.
fn hold(prefix: &Prefix) -> Option<Op> {
    let bits = wanted(prefix.spec.prefix, prefix.spec.prefix_length).map(Request::bits);
    let longest = prefix.spec.ip_family.map(IpFamily::bits);
    if bits.is_some() && bits == longest {
        return None;
    }
    Op::add_finalizer(prefix, finalizer::PREFIX)
}

fn selects(child: &Prefix, parent: &Prefix) -> bool {
    object::selects(
        child.spec.parent_selector.as_ref(),
        parent.metadata.labels.as_ref(),
    )
}

/// Waits for everything that was given, then goes.
fn leave(world: &World, prefix: &Prefix, plan: &mut Plan) {
    let served = serve(world, prefix);
    if !served.empty {
        write(prefix, served, plan);
    } else if let Some(op) = Op::remove_finalizer(prefix, finalizer::PREFIX) {
        plan.extend(served.gone);
        plan.push(op);
    }
}

/// A child asks for its part, or reports what became of the question.
fn ask(world: &World, prefix: &Prefix, plan: &mut Plan) {
    let mut own = world.indexed::<PrefixAllocation>(ALLOCATION_REQUESTER, object::uid(prefix));
    own.retain(|allocation| object::is_controlled_by(&**allocation, object::uid(prefix)));
    let mut matching: Vec<&Arc<PrefixAllocation>> = own
        .iter()
        .filter(|allocation| !object::is_deleting(&***allocation))
        .filter(|allocation| matches(prefix, allocation))
        .collect();
    matching.sort_by_key(|allocation| rank(allocation));
    let chosen = matching.first().copied();
    match chosen {
        None => {
            plan.extend(create(prefix, 0));
        }
        Some(allocation) => match phase(allocation) {
            PrefixAllocationPhase::Allocated => take(prefix, allocation, world.now_ms(), plan),
            PrefixAllocationPhase::Pending | PrefixAllocationPhase::Failed => {
                wait(world, prefix, allocation, plan);
            }
        },
    }
    let outdated = own.iter().filter(|allocation| {
        let is_chosen =
            chosen.is_some_and(|chosen| object::uid(&**chosen) == object::uid(&***allocation));
        !is_chosen && !object::is_deleting(&***allocation)
    });
    plan.extend(outdated.map(|allocation| Op::delete(&**allocation)));
}

/// Whether an allocation asks for, or has, what the Prefix wants.
fn matches(prefix: &Prefix, allocation: &PrefixAllocation) -> bool {
    let (spec, asked) = (&prefix.spec, &allocation.spec);
    let parent = spec.parent_ref.is_none() || spec.parent_ref == asked.prefix_ref;
    let selector = spec.parent_selector == asked.prefix_selector;
    let result = allocation.status.as_ref().and_then(|status| status.prefix);
    let fits = match (result, spec.prefix) {
        (Some(result), Some(prefix)) => result == prefix,
        (Some(result), None) => spec.prefix_length == Some(i32::from(result.bits())),
        (None, _) => request(allocation) == wanted(spec.prefix, spec.prefix_length),
    };
    spec.ip_family == asked.ip_family && parent && selector && fits
}

/// Smaller is better: the furthest phase, then the oldest.
fn rank(allocation: &PrefixAllocation) -> (u8, Option<i64>, String) {
    let phase = match phase(allocation) {
        PrefixAllocationPhase::Allocated => 0,
        PrefixAllocationPhase::Pending => 1,
        PrefixAllocationPhase::Failed => 2,
    };
    let made = allocation.metadata.creation_timestamp.as_ref();
    let made = made.map(|time| time.0.as_second());
    (phase, made, object::name(allocation).to_owned())
}

fn attempt(allocation: &PrefixAllocation) -> u32 {
    let text = object::annotation(allocation, annotation::ALLOCATION_ATTEMPT);
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn create(prefix: &Prefix, attempt: u32) -> Option<Op> {
    let spec = &prefix.spec;
    let (mut asked, text) = match wanted(spec.prefix, spec.prefix_length)? {
        Request::Prefix(prefix) => (json!({ "prefix": prefix }), prefix.to_string()),
        Request::Length(bits) => (json!({ "prefixLength": bits }), bits.to_string()),
    };
    asked["ipFamily"] = json!(spec.ip_family);
    if let Some(parent) = &spec.parent_ref {
        asked["prefixRef"] = json!(parent);
    }
    if let Some(selector) = &spec.parent_selector {
        asked["prefixSelector"] = json!(selector);
    }
    let uid = object::uid(prefix);
    let name = ids::allocation_name(object::name(prefix), uid, &format!("{text}/{attempt}"));
    let mut body = json!({
        "metadata": {
            "labels": { label::REQUESTER_UID: uid },
            "ownerReferences": [object::controller_reference(prefix)],
        },
        "spec": asked,
    });
    if attempt > 0 {
        body["metadata"]["annotations"] =
            json!({ annotation::ALLOCATION_ATTEMPT: attempt.to_string() });
    }
    let target = Target::new::<PrefixAllocation>(object::namespace(prefix), name);
    Some(Op::create(target, body))
}

/// The answer is there: it becomes the Prefix's own.
fn take(prefix: &Prefix, allocation: &PrefixAllocation, now_ms: u64, plan: &mut Plan) {
    let result = allocation.status.as_ref().and_then(|status| status.prefix);
    let (Some(result), Some(parent)) = (result, &allocation.spec.prefix_ref) else {
        return;
    };
    if prefix.spec.prefix.is_none() || prefix.spec.parent_ref.is_none() {
        let spec = json!({ "prefix": result, "parentRef": parent });
        plan.push(Op::locked(prefix, json!({ "spec": spec })));
        // What follows shows the generation that this patch makes.
        return;
    }
    let verdict = Verdict::ready("Allocated", format!("part of Prefix {}", parent.name));
    plan.extend(report(prefix, true, verdict, now_ms));
}

/// No answer yet, or a refusal.
fn wait(world: &World, prefix: &Prefix, allocation: &PrefixAllocation, plan: &mut Plan) {
    let failed = phase(allocation) == PrefixAllocationPhase::Failed;
    let elsewhere = |parent: &Prefix| {
        let asked = allocation.spec.prefix_ref.as_ref();
        asked.is_none_or(|asked| asked.name != object::name(parent))
    };
    let hopeful = parents(world, prefix).iter().any(|parent| {
        let request = wanted(prefix.spec.prefix, prefix.spec.prefix_length);
        // A waiting question is only asked anew of somebody else.
        (failed || elsewhere(parent))
            && request.is_some_and(|request| fits(parent, prefix.spec.ip_family, request))
    });
    let stuck = failed || is_stuck(world, prefix, allocation);
    if hopeful && stuck {
        let left = pause(allocation).saturating_sub(since(allocation, world.now_ms()));
        if left.is_zero() {
            plan.push(Op::delete(allocation));
            plan.extend(create(prefix, attempt(allocation).saturating_add(1)));
            return;
        }
        plan.requeue_after(left);
    }
    if let Some(verdict) = verdict(world, prefix, allocation) {
        plan.extend(report(prefix, false, verdict, world.now_ms()));
    }
}

/// A question that the scheduler put to a parent which has no room (any more). Its parent is final, so only another question
/// can reach another parent. A Prefix that names its parent itself has to wait.
fn is_stuck(world: &World, prefix: &Prefix, allocation: &PrefixAllocation) -> bool {
    let (Some(parent), None) = (&allocation.spec.prefix_ref, &prefix.spec.parent_ref) else {
        return false;
    };
    let parent = world.get::<Prefix>(object::namespace(prefix), &parent.name);
    let (Some(parent), Some(request)) = (parent, request(allocation)) else {
        return true;
    };
    let granted = parent.status.as_ref().is_some_and(|status| {
        let mut grants = status.allocations.iter();
        grants.any(|grant| grant.uid == object::uid(allocation))
    });
    !granted && !fits(&parent, prefix.spec.ip_family, request)
}

/// Where a child could be cut from.
fn parents(world: &World, prefix: &Prefix) -> Vec<Arc<Prefix>> {
    let namespace = object::namespace(prefix);
    match &prefix.spec.parent_ref {
        Some(parent) => world.get(namespace, &parent.name).into_iter().collect(),
        None => {
            let mut all = world.list_in::<Prefix>(namespace);
            all.retain(|parent| selects(prefix, parent));
            all
        }
    }
}

fn pause(allocation: &PrefixAllocation) -> Duration {
    let factor = 2_u32.saturating_pow(attempt(allocation));
    RETRY_MIN.saturating_mul(factor).min(RETRY_MAX)
}

fn since(allocation: &PrefixAllocation, now_ms: u64) -> Duration {
    let status = allocation.status.as_ref();
    let moved = status.and_then(|status| status.last_phase_transition_time.as_ref());
    let since = moved.or(allocation.metadata.creation_timestamp.as_ref());
    let since = since.map_or(0, |time| time.0.as_millisecond());
    Duration::from_millis(now_ms.saturating_sub(u64::try_from(since).unwrap_or(0)))
}

/// Why there is no part; `None` while the answer is on its way, which is most often no time to speak of.
fn verdict(world: &World, prefix: &Prefix, allocation: &PrefixAllocation) -> Option<Verdict> {
    let said = allocation.status.as_ref();
    let said = said.and_then(|status| conditions::find(&status.conditions, READY));
    let message = said.map(|said| said.message.clone());
    if phase(allocation) == PrefixAllocationPhase::Failed {
        let message = message.unwrap_or_default();
        return Some(Verdict::not_ready("AllocationFailed", message));
    }
    let Some(parent) = &allocation.spec.prefix_ref else {
        return message.map(|message| Verdict::not_ready("NoSuitablePrefix", message));
    };
    let name = &parent.name;
    match world.get::<Prefix>(object::namespace(prefix), name) {
        None => {
            let message = format!("there is no Prefix {name}");
            Some(Verdict::not_ready("ParentMissing", message))
        }
        Some(parent) if !gives(&parent) => {
            let message = format!("Prefix {name} is not allocated or is being deleted");
            Some(Verdict::not_ready("ParentNotReady", message))
        }
        Some(_) => message.map(|message| Verdict::not_ready("AllocationPending", message)),
    }
}

/// The status, if it does not say so already. An allocated Prefix stays allocated whatever becomes of the question.
fn report(prefix: &Prefix, allocated: bool, verdict: Verdict, now_ms: u64) -> Option<Op> {
    let shown: &[Condition] = match &prefix.status {
        Some(status) => &status.conditions,
        None => &[],
    };
    let renewed = conditions::renewed(shown, &[verdict], prefix.metadata.generation, now_ms);
    let mut status = json!({});
    if allocated && !is_allocated(prefix) {
        status["phase"] = json!(PrefixPhase::Allocated);
        status["lastPhaseTransitionTime"] = json!(conditions::at(now_ms));
    }
    if let Some(conditions) = renewed {
        status["conditions"] = json!(conditions);
    }
    let says_something = status.as_object().is_some_and(|map| !map.is_empty());
    says_something.then(|| locked_status(prefix, status))
}
