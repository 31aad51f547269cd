//! The policy, by which everything is judged that leaves. It takes bytes apart by itself.

use super::region::{
    BALANCED, EDGE, Entrance, HOST, Machine, NAT, NAT_PORTS, Policy, UPLINKS, VIP, admits, mac,
    neighbour, other_nat_ports,
};
use dataplane::{PortId, Verdict};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

type Judgement = Result<(), &'static str>;

const ETHERNET_LEN: usize = 14;
const TUNNEL_LEN: usize = 54;

/// What an IP packet shows.
#[derive(Clone, Copy, Debug)]
struct Shown {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// First bytes of the transport, if it is there.
    head: Option<[u8; 8]>,
    transport: usize,
    is_later_piece: bool,
}

impl Shown {
    fn of(ip: &[u8]) -> Option<Shown> {
        match ip.first()? >> 4 {
            4 => {
                let head = ip.first_chunk::<20>()?;
                let transport = usize::from(head[0] & 15) * 4;
                let piece = u16::from_be_bytes([head[6], head[7]]) & 0x1fff;
                Some(Shown {
                    source: Ipv4Addr::new(head[12], head[13], head[14], head[15]).into(),
                    destination: Ipv4Addr::new(head[16], head[17], head[18], head[19]).into(),
                    protocol: head[9],
                    head: ip
                        .get(transport..)
                        .and_then(|rest| rest.first_chunk().copied()),
                    transport,
                    is_later_piece: piece != 0,
                })
            }
            6 => {
                let head = ip.first_chunk::<40>()?;
                let (mut protocol, mut transport, mut is_later_piece) = (head[6], 40, false);
                // Options and fragment headers, as far as they go.
                while let (0 | 43 | 44 | 60, Some([next, length, high, low])) = (
                    protocol,
                    ip.get(transport..).and_then(|rest| rest.first_chunk::<4>()),
                ) {
                    is_later_piece |= protocol == 44 && (*high != 0 || *low >= 8);
                    let words = if protocol == 44 {
                        0
                    } else {
                        usize::from(*length)
                    };
                    transport += 8 + words * 8;
                    protocol = *next;
                }
                Some(Shown {
                    source: Ipv6Addr::from_octets(*head.get(8..)?.first_chunk()?).into(),
                    destination: Ipv6Addr::from_octets(*head.get(24..)?.first_chunk()?).into(),
                    protocol,
                    head: ip
                        .get(transport..)
                        .and_then(|rest| rest.first_chunk().copied()),
                    transport,
                    is_later_piece,
                })
            }
            _ => None,
        }
    }

    fn ports(&self) -> (u16, u16) {
        match self.head {
            Some([a, b, c, d, ..]) => (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
            None => (0, 0),
        }
    }
}

/// Outer source and destination of a tunnelled frame.
fn outer(frame: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let source = frame.get(22..38)?.first_chunk()?;
    let destination = frame.get(38..54)?.first_chunk()?;
    Some((
        Ipv6Addr::from_octets(*source),
        Ipv6Addr::from_octets(*destination),
    ))
}

/// Whether a machine may use an address as its own.
fn owns(machine: Machine, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let is_first = !machine.is_second;
            address == machine.v4()
                || is_first && matches!(address.octets(), [10, 2, 0, _])
                || is_first && address == BALANCED
        }
        IpAddr::V6(address) => address == machine.v6(),
    }
}

fn holds(is_so: bool, violation: &'static str) -> Judgement {
    if is_so { Ok(()) } else { Err(violation) }
}

/// Judges one packet: what came in where, and what became of it.
pub fn judge(
    policy: &Policy,
    (port, sent): (PortId, &[u8]),
    (verdict, result): (Verdict, &[u8]),
) -> Judgement {
    match verdict {
        Verdict::Drop(_) => Ok(()),
        Verdict::Reply(to) => {
            holds(to == port, "answered to somebody else")?;
            if port.0 >= UPLINKS {
                return Ok(());
            }
            let (asker, _) = outer(sent).ok_or("answered to nobody")?;
            holds(outer(result) == Some((HOST, asker)), "an echo went astray")
        }
        Verdict::Transmit(to) if to.0 >= UPLINKS => deliver(policy, (port, sent), (to, result)),
        Verdict::Transmit(_) => {
            let (source, destination) = outer(result).ok_or("no tunnel")?;
            let inner = result.get(TUNNEL_LEN..).unwrap_or_default();
            let shown = Shown::of(inner).ok_or("no IP packet in the tunnel")?;
            holds(
                result.get(20) == Some(&if shown.source.is_ipv4() { 4 } else { 41 }),
                "the tunnel says another family",
            )?;
            match policy.owners.get(&port) {
                Some(machine) => send(policy, *machine, (source, destination), &shown),
                None => relay(policy, sent, (source, destination), &shown),
            }
        }
    }
}

