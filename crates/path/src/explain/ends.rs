//! From names to places: which interface of which machine, which address, and the chain of objects behind it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::ids::{NetworkInterfaceProviderId, NetworkProviderId};
use api::meta::{Ip, IpFamily, Protocol as ApiProtocol};
use api::{apinet, compute, metalnet, networking};
use controller::object;
use net::Vni;

use super::{broken, family, unknown};
use crate::model::{Finding, Protocol, Source};
use crate::query::{End, Name, Query};
use crate::snapshot::{Objects, Snapshot, named};

/// Somebody outside, from the blocks for documentation (RFC 5737, RFC 3849): no real region gives these addresses to a machine.
const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, 1);

/// An interface and everything that realises it, as far as it exists.
#[derive(Clone, Debug)]
pub(super) struct Nic<'a> {
    pub user: &'a networking::NetworkInterface,
    pub machine: Option<&'a compute::Machine>,
    pub network: Option<&'a networking::Network>,
    pub vni: Option<Vni>,
    pub net: Option<&'a apinet::NetworkInterface>,
    pub metal: Option<&'a metalnet::NetworkInterface>,
    /// Node of OpenKCM-net.
    pub node: Option<&'a str>,
}

impl<'a> Nic<'a> {
    pub fn of(objects: &'a Objects, user: &'a networking::NetworkInterface) -> Self {
        let namespace = object::namespace(user);
        let machine = user.spec.machine_ref.as_ref();
        let machine = machine.and_then(|m| named(&objects.machines, namespace, &m.name));
        let network = named(&objects.networks, namespace, &user.spec.network_ref.name);
        let vni = network.and_then(vni_of);
        let id: Option<NetworkInterfaceProviderId> = user.spec.provider_id.parse().ok();
        let net = id
            .as_ref()
            .and_then(|id| named(&objects.net_nics, &id.namespace, &id.name));
        let mut metals = objects.metal_nics.iter();
        let metal = net.and_then(|net| metals.find(|m| object::name(*m) == object::uid(net)));
        let node = net.map(|net| net.spec.node_ref.name.as_str());
        Self {
            user,
            machine,
            network,
            vni,
            net,
            metal,
            node,
        }
    }

    pub fn addresses(&self) -> Vec<IpAddr> {
        let shown = self.user.status.iter().flat_map(|s| &s.ips);
        let mut all: Vec<IpAddr> = shown.map(|Ip(address)| *address).collect();
        let planned = self.net.iter().flat_map(|net| &net.spec.ips);
        let fixed = self.user.spec.ips.iter().filter_map(|ip| ip.value.as_ref());
        for Ip(address) in planned.chain(fixed) {
            if !all.contains(address) {
                all.push(*address);
            }
        }
        all
    }

    pub fn address(&self, family: IpFamily) -> Option<IpAddr> {
        self.addresses()
            .into_iter()
            .find(|a| IpFamily::of(*a) == family)
    }

    /// The public IPv4 address that stands for it alone.
    pub fn virtual_ip(&self) -> Option<IpAddr> {
        let user = self.user.status.as_ref().and_then(|s| s.virtual_ip);
        let metal = self.metal.and_then(|m| m.spec.virtual_ip);
        user.or(metal).map(|Ip(address)| address)
    }

    pub fn network_name(&self) -> &'a str {
        self.user.spec.network_ref.name.as_str()
    }

    pub fn label(&self) -> String {
        format!(
            "{}/{}",
            object::namespace(self.user),
            object::name(self.user)
        )
    }

    /// The machine's name, or the interface's if it has none.
    pub fn place(&self) -> String {
        match self.machine {
            Some(machine) => format!("machine {}", object::name(machine)),
            None => format!("nic {}", object::name(self.user)),
        }
    }

    pub fn is(&self, other: &Nic<'_>) -> bool {
        object::uid(self.user) == object::uid(other.user)
            && object::name(self.user) == object::name(other.user)
    }

    /// The node as people call it.
    pub fn host(&self) -> String {
        self.node
            .map_or_else(|| "hypervisor".to_owned(), |node| short(node).to_owned())
    }
}

/// A node of OpenKCM-net without its partition.
pub(super) fn short(node: &str) -> &str {
    node.split_once('.').map_or(node, |(_, short)| short)
}

/// The VNI of a user's network, once it has one.
pub(super) fn vni_of(network: &networking::Network) -> Option<Vni> {
    let id: NetworkProviderId = network.spec.provider_id.parse().ok()?;
    id.id.parse().ok().and_then(Vni::new)
}

/// All interfaces, with what is behind them.
pub(super) fn nics(objects: &Objects) -> impl Iterator<Item = Nic<'_>> {
    objects.nics.iter().map(|user| Nic::of(objects, user))
}

