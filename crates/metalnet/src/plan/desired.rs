//! What should be: pure functions from objects, claims, learned routes and inventory to the wanted state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use super::observed::{Hop, Interface, Observed};
use super::ops::{Announcement, RouteKey};
use super::rib::{Heard, Rib};
use crate::model::{Filter, Network, Nic, NicSpec, ObjectKey, Prefix, Uid, Vni};

/// What the operator set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub node: String,
    pub ipv6: bool,
    /// The VNI in which addresses of the outside world are announced, default routes included.
    pub public_vni: Vni,
    /// Default router to use for a family for which metalbond supplies none.
    pub router: Option<Ipv6Addr>,
}

/// How a NetworkInterface relates to this node, given its Network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want<'a> {
    /// The API has not been read yet: leave everything as it is.
    Unknown,
    /// No object wants the interface, or its object is being deleted: tear it down.
    Absent,
    /// Not possible at present: do not create; what exists stays.
    Blocked(Block),
    Present {
        spec: &'a NicSpec,
        vni: Vni,
    },
}

/// Why an interface that an object asks for is not wanted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    NetworkMissing,
    /// The Network is being deleted: nothing new starts to use it.
    NetworkDeleting,
    NetworkInvalid,
    SpecInvalid,
}

/// Decides what is wanted of the interface `uid`.
pub fn want<'a>(
    nic: Option<&'a Nic>,
    network: Option<&Network>,
    synced: bool,
    exists: bool,
) -> Want<'a> {
    let Some(nic) = nic else {
        return if synced { Want::Absent } else { Want::Unknown };
    };
    if nic.meta.deleting {
        return Want::Absent;
    }
    let Ok(spec) = &nic.spec else {
        return Want::Blocked(Block::SpecInvalid);
    };
    let Some(network) = network else {
        return if synced {
            Want::Blocked(Block::NetworkMissing)
        } else {
            Want::Unknown
        };
    };
    let Some(vni) = network.vni else {
        return Want::Blocked(Block::NetworkInvalid);
    };
    if network.meta.deleting && !exists {
        return Want::Blocked(Block::NetworkDeleting);
    }
    Want::Present { spec, vni }
}

/// What one interface contributes to the rest of the world.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Share {
    /// Prefixes that belong to this host, with the underlay address once there is one: no learned route replaces them.
    pub own: BTreeMap<RouteKey, Option<Ipv6Addr>>,
    pub announcements: BTreeSet<Announcement>,
    /// The VNIs whose routes it needs.
    pub vnis: BTreeSet<Vni>,
}

/// What the interface contributes, from what is wanted of it and what exists.
///
/// Announcements follow what exists, so that they are right before the API has been read, and are gone as soon as
/// the interface is to be deleted or made anew: first withdraw, then delete.
pub fn share(
    want: Want<'_>,
    device: Option<&str>,
    interface: Option<&Interface>,
    settings: &Settings,
) -> Share {
    let mut share = Share::default();
    if let Want::Present { spec, vni } = want {
        share.vnis.insert(vni);
        let prefixes = spec.host_prefixes().chain(spec.prefixes.iter().copied());
        share
            .own
            .extend(prefixes.map(|prefix| (RouteKey { vni, prefix }, None)));
    }
    let Some(interface) = interface else {
        return share;
    };
    share.vnis.insert(interface.vni);
    for (prefix, underlay) in interface.owned() {
        share.own.insert(
            RouteKey {
                vni: interface.vni,
                prefix,
            },
            Some(underlay),
        );
    }
    let stays = match want {
        Want::Unknown | Want::Blocked(_) => true,
        Want::Absent => false,
        Want::Present { spec, vni } => {
            device.is_none_or(|device| interface.matches(spec, vni, device))
        }
    };
    if stays {
        let kept = |prefix: &Prefix| match want {
            Want::Present { spec, .. } => {
                spec.prefixes.contains(prefix) || spec.host_prefixes().any(|host| host == *prefix)
            }
            Want::Unknown | Want::Blocked(_) | Want::Absent => true,
        };
        for (prefix, underlay) in interface.owned().filter(|(prefix, _)| kept(prefix)) {
            share.announcements.insert(Announcement {
                vni: interface.vni,
                prefix,
                underlay,
            });
        }
        // The outside reaches IPv6 addresses directly: routers learn them from the public VNI.
        if let Some(address) = interface.ipv6 {
            let prefix = Prefix::host(IpAddr::V6(address));
            share.announcements.insert(Announcement {
                vni: settings.public_vni,
                prefix,
                underlay: interface.underlay,
            });
        }
    }
    share
}

