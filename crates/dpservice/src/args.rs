//! Command line and configuration file.
//!
//! The file named by the environment variable `DP_CONF` (default `/run/dpservice/dpservice.conf`) holds one `key value` per line, keys
//! being the long options without dashes; `#` begins a comment. The command line wins over it; lists of both are joined. Arguments before
//! a `--` are DPDK's (EAL options) and choose the DPDK driver; the keys `a-pf0` and `a-pf1` of the file add `-a <value>` to them.

mod limits;

use crate::worker::WORKERS_MAX;
use anyhow::{Context, bail, ensure};
use clap::{ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, ValueEnum};
use dataplane::{EngineConfig, MssClamp, VirtualServiceSpec};
use net::protocol;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

pub use limits::LimitArgs;

/// Where the configuration file is unless `DP_CONF` says otherwise.
pub const CONFIG_PATH: &str = "/run/dpservice/dpservice.conf";
/// Longest name of a network device (Linux: 16 bytes with the terminator).
pub const DEVICE_NAME_LEN_MAX: usize = 15;
/// Machine ports of one host unless told otherwise: what the reference allows per NIC.
pub const TAP_COUNT_DEFAULT: u16 = 126;
/// The same at most.
pub const TAP_COUNT_MAX: u16 = 1_024;

/// Keys of the configuration file that become EAL arguments.
const EAL_KEYS: [&str; 2] = ["a-pf0", "a-pf1"];
/// Longest value of these.
const EAL_VALUE_LEN_MAX: usize = 127;

/// Overlay data plane of one hypervisor.
///
/// Machines are attached by gRPC (see dpservice-cli). Every machine has its gateway at 169.254.0.1 and fe80::1, gets its addresses by
/// DHCP, DHCPv6 and router advertisement, and reaches machines on other hosts through IP-in-IPv6 over the uplinks.
/// The uplinks stay in the hands of the kernel, too: it keeps its addresses, routes and connections.
///
/// Before "--", EAL options choose the DPDK driver: its ports are found by the names --pf0, --pf1 and --vf-pattern.
///
/// Options may also be given in a file: one "key value" per line, named by the environment variable DP_CONF
/// (default /run/dpservice/dpservice.conf). The command line wins.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "dpservice",
    disable_version_flag = true,
    args_override_self = true
)]
pub struct Args {
    /// Network device of the first uplink.
    #[arg(long, value_name = "IF", value_parser = device_name)]
    pub pf0: Option<String>,

    /// Network device of the second uplink; traffic moves to it when the first one is down.
    #[arg(long, value_name = "IF", value_parser = device_name)]
    pub pf1: Option<String>,

    /// Underlay address of this host. Its upper 64 bits are the prefix of the underlay addresses of all machines, which the fabric
    /// must route here; they are generated in `<prefix>:d000::/68`.
    #[arg(long, value_name = "ADDR6", default_value = "::")]
    pub ipv6: Ipv6Addr,

    /// How uplinks are reached. af-packet: an existing device through packet sockets, beside the kernel; af-xdp: the same, faster.
    #[arg(long, value_enum, default_value_t = UplinkDriver::AfPacket)]
    pub uplink_driver: UplinkDriver,

    /// Who cuts what machines' TCP sends in one piece into frames of the uplink's MTU, with --uplink-driver af-packet. kernel: the kernel or
    /// the NIC, from Linux 6.6 on. Choose dpservice where a veth leads to hosts that use af-xdp or DPDK: these cannot tell that a checksum
    /// was left to them.
    #[arg(long, value_enum, default_value_t = UplinkSegmentation::Kernel)]
    pub uplink_segmentation: UplinkSegmentation,

    /// How machines are attached. tap: a kernel TAP device per interface, named `<tap-prefix><k>` for the device `net_tap<k+2>`.
    #[arg(long, value_enum, default_value_t = MachineDriver::Tap)]
    pub machine_driver: MachineDriver,

    /// Number of machine ports (devices net_tap2, net_tap3, …). A TAP device exists only while an interface uses it.
    #[arg(long, value_name = "N", default_value_t = TAP_COUNT_DEFAULT,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(TAP_COUNT_MAX)))]
    pub tap_count: u16,

    /// Beginning of the names of TAP devices.
    #[arg(long, value_name = "STR", default_value = "dtapvf_", value_parser = tap_prefix)]
    pub tap_prefix: String,