/// An end that was found.
#[derive(Clone, Debug)]
pub(super) enum Place<'a> {
    Nic(Box<Nic<'a>>),
    Balancer(&'a networking::LoadBalancer),
    VirtualIp(&'a networking::VirtualIP),
    Address(IpAddr),
    Outside,
}

impl Place<'_> {
    pub fn describe(&self) -> String {
        match self {
            Self::Nic(nic) => {
                let machine = nic.machine.map(|machine| {
                    format!(
                        "machine {}/{}, ",
                        object::namespace(machine),
                        object::name(machine)
                    )
                });
                format!("{}interface {}", machine.unwrap_or_default(), nic.label())
            }
            Self::Balancer(balancer) => format!(
                "load balancer {}/{}",
                object::namespace(*balancer),
                object::name(*balancer)
            ),
            Self::VirtualIp(vip) => {
                format!(
                    "virtual IP {}/{}",
                    object::namespace(*vip),
                    object::name(*vip)
                )
            }
            Self::Address(address) => format!("address {address}"),
            Self::Outside => "the internet".to_owned(),
        }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Self::Nic(nic) => nic.addresses(),
            Self::Balancer(balancer) => {
                let ips = balancer.status.iter().flat_map(|status| &status.ips);
                ips.map(|Ip(address)| *address).collect()
            }
            Self::VirtualIp(vip) => {
                let ip = vip.status.as_ref().and_then(|status| status.ip);
                ip.map(|Ip(address)| address).into_iter().collect()
            }
            Self::Address(address) => vec![*address],
            Self::Outside => vec![OUTSIDE_V4.into(), OUTSIDE_V6.into()],
        }
    }
}

/// Both ends and the addresses between which the packet travels.
#[derive(Clone, Debug)]
pub(super) struct Ends<'a> {
    pub from: Place<'a>,
    pub to: Place<'a>,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// First port of a load balancer that is asked for.
    pub balancer_port: Option<(Protocol, u16)>,
}

/// Why the ends cannot be told.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub from: String,
    pub to: String,
    pub finding: Finding,
}

pub(super) fn resolve<'a>(snapshot: &'a Snapshot, query: &Query) -> Result<Ends<'a>, Problem> {
    let objects = &snapshot.objects;
    let problem = |finding| Problem {
        from: text(&query.from),
        to: text(&query.to),
        finding,
    };
    let froms = places(objects, &query.from).map_err(problem)?;
    let tos = places(objects, &query.to).map_err(problem)?;
    let (from, to) = choose(&froms, &tos);
    let from = match from {
        // A public address of a machine is that machine when it sends.
        Place::VirtualIp(vip) => nics(objects)
            .find(|nic| uses(nic, vip))
            .map(|nic| Place::Nic(Box::new(nic)))
            .ok_or_else(|| {
                let text = "no interface uses this virtual IP, so nothing is sent from it";
                problem(broken("VirtualIPUnused", Source::Objects, text))
            })?,
        Place::Balancer(_) => {
            let text = "a load balancer opens no connections; name a machine or an address as the first end";
            return Err(problem(unknown("SenderInvalid", Source::Objects, text)));
        }
        Place::Address(address) => nics(objects)
            .find(|nic| nic.virtual_ip() == Some(address))
            .map_or(Place::Address(address), |nic| Place::Nic(Box::new(nic))),
        other => other,
    };
    let (source, destination) = addresses(&from, &to, query.family).map_err(problem)?;
    let balancer_port = match &to {
        Place::Balancer(balancer) => first_port(balancer),
        _ => None,
    };
    Ok(Ends {
        from,
        to,
        source,
        destination,
        balancer_port,
    })
}

fn text(end: &End) -> String {
    match end {
        End::Machine(name) => format!("machine {name}"),
        End::Nic(name) => format!("interface {name}"),
        End::Balancer(name) => format!("load balancer {name}"),
        End::VirtualIp(name) => format!("virtual IP {name}"),
        End::Address(address) => format!("address {address}"),
        End::Internet => "the internet".to_owned(),
    }
}

fn places<'a>(objects: &'a Objects, end: &End) -> Result<Vec<Place<'a>>, Finding> {
    let missing = |kind: &str, Name { namespace, name }: &Name| {
        let text = format!("there is no {kind} {namespace}/{name}");
        let next = format!("kubectl --namespace {namespace} get {kind}s");
        unknown("NotFound", Source::Objects, text).next(next)
    };
    match end {
        End::Internet => Ok(vec![Place::Outside]),
        End::Address(address) => Ok(vec![Place::Address(*address)]),
        End::Nic(name) => {
            let user = named(&objects.nics, &name.namespace, &name.name);
            let user = user.ok_or_else(|| missing("networkinterface", name))?;
            Ok(vec![Place::Nic(Box::new(Nic::of(objects, user)))])
        }
        End::Balancer(name) => {
            let found = named(&objects.balancers, &name.namespace, &name.name);
            let found = found.ok_or_else(|| missing("loadbalancer", name))?;
            Ok(vec![Place::Balancer(found)])
        }
        End::VirtualIp(name) => {
            let found = named(&objects.virtual_ips, &name.namespace, &name.name);
            let found = found.ok_or_else(|| missing("virtualip", name))?;
            Ok(vec![Place::VirtualIp(found)])
        }
        End::Machine(name) => {
            let machine = named(&objects.machines, &name.namespace, &name.name);
            let machine = machine.ok_or_else(|| missing("machine", name))?;
            let entries = machine.spec.network_interfaces.iter();
            let names = entries.map(|entry| entry.object_name(&name.name));
            let users = names.filter_map(|n| named(&objects.nics, &name.namespace, &n));
            let all: Vec<Place<'a>> = users
                .map(|user| Place::Nic(Box::new(Nic::of(objects, user))))
                .collect();
            if all.is_empty() {
                let text = format!("machine {name} has no network interface");
                return Err(broken("NoInterface", Source::Objects, text).next(format!(
                    "kubectl --namespace {} describe machine {}",
                    name.namespace, name.name
                )));
            }
            Ok(all)
        }
    }
}

