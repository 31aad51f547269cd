//! Label selectors have the meaning of the Kubernetes API.

use std::collections::BTreeMap;

use controller::object::selects;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::json;

fn check(selector: serde_json::Value, expected: bool) {
    let labels = BTreeMap::from([
        ("app".to_owned(), "web".to_owned()),
        ("tier".to_owned(), "front".to_owned()),
    ]);
    let parsed: LabelSelector = serde_json::from_value(selector.clone()).expect("a selector");
    assert_eq!(
        selects(Some(&parsed), Some(&labels)),
        expected,
        "{selector}"
    );
}

#[test]
fn selectors_match_as_documented() {
    check(json!({}), true);
    check(json!({ "matchLabels": { "app": "web" } }), true);
    check(
        json!({ "matchLabels": { "app": "web", "tier": "back" } }),
        false,
    );
    for (operator, key, values, expected) in [
        ("In", "app", json!(["web", "api"]), true),
        ("In", "none", json!(["web"]), false),
        ("NotIn", "app", json!(["web"]), false),
        ("NotIn", "none", json!(["web"]), true),
        ("Exists", "app", json!([]), true),
        ("Exists", "none", json!([]), false),
        ("DoesNotExist", "app", json!([]), false),
        ("DoesNotExist", "none", json!([]), true),
        ("Sideways", "app", json!([]), false),
    ] {
        let expression = json!({ "key": key, "operator": operator, "values": values });
        check(json!({ "matchExpressions": [expression] }), expected);
    }
}

#[test]
fn an_absent_selector_selects_nothing() {
    assert!(!selects(None, None));
}
