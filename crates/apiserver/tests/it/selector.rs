//! Label and field selectors.

use apiserver::selector::{FieldSelector, LabelSelector, is_label_value, is_qualified_name};
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;

fn labels(text: &str) -> bool {
    let object = json!({"metadata": {"labels": {
        "app": "web", "tier": "front", "rank": "5", "empty": "", "x.io/part": "a_b.c"
    }}});
    LabelSelector::parse(text).unwrap().matches_object(&object)
}

#[test]
fn label_selectors_match() {
    let yes = [
        "",
        " ",
        "app=web",
        "app==web",
        "app = web ",
        "app!=api",
        "other!=x",
        "app",
        "!other",
        "! other",
        "app in (api,web)",
        "app in ( web )",
        "app notin (api)",
        "other notin (a,b)",
        "app=web,tier=front",
        "app=web, tier in (front,back) ,!gone",
        "rank>4",
        "rank<6",
        "rank > 4",
        "empty=",
        "empty in ()",
        "empty in (,x)",
        "x.io/part=a_b.c",
        "in=,notin!=a,app",
        "app!=",
    ];
    let no = [
        "app=api",
        "app!=web",
        "other",
        "!app",
        "app in (api)",
        "app notin (web,api)",
        "other=x",
        "other in (x)",
        "rank>5",
        "rank<5",
        "app>1",
        "other>1",
        "app=web,tier=back",
        "app=",
        "other in (a),app",
    ];
    for text in yes {
        // `in=` asks for a label called "in" with an empty value, which is not there.
        assert_eq!(labels(text), !text.starts_with("in="), "{text}");
    }
    for text in no {
        assert!(!labels(text), "{text}");
    }
}

#[test]
fn label_errors_name_the_position() {
    let cases = [
        (",", 0),
        ("a,", 2),
        ("a,,b", 2),
        ("a=b c", 4),
        ("a in b", 5),
        ("a in (b", 7),
        ("a in (b c)", 8),
        ("a ! b", 2),
        ("a foo (b)", 2),
        ("-a", 0),
        ("a=-b", 2),
        ("a in (b,-)", 8),
        ("a>b", 2),
        ("a<", 2),
        ("=b", 0),
        ("!", 1),
        ("a/b/c", 0),
        ("A.io/b", 0),
        ("a=b=c", 3),
        ("(a)", 0),
        ("a)", 1),
        ("ü", 0),
    ];
    for (text, position) in cases {
        let error = LabelSelector::parse(text).unwrap_err();
        assert_eq!(error.position, position, "{text:?}: {error}");
        assert!(
            error
                .to_string()
                .ends_with(&format!("at position {position}")),
            "{error}"
        );
    }
    assert!(LabelSelector::parse(&"a,".repeat(20_000)).is_err());
}

#[test]
fn names_and_values() {
    for good in [
        "a",
        "A",
        "0",
        "a-b_c.d",
        "x.io/a",
        "a.b-c.d/E_f",
        &"a".repeat(63),
    ] {
        assert!(is_qualified_name(good), "{good}");
    }
    for bad in [
        "",
        "-a",
        "a-",
        "/a",
        "a/",
        "X.io/a",
        "a..b/c",
        "a b",
        &"a".repeat(64),
    ] {
        assert!(!is_qualified_name(bad), "{bad}");
    }
    for good in ["", "a", "1.2_3-X", &"v".repeat(63)] {
        assert!(is_label_value(good), "{good}");
    }
    for bad in [" ", "-", "a/b", "ä", &"v".repeat(64)] {
        assert!(!is_label_value(bad), "{bad}");
    }
}

#[test]
fn field_selectors_match() {
    let object = json!({"metadata": {"name": "n1", "namespace": "ns"}, "spec": {"ip": "10.0.0.1", "n": 3, "text": "a,b=c\\"}});
    let cases = [
        ("", true),
        ("metadata.name=n1", true),
        ("metadata.name==n1", true),
        ("metadata.name!=n1", false),
        ("metadata.name=n2", false),
        ("metadata.name=n1,metadata.namespace=ns", true),
        ("spec.ip=10.0.0.1", true),
        ("spec.gone=", true),
        ("spec.gone!=x", true),
        ("spec.n=3", true),
        ("spec.text=a\\,b\\=c\\\\", true),
    ];
    for (text, expected) in cases {
        assert_eq!(
            FieldSelector::parse(text).unwrap().matches_object(&object),
            expected,
            "{text}"
        );
    }
    let selector = FieldSelector::parse("metadata.name=n1,a!=b").unwrap();
    assert_eq!(selector.exact("metadata.name"), Some("n1"));
    assert_eq!(selector.exact("a"), None);
    assert_eq!(selector.terms().len(), 2);
    for (text, position) in [
        ("name", 0),
        ("a=b,c", 4),
        ("a=b=c", 3),
        ("a=\\x", 2),
        ("a=\\", 2),
    ] {
        assert_eq!(
            FieldSelector::parse(text).unwrap_err().position,
            position,
            "{text}"
        );
    }
}

/// A requirement as text, and the same as a function.
fn requirement() -> impl Strategy<Value = (String, String, u8, Vec<String>)> {
    ("[a-c]", 0..8u8, proptest::collection::vec("[x-z]?", 1..3)).prop_map(|(key, kind, values)| {
        let joined = values.join(",");
        let text = match kind {
            0 => format!("{key}={}", values[0]),
            1 => format!("{key} == {}", values[0]),
            2 => format!("{key}!={}", values[0]),
            3 => format!("{key} in ({joined})"),
            4 => format!("{key} notin ( {joined} )"),
            5 => key.clone(),
            _ => format!("!{key}"),
        };
        (text, key, kind, values)
    })
}

proptest! {
    #[test]
    fn agrees_with_a_naive_reading(
        requirements in proptest::collection::vec(requirement(), 0..4),
        have in proptest::collection::btree_map("[a-c]", "[x-z]?", 0..4),
    ) {
        let text = requirements.iter().map(|(text, ..)| text.as_str()).collect::<Vec<_>>().join(",");
        let selector = LabelSelector::parse(&text).unwrap();
        let expected = requirements.iter().all(|(_, key, kind, values)| {
            let value = have.get(key);
            match kind {
                0 | 1 => value == Some(&values[0]),
                2 => value != Some(&values[0]),
                3 => value.is_some_and(|value| values.contains(value)),
                4 => !value.is_some_and(|value| values.contains(value)),
                5 => value.is_some(),
                _ => value.is_none(),
            }
        });
        let lookup = |have: &BTreeMap<String, String>| selector.matches(|key| have.get(key).map(String::as_str));
        prop_assert_eq!(lookup(&have), expected, "{}", text);
        // What it prints parses to itself.
        prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
    }

    #[test]
    fn never_panics(text in "[ab=!<>(), inot\\\\/ü]{0,24}") {
        for error in [LabelSelector::parse(&text).err(), FieldSelector::parse(&text).err()].into_iter().flatten() {
            prop_assert!(error.position <= text.len());
        }
    }
}
