//! One partition `part` with nodes, and a metalnet that makes every interface of it Ready.

use std::sync::Arc;

use api::{
    apinet, metalnet,
    names::finalizer::{METALNET_LOAD_BALANCER, METALNET_NETWORK_INTERFACE},
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object, sim::Sim};
use k8s_openapi::api::core::v1::Node;
use metalnetlet::{
    InstanceController, NetworkController, NetworkInterfaceController, NodeController, Partition,
};
use serde_json::json;

pub const APINET_NS: &str = "openkcm-net-system";
pub const METALNET_NS: &str = "metalnet-system";

/// Holds each interface by a finalizer, reports a TAP device once its Network is there, lets go when asked to.
struct Metalnet;

impl Controller for Metalnet {
    fn name(&self) -> &'static str {
        "metalnet"
    }

    fn sources(&self) -> Vec<Source> {
        let networks = Watch::<metalnet::Network>::new().keys(|_, world| {
            let nics = world.list::<metalnet::NetworkInterface>();
            nics.iter().map(|nic| Key::of(&**nic)).collect()
        });
        vec![
            Watch::<metalnet::NetworkInterface>::new()
                .namespace(METALNET_NS)
                .own_key()
                .build(),
            networks.namespace(METALNET_NS).build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let Some(nic) = world.by_key::<metalnet::NetworkInterface>(key) else {
            return plan;
        };
        if object::is_deleting(&*nic) {
            plan.extend(Op::remove_finalizer(&*nic, METALNET_NETWORK_INTERFACE));
            return plan;
        }
        plan.extend(Op::add_finalizer(&*nic, METALNET_NETWORK_INTERFACE));
        let network = world.get::<metalnet::Network>(METALNET_NS, &nic.spec.network_ref.name);
        let status = json!({
            "state": "Ready",
            "tapDevice": { "name": "dtapvf_0" },
            "virtualIP": nic.spec.virtual_ip,
            "virtualIPs": nic.spec.virtual_ips,
            "natIP": nic.spec.nat,
            "prefixes": nic.spec.prefixes,
        });
        let wanted: metalnet::NetworkInterfaceStatus =
            serde_json::from_value(status.clone()).expect("a status");
        if network.is_some() && nic.status.as_ref() != Some(&wanted) {
            plan.push(Op::patch_status(Target::of(&*nic), status));
        }
        plan
    }
}

/// The same for load balancers.
struct MetalnetBalancers;

impl Controller for MetalnetBalancers {
    fn name(&self) -> &'static str {
        "metalnet-balancers"
    }

    fn sources(&self) -> Vec<Source> {
        let balancers = Watch::<metalnet::LoadBalancer>::new().namespace(METALNET_NS);
        vec![balancers.own_key().build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let Some(balancer) = world.by_key::<metalnet::LoadBalancer>(key) else {
            return plan;
        };
        if object::is_deleting(&*balancer) {
            plan.extend(Op::remove_finalizer(&*balancer, METALNET_LOAD_BALANCER));
            return plan;
        }
        plan.extend(Op::add_finalizer(&*balancer, METALNET_LOAD_BALANCER));
        if balancer.status.is_none() {
            let status = json!({ "state": "Ready" });
            plan.push(Op::patch_status(Target::of(&*balancer), status));
        }
        plan
    }
}

pub fn partition() -> Partition {
    let mut partition = Partition::new("part", METALNET_NS).expect("a name");
    partition.node_labels = [(
        "topology.core.apinet.openkcm.dev/zone".to_owned(),
        "z1".to_owned(),
    )]
    .into();
    partition
}

pub fn controllers(partition: Partition) -> Vec<Arc<dyn Controller>> {
    vec![
        Arc::new(NodeController {
            partition: partition.clone(),
            selector: None,
        }),
        Arc::new(NetworkController {
            partition: partition.clone(),
        }),
        Arc::new(InstanceController {
            partition: partition.clone(),
            node_selector: None,
        }),
        Arc::new(NetworkInterfaceController {
            partition,
            node_selector: None,
        }),
    ]
}

pub fn region() -> Sim {
    let mut all = controllers(partition());
    all.push(Arc::new(Metalnet));
    all.push(Arc::new(MetalnetBalancers));
    Sim::new(all)
}

pub fn without_metalnet() -> Sim {
    Sim::new(controllers(partition()))
}

pub fn object<K: controller::Object>(value: serde_json::Value) -> K {
    serde_json::from_value(value).expect("a valid object")
}

pub fn node(name: &str) -> Node {
    object(json!({ "metadata": { "name": name }, "spec": {} }))
}

pub fn network(name: &str, id: &str) -> apinet::Network {
    object(json!({ "metadata": { "name": name, "namespace": APINET_NS }, "spec": { "id": id } }))
}

pub fn nic(name: &str, node: &str, network: &str) -> apinet::NetworkInterface {
    object(json!({
        "metadata": { "name": name, "namespace": APINET_NS },
        "spec": {
            "nodeRef": { "name": node },
            "networkRef": { "name": network },
            "ips": ["10.0.0.1", "2001:db8::1"],
            "prefixes": ["10.9.0.0/16"],
            "hostname": "vm",
            "publicIPs": [
                { "name": "six", "ipFamily": "IPv6", "ip": "2001:db8:1::1" },
                { "name": "four", "ipFamily": "IPv4", "ip": "203.0.113.7" },
            ],
        },
    }))
}

pub fn uid<K: controller::Object>(sim: &Sim, namespace: &str, name: &str) -> String {
    object::uid(&sim.get::<K>(namespace, name).expect("the object exists")).to_owned()
}
