//! What people do: networks, interfaces with machines on hypervisors, peerings, made, changed and deleted in any order.

use std::net::{Ipv4Addr, Ipv6Addr};

use api::ipam::Prefix;
use api::networking::{
    LoadBalancer, NATGateway, Network, NetworkInterface, NetworkPolicy, VirtualIP,
};
use apiserver::local::Patch;
use controller::{Object, Target, object};
use k8s_openapi::api::core::v1::Node;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use crate::region::provider::NODE;
use crate::region::store::{Refusal, Store};
use crate::region::{Region, machines, prefixes};

pub const NS: &str = "default";
/// The label that policies and load balancers select by.
pub const APP: &str = "app";
const WHO: &str = "people";
const NETWORKS: usize = 4;
const NICS: usize = 8;

/// The habits of the people of this seed.
pub struct User {
    /// Which things they care for, as weights.
    weights: Vec<(Deed, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Network,
    Nic,
    DropNic,
    DropNetwork,
    Move,
    Peer,
    Unpeer,
    Label,
    Vip,
    DropVip,
    Claim,
    Swap,
    Nat,
    DropNat,
    Balancer,
    DropBalancer,
    Policy,
    DropPolicy,
    Scrap,
    Prefix,
    DropPrefix,
    Machine(machines::Deed),
}

impl User {
    pub fn new(has_machines: bool, rng: &mut StdRng) -> User {
        let deeds = [
            (Deed::Network, 2),
            (Deed::Nic, 8),
            (Deed::DropNic, 3),
            (Deed::DropNetwork, 1),
            (Deed::Move, 1),
            (Deed::Peer, 2),
            (Deed::Unpeer, 1),
            (Deed::Label, 1),
            (Deed::Vip, 2),
            (Deed::DropVip, 1),
            (Deed::Claim, 3),
            (Deed::Swap, 1),
            (Deed::Nat, 1),
            (Deed::DropNat, 1),
            (Deed::Balancer, 1),
            (Deed::DropBalancer, 1),
            (Deed::Policy, 1),
            (Deed::DropPolicy, 1),
            (Deed::Scrap, 1),
            (Deed::Prefix, 2),
            (Deed::DropPrefix, 1),
        ];
        let weights = deeds.map(|(deed, weight)| (deed, weight * rng.random_range(0..4)));
        let mut weights: Vec<(Deed, u32)> = weights.into();
        if has_machines {
            let deeds = machines::DEEDS.map(|(deed, weight)| (Deed::Machine(deed), weight));
            weights.extend(deeds.map(|(deed, weight)| (deed, weight * rng.random_range(1..4))));
        }
        weights.extend([(Deed::Network, 2), (Deed::Nic, 4)]);
        User { weights }
    }
}

/// A hypervisor as its compute cluster knows it.
pub fn create_node(store: &mut Store, name: &str) -> Result<(), String> {
    let body = json!({ "metadata": { "name": name } });
    let target = Target::new::<Node>("", name);
    store
        .create(&target, body, WHO)
        .map(|_| ())
        .map_err(|r| r.text)
}

/// Somebody applies a manifest.
pub fn apply<K: Object>(
    region: &mut Region,
    name: &str,
    meta: Value,
    spec: Value,
) -> Result<(), String> {
    let kind = controller::Kind::of::<K>();
    let mut body = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.kind,
        "metadata": { "name": name, "namespace": NS },
        "spec": spec,
    });
    for (key, value) in meta.as_object().into_iter().flatten() {
        body["metadata"][key] = value.clone();
    }
    let target = Target::new::<K>(NS, name);
    let result = region.store.patch(&target, Patch::Apply, false, &body, WHO);
    say(
        region,
        &format!("apply {} {name} {meta} {}", kind.kind, body["spec"]),
        result,
    )
}

