//! Network NAT: which port of the shared address stands for which port of which machine.
//!
//! Two tables. The *mapping* of a machine's port (whatever protocol and destination) says which NAT port it uses, so that all its
//! connections look alike from outside (RFC 4787, REQ-1). The *uses* of a NAT port say towards which remote endpoints it is taken. A NAT
//! port serves any number of machines as long as no two of them talk to the same remote endpoint over the same protocol, so a range of
//! `n` ports carries far more than `n` connections.
//!
//! The search for a port starts at a place that depends only on VNI, address and port of the machine, so two instances that see the same
//! connections in the same order choose the same ports. A mapping lives as long as its last connection.

use crate::jhash::jhash;
use crate::sync::{NatUse, source_bytes};
use core::hash::{BuildHasher, Hasher};
use core::net::{IpAddr, Ipv4Addr};
use net::{PortRange, Vni, protocol};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

/// A machine's own end of a connection. For echo, the port is the identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NatSource {
    /// Virtual network.
    pub vni: Vni,
    /// The machine's address; IPv6 for NAT64.
    pub address: IpAddr,
    /// The machine's port or echo identifier.
    pub port: u16,
}

/// The remote end of a connection. For echo, the port is 0: the answer's only number is the one we choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NatRemote {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its port; 0 for echo.
    pub port: u16,
    /// IP protocol as it is on the wire behind the translation: 1, 6 or 17.
    pub protocol: u8,
}

impl NatRemote {
    /// The remote end of an echo request.
    #[must_use]
    pub fn echo(address: Ipv4Addr) -> NatRemote {
        NatRemote {
            address,
            port: 0,
            protocol: protocol::ICMP,
        }
    }
}

/// What a connection is translated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NatEnd {
    /// The shared address.
    pub address: Ipv4Addr,
    /// Its port or echo identifier.
    pub port: u16,
}

/// Why a connection cannot be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatError {
    /// Every port of the range is taken towards this remote end.
    Exhausted,
    /// The machine's port is mapped to a NAT port that another machine uses towards this remote end.
    Conflict,
    /// The table is full.
    Full,
}

/// A mapping as shown to operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NatMapping {
    /// The machine's end.
    pub source: NatSource,
    /// The NAT end.
    pub end: NatEnd,
    /// Connections that use it.
    pub connections: u32,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    end: NatEnd,
    connections: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Use {
    end: NatEnd,
    remote: NatRemote,
}

/// Mappings and uses of one worker.
#[derive(Debug)]
pub struct PortMap {
    mappings: HashMap<NatSource, Mapping, Seed>,
    uses: HashSet<Use, Seed>,
    max: usize,
}

impl PortMap {
    /// Room for `max` connections; `seed` keeps machines from choosing colliding keys.
    #[must_use]
    pub fn new(max: usize, seed: u64) -> PortMap {
        PortMap {
            mappings: HashMap::with_capacity_and_hasher(max, Seed(seed)),
            uses: HashSet::with_capacity_and_hasher(max, Seed(seed)),
            max,
        }
    }

    /// Records a connection that another instance has given its NAT end. If the machine's port is mapped to another one already, that stays:
    /// the other instance may have more threads, each with a mapping of its own.
    pub(crate) fn insert(&mut self, used: &NatUse) -> Result<(), NatError> {
        let NatUse {
            source,
            end,
            remote,
        } = *used;
        if self.uses.len() >= self.max {
            return Err(NatError::Full);
        }
        if !self.uses.insert(Use { end, remote }) {
            return Err(NatError::Conflict);
        }
        let connections = 0;
        let known = self.mappings.entry(source);
        let mapping = known.or_insert(Mapping { end, connections });
        mapping.connections += u32::from(mapping.end == end);
        Ok(())
    }

    /// Connections, and the most there can be.
    #[must_use]
    pub fn saturation(&self) -> (usize, usize) {
        (self.uses.len(), self.max)
    }

    /// Mappings at the moment.
    #[must_use]
    pub fn mappings_len(&self) -> usize {
        self.mappings.len()
    }

    /// Chooses the NAT end of a new connection and records it.
    ///
    /// A mapping outside `address` and `range` (they were changed) is replaced; connections that still use it are forgotten one by one.
    pub fn allocate(
        &mut self,
        source: NatSource,
        remote: NatRemote,
        address: Ipv4Addr,
        range: PortRange,
    ) -> Result<NatEnd, NatError> {
        if self.uses.len() >= self.max {
            return Err(NatError::Full);
        }
        if let Some(mapping) = self.mappings.get_mut(&source)
            && mapping.end.address == address
            && range.contains(mapping.end.port)
        {
            let end = mapping.end;
            if !self.uses.insert(Use { end, remote }) {
                return Err(NatError::Conflict);
            }
            mapping.connections += 1;
            return Ok(end);
        }
        let start = source_hash(&source);
        let count = u32::from(range.count());
        for step in 0..count {
            let offset = start.wrapping_add(step) % count;
            let port = range.first() + offset as u16;
            let end = NatEnd { address, port };
            if self.uses.insert(Use { end, remote }) {
                let connections = 1;
                self.mappings.insert(source, Mapping { end, connections });
                return Ok(end);
            }
        }
        Err(NatError::Exhausted)
    }

    /// Forgets a connection; the mapping goes with its last one. False if the connection is not known.
    pub fn release(&mut self, source: NatSource, remote: NatRemote, end: NatEnd) -> bool {
        if !self.uses.remove(&Use { end, remote }) {
            return false;
        }
        if let Entry::Occupied(mut known) = self.mappings.entry(source)
            && known.get().end == end
        {
            let mapping = known.get_mut();
            mapping.connections = mapping.connections.saturating_sub(1);
            if mapping.connections == 0 {
                known.remove();
            }
        }
        true
    }

    /// All mappings, in no particular order.
    pub fn mappings(&self) -> impl Iterator<Item = NatMapping> {
        self.mappings.iter().map(|(source, mapping)| NatMapping {
            source: *source,
            end: mapping.end,
            connections: mapping.connections,
        })
    }

    /// All uses: NAT end and remote end, in no particular order.
    pub fn uses(&self) -> impl Iterator<Item = (NatEnd, NatRemote)> {
        self.uses.iter().map(|used| (used.end, used.remote))
    }
}

/// The hash that all implementations agree on for the first port to try: VNI, address (IPv4 in host order) and port, little endian.
#[must_use]
pub fn source_hash(source: &NatSource) -> u32 {
    jhash(&source_bytes(source))
}

/// Builds hashers for the tables: multiply and fold, keyed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seed(pub u64);

/// State of one hash.
#[derive(Debug)]
pub(crate) struct Fold(u64);

impl BuildHasher for Seed {
    type Hasher = Fold;

    fn build_hasher(&self) -> Fold {
        Fold(self.0 ^ 0x243f_6a88_85a3_08d3)
    }
}

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            for (to, from) in last.iter_mut().zip(rest) {
                *to = *from;
            }
            self.write_u64(u64::from_le_bytes(last));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value) * 0x9e37_79b9_7f4a_7c15;
        self.0 = ((product as u64) ^ ((product >> 64) as u64)).wrapping_add(0x1319_8a2e_0370_7344);
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}
