//! Rules that need more than the object: its namespace, its users, the rights of whoever writes it.

use crate::allocate::{entries, is_released};
use crate::auth::{User, rbac};
use crate::certificates;
use crate::kinds::Kind;
use crate::object::{self, Encoded};
use crate::region::Region;
use crate::registry::{Write, cache_key, store_key};
use crate::status::{Failure, Outcome, Reason};
use crate::store::{At, Expect, Guard};
use api::names::{APINET, finalizer};
use serde_json::{Map, Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";
/// Namespaces that nobody may delete.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Completes a new object.
pub fn mutate_create(kind: &Kind, user: &User, object: &mut Value) {
    match (kind.group, kind.plural) {
        ("", "namespaces") => {
            let name = object::metadata_text(object, "name").to_owned();
            label_namespace(object, &name);
            if let Some(map) = object.as_object_mut() {
                map.insert("spec".into(), json!({ "finalizers": ["kubernetes"] }));
                map.insert("status".into(), json!({ "phase": "Active" }));
            }
        }
        (APINET, "ipaddresses") => {
            let mut list: Vec<Value> = object::metadata(object, "finalizers")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            if !list
                .iter()
                .any(|finalizer| finalizer == finalizer::IP_ADDRESS_PROTECTION)
            {
                list.push(json!(finalizer::IP_ADDRESS_PROTECTION));
            }
            object::set_finalizers(object, list);
        }
        (certificates::GROUP, certificates::REQUESTS) => certificates::own(user, object),
        _ => {}
    }
}

/// Turns what clients may write in a shorthand into what is kept: the texts of a secret become data.
pub fn expand(kind: &Kind, object: &mut Value) {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    if !(kind.group.is_empty() && kind.plural == "secrets") {
        return;
    }
    let Some(map) = object.as_object_mut() else {
        return;
    };
    // What is no map of texts stays, for the schema to refuse.
    let texts = map.get("stringData").and_then(Value::as_object);
    let coded: Option<Map<String, Value>> = texts.and_then(|texts| {
        let code = |text: &Value| Some(json!(STANDARD.encode(text.as_str()?)));
        let entries = texts
            .iter()
            .map(|(key, text)| Some((key.clone(), code(text)?)));
        entries.collect()
    });
    if let Some(coded) = coded
        && let Value::Object(data) = map.entry("data").or_insert_with(|| json!({}))
    {
        data.extend(coded);
        map.remove("stringData");
    }
}

/// Every namespace carries its name as a label, so that selectors can name it.
pub fn label_namespace(object: &mut Value, name: &str) {
    let mut labels = object::metadata(object, "labels")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    labels.insert("kubernetes.io/metadata.name".into(), json!(name));
    object::set_metadata(object, "labels", Value::Object(labels));
}

/// A new object's namespace must exist and must stay as it is until the commit.
pub async fn namespace_guard(write: &Write<'_>, name: &str) -> Outcome<Option<Guard>> {
    if !write.kind.namespaced {
        return Ok(None);
    }
    let Some(namespaces) = write.region.kinds.find("", "v1", "namespaces") else {
        return Ok(None);
    };
    let key = store_key(namespaces, "", write.namespace);
    let Some(kv) = write.region.store.get(&key, At::Latest).await? else {
        return Err(Failure::not_found("", "namespaces", write.namespace));
    };
    let deleting = Encoded::restore(kv.value)
        .and_then(|encoded| encoded.head())
        .is_ok_and(|head| head.deletion_timestamp.is_some());
    if deleting {
        let why = format!(
            "unable to create new content in namespace {} because it is being terminated",
            write.namespace
        );
        let failure = Failure::forbidden(write.kind.group, write.kind.plural, name, &why);
        let text = format!("namespace {} is being terminated", write.namespace);
        return Err(failure.cause("NamespaceTerminating", text, "metadata.namespace"));
    }
    Ok(Some(Guard {
        key,
        expect: Expect::ModRev(kv.mod_rev),
    }))
}

/// Whether this user may write this object, beyond what his role says.
pub fn permit(write: &Write<'_>, old: Option<&Value>, new: Option<&Value>) -> Outcome<()> {
    if let Err(why) = crate::auth::node::check(
        write.user,
        write.kind,
        write.namespace,
        write.name,
        old,
        new,
    ) {
        return Err(Failure::forbidden(
            write.kind.group,
            write.kind.plural,
            write.name,
            &why,
        ));
    }
    if write.kind.group == certificates::GROUP
        && let (Some(old), Some(new)) = (old, new)
    {
        return certificates::permit(write, old, new);
    }
    if write.kind.group == RBAC
        && let Some(new) = new
    {
        return no_escalation(write, old, new);
    }
    Ok(())
}

/// Nobody hands out rights that he does not have.
fn no_escalation(write: &Write<'_>, old: Option<&Value>, new: &Value) -> Outcome<()> {
    let rules = match write.kind.plural {
        "roles" | "clusterroles" if old.and_then(|old| old.get("rules")) == new.get("rules") => {
            return Ok(());
        }
        "roles" | "clusterroles" => rbac::rules_of(new),
        _ => bound_rules(write, new),
    };
    if write
        .region
        .authorizer
        .may_grant(write.region, write.user, write.namespace, &rules)
    {
        return Ok(());
    }
    let why = format!(
        "user \"{}\" (groups={:?}) is attempting to grant RBAC permissions not currently held",
        write.user.name, write.user.groups
    );
    Err(Failure::forbidden(
        write.kind.group,
        write.kind.plural,
        object::metadata_text(new, "name"),
        &why,
    ))
}

fn bound_rules(write: &Write<'_>, binding: &Value) -> Vec<rbac::Rule> {
    let text = |path: &str| {
        binding
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (plural, namespace) = match text("/roleRef/kind") {
        "Role" => ("roles", write.namespace),
        _ => ("clusterroles", ""),
    };
    let kind = write.region.kinds.find(RBAC, "v1", plural);
    let role = kind.and_then(|kind| {
        write
            .region
            .cache
            .get(kind.id, &cache_key(kind, namespace, text("/roleRef/name")))
    });
    role.map(|role| rbac::rules_of(&role.value()))
        .unwrap_or_default()
}

/// Whether the object may be deleted; a finalizer when it must wait for its users first.
pub async fn delete(write: &Write<'_>, live: &Value) -> Outcome<Option<&'static str>> {
    permit(write, Some(live), None)?;
    match (write.kind.group, write.kind.plural) {
        ("", "namespaces") if IMMORTAL.contains(&write.name) => Err(Failure::forbidden(
            "",
            "namespaces",
            write.name,
            "this namespace may not be deleted",
        )),
        (APINET, "networkids") => lock_unused(write, live),
        (APINET, "ips") if is_claimed(write.region, write.namespace, live).await? => {
            Ok(Some(finalizer::IP_IN_USE))
        }
        _ => Ok(None),
    }
}

/// A number may not be freed under its owner.
fn lock_unused(write: &Write<'_>, lock: &Value) -> Outcome<Option<&'static str>> {
    let reference = |member: &str| {
        lock.pointer(&format!("/spec/claimRef/{member}"))
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let owner = write
        .region
        .kinds
        .find(APINET, api::names::VERSION, "networks")
        .and_then(|kind| {
            write.region.cache.get(
                kind.id,
                &cache_key(kind, reference("namespace"), reference("name")),
            )
        });
    match owner {
        Some(owner) if *owner.uid == *reference("uid") => {
            let why = format!(
                "it is in use by network {}/{}",
                reference("namespace"),
                reference("name")
            );
            let mut failure = Failure::conflict(APINET, write.kind.plural, write.name, &why);
            failure.reason = Reason::Conflict;
            Err(failure)
        }
        _ => Ok(None),
    }
}

/// Whether the object that claims an IP still exists and still lists the address, or its data plane may still know it. The claimer
/// is read from the store: the cache may not have seen the write yet that made the claim.
async fn is_claimed(region: &Region, namespace: &str, ip: &Value) -> Outcome<bool> {
    let text = |path: &str| ip.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let (resource, name) = (text("/spec/claimRef/resource"), text("/spec/claimRef/name"));
    let kind = region.kinds.find(APINET, api::names::VERSION, resource);
    let Some(kind) = kind.filter(|_| !name.is_empty()) else {
        return Ok(false);
    };
    if is_released(ip) {
        return Ok(true);
    }
    let key = store_key(kind, namespace, name);
    let Some(kv) = region.store.get(&key, At::Latest).await? else {
        return Ok(false);
    };
    let claimer = Encoded::restore(kv.value)
        .map_err(|damaged| Failure::internal(format!("{name}: {damaged}")))?
        .to_value(kv.mod_rev);
    let listed = entries(kind.plural, Some(&claimer))
        .iter()
        .any(|entry| entry.get("ip").and_then(Value::as_str) == Some(text("/spec/ip")));
    Ok(listed && object::metadata_text(&claimer, "uid") == text("/spec/claimRef/uid"))
}
