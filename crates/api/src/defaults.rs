//! Server-side defaults that look at more than one field. Every function is idempotent.

use serde_json::{Value, json};

use crate::meta::{Ip, IpFamily, IpPrefix};

/// No defaults.
pub fn none(_object: &mut Value) {}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value
        .get(key)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
}

/// Sets `key` of an object unless it is there. Nothing happens to a value that is no object.
fn fill(value: &mut Value, key: &str, default: impl Into<Value>) {
    if let Some(map) = value.as_object_mut() {
        let slot = map.entry(key).or_insert(Value::Null);
        if slot.is_null() || slot.as_str() == Some("") {
            *slot = default.into();
        }
    }
}

/// Sets a field of `status`, making the status when the object has none.
fn fill_status(object: &mut Value, key: &str, default: &str) {
    fill(object, "status", json!({}));
    if let Some(status) = object.get_mut("status") {
        fill(status, key, default);
    }
}

fn family_of_ip(text: &str) -> Option<IpFamily> {
    text.parse::<Ip>().ok().map(Ip::family)
}

fn family_of_prefix(text: &str) -> Option<IpFamily> {
    text.parse::<IpPrefix>().ok().map(IpPrefix::family)
}

fn length_of(spec: &Value) -> i64 {
    spec.get("prefixLength")
        .and_then(Value::as_i64)
        .unwrap_or(0)
}

/// Family of a prefix request from its value.
fn prefix_spec(spec: &mut Value) {
    if length_of(spec) == 0
        && let Some(family) = text(spec, "prefix").and_then(family_of_prefix)
    {
        fill(spec, "ipFamily", family.as_str());
    }
}

/// Prefix: family from the value, phase Pending.
pub fn prefix(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec") {
        prefix_spec(spec);
    }
    fill_status(object, "phase", "Pending");
}

/// The spec inside the prefix template of an ephemeral source.
fn template_spec(source: &mut Value) -> Option<&mut Value> {
    let template = source.get_mut("ephemeral")?.get_mut("prefixTemplate")?;
    if template.is_object() {
        fill(template, "spec", json!({}));
    }
    template.get_mut("spec")
}

/// Families, lengths and templates of `ips`; used for interfaces and load balancers.
fn ips(spec: &mut Value) {
    let families: Vec<String> = spec
        .get("ipFamilies")
        .and_then(Value::as_array)
        .map(|list| {
            list.iter()
                .map(|f| f.as_str().unwrap_or_default().to_owned())
                .collect()
        })
        .unwrap_or_default();
    let Some(sources) = spec.get_mut("ips").and_then(Value::as_array_mut) else {
        return;
    };
    let mut derived = Vec::new();
    for (i, source) in sources.iter_mut().enumerate() {
        // The family may be written in the template, or follow from its prefix.
        if let Some(template) = template_spec(source) {
            prefix_spec(template);
            if families.len() > i
                && let Some(family) = families.get(i).filter(|family| !family.is_empty())
            {
                fill(template, "ipFamily", family.as_str());
            }
            let family = text(template, "ipFamily").map(str::to_owned);
            if text(template, "prefix").is_none() && length_of(template) == 0 {
                let length = match family.as_deref() {
                    Some("IPv4") => 32,
                    Some("IPv6") => 128,
                    _ => 0,
                };
                if length != 0
                    && let Some(map) = template.as_object_mut()
                {
                    map.insert("prefixLength".into(), length.into());
                }
            }
            derived.push(family);
        } else {
            derived.push(
                text(source, "value")
                    .and_then(family_of_ip)
                    .map(|f| f.as_str().to_owned()),
            );
        }
    }
    // All or nothing: a list with holes would shift the families against the addresses.
    let known: Option<Vec<String>> = derived.into_iter().collect();
    if families.is_empty()
        && let (Some(known), Some(map)) = (
            known.filter(|known| !known.is_empty()),
            spec.as_object_mut(),
        )
    {
        map.insert("ipFamilies".into(), known.into());
    }
}

