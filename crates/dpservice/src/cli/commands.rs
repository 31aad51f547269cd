//! One function per command: makes its calls and turns the replies into objects.

use super::args::{
    Cli, Command, Create, CreateInterface, CreatePrefix, CreateRoute, Delete, Format, Get, List,
    Prefix, Reset, target,
};
use super::output::{Object, Printed, Tree, sort};
use super::values::VniKind;
use super::{CliError, inspect, manifest, services};
use proto::dpdk::dpd_kironcore_client::DpdKironcoreClient;
use proto::{code, dpdk};
use std::net::IpAddr;
use std::path::PathBuf;
use tonic::transport::{Channel, Endpoint};

pub(super) type Client = DpdKironcoreClient<Channel>;

/// Name under which the service logs this client.
const CLIENT_NAME: &str = "dpservice-cli";

pub(super) async fn run(cli: &Cli, format: Format) -> Result<Vec<Printed>, CliError> {
    let channel = connect(cli).await?;
    if let Command::Inspect(what) = &cli.command {
        return Ok(vec![inspect::run(channel, what, cli, format).await?]);
    }
    let client = &mut Client::new(channel);
    let one = match &cli.command {
        Command::Create(args) => match &args.object {
            Some(object) => create(client, object.clone()).await?,
            None => return create_files(client, &args.filename).await,
        },
        Command::Delete(args) => match &args.object {
            Some(object) => delete(client, object.clone()).await?,
            None => return delete_files(client, &args.filename).await,
        },
        Command::Get(what) => get(client, what, cli.wide).await?,
        Command::List(what) => list(client, what, cli.wide).await?,
        Command::Capture(what) => services::capture(client, what).await?,
        Command::Reset(Reset::Vni { vni, vni_type }) => reset(client, *vni, *vni_type).await?,
        Command::Init => initialize(client).await?,
        Command::Completion { .. } | Command::Inspect(_) => return Ok(Vec::new()),
    };
    Ok(vec![one])
}

async fn connect(cli: &Cli) -> Result<Channel, CliError> {
    let address = target(cli.address.as_deref(), std::env::var_os("DP_GRPC_PORT"));
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| CliError::client(format!("\"{address}\" is not an address host:port")))?
        .connect_timeout(cli.connect_timeout);
    let connecting = tokio::time::timeout(cli.connect_timeout, endpoint.connect());
    match connecting.await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(CliError::client(format!(
            "cannot connect to {address}: {}",
            root_cause(&error)
        ))),
        Err(_) => Err(CliError::client(format!(
            "cannot connect to {address}: timed out"
        ))),
    }
}

