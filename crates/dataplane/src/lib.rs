//! The packet engine: bytes, port and `now` go in; a verdict and bytes come out.
//!
//! Pure: no IO, no clock, no randomness, no lock, and nothing is allocated per packet. Deliberately not here: gRPC and
//! command lines (crate `dpservice`), sockets and NICs (crate `ports`).
//!
//! Two halves:
//! - [`Engine`] is the configuration side. Every mutation edits its [`Tables`] and bumps their epoch.
//! - [`Worker`] is the packet side. It owns flows and counters and reads a snapshot of the tables.
//!
//! A single-threaded service calls [`Engine::process_burst`]. With several workers, each thread takes a clone of
//! [`Engine::tables`] between two bursts and calls [`Worker::process_burst`] with it; the engine then copies only what it
//! changes next (routes share their structure with the snapshot).
//!
//! Start reading with `graph.rs`: the path of a packet on one page.

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

mod arp;
mod capture;
mod cls;
mod config;
mod conntrack;
mod counters;
mod dhcp;
mod dhcpv6;
mod edit;
mod engine;
mod error;
mod firewall;
mod flow;
mod fragments;
#[doc(hidden)]
pub mod fuzzing;
mod graph;
mod history;
mod hops;
pub mod icmp_error;
mod inspect;
mod ipip;
mod ipv6_nd;
mod jhash;
mod keep;
mod lpm;
mod maglev;
mod meter;
mod mss;
pub mod nat64;
mod objects;
pub mod offload;
mod owner;
mod packet;
mod periodic;
mod pmtu;
mod port_map;
mod reply;
mod route_lookup;
mod services;
mod stages;
pub mod sync;
mod tables;
mod time;
mod underlay;
mod verdict;
mod virtual_service;
mod worker;

pub use config::{
    Dhcp, EngineConfig, Interface, InterfaceSpec, Limits, Metering, MssClamp, PortConfig, PortKind,
    Pxe, Route, UnderlaySeed, VniType,
};
pub use counters::{Counters, Node, PortCounters};
pub use engine::Engine;
pub use engine::{Explanation, FilterFact, RouteFact, RouteTarget};
pub use error::ConfigError;
pub use firewall::{FIREWALL_RULES_MAX, Filter, FilterPacket, Filtered, Firewall};
pub use inspect::{EndpointRow, FlowOutput, FlowRow, FlowService, FlowTuple, TableSize};
pub use jhash::jhash;
pub use lpm::{Lpm, Slot as LpmEntry};
pub use maglev::{MAGLEV_SLOTS, MAGLEV_TARGETS_MAX, Maglev, TargetError};
pub use meter::TokenBucket;
pub use objects::{
    CapturePort, CaptureSpec, FirewallAction, FirewallMode, FirewallRule, LbPort, LoadBalancerSpec,
    LocalNat, Nat, NeighborNat, PortMatch, RuleDirection, RuleFilter, RulePrefix, Vip,
    VirtualServiceSpec,
};
pub use owner::{Sorter, flow_hash, owner, owner_of_message};
pub use packet::{HEADROOM_MIN, Packet, PacketBuf, wire_len};
pub use port_map::{
    NatEnd, NatError, NatMapping, NatRemote, NatSource, PortMap, source_hash as nat_source_hash,
};
pub use tables::Tables;
pub use time::Instant;
pub use underlay::UnderlayKind;
pub use verdict::{DropReason, PortId, Verdict};
pub use virtual_service::{Connection, VIRTUAL_CONNECTIONS_MAX, VirtualService};
pub use worker::{BURST_MAX, FLOW_PAGE_MAX, KnownConnection, NotTaken, SharePlace, Worker};

/// The IPv4 gateway of every machine (link-local, RFC 3927); only ARP and DHCP ever see it.
pub const GATEWAY_IPV4: core::net::Ipv4Addr = core::net::Ipv4Addr::new(169, 254, 0, 1);
/// The IPv6 gateway of every machine.
pub const GATEWAY_IPV6: core::net::Ipv6Addr = core::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
