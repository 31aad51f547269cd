//! Server-side apply: ownership, conflicts, unset-on-omit, lists, bookkeeping, and the way over from client-side apply.

use super::kind;
use apiserver::patch::apply::{ApplyError, LAST_APPLIED, Write, apply, track_update};
use apiserver::patch::json_patch;
use serde_json::{Value, json};

const T1: &str = "2026-11-22T10:00:01Z";
const T2: &str = "2026-11-22T10:00:02Z";
const T3: &str = "2026-11-22T10:00:03Z";

fn write<'a>(manager: &'a str, now: &'a str) -> Write<'a> {
    Write {
        manager,
        api_version: "g/v1",
        subresource: "",
        now,
        ignored: &["status"],
    }
}

fn status<'a>(manager: &'a str, now: &'a str) -> Write<'a> {
    Write {
        subresource: "status",
        ignored: &["spec", "data", "metadata"],
        ..write(manager, now)
    }
}

fn object(rest: Value) -> Value {
    let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"}});
    merge(&mut object, &rest);
    object
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn applied(live: Option<&Value>, config: Value, write: &Write<'_>) -> Value {
    apply(live, &object(config), &kind(), write, false).unwrap()
}

fn forced(live: &Value, config: Value, write: &Write<'_>) -> Value {
    apply(Some(live), &object(config), &kind(), write, true).unwrap()
}

fn refused(live: &Value, config: Value, write: &Write<'_>) -> ApplyError {
    apply(Some(live), &object(config), &kind(), write, false).unwrap_err()
}

fn updated(old: Option<&Value>, new: Value, write: &Write<'_>) -> Value {
    let mut new = new;
    track_update(old, &mut new, &kind(), write);
    new
}

/// Changes fields of an object as an ordinary client would, keeping what it read.
fn edited(old: &Value, change: Value, write: &Write<'_>) -> Value {
    let mut new = old.clone();
    merge(&mut new, &change);
    updated(Some(old), new, write)
}

/// (manager, operation, time, fields) of each entry.
fn entries(object: &Value) -> Vec<(String, String, String, Value)> {
    let list = object
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array);
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    list.into_iter()
        .flatten()
        .map(|entry| {
            let owner = match entry.get("subresource") {
                Some(part) => format!("{}/{}", text(entry, "manager"), part.as_str().unwrap()),
                None => text(entry, "manager"),
            };
            (
                owner,
                text(entry, "operation"),
                text(entry, "time"),
                entry["fieldsV1"].clone(),
            )
        })
        .collect()
}

fn fields_of(object: &Value, manager: &str) -> Value {
    let entry = entries(object).into_iter().find(|entry| entry.0 == manager);
    entry.map_or(Value::Null, |entry| entry.3)
}

/// The object without its bookkeeping.
fn bare(object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("managedFields");
    object
}

#[test]
fn create_by_apply_owns_what_it_says() {
    let live = applied(
        None,
        json!({
            "metadata": {"labels": {"a": "1"}, "finalizers": ["x/f"]},
            "spec": {"replicas": 1, "ips": [{"name": "v4", "family": "IPv4"}], "prefixes": ["p"],
                     "ref": {"name": "r"}, "inner": {"options": {}}}
        }),
        &write("m", T1),
    );
    let expected = json!({
        "f:metadata": {"f:labels": {"f:a": {}}, "f:finalizers": {"v:\"x/f\"": {}}},
        "f:spec": {
            "f:replicas": {}, "f:prefixes": {}, "f:ref": {}, "f:inner": {"f:options": {}},
            "f:ips": {"k:{\"name\":\"v4\"}": {".": {}, "f:name": {}, "f:family": {}}}
        }
    });
    assert_eq!(
        entries(&live),
        [("m".into(), "Apply".into(), T1.into(), expected)]
    );
    let entry = &live["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["apiVersion"], &entry["fieldsType"]),
        (&json!("g/v1"), &json!("FieldsV1"))
    );
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let config = json!({"spec": {"replicas": 1, "ips": [{"name": "a", "ip": "1"}]}});
    let live = applied(None, config.clone(), &write("m", T1));
    assert_eq!(applied(Some(&live), config, &write("m", T2)), live);
}

