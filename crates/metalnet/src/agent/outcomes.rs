//! What follows from the results of calls: the inventory in memory is corrected here, and nowhere else.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{
    API_BACKOFF, AUDIT_AFTER, Agent, CLAIM_BACKOFF, DP_BACKOFF, Dispute, Lane, Phase,
    REFUSED_BACKOFF, Written,
};
use crate::model::{Prefix, Uid, Vni};
use crate::plan::observed::{Installed, Interface, Observed, Services};
use crate::plan::ops::{
    ApiError, ApiOp, ClaimOp, DpDone, DpError, DpOp, InterfaceRequest, Part, RULE_CHANGING,
    RouteKey, code,
};

impl Agent {
    pub(super) fn dp_outcome(&mut self, op: DpOp, result: Result<DpDone, DpError>, now: Instant) {
        self.dp_inflight = self.dp_inflight.saturating_sub(1);
        if result.as_ref().is_err_and(DpError::is_transient) && self.phase != Phase::Down {
            // Whether the call took effect is unknown, and so is whether this is still the same instance.
            self.phase = Phase::Down;
            self.recheck = true;
        }
        if matches!(result, Err(DpError::Unavailable(_))) {
            self.audit_at = Some(now + AUDIT_AFTER);
        }
        match op {
            DpOp::Initialize => self.initialized(result, now),
            DpOp::List => self.listed(result, now),
            DpOp::CreateInterface { uid, request } => {
                self.interface_created(uid, *request, result, now)
            }
            DpOp::DeleteInterface { uid } => self.interface_deleted(uid, result, now),
            DpOp::CreatePrefix { uid, prefix } => self.prefix_created(uid, prefix, result, now),
            DpOp::DeletePrefix { uid, prefix } => self.prefix_deleted(uid, prefix, result, now),
            DpOp::CreatePart { uid, part } => self.part_created(uid, *part, result, now),
            DpOp::DeleteVip { uid } => self.vip_deleted(uid, result, now),
            DpOp::DeleteNat { uid } => self.nat_deleted(uid, result, now),
            DpOp::DeleteTargetPrefix { uid, prefix } => {
                let settled = code::NOT_FOUND;
                self.part_deleted(uid, settled, result, now, |services| {
                    services.targets.remove(&prefix);
                });
            }
            DpOp::DeleteRule { uid, id } => {
                let settled = code::NOT_FOUND;
                self.part_deleted(uid, settled, result, now, |services| {
                    services.rules.remove(&id);
                });
            }
            DpOp::ReplaceRule { uid, id, rule } => match result {
                Ok(_) => {
                    self.observed.edit_services(&uid, |services| {
                        services.rules.insert(id, Some(*rule));
                        services.rules.remove(RULE_CHANGING);
                    });
                    self.nic_succeeded(&uid);
                }
                Err(error) => {
                    // How far it came is unknown: the listing shows it.
                    self.list_wanted = true;
                    self.nic_failed(&uid, &[], error, now);
                }
            },
            DpOp::CreateBalancer { uid, request } => {
                self.balancer_created(uid, *request, result, now)
            }
            DpOp::DeleteBalancer { uid } => self.balancer_deleted(uid, result, now),
            DpOp::CreateTarget { uid, target } => self.target_set(uid, target, true, result, now),
            DpOp::DeleteTarget { uid, target } => self.target_set(uid, target, false, result, now),
            DpOp::CreateNeighbor { neighbor, underlay } => {
                self.neighbor_set(neighbor, underlay, false, result, now)
            }
            DpOp::ReplaceNeighbor { neighbor, underlay } => {
                self.neighbor_set(neighbor, underlay, true, result, now)
            }
            DpOp::DeleteNeighbor { neighbor } => self.neighbor_deleted(neighbor, result, now),
            DpOp::CreateRoute { key, hop } => match result {
                Ok(_) => self.route_done(key, Some(Installed::Hop(hop))),
                Err(error) => self.route_failed(key, error, now),
            },
            DpOp::ReplaceRoute { key, hop } => match result {
                Ok(_) => self.route_done(key, Some(Installed::Hop(hop))),
                Err(error) => {
                    // The old route is gone, unless the prefix turns out to be occupied still.
                    self.observed.set_route(key.vni, key.prefix, None);
                    self.route_failed(key, error, now);
                }
            },
            DpOp::DeleteRoute { key } => match result {
                Ok(_) => self.route_done(key, None),
                Err(error) => self.route_delete_failed(key, error, now),
            },
        }
    }

