//! What should be: pure functions from objects, claims, learned routes and inventory to the wanted state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::observed::{Balancer, Hop, Interface, Observed};
use super::ops::{Announcement, HopKind, RouteKey};
use super::rib::{Heard, Rib};
use crate::model::{Filter, Meta, Network, Nic, NicSpec, ObjectKey, Prefix, Uid, Vni};
use crate::services::{BALANCER_TARGETS_MAX, BalancerSpec, LoadBalancer};

/// What the operator set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub node: String,
    pub ipv6: bool,
    /// The VNI in which addresses of the outside world are announced, default routes included.
    pub public_vni: Vni,
    /// Default router to use for a family for which metalbond supplies none.
    pub router: Option<Ipv6Addr>,
    /// Load balancer targets outside of this underlay prefix are ignored.
    pub prefer_network: Option<Prefix>,
}

/// How an object relates to this node, given its Network. `S` is what it asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Want<'a, S = NicSpec> {
    /// The API has not been read yet: leave everything as it is.
    Unknown,
    /// No object wants it, or its object is being deleted: tear it down.
    Absent,
    /// Not possible at present: do not create; what exists stays.
    Blocked(Block),
    Present {
        spec: &'a S,
        vni: Vni,
    },
}

impl<S> Clone for Want<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Want<'_, S> {}

/// Why what an object asks for is not wanted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    NetworkMissing,
    /// The Network is being deleted: nothing new starts to use it.
    NetworkDeleting,
    NetworkInvalid,
    SpecInvalid,
}

/// Decides what is wanted of an interface.
pub fn want<'a>(
    nic: Option<&'a Nic>,
    network: Option<&Network>,
    synced: bool,
    exists: bool,
) -> Want<'a> {
    let asked = nic.map(|nic| (&nic.meta, nic.spec.as_ref().ok()));
    want_of(asked, network, synced, exists)
}

/// Decides what is wanted of a load balancer.
pub fn want_balancer<'a>(
    balancer: Option<&'a LoadBalancer>,
    network: Option<&Network>,
    synced: bool,
    exists: bool,
) -> Want<'a, BalancerSpec> {
    let asked = balancer.map(|balancer| (&balancer.meta, balancer.spec.as_ref().ok()));
    want_of(asked, network, synced, exists)
}

fn want_of<'a, S>(
    asked: Option<(&Meta, Option<&'a S>)>,
    network: Option<&Network>,
    synced: bool,
    exists: bool,
) -> Want<'a, S> {
    let Some((meta, spec)) = asked else {
        return if synced { Want::Absent } else { Want::Unknown };
    };
    if meta.deleting {
        return Want::Absent;
    }
    let Some(spec) = spec else {
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

/// What one interface or load balancer contributes to the rest of the world.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Share {
    /// Prefixes that belong to this host, with the underlay address once there is one: no learned route replaces them.
    pub own: BTreeMap<RouteKey, Option<Ipv6Addr>>,
    /// Addresses of load balancers of this host, with their underlay addresses: machines of this host go there as well.
    pub balanced: BTreeMap<RouteKey, Ipv6Addr>,
    pub announcements: BTreeSet<Announcement>,
    /// The VNIs whose routes it needs.
    pub vnis: BTreeSet<Vni>,
    /// Public addresses that stand for the interface alone: no other host has a share of them.
    pub vips: BTreeSet<(Vni, Ipv4Addr)>,
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
        share.vips.extend(spec.vip.map(|address| (vni, address)));
    }
    let Some(interface) = interface else {
        return share;
    };
    share.vnis.insert(interface.vni);
    let vip = interface.services.vip;
    share
        .vips
        .extend(vip.map(|(address, _)| (interface.vni, address)));
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
        share.announcements = announcements(want, interface, settings);
    }
    share
}

/// Everything by which others reach an interface that stays, without what is about to be taken from it.
fn announcements(
    want: Want<'_>,
    interface: &Interface,
    settings: &Settings,
) -> BTreeSet<Announcement> {
    let spec = match want {
        Want::Present { spec, .. } => Some(spec),
        Want::Unknown | Want::Blocked(_) | Want::Absent => None,
    };
    let (vni, public) = (interface.vni, settings.public_vni);
    let mut all = BTreeSet::new();
    let mut add = |vni, prefix, underlay, kind| {
        all.insert(Announcement {
            vni,
            prefix,
            underlay,
            kind,
        });
    };
    for (prefix, underlay) in interface.owned() {
        let kept = spec.is_none_or(|spec| {
            spec.prefixes.contains(&prefix) || spec.host_prefixes().any(|host| host == prefix)
        });
        if kept {
            add(vni, prefix, underlay, HopKind::Standard);
        }
        if kept && spec.is_some_and(|spec| spec.public.contains(&prefix)) {
            add(public, prefix, underlay, HopKind::Standard);
        }
    }
    // The outside reaches IPv6 addresses directly: routers learn them from the public VNI.
    if let Some(address) = interface.ipv6 {
        let prefix = Prefix::host(IpAddr::V6(address));
        add(public, prefix, interface.underlay, HopKind::Standard);
    }
    let services = &interface.services;
    if let Some((address, underlay)) = services.vip
        && spec.is_none_or(|spec| spec.vip == Some(address))
    {
        let prefix = Prefix::host(IpAddr::V4(address));
        add(public, prefix, underlay, HopKind::Standard);
    }
    if let Some((share, underlay)) = services.nat
        && spec.is_none_or(|spec| spec.nat == Some(share))
    {
        let prefix = Prefix::host(IpAddr::V4(share.address));
        // The routers send to any owner, or, if they know the ports, to the right one; the other hosts of the network
        // forward what is not theirs.
        add(public, prefix, underlay, HopKind::Standard);
        add(public, prefix, underlay, HopKind::Nat(share.ports));
        add(vni, prefix, underlay, HopKind::Nat(share.ports));
    }
    for (prefix, underlay) in &services.targets {
        if spec.is_none_or(|spec| spec.targets.contains(prefix)) {
            add(vni, *prefix, *underlay, HopKind::Target);
        }
    }
    all
}

