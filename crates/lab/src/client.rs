//! The lab as a user of its own region: a kube client with the administrator's kubeconfig, manifests, waiting.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;
use tokio::time::sleep;

/// Between two looks at an object whose state is awaited, at least.
const POLL: Duration = Duration::from_millis(20);
/// Looking takes at most one part in so many of the time, so that it does not become the load.
const POLL_SHARE: u32 = 8;

/// A kind as the lab addresses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub namespaced: bool,
}

const fn kind(
    api_version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
) -> Kind {
    Kind {
        api_version,
        kind,
        plural,
        namespaced,
    }
}

pub const NODE: Kind = kind("v1", "Node", "nodes", false);
pub const NETWORK: Kind = kind(
    "networking.openkcm.dev/v1alpha1",
    "Network",
    "networks",
    true,
);
pub const NETWORK_INTERFACE: Kind = kind(
    "networking.openkcm.dev/v1alpha1",
    "NetworkInterface",
    "networkinterfaces",
    true,
);
pub const MACHINE: Kind = kind("compute.openkcm.dev/v1alpha1", "Machine", "machines", true);
pub const MACHINE_POOL: Kind = kind(
    "compute.openkcm.dev/v1alpha1",
    "MachinePool",
    "machinepools",
    false,
);
pub const MACHINE_CLASS: Kind = kind(
    "compute.openkcm.dev/v1alpha1",
    "MachineClass",
    "machineclasses",
    false,
);
pub const VIRTUAL_IP: Kind = kind(
    "networking.openkcm.dev/v1alpha1",
    "VirtualIP",
    "virtualips",
    true,
);
pub const LOAD_BALANCER: Kind = kind(
    "networking.openkcm.dev/v1alpha1",
    "LoadBalancer",
    "loadbalancers",
    true,
);
pub const NAT_GATEWAY: Kind = kind(
    "networking.openkcm.dev/v1alpha1",
    "NATGateway",
    "natgateways",
    true,
);
pub const NETWORK_POLICY: Kind = kind(
    "networking.openkcm.dev/v1alpha1",
    "NetworkPolicy",
    "networkpolicies",
    true,
);
const LOAD_BALANCER_ROUTING: Kind = kind(
    "networking.openkcm.dev/v1alpha1",
    "LoadBalancerRouting",
    "loadbalancerroutings",
    true,
);
const PREFIX: Kind = kind("ipam.openkcm.dev/v1alpha1", "Prefix", "prefixes", true);
const PREFIX_ALLOCATION: Kind = kind(
    "ipam.openkcm.dev/v1alpha1",
    "PrefixAllocation",
    "prefixallocations",
    true,
);
pub const APINET_NETWORK: Kind = apinet("Network", "networks", true);
pub const APINET_INTERFACE: Kind = apinet("NetworkInterface", "networkinterfaces", true);
pub const METALNET_INTERFACE: Kind = metalnet("NetworkInterface", "networkinterfaces");
const KINDS: &[Kind] = &[
    NODE,
    NETWORK,
    NETWORK_INTERFACE,
    VIRTUAL_IP,
    LOAD_BALANCER,
    NAT_GATEWAY,
    NETWORK_POLICY,
    PREFIX,
    MACHINE,
    MACHINE_POOL,
    MACHINE_CLASS,
];

const fn apinet(name: &'static str, plural: &'static str, namespaced: bool) -> Kind {
    kind("core.apinet.openkcm.dev/v1alpha1", name, plural, namespaced)
}

const fn metalnet(name: &'static str, plural: &'static str) -> Kind {
    kind(
        "networking.metalnet.openkcm.dev/v1alpha1",
        name,
        plural,
        true,
    )
}

/// Everything that a region without users holds nothing of.
const TENANTS: &[Kind] = &[
    NETWORK,
    NETWORK_INTERFACE,
    VIRTUAL_IP,
    LOAD_BALANCER,
    LOAD_BALANCER_ROUTING,
    NAT_GATEWAY,
    NETWORK_POLICY,
    PREFIX,
    PREFIX_ALLOCATION,
    MACHINE,
    apinet("IP", "ips", true),
    apinet("IPAddress", "ipaddresses", false),
    APINET_NETWORK,
    apinet("NetworkID", "networkids", false),
    APINET_INTERFACE,
    apinet("LoadBalancer", "loadbalancers", true),
    apinet("LoadBalancerRouting", "loadbalancerroutings", true),
    apinet("DaemonSet", "daemonsets", true),
    apinet("Instance", "instances", true),
    apinet("NATGateway", "natgateways", true),
    apinet("NATGatewayAutoscaler", "natgatewayautoscalers", true),
    apinet("NATTable", "nattables", true),
    apinet("NetworkPolicy", "networkpolicies", true),
    apinet("NetworkPolicyRule", "networkpolicyrules", true),
    metalnet("Network", "networks"),
    METALNET_INTERFACE,
    metalnet("LoadBalancer", "loadbalancers"),
];

/// # Errors
/// The kubeconfig cannot be read.
pub async fn connect(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("cannot read {}", kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

pub fn api(client: &Client, kind: Kind, namespace: &str) -> Api<DynamicObject> {
    if kind.namespaced {
        Api::namespaced_with(client.clone(), namespace, &resource(kind))
    } else {
        everywhere(client, kind)
    }
}

fn everywhere(client: &Client, kind: Kind) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &resource(kind))
}

fn resource(kind: Kind) -> ApiResource {
    let (group, version) = kind
        .api_version
        .split_once('/')
        .unwrap_or(("", kind.api_version));
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: kind.api_version.to_owned(),
        kind: kind.kind.to_owned(),
        plural: kind.plural.to_owned(),
    }
}

