//! Virtual services: machines reach an IPv6 service of the infrastructure through an IPv4 address, without tunnel and without NAT.
//!
//! Every connection gets a source port of its own at the service's underlay address; here is the table of these ports. It is searched
//! from the place after the last one given out, so a port rests as long as possible before it is used again.

use crate::jhash::jhash;
use crate::objects::VirtualServiceSpec;
use crate::port_map::Seed;
use crate::sync::{Message, VirtualUse};
use crate::time::Instant;
use crate::verdict::PortId;
use core::net::{Ipv4Addr, Ipv6Addr};
use net::tcp::{ACK, FIN, RST, SYN};
use std::collections::HashMap;

/// Source ports below are never used.
const PORT_START: u16 = 1_024;
/// Connections of one service, all machines together.
pub const VIRTUAL_CONNECTIONS_MAX: usize = 65_536 - PORT_START as usize;
/// Idle seconds of an established TCP connection.
const ESTABLISHED_S: u64 = 86_400;

/// The machine's end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// Its port on this host.
    pub port: PortId,
    /// Which of the interfaces that have been on that port (a machine that was replaced must not get its predecessor's packets).
    pub attachment: u32,
    /// Its address.
    pub machine: Ipv4Addr,
    /// Its TCP or UDP port.
    pub machine_port: u16,
}

impl Connection {
    /// The hash that all implementations agree on for the choice of uplink.
    #[must_use]
    pub fn path_hash(&self) -> u32 {
        let [a, b] = self.port.0.to_le_bytes();
        let [c, d] = self.machine_port.to_be_bytes();
        let [e, f, g, h] = self.machine.octets();
        jhash(&[a, b, c, d, e, f, g, h])
    }
}

/// How far a TCP handshake has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handshake {
    None,
    Syn,
    SynAck,
    Established,
}

