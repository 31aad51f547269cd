//! Messages and framing: bytes to [`Message`] and back, and reassembly of a byte stream.
//!
//! A message is a four-byte header (version 1, payload length big endian, type) and a proto3 payload of at most
//! [`PAYLOAD_MAX`] bytes. The payloads are coded by hand: routes pass here by the million, the schema has four flat
//! messages, and rules matter that a generated decoder does not express (which fields must be there, what an odd value
//! becomes). Tests compare it with a generated one. Deliberately absent: what a message *means* in a state ([`crate::peer`]).

use std::net::IpAddr;

use crate::route::{Destination, HopType, IpVersion, NextHop, Route, addr_from};

/// Bytes before the payload.
pub const HEADER_LEN: usize = 4;
/// The protocol version in each header.
pub const VERSION: u8 = 1;
/// Largest payload that is sent or accepted: the protocol's own limit, so that a message fits one IPv6 minimum packet.
pub const PAYLOAD_MAX: usize = 1188;
/// Largest message that this implementation sends (an update with every field at its longest takes 79 bytes, a HELLO with
/// the longest node name 85).
pub const MESSAGE_MAX: usize = 96;
/// Longest node name in a HELLO; longer ones are ignored.
pub const NODE_NAME_MAX: usize = 63;

const TYPE_HELLO: u8 = 1;
const TYPE_KEEPALIVE: u8 = 2;
const TYPE_SUBSCRIBE: u8 = 3;
const TYPE_UNSUBSCRIBE: u8 = 4;
const TYPE_UPDATE: u8 = 5;

/// HELLO fields of our own. The reference implementation skips unknown fields, which makes this the one safe place to
/// negotiate; high numbers keep clear of fields that it may add.
const HELLO_CAPABILITIES: u32 = 1000;
const HELLO_NODE: u32 = 1001;

/// How deep unknown groups may nest while they are skipped.
const GROUP_DEPTH_MAX: u32 = 16;

/// What a peer can do beyond the plain protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(pub u32);

impl Capabilities {
    /// Reassembles the byte stream: may be written to as fast as TCP takes it.
    pub const STREAM: Self = Self(1);

    /// Whether all of `other` are present.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// First message of each side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Seconds; the smaller of both sides wins.
    pub keepalive_s: u32,
    /// True in a server's answer.
    pub is_server: bool,
    /// Empty in what the reference implementation sends.
    pub capabilities: Capabilities,
    /// Names the announcer across its connections, so that a server can keep its routes over a restart. Empty: none.
    pub node: String,
}

/// Whether a route comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Number 0, and every number that the protocol does not know.
    Add,
    /// Number 1.
    Remove,
}

/// A change of one route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// Comes or goes.
    pub action: Action,
    /// Which route.
    pub route: Route,
}

/// A decoded message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Type 1.
    Hello(Hello),
    /// Type 2.
    Keepalive,
    /// Type 3, with the VNI.
    Subscribe(u32),
    /// Type 4, with the VNI.
    Unsubscribe(u32),
    /// Type 5.
    Update(Update),
}

/// Why bytes are not a message. The connection is beyond repair: reset it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// First header byte.
    #[error("protocol version {0} instead of 1")]
    Version(u8),
    /// Fourth header byte.
    #[error("unknown message type {0}")]
    Type(u8),
    /// Header length.
    #[error("payload of {0} bytes, at most 1188 are allowed")]
    TooLong(u16),
    /// The payload is not a protobuf message.
    #[error("payload is not valid protobuf")]
    Protobuf,
    /// An update without a destination.
    #[error("update without destination")]
    NoDestination,
    /// An update without a next hop.
    #[error("update without next hop")]
    NoNextHop,
    /// An address must have 4 or 16 bytes.
    #[error("address of {0} bytes")]
    AddressLength(usize),
}

