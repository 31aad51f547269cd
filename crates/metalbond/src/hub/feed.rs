//! What each subscriber must still be told: a log of changes per VNI, and a place in it per subscriber.
//!
//! A log record names a route; it counts only while it is the route's latest one. Reading a record yields the route's
//! current state, so however far behind a subscriber is, it is told each route once. Outdated records and withdrawn
//! routes that everybody has seen are dropped when the log has doubled. Encoded stretches of a log are shared between
//! subscribers at the same place.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::{Hub, PeerId};
use crate::codec::{self, Action, MESSAGE_MAX, Update};
use crate::table::{RouteId, RouteTable};

/// A shared stretch ends at a multiple of this many records, so that subscribers fall into step.
const CHUNK_RECORDS: usize = 512;
/// Shared stretches kept; at most about 10 MB.
const CHUNKS_MAX: usize = 256;
/// Log length below which tidying is not worth it.
const LOG_MIN: usize = 256;

/// Change log and subscribers of one VNI.
#[derive(Default)]
pub(super) struct Vni {
    log: Vec<RouteId>,
    /// Subscriber to the log index of the first record it has not been told.
    places: HashMap<u32, u32>,
    /// Subscribers that have been told everything.
    idle: Vec<u32>,
    /// Routes with a source.
    pub(super) live: usize,
    /// Routes without a source that somebody may not have been told of.
    pub(super) withdrawn: usize,
    /// Candidates for freeing: every withdrawn route, some that were announced again.
    pub(super) dead: Vec<RouteId>,
    tidy_at: usize,
    /// Raised when encoded stretches become wrong without a later record to correct them.
    epoch: u64,
}

impl Vni {
    /// Adds a subscriber at the log's begin, or puts it back there; true if it was not on the list of those with work.
    pub(super) fn join(&mut self, index: u32) -> bool {
        match self.places.insert(index, 0) {
            None => true,
            Some(_) => {
                let before = self.idle.len();
                self.idle.retain(|&other| other != index);
                self.idle.len() != before
            }
        }
    }

    pub(super) fn leave(&mut self, index: u32) {
        self.places.remove(&index);
        self.idle.retain(|&other| other != index);
    }

    /// Records that a subscriber has not been told, outdated ones included.
    pub(super) fn behind(&self, index: u32) -> usize {
        self.places
            .get(&index)
            .map_or(0, |&place| self.log.len() - place as usize)
    }
}

/// Encoded messages of a stretch of a log, right for everybody except `unfit`.
struct Chunk {
    epoch: u64,
    bytes: Vec<u8>,
    updates: u64,
    end: u32,
    /// Peers for which a route in the stretch is their own: sorted.
    unfit: Vec<u32>,
}

/// Shared stretches by VNI and first record.
#[derive(Default)]
pub(super) struct ChunkCache {
    chunks: HashMap<(u32, u32), Arc<Chunk>>,
    order: VecDeque<(u32, u32)>,
}

impl ChunkCache {
    fn insert(&mut self, vni: u32, start: u32, chunk: Arc<Chunk>) {
        if self.order.len() >= CHUNKS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.chunks.remove(&oldest);
        }
        if self.chunks.insert((vni, start), chunk).is_none() {
            self.order.push_back((vni, start));
        }
    }

    fn forget(&mut self, vni: u32) {
        if self.order.iter().any(|(other, _)| *other == vni) {
            self.order.retain(|(other, _)| *other != vni);
            self.chunks.retain(|(other, _), _| *other != vni);
        }
    }
}

/// What a subscriber must be told about a route at this moment; `None` for nothing.
fn opinion(table: &RouteTable, id: RouteId, subscriber: u32) -> Option<Action> {
    match table.sources(id) {
        // Whoever alone supplied the route was never told of it, unless others supplied it too.
        [] if table.last_source(id) == subscriber && !table.is_ambiguous(id) => None,
        [] => Some(Action::Remove),
        [only] if *only == subscriber => table.is_ambiguous(id).then_some(Action::Remove),
        _ => Some(Action::Add),
    }
}

/// Whether a log record is the latest one of its route.
fn counts(table: &RouteTable, vni: u32, place: usize, id: RouteId) -> bool {
    table.vni(id) == Some(vni) && table.position(id) as usize == place
}

