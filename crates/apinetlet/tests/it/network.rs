//! User Network ↔ OpenKCM-net Network.

use api::{
    apinet,
    names::{annotation, finalizer},
    networking::{Network, NetworkState},
};
use apinetlet::Filter;
use controller::{Op, object, sim::verify};
use serde_json::json;

use crate::region::{APINET_NS, NS, filter, object, region, region_with, uid};

fn network(name: &str) -> Network {
    object(json!({ "metadata": { "name": name, "namespace": NS }, "spec": {} }))
}

#[test]
fn a_network_gets_its_vni_and_becomes_available() {
    let sim = verify(region, |sim| sim.put(&network("blue"))).expect("converges");
    let user = sim.get::<Network>(NS, "blue").expect("user network");
    let made = sim
        .get::<apinet::Network>(APINET_NS, object::uid(&user))
        .expect("made, named by uid");
    let expected = format!(
        "openkcm-net://{APINET_NS}/{}/{}/{}",
        object::name(&made),
        made.spec.id,
        object::uid(&made)
    );
    assert_eq!(user.spec.provider_id, expected);
    assert_eq!(
        user.status.as_ref().expect("status").state,
        Some(NetworkState::Available)
    );
    let status = user.status.expect("status");
    assert_eq!(crate::region::reason(&status.conditions), "Available");
    assert_eq!(
        user.metadata.finalizers,
        Some(vec![finalizer::APINETLET_NETWORK.to_owned()])
    );
    let labels = made.metadata.labels.expect("labels");
    assert_eq!(labels["apinetlet.openkcm.dev/network-namespace"], NS);
    assert_eq!(
        labels["apinetlet.openkcm.dev/network-uid"],
        made.metadata.name.expect("name")
    );
    assert_eq!(
        made.metadata.annotations.expect("annotations")["apinetlet.openkcm.dev/network-name"],
        "blue"
    );
}

#[test]
fn deleting_a_network_leaves_nothing() {
    let sim = verify(region, |sim| {
        sim.put(&network("blue"));
        sim.settle().expect("settles");
        sim.delete::<Network>(NS, "blue");
    })
    .expect("converges");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}

#[test]
fn the_user_network_stays_as_long_as_the_other_one_is_held() {
    let mut sim = region();
    sim.put(&network("blue"));
    sim.settle().expect("settles");
    let name = uid::<Network>(&sim, NS, "blue");
    sim.edit::<apinet::Network>(APINET_NS, &name, |made| {
        made.metadata.finalizers = Some(vec!["partition/x".to_owned()]);
    });
    sim.delete::<Network>(NS, "blue");
    sim.settle().expect("settles");
    assert!(sim.get::<Network>(NS, "blue").is_some());
    sim.edit::<apinet::Network>(APINET_NS, &name, |made| made.metadata.finalizers = None);
    sim.settle().expect("settles");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}

#[test]
fn an_orphan_is_deleted_but_not_one_of_a_living_namesake_with_another_uid() {
    let mut sim = region();
    let orphan = |name: &str, source: &str, uid: &str| -> apinet::Network {
        object(json!({
            "metadata": {
                "name": name,
                "namespace": APINET_NS,
                "labels": {
                    "apinetlet.openkcm.dev/network-uid": uid,
                    "apinetlet.openkcm.dev/network-namespace": NS,
                },
                "annotations": { "apinetlet.openkcm.dev/network-name": source },
            },
            "spec": { "id": "777" },
        }))
    };
    sim.put(&orphan("left-over", "gone", "1234"));
    sim.settle().expect("settles");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}

#[test]
fn objects_of_others_are_not_touched() {
    let mut sim = region_with(Filter {
        watch_filter: Some("mine".to_owned()),
        ..filter()
    });
    let mut managed = network("managed");
    managed.metadata.labels = Some(
        [(
            "common.openkcm.dev/watch-filter".to_owned(),
            "mine".to_owned(),
        )]
        .into(),
    );
    let mut unfiltered = managed.clone();
    unfiltered.metadata.name = Some("filtered".to_owned());
    managed.metadata.annotations =
        Some([(annotation::MANAGED_BY.to_owned(), "x".to_owned())].into());
    sim.put(&managed);
    sim.put(&network("other"));
    assert_eq!(sim.settle(), Ok(0));
    sim.put(&unfiltered);
    sim.settle().expect("settles");
    let state = |name: &str| {
        sim.get::<Network>(NS, name)
            .and_then(|n| n.status)
            .and_then(|s| s.state)
    };
    assert_eq!(state("filtered"), Some(NetworkState::Available));
    assert_eq!(state("managed"), None);
    assert_eq!(state("other"), None);
}

#[test]
fn pending_is_written_before_the_apply_that_may_fail() {
    let mut sim = region();
    sim.put(&network("blue"));
    sim.settle().expect("settles");
    let position = |wanted: &dyn Fn(&Op) -> bool| sim.log.iter().position(wanted);
    let pending = position(
        &|op| matches!(op, Op::Patch { body, .. } if body["status"]["state"] == "Pending"),
    );
    let apply = position(&|op| matches!(op, Op::Apply { .. }));
    assert!(pending.expect("pending") < apply.expect("apply"));
}

#[test]
fn finalizers_are_written_under_the_version_that_was_read() {
    let mut sim = region();
    sim.put(&network("blue"));
    sim.settle().expect("settles");
    sim.delete::<Network>(NS, "blue");
    sim.settle().expect("settles");
    let finalizers = sim.log.iter().filter_map(|op| match op {
        Op::Patch { body, .. } if !body["metadata"]["finalizers"].is_null() => Some(body),
        _ => None,
    });
    let locked: Vec<bool> = finalizers
        .map(|body| body["metadata"]["resourceVersion"].is_string())
        .collect();
    assert_eq!(
        locked,
        [true, true],
        "nobody else's finalizer may be dropped"
    );
}
