//! Offload: decided flows as rules for a NIC that switches packets by itself.
//!
//! - [`rule`]: the rules, modelled on DPDK's rte_flow but plain data.
//! - `translate`: a flow entry becomes rules, or a reason why it [`Stays`] in software. Pure.
//! - [`interpret`]: what rules do to a packet. Written from the rules' meaning alone; it shares no code with the translation or the engine's
//!   own editing, so that both can be held to each other.
//! - `slots`: which flows have rules, kept by each worker ([`crate::Worker::offload`]).
//!
//! Deliberately not here: NICs and the thread that talks to them (crates `ports` and `dpservice`).

pub mod interpret;
pub mod rule;
pub(crate) mod slots;
pub(crate) mod translate;

pub use rule::{Action, Ipv4Match, Ipv6Match, Item, Rule, isolation};

use crate::verdict::PortId;

/// Flows of a worker that have rules at most; further ones stay in software until a place is free.
pub const OFFLOADED_MAX: usize = 16_384;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Why a direction of a connection stays in software.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Stays {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Stays {
            /// Every reason.
            pub const ALL: &'static [Stays] = &[$(Stays::$name,)+];

            /// Name in telemetry.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Stays::$name => $label,)+ }
            }
        }
    };
}

reasons! {
    /// TCP before it is established or after it began to close: every segment must be seen.
    Handshake = "handshake",
    /// The address family changes (NAT64).
    FamilyChange = "family_change",
    /// The machine has a rate limit, which is kept in software.
    RateLimit = "rate_limit",
    /// The identifier of an echo is translated, which rules cannot.
    EchoIdentifier = "echo_identifier",
    /// Echo over IPv6, whose identifier rules cannot match.
    EchoIpv6 = "echo_ipv6",
    /// A packet is to be changed inside a tunnel that it does not leave.
    InsideTunnel = "inside_tunnel",
    /// The port may receive packets that are too large for the tunnel and must be answered.
    MayNotFit = "may_not_fit",
    /// Packets of the port are being captured.
    Captured = "captured",
    /// Idle flows are forgotten sooner than the NIC's counters are read.
    ShortTimeout = "short_timeout",
    /// It comes in or leaves by a port that is not the NIC's.
    OtherPort = "other_port",
    /// All places for rules are taken.
    NoPlace = "no_place",
    /// The NIC refused the rules.
    Refused = "refused",
}

const REASONS: usize = Stays::ALL.len();

/// What the NIC has: for every port of the engine the largest packet it receives, in bytes without Ethernet header, or `None` if rules cannot
/// be about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// By port number.
    pub mtus: Vec<Option<u16>>,
}

impl Nic {
    pub(crate) fn mtu(&self, port: PortId) -> Option<u16> {
        self.mtus.get(port.index()).copied().flatten()
    }
}

/// Names the rules of one flow. Never used again for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// What a worker asks of the NIC. Orders must be carried out in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Install all of these rules or none; to be answered by [`Report::Refused`] if none.
    Install(FlowId, Vec<Rule>),
    /// Remove them.
    Remove(FlowId),
}

/// What a worker hears of the NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The rules are in force.
    Installed(FlowId),
    /// They are not, and will not be.
    Refused(FlowId),
    /// Packets that matched since the last report, and their bytes as the NIC counts them.
    Hits {
        /// Of which flow.
        flow: FlowId,
        /// Packets.
        packets: u64,
        /// Bytes.
        bytes: u64,
    },
}

/// What a worker counted about offload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffloadCounters {
    /// Flows whose rules are in force or on their way.
    pub flows: u64,
    /// Flows whose rules came into force.
    pub installed: u64,
    /// Flows whose rules were taken back.
    pub removed: u64,
    /// Times that the queue to the NIC had no room; tried again later.
    pub queue_full: u64,
    /// Packets that the NIC handled.
    pub packets: u64,
    /// Bytes of those.
    pub bytes: u64,
    stays: [u64; REASONS],
}

impl OffloadCounters {
    pub(crate) const ZERO: OffloadCounters = OffloadCounters {
        flows: 0,
        installed: 0,
        removed: 0,
        queue_full: 0,
        packets: 0,
        bytes: 0,
        stays: [0; REASONS],
    };

    /// Decisions of flows that stayed in software for a reason.
    #[must_use]
    pub fn stays(&self, reason: Stays) -> u64 {
        self.stays.get(reason as usize).copied().unwrap_or(0)
    }

    pub(crate) fn count(&mut self, reason: Stays) {
        if let Some(count) = self.stays.get_mut(reason as usize) {
            *count += 1;
        }
    }
}
