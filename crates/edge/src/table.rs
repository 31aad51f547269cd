//! Which hypervisor gets a packet: the public routes of metalbond, and the choice among several next hops.
//!
//! [`Routes`] follows the route events and knows all suppliers; [`Table`] is what packet threads read, a snapshot that costs little to
//! take. A destination may have several next hops:
//! - *ordinary* ones share its flows by rendezvous hashing (Thaler, Ravishankar 1998): each flow goes to the hop with the highest score, so
//!   a hop that comes or goes moves only its own flows, and all edges of a region choose alike without talking to each other;
//! - *NAT* ones own a range of the destination's ports. They come first: a packet for an owned port goes to the owner. Ports that nobody
//!   claims fall to the ordinary hops, whose data planes pass a packet on to its owner among their neighbours; so announcers that tell no
//!   ranges keep working, one hop slower.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use dataplane::Lpm;
use metalbond::{Destination, HopType, NextHop, RouteEvent};
use net::{PortRange, Prefix};

use crate::counters::DropReason;
use crate::flow::{Flow, Port};

/// Routes (prefix and next hop) that are kept; beyond, new ones are refused and counted.
pub const ROUTES_MAX: usize = 1_000_000;
/// Next hops of one prefix that are used, and NAT ranges likewise: those of the lowest addresses. Others are known, but idle.
pub const HOPS_MAX: usize = 256;

/// Which routes are ours to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The VNI of public addresses.
    pub vni: u32,
    /// Our tunnel address: a route through it would lead back to us.
    pub own: Ipv6Addr,
    /// The region's public addresses. Nothing else is taken from a hypervisor: a route to somebody else's address, or to a private one
    /// that two tenants use, must not carry traffic.
    pub public: Vec<Prefix>,
}

/// Why a route is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// Of another VNI.
    OtherVni,
    /// A default route: the way to an edge, not to a machine.
    DefaultRoute,
    /// The prefix is not one, or lies outside of the public prefixes.
    NotPublic,
    /// The next hop is no IPv6 address, or is ourselves.
    Hop,
    /// A next hop of a kind that has no meaning here.
    HopType,
    /// A NAT range without ports.
    PortRange,
    /// [`ROUTES_MAX`] are known.
    Full,
}

impl Ignored {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Ignored; 7] = [
        Ignored::OtherVni,
        Ignored::DefaultRoute,
        Ignored::NotPublic,
        Ignored::Hop,
        Ignored::HopType,
        Ignored::PortRange,
        Ignored::Full,
    ];

    /// Name in metrics and on the status page.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Ignored::OtherVni => "other_vni",
            Ignored::DefaultRoute => "default_route",
            Ignored::NotPublic => "not_public",
            Ignored::Hop => "hop",
            Ignored::HopType => "hop_type",
            Ignored::PortRange => "port_range",
            Ignored::Full => "full",
        }
    }
}

/// Where packets for a prefix go. A single ordinary hop, the common case, needs no memory of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    One(Ipv6Addr),
    Several(u32),
}

/// The next hops of a shared prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Several {
    ordinary: Vec<Ipv6Addr>,
    ranges: Vec<(PortRange, Ipv6Addr)>,
}

/// What packet threads read.
#[derive(Clone, Debug, Default)]
pub struct Table {
    v4: Lpm<Target>,
    v6: Lpm<Target>,
    several: Vec<Option<Arc<Several>>>,
    /// Free places in `several`.
    free: Vec<u32>,
}

impl Table {
    /// Whether packets to `address` are routed to a hypervisor.
    #[must_use]
    pub fn knows(&self, address: IpAddr) -> bool {
        self.lookup(address).is_some()
    }

    /// The underlay address to which a packet for `destination` is tunnelled.
    ///
    /// # Errors
    /// Why there is none.
    pub fn choose(&self, destination: IpAddr, flow: &Flow) -> Result<Ipv6Addr, DropReason> {
        match self.lookup(destination).ok_or(DropReason::NoRoute)? {
            Target::One(hop) => Ok(hop),
            Target::Several(slot) => {
                let several = self.several.get(slot as usize);
                several
                    .and_then(Option::as_deref)
                    .ok_or(DropReason::Bug)?
                    .choose(flow)
            }
        }
    }

