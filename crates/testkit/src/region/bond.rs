//! metalbond without sockets: the real hub, peer, session and table machines over pipes that cut, delay and break.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use metalbond::codec::Action;
use metalbond::hub::{Hub, Interest, Limits, PeerId};
use metalbond::peer::{Event, Peer, Role, Settings, State};
use metalbond::rib::Rib;
use metalbond::session::{Fill, Session, Wishes};
use metalbond::{OwnRoutes, Route, RouteEvent};
use rand::Rng;
use rand::rngs::StdRng;

/// How long routes of a lost session are kept, on both sides.
pub const HOLD: Duration = Duration::from_secs(10);
/// Longest pause before a client dials again.
const REDIAL_MAX_MS: u64 = 2_000;
/// Bytes in a pipe beyond which nothing more is written.
const PIPE_MAX: usize = 16_384;

/// A metalbond server.
pub struct Server {
    hub: Hub,
    pub up: bool,
}

impl Default for Server {
    fn default() -> Server {
        Server {
            hub: Hub::new(Limits::default()),
            up: true,
        }
    }
}

impl Server {
    /// Routes that it knows.
    pub fn routes_len(&self) -> usize {
        self.hub.routes_len()
    }

    pub fn next_deadline(&self) -> Option<Duration> {
        self.hub.next_deadline()
    }

    pub fn sweep(&mut self, now: Duration) {
        while self.hub.sweep(now) {}
    }
}

struct Connection {
    dialled: Peer,
    accepted: Peer,
    session: Option<Session>,
    in_sync: bool,
    in_hub: Option<PeerId>,
    up: VecDeque<u8>,
    down: VecDeque<u8>,
}

#[derive(Default)]
struct Line {
    connection: Option<Connection>,
    dial_at: Duration,
    release_at: Option<Duration>,
    /// Something may have to be said.
    stirred: bool,
    /// Bytes wait, and more may be said: they move only when this is set.
    lossless_at: Duration,
}

/// A metalbond client: its wishes, its merged table, its connection to each server.
pub struct Client {
    node: String,
    rib: Rib,
    own: Hub,
    announcer: PeerId,
    pub announced: BTreeSet<Route>,
    wishes: Wishes,
    lines: Vec<Line>,
}

/// How the connections of a client are together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    None,
    Catching,
    Synced,
}

impl Client {
    pub fn new(node: &str, servers: usize) -> Client {
        let mut own = Hub::new(Limits::default());
        let announcer = own.connect("", Interest::Subscribed, Duration::ZERO, Duration::ZERO);
        Client {
            node: node.to_owned(),
            rib: Rib::new(OwnRoutes::Identical),
            own,
            announcer,
            announced: BTreeSet::new(),
            wishes: Wishes::default(),
            lines: (0..servers).map(|_| Line::default()).collect(),
        }
    }

    pub fn subscribe(&mut self, vni: u32) {
        self.rib.subscribe(vni);
        self.wishes.insert(vni);
        self.stir(true);
    }

    pub fn unsubscribe(&mut self, vni: u32) {
        self.rib.unsubscribe(vni);
        self.wishes.remove(vni);
        self.stir(true);
    }

    pub fn announce(&mut self, route: Route) {
        self.own.announce(self.announcer, &route);
        self.rib.add_own(&route);
        self.announced.insert(route);
        self.stir(true);
    }

    pub fn withdraw(&mut self, route: &Route) {
        self.own.withdraw(self.announcer, route);
        self.rib.remove_own(route);
        self.announced.remove(route);
        self.stir(true);
    }

    fn stir(&mut self, new: bool) {
        for line in &mut self.lines {
            line.stirred = true;
            if let (Some(connection), true) = (&mut line.connection, new) {
                connection.in_sync = false;
            }
        }
    }

    pub fn reach(&self) -> Reach {
        let connections = self
            .lines
            .iter()
            .filter_map(|line| line.connection.as_ref());
        let established = connections.filter(|connection| connection.session.is_some());
        established.fold(Reach::None, |reach, connection| {
            match (reach, connection.in_sync) {
                (Reach::Synced, _) | (_, true) => Reach::Synced,
                _ => Reach::Catching,
            }
        })
    }