/// Of machines with several interfaces, those two that share a network, else the first.
fn choose<'a>(froms: &[Place<'a>], tos: &[Place<'a>]) -> (Place<'a>, Place<'a>) {
    let network = |place: &Place<'_>| match place {
        Place::Nic(nic) => Some((
            object::namespace(nic.user).to_owned(),
            nic.network_name().to_owned(),
        )),
        Place::Balancer(balancer) => Some((
            object::namespace(*balancer).to_owned(),
            balancer.spec.network_ref.name.clone(),
        )),
        Place::VirtualIp(_) | Place::Address(_) | Place::Outside => None,
    };
    let pairs = || {
        froms
            .iter()
            .flat_map(|from| tos.iter().map(move |to| (from, to)))
    };
    let shared = pairs().find(|(from, to)| network(from).is_some() && network(from) == network(to));
    let first = shared.or_else(|| pairs().next());
    first.map_or((Place::Outside, Place::Outside), |(from, to)| {
        (from.clone(), to.clone())
    })
}

/// The addresses of the packet.
fn addresses(
    from: &Place<'_>,
    to: &Place<'_>,
    wanted: Option<IpFamily>,
) -> Result<(IpAddr, IpAddr), Finding> {
    let is_outside = !matches!(from, Place::Nic(_));
    let mut sources = from.addresses();
    let destinations = match to {
        // From the outside a machine is reached at its public address; inside, at its own.
        Place::Nic(nic) if is_outside => {
            let mut all: Vec<IpAddr> = nic.virtual_ip().into_iter().collect();
            all.extend(nic.addresses().into_iter().filter(IpAddr::is_ipv6));
            if all.is_empty() {
                let text = format!(
                    "{} has no public address: the outside cannot open connections to it",
                    nic.label()
                );
                return Err(broken("NoPublicAddress", Source::Objects, text).next(
                    "give the interface a virtual IP (spec.virtualIP) or put a load balancer in front of it",
                ));
            }
            all
        }
        other => other.addresses(),
    };
    if destinations.is_empty() {
        let text = format!("{} has no address yet", to.describe());
        return Err(broken("AddressPending", Source::Objects, text));
    }
    if sources.is_empty() {
        let text = format!("{} has no address yet", from.describe());
        return Err(broken("AddressPending", Source::Objects, text));
    }
    // An IPv6 machine reaches IPv4 addresses under their translated form, which is another destination.
    if let (Place::Outside, Place::Address(one)) = (from, to) {
        sources.retain(|address| family(*address) == family(*one));
    }
    let families = [IpFamily::IPv4, IpFamily::IPv6];
    let of = |list: &[IpAddr], f: IpFamily| list.iter().copied().find(|a| family(*a) == f);
    let mut usable = families
        .into_iter()
        .filter(|f| wanted.is_none_or(|wanted| wanted == *f))
        .filter_map(|f| Some((of(&sources, f)?, of(&destinations, f)?)));
    usable.next().ok_or_else(|| {
        let has = |list: &[IpAddr]| {
            let names: Vec<&str> = families
                .iter()
                .filter(|f| of(list, **f).is_some())
                .map(|f| if *f == IpFamily::IPv4 { "IPv4" } else { "IPv6" })
                .collect();
            names.join(" and ")
        };
        let text = format!(
            "the ends share no address family: {} has {}, {} has {}",
            from.describe(),
            has(&sources),
            to.describe(),
            has(&destinations)
        );
        broken("FamilyMismatch", Source::Objects, text)
    })
}

fn first_port(balancer: &networking::LoadBalancer) -> Option<(Protocol, u16)> {
    let port = balancer.spec.ports.first()?;
    let protocol = match port.protocol {
        Some(ApiProtocol::UDP) => Protocol::Udp,
        Some(ApiProtocol::TCP | ApiProtocol::SCTP) | None => Protocol::Tcp,
    };
    Some((protocol, u16::try_from(port.port).ok()?))
}

/// Whether an interface uses a virtual IP.
pub(super) fn uses(nic: &Nic<'_>, vip: &networking::VirtualIP) -> bool {
    let target = vip.spec.target_ref.as_ref();
    target.is_some_and(|target| {
        object::namespace(nic.user) == object::namespace(vip)
            && object::name(nic.user) == target.name
    })
}
