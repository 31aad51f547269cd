//! One connection as a state machine: bytes and the time in; events, bytes and the next deadline out. No socket, no clock.
//!
//! Times are durations since an arbitrary start that the caller keeps. The dialling side sends HELLO, gets HELLO, sends
//! KEEPALIVE and is established by its echo; the accepting side mirrors that. Only the dialling side sends KEEPALIVE on a
//! timer, the accepting side echoes. Routes to send are not kept here: see [`crate::hub`] and [`crate::pace`].

use std::time::Duration;

use crate::codec::{self, Capabilities, DecodeError, Hello, Message, Reassembly, Update};

/// A connection on which no HELLO came for this long is closed.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Keepalive interval when none is configured.
pub const KEEPALIVE_DEFAULT_S: u32 = 5;
/// Unsent answers to HELLO and KEEPALIVE, in bytes; a peer that provokes more without reading gets no more answers.
pub const CONTROL_BYTES_MAX: usize = 512;

/// Who dialled. The role follows from the connection's direction, not from what the peer claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We dialled.
    Client,
    /// We accepted.
    Server,
}

/// How far the handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Accepting side, before HELLO.
    Connecting,
    /// HELLO is sent.
    HelloSent,
    /// Dialling side, HELLO is answered.
    HelloReceived,
    /// Both sides have seen HELLO and KEEPALIVE.
    Established,
    /// Reset, final.
    Closed,
}

impl State {
    /// The name shown to people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "CONNECTING",
            Self::HelloSent => "HELLO_SENT",
            Self::HelloReceived => "HELLO_RECEIVED",
            Self::Established => "ESTABLISHED",
            Self::Closed => "CLOSED",
        }
    }
}

/// What the peer did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An accepted peer sent its HELLO: see [`Peer::hello`].
    Greeted,
    /// The handshake is complete; what the peer said about itself is in [`Peer::hello`].
    Established,
    /// An accepted peer started over with a second HELLO: its subscriptions and routes are void.
    Restarted,
    /// Wants the routes of a VNI.
    Subscribe(u32),
    /// No longer wants them.
    Unsubscribe(u32),
    /// A route comes or goes.
    Update(Update),
}

/// Why a connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResetReason {
    /// The bytes are not a message.
    #[error("malformed message: {0}")]
    Malformed(#[from] DecodeError),
    /// HELLO with a keepalive interval of zero.
    #[error("keepalive interval of zero")]
    IntervalZero,
    /// A message that the state does not allow.
    #[error("{message} in state {state}")]
    Unexpected {
        /// Message name.
        message: &'static str,
        /// State name.
        state: &'static str,
    },
    /// No HELLO within [`HELLO_TIMEOUT`].
    #[error("no HELLO within 10 s")]
    HelloTimeout,
    /// Nothing came for 2.5 keepalive intervals.
    #[error("nothing received for 2.5 keepalive intervals")]
    Deadline,
}

/// What this side says about itself.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Offered interval, seconds; 0 counts as [`KEEPALIVE_DEFAULT_S`].
    pub keepalive_s: u32,
    /// Offered beyond the plain protocol; answered only to peers that offer some themselves.
    pub capabilities: Capabilities,
    /// See [`Hello::node`].
    pub node: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            keepalive_s: KEEPALIVE_DEFAULT_S,
            capabilities: Capabilities::STREAM,
            node: String::new(),
        }
    }
}

/// The state machine of one connection.
#[derive(Debug)]
pub struct Peer {
    role: Role,
    state: State,
    settings: Settings,
    /// What the other side said; default before its HELLO.
    hello: Hello,
    interval: Duration,
    /// When the connection is given up unless something arrives.
    deadline: Duration,
    /// Dialling side: when the next KEEPALIVE is due.
    keepalive_at: Option<Duration>,
    reassembly: Reassembly,
    control: Vec<u8>,
    control_suppressed: u64,
    keepalives_sent: u64,
    echoes: u64,
}

impl Peer {
    /// A new connection at `now`. The dialling side has its HELLO ready at once.
    pub fn new(role: Role, mut settings: Settings, now: Duration) -> Self {
        if settings.keepalive_s == 0 {
            settings.keepalive_s = KEEPALIVE_DEFAULT_S;
        }
        let mut peer = Self {
            role,
            state: State::Connecting,
            interval: Duration::from_secs(u64::from(settings.keepalive_s)),
            settings,
            hello: Hello::default(),
            deadline: now + HELLO_TIMEOUT,
            keepalive_at: None,
            reassembly: Reassembly::default(),
            control: Vec::new(),
            control_suppressed: 0,
            keepalives_sent: 0,
            echoes: 0,
        };
        if role == Role::Client {
            let hello = Hello {
                keepalive_s: peer.settings.keepalive_s,
                is_server: false,
                capabilities: peer.settings.capabilities,
                node: peer.settings.node.clone(),
            };
            peer.answer(&Message::Hello(hello));
            peer.state = State::HelloSent;
        }
        peer
    }

    /// Takes received bytes, any piece of the stream. Events are appended to `events`, also those before an error.
    pub fn recv(
        &mut self,
        bytes: &[u8],
        now: Duration,
        events: &mut Vec<Event>,
    ) -> Result<(), ResetReason> {
        if self.state == State::Closed {
            return Ok(());
        }
        let mut reassembly = std::mem::take(&mut self.reassembly);
        let result = reassembly.feed(bytes, |message| self.message(message, now, events));
        self.reassembly = reassembly;
        if result.is_err() {
            self.state = State::Closed;
        }
        result
    }

