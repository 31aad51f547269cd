//! OpenKCM-net NetworkInterface on a node of this partition → metalnet NetworkInterface of the same uid; state, device and
//! addresses in use come back.
//!
//! Ready is passed on only together with exactly one device, because machine providers plug that device in. An interface on
//! a node that is gone is taken down and shown as Pending.

use std::collections::BTreeSet;

use api::{
    apinet,
    held::{self, Held},
    ids::Origin,
    meta::Ip,
    metalnet,
    names::{manager, origin},
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use crate::{
    departed, hold,
    network::{BY_NETWORK, network_of},
    partition::Partition,
    policy, services,
    services::BY_TARGET,
};

/// Index of metalnet interfaces by the key of their OpenKCM-net interface.
const BY_ORIGIN: &str = "metalnetlet-nic-origin";
/// Index of OpenKCM-net interfaces by the name of their OpenKCM-net Node.
const BY_NODE: &str = "metalnetlet-nic-node";

pub struct NetworkInterfaceController {
    pub partition: Partition,
    /// As in [`crate::NodeController`], so that both share one watch.
    pub node_selector: Option<String>,
}

impl Controller for NetworkInterfaceController {
    fn name(&self) -> &'static str {
        "networkinterface"
    }

    fn sources(&self) -> Vec<Source> {
        let partition = self.partition.clone();
        let nics = Watch::<apinet::NetworkInterface>::new()
            .index(BY_NETWORK, |nic| vec![network_of(nic).to_string()])
            .index(BY_NODE, |nic| vec![nic.spec.node_ref.name.clone()])
            .keys(move |nic, _| {
                partition
                    .node_of(nic)
                    .map(|_| Key::of(nic))
                    .into_iter()
                    .collect()
            });
        let partition = self.partition.clone();
        let networks = Watch::<apinet::Network>::new().keys(move |network, world| {
            let key = Key::of(network).to_string();
            let nics = world.indexed::<apinet::NetworkInterface>(BY_NETWORK, &key);
            let local = nics.iter().filter(|nic| partition.node_of(nic).is_some());
            local.map(|nic| Key::of(&**nic)).collect()
        });
        let partition = self.partition.clone();
        let nodes = Watch::<Node>::new().keys(move |node, world| {
            let name = partition.apinet_node(object::name(node));
            let nics = world.indexed::<apinet::NetworkInterface>(BY_NODE, &name);
            nics.iter().map(|nic| Key::of(&**nic)).collect()
        });
        let nodes = match &self.node_selector {
            Some(selector) => nodes.labels(selector),
            None => nodes,
        };
        // Whether a hypervisor is alive is said by its published Node.
        let published = Watch::<apinet::Node>::new().keys(|node, world| {
            let nics = world.indexed::<apinet::NetworkInterface>(BY_NODE, object::name(node));
            nics.iter().map(|nic| Key::of(&**nic)).collect()
        });
        let base = origin::METALNET_NETWORK_INTERFACE;
        let made = Watch::<metalnet::NetworkInterface>::new()
            .namespace(&self.partition.metalnet_namespace)
            .index(BY_ORIGIN, move |made| {
                object::origin_key(made, base)
                    .iter()
                    .map(Key::to_string)
                    .collect()
            })
            .keys(move |made, _| object::origin_key(made, base).into_iter().collect());
        let mut sources = vec![
            nics.build(),
            networks.build(),
            nodes.build(),
            published.build(),
            made.build(),
        ];
        sources.extend(self.service_sources());
        sources
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(nic) = world.by_key::<apinet::NetworkInterface>(key) else {
            return clean_up(world, key);
        };
        let Some(node) = self.partition.node_of(&nic) else {
            return Plan::none();
        };
        let namespace = &self.partition.metalnet_namespace;
        let made = world.get::<metalnet::NetworkInterface>(namespace, object::uid(&*nic));
        if object::is_deleting(&*nic) {
            return self.let_go(world, &nic, node, made.as_deref());
        }
        let node_lives = world
            .get::<Node>("", node)
            .is_some_and(|node| !object::is_deleting(&*node));
        if !node_lives {
            let mut plan = self.let_go(world, &nic, node, made.as_deref());
            plan.extend(show_pending(&nic));
            return plan;
        }
        let Some(network) = world.by_key::<apinet::Network>(&network_of(&nic)) else {
            // The Network's own event brings this key back.
            return Plan::none();
        };
        let spec = wanted_spec(world, &nic, node, &network);
        let lost = world
            .get::<apinet::Node>("", &nic.spec.node_ref.name)
            .is_some_and(|node| node.is_lost());
        self.realize(&nic, spec, made.as_deref(), lost)
    }
}

