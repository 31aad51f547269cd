//! What to do next for one machine. Pure.
//!
//! Devices come before objects: when the API server is away, machines are still configured and recover from a restart of
//! dpservice, because those steps stand in front of the writes that fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::apinet::{NetworkInterface, NetworkInterfaceState};
use api::ids::{self, NetworkInterfaceProviderId, NetworkProviderId};
use api::meta::{Ip, IpFamily};
use api::names::{label, manager};
use controller::object::{is_deleting, label as label_of, name, namespace, uid};
use controller::plan::Act;
use controller::{Op, Plan, Target};
use serde_json::json;

use super::record::{Interface, Known, Record};

/// How far an interface's device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A task moves and configures it.
    Configuring,
    /// Moved and configured.
    Attached,
    /// It was in neither namespace; its return is awaited.
    Missing,
}

/// The device of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Name of the TAP in our own namespace.
    pub tap: String,
    /// How far it is.
    pub progress: Progress,
}

/// Everything that is looked at.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// The machine; `None` when only leftovers carry its id.
    pub record: Option<&'a Record>,
    /// OpenKCM-net interfaces of this node that carry the machine's id.
    pub live: &'a [Arc<NetworkInterface>],
    /// Devices by interface name.
    pub devices: &'a BTreeMap<String, Device>,
    /// The machine's namespace exists.
    pub netns: bool,
    /// OpenKCM-net Node that we are.
    pub node: &'a str,
}

/// A step outside the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the network namespace.
    CreateNamespace,
    /// End what runs in the namespace and remove it.
    RemoveNamespace,
    /// Write down that something is about to be done for an interface.
    Remember {
        /// Interface name.
        interface: String,
        /// Namespace of the OpenKCM-net NetworkInterface.
        namespace: String,
    },
    /// Nothing is left of an interface.
    Forget {
        /// Interface name.
        interface: String,
    },
    /// Move the device into the machine and configure it.
    Take(Take),
    /// Move the device back, or at least switch it off.
    Release {
        /// Interface name.
        interface: String,
        /// Name to give back, if it is known.
        tap: Option<String>,
    },
    /// Nothing is left of the machine.
    RemoveRecord,
}

/// A device to move and configure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Take {
    /// Interface name.
    pub interface: String,
    /// Name of the TAP in our own namespace.
    pub tap: String,
    /// Addresses that the device shall get.
    pub ips: Vec<Ip>,
    /// Handle to report once it is done.
    pub handle: String,
}

impl Take {
    /// The machine gets an address of this family.
    pub fn has(&self, family: IpFamily) -> bool {
        self.ips.iter().any(|ip| ip.family() == family)
    }
}

/// The next operations for a machine; empty when everything is as it should be.
pub fn plan(inputs: &Inputs<'_>) -> Plan {
    let mut plan = Plan::none();
    let Some(record) = inputs.record else {
        plan.extend(inputs.live.iter().filter_map(deleted));
        return plan;
    };
    if record.is_deleted() {
        stop(inputs, record, &mut plan);
        plan.extend(inputs.live.iter().filter_map(deleted));
        plan.push(step(Step::RemoveRecord));
        return plan;
    }
    if !record.power_on {
        stop(inputs, record, &mut plan);
    } else if !inputs.netns {
        plan.push(step(Step::CreateNamespace));
    }
    let mut writes = unwanted(inputs, record);
    for (interface, known) in &record.known {
        if !record
            .interfaces
            .iter()
            .any(|wanted| wanted.name == *interface)
        {
            drop_interface(inputs, record, interface, &mut plan, &mut writes);
        } else if let Some(device) = inputs.devices.get(interface)
            && !still_usable(inputs, record, interface, known, device)
        {
            plan.push(step(Step::Release {
                interface: interface.clone(),
                tap: Some(device.tap.clone()),
            }));
        }
    }
    for interface in &record.interfaces {
        keep_interface(inputs, record, interface, &mut plan, &mut writes);
    }
    plan.extend(writes);
    plan
}

/// Deletes the objects of interfaces that the machine does not want. Also of those that were forgotten before a cache that lagged behind
/// showed them.
fn unwanted(inputs: &Inputs<'_>, record: &Record) -> Vec<Op> {
    let wanted = record.interfaces.iter();
    let names: BTreeSet<String> = wanted
        .map(|interface| ids::apinet_nic_name(&record.id, &interface.name))
        .collect();
    let live = inputs.live.iter();
    live.filter(|live| !names.contains(name(live.as_ref())))
        .filter_map(deleted)
        .collect()
}

fn step(step: Step) -> Op {
    Op::Act(Act::new(step))
}

fn deleted(live: &Arc<NetworkInterface>) -> Option<Op> {
    (!is_deleting(live.as_ref())).then(|| Op::delete(live.as_ref()))
}

/// Gives the devices back and removes the namespace.
fn stop(inputs: &Inputs<'_>, record: &Record, plan: &mut Plan) {
    if !inputs.netns {
        return;
    }
    for interface in record.known.keys() {
        let tap = inputs
            .devices
            .get(interface)
            .map(|device| device.tap.clone());
        let tap = tap.or_else(|| live(inputs, record, interface).and_then(tap_of));
        plan.push(step(Step::Release {
            interface: interface.clone(),
            tap,
        }));
    }
    plan.push(step(Step::RemoveNamespace));
}

