//! The routes learned from metalbond, and which of several next hops counts.
//!
//! dpservice holds one next hop per prefix while metalbond may supply many (two routers, a machine that moves, an
//! address announced on two hosts). The rule, in order: the hop announced last wins, because it is the newest truth
//! (a moved machine, a restarted data plane); among hops that came with the initial dump, whose order says nothing,
//! the one already installed wins, so that a restart of metalnet disturbs no flow; then the lowest address.
//! Default routers all lead to the same place and are up as long as they announce: each node has its own order of them, so that the
//! nodes of a region share all routers, and one that goes spreads its nodes over the others.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{Ipv4Addr, Ipv6Addr};

use net::{PortRange, Prefix};

use super::ops::HopKind;
use crate::model::Vni;

/// Most learned routes held; further ones are counted and dropped.
pub const LEARNED_MAX: usize = 1 << 20;

/// A next hop as metalbond supplies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Learned {
    pub address: Ipv6Addr,
    pub target_vni: u32,
    pub kind: HopKind,
}

/// Another host's share of a NAT address, as learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LearnedShare {
    pub vni: Vni,
    pub ports: PortRange,
    pub underlay: Ipv6Addr,
    /// As for routes: the order of arrival, 0 for what came with the initial dump.
    pub arrival: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    hop: Learned,
    /// 0 for what came with the initial dump of its VNI, else the order of arrival.
    arrival: u64,
}

/// How far the routes of a VNI are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Heard {
    /// No server is there: nothing that is missing, and nothing that disappears, means anything.
    #[default]
    Silent,
    /// A server is there and may be in the middle of its initial dump: only what it says counts.
    Listening,
    /// The dump has gone quiet: what it shows is newer than what is installed.
    Dumped,
    /// Every announcer has had the time to be heard: what is missing does not exist.
    All,
}

/// The place of a router in a node's order (highest random weight). The same in every run of one build, and nobody else needs it.
fn weight(node: &str, router: Ipv6Addr) -> u64 {
    let mut hasher = DefaultHasher::new();
    (node, router).hash(&mut hasher);
    hasher.finish()
}

/// Learned routes of the subscribed VNIs.
#[derive(Debug, Default)]
pub struct Rib {
    tables: BTreeMap<Vni, BTreeMap<Prefix, Vec<Candidate>>>,
    heard: BTreeMap<Vni, Heard>,
    arrivals: u64,
    len: usize,
    /// Routes dropped because [`LEARNED_MAX`] was reached.
    pub dropped: u64,
}

impl Rib {
    /// Adds a candidate. Returns whether anything changed.
    pub fn add(&mut self, vni: Vni, prefix: Prefix, hop: Learned) -> bool {
        let settled = self.heard(vni) >= Heard::Dumped;
        let candidates = self
            .tables
            .entry(vni)
            .or_default()
            .entry(prefix)
            .or_default();
        if candidates.iter().any(|candidate| candidate.hop == hop) {
            return false;
        }
        if self.len >= LEARNED_MAX {
            self.dropped += 1;
            return false;
        }
        self.arrivals += u64::from(settled);
        let arrival = if settled { self.arrivals } else { 0 };
        candidates.push(Candidate { hop, arrival });
        self.len += 1;
        true
    }

    /// Removes a candidate. Returns whether it was there.
    pub fn remove(&mut self, vni: Vni, prefix: &Prefix, hop: Learned) -> bool {
        let Some(table) = self.tables.get_mut(&vni) else {
            return false;
        };
        let Some(candidates) = table.get_mut(prefix) else {
            return false;
        };
        let before = candidates.len();
        candidates.retain(|candidate| candidate.hop != hop);
        let removed = before - candidates.len();
        self.len -= removed;
        if candidates.is_empty() {
            table.remove(prefix);
        }
        removed > 0
    }

    /// Forgets everything about a VNI that is no longer subscribed.
    pub fn forget(&mut self, vni: Vni) {
        self.heard.remove(&vni);
        if let Some(table) = self.tables.remove(&vni) {
            self.len -= table.values().map(Vec::len).sum::<usize>();
        }
    }

    /// Says how far the routes of `vni` are known.
    pub fn set_heard(&mut self, vni: Vni, heard: Heard) {
        self.heard.insert(vni, heard);
    }

    /// How far the routes of `vni` are known.
    pub fn heard(&self, vni: Vni) -> Heard {
        self.heard.get(&vni).copied().unwrap_or_default()
    }

    /// The address that counts for `prefix`; see the head of this file for the rule.
    pub fn select(
        &self,
        vni: Vni,
        prefix: &Prefix,
        installed: Option<Ipv6Addr>,
    ) -> Option<Ipv6Addr> {
        let candidates = self.tables.get(&vni)?.get(prefix)?;
        candidates
            .iter()
            .filter(|candidate| candidate.hop.kind == HopKind::Standard)
            .max_by_key(|candidate| {
                let address = candidate.hop.address;
                (
                    candidate.arrival,
                    Some(address) == installed,
                    std::cmp::Reverse(candidate.hop),
                )
            })
            .map(|candidate| candidate.hop.address)
    }

    /// The default router that counts for `node` and `prefix`: the first of those that announce it, in the node's own order.
    pub fn router(&self, vni: Vni, prefix: &Prefix, node: &str) -> Option<Ipv6Addr> {
        let candidates = self.tables.get(&vni)?.get(prefix)?;
        let routers = candidates
            .iter()
            .filter(|candidate| candidate.hop.kind == HopKind::Standard);
        routers
            .map(|candidate| candidate.hop.address)
            .max_by_key(|address| (weight(node, *address), *address))
    }

    /// Targets of the load balancer whose address is `prefix`.
    pub fn targets(&self, vni: Vni, prefix: &Prefix) -> BTreeSet<Ipv6Addr> {
        let candidates = self.tables.get(&vni).and_then(|table| table.get(prefix));
        candidates
            .into_iter()
            .flatten()
            .filter(|candidate| candidate.hop.kind == HopKind::Target)
            .map(|candidate| candidate.hop.address)
            .collect()
    }

    /// Other hosts' shares of a NAT address, in every network.
    pub fn shares(&self, address: Ipv4Addr) -> impl Iterator<Item = LearnedShare> + '_ {
        let prefix = Prefix::host(address.into());
        self.tables.iter().flat_map(move |(vni, table)| {
            let candidates = table.get(&prefix).into_iter().flatten();
            candidates.filter_map(|candidate| match candidate.hop.kind {
                HopKind::Nat(ports) => Some(LearnedShare {
                    vni: *vni,
                    ports,
                    underlay: candidate.hop.address,
                    arrival: candidate.arrival,
                }),
                HopKind::Standard | HopKind::Target => None,
            })
        })
    }

    /// The NAT addresses of which shares are known in `vni`.
    pub fn shared_addresses(&self, vni: Vni) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let table = self.tables.get(&vni).into_iter().flatten();
        table.filter_map(|(prefix, candidates)| match prefix.address() {
            std::net::IpAddr::V4(address) if prefix.len() == 32 => candidates
                .iter()
                .any(|candidate| matches!(candidate.hop.kind, HopKind::Nat(_)))
                .then_some(address),
            std::net::IpAddr::V4(_) | std::net::IpAddr::V6(_) => None,
        })
    }

    /// The prefixes known in `vni`.
    pub fn prefixes(&self, vni: Vni) -> impl Iterator<Item = Prefix> + '_ {
        self.tables
            .get(&vni)
            .into_iter()
            .flat_map(|table| table.keys().copied())
    }

    /// Number of (prefix, hop) pairs held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was learned.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
