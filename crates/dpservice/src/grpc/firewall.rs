//! Rules of the interfaces' packet filters.

use super::{Failure, Service, parse};
use dataplane::{FirewallAction, FirewallRule, PortMatch, RuleDirection, RuleFilter, RulePrefix};
use proto::dpdk;
use proto::dpdk::protocol_filter::Filter;
use std::net::IpAddr;

/// "Any" in ports, ICMP types and codes.
const ANY: i32 = -1;

pub(super) async fn create(
    service: &Service,
    request: dpdk::CreateFirewallRuleRequest,
) -> Result<dpdk::CreateFirewallRuleResponse, Failure> {
    let id = parse::id(request.interface_id, "interface_id")?;
    let rule = parse_rule(request.rule.unwrap_or_default())?;
    let rule_id = rule.id.clone().into_bytes();
    let created = service
        .worker
        .call(move |plane| plane.engine.create_firewall_rule(&id, rule));
    created.await??;
    Ok(dpdk::CreateFirewallRuleResponse {
        status: None,
        rule_id,
    })
}

pub(super) async fn get(
    service: &Service,
    request: dpdk::GetFirewallRuleRequest,
) -> Result<dpdk::GetFirewallRuleResponse, Failure> {
    let dpdk::GetFirewallRuleRequest {
        interface_id,
        rule_id,
    } = request;
    let id = parse::id(interface_id, "interface_id")?;
    let rule = parse::id(rule_id, "rule_id")?;
    let found = service
        .worker
        .call(move |plane| plane.engine.firewall_rule(&id, &rule).map(show));
    Ok(dpdk::GetFirewallRuleResponse {
        status: None,
        rule: Some(found.await??),
    })
}

pub(super) async fn delete(
    service: &Service,
    request: dpdk::DeleteFirewallRuleRequest,
) -> Result<dpdk::DeleteFirewallRuleResponse, Failure> {
    let dpdk::DeleteFirewallRuleRequest {
        interface_id,
        rule_id,
    } = request;
    let id = parse::id(interface_id, "interface_id")?;
    let rule = parse::id(rule_id, "rule_id")?;
    let deleted = service
        .worker
        .call(move |plane| plane.engine.delete_firewall_rule(&id, &rule));
    deleted.await??;
    Ok(dpdk::DeleteFirewallRuleResponse { status: None })
}

pub(super) async fn list(
    service: &Service,
    request: dpdk::ListFirewallRulesRequest,
) -> Result<dpdk::ListFirewallRulesResponse, Failure> {
    let id = parse::id(request.interface_id, "interface_id")?;
    let found = service.worker.call(move |plane| {
        let rules = plane.engine.firewall_rules(&id)?;
        Ok::<_, dataplane::ConfigError>(rules.map(show).collect())
    });
    Ok(dpdk::ListFirewallRulesResponse {
        status: None,
        rules: found.await??,
    })
}

// ---- input -----------------------------------------------------------------------------------------------------------------

pub(super) fn parse_rule(rule: dpdk::FirewallRule) -> Result<FirewallRule, Failure> {
    let dpdk::FirewallRule {
        id,
        direction,
        action,
        priority,
        source_prefix,
        destination_prefix,
        protocol_filter,
    } = rule;
    let id = parse::id(id, "rule id")?;
    let source = parse_prefix(source_prefix, "source_prefix")?;
    let destination = parse_prefix(destination_prefix, "destination_prefix")?;
    let direction = match dpdk::TrafficDirection::try_from(direction) {
        Ok(dpdk::TrafficDirection::Ingress) => RuleDirection::Ingress,
        Ok(dpdk::TrafficDirection::Egress) => RuleDirection::Egress,
        Err(_) => return Err(Failure::invalid("direction")),
    };
    let action = match dpdk::FirewallAction::try_from(action) {
        Ok(dpdk::FirewallAction::Drop) => FirewallAction::Drop,
        Ok(dpdk::FirewallAction::Accept) => FirewallAction::Accept,
        Err(_) => return Err(Failure::invalid("action")),
    };
    if priority > u32::from(u16::MAX) {
        return Err(Failure::invalid("priority"));
    }
    Ok(FirewallRule {
        id,
        direction,
        action,
        priority,
        source,
        destination,
        filter: parse_filter(protocol_filter.unwrap_or_default())?,
    })
}

fn parse_prefix(prefix: Option<dpdk::Prefix>, name: &str) -> Result<RulePrefix, Failure> {
    let dpdk::Prefix {
        ip,
        length,
        underlay_route: _,
    } = prefix.unwrap_or_default();
    let ip = ip.unwrap_or_default();
    if dpdk::IpVersion::try_from(ip.ipver).is_err() {
        return Err(Failure::invalid(&format!("{name}.ip.ipver")));
    }
    let address = parse::address(Some(ip), &format!("{name}.ip"))?;
    let too_long = || match address {
        IpAddr::V4(_) => Failure::invalid(&format!("{name}.length")),
        IpAddr::V6(_) => Failure::invalid(&format!("ip6 {name}.length")),
    };
    let length = u8::try_from(length).map_err(|_| too_long())?;
    RulePrefix::new(address, length).ok_or_else(too_long)
}