#[test]
fn another_manager_conflicts_and_may_force() {
    let live = applied(
        None,
        json!({"spec": {"replicas": 1, "image": "i"}}),
        &write("one", T1),
    );
    let two = json!({"spec": {"replicas": 2}});
    let ApplyError::Conflicts(conflicts) = refused(&live, two.clone(), &write("two", T2)) else {
        panic!("no conflict")
    };
    assert_eq!(conflicts.len(), 1);
    assert_eq!(conflicts[0].path, ".spec.replicas");
    assert_eq!(conflicts[0].message(), "conflict with \"one\"");
    let live = forced(&live, two, &write("two", T2));
    assert_eq!(live["spec"], json!({"replicas": 2, "image": "i"}));
    assert_eq!(fields_of(&live, "one"), json!({"f:spec": {"f:image": {}}}));
    assert_eq!(
        fields_of(&live, "two"),
        json!({"f:spec": {"f:replicas": {}}})
    );
}

#[test]
fn equal_values_are_shared() {
    let live = applied(None, json!({"spec": {"replicas": 1}}), &write("one", T1));
    let live = applied(
        Some(&live),
        json!({"spec": {"replicas": 1}}),
        &write("two", T2),
    );
    assert_eq!(entries(&live).len(), 2);
    // One gives up: the other keeps the field.
    let live = applied(Some(&live), json!({}), &write("one", T3));
    assert_eq!(live["spec"], json!({"replicas": 1}));
    assert_eq!(entries(&live).len(), 1);
    let live = applied(Some(&live), json!({}), &write("two", T3));
    assert_eq!(live.get("spec"), None);
}

#[test]
fn conflict_messages_read_well() {
    let live = updated(
        None,
        object(json!({"spec": {"replicas": 1, "image": "i"}})),
        &write("edit", T1),
    );
    let live = applied(Some(&live), json!({"data": {"k": "v"}}), &write("app", T1));
    let error = refused(&live, json!({"spec": {"replicas": 2}}), &write("m", T2));
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"edit\" using g/v1: .spec.replicas"
    );
    let config = json!({"spec": {"replicas": 2, "image": "j"}, "data": {"k": "w"}});
    let error = refused(&live, config, &write("m", T2));
    assert_eq!(
        error.to_string(),
        "Apply failed with 3 conflicts: conflicts with \"app\":\n- .data.k\nconflicts with \"edit\" using \
         g/v1:\n- .spec.image\n- .spec.replicas"
    );
    let live = updated(
        Some(&live),
        {
            let mut new = live.clone();
            new["status"] = json!({"state": "Ready"});
            new
        },
        &status("kubelet", T2),
    );
    let config = object(json!({"status": {"state": "Gone"}}));
    let error = apply(Some(&live), &config, &kind(), &status("m", T3), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubelet\" with subresource \"status\" using g/v1: .status.state"
    );
}

#[test]
fn omitted_fields_go_unless_owned_by_others() {
    let live = applied(
        None,
        json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"image": "i", "inner": {"a": "1"}}}),
        &write("m", T1),
    );
    let live = edited(
        &live,
        json!({"metadata": {"labels": {"c": "3"}}, "spec": {"replicas": 5}}),
        &write("hand", T2),
    );
    let live = applied(
        Some(&live),
        json!({"metadata": {"labels": {"a": "1"}}}),
        &write("m", T3),
    );
    assert_eq!(live["metadata"]["labels"], json!({"a": "1", "c": "3"}));
    assert_eq!(live["spec"], json!({"replicas": 5}));
}

#[test]
fn unowned_fields_of_kept_list_elements_survive() {
    // An address that the server filled in belongs to nobody and must survive a re-apply without it.
    let config = json!({"spec": {"ips": [{"name": "v4", "family": "IPv4"}, {"name": "v6", "family": "IPv6"}]}});
    let mut live = applied(None, config.clone(), &write("let", T1));
    live["spec"]["ips"][0]["ip"] = json!("10.0.0.1");
    live["spec"]["ips"][1]["ip"] = json!("::1");
    assert_eq!(applied(Some(&live), config, &write("let", T2)), live);
    // The element goes as a whole with its owner, the filled-in field included.
    let live = applied(
        Some(&live),
        json!({"spec": {"ips": [{"name": "v6", "family": "IPv6"}]}}),
        &write("let", T3),
    );
    assert_eq!(
        live["spec"]["ips"],
        json!([{"name": "v6", "family": "IPv6", "ip": "::1"}])
    );
}

