//! The client's merged table: which servers supply which route, and what the user was told. Pure.
//!
//! A route exists for the user while any server supplies it. A lost session does not withdraw its routes; they are *held*
//! until the server supplies them again or the hold time is over. An explicit withdrawal by a live server counts more than
//! what a lost session once said: it also ends holding, or a route withdrawn while one server is down would linger.
//!
//! What the user must be told is kept as state, not as a queue of events: each route is pending at most once, so a user
//! that does not listen costs no more than the table.

use std::collections::VecDeque;

use hashbrown::hash_map::Entry as MapEntry;
use hashbrown::{HashMap, HashSet};

use crate::client::{OwnRoutes, RouteEvent};
use crate::route::{Destination, HopType, NextHop, Route};

/// Routes in the merged table; beyond it received routes are refused and counted.
pub const ROUTES_MAX: usize = 4_000_000;

/// Index of a server, below [`crate::client::PEERS_MAX`].
pub type Server = u32;

#[derive(Clone, Copy, Default)]
struct Entry {
    /// Servers that supply it, as bits.
    live: u64,
    /// Servers whose lost session supplied it, as bits.
    held: u64,
    /// What the user believes.
    told: bool,
    /// Whether it is in `pending`.
    pending: bool,
}

type Routes = HashMap<(Destination, NextHop), Entry>;

/// See the module's description.
pub struct Rib {
    own_routes: OwnRoutes,
    vnis: HashMap<u32, Routes>,
    subscriptions: HashSet<u32>,
    own: HashSet<Route>,
    /// Own ordinary routes per destination, counted; only kept for [`OwnRoutes::SameDestination`].
    own_destinations: HashMap<(u32, Destination), usize>,
    pending: VecDeque<Route>,
    len: usize,
    refused: u64,
}

impl Rib {
    /// An empty table.
    pub fn new(own_routes: OwnRoutes) -> Self {
        Self {
            own_routes,
            vnis: HashMap::new(),
            subscriptions: HashSet::new(),
            own: HashSet::new(),
            own_destinations: HashMap::new(),
            pending: VecDeque::new(),
            len: 0,
            refused: 0,
        }
    }

    /// Routes of this VNI count from now on; false if they did already.
    pub fn subscribe(&mut self, vni: u32) -> bool {
        self.subscriptions.insert(vni)
    }

    /// Routes of this VNI no longer count; false if they did not.
    pub fn unsubscribe(&mut self, vni: u32) -> bool {
        if !self.subscriptions.remove(&vni) {
            return false;
        }
        self.change_vni(vni, |entry| {
            entry.live = 0;
            entry.held = 0;
        });
        true
    }

    /// A server supplies a route.
    pub fn learn(&mut self, server: Server, route: &Route) {
        if !self.subscriptions.contains(&route.vni) {
            return;
        }
        let routes = self.vnis.entry(route.vni).or_default();
        let is_full = self.len >= ROUTES_MAX;
        match routes.entry((route.destination, route.next_hop)) {
            MapEntry::Vacant(_) if is_full => {
                self.refused += 1;
                return;
            }
            MapEntry::Vacant(entry) => {
                self.len += 1;
                entry.insert(Entry {
                    live: 1 << server,
                    ..Entry::default()
                });
            }
            MapEntry::Occupied(mut entry) => {
                entry.get_mut().live |= 1 << server;
                entry.get_mut().held &= !(1 << server);
            }
        }
        self.settle(route);
    }

    /// A server withdraws a route.
    pub fn forget(&mut self, server: Server, route: &Route) {
        if let Some(entry) = self.entry(route) {
            entry.live &= !(1 << server);
            entry.held &= !(1 << server);
            if entry.live == 0 {
                entry.held = 0;
            }
            self.settle(route);
        }
    }

    /// A server's session is lost: what it supplied is held.
    pub fn hold(&mut self, server: Server) {
        for entry in self.vnis.values_mut().flat_map(HashMap::values_mut) {
            entry.held |= entry.live & (1 << server);
            entry.live &= !(1 << server);
        }
    }

    /// The hold time of a server's lost session is over: what it did not supply again goes.
    pub fn release(&mut self, server: Server) {
        let vnis: Vec<u32> = self.vnis.keys().copied().collect();
        for vni in vnis {
            self.change_vni(vni, |entry| entry.held &= !(1 << server));
        }
    }

    /// This client announces a route itself.
    pub fn add_own(&mut self, route: &Route) {
        if self.own.insert(*route) {
            self.own_changed(route, true);
        }
    }

