//! Calls about services: address translation, load balancing, packet filter, capture.

use super::CliError;
use super::args::{
    Capture, CaptureStart, CreateFirewallRule, CreateLoadBalancer, CreateNat, CreateNeighborNat,
    CreatePrefix, CreateVirtualIp, LbTarget, NeighborNatKey, Prefix,
};
use super::commands::{
    Client, accept, address, bare, interfaces_wanted, prefix_message, prefix_text, show_prefix,
    sorted, text, underlay_bytes,
};
use super::output::{Object, Printed, Tree};
use super::show_services as show;
use super::values::{Action, Direction, NatKind, Transport};
use proto::dpdk;
use proto::dpdk::protocol_filter::Filter;
use std::net::IpAddr;

// ---- load-balancer prefixes ------------------------------------------------------------------------------------------------

pub(super) async fn create_lb_prefix(
    client: &mut Client,
    args: CreatePrefix,
) -> Result<Object, CliError> {
    let request = dpdk::CreateLoadBalancerPrefixRequest {
        interface_id: args.interface_id.clone().into_bytes(),
        prefix: Some(prefix_message(args.prefix)),
        preferred_underlay_route: underlay_bytes(args.underlay),
    };
    let reply = client
        .create_load_balancer_prefix(request)
        .await?
        .into_inner();
    accept(reply.status)?;
    let prefix = args.prefix.to_string();
    let shown = show_prefix(&args.interface_id, None, &prefix, &reply.underlay_route);
    Ok(show::lb_prefix(shown))
}

pub(super) async fn delete_lb_prefix(
    client: &mut Client,
    prefix: Prefix,
    interface_id: String,
) -> Result<Object, CliError> {
    let request = dpdk::DeleteLoadBalancerPrefixRequest {
        interface_id: interface_id.clone().into_bytes(),
        prefix: Some(prefix_message(prefix)),
    };
    let reply = client.delete_load_balancer_prefix(request).await?;
    accept(reply.into_inner().status)?;
    let shown = show_prefix(&interface_id, None, &prefix.to_string(), &[]);
    Ok(show::lb_prefix(shown))
}

pub(super) async fn list_lb_prefixes(
    client: &mut Client,
    interface_id: &str,
    column: &str,
) -> Result<Printed, CliError> {
    let mut objects = Vec::new();
    for interface in interfaces_wanted(client, interface_id).await? {
        let request = dpdk::ListLoadBalancerPrefixesRequest {
            interface_id: interface.id.clone(),
        };
        let reply = client
            .list_load_balancer_prefixes(request)
            .await?
            .into_inner();
        accept(reply.status)?;
        let vni = (interface.vni != 0).then_some(interface.vni);
        objects.extend(reply.prefixes.iter().map(|prefix| {
            let id = text(&interface.id);
            let shown = show_prefix(&id, vni, &prefix_text(prefix), &prefix.underlay_route);
            show::lb_prefix(shown)
        }));
    }
    Ok(Printed::Many {
        kind: "PrefixList",
        metadata: vec![("interface_id", Tree::text(interface_id))],
        objects: sorted(objects, column, "Prefix")?,
    })
}

// ---- VIPs ------------------------------------------------------------------------------------------------------------------

pub(super) async fn create_vip(
    client: &mut Client,
    args: CreateVirtualIp,
) -> Result<Object, CliError> {
    let request = dpdk::CreateVipRequest {
        interface_id: args.interface_id.clone().into_bytes(),
        vip_ip: Some(address(args.vip)),
        preferred_underlay_route: underlay_bytes(args.underlay),
    };
    let reply = client.create_vip(request).await?.into_inner();
    accept(reply.status)?;
    let vip = args.vip.to_string();
    Ok(show::virtual_ip(
        &args.interface_id,
        &vip,
        &reply.underlay_route,
    ))
}

pub(super) async fn get_vip(client: &mut Client, interface_id: &str) -> Result<Object, CliError> {
    let request = dpdk::GetVipRequest {
        interface_id: interface_id.as_bytes().to_vec(),
    };
    let reply = client.get_vip(request).await?.into_inner();
    accept(reply.status)?;
    let vip = text(&reply.vip_ip.unwrap_or_default().address);
    Ok(show::virtual_ip(interface_id, &vip, &reply.underlay_route))
}

