//! What the calls of the MachineRuntime do to a record, and what they show of it. Pure.

use std::collections::{BTreeMap, HashMap};

use api::ids::NetworkProviderId;
use api::meta::Ip;
use proto::machine::{
    GuestConfig, Machine, MachineSpec, MachineState, MachineStatus, NetworkInterface,
    NetworkInterfaceState, NetworkInterfaceStatus, Power, Volume, VolumeState, VolumeStatus,
};
use proto::meta::ObjectMetadata;
use tonic::Status;

use super::classes::Class;
use super::record::{INTERFACES_MAX, Interface, Record, Volume as StoredVolume};

/// A new machine as the caller wants it; `id` and `netns` are its own.
pub fn create(
    machine: Option<Machine>,
    classes: &[Class],
    id: String,
    netns: String,
    now_ns: i64,
) -> Result<Record, Status> {
    let Some(Machine {
        metadata,
        spec: Some(spec),
        status: _,
    }) = machine
    else {
        return Err(Status::invalid_argument("machine has no spec"));
    };
    let metadata = metadata.unwrap_or_default();
    if !classes.iter().any(|class| class.name == spec.class) {
        let text = format!("machine class {:?} is not offered here", spec.class);
        return Err(Status::invalid_argument(text));
    }
    let mut interfaces = Vec::new();
    for wanted in spec.network_interfaces {
        let wanted = interface(Some(wanted))?;
        accept(&interfaces, &wanted)?;
        interfaces.push(wanted);
    }
    let volumes: Result<Vec<_>, Status> = spec
        .volumes
        .into_iter()
        .map(|wanted| volume(Some(wanted)))
        .collect();
    Ok(Record {
        netns,
        id,
        labels: metadata.labels.into_iter().collect(),
        annotations: metadata.annotations.into_iter().collect(),
        generation: 1,
        created_at: now_ns,
        deleted_at: 0,
        class: spec.class,
        power_on: power_on(spec.power),
        hostname: spec
            .guest_config
            .map(|config| config.hostname)
            .unwrap_or_default(),
        ignition: spec.ignition_data,
        volumes: volumes?,
        interfaces,
        ..Record::default()
    })
}

/// Changes what is wanted of a machine that is not being deleted: a new generation.
pub fn change<T>(
    record: &mut Record,
    change: impl FnOnce(&mut Record) -> Result<T, Status>,
) -> Result<T, Status> {
    let result = if record.is_deleted() {
        Err(Status::failed_precondition(format!(
            "machine {} is being deleted",
            record.id
        )))
    } else {
        change(record)
    };
    record.generation += i64::from(result.is_ok());
    result
}

/// Nobody wants the machine any more. False when that was known.
pub fn delete(record: &mut Record, now_ns: i64) -> bool {
    let first = !record.is_deleted();
    if first {
        record.deleted_at = now_ns;
        record.generation += 1;
    }
    first
}

/// Adds an interface; for [`change`].
pub fn attach(record: &mut Record, wanted: Option<NetworkInterface>) -> Result<(), Status> {
    let wanted = interface(wanted)?;
    accept(&record.interfaces, &wanted)?;
    record.interfaces.push(wanted);
    Ok(())
}

/// Removes an interface; for [`change`].
pub fn detach(record: &mut Record, name: &str) -> Result<(), Status> {
    let before = record.interfaces.len();
    record.interfaces.retain(|interface| interface.name != name);
    // A later interface of this name is another one and must be attached anew.
    if let Some(known) = record.known.get_mut(name) {
        known.handle = None;
    }
    let gone = record.interfaces.len() < before;
    let missing = || Status::not_found(format!("network interface {name} not found"));
    if gone { Ok(()) } else { Err(missing()) }
}

/// Whether a machine of this power shall run.
pub fn power_on(power: i32) -> bool {
    power != i32::from(Power::Off)
}

/// A record as the caller sees it; `running` says whether the machine's namespace exists.
pub fn show(record: &Record, running: bool) -> Machine {
    Machine {
        metadata: Some(metadata(record)),
        spec: Some(spec(record)),
        status: Some(status(record, running)),
    }
}

