//! Building blocks of printer columns, and the content of the computed ones.

use serde_json::Value;

use super::{Cell, Column, ColumnType};
use crate::ids::{NetworkInterfaceProviderId, NetworkProviderId};

/// Placeholder of an absent value.
pub(super) const NONE: &str = "<none>";
/// Placeholder of a state that nobody has reported yet.
pub(super) const UNKNOWN: &str = "<unknown>";

/// The column that names the object.
pub(crate) const fn name_column() -> Column {
    Column {
        name: "Name",
        kind: ColumnType::String,
        format: "name",
        description: "Name of the object, unique in its namespace.",
        priority: 0,
        cell: Cell::Path {
            path: "metadata.name",
            none: "",
        },
    }
}

/// The column that says how old the object is.
pub(crate) const fn age() -> Column {
    since(
        "Age",
        "metadata.creationTimestamp",
        "Time since the object was created.",
    )
}

/// Text at a path.
pub(crate) const fn path(
    name: &'static str,
    path: &'static str,
    none: &'static str,
    description: &'static str,
) -> Column {
    let cell = Cell::Path { path, none };
    Column {
        name,
        kind: ColumnType::String,
        format: "",
        description,
        priority: 0,
        cell,
    }
}

/// Computed text.
pub(crate) const fn text(
    name: &'static str,
    text: fn(&Value) -> String,
    description: &'static str,
) -> Column {
    let cell = Cell::Text(text);
    Column {
        name,
        kind: ColumnType::String,
        format: "",
        description,
        priority: 0,
        cell,
    }
}

/// Computed number.
pub(crate) const fn int(
    name: &'static str,
    number: fn(&Value) -> i64,
    description: &'static str,
) -> Column {
    let cell = Cell::Int(number);
    Column {
        name,
        kind: ColumnType::Integer,
        format: "",
        description,
        priority: 0,
        cell,
    }
}

/// Time since the time at a path.
pub(crate) const fn since(
    name: &'static str,
    path: &'static str,
    description: &'static str,
) -> Column {
    let cell = Cell::Since(path);
    Column {
        name,
        kind: ColumnType::Date,
        format: "",
        description,
        priority: 0,
        cell,
    }
}

/// Shown with `-o wide` only.
pub(crate) const fn wide(column: Column) -> Column {
    Column {
        priority: 10,
        ..column
    }
}

/// Value at a dotted path.
pub(super) fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.')
        .try_fold(object, |value, part| value.get(part))
        .filter(|value| !value.is_null())
}

/// A value as a cell.
pub(super) fn show(value: Option<&Value>, none: &str) -> Value {
    let text = match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(list)) => join(list.iter().map(plain)),
        Some(number @ Value::Number(_)) => return number.clone(),
        Some(other @ (Value::Bool(_) | Value::Object(_))) => other.to_string(),
    };
    Value::String(if text.is_empty() {
        none.to_owned()
    } else {
        text
    })
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn join(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(",")
}

fn or(text: String, none: &str) -> String {
    if text.is_empty() {
        none.to_owned()
    } else {
        text
    }
}

fn string<'a>(object: &'a Value, path: &str) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    at(object, path)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// VNI of a user Network, from its handle.
pub(super) fn network_vni(object: &Value) -> String {
    let id = string(object, "spec.providerID").parse::<NetworkProviderId>();
    id.map_or_else(|_| NONE.to_owned(), |id| id.id)
}

/// Names of the peers of a user Network with the state of the peering.
pub(super) fn network_peerings(object: &Value) -> String {
    let states = list(object, "status.peerings");
    let peers = list(object, "spec.peerings").iter().map(|peering| {
        let name = string(peering, "name");
        let state = states.iter().find(|state| string(state, "name") == name);
        format!(
            "{name}({})",
            state.map_or("Pending", |state| string(state, "state"))
        )
    });
    or(join(peers), NONE)
}

/// Node of a user NetworkInterface, from its handle.
pub(super) fn nic_node(object: &Value) -> String {
    let id = string(object, "spec.providerID").parse::<NetworkInterfaceProviderId>();
    id.map_or_else(|_| NONE.to_owned(), |id| id.node)
}

/// Addresses of a user NetworkInterface: the ones in use, else the wanted literal ones.
pub(super) fn nic_ips(object: &Value) -> String {
    let used = join(list(object, "status.ips").iter().map(plain));
    let wanted = || {
        let values = list(object, "spec.ips")
            .iter()
            .filter_map(|ip| ip.get("value"));
        join(values.map(plain))
    };
    or(if used.is_empty() { wanted() } else { used }, NONE)
}

/// Interfaces of a machine with their state.
pub(super) fn machine_interfaces(object: &Value) -> String {
    let states = list(object, "status.networkInterfaces");
    let entries = list(object, "spec.networkInterfaces").iter().map(|entry| {
        let name = string(entry, "name");
        let state = states.iter().find(|state| string(state, "name") == name);
        format!(
            "{name}({})",
            state.map_or("Pending", |state| string(state, "state"))
        )
    });
    or(join(entries), NONE)
}

