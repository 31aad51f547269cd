//! The link between two instances on one host (`--sync-tap`): the one that works tells the one that stands by of connections that only it
//! can know ([`dataplane::sync`]), and that one begins with them when its turn comes.
//!
//! What is told is kept aside and handed to the packet threads at the change, all at once, before the first packet. An instance that stands by
//! asks for everything when it starts, and again with growing pauses. There are no acknowledgements: a lost message costs one connection at
//! the change if that comes before the next request, or keeps one alive for a timeout too long.

use crate::worker::{Handle, Inspection, Stopped};
use anyhow::Context;
use dataplane::sync::{Message, NatUse, NoMessage, VirtualUse};
use dataplane::{
    EngineConfig, Instant, NatEnd, NatRemote, NatSource, NotTaken, PortId, SharePlace, Tables,
    VIRTUAL_CONNECTIONS_MAX, Worker, owner_of_message,
};
use net::Mac;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Messages of packet threads that have not been sent yet; further ones are counted and not sent.
pub const QUEUE_MAX: usize = 65_536;
/// Interval in which changed MAC addresses are noticed.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Looks until everything is asked for again: a second after the start, then after twice the time before, and at last every five minutes. (The
/// link may not be joined yet when this instance starts, and what was lost is told again.)
const REQUEST_LOOKS: std::ops::RangeInclusive<u32> = 4..=1_200;
/// Frames sent or received in a row before something else has its turn.
const FRAMES_MAX: usize = 256;
/// Pause between such rows, so that the other one's queue does not overflow.
const PAUSE: Duration = Duration::from_millis(1);
/// How long what the other instance told last may take to arrive.
const HEAR_OUT: Duration = Duration::from_millis(5);
/// How long a frame may wait for room.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);
/// Shortest time between two log lines about the same.
const LOG_INTERVAL: Duration = Duration::from_secs(5);
/// Longest Ethernet frame that is read; longer ones are none of ours.
const READ_MAX: usize = 2_048;

/// Names of the messages by their types, from 1 on.
const MESSAGES: [&str; 5] = [
    "nat_create",
    "nat_delete",
    "virtsvc_conn",
    "port_mac",
    "request_dump",
];
/// Why frames are ignored.
const IGNORED: [&str; 6] = ["foreign", "truncated", "type", "field", "role", "full"];
/// Kinds of what is kept aside.
const KINDS: [&str; 2] = ["nat", "virtsvc"];
/// Why connections were not taken over.
const NOT_TAKEN: [&str; 3] = ["not_configured", "conflict", "refused"];

/// Counters by name.
#[derive(Debug)]
pub struct Named<const N: usize> {
    names: [&'static str; N],
    counts: [AtomicU64; N],
}

impl<const N: usize> Named<N> {
    fn new(names: [&'static str; N]) -> Named<N> {
        let counts = [const { AtomicU64::new(0) }; N];
        Named { names, counts }
    }

    fn add(&self, index: usize, count: u64) {
        if let Some(place) = self.counts.get(index) {
            place.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn set(&self, index: usize, count: usize) {
        if let Some(place) = self.counts.get(index) {
            place.store(count as u64, Ordering::Relaxed);
        }
    }

    /// All of them.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.counts.iter();
        let counts = counts.map(|count| count.load(Ordering::Relaxed));
        self.names.iter().copied().zip(counts)
    }
}

/// What the link counts.
#[derive(Debug)]
pub struct SyncCounters {
    /// Messages sent.
    pub sent: Named<5>,
    /// Messages received.
    pub received: Named<5>,
    /// Frames received that did nothing.
    pub ignored: Named<6>,
    /// Messages that could not be written.
    pub unsent: AtomicU64,
    /// Connections kept aside for the change.
    pub kept: Named<2>,
    /// Connections taken over at the change.
    pub taken: Named<2>,
    /// Connections that could not be.
    pub not_taken: Named<3>,
}

impl SyncCounters {
    fn new() -> SyncCounters {
        SyncCounters {
            sent: Named::new(MESSAGES),
            received: Named::new(MESSAGES),
            ignored: Named::new(IGNORED),
            unsent: AtomicU64::new(0),
            kept: Named::new(KINDS),
            taken: Named::new(KINDS),
            not_taken: Named::new(NOT_TAKEN),
        }
    }
}

fn kind(message: &Message) -> usize {
    match message {
        Message::NatTaken(..) => 0,
        Message::NatGivenBack(_) => 1,
        Message::VirtualConnection(_) => 2,
        Message::MachineMac(..) => 3,
        Message::Request => 4,
    }
}

/// A device that carries one frame per read and write, like a TAP. (Tokio's ends of pipes do nothing but wait, read and write, whatever the
/// descriptor is of.)
#[derive(Debug)]
pub struct Link {
    receiver: pipe::Receiver,
    sender: pipe::Sender,
    /// The TAP device, which may be removed and come back.
    device: Option<Device>,
}

/// Whether there is something to read from and write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    There,
    /// Again, or rather something else.
    Anew,
    Gone,
}

#[derive(Clone, Debug)]
struct Device {
    name: String,
    /// It was created by this process, which nobody else will do.
    is_ours: bool,
}

impl Link {
    /// Takes over a nonblocking descriptor.
    ///
    /// # Errors
    /// If it cannot be watched.
    pub fn new(descriptor: OwnedFd) -> io::Result<Link> {
        Ok(Link {
            sender: pipe::Sender::from_file_unchecked(descriptor.try_clone()?.into())?,
            receiver: pipe::Receiver::from_file_unchecked(descriptor.into())?,
            device: None,
        })
    }