/// People hear of refusals and live with them.
pub fn say<T>(region: &mut Region, line: &str, result: Result<T, Refusal>) -> Result<(), String> {
    region.summary.user_ops += 1;
    match result {
        Ok(_) => region.note(format!("USER {line}")),
        Err(refusal) if refusal.class == controller::Class::Bug => {
            return Err(format!("{line}: {}", refusal.text));
        }
        Err(refusal) => region.note(format!("USER {line}: {}", refusal.text)),
    }
    Ok(())
}

fn delete<K: Object>(region: &mut Region, name: &str) -> Result<(), String> {
    let target = Target::new::<K>(NS, name);
    let result = region.store.delete(&target, None);
    say(region, &format!("delete {target}"), result)
}

pub fn some<K: Object>(region: &mut Region) -> Option<K> {
    let all = region.store.list::<K>();
    all.choose(&mut region.rng).cloned()
}

/// One random act.
pub fn act(region: &mut Region) -> Result<(), String> {
    let weights = region.user.weights.clone();
    let Ok((deed, _)) = weights.choose_weighted(&mut region.rng, |(_, weight)| *weight) else {
        return Ok(());
    };
    match deed {
        Deed::Network => {
            let n = region.rng.random_range(0..NETWORKS);
            apply::<Network>(region, &format!("n{n}"), json!({}), json!({}))
        }
        Deed::Nic => nic(region),
        Deed::DropNic => match some::<NetworkInterface>(region) {
            Some(nic) => delete::<NetworkInterface>(region, object::name(&nic)),
            None => Ok(()),
        },
        Deed::DropNetwork => match some::<Network>(region) {
            Some(network) => delete::<Network>(region, object::name(&network)),
            None => Ok(()),
        },
        Deed::Move => relocate(region),
        Deed::Peer => peer(region, true),
        Deed::Unpeer => peer(region, false),
        Deed::Label => relabel(region),
        Deed::Vip => {
            let n = region.rng.random_range(0..4);
            let family = if n < 3 { "IPv4" } else { "IPv6" };
            let spec = json!({ "type": "Public", "ipFamily": family });
            apply::<VirtualIP>(region, &format!("v{n}"), json!({}), spec)
        }
        Deed::DropVip => drop_some::<VirtualIP>(region),
        Deed::Claim => claim(region),
        Deed::Swap => swap(region),
        Deed::Nat => nat(region),
        Deed::DropNat => drop_some::<NATGateway>(region),
        Deed::Balancer => balancer(region),
        Deed::DropBalancer => drop_some::<LoadBalancer>(region),
        Deed::Policy => policy(region),
        Deed::DropPolicy => drop_some::<NetworkPolicy>(region),
        Deed::Scrap => scrap(region),
        Deed::Prefix => prefixes::act(region),
        Deed::DropPrefix => drop_some::<Prefix>(region),
        Deed::Machine(deed) => machines::act(region, *deed),
    }
}

pub fn drop_some<K: Object>(region: &mut Region) -> Result<(), String> {
    match some::<K>(region) {
        Some(object) => delete::<K>(region, object::name(&object)),
        None => Ok(()),
    }
}

pub fn app(region: &mut Region) -> &'static str {
    ["web", "db"]
        .choose(&mut region.rng)
        .copied()
        .unwrap_or("web")
}

fn relabel(region: &mut Region) -> Result<(), String> {
    let Some(nic) = some::<NetworkInterface>(region) else {
        return Ok(());
    };
    let app = app(region);
    let body = json!({ "metadata": { "labels": { APP: app } } });
    let result = region
        .store
        .patch(&Target::of(&nic), Patch::Merge, false, &body, WHO);
    say(
        region,
        &format!("{} is now {app}", object::name(&nic)),
        result,
    )
}

/// An interface wants a public address, another one, or none.
fn claim(region: &mut Region) -> Result<(), String> {
    let (Some(nic), vip) = (some::<NetworkInterface>(region), some::<VirtualIP>(region)) else {
        return Ok(());
    };
    let wanted = match vip {
        Some(vip) if region.rng.random_ratio(3, 4) => {
            json!({ "virtualIPRef": { "name": object::name(&vip) } })
        }
        _ => Value::Null,
    };
    let body = json!({ "spec": { "virtualIP": wanted } });
    let result = region
        .store
        .patch(&Target::of(&nic), Patch::Merge, false, &body, WHO);
    say(
        region,
        &format!("{} takes {wanted}", object::name(&nic)),
        result,
    )
}

