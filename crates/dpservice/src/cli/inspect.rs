//! `inspect`: tables, the explanation of a packet, and the live trace, by the service's own inspection protocol.

use super::CliError;
use super::args::{Cli, Format};
use super::output::{Printed, text_table};
use super::pcap;
use clap::{Args, Subcommand, ValueEnum};
use proto::inspection::explain_request::{Ingress, Packet};
use proto::inspection::inspection_client::InspectionClient;
use proto::inspection::verdict::Kind;
use proto::inspection::{
    ExplainRequest, ExplainResponse, FlowTuple, ListRowsRequest, ListRowsResponse, RowFilter,
    Table, TraceEvent, TraceRequest, Verdict,
};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use tonic::transport::Channel;

type Client = InspectionClient<Channel>;

/// What to look at.
#[derive(Debug, Subcommand)]
pub(crate) enum Inspect {
    /// List the rows of a table.
    #[command(flatten)]
    List(TableName),
    /// Tell what would become of a packet, and why. Nothing changes.
    Explain(Explain),
    /// Show packets as they are decided.
    Trace(Trace),
}

/// Tables.
#[derive(Debug, Subcommand)]
pub(crate) enum TableName {
    /// How full each table is.
    #[command(visible_alias = "list")]
    Tables(Rows),
    /// Connections, both directions.
    #[command(visible_alias = "conntrack")]
    Flows(Rows),
    /// NAT ports in use.
    #[command(visible_alias = "portmap")]
    Nat(Rows),
    /// Addresses that machines use towards the internet.
    Snat(Rows),
    /// Addresses that stand for machines or for other hosts' ports.
    Dnat(Rows),
    /// Routes to other hosts.
    Routes(Rows),
    /// Interfaces.
    #[command(visible_aliases = ["iface", "ifaces", "interface"])]
    Interfaces(Rows),
    /// Underlay addresses of this host.
    #[command(visible_alias = "vnf")]
    Underlay(Rows),
    /// Load balancers.
    #[command(name = "loadbalancers", visible_alias = "lb")]
    LoadBalancers(Rows),
    /// Rules of packet filters, with the connections that each has decided.
    #[command(visible_alias = "firewallrules")]
    Firewall(Rows),
    /// Networks.
    #[command(visible_alias = "vni")]
    Vnis(Rows),
    /// Ports with their counters.
    Ports(Rows),
}

/// Which rows.
#[derive(Clone, Debug, Args)]
pub(crate) struct Rows {
    /// Only rows of this interface.
    #[arg(long)]
    interface_id: Option<String>,
    /// Only rows with this address, or with a prefix that contains it.
    #[arg(long)]
    ip: Option<IpAddr>,
    /// Only rows with this port.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Only rows of this network.
    #[arg(long)]
    vni: Option<u32>,
    /// Most rows, up to 10000.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

/// A packet: where it comes in, and what it shows.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub(crate) struct Explain {
    /// It comes from the machine of this interface.
    #[arg(
        long,
        required_unless_present = "underlay",
        conflicts_with = "underlay"
    )]
    interface_id: Option<String>,
    /// It comes through a tunnel that ends at this underlay address of the host.
    #[arg(long)]
    underlay: Option<Ipv6Addr>,
    /// Source address.
    #[arg(long)]
    src: IpAddr,
    /// Destination address.
    #[arg(long)]
    dst: IpAddr,
    /// Transport.
    #[arg(long, value_enum, default_value_t = Transport::Tcp)]
    protocol: Transport,
    /// Source port, or identifier of an echo request.
    #[arg(long, default_value_t = 49_152)]
    src_port: u16,
    /// Destination port.
    #[arg(long, default_value_t = 0)]
    dst_port: u16,
    /// Bytes of payload.
    #[arg(long, default_value_t = 0)]
    payload: u32,
    /// As if no connection were tracked.
    #[arg(long)]
    new: bool,
}

/// Transports of packets that can be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Transport {
    Tcp,
    Udp,
    /// Echo request.
    Icmp,
}