    /// Opens the TAP device `name`, see [`ports::open_message_tap`].
    ///
    /// # Errors
    /// If it cannot be opened or watched.
    pub fn open(name: &str) -> anyhow::Result<Link> {
        let device = Device {
            name: name.to_owned(),
            is_ours: !exists(name),
        };
        let mut link = Link::new(ports::open_message_tap(name)?)
            .with_context(|| format!("cannot watch {name}"))?;
        link.device = Some(device);
        Ok(link)
    }

    /// Opens its device anew if it was removed and has come back.
    fn restore(&mut self, is_broken: bool) -> State {
        let device = match &self.device {
            Some(device) if is_broken || !ports::is_message_tap(self.receiver.as_fd()) => device,
            None if is_broken => return State::Gone,
            Some(_) | None => return State::There,
        };
        if !device.is_ours && !exists(&device.name) {
            return State::Gone;
        }
        let device = device.clone();
        let Ok(link) = Link::open(&device.name) else {
            return State::Gone;
        };
        tracing::warn!(interface_name = device.name, "Device was opened anew");
        *self = Link {
            device: Some(device),
            ..link
        };
        State::Anew
    }

    async fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        loop {
            self.receiver.readable().await?;
            match self.receiver.try_read(frame) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    async fn write(&self, frame: &[u8]) -> io::Result<usize> {
        loop {
            self.sender.writable().await?;
            match self.sender.try_write(frame) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
        }
    }
}

fn exists(device: &str) -> bool {
    nix::net::if_::if_nametoindex(device).is_ok()
}

/// How many connections of the other instance are kept at most.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// With NAT ports.
    pub nat: usize,
    /// To virtual services.
    pub services: usize,
}

impl Room {
    /// For all that an instance with this configuration and so many packet threads can have.
    #[must_use]
    pub fn of(config: &EngineConfig, workers: usize) -> Room {
        Room {
            nat: config.limits.nat_max as usize * workers,
            services: config.virtual_services.len() * VIRTUAL_CONNECTIONS_MAX,
        }
    }
}

/// What the other instance has told, until it is this one's turn.
#[derive(Debug)]
struct Kept {
    /// By what only one connection can have; the last one told is the right one.
    nat: HashMap<(NatEnd, NatRemote), (NatSource, PortId)>,
    /// With the time at which they were told last.
    services: BTreeMap<(u8, std::net::Ipv4Addr, u16, u16), (VirtualUse, std::time::Instant)>,
    room: Room,
}

/// A connection that was kept, and how long ago it was told.
type Told = (Message, Duration);

impl Kept {
    /// False if there is no room for it.
    fn keep(&mut self, message: &Message) -> bool {
        match message {
            Message::NatTaken(used, machine) => {
                let key = (used.end, used.remote);
                if self.nat.len() >= self.room.nat && !self.nat.contains_key(&key) {
                    return false;
                }
                self.nat.insert(key, (used.source, *machine));
            }
            Message::NatGivenBack(used) => {
                let key = (used.end, used.remote);
                if self
                    .nat
                    .get(&key)
                    .is_some_and(|(source, _)| *source == used.source)
                {
                    self.nat.remove(&key);
                }
            }
            Message::VirtualConnection(used) => {
                let key = (used.protocol, used.address, used.port, used.slot);
                if self.services.len() >= self.room.services && !self.services.contains_key(&key) {
                    return false;
                }
                let told = std::time::Instant::now();
                self.services.insert(key, (*used, told));
            }
            Message::MachineMac(..) | Message::Request => {}
        }
        true
    }

