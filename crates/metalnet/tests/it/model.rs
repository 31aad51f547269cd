//! A model of dpservice: its tables and refusals, without packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use metalnet::model::{Prefix, Uid, Vni};
use metalnet::plan::observed::{
    Balancer, Hop, Installed, Interface, Neighbor, Neighbors, Observed, Services,
};
use metalnet::plan::ops::{
    BalancerRequest, DpDone, DpError, DpOp, InterfaceRequest, Part, RULE_CHANGING,
};
use metalnet::services::{BALANCER_TARGETS_MAX, NatShare, Rule};

/// Who occupies a prefix of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Interface(Uid),
    Alias(Uid),
    Remote(Hop),
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Changes with every restart.
    pub generation: u64,
    pub initialized: bool,
    pub interfaces: BTreeMap<Uid, Interface>,
    pub tables: BTreeMap<Vni, BTreeMap<Prefix, Owner>>,
    pub balancers: BTreeMap<Uid, Balancer>,
    pub neighbors: BTreeMap<Ipv4Addr, Neighbors>,
    pub devices: BTreeSet<String>,
    /// IPv6 routes are missing from lists, as in the reference implementation.
    pub hide_ipv6_routes: bool,
    /// Interfaces come without the rules that they were asked for with, as from a dpservice that cannot do both at once.
    pub rules_apart: bool,
    counter: u64,
    /// Every call that was carried out, by name.
    pub calls: Vec<&'static str>,
}

fn code(code: u32, message: &str) -> DpError {
    DpError::Code {
        code,
        message: message.to_owned(),
    }
}

impl Model {
    pub fn new(devices: u32) -> Self {
        let devices = (0..devices).map(|k| format!("net_tap{}", k + 2)).collect();
        Self {
            generation: 1,
            devices,
            ..Self::default()
        }
    }

    pub fn uuid(&self) -> String {
        format!("00000000-0000-4000-8000-{:012X}", self.generation)
    }

    /// A new process: everything is gone, and underlay addresses will be others.
    pub fn restart(&mut self) {
        self.generation += 1;
        self.initialized = false;
        self.interfaces.clear();
        self.tables.clear();
        self.balancers.clear();
        self.neighbors.clear();
    }

    fn underlay(&mut self) -> Ipv6Addr {
        self.counter += 1;
        let [a, b, c, d] = (self.counter as u32).to_be_bytes();
        let word = |high, low| u16::from_be_bytes([high, low]);
        Ipv6Addr::new(
            0xfc00,
            1,
            0,
            self.generation as u16,
            0xd000,
            0,
            word(a, b),
            word(c, d),
        )
    }

    pub fn remote_routes(&self) -> BTreeMap<(Vni, Prefix), Hop> {
        let mut routes = BTreeMap::new();
        for (vni, table) in &self.tables {
            for (prefix, owner) in table {
                if let Owner::Remote(hop) = owner {
                    routes.insert((*vni, *prefix), *hop);
                }
            }
        }
        routes
    }

