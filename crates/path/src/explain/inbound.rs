//! From the outside, or round by an edge: who has a public address, and how packets to it get there.

use std::net::{IpAddr, Ipv6Addr};

use api::meta::Ip;
use api::networking::{self, LoadBalancerType};
use controller::object;
use metalnet::services::Direction;
use net::{PortRange, Prefix};

use super::ends::{Nic, nics, uses};
use super::outbound::{is_private, shared};
use super::overlay::{Expected, join};
use super::rehearse::Expect;
use super::{Walk, broken, family, unready, warning};
use crate::model::{Hop, Packet, Source, Stage};
use crate::snapshot::{RouteKind, Snapshot};

/// Who has a public address.
pub(super) enum Owner<'a> {
    /// It stands for one interface.
    VirtualIp(Box<Nic<'a>>),
    /// A virtual IP that no interface uses.
    Unused(&'a networking::VirtualIP),
    Balancer(&'a networking::LoadBalancer),
    /// Shared by the interfaces of a NAT gateway.
    Nat,
    /// Public IPv6 is not translated.
    Direct(Box<Nic<'a>>),
}

pub(super) fn owner<'a>(snapshot: &'a Snapshot, address: IpAddr) -> Option<Owner<'a>> {
    let objects = &snapshot.objects;
    let is = |ip: Option<Ip>| ip == Some(Ip(address));
    let vip = objects
        .virtual_ips
        .iter()
        .find(|vip| is(vip.status.as_ref().and_then(|status| status.ip)));
    if let Some(vip) = vip {
        let user = nics(objects).find(|nic| uses(nic, vip) || nic.virtual_ip() == Some(address));
        return Some(match user {
            Some(nic) => Owner::VirtualIp(Box::new(nic)),
            None => Owner::Unused(vip),
        });
    }
    let balancer = objects.balancers.iter().find(|balancer| {
        balancer.spec.type_ == LoadBalancerType::Public
            && balancer
                .status
                .iter()
                .flat_map(|s| &s.ips)
                .any(|ip| is(Some(*ip)))
    });
    if let Some(balancer) = balancer {
        return Some(Owner::Balancer(balancer));
    }
    let mut tables = objects.nat_tables.iter().flat_map(|table| &table.ips);
    if tables.any(|nat| shared(nat) == address) {
        return Some(Owner::Nat);
    }
    if let Some(nic) = nics(objects).find(|nic| nic.virtual_ip() == Some(address)) {
        return Some(Owner::VirtualIp(Box::new(nic)));
    }
    let mut all = nics(objects);
    let direct = all.find(|nic| address.is_ipv6() && nic.addresses().contains(&address))?;
    (!is_private(address)).then(|| Owner::Direct(Box::new(direct)))
}

/// The next hops that an edge has for an address; `None` if it has no route.
pub(super) fn edge_hops(
    edge: &edge::status::Status,
    address: IpAddr,
) -> Option<Vec<(Ipv6Addr, Option<[u16; 2]>)>> {
    let mut best: Option<(u8, &edge::status::Route)> = None;
    for route in &edge.routes {
        let Ok(prefix) = route.prefix.parse::<Prefix>() else {
            continue;
        };
        if prefix.contains(address) && best.is_none_or(|(length, _)| prefix.len() > length) {
            best = Some((prefix.len(), route));
        }
    }
    best.map(|(_, route)| {
        let hops = route.hops.iter();
        hops.map(|hop| (hop.address, hop.ports)).collect()
    })
}

impl<'a> Walk<'a> {
    /// Whether an address is inside the region's public prefixes, as far as edges were asked.
    pub(super) fn is_public(&self, address: IpAddr) -> bool {
        let prefixes = self
            .snapshot
            .answering_edges()
            .flat_map(|edge| &edge.public_prefixes);
        prefixes
            .filter_map(|text| text.parse::<Prefix>().ok())
            .any(|prefix| prefix.contains(address))
    }

    /// A packet that an edge has to bring to a public address. `sender` is the machine that sent it, if one did.
    pub(super) fn start_outside(&mut self, packet: Packet, sender: Option<&Nic<'a>>) {
        let destination = packet.destination;
        if sender.is_none() {
            let text = format!("{}, outside of the region", packet.source);
            let hop = Hop::new(text, Stage::Sender, format!("sends to {destination}"))
                .because("what lies before the edge is not explained");
            self.push(hop);
        }
        match owner(self.snapshot, destination) {
            None => self.nobody(packet),
            Some(Owner::Unused(vip)) => {
                let name = format!("{}/{}", object::namespace(vip), object::name(vip));
                let mut hop = Hop::new("edge", Stage::Edge, "has nobody to bring it to");
                let text = format!("no interface uses virtual IP {name}");
                hop.find(
                    broken("VirtualIPUnused", Source::Objects, text)
                        .next("name it in spec.virtualIP.virtualIPRef of an interface"),
                );
                self.push(hop);
            }
            Some(Owner::VirtualIp(nic)) => self.reach_virtual_ip(&nic, packet),
            Some(Owner::Direct(nic)) => self.reach_direct(&nic, packet),
            Some(Owner::Balancer(balancer)) => self.reach_public_balancer(balancer, packet),
            Some(Owner::Nat) => self.reach_nat(packet),
        }
    }

    fn nobody(&mut self, packet: Packet) {
        let destination = packet.destination;
        let mut hop = Hop::new("edge", Stage::Edge, "has nobody to bring it to");
        let text = if is_private(destination) {
            format!("{destination} is a private address: the outside cannot reach it")
        } else {
            format!("nothing in the region has the public address {destination}")
        };
        let next = "kubectl get virtualips,loadbalancers,natgateways --all-namespaces";
        hop.find(broken("AddressUnused", Source::Objects, text).next(next));
        let edges = self.snapshot.answering_edges();
        for edge in edges {
            if let Some(hops) = edge_hops(edge, destination).filter(|hops| !hops.is_empty()) {
                let hops: Vec<Ipv6Addr> = hops.into_iter().map(|(address, _)| address).collect();
                let text = format!(
                    "edge {} still has a route to it, via {}",
                    edge.address,
                    join(&hops)
                );
                hop.find(warning("EdgeRouteLeft", Source::Edge, text));
            }
        }
        self.push(hop);
    }

    fn reach_virtual_ip(&mut self, nic: &Nic<'a>, packet: Packet) {
        let live = self.live(nic);
        let services = live.map(|interface| &interface.services);
        let vip = services.and_then(|s| s.vip);
        let vip = vip.filter(|(address, _)| IpAddr::V4(*address) == packet.destination);
        let expected = Expected {
            exporter: self.public_vni(),
            prefix: Prefix::host(packet.destination),
            hops: vip.map(|(_, underlay)| underlay).into_iter().collect(),
            owner: format!("{} on {}", nic.place(), nic.host()),
            kind: RouteKind::Standard,
        };
        let is_v6 = packet.destination.is_ipv6();
        let text = format!("tunnels it to {}", nic.host());
        let mut hop = Hop::new("edge", Stage::Edge, text).because(format!(
            "{} is the virtual IP of {}",
            packet.destination,
            nic.label()
        ));
        if !is_v6 {
            self.at_edges(&mut hop, &expected);
        }
        self.push(hop);
        let inner = nic.address(family(packet.destination));
        let Some(inner) = inner else {
            let mut hop = Hop::new(nic.host(), Stage::Translation, "cannot be translated");
            let text = format!("{} has no address of that family", nic.label());
            hop.find(broken("FamilyMismatch", Source::Objects, text));
            self.push(hop);
            return;
        };
        self.interface(nic);
        let mut received = packet;
        if !is_v6 {
            received.destination = inner;
            let mut hop = Hop::new(nic.host(), Stage::Translation, format!("becomes {inner}"))
                .because(format!("virtual IP {}", packet.destination));
            if services.is_some() && vip.is_none() {
                let host = nic.host();
                let text = format!(
                    "dpservice of {host} does not know {} as virtual IP of {}",
                    packet.destination,
                    nic.label()
                );
                let next = format!("look at the log of metalnet on {host}");
                hop.find(broken("TranslationMissing", Source::Dpservice, text).next(next));
            }
            self.push(hop);
        }
        let at = expected.hops.first().copied();
        self.deliver(nic, at.map(|underlay| (underlay, packet)), received);
    }

    fn reach_direct(&mut self, nic: &Nic<'a>, packet: Packet) {
        let mut expected = Expected::of(self, nic, Prefix::host(packet.destination));
        expected.exporter = self.public_vni();
        let text = format!("tunnels it to {}", nic.host());
        let because = format!("{} is an address of {}", packet.destination, nic.label());
        let mut hop = Hop::new("edge", Stage::Edge, text).because(because);
        self.at_edges(&mut hop, &expected);
        self.push(hop);
        self.interface(nic);
        let at = expected.hops.first().copied();
        self.deliver(nic, at.map(|underlay| (underlay, packet)), packet);
    }

    /// To the machine: `arrives` is where and what the data plane gets, `packet` what the machine gets.
    fn deliver(&mut self, nic: &Nic<'a>, arrives: Option<(Ipv6Addr, Packet)>, packet: Packet) {
        self.filter(nic, Direction::Ingress, &packet);
        if let Some((underlay, sent)) = arrives {
            self.rehearse_tunnelled(nic.node, Some(underlay), &sent, &Expect::at(nic));
        }
        self.machine(nic, Stage::Receiver);
        self.answer(nic, packet.source);
    }

    fn reach_nat(&mut self, packet: Packet) {
        let address = packet.destination;
        let text = "tunnels it to a hypervisor that shares the address";
        let because = format!("{address} is an address of a NAT gateway");
        self.push(Hop::new("edge", Stage::Edge, text).because(because));
        if !packet.protocol.has_ports() {
            let hop = Hop::new(
                "hypervisor",
                Stage::Receiver,
                "answers the echo request itself",
            )
            .because("a shared address belongs to no machine alone");
            self.push(hop);
            return;
        }
        let mut hop = Hop::new("hypervisor", Stage::Translation, "belongs to no connection");
        let text = format!(
            "{address} is shared by a NAT gateway: only answers to connections from inside pass, nobody can connect to it"
        );
        hop.find(
            broken("NATUnsolicited", Source::Objects, text)
                .next("use a virtual IP or a load balancer for connections from outside"),
        );
        self.push(hop);
    }

    /// What edges and metalbond servers know of a public address.
    pub(super) fn at_edges(&self, hop: &mut Hop, expected: &Expected) {
        let address = expected.prefix.address();
        let ports = match expected.kind {
            RouteKind::Nat(ports) => Some(ports),
            RouteKind::Standard | RouteKind::Target => None,
        };
        let (mut right, mut wrong) = (0, Vec::new());
        for edge in self.snapshot.answering_edges() {
            match edge_hops(edge, address) {
                None => wrong.push(format!("edge {} has no route", edge.address)),
                Some(hops) if !leads(&hops, expected, ports) => {
                    let hops: Vec<Ipv6Addr> = hops.into_iter().map(|(hop, _)| hop).collect();
                    wrong.push(format!("edge {} goes via {}", edge.address, join(&hops)));
                }
                Some(_) => right += 1,
            }
        }
        let next = "openkcm edge status; openkcm metalbond routes; look at the log of metalnet on the hypervisor";
        let told = wrong.join(", ");
        if right == 0 && !wrong.is_empty() {
            let text = format!("no edge brings {address} to {}: {told}", expected.owner);
            hop.find(broken("EdgeRouteMissing", Source::Edge, text).next(next));
        } else if !wrong.is_empty() {
            let text = format!(
                "{told}; another edge brings {address} to {}",
                expected.owner
            );
            hop.find(warning("EdgeRouteMissing", Source::Edge, text).next(next));
        }
        self.announced(hop, expected, right > 0);
    }
}

/// Whether one of the next hops is what is expected, for all of the ports.
fn leads(
    hops: &[(Ipv6Addr, Option<[u16; 2]>)],
    expected: &Expected,
    ports: Option<PortRange>,
) -> bool {
    let mut hops = hops.iter();
    hops.any(|(address, owned)| {
        let here = expected.hops.is_empty() || expected.hops.contains(address);
        let covers = match (ports, owned) {
            (Some(wanted), Some([first, end])) => *first <= wanted.first() && wanted.end() <= *end,
            (_, _) => true,
        };
        here && covers
    })
}

/// What keeps a load balancer or a gateway from being ready.
pub(super) fn waits(conditions: &[api::meta::Condition]) -> String {
    unready(conditions).map_or_else(String::new, |why| format!(" ({why})"))
}