    /// What changed in the merged table. Sorted, because the tables have no order of their own.
    pub fn events(&mut self) -> Vec<RouteEvent> {
        let mut events: Vec<RouteEvent> = std::iter::from_fn(|| self.rib.next_event()).collect();
        events.sort_by_cached_key(|event| format!("{event:?}"));
        events
    }

    /// Whether a connection has something to do at once.
    pub fn is_busy(&self, server: usize, now: Duration) -> bool {
        let Some(line) = self.lines.get(server) else {
            return false;
        };
        match &line.connection {
            Some(connection) => {
                let waits = !connection.up.is_empty() || !connection.down.is_empty();
                let due = self.deadline(server).is_some_and(|at| at <= now);
                line.stirred || due || (waits && line.lossless_at <= now)
            }
            None => line.dial_at <= now,
        }
    }

    /// When a connection has something to do although nothing happens.
    pub fn deadline(&self, server: usize) -> Option<Duration> {
        let line = self.lines.get(server)?;
        let of_connection = match &line.connection {
            Some(connection) => {
                let waits = !connection.up.is_empty() || !connection.down.is_empty();
                let waits = waits.then_some(line.lossless_at);
                let peers = [&connection.dialled, &connection.accepted];
                let peers = peers.iter().filter_map(|peer| peer.next_deadline());
                peers.chain(waits).min()
            }
            None => Some(line.dial_at),
        };
        of_connection.into_iter().chain(line.release_at).min()
    }

    /// What was said waits until then on its way to and from a server.
    pub fn delay(&mut self, server: usize, until: Duration) {
        if let Some(line) = self.lines.get_mut(server) {
            line.lossless_at = until;
        }
    }

    /// The connection breaks: what was under way is lost.
    pub fn cut(&mut self, server: usize, hub: &mut Server, now: Duration, rng: &mut StdRng) {
        let Some(line) = self.lines.get_mut(server) else {
            return;
        };
        line.dial_at = now + Duration::from_millis(rng.random_range(50..REDIAL_MAX_MS));
        let Some(connection) = line.connection.take() else {
            return;
        };
        if let Some(id) = connection.in_hub {
            hub.hub.disconnect(id, now, HOLD);
        }
        if let Some(session) = connection.session {
            self.own.disconnect(session.id(), now, Duration::ZERO);
            self.own.sweep(now);
            self.rib.hold(server as u32);
            line.release_at = Some(now + HOLD);
        }
    }

    /// Moves some bytes between this client and a server. Returns whether other clients of the server must be looked at.
    pub fn pump(&mut self, server: usize, hub: &mut Server, now: Duration, rng: &mut StdRng) {
        let Some(line) = self.lines.get_mut(server) else {
            return;
        };
        if line.release_at.is_some_and(|at| at <= now) {
            line.release_at = None;
            self.rib.release(server as u32);
        }
        if line.connection.is_none() {
            if line.dial_at > now || !hub.up {
                if line.dial_at <= now {
                    line.dial_at = now + Duration::from_millis(rng.random_range(50..REDIAL_MAX_MS));
                }
                return;
            }
            line.connection = Some(Connection::dial(&self.node, now));
            line.stirred = true;
        }
        let Some(connection) = &mut line.connection else {
            return;
        };
        let may_read = line.lossless_at <= now;
        let up = if may_read {
            some(&mut connection.up, rng)
        } else {
            Vec::new()
        };
        let served = connection.serve(&up, hub, now);
        let down = if may_read {
            some(&mut connection.down, rng)
        } else {
            Vec::new()
        };
        let mut heard = Vec::new();
        let alive = connection.dialled.recv(&down, now, &mut heard).is_ok()
            && connection.dialled.poll(now).is_ok();
        for event in heard {
            match event {
                Event::Established => {
                    let id = self
                        .own
                        .connect("", Interest::Everything, now, Duration::ZERO);
                    let is_ours = connection.dialled.is_stream();
                    connection.session = Some(Session::new(id, is_ours));
                    if let Some(release_at) = &mut line.release_at {
                        *release_at = now + HOLD;
                    }
                }
                Event::Update(update) => {
                    let session = connection.session.as_ref();
                    if session.is_some_and(|s| s.accepts(update.route.vni, &self.wishes)) {
                        match update.action {
                            Action::Add => self.rib.learn(server as u32, &update.route),
                            Action::Remove => self.rib.forget(server as u32, &update.route),
                        }
                    }
                }
                Event::Greeted | Event::Restarted | Event::Subscribe(_) | Event::Unsubscribe(_) => {
                }
            }
        }
        let mut out = Vec::new();
        connection.dialled.take_control(&mut out);
        let mut more = false;
        if let Some(session) = &mut connection.session {
            if connection.up.len() < PIPE_MAX {
                let dialled = &mut connection.dialled;
                let filled =
                    session.fill(&self.wishes, &mut self.own, dialled, now, &mut out, 4_096);
                connection.in_sync = filled == Fill::Idle;
                more = filled == Fill::More;
            } else {
                more = true;
            }
        }
        connection.up.extend(out);
        line.stirred = more || served == Served::More;
        if !alive || served == Served::Dead {
            self.cut(server, hub, now, rng);
        }
    }

