//! Ephemeral addresses and prefixes of interfaces and load balancers → Prefixes, owned by whom they are made for.
//!
//! `ips[i]` of `web` becomes Prefix `web-<i>`, `prefixes[i]` of an interface `web-pf-<i>`. These names are part of the contract with
//! the parts that read the addresses, and they can be taken: by a user, or by another owner (interface `web` and load balancer
//! `web` both want `web-0`). A Prefix of somebody else is never adopted; an event says so, and the name is used once it is free.
//! What was made is never changed; what is not wanted any more is deleted.

use std::collections::BTreeMap;

use api::{
    ids::{self, is_ephemeral_of},
    ipam::{Prefix, PrefixTemplateSpec},
    names::annotation::{EPHEMERAL_MANAGED_BY, EPHEMERAL_MANAGER},
    networking::{EphemeralPrefixSource, LoadBalancer, NetworkInterface},
};
use controller::{Controller, Key, Object, Op, Plan, Source, Target, World, object};
use serde_json::json;

use crate::index::{self, LOAD_BALANCER_EPHEMERAL_PREFIX, NIC_EPHEMERAL_PREFIX, PREFIX_CONTROLLER};

pub struct NicEphemeralPrefixController;

impl Controller for NicEphemeralPrefixController {
    fn name(&self) -> &'static str {
        "networkinterfaceephemeralprefix"
    }

    fn sources(&self) -> Vec<Source> {
        let prefixes = index::prefixes().keys(|prefix, world| {
            users::<NetworkInterface>(prefix, world, "NetworkInterface", NIC_EPHEMERAL_PREFIX)
        });
        vec![index::nics().own_key().build(), prefixes.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(nic) = world.by_key::<NetworkInterface>(key) else {
            return Plan::none();
        };
        let ips = nic.spec.ips.iter().enumerate().filter_map(|(i, source)| {
            let name = ids::ephemeral_ip_prefix_name(&key.name, i);
            Some((name, template(source.ephemeral.as_ref())?))
        });
        let routed = nic.spec.prefixes.iter().enumerate();
        let routed = routed.filter_map(|(i, source)| {
            let name = ids::ephemeral_prefix_name(&key.name, i);
            Some((name, template(source.ephemeral.as_ref())?))
        });
        plan(world, &*nic, ips.chain(routed).collect())
    }
}

pub struct LoadBalancerEphemeralPrefixController;

impl Controller for LoadBalancerEphemeralPrefixController {
    fn name(&self) -> &'static str {
        "loadbalancerephemeralprefix"
    }

    fn sources(&self) -> Vec<Source> {
        let prefixes = index::prefixes().keys(|prefix, world| {
            users::<LoadBalancer>(
                prefix,
                world,
                "LoadBalancer",
                LOAD_BALANCER_EPHEMERAL_PREFIX,
            )
        });
        vec![index::load_balancers().own_key().build(), prefixes.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(balancer) = world.by_key::<LoadBalancer>(key) else {
            return Plan::none();
        };
        let ips = balancer.spec.ips.iter().enumerate();
        let ips = ips.filter_map(|(i, source)| {
            let name = ids::ephemeral_ip_prefix_name(&key.name, i);
            Some((name, template(source.ephemeral.as_ref())?))
        });
        plan(world, &*balancer, ips.collect())
    }
}

fn template(source: Option<&EphemeralPrefixSource>) -> Option<&PrefixTemplateSpec> {
    source?.prefix_template.as_ref()
}

/// Who owns a Prefix, and who wants its name.
fn users<K: Object>(prefix: &Prefix, world: &World, kind: &str, by_name: &'static str) -> Vec<Key> {
    let key = Key::of(prefix);
    let owner = object::controller_of(prefix).filter(|owner| owner.kind == kind);
    let owner = owner.map(|owner| Key::new(&key.namespace, &owner.name));
    let wanting = world.indexed::<K>(by_name, &key.to_string());
    wanting
        .iter()
        .map(|user| Key::of(&**user))
        .chain(owner)
        .collect()
}

fn plan<K: Object>(
    world: &World,
    owner: &K,
    wanted: BTreeMap<String, &PrefixTemplateSpec>,
) -> Plan {
    let mut plan = Plan::none();
    if object::is_deleting(owner) {
        return plan;
    }
    let uid = object::uid(owner);
    for prefix in world.indexed::<Prefix>(PREFIX_CONTROLLER, uid) {
        let ours = is_ephemeral_of(&prefix.metadata, uid);
        let unwanted = !wanted.contains_key(object::name(&*prefix));
        if ours && unwanted && !object::is_deleting(&*prefix) {
            plan.push(Op::delete(&*prefix));
        }
    }
    for (name, template) in wanted {
        match world.get::<Prefix>(object::namespace(owner), &name) {
            None => {
                plan.push(create(owner, &name, template));
            }
            Some(prefix) if !is_ephemeral_of(&prefix.metadata, uid) => {
                let note = format!("Prefix {name} exists and is not ours");
                plan.push(Op::event(owner, true, "NameTaken", "CreatePrefix", note));
            }
            Some(_) => {}
        }
    }
    plan
}

fn create<K: Object>(owner: &K, name: &str, template: &PrefixTemplateSpec) -> Op {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(
        EPHEMERAL_MANAGED_BY.to_owned(),
        EPHEMERAL_MANAGER.to_owned(),
    );
    let body = json!({
        "metadata": {
            "labels": meta.labels.unwrap_or_default(),
            "annotations": annotations,
            "ownerReferences": [object::controller_reference(owner)],
        },
        "spec": template.spec,
    });
    Op::create(Target::new::<Prefix>(object::namespace(owner), name), body)
}
