//! Public addresses of network interfaces, load balancers and NAT gateways: ephemeral ones are IP objects owned by their user,
//! static ones are claimed.
//!
//! Everything happens in the transaction that writes the user. An entry without address that keeps its name and family keeps
//! its address, so that re-applying a manifest never moves it. An address that its user drops while a data plane may know it
//! is not freed here: its IP is marked as released and stays claimed until a collector has seen that nothing uses it any more.

use super::{Draft, address, apinet, claim_of, read, refused};
use crate::object;
use crate::registry::Write;
use crate::status::{Failure, Outcome};
use api::names::{APINET, VERSION, annotation, finalizer};
use serde_json::{Value, json};

/// Start of the finalizers of metalnetlets.
const PARTITION: &str = "partition.metalnetlet.apinet.openkcm.dev/";

/// The list of addresses in the spec of a kind; nothing for kinds that have none.
pub fn member(plural: &str) -> Option<&'static str> {
    match plural {
        "networkinterfaces" => Some("publicIPs"),
        "loadbalancers" | "natgateways" => Some("ips"),
        _ => None,
    }
}

/// Whether the addresses of an object are reserved at all: those of an internal load balancer are of its own network.
fn takes_part(object: &Value) -> bool {
    object.pointer("/spec/type").and_then(Value::as_str) != Some("Internal")
}

/// The addresses of an object, none if they are not reserved.
pub fn entries(plural: &str, object: Option<&Value>) -> Vec<Value> {
    let list = member(plural)
        .zip(object.filter(|object| takes_part(object)))
        .and_then(|(member, object)| object.get("spec")?.get(member)?.as_array());
    list.cloned().unwrap_or_default()
}

/// Whether a data plane may know the addresses of an object. Whoever is about to hand them to one sets a finalizer first.
fn reached_data_plane(object: &Value) -> bool {
    object::finalizers(object)
        .into_iter()
        .any(|known| known == finalizer::DATA_PLANE || known.starts_with(PARTITION))
}

fn text<'a>(entry: &'a Value, member: &str) -> &'a str {
    entry
        .get(member)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// What becomes of an address that its user gives up.
#[derive(Clone, Copy)]
enum Release {
    /// It is free at once.
    Free,
    /// It stays with its user until a collector frees it.
    Keep,
}

/// Brings the addresses of an object from those of `old` to those that `new` asks for.
pub async fn change(
    write: &Write<'_>,
    old: Option<&Value>,
    new: &mut Value,
    draft: &mut Draft,
) -> Outcome<()> {
    let plural = write.kind.plural;
    let before = entries(plural, old);
    let mut wanted = entries(plural, Some(new));
    let (Some(member), false) = (member(plural), before.is_empty() && wanted.is_empty()) else {
        return Ok(());
    };
    for entry in &mut wanted {
        let same = |known: &&Value| {
            text(known, "name") == text(entry, "name")
                && text(known, "ipFamily") == text(entry, "ipFamily")
        };
        if text(entry, "ip").is_empty()
            && let Some(ip) = before.iter().find(same).and_then(|known| known.get("ip"))
            && let Some(map) = entry.as_object_mut()
        {
            map.insert("ip".into(), ip.clone());
        }
    }
    let held: Vec<&str> = before.iter().map(|entry| text(entry, "ip")).collect();
    let kept: Vec<String> = wanted
        .iter()
        .map(|entry| text(entry, "ip").to_owned())
        .collect();
    let how = match old {
        Some(old) if reached_data_plane(old) => Release::Keep,
        Some(_) | None => Release::Free,
    };
    for ip in held
        .iter()
        .filter(|ip| !kept.iter().any(|kept| kept == *ip))
    {
        release(write, new, ip, how, draft).await?;
    }
    for (index, entry) in wanted.iter_mut().enumerate() {
        match text(entry, "ip").to_owned() {
            ip if ip.is_empty() => ephemeral(write, new, entry, draft)?,
            ip if held.contains(&ip.as_str()) => {}
            ip => claim(write, new, &ip, (member, index), draft).await?,
        }
    }
    super::set_spec(new, member, Value::Array(wanted));
    Ok(())
}

