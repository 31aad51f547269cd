//! The route table of a data plane: what it would do with a destination, and whose next hop that is.

use std::net::{IpAddr, Ipv6Addr};

use metalnet::plan::observed::{Installed, Observed};
use net::{Prefix, Vni};

/// Where a table leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Live {
    /// To an interface of the same host.
    Own {
        prefix: Prefix,
    },
    /// Through a tunnel.
    Remote {
        prefix: Prefix,
        hop: Ipv6Addr,
    },
    /// There is a route, but its next hop could not be read.
    Unreadable {
        prefix: Prefix,
    },
    Nothing,
}

/// The longest match of `destination` in the table of `vni`.
pub(super) fn lookup(inventory: &Observed, vni: Vni, destination: IpAddr) -> Live {
    let mut best: Option<(u8, Live)> = None;
    let mut offer = |prefix: Prefix, live: Live| {
        let longer = best
            .as_ref()
            .is_none_or(|(length, _)| prefix.len() > *length);
        if prefix.contains(destination) && longer {
            best = Some((prefix.len(), live));
        }
    };
    for (_, interface) in inventory.interfaces() {
        for (prefix, _) in interface.owned().filter(|_| interface.vni == vni) {
            offer(prefix, Live::Own { prefix });
        }
    }
    for (prefix, installed) in inventory.routes(vni) {
        let live = match installed {
            Installed::Hop(hop) => Live::Remote {
                prefix,
                hop: hop.address,
            },
            Installed::Unknown => Live::Unreadable { prefix },
        };
        offer(prefix, live);
    }
    best.map_or(Live::Nothing, |(_, live)| live)
}
