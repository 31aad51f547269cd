//! The rows of our own kinds.

use super::columns::{
    NONE, UNKNOWN, age, allocation_request, apinet_nic_public_ips, ip_claim, lock_claim,
    machine_image, machine_interfaces, name_column, network_peerings, network_vni, nic_device,
    nic_ips, nic_node, path, pool_classes, pool_ready, text, wide,
};
use super::{Allocation, Column, ColumnType, Generation, KindInfo, NameRule, Scope, VERBS, schema};
use crate::names::{APINET, CATEGORY, COMPUTE, IPAM, METALNET, NETWORKING, VERSION};
use crate::validate::{apinet, compute, ipam, metalnet, networking};
use crate::{defaults, schema::Schema};

const fn no_rules(_: &serde_json::Value) -> Vec<crate::field::FieldError> {
    Vec::new()
}

pub(super) const fn no_update_rules(
    _: &serde_json::Value,
    _: &serde_json::Value,
) -> Vec<crate::field::FieldError> {
    Vec::new()
}

/// What all our kinds have in common.
pub(super) const fn row(
    group: &'static str,
    kind: [&'static str; 4],
    scope: Scope,
    schema: fn() -> &'static Schema,
    columns: &'static [Column],
) -> KindInfo {
    let [kind, list_kind, plural, singular] = kind;
    KindInfo {
        group,
        version: VERSION,
        kind,
        list_kind,
        plural,
        singular,
        short_names: &[],
        categories: &[CATEGORY],
        scope,
        verbs: VERBS,
        subresources: &["status"],
        columns,
        selectable: &[],
        name_rule: NameRule::Subdomain,
        generation: Generation::SpecChange,
        locked_update: true,
        builtin: false,
        allocation: Allocation::None,
        schema,
        default: defaults::none,
        validate_create: no_rules,
        validate_update: no_update_rules,
        validate_status: no_update_rules,
    }
}

use Scope::{Cluster, Namespaced};

/// Our kinds.
pub(super) static OURS: &[KindInfo] = &[
    KindInfo {
        short_names: &["net"],
        default: defaults::network,
        validate_create: networking::network,
        validate_update: networking::network_update,
        ..row(
            NETWORKING,
            ["Network", "NetworkList", "networks", "network"],
            Namespaced,
            schema!(crate::networking::Network),
            &[
                name_column(),
                text("VNI", network_vni, "Virtual network identifier."),
                path("State", "status.state", UNKNOWN, "State of the network."),
                wide(text(
                    "Peerings",
                    network_peerings,
                    "Wanted peerings and their state.",
                )),
                wide(path(
                    "ProviderID",
                    "spec.providerID",
                    NONE,
                    "Handle of the realized network.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        short_names: &["nic"],
        selectable: &["spec.networkRef.name", "spec.machineRef.name"],
        default: defaults::nic,
        validate_create: networking::nic,
        validate_update: networking::nic_update,
        ..row(
            NETWORKING,
            [
                "NetworkInterface",
                "NetworkInterfaceList",
                "networkinterfaces",
                "networkinterface",
            ],
            Namespaced,
            schema!(crate::networking::NetworkInterface),
            &[
                name_column(),
                path(
                    "Network",
                    "spec.networkRef.name",
                    NONE,
                    "Network of the interface.",
                ),
                path(
                    "Machine",
                    "spec.machineRef.name",
                    NONE,
                    "Machine that uses the interface.",
                ),
                text("IPs", nic_ips, "Addresses of the interface."),
                path(
                    "VirtualIP",
                    "status.virtualIP",
                    NONE,
                    "Public address of the interface.",
                ),
                path("State", "status.state", UNKNOWN, "State of the interface."),
                wide(path(
                    "Prefixes",
                    "status.prefixes",
                    NONE,
                    "Prefixes routed to the interface.",
                )),
                wide(text("Node", nic_node, "Hypervisor of the interface.")),
                wide(path(
                    "ProviderID",
                    "spec.providerID",
                    NONE,
                    "Handle of the realized interface.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        short_names: &["vip"],
        name_rule: NameRule::Label,
        validate_create: networking::virtual_ip,
        validate_update: networking::virtual_ip_update,
        ..row(
            NETWORKING,
            ["VirtualIP", "VirtualIPList", "virtualips", "virtualip"],
            Namespaced,
            schema!(crate::networking::VirtualIP),
            &[
                name_column(),
                path(
                    "ExternalIP",
                    "status.ip",
                    "None",
                    "Reserved public address.",
                ),
                wide(path(
                    "Target",
                    "spec.targetRef.name",
                    NONE,
                    "Interface that uses the address.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        default: defaults::prefix,
        validate_create: ipam::prefix,
        validate_update: ipam::prefix_update,
        validate_status: ipam::prefix_status,
        ..row(
            IPAM,
            ["Prefix", "PrefixList", "prefixes", "prefix"],
            Namespaced,
            schema!(crate::ipam::Prefix),
            &[
                name_column(),
                path("Prefix", "spec.prefix", NONE, "The block of addresses."),
                path(
                    "Parent",
                    "spec.parentRef.name",
                    NONE,
                    "Prefix it was cut from.",
                ),
                path("Phase", "status.phase", UNKNOWN, "Phase of the prefix."),
                wide(path(
                    "Used",
                    "status.used",
                    NONE,
                    "Parts that were given away.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        default: defaults::allocation,
        validate_create: ipam::allocation,
        validate_update: ipam::allocation_update,
        validate_status: ipam::allocation_status,
        ..row(
            IPAM,
            [
                "PrefixAllocation",
                "PrefixAllocationList",
                "prefixallocations",
                "prefixallocation",
            ],
            Namespaced,
            schema!(crate::ipam::PrefixAllocation),
            &[
                name_column(),
                path("Prefix", "spec.prefixRef.name", NONE, "Prefix to cut from."),
                text("Request", allocation_request, "What is asked for."),
                path("State", "status.phase", UNKNOWN, "Phase of the allocation."),
                path("Result", "status.prefix", UNKNOWN, "What was given."),
                age(),
            ],
        )
    },
    KindInfo {
        name_rule: NameRule::Label,
        subresources: &["status", "exec"],
        selectable: &["spec.machinePoolRef.name", "spec.machineClassRef.name"],
        default: defaults::machine,
        validate_create: compute::machine,
        validate_update: compute::machine_update,
        ..row(
            COMPUTE,
            ["Machine", "MachineList", "machines", "machine"],
            Namespaced,
            schema!(crate::compute::Machine),
            &[
                name_column(),
                path(
                    "MachineClassRef",
                    "spec.machineClassRef.name",
                    NONE,
                    "Class of the machine.",
                ),
                path(
                    "MachinePoolRef",
                    "spec.machinePoolRef.name",
                    NONE,
                    "Pool that runs the machine.",
                ),
                path("State", "status.state", UNKNOWN, "State of the machine."),
                wide(text(
                    "Interfaces",
                    machine_interfaces,
                    "Network interfaces and their state.",
                )),
                wide(text("Image", machine_image, "Image of the first disk.")),
                wide(path(
                    "MachineID",
                    "status.machineID",
                    NONE,
                    "Handle of the machine in its runtime.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        subresources: &[],
        validate_create: compute::machine_class,
        validate_update: compute::machine_class_update,
        ..row(
            COMPUTE,
            [
                "MachineClass",
                "MachineClassList",
                "machineclasses",
                "machineclass",
            ],
            Cluster,
            schema!(crate::compute::MachineClass),
            &[
                name_column(),
                path(
                    "CPU",
                    "capabilities.cpu",
                    NONE,
                    "Processors of one machine.",
                ),
                path(
                    "Memory",
                    "capabilities.memory",
                    NONE,
                    "Memory of one machine.",
                ),
                age(),
            ],
        )
    },
    KindInfo {
        validate_create: compute::machine_pool,
        validate_update: compute::machine_pool_update,
        ..row(
            COMPUTE,
            [
                "MachinePool",
                "MachinePoolList",
                "machinepools",
                "machinepool",
            ],
            Cluster,
            schema!(crate::compute::MachinePool),
            &[
                name_column(),
                text(
                    "MachineClasses",
                    pool_classes,
                    "Classes that the pool can run.",
                ),
                text("State", pool_ready, "Ready condition of the pool."),
                wide(path(
                    "ProviderID",
                    "spec.providerID",
                    NONE,
                    "Handle of the pool.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        subresources: &[],
        name_rule: NameRule::Label,
        selectable: &["spec.ip"],
        allocation: Allocation::IpAddress,
        default: defaults::apinet_ip,
        validate_create: apinet::ip,
        validate_update: apinet::ip_update,
        ..row(
            APINET,
            ["IP", "IPList", "ips", "ip"],
            Namespaced,
            schema!(crate::apinet::IP),
            &[
                name_column(),
                path("Type", "spec.type", NONE, "Kind of address."),
                path("IP", "spec.ip", NONE, "The address."),
                text("ClaimRef", ip_claim, "Who uses the address."),
                age(),
            ],
        )
    },
    KindInfo {
        subresources: &[],
        name_rule: NameRule::IpAddress,
        validate_create: apinet::ip_address,
        validate_update: apinet::lock_update,
        ..row(
            APINET,
            ["IPAddress", "IPAddressList", "ipaddresses", "ipaddress"],
            Cluster,
            schema!(crate::apinet::IPAddress),
            &[
                name_column(),
                text("ClaimRef", lock_claim, "Who holds the address."),
                age(),
            ],
        )
    },
    KindInfo {
        name_rule: NameRule::Label,
        allocation: Allocation::NetworkVni,
        validate_create: apinet::network,
        validate_update: apinet::network_update,
        ..row(
            APINET,
            ["Network", "NetworkList", "networks", "network"],
            Namespaced,
            schema!(crate::apinet::Network),
            &[
                name_column(),
                path("ID", "spec.id", NONE, "Virtual network identifier."),
                age(),
            ],
        )
    },
    KindInfo {
        subresources: &[],
        name_rule: NameRule::Vni,
        validate_create: apinet::network_id,
        validate_update: apinet::lock_update,
        ..row(
            APINET,
            ["NetworkID", "NetworkIDList", "networkids", "networkid"],
            Cluster,
            schema!(crate::apinet::NetworkID),
            &[
                name_column(),
                text("ClaimRef", lock_claim, "Who holds the VNI."),
                age(),
            ],
        )
    },
    KindInfo {
        name_rule: NameRule::Label,
        selectable: &["spec.nodeRef.name", "spec.networkRef.name"],
        allocation: Allocation::PublicIps,
        default: defaults::apinet_nic,
        validate_create: apinet::nic,
        validate_update: apinet::nic_update,
        ..row(
            APINET,
            [
                "NetworkInterface",
                "NetworkInterfaceList",
                "networkinterfaces",
                "networkinterface",
            ],
            Namespaced,
            schema!(crate::apinet::NetworkInterface),
            &[
                name_column(),
                path(
                    "Network",
                    "spec.networkRef.name",
                    NONE,
                    "Network of the interface.",
                ),
                path("IPs", "spec.ips", NONE, "Addresses of the interface."),
                path(
                    "Prefixes",
                    "spec.prefixes",
                    NONE,
                    "Prefixes routed to the interface.",
                ),
                text(
                    "PublicIPs",
                    apinet_nic_public_ips,
                    "Public addresses of the interface.",
                ),
                path("State", "status.state", UNKNOWN, "State of the interface."),
                wide(path(
                    "Node",
                    "spec.nodeRef.name",
                    NONE,
                    "Hypervisor of the interface.",
                )),
                wide(text(
                    "Device",
                    nic_device,
                    "TAP or PCI device of the interface.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        ..row(
            APINET,
            ["Node", "NodeList", "nodes", "node"],
            Cluster,
            schema!(crate::apinet::Node),
            &[
                name_column(),
                wide(text("State", pool_ready, "Ready condition of the node.")),
                age(),
            ],
        )
    },
    KindInfo {
        ..row(
            METALNET,
            ["Network", "NetworkList", "networks", "network"],
            Namespaced,
            schema!(crate::metalnet::Network),
            &[
                name_column(),
                wide(Column {
                    kind: ColumnType::Integer,
                    ..path("Handle", "spec.id", NONE, "Virtual network identifier.")
                }),
                age(),
            ],
        )
    },
    KindInfo {
        short_names: &["ni"],
        selectable: &["spec.nodeName", "spec.networkRef.name"],
        validate_create: metalnet::nic,
        validate_update: metalnet::nic_update,
        ..row(
            METALNET,
            [
                "NetworkInterface",
                "NetworkInterfaceList",
                "networkinterfaces",
                "networkinterface",
            ],
            Namespaced,
            schema!(crate::metalnet::NetworkInterface),
            &[
                name_column(),
                path("Status", "status.state", UNKNOWN, "State of the interface."),
                path(
                    "NodeName",
                    "spec.nodeName",
                    NONE,
                    "Node that realizes the interface.",
                ),
                wide(path(
                    "Network",
                    "spec.networkRef.name",
                    NONE,
                    "Network of the interface.",
                )),
                wide(path(
                    "Targets",
                    "spec.loadBalancerTargets",
                    NONE,
                    "Load balancer addresses it serves.",
                )),
                wide(path("IPS", "spec.ips", NONE, "Addresses of the interface.")),
                wide(path(
                    "VirtualIP",
                    "spec.virtualIP",
                    NONE,
                    "Public address of the interface.",
                )),
                wide(text(
                    "Device",
                    nic_device,
                    "TAP or PCI device of the interface.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        selectable: &["spec.nodeName", "spec.networkRef.name"],
        validate_create: metalnet::load_balancer,
        validate_update: metalnet::load_balancer_update,
        ..row(
            METALNET,
            [
                "LoadBalancer",
                "LoadBalancerList",
                "loadbalancers",
                "loadbalancer",
            ],
            Namespaced,
            schema!(crate::metalnet::LoadBalancer),
            &[
                name_column(),
                path(
                    "Status",
                    "status.state",
                    UNKNOWN,
                    "State of the load balancer.",
                ),
                path(
                    "NodeName",
                    "spec.nodeName",
                    NONE,
                    "Node that carries the instance.",
                ),
                wide(path("IP", "spec.ip", NONE, "The balanced address.")),
                wide(path(
                    "Type",
                    "spec.type",
                    NONE,
                    "Where the address is announced.",
                )),
                age(),
            ],
        )
    },
];
