//! Flows: what is remembered about a connection, and the whole answer for its next packet.
//!
//! - [`key`]: both directions of a connection have one key and one entry.
//! - [`table`]: hash buckets of signatures, and the entries.
//! - [`wheel`]: which entries to look at next for their age.
//!
//! An entry takes three cache lines: what identifies and ages the connection, and one [`Decision`] per direction. A hit reads
//! the bucket, the first line and one of the other two.

pub(crate) mod key;
pub(crate) mod table;
mod wheel;

use crate::conntrack::TcpState;
use crate::verdict::PortId;
use key::FlowKey;

/// No flow.
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

    pub(crate) const fn machine(port: PortId) -> Ingress {
        Ingress(port.0 & !Self::TUNNEL)
    }

    pub(crate) const fn tunnel(underlay_slot: u16) -> Ingress {
        Ingress(underlay_slot | Self::TUNNEL)
    }
}

/// What is done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Action {
    /// Not decided yet.
    Undecided,
    /// Put [`Decision::header`] in front and send it out of the uplink.
    Encap,
    /// Hand it to the machine.
    Deliver,
}

/// The whole answer for one direction, in one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Decision {
    /// Of the tables it was taken with.
    pub epoch: u32,
    /// Valid only for packets that came in here; others are decided anew, which is where spoofing is found.
    pub ingress: Ingress,
    pub port: PortId,
    /// Ethernet and IPv6 header of the tunnel, whose payload length is filled in per packet; for a delivery only the EtherType
    /// counts, since addresses are learned at any time.
    pub header: [u8; 54],
    pub action: Action,
}

impl Decision {
    pub(crate) const UNDECIDED: Decision = Decision {
        epoch: 0,
        ingress: Ingress(u16::MAX),
        port: PortId(u16::MAX),
        header: [0; 54],
        action: Action::Undecided,
    };
}

/// A tracked connection.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Flow {
    pub key: FlowKey,
    pub last_seen: Coarse,
    /// Idle time after which it is forgotten, in [`Coarse`] units.
    pub timeout: u32,
    /// The attachment that created it: [`crate::tables::Attached::generation`] on port `owner_port`.
    pub owner: u32,
    /// Next in the list of its wheel slot, or of free entries.
    pub next: u32,
    pub owner_port: PortId,
    pub tcp: TcpState,
    /// Direction of the last SYN that began a handshake.
    pub syn_direction: u8,
    /// Direction of the first packet.
    pub origin: u8,
    pub decisions: [Decision; 2],
}

impl Flow {
    #[inline]
    pub(crate) fn decision(&self, direction: u8) -> &Decision {
        let [low, high] = &self.decisions;
        if direction == 0 { low } else { high }
    }

    pub(crate) fn decision_mut(&mut self, direction: u8) -> &mut Decision {
        let [low, high] = &mut self.decisions;
        if direction == 0 { low } else { high }
    }
}
