//! The hub against a naive model: whatever happens, a subscriber that is allowed to drain ends with exactly the routes that
//! somebody else supplies in the VNIs that it subscribes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metalbond::Route;
use metalbond::codec::{Action, Message};
use metalbond::hub::{Hub, Interest, Limits, PeerId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{hop, messages, numbered, route};

const HOLD: Duration = Duration::from_secs(10);

/// What one connected peer did, and what it was told.
struct Peer {
    id: PeerId,
    node: String,
    supplies: BTreeSet<Route>,
    subscribes: BTreeSet<u32>,
    told: BTreeSet<Route>,
}

impl Peer {
    fn read(&mut self, hub: &mut Hub, bytes_max: usize) -> bool {
        let mut out = Vec::new();
        let more = hub.fill(self.id, &mut out, bytes_max);
        for message in messages(&out) {
            let Message::Update(update) = message else {
                panic!("{message:?}")
            };
            match update.action {
                Action::Add => self.told.insert(update.route),
                Action::Remove => self.told.remove(&update.route),
            };
        }
        more
    }
}

struct World {
    hub: Hub,
    now: Duration,
    peers: Vec<Peer>,
    /// Routes of lost connections of named nodes, until a time.
    held: BTreeMap<String, (Duration, BTreeSet<Route>)>,
    names: u32,
}

impl World {
    fn new() -> Self {
        Self {
            hub: Hub::new(Limits::default()),
            now: Duration::ZERO,
            peers: Vec::new(),
            held: BTreeMap::new(),
            names: 0,
        }
    }

    fn connect(&mut self, node: String) {
        let id = self
            .hub
            .connect(&node, Interest::Subscribed, self.now, HOLD);
        if let Some((until, _)) = self.held.get_mut(&node) {
            *until = self.now + HOLD;
        }
        let (supplies, subscribes, told) = Default::default();
        self.peers.push(Peer {
            id,
            node,
            supplies,
            subscribes,
            told,
        });
    }

    fn disconnect(&mut self, index: usize) {
        let peer = self.peers.swap_remove(index);
        self.hub.disconnect(peer.id, self.now, HOLD);
        if !peer.node.is_empty() {
            let held = self
                .held
                .entry(peer.node)
                .or_insert((self.now + HOLD, BTreeSet::new()));
            held.0 = self.now + HOLD;
            held.1.extend(peer.supplies);
        }
    }

    fn sweep(&mut self) {
        while self.hub.sweep(self.now) {}
        let now = self.now;
        self.held.retain(|_, (until, _)| *until > now);
    }

    /// Everything that `node` supplies, now or by what is held for it.
    fn supplied_by(&self, peer: &Peer) -> BTreeSet<Route> {
        let mut supplied = peer.supplies.clone();
        if let Some((_, held)) = self.held.get(&peer.node) {
            supplied.extend(held);
        }
        supplied
    }

    fn check(&mut self, seed: u64) {
        let mut suppliers: BTreeMap<Route, BTreeSet<String>> = BTreeMap::new();
        for (index, peer) in self.peers.iter().enumerate() {
            let name = if peer.node.is_empty() {
                format!("#{index}")
            } else {
                peer.node.clone()
            };
            for route in self.supplied_by(peer) {
                suppliers.entry(route).or_default().insert(name.clone());
            }
        }
        for (node, (_, held)) in &self.held {
            for route in held {
                suppliers.entry(*route).or_default().insert(node.clone());
            }
        }
        assert_eq!(self.hub.routes_len(), suppliers.len(), "seed {seed}");
        for (index, peer) in self.peers.iter().enumerate() {
            let name = if peer.node.is_empty() {
                format!("#{index}")
            } else {
                peer.node.clone()
            };
            let expected: BTreeSet<Route> = suppliers
                .iter()
                .filter(|(route, _)| peer.subscribes.contains(&route.vni))
                .filter(|(_, names)| names.iter().any(|other| *other != name))
                .map(|(route, _)| *route)
                .collect();
            assert_eq!(peer.told, expected, "seed {seed}, peer {name}");
        }
        assert_eq!(
            self.hub.withdrawn_len(),
            0,
            "seed {seed}: all have been told"
        );
    }
}

fn step(world: &mut World, rng: &mut StdRng, universe: u32) {
    let vni = rng.random_range(1..4);
    let choice = rng.random_range(0..100);
    if world.peers.is_empty() || (choice < 3 && world.peers.len() < 8) {
        let node = if rng.random() {
            String::new()
        } else {
            world.names += 1;
            format!("node-{}", world.names % 6)
        };
        if node.is_empty() || world.peers.iter().all(|peer| peer.node != node) {
            world.connect(node);
        }
        return;
    }
    let index = rng.random_range(0..world.peers.len());
    let peer = &mut world.peers[index];
    match choice {
        3..5 => world.disconnect(index),
        5..10 => {
            peer.subscribes.insert(vni);
            world.hub.subscribe(peer.id, vni);
        }
        10..12 => {
            if peer.subscribes.remove(&vni) {
                peer.told.retain(|route| route.vni != vni);
            }
            world.hub.unsubscribe(peer.id, vni);
        }
        12..14 => {
            world.now += Duration::from_secs(rng.random_range(0..8));
            world.sweep();
        }
        14..40 => {
            let large = rng.random();
            let bytes_max = if large {
                64 * 1024
            } else {
                rng.random_range(0..600)
            };
            peer.read(&mut world.hub, bytes_max);
        }
        40..75 => {
            let route = numbered(vni, rng.random_range(0..universe));
            peer.supplies.insert(route);
            world.hub.announce(peer.id, &route);
        }
        _ => {
            let route = numbered(vni, rng.random_range(0..universe));
            peer.supplies.remove(&route);
            world.hub.withdraw(peer.id, &route);
            if let Some((_, held)) = world.held.get_mut(&peer.node) {
                held.remove(&route);
            }
        }
    }
}

fn drain(world: &mut World) {
    let World { hub, peers, .. } = world;
    for peer in peers.iter_mut() {
        while peer.read(hub, 64 * 1024) {}
    }
    assert!(hub.take_evicted().is_empty());
}

#[test]
fn every_reader_ends_with_what_others_supply() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new();
        let universe = [3, 30, 3000][seed as usize % 3];
        for _ in 0..rng.random_range(1..6) {
            for _ in 0..rng.random_range(1..1500) {
                step(&mut world, &mut rng, universe);
            }
            world.sweep();
            drain(&mut world);
            world.check(seed);
        }
        while !world.peers.is_empty() {
            world.disconnect(0);
        }
        world.now += HOLD;
        world.sweep();
        assert_eq!(
            (world.hub.routes_len(), world.hub.vnis_len()),
            (0, 0),
            "seed {seed}"
        );
    }
}