/// A public address goes from one interface to another at once.
fn swap(region: &mut Region) -> Result<(), String> {
    let nics = region.store.list::<NetworkInterface>();
    let given = |nic: &NetworkInterface| nic.spec.virtual_ip.clone();
    let Some(from) = nics.iter().find(|nic| given(nic).is_some()) else {
        return Ok(());
    };
    let to = nics.choose(&mut region.rng).unwrap_or(from);
    let wanted = serde_json::to_value(given(from)).unwrap_or_default();
    for (nic, wanted) in [(from, Value::Null), (to, wanted)] {
        let body = json!({ "spec": { "virtualIP": wanted } });
        let target = Target::of(nic);
        let result = region.store.patch(&target, Patch::Merge, false, &body, WHO);
        say(
            region,
            &format!("{} takes {wanted}", object::name(nic)),
            result,
        )?;
    }
    Ok(())
}

fn nat(region: &mut Region) -> Result<(), String> {
    let Some(network) = some::<Network>(region) else {
        return Ok(());
    };
    let network = object::name(&network).to_owned();
    let ports = [1_024, 16_384]
        .choose(&mut region.rng)
        .copied()
        .unwrap_or(1_024);
    let spec = json!({
        "type": "Public", "ipFamily": "IPv4", "networkRef": { "name": network },
        "portsPerNetworkInterface": ports,
    });
    apply::<NATGateway>(
        region,
        &format!("g{}", network.trim_start_matches('n')),
        json!({}),
        spec,
    )
}

/// The port on which machines serve.
pub const SERVICE_PORT: u16 = 80;

fn balancer(region: &mut Region) -> Result<(), String> {
    let Some(network) = some::<Network>(region) else {
        return Ok(());
    };
    let network = object::name(&network).to_owned();
    let n = region.rng.random_range(0..2_u8);
    let families = match region.rng.random_range(0..4) {
        0 => json!(["IPv6"]),
        1 => json!(["IPv4", "IPv6"]),
        _ => json!(["IPv4"]),
    };
    let mut spec = json!({
        "type": "Public", "ipFamilies": families, "networkRef": { "name": network },
        "networkInterfaceSelector": { "matchLabels": { APP: app(region) } },
        "ports": [{ "protocol": "UDP", "port": SERVICE_PORT }],
    });
    if region.rng.random() {
        spec["type"] = json!("Internal");
        let own = |family: &Value| match family.as_str() {
            Some("IPv6") => json!({ "value": address6(&network, 100 + n) }),
            _ => json!({ "value": address(&network, 100 + n) }),
        };
        spec["ips"] = families.as_array().into_iter().flatten().map(own).collect();
    }
    apply::<LoadBalancer>(region, &format!("l{n}"), json!({}), spec)
}

fn policy(region: &mut Region) -> Result<(), String> {
    let Some(network) = some::<Network>(region) else {
        return Ok(());
    };
    let network = object::name(&network).to_owned();
    let n = region.rng.random_range(0..2);
    let selected = app(region);
    let peer = json!({ "objectSelector": {
        "kind": "NetworkInterface", "matchLabels": { APP: app(region) },
    } });
    let ports = match region.rng.random() {
        true => json!([{ "protocol": "UDP", "port": SERVICE_PORT }]),
        false => json!([]),
    };
    let (ingress, egress, types) = match region.rng.random_range(0..4) {
        0 => (json!([]), json!([]), json!(["Ingress"])),
        1 => (
            json!([]),
            json!([{ "to": [peer], "ports": ports }]),
            json!(["Egress"]),
        ),
        _ => (
            json!([{ "from": [peer], "ports": ports }]),
            json!([]),
            json!(["Ingress"]),
        ),
    };
    let spec = json!({
        "networkRef": { "name": network },
        "networkInterfaceSelector": { "matchLabels": { APP: selected } },
        "ingress": ingress, "egress": egress, "policyTypes": types,
    });
    apply::<NetworkPolicy>(region, &format!("p{n}"), json!({}), spec)
}

