//! User NetworkInterface ↔ OpenKCM-net NetworkInterface. The machine provider makes the latter and the machine pool agent
//! writes its handle into the former; we adopt it (origin, labels, public addresses, prefixes), keep it up to date, report
//! its state back, and release it again when the handle changes or the user object goes.
//!
//! Adoption needs more than the handle: the interface must belong to the network that the user object names, so that nobody
//! takes over an interface of a foreign network by writing down its handle.

use std::collections::BTreeMap;

use api::{
    apinet,
    ids::{NetworkInterfaceProviderId, Origin, ephemeral_prefix_name},
    ipam::Prefix,
    meta::{Ip, IpFamily, IpPrefix},
    names::{finalizer, origin},
    networking::{Network, NetworkInterface, VirtualIP},
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::{Value, json};

use crate::{
    filter::Filter,
    interface_status,
    made::{self, COPIED_LABELS, Marks, copied_labels},
    prefixes,
};

/// Index of OpenKCM-net interfaces by uid, by uid of their origin and by key of their origin.
const BY_UID: &str = "apinetlet-nic-uid";
const BY_ORIGIN_UID: &str = "apinetlet-nic-origin-uid";
const BY_ORIGIN: &str = "apinetlet-nic-origin";
/// Index of user interfaces by the uid in their provider id, by their network and by the VirtualIP they want.
const BY_PROVIDER: &str = "apinetlet-user-nic-provider";
const BY_NETWORK: &str = "apinetlet-user-nic-network";
const BY_VIRTUAL_IP: &str = "apinetlet-user-nic-virtual-ip";
/// Index of VirtualIPs by the uid of their target.
const BY_TARGET: &str = "apinetlet-virtual-ip-target";

pub struct NetworkInterfaceController {
    pub filter: Filter,
}

impl Controller for NetworkInterfaceController {
    fn name(&self) -> &'static str {
        "networkinterface"
    }

    fn sources(&self) -> Vec<Source> {
        let mut user = Watch::<NetworkInterface>::new()
            .own_key()
            .index(BY_PROVIDER, |nic| provider_uid(nic).into_iter().collect())
            .index(BY_NETWORK, |nic| {
                vec![in_namespace(nic, &nic.spec.network_ref.name)]
            })
            .index(BY_VIRTUAL_IP, |nic| {
                wanted_virtual_ip(nic)
                    .iter()
                    .map(|name| in_namespace(nic, name))
                    .collect()
            });
        let mut networks = Watch::<Network>::new().keys(|network, world| {
            let key = Key::of(network).to_string();
            keys(world.indexed::<NetworkInterface>(BY_NETWORK, &key))
        });
        let mut addresses = Watch::<VirtualIP>::new()
            .index(BY_TARGET, |vip| {
                vip.spec
                    .target_ref
                    .iter()
                    .map(|target| target.uid.clone())
                    .collect()
            })
            .keys(nics_of_virtual_ip);
        let mut prefixes = Watch::<Prefix>::new().keys(|prefix, _| {
            let owner = object::controller_of(prefix);
            let owner = owner.filter(|owner| owner.kind == "NetworkInterface");
            let key = owner.map(|owner| Key::new(object::namespace(prefix), &owner.name));
            key.into_iter().collect()
        });
        if let Some(namespace) = &self.filter.namespace {
            user = user.namespace(namespace);
            networks = networks.namespace(namespace);
            addresses = addresses.namespace(namespace);
            prefixes = prefixes.namespace(namespace);
        }
        let made = Watch::<apinet::NetworkInterface>::new()
            .namespace(&self.filter.apinet_namespace)
            .index(BY_UID, |nic| vec![object::uid(nic).to_owned()])
            .index(BY_ORIGIN_UID, |nic| {
                origin_of(nic)
                    .map(|origin| origin.uid)
                    .into_iter()
                    .collect()
            })
            .index(BY_ORIGIN, |nic| {
                made::origin_keys(nic, origin::NETWORK_INTERFACE)
            })
            .keys(|nic, world| {
                let by_handle = world.indexed::<NetworkInterface>(BY_PROVIDER, object::uid(nic));
                let mut woken = keys(by_handle);
                woken.extend(object::origin_key(nic, origin::NETWORK_INTERFACE));
                woken
            });
        vec![
            user.build(),
            networks.build(),
            addresses.build(),
            prefixes.build(),
            made.build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(user) = world.by_key::<NetworkInterface>(key) else {
            return release_orphans(world, key);
        };
        if !self.filter.admits(&*user) {
            return Plan::none();
        }
        if object::is_deleting(&*user) {
            return let_go(world, &user);
        }
        manage(world, &user)
    }
}

/// The living user interface: claim, hand over, report.
fn manage(world: &World, user: &NetworkInterface) -> Plan {
    let mut plan = Plan::none();
    plan.extend(Op::add_finalizer(
        user,
        finalizer::APINETLET_NETWORK_INTERFACE,
    ));
    let made = claimed(world, user);
    let uid = made.as_deref().map(object::uid);
    for stale in world.indexed::<apinet::NetworkInterface>(BY_ORIGIN_UID, object::uid(user)) {
        if Some(object::uid(&*stale)) != uid {
            plan.extend(release(&stale));
        }
    }
    let (virtual_ips, claims) = claim_virtual_ips(world, user);
    plan.extend(claims);
    if let Some(made) = &made {
        plan.extend(hand_over(
            user,
            made,
            &virtual_ips,
            &routed_prefixes(world, user),
        ));
    }
    plan.extend(interface_status::report(
        user,
        made.as_deref(),
        world.now_ms(),
    ));
    plan
}

/// The interface behind the provider id, if it is ours or free, and of the right network.
fn claimed(
    world: &World,
    user: &NetworkInterface,
) -> Option<std::sync::Arc<apinet::NetworkInterface>> {
    let uid = provider_uid(user)?;
    let made = world
        .indexed::<apinet::NetworkInterface>(BY_UID, &uid)
        .into_iter()
        .next()?;
    let network = world.get::<Network>(object::namespace(user), &user.spec.network_ref.name)?;
    let same_network = made.spec.network_ref.name == object::uid(&*network);
    let free_or_ours = match origin_of(&made) {
        Some(origin) => origin.uid == object::uid(user),
        None => !object::is_deleting(&*made),
    };
    (same_network && free_or_ours).then_some(made)
}

/// Brings origin, labels, public addresses, NAT claims and prefixes of the interface up to date, in one locked patch.
fn hand_over(
    user: &NetworkInterface,
    made: &apinet::NetworkInterface,
    virtual_ips: &[(IpFamily, Ip)],
    prefixes: &[IpPrefix],
) -> Option<Op> {
    if object::is_deleting(made) {
        return None;
    }
    let (labels, annotations) = metadata_patch(user, made);
    let public_ips: Vec<apinet::NetworkInterfacePublicIp> = virtual_ips
        .iter()
        .map(|(family, ip)| apinet::NetworkInterfacePublicIp {
            name: ip.to_string(),
            ip_family: Some(*family),
            ip: Some(*ip),
        })
        .collect();
    // A family has either a public address or NAT; validation refuses both at once, hence the same patch.
    let mut nat_gateways = made.spec.nat_gateways.clone();
    nat_gateways.retain(|nat| {
        !virtual_ips
            .iter()
            .any(|(family, _)| *family == nat.ip_family)
    });

    let mut spec = json!({});
    if public_ips != made.spec.public_ips {
        spec["publicIPs"] = json!(public_ips);
    }
    if nat_gateways != made.spec.nat_gateways {
        spec["natGateways"] = json!(nat_gateways);
    }
    if prefixes != made.spec.prefixes {
        spec["prefixes"] = json!(prefixes);
    }
    let mut body = json!({});
    if !labels.is_empty() {
        body["metadata"]["labels"] = json!(labels);
    }
    if !annotations.is_empty() {
        body["metadata"]["annotations"] = json!(annotations);
    }
    if spec.as_object().is_some_and(|spec| !spec.is_empty()) {
        body["spec"] = spec;
    }
    let changed = body.as_object().is_some_and(|body| !body.is_empty());
    changed.then(|| Op::locked(made, body))
}

/// The prefixes to route to the interface: literal ones, and those that have been allocated for it.
fn routed_prefixes(world: &World, user: &NetworkInterface) -> Vec<IpPrefix> {
    let sources = user.spec.prefixes.iter().enumerate();
    sources
        .filter_map(|(at, source)| {
            let name = || ephemeral_prefix_name(object::name(user), at);
            let made = || {
                source.ephemeral.as_ref()?;
                prefixes::ephemeral(world, object::namespace(user), &name(), object::uid(user))
            };
            source.value.or_else(made)
        })
        .collect()
}

type MetadataPatch = BTreeMap<String, Option<String>>;

/// The difference between the labels and annotations that should be there and those that are. Labels of the user object are
/// copied so that policies and load balancers can select by them.
fn metadata_patch(
    user: &NetworkInterface,
    made: &apinet::NetworkInterface,
) -> (MetadataPatch, MetadataPatch) {
    let wanted = Marks::of(user, origin::NETWORK_INTERFACE);
    let copied = copied_labels(user);
    let annotations = missing(&wanted.annotations, made.metadata.annotations.as_ref());
    let before = labels_copied_before(made);
    let removed = before
        .iter()
        .filter(|name| !copied.contains_key(*name))
        .map(|name| (name.clone(), None));
    let removed: Vec<_> = removed
        .filter(|(name, _)| object::label(made, name).is_some())
        .collect();
    let mut labels = missing(&wanted.labels, made.metadata.labels.as_ref());
    labels.extend(removed);
    (labels, annotations)
}

fn labels_copied_before(made: &apinet::NetworkInterface) -> Vec<String> {
    let names = object::annotation(made, COPIED_LABELS).unwrap_or_default();
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn missing(
    wanted: &BTreeMap<String, String>,
    live: Option<&BTreeMap<String, String>>,
) -> MetadataPatch {
    wanted
        .iter()
        .filter(|(key, value)| live.and_then(|live| live.get(*key)) != Some(*value))
        .map(|(key, value)| (key.clone(), Some(value.clone())))
        .collect()
}

/// Undoes [`hand_over`]: what we brought goes, what the provider made stays.
fn release(made: &apinet::NetworkInterface) -> Option<Op> {
    let origin = origin_of(made)?;
    let mut labels: BTreeMap<String, Value> = origin
        .labels(origin::NETWORK_INTERFACE)
        .into_keys()
        .map(|key| (key, Value::Null))
        .collect();
    labels.extend(
        labels_copied_before(made)
            .into_iter()
            .map(|key| (key, Value::Null)),
    );
    let mut annotations: BTreeMap<String, Value> = origin
        .annotations(origin::NETWORK_INTERFACE)
        .into_keys()
        .map(|key| (key, Value::Null))
        .collect();
    annotations.insert(COPIED_LABELS.to_owned(), Value::Null);
    let body = json!({
        "metadata": { "labels": labels, "annotations": annotations },
        "spec": { "publicIPs": [], "prefixes": [] },
    });
    Some(Op::locked(made, body))
}

/// The user interface is being deleted: everything it claimed is set free, then the finalizer goes.
fn let_go(world: &World, user: &NetworkInterface) -> Plan {
    let mut plan = Plan::none();
    if !object::has_finalizer(user, finalizer::APINETLET_NETWORK_INTERFACE) {
        return plan;
    }
    for made in world.indexed::<apinet::NetworkInterface>(BY_ORIGIN_UID, object::uid(user)) {
        plan.extend(release(&made));
    }
    for vip in world.indexed::<VirtualIP>(BY_TARGET, object::uid(user)) {
        plan.push(set_target(&vip, Value::Null));
    }
    plan.extend(Op::remove_finalizer(
        user,
        finalizer::APINETLET_NETWORK_INTERFACE,
    ));
    plan
}

/// The user interface is gone without having waited for us.
fn release_orphans(world: &World, key: &Key) -> Plan {
    let mut plan = Plan::none();
    for made in world.indexed::<apinet::NetworkInterface>(BY_ORIGIN, &key.to_string()) {
        let (Some(source), Some(op)) = (origin_of(&made), release(&made)) else {
            continue;
        };
        let target = Target::new::<NetworkInterface>(&source.namespace, &source.name);
        plan.push(Op::RequireGone {
            target,
            uid: source.uid,
        });
        plan.push(op);
    }
    plan
}

/// Takes the wanted VirtualIP if it is free, frees those no longer wanted, and yields the addresses we may use.
fn claim_virtual_ips(world: &World, user: &NetworkInterface) -> (Vec<(IpFamily, Ip)>, Vec<Op>) {
    let wanted = wanted_virtual_ip(user);
    let mut addresses = Vec::new();
    let mut ops = Vec::new();
    for vip in world.indexed::<VirtualIP>(BY_TARGET, object::uid(user)) {
        if wanted.as_deref() != Some(object::name(&*vip)) {
            ops.push(set_target(&vip, Value::Null));
        }
    }
    let vip = wanted.and_then(|name| world.get::<VirtualIP>(object::namespace(user), &name));
    if let Some(vip) = vip.filter(|vip| !object::is_deleting(&**vip)) {
        let ours = match &vip.spec.target_ref {
            Some(target) => target.uid == object::uid(user),
            None => {
                let target = json!({ "name": object::name(user), "uid": object::uid(user) });
                ops.push(set_target(&vip, target));
                true
            }
        };
        let address = vip.status.as_ref().and_then(|status| status.ip);
        if let (true, Some(address)) = (ours, address) {
            addresses.push((vip.spec.ip_family, address));
        }
    }
    (addresses, ops)
}

fn set_target(vip: &VirtualIP, target: Value) -> Op {
    Op::locked(vip, json!({ "spec": { "targetRef": target } }))
}

fn origin_of(made: &apinet::NetworkInterface) -> Option<Origin> {
    Origin::of(&made.metadata, origin::NETWORK_INTERFACE)
}

fn provider_uid(user: &NetworkInterface) -> Option<String> {
    let id: NetworkInterfaceProviderId = user.spec.provider_id.parse().ok()?;
    Some(id.uid)
}

/// The referenced VirtualIP, or the one made for the interface, which has its name.
fn wanted_virtual_ip(user: &NetworkInterface) -> Option<String> {
    let source = user.spec.virtual_ip.as_ref()?;
    Some(match &source.virtual_ip_ref {
        Some(reference) => reference.name.clone(),
        None => object::name(user).to_owned(),
    })
}

fn nics_of_virtual_ip(vip: &VirtualIP, world: &World) -> Vec<Key> {
    let key = Key::of(vip);
    let mut woken = keys(world.indexed::<NetworkInterface>(BY_VIRTUAL_IP, &key.to_string()));
    if let Some(target) = &vip.spec.target_ref {
        woken.push(Key::new(&key.namespace, &target.name));
    }
    woken
}

fn in_namespace(nic: &NetworkInterface, name: &str) -> String {
    Key::new(object::namespace(nic), name).to_string()
}

fn keys(nics: Vec<std::sync::Arc<NetworkInterface>>) -> Vec<Key> {
    nics.iter().map(|nic| Key::of(&**nic)).collect()
}
