//! The part of a worker's snapshot that services need: which addresses are translated, which are balanced, what an interface owns.
//!
//! Published per virtual network, so that a change copies one network's tables and no other's.

use crate::firewall::Firewall;
use crate::maglev::Maglev;
use crate::meter::TokenBucket;
use crate::objects::{LbPort, Nat, Vip};
use crate::verdict::PortId;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use net::{PortRange, Prefix, Vni};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What belongs to one interface.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortServices {
    pub vip: Option<Vip>,
    pub nat: Option<Nat>,
    /// Prefixes served for load balancers, with their underlay addresses, in order of creation.
    pub lb_prefixes: Vec<(Prefix, Ipv6Addr)>,
    pub firewall: Firewall,
    /// Limit of everything the machine sends.
    pub total_meter: Option<Arc<TokenBucket>>,
    /// Limit of what leaves by a default route.
    pub public_meter: Option<Arc<TokenBucket>>,
}

impl PortServices {
    /// Whether the machine serves this address for a load balancer.
    pub(crate) fn serves(&self, address: IpAddr) -> bool {
        self.lb_prefixes
            .iter()
            .any(|(prefix, _)| prefix.contains(address))
    }
}

/// The tables of one virtual network.
#[derive(Clone, Debug, Default)]
pub(crate) struct VniServices {
    pub translated: BTreeMap<Ipv4Addr, Translated>,
    pub balancers: BTreeMap<IpAddr, Arc<Balancer>>,
}

impl VniServices {
    pub(crate) fn is_empty(&self) -> bool {
        self.translated.is_empty() && self.balancers.is_empty()
    }
}

/// What an IPv4 address stands for in a network. It disappears with its last user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Translated {
    /// The machine it stands for alone.
    pub vip: Option<(PortId, Ipv4Addr)>,
    /// Interfaces of this host with a share of its ports.
    pub local: u32,
    /// Shares of other hosts, ascending, disjoint.
    pub neighbors: Vec<(PortRange, Ipv6Addr)>,
}

impl Translated {
    pub(crate) fn is_unused(&self) -> bool {
        self.vip.is_none() && self.local == 0 && self.neighbors.is_empty()
    }

    /// Whether it stands for the machine on this port.
    pub(crate) fn is_vip_of(&self, machine: PortId) -> bool {
        self.vip.is_some_and(|(port, _)| port == machine)
    }

    /// The host that owns a port.
    pub(crate) fn neighbor(&self, port: u16) -> Option<Ipv6Addr> {
        let behind = self
            .neighbors
            .partition_point(|(ports, _)| ports.first() <= port);
        let (ports, underlay) = self.neighbors.get(behind.checked_sub(1)?)?;
        ports.contains(port).then_some(*underlay)
    }
}

/// A load balancer in force.
#[derive(Clone, Debug)]
pub(crate) struct Balancer {
    pub id: String,
    pub vni: Vni,
    pub address: IpAddr,
    pub ports: Vec<LbPort>,
    pub underlay: Ipv6Addr,
    pub targets: Maglev,
}

impl Balancer {
    /// Whether it serves this port.
    pub(crate) fn serves(&self, protocol: u8, port: u16) -> bool {
        self.ports.contains(&LbPort { protocol, port })
    }
}

/// All networks that have any services.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services {
    networks: Arc<BTreeMap<Vni, Arc<VniServices>>>,
}

impl Services {
    pub(crate) fn network(&self, vni: Vni) -> Option<&VniServices> {
        self.networks.get(&vni).map(Arc::as_ref)
    }

    pub(crate) fn translated(&self, vni: Vni, address: Ipv4Addr) -> Option<&Translated> {
        self.network(vni)?.translated.get(&address)
    }

    pub(crate) fn balancer(&self, vni: Vni, address: IpAddr) -> Option<&Arc<Balancer>> {
        self.network(vni)?.balancers.get(&address)
    }

    /// Changes the tables of a network, which appear and disappear with their content.
    pub(crate) fn edit(&mut self, vni: Vni, change: impl FnOnce(&mut VniServices)) {
        let networks = Arc::make_mut(&mut self.networks);
        let network = Arc::make_mut(networks.entry(vni).or_default());
        change(network);
        if network.is_empty() {
            networks.remove(&vni);
        }
    }

    /// Changes what an address stands for.
    pub(crate) fn edit_translated(
        &mut self,
        vni: Vni,
        address: Ipv4Addr,
        change: impl FnOnce(&mut Translated),
    ) {
        self.edit(vni, |network| {
            let translated = network.translated.entry(address).or_default();
            change(translated);
            if translated.is_unused() {
                network.translated.remove(&address);
            }
        });
    }

    /// Number of translated addresses and of load balancers in all networks.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let networks = self.networks.values();
        networks.fold((0, 0), |(translated, balancers), network| {
            (
                translated + network.translated.len(),
                balancers + network.balancers.len(),
            )
        })
    }
}
