//! Public addresses of network interfaces: ephemeral ones are IP objects owned by the interface, static ones are claimed.
//!
//! Everything happens in the transaction that writes the interface. An entry without address that keeps its name and family keeps
//! its address, so that re-applying a manifest never moves it.

use super::{Draft, address, apinet, claim_of, read, refused};
use crate::object;
use crate::registry::Write;
use crate::status::Outcome;
use api::names::{APINET, VERSION};
use serde_json::{Value, json};

/// Keeps an IP object that is being deleted until its user lets go of the address.
pub const IN_USE: &str = "apinet.openkcm.dev/ip-in-use";

fn entries(nic: Option<&Value>) -> Vec<Value> {
    let list = nic
        .and_then(|nic| nic.pointer("/spec/publicIPs"))
        .and_then(Value::as_array);
    list.cloned().unwrap_or_default()
}

fn text<'a>(entry: &'a Value, member: &str) -> &'a str {
    entry
        .get(member)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Brings the addresses of an interface from those of `old` to those that `new` asks for.
pub async fn change(
    write: &Write<'_>,
    old: Option<&Value>,
    new: &mut Value,
    draft: &mut Draft,
) -> Outcome<()> {
    let before = entries(old);
    let mut wanted = entries(Some(new));
    if before.is_empty() && wanted.is_empty() {
        return Ok(());
    }
    for entry in &mut wanted {
        let same = |known: &&Value| {
            text(known, "name") == text(entry, "name")
                && text(known, "ipFamily") == text(entry, "ipFamily")
        };
        if text(entry, "ip").is_empty()
            && let Some(known) = before.iter().find(same)
        {
            *entry = known.clone();
        }
    }
    let held: Vec<&str> = before.iter().map(|entry| text(entry, "ip")).collect();
    let kept: Vec<String> = wanted
        .iter()
        .map(|entry| text(entry, "ip").to_owned())
        .collect();
    for ip in held
        .iter()
        .filter(|ip| !kept.iter().any(|kept| kept == *ip))
    {
        release(write, new, ip, draft).await?;
    }
    for (index, entry) in wanted.iter_mut().enumerate() {
        match text(entry, "ip").to_owned() {
            ip if ip.is_empty() => ephemeral(write, new, entry, draft)?,
            ip if held.contains(&ip.as_str()) => {}
            ip => claim(write, new, &ip, index, draft).await?,
        }
    }
    super::set_spec(new, "publicIPs", Value::Array(wanted));
    Ok(())
}

/// Releases all addresses of a vanishing interface.
pub async fn release_all(write: &Write<'_>, old: &Value, draft: &mut Draft) -> Outcome<()> {
    for entry in entries(Some(old)) {
        release(write, old, text(&entry, "ip"), draft).await?;
    }
    Ok(())
}

fn ephemeral(write: &Write<'_>, nic: &Value, entry: &mut Value, draft: &mut Draft) -> Outcome<()> {
    let kind = apinet(write.region, "ips")?;
    let nic_name = object::metadata_text(nic, "name");
    let name = object::generate_name(&format!("{nic_name}-"));
    let claim = json!({
        "group": APINET,
        "resource": "networkinterfaces",
        "name": nic_name,
        "uid": object::metadata_text(nic, "uid"),
    });
    let mut ip = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.kind,
        "metadata": {
            "name": name,
            "namespace": write.namespace,
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": object::now_text(),
            "ownerReferences": [{
                "apiVersion": format!("{APINET}/{VERSION}"),
                "kind": "NetworkInterface",
                "name": nic_name,
                "uid": object::metadata_text(nic, "uid"),
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "spec": { "type": "Public", "ipFamily": text(entry, "ipFamily"), "claimRef": claim },
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
    nic: &Value,
    ip: &str,
    index: usize,
    draft: &mut Draft,
) -> Outcome<()> {
    let name = object::metadata_text(nic, "name");
    let field = format!("spec.publicIPs[{index}].ip");
    let refuse = |why: &str| refused((write.kind.group, write.kind.kind), name, &field, ip, why);
    let Some((mut holder, rev)) = holder(write, ip).await? else {
        return Err(refuse("no IP of this namespace holds the address"));
    };
    let claimed = holder
        .pointer("/spec/claimRef/uid")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if object::is_deleting(&holder)
        || (!claimed.is_empty() && claimed != object::metadata_text(nic, "uid"))
    {
        return Err(refuse("is already allocated"));
    }
    let claim = json!({
        "group": APINET,
        "resource": "networkinterfaces",
        "name": name,
        "uid": object::metadata_text(nic, "uid"),
    });
    super::set_spec(&mut holder, "claimRef", claim);
    draft.replace(apinet(write.region, "ips")?, write.namespace, &holder, rev);
    Ok(())
}

/// Gives an address up: an ephemeral IP vanishes with its lock, a static one becomes free to claim, or vanishes if it was only
/// waiting for that.
async fn release(write: &Write<'_>, nic: &Value, ip: &str, draft: &mut Draft) -> Outcome<()> {
    if ip.is_empty() {
        return Ok(());
    }
    let uid = object::metadata_text(nic, "uid");
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
    let finalizers: Vec<Value> = object::metadata(&held, "finalizers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|finalizer| *finalizer != IN_USE)
        .cloned()
        .collect();
    if finalizers.is_empty() && (owned || object::is_deleting(&held)) {
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
    object::set_finalizers(&mut held, finalizers);
    if let Some(spec) = held.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("claimRef");
    }
    draft.replace(kind, write.namespace, &held, rev);
    Ok(())
}
