//! The packet thread: it owns the engine, the drivers and all packet buffers, and runs each burst to completion.
//!
//! Others reach it only through [`Handle::call`]: a job that runs between two bursts. When nothing happens it sleeps in epoll and wakes on the
//! first frame; while packets flow it looks a few more times before it sleeps again. An idle thread costs one wake-up per second.

use dataplane::{BURST_MAX, DropReason, Engine, Instant, PacketBuf, PortId, Verdict, Worker};
use ports::{Poller, Port, Ready, Waker};
use std::io;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Configuration requests that wait for the packet thread; further callers wait for a place.
pub const JOBS_MAX: usize = 64;
/// Jobs run between two bursts at most, so that a flood of requests cannot starve packets.
const JOBS_PER_TURN_MAX: usize = 8;
/// How often the thread looks again without sleeping after packets came. A look costs about half a microsecond.
const SPINS_MAX: u32 = 32;
/// Interval of ageing and periodic packets.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// Periodic packets per tick at most: three for each of 126 machines, with room to spare.
const PERIODIC_MAX: usize = 1024;

/// Ports whose device disappeared and which nobody has looked at yet; more than a host has ports.
pub const LOST_MAX: usize = 256;

type Job = Box<dyn FnOnce(&mut Plane) + Send>;

/// The packet thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the packet thread has ended")]
pub struct Stopped;

/// Runs jobs on the packet thread.
#[derive(Clone, Debug)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
    waker: Waker,
}

impl Handle {
    /// Runs `job` between two bursts and returns its result. Jobs run one at a time, in the order of arrival.
    ///
    /// # Errors
    /// If the thread has ended (the service is being stopped).
    pub async fn call<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Plane) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |plane| {
            // The caller may have given up: the job is done all the same.
            let _ = reply.send(job(plane));
        });
        self.jobs.send(job).await.map_err(|_| Stopped)?;
        self.waker.wake();
        answer.await.map_err(|_| Stopped)
    }
}

/// What the packet thread counts beside the engine and the drivers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets for a port without driver (an interface whose device is being created or was lost).
    pub no_device: u64,
    /// Drivers whose network device disappeared.
    pub devices_lost: u64,
    /// Times the thread went to sleep.
    pub sleeps: u64,
}

/// Everything that packets meet.
pub struct Plane {
    /// Tables and configuration.
    pub engine: Engine,
    /// Flows and packet counters.
    pub worker: Worker,
    drivers: Vec<Option<Box<dyn Port>>>,
    poller: Poller,
    packets: Vec<PacketBuf>,
    counters: Counters,
    lost: mpsc::Sender<PortId>,
    origin: std::time::Instant,
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let drivers: Vec<_> = self
            .drivers
            .iter()
            .flatten()
            .map(|driver| driver.name())
            .collect();
        f.debug_struct("Plane")
            .field("drivers", &drivers)
            .finish_non_exhaustive()
    }
}

impl Plane {
    /// A plane for `engine` with `ports` ports, none of which has a driver yet. `frame_max` is the largest frame, in bytes. Ports whose
    /// device disappears are told to `lost`.
    ///
    /// # Errors
    /// If the process has no file descriptor left.
    pub fn new(
        engine: Engine,
        ports: usize,
        frame_max: usize,
        lost: mpsc::Sender<PortId>,
    ) -> io::Result<Plane> {
        let worker = engine.worker();
        let frame_max = frame_max.max(PacketBuf::FRAME_MAX);
        Ok(Plane {
            engine,
            worker,
            drivers: (0..ports).map(|_| None).collect(),
            poller: Poller::new()?,
            packets: (0..BURST_MAX)
                .map(|_| PacketBuf::with_frame_max(frame_max))
                .collect(),
            counters: Counters::default(),
            lost,
            origin: std::time::Instant::now(),
        })
    }

    /// Gives a port its driver and returns the one it had.
    ///
    /// # Errors
    /// If the driver cannot be watched; it is dropped.
    pub fn attach(
        &mut self,
        port: PortId,
        driver: Box<dyn Port>,
    ) -> io::Result<Option<Box<dyn Port>>> {
        let before = self.detach(port);
        self.poller.add(driver.readiness(), port.0)?;
        if let Some(slot) = self.drivers.get_mut(port.index()) {
            *slot = Some(driver);
        }
        Ok(before)
    }

    /// Takes a port's driver. Closing it may take milliseconds: do that on another thread.
    pub fn detach(&mut self, port: PortId) -> Option<Box<dyn Port>> {
        let driver = self.drivers.get_mut(port.index())?.take()?;
        // An error means that the descriptor is not watched, which is what is wanted.
        let _ = self.poller.remove(driver.readiness());
        Some(driver)
    }

    /// Whether a port has a driver.
    #[must_use]
    pub fn is_attached(&self, port: PortId) -> bool {
        self.drivers.get(port.index()).is_some_and(Option::is_some)
    }

    /// What the packet thread counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What each driver counted, with its port and device name.
    pub fn driver_counters(&mut self) -> Vec<(PortId, String, ports::Counters)> {
        let drivers = self.drivers.iter_mut().enumerate();
        drivers
            .filter_map(|(index, driver)| {
                let driver = driver.as_mut()?;
                let port = PortId(u16::try_from(index).ok()?);
                Some((port, driver.name().to_owned(), driver.counters()))
            })
            .collect()
    }

    fn now(&self) -> Instant {
        Instant::from_duration(self.origin.elapsed())
    }

