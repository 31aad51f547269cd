//! A packet thread: it owns its queue of each port, its flows and its buffers, and runs each burst to completion.
//!
//! When nothing happens it sleeps in epoll and wakes on the first frame; while packets flow it looks a few more times before it sleeps again.
//! An idle thread costs one wake-up per second. Drivers without readiness are looked at again and again, with growing pauses.

use crate::devices::Kind;
use crate::worker::offload;
use crate::worker::trace::Tracer;
use crate::worker::{Clock, Counters, Inspection, ORDERS_MAX, Settings, Stopped};
use arrayvec::ArrayVec;
use dataplane::sync::Message;
use dataplane::{BURST_MAX, DropReason, Engine, Instant, PortId, Sorter, Tables, Verdict, Worker};
use ports::ring::{self, Receiver, Sender};
use ports::{Poller, Port, Ready, Waker};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Orders carried out between two bursts at most, so that a flood of requests cannot starve packets.
const ORDERS_PER_TURN_MAX: usize = 8;
/// How often the thread looks again without sleeping after packets came. A look costs about half a microsecond.
const SPINS_MAX: u32 = 32;
/// Interval of ageing.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// Pauses between looks at drivers without readiness, while nothing comes: shortest and longest.
const PAUSE_MIN: Duration = Duration::from_micros(20);
const PAUSE_MAX: Duration = Duration::from_millis(1);
/// Packets that wait for another thread; further ones are dropped and counted.
const HAND_OVER_MAX: usize = 512;
/// In poll mode, looks between two checks for wake-ups and readable descriptors.
const LOOKS_PER_CHECK: u32 = 64;

type Order<P> = Box<dyn FnOnce(&mut Lane<P>) + Send>;

/// What all threads have in common.
pub(super) struct Setup {
    pub ports: usize,
    pub settings: Settings,
    pub clock: Clock,
    pub attached: Arc<[AtomicBool]>,
    /// Packets are to be handled, not discarded.
    pub active: Arc<AtomicBool>,
    pub lost: mpsc::Sender<PortId>,
}

/// Reaches a packet thread.
pub(super) struct LaneLink<P> {
    orders: mpsc::Sender<Order<P>>,
    pub waker: Waker,
}

impl<P: Kind> LaneLink<P> {
    /// Hands over an order to be carried out between two bursts; the answer comes later.
    pub async fn order<R: Send + 'static>(
        &self,
        order: impl FnOnce(&mut Lane<P>) -> R + Send + 'static,
    ) -> Result<oneshot::Receiver<R>, Stopped> {
        let (reply, answer) = oneshot::channel();
        let order: Order<P> = Box::new(move |lane| {
            // The caller may have given up: the order is carried out all the same.
            let _ = reply.send(order(lane));
        });
        self.orders.send(order).await.map_err(|_| Stopped)?;
        self.waker.wake();
        Ok(answer)
    }
}

/// A packet on its way to another thread.
#[derive(Default)]
struct Handed<P> {
    packet: P,
    port: PortId,
    /// It has been decided: it only has to leave by `port`. Otherwise it came in there.
    decided: bool,
}

/// The way to another thread, and whether that one sleeps.
struct Neighbour<P> {
    ring: Sender<Handed<P>>,
    waker: Waker,
    asleep: Arc<AtomicBool>,
    handed: bool,
}

/// A port as this thread sees it.
struct Attachment<P> {
    queue: Option<Box<dyn Port<P>>>,
    /// Queues of the port; the first so many threads have one each.
    queues: usize,
}

/// A packet thread's own things.
pub(super) struct Lane<P> {
    number: usize,
    tables: Arc<Tables>,
    worker: Worker,
    /// The way to a NIC that handles flows, and that it is to be asked again before its time.
    nic: Option<offload::End>,
    nic_soon: bool,
    sorter: Sorter,
    ports: Vec<Attachment<P>>,
    /// Ports that have to be looked at without being asked.
    polled: Vec<PortId>,
    /// Those among them that can wake the thread once it sleeps.
    armed: Vec<PortId>,
    poller: Poller,
    packets: Vec<P>,
    to: Vec<Option<Neighbour<P>>>,
    from: Vec<Receiver<Handed<P>>>,
    scratch: Handed<P>,
    asleep: Arc<AtomicBool>,
    counters: Counters,
    settings: Settings,
    attached: Arc<[AtomicBool]>,
    active: Arc<AtomicBool>,
    tracer: Option<Arc<Tracer>>,
    /// Who tells another instance.
    journal: Option<mpsc::Sender<Message>>,
    lost: mpsc::Sender<PortId>,
    clock: Clock,
}