/// Decodes the first message in `bytes`: the message and its length, or `None` if it is not complete. Errors are found as
/// early as their byte is there.
pub fn decode(bytes: &[u8]) -> Result<Option<(Message, usize)>, DecodeError> {
    let Some(total) = frame_len(bytes)? else {
        return Ok(None);
    };
    let Some(payload) = bytes.get(HEADER_LEN..total) else {
        return Ok(None);
    };
    let message = match bytes[3] {
        TYPE_HELLO => Message::Hello(decode_hello(payload)?),
        TYPE_KEEPALIVE => Message::Keepalive,
        TYPE_SUBSCRIBE => Message::Subscribe(decode_subscription(payload)?),
        TYPE_UNSUBSCRIBE => Message::Unsubscribe(decode_subscription(payload)?),
        TYPE_UPDATE => Message::Update(decode_update(payload)?),
        other => return Err(DecodeError::Type(other)),
    };
    Ok(Some((message, total)))
}

/// Length of the first message, header included; `None` if the header is not complete.
fn frame_len(bytes: &[u8]) -> Result<Option<usize>, DecodeError> {
    let Some(&version) = bytes.first() else {
        return Ok(None);
    };
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let (Some(&high), Some(&low)) = (bytes.get(1), bytes.get(2)) else {
        return Ok(None);
    };
    let payload_len = u16::from_be_bytes([high, low]);
    if usize::from(payload_len) > PAYLOAD_MAX {
        return Err(DecodeError::TooLong(payload_len));
    }
    match bytes.get(3) {
        Some(TYPE_HELLO..=TYPE_UPDATE) => Ok(Some(HEADER_LEN + usize::from(payload_len))),
        Some(&other) => Err(DecodeError::Type(other)),
        None => Ok(None),
    }
}

/// Reassembles messages from arbitrary pieces of the stream. Holds at most one incomplete message.
#[derive(Debug, Default)]
pub struct Reassembly {
    partial: Vec<u8>,
}

