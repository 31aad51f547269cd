//! `compute.openkcm.dev/v1alpha1`: machines, their classes and the pools that run them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::macros::{kind, words};
use crate::meta::{
    Condition, LocalObjectReference, ObjectMeta, Quantity, SecretKeySelector, Taint, Time,
    Toleration,
};
use crate::names::COMPUTE;
use crate::networking::NetworkInterfaceTemplateSpec;

/// Machine is a computer that runs on one pool and is connected to networks.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct Machine {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the user wants.
    #[serde(default)]
    pub spec: MachineSpec,
    /// What was observed.
    #[serde(default)]
    pub status: Option<MachineStatus>,
}
kind!(Machine, COMPUTE, "machines", NamespaceResourceScope, required spec, optional status);

words! {
    /// Power of a machine.
    Power { On, Off }
}

/// What the user wants of a Machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineSpec {
    /// The class, which says how big the machine is. Immutable.
    pub machine_class_ref: LocalObjectReference,
    /// Labels that the pool must carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub machine_pool_selector: BTreeMap<String, String>,
    /// The pool that runs the machine. Set once, usually by the scheduler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_pool_ref: Option<LocalObjectReference>,
    /// Whether the machine shall run; the default is On.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<Power>,
    /// Network interfaces of the machine; may change while it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub network_interfaces: Vec<MachineNetworkInterface>,
    /// Volumes of the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub volumes: Vec<MachineVolume>,
    /// Secret with the first-boot configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignition_ref: Option<SecretKeySelector>,
    /// EFI variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub efi_vars: Vec<EfiVar>,
    /// Taints of pools that the machine accepts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// What the guest is told about itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_config: Option<GuestConfig>,
}

/// A network interface of a machine: exactly one of networkInterfaceRef and ephemeral.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineNetworkInterface {
    /// Name of the entry, unique in the machine.
    pub name: String,
    /// A NetworkInterface of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_interface_ref: Option<LocalObjectReference>,
    /// A NetworkInterface made for the machine, named `<machine>-<entry>`, and deleted with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralNetworkInterfaceSource>,
}

impl MachineNetworkInterface {
    /// Name of the NetworkInterface object that this entry of `machine` stands for.
    pub fn object_name(&self, machine: &str) -> String {
        match &self.network_interface_ref {
            Some(reference) => reference.name.clone(),
            None => format!("{machine}-{}", self.name),
        }
    }
}

/// A NetworkInterface made for a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EphemeralNetworkInterfaceSource {
    /// Template of the NetworkInterface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_interface_template: Option<NetworkInterfaceTemplateSpec>,
}

/// A volume of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineVolume {
    /// Name of the entry, unique in the machine.
    pub name: String,
    /// Device name in the guest, `oda`, `odb` …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// A Volume of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_ref: Option<LocalObjectReference>,
    /// A disk of the hypervisor that lives as long as the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_disk: Option<LocalDiskVolumeSource>,
}

/// A disk of the hypervisor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LocalDiskVolumeSource {
    /// Size of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// Image that the disk starts with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
}

/// An EFI variable.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EfiVar {
    /// Name of the variable.
    pub name: String,
    /// Vendor UUID of the variable.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uuid: String,
    /// Value of the variable.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
}

/// What the guest is told about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GuestConfig {
    /// Host name of the guest. Cannot be added, changed or removed later.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
}

words! {
    /// State of a machine.
    MachineState { Pending, Running, Shutdown, Terminated, Terminating }
}

/// What was observed of a Machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineStatus {
    /// `<runtime>://<id>` of the machine in the runtime.
    #[serde(
        default,
        rename = "machineID",
        skip_serializing_if = "String::is_empty"
    )]
    pub machine_id: String,
    /// Generation of the Machine that the status belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, NetworkInterfacesReady and VolumesReady.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// State of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<MachineState>,
    /// State of the volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<MachineVolumeStatus>,
    /// State of the network interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<MachineNetworkInterfaceStatus>,
}

words! {
    /// State of a volume or network interface of a machine.
    AttachmentState { Pending, Attached }
}

/// What was observed of a network interface of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineNetworkInterfaceStatus {
    /// Name of the entry.
    pub name: String,
    /// Handle that the machine provider gave.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub handle: String,
    /// Attached once the machine has the interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<AttachmentState>,
    /// The NetworkInterface behind the entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_interface_ref: Option<LocalObjectReference>,
    /// When the state changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_state_transition_time: Option<Time>,
}

/// What was observed of a volume of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineVolumeStatus {
    /// Name of the entry.
    pub name: String,
    /// Handle that the machine provider gave.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub handle: String,
    /// Attached once the machine has the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<AttachmentState>,
    /// When the state changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_state_transition_time: Option<Time>,
}

/// MachineClass says how big a machine is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct MachineClass {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Resources of one machine; cpu and memory are required. Immutable.
    #[serde(default)]
    pub capabilities: BTreeMap<String, Quantity>,
}
kind!(MachineClass, COMPUTE, "machineclasses", ClusterResourceScope, required capabilities);

/// MachinePool is a hypervisor or a group of them that runs machines.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct MachinePool {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the pool says about itself.
    #[serde(default)]
    pub spec: MachinePoolSpec,
    /// What was observed.
    #[serde(default)]
    pub status: Option<MachinePoolStatus>,
}
kind!(MachinePool, COMPUTE, "machinepools", ClusterResourceScope, required spec, optional status);

/// Description of a MachinePool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachinePoolSpec {
    /// Handle of the pool. Immutable once set.
    #[serde(
        default,
        rename = "providerID",
        skip_serializing_if = "String::is_empty"
    )]
    pub provider_id: String,
    /// Keep machines away that do not tolerate them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
}

words! {
    /// State of a pool.
    MachinePoolState { Pending, Ready, Error, Offline }
}

/// What was observed of a MachinePool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachinePoolStatus {
    /// State of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<MachinePoolState>,
    /// Ready says whether the pool takes machines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<MachinePoolCondition>,
    /// Classes that the pool can run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub available_machine_classes: Vec<LocalObjectReference>,
    /// Addresses of the pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<MachinePoolAddress>,
    /// Ports of the poollet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daemon_endpoints: Option<MachinePoolDaemonEndpoints>,
    /// How much the pool can run in all; `class/machine.<class>` counts machines.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capacity: BTreeMap<String, Quantity>,
    /// How much is still free.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub allocatable: BTreeMap<String, Quantity>,
}

/// A condition of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachinePoolCondition {
    /// Type of the condition, in CamelCase.
    #[serde(rename = "type")]
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// One word saying why, in CamelCase.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Text for a human.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Generation of the pool that the condition belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When the condition was written last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<Time>,
    /// When the status changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
}

words! {
    /// Type of an address of a pool.
    MachinePoolAddressType { Hostname, InternalIP, ExternalIP, InternalDNS, ExternalDNS }
}

/// An address of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MachinePoolAddress {
    /// Type of the address.
    #[serde(rename = "type")]
    pub type_: MachinePoolAddressType,
    /// The address.
    pub address: String,
}

/// Ports of the poollet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachinePoolDaemonEndpoints {
    /// The poollet itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machinepoollet_endpoint: Option<DaemonEndpoint>,
}

/// A port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DaemonEndpoint {
    /// TCP port.
    pub port: i32,
}