    fn initialized(&mut self, result: Result<DpDone, DpError>, now: Instant) {
        match result {
            Ok(done) => {
                self.service.succeed();
                if let DpDone::Instance(instance) = done {
                    self.see_instance(Some(instance));
                }
                if self.phase == Phase::Initializing {
                    self.phase = Phase::Stale;
                }
            }
            Err(_) => {
                self.service.fail(now, DP_BACKOFF);
                if self.phase == Phase::Initializing {
                    self.phase = Phase::Fresh;
                }
            }
        }
    }

    fn listed(&mut self, result: Result<DpDone, DpError>, now: Instant) {
        match result {
            Ok(DpDone::Inventory(inventory)) => {
                self.service.succeed();
                if self.phase == Phase::Listing {
                    self.adopt(*inventory, now);
                }
            }
            Ok(DpDone::Done | DpDone::Underlay(_) | DpDone::Guarded(_) | DpDone::Instance(_))
            | Err(_) => {
                self.service.fail(now, DP_BACKOFF);
                if self.phase == Phase::Listing {
                    self.phase = Phase::Stale;
                }
            }
        }
    }

    /// Takes a listing as the truth and looks at everything again.
    fn adopt(&mut self, inventory: Observed, now: Instant) {
        if !self.observed_once {
            // Calls of an earlier run of metalnet may be under way still.
            self.audit_at = Some(now + AUDIT_AFTER);
            for uid in self.claims.keys() {
                self.tracks.entry(uid.clone()).or_default().lost = true;
            }
        }
        self.observed = inventory;
        self.observed_once = true;
        self.phase = Phase::Live;
        self.list_wanted = false;
        self.listed_at = Some(now);
        self.routes_failed.clear();
        self.withdrawn.clear();
        self.neighbors_withdrawn.clear();
        self.neighbor_lanes.clear();
        for track in self.tracks.values_mut() {
            track.dp.reopen();
            track.failure = None;
            track.lost &= self.audit_at.is_some();
        }
        for track in self.balancer_tracks.values_mut() {
            track.dp.reopen();
            track.failure = None;
            track.withdrawn.clear();
            track.lost &= self.audit_at.is_some();
        }
        self.touch_all_nics();
        self.touch_all_balancers();
        self.touch_all_tables();
        let vnis: Vec<Vni> = self.observed.vnis().collect();
        for vni in vnis {
            self.touch_shares_of(vni);
        }
        for key in self.networks.keys() {
            self.network_queue.push(key.clone());
        }
    }

