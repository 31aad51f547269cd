//! JSON Patch, merge patch and strategic merge patch.

use super::kind;
use apiserver::patch::{JsonPatchError, OPERATIONS_MAX, json_patch, merge_patch, strategic};
use proptest::prelude::*;
use serde_json::{Value, json};

fn patched(document: Value, patch: Value) -> Result<Value, u16> {
    json_patch(document, &patch).map_err(|error| error.code())
}

#[test]
fn json_patch_operations() {
    let cases = [
        // RFC 6902 appendix A.
        (
            json!({"foo": "bar"}),
            json!([{"op": "add", "path": "/baz", "value": "qux"}]),
            Ok(json!({"foo": "bar", "baz": "qux"})),
        ),
        (
            json!({"foo": ["a", "c"]}),
            json!([{"op": "add", "path": "/foo/1", "value": "b"}]),
            Ok(json!({"foo": ["a", "b", "c"]})),
        ),
        (
            json!({"a": 1, "b": 2}),
            json!([{"op": "remove", "path": "/a"}]),
            Ok(json!({"b": 2})),
        ),
        (
            json!({"a": [1, 2, 3]}),
            json!([{"op": "remove", "path": "/a/1"}]),
            Ok(json!({"a": [1, 3]})),
        ),
        (
            json!({"a": 1}),
            json!([{"op": "replace", "path": "/a", "value": 2}]),
            Ok(json!({"a": 2})),
        ),
        (
            json!({"a": {"b": 1}, "c": {}}),
            json!([{"op": "move", "from": "/a/b", "path": "/c/d"}]),
            Ok(json!({"a": {}, "c": {"d": 1}})),
        ),
        (
            json!({"a": [1, 2, 3]}),
            json!([{"op": "move", "from": "/a/0", "path": "/a/2"}]),
            Ok(json!({"a": [2, 3, 1]})),
        ),
        (
            json!({"a": {"b": 1}}),
            json!([{"op": "copy", "from": "/a", "path": "/c"}]),
            Ok(json!({"a": {"b": 1}, "c": {"b": 1}})),
        ),
        (
            json!({"a": 1}),
            json!([{"op": "test", "path": "/a", "value": 1.0}]),
            Ok(json!({"a": 1})),
        ),
        (
            json!({"a": 1}),
            json!([{"op": "test", "path": "/a", "value": "1"}]),
            Err(422),
        ),
        (
            json!({"a": [1]}),
            json!([{"op": "add", "path": "/a/-", "value": 2}]),
            Ok(json!({"a": [1, 2]})),
        ),
        (
            json!({"~1": 1, "a/b": 2}),
            json!([{"op": "remove", "path": "/a~1b"}]),
            Ok(json!({"~1": 1})),
        ),
        (
            json!({"~1": 1}),
            json!([{"op": "remove", "path": "/~01"}]),
            Ok(json!({})),
        ),
        (
            json!({"a": 1}),
            json!([{"op": "add", "path": "", "value": [1]}]),
            Ok(json!([1])),
        ),
        (
            json!({"a": 1}),
            json!([{"op": "add", "path": "/b/c", "value": 1}]),
            Err(422),
        ),
        (
            json!({"a": [1]}),
            json!([{"op": "add", "path": "/a/2", "value": 1}]),
            Err(422),
        ),
        (
            json!({"a": 1}),
            json!([{"op": "remove", "path": "/b"}]),
            Err(422),
        ),
        (
            json!({"a": 1}),
            json!([{"op": "replace", "path": "/b", "value": 1}]),
            Err(422),
        ),
        (
            json!({"a": {}}),
            json!([{"op": "move", "from": "/a", "path": "/a/b"}]),
            Err(422),
        ),
        // What kube-rs and client-go rely on.
        (
            json!({}),
            json!([{"op": "test", "path": "/f", "value": null}, {"op": "add", "path": "/f", "value": ["x"]}]),
            Ok(json!({"f": ["x"]})),
        ),
        (
            json!({}),
            json!([{"op": "test", "path": "/a/b/c", "value": null}]),
            Ok(json!({})),
        ),
        (
            json!({"f": 1}),
            json!([{"op": "test", "path": "/f", "value": null}]),
            Err(422),
        ),
        (
            json!({"f": null}),
            json!([{"op": "test", "path": "/f"}]),
            Ok(json!({"f": null})),
        ),
        (
            json!({"a": [1, 2, 3]}),
            json!([{"op": "remove", "path": "/a/-1"}]),
            Ok(json!({"a": [1, 2]})),
        ),
        (
            json!({"a": [1, 2, 3]}),
            json!([{"op": "add", "path": "/a/-1", "value": 4}]),
            Ok(json!({"a": [1, 2, 3, 4]})),
        ),
        (
            json!({"a": [1, 2, 3]}),
            json!([{"op": "replace", "path": "/a/-3", "value": 0}]),
            Ok(json!({"a": [0, 2, 3]})),
        ),
        (
            json!({"a": [1]}),
            json!([{"op": "remove", "path": "/a/-2"}]),
            Err(422),
        ),
        (
            json!({"a": [1]}),
            json!([{"op": "remove", "path": "/a/x"}]),
            Err(422),
        ),
        (
            json!({"a": [1]}),
            json!([{"op": "remove", "path": "/a/9223372036854775808"}]),
            Err(422),
        ),
        // No JSON patch at all.
        (json!({}), json!({"op": "add"}), Err(400)),
        (json!({}), json!([{"op": "spin", "path": "/a"}]), Err(400)),
        (json!({}), json!([{"path": "/a"}]), Err(400)),
        (json!({}), json!([{"op": "add", "value": 1}]), Err(400)),
        (
            json!({}),
            json!([{"op": "add", "path": "a", "value": 1}]),
            Err(400),
        ),
        (json!({}), json!([{"op": "copy", "path": "/a"}]), Err(400)),
    ];
    for (document, patch, expected) in cases {
        assert_eq!(
            patched(document.clone(), patch.clone()),
            expected,
            "{document} {patch}"
        );
    }
}

