//! Everything that an explanation looks at, as it was at one moment: objects, and what data planes, metalbond servers and edges say.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use api::{apinet, compute, metalnet as wire, networking};
use controller::object;
use kube::Resource;
use metalnet::plan::observed::Observed;
use net::{PortRange, Prefix, Vni};

use crate::model::Packet;

/// The objects of a region.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub machines: Vec<compute::Machine>,
    pub networks: Vec<networking::Network>,
    pub nics: Vec<networking::NetworkInterface>,
    pub virtual_ips: Vec<networking::VirtualIP>,
    pub balancers: Vec<networking::LoadBalancer>,
    pub routings: Vec<networking::LoadBalancerRouting>,
    pub nat_gateways: Vec<networking::NATGateway>,
    pub policies: Vec<networking::NetworkPolicy>,
    pub net_nics: Vec<apinet::NetworkInterface>,
    pub net_nodes: Vec<apinet::Node>,
    pub nat_tables: Vec<apinet::NATTable>,
    pub metal_nics: Vec<wire::NetworkInterface>,
    /// Kinds that could not be listed, and why.
    pub unlisted: BTreeMap<String, String>,
}

/// The object of a name.
pub fn named<'a, K: Resource>(list: &'a [K], namespace: &str, name: &str) -> Option<&'a K> {
    let fits = |o: &&K| object::name(*o) == name && object::namespace(*o) == namespace;
    list.iter().find(fits)
}

/// What a part said, or why it said nothing.
pub type Heard<T> = Result<T, String>;

/// The dpservice of a hypervisor.
#[derive(Clone, Debug)]
pub struct Dataplane {
    /// Node of the hypervisor, in the spelling of OpenKCM-net (`partition.node`) or of the compute cluster (`node`).
    pub node: String,
    /// Where it was asked.
    pub endpoint: String,
    pub inventory: Heard<Observed>,
    /// What it said about packets that it was asked to rehearse.
    pub rehearsals: Vec<(Question, Heard<Rehearsal>)>,
}

/// What a data plane is asked: what would become of the first packet of this connection?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// As in [`Dataplane::node`].
    pub node: String,
    pub entrance: Entrance,
    pub packet: Packet,
}

/// Where a packet comes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// From the machine of this interface (its id in dpservice).
    Interface(String),
    /// Through a tunnel to this underlay address.
    Underlay(Ipv6Addr),
}

/// What a data plane would do with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    pub action: Action,
    /// What changes the packet: `vip`, `nat`, `nat64`, `neighbor_nat`, `load_balancer`; empty for nothing.
    pub service: String,
}

/// The end of a rehearsal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Drop it for this reason (the name of the counter).
    Drop(String),
    /// Give it to the machine of this interface (its id in dpservice).
    Deliver(String),
    /// Tunnel it to this underlay address.
    Tunnel(Ipv6Addr),
    /// Answer it, or send it out as it is.
    Other(String),
}

impl Rehearsal {
    /// In words.
    pub fn text(&self) -> String {
        let Self { action, service } = self;
        let by = if service.is_empty() {
            String::new()
        } else {
            format!(" ({service})")
        };
        match action {
            Action::Drop(reason) => format!("drop, {reason}"),
            Action::Deliver(id) => format!("deliver to interface {id}{by}"),
            Action::Tunnel(to) => format!("tunnel to {to}{by}"),
            Action::Other(what) => format!("{what}{by}"),
        }
    }
}

/// A metalbond server.
#[derive(Clone, Debug)]
pub struct RouteServer {
    /// Where it was asked.
    pub endpoint: String,
    pub routes: Heard<Vec<Route>>,
}

/// One next hop of a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub vni: Vni,
    pub prefix: Prefix,
    pub next_hop: Ipv6Addr,
    pub kind: RouteKind,
}

/// What a route says beside its next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    Standard,
    /// The next hop owns these ports of the address.
    Nat(PortRange),
    /// The next hop serves a load balancer's address.
    Target,
}

/// An edge.
#[derive(Clone, Debug)]
pub struct EdgeReport {
    /// Where it was asked.
    pub endpoint: String,
    pub status: Heard<edge::status::Status>,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub objects: Objects,
    pub dataplanes: Vec<Dataplane>,
    pub servers: Vec<RouteServer>,
    pub edges: Vec<EdgeReport>,
    /// VNI in which public addresses are announced.
    pub public_vni: Option<Vni>,
}

/// Whether a data plane's node is the one that OpenKCM-net names.
pub fn same_node(given: &str, apinet_node: &str) -> bool {
    let short = apinet_node.split_once('.').map(|(_, node)| node);
    given == apinet_node || short == Some(given)
}

impl Snapshot {
    /// The dpservice of a node of OpenKCM-net.
    pub fn dataplane(&self, apinet_node: &str) -> Option<&Dataplane> {
        let mut all = self.dataplanes.iter();
        all.find(|dataplane| same_node(&dataplane.node, apinet_node))
    }

    /// What that dpservice holds, if it was asked and answered.
    pub fn inventory(&self, apinet_node: &str) -> Option<&Observed> {
        self.dataplane(apinet_node)?.inventory.as_ref().ok()
    }

    /// The servers that answered, with their routes.
    pub fn route_servers(&self) -> impl Iterator<Item = (&str, &[Route])> {
        let heard = |server: &'_ RouteServer| server.routes.is_ok();
        let servers = self.servers.iter().filter(move |server| heard(server));
        servers.filter_map(|server| {
            let routes = server.routes.as_ref().ok()?;
            Some((server.endpoint.as_str(), routes.as_slice()))
        })
    }

    /// The edges that answered.
    pub fn answering_edges(&self) -> impl Iterator<Item = &edge::status::Status> {
        self.edges
            .iter()
            .filter_map(|edge| edge.status.as_ref().ok())
    }

    /// Whose underlay address this is, in words; `None` if no data plane that was asked has it.
    pub fn owner(&self, underlay: Ipv6Addr) -> Option<(String, String)> {
        for Dataplane {
            node, inventory, ..
        } in &self.dataplanes
        {
            let Ok(inventory) = inventory else { continue };
            if let Some(what) = owned(inventory, underlay) {
                return Some((node.clone(), what));
            }
        }
        let edge = self.answering_edges().find(|e| e.address == underlay)?;
        Some(("edge".to_owned(), format!("edge {}", edge.address)))
    }
}

fn owned(inventory: &Observed, underlay: Ipv6Addr) -> Option<String> {
    for (uid, interface) in inventory.interfaces() {
        let services = &interface.services;
        let vip = services.vip.filter(|(_, mine)| *mine == underlay);
        let nat = services.nat.filter(|(_, mine)| *mine == underlay);
        if let Some((address, _)) = vip {
            return Some(format!("virtual IP {address} of interface {uid}"));
        }
        if let Some((share, _)) = nat {
            return Some(format!("NAT {} of interface {uid}", share.address));
        }
        let mut routed = interface.owned().chain(
            services
                .targets
                .iter()
                .map(|(prefix, mine)| (*prefix, *mine)),
        );
        if let Some((prefix, _)) = routed.find(|(_, mine)| *mine == underlay) {
            return Some(format!("{prefix} of interface {uid}"));
        }
    }
    let mut balancers = inventory.balancers();
    let (_, balancer) = balancers.find(|(_, balancer)| balancer.underlay == underlay)?;
    Some(format!("load balancer {}", balancer.address))
}
