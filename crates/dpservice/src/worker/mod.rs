//! The packet threads and the configuration they run on.
//!
//! [`Plane`] is the configuration side: the engine and what is attached to its ports. It lives behind [`Handle`]; a request is a job that gets
//! the plane for itself. When the job has changed something, every packet thread ([`lane`]) is given the new tables between two of its
//! bursts, and the caller hears of it when all of them use it: no packet ever sees half a change, and no packet waits for one.
//!
//! There is one thread by default. With several, each flow belongs to one of them ([`dataplane::owner`]), so threads share nothing but
//! the bounded rings in which they hand packets to each other.

pub mod lane;
mod offload;
pub mod trace;

use crate::devices::{Driver, Kind};
use crate::sync::SyncCounters;
use dataplane::sync::Message;
use dataplane::{Engine, FlowRow, Instant, PacketBuf, PortId, Tables, Worker};
use futures::future::BoxFuture;
use lane::{Lane, LaneLink, Setup};
use ports::offload::RuleDevice;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use tokio::sync::{Mutex, mpsc};
use trace::Tracer;

/// Packet threads at most.
pub const WORKERS_MAX: usize = 16;
/// Orders that wait for a packet thread; whoever gives more waits for a place.
pub const ORDERS_MAX: usize = 64;
/// Periodic packets per second at most: three for each of 1024 machines, with room to spare.
const PERIODIC_MAX: usize = 4096;
/// Ports whose device disappeared and which nobody has looked at yet; more than a host has ports.
pub const LOST_MAX: usize = 2048;

/// The packet threads have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the packet threads have ended")]
pub struct Stopped;

/// What packet threads count beside the engine and the drivers; sums over all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets for a port without driver (an interface whose device is being created or was lost).
    pub no_device: u64,
    /// Drivers whose network device disappeared.
    pub devices_lost: u64,
    /// Times a thread went to sleep.
    pub sleeps: u64,
    /// Packets handed to the thread that owns their flow, or that has a queue of their port.
    pub handed_over: u64,
    /// Packets dropped because the ring to that thread was full.
    pub hand_over_full: u64,
    /// Packets discarded while another instance works.
    pub standby: u64,
    /// Frames mirrored by a capture.
    pub mirrored: u64,
    /// Frames of a capture that were not mirrored: no uplink to send from, too long, or no buffer.
    pub mirror_failed: u64,
    /// Connections that the other instance was not told of because too many came at once.
    pub untold: u64,
}

impl Counters {
    /// Adds what another thread counted.
    pub fn add(&mut self, other: Counters) {
        let Counters {
            no_device,
            devices_lost,
            sleeps,
            handed_over,
            hand_over_full,
            standby,
            mirrored,
            mirror_failed,
            untold,
        } = other;
        self.no_device += no_device;
        self.devices_lost += devices_lost;
        self.sleeps += sleeps;
        self.handed_over += handed_over;
        self.hand_over_full += hand_over_full;
        self.standby += standby;
        self.mirrored += mirrored;
        self.mirror_failed += mirror_failed;
        self.untold += untold;
    }
}

/// What a packet thread lets others see between two bursts.
pub struct Inspection<'a> {
    /// Number of the thread.
    pub thread: usize,
    /// Flows and packet counters.
    pub worker: &'a mut Worker,
    /// What it decides by.
    pub tables: &'a Tables,
    /// Time of the thread.
    pub now: Instant,
    /// What the thread counted.
    pub counters: Counters,
    /// What each driver counted, with its port.
    pub drivers: Vec<(PortId, ports::Counters)>,
}

