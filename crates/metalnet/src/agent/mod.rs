//! The agent's state machine: inputs in, actions out, no IO and no clock of its own.
//!
//! Level-triggered: an input only changes what is known and marks the keys that need a look; [`Agent::poll`] looks at
//! them, asks the plans and returns what to do, within the limits on work in flight. Failures bring a key back later.
//! `inputs` takes in what was learned, `outcomes` the results of calls, `upkeep` keeps derived state current, `dispatch` makes
//! actions of marked keys; `balancers` and `neighbors` do all of that for load balancers and for shared NAT addresses.

mod balancers;
mod dispatch;
mod inputs;
mod neighbors;
mod outcomes;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::model::{Network, Nic, ObjectKey, Prefix, Uid, Vni};
use crate::plan::desired::{Balanced, Imports, Own, Settings, Share};
use crate::plan::nic::{Device, Warning};
use crate::plan::observed::{Neighbor, Observed};
use crate::plan::ops::{ApiError, ApiOp, BondOp, ClaimOp, DpDone, DpError, DpOp, RouteKey};
use crate::plan::rib::{Heard, Learned, Rib};
use crate::queue::{Backoff, Queue};
use crate::services::LoadBalancer;

/// Most calls to dpservice in flight. It works on one at a time, so more would only queue there.
pub const DP_INFLIGHT_MAX: usize = 64;
/// Most writes to the API in flight.
pub const API_INFLIGHT_MAX: usize = 64;
/// Most changes of the claim folder in flight: each waits for the disk.
pub const CLAIM_INFLIGHT_MAX: usize = 16;

/// Waits after calls that dpservice refused.
pub const DP_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(10),
    max: Duration::from_secs(10),
};
/// Waits after writes that did not reach the API, or found a changed object.
pub const API_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(10),
    max: Duration::from_millis(500),
};
/// Waits after writes that the API refused.
pub const REFUSED_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(500),
    max: Duration::from_secs(60),
};
/// Waits after a claim that could not be written.
pub const CLAIM_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(50),
    max: Duration::from_secs(5),
};
/// Least time between two listings of an instance that stays.
pub const LIST_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// A call whose answer was lost may still be carried out after the listing that follows: so long after the loss
/// another listing is made. Longer than any call waits inside dpservice.
pub const AUDIT_AFTER: Duration = Duration::from_secs(5);

/// Something the agent learns.
#[derive(Debug, Clone)]
pub enum Input {
    /// All Networks, NetworkInterfaces and LoadBalancers have been seen once.
    ApiSynced,
    Nic(Box<Nic>),
    /// No longer there, or no longer of this node.
    NicGone(Uid),
    Network(Box<Network>),
    NetworkGone(ObjectKey),
    Balancer(Box<LoadBalancer>),
    /// As [`Input::NicGone`].
    BalancerGone(Uid),
    /// A next hop appeared (`present`) or disappeared.
    Learned {
        vni: Vni,
        prefix: Prefix,
        hop: Learned,
        present: bool,
    },
    /// How far the routes of a VNI are known.
    Heard {
        vni: Vni,
        heard: Heard,
    },
    /// A dpservice answers: with the id of its instance, or `None` if it waits for Initialize.
    DpUp {
        instance: Option<String>,
    },
    DpDown,
    Dp {
        op: DpOp,
        result: Result<DpDone, DpError>,
    },
    Api {
        op: ApiOp,
        result: Result<Written, ApiError>,
    },
    Claim {
        op: ClaimOp,
        result: Result<(), String>,
    },
}

/// The object as the API returned it after a write.
#[derive(Debug, Clone)]
pub enum Written {
    Nothing,
    Nic(Box<Nic>),
    Network(Box<Network>),
    Balancer(Box<LoadBalancer>),
}

/// What to do now. Bond operations come first and in order; the others may run at the same time.
#[derive(Debug, Default)]
pub struct Actions {
    pub bond: Vec<BondOp>,
    pub dp: Vec<DpOp>,
    pub api: Vec<ApiOp>,
    pub claims: Vec<ClaimOp>,
    /// A call failed in a way that says nothing about the instance: look whether it is still the same.
    pub recheck: bool,
}

