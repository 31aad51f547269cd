//! User LoadBalancer → OpenKCM-net LoadBalancer of the same uid, and its LoadBalancerRouting. The server reserves public
//! addresses; internal ones are literal or come from ipam Prefixes made for the load balancer. What is served comes back.
//!
//! The addresses go when the LoadBalancer of OpenKCM-net goes, which its own finalizers hold until no hypervisor serves it;
//! the user object stays until then.

use std::collections::BTreeSet;

use api::{
    apinet,
    conditions::Verdict,
    ids::{NetworkInterfaceProviderId, ephemeral_ip_prefix_name},
    ipam::Prefix,
    meta::{Ip, LabelSelector, LocalObjectReference, ObjectMeta},
    names::{finalizer, label, manager, origin},
    networking::{
        LoadBalancer, LoadBalancerDestination, LoadBalancerPort, LoadBalancerRouting,
        LoadBalancerTargetRef, LoadBalancerType, Network,
    },
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

use crate::{
    filter::Filter,
    made::{self, Mapping, Marks},
    prefixes,
};

const MAPPING: Mapping = Mapping {
    origin: origin::LOAD_BALANCER,
    index: "apinetlet-load-balancer-origin",
    finalizer: finalizer::APINETLET_LOAD_BALANCER,
};
/// Index of user load balancers by the key of their network.
const BY_NETWORK: &str = "apinetlet-load-balancer-network";

pub struct LoadBalancerController {
    pub filter: Filter,
    /// Only nodes that have a destination realize a load balancer.
    pub node_affinity: bool,
}

impl Controller for LoadBalancerController {
    fn name(&self) -> &'static str {
        "loadbalancer"
    }

    fn sources(&self) -> Vec<Source> {
        let mut user = Watch::<LoadBalancer>::new()
            .own_key()
            .index(BY_NETWORK, |lb| {
                vec![Key::new(object::namespace(lb), &lb.spec.network_ref.name).to_string()]
            });
        let mut routings = Watch::<LoadBalancerRouting>::new().own_key();
        let mut networks = Watch::<Network>::new().keys(|network, world| {
            let waiting = world.indexed::<LoadBalancer>(BY_NETWORK, &Key::of(network).to_string());
            waiting.iter().map(|lb| Key::of(&**lb)).collect()
        });
        let mut prefixes = Watch::<Prefix>::new().keys(|prefix, _| {
            let owner = object::controller_of(prefix);
            let owner = owner.filter(|owner| owner.kind == "LoadBalancer");
            let key = owner.map(|owner| Key::new(object::namespace(prefix), &owner.name));
            key.into_iter().collect()
        });
        if let Some(namespace) = &self.filter.namespace {
            user = user.namespace(namespace);
            routings = routings.namespace(namespace);
            networks = networks.namespace(namespace);
            prefixes = prefixes.namespace(namespace);
        }
        let made = MAPPING.watch::<apinet::LoadBalancer>(&self.filter);
        let made_routings = MAPPING.watch_beside::<apinet::LoadBalancerRouting>(&self.filter);
        vec![
            user.build(),
            routings.build(),
            networks.build(),
            prefixes.build(),
            made.build(),
            made_routings.build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        MAPPING.plan(world, &self.filter, key, |user, made| {
            self.realize(world, user, made)
        })
    }
}

impl LoadBalancerController {
    fn realize(
        &self,
        world: &World,
        user: &LoadBalancer,
        made: Option<&apinet::LoadBalancer>,
    ) -> Plan {
        let mut plan = Plan::none();
        plan.extend(Op::add_finalizer(user, finalizer::APINETLET_LOAD_BALANCER));
        let network = match made::network(world, user, &user.spec.network_ref) {
            Ok(network) => network,
            Err(verdict) => {
                plan.extend(report(user, made, verdict, world.now_ms()));
                return plan;
            }
        };
        let destinations = destinations(world, user, &network);
        let wanted = self.spec(world, user, &network, &destinations);
        // Written before the apply, so that a failing one (no address left) leaves a reason behind.
        let verdict = verdict(user, made, &destinations);
        plan.extend(report(user, made, verdict, world.now_ms()));
        match made {
            Some(made) if object::is_deleting(made) => return plan,
            Some(made) if !can_become(made, &wanted) => {
                // The network was deleted and made again under its name: this one belongs to a network that is gone.
                plan.push(Op::delete(made));
                return plan;
            }
            Some(_) | None => {}
        }
        let marks = Marks::of(user, origin::LOAD_BALANCER);
        if !made.is_some_and(|made| marks.are_on(made) && has(made, &wanted)) {
            let target = Target::new::<apinet::LoadBalancer>(
                &self.filter.apinet_namespace,
                object::uid(user),
            );
            let body = json!({ "metadata": marks.metadata(), "spec": wanted });
            plan.push(Op::apply(target, manager::APINETLET, body));
        }
        if let Some(made) = made {
            plan.extend(self.route(world, made, &marks, &destinations));
        }
        plan
    }

    fn spec(
        &self,
        world: &World,
        user: &LoadBalancer,
        network: &Network,
        destinations: &[apinet::LoadBalancerDestination],
    ) -> apinet::LoadBalancerSpec {
        let source = object::as_origin(user);
        let labels = source.labels(origin::LOAD_BALANCER);
        // Labels of the origin only: they never change, and the selector is immutable.
        let selector = LabelSelector {
            match_labels: Some(labels.clone()),
            match_expressions: None,
        };
        let one_per_zone = apinet::InstanceAffinityTerm {
            label_selector: Some(selector.clone()),
            topology_key: label::APINET_ZONE.to_owned(),
        };
        let nodes = if self.node_affinity {
            nodes_of(destinations)
        } else {
            BTreeSet::new()
        };
        apinet::LoadBalancerSpec {
            type_: match user.spec.type_ {
                LoadBalancerType::Public => apinet::LoadBalancerType::Public,
                LoadBalancerType::Internal => apinet::LoadBalancerType::Internal,
            },
            network_ref: LocalObjectReference::new(object::uid(network)),
            ips: addresses(world, user),
            ports: user.spec.ports.iter().map(port).collect(),
            selector: Some(selector),
            template: apinet::InstanceTemplate {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some(source.annotations(origin::LOAD_BALANCER)),
                    ..ObjectMeta::default()
                }),
                spec: apinet::InstanceSpec {
                    affinity: Some(apinet::Affinity {
                        node_affinity: (!nodes.is_empty()).then(|| only_on(nodes)),
                        instance_anti_affinity: Some(apinet::InstanceAntiAffinity {
                            required_during_scheduling_ignored_during_execution: vec![one_per_zone],
                        }),
                    }),
                    ..apinet::InstanceSpec::default()
                },
            },
        }
    }

    /// The routing of the same name, owned by the load balancer and gone with it.
    fn route(
        &self,
        world: &World,
        made: &apinet::LoadBalancer,
        marks: &Marks,
        destinations: &[apinet::LoadBalancerDestination],
    ) -> Option<Op> {
        let namespace = &self.filter.apinet_namespace;
        let live = world.get::<apinet::LoadBalancerRouting>(namespace, object::name(made));
        let fits = live.is_some_and(|live| {
            live.destinations == destinations
                && marks.are_on(&*live)
                && object::is_controlled_by(&*live, object::uid(made))
        });
        if fits {
            return None;
        }
        let mut metadata = marks.metadata();
        metadata["ownerReferences"] = json!([object::controller_reference(made)]);
        let body = json!({ "metadata": metadata, "destinations": destinations });
        let target = Target::of(made).of_kind::<apinet::LoadBalancerRouting>();
        Some(Op::apply(target, manager::APINETLET, body))
    }
}