/// What a load balancer contributes. Whether its address is public only the object says: until the API has been read,
/// nothing is announced.
pub fn balancer_share(
    want: Want<'_, BalancerSpec>,
    balancer: Option<&Balancer>,
    settings: &Settings,
) -> Share {
    let mut share = Share::default();
    if let Want::Present { vni, .. } = want {
        share.vnis.insert(vni);
    }
    let Some(balancer) = balancer else {
        return share;
    };
    share.vnis.insert(balancer.vni);
    let Want::Present { spec, vni } = want else {
        return share;
    };
    if !balancer.matches(spec, vni) {
        return share;
    }
    let (prefix, underlay) = (Prefix::host(balancer.address), balancer.underlay);
    share.announcements.insert(Announcement {
        vni: if spec.public {
            settings.public_vni
        } else {
            balancer.vni
        },
        prefix,
        underlay,
        kind: HopKind::Standard,
    });
    if !spec.public {
        share.balanced.insert(RouteKey { vni, prefix }, underlay);
    }
    share
}

/// The targets that a load balancer should have: those of other hosts and those of this one (`local`), as many as
/// dpservice takes. Those it has already come first, then the lowest addresses.
pub fn targets(
    rib: &Rib,
    settings: &Settings,
    key: RouteKey,
    local: &BTreeSet<Ipv6Addr>,
    present: &BTreeSet<Ipv6Addr>,
) -> BTreeSet<Ipv6Addr> {
    let mut known = rib.targets(key.vni, &key.prefix);
    if let Some(preferred) = settings.prefer_network {
        known.retain(|target| preferred.contains(IpAddr::V6(*target)));
    }
    known.extend(local);
    let (kept, new): (Vec<_>, Vec<_>) = known
        .into_iter()
        .partition(|target| present.contains(target));
    kept.into_iter()
        .chain(new)
        .take(BALANCER_TARGETS_MAX)
        .collect()
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

/// Addresses of this host's load balancers by table, with their underlay addresses.
pub type Balanced = BTreeMap<RouteKey, BTreeMap<Uid, Ipv6Addr>>;

/// Everything a route decision looks at.
#[derive(Debug, Clone, Copy)]
pub struct Routing<'a> {
    pub settings: &'a Settings,
    pub rib: &'a Rib,
    pub own: &'a Own,
    pub balanced: &'a Balanced,
    pub imports: &'a Imports,
    pub observed: &'a Observed,
}

/// The route that should be at `key`. A load balancer of this host comes first, then the table's own routes, then the
/// default router, then peers in the order of their VNI.
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
    let balanced = |key| world.balanced.get(&key)?.values().next().copied();
    if let Some(address) = balanced(key).or_else(|| world.rib.select(vni, &prefix, within(vni))) {
        return Some(Hop { vni, address });
    }
    if default_prefixes(world.settings).any(|default| default == prefix) {
        let settings = world.settings;
        let learned = world
            .rib
            .router(settings.public_vni, &prefix, &settings.node);
        if let Some(address) = learned.or(world.settings.router) {
            return Some(Hop { vni, address });
        }
    }
    let exporters = world.imports.get(&vni)?;
    exporters.iter().find_map(|(exporter, filter)| {
        if !filter.allows(&prefix) {
            return None;
        }
        let source = RouteKey {
            vni: *exporter,
            prefix,
        };
        let local = world.own.get(&source);
        let local = local.and_then(|owners| owners.values().flatten().next().copied());
        let local = local.or_else(|| balanced(source));
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

/// Whether this node uses `network`: a local object names it, or something of its VNI still exists.
pub fn uses_network<'a>(
    key: &ObjectKey,
    network: &Network,
    named: impl IntoIterator<Item = &'a ObjectKey>,
    observed: &Observed,
) -> bool {
    network.vni.is_some_and(|vni| observed.uses_vni(vni))
        || named.into_iter().any(|name| name == key)
}
