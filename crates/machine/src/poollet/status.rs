//! From what the runtime reports to the status of the Machine. Pure.

use api::compute::{
    AttachmentState, Machine, MachineNetworkInterfaceStatus, MachineState, MachineStatus,
    MachineVolumeStatus,
};
use api::meta::{Condition, LocalObjectReference, Time};
use controller::object::name;
use proto::machine::{
    Machine as RuntimeMachine, MachineState as RuntimeState, MachineStatus as RuntimeStatus,
    NetworkInterfaceState, VolumeState,
};

use super::runtime::id_of;

/// Milliseconds since 1970 as the API writes them. Times outside the calendar cannot come from a clock; they become the epoch.
pub fn to_time(now_ms: u64) -> Time {
    let ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
    Time(api::k8s_openapi::jiff::Timestamp::from_millisecond(ms).unwrap_or_default())
}

/// State of a Machine. The reference has no word for a stopped machine and fails on it; for the user it is shut down.
pub fn state(runtime: i32) -> MachineState {
    match RuntimeState::try_from(runtime).unwrap_or(RuntimeState::MachinePending) {
        RuntimeState::MachinePending => MachineState::Pending,
        RuntimeState::MachineRunning => MachineState::Running,
        RuntimeState::MachineSuspended | RuntimeState::MachineStopped => MachineState::Shutdown,
        RuntimeState::MachineTerminated => MachineState::Terminated,
        RuntimeState::MachineTerminating => MachineState::Terminating,
    }
}

/// The whole status for what `runtime` reports.
pub fn status(
    machine: &Machine,
    runtime: &RuntimeMachine,
    runtime_name: &str,
    now_ms: u64,
) -> MachineStatus {
    let old = machine.status.clone().unwrap_or_default();
    let empty = RuntimeStatus::default();
    let reported = runtime.status.as_ref().unwrap_or(&empty);
    let now = to_time(now_ms);
    let interfaces = interfaces(machine, &old, reported, &now);
    let volumes = volumes(machine, &old, reported, &now);
    let state = state(reported.state);
    let conditions = conditions(machine, &old, state, &interfaces, &volumes, &now);
    MachineStatus {
        machine_id: format!("{runtime_name}://{}", id_of(runtime)),
        observed_generation: machine.metadata.generation,
        conditions,
        state: Some(state),
        volumes,
        network_interfaces: interfaces,
    }
}

fn interfaces(
    machine: &Machine,
    old: &MachineStatus,
    reported: &RuntimeStatus,
    now: &Time,
) -> Vec<MachineNetworkInterfaceStatus> {
    let entries = machine.spec.network_interfaces.iter().map(|entry| {
        let found = reported
            .network_interfaces
            .iter()
            .find(|status| status.name == entry.name);
        let attached = found.is_some_and(|status| {
            status.state == i32::from(NetworkInterfaceState::NetworkInterfaceAttached)
        });
        let state = if attached {
            AttachmentState::Attached
        } else {
            AttachmentState::Pending
        };
        let before = old
            .network_interfaces
            .iter()
            .find(|status| status.name == entry.name);
        let since = before.filter(|status| status.state == Some(state));
        MachineNetworkInterfaceStatus {
            name: entry.name.clone(),
            handle: found
                .map(|status| status.handle.clone())
                .unwrap_or_default(),
            state: Some(state),
            network_interface_ref: Some(LocalObjectReference::new(
                entry.object_name(name(machine)),
            )),
            last_state_transition_time: since
                .and_then(|status| status.last_state_transition_time.clone())
                .or_else(|| Some(now.clone())),
        }
    });
    entries.collect()
}

fn volumes(
    machine: &Machine,
    old: &MachineStatus,
    reported: &RuntimeStatus,
    now: &Time,
) -> Vec<MachineVolumeStatus> {
    let entries = machine.spec.volumes.iter().map(|entry| {
        let found = reported
            .volumes
            .iter()
            .find(|status| status.name == entry.name);
        let attached =
            found.is_some_and(|status| status.state == i32::from(VolumeState::VolumeAttached));
        let state = if attached {
            AttachmentState::Attached
        } else {
            AttachmentState::Pending
        };
        let before = old.volumes.iter().find(|status| status.name == entry.name);
        let since = before.filter(|status| status.state == Some(state));
        MachineVolumeStatus {
            name: entry.name.clone(),
            handle: found
                .map(|status| status.handle.clone())
                .unwrap_or_default(),
            state: Some(state),
            last_state_transition_time: since
                .and_then(|status| status.last_state_transition_time.clone())
                .or_else(|| Some(now.clone())),
        }
    });
    entries.collect()
}

fn conditions(
    machine: &Machine,
    old: &MachineStatus,
    state: MachineState,
    interfaces: &[MachineNetworkInterfaceStatus],
    volumes: &[MachineVolumeStatus],
    now: &Time,
) -> Vec<Condition> {
    let waiting_nic = interfaces
        .iter()
        .find(|nic| nic.state != Some(AttachmentState::Attached));
    let waiting_volume = volumes
        .iter()
        .find(|volume| volume.state != Some(AttachmentState::Attached));
    let (ready, reason) = match state {
        MachineState::Running => (true, "Running"),
        MachineState::Pending => (false, "Pending"),
        MachineState::Terminating => (false, "Terminating"),
        MachineState::Shutdown | MachineState::Terminated => (false, "NotReady"),
    };
    let nics = match waiting_nic {
        None => (true, "NetworkInterfacesReady", String::new()),
        Some(nic) => (
            false,
            "NetworkInterfaceNotReady",
            format!("network interface {} is not attached", nic.name),
        ),
    };
    let disks = match waiting_volume {
        None => (true, "VolumesReady", String::new()),
        Some(volume) => (
            false,
            "VolumeNotReady",
            format!("volume {} is not attached", volume.name),
        ),
    };
    let all = [
        ("Ready", ready, reason, String::new()),
        ("NetworkInterfacesReady", nics.0, nics.1, nics.2),
        ("VolumesReady", disks.0, disks.1, disks.2),
    ];
    let conditions = all.into_iter().map(|(type_, ok, reason, message)| {
        let status = if ok { "True" } else { "False" };
        let before = old
            .conditions
            .iter()
            .find(|c| c.type_ == type_ && c.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: machine.metadata.generation,
            last_transition_time: before
                .map_or_else(|| now.clone(), |c| c.last_transition_time.clone()),
        }
    });
    conditions.collect()
}
