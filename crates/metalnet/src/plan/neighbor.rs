//! The next steps for one NAT address: which other hosts own which of its ports.
//!
//! dpservice refuses ranges that overlap, in whatever network, so the newest owner of a port wins and what it displaces
//! goes first. As with routes, what looks stale just after a start may be carrying traffic, and is left alone until
//! enough has been heard.

use std::net::Ipv4Addr;

use net::PortRange;

use super::observed::{Neighbor, Neighbors};
use super::ops::DpOp;
use super::rib::{Heard, LearnedShare};
use crate::model::Vni;
use crate::services::NatShare;

/// Everything the plan for one NAT address looks at.
#[derive(Debug)]
pub struct View<'a, U, H, W> {
    pub address: Ipv4Addr,
    /// Shares of other hosts, in networks that this host uses.
    pub learned: Vec<LearnedShare>,
    /// Shares of this host's interfaces, by network.
    pub local: Vec<(Vni, PortRange)>,
    /// Networks in which the address stands for one interface of this host alone.
    pub vips: Vec<Vni>,
    pub installed: &'a Neighbors,
    /// Whether this host uses a network: dpservice forgets the shares of one that it stops using, but takes further ones.
    pub used: U,
    /// How far the routes of a network are known.
    pub heard: H,
    /// Whether the last one who announced a share has taken it back, which counts whatever else is known.
    pub withdrawn: W,
}

/// The shares that should be installed: no two overlap, none takes a port that an interface of this host owns.
pub fn wanted(
    address: Ipv4Addr,
    learned: &[LearnedShare],
    local: &[(Vni, PortRange)],
    vips: &[Vni],
    installed: &Neighbors,
) -> Neighbors {
    let mut candidates: Vec<&LearnedShare> = learned
        .iter()
        .filter(|share| !vips.contains(&share.vni) && !address.is_unspecified())
        .filter(|share| {
            let mut own = local.iter().filter(|(vni, _)| *vni == share.vni);
            !own.any(|(_, ports)| ports.overlaps(&share.ports))
        })
        .collect();
    candidates.sort_by_key(|share| {
        let present = installed.get(&(share.vni, share.ports)) == Some(&share.underlay);
        let newest = std::cmp::Reverse(share.arrival);
        (newest, !present, share.vni, share.ports, share.underlay)
    });
    let mut wanted = Neighbors::new();
    for share in candidates {
        let taken = wanted
            .keys()
            .any(|(_, ports): &(Vni, PortRange)| ports.overlaps(&share.ports));
        if !taken {
            wanted.insert((share.vni, share.ports), share.underlay);
        }
    }
    wanted
}

/// Plans the next steps: first what has to go, then what comes.
pub fn plan<U, H, W>(view: View<'_, U, H, W>) -> Vec<DpOp>
where
    U: Fn(Vni) -> bool,
    H: Fn(Vni) -> Heard,
    W: Fn(&Neighbor) -> bool,
{
    let View {
        address,
        learned,
        local,
        vips,
        installed,
        used,
        heard,
        withdrawn,
    } = view;
    let wanted = wanted(address, &learned, &local, &vips, installed);
    let neighbor = |(vni, ports): (Vni, PortRange)| Neighbor {
        vni,
        share: NatShare { address, ports },
    };
    let mut steps = Vec::new();
    for (key, present) in installed {
        let (vni, ports) = *key;
        let neighbor = neighbor(*key);
        let pointless = !used(vni) || vips.contains(&vni) || local.contains(&(vni, ports));
        let displaced = wanted
            .keys()
            .any(|(_, other)| other.overlaps(&ports) && heard(vni) >= Heard::Dumped);
        match wanted.get(key) {
            Some(underlay) if underlay == present => {}
            Some(underlay) if withdrawn(&neighbor) || heard(vni) >= Heard::Dumped => {
                steps.push(DpOp::ReplaceNeighbor {
                    neighbor,
                    underlay: *underlay,
                });
            }
            None if pointless || displaced || withdrawn(&neighbor) || heard(vni) == Heard::All => {
                steps.push(DpOp::DeleteNeighbor { neighbor });
            }
            Some(_) | None => {}
        }
    }
    if !steps.is_empty() {
        return steps;
    }
    let free = |ports: &PortRange| installed.keys().all(|(_, other)| !other.overlaps(ports));
    let missing = wanted
        .iter()
        .filter(|(key, _)| !installed.contains_key(key) && free(&key.1));
    let create = missing.map(|(key, underlay)| DpOp::CreateNeighbor {
        neighbor: neighbor(*key),
        underlay: *underlay,
    });
    create.collect()
}