type Inspector = Arc<dyn Fn(Inspection<'_>) + Send + Sync>;

/// The packet threads, whatever kind of packets they move.
trait Lanes: Send + Sync {
    fn publish(&self, tables: Arc<Tables>) -> BoxFuture<'_, Result<(), Stopped>>;
    fn attach(
        &self,
        port: PortId,
        driver: Driver,
    ) -> BoxFuture<'_, Result<io::Result<()>, Stopped>>;
    fn detach(&self, port: PortId) -> BoxFuture<'_, Result<(), Stopped>>;
    fn send(&self, port: PortId, frames: Vec<Vec<u8>>) -> BoxFuture<'_, Result<(), Stopped>>;
    fn inspect(&self, inspector: Inspector) -> BoxFuture<'_, Result<(), Stopped>>;
    fn trace(&self, tracer: Arc<Tracer>) -> BoxFuture<'_, Result<(), Stopped>>;
    fn keep_journal(&self, journal: mpsc::Sender<Message>) -> BoxFuture<'_, Result<(), Stopped>>;
}

impl<P: Kind> Lanes for Vec<LaneLink<P>> {
    fn publish(&self, tables: Arc<Tables>) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(self.len());
            for lane in self {
                let tables = Arc::clone(&tables);
                answers.push(lane.order(move |lane| lane.set_tables(tables)).await?);
            }
            for answer in answers {
                answer.await.map_err(|_| Stopped)?;
            }
            Ok(())
        })
    }

    fn attach(
        &self,
        port: PortId,
        driver: Driver,
    ) -> BoxFuture<'_, Result<io::Result<()>, Stopped>> {
        Box::pin(async move {
            self.detach(port).await?;
            let Some(queues) = P::queues_of(driver) else {
                return Ok(Err(io::Error::from(io::ErrorKind::InvalidInput)));
            };
            let count = queues.len().min(self.len());
            // Every thread learns how many queues there are before the first packet can come.
            for lane in self {
                let answer = lane.order(move |lane| lane.set_queues(port, count)).await?;
                answer.await.map_err(|_| Stopped)?;
            }
            for (lane, queue) in self.iter().zip(queues) {
                let answer = lane.order(move |lane| lane.attach(port, queue)).await?;
                if let Err(error) = answer.await.map_err(|_| Stopped)? {
                    self.detach(port).await?;
                    return Ok(Err(error));
                }
            }
            Ok(Ok(()))
        })
    }

    fn detach(&self, port: PortId) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(async move {
            let mut closing = Vec::new();
            for lane in self {
                let answer = lane.order(move |lane| lane.detach(port)).await?;
                closing.extend(answer.await.map_err(|_| Stopped)?);
            }
            // Closing a kernel device takes milliseconds. Fails only if it panicked, and then the process is ending.
            let _ = tokio::task::spawn_blocking(move || drop(closing)).await;
            Ok(())
        })
    }

    fn send(&self, port: PortId, frames: Vec<Vec<u8>>) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(async move {
            if let Some(lane) = self.first() {
                let answer = lane.order(move |lane| lane.send(port, &frames)).await?;
                answer.await.map_err(|_| Stopped)?;
            }
            Ok(())
        })
    }

    fn inspect(&self, inspector: Inspector) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(async move {
            for lane in self {
                let inspector = Arc::clone(&inspector);
                let answer = lane.order(move |lane| inspector(lane.inspect())).await?;
                answer.await.map_err(|_| Stopped)?;
            }
            Ok(())
        })
    }

    fn trace(&self, tracer: Arc<Tracer>) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(async move {
            for lane in self {
                let tracer = Arc::clone(&tracer);
                let answer = lane.order(move |lane| lane.trace(tracer)).await?;
                answer.await.map_err(|_| Stopped)?;
            }
            Ok(())
        })
    }

    fn keep_journal(&self, journal: mpsc::Sender<Message>) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(async move {
            for lane in self {
                let journal = journal.clone();
                let answer = lane.order(move |lane| lane.keep_journal(journal)).await?;
                answer.await.map_err(|_| Stopped)?;
            }
            Ok(())
        })
    }
}

/// What a job has asked of the packet threads beside new tables.
enum Effect {
    Detach(PortId),
    Send(PortId, Vec<Vec<u8>>),
}