    fn interface_created(
        &mut self,
        uid: Uid,
        request: InterfaceRequest,
        result: Result<DpDone, DpError>,
        now: Instant,
    ) {
        let InterfaceRequest {
            vni,
            device,
            ipv4,
            ipv6,
            total_rate,
            public_rate,
            hostname,
            rules,
        } = request;
        match result {
            Ok(done @ (DpDone::Underlay(underlay) | DpDone::Guarded(underlay))) => {
                // A dpservice that cannot create both at once has the interface only: the rules follow one by one.
                let guarded = matches!(done, DpDone::Guarded(_));
                let rules = rules.into_iter().filter(|_| guarded);
                let services = Services {
                    rules: rules.map(|(id, rule)| (id, Some(rule))).collect(),
                    ..Services::default()
                };
                let prefixes = BTreeMap::new();
                let interface = Interface {
                    vni,
                    ipv4,
                    ipv6,
                    device,
                    total_rate,
                    public_rate,
                    hostname,
                    underlay,
                    prefixes,
                    services,
                };
                let first = self.observed.insert_interface(uid.clone(), interface);
                self.nic_succeeded(&uid);
                if first {
                    self.touch_table(vni);
                    self.touch_shares_of(vni);
                }
                self.touch_networks_of(vni);
            }
            Ok(DpDone::Done | DpDone::Instance(_) | DpDone::Inventory(_)) => {
                self.list_wanted = true;
                self.nic_succeeded(&uid);
            }
            Err(error) => {
                if let (Some(track), DpError::Unavailable(_)) = (self.tracks.get_mut(&uid), &error)
                {
                    track.lost = true;
                }
                let v4 = ipv4.map(|a| Prefix::host(a.into()));
                let v6 = ipv6.map(|a| Prefix::host(a.into()));
                let keys: Vec<RouteKey> = v4
                    .into_iter()
                    .chain(v6)
                    .map(|prefix| RouteKey { vni, prefix })
                    .collect();
                self.nic_failed(&uid, &keys, error, now);
            }
        }
    }

    fn interface_deleted(&mut self, uid: Uid, result: Result<DpDone, DpError>, now: Instant) {
        if let Err(error) = result {
            match error.code() {
                Some(code::NOT_FOUND) => {}
                // dpservice finishes the clean-up although the port gave trouble; look what is left.
                Some(code::PORT_STOP | code::PORT_METER | code::VNF_DELETE) => {
                    self.list_wanted = true
                }
                Some(_) | None => return self.nic_failed(&uid, &[], error, now),
            }
        }
        let removed = self.observed.remove_interface(&uid);
        self.nic_succeeded(&uid);
        if let Some(interface) = removed {
            let vni = interface.vni;
            self.freed(
                interface
                    .owned()
                    .map(|(prefix, _)| RouteKey { vni, prefix }),
            );
            self.touch_networks_of(vni);
            self.touch_unused(vni);
        }
        self.touch_claimless();
    }

    /// With the last user of a VNI dpservice dropped its routes and other hosts' shares of NAT addresses: others may take their
    /// place, and what waited for a route to leave need not wait any longer.
    pub(super) fn touch_unused(&mut self, vni: Vni) {
        if self.observed.uses_vni(vni) {
            return;
        }
        self.touch_shares_of(vni);
        self.touch_balancers_of(vni);
        let keys: Vec<RouteKey> = self
            .own
            .keys()
            .filter(|key| key.vni == vni)
            .copied()
            .collect();
        for key in keys {
            self.touch_owners(key);
        }
    }

    fn part_created(
        &mut self,
        uid: Uid,
        part: Part,
        result: Result<DpDone, DpError>,
        now: Instant,
    ) {
        let done = match result {
            Ok(done) => done,
            Err(error) => {
                self.list_wanted |= error.code() == Some(code::NO_VM);
                return self.nic_failed(&uid, &[], error, now);
            }
        };
        self.observed
            .edit_services(&uid, |services| match (part, done) {
                (Part::Vip(address), DpDone::Underlay(underlay)) => {
                    services.vip = Some((address, underlay))
                }
                (Part::Nat(share), DpDone::Underlay(underlay)) => {
                    services.nat = Some((share, underlay))
                }
                (Part::Target(prefix), DpDone::Underlay(underlay)) => {
                    services.targets.insert(prefix, underlay);
                }
                (Part::Rule { id, rule }, _) => {
                    services.rules.insert(id, Some(rule));
                }
                // Such an answer is impossible; `dpservice` reads the one that fits the call.
                (Part::Vip(_) | Part::Nat(_) | Part::Target(_), _) => {}
            });
        self.nic_succeeded(&uid);
    }

