//! OpenKCM-net Instance on a node of this partition → one metalnet LoadBalancer for each of its addresses; the addresses
//! that the data plane serves come back.
//!
//! Names are derived from the Instance's uid and the address, so a second plan of an unchanged world is empty. The Instance
//! is held by the partition's finalizer until every LoadBalancer is gone: its addresses stay reserved as long as packets for
//! them may arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use api::{
    apinet,
    held::{self, Held},
    ids::Origin,
    meta::{Ip, Protocol},
    metalnet,
    names::{manager, origin},
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::partition::Partition;
use crate::{departed, hold};

/// Index of metalnet LoadBalancers by the key of their Instance.
const BY_ORIGIN: &str = "metalnetlet-lb-origin";
/// Index of Instances by the name of their OpenKCM-net Node.
const BY_NODE: &str = "metalnetlet-instance-node";
/// Index of Instances by the key of their Network.
pub(crate) const BY_NETWORK: &str = "metalnetlet-instance-network";
/// Most ports of one load balancer: more do not fit into the data plane.
pub const PORTS_MAX: usize = 15;

pub struct InstanceController {
    pub partition: Partition,
    /// As in [`crate::NodeController`], so that both share one watch.
    pub node_selector: Option<String>,
}

impl Controller for InstanceController {
    fn name(&self) -> &'static str {
        "instance"
    }

    fn sources(&self) -> Vec<Source> {
        let partition = self.partition.clone();
        let instances = Watch::<apinet::Instance>::new()
            .index(BY_NETWORK, |instance| {
                vec![network_of(instance).to_string()]
            })
            .index(BY_NODE, |instance| {
                let node = instance.spec.node_ref.iter();
                node.map(|node| node.name.clone()).collect()
            })
            .keys(move |instance, _| {
                let local = node_of(&partition, instance).map(|_| Key::of(instance));
                local.into_iter().collect()
            });
        let partition = self.partition.clone();
        let networks = Watch::<apinet::Network>::new().keys(move |network, world| {
            let key = Key::of(network).to_string();
            let users = world.indexed::<apinet::Instance>(BY_NETWORK, &key);
            let local = users
                .iter()
                .filter(|user| node_of(&partition, user).is_some());
            local.map(|user| Key::of(&**user)).collect()
        });
        let partition = self.partition.clone();
        let nodes = Watch::<Node>::new().keys(move |node, world| {
            let name = partition.apinet_node(object::name(node));
            let instances = world.indexed::<apinet::Instance>(BY_NODE, &name);
            instances.iter().map(|user| Key::of(&**user)).collect()
        });
        let nodes = match &self.node_selector {
            Some(selector) => nodes.labels(selector),
            None => nodes,
        };
        let partition = self.partition.clone();
        let published = Watch::<apinet::Node>::new().keys(move |node, world| {
            let name = object::name(node);
            let ours = partition.cluster_node(name).is_some();
            let instances = world.indexed::<apinet::Instance>(BY_NODE, name);
            let instances = instances.iter().filter(|_| ours);
            instances.map(|user| Key::of(&**user)).collect()
        });
        let base = origin::METALNET_INSTANCE;
        let made = Watch::<metalnet::LoadBalancer>::new()
            .namespace(&self.partition.metalnet_namespace)
            .index(BY_ORIGIN, move |made| {
                let source = object::origin_key(made, base);
                source.iter().map(Key::to_string).collect()
            })
            .keys(move |made, _| object::origin_key(made, base).into_iter().collect());
        vec![
            instances.build(),
            networks.build(),
            nodes.build(),
            published.build(),
            made.build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let made = world.indexed::<metalnet::LoadBalancer>(BY_ORIGIN, &key.to_string());
        let Some(instance) = world.by_key::<apinet::Instance>(key) else {
            return clean_up(world, &made);
        };
        let Some(node) = node_of(&self.partition, &instance) else {
            return Plan::none();
        };
        if object::is_deleting(&*instance) {
            return self.let_go(world, &instance, &made);
        }
        let cluster_node = world.get::<Node>("", node);
        if cluster_node.is_none_or(|node| object::is_deleting(&*node)) {
            let mut plan = self.let_go(world, &instance, &made);
            plan.extend(report(&instance, Vec::new()));
            return plan;
        }
        let Some(network) = world.by_key::<apinet::Network>(&network_of(&instance)) else {
            // The Network's own event brings this key back.
            return Plan::none();
        };
        // A hypervisor that has fallen silent serves nothing that could be relied on, whatever it reported last.
        let published = world.get::<apinet::Node>("", &self.partition.apinet_node(node));
        let lost = published.is_some_and(|node| node.is_lost());
        self.realize(&instance, node, &network, &made, lost)
    }
}