    /// The server has news for somebody: all its connections look.
    pub fn nudge(&mut self, server: usize) {
        if let Some(line) = self.lines.get_mut(server) {
            line.stirred |= line.connection.is_some();
        }
    }
}

/// Whether a server's hub has woken anybody since the last call.
pub fn woken(server: &mut Server) -> bool {
    !server.hub.take_woken().is_empty() | !server.hub.take_evicted().is_empty()
}

#[derive(PartialEq, Eq)]
enum Served {
    Idle,
    More,
    Dead,
}

impl Connection {
    fn dial(node: &str, now: Duration) -> Connection {
        let settings = |node: &str| Settings {
            keepalive_s: 3,
            node: node.to_owned(),
            ..Settings::default()
        };
        Connection {
            dialled: Peer::new(Role::Client, settings(node), now),
            accepted: Peer::new(Role::Server, settings(""), now),
            session: None,
            in_sync: false,
            in_hub: None,
            up: VecDeque::new(),
            down: VecDeque::new(),
        }
    }

    /// The server's end.
    fn serve(&mut self, bytes: &[u8], server: &mut Server, now: Duration) -> Served {
        let hub = &mut server.hub;
        let mut events = Vec::new();
        let received = self.accepted.recv(bytes, now, &mut events);
        for event in events {
            match (event, self.in_hub) {
                (Event::Greeted, _) => {
                    let node = &self.accepted.hello().node;
                    self.in_hub = Some(hub.connect(node, Interest::Subscribed, now, HOLD));
                }
                (Event::Subscribe(vni), Some(id)) => hub.subscribe(id, vni),
                (Event::Unsubscribe(vni), Some(id)) => hub.unsubscribe(id, vni),
                (Event::Update(update), Some(id)) => match update.action {
                    Action::Add => hub.announce(id, &update.route),
                    Action::Remove => hub.withdraw(id, &update.route),
                },
                _ => {}
            }
        }
        if received.is_err() || self.accepted.poll(now).is_err() {
            return Served::Dead;
        }
        // Superseded by a newer connection of the same node, or too far behind.
        if self.in_hub.is_some_and(|id| !hub.is_connected(id)) {
            return Served::Dead;
        }
        let mut out = Vec::new();
        self.accepted.take_control(&mut out);
        let mut more = false;
        if let (State::Established, Some(id)) = (self.accepted.state(), self.in_hub)
            && self.down.len() < PIPE_MAX
        {
            more = hub.fill(id, &mut out, 4_096);
        }
        self.down.extend(out);
        if more { Served::More } else { Served::Idle }
    }
}

/// Some of what waits, cut anywhere.
fn some(pipe: &mut VecDeque<u8>, rng: &mut StdRng) -> Vec<u8> {
    let most = pipe.len();
    let len = if most > 1 && rng.random_ratio(1, 4) {
        rng.random_range(1..=most)
    } else {
        most
    };
    pipe.drain(..len).collect()
}
