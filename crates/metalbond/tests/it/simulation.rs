//! Clients and servers as pure machines over pipes that split, delay and cut. After quiet, each client's merged table is
//! exactly what the others announce in the VNIs that it subscribes, and its events add up to that table.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use metalbond::codec::{Action, Capabilities};
use metalbond::hub::{Hub, Interest, Limits, PeerId};
use metalbond::peer::{Event, Peer, Role, Settings, State};
use metalbond::rib::Rib;
use metalbond::session::{Session, Wishes};
use metalbond::{OwnRoutes, Route, RouteEvent};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::numbered;

const HOLD: Duration = Duration::from_secs(10);

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
}

impl Pipe {
    /// Some of what waits, cut anywhere.
    fn read(&mut self, rng: &mut StdRng) -> Vec<u8> {
        let most = self.bytes.len().min(1 << rng.random_range(0..14));
        let len = if most == 0 {
            0
        } else {
            rng.random_range(1..=most)
        };
        self.bytes.drain(..len).collect()
    }
}

struct Connection {
    client: Peer,
    server: Peer,
    session: Option<Session>,
    in_hub: Option<PeerId>,
    up: Pipe,
    down: Pipe,
}

struct Client {
    node: String,
    rib: Rib,
    own: Hub,
    announcer: PeerId,
    announced: BTreeSet<Route>,
    wishes: Wishes,
    connections: Vec<Option<Connection>>,
    release_at: Vec<Option<Duration>>,
    heard: BTreeSet<Route>,
}

impl Client {
    fn new(node: String, servers: usize) -> Self {
        let mut own = Hub::new(Limits::default());
        let announcer = own.connect("", Interest::Subscribed, Duration::ZERO, HOLD);
        Self {
            node,
            rib: Rib::new(OwnRoutes::Identical),
            own,
            announcer,
            announced: BTreeSet::new(),
            wishes: Wishes::default(),
            connections: (0..servers).map(|_| None).collect(),
            release_at: vec![None; servers],
            heard: BTreeSet::new(),
        }
    }

    fn hear(&mut self, seed: u64) {
        while let Some(event) = self.rib.next_event() {
            let strict = match event {
                RouteEvent::Added {
                    vni,
                    destination,
                    next_hop,
                } => self.heard.insert(Route {
                    vni,
                    destination,
                    next_hop,
                }),
                RouteEvent::Removed {
                    vni,
                    destination,
                    next_hop,
                } => self.heard.remove(&Route {
                    vni,
                    destination,
                    next_hop,
                }),
            };
            assert!(strict, "seed {seed}: {event:?} says nothing new");
        }
    }
}

