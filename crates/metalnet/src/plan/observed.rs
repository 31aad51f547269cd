//! What dpservice is known to hold: listed after every (re)connection, then kept up to date by the outcome of each call.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use net::PortRange;

use crate::model::{NicSpec, Prefix, Uid, Vni};
use crate::services::{BalancedPort, BalancerSpec, NatShare, Rule};

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
    pub services: Services,
}

/// What else belongs to an interface, with the underlay addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Services {
    pub vip: Option<(Ipv4Addr, Ipv6Addr)>,
    pub nat: Option<(NatShare, Ipv6Addr)>,
    /// Load balancer addresses served.
    pub targets: BTreeMap<Prefix, Ipv6Addr>,
    /// Rules by id; `None` for one that we would never have written.
    pub rules: BTreeMap<String, Option<Rule>>,
}

impl Services {
    /// Whether the interface uses a public address.
    pub fn uses(&self, address: Ipv4Addr) -> bool {
        self.vip.is_some_and(|(vip, _)| vip == address)
            || self.nat.is_some_and(|(nat, _)| nat.address == address)
    }
}

/// A load balancer in dpservice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balancer {
    pub vni: Vni,
    pub address: IpAddr,
    pub ports: BTreeSet<BalancedPort>,
    /// The underlay address at which its traffic arrives.
    pub underlay: Ipv6Addr,
    pub targets: BTreeSet<Ipv6Addr>,
}

impl Balancer {
    /// Whether it is what `spec` wants in `vni`: nothing of it can be changed in place.
    pub fn matches(&self, spec: &BalancerSpec, vni: Vni) -> bool {
        let BalancerSpec {
            public: _,
            address,
            ports,
        } = spec;
        self.vni == vni && self.address == *address && self.ports == *ports
    }
}

/// Another host's ports of a NAT address, as dpservice identifies them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbor {
    pub vni: Vni,
    pub share: NatShare,
}

/// The ports of one NAT address that other hosts own, by network, with the underlay address of each owner.
pub type Neighbors = BTreeMap<(Vni, PortRange), Ipv6Addr>;

impl Interface {
    /// Whether the fields that cannot be changed in place are as `spec`, `vni` and `device` want them.
    pub fn matches(&self, spec: &NicSpec, vni: Vni, device: &str) -> bool {
        let NicSpec {
            ipv4,
            ipv6,
            prefixes: _,
            public: _,
            total_rate,
            public_rate,
            hostname,
            vip: _,
            nat: _,
            targets: _,
            rules: _,
            problems: _,
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
    balancers: BTreeMap<Uid, Balancer>,
    /// Interfaces and load balancers per VNI: dpservice keeps a VNI's tables as long as one of them uses them.
    users: BTreeMap<Vni, usize>,
    /// Routes to other hosts, by the table they are in.
    routes: BTreeMap<Vni, BTreeMap<Prefix, Installed>>,
    /// Other hosts' shares of NAT addresses.
    neighbors: BTreeMap<Ipv4Addr, Neighbors>,
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

    /// Records an interface; whether it is the first user of its VNI.
    pub fn insert_interface(&mut self, uid: Uid, interface: Interface) -> bool {
        self.remove_interface(&uid);
        let first = self.acquire(interface.vni);
        self.interfaces.insert(uid, interface);
        first
    }

    /// Forgets an interface and, if it was the last user of its VNI, what dpservice dropped with the tables.
    pub fn remove_interface(&mut self, uid: &Uid) -> Option<Interface> {
        let interface = self.interfaces.remove(uid)?;
        self.release(interface.vni);
        Some(interface)
    }

    /// Changes what belongs to an interface.
    pub fn edit_services(&mut self, uid: &Uid, change: impl FnOnce(&mut Services)) {
        if let Some(interface) = self.interfaces.get_mut(uid) {
            change(&mut interface.services);
        }
    }

    /// The load balancer `uid`.
    pub fn balancer(&self, uid: &Uid) -> Option<&Balancer> {
        self.balancers.get(uid)
    }

    /// All load balancers, by id.
    pub fn balancers(&self) -> impl ExactSizeIterator<Item = (&Uid, &Balancer)> {
        self.balancers.iter()
    }

    /// Records a load balancer; whether it is the first user of its VNI.
    pub fn insert_balancer(&mut self, uid: Uid, balancer: Balancer) -> bool {
        self.remove_balancer(&uid);
        let first = self.acquire(balancer.vni);
        self.balancers.insert(uid, balancer);
        first
    }

    /// Forgets a load balancer, as [`Observed::remove_interface`] does.
    pub fn remove_balancer(&mut self, uid: &Uid) -> Option<Balancer> {
        let balancer = self.balancers.remove(uid)?;
        self.release(balancer.vni);
        Some(balancer)
    }

    /// Records or forgets a target of a load balancer.
    pub fn set_target(&mut self, uid: &Uid, target: Ipv6Addr, present: bool) {
        if let Some(balancer) = self.balancers.get_mut(uid) {
            if present {
                balancer.targets.insert(target);
            } else {
                balancer.targets.remove(&target);
            }
        }
    }

    /// Other hosts' shares of a NAT address.
    pub fn neighbors(&self, address: Ipv4Addr) -> Option<&Neighbors> {
        self.neighbors.get(&address)
    }

    /// The NAT addresses of which other hosts have shares.
    pub fn shared_addresses(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.neighbors.keys().copied()
    }

    /// Number of other hosts' shares.
    pub fn neighbors_len(&self) -> usize {
        self.neighbors.values().map(BTreeMap::len).sum()
    }

    /// Records or forgets another host's share.
    pub fn set_neighbor(&mut self, neighbor: Neighbor, underlay: Option<Ipv6Addr>) {
        let Neighbor { vni, share } = neighbor;
        let shares = self.neighbors.entry(share.address).or_default();
        match underlay {
            Some(underlay) => {
                shares.insert((vni, share.ports), underlay);
            }
            None => {
                shares.remove(&(vni, share.ports));
            }
        }
        if shares.is_empty() {
            self.neighbors.remove(&share.address);
        }
    }

    fn acquire(&mut self, vni: Vni) -> bool {
        let users = self.users.entry(vni).or_default();
        *users += 1;
        *users == 1
    }

    fn release(&mut self, vni: Vni) {
        let Some(users) = self.users.get_mut(&vni) else {
            return;
        };
        *users -= 1;
        if *users == 0 {
            self.users.remove(&vni);
            self.routes.remove(&vni);
            for shares in self.neighbors.values_mut() {
                shares.retain(|(user, _), _| *user != vni);
            }
            self.neighbors.retain(|_, shares| !shares.is_empty());
        }
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