    /// MTU that machines get by DHCP (option 26) and of their TAP devices. The uplinks need 40 bytes more.
    #[arg(long, value_name = "N", default_value_t = 1500,
          value_parser = clap::value_parser!(u16).range(68..=1500))]
    pub dhcp_mtu: u16,

    /// DNS server for machines; may be given up to 63 times.
    #[arg(long, value_name = "ADDR4", action = ArgAction::Append)]
    pub dhcp_dns: Vec<Ipv4Addr>,

    /// DNS server for machines; may be given up to 15 times.
    #[arg(long, value_name = "ADDR6", action = ArgAction::Append)]
    pub dhcpv6_dns: Vec<Ipv6Addr>,

    /// Answer neighbour and router solicitations of machines and send router advertisements. IPv6 is forwarded in any case.
    #[arg(long)]
    pub enable_ipv6_overlay: bool,

    /// Share of the first uplink in percent; 100 uses the second one only when the first is down.
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub wcmp: u8,

    /// Seconds after which an idle flow is forgotten (established TCP: one day).
    #[arg(long, value_name = "S", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..=300))]
    pub flow_timeout: u32,

    /// What becomes of packets that no firewall rule of their interface accepts. observe: they pass, and are counted as if dropped.
    #[arg(long, value_enum, default_value_t = Firewall::Enforce)]
    pub firewall: Firewall,

    /// Lower the segment size that TCP peers announce in connections that leave the host. auto: to what fits the uplink's MTU; or a number
    /// of bytes.
    #[arg(long, value_name = "off|auto|BYTES", default_value = "off", value_parser = mss_clamp)]
    pub mss_clamp: MssClamp,

    /// Count as a router: decrement TTL and hop limit, and answer machines whose packets have none left. Without it the data plane is
    /// invisible to traceroute, as the reference implementation is.
    #[arg(long)]
    pub decrement_hops: bool,

    /// TCP port of the gRPC service.
    #[arg(long, value_name = "N", default_value_t = 1337,
          value_parser = clap::value_parser!(u16).range(1024..))]
    pub grpc_port: u16,

    /// Address of the gRPC service, which has neither encryption nor authentication: bind it to [::1] unless others need it.
    #[arg(long, value_name = "ADDR", default_value = "[::]", value_parser = bracketed_address)]
    pub grpc_bind: IpAddr,

    /// Let ListRoutes report IPv6 routes, too. `false` lists only IPv4 routes, as the reference implementation does.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set,
          num_args = 0..=1, default_missing_value = "true", require_equals = false)]
    pub list_ipv6_routes: bool,

    /// Serve Prometheus metrics over HTTP at this address (path /metrics). Off by default.
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_bind_address: Option<SocketAddr>,

    /// Format of log lines.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Least severe level that is logged: error, warn, info, debug, trace, or filters such as "info,h2=warn".
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = crate::logging::level)]
    pub log_level: String,

    /// Colour of text log lines.
    #[arg(long, value_enum, default_value_t = Color::Never)]
    pub color: Color,

    /// Print the version.
    #[arg(short = 'v', long)]
    pub version: bool,

    /// With DPDK: a port whose device name contains this, and is not an uplink, belongs to a machine.
    #[arg(long, value_name = "STR", value_parser = device_name)]
    pub vf_pattern: Option<String>,

    /// Number of packet threads. Each flow belongs to one of them. With DPDK, the number of cores (-l) beside the first unless given.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=WORKERS_MAX as i64))]
    pub workers: u8,

    /// Let packet threads look for packets without ever sleeping: lowest latency, a whole core each.
    #[arg(long)]
    pub poll: bool,

    /// Virtual services of both protocols in the order in which they were given.
    #[arg(skip)]
    pub virtual_services: Vec<VirtualServiceSpec>,

    /// EAL arguments: what stands before "--".
    #[arg(skip)]
    pub eal: Vec<String>,

    /// A UDP service of the infrastructure for machines: those that send to the IPv4 address and port reach the IPv6 address and port, without
    /// tunnel. May be given up to 256 times, together with --tcp-virtsvc.
    #[arg(long, value_name = "ADDR4,PORT,ADDR6,PORT", action = ArgAction::Append, value_parser = virtual_service)]
    pub udp_virtsvc: Vec<VirtualServiceSpec>,

    /// The same for TCP.
    #[arg(long, value_name = "ADDR4,PORT,ADDR6,PORT", action = ArgAction::Append, value_parser = virtual_service)]
    pub tcp_virtsvc: Vec<VirtualServiceSpec>,

    /// Stand by until this file can be locked: requests are served, packets are discarded. The instance that holds the lock works; it
    /// gives it back when it is told to stop, or ends in any other way. At most 255 characters.
    #[arg(long, value_name = "PATH", value_parser = lock_path)]
    pub active_lockfile: Option<PathBuf>,

    /// Let core dumps contain all memory, hugepages and shared mappings included.
    #[arg(long)]
    pub debug_coredumps: bool,

    /// Family of the NICs. tap: uplinks without a router that the kernel knows take every frame. Otherwise without effect.
    #[arg(long, value_enum, default_value_t = NicType::Mellanox, help_heading = COMPATIBILITY)]
    pub nic_type: NicType,

    /// No effect: there is no periodic output of statistics. See --metrics-bind-address.
    #[arg(long, help_heading = COMPATIBILITY)]
    pub no_stats: bool,

    /// Handle every packet in software, even where a NIC under DPDK could carry out rules. The kernel gets nothing from the uplinks then.
    #[arg(long)]
    pub no_offload: bool,

    /// No effect: no rules are installed in NICs, so their switches need no other ones. Requires --no-offload.
    #[arg(long, help_heading = COMPATIBILITY)]
    pub multiport_eswitch: bool,

    /// Capacities.
    #[command(flatten)]
    pub limits: LimitArgs,

    /// TAP device by which the two instances of --active-lockfile tell each other of connections with network NAT, connections to virtual
    /// services and MAC addresses of machines, so that they go on when the other instance takes over. Created unless there is one;
    /// to be joined with that of the other instance by a bridge.
    #[arg(long, value_name = "IF", value_parser = device_name)]
    pub sync_tap: Option<String>,

    /// No effect: packets are traced on demand, see `dpservice-cli inspect trace`. 0 to 2.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = COMPATIBILITY,
          value_parser = clap::value_parser!(u8).range(0..=2))]
    pub graphtrace_loglevel: u8,
}

