//! The compact route table: each route once, with the set of peers that supply it.
//!
//! A route costs one 64-byte slot and about 10 bytes of index, whatever its VNI. Routes have stable ids ([`RouteId`]) that
//! are reused after removal. Who is told about a route is not decided here: see [`crate::hub`].

use hashbrown::DefaultHashBuilder;
use hashbrown::hash_table::{Entry, HashTable};
use std::hash::{BuildHasher, Hash, Hasher};

use crate::route::{Destination, HopType, IpVersion, NextHop, Route, addr_bytes, addr_from};

/// Index of a route's slot.
pub type RouteId = u32;
/// Index of a supplier; below 2^31.
pub type SourceId = u32;

/// Slots are allocated in pieces, so that growth neither copies nor doubles.
const PIECE: usize = 1024;
const NONE: u32 = u32::MAX;
/// In `Slot::sources`: the rest is an index into `shared_sources`.
const MANY: u32 = 1 << 31;

/// A route packed into the 50 bytes that identify it. Numbers are byte arrays so that the slot has no padding.
#[derive(Clone, Copy, PartialEq, Eq)]
struct PackedRoute {
    destination: [u8; 16],
    hop: [u8; 16],
    vni: [u8; 4],
    target_vni: [u8; 4],
    hop_type: [u8; 4],
    from: u16,
    to: u16,
    length: u8,
    form: u8,
}

impl PackedRoute {
    const DESTINATION_V4: u8 = 1;
    const VERSION_V6: u8 = 2;
    const HOP_V4: u8 = 4;

    fn pack(route: &Route) -> Self {
        let Route {
            vni,
            destination,
            next_hop:
                NextHop {
                    addr,
                    target_vni,
                    hop_type,
                },
        } = route;
        let (destination_bytes, destination_v4) = addr_bytes(destination.addr());
        let (hop, hop_v4) = addr_bytes(*addr);
        let (from, to) = hop_type.ports();
        let mut form = 0;
        if destination_v4 {
            form |= Self::DESTINATION_V4;
        }
        if destination.version() == IpVersion::V6 {
            form |= Self::VERSION_V6;
        }
        if hop_v4 {
            form |= Self::HOP_V4;
        }
        Self {
            destination: destination_bytes,
            hop,
            vni: vni.to_ne_bytes(),
            target_vni: target_vni.to_ne_bytes(),
            hop_type: hop_type.number().to_ne_bytes(),
            from,
            to,
            length: destination.length().unwrap_or(u8::MAX),
            form,
        }
    }

    fn unpack(&self) -> Route {
        let version = if self.form & Self::VERSION_V6 == 0 {
            IpVersion::V4
        } else {
            IpVersion::V6
        };
        let destination = addr_from(self.destination, self.form & Self::DESTINATION_V4 != 0);
        let hop = addr_from(self.hop, self.form & Self::HOP_V4 != 0);
        Route {
            vni: u32::from_ne_bytes(self.vni),
            destination: Destination::from_wire(version, destination, u32::from(self.length)),
            next_hop: NextHop {
                addr: hop,
                target_vni: u32::from_ne_bytes(self.target_vni),
                hop_type: HopType::from_wire(i32::from_ne_bytes(self.hop_type), self.from, self.to),
            },
        }
    }
}

struct Slot {
    key: PackedRoute,
    occupied: bool,
    /// See [`RouteTable::is_ambiguous`].
    ambiguous: bool,
    /// Place in the change log of its VNI; in a free slot the next free one.
    position: u32,
    /// `NONE`, a single source, or `MANY | index`.
    sources: u32,
    /// The most recent source that left; meaningful while there is none.
    last_source: u32,
}

/// See the module's description.
pub struct RouteTable {
    pieces: Vec<Vec<Slot>>,
    free: u32,
    len: usize,
    index: HashTable<RouteId>,
    hasher: DefaultHashBuilder,
    shared_sources: Vec<Vec<SourceId>>,
    shared_free: Vec<u32>,
}