/// The wanted addresses. A public one has no address here: the server reserves it and keeps it under the entry's name.
fn addresses(world: &World, user: &LoadBalancer) -> Vec<apinet::LoadBalancerIp> {
    match user.spec.type_ {
        LoadBalancerType::Public => {
            let families = user.spec.ip_families.iter();
            families
                .map(|family| apinet::LoadBalancerIp {
                    name: family.as_str().to_lowercase(),
                    ip_family: Some(*family),
                    ip: None,
                })
                .collect()
        }
        LoadBalancerType::Internal => {
            let sources = user.spec.ips.iter().enumerate();
            sources
                .filter_map(|(at, source)| {
                    let allocated = || {
                        source.ephemeral.as_ref()?;
                        let name = ephemeral_ip_prefix_name(object::name(user), at);
                        let namespace = object::namespace(user);
                        let uid = object::uid(user);
                        let block = prefixes::ephemeral(world, namespace, &name, uid)?;
                        Some(Ip(block.masked().addr()))
                    };
                    let ip = source.value.or_else(allocated)?;
                    Some(apinet::LoadBalancerIp {
                        name: format!("ip-{at}"),
                        ip_family: Some(ip.family()),
                        ip: Some(ip),
                    })
                })
                .collect()
        }
    }
}

fn port(port: &LoadBalancerPort) -> apinet::LoadBalancerPort {
    let LoadBalancerPort {
        protocol,
        port,
        end_port,
    } = *port;
    apinet::LoadBalancerPort {
        protocol,
        port,
        end_port,
    }
}

