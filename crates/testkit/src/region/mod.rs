//! A region in one thread, under one virtual clock and one seed: the API server's registry over a store in memory, every plan of every
//! controller, metalbond's machines, metalnet's agents and a packet engine per hypervisor. Random users, random order, random faults.
//!
//! Real: everything that decides. Left out: sockets, HTTP, gRPC encoding, tasks, disks. One loop ([`Region::run`]) chooses what
//! happens next; all randomness comes from the seed, so a seed is a story that can be told again.
//!
//! Reading order: here, then [`user`] (what people want), [`fault`] (what goes wrong), [`check`] and [`exclusive`] (what must hold), and the parts:
//! [`store`], [`part`], [`host`], [`rack`], [`bond`], [`plane`], [`edge`], [`packet`]. [`bug`] plants bugs to prove that they are found.

pub mod bond;
pub mod bug;
pub mod check;
pub mod edge;
pub mod exclusive;
pub mod fault;
pub mod host;
pub mod kernel;
pub mod machines;
pub mod packet;
pub mod part;
pub mod plane;
pub mod pool;
pub mod prefixes;
pub mod provider;
pub mod rack;
pub mod services;
pub mod store;
pub mod user;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::names::{APINET, namespace};
use controller::{Controller, Op};
use dataplane::{PacketBuf, PortId, Verdict};
use metalnetlet::Partition;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use bug::Bug;
use edge::Edge;
use host::Host;
use part::Part;
use provider::{APINET_NS, PARTITION, Provider};
use rack::{Hands, Rack, Side, open};
use store::Store;
use user::User;

/// The virtual clock starts here: 2026-01-01T00:00:00Z.
const EPOCH_MS: u64 = 1_767_225_600_000;
/// Steps of one seed beyond which it does not come to rest.
const STEPS_MAX: u64 = 400_000;
/// Steps between two looks at who uses what.
const EXCLUSIVE_EVERY: u64 = 4;
/// Lines of history kept for the report.
const HISTORY_MAX: usize = 20_000;
/// A hypervisor that has been silent for this long is taken for lost.
const SILENCE: Duration = Duration::from_secs(3);
/// Hosts that a packet may pass.
const HOPS_MAX: usize = 8;
/// Longer than every hold, grace and back-off of the product: after this time without disturbance the region is at rest.
const REST_MS: u64 = 45_000;

/// What a seed is about.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub seed: u64,
    /// A planted bug; none in earnest.
    pub bug: Option<Bug>,
    /// Keep every operation, not only what users did and what went wrong.
    pub verbose: bool,
}

/// What went wrong, and the way there.
#[derive(Clone, Debug)]
pub struct Violation {
    pub what: String,
    pub history: Vec<String>,
}

/// What a seed was made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub seeds: u64,
    pub steps: u64,
    pub writes: u64,
    pub probes: u64,
    pub user_ops: u64,
    pub faults: u64,
    pub virtual_ms: u64,
}

impl Summary {
    /// Adds another seed's figures.
    pub fn add(&mut self, other: Summary) {
        let Summary {
            seeds,
            steps,
            writes,
            probes,
            user_ops,
            faults,
            virtual_ms,
        } = other;
        self.seeds += seeds;
        self.steps += steps;
        self.writes += writes;
        self.probes += probes;
        self.user_ops += user_ops;
        self.faults += faults;
        self.virtual_ms += virtual_ms;
    }
}

/// The region.
pub struct Region {
    pub config: Config,
    rng: StdRng,
    /// Milliseconds since the start.
    now_ms: u64,
    start: Instant,
    pub store: Store,
    parts: Vec<Part>,
    pub hosts: Vec<Host>,
    /// The machine sides of the hypervisors, in a region that has machines; else none.
    pub racks: Vec<Arc<Mutex<Rack>>>,
    servers: Vec<bond::Server>,
    edge: Edge,
    user: User,
    history: Vec<String>,
    pub summary: Summary,
    collect_at: u64,
    /// Pairs of interfaces that were allowed to reach each other at some time.
    ever: BTreeSet<(String, String)>,
    /// The load balancers behind all DaemonSets that ever were, by uid, and how many changes of DaemonSets that took in.
    set_owners: BTreeMap<String, String>,
    sets_seen: usize,
    /// Changes of objects and calls to data planes at the last look at who uses what.
    looked_at: (usize, u64),
}

