//! Derived state: what each object contributes, which routes are imported, what is subscribed; and the marks that follow.

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv6Addr;

use super::Agent;
use crate::model::{Prefix, Uid, Vni};
use crate::plan::desired::{self, Routing, Share, Want};
use crate::plan::nic::{Claim, Device};
use crate::plan::ops::{Announcement, BondOp, HopKind, RouteKey};

impl Agent {
    pub(super) fn routing(&self) -> Routing<'_> {
        Routing {
            settings: &self.settings,
            rib: &self.rib,
            own: &self.own,
            balanced: &self.balanced,
            imports: &self.imports,
            observed: &self.observed,
        }
    }

    pub(super) fn want(&self, uid: &Uid) -> Want<'_> {
        let nic = self.nics.get(uid);
        let network = nic.and_then(|nic| self.networks.get(&nic.network));
        desired::want(
            nic,
            network,
            self.api_synced,
            self.observed.interface(uid).is_some(),
        )
    }

    pub(super) fn device(&self, claim: &str) -> Option<&Device> {
        self.devices
            .iter()
            .find(|(text, _)| text == claim)
            .map(|(_, device)| device)
    }

    pub(super) fn claim(&self, uid: &Uid) -> Claim<'_> {
        match self.claims.get(uid) {
            None => Claim::None,
            Some(text) => self.device(text).map_or(Claim::Gone, Claim::Held),
        }
    }

    /// The device for a new claim: the one its interface already has, or the first that nobody uses.
    pub(super) fn choose_device(&self, uid: &Uid) -> Option<String> {
        let taken = |text: &str| {
            self.claims
                .values()
                .chain(self.claiming.values())
                .any(|other| other == text)
        };
        if let Some(interface) = self.observed.interface(uid) {
            let current = self
                .devices
                .iter()
                .find(|(_, device)| device.name == interface.device);
            if let Some((text, _)) = current.filter(|(text, _)| !taken(text)) {
                return Some(text.clone());
            }
        }
        let occupied: HashSet<&str> = self
            .observed
            .interfaces()
            .map(|(_, i)| i.device.as_str())
            .collect();
        let free = |(text, device): &&(String, Device)| {
            !taken(text) && !occupied.contains(device.name.as_str())
        };
        self.devices.iter().find(free).map(|(text, _)| text.clone())
    }

    /// Brings what an interface contributes (own prefixes, announcements, VNIs) in line with the present state.
    pub(super) fn refresh_share(&mut self, uid: &Uid) {
        let want = self.want(uid);
        let device = match self.claim(uid) {
            Claim::Held(device) => Some(device.name.as_str()),
            Claim::None | Claim::Gone => None,
        };
        let share = desired::share(want, device, self.observed.interface(uid), &self.settings);
        let track = self.tracks.entry(uid.clone()).or_default();
        if track.share != share {
            let old = std::mem::replace(&mut track.share, share.clone());
            self.exchange_share(uid, &old, &share);
        }
    }

    /// Draws the consequences of what an object contributes now instead of what it contributed before.
    pub(super) fn exchange_share(&mut self, uid: &Uid, old: &Share, new: &Share) {
        self.subscriptions_stale |= old.vnis != new.vnis;
        // Withdraw first: an address that moves from one underlay address to another must not end up withdrawn.
        let gone: Vec<Announcement> = old
            .announcements
            .difference(&new.announcements)
            .copied()
            .collect();
        let come = new.announcements.difference(&old.announcements);
        let come: Vec<Announcement> = come.copied().collect();
        self.bond.extend(gone.iter().copied().map(BondOp::Withdraw));
        self.bond.extend(come.iter().copied().map(BondOp::Announce));
        self.announced = self.announced + new.announcements.len() - old.announcements.len();
        for announcement in gone.iter().chain(&come) {
            self.touch_fellows(announcement);
        }
        for (_, address) in old.vips.symmetric_difference(&new.vips) {
            self.neighbor_queue.push(*address);
        }
        for (key, underlay) in &old.own {
            if new.own.get(key) != Some(underlay) {
                self.set_own(*key, uid, None);
            }
        }
        for (key, underlay) in &new.own {
            if old.own.get(key) != Some(underlay) {
                self.set_own(*key, uid, Some(*underlay));
            }
        }
        for key in old.balanced.keys() {
            if let Some(balancers) = self.balanced.get_mut(key) {
                balancers.remove(uid);
                if balancers.is_empty() {
                    self.balanced.remove(key);
                }
            }
            self.touch_route(*key);
        }
        for (key, underlay) in &new.balanced {
            let balancers = self.balanced.entry(*key).or_default();
            balancers.insert(uid.clone(), *underlay);
            self.touch_route(*key);
        }
    }

    /// Servers do not send our own routes back: what we tell others, this host's own load balancers and NAT addresses
    /// must learn here.
    fn touch_fellows(&mut self, announcement: &Announcement) {
        match announcement.kind {
            HopKind::Standard => {}
            HopKind::Nat(_) => self.touch_shared(&announcement.prefix),
            HopKind::Target => self.touch_balancers_at(announcement.vni, &announcement.prefix),
        }
    }

    pub(super) fn set_own(&mut self, key: RouteKey, uid: &Uid, underlay: Option<Option<Ipv6Addr>>) {
        match underlay {
            Some(underlay) => {
                self.own
                    .entry(key)
                    .or_default()
                    .insert(uid.clone(), underlay);
            }
            None => {
                if let Some(owners) = self.own.get_mut(&key) {
                    owners.remove(uid);
                    if owners.is_empty() {
                        self.own.remove(&key);
                    }
                }
            }
        }
        self.touch_route(key);
    }

    /// Marks a route, and those in the tables that import it.
    pub(super) fn touch_route(&mut self, key: RouteKey) {
        self.route_queue.push(key);
        if let Some(importers) = self.exports.get(&key.vni) {
            for vni in importers {
                self.route_queue.push(RouteKey {
                    vni: *vni,
                    prefix: key.prefix,
                });
            }
        }
    }

    /// Marks everything that could be in table `vni`.
    pub(super) fn touch_table(&mut self, vni: Vni) {
        if !self.observed.uses_vni(vni) {
            return;
        }
        let exporters = self
            .imports
            .get(&vni)
            .into_iter()
            .flat_map(|exporters| exporters.keys().copied());
        let sources: Vec<Vni> = exporters.chain([vni]).collect();
        let mut prefixes: BTreeSet<Prefix> = desired::default_prefixes(&self.settings).collect();
        prefixes.extend(self.observed.routes(vni).map(|(prefix, _)| prefix));
        for source in &sources {
            prefixes.extend(self.rib.prefixes(*source));
        }
        let here = self.own.keys().chain(self.balanced.keys());
        prefixes.extend(
            here.filter(|key| sources.contains(&key.vni))
                .map(|key| key.prefix),
        );
        for prefix in prefixes {
            self.route_queue.push(RouteKey { vni, prefix });
        }
    }

    pub(super) fn touch_all_tables(&mut self) {
        let vnis: Vec<Vni> = self.observed.vnis().collect();
        for vni in vnis {
            self.touch_table(vni);
        }
    }

    pub(super) fn touch_nic(&mut self, uid: &Uid) {
        self.refresh_share(uid);
        self.nic_queue.push(uid.clone());
    }

    pub(super) fn touch_all_nics(&mut self) {
        let known = self
            .nics
            .keys()
            .chain(self.tracks.keys())
            .chain(self.claims.keys());
        let uids: BTreeSet<Uid> = known
            .chain(self.observed.interfaces().map(|(uid, _)| uid))
            .cloned()
            .collect();
        for uid in uids {
            self.touch_nic(&uid);
        }
    }

    /// Marks the Networks with this VNI and those that peer with it: whether its routes have been heard decides what both report.
    pub(super) fn touch_networks_of(&mut self, vni: Vni) {
        for key in self.networks_by_vni.get(&vni).into_iter().flatten() {
            self.network_queue.push(key.clone());
        }
        for (key, network) in &self.networks {
            if network.peers.contains_key(&vni) {
                self.network_queue.push(key.clone());
            }
        }
    }

    /// Marks the interfaces that wait for a route to leave one of their prefixes.
    pub(super) fn touch_owners(&mut self, key: RouteKey) {
        if let Some(owners) = self.own.get(&key) {
            for uid in owners.keys() {
                self.nic_queue.push(uid.clone());
            }
        }
    }

    /// Whether something that is about to go still holds the virtual IP that the interface wants: another interface of
    /// this host, or the share of a host that used the address for NAT.
    pub(super) fn is_vip_held(&self, uid: &Uid) -> bool {
        let Want::Present { spec, vni } = self.want(uid) else {
            return false;
        };
        let Some(address) = spec.vip else {
            return false;
        };
        let present = self.observed.interface(uid);
        if present.is_some_and(|own| own.services.vip.is_some_and(|(vip, _)| vip == address)) {
            return false;
        }
        let shares = self.observed.neighbors(address);
        let shared = shares.is_some_and(|shares| shares.keys().any(|(user, _)| *user == vni));
        let mut others = self.observed.interfaces();
        let leaving = others.any(|(other, interface)| {
            let stays = match self.want(other) {
                Want::Absent => false,
                Want::Present { spec, vni } => {
                    vni == interface.vni
                        && (spec.vip == Some(address)
                            || spec.nat.is_some_and(|nat| nat.address == address))
                }
                Want::Unknown | Want::Blocked(_) => true,
            };
            other != uid && interface.vni == vni && interface.services.uses(address) && !stays
        });
        shared || leaving
    }

    /// A public address has become free in a network: whoever waits for it tries at once.
    pub(super) fn freed_public(&mut self, address: std::net::Ipv4Addr) {
        let waits = |uid: &Uid| {
            let wants = match self.want(uid) {
                Want::Present { spec, .. } => spec.vip == Some(address),
                Want::Unknown | Want::Blocked(_) | Want::Absent => false,
            };
            let present = self.observed.interface(uid);
            wants && present.is_some_and(|interface| interface.services.vip.is_none())
        };
        let uids: Vec<Uid> = self.nics.keys().filter(|uid| waits(uid)).cloned().collect();
        for uid in uids {
            if let Some(track) = self.tracks.get_mut(&uid) {
                track.dp.reopen();
                track.failure = None;
            }
            self.nic_queue.push(uid);
        }
    }

    /// Whether something is about to leave a prefix that the interface wants: a route to another host, or an interface
    /// of this host that is being torn down.
    pub(super) fn is_occupied(&self, uid: &Uid) -> bool {
        let leaving = |key: &RouteKey| {
            let mut owners = self.own.get(key).into_iter().flatten();
            owners.any(|(owner, underlay)| {
                owner != uid && underlay.is_some() && matches!(self.want(owner), Want::Absent)
            })
        };
        self.tracks.get(uid).is_some_and(|track| {
            let mut missing = track
                .share
                .own
                .iter()
                .filter(|(_, underlay)| underlay.is_none());
            missing.any(|(key, _)| {
                self.observed.route(key.vni, &key.prefix).is_some()
                    || self.routes_busy.contains(key)
                    || leaving(key)
            })
        })
    }

    /// Prefixes have become free here: whoever waits for one of them tries at once.
    pub(super) fn freed(&mut self, keys: impl IntoIterator<Item = RouteKey>) {
        for key in keys {
            let owners = self.own.get(&key).into_iter().flatten();
            let uids: Vec<Uid> = owners.map(|(uid, _)| uid.clone()).collect();
            for uid in uids {
                if let Some(track) = self.tracks.get_mut(&uid) {
                    track.dp.reopen();
                    track.failure = None;
                }
                self.nic_queue.push(uid);
            }
        }
    }

    /// Reads the peerings anew and marks the tables whose imports changed.
    pub(super) fn refresh_imports(&mut self) {
        self.imports_stale = false;
        let imports = desired::imports(self.networks.values());
        if imports == self.imports {
            return;
        }
        let vnis: BTreeSet<Vni> = self.imports.keys().chain(imports.keys()).copied().collect();
        let changed: Vec<Vni> = vnis
            .into_iter()
            .filter(|vni| self.imports.get(vni) != imports.get(vni))
            .collect();
        for vni in &changed {
            // What the old imports brought in has to be looked at as well as what the new ones will.
            self.touch_table(*vni);
        }
        self.imports = imports;
        self.exports.clear();
        for (importer, exporters) in &self.imports {
            for exporter in exporters.keys() {
                self.exports.entry(*exporter).or_default().insert(*importer);
            }
        }
        for vni in changed {
            self.touch_table(vni);
        }
        self.subscriptions_stale = true;
    }

    pub(super) fn refresh_subscriptions(&mut self) {
        self.subscriptions_stale = false;
        let nics = self.tracks.values().map(|track| &track.share);
        let balancers = self.balancer_tracks.values().map(|track| &track.share);
        let shares = nics.chain(balancers);
        let wanted = desired::subscriptions(shares, &self.imports, &self.settings);
        for vni in wanted.difference(&self.subscribed) {
            self.bond.push(BondOp::Subscribe(*vni));
        }
        let dropped: Vec<Vni> = self.subscribed.difference(&wanted).copied().collect();
        for vni in dropped {
            self.bond.push(BondOp::Unsubscribe(vni));
            self.rib.forget(vni);
            self.touch_networks_of(vni);
        }
        self.subscribed = wanted;
    }
}