/// The configuration side: everything that requests change.
pub struct Plane {
    /// Tables and configuration.
    pub engine: Engine,
    attached: Arc<[AtomicBool]>,
    effects: Vec<Effect>,
    published: u32,
    /// Periodic packets so far.
    periodic: u64,
    clock: Clock,
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane").finish_non_exhaustive()
    }
}

impl Plane {
    /// Whether a port has a driver whose device exists.
    #[must_use]
    pub fn is_attached(&self, port: PortId) -> bool {
        self.attached
            .get(port.index())
            .is_some_and(|attached| attached.load(Ordering::Acquire))
    }

    /// Takes a port's driver and closes it before the job's caller is answered.
    pub fn detach(&mut self, port: PortId) {
        self.effects.push(Effect::Detach(port));
    }

    /// Time of the packet threads.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Periodic packets so far.
    #[must_use]
    pub fn periodic_packets(&self) -> u64 {
        self.periodic
    }

    /// Sends the periodic packets that are due.
    pub fn tick(&mut self) {
        let now = self.now();
        let mut packet = PacketBuf::new();
        for _ in 0..PERIODIC_MAX {
            let Some(port) = self.engine.tick(now, &mut packet) else {
                break;
            };
            self.periodic += 1;
            let frame = packet.frame().to_vec();
            match self.effects.last_mut() {
                Some(Effect::Send(last, frames)) if *last == port => frames.push(frame),
                Some(Effect::Send(..) | Effect::Detach(_)) | None => {
                    self.effects.push(Effect::Send(port, vec![frame]));
                }
            }
        }
    }
}

struct Shared {
    plane: Mutex<Plane>,
    active: Arc<AtomicBool>,
    lanes: Box<dyn Lanes>,
    sync: OnceLock<Arc<SyncCounters>>,
}

