//! What must hold: at any time nobody reaches whom he may not; at rest everybody reaches whom he may, nothing is held twice, and
//! nothing is left to do; after everything is deleted, nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::ids::{Origin, apinet_node_name};
use api::names::origin;
use api::networking::{
    Network, NetworkInterface, NetworkInterfaceState, NetworkPolicy, NetworkPolicyPort, PolicyType,
};
use api::{apinet, metalnet};
use controller::object;
use dataplane::PortId;
use rand::Rng;
use rand::seq::IndexedRandom;

use crate::region::edge::DEFAULTS;
use crate::region::machines::{addresses, is_inside, prefixes_by_name};
use crate::region::provider::{NODE, PARTITION};
use crate::region::user::{APP, SERVICE_PORT};
use crate::region::{Fate, Region, packet};
use crate::region::{fault, machines as computers, prefixes, services};

const PROBE_PORT: u16 = 7_000;

/// An interface as its user sees it, and where it is.
#[derive(Clone, Debug)]
pub struct Machine {
    pub name: String,
    pub uid: String,
    pub network: String,
    pub ip: Ipv4Addr,
    /// Its IPv6 address, if it has one.
    pub ip6: Option<Ipv6Addr>,
    pub app: String,
    /// Host and device, when there is one, whether a machine has it or not.
    pub device: Option<(usize, PortId)>,
    /// The same when a machine has it.
    pub place: Option<(usize, PortId)>,
    /// It is the stand-in provider's, which always finds a place.
    pub placed: bool,
    pub state: Option<NetworkInterfaceState>,
}

/// Interfaces of living networks, with their devices.
pub fn machines(region: &Region) -> Vec<Machine> {
    let of_user = devices(region);
    let prefixes = prefixes_by_name(region);
    let nics = region.store.list::<NetworkInterface>();
    let living = nics.into_iter().filter(|nic| !object::is_deleting(nic));
    living
        .filter_map(|nic| {
            let addresses = addresses(&nic, &prefixes);
            let ip = addresses.iter().find_map(|ip| match ip {
                IpAddr::V4(ip) => Some(*ip),
                IpAddr::V6(_) => None,
            });
            let ip6 = addresses.iter().find_map(|ip| match ip {
                IpAddr::V4(_) => None,
                IpAddr::V6(ip) => Some(*ip),
            });
            let placed = object::annotation(&nic, NODE).is_some();
            let device = of_user.get(object::uid(&nic)).copied();
            Some(Machine {
                name: object::name(&nic).to_owned(),
                uid: object::uid(&nic).to_owned(),
                network: nic.spec.network_ref.name.clone(),
                ip: ip?,
                ip6,
                app: object::label(&nic, APP).unwrap_or_default().to_owned(),
                device,
                place: device
                    .filter(|(host, port)| placed || is_inside(region, &nic, *host, *port)),
                placed,
                state: nic.status.as_ref().and_then(|status| status.state),
            })
        })
        .collect()
}

/// Devices by the uid of the user's interface.
fn devices(region: &Region) -> BTreeMap<String, (usize, PortId)> {
    let made = region.store.list::<apinet::NetworkInterface>();
    let made = made.iter().filter_map(|nic| {
        let user = Origin::of(&nic.metadata, origin::NETWORK_INTERFACE)?;
        Some((object::uid(nic).to_owned(), user.uid))
    });
    let made: BTreeMap<String, String> = made.collect();
    let low = region.store.list::<metalnet::NetworkInterface>();
    let placed = low.iter().filter_map(|nic| {
        let above = Origin::of(&nic.metadata, origin::METALNET_NETWORK_INTERFACE)?;
        let user = made.get(&above.uid)?;
        let uid = object::uid(nic);
        let place = region.hosts.iter().enumerate().find_map(|(at, host)| {
            let port = host.plane.as_ref()?.port_of(uid)?;
            Some((at, port))
        });
        Some((user.clone(), place?))
    });
    placed.collect()
}

/// What people said about networks.
pub struct Wishes {
    networks: BTreeMap<String, Network>,
    policies: Vec<NetworkPolicy>,
}

impl Wishes {
    pub fn of(region: &Region) -> Wishes {
        let networks = region.store.list::<Network>();
        let networks = networks.into_iter();
        let policies = region.store.list::<NetworkPolicy>().into_iter();
        Wishes {
            policies: policies.filter(|p| !object::is_deleting(p)).collect(),
            networks: networks.map(|n| (object::name(&n).to_owned(), n)).collect(),
        }
    }