/// The addresses of a network: every second one has the same, as tenants have.
pub fn address(network: &str, n: u8) -> Ipv4Addr {
    let number: u8 = network.trim_start_matches('n').parse().unwrap_or(0);
    Ipv4Addr::new(10, number % 2, 0, n)
}

fn address6(network: &str, n: u8) -> Ipv6Addr {
    let number: u16 = network.trim_start_matches('n').parse().unwrap_or(0);
    Ipv6Addr::new(0xfdaa, 0, 0, number % 2, 0, 0, 0, u16::from(n))
}

pub fn node(region: &mut Region) -> String {
    let there = region.hosts.iter().filter(|host| !host.departed);
    let names: Vec<String> = there.map(|host| host.name.clone()).collect();
    names.choose(&mut region.rng).cloned().unwrap_or_default()
}

/// A new interface; names and addresses repeat, so that successors follow closely.
fn nic(region: &mut Region) -> Result<(), String> {
    let Some(network) = some::<Network>(region) else {
        return apply::<Network>(region, "n0", json!({}), json!({}));
    };
    let nics = region.store.list::<NetworkInterface>();
    let name = format!("i{}", region.rng.random_range(0..NICS));
    if nics.iter().any(|nic| object::name(nic) == name) {
        return Ok(());
    }
    let network = object::name(&network).to_owned();
    let taken = |ip: Ipv4Addr| {
        let mut nics = nics
            .iter()
            .filter(|nic| nic.spec.network_ref.name == network);
        nics.any(|nic| ips(nic).contains(&ip))
    };
    let n = region.rng.random_range(1..12);
    let ip = address(&network, n);
    if taken(ip) {
        return Ok(());
    }
    let meta = json!({
        "annotations": { NODE: node(region) },
        "labels": { APP: app(region) },
    });
    let mut spec = json!({
        "networkRef": { "name": network },
        "ipFamilies": ["IPv4"],
        "ips": [{ "value": ip }],
    });
    if region.rng.random() {
        let ip6 = address6(&network, n);
        spec["ipFamilies"] = json!(["IPv4", "IPv6"]);
        spec["ips"] = json!([{ "value": ip }, { "value": ip6 }]);
    }
    if region.rng.random_ratio(1, 4) {
        spec["prefixes"] = prefixes::ephemeral();
    }
    apply::<NetworkInterface>(region, &name, meta, spec)
}

/// The IPv4 addresses of an interface.
pub fn ips(nic: &NetworkInterface) -> Vec<Ipv4Addr> {
    let values = nic.spec.ips.iter().filter_map(|source| source.value);
    values
        .filter_map(|ip| match ip.0 {
            std::net::IpAddr::V4(ip) => Some(ip),
            std::net::IpAddr::V6(_) => None,
        })
        .collect()
}

/// The IPv6 address of an interface.
pub fn ip6(nic: &NetworkInterface) -> Option<Ipv6Addr> {
    let values = nic.spec.ips.iter().filter_map(|source| source.value);
    let mut values = values.filter_map(|ip| match ip.0 {
        std::net::IpAddr::V4(_) => None,
        std::net::IpAddr::V6(ip) => Some(ip),
    });
    values.next()
}

/// The machine of an interface starts on another hypervisor.
fn relocate(region: &mut Region) -> Result<(), String> {
    // Those of real machines are where their machines are.
    let nic = some::<NetworkInterface>(region);
    let Some(nic) = nic.filter(|nic| object::annotation(nic, NODE).is_some()) else {
        return Ok(());
    };
    let node = node(region);
    let target = Target::of(&nic);
    let body = json!({ "metadata": { "annotations": { NODE: node } } });
    let result = region.store.patch(&target, Patch::Merge, false, &body, WHO);
    say(
        region,
        &format!("move {} to {node}", object::name(&nic)),
        result,
    )
}

