//! Load balancers: where the address is served, and who gets connections. Which target a connection falls to is decided by a hash of its
//! ends, so all are listed and one is followed.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use api::meta::Protocol as ApiProtocol;
use api::networking;
use controller::object;
use metalnet::plan::observed::Balancer;
use metalnet::services::Direction;
use net::{Prefix, Vni};

use super::ends::{Nic, short, vni_of};
use super::filter::admits;
use super::inbound::waits;
use super::outbound::guest;
use super::overlay::{Expected, decision};
use super::rehearse::Expect;
use super::table::Live;
use super::{Walk, broken, note, warning};
use crate::model::{Hop, Packet, Protocol, Source, Stage};
use crate::snapshot::{Action, RouteKind, named, same_node};

/// Targets named in a line.
const TARGETS_SHOWN: usize = 8;

/// A hypervisor that serves the address, as its data plane says.
struct Served<'a> {
    node: &'a str,
    balancer: &'a Balancer,
}

impl<'a> Walk<'a> {
    pub(super) fn reach_internal_balancer(
        &mut self,
        nic: &Nic<'a>,
        balancer: &'a networking::LoadBalancer,
        peering: Option<String>,
        packet: Packet,
    ) {
        let crossing = peering.map_or_else(String::new, |name| format!(" by peering {name}"));
        let text = format!("goes to load balancer {}{crossing}", object::name(balancer));
        let hop = decision(nic, text);
        let expected = self.balancer_route(balancer, packet.destination, false);
        if self.serves_itself(nic, balancer) {
            let mut hop = hop;
            guest(
                &mut hop,
                "the sender is a target itself: if it holds the address, its own kernel answers and the packet never leaves it",
            );
            self.route(nic, packet.destination, &expected, hop);
        } else {
            self.route(nic, packet.destination, &expected, hop);
        }
        let tunnel = Expect::Tunnel(expected.hops.clone());
        self.rehearse_sent(nic, &packet, &tunnel);
        let entry = match self.table(nic, packet.destination) {
            Some(Live::Remote { hop, .. }) => Some(hop),
            Some(Live::Own { .. } | Live::Unreadable { .. } | Live::Nothing) | None => None,
        };
        self.balance(balancer, packet, entry);
    }

    pub(super) fn reach_public_balancer(
        &mut self,
        balancer: &'a networking::LoadBalancer,
        packet: Packet,
    ) {
        let text = format!(
            "tunnels it to a hypervisor that serves load balancer {}",
            object::name(balancer)
        );
        let because = format!(
            "{} is an address of {}/{}",
            packet.destination,
            object::namespace(balancer),
            object::name(balancer)
        );
        let expected = self.balancer_route(balancer, packet.destination, true);
        let mut hop = Hop::new("edge", Stage::Edge, text).because(because);
        self.at_edges(&mut hop, &expected);
        self.push(hop);
        self.balance(balancer, packet, None);
    }

    /// The route by which a load balancer is reached.
    fn balancer_route(
        &self,
        balancer: &'a networking::LoadBalancer,
        address: IpAddr,
        public: bool,
    ) -> Expected {
        let vni = self.balancer_vni(balancer);
        let served = self.served(vni, address);
        Expected {
            exporter: if public { self.public_vni() } else { vni },
            prefix: Prefix::host(address),
            hops: served.iter().map(|s| s.balancer.underlay).collect(),
            owner: format!("load balancer {}", object::name(balancer)),
            kind: RouteKind::Standard,
        }
    }

    fn balancer_vni(&self, balancer: &networking::LoadBalancer) -> Option<Vni> {
        let objects = &self.snapshot.objects;
        let network = named(
            &objects.networks,
            object::namespace(balancer),
            &balancer.spec.network_ref.name,
        )?;
        vni_of(network)
    }

