//! IP: frees an address that its user has given up, once no data plane uses it any more; drops the claims of users that are gone.
//!
//! The server marks an IP whose user let go while a data plane may know the address, and keeps it claimed. It is free when nothing in
//! the namespace has or reports the address, and not before [`RELEASE_HOLD`], because a report may still be under way. Ephemeral
//! IPs have an owner and are being deleted by then; a static one (of a user's VirtualIP) becomes free to claim.
//!
//! The server writes a claim and its claimer in one transaction, so a claimer that an uncached read does not find is dead
//! and not merely late.

use std::time::Duration;

use api::{
    apinet::{DaemonSet, IP, Instance, LoadBalancer, NATGateway, NATTable, NetworkInterface, Node},
    meta::Ip,
    names::{annotation::IP_RELEASED_AT, finalizer::IP_IN_USE},
};
use controller::{Controller, Key, Object, Op, Plan, Source, Watch, World, object};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    collect::claimer,
    index::{self, INSTANCE_IN_USE},
    nat_gateway::users,
};

/// A released address is held at least this long: longer than a data plane needs to report what it has just been told.
pub const RELEASE_HOLD: Duration = Duration::from_secs(2);

/// IPs by the uid of their claimer.
const BY_CLAIMER: &str = "apinet-ip-claimer";
/// IPs that were released and are not free yet, by namespace.
const RELEASED: &str = "apinet-ip-released";
/// DaemonSets by `namespace/address` of the addresses that their Instances get.
const SET_IP: &str = "apinet-daemon-set-ip";
/// Tables by `namespace/address` of their addresses.
const TABLE_IP: &str = "apinet-table-ip";

pub struct IpClaimController;

impl Controller for IpClaimController {
    fn name(&self) -> &'static str {
        "ipclaim"
    }

    fn sources(&self) -> Vec<Source> {
        let ips = Watch::<IP>::new()
            .own_key()
            .index(BY_CLAIMER, |ip| {
                let claim = ip.spec.claim_ref.iter();
                claim.map(|claim| claim.uid.clone()).collect()
            })
            .index(RELEASED, |ip| match is_released(ip) {
                true => vec![object::namespace(ip).to_owned()],
                false => Vec::new(),
            });
        let nics = index::nics().keys(claimed);
        let instances = index::instances().keys(|instance, world| {
            // Which balancer it was made for is not needed: released addresses are few.
            waiting(world, object::namespace(instance))
        });
        let tables = Watch::<NATTable>::new()
            .index(TABLE_IP, |table| {
                let namespace = object::namespace(table);
                let rows = table.ips.iter();
                rows.map(|row| index::in_use(namespace, row.ip)).collect()
            })
            .keys(|table, world| waiting(world, object::namespace(table)));
        let sets = Watch::<DaemonSet>::new()
            .index(SET_IP, |set| {
                let namespace = object::namespace(set);
                let ips = set.spec.template.spec.ips.iter();
                ips.map(|ip| index::in_use(namespace, *ip)).collect()
            })
            .keys(|set, world| waiting(world, object::namespace(set)));
        let nodes = Watch::<Node>::new().removed_keys(|_, world| {
            let ips = world.list::<IP>();
            let waiting = ips.iter().filter(|ip| is_released(ip));
            waiting.map(|ip| Key::of(&**ip)).collect()
        });
        vec![
            ips.build(),
            nics.build(),
            index::gateways().keys(claimed).build(),
            Watch::<LoadBalancer>::new().keys(claimed).build(),
            instances.build(),
            sets.build(),
            tables.build(),
            nodes.build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(ip) = world.by_key::<IP>(key) else {
            return Plan::none();
        };
        let user = user(world, &ip);
        match (&user, released_at(&ip)) {
            (User::Gone, _) => drop_dead(&ip, key),
            // Without a mark our picture of the user is older than the claim. With one the lock on the IP protects us: whoever
            // lists the address again takes the mark away.
            (User::Lists, _) | (User::LetGo(_) | User::Unknown, None) => Plan::none(),
            (User::LetGo(as_seen), Some(at)) => release(world, &ip, at, Some((**as_seen).clone())),
            (User::Unknown, Some(at)) => release(world, &ip, at, None),
        }
    }
}

/// IPs that the object claims, and those of its namespace that wait to be free: its status may be what they wait for.
fn claimed<K: Object>(user: &K, world: &World) -> Vec<Key> {
    let claimed = world.indexed::<IP>(BY_CLAIMER, object::uid(user));
    let mut keys: Vec<Key> = claimed.iter().map(|ip| Key::of(&**ip)).collect();
    keys.extend(waiting(world, object::namespace(user)));
    keys
}

fn waiting(world: &World, namespace: &str) -> Vec<Key> {
    let waiting = world.indexed::<IP>(RELEASED, namespace);
    waiting.iter().map(|ip| Key::of(&**ip)).collect()
}

