//! What services promise at rest: public addresses lead to their interfaces and back, NAT lends ports, balancers find targets.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::networking::{LoadBalancer, LoadBalancerType, NATGateway, NetworkInterface, VirtualIP};
use controller::object;

use crate::region::check::{Machine, Wishes, machines};
use crate::region::user::{APP, SERVICE_PORT};
use crate::region::{Fate, Region, packet};

/// Somebody in the outside world.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7);
const PORT: u16 = 4_000;

/// Looks at every service.
pub fn check(region: &mut Region) -> Result<(), String> {
    let wishes = Wishes::of(region);
    let machines = machines(region);
    for machine in machines.iter().filter(|machine| machine.place.is_some()) {
        outbound(region, &wishes, machine)?;
    }
    for balancer in region.store.list::<LoadBalancer>() {
        if !object::is_deleting(&balancer) && wishes.has(&balancer.spec.network_ref.name) {
            balanced(region, &wishes, &machines, &balancer)?;
        }
    }
    Ok(())
}

fn v4(ip: api::meta::Ip) -> Option<Ipv4Addr> {
    match ip.0 {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

/// The public address that is an interface's own.
fn vip_of(region: &Region, machine: &Machine) -> Result<Option<IpAddr>, String> {
    let nics = region.store.list::<NetworkInterface>();
    let nic = nics.iter().find(|nic| object::uid(*nic) == machine.uid);
    let wanted = nic.and_then(|nic| {
        let source = nic.spec.virtual_ip.as_ref()?;
        let named = source.virtual_ip_ref.as_ref().map(|named| &named.name);
        // One that is made for the interface has its name.
        Some(named.unwrap_or(&machine.name).clone())
    });
    let vips = region.store.list::<VirtualIP>();
    let vip = vips
        .iter()
        .find(|vip| wanted.as_deref() == Some(object::name(*vip)));
    let Some(vip) = vip.filter(|vip| !object::is_deleting(*vip)) else {
        return Ok(None);
    };
    match &vip.spec.target_ref {
        Some(target) if target.uid == machine.uid => {
            let ip = vip.status.as_ref().and_then(|status| status.ip);
            ip.map(|ip| Some(ip.0))
                .ok_or_else(|| format!("{} has no address", object::name(vip)))
        }
        Some(_) => Ok(None),
        None => Err(format!(
            "{} wants {}, which nobody gives",
            machine.name,
            object::name(vip)
        )),
    }
}

/// The addresses that a network's gateway lends.
fn lent(region: &Region, machine: &Machine) -> Option<BTreeSet<Ipv4Addr>> {
    let gateways = region.store.list::<NATGateway>();
    let mut living = gateways
        .iter()
        .filter(|gateway| !object::is_deleting(*gateway));
    let gateway = living.find(|gateway| gateway.spec.network_ref.name == machine.network)?;
    let ips = gateway.status.as_ref().map(|status| status.ips.clone());
    Some(ips.unwrap_or_default().into_iter().filter_map(v4).collect())
}

/// A machine talks to the outside world, and is answered.
fn outbound(region: &mut Region, wishes: &Wishes, machine: &Machine) -> Result<(), String> {
    let (vip, lent) = (vip_of(region, machine)?, lent(region, machine));
    let Some((host, port)) = machine.place else {
        return Ok(());
    };
    let vip = match vip {
        Some(IpAddr::V6(vip)) => {
            own_public(region, wishes, machine, vip)?;
            None
        }
        Some(IpAddr::V4(vip)) => Some(vip),
        None => None,
    };
    let frame = packet::udp((machine.ip.into(), PORT), (OUTSIDE.into(), 53), b"out");
    let fate = region.send(host, port, &frame);
    let name = &machine.name;
    let may = wishes.filter(Some(machine), None, 53);
    let seen = match &fate {
        Fate::Outside(packet) => packet::seen_ip(packet),
        _ => None,
    };
    let source = seen.map(|seen| seen.from);
    match (vip, lent, source) {
        (_, _, Some(_)) if !may => Err(format!("{name} got out: {fate:?}")),
        (_, _, None) if !may => Ok(()),
        (Some(vip), _, Some((IpAddr::V4(source), _))) if source == vip => {
            inbound(region, wishes, machine, vip.into())
        }
        (None, Some(lent), Some((IpAddr::V4(source), port))) if lent.contains(&source) => {
            answered(region, machine, source, port)
        }
        (None, None, None) => Ok(()),
        (vip, lent, _) => Err(format!(
            "{name} with {vip:?}, {lent:?} sent to the outside: {fate:?}"
        )),
    }
}

/// A public IPv6 address is the machine's own: it sends from it and is reached under it.
fn own_public(
    region: &mut Region,
    wishes: &Wishes,
    machine: &Machine,
    vip: Ipv6Addr,
) -> Result<(), String> {
    let Some((host, port)) = machine.place else {
        return Ok(());
    };
    let frame = packet::udp((vip.into(), PORT), (OUTSIDE_V6.into(), 53), b"out");
    let fate = region.send(host, port, &frame);
    let seen = match &fate {
        Fate::Outside(packet) => packet::seen_ip(packet),
        _ => None,
    };
    let (wanted, got) = (
        wishes.filter(Some(machine), None, 53),
        seen.is_some_and(|seen| seen.from.0 == vip),
    );
    if wanted != got {
        return Err(format!(
            "{} from {vip} to the outside: wanted {wanted}, but {fate:?}",
            machine.name
        ));
    }
    inbound(region, wishes, machine, vip.into())
}

/// The outside world opens a connection to a public address.
fn inbound(
    region: &mut Region,
    wishes: &Wishes,
    machine: &Machine,
    vip: IpAddr,
) -> Result<(), String> {
    let outside = match vip {
        IpAddr::V4(_) => IpAddr::V4(OUTSIDE),
        IpAddr::V6(_) => IpAddr::V6(OUTSIDE_V6),
    };
    let frame = packet::udp((outside, 9_999), (vip, SERVICE_PORT), b"in");
    let fate = region.send_from_outside(frame.get(14..).unwrap_or_default());
    let arrived =
        matches!(&fate, Fate::Delivered(host, port, _) if machine.place == Some((*host, *port)));
    let may = wishes.filter(None, Some(machine), SERVICE_PORT);
    if arrived == may {
        return Ok(());
    }
    Err(format!(
        "from outside to {vip} of {}: wanted {may}, but {fate:?}",
        machine.name
    ))
}

/// What a machine said through NAT is answered to its port.
fn answered(
    region: &mut Region,
    machine: &Machine,
    source: Ipv4Addr,
    port: u16,
) -> Result<(), String> {
    let frame = packet::udp((OUTSIDE.into(), 53), (source.into(), port), b"answer");
    let fate = region.send_from_outside(frame.get(14..).unwrap_or_default());
    let back = match &fate {
        Fate::Delivered(host, device, frame) if machine.place == Some((*host, *device)) => {
            packet::seen(frame).map(|seen| seen.to)
        }
        _ => None,
    };
    if back == Some((IpAddr::V4(machine.ip), PORT)) {
        return Ok(());
    }
    Err(format!(
        "the answer to {source} {port} of {} ended at {fate:?}",
        machine.name
    ))
}

/// Whoever may reach a balanced address reaches one of the targets, in each family.
fn balanced(
    region: &mut Region,
    wishes: &Wishes,
    machines: &[Machine],
    balancer: &LoadBalancer,
) -> Result<(), String> {
    let name = object::name(balancer);
    let status = balancer.status.clone().unwrap_or_default();
    for family in &balancer.spec.ip_families {
        let mut ips = status.ips.iter().filter(|ip| ip.family() == *family);
        let Some(ip) = ips.next() else {
            return Err(format!("{name} has no {family:?} address"));
        };
        balanced_address(region, wishes, machines, balancer, ip.0)?;
    }
    Ok(())
}

/// The address of a machine in the family of another address.
fn own(machine: &Machine, like: IpAddr) -> Option<IpAddr> {
    match like {
        IpAddr::V4(_) => Some(machine.ip.into()),
        IpAddr::V6(_) => machine.ip6.map(IpAddr::V6),
    }
}

fn balanced_address(
    region: &mut Region,
    wishes: &Wishes,
    machines: &[Machine],
    balancer: &LoadBalancer,
    ip: IpAddr,
) -> Result<(), String> {
    let name = object::name(balancer);
    let selector = balancer.spec.network_interface_selector.as_ref();
    let labels = selector.and_then(|selector| selector.match_labels.as_ref());
    let app = labels
        .and_then(|labels| labels.get(APP))
        .cloned()
        .unwrap_or_default();
    let of_network = |machine: &&Machine| machine.network == balancer.spec.network_ref.name;
    let targets: Vec<&Machine> = machines
        .iter()
        .filter(of_network)
        .filter(|machine| machine.app == app && machine.device.is_some())
        .collect();
    let source = region.next_port();
    let (fate, from) = if balancer.spec.type_ == LoadBalancerType::Public {
        let outside = match ip {
            IpAddr::V4(_) => IpAddr::V4(OUTSIDE),
            IpAddr::V6(_) => IpAddr::V6(OUTSIDE_V6),
        };
        let frame = packet::udp((outside, source), (ip, SERVICE_PORT), b"lb");
        let packet = frame.get(14..).unwrap_or_default();
        (region.send_from_outside(packet), None)
    } else {
        let mut clients = machines.iter().filter(of_network);
        let client = clients.find_map(|client| {
            let place = client.place?;
            let other = targets.iter().all(|target| target.uid != client.uid);
            Some((client, place, own(client, ip)?)).filter(|_| other)
        });
        let Some((client, (host, port), address)) = client else {
            return Ok(());
        };
        let frame = packet::udp((address, source), (ip, SERVICE_PORT), b"lb");
        (region.send(host, port, &frame), Some(client))
    };
    let all_may = targets
        .iter()
        .all(|target| wishes.filter(from, Some(target), SERVICE_PORT));
    let none_may = targets
        .iter()
        .all(|target| !wishes.filter(from, Some(target), SERVICE_PORT));
    // A target without an address of the family has nothing that could answer, nor has one whose machine is switched off.
    let able = targets
        .iter()
        .all(|target| own(target, ip).is_some() && target.place.is_some());
    // A sender whose own policy knows nothing of the balanced address does not get that far.
    let sends = from.is_none_or(|from| wishes.filter(Some(from), None, SERVICE_PORT));
    let hit = targets
        .iter()
        .any(|target| matches!(&fate, Fate::Delivered(host, port, _) if target.device == Some((*host, *port))));
    let delivered = matches!(&fate, Fate::Delivered(..));
    match () {
        () if delivered && (!hit || none_may) => Err(format!("{name} led to {fate:?}")),
        () if !targets.is_empty() && able && all_may && sends && !hit => Err(format!(
            "{name} {ip} with {} targets: {fate:?}",
            targets.len()
        )),
        () => Ok(()),
    }
}
