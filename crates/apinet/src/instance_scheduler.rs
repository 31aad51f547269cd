//! Puts Instances on Nodes. One worker, so that every decision sees all earlier ones.
//!
//! Among the Nodes that [`crate::placement`] leaves, the one with fewest Instances wins, then the first by name. Instances that are
//! being deleted no longer count: what replaces them need not wait for a hypervisor that may be dead.

use api::apinet::{Instance, Node};
use controller::{Controller, Key, Op, Plan, Source, Watch, World, object};
use serde_json::json;

use crate::{
    index::{self, INSTANCE_NODE, UNSCHEDULED},
    placement::{self, Placed},
};

pub struct InstanceSchedulerController;

impl Controller for InstanceSchedulerController {
    fn name(&self) -> &'static str {
        "instance-scheduler"
    }

    fn sources(&self) -> Vec<Source> {
        let instances = index::instances()
            .keys(|instance, world| match &instance.spec.node_ref {
                None => vec![Key::of(instance)],
                // One that goes makes room for those that were kept away by it.
                Some(_) if object::is_deleting(instance) => {
                    waiting(world, Some(object::namespace(instance)))
                }
                Some(_) => Vec::new(),
            })
            .removed_keys(|instance, world| waiting(world, Some(object::namespace(instance))));
        let nodes = Watch::<Node>::new().keys(|_, world| waiting(world, None));
        vec![instances.build(), nodes.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(instance) = world.by_key::<Instance>(key) else {
            return Plan::none();
        };
        if object::is_deleting(&*instance) || instance.spec.node_ref.is_some() {
            return Plan::none();
        }
        match choose(world, &instance) {
            Some(node) => {
                let reference = json!({ "name": node });
                vec![Op::locked(
                    &*instance,
                    json!({ "spec": { "nodeRef": reference } }),
                )]
                .into()
            }
            // Most Instances of a set wait because a sibling serves their place already: that is no news.
            None if object::controller_of(&*instance).is_some() => Plan::none(),
            None => {
                let note = "no node satisfies affinity, anti-affinity and spread";
                vec![Op::event(
                    &*instance,
                    false,
                    "OutOfCapacity",
                    "Scheduling",
                    note,
                )]
                .into()
            }
        }
    }
}

fn waiting(world: &World, namespace: Option<&str>) -> Vec<Key> {
    let all = world.indexed::<Instance>(INSTANCE_NODE, UNSCHEDULED);
    let near = all.iter().filter(|instance| {
        namespace.is_none_or(|namespace| object::namespace(&***instance) == namespace)
    });
    near.map(|instance| Key::of(&**instance)).collect()
}

fn choose(world: &World, instance: &Instance) -> Option<String> {
    let nodes = world.list::<Node>();
    let siblings = world.list_in::<Instance>(object::namespace(instance));
    let placed: Vec<Placed<'_>> = siblings
        .iter()
        .filter(|other| !object::is_deleting(&***other))
        .filter_map(|other| {
            let name = &other.spec.node_ref.as_ref()?.name;
            let node = nodes.iter().find(|node| object::name(&***node) == name)?;
            Some(Placed {
                instance: other,
                node,
            })
        })
        .collect();
    let mut open = placement::eligible(instance, nodes.iter().map(|node| &**node), &placed);
    open.sort_by_cached_key(|node| {
        let name = object::name(*node).to_owned();
        let there = world.indexed::<Instance>(INSTANCE_NODE, &name);
        let load = there
            .iter()
            .filter(|instance| !object::is_deleting(&***instance))
            .count();
        (load, name)
    });
    open.first().map(|node| object::name(*node).to_owned())
}