/// A lane before it runs: itself, its orders and the link to it.
pub(super) type Made<P> = (Lane<P>, mpsc::Receiver<Order<P>>, LaneLink<P>);

/// Makes the threads' things, with a ring from each to each other.
pub(super) fn make<P: Kind>(engine: &Engine, setup: &Setup) -> io::Result<Vec<Made<P>>> {
    let count = setup.settings.workers;
    let mut made = Vec::with_capacity(count);
    for number in 0..count {
        let poller = Poller::new()?;
        let (orders, queue) = mpsc::channel(ORDERS_MAX);
        let link = LaneLink {
            orders,
            waker: poller.waker(),
        };
        let lane = Lane {
            number,
            tables: Arc::clone(engine.tables()),
            worker: engine.worker(),
            nic: None,
            nic_soon: false,
            sorter: engine.sorter(),
            ports: (0..setup.ports)
                .map(|_| Attachment {
                    queue: None,
                    queues: 0,
                })
                .collect(),
            polled: Vec::new(),
            armed: Vec::new(),
            poller,
            packets: (0..BURST_MAX).map(|_| P::default()).collect(),
            to: Vec::new(),
            from: Vec::new(),
            scratch: Handed::default(),
            asleep: Arc::new(AtomicBool::new(false)),
            counters: Counters::default(),
            settings: setup.settings,
            attached: Arc::clone(&setup.attached),
            active: Arc::clone(&setup.active),
            tracer: None,
            journal: None,
            lost: setup.lost.clone(),
            clock: setup.clock,
        };
        made.push((lane, queue, link));
    }
    for sender in 0..count {
        for receiver in 0..count {
            let way = if sender == receiver {
                None
            } else {
                let (ring, end) = ring::ring(HAND_OVER_MAX);
                made.get_mut(receiver).map(|(lane, _, _)| {
                    lane.from.push(end);
                    Neighbour {
                        ring,
                        waker: lane.poller.waker(),
                        asleep: Arc::clone(&lane.asleep),
                        handed: false,
                    }
                })
            };
            if let Some((lane, _, _)) = made.get_mut(sender) {
                lane.to.push(way);
            }
        }
    }
    Ok(made)
}

impl<P: Kind> Lane<P> {
    pub(super) fn set_tables(&mut self, tables: Arc<Tables>) {
        self.tables = tables;
        self.nic_soon = self.nic.is_some();
    }

    pub(super) fn set_nic(&mut self, nic: Option<offload::End>) {
        self.nic = nic;
    }

    /// Looks after the flows of the NIC.
    fn serve_nic(&mut self) {
        let now = self.now();
        if let Some(nic) = &mut self.nic {
            self.nic_soon = nic.turn(&mut self.worker, &self.tables, now);
        }
    }

    pub(super) fn set_queues(&mut self, port: PortId, queues: usize) {
        if let Some(attachment) = self.ports.get_mut(port.index()) {
            attachment.queues = queues;
        }
    }

    pub(super) fn attach(&mut self, port: PortId, queue: Box<dyn Port<P>>) -> io::Result<()> {
        let readiness = queue.readiness().filter(|_| !self.settings.poll);
        let is_level = readiness.is_some() && queue.is_level();
        if let Some(fd) = readiness {
            self.poller.add(fd, port.0)?;
            if !is_level {
                self.armed.push(port);
            }
        }
        if !is_level {
            self.polled.push(port);
        }
        if let Some(attachment) = self.ports.get_mut(port.index()) {
            attachment.queue = Some(queue);
        }
        Ok(())
    }

    pub(super) fn detach(&mut self, port: PortId) -> Option<Box<dyn Port<P>>> {
        let attachment = self.ports.get_mut(port.index())?;
        attachment.queues = 0;
        let queue = attachment.queue.take()?;
        self.polled.retain(|polled| *polled != port);
        self.armed.retain(|armed| *armed != port);
        if let Some(fd) = queue.readiness() {
            // An error means that the descriptor is not watched, which is what is wanted.
            let _ = self.poller.remove(fd);
        }
        Some(queue)
    }

    /// Sends frames of the configuration side.
    pub(super) fn send(&mut self, port: PortId, frames: &[Vec<u8>]) {
        let Some(Attachment {
            queue: Some(queue), ..
        }) = self.ports.get_mut(port.index())
        else {
            return;
        };
        for frame in frames {
            if let Some(mut packet) = P::holding(frame) {
                queue.tx_burst(&mut [&mut packet]);
            }
        }
    }

