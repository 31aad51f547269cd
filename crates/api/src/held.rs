//! Public addresses that a data plane may have: written on the OpenKCM-net interface or Instance before the data plane is told,
//! and taken away after it has let go, so that whoever frees or gives addresses never has to trust a report that may be late.
//!
//! The list stands in an annotation ([`IN_DATA_PLANE`]) because it is written under the version of the whole object: an owner that
//! takes an address out of the spec and a partition that is about to hand it on cannot both succeed.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crate::meta::{Ip, ObjectMeta};
use crate::names::annotation::IN_DATA_PLANE;

/// An address, or some ports of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    pub address: IpAddr,
    /// First and last port of a shared address; all of it without.
    pub ports: Option<(i32, i32)>,
}

impl Held {
    pub fn whole(Ip(address): Ip) -> Held {
        Held {
            address,
            ports: None,
        }
    }

    pub fn share(Ip(address): Ip, port: i32, end_port: i32) -> Held {
        Held {
            address,
            ports: Some((port, end_port)),
        }
    }

    pub fn ip(&self) -> Ip {
        Ip(self.address)
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ports {
            None => write!(f, "{}", self.address),
            Some((first, last)) => write!(f, "{}/{first}-{last}", self.address),
        }
    }
}

/// What an object says. An entry that nobody understands is left out: it was not written by us.
pub fn of(meta: &ObjectMeta) -> BTreeSet<Held> {
    let text = meta
        .annotations
        .as_ref()
        .and_then(|all| all.get(IN_DATA_PLANE));
    let entries = text.into_iter().flat_map(|text| text.split(','));
    entries.filter_map(parse).collect()
}

fn parse(entry: &str) -> Option<Held> {
    let Some((address, ports)) = entry.split_once('/') else {
        let address = entry.parse().ok()?;
        return Some(Held {
            address,
            ports: None,
        });
    };
    let (first, last) = ports.split_once('-')?;
    Some(Held {
        address: address.parse().ok()?,
        ports: Some((first.parse().ok()?, last.parse().ok()?)),
    })
}

/// The annotation's value; nothing for nothing.
pub fn text(held: &BTreeSet<Held>) -> Option<String> {
    let entries: Vec<String> = held.iter().map(Held::to_string).collect();
    (!entries.is_empty()).then(|| entries.join(","))
}
