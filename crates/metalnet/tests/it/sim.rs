//! The agent in a closed world: model dpservice, model API, model disk and metalbond, and a clock that only waits move.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use metalnet::agent::{Actions, Agent, Input, Written};
use metalnet::device;
use metalnet::model::{
    Filter, Meta, Network, Nic, NicSpec, NicStatus, ObjectKey, Prefix, State, Uid, Vni,
};
use metalnet::plan::desired::Settings;
use metalnet::plan::ops::{
    Announcement, ApiError, ApiOp, BondOp, ClaimOp, DpDone, DpError, DpOp, HopKind,
};
use metalnet::plan::rib::{Heard, Learned};
use metalnet::services::{
    Action, BalancedPort, BalancerError, BalancerSpec, Direction, LoadBalancer, Matching, NatShare,
    Rule, Transport,
};
use net::PortRange;

use crate::model::Model;

pub const NODE: &str = "h1";
pub const PUBLIC: u32 = 100;
/// Longest wait that [`Sim::settle`] sits out: longer than any back-off.
const WAIT_MAX: Duration = Duration::from_secs(120);

pub fn vni(id: u32) -> Vni {
    Vni::new(id).unwrap()
}

pub fn uid(text: &str) -> Uid {
    Uid::new(text).unwrap()
}

pub fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

pub fn hop(text: &str) -> Learned {
    Learned {
        address: text.parse().unwrap(),
        target_vni: 0,
        kind: HopKind::Standard,
    }
}

pub fn ports(first: u16, end: u16) -> PortRange {
    PortRange::new(first, end).unwrap()
}

pub fn nat(address: &str, first: u16, end: u16) -> NatShare {
    NatShare {
        address: address.parse().unwrap(),
        ports: ports(first, end),
    }
}

/// Lets TCP to one port in.
pub fn allow(port: u16) -> Rule {
    Rule {
        direction: Direction::Ingress,
        action: Action::Accept,
        priority: 1000,
        source: prefix("0.0.0.0/0"),
        destination: prefix("0.0.0.0/0"),
        matching: Matching::Tcp {
            source: None,
            destination: Some((port, port)),
        },
    }
}

pub fn balancer(public: bool, address: &str, ports: &[u16]) -> BalancerSpec {
    let port = |port: &u16| BalancedPort {
        transport: Transport::Tcp,
        port: *port,
    };
    BalancerSpec {
        public,
        address: address.parse().unwrap(),
        ports: ports.iter().map(port).collect(),
    }
}

pub fn key(name: &str) -> ObjectKey {
    ObjectKey {
        namespace: "metalnet-system".to_owned(),
        name: name.to_owned(),
    }
}

pub fn spec(ipv4: &str, ipv6: &str, prefixes: &[&str]) -> NicSpec {
    NicSpec {
        ipv4: ipv4.parse().ok(),
        ipv6: ipv6.parse().ok(),
        prefixes: prefixes.iter().map(|p| prefix(p)).collect(),
        public: BTreeSet::new(),
        total_rate: 0,
        public_rate: 0,
        hostname: String::new(),
        vip: None,
        nat: None,
        targets: BTreeSet::new(),
        rules: BTreeMap::new(),
        problems: Vec::new(),
    }
}

pub type Fault = Box<dyn FnMut(&DpOp) -> Option<Trouble>>;

/// What may become of a call to dpservice.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// It is not carried out.
    Refused(DpError),
    /// It is carried out, but its answer is lost.
    AnswerLost,
    /// Its answer is lost, and it is carried out only after the next listing. Only calls that create something in one
    /// step can be late; others are carried out at once.
    Late,
}

