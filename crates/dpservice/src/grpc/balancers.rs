//! Load balancers, their targets, and the prefixes that interfaces serve for them.

use super::{Failure, Service, parse};
use dataplane::{LbPort, LoadBalancerSpec};
use proto::dpdk;
use std::net::IpAddr;

pub(super) async fn create(
    service: &Service,
    request: dpdk::CreateLoadBalancerRequest,
) -> Result<dpdk::CreateLoadBalancerResponse, Failure> {
    let dpdk::CreateLoadBalancerRequest {
        loadbalancer_id,
        loadbalanced_ip,
        vni,
        loadbalanced_ports,
        preferred_underlay_route,
    } = request;
    let id = parse::id(loadbalancer_id, "loadbalancer_id")?;
    let vni = parse::new_vni(vni)?;
    let address = parse::address(loadbalanced_ip, "loadbalanced_ip")?;
    let ports = parse_ports(loadbalanced_ports)?;
    let preferred_underlay = parse::preferred_underlay(service.host, &preferred_underlay_route)?;
    let spec = LoadBalancerSpec {
        id,
        vni,
        address,
        ports,
        preferred_underlay,
    };
    let created = service
        .worker
        .call(move |plane| plane.engine.create_load_balancer(spec));
    Ok(dpdk::CreateLoadBalancerResponse {
        status: None,
        underlay_route: parse::text(created.await??),
    })
}

fn parse_ports(ports: Vec<dpdk::LbPort>) -> Result<Vec<LbPort>, Failure> {
    if ports.len() > LoadBalancerSpec::PORTS_MAX {
        return Err(Failure::Invalid("Too many loadbalanced_ports".to_owned()));
    }
    let mut parsed = Vec::with_capacity(ports.len());
    for dpdk::LbPort { port, protocol } in ports {
        let port = u16::try_from(port).map_err(|_| Failure::invalid("loadbalanced_ports.port"))?;
        let protocol = match dpdk::Protocol::try_from(protocol) {
            Ok(dpdk::Protocol::Tcp) => net::protocol::TCP,
            Ok(dpdk::Protocol::Udp) => net::protocol::UDP,
            Ok(_) | Err(_) => return Err(Failure::invalid("loadbalanced_ports.protocol")),
        };
        let entry = LbPort { protocol, port };
        if parsed.contains(&entry) {
            return Err(Failure::Invalid(
                "Duplicate loadbalanced_ports entry".to_owned(),
            ));
        }
        parsed.push(entry);
    }
    Ok(parsed)
}

pub(super) async fn get(
    service: &Service,
    request: dpdk::GetLoadBalancerRequest,
) -> Result<dpdk::GetLoadBalancerResponse, Failure> {
    let id = parse::id(request.loadbalancer_id, "loadbalancer_id")?;
    let found = service
        .worker
        .call(move |plane| plane.engine.load_balancer(&id));
    let dpdk::Loadbalancer {
        id: _,
        vni,
        ip,
        ports,
        underlay_route,
    } = show(found.await??);
    Ok(dpdk::GetLoadBalancerResponse {
        status: None,
        loadbalanced_ip: ip,
        vni,
        loadbalanced_ports: ports,
        underlay_route,
    })
}

pub(super) async fn list(
    service: &Service,
    _: dpdk::ListLoadBalancersRequest,
) -> Result<dpdk::ListLoadBalancersResponse, Failure> {
    let found = service
        .worker
        .call(|plane| plane.engine.load_balancers().map(show).collect());
    Ok(dpdk::ListLoadBalancersResponse {
        status: None,
        loadbalancers: found.await?,
    })
}

pub(super) async fn delete(
    service: &Service,
    request: dpdk::DeleteLoadBalancerRequest,
) -> Result<dpdk::DeleteLoadBalancerResponse, Failure> {
    let id = parse::id(request.loadbalancer_id, "loadbalancer_id")?;
    let deleted = service
        .worker
        .call(move |plane| plane.engine.delete_load_balancer(&id));
    deleted.await??;
    Ok(dpdk::DeleteLoadBalancerResponse { status: None })
}

fn show(spec: LoadBalancerSpec) -> dpdk::Loadbalancer {
    let LoadBalancerSpec {
        id,
        vni,
        address,
        ports,
        preferred_underlay,
    } = spec;
    // Port 0 stands for "none" in this encoding.
    let ports = ports.into_iter().filter(|entry| entry.port != 0);
    dpdk::Loadbalancer {
        id: id.into_bytes(),
        vni: vni.get(),
        ip: Some(parse::show(address)),
        ports: ports
            .map(|LbPort { protocol, port }| dpdk::LbPort {
                port: u32::from(port),
                protocol: i32::from(protocol),
            })
            .collect(),
        underlay_route: preferred_underlay.map(parse::text).unwrap_or_default(),
    }
}

