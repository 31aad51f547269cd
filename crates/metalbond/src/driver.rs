//! Runs one connection on Tokio: moves bytes between a socket and [`Peer`], applies events to a [`Backend`] and sends what
//! it has to say. The same loop serves both roles; all decisions are in the pure modules.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::codec::MESSAGE_MAX;
use crate::link::LinkProbe;
use crate::pace::{Budget, LinkState, Pace};
use crate::peer::{Event, Peer, ResetReason, Role, State};
use crate::session::Fill;

/// Bytes taken from a socket at once.
const READ_MAX: usize = 64 * 1024;
/// Bytes prepared for a socket at once, for peers that reassemble the stream.
const WRITE_MAX: usize = 64 * 1024;
/// Bytes that the kernel may hold unsent; keeps KEEPALIVEs from queueing far behind routes.
const UNSENT_MAX: u32 = 128 * 1024;
/// An idle connection's buffer is given back above this size.
const IDLE_BUFFER_MAX: usize = 1024;

/// The time since a process-wide start, as the pure modules want it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(&self) -> Duration {
        self.0.elapsed()
    }

    pub(crate) fn at(&self, time: Duration) -> Instant {
        self.0 + time
    }
}

/// How others reach a running connection.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    notify: Notify,
    kicked: AtomicBool,
    /// Bytes received and sent, for status pages.
    pub(crate) received: AtomicU64,
    pub(crate) sent: AtomicU64,
}

impl Signal {
    /// There is something to send.
    pub(crate) fn wake(&self) {
        self.notify.notify_one();
    }

    /// The connection must close.
    pub(crate) fn kick(&self) {
        self.kicked.store(true, Ordering::Release);
        self.notify.notify_one();
    }
}

/// The state behind a connection: the server's hub or the client's tables.
pub(crate) trait Backend {
    /// Applies what the peer did, in order; drains `events`.
    fn apply(&mut self, peer: &Peer, events: &mut Vec<Event>, now: Duration);

    /// Appends up to `bytes_max` bytes of whole messages for an established peer.
    fn fill(&mut self, peer: &mut Peer, out: &mut Vec<u8>, bytes_max: usize, now: Duration)
    -> Fill;
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Closed {
    #[error("closed by the peer")]
    ByPeer,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Reset(#[from] ResetReason),
    #[error("superseded by a newer connection, or too far behind")]
    Kicked,
    #[error("shutting down")]
    Shutdown,
}

/// Runs a connection to its end.
pub(crate) async fn run(
    stream: TcpStream,
    mut peer: Peer,
    backend: &mut impl Backend,
    signal: Arc<Signal>,
    clock: Clock,
    shutdown: &CancellationToken,
) -> Closed {
    match drive(&stream, &mut peer, backend, &signal, clock, shutdown).await {
        Ok(never) => match never {},
        Err(closed) => closed,
    }
}

enum Never {}

async fn drive(
    stream: &TcpStream,
    peer: &mut Peer,
    backend: &mut impl Backend,
    signal: &Signal,
    clock: Clock,
    shutdown: &CancellationToken,
) -> Result<Never, Closed> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_MAX)?;
    let mut events = Vec::new();
    let mut writer = Writer::new(peer.role());
    loop {
        let drained = read_some(stream, peer, clock.now(), signal, &mut events)?;
        if !events.is_empty() {
            backend.apply(peer, &mut events, clock.now());
        }
        if signal.kicked.load(Ordering::Acquire) {
            return Err(Closed::Kicked);
        }
        let now = clock.now();
        if drained {
            peer.poll(now)?;
        }
        let next = writer.write_some(stream, peer, backend, signal, now)?;
        if next == Next::Now || !drained {
            // Let other connections have a turn.
            tokio::task::yield_now().await;
            if shutdown.is_cancelled() {
                return Err(Closed::Shutdown);
            }
            continue;
        }
        let deadline = match (peer.next_deadline(), next) {
            (Some(deadline), Next::At(time)) => deadline.min(time),
            (None, Next::At(time)) => time,
            (Some(deadline), _) => deadline,
            (None, _) => return Err(Closed::ByPeer),
        };
        tokio::select! {
            () = shutdown.cancelled() => return Err(Closed::Shutdown),
            ready = stream.readable() => ready?,
            ready = stream.writable(), if next == Next::Writable => ready?,
            () = signal.notify.notified() => {}
            () = tokio::time::sleep_until(clock.at(deadline)) => {}
        }
    }
}

