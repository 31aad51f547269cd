//! NetworkPolicy: its NetworkPolicyRule, with every selector resolved to addresses of the same network.
//!
//! Selected are interfaces in any state: a rule that came only once packets flow would come too late. A rule whose selectors choose
//! nothing is left out, which closes; a rule that names no peers gets all of them, which is what it says. Ids are derived from the
//! content, so that an unchanged rule is the same rule for the data plane.

use std::{collections::BTreeSet, sync::Arc};

use api::{
    apinet::{
        IpBlock, LoadBalancer, Network, NetworkInterface, NetworkPolicy, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicyRule, ObjectSelector, POLICY_PRIORITY_DEFAULT,
        PolicyObjectIp, PolicyObjectKind, PolicyRule, PolicyTarget, PolicyType,
    },
    ids::uuid5_sha256,
    meta::{Ip, IpPrefix, LocalUidReference, Protocol, selects},
    names::manager,
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

use crate::{
    collect::leftover,
    index::{self, NIC_NETWORK, POLICY_NETWORK},
};

pub struct NetworkPolicyController;

impl Controller for NetworkPolicyController {
    fn name(&self) -> &'static str {
        "networkpolicy"
    }

    fn sources(&self) -> Vec<Source> {
        let policies = index::policies().own_key();
        let rules = Watch::<NetworkPolicyRule>::new().own_key();
        let networks = Watch::<Network>::new().keys(|network, world| {
            let of = of_network(world, object::namespace(network), object::name(network));
            of.iter().map(|policy| Key::of(&**policy)).collect()
        });
        let nics = index::nics().keys(|nic, world| {
            let of = of_network(world, object::namespace(nic), &nic.spec.network_ref.name);
            let kind = PolicyObjectKind::NetworkInterface;
            let concerned = of.iter().filter(|policy| {
                chooses(&policy.spec.network_interface_selector, nic) || peers(policy, kind, nic)
            });
            concerned.map(|policy| Key::of(&**policy)).collect()
        });
        let balancers = Watch::<LoadBalancer>::new().keys(|balancer, world| {
            let namespace = object::namespace(balancer);
            let of = of_network(world, namespace, &balancer.spec.network_ref.name);
            let kind = PolicyObjectKind::LoadBalancer;
            let concerned = of.iter().filter(|policy| peers(policy, kind, balancer));
            concerned.map(|policy| Key::of(&**policy)).collect()
        });
        vec![
            policies.build(),
            rules.build(),
            networks.build(),
            nics.build(),
            balancers.build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let live = world.by_key::<NetworkPolicyRule>(key);
        let Some(policy) = world.by_key::<NetworkPolicy>(key) else {
            return leftover(world, live.as_deref());
        };
        if object::is_deleting(&*policy) {
            return Plan::none();
        }
        let network = world.get::<Network>(&key.namespace, &policy.spec.network_ref.name);
        let Some(network) = network else {
            // Its own event brings this key back; without it there is no interface to restrict.
            return Plan::none();
        };
        let wanted = resolve(world, &policy, &network);
        if live.is_some_and(|live| same(&live, &wanted)) {
            return Plan::none();
        }
        let body = json!({
            "metadata": {
                "ownerReferences": [object::controller_reference(&*policy)],
                "labels": policy.metadata.labels,
                "annotations": policy.metadata.annotations,
            },
            "networkRef": wanted.network_ref,
            "targets": wanted.targets,
            "priority": wanted.priority,
            "policyTypes": wanted.policy_types,
            "ingressRule": wanted.ingress_rule,
            "egressRule": wanted.egress_rule,
        });
        let target = Target::new::<NetworkPolicyRule>(&key.namespace, &key.name);
        vec![Op::apply(target, manager::APINET, body)].into()
    }
}

fn of_network(world: &World, namespace: &str, name: &str) -> Vec<Arc<NetworkPolicy>> {
    world.indexed::<NetworkPolicy>(POLICY_NETWORK, &index::network(namespace, name))
}

fn chooses<K: controller::Object>(selector: &api::meta::LabelSelector, object: &K) -> bool {
    object::selects(Some(selector), object.meta().labels.as_ref())
}

/// The selectors of a policy's peers.
fn selectors(policy: &NetworkPolicy) -> impl Iterator<Item = &ObjectSelector> {
    let from = policy.spec.ingress.iter().flat_map(|rule| &rule.from);
    let to = policy.spec.egress.iter().flat_map(|rule| &rule.to);
    from.chain(to)
        .filter_map(|peer| peer.object_selector.as_ref())
}

fn peers<K: controller::Object>(
    policy: &NetworkPolicy,
    kind: PolicyObjectKind,
    object: &K,
) -> bool {
    let mut of_kind = selectors(policy).filter(|selector| selector.kind == kind);
    of_kind.any(|selector| chooses(&selector.labels(), object))
}

fn same(live: &NetworkPolicyRule, wanted: &NetworkPolicyRule) -> bool {
    let NetworkPolicyRule {
        metadata: _,
        network_ref,
        targets,
        priority,
        policy_types,
        ingress_rule,
        egress_rule,
    } = wanted;
    live.network_ref == *network_ref
        && live.targets == *targets
        && live.priority == *priority
        && live.policy_types == *policy_types
        && live.ingress_rule == *ingress_rule
        && live.egress_rule == *egress_rule
}

/// Candidates for peers: everything of the policy's network, and nothing else.
struct Neighbours {
    nics: Vec<Arc<NetworkInterface>>,
    balancers: Vec<Arc<LoadBalancer>>,
}

fn resolve(world: &World, policy: &NetworkPolicy, network: &Network) -> NetworkPolicyRule {
    let namespace = object::namespace(policy);
    let name = object::name(network);
    let mut neighbours = Neighbours {
        nics: world.indexed::<NetworkInterface>(NIC_NETWORK, &index::network(namespace, name)),
        balancers: world.list_in::<LoadBalancer>(namespace),
    };
    neighbours
        .balancers
        .retain(|balancer| balancer.spec.network_ref.name == name);
    neighbours
        .nics
        .sort_by_cached_key(|nic| object::name(&**nic).to_owned());
    let chosen = neighbours
        .nics
        .iter()
        .filter(|nic| chooses(&policy.spec.network_interface_selector, &***nic));
    let targets = chosen.flat_map(|nic| {
        let target = LocalUidReference::new(object::name(&**nic), object::uid(&**nic));
        let ips = nic.spec.ips.iter();
        ips.map(move |ip| PolicyTarget {
            ip: *ip,
            target_ref: Some(target.clone()),
        })
    });
    let spec = &policy.spec;
    let uid = object::uid(policy);
    let ingress = spec.ingress.iter().map(|rule| (&rule.from, &rule.ports));
    let egress = spec.egress.iter().map(|rule| (&rule.to, &rule.ports));
    NetworkPolicyRule {
        metadata: Default::default(),
        network_ref: LocalUidReference::new(name, object::uid(network)),
        targets: targets.collect(),
        priority: Some(spec.priority.unwrap_or(POLICY_PRIORITY_DEFAULT)),
        policy_types: spec.policy_types.clone(),
        ingress_rule: rules(uid, PolicyType::Ingress, ingress, &neighbours),
        egress_rule: rules(uid, PolicyType::Egress, egress, &neighbours),
    }
}

fn rules<'a>(
    policy: &str,
    direction: PolicyType,
    list: impl Iterator<Item = (&'a Vec<NetworkPolicyPeer>, &'a Vec<NetworkPolicyPort>)>,
    neighbours: &Neighbours,
) -> Vec<PolicyRule> {
    let mut out: Vec<PolicyRule> = Vec::new();
    for (peers, ports) in list {
        let Some(mut rule) = rule(peers, ports, neighbours) else {
            continue;
        };
        let content = serde_json::to_string(&rule).unwrap_or_default();
        rule.id = uuid5_sha256(&format!("{policy}/{direction}/{content}"));
        if out.iter().all(|known| known.id != rule.id) {
            out.push(rule);
        }
    }
    out
}

