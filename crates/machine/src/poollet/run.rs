//! The shell of the machinepoollet: flags, connections, two controllers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::names::manager;
use controller::args::{CommonArgs, client};
use controller::{Cluster, Key, Options, Runner, part};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::machine::Machines;
use super::pool::{Pool, Settings};
use super::runtime::Runtime;

/// Where a runtime is looked for when no flag says so.
const WELL_KNOWN_SOCKETS: [&str; 2] = [
    "/var/run/iri-machinebroker.sock",
    "/var/run/iri-machineprovider.sock",
];
/// Keys waiting for the runner.
const KEYS_MAX: usize = 4096;

/// Serves one MachinePool: makes its Machines real through the machine runtime of this node.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Kubeconfig of the API.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of the MachinePool; it is made if it does not exist.
    #[arg(long, value_name = "NAME")]
    pub machine_pool_name: String,
    /// Handle of the pool, written to its spec.
    #[arg(long, value_name = "ID")]
    pub provider_id: String,
    /// MachineRuntime to use, such as unix:///var/run/iri-machineprovider.sock; a well-known socket if absent.
    #[arg(long, value_name = "ENDPOINT", env = "IRI_MACHINE_RUNTIME_ENDPOINT")]
    pub machine_runtime_endpoint: Option<String>,
    /// How long to wait for the runtime at start, in seconds.
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    pub machine_runtime_socket_discovery_timeout: u64,
    /// How long a connection to the runtime may take, in seconds.
    #[arg(long, default_value_t = 1, value_name = "SECONDS")]
    pub dial_timeout: u64,
    /// Seconds between heartbeats.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub heartbeat_interval: u64,
    /// Seconds that a heartbeat is worth; more than the interval.
    #[arg(long, default_value_t = 40, value_name = "SECONDS")]
    pub heartbeat_lease_duration: u64,
    /// Seconds between listings of the runtime while nothing is in progress.
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    pub relist_period: u64,
    /// Machines worked on at a time.
    #[arg(long, default_value_t = 8, value_name = "COUNT")]
    pub max_concurrent_reconciles: usize,
    /// Handle only Machines whose label common.openkcm.dev/watch-filter has this value.
    #[arg(long, value_name = "VALUE")]
    pub watch_filter: Option<String>,
    /// Region label of the pool.
    #[arg(long, default_value = "", value_name = "REGION")]
    pub topology_region_label: String,
    /// Zone label of the pool.
    #[arg(long, default_value = "", value_name = "ZONE")]
    pub topology_zone_label: String,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Runs until shutdown. Machines keep running afterwards.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.heartbeat_interval < args.heartbeat_lease_duration,
        "--heartbeat-lease-duration must be more than --heartbeat-interval"
    );
    let endpoint = args
        .machine_runtime_endpoint
        .clone()
        .unwrap_or_else(discover);
    let patience = Duration::from_secs(args.machine_runtime_socket_discovery_timeout);
    let (machine_keys, wanted_machines) = mpsc::channel(KEYS_MAX);
    let (pool_keys, wanted_pool) = mpsc::channel(KEYS_MAX);
    let (keys, mut woken) = mpsc::channel::<Key>(KEYS_MAX);
    let pool_key = Key::cluster(&args.machine_pool_name);
    let dial = Duration::from_secs(args.dial_timeout);
    let runtime = Arc::new(Runtime::new(&endpoint, dial, keys, pool_key.clone())?);
    runtime
        .connect(patience, &shutdown)
        .await
        .with_context(|| endpoint.clone())?;
    let client = client(args.kubeconfig.as_ref()).await?;

    let machines = Machines {
        runtime: runtime.clone(),
        pool: args.machine_pool_name.clone(),
        watch_filter: args.watch_filter.clone(),
    };
    let settings = Settings {
        pool: args.machine_pool_name.clone(),
        provider_id: args.provider_id.clone(),
        region: args.topology_region_label.clone(),
        zone: args.topology_zone_label.clone(),
        heartbeat: Duration::from_secs(args.heartbeat_interval),
        lease_duration: Duration::from_secs(args.heartbeat_lease_duration),
    };
    let pool = Pool {
        runtime: runtime.clone(),
        settings,
    };
    let build = {
        let client = client.clone();
        let workers = args.max_concurrent_reconciles;
        move || {
            let mut runner = Runner::new(manager::POOLLET, Cluster::new(client));
            let options = Options {
                workers,
                keys: Some(wanted_machines),
                ..Options::default()
            };
            runner.controller(Arc::new(machines), options);
            let options = Options {
                workers: 1,
                keys: Some(wanted_pool),
                ..Options::default()
            };
            runner.controller(Arc::new(pool), options);
            runner
        }
    };
    // Machines that only the runtime knows must be looked at once, too.
    for machine in runtime.snapshot().machines.values() {
        if let Some(key) = super::runtime::key_of(machine) {
            machine_keys.send(key).await.context("runner")?;
        }
    }
    pool_keys.send(pool_key.clone()).await.context("runner")?;
    let relay = async {
        while let Some(key) = woken.recv().await {
            let queue = if key == pool_key {
                &pool_keys
            } else {
                &machine_keys
            };
            // The runner ends only at shutdown.
            let _ = queue.send(key).await;
        }
    };
    let relist = Duration::from_secs(args.relist_period.max(1));
    let lease = format!("machinepoollet-{}", args.machine_pool_name);
    tokio::select! {
        ended = part::run(&args.common, &lease, client, shutdown.clone(), build) => ended,
        () = async { tokio::join!(runtime.watch(relist, shutdown.clone()), relay); } => Ok(()),
    }
}

/// The first well-known socket that exists, else the provider's.
fn discover() -> String {
    let [broker, provider] = WELL_KNOWN_SOCKETS;
    let path = if std::path::Path::new(broker).exists() {
        broker
    } else {
        provider
    };
    format!("unix://{path}")
}
