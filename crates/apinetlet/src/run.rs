//! The shell of apinetlet: two clients, three controllers, one runner.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use api::names;
use controller::{
    Cluster, Controller, Options, Runner,
    args::{CommonArgs, client},
    part,
};
use tokio_util::sync::CancellationToken;

use crate::{Filter, NetworkController, NetworkInterfaceController, VirtualIpController};

/// Keeps OpenKCM-net in step with what users say about networks, interfaces and virtual IPs.
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
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Runs until shutdown.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let user = client(args.kubeconfig.as_ref()).await?;
    let apinet = match &args.api_net_kubeconfig {
        Some(path) => client(Some(path)).await.context("--api-net-kubeconfig")?,
        None => user.clone(),
    };
    let filter = Filter {
        apinet_namespace: args.api_net_namespace.clone(),
        namespace: args.namespace.clone(),
        watch_filter: args.watch_filter.clone(),
    };
    let peering = !args.disable_network_peering;
    let build = {
        let user = user.clone();
        move || {
            let mut runner = Runner::new("apinetlet", Cluster::new(user));
            runner.cluster(Cluster::with_groups(apinet, &[names::APINET]));
            for controller in controllers(&filter, peering) {
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

fn controllers(filter: &Filter, peering: bool) -> [Arc<dyn Controller>; 3] {
    let filter = || filter.clone();
    [
        Arc::new(NetworkController {
            filter: filter(),
            peering,
        }),
        Arc::new(NetworkInterfaceController { filter: filter() }),
        Arc::new(VirtualIpController { filter: filter() }),
    ]
}
