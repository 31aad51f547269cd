//! Every well-known string of the region in one place: groups, labels, annotations, finalizers,
//! field managers, namespaces and identities. Nothing else may spell them.

/// Version of all our groups.
pub const VERSION: &str = "v1alpha1";

/// User API: networks, network interfaces, virtual IPs.
pub const NETWORKING: &str = "networking.openkcm.dev";
/// User API: prefixes.
pub const IPAM: &str = "ipam.openkcm.dev";
/// User API: machines.
pub const COMPUTE: &str = "compute.openkcm.dev";
/// OpenKCM-net, the region-wide coordination layer.
pub const APINET: &str = "core.apinet.openkcm.dev";
/// What metalnet realizes on the hypervisors of one compute cluster.
pub const METALNET: &str = "networking.metalnet.openkcm.dev";
/// All our groups.
pub const GROUPS: [&str; 5] = [NETWORKING, IPAM, COMPUTE, APINET, METALNET];

/// Category of all our kinds: `kubectl get openkcm`.
pub const CATEGORY: &str = "openkcm";

/// Namespaces that the API server creates at first start.
pub mod namespace {
    /// Where apinetlet keeps the OpenKCM-net objects of the region.
    pub const APINET: &str = "openkcm-net-system";
    /// Where metalnetlet keeps the metalnet objects.
    pub const METALNET: &str = "metalnet-system";
    /// Heartbeat leases of machine pools.
    pub const MACHINE_POOL_LEASE: &str = "openkcm-machinepool-lease";
    /// Heartbeat leases of the nodes of a compute cluster.
    pub const NODE_LEASE: &str = "kube-node-lease";
    /// Heartbeat leases of OpenKCM-net Nodes whose compute cluster has an API server of its own.
    pub const APINET_NODE_LEASE: &str = "openkcm-net-node-lease";
    /// All namespaces that exist from the first start on.
    pub const BOOTSTRAP: [&str; 8] = [
        "default",
        "kube-system",
        "kube-public",
        NODE_LEASE,
        APINET_NODE_LEASE,
        APINET,
        METALNET,
        MACHINE_POOL_LEASE,
    ];
}

/// Label keys.
pub mod label {
    /// Only reconciled by parts started with the same watch filter.
    pub const WATCH_FILTER: &str = "common.openkcm.dev/watch-filter";
    /// UID of the Prefix that asked for an allocation.
    pub const REQUESTER_UID: &str = "ipam.openkcm.dev/requester-uid";
    /// Region of a pool.
    pub const TOPOLOGY_REGION: &str = "topology.openkcm.dev/region";
    /// Zone of a pool.
    pub const TOPOLOGY_ZONE: &str = "topology.openkcm.dev/zone";
    /// `IPv4` or `IPv6` on OpenKCM-net IP objects, set by the server.
    pub const IP_FAMILY: &str = "apinet.openkcm.dev/ip-family";
    /// Address of an OpenKCM-net IP object with `:` replaced by `-`, set by the server.
    pub const IP: &str = "apinet.openkcm.dev/ip";
    /// Partition of an OpenKCM-net Node.
    pub const APINET_PARTITION: &str = "topology.core.apinet.openkcm.dev/partition";
    /// Zone of an OpenKCM-net Node.
    pub const APINET_ZONE: &str = "topology.core.apinet.openkcm.dev/zone";
    /// Hash of the template that an Instance was made from.
    pub const REVISION_HASH: &str = "apinet.openkcm.dev/controller-revision-hash";
    /// Machine id on OpenKCM-net network interfaces that a machine provider made.
    pub const MACHINE_ID: &str = "libvirt-provider.openkcm.dev/machine-id";
    /// Poollet: UID of the Machine a runtime machine belongs to.
    pub const POOLLET_MACHINE_UID: &str = "machinepoollet.openkcm.dev/machine-uid";
    /// Poollet: namespace of that Machine.
    pub const POOLLET_MACHINE_NAMESPACE: &str = "machinepoollet.openkcm.dev/machine-namespace";
    /// Poollet: name of that Machine.
    pub const POOLLET_MACHINE_NAME: &str = "machinepoollet.openkcm.dev/machine-name";
    /// Poollet: labels of a network interface handed to the runtime.
    pub const POOLLET_NIC_UID: &str = "machinepoollet.openkcm.dev/nic-uid";
    /// Poollet: namespace of the network interface.
    pub const POOLLET_NIC_NAMESPACE: &str = "machinepoollet.openkcm.dev/nic-namespace";
    /// Poollet: name of the network interface.
    pub const POOLLET_NIC_NAME: &str = "machinepoollet.openkcm.dev/nic-name";
    /// Poollet: UID of the network.
    pub const POOLLET_NETWORK_UID: &str = "machinepoollet.openkcm.dev/network-uid";
    /// Poollet: namespace of the network.
    pub const POOLLET_NETWORK_NAMESPACE: &str = "machinepoollet.openkcm.dev/network-namespace";
    /// Poollet: name of the network.
    pub const POOLLET_NETWORK_NAME: &str = "machinepoollet.openkcm.dev/network-name";
}