/// Where a packet ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// At a machine's device, as this frame.
    Delivered(usize, PortId, Vec<u8>),
    /// In the outside world, as this IP packet.
    Outside(Vec<u8>),
    Lost(String),
}

enum Actor {
    Part(usize),
    Host(usize),
    Rack(usize),
    Line(usize, usize),
    Edge(usize),
    Collect,
}

fn controllers(bug: Option<Bug>, which: &str) -> Vec<Arc<dyn Controller>> {
    let filter = || apinetlet::Filter {
        apinet_namespace: APINET_NS.to_owned(),
        namespace: None,
        watch_filter: None,
    };
    let all: Vec<Arc<dyn Controller>> = match which {
        "controller-manager" => {
            let entries = core_controllers::manager::all(SILENCE, SILENCE);
            entries
                .into_iter()
                .map(|(controller, _)| controller)
                .collect()
        }
        "apinetlet" => vec![
            Arc::new(apinetlet::NetworkController {
                filter: filter(),
                peering: true,
            }),
            Arc::new(apinetlet::NetworkInterfaceController { filter: filter() }),
            Arc::new(apinetlet::VirtualIpController { filter: filter() }),
            Arc::new(apinetlet::LoadBalancerController {
                filter: filter(),
                node_affinity: false,
            }),
            Arc::new(apinetlet::NatGatewayController {
                filter: filter(),
                bounds: apinetlet::NatBounds { min: 1, max: 10 },
            }),
            Arc::new(apinetlet::NetworkPolicyController { filter: filter() }),
        ],
        "metalnetlet" => match Partition::new(PARTITION, namespace::METALNET) {
            Ok(partition) => vec![
                Arc::new(metalnetlet::NodeController {
                    partition: partition.clone(),
                    selector: None,
                }),
                Arc::new(metalnetlet::NetworkController {
                    partition: partition.clone(),
                }),
                Arc::new(metalnetlet::InstanceController {
                    partition: partition.clone(),
                    node_selector: None,
                }),
                Arc::new(metalnetlet::NetworkInterfaceController {
                    partition,
                    node_selector: None,
                }),
            ],
            Err(_) => Vec::new(),
        },
        _ => vec![Arc::new(Provider)],
    };
    planted(bug, all)
}

fn planted(bug: Option<Bug>, all: Vec<Arc<dyn Controller>>) -> Vec<Arc<dyn Controller>> {
    match bug {
        Some(bug) => all.into_iter().map(|c| bug.wrap(c)).collect(),
        None => all,
    }
}

/// The processes of a hypervisor's machine side.
fn machine_parts(bug: Option<Bug>, rack: &Arc<Mutex<Rack>>, store: &mut Store) -> [Part; 2] {
    let hands = |side| Hands {
        rack: rack.clone(),
        side,
    };
    let (one, two) = (rack.clone(), rack.clone());
    let poollet = Box::new(move || planted(bug, pool::poollet(&one)));
    let provider = Box::new(move || planted(bug, pool::provider(&two)));
    let mut parts = [
        Part::new("machinepoollet", poollet, store),
        Part::new("machine-provider", provider, store),
    ];
    let [poollet, provider] = &mut parts;
    poollet.hands = Some(hands(Side::Poollet));
    provider.hands = Some(hands(Side::Provider));
    parts
}

/// Plays a seed to its end.
pub fn run(config: Config) -> Result<Summary, Violation> {
    let mut region = Region::new(config).map_err(|what| Violation {
        what,
        history: Vec::new(),
    })?;
    match region.run() {
        Ok(()) => Ok(Summary {
            seeds: 1,
            writes: region.store.writes,
            virtual_ms: region.now_ms,
            ..region.summary
        }),
        Err(what) => Err(Violation {
            what,
            history: region.history,
        }),
    }
}