pub struct Sim {
    pub agent: Agent,
    pub model: Model,
    pub now: Instant,
    pub nics: BTreeMap<Uid, Nic>,
    pub networks: BTreeMap<ObjectKey, Network>,
    pub balancers: BTreeMap<Uid, LoadBalancer>,
    /// What metalbond has for whoever subscribes.
    pub offered: BTreeSet<(Vni, Prefix, Learned)>,
    pub claims: BTreeMap<Uid, String>,
    pub announced: BTreeSet<Announcement>,
    pub subscribed: BTreeSet<Vni>,
    pub warnings: Vec<(&'static str, String)>,
    /// Decides which calls to dpservice go wrong.
    pub fault: Option<Fault>,
    /// Calls that will be carried out after the next listing.
    late: Vec<DpOp>,
    /// Refuses writes to the API.
    pub api_down: bool,
    pub log: Vec<String>,
    version: u64,
    devices: u32,
}

impl Sim {
    /// A node with `devices` TAPs; nothing is connected yet.
    pub fn new(devices: u32) -> Self {
        let mut sim = Self {
            agent: agent(devices, BTreeMap::new()),
            model: Model::new(devices),
            now: Instant::now(),
            nics: BTreeMap::new(),
            networks: BTreeMap::new(),
            balancers: BTreeMap::new(),
            offered: BTreeSet::new(),
            claims: BTreeMap::new(),
            announced: BTreeSet::new(),
            subscribed: BTreeSet::new(),
            warnings: Vec::new(),
            fault: None,
            late: Vec::new(),
            api_down: false,
            log: Vec::new(),
            version: 0,
            devices,
        };
        sim.model.initialized = false;
        sim
    }

    /// Everything connected, all routes heard, and nothing to do.
    pub fn started(devices: u32) -> Self {
        let mut sim = Self::new(devices);
        sim.connect();
        sim.sync();
        sim.settle();
        sim.hear(Heard::All);
        sim.settle();
        sim
    }

    /// `kill -9` and a new start: only disk, API and dpservice survive, and all that others announced is gone meanwhile.
    pub fn restart_agent(&mut self) {
        self.offered.clear();
        self.kill_agent();
    }

    /// The same, and others announce what they announced before.
    pub fn kill_agent(&mut self) {
        self.agent = agent(self.devices, self.claims.clone());
        self.announced.clear();
        self.subscribed.clear();
        self.log.clear();
    }

    pub fn connect(&mut self) {
        let instance = self.model.initialized.then(|| self.model.uuid());
        self.input(Input::DpUp { instance });
    }

    /// The agent reads the API for the first time.
    pub fn sync(&mut self) {
        for network in self.networks.values().cloned().collect::<Vec<_>>() {
            self.input(Input::Network(Box::new(network)));
        }
        for nic in self.nics.values().cloned().collect::<Vec<_>>() {
            self.input(Input::Nic(Box::new(nic)));
        }
        for balancer in self.balancers.values().cloned().collect::<Vec<_>>() {
            self.input(Input::Balancer(Box::new(balancer)));
        }
        self.input(Input::ApiSynced);
    }

    pub fn hear(&mut self, heard: Heard) {
        for vni in self.subscribed.clone() {
            self.input(Input::Heard { vni, heard });
        }
    }

    pub fn input(&mut self, input: Input) {
        self.agent.apply(input, self.now);
    }

    pub fn learn(&mut self, table: u32, destination: &str, via: &str, present: bool) {
        self.offer(table, destination, hop(via), present);
    }

    /// Another host has ports of a NAT address.
    pub fn share(&mut self, table: u32, share: NatShare, via: &str, present: bool) {
        let mut hop = hop(via);
        hop.kind = HopKind::Nat(share.ports);
        self.offer(table, &format!("{}/32", share.address), hop, present);
    }

    /// Another host has a target of the load balancer with this address.
    pub fn target(&mut self, table: u32, address: &str, via: &str, present: bool) {
        let mut hop = hop(via);
        hop.kind = HopKind::Target;
        let host = Prefix::host(address.parse().unwrap()).to_string();
        self.offer(table, &host, hop, present);
    }

    fn offer(&mut self, table: u32, destination: &str, hop: Learned, present: bool) {
        let (vni, prefix) = (vni(table), prefix(destination));
        if present {
            self.offered.insert((vni, prefix, hop));
        } else {
            self.offered.remove(&(vni, prefix, hop));
        }
        self.input(Input::Learned {
            vni,
            prefix,
            hop,
            present,
        });
    }

    fn meta(&mut self, name: &str) -> Meta {
        self.version += 1;
        Meta {
            key: key(name),
            uid: uid(name),
            generation: 1,
            resource_version: self.version.to_string(),
            finalizers: Vec::new(),
            deleting: false,
        }
    }

