//! The agent's state machine: inputs in, actions out, no IO and no clock of its own.
//!
//! Level-triggered: an input only changes what is known and marks the keys that need a look; [`Agent::poll`] looks at
//! them, asks the plans and returns what to do, within the limits on work in flight. Failures bring a key back later.
//! `inputs` takes in what was learned, `outcomes` the results of calls, this file holds the state and its upkeep.

mod dispatch;
mod inputs;
mod outcomes;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use crate::model::{Network, Nic, ObjectKey, Prefix, Uid, Vni};
use crate::plan::desired::{self, Imports, Own, Routing, Settings, Share, Want};
use crate::plan::nic::{Claim, Device, Warning};
use crate::plan::observed::Observed;
use crate::plan::ops::{ApiError, ApiOp, BondOp, ClaimOp, DpDone, DpError, DpOp, RouteKey};
use crate::plan::rib::{Heard, Learned, Rib};
use crate::queue::{Backoff, Queue};

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
    /// All Networks and NetworkInterfaces have been seen once.
    ApiSynced,
    Nic(Box<Nic>),
    /// No longer there, or no longer of this node.
    NicGone(Uid),
    Network(Box<Network>),
    NetworkGone(ObjectKey),
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

/// Figures for the metrics page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gauges {
    pub interfaces: usize,
    pub routes: usize,
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
    networks: BTreeMap<ObjectKey, Network>,
    networks_by_vni: BTreeMap<Vni, BTreeSet<ObjectKey>>,
    api_synced: bool,
    rib: Rib,
    imports: Imports,
    /// The other direction of `imports`: exporting VNI to importing ones.
    exports: BTreeMap<Vni, BTreeSet<Vni>>,
    imports_stale: bool,
    own: Own,
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
    tracks: BTreeMap<Uid, Track>,
    network_lanes: BTreeMap<ObjectKey, Lane>,
    routes_busy: HashSet<RouteKey>,
    routes_failed: HashMap<RouteKey, Lane>,
    /// Routes for which dpservice's answer did not fit the inventory, and was listed for that reason.
    routes_disputed: HashSet<RouteKey>,
    /// Routes whose last announcer took them back while a server was there.
    withdrawn: HashSet<RouteKey>,
    nic_queue: Queue<Uid>,
    network_queue: Queue<ObjectKey>,
    route_queue: Queue<RouteKey>,
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
            networks: BTreeMap::new(),
            networks_by_vni: BTreeMap::new(),
            api_synced: false,
            rib: Rib::default(),
            imports: Imports::new(),
            exports: BTreeMap::new(),
            imports_stale: false,
            own: Own::new(),
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
            tracks: BTreeMap::new(),
            network_lanes: BTreeMap::new(),
            routes_busy: HashSet::new(),
            routes_failed: HashMap::new(),
            routes_disputed: HashSet::new(),
            withdrawn: HashSet::new(),
            nic_queue,
            network_queue: Queue::default(),
            route_queue: Queue::default(),
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
            routes: self.observed.routes_len(),
            learned: self.rib.len(),
            learned_dropped: self.rib.dropped,
            announcements: self.announced,
            subscriptions: self.subscribed.len(),
            claims: self.claims.len(),
            devices: self.devices.len(),
            queued: self.nic_queue.len() + self.network_queue.len() + self.route_queue.len(),
            inflight: self.dp_inflight + self.api_inflight + self.claim_inflight,
            instances_seen: self.instances_seen,
        }
    }

    fn routing(&self) -> Routing<'_> {
        Routing {
            settings: &self.settings,
            rib: &self.rib,
            own: &self.own,
            imports: &self.imports,
            observed: &self.observed,
        }
    }

    fn want(&self, uid: &Uid) -> Want<'_> {
        let nic = self.nics.get(uid);
        let network = nic.and_then(|nic| self.networks.get(&nic.network));
        desired::want(
            nic,
            network,
            self.api_synced,
            self.observed.interface(uid).is_some(),
        )
    }

    fn device(&self, claim: &str) -> Option<&Device> {
        self.devices
            .iter()
            .find(|(text, _)| text == claim)
            .map(|(_, device)| device)
    }

    fn claim(&self, uid: &Uid) -> Claim<'_> {
        match self.claims.get(uid) {
            None => Claim::None,
            Some(text) => self.device(text).map_or(Claim::Gone, Claim::Held),
        }
    }

    /// The device for a new claim: the one its interface already has, or the first that nobody uses.
    fn choose_device(&self, uid: &Uid) -> Option<String> {
        let taken = |text: &str| {
            self.claims
                .values()
                .chain(self.claiming.values())
                .any(|other| other == text)
        };
        if let Some(interface) = self.observed.interface(uid) {
            let current = self
                .devices
                .iter()
                .find(|(_, device)| device.name == interface.device);
            if let Some((text, _)) = current.filter(|(text, _)| !taken(text)) {
                return Some(text.clone());
            }
        }
        let occupied: HashSet<&str> = self
            .observed
            .interfaces()
            .map(|(_, i)| i.device.as_str())
            .collect();
        let free = |(text, device): &&(String, Device)| {
            !taken(text) && !occupied.contains(device.name.as_str())
        };
        self.devices.iter().find(free).map(|(text, _)| text.clone())
    }

    /// Brings what an interface contributes (own prefixes, announcements, VNIs) in line with the present state.
    fn refresh_share(&mut self, uid: &Uid) {
        let want = self.want(uid);
        let device = match self.claim(uid) {
            Claim::Held(device) => Some(device.name.as_str()),
            Claim::None | Claim::Gone => None,
        };
        let share = desired::share(want, device, self.observed.interface(uid), &self.settings);
        let track = self.tracks.entry(uid.clone()).or_default();
        if track.share == share {
            return;
        }
        let old = std::mem::replace(&mut track.share, share.clone());
        self.subscriptions_stale |= old.vnis != share.vnis;
        // Withdraw first: an address that moves from one underlay address to another must not end up withdrawn.
        self.bond.extend(
            old.announcements
                .difference(&share.announcements)
                .map(|a| BondOp::Withdraw(*a)),
        );
        self.bond.extend(
            share
                .announcements
                .difference(&old.announcements)
                .map(|a| BondOp::Announce(*a)),
        );
        self.announced = self.announced + share.announcements.len() - old.announcements.len();
        for (key, underlay) in &old.own {
            if share.own.get(key) != Some(underlay) {
                self.set_own(*key, uid, None);
            }
        }
        for (key, underlay) in &share.own {
            if old.own.get(key) != Some(underlay) {
                self.set_own(*key, uid, Some(*underlay));
            }
        }
    }

    fn set_own(&mut self, key: RouteKey, uid: &Uid, underlay: Option<Option<Ipv6Addr>>) {
        match underlay {
            Some(underlay) => {
                self.own
                    .entry(key)
                    .or_default()
                    .insert(uid.clone(), underlay);
            }
            None => {
                if let Some(owners) = self.own.get_mut(&key) {
                    owners.remove(uid);
                    if owners.is_empty() {
                        self.own.remove(&key);
                    }
                }
            }
        }
        self.touch_route(key);
    }

    /// Marks a route, and those in the tables that import it.
    fn touch_route(&mut self, key: RouteKey) {
        self.route_queue.push(key);
        if let Some(importers) = self.exports.get(&key.vni) {
            for vni in importers {
                self.route_queue.push(RouteKey {
                    vni: *vni,
                    prefix: key.prefix,
                });
            }
        }
    }

    /// Marks everything that could be in table `vni`.
    fn touch_table(&mut self, vni: Vni) {
        if !self.observed.uses_vni(vni) {
            return;
        }
        let exporters = self
            .imports
            .get(&vni)
            .into_iter()
            .flat_map(|exporters| exporters.keys().copied());
        let sources: Vec<Vni> = exporters.chain([vni]).collect();
        let mut prefixes: BTreeSet<Prefix> = desired::default_prefixes(&self.settings).collect();
        prefixes.extend(self.observed.routes(vni).map(|(prefix, _)| prefix));
        for source in &sources {
            prefixes.extend(self.rib.prefixes(*source));
        }
        prefixes.extend(
            self.own
                .keys()
                .filter(|key| sources.contains(&key.vni))
                .map(|key| key.prefix),
        );
        for prefix in prefixes {
            self.route_queue.push(RouteKey { vni, prefix });
        }
    }

    fn touch_all_tables(&mut self) {
        let vnis: Vec<Vni> = self.observed.vnis().collect();
        for vni in vnis {
            self.touch_table(vni);
        }
    }

    fn touch_nic(&mut self, uid: &Uid) {
        self.refresh_share(uid);
        self.nic_queue.push(uid.clone());
    }

    fn touch_all_nics(&mut self) {
        let known = self
            .nics
            .keys()
            .chain(self.tracks.keys())
            .chain(self.claims.keys());
        let uids: BTreeSet<Uid> = known
            .chain(self.observed.interfaces().map(|(uid, _)| uid))
            .cloned()
            .collect();
        for uid in uids {
            self.touch_nic(&uid);
        }
    }

    fn touch_networks_of(&mut self, vni: Vni) {
        for key in self.networks_by_vni.get(&vni).into_iter().flatten() {
            self.network_queue.push(key.clone());
        }
    }

    /// Marks the interfaces that wait for a route to leave one of their prefixes.
    fn touch_owners(&mut self, key: RouteKey) {
        if let Some(owners) = self.own.get(&key) {
            for uid in owners.keys() {
                self.nic_queue.push(uid.clone());
            }
        }
    }

    /// Whether something is about to leave a prefix that the interface wants: a route to another host, or an interface
    /// of this host that is being torn down.
    fn is_occupied(&self, uid: &Uid) -> bool {
        let leaving = |key: &RouteKey| {
            let mut owners = self.own.get(key).into_iter().flatten();
            owners.any(|(owner, underlay)| {
                owner != uid && underlay.is_some() && matches!(self.want(owner), Want::Absent)
            })
        };
        self.tracks.get(uid).is_some_and(|track| {
            let mut missing = track
                .share
                .own
                .iter()
                .filter(|(_, underlay)| underlay.is_none());
            missing.any(|(key, _)| {
                self.observed.route(key.vni, &key.prefix).is_some()
                    || self.routes_busy.contains(key)
                    || leaving(key)
            })
        })
    }

    /// Prefixes have become free here: whoever waits for one of them tries at once.
    fn freed(&mut self, keys: impl IntoIterator<Item = RouteKey>) {
        for key in keys {
            let owners = self.own.get(&key).into_iter().flatten();
            let uids: Vec<Uid> = owners.map(|(uid, _)| uid.clone()).collect();
            for uid in uids {
                if let Some(track) = self.tracks.get_mut(&uid) {
                    track.dp.reopen();
                    track.failure = None;
                }
                self.nic_queue.push(uid);
            }
        }
    }

    /// Reads the peerings anew and marks the tables whose imports changed.
    fn refresh_imports(&mut self) {
        self.imports_stale = false;
        let imports = desired::imports(self.networks.values());
        if imports == self.imports {
            return;
        }
        let vnis: BTreeSet<Vni> = self.imports.keys().chain(imports.keys()).copied().collect();
        let changed: Vec<Vni> = vnis
            .into_iter()
            .filter(|vni| self.imports.get(vni) != imports.get(vni))
            .collect();
        for vni in &changed {
            // What the old imports brought in has to be looked at as well as what the new ones will.
            self.touch_table(*vni);
        }
        self.imports = imports;
        self.exports.clear();
        for (importer, exporters) in &self.imports {
            for exporter in exporters.keys() {
                self.exports.entry(*exporter).or_default().insert(*importer);
            }
        }
        for vni in changed {
            self.touch_table(vni);
        }
        self.subscriptions_stale = true;
    }

    fn refresh_subscriptions(&mut self) {
        self.subscriptions_stale = false;
        let shares = self.tracks.values().map(|track| &track.share);
        let wanted = desired::subscriptions(shares, &self.imports, &self.settings);
        for vni in wanted.difference(&self.subscribed) {
            self.bond.push(BondOp::Subscribe(*vni));
        }
        let dropped: Vec<Vni> = self.subscribed.difference(&wanted).copied().collect();
        for vni in dropped {
            self.bond.push(BondOp::Unsubscribe(vni));
            self.rib.forget(vni);
        }
        self.subscribed = wanted;
    }
}