fn status(record: &Record, running: bool) -> MachineStatus {
    let state = match (record.is_deleted(), record.power_on, running) {
        (true, _, _) => MachineState::MachineTerminating,
        (false, false, false) => MachineState::MachineStopped,
        (false, false, true) | (false, true, false) => MachineState::MachinePending,
        (false, true, true) if record.started || record.is_complete() => {
            MachineState::MachineRunning
        }
        (false, true, true) => MachineState::MachinePending,
    };
    let attached = record.interfaces.iter().filter_map(|interface| {
        let handle = record.known.get(&interface.name)?.handle.clone()?;
        Some(NetworkInterfaceStatus {
            name: interface.name.clone(),
            handle,
            state: NetworkInterfaceState::NetworkInterfaceAttached.into(),
        })
    });
    // No longer wanted, and perhaps still in the machine: whoever asked for it must not give it to another one yet.
    let leaving = record.known.keys().filter(|name| {
        let mut wanted = record.interfaces.iter();
        !wanted.any(|interface| interface.name == **name)
    });
    let leaving = leaving.map(|name| NetworkInterfaceStatus {
        name: name.clone(),
        handle: String::new(),
        state: NetworkInterfaceState::NetworkInterfacePending.into(),
    });
    let volumes = record.volumes.iter().map(|volume| VolumeStatus {
        name: volume.name.clone(),
        handle: volume.handle.clone(),
        state: VolumeState::VolumeAttached.into(),
    });
    MachineStatus {
        // The status is made from the record of this very generation.
        observed_generation: record.generation,
        state: state.into(),
        image_ref: String::new(),
        volumes: volumes.collect(),
        network_interfaces: attached.chain(leaving).collect(),
        machine_conditions: Vec::new(),
    }
}

/// Identity, labels and annotations of a machine.
pub fn metadata(record: &Record) -> ObjectMetadata {
    let map = |map: &BTreeMap<String, String>| -> HashMap<String, String> {
        map.iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    ObjectMetadata {
        id: record.id.clone(),
        annotations: map(&record.annotations),
        labels: map(&record.labels),
        generation: record.generation,
        created_at: record.created_at,
        deleted_at: record.deleted_at,
    }
}

fn spec(record: &Record) -> MachineSpec {
    let interfaces = record.interfaces.iter().map(|interface| {
        let Interface {
            name,
            network_id,
            ips,
            attributes,
        } = interface.clone();
        NetworkInterface {
            name,
            network_id,
            ips,
            attributes: attributes.into_iter().collect(),
        }
    });
    let volumes = record.volumes.iter().map(|volume| Volume {
        name: volume.name.clone(),
        device: volume.device.clone(),
        ..Volume::default()
    });
    let power = if record.power_on {
        Power::On
    } else {
        Power::Off
    };
    MachineSpec {
        power: power.into(),
        class: record.class.clone(),
        ignition_data: record.ignition.clone(),
        volumes: volumes.collect(),
        network_interfaces: interfaces.collect(),
        guest_config: Some(GuestConfig {
            hostname: record.hostname.clone(),
        }),
    }
}

/// Parses an interface, so that later stages never meet a bad one.
fn interface(interface: Option<NetworkInterface>) -> Result<Interface, Status> {
    let Some(NetworkInterface {
        name,
        network_id,
        ips,
        attributes,
    }) = interface
    else {
        return Err(Status::invalid_argument("network interface is missing"));
    };
    if name.is_empty() {
        return Err(Status::invalid_argument("network interface has no name"));
    }
    if let Err(error) = network_id.parse::<NetworkProviderId>() {
        return Err(Status::invalid_argument(format!(
            "network interface {name}: {error}"
        )));
    }
    let mut parsed = Vec::new();
    for ip in ips {
        let ip: Ip = ip.parse().map_err(|error| {
            Status::invalid_argument(format!("network interface {name}: {error}"))
        })?;
        parsed.push(ip.to_string());
    }
    Ok(Interface {
        name,
        network_id,
        ips: parsed,
        attributes: attributes.into_iter().collect(),
    })
}

/// Parses a volume.
pub fn volume(volume: Option<Volume>) -> Result<StoredVolume, Status> {
    let volume = volume.ok_or_else(|| Status::invalid_argument("volume is missing"))?;
    let handle = volume
        .connection
        .map(|connection| connection.handle)
        .unwrap_or_default();
    Ok(StoredVolume {
        name: volume.name,
        device: volume.device,
        handle,
    })
}

/// Another interface may be added.
fn accept(present: &[Interface], wanted: &Interface) -> Result<(), Status> {
    if present
        .iter()
        .any(|interface| interface.name == wanted.name)
    {
        let text = format!("network interface {} exists", wanted.name);
        return Err(Status::already_exists(text));
    }
    if present.len() >= INTERFACES_MAX {
        let text = format!("a machine has at most {INTERFACES_MAX} network interfaces");
        return Err(Status::resource_exhausted(text));
    }
    Ok(())
}