/// Spec of an interface, also inside a Machine.
fn nic_spec(spec: &mut Value) {
    ips(spec);
    let prefixes = spec.get_mut("prefixes").and_then(Value::as_array_mut);
    for source in prefixes.into_iter().flatten() {
        if let Some(template) = template_spec(source) {
            prefix_spec(template);
        }
    }
}

/// NetworkInterface: families from addresses, lengths of address templates, state Pending.
pub fn nic(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec") {
        nic_spec(spec);
    }
    fill_status(object, "state", "Pending");
}

/// LoadBalancer: families from addresses, lengths of address templates. A Public one has no addresses of its own.
pub fn load_balancer(object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else {
        return;
    };
    ips(spec);
    if text(spec, "type") == Some("Public")
        && let Some(map) = spec.as_object_mut()
    {
        map.remove("ips");
    }
}

/// NetworkPolicy: a direction with rules is restricted; directions are sorted.
pub fn network_policy(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    let has_rules = |rules: &str| {
        let list = spec.get(rules).and_then(Value::as_array);
        list.is_some_and(|list| !list.is_empty())
    };
    let implied: Vec<&str> = [("egress", "Egress"), ("ingress", "Ingress")]
        .into_iter()
        .filter(|(rules, _)| has_rules(rules))
        .map(|(_, word)| word)
        .collect();
    let given = match spec.get("policyTypes") {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(list) => list.as_array().cloned(),
    };
    // What is no list of words is left for the schema to refuse; what is given twice, for the rules.
    let Some(mut types) = given.filter(|list| list.iter().all(Value::is_string)) else {
        return;
    };
    for word in implied {
        if !types.iter().any(|given| given.as_str() == Some(word)) {
            types.push(word.into());
        }
    }
    types.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
    if !types.is_empty() {
        spec.insert("policyTypes".into(), types.into());
    }
}

/// Network: state Pending.
pub fn network(object: &mut Value) {
    fill_status(object, "state", "Pending");
}

/// Machine: power On, interface templates, volume devices, states Pending.
pub fn machine(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) {
        fill(spec, "power", "On");
        if let Some(ignition) = spec.get_mut("ignitionRef") {
            fill(ignition, "key", "ignition.yaml");
        }
        let entries = spec
            .get_mut("networkInterfaces")
            .and_then(Value::as_array_mut);
        for entry in entries.into_iter().flatten() {
            if let Some(spec) = entry.pointer_mut("/ephemeral/networkInterfaceTemplate/spec") {
                nic_spec(spec);
            }
        }
        if let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) {
            devices(volumes);
        }
    }
    fill_status(object, "state", "Pending");
}

/// Gives volumes without a device the first free name of `oda`, `odb` …
fn devices(volumes: &mut [Value]) {
    let mut taken: Vec<String> = volumes
        .iter()
        .filter_map(|volume| text(volume, "device").map(str::to_owned))
        .collect();
    for volume in volumes {
        if text(volume, "device").is_none() && volume.is_object() {
            let free = ('a'..='z')
                .map(|c| format!("od{c}"))
                .find(|name| !taken.contains(name));
            if let Some(name) = free {
                fill(volume, "device", name.as_str());
                taken.push(name);
            }
        }
    }
}

/// PrefixAllocation: as [`prefix`].
pub fn allocation(object: &mut Value) {
    prefix(object);
}

/// OpenKCM-net IP: family from the address.
pub fn apinet_ip(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec") {
        ip_family(spec);
    }
}

fn ip_family(value: &mut Value) {
    if let Some(family) = text(value, "ip").and_then(family_of_ip) {
        fill(value, "ipFamily", family.as_str());
    }
}

/// OpenKCM-net NetworkInterface: family of public addresses, state Pending.
pub fn apinet_nic(object: &mut Value) {
    let publics = object
        .pointer_mut("/spec/publicIPs")
        .and_then(Value::as_array_mut);
    publics.into_iter().flatten().for_each(ip_family);
    fill_status(object, "state", "Pending");
}

/// OpenKCM-net LoadBalancer: family of the addresses.
pub fn apinet_load_balancer(object: &mut Value) {
    let ips = object
        .pointer_mut("/spec/ips")
        .and_then(Value::as_array_mut);
    ips.into_iter().flatten().for_each(ip_family);
}
