//! Flow keys: the 5-tuple of a connection in an order that both directions agree on.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use net::Vni;

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
    /// Pieces of fragmented packets, which show no ports: one flow per protocol, both ports are the protocol number.
    Fragment,
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

/// Identity of a connection: lower endpoint, higher endpoint, and a word of protocol and VNI.
///
/// IPv4 endpoints are address and port in one word; IPv6 ports are in the last word, which has a bit for the family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowKey([u64; 5]);

impl FlowKey {
    /// No packet has this key.
    pub(crate) const NONE: FlowKey = FlowKey([0; 5]);

    /// Equality without branches: an array comparison would call `memcmp`, which costs more than the rest of the probe.
    #[inline]
    pub(crate) const fn is(&self, other: &FlowKey) -> bool {
        let FlowKey([a, b, c, d, e]) = *self;
        let FlowKey([v, w, x, y, z]) = *other;
        (a ^ v) | (b ^ w) | (c ^ x) | (d ^ y) | (e ^ z) == 0
    }
}

/// A key, its hash, and which direction the packet at hand takes: 0 if it comes from the lower endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keyed {
    pub key: FlowKey,
    pub hash: u64,
    pub direction: u8,
}

impl Keyed {
    pub(crate) const EMPTY: Keyed = Keyed {
        key: FlowKey::NONE,
        hash: 0,
        direction: 0,
    };
}

const IPV6: u64 = 0x80;

/// A transport as a number, and the bit of it that means "the higher endpoint asks".
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    number: u64,
    flip: u64,
}

impl Kind {
    pub(crate) const TCP: Kind = Kind { number: 1, flip: 0 };
    pub(crate) const UDP: Kind = Kind { number: 2, flip: 0 };
    const FRAGMENT: Kind = Kind { number: 6, flip: 0 };

    #[inline]
    pub(crate) const fn echo(request: bool) -> Kind {
        Kind {
            number: 4 | request as u64,
            flip: 1,
        }
    }

    const fn of(transport: Transport) -> Kind {
        match transport {
            Transport::Tcp => Kind::TCP,
            Transport::Udp => Kind::UDP,
            Transport::Echo { request } => Kind::echo(request),
            Transport::Fragment => Kind::FRAGMENT,
        }
    }

    /// The number as both directions see it, given whether the sender is the higher endpoint.
    #[inline]
    const fn seen(self, swapped: bool) -> u64 {
        self.number ^ (self.flip & swapped as u64)
    }
}

/// Makes keys. The secret keeps machines from choosing addresses and ports that share a bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hasher {
    secret: [u64; 3],
}

/// Multiplies to 128 bits and folds: every input bit reaches every output bit (the mixing step of wyhash and foldhash).
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

impl Hasher {
    pub(crate) fn new(seed: u64) -> Hasher {
        // Digits of pi (as in Blowfish), so that seed 0 is as good as any.
        let mix = |constant: u64| fold(seed ^ constant, 0x9e37_79b9_7f4a_7c15) | 1;
        let secret = [
            mix(0x243f_6a88_85a3_08d3),
            mix(0x1319_8a2e_0370_7344),
            mix(0xa409_3822_299f_31d0),
        ];
        Hasher { secret }
    }

    #[inline]
    pub(crate) fn v4(
        &self,
        vni: Vni,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        ports: (u16, u16),
        kind: Kind,
    ) -> Keyed {
        let from = u64::from(source.to_bits()) << 16 | u64::from(ports.0);
        let to = u64::from(destination.to_bits()) << 16 | u64::from(ports.1);
        let swapped = from > to;
        let (low, high) = if swapped { (to, from) } else { (from, to) };
        let meta = kind.seen(swapped) << 24 | u64::from(vni.get());
        let hash = self.hash_v4(low, high, meta);
        Keyed {
            key: FlowKey([low, 0, high, 0, meta]),
            hash,
            direction: u8::from(swapped),
        }
    }

    #[inline]
    pub(crate) fn v6(
        &self,
        vni: Vni,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        ports: (u16, u16),
        kind: Kind,
    ) -> Keyed {
        let (from, to) = (source.to_bits(), destination.to_bits());
        let swapped = (from, ports.0) > (to, ports.1);
        let ((low, low_port), (high, high_port)) = if swapped {
            ((to, ports.1), (from, ports.0))
        } else {
            ((from, ports.0), (to, ports.1))
        };
        let meta = u64::from(low_port) << 48
            | u64::from(high_port) << 32
            | (kind.seen(swapped) | IPV6) << 24
            | u64::from(vni.get());
        let words = [
            (low >> 64) as u64,
            low as u64,
            (high >> 64) as u64,
            high as u64,
        ];
        let [a, b, c, d] = words;
        let hash = self.hash_v6(words, meta);
        Keyed {
            key: FlowKey([a, b, c, d, meta]),
            hash,
            direction: u8::from(swapped),
        }
    }

    #[inline]
    fn hash_v4(&self, low: u64, high: u64, meta: u64) -> u64 {
        let [s0, s1, s2] = self.secret;
        fold(fold(low ^ s0, high ^ s1) ^ meta, s2)
    }

    #[inline]
    fn hash_v6(&self, [a, b, c, d]: [u64; 4], meta: u64) -> u64 {
        let [s0, s1, s2] = self.secret;
        fold(
            fold(a ^ s0, b ^ s1).rotate_left(17) ^ fold(c ^ s1, d ^ s2) ^ meta,
            s2,
        )
    }

    /// The hash that a key had when it was made.
    pub(crate) fn rehash(&self, key: &FlowKey) -> u64 {
        let FlowKey([a, b, c, d, meta]) = *key;
        if meta & (IPV6 << 24) == 0 {
            self.hash_v4(a, c, meta)
        } else {
            self.hash_v6([a, b, c, d], meta)
        }
    }

    /// The key of a tuple; `None` if its addresses are of different families.
    pub(crate) fn tuple(&self, vni: Vni, tuple: &Tuple) -> Option<Keyed> {
        let Tuple {
            source,
            destination,
            source_port,
            destination_port,
            transport,
        } = *tuple;
        let ports = (source_port, destination_port);
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Some(self.v4(vni, source, destination, ports, Kind::of(transport)))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Some(self.v6(vni, source, destination, ports, Kind::of(transport)))
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        }
    }
}
