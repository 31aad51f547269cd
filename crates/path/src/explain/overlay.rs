//! Inside the region's networks: where a destination leads by the objects, and whether the tables agree.

use std::net::{IpAddr, Ipv6Addr};

use api::meta::{Ip, IpPrefix};
use api::networking::{self, LoadBalancerType};
use controller::object;
use net::{Prefix, Vni};

use super::ends::{Nic, nics};
use super::table::{self, Live};
use super::{Walk, broken, note, warning};
use crate::model::{Finding, Hop, Source, Stage};
use crate::snapshot::{Objects, RouteKind, named};

/// Where a destination leads from inside a network.
#[derive(Clone, Debug)]
pub(super) enum Target<'a> {
    /// To an interface of the network itself or of a peer.
    Nic {
        nic: Box<Nic<'a>>,
        prefix: Prefix,
        /// Name of the peering, if it crosses one.
        peering: Option<String>,
    },
    /// To an internal load balancer.
    Balancer {
        balancer: &'a networking::LoadBalancer,
        peering: Option<String>,
    },
    /// Nothing inside has it: the default route.
    Public,
}

/// A network that exchanges routes with another, or would if both sides agreed.
struct Peer<'a> {
    network: &'a networking::Network,
    name: String,
    /// Why nothing of it is visible at all.
    closed: Option<Finding>,
    /// What it shows; `None` is everything.
    shows: Option<Vec<Prefix>>,
}

pub(super) fn prefix(prefix: &IpPrefix) -> Option<Prefix> {
    Prefix::new(prefix.addr(), prefix.bits())
}

/// The prefixes of an interface that contain an address, the longest first.
fn longest(nic: &Nic<'_>, address: IpAddr) -> Option<Prefix> {
    if nic.addresses().contains(&address) {
        return Some(Prefix::host(address));
    }
    let shown = nic.user.status.iter().flat_map(|s| &s.prefixes);
    let planned = nic.net.iter().flat_map(|net| &net.spec.prefixes);
    let all = shown.chain(planned).filter_map(prefix);
    all.filter(|p| p.contains(address)).max_by_key(Prefix::len)
}

fn in_network(nic: &Nic<'_>, network: &networking::Network) -> bool {
    object::namespace(nic.user) == object::namespace(network)
        && nic.network_name() == object::name(network)
}

fn balances(balancer: &networking::LoadBalancer, address: IpAddr) -> bool {
    let ips = balancer.status.iter().flat_map(|status| &status.ips);
    ips.into_iter().any(|ip| *ip == Ip(address))
}

/// The internal load balancer of a network that has an address.
fn internal<'a>(
    objects: &'a Objects,
    network: &networking::Network,
    address: IpAddr,
) -> Option<&'a networking::LoadBalancer> {
    objects.balancers.iter().find(|balancer| {
        balancer.spec.type_ == LoadBalancerType::Internal
            && object::namespace(*balancer) == object::namespace(network)
            && balancer.spec.network_ref.name == object::name(network)
            && balances(balancer, address)
    })
}

/// Who in one network has an address.
fn owner<'a>(
    objects: &'a Objects,
    network: &networking::Network,
    address: IpAddr,
) -> Option<(Option<Nic<'a>>, Prefix)> {
    if internal(objects, network, address).is_some() {
        return Some((None, Prefix::host(address)));
    }
    let here = nics(objects).filter(|nic| in_network(nic, network));
    let mut owners: Vec<(Nic<'a>, Prefix)> = here
        .filter_map(|nic| longest(&nic, address).map(|p| (nic, p)))
        .collect();
    owners.sort_by_key(|(_, prefix)| std::cmp::Reverse(prefix.len()));
    let (nic, prefix) = owners.into_iter().next()?;
    Some((Some(nic), prefix))
}

fn target<'a>(
    objects: &'a Objects,
    network: &'a networking::Network,
    found: (Option<Nic<'a>>, Prefix),
    address: IpAddr,
    peering: Option<String>,
) -> Target<'a> {
    match (found, internal(objects, network, address)) {
        ((Some(nic), prefix), _) => Target::Nic {
            nic: Box::new(nic),
            prefix,
            peering,
        },
        ((None, _), Some(balancer)) => Target::Balancer { balancer, peering },
        ((None, _), None) => Target::Public,
    }
}

