//! NetworkPolicyRules → packet filter rules of one interface.
//!
//! A restricted interface accepts what at least one rule of any of its policies allows. So rules only ever accept: a hole
//! in a block is written as the blocks around it, because a rule that denies the hole would also deny what another rule
//! allows there. Each restricted direction ends with a rule that denies everything, which also keeps the direction closed
//! while the rules before it change. The id of a rule is derived from what the rule says, so that an unchanged rule keeps
//! its id and a second plan finds nothing to do.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::apinet::{
    IpBlock, NetworkPolicyPort, NetworkPolicyRule, POLICY_PRIORITY_DEFAULT, PolicyObjectIp,
    PolicyRule, PolicyType,
};
use api::ids;
use api::meta::{IpFamily, IpPrefix, Protocol};
use api::metalnet::{
    FirewallAction, FirewallDirection, FirewallRule, PortMatch, ProtocolMatch, ProtocolType,
};

/// Priority of the rules that close a direction: after all others.
const PRIORITY_LAST: i32 = 65_535;
/// The lowest priority that other rules can have.
const PRIORITY_MAX: i32 = PRIORITY_LAST - 1;

/// The rules that `policies` make for the interface `uid` of the network `network`, which has addresses of `families`.
pub(crate) fn firewall_rules<'a>(
    uid: &str,
    network: &str,
    families: &[IpFamily],
    policies: impl IntoIterator<Item = &'a NetworkPolicyRule>,
) -> Vec<FirewallRule> {
    let mut rules = BTreeMap::new();
    let mut add = |rule: FirewallRule| {
        let rule = identified(uid, rule);
        rules.insert((rule.priority, rule.firewall_rule_id.clone()), rule);
    };
    for policy in policies {
        // The addresses of a policy are those of its network; interfaces of other networks may have the same ones.
        let ours = |target: &&api::apinet::PolicyTarget| {
            let named = target.target_ref.as_ref();
            named.is_some_and(|named| named.uid == uid)
        };
        if policy.network_ref.uid != network || !policy.targets.iter().any(|target| ours(&target)) {
            continue;
        }
        let priority = policy.priority.unwrap_or(POLICY_PRIORITY_DEFAULT);
        let priority = priority.clamp(0, PRIORITY_MAX);
        for restricted in &policy.policy_types {
            let (direction, allowed) = match restricted {
                PolicyType::Ingress => (FirewallDirection::Ingress, &policy.ingress_rule),
                PolicyType::Egress => (FirewallDirection::Egress, &policy.egress_rule),
            };
            for family in families {
                add(rule(
                    direction,
                    FirewallAction::Deny,
                    PRIORITY_LAST,
                    all(*family),
                    None,
                ));
            }
            for allowed in allowed {
                for (prefix, matching) in expand(allowed) {
                    let accept = FirewallAction::Accept;
                    add(rule(direction, accept, priority, prefix, matching));
                }
            }
        }
    }
    rules.into_values().collect()
}

/// Every pair of a peer and a port of a rule.
fn expand(rule: &PolicyRule) -> Vec<(IpPrefix, Option<ProtocolMatch>)> {
    let PolicyRule {
        id: _,
        ip_block,
        ips,
        network_policy_ports,
    } = rule;
    let mut peers: Vec<IpPrefix> = ip_block.iter().flat_map(without_holes).collect();
    peers.extend(ips.iter().map(|PolicyObjectIp { prefix, .. }| *prefix));
    if ip_block.is_empty() && ips.is_empty() {
        peers.extend([all(IpFamily::IPv4), all(IpFamily::IPv6)]);
    }
    let matches: Vec<Option<ProtocolMatch>> = if network_policy_ports.is_empty() {
        vec![None]
    } else {
        let known = network_policy_ports.iter().filter_map(protocol_match);
        known.map(Some).collect()
    };
    let pair = |prefix| {
        let matches = matches.clone().into_iter();
        matches.map(move |matching| (prefix, matching))
    };
    peers.into_iter().flat_map(pair).collect()
}

