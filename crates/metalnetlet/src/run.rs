//! The shell of metalnetlet: two clients, four controllers, one runner.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use api::names::{self, namespace};
use controller::{
    Cluster, Options, Runner,
    args::{CommonArgs, client},
    certificate::{self, CertificateArgs},
    part,
};
use tokio_util::sync::CancellationToken;

use crate::{
    InstanceController, NetworkController, NetworkInterfaceController, NodeController, Partition,
};

/// Realizes OpenKCM-net in one partition: one compute cluster with metalnet on its hypervisors.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name of the partition: lower-case letters, digits and '-'.
    #[arg(long, value_name = "PARTITION")]
    pub name: String,
    /// Kubeconfig of the OpenKCM-net API.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Kubeconfig of the compute cluster with the metalnet objects; in-cluster configuration if absent.
    #[arg(long, value_name = "FILE")]
    pub metalnet_kubeconfig: Option<PathBuf>,
    /// Namespace of the metalnet objects.
    #[arg(long, default_value = namespace::METALNET, value_name = "NAMESPACE")]
    pub metalnet_namespace: String,
    /// Publish only nodes of the compute cluster that this label selector matches.
    #[arg(long, value_name = "SELECTOR")]
    pub metalnet_node_selector: Option<String>,
    /// Label of every published Node, for example its zone; repeatable.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub node_label: Vec<(String, String)>,
    /// Mirror a Network only while this partition uses it or a peer of it.
    #[arg(long)]
    pub only_used_networks: bool,
    /// Do not realize peerings of networks in this partition.
    #[arg(long)]
    pub disable_network_peering: bool,
    #[command(flatten)]
    pub certificate: CertificateArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// Runs until shutdown.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let certificate = args.certificate.certificate(
        args.kubeconfig.as_ref(),
        names::identity::metalnetlet(&args.name),
        names::identity::METALNETLETS,
    )?;
    certificate::run(certificate, shutdown, |stop| work(&args, stop)).await
}

/// Runs with the kubeconfigs as they are now.
async fn work(args: &Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut partition = Partition::new(&args.name, &args.metalnet_namespace).context("--name")?;
    partition.node_labels = args.node_label.iter().cloned().collect();
    partition.only_used_networks = args.only_used_networks;
    partition.peering = !args.disable_network_peering;
    let apinet = client(args.kubeconfig.as_ref())
        .await
        .context("--kubeconfig")?;
    let metalnet = client(args.metalnet_kubeconfig.as_ref())
        .await
        .context("--metalnet-kubeconfig")?;
    let node_selector = args.metalnet_node_selector.clone();
    let build = {
        let metalnet = metalnet.clone();
        move || {
            let mut runner = Runner::new(
                format!("metalnetlet-{}", partition.name()),
                Cluster::new(metalnet),
            );
            runner.cluster(Cluster::with_groups(apinet, &[names::APINET]));
            let node = NodeController {
                partition: partition.clone(),
                selector: node_selector.clone(),
            };
            let network = NetworkController {
                partition: partition.clone(),
            };
            let instance = InstanceController {
                partition: partition.clone(),
                node_selector: node_selector.clone(),
            };
            let nic = NetworkInterfaceController {
                partition,
                node_selector,
            };
            runner
                .controller(Arc::new(node), Options::default())
                .controller(Arc::new(network), Options::default())
                .controller(Arc::new(instance), Options::default())
                .controller(
                    Arc::new(nic),
                    Options {
                        workers: 8,
                        ..Options::default()
                    },
                );
            runner
        }
    };
    // One lease per partition: partitions may share a compute cluster's namespace.
    let lease = format!("{}.metalnetlet.apinet.openkcm.dev", args.name);
    part::run(&args.common, &lease, metalnet, shutdown, build).await
}