    fn vip_deleted(&mut self, uid: Uid, result: Result<DpDone, DpError>, now: Instant) {
        let services = self.observed.interface(&uid).map(|held| &held.services);
        let address = services.and_then(|services| services.vip).map(|vip| vip.0);
        self.part_deleted(uid, code::SNAT_NO_DATA, result, now, |services| {
            services.vip = None;
        });
        if let Some(address) = address {
            self.freed_public(address);
        }
    }

    fn nat_deleted(&mut self, uid: Uid, result: Result<DpDone, DpError>, now: Instant) {
        let services = self.observed.interface(&uid).map(|held| &held.services);
        let address = services
            .and_then(|services| services.nat)
            .map(|(share, _)| share.address);
        self.part_deleted(uid, code::SNAT_NO_DATA, result, now, |services| {
            services.nat = None;
        });
        if let Some(address) = address {
            self.neighbor_queue.push(address);
            self.freed_public(address);
        }
    }

    /// `settled` is the code that says that there is nothing (any more).
    fn part_deleted(
        &mut self,
        uid: Uid,
        settled: u32,
        result: Result<DpDone, DpError>,
        now: Instant,
        change: impl FnOnce(&mut Services),
    ) {
        if let Err(error) = result {
            match error.code() {
                Some(found) if found == settled => {}
                Some(code::NO_VM | code::VNF_DELETE) => self.list_wanted = true,
                Some(_) | None => return self.nic_failed(&uid, &[], error, now),
            }
        }
        self.observed.edit_services(&uid, change);
        self.nic_succeeded(&uid);
    }

    fn prefix_created(
        &mut self,
        uid: Uid,
        prefix: Prefix,
        result: Result<DpDone, DpError>,
        now: Instant,
    ) {
        match result {
            Ok(DpDone::Underlay(underlay)) => {
                self.observed.set_prefix(&uid, prefix, Some(underlay));
                self.nic_succeeded(&uid);
            }
            Ok(DpDone::Done | DpDone::Guarded(_) | DpDone::Instance(_) | DpDone::Inventory(_)) => {
                self.list_wanted = true;
                self.nic_succeeded(&uid);
            }
            Err(error) => {
                self.list_wanted |= matches!(error.code(), Some(code::NO_VM));
                let vni = self.observed.interface(&uid).map(|interface| interface.vni);
                let key = vni.map(|vni| RouteKey { vni, prefix });
                self.nic_failed(&uid, key.as_slice(), error, now);
            }
        }
    }

    fn prefix_deleted(
        &mut self,
        uid: Uid,
        prefix: Prefix,
        result: Result<DpDone, DpError>,
        now: Instant,
    ) {
        if let Err(error) = result {
            match error.code() {
                Some(code::NOT_FOUND | code::ROUTE_NOT_FOUND) => {}
                Some(code::NO_VM | code::NO_VNI | code::ROUTE_BAD_PORT | code::VNF_DELETE) => {
                    self.list_wanted = true
                }
                Some(_) | None => return self.nic_failed(&uid, &[], error, now),
            }
        }
        let vni = self.observed.interface(&uid).map(|interface| interface.vni);
        self.observed.set_prefix(&uid, prefix, None);
        self.nic_succeeded(&uid);
        self.freed(vni.map(|vni| RouteKey { vni, prefix }));
    }

    fn nic_succeeded(&mut self, uid: &Uid) {
        if let Some(track) = self.tracks.get_mut(uid) {
            track.dp.succeed();
            track.dispute = Dispute::None;
            if track.dp.busy == 0 {
                track.failure = None;
            }
        }
        self.touch_nic(uid);
    }

    /// `keys` are the prefixes that the call wanted to occupy.
    fn nic_failed(&mut self, uid: &Uid, keys: &[RouteKey], error: DpError, now: Instant) {
        let will_heal = error.is_transient() || self.is_news(uid, keys, &error);
        if let Some(track) = self.tracks.get_mut(uid) {
            let at = track.dp.fail(now, DP_BACKOFF);
            if !will_heal {
                track.failure = Some(error);
            }
            self.nic_queue.push_at(uid.clone(), at);
        }
        self.touch_nic(uid);
    }