/// Where an address leads from inside `network`, and what is odd about it. What a peer would have but does not show is a finding.
pub(super) fn find<'a>(
    objects: &'a Objects,
    network: &'a networking::Network,
    address: IpAddr,
) -> (Target<'a>, Vec<Finding>) {
    if let Some(found) = owner(objects, network, address) {
        return (target(objects, network, found, address, None), Vec::new());
    }
    let mut hidden = Vec::new();
    for Peer {
        network: other,
        name,
        closed,
        shows,
    } in peers(objects, network)
    {
        let Some(found) = owner(objects, other, address) else {
            continue;
        };
        if let Some(why) = closed {
            hidden.push(why);
            continue;
        }
        let inside = |list: &Vec<Prefix>| {
            let mut list = list.iter();
            list.any(|p| p.len() <= found.1.len() && p.contains(found.1.address()))
        };
        if shows.as_ref().is_none_or(inside) {
            return (target(objects, other, found, address, Some(name)), hidden);
        }
        let shown: Vec<String> = shows.iter().flatten().map(ToString::to_string).collect();
        let text = format!(
            "network {} shows network {} only {}, not {}",
            label(other),
            label(network),
            if shown.is_empty() {
                "nothing".to_owned()
            } else {
                shown.join(", ")
            },
            found.1
        );
        hidden.push(broken("PeeringFilter", Source::Objects, text).next(format!(
            "add the prefix to spec.peerings of network {} (the entry for {})",
            label(other),
            object::name(network)
        )));
    }
    (Target::Public, hidden)
}

fn label(network: &networking::Network) -> String {
    format!("{}/{}", object::namespace(network), object::name(network))
}

/// The network that an entry of `network` names.
fn peer_of<'a>(
    objects: &'a Objects,
    network: &networking::Network,
    entry: &networking::NetworkPeering,
) -> Option<&'a networking::Network> {
    let reference = &entry.network_ref;
    let namespace = if reference.namespace.is_empty() {
        object::namespace(network)
    } else {
        &reference.namespace
    };
    named(&objects.networks, namespace, &reference.name)
}

fn entry_for<'a>(
    objects: &'a Objects,
    network: &'a networking::Network,
    other: &networking::Network,
) -> Option<&'a networking::NetworkPeering> {
    let mut entries = network.spec.peerings.iter();
    entries.find(|entry| {
        peer_of(objects, network, entry).is_some_and(|found| {
            object::uid(found) == object::uid(other) && object::name(found) == object::name(other)
        })
    })
}

/// The peers of a network, also those that only one side wants.
fn peers<'a>(objects: &'a Objects, network: &'a networking::Network) -> Vec<Peer<'a>> {
    let others = objects.networks.iter();
    let others = others.filter(|other| {
        object::name(*other) != object::name(network)
            || object::namespace(*other) != object::namespace(network)
    });
    let peer = |other: &'a networking::Network| {
        let ours = entry_for(objects, network, other);
        let theirs = entry_for(objects, other, network);
        let one_sided = |missing: &networking::Network, present: &networking::Network| {
            let text = format!(
                "network {} names {} as a peer, but not the other way round: nothing is exchanged",
                label(present),
                label(missing)
            );
            broken("PeeringOneSided", Source::Objects, text).next(format!(
                "add a peering with {} to spec.peerings of network {}",
                label(present),
                label(missing)
            ))
        };
        match (ours, theirs) {
            (None, None) => None,
            (Some(entry), None) => Some(Peer {
                network: other,
                name: entry.name.clone(),
                closed: Some(one_sided(other, network)),
                shows: None,
            }),
            (None, Some(entry)) => Some(Peer {
                network: other,
                name: entry.name.clone(),
                closed: Some(one_sided(network, other)),
                shows: None,
            }),
            (Some(entry), Some(back)) => Some(Peer {
                network: other,
                name: entry.name.clone(),
                closed: None,
                shows: shown(other, back),
            }),
        }
    };
    others.filter_map(peer).collect()
}

