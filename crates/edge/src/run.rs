//! The command: device, packet threads, metalbond client and pages put together.
//!
//! Traffic is attracted only when it can be carried: the kernel's routes to the device, and the default routes announced to the hypervisors,
//! wait until metalbond has told its public routes; an edge with an empty table would send errors in place of packets. Default routes
//! are withdrawn before the edge ends: the packet threads go on for a moment ([`Args::drain_ms`]), in which the hypervisors turn to another edge. The announcements have no name at the
//! servers (see `metalbond::Config::node`): a dead edge's routes should go at once, because nothing can be done with them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use controller::health::{self, Health};
use metalbond::{Client, Destination, NextHop, OwnRoutes, RouteEvent};
use net::Prefix;
use ports::Tap;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::counters::Figures;
use crate::engine::Settings;
use crate::kernel::{self, Kernel};
use crate::status::{self, Count, Server, Status};
use crate::table::{Routes, Scope};
use crate::thread::{Board, Published, Threads, WORKERS_MAX};

/// Route events worked off before the table is published.
const EVENTS_PER_TURN_MAX: usize = 1024;
/// Pause between looks at the sessions.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Least age of the first session before its initial dump of routes can be over; the protocol has no mark for that.
const DUMP_MIN: Duration = Duration::from_millis(500);
/// The dump is over when nothing came for this long …
const DUMP_QUIET: Duration = Duration::from_millis(300);
/// … or at the latest after this.
const DUMP_MAX: Duration = Duration::from_secs(5);
/// A packet thread turns at least once per second; one that stood still for so long will not move again.
const STANDSTILL_MAX: Duration = Duration::from_secs(10);
/// Smallest packet size that IPv6 allows.
const MTU_MIN: u16 = 1280;
/// Bytes of the outer header.
const OUTER_LEN: u16 = 40;

/// When hypervisors are told to send the outside's traffic here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Announce {
    /// Per family, while the kernel has a default route itself.
    Kernel,
    /// Always.
    Always,
    /// Never: this edge only carries traffic from the outside.
    Never,
}

/// Carries packets between the outside world and the hypervisors: runs on the region's router.
///
/// Makes a network device (a TAP) and leads the public prefixes to it; the kernel does everything else: neighbours, the underlay, the
/// routing protocol towards the outside, packet filters. Needs CAP_NET_ADMIN and both ip_forward settings.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Underlay address of this edge, reached by hypervisors and configured on no device. Several edges may share one (anycast).
    #[arg(long, value_name = "IPV6")]
    pub address: Ipv6Addr,
    /// The region's public addresses; only these are routed. Repeat or separate by commas.
    #[arg(long, required = true, value_delimiter = ',', value_name = "PREFIX", value_parser = kernel::parse_prefix)]
    pub public_prefix: Vec<Prefix>,
    /// metalbond servers; all are used at the same time.
    #[arg(long, required = true, value_delimiter = ',', value_name = "HOST:PORT")]
    pub server: Vec<String>,
    /// VNI in which public addresses and default routes are announced.
    #[arg(long, default_value_t = 100, value_name = "VNI")]
    pub public_vni: u32,
    /// Name of the device to make.
    #[arg(long, default_value = "edge0")]
    pub device: String,
    /// Largest packet that machines take, in bytes. The underlay must carry 40 more.
    #[arg(long, default_value_t = 1500)]
    pub mtu: u16,
    /// Where tunnelled packets may come from.
    #[arg(long, value_delimiter = ',', default_value = "fc00::/7", value_name = "PREFIX", value_parser = kernel::parse_prefix)]
    pub underlay: Vec<Prefix>,
    /// Networks that machines must not reach through this router, such as its management. `none`: no restriction.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fc00::/7",
        value_name = "PREFIX"
    )]
    pub deny: Vec<String>,
    /// When to announce default routes to the hypervisors.
    #[arg(long, value_enum, default_value_t = Announce::Kernel)]
    pub default_route: Announce,
    /// Source of ICMP errors for IPv4; no address of the kernel. The default is the one reserved for this use.
    #[arg(long, default_value_t = Ipv4Addr::new(192, 0, 0, 8), value_name = "IPV4")]
    pub icmp_address: Ipv4Addr,
    /// Leave the kernel's routes to somebody else: then lead the public prefixes and --address to the device yourself.
    #[arg(long)]
    pub no_routes: bool,
    /// Packet threads, among which the kernel spreads flows.
    #[arg(long, default_value_t = 1)]
    pub workers: usize,
    /// Keepalive interval towards metalbond servers, seconds; after 2.5 times this a silent edge's default route is gone.
    #[arg(long, default_value_t = 1)]
    pub keepalive: u32,
    /// Seconds for which routes outlive the session that supplied them.
    #[arg(long, default_value_t = 10)]
    pub hold_time: u32,
    /// How long packets are still carried after the default route was withdrawn, in milliseconds.
    #[arg(long, default_value_t = 500)]
    pub drain_ms: u64,
    /// Plain HTTP address for /status.json, /livez, /healthz, /readyz and /metrics, such as `[::1]:4713`. Without it there are none.
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
}

