//! From marked keys to actions, within the limits on work in flight.

use std::time::Instant;

use super::{
    API_INFLIGHT_MAX, Actions, Agent, CLAIM_INFLIGHT_MAX, DP_INFLIGHT_MAX, Dispute,
    LIST_INTERVAL_MIN, Phase,
};
use crate::model::{ObjectKey, Uid};
use crate::plan::desired::{self, Want};
use crate::plan::network;
use crate::plan::nic::{self, ClaimStep};
use crate::plan::ops::{ApiOp, ClaimOp, DpOp, RouteKey};
use crate::plan::rib::Heard;
use crate::plan::route;

impl Agent {
    /// Says what to do now. Call it after every batch of inputs and at [`Agent::deadline`].
    pub fn poll(&mut self, now: Instant) -> Actions {
        let mut actions = Actions::default();
        if self.imports_stale {
            self.refresh_imports();
        }
        self.drive_service(now, &mut actions);
        while self.has_room()
            && let Some(uid) = self.nic_queue.pop(now)
        {
            self.look_at_nic(&uid, now, &mut actions);
        }
        while self.has_room()
            && let Some(uid) = self.balancer_queue.pop(now)
        {
            self.look_at_balancer(&uid, now, &mut actions);
        }
        while self.api_inflight < API_INFLIGHT_MAX
            && let Some(key) = self.network_queue.pop(now)
        {
            self.look_at_network(&key, now, &mut actions);
        }
        while self.phase == Phase::Live
            && self.dp_inflight < DP_INFLIGHT_MAX
            && let Some(key) = self.route_queue.pop(now)
        {
            self.look_at_route(key, now, &mut actions);
        }
        while self.phase == Phase::Live
            && self.dp_inflight < DP_INFLIGHT_MAX
            && let Some(address) = self.neighbor_queue.pop(now)
        {
            self.look_at_shared(address, now, &mut actions);
        }
        if self.subscriptions_stale {
            self.refresh_subscriptions();
        }
        actions.bond = std::mem::take(&mut self.bond);
        actions.recheck = std::mem::take(&mut self.recheck);
        actions
    }

