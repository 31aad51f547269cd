//! LoadBalancer: its DaemonSet, which addresses are served, and that no address is freed while an Instance may use it.
//!
//! The finalizer comes before the first Instance and goes after the last one, so an object without it was never seen by a data
//! plane. Deletion therefore runs: DaemonSet, Instances (held by their partitions), LoadBalancer, addresses.

use api::{
    apinet::{
        DaemonSet, DaemonSetSpec, Instance, InstanceTemplate, InstanceType, LoadBalancer,
        LoadBalancerRouting, LoadBalancerStatus,
    },
    ids::uuid5_sha256,
    meta::Ip,
    names::{finalizer::DATA_PLANE, manager},
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

use crate::{
    collect::leftover,
    index::{self, INSTANCE_SET},
};

/// Start of the names of DaemonSets.
const PREFIX: &str = "lb-";
/// Longest name of a namespaced object here: a DNS label.
const NAME_BYTES_MAX: usize = 63;
/// Digits that stand for the rest of a long name.
const DIGITS: usize = 10;

pub struct LoadBalancerController;

impl Controller for LoadBalancerController {
    fn name(&self) -> &'static str {
        "loadbalancer"
    }

    fn sources(&self) -> Vec<Source> {
        let balancers = Watch::<LoadBalancer>::new().own_key();
        let sets = Watch::<DaemonSet>::new().keys(|set, _| {
            let owner = object::controller_of(set).filter(|owner| owner.kind == "LoadBalancer");
            owner
                .map(|owner| Key::new(object::namespace(set), &owner.name))
                .into_iter()
                .collect()
        });
        let instances = index::instances().keys(of_instance);
        let routings = Watch::<LoadBalancerRouting>::new().own_key();
        vec![
            balancers.build(),
            sets.build(),
            instances.build(),
            routings.build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(balancer) = world.by_key::<LoadBalancer>(key) else {
            return leftover(world, world.by_key::<LoadBalancerRouting>(key).as_deref());
        };
        let set_name = daemon_set_name(&key.name);
        let set = world.get::<DaemonSet>(&key.namespace, &set_name);
        let set_key = Key::new(&key.namespace, &set_name).to_string();
        let instances = world.indexed::<Instance>(INSTANCE_SET, &set_key);
        if object::is_deleting(&*balancer) {
            let next = match set {
                Some(set) if object::is_deleting(&*set) => None,
                Some(set) => Some(Op::delete(&*set)),
                None if instances.is_empty() => Op::remove_finalizer(&*balancer, DATA_PLANE),
                None => None,
            };
            return next.into_iter().collect::<Vec<_>>().into();
        }
        let mut plan = Plan::none();
        plan.extend(Op::add_finalizer(&*balancer, DATA_PLANE));
        let spec = wanted(&balancer);
        let fits = set.is_some_and(|set| {
            set.spec == spec && object::is_controlled_by(&*set, object::uid(&*balancer))
        });
        if !fits {
            let body = json!({
                "metadata": { "ownerReferences": [object::controller_reference(&*balancer)] },
                "spec": spec,
            });
            let target = Target::new::<DaemonSet>(&key.namespace, set_name);
            plan.push(Op::apply(target, manager::APINET, body));
        }
        let living = instances
            .iter()
            .filter(|instance| !object::is_deleting(&***instance));
        let served: Vec<Ip> = living
            .flat_map(|instance| instance.status.iter().flat_map(|status| &status.ips))
            .copied()
            .collect();
        plan.extend(report(&balancer, &served));
        plan
    }
}

/// The name of the DaemonSet of a load balancer: `lb-<name>`, with the end of long names replaced by digits over the whole.
pub fn daemon_set_name(balancer: &str) -> String {
    let name = format!("{PREFIX}{balancer}");
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    let digits: String = uuid5_sha256(&name)
        .chars()
        .filter(|c| *c != '-')
        .take(DIGITS)
        .collect();
    let head: String = name.chars().take(NAME_BYTES_MAX - DIGITS - 1).collect();
    format!("{head}-{digits}")
}

/// The load balancer whose DaemonSet controls an Instance. The set may be gone already, so its name must do.
fn of_instance(instance: &Instance, world: &World) -> Vec<Key> {
    let namespace = object::namespace(instance);
    let Some(set) = object::controller_of(instance).filter(|owner| owner.kind == "DaemonSet")
    else {
        return Vec::new();
    };
    match set.name.strip_prefix(PREFIX) {
        Some(name) if set.name.len() < NAME_BYTES_MAX => vec![Key::new(namespace, name)],
        Some(_) => {
            let all = world.list_in::<LoadBalancer>(namespace);
            let long = all
                .iter()
                .filter(|balancer| daemon_set_name(object::name(&***balancer)) == set.name);
            long.map(|balancer| Key::of(&**balancer)).collect()
        }
        None => Vec::new(),
    }
}

/// The whole template, with what the load balancer itself says put in.
fn wanted(balancer: &LoadBalancer) -> DaemonSetSpec {
    let spec = &balancer.spec;
    let mut instance = spec.template.spec.clone();
    instance.type_ = Some(InstanceType::LoadBalancer);
    instance.load_balancer_type = Some(spec.type_);
    instance.network_ref = spec.network_ref.clone();
    instance.ips = spec.ips.iter().filter_map(|entry| entry.ip).collect();
    instance.load_balancer_ports = spec.ports.clone();
    DaemonSetSpec {
        node_selector: spec.selector.clone(),
        template: InstanceTemplate {
            metadata: spec.template.metadata.clone(),
            spec: instance,
        },
    }
}

fn report(balancer: &LoadBalancer, served: &[Ip]) -> Option<Op> {
    let shown = balancer.status.clone().unwrap_or_default();
    let own = balancer.spec.ips.iter().filter_map(|entry| entry.ip);
    let ips: Vec<Ip> = own.filter(|ip| served.contains(ip)).collect();
    let status = LoadBalancerStatus {
        ips,
        collision_count: shown.collision_count,
    };
    // Empty lists are written too: a merge patch only changes what it names.
    (status != shown).then(|| Op::patch_status(Target::of(balancer), json!({ "ips": status.ips })))
}