    pub(super) fn inspect(&mut self) -> Inspection<'_> {
        let drivers = self.ports.iter_mut().enumerate();
        let drivers = drivers
            .filter_map(|(index, attachment)| {
                let port = PortId(u16::try_from(index).ok()?);
                Some((port, attachment.queue.as_mut()?.counters()))
            })
            .collect();
        let counters = Counters {
            untold: self.counters.untold + self.worker.journal_lost(),
            ..self.counters
        };
        Inspection {
            thread: self.number,
            now: self.clock.now(),
            worker: &mut self.worker,
            tables: &self.tables,
            counters,
            drivers,
        }
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Receives one burst from a port and handles it; returns how many packets came.
    fn serve(&mut self, port: PortId) -> usize {
        let Some(Attachment {
            queue: Some(queue), ..
        }) = self.ports.get_mut(port.index())
        else {
            return 0;
        };
        let Ok(count) = queue.rx_burst(&mut self.packets) else {
            self.lose(port);
            return 0;
        };
        if count == 0 {
            return 0;
        }
        if !self.active.load(Ordering::Relaxed) {
            self.counters.standby += count as u64;
            return count;
        }
        if self.tables.is_capturing(port) {
            self.mirror(port, count);
        }
        let own = if self.to.len() > 1 {
            self.hand_over_foreign(port, count)
        } else {
            count
        };
        self.process(port, own);
        count
    }

    /// Sends copies of the first `count` packets, which came in on `port`, to the receiver of the capture.
    fn mirror(&mut self, port: PortId, count: usize) {
        for slot in 0..count {
            let Some(packet) = self.packets.get(slot) else {
                break;
            };
            let mirrored = P::holding(&[]).and_then(|mut copy| {
                let uplink = self.tables.mirror(port, packet.frame(), &mut copy)?;
                Some((uplink, copy))
            });
            match mirrored {
                Some((uplink, copy)) => {
                    self.counters.mirrored += 1;
                    self.scratch.packet = copy;
                    self.send_scratch(uplink);
                }
                None => self.counters.mirror_failed += 1,
            }
        }
        self.wake_neighbours();
    }

    /// Sends the packet in the scratch place, or hands it to a thread that has a queue of the port.
    fn send_scratch(&mut self, port: PortId) {
        match self.ports.get_mut(port.index()) {
            Some(Attachment {
                queue: Some(queue), ..
            }) => {
                queue.tx_burst(&mut [&mut self.scratch.packet]);
            }
            Some(Attachment { queues, .. }) if *queues > 0 => {
                let home = self.number % *queues;
                (self.scratch.port, self.scratch.decided) = (port, true);
                hand_over(&mut self.to, home, &mut self.scratch, &mut self.counters);
            }
            Some(_) | None => self.counters.no_device += 1,
        }
    }

    /// Decides the first `count` packets, which came in on `port`, and sends them.
    fn process(&mut self, port: PortId, count: usize) {
        let mut verdicts = [Verdict::Drop(DropReason::Bug); BURST_MAX];
        let now = self.now();
        let packets = self.packets.get_mut(..count).unwrap_or_default();
        if self.tracer.is_some() {
            self.process_traced(port, count, &mut verdicts, now);
        } else {
            self.worker
                .process_burst(&self.tables, port, packets, &mut verdicts, now);
        }
        self.transmit(&verdicts, count);
    }

    pub(super) fn trace(&mut self, tracer: Arc<Tracer>) {
        self.tracer = Some(tracer);
    }

    pub(super) fn keep_journal(&mut self, journal: mpsc::Sender<Message>) {
        self.worker.keep_journal();
        self.journal = Some(journal);
    }

    /// Passes on what another instance has to know.
    fn tell(&mut self) {
        let Lane {
            worker,
            journal,
            counters,
            ..
        } = self;
        if let Some(journal) = journal {
            worker.fetch_journal(|message| {
                counters.untold += u64::from(journal.try_send(message).is_err());
            });
        }
    }

    /// Decides packets one by one and tells the tracer about each.
    #[cold]
    #[inline(never)]
    fn process_traced(
        &mut self,
        port: PortId,
        count: usize,
        verdicts: &mut [Verdict; BURST_MAX],
        now: Instant,
    ) {
        let Lane {
            tables,
            worker,
            packets,
            tracer,
            ..
        } = self;
        for (packet, verdict) in packets.iter_mut().take(count).zip(verdicts.iter_mut()) {
            let seen = tracer
                .as_deref()
                .and_then(|tracer| tracer.before(port, packet.frame(), worker.counters()));
            *verdict = worker.process(tables, port, packet, now);
            if let (Some(tracer), Some(seen)) = (tracer.as_deref(), seen) {
                tracer.after(seen, *verdict, packet.frame(), worker.counters());
            }
        }
        if tracer.as_ref().is_some_and(|tracer| tracer.is_over()) {
            *tracer = None;
        }
    }

