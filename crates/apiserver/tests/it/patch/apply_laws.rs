//! Laws of server-side apply over random configurations.

use super::kind;
use apiserver::patch::apply::{ApplyError, FieldSet, Write, apply, track_update};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const NOW: &str = "2026-11-22T10:00:00Z";
const LATER: &str = "2026-11-22T11:00:00Z";

fn write<'a>(manager: &'a str, now: &'a str) -> Write<'a> {
    Write {
        manager,
        api_version: "g/v1",
        subresource: "",
        now,
        ignored: &[],
    }
}

/// A configuration of the test kind: each part may be absent.
fn config() -> impl Strategy<Value = Value> {
    let value = || "[x-z]";
    let option = proptest::option::of::<BoxedStrategy<Value>>;
    let map = || {
        proptest::collection::btree_map("[a-d]", value(), 0..3)
            .prop_map(|m| json!(m))
            .boxed()
    };
    let ips = proptest::collection::btree_map("[a-d]", proptest::option::of(value()), 0..3)
        .prop_map(|ips| {
            let items = ips.into_iter().map(|(name, ip)| match ip {
                Some(ip) => json!({"name": name, "ip": ip}),
                None => json!({"name": name}),
            });
            Value::Array(items.collect())
        });
    let set = proptest::collection::btree_set("[a-d]", 0..3)
        .prop_map(|set| json!(set))
        .boxed();
    let prefixes = proptest::collection::vec(value(), 0..3)
        .prop_map(|list| json!(list))
        .boxed();
    let scalar = || value().prop_map(Value::from).boxed();
    let spec = (
        option(scalar()),
        option(ips.boxed()),
        option(prefixes),
        option(scalar()),
        option(map()),
    );
    (option(map()), option(set), spec, option(map())).prop_map(
        |(labels, finalizers, spec, data)| {
            let (image, ips, prefixes, inner, options) = spec;
            let collect = |fields: Vec<(&str, Option<Value>)>| {
                let given = fields
                    .into_iter()
                    .filter_map(|(name, value)| Some((name.to_owned(), value?)));
                let map: Map<String, Value> = given.collect();
                (!map.is_empty()).then_some(Value::Object(map))
            };
            let inner = collect(vec![("a", inner), ("options", options)]);
            let spec = collect(vec![
                ("image", image),
                ("ips", ips),
                ("prefixes", prefixes),
                ("inner", inner),
            ]);
            let metadata = collect(vec![
                ("name", Some("n".into())),
                ("labels", labels),
                ("finalizers", finalizers),
            ]);
            let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": metadata});
            for (name, value) in [("spec", spec), ("data", data)] {
                if let Some(value) = value {
                    object[name] = value;
                }
            }
            object
        },
    )
}

fn applied(
    live: Option<&Value>,
    config: &Value,
    manager: &str,
    now: &str,
    force: bool,
) -> Result<Value, ApplyError> {
    apply(live, config, &kind(), &write(manager, now), force)
}

/// The object without bookkeeping, and with lists whose order does not matter sorted.
fn normal(object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("managedFields");
    for pointer in ["/spec/ips", "/metadata/finalizers"] {
        if let Some(Value::Array(items)) = object.pointer_mut(pointer) {
            items.sort_by_key(Value::to_string);
        }
    }
    object
}

fn owners(object: &Value) -> Vec<(Value, Value)> {
    let list = object
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array);
    let mut out: Vec<_> = list
        .into_iter()
        .flatten()
        .map(|e| (e["manager"].clone(), e["fieldsV1"].clone()))
        .collect();
    out.sort_by_key(|(manager, _)| manager.to_string());
    out
}

