//! The server's logic: who announced what, who wants what, and what each subscriber must still be told. Pure.
//!
//! No queue of updates exists per subscriber. Each VNI has a log of changed routes and each subscriber a place in it
//! ([`feed`]); what is sent is always a route's *current* state. A reader that is slow or stands still therefore costs a
//! few bytes, delays nobody, skips intermediate states and ends with the final one.
//!
//! A subscriber sees a route if somebody other than itself supplies it. Re-announcements after a restart are recognised by
//! the node name in HELLO: routes of a named node outlive its connection by the hold time.
//!
//! The client uses the same type for its own announcements, with the servers as subscribers of everything.

mod feed;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use hashbrown::{HashMap, HashSet};

use crate::route::Route;
use crate::table::{RouteId, RouteTable};
use feed::{ChunkCache, Vni};

/// Changes that concern one peer only (somebody else supplies what it supplies too) and wait to be sent; beyond it
/// everybody is told again, which is harmless.
pub const DIRECTED_MAX: usize = 65_536;
/// Routes examined per [`Hub::sweep`].
pub const SWEEP_MAX: usize = 4096;

/// Bounds of a hub. Beyond them announcements and subscriptions are refused and counted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Routes in the table.
    pub routes_max: usize,
    /// Routes supplied by one peer.
    pub peer_routes_max: usize,
    /// VNIs subscribed by one peer.
    pub peer_subscriptions_max: usize,
    /// Withdrawn routes of one VNI that some subscriber has not been told of; beyond it (and beyond the VNI's
    /// living routes) the most distant subscriber is disconnected.
    pub withdrawn_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            routes_max: 8_000_000,
            peer_routes_max: 2_000_000,
            peer_subscriptions_max: 65_536,
            withdrawn_max: 262_144,
        }
    }
}

/// What happened so far; each only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Announcements of something new.
    pub announced: u64,
    /// Announcements of what the peer already supplies.
    pub repeated: u64,
    /// Withdrawals.
    pub withdrawn: u64,
    /// Withdrawals of what the peer does not supply.
    pub unknown_withdrawals: u64,
    /// Announcements refused because a table is full.
    pub routes_refused: u64,
    /// Subscriptions refused because the peer has too many.
    pub subscriptions_refused: u64,
    /// Updates handed out for sending.
    pub sent: u64,
    /// Routes removed because their announcer did not return in time.
    pub swept: u64,
    /// Subscribers given up because they held too many withdrawn routes.
    pub evicted: u64,
    /// Directed changes that became changes for all, see [`DIRECTED_MAX`].
    pub directed_full: u64,
}

/// A peer's place in the hub. Invalid once the peer is disconnected or superseded: calls with it then do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId {
    index: u32,
    generation: u32,
}

/// What a peer gets to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// The VNIs that it subscribes.
    Subscribed,
    /// Every VNI.
    Everything,
}

/// What a peer looks like from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Routes that it supplies.
    pub routes: usize,
    /// Of these, routes not repeated since the node's last connection was lost.
    pub held: usize,
    /// VNIs that it subscribes.
    pub subscriptions: Vec<u32>,
    /// Changes not yet handed out to it.
    pub backlog: usize,
}

struct HubPeer {
    generation: u32,
    connected: bool,
    interest: Interest,
    node: String,
    vnis: BTreeSet<u32>,
    /// Subscribed VNIs with something to send, in order of turn.
    dirty: VecDeque<u32>,
    /// Routes whose state only this peer must be told.
    directed: VecDeque<RouteId>,
    /// Whether it was reported by [`Hub::take_woken`] and has not drained since.
    awake: bool,
    /// Ids of supplied routes; may hold outdated ones and duplicates, see [`Hub::trim_announced`].
    announced: Vec<RouteId>,
    announced_len: usize,
    /// Routes of an earlier connection, not yet announced again.
    held: HashSet<RouteId>,
    /// The part of `held` that is being removed.
    sweeping: Vec<RouteId>,
    sweep_at: Option<Duration>,
}

/// See the module's description.
pub struct Hub {
    table: RouteTable,
    vnis: HashMap<u32, Vni>,
    peers: Vec<HubPeer>,
    free: Vec<u32>,
    nodes: HashMap<String, u32>,
    everything: Vec<u32>,
    chunks: ChunkCache,
    woken: Vec<PeerId>,
    evicted: Vec<PeerId>,
    limits: Limits,
    counters: Counters,
}

