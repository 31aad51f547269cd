//! Underlay addresses: how they are made, and which interface or prefix each stands for.
//!
//! All addresses of a host share its upper 64 bits, so the table is keyed by the lower 64. It is open-addressed with linear
//! probing at no more than half load; the keys lie apart from the values so that a probe touches one cache line.

use crate::config::Limits;
use crate::config::UnderlaySeed;
use crate::flow::key::Scope;
use crate::verdict::PortId;
use core::net::Ipv6Addr;
use net::{Prefix, Vni};
use std::sync::Arc;

/// What an underlay address stands for. The numbers are those of byte 9 of a typed address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum UnderlayKind {
    /// An interface's own addresses.
    Interface = 1,
    /// An address that stands for one interface alone.
    Vip = 2,
    /// An interface's share of an address.
    Nat = 3,
    /// A load balancer.
    LoadBalancer = 4,
    /// A prefix that an interface serves as target of load balancers.
    LbPrefix = 5,
    /// A further prefix delivered to an interface.
    AliasPrefix = 6,
}

/// An entry of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    /// The machine port behind it; of a load balancer, the first uplink.
    pub port: PortId,
    /// How tuples of its packets are meant: its virtual network.
    pub scope: Scope,
    /// Its virtual network.
    pub vni: Vni,
    pub kind: UnderlayKind,
    /// Of alias and load-balancer prefixes: which.
    pub prefix: Option<Prefix>,
}

impl Endpoint {
    /// An address that stands for a machine, or for `prefix` behind it.
    pub(crate) fn machine(
        port: PortId,
        vni: Vni,
        kind: UnderlayKind,
        prefix: Option<Prefix>,
    ) -> Endpoint {
        Endpoint {
            port,
            scope: Scope::fabric(vni),
            vni,
            kind,
            prefix,
        }
    }
}

/// Lower 64 bits of an underlay address; never zero for a usable address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostPart(pub u64);

impl HostPart {
    pub(crate) const fn of(address: Ipv6Addr) -> HostPart {
        HostPart(address.to_bits() as u64)
    }

    /// The whole address on a host.
    pub(crate) fn on(self, host: Ipv6Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(host.to_bits() >> 64 << 64 | u128::from(self.0))
    }
}

/// The lower half of an address, 0 in an empty slot, and what most packets need of its endpoint.
#[derive(Clone, Copy, Debug)]
struct Slot {
    key: u64,
    scope: Scope,
}

impl Slot {
    const EMPTY: Slot = Slot {
        key: 0,
        scope: Scope::machine(Vni::MAX),
    };
}

#[derive(Clone, Debug)]
pub(crate) struct UnderlayTable {
    keys: Arc<Vec<Slot>>,
    endpoints: Arc<Vec<Option<Endpoint>>>,
    len: usize,
    max: usize,
}

impl UnderlayTable {
    pub(crate) fn new(max: u16) -> UnderlayTable {
        let max = usize::from(max.min(Limits::UNDERLAY_MAX));
        let slots = (max.max(1) * 2).next_power_of_two();
        UnderlayTable {
            keys: Arc::new(vec![Slot::EMPTY; slots]),
            endpoints: Arc::new(vec![None; slots]),
            len: 0,
            max,
        }
    }

    /// Slot and endpoint of an address. The slot is stable until the next change of the table.
    #[inline]
    pub(crate) fn lookup(&self, key: HostPart) -> Option<(u16, &Endpoint)> {
        let slot = self.find(key).ok()?;
        self.endpoints
            .get(slot)?
            .as_ref()
            .map(|endpoint| (slot as u16, endpoint))
    }

    /// Slot and scope of an address: the same without a look at the endpoint.
    #[inline(always)]
    pub(crate) fn scope(&self, HostPart(key): HostPart) -> Option<(u16, Scope)> {
        let wrap = self.keys.len() - 1;
        let slot = start(key) & wrap;
        match self.keys.get(slot) {
            Some(found) if found.key == key && key != 0 => Some((slot as u16, found.scope)),
            Some(_) | None => self.scope_behind(HostPart(key)),
        }
    }

    #[cold]
    #[inline(never)]
    fn scope_behind(&self, key: HostPart) -> Option<(u16, Scope)> {
        let slot = self.find(key).ok()?;
        Some((slot as u16, self.keys.get(slot)?.scope))
    }

    /// The endpoint in a slot.
    pub(crate) fn at(&self, slot: u16) -> Option<&Endpoint> {
        self.endpoints.get(usize::from(slot))?.as_ref()
    }

    /// The address in a slot.
    pub(crate) fn key_at(&self, slot: u16) -> Option<HostPart> {
        self.at(slot)?;
        self.keys
            .get(usize::from(slot))
            .map(|slot| HostPart(slot.key))
    }

