//! What must be true when a [`Sim`] has come to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use metalnet::model::{NIC_FINALIZER, Nic, NicSpec, ObjectKey, Prefix, State, Uid, Vni};
use metalnet::plan::observed::{Balancer, Hop, Interface};
use metalnet::plan::ops::{Announcement, HopKind};
use metalnet::plan::rib::Learned;
use metalnet::services::{BALANCER_FINALIZER, LoadBalancer, NatShare};
use net::PortRange;

use crate::model::Owner;
use crate::sim::{PUBLIC, Sim, vni};

impl Sim {
    /// Announcements as readable lines: VNI, destination, kind, and the name of the object that is reached.
    pub fn announcements(&self) -> Vec<String> {
        let name = |underlay: Ipv6Addr| {
            let mut interfaces = self.model.interfaces.iter();
            let found = interfaces.find(|(_, i)| {
                let services = &i.services;
                i.underlay == underlay
                    || i.prefixes.values().any(|u| *u == underlay)
                    || services.targets.values().any(|u| *u == underlay)
                    || services.vip.is_some_and(|(_, u)| u == underlay)
                    || services.nat.is_some_and(|(_, u)| u == underlay)
            });
            let mut balancers = self.model.balancers.iter();
            let balancer = balancers.find(|(_, b)| b.underlay == underlay);
            let uid = found.map(|(uid, _)| uid).or(balancer.map(|(uid, _)| uid));
            uid.map_or_else(|| format!("stale {underlay}"), |uid| uid.to_string())
        };
        let kind = |kind| match kind {
            HopKind::Standard => String::new(),
            HopKind::Nat(ports) => format!(" {}-{}", ports.first(), ports.end()),
            HopKind::Target => " target".to_owned(),
        };
        self.announced
            .iter()
            .map(|a| {
                format!(
                    "{} {}{} {}",
                    a.vni,
                    a.prefix,
                    kind(a.kind),
                    name(a.underlay)
                )
            })
            .collect()
    }

