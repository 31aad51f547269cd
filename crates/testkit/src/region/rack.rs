//! The machine side of a hypervisor: the provider's records and devices, and what the machinepoollet knows of them. What the two
//! decide is the product's; here is what their shells do: calls, listings, tasks that move devices, each late, lost or cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::names::label;
use controller::plan::Act;
use controller::{Class, Key, Op};
use machine::poollet::machine::class;
use machine::poollet::runtime::{Call, Snapshot};
use machine::provider::classes::{self, Class as Size};
use machine::provider::plan::{Device, Progress, Step, Take};
use machine::provider::record::{Record, device_name};
use machine::provider::runtime::RUNTIME_NAME;
use machine::provider::{desk, netns_name};
use proto::machine::Machine as Shown;
use rand::Rng;
use rand::rngs::StdRng;

use crate::region::kernel::Kernel;
use crate::region::store::Refusal;

/// The class that every pool offers.
pub const CLASS: &str = "small";
/// Machines of the class that a pool runs.
pub const ROOM: usize = 3;
/// Pause between listings while something is in progress, and otherwise. Longer than in earnest, because every look is a step.
const BUSY_MS: u64 = 250;
const RELIST_MS: u64 = 5_000;
/// Pause of a task after a device could not be moved.
const RETRY_MS: u64 = 50;
/// A slow answer.
const SLOW_MAX_MS: u64 = 400;

/// Which of the two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Poollet,
    Provider,
}

/// What became of an act.
pub enum Done {
    Answered,
    Failed(Refusal),
    /// Goes on with this, not before that time.
    Then(Op, u64),
}

/// A process's share in a rack.
#[derive(Clone)]
pub struct Hands {
    pub rack: Arc<Mutex<Rack>>,
    pub side: Side,
}

/// What a poollet does after a call.
#[derive(Debug)]
enum Look {
    /// Asks for the machine.
    Ask(String),
    /// Hears what the runtime had.
    Hear(String, Vec<Shown>),
}

struct Entry {
    device: Device,
    index: Option<u32>,
    serial: u64,
}

/// A task that moves and configures a device.
struct Job {
    machine: String,
    record: Record,
    take: Take,
    serial: u64,
    at: u64,
    /// How the work ended, when it has.
    ended: Option<Progress>,
}

pub struct Rack {
    /// Name of the pool, which is that of the hypervisor.
    pub pool: String,
    /// The hypervisor as OpenKCM-net knows it.
    pub node: String,
    number: u16,
    made: u32,
    /// On disk.
    pub records: BTreeMap<String, Record>,
    pub kernel: Kernel,
    /// In the provider's memory.
    devices: BTreeMap<String, BTreeMap<String, Entry>>,
    pub namespaces: BTreeSet<String>,
    jobs: Vec<Job>,
    serial: u64,
    /// The provider is down until then.
    down_until: Option<u64>,
    /// In the poollet's memory.
    pub snapshot: Snapshot,
    connected: bool,
    list_at: u64,
    listing: Option<(u64, Option<Vec<Shown>>)>,
    /// Keys for the provider, for the poollet's machines, and whether its pool is to be looked at.
    woken: (BTreeSet<String>, BTreeSet<Key>, bool),
    /// Answers that get lost from now on.
    pub losses: u32,
    pub offline: bool,
    pub departed: bool,
}

/// The rack, whoever had it before.
pub fn open(rack: &Mutex<Rack>) -> MutexGuard<'_, Rack> {
    rack.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sizes() -> Vec<Size> {
    let capabilities = [("cpu".to_owned(), 1_000), ("memory".to_owned(), 1 << 30)];
    vec![Size {
        name: CLASS.to_owned(),
        capabilities: capabilities.into(),
        quantity: ROOM as i64,
    }]
}

fn nanoseconds(now_ms: u64) -> i64 {
    i64::try_from(now_ms.saturating_mul(1_000_000)).unwrap_or(i64::MAX)
}

fn retry(text: &str) -> Done {
    Done::Failed(Refusal {
        class: Class::Retry,
        text: text.to_owned(),
    })
}

impl Hands {
    pub fn crash(&self) {
        open(&self.rack).crash(self.side);
    }

    pub fn is_held(&self) -> bool {
        let rack = open(&self.rack);
        let down = match self.side {
            Side::Poollet => !rack.connected,
            Side::Provider => rack.down_until.is_some(),
        };
        rack.offline || rack.departed || down
    }

    pub fn is_departed(&self) -> bool {
        open(&self.rack).departed
    }