/// What the pages look at.
struct Shared {
    device: String,
    settings: Arc<Settings>,
    client: Client,
    routes: Mutex<Routes>,
    announced: Mutex<BTreeSet<Prefix>>,
    /// Route events seen.
    events: AtomicU64,
    boards: Vec<Arc<Board>>,
}

/// Runs an edge until `shutdown`.
///
/// # Errors
/// Flags that contradict each other, a device that cannot be made, or one that vanished.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let settings = Arc::new(settings(&args)?);
    let kernel = Arc::new(Kernel::open()?);
    kernel.check_free(args.address).await?;
    let queues = Tap::create_queues(
        &args.device,
        settings.mac,
        usize::from(args.mtu + OUTER_LEN),
        args.workers,
    )
    .context("the edge's device")?;
    let published = Arc::new(Published::default());
    let threads = Threads::start(queues, &settings, &published).context("packet threads")?;
    let device = kernel.set_up(&args.device).await?;
    if let Some(fault) = kernel::forwarding_fault() {
        tracing::warn!("{fault}");
    }
    let (client, events) = Client::start(metalbond::Config {
        peers: args.server.clone(),
        keepalive: Duration::from_secs(u64::from(args.keepalive.max(1))),
        hold_time: Duration::from_secs(u64::from(args.hold_time)),
        own_routes: OwnRoutes::SameDestination,
        node: String::new(),
        extensions: true,
    });
    let shared = Arc::new(Shared {
        device: args.device.clone(),
        settings: Arc::clone(&settings),
        client: client.clone(),
        routes: Mutex::new(Routes::new(Scope {
            vni: args.public_vni,
            own: args.address,
            public: args.public_prefix.clone(),
        })),
        announced: Mutex::default(),
        events: AtomicU64::new(0),
        boards: threads.boards().to_vec(),
    });
    client.subscribe(args.public_vni);
    let health = pages(&shared);
    let (found, defaults) = watch::channel([false; 2]);

    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    tasks.spawn(follow(Arc::clone(&shared), events, published));
    tasks.spawn(kernel::watch_defaults(Arc::clone(&kernel), found));
    let attract = Attract {
        shared: Arc::clone(&shared),
        args: args.clone(),
        kernel,
        device,
        health: Arc::clone(&health),
    };
    tasks.spawn(attract.run(defaults));
    let address = args.http.as_deref().unwrap_or("0");
    let ended = tokio::select! {
        served = health::serve(address, health, shutdown.clone()) => served,
        ended = tasks.join_next() => match ended {
            Some(Ok(result)) => result.and(Err(anyhow::anyhow!("a task of the edge ended"))),
            Some(Err(error)) => Err(error).context("a task of the edge failed"),
            None => Ok(()),
        },
    };
    tasks.shutdown().await;
    if ended.is_ok() {
        shared.set_announced(args.public_vni, &BTreeSet::new());
        tracing::info!(ms = args.drain_ms, "default routes withdrawn; draining");
        tokio::time::sleep(Duration::from_millis(args.drain_ms)).await;
    }
    drop(threads);
    ended
}