    /// What other hosts have told of the services of a VNI.
    fn offers(&self, table: Vni) -> impl Iterator<Item = (Prefix, Learned)> + '_ {
        let offers = self.offered.iter().filter(move |(vni, ..)| *vni == table);
        offers.map(|(_, prefix, hop)| (*prefix, *hop))
    }

    /// Asserts that everything is as objects and learned routes want it, and that nothing is left to do.
    pub fn check(&mut self) {
        let active: BTreeMap<&Uid, &Nic> = self
            .nics
            .iter()
            .filter(|(_, nic)| !nic.meta.deleting)
            .collect();
        let ids: Vec<&Uid> = self.model.interfaces.keys().collect();
        assert_eq!(
            ids,
            active.keys().copied().collect::<Vec<_>>(),
            "interfaces"
        );
        assert_eq!(self.claims.keys().collect::<Vec<_>>(), ids, "claims");
        let mut wanted = BTreeSet::new();
        let mut vnis = BTreeSet::from([vni(PUBLIC)]);
        for (uid, nic) in &active {
            let spec = nic.spec.as_ref().unwrap();
            let network = self.networks[&nic.network].vni.unwrap();
            let interface = &self.model.interfaces[*uid];
            let claim = self.claims[*uid]
                .strip_prefix("dtapvf_")
                .unwrap()
                .parse::<u32>()
                .unwrap();
            assert!(
                interface.matches(spec, network, &format!("net_tap{}", claim + 2)),
                "{interface:?} {spec:?}"
            );
            let alias: BTreeSet<Prefix> = spec
                .prefixes
                .iter()
                .copied()
                .filter(|p| !spec.host_prefixes().any(|host| host == *p))
                .collect();
            assert_eq!(
                interface.prefixes.keys().copied().collect::<BTreeSet<_>>(),
                alias,
                "prefixes of {uid}"
            );
            assert_eq!(nic.status.state, Some(State::Ready), "{uid}");
            assert_eq!(nic.meta.finalizers, [NIC_FINALIZER]);
            vnis.insert(network);
            check_services(uid, spec, interface);
            wanted.extend(service_announcements(network, interface));
            for (prefix, underlay) in interface.owned() {
                wanted.insert(Announcement {
                    vni: network,
                    prefix,
                    underlay,
                    kind: HopKind::Standard,
                });
                if spec.public.contains(&prefix) {
                    wanted.insert(Announcement {
                        vni: vni(PUBLIC),
                        prefix,
                        underlay,
                        kind: HopKind::Standard,
                    });
                }
                if prefix == Prefix::host(prefix.address())
                    && interface.ipv6.is_some_and(|a| prefix.address() == a)
                {
                    wanted.insert(Announcement {
                        vni: vni(PUBLIC),
                        prefix,
                        underlay: interface.underlay,
                        kind: HopKind::Standard,
                    });
                }
            }
        }
        for (network, announcement) in self.check_balancers() {
            vnis.insert(network);
            wanted.insert(announcement);
        }
        assert_eq!(self.announced, wanted, "announcements");
        assert!(
            vnis.is_subset(&self.subscribed),
            "subscriptions {:?}",
            self.subscribed
        );
        assert_eq!(
            self.agent.observed(),
            &self.model.inventory(),
            "inventory in memory"
        );
        let uses = |key: &ObjectKey| {
            let mut balancers = self.balancers.values();
            self.nics.values().any(|nic| nic.network == *key)
                || balancers.any(|balancer| balancer.network == *key)
        };
        for (key, network) in &self.networks {
            assert_eq!(
                !network.meta.finalizers.is_empty(),
                uses(key),
                "finalizers of {key}"
            );
        }
        self.log.clear();
        self.check_shares();
        // Looking again at everything changes nothing.
        self.connect();
        assert_eq!(self.settle(), 1, "only the listing: {:?}", self.log);
    }

    /// Every table has exactly the routes that others announced for it, or that its peers let through. Which of several
    /// next hops is the agent's choice. Holds once everything has been heard.
    pub fn check_routes(&self) {
        let installed = self.model.remote_routes();
        for (table, entries) in &self.model.tables {
            let own = |prefix: &Prefix| {
                let owner = entries.get(prefix);
                owner.is_some_and(|owner| !matches!(owner, Owner::Remote(_)))
            };
            let mut prefixes: BTreeSet<Prefix> = entries.keys().copied().collect();
            prefixes.extend(self.offered.iter().map(|(_, prefix, _)| *prefix));
            prefixes.extend(
                self.model
                    .balancers
                    .values()
                    .map(|b| Prefix::host(b.address)),
            );
            for prefix in prefixes.into_iter().filter(|prefix| !own(prefix)) {
                let possible = self.possible(*table, prefix);
                let present = installed.get(&(*table, prefix));
                let fits = present.map_or(possible.is_empty(), |hop| possible.contains(hop));
                assert!(
                    fits,
                    "{prefix} in {table}: {present:?}, possible {possible:?}"
                );
            }
        }
    }

    fn possible(&self, table: Vni, prefix: Prefix) -> Vec<Hop> {
        let ways = |source: Vni, address: Ipv6Addr| Hop {
            vni: source,
            address,
        };
        let mine = self.ways(table, prefix);
        if !mine.is_empty() {
            return mine
                .into_iter()
                .map(|address| ways(table, address))
                .collect();
        }
        if prefix.len() == 0 {
            let routers = self.standard(vni(PUBLIC), prefix);
            if !routers.is_empty() {
                return routers
                    .into_iter()
                    .map(|address| ways(table, address))
                    .collect();
            }
        }
        let exporters: BTreeMap<Vni, &metalnet::model::Filter> = self
            .networks
            .values()
            .filter_map(|network| Some((network.vni?, network.peers.get(&table)?)))
            .collect();
        let open = exporters
            .into_iter()
            .filter(|(_, filter)| filter.allows(&prefix));
        let mut found = open.map(|(exporter, _)| {
            let local = self
                .model
                .tables
                .get(&exporter)
                .and_then(|table| table.get(&prefix));
            let addresses = match local {
                Some(Owner::Interface(uid)) => vec![self.model.interfaces[uid].underlay],
                Some(Owner::Alias(uid)) => vec![self.model.interfaces[uid].prefixes[&prefix]],
                Some(Owner::Remote(_)) | None => self.ways(exporter, prefix),
            };
            addresses
                .into_iter()
                .map(|address| ways(exporter, address))
                .collect::<Vec<_>>()
        });
        found.find(|hops| !hops.is_empty()).unwrap_or_default()
    }

    /// The ways to a prefix in a network: a load balancer of this host, or what others announced.
    fn ways(&self, table: Vni, prefix: Prefix) -> Vec<Ipv6Addr> {
        let balancers = self.model.balancers.iter().filter(|(uid, balancer)| {
            let public = self.balancers[*uid].spec.as_ref().unwrap().public;
            balancer.vni == table && Prefix::host(balancer.address) == prefix && !public
        });
        let local: Vec<Ipv6Addr> = balancers.map(|(_, balancer)| balancer.underlay).collect();
        if local.is_empty() {
            self.standard(table, prefix)
        } else {
            local
        }
    }

    fn standard(&self, table: Vni, destination: Prefix) -> Vec<Ipv6Addr> {
        let offers = self
            .offers(table)
            .filter(|(prefix, hop)| *prefix == destination && hop.kind == HopKind::Standard);
        offers.map(|(_, hop)| hop.address).collect()
    }

    /// Load balancers are as wanted, with exactly the targets that were announced; returns what they announce.
    fn check_balancers(&self) -> Vec<(Vni, Announcement)> {
        let active = self.balancers.iter().filter(|(_, b)| !b.meta.deleting);
        let active: BTreeMap<&Uid, &LoadBalancer> = active.collect();
        assert_eq!(
            self.model.balancers.keys().collect::<Vec<_>>(),
            active.keys().copied().collect::<Vec<_>>(),
            "load balancers"
        );
        let mut announcements = Vec::new();
        for (uid, object) in active {
            let spec = object.spec.as_ref().unwrap();
            let network = self.networks[&object.network].vni.unwrap();
            let balancer = &self.model.balancers[uid];
            assert!(balancer.matches(spec, network), "{balancer:?} {spec:?}");
            assert_eq!(object.state, Some(State::Ready), "{uid}");
            assert_eq!(object.meta.finalizers, [BALANCER_FINALIZER]);
            assert_eq!(
                balancer.targets,
                self.wanted_targets(balancer),
                "targets of {uid}"
            );
            let table = if spec.public { vni(PUBLIC) } else { network };
            let announcement = Announcement {
                vni: table,
                prefix: Prefix::host(spec.address),
                underlay: balancer.underlay,
                kind: HopKind::Standard,
            };
            announcements.push((network, announcement));
        }
        announcements
    }

    fn wanted_targets(&self, balancer: &Balancer) -> BTreeSet<Ipv6Addr> {
        let host = Prefix::host(balancer.address);
        let remote = self.offers(balancer.vni).filter_map(|(prefix, hop)| {
            (prefix == host && hop.kind == HopKind::Target).then_some(hop.address)
        });
        let local = self.model.interfaces.values().filter_map(|interface| {
            let here = interface.vni == balancer.vni;
            interface
                .services
                .targets
                .get(&host)
                .copied()
                .filter(|_| here)
        });
        remote.chain(local).collect()
    }

    /// Every share of a NAT address that another host announced is installed, unless an owner of its ports is known who
    /// comes first; nothing else is installed.
    fn check_shares(&self) {
        let mut known: BTreeMap<Ipv4Addr, BTreeSet<(Vni, PortRange, Ipv6Addr)>> = BTreeMap::new();
        for vni in self.model.tables.keys() {
            for (prefix, hop) in self.offers(*vni) {
                if let (IpAddr::V4(address), HopKind::Nat(ports)) = (prefix.address(), hop.kind) {
                    let shares = known.entry(address).or_default();
                    shares.insert((*vni, ports, hop.address));
                }
            }
        }
        for (address, shares) in &self.model.neighbors {
            for ((vni, ports), underlay) in shares {
                let offered = known.get(address);
                let offered = offered.is_some_and(|all| all.contains(&(*vni, *ports, *underlay)));
                assert!(offered, "nobody announces {address} {ports:?} in {vni}");
            }
        }
        let empty = BTreeMap::new();
        for (address, shares) in known {
            let installed = self.model.neighbors.get(&address).unwrap_or(&empty);
            for (vni, ports, underlay) in shares {
                let there = installed.get(&(vni, ports)) == Some(&underlay);
                let taken = installed.keys().any(|(_, other)| other.overlaps(&ports));
                let own = self.model.interfaces.values().any(|interface| {
                    let services = &interface.services;
                    let vip = services.vip.is_some_and(|(vip, _)| vip == address);
                    let overlaps =
                        |nat: NatShare| nat.address == address && nat.ports.overlaps(&ports);
                    let nat = services.nat.is_some_and(|(nat, _)| overlaps(nat));
                    interface.vni == vni && (vip || nat)
                });
                assert!(
                    there || taken || own,
                    "{address} {ports:?} of {underlay} is missing"
                );
            }
        }
    }
}