    pub fn add_network(&mut self, name: &str, id: u32, peers: &[(u32, Filter)]) {
        let meta = match self.networks.get(&key(name)).cloned() {
            Some(network) => self.bump(network.meta),
            None => self.meta(name),
        };
        let peers = peers
            .iter()
            .map(|(id, filter)| (vni(*id), filter.clone()))
            .collect();
        let peerings = self
            .networks
            .get(&key(name))
            .map(|n| n.peerings.clone())
            .unwrap_or_default();
        let network = Network {
            meta,
            vni: Vni::new(id),
            peers,
            peerings,
        };
        self.networks.insert(key(name), network.clone());
        self.input(Input::Network(Box::new(network)));
    }

    fn bump(&mut self, mut meta: Meta) -> Meta {
        self.version += 1;
        meta.resource_version = self.version.to_string();
        meta
    }

    pub fn set_nic(&mut self, name: &str, network: &str, spec: NicSpec) {
        let (meta, status) = match self.nics.get(&uid(name)).cloned() {
            Some(nic) => (self.bump(nic.meta), nic.status),
            None => (self.meta(name), NicStatus::default()),
        };
        let nic = Nic {
            meta,
            network: key(network),
            spec: Ok(spec),
            status,
        };
        self.put_nic(nic);
    }

    pub fn put_nic(&mut self, nic: Nic) {
        self.nics.insert(nic.meta.uid.clone(), nic.clone());
        self.input(Input::Nic(Box::new(nic)));
    }

    pub fn delete_nic(&mut self, name: &str) {
        let Some(mut nic) = self.nics.get(&uid(name)).cloned() else {
            return;
        };
        nic.meta = self.bump(nic.meta);
        nic.meta.deleting = true;
        self.finish_nic(nic);
    }

    pub fn set_balancer(&mut self, name: &str, network: &str, spec: BalancerSpec) {
        let (meta, state) = match self.balancers.get(&uid(name)).cloned() {
            Some(balancer) => (self.bump(balancer.meta), balancer.state),
            None => (self.meta(name), None),
        };
        self.finish_balancer(LoadBalancer {
            meta,
            network: key(network),
            spec: Ok(spec),
            state,
        });
    }

    pub fn break_balancer(&mut self, name: &str, error: BalancerError) {
        let Some(mut balancer) = self.balancers.get(&uid(name)).cloned() else {
            return;
        };
        balancer.meta = self.bump(balancer.meta);
        balancer.spec = Err(error);
        self.finish_balancer(balancer);
    }

    pub fn delete_balancer(&mut self, name: &str) {
        let Some(mut balancer) = self.balancers.get(&uid(name)).cloned() else {
            return;
        };
        balancer.meta = self.bump(balancer.meta);
        balancer.meta.deleting = true;
        self.finish_balancer(balancer);
    }

    fn finish_balancer(&mut self, balancer: LoadBalancer) {
        let uid = balancer.meta.uid.clone();
        if balancer.meta.deleting && balancer.meta.finalizers.is_empty() {
            self.balancers.remove(&uid);
            self.input(Input::BalancerGone(uid));
        } else {
            self.balancers.insert(uid, balancer.clone());
            self.input(Input::Balancer(Box::new(balancer)));
        }
    }

    pub fn delete_network(&mut self, name: &str) {
        let Some(mut network) = self.networks.get(&key(name)).cloned() else {
            return;
        };
        network.meta = self.bump(network.meta);
        network.meta.deleting = true;
        self.finish_network(network);
    }

    fn finish_nic(&mut self, nic: Nic) {
        if nic.meta.deleting && nic.meta.finalizers.is_empty() {
            self.nics.remove(&nic.meta.uid);
            self.input(Input::NicGone(nic.meta.uid));
        } else {
            self.put_nic(nic);
        }
    }

    fn finish_network(&mut self, network: Network) {
        let key = network.meta.key.clone();
        if network.meta.deleting && network.meta.finalizers.is_empty() {
            self.networks.remove(&key);
            self.input(Input::NetworkGone(key));
        } else {
            self.networks.insert(key, network.clone());
            self.input(Input::Network(Box::new(network)));
        }
    }

    /// dpservice dies and comes back empty.
    pub fn restart_dpservice(&mut self) {
        self.input(Input::DpDown);
        self.late.clear();
        self.model.restart();
        self.connect();
    }