/// Which packets, and for how long.
#[derive(Clone, Debug, Args)]
pub(crate) struct Trace {
    /// Only packets from or to the machine of this interface.
    #[arg(long)]
    interface_id: Option<String>,
    /// Only packets with this source or destination, inside the tunnel.
    #[arg(long)]
    ip: Option<IpAddr>,
    /// Only packets with this source or destination port, or echo identifier.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Only packets of this IP protocol number, such as 6 or 17.
    #[arg(long)]
    protocol: Option<u8>,
    /// Only packets that are discarded.
    #[arg(long)]
    drops: bool,
    /// Most packets, up to 100000.
    #[arg(short = 'c', long, visible_alias = "maxcount", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Longest duration, up to an hour.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// Also write the packets, as they come in and as they leave, to this capture file.
    #[arg(long)]
    pcap: Option<PathBuf>,
}

/// Runs a command. A trace is printed as it comes.
pub(super) async fn run(
    channel: Channel,
    what: &Inspect,
    cli: &Cli,
    format: Format,
) -> Result<Printed, CliError> {
    let mut client = Client::new(channel);
    match what {
        Inspect::List(table) => list(&mut client, table, format, cli.pretty).await,
        Inspect::Explain(args) => explain(&mut client, args, format, cli.pretty).await,
        Inspect::Trace(args) => trace(&mut client, args, format).await,
    }
}

fn encode(value: &Value, format: Format, pretty: bool) -> Printed {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value).map_err(|error| error.to_string()),
        _ if pretty => serde_json::to_string_pretty(value).map_err(|error| error.to_string()),
        _ => Ok(value.to_string()),
    };
    // Values of text and numbers always encode; an impossible failure is shown rather than hidden.
    let text = text.unwrap_or_else(|error| error);
    Printed::Text(format!("{}\n", text.trim_end()))
}

// ---- tables ----------------------------------------------------------------------------------------------------------------

fn table_of(name: &TableName) -> (Table, &Rows) {
    match name {
        TableName::Tables(rows) => (Table::Tables, rows),
        TableName::Flows(rows) => (Table::Flows, rows),
        TableName::Nat(rows) => (Table::Nat, rows),
        TableName::Snat(rows) => (Table::Snat, rows),
        TableName::Dnat(rows) => (Table::Dnat, rows),
        TableName::Routes(rows) => (Table::Routes, rows),
        TableName::Interfaces(rows) => (Table::Interfaces, rows),
        TableName::Underlay(rows) => (Table::Underlay, rows),
        TableName::LoadBalancers(rows) => (Table::LoadBalancers, rows),
        TableName::Firewall(rows) => (Table::Firewall, rows),
        TableName::Vnis(rows) => (Table::Vnis, rows),
        TableName::Ports(rows) => (Table::Ports, rows),
    }
}

async fn list(
    client: &mut Client,
    name: &TableName,
    format: Format,
    pretty: bool,
) -> Result<Printed, CliError> {
    let (table, rows) = table_of(name);
    let request = ListRowsRequest {
        table: table.into(),
        filter: Some(RowFilter {
            interface_id: rows.interface_id.clone().unwrap_or_default(),
            address: rows
                .ip
                .map_or_else(String::new, |address| address.to_string()),
            port: u32::from(rows.port.unwrap_or(0)),
            vni: rows.vni.unwrap_or(0),
        }),
        limit: rows.limit,
    };
    let ListRowsResponse {
        columns,
        rows: found,
        truncated,
    } = client.list_rows(request).await?.into_inner();
    match format {
        Format::Json | Format::Yaml => {
            let items: Vec<Value> = found
                .into_iter()
                .map(|row| {
                    let names = columns.iter().map(|name| name.to_lowercase());
                    let cells = row.cells.into_iter().map(Value::String);
                    Value::Object(names.zip(cells).collect::<Map<_, _>>())
                })
                .collect();
            let value = json!({
                "kind": "InspectList",
                "metadata": {"table": table.as_str_name().to_lowercase(), "truncated": truncated},
                "items": items,
            });
            Ok(encode(&value, format, pretty))
        }
        Format::Table | Format::Name => {
            let shown = found.len();
            let lines = std::iter::once(columns);
            let lines: Vec<_> = lines
                .chain(found.into_iter().map(|row| row.cells))
                .collect();
            let mut text = text_table(&lines);
            if truncated {
                // Writing to a string cannot fail.
                let _ = writeln!(
                    text,
                    "# the first {shown} rows; there are more (--limit, or filters)"
                );
            }
            Ok(Printed::Text(text))
        }
    }
}