impl NetworkInterfaceController {
    /// The metalnet interface goes first. That there is none is looked up, because its addresses are free with our hold.
    fn let_go(
        &self,
        world: &World,
        nic: &apinet::NetworkInterface,
        node: &str,
        made: Option<&metalnet::NetworkInterface>,
    ) -> Plan {
        let finalizer = self.partition.finalizer();
        let mut plan = Plan::none();
        let Some(made) = made else {
            let last = match object::is_deleting(nic) {
                true => Op::remove_finalizer(nic, &finalizer),
                // The hypervisor is gone, the interface is not: nobody has its addresses any more.
                false => hold::release(nic, &finalizer),
            };
            if last.is_some() {
                plan.push(Op::require_absent(self.target(nic)));
            }
            plan.extend(last);
            return plan;
        };
        plan.extend(departed::lift(world, made, node));
        if !object::is_deleting(made) {
            plan.push(Op::delete(made));
        }
        plan
    }

    fn target(&self, nic: &apinet::NetworkInterface) -> Target {
        let namespace = &self.partition.metalnet_namespace;
        Target::new::<metalnet::NetworkInterface>(namespace, object::uid(nic))
    }

    /// What the services of an interface are read from, and which interfaces each of these objects is about.
    fn service_sources(&self) -> Vec<Source> {
        let partition = self.partition.clone();
        let tables = Watch::<apinet::NATTable>::new().keys(move |table, _| {
            let targets = services::table_targets(table);
            services::local_keys(&partition, object::namespace(table), targets)
        });
        let partition = self.partition.clone();
        let routings = Watch::<apinet::LoadBalancerRouting>::new()
            .index(BY_TARGET, |routing| {
                services::uids(services::destinations(routing))
            })
            .keys(move |routing, _| {
                let targets = services::destinations(routing);
                services::local_keys(&partition, object::namespace(routing), targets)
            });
        let partition = self.partition.clone();
        let balancers = Watch::<apinet::LoadBalancer>::new().keys(move |balancer, world| {
            let (namespace, name) = (object::namespace(balancer), object::name(balancer));
            let routing = world.get::<apinet::LoadBalancerRouting>(namespace, name);
            let routing = routing.as_deref();
            let targets = routing.map(services::destinations).unwrap_or_default();
            services::local_keys(&partition, namespace, targets)
        });
        let rules = Watch::<apinet::NetworkPolicyRule>::new()
            .index(BY_TARGET, services::restricted)
            .keys(|rule, _| {
                let targets = rule.targets.iter();
                let named = targets.filter_map(|target| target.target_ref.as_ref());
                named
                    .map(|named| Key::new(object::namespace(rule), &named.name))
                    .collect()
            });
        vec![
            tables.build(),
            routings.build(),
            balancers.build(),
            rules.build(),
        ]
    }