fn parse_filter(filter: dpdk::ProtocolFilter) -> Result<RuleFilter, Failure> {
    match filter.filter {
        None => Ok(RuleFilter::Any),
        Some(Filter::Tcp(dpdk::TcpFilter {
            src_port_lower,
            src_port_upper,
            dst_port_lower,
            dst_port_upper,
        })) => {
            let lowers = [src_port_lower, dst_port_lower];
            let uppers = [src_port_upper, dst_port_upper];
            let [source, destination] = parse_ports("tcp", lowers, uppers)?;
            Ok(RuleFilter::Tcp {
                source,
                destination,
            })
        }
        Some(Filter::Udp(dpdk::UdpFilter {
            src_port_lower,
            src_port_upper,
            dst_port_lower,
            dst_port_upper,
        })) => {
            let lowers = [src_port_lower, dst_port_lower];
            let uppers = [src_port_upper, dst_port_upper];
            let [source, destination] = parse_ports("udp", lowers, uppers)?;
            Ok(RuleFilter::Udp {
                source,
                destination,
            })
        }
        Some(Filter::Icmp(dpdk::IcmpFilter {
            icmp_type,
            icmp_code,
        })) => Ok(RuleFilter::Icmp {
            kind: optional(icmp_type, "icmp.icmp_type")?,
            code: optional(icmp_code, "icmp.icmp_code")?,
        }),
    }
}

/// Source and destination ports. Both lower ends are checked before both upper ends, then the ranges.
fn parse_ports(
    transport: &str,
    [source_lower, destination_lower]: [i32; 2],
    [source_upper, destination_upper]: [i32; 2],
) -> Result<[PortMatch; 2], Failure> {
    let end = |value, what| optional::<u16>(value, &format!("{transport}.{what}"));
    let source_lower = end(source_lower, "src_port_lower")?;
    let destination_lower = end(destination_lower, "dst_port_lower")?;
    let source_upper = end(source_upper, "src_port_upper")?;
    let destination_upper = end(destination_upper, "dst_port_upper")?;
    let range = |lower: Option<u16>, upper: Option<u16>, what| match (lower, upper) {
        (Some(first), Some(last)) if last < first => {
            Err(Failure::invalid(&format!("{transport}.{what} range")))
        }
        _ => Ok(PortMatch { lower, upper }),
    };
    Ok([
        range(source_lower, source_upper, "src_port")?,
        range(destination_lower, destination_upper, "dst_port")?,
    ])
}

fn optional<N: TryFrom<i32>>(value: i32, name: &str) -> Result<Option<N>, Failure> {
    if value == ANY {
        return Ok(None);
    }
    let number = N::try_from(value).map_err(|_| Failure::invalid(name))?;
    Ok(Some(number))
}

// ---- output ----------------------------------------------------------------------------------------------------------------

fn show(rule: &FirewallRule) -> dpdk::FirewallRule {
    let FirewallRule {
        id,
        direction,
        action,
        priority,
        source,
        destination,
        filter,
    } = rule;
    dpdk::FirewallRule {
        id: id.clone().into_bytes(),
        direction: match direction {
            RuleDirection::Ingress => dpdk::TrafficDirection::Ingress,
            RuleDirection::Egress => dpdk::TrafficDirection::Egress,
        }
        .into(),
        action: match action {
            FirewallAction::Drop => dpdk::FirewallAction::Drop,
            FirewallAction::Accept => dpdk::FirewallAction::Accept,
        }
        .into(),
        priority: *priority,
        source_prefix: Some(show_prefix(source)),
        destination_prefix: Some(show_prefix(destination)),
        protocol_filter: Some(dpdk::ProtocolFilter {
            filter: show_filter(filter),
        }),
    }
}

fn show_prefix(prefix: &RulePrefix) -> dpdk::Prefix {
    dpdk::Prefix {
        ip: Some(parse::show(prefix.given())),
        length: u32::from(prefix.prefix().len()),
        underlay_route: Vec::new(),
    }
}

fn show_filter(filter: &RuleFilter) -> Option<Filter> {
    let number = |value: Option<u16>| value.map_or(ANY, i32::from);
    let byte = |value: Option<u8>| value.map_or(ANY, i32::from);
    match filter {
        RuleFilter::Any => None,
        RuleFilter::Tcp {
            source,
            destination,
        } => Some(Filter::Tcp(dpdk::TcpFilter {
            src_port_lower: number(source.lower),
            src_port_upper: number(source.upper),
            dst_port_lower: number(destination.lower),
            dst_port_upper: number(destination.upper),
        })),
        RuleFilter::Udp {
            source,
            destination,
        } => Some(Filter::Udp(dpdk::UdpFilter {
            src_port_lower: number(source.lower),
            src_port_upper: number(source.upper),
            dst_port_lower: number(destination.lower),
            dst_port_upper: number(destination.upper),
        })),
        RuleFilter::Icmp { kind, code } => Some(Filter::Icmp(dpdk::IcmpFilter {
            icmp_type: byte(*kind),
            icmp_code: byte(*code),
        })),
    }
}
