//! Machine pool agent and machine provider in one: an OpenKCM-net interface for each user interface that names a hypervisor, its
//! handle into the user's one; gone with it.

use api::names::manager;
use api::networking::{Network, NetworkInterface};
use api::{apinet, ids};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

/// Annotation of a user interface: the hypervisor on which its machine runs.
pub const NODE: &str = "sim/node";
/// Annotation of an OpenKCM-net interface: whose it is.
const FOR: &str = "sim/for";
pub const APINET_NS: &str = api::names::namespace::APINET;
pub const PARTITION: &str = "sim";

pub struct Provider;

impl Controller for Provider {
    fn name(&self) -> &'static str {
        "provider"
    }

    fn sources(&self) -> Vec<Source> {
        let networks = Watch::<Network>::new().keys(|network, world| {
            let nics = world.list::<NetworkInterface>();
            let of_network = |nic: &&std::sync::Arc<NetworkInterface>| {
                nic.spec.network_ref.name == object::name(network)
            };
            nics.iter()
                .filter(of_network)
                .map(|nic| Key::of(&**nic))
                .collect()
        });
        let made = Watch::<apinet::NetworkInterface>::new().keys(|nic, _| {
            let key = object::annotation(nic, FOR).and_then(|text| text.split_once('/'));
            key.map(|(namespace, name)| Key::new(namespace, name))
                .into_iter()
                .collect()
        });
        vec![
            Watch::<NetworkInterface>::new().own_key().build(),
            networks.build(),
            made.build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let name = ids::apinet_nic_name(&key.namespace, &key.name);
        let made = world.get::<apinet::NetworkInterface>(APINET_NS, &name);
        let user = world.by_key::<NetworkInterface>(key);
        let user = user.filter(|nic| !object::is_deleting(&**nic));
        let wanted = user.as_ref().and_then(|user| {
            let node = object::annotation(&**user, NODE)?;
            let network = world.get::<Network>(&key.namespace, &user.spec.network_ref.name)?;
            let id: ids::NetworkProviderId = network.spec.provider_id.parse().ok()?;
            Some((user, ids::apinet_node_name(PARTITION, node), id))
        });
        let Some((user, node, id)) = wanted else {
            let stale = made.filter(|_| {
                user.as_ref()
                    .is_none_or(|u| object::annotation(&**u, NODE).is_none())
            });
            let stale = stale.filter(|made| !object::is_deleting(&**made));
            plan.extend(stale.map(|made| Op::delete(&*made)));
            return plan;
        };
        let ips: Vec<_> = user.spec.ips.iter().filter_map(|ip| ip.value).collect();
        match made {
            Some(made) if object::is_deleting(&*made) => {}
            Some(made)
                if made.spec.node_ref.name != node
                    || made.spec.network_ref.name != id.name
                    || made.spec.ips != ips =>
            {
                plan.push(Op::delete(&*made));
            }
            Some(made) => {
                let handle = ids::NetworkInterfaceProviderId {
                    namespace: APINET_NS.to_owned(),
                    name,
                    node,
                    uid: object::uid(&*made).to_owned(),
                };
                if user.spec.provider_id != handle.to_string() {
                    let body = json!({ "spec": { "providerID": handle.to_string() } });
                    plan.push(Op::patch(Target::of(&**user), body));
                }
            }
            None => {
                let body = json!({
                    "metadata": { "annotations": { FOR: key.to_string() } },
                    "spec": {
                        "nodeRef": { "name": node },
                        "networkRef": { "name": id.name },
                        "ips": ips,
                    },
                });
                let target = Target::new::<apinet::NetworkInterface>(APINET_NS, name);
                plan.push(Op::apply(target, manager::PROVIDER, body));
            }
        }
        plan
    }
}