    pub fn execute(&mut self, op: &DpOp) -> Result<DpDone, DpError> {
        if !self.initialized && !matches!(op, DpOp::Initialize) {
            return Err(DpError::Uninitialized);
        }
        match op {
            DpOp::Initialize => {
                self.calls.push("Initialize");
                self.initialized = true;
                for table in self.tables.values_mut() {
                    table.retain(|_, owner| matches!(owner, Owner::Interface(_)));
                }
                self.neighbors.clear();
                Ok(DpDone::Instance(self.uuid()))
            }
            DpOp::List => {
                self.calls.push("List");
                Ok(DpDone::Inventory(Box::new(self.inventory())))
            }
            DpOp::CreateInterface { uid, request } => self.create_interface(uid, request),
            DpOp::DeleteInterface { uid } => self.delete_interface(uid),
            DpOp::CreatePrefix { uid, prefix } => self.create_prefix(uid, *prefix),
            DpOp::DeletePrefix { uid, prefix } => self.delete_prefix(uid, *prefix),
            DpOp::CreateRoute { key, hop } => self.create_route(key.vni, key.prefix, *hop),
            DpOp::ReplaceRoute { key, hop } => {
                match self.delete_route(key.vni, key.prefix) {
                    Err(error) if error.code() != Some(302) => return Err(error),
                    Ok(_) | Err(_) => {}
                }
                self.create_route(key.vni, key.prefix, *hop)
            }
            DpOp::DeleteRoute { key } => self.delete_route(key.vni, key.prefix),
            DpOp::CreatePart { uid, part } => self.create_part(uid, part),
            DpOp::DeleteVip { uid } => {
                self.calls.push("DeleteVip");
                let vip = &mut self.services(uid)?.vip;
                vip.take().ok_or_else(|| code(341, "SNAT_NO_DATA"))?;
                Ok(DpDone::Done)
            }
            DpOp::DeleteNat { uid } => {
                self.calls.push("DeleteNat");
                let nat = &mut self.services(uid)?.nat;
                nat.take().ok_or_else(|| code(341, "SNAT_NO_DATA"))?;
                Ok(DpDone::Done)
            }
            DpOp::DeleteTargetPrefix { uid, prefix } => {
                self.calls.push("DeleteLoadBalancerPrefix");
                let removed = self.services(uid)?.targets.remove(prefix);
                removed.ok_or_else(|| code(201, "NOT_FOUND"))?;
                Ok(DpDone::Done)
            }
            DpOp::DeleteRule { uid, id } => self.delete_rule(uid, id),
            DpOp::ReplaceRule { uid, id, rule } => {
                let _ = self.delete_rule(uid, RULE_CHANGING);
                self.create_rule(uid, RULE_CHANGING, rule)?;
                let _ = self.delete_rule(uid, id);
                self.create_rule(uid, id, rule)?;
                self.delete_rule(uid, RULE_CHANGING)
            }
            DpOp::CreateBalancer { uid, request } => self.create_balancer(uid, request),
            DpOp::DeleteBalancer { uid } => {
                self.calls.push("DeleteLoadBalancer");
                let removed = self.balancers.remove(uid);
                let removed = removed.ok_or_else(|| code(201, "NOT_FOUND"))?;
                self.release(removed.vni);
                Ok(DpDone::Done)
            }
            DpOp::CreateTarget { uid, target } => {
                self.calls.push("CreateLoadBalancerTarget");
                let balancer = self.balancers.get_mut(uid);
                let targets = &mut balancer.ok_or_else(|| code(422, "NO_LB"))?.targets;
                if targets.len() >= BALANCER_TARGETS_MAX {
                    return Err(code(423, "BACKIP_ADD"));
                }
                if !targets.insert(*target) {
                    return Err(code(202, "ALREADY_EXISTS"));
                }
                Ok(DpDone::Done)
            }
            DpOp::DeleteTarget { uid, target } => {
                self.calls.push("DeleteLoadBalancerTarget");
                let balancer = self.balancers.get_mut(uid);
                let targets = &mut balancer.ok_or_else(|| code(422, "NO_LB"))?.targets;
                if !targets.remove(target) {
                    return Err(code(201, "NOT_FOUND"));
                }
                Ok(DpDone::Done)
            }
            DpOp::CreateNeighbor { neighbor, underlay } => {
                self.create_neighbor(*neighbor, *underlay)
            }
            DpOp::ReplaceNeighbor { neighbor, underlay } => {
                let _ = self.delete_neighbor(*neighbor);
                self.create_neighbor(*neighbor, *underlay)
            }
            DpOp::DeleteNeighbor { neighbor } => self.delete_neighbor(*neighbor),
        }
    }

    pub fn inventory(&self) -> Observed {
        let mut observed = Observed::default();
        for (uid, interface) in &self.interfaces {
            observed.insert_interface(uid.clone(), interface.clone());
        }
        for (uid, balancer) in &self.balancers {
            observed.insert_balancer(uid.clone(), balancer.clone());
        }
        for (address, shares) in &self.neighbors {
            for ((vni, ports), underlay) in shares {
                let share = NatShare {
                    address: *address,
                    ports: *ports,
                };
                observed.set_neighbor(Neighbor { vni: *vni, share }, Some(*underlay));
            }
        }
        for ((vni, prefix), hop) in self.remote_routes() {
            if !(self.hide_ipv6_routes && prefix.address().is_ipv6()) {
                observed.set_route(vni, prefix, Some(Installed::Hop(hop)));
            }
        }
        observed
    }

