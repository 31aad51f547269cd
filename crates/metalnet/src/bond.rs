//! Between the agent and the metalbond client: the same routes in each other's words.

use std::net::IpAddr;

use metalbond::{Client, Destination, HopType, NextHop, RouteEvent};

use crate::agent::Input;
use crate::model::{Prefix, Vni};
use crate::plan::ops::{Announcement, BondOp};
use crate::plan::rib::Learned;

/// Tells the client what is wanted now. It keeps the wish for every server, so nothing can fail here.
pub fn apply(client: &Client, op: BondOp) {
    match op {
        BondOp::Subscribe(vni) => client.subscribe(vni.get()),
        BondOp::Unsubscribe(vni) => client.unsubscribe(vni.get()),
        BondOp::Announce(announcement) => {
            if let Some((vni, destination, hop)) = words(announcement) {
                client.announce(vni, destination, hop);
            }
        }
        BondOp::Withdraw(announcement) => {
            if let Some((vni, destination, hop)) = words(announcement) {
                client.withdraw(vni, destination, hop);
            }
        }
    }
}

fn words(announcement: Announcement) -> Option<(u32, Destination, NextHop)> {
    let Announcement {
        vni,
        prefix,
        underlay,
    } = announcement;
    let destination = Destination::new(prefix.address(), prefix.len())?;
    Some((vni.get(), destination, NextHop::standard(underlay)))
}

/// What an event means for the agent; `None` for routes that are not ordinary ones, or make no sense.
pub fn input(event: RouteEvent) -> Option<Input> {
    let (vni, destination, next_hop, present) = match event {
        RouteEvent::Added {
            vni,
            destination,
            next_hop,
        } => (vni, destination, next_hop, true),
        RouteEvent::Removed {
            vni,
            destination,
            next_hop,
        } => (vni, destination, next_hop, false),
    };
    let NextHop {
        addr,
        target_vni,
        hop_type,
    } = next_hop;
    let (HopType::Standard, IpAddr::V6(address)) = (hop_type, addr) else {
        return None;
    };
    let prefix = Prefix::new(destination.addr(), destination.length()?)?;
    Some(Input::Learned {
        vni: Vni::new(vni)?,
        prefix,
        hop: Learned {
            address,
            target_vni,
        },
        present,
    })
}
