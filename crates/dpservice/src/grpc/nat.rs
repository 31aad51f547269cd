//! VIPs, network NAT, and the NAT shares of other hosts.

use super::{Failure, Service, parse};
use dataplane::{ConfigError, LocalNat, NeighborNat};
use net::{PortRange, Vni};
use proto::dpdk;
use std::net::IpAddr;

pub(super) async fn create_vip(
    service: &Service,
    request: dpdk::CreateVipRequest,
) -> Result<dpdk::CreateVipResponse, Failure> {
    let dpdk::CreateVipRequest {
        interface_id,
        vip_ip,
        preferred_underlay_route,
    } = request;
    let id = parse::id(interface_id, "interface_id")?;
    let address = parse::address(vip_ip, "vip_ip")?;
    let preferred = parse::preferred_underlay(service.host, &preferred_underlay_route)?;
    let created = service
        .worker
        .call(move |plane| plane.engine.create_vip(&id, address, preferred));
    Ok(dpdk::CreateVipResponse {
        status: None,
        underlay_route: parse::text(created.await??),
    })
}

pub(super) async fn get_vip(
    service: &Service,
    request: dpdk::GetVipRequest,
) -> Result<dpdk::GetVipResponse, Failure> {
    let id = parse::id(request.interface_id, "interface_id")?;
    let found = service.worker.call(move |plane| plane.engine.vip(&id));
    let vip = found.await??;
    Ok(dpdk::GetVipResponse {
        status: None,
        vip_ip: Some(parse::show(IpAddr::V4(vip.address))),
        underlay_route: parse::text(vip.underlay),
    })
}

pub(super) async fn delete_vip(
    service: &Service,
    request: dpdk::DeleteVipRequest,
) -> Result<dpdk::DeleteVipResponse, Failure> {
    let id = parse::id(request.interface_id, "interface_id")?;
    let deleted = service
        .worker
        .call(move |plane| plane.engine.delete_vip(&id));
    deleted.await??;
    Ok(dpdk::DeleteVipResponse { status: None })
}

pub(super) async fn create(
    service: &Service,
    request: dpdk::CreateNatRequest,
) -> Result<dpdk::CreateNatResponse, Failure> {
    let dpdk::CreateNatRequest {
        interface_id,
        nat_ip,
        min_port,
        max_port,
        preferred_underlay_route,
    } = request;
    let id = parse::id(interface_id, "interface_id")?;
    let address = parse::address(nat_ip, "nat_ip")?;
    let ports = port_range(min_port, max_port)?;
    let preferred = parse::preferred_underlay(service.host, &preferred_underlay_route)?;
    let created = service
        .worker
        .call(move |plane| plane.engine.create_nat(&id, address, ports, preferred));
    Ok(dpdk::CreateNatResponse {
        status: None,
        underlay_route: parse::text(created.await??),
    })
}

pub(super) async fn get(
    service: &Service,
    request: dpdk::GetNatRequest,
) -> Result<dpdk::GetNatResponse, Failure> {
    let id = parse::id(request.interface_id, "interface_id")?;
    let found = service.worker.call(move |plane| plane.engine.nat(&id));
    let nat = found.await??;
    Ok(dpdk::GetNatResponse {
        status: None,
        nat_ip: Some(parse::show(IpAddr::V4(nat.address))),
        min_port: u32::from(nat.ports.first()),
        max_port: u32::from(nat.ports.end()),
        underlay_route: parse::text(nat.underlay),
    })
}

pub(super) async fn delete(
    service: &Service,
    request: dpdk::DeleteNatRequest,
) -> Result<dpdk::DeleteNatResponse, Failure> {
    let id = parse::id(request.interface_id, "interface_id")?;
    let deleted = service
        .worker
        .call(move |plane| plane.engine.delete_nat(&id));
    deleted.await??;
    Ok(dpdk::DeleteNatResponse { status: None })
}