// ---- explanation -----------------------------------------------------------------------------------------------------------

async fn explain(
    client: &mut Client,
    args: &Explain,
    format: Format,
    pretty: bool,
) -> Result<Printed, CliError> {
    let protocol = match (args.protocol, args.src) {
        (Transport::Tcp, _) => net::protocol::TCP,
        (Transport::Udp, _) => net::protocol::UDP,
        (Transport::Icmp, IpAddr::V4(_)) => net::protocol::ICMP,
        (Transport::Icmp, IpAddr::V6(_)) => net::protocol::ICMPV6,
    };
    let ingress = match (&args.interface_id, args.underlay) {
        (Some(id), _) => Some(Ingress::InterfaceId(id.clone())),
        (None, underlay) => underlay.map(|underlay| Ingress::Underlay(underlay.to_string())),
    };
    let request = ExplainRequest {
        ingress,
        packet: Some(Packet::Tuple(FlowTuple {
            source: args.src.to_string(),
            destination: args.dst.to_string(),
            protocol: u32::from(protocol),
            source_port: u32::from(args.src_port),
            destination_port: u32::from(args.dst_port),
        })),
        payload_length: args.payload,
        ignore_connections: args.new,
    };
    let response = client.explain(request).await?.into_inner();
    let verdict = response.verdict.clone().unwrap_or_default();
    match format {
        Format::Json | Format::Yaml => Ok(encode(&explanation(&response), format, pretty)),
        Format::Name => Ok(Printed::Text(format!("{}\n", outcome(&verdict)))),
        Format::Table => {
            let header = vec!["STAGE".to_owned(), "WHAT".to_owned()];
            let stages = response.stages.into_iter();
            let lines: Vec<_> = std::iter::once(header)
                .chain(stages.map(|stage| vec![stage.name, stage.text]))
                .chain([vec!["verdict".to_owned(), outcome(&verdict)]])
                .collect();
            Ok(Printed::Text(text_table(&lines)))
        }
    }
}

fn tuple_value(tuple: &FlowTuple) -> Value {
    json!({
        "source": tuple.source, "destination": tuple.destination, "protocol": tuple.protocol,
        "source_port": tuple.source_port, "destination_port": tuple.destination_port,
    })
}

fn verdict_value(verdict: &Verdict) -> Value {
    json!({
        "kind": verdict.kind().as_str_name().to_lowercase(), "reason": verdict.reason,
        "device": verdict.device, "interface_id": verdict.interface_id,
        "underlay_source": verdict.underlay_source, "underlay_destination": verdict.underlay_destination,
    })
}

fn explanation(response: &ExplainResponse) -> Value {
    let stages = response.stages.iter();
    let stages = stages.map(|stage| json!({"name": stage.name, "text": stage.text}));
    let filter = |result: &Option<proto::inspection::FilterResult>| {
        result.as_ref().map(|result| {
            json!({
                "interface_id": result.interface_id, "rules": result.rules,
                "rule_id": result.rule_id, "accepts": result.accepts,
            })
        })
    };
    json!({
        "kind": "Explanation",
        "spec": {
            "stages": stages.collect::<Vec<_>>(),
            "verdict": response.verdict.as_ref().map(verdict_value),
            "known_connection": response.known_connection,
            "subject": response.subject.as_ref().map(|subject| json!({
                "interface_id": subject.interface_id, "vni": subject.vni, "kind": subject.kind,
            })),
            "route": response.route.as_ref().map(|route| json!({
                "vni": route.vni, "prefix": route.prefix, "kind": route.kind,
                "interface_id": route.interface_id, "next_hop": route.next_hop, "next_hop_vni": route.next_hop_vni,
            })),
            "egress": filter(&response.egress),
            "ingress": filter(&response.ingress),
            "shows": response.shows.as_ref().map(tuple_value),
            "leaves": response.leaves.as_ref().map(tuple_value),
            "service": response.service,
        },
    })
}

fn outcome(verdict: &Verdict) -> String {
    let Verdict {
        kind: _,
        reason,
        device,
        interface_id,
        underlay_source: _,
        underlay_destination,
    } = verdict;
    match verdict.kind() {
        Kind::Drop => format!("drop: {reason}"),
        Kind::Deliver => format!("deliver to {interface_id} on {device}"),
        Kind::Encapsulate => format!("encapsulate to {underlay_destination} on {device}"),
        Kind::Reply => format!("reply on {device}"),
        Kind::Transmit => format!("transmit on {device}"),
    }
}