#[test]
fn json_patch_is_bounded() {
    let operation = json!({"op": "test", "path": "/x", "value": null});
    let patch = Value::Array(vec![operation.clone(); OPERATIONS_MAX]);
    assert!(json_patch(json!({}), &patch).is_ok());
    let patch = Value::Array(vec![operation; OPERATIONS_MAX + 1]);
    assert_eq!(
        json_patch(json!({}), &patch),
        Err(JsonPatchError::TooManyOperations(OPERATIONS_MAX + 1))
    );
    // Doubling by copies: thirty operations would make a gigabyte.
    let double = json!({"op": "copy", "from": "/a", "path": "/a/-"});
    let patch = Value::Array(vec![double; 30]);
    assert_eq!(
        json_patch(json!({"a": ["x"]}), &patch),
        Err(JsonPatchError::CopyTooLarge)
    );
}

#[test]
fn json_patch_cannot_nest_without_bound() {
    // Each step hangs the whole branch below its own tip.
    let mut tip = "/a".to_owned();
    let mut steps = Vec::new();
    for _ in 0..20 {
        steps.push(json!({"op": "copy", "from": "/a", "path": format!("{tip}/a")}));
        let levels = tip.matches('/').count();
        tip.push_str(&"/a".repeat(levels));
    }
    assert_eq!(patched(json!({"a": {}}), Value::Array(steps)), Err(422));
}