impl Hash for PackedRoute {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            destination,
            hop,
            vni,
            target_vni,
            hop_type,
            from,
            to,
            length,
            form,
        } = self;
        state.write_u128(u128::from_ne_bytes(*destination));
        state.write_u128(u128::from_ne_bytes(*hop));
        let word = |high, low| {
            u64::from(u32::from_ne_bytes(high)) << 32 | u64::from(u32::from_ne_bytes(low))
        };
        state.write_u64(word(*vni, *target_vni));
        let [from_0, from_1] = from.to_ne_bytes();
        let [to_0, to_1] = to.to_ne_bytes();
        state.write_u64(word(*hop_type, [from_0, from_1, to_0, to_1]));
        state.write_u16(u16::from_ne_bytes([*length, *form]));
    }
}

impl Default for RouteTable {
    fn default() -> Self {
        Self {
            pieces: Vec::new(),
            free: NONE,
            len: 0,
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            shared_sources: Vec::new(),
            shared_free: Vec::new(),
        }
    }
}

impl RouteTable {
    /// Number of routes, those without a source included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no route.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One past the highest id ever used; ids below it may be free.
    pub fn ids_end(&self) -> RouteId {
        (self.pieces.len() * PIECE) as RouteId
    }

    /// The id of a route.
    pub fn find(&self, route: &Route) -> Option<RouteId> {
        let key = PackedRoute::pack(route);
        let hash = self.hasher.hash_one(key);
        self.index
            .find(hash, |&id| slot(&self.pieces, id).key == key)
            .copied()
    }

    /// The id of a route, made if necessary; whether it was made.
    pub fn insert(&mut self, route: &Route) -> (RouteId, bool) {
        let key = PackedRoute::pack(route);
        let Self {
            pieces,
            free,
            index,
            hasher,
            len,
            ..
        } = self;
        let hash = hasher.hash_one(key);
        let entry = index.entry(
            hash,
            |&id| slot(pieces, id).key == key,
            |&id| hasher.hash_one(slot(pieces, id).key),
        );
        match entry {
            Entry::Occupied(entry) => (*entry.get(), false),
            Entry::Vacant(entry) => {
                if *free == NONE {
                    add_piece(pieces, free);
                }
                let id = *free;
                let slot = slot_mut(pieces, id);
                *free = slot.position;
                *slot = Slot {
                    key,
                    occupied: true,
                    ambiguous: false,
                    position: NONE,
                    sources: NONE,
                    last_source: NONE,
                };
                entry.insert(id);
                *len += 1;
                (id, true)
            }
        }
    }

    /// Frees a route without sources.
    pub fn remove(&mut self, id: RouteId) {
        debug_assert!(self.sources(id).is_empty());
        let key = self.slot(id).key;
        let hash = self.hasher.hash_one(key);
        if let Ok(entry) = self.index.find_entry(hash, |&other| other == id) {
            entry.remove();
        }
        let free = self.free;
        let slot = self.slot_mut(id);
        slot.occupied = false;
        slot.position = free;
        self.free = id;
        self.len -= 1;
        let capacity = self.index.capacity();
        if capacity > 4096 && self.len < capacity / 8 {
            let Self {
                index,
                pieces,
                hasher,
                ..
            } = self;
            index.shrink_to(capacity / 4, |&id| hasher.hash_one(slot_of(pieces, id)));
        }
    }

    /// The route with this id.
    pub fn route(&self, id: RouteId) -> Route {
        self.slot(id).key.unpack()
    }

    /// The VNI of the route with this id, `None` if the id is free.
    pub fn vni(&self, id: RouteId) -> Option<u32> {
        let slot = self
            .pieces
            .get(id as usize / PIECE)?
            .get(id as usize % PIECE)?;
        slot.occupied.then_some(u32::from_ne_bytes(slot.key.vni))
    }

    /// The peers that supply the route.
    pub fn sources(&self, id: RouteId) -> &[SourceId] {
        let sources = &self.slot(id).sources;
        if *sources == NONE {
            &[]
        } else if sources & MANY == 0 {
            std::slice::from_ref(sources)
        } else {
            &self.shared_sources[(sources & !MANY) as usize]
        }
    }