#[test]
fn two_managers_share_a_keyed_list() {
    let live = applied(
        None,
        json!({"spec": {"ips": [{"name": "a", "ip": "1"}]}}),
        &write("one", T1),
    );
    let live = applied(
        Some(&live),
        json!({"spec": {"ips": [{"name": "b", "ip": "2"}]}}),
        &write("two", T2),
    );
    assert_eq!(
        live["spec"]["ips"],
        json!([{"name": "a", "ip": "1"}, {"name": "b", "ip": "2"}])
    );
    // Both name one element; each keeps its own field of it.
    let live = applied(
        Some(&live),
        json!({"spec": {"ips": [{"name": "b", "ip": "2"}, {"name": "a", "family": "f"}]}}),
        &write("two", T2),
    );
    assert_eq!(
        live["spec"]["ips"][1],
        json!({"name": "a", "ip": "1", "family": "f"})
    );
    let live = applied(Some(&live), json!({}), &write("one", T3));
    assert_eq!(
        live["spec"]["ips"],
        json!([{"name": "b", "ip": "2"}, {"name": "a", "family": "f"}])
    );
}

#[test]
fn list_order_follows_the_configuration() {
    let live = applied(
        None,
        json!({"spec": {"ips": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}}),
        &write("one", T1),
    );
    let live = applied(
        Some(&live),
        json!({"spec": {"ips": [{"name": "d"}, {"name": "c"}, {"name": "a", "ip": "1"}]}}),
        &write("two", T2),
    );
    let names: Vec<_> = live["spec"]["ips"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ip| ip["name"].clone())
        .collect();
    assert_eq!(names, ["d", "c", "a", "b"]);
}