    /// Whether a refusal tells us that the inventory is wrong rather than the request. Something exists already: perhaps
    /// what we asked for, by an earlier call whose answer was lost, perhaps something in the way. The listing shows it,
    /// and then it is either taken as done or removed. What no list shows and still is in the way is taken for a route
    /// to another host and cleared; what even that does not help against is something that people should know of.
    fn is_news(&mut self, uid: &Uid, keys: &[RouteKey], error: &DpError) -> bool {
        let route = match error.code() {
            Some(code::ROUTE_EXISTS) => true,
            Some(
                code::ALREADY_EXISTS | code::VM_HANDLE | code::SNAT_EXISTS | code::DNAT_EXISTS,
            ) => false,
            Some(_) | None => return false,
        };
        if route && keys.iter().any(|key| self.has_owner_besides(uid, *key)) {
            return false;
        }
        let Some(track) = self.tracks.get_mut(uid) else {
            return false;
        };
        let stage = track.dispute;
        match stage {
            Dispute::None => {
                track.dispute = Dispute::Listed;
                self.list_wanted = true;
            }
            Dispute::Listed | Dispute::Cleared if route => {
                track.dispute = Dispute::Cleared;
                keys.iter().for_each(|key| self.suspect(*key));
            }
            Dispute::Listed | Dispute::Cleared => return false,
        }
        stage != Dispute::Cleared
    }

    fn has_owner_besides(&self, uid: &Uid, key: RouteKey) -> bool {
        let mut owners = self.own.get(&key).into_iter().flatten();
        owners.any(|(owner, underlay)| owner != uid && underlay.is_some())
    }

    /// A prefix of ours is taken and we do not know by what: assume a route to another host, which then is deleted.
    fn suspect(&mut self, key: RouteKey) {
        if self.observed.route(key.vni, &key.prefix).is_none() {
            self.observed
                .set_route(key.vni, key.prefix, Some(Installed::Unknown));
        }
        self.touch_route(key);
    }

    fn route_done(&mut self, key: RouteKey, installed: Option<Installed>) {
        self.routes_busy.remove(&key);
        self.routes_failed.remove(&key);
        self.routes_disputed.remove(&key);
        self.withdrawn.remove(&key);
        // The table may have gone with its last interface while the call was under way.
        if self.observed.uses_vni(key.vni) || installed.is_none() {
            self.observed.set_route(key.vni, key.prefix, installed);
        }
        self.route_queue.push(key);
        if installed.is_none() {
            self.touch_owners(key);
        }
    }

    fn route_failed(&mut self, key: RouteKey, error: DpError, now: Instant) {
        self.routes_busy.remove(&key);
        match error.code() {
            // The listing shows whether it is the route we want or another; see `is_news`.
            Some(code::ROUTE_EXISTS | code::NO_VNI | code::ROUTE_BAD_PORT)
                if self.routes_disputed.insert(key) =>
            {
                self.list_wanted = true;
            }
            Some(code::ROUTE_EXISTS) => {
                self.observed
                    .set_route(key.vni, key.prefix, Some(Installed::Unknown))
            }
            Some(_) | None => {}
        }
        let lane = self.routes_failed.entry(key).or_default();
        let at = lane.fail(now, DP_BACKOFF);
        self.route_queue.push_at(key, at);
        self.touch_owners(key);
    }

    fn route_delete_failed(&mut self, key: RouteKey, error: DpError, now: Instant) {
        match error.code() {
            Some(code::NO_VNI | code::ROUTE_NOT_FOUND) => self.route_done(key, None),
            Some(code::ROUTE_BAD_PORT) => {
                // It belongs to an interface of this host: not ours to delete, and news unless we knew of the owner.
                let mut owners = self.own.get(&key).into_iter().flatten();
                self.list_wanted |= owners.all(|(_, underlay)| underlay.is_none());
                self.route_done(key, None);
            }
            Some(_) | None => self.route_failed(key, error, now),
        }
    }

