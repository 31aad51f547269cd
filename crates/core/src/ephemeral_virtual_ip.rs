//! NetworkInterface with an ephemeral virtual IP → VirtualIP of the same name, already claimed by the interface.
//!
//! With reclaim policy Retain the VirtualIP has no owner and survives the interface; it is then recognised by its mark and
//! its target.

use api::{
    ids::is_ephemeral_of,
    names::annotation::{EPHEMERAL_MANAGED_BY, EPHEMERAL_MANAGER},
    networking::{NetworkInterface, ReclaimPolicy, VirtualIP, VirtualIpTemplateSpec},
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

use crate::index;

/// VirtualIPs by the uid of their controller or target.
const BY_USER: &str = "core-virtual-ip-user";

pub struct EphemeralVirtualIpController;

impl Controller for EphemeralVirtualIpController {
    fn name(&self) -> &'static str {
        "networkinterfaceephemeralvirtualip"
    }

    fn sources(&self) -> Vec<Source> {
        let addresses = Watch::<VirtualIP>::new()
            .index(BY_USER, users)
            .keys(|vip, world| {
                let key = Key::of(vip);
                let owner = object::controller_of(vip).map(|owner| owner.name.clone());
                let target = vip
                    .spec
                    .target_ref
                    .as_ref()
                    .map(|target| target.name.clone());
                // The interface that wants this name, whoever made the object.
                let namesake = world
                    .by_key::<NetworkInterface>(&key)
                    .map(|_| key.name.clone());
                let names = owner.into_iter().chain(target).chain(namesake);
                names.map(|name| Key::new(&key.namespace, name)).collect()
            });
        vec![index::nics().own_key().build(), addresses.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(nic) = world.by_key::<NetworkInterface>(key) else {
            return Plan::none();
        };
        if object::is_deleting(&*nic) {
            return Plan::none();
        }
        let template = nic
            .spec
            .virtual_ip
            .as_ref()
            .and_then(|source| source.ephemeral.as_ref()?.virtual_ip_template.as_ref());
        let mut plan = Plan::none();
        for vip in world.indexed::<VirtualIP>(BY_USER, object::uid(&*nic)) {
            let wanted = template.is_some() && object::name(&*vip) == key.name;
            if is_ours(&vip, &nic) && !wanted && !object::is_deleting(&*vip) {
                plan.push(Op::delete(&*vip));
            }
        }
        let Some(template) = template else {
            return plan;
        };
        match world.by_key::<VirtualIP>(key) {
            None => {
                plan.push(create(&nic, template));
            }
            Some(vip) if is_ours(&vip, &nic) => {
                plan.extend(own(&vip, &nic, template));
            }
            Some(_) => {
                let note = format!("VirtualIP {} exists and is not ours", key.name);
                plan.push(Op::event(&*nic, true, "NameTaken", "CreateVirtualIP", note));
            }
        }
        plan
    }
}

fn users(vip: &VirtualIP) -> Vec<String> {
    let owner = object::controller_of(vip).map(|owner| owner.uid.clone());
    let target = vip
        .spec
        .target_ref
        .as_ref()
        .map(|target| target.uid.clone());
    let mut users: Vec<String> = owner.into_iter().chain(target).collect();
    users.dedup();
    users
}

fn is_ours(vip: &VirtualIP, nic: &NetworkInterface) -> bool {
    let uid = object::uid(nic);
    let marked = object::annotation(vip, EPHEMERAL_MANAGED_BY) == Some(EPHEMERAL_MANAGER);
    let target = vip
        .spec
        .target_ref
        .as_ref()
        .is_some_and(|target| target.uid == uid);
    is_ephemeral_of(&vip.metadata, uid) || (marked && target)
}

fn is_retained(template: &VirtualIpTemplateSpec) -> bool {
    template.spec.reclaim_policy == Some(ReclaimPolicy::Retain)
}

/// The policy may change from Retain to Delete; the owner is added then. The other way round nothing changes.
fn own(vip: &VirtualIP, nic: &NetworkInterface, template: &VirtualIpTemplateSpec) -> Option<Op> {
    let owned = object::controller_of(vip).is_some();
    (!owned && !is_retained(template) && !object::is_deleting(vip)).then(|| {
        let mut owners = json!(vip.metadata.owner_references.clone().unwrap_or_default());
        if let Some(owners) = owners.as_array_mut() {
            owners.push(object::controller_reference(nic));
        }
        Op::locked(vip, json!({ "metadata": { "ownerReferences": owners } }))
    })
}

fn create(nic: &NetworkInterface, template: &VirtualIpTemplateSpec) -> Op {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(
        EPHEMERAL_MANAGED_BY.to_owned(),
        EPHEMERAL_MANAGER.to_owned(),
    );
    let owners = if is_retained(template) {
        Vec::new()
    } else {
        vec![object::controller_reference(nic)]
    };
    let body = json!({
        "metadata": {
            "labels": meta.labels.unwrap_or_default(),
            "annotations": annotations,
            "ownerReferences": owners,
        },
        "spec": {
            "type": template.spec.type_,
            "ipFamily": template.spec.ip_family,
            "targetRef": { "name": object::name(nic), "uid": object::uid(nic) },
        },
    });
    Op::create(Target::of(nic).of_kind::<VirtualIP>(), body)
}