    pub fn is_woken(&self) -> bool {
        let rack = open(&self.rack);
        let (provider, machines, pool) = &rack.woken;
        match self.side {
            Side::Poollet => *pool || !machines.is_empty(),
            Side::Provider => !provider.is_empty(),
        }
    }

    /// Keys that something outside the API has woken, with their controllers.
    pub fn woken(&self) -> Vec<(usize, Key)> {
        let mut rack = open(&self.rack);
        let pool = Key::cluster(&rack.pool);
        let (provider, machines, of_pool) = &mut rack.woken;
        match self.side {
            Side::Provider => std::mem::take(provider)
                .into_iter()
                .map(|id| (0, Key::cluster(id)))
                .collect(),
            Side::Poollet => std::mem::take(machines)
                .into_iter()
                .map(|key| (0, key))
                .chain(std::mem::take(of_pool).then_some((1, pool)))
                .collect(),
        }
    }

    /// Carries out an act of a plan.
    pub fn act(&self, key: &Key, act: &Act, now_ms: u64, rng: &mut StdRng) -> Done {
        let mut rack = open(&self.rack);
        if let Some(step) = act.payload::<Step>() {
            return rack.carry_out(&key.name, step, now_ms, rng);
        }
        if let Some(call) = act.payload::<Call>() {
            return rack.call(call, now_ms, rng);
        }
        match act.payload::<Look>() {
            Some(look) => rack.look(look, now_ms, rng),
            None => Done::Failed(Refusal {
                class: Class::Bug,
                text: format!("unknown act {}", act.label),
            }),
        }
    }
}

impl Rack {
    pub fn new(number: u16, pool: &str, node: String) -> Rack {
        Rack {
            pool: pool.to_owned(),
            node,
            number,
            made: 0,
            records: BTreeMap::new(),
            kernel: Kernel::default(),
            devices: BTreeMap::new(),
            namespaces: BTreeSet::new(),
            jobs: Vec::new(),
            serial: 0,
            down_until: None,
            snapshot: Snapshot::default(),
            connected: false,
            list_at: 0,
            listing: None,
            woken: Default::default(),
            losses: 0,
            offline: false,
            departed: false,
        }
    }

    /// One of the processes dies. The provider may stay away, see [`Rack::stay_away`].
    fn crash(&mut self, side: Side) {
        match side {
            Side::Poollet => {
                self.snapshot = Snapshot::default();
                self.connected = false;
                self.listing = None;
                self.list_at = 0;
                self.woken.1.clear();
                self.woken.2 = false;
            }
            Side::Provider => {
                self.devices.clear();
                self.jobs.clear();
                self.namespaces.clear();
                self.woken.0.clear();
                self.down_until = Some(self.down_until.unwrap_or(0));
            }
        }
    }

    /// The provider does not come back before that time.
    pub fn stay_away(&mut self, until: u64) {
        self.down_until = Some(until);
    }

    /// The hypervisor loses power.
    pub fn power_fails(&mut self) {
        self.kernel.crash();
    }

    /// The hypervisor is scrapped.
    pub fn depart(&mut self) {
        self.departed = true;
        self.kernel.crash();
        self.records.clear();
        self.devices.clear();
        self.jobs.clear();
    }

    fn wake(&mut self, id: &str) {
        self.woken.0.insert(id.to_owned());
    }

    pub fn devices_of(&self, id: &str) -> BTreeMap<String, Device> {
        let entries = self.devices.get(id).into_iter().flatten();
        entries
            .map(|(name, entry)| (name.clone(), entry.device.clone()))
            .collect()
    }

    fn shown(&self, record: &Record) -> Shown {
        desk::show(record, self.namespaces.contains(&record.netns))
    }

    fn all_shown(&self) -> Vec<Shown> {
        let records = self.records.values();
        records.map(|record| self.shown(record)).collect()
    }

    fn loses(&mut self, rng: &mut StdRng) -> bool {
        let loses = self.losses > 0 && rng.random_ratio(1, 2);
        self.losses -= u32::from(loses);
        loses
    }

    /// The poollet calls the provider, which records what is wanted.
    fn call(&mut self, call: &Call, now_ms: u64, rng: &mut StdRng) -> Done {
        if self.down_until.is_some() {
            return retry("the machine runtime does not answer");
        }
        let lost = self.loses(rng);
        let id = match self.desk(call, now_ms) {
            Ok(id) => id,
            Err(status) => {
                let text = status.message().to_owned();
                return Done::Failed(Refusal {
                    class: class(&status),
                    text,
                });
            }
        };
        self.wake(&id);
        if lost {
            return retry("timed out");
        }
        if let (Call::Create(_), Some(record)) = (call, self.records.get(&id)) {
            let shown = self.shown(record);
            let key = self.snapshot.created(shown);
            self.woken.1.extend(key);
            return Done::Answered;
        }
        Done::Then(Op::Act(Act::new(Look::Ask(id))), now_ms)
    }

