//! Machines: what people do with them, and what must be true of them.
//!
//! Interfaces of machines are either spare ones, which people make and machines name, or made for a machine. Those of the stand-in
//! provider are left to it.

use std::collections::BTreeMap;

use api::compute::{Machine, MachineClass, MachinePool, MachineState, Power};
use api::ids;
use api::ipam::{Prefix, PrefixPhase};
use api::names::label;
use api::networking::{Network, NetworkInterface, NetworkInterfaceState, NetworkState};
use api::{apinet, names};
use apiserver::local::Patch;
use controller::{Object, Target, object};
use dataplane::PortId;
use rand::Rng;
use serde_json::{Value, json};

use crate::region::provider::{APINET_NS, NODE};
use crate::region::rack::{CLASS, ROOM, Rack, machine_uid, open};
use crate::region::store::Store;
use crate::region::user::{self, APP, address, apply, drop_some, say, some};
use crate::region::{Region, prefixes};

const MACHINES: u8 = 4;
const SPARES: u8 = 4;

/// What there is before anybody comes.
pub fn furnish(store: &mut Store) -> Result<(), String> {
    let body = json!({
        "metadata": { "name": CLASS },
        "capabilities": { "cpu": "1", "memory": "1Gi" },
    });
    let target = Target::new::<MachineClass>("", CLASS);
    let made = store.create(&target, body, "people");
    made.map(|_| ()).map_err(|refusal| refusal.text)
}

/// What people do with machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Make,
    Drop,
    Spare,
    Plug,
    Unplug,
    Power,
}

pub const DEEDS: [(Deed, u32); 6] = [
    (Deed::Make, 4),
    (Deed::Drop, 1),
    (Deed::Spare, 3),
    (Deed::Plug, 2),
    (Deed::Unplug, 2),
    (Deed::Power, 1),
];

pub fn act(region: &mut Region, deed: Deed) -> Result<(), String> {
    match deed {
        Deed::Make => make(region),
        Deed::Drop => drop_some::<Machine>(region),
        Deed::Spare => spare(region),
        Deed::Plug => plug(region),
        Deed::Unplug => unplug(region),
        Deed::Power => power(region),
    }
}

/// What an interface of a machine says: an address of its own, or one that the address plan gives.
fn interface(region: &mut Region, network: &str, n: u8) -> Value {
    let app = user::app(region);
    let ip = if region.rng.random_ratio(1, 3) {
        prefixes::ephemeral_address()
    } else {
        json!({ "value": address(network, n) })
    };
    let mut spec = json!({
        "networkRef": { "name": network },
        "ipFamilies": ["IPv4"],
        "ips": [ip],
    });
    if region.rng.random_ratio(1, 3) {
        let policy = match region.rng.random() {
            true => "Retain",
            false => "Delete",
        };
        spec["virtualIP"] = json!({ "ephemeral": { "virtualIPTemplate": { "spec": {
            "type": "Public", "ipFamily": "IPv4", "reclaimPolicy": policy,
        } } } });
    }
    json!({ "metadata": { "labels": { APP: app } }, "spec": spec })
}

fn network(region: &mut Region) -> Option<String> {
    if let Some(network) = some::<Network>(region) {
        return Some(object::name(&network).to_owned());
    }
    apply::<Network>(region, "n0", json!({}), json!({})).ok()?;
    Some("n0".to_owned())
}

/// A spare interface.
fn spare(region: &mut Region) -> Result<(), String> {
    let Some(network) = network(region) else {
        return Ok(());
    };
    let n = region.rng.random_range(0..SPARES);
    let name = format!("j{n}");
    let nics = region.store.list::<NetworkInterface>();
    if nics.iter().any(|nic| object::name(nic) == name) {
        return Ok(());
    }
    let made = interface(region, &network, 40 + n);
    let (meta, spec) = (made["metadata"].clone(), made["spec"].clone());
    apply::<NetworkInterface>(region, &name, meta, spec)
}

/// An entry of a machine: a spare interface, or one of its own.
fn entry(region: &mut Region, machine: &str, name: &str, n: u8) -> Option<Value> {
    let network = network(region)?;
    let number: u8 = machine.trim_start_matches('m').parse().unwrap_or(0);
    if region.rng.random() {
        let spare = format!("j{}", region.rng.random_range(0..SPARES));
        return Some(json!({ "name": name, "networkInterfaceRef": { "name": spare } }));
    }
    let template = interface(region, &network, 60 + number * 8 + n);
    Some(json!({ "name": name, "ephemeral": { "networkInterfaceTemplate": template } }))
}