/// A hypervisor that is cut off never comes back: its Node is deleted, and its machines start elsewhere.
fn scrap(region: &mut Region) -> Result<(), String> {
    let mut hosts = region.hosts.iter_mut().enumerate();
    let Some((at, host)) = hosts.find(|(_, host)| host.offline && !host.departed) else {
        return Ok(());
    };
    host.depart();
    let name = host.name.clone();
    let deleted = region.store.delete(&Target::new::<Node>("", &name), None);
    say(region, &format!("{name} is scrapped"), deleted)?;
    machines::evict(region, at)?;
    for nic in region.store.list::<NetworkInterface>() {
        if object::annotation(&nic, NODE) != Some(&name) {
            continue;
        }
        let node = node(region);
        let body = json!({ "metadata": { "annotations": { NODE: node } } });
        let target = Target::of(&nic);
        let result = region.store.patch(&target, Patch::Merge, false, &body, WHO);
        say(
            region,
            &format!("move {} to {node}", object::name(&nic)),
            result,
        )?;
    }
    Ok(())
}

/// Networks are peered in pairs whose addresses differ: one side says so, or no longer.
fn peer(region: &mut Region, present: bool) -> Result<(), String> {
    let Some(network) = some::<Network>(region) else {
        return Ok(());
    };
    let name = object::name(&network).to_owned();
    let number: usize = name.trim_start_matches('n').parse().unwrap_or(0);
    let other = format!("n{}", number ^ 1);
    let prefixes = match region.rng.random_range(0..5) {
        0 => json!([{ "name": "some", "prefix": format!("10.{}.0.0/29", number % 2) }]),
        1 => json!([{ "name": "some", "prefix": format!("fdaa:0:0:{}::/125", number % 2) }]),
        _ => json!([]),
    };
    let peerings = match present {
        true => json!([{ "name": "p", "networkRef": { "name": other }, "prefixes": prefixes }]),
        false => json!([]),
    };
    let body = json!({ "spec": { "peerings": peerings } });
    let target = Target::new::<Network>(NS, &name);
    let result = region.store.patch(&target, Patch::Merge, false, &body, WHO);
    say(region, &format!("peerings of {name}: {peerings}"), result)
}

/// Virtual IPs that survived the interfaces that they were made for go. Returns whether there were any.
pub fn delete_kept(region: &mut Region) -> Result<bool, String> {
    let kept = region.store.list::<VirtualIP>();
    for vip in &kept {
        delete::<VirtualIP>(region, object::name(vip))?;
    }
    Ok(!kept.is_empty())
}

/// Everything that people made goes, in any order and nearly at once.
pub fn delete_everything(region: &mut Region) -> Result<(), String> {
    let mut targets: Vec<Target> = Vec::new();
    targets.extend(region.store.list::<Network>().iter().map(Target::of));
    let nics = region.store.list::<NetworkInterface>();
    let own = nics.iter().filter(|nic| machines::is_own(*nic));
    targets.extend(own.map(Target::of));
    targets.extend(machines::targets(region));
    let prefixes = region.store.list::<Prefix>();
    // What was made for an interface goes with it.
    let own = prefixes.iter().filter(|prefix| machines::is_own(*prefix));
    targets.extend(own.map(Target::of));
    let vips = region.store.list::<VirtualIP>();
    let own = vips.iter().filter(|vip| machines::is_own(*vip));
    targets.extend(own.map(Target::of));
    targets.extend(region.store.list::<NATGateway>().iter().map(Target::of));
    targets.extend(region.store.list::<LoadBalancer>().iter().map(Target::of));
    targets.extend(region.store.list::<NetworkPolicy>().iter().map(Target::of));
    while !targets.is_empty() {
        let at = region.rng.random_range(0..targets.len());
        let target = targets.swap_remove(at);
        let result = region.store.delete(&target, None);
        say(region, &format!("delete {target}"), result)?;
        let next = region.now_ms + region.rng.random_range(0..30);
        region.until(next)?;
    }
    Ok(())
}
