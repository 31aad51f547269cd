//! The configuration side: every request of the control protocol that changes what packets meet.
//!
//! A request is checked completely before anything is edited, so a refused one leaves no trace.

mod balancer;
mod capture;
mod explain;
mod firewall;
mod inspect;
mod nat;
mod vnis;

use crate::config::{EngineConfig, Interface, InterfaceSpec, Limits, PortKind, Route};
use crate::error::ConfigError;
use crate::history::{Change, History};
use crate::meter::TokenBucket;
use crate::objects::NeighborNat;
use crate::owner::Sorter;
use crate::packet::Packet;
use crate::periodic::Periodic;
use crate::route_lookup::WCMP_SLOTS;
use crate::services::{PortServices, Services};
use crate::tables::{
    Attached, Learned, Port, Settings, Tables, Target, UPLINKS, Uplink, VniRoutes,
};
use crate::time::Instant;
use crate::underlay::{AddressGenerator, Endpoint, HostPart, UnderlayKind, UnderlayTable};
use crate::verdict::{PortId, Verdict};
use crate::worker::Worker;
use core::net::{IpAddr, Ipv6Addr};
use net::{Mac, Prefix, Vni};
use std::collections::BTreeMap;
use std::sync::Arc;

pub use explain::{Explanation, FilterFact, RouteFact, RouteTarget};

/// Epochs leave the highest bit to entries, see `stages::slow`.
const EPOCH_BITS: u32 = u32::MAX >> 1;
/// How often a generated underlay address may collide with a registered one before the request is refused.
const UNDERLAY_TRIES_MAX: usize = 16;

/// Configuration of the data plane, and the tables made from it.
#[derive(Debug)]
pub struct Engine {
    tables: Arc<Tables>,
    limits: Limits,
    hash_seed: u64,
    devices: Vec<String>,
    generator: AddressGenerator,
    periodic: Periodic,
    initialized: bool,
    generations: u32,
    /// Interface ids and their ports.
    interfaces: BTreeMap<String, PortId>,
    /// Alias prefixes by port, in order of creation.
    prefixes: BTreeMap<PortId, Vec<(Prefix, Ipv6Addr)>>,
    vnis: BTreeMap<Vni, VniUse>,
    /// Load balancers by id: network and address under which the tables hold them.
    balancers: BTreeMap<String, (Vni, IpAddr)>,
    /// Shares of other hosts in order of creation.
    neighbors: Vec<NeighborNat>,
}

#[derive(Clone, Copy, Debug)]
struct VniUse {
    slot: u16,
    users: u32,
}

impl Engine {
    /// An engine without interfaces and routes.
    #[must_use]
    pub fn new(config: EngineConfig) -> Engine {
        let EngineConfig {
            host,
            mut ports,
            dhcp,
            ipv6_overlay,
            wcmp_percent,
            flow_timeout_s,
            underlay_seed,
            underlay_type_byte,
            hash_seed,
            firewall,
            mss_clamp,
            decrement_hops,
            mut virtual_services,
            limits,
        } = config;
        ports.truncate(EngineConfig::PORTS_MAX);
        virtual_services.truncate(EngineConfig::VIRTUAL_SERVICES_MAX);
        let mut uplinks = [None; UPLINKS];
        let mut table = Vec::with_capacity(ports.len());
        let mut devices = Vec::with_capacity(ports.len());
        for (index, port) in ports.into_iter().enumerate() {
            if let PortKind::Uplink(number) = port.kind
                && let Some(uplink) = uplinks.get_mut(usize::from(number))
            {
                let port_id = PortId(index as u16);
                *uplink = Some(Uplink {
                    port: port_id,
                    mac: port.mac,
                    link: true,
                    next_hop: None,
                    mtu: u16::MAX,
                });
            }
            let learned = Arc::new(Learned::new(port.mac));
            table.push(Port {
                kind: port.kind,
                mac: port.mac,
                learned,
                interface: None,
            });
            devices.push(port.name);
        }
        // Ten hash slots, rounded to the nearest share.
        let wcmp_slots = (wcmp_percent.min(100) + 5) / 10;
        let settings = Settings {
            host,
            dhcp,
            ipv6_overlay,
            wcmp_slots,
            flow_timeout_s,
            firewall,
            mss_clamp,
            decrement_hops,
            virtual_services,
            is_rehearsal: false,
        };
        Engine {
            tables: Arc::new(Tables {
                epoch: 1,
                history: History::new(),
                settings: Arc::new(settings),
                ports: Arc::new(table),
                uplinks,
                underlay: UnderlayTable::new(limits.underlay_max),
                vnis: Arc::new(Vec::new()),
                services: Services::default(),
                capture: None,
            }),
            limits,
            hash_seed,
            devices,
            generator: AddressGenerator::new(host, underlay_seed, underlay_type_byte),
            periodic: Periodic::default(),
            initialized: false,
            generations: 0,
            interfaces: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            vnis: BTreeMap::new(),
            balancers: BTreeMap::new(),
            neighbors: Vec::new(),
        }
    }

