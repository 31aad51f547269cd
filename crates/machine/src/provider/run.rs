//! The shell of the namespace provider: store, devices, gRPC server and runner in one process.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use api::names;
use controller::args::client;
use controller::{Cluster, Key, Options, Runner};
use proto::machine::machine_runtime_server::MachineRuntimeServer;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use super::record::Store;
use super::runtime::Runtime;
use super::shell::{KEYS_MAX, Machines, Shell};
use super::{classes, dhcp4, links, netns};

/// Runs machines as network namespaces, for the machinepoollet of this node. Needs root.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Unix socket to serve the MachineRuntime gRPC on.
    #[arg(
        long,
        value_name = "SOCKET",
        default_value = "/var/run/iri-machineprovider.sock"
    )]
    pub address: PathBuf,
    /// Where the machines are kept across restarts.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/openkcm/machine-provider"
    )]
    pub state: PathBuf,
    /// Kubeconfig of the OpenKCM-net API.
    #[arg(long, value_name = "FILE")]
    pub apinet_kubeconfig: Option<PathBuf>,
    /// Name of this node's Node object in the OpenKCM-net API, `<partition>.<node>`.
    #[arg(long, value_name = "NAME")]
    pub apinet_node_name: String,
    /// Names of machine namespaces begin with this; no other program may use such names.
    #[arg(long, value_name = "PREFIX", default_value = "machine-")]
    pub netns_prefix: String,
    /// JSON file with the offered classes: [{"name": "small", "capabilities": {"cpu": 1000, "memory": 1073741824}}]; cpu in
    /// thousandths, memory in bytes, optional "quantity".
    #[arg(long, value_name = "FILE")]
    pub supported_machine_classes: PathBuf,
}

/// Runs until shutdown. Machines keep running afterwards.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let classes = classes::read(&args.supported_machine_classes)?;
    let store = Store::open(&args.state).context("machine records")?;
    let script = dhcp4::install(&args.state).context("DHCP script")?;
    let script = script.canonicalize().context("DHCP script")?;
    let namespaces = adopt(&store, &args.netns_prefix).await?;
    let client = client(args.apinet_kubeconfig.as_ref()).await?;

    let (keys, wanted) = mpsc::channel(KEYS_MAX);
    let known: Vec<String> = store.all().iter().map(|record| record.id.clone()).collect();
    let shell = Arc::new(Shell::new(
        store,
        args.apinet_node_name,
        script,
        namespaces,
        keys,
    ));
    let (news_in, news) = mpsc::channel(links::NEWS_MAX);

    let mut runner = Runner::new(names::manager::PROVIDER, Cluster::new(client));
    let options = Options {
        workers: 8,
        keys: Some(wanted),
        ..Options::default()
    };
    runner.controller(Arc::new(Machines(shell.clone())), options);

    let runtime = Runtime::new(shell.clone(), classes, args.netns_prefix);
    let listener = listen(&args.address)?;
    let server = tonic::transport::Server::builder()
        .layer(proto::whole::Whole)
        .add_service(MachineRuntimeServer::new(runtime))
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listener),
            shutdown.clone().cancelled_owned(),
        );
    tracing::info!(address = %args.address.display(), machines = known.len(), "namespace provider serves");

    let wake = async {
        for id in known {
            shell.wake(&Key::cluster(id).name).await;
        }
        shell.follow(news, shutdown.clone()).await;
        Ok(())
    };
    let ended = tokio::try_join!(
        async { server.await.context("MachineRuntime server") },
        async { runner.run(shutdown.clone()).await.context("controllers") },
        async {
            links::watch(&shell.links, news_in, shutdown.clone())
                .await
                .context("device events")
        },
        wake,
    );
    shutdown.cancel();
    ended.map(|_| ())
}

/// Namespaces of known machines; those of unknown ones are removed, because nobody can want them.
async fn adopt(store: &Store, prefix: &str) -> anyhow::Result<Vec<String>> {
    let known: Vec<String> = store
        .all()
        .iter()
        .map(|record| record.netns.clone())
        .collect();
    let (adopted, orphans): (Vec<_>, Vec<_>) = netns::list(prefix)
        .context("list namespaces")?
        .into_iter()
        .partition(|name| known.contains(name));
    for name in orphans {
        tracing::info!(netns = name, "namespace of an unknown machine is removed");
        netns::remove(&name).await?;
    }
    Ok(adopted)
}

/// Takes over the socket of a predecessor that died.
fn listen(path: &std::path::Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("remove {}", path.display())),
    }
    UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))
}