#[test]
fn keys_may_have_defaults() {
    let live = applied(
        None,
        json!({"spec": {"ports": [{"port": 80, "name": "http"}]}}),
        &write("one", T1),
    );
    assert!(
        fields_of(&live, "one")
            .to_string()
            .contains(r#"k:{\"port\":80,\"protocol\":\"TCP\"}"#)
    );
    let config = json!({"spec": {"ports": [{"port": 80, "protocol": "UDP"}, {"port": 80, "protocol": "TCP", "name": "web"}]}});
    let error = refused(&live, config.clone(), &write("two", T2));
    assert!(
        error
            .to_string()
            .ends_with(r#".spec.ports[port=80,protocol="TCP"].name"#),
        "{error}"
    );
    let live = forced(&live, config, &write("two", T2));
    assert_eq!(live["spec"]["ports"].as_array().unwrap().len(), 2);
}

#[test]
fn sets_merge_by_value() {
    let live = applied(
        None,
        json!({"metadata": {"finalizers": ["x/a", "x/b"]}}),
        &write("one", T1),
    );
    let live = applied(
        Some(&live),
        json!({"metadata": {"finalizers": ["x/b", "x/c"]}}),
        &write("two", T2),
    );
    assert_eq!(live["metadata"]["finalizers"], json!(["x/a", "x/b", "x/c"]));
    let live = applied(Some(&live), json!({}), &write("one", T3));
    assert_eq!(live["metadata"]["finalizers"], json!(["x/b", "x/c"]));
    let live = applied(Some(&live), json!({}), &write("two", T3));
    assert_eq!(live["metadata"].get("finalizers"), None);
}

#[test]
fn atomic_values_have_one_owner() {
    let live = applied(
        None,
        json!({"spec": {"prefixes": ["a", "b"], "ref": {"name": "x", "uid": "1"}}}),
        &write("one", T1),
    );
    let error = refused(
        &live,
        json!({"spec": {"prefixes": ["a", "b", "c"]}}),
        &write("two", T2),
    );
    assert!(error.to_string().ends_with(": .spec.prefixes"), "{error}");
    let error = refused(
        &live,
        json!({"spec": {"ref": {"name": "x"}}}),
        &write("two", T2),
    );
    assert!(error.to_string().ends_with(": .spec.ref"), "{error}");
    let live = applied(
        Some(&live),
        json!({"spec": {"ref": {"name": "y"}}}),
        &write("one", T2),
    );
    assert_eq!(live["spec"], json!({"ref": {"name": "y"}}));
}

#[test]
fn duplicate_or_anonymous_elements_are_refused() {
    let cases = [
        (
            json!({"spec": {"ips": [{"name": "a"}, {"name": "a"}]}}),
            ".spec.ips[name=\"a\"]: duplicate entries for key",
        ),
        (
            json!({"spec": {"ips": [{"ip": "1"}]}}),
            ".spec.ips[]: element without its keys",
        ),
        (
            json!({"metadata": {"finalizers": ["x/a", "x/a"]}}),
            ".metadata.finalizers[=\"x/a\"]: duplicate entries for key",
        ),
    ];
    for (config, expected) in cases {
        let error = apply(None, &object(config), &kind(), &write("m", T1), false).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("failed to create typed patch object: {expected}")
        );
    }
}

#[test]
fn duplicates_in_the_live_object_are_tolerated() {
    let live = object(
        json!({"spec": {"ips": [{"name": "a", "ip": "1"}, {"name": "a", "ip": "2"}, {"name": "b"}]}}),
    );
    let live = updated(None, live, &write("old", T1));
    let live = applied(
        Some(&live),
        json!({"spec": {"image": "i"}}),
        &write("m", T2),
    );
    assert_eq!(live["spec"]["ips"].as_array().unwrap().len(), 3);
}

#[test]
fn managed_fields_in_a_configuration_are_refused() {
    let config = object(json!({"metadata": {"managedFields": [{"manager": "x"}]}}));
    let error = apply(None, &config, &kind(), &write("m", T1), false).unwrap_err();
    assert_eq!(error.to_string(), "metadata.managedFields must be nil");
    assert_eq!(
        apply(None, &json!([]), &kind(), &write("m", T1), false),
        Err(ApplyError::NotAnObject)
    );
}

#[test]
fn system_metadata_is_nobodys() {
    let live = updated(
        None,
        object(
            json!({"metadata": {"uid": "u", "resourceVersion": "1", "generation": 1, "namespace": "ns",
                                   "creationTimestamp": T1, "labels": {"a": "1"}}}),
        ),
        &write("m", T1),
    );
    assert_eq!(
        fields_of(&live, "m"),
        json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}})
    );
    // Nor does a new resourceVersion count as a change.
    let later = edited(
        &live,
        json!({"metadata": {"resourceVersion": "2", "generation": 2}}),
        &write("x", T2),
    );
    assert_eq!(entries(&later), entries(&live));
}

#[test]
fn status_is_owned_through_its_own_door() {
    let live = applied(
        None,
        json!({"spec": {"replicas": 1}, "status": {"state": "no"}}),
        &write("m", T1),
    );
    assert_eq!(fields_of(&live, "m"), json!({"f:spec": {"f:replicas": {}}}));
    let mut new = live.clone();
    new["status"] = json!({"state": "Ready"});
    new["spec"] = json!({"replicas": 9});
    let live = updated(Some(&live), new, &status("m", T2));
    assert_eq!(
        fields_of(&live, "m/status"),
        json!({"f:status": {"f:state": {}}})
    );
    // Server-side apply to the status door does not disturb what the main door owns.
    let live = apply(
        Some(&live),
        &object(json!({"status": {"count": 3}})),
        &kind(),
        &status("s", T3),
        false,
    )
    .unwrap();
    assert_eq!(live["status"], json!({"state": "Ready", "count": 3}));
    assert_eq!(entries(&live).len(), 3);
}

#[test]
fn update_takes_only_what_it_changes() {
    let live = updated(
        None,
        object(json!({"spec": {"replicas": 1, "image": "i"}, "data": {"k": "v"}})),
        &write("create", T1),
    );
    let live = edited(
        &live,
        json!({"spec": {"replicas": 2}, "data": {"l": "w"}}),
        &write("edit", T2),
    );
    let expected = [
        (
            "create".into(),
            "Update".into(),
            T1.into(),
            json!({"f:spec": {".": {}, "f:image": {}}, "f:data": {".": {}, "f:k": {}}}),
        ),
        (
            "edit".into(),
            "Update".into(),
            T2.into(),
            json!({"f:spec": {"f:replicas": {}}, "f:data": {"f:l": {}}}),
        ),
    ];
    assert_eq!(entries(&live), expected);
}

