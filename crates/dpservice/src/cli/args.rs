//! Grammar of the command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet_like::PrefixText;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

/// Port of the service unless `DP_GRPC_PORT` or `--address` say otherwise.
const PORT: &str = "1337";

/// Client of dpservice.
///
/// Examples:
///   dpservice-cli init
///   dpservice-cli create interface --id vm1 --vni 100 --ipv4 10.0.0.1 --ipv6 fd00::1 --device net_tap2
///   dpservice-cli create route --vni 100 --prefix 10.0.0.2/32 --next-hop-vni 100 --next-hop-ip 2001:db8:2:0:d000::1
///   dpservice-cli list interfaces -o yaml
#[derive(Debug, Parser)]
#[command(
    name = "dpservice-cli",
    version,
    verbatim_doc_comment,
    disable_version_flag = false,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    /// Address of the service, host:port. The default port can be set by DP_GRPC_PORT.
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,

    /// How long connecting may take, such as 500ms or 4s.
    #[arg(long, global = true, default_value = "4s", value_parser = duration)]
    pub(crate) connect_timeout: Duration,

    /// Output format. Default: name for create, delete and reset, otherwise table.
    #[arg(short, long, global = true, value_enum)]
    pub(crate) output: Option<Format>,

    /// Indent JSON.
    #[arg(long, global = true)]
    pub(crate) pretty: bool,

    /// More columns in tables.
    #[arg(short, long, global = true)]
    pub(crate) wide: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Json,
    Yaml,
    Table,
    Name,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create objects.
    #[command(visible_alias = "add")]
    Create(CreateArgs),
    /// Delete objects.
    #[command(visible_alias = "del")]
    Delete(DeleteArgs),
    /// Show an object.
    #[command(subcommand)]
    Get(Get),
    /// Show all objects of a kind.
    #[command(subcommand)]
    List(List),
    /// Reset objects.
    #[command(subcommand)]
    Reset(Reset),
    /// Initialize the service; refused if it is initialized.
    Init,
    /// Print the completion script of a shell.
    Completion { shell: clap_complete::Shell },
}

/// A kind with its fields, or files with objects.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(crate) struct CreateArgs {
    /// File or directory with objects in JSON or YAML; repeatable.
    #[arg(short, long)]
    pub(crate) filename: Vec<PathBuf>,
    #[command(subcommand)]
    pub(crate) object: Option<Create>,
}

