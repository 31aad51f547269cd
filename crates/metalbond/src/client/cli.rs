//! The command `metalbond client`: announces and subscribes what its flags say, logs and optionally installs routes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::install::{Installer, Plan, TableOfVni};
use super::{Client, Config, OwnRoutes, RouteEvent};
use crate::peer::KEEPALIVE_DEFAULT_S;
use crate::route::Route;
use crate::{server, status};

/// Announces routes to metalbond servers and shows what they distribute.
///
/// List flags may be repeated or take commas. All servers are used at the same time; one that is down is retried.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Servers, such as [fd00::1]:4711.
    #[arg(long, value_delimiter = ',')]
    pub server: Vec<String>,
    /// VNIs whose routes are wanted.
    #[arg(long, value_delimiter = ',')]
    pub subscribe: Vec<u32>,
    /// Routes to announce: VNI#PREFIX#HOP[#TYPE[#FROM#TO]], TYPE one of std, lb, nat; nat needs the port range. Example:
    /// 200#10.0.23.0/24#2001:db8::1
    #[arg(long, value_delimiter = ',')]
    pub announce: Vec<Route>,
    /// Keepalive interval in seconds (0: the default); the smaller of both sides' wins.
    #[arg(long, default_value_t = KEEPALIVE_DEFAULT_S)]
    pub keepalive: u32,
    /// Seconds for which routes outlive the session that supplied them.
    #[arg(long, default_value_t = 10)]
    pub hold_time: u32,
    /// Name of this announcer, unique and the same after a restart: servers then keep its routes over a restart.
    #[arg(long, default_value = "")]
    pub node_name: String,
    /// Address of the status pages, such as [::1]:4712. Without it there are none.
    #[arg(long)]
    pub http: Option<String>,
    /// Installs the routes of a VNI into a kernel table: VNI#TABLE, table 0 for the main one. Needs --tun and
    /// CAP_NET_ADMIN.
    #[arg(long, value_delimiter = ',')]
    pub install_routes: Vec<TableOfVni>,
    /// External-mode ip6tnl link through which installed routes go. It must exist:
    /// ip link add overlay-tun type ip6tnl mode any external
    #[arg(long, default_value = "")]
    pub tun: String,
    /// Installs IPv4 destinations only.
    #[arg(long)]
    pub ipv4_only: bool,
    /// Removes installed routes at exit. At start they are always removed.
    #[arg(long)]
    pub cleanup: bool,
}

/// Runs the client until `shutdown`.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Args {
        server,
        subscribe,
        announce,
        keepalive,
        hold_time,
        node_name,
        http,
        install_routes,
        tun,
        ipv4_only,
        cleanup,
    } = args;
    let mut installer = match install_routes.as_slice() {
        [] => None,
        tables => Some(Installer::open(&tun, Plan::new(tables, ipv4_only)?).await?),
    };
    let keepalive_s = if keepalive == 0 {
        KEEPALIVE_DEFAULT_S
    } else {
        keepalive
    };
    let (client, mut events) = Client::start(Config {
        peers: server,
        keepalive: Duration::from_secs(u64::from(keepalive_s)),
        hold_time: Duration::from_secs(u64::from(hold_time)),
        own_routes: OwnRoutes::SameDestination,
        node: node_name,
        extensions: true,
    });
    let pages = match &http {
        None => None,
        Some(address) => {
            let listener = server::bind(address).await.context("status pages")?;
            let source: Arc<dyn status::Source> = Arc::clone(&client.shared) as _;
            Some(status::spawn(listener, source))
        }
    };
    // Announcements first: they decide which received routes are withheld.
    for Route {
        vni,
        destination,
        next_hop,
    } in announce
    {
        client.announce(vni, destination, next_hop);
    }
    for vni in subscribe {
        client.subscribe(vni);
    }
    info!(http = ?http, "metalbond client is ready");
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => break,
            event = events.recv() => event,
        };
        let Some(event) = event else { break };
        match &event {
            RouteEvent::Added {
                vni,
                destination,
                next_hop,
            } => {
                info!(vni, %destination, %next_hop, "route added");
            }
            RouteEvent::Removed {
                vni,
                destination,
                next_hop,
            } => {
                info!(vni, %destination, %next_hop, "route removed");
            }
        }
        if let Some(installer) = &mut installer {
            installer.follow(&event).await;
        }
    }
    if let Some(installer) = installer.filter(|_| cleanup) {
        installer.cleanup().await?;
    }
    drop(pages);
    Ok(())
}