    /// When to poll even if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        let audit = (self.phase == Phase::Live)
            .then_some(self.audit_at)
            .flatten();
        let listing = (self.list_wanted && self.phase == Phase::Live)
            .then(|| self.listed_at.map(|at| at + LIST_INTERVAL_MIN))
            .flatten();
        let silent = self.dp_inflight == 0 && matches!(self.phase, Phase::Fresh | Phase::Stale);
        let service = silent.then_some(self.service.not_before).flatten();
        // Without room nothing could be started: the next outcome is what to wait for.
        let nics = self.has_room().then(|| self.nic_queue.deadline()).flatten();
        let balancers = self
            .has_room()
            .then(|| self.balancer_queue.deadline())
            .flatten();
        let networks = (self.api_inflight < API_INFLIGHT_MAX)
            .then(|| self.network_queue.deadline())
            .flatten();
        let can_route = self.phase == Phase::Live && self.dp_inflight < DP_INFLIGHT_MAX;
        let routes = can_route.then(|| self.route_queue.deadline()).flatten();
        let neighbors = can_route.then(|| self.neighbor_queue.deadline()).flatten();
        let work = [nics, balancers, networks, routes, neighbors];
        [audit, listing, service]
            .into_iter()
            .chain(work)
            .flatten()
            .min()
    }

    /// An interface may need any kind of work, so it waits until there is room for each.
    fn has_room(&self) -> bool {
        self.dp_inflight < DP_INFLIGHT_MAX
            && self.api_inflight < API_INFLIGHT_MAX
            && self.claim_inflight < CLAIM_INFLIGHT_MAX
    }

    /// Initialise and list. Both need silence: a call under way would make the listing a lie.
    fn drive_service(&mut self, now: Instant, actions: &mut Actions) {
        let due = self
            .listed_at
            .is_none_or(|at| now >= at + LIST_INTERVAL_MIN);
        if self.phase == Phase::Live && self.audit_at.is_some_and(|at| at <= now) {
            self.audit_at = None;
            self.unaudited = false;
            self.list_wanted = true;
        }
        if self.phase == Phase::Live && self.list_wanted && due {
            self.phase = Phase::Stale;
        }
        if self.dp_inflight > 0 || !self.service.is_open(now) {
            return;
        }
        let op = match self.phase {
            Phase::Fresh => {
                self.phase = Phase::Initializing;
                DpOp::Initialize
            }
            Phase::Stale => {
                self.phase = Phase::Listing;
                DpOp::List
            }
            Phase::Down | Phase::Initializing | Phase::Listing | Phase::Live => return,
        };
        self.service.busy += 1;
        self.dp_inflight += 1;
        actions.dp.push(op);
    }

    fn look_at_nic(&mut self, uid: &Uid, now: Instant, actions: &mut Actions) {
        self.refresh_share(uid);
        // A listing on its way settles what is disputed, and then everything is looked at again.
        let track = self.tracks.get(uid);
        let disputed =
            self.list_wanted && track.is_some_and(|track| track.dispute == Dispute::Listed);
        // What may still appear must not lose its device and its object before: its creation may be under way, or its answer lost.
        let absent = matches!(self.want(uid), Want::Absent);
        let unsure = absent
            && track.is_some_and(|track| track.lost || track.dp.busy > 0)
            && self.observed.interface(uid).is_none();
        let live = self.phase == Phase::Live && !disputed && !unsure;
        let has_claim = self.claims.contains_key(uid);
        let plan = nic::plan(nic::View {
            uid,
            nic: self.nics.get(uid),
            want: self.want(uid),
            claim: self.claim(uid),
            free: has_claim || self.claiming.contains_key(uid) || self.choose_device(uid).is_some(),
            interface: self.observed.interface(uid),
            live,
            occupied: self.is_occupied(uid),
            vip_held: self.is_vip_held(uid),
            pending: self.unaudited
                || self.audit_at.is_some()
                || track.is_some_and(|track| track.lost || track.dp.busy > 0),
            failure: self
                .tracks
                .get(uid)
                .and_then(|track| track.failure.as_ref()),
        });
        let meta = self.nics.get(uid).map(|nic| Box::new(nic.meta.clone()));
        let claim = match plan.claim {
            None => None,
            Some(ClaimStep::Release) => Some(ClaimOp::Release { uid: uid.clone() }),
            Some(ClaimStep::Take) if !self.claiming.contains_key(uid) => {
                self.choose_device(uid).map(|claim| ClaimOp::Take {
                    uid: uid.clone(),
                    claim,
                })
            }
            Some(ClaimStep::Take) => None,
        };
        let write = match (plan.finalizers, plan.status) {
            (Some(finalizers), _) => meta
                .clone()
                .map(|meta| ApiOp::NicFinalizers { meta, finalizers }),
            (None, Some(status)) => meta.clone().map(|meta| ApiOp::NicStatus { meta, status }),
            (None, None) => None,
        };
        let Some(track) = self.tracks.get_mut(uid) else {
            return;
        };
        // The lanes wait on their own and share one place in the queue, where the earliest wait wins: so whoever finds a
        // lane closed asks to come back when it opens, or its work would be forgotten.
        let waiting = [
            (live && !plan.dp.is_empty(), &track.dp),
            (claim.is_some(), &track.claim),
            (write.is_some(), &track.api),
        ];
        let opens = waiting
            .into_iter()
            .filter(|(wanted, _)| *wanted)
            .filter_map(|(_, lane)| lane.opens_after(now))
            .min();
        if let Some(at) = opens {
            self.nic_queue.push_at(uid.clone(), at);
        }
        if live && track.dp.is_open(now) {
            let room = DP_INFLIGHT_MAX - self.dp_inflight;
            let ops: Vec<DpOp> = plan.dp.into_iter().take(room).collect();
            track.dp.busy += ops.len();
            self.dp_inflight += ops.len();
            actions.dp.extend(ops);
        }
        if let Some(op) = claim.filter(|_| track.claim.is_open(now)) {
            if let ClaimOp::Take { uid, claim } = &op {
                self.claiming.insert(uid.clone(), claim.clone());
            }
            track.claim.busy += 1;
            self.claim_inflight += 1;
            actions.claims.push(op);
        }
        let Some(meta) = meta else {
            self.forget_if_idle(uid);
            return;
        };
        if let Some(op) = write.filter(|_| track.api.is_open(now)) {
            track.api.busy += 1;
            self.api_inflight += 1;
            actions.api.push(op);
        }
        if track.warned != plan.warning {
            track.warned.clone_from(&plan.warning);
            if let Some(nic::Warning { reason, note }) = plan.warning {
                self.api_inflight += 1;
                actions.api.push(ApiOp::Warn {
                    kind: "NetworkInterface",
                    meta,
                    reason,
                    note,
                });
            }
        }
    }

    /// Drops what is remembered about an interface of which nothing is left.
    fn forget_if_idle(&mut self, uid: &Uid) {
        let gone = !self.nics.contains_key(uid)
            && !self.claims.contains_key(uid)
            && !self.claiming.contains_key(uid)
            && self.observed.interface(uid).is_none();
        let idle = self
            .tracks
            .get(uid)
            .is_some_and(|t| t.dp.busy + t.api.busy + t.claim.busy == 0);
        if gone && idle {
            self.tracks.remove(uid);
        }
    }

    fn look_at_network(&mut self, key: &ObjectKey, now: Instant, actions: &mut Actions) {
        let Some(network) = self.networks.get(key) else {
            return;
        };
        let nics = self.nics.values().map(|nic| &nic.network);
        let balancers = self.balancers.values().map(|balancer| &balancer.network);
        let named = nics.chain(balancers);
        let used = desired::uses_network(key, network, named, &self.observed);
        let known = self.api_synced && self.observed_once;
        let peers = network.peers.keys().chain(network.vni.as_ref());
        let plan = network::plan(network::View {
            network,
            node: &self.settings.node,
            used: if used {
                Some(true)
            } else {
                known.then_some(false)
            },
            heard: peers
                .into_iter()
                .all(|vni| !self.subscribed.contains(vni) || self.rib.heard(*vni) >= Heard::Dumped),
        });
        let meta = Box::new(network.meta.clone());
        let op = match (plan.finalizers, plan.peerings) {
            (Some(finalizers), _) => ApiOp::NetworkFinalizers { meta, finalizers },
            (None, Some(peerings)) => ApiOp::NetworkPeerings { meta, peerings },
            (None, None) => return,
        };
        let lane = self.network_lanes.entry(key.clone()).or_default();
        if lane.is_open(now) {
            lane.busy += 1;
            self.api_inflight += 1;
            actions.api.push(op);
        } else if let Some(at) = lane.opens_after(now) {
            self.network_queue.push_at(key.clone(), at);
        }
    }

    fn look_at_route(&mut self, key: RouteKey, now: Instant, actions: &mut Actions) {
        let installed = self.observed.route(key.vni, &key.prefix);
        let tables = self.observed.uses_vni(key.vni);
        if self.routes_busy.contains(&key) || (!tables && installed.is_none()) {
            return;
        }
        // As with interfaces: the listing on its way settles it.
        if self.list_wanted && self.routes_disputed.contains(&key) {
            return;
        }
        let failed = self.routes_failed.get(&key);
        if let Some(at) = failed.and_then(|lane| lane.opens_after(now)) {
            self.route_queue.push_at(key, at);
            return;
        }
        let world = self.routing();
        let plan = route::plan(route::View {
            key,
            wanted: desired::route(world, key),
            installed,
            own: self.own.contains_key(&key),
            heard: desired::heard(world, key),
            withdrawn: self.withdrawn.contains(&key),
        });
        let Some(op) = plan else {
            self.routes_failed.remove(&key);
            self.routes_disputed.remove(&key);
            self.withdrawn.remove(&key);
            return;
        };
        self.routes_busy.insert(key);
        self.dp_inflight += 1;
        actions.dp.push(op);
    }
}