/// To a machine.
fn deliver(
    policy: &Policy,
    (port, sent): (PortId, &[u8]),
    (to, result): (PortId, &[u8]),
) -> Judgement {
    let receiver = *policy
        .owners
        .get(&to)
        .ok_or("delivered to a port without machine")?;
    let inner = result.get(ETHERNET_LEN..).unwrap_or_default();
    let shown = Shown::of(inner).ok_or("delivered what is no IP packet")?;
    let ethertype = if shown.source.is_ipv4() {
        [0x08, 0]
    } else {
        [0x86, 0xdd]
    };
    holds(
        result.get(12..14) == Some(&ethertype),
        "wrong type of frame",
    )?;
    holds(
        result.get(6..12) == Some(&mac(to).0),
        "not from the gateway's hardware address",
    )?;
    holds(
        owns(receiver, shown.destination),
        "delivered what is for somebody else",
    )?;
    match policy.owners.get(&port) {
        Some(sender) => {
            holds(sender.tenant == receiver.tenant, "from another tenant")?;
            // Under its virtual address it answers who asked for that.
            let is_vip = shown.source == IpAddr::V4(VIP) && !sender.is_second;
            holds(
                is_vip || owns(*sender, shown.source),
                "under a forged source address",
            )?;
        }
        None => {
            let (_, at) = outer(sent).ok_or("from no tunnel")?;
            let is_meant = match policy.entrances.get(&at) {
                Some(Entrance::Machine(machine)) => *machine == receiver,
                Some(Entrance::Balancer(tenant)) => {
                    receiver.tenant == *tenant && !receiver.is_second
                }
                // Answers are known by what they show.
                Some(Entrance::Nat(tenant)) => receiver.tenant == *tenant,
                None => false,
            };
            holds(is_meant, "by another one's underlay address")?;
        }
    }
    let kind = shown.head.map_or(0, |head| head[0]);
    let is_discovery = shown.protocol == 58 && (133..=137).contains(&kind);
    holds(
        !is_discovery || shown.is_later_piece,
        "neighbour discovery from elsewhere",
    )?;
    holds(
        !receiver.is_guarded() || passes(&shown, inner),
        "past the packet filter",
    )
}

/// Whether a guarded machine admits a packet, which itself sends nothing.
fn passes(shown: &Shown, ip: &[u8]) -> bool {
    let IpAddr::V4(source) = shown.source else {
        return false;
    };
    if shown.is_later_piece {
        // Like its first piece, of which the ports are known.
        let ports = [80, 443];
        return ports
            .iter()
            .any(|port| admits(source, shown.protocol, *port));
    }
    // Who asked the balanced address is answered. Nobody but the fabric can ask in his name.
    if source == BALANCED {
        return true;
    }
    let kind = shown.head.map_or(0, |head| head[0]);
    if shown.protocol != 1 || !matches!(kind, 3 | 11 | 12) {
        return admits(source, shown.protocol, shown.ports().1);
    }
    // An error about an answer to something that was admitted.
    let quoted = ip.get(shown.transport + 8..).and_then(Shown::of);
    quoted.is_some_and(|quoted| match quoted.destination {
        IpAddr::V4(peer) => admits(peer, quoted.protocol, quoted.ports().0),
        IpAddr::V6(_) => false,
    })
}

/// From a machine into a tunnel.
fn send(
    policy: &Policy,
    machine: Machine,
    (source, destination): (Ipv6Addr, Ipv6Addr),
    shown: &Shown,
) -> Judgement {
    holds(
        policy.underlays.get(&machine) == Some(&source),
        "in another one's tunnel",
    )?;
    let is_near = match shown.destination {
        IpAddr::V4(address) => matches!(address.octets(), [10, 1, ..]),
        IpAddr::V6(address) => address.segments().starts_with(&[0xfd01, 0]),
    };
    let expected = if is_near {
        neighbour(machine.tenant)
    } else {
        EDGE
    };
    holds(destination == expected, "to another tenant's host")?;
    let is_public = match shown.source {
        // Also to who is near, if he asked for that address.
        IpAddr::V4(VIP) => !machine.is_second,
        IpAddr::V4(NAT) => {
            let (first, end) = NAT_PORTS;
            let number = match (shown.protocol, shown.head) {
                (1, Some([8 | 0, _, _, _, high, low, ..])) => u16::from_be_bytes([high, low]),
                // An error is sent by whoever translates; its quotation says more.
                (1, _) => first,
                _ => shown.ports().0,
            };
            machine.is_second
                && !is_near
                && (shown.is_later_piece || (first..end).contains(&number))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => false,
    };
    holds(
        is_public || owns(machine, shown.source),
        "under a forged source address, outside",
    )?;
    holds(
        is_forwardable(shown.destination),
        "what no router may forward",
    )
}

fn is_forwardable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !(address.is_multicast()
                || address.is_broadcast()
                || address.is_loopback()
                || address.is_link_local()
                || address.octets().starts_with(&[0]))
        }
        IpAddr::V6(address) => {
            !(address.is_multicast()
                || address.is_loopback()
                || address.is_unspecified()
                || address.is_unicast_link_local())
        }
    }
}

/// From tunnel to tunnel: only what another host's NAT ports are for.
fn relay(
    policy: &Policy,
    sent: &[u8],
    (source, destination): (Ipv6Addr, Ipv6Addr),
    shown: &Shown,
) -> Judgement {
    let (_, at) = outer(sent).ok_or("from no tunnel")?;
    let Some(Entrance::Nat(tenant)) = policy.entrances.get(&at) else {
        return Err("relayed what is not for a NAT address");
    };
    holds(source == HOST, "relayed in another one's name")?;
    holds(
        destination == neighbour(*tenant),
        "relayed to another tenant's host",
    )?;
    holds(
        shown.destination == IpAddr::V4(NAT),
        "relayed what is for somebody else",
    )?;
    let (first, end) = other_nat_ports(*tenant);
    let number = match (shown.protocol, shown.head) {
        (1, Some([_, _, _, _, high, low, ..])) => u16::from_be_bytes([high, low]),
        _ => shown.ports().1,
    };
    let is_error = shown.protocol == 1 && matches!(shown.head, Some([3 | 11 | 12, ..]));
    holds(
        shown.is_later_piece || is_error || (first..end).contains(&number),
        "relayed to a port of nobody",
    )
}