impl Hub {
    /// Appends messages for a peer until `out` holds about `bytes_max` bytes (up to one shared stretch more if
    /// `bytes_max` is large, never more if it is below 32 KiB); false when nothing is left.
    pub fn fill(&mut self, id: PeerId, out: &mut Vec<u8>, bytes_max: usize) -> bool {
        let Some(index) = self.live(id) else {
            return false;
        };
        while out.len() + MESSAGE_MAX <= bytes_max {
            let Some(route_id) = self.peers[index].directed.pop_front() else {
                break;
            };
            self.send_directed(index, route_id, out);
        }
        while out.len() + MESSAGE_MAX <= bytes_max {
            let Some(&vni) = self.peers[index].dirty.front() else {
                let peer = &mut self.peers[index];
                peer.awake = !peer.directed.is_empty();
                return peer.awake;
            };
            self.peers[index].dirty.pop_front();
            if self.fill_vni(id.index, vni, out, bytes_max) {
                self.peers[index].dirty.push_back(vni);
            }
        }
        true
    }

    fn send_directed(&mut self, index: usize, route_id: RouteId, out: &mut Vec<u8>) {
        let Some(vni) = self.table.vni(route_id) else {
            return;
        };
        if !self.peers[index].vnis.contains(&vni) {
            return;
        }
        if let Some(action) = opinion(&self.table, route_id, index as u32) {
            codec::encode_update(
                &Update {
                    action,
                    route: self.table.route(route_id),
                },
                out,
            );
            self.counters.sent += 1;
        }
    }

    /// Appends one stretch of a VNI's log; true if the subscriber has more to be told there.
    fn fill_vni(&mut self, index: u32, vni: u32, out: &mut Vec<u8>, bytes_max: usize) -> bool {
        let Self {
            table,
            vnis,
            chunks,
            counters,
            ..
        } = self;
        let Some(feed) = vnis.get_mut(&vni) else {
            return false;
        };
        let Some(&place) = feed.places.get(&index) else {
            return false;
        };
        let is_shared = feed.places.len() > 1 && bytes_max >= CHUNK_RECORDS * MESSAGE_MAX * 2 / 3;
        let start = place as usize;
        let end = ((start / CHUNK_RECORDS + 1) * CHUNK_RECORDS).min(feed.log.len());
        let mut place = place;
        if is_shared && start < end {
            let epoch = feed.epoch;
            let known = chunks
                .chunks
                .get(&(vni, place))
                .filter(|chunk| chunk.epoch == epoch);
            let chunk = known.cloned().unwrap_or_else(|| {
                let chunk = Arc::new(encode_chunk(table, vni, feed, start, end));
                chunks.insert(vni, place, Arc::clone(&chunk));
                chunk
            });
            if chunk.unfit.binary_search(&index).is_err() {
                out.extend_from_slice(&chunk.bytes);
                counters.sent += chunk.updates;
                place = chunk.end;
            }
        }
        if place as usize == start {
            while (place as usize) < end && out.len() + MESSAGE_MAX <= bytes_max {
                let id = feed.log[place as usize];
                if counts(table, vni, place as usize, id)
                    && let Some(action) = opinion(table, id, index)
                {
                    codec::encode_update(
                        &Update {
                            action,
                            route: table.route(id),
                        },
                        out,
                    );
                    counters.sent += 1;
                }
                place += 1;
            }
        }
        feed.places.insert(index, place);
        if (place as usize) < feed.log.len() {
            return true;
        }
        feed.idle.push(index);
        if feed.idle.len() == feed.places.len() {
            self.release(vni);
        }
        false
    }

    /// Records a change of a route and wakes the subscribers that had nothing to do.
    pub(super) fn touch(&mut self, vni: u32, route_id: RouteId) {
        let Some(feed) = self.vnis.get_mut(&vni) else {
            return;
        };
        self.table.set_position(route_id, feed.log.len() as u32);
        feed.log.push(route_id);
        for index in std::mem::take(&mut feed.idle) {
            self.peers[index as usize].dirty.push_back(vni);
            self.wake(index as usize);
        }
        if self
            .vnis
            .get(&vni)
            .is_some_and(|feed| feed.log.len() >= feed.tidy_at.max(LOG_MIN))
        {
            self.tidy(vni);
        }
    }

