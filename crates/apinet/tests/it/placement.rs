//! Which Nodes may run an Instance.

use api::apinet::{Instance, Node};
use apinet::placement::{Placed, eligible};
use controller::object;
use serde_json::{Value, json};

fn node(name: &str, labels: Value) -> Node {
    crate::object(json!({ "metadata": { "name": name, "labels": labels } }))
}

/// Three nodes in two zones, one without a zone.
fn nodes() -> Vec<Node> {
    vec![
        node("p.a1", json!({ "zone": "a", "gen": "3" })),
        node("p.a2", json!({ "zone": "a", "gen": "5" })),
        node("p.b1", json!({ "zone": "b" })),
        node("p.x", json!({})),
    ]
}

fn instance(name: &str, spec: Value) -> Instance {
    crate::object(json!({
        "metadata": { "name": name, "namespace": "ns", "labels": { "lb": "web" } },
        "spec": spec,
    }))
}

/// Names of the eligible nodes; `placed` are pairs of Instance and node name.
fn open(instance: &Instance, nodes: &[Node], placed: &[(&Instance, &str)]) -> String {
    let placed: Vec<Placed<'_>> = placed
        .iter()
        .map(|(instance, name)| Placed {
            instance,
            node: nodes
                .iter()
                .find(|node| object::name(*node) == *name)
                .expect("a node"),
        })
        .collect();
    let open = eligible(instance, nodes, &placed);
    let names = open.into_iter().map(object::name);
    names.collect::<Vec<_>>().join(" ")
}

fn node_affinity(terms: Value) -> Value {
    json!({ "affinity": { "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } } })
}

#[test]
fn node_affinity_terms_are_alternatives_of_requirements() {
    let by = |key: &str, operator: &str, values: Value| json!([{ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] }]);
    let field = |operator: &str, values: Value| json!([{ "matchFields": [{ "key": "metadata.name", "operator": operator, "values": values }] }]);
    let cases = [
        (by("zone", "In", json!(["a", "c"])), "p.a1 p.a2"),
        (by("zone", "NotIn", json!(["a"])), "p.b1 p.x"),
        (by("zone", "Exists", json!([])), "p.a1 p.a2 p.b1"),
        (by("zone", "DoesNotExist", json!([])), "p.x"),
        (by("gen", "Gt", json!(["3"])), "p.a2"),
        (by("gen", "Lt", json!(["5"])), "p.a1"),
        (by("zone", "Gt", json!(["1"])), ""),
        (field("In", json!(["p.b1"])), "p.b1"),
        (field("NotIn", json!(["p.b1"])), "p.a1 p.a2 p.x"),
        // An empty term, and no term at all, choose nothing.
        (json!([{}]), ""),
        (json!([]), ""),
        (
            json!([{}, { "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["b"] }] }]),
            "p.b1",
        ),
        (
            json!([{ "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }],
                "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["p.b1"] }] }]),
            "",
        ),
    ];
    for (terms, expected) in cases {
        let text = terms.to_string();
        let new = instance("i", node_affinity(terms));
        assert_eq!(open(&new, &nodes(), &[]), expected, "{text}");
    }
    assert_eq!(
        open(&instance("i", json!({})), &nodes(), &[]),
        "p.a1 p.a2 p.b1 p.x"
    );
}

#[test]
fn nodes_that_go_are_lost_or_cordoned_take_nothing_new() {
    let mut all = nodes();
    all[0].spec.unschedulable = true;
    all[1] = crate::object(json!({
        "metadata": { "name": "p.a2" },
        "status": { "conditions": [{ "type": "Ready", "status": "Unknown", "reason": "NodeSilent", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z" }] },
    }));
    all[2] = crate::object(
        json!({ "metadata": { "name": "p.b1", "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
    );
    assert_eq!(open(&instance("i", json!({})), &all, &[]), "p.x");
}

fn anti(labels: Value) -> Value {
    json!({ "affinity": { "instanceAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
        { "topologyKey": "zone", "labelSelector": { "matchLabels": labels } }] } } })
}

#[test]
fn anti_affinity_closes_places_in_both_directions() {
    let plain = instance("plain", json!({}));
    let shy = instance("shy", anti(json!({ "lb": "web" })));
    let other = instance("other", anti(json!({ "lb": "db" })));
    // The new one keeps away from those there.
    assert_eq!(open(&shy, &nodes(), &[(&plain, "p.a1")]), "p.b1 p.x");
    // Those there keep the new one away.
    assert_eq!(open(&plain, &nodes(), &[(&shy, "p.a1")]), "p.b1 p.x");
    // Selectors that match nobody close nothing.
    assert_eq!(
        open(&other, &nodes(), &[(&plain, "p.a1")]),
        "p.a1 p.a2 p.b1 p.x"
    );
    // A node without the label is in no place: it neither closes nor is closed.
    assert_eq!(
        open(&shy, &nodes(), &[(&plain, "p.x")]),
        "p.a1 p.a2 p.b1 p.x"
    );
    assert_eq!(
        open(&shy, &nodes(), &[(&plain, "p.a1"), (&plain, "p.b1")]),
        "p.x"
    );
}

fn spread(max: i32) -> Value {
    json!({ "topologySpreadConstraints": [{ "maxSkew": max, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": { "matchLabels": { "lb": "web" } } }] })
}

#[test]
fn spread_bounds_the_difference_between_places() {
    let there = instance("there", json!({}));
    let new = instance("new", spread(1));
    assert_eq!(open(&new, &nodes(), &[]), "p.a1 p.a2 p.b1");
    assert_eq!(open(&new, &nodes(), &[(&there, "p.a1")]), "p.b1");
    assert_eq!(
        open(&new, &nodes(), &[(&there, "p.a1"), (&there, "p.b1")]),
        "p.a1 p.a2 p.b1"
    );
    let lax = instance("lax", spread(2));
    assert_eq!(open(&lax, &nodes(), &[(&there, "p.a1")]), "p.a1 p.a2 p.b1");
    assert_eq!(
        open(&lax, &nodes(), &[(&there, "p.a1"), (&there, "p.a2")]),
        "p.b1"
    );
}

#[test]
fn a_place_out_of_reach_does_not_count_as_the_emptiest() {
    let there = instance("there", json!({}));
    let mut spec = spread(1);
    spec["affinity"] = node_affinity(
        json!([{ "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }] }]),
    )["affinity"]
        .clone();
    let new = instance("new", spec);
    // Zone b is empty and not for this Instance: it must not keep zone a from taking a second one.
    assert_eq!(
        open(&new, &nodes(), &[(&there, "p.a1"), (&there, "p.a2")]),
        "p.a1 p.a2"
    );
}
