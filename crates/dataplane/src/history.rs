//! What changed in the tables lately, so that a cached decision is kept, or only one part of it taken again, where a change does not
//! concern the rest.
//!
//! Every edit of the tables names its [`Change`] and takes a new epoch. A decision remembers the epoch it was taken with. What happened since
//! then is looked up here; if that is too long ago, the whole decision is taken again.

use crate::firewall::RuleChange;
use crate::verdict::PortId;
use core::net::IpAddr;
use net::{Prefix, Vni};

/// Changes that are remembered. Looking through all of them costs about as much as half a decision.
pub(crate) const CHANGES_MAX: usize = 32;

/// What an edit of the tables may concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Any decision.
    Everything,
    /// No decision: there is something new that none can have been about.
    Nothing,
    /// Whatever came in through a tunnel: an underlay address is gone and its slot may be another's.
    Endpoints,
    /// What leaves by this uplink; with `moves`, whatever leaves the host.
    Uplink { port: PortId, moves: bool },
    /// Routes of a network: the addresses under a prefix, or all.
    Routes { vni: Vni, prefix: Option<Prefix> },
    /// What packets of this machine are translated to, and which sources it may use.
    Services(PortId),
    /// A rule of this machine's packet filter.
    Filter { port: PortId, rule: RuleChange },
    /// Connections to an address that stands for a machine or a load balancer.
    Address { vni: Vni, address: IpAddr },
    /// The targets of the load balancer at this address.
    Targets { vni: Vni, address: IpAddr },
}

/// The latest changes by epoch.
#[derive(Clone, Debug)]
pub(crate) struct History {
    changes: [Change; CHANGES_MAX],
}

impl History {
    pub(crate) fn new() -> History {
        History {
            changes: [Change::Everything; CHANGES_MAX],
        }
    }

    /// Notes what the edit that begins `epoch` is about.
    pub(crate) fn record(&mut self, epoch: u32, change: Change) {
        if let Some(place) = self.changes.get_mut(epoch as usize % CHANGES_MAX) {
            *place = change;
        }
    }

    /// The changes after epoch `then` up to `now`; `None` if they are too many to be known.
    pub(crate) fn since(&self, then: u32, now: u32) -> Option<impl Iterator<Item = &Change>> {
        let count = now.wrapping_sub(then) as usize;
        let first = then.wrapping_add(1) as usize;
        let changes = (0..count).map(move |step| first.wrapping_add(step) % CHANGES_MAX);
        (count <= CHANGES_MAX).then(|| changes.filter_map(|index| self.changes.get(index)))
    }
}