    /// Encoded stretches are no longer right for everybody: a route changed without a new record in the log.
    pub(super) fn outdate_chunks(&mut self, vni: u32) {
        if let Some(feed) = self.vnis.get_mut(&vni) {
            feed.epoch += 1;
        }
    }

    /// Frees withdrawn routes if everybody has been told, and the VNI if nothing is left of it.
    pub(super) fn release(&mut self, vni: u32) {
        let Some(feed) = self.vnis.get_mut(&vni) else {
            return;
        };
        if feed.idle.len() < feed.places.len() {
            return;
        }
        for id in std::mem::take(&mut feed.dead) {
            if self.table.vni(id) == Some(vni) && self.table.sources(id).is_empty() {
                self.table.remove(id);
                feed.withdrawn -= 1;
                feed.epoch += 1;
            }
        }
        let everything = &self.everything;
        if feed.live == 0 && feed.places.keys().all(|index| everything.contains(index)) {
            for index in feed.places.keys() {
                self.peers[*index as usize].vnis.remove(&vni);
            }
            self.vnis.remove(&vni);
            self.chunks.forget(vni);
        }
    }

    /// Rewrites a log without outdated records and without withdrawn routes that everybody has been told of.
    fn tidy(&mut self, vni: u32) {
        let Self {
            table,
            vnis,
            chunks,
            ..
        } = self;
        let Some(feed) = vnis.get_mut(&vni) else {
            return;
        };
        chunks.forget(vni);
        let first_place = feed
            .places
            .values()
            .min()
            .map_or(feed.log.len(), |&min| min as usize);
        let mut order: Vec<(u32, u32)> = feed
            .places
            .iter()
            .map(|(&index, &place)| (place, index))
            .collect();
        order.sort_unstable();
        let mut order = order.into_iter().peekable();
        let mut kept: Vec<RouteId> = Vec::with_capacity(feed.live + feed.withdrawn);
        feed.dead.clear();
        for (place, &id) in feed.log.iter().enumerate() {
            while let Some((_, index)) = order.next_if(|(at, _)| *at as usize <= place) {
                feed.places.insert(index, kept.len() as u32);
            }
            if !counts(table, vni, place, id) {
                continue;
            }
            if table.sources(id).is_empty() {
                if place < first_place {
                    table.remove(id);
                    feed.withdrawn -= 1;
                    continue;
                }
                feed.dead.push(id);
            }
            table.set_position(id, kept.len() as u32);
            kept.push(id);
        }
        for (_, index) in order {
            feed.places.insert(index, kept.len() as u32);
        }
        feed.log = kept;
        feed.tidy_at = feed.log.len() * 2;
        let excess = feed.withdrawn > self.limits.withdrawn_max.max(feed.live);
        self.evict_slowest(vni, excess);
    }

    /// Gives up the subscriber that is farthest behind, if withdrawn routes pile up for it.
    fn evict_slowest(&mut self, vni: u32, excess: bool) {
        let Some(feed) = self.vnis.get(&vni).filter(|_| excess) else {
            return;
        };
        if let Some((&index, _)) = feed.places.iter().min_by_key(|(_, place)| **place) {
            let id = self.id(index);
            if !self.evicted.contains(&id) {
                self.evicted.push(id);
                self.counters.evicted += 1;
            }
        }
    }
}

fn encode_chunk(table: &RouteTable, vni: u32, feed: &Vni, start: usize, end: usize) -> Chunk {
    let mut chunk = Chunk {
        epoch: feed.epoch,
        bytes: Vec::new(),
        updates: 0,
        end: end as u32,
        unfit: Vec::new(),
    };
    let mut unfit = |index: u32| {
        if chunk.unfit.last() != Some(&index) {
            chunk.unfit.push(index);
        }
    };
    for (place, &id) in feed.log.iter().enumerate().take(end).skip(start) {
        if !counts(table, vni, place, id) {
            continue;
        }
        let action = match table.sources(id) {
            [] => {
                if !table.is_ambiguous(id) {
                    unfit(table.last_source(id));
                }
                Action::Remove
            }
            [only] => {
                unfit(*only);
                Action::Add
            }
            _ => Action::Add,
        };
        codec::encode_update(
            &Update {
                action,
                route: table.route(id),
            },
            &mut chunk.bytes,
        );
        chunk.updates += 1;
    }
    chunk.unfit.sort_unstable();
    chunk.unfit.dedup();
    chunk
}
