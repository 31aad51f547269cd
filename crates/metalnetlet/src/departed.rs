//! Hypervisors that are gone for good. An operator says so by deleting the Node of the compute cluster; nobody else can know.
//!
//! A hypervisor that lives gets [`DEPARTURE_GRACE`] to take down what it carries, and the Node stays until then. After that the
//! finalizers of its metalnet have nobody left who could lift them: they are lifted here, for objects that are being deleted and
//! only once an uncached read has shown that there is no such Node.

use std::time::Duration;

use api::names::finalizer;
use api::{apinet, metalnet};
use controller::{Object, Op, Source, Target, Watch, World, object};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::partition::Partition;

/// How long a deleted Node waits for its metalnet to take down what it carries.
pub const DEPARTURE_GRACE: Duration = Duration::from_secs(30);

/// Indexes of metalnet objects by the name of their hypervisor.
const NICS: &str = "metalnetlet-made-nic-node";
const BALANCERS: &str = "metalnetlet-made-lb-node";

/// Wakes the Node when something on it goes.
pub(crate) fn sources(partition: &Partition) -> Vec<Source> {
    let namespace = &partition.metalnet_namespace;
    let nics = Watch::<metalnet::NetworkInterface>::new()
        .namespace(namespace)
        .index(NICS, |nic| nic.spec.node_name.iter().cloned().collect())
        .removed_keys(|nic, world| deleting(world, nic.spec.node_name.as_deref()));
    let balancers = Watch::<metalnet::LoadBalancer>::new()
        .namespace(namespace)
        .index(BALANCERS, |balancer| {
            node_of(balancer).map(str::to_owned).into_iter().collect()
        })
        .removed_keys(|balancer, world| deleting(world, node_of(balancer)));
    vec![nics.build(), balancers.build()]
}

fn node_of(balancer: &metalnet::LoadBalancer) -> Option<&str> {
    balancer.spec.as_ref()?.node_name.as_deref()
}

fn deleting(world: &World, node: Option<&str>) -> Vec<controller::Key> {
    let node = node.and_then(|name| world.get::<Node>("", name));
    let node = node.filter(|node| object::is_deleting(&**node));
    node.iter()
        .map(|node| controller::Key::of(&**node))
        .collect()
}

/// How long a Node that is being deleted must still wait; nothing if it need not.
pub(crate) fn wait(world: &World, node: &Node) -> Option<Duration> {
    let name = object::name(node);
    let carries = !world
        .indexed::<metalnet::NetworkInterface>(NICS, name)
        .is_empty()
        || !world
            .indexed::<metalnet::LoadBalancer>(BALANCERS, name)
            .is_empty();
    let since = node.metadata.deletion_timestamp.as_ref()?;
    let since = u64::try_from(since.0.as_millisecond()).unwrap_or(0);
    let age = Duration::from_millis(world.now_ms().saturating_sub(since));
    let left = DEPARTURE_GRACE.checked_sub(age)?;
    (carries && !left.is_zero()).then_some(left)
}

/// Lifts the finalizers of hypervisors that are gone for good from a metalnet Network that is being deleted.
pub(crate) fn lift_network(
    world: &World,
    partition: &Partition,
    made: &metalnet::Network,
) -> Vec<Op> {
    let all = || made.metadata.finalizers.iter().flatten();
    let gone = |known: &&String| {
        let node = known.strip_prefix(finalizer::metalnet_network("").as_str())?;
        let published = partition.apinet_node(node);
        world
            .get::<apinet::Node>("", &published)
            .is_none()
            .then(|| Op::require_absent(Target::new::<Node>("", node)))
    };
    let mut ops: Vec<Op> = all().filter_map(|known| gone(&known)).collect();
    if !object::is_deleting(made) || ops.is_empty() {
        return Vec::new();
    }
    let kept: Vec<&String> = all().filter(|known| gone(known).is_none()).collect();
    ops.push(Op::locked(
        made,
        json!({ "metadata": { "finalizers": kept } }),
    ));
    ops
}

/// Lifts metalnet's finalizer from what is being deleted on a hypervisor that is gone for good. Nothing for all others.
pub(crate) fn lift<K: Object>(world: &World, made: &K, node: &str) -> Vec<Op> {
    let ours = [
        finalizer::METALNET_NETWORK_INTERFACE,
        finalizer::METALNET_LOAD_BALANCER,
    ];
    let finalizers = made.meta().finalizers.iter().flatten();
    let kept: Vec<&String> = finalizers
        .clone()
        .filter(|known| !ours.contains(&known.as_str()))
        .collect();
    let lifts = kept.len() < finalizers.count();
    if !object::is_deleting(made) || !lifts || world.get::<Node>("", node).is_some() {
        return Vec::new();
    }
    vec![
        Op::require_absent(Target::new::<Node>("", node)),
        Op::locked(made, json!({ "metadata": { "finalizers": kept } })),
    ]
}