    /// Addresses in use.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All addresses, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (HostPart, &Endpoint)> {
        let entries = self.keys.iter().zip(self.endpoints.iter());
        entries.filter_map(|(slot, endpoint)| Some((HostPart(slot.key), endpoint.as_ref()?)))
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len >= self.max
    }

    pub(crate) fn contains(&self, key: HostPart) -> bool {
        self.find(key).is_ok()
    }

    /// False if the address is zero or taken, or the table is full.
    pub(crate) fn insert(&mut self, key: HostPart, endpoint: Endpoint) -> bool {
        if key.0 == 0 || self.len >= self.max {
            return false;
        }
        let Err(slot) = self.find(key) else {
            return false;
        };
        let keys = Arc::make_mut(&mut self.keys);
        let endpoints = Arc::make_mut(&mut self.endpoints);
        match (keys.get_mut(slot), endpoints.get_mut(slot)) {
            (Some(to_key), Some(to_endpoint)) => {
                *to_key = Slot {
                    key: key.0,
                    scope: endpoint.scope,
                };
                *to_endpoint = Some(endpoint);
                self.len += 1;
                true
            }
            _ => false,
        }
    }

    /// Removes an address and closes the gap (Knuth 6.4, algorithm R): entries behind it move up if their probe starts earlier.
    pub(crate) fn remove(&mut self, key: HostPart) {
        let Ok(mut gap) = self.find(key) else { return };
        let wrap = self.keys.len() - 1;
        let keys = Arc::make_mut(&mut self.keys);
        let endpoints = Arc::make_mut(&mut self.endpoints);
        let mut next = gap;
        loop {
            next = (next + 1) & wrap;
            let moved = keys.get(next).map_or(0, |slot| slot.key);
            if moved == 0 {
                break;
            }
            let home = start(moved) & wrap;
            let distance = next.wrapping_sub(home) & wrap;
            if distance >= (next.wrapping_sub(gap) & wrap) {
                keys.swap(gap, next);
                endpoints.swap(gap, next);
                gap = next;
            }
        }
        if let (Some(key), Some(endpoint)) = (keys.get_mut(gap), endpoints.get_mut(gap)) {
            *key = Slot::EMPTY;
            *endpoint = None;
        }
        self.len -= 1;
    }

    /// `Ok(slot)` of the key, or `Err(slot)` of the empty place where it would go. Half the slots are always empty.
    #[inline]
    fn find(&self, key: HostPart) -> Result<usize, usize> {
        let wrap = self.keys.len() - 1;
        let mut slot = start(key.0) & wrap;
        loop {
            match self.keys.get(slot) {
                Some(found) if found.key == key.0 && key.0 != 0 => return Ok(slot),
                Some(Slot { key: 0, .. }) | None => return Err(slot),
                Some(_) => slot = (slot + 1) & wrap,
            }
        }
    }
}

/// Where the probe of a key starts: a multiplicative hash (Knuth 6.4) of counter and random byte.
#[inline]
fn start(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize
}

/// Makes addresses: host prefix, 0xd0, kind, flags 0, a byte per address, a 32-bit counter.
#[derive(Clone, Debug)]
pub(crate) struct AddressGenerator {
    prefix: u64,
    with_kind: bool,
    /// State of the splitmix64 sequence, unless addresses are static.
    random: Option<u64>,
    counter: u32,
}

impl AddressGenerator {
    pub(crate) fn new(host: Ipv6Addr, seed: UnderlaySeed, with_kind: bool) -> AddressGenerator {
        let (random, counter) = match seed {
            UnderlaySeed::Random(seed) => (Some(seed), u32::from(seed as u8) + 1),
            UnderlaySeed::Static => (None, 1),
        };
        AddressGenerator {
            prefix: (host.to_bits() >> 64) as u64,
            with_kind,
            random,
            counter,
        }
    }

    pub(crate) fn next(&mut self, kind: UnderlayKind) -> Ipv6Addr {
        let byte = match &mut self.random {
            Some(state) => splitmix64(state) as u8,
            None => 1,
        };
        let kind = if self.with_kind { kind as u8 } else { 0 };
        let high = u64::from_be_bytes([0xd0, kind, 0, byte, 0, 0, 0, 0]);
        let low = high | u64::from(self.counter);
        self.counter = self.counter.wrapping_add(1);
        Ipv6Addr::from_bits((u128::from(self.prefix) << 64) | u128::from(low))
    }

    /// Whether an externally chosen address may be used: same host prefix, and its flag "externally generated" set.
    pub(crate) fn accepts(&self, address: Ipv6Addr) -> bool {
        let external = address
            .octets()
            .get(10)
            .is_some_and(|flags| flags & 0x80 != 0);
        (address.to_bits() >> 64) as u64 == self.prefix && external
    }
}

/// A step of splitmix64 (Steele, Lea, Flood 2014).
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
