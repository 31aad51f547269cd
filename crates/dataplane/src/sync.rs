//! What two instances on one host tell each other, so that the one that stands by can carry on with the other's connections.
//!
//! Every message is one Ethernet frame of type 0x88b5 ([`ETHERTYPE`], one of those for local experiments: RFC 9542 §3), from [`ACTIVE`] to
//! [`STANDBY`] whoever sends it, with one byte that says which message it is, and its fields without padding, little endian unless said
//! otherwise. There are no acknowledgements; a lost message costs one connection, or leaves one until it ages.
//!
//! | Type | Message | Fields |
//! |---|---|---|
//! | 1 | NAT port taken | source (23 bytes), use (13), port of the machine u16, ICMP type u16, checksum of a quoted packet u16 big endian: 42 |
//! | 2 | NAT port given back | source, use: 36 |
//! | 3 | connection of a virtual service | its IPv4 address and port, big endian; number of the source port from 1024 on, u16; address and port of the machine, big endian; port of the machine u16; protocol u8: 17 |
//! | 4 | MAC address of a machine | port u16, address: 8 |
//! | 5 | request of all of these | none |
//!
//! A *source* is VNI u32, 16 bytes of address and a flag for IPv6 (IPv4: a number in the first four), port u16. A *use* is NAT address u32, NAT
//! port u16, remote address u32, remote port u16, protocol u8. Of echo, the source's port is the identifier, the remote port as well, and the
//! protocol is that of the machine's family: 1 or 58.

use crate::jhash::address_bytes;
use crate::port_map::{NatEnd, NatRemote, NatSource};
use crate::verdict::PortId;
use arrayvec::ArrayVec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use net::ethernet::HEADER_LEN as ETHERNET_LEN;
use net::{Mac, Vni, icmp, protocol};

/// Type of the frames.
pub const ETHERTYPE: u16 = 0x88b5;
/// Source of the frames.
pub const ACTIVE: Mac = Mac([2, 0x64, 0x70, 0x73, 0, 1]);
/// Destination of the frames.
pub const STANDBY: Mac = Mac([2, 0x64, 0x70, 0x73, 0, 2]);
/// Bytes of the longest frame.
pub const FRAME_MAX: usize = ETHERNET_LEN + 1 + NAT_TAKEN_LEN;

const NAT_TAKEN: u8 = 1;
const NAT_GIVEN_BACK: u8 = 2;
const VIRTUAL_CONNECTION: u8 = 3;
const MACHINE_MAC: u8 = 4;
const REQUEST: u8 = 5;
const SOURCE_LEN: usize = 23;
const USE_LEN: usize = 13;
const NAT_TAKEN_LEN: usize = SOURCE_LEN + USE_LEN + 6;

/// A machine's connection that is translated by network NAT or NAT64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NatUse {
    /// The machine's end.
    pub source: NatSource,
    /// What it is translated to.
    pub end: NatEnd,
    /// The other end.
    pub remote: NatRemote,
}

/// A machine's connection to a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualUse {
    /// 6 or 17.
    pub protocol: u8,
    /// The service as machines see it.
    pub address: Ipv4Addr,
    /// Its port.
    pub port: u16,
    /// Number of the source port at the service's underlay address, 0 for the first one.
    pub slot: u16,
    /// Port of the machine on this host.
    pub machine_port: PortId,
    /// The machine's address.
    pub machine: Ipv4Addr,
    /// The machine's TCP or UDP port.
    pub source_port: u16,
}

/// Something that the active instance did, or a request for all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A connection of the machine on this port got a NAT port.
    NatTaken(NatUse, PortId),
    /// It ended.
    NatGivenBack(NatUse),
    /// A connection to a virtual service got a source port.
    VirtualConnection(VirtualUse),
    /// A machine uses this address.
    MachineMac(PortId, Mac),
    /// The sender wants to know everything.
    Request,
}

/// A frame that is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoMessage {
    /// Of another Ethernet type: the kernel or a bridge sent it.
    Foreign,
    /// Shorter than its type says.
    Truncated,
    /// A type that there is not.
    Type(u8),
    /// A field has a value that it cannot have.
    Field(&'static str),
}