/// The default routes that every table in use gets.
pub fn default_prefixes(settings: &Settings) -> impl Iterator<Item = Prefix> + use<> {
    let v4 = Prefix::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);
    let v6 = Prefix::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
    v4.into_iter().chain(v6.filter(|_| settings.ipv6))
}

/// Which tables get whose routes: importing VNI, to exporting VNI, to what may cross.
pub type Imports = BTreeMap<Vni, BTreeMap<Vni, Filter>>;

/// Reads the peerings of all Networks. A Network that lists a peer exports its own routes to it, on every node.
pub fn imports<'a>(networks: impl IntoIterator<Item = &'a Network>) -> Imports {
    let mut imports = Imports::new();
    for network in networks {
        let Some(exporter) = network.vni else {
            continue;
        };
        for (importer, filter) in &network.peers {
            if *importer != exporter {
                imports
                    .entry(*importer)
                    .or_default()
                    .insert(exporter, filter.clone());
            }
        }
    }
    imports
}

/// Prefixes of this host by table, with the interfaces that own them.
pub type Own = BTreeMap<RouteKey, BTreeMap<Uid, Option<Ipv6Addr>>>;

/// Everything a route decision looks at.
#[derive(Debug, Clone, Copy)]
pub struct Routing<'a> {
    pub settings: &'a Settings,
    pub rib: &'a Rib,
    pub own: &'a Own,
    pub imports: &'a Imports,
    pub observed: &'a Observed,
}

/// The route that should be at `key`. The table's own routes come first, then the default router, then peers in
/// the order of their VNI.
pub fn route(world: Routing<'_>, key: RouteKey) -> Option<Hop> {
    let RouteKey { vni, prefix } = key;
    if !world.observed.uses_vni(vni) || world.own.contains_key(&key) {
        return None;
    }
    let installed = match world.observed.route(vni, &prefix) {
        Some(super::observed::Installed::Hop(hop)) => Some(hop),
        Some(super::observed::Installed::Unknown) | None => None,
    };
    let within = |source: Vni| {
        installed
            .filter(|hop| hop.vni == source)
            .map(|hop| hop.address)
    };
    if let Some(address) = world.rib.select(vni, &prefix, within(vni)) {
        return Some(Hop { vni, address });
    }
    if default_prefixes(world.settings).any(|default| default == prefix) {
        let learned = world
            .rib
            .select(world.settings.public_vni, &prefix, within(vni));
        if let Some(address) = learned.or(world.settings.router) {
            return Some(Hop { vni, address });
        }
    }
    let exporters = world.imports.get(&vni)?;
    exporters.iter().find_map(|(exporter, filter)| {
        if !filter.allows(&prefix) {
            return None;
        }
        let local = world.own.get(&RouteKey {
            vni: *exporter,
            prefix,
        });
        let local = local.and_then(|owners| owners.values().flatten().next().copied());
        let address = local.or_else(|| world.rib.select(*exporter, &prefix, within(*exporter)))?;
        Some(Hop {
            vni: *exporter,
            address,
        })
    })
}

/// How far everything that could want a route at `key` has been heard.
pub fn heard(world: Routing<'_>, key: RouteKey) -> Heard {
    let RouteKey { vni, prefix } = key;
    let exporters = world
        .imports
        .get(&vni)
        .into_iter()
        .flat_map(|exporters| exporters.keys().copied());
    let public = (prefix.len() == 0).then_some(world.settings.public_vni);
    let sources = exporters.chain(public).chain([vni]);
    sources
        .map(|source| world.rib.heard(source))
        .min()
        .unwrap_or_default()
}

/// Every VNI whose routes are needed.
pub fn subscriptions<'a>(
    shares: impl IntoIterator<Item = &'a Share>,
    imports: &Imports,
    settings: &Settings,
) -> BTreeSet<Vni> {
    let mut wanted: BTreeSet<Vni> = shares
        .into_iter()
        .flat_map(|share| share.vnis.iter().copied())
        .collect();
    let exporters: Vec<Vni> = wanted
        .iter()
        .filter_map(|vni| imports.get(vni))
        .flat_map(|exporters| exporters.keys().copied())
        .collect();
    wanted.extend(exporters);
    wanted.insert(settings.public_vni);
    wanted
}

/// Whether this node uses `network`: a local NetworkInterface names it, or an interface of its VNI still exists.
pub fn uses_network<'a>(
    key: &ObjectKey,
    network: &Network,
    nics: impl IntoIterator<Item = &'a Nic>,
    observed: &Observed,
) -> bool {
    network.vni.is_some_and(|vni| observed.uses_vni(vni))
        || nics.into_iter().any(|nic| nic.network == *key)
}
