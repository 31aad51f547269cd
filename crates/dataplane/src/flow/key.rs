//! Flow keys: what the packets of one direction of a connection show.
//!
//! A key is the tuple in wire order, so that the fast parser makes it with a few loads: first a word of ports and [`Scope`], then the addresses.
//! The two directions of a connection have different keys, and with translation not even mirrored ones.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use net::{Prefix, Vni};

use super::Ingress;

/// What the two port fields mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
    /// Echo; both ports are the identifier. `request` tells who asks, so that two machines pinging each other with the same
    /// identifier are two flows.
    Echo {
        request: bool,
    },
}

/// The addresses and ports of a packet as it shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
    pub transport: Transport,
}

impl Tuple {
    /// The tuple of an answer.
    pub(crate) const fn inverted(self) -> Tuple {
        let Tuple {
            source,
            destination,
            source_port,
            destination_port,
            transport,
        } = self;
        Tuple {
            source: destination,
            destination: source,
            source_port: destination_port,
            destination_port: source_port,
            transport: match transport {
                Transport::Echo { request } => Transport::Echo { request: !request },
                Transport::Tcp | Transport::Udp => transport,
            },
        }
    }
}

/// In which network a tuple is meant, and on which side of this host. A packet that goes out to a load balancer's address, the same packet when
/// the fabric brings it back for the balancer, and once more when it comes from there to a target differ in nothing but the outer header; so do
/// their answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scope(u32);

impl Scope {
    /// Packets that came through a tunnel.
    const FABRIC: u32 = 1 << 25;
    /// Those for the underlay address of a load balancer.
    const BALANCED: u32 = 1 << 24;

    /// Packets that machines send.
    pub(crate) const fn machine(vni: Vni) -> Scope {
        Scope(vni.get())
    }

    /// Packets that the fabric brings.
    pub(crate) const fn fabric(vni: Vni) -> Scope {
        Scope(vni.get() | Self::FABRIC)
    }

    /// Packets for the underlay address of a load balancer.
    pub(crate) const fn balanced(vni: Vni) -> Scope {
        Scope(vni.get() | Self::FABRIC | Self::BALANCED)
    }

    /// The same together with where packets come in.
    pub(crate) fn place(self, ingress: Ingress) -> u64 {
        u64::from(self.0) << 32 | u64::from(ingress.number())
    }

    /// The network.
    pub(crate) const fn vni(self) -> Vni {
        match Vni::new(self.0 & 0x00ff_ffff) {
            Some(vni) => vni,
            None => Vni::MAX,
        }
    }

    /// How answers are meant, most probably: those to machines' packets come through a tunnel, and the other way round.
    pub(crate) const fn of_answers(self) -> Scope {
        Scope((self.0 ^ Self::FABRIC) & !Self::BALANCED)
    }
}

/// Identity of one direction: ports and scope, then four words of addresses. IPv4 uses only the first of those; what the table keeps in the
/// others is no part of the key.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct FlowKey {
    pub first: u64,
    pub addresses: [u64; 4],
}

/// Bits of [`FlowKey::first`] above the scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(u32);

impl Kind {
    pub(crate) const TCP: Kind = Kind(1 << 28);
    pub(crate) const UDP: Kind = Kind(2 << 28);
    const MASK: u32 = 7 << 28;
    /// The bits of the scope.
    const BELOW: u32 = (1 << 28) - 1;
    const IPV6: u32 = 1 << 31;

    #[inline(always)]
    pub(crate) const fn echo(request: bool) -> Kind {
        Kind((4 | request as u32) << 28)
    }

    const fn of(transport: Transport) -> Kind {
        match transport {
            Transport::Tcp => Kind::TCP,
            Transport::Udp => Kind::UDP,
            Transport::Echo { request } => Kind::echo(request),
        }
    }

    const fn transport(self) -> Transport {
        match self {
            Kind::TCP => Transport::Tcp,
            Kind::UDP => Transport::Udp,
            Kind(other) => Transport::Echo {
                request: other & (1 << 28) != 0,
            },
        }
    }
}

impl FlowKey {
    /// No packet has this key.
    pub(crate) const NONE: FlowKey = FlowKey {
        first: 0,
        addresses: [0; 4],
    };

    /// The first word of an IPv4 key; `ports` are the first four bytes of the transport header.
    #[inline(always)]
    pub(crate) const fn first_v4(scope: Scope, kind: Kind, ports: u32) -> u64 {
        (ports as u64) << 32 | (scope.0 | kind.0) as u64
    }

    /// `ports` are the first four bytes of the transport header, `addresses` the addresses of the IP header.
    const fn v4(scope: Scope, kind: Kind, ports: u32, addresses: u64) -> FlowKey {
        FlowKey {
            first: FlowKey::first_v4(scope, kind, ports),
            addresses: [addresses, 0, 0, 0],
        }
    }

