//! What becomes of a packet: one frame in, one [`Verdict`] out, and the frame edited in place.
//!
//! All frames come from and go to one device whose other end is the router's kernel. A frame from the kernel is
//! - a tunnelled packet to our tunnel address: it is unpacked and handed back to the kernel, which routes it to the outside; or it goes to
//!   another public address of the region and is packed again (*hairpin*: machines reach each other's public addresses through us);
//! - a packet to a public address: it is packed and handed back to the kernel, which routes the tunnel packet through the underlay.
//!
//! The kernel counts hops (it forwards every packet once on each side of the device), so only a hairpin decrements the hop limit here.
//! The outer header is plain IP in IPv6 (RFC 2473) with hop limit 64, no traffic class (RFC 6040's compatibility mode: the data planes do
//! not copy ECN either) and a flow label from the flow's hash (RFC 6438), so that the underlay spreads the load.
//! Nothing is fragmented or reassembled: what is too large is answered, and the kernel's routes to us carry the MTU besides.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use dataplane::{Instant, Packet};
use net::ethernet::{self, HEADER_LEN as ETHERNET_LEN};
use net::icmp::{self, ErrorMessage, QUOTE_MAX};
use net::ipv6::{HEADER_LEN as IPV6_LEN, Upper};
use net::{Ethernet, Icmpv6, Ipv6, Mac, Prefix, checksum, ipv6, protocol};

use crate::counters::{Counters, DropReason, Path};
use crate::flow::{self, Inner};
use crate::table::Table;

/// Outer hop limit, and that of our own messages.
const HOP_LIMIT: u8 = 64;
const TUNNEL_LEN: usize = ETHERNET_LEN + IPV6_LEN;
/// Errors that can be sent at once, and the interval at which the right to send one more comes back (RFC 4443 §2.4 (f)).
pub const ERRORS_MAX: u32 = 64;
const ERROR_INTERVAL_NS: u64 = 10_000_000;
/// Smallest MTU that is believed and passed on: what IPv6 guarantees (RFC 8200 §5), and what every IPv4 host must reassemble (RFC 791).
const MTU_V4_MIN: u32 = 576;
const MTU_V6_MIN: u32 = 1_280;

/// What an operator set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Our tunnel address: hypervisors send the outside's traffic there. Not an address of the kernel.
    pub address: Ipv6Addr,
    /// Source of our ICMP errors for IPv4; for IPv6 it is `address`.
    pub icmp_v4: Ipv4Addr,
    /// Hardware address of the device's kernel end.
    pub mac: Mac,
    /// Largest packet that machines take, in bytes.
    pub mtu: u16,
    /// The region's public addresses.
    pub public: Vec<Prefix>,
    /// Where tunnelled packets may come from.
    pub underlay: Vec<Prefix>,
    /// Networks that machines must not reach through us.
    pub denied: Vec<Prefix>,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The frame is to be sent.
    Send(Path),
    /// The frame is now an ICMP error to the packet's sender, and is to be sent.
    Answer(DropReason),
    /// The frame is to be forgotten.
    Drop(DropReason),
}

/// Decides over packets. Belongs to one thread.
#[derive(Debug)]
pub struct Edge {
    settings: Arc<Settings>,
    counters: Arc<Counters>,
    budget: Budget,
}

/// A packet that goes no further, and what an answer to it needs.
struct Refusal {
    reason: DropReason,
    about: Option<About>,
}

/// A packet that may be answered.
struct About {
    /// Where it starts in the frame.
    offset: usize,
    length: usize,
    to: IpAddr,
    mtu: u32,
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Refusal {
        Refusal {
            reason,
            about: None,
        }
    }
}

/// An inner packet and where it starts in the frame.
type Found = (usize, Inner);

impl Edge {
    /// An edge that counts into `counters`.
    #[must_use]
    pub fn new(settings: Arc<Settings>, counters: Arc<Counters>) -> Edge {
        Edge {
            settings,
            counters,
            budget: Budget::FULL,
        }
    }