    /// Gives away packets of flows that belong to other threads and moves the rest to the front; returns how many those are.
    fn hand_over_foreign(&mut self, port: PortId, count: usize) -> usize {
        let (workers, now) = (self.to.len(), self.now());
        let mut own = 0;
        for slot in 0..count {
            let Some(packet) = self.packets.get_mut(slot) else {
                break;
            };
            let sorter = &mut self.sorter;
            let owner = sorter.owner(&self.tables, port, packet.frame(), workers, now);
            if owner == self.number {
                self.packets.swap(own, slot);
                own += 1;
            } else {
                self.scratch.port = port;
                self.scratch.decided = false;
                std::mem::swap(&mut self.scratch.packet, packet);
                hand_over(&mut self.to, owner, &mut self.scratch, &mut self.counters);
            }
        }
        self.wake_neighbours();
        own
    }

    fn wake_neighbours(&mut self) {
        for neighbour in self.to.iter_mut().flatten() {
            if std::mem::take(&mut neighbour.handed) {
                // Pairs with the fence in `may_sleep`: either it sees the packet, or we see that it sleeps.
                fence(Ordering::SeqCst);
                if neighbour.asleep.load(Ordering::Relaxed) {
                    neighbour.waker.wake();
                }
            }
        }
    }

    /// Takes over what other threads handed to this one; returns how many packets.
    fn take_over(&mut self) -> usize {
        let mut taken = 0;
        for index in 0..self.from.len() {
            let mut run: Option<(PortId, bool)> = None;
            let mut count = 0;
            for _ in 0..BURST_MAX {
                let popped = self
                    .from
                    .get_mut(index)
                    .is_some_and(|ring| ring.pop(&mut self.scratch));
                if !popped {
                    break;
                }
                taken += 1;
                let kind = (self.scratch.port, self.scratch.decided);
                if run.is_some_and(|run| run != kind) {
                    self.finish_run(run, count);
                    count = 0;
                }
                run = Some(kind);
                if let Some(packet) = self.packets.get_mut(count) {
                    std::mem::swap(packet, &mut self.scratch.packet);
                    count += 1;
                }
            }
            self.finish_run(run, count);
        }
        taken
    }

