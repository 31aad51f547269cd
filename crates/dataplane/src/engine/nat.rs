//! VIPs, network NAT, and the shares of NAT addresses that belong to other hosts.

use super::Engine;
use crate::error::ConfigError;
use crate::history::Change;
use crate::jhash::jhash;
use crate::objects::{LocalNat, Nat, NeighborNat, Vip};
use crate::services::PortServices;
use crate::underlay::{Endpoint, HostPart, UnderlayKind};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use net::{PortRange, Vni};

/// Buckets of the table whose order [`Engine::local_nats`] reproduces: clients that compare lists rely on it.
const LIST_BUCKETS: u32 = 1_024;

impl Engine {
    /// Gives an interface an address of its own for traffic that leaves by a default route.
    pub fn create_vip(
        &mut self,
        id: &str,
        address: IpAddr,
        preferred_underlay: Option<Ipv6Addr>,
    ) -> Result<Ipv6Addr, ConfigError> {
        let (port, vni, _) = self.dependent(id)?;
        let IpAddr::V4(address) = address else {
            return Err(ConfigError::BadIpVersion);
        };
        let underlay = self.choose_underlay(preferred_underlay, UnderlayKind::Vip)?;
        let attached = self.attached(port).ok_or(ConfigError::NoVm)?;
        if attached.services.vip.is_some() {
            return Err(ConfigError::SnatExists);
        }
        if self.tables.services.translated(vni, address).is_some() {
            return Err(ConfigError::DnatExists);
        }
        // A machine without IPv4 can have one, but nothing is ever translated for it.
        let machine = attached.interface.spec.ipv4;
        let vip = Vip { address, underlay };
        self.edit_port_services(port, |services| services.vip = Some(vip));
        let tables = self.edit(changed(vni, address));
        let endpoint = Endpoint::machine(port, vni, UnderlayKind::Vip, None);
        tables.underlay.insert(HostPart::of(underlay), endpoint);
        tables.services.edit_translated(vni, address, |translated| {
            translated.vip = Some((port, machine.unwrap_or(Ipv4Addr::UNSPECIFIED)));
        });
        Ok(underlay)
    }

    /// An interface's VIP.
    pub fn vip(&self, id: &str) -> Result<Vip, ConfigError> {
        self.services_of(id)?.vip.ok_or(ConfigError::SnatNoData)
    }

    /// Takes an interface's VIP away. Flows that use it are decided again.
    pub fn delete_vip(&mut self, id: &str) -> Result<(), ConfigError> {
        let (port, vni, _) = self.dependent(id)?;
        let vip = self.vip(id)?;
        self.edit_port_services(port, |services| services.vip = None);
        self.forget_vip(vni, vip);
        Ok(())
    }

    pub(super) fn forget_vip(&mut self, vni: Vni, vip: Vip) {
        self.edit(Change::Endpoints)
            .underlay
            .remove(HostPart::of(vip.underlay));
        self.edit(changed(vni, vip.address))
            .services
            .edit_translated(vni, vip.address, |translated| translated.vip = None);
    }

    /// Gives an interface a share of a NAT address.
    pub fn create_nat(
        &mut self,
        id: &str,
        address: IpAddr,
        ports: PortRange,
        preferred_underlay: Option<Ipv6Addr>,
    ) -> Result<Ipv6Addr, ConfigError> {
        let (port, vni, _) = self.dependent(id)?;
        let IpAddr::V4(address) = address else {
            return Err(ConfigError::BadIpVersion);
        };
        let underlay = self.choose_underlay(preferred_underlay, UnderlayKind::Nat)?;
        if self.services_of(id)?.nat.is_some() {
            return Err(ConfigError::SnatExists);
        }
        let nat = Nat {
            address,
            ports,
            underlay,
        };
        self.edit_port_services(port, |services| services.nat = Some(nat));
        let tables = self.edit(changed(vni, address));
        let endpoint = Endpoint::machine(port, vni, UnderlayKind::Nat, None);
        tables.underlay.insert(HostPart::of(underlay), endpoint);
        tables
            .services
            .edit_translated(vni, address, |translated| translated.local += 1);
        Ok(underlay)
    }

    /// An interface's NAT.
    pub fn nat(&self, id: &str) -> Result<Nat, ConfigError> {
        self.services_of(id)?.nat.ok_or(ConfigError::SnatNoData)
    }

    /// Takes an interface's NAT away. Flows that use it are decided again.
    pub fn delete_nat(&mut self, id: &str) -> Result<(), ConfigError> {
        let (port, vni, _) = self.dependent(id)?;
        let nat = self.nat(id)?;
        self.edit_port_services(port, |services| services.nat = None);
        self.forget_nat(vni, nat);
        Ok(())
    }

    pub(super) fn forget_nat(&mut self, vni: Vni, nat: Nat) {
        self.edit(Change::Endpoints)
            .underlay
            .remove(HostPart::of(nat.underlay));
        self.edit(changed(vni, nat.address))
            .services
            .edit_translated(vni, nat.address, |translated| {
                translated.local = translated.local.saturating_sub(1);
            });
    }