fn connect(hub: &mut Hub) -> PeerId {
    hub.connect("", Interest::Subscribed, Duration::ZERO, HOLD)
}

fn told(hub: &mut Hub, id: PeerId) -> Vec<Message> {
    let mut out = Vec::new();
    while hub.fill(id, &mut out, 1 << 20) {}
    messages(&out)
}

#[test]
fn nobody_is_told_of_its_own_routes() {
    let mut hub = Hub::new(Limits::default());
    let (a, b) = (connect(&mut hub), connect(&mut hub));
    let shared = route(1, "10.0.0.0/24", hop(1));
    for id in [a, b] {
        hub.subscribe(id, 1);
    }
    hub.announce(a, &shared);
    assert_eq!(told(&mut hub, a), []);
    assert_eq!(told(&mut hub, b), [crate::support::add(shared)]);
    // A second supplier is news for the first only, and its loss too.
    hub.announce(b, &shared);
    assert_eq!(told(&mut hub, a), [crate::support::add(shared)]);
    assert_eq!(told(&mut hub, b), []);
    hub.withdraw(a, &shared);
    assert_eq!(told(&mut hub, a), []);
    assert_eq!(told(&mut hub, b), [crate::support::remove(shared)]);
    hub.withdraw(b, &shared);
    assert_eq!(told(&mut hub, a), [crate::support::remove(shared)]);
}

#[test]
fn hosts_that_share_an_address_learn_each_other() {
    let mut hub = Hub::new(Limits::default());
    let (a, b) = (connect(&mut hub), connect(&mut hub));
    let nat = |last: u16, from: u16| {
        let addr = format!("fd00::{last}").parse().unwrap();
        route(
            7,
            "45.86.6.6/32",
            metalbond::NextHop::nat(addr, from, from + 1023),
        )
    };
    for id in [a, b] {
        hub.subscribe(id, 7);
    }
    hub.announce(a, &nat(1, 1024));
    hub.announce(b, &nat(2, 2048));
    assert_eq!(told(&mut hub, a), [crate::support::add(nat(2, 2048))]);
    assert_eq!(told(&mut hub, b), [crate::support::add(nat(1, 1024))]);
}

#[test]
fn unsubscribing_keeps_announcements() {
    let mut hub = Hub::new(Limits::default());
    let (a, b) = (connect(&mut hub), connect(&mut hub));
    hub.subscribe(a, 1);
    hub.announce(a, &numbered(1, 1));
    hub.unsubscribe(a, 1);
    hub.subscribe(b, 1);
    assert_eq!(told(&mut hub, b).len(), 1);
    // A repeated subscription is a wish to hear everything again.
    hub.subscribe(b, 1);
    assert_eq!(told(&mut hub, b).len(), 1);
}

