//! Takes a partition out of OpenKCM-net whose metalnetlet does not come back: `openkcm remove-partition`.
//!
//! Only an operator can know that it does not. While it lives it lifts its finalizers itself, and what its hypervisors have may
//! still be in use; so a partition that shows life is refused.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use api::{apinet, conditions, names::manager, names::namespace};
use controller::{Kind, Object, Op, Target, args::client, object};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::DynamicObject;
use serde_json::json;

use crate::partition::Partition;
use crate::{hold, instance};

/// How long deleted Nodes get to come back, which only a living metalnetlet makes them do. It does so at once.
pub const RETURN_WAIT: Duration = Duration::from_secs(3);
/// Looks at everything, because others may write at the same time.
const PASSES_MAX: usize = 10;

/// Take a partition out of the region whose metalnetlet and hypervisors are gone for good.
///
/// Deletes its Nodes and interfaces of OpenKCM-net, and takes its finalizers off networks, interfaces and load balancer
/// Instances, which would otherwise wait for it for ever once they are deleted. Public addresses and VNIs that its hypervisors
/// had are given to others from then on. Refused while a hypervisor of it is heard of.
#[derive(Clone, Debug, clap::Args)]
pub struct RemovalArgs {
    /// Name of the partition.
    #[arg(value_name = "PARTITION")]
    pub partition: String,
    /// Kubeconfig of the OpenKCM-net API, of somebody who may write all of it.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// The partition lives or its name is none, the API cannot be reached, or others keep changing its objects. What was done until
/// then stays done; the command may be repeated.
pub async fn remove(args: RemovalArgs) -> anyhow::Result<()> {
    let client = client(args.kubeconfig.as_ref()).await?;
    let partition = Partition::new(&args.partition, namespace::METALNET)?;
    let nodes = nodes(&client, &partition).await?;
    let living: Vec<&str> = nodes.iter().filter(lives).map(object::name).collect();
    anyhow::ensure!(
        living.is_empty(),
        "these hypervisors of {} are heard of: {}. Stop them and its metalnetlet first, and wait until their Nodes are not Ready",
        args.partition,
        living.join(", ")
    );
    for node in &nodes {
        carry_out(&client, Op::delete(node)).await?;
    }
    tokio::time::sleep(RETURN_WAIT).await;
    let back = self::nodes(&client, &partition).await?;
    anyhow::ensure!(
        back.is_empty(),
        "Nodes of {} come back: its metalnetlet still runs. Stop it first",
        args.partition
    );
    let mut objects = 0;
    for _ in 0..PASSES_MAX {
        let ops = left(&client, &partition).await?;
        if ops.is_empty() {
            let (partition, nodes) = (&args.partition, nodes.len());
            tracing::info!(partition, nodes, writes = objects, "removed");
            return Ok(());
        }
        objects += ops.len();
        for op in ops {
            carry_out(&client, op).await?;
        }
    }
    anyhow::bail!(
        "others keep changing what {} holds; try again",
        args.partition
    )
}

/// A Node that nobody judges does not count: no heartbeat was ever promised for it.
fn lives(node: &&apinet::Node) -> bool {
    let shown = node.status.as_ref();
    shown.is_some_and(|status| conditions::is_ready(&status.conditions))
}

async fn nodes(client: &kube::Client, partition: &Partition) -> anyhow::Result<Vec<apinet::Node>> {
    let mut nodes = list::<apinet::Node>(client).await?;
    nodes.retain(|node| partition.cluster_node(object::name(node)).is_some());
    Ok(nodes)
}

/// What is still to be done.
async fn left(client: &kube::Client, partition: &Partition) -> anyhow::Result<Vec<Op>> {
    let finalizer = partition.finalizer();
    let mut ops = Vec::new();
    for nic in list::<apinet::NetworkInterface>(client).await? {
        if partition.node_of(&nic).is_some() {
            ops.extend(hold::release(&nic, &finalizer));
            // Its machine is gone with its hypervisor, and so is whoever would have deleted it.
            ops.extend((!object::is_deleting(&nic)).then(|| Op::delete(&nic)));
        }
    }
    // The controllers place Instances elsewhere as soon as their Node is gone.
    for user in list::<apinet::Instance>(client).await? {
        if instance::node_of(partition, &user).is_some() {
            ops.extend(hold::release(&user, &finalizer));
        }
    }
    for network in list::<apinet::Network>(client).await? {
        let status = network.status.as_ref();
        if status.is_some_and(|status| status.peerings.contains_key(partition.name())) {
            let gone = json!({ "peerings": { partition.name(): null } });
            ops.push(Op::patch_status(Target::of(&network), gone));
        } else {
            ops.extend(Op::remove_finalizer(&network, &finalizer));
        }
    }
    Ok(ops)
}

async fn list<K: Object>(client: &kube::Client) -> anyhow::Result<Vec<K>> {
    let kind = Kind::of::<K>();
    let api = Api::<DynamicObject>::all_with(client.clone(), &kind.api_resource());
    let found = api.list(&ListParams::default()).await;
    let found = found.with_context(|| format!("cannot list {}", kind.plural))?;
    let parsed = found
        .items
        .into_iter()
        .map(|object| object.try_parse::<K>());
    let parsed: Result<Vec<K>, _> = parsed.collect();
    parsed.with_context(|| format!("cannot read {}", kind.plural))
}

/// Carries out a write. That somebody else was faster is no error: the next pass sees what is left.
async fn carry_out(client: &kube::Client, op: Op) -> anyhow::Result<()> {
    let Some(target) = op.target().cloned() else {
        return Ok(());
    };
    let resource = target.kind.api_resource();
    let name = &target.key.name;
    let api = if target.key.namespace.is_empty() {
        Api::<DynamicObject>::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), &target.key.namespace, &resource)
    };
    let params = PatchParams {
        field_manager: Some(manager::METALNETLET.to_owned()),
        ..PatchParams::default()
    };
    let done = match op {
        Op::Delete { uid, .. } => {
            let preconditions = Preconditions {
                uid: Some(uid),
                resource_version: None,
            };
            let params = DeleteParams::background().preconditions(preconditions);
            api.delete(name, &params).await.map(|_| ())
        }
        Op::Patch {
            body, status: true, ..
        } => {
            let patched = api.patch_status(name, &params, &Patch::Merge(body)).await;
            patched.map(|_| ())
        }
        Op::Patch { body, .. } => {
            let patched = api.patch(name, &params, &Patch::Merge(body)).await;
            patched.map(|_| ())
        }
        other => anyhow::bail!("no part of a removal: {other:?}"),
    };
    match done {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        done => done.with_context(|| format!("cannot change {target}")),
    }
}