/// Nobody plugs an interface into a machine twice.
fn repeats(entries: &[Value], new: &Value) -> bool {
    let name = |entry: &Value| entry["networkInterfaceRef"]["name"].clone();
    !name(new).is_null() && entries.iter().any(|entry| name(entry) == name(new))
}

fn make(region: &mut Region) -> Result<(), String> {
    let name = format!("m{}", region.rng.random_range(0..MACHINES));
    let machines = region.store.list::<Machine>();
    if machines.iter().any(|machine| object::name(machine) == name) {
        return Ok(());
    }
    let mut entries = Vec::new();
    for n in 0..region.rng.random_range(1..3_u8) {
        let new = entry(region, &name, &format!("e{n}"), n);
        entries.extend(new.filter(|new| !repeats(&entries, new)));
    }
    let mut spec = json!({
        "machineClassRef": { "name": CLASS },
        "networkInterfaces": entries,
    });
    if region.rng.random_ratio(1, 4) {
        let zone = user::node(region);
        spec["machinePoolSelector"] = json!({ label::TOPOLOGY_ZONE: zone });
    }
    if region.rng.random_ratio(1, 6) {
        spec["power"] = json!("Off");
    }
    apply::<Machine>(region, &name, json!({}), spec)
}

fn patch(region: &mut Region, machine: &Machine, spec: Value) -> Result<(), String> {
    let (target, body) = (Target::of(machine), json!({ "spec": spec }));
    let result = region
        .store
        .patch(&target, Patch::Merge, false, &body, "people");
    let name = object::name(machine);
    say(region, &format!("{name} becomes {spec}"), result)
}

/// A machine gets another interface, or another one under a name that it has.
fn plug(region: &mut Region) -> Result<(), String> {
    let Some(machine) = some::<Machine>(region) else {
        return Ok(());
    };
    let n = region.rng.random_range(0..4_u8);
    let name = format!("e{n}");
    let Some(new) = entry(region, object::name(&machine), &name, n) else {
        return Ok(());
    };
    let entries = machine.spec.network_interfaces.iter();
    let kept = entries.filter(|entry| entry.name != name);
    let mut all: Vec<Value> = kept.map(|entry| json!(entry)).collect();
    if repeats(&all, &new) {
        return Ok(());
    }
    all.push(new);
    patch(region, &machine, json!({ "networkInterfaces": all }))
}

fn unplug(region: &mut Region) -> Result<(), String> {
    let Some(machine) = some::<Machine>(region) else {
        return Ok(());
    };
    let mut entries = machine.spec.network_interfaces.clone();
    if !entries.is_empty() {
        entries.remove(region.rng.random_range(0..entries.len()));
    }
    patch(region, &machine, json!({ "networkInterfaces": entries }))
}

fn power(region: &mut Region) -> Result<(), String> {
    let Some(machine) = some::<Machine>(region) else {
        return Ok(());
    };
    let power = match machine.spec.power.unwrap_or_default() {
        Power::On => "Off",
        Power::Off => "On",
    };
    patch(region, &machine, json!({ "power": power }))
}

/// A hypervisor is scrapped: its pool is deleted, and the machines that were on it.
pub fn evict(region: &mut Region, at: usize) -> Result<(), String> {
    let Some(rack) = region.racks.get(at) else {
        return Ok(());
    };
    let pool = {
        let mut rack = open(rack);
        rack.depart();
        rack.pool.clone()
    };
    let target = Target::new::<MachinePool>("", &pool);
    let deleted = region.store.delete(&target, None);
    say(region, &format!("pool {pool} is deleted"), deleted)?;
    for machine in region.store.list::<Machine>() {
        if pool_of(&machine) == Some(&pool) {
            let deleted = region.store.delete(&Target::of(&machine), None);
            let line = format!("{} went with it", object::name(&machine));
            say(region, &line, deleted)?;
        }
    }
    Ok(())
}

fn pool_of(machine: &Machine) -> Option<&String> {
    machine
        .spec
        .machine_pool_ref
        .as_ref()
        .map(|pool| &pool.name)
}

/// The address of an interface: its own, or the one that was allocated for it.
pub fn addresses(
    nic: &NetworkInterface,
    prefixes: &BTreeMap<String, Prefix>,
) -> Vec<std::net::IpAddr> {
    let sources = nic.spec.ips.iter().enumerate();
    let found = sources.filter_map(|(at, source)| {
        if let Some(value) = source.value {
            return Some(value.0);
        }
        let prefix = prefixes.get(&ids::ephemeral_ip_prefix_name(object::name(nic), at))?;
        let phase = prefix.status.as_ref().and_then(|status| status.phase);
        let ours =
            object::is_controlled_by(prefix, object::uid(nic)) && !object::is_deleting(prefix);
        let given = prefix
            .spec
            .prefix
            .filter(|_| ours && phase == Some(PrefixPhase::Allocated))?;
        Some(given.addr())
    });
    found.collect()
}