    /// Runs until nothing is left to do, sitting out waits. Returns the number of actions.
    pub fn settle(&mut self) -> usize {
        let mut done = 0;
        let mut waited = Duration::ZERO;
        for _ in 0..100_000 {
            let actions = self.agent.poll(self.now);
            let count = self.perform(actions);
            done += count;
            if count > 0 {
                continue;
            }
            let Some(at) = self.agent.deadline() else {
                return done;
            };
            waited += at.saturating_duration_since(self.now);
            if waited > WAIT_MAX {
                return done;
            }
            self.now = self.now.max(at);
        }
        panic!(
            "the agent does not come to rest; last: {:?}",
            self.log.iter().rev().take(20).collect::<Vec<_>>()
        );
    }

    /// One poll and what follows from it.
    pub fn step(&mut self) -> usize {
        let actions = self.agent.poll(self.now);
        self.perform(actions)
    }

    /// Does what one poll asked for.
    pub fn carry_out(&mut self, actions: Actions) {
        self.perform(actions);
    }

    fn perform(&mut self, actions: Actions) -> usize {
        let Actions {
            bond,
            dp,
            api,
            claims,
            recheck,
        } = actions;
        let count = bond.len() + dp.len() + api.len() + claims.len() + usize::from(recheck);
        for op in bond {
            self.log.push(format!("{op:?}"));
            self.bond(op);
        }
        for op in claims {
            self.log.push(format!("{op:?}"));
            match &op {
                ClaimOp::Take { uid, claim } => {
                    let taken = self
                        .claims
                        .iter()
                        .any(|(other, text)| other != uid && text == claim);
                    assert!(!taken, "{claim} was claimed twice");
                    self.claims.insert(uid.clone(), claim.clone());
                }
                ClaimOp::Release { uid } => {
                    assert!(
                        !self.model.interfaces.contains_key(uid),
                        "{uid} lost its claim while it exists"
                    );
                    self.claims.remove(uid);
                }
            }
            self.input(Input::Claim { op, result: Ok(()) });
        }
        for op in dp {
            self.log.push(format!("{op:?}"));
            let result = self.call(&op);
            self.input(Input::Dp { op, result });
        }
        for op in api {
            self.log.push(format!("{op:?}"));
            let result = if self.api_down {
                Err(ApiError::Unavailable("down".to_owned()))
            } else {
                self.write(&op)
            };
            self.input(Input::Api { op, result });
        }
        if recheck {
            self.connect();
        }
        count
    }

    fn call(&mut self, op: &DpOp) -> Result<DpDone, DpError> {
        let lost = Err(DpError::Unavailable("timed out".to_owned()));
        match self.fault.as_mut().and_then(|fault| fault(op)) {
            Some(Trouble::Refused(error)) => Err(error),
            Some(Trouble::Late)
                if matches!(
                    op,
                    DpOp::CreateInterface { .. }
                        | DpOp::CreateRoute { .. }
                        | DpOp::CreateBalancer { .. }
                        | DpOp::CreateNeighbor { .. }
                ) =>
            {
                self.late.push(op.clone());
                lost
            }
            Some(Trouble::AnswerLost | Trouble::Late) => {
                let _ = self.model.execute(op);
                lost
            }
            None => {
                let result = self.model.execute(op);
                if matches!(op, DpOp::List) {
                    for op in std::mem::take(&mut self.late) {
                        let _ = self.model.execute(&op);
                    }
                }
                result
            }
        }
    }

