//! Between the agent and the metalbond client: the same routes in each other's words, and how far to trust the table.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use metalbond::{Client, Destination, HopType, NextHop, RouteEvent};
use net::PortRange;

use crate::agent::Input;
use crate::model::{Prefix, Vni};
use crate::plan::ops::{Announcement, BondOp, HopKind};
use crate::plan::rib::{Heard, Learned};

/// Tells the client what is wanted now. It keeps the wish for every server, so nothing can fail here.
pub fn apply(client: &Client, op: BondOp) {
    match op {
        BondOp::Subscribe(vni) => client.subscribe(vni.get()),
        BondOp::Unsubscribe(vni) => client.unsubscribe(vni.get()),
        BondOp::Announce(announcement) => {
            if let Some((vni, destination, hop)) = words(announcement) {
                client.announce(vni, destination, hop);
            }
        }
        BondOp::Withdraw(announcement) => {
            if let Some((vni, destination, hop)) = words(announcement) {
                client.withdraw(vni, destination, hop);
            }
        }
    }
}

/// The route that an announcement stands for; `None` for prefixes that make no sense.
pub fn words(announcement: Announcement) -> Option<(u32, Destination, NextHop)> {
    let Announcement {
        vni,
        prefix,
        underlay,
        kind,
    } = announcement;
    let destination = Destination::new(prefix.address(), prefix.len())?;
    let hop = match kind {
        HopKind::Standard => NextHop::standard(underlay),
        HopKind::Nat(ports) => NextHop::nat(underlay, ports.first(), ports.end()),
        HopKind::Target => NextHop::load_balancer_target(underlay),
    };
    Some((vni.get(), destination, hop))
}

/// What an event means for the agent; `None` for routes that make no sense.
pub fn input(event: RouteEvent) -> Option<Input> {
    let (vni, destination, next_hop, present) = match event {
        RouteEvent::Added {
            vni,
            destination,
            next_hop,
        } => (vni, destination, next_hop, true),
        RouteEvent::Removed {
            vni,
            destination,
            next_hop,
        } => (vni, destination, next_hop, false),
    };
    let NextHop {
        addr,
        target_vni,
        hop_type,
    } = next_hop;
    let IpAddr::V6(address) = addr else {
        return None;
    };
    let kind = match hop_type {
        HopType::Standard => HopKind::Standard,
        HopType::Nat { from, to } => HopKind::Nat(PortRange::new(from, to)?),
        HopType::LoadBalancerTarget => HopKind::Target,
        HopType::Other(_) => return None,
    };
    let prefix = Prefix::new(destination.addr(), destination.length()?)?;
    Some(Input::Learned {
        vni: Vni::new(vni)?,
        prefix,
        hop: Learned {
            address,
            target_vni,
            kind,
        },
        present,
    })
}

/// Least age of a session before its initial dump can be over.
pub const DUMP_MIN: Duration = Duration::from_millis(500);
/// The dump is over when nothing came for this long: the protocol has no mark for it.
pub const DUMP_QUIET: Duration = Duration::from_millis(300);
/// After this time every announcer has had its chance: as long as lost sessions' routes are held, and longer than a
/// client waits before it dials again.
pub const ALL_AFTER: Duration = Duration::from_secs(10);
/// Pause between looks at the sessions.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The state of all sessions together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// No server is configured: there is nothing to wait for.
    Unused,
    Down,
    /// A server is there, but has not been told all our wishes yet.
    Catching,
    Up,
}

/// Sums up the client's sessions.
pub fn link(client: &Client) -> Link {
    let peers = client.peers();
    if peers.is_empty() {
        Link::Unused
    } else if peers.iter().any(|peer| peer.established && peer.in_sync) {
        Link::Up
    } else if peers.iter().any(|peer| peer.established) {
        Link::Catching
    } else {
        Link::Down
    }
}

/// Judges, by session and quiet time, how far the routes of each subscribed VNI are known.
#[derive(Debug, Default)]
pub struct Hearing {
    up_since: Option<Instant>,
    ears: BTreeMap<Vni, Ear>,
}

#[derive(Debug)]
struct Ear {
    since: Instant,
    last_event: Instant,
    heard: Heard,
}

impl Hearing {
    /// Starts or stops to listen to a VNI.
    pub fn note(&mut self, op: &BondOp, now: Instant) {
        match op {
            BondOp::Subscribe(vni) => {
                self.ears.insert(
                    *vni,
                    Ear {
                        since: now,
                        last_event: now,
                        heard: Heard::Silent,
                    },
                );
            }
            BondOp::Unsubscribe(vni) => {
                self.ears.remove(vni);
            }
            BondOp::Announce(_) | BondOp::Withdraw(_) => {}
        }
    }

    /// A route of the VNI came.
    pub fn event(&mut self, vni: Vni, now: Instant) {
        if let Some(ear) = self.ears.get_mut(&vni) {
            ear.last_event = now;
        }
    }

    /// The judgements that changed.
    pub fn look(&mut self, link: Link, now: Instant) -> Vec<Input> {
        self.up_since = match link {
            Link::Down => None,
            Link::Unused | Link::Catching | Link::Up => self.up_since.or(Some(now)),
        };
        let up_since = self.up_since;
        let changed = self.ears.iter_mut().filter_map(|(vni, ear)| {
            let heard = judge(link, up_since, ear, now);
            (std::mem::replace(&mut ear.heard, heard) != heard)
                .then_some(Input::Heard { vni: *vni, heard })
        });
        changed.collect()
    }
}

fn judge(link: Link, up_since: Option<Instant>, ear: &Ear, now: Instant) -> Heard {
    let Some(up_since) = up_since else {
        return Heard::Silent;
    };
    let age = now.saturating_duration_since(up_since.max(ear.since));
    match link {
        Link::Unused => Heard::All,
        Link::Down => Heard::Silent,
        // New wishes on their way do not undo what was heard.
        Link::Catching => ear.heard.max(Heard::Listening),
        Link::Up if age >= ALL_AFTER => Heard::All,
        Link::Up
            if age >= DUMP_MIN && now.saturating_duration_since(ear.last_event) >= DUMP_QUIET =>
        {
            ear.heard.max(Heard::Dumped)
        }
        Link::Up => ear.heard.max(Heard::Listening),
    }
}
