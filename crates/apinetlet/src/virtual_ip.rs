//! User VirtualIP → OpenKCM-net IP of the same uid; its address comes back as `status.ip`.
//!
//! Deletion keeps the address reserved until no interface lists or reports it any more: an address must not be handed out
//! again while packets for it still end in somebody's machine.

use api::{
    apinet,
    conditions::{self, Verdict},
    meta::Ip,
    names::{finalizer, manager, origin},
    networking::VirtualIP,
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

use crate::{
    filter::Filter,
    made::{self, Marks},
};

const BY_ORIGIN: &str = "apinetlet-ip-origin";
/// Index of OpenKCM-net interfaces by every public address they list or report.
const BY_PUBLIC_IP: &str = "apinetlet-nic-public-ip";
/// Index of OpenKCM-net IPs by their address.
const BY_ADDRESS: &str = "apinetlet-ip-address";

pub struct VirtualIpController {
    pub filter: Filter,
}

impl Controller for VirtualIpController {
    fn name(&self) -> &'static str {
        "virtualip"
    }

    fn sources(&self) -> Vec<Source> {
        let user = Watch::<VirtualIP>::new().own_key();
        let user = match &self.filter.namespace {
            Some(namespace) => user.namespace(namespace),
            None => user,
        };
        let namespace = &self.filter.apinet_namespace;
        let made = Watch::<apinet::IP>::new()
            .namespace(namespace)
            .index(BY_ORIGIN, |ip| made::origin_keys(ip, origin::VIRTUAL_IP))
            .index(BY_ADDRESS, |ip| {
                ip.spec.ip.iter().map(Ip::to_string).collect()
            })
            .keys(|ip, _| {
                object::origin_key(ip, origin::VIRTUAL_IP)
                    .into_iter()
                    .collect()
            });
        let users = Watch::<apinet::NetworkInterface>::new()
            .namespace(namespace)
            .index(BY_PUBLIC_IP, public_ips)
            .keys(|nic, world| {
                let ips = public_ips(nic);
                let ips = ips
                    .iter()
                    .flat_map(|ip| world.indexed::<apinet::IP>(BY_ADDRESS, ip));
                ips.filter_map(|ip| object::origin_key(&*ip, origin::VIRTUAL_IP))
                    .collect()
            });
        vec![user.build(), made.build(), users.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(user) = world.by_key::<VirtualIP>(key) else {
            return clean_up(world, key);
        };
        if !self.filter.admits(&*user) {
            return Plan::none();
        }
        let namespace = &self.filter.apinet_namespace;
        let made = world.get::<apinet::IP>(namespace, object::uid(&*user));
        if object::is_deleting(&*user) {
            return delete(world, &user, made.as_deref());
        }
        self.realize(world, &user, made.as_deref())
    }
}

impl VirtualIpController {
    fn realize(&self, world: &World, user: &VirtualIP, made: Option<&apinet::IP>) -> Plan {
        let mut plan = Plan::none();
        plan.extend(Op::add_finalizer(user, finalizer::APINETLET_VIRTUAL_IP));
        let address = made
            .filter(|made| !object::is_deleting(*made))
            .and_then(|made| made.spec.ip);
        // Before the apply: an address that is no longer ours must not be shown, even if the apply fails.
        plan.extend(report(user, address, world.now_ms()));
        let marks = Marks::of(user, origin::VIRTUAL_IP);
        if !made.is_some_and(|made| marks.are_on(made)) {
            let target =
                Target::new::<apinet::IP>(&self.filter.apinet_namespace, object::uid(user));
            let body = json!({
                "metadata": marks.metadata(),
                "spec": { "type": "Public", "ipFamily": user.spec.ip_family },
            });
            plan.push(Op::apply(target, manager::APINETLET, body));
        }
        plan
    }
}

fn report(user: &VirtualIP, address: Option<Ip>, now_ms: u64) -> Option<Op> {
    let shown = user.status.clone().unwrap_or_default();
    let verdict = match address {
        Some(address) => Verdict::ready("AddressReserved", format!("{address} is reserved")),
        None => Verdict::not_ready("AddressPending", "waits for a public address"),
    };
    let generation = user.metadata.generation;
    let conditions = conditions::renewed(&shown.conditions, &[verdict], generation, now_ms);
    if conditions.is_none() && shown.ip == address {
        return None;
    }
    let conditions = conditions.unwrap_or(shown.conditions);
    let status = json!({ "ip": address, "conditions": conditions });
    Some(Op::patch_status(Target::of(user), status))
}

fn delete(world: &World, user: &VirtualIP, made: Option<&apinet::IP>) -> Plan {
    let mut plan = Plan::none();
    match made {
        Some(made) if object::is_deleting(made) || is_in_use(world, made) => {}
        Some(made) => {
            plan.push(Op::delete(made));
        }
        None => {
            plan.extend(Op::remove_finalizer(user, finalizer::APINETLET_VIRTUAL_IP));
        }
    }
    plan
}

fn is_in_use(world: &World, made: &apinet::IP) -> bool {
    made.spec.ip.is_some_and(|ip| {
        !world
            .indexed::<apinet::NetworkInterface>(BY_PUBLIC_IP, &ip.to_string())
            .is_empty()
    })
}

fn clean_up(world: &World, key: &Key) -> Plan {
    let mut plan = Plan::none();
    for made in world.indexed::<apinet::IP>(BY_ORIGIN, &key.to_string()) {
        let Some(source) = api::ids::Origin::of(&made.metadata, origin::VIRTUAL_IP) else {
            continue;
        };
        if !object::is_deleting(&*made) && !is_in_use(world, &made) {
            let target = Target::new::<VirtualIP>(&source.namespace, &source.name);
            plan.push(Op::RequireGone {
                target,
                uid: source.uid,
            });
            plan.push(Op::delete(&*made));
        }
    }
    plan
}

fn public_ips(nic: &apinet::NetworkInterface) -> Vec<String> {
    let wanted = nic.spec.public_ips.iter().filter_map(|entry| entry.ip);
    let reported = nic
        .status
        .iter()
        .flat_map(|status| status.public_ips.iter().copied());
    let mut ips: Vec<String> = wanted.chain(reported).map(|ip| ip.to_string()).collect();
    ips.sort();
    ips.dedup();
    ips
}