    /// A worker sized by the limits. Its memory is reserved here; packets allocate nothing.
    #[must_use]
    pub fn worker(&self) -> Worker {
        let settings = &self.tables.settings;
        Worker::new(self.devices.len(), &self.limits, settings, self.hash_seed)
    }

    /// Says which worker packets belong to, for one thread that receives them.
    #[must_use]
    pub fn sorter(&self) -> Sorter {
        Sorter::new(self.hash_seed)
    }

    /// The current snapshot for workers on other threads.
    #[must_use]
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// [`Worker::process`] with the current tables.
    pub fn process(
        &self,
        worker: &mut Worker,
        port: PortId,
        packet: &mut impl Packet,
        now: Instant,
    ) -> Verdict {
        worker.process(&self.tables, port, packet, now)
    }

    /// [`Worker::process_burst`] with the current tables.
    pub fn process_burst(
        &self,
        worker: &mut Worker,
        port: PortId,
        packets: &mut [impl Packet],
        verdicts: &mut [Verdict],
        now: Instant,
    ) {
        worker.process_burst(&self.tables, port, packets, verdicts, now);
    }

    /// The next periodic packet (gratuitous ARP, router and neighbour advertisement) that is due, written to `packet`, and the
    /// port to send it from. Call until it returns `None`.
    pub fn tick(&mut self, now: Instant, packet: &mut dyn Packet) -> Option<PortId> {
        self.periodic.next(&self.tables, now, packet)
    }

    /// When [`Engine::tick`] has something to do next; `None` before its first call.
    #[must_use]
    pub fn next_tick(&self) -> Option<Instant> {
        self.periodic.due()
    }

    /// Begins an edit of the tables, which concerns no more than it says.
    pub(crate) fn edit(&mut self, change: Change) -> &mut Tables {
        let tables = Arc::make_mut(&mut self.tables);
        tables.epoch = tables.epoch.wrapping_add(1) & EPOCH_BITS;
        tables.history.record(tables.epoch, change);
        tables
    }

    /// Begins an edit of what a network's routes say about a prefix, or about everything.
    fn edit_routes(&mut self, slot: u16, prefix: Option<Prefix>) -> Option<&mut VniRoutes> {
        let vni = self.tables.routes(slot)?.vni;
        let vnis = Arc::make_mut(&mut self.edit(Change::Routes { vni, prefix }).vnis);
        vnis.get_mut(usize::from(slot))?.as_mut().map(Arc::make_mut)
    }

    // ---- service -----------------------------------------------------------------------------------------------------------

    /// Marks the service as initialized. May be repeated: routes to other hosts and NAT shares of other hosts are cleared, everything that
    /// belongs to this host's interfaces and load balancers stays.
    pub fn initialize(&mut self) {
        let slots: Vec<u16> = self.vnis.values().map(|vni| vni.slot).collect();
        for slot in slots {
            self.clear_remote_routes(slot);
        }
        self.clear_neighbors(None);
        self.initialized = true;
        self.periodic.slow_down_soon();
    }