    /// What the provider's calls do. Returns the machine.
    fn desk(&mut self, call: &Call, now_ms: u64) -> Result<String, tonic::Status> {
        let unknown = |id: &str| tonic::Status::not_found(format!("machine {id} not found"));
        match call {
            Call::Create(machine) => {
                self.made += 1;
                let id = format!(
                    "{:02x}{:06x}-0000-4000-8000-000000000000",
                    self.number, self.made
                );
                let netns = netns_name("machine-", &id);
                let machine = Some((**machine).clone());
                let sizes = sizes();
                let record = desk::create(machine, &sizes, id.clone(), netns, nanoseconds(now_ms))?;
                self.records.insert(id.clone(), record);
                Ok(id)
            }
            Call::Delete { id } => {
                // What is gone already is as wanted.
                if let Some(record) = self.records.get_mut(id) {
                    desk::delete(record, nanoseconds(now_ms));
                }
                Ok(id.clone())
            }
            Call::Attach { id, interface } => {
                let record = self.records.get_mut(id).ok_or_else(|| unknown(id))?;
                let wanted = Some(interface.clone());
                desk::change(record, |record| desk::attach(record, wanted))?;
                Ok(id.clone())
            }
            Call::Detach { id, name } => {
                let result = match self.records.get_mut(id) {
                    Some(record) => desk::change(record, |record| desk::detach(record, name)),
                    None => Ok(()),
                };
                match result {
                    Err(status) if status.code() != tonic::Code::NotFound => Err(status),
                    _ => Ok(id.clone()),
                }
            }
            Call::Power { id, power } => {
                let record = self.records.get_mut(id).ok_or_else(|| unknown(id))?;
                desk::change(record, |record| {
                    record.power_on = desk::power_on(*power);
                    Ok(())
                })?;
                Ok(id.clone())
            }
            Call::Annotate { id, annotations } => {
                let record = self.records.get_mut(id).ok_or_else(|| unknown(id))?;
                record.annotations = annotations.clone();
                Ok(id.clone())
            }
        }
    }

    /// After a call the poollet looks at the machine.
    fn look(&mut self, look: &Look, now_ms: u64, rng: &mut StdRng) -> Done {
        match look {
            Look::Ask(_) if self.down_until.is_some() => {
                retry("the machine runtime does not answer")
            }
            Look::Ask(id) => {
                let found = self.records.get(id).map(|record| self.shown(record));
                let found: Vec<Shown> = found.into_iter().collect();
                if rng.random_ratio(1, 8) {
                    let at = now_ms + rng.random_range(0..SLOW_MAX_MS);
                    return Done::Then(Op::Act(Act::new(Look::Hear(id.clone(), found))), at);
                }
                let key = self.snapshot.refreshed(id, found);
                self.woken.1.extend(key);
                Done::Answered
            }
            Look::Hear(id, found) => {
                let key = self.snapshot.refreshed(id, found.clone());
                self.woken.1.extend(key);
                Done::Answered
            }
        }
    }

    /// A step of the provider's plan.
    fn carry_out(&mut self, id: &str, step: &Step, now_ms: u64, rng: &mut StdRng) -> Done {
        let Some(record) = self.records.get(id).cloned() else {
            return Done::Answered;
        };
        if self.loses(rng) {
            return retry("interrupted");
        }
        let netns = &record.netns;
        match step {
            Step::CreateNamespace => {
                self.kernel.namespaces.insert(netns.clone());
                self.namespaces.insert(netns.clone());
            }
            Step::RemoveNamespace => {
                self.kernel.remove(netns);
                self.namespaces.remove(netns);
            }
            Step::Remember {
                interface,
                namespace,
            } => {
                if let Some(record) = self.records.get_mut(id) {
                    record.remember(interface.clone(), namespace.clone());
                }
            }
            Step::Forget { interface } => {
                if let Some(record) = self.records.get_mut(id) {
                    record.forget(interface);
                }
            }
            Step::Take(take) => self.take(record, take, now_ms, rng),
            Step::Release { interface, tap } => {
                self.drop_device(id, interface);
                if let Some(device) = record.device(interface) {
                    let tap = tap.clone().unwrap_or_else(|| device.clone());
                    self.kernel.release(netns, &device, &tap);
                }
            }
            Step::RemoveRecord => {
                for interface in record.known.keys() {
                    self.drop_device(id, interface);
                }
                self.records.remove(id);
            }
        }
        // A change of its own record does not wake a machine; what was seen to change does.
        Done::Answered
    }

