//! The part as it is started: flags, wiring, supervision of its tasks.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use controller::health::Health;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::claims::{Folder, Found};
use crate::device::{self, PciAddress, PciNaming};
use crate::dpservice;
use crate::driver::{self, INPUTS_MAX, Ports, WRITES_MAX};
use crate::metrics::Metrics;
use crate::model::{Prefix, Vni};
use crate::node;
use crate::objects::{Objects, Pulses};
use crate::parse::Reader;
use crate::plan::desired::Settings;
use crate::plan::nic::Device;

/// Keepalive offered to metalbond servers: a silent one is given up after 2.5 times this.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// The hypervisor agent: turns the Networks, NetworkInterfaces and LoadBalancers of this node into dpservice's configuration, announces
/// them through metalbond and installs the routes of other hosts. Starts whatever is down, and catches up later.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Kubeconfig of the compute cluster; without it, in-cluster configuration or $KUBECONFIG.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node: selects NetworkInterfaces by spec.nodeName. Default: the host name.
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Read objects of this namespace only. Default: all namespaces.
    #[arg(long, value_name = "NAMESPACE")]
    pub metalnet_namespace: Option<String>,
    /// Create the core/v1 Node of this name if there is none, and keep its lease fresh.
    #[arg(long)]
    pub register_node: bool,
    /// dpservice's gRPC address.
    #[arg(long, default_value = "127.0.0.1:1337", value_name = "HOST:PORT")]
    pub dp_service_address: String,
    /// metalbond servers; all are used at the same time. Repeat the flag or separate by commas.
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT")]
    pub metalbond_peer: Vec<String>,
    /// VNI in which public addresses and default routers are announced.
    #[arg(long, default_value_t = 100, value_name = "VNI")]
    pub public_vni: u32,
    /// Underlay address of the default router, used as long as metalbond supplies none.
    #[arg(long, value_name = "IPV6")]
    pub router_address: Option<Ipv6Addr>,
    /// Take only load balancer targets inside this underlay prefix.
    #[arg(long, value_name = "CIDR", value_parser = prefix)]
    pub prefer_network: Option<Prefix>,
    /// Allow IPv6 addresses on interfaces and install IPv6 default routes.
    #[arg(long)]
    pub enable_ipv6: bool,
    /// Folder for device claims.
    #[arg(long, default_value = "/var/lib/metalnet", value_name = "DIR")]
    pub metalnet_dir: PathBuf,
    /// Hand out TAP devices (dtapvf_0, dtapvf_1, …) instead of virtual functions.
    #[arg(long)]
    pub tapdevice_mod: bool,
    /// Number of TAP devices that dpservice offers.
    #[arg(long, default_value_t = device::DEVICES_MAX, value_name = "N")]
    pub tap_count: u32,
    /// Physical function to count virtual ones from where sysfs shows none.
    #[arg(long, default_value = "0000:03:00.0", value_name = "PCI")]
    pub pf_pci_base_addr: PciAddress,
    /// dpservice drives both uplinks as one embedded switch. The file `mode` in the metalnet folder overrides this.
    #[arg(long)]
    pub multiport_eswitch: bool,
    /// Where sysfs is mounted.
    #[arg(long, default_value = "/sys", value_name = "DIR")]
    pub sysfs: PathBuf,
    /// Plain HTTP address for /livez, /healthz, /readyz (each with ?verbose) and /metrics, such as `:8081`; `0` turns it
    /// off. Point liveness probes at /livez: /healthz also fails while dpservice or the API server is away.
    #[arg(long, default_value = "0", value_name = "ADDRESS")]
    pub health_probe_bind_address: String,
}

fn prefix(text: &str) -> Result<Prefix, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not a prefix"))
}

