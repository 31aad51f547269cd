//! Rules of `core.apinet.openkcm.dev` for load balancers, NAT gateways and network policies.

use std::collections::BTreeMap;

use serde_json::Value;

use super::apinet::{family_match, named};
use super::{
    At, Errors, dns_label, dns_subdomain, immutable, label_selector, name, reference, required,
    set_once, template_meta, unique,
};
use crate::apinet::NAT_PORTS;
use crate::field::FieldError;
use crate::meta::{LabelSelector, selects};

const PORT_MAX: i64 = 65535;
/// Smallest port block: the data plane's ranges have two ports at least.
const BLOCK_MIN: i64 = 2;

/// A new LoadBalancer.
pub fn load_balancer(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    required(&spec.field("type"), &mut errors);
    reference(&spec.field("networkRef"), dns_subdomain, &mut errors);
    let internal = spec.field("type").text() == "Internal";
    for entry in spec.field("ips").items() {
        let (family, ip) = (entry.field("ipFamily"), entry.field("ip"));
        required(&entry.field("name"), &mut errors);
        required(&family, &mut errors);
        family_match(&family, &ip, &mut errors);
        if internal {
            required(&ip, &mut errors);
        }
    }
    each_address_once(&spec.field("ips"), &mut errors);
    balanced_ports(&spec.field("ports"), &mut errors);
    chosen_template(&spec, "selector", &mut errors);
    errors
}

/// A changed LoadBalancer.
pub fn load_balancer_update(new: &Value, old: &Value) -> Errors {
    let mut errors = load_balancer(new);
    fixed(new, old, &["type", "networkRef", "selector"], &mut errors);
    errors
}

fn each_address_once(entries: &At<'_>, errors: &mut Errors) {
    let mut seen = Vec::new();
    for ip in entries.items().map(|entry| entry.field("ip")) {
        let Some(value) = ip.ip() else { continue };
        if seen.contains(&value) {
            errors.push(FieldError::duplicate(ip.path.clone(), ip.text()));
        }
        seen.push(value);
    }
}

fn fixed(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    immutable(&new, &old, fields, errors);
}

/// A selector must be there, and the template's labels must satisfy it: otherwise the Instances made from the template would not
/// belong to whoever made them, and be made again for ever.
fn chosen_template(spec: &At<'_>, selector: &str, errors: &mut Errors) {
    let (selector, template) = (spec.field(selector), spec.field("template"));
    let metadata = template.field("metadata");
    template_meta(&metadata, errors);
    placement(&template.field("spec"), errors);
    if !selector.is_present() {
        errors.push(FieldError::required(selector.path, ""));
        return;
    }
    let before = errors.len();
    label_selector(&selector, errors);
    if errors.len() > before {
        return;
    }
    let labels = metadata.field("labels");
    let labels: BTreeMap<String, String> = labels
        .entries()
        .filter_map(|(key, value)| Some((key.to_owned(), value.as_str()?.to_owned())))
        .collect();
    let parsed = selector
        .value
        .and_then(|value| serde_json::from_value::<LabelSelector>(value.clone()).ok());
    if parsed.is_some_and(|parsed| !selects(&parsed, &labels)) {
        let path = format!("{}.labels", metadata.path);
        let value = serde_json::to_value(&labels).unwrap_or_default();
        errors.push(FieldError::invalid(
            path,
            value,
            "selector does not match template labels",
        ));
    }
}

fn balanced_ports(ports: &At<'_>, errors: &mut Errors) {
    for item in ports.items() {
        let port = item.field("port");
        if let Some(n) = port.int() {
            port_number(&port, n, errors);
        }
        port_range(&item, errors);
    }
}

fn port_number(at: &At<'_>, n: i64, errors: &mut Errors) {
    if !(1..=PORT_MAX).contains(&n) {
        let detail = format!("must be between 1 and {PORT_MAX}, inclusive");
        errors.push(FieldError::invalid(at.path.clone(), n, detail));
    }
}

/// A last port needs a first one that is not behind it.
fn port_range(item: &At<'_>, errors: &mut Errors) {
    let (port, end) = (item.field("port"), item.field("endPort"));
    let Some(last) = end.int() else { return };
    match port.int().filter(|first| *first != 0) {
        None => errors.push(FieldError::forbidden(
            end.path,
            "may not be set without port",
        )),
        Some(first) if last < first => {
            let detail = "must be greater than or equal to port";
            errors.push(FieldError::invalid(end.path, last, detail));
        }
        Some(_) => port_number(&end, last, errors),
    }
}