    fn drop_device(&mut self, id: &str, interface: &str) {
        let Some(devices) = self.devices.get_mut(id) else {
            return;
        };
        if let Some(entry) = devices.remove(interface) {
            self.jobs.retain(|job| job.serial != entry.serial);
        }
        if devices.is_empty() {
            self.devices.remove(id);
        }
    }

    fn take(&mut self, record: Record, take: &Take, now_ms: u64, rng: &mut StdRng) {
        let (id, interface) = (record.id.clone(), take.interface.clone());
        self.drop_device(&id, &interface);
        self.serial += 1;
        let serial = self.serial;
        let entry = Entry {
            device: Device {
                tap: take.tap.clone(),
                progress: Progress::Configuring,
            },
            index: self.kernel.index(&take.tap),
            serial,
        };
        let devices = self.devices.entry(id.clone()).or_default();
        devices.insert(interface, entry);
        let slow = rng.random_ratio(1, 8);
        let delay = if slow {
            rng.random_range(0..SLOW_MAX_MS)
        } else {
            0
        };
        self.jobs.push(Job {
            machine: id,
            record,
            take: take.clone(),
            serial,
            at: now_ms + delay,
            ended: None,
        });
    }

    /// Moves and configures a device. `None`: once more, later.
    fn move_and_configure(&mut self, record: &Record, take: &Take) -> Option<Progress> {
        let Some(known) = record.known.get(&take.interface) else {
            return Some(Progress::Missing);
        };
        let (netns, device) = (&record.netns, device_name(known.slot));
        let ips: Vec<String> = take.ips.iter().map(ToString::to_string).collect();
        if !self.kernel.namespaces.contains(netns) {
            return match self.kernel.index(&take.tap) {
                Some(_) => None,
                None => Some(Progress::Missing),
            };
        }
        if self.kernel.index(&take.tap).is_some() {
            self.kernel.delete(netns, &device);
            // What was deleted may have been this very device, and is back.
            if !self.kernel.take(&take.tap, netns, &device) {
                return Some(Progress::Missing);
            }
        }
        match self.kernel.inside(netns, &device) {
            Some(tap) => tap.ips = ips,
            None => return Some(Progress::Missing),
        }
        Some(Progress::Attached)
    }

    fn work(&mut self, at: usize, now_ms: u64, rng: &mut StdRng) {
        let Some(job) = self.jobs.get(at) else {
            return;
        };
        let (record, take, serial) = (job.record.clone(), job.take.clone(), job.serial);
        let Some(progress) = job.ended else {
            let ended = self.move_and_configure(&record, &take);
            let delay = rng.random_range(0..20);
            if let Some(job) = self.jobs.get_mut(at) {
                job.ended = ended;
                job.at = now_ms + if ended.is_none() { RETRY_MS } else { delay };
            }
            return;
        };
        let id = self.jobs.swap_remove(at).machine;
        if progress == Progress::Attached
            && let Some(record) = self.records.get_mut(&id)
        {
            record.attached(&take.interface, &take.handle);
        }
        let index = self.kernel.index(&take.tap);
        let devices = self.devices.get_mut(&id);
        let Some(entry) = devices.and_then(|devices| devices.get_mut(&take.interface)) else {
            return;
        };
        if entry.serial != serial {
            return;
        }
        entry.device.progress = progress;
        if progress == Progress::Missing && index != entry.index {
            self.drop_device(&id, &take.interface);
        }
        self.wake(&id);
    }

    /// A device came: whatever was done with an earlier one of the name is void.
    fn hear_news(&mut self) {
        let Some((tap, index)) = self.kernel.news.pop_front() else {
            return;
        };
        let mut stale = Vec::new();
        for (id, devices) in &self.devices {
            let replaced = devices
                .iter()
                .filter(|(_, entry)| entry.device.tap == tap && entry.index != Some(index));
            stale.extend(replaced.map(|(name, _)| (id.clone(), name.clone())));
        }
        for (id, name) in stale {
            self.drop_device(&id, &name);
            self.wake(&id);
        }
    }

