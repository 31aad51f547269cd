//! Rules of `networking.openkcm.dev` for the services of a network.

use serde_json::Value;

use super::networking::{derived_name, ip_source};
use super::{
    At, Errors, dns_subdomain, immutable, label_selector, object_name, reference, required, unique,
};
use crate::field::FieldError;
use crate::ids;
use crate::meta::IpFamily;

const PORT_MAX: i64 = 65535;
/// A port block above this does not fit twice into the ports of an address, so it would serve nobody but one interface.
const NAT_PORTS_MAX: i64 = 32768;

/// A new LoadBalancer.
pub fn load_balancer(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    required(&spec.field("type"), &mut errors);
    reference(&spec.field("networkRef"), dns_subdomain, &mut errors);
    let families = spec.field("ipFamilies");
    required(&families, &mut errors);
    unique(&families, &mut errors);
    let list: Vec<Option<IpFamily>> = families.items().map(|item| item.family()).collect();
    let name = object_name(object);
    for (i, source) in spec.field("ips").items().enumerate() {
        let prefix = || ids::ephemeral_ip_prefix_name(name, i);
        derived_name(&source, name, prefix, &mut errors);
        ip_source(&source, list.get(i).copied().flatten(), &mut errors);
    }
    label_selector(&spec.field("networkInterfaceSelector"), &mut errors);
    balanced_ports(&spec.field("ports"), &mut errors);
    errors
}

/// Every port is checked by itself, and against all before it.
fn balanced_ports(ports: &At<'_>, errors: &mut Errors) {
    let mut seen: Vec<(&str, i64, i64)> = Vec::new();
    for item in ports.items() {
        let port = item.field("port");
        if let Some(n) = port.int() {
            port_number(&port, n, errors);
        }
        let last = range_end(&item, errors);
        let (Some(first), Some(last)) = (port.int(), last.or(port.int())) else {
            continue;
        };
        let protocol = protocol(&item);
        let other = seen
            .iter()
            .find(|(known, from, to)| *known == protocol && first <= *to && *from <= last);
        if let Some((_, from, to)) = other {
            let detail = format!("overlaps with {protocol} {from}-{to}");
            errors.push(FieldError::forbidden(item.path.clone(), detail));
        }
        seen.push((protocol, first, last));
    }
}

fn protocol<'a>(port: &At<'a>) -> &'a str {
    match port.field("protocol").text() {
        "" => "TCP",
        word => word,
    }
}

fn port_number(at: &At<'_>, n: i64, errors: &mut Errors) {
    if !(1..=PORT_MAX).contains(&n) {
        let detail = format!("must be between 1 and {PORT_MAX}, inclusive");
        errors.push(FieldError::invalid(at.path.clone(), n, detail));
    }
}

/// The last port of a range, if it is one: it needs a first port and may not lie before it.
fn range_end(item: &At<'_>, errors: &mut Errors) -> Option<i64> {
    let (port, end) = (item.field("port"), item.field("endPort"));
    let last = end.int()?;
    match port.int().filter(|first| *first != 0) {
        None => {
            let detail = "may not be set without port";
            errors.push(FieldError::forbidden(end.path, detail));
            return None;
        }
        Some(first) if last < first => {
            let detail = "must be greater than or equal to port";
            errors.push(FieldError::forbidden(end.path, detail));
            return None;
        }
        Some(_) => port_number(&end, last, errors),
    }
    Some(last)
}

/// A changed LoadBalancer. The type cannot change, because the addresses of the other type are other objects.
pub fn load_balancer_update(new: &Value, old: &Value) -> Errors {
    let mut errors = load_balancer(new);
    fixed(new, old, &["type", "networkRef"], &mut errors);
    errors
}

fn fixed(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    immutable(&new, &old, fields, errors);
}

/// A LoadBalancerRouting, new or changed.
pub fn load_balancer_routing(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let root = At::root(object);
    let network = root.field("networkRef");
    if network.is_present() {
        reference(&network, dns_subdomain, &mut errors);
        required(&network.field("uid"), &mut errors);
    }
    for destination in root.field("destinations").items() {
        let target = destination.field("targetRef");
        if target.is_present() {
            reference(&target, dns_subdomain, &mut errors);
        }
    }
    errors
}

/// A changed LoadBalancerRouting.
pub fn load_balancer_routing_update(new: &Value, _old: &Value) -> Errors {
    load_balancer_routing(new)
}

/// A new NATGateway.
pub fn nat_gateway(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    required(&spec.field("type"), &mut errors);
    required(&spec.field("ipFamily"), &mut errors);
    reference(&spec.field("networkRef"), dns_subdomain, &mut errors);
    let ports = spec.field("portsPerNetworkInterface");
    if let Some(n) = ports.int() {
        let power = u64::try_from(n).is_ok_and(u64::is_power_of_two);
        if !power || !(2..=NAT_PORTS_MAX).contains(&n) {
            let detail = format!("must be a power of two from 2 to {NAT_PORTS_MAX}");
            errors.push(FieldError::invalid(ports.path, n, detail));
        }
    }
    errors
}

/// A changed NATGateway.
pub fn nat_gateway_update(new: &Value, old: &Value) -> Errors {
    let mut errors = nat_gateway(new);
    fixed(new, old, &["type", "ipFamily", "networkRef"], &mut errors);
    errors
}

/// A new NetworkPolicy.
pub fn network_policy(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    reference(&spec.field("networkRef"), dns_subdomain, &mut errors);
    label_selector(&spec.field("networkInterfaceSelector"), &mut errors);
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.field(rules).items() {
            for peer in rule.field(peers).items() {
                policy_peer(&peer, &mut errors);
            }
            for port in rule.field("ports").items() {
                policy_port(&port, &mut errors);
            }
        }
    }
    let types = spec.field("policyTypes");
    required(&types, &mut errors);
    unique(&types, &mut errors);
    errors
}

/// Exactly one source: a peer that says nothing could be read as nobody or as everybody.
fn policy_peer(peer: &At<'_>, errors: &mut Errors) {
    let (objects, block) = (peer.field("objectSelector"), peer.field("ipBlock"));
    if !objects.is_present() && !block.is_present() {
        let detail = "must specify objectSelector or ipBlock";
        errors.push(FieldError::required(peer.path.clone(), detail));
    }
    if objects.is_present() {
        required(&objects.field("kind"), errors);
        label_selector(&objects, errors);
    }
    if objects.is_present() && block.is_present() {
        let detail = "may not be set together with objectSelector";
        errors.push(FieldError::forbidden(block.path.clone(), detail));
    }
    let cidr = block.field("cidr");
    for except in block.field("except").items() {
        if let (Some(whole), Some(part)) = (cidr.prefix(), except.prefix())
            && !whole.contains(part)
        {
            let detail = format!("must lie inside {}", cidr.text());
            errors.push(FieldError::forbidden(except.path, detail));
        }
    }
}

fn policy_port(item: &At<'_>, errors: &mut Errors) {
    let port = item.field("port");
    if let Some(n) = port.int().filter(|n| *n != 0) {
        port_number(&port, n, errors);
    }
    range_end(item, errors);
}

/// A changed NetworkPolicy.
pub fn network_policy_update(new: &Value, old: &Value) -> Errors {
    let mut errors = network_policy(new);
    fixed(new, old, &["networkRef"], &mut errors);
    errors
}