    /// Forgets the connections of the machine on a port.
    fn forget(&mut self, port: PortId) {
        self.nat.retain(|_, (_, owner)| *owner != port);
        self.services
            .retain(|_, (used, _)| used.machine_port != port);
    }

    /// Everything, of virtual services what was told last first.
    fn take(&mut self) -> Vec<Told> {
        let nat = std::mem::take(&mut self.nat).into_iter();
        let nat = nat.map(|((end, remote), (source, machine))| {
            let used = NatUse {
                source,
                end,
                remote,
            };
            (Message::NatTaken(used, machine), Duration::ZERO)
        });
        let services = std::mem::take(&mut self.services).into_values();
        let mut services: Vec<Told> = services
            .map(|(used, told)| (Message::VirtualConnection(used), told.elapsed()))
            .collect();
        services.sort_by_key(|(_, age)| *age);
        nat.chain(services).collect()
    }
}

/// Lets the change begin.
#[derive(Debug)]
pub struct Control(mpsc::Sender<oneshot::Sender<()>>);

impl Control {
    /// Gives the packet threads what the other instance has told, and returns when they have it. Without link, they begin without.
    pub async fn take_over(self) {
        let (done, end) = oneshot::channel();
        if self.0.send(done).await.is_ok() {
            // An error means that the link has ended.
            let _ = end.await;
        }
    }
}

/// One end of the link.
#[derive(Debug)]
pub struct Sync {
    link: Link,
    worker: Handle,
    counters: Arc<SyncCounters>,
    kept: Kept,
    /// What has been told of machines.
    macs: BTreeMap<PortId, Mac>,
    /// Interfaces that this instance has had while it stood by.
    attachments: BTreeMap<PortId, u32>,
    change: mpsc::Receiver<oneshot::Sender<()>>,
    journal: mpsc::Receiver<Message>,
    teller: mpsc::Sender<Message>,
    is_active: bool,
    is_broken: bool,
    /// How far each packet thread's part of a dump has got, if one was asked for.
    dump: Option<Dump>,
    /// Until when nothing is logged about something.
    quiet: BTreeMap<&'static str, std::time::Instant>,
}

type Dump = BTreeMap<usize, Option<SharePlace>>;

/// Makes an end of the link for the packet threads behind `worker`.
#[must_use]
pub fn make(link: Link, worker: Handle, room: Room) -> (Control, Sync) {
    let (control, change) = mpsc::channel(1);
    let (teller, journal) = mpsc::channel(QUEUE_MAX);
    let counters = Arc::new(SyncCounters::new());
    worker.show_sync(Arc::clone(&counters));
    let kept = Kept {
        nat: HashMap::new(),
        services: BTreeMap::new(),
        room,
    };
    let sync = Sync {
        link,
        worker,
        counters,
        kept,
        macs: BTreeMap::new(),
        attachments: BTreeMap::new(),
        change,
        journal,
        teller,
        is_active: false,
        is_broken: false,
        dump: None,
        quiet: BTreeMap::new(),
    };
    (Control(control), sync)
}

impl Sync {
    /// Serves the link until `shutdown`, first in standby if asked for. Without its device, it goes on without hearing.
    ///
    /// # Errors
    /// If the packet threads have ended.
    pub async fn run(mut self, standby: bool, shutdown: CancellationToken) -> anyhow::Result<()> {
        if !standby {
            self.begin().await.context("cannot begin")?;
        }
        let result = tokio::select! {
            result = self.serve() => result,
            () = shutdown.cancelled() => return Ok(()),
        };
        if shutdown.is_cancelled() {
            return Ok(());
        }
        result
    }

