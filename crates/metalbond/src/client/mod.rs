//! The client: keeps sessions with all servers and merges what they supply. Start at [`Client::start`]; the command is in
//! [`cli`].
//!
//! Everything is level-triggered. A user states what it wants subscribed and announced; each server session is brought
//! to that state whenever it is up, so no call fails because a server is down. Received routes are merged: the user
//! hears of a route when its first supplier appears and when its last one is gone, never in between.

pub mod cli;
pub mod install;
pub mod redial;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use crate::codec::{Action, Capabilities};
use crate::driver::{self, Backend, Clock, Signal};
use crate::hub::{Hub, Interest, Limits, PeerId};
use crate::peer::{Event, KEEPALIVE_DEFAULT_S, Peer, Role, Settings, State};
use crate::rib::{Rib, Server};
use crate::route::{Destination, NextHop, Route};
use crate::session::{Fill, Session, Wishes};
use crate::status;
use redial::{PAUSE_MAX, Redial};

pub use cli::{Args, run};

/// Route events waiting for the user; beyond it they stay in the table, where later changes replace earlier ones.
pub const EVENTS_MAX: usize = 1024;
/// Servers that one client can use.
pub const PEERS_MAX: usize = 64;
/// Time for a connection attempt, name resolution included.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Servers as `host:port`; all are used at the same time. Those beyond [`PEERS_MAX`] and repetitions are ignored.
    pub peers: Vec<String>,
    /// Keepalive interval offered to servers; whole seconds, at least 1. The smaller of both sides wins.
    pub keepalive: Duration,
    /// How long routes outlive the session that supplied them, and how long a new session may take to supply them again.
    pub hold_time: Duration,
    /// Which received routes are withheld because this client announces the like.
    pub own_routes: OwnRoutes,
    /// Names this announcer, up to 63 bytes, the same after a restart. Our servers keep the routes of a named client for
    /// their own hold time when its connection is lost, and count a new connection under the name as its continuation. Must
    /// be unique. Empty: announcements end with the connection.
    pub node: String,
    /// Whether to tell servers that this client reassembles the stream, so that ours need not pace.
    pub extensions: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            peers: Vec::new(),
            keepalive: Duration::from_secs(u64::from(KEEPALIVE_DEFAULT_S)),
            hold_time: Duration::from_secs(10),
            own_routes: OwnRoutes::Identical,
            node: String::new(),
            extensions: true,
        }
    }
}

/// Which received routes are withheld from the user because the client itself announces the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnRoutes {
    /// Only identical ones (same VNI, destination and next hop). Hosts that share a NAT address or a load-balancer address
    /// learn each other.
    Identical,
    /// Also ordinary routes to a destination for which an ordinary route is announced. For routers that install what they
    /// receive: two of them announcing a default route must not point at each other.
    SameDestination,
}

/// A change of the merged table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteEvent {
    /// The first supplier appeared.
    Added {
        /// Network.
        vni: u32,
        /// Where to.
        destination: Destination,
        /// Through where.
        next_hop: NextHop,
    },
    /// The last supplier is gone (and its hold time is over), or the VNI is no longer subscribed.
    Removed {
        /// Network.
        vni: u32,
        /// Where to.
        destination: Destination,
        /// Through where.
        next_hop: NextHop,
    },
}

/// A server as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// As configured.
    pub address: String,
    /// Whether the session is established.
    pub established: bool,
    /// Sessions established so far.
    pub sessions: u64,
    /// Whether everything that is wanted now has been written to this server.
    pub in_sync: bool,
}

/// A handle on the client; clones share it. The sessions end when the last handle is dropped.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    _guard: Arc<DropGuard>,
}

impl Client {
    /// Starts dialling all servers. Must be called inside a Tokio runtime. The receiver yields the merged table's changes; a
    /// user that does not read it delays only itself.
    pub fn start(config: Config) -> (Self, mpsc::Receiver<RouteEvent>) {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let mut addresses: Vec<String> = Vec::new();
        for address in &config.peers {
            if addresses.contains(address) || addresses.len() >= PEERS_MAX {
                warn!(peer = %address, "metalbond server ignored: repeated, or more than {PEERS_MAX}");
            } else {
                addresses.push(address.clone());
            }
        }
        let mut own = Hub::new(Limits {
            peer_routes_max: usize::MAX,
            ..Limits::default()
        });
        let announcer = own.connect("", Interest::Subscribed, Duration::ZERO, Duration::ZERO);
        let shared = Arc::new(Shared {
            state: Mutex::new(ClientState {
                wishes: Wishes::default(),
                own,
                announcer,
                rib: Rib::new(config.own_routes),
                servers: addresses
                    .iter()
                    .map(|address| ServerEntry::new(address))
                    .collect(),
            }),
            pending: Notify::new(),
            clock: Clock::start(),
        });
        let cancel = CancellationToken::new();
        let supervised = supervise(
            Arc::clone(&shared),
            config,
            addresses,
            sender,
            cancel.clone(),
        );
        // The task ends with the token, which ends with the last handle.
        let mut tasks = JoinSet::new();
        tasks.spawn(supervised);
        tasks.detach_all();
        (
            Self {
                shared,
                _guard: Arc::new(cancel.drop_guard()),
            },
            events,
        )
    }

