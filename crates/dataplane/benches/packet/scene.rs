//! What the benchmark measures in: a host with two machines, a fabric behind its uplink, and the frames of each case's flows.

use crate::{Case, MACHINE, UPLINK, Work};
use dataplane::{
    ConfigError, Engine, EngineConfig, FirewallAction, FirewallRule, Instant, InterfaceSpec,
    LbPort, LoadBalancerSpec, Metering, PacketBuf, PortConfig, PortId, PortKind, PortMatch,
    RuleDirection, RuleFilter, RulePrefix, Verdict, Worker,
};
use net::{Mac, PortRange, Vni, checksum, protocol};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const HOST: Ipv6Addr = Ipv6Addr::new(0xfc00, 1, 0, 0, 0, 0, 0, 1);
const NEIGHBOUR: Ipv6Addr = Ipv6Addr::new(0xfc00, 2, 0, 0, 0xd000, 0, 0, 1);
/// Another host, for a route that moves.
const OTHER_NEIGHBOUR: Ipv6Addr = Ipv6Addr::new(0xfc00, 3, 0, 0, 0xd000, 0, 0, 1);
/// Next hop of what leaves the region.
const EDGE: Ipv6Addr = Ipv6Addr::new(0xfc00, 0xe, 0, 0, 0, 0, 0, 1);
const NEAR_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const NEAR_V6: Ipv6Addr = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const SERVER_PORT: u16 = 4242;
const ETHERNET_LEN: usize = 14;
const TUNNEL_LEN: usize = ETHERNET_LEN + 40;

/// Everything a case works on.
pub struct Scene {
    pub engine: Engine,
    pub worker: Worker,
    /// Where frames come in.
    pub port: PortId,
    /// One frame of every flow.
    pub frames: Vec<Vec<u8>>,
}

fn vni() -> Vni {
    Vni::new(100).unwrap_or(Vni::MAX)
}

/// # Errors
/// The configuration is refused: a mistake of the benchmark.
pub fn scene(case: &Case) -> Result<Scene, String> {
    configured(case).map_err(|error| error.to_string())
}

fn configured(case: &Case) -> Result<Scene, ConfigError> {
    let mut engine = host(case);
    let own = engine.create_interface(interface("a", 2, 1))?.underlay;
    engine.create_interface(interface("b", 3, 2))?;
    for id in ["a", "b"] {
        for rule in rules() {
            engine.create_firewall_rule(id, rule)?;
        }
    }
    let v6_net = IpAddr::V6(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0));
    for (prefix, length) in [(IpAddr::V4(Ipv4Addr::new(10, 1, 0, 0)), 16), (v6_net, 32)] {
        engine.create_route(vni(), prefix, length, IpAddr::V6(NEIGHBOUR), 100)?;
    }
    // Only what a default route sends is translated.
    let outside = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    engine.create_route(vni(), outside, 0, IpAddr::V6(EDGE), 0)?;
    let underlay = match case.work {
        Work::NatOut | Work::NatIn => {
            let ports = PortRange::new(1024, 65_000).ok_or(ConfigError::OutOfMemory)?;
            engine.create_nat("a", IpAddr::V4(PUBLIC), ports, None)?
        }
        Work::VipOut | Work::VipIn => engine.create_vip("a", IpAddr::V4(PUBLIC), None)?,
        Work::Balance => balancer(&mut engine)?,
        Work::Encap
        | Work::Decap
        | Work::Local
        | Work::Miss
        | Work::Keep
        | Work::Refilter
        | Work::Reroute
        | Work::Move
        | Work::Redecide => own,
    };
    let port = match case.work {
        Work::Decap | Work::NatIn | Work::VipIn | Work::Balance => UPLINK,
        Work::Encap
        | Work::Local
        | Work::Miss
        | Work::Keep
        | Work::Refilter
        | Work::Reroute
        | Work::Move
        | Work::Redecide
        | Work::NatOut
        | Work::VipOut => MACHINE,
    };
    let mut worker = engine.worker();
    let frames = (0..case.flows).map(|flow| frame(case, flow, underlay));
    let frames: Vec<Vec<u8>> = match case.work {
        Work::NatIn | Work::VipIn => frames
            .map(|sent| reply(&mut engine, &mut worker, &sent, underlay))
            .collect(),
        _ => frames.collect(),
    };
    let is_translated =
        |frame: &Vec<u8>| frame.get(TUNNEL_LEN + 16..TUNNEL_LEN + 20) == Some(&PUBLIC.octets());
    if matches!(case.work, Work::NatIn | Work::VipIn) && !frames.iter().all(is_translated) {
        return Err(ConfigError::NotFound);
    }
    Ok(Scene {
        engine,
        worker,
        port,
        frames,
    })
}