/// Reads once; true if nothing is left to read.
fn read_some(
    stream: &TcpStream,
    peer: &mut Peer,
    now: Duration,
    signal: &Signal,
    events: &mut Vec<Event>,
) -> Result<bool, Closed> {
    // On the stack of a function that does not wait: an idle connection owns no buffer.
    let mut buffer = [0; READ_MAX];
    match stream.try_read(&mut buffer) {
        Ok(0) => Err(Closed::ByPeer),
        Ok(len) => {
            signal.received.fetch_add(len as u64, Ordering::Relaxed);
            peer.recv(&buffer[..len], now, events)?;
            Ok(len < READ_MAX)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// When the writer wants to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Now,
    Writable,
    At(Duration),
    OnSignal,
}

struct Writer {
    out: Vec<u8>,
    written: usize,
    pace: Pace,
    probe: Option<LinkProbe>,
}

impl Writer {
    fn new(role: Role) -> Self {
        Self {
            out: Vec::new(),
            written: 0,
            pace: Pace::new(role),
            probe: None,
        }
    }

    /// Writes once: what is left over, else HELLO and KEEPALIVE, else routes.
    fn write_some(
        &mut self,
        stream: &TcpStream,
        peer: &mut Peer,
        backend: &mut impl Backend,
        signal: &Signal,
        now: Duration,
    ) -> Result<Next, Closed> {
        // After a remainder, ask for more.
        let mut next = Next::Now;
        if self.written == self.out.len() {
            next = Next::OnSignal;
            self.out.clear();
            self.written = 0;
            peer.take_control(&mut self.out);
            if peer.state() == State::Established {
                next = self.fill(stream, peer, backend, now);
            }
            if self.out.is_empty() {
                self.out.shrink_to(IDLE_BUFFER_MAX);
                return Ok(next);
            }
        }
        match stream.try_write(&self.out[self.written..]) {
            Ok(len) => {
                signal.sent.fetch_add(len as u64, Ordering::Relaxed);
                self.written += len;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Next::Writable),
            Err(error) => return Err(error.into()),
        }
        if self.written < self.out.len() {
            Ok(Next::Writable)
        } else {
            Ok(next)
        }
    }

    /// Adds routes to what is written next, as many as the peer may get.
    fn fill(
        &mut self,
        stream: &TcpStream,
        peer: &mut Peer,
        backend: &mut impl Backend,
        now: Duration,
    ) -> Next {
        let bytes_max = if peer.is_stream() {
            WRITE_MAX
        } else {
            self.pace.echoed(peer.echoes());
            let link = self.link(stream);
            match self.pace.budget(now, link) {
                Budget::Write(bytes) => bytes,
                Budget::WaitUntil(time) => return Next::At(time),
                Budget::WaitEcho => return Next::OnSignal,
                Budget::AskEcho => {
                    let keepalive = peer.send_keepalive(now);
                    self.pace.asked(keepalive);
                    peer.take_control(&mut self.out);
                    return Next::OnSignal;
                }
            }
        };
        let before = self.out.len();
        let filled = backend.fill(
            peer,
            &mut self.out,
            bytes_max.max(before + MESSAGE_MAX),
            now,
        );
        let wrote = self.out.len() - before;
        if wrote > 0 && !peer.is_stream() {
            self.pace.wrote(wrote, now);
        }
        match filled {
            Fill::Idle => Next::OnSignal,
            Fill::Later(time) => Next::At(time),
            Fill::More => Next::Now,
        }
    }

    fn link(&mut self, stream: &TcpStream) -> Option<LinkState> {
        if self.probe.is_none() {
            self.probe = LinkProbe::open().ok();
        }
        let (local, remote) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
        self.probe.as_mut()?.query(local, remote)
    }
}
