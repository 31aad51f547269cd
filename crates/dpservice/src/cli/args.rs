//! Grammar of the command line.

use super::values::{
    Action, Direction, LbPort, NatKind, PrefixText, Transport, VniKind, action, direction,
    duration, nat_type, transport, vni_type,
};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
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
    disable_version_flag = true,
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

    /// Print the version.
    #[arg(id = "version", short = 'v', short_alias = 'V', long, action = ArgAction::Version)]
    _version: Option<bool>,

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
    /// Mirror packets to a receiver.
    #[command(subcommand)]
    Capture(Capture),
    /// Look into the running service: tables, what would become of a packet, live trace.
    #[command(subcommand)]
    Inspect(super::inspect::Inspect),
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
    /// Let an interface serve a prefix for load balancers.
    #[command(name = "lbprefix", visible_aliases = ["loadbalancer-prefix", "loadbalancer-prefixes", "lbprfx", "lbprfxs"])]
    LbPrefix(CreatePrefix),
    /// Give an interface an address of its own.
    #[command(name = "virtualip", visible_aliases = ["virtualips", "vip", "vips"])]
    VirtualIp(CreateVirtualIp),
    /// Create a load balancer.
    #[command(name = "loadbalancer", visible_aliases = ["loadbalancers", "lb", "lbs"])]
    LoadBalancer(CreateLoadBalancer),
    /// Add a target to a load balancer.
    #[command(name = "lbtarget", visible_aliases = ["loadbalancer-target", "loadbalancer-targets", "lbtrgt", "lbtrgts"])]
    LbTarget(LbTarget),
    /// Give an interface a share of a NAT address.
    #[command(visible_alias = "translation")]
    Nat(CreateNat),
    /// Tell that ports of a NAT address belong to another host.
    #[command(name = "neighbornat", visible_aliases = ["nnat", "ngbnat", "neighnat"])]
    NeighborNat(CreateNeighborNat),
    /// Add a rule to an interface's packet filter.
    #[command(name = "firewallrule", visible_aliases = ["firewallrules", "fwrule", "fwrules", "fw-rule", "fw-rules"])]
    FirewallRule(CreateFirewallRule),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CreateVirtualIp {
    /// The address.
    #[arg(long)]
    pub(crate) vip: IpAddr,
    /// Its interface.
    #[arg(long)]
    pub(crate) interface_id: String,
    /// Underlay address to use instead of a generated one.
    #[arg(long)]
    pub(crate) underlay: Option<Ipv6Addr>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CreateLoadBalancer {
    /// Name of the load balancer.
    #[arg(long)]
    pub(crate) id: String,
    /// Virtual network.
    #[arg(long)]
    pub(crate) vni: u32,
    /// The address it serves.
    #[arg(long)]
    pub(crate) vip: IpAddr,
    /// The ports it serves, such as TCP/443,UDP/53.
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) lbports: Vec<LbPort>,
    /// Underlay address to use instead of a generated one.
    #[arg(long)]
    pub(crate) underlay: Option<Ipv6Addr>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct LbTarget {
    /// Underlay address of the target.
    #[arg(long)]
    pub(crate) target_ip: IpAddr,
    /// The load balancer.
    #[arg(long)]
    pub(crate) lb_id: String,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CreateNat {
    /// The interface.
    #[arg(long)]
    pub(crate) interface_id: String,
    /// The shared address.
    #[arg(long)]
    pub(crate) nat_ip: IpAddr,
    /// First port.
    #[arg(long)]
    pub(crate) minport: u32,
    /// One past the last port.
    #[arg(long)]
    pub(crate) maxport: u32,
    /// Underlay address to use instead of a generated one.
    #[arg(long)]
    pub(crate) underlay: Option<Ipv6Addr>,
}

/// The key of another host's share.
#[derive(Clone, Debug, Args)]
pub(crate) struct NeighborNatKey {
    /// The shared address.
    #[arg(long)]
    pub(crate) nat_ip: IpAddr,
    /// Virtual network.
    #[arg(long)]
    pub(crate) vni: u32,
    /// First port.
    #[arg(long)]
    pub(crate) minport: u32,
    /// One past the last port.
    #[arg(long)]
    pub(crate) maxport: u32,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CreateNeighborNat {
    #[command(flatten)]
    pub(crate) key: NeighborNatKey,
    /// Where the other host expects packets to these ports.
    #[arg(long)]
    pub(crate) underlayroute: Ipv6Addr,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CreateFirewallRule {
    /// The interface.
    #[arg(long)]
    pub(crate) interface_id: String,
    /// Name of the rule.
    #[arg(long)]
    pub(crate) rule_id: String,
    /// Packets to the machine (ingress, 0) or from it (egress, 1).
    #[arg(long, value_parser = direction)]
    pub(crate) direction: Direction,
    /// drop (deny, 0) or accept (allow, 1).
    #[arg(long, value_parser = action)]
    pub(crate) action: Action,
    /// Source addresses.
    #[arg(long)]
    pub(crate) src: PrefixText,
    /// Destination addresses.
    #[arg(long)]
    pub(crate) dst: PrefixText,
    /// Lower numbers are tried first.
    #[arg(long, default_value_t = 1000)]
    pub(crate) priority: u32,
    /// icmp, tcp or udp; any if not given.
    #[arg(long, value_parser = transport)]
    pub(crate) protocol: Option<Transport>,
    /// First source port; -1 for any.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    pub(crate) src_port_min: i32,
    /// Last source port.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    pub(crate) src_port_max: i32,
    /// First destination port; -1 for any.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    pub(crate) dst_port_min: i32,
    /// Last destination port.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    pub(crate) dst_port_max: i32,
    /// ICMP type; -1 for any.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    pub(crate) icmp_type: i32,
    /// ICMP code; -1 for any.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    pub(crate) icmp_code: i32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Capture {
    /// Start mirroring.
    Start(CaptureStart),
    /// Stop mirroring.
    Stop,
    /// Show what is mirrored.
    Status,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CaptureStart {
    /// Underlay address of the receiver.
    #[arg(long)]
    pub(crate) sink_node_ip: IpAddr,
    /// UDP source port.
    #[arg(long)]
    pub(crate) udp_src_port: u32,
    /// UDP destination port.
    #[arg(long)]
    pub(crate) udp_dst_port: u32,
    /// Uplinks by number, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub(crate) pf: Vec<u32>,
    /// Interfaces by id, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub(crate) vf: Vec<String>,
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
    /// End serving a prefix for load balancers.
    #[command(name = "lbprefix", visible_aliases = ["loadbalancer-prefix", "loadbalancer-prefixes", "lbprfx", "lbprfxs"])]
    LbPrefix {
        /// The prefix.
        #[arg(long)]
        prefix: PrefixText,
        /// Its interface.
        #[arg(long)]
        interface_id: String,
    },
    /// Take an interface's own address away.
    #[command(name = "virtualip", visible_aliases = ["virtualips", "vip", "vips"])]
    VirtualIp {
        /// The interface.
        #[arg(long)]
        interface_id: String,
    },
    /// Remove a load balancer.
    #[command(name = "loadbalancer", visible_aliases = ["loadbalancers", "lb", "lbs"])]
    LoadBalancer {
        /// Its name.
        #[arg(long)]
        id: String,
    },
    /// Remove a target from a load balancer.
    #[command(name = "lbtarget", visible_aliases = ["loadbalancer-target", "loadbalancer-targets", "lbtrgt", "lbtrgts"])]
    LbTarget(LbTarget),
    /// Take an interface's share of a NAT address away.
    #[command(visible_alias = "translation")]
    Nat {
        /// The interface.
        #[arg(long)]
        interface_id: String,
    },
    /// Forget another host's share of a NAT address.
    #[command(name = "neighbornat", visible_aliases = ["nnat", "ngbnat", "neighnat"])]
    NeighborNat(NeighborNatKey),
    /// Remove a rule from an interface's packet filter.
    #[command(name = "firewallrule", visible_aliases = ["firewallrules", "fwrule", "fwrules", "fw-rule", "fw-rules"])]
    FirewallRule {
        /// The interface.
        #[arg(long)]
        interface_id: String,
        /// The rule.
        #[arg(long)]
        rule_id: String,
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
    /// Prefixes that an interface serves for load balancers; of all interfaces if no id is given.
    #[command(name = "lbprefix", visible_aliases = ["loadbalancer-prefix", "loadbalancer-prefixes", "lbprfx", "lbprfxs"])]
    LbPrefix {
        /// The interface.
        #[arg(long, default_value = "")]
        interface_id: String,
    },
    /// An interface's own address.
    #[command(name = "virtualip", visible_aliases = ["virtualips", "vip", "vips"])]
    VirtualIp {
        /// The interface.
        #[arg(long)]
        interface_id: String,
    },
    /// A load balancer; all if no id is given.
    #[command(name = "loadbalancer", visible_aliases = ["loadbalancers", "lb", "lbs"])]
    LoadBalancer {
        /// Its name.
        #[arg(long, default_value = "")]
        id: String,
    },
    /// Targets of a load balancer; of all if no id is given.
    #[command(name = "lbtarget", visible_aliases = ["loadbalancer-target", "loadbalancer-targets", "lbtrgt", "lbtrgts"])]
    LbTarget {
        /// The load balancer.
        #[arg(long, default_value = "")]
        lb_id: String,
    },
    /// An interface's share of a NAT address.
    #[command(visible_alias = "translation")]
    Nat {
        /// The interface.
        #[arg(long)]
        interface_id: String,
    },
    /// A rule of an interface's packet filter; all if no rule is given.
    #[command(name = "firewallrule", visible_aliases = ["firewallrules", "fwrule", "fwrules", "fw-rule", "fw-rules"])]
    FirewallRule {
        /// The interface.
        #[arg(long)]
        interface_id: String,
        /// The rule.
        #[arg(long, default_value = "")]
        rule_id: String,
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
    /// Prefixes that interfaces serve for load balancers.
    #[command(name = "lbprefixes", visible_aliases = ["lbprefix", "loadbalancer-prefix", "loadbalancer-prefixes", "lbprfx", "lbprfxs"])]
    LbPrefixes {
        /// The interface; all if not given.
        #[arg(long, default_value = "")]
        interface_id: String,
        #[command(flatten)]
        sort: Sort,
    },
    /// Targets of a load balancer.
    #[command(name = "lbtargets", visible_aliases = ["lbtarget", "loadbalancer-target", "loadbalancer-targets", "lbtrgt", "lbtrgts"])]
    LbTargets {
        /// The load balancer; all if not given.
        #[arg(long, default_value = "")]
        lb_id: String,
        #[command(flatten)]
        sort: Sort,
    },
    /// Shares of NAT addresses.
    #[command(visible_aliases = ["nat", "translation"])]
    Nats {
        /// The shared address; 0.0.0.0 for all.
        #[arg(long, default_value = "0.0.0.0")]
        nat_ip: IpAddr,
        /// any (0), local (1) or neighbor (2).
        #[arg(long, default_value = "0", value_parser = nat_type)]
        nat_type: NatKind,
        #[command(flatten)]
        sort: Sort,
    },
    /// All load balancers.
    #[command(name = "loadbalancers", visible_aliases = ["loadbalancer", "lb", "lbs"])]
    LoadBalancers {
        #[command(flatten)]
        sort: Sort,
    },
    /// Rules of an interface's packet filter.
    #[command(name = "firewallrules", visible_aliases = ["firewallrule", "fwrule", "fwrules", "fw-rule", "fw-rules"])]
    FirewallRules {
        /// The interface.
        #[arg(long)]
        interface_id: String,
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

pub(crate) use super::values::PrefixText as Prefix;