/// Image of the first local disk of a machine.
pub(super) fn machine_image(object: &Value) -> String {
    let images = list(object, "spec.volumes").iter();
    let first = images
        .map(|volume| string(volume, "localDisk.image"))
        .find(|image| !image.is_empty());
    or(first.unwrap_or_default().to_owned(), NONE)
}

/// Names of the classes that a pool can run.
pub(super) fn pool_classes(object: &Value) -> String {
    let classes = list(object, "status.availableMachineClasses").iter();
    or(
        join(classes.map(|class| string(class, "name").to_owned())),
        NONE,
    )
}

/// State of a pool: its Ready condition.
pub(super) fn pool_ready(object: &Value) -> String {
    let mut conditions = list(object, "status.conditions").iter();
    let ready = conditions.find(|condition| string(condition, "type") == "Ready");
    match ready.map(|condition| string(condition, "status")) {
        Some("True") => "Ready".into(),
        Some("False") => "NotReady".into(),
        Some(_) | None => UNKNOWN.into(),
    }
}

/// What a PrefixAllocation asks for.
pub(super) fn allocation_request(object: &Value) -> String {
    let prefix = string(object, "spec.prefix");
    let length = at(object, "spec.prefixLength")
        .and_then(Value::as_i64)
        .unwrap_or(0);
    match (prefix.is_empty(), length) {
        (false, _) => prefix.to_owned(),
        (true, 0) => "<invalid>".into(),
        (true, length) => format!("/{length}"),
    }
}

/// User of an OpenKCM-net IP.
pub(super) fn ip_claim(object: &Value) -> String {
    claim(object, |_, name| name.to_owned())
}

/// Holder of a lock object.
pub(super) fn lock_claim(object: &Value) -> String {
    claim(object, |namespace, name| format!("{namespace}/{name}"))
}

fn claim(object: &Value, name: impl Fn(&str, &str) -> String) -> String {
    let Some(claim) = at(object, "spec.claimRef") else {
        return NONE.into();
    };
    let holder = name(string(claim, "namespace"), string(claim, "name"));
    format!(
        "{}.{} {holder}",
        string(claim, "resource"),
        string(claim, "group")
    )
}

/// Public addresses of an OpenKCM-net NetworkInterface.
pub(super) fn apinet_nic_public_ips(object: &Value) -> String {
    let entries = list(object, "spec.publicIPs").iter();
    or(
        join(
            entries
                .map(|entry| string(entry, "ip").to_owned())
                .filter(|ip| !ip.is_empty()),
        ),
        NONE,
    )
}

/// Device of an interface: TAP name or PCI address.
pub(super) fn nic_device(object: &Value) -> String {
    let tap = string(object, "status.tapDevice.name");
    let part = |name: &str| string(object, &format!("status.pciAddress.{name}")).to_owned();
    if !tap.is_empty() {
        tap.to_owned()
    } else if at(object, "status.pciAddress").is_some() {
        format!(
            "{}:{}:{}.{}",
            part("domain"),
            part("bus"),
            part("slot"),
            part("function")
        )
    } else {
        NONE.into()
    }
}

/// How many destinations a routing shows before it only counts them.
const TARGETS_SHOWN: usize = 3;

/// Addresses that a LoadBalancerRouting sends connections to.
pub(super) fn routing_targets(object: &Value) -> String {
    let all = list(object, "destinations");
    let shown = join(
        all.iter()
            .take(TARGETS_SHOWN)
            .map(|destination| string(destination, "ip").to_owned()),
    );
    match all.len().saturating_sub(TARGETS_SHOWN) {
        0 => or(shown, "<unset>"),
        more => format!("{shown} + {more} more"),
    }
}

/// Interfaces that a NetworkPolicy restricts.
pub(super) fn selected_interfaces(object: &Value) -> String {
    selector(object, "spec.networkInterfaceSelector")
}

/// A label selector in the words of `kubectl get -l`.
fn selector(object: &Value, path: &str) -> String {
    let Some(selector) = at(object, path) else {
        return NONE.into();
    };
    let labels = at(selector, "matchLabels").and_then(Value::as_object);
    let equal = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", plain(value)));
    let expressions = list(selector, "matchExpressions").iter().map(|item| {
        let key = string(item, "key");
        let values = || join(list(item, "values").iter().map(plain));
        match string(item, "operator") {
            "In" => format!("{key} in ({})", values()),
            "NotIn" => format!("{key} notin ({})", values()),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => "<error>".to_owned(),
        }
    });
    or(join(equal.chain(expressions)), NONE)
}

/// Addresses of an OpenKCM-net LoadBalancer or NATGateway.
pub(super) fn apinet_ips(object: &Value) -> String {
    let entries = list(object, "spec.ips").iter();
    let reserved = entries.map(|entry| string(entry, "ip").to_owned());
    or(join(reserved.filter(|ip| !ip.is_empty())), NONE)
}

/// Bounds of an autoscaler.
pub(super) fn autoscaler_bounds(object: &Value) -> String {
    let bound = |path: &str, none: &str| at(object, path).map_or_else(|| none.to_owned(), plain);
    format!(
        "{}/{}",
        bound("spec.minPublicIPs", "0"),
        bound("spec.maxPublicIPs", "unlimited")
    )
}