/// What a network shows to a peer: what the entry says, with the blocks that its references have.
fn shown(network: &networking::Network, entry: &networking::NetworkPeering) -> Option<Vec<Prefix>> {
    if entry.prefixes.is_empty() {
        return None;
    }
    let status = network.status.iter().flat_map(|status| &status.peerings);
    let mut status = status.filter(|s| s.name == entry.name);
    let resolved = status.next();
    let known = entry.prefixes.iter().filter_map(|wanted| {
        let by_reference = || {
            let mut list = resolved.iter().flat_map(|status| &status.prefixes);
            list.find(|s| s.name == wanted.name)?.prefix
        };
        prefix(&wanted.prefix.or_else(by_reference)?)
    });
    Some(known.collect())
}

/// What a route is expected to be.
pub(super) struct Expected {
    /// Network in whose table the destination is.
    pub exporter: Option<Vni>,
    pub prefix: Prefix,
    /// Underlay addresses that lead there, as their data planes have them; empty if nobody could be asked.
    pub hops: Vec<Ipv6Addr>,
    /// Whose they are, for people.
    pub owner: String,
    pub kind: RouteKind,
}

impl<'a> Walk<'a> {
    /// The hop at which `nic`'s hypervisor decides where a packet goes. Returns whether it goes there.
    pub(super) fn route(&mut self, nic: &Nic<'a>, to: IpAddr, expected: &Expected, mut hop: Hop) {
        let live = self.table(nic, to);
        let host = nic.host();
        let metalnet = format!("look at the log of metalnet on {host}");
        let names_owner = |walk: &Self, address: Ipv6Addr| match walk.snapshot.owner(address) {
            Some((node, what)) => format!("{address} ({what} on {node})"),
            None => format!("{address} (nobody that was asked has this underlay address)"),
        };
        match &live {
            None => {}
            Some(Live::Nothing) => {
                let text = format!("dpservice of {host} has no route to {}", expected.prefix);
                hop.find(broken("RouteMissing", Source::Dpservice, text).next(metalnet));
            }
            Some(Live::Unreadable { prefix }) => {
                let text =
                    format!("the route {prefix} of {host} has a next hop that cannot be read");
                hop.find(super::unknown("RouteUnreadable", Source::Dpservice, text));
            }
            Some(Live::Own { prefix }) if expected.is_local(self, nic) => {
                hop.because = format!("{prefix} is an interface of the same hypervisor");
            }
            Some(Live::Own { prefix }) => {
                let text = format!(
                    "dpservice of {host} keeps {prefix} for itself, but {} is elsewhere",
                    expected.owner
                );
                hop.find(broken("RouteLocal", Source::Dpservice, text).next(metalnet));
            }
            Some(Live::Remote { prefix, .. }) if prefix.len() < expected.prefix.len() => {
                let text = format!(
                    "dpservice of {host} has no route to {}; {prefix} would carry the packet elsewhere",
                    expected.prefix
                );
                hop.find(broken("RouteMissing", Source::Dpservice, text).next(metalnet));
            }
            Some(Live::Remote { prefix, hop: next }) => {
                hop.because = format!("route {prefix} via {next}, {}", expected.owner);
                if !expected.hops.is_empty() && !expected.hops.contains(next) {
                    let text = format!(
                        "dpservice of {host} sends {prefix} to {}, but {} is at {}",
                        names_owner(self, *next),
                        expected.owner,
                        join(&expected.hops)
                    );
                    hop.find(broken("RouteStale", Source::Dpservice, text).next(metalnet));
                }
            }
        }
        let tunnelled = matches!(live, Some(Live::Remote { .. }) | None);
        if tunnelled && !expected.is_local(self, nic) || expected.kind != RouteKind::Standard {
            self.announced(&mut hop, expected, live.is_some());
        }
        self.push(hop);
    }

