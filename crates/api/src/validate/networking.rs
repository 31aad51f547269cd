//! Rules of `networking.openkcm.dev`.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    At, Errors, dns_label, dns_subdomain, immutable, ipam, object_name, reference, set_once,
    syntax, template_meta, unique,
};
use crate::field::FieldError;
use crate::ids;
use crate::meta::IpFamily;

/// A new Network.
pub fn network(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let root = At::root(object);
    let spec = root.field("spec");
    let own = (
        root.field("metadata").field("namespace").text(),
        object_name(object),
    );
    let mut targets = HashSet::new();
    let mut prefix_names = HashSet::new();
    let mut prefix_refs = HashSet::new();
    for peering in spec.field("peerings").items() {
        syntax(&peering.field("name"), dns_subdomain, &mut errors);
        let peer = peering.field("networkRef");
        reference(&peer, dns_subdomain, &mut errors);
        syntax(&peer.field("namespace"), optional_label, &mut errors);
        peer_target(&peer, own, &mut targets, &mut errors);
        for prefix in peering.field("prefixes").items() {
            let name = prefix.field("name");
            syntax(&name, dns_subdomain, &mut errors);
            if !name.is_empty() && !prefix_names.insert(name.text()) {
                errors.push(FieldError::duplicate(name.path.clone(), name.text()));
            }
            let source = prefix.field("prefixRef");
            let name = source.field("name");
            // Entries without a reference do not collide with each other.
            if !name.is_empty() {
                syntax(&name, dns_subdomain, &mut errors);
                if !prefix_refs.insert(name.text()) {
                    errors.push(FieldError::duplicate(source.path, name.text()));
                }
            }
        }
    }
    let mut claims = HashSet::new();
    for claim in spec.field("incomingPeerings").items() {
        let name = claim.field("name");
        if name.is_empty() {
            errors.push(FieldError::required(name.path, ""));
        } else {
            syntax(&name, dns_subdomain, &mut errors);
        }
        syntax(&claim.field("namespace"), optional_label, &mut errors);
        peer_target(&claim, own, &mut claims, &mut errors);
    }
    errors
}

fn optional_label(text: &str) -> Option<String> {
    if text.is_empty() {
        None
    } else {
        dns_label(text)
    }
}

/// A peer must be another network, and every peer may be named once.
fn peer_target<'a>(
    at: &At<'a>,
    own: (&'a str, &'a str),
    seen: &mut HashSet<(&'a str, &'a str)>,
    errors: &mut Errors,
) {
    let name = at.field("name").text();
    let namespace = Some(at.field("namespace").text())
        .filter(|ns| !ns.is_empty())
        .unwrap_or(own.0);
    if name.is_empty() {
        return;
    }
    if (namespace, name) == own {
        errors.push(FieldError::forbidden(
            at.path.clone(),
            "a network cannot peer with itself",
        ));
    } else if !seen.insert((namespace, name)) {
        errors.push(FieldError::duplicate(
            at.path.clone(),
            at.value.cloned().unwrap_or_default(),
        ));
    }
}

/// A changed Network.
pub fn network_update(new: &Value, old: &Value) -> Errors {
    let mut errors = network(new);
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    set_once(&new, &old, &["providerID"], &mut errors);
    errors
}

/// A new NetworkInterface.
pub fn nic(object: &Value) -> Errors {
    let mut errors = Vec::new();
    nic_spec(
        &At::root(object).field("spec"),
        object_name(object),
        &mut errors,
    );
    errors
}

/// A changed NetworkInterface.
pub fn nic_update(new: &Value, old: &Value) -> Errors {
    let mut errors = nic(new);
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    immutable(
        &new,
        &old,
        &["networkRef", "ipFamilies", "attributes"],
        &mut errors,
    );
    errors
}

