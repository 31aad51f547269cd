//! Rules of `networking.metalnet.openkcm.dev`. The reference has only a schema here; the few rules below
//! stop values that would make dpservice refuse the object for ever.

use serde_json::Value;

use super::{At, Errors, dns_subdomain, reference, unique};
use crate::field::FieldError;

/// A new or changed NetworkInterface.
pub fn nic(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    reference(&spec.field("networkRef"), dns_subdomain, &mut errors);
    let (families, ips) = (spec.field("ipFamilies"), spec.field("ips"));
    unique(&families, &mut errors);
    if ips.is_present() && families.is_present() && ips.len() != families.len() {
        let detail = "must have one entry for each entry of ipFamilies";
        errors.push(FieldError::invalid(
            ips.path.clone(),
            ips.value.cloned().unwrap_or_default(),
            detail,
        ));
    }
    for (family, ip) in families.items().zip(ips.items()) {
        if let (Some(family), Some(value)) = (family.family(), ip.ip())
            && value.family() != family
        {
            let detail = format!("must be an {family} address");
            errors.push(FieldError::invalid(ip.path.clone(), ip.text(), detail));
        }
    }
    let nat = spec.field("nat");
    if let (Some(port), Some(end)) = (nat.field("port").int(), nat.field("endPort").int())
        && end <= port
    {
        errors.push(FieldError::invalid(
            nat.field("endPort").path,
            end,
            "must be greater than port",
        ));
    }
    errors
}

/// A changed NetworkInterface.
pub fn nic_update(new: &Value, _old: &Value) -> Errors {
    nic(new)
}

/// A new or changed LoadBalancer.
pub fn load_balancer(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    if spec.is_present() {
        reference(&spec.field("networkRef"), dns_subdomain, &mut errors);
    }
    errors
}

/// A changed LoadBalancer.
pub fn load_balancer_update(new: &Value, _old: &Value) -> Errors {
    load_balancer(new)
}