/// Heading of options that exist for the sake of scripts.
const COMPATIBILITY: &str = "Accepted for compatibility";

/// Longest path of the lock file.
pub const LOCK_PATH_LEN_MAX: usize = 255;

/// Drivers of uplinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UplinkDriver {
    /// Packet sockets on an existing device.
    AfPacket,
    /// AF_XDP sockets on an existing device: overlay packets pass the kernel by, the rest goes to it. As many packet threads as the
    /// device has receive queues are needed.
    AfXdp,
    /// A TAP device that this process creates: for tests without a fabric.
    Tap,
}

/// Who cuts TCP super-frames on their way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UplinkSegmentation {
    /// The kernel, or the NIC for it; this process where it cannot.
    Kernel,
    /// This process.
    Dpservice,
}

/// Smallest segment size to clamp to: what every IPv4 host takes (RFC 9293 §3.7.1).
const MSS_MIN: u16 = 536;

fn mss_clamp(text: &str) -> Result<MssClamp, String> {
    match text {
        "off" => Ok(MssClamp::Off),
        "auto" => Ok(MssClamp::Tunnel),
        number => match number.parse() {
            Ok(bytes) if bytes >= MSS_MIN => Ok(MssClamp::At(bytes)),
            Ok(_) | Err(_) => Err(format!(
                "neither off nor auto nor a number from {MSS_MIN} on"
            )),
        },
    }
}

/// What the packet filter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Firewall {
    /// Drops.
    Enforce,
    /// Counts only: for trying rules out.
    Observe,
}

/// Drivers of machine ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MachineDriver {
    /// Kernel TAP devices.
    Tap,
}

/// Formats of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// Never.
    Never,
    /// Always.
    Always,
    /// If standard output is a terminal.
    Auto,
}

/// Names of NIC families in the configuration of other implementations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NicType {
    /// ConnectX.
    Mellanox,
    /// Virtual.
    Tap,
    /// BlueField.
    Bluefield2,
}

fn device_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > DEVICE_NAME_LEN_MAX {
        return Err(format!(
            "a device name has 1 to {DEVICE_NAME_LEN_MAX} characters"
        ));
    }
    Ok(text.to_owned())
}

fn tap_prefix(text: &str) -> Result<String, String> {
    // Three digits follow.
    if text.is_empty() || text.len() + 3 > DEVICE_NAME_LEN_MAX {
        return Err(format!(
            "1 to {} characters are possible",
            DEVICE_NAME_LEN_MAX - 3
        ));
    }
    Ok(text.to_owned())
}

