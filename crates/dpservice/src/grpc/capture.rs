//! Packet capture: mirroring what comes in on chosen ports to a receiver on the underlay.

use super::{Failure, Service, parse};
use dataplane::{CapturePort, CaptureSpec};
use proto::dpdk;
use proto::dpdk::captured_interface::Spec;
use std::net::IpAddr;

pub(super) async fn start(
    service: &Service,
    request: dpdk::CaptureStartRequest,
) -> Result<dpdk::CaptureStartResponse, Failure> {
    let spec = parse_config(request.capture_config.unwrap_or_default())?;
    let started = service
        .worker
        .call(move |plane| plane.engine.start_capture(spec));
    started.await??;
    Ok(dpdk::CaptureStartResponse { status: None })
}

pub(super) async fn stop(
    service: &Service,
    _: dpdk::CaptureStopRequest,
) -> Result<dpdk::CaptureStopResponse, Failure> {
    let stopped = service
        .worker
        .call(|plane| plane.engine.stop_capture())
        .await??;
    Ok(dpdk::CaptureStopResponse {
        status: None,
        stopped_interface_cnt: u32::try_from(stopped).unwrap_or(u32::MAX),
    })
}

pub(super) async fn status(
    service: &Service,
    _: dpdk::CaptureStatusRequest,
) -> Result<dpdk::CaptureStatusResponse, Failure> {
    let found = service
        .worker
        .call(|plane| plane.engine.capture().cloned())
        .await?;
    Ok(dpdk::CaptureStatusResponse {
        status: None,
        is_active: found.is_some(),
        capture_config: found.map(show),
    })
}

fn parse_config(config: dpdk::CaptureConfig) -> Result<CaptureSpec, Failure> {
    let dpdk::CaptureConfig {
        sink_node_ip,
        udp_src_port,
        udp_dst_port,
        interfaces,
    } = config;
    let port = |value, name| u16::try_from(value).map_err(|_| Failure::invalid(name));
    let source_port = port(udp_src_port, "udp_src_port")?;
    let destination_port = port(udp_dst_port, "udp_dst_port")?;
    let IpAddr::V6(sink) = parse::address(sink_node_ip, "sink_node_ip")? else {
        return Err(Failure::invalid("sink_node_ip"));
    };
    if interfaces.len() > CaptureSpec::PORTS_MAX {
        let text = "Too many interfaces to be captured";
        return Err(Failure::Invalid(text.to_owned()));
    }
    let ports = interfaces.into_iter().map(parse_port);
    Ok(CaptureSpec {
        sink,
        source_port,
        destination_port,
        ports: ports.collect::<Result<_, _>>()?,
    })
}

fn parse_port(interface: dpdk::CapturedInterface) -> Result<CapturePort, Failure> {
    let dpdk::CapturedInterface {
        interface_type,
        filter: _,
        spec,
    } = interface;
    match dpdk::CaptureInterfaceType::try_from(interface_type) {
        Ok(dpdk::CaptureInterfaceType::SingleVf) => {
            let Some(Spec::VfName(id)) = spec else {
                return Err(Failure::invalid("interface_id"));
            };
            Ok(CapturePort::Interface(parse::id(id, "interface_id")?))
        }
        Ok(dpdk::CaptureInterfaceType::SinglePf) => {
            // Number 0 may be left out on the wire, and with it the whole choice.
            let number = match spec {
                Some(Spec::PfIndex(number)) => number,
                None => 0,
                Some(Spec::VfName(_)) => return Err(Failure::invalid("pf_index")),
            };
            let number = u8::try_from(number).map_err(|_| Failure::invalid("pf_index"))?;
            Ok(CapturePort::Uplink(number))
        }
        Err(_) => Err(Failure::invalid("interfaces.interface_type")),
    }
}

fn show(spec: CaptureSpec) -> dpdk::CaptureConfig {
    let CaptureSpec {
        sink,
        source_port,
        destination_port,
        ports,
    } = spec;
    let show_port = |port| {
        let (kind, spec) = match port {
            CapturePort::Uplink(number) => (
                dpdk::CaptureInterfaceType::SinglePf,
                Spec::PfIndex(u32::from(number)),
            ),
            CapturePort::Interface(id) => (
                dpdk::CaptureInterfaceType::SingleVf,
                Spec::VfName(id.into_bytes()),
            ),
        };
        dpdk::CapturedInterface {
            interface_type: kind.into(),
            filter: Vec::new(),
            spec: Some(spec),
        }
    };
    dpdk::CaptureConfig {
        sink_node_ip: Some(parse::show(IpAddr::V6(sink))),
        udp_src_port: u32::from(source_port),
        udp_dst_port: u32::from(destination_port),
        interfaces: ports.into_iter().map(show_port).collect(),
    }
}