    /// Whether there is such a network, and it stays.
    pub fn has(&self, network: &str) -> bool {
        let network = self.networks.get(network);
        network.is_some_and(|network| !object::is_deleting(network))
    }

    /// Whether `network` lets `other` see an address of its own.
    fn shows(&self, network: &str, other: &str, ip: IpAddr) -> bool {
        let Some(network) = self.networks.get(network) else {
            return false;
        };
        let mut entries = network.spec.peerings.iter();
        let entry = entries.find(|peering| peering.network_ref.name == other);
        entry.is_some_and(|peering| {
            let mut prefixes = peering.prefixes.iter().filter_map(|exposed| exposed.prefix);
            peering.prefixes.is_empty() || prefixes.any(|prefix| prefix.0.contains(&ip))
        })
    }

    /// Whether packets from one machine to another shall arrive.
    pub fn allow(&self, from: &Machine, to: &Machine, ip: IpAddr, port: u16) -> bool {
        self.filter(Some(from), Some(to), port) && self.routed(from, to, ip)
    }

    /// What policies say; `None` is the outside world.
    pub fn filter(&self, from: Option<&Machine>, to: Option<&Machine>, port: u16) -> bool {
        let passes = |near: Option<&Machine>, far: Option<&Machine>, direction: PolicyType| {
            let Some(near) = near else {
                return true;
            };
            let mut applies = false;
            for policy in &self.policies {
                let spec = &policy.spec;
                let here = spec.network_ref.name == near.network
                    && spec.policy_types.contains(&direction)
                    && names(spec.network_interface_selector.match_labels.as_ref(), near);
                if !here {
                    continue;
                }
                applies = true;
                let rules: Vec<_> = match direction {
                    PolicyType::Ingress => spec
                        .ingress
                        .iter()
                        .map(|rule| (&rule.ports, &rule.from))
                        .collect(),
                    PolicyType::Egress => spec
                        .egress
                        .iter()
                        .map(|rule| (&rule.ports, &rule.to))
                        .collect(),
                };
                let matches = rules.iter().any(|(ports, peers)| {
                    let on = |entry: &NetworkPolicyPort| entry.port == Some(i32::from(port));
                    let far = far.filter(|far| far.network == near.network);
                    (ports.is_empty() || ports.iter().any(on))
                        && peers.iter().any(|peer| {
                            let selector = peer.object_selector.as_ref();
                            selector.is_some_and(|selector| {
                                far.is_some_and(|far| names(Some(&selector.match_labels), far))
                            })
                        })
                });
                if matches {
                    return true;
                }
            }
            !applies
        };
        passes(from, to, PolicyType::Egress) && passes(to, from, PolicyType::Ingress)
    }

    /// Whether there is a way to an address of a machine.
    fn routed(&self, from: &Machine, to: &Machine, ip: IpAddr) -> bool {
        if from.network == to.network {
            return true;
        }
        let back = self.networks.get(&from.network).is_some_and(|network| {
            let mut peerings = network.spec.peerings.iter();
            peerings.any(|peering| peering.network_ref.name == to.network)
        });
        back && self.shows(&to.network, &from.network, ip)
    }
}

fn names(labels: Option<&BTreeMap<String, String>>, machine: &Machine) -> bool {
    labels.is_none_or(|labels| labels.get(APP).is_none_or(|app| *app == machine.app))
}

impl Machine {
    /// Pairs of addresses with which it can send to another one: one for each family that both have.
    fn ways(&self, to: &Machine) -> Vec<(IpAddr, IpAddr)> {
        let v4 = (IpAddr::V4(self.ip), IpAddr::V4(to.ip));
        let v6 = self.ip6.zip(to.ip6);
        let v6 = v6.map(|(from, to)| (IpAddr::V6(from), IpAddr::V6(to)));
        [v4].into_iter().chain(v6).collect()
    }
}

/// Sends a packet from one machine to another.
fn probe(region: &mut Region, from: &Machine, way: (IpAddr, IpAddr), to_port: u16) -> Option<Fate> {
    let (host, port) = from.place?;
    let source = region.rng.random_range(20_000..60_000);
    let frame = packet::udp((way.0, source), (way.1, to_port), b"probe");
    Some(region.send(host, port, &frame))
}

fn arrived(fate: &Fate, to: &Machine) -> bool {
    matches!(fate, Fate::Delivered(host, port, _) if to.place == Some((*host, *port)))
}

