//! The surroundings of apinetlet: a server that reserves VNIs and addresses.

use std::sync::Arc;

use api::{
    apinet, conditions,
    meta::{Condition, IpFamily},
    networking::Network,
};
use apinetlet::{
    Filter, LoadBalancerController, NatBounds, NatGatewayController, NetworkController,
    NetworkInterfaceController, NetworkPolicyController, VirtualIpController,
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object, sim::Sim};
use serde_json::json;

pub const NS: &str = "default";
pub const APINET_NS: &str = "openkcm-net-system";

/// Fills in `spec.id` of Networks, `spec.ip` of IPs and the addresses of load balancers and gateways, from their names so that the result does not depend on order.
pub struct Reservations;

impl Controller for Reservations {
    fn name(&self) -> &'static str {
        "reservations"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Watch::<apinet::Network>::new().own_key().build(),
            Watch::<apinet::IP>::new().own_key().build(),
            Watch::<apinet::LoadBalancer>::new().own_key().build(),
            Watch::<apinet::NATGateway>::new().own_key().build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let number = key.name.bytes().map(u32::from).sum::<u32>();
        if let Some(network) = world.by_key::<apinet::Network>(key)
            && network.spec.id.is_empty()
        {
            let body = json!({ "spec": { "id": (200 + number).to_string() } });
            plan.push(Op::patch(Target::of(&*network), body));
        }
        if let Some(ip) = world.by_key::<apinet::IP>(key)
            && ip.spec.ip.is_none()
        {
            let address = format!("203.0.{}.{}", number / 256 % 256, number % 256);
            plan.push(Op::patch(
                Target::of(&*ip),
                json!({ "spec": { "ip": address } }),
            ));
        }
        if let Some(balancer) = world.by_key::<apinet::LoadBalancer>(key)
            && balancer.spec.type_ == apinet::LoadBalancerType::Public
            && balancer.spec.ips.iter().any(|entry| entry.ip.is_none())
        {
            let mut ips = balancer.spec.ips.clone();
            for entry in &mut ips {
                let address = match entry.ip_family {
                    Some(IpFamily::IPv6) => format!("2001:db8::{:x}", number % 0xffff),
                    Some(IpFamily::IPv4) | None => {
                        format!("198.51.{}.{}", number / 256 % 256, number % 256)
                    }
                };
                entry.ip = address.parse().ok();
            }
            let body = json!({ "spec": { "ips": ips } });
            plan.push(Op::patch(Target::of(&*balancer), body));
        }
        if let Some(gateway) = world.by_key::<apinet::NATGateway>(key)
            && gateway.spec.ips.iter().any(|entry| entry.ip.is_none())
        {
            let mut ips = gateway.spec.ips.clone();
            for (at, entry) in ips.iter_mut().enumerate() {
                entry.ip = format!("192.0.2.{}", at + 1).parse().ok();
            }
            let body = json!({ "spec": { "ips": ips } });
            plan.push(Op::patch(Target::of(&*gateway), body));
        }
        plan
    }
}

pub fn filter() -> Filter {
    Filter {
        apinet_namespace: APINET_NS.to_owned(),
        namespace: None,
        watch_filter: None,
    }
}

pub fn region() -> Sim {
    region_with(filter())
}

pub fn region_with(filter: Filter) -> Sim {
    region_of(filter, false)
}

/// With `node_affinity`, load balancers are wanted only where a destination is.
pub fn region_of(filter: Filter, node_affinity: bool) -> Sim {
    Sim::new(apinetlets(filter, node_affinity))
}

/// All controllers of apinetlet, and a server's reservations.
pub fn apinetlets(filter: Filter, node_affinity: bool) -> Vec<Arc<dyn Controller>> {
    vec![
        Arc::new(NetworkController {
            filter: filter.clone(),
            peering: true,
        }),
        Arc::new(NetworkInterfaceController {
            filter: filter.clone(),
        }),
        Arc::new(LoadBalancerController {
            filter: filter.clone(),
            node_affinity,
        }),
        Arc::new(NatGatewayController {
            filter: filter.clone(),
            bounds: NatBounds { min: 1, max: 10 },
        }),
        Arc::new(NetworkPolicyController {
            filter: filter.clone(),
        }),
        Arc::new(VirtualIpController { filter }),
        Arc::new(Reservations),
    ]
}

/// A user Network without peerings.
pub fn network(sim: &mut Sim, name: &str) {
    let network: Network =
        object(json!({ "metadata": { "name": name, "namespace": NS }, "spec": {} }));
    sim.put(&network);
}

/// Reason of the condition Ready, with `!` in front when it does not hold.
pub fn reason(conditions: &[Condition]) -> String {
    let ready = conditions::find(conditions, conditions::READY).expect("a condition Ready");
    let negated = if ready.status == "True" { "" } else { "!" };
    format!("{negated}{}", ready.reason)
}

/// An object, or a part of one, from JSON without the type fields.
pub fn object<K: serde::de::DeserializeOwned>(value: serde_json::Value) -> K {
    serde_json::from_value(value).expect("a valid object")
}

pub fn uid<K: controller::Object>(sim: &Sim, namespace: &str, name: &str) -> String {
    object::uid(&sim.get::<K>(namespace, name).expect("the object exists")).to_owned()
}
