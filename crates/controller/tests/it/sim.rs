//! The simulated API: what plan tests of all controllers rely on.

use std::sync::Arc;

use controller::{
    Controller, Key, Op, Plan, Source, Target, Watch, World, object,
    sim::{Sim, verify},
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ObjectMeta;
use serde_json::json;

/// Keeps one Secret per ConfigMap, with the ConfigMap's data as labels, and holds the ConfigMap until the Secret is gone.
struct Copier;

const FINALIZER: &str = "test/copier";

impl Controller for Copier {
    fn name(&self) -> &'static str {
        "copier"
    }

    fn sources(&self) -> Vec<Source> {
        let secrets = Watch::<Secret>::new().own_key().index("label", |secret| {
            secret
                .metadata
                .labels
                .iter()
                .flatten()
                .map(|(k, v)| format!("{k}={v}"))
                .collect()
        });
        vec![Watch::<ConfigMap>::new().own_key().build(), secrets.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let Some(source) = world.by_key::<ConfigMap>(key) else {
            return plan;
        };
        let copy = world.by_key::<Secret>(key);
        if object::is_deleting(&*source) {
            match copy {
                Some(copy) => plan.push(Op::delete(&*copy)),
                None => plan.extend(Op::remove_finalizer(&*source, FINALIZER)),
            };
            return plan;
        }
        plan.extend(Op::add_finalizer(&*source, FINALIZER));
        let labels = source.data.clone().unwrap_or_default();
        let live = copy
            .as_ref()
            .map(|copy| copy.metadata.labels.clone().unwrap_or_default());
        if live.as_ref() != Some(&labels) {
            let target = Target::new::<Secret>(&*key.namespace, &*key.name);
            plan.push(Op::apply(
                target,
                "copier",
                json!({ "metadata": { "labels": labels } }),
            ));
        }
        plan
    }
}

fn config_map(data: &[(&str, &str)]) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some("a".to_owned()),
            namespace: Some("ns".to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(
            data.iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        ),
        ..ConfigMap::default()
    }
}

fn sim() -> Sim {
    Sim::new(vec![Arc::new(Copier)])
}

#[test]
fn a_controller_settles_and_then_rests() {
    let mut sim = sim();
    sim.put(&config_map(&[("x", "1")]));
    assert_eq!(sim.settle(), Ok(2));
    sim.wake_all();
    assert_eq!(sim.settle(), Ok(0));
    assert_eq!(sim.world().indexed::<Secret>("label", "x=1").len(), 1);
    assert_eq!(sim.world().indexed::<Secret>("label", "x=2").len(), 0);
}

#[test]
fn what_a_manager_stops_applying_goes_away() {
    let mut sim = sim();
    sim.put(&config_map(&[("x", "1"), ("y", "2")]));
    sim.settle().expect("settles");
    sim.edit::<ConfigMap>("ns", "a", |source| {
        source.data = config_map(&[("y", "3")]).data
    });
    sim.settle().expect("settles");
    let labels = sim
        .get::<Secret>("ns", "a")
        .and_then(|copy| copy.metadata.labels);
    assert_eq!(labels, config_map(&[("y", "3")]).data);
}

#[test]
fn a_finalizer_holds_the_object_until_its_copy_is_gone() {
    let mut sim = sim();
    sim.put(&config_map(&[]));
    sim.settle().expect("settles");
    sim.delete::<ConfigMap>("ns", "a");
    assert!(sim.get::<ConfigMap>("ns", "a").is_some());
    sim.settle().expect("settles");
    assert!(sim.snapshot().is_empty(), "{:?}", sim.snapshot());
}

#[test]
fn a_failure_at_any_point_is_made_up_for() {
    verify(sim, |sim| sim.put(&config_map(&[("x", "1")]))).expect("converges");
}
