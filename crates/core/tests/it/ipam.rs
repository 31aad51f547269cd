//! The address plan: who gets which part of which Prefix, and that nobody gets one twice.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use api::{
    conditions::{self, READY},
    ipam::{Prefix, PrefixAllocation, PrefixAllocationPhase, PrefixPhase},
    meta::IpPrefix,
};
use controller::{
    Controller, Key, Op, Plan, Source, Watch, World, object as meta,
    sim::{Sim, verify},
};
use core_controllers::{
    PrefixAllocationSchedulerController, PrefixController,
    ipam::{ALLOCATIONS_MAX, SERVED_MAX},
};
use serde_json::{Value, json};

use crate::{NS, object};

fn region() -> Sim {
    Sim::new(vec![
        Arc::new(PrefixController),
        Arc::new(PrefixAllocationSchedulerController),
    ])
}

fn prefix(name: &str, spec: Value) -> Prefix {
    let mut spec = spec;
    if spec["ipFamily"].is_null() {
        spec["ipFamily"] = json!("IPv4");
    }
    object(json!({
        "metadata": { "name": name, "namespace": NS, "labels": { "tier": name } },
        "spec": spec,
    }))
}

fn root(name: &str, value: &str) -> Prefix {
    prefix(name, json!({ "prefix": value }))
}

fn child(name: &str, parent: &str, length: u8) -> Prefix {
    let spec = json!({ "prefixLength": length, "parentRef": { "name": parent } });
    prefix(name, spec)
}

fn selecting(name: &str, length: u8, tiers: &[&str]) -> Prefix {
    let tiers = json!([{ "key": "tier", "operator": "In", "values": tiers }]);
    let selector = json!({ "matchExpressions": tiers });
    prefix(
        name,
        json!({ "prefixLength": length, "parentSelector": selector }),
    )
}

fn get(sim: &Sim, name: &str) -> Prefix {
    sim.get::<Prefix>(NS, name).expect("the prefix exists")
}

/// What a prefix got; `None` while it is not allocated.
fn got(sim: &Sim, name: &str) -> Option<String> {
    let prefix = get(sim, name);
    let phase = prefix.status.and_then(|status| status.phase);
    let own = prefix.spec.prefix.map(|own| own.to_string());
    own.filter(|_| phase == Some(PrefixPhase::Allocated))
}

fn used(sim: &Sim, name: &str) -> Vec<String> {
    let status = get(sim, name).status.unwrap_or_default();
    let listed: Vec<IpPrefix> = status
        .allocations
        .iter()
        .map(|grant| grant.prefix)
        .collect();
    assert_eq!(
        listed.len(),
        status.used.len(),
        "used says what the list says"
    );
    status.used.iter().map(IpPrefix::to_string).collect()
}

fn ready(sim: &Sim, name: &str) -> (String, String) {
    let status = get(sim, name).status.unwrap_or_default();
    let ready = conditions::find(&status.conditions, READY).expect("a condition");
    (ready.status.clone(), ready.reason.clone())
}

/// Every block that any allocation says it has.
fn held(sim: &Sim) -> Vec<(String, IpPrefix)> {
    let allocations = sim.list::<PrefixAllocation>().into_iter();
    allocations
        .filter_map(|allocation| {
            let parent = allocation.spec.prefix_ref?.name;
            Some((parent, allocation.status?.prefix?))
        })
        .collect()
}

fn assert_disjoint(sim: &Sim) {
    let held = held(sim);
    for (i, (parent, prefix)) in held.iter().enumerate() {
        for (other_parent, other) in held.iter().skip(i + 1) {
            assert!(
                parent != other_parent || !prefix.overlaps(*other),
                "{parent} gave {prefix} and {other}"
            );
        }
    }
}