    async fn serve(&mut self) -> anyhow::Result<()> {
        let mut frame = [0; READ_MAX];
        let (mut looks, mut pause) = (0, *REQUEST_LOOKS.start());
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                read = self.link.read(&mut frame), if !self.is_broken => match read {
                    Ok(length @ 1..) => {
                        self.receive(frame.get(..length).unwrap_or_default()).await?;
                    }
                    ended => {
                        let error = ended.err().unwrap_or(io::ErrorKind::UnexpectedEof.into());
                        tracing::error!(%error, "Cannot read from the link to the other instance");
                        self.is_broken = true;
                        self.dump = None;
                    }
                },
                Some(message) = self.journal.recv() => self.tell_all(message).await,
                Some(done) = self.change.recv() => {
                    self.take_over().await?;
                    // Whoever waits for it may be gone.
                    let _ = done.send(());
                }
                () = std::future::ready(()), if self.dump.is_some() => self.tell_page().await?,
                _ = look.tick() => {
                    let state = self.link.restore(self.is_broken);
                    self.is_broken = state == State::Gone;
                    if state == State::Anew {
                        (looks, pause) = (0, *REQUEST_LOOKS.start());
                    }
                    if !self.is_active {
                        self.forget_detached().await?;
                    }
                    match (self.is_broken, self.is_active) {
                        (true, _) => {}
                        (false, true) => self.tell_macs(false).await?,
                        (false, false) if looks > 0 => looks -= 1,
                        (false, false) => {
                            self.send(&Message::Request).await;
                            looks = pause;
                            pause = pause.saturating_mul(2).min(*REQUEST_LOOKS.end());
                        }
                    }
                }
            }
        }
    }

    /// Tells from here on.
    async fn begin(&mut self) -> Result<(), Stopped> {
        self.is_active = true;
        self.worker.keep_journal(self.teller.clone()).await
    }

    async fn receive(&mut self, frame: &[u8]) -> Result<(), Stopped> {
        let message = match Message::parse(frame) {
            Ok(message) => message,
            Err(error) => {
                let reason = match error {
                    NoMessage::Foreign => 0,
                    NoMessage::Truncated => 1,
                    NoMessage::Type(_) => 2,
                    NoMessage::Field(_) => 3,
                };
                self.counters.ignored.add(reason, 1);
                if error != NoMessage::Foreign {
                    self.warn("Malformed message of the other instance", &error);
                }
                return Ok(());
            }
        };
        self.counters.received.add(kind(&message), 1);
        // The one that works asks nobody, and the other one knows nothing that could be asked for.
        if self.is_active != (message == Message::Request) {
            self.counters.ignored.add(4, 1);
            let kind = MESSAGES.get(kind(&message)).copied().unwrap_or_default();
            self.warn("Message for the other role", &kind);
            return Ok(());
        }
        match message {
            Message::Request => {
                // Whoever asks again while being told has forgotten what was said.
                self.dump = Some(Dump::new());
            }
            Message::MachineMac(port, mac) => {
                let learned = move |plane: &mut crate::worker::Plane| {
                    plane.engine.learn_machine_mac(port, mac)
                };
                if !self.worker.call(learned).await? {
                    self.counters.ignored.add(3, 1);
                }
            }
            kept => {
                if !self.kept.keep(&kept) {
                    self.counters.ignored.add(5, 1);
                }
                self.show_kept();
            }
        }
        Ok(())
    }

