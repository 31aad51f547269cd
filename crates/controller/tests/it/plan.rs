//! Operations are built so that the server can refuse what is outdated.

use controller::{Op, Target};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ObjectMeta;
use serde_json::json;

fn config_map(finalizers: &[&str]) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some("a".to_owned()),
            namespace: Some("ns".to_owned()),
            uid: Some("u".to_owned()),
            resource_version: Some("7".to_owned()),
            finalizers: Some(finalizers.iter().map(|f| (*f).to_owned()).collect()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

#[test]
fn a_finalizer_is_added_and_removed_under_the_version_lock_and_keeps_those_of_others() {
    let object = config_map(&["other/x"]);
    let target = Target::new::<ConfigMap>("ns", "a");
    let patch = |finalizers: &[&str]| {
        Some(Op::Patch {
            target: target.clone(),
            body: json!({ "metadata": { "finalizers": finalizers, "resourceVersion": "7" } }),
            status: false,
        })
    };
    assert_eq!(
        Op::add_finalizer(&object, "ours/y"),
        patch(&["other/x", "ours/y"])
    );
    assert_eq!(Op::add_finalizer(&object, "other/x"), None);
    assert_eq!(Op::remove_finalizer(&object, "other/x"), patch(&[]));
    assert_eq!(Op::remove_finalizer(&object, "ours/y"), None);
}

#[test]
fn an_object_that_is_being_deleted_gets_no_new_finalizer() {
    let mut object = config_map(&["other/x"]);
    object.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
    assert_eq!(Op::add_finalizer(&object, "ours/y"), None);
}

#[test]
fn a_delete_names_the_uid_it_means() {
    let expected = Op::Delete {
        target: Target::new::<ConfigMap>("ns", "a"),
        uid: "u".to_owned(),
    };
    assert_eq!(Op::delete(&config_map(&[])), expected);
}