    /// Number of prefixes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there is no prefix.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lookup(&self, address: IpAddr) -> Option<Target> {
        let (table, bits) = match address {
            IpAddr::V4(a) => (&self.v4, bits_v4(a)),
            IpAddr::V6(a) => (&self.v6, a.to_bits()),
        };
        table.lookup(bits).map(|(_, target)| target)
    }

    /// Sets, or with `None` removes, the next hops of a prefix.
    fn set(&mut self, prefix: &Prefix, hops: Option<Several>) {
        let (table, bits) = match prefix.address() {
            IpAddr::V4(a) => (&mut self.v4, bits_v4(a)),
            IpAddr::V6(a) => (&mut self.v6, a.to_bits()),
        };
        if let Some(Target::Several(slot)) = table.remove(bits, prefix.len()) {
            if let Some(place) = self.several.get_mut(slot as usize) {
                *place = None;
            }
            self.free.push(slot);
        }
        let Some(hops) = hops else { return };
        let target = match hops.one() {
            Some(hop) => Target::One(hop),
            None => {
                // Bounded by ROUTES_MAX.
                let next = u32::try_from(self.several.len()).unwrap_or(u32::MAX);
                let slot = self.free.pop().unwrap_or(next);
                let hops = Some(Arc::new(hops));
                match self.several.get_mut(slot as usize) {
                    Some(place) => *place = hops,
                    None => self.several.push(hops),
                }
                Target::Several(slot)
            }
        };
        table.insert(bits, prefix.len(), target);
    }
}

impl Several {
    fn new(hops: &BTreeSet<(Destination, NextHop)>) -> Several {
        let mut ordinary = BTreeSet::new();
        let mut ranges = BTreeSet::new();
        for (_, NextHop { addr, hop_type, .. }) in hops {
            let IpAddr::V6(address) = *addr else { continue };
            match *hop_type {
                HopType::Standard => {
                    ordinary.insert(address);
                }
                HopType::Nat { from, to } => {
                    ranges.extend(PortRange::new(from, to).map(|range| (range, address)));
                }
                HopType::LoadBalancerTarget | HopType::Other(_) => {}
            }
        }
        Several {
            ordinary: ordinary.into_iter().take(HOPS_MAX).collect(),
            ranges: ranges.into_iter().take(HOPS_MAX).collect(),
        }
    }

    /// The only hop, if it gets everything.
    fn one(&self) -> Option<Ipv6Addr> {
        match (self.ordinary.as_slice(), self.ranges.as_slice()) {
            ([hop], []) => Some(*hop),
            _ => None,
        }
    }

    fn choose(&self, flow: &Flow) -> Result<Ipv6Addr, DropReason> {
        match flow.port {
            Port::Known(port) => {
                let owners = self.ranges.iter().filter(|(range, _)| range.contains(port));
                rendezvous(flow.hash, owners.map(|(_, hop)| *hop))
                    .or_else(|| rendezvous(flow.hash, self.ordinary.iter().copied()))
                    .ok_or(DropReason::NoPortOwner)
            }
            Port::Absent => rendezvous(flow.hash, self.ordinary.iter().copied())
                .or_else(|| rendezvous(flow.hash, self.owners()))
                .ok_or(DropReason::NoPortOwner),
            Port::Fragment if self.ranges.is_empty() => {
                rendezvous(flow.hash, self.ordinary.iter().copied()).ok_or(DropReason::Bug)
            }
            // Only a sole owner can be told without the port.
            Port::Fragment => {
                let mut all = self.owners().chain(self.ordinary.iter().copied());
                let first = all.next().ok_or(DropReason::Bug)?;
                if all.all(|hop| hop == first) {
                    Ok(first)
                } else {
                    Err(DropReason::FragmentOfShared)
                }
            }
        }
    }

    fn owners(&self) -> impl Iterator<Item = Ipv6Addr> + '_ {
        self.ranges.iter().map(|(_, hop)| *hop)
    }
}

fn bits_v4(address: Ipv4Addr) -> u128 {
    u128::from(address.to_bits()) << 96
}

/// The hop with the highest score for the flow.
fn rendezvous(hash: u64, hops: impl Iterator<Item = Ipv6Addr>) -> Option<Ipv6Addr> {
    hops.max_by_key(|hop| (score(hash, *hop), *hop))
}

/// Two rounds of the splitmix64 finalizer (Steele, Lea, Flood 2014) over flow and hop.
fn score(hash: u64, hop: Ipv6Addr) -> u64 {
    let bits = hop.to_bits();
    scatter(scatter(hash ^ (bits as u64)) ^ ((bits >> 64) as u64))
}

