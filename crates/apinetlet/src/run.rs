//! The shell of apinetlet: two clients, one controller per kind, one runner.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use api::names;
use controller::{
    Cluster, Controller, Options, Runner,
    args::{CommonArgs, client},
    certificate::{self, CertificateArgs},
    part,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Filter, LoadBalancerController, NatBounds, NatGatewayController, NetworkController,
    NetworkInterfaceController, NetworkPolicyController, VirtualIpController,
};

/// Keeps OpenKCM-net in step with what users say about networks, interfaces and their services.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Kubeconfig of the user API.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Kubeconfig of the OpenKCM-net API; the one of the user API if absent.
    #[arg(long, value_name = "FILE")]
    pub api_net_kubeconfig: Option<PathBuf>,
    /// Namespace of the OpenKCM-net API that all counterparts live in.
    #[arg(long, value_name = "NAMESPACE")]
    pub api_net_namespace: String,
    /// Handle only this user namespace.
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Handle only user objects whose label common.openkcm.dev/watch-filter has this value.
    #[arg(long, value_name = "VALUE")]
    pub watch_filter: Option<String>,
    /// Hand over no peerings and report none.
    #[arg(long)]
    pub disable_network_peering: bool,
    /// Realize a load balancer only on nodes that have one of its destinations.
    #[arg(long)]
    pub is_node_affinity_aware: bool,
    /// Fewest public addresses of a NAT gateway.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(i32).range(0..))]
    pub nat_gateway_min_public_ips: i32,
    /// Most public addresses of a NAT gateway.
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(i32).range(1..))]
    pub nat_gateway_max_public_ips: i32,
    #[command(flatten)]
    pub certificate: CertificateArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Runs until shutdown.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let kubeconfig = args.api_net_kubeconfig.as_ref();
    let certificate = args.certificate.certificate(
        kubeconfig.or(args.kubeconfig.as_ref()),
        names::identity::apinetlet(&args.api_net_namespace),
        names::identity::APINETLETS,
    )?;
    certificate::run(certificate, shutdown, |stop| work(&args, stop)).await
}

/// Runs with the kubeconfigs as they are now.
async fn work(args: &Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let user = client(args.kubeconfig.as_ref()).await?;
    let apinet = match &args.api_net_kubeconfig {
        Some(path) => client(Some(path)).await.context("--api-net-kubeconfig")?,
        None => user.clone(),
    };
    let settings = Settings::of(args)?;
    let build = {
        let user = user.clone();
        move || {
            let mut runner = Runner::new("apinetlet", Cluster::new(user));
            runner.cluster(Cluster::with_groups(apinet, &[names::APINET]));
            for controller in settings.controllers() {
                runner.controller(controller, Options::default());
            }
            runner
        }
    };
    part::run(
        &args.common,
        "apinetlet.apinet.openkcm.dev",
        user,
        shutdown,
        build,
    )
    .await
}

/// The flags as the controllers need them.
struct Settings {
    filter: Filter,
    peering: bool,
    node_affinity: bool,
    bounds: NatBounds,
}

impl Settings {
    fn of(args: &Args) -> anyhow::Result<Settings> {
        let bounds = NatBounds {
            min: args.nat_gateway_min_public_ips,
            max: args.nat_gateway_max_public_ips,
        };
        anyhow::ensure!(
            bounds.min <= bounds.max,
            "--nat-gateway-min-public-ips {} is more than --nat-gateway-max-public-ips {}",
            bounds.min,
            bounds.max
        );
        Ok(Settings {
            filter: Filter {
                apinet_namespace: args.api_net_namespace.clone(),
                namespace: args.namespace.clone(),
                watch_filter: args.watch_filter.clone(),
            },
            peering: !args.disable_network_peering,
            node_affinity: args.is_node_affinity_aware,
            bounds,
        })
    }

    fn controllers(&self) -> [Arc<dyn Controller>; 6] {
        let filter = || self.filter.clone();
        [
            Arc::new(NetworkController {
                filter: filter(),
                peering: self.peering,
            }),
            Arc::new(NetworkInterfaceController { filter: filter() }),
            Arc::new(VirtualIpController { filter: filter() }),
            Arc::new(LoadBalancerController {
                filter: filter(),
                node_affinity: self.node_affinity,
            }),
            Arc::new(NatGatewayController {
                filter: filter(),
                bounds: self.bounds,
            }),
            Arc::new(NetworkPolicyController { filter: filter() }),
        ]
    }
}