    /// Whether [`Engine::initialize`] has been called.
    #[must_use]
    pub fn is_initialized(&self) -> bool {
        self.initialized
    }

    /// The capacities in force.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    // ---- ports -------------------------------------------------------------------------------------------------------------

    /// The port with this device name.
    #[must_use]
    pub fn port_by_device(&self, device: &str) -> Option<PortId> {
        let index = self.devices.iter().position(|name| name == device)?;
        Some(PortId(index as u16))
    }

    /// What a port is attached to.
    #[must_use]
    pub fn port_kind(&self, port: PortId) -> Option<PortKind> {
        self.tables.port(port).map(|port| port.kind)
    }

    /// The uplink with the lowest number.
    #[must_use]
    pub fn first_uplink(&self) -> Option<PortId> {
        let mut uplinks = self.tables.uplinks.iter().flatten();
        uplinks.next().map(|uplink| uplink.port)
    }

    /// Sets the hardware address behind an uplink, or `None` while it is not known. Ignored for other ports.
    pub fn set_next_hop(&mut self, port: PortId, next_hop: Option<Mac>) {
        self.edit_uplink(port, |uplink| uplink.next_hop = next_hop);
    }

    /// Sets the link state of an uplink (up at start). Ignored for other ports.
    pub fn set_link(&mut self, port: PortId, up: bool) {
        self.edit_uplink(port, |uplink| uplink.link = up);
    }

    /// Link state of an uplink; false for other ports.
    #[must_use]
    pub fn has_link(&self, port: PortId) -> bool {
        let mut uplinks = self.tables.uplinks.iter().flatten();
        uplinks.any(|uplink| uplink.port == port && uplink.link)
    }

    /// Sets the largest packet that an uplink carries, its own IPv6 header included (at start there is no limit). Larger ones are answered with an ICMP error
    /// that tells the machine what fits. Ignored for other ports.
    pub fn set_uplink_mtu(&mut self, port: PortId, mtu: u16) {
        self.edit_uplink(port, |uplink| uplink.mtu = mtu);
    }

    fn edit_uplink(&mut self, port: PortId, change: impl FnOnce(&mut Uplink)) {
        let position = |uplink: &Option<Uplink>| uplink.is_some_and(|uplink| uplink.port == port);
        let Some(index) = self.tables.uplinks.iter().position(position) else {
            return;
        };
        let Some(mut uplink) = self.tables.uplinks.get(index).copied().flatten() else {
            return;
        };
        let before = uplink;
        change(&mut uplink);
        if before == uplink {
            return;
        }
        // Whether an uplink can be used decides about other connections only if they could have taken it.
        let shares_load = self.tables.settings.wcmp_slots < WCMP_SLOTS;
        let moves = before.is_usable() != uplink.is_usable() && (shares_load || index == 0);
        if let Some(place) = self
            .edit(Change::Uplink { port, moves })
            .uplinks
            .get_mut(index)
        {
            *place = Some(uplink);
        }
    }

    /// The hardware address that the machine behind a port uses, as far as we know.
    #[must_use]
    pub fn machine_mac(&self, port: PortId) -> Option<Mac> {
        let port = self.tables.port(port)?;
        matches!(port.kind, PortKind::Machine).then(|| port.learned.mac())
    }

    /// Number of the interface on a port, if there is one: another one has another number, whatever it is called.
    #[must_use]
    pub fn attachment(&self, port: PortId) -> Option<u32> {
        let attached = self.tables.port(port)?.interface.as_ref();
        attached.map(|attached| attached.generation)
    }

    /// Takes over what another instance has learned of the machine behind a port; false if it is no machine port.
    pub fn learn_machine_mac(&self, port: PortId, mac: Mac) -> bool {
        let found = self.tables.port(port);
        let machine = found.filter(|port| matches!(port.kind, PortKind::Machine));
        machine.is_some_and(|port| {
            port.learned.learn(mac);
            true
        })
    }

