//! Everything that can happen to a packet, each with a counter.
//!
//! A packet gets exactly one [`crate::Verdict`], and exactly one of these counters moves with it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet goes no further. Some are answered with an ICMP error, see [`crate::engine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Shorter than an Ethernet header, or neither IPv4 nor IPv6.
    NotIp,
    /// To a group of stations: the kernel's own neighbourhood talk on the device.
    Group,
    /// Lengths or versions in the headers contradict each other, or a transport header is cut.
    Malformed,
    /// From or to an address that is never routed: unspecified, loopback, link-local, multicast, broadcast.
    Martian,
    /// The packet names its own way (RFC 791 §3.1, RFC 5095).
    SourceRoute,
    /// More IPv6 extension headers than are read.
    ExtensionHeaders,
    /// To our tunnel address, but no tunnelled packet.
    NotTunnel,
    /// A piece of a tunnelled packet: the underlay must not fragment.
    TunnelFragment,
    /// A tunnelled packet from outside of the underlay.
    OuterSource,
    /// From a machine, but its source is no public address that is routed here: a private address without NAT, or a forged one.
    SourceUnknown,
    /// From the outside, with the source of a machine.
    SourceSpoofed,
    /// From a machine to a network that machines must not reach through us.
    DestinationDenied,
    /// To a public address that nobody announces.
    NoRoute,
    /// To a NAT address, and nobody owns the port.
    NoPortOwner,
    /// A fragment to a NAT address that several hypervisors share: it carries no port.
    FragmentOfShared,
    /// From a machine to another one through us too often: the hop limit is used up.
    TtlExceeded,
    /// Larger than what machines take.
    TooBig,
    /// The underlay says that a tunnelled packet was too large for it.
    UnderlayTooBig,
    /// Any other error message of the underlay.
    UnderlayError,
    /// No room for the outer header in front of the packet.
    NoHeadroom,
    /// A fault of this program.
    Bug,
}

impl DropReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [DropReason; 21] = [
        DropReason::NotIp,
        DropReason::Group,
        DropReason::Malformed,
        DropReason::Martian,
        DropReason::SourceRoute,
        DropReason::ExtensionHeaders,
        DropReason::NotTunnel,
        DropReason::TunnelFragment,
        DropReason::OuterSource,
        DropReason::SourceUnknown,
        DropReason::SourceSpoofed,
        DropReason::DestinationDenied,
        DropReason::NoRoute,
        DropReason::NoPortOwner,
        DropReason::FragmentOfShared,
        DropReason::TtlExceeded,
        DropReason::TooBig,
        DropReason::UnderlayTooBig,
        DropReason::UnderlayError,
        DropReason::NoHeadroom,
        DropReason::Bug,
    ];

    /// Name in metrics and on the status page.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            DropReason::NotIp => "not_ip",
            DropReason::Group => "group",
            DropReason::Malformed => "malformed",
            DropReason::Martian => "martian",
            DropReason::SourceRoute => "source_route",
            DropReason::ExtensionHeaders => "extension_headers",
            DropReason::NotTunnel => "not_tunnel",
            DropReason::TunnelFragment => "tunnel_fragment",
            DropReason::OuterSource => "outer_source",
            DropReason::SourceUnknown => "source_unknown",
            DropReason::SourceSpoofed => "source_spoofed",
            DropReason::DestinationDenied => "destination_denied",
            DropReason::NoRoute => "no_route",
            DropReason::NoPortOwner => "no_port_owner",
            DropReason::FragmentOfShared => "fragment_of_shared",
            DropReason::TtlExceeded => "ttl_exceeded",
            DropReason::TooBig => "too_big",
            DropReason::UnderlayTooBig => "underlay_too_big",
            DropReason::UnderlayError => "underlay_error",
            DropReason::NoHeadroom => "no_headroom",
            DropReason::Bug => "bug",
        }
    }
}

/// Which way a packet goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// From the outside into a tunnel.
    Inbound,
    /// Out of a tunnel to the outside.
    Outbound,
    /// Out of a tunnel and into another: between public addresses of the region.
    Hairpin,
    /// An answer to an echo request to our tunnel address.
    Echo,
}

impl Path {
    /// All paths, in the order of their numbers.
    pub const ALL: [Path; 4] = [Path::Inbound, Path::Outbound, Path::Hairpin, Path::Echo];

    /// Name in metrics and on the status page.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Path::Inbound => "inbound",
            Path::Outbound => "outbound",
            Path::Hairpin => "hairpin",
            Path::Echo => "echo",
        }
    }
}

const PATHS: usize = Path::ALL.len();
const REASONS: usize = DropReason::ALL.len();

/// Counters of one packet thread, which alone writes them; anybody may read.
#[derive(Debug, Default)]
pub struct Counters {
    packets: [AtomicU64; PATHS],
    bytes: [AtomicU64; PATHS],
    dropped: [AtomicU64; REASONS],
    answered: [AtomicU64; REASONS],
}

/// What [`Counters`] hold at a moment, or the sum over several threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    packets: [u64; PATHS],
    bytes: [u64; PATHS],
    dropped: [u64; REASONS],
    answered: [u64; REASONS],
}

fn bump(counters: &[AtomicU64], number: usize, by: u64) {
    if let Some(counter) = counters.get(number) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

fn read<const N: usize>(counters: &[AtomicU64; N]) -> [u64; N] {
    std::array::from_fn(|number| {
        counters
            .get(number)
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    })
}

impl Counters {
    pub(crate) fn sent(&self, path: Path, ip_bytes: u16) {
        bump(&self.packets, path as usize, 1);
        bump(&self.bytes, path as usize, u64::from(ip_bytes));
    }

    pub(crate) fn dropped(&self, reason: DropReason) {
        bump(&self.dropped, reason as usize, 1);
    }

    pub(crate) fn answered(&self, reason: DropReason) {
        bump(&self.answered, reason as usize, 1);
    }

    /// The present figures.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let Counters {
            packets,
            bytes,
            dropped,
            answered,
        } = self;
        Figures {
            packets: read(packets),
            bytes: read(bytes),
            dropped: read(dropped),
            answered: read(answered),
        }
    }
}

impl Figures {
    /// Packets that went this way.
    #[must_use]
    pub fn packets(&self, path: Path) -> u64 {
        self.packets.get(path as usize).copied().unwrap_or(0)
    }

    /// Bytes of the inner IP packets that went this way.
    #[must_use]
    pub fn bytes(&self, path: Path) -> u64 {
        self.bytes.get(path as usize).copied().unwrap_or(0)
    }

    /// Packets dropped in silence.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped.get(reason as usize).copied().unwrap_or(0)
    }

    /// Packets dropped whose sender was told why.
    #[must_use]
    pub fn answered(&self, reason: DropReason) -> u64 {
        self.answered.get(reason as usize).copied().unwrap_or(0)
    }

    /// Packets of any verdict.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Figures {
            packets,
            bytes: _,
            dropped,
            answered,
        } = self;
        packets.iter().chain(dropped).chain(answered).sum()
    }

    /// Adds another thread's figures.
    pub fn add(&mut self, other: &Figures) {
        let add = |to: &mut [u64], from: &[u64]| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        };
        let Figures {
            packets,
            bytes,
            dropped,
            answered,
        } = other;
        add(&mut self.packets, packets);
        add(&mut self.bytes, bytes);
        add(&mut self.dropped, dropped);
        add(&mut self.answered, answered);
    }
}