#[test]
fn a_restarted_node_disturbs_nobody() {
    let mut hub = Hub::new(Limits::default());
    let watcher = connect(&mut hub);
    hub.subscribe(watcher, 1);
    let node = |hub: &mut Hub, now| hub.connect("host", Interest::Subscribed, now, HOLD);
    let first = node(&mut hub, Duration::ZERO);
    for index in 0..100 {
        hub.announce(first, &numbered(1, index));
    }
    assert_eq!(told(&mut hub, watcher).len(), 100);
    let lost = Duration::from_secs(60);
    hub.disconnect(first, lost, HOLD);
    let second = node(&mut hub, lost + Duration::from_secs(3));
    hub.subscribe(second, 1);
    for index in 0..90 {
        hub.announce(second, &numbered(1, index));
    }
    hub.sweep(lost + Duration::from_secs(12));
    assert_eq!(told(&mut hub, watcher), []);
    assert_eq!(
        told(&mut hub, second),
        [],
        "its own earlier routes are still its own"
    );
    // Ten were not announced again.
    hub.sweep(lost + Duration::from_secs(13));
    assert_eq!(told(&mut hub, watcher).len(), 10);
    assert_eq!(hub.counters().swept, 10);
    // A third connection while the second still counts as connected supersedes it.
    let third = node(&mut hub, lost + Duration::from_secs(20));
    assert_eq!(hub.take_evicted(), [second]);
    hub.withdraw(second, &numbered(1, 0));
    hub.withdraw(third, &numbered(1, 1));
    assert_eq!(
        told(&mut hub, watcher),
        [crate::support::remove(numbered(1, 1))]
    );
}

#[test]
fn a_reader_that_stands_still_costs_nothing_and_ends_right() {
    let mut hub = Hub::new(Limits::default());
    let (announcer, fast, slow) = (connect(&mut hub), connect(&mut hub), connect(&mut hub));
    for id in [fast, slow] {
        hub.subscribe(id, 1);
    }
    for round in 0..1000 {
        for index in 0..100 {
            hub.announce(announcer, &numbered(1, index));
        }
        for index in 0..100 {
            if round < 999 || index % 2 == 0 {
                hub.withdraw(announcer, &numbered(1, index));
            }
        }
        told(&mut hub, fast);
        assert!(hub.withdrawn_len() <= 100);
        let info = hub.peer_info(slow).unwrap();
        assert!(info.backlog < 1000, "{info:?}");
    }
    // 200,000 changes later it is told the present in one go.
    let news = told(&mut hub, slow);
    assert!(news.len() <= 100, "{}", news.len());
    assert_eq!(
        news.iter()
            .filter(|m| matches!(m, Message::Update(u) if u.action == Action::Add))
            .count(),
        50
    );
}

#[test]
fn too_many_withdrawn_routes_cost_the_reader_its_connection() {
    let limits = Limits {
        withdrawn_max: 1000,
        ..Limits::default()
    };
    let mut hub = Hub::new(limits);
    let (announcer, slow) = (connect(&mut hub), connect(&mut hub));
    hub.subscribe(slow, 1);
    let mut evicted = Vec::new();
    for index in 0..10_000 {
        hub.announce(announcer, &numbered(1, index));
        hub.withdraw(announcer, &numbered(1, index));
        evicted.extend(hub.take_evicted());
        if let Some(&id) = evicted.first() {
            hub.disconnect(id, Duration::ZERO, HOLD);
        }
        assert!(hub.withdrawn_len() < 4000);
    }
    assert_eq!(evicted, [slow]);
    assert_eq!(hub.counters().evicted, 1);
    assert_eq!(hub.withdrawn_len(), 0);
}

#[test]
fn limits_refuse_and_count() {
    let limits = Limits {
        routes_max: 10,
        peer_routes_max: 6,
        peer_subscriptions_max: 2,
        ..Limits::default()
    };
    let mut hub = Hub::new(limits);
    let (a, b) = (connect(&mut hub), connect(&mut hub));
    for index in 0..20 {
        hub.announce(a, &numbered(1, index));
        hub.announce(b, &numbered(1, 100 + index));
    }
    assert_eq!(hub.routes_len(), 10);
    assert_eq!(hub.counters().routes_refused, 30);
    // What is there may be repeated and withdrawn.
    hub.announce(a, &numbered(1, 0));
    hub.withdraw(a, &numbered(1, 0));
    assert_eq!((hub.counters().repeated, hub.counters().withdrawn), (1, 1));
    for vni in 0..5 {
        hub.subscribe(a, vni);
    }
    assert_eq!(hub.counters().subscriptions_refused, 3);
}