pub(super) async fn delete_vip(
    client: &mut Client,
    interface_id: String,
) -> Result<Object, CliError> {
    let request = dpdk::DeleteVipRequest {
        interface_id: interface_id.clone().into_bytes(),
    };
    accept(client.delete_vip(request).await?.into_inner().status)?;
    Ok(show::virtual_ip(&interface_id, "", &[]))
}

// ---- NAT -------------------------------------------------------------------------------------------------------------------

pub(super) async fn create_nat(client: &mut Client, args: CreateNat) -> Result<Object, CliError> {
    let request = dpdk::CreateNatRequest {
        interface_id: args.interface_id.clone().into_bytes(),
        nat_ip: Some(address(args.nat_ip)),
        min_port: args.minport,
        max_port: args.maxport,
        preferred_underlay_route: underlay_bytes(args.underlay),
    };
    let reply = client.create_nat(request).await?.into_inner();
    accept(reply.status)?;
    Ok(show::nat(
        &args.interface_id,
        &args.nat_ip.to_string(),
        (args.minport, args.maxport),
        &reply.underlay_route,
    ))
}

pub(super) async fn get_nat(client: &mut Client, interface_id: &str) -> Result<Object, CliError> {
    let request = dpdk::GetNatRequest {
        interface_id: interface_id.as_bytes().to_vec(),
    };
    let reply = client.get_nat(request).await?.into_inner();
    accept(reply.status)?;
    Ok(show::nat(
        interface_id,
        &text(&reply.nat_ip.unwrap_or_default().address),
        (reply.min_port, reply.max_port),
        &reply.underlay_route,
    ))
}

pub(super) async fn delete_nat(
    client: &mut Client,
    interface_id: String,
) -> Result<Object, CliError> {
    let request = dpdk::DeleteNatRequest {
        interface_id: interface_id.clone().into_bytes(),
    };
    accept(client.delete_nat(request).await?.into_inner().status)?;
    let metadata = vec![("interface_id", Tree::text(&interface_id))];
    let cells = vec![("InterfaceID", interface_id.clone())];
    Ok(bare("Nat", interface_id, metadata, cells))
}

pub(super) async fn create_neighbor_nat(
    client: &mut Client,
    args: CreateNeighborNat,
) -> Result<Object, CliError> {
    let NeighborNatKey {
        nat_ip,
        vni,
        minport,
        maxport,
    } = args.key;
    let underlay = args.underlayroute.to_string();
    let request = dpdk::CreateNeighborNatRequest {
        nat_ip: Some(address(nat_ip)),
        vni,
        min_port: minport,
        max_port: maxport,
        underlay_route: underlay.clone().into_bytes(),
    };
    let reply = client.create_neighbor_nat(request).await?;
    accept(reply.into_inner().status)?;
    let ports = (minport, maxport);
    Ok(show::neighbor_nat(
        vni,
        &nat_ip.to_string(),
        ports,
        &underlay,
    ))
}

pub(super) async fn delete_neighbor_nat(
    client: &mut Client,
    key: NeighborNatKey,
) -> Result<Object, CliError> {
    let NeighborNatKey {
        nat_ip,
        vni,
        minport,
        maxport,
    } = key;
    let request = dpdk::DeleteNeighborNatRequest {
        nat_ip: Some(address(nat_ip)),
        vni,
        min_port: minport,
        max_port: maxport,
    };
    let reply = client.delete_neighbor_nat(request).await?;
    accept(reply.into_inner().status)?;
    let ports = (minport, maxport);
    Ok(show::neighbor_nat(vni, &nat_ip.to_string(), ports, ""))
}