/// Every document of a manifest as JSON.
///
/// # Errors
/// The text is not YAML.
pub fn documents(manifest: &str) -> Result<Vec<Value>> {
    let parts = manifest.split("\n---").map(str::trim).filter(|d| {
        d.lines()
            .any(|l| !l.is_empty() && !l.starts_with('#') && l != "---")
    });
    parts
        .map(|d| serde_saphyr::from_str(d).context("the manifest is not valid YAML"))
        .collect()
}

fn kind_of(object: &Value) -> Result<Kind> {
    let name = object["kind"].as_str().unwrap_or_default();
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let found = KINDS
        .iter()
        .find(|k| k.kind == name && k.api_version.eq_ignore_ascii_case(api_version));
    found
        .copied()
        .with_context(|| format!("the lab does not know {api_version} {name}"))
}

/// Server-side apply of every document, in the namespace `default`.
///
/// # Errors
/// The server refused one; the error names it.
pub async fn apply(client: &Client, manifest: &str) -> Result<()> {
    apply_all(client, &documents(manifest)?).await
}

/// Server-side apply of every object, in the namespace `default`.
///
/// # Errors
/// The server refused one; the error names it.
pub async fn apply_all(client: &Client, objects: &[Value]) -> Result<()> {
    for object in objects {
        let name = object["metadata"]["name"]
            .as_str()
            .context("an object has no metadata.name")?;
        let kind = kind_of(object)?;
        let params = PatchParams::apply("openkcm-lab").force();
        api(client, kind, "default")
            .patch(name, &params, &Patch::Apply(object))
            .await
            .with_context(|| format!("cannot apply {} {name}", kind.kind))?;
    }
    Ok(())
}

/// Deletes every document of a manifest, the last first, and waits until all are gone.
///
/// # Errors
/// An object is still there after `limit`; the error names it.
pub async fn delete(client: &Client, manifest: &str, limit: Duration) -> Result<()> {
    let mut objects = documents(manifest)?;
    objects.reverse();
    delete_all(client, &objects, limit).await
}

/// Deletes objects in the order given, without waiting in between, and waits until all are gone.
///
/// # Errors
/// An object is still there after `limit`; the error names it.
pub async fn delete_all(client: &Client, objects: &[Value], limit: Duration) -> Result<()> {
    for object in objects {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        match api(client, kind_of(object)?, "default")
            .delete(name, &DeleteParams::default())
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            result => drop(result.with_context(|| format!("cannot delete {name}"))?),
        }
    }
    let deadline = Instant::now() + limit;
    for object in objects {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let kind = kind_of(object)?;
        while api(client, kind, "default").get_opt(name).await?.is_some() {
            if Instant::now() > deadline {
                bail!(
                    "{} {name} is still there {} s after its deletion",
                    kind.kind,
                    limit.as_secs()
                );
            }
            sleep(POLL).await;
        }
    }
    Ok(())
}

/// What users' objects left behind, in every namespace, as `Kind namespace/name`.
///
/// # Errors
/// The server did not answer.
pub async fn remains(client: &Client) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for kind in TENANTS {
        let list = everywhere(client, *kind)
            .list(&ListParams::default())
            .await?;
        left.extend(list.items.into_iter().map(|object| {
            let namespace = object.metadata.namespace.unwrap_or_default();
            let name = object.metadata.name.unwrap_or_default();
            format!("{} {} {namespace}/{name}", kind.api_version, kind.kind)
        }));
    }
    Ok(left)
}

/// Waits until `count` objects of a kind satisfy a predicate and returns them.
///
/// # Errors
/// Not within `limit`; the error says how many did and shows one that does not.
pub async fn wait(
    client: &Client,
    kind: Kind,
    namespace: &str,
    count: usize,
    limit: Duration,
    ready: impl Fn(&Value) -> bool,
) -> Result<Vec<Value>> {
    let deadline = Instant::now() + limit;
    loop {
        let begun = Instant::now();
        let (good, last) = match api(client, kind, namespace)
            .list(&ListParams::default())
            .await
        {
            Ok(list) => {
                let values: Vec<Value> = list
                    .items
                    .into_iter()
                    .filter_map(|o| serde_json::to_value(o).ok())
                    .collect();
                let (good, bad): (Vec<Value>, Vec<Value>) = values.into_iter().partition(&ready);
                (
                    good,
                    bad.first().map_or_else(String::new, |b| {
                        format!(
                            "; not ready: {} with status {}",
                            b["metadata"]["name"], b["status"]
                        )
                    }),
                )
            }
            // The server may be starting or restarting; the deadline decides.
            Err(err) => (Vec::new(), format!("; {err}")),
        };
        if good.len() >= count {
            return Ok(good);
        }
        if Instant::now() > deadline {
            bail!(
                "{} of {count} {} ready after {} s{last}",
                good.len(),
                kind.plural,
                limit.as_secs()
            );
        }
        sleep(POLL.max(begun.elapsed() * POLL_SHARE)).await;
    }
}

pub fn has_state(object: &Value, state: &str) -> bool {
    object["status"]["state"] == state
}

pub fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|conditions| {
        conditions
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_hold_what_the_demo_expects() {
        let all = documents(include_str!("../../../examples/two-hosts.yaml")).unwrap();
        let count = |kind: &str| all.iter().filter(|d| d["kind"] == kind).count();
        assert_eq!(
            (
                count("Network"),
                count("Machine"),
                count("NetworkInterface"),
                count("MachineClass")
            ),
            (2, 4, 1, 0)
        );
        assert!(all.iter().all(|d| kind_of(d).is_ok()));
    }
}