/// Changes the configuration as the case says, back and forth.
pub fn change(engine: &mut Engine, work: Work, back: bool) {
    let route = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 0));
    // None of these is refused; if it were, nothing would change and the figure would show it.
    match work {
        Work::Keep => engine.set_link(PortId(1), back),
        Work::Refilter => {
            let rule = rules().pop().filter(|_| back).map(|rule| FirewallRule {
                id: "extra".to_owned(),
                direction: RuleDirection::Egress,
                priority: 2000,
                ..rule
            });
            let _ = match rule {
                Some(rule) => engine.create_firewall_rule("a", rule),
                None => engine.delete_firewall_rule("a", "extra"),
            };
        }
        Work::Reroute => {
            // The same host; the number tells of a change.
            let number = 100 + u32::from(back);
            let _ = engine.replace_route(vni(), route, 16, IpAddr::V6(NEIGHBOUR), number);
        }
        Work::Move => {
            let host = if back { NEIGHBOUR } else { OTHER_NEIGHBOUR };
            let _ = engine.replace_route(vni(), route, 16, IpAddr::V6(host), 100);
        }
        Work::Redecide => dataplane::fuzzing::forget_decisions(engine),
        Work::Encap
        | Work::Decap
        | Work::Local
        | Work::Miss
        | Work::NatOut
        | Work::NatIn
        | Work::VipOut
        | Work::VipIn
        | Work::Balance => {}
    }
}

/// Adds a target of a load balancer, which is made the first time, or takes it away.
pub fn balance(scene: &mut Scene, add: bool) {
    let _ = balancer(&mut scene.engine);
    let target = IpAddr::V6(NEIGHBOUR);
    let _ = if add {
        scene.engine.create_load_balancer_target("balancer", target)
    } else {
        scene.engine.delete_load_balancer_target("balancer", target)
    };
}

fn host(case: &Case) -> Engine {
    let ports = (0..4_u8).map(|index| PortConfig {
        name: format!("net_tap{index}"),
        kind: if index < 2 {
            PortKind::Uplink(index)
        } else {
            PortKind::Machine
        },
        mac: Mac([2, 0, 0, 0, 0, index]),
    });
    let mut config = EngineConfig::new(HOST, ports.collect());
    config.limits.flows_max = case.flows.max(100_000) + 100_000;
    let mut engine = Engine::new(config);
    engine.set_next_hop(UPLINK, Some(Mac([2, 0, 0, 0, 1, 0])));
    engine
}

pub fn interface(id: &str, port: u16, host: u16) -> InterfaceSpec {
    InterfaceSpec {
        id: id.to_owned(),
        device: format!("net_tap{port}"),
        vni: vni(),
        ipv4: Some(Ipv4Addr::from_bits(0x0a00_0000 | u32::from(host))),
        ipv6: Some(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, host)),
        pxe: None,
        metering: Metering::default(),
        preferred_underlay: None,
        hostname: None,
    }
}

