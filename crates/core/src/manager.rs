//! The controller manager: all controllers of the user API and of OpenKCM-net that belong to no partition or hypervisor, in
//! one process under one lease.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use controller::{
    Cluster, Controller, Options, Runner,
    args::{CommonArgs, client},
    part,
};
use tokio_util::sync::CancellationToken;

use crate::{
    EphemeralNicController, EphemeralVirtualIpController, LoadBalancerController,
    LoadBalancerEphemeralPrefixController, MachineReleaseController, NetworkPeeringController,
    NetworkProtectionController, NetworkReleaseController, NicEphemeralPrefixController,
    NicReleaseController, PoolLifecycleController, PrefixAllocationSchedulerController,
    PrefixController, SchedulerController, VirtualIpReleaseController,
    pool_lifecycle::GRACE_DEFAULT,
};

/// Runs the controllers of the user API and the collectors of OpenKCM-net.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Kubeconfig of the region's API.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Controllers to run, by name, comma separated; `*` is all, `-NAME` leaves one out.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "*",
        value_name = "NAMES",
        allow_hyphen_values = true
    )]
    pub controllers: Vec<String>,
    /// Seconds without heartbeat after which a machine pool gets no more machines.
    #[arg(long, default_value_t = GRACE_DEFAULT.as_secs(), value_name = "SECONDS")]
    pub machine_pool_lifecycle_grace_period: u64,
    /// Seconds without heartbeat after which a hypervisor is taken for lost.
    #[arg(long, default_value_t = apinet::GRACE_DEFAULT.as_secs(), value_name = "SECONDS")]
    pub node_lifecycle_grace_period: u64,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Runs until shutdown, or until another replica leads.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let client = client(args.kubeconfig.as_ref()).await?;
    let mut every = all(
        Duration::from_secs(args.machine_pool_lifecycle_grace_period),
        Duration::from_secs(args.node_lifecycle_grace_period),
    );
    let approval = apinet::CertificateApprovalController::new(client.clone());
    every.push((Arc::new(approval), 1));
    let chosen = choose(every, &args.controllers)?;
    let build = {
        let client = client.clone();
        move || {
            let mut runner = Runner::new("controller-manager", Cluster::new(client));
            for (controller, workers) in chosen {
                runner.controller(
                    controller,
                    Options {
                        workers,
                        ..Options::default()
                    },
                );
            }
            runner
        }
    };
    part::run(
        &args.common,
        "controller-manager.openkcm.dev",
        client,
        shutdown,
        build,
    )
    .await
}

/// A controller and its number of workers.
pub type Entry = (Arc<dyn Controller>, usize);

/// Every controller that needs no client of its own; `grace` is how long machine pools may be silent, `node_grace` how long hypervisors. The scheduler has one
/// worker, because its decisions depend on each other.
pub fn all(grace: Duration, node_grace: Duration) -> Vec<Entry> {
    vec![
        (Arc::new(SchedulerController), 1),
        (Arc::new(EphemeralNicController), 4),
        (Arc::new(EphemeralVirtualIpController), 2),
        (Arc::new(NicReleaseController), 2),
        (Arc::new(MachineReleaseController), 2),
        (Arc::new(VirtualIpReleaseController), 2),
        (Arc::new(NetworkProtectionController), 4),
        (Arc::new(NetworkPeeringController), 2),
        (Arc::new(NetworkReleaseController), 2),
        (Arc::new(PrefixController), 4),
        (Arc::new(PrefixAllocationSchedulerController), 2),
        (Arc::new(NicEphemeralPrefixController), 4),
        (Arc::new(LoadBalancerEphemeralPrefixController), 2),
        (Arc::new(LoadBalancerController), 4),
        (Arc::new(PoolLifecycleController { grace }), 1),
        (Arc::new(apinet::IpAddressController), 2),
        (Arc::new(apinet::NetworkIdController), 2),
        (Arc::new(apinet::IpClaimController), 2),
        (Arc::new(apinet::LoadBalancerController), 2),
        (Arc::new(apinet::DaemonSetController), 2),
        (Arc::new(apinet::InstanceSchedulerController), 1),
        (Arc::new(apinet::NatGatewayController), 2),
        (Arc::new(apinet::NatAutoscalerController), 1),
        (Arc::new(apinet::NatReleaseController), 2),
        (Arc::new(apinet::NetworkPolicyController), 2),
        (
            Arc::new(apinet::NodeLifecycleController { grace: node_grace }),
            1,
        ),
        (Arc::new(apinet::DepartedController), 1),
    ]
}

fn choose(all: Vec<Entry>, wanted: &[String]) -> anyhow::Result<Vec<Entry>> {
    for name in wanted {
        let name = name.strip_prefix('-').unwrap_or(name);
        let known = name == "*" || all.iter().any(|(controller, _)| controller.name() == name);
        ensure!(known, "--controllers: there is no controller {name:?}");
    }
    let lists = |name: &str| wanted.iter().any(|wanted| wanted == name);
    let chosen: Vec<Entry> = all
        .into_iter()
        .filter(|(controller, _)| {
            let name = controller.name();
            (lists("*") || lists(name)) && !lists(&format!("-{name}"))
        })
        .collect();
    (!chosen.is_empty())
        .then_some(chosen)
        .context("--controllers leaves nothing to run")
}