impl Reassembly {
    /// Takes the next bytes of the stream and hands each completed message to `each`. After an error the stream has no
    /// defined continuation.
    pub fn feed<E: From<DecodeError>>(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(Message) -> Result<(), E>,
    ) -> Result<(), E> {
        while !self.partial.is_empty() && !bytes.is_empty() {
            let wanted = frame_len(&self.partial)?.unwrap_or(HEADER_LEN) - self.partial.len();
            let (now, rest) = bytes.split_at(wanted.min(bytes.len()));
            self.partial.extend_from_slice(now);
            bytes = rest;
            if let Some((message, _)) = decode(&self.partial)? {
                self.partial.clear();
                each(message)?;
            }
        }
        while let Some((message, len)) = decode(bytes)? {
            bytes = &bytes[len..];
            each(message)?;
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    /// Bytes of an incomplete message.
    pub fn pending(&self) -> usize {
        self.partial.len()
    }
}

/// Appends a message.
pub fn encode(message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::Hello(hello) => encode_hello(hello, out),
        Message::Keepalive => Frame::new(TYPE_KEEPALIVE).finish(out),
        Message::Subscribe(vni) => encode_subscription(TYPE_SUBSCRIBE, *vni, out),
        Message::Unsubscribe(vni) => encode_subscription(TYPE_UNSUBSCRIBE, *vni, out),
        Message::Update(update) => encode_update(update, out),
    }
}

fn encode_hello(hello: &Hello, out: &mut Vec<u8>) {
    let mut frame = Frame::new(TYPE_HELLO);
    frame.varint_field(1, u64::from(hello.keepalive_s));
    frame.varint_field(2, u64::from(hello.is_server));
    frame.varint_field(HELLO_CAPABILITIES, u64::from(hello.capabilities.0));
    if !hello.node.is_empty() && hello.node.len() <= NODE_NAME_MAX {
        frame.bytes_field(HELLO_NODE, hello.node.as_bytes());
    }
    frame.finish(out);
}

fn encode_subscription(message_type: u8, vni: u32, out: &mut Vec<u8>) {
    let mut frame = Frame::new(message_type);
    frame.varint_field(1, u64::from(vni));
    frame.finish(out);
}

/// Appends an update: the one message whose speed matters.
pub fn encode_update(update: &Update, out: &mut Vec<u8>) {
    let Update {
        action,
        route: Route {
            vni,
            destination,
            next_hop,
        },
    } = update;
    let mut frame = Frame::new(TYPE_UPDATE);
    frame.varint_field(1, u64::from(*action == Action::Remove));
    frame.varint_field(2, u64::from(*vni));

    let start = frame.open(3);
    frame.varint_field(1, u64::from(destination.version() == IpVersion::V6));
    frame.address_field(2, destination.addr());
    frame.varint_field(3, u64::from(destination.wire_length()));
    frame.close(start);

    let start = frame.open(4);
    frame.address_field(1, next_hop.addr);
    frame.varint_field(2, u64::from(next_hop.target_vni));
    // An enumeration is a sign-extended varint: a negative number takes ten bytes.
    frame.varint_field(3, i64::from(next_hop.hop_type.number()).cast_unsigned());
    let (from, to) = next_hop.hop_type.ports();
    frame.varint_field(4, u64::from(from));
    frame.varint_field(5, u64::from(to));
    frame.close(start);
    frame.finish(out);
}

/// One message under construction. Proto3 omits fields that have their default value.
struct Frame {
    bytes: [u8; MESSAGE_MAX],
    len: usize,
}

impl Frame {
    fn new(message_type: u8) -> Self {
        let mut bytes = [0; MESSAGE_MAX];
        bytes[0] = VERSION;
        bytes[3] = message_type;
        Self {
            bytes,
            len: HEADER_LEN,
        }
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    fn varint_field(&mut self, number: u32, value: u64) {
        if value != 0 {
            self.varint(u64::from(number) << 3);
            self.varint(value);
        }
    }

    fn bytes_field(&mut self, number: u32, bytes: &[u8]) {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn address_field(&mut self, number: u32, addr: IpAddr) {
        match addr {
            IpAddr::V4(v4) => self.bytes_field(number, &v4.octets()),
            IpAddr::V6(v6) => self.bytes_field(number, &v6.octets()),
        }
    }

    /// Opens a sub-message; its length (always below 128) is filled in by [`Frame::close`].
    fn open(&mut self, number: u32) -> usize {
        self.varint(u64::from(number) << 3 | 2);
        self.push(0);
        self.len
    }

    fn close(&mut self, start: usize) {
        self.bytes[start - 1] = (self.len - start) as u8;
    }

    fn finish(mut self, out: &mut Vec<u8>) {
        let [high, low] = ((self.len - HEADER_LEN) as u16).to_be_bytes();
        self.bytes[1] = high;
        self.bytes[2] = low;
        out.extend_from_slice(&self.bytes[..self.len]);
    }
}

fn decode_hello(payload: &[u8]) -> Result<Hello, DecodeError> {
    let mut hello = Hello::default();
    let mut fields = Fields(payload);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Varint(value)) => hello.keepalive_s = value as u32,
            (2, Value::Varint(value)) => hello.is_server = value != 0,
            (HELLO_CAPABILITIES, Value::Varint(value)) => {
                hello.capabilities = Capabilities(value as u32);
            }
            (HELLO_NODE, Value::Bytes(name)) if name.len() <= NODE_NAME_MAX => {
                hello.node = String::from_utf8_lossy(name).into_owned();
            }
            _ => {}
        }
    }
    // Replacing bad bytes lengthens the text; such a name identifies nobody.
    if hello.node.len() > NODE_NAME_MAX {
        hello.node.clear();
    }
    Ok(hello)
}

fn decode_subscription(payload: &[u8]) -> Result<u32, DecodeError> {
    let mut vni = 0;
    let mut fields = Fields(payload);
    while let Some((number, value)) = fields.next()? {
        if let (1, Value::Varint(value)) = (number, value) {
            vni = value as u32;
        }
    }
    Ok(vni)
}

/// Sub-message fields as collected so far: a repeated sub-message merges into the earlier one.
#[derive(Default)]
struct DestinationFields<'a> {
    version: i32,
    prefix: &'a [u8],
    length: u32,
}

#[derive(Default)]
struct NextHopFields<'a> {
    address: &'a [u8],
    target_vni: u32,
    hop_type: i32,
    from: u16,
    to: u16,
}