/// Annotation keys and values.
pub mod annotation {
    /// The object was made by one of the controllers of ephemeral objects.
    pub const EPHEMERAL_MANAGED_BY: &str = "common.openkcm.dev/ephemeral-managed-by";
    /// Value of [`EPHEMERAL_MANAGED_BY`].
    pub const EPHEMERAL_MANAGER: &str = "ephemeral-manager";
    /// How often a Prefix had asked before it made this PrefixAllocation; absent means never.
    pub const ALLOCATION_ATTEMPT: &str = "ipam.openkcm.dev/attempt";
    /// Externally managed: our parts ignore the object.
    pub const MANAGED_BY: &str = "common.openkcm.dev/managed-by";
    /// Asks a poollet for a reconcile.
    pub const RECONCILE_REQUESTED_AT: &str = "reconcile.common.openkcm.dev/requested-at";
    /// When the user of an OpenKCM-net IP let go of it (RFC 3339). The data plane may still use the address.
    pub const IP_RELEASED_AT: &str = "apinet.openkcm.dev/released-at";
    /// Public addresses that a data plane may have, see [`crate::held`].
    pub const IN_DATA_PLANE: &str = "apinet.openkcm.dev/in-data-plane";
    /// Poollet: generation of the Machine that the runtime machine was made from.
    pub const POOLLET_MACHINE_GENERATION: &str = "machinepoollet.openkcm.dev/machine-generation";
    /// Poollet: generation of the runtime machine whose status may be taken over.
    pub const POOLLET_IRI_GENERATION: &str = "machinepoollet.openkcm.dev/irimachine-generation";
    /// Poollet: JSON map of machine interface name to `{name, uid}` of the network interface.
    pub const POOLLET_NIC_MAPPING: &str = "machinepoollet.openkcm.dev/networkinterfacemapping";
}