#[test]
fn kube_finalizer_helper() {
    let add = json!([
        {"op": "test", "path": "/metadata/finalizers", "value": null},
        {"op": "add", "path": "/metadata/finalizers", "value": ["a/b"]}
    ]);
    let with = json_patch(json!({"metadata": {}}), &add).unwrap();
    assert_eq!(with, json!({"metadata": {"finalizers": ["a/b"]}}));
    let remove = json!([
        {"op": "test", "path": "/metadata/finalizers/0", "value": "a/b"},
        {"op": "remove", "path": "/metadata/finalizers/0", "path_": 0}
    ]);
    assert_eq!(
        json_patch(with, &remove).unwrap(),
        json!({"metadata": {"finalizers": []}})
    );
}

#[test]
fn merge_patch_of_the_rfc() {
    // RFC 7386 appendix A, whole.
    let cases = [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (
            json!({"a": "b"}),
            json!({"b": "c"}),
            json!({"a": "b", "b": "c"}),
        ),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (
            json!({"a": "b", "b": "c"}),
            json!({"a": null}),
            json!({"b": "c"}),
        ),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
        (
            json!({"a": {"b": "c"}}),
            json!({"a": {"b": "d", "c": null}}),
            json!({"a": {"b": "d"}}),
        ),
        (
            json!({"a": [{"b": "c"}]}),
            json!({"a": [1]}),
            json!({"a": [1]}),
        ),
        (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
        (json!({"a": "b"}), json!(["c"]), json!(["c"])),
        (json!({"a": "foo"}), json!(null), json!(null)),
        (json!({"a": "foo"}), json!("bar"), json!("bar")),
        (
            json!({"e": null}),
            json!({"a": 1}),
            json!({"e": null, "a": 1}),
        ),
        (
            json!([1, 2]),
            json!({"a": "b", "c": null}),
            json!({"a": "b"}),
        ),
        (
            json!({}),
            json!({"a": {"bb": {"ccc": null}}}),
            json!({"a": {"bb": {}}}),
        ),
    ];
    for (document, patch, expected) in cases {
        assert_eq!(merge_patch(document, &patch), expected, "{patch}");
    }
}

fn smp(document: Value, patch: Value) -> Value {
    strategic(document, &patch, &kind()).unwrap()
}

#[test]
fn strategic_merges_maps_and_sets() {
    let live = json!({
        "metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x/a"]}, "data": {"k": "v"}
    });
    let patch = json!({
        "metadata": {"labels": {"b": null, "c": "3"}, "finalizers": ["x/a", "x/b"]}, "data": {"l": "w"}
    });
    let expected = json!({
        "metadata": {"labels": {"a": "1", "c": "3"}, "finalizers": ["x/a", "x/b"]},
        "data": {"k": "v", "l": "w"}
    });
    assert_eq!(smp(live, patch), expected);
}

#[test]
fn strategic_merges_lists_by_key() {
    let live = json!({"metadata": {"ownerReferences": [
        {"uid": "1", "kind": "A", "name": "a"}, {"uid": "2", "kind": "B", "name": "b"}
    ]}});
    let patch = json!({"metadata": {"ownerReferences": [
        {"uid": "2", "name": "c"}, {"uid": "3", "kind": "C"}, {"uid": "1", "$patch": "delete"}
    ]}});
    let expected = json!({"metadata": {"ownerReferences": [
        {"uid": "2", "kind": "B", "name": "c"}, {"uid": "3", "kind": "C"}
    ]}});
    assert_eq!(smp(live, patch), expected);
}