impl fmt::Display for NoMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoMessage::Foreign => f.write_str("not of ethertype 0x88b5"),
            NoMessage::Truncated => f.write_str("truncated"),
            NoMessage::Type(kind) => write!(f, "message type {kind} is unknown"),
            NoMessage::Field(name) => write!(f, "{name} is out of range"),
        }
    }
}

impl core::error::Error for NoMessage {}

/// A frame with a message.
pub type SyncFrame = ArrayVec<u8, FRAME_MAX>;

impl Message {
    /// The frame that tells it.
    #[must_use]
    pub fn emit(&self) -> SyncFrame {
        let mut frame = SyncFrame::new();
        frame.extend(STANDBY.0);
        frame.extend(ACTIVE.0);
        frame.extend(ETHERTYPE.to_be_bytes());
        match self {
            Message::NatTaken(used, machine) => {
                frame.push(NAT_TAKEN);
                put_use(&mut frame, used);
                frame.extend(machine.0.to_le_bytes());
                frame.extend(icmp_type(used).to_le_bytes());
                // Errors are translated by the connection alone.
                frame.extend([0, 0]);
            }
            Message::NatGivenBack(used) => {
                frame.push(NAT_GIVEN_BACK);
                put_use(&mut frame, used);
            }
            Message::VirtualConnection(used) => {
                frame.push(VIRTUAL_CONNECTION);
                frame.extend(used.address.octets());
                frame.extend(used.port.to_be_bytes());
                frame.extend(used.slot.to_le_bytes());
                frame.extend(used.machine.octets());
                frame.extend(used.source_port.to_be_bytes());
                frame.extend(used.machine_port.0.to_le_bytes());
                frame.push(used.protocol);
            }
            Message::MachineMac(port, mac) => {
                frame.push(MACHINE_MAC);
                frame.extend(port.0.to_le_bytes());
                frame.extend(mac.0);
            }
            Message::Request => frame.push(REQUEST),
        }
        frame
    }

    /// The message in a frame. Bytes behind it are ignored: links may pad short frames.
    pub fn parse(frame: &[u8]) -> Result<Message, NoMessage> {
        let (header, rest) = frame
            .split_first_chunk::<ETHERNET_LEN>()
            .ok_or(NoMessage::Foreign)?;
        if header.last_chunk() != Some(&ETHERTYPE.to_be_bytes()) {
            return Err(NoMessage::Foreign);
        }
        let (kind, rest) = rest.split_first().ok_or(NoMessage::Truncated)?;
        let mut fields = Fields(rest);
        match *kind {
            NAT_TAKEN => {
                let used = fields.nat_use()?;
                let machine = PortId(fields.number()?);
                let [_, _, _, _] = fields.bytes()?;
                Ok(Message::NatTaken(used, machine))
            }
            NAT_GIVEN_BACK => Ok(Message::NatGivenBack(fields.nat_use()?)),
            VIRTUAL_CONNECTION => {
                let used = VirtualUse {
                    address: Ipv4Addr::from(fields.bytes::<4>()?),
                    port: u16::from_be_bytes(fields.bytes()?),
                    slot: fields.number()?,
                    machine: Ipv4Addr::from(fields.bytes::<4>()?),
                    source_port: u16::from_be_bytes(fields.bytes()?),
                    machine_port: PortId(fields.number()?),
                    protocol: fields.byte()?,
                };
                match used.protocol {
                    protocol::TCP | protocol::UDP => Ok(Message::VirtualConnection(used)),
                    _ => Err(NoMessage::Field("protocol")),
                }
            }
            MACHINE_MAC => {
                let port = PortId(fields.number()?);
                let mac = Mac(fields.bytes()?);
                if mac.is_group() || mac == Mac::ZERO {
                    return Err(NoMessage::Field("MAC address"));
                }
                Ok(Message::MachineMac(port, mac))
            }
            REQUEST => Ok(Message::Request),
            other => Err(NoMessage::Type(other)),
        }
    }
}

/// Bytes of a source as they are hashed and told.
pub(crate) fn source_bytes(source: &NatSource) -> [u8; SOURCE_LEN] {
    let mut key = [0; SOURCE_LEN];
    let (vni, rest) = key.split_at_mut(4);
    let (address, port) = rest.split_at_mut(17);
    vni.copy_from_slice(&source.vni.get().to_le_bytes());
    address.copy_from_slice(&address_bytes(source.address));
    port.copy_from_slice(&source.port.to_le_bytes());
    key
}

