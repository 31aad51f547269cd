//! Says whether a Node is alive, from the heartbeat lease of its hypervisor.
//!
//! A silent Node becomes Unknown: its Instances are placed elsewhere and its interfaces are shown in Error. If all Nodes of a partition
//! that has several fall silent together, it is more likely that what carries the heartbeats has failed, and nothing is moved.
//! Silence is judged against the time of planning, so replicas and restarts agree; clocks are assumed to be within seconds.

use std::{sync::Arc, time::Duration};

use api::{
    apinet::Node,
    conditions::{ConditionStatus, READY, Verdict, find, renewed},
    k8s_openapi::api::coordination::v1::Lease,
    names::{label, namespace},
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

/// Nodes by the name of their hypervisor in its compute cluster.
const BY_HOST: &str = "apinet-node-host";
/// A Node may be silent for this long: four missed heartbeats.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(40);

pub struct NodeLifecycleController {
    pub grace: Duration,
}

impl Controller for NodeLifecycleController {
    fn name(&self) -> &'static str {
        "apinetnodelifecycle"
    }

    fn sources(&self) -> Vec<Source> {
        let nodes = Watch::<Node>::new()
            .own_key()
            .index(BY_HOST, |node| vec![host(node).to_owned()]);
        // Heartbeats of the living wake nobody: a key comes back by itself when its lease would run out.
        let own = Watch::<Lease>::new()
            .namespace(namespace::APINET_NODE_LEASE)
            .keys(|lease, world| unproven(world.get::<Node>("", object::name(lease))));
        let hosts = Watch::<Lease>::new()
            .namespace(namespace::NODE_LEASE)
            .keys(|lease, world| {
                let nodes = world.indexed::<Node>(BY_HOST, object::name(lease));
                unproven(nodes)
            });
        vec![nodes.build(), own.build(), hosts.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let Some(node) = world.by_key::<Node>(key) else {
            return plan;
        };
        // Without a lease there is no heartbeat to miss: nobody promises one for this Node.
        let Some(silent) = silence(world, &node) else {
            return plan;
        };
        let grace = i64::try_from(self.grace.as_millis()).unwrap_or(i64::MAX);
        let verdict = if silent < grace {
            let left = u64::try_from(grace - silent).unwrap_or(0);
            plan.requeue_after(Duration::from_millis(left.saturating_add(1)));
            Verdict::ready("Heartbeat", "the hypervisor reports regularly")
        } else if node.is_lost() {
            // Once lost, it stays so until it is heard of again.
            return plan;
        } else {
            let reason = if partition_is_silent(world, &node, grace) {
                // Somebody else may be heard of before we are, and then we are the one that is lost.
                plan.requeue_after(self.grace);
                Node::PARTITION_SILENT
            } else {
                "NodeSilent"
            };
            Verdict::of(
                READY,
                ConditionStatus::Unknown,
                reason,
                "the heartbeat of the hypervisor stopped",
            )
        };
        let shown = node
            .status
            .as_ref()
            .map_or(&[][..], |status| &status.conditions);
        let generation = node.metadata.generation;
        if let Some(conditions) = renewed(shown, &[verdict], generation, world.now_ms()) {
            let status = json!({ "conditions": conditions });
            plan.push(Op::patch_status(Target::of(&*node), status));
            if silent >= grace {
                let note = format!("no heartbeat for {} s", silent / 1000);
                plan.push(Op::event(&*node, true, "NodeSilent", "Heartbeat", note));
            }
        }
        plan
    }
}

/// Keys of Nodes that are not known to be alive.
fn unproven(nodes: impl IntoIterator<Item = Arc<Node>>) -> Vec<Key> {
    let nodes = nodes.into_iter().filter(|node| {
        let conditions = node.status.iter().flat_map(|status| &status.conditions);
        let mut ready = conditions.filter(|condition| condition.type_ == READY);
        !ready.any(|ready| ready.status == ConditionStatus::True.as_str())
    });
    nodes.map(|node| Key::of(&*node)).collect()
}

/// The name of the hypervisor in its compute cluster: a Node is named `<partition>.<hypervisor>`.
fn host(node: &Node) -> &str {
    let name = object::name(node);
    let partition = object::label(node, label::APINET_PARTITION).unwrap_or_default();
    let rest = name.strip_prefix(partition);
    rest.and_then(|rest| rest.strip_prefix('.')).unwrap_or(name)
}

/// Milliseconds since the last heartbeat. The lease named after the Node counts before that of the hypervisor, which only exists
/// where the compute cluster is served by this API server.
fn silence(world: &World, node: &Node) -> Option<i64> {
    let own = world.get::<Lease>(namespace::APINET_NODE_LEASE, object::name(node));
    let lease = own.or_else(|| world.get::<Lease>(namespace::NODE_LEASE, host(node)))?;
    let renewed = lease.spec.as_ref()?.renew_time.as_ref()?;
    let now = i64::try_from(world.now_ms()).unwrap_or(i64::MAX);
    Some(now.saturating_sub(renewed.0.as_millisecond()))
}

/// Whether every Node of the partition is silent, and there are several.
fn partition_is_silent(world: &World, node: &Node, grace: i64) -> bool {
    let partition = object::label(node, label::APINET_PARTITION);
    let nodes = world.list::<Node>();
    let mut near = nodes
        .iter()
        .filter(|other| object::label(&***other, label::APINET_PARTITION) == partition)
        .filter(|other| was_alive(other) && object::name(&***other) != object::name(node))
        .peekable();
    near.peek().is_some()
        && near.all(|other| silence(world, other).is_none_or(|silent| silent >= grace))
}

/// Whether the Node was alive before, so that its silence says something new.
fn was_alive(node: &Node) -> bool {
    let conditions = node
        .status
        .as_ref()
        .map_or(&[][..], |status| &status.conditions);
    find(conditions, READY).is_some() && !node.is_lost()
}
