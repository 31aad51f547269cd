//! Alias prefixes: further destinations that are delivered to an interface.

use super::{Failure, Service, parse};
use proto::dpdk;

pub(super) async fn create(
    service: &Service,
    request: dpdk::CreatePrefixRequest,
) -> Result<dpdk::CreatePrefixResponse, Failure> {
    let dpdk::CreatePrefixRequest {
        interface_id,
        prefix,
        preferred_underlay_route,
    } = request;
    let id = parse::id(interface_id, "interface_id")?;
    let (address, length) = parse::prefix(prefix, "prefix.ip", "prefix.length")?;
    let preferred = parse::preferred_underlay(service.host, &preferred_underlay_route)?;
    let created = service
        .worker
        .call(move |plane| plane.engine.create_prefix(&id, address, length, preferred));
    Ok(dpdk::CreatePrefixResponse {
        status: None,
        underlay_route: parse::text(created.await??),
    })
}

pub(super) async fn delete(
    service: &Service,
    request: dpdk::DeletePrefixRequest,
) -> Result<dpdk::DeletePrefixResponse, Failure> {
    let dpdk::DeletePrefixRequest {
        interface_id,
        prefix,
    } = request;
    let id = parse::id(interface_id, "interface_id")?;
    let (address, length) = parse::prefix(prefix, "prefix.ip", "prefix.length")?;
    let deleted = service
        .worker
        .call(move |plane| plane.engine.delete_prefix(&id, address, length));
    deleted.await??;
    Ok(dpdk::DeletePrefixResponse { status: None })
}

pub(super) async fn list(
    service: &Service,
    request: dpdk::ListPrefixesRequest,
) -> Result<dpdk::ListPrefixesResponse, Failure> {
    let id = parse::id(request.interface_id, "interface_id")?;
    let found = service
        .worker
        .call(move |plane| plane.engine.prefixes(&id).map(<[_]>::to_vec));
    Ok(dpdk::ListPrefixesResponse {
        status: None,
        prefixes: parse::prefixes(found.await??),
    })
}