/// Shares of this host's interfaces, of other hosts, or both.
pub(super) async fn list_nats(
    client: &mut Client,
    nat_ip: IpAddr,
    kind: NatKind,
    column: &str,
) -> Result<Printed, CliError> {
    let mut entries = Vec::new();
    if matches!(kind, NatKind::Any | NatKind::Local) {
        let request = dpdk::ListLocalNatsRequest {
            nat_ip: Some(address(nat_ip)),
        };
        let reply = client.list_local_nats(request).await?.into_inner();
        accept(reply.status)?;
        entries.extend(reply.nat_entries);
    }
    if matches!(kind, NatKind::Any | NatKind::Neighbor) {
        let request = dpdk::ListNeighborNatsRequest {
            nat_ip: Some(address(nat_ip)),
        };
        let reply = client.list_neighbor_nats(request).await?.into_inner();
        accept(reply.status)?;
        entries.extend(reply.nat_entries);
    }
    let objects = entries.iter().map(show::nat_entry).collect();
    let kind = match kind {
        NatKind::Any => "any",
        NatKind::Local => "local",
        NatKind::Neighbor => "neighbor",
    };
    Ok(Printed::Many {
        kind: "NatList",
        metadata: vec![
            ("nat_ip", Tree::text(nat_ip)),
            ("nat_type", Tree::text(kind)),
        ],
        objects: sorted(objects, column, "VNI")?,
    })
}

// ---- load balancers --------------------------------------------------------------------------------------------------------

pub(super) async fn create_load_balancer(
    client: &mut Client,
    args: CreateLoadBalancer,
) -> Result<Object, CliError> {
    let ports: Vec<dpdk::LbPort> = args
        .lbports
        .iter()
        .map(|port| dpdk::LbPort {
            port: u32::from(port.port),
            protocol: port.protocol.into(),
        })
        .collect();
    let request = dpdk::CreateLoadBalancerRequest {
        loadbalancer_id: args.id.clone().into_bytes(),
        loadbalanced_ip: Some(address(args.vip)),
        vni: args.vni,
        loadbalanced_ports: ports.clone(),
        preferred_underlay_route: underlay_bytes(args.underlay),
    };
    let reply = client.create_load_balancer(request).await?.into_inner();
    accept(reply.status)?;
    Ok(show::load_balancer(&dpdk::Loadbalancer {
        id: args.id.into_bytes(),
        vni: args.vni,
        ip: Some(address(args.vip)),
        ports,
        underlay_route: reply.underlay_route,
    }))
}

pub(super) async fn get_load_balancer(client: &mut Client, id: &str) -> Result<Object, CliError> {
    let request = dpdk::GetLoadBalancerRequest {
        loadbalancer_id: id.as_bytes().to_vec(),
    };
    let reply = client.get_load_balancer(request).await?.into_inner();
    accept(reply.status)?;
    Ok(show::load_balancer(&dpdk::Loadbalancer {
        id: id.as_bytes().to_vec(),
        vni: reply.vni,
        ip: reply.loadbalanced_ip,
        ports: reply.loadbalanced_ports,
        underlay_route: reply.underlay_route,
    }))
}

pub(super) async fn delete_load_balancer(
    client: &mut Client,
    id: String,
) -> Result<Object, CliError> {
    let request = dpdk::DeleteLoadBalancerRequest {
        loadbalancer_id: id.clone().into_bytes(),
    };
    let reply = client.delete_load_balancer(request).await?;
    accept(reply.into_inner().status)?;
    let metadata = vec![("id", Tree::text(&id))];
    Ok(bare("LoadBalancer", id.clone(), metadata, vec![("ID", id)]))
}

pub(super) async fn list_load_balancers(
    client: &mut Client,
    column: &str,
) -> Result<Printed, CliError> {
    let request = dpdk::ListLoadBalancersRequest {};
    let reply = client.list_load_balancers(request).await?.into_inner();
    accept(reply.status)?;
    let objects = reply.loadbalancers.iter().map(show::load_balancer);
    Ok(Printed::Many {
        kind: "LoadBalancerList",
        metadata: Vec::new(),
        objects: sorted(objects.collect(), column, "ID")?,
    })
}

pub(super) async fn create_lb_target(
    client: &mut Client,
    args: LbTarget,
) -> Result<Object, CliError> {
    let request = dpdk::CreateLoadBalancerTargetRequest {
        loadbalancer_id: args.lb_id.clone().into_bytes(),
        target_ip: Some(address(args.target_ip)),
    };
    let reply = client.create_load_balancer_target(request).await?;
    accept(reply.into_inner().status)?;
    Ok(show::lb_target(&args.lb_id, &args.target_ip.to_string()))
}

