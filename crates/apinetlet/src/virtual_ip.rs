//! User VirtualIP → OpenKCM-net IP of the same uid; its address comes back as `status.ip`.
//!
//! Deletion keeps the address reserved until no interface lists or reports it any more: an address must not be handed out
//! again while packets for it still end in somebody's machine.

use api::{
    apinet,
    conditions::Verdict,
    held,
    meta::Ip,
    names::{finalizer, manager, origin},
    networking::VirtualIP,
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

use crate::{
    filter::Filter,
    made::{self, Mapping, Marks},
};

const MAPPING: Mapping = Mapping {
    origin: origin::VIRTUAL_IP,
    index: "apinetlet-ip-origin",
    finalizer: finalizer::APINETLET_VIRTUAL_IP,
};
/// Index of OpenKCM-net interfaces by every public address they list or report or whose data plane may have it.
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
        let made = MAPPING
            .watch::<apinet::IP>(&self.filter)
            .index(BY_ADDRESS, |ip| {
                ip.spec.ip.iter().map(Ip::to_string).collect()
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
            return MAPPING.clean_up::<VirtualIP, _>(world, key, |made| is_in_use(world, made));
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
    let is_same = shown.ip == address;
    let status = json!({ "ip": address });
    made::report(user, &shown.conditions, verdict, is_same, now_ms, status)
}

fn delete(world: &World, user: &VirtualIP, made: Option<&apinet::IP>) -> Plan {
    if made.is_some_and(|made| is_in_use(world, made)) {
        return Plan::none();
    }
    Plan::let_go(user, MAPPING.finalizer, made)
}

fn is_in_use(world: &World, made: &apinet::IP) -> bool {
    made.spec.ip.is_some_and(|ip| {
        !world
            .indexed::<apinet::NetworkInterface>(BY_PUBLIC_IP, &ip.to_string())
            .is_empty()
    })
}

fn public_ips(nic: &apinet::NetworkInterface) -> Vec<String> {
    let wanted = nic.spec.public_ips.iter().filter_map(|entry| entry.ip);
    let reported = nic
        .status
        .iter()
        .flat_map(|status| status.public_ips.iter().copied());
    let held = held::of(&nic.metadata).into_iter().map(|held| held.ip());
    let all = wanted.chain(reported).chain(held);
    let mut ips: Vec<String> = all.map(|ip| ip.to_string()).collect();
    ips.sort();
    ips.dedup();
    ips
}