    /// NATs of this host's interfaces with this address, or all for `0.0.0.0`.
    pub fn local_nats(&self, address: IpAddr) -> Result<Vec<LocalNat>, ConfigError> {
        let wanted = only_v4(address)?;
        let mut found: Vec<LocalNat> = self
            .tables
            .ports
            .iter()
            .filter_map(|port| {
                let attached = port.interface.as_ref()?;
                Some(LocalNat {
                    vni: attached.interface.spec.vni,
                    machine: attached
                        .interface
                        .spec
                        .ipv4
                        .unwrap_or(Ipv4Addr::UNSPECIFIED),
                    nat: attached.services.nat?,
                })
            })
            .filter(|found| wanted.is_none_or(|wanted| wanted == found.nat.address))
            .collect();
        found.sort_by_key(|found| list_bucket(found.machine, found.vni));
        Ok(found)
    }

    /// Tells that ports of a NAT address belong to another host.
    pub fn create_neighbor_nat(
        &mut self,
        address: IpAddr,
        vni: Vni,
        ports: PortRange,
        underlay: Ipv6Addr,
    ) -> Result<(), ConfigError> {
        let address = only_v4(address)?.unwrap_or(Ipv4Addr::UNSPECIFIED);
        if self.neighbors.len() >= self.limits.neighbor_nats_max as usize {
            return Err(ConfigError::OutOfMemory);
        }
        // One address is one address, whichever network it is used from.
        let overlaps =
            |other: &NeighborNat| other.address == address && other.ports.overlaps(&ports);
        if self.neighbors.iter().any(overlaps) {
            return Err(ConfigError::AlreadyExists);
        }
        self.neighbors.push(NeighborNat {
            address,
            vni,
            ports,
            underlay,
        });
        let services = &mut self.edit(changed(vni, address)).services;
        services.edit_translated(vni, address, |translated| {
            let neighbors = &mut translated.neighbors;
            let place = neighbors.partition_point(|(other, _)| other.first() < ports.first());
            neighbors.insert(place, (ports, underlay));
        });
        Ok(())
    }

    /// Forgets a share of another host, which must be named exactly.
    pub fn delete_neighbor_nat(
        &mut self,
        address: IpAddr,
        vni: Vni,
        ports: PortRange,
    ) -> Result<(), ConfigError> {
        let address = only_v4(address)?.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let is_it = |other: &NeighborNat| {
            other.address == address && other.vni == vni && other.ports == ports
        };
        let index = self.neighbors.iter().position(is_it);
        self.neighbors.remove(index.ok_or(ConfigError::NotFound)?);
        self.unpublish_neighbor(vni, address, ports);
        Ok(())
    }

    fn unpublish_neighbor(&mut self, vni: Vni, address: Ipv4Addr, ports: PortRange) {
        let services = &mut self.edit(changed(vni, address)).services;
        services.edit_translated(vni, address, |translated| {
            translated.neighbors.retain(|(other, _)| *other != ports);
        });
    }

    /// Shares of other hosts of this address, or all for `0.0.0.0`, in order of creation.
    pub fn neighbor_nats(&self, address: IpAddr) -> Result<Vec<NeighborNat>, ConfigError> {
        let wanted = only_v4(address)?;
        let found = self.neighbors.iter().copied();
        Ok(found
            .filter(|found| wanted.is_none_or(|wanted| wanted == found.address))
            .collect())
    }

    /// Forgets the shares of other hosts in one network, or in all.
    pub(super) fn clear_neighbors(&mut self, vni: Option<Vni>) {
        let goes = |neighbor: &NeighborNat| vni.is_none_or(|vni| vni == neighbor.vni);
        let (gone, kept) = self.neighbors.iter().copied().partition(goes);
        self.neighbors = kept;
        let gone: Vec<NeighborNat> = gone;
        for neighbor in gone {
            self.unpublish_neighbor(neighbor.vni, neighbor.address, neighbor.ports);
        }
    }

    /// The services of the interface that a dependent object names.
    pub(super) fn services_of(&self, id: &str) -> Result<&PortServices, ConfigError> {
        let (port, _, _) = self.dependent(id)?;
        let attached = self.attached(port).ok_or(ConfigError::NoVm)?;
        Ok(&attached.services)
    }
}

/// That an address stands for something else concerns connections to it.
fn changed(vni: Vni, address: Ipv4Addr) -> Change {
    let address = IpAddr::V4(address);
    Change::Address { vni, address }
}

/// `None` for `0.0.0.0`, which stands for "any" in lists.
fn only_v4(address: IpAddr) -> Result<Option<Ipv4Addr>, ConfigError> {
    match address {
        IpAddr::V4(address) => Ok((!address.is_unspecified()).then_some(address)),
        IpAddr::V6(_) => Err(ConfigError::BadIpVersion),
    }
}

/// Where an interface stands in lists: hash bucket of address and VNI, little endian.
fn list_bucket(machine: Ipv4Addr, vni: Vni) -> u32 {
    let [a, b, c, d] = machine.to_bits().to_le_bytes();
    let [e, f, g, h] = vni.get().to_le_bytes();
    jhash(&[a, b, c, d, e, f, g, h]) % LIST_BUCKETS
}