pub(super) async fn delete_lb_target(
    client: &mut Client,
    args: LbTarget,
) -> Result<Object, CliError> {
    let request = dpdk::DeleteLoadBalancerTargetRequest {
        loadbalancer_id: args.lb_id.clone().into_bytes(),
        target_ip: Some(address(args.target_ip)),
    };
    let reply = client.delete_load_balancer_target(request).await?;
    accept(reply.into_inner().status)?;
    Ok(show::lb_target(&args.lb_id, &args.target_ip.to_string()))
}

/// Targets of one load balancer, or of all, one call each, so that every target is shown with its load balancer.
pub(super) async fn list_lb_targets(
    client: &mut Client,
    id: &str,
    column: &str,
) -> Result<Printed, CliError> {
    let wanted = if id.is_empty() {
        let request = dpdk::ListLoadBalancersRequest {};
        let reply = client.list_load_balancers(request).await?.into_inner();
        accept(reply.status)?;
        reply
            .loadbalancers
            .into_iter()
            .map(|found| found.id)
            .collect()
    } else {
        vec![id.as_bytes().to_vec()]
    };
    let mut objects = Vec::new();
    for loadbalancer_id in wanted {
        let name = text(&loadbalancer_id);
        let request = dpdk::ListLoadBalancerTargetsRequest { loadbalancer_id };
        let reply = client
            .list_load_balancer_targets(request)
            .await?
            .into_inner();
        accept(reply.status)?;
        let targets = reply.target_ips.iter();
        objects.extend(targets.map(|target| show::lb_target(&name, &text(&target.address))));
    }
    Ok(Printed::Many {
        kind: "LoadBalancerTargetList",
        metadata: vec![("loadbalancer_id", Tree::text(id))],
        objects: sorted(objects, column, "Address")?,
    })
}

// ---- packet filter ---------------------------------------------------------------------------------------------------------

fn rule_message(args: &CreateFirewallRule) -> dpdk::FirewallRule {
    let filter = args.protocol.map(|transport| match transport {
        Transport::Tcp => Filter::Tcp(dpdk::TcpFilter {
            src_port_lower: args.src_port_min,
            src_port_upper: args.src_port_max,
            dst_port_lower: args.dst_port_min,
            dst_port_upper: args.dst_port_max,
        }),
        Transport::Udp => Filter::Udp(dpdk::UdpFilter {
            src_port_lower: args.src_port_min,
            src_port_upper: args.src_port_max,
            dst_port_lower: args.dst_port_min,
            dst_port_upper: args.dst_port_max,
        }),
        Transport::Icmp => Filter::Icmp(dpdk::IcmpFilter {
            icmp_type: args.icmp_type,
            icmp_code: args.icmp_code,
        }),
    });
    let direction = match args.direction {
        Direction::Ingress => dpdk::TrafficDirection::Ingress,
        Direction::Egress => dpdk::TrafficDirection::Egress,
    };
    let action = match args.action {
        Action::Drop => dpdk::FirewallAction::Drop,
        Action::Accept => dpdk::FirewallAction::Accept,
    };
    dpdk::FirewallRule {
        id: args.rule_id.clone().into_bytes(),
        direction: direction.into(),
        action: action.into(),
        priority: args.priority,
        source_prefix: Some(prefix_message(args.src)),
        destination_prefix: Some(prefix_message(args.dst)),
        protocol_filter: Some(dpdk::ProtocolFilter { filter }),
    }
}

pub(super) async fn create_rule(
    client: &mut Client,
    args: CreateFirewallRule,
) -> Result<Object, CliError> {
    let rule = rule_message(&args);
    let request = dpdk::CreateFirewallRuleRequest {
        interface_id: args.interface_id.clone().into_bytes(),
        rule: Some(rule.clone()),
    };
    let reply = client.create_firewall_rule(request).await?;
    accept(reply.into_inner().status)?;
    Ok(show::firewall_rule(&args.interface_id, &rule))
}