/// Prefixes by name.
pub fn prefixes_by_name(region: &Region) -> BTreeMap<String, Prefix> {
    let all = region.store.list::<Prefix>().into_iter();
    all.map(|prefix| (object::name(&prefix).to_owned(), prefix))
        .collect()
}

/// Whether the device of a port is in the machine that has claimed an interface.
pub fn is_inside(region: &Region, nic: &NetworkInterface, host: usize, port: PortId) -> bool {
    let Some(claim) = &nic.spec.machine_ref else {
        return false;
    };
    let holds = |rack: &Rack| {
        let holder = rack.holder(port);
        holder.is_some_and(|(record, _)| machine_uid(record) == claim.uid)
    };
    region
        .racks
        .get(host)
        .is_some_and(|rack| holds(&open(rack)))
}

/// At any time: a device in a machine is that of the interface that the machine has under this name.
pub fn never(region: &Region, made: &BTreeMap<String, String>) -> Result<(), String> {
    for rack in &region.racks {
        let rack = open(rack);
        for tap in rack.kernel.taps.iter().filter(|tap| tap.netns.is_some()) {
            let Some((record, interface)) = rack.holder(tap.port) else {
                return Err(format!("{} has {tap:?}, which nobody knows of", rack.pool));
            };
            let wanted = ids::apinet_nic_name(&record.id, interface);
            let behind = made.get(&tap.uid);
            if behind.is_some_and(|behind| *behind != wanted) {
                return Err(format!(
                    "{interface} of machine {} on {} has the device of another machine: {behind:?}",
                    record.id, rack.pool
                ));
            }
        }
    }
    Ok(())
}

/// At rest.
pub fn at_rest(region: &Region) -> Result<(), String> {
    if region.racks.is_empty() {
        return Ok(());
    }
    let machines = region.store.list::<Machine>();
    let nics = region.store.list::<NetworkInterface>();
    let living: Vec<&Machine> = machines
        .iter()
        .filter(|m| !object::is_deleting(*m))
        .collect();
    if let Some(machine) = machines.iter().find(|m| object::is_deleting(*m)) {
        return Err(format!("{} does not go", object::name(machine)));
    }
    for nic in &nics {
        claimed(nic, &living)?;
    }
    let found = crate::region::check::machines(region);
    for machine in &living {
        let Some(pool) = pool_of(machine) else {
            waits(region, machine, &living)?;
            continue;
        };
        let there = |rack: &Rack| rack.pool == *pool && !rack.departed;
        if let Some(rack) = region.racks.iter().find(|rack| there(&open(rack))) {
            runs(region, machine, &open(rack), &nics, &found)?;
        }
    }
    nothing_loose(region, &living)
}

/// An interface is claimed by a machine that names it, or by none.
fn claimed(nic: &NetworkInterface, living: &[&Machine]) -> Result<(), String> {
    let Some(claim) = &nic.spec.machine_ref else {
        let handle = &nic.spec.provider_id;
        let own = object::annotation(nic, NODE).is_some();
        return match own || handle.is_empty() {
            true => Ok(()),
            false => Err(format!(
                "{} has {handle} without a machine",
                object::name(nic)
            )),
        };
    };
    let machine = living
        .iter()
        .find(|machine| object::uid(**machine) == claim.uid);
    let names = machine.is_some_and(|machine| {
        let mut entries = machine.spec.network_interfaces.iter();
        entries.any(|entry| entry.object_name(object::name(*machine)) == object::name(nic))
    });
    match names || object::is_deleting(nic) {
        true => Ok(()),
        false => Err(format!(
            "{} is claimed by {}, which does not name it",
            object::name(nic),
            claim.name
        )),
    }
}

/// A machine without a pool has none that would take it.
fn waits(region: &Region, machine: &Machine, living: &[&Machine]) -> Result<(), String> {
    let zone = machine.spec.machine_pool_selector.get(label::TOPOLOGY_ZONE);
    for rack in &region.racks {
        let rack = open(rack);
        let bound = living.iter().filter(|m| pool_of(m) == Some(&rack.pool));
        let fits = zone.is_none_or(|zone| *zone == rack.pool) && !rack.departed;
        if fits && bound.count() < ROOM {
            return Err(format!(
                "{} waits, {} has room",
                object::name(machine),
                rack.pool
            ));
        }
    }
    Ok(())
}

