//! Outer headers, shared by all entries that leave by the same tunnel.
//!
//! A few hundred tunnels carry a million flows, so their headers stay in the first cache levels while entries come from memory. Entries count their
//! references; an unused adjacency is free again at once. Lookup is by content, over chains, and only on the slow walk.

use crate::flow::NONE;
use crate::ipip::{self, TUNNEL_LEN};
use crate::tables::Uplink;
use crate::verdict::PortId;
use core::net::Ipv6Addr;

/// A tunnel: its outer Ethernet and IPv6 header with payload length 0, and the way there. One cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Adjacency {
    pub header: [u8; TUNNEL_LEN],
    pub port: PortId,
    /// Largest inner packet.
    pub inner_max: u16,
}

impl Adjacency {
    /// Where the tunnel leads.
    pub(crate) fn destination(&self) -> Ipv6Addr {
        let octets = self.header.last_chunk::<16>().copied();
        Ipv6Addr::from_octets(octets.unwrap_or_default())
    }

    /// Where it begins.
    pub(crate) fn source(&self) -> Ipv6Addr {
        let addresses = self.header.last_chunk::<32>();
        let source = addresses.and_then(|both| both.first_chunk::<16>());
        Ipv6Addr::from_octets(source.copied().unwrap_or_default())
    }
}

/// What an adjacency is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tunnel {
    pub uplink: Uplink,
    /// Whether IPv6 is inside.
    pub is_v6: bool,
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
}

impl Tunnel {
    /// Where it is remembered: those to different hosts, and from different interfaces to one host, in different places.
    fn place(source: Ipv6Addr, destination: Ipv6Addr) -> usize {
        let bits = destination.to_bits() ^ source.to_bits().rotate_left(7);
        let folded = (bits >> 64) as u64 ^ bits as u64;
        (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % RECENT_MAX
    }
}

/// Tunnels remembered with their numbers, so that the next connection through one need not put its header together to find it.
const RECENT_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Cold {
    references: u32,
    /// Next of the chain, or of free adjacencies.
    next: u32,
}

#[derive(Debug)]
pub(crate) struct AdjacencyTable {
    lines: Vec<Adjacency>,
    cold: Vec<Cold>,
    chains: Box<[u32]>,
    recent: Box<[Option<(Tunnel, u32)>]>,
    max: usize,
    free: u32,
    len: usize,
}

impl AdjacencyTable {
    pub(crate) fn new(max: u32) -> AdjacencyTable {
        let max = max.clamp(1, NONE / 2) as usize;
        AdjacencyTable {
            lines: Vec::with_capacity(max),
            cold: Vec::with_capacity(max),
            chains: vec![NONE; max.next_power_of_two()].into_boxed_slice(),
            recent: vec![None; RECENT_MAX].into_boxed_slice(),
            max,
            free: NONE,
            len: 0,
        }
    }

    /// Adjacencies in use, and the most there can be.
    pub(crate) fn saturation(&self) -> (usize, usize) {
        (self.len, self.max)
    }

    #[inline(always)]
    pub(crate) fn get(&self, index: u32) -> Option<&Adjacency> {
        self.lines.get(index as usize)
    }

    /// The number of a tunnel's adjacency, with one more reference to it. `None` if the table is full.
    pub(crate) fn acquire_tunnel(&mut self, tunnel: &Tunnel) -> Option<u32> {
        if let Some(index) = self.recent(tunnel)
            && let Some(cold) = self.cold.get_mut(index as usize)
        {
            cold.references += 1;
            return Some(index);
        }
        let index = self.acquire(&ipip::adjacency(tunnel))?;
        let place = Tunnel::place(tunnel.source, tunnel.destination);
        if let Some(recent) = self.recent.get_mut(place) {
            *recent = Some((*tunnel, index));
        }
        Some(index)
    }

    /// The same for one who holds the reference `held`, which is given back if it is another's. If the table is full, it is kept.
    pub(crate) fn exchange(&mut self, held: u32, tunnel: &Tunnel) -> Option<u32> {
        if self.recent(tunnel) == Some(held) {
            return Some(held);
        }
        let index = self.acquire_tunnel(tunnel)?;
        self.release(held);
        Some(index)
    }

    fn recent(&self, tunnel: &Tunnel) -> Option<u32> {
        let place = Tunnel::place(tunnel.source, tunnel.destination);
        match self.recent.get(place) {
            Some(Some((known, index))) if known == tunnel => Some(*index),
            _ => None,
        }
    }

    /// The number of an adjacency, with one more reference to it. `None` if the table is full.
    pub(crate) fn acquire(&mut self, wanted: &Adjacency) -> Option<u32> {
        let chain = self.chain(wanted);
        let mut index = *self.chains.get(chain)?;
        while let (Some(line), Some(cold)) = (
            self.lines.get(index as usize),
            self.cold.get_mut(index as usize),
        ) {
            if line == wanted {
                cold.references += 1;
                return Some(index);
            }
            index = cold.next;
        }
        let head = *self.chains.get(chain)?;
        let cold = Cold {
            references: 1,
            next: head,
        };
        let index = if let Some(place) = self.cold.get_mut(self.free as usize) {
            let index = self.free;
            self.free = place.next;
            *place = cold;
            *self.lines.get_mut(index as usize)? = *wanted;
            index
        } else if self.lines.len() < self.max {
            self.lines.push(*wanted);
            self.cold.push(cold);
            (self.lines.len() - 1) as u32
        } else {
            return None;
        };
        *self.chains.get_mut(chain)? = index;
        self.len += 1;
        Some(index)
    }

    /// Gives a reference back.
    pub(crate) fn release(&mut self, index: u32) {
        let Some(cold) = self.cold.get_mut(index as usize) else {
            return;
        };
        cold.references = cold.references.saturating_sub(1);
        if cold.references != 0 {
            return;
        }
        let after = core::mem::replace(&mut cold.next, self.free);
        self.free = index;
        self.len -= 1;
        if let Some(line) = self.lines.get(index as usize) {
            let place = Tunnel::place(line.source(), line.destination());
            if let Some(recent) = self.recent.get_mut(place) {
                *recent = recent.filter(|(_, known)| *known != index);
            }
        }
        self.unchain(index, after);
    }

    fn unchain(&mut self, index: u32, after: u32) {
        let Some(chain) = self.get(index).map(|line| self.chain(line)) else {
            return;
        };
        let Some(head) = self.chains.get_mut(chain) else {
            return;
        };
        if *head == index {
            *head = after;
            return;
        }
        let mut before = *head;
        while let Some(cold) = self.cold.get_mut(before as usize) {
            if cold.next == index {
                cold.next = after;
                return;
            }
            before = cold.next;
        }
    }

    /// Underlay addresses are handed out by hosts, so an unkeyed hash will do.
    fn chain(&self, adjacency: &Adjacency) -> usize {
        let (words, _) = adjacency.header.as_chunks::<6>();
        let hash = words
            .iter()
            .fold(u64::from(adjacency.port.0), |hash, [a, b, c, d, e, f]| {
                (hash.rotate_left(23) ^ u64::from_le_bytes([*a, *b, *c, *d, *e, *f, 0, 0]))
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            });
        (hash >> 32) as usize & (self.chains.len() - 1)
    }
}
