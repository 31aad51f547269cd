//! Load balancers with their targets, and the prefixes that interfaces serve as targets.

use super::Engine;
use crate::error::ConfigError;
use crate::flow::key::Scope;
use crate::history::Change;
use crate::maglev::{Maglev, TargetError};
use crate::objects::LoadBalancerSpec;
use crate::services::Balancer;
use crate::underlay::{Endpoint, HostPart, UnderlayKind};
use crate::verdict::PortId;
use core::net::{IpAddr, Ipv6Addr};
use net::Prefix;
use std::sync::Arc;

impl Engine {
    /// Creates a load balancer without targets and returns the underlay address at which its traffic arrives.
    pub fn create_load_balancer(
        &mut self,
        spec: LoadBalancerSpec,
    ) -> Result<Ipv6Addr, ConfigError> {
        let LoadBalancerSpec {
            id,
            vni,
            address,
            ports,
            preferred_underlay,
        } = spec;
        let underlay = self.choose_underlay(preferred_underlay, UnderlayKind::LoadBalancer)?;
        if self.balancers.contains_key(&id) || self.tables.services.balancer(vni, address).is_some()
        {
            return Err(ConfigError::AlreadyExists);
        }
        if self.balancers.len() >= self.limits.load_balancers_max as usize {
            return Err(ConfigError::OutOfMemory);
        }
        let slot = self.vni_slot_for(vni)?;
        self.acquire_vni(vni, slot);
        self.balancers.insert(id.clone(), (vni, address));
        let endpoint = Endpoint {
            port: self.uplink_port(),
            scope: Scope::balanced(vni),
            vni,
            kind: UnderlayKind::LoadBalancer,
            prefix: None,
        };
        let balancer = Arc::new(Balancer {
            id,
            vni,
            address,
            ports,
            underlay,
            targets: Maglev::default(),
        });
        let tables = self.edit(Change::Address { vni, address });
        tables.underlay.insert(HostPart::of(underlay), endpoint);
        tables.services.edit(vni, |network| {
            network.balancers.insert(address, balancer);
        });
        Ok(underlay)
    }

    /// The uplink that load balancers are bound to.
    fn uplink_port(&self) -> PortId {
        let uplinks = self.tables.uplinks.iter().flatten();
        uplinks.map(|uplink| uplink.port).next().unwrap_or_default()
    }

    fn balancer(&self, id: &str) -> Option<&Arc<Balancer>> {
        let (vni, address) = self.balancers.get(id)?;
        self.tables.services.balancer(*vni, *address)
    }

    /// A load balancer as it was asked for, with its underlay address.
    pub fn load_balancer(&self, id: &str) -> Result<LoadBalancerSpec, ConfigError> {
        self.balancer(id)
            .map(|balancer| show(balancer))
            .ok_or(ConfigError::NotFound)
    }

    /// All load balancers by id.
    pub fn load_balancers(&self) -> impl Iterator<Item = LoadBalancerSpec> {
        self.balancers
            .keys()
            .filter_map(|id| Some(show(self.balancer(id)?)))
    }

    /// Removes a load balancer with its targets.
    pub fn delete_load_balancer(&mut self, id: &str) -> Result<(), ConfigError> {
        let balancer = self.balancer(id).ok_or(ConfigError::NotFound)?;
        let (vni, address, underlay) = (balancer.vni, balancer.address, balancer.underlay);
        self.balancers.remove(id);
        self.edit(Change::Endpoints)
            .underlay
            .remove(HostPart::of(underlay));
        let tables = self.edit(Change::Address { vni, address });
        tables.services.edit(vni, |network| {
            network.balancers.remove(&address);
        });
        self.release_vni(vni);
        Ok(())
    }

    /// Adds a target: the underlay address of a prefix that a machine somewhere serves.
    pub fn create_load_balancer_target(
        &mut self,
        id: &str,
        target: IpAddr,
    ) -> Result<(), ConfigError> {
        let (target, mut targets) = self.target_and_others(id, target)?;
        if target.is_unspecified() && targets.targets().len() < crate::maglev::MAGLEV_TARGETS_MAX {
            // The protocol's encoding of a free place.
            return Err(ConfigError::AlreadyExists);
        }
        targets.add(target).map_err(|error| match error {
            TargetError::Exists => ConfigError::AlreadyExists,
            TargetError::Full => ConfigError::BackipAdd,
        })?;
        self.set_targets(id, targets);
        Ok(())
    }