/// Finalizers.
pub mod finalizer {
    /// Keeps a user Network while something uses it.
    pub const NETWORK: &str = "networking.openkcm.dev/network";
    /// Keeps a Prefix while allocations from it exist.
    pub const PREFIX: &str = "ipam.openkcm.dev/prefix";
    /// Keeps a MachineClass while machines use it.
    pub const MACHINE_CLASS: &str = "compute.openkcm.dev/machineclass";
    /// Keeps a Machine until the runtime has removed it.
    pub const MACHINE: &str = "machinepoollet.openkcm.dev/machine";
    /// Keeps an IPAddress until the claiming IP is gone.
    pub const IP_ADDRESS_PROTECTION: &str = "apinet.openkcm.dev/ipaddress-protection";
    /// Keeps an OpenKCM-net IP that is being deleted until no user and no data plane has the address.
    pub const IP_IN_USE: &str = "apinet.openkcm.dev/ip-in-use";
    /// Keeps an OpenKCM-net LoadBalancer or NATGateway until no Instance or interface uses its addresses. An object without it has
    /// never reached a data plane.
    pub const DATA_PLANE: &str = "apinet.openkcm.dev/data-plane";
    /// apinetlet on a user Network.
    pub const APINETLET_NETWORK: &str = "apinet.openkcm.dev/network";
    /// apinetlet on a user NetworkInterface.
    pub const APINETLET_NETWORK_INTERFACE: &str = "apinet.openkcm.dev/networkinterface";
    /// apinetlet on a user VirtualIP.
    pub const APINETLET_VIRTUAL_IP: &str = "apinet.openkcm.dev/virtualip";
    /// apinetlet on a user LoadBalancer.
    pub const APINETLET_LOAD_BALANCER: &str = "apinet.openkcm.dev/loadbalancer";
    /// apinetlet on a user NATGateway.
    pub const APINETLET_NAT_GATEWAY: &str = "apinet.openkcm.dev/natgateway";
    /// apinetlet on a user NetworkPolicy.
    pub const APINETLET_NETWORK_POLICY: &str = "apinet.openkcm.dev/networkpolicy";
    /// metalnetlet on the Kubernetes Node of its compute cluster.
    pub const METALNETLET_NODE: &str = "apinet.openkcm.dev/node";
    /// metalnet on its NetworkInterface.
    pub const METALNET_NETWORK_INTERFACE: &str = "networking.metalnet.openkcm.dev/networkInterface";
    /// metalnet on its LoadBalancer.
    pub const METALNET_LOAD_BALANCER: &str = "networking.metalnet.openkcm.dev/loadBalancer";

    /// metalnetlet on OpenKCM-net objects, one per partition.
    pub fn metalnetlet_partition(partition: &str) -> String {
        format!("partition.metalnetlet.apinet.openkcm.dev/{partition}")
    }
    /// metalnet on a metalnet Network, one per node.
    pub fn metalnet_network(node: &str) -> String {
        format!("networking.metalnet.openkcm.dev/network-{node}")
    }
}

/// Field managers of server-side apply.
pub mod manager {
    /// Controllers of OpenKCM-net in the controller manager.
    pub const APINET: &str = "apinet.openkcm.dev/controller-manager";
    /// apinetlet.
    pub const APINETLET: &str = "openkcm.dev/apinetlet";
    /// metalnetlet on metalnet objects.
    pub const METALNETLET: &str = "metalnetlet.apinet.openkcm.dev/controller-manager";
    /// machinepoollet on its MachinePool.
    pub const POOLLET: &str = "machinepoollet.openkcm.dev/field-owner";
    /// Machine provider on OpenKCM-net network interfaces.
    pub const PROVIDER: &str = "networking.openkcm.dev/libvirt-provider";
    /// Controllers of the user API.
    pub const CORE: &str = "openkcm.dev/controller-manager";
    /// The controller of the user API that fills LoadBalancerRoutings.
    pub const LOAD_BALANCER: &str = "loadbalancers.networking.openkcm.dev";
    /// metalnet on its own objects.
    pub const METALNET: &str = "networking.metalnet.openkcm.dev/metalnet";

    /// metalnetlet on OpenKCM-net Nodes.
    pub fn metalnetlet_partition(partition: &str) -> String {
        format!("partition.metalnetlet.apinet.openkcm.dev/{partition}")
    }
}