    /// Receives one burst from a port and handles it; returns how many packets came.
    fn serve(&mut self, port: PortId) -> usize {
        let Some(Some(driver)) = self.drivers.get_mut(port.index()) else {
            return 0;
        };
        let Ok(count) = driver.rx_burst(&mut self.packets) else {
            self.lose(port);
            return 0;
        };
        if count == 0 {
            return 0;
        }
        let mut verdicts = [Verdict::Drop(DropReason::Bug); BURST_MAX];
        let now = self.now();
        let packets = self.packets.get_mut(..count).unwrap_or_default();
        self.engine
            .process_burst(&mut self.worker, port, packets, &mut verdicts, now);
        self.transmit(&verdicts, count);
        count
    }

    /// Sends every packet whose verdict says so, one batch per port, in order within each port.
    fn transmit(&mut self, verdicts: &[Verdict; BURST_MAX], count: usize) {
        let mut targets = [None; BURST_MAX];
        for (target, verdict) in targets.iter_mut().zip(verdicts).take(count) {
            *target = match verdict {
                Verdict::Transmit(port) | Verdict::Reply(port) => Some(*port),
                Verdict::Drop(_) => None,
            };
        }
        while let Some(port) = targets.iter().flatten().next().copied() {
            let empty = &self.packets[0];
            let mut batch = [empty; BURST_MAX];
            let mut batched = 0;
            for (target, packet) in targets.iter_mut().zip(&self.packets) {
                if *target == Some(port) {
                    *target = None;
                    if let Some(place) = batch.get_mut(batched) {
                        *place = packet;
                        batched += 1;
                    }
                }
            }
            let batch = batch.get(..batched).unwrap_or_default();
            match self.drivers.get_mut(port.index()) {
                Some(Some(driver)) => {
                    driver.tx_burst(batch);
                }
                Some(None) | None => self.counters.no_device += batched as u64,
            }
        }
    }

    fn lose(&mut self, port: PortId) {
        if let Some(driver) = self.detach(port) {
            self.counters.devices_lost += 1;
            tracing::warn!(
                interface_name = driver.name(),
                port_id = port.0,
                "Device disappeared"
            );
            // Full means that the other side does not keep up; the interface stays without device until it is created anew.
            let _ = self.lost.try_send(port);
        }
    }

    fn tick(&mut self) {
        let now = self.now();
        self.worker.tick(now);
        let mut packet = PacketBuf::new();
        for _ in 0..PERIODIC_MAX {
            let Some(port) = self.engine.tick(now, &mut packet) else {
                break;
            };
            if let Some(Some(driver)) = self.drivers.get_mut(port.index()) {
                driver.tx_burst(&[&packet]);
            }
        }
    }

    /// Serves all ports that wait; returns how many packets came.
    fn turn(&mut self, ready: &Ready) -> usize {
        let mut served = 0;
        for token in ready.tokens() {
            served += self.serve(PortId(*token));
        }
        for index in 0..self.drivers.len() {
            let waits = |driver: &Option<Box<dyn Port>>| {
                driver.as_ref().is_some_and(|driver| driver.backlog())
            };
            if self.drivers.get(index).is_some_and(waits) {
                served += self.serve(PortId(index as u16));
            }
        }
        served
    }
}

/// The running packet thread.
#[derive(Debug)]
pub struct Thread {
    thread: JoinHandle<()>,
    waker: Waker,
}

impl Thread {
    /// Ends the thread and waits for it. All other handles must be gone by now, or it waits for them.
    pub fn stop(self, last: Handle) {
        drop(last);
        self.waker.wake();
        if self.thread.join().is_err() {
            tracing::error!("The packet thread ended abnormally");
        }
    }
}

/// Starts the packet thread. It ends when every [`Handle`] is gone.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(plane: Plane) -> anyhow::Result<(Handle, Thread)> {
    let (jobs, queue) = mpsc::channel(JOBS_MAX);
    let waker = plane.poller.waker();
    let thread = std::thread::Builder::new()
        .name("worker".to_owned())
        .spawn(move || run(plane, queue))?;
    let thread = Thread {
        thread,
        waker: waker.clone(),
    };
    Ok((Handle { jobs, waker }, thread))
}

fn run(mut plane: Plane, mut jobs: mpsc::Receiver<Job>) {
    let mut next_tick = std::time::Instant::now();
    let mut spins = 0;
    let mut more_jobs = false;
    loop {
        let until_tick = next_tick.saturating_duration_since(std::time::Instant::now());
        let look_again = spins > 0 || more_jobs;
        let timeout = if look_again {
            Duration::ZERO
        } else {
            until_tick
        };
        plane.counters.sleeps += u64::from(!look_again);
        let ready = match plane.poller.wait(timeout) {
            Ok(ready) => ready,
            Err(error) => {
                // The descriptor is ours and valid: only a broken process gets here. The service ends with its packet thread.
                tracing::error!(%error, "Cannot wait for packets");
                return;
            }
        };
        match run_jobs(&mut plane, &mut jobs) {
            Some(more) => more_jobs = more,
            None => return,
        }
        spins = if plane.turn(&ready) > 0 {
            SPINS_MAX
        } else {
            u32::saturating_sub(spins, 1)
        };
        if std::time::Instant::now() >= next_tick {
            plane.tick();
            next_tick = std::time::Instant::now() + TICK_INTERVAL;
        }
    }
}

/// Runs waiting jobs. `Some(true)` if there may be more, `None` if nobody can send any.
fn run_jobs(plane: &mut Plane, jobs: &mut mpsc::Receiver<Job>) -> Option<bool> {
    for _ in 0..JOBS_PER_TURN_MAX {
        match jobs.try_recv() {
            Ok(job) => job(plane),
            Err(mpsc::error::TryRecvError::Empty) => return Some(false),
            Err(mpsc::error::TryRecvError::Disconnected) => return None,
        }
    }
    Some(true)
}