impl Hub {
    /// An empty hub.
    pub fn new(limits: Limits) -> Self {
        Self {
            table: RouteTable::default(),
            vnis: HashMap::new(),
            peers: Vec::new(),
            free: Vec::new(),
            nodes: HashMap::new(),
            everything: Vec::new(),
            chunks: ChunkCache::default(),
            woken: Vec::new(),
            evicted: Vec::new(),
            limits,
            counters: Counters::default(),
        }
    }

    /// A peer appears. A named node takes over the routes of its previous connection; if that one still counts as
    /// connected it is superseded and reported by [`Hub::take_evicted`]. Routes not announced again within `hold` go.
    pub fn connect(
        &mut self,
        node: &str,
        interest: Interest,
        now: Duration,
        hold: Duration,
    ) -> PeerId {
        if let Some(&index) = self.nodes.get(node) {
            let old = self.id(index);
            if self.peers[index as usize].connected {
                self.evicted.push(old);
                self.disconnect(old, now, hold);
            }
            let peer = &mut self.peers[index as usize];
            peer.connected = true;
            peer.interest = interest;
            peer.sweep_at = Some(now + hold);
            self.join_everything(index);
            return self.id(index);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.peers.push(HubPeer {
                generation: 0,
                connected: false,
                interest,
                node: String::new(),
                vnis: BTreeSet::new(),
                dirty: VecDeque::new(),
                directed: VecDeque::new(),
                awake: false,
                announced: Vec::new(),
                announced_len: 0,
                held: HashSet::new(),
                sweeping: Vec::new(),
                sweep_at: None,
            });
            (self.peers.len() - 1) as u32
        });
        let peer = &mut self.peers[index as usize];
        peer.connected = true;
        peer.interest = interest;
        peer.node = node.to_owned();
        if !node.is_empty() {
            self.nodes.insert(node.to_owned(), index);
        }
        self.join_everything(index);
        self.id(index)
    }

    /// A peer is gone. Its subscriptions end; its routes end with the next [`Hub::sweep`], those of a named node when
    /// `hold` is over.
    pub fn disconnect(&mut self, id: PeerId, now: Duration, hold: Duration) {
        let Some(index) = self.live(id) else { return };
        for vni in std::mem::take(&mut self.peers[index].vnis) {
            self.leave(index as u32, vni);
        }
        self.everything.retain(|&other| other != id.index);
        let peer = &mut self.peers[index];
        peer.connected = false;
        peer.generation = peer.generation.wrapping_add(1);
        peer.dirty = VecDeque::new();
        peer.directed = VecDeque::new();
        peer.awake = false;
        let announced = std::mem::take(&mut peer.announced);
        if peer.node.is_empty() {
            // Nobody can take them over: no need to know which of the ids are outdated.
            peer.sweeping = announced;
            peer.sweep_at = Some(now);
            return;
        }
        let table = &self.table;
        let supplied =
            |id: &RouteId| table.vni(*id).is_some() && table.sources(*id).contains(&(index as u32));
        peer.held.extend(announced.into_iter().filter(supplied));
        peer.sweep_at = Some(now + hold);
    }

    /// When [`Hub::sweep`] has something to do.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.peers.iter().filter_map(|peer| peer.sweep_at).min()
    }

    /// Removes routes whose announcer did not come back in time, at most [`SWEEP_MAX`] per call; true if more are due.
    pub fn sweep(&mut self, now: Duration) -> bool {
        let mut left = SWEEP_MAX;
        for index in 0..self.peers.len() {
            if self.peers[index].sweep_at.is_none_or(|at| at > now) {
                continue;
            }
            let peer = &mut self.peers[index];
            if peer.sweeping.is_empty() {
                peer.sweeping = peer.held.iter().copied().collect();
            }
            while left > 0
                && let Some(id) = self.peers[index].sweeping.pop()
            {
                left -= 1;
                let peer = &mut self.peers[index];
                if (peer.held.remove(&id) || peer.node.is_empty()) && self.remove_source(index, id)
                {
                    self.counters.swept += 1;
                }
            }
            let peer = &mut self.peers[index];
            if !peer.sweeping.is_empty() {
                return true;
            }
            peer.held = HashSet::new();
            peer.sweeping = Vec::new();
            peer.sweep_at = None;
            if !peer.connected {
                self.nodes.remove(&peer.node);
                peer.node = String::new();
                peer.announced_len = 0;
                self.free.push(index as u32);
            }
        }
        false
    }

    /// A peer wants a VNI. If it has it already, it is told everything again.
    pub fn subscribe(&mut self, id: PeerId, vni: u32) {
        let Some(index) = self.live(id) else { return };
        let peer = &mut self.peers[index];
        if peer.vnis.len() >= self.limits.peer_subscriptions_max && !peer.vnis.contains(&vni) {
            self.counters.subscriptions_refused += 1;
            return;
        }
        peer.vnis.insert(vni);
        let feed = self.vnis.entry(vni).or_default();
        if feed.join(id.index) {
            self.peers[index].dirty.push_back(vni);
            self.wake(index);
        }
    }

    /// A peer that sees a VNI is told everything there again; nothing happens if it does not.
    pub fn repeat(&mut self, id: PeerId, vni: u32) {
        if self
            .live(id)
            .is_some_and(|index| self.peers[index].vnis.contains(&vni))
        {
            self.subscribe(id, vni);
        }
    }

    /// A peer no longer wants a VNI. What it announces there stays.
    pub fn unsubscribe(&mut self, id: PeerId, vni: u32) {
        let Some(index) = self.live(id) else { return };
        let peer = &mut self.peers[index];
        if peer.vnis.remove(&vni) {
            peer.dirty.retain(|&other| other != vni);
            self.leave(id.index, vni);
        }
    }

    /// A peer supplies a route.
    pub fn announce(&mut self, id: PeerId, route: &Route) {
        let Some(index) = self.live(id) else { return };
        let full = self.table.len() >= self.limits.routes_max
            || self.peers[index].announced_len >= self.limits.peer_routes_max;
        let supplied = |id| self.table.sources(id).contains(&(index as u32));
        if full && !self.table.find(route).is_some_and(supplied) {
            self.counters.routes_refused += 1;
            return;
        }
        let (route_id, is_new) = self.table.insert(route);
        let before = self.table.sources(route_id).len();
        if !self.table.add_source(route_id, id.index) {
            self.counters.repeated += 1;
            let peer = &mut self.peers[index];
            if peer.held.remove(&route_id) {
                peer.announced.push(route_id);
            }
            return;
        }
        self.counters.announced += 1;
        let peer = &mut self.peers[index];
        peer.announced_len += 1;
        peer.announced.push(route_id);
        if peer.announced.len() > 2 * peer.announced_len + 64 {
            self.trim_announced(index);
        }
        match before {
            0 => {
                if !self.vnis.contains_key(&route.vni) {
                    self.create_vni(route.vni);
                }
                let feed = self.vnis.entry(route.vni).or_default();
                feed.live += 1;
                if !is_new {
                    feed.withdrawn -= 1;
                    // Subscribers that have not seen the withdrawal hold the route from its last source, be it this peer's
                    // own or not.
                    if self.table.last_source(route_id) != id.index {
                        self.table.set_ambiguous(route_id);
                    }
                }
                self.touch(route.vni, route_id);
            }
            1 => {
                // Only the other source sees a difference.
                self.table.set_ambiguous(route_id);
                let others: Vec<u32> = self.others(route_id, id.index);
                self.direct(route.vni, route_id, &others);
            }
            _ => {}
        }
    }

    /// A peer no longer supplies a route.
    pub fn withdraw(&mut self, id: PeerId, route: &Route) {
        let Some(index) = self.live(id) else { return };
        match self.table.find(route) {
            Some(route_id) if self.remove_source(index, route_id) => {
                self.peers[index].held.remove(&route_id);
                self.counters.withdrawn += 1;
            }
            _ => self.counters.unknown_withdrawals += 1,
        }
    }

    /// Peers that have something to send since they last had nothing.
    pub fn take_woken(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.woken)
    }

    /// Peers whose connection must be closed: superseded, or too far behind.
    pub fn take_evicted(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.evicted)
    }

    /// Whether the id is still valid.
    pub fn is_connected(&self, id: PeerId) -> bool {
        self.live(id).is_some()
    }

    /// Bounds in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Routes with at least one source.
    pub fn routes_len(&self) -> usize {
        self.vnis.values().map(|feed| feed.live).sum()
    }

    /// Withdrawn routes that are kept because somebody has not been told.
    pub fn withdrawn_len(&self) -> usize {
        self.vnis.values().map(|feed| feed.withdrawn).sum()
    }

    /// VNIs with routes or subscribers.
    pub fn vnis_len(&self) -> usize {
        self.vnis.len()
    }

    /// Whether a peer supplies this route.
    pub fn contains(&self, route: &Route) -> bool {
        self.table
            .find(route)
            .is_some_and(|id| !self.table.sources(id).is_empty())
    }

    /// Appends routes that have a source, examining `max` ids from `start` on; returns where to go on, `None` at the end.
    /// Allows a large table to be read without holding it for long.
    pub fn routes_from(
        &self,
        start: RouteId,
        max: u32,
        routes: &mut Vec<Route>,
    ) -> Option<RouteId> {
        let end = self.table.ids_end().min(start.saturating_add(max));
        let living = (start..end)
            .filter(|&id| self.table.vni(id).is_some() && !self.table.sources(id).is_empty());
        routes.extend(living.map(|id| self.table.route(id)));
        (end < self.table.ids_end()).then_some(end)
    }

    /// What a peer looks like; `None` if it is gone.
    pub fn peer_info(&self, id: PeerId) -> Option<PeerInfo> {
        let peer = &self.peers[self.live(id)?];
        let behind = peer.dirty.iter().filter_map(|vni| self.vnis.get(vni));
        Some(PeerInfo {
            routes: peer.announced_len,
            held: peer.held.len(),
            subscriptions: peer.vnis.iter().copied().collect(),
            backlog: behind.map(|feed| feed.behind(id.index)).sum::<usize>() + peer.directed.len(),
        })
    }

    fn id(&self, index: u32) -> PeerId {
        PeerId {
            index,
            generation: self.peers[index as usize].generation,
        }
    }

    fn live(&self, id: PeerId) -> Option<usize> {
        let peer = self.peers.get(id.index as usize)?;
        (peer.connected && peer.generation == id.generation).then_some(id.index as usize)
    }

    fn others(&self, route_id: RouteId, except: u32) -> Vec<u32> {
        self.table
            .sources(route_id)
            .iter()
            .copied()
            .filter(|&source| source != except)
            .collect()
    }

    fn join_everything(&mut self, index: u32) {
        if self.peers[index as usize].interest == Interest::Everything {
            self.everything.push(index);
            let id = self.id(index);
            let vnis: Vec<u32> = self.vnis.keys().copied().collect();
            for vni in vnis {
                self.subscribe(id, vni);
            }
        }
    }

    fn create_vni(&mut self, vni: u32) {
        self.vnis.insert(vni, Vni::default());
        for index in self.everything.clone() {
            self.subscribe(self.id(index), vni);
        }
    }

    fn leave(&mut self, index: u32, vni: u32) {
        let Some(feed) = self.vnis.get_mut(&vni) else {
            return;
        };
        feed.leave(index);
        self.release(vni);
    }

    /// Removes one source of a route and tells whom it concerns; false if the peer was none.
    fn remove_source(&mut self, index: usize, route_id: RouteId) -> bool {
        let Some(vni) = self.table.vni(route_id) else {
            return false;
        };
        if !self.table.remove_source(route_id, index as u32) {
            return false;
        }
        self.peers[index].announced_len -= 1;
        match self.table.sources(route_id).len() {
            0 => {
                if let Some(feed) = self.vnis.get_mut(&vni) {
                    feed.live -= 1;
                    feed.withdrawn += 1;
                    feed.dead.push(route_id);
                }
                self.touch(vni, route_id);
                self.release(vni);
            }
            1 => {
                let remaining = self.others(route_id, index as u32);
                self.direct(vni, route_id, &remaining);
            }
            _ => {}
        }
        true
    }

    /// Tells single peers the state of a route.
    fn direct(&mut self, vni: u32, route_id: RouteId, to: &[u32]) {
        self.outdate_chunks(vni);
        for &target in to {
            let peer = &mut self.peers[target as usize];
            if !peer.connected || !peer.vnis.contains(&vni) {
                continue;
            }
            if peer.directed.len() >= DIRECTED_MAX {
                self.counters.directed_full += 1;
                self.touch(vni, route_id);
                return;
            }
            peer.directed.push_back(route_id);
            self.wake(target as usize);
        }
    }

    fn wake(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if !peer.awake {
            peer.awake = true;
            let id = self.id(index as u32);
            self.woken.push(id);
        }
    }

    /// Drops outdated ids and duplicates from a peer's list of supplied routes.
    fn trim_announced(&mut self, index: usize) {
        let Self { peers, table, .. } = self;
        let announced = &mut peers[index].announced;
        announced
            .retain(|&id| table.vni(id).is_some() && table.sources(id).contains(&(index as u32)));
        announced.sort_unstable();
        announced.dedup();
        announced.shrink_to(announced.len() * 2);
    }
}