/// A machine of a pool has what it asks for, as far as that can be had.
fn runs(
    region: &Region,
    machine: &Machine,
    rack: &Rack,
    nics: &[NetworkInterface],
    found: &[crate::region::check::Machine],
) -> Result<(), String> {
    let name = object::name(machine);
    let mut own = rack
        .records
        .values()
        .filter(|record| machine_uid(record) == object::uid(machine));
    let (record, second) = (own.next(), own.next());
    if second.is_some() {
        return Err(format!("{name} runs twice"));
    }
    let all = region.store.list::<Network>();
    let prefixes = prefixes_by_name(region);
    let usable = |nic: &&NetworkInterface| {
        let network = all
            .iter()
            .find(|network| object::name(*network) == nic.spec.network_ref.name);
        let state = network.and_then(|network| network.status.as_ref()?.state);
        let deleting = network.is_none_or(object::is_deleting);
        let claim = nic.spec.machine_ref.as_ref();
        let given = addresses(nic, &prefixes).len() == nic.spec.ips.len();
        claim.is_some_and(|claim| claim.uid == object::uid(machine))
            && state == Some(NetworkState::Available)
            && !deleting
            && given
            && !object::is_deleting(*nic)
    };
    let entries = machine.spec.network_interfaces.iter();
    let entries: Vec<_> = entries
        .map(|entry| {
            let wanted = entry.object_name(name);
            let nic = nics.iter().find(|nic| object::name(*nic) == wanted);
            (entry, nic.filter(usable))
        })
        .collect();
    let Some(record) = record else {
        return match entries.iter().all(|(_, nic)| nic.is_some()) {
            true => Err(format!("{name} is not made")),
            false => Ok(()),
        };
    };
    let on = machine.spec.power.unwrap_or_default() == Power::On;
    let state = machine.status.as_ref().and_then(|status| status.state);
    let wanted = if on {
        MachineState::Running
    } else {
        MachineState::Shutdown
    };
    let complete = entries.iter().all(|(_, nic)| nic.is_some());
    if complete && state != Some(wanted) || record.power_on != on {
        return Err(format!("{name} is {state:?}, wanted {wanted:?}"));
    }
    for (entry, nic) in entries.iter().filter(|_| on) {
        let Some(nic) = nic else {
            continue;
        };
        let device = found.iter().find(|found| found.uid == object::uid(*nic));
        let attached = machine
            .status
            .iter()
            .flat_map(|status| &status.network_interfaces);
        let mut attached = attached.filter(|status| status.name == entry.name);
        let handle = attached.next().map(|status| status.handle.clone());
        let state = nic.status.as_ref().and_then(|status| status.state);
        if device.is_none_or(|device| device.place.is_none())
            || handle.as_ref() != Some(&nic.spec.provider_id)
            || state != Some(NetworkInterfaceState::Available)
        {
            return Err(format!(
                "{} of {name} is {state:?} with {:?}, {handle:?} at {:?}",
                object::name(*nic),
                nic.spec.provider_id,
                device.map(|device| device.place)
            ));
        }
    }
    Ok(())
}

/// No machine runs that nobody wants, and no interface is left of one.
fn nothing_loose(region: &Region, living: &[&Machine]) -> Result<(), String> {
    let mut wanted = Vec::new();
    for rack in &region.racks {
        let rack = open(rack);
        for record in rack.records.values() {
            if living
                .iter()
                .all(|machine| object::uid(*machine) != machine_uid(record))
            {
                return Err(format!("{} still runs {} for nobody", rack.pool, record.id));
            }
            let interfaces = record.interfaces.iter();
            wanted.extend(
                interfaces.map(|interface| ids::apinet_nic_name(&record.id, &interface.name)),
            );
        }
        let known: Vec<&String> = rack.records.values().map(|record| &record.netns).collect();
        if let Some(netns) = rack
            .kernel
            .namespaces
            .iter()
            .find(|netns| !known.contains(netns))
        {
            return Err(format!("{} still has namespace {netns}", rack.pool));
        }
    }
    for nic in region.store.list::<apinet::NetworkInterface>() {
        let of_machine = object::label(&nic, names::label::MACHINE_ID).is_some();
        let name = object::name(&nic).to_owned();
        if of_machine && object::namespace(&nic) == APINET_NS && !wanted.contains(&name) {
            return Err(format!(
                "OpenKCM-net still has {name}, which no machine has"
            ));
        }
    }
    Ok(())
}

/// Everything that people made goes.
pub fn targets(region: &Region) -> Vec<Target> {
    let machines = region.store.list::<Machine>();
    machines.iter().map(Target::of).collect()
}

/// Whether people made it, and not something that people made.
pub fn is_own<K: Object>(thing: &K) -> bool {
    object::controller_of(thing).is_none()
}