    /// Decides over one frame.
    pub fn process<P: Packet>(&mut self, table: &Table, packet: &mut P, now: Instant) -> Verdict {
        match self.forward(table, packet) {
            Ok((path, length)) => {
                self.counters.sent(path, length);
                Verdict::Send(path)
            }
            Err(Refusal { reason, about }) => {
                let answered = about
                    .and_then(|about| self.answer(table, packet, reason, &about, now))
                    .is_some();
                if answered {
                    self.counters.answered(reason);
                    Verdict::Answer(reason)
                } else {
                    self.counters.dropped(reason);
                    Verdict::Drop(reason)
                }
            }
        }
    }

    fn forward<P: Packet>(&self, table: &Table, packet: &mut P) -> Result<(Path, u16), Refusal> {
        let frame = Ethernet::new_checked(packet.frame()).map_err(|_| DropReason::NotIp)?;
        if frame.destination().is_group() {
            return Err(DropReason::Group.into());
        }
        let ip = frame.payload();
        let expected = match frame.ethertype() {
            ethernet::TYPE_IPV4 => 4,
            ethernet::TYPE_IPV6 => 6,
            _ => return Err(DropReason::NotIp.into()),
        };
        if ip.first().map(|first| first >> 4) != Some(expected) {
            return Err(DropReason::Malformed.into());
        }
        if expected == 6 {
            let outer = Ipv6::new_checked(ip).map_err(|_| DropReason::Malformed)?;
            if outer.destination() == self.settings.address {
                return self.ours(table, packet);
            }
        }
        let inner = flow::parse(ip)?;
        self.inbound(table, packet, (ETHERNET_LEN, inner))
    }

    /// From the outside.
    fn inbound<P: Packet>(
        &self,
        table: &Table,
        packet: &mut P,
        found: Found,
    ) -> Result<(Path, u16), Refusal> {
        let (_, inner) = found;
        // Packets between public addresses pass us as hairpins: from the outside such a source is forged (RFC 2827).
        if table.knows(inner.source) {
            return Err(DropReason::SourceSpoofed.into());
        }
        let hop = table
            .choose(inner.destination, &inner.flow)
            .map_err(|reason| self.refuse(reason, found))?;
        self.encapsulate(packet, found, hop)?;
        Ok((Path::Inbound, inner.length))
    }

    /// To our tunnel address.
    fn ours<P: Packet>(&self, table: &Table, packet: &mut P) -> Result<(Path, u16), Refusal> {
        let ip = packet
            .frame()
            .get(ETHERNET_LEN..)
            .ok_or(DropReason::NotIp)?;
        let outer = Ipv6::new_checked(ip).map_err(|_| DropReason::Malformed)?;
        let (next, offset, bytes) = match outer.upper().map_err(|_| DropReason::Malformed)? {
            Upper::Transport {
                protocol,
                offset,
                bytes,
            } => (protocol, offset, bytes),
            Upper::Fragment { .. } => return Err(DropReason::TunnelFragment.into()),
            Upper::SourceRoute => return Err(DropReason::SourceRoute.into()),
            Upper::TooMany => return Err(DropReason::ExtensionHeaders.into()),
        };
        let offset = TUNNEL_LEN + offset;
        match next {
            protocol::IPV4 | protocol::IPV6 => {
                let source = IpAddr::V6(outer.source());
                if !covers(&self.settings.underlay, source) {
                    return Err(DropReason::OuterSource.into());
                }
                let version = if next == protocol::IPV4 { 4 } else { 6 };
                if bytes.first().map(|first| first >> 4) != Some(version) {
                    return Err(DropReason::Malformed.into());
                }
                let inner = flow::parse(bytes)?;
                self.outbound(table, packet, (offset, inner))
            }
            protocol::ICMPV6 => {
                let message = Icmpv6::new_checked(bytes).map_err(|_| DropReason::Malformed)?;
                if message.is_error() {
                    return Err(self.underlay_error(&message, offset));
                }
                if message.kind() != icmp::V6_ECHO_REQUEST || outer.payload_len() < 8 {
                    return Err(DropReason::NotTunnel.into());
                }
                let length = outer.payload_len() + IPV6_LEN as u16;
                echo(packet, offset, length).ok_or(DropReason::Bug)?;
                self.address_to_kernel(packet, ethernet::TYPE_IPV6)?;
                Ok((Path::Echo, length))
            }
            _ => Err(DropReason::NotTunnel.into()),
        }
    }