/// At any time: a few packets between machines that were never allowed to reach each other.
pub fn never(region: &mut Region) -> Result<(), String> {
    prefixes::never(region)?;
    let wishes = Wishes::of(region);
    let machines = machines(region);
    for from in &machines {
        for to in &machines {
            let mut ways = from.ways(to).into_iter();
            if ways.any(|(_, ip)| wishes.routed(from, to, ip)) {
                let pair = (from.uid.clone(), to.uid.clone());
                region.ever.insert(pair);
            }
        }
    }
    for _ in 0..4 {
        let (Some(from), Some(to)) = (
            machines.choose(&mut region.rng),
            machines.choose(&mut region.rng),
        ) else {
            return Ok(());
        };
        let pair = (from.uid.clone(), to.uid.clone());
        if region.ever.contains(&pair) {
            continue;
        }
        for way in from.ways(to) {
            if let Some(fate) = probe(region, from, way, PROBE_PORT)
                && arrived(&fate, to)
            {
                return Err(format!(
                    "{} in {} reached {} in {}, which was never allowed",
                    from.name, from.network, to.name, to.network
                ));
            }
        }
    }
    Ok(())
}

/// Longer than it takes to notice that a hypervisor is silent, with everything that may be away meanwhile.
const NOTICED_MS: u64 = 12_000;
/// How often the controllers look at silent Nodes in that time.
const LOOKS: u64 = 4;

/// A hypervisor that is cut off for long enough: the interfaces on it are in Error, whatever they were before.
pub fn lost(region: &mut Region) -> Result<(), String> {
    let hosts = region.hosts.iter();
    let away = hosts.filter(|host| host.offline && !host.departed);
    let away: Vec<String> = away.map(|host| host.name.clone()).collect();
    if away.is_empty() {
        return Ok(());
    }
    for _ in 0..LOOKS {
        // The heartbeats of the living stand for all that follow, so nothing else would make anybody look again.
        let soon = region.epoch_ms() + 1;
        for host in &away {
            fault::remind_of(&mut region.parts, host, soon);
        }
        let until = region.now_ms + NOTICED_MS / LOOKS;
        region.until(until)?;
    }
    let users = region.store.list::<NetworkInterface>();
    // In a network that goes, nothing is made any more.
    let networks = region.store.list::<apinet::Network>();
    let networks = networks
        .iter()
        .filter(|network| !object::is_deleting(*network));
    let staying: BTreeSet<&str> = networks.map(object::name).collect();
    for nic in region.store.list::<apinet::NetworkInterface>() {
        let node = nic.spec.node_ref.name.as_str();
        let known = away
            .iter()
            .any(|host| apinet_node_name(PARTITION, host) == node);
        let user = Origin::of(&nic.metadata, origin::NETWORK_INTERFACE);
        let Some(user) = user.filter(|_| known && !object::is_deleting(&nic)) else {
            continue;
        };
        let Some(user) = users.iter().find(|found| object::uid(*found) == user.uid) else {
            continue;
        };
        let status = user.status.clone().unwrap_or_default();
        let wanted = Some(NetworkInterfaceState::Error);
        let stays = staying.contains(nic.spec.network_ref.name.as_str());
        if stays && !object::is_deleting(user) && status.state != wanted {
            return Err(format!(
                "{} is {:?}, but {node} is lost: {:?}",
                object::name(user),
                status.state,
                status.conditions
            ));
        }
    }
    Ok(())
}

/// Without anything to do.
pub fn at_rest(region: &mut Region) -> Result<(), String> {
    reachability(region)?;
    services::check(region)?;
    numbers(region)?;
    prefixes::at_rest(region)?;
    computers::at_rest(region)?;
    idle(region)
}

fn reachability(region: &mut Region) -> Result<(), String> {
    let wishes = Wishes::of(region);
    let machines = machines(region);
    for machine in &machines {
        let there = wishes.networks.get(&machine.network);
        let deleting = there.is_none_or(object::is_deleting);
        if machine.placed && machine.place.is_none() && !deleting {
            return Err(format!("{} has no device", machine.name));
        }
        let state = machine.state;
        if machine.place.is_some() && !deleting && state != Some(NetworkInterfaceState::Available) {
            return Err(format!("{} has its device and is {state:?}", machine.name));
        }
    }
    for from in &machines {
        for to in machines.iter().filter(|to| to.uid != from.uid) {
            for way in from.ways(to) {
                reaches(region, &wishes, from, to, way)?;
            }
        }
    }
    Ok(())
}

