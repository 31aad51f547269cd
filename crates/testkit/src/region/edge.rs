//! The region's edge: the real route table and packet decisions of crate `edge`, between the outside and the underlay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use dataplane::{Instant, PacketBuf};
use edge::counters::Path;
use edge::table::{Routes, Scope};
use edge::{Counters, Settings, Verdict};
use metalbond::{Destination, NextHop, Route};
use net::{Mac, Prefix};

use crate::region::bond::Client;
use crate::region::host::PUBLIC_VNI;
use crate::region::store::PUBLIC;

/// The edge's tunnel address.
const ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0xff, 0, 0, 0, 1);
/// Routes that the edge announces: the way out, in both families.
pub const DEFAULTS: usize = 2;
const MAC: Mac = Mac([0x02, 0, 0, 0, 0xff, 1]);

pub struct Edge {
    pub bond: Client,
    routes: Routes,
    edge: edge::Edge,
}

/// What becomes of a packet that a hypervisor sent to the edge.
pub enum Out {
    /// It leaves the region, as this IP packet.
    Outside(Vec<u8>),
    /// It goes to another public address.
    Back(PacketBuf),
}

impl Edge {
    pub fn new(servers: usize) -> Edge {
        let public: Vec<Prefix> = PUBLIC.iter().filter_map(|text| text.parse().ok()).collect();
        let underlay: Option<Prefix> = "fd00::/16".parse().ok();
        let settings = Settings {
            address: ADDRESS,
            icmp_v4: Ipv4Addr::new(192, 0, 2, 1),
            mac: MAC,
            mtu: 1_500,
            public: public.clone(),
            underlay: underlay.into_iter().collect(),
            denied: Vec::new(),
        };
        let mut bond = Client::new("", servers);
        bond.subscribe(PUBLIC_VNI);
        let all: [IpAddr; DEFAULTS] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        for unspecified in all {
            if let Some(destination) = Destination::new(unspecified, 0) {
                bond.announce(Route {
                    vni: PUBLIC_VNI,
                    destination,
                    next_hop: NextHop::standard(ADDRESS),
                });
            }
        }
        Edge {
            bond,
            routes: Routes::new(Scope {
                vni: PUBLIC_VNI,
                own: ADDRESS,
                public,
            }),
            edge: edge::Edge::new(Arc::new(settings), Arc::new(Counters::default())),
        }
    }

    pub fn address(&self) -> Ipv6Addr {
        ADDRESS
    }

    /// Public routes that are known.
    pub fn routes_len(&self) -> usize {
        self.routes.len()
    }

    /// Takes in what metalbond said.
    pub fn follow(&mut self) {
        for event in self.bond.events() {
            self.routes.follow(&event);
        }
    }

    /// An IP packet from the outside becomes a tunnel packet.
    pub fn inwards(&mut self, packet: &[u8], now: Instant) -> Result<PacketBuf, String> {
        let ethertype: [u8; 2] = match packet.first().map(|first| first >> 4) {
            Some(6) => [0x86, 0xdd],
            _ => [0x08, 0x00],
        };
        let header = [&MAC.0[..], &[0x02, 0, 0, 0, 0, 9], &ethertype].concat();
        let mut buffer = PacketBuf::with_frame_max(1_800);
        if !buffer.fill(&[&header, packet].concat()) {
            return Err("too large".to_owned());
        }
        match self.edge.process(self.routes.table(), &mut buffer, now) {
            Verdict::Send(_) => Ok(buffer),
            Verdict::Answer(reason) | Verdict::Drop(reason) => Err(format!("edge: {reason:?}")),
        }
    }

    /// A tunnel packet from a hypervisor is unpacked.
    pub fn outwards(&mut self, mut packet: PacketBuf, now: Instant) -> Result<Out, String> {
        if let Some(place) = packet.frame_mut().get_mut(..6) {
            place.copy_from_slice(&MAC.0);
        }
        match self.edge.process(self.routes.table(), &mut packet, now) {
            Verdict::Send(Path::Hairpin) => Ok(Out::Back(packet)),
            Verdict::Send(_) => {
                let ip = packet.frame().get(14..).unwrap_or_default();
                Ok(Out::Outside(ip.to_vec()))
            }
            Verdict::Answer(reason) | Verdict::Drop(reason) => Err(format!("edge: {reason:?}")),
        }
    }
}