    /// Wants the routes of a VNI. Idempotent.
    pub fn subscribe(&self, vni: u32) {
        self.change(|state| {
            state.rib.subscribe(vni);
            state.wishes.insert(vni)
        });
    }

    /// No longer wants the routes of a VNI; those known are reported removed. Idempotent.
    pub fn unsubscribe(&self, vni: u32) {
        self.change(|state| {
            state.rib.unsubscribe(vni);
            state.wishes.remove(vni)
        });
    }

    /// Whether the VNI is wanted.
    pub fn is_subscribed(&self, vni: u32) -> bool {
        self.shared.lock().wishes.contains(vni)
    }

    /// Wants a route announced at every server. Idempotent. A subscription to the VNI is not needed.
    pub fn announce(&self, vni: u32, destination: Destination, next_hop: NextHop) {
        let route = Route {
            vni,
            destination,
            next_hop,
        };
        self.change(|state| {
            state.own.announce(state.announcer, &route);
            state.rib.add_own(&route);
            false
        });
    }

    /// No longer wants a route announced. Idempotent.
    pub fn withdraw(&self, vni: u32, destination: Destination, next_hop: NextHop) {
        let route = Route {
            vni,
            destination,
            next_hop,
        };
        self.change(|state| {
            state.own.withdraw(state.announcer, &route);
            state.rib.remove_own(&route);
            false
        });
    }

    /// Whether the route is wanted announced.
    pub fn is_announced(&self, vni: u32, destination: Destination, next_hop: NextHop) -> bool {
        self.shared.lock().own.contains(&Route {
            vni,
            destination,
            next_hop,
        })
    }

    /// The merged table as it is now, in no order.
    pub fn routes(&self) -> Vec<Route> {
        self.shared.lock().rib.routes().collect()
    }

    /// The servers, in configured order.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let state = self.shared.lock();
        let status = |server: &ServerEntry| PeerStatus {
            address: server.address.clone(),
            established: server.session.is_some(),
            sessions: server.sessions,
            in_sync: server.in_sync,
        };
        state.servers.iter().map(status).collect()
    }

    /// Applies a change of the wishes; it says whether subscriptions changed.
    fn change(&self, apply: impl FnOnce(&mut ClientState) -> bool) {
        let mut state = self.shared.lock();
        if apply(&mut state) {
            for server in &mut state.servers {
                server.in_sync = false;
                server.signal.wake();
            }
        }
        state.pass_on(&self.shared.pending);
    }
}

/// What all sessions share.
struct Shared {
    state: Mutex<ClientState>,
    /// The merged table has something for the user.
    pending: Notify,
    clock: Clock,
}

struct ClientState {
    wishes: Wishes,
    /// Own announcements: `announcer` supplies them, each session is told them.
    own: Hub,
    announcer: PeerId,
    rib: Rib,
    servers: Vec<ServerEntry>,
}

struct ServerEntry {
    address: String,
    session: Option<Session>,
    sessions: u64,
    in_sync: bool,
    signal: Arc<Signal>,
    since: Duration,
}

