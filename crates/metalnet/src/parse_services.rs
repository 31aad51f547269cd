//! From API objects to services: public addresses, packet filter rules, load balancers.
//!
//! What the API leaves open is decided here: an absent prefix means every address of the rule's family, an absent end of a
//! port range (or 0, as some writers say) means its start.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::meta::{Ip, IpFamily, IpPrefix};
use api::metalnet as wire;
use net::PortRange;

use crate::model::{ID_LENGTH_MAX, Prefix, SpecError};
use crate::parse::masked;
use crate::plan::ops::RULE_CHANGING;
use crate::services::{
    Action, BALANCED_PORTS_MAX, BalancedPort, BalancerError, BalancerSpec, Direction, Matching,
    NatShare, Ports, Rule, Transport,
};

/// Priority of a rule that states none.
pub const PRIORITY_DEFAULT: u16 = 1000;
/// "Any" in ports, ICMP types and codes.
const ANY: i32 = -1;

/// The IPv4 address that stands for the interface, and the IPv6 addresses to route to it.
pub fn virtual_ips(
    addresses: impl IntoIterator<Item = IpAddr>,
    problems: &mut Vec<SpecError>,
) -> (Option<Ipv4Addr>, BTreeSet<Prefix>) {
    let (mut vip, mut public) = (None, BTreeSet::new());
    for address in addresses {
        match address {
            _ if !is_usable(address) => problems.push(SpecError::VirtualIp(address)),
            IpAddr::V4(address) => match vip {
                None => vip = Some(address),
                Some(first) if first == address => {}
                Some(first) => problems.push(SpecError::VirtualIpTwice(first)),
            },
            IpAddr::V6(_) => {
                public.insert(Prefix::host(address));
            }
        }
    }
    (vip, public)
}

fn is_usable(address: IpAddr) -> bool {
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback())
}

/// Reads a share of a NAT address.
pub fn nat(nat: &wire::Nat) -> Result<NatShare, SpecError> {
    let wire::Nat {
        ip: Ip(address),
        port,
        end_port,
    } = nat;
    let IpAddr::V4(shared) = *address else {
        return Err(SpecError::NatAddress(*address));
    };
    if !is_usable(*address) {
        return Err(SpecError::NatAddress(*address));
    }
    let ends = (u16::try_from(*port), u16::try_from(*end_port));
    let ports = match ends {
        (Ok(first), Ok(end)) => PortRange::new(first, end),
        _ => None,
    };
    let ports = ports.ok_or(SpecError::NatPorts {
        port: *port,
        end_port: *end_port,
    })?;
    Ok(NatShare {
        address: shared,
        ports,
    })
}

/// Reads packet filter rules. One that cannot be read is an error of all: leaving it out could open what it closes.
pub fn rules(list: &[wire::FirewallRule]) -> Result<BTreeMap<String, Rule>, SpecError> {
    let mut rules = BTreeMap::new();
    for given in list {
        let id = given.firewall_rule_id.clone();
        let error = |why| SpecError::Rule {
            id: id.clone(),
            why,
        };
        if id.is_empty() || id.len() > ID_LENGTH_MAX || id == RULE_CHANGING {
            return Err(error("the id must have 1 to 63 bytes and not be \"~\""));
        }
        let rule = rule(given).map_err(error)?;
        if rules.insert(id.clone(), rule).is_some() {
            return Err(error("there is another rule of this id"));
        }
    }
    Ok(rules)
}

fn rule(given: &wire::FirewallRule) -> Result<Rule, &'static str> {
    let wire::FirewallRule {
        firewall_rule_id: _,
        direction,
        action,
        priority,
        ip_family,
        source_prefix,
        destination_prefix,
        protocol_match,
    } = given;
    // A given prefix says the family; the field is for rules without prefixes.
    let stated = source_prefix.or(*destination_prefix);
    let family = stated.map_or(*ip_family, |prefix| match prefix.addr() {
        IpAddr::V4(_) => IpFamily::IPv4,
        IpAddr::V6(_) => IpFamily::IPv6,
    });
    let (source, destination) = (
        end(*source_prefix, family)?,
        end(*destination_prefix, family)?,
    );
    if source.address().is_ipv4() != destination.address().is_ipv4() {
        return Err("source and destination are of different families");
    }
    let priority = priority.map_or(Ok(PRIORITY_DEFAULT), u16::try_from);
    Ok(Rule {
        direction: match direction {
            wire::FirewallDirection::Ingress => Direction::Ingress,
            wire::FirewallDirection::Egress => Direction::Egress,
        },
        action: match action {
            wire::FirewallAction::Accept => Action::Accept,
            wire::FirewallAction::Deny => Action::Deny,
        },
        priority: priority.map_err(|_| "the priority must be between 0 and 65535")?,
        source,
        destination,
        matching: protocol_match
            .as_ref()
            .map_or(Ok(Matching::Any), matching)?,
    })
}