#[test]
fn update_without_change_changes_nothing() {
    let live = updated(
        None,
        object(json!({"spec": {"replicas": 1}})),
        &write("m", T1),
    );
    assert_eq!(updated(Some(&live), live.clone(), &write("m", T2)), live);
    // A client that dropped the bookkeeping, as many do, changes nothing either.
    assert_eq!(updated(Some(&live), bare(&live), &write("x", T3)), live);
}

#[test]
fn removing_a_field_releases_it_everywhere() {
    let live = applied(
        None,
        json!({"spec": {"image": "i", "replicas": 1}}),
        &write("m", T1),
    );
    let mut new = live.clone();
    new["spec"].as_object_mut().unwrap().remove("image");
    let live = updated(Some(&live), new, &write("hand", T2));
    assert_eq!(
        entries(&live),
        [(
            "m".into(),
            "Apply".into(),
            T1.into(),
            json!({"f:spec": {"f:replicas": {}}})
        )]
    );
    let new = object(json!({}));
    assert_eq!(updated(Some(&live), new.clone(), &write("hand", T3)), new);
}

#[test]
fn bookkeeping_can_be_reset() {
    let live = applied(None, json!({"spec": {"replicas": 1}}), &write("m", T1));
    for reset in [json!([{}]), json!([])] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = reset;
        assert_eq!(updated(Some(&live), new, &write("x", T2)), bare(&live));
    }
    // Not through a subresource, and not by nonsense.
    let mut new = live.clone();
    new["metadata"]["managedFields"] = json!([{}]);
    assert_eq!(updated(Some(&live), new, &status("x", T2)), live);
    for nonsense in [
        json!([{"manager": "q"}]),
        json!([1, 2]),
        json!([{"operation": "Apply", "apiVersion": "v", "fieldsV1": {"x": {}}}]),
    ] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = nonsense;
        assert_eq!(updated(Some(&live), new, &write("x", T2)), live);
    }
}

#[test]
fn first_apply_to_an_unowned_object() {
    let live = object(json!({"spec": {"replicas": 1, "image": "i"}}));
    let error = refused(&live, json!({"spec": {"replicas": 2}}), &write("m", T1));
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using g/v1: .spec.replicas"
    );
    let live = applied(
        Some(&live),
        json!({"spec": {"replicas": 1}}),
        &write("m", T1),
    );
    assert_eq!(entries(&live).len(), 2);
    let live = applied(Some(&live), json!({}), &write("m", T2));
    assert_eq!(live["spec"], json!({"replicas": 1, "image": "i"}));
}