    // ---- interfaces --------------------------------------------------------------------------------------------------------

    /// Attaches an interface to its device.
    pub fn create_interface(&mut self, spec: InterfaceSpec) -> Result<&Interface, ConfigError> {
        let port_id = self
            .port_by_device(&spec.device)
            .ok_or(ConfigError::NotFound)?;
        let port = self.tables.port(port_id).ok_or(ConfigError::NotFound)?;
        if !matches!(port.kind, PortKind::Machine) || port.interface.is_some() {
            return Err(ConfigError::AlreadyExists);
        }
        let underlay = self.choose_underlay(spec.preferred_underlay, UnderlayKind::Interface)?;
        if self.interfaces.contains_key(&spec.id) {
            return Err(ConfigError::VmHandle);
        }
        let slot = self.vni_slot_for(spec.vni)?;
        let own = own_prefixes(&spec);
        if let Some(routes) = self.tables.routes(slot) {
            for prefix in own.iter().flatten() {
                self.check_free(routes, *prefix)?;
            }
        }
        let metering = spec.metering;
        if metering.total_rate > u64::from(u32::MAX) || metering.public_rate > metering.total_rate {
            return Err(ConfigError::PortMeter);
        }
        self.attach(
            Interface {
                spec,
                port: port_id,
                underlay,
            },
            slot,
        );
        let attached = self
            .tables
            .port(port_id)
            .and_then(|port| port.interface.as_ref());
        attached
            .map(|attached| attached.interface.as_ref())
            .ok_or(ConfigError::NotFound)
    }

    fn attach(&mut self, interface: Interface, slot: u16) {
        let (vni, port_id) = (interface.spec.vni, interface.port);
        self.generations = self.generations.wrapping_add(1);
        let generation = self.generations;
        self.acquire_vni(vni, slot);
        self.interfaces.insert(interface.spec.id.clone(), port_id);
        let endpoint = Endpoint::machine(port_id, vni, UnderlayKind::Interface, None);
        let own = own_prefixes(&interface.spec);
        let metering = interface.spec.metering;
        let services = PortServices {
            total_meter: TokenBucket::new(metering.total_rate).map(Arc::new),
            public_meter: TokenBucket::new(metering.public_rate).map(Arc::new),
            ..PortServices::default()
        };
        // Whatever was decided about an interface on this port ended with that interface.
        let tables = self.edit(Change::Nothing);
        tables
            .underlay
            .insert(HostPart::of(interface.underlay), endpoint);
        if let Some(port) = Arc::make_mut(&mut tables.ports).get_mut(port_id.index()) {
            port.learned.forget_confirmation();
            let interface = Arc::new(interface);
            port.interface = Some(Attached {
                interface,
                vni_slot: slot,
                generation,
                services: Arc::new(services),
            });
        }
        for prefix in own.into_iter().flatten() {
            if let Some(routes) = self.edit_routes(slot, Some(prefix)) {
                routes.insert(prefix, Target::Own(port_id));
            }
        }
    }