/// Where the conversation with dpservice stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nobody answers.
    Down,
    /// Answers, but waits for Initialize.
    Fresh,
    Initializing,
    /// Initialised; what it holds has to be listed, as soon as no call is in flight.
    Stale,
    Listing,
    /// The inventory is current.
    Live,
}

/// Work of one kind for one key: how much is in flight, and the wait after failures.
#[derive(Debug, Clone, Copy, Default)]
struct Lane {
    busy: usize,
    attempts: u32,
    not_before: Option<Instant>,
}

impl Lane {
    fn is_open(&self, now: Instant) -> bool {
        self.busy == 0 && self.not_before.is_none_or(|at| at <= now)
    }

    /// When the wait that closes the lane ends; `None` if nothing is waited for, or only for an answer.
    fn opens_after(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|at| self.busy == 0 && *at > now)
    }

    /// A call came back well.
    fn succeed(&mut self) {
        self.busy = self.busy.saturating_sub(1);
        self.attempts = 0;
        self.not_before = None;
    }

    /// A call came back badly; returns when to try again.
    fn fail(&mut self, now: Instant, backoff: Backoff) -> Instant {
        self.busy = self.busy.saturating_sub(1);
        self.attempts = self.attempts.saturating_add(1);
        let at = now + backoff.after(self.attempts);
        self.not_before = Some(at);
        at
    }

    /// Something changed: try again at once.
    fn reopen(&mut self) {
        self.attempts = 0;
        self.not_before = None;
    }
}

/// What was done since dpservice said that something exists already which we did not know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Dispute {
    #[default]
    None,
    /// A listing was asked for.
    Listed,
    /// It did not help: what might be in the way was cleared.
    Cleared,
}

/// What is remembered about one interface besides objects and inventory.
#[derive(Debug, Default)]
struct Track {
    share: Share,
    dp: Lane,
    api: Lane,
    claim: Lane,
    failure: Option<DpError>,
    dispute: Dispute,
    /// The answer to its creation was lost, and the listing of [`AUDIT_AFTER`] has not been made: it may still appear.
    lost: bool,
    warned: Option<Warning>,
}

/// What is remembered about one load balancer besides object and inventory.
#[derive(Debug, Default)]
struct BalancerTrack {
    share: Share,
    dp: Lane,
    api: Lane,
    failure: Option<DpError>,
    dispute: Dispute,
    /// As in [`Track`].
    lost: bool,
    warned: Option<Warning>,
    /// Targets whose last announcer took them back while a server was there.
    withdrawn: BTreeSet<Ipv6Addr>,
}

/// Figures for the metrics page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gauges {
    pub interfaces: usize,
    pub balancers: usize,
    pub routes: usize,
    /// Other hosts' shares of NAT addresses.
    pub neighbors: usize,
    pub learned: usize,
    pub learned_dropped: u64,
    pub announcements: usize,
    pub subscriptions: usize,
    pub claims: usize,
    pub devices: usize,
    pub queued: usize,
    pub inflight: usize,
    pub instances_seen: u64,
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    settings: Settings,
    /// Devices of this node in the order of preference, each with the text of its claim.
    devices: Vec<(String, Device)>,
    /// Claims by interface, and those being written.
    claims: BTreeMap<Uid, String>,
    claiming: BTreeMap<Uid, String>,
    nics: BTreeMap<Uid, Nic>,
    balancers: BTreeMap<Uid, LoadBalancer>,
    networks: BTreeMap<ObjectKey, Network>,
    networks_by_vni: BTreeMap<Vni, BTreeSet<ObjectKey>>,
    api_synced: bool,
    rib: Rib,
    imports: Imports,
    /// The other direction of `imports`: exporting VNI to importing ones.
    exports: BTreeMap<Vni, BTreeSet<Vni>>,
    imports_stale: bool,
    own: Own,
    balanced: Balanced,
    subscribed: BTreeSet<Vni>,
    subscriptions_stale: bool,
    observed: Observed,
    /// Whether `observed` was listed at least once.
    observed_once: bool,
    phase: Phase,
    instance: Option<String>,
    instances_seen: u64,
    service: Lane,
    list_wanted: bool,
    listed_at: Option<Instant>,
    /// When to list once more because of a lost call; see [`AUDIT_AFTER`].
    audit_at: Option<Instant>,
    recheck: bool,
    /// Whether calls of an earlier run of metalnet may still be carried out; see [`AUDIT_AFTER`].
    unaudited: bool,
    tracks: BTreeMap<Uid, Track>,
    balancer_tracks: BTreeMap<Uid, BalancerTrack>,
    /// Calls in flight for NAT addresses, and the waits after failures.
    neighbor_lanes: BTreeMap<Ipv4Addr, Lane>,
    /// Shares whose last announcer took them back while a server was there.
    neighbors_withdrawn: HashSet<Neighbor>,
    network_lanes: BTreeMap<ObjectKey, Lane>,
    routes_busy: HashSet<RouteKey>,
    routes_failed: HashMap<RouteKey, Lane>,
    /// Routes for which dpservice's answer did not fit the inventory, and was listed for that reason.
    routes_disputed: HashSet<RouteKey>,
    /// Routes whose last announcer took them back while a server was there.
    withdrawn: HashSet<RouteKey>,
    nic_queue: Queue<Uid>,
    balancer_queue: Queue<Uid>,
    network_queue: Queue<ObjectKey>,
    route_queue: Queue<RouteKey>,
    neighbor_queue: Queue<Ipv4Addr>,
    bond: Vec<BondOp>,
    announced: usize,
    dp_inflight: usize,
    api_inflight: usize,
    claim_inflight: usize,
}

