//! The stages of the services, for the first packet of a connection (and, after a change of configuration, for a later one).
//!
//! Order: load balancing, destination translation, route lookup, packet filter, source translation. The filter comes before the source
//! is translated, so that it sees both ends as the machines do and no NAT port is spent on what it drops.

mod balance;
mod dnat;
mod filter;
pub(crate) mod relay;
pub(crate) mod slow;
pub(crate) mod snat;
pub(crate) mod virtual_services;

pub(crate) use balance::process as balance;
pub(crate) use dnat::process as dnat;
pub(crate) use filter::decide as decide_filter;

use crate::flow::key::Transport;
use crate::graph::{Context, Output, Walk};
use crate::route_lookup;
use crate::services::PortServices;
use crate::tables::{Attached, Uplink};
use crate::verdict::{DropReason, PortId};
use core::net::Ipv6Addr;
use net::protocol;

/// Takes a connection through all stages.
pub(crate) fn process(cx: &mut Context<'_>, walk: &mut Walk) -> Result<(), DropReason> {
    balance::process(cx, walk)?;
    dnat::process(cx, walk)?;
    route_lookup::process(cx, walk)?;
    filter::process(cx, walk)?;
    snat::process(cx, walk)
}

impl<'a> Context<'a> {
    /// What the packet path knows of the interface on a port.
    pub(crate) fn attached(&self, port: PortId) -> Option<&'a Attached> {
        self.tables.port(port)?.interface.as_ref()
    }

    /// The services of the machine that sent the packet.
    pub(crate) fn services(&self) -> Option<&'a PortServices> {
        self.attached(self.machine)
            .map(|attached| attached.services.as_ref())
    }

    /// Out of the uplink by which the packet came in, in this host's name.
    pub(crate) fn hairpin(&self, destination: Ipv6Addr) -> Result<Output, DropReason> {
        let mut uplinks = (0..).zip(&self.tables.uplinks);
        let is_it = |uplink: &Uplink| uplink.port == self.from && uplink.is_usable();
        let usable = uplinks.find(|(_, uplink)| uplink.as_ref().is_some_and(is_it));
        let (uplink, _) = usable.ok_or(DropReason::NoUplink)?;
        Ok(Output::Encap {
            uplink,
            source: self.tables.settings.host,
            destination,
        })
    }
}

/// IP protocol of a transport with ports.
fn port_protocol(transport: Transport) -> Option<u8> {
    match transport {
        Transport::Tcp => Some(protocol::TCP),
        Transport::Udp => Some(protocol::UDP),
        Transport::Echo { .. } => None,
    }
}
