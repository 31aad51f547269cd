//! What operators may look at: rows of tables and how full they are.

use crate::underlay::UnderlayKind;
use crate::verdict::PortId;
use core::net::Ipv6Addr;
use net::{Prefix, Vni};

/// An underlay address and what it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointRow {
    /// The address.
    pub underlay: Ipv6Addr,
    /// What it stands for.
    pub kind: UnderlayKind,
    /// Virtual network.
    pub vni: Vni,
    /// Port behind it.
    pub port: PortId,
    /// The prefix, if it stands for one.
    pub prefix: Option<Prefix>,
}

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// Its name in telemetry.
    pub name: &'static str,
    /// Most entries there can be.
    pub capacity: u64,
    /// Entries.
    pub entries: u64,
}
