//! A hypervisor: metalnet's real agent between the API, metalbond and a data plane, each answer late or lost.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use apiserver::local::Patch;
use controller::{Class, Key, Kind as ApiKind, Target};
use kube::runtime::watcher::Event;
use metalbond::Route;
use metalnet::agent::{Actions, Agent, Input, Written};
use metalnet::bond::{self, Hearing, Link};
use metalnet::device;
use metalnet::model::{Uid, Vni};
use metalnet::objects::{Change, Kind, View, written};
use metalnet::parse::Reader;
use metalnet::plan::desired::Settings;
use metalnet::plan::ops::{ApiError, ApiOp, BondOp, ClaimOp, DpDone, DpError, DpOp};
use rand::Rng;
use rand::rngs::StdRng;

use crate::region::bond::{Client, Reach};
use crate::region::bug::Bug;
use crate::region::plane::{DEVICES, Plane};
use crate::region::store::{Refusal, Resource, Store};

/// The VNI of public addresses.
pub const PUBLIC_VNI: u32 = 100;
/// metalnet looks at its connections at this interval; here not as often as in earnest, because every look is a step.
const LOOK: Duration = Duration::from_millis(400);

/// What is under way.
enum Call {
    /// With the life of the data plane that it was sent to.
    Plane(DpOp, u64),
    Api(ApiOp),
    Claim(ClaimOp),
    /// An answer on its way back.
    Answer(Box<Input>),
}

struct Watching {
    resource: Resource,
    view: View,
    cursor: usize,
    relist: bool,
    stalled_until: u64,
}

pub struct Host {
    pub name: String,
    pub underlay: Ipv6Addr,
    seed: u64,
    agent: Agent,
    resources: [Resource; 3],
    watches: Vec<Watching>,
    reader: Reader,
    claims: BTreeMap<Uid, String>,
    pub plane: Option<Plane>,
    life: u64,
    /// When a new data plane answers.
    pub plane_up_at: Option<u64>,
    pub bond: Client,
    hearing: Hearing,
    look_at: Duration,
    /// With whether the agent that made the call has died since.
    calls: Vec<(Call, bool)>,
    inbox: VecDeque<Input>,
    stirred: bool,
    servers: usize,
    pub bug: Option<Bug>,
    /// Answers that get lost from now on.
    pub losses: u32,
    /// metalnet does nothing until then; the data plane goes on.
    paused_until: u64,
    /// The hypervisor is cut off: no management, no metalbond. Its data plane may live.
    pub offline: bool,
    /// It never comes back.
    pub departed: bool,
    /// Calls that data planes of this host carried out.
    pub plane_calls: u64,
}

/// What a host did, for the history.
pub enum Deed {
    None,
    Write(ApiOp, Result<(), String>),
    Plane(DpOp, Result<(), String>),
}

fn settings(name: &str) -> Option<Settings> {
    Some(Settings {
        node: name.to_owned(),
        ipv6: true,
        public_vni: Vni::new(PUBLIC_VNI)?,
        router: None,
        prefer_network: None,
    })
}

/// The name of a hypervisor.
pub fn name(number: u16) -> String {
    format!("hv{}", number + 1)
}

impl Host {
    pub fn new(number: u16, servers: usize, seed: u64, store: &mut Store) -> Option<Host> {
        let name = name(number);
        let underlay = Ipv6Addr::new(0xfd00, 0, 0, number + 1, 0, 0, 0, 1);
        let agent = Agent::new(settings(&name)?, device::taps(DEVICES), BTreeMap::new());
        let reader = Reader {
            node: name.clone(),
            ipv6: true,
        };
        let mut host = Host {
            bond: Client::new(&name, servers),
            name,
            underlay,
            seed,
            agent,
            resources: Kind::ALL.map(|kind| {
                let resource = kind.resource();
                store.resource(&resource.group, &resource.plural)
            }),
            watches: Vec::new(),
            reader,
            claims: BTreeMap::new(),
            plane: None,
            life: 0,
            plane_up_at: Some(0),
            hearing: Hearing::default(),
            look_at: Duration::ZERO,
            calls: Vec::new(),
            inbox: VecDeque::new(),
            stirred: true,
            servers,
            bug: None,
            losses: 0,
            paused_until: 0,
            offline: false,
            departed: false,
            plane_calls: 0,
        };
        host.watch();
        Some(host)
    }

    fn watch(&mut self) {
        let kinds = Kind::ALL.iter().zip(&self.resources);
        let watches = kinds.map(|(kind, resource)| Watching {
            resource: *resource,
            view: View::new(*kind),
            cursor: 0,
            relist: true,
            stalled_until: 0,
        });
        self.watches = watches.collect();
    }

