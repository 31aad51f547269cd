//! Routes to other hosts, and the virtual networks they are in.

use super::{Failure, Service, parse};
use dataplane::{ConfigError, Route, VniType};
use net::Vni;
use proto::dpdk;
use std::net::IpAddr;

pub(super) async fn create(
    service: &Service,
    request: dpdk::CreateRouteRequest,
) -> Result<dpdk::CreateRouteResponse, Failure> {
    let dpdk::CreateRouteRequest {
        vni,
        route,
        replace,
    } = request;
    // The weight is for routers with several equal routes, which this service does not keep.
    let dpdk::Route {
        prefix,
        nexthop_vni,
        nexthop_address,
        weight: _,
    } = route.unwrap_or_default();
    let (address, length) = parse::route_prefix(prefix)?;
    let next_hop = parse::address(nexthop_address, "route.nexthop_address")?;
    let created = service.worker.call(move |plane| {
        let engine = &mut plane.engine;
        match Vni::new(vni) {
            Some(vni) if replace => {
                engine.replace_route(vni, address, length, next_hop, nexthop_vni)
            }
            Some(vni) => engine.create_route(vni, address, length, next_hop, nexthop_vni),
            None if next_hop.is_ipv4() => Err(ConfigError::BadIpVersion),
            None => Err(ConfigError::NoVni),
        }
    });
    created.await??;
    Ok(dpdk::CreateRouteResponse { status: None })
}

pub(super) async fn delete(
    service: &Service,
    request: dpdk::DeleteRouteRequest,
) -> Result<dpdk::DeleteRouteResponse, Failure> {
    let dpdk::DeleteRouteRequest { vni, route } = request;
    let (address, length) = parse::route_prefix(route.unwrap_or_default().prefix)?;
    let deleted = service.worker.call(move |plane| {
        let vni = Vni::new(vni).ok_or(ConfigError::NoVni)?;
        plane.engine.delete_route(vni, address, length)
    });
    deleted.await??;
    Ok(dpdk::DeleteRouteResponse { status: None })
}

/// Routes of one VNI, or of all for VNI 0.
pub(super) async fn list(
    service: &Service,
    request: dpdk::ListRoutesRequest,
) -> Result<dpdk::ListRoutesResponse, Failure> {
    let found = service.worker.call(move |plane| match request.vni {
        0 => plane.engine.routes(None),
        vni => plane
            .engine
            .routes(Some(Vni::new(vni).ok_or(ConfigError::NoVni)?)),
    });
    let routes = found.await??.into_iter();
    let reported = routes
        .filter(|route| service.list_ipv6_routes || route.prefix.address().is_ipv4())
        .map(show)
        .collect();
    Ok(dpdk::ListRoutesResponse {
        status: None,
        routes: reported,
    })
}

fn show(route: Route) -> dpdk::Route {
    let Route {
        vni: _,
        prefix,
        next_hop,
        next_hop_vni,
    } = route;
    dpdk::Route {
        prefix: Some(dpdk::Prefix {
            ip: Some(parse::show(prefix.address())),
            length: u32::from(prefix.len()),
            underlay_route: Vec::new(),
        }),
        nexthop_vni: next_hop_vni,
        nexthop_address: Some(parse::show(IpAddr::V6(next_hop))),
        weight: 0,
    }
}

pub(super) async fn check_vni_in_use(
    service: &Service,
    request: dpdk::CheckVniInUseRequest,
) -> Result<dpdk::CheckVniInUseResponse, Failure> {
    let dpdk::CheckVniInUseRequest { vni, r#type } = request;
    let kind = vni_type(r#type)?;
    let in_use = service.worker.call(move |plane| match Vni::new(vni) {
        Some(vni) => plane.engine.vni_in_use(vni, kind),
        None if kind == VniType::Both => Err(ConfigError::WrongType),
        None => Ok(false),
    });
    Ok(dpdk::CheckVniInUseResponse {
        status: None,
        in_use: in_use.await??,
    })
}

pub(super) async fn reset_vni(
    service: &Service,
    request: dpdk::ResetVniRequest,
) -> Result<dpdk::ResetVniResponse, Failure> {
    let dpdk::ResetVniRequest { vni, r#type } = request;
    let kind = vni_type(r#type)?;
    let reset = service.worker.call(move |plane| match Vni::new(vni) {
        Some(vni) => plane.engine.reset_vni(vni, kind),
        None if kind == VniType::Both => Ok(()),
        None => Err(ConfigError::WrongType),
    });
    reset.await??;
    Ok(dpdk::ResetVniResponse { status: None })
}

fn vni_type(value: i32) -> Result<VniType, Failure> {
    match dpdk::VniType::try_from(value) {
        Ok(dpdk::VniType::VniIpv4) => Ok(VniType::Ipv4),
        Ok(dpdk::VniType::VniIpv6) => Ok(VniType::Ipv6),
        Ok(dpdk::VniType::VniBoth) => Ok(VniType::Both),
        Err(_) => Err(Failure::invalid("type")),
    }
}