    #[inline(always)]
    pub(crate) const fn v6(scope: Scope, kind: Kind, ports: u32, addresses: [u64; 4]) -> FlowKey {
        FlowKey {
            first: (ports as u64) << 32 | (scope.0 | kind.0 | Kind::IPV6) as u64,
            addresses,
        }
    }

    /// The key of a tuple; `None` if its addresses are of different families.
    pub(crate) fn of(scope: Scope, tuple: &Tuple) -> Option<FlowKey> {
        let kind = Kind::of(tuple.transport);
        let ports = wire_ports(tuple);
        match (tuple.source, tuple.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let addresses = wire_addresses_v4(source, destination);
                Some(FlowKey::v4(scope, kind, ports, addresses))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let [a, b] = wire_address_v6(source);
                let [c, d] = wire_address_v6(destination);
                Some(FlowKey::v6(scope, kind, ports, [a, b, c, d]))
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        }
    }

    #[inline(always)]
    pub(crate) const fn is_v6(&self) -> bool {
        self.first as u32 & Kind::IPV6 != 0
    }

    /// Equality without branches but for the family: an array comparison would call `memcmp`, which costs more than the rest of the probe.
    #[inline(always)]
    pub(crate) const fn is(&self, other: &FlowKey) -> bool {
        let [a, b, c, d] = self.addresses;
        let [w, x, y, z] = other.addresses;
        let same = (self.first ^ other.first) | (a ^ w) == 0;
        same && (!self.is_v6() || (b ^ x) | (c ^ y) | (d ^ z) == 0)
    }

    /// The key of answers in their scope, if nothing is translated: both ends exchanged. What an IPv4 key leaves unused is zero.
    #[inline(always)]
    const fn answers(&self, scope: Scope) -> FlowKey {
        let head = self.first as u32 & !Kind::BELOW | scope.0;
        // Of the kinds, only those of echo have the upper of three bits; the lowest one tells requests.
        let echo = head & (4 << 28) != 0;
        let head = if echo { head ^ (1 << 28) } else { head };
        let ports = ((self.first >> 32) as u32).rotate_left(16);
        let [a, b, c, d] = self.addresses;
        FlowKey {
            first: (ports as u64) << 32 | head as u64,
            addresses: if self.is_v6() {
                [c, d, a, b]
            } else {
                [a.rotate_left(32), 0, 0, 0]
            },
        }
    }

    /// Without what an IPv4 key leaves unused.
    pub(crate) const fn clean(&self) -> FlowKey {
        let [a, ..] = self.addresses;
        if self.is_v6() {
            *self
        } else {
            FlowKey {
                first: self.first,
                addresses: [a, 0, 0, 0],
            }
        }
    }

    /// Source and destination of the tuple it was made of.
    pub(crate) fn ends(&self) -> (IpAddr, IpAddr) {
        let [a, b, c, d] = self.addresses;
        if self.is_v6() {
            let (source, destination) = (address_v6([a, b]), address_v6([c, d]));
            (IpAddr::V6(source), IpAddr::V6(destination))
        } else {
            let [e, f, g, h, i, j, k, l] = a.to_le_bytes();
            let (source, destination) = (Ipv4Addr::new(e, f, g, h), Ipv4Addr::new(i, j, k, l));
            (IpAddr::V4(source), IpAddr::V4(destination))
        }
    }

    /// Whether one of its addresses is inside a prefix.
    pub(crate) fn is_under(&self, prefix: Prefix) -> bool {
        let length = u32::from(prefix.len());
        let [a, b, c, d] = self.addresses;
        match prefix.address() {
            IpAddr::V4(base) if !self.is_v6() => {
                let differs = |wire: u32| u64::from(wire.swap_bytes() ^ base.to_bits());
                let is_inside = |wire| differs(wire) >> (32 - length) == 0;
                is_inside(a as u32) || is_inside((a >> 32) as u32)
            }
            IpAddr::V6(base) if self.is_v6() => {
                let is_inside =
                    |wire| (address_v6(wire).to_bits() ^ base.to_bits()).leading_zeros() >= length;
                is_inside([a, b]) || is_inside([c, d])
            }
            IpAddr::V4(_) | IpAddr::V6(_) => false,
        }
    }

    /// The tuple it was made of.
    pub(crate) fn tuple(&self) -> Tuple {
        let [s0, s1, d0, d1] = ((self.first >> 32) as u32).to_le_bytes();
        let (source, destination) = self.ends();
        Tuple {
            source,
            destination,
            source_port: u16::from_be_bytes([s0, s1]),
            destination_port: u16::from_be_bytes([d0, d1]),
            transport: Kind(self.first as u32 & Kind::MASK).transport(),
        }
    }

    /// The scope it was made with.
    pub(crate) const fn scope(&self) -> Scope {
        Scope(self.first as u32 & Kind::BELOW)
    }
}

/// Ports as they are on the wire, read as one little-endian word.
pub(crate) const fn wire_ports(tuple: &Tuple) -> u32 {
    let [s0, s1] = tuple.source_port.to_be_bytes();
    let [d0, d1] = tuple.destination_port.to_be_bytes();
    u32::from_le_bytes([s0, s1, d0, d1])
}