#[test]
fn strategic_directives() {
    let live = json!({"metadata": {
        "labels": {"a": "1"}, "finalizers": ["x/a", "x/b", "x/c"],
        "ownerReferences": [{"uid": "1"}, {"uid": "2"}]
    }});
    let cases = [
        (
            json!({"labels": {"$patch": "replace", "b": "2"}}),
            "/metadata/labels",
            Some(json!({"b": "2"})),
        ),
        (
            json!({"labels": {"$patch": "delete"}}),
            "/metadata/labels",
            None,
        ),
        (
            json!({"labels": {"$retainKeys": ["b"], "b": "2"}}),
            "/metadata/labels",
            Some(json!({"b": "2"})),
        ),
        (
            json!({"$deleteFromPrimitiveList/finalizers": ["x/b"]}),
            "/metadata/finalizers",
            Some(json!(["x/a", "x/c"])),
        ),
        (
            json!({"$setElementOrder/finalizers": ["x/c", "x/a", "x/b"]}),
            "/metadata/finalizers",
            Some(json!(["x/c", "x/a", "x/b"])),
        ),
        (
            json!({"$setElementOrder/ownerReferences": [{"uid": "2"}, {"uid": "1"}], "ownerReferences": [{"uid": "1", "name": "n"}]}),
            "/metadata/ownerReferences",
            Some(json!([{"uid": "2"}, {"uid": "1", "name": "n"}])),
        ),
        (
            json!({"ownerReferences": [{"$patch": "replace"}, {"uid": "9"}]}),
            "/metadata/ownerReferences",
            Some(json!([{"uid": "9"}])),
        ),
    ];
    for (patch, pointer, expected) in cases {
        let result = smp(live.clone(), json!({"metadata": patch}));
        assert_eq!(result.pointer(pointer).cloned(), expected, "{patch}");
        assert!(!result.to_string().contains('$'), "{result}");
    }
    assert!(
        strategic(
            live.clone(),
            &json!({"metadata": {"$patch": "spin"}}),
            &kind()
        )
        .is_err()
    );
    assert!(
        strategic(
            live.clone(),
            &json!({"metadata": {"ownerReferences": [{}]}}),
            &kind()
        )
        .is_err()
    );
    assert!(strategic(live, &json!([]), &kind()).is_err());
}

/// Any JSON, small.
pub fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3..3i64).prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Objects of objects and scalars.
fn plain_object() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(Value::Null), "[a-c]{0,2}".prop_map(Value::from)];
    let object = |inner| {
        proptest::collection::btree_map("[a-d]", inner, 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    };
    let inner = leaf.prop_recursive(2, 16, 4, move |inner| object(inner).boxed());
    proptest::collection::btree_map("[a-d]", inner, 0..4)
        .prop_map(|map| Value::Object(map.into_iter().collect()))
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                kept.map(|(key, value)| (key.clone(), without_nulls(value)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

proptest! {
    #[test]
    fn merge_patch_is_idempotent(document in json_value(), patch in json_value()) {
        let once = merge_patch(document, &patch);
        prop_assert_eq!(merge_patch(once.clone(), &patch), once);
    }

    #[test]
    fn merge_patch_onto_nothing_is_the_patch_without_nulls(patch in json_value()) {
        prop_assert_eq!(merge_patch(Value::Null, &patch), without_nulls(&patch));
    }

    #[test]
    fn json_patch_never_panics(document in json_value(), ops in proptest::collection::vec(
        ("(add|remove|replace|move|copy|test)", "(/[a-d0-2-]{0,2}){0,3}", "(/[a-d0-2-]{0,2}){0,3}", json_value()), 0..6)
    ) {
        let ops: Vec<Value> = ops
            .into_iter()
            .map(|(op, path, from, value)| json!({"op": op, "path": path, "from": from, "value": value}))
            .collect();
        let _ = json_patch(document, &Value::Array(ops));
    }

    #[test]
    fn added_then_removed_is_unchanged(document in json_value(), value in json_value()) {
        prop_assume!(document.is_object() && document.get("zz").is_none());
        let patch = json!([{"op": "add", "path": "/zz", "value": value}, {"op": "remove", "path": "/zz"}]);
        prop_assert_eq!(json_patch(document.clone(), &patch).unwrap(), document);
    }

    #[test]
    fn strategic_without_lists_is_a_merge_patch(a in plain_object(), b in plain_object()) {
        prop_assert_eq!(smp(a.clone(), b.clone()), merge_patch(a, &b));
    }
}
