//! Load balancers of this node: what is learned about them, the next steps, and what follows from their outcome.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::Instant;

use super::{Actions, Agent, DP_BACKOFF, DP_INFLIGHT_MAX, Dispute, Phase};
use crate::model::{Prefix, Uid, Vni};
use crate::plan::balancer;
use crate::plan::desired::{self, Want};
use crate::plan::nic::Warning;
use crate::plan::observed::Balancer;
use crate::plan::ops::{ApiOp, BalancerRequest, DpDone, DpError, DpOp, HopKind, RouteKey, code};
use crate::services::{BalancerSpec, LoadBalancer};

impl Agent {
    pub(super) fn balancer(&mut self, balancer: LoadBalancer) {
        let uid = balancer.meta.uid.clone();
        let old = self.balancers.get(&uid);
        if old.is_some_and(|old| balancer.meta.is_older_than(&old.meta)) {
            return;
        }
        let changed = old.is_none_or(|old| {
            old.spec != balancer.spec
                || old.network != balancer.network
                || old.meta.deleting != balancer.meta.deleting
        });
        if let Some(old) = old.filter(|old| old.network != balancer.network) {
            self.network_queue.push(old.network.clone());
        }
        if changed {
            self.network_queue.push(balancer.network.clone());
            self.reopen_balancer(&uid);
        }
        self.balancers.insert(uid.clone(), balancer);
        self.touch_balancer(&uid);
    }

    pub(super) fn balancer_gone(&mut self, uid: &Uid) {
        if let Some(balancer) = self.balancers.remove(uid) {
            self.network_queue.push(balancer.network);
            self.touch_balancer(uid);
        }
    }

    pub(super) fn reopen_balancer(&mut self, uid: &Uid) {
        let track = self.balancer_tracks.entry(uid.clone()).or_default();
        track.failure = None;
        track.dispute = Dispute::None;
        track.dp.reopen();
        track.api.reopen();
    }

    pub(super) fn touch_balancer(&mut self, uid: &Uid) {
        self.refresh_balancer(uid);
        self.balancer_queue.push(uid.clone());
    }

    pub(super) fn touch_all_balancers(&mut self) {
        let known = self.balancers.keys().chain(self.balancer_tracks.keys());
        let uids: BTreeSet<Uid> = known
            .chain(self.observed.balancers().map(|(uid, _)| uid))
            .cloned()
            .collect();
        for uid in uids {
            self.touch_balancer(&uid);
        }
    }

    /// Marks the load balancers with the address that `prefix` stands for.
    pub(super) fn touch_balancers_at(&mut self, vni: Vni, prefix: &Prefix) {
        let there =
            |balancer: &Balancer| balancer.vni == vni && Prefix::host(balancer.address) == *prefix;
        let found = self.observed.balancers();
        let found = found.filter(|(_, balancer)| there(balancer));
        let uids: Vec<Uid> = found.map(|(uid, _)| uid.clone()).collect();
        for uid in uids {
            self.balancer_queue.push(uid);
        }
    }

    /// Marks the load balancers of a network.
    pub(super) fn touch_balancers_of(&mut self, vni: Vni) {
        let found = self.observed.balancers();
        let found = found.filter(|(_, balancer)| balancer.vni == vni);
        let uids: Vec<Uid> = found.map(|(uid, _)| uid.clone()).collect();
        for uid in uids {
            self.balancer_queue.push(uid);
        }
    }

    /// Takes note of a target that its last announcer took back.
    pub(super) fn target_withdrawn(&mut self, vni: Vni, prefix: &Prefix, target: Ipv6Addr) {
        for (uid, balancer) in self.observed.balancers() {
            let there = balancer.vni == vni && Prefix::host(balancer.address) == *prefix;
            if there && balancer.targets.contains(&target) {
                let track = self.balancer_tracks.entry(uid.clone()).or_default();
                track.withdrawn.insert(target);
            }
        }
    }

