//! NAT addresses that this host shares with others: marks, the next steps, and what follows from their outcome.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use net::PortRange;

use super::{Actions, Agent, DP_BACKOFF, DP_INFLIGHT_MAX};
use crate::model::{Prefix, Vni};
use crate::plan::neighbor;
use crate::plan::observed::{Neighbor, Neighbors};
use crate::plan::ops::{DpDone, DpError, HopKind, code};
use crate::services::NatShare;

impl Agent {
    /// Marks the NAT address that `prefix` stands for.
    pub(super) fn touch_shared(&mut self, prefix: &Prefix) {
        if let (IpAddr::V4(address), 32) = (prefix.address(), prefix.len()) {
            self.neighbor_queue.push(address);
        }
    }

    /// Marks every NAT address that is shared in `vni`.
    pub(super) fn touch_shares_of(&mut self, vni: Vni) {
        let installed = self.observed.shared_addresses();
        let addresses: Vec<Ipv4Addr> = installed.chain(self.rib.shared_addresses(vni)).collect();
        for address in addresses {
            self.neighbor_queue.push(address);
        }
    }

    /// Takes note of a share that its last announcer took back.
    pub(super) fn share_withdrawn(&mut self, vni: Vni, prefix: &Prefix, ports: PortRange) {
        let IpAddr::V4(address) = prefix.address() else {
            return;
        };
        let share = NatShare { address, ports };
        let installed = self.observed.neighbors(address);
        if installed.is_some_and(|shares| shares.contains_key(&(vni, ports))) {
            self.neighbors_withdrawn.insert(Neighbor { vni, share });
        }
    }

    pub(super) fn look_at_shared(
        &mut self,
        address: Ipv4Addr,
        now: Instant,
        actions: &mut Actions,
    ) {
        let lane = self.neighbor_lanes.get(&address);
        if lane.is_some_and(|lane| !lane.is_open(now)) {
            if let Some(at) = lane.and_then(|lane| lane.opens_after(now)) {
                self.neighbor_queue.push_at(address, at);
            }
            return;
        }
        let empty = Neighbors::new();
        let learned = self.rib.shares(address);
        let host = Prefix::host(IpAddr::V4(address));
        let announced = self
            .tracks
            .values()
            .flat_map(|track| &track.share.announcements);
        let local = announced.filter(|announcement| announcement.prefix == host);
        let local = local.filter_map(|announcement| match announcement.kind {
            HopKind::Nat(ports) => Some((announcement.vni, ports)),
            HopKind::Standard | HopKind::Target => None,
        });
        let vips = self.tracks.values().flat_map(|track| &track.share.vips);
        let mut ops = neighbor::plan(neighbor::View {
            address,
            learned: learned
                .filter(|share| self.observed.uses_vni(share.vni))
                .collect(),
            local: local.collect(),
            vips: vips
                .filter(|(_, vip)| *vip == address)
                .map(|(vni, _)| *vni)
                .collect(),
            installed: self.observed.neighbors(address).unwrap_or(&empty),
            used: |vni| self.observed.uses_vni(vni),
            heard: |vni| self.rib.heard(vni),
            withdrawn: |neighbor: &Neighbor| self.neighbors_withdrawn.contains(neighbor),
        });
        if ops.is_empty() {
            self.neighbor_lanes.remove(&address);
            self.neighbors_withdrawn
                .retain(|neighbor| neighbor.share.address != address);
            return;
        }
        ops.truncate(DP_INFLIGHT_MAX - self.dp_inflight);
        let lane = self.neighbor_lanes.entry(address).or_default();
        lane.busy += ops.len();
        self.dp_inflight += ops.len();
        actions.dp.extend(ops);
    }

    /// A share was created or replaced.
    pub(super) fn neighbor_set(
        &mut self,
        neighbor: Neighbor,
        underlay: Ipv6Addr,
        replaced: bool,
        result: Result<DpDone, DpError>,
        now: Instant,
    ) {
        match result {
            Ok(_) => self.neighbor_done(neighbor, Some(underlay)),
            Err(error) => {
                // Another range is in the way that we do not know of: a listing shows it.
                self.list_wanted |= error.code() == Some(code::ALREADY_EXISTS);
                if replaced {
                    self.observed.set_neighbor(neighbor, None);
                }
                self.neighbor_failed(neighbor, now);
            }
        }
    }

    pub(super) fn neighbor_deleted(
        &mut self,
        neighbor: Neighbor,
        result: Result<DpDone, DpError>,
        now: Instant,
    ) {
        match result.map_err(|error| error.code()) {
            Ok(_) | Err(Some(code::NOT_FOUND)) => self.neighbor_done(neighbor, None),
            Err(_) => self.neighbor_failed(neighbor, now),
        }
    }

    fn neighbor_done(&mut self, neighbor: Neighbor, underlay: Option<Ipv6Addr>) {
        let address = neighbor.share.address;
        self.neighbors_withdrawn.remove(&neighbor);
        // If the network went with its last user while the call was under way, the next look takes the share back.
        self.observed.set_neighbor(neighbor, underlay);
        if let Some(lane) = self.neighbor_lanes.get_mut(&address) {
            lane.succeed();
        }
        self.neighbor_queue.push(address);
        if underlay.is_none() {
            self.freed_public(address);
        }
    }

    fn neighbor_failed(&mut self, neighbor: Neighbor, now: Instant) {
        let address = neighbor.share.address;
        let lane = self.neighbor_lanes.entry(address).or_default();
        let at = lane.fail(now, DP_BACKOFF);
        self.neighbor_queue.push_at(address, at);
    }
}
