//! What one server must still be told of the client's wishes. Pure.
//!
//! Subscriptions are compared with what this session has sent. Announcements live in a [`Hub`] of the client's own, where
//! each session is a subscriber of everything, so a session that was down is told the present state and nothing else.
//!
//! A reference server reorders messages of different types and, on UNSUBSCRIBE, forgets what the peer announced in that
//! VNI. So towards servers without our capabilities a VNI rests after UNSUBSCRIBE: no SUBSCRIBE before
//! [`SETTLE`] is over, then everything is announced there once more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::codec::{self, MESSAGE_MAX, Message};
use crate::driver::Fill;
use crate::hub::{Hub, PeerId};

/// How long a VNI rests after UNSUBSCRIBE towards a server that reorders messages.
pub const SETTLE: Duration = Duration::from_millis(500);

/// One established session.
pub(super) struct Session {
    /// The session's place in the hub of own announcements.
    pub(super) id: PeerId,
    /// Whether the server keeps order and keeps announcements.
    is_ours: bool,
    subscribed: BTreeSet<u32>,
    settling: BTreeMap<u32, Duration>,
    /// State of the wishes that `subscribed` reflects.
    seen: Option<u64>,
}

impl Session {
    pub(super) fn new(id: PeerId, is_ours: bool) -> Self {
        Self {
            id,
            is_ours,
            subscribed: BTreeSet::new(),
            settling: BTreeMap::new(),
            seen: None,
        }
    }

    /// Appends up to `bytes_max` bytes of what the server must be told. `revision` changes with `wanted`.
    pub(super) fn fill(
        &mut self,
        wanted: &BTreeSet<u32>,
        revision: u64,
        own: &mut Hub,
        now: Duration,
        out: &mut Vec<u8>,
        bytes_max: usize,
    ) -> Fill {
        self.settle(own, now);
        if self.seen != Some(revision) {
            if !self.fill_subscriptions(wanted, now, out, bytes_max) {
                return Fill::More;
            }
            self.seen = Some(revision);
        }
        if own.fill(self.id, out, bytes_max) {
            return Fill::More;
        }
        self.settling.values().min().map_or(Fill::Idle, |&due| Fill::Later(due))
    }

    fn settle(&mut self, own: &mut Hub, now: Duration) {
        while let Some((&vni, _)) = self.settling.iter().find(|(_, due)| **due <= now) {
            self.settling.remove(&vni);
            // Compare again, and announce again.
            self.seen = None;
            own.repeat(self.id, vni);
        }
    }

    /// False if there was not room for everything.
    fn fill_subscriptions(
        &mut self,
        wanted: &BTreeSet<u32>,
        now: Duration,
        out: &mut Vec<u8>,
        bytes_max: usize,
    ) -> bool {
        let surplus: Vec<u32> = self.subscribed.difference(wanted).copied().collect();
        for vni in surplus {
            if out.len() + MESSAGE_MAX > bytes_max {
                return false;
            }
            codec::encode(&Message::Unsubscribe(vni), out);
            self.subscribed.remove(&vni);
            if !self.is_ours {
                self.settling.insert(vni, now + SETTLE);
            }
        }
        let missing: Vec<u32> = wanted
            .difference(&self.subscribed)
            .copied()
            .filter(|vni| !self.settling.contains_key(vni))
            .collect();
        for vni in missing {
            if out.len() + MESSAGE_MAX > bytes_max {
                return false;
            }
            codec::encode(&Message::Subscribe(vni), out);
            self.subscribed.insert(vni);
        }
        true
    }
}
