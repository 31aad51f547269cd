//! Bugs to plant, each a wrapper around something that is right, to prove that the simulation would find it. Nothing of this is in the
//! product: plans are changed after they were made, messages and calls on their way.

use std::sync::Arc;

use api::apinet::{IP, NetworkInterface};
use api::names::{annotation, finalizer};
use controller::{Controller, Key, Op, Plan, Source, World, object};
use machine::provider::plan::Step;
use metalnet::plan::ops::DpOp;
use serde_json::json;

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Two networks get one VNI.
    VniTwice,
    /// Two interfaces get the same ports of a NAT address.
    NatOverlap,
    /// A hypervisor never takes a route back.
    RouteNotWithdrawn,
    /// Packet filter rules are added, never removed.
    RuleNotRemoved,
    /// OpenKCM-net's interface goes although metalnet still has it.
    FinalizerEarly,
    /// An address that its user gave up is free before the data planes let go of it.
    AddressEarly,
    /// An interface that is taken out of a machine stays in the data plane.
    InterfaceKept,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 7] = [
        Bug::VniTwice,
        Bug::NatOverlap,
        Bug::RouteNotWithdrawn,
        Bug::RuleNotRemoved,
        Bug::FinalizerEarly,
        Bug::AddressEarly,
        Bug::InterfaceKept,
    ];

    /// The controller with the bug in it.
    pub fn wrap(self, controller: Arc<dyn Controller>) -> Arc<dyn Controller> {
        Arc::new(Wrapped {
            bug: self,
            controller,
        })
    }

    /// Whether a hypervisor forgets to withdraw.
    pub fn keeps_routes(self) -> bool {
        self == Bug::RouteNotWithdrawn
    }

    /// Whether a call is answered without having been carried out.
    pub fn swallows(self, op: &DpOp) -> bool {
        self == Bug::RuleNotRemoved && matches!(op, DpOp::DeleteRule { .. })
    }
}

struct Wrapped {
    bug: Bug,
    controller: Arc<dyn Controller>,
}

impl Controller for Wrapped {
    fn name(&self) -> &'static str {
        self.controller.name()
    }

    fn sources(&self) -> Vec<Source> {
        self.controller.sources()
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = self.controller.plan(world, key);
        match (self.bug, self.controller.name()) {
            (Bug::VniTwice, _) => {
                for op in &mut plan.ops {
                    one_number(op);
                }
            }
            (Bug::NatOverlap, _) => {
                for op in &mut plan.ops {
                    one_block(op);
                }
            }
            // metalnetlet's, which alone deletes the metalnet object.
            (Bug::FinalizerEarly, "networkinterface") => let_go(&mut plan, world, key),
            (Bug::AddressEarly, "ipclaim") => {
                plan.extend(free(world, key));
            }
            // The machine provider's.
            (Bug::InterfaceKept, "namespaces") => keep(&mut plan),
            _ => {}
        }
        plan
    }
}

/// Forgets interfaces without deleting them, as long as their machine stays.
fn keep(plan: &mut Plan) {
    let scraps = |op: &Op| match op {
        Op::Act(act) => matches!(act.payload(), Some(Step::RemoveRecord)),
        _ => false,
    };
    if !plan.ops.iter().any(scraps) {
        plan.ops.retain(|op| !matches!(op, Op::Delete { .. }));
    }
}

/// Frees an address as soon as its user gave it up.
fn free(world: &World, key: &Key) -> Option<Op> {
    let ip = world.by_key::<IP>(key)?;
    object::annotation(&*ip, annotation::IP_RELEASED_AT)?;
    let finalizers = ip.metadata.finalizers.iter().flatten();
    let kept: Vec<&String> = finalizers
        .filter(|name| *name != finalizer::IP_IN_USE)
        .collect();
    Some(Op::locked(
        &*ip,
        json!({
            "metadata": { "annotations": { annotation::IP_RELEASED_AT: null }, "finalizers": kept },
            "spec": { "claimRef": null },
        }),
    ))
}

/// Every metalnet Network has the same number.
fn one_number(op: &mut Op) {
    if let Op::Apply { target, body, .. } = op
        && target.kind.group == api::names::METALNET
        && target.kind.plural == "networks"
    {
        body["spec"]["id"] = json!(200);
    }
}

/// Every interface of an address gets the ports of the first one.
fn one_block(op: &mut Op) {
    let body = match op {
        Op::Apply { target, body, .. }
        | Op::Patch { target, body, .. }
        | Op::Create { target, body }
            if target.kind.plural == "nattables" =>
        {
            body
        }
        _ => return,
    };
    for row in body["ips"].as_array_mut().into_iter().flatten() {
        let sections = row["sections"].as_array_mut();
        let mut first = None;
        for section in sections.into_iter().flatten() {
            let (port, end) = first
                .get_or_insert((section["port"].clone(), section["endPort"].clone()))
                .clone();
            section["port"] = port;
            section["endPort"] = end;
        }
    }
}

/// Takes the finalizer away as soon as the metalnet object was told to go.
fn let_go(plan: &mut Plan, world: &World, key: &Key) {
    let deletes = |op: &Op| matches!(op, Op::Delete { target, .. } if target.kind.group == api::names::METALNET);
    if !plan.ops.iter().any(deletes) {
        return;
    }
    if let Some(nic) = world.by_key::<NetworkInterface>(key) {
        let name = finalizer::metalnetlet_partition(crate::region::provider::PARTITION);
        plan.extend(Op::remove_finalizer(&*nic, &name));
    }
}