impl Agent {
    /// An agent that knows its devices and the claims found on disk, and nothing else yet.
    pub fn new(
        settings: Settings,
        devices: Vec<(String, Device)>,
        claims: BTreeMap<Uid, String>,
    ) -> Self {
        let mut nic_queue = Queue::default();
        for uid in claims.keys() {
            nic_queue.push(uid.clone());
        }
        Self {
            settings,
            devices,
            claims,
            claiming: BTreeMap::new(),
            nics: BTreeMap::new(),
            balancers: BTreeMap::new(),
            networks: BTreeMap::new(),
            networks_by_vni: BTreeMap::new(),
            api_synced: false,
            rib: Rib::default(),
            imports: Imports::new(),
            exports: BTreeMap::new(),
            imports_stale: false,
            own: Own::new(),
            balanced: Balanced::new(),
            subscribed: BTreeSet::new(),
            subscriptions_stale: true,
            observed: Observed::default(),
            observed_once: false,
            phase: Phase::Down,
            instance: None,
            instances_seen: 0,
            service: Lane::default(),
            list_wanted: false,
            listed_at: None,
            audit_at: None,
            recheck: false,
            unaudited: true,
            tracks: BTreeMap::new(),
            balancer_tracks: BTreeMap::new(),
            neighbor_lanes: BTreeMap::new(),
            neighbors_withdrawn: HashSet::new(),
            network_lanes: BTreeMap::new(),
            routes_busy: HashSet::new(),
            routes_failed: HashMap::new(),
            routes_disputed: HashSet::new(),
            withdrawn: HashSet::new(),
            nic_queue,
            balancer_queue: Queue::default(),
            network_queue: Queue::default(),
            route_queue: Queue::default(),
            neighbor_queue: Queue::default(),
            bond: Vec::new(),
            announced: 0,
            dp_inflight: 0,
            api_inflight: 0,
            claim_inflight: 0,
        }
    }

    /// Where the conversation with dpservice stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the API's objects have been read.
    pub fn api_synced(&self) -> bool {
        self.api_synced
    }

    /// What dpservice is known to hold.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Figures for the metrics page.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            interfaces: self.observed.interfaces().len(),
            balancers: self.observed.balancers().len(),
            routes: self.observed.routes_len(),
            neighbors: self.observed.neighbors_len(),
            learned: self.rib.len(),
            learned_dropped: self.rib.dropped,
            announcements: self.announced,
            subscriptions: self.subscribed.len(),
            claims: self.claims.len(),
            devices: self.devices.len(),
            queued: self.nic_queue.len()
                + self.balancer_queue.len()
                + self.network_queue.len()
                + self.route_queue.len()
                + self.neighbor_queue.len(),
            inflight: self.dp_inflight + self.api_inflight + self.claim_inflight,
            instances_seen: self.instances_seen,
        }
    }
}