impl Region {
    pub fn new(config: Config) -> Result<Region, String> {
        let seed = config.seed;
        let mut rng = StdRng::seed_from_u64(seed);
        let hosts = rng.random_range(2..=3);
        let servers = rng.random_range(1..=2);
        let mut store = Store::new(seed, EPOCH_MS)?;
        let names = ["controller-manager", "apinetlet", "metalnetlet", "provider"];
        let parts = names.map(|name| {
            let make = move || controllers(config.bug, name);
            Part::new(name, Box::new(make), &mut store)
        });
        let mut parts: Vec<Part> = parts.into();
        let has_machines = rng.random();
        let racks = (0..hosts).filter(|_| has_machines).map(|number: u16| {
            let name = host::name(number);
            let node = api::ids::apinet_node_name(PARTITION, &name);
            Arc::new(Mutex::new(Rack::new(number, &name, node)))
        });
        let racks: Vec<_> = racks.collect();
        for rack in &racks {
            parts.extend(machine_parts(config.bug, rack, &mut store));
        }
        let host = |number| {
            Host::new(
                number,
                servers,
                seed ^ (u64::from(number) << 32),
                &mut store,
            )
        };
        let hosts: Option<Vec<Host>> = (0..hosts).map(host).collect();
        let mut region = Region {
            config,
            now_ms: 0,
            start: Instant::now(),
            store,
            parts,
            racks,
            hosts: hosts.ok_or("a host's settings are wrong")?,
            servers: (0..servers).map(|_| bond::Server::default()).collect(),
            edge: Edge::new(servers),
            user: User::new(has_machines, &mut rng),
            history: Vec::new(),
            summary: Summary::default(),
            collect_at: 0,
            ever: BTreeSet::new(),
            set_owners: BTreeMap::new(),
            sets_seen: 0,
            looked_at: (0, 0),
            rng,
        };
        for host in &mut region.hosts {
            host.bug = config.bug;
            let node = host.name.clone();
            user::create_node(&mut region.store, &node)?;
            fault::beat(&mut region.store, namespace::NODE_LEASE, &node, u64::MAX)?;
        }
        if has_machines {
            machines::furnish(&mut region.store)?;
        }
        Ok(region)
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.now_ms)
    }

    fn epoch_ms(&self) -> u64 {
        EPOCH_MS + self.now_ms
    }

    fn note(&mut self, line: String) {
        if self.history.len() < HISTORY_MAX {
            self.history.push(format!("{:>8} {line}", self.now_ms));
        }
    }

    /// The story: people and faults, rest, checks; then everything is deleted, rest, and nothing may be left.
    fn run(&mut self) -> Result<(), String> {
        let acts = self.rng.random_range(6..24);
        for _ in 0..acts {
            let wait = match self.rng.random_range(0..10) {
                0 => 2_000,
                1..4 => 300,
                _ => 40,
            };
            let until = self.now_ms + self.rng.random_range(0..wait);
            self.until(until)?;
            if self.rng.random_ratio(1, 4) {
                fault::strike(self);
            } else {
                user::act(self)?;
            }
            check::never(self)?;
            if self.rng.random_ratio(1, 6) {
                check::lost(self)?;
            }
        }
        self.rest()?;
        check::at_rest(self)?;
        user::delete_everything(self)?;
        self.rest()?;
        // What was made to be kept is only now for nobody.
        if user::delete_kept(self)? {
            self.rest()?;
        }
        check::nothing_left(self)
    }

    /// Lets the region come to rest, with everybody alive.
    fn rest(&mut self) -> Result<(), String> {
        fault::heal(self);
        let end = self.now_ms + REST_MS;
        self.until(end)?;
        // Whatever takes longer than that must at least not be busy.
        for _ in 0..20 {
            if self.is_quiet() {
                return Ok(());
            }
            let next = self.now_ms + 1_000;
            self.until(next)?;
        }
        Err(format!("does not come to rest: {}", self.unrest()))
    }

    fn is_quiet(&self) -> bool {
        self.parts.iter().all(|part| part.is_quiet(&self.store))
            && self.hosts.iter().all(|host| host.is_quiet(&self.store))
            && self.racks.iter().all(|rack| open(rack).is_quiet())
            && !self.store.uncollected
    }

    fn unrest(&self) -> String {
        let mut found = Vec::new();
        for part in &self.parts {
            if !part.is_quiet(&self.store) {
                found.push(format!(
                    "{} {:?} {:?}",
                    part.name,
                    part.failing(),
                    part.refused.last()
                ));
            }
        }
        for host in self.hosts.iter().filter(|host| !host.is_quiet(&self.store)) {
            found.push(host.name.clone());
        }
        for rack in self.racks.iter().filter(|rack| !open(rack).is_quiet()) {
            found.push(format!("the machines of {}", open(rack).pool));
        }
        found.join("; ")
    }

    /// Runs until a time.
    fn until(&mut self, end: u64) -> Result<(), String> {
        loop {
            self.summary.steps += 1;
            if self.summary.steps > STEPS_MAX {
                return Err(format!("is busy for ever: {}", self.unrest()));
            }
            let actors = self.actors();
            if actors.is_empty() {
                let next = self.next_deadline().max(self.now_ms + 1);
                if next > end {
                    self.now_ms = end;
                    self.store.set_now(self.epoch_ms());
                    return Ok(());
                }
                self.now_ms = next;
            } else {
                let choice = self.rng.random_range(0..actors.len());
                if let Some(actor) = actors.into_iter().nth(choice) {
                    self.act(actor)?;
                }
                if self.rng.random_ratio(1, 4) {
                    self.now_ms += 1;
                }
                if self.now_ms >= end {
                    return Ok(());
                }
            }
            self.store.set_now(self.epoch_ms());
            if self.summary.steps.is_multiple_of(EXCLUSIVE_EVERY) {
                self.exclusive()?;
            }
            let now = self.now();
            for server in &mut self.servers {
                if server.next_deadline().is_some_and(|at| at <= now) {
                    server.sweep(now);
                }
            }
        }
    }

    /// Looks at who uses what, if anything has changed.
    fn exclusive(&mut self) -> Result<(), String> {
        let calls = self.hosts.iter().map(|host| host.plane_calls).sum();
        let now = (self.store.changes, calls);
        if std::mem::replace(&mut self.looked_at, now) == now {
            return Ok(());
        }
        self.follow_sets();
        exclusive::check(self)
    }

    /// A DaemonSet may be gone before its Instances.
    fn follow_sets(&mut self) {
        let resource = self.store.resource(APINET, "daemonsets");
        let Some(history) = self.store.history(resource) else {
            return;
        };
        for change in history.changes.iter().skip(self.sets_seen) {
            let owner = controller::object::controller_of(&change.object);
            if let (Some(uid), Some(owner)) = (&change.object.metadata.uid, owner) {
                self.set_owners.insert(uid.clone(), owner.uid.clone());
            }
        }
        self.sets_seen = history.changes.len();
    }

    fn actors(&self) -> Vec<Actor> {
        let mut actors = Vec::new();
        let (now, epoch) = (self.now(), self.epoch_ms());
        for (at, part) in self.parts.iter().enumerate() {
            if part.is_busy(&self.store, epoch) {
                actors.extend([Actor::Part(at), Actor::Part(at)]);
            }
        }
        for (at, host) in self.hosts.iter().enumerate() {
            if host.is_busy(&self.store, epoch, now, self.start) {
                actors.push(Actor::Host(at));
            }
            for server in 0..self.servers.len() {
                if !host.offline && host.bond.is_busy(server, now) {
                    actors.push(Actor::Line(at, server));
                }
            }
        }
        for (at, rack) in self.racks.iter().enumerate() {
            if open(rack).is_busy(epoch) {
                actors.push(Actor::Rack(at));
            }
        }
        for server in 0..self.servers.len() {
            if self.edge.bond.is_busy(server, now) {
                actors.push(Actor::Edge(server));
            }
        }
        if self.store.uncollected && self.collect_at <= self.now_ms {
            actors.push(Actor::Collect);
        }
        actors
    }

    fn next_deadline(&self) -> u64 {
        let epoch = |at: u64| at.saturating_sub(EPOCH_MS);
        let round_up = |at: Duration| at.as_micros().div_ceil(1_000) as u64;
        let racks = self.racks.iter().filter_map(|rack| open(rack).deadline());
        let parts = self.parts.iter().filter_map(Part::deadline);
        let parts = parts.chain(racks).map(epoch);
        let mut next = parts.min().unwrap_or(u64::MAX);
        for host in &self.hosts {
            let now = self.epoch_ms();
            next = next.min(host.deadline(self.start, now).map_or(u64::MAX, round_up));
            next = next.min(host.wakes_at(now).map_or(u64::MAX, epoch));
            for server in (0..self.servers.len()).filter(|_| !host.offline) {
                let line = host.bond.deadline(server);
                next = next.min(line.map_or(u64::MAX, round_up));
            }
        }
        for (at, server) in self.servers.iter().enumerate() {
            let line = self.edge.bond.deadline(at);
            next = next.min(line.map_or(u64::MAX, round_up));
            next = next.min(server.next_deadline().map_or(u64::MAX, round_up));
        }
        if self.store.uncollected {
            next = next.min(self.collect_at);
        }
        next
    }

    fn act(&mut self, actor: Actor) -> Result<(), String> {
        let (now, epoch) = (self.now(), self.epoch_ms());
        match actor {
            Actor::Part(at) => {
                let part = self.parts.get_mut(at).ok_or("no such part")?;
                let name = part.name;
                let deed = part.step(&mut self.store, epoch, &mut self.rng);
                let deed = deed.filter(|deed| !matches!(deed.op, Op::Event { .. }));
                if let Some(deed) = deed.filter(|_| self.config.verbose) {
                    let part::Deed {
                        controller,
                        key,
                        op,
                        result,
                    } = deed;
                    let op = show(&op);
                    self.note(format!("{name} {controller} {key}: {op} {result:?}"));
                }
            }
            Actor::Host(at) => {
                let host = self.hosts.get_mut(at).ok_or("no such host")?;
                let deed = host.step(&mut self.store, epoch, now, self.start, &mut self.rng);
                if let Some(rack) = self.racks.get(at) {
                    open(rack).kernel.follow(host.plane.as_ref());
                }
                if self.config.verbose {
                    let name = host.name.clone();
                    match deed {
                        host::Deed::None => {}
                        host::Deed::Write(op, result) => {
                            self.note(format!("{name} {op:?} {result:?}"));
                        }
                        host::Deed::Plane(op, result) => {
                            self.note(format!("{name} {op:?} {result:?}"));
                        }
                    }
                }
            }
            Actor::Rack(at) => {
                let rack = self.racks.get(at).ok_or("no such rack")?;
                open(rack).step(epoch, &mut self.rng);
            }
            Actor::Line(at, server) => {
                let hub = self.servers.get_mut(server).ok_or("no such server")?;
                let host = self.hosts.get_mut(at).ok_or("no such host")?;
                host.bond.pump(server, hub, now, &mut self.rng);
                host.stir();
                self.nudge(server);
            }
            Actor::Edge(server) => {
                let hub = self.servers.get_mut(server).ok_or("no such server")?;
                self.edge.bond.pump(server, hub, now, &mut self.rng);
                self.edge.follow();
                self.nudge(server);
            }
            Actor::Collect => {
                let collected = self.store.collect(false);
                collected.map_err(|refusal| format!("garbage collector: {}", refusal.text))?;
                self.collect_at = self.now_ms + self.rng.random_range(0..50);
            }
        }
        Ok(())
    }

    /// Wakes the connections of a server that has news.
    fn nudge(&mut self, server: usize) {
        let woken = self.servers.get_mut(server).is_some_and(bond::woken);
        if woken {
            for host in &mut self.hosts {
                host.bond.nudge(server);
            }
            self.edge.bond.nudge(server);
        }
    }

    /// Sends a frame from a machine's device and follows it to its end.
    pub fn send(&mut self, host: usize, port: PortId, frame: &[u8]) -> Fate {
        self.summary.probes += 1;
        let mut packet = PacketBuf::with_frame_max(1_800);
        if !packet.fill(frame) {
            return Fate::Lost("too large".to_owned());
        }
        self.carry(host, port, packet)
    }

    /// A source port that no packet had before.
    pub fn next_port(&mut self) -> u16 {
        self.rng.random_range(20_000..60_000)
    }

    /// Sends an IP packet from the outside world.
    pub fn send_from_outside(&mut self, packet: &[u8]) -> Fate {
        self.summary.probes += 1;
        let now = self.packet_time();
        match self.edge.inwards(packet, now) {
            Ok(frame) => self.arrive(frame),
            Err(reason) => Fate::Lost(reason),
        }
    }

    fn packet_time(&self) -> dataplane::Instant {
        dataplane::Instant::from_duration(self.now() + Duration::from_secs(1_000))
    }

    fn arrive(&mut self, packet: PacketBuf) -> Fate {
        let Some(to) = packet::outer_destination(packet.frame()) else {
            return Fate::Lost("no tunnel packet".to_owned());
        };
        if self.edge.address() == to {
            let now = self.packet_time();
            return match self.edge.outwards(packet, now) {
                Ok(edge::Out::Outside(packet)) => Fate::Outside(packet),
                Ok(edge::Out::Back(packet)) => self.arrive(packet),
                Err(reason) => Fate::Lost(reason),
            };
        }
        let network = |address: std::net::Ipv6Addr| address.to_bits() >> 64;
        let host = self
            .hosts
            .iter()
            .position(|h| network(h.underlay) == network(to) && !h.offline);
        match host {
            Some(host) => self.carry(host, PortId(0), packet),
            None => Fate::Lost(format!("nobody has {to}")),
        }
    }

    fn carry(&mut self, host: usize, port: PortId, mut packet: PacketBuf) -> Fate {
        let now = self.packet_time();
        let mut in_port = port;
        for _ in 0..HOPS_MAX {
            let Some(plane) = self.hosts.get_mut(host).and_then(|h| h.plane.as_mut()) else {
                return Fate::Lost(format!("host {host} has no data plane"));
            };
            match plane.process(in_port, &mut packet, now) {
                Verdict::Transmit(PortId(0 | 1)) => {
                    let to = packet::outer_destination(packet.frame());
                    let network = |address: std::net::Ipv6Addr| address.to_bits() >> 64;
                    let own = self.hosts.get(host).map(|h| network(h.underlay));
                    // A host's own tunnel packets come back to it from the underlay.
                    if to.map(network) == own {
                        in_port = PortId(0);
                        continue;
                    }
                    return self.arrive(packet);
                }
                Verdict::Transmit(port) => {
                    return Fate::Delivered(host, port, packet.frame().to_vec());
                }
                Verdict::Reply(_) => return Fate::Lost("answered".to_owned()),
                Verdict::Drop(reason) => {
                    return Fate::Lost(format!("host {host}: {}", reason.name()));
                }
            }
        }
        Fate::Lost("loops".to_owned())
    }
}

/// One line about an operation.
fn show(op: &Op) -> String {
    match op {
        Op::Apply {
            target,
            body,
            status,
            ..
        } => {
            let part = if *status {
                &body["status"]
            } else {
                &body["spec"]
            };
            format!("apply {target} {part}")
        }
        Op::Patch { target, body, .. } => format!("patch {target} {body}"),
        Op::Create { target, body } => format!("create {target} {}", body["spec"]),
        Op::Delete { target, .. } => format!("delete {target}"),
        Op::RequireGone { target, .. } => format!("require gone {target}"),
        Op::RequireSame { target, version } => format!("require {target} at {version:?}"),
        Op::Event { reason, note, .. } => format!("event {reason} {note}"),
        Op::Act(act) => format!("{act:?}"),
    }
}