// ---- trace -----------------------------------------------------------------------------------------------------------------

async fn trace(client: &mut Client, args: &Trace, format: Format) -> Result<Printed, CliError> {
    let local = |error: std::io::Error| CliError::client(error.to_string());
    let mut file = match &args.pcap {
        Some(path) => Some(pcap::Writer::create(path).map_err(local)?),
        None => None,
    };
    let request = TraceRequest {
        interface_id: args.interface_id.clone().unwrap_or_default(),
        address: args
            .ip
            .map_or_else(String::new, |address| address.to_string()),
        port: u32::from(args.port.unwrap_or(0)),
        protocol: u32::from(args.protocol.unwrap_or(0)),
        drops: args.drops,
        count: args.count,
        seconds: args.seconds,
        frame_bytes: file.as_ref().map_or(0, |_| pcap::FRAME_BYTES_MAX),
    };
    let mut events = client.trace(request).await?.into_inner();
    let mut lost = 0;
    while let Some(event) = events.message().await? {
        if let Some(file) = &mut file {
            file.write(event.time_ns, event.length, &event.frame)
                .map_err(local)?;
            if !event.frame_after.is_empty() {
                file.write(event.time_ns, event.length_after, &event.frame_after)
                    .map_err(local)?;
            }
        }
        lost = event.lost;
        let line = match format {
            Format::Json | Format::Yaml => event_value(&event).to_string(),
            Format::Table | Format::Name => event_line(&event),
        };
        let mut stdout = std::io::stdout();
        let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
        // Whoever read has gone.
        if written.is_err() {
            break;
        }
    }
    if let Some(file) = file {
        file.finish().map_err(local)?;
    }
    Ok(Printed::Text(match lost {
        0 => String::new(),
        lost => format!("# {lost} packets were left out because they came too fast\n"),
    }))
}

fn event_value(event: &TraceEvent) -> Value {
    json!({
        "time_ns": event.time_ns, "number": event.number, "lost": event.lost, "ingress": event.ingress,
        "stages": event.stages, "verdict": event.verdict.as_ref().map(verdict_value),
        "shows": event.shows.as_ref().map(tuple_value), "underlay": event.underlay,
        "length": event.length, "length_after": event.length_after,
    })
}

/// `HH:MM:SS.mmm <number>: <from> -> <stage> -> … -> <to>: <packet>`, times in UTC.
fn event_line(event: &TraceEvent) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(event.time_ns);
    let time = crate::logging::timestamp(time);
    let clock = time.split_once(' ').map_or("", |(_, clock)| clock);
    let verdict = event.verdict.clone().unwrap_or_default();
    let target = match verdict.kind() {
        Kind::Drop => format!("DROP {}", verdict.reason),
        Kind::Deliver | Kind::Encapsulate | Kind::Reply | Kind::Transmit => {
            format!("PORT {}", verdict.device)
        }
    };
    let stages = event.stages.iter().filter(|stage| *stage != "drop");
    let stages: String = stages.map(|stage| format!(" -> {stage}")).collect();
    let packet = match &event.shows {
        Some(shows) => packet_text(shows, &event.underlay),
        None => format!("{} bytes, not IP", event.length),
    };
    let TraceEvent {
        number, ingress, ..
    } = event;
    format!("{clock} {number}: PORT {ingress}{stages} -> {target}: {packet}")
}

fn packet_text(shows: &FlowTuple, underlay: &str) -> String {
    let tunnel = match underlay {
        "" => String::new(),
        underlay => format!("tunnel to {underlay} / "),
    };
    let name = match u8::try_from(shows.protocol) {
        Ok(net::protocol::TCP) => "TCP".to_owned(),
        Ok(net::protocol::UDP) => "UDP".to_owned(),
        Ok(net::protocol::ICMP) => "ICMP".to_owned(),
        Ok(net::protocol::ICMPV6) => "ICMPv6".to_owned(),
        _ => format!("protocol {}", shows.protocol),
    };
    format!(
        "{tunnel}{} -> {} / {name} {} -> {}",
        shows.source, shows.destination, shows.source_port, shows.destination_port
    )
}
