//! What dpservice is known to hold: listed after every (re)connection, then kept up to date by the outcome of each call.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::model::{NicSpec, Prefix, Uid, Vni};

/// Next hop of a route: the underlay address to tunnel to, and the VNI the packet is in on the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop {
    pub vni: Vni,
    pub address: Ipv6Addr,
}

/// A route that occupies a prefix in dpservice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    Hop(Hop),
    /// dpservice said the prefix is taken, but nobody knows by what: it was not in the list.
    Unknown,
}

/// An interface in dpservice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub vni: Vni,
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    /// dpservice's name of the device.
    pub device: String,
    pub total_rate: u64,
    pub public_rate: u64,
    pub hostname: String,
    /// The underlay address that reaches this interface.
    pub underlay: Ipv6Addr,
    /// Alias prefixes with the underlay address of each.
    pub prefixes: BTreeMap<Prefix, Ipv6Addr>,
}

impl Interface {
    /// Whether the fields that cannot be changed in place are as `spec`, `vni` and `device` want them.
    pub fn matches(&self, spec: &NicSpec, vni: Vni, device: &str) -> bool {
        let NicSpec {
            ipv4,
            ipv6,
            prefixes: _,
            total_rate,
            public_rate,
            hostname,
        } = spec;
        self.vni == vni
            && self.device == device
            && self.ipv4 == *ipv4
            && self.ipv6 == *ipv6
            && self.total_rate == *total_rate
            && self.public_rate == *public_rate
            && self.hostname == *hostname
    }

    /// Every prefix this interface owns in its VNI, with the underlay address that reaches it.
    pub fn owned(&self) -> impl Iterator<Item = (Prefix, Ipv6Addr)> + '_ {
        let v4 = self.ipv4.map(|a| Prefix::host(a.into()));
        let v6 = self.ipv6.map(|a| Prefix::host(a.into()));
        let hosts = v4
            .into_iter()
            .chain(v6)
            .map(|prefix| (prefix, self.underlay));
        hosts.chain(
            self.prefixes
                .iter()
                .map(|(prefix, underlay)| (*prefix, *underlay)),
        )
    }
}

/// The inventory of one dpservice instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    interfaces: BTreeMap<Uid, Interface>,
    /// Interfaces per VNI: dpservice keeps a VNI's tables as long as an interface uses them.
    users: BTreeMap<Vni, usize>,
    /// Routes to other hosts, by the table they are in.
    routes: BTreeMap<Vni, BTreeMap<Prefix, Installed>>,
}

impl Observed {
    /// Whether dpservice has tables for `vni`.
    pub fn uses_vni(&self, vni: Vni) -> bool {
        self.users.contains_key(&vni)
    }

    /// The VNIs for which dpservice has tables.
    pub fn vnis(&self) -> impl Iterator<Item = Vni> + '_ {
        self.users.keys().copied()
    }

    /// The interface `uid`.
    pub fn interface(&self, uid: &Uid) -> Option<&Interface> {
        self.interfaces.get(uid)
    }

    /// All interfaces, by id.
    pub fn interfaces(&self) -> impl ExactSizeIterator<Item = (&Uid, &Interface)> {
        self.interfaces.iter()
    }

    /// Records an interface; whether it is the first of its VNI.
    pub fn insert_interface(&mut self, uid: Uid, interface: Interface) -> bool {
        self.remove_interface(&uid);
        let users = self.users.entry(interface.vni).or_default();
        *users += 1;
        let first = *users == 1;
        self.interfaces.insert(uid, interface);
        first
    }

    /// Forgets an interface and, if it was the last of its VNI, the routes that dpservice dropped with the tables.
    pub fn remove_interface(&mut self, uid: &Uid) -> Option<Interface> {
        let interface = self.interfaces.remove(uid)?;
        if let Some(users) = self.users.get_mut(&interface.vni) {
            *users -= 1;
            if *users == 0 {
                self.users.remove(&interface.vni);
                self.routes.remove(&interface.vni);
            }
        }
        Some(interface)
    }

    /// Records (`Some`) or forgets an alias prefix of an interface.
    pub fn set_prefix(&mut self, uid: &Uid, prefix: Prefix, underlay: Option<Ipv6Addr>) {
        if let Some(interface) = self.interfaces.get_mut(uid) {
            match underlay {
                Some(underlay) => interface.prefixes.insert(prefix, underlay),
                None => interface.prefixes.remove(&prefix),
            };
        }
    }

    /// The route that occupies `prefix` in table `vni`.
    pub fn route(&self, vni: Vni, prefix: &Prefix) -> Option<Installed> {
        self.routes.get(&vni)?.get(prefix).copied()
    }

    /// The routes of one table.
    pub fn routes(&self, vni: Vni) -> impl Iterator<Item = (Prefix, Installed)> + '_ {
        self.routes
            .get(&vni)
            .into_iter()
            .flatten()
            .map(|(prefix, installed)| (*prefix, *installed))
    }

    /// Number of routes in all tables.
    pub fn routes_len(&self) -> usize {
        self.routes.values().map(BTreeMap::len).sum()
    }

    /// Records or forgets the route at `prefix` in table `vni`.
    pub fn set_route(&mut self, vni: Vni, prefix: Prefix, installed: Option<Installed>) {
        match installed {
            Some(installed) => {
                self.routes
                    .entry(vni)
                    .or_default()
                    .insert(prefix, installed);
            }
            None => {
                if let Some(table) = self.routes.get_mut(&vni) {
                    table.remove(&prefix);
                    if table.is_empty() {
                        self.routes.remove(&vni);
                    }
                }
            }
        }
    }
}