    /// The provider starts: namespaces of its machines are taken over, others removed.
    fn start(&mut self) {
        self.down_until = None;
        let known: BTreeSet<&String> = self.records.values().map(|record| &record.netns).collect();
        let orphans = self.kernel.namespaces.iter();
        let orphans = orphans.filter(|netns| !known.contains(netns));
        let orphans: Vec<String> = orphans.cloned().collect();
        for netns in orphans {
            self.kernel.remove(&netns);
        }
        self.namespaces = self.kernel.namespaces.clone();
        self.woken.0.extend(self.records.keys().cloned());
    }

    /// The poollet asks for everything, or hears it.
    fn list(&mut self, now_ms: u64, rng: &mut StdRng) {
        if self.listing.is_none() {
            let found = self.down_until.is_none().then(|| self.all_shown());
            self.listing = Some((self.snapshot.answers, found));
            if rng.random_ratio(1, 4) {
                self.list_at = now_ms + rng.random_range(0..SLOW_MAX_MS);
                return;
            }
        }
        let Some((asked_at, found)) = self.listing.take() else {
            return;
        };
        let before = self.snapshot.healthy;
        match found {
            Some(found) => {
                let keys = self.snapshot.listed(asked_at, found);
                let busy = keys.is_none() || self.snapshot.is_busy();
                self.list_at = now_ms + if busy { BUSY_MS } else { RELIST_MS };
                self.woken.1.extend(keys.unwrap_or_default());
                self.connect();
            }
            None => {
                self.snapshot.healthy = false;
                self.list_at = now_ms + BUSY_MS;
            }
        }
        self.woken.2 |= before != self.snapshot.healthy;
    }

    /// The first answer: now it is known what the runtime has.
    fn connect(&mut self) {
        if self.connected {
            return;
        }
        self.connected = true;
        self.snapshot.name = RUNTIME_NAME.to_owned();
        self.snapshot.classes = sizes().iter().map(classes::status).collect();
        self.woken.2 = true;
    }

    /// Something can be done now.
    pub fn is_busy(&self, now_ms: u64) -> bool {
        self.deadline().is_some_and(|at| at <= now_ms)
    }

    /// When something can be done.
    pub fn deadline(&self) -> Option<u64> {
        if self.offline || self.departed {
            return None;
        }
        let jobs = self.jobs.iter().map(|job| job.at);
        let news = (self.down_until.is_none() && !self.kernel.news.is_empty()).then_some(0);
        jobs.chain(news)
            .chain(self.down_until)
            .chain([self.list_at])
            .min()
    }

    /// Nothing is left to do, and the poollet knows all.
    pub fn is_quiet(&self) -> bool {
        let known = || {
            let shown = self.all_shown();
            let mut machines = self.snapshot.machines.values();
            shown.len() == self.snapshot.machines.len()
                && machines.all(|machine| shown.contains(machine))
        };
        self.departed
            || self.jobs.is_empty()
                && self.kernel.news.is_empty()
                && self.down_until.is_none()
                && self.connected
                && self.snapshot.healthy
                && known()
    }

    /// Does one thing.
    pub fn step(&mut self, now_ms: u64, rng: &mut StdRng) {
        if self.down_until.is_some_and(|at| at <= now_ms) {
            self.start();
            return;
        }
        let jobs = self.jobs.iter().enumerate();
        let jobs = jobs.filter(|(_, job)| job.at <= now_ms);
        let jobs: Vec<usize> = jobs.map(|(at, _)| at).collect();
        let news = usize::from(self.down_until.is_none() && !self.kernel.news.is_empty());
        let list = usize::from(self.list_at <= now_ms);
        let most = jobs.len() + news + list;
        let choice = rng.random_range(0..most.max(1));
        match jobs.get(choice) {
            Some(at) => self.work(*at, now_ms, rng),
            None if choice < jobs.len() + news => self.hear_news(),
            None => self.list(now_ms, rng),
        }
    }

    /// The machine that has a port's device, and the interface that it is there: the Machine's uid, the record's id.
    pub fn holder(&self, port: dataplane::PortId) -> Option<(&Record, &str)> {
        let tap = self.kernel.at(port)?;
        let netns = tap.netns.as_ref()?;
        let record = self
            .records
            .values()
            .find(|record| record.netns == *netns)?;
        let mut known = record.known.iter();
        let (interface, _) = known.find(|(_, known)| device_name(known.slot) == tap.name)?;
        Some((record, interface))
    }
}

/// The Machine that a record is for.
pub fn machine_uid(record: &Record) -> &str {
    let uid = record.labels.get(label::POOLLET_MACHINE_UID);
    uid.map_or("", String::as_str)
}