#[test]
fn a_plan_of_addresses_by_reference_and_by_selector() {
    let sim = verify(region, |sim| {
        sim.put(&root("site", "10.20.0.0/16"));
        sim.put(&child("shop", "site", 24));
        sim.put(&selecting("bill", 24, &["site"]));
        sim.settle().expect("settles");
        sim.put(&child("web-0", "shop", 32));
        sim.put(&child("web-1", "shop", 32));
        sim.put(&child("web-pf-0", "shop", 28));
        sim.settle().expect("settles");
        let exact = json!({ "prefix": "10.20.0.77/32", "parentRef": { "name": "shop" } });
        sim.put(&prefix("exact", exact));
    })
    .expect("converges");
    let mut blocks = [got(&sim, "shop"), got(&sim, "bill")].map(|got| got.expect("allocated"));
    blocks.sort();
    assert_eq!(blocks, ["10.20.0.0/24", "10.20.1.0/24"]);
    assert_eq!(used(&sim, "site"), ["10.20.0.0/24", "10.20.1.0/24"]);
    let bill = get(&sim, "bill");
    assert_eq!(bill.spec.parent_ref.expect("written").name, "site");
    for name in ["site", "shop", "bill", "web-0", "exact"] {
        assert_eq!(ready(&sim, name), ("True".into(), "Allocated".into()));
    }
    assert_eq!(used(&sim, "shop").len(), 4);
    assert_disjoint(&sim);
}

#[test]
fn addresses_are_given_lowest_first_and_none_is_kept_back() {
    let mut sim = region();
    sim.put(&root("net", "10.0.0.0/30"));
    for n in 0..5 {
        sim.put(&child(&format!("c{n}"), "net", 32));
        sim.settle().expect("settles");
    }
    let all: Vec<_> = (0..5).map(|n| got(&sim, &format!("c{n}"))).collect();
    let want = ["10.0.0.0/32", "10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"];
    assert_eq!(all[..4], want.map(|text| Some(text.to_owned())));
    assert_eq!(all[4], None);
    assert_eq!(
        ready(&sim, "c4"),
        ("False".into(), "AllocationPending".into())
    );
    // What returns is given to whom waits.
    sim.delete::<Prefix>(NS, "c1");
    sim.settle().expect("settles");
    assert_eq!(got(&sim, "c4"), Some("10.0.0.1/32".into()));
    assert_eq!(used(&sim, "net").len(), 4);
}

#[test]
fn a_prefix_stays_while_parts_of_it_are_given_and_deleting_in_any_order_leaves_nothing() {
    let orders: [[&str; 4]; 3] = [
        ["site", "shop", "web", "late"],
        ["web", "shop", "late", "site"],
        ["late", "site", "web", "shop"],
    ];
    for order in orders {
        let sim = verify(region, |sim| {
            sim.put(&root("site", "10.0.0.0/16"));
            sim.put(&child("shop", "site", 24));
            sim.put(&child("web", "shop", 32));
            sim.put(&child("late", "shop", 8));
            sim.settle().expect("settles");
            sim.delete::<Prefix>(NS, order[0]);
            if order[0] == "site" {
                sim.settle().expect("settles");
                assert!(sim.get::<Prefix>(NS, "site").is_some(), "parts are given");
            }
            for name in &order[1..] {
                sim.delete::<Prefix>(NS, name);
            }
        })
        .expect("converges");
        assert!(
            sim.snapshot().is_empty(),
            "{order:?}: {:#?}",
            sim.snapshot()
        );
    }
}

#[test]
fn a_request_that_the_parent_can_never_answer_fails_and_is_left_alone() {
    let sim = verify(region, |sim| {
        sim.put(&root("net", "10.0.0.0/24"));
        // Not longer than the parent; of another family; the parent itself.
        sim.put(&child("short", "net", 9));
        let spec =
            json!({ "ipFamily": "IPv6", "prefixLength": 64, "parentRef": { "name": "net" } });
        sim.put(&prefix("other", spec));
        let spec = json!({ "prefix": "10.0.0.0/24", "parentRef": { "name": "net" } });
        sim.put(&prefix("same", spec));
    })
    .expect("converges");
    for name in ["short", "other", "same"] {
        assert_eq!(
            ready(&sim, name),
            ("False".into(), "AllocationFailed".into()),
            "{name}"
        );
    }
    let phases: Vec<_> = sim
        .list::<PrefixAllocation>()
        .into_iter()
        .filter_map(|allocation| allocation.status?.phase)
        .collect();
    assert_eq!(phases, [PrefixAllocationPhase::Failed; 3]);
}

#[test]
fn a_missing_parent_is_named_and_waited_for() {
    let mut sim = region();
    sim.put(&child("web", "net", 32));
    sim.settle().expect("settles");
    assert_eq!(ready(&sim, "web"), ("False".into(), "ParentMissing".into()));
    sim.put(&root("net", "10.0.0.0/24"));
    sim.settle().expect("settles");
    assert_eq!(got(&sim, "web"), Some("10.0.0.0/32".into()));
}

