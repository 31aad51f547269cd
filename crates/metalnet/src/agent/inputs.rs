//! What the agent learns from the API, from metalbond and about dpservice's presence.

use std::time::Instant;

use super::{Agent, Dispute, Input, Lane, Phase};
use crate::model::{Network, Nic, ObjectKey, Prefix, Uid, Vni};
use crate::plan::ops::{HopKind, RouteKey};
use crate::plan::rib::{Heard, Learned};

impl Agent {
    /// Takes in one input. [`Agent::poll`] then says what follows from it.
    pub fn apply(&mut self, input: Input, now: Instant) {
        match input {
            Input::ApiSynced => self.sync_api(),
            Input::Nic(nic) => self.nic(*nic),
            Input::NicGone(uid) => self.nic_gone(&uid),
            Input::Network(network) => self.network(*network),
            Input::NetworkGone(key) => self.network_gone(&key),
            Input::Balancer(balancer) => self.balancer(*balancer),
            Input::BalancerGone(uid) => self.balancer_gone(&uid),
            Input::Learned {
                vni,
                prefix,
                hop,
                present,
            } => self.learned(vni, prefix, hop, present),
            Input::Heard { vni, heard } => self.heard(vni, heard),
            Input::DpUp { instance } => self.dp_up(instance),
            Input::DpDown => self.phase = Phase::Down,
            Input::Dp { op, result } => self.dp_outcome(op, result, now),
            Input::Api { op, result } => self.api_outcome(&op, result, now),
            Input::Claim { op, result } => self.claim_outcome(op, result, now),
        }
    }

    fn sync_api(&mut self) {
        self.api_synced = true;
        self.touch_all_nics();
        self.touch_all_balancers();
        for key in self.networks.keys() {
            self.network_queue.push(key.clone());
        }
    }

    pub(super) fn nic(&mut self, nic: Nic) {
        let uid = nic.meta.uid.clone();
        let old = self.nics.get(&uid);
        if old.is_some_and(|old| nic.meta.is_older_than(&old.meta)) {
            return;
        }
        let changed = old.is_none_or(|old| {
            old.spec != nic.spec
                || old.network != nic.network
                || old.meta.deleting != nic.meta.deleting
        });
        if let Some(old) = old.filter(|old| old.network != nic.network) {
            self.network_queue.push(old.network.clone());
        }
        if changed {
            self.network_queue.push(nic.network.clone());
            let track = self.tracks.entry(uid.clone()).or_default();
            track.failure = None;
            track.dispute = Dispute::None;
            track.dp.reopen();
            track.api.reopen();
        }
        self.nics.insert(uid.clone(), nic);
        self.touch_nic(&uid);
    }

    fn nic_gone(&mut self, uid: &Uid) {
        if let Some(nic) = self.nics.remove(uid) {
            self.network_queue.push(nic.network);
            self.touch_nic(uid);
        }
    }

    pub(super) fn network(&mut self, network: Network) {
        let key = network.meta.key.clone();
        let old = self.networks.get(&key);
        if old.is_some_and(|old| {
            old.meta.uid == network.meta.uid && network.meta.is_older_than(&old.meta)
        }) {
            return;
        }
        let old_vni = old.and_then(|old| old.vni);
        let same_peers =
            old.is_some_and(|old| old.peers == network.peers && old.vni == network.vni);
        let same_use = old.is_some_and(|old| {
            old.vni == network.vni && old.meta.deleting == network.meta.deleting
        });
        self.imports_stale |= !(same_peers || old.is_none() && network.peers.is_empty());
        if old_vni != network.vni {
            self.index_network(old_vni, &key, false);
            self.index_network(network.vni, &key, true);
        }
        self.networks.insert(key.clone(), network);
        if !same_use {
            self.touch_users_of(&key);
        }
        self.network_queue.push(key);
    }

    fn network_gone(&mut self, key: &ObjectKey) {
        if let Some(network) = self.networks.remove(key) {
            self.index_network(network.vni, key, false);
            self.network_lanes.remove(key);
            self.imports_stale |= !network.peers.is_empty();
            self.touch_users_of(key);
        }
    }