impl InstanceController {
    fn realize(
        &self,
        instance: &apinet::Instance,
        node: &str,
        network: &apinet::Network,
        made: &[Arc<metalnet::LoadBalancer>],
        lost: bool,
    ) -> Plan {
        let mut plan = Plan::none();
        let source = object::as_origin(instance);
        let labels = source.labels(origin::METALNET_INSTANCE);
        let annotations = source.annotations(origin::METALNET_INSTANCE);
        let wanted = match wanted(instance, node, network) {
            Ok(wanted) => wanted,
            Err(note) => {
                plan.push(Op::event(
                    instance,
                    true,
                    "PortsNotPossible",
                    "Realize",
                    note,
                ));
                BTreeMap::new()
            }
        };
        plan.extend(self.hold(instance, &wanted, made));
        let mut serving = BTreeSet::new();
        for (name, spec) in &wanted {
            let live = made.iter().find(|live| object::name(&***live) == name);
            let fits = live.is_some_and(|live| {
                live.spec.as_ref() == Some(spec) && object::carries(&**live, &labels, &annotations)
            });
            let ready = live.is_some_and(|live| is_ready(live));
            if fits && ready && !lost {
                serving.insert(spec.ip);
            }
            // One that is going comes back when it is gone.
            if !fits && !live.is_some_and(|live| object::is_deleting(&**live)) {
                let namespace = &self.partition.metalnet_namespace;
                let target = Target::new::<metalnet::LoadBalancer>(namespace, name);
                let body = json!({
                    "metadata": { "labels": labels, "annotations": annotations },
                    "spec": spec,
                });
                plan.push(Op::apply(target, manager::METALNETLET, body));
            }
        }
        let stale = made.iter().filter(|live| {
            !wanted.contains_key(object::name(&***live)) && !object::is_deleting(&***live)
        });
        plan.extend(stale.map(|live| Op::delete(&**live)));
        let ips = instance.spec.ips.iter().copied();
        plan.extend(report(
            instance,
            ips.filter(|ip| serving.contains(ip)).collect(),
        ));
        plan
    }

    /// Writes down which addresses hypervisors may serve for the Instance, before one is told and after it let go. That a
    /// LoadBalancer is gone is looked up.
    fn hold(
        &self,
        instance: &apinet::Instance,
        wanted: &BTreeMap<String, metalnet::LoadBalancerSpec>,
        made: &[Arc<metalnet::LoadBalancer>],
    ) -> Vec<Op> {
        let there = made.iter().filter_map(|made| Some(made.spec.as_ref()?.ip));
        let all = wanted.values().map(|spec| spec.ip).chain(there);
        let next: BTreeSet<Held> = all.map(Held::whole).collect();
        let shown = held::of(&instance.metadata);
        let gone = shown.difference(&next).copied();
        let mut ops = self.absent(instance, gone.collect());
        ops.extend(hold::mark(instance, &self.partition.finalizer(), &next));
        ops
    }

    /// The proof that no LoadBalancer of the Instance has any of the addresses.
    fn absent(&self, instance: &apinet::Instance, held: BTreeSet<Held>) -> Vec<Op> {
        let namespace = &self.partition.metalnet_namespace;
        let targets = held.into_iter().map(|held| {
            let name = name(object::uid(instance), held.ip(), 0);
            Target::new::<metalnet::LoadBalancer>(namespace, name)
        });
        targets.map(Op::require_absent).collect()
    }

    /// The LoadBalancers go first; metalnet's finalizer keeps each until dpservice is clean.
    fn let_go(
        &self,
        world: &World,
        instance: &apinet::Instance,
        made: &[Arc<metalnet::LoadBalancer>],
    ) -> Plan {
        let mut plan = Plan::none();
        if made.is_empty() {
            let last = match object::is_deleting(instance) {
                true => Op::remove_finalizer(instance, &self.partition.finalizer()),
                false => hold::release(instance, &self.partition.finalizer()),
            };
            if last.is_some() {
                for op in self.absent(instance, held::of(&instance.metadata)) {
                    plan.push(op);
                }
            }
            plan.extend(last);
        }
        let living = made.iter().filter(|made| !object::is_deleting(&***made));
        plan.extend(living.map(|made| Op::delete(&**made)));
        plan.extend(lift(world, made));
        plan
    }
}

/// Of a hypervisor that is gone for good.
fn lift(world: &World, made: &[Arc<metalnet::LoadBalancer>]) -> Vec<Op> {
    let on = |made: &metalnet::LoadBalancer| made.spec.as_ref()?.node_name.clone();
    let ops = made
        .iter()
        .map(|made| departed::lift(world, &**made, &on(made).unwrap_or_default()));
    ops.flatten().collect()
}