/// Eight rules: in each direction two that do not match, and one for each family that lets everything pass.
pub fn rules() -> Vec<FirewallRule> {
    let any_v4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let any_v6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let other = IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0));
    let dns = RuleFilter::Udp {
        source: PortMatch::ANY,
        destination: PortMatch {
            lower: Some(53),
            upper: Some(53),
        },
    };
    let mut rules = Vec::new();
    for direction in [RuleDirection::Ingress, RuleDirection::Egress] {
        for (action, source, length, filter) in [
            (FirewallAction::Drop, other, 12, RuleFilter::Any),
            (FirewallAction::Drop, any_v4, 0, dns),
            (FirewallAction::Accept, any_v4, 0, RuleFilter::Any),
            (FirewallAction::Accept, any_v6, 0, RuleFilter::Any),
        ] {
            let to = if source.is_ipv4() { any_v4 } else { any_v6 };
            let prefixes = RulePrefix::new(source, length).zip(RulePrefix::new(to, 0));
            rules.extend(prefixes.map(|(source, destination)| FirewallRule {
                id: format!("rule-{}", rules.len()),
                direction,
                action,
                priority: 1000,
                source,
                destination,
                filter,
            }));
        }
    }
    rules
}

/// A load balancer whose only target is machine a; returns where its traffic arrives.
fn balancer(engine: &mut Engine) -> Result<Ipv6Addr, ConfigError> {
    let underlay = engine.create_load_balancer(LoadBalancerSpec {
        id: "balancer".to_owned(),
        vni: vni(),
        address: IpAddr::V4(PUBLIC),
        ports: vec![LbPort {
            protocol: net::protocol::UDP,
            port: SERVER_PORT,
        }],
        preferred_underlay: None,
    })?;
    let target = engine.create_lb_prefix("a", IpAddr::V4(PUBLIC), 32, None)?;
    engine.create_load_balancer_target("balancer", IpAddr::V6(target))?;
    Ok(underlay)
}

// ---- frames ----------------------------------------------------------------------------------------------------------------

/// A 64-byte frame (without check sequence: 60) with its own far address and port; tunnelled if it comes from the fabric.
fn frame(case: &Case, flow: u32, underlay: Ipv6Addr) -> Vec<u8> {
    let ip = if case.ipv6 {
        packet_v6(case, flow)
    } else {
        packet_v4(case, flow)
    };
    match case.work {
        Work::Decap | Work::Balance => tunnelled(&ip, NEIGHBOUR, underlay),
        _ => {
            let (to, from) = (Mac([2, 0, 0, 0, 0, 2]), Mac([2, 0, 0, 0, 0, 9]));
            let ethertype = if case.ipv6 { 0x86dd } else { 0x0800 };
            [&net::ethernet::header(to, from, ethertype)[..], &ip].concat()
        }
    }
}

fn tunnelled(ip: &[u8], source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let is_v6 = ip.first().map(|first| first >> 4) == Some(6);
    let outer = net::ipv6::Header {
        payload_len: ip.len() as u16,
        next_header: if is_v6 { 41 } else { 4 },
        hop_limit: 64,
        source,
        destination,
    };
    let (to, from) = (Mac([2, 0, 0, 0, 0, 2]), Mac([2, 0, 0, 0, 0, 9]));
    [
        &net::ethernet::header(to, from, 0x86dd)[..],
        &outer.emit(),
        ip,
    ]
    .concat()
}