fn settings(args: &Args) -> anyhow::Result<Settings> {
    ensure!(
        (MTU_MIN..=u16::MAX - OUTER_LEN).contains(&args.mtu),
        "--mtu {}: IPv6 needs at least {MTU_MIN}",
        args.mtu
    );
    ensure!(
        (1..=WORKERS_MAX).contains(&args.workers),
        "--workers {}: 1 to {WORKERS_MAX} are possible",
        args.workers
    );
    if args.public_prefix.iter().any(|prefix| prefix.len() == 0) {
        bail!("--public-prefix: a prefix of length 0 would be the whole outside");
    }
    if let Some(http) = &args.http {
        let full = match http.strip_prefix(':') {
            Some(port) => format!("[::]:{port}"),
            None => http.clone(),
        };
        full.parse::<SocketAddr>()
            .with_context(|| format!("--http {http:?}: write it as [::1]:4713 or :4713"))?;
    }
    let denied = args
        .deny
        .iter()
        .filter(|text| *text != "none")
        .map(|text| kernel::parse_prefix(text).map_err(|error| anyhow::anyhow!("--deny: {error}")))
        .collect::<Result<Vec<Prefix>, _>>()?;
    Ok(Settings {
        address: args.address,
        icmp_v4: args.icmp_address,
        mac: kernel::mac_of(args.address),
        mtu: args.mtu,
        public: args.public_prefix.clone(),
        underlay: args.underlay.clone(),
        denied,
    })
}

/// Brings what metalbond tells into the table.
async fn follow(
    shared: Arc<Shared>,
    mut events: mpsc::Receiver<RouteEvent>,
    published: Arc<Published>,
) -> anyhow::Result<()> {
    let mut batch = Vec::new();
    while events.recv_many(&mut batch, EVENTS_PER_TURN_MAX).await > 0 {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        shared.events.fetch_add(count, Ordering::Relaxed);
        let mut routes = lock(&shared.routes);
        let mut changed = false;
        for event in batch.drain(..) {
            let used = routes.follow(&event);
            changed |= used;
            if used {
                log(&event);
            }
        }
        let table = changed.then(|| routes.table().clone());
        drop(routes);
        if let Some(table) = table {
            published.publish(table);
        }
    }
    bail!("the metalbond client has ended")
}

fn log(event: &RouteEvent) {
    match event {
        RouteEvent::Added {
            destination,
            next_hop,
            ..
        } => tracing::debug!(%destination, %next_hop, "route added"),
        RouteEvent::Removed {
            destination,
            next_hop,
            ..
        } => tracing::debug!(%destination, %next_hop, "route removed"),
    }
}

/// Attracts traffic when it can be carried.
struct Attract {
    shared: Arc<Shared>,
    args: Args,
    kernel: Arc<Kernel>,
    device: u32,
    health: Arc<Health>,
}