    fn index_network(&mut self, vni: Option<Vni>, key: &ObjectKey, present: bool) {
        let Some(vni) = vni else { return };
        let keys = self.networks_by_vni.entry(vni).or_default();
        if present {
            keys.insert(key.clone());
        } else {
            keys.remove(key);
            if keys.is_empty() {
                self.networks_by_vni.remove(&vni);
            }
        }
    }

    fn touch_users_of(&mut self, key: &ObjectKey) {
        let users = self.nics.iter().filter(|(_, nic)| nic.network == *key);
        let uids: Vec<Uid> = users.map(|(uid, _)| uid.clone()).collect();
        for uid in uids {
            if let Some(track) = self.tracks.get_mut(&uid) {
                track.failure = None;
                track.dp.reopen();
            }
            self.touch_nic(&uid);
        }
        let users = self
            .balancers
            .iter()
            .filter(|(_, user)| user.network == *key);
        let uids: Vec<Uid> = users.map(|(uid, _)| uid.clone()).collect();
        for uid in uids {
            self.reopen_balancer(&uid);
            self.touch_balancer(&uid);
        }
    }

    fn learned(&mut self, vni: Vni, prefix: Prefix, hop: Learned, present: bool) {
        // What is still on its way after an unsubscription would never be removed again.
        if !self.subscribed.contains(&vni) {
            return;
        }
        let changed = if present {
            self.rib.add(vni, prefix, hop)
        } else {
            self.rib.remove(vni, &prefix, hop)
        };
        if !changed {
            return;
        }
        let withdrawn = !present && self.rib.heard(vni) > Heard::Silent;
        match hop.kind {
            HopKind::Standard => self.touch_source(vni, prefix, withdrawn),
            HopKind::Nat(ports) => {
                if withdrawn {
                    self.share_withdrawn(vni, &prefix, ports);
                }
                self.touch_shared(&prefix);
            }
            HopKind::Target => {
                if withdrawn {
                    self.target_withdrawn(vni, &prefix, hop.address);
                }
                self.touch_balancers_at(vni, &prefix);
            }
        }
    }

    /// Marks what a learned route decides: its own place, imports of it and, for the default router, every table.
    fn touch_source(&mut self, vni: Vni, prefix: Prefix, withdrawn: bool) {
        let importers = self.exports.get(&vni).into_iter().flatten().copied();
        let mut tables: Vec<Vni> = importers.chain([vni]).collect();
        if vni == self.settings.public_vni && prefix.len() == 0 {
            tables.extend(self.observed.vnis());
        }
        for vni in tables {
            let key = RouteKey { vni, prefix };
            if withdrawn && self.observed.route(vni, &prefix).is_some() {
                self.withdrawn.insert(key);
            }
            self.route_queue.push(key);
        }
    }

    fn heard(&mut self, vni: Vni, heard: Heard) {
        if !self.subscribed.contains(&vni) || self.rib.heard(vni) == heard {
            return;
        }
        let more = heard > self.rib.heard(vni);
        self.rib.set_heard(vni, heard);
        if !more || heard < Heard::Dumped {
            return;
        }
        if vni == self.settings.public_vni {
            self.touch_all_tables();
        } else {
            self.touch_table(vni);
            self.touch_shares_of(vni);
            self.touch_balancers_of(vni);
            for importer in self.exports.get(&vni).cloned().unwrap_or_default() {
                self.touch_table(importer);
            }
        }
        self.touch_networks_of(vni);
    }

    fn dp_up(&mut self, instance: Option<String>) {
        self.service = Lane {
            busy: self.service.busy,
            ..Lane::default()
        };
        self.phase = match &instance {
            None => Phase::Fresh,
            Some(_) => Phase::Stale,
        };
        self.see_instance(instance);
    }

    pub(super) fn see_instance(&mut self, instance: Option<String>) {
        if instance.is_some() && instance != self.instance {
            self.instances_seen += 1;
            self.instance = instance;
        }
    }
}