/// The transport header and payload of a flow's packets, `length` bytes with a true checksum; `pseudo` is what the IP header adds to the sum.
fn transport(case: &Case, flow: u32, length: u16, pseudo: u32) -> Vec<u8> {
    let [_, _, middle, low] = flow.to_be_bytes();
    let source_port = 1024 + u16::from_be_bytes([middle, low]) % 60_000;
    let mut bytes = [source_port.to_be_bytes(), SERVER_PORT.to_be_bytes()].concat();
    let place = if case.tcp {
        let (sequence, acknowledged, offset, window) = ([0, 0, 0, 1], [0, 0, 0, 2], 5 << 4, [1, 0]);
        bytes.extend([sequence, acknowledged].concat());
        bytes.extend([offset, net::tcp::ACK]);
        bytes.extend(window);
        16
    } else {
        bytes.extend(length.to_be_bytes());
        6
    };
    bytes.resize(length.into(), 0);
    let sum = checksum::sum(pseudo, &bytes);
    let sum = if case.tcp {
        checksum::finish(sum)
    } else {
        checksum::udp(sum)
    };
    if let Some(field) = bytes.get_mut(place..place + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

fn protocol(case: &Case) -> u8 {
    if case.tcp {
        protocol::TCP
    } else {
        protocol::UDP
    }
}

fn packet_v4(case: &Case, flow: u32) -> Vec<u8> {
    const PAYLOAD_LEN: u16 = 26;
    let [_, high, _, _] = flow.to_be_bytes();
    let number = (flow / 60_000) as u8;
    let inside = Ipv4Addr::new(10, 1, high, number);
    let outside = Ipv4Addr::new(198, 18, high, number);
    let (source, destination) = match case.work {
        Work::Encap
        | Work::Miss
        | Work::Keep
        | Work::Refilter
        | Work::Reroute
        | Work::Move
        | Work::Redecide => (NEAR_V4, inside),
        Work::Decap => (inside, NEAR_V4),
        Work::Local => (NEAR_V4, Ipv4Addr::new(10, 0, 0, 2)),
        Work::NatOut | Work::NatIn | Work::VipOut | Work::VipIn => (NEAR_V4, outside),
        Work::Balance => (outside, PUBLIC),
    };
    let protocol = protocol(case);
    let header = net::ipv4::Header {
        payload_len: PAYLOAD_LEN,
        ttl: 64,
        protocol,
        source,
        destination,
    };
    let pseudo = checksum::pseudo_v4(source, destination, protocol, PAYLOAD_LEN);
    let payload = transport(case, flow, PAYLOAD_LEN, pseudo);
    [&header.emit()[..], &payload].concat()
}

fn packet_v6(case: &Case, flow: u32) -> Vec<u8> {
    const PAYLOAD_LEN: u16 = 14;
    let [_, high, middle, low] = flow.to_be_bytes();
    let low = u16::from_be_bytes([middle, low]);
    let far = Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, u16::from(high) + 1, low);
    let (source, destination) = if case.work == Work::Decap {
        (far, NEAR_V6)
    } else {
        (NEAR_V6, far)
    };
    let protocol = protocol(case);
    let header = net::ipv6::Header {
        payload_len: PAYLOAD_LEN,
        next_header: protocol,
        hop_limit: 64,
        source,
        destination,
    };
    let pseudo = checksum::pseudo_v6(source, destination, protocol, PAYLOAD_LEN.into());
    let payload = transport(case, flow, PAYLOAD_LEN, pseudo);
    [&header.emit()[..], &payload].concat()
}

/// Sends a machine's frame and makes the answer that comes back to `underlay`: both ends exchanged, behind the tunnel.
fn reply(engine: &mut Engine, worker: &mut Worker, sent: &[u8], underlay: Ipv6Addr) -> Vec<u8> {
    let mut packet = [PacketBuf::new()];
    let _ = packet[0].fill(sent);
    let mut verdict = [Verdict::Transmit(UPLINK)];
    engine.process_burst(
        worker,
        MACHINE,
        &mut packet,
        &mut verdict,
        Instant::from_secs(10),
    );
    let mut ip = packet[0]
        .frame()
        .get(TUNNEL_LEN..)
        .unwrap_or_default()
        .to_vec();
    // Addresses and ports change places; no checksum changes with them.
    if let Some(addresses) = ip.get_mut(12..20) {
        addresses.rotate_left(4);
    }
    if let Some(ports) = ip.get_mut(20..24) {
        ports.rotate_left(2);
    }
    tunnelled(&ip, EDGE, underlay)
}