/// `None` for a protocol that the data plane does not know: what it cannot tell apart it must not let through.
fn protocol_match(port: &NetworkPolicyPort) -> Option<ProtocolMatch> {
    let NetworkPolicyPort {
        protocol,
        port,
        end_port,
    } = port;
    let protocol_type = match protocol.unwrap_or(Protocol::TCP) {
        Protocol::TCP => ProtocolType::TCP,
        Protocol::UDP => ProtocolType::UDP,
        Protocol::SCTP => return None,
    };
    // Ports are always those of the side that is connected to, in both directions.
    let port_range = port.filter(|port| *port != 0).map(|port| PortMatch {
        dst_port: Some(port),
        end_dst_port: Some(end_port.unwrap_or(port)),
        ..PortMatch::default()
    });
    Some(ProtocolMatch {
        protocol_type,
        icmp: None,
        port_range,
    })
}

fn rule(
    direction: FirewallDirection,
    action: FirewallAction,
    priority: i32,
    peer: IpPrefix,
    protocol_match: Option<ProtocolMatch>,
) -> FirewallRule {
    let ingress = direction == FirewallDirection::Ingress;
    FirewallRule {
        firewall_rule_id: String::new(),
        direction,
        action,
        priority: Some(priority),
        ip_family: IpFamily::of(peer.addr()),
        source_prefix: Some(peer).filter(|_| ingress),
        destination_prefix: Some(peer).filter(|_| !ingress),
        protocol_match,
    }
}

/// Gives a rule the id that its content makes.
fn identified(uid: &str, mut rule: FirewallRule) -> FirewallRule {
    let content = serde_json::json!({ "nic": uid, "rule": rule });
    rule.firewall_rule_id = ids::uuid5_sha256(&content.to_string());
    rule
}

fn all(family: IpFamily) -> IpPrefix {
    let address = match family {
        IpFamily::IPv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpFamily::IPv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // Length 0 fits every family; the fallback is never taken.
    IpPrefix::new(address, 0).unwrap_or_else(|| IpPrefix::host(address))
}

/// The blocks that make up a block without its holes.
pub(crate) fn without_holes(block: &IpBlock) -> Vec<IpPrefix> {
    let IpBlock { cidr, except } = block;
    let mut rest = vec![*cidr];
    for hole in except {
        rest = rest.into_iter().flat_map(|part| cut(part, *hole)).collect();
    }
    rest
}

/// `part` without `hole`: nothing, all of it, or one block of each size between the two.
fn cut(part: IpPrefix, hole: IpPrefix) -> Vec<IpPrefix> {
    let (Some(start), Some(end)) = (bits(part), bits(hole)) else {
        return vec![part];
    };
    let same_family = part.addr().is_ipv4() == hole.addr().is_ipv4();
    if !same_family
        || start.network(hole.bits().min(part.bits())) != end.network(hole.bits().min(part.bits()))
    {
        return vec![part];
    }
    if hole.bits() <= part.bits() {
        return Vec::new();
    }
    let sizes = part.bits() + 1..=hole.bits();
    sizes.filter_map(|length| end.sibling(length)).collect()
}

/// The address of a prefix as a number, left-aligned in its family's width.
#[derive(Clone, Copy)]
struct Bits {
    value: u128,
    width: u8,
}

fn bits(prefix: IpPrefix) -> Option<Bits> {
    let (value, width) = match prefix.addr() {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    (prefix.bits() <= width).then_some(Bits { value, width })
}

impl Bits {
    /// The first `length` bits.
    fn network(self, length: u8) -> u128 {
        let drop = u32::from(self.width.saturating_sub(length));
        self.value.checked_shr(drop).unwrap_or(0)
    }

    /// The other half of the block one bit larger than the first `length` bits.
    fn sibling(self, length: u8) -> Option<IpPrefix> {
        let drop = u32::from(self.width.checked_sub(length)?);
        let network = (self.network(length) ^ 1).checked_shl(drop).unwrap_or(0);
        let address = if self.width == 32 {
            IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(network).ok()?))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(network))
        };
        IpPrefix::new(address, length)
    }
}