impl Handshake {
    fn advance(self, flags: u8) -> Handshake {
        match (self, flags & (SYN | ACK | FIN | RST)) {
            (_, bits) if bits & (FIN | RST) != 0 => Handshake::None,
            (Handshake::None, SYN) => Handshake::Syn,
            (Handshake::Syn, bits) if bits == SYN | ACK => Handshake::SynAck,
            (Handshake::SynAck, ACK) => Handshake::Established,
            (state, _) => state,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    connection: Connection,
    last_seen: Instant,
    handshake: Handshake,
}

/// A service and its connections.
#[derive(Debug)]
pub struct VirtualService {
    spec: VirtualServiceSpec,
    underlay: Ipv6Addr,
    idle_s: u64,
    slots: Vec<Option<Slot>>,
    by_connection: HashMap<Connection, u16, Seed>,
    last: usize,
}

impl VirtualService {
    /// Service number `index` of a host; UDP and half-open connections are forgotten after `idle_s` seconds.
    #[must_use]
    pub fn new(
        host: Ipv6Addr,
        index: u32,
        spec: VirtualServiceSpec,
        idle_s: u32,
        seed: u64,
    ) -> VirtualService {
        VirtualService {
            spec,
            underlay: service_underlay(host, index),
            idle_s: u64::from(idle_s),
            slots: Vec::new(),
            by_connection: HashMap::with_hasher(Seed(seed)),
            last: 0,
        }
    }

    /// What it stands for.
    #[must_use]
    pub fn spec(&self) -> &VirtualServiceSpec {
        &self.spec
    }

    /// The address from which requests reach the service.
    #[must_use]
    pub fn underlay(&self) -> Ipv6Addr {
        self.underlay
    }

    /// Connections that have not been idle for too long.
    #[must_use]
    pub fn live(&self, now: Instant) -> usize {
        let slots = self.slots.iter().flatten();
        slots.filter(|slot| !self.is_idle(slot, now)).count()
    }

    /// A packet to the service: its source port. `None` if all are in use.
    pub fn outgoing(
        &mut self,
        connection: Connection,
        tcp_flags: Option<u8>,
        now: Instant,
    ) -> Option<u16> {
        let (port, _) = self.outgoing_or_new(connection, tcp_flags, now)?;
        Some(port)
    }

    /// The same, and what another instance has to know if the connection is new.
    pub(crate) fn outgoing_or_new(
        &mut self,
        connection: Connection,
        tcp_flags: Option<u8>,
        now: Instant,
    ) -> Option<(u16, Option<Message>)> {
        let (index, is_new) = match self.by_connection.get(&connection) {
            Some(index) => (usize::from(*index), false),
            None => (self.open(connection, now)?, true),
        };
        self.touch(index, tcp_flags, now)?;
        let message = is_new.then(|| self.shared(index, &connection));
        Some((PORT_START + index as u16, message))
    }

    /// A packet from the service to `port`: whose it is. `None` if the port was never given out.
    pub fn incoming(
        &mut self,
        port: u16,
        tcp_flags: Option<u8>,
        now: Instant,
    ) -> Option<Connection> {
        let index = usize::from(port.checked_sub(PORT_START)?);
        let slot = self.touch(index, tcp_flags, now)?;
        Some(slot.connection)
    }

    /// Takes over a connection that another instance has opened, of which it told at `told`; false if one of the two is known already.
    ///
    /// Nobody tells when a connection ends, so what was told long ago keeps its place only until that is needed. The latest one is to be taken
    /// over first: behind it the search for places goes on.
    pub(crate) fn adopt(
        &mut self,
        index: u16,
        connection: Connection,
        (told, now): (Instant, Instant),
    ) -> bool {
        let place = usize::from(index);
        let is_taken = match self.slots.get(place) {
            Some(Some(slot)) => !self.is_idle(slot, now),
            Some(None) | None => false,
        };
        if place >= VIRTUAL_CONNECTIONS_MAX
            || is_taken
            || self.by_connection.contains_key(&connection)
        {
            return false;
        }
        if self.by_connection.is_empty() {
            self.last = place;
        }
        self.occupy(place, connection, told).is_some()
    }

    /// What another instance has to know of the connections of attached machines at the `count` places from `from` on; the place after them, if
    /// there is one.
    pub(crate) fn visit_shared(
        &self,
        (from, count): (usize, usize),
        is_live: impl Fn(&Connection) -> bool,
        now: Instant,
        visit: &mut dyn FnMut(Message),
    ) -> Option<usize> {
        let places = self.slots.iter().enumerate().skip(from).take(count);
        for (index, slot) in places {
            if let Some(slot) = slot
                && !self.is_idle(slot, now)
                && is_live(&slot.connection)
            {
                visit(self.shared(index, &slot.connection));
            }
        }
        (from + count < self.slots.len()).then_some(from + count)
    }

    fn shared(&self, index: usize, connection: &Connection) -> Message {
        Message::VirtualConnection(VirtualUse {
            protocol: self.spec.protocol,
            address: self.spec.address,
            port: self.spec.port,
            slot: index as u16,
            machine_port: connection.port,
            machine: connection.machine,
            source_port: connection.machine_port,
        })
    }

    fn touch(&mut self, index: usize, tcp_flags: Option<u8>, now: Instant) -> Option<Slot> {
        let slot = self.slots.get_mut(index)?.as_mut()?;
        slot.last_seen = now;
        if let Some(flags) = tcp_flags {
            slot.handshake = slot.handshake.advance(flags);
        }
        Some(*slot)
    }

    fn open(&mut self, connection: Connection, now: Instant) -> Option<usize> {
        let index = (1..=VIRTUAL_CONNECTIONS_MAX)
            .map(|step| (self.last + step) % VIRTUAL_CONNECTIONS_MAX)
            .find(|index| match self.slots.get(*index) {
                Some(Some(slot)) => self.is_idle(slot, now),
                Some(None) | None => true,
            })?;
        self.occupy(index, connection, now)?;
        self.last = index;
        Some(index)
    }

    fn occupy(&mut self, index: usize, connection: Connection, now: Instant) -> Option<()> {
        if index >= self.slots.len() {
            self.slots.resize(index + 1, None);
        }
        let place = self.slots.get_mut(index)?;
        let slot = Slot {
            connection,
            last_seen: now,
            handshake: Handshake::None,
        };
        if let Some(gone) = place.replace(slot) {
            self.by_connection.remove(&gone.connection);
        }
        self.by_connection.insert(connection, index as u16);
        Some(())
    }

    fn is_idle(&self, slot: &Slot, now: Instant) -> bool {
        let timeout = match slot.handshake {
            Handshake::Established => ESTABLISHED_S,
            Handshake::None | Handshake::Syn | Handshake::SynAck => self.idle_s,
        };
        now > slot.last_seen.plus_secs(timeout)
    }
}

/// Underlay address of a service: host prefix, 0xd0, 0xff, the flag "secondary pool", 0, and its number in little endian.
fn service_underlay(host: Ipv6Addr, index: u32) -> Ipv6Addr {
    let [a, b, c, d] = index.to_le_bytes();
    let low = u64::from_be_bytes([0xd0, 0xff, 0x40, 0, a, b, c, d]);
    let high = host.to_bits() >> 64 << 64;
    Ipv6Addr::from_bits(high | u128::from(low))
}

/// Number of the service whose underlay address this may be.
pub(crate) fn service_number(underlay: Ipv6Addr) -> Option<usize> {
    let [.., 0xd0, 0xff, 0x40, 0, a, b, c, d] = underlay.octets() else {
        return None;
    };
    usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()
}
