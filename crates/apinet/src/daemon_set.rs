//! DaemonSet: one Instance on every Node that may run it.
//!
//! The Instance of a Node has a name derived from set and Node, so that nothing can be made twice. It is pinned to the Node by its
//! affinity; the scheduler binds it when the other Instances allow. An Instance of a Node that is gone, lost or no longer chosen is
//! deleted, whether it was bound or not.

use std::collections::BTreeMap;

use api::{
    apinet::{
        Affinity, DaemonSet, DaemonSetStatus, Instance, InstanceSpec, Node, NodeAffinity,
        NodeSelector, NodeSelectorOperator, NodeSelectorRequirement, NodeSelectorTerm,
    },
    ids::uuid5_sha256,
    names::{label, manager},
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

use crate::{
    index::{self, INSTANCE_SET},
    placement,
};

/// Bytes of the set's name at the start of the names of its Instances.
const NAME_BYTES_MAX: usize = 52;
/// Digits behind it.
const DIGITS: usize = 10;

pub struct DaemonSetController;

impl Controller for DaemonSetController {
    fn name(&self) -> &'static str {
        "daemonset"
    }

    fn sources(&self) -> Vec<Source> {
        let sets = Watch::<DaemonSet>::new().own_key();
        let instances = index::instances().keys(|instance, world| {
            match object::controller_of(instance) {
                Some(owner) => vec![Key::new(object::namespace(instance), &owner.name)],
                // It may be one to adopt.
                None => sets_selecting(world, instance),
            }
        });
        // Labels, condition and cordon of a Node decide, so every change counts. Nodes are few and change seldom.
        let nodes = Watch::<Node>::new().keys(|_, world| {
            let sets = world.list::<DaemonSet>();
            sets.iter().map(|set| Key::of(&**set)).collect()
        });
        vec![sets.build(), instances.build(), nodes.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(set) = world.by_key::<DaemonSet>(key) else {
            return Plan::none();
        };
        if object::is_deleting(&*set) {
            return Plan::none();
        }
        let mut plan = Plan::none();
        let mut there: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for instance in world.list_in::<Instance>(&key.namespace) {
            match claim(&set, &instance) {
                Claim::Other => {}
                Claim::Ours => {
                    // One that is bound nowhere and pinned nowhere was not made here: it belongs to no Node.
                    let node = node_of(&instance.spec).unwrap_or_default().to_owned();
                    there.entry(node).or_default().push(instance);
                }
                Claim::Adopt => {
                    plan.push(own(
                        &instance,
                        &json!([object::controller_reference(&*set)]),
                    ));
                }
                Claim::Drop => {
                    plan.push(own(&instance, &json!([])));
                }
            }
        }
        let nodes = world.list::<Node>();
        let mut desired = 0;
        for node in &nodes {
            let instances = there.remove(object::name(&**node)).unwrap_or_default();
            let wanted = should_run(&set, node);
            desired += i32::from(wanted);
            on_node(world, &set, node, wanted, &instances, &mut plan);
        }
        let stray = there.into_values().flatten();
        plan.extend(
            stray
                .filter(|instance| !object::is_deleting(&**instance))
                .map(|instance| Op::delete(&*instance)),
        );
        plan.extend(report(world, &set, desired));
        plan
    }
}

/// The name of a set's Instance on a Node.
pub fn instance_name(set: &str, set_uid: &str, node: &str) -> String {
    let digits: String = uuid5_sha256(&format!("{set_uid}/{node}"))
        .chars()
        .filter(|c| *c != '-')
        .take(DIGITS)
        .collect();
    let head: String = set.chars().take(NAME_BYTES_MAX).collect();
    format!("{head}-{digits}")
}

fn sets_selecting(world: &World, instance: &Instance) -> Vec<Key> {
    let sets = world.list_in::<DaemonSet>(object::namespace(instance));
    let selecting = sets.iter().filter(|set| selects(set, instance));
    selecting.map(|set| Key::of(&**set)).collect()
}

fn selects(set: &DaemonSet, instance: &Instance) -> bool {
    object::selects(
        set.spec.node_selector.as_ref(),
        instance.metadata.labels.as_ref(),
    )
}

/// What a set has to do with an Instance of its namespace.
enum Claim {
    Ours,
    Adopt,
    Drop,
    Other,
}

fn claim(set: &DaemonSet, instance: &Instance) -> Claim {
    let owner = object::controller_of(instance);
    let ours = owner.is_some_and(|owner| owner.uid == object::uid(set));
    match (owner.is_some(), selects(set, instance)) {
        (true, _) if !ours => Claim::Other,
        (true, true) => Claim::Ours,
        (true, false) => Claim::Drop,
        (false, true) if !object::is_deleting(instance) => Claim::Adopt,
        (false, _) => Claim::Other,
    }
}

fn own(instance: &Instance, owners: &serde_json::Value) -> Op {
    Op::locked(
        instance,
        json!({ "metadata": { "ownerReferences": owners } }),
    )
}

/// The Node an Instance is bound or pinned to.
fn node_of(spec: &InstanceSpec) -> Option<&str> {
    if let Some(node) = &spec.node_ref {
        return Some(&node.name);
    }
    let field = placement::required(spec)?
        .node_selector_terms
        .first()?
        .match_fields
        .first()?;
    match (field.operator, field.values.as_slice()) {
        (NodeSelectorOperator::In, [name]) if field.key == "metadata.name" => Some(name),
        _ => None,
    }
}

fn should_run(set: &DaemonSet, node: &Node) -> bool {
    let spec = &set.spec.template.spec;
    let here = spec
        .node_ref
        .as_ref()
        .is_none_or(|wanted| wanted.name == object::name(node));
    here && !object::is_deleting(node)
        && !node.is_lost()
        && placement::chooses(placement::required(spec), node)
}

/// Brings the Instances of one Node to what shall be there. A cordoned Node keeps its Instance and gets no new one.
fn on_node(
    world: &World,
    set: &DaemonSet,
    node: &Node,
    wanted: bool,
    there: &[std::sync::Arc<Instance>],
    plan: &mut Plan,
) {
    let name = instance_name(object::name(set), object::uid(set), object::name(node));
    let mut living: Vec<_> = there
        .iter()
        .filter(|instance| !object::is_deleting(&***instance))
        .collect();
    if !wanted {
        plan.extend(living.into_iter().map(|instance| Op::delete(&**instance)));
        return;
    }
    // Ours by name goes first, then the oldest.
    living.sort_by_cached_key(|instance| {
        let created = instance.metadata.creation_timestamp.clone();
        (
            object::name(&***instance) != name,
            created.map(|time| time.0),
        )
    });
    let mut living = living.into_iter();
    match living.next() {
        Some(kept) => {
            plan.extend(roll_out(set, node, kept));
            plan.extend(living.map(|instance| Op::delete(&**instance)));
        }
        None if node.spec.unschedulable => {}
        // The name is free only when whatever has it has gone: one of ours that is going, or one that was relabelled.
        None if world
            .get::<Instance>(object::namespace(set), &name)
            .is_some() => {}
        None => {
            plan.push(apply(set, node, &name));
        }
    }
}

/// Applies the template again if the Instance shows another revision of it.
fn roll_out(set: &DaemonSet, node: &Node, instance: &Instance) -> Option<Op> {
    let template = &set.spec.template.spec;
    let fixed = |spec: &InstanceSpec| {
        (
            spec.type_,
            spec.load_balancer_type,
            spec.network_ref.clone(),
        )
    };
    if fixed(template) != fixed(&instance.spec) {
        return Some(Op::delete(instance));
    }
    let shown = object::label(instance, label::REVISION_HASH);
    let spec = InstanceSpec {
        node_ref: instance.spec.node_ref.clone(),
        ..pinned(set, node)
    };
    let same = shown == Some(revision(set).as_str()) && spec == instance.spec;
    (!same).then(|| apply(set, node, object::name(instance)))
}

/// The template for one Node.
fn pinned(set: &DaemonSet, node: &Node) -> InstanceSpec {
    let mut spec = set.spec.template.spec.clone();
    spec.node_ref = None;
    let by_name = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: NodeSelectorOperator::In,
        values: vec![object::name(node).to_owned()],
    };
    let term = NodeSelectorTerm {
        match_fields: vec![by_name],
        ..NodeSelectorTerm::default()
    };
    spec.affinity
        .get_or_insert_with(Affinity::default)
        .node_affinity = Some(NodeAffinity {
        required_during_scheduling_ignored_during_execution: Some(NodeSelector {
            node_selector_terms: vec![term],
        }),
    });
    spec
}