/// Releases all addresses of a vanishing object. Its finalizers are gone, and with them what used its addresses.
pub async fn release_all(write: &Write<'_>, old: &Value, draft: &mut Draft) -> Outcome<()> {
    for entry in entries(write.kind.plural, Some(old)) {
        release(write, old, text(&entry, "ip"), Release::Free, draft).await?;
    }
    Ok(())
}

/// The reference from an IP to its user.
fn claim_ref(write: &Write<'_>, user: &Value) -> Value {
    json!({
        "group": APINET,
        "resource": write.kind.plural,
        "name": object::metadata_text(user, "name"),
        "uid": object::metadata_text(user, "uid"),
    })
}

fn ephemeral(write: &Write<'_>, user: &Value, entry: &mut Value, draft: &mut Draft) -> Outcome<()> {
    let kind = apinet(write.region, "ips")?;
    let user_name = object::metadata_text(user, "name");
    let name = object::generate_name(&format!("{user_name}-"), &write.region.nature);
    // All addresses of a gateway are of one family, which stands in its spec.
    let of_user = user.pointer("/spec/ipFamily").and_then(Value::as_str);
    let family = of_user.unwrap_or_else(|| text(entry, "ipFamily"));
    let mut ip = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.kind,
        "metadata": {
            "name": name,
            "namespace": write.namespace,
            "uid": write.region.nature.uid(),
            "creationTimestamp": write.region.nature.now_text(),
            "ownerReferences": [{
                "apiVersion": format!("{APINET}/{VERSION}"),
                "kind": write.kind.kind,
                "name": user_name,
                "uid": object::metadata_text(user, "uid"),
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "spec": { "type": "Public", "ipFamily": family, "claimRef": claim_ref(write, user) },
    });
    let lock_claim = claim_of("ips", write.namespace, &ip);
    address::reserve(write.region, &mut ip, lock_claim, draft)?;
    draft.insert(kind, write.namespace, &ip);
    if let (Some(map), Some(address)) = (entry.as_object_mut(), ip.pointer("/spec/ip")) {
        map.insert("ip".into(), address.clone());
    }
    Ok(())
}

/// The IP object that holds an address in this namespace.
async fn holder(write: &Write<'_>, ip: &str) -> Outcome<Option<(Value, u64)>> {
    let region = write.region;
    let Some((lock, _)) = read(region, apinet(region, "ipaddresses")?, "", ip).await? else {
        return Ok(None);
    };
    let reference = |member: &str| {
        lock.pointer(&format!("/spec/claimRef/{member}"))
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    if reference("namespace") != write.namespace || reference("resource") != "ips" {
        return Ok(None);
    }
    let found = read(
        region,
        apinet(region, "ips")?,
        write.namespace,
        reference("name"),
    )
    .await?;
    Ok(found.filter(|(holder, _)| object::metadata_text(holder, "uid") == reference("uid")))
}

async fn claim(
    write: &Write<'_>,
    user: &Value,
    ip: &str,
    (member, index): (&str, usize),
    draft: &mut Draft,
) -> Outcome<()> {
    let name = object::metadata_text(user, "name");
    let uid = object::metadata_text(user, "uid");
    let field = format!("spec.{member}[{index}].ip");
    let refuse = |why: &str| refused((write.kind.group, write.kind.kind), name, &field, ip, why);
    let Some((mut holder, rev)) = holder(write, ip).await? else {
        return Err(refuse("no IP of this namespace holds the address"));
    };
    let claimed = holder
        .pointer("/spec/claimRef/uid")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if object::is_deleting(&holder) {
        return Err(refuse("is already allocated"));
    }
    if !claimed.is_empty() && claimed != uid {
        if is_released(&holder) {
            // It will be free soon, without anybody's doing: worth another try, unlike an address that somebody wants.
            let why = format!("{field}: {ip} is still known to the data plane of its last user");
            let (group, plural) = (write.kind.group, write.kind.plural);
            return Err(Failure::conflict(group, plural, name, &why));
        }
        return Err(refuse("is already allocated"));
    }
    super::set_spec(&mut holder, "claimRef", claim_ref(write, user));
    unmark(&mut holder);
    draft.replace(apinet(write.region, "ips")?, write.namespace, &holder, rev);
    Ok(())
}

/// Whether the user of an IP has let go of it and the data plane perhaps not.
pub fn is_released(ip: &Value) -> bool {
    let annotations = object::metadata(ip, "annotations");
    annotations.is_some_and(|all| all.get(annotation::IP_RELEASED_AT).is_some())
}

fn unmark(ip: &mut Value) {
    let mut annotations = object::metadata(ip, "annotations")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    if annotations.remove(annotation::IP_RELEASED_AT).is_some() {
        object::set_metadata(ip, "annotations", Value::Object(annotations));
    }
}

/// Gives an address up. Free: an ephemeral IP vanishes with its lock, a static one becomes free to claim, or vanishes if it was
/// only waiting for that. Keep: the IP remembers since when nobody wants it; an ephemeral one is being deleted from now on.
async fn release(
    write: &Write<'_>,
    user: &Value,
    ip: &str,
    how: Release,
    draft: &mut Draft,
) -> Outcome<()> {
    if ip.is_empty() {
        return Ok(());
    }
    let uid = object::metadata_text(user, "uid");
    let Some((mut held, rev)) = holder(write, ip).await? else {
        return Ok(());
    };
    if held.pointer("/spec/claimRef/uid").and_then(Value::as_str) != Some(uid) {
        return Ok(());
    }
    let kind = apinet(write.region, "ips")?;
    let owners = object::metadata(&held, "ownerReferences").and_then(Value::as_array);
    let owned = owners.into_iter().flatten().any(|owner| {
        text(owner, "uid") == uid && owner.get("controller").and_then(Value::as_bool) == Some(true)
    });
    let mut finalizers: Vec<Value> = object::finalizers(&held)
        .into_iter()
        .filter(|known| *known != finalizer::IP_IN_USE)
        .map(Value::from)
        .collect();
    match how {
        Release::Free if finalizers.is_empty() && (owned || object::is_deleting(&held)) => {
            let name = object::metadata_text(&held, "name").to_owned();
            draft.remove(kind, write.namespace, &name, rev);
            return super::release_lock(
                write.region,
                "ipaddresses",
                ip,
                object::metadata_text(&held, "uid"),
                draft,
            )
            .await;
        }
        Release::Free => {
            if let Some(spec) = held.get_mut("spec").and_then(Value::as_object_mut) {
                spec.remove("claimRef");
            }
            unmark(&mut held);
        }
        Release::Keep => {
            finalizers.push(json!(finalizer::IP_IN_USE));
            mark(&mut held, owned, &write.region.nature.now_text());
        }
    }
    object::set_finalizers(&mut held, finalizers);
    draft.replace(kind, write.namespace, &held, rev);
    Ok(())
}

/// Marks an IP as released now. One that lived for its user only is being deleted from now on.
fn mark(ip: &mut Value, owned: bool, now: &str) {
    let mut annotations = object::metadata(ip, "annotations")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    annotations.insert(annotation::IP_RELEASED_AT.into(), json!(now));
    object::set_metadata(ip, "annotations", Value::Object(annotations));
    if owned && !object::is_deleting(ip) {
        object::set_metadata(ip, "deletionTimestamp", json!(now));
        object::set_metadata(ip, "deletionGracePeriodSeconds", json!(0));
    }
}