/// Spec of a NetworkInterface named `name`, also inside a Machine. An empty name is not known yet.
pub fn nic_spec(spec: &At<'_>, name: &str, errors: &mut Errors) {
    reference(&spec.field("networkRef"), dns_subdomain, errors);
    syntax(&spec.field("machineRef").field("name"), dns_label, errors);
    let families = spec.field("ipFamilies");
    if families.is_empty() {
        errors.push(FieldError::required(families.path.clone(), ""));
    }
    unique(&families, errors);
    let ips = spec.field("ips");
    if ips.len() != families.len() {
        let detail = "must have one entry for each entry of ipFamilies";
        errors.push(FieldError::invalid(
            ips.path.clone(),
            ips.value.cloned().unwrap_or_default(),
            detail,
        ));
    }
    let family_list: Vec<Option<IpFamily>> = families.items().map(|item| item.family()).collect();
    for (i, source) in ips.items().enumerate() {
        let family = family_list.get(i).copied().flatten();
        derived_name(
            &source,
            name,
            || ids::ephemeral_ip_prefix_name(name, i),
            errors,
        );
        ip_source(&source, family, errors);
    }
    for (i, source) in spec.field("prefixes").items().enumerate() {
        derived_name(
            &source,
            name,
            || ids::ephemeral_prefix_name(name, i),
            errors,
        );
        one_of(&source, &["value", "ephemeral"], errors);
        let ephemeral = source.field("ephemeral");
        if ephemeral.is_present() {
            ipam::prefix_template(&ephemeral.field("prefixTemplate"), None, errors);
        }
    }
    virtual_ip_source(&spec.field("virtualIP"), errors);
}

/// Exactly one of the fields is given.
fn one_of(at: &At<'_>, fields: &[&str], errors: &mut Errors) {
    let given = fields
        .iter()
        .filter(|name| at.field(name).is_present())
        .count();
    if given != 1 {
        let detail = format!("exactly one of {} must be set", fields.join(", "));
        errors.push(FieldError::invalid(
            at.path.clone(),
            at.value.cloned().unwrap_or_default(),
            detail,
        ));
    }
}

/// The name of the Prefix made for an ephemeral source must be a possible name.
pub(super) fn derived_name(
    source: &At<'_>,
    owner: &str,
    name: impl Fn() -> String,
    errors: &mut Errors,
) {
    if owner.is_empty() || !source.field("ephemeral").is_present() {
        return;
    }
    let name = name();
    if let Some(detail) = dns_subdomain(&name) {
        errors.push(FieldError::invalid(source.path.clone(), name, detail));
    }
}

pub(super) fn ip_source(source: &At<'_>, family: Option<IpFamily>, errors: &mut Errors) {
    one_of(source, &["value", "ephemeral"], errors);
    let value = source.field("value");
    if let (Some(ip), Some(family)) = (value.ip(), family)
        && ip.family() != family
    {
        let detail = format!("must be an {family} address");
        errors.push(FieldError::invalid(
            value.path.clone(),
            value.text(),
            detail,
        ));
    }
    let ephemeral = source.field("ephemeral");
    if ephemeral.is_present() {
        ipam::prefix_template(&ephemeral.field("prefixTemplate"), Some(family), errors);
    }
}

fn virtual_ip_source(source: &At<'_>, errors: &mut Errors) {
    if !source.is_present() {
        return;
    }
    one_of(source, &["virtualIPRef", "ephemeral"], errors);
    let reference_to = source.field("virtualIPRef");
    if reference_to.is_present() {
        reference(&reference_to, dns_label, errors);
    }
    let ephemeral = source.field("ephemeral");
    if !ephemeral.is_present() {
        return;
    }
    let template = ephemeral.field("virtualIPTemplate");
    if !template.is_present() {
        errors.push(FieldError::required(template.path, ""));
        return;
    }
    template_meta(&template.field("metadata"), errors);
    virtual_ip_spec(&template.field("spec"), errors);
}

/// A new VirtualIP.
pub fn virtual_ip(object: &Value) -> Errors {
    let mut errors = Vec::new();
    virtual_ip_spec(&At::root(object).field("spec"), &mut errors);
    errors
}

fn virtual_ip_spec(spec: &At<'_>, errors: &mut Errors) {
    for name in ["type", "ipFamily"] {
        let field = spec.field(name);
        if field.is_empty() {
            errors.push(FieldError::required(field.path, ""));
        }
    }
    let target = spec.field("targetRef");
    if target.is_present() {
        reference(&target, dns_subdomain, errors);
    }
}

/// A changed VirtualIP.
pub fn virtual_ip_update(new: &Value, old: &Value) -> Errors {
    let mut errors = virtual_ip(new);
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    immutable(&new, &old, &["type", "ipFamily"], &mut errors);
    errors
}