struct World {
    rng: StdRng,
    now: Duration,
    hubs: Vec<Hub>,
    clients: Vec<Client>,
    ours: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let servers = rng.random_range(1..=3);
        let clients = (0..rng.random_range(1..=5))
            .map(|index| {
                let node = if index % 2 == 0 {
                    format!("node-{index}")
                } else {
                    String::new()
                };
                Client::new(node, servers)
            })
            .collect();
        Self {
            rng,
            now: Duration::from_secs(1),
            hubs: (0..servers).map(|_| Hub::new(Limits::default())).collect(),
            clients,
            ours: seed.is_multiple_of(2),
        }
    }

    fn settings(&self, node: &str) -> Settings {
        let capabilities = if self.ours {
            Capabilities::STREAM
        } else {
            Capabilities::default()
        };
        Settings {
            keepalive_s: 3,
            capabilities,
            node: node.to_owned(),
        }
    }

    fn dial(&mut self, client: usize, server: usize) {
        if self.clients[client].connections[server].is_some() {
            return;
        }
        let node = self.clients[client].node.clone();
        let connection = Connection {
            client: Peer::new(Role::Client, self.settings(&node), self.now),
            server: Peer::new(Role::Server, self.settings(""), self.now),
            session: None,
            in_hub: None,
            up: Pipe::default(),
            down: Pipe::default(),
        };
        self.clients[client].connections[server] = Some(connection);
    }

    fn cut(&mut self, client: usize, server: usize) {
        let now = self.now;
        let client = &mut self.clients[client];
        let Some(connection) = client.connections[server].take() else {
            return;
        };
        if let Some(id) = connection.in_hub {
            self.hubs[server].disconnect(id, now, HOLD);
        }
        if let Some(session) = connection.session {
            client.own.disconnect(session.id(), now, HOLD);
            client.own.sweep(now);
            client.rib.hold(server as u32);
            client.release_at[server] = Some(now + HOLD);
        }
    }

    /// Moves some bytes on one connection, both ways.
    fn pump(&mut self, client_index: usize, server: usize) {
        let Self {
            rng,
            now,
            hubs,
            clients,
            ..
        } = self;
        let (now, hub) = (*now, &mut hubs[server]);
        let client = &mut clients[client_index];
        let Some(connection) = &mut client.connections[server] else {
            return;
        };
        let Connection {
            client: dialled,
            server: accepted,
            session,
            in_hub,
            up,
            down,
        } = connection;
        let mut events = Vec::new();

        accepted
            .recv(&up.read(rng), now, &mut events)
            .expect("the client behaves");
        for event in events.drain(..) {
            match (event, *in_hub) {
                (Event::Greeted, _) => {
                    let node = &accepted.hello().node;
                    *in_hub = Some(hub.connect(node, Interest::Subscribed, now, HOLD));
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
        let mut silent = accepted.poll(now).is_err();
        let mut out = Vec::new();
        accepted.take_control(&mut out);
        if accepted.state() == State::Established
            && down.bytes.len() < 4000
            && let Some(id) = *in_hub
        {
            let bytes_max = if rng.random() {
                rng.random_range(0..2000)
            } else {
                64 * 1024
            };
            hub.fill(id, &mut out, bytes_max);
        }
        down.bytes.extend(out);

        dialled
            .recv(&down.read(rng), now, &mut events)
            .expect("the server behaves");
        for event in events {
            match event {
                Event::Established => {
                    let id = client.own.connect("", Interest::Everything, now, HOLD);
                    *session = Some(Session::new(id, dialled.is_stream()));
                    if let Some(release_at) = &mut client.release_at[server] {
                        *release_at = now + HOLD;
                    }
                }
                Event::Update(update)
                    if !session
                        .as_ref()
                        .is_some_and(|s| s.accepts(update.route.vni, &client.wishes)) => {}
                Event::Update(update) => match update.action {
                    Action::Add => client.rib.learn(server as u32, &update.route),
                    Action::Remove => client.rib.forget(server as u32, &update.route),
                },
                other => panic!("{other:?}"),
            }
        }
        silent |= dialled.poll(now).is_err();
        let mut out = Vec::new();
        dialled.take_control(&mut out);
        if let Some(session) = session
            && up.bytes.len() < 4000
        {
            let bytes_max = rng.random_range(0..2000);
            session.fill(
                &client.wishes,
                &mut client.own,
                dialled,
                now,
                &mut out,
                bytes_max,
            );
        }
        up.bytes.extend(out);
        if silent {
            self.cut(client_index, server);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for hub in &mut self.hubs {
            while hub.sweep(self.now) {}
        }
        for client in &mut self.clients {
            for (server, release_at) in client.release_at.iter_mut().enumerate() {
                if release_at.is_some_and(|at| at <= self.now) {
                    *release_at = None;
                    client.rib.release(server as u32);
                }
            }
        }
    }

    fn step(&mut self, universe: u32, seed: u64) {
        let client = self.rng.random_range(0..self.clients.len());
        let server = self.rng.random_range(0..self.hubs.len());
        let vni = self.rng.random_range(1..4);
        let index = self.rng.random_range(0..universe);
        // A next hop belongs to few hosts, so most routes have one announcer and some have several.
        let route = numbered(
            vni,
            index + universe * self.rng.random_range(0..=client as u32),
        );
        let state = &mut self.clients[client];
        match self.rng.random_range(0..100) {
            0..4 => self.dial(client, server),
            4..5 => self.cut(client, server),
            5..10 => {
                state.rib.subscribe(vni);
                state.wishes.insert(vni);
            }
            10..13 => {
                state.rib.unsubscribe(vni);
                state.wishes.remove(vni);
            }
            13..30 => {
                state.announced.insert(route);
                state.own.announce(state.announcer, &route);
                state.rib.add_own(&route);
            }
            30..42 => {
                state.announced.remove(&route);
                state.own.withdraw(state.announcer, &route);
                state.rib.remove_own(&route);
            }
            42..50 => state.hear(seed),
            50..53 => {
                let millis = self.rng.random_range(1..700);
                self.pass(Duration::from_millis(millis));
            }
            _ => self.pump(client, server),
        }
    }

    fn quiet(&mut self, seed: u64) {
        for client in 0..self.clients.len() {
            for server in 0..self.hubs.len() {
                self.dial(client, server);
            }
        }
        // 25 s in steps in which everything can be said: longer than any hold and settling time.
        for _ in 0..50 {
            for _ in 0..15 {
                for client in 0..self.clients.len() {
                    for server in 0..self.hubs.len() {
                        self.pump(client, server);
                    }
                }
            }
            self.pass(Duration::from_millis(500));
        }
        for client in &mut self.clients {
            client.hear(seed);
        }
    }

    fn check(&self, seed: u64) {
        let all: BTreeSet<Route> = self
            .clients
            .iter()
            .flat_map(|client| client.announced.iter().copied())
            .collect();
        for hub in &self.hubs {
            let mut routes = Vec::new();
            assert_eq!(hub.routes_from(0, u32::MAX, &mut routes), None);
            assert_eq!(
                routes.into_iter().collect::<BTreeSet<_>>(),
                all,
                "seed {seed}"
            );
            assert_eq!(hub.counters().routes_refused + hub.counters().evicted, 0);
        }
        for (index, client) in self.clients.iter().enumerate() {
            let expected: BTreeSet<Route> = all
                .iter()
                .filter(|route| client.wishes.contains(route.vni))
                .filter(|route| !client.announced.contains(*route))
                .copied()
                .collect();
            let table: BTreeSet<Route> = client.rib.routes().collect();
            assert_eq!(table, expected, "seed {seed}, client {index}");
            assert_eq!(
                client.heard, expected,
                "seed {seed}, events of client {index}"
            );
        }
    }
}

#[test]
fn clients_end_with_the_filtered_tables_of_the_servers() {
    for seed in 0..30 {
        let mut world = World::new(seed);
        let universe = [2, 20, 400][seed as usize % 3];
        for _ in 0..3 {
            for _ in 0..world.rng.random_range(100..3000) {
                world.step(universe, seed);
            }
            world.quiet(seed);
            world.check(seed);
        }
    }
}
