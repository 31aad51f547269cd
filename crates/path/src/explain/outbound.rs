//! From a machine: to another one, to a load balancer, or out of its network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::meta::Ip;
use api::networking::NATGateway;
use controller::object;
use metalnet::services::Direction;
use net::{PortRange, Prefix};

use super::ends::{Nic, Place, nics};
use super::overlay::{self, Expected, Target, decision};
use super::rehearse::Expect;
use super::table::Live;
use super::{Walk, broken, note, unready, warning};
use crate::model::{Finding, Hop, Packet, Source, Stage};
use crate::snapshot::RouteKind;

/// The prefix in which IPv6 machines see IPv4 addresses (RFC 6052 §2.1).
const NAT64: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// The public address under which connections of an interface appear.
struct Face {
    address: IpAddr,
    ports: Option<PortRange>,
    /// Underlay address at which answers arrive, if the data plane was asked.
    underlay: Option<Ipv6Addr>,
    what: String,
}

impl<'a> Walk<'a> {
    pub(super) fn start_at_machine(&mut self, nic: &Nic<'a>, to: &Place<'a>, packet: Packet) {
        self.machine(nic, Stage::Sender);
        if !self.interface(nic) {
            return;
        }
        let Some(network) = nic.network else { return };
        let (target, hidden) = overlay::find(&self.snapshot.objects, network, packet.destination);
        match target {
            Target::Nic {
                nic: found,
                prefix,
                peering,
            } => {
                self.filter(nic, Direction::Egress, &packet);
                self.inside(nic, to, &found, prefix, peering, packet);
            }
            Target::Balancer { balancer, peering } => {
                self.filter(nic, Direction::Egress, &packet);
                self.reach_internal_balancer(nic, balancer, peering, packet);
            }
            Target::Public if !hidden.is_empty() => self.not_inside(nic, packet, hidden),
            Target::Public => self.out(nic, to, packet),
        }
    }

    /// To an interface of the own network or of a peer.
    fn inside(
        &mut self,
        nic: &Nic<'a>,
        to: &Place<'a>,
        found: &Nic<'a>,
        prefix: Prefix,
        peering: Option<String>,
        packet: Packet,
    ) {
        let same_host = nic.node.is_some() && nic.node == found.node;
        let crossing = peering.map_or_else(String::new, |name| format!(" by peering {name}"));
        let happens = if found.is(nic) {
            "is the sender's own address: never leaves the machine".to_owned()
        } else if same_host {
            format!("goes to {} on the same hypervisor{crossing}", found.place())
        } else {
            format!("goes to {} on {}{crossing}", found.place(), found.host())
        };
        let mut hop = decision(nic, happens);
        if let Place::Nic(wanted) = to
            && !wanted.is(found)
        {
            let text = format!(
                "in network {} the address {} belongs to {}, not to {}: the networks overlap and are not peered",
                nic.network_name(),
                packet.destination,
                found.label(),
                wanted.label()
            );
            hop.find(broken("AddressElsewhere", Source::Objects, text).next(
                "give one of the networks other addresses and peer them, or use public addresses",
            ));
            self.push(hop);
            return;
        }
        if found.is(nic) {
            self.push(hop);
            self.machine(found, Stage::Receiver);
            return;
        }
        let expected = Expected::of(self, found, prefix);
        self.route(nic, packet.destination, &expected, hop);
        // Between networks the packet goes through a tunnel also on one hypervisor.
        let direct = same_host && nic.vni == found.vni;
        if !direct {
            let tunnel = Expect::Tunnel(expected.hops.clone());
            self.rehearse_sent(nic, &packet, &tunnel);
            self.tunnel(nic, &expected);
        }
        self.interface(found);
        self.filter(found, Direction::Ingress, &packet);
        if direct {
            self.rehearse_sent(nic, &packet, &Expect::at(found));
        } else {
            let underlay = expected.hops.first().copied();
            self.rehearse_tunnelled(found.node, underlay, &packet, &Expect::at(found));
        }
        self.machine(found, Stage::Receiver);
        self.answer(found, packet.source);
    }

    /// The underlay between two hypervisors.
    pub(super) fn tunnel(&mut self, nic: &Nic<'a>, expected: &Expected) {
        let from = self.live(nic).map(|interface| interface.underlay);
        let because = match (from, expected.hops.as_slice()) {
            (Some(from), [to, ..]) => format!("IPv6 from {from} to {to}"),
            (_, _) => "IPv6 between the hypervisors".to_owned(),
        };
        let text = format!("tunnels to {}", expected.owner);
        self.push(Hop::new("underlay", Stage::Tunnel, text).because(because));
    }

