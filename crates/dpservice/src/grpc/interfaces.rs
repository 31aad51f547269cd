//! Interfaces: machines come and go.
//!
//! Creating and removing a kernel device takes milliseconds, so the packet thread does neither: the engine accepts the interface first, the
//! driver is opened here and handed over, or the interface is taken back.

use super::{Failure, Service, firewall, parse};
use crate::devices::Driver;
use crate::worker::Plane;
use dataplane::{ConfigError, FirewallRule, Interface, InterfaceSpec, Metering, PortId, Pxe};
use ports::OpenError;
use proto::{code, dpdk};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

/// How often a device name that is still in use is tried again: its former user may be closing it right now.
const OPEN_TRIES_MAX: u32 = 100;
const OPEN_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// `EBUSY`.
const BUSY: i32 = 16;

pub(super) async fn create(
    service: &Service,
    request: dpdk::CreateInterfaceRequest,
) -> Result<dpdk::CreateInterfaceResponse, Failure> {
    let (spec, rules) = parse_spec(service.host, request)?;
    let id = spec.id.clone();
    let firewall_rules_created = !rules.is_empty();
    let created = service
        .worker
        .call(move |plane| create_with(plane, spec, rules));
    let (port, underlay) = created.await??;
    let index = port.0.saturating_sub(service.machine_ports_start);
    if let Err(error) = attach(service, &id, port, index).await? {
        tracing::warn!(interface_id = id, error, "Cannot start port");
        service
            .worker
            .call(move |plane| remove_if_on(plane, &id, port))
            .await?;
        return Err(Failure::Refused(code::PORT_START));
    }
    Ok(dpdk::CreateInterfaceResponse {
        status: None,
        underlay_route: underlay.to_string().into_bytes(),
        vf: Some(dpdk::VirtualFunction {
            name: service.devices.netdev(index),
            ..Default::default()
        }),
        firewall_rules_created,
    })
}

/// An interface and its rules, or neither.
fn create_with(
    plane: &mut Plane,
    spec: InterfaceSpec,
    rules: Vec<FirewallRule>,
) -> Result<(PortId, Ipv6Addr), ConfigError> {
    let id = spec.id.clone();
    let interface = plane.engine.create_interface(spec)?;
    let created = (interface.port, interface.underlay);
    for rule in rules {
        if let Err(error) = plane.engine.create_firewall_rule(&id, rule) {
            let _ = plane.engine.delete_interface(&id);
            return Err(error);
        }
    }
    Ok(created)
}

/// Opens the driver and gives it to the packet thread; the inner error tells why the port cannot start.
async fn attach(
    service: &Service,
    id: &str,
    port: PortId,
    index: u16,
) -> Result<Result<(), String>, Failure> {
    let driver = match open(service, index).await {
        Ok(driver) => driver,
        Err(error) => return Ok(Err(error)),
    };
    // Somebody may have deleted the interface in the meantime.
    let wanted = |plane: &Plane| {
        let current = plane.engine.interface_at(port);
        current.is_some_and(|interface| interface.spec.id == id) && !plane.is_attached(port)
    };
    let attached = service.worker.attach(port, driver, wanted).await?;
    Ok(match attached {
        Ok(true) => Ok(()),
        Ok(false) => Err("the interface was deleted meanwhile".to_owned()),
        Err(error) => Err(error.to_string()),
    })
}

async fn open(service: &Service, index: u16) -> Result<Driver, String> {
    for _ in 0..OPEN_TRIES_MAX {
        let devices = Arc::clone(&service.devices);
        let opened = tokio::task::spawn_blocking(move || devices.open(index)).await;
        match opened.map_err(|error| error.to_string())? {
            Err(OpenError { cause, .. }) if cause.raw_os_error() == Some(BUSY) => {
                tokio::time::sleep(OPEN_RETRY_INTERVAL).await;
            }
            result => return result.map_err(|error| error.to_string()),
        }
    }
    Err("the device name stays in use".to_owned())
}

/// Creates the device of a machine port anew after it disappeared: its namespace may have been deleted, but the interface stays until it
/// is deleted here, and whoever runs the machine can fetch the device again. Uplinks are not this module's business. False if it has to be tried
/// again.
pub async fn restore(service: &Service, port: PortId) -> bool {
    let Some(index) = port.0.checked_sub(service.machine_ports_start) else {
        return true;
    };
    let find = move |plane: &mut Plane| {
        let interface = plane.engine.interface_at(port);
        let id = interface.map(|interface| interface.spec.id.clone());
        id.filter(|_| !plane.is_attached(port))
    };
    let Ok(Some(id)) = service.worker.call(find).await else {
        return true;
    };
    match attach(service, &id, port, index).await {
        Ok(Ok(())) => tracing::info!(interface_id = id, port_id = port.0, "Device restored"),
        Ok(Err(error)) => {
            tracing::warn!(
                interface_id = id,
                port_id = port.0,
                error,
                "Cannot restore device"
            );
            return false;
        }
        // The packet thread has ended: so will this process.
        Err(_) => {}
    }
    true
}

fn remove_if_on(plane: &mut Plane, id: &str, port: PortId) {
    if plane
        .engine
        .interface(id)
        .is_ok_and(|interface| interface.port == port)
    {
        let _ = plane.engine.delete_interface(id);
        plane.detach(port);
    }
}

pub(super) async fn delete(
    service: &Service,
    request: dpdk::DeleteInterfaceRequest,
) -> Result<dpdk::DeleteInterfaceResponse, Failure> {
    let id = parse::id(request.interface_id, "interface_id")?;
    let deleted = service.worker.call(move |plane| {
        let port = plane.engine.interface(&id)?.port;
        plane.engine.delete_interface(&id)?;
        // The reply tells that the device is gone: its name may be used again.
        plane.detach(port);
        Ok::<_, ConfigError>(())
    });
    deleted.await??;
    Ok(dpdk::DeleteInterfaceResponse { status: None })
}