    /// From a machine.
    fn outbound<P: Packet>(
        &self,
        table: &Table,
        packet: &mut P,
        found: Found,
    ) -> Result<(Path, u16), Refusal> {
        let (offset, inner) = found;
        // Which host sent it does not count: a load balancer's targets answer from hosts that do not announce its address.
        if !table.knows(inner.source) {
            return Err(DropReason::SourceUnknown.into());
        }
        if covers(&self.settings.public, inner.destination) {
            let hop = table
                .choose(inner.destination, &inner.flow)
                .map_err(|reason| self.refuse(reason, found))?;
            if inner.ttl <= 1 {
                return Err(self.refuse(DropReason::TtlExceeded, found));
            }
            self.encapsulate(packet, found, hop)?;
            let inner_bytes = packet.frame_mut().get_mut(TUNNEL_LEN..);
            decrement(inner_bytes.unwrap_or_default()).ok_or(DropReason::Bug)?;
            return Ok((Path::Hairpin, inner.length));
        }
        let own = inner.destination == IpAddr::V6(self.settings.address);
        if own || covers(&self.settings.denied, inner.destination) {
            return Err(self.refuse(DropReason::DestinationDenied, found));
        }
        if !packet.reframe(offset, ETHERNET_LEN, usize::from(inner.length)) {
            return Err(DropReason::Bug.into());
        }
        let ethertype = match inner.destination {
            IpAddr::V4(_) => ethernet::TYPE_IPV4,
            IpAddr::V6(_) => ethernet::TYPE_IPV6,
        };
        self.address_to_kernel(packet, ethertype)?;
        Ok((Path::Outbound, inner.length))
    }

    /// Replaces everything in front of the inner packet by a tunnel to `hop`, and drops what is behind it.
    fn encapsulate<P: Packet>(
        &self,
        packet: &mut P,
        found: Found,
        hop: Ipv6Addr,
    ) -> Result<(), Refusal> {
        let (offset, inner) = found;
        let mtu = self.settings.mtu;
        if inner.length > mtu && !packet.is_cut_to(offset, mtu) {
            return Err(self.refuse(DropReason::TooBig, found));
        }
        let outer = ipv6::Header {
            payload_len: inner.length,
            next_header: match inner.destination {
                IpAddr::V4(_) => protocol::IPV4,
                IpAddr::V6(_) => protocol::IPV6,
            },
            hop_limit: HOP_LIMIT,
            source: self.settings.address,
            destination: hop,
        };
        let frame = packet
            .reframed(offset, TUNNEL_LEN, usize::from(inner.length))
            .ok_or(DropReason::NoHeadroom)?;
        let (front, rest) = frame
            .split_first_chunk_mut::<ETHERNET_LEN>()
            .ok_or(DropReason::Bug)?;
        *front = self.header(ethernet::TYPE_IPV6);
        let front = rest.first_chunk_mut::<IPV6_LEN>().ok_or(DropReason::Bug)?;
        *front = outer.emit();
        let [_, a, b, c] = ((inner.flow.hash >> 44) as u32).to_be_bytes();
        [front[1], front[2], front[3]] = [a & 0x0f, b, c];
        Ok(())
    }

    fn header(&self, ethertype: u16) -> [u8; ETHERNET_LEN] {
        let mac = self.settings.mac;
        // Our own end of the wire needs an address that is not the kernel's; nobody ever asks for it.
        let Mac([a, b, c, d, e, f]) = mac;
        ethernet::header(mac, Mac([a, b, c, d, e, f ^ 1]), ethertype)
    }

