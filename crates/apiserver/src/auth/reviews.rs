//! Reviews: what may I do, what may he do, who am I, whose token is this.

use super::{Action, User};
use crate::handler::Call;
use crate::kinds::Kind;
use crate::object;
use crate::status::{Failure, Outcome};
use crate::wire::Reply;
use http::StatusCode;
use serde_json::{Value, json};

/// Answers a review. Reviews are not stored.
pub(crate) fn answer(
    call: &Call<'_>,
    kind: &Kind,
    namespace: &str,
    mut review: Value,
) -> Outcome<Reply> {
    let status = match kind.plural {
        "selfsubjectaccessreviews" => access(call, &call.user, &review)?,
        "subjectaccessreviews" => access(call, &subject(&review)?, &review)?,
        "localsubjectaccessreviews" => {
            let place = review
                .pointer("/spec/resourceAttributes/namespace")
                .and_then(Value::as_str);
            if place.is_some_and(|place| place != namespace) {
                return Err(Failure::bad_request(
                    "spec.resourceAttributes.namespace must be the namespace of the request",
                ));
            }
            access(call, &subject(&review)?, &review)?
        }
        "selfsubjectrulesreviews" => rules(call, &review),
        "selfsubjectreviews" => json!({ "userInfo": user_info(&call.user) }),
        "tokenreviews" => super::token::review(call.region, &review),
        _ => return Err(Failure::method_not_allowed()),
    };
    if let Some(map) = review.as_object_mut() {
        map.insert("apiVersion".into(), json!(kind.api_version()));
        map.insert("kind".into(), json!(kind.kind));
        map.insert("status".into(), status);
    }
    object::set_metadata(&mut review, "creationTimestamp", Value::Null);
    Ok(Reply::value(StatusCode::CREATED, &review))
}

fn user_info(user: &User) -> Value {
    json!({ "username": user.name, "groups": user.groups })
}

/// The user that a review is about. His groups are taken as they are: nothing is added.
fn subject(review: &Value) -> Outcome<User> {
    let name = review
        .pointer("/spec/user")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let groups = review.pointer("/spec/groups").and_then(Value::as_array);
    let groups: Vec<String> = groups
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if name.is_empty() && groups.is_empty() {
        return Err(Failure::bad_request(
            "spec.user or spec.groups must be given",
        ));
    }
    Ok(User {
        name: name.to_owned(),
        groups,
    })
}

fn access(call: &Call<'_>, user: &User, review: &Value) -> Outcome<Value> {
    let text = |path: &str| {
        review
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let resource = review.pointer("/spec/resourceAttributes").is_some();
    let path = review.pointer("/spec/nonResourceAttributes").is_some();
    let action = match (resource, path) {
        (true, false) => Action {
            verb: text("/spec/resourceAttributes/verb"),
            group: text("/spec/resourceAttributes/group"),
            resource: text("/spec/resourceAttributes/resource"),
            subresource: text("/spec/resourceAttributes/subresource"),
            namespace: text("/spec/resourceAttributes/namespace"),
            name: text("/spec/resourceAttributes/name"),
            path: "",
        },
        (false, true) => Action {
            verb: text("/spec/nonResourceAttributes/verb"),
            path: text("/spec/nonResourceAttributes/path"),
            ..Action::default()
        },
        _ => {
            return Err(Failure::bad_request(
                "exactly one of spec.resourceAttributes and spec.nonResourceAttributes must be given",
            ));
        }
    };
    let group = action.group.to_ascii_lowercase();
    let action = Action {
        group: &group,
        ..action
    };
    let allowed = call.region.authorizer.allows(call.region, user, &action);
    Ok(match allowed {
        true => json!({ "allowed": true, "reason": "RBAC: allowed" }),
        false => json!({ "allowed": false, "reason": action.refusal(user) }),
    })
}

fn rules(call: &Call<'_>, review: &Value) -> Value {
    let namespace = review
        .pointer("/spec/namespace")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let rules = call
        .region
        .authorizer
        .rules(call.region, &call.user, namespace);
    let (paths, resources): (Vec<_>, Vec<_>) = rules
        .iter()
        .partition(|rule| !rule.non_resource_urls.is_empty());
    let values = |rules: Vec<&super::rbac::Rule>| -> Vec<Value> {
        rules.iter().map(|rule| rule.to_value()).collect()
    };
    json!({
        "resourceRules": values(resources),
        "nonResourceRules": values(paths),
        "incomplete": false,
    })
}