/// Reaches the configuration and the packet threads.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// Runs `job` and returns its result when all packet threads use what it changed. Jobs run one at a time, in the order of arrival.
    ///
    /// # Errors
    /// If the threads have ended (the service is being stopped).
    pub async fn call<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Plane) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let mut plane = self.shared.plane.lock().await;
        let result = job(&mut plane);
        self.settle(&mut plane).await?;
        Ok(result)
    }

    /// Gives a port its driver, in place of the one it had, if `wanted` still says so when it is the caller's turn; `false` if not.
    ///
    /// # Errors
    /// If the threads have ended. The inner error: the driver cannot be watched; it was closed.
    pub async fn attach(
        &self,
        port: PortId,
        driver: Driver,
        wanted: impl FnOnce(&Plane) -> bool + Send,
    ) -> Result<io::Result<bool>, Stopped> {
        let mut plane = self.shared.plane.lock().await;
        if !wanted(&plane) {
            // As in `Lanes::detach`.
            let _ = tokio::task::spawn_blocking(move || drop(driver)).await;
            return Ok(Ok(false));
        }
        self.settle(&mut plane).await?;
        let attached = self.shared.lanes.attach(port, driver).await?;
        if attached.is_ok()
            && let Some(flag) = plane.attached.get(port.index())
        {
            flag.store(true, Ordering::Release);
        }
        Ok(attached.map(|()| true))
    }

    /// Lets packets pass, if the threads were started in standby.
    pub fn activate(&self) {
        self.shared.active.store(true, Ordering::Release);
    }

    /// Discards packets from now on; no packet thread handles any more of them when this returns.
    ///
    /// # Errors
    /// If the threads have ended.
    pub async fn stand_by(&self) -> Result<(), Stopped> {
        self.shared.active.store(false, Ordering::Release);
        // Orders are carried out between bursts.
        self.inspect(|_| ()).await.map(drop)
    }

    /// Lets every packet thread tell `journal` what another instance has to know. What does not fit is counted.
    ///
    /// # Errors
    /// If the threads have ended.
    pub async fn keep_journal(&self, journal: mpsc::Sender<Message>) -> Result<(), Stopped> {
        self.shared.lanes.keep_journal(journal).await
    }

    /// Lets metrics show what is told to and by another instance.
    pub fn show_sync(&self, counters: Arc<SyncCounters>) {
        // The first one stays; there is only one link.
        let _ = self.shared.sync.set(counters);
    }

    /// What is told to and by another instance, if there is a link.
    #[must_use]
    pub fn sync_counters(&self) -> Option<&Arc<SyncCounters>> {
        self.shared.sync.get()
    }

    /// Lets every packet thread tell `tracer` about its packets, in place of the tracer before, until that one's receiver is gone.
    ///
    /// # Errors
    /// If the threads have ended.
    pub async fn trace(&self, tracer: Arc<Tracer>) -> Result<(), Stopped> {
        self.shared.lanes.trace(tracer).await
    }

    /// Shows every packet thread to `look`, one after the other, between two of their bursts.
    ///
    /// # Errors
    /// If the threads have ended.
    pub async fn inspect<R: Send + 'static>(
        &self,
        look: impl Fn(Inspection<'_>) -> R + Send + Sync + 'static,
    ) -> Result<Vec<R>, Stopped> {
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let results = Arc::clone(&seen);
        let inspector: Inspector = Arc::new(move |inspection| {
            let result = look(inspection);
            if let Ok(mut seen) = seen.lock() {
                seen.push(result);
            }
        });
        self.shared.lanes.inspect(inspector).await?;
        let mut results = results.lock().map_err(|_| Stopped)?;
        Ok(std::mem::take(&mut *results))
    }

    /// Visits the flows of all packet threads, a bounded number between two bursts, and collects what `look` makes of them until there are
    /// `max` of it. False if there is more.
    ///
    /// # Errors
    /// If the threads have ended.
    pub async fn collect_flows<R: Send + 'static>(
        &self,
        max: usize,
        look: impl Fn(FlowRow) -> Option<R> + Send + Sync + 'static,
    ) -> Result<(Vec<R>, bool), Stopped> {
        let look = Arc::new(look);
        let mut cursors: BTreeMap<usize, Option<u32>> = BTreeMap::new();
        let mut found = Vec::new();
        loop {
            let (look, places) = (Arc::clone(&look), cursors.clone());
            let pages = self.inspect(move |inspection| {
                let place = places.get(&inspection.thread).copied().unwrap_or(Some(0));
                let mut rows = Vec::new();
                let next = place.and_then(|place| {
                    let Inspection {
                        worker,
                        tables,
                        now,
                        ..
                    } = inspection;
                    worker.visit_flows(tables, now, place, |row| rows.extend(look(row)))
                });
                (inspection.thread, rows, next)
            });
            for (thread, rows, next) in pages.await? {
                cursors.insert(thread, next);
                found.extend(rows);
            }
            let is_complete = found.len() <= max;
            found.truncate(max);
            if !is_complete || cursors.values().all(Option::is_none) {
                return Ok((found, is_complete));
            }
        }
    }

    /// What all packet threads counted together.
    ///
    /// # Errors
    /// If the threads have ended.
    pub async fn counters(&self) -> Result<Counters, Stopped> {
        let all = self.inspect(|inspection| inspection.counters).await?;
        let mut sum = Counters::default();
        all.into_iter().for_each(|counters| sum.add(counters));
        Ok(sum)
    }

    /// Carries out what jobs have asked for. What an abandoned call leaves undone is done by the next one.
    async fn settle(&self, plane: &mut Plane) -> Result<(), Stopped> {
        let epoch = plane.engine.tables().epoch();
        if epoch != plane.published {
            let tables = Arc::clone(plane.engine.tables());
            self.shared.lanes.publish(tables).await?;
            plane.published = epoch;
        }
        while !plane.effects.is_empty() {
            match plane.effects.remove(0) {
                Effect::Detach(port) => {
                    if let Some(flag) = plane.attached.get(port.index()) {
                        flag.store(false, Ordering::Release);
                    }
                    self.shared.lanes.detach(port).await?;
                }
                Effect::Send(port, frames) => self.shared.lanes.send(port, frames).await?,
            }
        }
        Ok(())
    }
}