#[test]
fn whoever_waits_for_a_parent_hears_that_it_goes_and_that_it_is_gone() {
    let mut sim = region();
    sim.put(&root("net", "10.0.0.0/24"));
    sim.put(&child("kept", "net", 32));
    sim.settle().expect("settles");
    sim.delete::<Prefix>(NS, "net");
    sim.put(&child("late", "net", 32));
    sim.settle().expect("settles");
    assert_eq!(
        ready(&sim, "late"),
        ("False".into(), "ParentNotReady".into())
    );
    sim.delete::<Prefix>(NS, "kept");
    sim.settle().expect("settles");
    assert_eq!(
        ready(&sim, "late"),
        ("False".into(), "ParentMissing".into())
    );
}

#[test]
fn without_a_suitable_prefix_a_selector_waits_and_says_so_once() {
    let mut sim = region();
    sim.put(&root("small", "10.0.0.0/28"));
    sim.put(&selecting("web", 24, &["small", "large"]));
    sim.settle().expect("settles");
    assert_eq!(
        ready(&sim, "web"),
        ("False".into(), "NoSuitablePrefix".into())
    );
    let said = |sim: &Sim| {
        let events = sim.log.iter();
        events
            .filter(|op| {
                matches!(
                    op,
                    Op::Event {
                        reason: "NoSuitablePrefix",
                        ..
                    }
                )
            })
            .count()
    };
    sim.wake_all();
    sim.settle().expect("settles");
    assert_eq!(said(&sim), 1);
    sim.put(&root("large", "10.1.0.0/16"));
    sim.settle().expect("settles");
    assert_eq!(got(&sim, "web"), Some("10.1.0.0/24".into()));
}

/// The scheduler's choice is final for the allocation, so waiting at a full parent must not be final for the prefix.
#[test]
fn a_question_stuck_at_a_full_parent_is_put_to_another_one() {
    let mut sim = region();
    sim.put(&root("one", "10.1.0.0/31"));
    // Both see the room for one of them and are sent to the same parent.
    sim.put(&selecting("a", 32, &["one", "two"]));
    sim.put(&selecting("b", 32, &["one", "two"]));
    sim.put(&selecting("c", 32, &["one", "two"]));
    sim.settle().expect("settles");
    let waiting = ["a", "b", "c"]
        .into_iter()
        .find(|name| got(&sim, name).is_none())
        .expect("three do not fit into two");
    sim.put(&root("two", "10.2.0.0/24"));
    sim.settle().expect("settles");
    assert_eq!(got(&sim, waiting), Some("10.2.0.0/32".into()));
    assert_disjoint(&sim);
    let left = sim.list::<PrefixAllocation>().len();
    assert_eq!(left, 3, "the stuck question is gone");
}

#[test]
fn a_failed_question_is_asked_again_ever_more_slowly_once_it_can_be_answered() {
    let sim = |attempt: u32| {
        let mut sim = Sim::new(vec![Arc::new(PrefixController)]);
        sim.now_ms = 1_000_000;
        let mut net = root("net", "10.0.0.0/24");
        net.metadata.finalizers = Some(vec!["ipam.openkcm.dev/prefix".into()]);
        sim.put(&net);
        let mut web = child("web", "net", 32);
        web.metadata.finalizers = Some(vec!["ipam.openkcm.dev/prefix".into()]);
        web.metadata.uid = Some("w".into());
        let failed: PrefixAllocation = object(json!({
            "metadata": {
                "name": "web-old", "namespace": NS,
                "labels": { "ipam.openkcm.dev/requester-uid": "w" },
                "annotations": { "ipam.openkcm.dev/attempt": attempt.to_string() },
                "ownerReferences": [{ "apiVersion": "ipam.openkcm.dev/v1alpha1", "kind": "Prefix", "name": "web",
                    "uid": "w", "controller": true }],
            },
            "spec": { "ipFamily": "IPv4", "prefixLength": 32, "prefixRef": { "name": "net" } },
            "status": { "phase": "Failed", "lastPhaseTransitionTime": "1970-01-01T00:16:40Z" },
        }));
        sim.put(&failed);
        sim.put(&web);
        sim
    };
    // 5 ms, doubled each time, at most 1000 s.
    for (attempt, wait_ms) in [
        (0, 5),
        (1, 10),
        (10, 5120),
        (18, 1_000_000),
        (4_000_000, 1_000_000),
    ] {
        let mut sim = sim(attempt);
        sim.settle().expect("settles");
        assert_eq!(got(&sim, "web"), None, "attempt {attempt}: too early");
        let plan = PrefixController.plan(&sim.world(), &Key::new(NS, "web"));
        assert_eq!(
            plan.requeue.map(|after| after.as_millis()),
            Some(wait_ms),
            "attempt {attempt}"
        );
        sim.now_ms += u64::try_from(wait_ms).expect("small");
        sim.wake_all();
        sim.settle().expect("settles");
        assert_eq!(got(&sim, "web"), Some("10.0.0.0/32".into()));
    }
}