    /// Detaches an interface, with everything that belongs to it: prefixes, VIP, NAT, load-balancer prefixes, firewall rules.
    pub fn delete_interface(&mut self, id: &str) -> Result<(), ConfigError> {
        let port_id = *self.interfaces.get(id).ok_or(ConfigError::NotFound)?;
        let port = self.tables.port(port_id).ok_or(ConfigError::NotFound)?;
        let attached = port.interface.clone().ok_or(ConfigError::NotFound)?;
        self.interfaces.remove(id);
        self.forget_captured(id, port_id);
        let aliases = self.prefixes.remove(&port_id).unwrap_or_default();
        let tables = self.edit(Change::Everything);
        tables
            .underlay
            .remove(HostPart::of(attached.interface.underlay));
        let served = &attached.services.lb_prefixes;
        for (_, underlay) in aliases.iter().chain(served) {
            tables.underlay.remove(HostPart::of(*underlay));
        }
        if let Some(port) = Arc::make_mut(&mut tables.ports).get_mut(port_id.index()) {
            port.interface = None;
        }
        if let Some(routes) = self.edit_routes(attached.vni_slot, None) {
            let own = own_prefixes(&attached.interface.spec).into_iter().flatten();
            for prefix in own.chain(aliases.into_iter().map(|(prefix, _)| prefix)) {
                routes.remove(prefix);
            }
        }
        let vni = attached.interface.spec.vni;
        if let Some(vip) = attached.services.vip {
            self.forget_vip(vni, vip);
        }
        if let Some(nat) = attached.services.nat {
            self.forget_nat(vni, nat);
        }
        self.release_vni(vni);
        Ok(())
    }

    /// An interface by id.
    pub fn interface(&self, id: &str) -> Result<&Interface, ConfigError> {
        let port = *self.interfaces.get(id).ok_or(ConfigError::NotFound)?;
        self.interface_at(port).ok_or(ConfigError::NotFound)
    }

    /// The interface on a port.
    #[must_use]
    pub fn interface_at(&self, port: PortId) -> Option<&Interface> {
        let attached = self.tables.port(port)?.interface.as_ref()?;
        Some(&attached.interface)
    }