fn icmp_type(used: &NatUse) -> u16 {
    match (used.remote.protocol, used.source.address) {
        (protocol::ICMP, IpAddr::V4(_)) => u16::from(icmp::ECHO_REQUEST),
        (protocol::ICMP, IpAddr::V6(_)) => u16::from(icmp::V6_ECHO_REQUEST),
        _ => 0,
    }
}

fn put_use(frame: &mut SyncFrame, used: &NatUse) {
    let NatUse {
        source,
        end,
        remote,
    } = used;
    let (port, protocol) = match (remote.protocol, source.address) {
        (protocol::ICMP, IpAddr::V4(_)) => (source.port, protocol::ICMP),
        (protocol::ICMP, IpAddr::V6(_)) => (source.port, protocol::ICMPV6),
        (protocol, _) => (remote.port, protocol),
    };
    frame.extend(source_bytes(source));
    frame.extend(end.address.to_bits().to_le_bytes());
    frame.extend(end.port.to_le_bytes());
    frame.extend(remote.address.to_bits().to_le_bytes());
    frame.extend(port.to_le_bytes());
    frame.push(protocol);
}

/// What is left of a message.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], NoMessage> {
        let (first, rest) = self.0.split_first_chunk().ok_or(NoMessage::Truncated)?;
        self.0 = rest;
        Ok(*first)
    }

    fn byte(&mut self) -> Result<u8, NoMessage> {
        let [byte] = self.bytes()?;
        Ok(byte)
    }

    fn number(&mut self) -> Result<u16, NoMessage> {
        self.bytes().map(u16::from_le_bytes)
    }

    fn ipv4(&mut self) -> Result<Ipv4Addr, NoMessage> {
        let number = self.bytes().map(u32::from_le_bytes)?;
        Ok(Ipv4Addr::from_bits(number))
    }

    fn nat_use(&mut self) -> Result<NatUse, NoMessage> {
        let vni = u32::from_le_bytes(self.bytes()?);
        let vni = Vni::new(vni).ok_or(NoMessage::Field("VNI"))?;
        let address: [u8; 16] = self.bytes()?;
        let [a, b, c, d, ..] = address;
        let address = match self.byte()? {
            0 => IpAddr::V4(Ipv4Addr::from_bits(u32::from_le_bytes([a, b, c, d]))),
            1 => IpAddr::V6(Ipv6Addr::from(address)),
            _ => return Err(NoMessage::Field("address family")),
        };
        let source = NatSource {
            vni,
            address,
            port: self.number()?,
        };
        let end = NatEnd {
            address: self.ipv4()?,
            port: self.number()?,
        };
        let (remote, port) = (self.ipv4()?, self.number()?);
        let remote = match (self.byte()?, address) {
            (protocol::ICMP, IpAddr::V4(_)) | (protocol::ICMPV6, IpAddr::V6(_)) => {
                NatRemote::echo(remote)
            }
            (protocol @ (protocol::TCP | protocol::UDP), _) => NatRemote {
                address: remote,
                port,
                protocol,
            },
            _ => return Err(NoMessage::Field("protocol")),
        };
        Ok(NatUse {
            source,
            end,
            remote,
        })
    }
}

/// Messages that have not been fetched yet, at most.
pub const JOURNAL_MAX: usize = 8_192;

/// What a packet thread has done and nobody has been told yet. Nothing, unless somebody wants to know.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    messages: Vec<Message>,
    lost: u64,
}

impl Journal {
    /// Begins to note.
    pub(crate) fn begin(&mut self) {
        self.messages.reserve_exact(JOURNAL_MAX);
    }

    /// What does not fit is counted: the other instance will not know of it.
    #[inline]
    pub(crate) fn note(&mut self, message: impl FnOnce() -> Message) {
        if self.messages.capacity() == 0 {
            return;
        }
        if self.messages.len() < JOURNAL_MAX {
            self.messages.push(message());
        } else {
            self.lost += 1;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(crate) fn fetch(&mut self) -> impl Iterator<Item = Message> {
        self.messages.drain(..)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }
}