    fn address_to_kernel<P: Packet>(
        &self,
        packet: &mut P,
        ethertype: u16,
    ) -> Result<(), DropReason> {
        let header = self.header(ethertype);
        let front = packet.frame_mut().first_chunk_mut::<ETHERNET_LEN>();
        *front.ok_or(DropReason::Bug)? = header;
        Ok(())
    }

    fn refuse(&self, reason: DropReason, (offset, inner): Found) -> Refusal {
        let about = inner.answerable.then_some(About {
            offset,
            length: usize::from(inner.length),
            to: inner.source,
            mtu: u32::from(self.settings.mtu),
        });
        Refusal { reason, about }
    }

    /// An error about one of our tunnel packets. "Too big" is passed on to the inner packet's sender (RFC 2473 §8), others are only counted.
    fn underlay_error(&self, message: &Icmpv6<'_>, icmp_offset: usize) -> Refusal {
        let refusal = || -> Option<Refusal> {
            let (mtu, quoted) = match message.kind() {
                2 => (
                    message.parameter(),
                    Ipv6::new_embedded(message.body()).ok()?,
                ),
                _ => return None,
            };
            if quoted.source() != self.settings.address {
                return None;
            }
            let Ok(Upper::Transport {
                protocol: protocol::IPV4 | protocol::IPV6,
                offset,
                bytes,
            }) = quoted.upper()
            else {
                return None;
            };
            let inner = flow::parse_quoted(bytes)?;
            let floor = match inner.source {
                IpAddr::V4(_) => MTU_V4_MIN,
                IpAddr::V6(_) => MTU_V6_MIN,
            };
            let about = inner.answerable.then_some(About {
                offset: icmp_offset + icmp::HEADER_LEN + IPV6_LEN + offset,
                length: usize::from(inner.length),
                to: inner.source,
                mtu: mtu.saturating_sub(IPV6_LEN as u32).max(floor),
            });
            Some(Refusal {
                reason: DropReason::UnderlayTooBig,
                about,
            })
        };
        refusal().unwrap_or(DropReason::UnderlayError.into())
    }

    /// Turns the packet into an ICMP error to its sender: plain for one outside, tunnelled for a machine. `None` if none is due.
    fn answer<P: Packet>(
        &mut self,
        table: &Table,
        packet: &mut P,
        reason: DropReason,
        about: &About,
        now: Instant,
    ) -> Option<()> {
        let (kind, code) = kind_and_code(reason, about.to)?;
        if !self.budget.take(now) {
            return None;
        }
        let (source, ethertype) = match about.to {
            IpAddr::V4(_) => (self.settings.icmp_v4.into(), ethernet::TYPE_IPV4),
            IpAddr::V6(_) => (self.settings.address.into(), ethernet::TYPE_IPV6),
        };
        let has_mtu = matches!(reason, DropReason::TooBig | DropReason::UnderlayTooBig);
        let message = ErrorMessage {
            source,
            destination: about.to,
            kind,
            code,
            parameter: if has_mtu { about.mtu } else { 0 },
            ttl: HOP_LIMIT,
        };
        let mut quote = [0; QUOTE_MAX];
        let length = message.quote_len(about.length);
        let quote = quote.get_mut(..length)?;
        let end = about.offset.checked_add(length)?;
        quote.copy_from_slice(packet.frame().get(about.offset..end)?);
        packet.clear();
        if !packet.resize(ETHERNET_LEN + message.packet_len(length)) {
            return None;
        }
        self.address_to_kernel(packet, ethertype).ok()?;
        if !message.emit(packet.frame_mut().get_mut(ETHERNET_LEN..)?, quote) {
            return None;
        }
        if table.knows(about.to) {
            let inner = flow::parse(packet.frame().get(ETHERNET_LEN..)?).ok()?;
            let hop = table.choose(about.to, &inner.flow).ok()?;
            self.encapsulate(packet, (ETHERNET_LEN, inner), hop).ok()?;
        }
        Some(())
    }
}