/// Affinity and spread of an Instance or a template of one. What is wrong here would only be found by the scheduler, which can tell
/// nobody.
fn placement(spec: &At<'_>, errors: &mut Errors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let affinity = spec.field("affinity");
    let selector = affinity.field("nodeAffinity").field(REQUIRED);
    if selector.is_present() {
        required(&selector.field("nodeSelectorTerms"), errors);
    }
    for term in selector.field("nodeSelectorTerms").items() {
        for item in term.field("matchExpressions").items() {
            syntax_of_key(&item.field("key"), errors);
            requirement(&item, errors);
        }
        for item in term.field("matchFields").items() {
            let key = item.field("key");
            if key.text() != "metadata.name" {
                errors.push(FieldError::not_supported(
                    key.path.clone(),
                    key.text(),
                    &["metadata.name"],
                ));
            }
            let operator = item.field("operator");
            if !matches!(operator.text(), "In" | "NotIn") {
                errors.push(FieldError::not_supported(
                    operator.path.clone(),
                    operator.text(),
                    &["In", "NotIn"],
                ));
            }
            requirement(&item, errors);
        }
    }
    let anti = affinity.field("instanceAntiAffinity").field(REQUIRED);
    for term in anti.items() {
        topology(&term, errors);
    }
    for constraint in spec.field("topologySpreadConstraints").items() {
        topology(&constraint, errors);
    }
    balanced_ports(&spec.field("loadBalancerPorts"), errors);
}

fn topology(term: &At<'_>, errors: &mut Errors) {
    let key = term.field("topologyKey");
    required(&key, errors);
    syntax_of_key(&key, errors);
    label_selector(&term.field("labelSelector"), errors);
}

fn syntax_of_key(key: &At<'_>, errors: &mut Errors) {
    if !key.is_empty() {
        super::syntax(key, name::qualified_name, errors);
    }
}

fn requirement(item: &At<'_>, errors: &mut Errors) {
    required(&item.field("key"), errors);
    let values = item.field("values");
    match item.field("operator").text() {
        "In" | "NotIn" if values.is_empty() => {
            let detail = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.push(FieldError::required(values.path, detail));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(values.path, detail));
        }
        "Gt" | "Lt" => {
            let one = (values.len() == 1)
                .then(|| values.items().next())
                .flatten()
                .is_some_and(|value| value.text().parse::<i64>().is_ok());
            if !one {
                let detail = "must be one whole number when `operator` is 'Gt' or 'Lt'";
                errors.push(FieldError::invalid(
                    values.path.clone(),
                    values.value.cloned().unwrap_or_default(),
                    detail,
                ));
            }
        }
        _ => {}
    }
}

/// A new Instance.
pub fn instance(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    required(&spec.field("type"), &mut errors);
    required(&spec.field("loadBalancerType"), &mut errors);
    reference(&spec.field("networkRef"), dns_subdomain, &mut errors);
    let node = spec.field("nodeRef");
    if node.is_present() {
        reference(&node, dns_subdomain, &mut errors);
    }
    unique(&spec.field("ips"), &mut errors);
    placement(&spec, &mut errors);
    errors
}

/// A changed Instance. The Node can be set once.
pub fn instance_update(new: &Value, old: &Value) -> Errors {
    let mut errors = instance(new);
    fixed(
        new,
        old,
        &["type", "loadBalancerType", "networkRef"],
        &mut errors,
    );
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    set_once(&new, &old, &["nodeRef"], &mut errors);
    errors
}

/// A DaemonSet.
pub fn daemon_set(object: &Value) -> Errors {
    let mut errors = Vec::new();
    chosen_template(&At::root(object).field("spec"), "nodeSelector", &mut errors);
    errors
}

/// A changed DaemonSet.
pub fn daemon_set_update(new: &Value, _old: &Value) -> Errors {
    daemon_set(new)
}

/// A LoadBalancerRouting.
pub fn routing(object: &Value) -> Errors {
    let mut errors = Vec::new();
    for destination in At::root(object).field("destinations").items() {
        target(&destination.field("targetRef"), &mut errors);
    }
    errors
}

/// A changed LoadBalancerRouting.
pub fn routing_update(new: &Value, _old: &Value) -> Errors {
    routing(new)
}

fn target(reference: &At<'_>, errors: &mut Errors) {
    if reference.is_present() {
        required(&reference.field("uid"), errors);
        required(&reference.field("name"), errors);
    }
}

/// A new NATGateway.
pub fn nat_gateway(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    let family = spec.field("ipFamily");
    required(&family, &mut errors);
    reference(&spec.field("networkRef"), dns_subdomain, &mut errors);
    for entry in spec.field("ips").items() {
        required(&entry.field("name"), &mut errors);
        family_match(&family, &entry.field("ip"), &mut errors);
    }
    each_address_once(&spec.field("ips"), &mut errors);
    let ports = spec.field("portsPerNetworkInterface");
    let most = i64::from(NAT_PORTS);
    if let Some(n) = ports.int().filter(|n| !(BLOCK_MIN..=most).contains(n)) {
        let detail = format!("must be between {BLOCK_MIN} and {most}, inclusive");
        errors.push(FieldError::invalid(ports.path, n, detail));
    }
    errors
}

/// A changed NATGateway.
pub fn nat_gateway_update(new: &Value, old: &Value) -> Errors {
    let mut errors = nat_gateway(new);
    fixed(new, old, &["ipFamily", "networkRef"], &mut errors);
    errors
}