    async fn send(&self, message: &Message) {
        let frame = message.emit();
        let written = tokio::time::timeout(SEND_TIMEOUT, self.link.write(&frame)).await;
        match written {
            Ok(Ok(_)) => self.counters.sent.add(kind(message), 1),
            // The device is down, or nobody reads: the other instance will ask when it is there.
            Ok(Err(_)) | Err(_) => {
                self.counters.unsent.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Sends what packet threads have told.
    async fn tell_all(&mut self, first: Message) {
        self.send(&first).await;
        for _ in 1..FRAMES_MAX {
            let Ok(message) = self.journal.try_recv() else {
                return;
            };
            self.send(&message).await;
        }
        tokio::time::sleep(PAUSE).await;
    }

    /// Sends addresses of machines, or those that have changed.
    async fn tell_macs(&mut self, all: bool) -> Result<(), Stopped> {
        let now = self.worker.call(|plane| {
            let ports = plane.engine.interfaces().map(|interface| interface.port);
            let macs = ports.filter_map(|port| Some((port, plane.engine.machine_mac(port)?)));
            macs.collect::<BTreeMap<PortId, Mac>>()
        });
        let now = now.await?;
        for (port, mac) in &now {
            if all || self.macs.get(port) != Some(mac) {
                self.send(&Message::MachineMac(*port, *mac)).await;
            }
        }
        self.macs = now;
        Ok(())
    }

    /// Sends all there is, in parts, so that packets are handled in between, and what happens meanwhile is told.
    async fn tell_page(&mut self) -> Result<(), Stopped> {
        let Some(mut places) = self.dump.take() else {
            return Ok(());
        };
        if places.is_empty() {
            self.tell_macs(true).await?;
        }
        for count in 1..QUEUE_MAX {
            let Ok(message) = self.journal.try_recv() else {
                break;
            };
            self.send(&message).await;
            if count % FRAMES_MAX == 0 {
                tokio::time::sleep(PAUSE).await;
            }
        }
        let known = places.clone();
        let look = move |inspection: Inspection<'_>| {
            let place = known.get(&inspection.thread).copied();
            let mut messages = Vec::new();
            let next = place.unwrap_or(Some(SharePlace::START)).and_then(|place| {
                let visit = |message| messages.push(message);
                let Inspection {
                    worker,
                    tables,
                    now,
                    ..
                } = &inspection;
                worker.visit_shared(tables, *now, place, visit)
            });
            (inspection.thread, next, messages)
        };
        for (thread, next, messages) in self.worker.inspect(look).await? {
            places.insert(thread, next);
            for messages in messages.chunks(FRAMES_MAX) {
                for message in messages {
                    self.send(message).await;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        if places.values().any(Option::is_some) {
            self.dump = Some(places);
        }
        Ok(())
    }

    fn warn(&mut self, what: &'static str, reason: &dyn std::fmt::Display) {
        let now = std::time::Instant::now();
        if self.quiet.get(what).is_none_or(|until| now >= *until) {
            self.quiet.insert(what, now + LOG_INTERVAL);
            tracing::warn!(error = %reason, "{what}");
        }
    }

    /// Forgets what was told of machines whose interfaces are gone by now: whoever is on their ports must not get their packets.
    async fn forget_detached(&mut self) -> Result<(), Stopped> {
        let now = self.worker.call(|plane| {
            let ports = plane.engine.interfaces().map(|interface| interface.port);
            let numbers = ports.filter_map(|port| Some((port, plane.engine.attachment(port)?)));
            numbers.collect::<BTreeMap<PortId, u32>>()
        });
        let now = now.await?;
        for (port, number) in &self.attachments {
            if now.get(port) != Some(number) {
                self.kept.forget(*port);
            }
        }
        self.attachments = now;
        self.show_kept();
        Ok(())
    }

    fn show_kept(&self) {
        self.counters.kept.set(0, self.kept.nat.len());
        self.counters.kept.set(1, self.kept.services.len());
    }

    /// Hears what the other instance has told before it ended.
    async fn hear_out(&mut self) -> Result<(), Stopped> {
        let mut frame = [0; READ_MAX];
        for _ in 0..QUEUE_MAX {
            let waiting = tokio::time::timeout(HEAR_OUT, self.link.read(&mut frame));
            let Ok(Ok(length @ 1..)) = waiting.await else {
                break;
            };
            self.receive(frame.get(..length).unwrap_or_default())
                .await?;
        }
        Ok(())
    }

    /// Gives the packet threads what was kept, each its own, and begins to tell.
    async fn take_over(&mut self) -> Result<(), Stopped> {
        self.hear_out().await?;
        self.forget_detached().await?;
        let kept = Arc::new(self.kept.take());
        let counters = Arc::clone(&self.counters);
        let known = kept.len();
        let threads = self.worker.inspect(|_| ()).await?.len();
        let adopt = move |inspection: Inspection<'_>| {
            let Inspection {
                thread,
                worker,
                tables,
                now,
                ..
            } = inspection;
            for (message, age) in kept.iter() {
                if owner_of_message(tables, message, threads).unwrap_or(0) == thread {
                    let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
                    let told = Instant(now.0.saturating_sub(age));
                    adopt(worker, tables, message, (told, now), &counters);
                }
            }
        };
        self.worker.inspect(adopt).await?;
        self.counters.kept.set(0, 0);
        self.counters.kept.set(1, 0);
        tracing::info!(
            value = known,
            "Connections of the other instance taken over"
        );
        self.begin().await
    }
}

fn adopt(
    worker: &mut Worker,
    tables: &Tables,
    message: &Message,
    (told, now): (Instant, Instant),
    counters: &SyncCounters,
) {
    let (kind, adopted) = match message {
        Message::NatTaken(used, machine) => (0, worker.adopt_nat(tables, *machine, used, now)),
        Message::VirtualConnection(used) => (1, worker.adopt_virtual(tables, used, (told, now))),
        Message::NatGivenBack(_) | Message::MachineMac(..) | Message::Request => return,
    };
    match adopted {
        Ok(()) => counters.taken.add(kind, 1),
        Err(NotTaken::NotConfigured) => counters.not_taken.add(0, 1),
        Err(NotTaken::Conflict) => counters.not_taken.add(1, 1),
        Err(NotTaken::Refused(_)) => counters.not_taken.add(2, 1),
    }
}
