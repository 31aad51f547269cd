//! The thread that talks to a NIC about rules, and a packet thread's end of the way to it.
//!
//! Packet threads give orders and hear reports through bounded queues and never wait: an order that finds no room is given again a few
//! milliseconds later. Installing a rule takes a NIC some hundred microseconds; packets of the flow stay in software so long.

use dataplane::offload::{FlowId, Nic, Order, Report};
use dataplane::{Instant, Tables, Worker};
use ports::offload::{Hits, RuleDevice, RuleHandle};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Orders of all packet threads that wait; further ones are given again later, and counted.
const ORDERS_MAX: usize = 1_024;
/// Reports that wait for a packet thread. Hits that find no room are reported with the next ones.
const REPORTS_MAX: usize = 4_096;
/// Reports that a packet thread hears between two bursts.
const REPORTS_PER_TURN_MAX: usize = 256;
/// How often a packet thread looks for work.
pub(super) const INTERVAL: Duration = Duration::from_millis(10);
/// How often counters are read, and of how many flows then: all that a worker can have within a second.
const QUERY_INTERVAL: Duration = Duration::from_millis(250);
const QUERIES_MAX: usize = 4_096;
/// Orders carried out between two looks at the clock.
const ORDERS_PER_LOOK_MAX: usize = 256;
/// Refusals that are told in the log; all are counted.
const REFUSALS_TOLD_MAX: u32 = 4;

/// A packet thread's end.
pub(super) struct End {
    lane: usize,
    nic: Arc<Nic>,
    orders: SyncSender<(usize, Order)>,
    reports: Receiver<Report>,
}

impl End {
    /// Lets the worker give orders and hear reports. True if it should have another turn soon.
    pub(super) fn turn(&mut self, worker: &mut Worker, tables: &Tables, now: Instant) -> bool {
        for _ in 0..REPORTS_PER_TURN_MAX {
            match self.reports.try_recv() {
                Ok(report) => worker.offload_report(report, now),
                // The other thread ends after this one, unless it panicked; then orders find no taker either.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        let (lane, orders) = (self.lane, &self.orders);
        worker.offload(tables, &self.nic, now, &mut |order| {
            orders.try_send((lane, order)).is_ok()
        })
    }
}

/// Starts the thread; it ends when all ends are gone, and removes what it installed.
pub(super) fn start(
    device: Box<dyn RuleDevice>,
    lanes: usize,
) -> std::io::Result<(Vec<End>, JoinHandle<()>)> {
    let nic = Arc::new(device.nic());
    let (orders, queue) = sync_channel(ORDERS_MAX);
    let mut ends = Vec::with_capacity(lanes);
    let mut reports = Vec::with_capacity(lanes);
    for lane in 0..lanes {
        let (sender, receiver) = sync_channel(REPORTS_MAX);
        reports.push(sender);
        ends.push(End {
            lane,
            nic: Arc::clone(&nic),
            orders: orders.clone(),
            reports: receiver,
        });
    }
    let table = Table {
        device,
        reports,
        installed: BTreeMap::new(),
        next: Bound::Unbounded,
        told: 0,
    };
    let thread = std::thread::Builder::new()
        .name("offload".to_owned())
        .spawn(move || table.run(&queue))?;
    Ok((ends, thread))
}

type Key = (usize, FlowId);

/// Installed rules and what of their hits has been reported.
struct Table {
    device: Box<dyn RuleDevice>,
    reports: Vec<SyncSender<Report>>,
    installed: BTreeMap<Key, (RuleHandle, Hits)>,
    /// Where reading counters goes on.
    next: Bound<Key>,
    told: u32,
}

impl Table {
    fn run(mut self, orders: &Receiver<(usize, Order)>) {
        let mut next_query = std::time::Instant::now() + QUERY_INTERVAL;
        loop {
            let wait = next_query.saturating_duration_since(std::time::Instant::now());
            match orders.recv_timeout(wait) {
                Ok((lane, order)) => {
                    self.carry_out(lane, order);
                    for (lane, order) in orders.try_iter().take(ORDERS_PER_LOOK_MAX) {
                        self.carry_out(lane, order);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if std::time::Instant::now() >= next_query {
                self.query();
                next_query = std::time::Instant::now() + QUERY_INTERVAL;
            }
        }
        for (handle, _) in std::mem::take(&mut self.installed).into_values() {
            self.device.remove(handle);
        }
    }

    /// Waits for room if the thread is slow to hear: it never waits for us. Fails only if the thread has ended.
    fn tell(&self, lane: usize, report: Report) {
        if let Some(reports) = self.reports.get(lane) {
            let _ = reports.send(report);
        }
    }

    fn carry_out(&mut self, lane: usize, order: Order) {
        match order {
            Order::Install(flow, rules) => match self.device.install(&rules) {
                Ok(handle) => {
                    self.installed
                        .insert((lane, flow), (handle, Hits::default()));
                    self.tell(lane, Report::Installed(flow));
                }
                Err(refusal) => {
                    if self.told < REFUSALS_TOLD_MAX {
                        self.told += 1;
                        tracing::info!(error = %refusal, "Flow stays in software");
                    }
                    self.tell(lane, Report::Refused(flow));
                }
            },
            Order::Remove(flow) => {
                // What came since the last look is counted as well.
                self.read((lane, flow));
                if let Some((handle, _)) = self.installed.remove(&(lane, flow)) {
                    self.device.remove(handle);
                }
            }
        }
    }

    /// Reads the counters of the next flows.
    fn query(&mut self) {
        let range = (self.next, Bound::Unbounded);
        let keys: Vec<Key> = self
            .installed
            .range(range)
            .take(QUERIES_MAX)
            .map(|(key, _)| *key)
            .collect();
        self.next = match keys.last() {
            Some(last) if keys.len() == QUERIES_MAX => Bound::Excluded(*last),
            Some(_) | None => Bound::Unbounded,
        };
        for key in keys {
            self.read(key);
        }
    }

    fn read(&mut self, key: Key) {
        let Some((handle, told)) = self.installed.get_mut(&key) else {
            return;
        };
        let Some(now) = self.device.hits(*handle) else {
            return;
        };
        let (lane, flow) = key;
        let report = Report::Hits {
            flow,
            packets: now.packets.saturating_sub(told.packets),
            bytes: now.bytes.saturating_sub(told.bytes),
        };
        let is_news = now.packets != told.packets;
        let reports = self.reports.get(lane);
        if is_news && reports.is_some_and(|reports| reports.try_send(report).is_ok()) {
            *told = now;
        }
    }
}