/// A new NATGatewayAutoscaler. An absent maximum sets no bound.
pub fn autoscaler(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    reference(&spec.field("natGatewayRef"), dns_subdomain, &mut errors);
    let (min, max) = (spec.field("minPublicIPs"), spec.field("maxPublicIPs"));
    for bound in [&min, &max] {
        if let Some(n) = bound.int().filter(|n| *n < 0) {
            let detail = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(bound.path.clone(), n, detail));
        }
    }
    if let (Some(least), Some(most)) = (min.int(), max.int())
        && most < least
    {
        let detail = "must be greater than or equal to minPublicIPs";
        errors.push(FieldError::invalid(max.path, most, detail));
    }
    errors
}

/// A changed NATGatewayAutoscaler.
pub fn autoscaler_update(new: &Value, old: &Value) -> Errors {
    let mut errors = autoscaler(new);
    fixed(new, old, &["natGatewayRef"], &mut errors);
    errors
}

/// A NATTable. Blocks of one address may not overlap, whoever writes the table.
pub fn nat_table(object: &Value) -> Errors {
    let mut errors = Vec::new();
    for address in At::root(object).field("ips").items() {
        let mut seen: Vec<(i64, i64)> = Vec::new();
        for section in address.field("sections").items() {
            let (port, end) = (section.field("port"), section.field("endPort"));
            let (Some(first), Some(last)) = (port.int(), end.int()) else {
                continue;
            };
            port_number(&port, first, &mut errors);
            port_number(&end, last, &mut errors);
            if last < first {
                let detail = "must be greater than or equal to port";
                errors.push(FieldError::invalid(end.path, last, detail));
            } else if seen.iter().any(|(from, to)| first <= *to && *from <= last) {
                let detail = "overlaps with another section of the address";
                errors.push(FieldError::invalid(port.path, first, detail));
            }
            seen.push((first, last));
            target(&section.field("targetRef"), &mut errors);
        }
    }
    errors
}

/// A changed NATTable.
pub fn nat_table_update(new: &Value, _old: &Value) -> Errors {
    nat_table(new)
}

/// A new NetworkPolicy.
pub fn policy(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    reference(&spec.field("networkRef"), dns_label, &mut errors);
    label_selector(&spec.field("networkInterfaceSelector"), &mut errors);
    let priority = spec.field("priority");
    if let Some(n) = priority.int().filter(|n| !(0..=PORT_MAX).contains(n)) {
        // The data plane has 16 bits for it.
        let detail = format!("must be between 0 and {PORT_MAX}, inclusive");
        errors.push(FieldError::invalid(priority.path, n, detail));
    }
    let types = spec.field("policyTypes");
    required(&types, &mut errors);
    unique(&types, &mut errors);
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.field(rules).items() {
            rule.field(peers)
                .items()
                .for_each(|item| peer(&item, &mut errors));
            rule.field("ports")
                .items()
                .for_each(|item| policy_port(&item, &mut errors));
        }
    }
    errors
}

/// A changed NetworkPolicy.
pub fn policy_update(new: &Value, old: &Value) -> Errors {
    let mut errors = policy(new);
    fixed(new, old, &["networkRef"], &mut errors);
    errors
}

fn peer(item: &At<'_>, errors: &mut Errors) {
    let (objects, block) = (item.field("objectSelector"), item.field("ipBlock"));
    if objects.is_present() && block.is_present() {
        let detail = "may not be set together with objectSelector";
        errors.push(FieldError::forbidden(block.path.clone(), detail));
    }
    if objects.is_present() {
        required(&objects.field("kind"), errors);
        label_selector(&objects, errors);
    }
    let cidr = block.field("cidr");
    if block.is_present() {
        required(&cidr, errors);
    }
    for except in block.field("except").items() {
        if let (Some(whole), Some(part)) = (cidr.prefix(), except.prefix())
            && (whole.family() != part.family() || !whole.masked().contains(part.masked()))
        {
            errors.push(FieldError::invalid(
                except.path.clone(),
                except.text(),
                format!("must lie inside {whole}"),
            ));
        }
    }
}

fn policy_port(item: &At<'_>, errors: &mut Errors) {
    let port = item.field("port");
    if let Some(n) = port.int().filter(|n| *n != 0) {
        port_number(&port, n, errors);
    }
    port_range(item, errors);
}

/// A NetworkPolicyRule: every target and prefix is what it says.
pub fn policy_rule(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let root = At::root(object);
    named(&root.field("networkRef"), &mut errors);
    for rules in ["ingressRule", "egressRule"] {
        for rule in root.field(rules).items() {
            for item in rule.field("ips").items() {
                let (family, prefix) = (item.field("ipFamily"), item.field("prefix"));
                if let (Some(family), Some(value)) = (family.family(), prefix.prefix())
                    && value.family() != family
                {
                    errors.push(FieldError::invalid(
                        prefix.path.clone(),
                        prefix.text(),
                        format!("must be an {family} prefix"),
                    ));
                }
            }
        }
    }
    errors
}

/// A changed NetworkPolicyRule.
pub fn policy_rule_update(new: &Value, _old: &Value) -> Errors {
    policy_rule(new)
}