    /// Lets time pass: due KEEPALIVEs are made ready, a dead peer is found. Call it after reading what has arrived, so that
    /// a peer is not blamed for our own delay.
    pub fn poll(&mut self, now: Duration) -> Result<(), ResetReason> {
        if self.state == State::Closed {
            return Ok(());
        }
        if now >= self.deadline {
            let greeted = self.hello.keepalive_s != 0;
            self.state = State::Closed;
            return Err(if greeted {
                ResetReason::Deadline
            } else {
                ResetReason::HelloTimeout
            });
        }
        if self.keepalive_at.is_some_and(|due| now >= due) {
            self.send_keepalive(now);
        }
        Ok(())
    }

    /// When [`Peer::poll`] has something to do at the latest.
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.state == State::Closed {
            return None;
        }
        Some(
            self.keepalive_at
                .map_or(self.deadline, |keepalive| keepalive.min(self.deadline)),
        )
    }

    /// Moves HELLO and KEEPALIVE bytes that are due to `out`. They go before routes.
    pub fn take_control(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.control);
    }

    /// Whether [`Peer::take_control`] has something.
    pub fn has_control(&self) -> bool {
        !self.control.is_empty()
    }

    /// Dialling side: sends a KEEPALIVE now and returns its number. Once [`Peer::echoes`] reaches it, the peer has read
    /// everything that was sent before.
    pub fn send_keepalive(&mut self, now: Duration) -> u64 {
        self.answer(&Message::Keepalive);
        self.keepalive_at = Some(now + self.interval);
        self.keepalives_sent += 1;
        self.keepalives_sent
    }

    /// Dialling side: KEEPALIVEs echoed so far.
    pub fn echoes(&self) -> u64 {
        self.echoes
    }

    /// Who dialled.
    pub fn role(&self) -> Role {
        self.role
    }

    /// State of the handshake.
    pub fn state(&self) -> State {
        self.state
    }

    /// What the other side said about itself; default before its HELLO.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The keepalive interval in force.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Whether the peer reassembles the stream, so that it may be sent to without pacing.
    pub fn is_stream(&self) -> bool {
        self.hello.capabilities.has(Capabilities::STREAM)
    }

    /// Answers that were not given because the peer did not read earlier ones.
    pub fn control_suppressed(&self) -> u64 {
        self.control_suppressed
    }

    fn message(
        &mut self,
        message: Message,
        now: Duration,
        events: &mut Vec<Event>,
    ) -> Result<(), ResetReason> {
        match message {
            Message::Hello(hello) => self.on_hello(hello, now, events)?,
            Message::Keepalive => self.on_keepalive(events)?,
            Message::Subscribe(vni) => {
                self.check_open("SUBSCRIBE")?;
                events.push(Event::Subscribe(vni));
            }
            Message::Unsubscribe(vni) => {
                self.check_open("UNSUBSCRIBE")?;
                events.push(Event::Unsubscribe(vni));
            }
            Message::Update(update) => {
                self.check_open("UPDATE")?;
                events.push(Event::Update(update));
            }
        }
        // Laxer than the reference, where only KEEPALIVE counts: whoever sends whole messages is alive.
        self.deadline = now + self.interval * 5 / 2;
        Ok(())
    }

    fn on_hello(
        &mut self,
        hello: Hello,
        now: Duration,
        events: &mut Vec<Event>,
    ) -> Result<(), ResetReason> {
        if hello.keepalive_s == 0 {
            return Err(ResetReason::IntervalZero);
        }
        let keepalive_s = hello.keepalive_s.min(self.settings.keepalive_s);
        self.interval = Duration::from_secs(u64::from(keepalive_s));
        match (self.role, self.state) {
            (Role::Client, State::HelloSent) => {
                self.hello = hello;
                self.state = State::HelloReceived;
                self.send_keepalive(now);
                Ok(())
            }
            (Role::Server, State::Connecting | State::HelloSent | State::Established) => {
                if self.state != State::Connecting {
                    events.push(Event::Restarted);
                }
                // Whoever offers nothing gets exactly the plain answer.
                let offered = hello.capabilities != Capabilities::default();
                let answer = Hello {
                    keepalive_s,
                    is_server: true,
                    capabilities: if offered {
                        self.settings.capabilities
                    } else {
                        Capabilities::default()
                    },
                    node: String::new(),
                };
                self.hello = hello;
                self.state = State::HelloSent;
                events.push(Event::Greeted);
                self.answer(&Message::Hello(answer));
                Ok(())
            }
            _ => Err(self.unexpected("HELLO")),
        }
    }

    fn on_keepalive(&mut self, events: &mut Vec<Event>) -> Result<(), ResetReason> {
        match (self.role, self.state) {
            (Role::Client, State::HelloReceived) | (Role::Server, State::HelloSent) => {
                self.state = State::Established;
                events.push(Event::Established);
            }
            (_, State::Established) => {}
            _ => return Err(self.unexpected("KEEPALIVE")),
        }
        match self.role {
            Role::Server => self.answer(&Message::Keepalive),
            Role::Client => self.echoes += 1,
        }
        Ok(())
    }

    /// Routes and subscriptions are taken as soon as the peer has greeted: a server may send its own announcements before
    /// the echo that establishes the session, and the reference handles all of them in any state.
    fn check_open(&self, message: &'static str) -> Result<(), ResetReason> {
        match (self.role, self.state) {
            (_, State::Established)
            | (Role::Client, State::HelloReceived)
            | (Role::Server, State::HelloSent) => Ok(()),
            _ => Err(self.unexpected(message)),
        }
    }

    fn unexpected(&self, message: &'static str) -> ResetReason {
        ResetReason::Unexpected {
            message,
            state: self.state.name(),
        }
    }

    fn answer(&mut self, message: &Message) {
        if self.control.len() + codec::MESSAGE_MAX > CONTROL_BYTES_MAX {
            self.control_suppressed += 1;
            return;
        }
        codec::encode(message, &mut self.control);
    }
}