impl ServerEntry {
    fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            session: None,
            sessions: 0,
            in_sync: false,
            signal: Arc::default(),
            since: Duration::ZERO,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, ClientState> {
        // Poisoned only if a thread panicked inside; the tables' operations keep them usable at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientState {
    fn accepts(&self, server: Server, route: &Route) -> bool {
        let session = self.servers[server as usize].session.as_ref();
        session.is_some_and(|session| session.accepts(route.vni, &self.wishes))
    }

    /// Wakes whom the last change concerns.
    fn pass_on(&mut self, pending: &Notify) {
        for id in self.own.take_woken() {
            let of_session =
                |server: &&mut ServerEntry| server.session.as_ref().is_some_and(|s| s.id() == id);
            if let Some(server) = self.servers.iter_mut().find(of_session) {
                server.in_sync = false;
                server.signal.wake();
            }
        }
        if self.rib.has_pending() {
            pending.notify_one();
        }
    }
}

/// Runs all sessions and the delivery of events until cancelled.
async fn supervise(
    shared: Arc<Shared>,
    config: Config,
    addresses: Vec<String>,
    events: mpsc::Sender<RouteEvent>,
    cancel: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    for (server, address) in addresses.into_iter().enumerate() {
        let session = ServerTask {
            shared: Arc::clone(&shared),
            config: config.clone(),
            server: server as Server,
            address,
        };
        tasks.spawn(session.run(cancel.clone()));
    }
    tasks.spawn(deliver(shared, events, cancel));
    while tasks.join_next().await.is_some() {}
}

/// Passes changes of the merged table to the user, at its pace.
async fn deliver(shared: Arc<Shared>, events: mpsc::Sender<RouteEvent>, cancel: CancellationToken) {
    loop {
        let permit = tokio::select! {
            () = cancel.cancelled() => return,
            permit = events.reserve() => permit,
        };
        let Ok(permit) = permit else { return };
        let event = shared.lock().rib.next_event();
        match event {
            Some(event) => permit.send(event),
            None => {
                drop(permit);
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = shared.pending.notified() => {}
                }
            }
        }
    }
}

/// Keeps up the session with one server.
struct ServerTask {
    shared: Arc<Shared>,
    config: Config,
    server: Server,
    address: String,
}

impl ServerTask {
    async fn run(self, cancel: CancellationToken) {
        let mut redial = Redial::default();
        let mut release_at: Option<Duration> = None;
        loop {
            let connected = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(&self.address));
            let connected = tokio::select! {
                () = cancel.cancelled() => return,
                connected = self.with_release(&mut release_at, connected) => connected,
            };
            match connected {
                Ok(Ok(stream)) => {
                    let start = self.shared.clock.now();
                    let established = self.session(stream, &mut release_at, &cancel).await;
                    // A server that takes sessions only to drop them gets no quick retries.
                    if established && self.shared.clock.now() - start > PAUSE_MAX {
                        redial = Redial::default();
                    }
                }
                Ok(Err(error)) => info!(server = %self.address, "cannot connect: {error}"),
                Err(_) => info!(server = %self.address, "cannot connect: timed out"),
            }
            let pause = redial.pause(rand::rng().random());
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.with_release(&mut release_at, tokio::time::sleep(pause)) => {}
            }
        }
    }

    /// Runs one connection to its end; whether it had become a session. Routes of the session before are held until
    /// `release_at`, which a new session puts off once.
    async fn session(
        &self,
        stream: TcpStream,
        release_at: &mut Option<Duration>,
        cancel: &CancellationToken,
    ) -> bool {
        let clock = self.shared.clock;
        let settings = Settings {
            keepalive_s: u32::try_from(self.config.keepalive.as_secs()).unwrap_or(u32::MAX),
            capabilities: if self.config.extensions {
                Capabilities::STREAM
            } else {
                Capabilities::default()
            },
            node: if self.config.extensions {
                self.config.node.clone()
            } else {
                String::new()
            },
        };
        let peer = Peer::new(Role::Client, settings, clock.now());
        let signal = Arc::<Signal>::default();
        let established = Notify::new();
        let mut backend = ClientBackend {
            shared: &self.shared,
            server: self.server,
            signal: &signal,
            established: &established,
            address: &self.address,
        };
        let connection = driver::run(
            stream,
            peer,
            &mut backend,
            Arc::clone(&signal),
            clock,
            cancel,
        );
        let mut connection = std::pin::pin!(connection);
        let closed = tokio::select! {
            closed = self.with_release(release_at, &mut connection) => Some(closed),
            () = established.notified() => None,
        };
        if let Some(closed) = closed {
            info!(server = %self.address, "no session: {closed}");
            return false;
        }
        // What the last session supplied has from now on the hold time to appear again.
        if release_at.is_some() {
            *release_at = Some(clock.now() + self.config.hold_time);
        }
        let closed = self.with_release(release_at, &mut connection).await;
        let now = clock.now();
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let entry = &mut state.servers[self.server as usize];
        entry.in_sync = false;
        if let Some(session) = entry.session.take() {
            state.own.disconnect(session.id(), now, Duration::ZERO);
            state.own.sweep(now);
        }
        state.rib.hold(self.server);
        drop(guard);
        *release_at = Some(now + self.config.hold_time);
        warn!(server = %self.address, "session lost: {closed}");
        true
    }

    /// Waits for `work`, and releases held routes when their time comes meanwhile.
    async fn with_release<T>(
        &self,
        release_at: &mut Option<Duration>,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        if let Some(at) = *release_at {
            tokio::select! {
                result = &mut work => return result,
                () = tokio::time::sleep_until(self.shared.clock.at(at)) => {}
            }
            *release_at = None;
            let mut state = self.shared.lock();
            state.rib.release(self.server);
            state.pass_on(&self.shared.pending);
        }
        work.await
    }
}

