//! Flags that every part with controllers shares, and the client they lead to.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::leader::Election;

/// A connection on which nothing came for this long is given up. Servers end watches earlier, so only a dead peer is that
/// silent, whose end no packet would ever tell us.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// Health, metrics and leader election.
#[derive(Clone, Debug, clap::Args)]
pub struct CommonArgs {
    /// Plain HTTP address for /healthz, /readyz and /metrics, such as `:8081`; `0` turns it off.
    #[arg(long, default_value = "0", value_name = "ADDRESS")]
    pub health_probe_bind_address: String,
    /// Let only one replica work at a time, by a Lease in the API.
    #[arg(long)]
    pub leader_elect: bool,
    /// How long a silent leader is respected, in seconds.
    #[arg(long, default_value_t = 15, value_name = "SECONDS")]
    pub leader_elect_lease_duration: u64,
    /// A leader that could not renew for this many seconds stops writing.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub leader_elect_renew_deadline: u64,
    /// Seconds between renewals.
    #[arg(long, default_value_t = 2, value_name = "SECONDS")]
    pub leader_elect_retry_period: u64,
    /// Namespace of the Lease.
    #[arg(long, default_value = "kube-system", value_name = "NAMESPACE")]
    pub leader_elect_namespace: String,
}

impl CommonArgs {
    /// `None` if election is off. Refuses deadlines that would let two leaders overlap.
    pub fn election(&self, lease: &str) -> anyhow::Result<Option<Election>> {
        if !self.leader_elect {
            return Ok(None);
        }
        let election = Election {
            lease_duration: Duration::from_secs(self.leader_elect_lease_duration),
            renew_deadline: Duration::from_secs(self.leader_elect_renew_deadline),
            retry_period: Duration::from_secs(self.leader_elect_retry_period),
            ..Election::new(&self.leader_elect_namespace, lease)
        };
        anyhow::ensure!(
            election.retry_period < election.renew_deadline
                && election.renew_deadline < election.lease_duration,
            "leader election needs retry period < renew deadline < lease duration"
        );
        Ok(Some(election))
    }
}

/// A client for a kubeconfig file, or, without one, for `$KUBECONFIG`, the pod's service account or `~/.kube/config`.
pub async fn client(kubeconfig: Option<&PathBuf>) -> anyhow::Result<kube::Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("kubeconfig {}", path.display()))?
        }
        None => kube::Config::infer()
            .await
            .context("no kubeconfig given and none found")?,
    };
    config.connect_timeout = Some(Duration::from_secs(2));
    config.read_timeout = Some(SILENCE_MAX);
    kube::Client::try_from(config).context("API client")
}