pub(super) async fn get(
    service: &Service,
    request: dpdk::GetInterfaceRequest,
) -> Result<dpdk::GetInterfaceResponse, Failure> {
    let id = parse::id(request.interface_id, "interface_id")?;
    let found = service
        .worker
        .call(move |plane| plane.engine.interface(&id).map(show));
    Ok(dpdk::GetInterfaceResponse {
        status: None,
        interface: Some(found.await??),
    })
}

pub(super) async fn list(
    service: &Service,
    _: dpdk::ListInterfacesRequest,
) -> Result<dpdk::ListInterfacesResponse, Failure> {
    let found = service
        .worker
        .call(|plane| plane.engine.interfaces().map(show).collect());
    Ok(dpdk::ListInterfacesResponse {
        status: None,
        interfaces: found.await?,
    })
}

fn show(interface: &Interface) -> dpdk::Interface {
    let Interface {
        spec,
        port: _,
        underlay,
    } = interface;
    let InterfaceSpec {
        id,
        device,
        vni,
        ipv4,
        ipv6,
        pxe: _,
        metering,
        preferred_underlay: _,
        hostname,
    } = spec;
    let Metering {
        total_rate,
        public_rate,
    } = *metering;
    let ipv4 = ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let ipv6 = ipv6.unwrap_or(Ipv6Addr::UNSPECIFIED);
    dpdk::Interface {
        id: id.clone().into_bytes(),
        vni: vni.get(),
        primary_ipv4: ipv4.to_string().into_bytes(),
        primary_ipv6: ipv6.to_string().into_bytes(),
        underlay_route: underlay.to_string().into_bytes(),
        pci_name: device.clone(),
        metering_params: Some(dpdk::MeteringParams {
            total_rate,
            public_rate,
        }),
        hostname: hostname.clone().unwrap_or_default(),
    }
}

fn parse_spec(
    host: Ipv6Addr,
    request: dpdk::CreateInterfaceRequest,
) -> Result<(InterfaceSpec, Vec<FirewallRule>), Failure> {
    let dpdk::CreateInterfaceRequest {
        interface_type: _,
        interface_id,
        vni,
        ipv4_config,
        ipv6_config,
        pxe_config,
        device_name,
        metering_parameters,
        preferred_underlay_route,
        hostname,
        firewall_rules,
    } = request;
    let id = parse::id(interface_id, "interface_id")?;
    if !id
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
    {
        return Err(Failure::invalid("interface_id"));
    }
    let ipv4 = parse::ipv4(&ipv4_config.unwrap_or_default().primary_address)
        .ok_or_else(|| Failure::invalid("ipv4_config.primary_address"))?;
    let ipv6 = parse::ipv6(&ipv6_config.unwrap_or_default().primary_address)
        .ok_or_else(|| Failure::invalid("ipv6_config.primary_address"))?;
    let (ipv4, ipv6) = (some_v4(ipv4), some_v6(ipv6));
    if ipv4.is_none() && ipv6.is_none() {
        return Err(Failure::invalid(
            "ipv4_config.primary_address and ipv6_config.primary_address combination",
        ));
    }
    let pxe = parse_pxe(pxe_config.unwrap_or_default(), ipv6.is_some())?;
    if device_name.is_empty() || device_name.len() > parse::ID_LEN_MAX {
        return Err(Failure::invalid("device_name"));
    }
    if hostname.len() > parse::ID_LEN_MAX {
        return Err(Failure::invalid("hostname"));
    }
    let preferred_underlay = parse::preferred_underlay(host, &preferred_underlay_route)?;
    let vni = parse::new_vni(vni)?;
    let dpdk::MeteringParams {
        total_rate,
        public_rate,
    } = metering_parameters.unwrap_or_default();
    let rules = firewall_rules.into_iter().map(firewall::parse_rule);
    let rules: Result<Vec<FirewallRule>, Failure> = rules.collect();
    // Of a list the field is named, not its parts: their texts belong to the call for one rule.
    let rules = rules.map_err(|_| Failure::invalid("firewall_rules"))?;
    let spec = InterfaceSpec {
        id,
        device: device_name,
        vni,
        ipv4,
        ipv6,
        pxe,
        metering: Metering {
            total_rate,
            public_rate,
        },
        preferred_underlay,
        hostname: Some(hostname).filter(|hostname| !hostname.is_empty()),
    };
    Ok((spec, rules))
}

fn some_v4(address: Ipv4Addr) -> Option<Ipv4Addr> {
    (!address.is_unspecified()).then_some(address)
}

fn some_v6(address: Ipv6Addr) -> Option<Ipv6Addr> {
    (!address.is_unspecified()).then_some(address)
}

/// Network boot counts only if a server is named, which is of the interface's most modern family.
fn parse_pxe(config: dpdk::PxeConfig, has_ipv6: bool) -> Result<Option<Pxe>, Failure> {
    let dpdk::PxeConfig {
        next_server,
        boot_filename,
    } = config;
    if next_server.is_empty() {
        return Ok(None);
    }
    let server = if has_ipv6 {
        parse::ipv6(next_server.as_bytes()).map(IpAddr::V6)
    } else {
        parse::ipv4(next_server.as_bytes()).map(IpAddr::V4)
    };
    let next_server = server.ok_or_else(|| Failure::invalid("pxe_config.next_server"))?;
    if boot_filename.is_empty() || boot_filename.len() > parse::BOOT_FILENAME_LEN_MAX {
        return Err(Failure::invalid("pxe_config.boot_filename"));
    }
    Ok(Some(Pxe {
        next_server,
        boot_filename,
    }))
}