pub(super) async fn list_local(
    service: &Service,
    request: dpdk::ListLocalNatsRequest,
) -> Result<dpdk::ListLocalNatsResponse, Failure> {
    let address = parse::address(request.nat_ip, "nat_ip")?;
    let found = service
        .worker
        .call(move |plane| plane.engine.local_nats(address));
    Ok(dpdk::ListLocalNatsResponse {
        status: None,
        nat_entries: found.await??.into_iter().map(show_local).collect(),
    })
}

pub(super) async fn create_neighbor(
    service: &Service,
    request: dpdk::CreateNeighborNatRequest,
) -> Result<dpdk::CreateNeighborNatResponse, Failure> {
    let dpdk::CreateNeighborNatRequest {
        nat_ip,
        vni,
        min_port,
        max_port,
        underlay_route,
    } = request;
    let address = parse::address(nat_ip, "nat_ip")?;
    let ports = port_range(min_port, max_port)?;
    let underlay =
        parse::ipv6(&underlay_route).ok_or_else(|| Failure::invalid("underlay_route"))?;
    let vni = parse::new_vni(vni)?;
    let created = service.worker.call(move |plane| {
        plane
            .engine
            .create_neighbor_nat(address, vni, ports, underlay)
    });
    created.await??;
    Ok(dpdk::CreateNeighborNatResponse { status: None })
}

pub(super) async fn delete_neighbor(
    service: &Service,
    request: dpdk::DeleteNeighborNatRequest,
) -> Result<dpdk::DeleteNeighborNatResponse, Failure> {
    let dpdk::DeleteNeighborNatRequest {
        nat_ip,
        vni,
        min_port,
        max_port,
    } = request;
    let address = parse::address(nat_ip, "nat_ip")?;
    let ports = port_range(min_port, max_port)?;
    let deleted = service.worker.call(move |plane| match Vni::new(vni) {
        Some(vni) => plane.engine.delete_neighbor_nat(address, vni, ports),
        None if address.is_ipv6() => Err(ConfigError::BadIpVersion),
        None => Err(ConfigError::NotFound),
    });
    deleted.await??;
    Ok(dpdk::DeleteNeighborNatResponse { status: None })
}

pub(super) async fn list_neighbor(
    service: &Service,
    request: dpdk::ListNeighborNatsRequest,
) -> Result<dpdk::ListNeighborNatsResponse, Failure> {
    let address = parse::address(request.nat_ip, "nat_ip")?;
    let found = service
        .worker
        .call(move |plane| plane.engine.neighbor_nats(address));
    Ok(dpdk::ListNeighborNatsResponse {
        status: None,
        nat_entries: found.await??.into_iter().map(show_neighbor).collect(),
    })
}

/// First port, and one past the last.
fn port_range(min: u32, max: u32) -> Result<PortRange, Failure> {
    let min = u16::try_from(min).map_err(|_| Failure::invalid("min_port"))?;
    let max = u16::try_from(max).map_err(|_| Failure::invalid("max_port"))?;
    PortRange::new(min, max).ok_or_else(|| Failure::invalid("port range"))
}

/// The field `nat_ip` of a list entry is the machine's own address.
fn show_local(local: LocalNat) -> dpdk::NatEntry {
    let LocalNat { vni, machine, nat } = local;
    dpdk::NatEntry {
        nat_ip: Some(parse::show(IpAddr::V4(machine))),
        min_port: u32::from(nat.ports.first()),
        max_port: u32::from(nat.ports.end()),
        underlay_route: Vec::new(),
        vni: vni.get(),
        actual_nat_ip: Some(parse::show(IpAddr::V4(nat.address))),
    }
}

fn show_neighbor(neighbor: NeighborNat) -> dpdk::NatEntry {
    let NeighborNat {
        address,
        vni,
        ports,
        underlay,
    } = neighbor;
    dpdk::NatEntry {
        nat_ip: None,
        min_port: u32::from(ports.first()),
        max_port: u32::from(ports.end()),
        underlay_route: parse::text(underlay),
        vni: vni.get(),
        actual_nat_ip: Some(parse::show(IpAddr::V4(address))),
    }
}