/// Whether a packet arrives exactly if it shall.
fn reaches(
    region: &mut Region,
    wishes: &Wishes,
    from: &Machine,
    to: &Machine,
    way: (IpAddr, IpAddr),
) -> Result<(), String> {
    let port = match region.rng.random() {
        true => PROBE_PORT,
        false => SERVICE_PORT,
    };
    let Some(fate) = probe(region, from, way, port) else {
        return Ok(());
    };
    let (wanted, got) = (wishes.allow(from, to, way.1, port), arrived(&fate, to));
    // Whether a network that is being deleted can still be peered anew is nobody's promise.
    let settled =
        from.network == to.network || (wishes.has(&from.network) && wishes.has(&to.network));
    if to.place.is_some() && wanted != got && (got || settled) {
        return Err(format!(
            "{} {} in {} to {} {} port {port} in {}: wanted {wanted}, but {fate:?}",
            from.name, way.0, from.network, to.name, way.1, to.network
        ));
    }
    Ok(())
}

/// Numbers that may exist once.
fn numbers(region: &Region) -> Result<(), String> {
    let mut ids = BTreeMap::new();
    for network in region.store.list::<apinet::Network>() {
        let (id, uid) = (network.spec.id.clone(), object::uid(&network).to_owned());
        if let Some(other) = ids.insert(id.clone(), uid) {
            return Err(format!(
                "VNI {id} is held twice: {other} and {}",
                object::name(&network)
            ));
        }
    }
    let locks = region.store.list::<apinet::NetworkID>();
    let locks: BTreeSet<String> = locks
        .iter()
        .map(|lock| object::name(lock).to_owned())
        .collect();
    let held: BTreeSet<String> = ids.into_keys().collect();
    if locks != held {
        return Err(format!("VNIs locked {locks:?}, used {held:?}"));
    }
    Ok(())
}

/// A second look at an unchanged world finds nothing to do, even by processes that start anew.
fn idle(region: &mut Region) -> Result<(), String> {
    let (before, lines) = (region.store.rev, region.history.len());
    for part in &mut region.parts {
        part.resync();
    }
    let next = region.now_ms + 1_000;
    region.until(next)?;
    if region.store.rev != before {
        return Err(format!(
            "a second plan writes: {}",
            since(region, before, lines)
        ));
    }
    for part in &mut region.parts {
        part.crash();
    }
    for host in region.hosts.iter_mut().filter(|host| !host.departed) {
        host.crash_agent();
    }
    let next = region.now_ms + 15_000;
    region.until(next)?;
    if region.store.rev != before {
        return Err(format!(
            "a restart writes: {}",
            since(region, before, lines)
        ));
    }
    reachability(region)
}

fn since(region: &Region, rev: u64, lines: usize) -> String {
    let changed = region.store.all().filter(|(_, _, change)| change.rev > rev);
    let changed: Vec<String> = changed
        .map(|((_, plural), key, _)| format!("{plural} {key}"))
        .collect();
    let said: Vec<String> = region.history.iter().skip(lines).take(5).cloned().collect();
    format!("{changed:?} {said:?}")
}

/// Kinds that a region has when it is empty.
const FURNITURE: [&str; 6] = [
    "namespaces",
    "nodes",
    "events",
    "leases",
    "machineclasses",
    "machinepools",
];

/// After everything was deleted.
pub fn nothing_left(region: &mut Region) -> Result<(), String> {
    let left = region.store.all();
    let left = left.filter(|((_, plural), _, _)| !FURNITURE.contains(&plural.as_str()));
    let left: Vec<String> = left
        .map(|((group, plural), key, change)| {
            let meta = &change.object.metadata;
            let finalizers = meta.finalizers.clone().unwrap_or_default();
            format!("{plural}.{group} {key} {finalizers:?}")
        })
        .collect();
    if !left.is_empty() {
        return Err(format!("left behind: {left:?}; {}", region.unrest()));
    }
    for host in &region.hosts {
        let Some(plane) = &host.plane else {
            continue;
        };
        let inventory = plane.inventory();
        if inventory != Default::default() {
            return Err(format!(
                "the data plane of {} still holds {inventory:?}",
                host.name
            ));
        }
        if !host.bond.announced.is_empty() || host.claims_len() > 0 {
            return Err(format!("{} still announces or claims", host.name));
        }
    }
    for server in &region.servers {
        if server.routes_len() > DEFAULTS {
            return Err(format!("metalbond knows {} routes", server.routes_len()));
        }
    }
    Ok(())
}