    /// What the data plane of an interface would do with a destination.
    pub(super) fn table(&self, nic: &Nic<'_>, to: IpAddr) -> Option<Live> {
        let inventory = self.snapshot.inventory(nic.node?)?;
        Some(table::lookup(inventory, nic.vni?, to))
    }

    /// What the metalbond servers say about a route.
    pub(super) fn announced(&self, hop: &mut Hop, expected: &Expected, live: bool) {
        let Some(vni) = expected.exporter else { return };
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for (server, routes) in self.snapshot.route_servers() {
            let here = routes.iter().filter(|route| {
                route.vni == vni
                    && route.prefix == expected.prefix
                    && std::mem::discriminant(&route.kind) == std::mem::discriminant(&expected.kind)
            });
            let hops: Vec<Ipv6Addr> = here.map(|route| route.next_hop).collect();
            let fits =
                expected.hops.is_empty() || hops.iter().any(|next| expected.hops.contains(next));
            if hops.is_empty() || !fits {
                without.push((server, hops));
            } else {
                with.push(server);
            }
        }
        let wrong = |(server, hops): &(&str, Vec<Ipv6Addr>)| match hops.as_slice() {
            [] => format!("{server} does not know it"),
            hops => format!("{server} names {}", join(hops)),
        };
        let told: Vec<String> = without.iter().map(wrong).collect();
        let told = told.join(", ");
        let prefix = expected.prefix;
        let next = "openkcm metalbond routes --url …; look at the log of metalnet on the announcing hypervisor";
        match (with.is_empty(), without.is_empty()) {
            (true, true) => {}
            (_, true) => {
                let text = format!("announced through {}", with.join(", "));
                hop.find(note("RouteAnnounced", Source::Metalbond, text));
            }
            (false, false) => {
                let text = format!("route {prefix} in VNI {}: {told}", vni.get());
                hop.find(warning("RouteAtFewerServers", Source::Metalbond, text).next(next));
            }
            (true, false) => {
                let text = format!(
                    "no metalbond server has the route {prefix} in VNI {} as it should be: {told}",
                    vni.get()
                );
                let reason = "RouteNotAnnounced";
                // The data plane was seen to have it: it is about to go, or to come.
                hop.find(if live && hop.worst().is_none() {
                    warning(reason, Source::Metalbond, text).next(next)
                } else {
                    broken(reason, Source::Metalbond, text).next(next)
                });
            }
        }
    }
}

impl Expected {
    /// What leads to an interface.
    pub fn of(walk: &Walk<'_>, nic: &Nic<'_>, prefix: Prefix) -> Self {
        let live = walk.live(nic);
        let hops = live.map(|interface| {
            let owned = interface.owned().filter(|(mine, _)| *mine == prefix);
            owned.map(|(_, underlay)| underlay).collect()
        });
        Self {
            exporter: nic.vni,
            prefix,
            hops: hops.unwrap_or_default(),
            owner: format!("{} on {}", nic.place(), nic.host()),
            kind: RouteKind::Standard,
        }
    }

    /// Whether one of the addresses is an interface of `nic`'s own hypervisor and network.
    fn is_local(&self, walk: &Walk<'_>, nic: &Nic<'_>) -> bool {
        let inventory = nic.node.and_then(|node| walk.snapshot.inventory(node));
        inventory.is_some_and(|inventory| {
            let mut local = inventory.interfaces();
            local.any(|(_, interface)| {
                Some(interface.vni) == nic.vni
                    && interface
                        .owned()
                        .any(|(mine, at)| mine == self.prefix && self.hops.contains(&at))
            })
        })
    }
}

pub(super) fn join(addresses: &[Ipv6Addr]) -> String {
    let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// A hop that decides where a packet goes.
pub(super) fn decision(nic: &Nic<'_>, happens: impl Into<String>) -> Hop {
    Hop::new(nic.host(), Stage::Route, happens)
}