/// One rule of a policy; nothing if it allows nothing.
fn rule(
    peers: &[NetworkPolicyPeer],
    ports: &[NetworkPolicyPort],
    neighbours: &Neighbours,
) -> Option<PolicyRule> {
    // The data plane can tell TCP from UDP and has no notion of SCTP: such a port is not opened, rather than all of them.
    let known: Vec<NetworkPolicyPort> = ports
        .iter()
        .filter(|port| port.protocol != Some(Protocol::SCTP))
        .map(complete)
        .collect();
    if known.is_empty() && !ports.is_empty() {
        return None;
    }
    let anyone = peers.is_empty() || peers.iter().any(is_anyone);
    let mut ip_block: Vec<IpBlock> = Vec::new();
    let mut ips = BTreeSet::new();
    if anyone {
        ip_block = everywhere();
    } else {
        for peer in peers {
            ip_block.extend(peer.ip_block.clone());
            if let Some(selector) = &peer.object_selector {
                ips.extend(addresses(selector, neighbours));
            }
        }
    }
    if ip_block.is_empty() && ips.is_empty() {
        return None;
    }
    Some(PolicyRule {
        id: String::new(),
        ip_block,
        ips: ips
            .into_iter()
            .map(|ip| PolicyObjectIp {
                ip_family: ip.family(),
                prefix: IpPrefix::host(ip.0),
            })
            .collect(),
        network_policy_ports: known,
    })
}

fn is_anyone(peer: &NetworkPolicyPeer) -> bool {
    peer.object_selector.is_none() && peer.ip_block.is_none()
}

/// All addresses of both families.
fn everywhere() -> Vec<IpBlock> {
    let all = ["0.0.0.0/0", "::/0"].into_iter();
    all.filter_map(|cidr| {
        Some(IpBlock {
            cidr: cidr.parse().ok()?,
            except: Vec::new(),
        })
    })
    .collect()
}

/// A port with nothing left to guess: the protocol is there, and a range has an end.
fn complete(port: &NetworkPolicyPort) -> NetworkPolicyPort {
    let first = port.port.filter(|first| *first != 0);
    NetworkPolicyPort {
        protocol: Some(port.protocol.unwrap_or(Protocol::TCP)),
        port: first,
        end_port: first.map(|first| port.end_port.unwrap_or(first)),
    }
}

/// Addresses of the objects that a selector chooses.
fn addresses(selector: &ObjectSelector, neighbours: &Neighbours) -> Vec<Ip> {
    let labels = selector.labels();
    let none = Default::default();
    let chosen = |of: &api::meta::ObjectMeta| selects(&labels, of.labels.as_ref().unwrap_or(&none));
    match selector.kind {
        PolicyObjectKind::NetworkInterface => {
            let nics = neighbours.nics.iter().filter(|nic| chosen(&nic.metadata));
            nics.flat_map(|nic| nic.spec.ips.iter().copied()).collect()
        }
        PolicyObjectKind::LoadBalancer => {
            let all = neighbours.balancers.iter();
            let balancers = all.filter(|balancer| chosen(&balancer.metadata));
            let entries = balancers.flat_map(|balancer| &balancer.spec.ips);
            entries.filter_map(|entry| entry.ip).collect()
        }
    }
}