/// Runs until shutdown. Fails only on what cannot heal by waiting: bad flags, an unusable claim folder.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let settings = settings(&args)?;
    let folder = Arc::new(Folder::open(&args.metalnet_dir)?);
    let Found {
        claims,
        reserved,
        ignored,
    } = folder.load()?;
    for (file, reason) in ignored {
        tracing::warn!(file, reason, "not a claim");
    }
    let devices = devices(&args, &settings.node, &reserved)?;
    tracing::info!(
        node = settings.node,
        devices = devices.len(),
        claims = claims.len(),
        "metalnet starts"
    );
    let agent = Agent::new(settings.clone(), devices, claims);

    let (inputs_in, inputs) = mpsc::channel(INPUTS_MAX);
    let (api, writes) = mpsc::channel(WRITES_MAX);
    let (bond, routes) = metalbond::Client::start(metalbond::Config {
        peers: args.metalbond_peer.clone(),
        keepalive: KEEPALIVE,
        // Under this name servers keep our routes while metalnet restarts.
        node: settings.node.clone(),
        ..metalbond::Config::default()
    });
    let (current, service) = dpservice::channel();
    let metrics = Arc::new(Metrics::default());
    let client = controller::args::client(args.kubeconfig.as_ref()).await?;
    let reader = Reader {
        node: settings.node.clone(),
        ipv6: settings.ipv6,
    };
    let objects = Objects::new(
        client.clone(),
        args.metalnet_namespace.clone(),
        reader,
        inputs_in.clone(),
    );
    let health = health(&metrics, objects.pulses());

    let mut tasks = JoinSet::new();
    let endpoint = dpservice::endpoint(&args.dp_service_address)
        .with_context(|| format!("--dp-service-address {}", args.dp_service_address))?;
    tasks.spawn(dpservice::supervise(
        endpoint,
        current,
        service.bell(),
        inputs_in,
        shutdown.clone(),
    ));
    tasks.spawn(objects.clone().watch_networks(shutdown.clone()));
    tasks.spawn(objects.clone().watch_nics(shutdown.clone()));
    tasks.spawn(objects.clone().watch_balancers(shutdown.clone()));
    if args.health_probe_bind_address != "0" {
        tasks.spawn(objects.clone().probe(shutdown.clone()));
    }
    tasks.spawn(objects.write(writes, shutdown.clone()));
    if args.register_node {
        tasks.spawn(node::register(
            client,
            settings.node.clone(),
            shutdown.clone(),
        ));
    }
    let ports = Ports {
        inputs,
        routes,
        bond,
        service,
        api,
        claims: folder,
        metrics: metrics.clone(),
    };
    tasks.spawn(driver::drive(agent, ports, shutdown.clone()));
    tasks.spawn(announce_ready(metrics, health.clone(), shutdown.clone()));
    let probes =
        controller::health::serve(&args.health_probe_bind_address, health, shutdown.clone());
    let ended = tokio::select! {
        result = probes => result,
        result = watch_tasks(&mut tasks, &shutdown) => result,
    };
    shutdown.cancel();
    tasks.shutdown().await;
    ended
}

fn settings(args: &Args) -> anyhow::Result<Settings> {
    let node = match &args.node_name {
        Some(name) => name.clone(),
        None => {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("host name")?;
            name.trim().to_owned()
        }
    };
    // The node's name becomes the end of a finalizer, whose part after the slash may have 63 characters.
    ensure!(
        !node.is_empty() && node.len() <= 55,
        "--node-name {node:?}: 1 to 55 characters are possible"
    );
    let public_vni = Vni::new(args.public_vni)
        .ok_or_else(|| anyhow!("--public-vni {}: not a VNI", args.public_vni))?;
    Ok(Settings {
        node,
        ipv6: args.enable_ipv6,
        public_vni,
        router: args.router_address,
        prefer_network: args.prefer_network,
    })
}

/// The devices to hand out, without those that operators reserved.
fn devices(args: &Args, node: &str, reserved: &[String]) -> anyhow::Result<Vec<(String, Device)>> {
    let mut devices = if args.tapdevice_mod {
        ensure!(
            args.tap_count <= device::DEVICES_MAX,
            "--tap-count: at most {} are possible",
            device::DEVICES_MAX
        );
        device::taps(args.tap_count)
    } else {
        let naming = PciNaming::new(
            node,
            eswitch(&args.metalnet_dir).unwrap_or(args.multiport_eswitch),
        );
        let functions = device::discover(&args.sysfs, args.pf_pci_base_addr);
        functions
            .into_iter()
            .map(|function| device::pci(function, &naming))
            .collect()
    };
    devices.retain(|(claim, _)| !reserved.contains(claim));
    Ok(devices)
}

/// What the file `mode` says, if it exists.
fn eswitch(metalnet_dir: &Path) -> Option<bool> {
    std::fs::read_to_string(metalnet_dir.join("mode"))
        .ok()
        .map(|text| text.trim() == "eswitch")
}

fn health(metrics: &Arc<Metrics>, pulses: Arc<Pulses>) -> Arc<Health> {
    let health = Arc::new(Health::default());
    let asked = metrics.clone();
    health.add_check("agent", move || asked.turning());
    let asked = metrics.clone();
    health.add_dependency("dpservice", move || asked.dpservice());
    let asked = pulses.clone();
    health.add_dependency("apiserver", move || asked.server.check());
    let asked = pulses.clone();
    health.add_dependency("watch-networks", move || asked.networks.check());
    let asked = pulses.clone();
    health.add_dependency("watch-networkinterfaces", move || asked.nics.check());
    health.add_dependency("watch-loadbalancers", move || pulses.balancers.check());
    let shown = metrics.clone();
    health.add_metrics(move |out| shown.render(out));
    health
}

/// Says once that everything is in hand.
async fn announce_ready(metrics: Arc<Metrics>, health: Arc<Health>, shutdown: CancellationToken) {
    let mut said = "";
    loop {
        match metrics.ready() {
            Ok(()) => {
                health.set_ready();
                tracing::info!("metalnet is ready");
                break;
            }
            Err(why) if why != said => {
                said = why;
                tracing::info!(why, "metalnet waits");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
            () = shutdown.cancelled() => return,
        }
    }
    shutdown.cancelled().await;
}

/// No task ends before shutdown; one that does is a fault, and starting anew is the cure.
async fn watch_tasks(tasks: &mut JoinSet<()>, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let ended = tasks.join_next().await;
    if shutdown.is_cancelled() {
        return Ok(());
    }
    match ended {
        Some(Err(error)) => Err(error).context("a task of metalnet failed"),
        Some(Ok(())) | None => Err(anyhow!("a task of metalnet ended")),
    }
}
