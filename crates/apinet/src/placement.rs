//! Where an Instance may run: node affinity, anti-affinity, topology spread. Pure functions over Nodes and Instances.

use std::collections::{BTreeMap, BTreeSet};

use api::{
    apinet::{
        Instance, Node, NodeSelector, NodeSelectorOperator, NodeSelectorRequirement,
        NodeSelectorTerm, TopologySpreadConstraint,
    },
    meta::LabelSelector,
};
use controller::object;

/// Whether a Node takes new Instances.
pub fn accepts(node: &Node) -> bool {
    !object::is_deleting(node) && !node.is_lost() && !node.spec.unschedulable
}

/// The required node affinity of a spec.
pub fn required(instance: &api::apinet::InstanceSpec) -> Option<&NodeSelector> {
    let affinity = instance.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()
}

/// Whether a Node is chosen. Without a selector every Node is, with one that has no usable term none.
pub fn chooses(selector: Option<&NodeSelector>, node: &Node) -> bool {
    selector.is_none_or(|selector| {
        let mut terms = selector.node_selector_terms.iter();
        terms.any(|term| holds(term, node))
    })
}

fn holds(term: &NodeSelectorTerm, node: &Node) -> bool {
    let NodeSelectorTerm {
        match_expressions,
        match_fields,
    } = term;
    let empty = match_expressions.is_empty() && match_fields.is_empty();
    let by_label = |item: &NodeSelectorRequirement| matches(item, object::label(node, &item.key));
    let by_field = |item: &NodeSelectorRequirement| {
        item.key == "metadata.name" && matches(item, Some(object::name(node)))
    };
    !empty && match_expressions.iter().all(by_label) && match_fields.iter().all(by_field)
}

fn matches(item: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let listed = || value.is_some_and(|value| item.values.iter().any(|known| known == value));
    let numbers = || -> Option<(i64, i64)> {
        let [bound] = item.values.as_slice() else {
            return None;
        };
        Some((value?.parse().ok()?, bound.parse().ok()?))
    };
    match item.operator {
        NodeSelectorOperator::In => listed(),
        NodeSelectorOperator::NotIn => !listed(),
        NodeSelectorOperator::Exists => value.is_some(),
        NodeSelectorOperator::DoesNotExist => value.is_none(),
        NodeSelectorOperator::Gt => numbers().is_some_and(|(value, bound)| value > bound),
        NodeSelectorOperator::Lt => numbers().is_some_and(|(value, bound)| value < bound),
    }
}

/// What stands at a Node already, for the rules between Instances.
pub struct Placed<'a> {
    pub instance: &'a Instance,
    pub node: &'a Node,
}

/// Nodes that may run the Instance, in the order given. `placed` are the Instances of its namespace that stay where they are.
pub fn eligible<'n>(
    instance: &Instance,
    nodes: impl IntoIterator<Item = &'n Node>,
    placed: &[Placed<'_>],
) -> Vec<&'n Node> {
    let selector = required(&instance.spec);
    let open: Vec<&Node> = nodes
        .into_iter()
        .filter(|node| accepts(node) && chooses(selector, node))
        .collect();
    let excluded = excluded(instance, placed);
    let spread = &instance.spec.topology_spread_constraints;
    // The emptiest place is looked for among those that the Instance could use, so that a place out of reach does not block.
    let free: Vec<&Node> = open
        .into_iter()
        .filter(|node| {
            let mut places = labels(node);
            !places.any(|place| excluded.contains(&place))
        })
        .collect();
    let skews: Vec<Skew<'_>> = spread
        .iter()
        .map(|constraint| Skew::of(constraint, spread, instance, &free, placed))
        .collect();
    free.into_iter()
        .filter(|node| skews.iter().all(|skew| skew.admits(node)))
        .collect()
}

type Place<'a> = (&'a str, &'a str);

fn labels(node: &Node) -> impl Iterator<Item = Place<'_>> {
    let labels = node.metadata.labels.iter().flatten();
    labels.map(|(key, value)| (key.as_str(), value.as_str()))
}

fn selects(selector: Option<&LabelSelector>, instance: &Instance) -> bool {
    object::selects(selector, instance.metadata.labels.as_ref())
}

fn anti(instance: &Instance) -> impl Iterator<Item = &api::apinet::InstanceAffinityTerm> {
    let affinity = instance.spec.affinity.iter();
    affinity
        .filter_map(|affinity| affinity.instance_anti_affinity.as_ref())
        .flat_map(|anti| &anti.required_during_scheduling_ignored_during_execution)
}

/// Places that anti-affinity closes, of the new Instance against those there and of those there against the new one.
fn excluded<'a>(instance: &'a Instance, placed: &'a [Placed<'a>]) -> BTreeSet<Place<'a>> {
    let mut closed = BTreeSet::new();
    for there in placed {
        let ours =
            anti(instance).filter(|term| selects(term.label_selector.as_ref(), there.instance));
        let theirs =
            anti(there.instance).filter(|term| selects(term.label_selector.as_ref(), instance));
        for term in ours.chain(theirs) {
            if let Some(value) = object::label(there.node, &term.topology_key) {
                closed.insert((term.topology_key.as_str(), value));
            }
        }
    }
    closed
}

/// One spread constraint, counted.
struct Skew<'a> {
    key: &'a str,
    keys: Vec<&'a str>,
    max: i64,
    own: i64,
    least: i64,
    counts: BTreeMap<&'a str, i64>,
}

impl<'a> Skew<'a> {
    fn of(
        constraint: &'a TopologySpreadConstraint,
        all: &'a [TopologySpreadConstraint],
        instance: &Instance,
        nodes: &[&'a Node],
        placed: &[Placed<'a>],
    ) -> Skew<'a> {
        let key = constraint.topology_key.as_str();
        let selector = constraint.label_selector.as_ref();
        let keys: Vec<&str> = all
            .iter()
            .map(|other| other.topology_key.as_str())
            .collect();
        let mut counts: BTreeMap<&str, i64> = nodes
            .iter()
            .filter(|node| keys.iter().all(|key| object::label(**node, key).is_some()))
            .filter_map(|node| Some((object::label(*node, key)?, 0)))
            .collect();
        for there in placed
            .iter()
            .filter(|there| selects(selector, there.instance))
        {
            if let Some(count) =
                object::label(there.node, key).and_then(|value| counts.get_mut(value))
            {
                *count += 1;
            }
        }
        Skew {
            key,
            keys,
            max: i64::from(constraint.max_skew),
            own: i64::from(selects(selector, instance)),
            least: counts.values().copied().min().unwrap_or(0),
            counts,
        }
    }

    fn admits(&self, node: &Node) -> bool {
        let all_keys = self
            .keys
            .iter()
            .all(|key| object::label(node, key).is_some());
        let count = object::label(node, self.key).and_then(|value| self.counts.get(value));
        all_keys && count.is_some_and(|count| count + self.own - self.least <= self.max)
    }
}
