//! A model of dpservice: its tables and refusals, without packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use metalnet::model::{Prefix, Uid, Vni};
use metalnet::plan::observed::{Hop, Installed, Interface, Observed};
use metalnet::plan::ops::{DpDone, DpError, DpOp, InterfaceRequest};

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
    pub devices: BTreeSet<String>,
    /// IPv6 routes are missing from lists, as in the reference implementation.
    pub hide_ipv6_routes: bool,
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
        }
    }

    pub fn inventory(&self) -> Observed {
        let mut observed = Observed::default();
        for (uid, interface) in &self.interfaces {
            observed.insert_interface(uid.clone(), interface.clone());
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
        };
        self.interfaces.insert(uid.clone(), interface);
        Ok(DpDone::Underlay(underlay))
    }

    fn delete_interface(&mut self, uid: &Uid) -> Result<DpDone, DpError> {
        self.calls.push("DeleteInterface");
        let Some(interface) = self.interfaces.remove(uid) else {
            return Err(code(201, "NOT_FOUND"));
        };
        assert!(
            interface.prefixes.is_empty(),
            "{uid} was deleted with prefixes, which dpservice would leak"
        );
        if self
            .interfaces
            .values()
            .any(|other| other.vni == interface.vni)
        {
            let table = self.tables.entry(interface.vni).or_default();
            table.retain(|_, owner| *owner != Owner::Interface(uid.clone()));
        } else {
            self.tables.remove(&interface.vni);
        }
        Ok(DpDone::Done)
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