/// Bases of the origin labels and annotations: `<base>-namespace`, `-name`, `-uid` say which object of
/// the layer above an object was made for.
pub mod origin {
    /// apinetlet: made for a user Network.
    pub const NETWORK: &str = "apinetlet.openkcm.dev/network";
    /// apinetlet: made for a user NetworkInterface.
    pub const NETWORK_INTERFACE: &str = "apinetlet.openkcm.dev/networkinterface";
    /// apinetlet: made for a user VirtualIP.
    pub const VIRTUAL_IP: &str = "apinetlet.openkcm.dev/virtualip";
    /// apinetlet: made for a user LoadBalancer.
    pub const LOAD_BALANCER: &str = "apinetlet.openkcm.dev/loadbalancer";
    /// apinetlet: made for a user NATGateway.
    pub const NAT_GATEWAY: &str = "apinetlet.openkcm.dev/natgateway";
    /// apinetlet: made for a user NetworkPolicy.
    pub const NETWORK_POLICY: &str = "apinetlet.openkcm.dev/networkpolicy";
    /// metalnetlet: made for an OpenKCM-net Network.
    pub const METALNET_NETWORK: &str = "metalnetlet.openkcm.dev/network";
    /// metalnetlet: made for an OpenKCM-net NetworkInterface.
    pub const METALNET_NETWORK_INTERFACE: &str = "metalnetlet.openkcm.dev/networkinterface";
    /// metalnetlet: made for an OpenKCM-net Instance.
    pub const METALNET_INSTANCE: &str = "metalnetlet.openkcm.dev/instance";
}

/// Client certificates that parts ask for themselves.
pub mod certificate {
    /// Group of certificate signing requests.
    pub const GROUP: &str = "certificates.k8s.io";
    /// The signer of client certificates of the API server.
    pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
    /// Subresource of requests that stands for "ask for the certificate of an apinetlet".
    pub const APINETLET_CLIENT: &str = "apinetletclient";
    /// Subresource of requests that stands for "ask for the certificate of a metalnetlet".
    pub const METALNETLET_CLIENT: &str = "metalnetletclient";
    /// Group of those that may ask for the first certificate of an apinetlet.
    pub const APINETLETS_BOOTSTRAP: &str = "system:bootstrappers:apinet-openkcm-dev:apinetlets";
    /// Group of those that may ask for the first certificate of a metalnetlet.
    pub const METALNETLETS_BOOTSTRAP: &str = "system:bootstrappers:apinet-openkcm-dev:metalnetlets";
}

/// User names (certificate CN) and groups (certificate O) of the parts.
pub mod identity {
    /// The administrator.
    pub const ADMIN: (&str, &str) = ("openkcm:admin", "system:masters");
    /// The controller manager.
    pub const CONTROLLER_MANAGER: (&str, &str) = (
        "openkcm:system:controller-manager",
        "openkcm:system:controllers",
    );
    /// Group of apinetlets.
    pub const APINETLETS: &str = "apinet.openkcm.dev:system:apinetlets";
    /// Group of metalnetlets.
    pub const METALNETLETS: &str = "apinet.openkcm.dev:system:metalnetlets";
    /// Group of metalnets.
    pub const METALNETS: &str = "networking.metalnet.openkcm.dev:system:metalnets";
    /// Group of machine pools.
    pub const MACHINE_POOLS: &str = "compute.openkcm.dev:system:machinepools";
    /// Group of machine providers.
    pub const NETWORK_PLUGINS: &str = "networking.openkcm.dev:system:networkplugins";

    /// User of the apinetlet of an OpenKCM-net namespace.
    pub fn apinetlet(namespace: &str) -> String {
        format!("apinet.openkcm.dev:system:apinetlet:{namespace}")
    }
    /// User of the metalnetlet of a partition.
    pub fn metalnetlet(partition: &str) -> String {
        format!("apinet.openkcm.dev:system:metalnetlet:{partition}")
    }
    /// User of the metalnet of a node.
    pub fn metalnet(node: &str) -> String {
        format!("networking.metalnet.openkcm.dev:system:metalnet:{node}")
    }
    /// User of the poollet of a machine pool.
    pub fn machine_pool(pool: &str) -> String {
        format!("compute.openkcm.dev:system:machinepool:{pool}")
    }
    /// User of the machine provider of a node.
    pub fn network_plugin(node: &str) -> String {
        format!("networking.openkcm.dev:system:networkplugin:{node}")
    }
}