    /// Somebody has the address, but it is not visible from here.
    fn not_inside(&mut self, nic: &Nic<'a>, packet: Packet, hidden: Vec<Finding>) {
        self.filter(nic, Direction::Egress, &packet);
        let mut hop = decision(nic, "has no route to it inside the network").because(format!(
            "network {} sees {} nowhere; the default route would carry it to an edge, which refuses private destinations",
            nic.network_name(),
            packet.destination
        ));
        for finding in hidden {
            hop.find(finding);
        }
        self.push(hop);
    }

    // ---- out of the network ------------------------------------------------------------------------------------------------

    fn out(&mut self, nic: &Nic<'a>, to: &Place<'a>, packet: Packet) {
        if let Place::Nic(wanted) = to
            && wanted.addresses().contains(&packet.destination)
            && is_private(packet.destination)
        {
            self.filter(nic, Direction::Egress, &packet);
            self.apart(nic, wanted, packet);
            return;
        }
        if self.reach_neighbour(nic, packet) || self.reach_own_nat(nic, packet) {
            return;
        }
        self.filter(nic, Direction::Egress, &packet);
        self.default_route(nic, packet.destination, Stage::Route);
        let Some((face, sent)) = self.translate(nic, packet) else {
            return;
        };
        let destination = sent.destination;
        let owner = super::inbound::owner(self.snapshot, destination);
        let is_public = owner.is_some() || self.is_public(destination);
        let mut hop = Hop::new("edge", Stage::Edge, "takes it out of the tunnel")
            .because(format!("from {}, {}", sent.source, face.what));
        self.known_source(&mut hop, &face);
        if is_public {
            hop.happens = "turns it round: the address belongs to the region".to_owned();
            self.push(hop);
            self.start_outside(sent, Some(nic));
            return;
        }
        if is_private(destination) {
            let text = format!(
                "{destination} is a private address that nothing in network {} has: edges refuse private destinations",
                nic.network_name()
            );
            hop.find(broken("DestinationPrivate", Source::Objects, text).next(format!(
                "kubectl --namespace {} get networkinterfaces -o wide; is the address right, are the networks peered?",
                object::namespace(nic.user)
            )));
            self.push(hop);
            return;
        }
        hop.happens = "gives it to the router, towards the outside".to_owned();
        self.push(hop);
        let text = format!("{destination}, outside of the region");
        let receiver = Hop::new(text, Stage::Receiver, "is reached over the internet")
            .because("what lies beyond the edge is not explained");
        self.push(receiver);
        self.answer_from_outside(nic, &face);
    }

    /// Two networks that have nothing to do with each other.
    fn apart(&mut self, nic: &Nic<'a>, wanted: &Nic<'a>, packet: Packet) {
        let mut hop = decision(nic, "has no route to it");
        let text = format!(
            "networks {} and {} are not peered, and {} is no public address",
            nic.network_name(),
            wanted.network_name(),
            packet.destination
        );
        hop.find(broken("NetworksApart", Source::Objects, text).next(format!(
            "peer the networks (spec.peerings of both), or use a public address of {}",
            wanted.label()
        )));
        self.push(hop);
    }

    /// A public address of a machine of the same network and hypervisor never leaves the hypervisor.
    fn reach_neighbour(&mut self, nic: &Nic<'a>, packet: Packet) -> bool {
        let objects = &self.snapshot.objects;
        let here = |other: &Nic<'a>| other.vni == nic.vni && other.node == nic.node;
        let mut neighbours = nics(objects);
        let Some(found) =
            neighbours.find(|o| here(o) && o.virtual_ip() == Some(packet.destination))
        else {
            return false;
        };
        let Some(inner) = found.address(super::family(packet.destination)) else {
            return false;
        };
        let sent = packet;
        let packet = Packet {
            destination: inner,
            ..packet
        };
        self.filter(nic, Direction::Egress, &packet);
        let text = format!("becomes {inner}: the public address of {}", found.place());
        let hop = Hop::new(nic.host(), Stage::Translation, text)
            .because("same network, same hypervisor: it does not go out");
        self.push(hop);
        self.interface(&found);
        self.filter(&found, Direction::Ingress, &packet);
        self.rehearse_sent(nic, &sent, &Expect::at(&found));
        self.machine(&found, Stage::Receiver);
        self.answer(&found, packet.source);
        true
    }