fn end(prefix: Option<IpPrefix>, family: IpFamily) -> Result<Prefix, &'static str> {
    let all = match family {
        IpFamily::IPv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpFamily::IPv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let prefix = prefix.map_or_else(|| Prefix::new(all, 0), masked);
    prefix.ok_or("a prefix is longer than its address")
}

fn matching(given: &wire::ProtocolMatch) -> Result<Matching, &'static str> {
    let wire::ProtocolMatch {
        protocol_type,
        icmp,
        port_range,
    } = given;
    let (mut source, mut destination) = (None, None);
    if let Some(wire::PortMatch {
        src_port,
        end_src_port,
        dst_port,
        end_dst_port,
    }) = port_range
    {
        source = ports(*src_port, *end_src_port)?;
        destination = ports(*dst_port, *end_dst_port)?;
    }
    Ok(match protocol_type {
        wire::ProtocolType::TCP => Matching::Tcp {
            source,
            destination,
        },
        wire::ProtocolType::UDP => Matching::Udp {
            source,
            destination,
        },
        wire::ProtocolType::ICMP => {
            let (kind, code) = icmp
                .as_ref()
                .map_or((ANY, ANY), |icmp| (icmp.icmp_type, icmp.icmp_code));
            Matching::Icmp {
                kind: byte(kind)?,
                code: byte(code)?,
            }
        }
    })
}

fn ports(first: Option<i32>, last: Option<i32>) -> Result<Ports, &'static str> {
    const ERROR: &str = "a port must be between 0 and 65535, or -1";
    let first = match first {
        None | Some(ANY) => return Ok(None),
        Some(first) => u16::try_from(first).map_err(|_| ERROR)?,
    };
    let last = match last {
        None | Some(0) => first,
        Some(ANY) => u16::MAX,
        Some(last) => u16::try_from(last).map_err(|_| ERROR)?,
    };
    if last < first {
        return Err("a port range ends before it begins");
    }
    Ok(Some((first, last)))
}

fn byte(value: i32) -> Result<Option<u8>, &'static str> {
    if value == ANY {
        return Ok(None);
    }
    let value =
        u8::try_from(value).map_err(|_| "an ICMP type or code must be between 0 and 255, or -1")?;
    Ok(Some(value))
}

/// Reads what a LoadBalancer asks for.
pub fn balancer(
    spec: Result<wire::LoadBalancerSpec, serde_json::Error>,
    ipv6: bool,
) -> Result<BalancerSpec, BalancerError> {
    let wire::LoadBalancerSpec {
        network_ref: _,
        type_,
        ip_family,
        ip: Ip(address),
        ports,
        node_name: _,
    } = spec.map_err(|error| BalancerError::Unreadable(error.to_string()))?;
    if !is_usable(address) {
        return Err(BalancerError::AddressUse(address));
    }
    let family = match address {
        IpAddr::V4(_) => IpFamily::IPv4,
        IpAddr::V6(_) => IpFamily::IPv6,
    };
    if family != ip_family {
        return Err(BalancerError::FamilyMismatch(address, ip_family));
    }
    if address.is_ipv6() && !ipv6 {
        return Err(BalancerError::Ipv6Disabled(address));
    }
    let ports: BTreeSet<BalancedPort> = ports.iter().map(balanced).collect::<Result<_, _>>()?;
    if ports.is_empty() || ports.len() > BALANCED_PORTS_MAX {
        return Err(BalancerError::PortCount(ports.len()));
    }
    Ok(BalancerSpec {
        public: match type_ {
            wire::LoadBalancerType::Public => true,
            wire::LoadBalancerType::Internal => false,
        },
        address,
        ports,
    })
}

fn balanced(given: &wire::LoadBalancerPort) -> Result<BalancedPort, BalancerError> {
    let wire::LoadBalancerPort { protocol, port } = given;
    let transport = match protocol.as_str() {
        "TCP" => Some(Transport::Tcp),
        "UDP" => Some(Transport::Udp),
        _ => None,
    };
    // Port 0 stands for "none" in dpservice.
    let number = u16::try_from(*port).ok().filter(|port| *port > 0);
    match (transport, number) {
        (Some(transport), Some(port)) => Ok(BalancedPort { transport, port }),
        _ => Err(BalancerError::Port {
            protocol: protocol.clone(),
            port: *port,
        }),
    }
}