#[test]
fn null_in_a_configuration_removes_without_owning() {
    let live = applied(
        None,
        json!({"spec": {"replicas": 1, "image": "i"}}),
        &write("m", T1),
    );
    let live = applied(
        Some(&live),
        json!({"spec": {"replicas": 1, "image": null}}),
        &write("m", T2),
    );
    assert_eq!(live["spec"], json!({"replicas": 1}));
    assert_eq!(fields_of(&live, "m"), json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn an_emptied_container_that_is_still_named_stays() {
    let live = applied(
        None,
        json!({"spec": {"inner": {"options": {"a": "1"}}}}),
        &write("m", T1),
    );
    let live = applied(
        Some(&live),
        json!({"spec": {"inner": {"options": {}}}}),
        &write("m", T2),
    );
    assert_eq!(live["spec"], json!({"inner": {"options": {}}}));
}

#[test]
fn unowned_entries_survive_the_reapply_of_an_empty_container() {
    let config = json!({"spec": {"inner": {"options": {}}, "ips": []}});
    let mut live = applied(None, config.clone(), &write("m", T1));
    live["spec"]["inner"]["options"] = json!({"filled": "in"});
    live["spec"]["ips"] = json!([{"name": "a", "ip": "1"}, {"name": "a"}]);
    assert_eq!(applied(Some(&live), config, &write("m", T2)), live);
}

#[test]
fn old_update_managers_are_folded() {
    let mut live = updated(None, object(json!({"data": {"k0": "v"}})), &write("m0", T1));
    for i in 1..=14 {
        let time = format!("2026-11-22T10:01:{i:02}Z");
        let manager = format!("m{i}");
        live = edited(
            &live,
            json!({"data": {(format!("k{i}")): "v"}}),
            &write(&manager, &time),
        );
    }
    let all = entries(&live);
    assert_eq!(all.len(), 10);
    let folded = all
        .iter()
        .find(|entry| entry.0 == "ancient-changes")
        .unwrap();
    assert_eq!(
        folded.3["f:data"].as_object().unwrap().len(),
        7,
        "{folded:?}"
    );
}

#[test]
fn entries_of_others_survive_unread_parts() {
    // Index elements are written by other implementations only; they are kept.
    let mut live = object(json!({"spec": {"replicas": 1}}));
    live["metadata"]["managedFields"] = json!([{
        "manager": "odd", "operation": "Update", "apiVersion": "g/v1", "fieldsType": "FieldsV1", "time": T1,
        "fieldsV1": {"f:spec": {"f:prefixes": {"i:3": {}}}}
    }]);
    let after = edited(&live, json!({"data": {"a": "b"}}), &write("m", T2));
    assert_eq!(
        fields_of(&after, "odd"),
        json!({"f:spec": {"f:prefixes": {"i:3": {}}}})
    );
}

/// What `kubectl apply --server-side` does with an object that `kubectl apply` made.
#[test]
fn migration_from_client_side_apply() {
    let config = json!({"spec": {"replicas": 1, "image": "i"}});
    let annotation = format!("{}\n", object(config.clone()));
    let mut created = object(config.clone());
    created["metadata"]["annotations"] = json!({ LAST_APPLIED: annotation });
    let live = updated(None, created, &write("kubectl-client-side-apply", T1));

    // 1. The same configuration plus a change of it: no conflict with what the last client-side apply set.
    let change = json!({"spec": {"replicas": 2, "image": "i"}});
    let step = applied(Some(&live), change.clone(), &write("kubectl", T2));
    assert_eq!(step["spec"]["replicas"], json!(2));
    // The annotation follows, so that client-side apply can be used again.
    let kept: Value = serde_json::from_str(
        step["metadata"]["annotations"][LAST_APPLIED]
            .as_str()
            .unwrap(),
    )
    .unwrap();
    assert_eq!(kept["spec"]["replicas"], json!(2));

    // 2. kubectl moves its former fields over to the new manager by replacing the whole list.
    let mut list = step["metadata"]["managedFields"].clone();
    list.as_array_mut()
        .unwrap()
        .retain(|entry| entry["manager"] != "kubectl-client-side-apply");
    let patch = json!([
        {"op": "replace", "path": "/metadata/managedFields", "value": list},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": "5"}
    ]);
    let mut before = step.clone();
    before["metadata"]["resourceVersion"] = json!("5");
    let moved = json_patch(before.clone(), &patch).unwrap();
    let moved = updated(Some(&before), moved, &write("kubectl", T2));
    assert_eq!(entries(&moved).len(), 1);
    assert_eq!(bare(&moved), bare(&before));

    // 3. Another apply finds nothing to do; omitting a field now removes it.
    assert_eq!(applied(Some(&moved), change, &write("kubectl", T3)), moved);
    let last = applied(
        Some(&moved),
        json!({"spec": {"image": "i"}}),
        &write("kubectl", T3),
    );
    assert_eq!(last["spec"], json!({"image": "i"}));
}

#[test]
fn client_side_values_changed_by_hand_still_conflict() {
    let config = json!({"spec": {"replicas": 1}});
    let mut created = object(config.clone());
    created["metadata"]["annotations"] = json!({ LAST_APPLIED: object(config).to_string() });
    let live = updated(None, created, &write("kubectl-client-side-apply", T1));
    let live = edited(
        &live,
        json!({"spec": {"replicas": 7}}),
        &write("scaler", T2),
    );
    let error = refused(
        &live,
        json!({"spec": {"replicas": 2}}),
        &write("kubectl", T3),
    );
    assert!(
        error
            .to_string()
            .contains("conflict with \"scaler\" using g/v1: .spec.replicas"),
        "{error}"
    );
}
