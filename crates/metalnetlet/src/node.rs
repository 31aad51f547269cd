//! Node of the compute cluster → OpenKCM-net Node `<partition>.<name>`, whose labels say where it is.

use std::collections::BTreeMap;

use api::{
    apinet,
    names::{finalizer, label, manager},
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::departed;
use crate::partition::Partition;

pub struct NodeController {
    pub partition: Partition,
    /// Only nodes that this label selector matches are published.
    pub selector: Option<String>,
}

impl Controller for NodeController {
    fn name(&self) -> &'static str {
        "node"
    }

    fn sources(&self) -> Vec<Source> {
        let nodes = Watch::<Node>::new().own_key();
        let nodes = match &self.selector {
            Some(selector) => nodes.labels(selector),
            None => nodes,
        };
        let partition = self.partition.clone();
        let published = Watch::<apinet::Node>::new().keys(move |node, _| {
            partition
                .cluster_node(object::name(node))
                .map(Key::cluster)
                .into_iter()
                .collect()
        });
        let mut sources = vec![nodes.build(), published.build()];
        sources.extend(departed::sources(&self.partition));
        sources
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let name = self.partition.apinet_node(&key.name);
        let published = world.get::<apinet::Node>("", &name);
        let mut plan = Plan::none();
        match world.by_key::<Node>(key) {
            Some(node) if !object::is_deleting(&*node) => {
                plan.extend(Op::add_finalizer(&*node, finalizer::METALNETLET_NODE));
                plan.extend(self.publish(name, published.as_deref()));
            }
            // Deleting, gone, or no longer selected: the published Node goes first, then what the hypervisor carries, or its time
            // for that is over, then our hold on the cluster's node.
            node => match published {
                Some(published) if object::is_deleting(&*published) => {}
                Some(published) => {
                    plan.push(Op::delete(&*published));
                }
                None => {
                    let wait = node.as_deref().and_then(|node| departed::wait(world, node));
                    if let Some(wait) = wait {
                        plan.requeue_after(wait);
                        return plan;
                    }
                    plan.extend(node.iter().filter_map(|node| {
                        Op::remove_finalizer(&**node, finalizer::METALNETLET_NODE)
                    }));
                }
            },
        }
        plan
    }
}

impl NodeController {
    fn publish(&self, name: String, published: Option<&apinet::Node>) -> Option<Op> {
        let mut labels = self.partition.node_labels.clone();
        labels.insert(
            label::APINET_PARTITION.to_owned(),
            self.partition.name().to_owned(),
        );
        if let Some(published) = published {
            let live = published.metadata.labels.clone().unwrap_or_default();
            if object::is_deleting(published) || (live == labels) {
                return None;
            }
            // Labels of others may stay; then only our own decide.
            let none = BTreeMap::new();
            let ours = owned_labels(published);
            let stale = ours.iter().any(|key| !labels.contains_key(key));
            if object::carries(published, &labels, &none) && !stale {
                return None;
            }
        }
        let names: Vec<&str> = labels.keys().map(String::as_str).collect();
        let body = json!({ "metadata": {
            "labels": labels,
            "annotations": { OWNED_LABELS: names.join(",") },
        } });
        let target = Target::new::<apinet::Node>("", name);
        Some(Op::apply(
            target,
            manager::metalnetlet_partition(self.partition.name()),
            body,
        ))
    }
}

/// Names of the labels we set, so that a label that leaves our configuration is noticed.
const OWNED_LABELS: &str = "metalnetlet.openkcm.dev/node-labels";

fn owned_labels(published: &apinet::Node) -> Vec<String> {
    let names = object::annotation(published, OWNED_LABELS).unwrap_or_default();
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}
