//! How fast a peer may be written to that does not reassemble the stream. Pure.
//!
//! The reference implementation parses each socket read as if a message began at its first byte, and resets when a read
//! returns 65,535 bytes. So a message must not straddle two segments, and the peer must never have that much unread.
//! Three rules keep to that: a write is at most one segment of whole messages and waits until everything written before has
//! left our kernel, so that TCP cannot re-cut it; a gap follows each write; and the window that the peer's kernel
//! advertises tells how much its process has left unread: when the window has shrunk by [`UNREAD_MAX`], only a rare single
//! message goes out, whose acknowledgement brings the next reading. Towards a server there is a better sign: it echoes
//! KEEPALIVE, which proves what it has read.

use std::time::Duration;

use crate::codec::{HEADER_LEN, MESSAGE_MAX, PAYLOAD_MAX};
use crate::peer::Role;

/// One write: fits the smallest IPv6 packet (1280 bytes) with its headers.
pub const SEGMENT_MAX: usize = HEADER_LEN + PAYLOAD_MAX;
/// Pause after each write. With [`SEGMENT_MAX`] this is at most 1.2 MB/s, about 30,000 routes per second.
pub const SEGMENT_GAP: Duration = Duration::from_millis(1);
/// Bytes not yet acknowledged by the peer's kernel.
pub const UNACKED_MAX: u32 = 4 * SEGMENT_MAX as u32;
/// Bytes that the peer's process may leave unread: a quarter of what resets it.
pub const UNREAD_MAX: u32 = 16 * 1024;
/// A peer that was too far behind is written to again when it has less than this unread.
pub const UNREAD_RESUME: u32 = 8 * 1024;
/// Bytes between two KEEPALIVEs towards a server, which must echo each before more is sent.
pub const ECHO_BYTES_MAX: usize = 16 * 1024;
/// First and longest pause between probes of a peer that does not read.
pub const PROBE_MIN: Duration = Duration::from_millis(25);
/// See [`PROBE_MIN`].
pub const PROBE_MAX: Duration = Duration::from_secs(1);

/// What the kernel tells of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Written but not yet acknowledged, bytes.
    pub unacked: u32,
    /// Written but not yet sent, bytes.
    pub unsent: u32,
    /// The window that the peer advertised last, bytes.
    pub window: u32,
}

/// What may be written now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Up to this many bytes of whole messages, in one write.
    Write(usize),
    /// Nothing before this time.
    WaitUntil(Duration),
    /// Nothing before the peer echoes a KEEPALIVE: send one and tell its number by [`Pace::asked`].
    AskEcho,
    /// Nothing before the echo that was asked for.
    WaitEcho,
}

/// The pacing state of one connection.
#[derive(Debug)]
pub struct Pace {
    role: Role,
    next_write: Duration,
    window_max: u32,
    behind: bool,
    next_probe: Duration,
    probe: Duration,
    since_echo: usize,
    echo_wanted: Option<u64>,
}

impl Pace {
    /// A fresh connection.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            next_write: Duration::ZERO,
            window_max: 0,
            behind: false,
            next_probe: Duration::ZERO,
            probe: PROBE_MIN,
            since_echo: 0,
            echo_wanted: None,
        }
    }

    /// What may be written at `now`. Without `link` (the kernel does not tell) the gap alone paces.
    pub fn budget(&mut self, now: Duration, link: Option<LinkState>) -> Budget {
        if now < self.next_write {
            return Budget::WaitUntil(self.next_write);
        }
        if self.role == Role::Client && self.since_echo >= ECHO_BYTES_MAX {
            return if self.echo_wanted.is_some() {
                Budget::WaitEcho
            } else {
                Budget::AskEcho
            };
        }
        let Some(LinkState {
            unacked,
            unsent,
            window,
        }) = link
        else {
            return Budget::Write(SEGMENT_MAX);
        };
        if unsent > 0 || unacked > UNACKED_MAX {
            return Budget::WaitUntil(now + SEGMENT_GAP);
        }
        self.window_max = self.window_max.max(window);
        let unread = self.window_max - window;
        let limit = if self.behind {
            UNREAD_RESUME
        } else {
            UNREAD_MAX
        };
        if unread < limit {
            self.behind = false;
            self.probe = PROBE_MIN;
            return Budget::Write(SEGMENT_MAX);
        }
        if !self.behind {
            self.behind = true;
            self.next_probe = now + self.probe;
        }
        if now >= self.next_probe {
            return Budget::Write(MESSAGE_MAX);
        }
        // The acknowledgement of a probe comes soon after it: look more often than probing.
        Budget::WaitUntil(self.next_probe.min(now + PROBE_MIN))
    }

    /// Records a write.
    pub fn wrote(&mut self, bytes: usize, now: Duration) {
        self.since_echo += bytes;
        if self.behind {
            self.probe = (self.probe * 2).min(PROBE_MAX);
            self.next_probe = now + self.probe;
        }
        self.next_write = now + SEGMENT_GAP;
    }

    /// A KEEPALIVE with this number follows everything written so far.
    pub fn asked(&mut self, keepalive: u64) {
        self.echo_wanted = Some(keepalive);
    }

    /// The peer has echoed this many KEEPALIVEs.
    pub fn echoed(&mut self, echoes: u64) {
        if self.echo_wanted.is_some_and(|wanted| echoes >= wanted) {
            self.echo_wanted = None;
            self.since_echo = 0;
        }
    }

    /// Whether the peer leaves too much unread.
    pub fn is_behind(&self) -> bool {
        self.behind
    }
}