    fn realize(
        &self,
        nic: &apinet::NetworkInterface,
        spec: metalnet::NetworkInterfaceSpec,
        made: Option<&metalnet::NetworkInterface>,
        lost: bool,
    ) -> Plan {
        let mut plan = Plan::none();
        let held = holding(nic, &spec, made);
        if held.frees {
            plan.push(match made {
                Some(made) => Op::require_same(made),
                None => Op::require_absent(self.target(nic)),
            });
        }
        plan.extend(hold::mark(nic, &self.partition.finalizer(), &held.next));
        let source = object::as_origin(nic);
        let labels = source.labels(origin::METALNET_NETWORK_INTERFACE);
        let annotations = source.annotations(origin::METALNET_NETWORK_INTERFACE);
        let fits = made.is_some_and(|made| {
            spec_fits(&spec, &made.spec) && object::carries(made, &labels, &annotations)
        });
        if !fits {
            let target = self.target(nic);
            let mut spec = json!(spec);
            // Always owned, also when empty: clearing the host name must reach the guest.
            spec["hostname"] = json!(nic.spec.hostname);
            let body = json!({
                "metadata": { "labels": labels, "annotations": annotations },
                "spec": spec,
            });
            plan.push(Op::apply(target, manager::METALNETLET, body));
        }
        plan.extend(made.and_then(|made| report(nic, made, lost)));
        plan
    }
}

/// What the data plane of an interface may have of public addresses from now on.
struct Holding {
    next: BTreeSet<Held>,
    /// It is less than what is written: whoever takes it away must know metalnet's newest word.
    frees: bool,
}

fn holding(
    nic: &apinet::NetworkInterface,
    wanted: &metalnet::NetworkInterfaceSpec,
    made: Option<&metalnet::NetworkInterface>,
) -> Holding {
    let shown = held::of(&nic.metadata);
    let mut next = addresses(wanted.virtual_ip, &wanted.virtual_ips, wanted.nat.as_ref());
    if let Some(made) = made {
        let status = made.status.clone().unwrap_or_default();
        next.extend(addresses(
            made.spec.virtual_ip,
            &made.spec.virtual_ips,
            made.spec.nat.as_ref(),
        ));
        next.extend(addresses(
            status.virtual_ip,
            &status.virtual_ips,
            status.nat_ip.as_ref(),
        ));
        // A metalnet that reports, but never says what it has seen, is trusted in its reports.
        let is_current = match status.observed_generation {
            None => status.state.is_some(),
            seen => seen == made.metadata.generation,
        };
        if !is_current {
            next.extend(shown.iter().copied());
        }
    }
    Holding {
        frees: !shown.is_subset(&next),
        next,
    }
}

fn addresses(first: Option<Ip>, more: &[Ip], nat: Option<&metalnet::Nat>) -> BTreeSet<Held> {
    let whole = first.into_iter().chain(more.iter().copied());
    let nat = nat.map(|nat| Held::share(nat.ip, nat.port, nat.end_port.saturating_sub(1)));
    whole.map(Held::whole).chain(nat).collect()
}

fn wanted_spec(
    world: &World,
    nic: &apinet::NetworkInterface,
    node: &str,
    network: &apinet::Network,
) -> metalnet::NetworkInterfaceSpec {
    let apinet::NetworkInterfaceSpec {
        node_ref: _,
        network_ref: _,
        ips,
        prefixes,
        nat_gateways: _,
        hostname,
        public_ips,
    } = &nic.spec;
    let ip_families: Vec<_> = ips.iter().map(|ip| ip.family()).collect();
    let (virtual_ip, virtual_ips) = services::virtual_ips(public_ips);
    let (uid, network) = (object::uid(nic), object::uid(network));
    let policies = world.indexed::<apinet::NetworkPolicyRule>(BY_TARGET, uid);
    let policies = policies.iter().map(|rule| &**rule).filter(|rule| {
        object::namespace(*rule) == object::namespace(nic) && !object::is_deleting(*rule)
    });
    metalnet::NetworkInterfaceSpec {
        network_ref: api::meta::LocalObjectReference::new(network),
        firewall_rules: policy::firewall_rules(uid, network, &ip_families, policies),
        ip_families,
        ips: ips.clone(),
        virtual_ip,
        virtual_ips,
        prefixes: prefixes.clone(),
        load_balancer_targets: services::load_balancer_targets(world, nic),
        nat: services::nat(world, nic),
        node_name: Some(node.to_owned()),
        metering_rate: None,
        hostname: hostname.clone(),
    }
}

