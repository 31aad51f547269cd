//! What roles cannot say: a part on one node, in one partition or of one pool may write only objects that belong there.

use super::User;
use crate::kinds::Kind;
use crate::object;
use api::names::{APINET, COMPUTE, METALNET};
use serde_json::Value;

/// A part that is tied to a place, from its user name.
enum Place<'a> {
    Pool(&'a str),
    Metalnet(&'a str),
    Partition(&'a str),
    Provider(&'a str),
    /// An apinetlet, tied to a namespace of the OpenKCM-net group.
    Namespace(&'a str),
}

fn place(user: &str) -> Option<Place<'_>> {
    let pool = user
        .strip_prefix("compute.openkcm.dev:system:machinepool:")
        .map(Place::Pool);
    let metalnet = || {
        user.strip_prefix("networking.metalnet.openkcm.dev:system:metalnet:")
            .map(Place::Metalnet)
    };
    let partition = || {
        user.strip_prefix("apinet.openkcm.dev:system:metalnetlet:")
            .map(Place::Partition)
    };
    let provider = || {
        user.strip_prefix("networking.openkcm.dev:system:networkplugin:")
            .map(Place::Provider)
    };
    let apinetlet = || {
        user.strip_prefix("apinet.openkcm.dev:system:apinetlet:")
            .map(Place::Namespace)
    };
    pool.or_else(metalnet)
        .or_else(partition)
        .or_else(provider)
        .or_else(apinetlet)
}

/// Whether the user may turn `old` into `new`. The error says why not.
pub fn check(
    user: &User,
    kind: &Kind,
    namespace: &str,
    name: &str,
    old: Option<&Value>,
    new: Option<&Value>,
) -> Result<(), String> {
    let Some(place) = place(&user.name) else {
        return Ok(());
    };
    let name = if name.is_empty() {
        new.map_or("", |new| object::metadata_text(new, "name"))
    } else {
        name
    };
    // Both versions must belong to the place: nobody takes an object away, nobody gives one to others.
    let versions = || [old, new].into_iter().flatten();
    let field = |value: &Value, path: &str| {
        value
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let all = |path: &str, belongs: &dyn Fn(&str) -> bool| {
        versions().all(|value| belongs(&field(value, path)))
    };
    let fine = match (place, kind.group, kind.plural) {
        (Place::Pool(pool), COMPUTE, "machinepools") => name == pool,
        (Place::Pool(pool), COMPUTE, "machines") => {
            all("/spec/machinePoolRef/name", &|is| is == pool)
        }
        (Place::Pool(pool), "coordination.k8s.io", "leases") => name == pool,
        (Place::Metalnet(node), "", "nodes") => name == node,
        (Place::Metalnet(node), "coordination.k8s.io", "leases") => name == node,
        (Place::Metalnet(node), METALNET, "networkinterfaces") => {
            all("/spec/nodeName", &|is| is == node || is.is_empty())
        }
        (Place::Partition(partition), APINET, "nodes") => belongs_to(partition, name),
        (Place::Partition(partition), APINET, "networkinterfaces" | "instances") => {
            all("/spec/nodeRef/name", &|is| belongs_to(partition, is))
        }
        (Place::Provider(node), APINET, "networkinterfaces") => all("/spec/nodeRef/name", &|is| {
            is == node || is.split_once('.').is_some_and(|(_, host)| host == node)
        }),
        (Place::Namespace(own), APINET, _) => namespace == own,
        _ => true,
    };
    if fine {
        Ok(())
    } else {
        Err(format!(
            "{} may not write {namespace}/{name}: it belongs to another place",
            user.name
        ))
    }
}

fn belongs_to(partition: &str, node: &str) -> bool {
    node.strip_prefix(partition)
        .is_some_and(|rest| rest.starts_with('.'))
}