impl Attract {
    /// Waits until the routes are known; then announces default routes while they can be used, until the device is gone.
    async fn run(self, mut defaults: watch::Receiver<[bool; 2]>) -> anyhow::Result<()> {
        self.heard().await?;
        if !self.args.no_routes {
            let settings = &self.shared.settings;
            self.kernel.add_routes(self.device, settings).await?;
        }
        self.health.set_ready();
        tracing::info!(address = %self.args.address, device = self.args.device, "the edge is ready");
        loop {
            let usable = match self.args.default_route {
                Announce::Kernel => *defaults.borrow_and_update(),
                Announce::Always => [true; 2],
                Announce::Never => [false; 2],
            };
            self.shared
                .set_announced(self.args.public_vni, &wanted(usable));
            self.device_exists()?;
            tokio::select! {
                changed = defaults.changed() => {
                    changed.context("nobody watches the kernel's routes")?;
                }
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    /// Until the first session's initial dump of routes is over.
    async fn heard(&self) -> anyhow::Result<()> {
        let mut session_since = None;
        let mut last = (0, Instant::now());
        loop {
            let now = Instant::now();
            let events = self.shared.events.load(Ordering::Relaxed);
            if events != last.0 {
                last = (events, now);
            }
            let peers = self.shared.client.peers();
            if peers.iter().any(|peer| peer.established && peer.in_sync) {
                let age = now - *session_since.get_or_insert(now);
                let quiet = now - last.1;
                if age >= DUMP_MAX || (age >= DUMP_MIN && quiet >= DUMP_QUIET) {
                    return Ok(());
                }
            }
            self.device_exists()?;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn device_exists(&self) -> anyhow::Result<()> {
        if self.shared.boards.iter().any(|board| board.has_ended()) {
            bail!("{} is gone", self.args.device);
        }
        Ok(())
    }
}

/// The default routes for what is usable.
fn wanted([v4, v6]: [bool; 2]) -> BTreeSet<Prefix> {
    let default = |usable: bool, any: IpAddr| usable.then(|| Prefix::new(any, 0)).flatten();
    let v4 = default(v4, Ipv4Addr::UNSPECIFIED.into());
    let v6 = default(v6, Ipv6Addr::UNSPECIFIED.into());
    v4.into_iter().chain(v6).collect()
}

impl Shared {
    fn set_announced(&self, vni: u32, wanted: &BTreeSet<Prefix>) {
        let mut announced = lock(&self.announced);
        let hop = NextHop::standard(self.settings.address);
        let change = |prefix: &Prefix, is_added: bool| {
            let Some(destination) = Destination::new(prefix.address(), prefix.len()) else {
                return;
            };
            tracing::info!(%prefix, announced = is_added, "default route");
            if is_added {
                self.client.announce(vni, destination, hop);
            } else {
                self.client.withdraw(vni, destination, hop);
            }
        };
        announced.difference(wanted).for_each(|p| change(p, false));
        wanted.difference(&announced).for_each(|p| change(p, true));
        announced.clone_from(wanted);
    }

    fn figures(&self) -> Figures {
        let mut sum = Figures::default();
        for board in &self.boards {
            sum.add(&board.counters.figures());
        }
        sum
    }

    fn driver(&self) -> Vec<Count> {
        let mut sums: Vec<Count> = Vec::new();
        for (name, count) in self.boards.iter().flat_map(|board| board.driver()) {
            match sums.iter_mut().find(|sum| sum.name == name) {
                Some(sum) => sum.count += count,
                None => sums.push(Count {
                    name: name.to_owned(),
                    count,
                }),
            }
        }
        sums
    }

    fn status(&self) -> Status {
        let figures = self.figures();
        let servers = self.client.peers().into_iter().map(|peer| Server {
            address: peer.address,
            established: peer.established,
            sessions: peer.sessions,
        });
        let routes = lock(&self.routes);
        Status {
            address: self.settings.address,
            device: self.device.clone(),
            mtu: self.settings.mtu,
            public_prefixes: self.settings.public.iter().map(Prefix::to_string).collect(),
            announced: lock(&self.announced)
                .iter()
                .map(Prefix::to_string)
                .collect(),
            servers: servers.collect(),
            routes_total: routes.len(),
            routes: status::routes(&routes),
            ignored: status::ignored(&routes),
            paths: status::paths(&figures),
            drops: status::drops(&figures),
            driver: self.driver(),
        }
    }
}

/// Checks, metrics and the status page.
fn pages(shared: &Arc<Shared>) -> Arc<Health> {
    let health = Arc::new(Health::default());
    let origin = Instant::now();
    for (number, board) in shared.boards.iter().enumerate() {
        let board = Arc::clone(board);
        // Turns seen last, and when they were seen to change.
        let seen = (AtomicU64::new(0), AtomicU64::new(0));
        health.add_check(format!("packets-{number}"), move || {
            let now_s = origin.elapsed().as_secs();
            if seen.0.swap(board.turns(), Ordering::Relaxed) != board.turns() {
                seen.1.store(now_s, Ordering::Relaxed);
            }
            let still_s = now_s.saturating_sub(seen.1.load(Ordering::Relaxed));
            if still_s <= STANDSTILL_MAX.as_secs() {
                return Ok(());
            }
            Err(format!("stands still since {still_s} s"))
        });
    }
    let asked = Arc::clone(shared);
    health.add_dependency("metalbond", move || {
        let is_up = asked.client.peers().iter().any(|peer| peer.established);
        is_up.then_some(()).ok_or("no server answers".to_owned())
    });
    health.add_dependency("forwarding", || match kernel::forwarding_fault() {
        None => Ok(()),
        Some(fault) => Err(fault.to_owned()),
    });
    let asked = Arc::clone(shared);
    health.add_metrics(move |out| status::render_metrics(&asked.status(), out));
    let asked = Arc::clone(shared);
    health.add_page("status.json", move |out| {
        // Plain values: serialization cannot fail.
        out.push_str(&serde_json::to_string_pretty(&asked.status()).unwrap_or_default());
    });
    health
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change of these values is complete before it can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