    /// metalnet dies and starts again; the data plane and the claims stay.
    pub fn crash_agent(&mut self) {
        let Some(settings) = settings(&self.name) else {
            return;
        };
        // What was sent is carried out; only the answers find nobody.
        self.calls
            .retain(|(call, _)| !matches!(call, Call::Answer(_)));
        self.calls.iter_mut().for_each(|(_, orphan)| *orphan = true);
        self.inbox.clear();
        self.agent = Agent::new(settings, device::taps(DEVICES), self.claims.clone());
        self.bond = Client::new(&self.name, self.servers);
        self.hearing = Hearing::default();
        self.watch();
        if let Some(plane) = &self.plane {
            let instance = plane.instance();
            self.inbox.push_back(Input::DpUp { instance });
        }
        self.stirred = true;
    }

    /// dpservice dies: all it held is gone. Another one answers at that time.
    pub fn crash_plane(&mut self, up_at: u64) {
        if self.plane.take().is_some() {
            self.inbox.push_back(Input::DpDown);
        }
        self.plane_up_at = Some(up_at);
    }

    pub fn skip(&mut self, rng: &mut StdRng) {
        let at = rng.random_range(0..self.watches.len());
        if let Some(watch) = self.watches.get_mut(at) {
            watch.relist = true;
        }
    }

    pub fn stall(&mut self, until: u64, rng: &mut StdRng) {
        let at = rng.random_range(0..self.watches.len());
        if let Some(watch) = self.watches.get_mut(at) {
            watch.stalled_until = until;
        }
    }

    /// The hypervisor is cut off, with or without its data plane.
    pub fn go(&mut self, with_plane: bool) {
        self.offline = true;
        if with_plane {
            self.crash_plane(0);
        }
    }

    /// The hypervisor starts again; what its data plane still has stays.
    pub fn come_back(&mut self, now_ms: u64) {
        self.offline = false;
        self.paused_until = 0;
        if self.plane.is_none() {
            self.plane_up_at = Some(now_ms);
        }
        self.crash_agent();
    }

    /// The hypervisor is scrapped.
    pub fn depart(&mut self) {
        self.offline = true;
        self.departed = true;
        self.plane = None;
        self.plane_up_at = None;
        self.claims.clear();
        self.bond = Client::new(&self.name, self.servers);
    }

    /// metalnet gets no processor for a while.
    pub fn pause(&mut self, until: u64) {
        self.paused_until = until;
    }

    pub fn claims_len(&self) -> usize {
        self.claims.len()
    }

    fn lag(&self, at: usize, store: &Store) -> bool {
        self.watches
            .get(at)
            .is_some_and(|watch| watch.relist || watch.cursor < store.changes_of(watch.resource))
    }

    pub fn is_busy(&self, store: &Store, now_ms: u64, now: Duration, start: Instant) -> bool {
        if self.offline {
            return false;
        }
        if self.paused_until > now_ms {
            return self.plane_up_at.is_some_and(|at| at <= now_ms);
        }
        let watch = (0..self.watches.len()).any(|at| {
            self.lag(at, store)
                && self
                    .watches
                    .get(at)
                    .is_some_and(|w| w.stalled_until <= now_ms)
        });
        watch
            || self.stirred
            || !self.inbox.is_empty()
            || !self.calls.is_empty()
            || self.plane_up_at.is_some_and(|at| at <= now_ms)
            || self.look_at <= now
            || self.agent.deadline().is_some_and(|at| at <= start + now)
    }

    /// When something is to be done although nothing happens.
    pub fn deadline(&self, start: Instant, now_ms: u64) -> Option<Duration> {
        if self.offline || self.paused_until > now_ms {
            return None;
        }
        let agent = self.agent.deadline();
        let agent = agent.map(|at| at.saturating_duration_since(start));
        Some(agent.map_or(self.look_at, |agent| agent.min(self.look_at)))
    }

    pub fn wakes_at(&self, now_ms: u64) -> Option<u64> {
        if self.offline {
            return None;
        }
        if self.paused_until > now_ms {
            return self
                .plane_up_at
                .into_iter()
                .chain([self.paused_until])
                .min();
        }
        let stalled = self.watches.iter().map(|watch| watch.stalled_until);
        stalled.filter(|at| *at > 0).chain(self.plane_up_at).min()
    }

    /// Whether nothing is left to do but look and wait.
    pub fn is_quiet(&self, store: &Store) -> bool {
        self.departed
            || !self.stirred
                && self.inbox.is_empty()
                && self.calls.is_empty()
                && self.plane.is_some()
                && (0..self.watches.len()).all(|at| !self.lag(at, store))
                && self.agent.gauges().inflight == 0
    }