pub(super) async fn create_target(
    service: &Service,
    request: dpdk::CreateLoadBalancerTargetRequest,
) -> Result<dpdk::CreateLoadBalancerTargetResponse, Failure> {
    let dpdk::CreateLoadBalancerTargetRequest {
        loadbalancer_id,
        target_ip,
    } = request;
    let id = parse::id(loadbalancer_id, "loadbalancer_id")?;
    let target = parse::address(target_ip, "target_ip")?;
    let created = service
        .worker
        .call(move |plane| plane.engine.create_load_balancer_target(&id, target));
    created.await??;
    Ok(dpdk::CreateLoadBalancerTargetResponse { status: None })
}

/// Targets of one load balancer, or of all for the empty id.
pub(super) async fn list_targets(
    service: &Service,
    request: dpdk::ListLoadBalancerTargetsRequest,
) -> Result<dpdk::ListLoadBalancerTargetsResponse, Failure> {
    let id = if request.loadbalancer_id.is_empty() {
        String::new()
    } else {
        parse::id(request.loadbalancer_id, "loadbalancer_id")?
    };
    let found = service
        .worker
        .call(move |plane| plane.engine.load_balancer_targets(&id));
    let targets = found.await??.into_iter();
    Ok(dpdk::ListLoadBalancerTargetsResponse {
        status: None,
        target_ips: targets
            .map(|target| parse::show(IpAddr::V6(target)))
            .collect(),
    })
}

pub(super) async fn delete_target(
    service: &Service,
    request: dpdk::DeleteLoadBalancerTargetRequest,
) -> Result<dpdk::DeleteLoadBalancerTargetResponse, Failure> {
    let dpdk::DeleteLoadBalancerTargetRequest {
        loadbalancer_id,
        target_ip,
    } = request;
    let id = parse::id(loadbalancer_id, "loadbalancer_id")?;
    let target = parse::address(target_ip, "target_ip")?;
    let deleted = service
        .worker
        .call(move |plane| plane.engine.delete_load_balancer_target(&id, target));
    deleted.await??;
    Ok(dpdk::DeleteLoadBalancerTargetResponse { status: None })
}

pub(super) async fn create_prefix(
    service: &Service,
    request: dpdk::CreateLoadBalancerPrefixRequest,
) -> Result<dpdk::CreateLoadBalancerPrefixResponse, Failure> {
    let dpdk::CreateLoadBalancerPrefixRequest {
        interface_id,
        prefix,
        preferred_underlay_route,
    } = request;
    let id = parse::id(interface_id, "interface_id")?;
    let (address, length) = parse::prefix(prefix, "prefix.ip", "prefix.length")?;
    let preferred = parse::preferred_underlay(service.host, &preferred_underlay_route)?;
    let created = service.worker.call(move |plane| {
        plane
            .engine
            .create_lb_prefix(&id, address, length, preferred)
    });
    Ok(dpdk::CreateLoadBalancerPrefixResponse {
        status: None,
        underlay_route: parse::text(created.await??),
    })
}

pub(super) async fn delete_prefix(
    service: &Service,
    request: dpdk::DeleteLoadBalancerPrefixRequest,
) -> Result<dpdk::DeleteLoadBalancerPrefixResponse, Failure> {
    let dpdk::DeleteLoadBalancerPrefixRequest {
        interface_id,
        prefix,
    } = request;
    let id = parse::id(interface_id, "interface_id")?;
    let (address, length) = parse::prefix(prefix, "prefix.ip", "prefix.length")?;
    let deleted = service
        .worker
        .call(move |plane| plane.engine.delete_lb_prefix(&id, address, length));
    deleted.await??;
    Ok(dpdk::DeleteLoadBalancerPrefixResponse { status: None })
}

pub(super) async fn list_prefixes(
    service: &Service,
    request: dpdk::ListLoadBalancerPrefixesRequest,
) -> Result<dpdk::ListLoadBalancerPrefixesResponse, Failure> {
    let id = parse::id(request.interface_id, "interface_id")?;
    let found = service
        .worker
        .call(move |plane| plane.engine.lb_prefixes(&id).map(<[_]>::to_vec));
    Ok(dpdk::ListLoadBalancerPrefixesResponse {
        status: None,
        prefixes: parse::prefixes(found.await??),
    })
}