/// IPv4 addresses as they are on the wire, read as one little-endian word.
pub(crate) const fn wire_addresses_v4(source: Ipv4Addr, destination: Ipv4Addr) -> u64 {
    let [a, b, c, d] = source.octets();
    let [e, f, g, h] = destination.octets();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// The same for an IPv6 address.
pub(crate) const fn wire_address_v6(address: Ipv6Addr) -> [u64; 2] {
    let bits = address.to_bits().swap_bytes();
    [bits as u64, (bits >> 64) as u64]
}

/// The inverse of [`wire_address_v6`].
pub(crate) const fn address_v6([low, high]: [u64; 2]) -> Ipv6Addr {
    Ipv6Addr::from_bits((low as u128 | (high as u128) << 64).swap_bytes())
}

/// Finds the places of keys in a table. The secret keeps machines from choosing addresses and ports that share a bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hasher {
    secret: [u64; 3],
    buckets: u32,
}

/// Where in a table a key is looked for first: a bucket, and the signature of the key, which is odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub bucket: u32,
    pub signature: u16,
}

impl Place {
    /// The bits of a signature. The top one is not used, which makes it cheap to compare many at once.
    const SIGNATURE: u16 = 0x7fff;
    /// Of packets whose entry is not looked for.
    pub(crate) const ANY: Place = Place {
        bucket: 0,
        signature: 1,
    };
}

/// A key and its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keyed {
    pub key: FlowKey,
    pub place: Place,
}

/// Multiplies to 128 bits and folds: every input bit reaches every output bit (the mixing step of wyhash and foldhash).
#[inline(always)]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    (product as u64) ^ ((product >> 64) as u64)
}

impl Hasher {
    /// For a table of so many buckets.
    pub(crate) fn new(seed: u64, buckets: u32) -> Hasher {
        // Digits of pi (as in Blowfish), so that seed 0 is as good as any.
        let mix = |constant: u64| fold(seed ^ constant, 0x9e37_79b9_7f4a_7c15) | 1;
        let secret = [
            mix(0x243f_6a88_85a3_08d3),
            mix(0x1319_8a2e_0370_7344),
            mix(0xa409_3822_299f_31d0),
        ];
        Hasher { secret, buckets }
    }

    /// The upper half of the hash chooses the bucket (Lemire 2016: multiply instead of divide), the lowest bits are the signature.
    #[inline(always)]
    const fn place_of(&self, hash: u64) -> Place {
        Place {
            bucket: reduce((hash >> 32) as u32, self.buckets),
            signature: hash as u16 & Place::SIGNATURE | 1,
        }
    }

    /// The other bucket of a signature; applying it twice gives the first one back. (A difference, because the number of buckets is no
    /// power of two, which would waste up to half of them.)
    #[inline]
    pub(crate) const fn other(&self, Place { bucket, signature }: Place) -> Place {
        let total = reduce((signature as u32).wrapping_mul(0x9e37_79b1), self.buckets);
        let bucket = if total >= bucket {
            total - bucket
        } else {
            total + (self.buckets - bucket)
        };
        Place { bucket, signature }
    }

    /// Place of an IPv4 key.
    #[inline(always)]
    pub(crate) const fn v4(&self, first: u64, addresses: u64) -> Place {
        let [s0, s1, _] = self.secret;
        self.place_of(fold(first ^ s0, addresses ^ s1))
    }

    /// Place of an IPv6 key.
    #[inline(always)]
    pub(crate) const fn v6(&self, first: u64, [a, b, c, d]: [u64; 4]) -> Place {
        let [s0, s1, s2] = self.secret;
        let mixed = fold(a ^ s0, b ^ s1).rotate_left(17) ^ fold(c ^ s1, d ^ s2);
        self.place_of(fold(mixed ^ first, s2))
    }

    /// Place of any key.
    pub(crate) const fn place(&self, key: &FlowKey) -> Place {
        let [a, ..] = key.addresses;
        if key.is_v6() {
            self.v6(key.first, key.addresses)
        } else {
            self.v4(key.first, a)
        }
    }

    /// Key and place of answers in their scope, if nothing is translated.
    #[inline(always)]
    pub(crate) const fn answers(&self, key: &FlowKey, scope: Scope) -> Keyed {
        let key = key.answers(scope);
        let place = self.place(&key);
        Keyed { key, place }
    }

    /// Key and place of a tuple; `None` if its addresses are of different families.
    pub(crate) fn tuple(&self, scope: Scope, tuple: &Tuple) -> Option<Keyed> {
        let key = FlowKey::of(scope, tuple)?;
        let place = self.place(&key);
        Some(Keyed { key, place })
    }
}

/// Maps a 32-bit number to one below `count`.
#[inline(always)]
const fn reduce(number: u32, count: u32) -> u32 {
    ((number as u64 * count as u64) >> 32) as u32
}