/// Of several allocations the furthest one counts, whatever their order.
#[test]
fn superfluous_allocations_go_and_the_answer_stays() {
    let sim = verify(region, |sim| {
        sim.put(&root("net", "10.0.0.0/24"));
        sim.put(&child("web", "net", 32));
        sim.settle().expect("settles");
        let uid = crate::uid::<Prefix>(sim, "web");
        for name in ["a-first", "z-last"] {
            let extra: PrefixAllocation = object(json!({
                "metadata": {
                    "name": name, "namespace": NS,
                    "labels": { "ipam.openkcm.dev/requester-uid": uid },
                    "ownerReferences": [{ "apiVersion": "ipam.openkcm.dev/v1alpha1", "kind": "Prefix", "name": "web",
                        "uid": uid, "controller": true }],
                },
                "spec": { "ipFamily": "IPv4", "prefixLength": 32, "prefixRef": { "name": "net" } },
            }));
            sim.put(&extra);
        }
    })
    .expect("converges");
    assert_eq!(got(&sim, "web"), Some("10.0.0.0/32".into()));
    assert_eq!(sim.list::<PrefixAllocation>().len(), 1);
    assert_eq!(used(&sim, "net"), ["10.0.0.0/32"]);
}

#[test]
fn an_allocation_that_a_user_deletes_is_asked_for_again_with_the_same_block() {
    let mut sim = region();
    sim.put(&root("net", "10.0.0.0/24"));
    sim.put(&child("a", "net", 32));
    sim.put(&child("b", "net", 32));
    sim.settle().expect("settles");
    let before = got(&sim, "b");
    let victim = sim
        .list::<PrefixAllocation>()
        .into_iter()
        .find(|allocation| meta::name(allocation).starts_with("b-"))
        .expect("there is one");
    sim.delete::<PrefixAllocation>(NS, meta::name(&victim));
    sim.settle().expect("settles");
    assert_eq!(got(&sim, "b"), before);
    assert_eq!(ready(&sim, "b"), ("True".into(), "Allocated".into()));
    assert_eq!(used(&sim, "net"), ["10.0.0.0/32", "10.0.0.1/32"]);
}

#[test]
fn many_at_once_are_answered_in_bounded_plans() {
    let mut sim = region();
    sim.put(&root("net", "10.0.0.0/16"));
    sim.settle().expect("settles");
    let many = SERVED_MAX + 7;
    for n in 0..many {
        sim.put(&child(&format!("c{n}"), "net", 32));
    }
    sim.settle().expect("settles");
    assert_eq!(used(&sim, "net").len(), many);
    assert_disjoint(&sim);
    const { assert!(ALLOCATIONS_MAX > SERVED_MAX) };
    for n in 0..many {
        sim.delete::<Prefix>(NS, &format!("c{n}"));
    }
    sim.delete::<Prefix>(NS, "net");
    sim.settle().expect("settles");
    assert!(sim.snapshot().is_empty());
}

#[test]
fn a_part_returns_only_after_its_allocation_is_proven_gone() {
    let mut sim = region();
    sim.put(&root("net", "10.0.0.0/24"));
    sim.put(&child("a", "net", 32));
    sim.settle().expect("settles");
    let from = sim.log.len();
    sim.delete::<Prefix>(NS, "a");
    sim.settle().expect("settles");
    let later: Vec<&Op> = sim.log.iter().skip(from).collect();
    let proof = later
        .iter()
        .position(|op| matches!(op, Op::RequireGone { .. }))
        .expect("proven");
    let written = later
        .iter()
        .position(|op| matches!(op, Op::Patch { body, .. } if body["status"]["used"] == json!([])))
        .expect("returned");
    assert!(proof < written);
}

/// A controller that carries out what somebody planned earlier, one operation per waking.
struct Rival {
    ops: Mutex<Vec<Op>>,
}

/// The real controller, once it is let.
struct Gate(Arc<AtomicBool>);