/// The running packet threads.
#[derive(Debug)]
pub struct Threads {
    threads: Vec<JoinHandle<()>>,
    wakers: Vec<ports::Waker>,
}

impl Threads {
    /// Ends the threads and waits for them. All other handles must be gone by now, or it waits for them.
    pub fn stop(self, last: Handle) {
        drop(last);
        for waker in &self.wakers {
            waker.wake();
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("A packet thread ended abnormally");
            }
        }
    }
}

/// The time by which flows age.
#[derive(Clone, Copy, Debug)]
struct Clock {
    origin: std::time::Instant,
    rate: u32,
}

impl Clock {
    fn now(self) -> Instant {
        Instant::from_duration(self.origin.elapsed().saturating_mul(self.rate))
    }
}

/// How packet threads run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Number of threads.
    pub workers: usize,
    /// Never sleep.
    pub poll: bool,
    /// Discard packets until [`Handle::activate`].
    pub standby: bool,
    /// How many times faster than the wall's their clock runs: 1, unless a test wants to see the end of timeouts.
    pub clock_rate: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            workers: 1,
            poll: false,
            standby: false,
            clock_rate: 1,
        }
    }
}

/// Starts the packet threads for `engine` with `ports` ports, none of which has a driver yet. They end when every [`Handle`] is gone. Ports
/// whose device disappears are told to `lost`. Flows that `nic` can handle are left to it.
///
/// # Errors
/// If the process is out of descriptors or threads.
pub fn start<P: Kind>(
    engine: Engine,
    ports: usize,
    settings: Settings,
    lost: &mpsc::Sender<PortId>,
    nic: Option<Box<dyn RuleDevice>>,
) -> anyhow::Result<(Handle, Threads)> {
    let clock = Clock {
        origin: std::time::Instant::now(),
        rate: settings.clock_rate.max(1),
    };
    let attached: Arc<[AtomicBool]> = (0..ports).map(|_| AtomicBool::new(false)).collect();
    let active = Arc::new(AtomicBool::new(!settings.standby));
    let setup = Setup {
        active: Arc::clone(&active),
        ports,
        settings,
        clock,
        attached: Arc::clone(&attached),
        lost: lost.clone(),
    };
    let lanes = lane::make::<P>(&engine, &setup)?;
    let mut threads = Vec::new();
    let mut nic_ends = Vec::new();
    let mut nic_thread = None;
    if let Some(nic) = nic {
        let (ends, thread) = offload::start(nic, settings.workers)?;
        nic_ends = ends;
        nic_thread = Some(thread);
    }
    let mut nic_ends = nic_ends.into_iter();
    let mut links = Vec::new();
    for (number, (mut lane, orders, link)) in lanes.into_iter().enumerate() {
        lane.set_nic(nic_ends.next());
        let thread = std::thread::Builder::new()
            .name(if number == 0 {
                "worker".to_owned()
            } else {
                format!("worker{number}")
            })
            .spawn(move || Lane::run(lane, orders))?;
        threads.push(thread);
        links.push(link);
    }
    // It ends when the packet threads have.
    threads.extend(nic_thread);
    let wakers = links.iter().map(|link| link.waker.clone()).collect();
    let plane = Plane {
        published: engine.tables().epoch(),
        engine,
        attached,
        effects: Vec::new(),
        periodic: 0,
        clock,
    };
    let shared = Shared {
        plane: Mutex::new(plane),
        active,
        lanes: Box::new(links),
        sync: OnceLock::new(),
    };
    let handle = Handle {
        shared: Arc::new(shared),
    };
    Ok((handle, Threads { threads, wakers }))
}