struct ClientBackend<'a> {
    shared: &'a Shared,
    server: Server,
    signal: &'a Arc<Signal>,
    established: &'a Notify,
    address: &'a str,
}

impl Backend for ClientBackend<'_> {
    fn apply(&mut self, peer: &Peer, events: &mut Vec<Event>, now: Duration) {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        for event in events.drain(..) {
            match event {
                Event::Established => {
                    let id = state
                        .own
                        .connect("", Interest::Everything, now, Duration::ZERO);
                    let entry = &mut state.servers[self.server as usize];
                    entry.session = Some(Session::new(id, peer.is_stream()));
                    entry.sessions += 1;
                    entry.signal = Arc::clone(self.signal);
                    entry.since = now;
                    self.established.notify_one();
                    info!(server = %self.address, "session established");
                }
                Event::Update(update) if !state.accepts(self.server, &update.route) => {}
                Event::Update(update) => match update.action {
                    Action::Add => state.rib.learn(self.server, &update.route),
                    Action::Remove => state.rib.forget(self.server, &update.route),
                },
                // A server has no business to subscribe here; only accepted peers greet or restart.
                Event::Subscribe(_) | Event::Unsubscribe(_) | Event::Greeted | Event::Restarted => {
                }
            }
        }
        state.pass_on(&self.shared.pending);
    }

    fn fill(
        &mut self,
        peer: &mut Peer,
        out: &mut Vec<u8>,
        bytes_max: usize,
        now: Duration,
    ) -> Fill {
        let mut guard = self.shared.lock();
        let ClientState {
            wishes,
            own,
            servers,
            ..
        } = &mut *guard;
        let entry = &mut servers[self.server as usize];
        let Some(session) = &mut entry.session else {
            return Fill::Idle;
        };
        let filled = session.fill(wishes, own, peer, now, out, bytes_max);
        entry.in_sync = filled == Fill::Idle;
        filled
    }
}

impl status::Source for Shared {
    fn routes_from(&self, start: u32, _max: u32, routes: &mut Vec<Route>) -> Option<u32> {
        // Hash tables cannot be resumed; a client's table is small.
        if start == 0 {
            routes.extend(self.lock().rib.routes());
        }
        None
    }

    fn peers(&self) -> Vec<status::PeerRow> {
        let now = self.clock.now();
        let state = self.lock();
        let row = |server: &ServerEntry| {
            let established = server.session.is_some();
            let own = server
                .session
                .as_ref()
                .and_then(|session| state.own.peer_info(session.id()));
            status::PeerRow {
                peer: server.address.clone(),
                direction: "OUTGOING",
                node: String::new(),
                state: if established {
                    State::Established.name()
                } else {
                    "CONNECTING"
                },
                age_s: if established {
                    (now - server.since).as_secs()
                } else {
                    0
                },
                paced: false,
                routes: state.own.routes_len(),
                held: 0,
                subscriptions: state.wishes.vnis().collect(),
                backlog: own.map_or(0, |info| info.backlog),
                received_bytes: server.signal.received.load(Ordering::Relaxed),
                sent_bytes: server.signal.sent.load(Ordering::Relaxed),
            }
        };
        state.servers.iter().map(row).collect()
    }

    fn metrics(&self) -> Vec<status::Metric> {
        let state = self.lock();
        let established = state
            .servers
            .iter()
            .filter(|server| server.session.is_some())
            .count();
        vec![
            status::gauge("routes", state.rib.len() as u64),
            status::gauge("own_routes", state.own.routes_len() as u64),
            status::gauge("subscriptions", state.wishes.vnis().len() as u64),
            status::gauge("servers", state.servers.len() as u64),
            status::gauge("servers_established", established as u64),
            status::counter("sessions", state.servers.iter().map(|s| s.sessions).sum()),
            status::counter("routes_refused", state.rib.refused()),
        ]
    }
}