/// Type and code of the error that tells a sender of this family about the reason; `None`: nobody is told.
fn kind_and_code(reason: DropReason, to: IpAddr) -> Option<(u8, u8)> {
    let v4 = to.is_ipv4();
    let found = match reason {
        // Host unreachable; address unreachable.
        DropReason::NoRoute if v4 => (3, 1),
        DropReason::NoRoute => (1, 3),
        // Port unreachable.
        DropReason::NoPortOwner if v4 => (3, 3),
        DropReason::NoPortOwner => (1, 4),
        // Administratively prohibited.
        DropReason::DestinationDenied if v4 => (3, 13),
        DropReason::DestinationDenied => (1, 1),
        DropReason::TtlExceeded if v4 => (icmp::TIME_EXCEEDED, 0),
        DropReason::TtlExceeded => (3, 0),
        // Fragmentation needed; packet too big.
        DropReason::TooBig | DropReason::UnderlayTooBig if v4 => (3, 4),
        DropReason::TooBig | DropReason::UnderlayTooBig => (2, 0),
        DropReason::NotIp
        | DropReason::Group
        | DropReason::Malformed
        | DropReason::Martian
        | DropReason::SourceRoute
        | DropReason::ExtensionHeaders
        | DropReason::NotTunnel
        | DropReason::TunnelFragment
        | DropReason::OuterSource
        | DropReason::SourceUnknown
        | DropReason::SourceSpoofed
        | DropReason::FragmentOfShared
        | DropReason::UnderlayError
        | DropReason::NoHeadroom
        | DropReason::Bug => return None,
    };
    Some(found)
}

fn covers(prefixes: &[Prefix], address: IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(address))
}

/// Takes one hop off a packet that has at least two left.
fn decrement(ip: &mut [u8]) -> Option<()> {
    match ip.first()? >> 4 {
        4 => {
            let head = ip.first_chunk_mut::<20>()?;
            let old = u16::from_be_bytes([head[8], head[9]]);
            head[8] = head[8].checked_sub(1)?;
            let new = u16::from_be_bytes([head[8], head[9]]);
            let sum = u16::from_be_bytes([head[10], head[11]]);
            [head[10], head[11]] = checksum::update(sum, old, new).to_be_bytes();
        }
        _ => {
            let limit = ip.get_mut(7)?;
            *limit = limit.checked_sub(1)?;
        }
    }
    Some(())
}

/// Turns an echo request, whose ICMPv6 header is at `offset`, into the reply. Swapping the addresses leaves the checksum alone.
fn echo<P: Packet>(packet: &mut P, offset: usize, length: u16) -> Option<()> {
    if !packet.resize(ETHERNET_LEN + usize::from(length)) {
        return None;
    }
    let frame = packet.frame_mut();
    let addresses = frame.get_mut(ETHERNET_LEN + 8..)?.first_chunk_mut::<32>()?;
    let (source, destination) = addresses.split_at_mut(16);
    source.swap_with_slice(destination);
    *frame.get_mut(ETHERNET_LEN + 7)? = HOP_LIMIT;
    let [kind, code, a, b] = frame.get_mut(offset..)?.first_chunk_mut::<4>()?;
    let old = u16::from_be_bytes([*kind, *code]);
    *kind = icmp::V6_ECHO_REPLY;
    let new = u16::from_be_bytes([*kind, *code]);
    [*a, *b] = checksum::update(u16::from_be_bytes([*a, *b]), old, new).to_be_bytes();
    Some(())
}

/// The right to send errors.
#[derive(Clone, Copy, Debug)]
struct Budget {
    left: u32,
    filled: Instant,
}

impl Budget {
    const FULL: Budget = Budget {
        left: ERRORS_MAX,
        filled: Instant(0),
    };

    fn take(&mut self, now: Instant) -> bool {
        let due = now.0.saturating_sub(self.filled.0) / ERROR_INTERVAL_NS;
        if due > 0 {
            let due = u32::try_from(due).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(due).min(ERRORS_MAX);
            self.filled = now;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}