fn live<'a>(inputs: &Inputs<'a>, record: &Record, interface: &str) -> Option<&'a NetworkInterface> {
    let wanted = ids::apinet_nic_name(&record.id, interface);
    inputs
        .live
        .iter()
        .map(Arc::as_ref)
        .find(|live| name(*live) == wanted)
}

fn tap_of(live: &NetworkInterface) -> Option<String> {
    let tap = live.status.as_ref()?.tap_device.as_ref()?;
    (!tap.name.is_empty()).then(|| tap.name.clone())
}

fn drop_interface(
    inputs: &Inputs<'_>,
    record: &Record,
    interface: &str,
    plan: &mut Plan,
    writes: &mut Vec<Op>,
) {
    let object = live(inputs, record, interface);
    let device = inputs
        .devices
        .get(interface)
        .map(|device| device.tap.clone());
    let tap = device.or_else(|| object.and_then(tap_of));
    if inputs.netns {
        plan.push(step(Step::Release {
            interface: interface.to_owned(),
            tap,
        }));
    }
    writes.push(step(Step::Forget {
        interface: interface.to_owned(),
    }));
}

/// The device that an interface has is (still) the one it should have.
fn still_usable(
    inputs: &Inputs<'_>,
    record: &Record,
    interface: &str,
    known: &Known,
    device: &Device,
) -> bool {
    // Detached and attached again before anything was done about it: it is configured anew, and only then reported.
    if device.progress == Progress::Attached && known.handle.is_none() {
        return false;
    }
    match live(inputs, record, interface) {
        // Absent from the cache: nothing says that the device is wrong.
        None => known.handle.is_some(),
        Some(live) if is_deleting(live) => false,
        // A device that changed its name is another device.
        Some(live) => tap_of(live).is_none_or(|tap| tap == device.tap),
    }
}

fn keep_interface(
    inputs: &Inputs<'_>,
    record: &Record,
    interface: &Interface,
    plan: &mut Plan,
    writes: &mut Vec<Op>,
) {
    // Checked when the interface was accepted.
    let Ok(network) = interface.network_id.parse::<NetworkProviderId>() else {
        return;
    };
    if !record.known.contains_key(&interface.name) {
        let (interface, namespace) = (interface.name.clone(), network.namespace.clone());
        writes.push(step(Step::Remember {
            interface,
            namespace,
        }));
    }
    let ips: Vec<Ip> = interface
        .ips
        .iter()
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let object = live(inputs, record, &interface.name);
    match object {
        Some(object) if is_deleting(object) => {}
        Some(object) if !fits(object, inputs.node, &network, &ips, &record.hostname) => {
            // Addresses and network cannot change in place: make room for a new one.
            writes.push(Op::delete(object));
        }
        Some(object) if label_of(object, label::MACHINE_ID) != Some(&record.id) => {
            writes.push(apply(inputs.node, record, interface, &network, &ips));
        }
        Some(object) => {
            let ready = object.status.as_ref().and_then(|status| status.state)
                == Some(NetworkInterfaceState::Ready);
            let idle = !inputs.devices.contains_key(&interface.name);
            if ready
                && idle
                && record.power_on
                && let Some(tap) = tap_of(object)
            {
                plan.push(step(Step::Take(Take {
                    interface: interface.name.clone(),
                    tap,
                    ips,
                    handle: handle(object, inputs.node),
                })));
            }
        }
        None => writes.push(apply(inputs.node, record, interface, &network, &ips)),
    }
}

fn handle(object: &NetworkInterface, node: &str) -> String {
    NetworkInterfaceProviderId {
        namespace: namespace(object).to_owned(),
        name: name(object).to_owned(),
        node: node.to_owned(),
        uid: uid(object).to_owned(),
    }
    .to_string()
}

fn fits(
    object: &NetworkInterface,
    node: &str,
    network: &NetworkProviderId,
    ips: &[Ip],
    hostname: &str,
) -> bool {
    let spec = &object.spec;
    spec.node_ref.name == node
        && spec.network_ref.name == network.name
        && namespace(object) == network.namespace
        && spec.ips == ips
        && spec.hostname == hostname
}

fn apply(
    node: &str,
    record: &Record,
    interface: &Interface,
    network: &NetworkProviderId,
    ips: &[Ip],
) -> Op {
    let target = Target::new::<NetworkInterface>(
        &network.namespace,
        ids::apinet_nic_name(&record.id, &interface.name),
    );
    let mut spec = json!({
        "networkRef": {"name": network.name},
        "nodeRef": {"name": node},
        "ips": ips,
    });
    if !record.hostname.is_empty() {
        spec["hostname"] = json!(record.hostname);
    }
    let labels = json!({label::MACHINE_ID: record.id});
    Op::apply(
        target,
        manager::PROVIDER,
        json!({"metadata": {"labels": labels}, "spec": spec}),
    )
}