    fn want_balancer(&self, uid: &Uid) -> Want<'_, BalancerSpec> {
        let balancer = self.balancers.get(uid);
        let network = balancer.and_then(|balancer| self.networks.get(&balancer.network));
        let exists = self.observed.balancer(uid).is_some();
        desired::want_balancer(balancer, network, self.api_synced, exists)
    }

    fn refresh_balancer(&mut self, uid: &Uid) {
        let want = self.want_balancer(uid);
        let share = desired::balancer_share(want, self.observed.balancer(uid), &self.settings);
        let track = self.balancer_tracks.entry(uid.clone()).or_default();
        if track.share != share {
            let old = std::mem::replace(&mut track.share, share.clone());
            self.exchange_share(uid, &old, &share);
        }
    }

    /// Targets of this host, which no server tells us of.
    fn local_targets(&self, key: RouteKey) -> BTreeSet<Ipv6Addr> {
        let announced = self
            .tracks
            .values()
            .flat_map(|track| &track.share.announcements);
        announced
            .filter(|announcement| {
                announcement.kind == HopKind::Target
                    && announcement.vni == key.vni
                    && announcement.prefix == key.prefix
            })
            .map(|announcement| announcement.underlay)
            .collect()
    }

    /// Whether another load balancer that is about to go still holds the address.
    fn is_balanced(&self, uid: &Uid) -> bool {
        let Want::Present { spec, vni } = self.want_balancer(uid) else {
            return false;
        };
        let mut others = self.observed.balancers();
        others.any(|(other, balancer)| {
            other != uid
                && balancer.vni == vni
                && balancer.address == spec.address
                && matches!(self.want_balancer(other), Want::Absent)
        })
    }

    pub(super) fn look_at_balancer(&mut self, uid: &Uid, now: Instant, actions: &mut Actions) {
        self.refresh_balancer(uid);
        let present = self.observed.balancer(uid);
        let empty = BTreeSet::new();
        let key = present.map(|balancer| RouteKey {
            vni: balancer.vni,
            prefix: Prefix::host(balancer.address),
        });
        let installed = present.map_or(&empty, |balancer| &balancer.targets);
        let targets = key.map_or_else(BTreeSet::new, |key| {
            let local = self.local_targets(key);
            desired::targets(&self.rib, &self.settings, key, &local, installed)
        });
        let Some(track) = self.balancer_tracks.get(uid) else {
            return;
        };
        // As with interfaces: a listing on its way settles what is disputed, and what may still appear is waited for.
        let want = self.want_balancer(uid);
        let disputed = self.list_wanted && track.dispute == Dispute::Listed;
        let pending = track.lost || track.dp.busy > 0 || self.unaudited;
        let unsure = want == Want::Absent && present.is_none() && pending;
        let live = self.phase == Phase::Live && !disputed && !unsure;
        let plan = balancer::plan(balancer::View {
            uid,
            object: self.balancers.get(uid),
            want,
            balancer: present,
            live,
            occupied: self.is_balanced(uid),
            targets: &targets,
            heard: key.map_or_else(Default::default, |key| self.rib.heard(key.vni)),
            withdrawn: &track.withdrawn,
            failure: track.failure.as_ref(),
        });
        self.carry_out(uid, plan, live, now, actions);
    }

    fn carry_out(
        &mut self,
        uid: &Uid,
        plan: balancer::Plan,
        live: bool,
        now: Instant,
        actions: &mut Actions,
    ) {
        let balancer::Plan {
            dp,
            finalizers,
            state,
            warning,
        } = plan;
        let meta = self.balancers.get(uid);
        let meta = meta.map(|balancer| Box::new(balancer.meta.clone()));
        let write = match (meta.clone(), finalizers, state) {
            (Some(meta), Some(finalizers), _) => {
                Some(ApiOp::BalancerFinalizers { meta, finalizers })
            }
            (Some(meta), None, Some(state)) => Some(ApiOp::BalancerStatus { meta, state }),
            (Some(_), None, None) | (None, _, _) => None,
        };
        let Some(track) = self.balancer_tracks.get_mut(uid) else {
            return;
        };
        let waiting = [
            (live && !dp.is_empty(), &track.dp),
            (write.is_some(), &track.api),
        ];
        let opens = waiting
            .into_iter()
            .filter(|(wanted, _)| *wanted)
            .filter_map(|(_, lane)| lane.opens_after(now))
            .min();
        if let Some(at) = opens {
            self.balancer_queue.push_at(uid.clone(), at);
        }
        if live && dp.is_empty() {
            track.withdrawn.clear();
            track.failure = None;
        }
        if live && track.dp.is_open(now) {
            let room = DP_INFLIGHT_MAX - self.dp_inflight;
            let ops: Vec<DpOp> = dp.into_iter().take(room).collect();
            track.dp.busy += ops.len();
            self.dp_inflight += ops.len();
            actions.dp.extend(ops);
        }
        if let Some(op) = write.filter(|_| track.api.is_open(now)) {
            track.api.busy += 1;
            self.api_inflight += 1;
            actions.api.push(op);
        }
        let idle = track.dp.busy + track.api.busy == 0;
        if track.warned != warning
            && let Some(meta) = meta
        {
            track.warned.clone_from(&warning);
            if let Some(Warning { reason, note }) = warning {
                self.api_inflight += 1;
                actions.api.push(ApiOp::Warn {
                    kind: "LoadBalancer",
                    meta,
                    reason,
                    note,
                });
            }
        }
        if idle && !self.balancers.contains_key(uid) && self.observed.balancer(uid).is_none() {
            self.balancer_tracks.remove(uid);
        }
    }

    // ---- outcomes ----------------------------------------------------------------------------------------------------------

    pub(super) fn balancer_created(
        &mut self,
        uid: Uid,
        request: BalancerRequest,
        result: Result<DpDone, DpError>,
        now: Instant,
    ) {
        let BalancerRequest {
            vni,
            address,
            ports,
        } = request;
        match result {
            Ok(DpDone::Underlay(underlay)) => {
                let balancer = Balancer {
                    vni,
                    address,
                    ports,
                    underlay,
                    targets: BTreeSet::new(),
                };
                let first = self.observed.insert_balancer(uid.clone(), balancer);
                self.balancer_succeeded(&uid);
                if first {
                    self.touch_table(vni);
                    self.touch_shares_of(vni);
                }
                self.touch_networks_of(vni);
            }
            Ok(DpDone::Done | DpDone::Guarded(_) | DpDone::Instance(_) | DpDone::Inventory(_)) => {
                self.list_wanted = true;
                self.balancer_succeeded(&uid);
            }
            Err(error) => {
                let track = self.balancer_tracks.entry(uid.clone()).or_default();
                track.lost |= matches!(error, DpError::Unavailable(_));
                // Perhaps what we asked for, by an earlier call whose answer was lost: the listing shows it.
                let exists = error.code() == Some(code::ALREADY_EXISTS);
                let news = exists && track.dispute == Dispute::None;
                if news {
                    track.dispute = Dispute::Listed;
                    self.list_wanted = true;
                }
                self.balancer_failed(&uid, error, news, now);
            }
        }
    }

    pub(super) fn balancer_deleted(
        &mut self,
        uid: Uid,
        result: Result<DpDone, DpError>,
        now: Instant,
    ) {
        match result {
            Err(error) if error.code() != Some(code::NOT_FOUND) => {
                return self.balancer_failed(&uid, error, false, now);
            }
            Ok(_) | Err(_) => {}
        }
        if let Some(track) = self.balancer_tracks.get_mut(&uid) {
            track.withdrawn.clear();
        }
        let removed = self.observed.remove_balancer(&uid);
        self.balancer_succeeded(&uid);
        if let Some(Balancer { vni, address, .. }) = removed {
            self.touch_networks_of(vni);
            self.touch_unused(vni);
            // Whoever waits for the address tries at once.
            let waits = self.balancers.iter().filter(|(_, other)| {
                let spec = other.spec.as_ref();
                spec.is_ok_and(|spec| spec.address == address)
            });
            let uids: Vec<Uid> = waits.map(|(uid, _)| uid.clone()).collect();
            for uid in uids {
                self.reopen_balancer(&uid);
                self.balancer_queue.push(uid);
            }
        }
    }

    /// A target was added (`present`) or removed.
    pub(super) fn target_set(
        &mut self,
        uid: Uid,
        target: Ipv6Addr,
        present: bool,
        result: Result<DpDone, DpError>,
        now: Instant,
    ) {
        let settled = if present {
            code::ALREADY_EXISTS
        } else {
            code::NOT_FOUND
        };
        if let Err(error) = result {
            match error.code() {
                Some(found) if found == settled => {}
                Some(code::NO_LB | code::NO_BACKIP) => {
                    self.list_wanted = true;
                    return self.balancer_failed(&uid, error, true, now);
                }
                Some(_) | None => return self.balancer_failed(&uid, error, false, now),
            }
        }
        self.observed.set_target(&uid, target, present);
        if let Some(track) = self.balancer_tracks.get_mut(&uid) {
            track.withdrawn.remove(&target);
        }
        self.balancer_succeeded(&uid);
    }

    fn balancer_succeeded(&mut self, uid: &Uid) {
        if let Some(track) = self.balancer_tracks.get_mut(uid) {
            track.dp.succeed();
            track.dispute = Dispute::None;
            if track.dp.busy == 0 {
                track.failure = None;
            }
        }
        self.touch_balancer(uid);
    }

    /// `heals` if the cause is known to go away by itself: worth nothing in a status.
    fn balancer_failed(&mut self, uid: &Uid, error: DpError, heals: bool, now: Instant) {
        if let Some(track) = self.balancer_tracks.get_mut(uid) {
            let at = track.dp.fail(now, DP_BACKOFF);
            if !heals && !error.is_transient() {
                track.failure = Some(error);
            }
            self.balancer_queue.push_at(uid.clone(), at);
        }
        self.touch_balancer(uid);
    }
}
