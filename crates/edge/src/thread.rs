//! The packet threads: each moves the frames of one queue of the device through the engine.
//!
//! Threads share nothing but the published table. A table is taken over between two bursts; the lock is only touched when there is a new
//! one. An idle thread sleeps in epoll and wakes on the first frame.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane::Instant;
use ports::{BATCH_MAX, Frame, Gone, Poller, Port, Waker};

use crate::counters::Counters;
use crate::engine::{Edge, Settings, Verdict};
use crate::table::Table;

/// Packet threads at most.
pub const WORKERS_MAX: usize = 16;
/// How often a thread looks again without sleeping after packets came. A look costs about half a microsecond.
const SPINS_MAX: u32 = 32;
/// Longest sleep, after which a thread shows that it lives.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// Counters of a driver.
const DRIVER_COUNTERS: usize = 11;

/// The table as all threads get it.
#[derive(Debug, Default)]
pub struct Published {
    generation: AtomicU64,
    table: Mutex<Arc<Table>>,
}

impl Published {
    /// Hands out a new table; every packet of a burst that begins afterwards sees it.
    pub fn publish(&self, table: Table) {
        let table = Arc::new(table);
        // A former panic cannot have left half a pointer behind.
        *self.table.lock().unwrap_or_else(PoisonError::into_inner) = table;
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn take(&self) -> Arc<Table> {
        Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a thread shows of itself.
#[derive(Debug, Default)]
pub struct Board {
    /// Verdicts.
    pub counters: Arc<Counters>,
    driver: [AtomicU64; DRIVER_COUNTERS],
    turns: AtomicU64,
    ended: AtomicBool,
}

impl Board {
    /// What the driver counted, with its names.
    pub fn driver(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let names = ports::Counters::default().entries();
        let values = self
            .driver
            .iter()
            .map(|value| value.load(Ordering::Relaxed));
        names.into_iter().map(|(name, _)| name).zip(values)
    }

    /// Grows at least once per second while the thread lives.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Whether the thread has ended: the device is gone.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

/// Running packet threads; dropping it ends them.
#[derive(Debug)]
pub struct Threads {
    stop: Arc<AtomicBool>,
    wakers: Vec<Waker>,
    handles: Vec<JoinHandle<()>>,
    boards: Vec<Arc<Board>>,
}

impl Threads {
    /// Starts one thread per queue.
    ///
    /// # Errors
    /// The process is out of descriptors or threads.
    pub fn start<P: Port + 'static>(
        queues: Vec<P>,
        settings: &Arc<Settings>,
        published: &Arc<Published>,
    ) -> io::Result<Threads> {
        let mut threads = Threads {
            stop: Arc::default(),
            wakers: Vec::new(),
            handles: Vec::new(),
            boards: Vec::new(),
        };
        for (number, port) in queues.into_iter().enumerate().take(WORKERS_MAX) {
            let poller = Poller::new()?;
            if let Some(fd) = port.readiness() {
                poller.add(fd, 0)?;
            }
            threads.wakers.push(poller.waker());
            let board = Arc::<Board>::default();
            threads.boards.push(Arc::clone(&board));
            let worker = Worker {
                edge: Edge::new(Arc::clone(settings), Arc::clone(&board.counters)),
                port,
                poller,
                published: Arc::clone(published),
                board,
                stop: Arc::clone(&threads.stop),
            };
            let handle = std::thread::Builder::new()
                .name(format!("packets-{number}"))
                .spawn(move || worker.run())?;
            threads.handles.push(handle);
        }
        Ok(threads)
    }

    /// What the threads show.
    #[must_use]
    pub fn boards(&self) -> &[Arc<Board>] {
        &self.boards
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wakers.iter().for_each(Waker::wake);
        for handle in self.handles.drain(..) {
            // A panic has been reported by the thread itself.
            let _ = handle.join();
        }
    }
}

struct Worker<P> {
    edge: Edge,
    port: P,
    poller: Poller,
    published: Arc<Published>,
    board: Arc<Board>,
    stop: Arc<AtomicBool>,
}

impl<P: Port> Worker<P> {
    fn run(mut self) {
        if let Err(Gone) = self.turn_until_stopped() {
            tracing::error!(device = self.port.name(), "the device is gone");
        }
        self.board.ended.store(true, Ordering::Release);
    }

    fn turn_until_stopped(&mut self) -> Result<(), Gone> {
        let origin = std::time::Instant::now();
        let mut frames: Vec<Frame> = (0..BATCH_MAX).map(|_| Frame::new()).collect();
        let mut generation = self.published.generation.load(Ordering::Acquire);
        let mut table = self.published.take();
        let mut spins = 0;
        while !self.stop.load(Ordering::Acquire) {
            let newest = self.published.generation.load(Ordering::Acquire);
            if newest != generation {
                (generation, table) = (newest, self.published.take());
            }
            let count = self.port.rx_burst(&mut frames)?;
            if count > 0 {
                spins = SPINS_MAX;
                let now = Instant::from_duration(origin.elapsed());
                self.burst(&table, frames.get_mut(..count).unwrap_or_default(), now);
            } else if spins > 0 {
                spins -= 1;
            } else {
                self.board.turns.fetch_add(1, Ordering::Relaxed);
                self.port.arm();
                let wait = self.poller.wait(SLEEP_MAX);
                // Fails only if the poller itself is broken; the device is of no use without it.
                wait.map_err(|_| Gone)?;
            }
        }
        Ok(())
    }

    fn burst(&mut self, table: &Table, frames: &mut [Frame], now: Instant) {
        let mut sending: Vec<&mut Frame> = Vec::with_capacity(BATCH_MAX);
        for frame in frames {
            match self.edge.process(table, frame, now) {
                Verdict::Send(_) | Verdict::Answer(_) => sending.push(frame),
                Verdict::Drop(_) => {}
            }
        }
        self.port.tx_burst(&mut sending);
        self.board.turns.fetch_add(1, Ordering::Relaxed);
        for (place, (_, value)) in self.board.driver.iter().zip(self.port.counters().entries()) {
            place.store(value, Ordering::Relaxed);
        }
    }
}