    /// An address that the own network shares is not reachable from inside: nobody could tell whose port is meant.
    fn reach_own_nat(&mut self, nic: &Nic<'a>, packet: Packet) -> bool {
        let gateways = self.gateways(nic);
        let shares = |gateway: &&&NATGateway| {
            let mut ips = gateway.status.iter().flat_map(|s| &s.ips);
            ips.any(|ip| *ip == Ip(packet.destination))
        };
        let Some(gateway) = gateways.iter().find(shares) else {
            return false;
        };
        let name = object::name(*gateway);
        let mut hop = Hop::new(nic.host(), Stage::Translation, "belongs to no connection");
        let text = format!(
            "{} is an address of NAT gateway {name} of the sender's own network: it is not reachable from inside",
            packet.destination
        );
        hop.find(
            broken("NATUnsolicited", Source::Objects, text)
                .next("use the machine's own address, its virtual IP, or a load balancer"),
        );
        self.push(hop);
        self.rehearse_sent(nic, &packet, &Expect::Pass);
        true
    }

    /// The default route of a table, and the edge that it leads to.
    pub(super) fn default_route(&mut self, nic: &Nic<'a>, to: IpAddr, stage: Stage) {
        let (all, text): (IpAddr, &str) = match to {
            IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), "0.0.0.0/0"),
            IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), "::/0"),
        };
        let host = nic.host();
        let happens = match stage {
            Stage::Answer => "the answer leaves by the default route",
            _ => "leaves the network by the default route",
        };
        let mut hop = Hop::new(host.clone(), stage, happens).because(format!(
            "nothing in network {} has {to}",
            nic.network_name()
        ));
        if stage == Stage::Answer {
            hop.because = "the connection is tracked: filters are not asked again".to_owned();
        }
        let next = "openkcm edge status on the routers; look at the log of metalnet";
        match self.table(nic, to) {
            None | Some(Live::Own { .. } | Live::Unreadable { .. }) => {}
            Some(Live::Nothing) => {
                let why = format!("dpservice of {host} has no default route {text}");
                hop.find(broken("DefaultRouteMissing", Source::Dpservice, why).next(next));
            }
            Some(Live::Remote { prefix, hop: edge }) => {
                hop.because = format!("route {prefix} via {edge}");
                let asked = self.snapshot.answering_edges().count() > 0;
                let known = self.snapshot.answering_edges().any(|e| e.address == edge);
                if asked && !known && prefix.address() == all {
                    let why = format!("{edge}, the next hop of {prefix}, is no edge that answers");
                    hop.find(warning("DefaultRouteUnknown", Source::Edge, why).next(next));
                }
            }
        }
        let edges = self.snapshot.answering_edges();
        let silent: Vec<String> = edges
            .filter(|edge| !edge.announced.iter().any(|prefix| prefix == text))
            .map(|edge| edge.address.to_string())
            .collect();
        if !silent.is_empty() {
            let why = format!(
                "edge {} announces no default route {text}",
                silent.join(", ")
            );
            hop.find(warning("EdgeWithoutDefault", Source::Edge, why).next(next));
        }
        self.push(hop);
    }

    /// Source translation: what the packet shows afterwards, or `None` if it ends here.
    fn translate(&mut self, nic: &Nic<'a>, packet: Packet) -> Option<(Face, Packet)> {
        let host = nic.host();
        let embedded = match packet.destination {
            IpAddr::V6(address) => embedded(address),
            IpAddr::V4(_) => None,
        };
        if let (IpAddr::V6(_), None) = (packet.source, embedded) {
            let underlay = self.live(nic).map(|interface| interface.underlay);
            let face = Face {
                address: packet.source,
                ports: None,
                underlay,
                what: "its own IPv6 address, not translated".to_owned(),
            };
            self.rehearse_sent(nic, &packet, &Expect::Tunnel(Vec::new()));
            return Some((face, packet));
        }
        let nat64 = embedded.is_some();
        let face = match self.face(nic, nat64) {
            Ok(face) => face,
            Err(finding) => {
                let mut hop = Hop::new(
                    host,
                    Stage::Translation,
                    "has no public address to appear under",
                );
                hop.find(finding);
                self.push(hop);
                return None;
            }
        };
        let sent = Packet {
            source: face.address,
            source_port: match face.ports {
                Some(ports) if packet.protocol.has_ports() => ports.first(),
                _ => packet.source_port,
            },
            destination: embedded.map_or(packet.destination, IpAddr::V4),
            protocol: match (packet.protocol, nat64) {
                (crate::model::Protocol::Icmpv6, true) => crate::model::Protocol::Icmp,
                (other, _) => other,
            },
            ..packet
        };
        let text = format!("appears as {}", face.address);
        let mut hop = Hop::new(nic.host(), Stage::Translation, text).because(face.what.clone());
        if let Some(finding) = self.face_is_live(nic, &face) {
            hop.find(finding);
        }
        self.push(hop);
        self.rehearse_sent(nic, &packet, &Expect::Tunnel(Vec::new()));
        Some((face, sent))
    }

    /// The public IPv4 address of an interface: its ports of a shared address come before its own address.
    fn face(&self, nic: &Nic<'a>, nat64: bool) -> Result<Face, Finding> {
        let live = self.live(nic).map(|interface| &interface.services);
        let nat = nic.metal.and_then(|metal| metal.spec.nat.as_ref());
        let gateways = self.gateways(nic);
        if let Some(nat) = nat {
            let ends = (u16::try_from(nat.port), u16::try_from(nat.end_port));
            let ports = match ends {
                (Ok(first), Ok(end)) => PortRange::new(first, end),
                _ => None,
            };
            let named = gateways.first().map_or_else(
                || "NAT".to_owned(),
                |gateway| format!("NAT gateway {}", object::name(*gateway)),
            );
            return Ok(Face {
                address: nat.ip.0,
                ports,
                underlay: live.and_then(|s| s.nat).map(|(_, underlay)| underlay),
                what: format!(
                    "{named}, ports {}-{} are this interface's",
                    nat.port,
                    nat.end_port - 1
                ),
            });
        }
        if let (Some(address), false) = (nic.virtual_ip(), nat64) {
            return Ok(Face {
                address,
                ports: None,
                underlay: live.and_then(|s| s.vip).map(|(_, underlay)| underlay),
                what: "its virtual IP".to_owned(),
            });
        }
        let (network, label) = (nic.network_name(), nic.label());
        let namespace = object::namespace(nic.user);
        Err(match gateways.first() {
            None if nat64 => broken(
                "NoNAT64",
                Source::Objects,
                format!(
                    "an IPv4 address is reached from IPv6 by NAT only, and network {network} has no NAT gateway"
                ),
            )
            .next("create a NATGateway of family IPv4 for the network"),
            Some(_) if nat64 && nic.virtual_ip().is_some_and(|address| address.is_ipv4()) => broken(
                "NoNAT64",
                Source::Objects,
                format!(
                    "an IPv4 address is reached from IPv6 by NAT only, and {label} gets no ports of a NAT gateway because it has a virtual IP"
                ),
            )
            .next("reach the address over IPv4, or take the virtual IP off the interface"),
            None => broken(
                "NoPublicSource",
                Source::Objects,
                format!(
                    "{label} has neither a virtual IP nor a NAT gateway in network {network}: edges drop packets with private sources"
                ),
            )
            .next(
                "create a NATGateway for the network, or give the interface a virtual IP",
            ),
            Some(gateway) => {
                let conditions = gateway.status.as_ref().map_or(&[][..], |s| &s.conditions[..]);
                let why = unready(conditions).map_or_else(String::new, |why| format!(" ({why})"));
                broken(
                    "NoNATPorts",
                    Source::Objects,
                    format!(
                        "NAT gateway {} has given {label} no ports{why}",
                        object::name(*gateway)
                    ),
                )
                .next(format!(
                    "kubectl --namespace {namespace} describe natgateway {}",
                    object::name(*gateway)
                ))
            }
        })
    }

    fn gateways(&self, nic: &Nic<'_>) -> Vec<&'a NATGateway> {
        let all = self.snapshot.objects.nat_gateways.iter();
        all.filter(|gateway| {
            object::namespace(*gateway) == object::namespace(nic.user)
                && gateway.spec.network_ref.name == nic.network_name()
        })
        .collect()
    }

    /// Whether the data plane translates as the objects say.
    fn face_is_live(&self, nic: &Nic<'a>, face: &Face) -> Option<Finding> {
        let services = &self.live(nic)?.services;
        let is_there = match face.ports {
            Some(ports) => services.nat.is_some_and(|(share, _)| {
                IpAddr::V4(share.address) == face.address && share.ports == ports
            }),
            None => services
                .vip
                .is_some_and(|(address, _)| IpAddr::V4(address) == face.address),
        };
        if is_there {
            return None;
        }
        let host = nic.host();
        let text = format!(
            "dpservice of {host} does not translate {} to {}",
            nic.label(),
            face.address
        );
        let next = format!("look at the log of metalnet on {host}");
        Some(broken("TranslationMissing", Source::Dpservice, text).next(next))
    }

    /// Edges pass on only what comes from a public address that they have a route to.
    fn known_source(&self, hop: &mut Hop, face: &Face) {
        if is_private(face.address) {
            let text = format!(
                "{} is a private address: edges drop packets with private sources",
                face.address
            );
            hop.find(
                broken("NoPublicSource", Source::Objects, text)
                    .next("give the interface an address inside the region's public prefixes"),
            );
            return;
        }
        let edges: Vec<_> = self.snapshot.answering_edges().collect();
        if edges.is_empty() {
            return;
        }
        let routed = edges.iter().any(|edge| {
            super::inbound::edge_hops(edge, face.address).is_some_and(|hops| !hops.is_empty())
        });
        if !routed {
            let text = format!(
                "no edge has a route to {}, so none takes packets from it",
                face.address
            );
            hop.find(broken("SourceUnknown", Source::Edge, text).next(
                "openkcm metalbond routes: is the address announced in the public VNI, and is it inside the edges' --public-prefix?",
            ));
        }
    }

    /// How the answer of somebody outside finds back.
    fn answer_from_outside(&mut self, nic: &Nic<'a>, face: &Face) {
        let text = format!(
            "the answer to {} comes back to {}",
            face.address,
            nic.host()
        );
        let mut hop = Hop::new("edge", Stage::Answer, text).because(match face.ports {
            Some(ports) => format!("the owner of ports {}-{}", ports.first(), ports.end() - 1),
            None => "the address belongs to it alone".to_owned(),
        });
        let expected = Expected {
            exporter: self.public_vni(),
            prefix: Prefix::host(face.address),
            hops: face.underlay.into_iter().collect(),
            owner: nic.place(),
            kind: face.ports.map_or(RouteKind::Standard, RouteKind::Nat),
        };
        self.at_edges(&mut hop, &expected);
        self.push(hop);
    }

    /// The way of the answer from a machine to `to`, as the machine sees it.
    pub(super) fn answer(&mut self, nic: &Nic<'a>, to: IpAddr) {
        let Some(network) = nic.network else { return };
        let (target, hidden) = overlay::find(&self.snapshot.objects, network, to);
        match target {
            Target::Nic {
                nic: found, prefix, ..
            } => {
                let text = format!("the answer goes back to {}", found.place());
                let hop = Hop::new(nic.host(), Stage::Answer, text)
                    .because("the connection is tracked: filters are not asked again");
                let expected = Expected::of(self, &found, prefix);
                self.route(nic, to, &expected, hop);
            }
            Target::Public if !hidden.is_empty() => {
                let text = format!("has no route back to {to}");
                let mut hop = Hop::new(nic.host(), Stage::Answer, text);
                for finding in hidden {
                    hop.find(finding);
                }
                self.push(hop);
            }
            Target::Public if is_private(to) => {
                let text = format!("has no route back to {to}");
                let mut hop = Hop::new(nic.host(), Stage::Answer, text.clone());
                let text = format!("network {} {text}", nic.network_name());
                hop.find(broken("NoRouteBack", Source::Objects, text));
                self.push(hop);
            }
            Target::Public | Target::Balancer { .. } => {
                self.default_route(nic, to, Stage::Answer);
            }
        }
    }
}

/// The IPv4 address inside an address of the NAT64 prefix.
pub(super) fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (bits, prefix) = (address.to_bits(), NAT64.to_bits());
    let low = u32::try_from(bits & u128::from(u32::MAX)).ok()?;
    (bits >> 32 == prefix >> 32).then(|| Ipv4Addr::from_bits(low))
}

/// Addresses that are never carried between the region and the outside: what an edge denies unless told otherwise.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_private() || (a.octets()[0] == 100 && a.octets()[1] & 0xc0 == 64),
        IpAddr::V6(a) => a.is_unique_local(),
    }
}

/// The address of a share of a NAT address.
pub(super) fn shared(nat: &api::apinet::NatTableIp) -> IpAddr {
    let Ip(address) = nat.ip;
    address
}

/// A note that names what is beyond this tool.
pub(super) fn guest(hop: &mut Hop, text: impl Into<String>) {
    hop.find(note("Guest", Source::Objects, text));
}