fn lock_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.len() > LOCK_PATH_LEN_MAX {
        return Err(format!("a path has 1 to {LOCK_PATH_LEN_MAX} characters"));
    }
    Ok(PathBuf::from(text))
}

/// A service without its protocol, which is the option's.
fn virtual_service(text: &str) -> Result<VirtualServiceSpec, String> {
    let fields: Vec<&str> = text.split(',').collect();
    let [address, port, service, service_port] = fields[..] else {
        return Err("four fields are needed: ADDR4,PORT,ADDR6,PORT".to_owned());
    };
    let port_of = |text: &str| match text.parse() {
        Ok(0) | Err(_) => Err(format!("\"{text}\" is not a port from 1 to 65535")),
        Ok(port) => Ok(port),
    };
    Ok(VirtualServiceSpec {
        protocol: 0,
        address: address
            .parse()
            .map_err(|_| format!("\"{address}\" is not an IPv4 address"))?,
        port: port_of(port)?,
        service: service
            .parse()
            .map_err(|_| format!("\"{service}\" is not an IPv6 address"))?,
        service_port: port_of(service_port)?,
    })
}

/// Virtual services of both protocols in the order in which they were given, which is their number.
fn virtual_services(matches: &ArgMatches) -> Vec<VirtualServiceSpec> {
    let mut found = Vec::new();
    for (option, protocol) in [
        ("udp_virtsvc", protocol::UDP),
        ("tcp_virtsvc", protocol::TCP),
    ] {
        let places = matches.indices_of(option).into_iter().flatten();
        let given = matches.get_many::<VirtualServiceSpec>(option);
        for (place, spec) in places.zip(given.into_iter().flatten()) {
            found.push((place, VirtualServiceSpec { protocol, ..*spec }));
        }
    }
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, spec)| spec).collect()
}

fn bracketed_address(text: &str) -> Result<IpAddr, String> {
    let inner = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    inner.parse().map_err(|_| "not an IP address".to_owned())
}

impl Args {
    /// Reads the configuration file and `arguments` (the program's name first).
    ///
    /// # Errors
    /// A file that is named but cannot be read; an unknown key or a bad value, named with file and line; whatever [`clap`] reports about
    /// the command line (help and version requests included: such an error is a [`clap::Error`]).
    pub fn load(arguments: Vec<OsString>, dp_conf: Option<OsString>) -> anyhow::Result<Args> {
        let mut merged = arguments.iter().take(1).cloned().collect::<Vec<_>>();
        let (mut eal, options) = split(arguments)?;
        if let Some((path, text)) = read_config(dp_conf)? {
            let (keys, devices) = parse_config(&path, &text)?;
            merged.extend(keys.into_iter().map(OsString::from));
            eal.extend(devices);
        }
        merged.extend(options);
        let matches = Args::command().try_get_matches_from(merged)?;
        Ok(Args {
            eal,
            virtual_services: virtual_services(&matches),
            ..Args::from_arg_matches(&matches)?
        })
    }

    /// Checks what concerns several options or must be given.
    ///
    /// # Errors
    /// Names the option.
    pub fn validate(&self) -> anyhow::Result<()> {
        ensure!(
            self.eal.is_empty() || cfg!(feature = "dpdk"),
            "this executable was built without DPDK, so EAL arguments ({}) are of no use: build it with `cargo build --release --package dpservice --features dpdk`, or leave out what stands before \"--\" and the keys a-pf0 and a-pf1 to use the native drivers",
            self.eal.join(" ")
        );
        ensure!(
            self.pf0.is_some(),
            "--pf0 is missing: the network device of the first uplink"
        );
        ensure!(self.pf0 != self.pf1, "--pf0 and --pf1 are the same device");
        ensure!(
            self.ipv6.to_bits() >> 64 != 0,
            "--ipv6 is missing: the underlay address of this host, such as 2001:db8:1::1"
        );
        ensure!(
            self.dhcp_dns.len() <= 63,
            "--dhcp-dns: at most 63 addresses fit into the option"
        );
        ensure!(
            self.dhcpv6_dns.len() <= 15,
            "--dhcpv6-dns: at most 15 addresses are possible"
        );
        ensure!(
            !self.multiport_eswitch || self.no_offload,
            "--multiport-eswitch needs --no-offload"
        );
        self.check_virtual_services()
    }