pub(super) async fn get_rule(
    client: &mut Client,
    interface_id: &str,
    rule_id: &str,
) -> Result<Object, CliError> {
    let request = dpdk::GetFirewallRuleRequest {
        interface_id: interface_id.as_bytes().to_vec(),
        rule_id: rule_id.as_bytes().to_vec(),
    };
    let reply = client.get_firewall_rule(request).await?.into_inner();
    accept(reply.status)?;
    let rule = reply.rule.unwrap_or_default();
    Ok(show::firewall_rule(interface_id, &rule))
}

pub(super) async fn delete_rule(
    client: &mut Client,
    interface_id: String,
    rule_id: String,
) -> Result<Object, CliError> {
    let request = dpdk::DeleteFirewallRuleRequest {
        interface_id: interface_id.clone().into_bytes(),
        rule_id: rule_id.clone().into_bytes(),
    };
    let reply = client.delete_firewall_rule(request).await?;
    accept(reply.into_inner().status)?;
    let metadata = vec![("interface_id", Tree::text(&interface_id))];
    let cells = vec![
        ("InterfaceID", interface_id.clone()),
        ("RuleID", rule_id.clone()),
    ];
    let name = format!("{interface_id}/{rule_id}");
    Ok(Object {
        spec: vec![("id", Tree::text(rule_id))],
        ..bare("FirewallRule", name, metadata, cells)
    })
}

pub(super) async fn list_rules(
    client: &mut Client,
    interface_id: &str,
    column: &str,
) -> Result<Printed, CliError> {
    let request = dpdk::ListFirewallRulesRequest {
        interface_id: interface_id.as_bytes().to_vec(),
    };
    let reply = client.list_firewall_rules(request).await?.into_inner();
    accept(reply.status)?;
    let rules = reply.rules.iter();
    let objects = rules.map(|rule| show::firewall_rule(interface_id, rule));
    Ok(Printed::Many {
        kind: "FirewallRuleList",
        metadata: vec![("interface_id", Tree::text(interface_id))],
        objects: sorted(objects.collect(), column, "RuleID")?,
    })
}

// ---- capture ---------------------------------------------------------------------------------------------------------------

pub(super) async fn capture(client: &mut Client, what: &Capture) -> Result<Printed, CliError> {
    let (object, operation) = match what {
        Capture::Start(args) => (capture_start(client, args).await?, "capture started"),
        Capture::Stop => {
            let request = dpdk::CaptureStopRequest {};
            let reply = client.capture_stop(request).await?.into_inner();
            accept(reply.status)?;
            (show::capture_stop(reply.stopped_interface_cnt), "")
        }
        Capture::Status => {
            let request = dpdk::CaptureStatusRequest {};
            let reply = client.capture_status(request).await?.into_inner();
            accept(reply.status)?;
            let config = reply.capture_config.unwrap_or_default();
            (show::capture_status(reply.is_active, &config), "")
        }
    };
    Ok(Printed::One { object, operation })
}

async fn capture_start(client: &mut Client, args: &CaptureStart) -> Result<Object, CliError> {
    use dpdk::captured_interface::Spec;
    let uplinks = args.pf.iter().map(|number| dpdk::CapturedInterface {
        interface_type: dpdk::CaptureInterfaceType::SinglePf.into(),
        filter: Vec::new(),
        spec: Some(Spec::PfIndex(*number)),
    });
    let machines = args.vf.iter().map(|id| dpdk::CapturedInterface {
        interface_type: dpdk::CaptureInterfaceType::SingleVf.into(),
        filter: Vec::new(),
        spec: Some(Spec::VfName(id.clone().into_bytes())),
    });
    let config = dpdk::CaptureConfig {
        sink_node_ip: Some(address(args.sink_node_ip)),
        udp_src_port: args.udp_src_port,
        udp_dst_port: args.udp_dst_port,
        interfaces: uplinks.chain(machines).collect(),
    };
    let request = dpdk::CaptureStartRequest {
        capture_config: Some(config.clone()),
    };
    accept(client.capture_start(request).await?.into_inner().status)?;
    Ok(show::capture_start(&config))
}