/// Whether everything the configuration says holds of the object.
fn holds(config: &Value, object: &Value) -> bool {
    match (config, object) {
        (Value::Object(config), Value::Object(object)) => config
            .iter()
            .all(|(key, value)| object.get(key).is_some_and(|found| holds(value, found))),
        (Value::Array(config), Value::Array(object)) => config
            .iter()
            .all(|item| object.iter().any(|found| holds(item, found))),
        _ => config == object,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn apply_is_idempotent(first in config(), other in config(), second in config()) {
        let live = applied(None, &first, "one", NOW, false).unwrap();
        let live = applied(Some(&live), &other, "two", NOW, true).unwrap();
        let once = applied(Some(&live), &second, "one", NOW, true).unwrap();
        prop_assert!(holds(&second, &once), "{second} {once}");
        let twice = applied(Some(&once), &second, "one", LATER, false).unwrap();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn two_managers_commute_when_they_do_not_conflict(a in config(), b in config()) {
        let zero = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n", "annotations": {"z": "0"}}});
        let start = applied(None, &zero, "zero", NOW, false).unwrap();
        let run = |first: &Value, one: &str, second: &Value, two: &str| {
            let live = applied(Some(&start), first, one, NOW, false)?;
            applied(Some(&live), second, two, NOW, false)
        };
        let ab = run(&a, "a", &b, "b");
        let ba = run(&b, "b", &a, "a");
        match (ab, ba) {
            (Ok(ab), Ok(ba)) => {
                prop_assert_eq!(normal(&ab), normal(&ba));
                prop_assert_eq!(owners(&ab), owners(&ba));
            }
            (Err(ApplyError::Conflicts(_)), Err(ApplyError::Conflicts(_))) => {}
            (ab, ba) => prop_assert!(false, "{ab:?} {ba:?}"),
        }
    }

    #[test]
    fn giving_up_everything_leaves_what_others_own(mine in config(), theirs in config()) {
        let alone = applied(None, &theirs, "they", NOW, false).unwrap();
        let both = applied(Some(&alone), &mine, "me", NOW, true).unwrap();
        let nothing = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"}});
        let after = applied(Some(&both), &nothing, "me", LATER, false).unwrap();
        prop_assert!(owners(&after).iter().all(|(manager, _)| manager == "they"));
        // Every field still owned is still there, and every field that is there is owned.
        let again = applied(Some(&after), &normal(&after), "check", LATER, false);
        prop_assert!(again.is_ok());
        if !owners(&both).iter().any(|(manager, _)| manager == "me") || normal(&both) == normal(&alone) {
            prop_assert_eq!(normal(&after), normal(&both));
        }
    }

    #[test]
    fn a_lone_manager_can_take_everything_back(first in config(), second in config()) {
        let live = applied(None, &first, "m", NOW, false).unwrap();
        let live = applied(Some(&live), &second, "m", LATER, false).unwrap();
        let fresh = applied(None, &second, "m", LATER, false).unwrap();
        prop_assert_eq!(normal(&live), normal(&fresh));
        prop_assert_eq!(owners(&live), owners(&fresh));
    }

    #[test]
    fn updates_own_exactly_what_they_change(old in config(), new in config()) {
        let mut created = old.clone();
        track_update(None, &mut created, &kind(), &write("create", NOW));
        let mut changed = new.clone();
        track_update(Some(&created), &mut changed, &kind(), &write("edit", LATER));
        prop_assert_eq!(normal(&changed), normal(&new));
        if normal(&old) == normal(&new) {
            prop_assert_eq!(owners(&changed), owners(&created));
        }
        // All entries are well formed, and nobody owns a path that somebody else's write took away.
        for (_, fields) in owners(&changed) {
            let set = FieldSet::decode(&fields).unwrap();
            prop_assert!(!set.is_empty());
            prop_assert_eq!(set.encode(), fields);
        }
        // The editor now applies what is there: no conflict can arise.
        prop_assert!(applied(Some(&changed), &new, "edit", LATER, false).is_ok());
    }

    #[test]
    fn field_sets_obey_set_laws(a in config(), b in config()) {
        let set = |config: &Value| {
            let live = applied(None, config, "m", NOW, false).unwrap();
            let fields = owners(&live);
            FieldSet::decode(fields.first().map_or(&json!({}), |(_, fields)| fields)).unwrap()
        };
        let (a, b) = (set(&a), set(&b));
        let both = a.intersection(&b);
        prop_assert_eq!(a.difference(&b).union(&both), a.clone());
        prop_assert_eq!(a.union(&b), b.union(&a));
        prop_assert!(a.difference(&b).intersection(&b).is_empty());
        for path in a.paths() {
            prop_assert!(a.has(&path));
            prop_assert_eq!(both.has(&path), b.has(&path));
        }
        prop_assert_eq!(FieldSet::decode(&a.encode()).unwrap(), a);
    }
}