/// Compares what we write; what others may own (metering) does not count.
fn spec_fits(
    wanted: &metalnet::NetworkInterfaceSpec,
    live: &metalnet::NetworkInterfaceSpec,
) -> bool {
    let live = metalnet::NetworkInterfaceSpec {
        metering_rate: wanted.metering_rate.clone(),
        ..live.clone()
    };
    *wanted == live
}

/// What metalnet says, in the words of OpenKCM-net, if it differs from what is shown. A lost hypervisor says nothing any more, and what
/// it said last is no longer true: its interfaces are in Error. Addresses and devices stay, because it may still be forwarding.
fn report(
    nic: &apinet::NetworkInterface,
    made: &metalnet::NetworkInterface,
    lost: bool,
) -> Option<Op> {
    let metalnet::NetworkInterfaceStatus {
        observed_generation: _,
        state,
        pci_address,
        tap_device,
        virtual_ip,
        virtual_ips,
        nat_ip,
        prefixes,
        load_balancer_targets: _,
    } = made.status.clone().unwrap_or_default();
    let one_device = pci_address.is_some() != tap_device.is_some();
    let state = match state {
        _ if lost => apinet::NetworkInterfaceState::Error,
        Some(metalnet::State::Ready) if one_device => apinet::NetworkInterfaceState::Ready,
        Some(metalnet::State::Error) => apinet::NetworkInterfaceState::Error,
        Some(metalnet::State::Ready | metalnet::State::Pending) | None => {
            apinet::NetworkInterfaceState::Pending
        }
    };
    let wanted = apinet::NetworkInterfaceStatus {
        state: Some(state),
        pci_address,
        tap_device,
        prefixes,
        public_ips: virtual_ip.into_iter().chain(virtual_ips).collect(),
        nat_ips: nat_ip.map(services::nat_ip).into_iter().collect(),
    };
    show(nic, wanted)
}

fn show_pending(nic: &apinet::NetworkInterface) -> Option<Op> {
    let pending = apinet::NetworkInterfaceStatus {
        state: Some(apinet::NetworkInterfaceState::Pending),
        ..apinet::NetworkInterfaceStatus::default()
    };
    show(nic, pending)
}

fn show(nic: &apinet::NetworkInterface, wanted: apinet::NetworkInterfaceStatus) -> Option<Op> {
    if nic.status.as_ref() == Some(&wanted) {
        return None;
    }
    let apinet::NetworkInterfaceStatus {
        state,
        pci_address,
        tap_device,
        prefixes,
        public_ips,
        nat_ips,
    } = wanted;
    // Explicit empties: a merge patch only changes what it names. An object is replaced by clearing it first, which a merge
    // patch cannot do, but both device types always carry all of their fields.
    let status = json!({
        "state": state,
        "pciAddress": pci_address.map(|pci| json!({
            "domain": pci.domain, "bus": pci.bus, "slot": pci.slot, "function": pci.function,
        })).unwrap_or(Value::Null),
        "tapDevice": tap_device.map(|tap| json!({ "name": tap.name })).unwrap_or(Value::Null),
        "prefixes": prefixes,
        "publicIPs": public_ips,
        "natIPs": nat_ips,
    });
    Some(Op::patch_status(Target::of(nic), status))
}

fn clean_up(world: &World, key: &Key) -> Plan {
    let mut plan = Plan::none();
    for made in world.indexed::<metalnet::NetworkInterface>(BY_ORIGIN, &key.to_string()) {
        let Some(source) = Origin::of(&made.metadata, origin::METALNET_NETWORK_INTERFACE) else {
            continue;
        };
        if !object::is_deleting(&*made) {
            let target = Target::new::<apinet::NetworkInterface>(&source.namespace, &source.name);
            plan.push(Op::RequireGone {
                target,
                uid: source.uid,
            });
            plan.push(Op::delete(&*made));
        }
        let node = made.spec.node_name.as_deref().unwrap_or_default();
        plan.extend(departed::lift(world, &*made, node));
    }
    plan
}
