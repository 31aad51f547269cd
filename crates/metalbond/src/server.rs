//! The server: accepts connections and runs one hub for all of them. Start at [`spawn`] (library) or [`run`] (command).

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::driver::{self, Backend, Clock, Closed, Signal};
use crate::hub::{Counters, Hub, Interest, Limits, PeerId};
use crate::peer::{Event, KEEPALIVE_DEFAULT_S, Peer, Role, Settings, State};
use crate::route::Route;
use crate::session::Fill;
use crate::status;

/// Connections at the same time; more are closed at once.
pub const CONNECTIONS_MAX: usize = 8192;
/// Pause after a failed accept, for example when file descriptors are short.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// Distributes overlay routes: remembers what each peer announces and tells it to every peer that subscribed the VNI.
///
/// Run two or more of them and point every client at all; they need not know each other. Routes are only kept in
/// memory: after a restart the clients announce them again.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// TCP address for clients, such as [::]:4711.
    #[arg(long, default_value = "[::]:4711")]
    pub listen: String,
    /// Address of the status pages (/, /routes.json, /routes.yaml, /peers.json, /metrics, /healthz), such as [::]:4712.
    /// Without it there are none.
    #[arg(long)]
    pub http: Option<String>,
    /// Keepalive interval in seconds (0: the default); the smaller of both sides' wins. A peer is given up after 2.5
    /// intervals of silence.
    #[arg(long, default_value_t = KEEPALIVE_DEFAULT_S)]
    pub keepalive: u32,
    /// Seconds for which the routes of a client that gave its name outlive its connection, so that its restart disturbs
    /// nobody. Routes of unnamed clients go at once.
    #[arg(long, default_value_t = 10)]
    pub hold_time: u32,
}

/// Settings of a server, see [`Args`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Keepalive interval, seconds.
    pub keepalive_s: u32,
    /// How long routes of named clients outlive their connection.
    pub hold_time: Duration,
    /// Whether peers may be sent to without pacing if they say that they reassemble the stream.
    pub extensions: bool,
    /// Bounds of the tables.
    pub limits: Limits,
    /// Connections at the same time, at most [`CONNECTIONS_MAX`].
    pub connections_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keepalive_s: KEEPALIVE_DEFAULT_S,
            hold_time: Duration::from_secs(10),
            extensions: true,
            limits: Limits::default(),
            connections_max: CONNECTIONS_MAX,
        }
    }
}

/// Runs a server until `shutdown`.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Args {
        listen,
        http,
        keepalive,
        hold_time,
    } = args;
    let listener = bind(&listen).await?;
    let config = Config {
        keepalive_s: keepalive,
        hold_time: Duration::from_secs(u64::from(hold_time)),
        ..Config::default()
    };
    let server = spawn(listener, config)?;
    let pages = match &http {
        None => None,
        Some(address) => {
            let source: Arc<dyn status::Source> = Arc::clone(&server.shared) as _;
            Some(status::spawn(bind(address).await?, source))
        }
    };
    info!(listen = %server.local_addr(), http = ?http, "metalbond server is ready");
    shutdown.cancelled().await;
    drop(pages);
    server.shutdown().await;
    Ok(())
}

/// Binds a listener; an address without host (`:4711`) means all addresses.
pub(crate) async fn bind(address: &str) -> anyhow::Result<TcpListener> {
    let full = match address.strip_prefix(':') {
        Some(port) => format!("[::]:{port}"),
        None => address.to_owned(),
    };
    TcpListener::bind(&full)
        .await
        .with_context(|| format!("cannot listen on {address:?}"))
}

/// A running server. Dropping it ends it.
pub struct Server {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
}

impl Server {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Whether some peer supplies this route.
    pub fn contains(&self, route: &Route) -> bool {
        self.shared.lock().hub.contains(route)
    }

    /// Routes with at least one supplier.
    pub fn routes_len(&self) -> usize {
        self.shared.lock().hub.routes_len()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        *self.shared.lock().hub.counters()
    }

    /// Connections that ended by the other side's misbehaviour or silence, not by its closing.
    pub fn resets(&self) -> u64 {
        self.shared.totals.resets.load(Ordering::Relaxed)
    }

    /// Connections closed at once because there were as many as may be.
    pub fn refused(&self) -> u64 {
        self.shared.totals.refused.load(Ordering::Relaxed)
    }

    /// Attempts to accept a connection that failed.
    pub fn accept_failures(&self) -> u64 {
        self.shared.totals.accept_failures.load(Ordering::Relaxed)
    }

    /// Connections in state ESTABLISHED.
    pub fn established_len(&self) -> usize {
        let state = self.shared.lock();
        state
            .connections
            .values()
            .filter(|peer| peer.state == State::Established)
            .count()
    }