    /// Does one thing.
    pub fn step(
        &mut self,
        store: &mut Store,
        now_ms: u64,
        now: Duration,
        start: Instant,
        rng: &mut StdRng,
    ) -> Deed {
        self.wake(now_ms);
        if self.paused_until > now_ms {
            return Deed::None;
        }
        let shows = (0..self.watches.len()).filter(|at| {
            self.lag(*at, store) && self.watches.get(*at).is_some_and(|w| w.stalled_until == 0)
        });
        let shows: Vec<usize> = shows.collect();
        let poll = self.stirred
            || !self.inbox.is_empty()
            || {
                let due = self.agent.deadline();
                due.is_some_and(|at| at <= start + now)
            }
            || self.look_at <= now;
        let most = shows.len() + self.calls.len() + usize::from(poll) * 3;
        let choice = rng.random_range(0..most.max(1));
        if let Some(at) = shows.get(choice) {
            self.show(*at, store, rng.random_range(1..6));
            return Deed::None;
        }
        let choice = choice.saturating_sub(shows.len());
        if choice < self.calls.len() {
            let (call, orphan) = self.calls.swap_remove(choice);
            return self.carry_out(call, orphan, store, rng);
        }
        self.turn(now, start);
        Deed::None
    }

    fn wake(&mut self, now_ms: u64) {
        for watch in &mut self.watches {
            if watch.stalled_until <= now_ms {
                watch.stalled_until = 0;
            }
        }
        if self.plane_up_at.is_some_and(|at| at <= now_ms) {
            self.plane_up_at = None;
            self.life += 1;
            self.plane = Some(Plane::new(self.underlay, self.seed, self.life));
            self.inbox.push_back(Input::DpUp { instance: None });
        }
    }

    fn show(&mut self, at: usize, store: &Store, most: usize) {
        let Self {
            watches,
            reader,
            inbox,
            ..
        } = self;
        let Some(watch) = watches.get_mut(at) else {
            return;
        };
        let Some(history) = store.history(watch.resource) else {
            return;
        };
        let mut events = Vec::new();
        let first = !watch.view.is_synced();
        if std::mem::take(&mut watch.relist) {
            watch.cursor = history.changes.len();
            events.push(Event::Init);
            let live = history.live.values();
            events.extend(live.map(|change| Event::InitApply(change.object.clone())));
            events.push(Event::InitDone);
        } else {
            for change in history.changes.iter().skip(watch.cursor).take(most) {
                watch.cursor += 1;
                let object = change.object.clone();
                events.push(match change.gone {
                    true => Event::Delete(object),
                    false => Event::Apply(object),
                });
            }
        }
        for event in events {
            inbox.extend(watch.view.take(reader, event));
        }
        if first && self.watches.iter().all(|watch| watch.view.is_synced()) {
            self.inbox.push_back(Input::ApiSynced);
        }
    }

    /// One turn of metalnet's loop: what was learned, what follows.
    fn turn(&mut self, now: Duration, start: Instant) {
        let at = start + now;
        let mut look = self.look_at <= now;
        for event in self.bond.events() {
            if let Some(input) = bond::input(event) {
                if let Input::Learned { vni, .. } = &input {
                    self.hearing.event(*vni, at);
                }
                self.inbox.push_back(input);
            }
        }
        for input in std::mem::take(&mut self.inbox) {
            self.agent.apply(input, at);
        }
        loop {
            if std::mem::take(&mut look) {
                self.look_at = now + LOOK;
                for input in self.hearing.look(link(self.bond.reach()), at) {
                    self.agent.apply(input, at);
                }
            }
            let actions = self.agent.poll(at);
            for op in &actions.bond {
                look |= matches!(op, BondOp::Subscribe(_));
                self.hearing.note(op, at);
            }
            self.perform(actions);
            if !look {
                break;
            }
        }
        self.stirred = false;
    }

    fn perform(&mut self, actions: Actions) {
        let Actions {
            bond,
            dp,
            api,
            claims,
            recheck,
        } = actions;
        for op in bond {
            match op {
                BondOp::Subscribe(vni) => self.bond.subscribe(vni.get()),
                BondOp::Unsubscribe(vni) => self.bond.unsubscribe(vni.get()),
                BondOp::Announce(announcement) => {
                    if let Some(route) = route(bond::words(announcement)) {
                        self.bond.announce(route);
                    }
                }
                BondOp::Withdraw(_) if self.bug.is_some_and(Bug::keeps_routes) => {}
                BondOp::Withdraw(announcement) => {
                    if let Some(route) = route(bond::words(announcement)) {
                        self.bond.withdraw(&route);
                    }
                }
            }
        }
        let life = self.life;
        let calls = dp.into_iter().map(|op| Call::Plane(op, life));
        let calls = calls.chain(api.into_iter().map(Call::Api));
        let calls = calls.chain(claims.into_iter().map(Call::Claim));
        self.calls.extend(calls.map(|call| (call, false)));
        if recheck && let Some(plane) = &self.plane {
            let instance = plane.instance();
            self.inbox.push_back(Input::DpUp { instance });
        }
    }