fn decode_update(payload: &[u8]) -> Result<Update, DecodeError> {
    let mut action = Action::Add;
    let mut vni = 0;
    let mut destination = None;
    let mut next_hop = None;
    let mut fields = Fields(payload);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Varint(value)) => {
                action = if value as i32 == 1 {
                    Action::Remove
                } else {
                    Action::Add
                };
            }
            (2, Value::Varint(value)) => vni = value as u32,
            (3, Value::Bytes(bytes)) => {
                merge_destination(destination.get_or_insert_default(), bytes)?;
            }
            (4, Value::Bytes(bytes)) => merge_next_hop(next_hop.get_or_insert_default(), bytes)?,
            _ => {}
        }
    }
    let DestinationFields {
        version,
        prefix,
        length,
    } = destination.ok_or(DecodeError::NoDestination)?;
    let version = if version == 0 {
        IpVersion::V4
    } else {
        IpVersion::V6
    };
    let destination = Destination::from_wire(version, address(prefix)?, length);
    let NextHopFields {
        address: addr,
        target_vni,
        hop_type,
        from,
        to,
    } = next_hop.ok_or(DecodeError::NoNextHop)?;
    let hop_type = HopType::from_wire(hop_type, from, to);
    let next_hop = NextHop {
        addr: address(addr)?,
        target_vni,
        hop_type,
    };
    Ok(Update {
        action,
        route: Route {
            vni,
            destination,
            next_hop,
        },
    })
}

fn merge_destination<'a>(
    into: &mut DestinationFields<'a>,
    bytes: &'a [u8],
) -> Result<(), DecodeError> {
    let mut fields = Fields(bytes);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Varint(value)) => into.version = value as i32,
            (2, Value::Bytes(bytes)) => into.prefix = bytes,
            (3, Value::Varint(value)) => into.length = value as u32,
            _ => {}
        }
    }
    Ok(())
}

fn merge_next_hop<'a>(into: &mut NextHopFields<'a>, bytes: &'a [u8]) -> Result<(), DecodeError> {
    let mut fields = Fields(bytes);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Bytes(bytes)) => into.address = bytes,
            (2, Value::Varint(value)) => into.target_vni = value as u32,
            (3, Value::Varint(value)) => into.hop_type = value as i32,
            // A port above 65535 loses its high bits, as with the reference implementation.
            (4, Value::Varint(value)) => into.from = value as u16,
            (5, Value::Varint(value)) => into.to = value as u16,
            _ => {}
        }
    }
    Ok(())
}

fn address(bytes: &[u8]) -> Result<IpAddr, DecodeError> {
    let is_v4 = match bytes.len() {
        4 => true,
        16 => false,
        other => return Err(DecodeError::AddressLength(other)),
    };
    let mut full = [0; 16];
    full[..bytes.len()].copy_from_slice(bytes);
    Ok(addr_from(full, is_v4))
}

/// A protobuf field value. Fixed-width numbers and groups are in no message here: they are skipped.
enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Skipped,
}

/// Iterates over the fields of one message. A known field number with an unexpected wire type counts as unknown.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, DecodeError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (number, wire_type) = self.key()?;
        Ok(Some((number, self.value(number, wire_type, 0)?)))
    }

    fn key(&mut self) -> Result<(u32, u8), DecodeError> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).map_err(|_| DecodeError::Protobuf)?;
        if number == 0 || number >= 1 << 29 {
            return Err(DecodeError::Protobuf);
        }
        Ok((number, (key & 7) as u8))
    }

    fn value(&mut self, number: u32, wire_type: u8, depth: u32) -> Result<Value<'a>, DecodeError> {
        match wire_type {
            0 => Ok(Value::Varint(self.varint()?)),
            1 => self.take(8).map(|_| Value::Skipped),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| DecodeError::Protobuf)?;
                Ok(Value::Bytes(self.take(len)?))
            }
            3 => self.skip_group(number, depth),
            5 => self.take(4).map(|_| Value::Skipped),
            _ => Err(DecodeError::Protobuf),
        }
    }

    fn skip_group(&mut self, group: u32, depth: u32) -> Result<Value<'a>, DecodeError> {
        if depth >= GROUP_DEPTH_MAX {
            return Err(DecodeError::Protobuf);
        }
        loop {
            match self.key()? {
                (number, 4) if number == group => return Ok(Value::Skipped),
                (number, wire_type) => self.value(number, wire_type, depth + 1)?,
            };
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Protobuf)?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for (index, &byte) in self.0.iter().take(10).enumerate() {
            // The tenth byte holds one bit only.
            if index == 9 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.0 = &self.0[index + 1..];
                return Ok(value);
            }
        }
        Err(DecodeError::Protobuf)
    }
}