    /// The source that left last, if there is none now.
    pub fn last_source(&self, id: RouteId) -> SourceId {
        self.slot(id).last_source
    }

    /// Adds a source; false if it is one already.
    pub fn add_source(&mut self, id: RouteId, source: SourceId) -> bool {
        debug_assert!(source < MANY);
        let sources = self.slot(id).sources;
        if sources == NONE {
            self.slot_mut(id).sources = source;
        } else if sources & MANY != 0 {
            let shared = &mut self.shared_sources[(sources & !MANY) as usize];
            if shared.contains(&source) {
                return false;
            }
            shared.push(source);
        } else if sources == source {
            return false;
        } else {
            let index = self.shared_free.pop().unwrap_or_else(|| {
                self.shared_sources.push(Vec::new());
                (self.shared_sources.len() - 1) as u32
            });
            self.shared_sources[index as usize] = vec![sources, source];
            self.slot_mut(id).sources = MANY | index;
        }
        true
    }

    /// Removes a source; false if it is none.
    pub fn remove_source(&mut self, id: RouteId, source: SourceId) -> bool {
        let sources = self.slot(id).sources;
        if sources == source {
            let slot = self.slot_mut(id);
            slot.sources = NONE;
            slot.last_source = source;
            return true;
        }
        if sources == NONE || sources & MANY == 0 {
            return false;
        }
        let index = sources & !MANY;
        let shared = &mut self.shared_sources[index as usize];
        let Some(place) = shared.iter().position(|&other| other == source) else {
            return false;
        };
        shared.swap_remove(place);
        if let &[single] = shared.as_slice() {
            *shared = Vec::new();
            self.shared_free.push(index);
            self.slot_mut(id).sources = single;
        }
        true
    }

    /// Whether subscribers may hold different opinions of this route, so that each must be told its state explicitly.
    pub fn is_ambiguous(&self, id: RouteId) -> bool {
        self.slot(id).ambiguous
    }

    /// See [`RouteTable::is_ambiguous`]; sticks until the route is removed.
    pub fn set_ambiguous(&mut self, id: RouteId) {
        self.slot_mut(id).ambiguous = true;
    }

    /// Place of the route's latest change in the log of its VNI.
    pub fn position(&self, id: RouteId) -> u32 {
        self.slot(id).position
    }

    /// See [`RouteTable::position`].
    pub fn set_position(&mut self, id: RouteId, position: u32) {
        self.slot_mut(id).position = position;
    }

    fn slot(&self, id: RouteId) -> &Slot {
        slot(&self.pieces, id)
    }

    fn slot_mut(&mut self, id: RouteId) -> &mut Slot {
        slot_mut(&mut self.pieces, id)
    }
}

fn slot(pieces: &[Vec<Slot>], id: RouteId) -> &Slot {
    &pieces[id as usize / PIECE][id as usize % PIECE]
}

fn slot_mut(pieces: &mut [Vec<Slot>], id: RouteId) -> &mut Slot {
    &mut pieces[id as usize / PIECE][id as usize % PIECE]
}

fn slot_of(pieces: &[Vec<Slot>], id: RouteId) -> PackedRoute {
    slot(pieces, id).key
}

/// Appends a piece of free slots, chained in order so that neighbours in time are neighbours in memory.
fn add_piece(pieces: &mut Vec<Vec<Slot>>, free: &mut u32) {
    let first = pieces.len() * PIECE;
    let empty = PackedRoute {
        destination: [0; 16],
        hop: [0; 16],
        vni: [0; 4],
        target_vni: [0; 4],
        hop_type: [0; 4],
        from: 0,
        to: 0,
        length: 0,
        form: 0,
    };
    let piece = (1..=PIECE)
        .map(|offset| Slot {
            key: empty,
            occupied: false,
            ambiguous: false,
            position: if offset == PIECE {
                *free
            } else {
                (first + offset) as u32
            },
            sources: NONE,
            last_source: NONE,
        })
        .collect();
    pieces.push(piece);
    *free = first as u32;
}