    fn carry_out(&mut self, call: Call, orphan: bool, store: &mut Store, rng: &mut StdRng) -> Deed {
        match call {
            Call::Answer(input) => {
                self.inbox.push_back(*input);
                Deed::None
            }
            Call::Claim(op) => {
                match &op {
                    ClaimOp::Take { uid, claim } => {
                        self.claims.insert(uid.clone(), claim.clone());
                    }
                    ClaimOp::Release { uid } => {
                        self.claims.remove(uid);
                    }
                }
                self.answer(Input::Claim { op, result: Ok(()) }, orphan, rng);
                Deed::None
            }
            Call::Plane(op, life) => self.call_plane(op, life, orphan, rng),
            Call::Api(op) => {
                let result = self.write(&op, store);
                let shown = result.as_ref().map(|_| ()).map_err(ToString::to_string);
                let lost = self.loses(rng);
                let result = match lost {
                    true => Err(ApiError::Unavailable("timed out".to_owned())),
                    false => result,
                };
                let op_shown = op.clone();
                self.answer(Input::Api { op, result }, orphan, rng);
                Deed::Write(op_shown, shown)
            }
        }
    }

    fn call_plane(&mut self, op: DpOp, life: u64, orphan: bool, rng: &mut StdRng) -> Deed {
        self.plane_calls += 1;
        let unavailable = || Err(DpError::Unavailable("timed out".to_owned()));
        let result = match &mut self.plane {
            Some(_) if self.bug.is_some_and(|bug| bug.swallows(&op)) => Ok(DpDone::Done),
            Some(plane) if life == self.life => plane.call(&op),
            Some(_) | None => unavailable(),
        };
        let shown = result.as_ref().map(|_| ()).map_err(ToString::to_string);
        let result = if self.loses(rng) {
            unavailable()
        } else {
            result
        };
        let op_shown = op.clone();
        self.answer(Input::Dp { op, result }, orphan, rng);
        Deed::Plane(op_shown, shown)
    }

    fn loses(&mut self, rng: &mut StdRng) -> bool {
        let loses = self.losses > 0 && rng.random_ratio(1, 2);
        self.losses -= u32::from(loses);
        loses
    }

    fn answer(&mut self, input: Input, orphan: bool, rng: &mut StdRng) {
        if orphan {
            return;
        }
        if rng.random_ratio(1, 8) {
            self.calls.push((Call::Answer(Box::new(input)), false));
        } else {
            self.inbox.push_back(input);
        }
    }

    fn write(&self, op: &ApiOp, store: &mut Store) -> Result<Written, ApiError> {
        let Some(change) = Change::of(op) else {
            return Ok(Written::Nothing);
        };
        let resource = change.kind.resource();
        let target = Target {
            kind: ApiKind {
                group: resource.group,
                version: resource.version,
                kind: resource.kind,
                plural: resource.plural,
            },
            key: Key::new(&change.key.namespace, &change.key.name),
        };
        let (status, body) = (change.status, &change.body);
        let manager = api::names::manager::METALNET;
        let object = store
            .patch(&target, Patch::Merge, status, body, manager)
            .map_err(api_error)?;
        let object = serde_json::from_value(object);
        let object = object.map_err(|error| ApiError::Refused(error.to_string()))?;
        Ok(written(&self.reader, change.kind, object))
    }

    /// Some message of metalbond came.
    pub fn stir(&mut self) {
        self.stirred = true;
    }
}

fn route(words: Option<(u32, metalbond::Destination, metalbond::NextHop)>) -> Option<Route> {
    let (vni, destination, next_hop) = words?;
    Some(Route {
        vni,
        destination,
        next_hop,
    })
}

fn link(reach: Reach) -> Link {
    match reach {
        Reach::None => Link::Down,
        Reach::Catching => Link::Catching,
        Reach::Synced => Link::Up,
    }
}

fn api_error(refusal: Refusal) -> ApiError {
    let Refusal { class, text } = refusal;
    match class {
        Class::Conflict if text.starts_with("NotFound") => ApiError::NotFound,
        Class::Conflict => ApiError::Conflict,
        Class::Permanent | Class::Bug => ApiError::Refused(text),
        Class::Retry => ApiError::Unavailable(text),
    }
}
