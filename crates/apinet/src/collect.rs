//! What the collectors share: who the claimer is, and how old a lock object must be.

use std::time::Duration;

use api::names::{APINET, VERSION};
use controller::{Key, Kind, Object, Op, Plan, Target, World, object};
use kube::Resource;

/// A lock object younger than this may belong to a create that is still under way. Three times the longest write.
pub const GRACE: Duration = Duration::from_secs(30);

/// Resources that can hold an address or a VNI. A claim of any other resource is of something that cannot exist.
const CLAIMERS: [(&str, &str); 6] = [
    ("ips", "IP"),
    ("networks", "Network"),
    ("networkinterfaces", "NetworkInterface"),
    ("loadbalancers", "LoadBalancer"),
    ("natgateways", "NATGateway"),
    ("instances", "Instance"),
];

/// The claimer as something to look up. `None` if no such resource can exist in OpenKCM-net.
pub fn claimer(group: &str, resource: &str, namespace: &str, name: &str) -> Option<Target> {
    let (plural, kind) = CLAIMERS.iter().find(|(plural, _)| *plural == resource)?;
    if group != APINET || name.is_empty() || namespace.is_empty() {
        return None;
    }
    let kind = Kind {
        group: APINET.to_owned(),
        version: VERSION.to_owned(),
        kind: (*kind).to_owned(),
        plural: (*plural).to_owned(),
    };
    Some(Target {
        kind,
        key: Key::new(namespace, name),
    })
}

/// How long the object must still be left alone, by its creation time.
pub fn grace_left<K: Resource>(object: &K, now_ms: u64) -> Option<Duration> {
    let created = object.meta().creation_timestamp.as_ref()?;
    let created = u64::try_from(created.0.as_millisecond()).unwrap_or(0);
    let age = Duration::from_millis(now_ms.saturating_sub(created));
    GRACE.checked_sub(age).filter(|left| !left.is_zero())
}

/// Deletes an object whose namesake of another kind, which it belongs to, is missing. What has an owner goes with it; the rest gets
/// the grace in which its namesake may still appear in the cache.
pub fn leftover<K: Object>(world: &World, object: Option<&K>) -> Plan {
    let mut plan = Plan::none();
    let Some(object) = object else { return plan };
    if object::controller_of(object).is_some() || object::is_deleting(object) {
        return plan;
    }
    match grace_left(object, world.now_ms()) {
        Some(left) => plan.requeue_after(left),
        None => plan.push(Op::delete(object)),
    };
    plan
}