/// The innermost error, which says what the system said.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Fails if the service refused.
pub(super) fn accept(status: Option<dpdk::Status>) -> Result<(), CliError> {
    let dpdk::Status { code, message } = status.unwrap_or_default();
    if code == code::OK {
        Ok(())
    } else {
        Err(CliError::Server { code, message })
    }
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn address(address: IpAddr) -> dpdk::IpAddress {
    let ipver = match address {
        IpAddr::V4(_) => dpdk::IpVersion::Ipv4,
        IpAddr::V6(_) => dpdk::IpVersion::Ipv6,
    };
    dpdk::IpAddress {
        ipver: ipver.into(),
        address: address.to_string().into_bytes(),
    }
}

pub(super) fn prefix_message(prefix: Prefix) -> dpdk::Prefix {
    let length = u32::from(prefix.length);
    dpdk::Prefix {
        ip: Some(address(prefix.address)),
        length,
        underlay_route: Vec::new(),
    }
}

pub(super) fn underlay_bytes(underlay: Option<std::net::Ipv6Addr>) -> Vec<u8> {
    underlay
        .map(|address| address.to_string().into_bytes())
        .unwrap_or_default()
}

/// A refusal of the service concerns the object and is printed with its name; other errors concern the whole command.
fn settle(
    object: Result<Object, CliError>,
    (kind, name): (&'static str, String),
    operation: &'static str,
) -> Result<Printed, CliError> {
    match object {
        Ok(object) => Ok(Printed::One { object, operation }),
        Err(error @ CliError::Server { .. }) => Ok(Printed::Failed { kind, name, error }),
        Err(error) => Err(error),
    }
}

async fn create(client: &mut Client, object: Create) -> Result<Printed, CliError> {
    let identity = object.identity();
    let created = create_object(client, object).await;
    settle(created, identity, "created")
}

async fn create_object(client: &mut Client, object: Create) -> Result<Object, CliError> {
    Ok(match object {
        Create::Interface(args) => create_interface(client, args).await?,
        Create::Prefix(args) => create_prefix(client, args).await?,
        Create::Route(args) => create_route(client, args).await?,
        Create::LbPrefix(args) => services::create_lb_prefix(client, args).await?,
        Create::VirtualIp(args) => services::create_vip(client, args).await?,
        Create::LoadBalancer(args) => services::create_load_balancer(client, args).await?,
        Create::LbTarget(args) => services::create_lb_target(client, args).await?,
        Create::Nat(args) => services::create_nat(client, args).await?,
        Create::NeighborNat(args) => services::create_neighbor_nat(client, args).await?,
        Create::FirewallRule(args) => services::create_rule(client, args).await?,
    })
}

async fn create_interface(client: &mut Client, args: CreateInterface) -> Result<Object, CliError> {
    let request = dpdk::CreateInterfaceRequest {
        interface_type: dpdk::InterfaceType::Virtual.into(),
        interface_id: args.id.clone().into_bytes(),
        vni: args.vni,
        ipv4_config: Some(dpdk::IpConfig {
            primary_address: args.ipv4.to_string().into_bytes(),
        }),
        ipv6_config: Some(dpdk::IpConfig {
            primary_address: args.ipv6.to_string().into_bytes(),
        }),
        pxe_config: Some(dpdk::PxeConfig {
            next_server: args.pxe_server.clone(),
            boot_filename: args.pxe_file_name.clone(),
        }),
        device_name: args.device.clone(),
        metering_parameters: Some(dpdk::MeteringParams {
            total_rate: args.total_meter_rate,
            public_rate: args.public_meter_rate,
        }),
        preferred_underlay_route: underlay_bytes(args.underlay),
        firewall_rules: Vec::new(),
        hostname: args.hostname.clone(),
    };
    let reply = client.create_interface(request).await?.into_inner();
    accept(reply.status)?;
    let interface = dpdk::Interface {
        id: args.id.into_bytes(),
        vni: args.vni,
        primary_ipv4: args.ipv4.to_string().into_bytes(),
        primary_ipv6: args.ipv6.to_string().into_bytes(),
        underlay_route: reply.underlay_route,
        pci_name: args.device,
        metering_params: Some(dpdk::MeteringParams {
            total_rate: args.total_meter_rate,
            public_rate: args.public_meter_rate,
        }),
        hostname: args.hostname,
    };
    let mut object = show_interface(&interface);
    let name = reply.vf.unwrap_or_default().name;
    object.spec.push((
        "virtual_function",
        Tree::Map(vec![("name", Tree::text(&name))]),
    ));
    if !args.pxe_server.is_empty() {
        object.spec.push((
            "pxe",
            Tree::Map(vec![
                ("next_server", Tree::text(args.pxe_server)),
                ("boot_filename", Tree::text(args.pxe_file_name)),
            ]),
        ));
    }
    object.cells.push(("VirtualFunction", name));
    Ok(object)
}

async fn create_prefix(client: &mut Client, args: CreatePrefix) -> Result<Object, CliError> {
    let request = dpdk::CreatePrefixRequest {
        interface_id: args.interface_id.clone().into_bytes(),
        prefix: Some(prefix_message(args.prefix)),
        preferred_underlay_route: underlay_bytes(args.underlay),
    };
    let reply = client.create_prefix(request).await?.into_inner();
    accept(reply.status)?;
    Ok(show_prefix(
        &args.interface_id,
        None,
        &args.prefix.to_string(),
        &reply.underlay_route,
    ))
}

async fn create_route(client: &mut Client, args: CreateRoute) -> Result<Object, CliError> {
    let route = dpdk::Route {
        prefix: Some(prefix_message(args.prefix)),
        nexthop_vni: args.next_hop_vni,
        nexthop_address: Some(address(args.next_hop_ip)),
        weight: 100,
    };
    let request = dpdk::CreateRouteRequest {
        vni: args.vni,
        route: Some(route.clone()),
        replace: false,
    };
    let reply = client.create_route(request).await?.into_inner();
    accept(reply.status)?;
    Ok(show_route(args.vni, &route))
}

async fn delete(client: &mut Client, object: Delete) -> Result<Printed, CliError> {
    let identity = object.identity();
    let deleted = delete_object(client, object).await;
    settle(deleted, identity, "deleted")
}

async fn delete_object(client: &mut Client, object: Delete) -> Result<Object, CliError> {
    Ok(match object {
        Delete::Interface { id } => delete_interface(client, id).await?,
        Delete::Prefix {
            prefix,
            interface_id,
        } => delete_prefix(client, prefix, interface_id).await?,
        Delete::Route { prefix, vni } => delete_route(client, prefix, vni).await?,
        Delete::LbPrefix {
            prefix,
            interface_id,
        } => services::delete_lb_prefix(client, prefix, interface_id).await?,
        Delete::VirtualIp { interface_id } => services::delete_vip(client, interface_id).await?,
        Delete::LoadBalancer { id } => services::delete_load_balancer(client, id).await?,
        Delete::LbTarget(args) => services::delete_lb_target(client, args).await?,
        Delete::Nat { interface_id } => services::delete_nat(client, interface_id).await?,
        Delete::NeighborNat(key) => services::delete_neighbor_nat(client, key).await?,
        Delete::FirewallRule {
            interface_id,
            rule_id,
        } => services::delete_rule(client, interface_id, rule_id).await?,
    })
}

async fn delete_interface(client: &mut Client, id: String) -> Result<Object, CliError> {
    let request = dpdk::DeleteInterfaceRequest {
        interface_id: id.clone().into_bytes(),
    };
    accept(client.delete_interface(request).await?.into_inner().status)?;
    let metadata = vec![("id", Tree::text(&id))];
    Ok(bare("Interface", id.clone(), metadata, vec![("ID", id)]))
}

async fn delete_prefix(
    client: &mut Client,
    prefix: Prefix,
    interface_id: String,
) -> Result<Object, CliError> {
    let request = dpdk::DeletePrefixRequest {
        interface_id: interface_id.clone().into_bytes(),
        prefix: Some(prefix_message(prefix)),
    };
    accept(client.delete_prefix(request).await?.into_inner().status)?;
    let metadata = vec![("interface_id", Tree::text(&interface_id))];
    let cells = vec![
        ("Prefix", prefix.to_string()),
        ("InterfaceID", interface_id),
    ];
    let mut object = bare("Prefix", prefix.to_string(), metadata, cells);
    object.spec = vec![("prefix", Tree::text(prefix))];
    Ok(object)
}

async fn delete_route(client: &mut Client, prefix: Prefix, vni: u32) -> Result<Object, CliError> {
    let route = dpdk::Route {
        prefix: Some(prefix_message(prefix)),
        ..Default::default()
    };
    let request = dpdk::DeleteRouteRequest {
        vni,
        route: Some(route),
    };
    accept(client.delete_route(request).await?.into_inner().status)?;
    let cells = vec![("Prefix", prefix.to_string()), ("VNI", vni.to_string())];
    let metadata = vec![("vni", Tree::number(vni))];
    let mut object = bare("Route", route_name(&prefix, 0), metadata, cells);
    object.spec = vec![("prefix", Tree::text(prefix))];
    Ok(object)
}

/// An object of which only the key is known.
pub(super) fn bare(
    kind: &'static str,
    name: String,
    metadata: Vec<(&'static str, Tree)>,
    cells: Vec<(&'static str, String)>,
) -> Object {
    Object {
        kind,
        name,
        metadata,
        spec: Vec::new(),
        cells,
        wide_cells: Vec::new(),
    }
}

async fn create_files(client: &mut Client, files: &[PathBuf]) -> Result<Vec<Printed>, CliError> {
    let mut printed = Vec::new();
    for object in manifest::read(files)? {
        let (kind, name) = object.identity();
        let outcome = create(client, object).await;
        printed.push(outcome.unwrap_or_else(|error| Printed::Failed { kind, name, error }));
    }
    Ok(printed)
}

async fn delete_files(client: &mut Client, files: &[PathBuf]) -> Result<Vec<Printed>, CliError> {
    let mut printed = Vec::new();
    // What was created last depends on what was created first.
    for object in manifest::read(files)?.into_iter().rev() {
        let (kind, name) = object.identity();
        let outcome = delete(client, object.into_delete()).await;
        printed.push(outcome.unwrap_or_else(|error| Printed::Failed { kind, name, error }));
    }
    Ok(printed)
}

async fn get(client: &mut Client, what: &Get, wide: bool) -> Result<Printed, CliError> {
    let object = match what {
        Get::Interface { id } if id.is_empty() => return list_interfaces(client, "", wide).await,
        Get::Interface { id } => {
            let request = dpdk::GetInterfaceRequest {
                interface_id: id.clone().into_bytes(),
            };
            let reply = client.get_interface(request).await?.into_inner();
            accept(reply.status)?;
            let mut object = show_interface(&reply.interface.unwrap_or_default());
            add_translation(client, &mut object, wide).await?;
            object
        }
        Get::Prefix { interface_id } => return list_prefixes(client, interface_id, "").await,
        Get::Route { vni } => return list_routes(client, *vni, "").await,
        Get::LbPrefix { interface_id } => {
            return services::list_lb_prefixes(client, interface_id, "").await;
        }
        Get::VirtualIp { interface_id } => services::get_vip(client, interface_id).await?,
        Get::LoadBalancer { id } if id.is_empty() => {
            return services::list_load_balancers(client, "").await;
        }
        Get::LoadBalancer { id } => services::get_load_balancer(client, id).await?,
        Get::LbTarget { lb_id } => return services::list_lb_targets(client, lb_id, "").await,
        Get::Nat { interface_id } => services::get_nat(client, interface_id).await?,
        Get::FirewallRule {
            interface_id,
            rule_id,
        } if rule_id.is_empty() => return services::list_rules(client, interface_id, "").await,
        Get::FirewallRule {
            interface_id,
            rule_id,
        } => services::get_rule(client, interface_id, rule_id).await?,
        Get::Vni { vni, vni_type } => {
            let r#type = kind_message(*vni_type).into();
            let request = dpdk::CheckVniInUseRequest { vni: *vni, r#type };
            let reply = client.check_vni_in_use(request).await?.into_inner();
            accept(reply.status)?;
            let mut object = show_vni(*vni, *vni_type);
            object.spec.push(("in_use", Tree::Bool(reply.in_use)));
            object.cells.push(("inUse", reply.in_use.to_string()));
            object
        }
        Get::Version => version(client).await?,
        Get::Init => {
            let request = dpdk::CheckInitializedRequest {};
            let reply = client.check_initialized(request).await?.into_inner();
            accept(reply.status)?;
            show_initialized(reply.uuid)
        }
    };
    Ok(Printed::One {
        object,
        operation: "",
    })
}

async fn list(client: &mut Client, what: &List, wide: bool) -> Result<Printed, CliError> {
    match what {
        List::Interfaces { sort } => list_interfaces(client, &sort.sort_by, wide).await,
        List::Prefixes { interface_id, sort } => {
            list_prefixes(client, interface_id, &sort.sort_by).await
        }
        List::Routes { vni, sort } => list_routes(client, *vni, &sort.sort_by).await,
        List::LbPrefixes { interface_id, sort } => {
            services::list_lb_prefixes(client, interface_id, &sort.sort_by).await
        }
        List::LbTargets { lb_id, sort } => {
            services::list_lb_targets(client, lb_id, &sort.sort_by).await
        }
        List::Nats {
            nat_ip,
            nat_type,
            sort,
        } => services::list_nats(client, *nat_ip, *nat_type, &sort.sort_by).await,
        List::LoadBalancers { sort } => services::list_load_balancers(client, &sort.sort_by).await,
        List::FirewallRules { interface_id, sort } => {
            services::list_rules(client, interface_id, &sort.sort_by).await
        }
    }
}

/// Sorts by `column`, or by the kind's own order if none was asked for.
pub(super) fn sorted(
    mut objects: Vec<Object>,
    column: &str,
    own: &str,
) -> Result<Vec<Object>, CliError> {
    sort(&mut objects, if column.is_empty() { own } else { column })?;
    Ok(objects)
}

pub(super) async fn interfaces(client: &mut Client) -> Result<Vec<dpdk::Interface>, CliError> {
    let reply = client
        .list_interfaces(dpdk::ListInterfacesRequest {})
        .await?
        .into_inner();
    accept(reply.status)?;
    Ok(reply.interfaces)
}

async fn list_interfaces(
    client: &mut Client,
    column: &str,
    wide: bool,
) -> Result<Printed, CliError> {
    let found = interfaces(client).await?;
    let mut objects: Vec<Object> = found.iter().map(show_interface).collect();
    for object in &mut objects {
        add_translation(client, object, wide).await?;
    }
    let objects = sorted(objects, column, "ID")?;
    Ok(Printed::Many {
        kind: "InterfaceList",
        metadata: Vec::new(),
        objects,
    })
}

/// In wide output: which public addresses an interface uses. Asked for one by one; having none is no failure.
async fn add_translation(
    client: &mut Client,
    object: &mut Object,
    wide: bool,
) -> Result<(), CliError> {
    if !wide {
        return Ok(());
    }
    let mut cells = Vec::new();
    let nat = services::get_nat(client, &object.name).await;
    let vip = services::get_vip(client, &object.name).await;
    for (key, column, found) in [("nat", "Nat", nat), ("vip", "VirtualIP", vip)] {
        let text = match found {
            Ok(found) => {
                let text = found.brief();
                object.spec.push((key, found.tree()));
                text
            }
            Err(CliError::Server { .. }) => String::new(),
            Err(error) => return Err(error),
        };
        cells.push((column, text));
    }
    object.wide_cells = cells;
    Ok(())
}

/// The interface of this id, of which nothing else is known, or for the empty id all interfaces.
pub(super) async fn interfaces_wanted(
    client: &mut Client,
    id: &str,
) -> Result<Vec<dpdk::Interface>, CliError> {
    if id.is_empty() {
        return interfaces(client).await;
    }
    Ok(vec![dpdk::Interface {
        id: id.as_bytes().to_vec(),
        ..Default::default()
    }])
}

async fn list_prefixes(
    client: &mut Client,
    interface_id: &str,
    column: &str,
) -> Result<Printed, CliError> {
    let mut objects = Vec::new();
    for interface in interfaces_wanted(client, interface_id).await? {
        let request = dpdk::ListPrefixesRequest {
            interface_id: interface.id.clone(),
        };
        let reply = client.list_prefixes(request).await?.into_inner();
        accept(reply.status)?;
        let vni = (interface.vni != 0).then_some(interface.vni);
        for prefix in reply.prefixes {
            let shown = prefix_text(&prefix);
            objects.push(show_prefix(
                &text(&interface.id),
                vni,
                &shown,
                &prefix.underlay_route,
            ));
        }
    }
    let metadata = vec![("interface_id", Tree::text(interface_id))];
    let objects = sorted(objects, column, "Prefix")?;
    Ok(Printed::Many {
        kind: "PrefixList",
        metadata,
        objects,
    })
}

async fn list_routes(client: &mut Client, vni: u32, column: &str) -> Result<Printed, CliError> {
    let reply = client
        .list_routes(dpdk::ListRoutesRequest { vni })
        .await?
        .into_inner();
    accept(reply.status)?;
    let objects = reply
        .routes
        .iter()
        .map(|route| show_route(vni, route))
        .collect();
    let objects = sorted(objects, column, "Prefix")?;
    Ok(Printed::Many {
        kind: "RouteList",
        metadata: vec![("vni", Tree::number(vni))],
        objects,
    })
}

async fn reset(client: &mut Client, vni: u32, kind: VniKind) -> Result<Printed, CliError> {
    let request = dpdk::ResetVniRequest {
        vni,
        r#type: kind_message(kind).into(),
    };
    accept(client.reset_vni(request).await?.into_inner().status)?;
    Ok(Printed::One {
        object: show_vni(vni, kind),
        operation: "reset",
    })
}

async fn initialize(client: &mut Client) -> Result<Printed, CliError> {
    match client
        .check_initialized(dpdk::CheckInitializedRequest {})
        .await
    {
        Ok(reply) => {
            let uuid = reply.into_inner().uuid;
            return Err(CliError::client(format!(
                "the service is already initialized, uuid: {uuid}"
            )));
        }
        Err(status) if status.code() == tonic::Code::Aborted => {}
        Err(status) => return Err(status.into()),
    }
    let reply = client
        .initialize(dpdk::InitializeRequest {})
        .await?
        .into_inner();
    accept(reply.status)?;
    Ok(Printed::One {
        object: show_initialized(reply.uuid),
        operation: "initialized",
    })
}

async fn version(client: &mut Client) -> Result<Object, CliError> {
    let request = dpdk::GetVersionRequest {
        client_protocol: crate::VERSION.to_owned(),
        client_name: CLIENT_NAME.to_owned(),
        client_version: crate::VERSION.to_owned(),
    };
    let reply = client.get_version(request).await?.into_inner();
    accept(reply.status)?;
    let client_fields = [
        ("client_protocol", "ClientProto", crate::VERSION),
        ("client_name", "ClientName", CLIENT_NAME),
        ("client_version", "ClientVersion", crate::VERSION),
    ];
    let metadata = client_fields
        .map(|(key, _, value)| (key, Tree::text(value)))
        .to_vec();
    let cells = vec![
        ("ServiceProto", reply.service_protocol.clone()),
        ("ServiceVersion", reply.service_version.clone()),
        ("ClientName", CLIENT_NAME.to_owned()),
        ("ClientProto", crate::VERSION.to_owned()),
        ("ClientVersion", crate::VERSION.to_owned()),
    ];
    let mut object = bare("Version", CLIENT_NAME.to_owned(), metadata, cells);
    object.spec = vec![
        ("service_protocol", Tree::text(reply.service_protocol)),
        ("service_version", Tree::text(reply.service_version)),
    ];
    Ok(object)
}

fn show_interface(interface: &dpdk::Interface) -> Object {
    let id = text(&interface.id);
    let metering = interface.metering_params.unwrap_or_default();
    let rates = [
        ("total_rate", metering.total_rate),
        ("public_rate", metering.public_rate),
    ];
    let set = rates.into_iter().filter(|(_, rate)| *rate != 0);
    let (ipv4, ipv6) = (text(&interface.primary_ipv4), text(&interface.primary_ipv6));
    let underlay = text(&interface.underlay_route);
    let mut spec = vec![
        ("vni", Tree::number(interface.vni)),
        ("device", Tree::text(&interface.pci_name)),
        ("primary_ipv4", Tree::text(&ipv4)),
        ("primary_ipv6", Tree::text(&ipv6)),
        ("underlay_route", Tree::text(&underlay)),
        (
            "metering",
            Tree::Map(set.map(|(name, rate)| (name, Tree::Number(rate))).collect()),
        ),
    ];
    if !interface.hostname.is_empty() {
        spec.push(("hostname", Tree::text(&interface.hostname)));
    }
    Object {
        kind: "Interface",
        name: id.clone(),
        metadata: vec![("id", Tree::text(&id))],
        spec,
        cells: vec![
            ("ID", id),
            ("VNI", interface.vni.to_string()),
            ("Device", interface.pci_name.clone()),
            ("IPv4", ipv4),
            ("IPv6", ipv6),
            ("UnderlayRoute", underlay),
            ("TotalTx", metering.total_rate.to_string()),
            ("PublicTx", metering.public_rate.to_string()),
            ("Hostname", interface.hostname.clone()),
        ],
        wide_cells: vec![("Nat", String::new()), ("VirtualIP", String::new())],
    }
}

pub(super) fn prefix_text(prefix: &dpdk::Prefix) -> String {
    let address = prefix
        .ip
        .as_ref()
        .map(|ip| text(&ip.address))
        .unwrap_or_default();
    format!("{address}/{}", prefix.length)
}

pub(super) fn show_prefix(
    interface_id: &str,
    vni: Option<u32>,
    prefix: &str,
    underlay: &[u8],
) -> Object {
    let underlay = text(underlay);
    let cells = vec![
        ("VNI", vni.map(|vni| vni.to_string()).unwrap_or_default()),
        ("Prefix", prefix.to_owned()),
        ("UnderlayRoute", underlay.clone()),
        ("InterfaceID", interface_id.to_owned()),
    ];
    let metadata = vec![("interface_id", Tree::text(interface_id))];
    let mut object = bare("Prefix", prefix.to_owned(), metadata, cells);
    object.spec = vec![
        ("prefix", Tree::text(prefix)),
        ("underlay_route", Tree::text(underlay)),
    ];
    object
}

/// Routes are named after their prefix and the network at the other host, which a delete does not know.
pub(super) fn route_name(prefix: &dyn std::fmt::Display, next_hop_vni: u32) -> String {
    format!("{prefix}-{next_hop_vni}")
}

fn show_route(vni: u32, route: &dpdk::Route) -> Object {
    let prefix = route.prefix.as_ref().map(prefix_text).unwrap_or_default();
    let hop = route
        .nexthop_address
        .as_ref()
        .map(|ip| text(&ip.address))
        .unwrap_or_default();
    let cells = vec![
        ("Prefix", prefix.clone()),
        ("VNI", vni.to_string()),
        ("NextHopVNI", route.nexthop_vni.to_string()),
        ("NextHopIP", hop.clone()),
    ];
    let name = route_name(&prefix, route.nexthop_vni);
    let mut object = bare("Route", name, vec![("vni", Tree::number(vni))], cells);
    object.spec = vec![
        ("prefix", Tree::text(prefix)),
        (
            "next_hop",
            Tree::Map(vec![
                ("vni", Tree::number(route.nexthop_vni)),
                ("address", Tree::text(hop)),
            ]),
        ),
    ];
    object
}

fn kind_message(kind: VniKind) -> dpdk::VniType {
    match kind {
        VniKind::Ipv4 => dpdk::VniType::VniIpv4,
        VniKind::Ipv6 => dpdk::VniType::VniIpv6,
        VniKind::Both => dpdk::VniType::VniBoth,
    }
}

fn show_vni(vni: u32, kind: VniKind) -> Object {
    let number = i32::from(kind_message(kind)).unsigned_abs();
    let metadata = vec![
        ("vni", Tree::number(vni)),
        ("vni_type", Tree::number(number)),
    ];
    let kind = match kind {
        VniKind::Ipv4 => "IPv4",
        VniKind::Ipv6 => "IPv6",
        VniKind::Both => "Both",
    };
    let cells = vec![("VNI", vni.to_string()), ("VniType", kind.to_owned())];
    bare("Vni", vni.to_string(), metadata, cells)
}

fn show_initialized(uuid: String) -> Object {
    let mut object = bare(
        "Initialized",
        "initialized".to_owned(),
        Vec::new(),
        vec![("UUID", uuid.clone())],
    );
    object.spec = vec![("uuid", Tree::text(uuid))];
    object
}
