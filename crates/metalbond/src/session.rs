//! What one server must still be told of the client's wishes. Pure.
//!
//! Subscriptions are compared with what this session has sent. Announcements live in a [`Hub`] of the client's own, where
//! each session is a subscriber of everything, so a session that was down is told the present state and nothing else.
//!
//! Updates of an ended subscription may still be under way when the VNI is subscribed again; they would never be corrected.
//! So after UNSUBSCRIBE a VNI rests until a KEEPALIVE has been echoed, which is behind them, and what arrives meanwhile does
//! not count ([`Session::accepts`]). A reference server moreover reorders messages of different types and, on
//! UNSUBSCRIBE, forgets what the peer announced in that VNI. Towards servers without our capabilities the VNI therefore
//! rests for [`SETTLE`] before the KEEPALIVE, and is announced once more after the echo.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::codec::{self, MESSAGE_MAX, Message};
use crate::hub::{Hub, PeerId};
use crate::peer::Peer;

/// How long a VNI rests after UNSUBSCRIBE towards a server that reorders messages.
pub const SETTLE: Duration = Duration::from_millis(500);

/// What is left after handing out messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Nothing until something changes.
    Idle,
    /// More at once.
    More,
    /// More at this time.
    Later(Duration),
}

/// The VNIs that are wanted now.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Each with a number that differs if it was not wanted in between: then everything must be heard again.
    vnis: BTreeMap<u32, u64>,
    /// Grows with each change.
    revision: u64,
}

impl Wishes {
    /// Wants a VNI; false if it was wanted already.
    pub fn insert(&mut self, vni: u32) -> bool {
        if self.vnis.contains_key(&vni) {
            return false;
        }
        self.revision += 1;
        self.vnis.insert(vni, self.revision);
        true
    }

    /// No longer wants a VNI; false if it was not wanted.
    pub fn remove(&mut self, vni: u32) -> bool {
        let was = self.vnis.remove(&vni).is_some();
        self.revision += u64::from(was);
        was
    }

    /// Whether a VNI is wanted.
    pub fn contains(&self, vni: u32) -> bool {
        self.vnis.contains_key(&vni)
    }

    /// The VNIs, ascending.
    pub fn vnis(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.vnis.keys().copied()
    }
}

/// A VNI after UNSUBSCRIBE.
struct Settling {
    /// When the KEEPALIVE may be sent.
    due: Duration,
    /// The KEEPALIVE whose echo ends the rest.
    keepalive: Option<u64>,
}

/// One established session.
pub struct Session {
    id: PeerId,
    is_ours: bool,
    /// Subscribed VNIs with the number of the wish that each fulfils.
    subscribed: BTreeMap<u32, u64>,
    settling: BTreeMap<u32, Settling>,
    /// Revision of the wishes that `subscribed` reflects.
    seen: Option<u64>,
}

impl Session {
    /// A session that has just been established. `id` is its place in the hub of own announcements, as a peer interested in
    /// everything; `is_ours` tells that the server keeps the order of messages and the announcements of unsubscribed VNIs.
    pub fn new(id: PeerId, is_ours: bool) -> Self {
        Self {
            id,
            is_ours,
            subscribed: BTreeMap::new(),
            settling: BTreeMap::new(),
            seen: None,
        }
    }

    /// The session's place in the hub of own announcements.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Whether an update of this VNI belongs to the subscription that is wanted now.
    pub fn accepts(&self, vni: u32, wishes: &Wishes) -> bool {
        match (self.subscribed.get(&vni), wishes.vnis.get(&vni)) {
            // An older wish that is still in force is one unbroken stream of changes, if it will not be interrupted.
            (Some(wish), Some(number)) => wish == number || self.is_ours,
            _ => false,
        }
    }

    /// Appends up to `bytes_max` bytes of what the server must be told.
    pub fn fill(
        &mut self,
        wishes: &Wishes,
        own: &mut Hub,
        peer: &mut Peer,
        now: Duration,
        out: &mut Vec<u8>,
        bytes_max: usize,
    ) -> Fill {
        self.settle(own, peer.echoes());
        if self.seen != Some(wishes.revision) {
            if !self.fill_subscriptions(&wishes.vnis, now, out, bytes_max) {
                return Fill::More;
            }
            self.seen = Some(wishes.revision);
        }
        self.ask_echo(peer, now, out);
        if own.fill(self.id, out, bytes_max) {
            return Fill::More;
        }
        let resting = self
            .settling
            .values()
            .filter(|settling| settling.keepalive.is_none());
        resting
            .map(|settling| settling.due)
            .min()
            .map_or(Fill::Idle, Fill::Later)
    }

    /// Ends the rest of VNIs whose echo has come.
    fn settle(&mut self, own: &mut Hub, echoes: u64) {
        let Self {
            id,
            is_ours,
            settling,
            seen,
            ..
        } = self;
        settling.retain(|&vni, settling| {
            if settling
                .keepalive
                .is_none_or(|keepalive| echoes < keepalive)
            {
                return true;
            }
            // Compare again, and where the server forgot them, announce again.
            *seen = None;
            if !*is_ours {
                own.repeat(*id, vni);
            }
            false
        });
    }

    /// Sends one KEEPALIVE behind the UNSUBSCRIBEs that are due for it.
    fn ask_echo(&mut self, peer: &mut Peer, now: Duration, out: &mut Vec<u8>) {
        let is_due = |settling: &&mut Settling| settling.keepalive.is_none() && settling.due <= now;
        let mut due = self.settling.values_mut().filter(is_due).peekable();
        if due.peek().is_some() {
            let keepalive = peer.send_keepalive(now);
            peer.take_control(out);
            due.for_each(|settling| settling.keepalive = Some(keepalive));
        }
    }

    /// False if there was not room for everything.
    fn fill_subscriptions(
        &mut self,
        wanted: &BTreeMap<u32, u64>,
        now: Duration,
        out: &mut Vec<u8>,
        bytes_max: usize,
    ) -> bool {
        let is_ours = self.is_ours;
        // Ours takes a repeated SUBSCRIBE as a wish to hear everything again; the reference would lock up.
        let surplus = |vni: &u32, wish: &u64| match wanted.get(vni) {
            None => true,
            Some(number) => number != wish && !is_ours,
        };
        let surplus: Vec<u32> = self
            .subscribed
            .iter()
            .filter(|(vni, wish)| surplus(vni, wish))
            .map(|(vni, _)| *vni)
            .collect();
        for vni in surplus {
            if out.len() + MESSAGE_MAX > bytes_max {
                return false;
            }
            codec::encode(&Message::Unsubscribe(vni), out);
            self.subscribed.remove(&vni);
            let due = if is_ours { now } else { now + SETTLE };
            self.settling.insert(
                vni,
                Settling {
                    due,
                    keepalive: None,
                },
            );
        }
        for (&vni, &wish) in wanted {
            if self.subscribed.get(&vni) == Some(&wish) || self.settling.contains_key(&vni) {
                continue;
            }
            if out.len() + MESSAGE_MAX > bytes_max {
                return false;
            }
            codec::encode(&Message::Subscribe(vni), out);
            self.subscribed.insert(vni, wish);
        }
        true
    }
}