    /// Lets time pass, doing whatever becomes due.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            while self.step() > 0 {}
            match self.agent.deadline() {
                Some(at) if at <= end => self.now = self.now.max(at),
                Some(_) | None => break,
            }
        }
        self.now = end;
    }

    fn bond(&mut self, op: BondOp) {
        match op {
            BondOp::Subscribe(vni) => {
                assert!(self.subscribed.insert(vni), "{vni} was subscribed twice");
                let offered: Vec<_> = self.offered.iter().copied().collect();
                for (_, prefix, hop) in offered.into_iter().filter(|offer| offer.0 == vni) {
                    let present = true;
                    self.input(Input::Learned {
                        vni,
                        prefix,
                        hop,
                        present,
                    });
                }
            }
            BondOp::Unsubscribe(vni) => {
                assert!(self.subscribed.remove(&vni), "{vni} was not subscribed");
            }
            BondOp::Announce(announcement) => {
                assert!(
                    self.announced.insert(announcement),
                    "{announcement:?} was announced twice"
                );
            }
            BondOp::Withdraw(announcement) => {
                assert!(
                    self.announced.remove(&announcement),
                    "{announcement:?} was not announced"
                );
            }
        }
    }

    fn write(&mut self, op: &ApiOp) -> Result<Written, ApiError> {
        match op {
            ApiOp::NicFinalizers { meta, finalizers } => {
                let mut nic = self
                    .nics
                    .get(&meta.uid)
                    .cloned()
                    .ok_or(ApiError::NotFound)?;
                if nic.meta.resource_version != meta.resource_version {
                    return Err(ApiError::Conflict);
                }
                if finalizers.is_empty() {
                    assert!(
                        !self.model.interfaces.contains_key(&meta.uid),
                        "let go of too early"
                    );
                }
                nic.meta = self.bump(nic.meta);
                nic.meta.finalizers.clone_from(finalizers);
                self.finish_nic(nic.clone());
                Ok(Written::Nic(Box::new(nic)))
            }
            ApiOp::NicStatus { meta, status } => {
                let mut nic = self
                    .nics
                    .get(&meta.uid)
                    .cloned()
                    .ok_or(ApiError::NotFound)?;
                assert_ne!(
                    nic.status, *status,
                    "a status was written that is there already"
                );
                if status.state == Some(State::Ready) {
                    assert!(status.device.is_some(), "Ready without a device");
                }
                nic.meta = self.bump(nic.meta);
                nic.status = status.clone();
                self.put_nic(nic.clone());
                Ok(Written::Nic(Box::new(nic)))
            }
            ApiOp::NetworkFinalizers { meta, finalizers } => {
                let mut network = self
                    .networks
                    .get(&meta.key)
                    .cloned()
                    .ok_or(ApiError::NotFound)?;
                if network.meta.resource_version != meta.resource_version {
                    return Err(ApiError::Conflict);
                }
                network.meta = self.bump(network.meta);
                network.meta.finalizers.clone_from(finalizers);
                self.finish_network(network.clone());
                Ok(Written::Network(Box::new(network)))
            }
            ApiOp::NetworkPeerings { meta, peerings } => {
                let mut network = self
                    .networks
                    .get(&meta.key)
                    .cloned()
                    .ok_or(ApiError::NotFound)?;
                network.meta = self.bump(network.meta);
                network.peerings = peerings
                    .iter()
                    .map(|(id, state)| (*id, Some(*state)))
                    .collect();
                self.finish_network(network.clone());
                Ok(Written::Network(Box::new(network)))
            }
            ApiOp::BalancerFinalizers { meta, finalizers } => {
                let found = self.balancers.get(&meta.uid).cloned();
                let mut balancer = found.ok_or(ApiError::NotFound)?;
                if balancer.meta.resource_version != meta.resource_version {
                    return Err(ApiError::Conflict);
                }
                let held = self.model.balancers.contains_key(&meta.uid);
                assert!(!(finalizers.is_empty() && held), "let go of too early");
                balancer.meta = self.bump(balancer.meta);
                balancer.meta.finalizers.clone_from(finalizers);
                self.finish_balancer(balancer.clone());
                Ok(Written::Balancer(Box::new(balancer)))
            }
            ApiOp::BalancerStatus { meta, state } => {
                let found = self.balancers.get(&meta.uid).cloned();
                let mut balancer = found.ok_or(ApiError::NotFound)?;
                assert_ne!(
                    balancer.state,
                    Some(*state),
                    "a status that is there already"
                );
                balancer.meta = self.bump(balancer.meta);
                balancer.state = Some(*state);
                self.finish_balancer(balancer.clone());
                Ok(Written::Balancer(Box::new(balancer)))
            }
            ApiOp::Warn { reason, note, .. } => {
                self.warnings.push((reason, note.clone()));
                Ok(Written::Nothing)
            }
        }
    }

    pub fn state(&self, name: &str) -> Option<State> {
        self.nics.get(&uid(name)).and_then(|nic| nic.status.state)
    }

    pub fn route(&self, table: u32, destination: &str) -> Option<(u32, Ipv6Addr)> {
        let routes = self.model.remote_routes();
        routes
            .get(&(vni(table), prefix(destination)))
            .map(|hop| (hop.vni.get(), hop.address))
    }
}

fn agent(devices: u32, claims: BTreeMap<Uid, String>) -> Agent {
    let settings = Settings {
        node: NODE.to_owned(),
        ipv6: true,
        public_vni: vni(PUBLIC),
        router: None,
        prefer_network: None,
    };
    Agent::new(settings, device::taps(devices), claims)
}