    pub(super) fn api_outcome(
        &mut self,
        op: &ApiOp,
        result: Result<Written, ApiError>,
        now: Instant,
    ) {
        self.api_inflight = self.api_inflight.saturating_sub(1);
        let wait = match &result {
            Ok(_) => None,
            // Not found: the news of the deletion is on its way.
            Err(ApiError::Conflict | ApiError::NotFound | ApiError::Unavailable(_)) => {
                Some(API_BACKOFF)
            }
            Err(ApiError::Refused(_)) => Some(REFUSED_BACKOFF),
        };
        let finish = |lane: &mut Lane| match wait {
            None => {
                lane.succeed();
                None
            }
            Some(backoff) => Some(lane.fail(now, backoff)),
        };
        match op {
            ApiOp::NicFinalizers { meta, .. } | ApiOp::NicStatus { meta, .. } => {
                if let Some(at) = self
                    .tracks
                    .get_mut(&meta.uid)
                    .and_then(|track| finish(&mut track.api))
                {
                    self.nic_queue.push_at(meta.uid.clone(), at);
                }
                self.nic_queue.push(meta.uid.clone());
            }
            ApiOp::NetworkFinalizers { meta, .. } | ApiOp::NetworkPeerings { meta, .. } => {
                if let Some(at) = self.network_lanes.get_mut(&meta.key).and_then(finish) {
                    self.network_queue.push_at(meta.key.clone(), at);
                }
                self.network_queue.push(meta.key.clone());
            }
            ApiOp::BalancerFinalizers { meta, .. } | ApiOp::BalancerStatus { meta, .. } => {
                let track = self.balancer_tracks.get_mut(&meta.uid);
                if let Some(at) = track.and_then(|track| finish(&mut track.api)) {
                    self.balancer_queue.push_at(meta.uid.clone(), at);
                }
                self.balancer_queue.push(meta.uid.clone());
            }
            // An event is a courtesy: it is written once or not at all.
            ApiOp::Warn { .. } => {}
        }
        // Only objects that are still known: a reply may come after the news of the deletion.
        match result {
            Ok(Written::Nic(nic)) if self.nics.contains_key(&nic.meta.uid) => self.nic(*nic),
            Ok(Written::Network(network)) if self.networks.contains_key(&network.meta.key) => {
                self.network(*network)
            }
            Ok(Written::Balancer(balancer)) if self.balancers.contains_key(&balancer.meta.uid) => {
                self.balancer(*balancer)
            }
            Ok(_) | Err(_) => {}
        }
    }

    pub(super) fn claim_outcome(&mut self, op: ClaimOp, result: Result<(), String>, now: Instant) {
        self.claim_inflight = self.claim_inflight.saturating_sub(1);
        let uid = match &op {
            ClaimOp::Take { uid, .. } | ClaimOp::Release { uid } => uid.clone(),
        };
        let failed = result.is_err();
        match op {
            ClaimOp::Take { uid, claim } => {
                self.claiming.remove(&uid);
                if !failed {
                    self.claims.insert(uid, claim);
                }
            }
            ClaimOp::Release { uid } => {
                if !failed {
                    self.claims.remove(&uid);
                    self.touch_claimless();
                }
            }
        }
        if let Some(track) = self.tracks.get_mut(&uid) {
            if failed {
                let at = track.claim.fail(now, CLAIM_BACKOFF);
                self.nic_queue.push_at(uid.clone(), at);
            } else {
                track.claim.succeed();
            }
        }
        self.touch_nic(&uid);
    }

    /// A device may have become free: look at those who wait for one.
    fn touch_claimless(&mut self) {
        let waiting = self
            .nics
            .keys()
            .filter(|uid| !self.claims.contains_key(*uid) && !self.claiming.contains_key(*uid));
        for uid in waiting {
            self.nic_queue.push(uid.clone());
        }
    }
}