/// A kind with its key, or files with objects.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(crate) struct DeleteArgs {
    /// File or directory with objects in JSON or YAML; repeatable.
    #[arg(short, long)]
    pub(crate) filename: Vec<PathBuf>,
    #[command(subcommand)]
    pub(crate) object: Option<Delete>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Create {
    /// Attach an interface to a device.
    #[command(visible_aliases = ["interfaces", "iface", "ifaces"])]
    Interface(CreateInterface),
    /// Deliver a further prefix to an interface.
    #[command(visible_aliases = ["prefixes", "prfx", "prfxs"])]
    Prefix(CreatePrefix),
    /// Add a route to another host.
    #[command(visible_aliases = ["routes", "rt", "rts"])]
    Route(CreateRoute),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CreateInterface {
    /// Name of the interface: 1 to 63 letters, digits, `-` and `_`.
    #[arg(long)]
    pub(crate) id: String,
    /// Virtual network.
    #[arg(long)]
    pub(crate) vni: u32,
    /// The machine's IPv4 address; 0.0.0.0 for none.
    #[arg(long)]
    pub(crate) ipv4: Ipv4Addr,
    /// The machine's IPv6 address; :: for none.
    #[arg(long, default_value = "::")]
    pub(crate) ipv6: Ipv6Addr,
    /// Device, such as net_tap2.
    #[arg(long)]
    pub(crate) device: String,
    /// Underlay address to use instead of a generated one.
    #[arg(long)]
    pub(crate) underlay: Option<Ipv6Addr>,
    /// Server for network boot.
    #[arg(long, default_value = "")]
    pub(crate) pxe_server: String,
    /// File for network boot.
    #[arg(long, default_value = "")]
    pub(crate) pxe_file_name: String,
    /// Limit of all egress traffic in Mbit/s; 0 is unlimited.
    #[arg(long, default_value_t = 0)]
    pub(crate) total_meter_rate: u64,
    /// Limit of egress traffic to the internet in Mbit/s; 0 is unlimited.
    #[arg(long, default_value_t = 0)]
    pub(crate) public_meter_rate: u64,
    /// Host name given to the machine by DHCP.
    #[arg(long, default_value = "")]
    pub(crate) hostname: String,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CreatePrefix {
    /// Prefix, such as 10.1.0.0/24.
    #[arg(long)]
    pub(crate) prefix: PrefixText,
    /// Interface it is delivered to.
    #[arg(long)]
    pub(crate) interface_id: String,
    /// Underlay address to use instead of a generated one.
    #[arg(long)]
    pub(crate) underlay: Option<Ipv6Addr>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CreateRoute {
    /// Destinations, such as 10.1.0.0/24.
    #[arg(long)]
    pub(crate) prefix: PrefixText,
    /// Virtual network at the other host.
    #[arg(long)]
    pub(crate) next_hop_vni: u32,
    /// Underlay address of the other host's interface.
    #[arg(long)]
    pub(crate) next_hop_ip: IpAddr,
    /// Virtual network of the route.
    #[arg(long)]
    pub(crate) vni: u32,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Delete {
    /// Detach an interface.
    #[command(visible_aliases = ["interfaces", "iface", "ifaces"])]
    Interface {
        /// Name of the interface.
        #[arg(long)]
        id: String,
    },
    /// Take a prefix from an interface.
    #[command(visible_aliases = ["prefixes", "prfx", "prfxs"])]
    Prefix {
        /// The prefix.
        #[arg(long)]
        prefix: PrefixText,
        /// Its interface.
        #[arg(long)]
        interface_id: String,
    },
    /// Remove a route.
    #[command(visible_aliases = ["routes", "rt", "rts"])]
    Route {
        /// Destinations.
        #[arg(long)]
        prefix: PrefixText,
        /// Virtual network of the route.
        #[arg(long)]
        vni: u32,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Get {
    /// An interface; all if no id is given.
    #[command(visible_aliases = ["interfaces", "iface", "ifaces"])]
    Interface {
        /// Name of the interface.
        #[arg(long, default_value = "")]
        id: String,
    },
    /// Prefixes of an interface; of all if no id is given.
    #[command(visible_aliases = ["prefixes", "prfx", "prfxs"])]
    Prefix {
        /// The interface.
        #[arg(long, default_value = "")]
        interface_id: String,
    },
    /// Routes of a virtual network; of all for 0.
    #[command(visible_aliases = ["routes", "rt", "rts"])]
    Route {
        /// Virtual network.
        #[arg(long, default_value_t = 0)]
        vni: u32,
    },
    /// Whether a virtual network is in use.
    Vni {
        /// Virtual network.
        #[arg(long)]
        vni: u32,
        /// Which tables: ipv4 (0), ipv6 (1).
        #[arg(long, value_parser = vni_type)]
        vni_type: VniKind,
    },
    /// Versions of service and protocol.
    Version,
    /// The identity of an initialized service.
    Init,
}

#[derive(Debug, Subcommand)]
pub(crate) enum List {
    /// All interfaces.
    #[command(visible_aliases = ["interface", "iface", "ifaces"])]
    Interfaces {
        #[command(flatten)]
        sort: Sort,
    },
    /// Prefixes of an interface; of all if no id is given.
    #[command(visible_aliases = ["prefix", "prfx", "prfxs"])]
    Prefixes {
        /// The interface.
        #[arg(long, default_value = "")]
        interface_id: String,
        #[command(flatten)]
        sort: Sort,
    },
    /// Routes of a virtual network; of all for 0.
    #[command(visible_aliases = ["route", "rt", "rts"])]
    Routes {
        /// Virtual network.
        #[arg(long, default_value_t = 0)]
        vni: u32,
        #[command(flatten)]
        sort: Sort,
    },
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Sort {
    /// Column to sort by.
    #[arg(long, value_name = "COLUMN", default_value = "")]
    pub(crate) sort_by: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Reset {
    /// Remove all routes of a virtual network.
    Vni {
        /// Virtual network.
        #[arg(long)]
        vni: u32,
        /// Which tables; only both (2) is possible today.
        #[arg(long, value_parser = vni_type, default_value = "both")]
        vni_type: VniKind,
    },
}

/// Tables of a virtual network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VniKind {
    Ipv4,
    Ipv6,
    Both,
}

fn vni_type(text: &str) -> Result<VniKind, String> {
    match text.to_ascii_lowercase().as_str() {
        "0" | "ipv4" => Ok(VniKind::Ipv4),
        "1" | "ipv6" => Ok(VniKind::Ipv6),
        "2" | "both" => Ok(VniKind::Both),
        _ => Err("one of ipv4 (0), ipv6 (1), both (2)".to_owned()),
    }
}

/// Numbers with unit `ms`, `s` or `m`, such as `1m30s`.
fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || "a number with a unit, such as 500ms, 4s or 1m".to_owned();
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .ok_or_else(invalid)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let number: u32 = number.parse().map_err(|_| invalid())?;
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            _ => return Err(invalid()),
        };
        total = unit
            .checked_mul(number)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(invalid)?;
        rest = tail;
    }
    if total.is_zero() {
        Err(invalid())
    } else {
        Ok(total)
    }
}

/// Long flags are accepted in any case.
pub(crate) fn fold_flag_case(arguments: Vec<OsString>) -> Vec<OsString> {
    arguments
        .into_iter()
        .map(|argument| match argument.to_str() {
            Some(text) if text.starts_with("--") => {
                let (flag, value) = text.split_at(text.find('=').unwrap_or(text.len()));
                format!("{}{value}", flag.to_ascii_lowercase()).into()
            }
            _ => argument,
        })
        .collect()
}

/// Where to connect to.
pub(crate) fn target(address: Option<&str>, port: Option<OsString>) -> String {
    match (address, port.and_then(|port| port.into_string().ok())) {
        (Some(address), _) => address.to_owned(),
        (None, Some(port)) => format!("localhost:{port}"),
        (None, None) => format!("localhost:{PORT}"),
    }
}

/// Prefixes as the user wrote them: the service decides about host bits.
mod ipnet_like {
    use std::net::IpAddr;
    use std::str::FromStr;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct PrefixText {
        pub(crate) address: IpAddr,
        pub(crate) length: u8,
    }

    impl FromStr for PrefixText {
        type Err = String;

        fn from_str(text: &str) -> Result<PrefixText, String> {
            let parse = || {
                let (address, length) = text.split_once('/')?;
                let address: IpAddr = address.parse().ok()?;
                let length: u8 = length.parse().ok()?;
                let max = if address.is_ipv4() { 32 } else { 128 };
                (length <= max).then_some(PrefixText { address, length })
            };
            parse().ok_or_else(|| "not a prefix such as 10.1.0.0/24 or fd00::/64".to_owned())
        }
    }

    impl std::fmt::Display for PrefixText {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{}/{}", self.address, self.length)
        }
    }
}

pub(crate) use ipnet_like::PrefixText as Prefix;