/// The node of our cluster that an Instance is on, if it is ours.
pub(crate) fn node_of<'a>(
    partition: &Partition,
    instance: &'a apinet::Instance,
) -> Option<&'a str> {
    partition.cluster_node(&instance.spec.node_ref.as_ref()?.name)
}

pub(crate) fn network_of(instance: &apinet::Instance) -> Key {
    Key::new(object::namespace(instance), &instance.spec.network_ref.name)
}

fn is_ready(made: &metalnet::LoadBalancer) -> bool {
    let state = made.status.as_ref().and_then(|status| status.state);
    state == Some(metalnet::State::Ready) && !object::is_deleting(made)
}

/// The LoadBalancers of an Instance by name; an error says why its ports cannot be balanced.
fn wanted(
    instance: &apinet::Instance,
    node: &str,
    network: &apinet::Network,
) -> Result<BTreeMap<String, metalnet::LoadBalancerSpec>, String> {
    let apinet::InstanceSpec {
        type_: _,
        load_balancer_type,
        network_ref: _,
        ips,
        load_balancer_ports,
        affinity: _,
        topology_spread_constraints: _,
        node_ref: _,
    } = &instance.spec;
    let ports = ports(load_balancer_ports)?;
    let mut wanted = BTreeMap::new();
    for ip in ips {
        let spec = metalnet::LoadBalancerSpec {
            network_ref: api::meta::LocalObjectReference::new(object::uid(network)),
            type_: match load_balancer_type {
                Some(apinet::LoadBalancerType::Public) => metalnet::LoadBalancerType::Public,
                Some(apinet::LoadBalancerType::Internal) | None => {
                    metalnet::LoadBalancerType::Internal
                }
            },
            ip_family: ip.family(),
            ip: *ip,
            ports: ports.clone(),
            node_name: Some(node.to_owned()),
        };
        // Two addresses with one hash: the second takes the next name.
        let names = (0..).map(|collisions| name(object::uid(instance), *ip, collisions));
        if let Some(name) = names
            .take(ips.len())
            .find(|name| !wanted.contains_key(name))
        {
            wanted.insert(name, spec);
        }
    }
    Ok(wanted)
}

/// Ranges are written out, because the data plane knows single ports only.
fn ports(ports: &[apinet::LoadBalancerPort]) -> Result<Vec<metalnet::LoadBalancerPort>, String> {
    let mut all = BTreeSet::new();
    for apinet::LoadBalancerPort {
        protocol,
        port,
        end_port,
    } in ports
    {
        let protocol = match protocol.unwrap_or(Protocol::TCP) {
            Protocol::TCP => "TCP",
            Protocol::UDP => "UDP",
            Protocol::SCTP => return Err("SCTP cannot be balanced".to_owned()),
        };
        let last = end_port.unwrap_or(*port);
        for port in *port..=last {
            all.insert((port, protocol));
            if all.len() > PORTS_MAX {
                return Err(format!("more than {PORTS_MAX} ports cannot be balanced"));
            }
        }
    }
    if all.is_empty() {
        return Err("a load balancer for all ports is not possible: name the ports".to_owned());
    }
    let all = all
        .into_iter()
        .map(|(port, protocol)| metalnet::LoadBalancerPort {
            protocol: protocol.to_owned(),
            port,
        });
    Ok(all.collect())
}

/// What the data plane serves, if it differs from what is shown.
fn report(instance: &apinet::Instance, ips: Vec<Ip>) -> Option<Op> {
    let shown = instance.status.as_ref().map(|status| &status.ips[..]);
    if shown.unwrap_or_default() == ips {
        return None;
    }
    let status = json!({ "ips": ips });
    Some(Op::patch_status(Target::of(instance), status))
}

fn clean_up(world: &World, made: &[Arc<metalnet::LoadBalancer>]) -> Plan {
    let mut plan = Plan::none();
    plan.extend(lift(world, made));
    for made in made.iter().filter(|made| !object::is_deleting(&***made)) {
        let Some(source) = Origin::of(&made.metadata, origin::METALNET_INSTANCE) else {
            continue;
        };
        let target = Target::new::<apinet::Instance>(&source.namespace, &source.name);
        plan.push(Op::RequireGone {
            target,
            uid: source.uid,
        });
        plan.push(Op::delete(&**made));
    }
    plan
}

/// `<uid>-<hash>`, as the reference names them, so that load balancers it made are taken over.
fn name(uid: &str, ip: Ip, collisions: u32) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let Ip(address) = ip;
    let mut bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    if collisions > 0 {
        bytes.extend(collisions.to_le_bytes());
        bytes.extend([0; 4]);
    }
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    let digits = hash.to_string();
    let safe = digits.bytes().filter_map(|digit| {
        let letter = ALPHABET.get(usize::from(digit) % ALPHABET.len())?;
        Some(char::from(*letter))
    });
    format!("{uid}-{}", safe.collect::<String>())
}
