//! User NetworkPolicy → OpenKCM-net NetworkPolicy of the same uid. Which interfaces and addresses its selectors choose is
//! resolved over there, by the labels that are copied to interfaces and load balancers.
//!
//! VirtualIPs have no counterpart there that a policy could select, so they are resolved here, into blocks of one address.
//! Whatever cannot be resolved allows nothing: a rule that loses its last peer is left out, because a rule without peers
//! allows everybody.

use api::{
    apinet,
    conditions::{self, Verdict},
    meta::{IpPrefix, LocalObjectReference},
    names::{finalizer, manager, origin},
    networking::{
        IpBlock, Network, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule,
        NetworkPolicyPeer, NetworkPolicyPort, ObjectSelector, PeerKind, PolicyType, VirtualIP,
    },
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

use crate::{
    filter::Filter,
    made::{self, Mapping, Marks},
};

const MAPPING: Mapping = Mapping {
    origin: origin::NETWORK_POLICY,
    index: "apinetlet-network-policy-origin",
    finalizer: finalizer::APINETLET_NETWORK_POLICY,
};
/// Index of user policies by the key of their network.
const BY_NETWORK: &str = "apinetlet-user-network-policy-network";
/// Index of user policies with a peer of kind VirtualIP, by namespace.
const BY_VIRTUAL_IPS_OF: &str = "apinetlet-network-policy-virtual-ips";

pub struct NetworkPolicyController {
    pub filter: Filter,
}

impl Controller for NetworkPolicyController {
    fn name(&self) -> &'static str {
        "networkpolicy"
    }

    fn sources(&self) -> Vec<Source> {
        let mut user = Watch::<NetworkPolicy>::new()
            .own_key()
            .index(BY_NETWORK, |policy| {
                let network = &policy.spec.network_ref.name;
                vec![Key::new(object::namespace(policy), network).to_string()]
            })
            .index(BY_VIRTUAL_IPS_OF, |policy| {
                let selects = peers(policy).any(|peer| {
                    let selector = peer.object_selector.as_ref();
                    selector.is_some_and(|selector| selector.kind == PeerKind::VirtualIP)
                });
                let namespace = selects.then(|| object::namespace(policy).to_owned());
                namespace.into_iter().collect()
            });
        let mut networks = Watch::<Network>::new().keys(|network, world| {
            let key = Key::of(network).to_string();
            keys(&world.indexed::<NetworkPolicy>(BY_NETWORK, &key))
        });
        let mut addresses = Watch::<VirtualIP>::new().keys(|vip, world| {
            let namespace = object::namespace(vip);
            keys(&world.indexed::<NetworkPolicy>(BY_VIRTUAL_IPS_OF, namespace))
        });
        if let Some(namespace) = &self.filter.namespace {
            user = user.namespace(namespace);
            networks = networks.namespace(namespace);
            addresses = addresses.namespace(namespace);
        }
        let namespace = &self.filter.apinet_namespace;
        let made = MAPPING.watch::<apinet::NetworkPolicy>(&self.filter);
        // A rule has the name of its policy, which is the uid of the user's.
        let rules = Watch::<apinet::NetworkPolicyRule>::new()
            .namespace(namespace)
            .keys(|rule, world| {
                let namespace = object::namespace(rule);
                let policy = world.get::<apinet::NetworkPolicy>(namespace, object::name(rule));
                policy
                    .and_then(|made| object::origin_key(&*made, origin::NETWORK_POLICY))
                    .into_iter()
                    .collect()
            });
        vec![
            user.build(),
            networks.build(),
            addresses.build(),
            made.build(),
            rules.build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        MAPPING.plan(world, &self.filter, key, |user, made| {
            self.realize(world, user, made)
        })
    }
}

impl NetworkPolicyController {
    fn realize(
        &self,
        world: &World,
        user: &NetworkPolicy,
        made: Option<&apinet::NetworkPolicy>,
    ) -> Plan {
        let mut plan = Plan::none();
        plan.extend(Op::add_finalizer(user, finalizer::APINETLET_NETWORK_POLICY));
        let network = match made::network(world, user, &user.spec.network_ref) {
            Ok(network) => network,
            Err(verdict) => {
                plan.extend(report(user, verdict, world.now_ms()));
                return plan;
            }
        };
        let wanted = spec(world, user, &network);
        let marks = Marks::of(user, origin::NETWORK_POLICY);
        let fits = made.is_some_and(|made| marks.are_on(made) && made.spec == wanted);
        let rule = made.and_then(|made| {
            let name = object::name(made);
            world.get::<apinet::NetworkPolicyRule>(&self.filter.apinet_namespace, name)
        });
        let verdict = verdict(rule.filter(|_| fits).as_deref());
        plan.extend(report(user, verdict, world.now_ms()));
        match made {
            Some(made) if object::is_deleting(made) => return plan,
            Some(made) if made.spec.network_ref != wanted.network_ref => {
                // The network was deleted and made again under its name: this one belongs to a network that is gone.
                plan.push(Op::delete(made));
                return plan;
            }
            Some(_) | None => {}
        }
        if !fits {
            let target = Target::new::<apinet::NetworkPolicy>(
                &self.filter.apinet_namespace,
                object::uid(user),
            );
            let body = json!({ "metadata": marks.metadata(), "spec": wanted });
            plan.push(Op::apply(target, manager::APINETLET, body));
        }
        plan
    }
}

fn spec(world: &World, user: &NetworkPolicy, network: &Network) -> apinet::NetworkPolicySpec {
    let namespace = object::namespace(user);
    let ingress = user.spec.ingress.iter();
    let ingress = ingress.filter_map(|NetworkPolicyIngressRule { ports, from }| {
        Some(apinet::NetworkPolicyIngressRule {
            from: resolved(world, namespace, from)?,
            ports: ports.iter().map(port).collect(),
        })
    });
    let egress = user.spec.egress.iter();
    let egress = egress.filter_map(|NetworkPolicyEgressRule { ports, to }| {
        Some(apinet::NetworkPolicyEgressRule {
            to: resolved(world, namespace, to)?,
            ports: ports.iter().map(port).collect(),
        })
    });
    apinet::NetworkPolicySpec {
        network_ref: LocalObjectReference::new(object::uid(network)),
        network_interface_selector: user.spec.network_interface_selector.clone(),
        priority: Some(apinet::POLICY_PRIORITY_DEFAULT),
        ingress: ingress.collect(),
        egress: egress.collect(),
        policy_types: restricted(user),
    }
}

/// The restricted directions. The server fills them in from the rules; a rule must restrict its direction even where it did
/// not.
fn restricted(user: &NetworkPolicy) -> Vec<apinet::PolicyType> {
    let lists = |wanted: PolicyType| user.spec.policy_types.contains(&wanted);
    let ingress = lists(PolicyType::Ingress) || !user.spec.ingress.is_empty();
    let egress = lists(PolicyType::Egress) || !user.spec.egress.is_empty();
    let mut types = Vec::new();
    if ingress {
        types.push(apinet::PolicyType::Ingress);
    }
    if egress {
        types.push(apinet::PolicyType::Egress);
    }
    types
}

/// The peers as OpenKCM-net knows them. `None` when there were some and none is left.
fn resolved(
    world: &World,
    namespace: &str,
    peers: &[NetworkPolicyPeer],
) -> Option<Vec<apinet::NetworkPolicyPeer>> {
    let found: Vec<apinet::NetworkPolicyPeer> = peers
        .iter()
        .flat_map(|peer| match peer {
            NetworkPolicyPeer {
                ip_block: Some(IpBlock { cidr, except }),
                object_selector: _,
            } => vec![block(*cidr, except.clone())],
            NetworkPolicyPeer {
                object_selector: Some(selector),
                ip_block: None,
            } => selected(world, namespace, selector),
            // Says nothing, so it allows nobody.
            NetworkPolicyPeer {
                object_selector: None,
                ip_block: None,
            } => Vec::new(),
        })
        .collect();
    (!found.is_empty() || peers.is_empty()).then_some(found)
}

fn selected(
    world: &World,
    namespace: &str,
    selector: &ObjectSelector,
) -> Vec<apinet::NetworkPolicyPeer> {
    let kind = match selector.kind {
        PeerKind::NetworkInterface => apinet::PolicyObjectKind::NetworkInterface,
        PeerKind::LoadBalancer => apinet::PolicyObjectKind::LoadBalancer,
        PeerKind::VirtualIP => return virtual_ips(world, namespace, selector),
    };
    vec![apinet::NetworkPolicyPeer {
        object_selector: Some(apinet::ObjectSelector {
            kind,
            match_labels: selector.match_labels.clone(),
            match_expressions: selector.match_expressions.clone(),
        }),
        ip_block: None,
    }]
}

fn virtual_ips(
    world: &World,
    namespace: &str,
    selector: &ObjectSelector,
) -> Vec<apinet::NetworkPolicyPeer> {
    let selector = selector.labels();
    let all = world.list_in::<VirtualIP>(namespace);
    let chosen = all.iter().filter(|vip| {
        object::selects(Some(&selector), vip.metadata.labels.as_ref())
            && !object::is_deleting(&***vip)
    });
    chosen
        .filter_map(|vip| vip.status.as_ref()?.ip)
        .map(|ip| block(IpPrefix::host(ip.0), Vec::new()))
        .collect()
}

fn block(cidr: IpPrefix, except: Vec<IpPrefix>) -> apinet::NetworkPolicyPeer {
    apinet::NetworkPolicyPeer {
        object_selector: None,
        ip_block: Some(apinet::IpBlock { cidr, except }),
    }
}

fn port(port: &NetworkPolicyPort) -> apinet::NetworkPolicyPort {
    let NetworkPolicyPort {
        protocol,
        port,
        end_port,
    } = *port;
    apinet::NetworkPolicyPort {
        protocol,
        port,
        end_port,
    }
}

fn peers(policy: &NetworkPolicy) -> impl Iterator<Item = &NetworkPolicyPeer> {
    let from = policy.spec.ingress.iter().flat_map(|rule| &rule.from);
    let to = policy.spec.egress.iter().flat_map(|rule| &rule.to);
    from.chain(to)
}

/// `rule` is what the present policy was resolved to.
fn verdict(rule: Option<&apinet::NetworkPolicyRule>) -> Verdict {
    let Some(rule) = rule else {
        return Verdict::not_ready("Resolving", "the selectors have not been resolved yet");
    };
    let mut interfaces: Vec<&str> = rule
        .targets
        .iter()
        .filter_map(|target| target.target_ref.as_ref())
        .map(|target| target.uid.as_str())
        .collect();
    interfaces.sort_unstable();
    interfaces.dedup();
    let note = format!("restricts {} interfaces", interfaces.len());
    Verdict::ready("Resolved", note)
}

fn report(user: &NetworkPolicy, verdict: Verdict, now_ms: u64) -> Option<Op> {
    let shown = user.status.clone().unwrap_or_default();
    let generation = user.metadata.generation;
    let conditions = conditions::renewed(&shown.conditions, &[verdict], generation, now_ms)?;
    let status = json!({ "conditions": conditions });
    Some(Op::patch_status(Target::of(user), status))
}

fn keys(policies: &[std::sync::Arc<NetworkPolicy>]) -> Vec<Key> {
    policies.iter().map(|policy| Key::of(&**policy)).collect()
}