impl Controller for Gate {
    fn name(&self) -> &'static str {
        "prefix"
    }
    fn sources(&self) -> Vec<Source> {
        PrefixController.sources()
    }
    fn plan(&self, world: &World, key: &Key) -> Plan {
        if self.0.load(Ordering::Relaxed) {
            PrefixController.plan(world, key)
        } else {
            Plan::none()
        }
    }
}

impl Controller for Rival {
    fn name(&self) -> &'static str {
        "rival"
    }
    fn sources(&self) -> Vec<Source> {
        vec![Watch::<PrefixAllocation>::new().own_key().build()]
    }
    fn plan(&self, _: &World, _: &Key) -> Plan {
        std::mem::take(&mut *self.ops.lock().expect("not poisoned")).into()
    }
}

fn waiting(name: &str) -> PrefixAllocation {
    object(json!({
        "metadata": { "name": name, "namespace": NS },
        "spec": { "ipFamily": "IPv4", "prefixLength": 26, "prefixRef": { "name": "net" } },
    }))
}

/// A region whose real controller is asleep until it is let, and a rival that carries out what it is handed.
struct Race {
    sim: Sim,
    rival: Arc<Rival>,
    open: Arc<AtomicBool>,
}

impl Race {
    fn new() -> Race {
        let open = Arc::new(AtomicBool::new(false));
        let rival = Arc::new(Rival {
            ops: Mutex::default(),
        });
        let mut sim = Sim::new(vec![Arc::new(Gate(open.clone())), rival.clone()]);
        let mut net = root("net", "10.0.0.0/24");
        net.metadata.finalizers = Some(vec!["ipam.openkcm.dev/prefix".into()]);
        net.status = Some(object_status());
        sim.put(&net);
        sim.put(&waiting("m"));
        sim.put(&waiting("n"));
        sim.settle().expect("settles");
        Race { sim, rival, open }
    }

    fn plan(&self) -> Vec<Op> {
        PrefixController
            .plan(&self.sim.world(), &Key::new(NS, "net"))
            .ops
    }

    /// Carries out operations until the first refusal; whether there was none.
    fn run(&mut self, ops: &[Op]) -> bool {
        *self.rival.ops.lock().expect("not poisoned") = ops.to_vec();
        let before = self.sim.log.len();
        self.sim.wake_all();
        self.sim.settle().expect("settles");
        assert_disjoint(&self.sim);
        self.sim.log.len() - before == ops.len()
    }

    /// The real controller goes on until all is quiet.
    fn end(mut self) {
        self.open.store(true, Ordering::Relaxed);
        self.run(&[]);
        let mut all: Vec<String> = held(&self.sim)
            .iter()
            .map(|(_, part)| part.to_string())
            .collect();
        all.sort();
        assert_eq!(all, ["10.0.0.0/26", "10.0.0.128/26", "10.0.0.64/26"]);
        assert_eq!(used(&self.sim, "net"), all);
    }
}

/// Two planners decide from different moments. Their operations come to the server in every possible order, each planner stops
/// at its first refusal, and either may be stopped for good at any time. Nothing is ever given twice, and in the end everybody
/// has a part.
#[test]
fn two_that_decide_at_the_same_time_never_give_one_part_twice() {
    let mut lost = [0, 0];
    for order in 0_u32..1 << 7 {
        let mut race = Race::new();
        let early = race.plan();
        // The other planner sees one more, which it answers first, with what the early one means for `m`.
        race.sim.put(&waiting("a"));
        let late = race.plan();
        // The list, then the answers.
        assert_eq!((early.len(), late.len()), (3, 4));
        let mut planners = [early.into_iter(), late.into_iter()];
        let mut runs = [true, true];
        for step in 0..7 {
            let who = usize::from(order >> step & 1 == 1);
            if let Some(op) = planners[who].next().filter(|_| runs[who]) {
                runs[who] = race.run(&[op]);
                lost[who] += usize::from(!runs[who]);
            }
        }
        race.end();
    }
    assert!(lost[0] > 10 && lost[1] > 10, "{lost:?}: no races");
}

fn object_status() -> api::ipam::PrefixStatus {
    serde_json::from_value(json!({
        "phase": "Allocated",
        "conditions": [{ "type": "Ready", "status": "True", "reason": "Allocated", "message": "a root of the address plan",
            "lastTransitionTime": "2026-01-01T00:00:00Z" }],
    }))
    .expect("a status")
}