    fn served(&self, vni: Option<Vni>, address: IpAddr) -> Vec<Served<'a>> {
        let mut all = Vec::new();
        for dataplane in &self.snapshot.dataplanes {
            let Ok(inventory) = &dataplane.inventory else {
                continue;
            };
            let here = inventory.balancers();
            let here = here.filter(|(_, b)| b.address == address && Some(b.vni) == vni);
            all.extend(here.map(|(_, balancer)| Served {
                node: &dataplane.node,
                balancer,
            }));
        }
        all
    }

    fn targets(&self, balancer: &networking::LoadBalancer, address: IpAddr) -> Vec<Nic<'a>> {
        let objects = &self.snapshot.objects;
        let namespace = object::namespace(balancer);
        let routing = named(&objects.routings, namespace, object::name(balancer));
        let destinations = routing.iter().flat_map(|routing| &routing.destinations);
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for destination in destinations {
            if destination.ip.0.is_ipv4() != address.is_ipv4() {
                continue;
            }
            let Some(target) = &destination.target_ref else {
                continue;
            };
            if seen.insert(target.name.clone())
                && let Some(user) = named(&objects.nics, namespace, &target.name)
            {
                found.push(Nic::of(objects, user));
            }
        }
        found
    }

    fn serves_itself(&self, nic: &Nic<'_>, balancer: &'a networking::LoadBalancer) -> bool {
        let ips = balancer.status.iter().flat_map(|s| &s.ips);
        let mut targets = ips.flat_map(|ip| self.targets(balancer, ip.0));
        targets.any(|target| target.is(nic))
    }

    /// At the load balancer: the choice, and what follows. `entry` is the underlay address to which the packet came, if that is known.
    fn balance(
        &mut self,
        balancer: &'a networking::LoadBalancer,
        packet: Packet,
        entry: Option<Ipv6Addr>,
    ) {
        let address = packet.destination;
        let vni = self.balancer_vni(balancer);
        let mut served = self.served(vni, address);
        // The one that the packet comes to first.
        served.sort_by_key(|s| Some(s.balancer.underlay) != entry);
        let place = match served.first() {
            Some(first) => short(first.node).to_owned(),
            None => "hypervisor".to_owned(),
        };
        for one in &served {
            self.visit(one.node);
        }
        let name = format!("{}/{}", object::namespace(balancer), object::name(balancer));
        let conditions = balancer
            .status
            .as_ref()
            .map_or(&[][..], |s| &s.conditions[..]);
        let describe = format!(
            "kubectl --namespace {} describe loadbalancer {}",
            object::namespace(balancer),
            object::name(balancer)
        );
        let targets = self.targets(balancer, address);
        let mut hop = Hop::new(place, Stage::LoadBalancer, "chooses a target");
        hop.because = format!(
            "one of {}, by a hash of the ends: {}",
            targets.len(),
            list(&targets)
        );
        if served.is_empty() && !self.snapshot.dataplanes.is_empty() {
            let text = format!(
                "no data plane that was asked serves load balancer {name}{}",
                waits(conditions)
            );
            hop.find(broken("NotServed", Source::Dpservice, text).next(describe.clone()));
        }
        if served.len() > 1 {
            let nodes: Vec<&str> = served.iter().map(|s| short(s.node)).collect();
            let text = format!("served on {}", nodes.join(", "));
            hop.find(note("ServedOn", Source::Dpservice, text));
        }
        if packet.protocol.has_ports() && !opens(balancer, &packet) {
            let text = format!(
                "load balancer {name} does not serve {} {}",
                packet.protocol.name(),
                packet.destination_port
            );
            hop.find(
                broken("PortNotServed", Source::Objects, text)
                    .next(format!("{describe}; its ports are in spec.ports")),
            );
        }
        if !packet.protocol.has_ports() {
            hop.happens = "answers the echo request itself".to_owned();
            hop.because = "echo requests to a load balancer reach no target".to_owned();
            hop.stage = Stage::Receiver;
            self.push(hop);
            return;
        }
        if targets.is_empty() {
            let text = format!("load balancer {name} has no targets{}", waits(conditions));
            hop.find(
                broken("NoDestinations", Source::Objects, text).next(format!(
                    "{describe}; its selector has to match interfaces that are Available"
                )),
            );
            self.push(hop);
            return;
        }
        let usable = self.known_targets(&mut hop, &targets, &served, packet);
        self.push(hop);
        let decided = self.decided(&targets, served.first(), packet);
        let Some(chosen) = decided.or(usable).or(targets.first().cloned()) else {
            return;
        };
        self.interface(&chosen);
        self.filter(&chosen, Direction::Ingress, &packet);
        let first = served.first().map(|s| s.node);
        if chosen
            .node
            .is_some_and(|node| first.is_some_and(|first| !same_node(first, node)))
        {
            let prefix = Prefix::host(address);
            let live = self.live(&chosen);
            let underlay = live.and_then(|i| i.services.targets.get(&prefix).copied());
            self.rehearse_tunnelled(chosen.node, underlay, &packet, &Expect::at(&chosen));
        }
        self.machine(&chosen, Stage::Receiver);
        if let Some(last) = self.hops.last_mut() {
            let text =
                format!("the machine has to hold {address} itself: the destination is not changed");
            guest(last, text);
        }
        self.answer(&chosen, packet.source);
    }

    /// The target to which the data plane says that this very connection falls.
    fn decided(
        &mut self,
        targets: &[Nic<'a>],
        served: Option<&Served<'a>>,
        packet: Packet,
    ) -> Option<Nic<'a>> {
        let served = served?;
        let underlay = Some(served.balancer.underlay);
        let expect = Expect::Pass;
        let said = self.rehearse_tunnelled(Some(served.node), underlay, &packet, &expect)?;
        let prefix = Prefix::host(packet.destination);
        let is_chosen = |target: &&Nic<'a>| match &said.action {
            Action::Deliver(id) => target.metal.is_some_and(|m| object::uid(m) == id),
            Action::Tunnel(to) => self
                .live(target)
                .is_some_and(|i| i.services.targets.get(&prefix) == Some(to)),
            Action::Drop(_) | Action::Other(_) => false,
        };
        let chosen = targets.iter().find(is_chosen)?.clone();
        if let Some(hop) = self.hops.last_mut() {
            hop.happens = format!("chooses {}", chosen.place());
        }
        Some(chosen)
    }

    /// Holds the targets of the objects to those of the data planes; returns one that gets connections.
    fn known_targets(
        &self,
        hop: &mut Hop,
        targets: &[Nic<'a>],
        served: &[Served<'a>],
        packet: Packet,
    ) -> Option<Nic<'a>> {
        let prefix = Prefix::host(packet.destination);
        let mut usable = Vec::new();
        for target in targets {
            let underlay: Option<Option<Ipv6Addr>> = self
                .live(target)
                .map(|interface| interface.services.targets.get(&prefix).copied());
            let missing = match underlay {
                // Nobody could be asked.
                None => false,
                Some(None) => {
                    let text = format!(
                        "dpservice of {} does not know that {} serves {}",
                        target.host(),
                        target.place(),
                        packet.destination
                    );
                    hop.find(warning("TargetMissing", Source::Dpservice, text));
                    true
                }
                Some(Some(underlay)) => {
                    let without: Vec<&str> = served
                        .iter()
                        .filter(|s| !s.balancer.targets.contains(&underlay))
                        .map(|s| short(s.node))
                        .collect();
                    if !without.is_empty() {
                        let text = format!(
                            "the load balancer on {} does not have {} among its targets",
                            without.join(", "),
                            target.place()
                        );
                        hop.find(warning("TargetUnknown", Source::Dpservice, text));
                    }
                    !served.is_empty() && without.len() == served.len()
                }
            };
            let admitted = admits(self.snapshot, target, &packet);
            if !admitted {
                let text = format!(
                    "a policy denies it at {}: connections that fall to it are lost",
                    target.place()
                );
                hop.find(warning("TargetDenies", Source::Objects, text));
            }
            if !missing {
                usable.push((admitted, target));
            }
        }
        if usable.is_empty() {
            let text = "none of the targets is known to the data planes";
            hop.find(
                broken("NoTargets", Source::Dpservice, text)
                    .next("look at the logs of metalnetlet and metalnet"),
            );
        }
        // Those that let it in come first; the others are warned about.
        usable.sort_by_key(|(admitted, _)| !admitted);
        usable.first().map(|(_, target)| (*target).clone())
    }
}

fn opens(balancer: &networking::LoadBalancer, packet: &Packet) -> bool {
    balancer.spec.ports.iter().any(|port| {
        let protocol = match port.protocol.unwrap_or(ApiProtocol::TCP) {
            ApiProtocol::TCP => Some(Protocol::Tcp),
            ApiProtocol::UDP => Some(Protocol::Udp),
            ApiProtocol::SCTP => None,
        };
        let last = port.end_port.unwrap_or(port.port);
        protocol == Some(packet.protocol)
            && (port.port..=last).contains(&i32::from(packet.destination_port))
    })
}

fn list(targets: &[Nic<'_>]) -> String {
    let shown: Vec<String> = targets
        .iter()
        .take(TARGETS_SHOWN)
        .map(|target| format!("{} on {}", target.place(), target.host()))
        .collect();
    let more = targets.len().saturating_sub(shown.len());
    let tail = if more == 0 {
        String::new()
    } else {
        format!(" and {more} more")
    };
    format!("{}{tail}", shown.join(", "))
}