    /// Handles packets of the same port that another thread handed over.
    fn finish_run(&mut self, run: Option<(PortId, bool)>, count: usize) {
        match run {
            Some((port, false)) => self.process(port, count),
            Some((port, true)) => {
                self.transmit(&[Verdict::Transmit(port); BURST_MAX], count);
            }
            None => {}
        }
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
            self.transmit_to(port, &mut targets);
        }
        self.wake_neighbours();
    }

    fn transmit_to(&mut self, port: PortId, targets: &mut [Option<PortId>; BURST_MAX]) {
        let Lane {
            ports,
            packets,
            to,
            scratch,
            counters,
            number,
            ..
        } = self;
        let wanted = targets
            .iter_mut()
            .zip(packets)
            .filter(|(target, _)| **target == Some(port))
            .map(|(target, packet)| {
                *target = None;
                packet
            });
        match ports.get_mut(port.index()) {
            Some(Attachment {
                queue: Some(queue), ..
            }) => {
                let mut batch: ArrayVec<&mut P, BURST_MAX> = wanted.collect();
                queue.tx_burst(&mut batch);
            }
            Some(Attachment { queues, .. }) if *queues > 0 => {
                let home = *number % *queues;
                for packet in wanted {
                    std::mem::swap(&mut scratch.packet, packet);
                    (scratch.port, scratch.decided) = (port, true);
                    hand_over(to, home, scratch, counters);
                }
            }
            Some(_) | None => counters.no_device += wanted.count() as u64,
        }
    }

    fn lose(&mut self, port: PortId) {
        if let Some(queue) = self.detach(port) {
            self.counters.devices_lost += 1;
            tracing::warn!(
                interface_name = queue.name(),
                port_id = port.0,
                "Device disappeared"
            );
            if let Some(attached) = self.attached.get(port.index()) {
                attached.store(false, Ordering::Release);
            }
            // Full means that the other side does not keep up; the interface stays without device until it is created anew.
            let _ = self.lost.try_send(port);
        }
    }

    /// Serves all ports that wait; returns how many packets came.
    fn turn(&mut self, ready: &Ready) -> usize {
        let mut served = self.take_over();
        for token in ready.tokens() {
            let port = PortId(*token);
            if !self.armed.contains(&port) {
                served += self.serve(port);
            }
        }
        for index in 0..self.polled.len() {
            if let Some(port) = self.polled.get(index).copied() {
                served += self.serve(port);
            }
        }
        served
    }

    /// Announces that this thread is about to sleep; false if something came in the meantime.
    fn may_sleep(&mut self) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake_neighbours`.
        fence(Ordering::SeqCst);
        for attachment in &mut self.ports {
            if let Some(queue) = &mut attachment.queue {
                queue.arm();
            }
        }
        // What came before they were armed does not wake.
        let mut served = 0;
        for index in 0..self.armed.len() {
            if let Some(port) = self.armed.get(index).copied() {
                served += self.serve(port);
            }
        }
        served == 0 && self.from.iter().all(Receiver::is_empty)
    }

    /// The life of the thread: until nobody can order anything any more.
    pub(super) fn run(mut self, mut orders: mpsc::Receiver<Order<P>>) {
        P::enter_thread(self.number);
        let mut next_tick = std::time::Instant::now();
        let mut next_nic = next_tick;
        let mut spins = 0;
        let mut pause = PAUSE_MIN;
        let mut more_orders = false;
        let mut looks = 0_u32;
        loop {
            looks = looks.wrapping_add(1);
            let mut ready = Ready::NONE;
            if !self.settings.poll || looks.is_multiple_of(LOOKS_PER_CHECK) {
                let awake = self.settings.poll
                    || spins > 0
                    || more_orders
                    || self.nic_soon
                    || !self.may_sleep();
                let wakes = self.polled.len() == self.armed.len();
                let timeout = match (awake, wakes) {
                    (true, _) => Duration::ZERO,
                    (false, false) => pause,
                    (false, true) => next_tick.saturating_duration_since(std::time::Instant::now()),
                };
                self.counters.sleeps += u64::from(!awake);
                ready = match self.poller.wait(timeout) {
                    Ok(ready) => ready,
                    Err(error) => {
                        // The descriptor is ours and valid: only a broken process gets here. The service ends with its packet threads.
                        tracing::error!(%error, "Cannot wait for packets");
                        return;
                    }
                };
                self.asleep.store(false, Ordering::Relaxed);
                match carry_out(&mut self, &mut orders) {
                    Some(more) => more_orders = more,
                    None => return,
                }
            }
            if self.turn(&ready) > 0 {
                (spins, pause) = (SPINS_MAX, PAUSE_MIN);
            } else if spins > 0 {
                spins -= 1;
                if !self.settings.poll {
                    // Who would send the next packets may need this processor.
                    std::thread::yield_now();
                }
            } else {
                pause = (pause * 2).min(PAUSE_MAX);
            }
            self.tell();
            if self.settings.poll && !looks.is_multiple_of(LOOKS_PER_CHECK) {
                continue;
            }
            let time = std::time::Instant::now();
            if self.nic.is_some() && (self.nic_soon || time >= next_nic) {
                self.serve_nic();
                next_nic = time + offload::INTERVAL;
            }
            if time >= next_tick {
                let now = self.now();
                self.worker.tick(now);
                self.tell();
                next_tick =
                    std::time::Instant::now() + TICK_INTERVAL / self.settings.clock_rate.max(1);
            }
        }
    }
}

/// Puts a packet into the ring of thread `owner`; what does not fit is dropped and counted. `item` holds an empty place afterwards, or the
/// dropped packet.
fn hand_over<P>(
    to: &mut [Option<Neighbour<P>>],
    owner: usize,
    item: &mut Handed<P>,
    counters: &mut Counters,
) {
    let Some(Some(neighbour)) = to.get_mut(owner) else {
        counters.hand_over_full += 1;
        return;
    };
    neighbour.handed = true;
    if neighbour.ring.push(item) {
        counters.handed_over += 1;
    } else {
        counters.hand_over_full += 1;
    }
}

/// Carries out waiting orders. `Some(true)` if there may be more, `None` if nobody can send any.
fn carry_out<P: Kind>(lane: &mut Lane<P>, orders: &mut mpsc::Receiver<Order<P>>) -> Option<bool> {
    for _ in 0..ORDERS_PER_TURN_MAX {
        match orders.try_recv() {
            Ok(order) => order(lane),
            Err(mpsc::error::TryRecvError::Empty) => return Some(false),
            Err(mpsc::error::TryRecvError::Disconnected) => return None,
        }
    }
    Some(true)
}
