//! Rules of `core.apinet.openkcm.dev`.

use serde_json::Value;

use super::{At, Errors, dns_label, immutable, object_name, required, syntax};
use crate::field::FieldError;
use crate::meta::IpFamily;

/// A new IP. Whether the address belongs to the region and is free is decided by the reservation.
pub fn ip(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    required(&spec.field("type"), &mut errors);
    let family = spec.field("ipFamily");
    required(&family, &mut errors);
    family_match(&family, &spec.field("ip"), &mut errors);
    errors
}

/// The address must be of the family.
pub(super) fn family_match(family: &At<'_>, ip: &At<'_>, errors: &mut Errors) {
    if let (Some(family), Some(value)) = (family.family(), ip.ip())
        && value.family() != family
    {
        errors.push(FieldError::invalid(
            ip.path.clone(),
            ip.text(),
            format!("must be an {family} address"),
        ));
    }
}

/// A changed IP.
pub fn ip_update(new: &Value, old: &Value) -> Errors {
    let mut errors = ip(new);
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    immutable(&new, &old, &["type", "ipFamily", "ip"], &mut errors);
    errors
}

/// A new IPAddress.
pub fn ip_address(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let ip = At::root(object).field("spec").field("ip");
    let name = object_name(object);
    if ip.is_empty() {
        errors.push(FieldError::required(ip.path, ""));
    } else if ip.ip().is_some_and(|ip| ip.to_string() != name) {
        errors.push(FieldError::invalid(
            ip.path.clone(),
            ip.text(),
            "must equal metadata.name",
        ));
    }
    errors
}

/// A changed lock object.
pub fn lock_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Vec::new();
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    immutable(&new, &old, &["ip", "claimRef"], &mut errors);
    errors
}

/// A new Network. Whether the VNI is in range and free is decided by the reservation.
pub fn network(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    let mut vni = |at: &At<'_>| {
        if !at.is_empty()
            && let Some(detail) = vni_problem(at.text())
        {
            errors.push(FieldError::invalid(at.path.clone(), at.text(), detail));
        }
    };
    vni(&spec.field("id"));
    for peering in spec.field("peerings").items() {
        vni(&peering.field("id"));
    }
    errors
}

/// Why a text is no VNI: decimal, canonical, 1 to 2^24 - 1 (RFC 7348 §5: 24 bits; 0 is the underlay).
pub fn vni_problem(text: &str) -> Option<String> {
    let number: Option<u32> = text.parse().ok().filter(|n: &u32| n.to_string() == text);
    match number {
        Some(1..=0x00ff_ffff) => None,
        Some(_) | None => Some("must be a decimal number from 1 to 16777215".into()),
    }
}

/// A changed Network. An empty id may be filled in by the reservation.
pub fn network_update(new: &Value, old: &Value) -> Errors {
    let mut errors = network(new);
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    immutable(&new, &old, &["id"], &mut errors);
    errors
}

/// A new NetworkID.
pub fn network_id(_object: &Value) -> Errors {
    Vec::new()
}

/// A new NetworkInterface.
pub fn nic(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    for name in ["nodeRef", "networkRef"] {
        named(&spec.field(name), &mut errors);
    }
    let ips = spec.field("ips");
    once_per_family(
        ips.items()
            .map(|item| (item.ip().map(|ip| ip.family()), item)),
        &mut errors,
    );
    let hostname = spec.field("hostname");
    if !hostname.is_empty() {
        syntax(&hostname, dns_label, &mut errors);
    }
    for public in spec.field("publicIPs").items() {
        let family = public.field("ipFamily");
        required(&family, &mut errors);
        family_match(&family, &public.field("ip"), &mut errors);
    }
    // A family leaves either by a public address or by a NAT gateway, never by both.
    let (public, nat) = (spec.field("publicIPs"), spec.field("natGateways"));
    let outward = public.items().chain(nat.items()).map(|item| {
        let family = item.field("ipFamily");
        (family.family(), family)
    });
    once_per_family(outward, &mut errors);
    errors
}

/// A reference must be there and name something.
pub(super) fn named(reference: &At<'_>, errors: &mut Errors) {
    if reference.is_present() {
        required(&reference.field("name"), errors);
    } else {
        required(reference, errors);
    }
}

fn once_per_family<'a>(
    items: impl Iterator<Item = (Option<IpFamily>, At<'a>)>,
    errors: &mut Errors,
) {
    let mut seen = Vec::new();
    for (family, item) in items {
        let Some(family) = family else { continue };
        if seen.contains(&family) {
            errors.push(FieldError::duplicate(
                item.path,
                item.value.cloned().unwrap_or_default(),
            ));
        } else {
            seen.push(family);
        }
    }
}

/// A changed NetworkInterface.
pub fn nic_update(new: &Value, old: &Value) -> Errors {
    let mut errors = nic(new);
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    immutable(
        &new,
        &old,
        &["nodeRef", "networkRef", "ips", "hostname"],
        &mut errors,
    );
    errors
}