/// Where the connections go, with the realized interface where its handle can be read.
fn destinations(
    world: &World,
    user: &LoadBalancer,
    network: &Network,
) -> Vec<apinet::LoadBalancerDestination> {
    let routing = world.by_key::<LoadBalancerRouting>(&Key::of(user));
    // A routing of a former network of that name lists interfaces of the former network.
    let routing = routing.filter(|routing| routing.network_ref.uid == object::uid(network));
    let Some(routing) = routing else {
        return Vec::new();
    };
    let listed = routing.destinations.iter();
    listed
        .map(
            |LoadBalancerDestination { ip, target_ref }| apinet::LoadBalancerDestination {
                ip: *ip,
                target_ref: target_ref.as_ref().and_then(realized),
            },
        )
        .collect()
}

fn realized(target: &LoadBalancerTargetRef) -> Option<apinet::TargetReference> {
    let handle: NetworkInterfaceProviderId = target.provider_id.parse().ok()?;
    Some(apinet::TargetReference {
        uid: handle.uid,
        name: handle.name,
        node_ref: LocalObjectReference::new(handle.node),
    })
}

fn nodes_of(destinations: &[apinet::LoadBalancerDestination]) -> BTreeSet<String> {
    let targets = destinations.iter().filter_map(|d| d.target_ref.as_ref());
    targets.map(|target| target.node_ref.name.clone()).collect()
}

/// One term per node, in their order: a term of this kind takes one name.
fn only_on(nodes: BTreeSet<String>) -> apinet::NodeAffinity {
    let term = |node| apinet::NodeSelectorTerm {
        match_expressions: Vec::new(),
        match_fields: vec![apinet::NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: apinet::NodeSelectorOperator::In,
            values: vec![node],
        }],
    };
    apinet::NodeAffinity {
        required_during_scheduling_ignored_during_execution: Some(apinet::NodeSelector {
            node_selector_terms: nodes.into_iter().map(term).collect(),
        }),
    }
}

/// Whether the fields that cannot change are as wanted.
fn can_become(made: &apinet::LoadBalancer, wanted: &apinet::LoadBalancerSpec) -> bool {
    let spec = &made.spec;
    spec.type_ == wanted.type_
        && spec.network_ref == wanted.network_ref
        && spec.selector == wanted.selector
}

/// Whether everything that we want is there. Addresses that we leave open are the server's to fill in.
fn has(made: &apinet::LoadBalancer, wanted: &apinet::LoadBalancerSpec) -> bool {
    let spec = &made.spec;
    let same_addresses = spec.ips.len() == wanted.ips.len()
        && wanted.ips.iter().zip(&spec.ips).all(|(wanted, live)| {
            wanted.name == live.name
                && wanted.ip_family == live.ip_family
                && (wanted.ip.is_none() || wanted.ip == live.ip)
        });
    same_addresses
        && spec.ports == wanted.ports
        && spec.template.metadata == wanted.template.metadata
        && spec.template.spec.affinity == wanted.template.spec.affinity
}

/// What is the case, from what is known so far.
fn verdict(
    user: &LoadBalancer,
    made: Option<&apinet::LoadBalancer>,
    destinations: &[apinet::LoadBalancerDestination],
) -> Verdict {
    let reserved = made.map(|made| shown_addresses(made).len());
    let served = made.and_then(|made| made.status.as_ref());
    let served = served.map_or(0, |status| status.ips.len());
    let wanted = user.spec.ip_families.len().max(user.spec.ips.len());
    match reserved {
        None | Some(0) => Verdict::not_ready("AddressPending", "waits for an address"),
        Some(there) if there < wanted => {
            let note = format!("{there} of {wanted} addresses are there");
            Verdict::not_ready("AddressPending", note)
        }
        Some(_) if destinations.is_empty() => {
            let note = "no available interface is selected, so connections go nowhere";
            Verdict::not_ready("NoDestinations", note)
        }
        Some(there) if served < there => {
            let note = format!("hypervisors serve {served} of {there} addresses");
            Verdict::not_ready("NotServed", note)
        }
        Some(_) => Verdict::ready(
            "Serving",
            format!("connections go to {} addresses", destinations.len()),
        ),
    }
}

fn shown_addresses(made: &apinet::LoadBalancer) -> Vec<Ip> {
    made.spec.ips.iter().filter_map(|entry| entry.ip).collect()
}

fn report(
    user: &LoadBalancer,
    made: Option<&apinet::LoadBalancer>,
    verdict: Verdict,
    now_ms: u64,
) -> Option<Op> {
    let shown = user.status.clone().unwrap_or_default();
    let ips = made
        .filter(|made| !object::is_deleting(*made))
        .map(shown_addresses)
        .unwrap_or_default();
    let is_same = shown.ips == ips;
    let status = json!({ "ips": ips });
    made::report(user, &shown.conditions, verdict, is_same, now_ms, status)
}