fn scatter(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One row for people: a prefix and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Public prefix.
    pub prefix: Prefix,
    /// Next hops; NAT ones with their ports.
    pub hops: Vec<(Ipv6Addr, Option<PortRange>)>,
}

/// The public routes as metalbond tells them, and the table that follows.
#[derive(Debug)]
pub struct Routes {
    scope: Scope,
    /// A prefix may be announced in several spellings (host bits are kept in transit); it stays until the last is withdrawn.
    known: BTreeMap<Prefix, BTreeSet<(Destination, NextHop)>>,
    len: usize,
    table: Table,
    ignored: [u64; Ignored::ALL.len()],
}

impl Routes {
    /// No routes yet.
    #[must_use]
    pub fn new(scope: Scope) -> Routes {
        Routes {
            scope,
            known: BTreeMap::new(),
            len: 0,
            table: Table::default(),
            ignored: [0; Ignored::ALL.len()],
        }
    }

    /// Follows an event; true if the table changed.
    pub fn follow(&mut self, event: &RouteEvent) -> bool {
        let (RouteEvent::Added {
            vni,
            destination,
            next_hop,
        }
        | RouteEvent::Removed {
            vni,
            destination,
            next_hop,
        }) = *event;
        let is_added = matches!(event, RouteEvent::Added { .. });
        let prefix = match self.admit(vni, destination, next_hop) {
            Ok(prefix) => prefix,
            Err(reason) => {
                self.ignore(reason, is_added);
                return false;
            }
        };
        if is_added && self.len >= ROUTES_MAX {
            self.ignore(Ignored::Full, true);
            return false;
        }
        let hops = self.known.entry(prefix).or_default();
        let before = Several::new(hops);
        let route = (destination, next_hop);
        if is_added {
            self.len += usize::from(hops.insert(route));
        } else {
            self.len -= usize::from(hops.remove(&route));
        }
        let after = Several::new(hops);
        let is_empty = hops.is_empty();
        if is_empty {
            self.known.remove(&prefix);
        }
        if before != after {
            self.table
                .set(&prefix, (!is_empty).then_some(after.clone()));
        }
        before != after
    }

    fn ignore(&mut self, reason: Ignored, is_added: bool) {
        if let Some(counter) = self.ignored.get_mut(reason as usize) {
            *counter += u64::from(is_added);
        }
    }

    fn admit(
        &self,
        vni: u32,
        destination: Destination,
        next_hop: NextHop,
    ) -> Result<Prefix, Ignored> {
        if vni != self.scope.vni {
            return Err(Ignored::OtherVni);
        }
        let length = destination.length().ok_or(Ignored::NotPublic)?;
        if length == 0 {
            return Err(Ignored::DefaultRoute);
        }
        let prefix = Prefix::new(destination.addr(), length).ok_or(Ignored::NotPublic)?;
        let is_public =
            |public: &Prefix| public.len() <= prefix.len() && public.contains(prefix.address());
        if !self.scope.public.iter().any(is_public) {
            return Err(Ignored::NotPublic);
        }
        match next_hop.addr {
            IpAddr::V6(hop) if hop != self.scope.own && !hop.is_multicast() => {}
            IpAddr::V6(_) | IpAddr::V4(_) => return Err(Ignored::Hop),
        }
        match next_hop.hop_type {
            HopType::Standard => Ok(prefix),
            HopType::Nat { from, to } if from < to => Ok(prefix),
            HopType::Nat { .. } => Err(Ignored::PortRange),
            HopType::LoadBalancerTarget | HopType::Other(_) => Err(Ignored::HopType),
        }
    }

    /// What packet threads need; cheap to clone.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Routes (prefix and next hop) in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Announcements that were not used, by reason.
    pub fn ignored(&self) -> impl Iterator<Item = (Ignored, u64)> + '_ {
        Ignored::ALL.into_iter().zip(self.ignored)
    }

    /// The routes for people, ordered by prefix, at most `max`.
    pub fn rows(&self, max: usize) -> Vec<Row> {
        let row = |(prefix, hops): (&Prefix, &BTreeSet<(Destination, NextHop)>)| {
            let Several { ordinary, ranges } = Several::new(hops);
            let ordinary = ordinary.into_iter().map(|hop| (hop, None));
            let ranges = ranges.into_iter().map(|(range, hop)| (hop, Some(range)));
            Row {
                prefix: *prefix,
                hops: ordinary.chain(ranges).collect(),
            }
        };
        self.known.iter().take(max).map(row).collect()
    }
}