    /// All interfaces in the order of their ports.
    pub fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.tables
            .ports
            .iter()
            .filter_map(|port| Some(port.interface.as_ref()?.interface.as_ref()))
    }

    // ---- prefixes ----------------------------------------------------------------------------------------------------------

    /// Delivers a further prefix to an interface and returns the prefix's underlay address.
    pub fn create_prefix(
        &mut self,
        id: &str,
        address: IpAddr,
        length: u8,
        preferred_underlay: Option<Ipv6Addr>,
    ) -> Result<Ipv6Addr, ConfigError> {
        let (port, vni, slot) = self.dependent(id)?;
        let prefix = Prefix::new(address, length).ok_or(ConfigError::RouteInsert)?;
        let routes = self.tables.routes(slot).ok_or(ConfigError::RouteInsert)?;
        self.check_free(routes, prefix)?;
        let underlay = self.choose_underlay(preferred_underlay, UnderlayKind::AliasPrefix)?;
        let endpoint = Endpoint::machine(port, vni, UnderlayKind::AliasPrefix, Some(prefix));
        self.edit(Change::Nothing)
            .underlay
            .insert(HostPart::of(underlay), endpoint);
        if let Some(routes) = self.edit_routes(slot, Some(prefix)) {
            routes.insert(prefix, Target::Alias(port));
        }
        self.prefixes
            .entry(port)
            .or_default()
            .push((prefix, underlay));
        Ok(underlay)
    }

    /// Takes a prefix from an interface.
    pub fn delete_prefix(
        &mut self,
        id: &str,
        address: IpAddr,
        length: u8,
    ) -> Result<(), ConfigError> {
        let (port, _, slot) = self.dependent(id)?;
        let prefix = Prefix::new(address, length).ok_or(ConfigError::RouteNotFound)?;
        let routes = self.tables.routes(slot).ok_or(ConfigError::RouteNotFound)?;
        match routes.get(prefix).ok_or(ConfigError::RouteNotFound)? {
            Target::Alias(owner) if owner == port => {}
            Target::Alias(_) | Target::Own(_) | Target::Remote { .. } => {
                return Err(ConfigError::RouteBadPort);
            }
        }
        if let Some(routes) = self.edit_routes(slot, Some(prefix)) {
            routes.remove(prefix);
        }
        let aliases = self.prefixes.entry(port).or_default();
        if let Some(index) = aliases.iter().position(|(alias, _)| *alias == prefix) {
            let (_, underlay) = aliases.remove(index);
            self.edit(Change::Endpoints)
                .underlay
                .remove(HostPart::of(underlay));
        }
        Ok(())
    }

    /// Prefixes of an interface with their underlay addresses, in order of creation.
    pub fn prefixes(&self, id: &str) -> Result<&[(Prefix, Ipv6Addr)], ConfigError> {
        let (port, _, _) = self.dependent(id)?;
        Ok(self
            .prefixes
            .get(&port)
            .map(Vec::as_slice)
            .unwrap_or_default())
    }

    // ---- routes ------------------------------------------------------------------------------------------------------------

    /// Adds a route to another host.
    pub fn create_route(
        &mut self,
        vni: Vni,
        address: IpAddr,
        length: u8,
        next_hop: IpAddr,
        next_hop_vni: u32,
    ) -> Result<(), ConfigError> {
        let (slot, prefix, target) =
            self.route_to(vni, (address, length), (next_hop, next_hop_vni))?;
        let routes = self.tables.routes(slot).ok_or(ConfigError::NoVni)?;
        self.check_free(routes, prefix)?;
        self.set_route(slot, prefix, target);
        Ok(())
    }

    /// Gives a route to another host another next hop between two packets; creates it if there is none.
    pub fn replace_route(
        &mut self,
        vni: Vni,
        address: IpAddr,
        length: u8,
        next_hop: IpAddr,
        next_hop_vni: u32,
    ) -> Result<(), ConfigError> {
        let (slot, prefix, target) =
            self.route_to(vni, (address, length), (next_hop, next_hop_vni))?;
        let routes = self.tables.routes(slot).ok_or(ConfigError::NoVni)?;
        match routes.get(prefix) {
            // No decision needs to be looked at again.
            Some(known) if known == target => return Ok(()),
            Some(Target::Remote { .. }) => {}
            Some(Target::Own(_) | Target::Alias(_)) => return Err(ConfigError::RouteExists),
            None => self.check_free(routes, prefix)?,
        }
        self.set_route(slot, prefix, target);
        Ok(())
    }

    /// The network's place in the tables, the prefix and the target of a route to another host.
    fn route_to(
        &self,
        vni: Vni,
        (address, length): (IpAddr, u8),
        (next_hop, next_hop_vni): (IpAddr, u32),
    ) -> Result<(u16, Prefix, Target), ConfigError> {
        let IpAddr::V6(underlay) = next_hop else {
            return Err(ConfigError::BadIpVersion);
        };
        let slot = self.vnis.get(&vni).ok_or(ConfigError::NoVni)?.slot;
        let prefix = Prefix::new(address, length).ok_or(ConfigError::RouteInsert)?;
        let target = Target::Remote {
            underlay,
            vni: next_hop_vni,
        };
        Ok((slot, prefix, target))
    }

    fn set_route(&mut self, slot: u16, prefix: Prefix, target: Target) {
        if let Some(routes) = self.edit_routes(slot, Some(prefix)) {
            routes.insert(prefix, target);
        }
    }

    /// Removes a route to another host, whatever its next hop.
    pub fn delete_route(
        &mut self,
        vni: Vni,
        address: IpAddr,
        length: u8,
    ) -> Result<(), ConfigError> {
        let slot = self.vnis.get(&vni).ok_or(ConfigError::NoVni)?.slot;
        let prefix = Prefix::new(address, length).ok_or(ConfigError::RouteNotFound)?;
        let routes = self.tables.routes(slot).ok_or(ConfigError::NoVni)?;
        match routes.get(prefix).ok_or(ConfigError::RouteNotFound)? {
            Target::Remote { .. } => {}
            Target::Own(_) | Target::Alias(_) => return Err(ConfigError::RouteBadPort),
        }
        if let Some(routes) = self.edit_routes(slot, Some(prefix)) {
            routes.remove(prefix);
        }
        Ok(())
    }

    /// Routes to other hosts of both families, IPv4 first, ascending; of every VNI if `vni` is `None`.
    pub fn routes(&self, vni: Option<Vni>) -> Result<Vec<Route>, ConfigError> {
        if vni.is_some_and(|vni| !self.vnis.contains_key(&vni)) {
            return Err(ConfigError::NoVni);
        }
        let mut found = Vec::new();
        for (_, used) in self
            .vnis
            .iter()
            .filter(|(key, _)| vni.is_none_or(|vni| vni == **key))
        {
            let Some(routes) = self.tables.routes(used.slot) else {
                continue;
            };
            routes.for_each(|prefix, target| match target {
                Target::Remote {
                    underlay: next_hop,
                    vni: next_hop_vni,
                } => {
                    found.push(Route {
                        vni: routes.vni,
                        prefix,
                        next_hop,
                        next_hop_vni,
                    });
                }
                Target::Own(_) | Target::Alias(_) => {}
            });
        }
        Ok(found)
    }

    fn check_free(&self, routes: &VniRoutes, prefix: Prefix) -> Result<(), ConfigError> {
        if routes.get(prefix).is_some() {
            return Err(ConfigError::RouteExists);
        }
        if routes.family_len(prefix) >= self.limits.routes_per_vni_max as usize {
            return Err(ConfigError::RouteInsert);
        }
        Ok(())
    }

    /// What the packet path knows of the interface on a port.
    fn attached(&self, port: PortId) -> Option<&Attached> {
        self.tables.port(port)?.interface.as_ref()
    }

    fn edit_port_services(&mut self, port: PortId, change: impl FnOnce(&mut PortServices)) {
        self.edit_port(port, Change::Services(port), change);
    }

    fn edit_port(
        &mut self,
        port: PortId,
        concerns: Change,
        change: impl FnOnce(&mut PortServices),
    ) {
        let ports = Arc::make_mut(&mut self.edit(concerns).ports);
        let attached = ports
            .get_mut(port.index())
            .and_then(|port| port.interface.as_mut());
        if let Some(attached) = attached {
            change(Arc::make_mut(&mut attached.services));
        }
    }

    // ---- shared ------------------------------------------------------------------------------------------------------------

    /// Port, VNI and VNI slot of the interface that a dependent object names.
    fn dependent(&self, id: &str) -> Result<(PortId, Vni, u16), ConfigError> {
        let port = *self.interfaces.get(id).ok_or(ConfigError::NoVm)?;
        let attached = self
            .tables
            .port(port)
            .and_then(|port| port.interface.as_ref());
        let attached = attached.ok_or(ConfigError::NoVm)?;
        Ok((port, attached.interface.spec.vni, attached.vni_slot))
    }

    /// Whether a preferred underlay address has the right form: the host's prefix and the flag "externally generated".
    #[must_use]
    pub fn accepts_underlay(&self, address: Ipv6Addr) -> bool {
        self.generator.accepts(address)
    }

    fn choose_underlay(
        &mut self,
        preferred: Option<Ipv6Addr>,
        kind: UnderlayKind,
    ) -> Result<Ipv6Addr, ConfigError> {
        if self.tables.underlay.is_full() {
            return Err(ConfigError::VnfInsert);
        }
        if let Some(address) = preferred {
            let usable = self.generator.accepts(address) && !self.tables.underlay_in_use(address);
            return if usable {
                Ok(address)
            } else {
                Err(ConfigError::VnfInsert)
            };
        }
        for _ in 0..UNDERLAY_TRIES_MAX {
            let address = self.generator.next(kind);
            if !self.tables.underlay_in_use(address) {
                return Ok(address);
            }
        }
        Err(ConfigError::VnfInsert)
    }
}

/// The host prefixes of an interface's own addresses.
fn own_prefixes(spec: &InterfaceSpec) -> [Option<Prefix>; 2] {
    [
        spec.ipv4.map(|address| Prefix::host(IpAddr::V4(address))),
        spec.ipv6.map(|address| Prefix::host(IpAddr::V6(address))),
    ]
}
