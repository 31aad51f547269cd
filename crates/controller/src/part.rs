//! The common shell of a part made of controllers: probes, optional leader election, runner. A part's own `run` module only
//! makes clients and declares controllers.

use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::{
    args::CommonArgs,
    health::{self, Health},
    leader::{self, Fence},
    runner::Runner,
};

/// Runs what `build` declares until shutdown, or until the lease named `lease` (kept through `client`) is lost.
pub async fn run(
    common: &CommonArgs,
    lease: &str,
    client: kube::Client,
    shutdown: CancellationToken,
    build: impl FnOnce() -> Runner,
) -> anyhow::Result<()> {
    let election = common.election(lease)?;
    let health = Arc::new(Health::default());
    let probes = health::serve(
        &common.health_probe_bind_address,
        health.clone(),
        shutdown.clone(),
    );
    let work = |fence: Option<Fence>, stop: CancellationToken| async move {
        let mut runner = build();
        runner.health(health);
        if let Some(fence) = fence {
            runner.fence(fence);
        }
        runner.run(stop).await.context("controllers")
    };
    let controllers = async {
        let ended = match election {
            Some(election) => {
                let lead = |fence, stop| work(Some(fence), stop);
                Box::pin(leader::run(client, election, shutdown.clone(), lead)).await
            }
            None => work(None, shutdown.clone()).await,
        };
        // Whatever the reason, the probes end with the controllers.
        shutdown.cancel();
        ended
    };
    tokio::try_join!(probes, controllers)?;
    Ok(())
}