    /// Removes a target. Connections directed to it are directed elsewhere with their next packet.
    pub fn delete_load_balancer_target(
        &mut self,
        id: &str,
        target: IpAddr,
    ) -> Result<(), ConfigError> {
        let (target, mut targets) = self.target_and_others(id, target)?;
        if !targets.remove(target) {
            return Err(ConfigError::NotFound);
        }
        self.set_targets(id, targets);
        Ok(())
    }

    /// A target as the table holds it, and a copy of the table.
    fn target_and_others(
        &self,
        id: &str,
        target: IpAddr,
    ) -> Result<(Ipv6Addr, Maglev), ConfigError> {
        let IpAddr::V6(target) = target else {
            return Err(ConfigError::BadIpVersion);
        };
        let balancer = self.balancer(id).ok_or(ConfigError::NoLb)?;
        Ok((target, balancer.targets.clone()))
    }

    fn set_targets(&mut self, id: &str, targets: Maglev) {
        let Some((vni, address)) = self.balancers.get(id).copied() else {
            return;
        };
        let tables = self.edit(Change::Targets { vni, address });
        tables.services.edit(vni, |network| {
            if let Some(balancer) = network.balancers.get_mut(&address) {
                Arc::make_mut(balancer).targets = targets;
            }
        });
    }

    /// Targets of a load balancer, ascending; of all, in the order of their ids, for the empty id.
    pub fn load_balancer_targets(&self, id: &str) -> Result<Vec<Ipv6Addr>, ConfigError> {
        if id.is_empty() {
            let all = self.balancers.keys().filter_map(|id| self.balancer(id));
            return Ok(all
                .flat_map(|balancer| balancer.targets.targets().iter().copied())
                .collect());
        }
        let balancer = self.balancer(id).ok_or(ConfigError::NoLb)?;
        Ok(balancer.targets.targets().to_vec())
    }

    /// Lets an interface serve a prefix as target of load balancers; returns the prefix's underlay address. There is no route to it.
    pub fn create_lb_prefix(
        &mut self,
        id: &str,
        address: IpAddr,
        length: u8,
        preferred_underlay: Option<Ipv6Addr>,
    ) -> Result<Ipv6Addr, ConfigError> {
        let (port, vni, _) = self.dependent(id)?;
        let prefix = Prefix::new(address, length).ok_or(ConfigError::RouteInsert)?;
        let served = &self.services_of(id)?.lb_prefixes;
        if served.iter().any(|(other, _)| *other == prefix) {
            return Err(ConfigError::AlreadyExists);
        }
        let underlay = self.choose_underlay(preferred_underlay, UnderlayKind::LbPrefix)?;
        let endpoint = Endpoint::machine(port, vni, UnderlayKind::LbPrefix, Some(prefix));
        self.edit_port_services(port, |services| {
            services.lb_prefixes.push((prefix, underlay));
        });
        self.edit(Change::Nothing)
            .underlay
            .insert(HostPart::of(underlay), endpoint);
        Ok(underlay)
    }

    /// Ends that.
    pub fn delete_lb_prefix(
        &mut self,
        id: &str,
        address: IpAddr,
        length: u8,
    ) -> Result<(), ConfigError> {
        let (port, _, _) = self.dependent(id)?;
        let prefix = Prefix::new(address, length).ok_or(ConfigError::NotFound)?;
        let served = &self.services_of(id)?.lb_prefixes;
        let found = served.iter().find(|(other, _)| *other == prefix);
        let (_, underlay) = *found.ok_or(ConfigError::NotFound)?;
        self.edit_port_services(port, |services| {
            services.lb_prefixes.retain(|(other, _)| *other != prefix);
        });
        self.edit(Change::Endpoints)
            .underlay
            .remove(HostPart::of(underlay));
        Ok(())
    }

    /// Prefixes that an interface serves, with their underlay addresses, in order of creation.
    pub fn lb_prefixes(&self, id: &str) -> Result<&[(Prefix, Ipv6Addr)], ConfigError> {
        Ok(&self.services_of(id)?.lb_prefixes)
    }
}

fn show(balancer: &Balancer) -> LoadBalancerSpec {
    let Balancer {
        id,
        vni,
        address,
        ports,
        underlay,
        targets: _,
    } = balancer;
    LoadBalancerSpec {
        id: id.clone(),
        vni: *vni,
        address: *address,
        ports: ports.clone(),
        preferred_underlay: Some(*underlay),
    }
}