fn is_released(ip: &IP) -> bool {
    object::annotation(ip, IP_RELEASED_AT).is_some()
}

/// When the user let go, milliseconds since the Unix epoch. A mark that says nothing is as old as can be.
fn released_at(ip: &IP) -> Option<u64> {
    let text = object::annotation(ip, IP_RELEASED_AT)?;
    let at: Option<Timestamp> = text.parse().ok();
    let ms = at.and_then(|at| u64::try_from(at.as_millisecond()).ok());
    Some(ms.unwrap_or(0))
}

/// What the claimer of an IP is doing with it.
enum User {
    /// It names the address in its spec.
    Lists,
    /// It exists and does not. What it says of data planes counts only as long as it is as we saw it.
    LetGo(Box<Op>),
    /// It is not in the cache.
    Gone,
    /// Nobody claims, or a kind that we know nothing of.
    Unknown,
}

fn user(world: &World, ip: &IP) -> User {
    let Some(claim) = &ip.spec.claim_ref else {
        return User::Unknown;
    };
    let namespace = object::namespace(ip);
    let found = match claim.resource.as_str() {
        "networkinterfaces" => world
            .get::<NetworkInterface>(namespace, &claim.name)
            .and_then(|nic| {
                let ips = nic.spec.public_ips.iter().map(|entry| entry.ip);
                listed(&*nic, ip, ips.collect())
            }),
        "natgateways" => world
            .get::<NATGateway>(namespace, &claim.name)
            .and_then(|gateway| {
                let ips = gateway.spec.ips.iter().map(|entry| entry.ip);
                listed(&*gateway, ip, ips.collect())
            }),
        "loadbalancers" => world
            .get::<LoadBalancer>(namespace, &claim.name)
            .and_then(|balancer| {
                let ips = balancer.spec.ips.iter().map(|entry| entry.ip);
                listed(&*balancer, ip, ips.collect())
            }),
        _ => return User::Unknown,
    };
    found.unwrap_or(User::Gone)
}

/// What a claimer does, if it is the one that is meant.
fn listed<K: Object>(claimer: &K, ip: &IP, ips: Vec<Option<Ip>>) -> Option<User> {
    let claim = ip.spec.claim_ref.as_ref()?;
    if object::uid(claimer) != claim.uid {
        return None;
    }
    Some(match ips.contains(&ip.spec.ip) {
        true => User::Lists,
        false => User::LetGo(Box::new(Op::require_same(claimer))),
    })
}

/// Whether anything of the namespace has the address or reports it.
fn in_data_plane(world: &World, namespace: &str, ip: Ip) -> bool {
    let value = index::in_use(namespace, ip);
    !world
        .indexed::<Instance>(INSTANCE_IN_USE, &value)
        .is_empty()
        || !world.indexed::<DaemonSet>(SET_IP, &value).is_empty()
        || !world.indexed::<NATTable>(TABLE_IP, &value).is_empty()
        || !users(world, namespace, ip).is_empty()
}

/// Frees a released address when the time has come.
fn release(world: &World, ip: &IP, at: u64, as_seen: Option<Op>) -> Plan {
    let mut plan = Plan::none();
    let used = ip
        .spec
        .ip
        .is_some_and(|address| in_data_plane(world, object::namespace(ip), address));
    if used {
        return plan;
    }
    let age = Duration::from_millis(world.now_ms().saturating_sub(at));
    if let Some(left) = RELEASE_HOLD.checked_sub(age).filter(|left| !left.is_zero()) {
        plan.requeue_after(left);
        return plan;
    }
    plan.extend(as_seen);
    plan.push(free(ip));
    plan
}

/// Takes claim, mark and protection away in one write.
fn free(ip: &IP) -> Op {
    let kept: Vec<&String> = ip
        .metadata
        .finalizers
        .iter()
        .flatten()
        .filter(|finalizer| *finalizer != IP_IN_USE)
        .collect();
    Op::locked(
        ip,
        json!({
            "metadata": { "annotations": { IP_RELEASED_AT: Value::Null }, "finalizers": kept },
            "spec": { "claimRef": Value::Null },
        }),
    )
}

/// The claimer is gone. What it owns goes with it, held back by nothing but us.
fn drop_dead(ip: &IP, key: &Key) -> Plan {
    let Some(claim) = &ip.spec.claim_ref else {
        return Plan::none();
    };
    let owned = object::controller_of(ip).is_some_and(|owner| owner.uid == claim.uid);
    let held = object::has_finalizer(ip, IP_IN_USE);
    if (owned || object::is_deleting(ip)) && !held {
        return Plan::none();
    }
    let Some(target) = claimer(&claim.group, &claim.resource, &key.namespace, &claim.name) else {
        return Plan::none();
    };
    vec![
        Op::RequireGone {
            target,
            uid: claim.uid.clone(),
        },
        free(ip),
    ]
    .into()
}