/// A hash of the template. Its JSON is the same in every process and release, unlike a dump of memory.
fn revision(set: &DaemonSet) -> String {
    let text = serde_json::to_string(&set.spec.template).unwrap_or_default();
    let digits = uuid5_sha256(&text);
    digits.chars().filter(|c| *c != '-').take(DIGITS).collect()
}

fn apply(set: &DaemonSet, node: &Node, name: &str) -> Op {
    let metadata = set.spec.template.metadata.as_ref();
    let mut labels = metadata
        .and_then(|metadata| metadata.labels.clone())
        .unwrap_or_default();
    labels.insert(label::REVISION_HASH.to_owned(), revision(set));
    let annotations = metadata
        .and_then(|metadata| metadata.annotations.clone())
        .unwrap_or_default();
    let body = json!({
        "metadata": {
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [object::controller_reference(set)],
        },
        "spec": pinned(set, node),
    });
    Op::apply(
        Target::new::<Instance>(object::namespace(set), name),
        manager::APINET,
        body,
    )
}

fn report(world: &World, set: &DaemonSet, desired: i32) -> Option<Op> {
    let key = Key::of(set).to_string();
    let instances = world.indexed::<Instance>(INSTANCE_SET, &key);
    let bound = instances
        .iter()
        .filter(|instance| instance.spec.node_ref.is_some() && !object::is_deleting(&***instance));
    let shown = set.status.clone().unwrap_or_default();
    let status = DaemonSetStatus {
        desired_instances: Some(desired),
        scheduled_instances: Some(i32::try_from(bound.count()).unwrap_or(i32::MAX)),
        collision_count: shown.collision_count,
    };
    (status != shown).then(|| Op::patch_status(Target::of(set), json!(status)))
}