    fn create_interface(
        &mut self,
        uid: &Uid,
        request: &InterfaceRequest,
    ) -> Result<DpDone, DpError> {
        self.calls.push("CreateInterface");
        let InterfaceRequest {
            vni,
            device,
            ipv4,
            ipv6,
            total_rate,
            public_rate,
            hostname,
            rules,
        } = request.clone();
        if !self.devices.contains(&device) {
            return Err(code(201, "NOT_FOUND"));
        }
        if self.interfaces.values().any(|other| other.device == device) {
            return Err(code(202, "ALREADY_EXISTS"));
        }
        if self.interfaces.contains_key(uid) {
            return Err(code(402, "VM_HANDLE"));
        }
        let hosts: Vec<Prefix> = ipv4
            .map(|a| Prefix::host(a.into()))
            .into_iter()
            .chain(ipv6.map(|a| Prefix::host(a.into())))
            .collect();
        let table = self.tables.entry(vni).or_default();
        if hosts.iter().any(|host| table.contains_key(host)) {
            return Err(code(301, "ROUTE_EXISTS"));
        }
        for host in hosts {
            table.insert(host, Owner::Interface(uid.clone()));
        }
        let underlay = self.underlay();
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
            services: Services::default(),
        };
        let interface = self.interfaces.entry(uid.clone()).or_insert(interface);
        if self.rules_apart || rules.is_empty() {
            return Ok(DpDone::Underlay(underlay));
        }
        let rules = rules.into_iter().map(|(id, rule)| (id, Some(rule)));
        interface.services.rules = rules.collect();
        Ok(DpDone::Guarded(underlay))
    }

    fn delete_interface(&mut self, uid: &Uid) -> Result<DpDone, DpError> {
        self.calls.push("DeleteInterface");
        let Some(interface) = self.interfaces.remove(uid) else {
            return Err(code(201, "NOT_FOUND"));
        };
        let services = &interface.services;
        assert!(
            interface.prefixes.is_empty()
                && services.targets.is_empty()
                && services.vip.is_none()
                && services.nat.is_none(),
            "{uid} was deleted with what dpservice would leak"
        );
        let table = self.tables.entry(interface.vni).or_default();
        table.retain(|_, owner| *owner != Owner::Interface(uid.clone()));
        self.release(interface.vni);
        Ok(DpDone::Done)
    }

    /// The tables of a VNI go with its last user, and other hosts' shares with them.
    fn release(&mut self, vni: Vni) {
        let interfaces = self.interfaces.values().map(|interface| interface.vni);
        let balancers = self.balancers.values().map(|balancer| balancer.vni);
        if interfaces.chain(balancers).any(|user| user == vni) {
            return;
        }
        self.tables.remove(&vni);
        for shares in self.neighbors.values_mut() {
            shares.retain(|(user, _), _| *user != vni);
        }
        self.neighbors.retain(|_, shares| !shares.is_empty());
    }

    fn services(&mut self, uid: &Uid) -> Result<&mut Services, DpError> {
        let interface = self.interfaces.get_mut(uid);
        let interface = interface.ok_or_else(|| code(205, "NO_VM"))?;
        Ok(&mut interface.services)
    }

    fn create_part(&mut self, uid: &Uid, part: &Part) -> Result<DpDone, DpError> {
        let vni = self.interfaces.get(uid).map(|interface| interface.vni);
        let vni = vni.ok_or_else(|| code(205, "NO_VM"))?;
        match part {
            Part::Vip(address) => {
                self.calls.push("CreateVip");
                if self.services(uid)?.vip.is_some() {
                    return Err(code(343, "SNAT_EXISTS"));
                }
                let shares = self.neighbors.get(address);
                let shared =
                    shares.is_some_and(|shares| shares.keys().any(|(user, _)| *user == vni));
                let mut others = self.interfaces.values();
                if shared || others.any(|other| other.vni == vni && other.services.uses(*address)) {
                    return Err(code(323, "DNAT_EXISTS"));
                }
                let underlay = self.underlay();
                self.services(uid)?.vip = Some((*address, underlay));
                Ok(DpDone::Underlay(underlay))
            }
            Part::Nat(share) => {
                self.calls.push("CreateNat");
                if self.services(uid)?.nat.is_some() {
                    return Err(code(343, "SNAT_EXISTS"));
                }
                let underlay = self.underlay();
                self.services(uid)?.nat = Some((*share, underlay));
                Ok(DpDone::Underlay(underlay))
            }
            Part::Target(prefix) => {
                self.calls.push("CreateLoadBalancerPrefix");
                if self.services(uid)?.targets.contains_key(prefix) {
                    return Err(code(202, "ALREADY_EXISTS"));
                }
                let underlay = self.underlay();
                self.services(uid)?.targets.insert(*prefix, underlay);
                Ok(DpDone::Underlay(underlay))
            }
            Part::Rule { id, rule } => self.create_rule(uid, id, rule),
        }
    }

    fn create_rule(&mut self, uid: &Uid, id: &str, rule: &Rule) -> Result<DpDone, DpError> {
        self.calls.push("CreateFirewallRule");
        let rules = &mut self.services(uid)?.rules;
        if rules.contains_key(id) {
            return Err(code(202, "ALREADY_EXISTS"));
        }
        rules.insert(id.to_owned(), Some(*rule));
        Ok(DpDone::Done)
    }

    fn delete_rule(&mut self, uid: &Uid, id: &str) -> Result<DpDone, DpError> {
        self.calls.push("DeleteFirewallRule");
        let removed = self.services(uid)?.rules.remove(id);
        removed.ok_or_else(|| code(201, "NOT_FOUND"))?;
        Ok(DpDone::Done)
    }

    fn create_balancer(&mut self, uid: &Uid, request: &BalancerRequest) -> Result<DpDone, DpError> {
        self.calls.push("CreateLoadBalancer");
        let BalancerRequest {
            vni,
            address,
            ports,
        } = request.clone();
        let taken = |(id, other): (&Uid, &Balancer)| {
            id == uid || (other.vni == vni && other.address == address)
        };
        if self.balancers.iter().any(taken) {
            return Err(code(202, "ALREADY_EXISTS"));
        }
        self.tables.entry(vni).or_default();
        let underlay = self.underlay();
        let balancer = Balancer {
            vni,
            address,
            ports,
            underlay,
            targets: BTreeSet::new(),
        };
        self.balancers.insert(uid.clone(), balancer);
        Ok(DpDone::Underlay(underlay))
    }

    fn create_neighbor(
        &mut self,
        neighbor: Neighbor,
        underlay: Ipv6Addr,
    ) -> Result<DpDone, DpError> {
        self.calls.push("CreateNeighborNat");
        let Neighbor { vni, share } = neighbor;
        let shares = self.neighbors.entry(share.address).or_default();
        if shares.keys().any(|(_, other)| other.overlaps(&share.ports)) {
            return Err(code(202, "ALREADY_EXISTS"));
        }
        shares.insert((vni, share.ports), underlay);
        Ok(DpDone::Done)
    }

    fn delete_neighbor(&mut self, neighbor: Neighbor) -> Result<DpDone, DpError> {
        self.calls.push("DeleteNeighborNat");
        let Neighbor { vni, share } = neighbor;
        let shares = self.neighbors.entry(share.address).or_default();
        let removed = shares.remove(&(vni, share.ports));
        self.neighbors.retain(|_, shares| !shares.is_empty());
        removed.ok_or_else(|| code(201, "NOT_FOUND"))?;
        Ok(DpDone::Done)
    }

    /// The load balancer with an address, if there is one.
    pub fn balancer_at(&self, address: &str) -> Option<&Balancer> {
        let address: IpAddr = address.parse().unwrap();
        let mut balancers = self.balancers.values();
        balancers.find(|balancer| balancer.address == address)
    }

    fn create_prefix(&mut self, uid: &Uid, prefix: Prefix) -> Result<DpDone, DpError> {
        self.calls.push("CreatePrefix");
        let Some(vni) = self.interfaces.get(uid).map(|interface| interface.vni) else {
            return Err(code(205, "NO_VM"));
        };
        let table = self.tables.entry(vni).or_default();
        if table.contains_key(&prefix) {
            return Err(code(301, "ROUTE_EXISTS"));
        }
        table.insert(prefix, Owner::Alias(uid.clone()));
        let underlay = self.underlay();
        if let Some(interface) = self.interfaces.get_mut(uid) {
            interface.prefixes.insert(prefix, underlay);
        }
        Ok(DpDone::Underlay(underlay))
    }

    fn delete_prefix(&mut self, uid: &Uid, prefix: Prefix) -> Result<DpDone, DpError> {
        self.calls.push("DeletePrefix");
        let Some(interface) = self.interfaces.get_mut(uid) else {
            return Err(code(205, "NO_VM"));
        };
        if interface.prefixes.remove(&prefix).is_none() {
            return Err(code(302, "ROUTE_NOT_FOUND"));
        }
        let vni = interface.vni;
        self.tables.entry(vni).or_default().remove(&prefix);
        Ok(DpDone::Done)
    }

    fn create_route(&mut self, vni: Vni, prefix: Prefix, hop: Hop) -> Result<DpDone, DpError> {
        self.calls.push("CreateRoute");
        let Some(table) = self.tables.get_mut(&vni) else {
            return Err(code(206, "NO_VNI"));
        };
        if table.contains_key(&prefix) {
            return Err(code(301, "ROUTE_EXISTS"));
        }
        table.insert(prefix, Owner::Remote(hop));
        Ok(DpDone::Done)
    }

    fn delete_route(&mut self, vni: Vni, prefix: Prefix) -> Result<DpDone, DpError> {
        self.calls.push("DeleteRoute");
        let Some(table) = self.tables.get_mut(&vni) else {
            return Err(code(206, "NO_VNI"));
        };
        match table.get(&prefix) {
            None => Err(code(302, "ROUTE_NOT_FOUND")),
            Some(Owner::Interface(_) | Owner::Alias(_)) => Err(code(304, "ROUTE_BAD_PORT")),
            Some(Owner::Remote(_)) => {
                table.remove(&prefix);
                Ok(DpDone::Done)
            }
        }
    }
}
