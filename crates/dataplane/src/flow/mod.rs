//! Flows: what is remembered about a connection, and the whole answer for its next packet.
//!
//! - [`key`]: what the packets of one direction show.
//! - [`table`]: hash buckets of signatures, and the entries.
//! - [`adjacency`]: the outer headers that entries share.
//! - [`rewrite`]: the change of addresses and ports that an entry prescribes.
//! - [`wheel`]: which connections to look at next for their age.
//!
//! A connection is a pair of [`Entry`]s, one per direction, because with translation the two directions show different tuples. Its number is half
//! that of its entries: entry `2 n` is the direction of the first packet, `2 n + 1` that of the answers. An entry is one cache line and has everything
//! a packet needs except the outer header. What only ageing and the slow walk need is in a [`Cold`] record elsewhere.

pub(crate) mod adjacency;
mod bucket;
pub(crate) mod key;
pub(crate) mod rewrite;
pub(crate) mod table;
mod wheel;

use crate::conntrack::TcpState;
use crate::verdict::PortId;
use key::FlowKey;

/// No entry.
pub(crate) const NONE: u32 = u32::MAX;

/// Coarse monotonic time: 2^24 ns (16.8 ms) per unit, wraps after 2.2 years of uptime, compared by wrapping difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coarse(pub u32);

impl Coarse {
    pub(crate) const fn of(now: crate::Instant) -> Coarse {
        Coarse((now.0 >> 24) as u32)
    }

    /// Units in `seconds`, rounded up so that a timeout is never cut short.
    pub(crate) const fn units(seconds: u32) -> u32 {
        ((seconds as u64 * 1_000_000_000).div_ceil(1 << 24)) as u32
    }

    pub(crate) const fn since(self, earlier: Coarse) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }
}

/// Where a packet came in, as far as it matters for a decision. Machine ports by number; tunnelled packets by the slot of their
/// underlay address, whichever uplink they used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ingress(u16);

impl Ingress {
    const TUNNEL: u16 = 0x8000;
    /// Of a packet that no entry may answer: a machine port that there cannot be.
    pub(crate) const NOWHERE: Ingress = Ingress(!Self::TUNNEL);

    pub(crate) const fn machine(port: PortId) -> Ingress {
        Ingress(port.0 & !Self::TUNNEL)
    }

    #[inline(always)]
    pub(crate) const fn tunnel(underlay_slot: u16) -> Ingress {
        Ingress(underlay_slot | Self::TUNNEL)
    }

    pub(crate) const fn number(self) -> u16 {
        self.0
    }

    /// The slot of a tunnel's underlay address; `None` for machines.
    pub(crate) const fn underlay_slot(self) -> Option<u16> {
        if self.0 & Self::TUNNEL == 0 {
            None
        } else {
            Some(self.0 & !Self::TUNNEL)
        }
    }
}

/// What is done with a packet after its addresses and ports were changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Action {
    /// Not decided yet.
    Undecided,
    /// Put the header of adjacency [`Entry::target`] in front and send it out of that adjacency's uplink.
    Encap,
    /// Hand it to the machine on port [`Entry::target`].
    Deliver,
}

/// The whole answer for the packets of one direction, in one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Entry {
    /// What packets show. The three words that an IPv4 key leaves unused hold the rest of the rewrite.
    pub key: FlowKey,
    /// Of the tables it was decided with.
    pub epoch: u32,
    pub last_seen: Coarse,
    /// Adjacency or port, see [`Action`].
    pub target: u32,
    /// Valid only for packets that came in here; others are decided anew, which is where spoofing is found.
    pub ingress: Ingress,
    pub action: Action,
    /// [`Entry::TRACKED`], [`Entry::TRANSLATED`].
    pub flags: u8,
    /// New addresses, see [`rewrite`].
    pub rewrite: u64,
}

impl Entry {
    /// A TCP handshake is in progress: every segment must be looked at.
    pub(crate) const TRACKED: u8 = 1;
    /// Addresses or ports change within their family.
    pub(crate) const TRANSLATED: u8 = 2;
    /// The address family changes.
    pub(crate) const FAMILY: u8 = 4;
    /// The machine that sends has a rate limit.
    pub(crate) const METERED: u8 = 8;
    /// Packets count against the limit of traffic to the internet.
    pub(crate) const PUBLIC: u8 = 16;
    /// The route was a default route.
    pub(crate) const BY_DEFAULT: u8 = 32;

    pub(crate) const FREE: Entry = Entry {
        key: FlowKey::NONE,
        epoch: 0,
        last_seen: Coarse(0),
        target: NONE,
        ingress: Ingress::NOWHERE,
        action: Action::Undecided,
        flags: 0,
        rewrite: 0,
    };

    #[inline(always)]
    pub(crate) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Which service changed or steered a connection; what must be given back when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub(crate) enum Service {
    /// Plain forwarding.
    #[default]
    None,
    /// Source translated to the machine's virtual address, or destination from there.
    Vip,
    /// Source translated to a port of a shared address.
    Nat,
    /// The same with a change from IPv6 to IPv4.
    Nat64,
    /// Relayed to the host that owns the NAT port.
    NeighbourNat,
    /// Steered to a target of a load balancer.
    LoadBalancer,
}

/// What is known about a connection beside its entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cold {
    /// Next in the list of its wheel slot, or of free connections.
    pub next: u32,
    /// The attachment that created it: [`crate::tables::Attached::generation`] on port `owner_port`; 0 if it belongs to no machine.
    pub owner: u32,
    pub owner_port: PortId,
    pub tcp: TcpState,
    /// Side (0 or 1) of the last SYN that began a handshake.
    pub syn_side: u8,
    pub service: Service,
}