    /// This client no longer announces a route.
    pub fn remove_own(&mut self, route: &Route) {
        if self.own.remove(route) {
            self.own_changed(route, false);
        }
    }

    /// The next thing to tell the user.
    pub fn next_event(&mut self) -> Option<RouteEvent> {
        while let Some(route) = self.pending.pop_front() {
            let withheld = self.is_withheld(&route);
            let Some(entry) = self.entry(&route) else {
                continue;
            };
            entry.pending = false;
            let visible = is_supplied(entry) && !withheld;
            let was = std::mem::replace(&mut entry.told, visible);
            self.settle(&route);
            let Route {
                vni,
                destination,
                next_hop,
            } = route;
            match (was, visible) {
                (false, true) => {
                    return Some(RouteEvent::Added {
                        vni,
                        destination,
                        next_hop,
                    });
                }
                (true, false) => {
                    return Some(RouteEvent::Removed {
                        vni,
                        destination,
                        next_hop,
                    });
                }
                _ => {}
            }
        }
        None
    }

    /// Whether [`Rib::next_event`] may have something.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Routes known, held and withheld ones included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no route is known.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Received routes that were dropped because the table is full.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The routes that exist for the user, in no order.
    pub fn routes(&self) -> impl Iterator<Item = Route> + '_ {
        self.vnis
            .iter()
            .flat_map(|(&vni, routes)| {
                let route = move |&(destination, next_hop)| Route {
                    vni,
                    destination,
                    next_hop,
                };
                routes
                    .iter()
                    .filter(|(_, entry)| is_supplied(entry))
                    .map(move |(key, _)| route(key))
            })
            .filter(|route| !self.is_withheld(route))
    }

    fn entry(&mut self, route: &Route) -> Option<&mut Entry> {
        self.vnis
            .get_mut(&route.vni)?
            .get_mut(&(route.destination, route.next_hop))
    }

    fn is_withheld(&self, route: &Route) -> bool {
        // A prefix longer than its address is kept by servers, but there is nothing to do with it.
        if route.destination.length().is_none() || self.own.contains(route) {
            return true;
        }
        self.own_routes == OwnRoutes::SameDestination
            && route.next_hop.hop_type == HopType::Standard
            && self
                .own_destinations
                .contains_key(&(route.vni, route.destination))
    }

    fn own_changed(&mut self, route: &Route, added: bool) {
        self.settle(route);
        if self.own_routes == OwnRoutes::Identical || route.next_hop.hop_type != HopType::Standard {
            return;
        }
        let key = (route.vni, route.destination);
        let count = self.own_destinations.entry(key).or_default();
        *count = if added { *count + 1 } else { *count - 1 };
        if *count == 0 {
            self.own_destinations.remove(&key);
        }
        // Rare, and only on routers: look at the whole VNI.
        let same: Vec<Route> = self
            .vnis
            .get(&route.vni)
            .into_iter()
            .flat_map(HashMap::keys)
            .filter(|(destination, _)| *destination == route.destination)
            .map(|&(destination, next_hop)| Route {
                vni: route.vni,
                destination,
                next_hop,
            })
            .collect();
        for route in same {
            self.settle(&route);
        }
    }

    fn change_vni(&mut self, vni: u32, mut change: impl FnMut(&mut Entry)) {
        let Some(routes) = self.vnis.get_mut(&vni) else {
            return;
        };
        let mut changed = Vec::new();
        for (&(destination, next_hop), entry) in routes.iter_mut() {
            let was = is_supplied(entry);
            change(entry);
            if was != is_supplied(entry) {
                changed.push(Route {
                    vni,
                    destination,
                    next_hop,
                });
            }
        }
        for route in changed {
            self.settle(&route);
        }
    }

    /// Makes a route pending if the user must be told, drops it if nothing is left to say.
    fn settle(&mut self, route: &Route) {
        let withheld = self.is_withheld(route);
        let Some(entry) = self.entry(route) else {
            return;
        };
        let visible = is_supplied(entry) && !withheld;
        if visible != entry.told && !entry.pending {
            entry.pending = true;
            self.pending.push_back(*route);
        } else if !is_supplied(entry) && !entry.told && !entry.pending {
            self.len -= 1;
            if let Some(routes) = self.vnis.get_mut(&route.vni) {
                routes.remove(&(route.destination, route.next_hop));
                if routes.is_empty() {
                    self.vnis.remove(&route.vni);
                }
            }
        }
    }
}

fn is_supplied(entry: &Entry) -> bool {
    entry.live | entry.held != 0
}