    fn check_virtual_services(&self) -> anyhow::Result<()> {
        let max = EngineConfig::VIRTUAL_SERVICES_MAX;
        ensure!(
            self.virtual_services.len() <= max,
            "more than {max} virtual services"
        );
        for (number, one) in self.virtual_services.iter().enumerate() {
            let option = match one.protocol {
                protocol::UDP => "--udp-virtsvc",
                _ => "--tcp-virtsvc",
            };
            let others = self.virtual_services.iter().skip(number + 1);
            for other in others.filter(|other| other.protocol == one.protocol) {
                ensure!(
                    (one.address, one.port) != (other.address, other.port),
                    "{option}: {}:{} is given twice",
                    one.address,
                    one.port
                );
                ensure!(
                    (one.service, one.service_port) != (other.service, other.service_port),
                    "{option}: [{}]:{} is given twice",
                    one.service,
                    one.service_port
                );
            }
        }
        Ok(())
    }

    /// Options that were given and do nothing, with the reason.
    #[must_use]
    pub fn without_effect(&self) -> Vec<(&'static str, &'static str)> {
        let options = [
            (
                "--multiport-eswitch",
                self.multiport_eswitch,
                "no rules are installed in NICs",
            ),
            (
                "--graphtrace-loglevel",
                self.graphtrace_loglevel > 0,
                "packets are traced by dpservice-cli inspect trace",
            ),
            (
                "--vf-pattern",
                self.vf_pattern.is_some() && self.eal.is_empty(),
                "without EAL arguments machine ports are TAP devices, see --tap-prefix",
            ),
        ];
        let given = options.into_iter().filter(|(_, given, _)| *given);
        given.map(|(option, _, reason)| (option, reason)).collect()
    }
}

/// EAL arguments and service options, without the program's name: what stands before and after `--`. Without one, all are options.
fn split(arguments: Vec<OsString>) -> anyhow::Result<(Vec<String>, Vec<OsString>)> {
    let mut arguments = arguments.into_iter().skip(1).collect::<Vec<_>>();
    let Some(place) = arguments.iter().position(|argument| argument == "--") else {
        return Ok((Vec::new(), arguments));
    };
    let options = arguments.split_off(place + 1);
    let eal = arguments.into_iter().take(place).map(|argument| {
        let text = argument.into_string();
        text.map_err(|text| anyhow::anyhow!("EAL argument {} is not UTF-8", text.display()))
    });
    Ok((eal.collect::<anyhow::Result<_>>()?, options))
}

fn read_config(dp_conf: Option<OsString>) -> anyhow::Result<Option<(PathBuf, String)>> {
    let (path, required) = match dp_conf {
        Some(path) if path.is_empty() => return Ok(None),
        Some(path) => (PathBuf::from(path), true),
        None => (PathBuf::from(CONFIG_PATH), false),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) if !required && error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(error).with_context(|| format!("cannot read configuration file {}", path.display()))
        }
    }
}

/// Turns the file into service options, each checked by itself so that an error can name its line, and EAL arguments.
fn parse_config(path: &Path, text: &str) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let command = Args::command();
    let mut arguments = Vec::new();
    let mut eal = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let (key, value) = match line.trim().split_once([' ', '\t']) {
            Some((key, value)) => (key, Some(value.trim())),
            None => (line.trim(), None),
        };
        let place = format!("{}:{number}: {key}", path.display());
        if EAL_KEYS.contains(&key) {
            let value = value.unwrap_or_default();
            if value.is_empty() || value.len() > EAL_VALUE_LEN_MAX {
                bail!("{place}: a device of 1 to {EAL_VALUE_LEN_MAX} characters is needed");
            }
            eal.extend(["-a".to_owned(), value.to_owned()]);
            continue;
        }
        let known = command
            .get_arguments()
            .find(|argument| argument.get_long() == Some(key) && key != "version");
        let Some(known) = known else {
            bail!("{place}: unknown key")
        };
        let takes_value = known.get_action().takes_values();
        let argument = match value {
            Some(_) if !takes_value => bail!("{place}: takes no value"),
            Some(value) => format!("--{key}={value}"),
            None => format!("--{key}"),
        };
        if let Err(error) = Args::try_parse_from(["dpservice", &argument]) {
            let text = error.to_string();
            let first = text
                .lines()
                .next()
                .unwrap_or_default()
                .trim_start_matches("error: ");
            bail!("{place}: {first}");
        }
        arguments.push(argument);
    }
    Ok((arguments, eal))
}