fn check_services(uid: &Uid, spec: &NicSpec, interface: &Interface) {
    let services = &interface.services;
    assert_eq!(services.vip.map(|(vip, _)| vip), spec.vip, "VIP of {uid}");
    assert_eq!(services.nat.map(|(nat, _)| nat), spec.nat, "NAT of {uid}");
    let targets: BTreeSet<Prefix> = services.targets.keys().copied().collect();
    assert_eq!(targets, spec.targets, "targets of {uid}");
    let rules = spec
        .rules
        .iter()
        .map(|(id, rule)| (id.clone(), Some(*rule)));
    assert_eq!(services.rules, rules.collect(), "rules of {uid}");
}

fn service_announcements(network: Vni, interface: &Interface) -> BTreeSet<Announcement> {
    let announce = |vni, prefix, underlay, kind| Announcement {
        vni,
        prefix,
        underlay,
        kind,
    };
    let services = &interface.services;
    let mut all = BTreeSet::new();
    if let Some((address, underlay)) = services.vip {
        let host = Prefix::host(address.into());
        all.insert(announce(vni(PUBLIC), host, underlay, HopKind::Standard));
    }
    if let Some((nat, underlay)) = services.nat {
        let (host, kind) = (Prefix::host(nat.address.into()), HopKind::Nat(nat.ports));
        all.insert(announce(vni(PUBLIC), host, underlay, HopKind::Standard));
        all.insert(announce(vni(PUBLIC), host, underlay, kind));
        all.insert(announce(network, host, underlay, kind));
    }
    for (prefix, underlay) in &services.targets {
        all.insert(announce(network, *prefix, *underlay, HopKind::Target));
    }
    all
}