    /// Closes all connections and waits for their ends.
    pub async fn shutdown(mut self) {
        self.cancel.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Starts a server on a bound listener. Must be called inside a Tokio runtime.
pub fn spawn(listener: TcpListener, config: Config) -> io::Result<Server> {
    let local_addr = listener.local_addr()?;
    let shared = Arc::new(Shared {
        state: Mutex::new(ServerState {
            hub: Hub::new(config.limits),
            connections: HashMap::new(),
        }),
        totals: Totals::default(),
        sweeper: Notify::new(),
        clock: Clock::start(),
        config,
    });
    let cancel = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(listener, Arc::clone(&shared), cancel.clone()));
    tasks.spawn(sweep(Arc::clone(&shared), cancel.clone()));
    Ok(Server {
        shared,
        local_addr,
        cancel,
        tasks,
    })
}

/// What all connections share.
pub(crate) struct Shared {
    state: Mutex<ServerState>,
    pub(crate) totals: Totals,
    /// A connection ended: its routes are to be removed, now or later.
    sweeper: Notify,
    pub(crate) clock: Clock,
    config: Config,
}

/// The hub and the connections behind its peers.
pub(crate) struct ServerState {
    pub(crate) hub: Hub,
    pub(crate) connections: HashMap<PeerId, Connection>,
}

/// A connection that has greeted.
pub(crate) struct Connection {
    pub(crate) remote: SocketAddr,
    pub(crate) node: String,
    pub(crate) since: Duration,
    pub(crate) state: State,
    pub(crate) is_stream: bool,
    pub(crate) signal: Arc<Signal>,
}

/// Counters of connections.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) accept_failures: AtomicU64,
    pub(crate) resets: AtomicU64,
    pub(crate) open: AtomicU64,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, ServerState> {
        // Poisoned only if a thread panicked inside; the hub's operations keep it usable at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerState {
    /// Tells connections what the hub decided about them.
    fn pass_on(&mut self) {
        for id in self.hub.take_woken() {
            if let Some(connection) = self.connections.get(&id) {
                connection.signal.wake();
            }
        }
        for id in self.hub.take_evicted() {
            if let Some(connection) = self.connections.get(&id) {
                connection.signal.kick();
            }
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, cancel: CancellationToken) {
    let mut connections = JoinSet::new();
    let connections_max = shared.config.connections_max.min(CONNECTIONS_MAX);
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) if connections.len() < connections_max => {
                    shared.totals.accepted.fetch_add(1, Ordering::Relaxed);
                    let serve = serve(stream, remote, Arc::clone(&shared), cancel.clone());
                    connections.spawn(serve);
                }
                Ok((_, remote)) => {
                    shared.totals.refused.fetch_add(1, Ordering::Relaxed);
                    warn!(peer = %remote, "connection refused: {connections_max} are open");
                }
                Err(error) => {
                    shared.totals.accept_failures.fetch_add(1, Ordering::Relaxed);
                    warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn serve(
    stream: TcpStream,
    remote: SocketAddr,
    shared: Arc<Shared>,
    cancel: CancellationToken,
) {
    let totals = &shared.totals;
    totals.open.fetch_add(1, Ordering::Relaxed);
    let clock = shared.clock;
    let mut settings = Settings {
        keepalive_s: shared.config.keepalive_s,
        ..Settings::default()
    };
    if !shared.config.extensions {
        settings.capabilities = Default::default();
    }
    let peer = Peer::new(Role::Server, settings, clock.now());
    let signal = Arc::<Signal>::default();
    let mut backend = ServerBackend {
        shared: Arc::clone(&shared),
        remote,
        signal: Arc::clone(&signal),
        id: None,
    };
    let closed = driver::run(stream, peer, &mut backend, signal, clock, &cancel).await;
    backend.leave(clock.now(), shared.config.hold_time);
    match closed {
        Closed::ByPeer | Closed::Shutdown => debug!(peer = %remote, "connection ended: {closed}"),
        Closed::Io(_) => info!(peer = %remote, "connection ended: {closed}"),
        Closed::Reset(_) | Closed::Kicked => {
            totals.resets.fetch_add(1, Ordering::Relaxed);
            warn!(peer = %remote, "connection reset: {closed}");
        }
    }
    totals.open.fetch_sub(1, Ordering::Relaxed);
}

/// Removes routes whose announcers did not return.
async fn sweep(shared: Arc<Shared>, cancel: CancellationToken) {
    loop {
        let (more, deadline) = {
            let mut state = shared.lock();
            let more = state.hub.sweep(shared.clock.now());
            state.pass_on();
            (more, state.hub.next_deadline())
        };
        if more {
            tokio::task::yield_now().await;
            continue;
        }
        let deadline = deadline.map(|deadline| shared.clock.at(deadline));
        tokio::select! {
            () = cancel.cancelled() => return,
            () = shared.sweeper.notified() => {}
            () = sleep_until(deadline) => {}
        }
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl status::Source for Shared {
    fn routes_from(&self, start: u32, max: u32, routes: &mut Vec<Route>) -> Option<u32> {
        self.lock().hub.routes_from(start, max, routes)
    }

    fn peers(&self) -> Vec<status::PeerRow> {
        let now = self.clock.now();
        let state = self.lock();
        let row = |(id, connection): (&PeerId, &Connection)| {
            let info = state.hub.peer_info(*id)?;
            Some(status::PeerRow {
                peer: connection.remote.to_string(),
                direction: "INCOMING",
                node: connection.node.clone(),
                state: connection.state.name(),
                age_s: (now - connection.since).as_secs(),
                paced: !connection.is_stream,
                routes: info.routes,
                held: info.held,
                subscriptions: info.subscriptions,
                backlog: info.backlog,
                received_bytes: connection.signal.received.load(Ordering::Relaxed),
                sent_bytes: connection.signal.sent.load(Ordering::Relaxed),
            })
        };
        state.connections.iter().filter_map(row).collect()
    }

    fn metrics(&self) -> Vec<status::Metric> {
        let state = self.lock();
        let hub = &state.hub;
        let Counters {
            announced,
            repeated,
            withdrawn,
            unknown_withdrawals,
            routes_refused,
            subscriptions_refused,
            sent,
            swept,
            evicted,
            directed_full,
        } = *hub.counters();
        let total = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Totals {
            accepted,
            refused,
            accept_failures,
            resets,
            open,
        } = &self.totals;
        vec![
            status::gauge("routes", hub.routes_len() as u64),
            status::gauge("withdrawn_routes_kept", hub.withdrawn_len() as u64),
            status::gauge("vnis", hub.vnis_len() as u64),
            status::gauge("connections", total(open)),
            status::counter("connections_accepted", total(accepted)),
            status::counter("connections_refused", total(refused)),
            status::counter("accept_failures", total(accept_failures)),
            status::counter("connections_reset", total(resets)),
            status::counter("announcements", announced),
            status::counter("announcements_repeated", repeated),
            status::counter("announcements_refused", routes_refused),
            status::counter("withdrawals", withdrawn),
            status::counter("withdrawals_unknown", unknown_withdrawals),
            status::counter("subscriptions_refused", subscriptions_refused),
            status::counter("updates_sent", sent),
            status::counter("routes_swept", swept),
            status::counter("peers_evicted", evicted),
            status::counter("directed_changes_full", directed_full),
        ]
    }
}

struct ServerBackend {
    shared: Arc<Shared>,
    remote: SocketAddr,
    signal: Arc<Signal>,
    id: Option<PeerId>,
}

impl ServerBackend {
    fn enter(&mut self, state: &mut ServerState, peer: &Peer, now: Duration) {
        let hold = self.shared.config.hold_time;
        let node = &peer.hello().node;
        let id = state.hub.connect(node, Interest::Subscribed, now, hold);
        let connection = Connection {
            remote: self.remote,
            node: node.clone(),
            since: now,
            state: peer.state(),
            is_stream: peer.is_stream(),
            signal: Arc::clone(&self.signal),
        };
        self.id = Some(id);
        // The superseded connection is told before its entry could be confused with this one.
        state.pass_on();
        state.connections.insert(id, connection);
    }

    fn leave(&mut self, now: Duration, hold: Duration) {
        if let Some(id) = self.id.take() {
            let mut state = self.shared.lock();
            state.hub.disconnect(id, now, hold);
            state.connections.remove(&id);
            drop(state);
            self.shared.sweeper.notify_one();
        }
    }
}

impl Backend for ServerBackend {
    fn apply(&mut self, peer: &Peer, events: &mut Vec<Event>, now: Duration) {
        let shared = Arc::clone(&self.shared);
        let mut guard = shared.lock();
        let state = &mut *guard;
        for event in events.drain(..) {
            match (event, self.id) {
                (Event::Greeted, _) => self.enter(state, peer, now),
                (Event::Restarted, Some(id)) => {
                    state.hub.disconnect(id, now, Duration::ZERO);
                    state.connections.remove(&id);
                    self.shared.sweeper.notify_one();
                }
                (Event::Established, Some(id)) => {
                    if let Some(connection) = state.connections.get_mut(&id) {
                        connection.state = State::Established;
                    }
                }
                (Event::Subscribe(vni), Some(id)) => state.hub.subscribe(id, vni),
                (Event::Unsubscribe(vni), Some(id)) => state.hub.unsubscribe(id, vni),
                (Event::Update(update), Some(id)) => match update.action {
                    crate::codec::Action::Add => state.hub.announce(id, &update.route),
                    crate::codec::Action::Remove => state.hub.withdraw(id, &update.route),
                },
                // A peer is in the hub from its HELLO on, and nothing is accepted before.
                (_, None) => {}
            }
        }
        state.pass_on();
    }

    fn fill(
        &mut self,
        _peer: &mut Peer,
        out: &mut Vec<u8>,
        bytes_max: usize,
        _now: Duration,
    ) -> Fill {
        let Some(id) = self.id else { return Fill::Idle };
        if self.shared.lock().hub.fill(id, out, bytes_max) {
            Fill::More
        } else {
            Fill::Idle
        }
    }
}
