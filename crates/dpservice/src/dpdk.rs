//! The DPDK driver: which of DPDK's ports are uplinks and which are machines', and how they are opened.
//!
//! Devices come from EAL arguments, whatever their drivers. A port is known by the kernel name of its network device, or by DPDK's name if
//! the kernel does not know it; clients select machine ports by DPDK's name, such as `net_tap2`. Ports stay with DPDK as long as
//! the process lives: an interface starts its port and deleting it stops the port.

use crate::args::Args;
use crate::devices::{Devices, Driver, Kind};
use crate::telemetry::commands::COMMANDS;
use crate::telemetry::{self, Facts};
use crate::worker::{Handle, WORKERS_MAX};
use anyhow::{Context, bail, ensure};
use dataplane::offload::Nic;
use dataplane::{EngineConfig, PortConfig, PortId, PortKind};
use dpdk::{Answer, Config, Device, Eal, Error, Info, InstalledRule, Level, Mbuf, Pool, RuleError};
use net::Mac;
use ports::dpdk::{DpdkPort, DpdkRules, RulePorts};
use ports::offload::RuleDevice;
use ports::{ETHERNET_LEN, OpenError, Port};
use std::io;
use std::net::Ipv6Addr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Descriptors of a receive or transmit queue.
const DESCRIPTORS: u16 = 512;
/// Buffers on their way through a packet thread: bursts, its cache of the pool, rings to other threads.
const BUFFERS_PER_THREAD: usize = 2048;
/// Smallest buffer: a full-sized packet in its tunnel.
const FRAME_MAX_MIN: u16 = 2048;
/// DPDK's marks of the packet threads' cores and of ports must fit this.
const PORTS_MAX: usize = EngineConfig::PORTS_MAX;

/// Commands that wait for their answers; DPDK serves as many clients and more, of whom further ones get an error.
const QUESTIONS_MAX: usize = 16;
/// How long a command waits for its answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
/// What the names of our commands begin with; the others are DPDK's own.
const OWN_COMMANDS: &str = "/dp_service/";

/// DPDK's name of the driver whose devices are kernel TAPs.
const TAP_DRIVER: &str = "net_tap";

/// The pool of this process, for packets that it makes itself.
static POOL: OnceLock<Pool> = OnceLock::new();

impl Kind for Mbuf {
    fn queues_of(driver: Driver) -> Option<Vec<Box<dyn Port<Mbuf>>>> {
        match driver {
            Driver::Dpdk(queues) => Some(queues),
            Driver::Native(_) => None,
        }
    }

    fn holding(frame: &[u8]) -> Option<Mbuf> {
        use dataplane::Packet;
        let mut packet = POOL.get()?.alloc()?;
        packet.clear();
        packet.resize(frame.len()).then(|| {
            packet.frame_mut().copy_from_slice(frame);
            packet
        })
    }

    fn enter_thread(number: usize) {
        if let Some(eal) = Eal::get()
            && let Err(error) = eal.enter_worker(number)
        {
            tracing::warn!(%error, lcore_id = number, "Cannot tie the packet thread to its core");
        }
    }
}

/// DPDK's ports in their roles.
#[derive(Clone, Debug)]
pub struct Layout {
    eal: &'static Eal,
    pool: Pool,
    queues: u16,
    poll: bool,
    /// Rules may be installed, those that share an uplink with the kernel among them.
    offload: bool,
    uplinks: Vec<Info>,
    machines: Vec<Info>,
    host: Ipv6Addr,
    rules: Arc<RulePorts>,
}

/// Kernel name of a port's device, else DPDK's.
fn netdev(info: &Info) -> String {
    let index = info.if_index.and_then(|index| {
        nix::net::if_::if_indextoname(index)
            .ok()?
            .into_string()
            .ok()
    });
    index.unwrap_or_else(|| info.name.clone())
}

/// Starts DPDK with the EAL arguments of the command line. To be called once, before any other thread exists. Unless the number of packet
/// threads was given, it becomes the number of cores beside the first.
///
/// # Errors
/// What DPDK says.
pub fn start(args: &mut Args) -> anyhow::Result<()> {
    dpdk::log_to(log).context("cannot take over DPDK's log")?;
    args.eal
        .iter()
        .try_for_each(|argument| whole_packets(argument))?;
    let eal = Eal::init(&args.eal)?;
    if args.workers == 1 {
        let cores = eal.worker_cores().clamp(1, WORKERS_MAX);
        args.workers = u8::try_from(cores).unwrap_or(1);
    }
    Ok(())
}

/// Refuses a vhost device whose guest may send super-frames in pieces: packets are handled in one piece.
fn whole_packets(argument: &str) -> anyhow::Result<()> {
    let device = argument.strip_prefix("--vdev=").unwrap_or(argument);
    let mut options = device.split(',');
    let name = options.next().unwrap_or_default();
    let has = |wanted: &str| device.split(',').any(|option| option == wanted);
    let missing: Vec<&str> = ["linear-buffer=1", "ext-buffer=1"]
        .into_iter()
        .filter(|option| !has(option))
        .collect();
    ensure!(
        !name.starts_with("net_vhost") && !name.starts_with("eth_vhost")
            || !has("tso=1")
            || missing.is_empty(),
        "--vdev {device}: with tso=1 the device also needs {}: super-frames are handled in one piece",
        missing.join(",")
    );
    Ok(())
}

/// DPDK's memory, as telemetry tells of it.
pub(crate) fn heaps() -> Vec<telemetry::Heap> {
    let heaps = Eal::get().map(Eal::heaps).unwrap_or_default();
    let named = |heap: dpdk::Heap| {
        let dpdk::Heap {
            id,
            size,
            free_size,
            greatest_free_size,
            allocated_size,
            allocations,
            free_pieces,
        } = heap;
        telemetry::Heap([
            ("Heap_id", u64::from(id)),
            ("Heap_size", size),
            ("Alloc_count", allocations),
            ("Free_count", free_pieces),
            ("Alloc_size", allocated_size),
            ("Free_size", free_size),
            ("Greatest_free_size", greatest_free_size),
        ])
    };
    heaps.into_iter().map(named).collect()
}

/// Logs a line of DPDK, which begins with the part of DPDK that says it.
fn log(level: Level, line: &str) {
    match level {
        Level::Error => tracing::error!("{line}"),
        Level::Warning => tracing::warn!("{line}"),
        Level::Info => tracing::info!("{line}"),
        Level::Debug => tracing::debug!("{line}"),
    }
}

/// A command on DPDK's telemetry socket, and where its answer goes.
type Question = (String, SyncSender<Option<Answer>>);

/// Answers telemetry commands on DPDK's own socket until `shutdown`. `devices` are the names of the engine's ports.
///
/// # Errors
/// DPDK does not take the commands.
pub async fn serve_telemetry(
    devices: Vec<String>,
    worker: Handle,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (questions, mut asked) = mpsc::channel::<Question>(QUESTIONS_MAX);
    let own = |(name, _): &&(&str, &str)| name.starts_with(OWN_COMMANDS);
    let commands: Vec<(&str, &str)> = COMMANDS.iter().filter(own).copied().collect();
    let responder = move |command: &str| {
        let (reply, answer) = sync_channel(1);
        questions.try_send((command.to_owned(), reply)).ok()?;
        answer.recv_timeout(ANSWER_TIME_MAX).ok()?
    };
    dpdk::register_command(&commands, Box::new(responder))
        .context("cannot add commands to DPDK's telemetry")?;
    loop {
        let (command, reply) = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(question) = asked.recv() => question,
        };
        let facts = Facts::gather(&worker, &devices).await?;
        let answer = telemetry::commands::answer(&facts, &command);
        let value = answer.as_ref().and_then(|answer| answer.get(&command));
        // Whoever asked may have given up.
        let _ = reply.try_send(value.and_then(for_socket));
    }
}

/// An answer in the form that DPDK writes.
fn for_socket(value: &serde_json::Value) -> Option<Answer> {
    match value {
        serde_json::Value::Object(entries) => {
            let entries = entries
                .iter()
                .map(|(name, value)| Some((name.clone(), for_socket(value)?)));
            Some(Answer::Object(entries.collect::<Option<_>>()?))
        }
        other => other.as_u64().map(Answer::Number),
    }
}

impl Layout {
    /// Finds the ports that the options name.
    ///
    /// # Errors
    /// An uplink that is not there, no machine port, too little memory for buffers.
    pub fn new(args: &Args, workers: usize) -> anyhow::Result<Layout> {
        let eal = Eal::get().context("DPDK was not started")?;
        let ports = eal.ports();
        let find = |name: &str| {
            let found = ports
                .iter()
                .find(|info| netdev(info) == name || info.name == name);
            found.cloned().with_context(|| {
                let known: Vec<String> = ports.iter().map(netdev).collect();
                format!(
                    "DPDK has no port {name}; it has: {}. Devices come from EAL options such as --vdev or -a",
                    known.join(", ")
                )
            })
        };
        let uplinks = args
            .pf0
            .iter()
            .chain(&args.pf1)
            .map(|name| find(name))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let is_uplink = |info: &Info| uplinks.iter().any(|uplink| uplink.port == info.port);
        let Some(pattern) = &args.vf_pattern else {
            bail!("--vf-pattern is missing: what the names of the machines' devices contain");
        };
        let machines: Vec<Info> = ports
            .iter()
            .filter(|info| !is_uplink(info) && netdev(info).contains(pattern.as_str()))
            .cloned()
            .collect();
        ensure!(
            !machines.is_empty(),
            "no DPDK port but the uplinks has a name that contains --vf-pattern {pattern}"
        );
        ensure!(
            uplinks.len() + machines.len() <= PORTS_MAX,
            "more than {PORTS_MAX} ports"
        );
        let all = || uplinks.iter().chain(&machines);
        let queues = all().map(|info| info.queues_max).min().unwrap_or(1);
        let queues = queues.clamp(1, u16::try_from(workers).unwrap_or(1));
        let frame_max = all()
            .map(|info| info.mtu.saturating_add(ETHERNET_LEN as u16 + 4))
            .max()
            .unwrap_or(0)
            .max(FRAME_MAX_MIN);
        let per_port = 2 * usize::from(DESCRIPTORS) * usize::from(queues);
        let buffers = all().count() * per_port + workers * BUFFERS_PER_THREAD;
        let pool = eal
            .pool(u32::try_from(buffers).unwrap_or(u32::MAX), frame_max)
            .with_context(|| {
                format!(
                    "no memory for {buffers} packet buffers of {frame_max} bytes: give DPDK {} MiB by the EAL option -m, or hugepages",
                    (buffers * (usize::from(frame_max) + 512)).div_ceil(1 << 20) + 16
                )
            })?;
        let pool = POOL.get_or_init(|| pool).clone();
        Ok(Layout {
            eal,
            pool,
            queues,
            poll: args.poll,
            offload: !args.no_offload,
            uplinks,
            machines,
            host: args.ipv6,
            rules: Arc::default(),
        })
    }

    /// The NICs as far as they carry out rules, if there are any. Which rules they do shows when they are asked.
    #[must_use]
    pub fn nic(&self) -> Option<Box<dyn RuleDevice>> {
        if !self.offload {
            return None;
        }
        let all = self.uplinks.iter().chain(&self.machines);
        let mtus = all.map(|info| {
            // A TAP's rules are the kernel's packet filter on the other side: they would change what others see.
            (info.driver != TAP_DRIVER).then_some(info.mtu)
        });
        let mtus: Vec<Option<u16>> = mtus.collect();
        mtus.iter().any(Option::is_some).then(|| {
            let rules = DpdkRules::new(Nic { mtus }, Arc::clone(&self.rules));
            Box::new(rules) as Box<dyn RuleDevice>
        })
    }

    /// On a NIC that the kernel uses as well, takes the host's tunnelled packets and nothing else.
    fn isolate(&self, device: &Device, uplink: PortId) -> Result<(), Error> {
        if !device.is_isolated() {
            return Ok(());
        }
        let rule = dataplane::offload::isolation(uplink, self.host);
        match InstalledRule::install(&device.rule_port(), &rule, |_| None) {
            Ok(rule) => {
                // It lasts as long as the port is started: stopping the port removes its rules.
                std::mem::forget(rule);
                Ok(())
            }
            Err(RuleError::Refused { source, .. }) => Err(source),
            Err(RuleError::Stopped | RuleError::TooLong) => Err(Error(libc_enodev())),
        }
    }

    /// The engine's ports, uplinks first.
    #[must_use]
    pub fn ports(&self) -> Vec<PortConfig> {
        let uplinks = (0..).zip(&self.uplinks).map(|(number, info)| PortConfig {
            name: info.name.clone(),
            kind: PortKind::Uplink(number),
            mac: Mac(info.mac),
        });
        let machines = self.machines.iter().map(|info| PortConfig {
            name: info.name.clone(),
            kind: PortKind::Machine,
            mac: Mac(info.mac),
        });
        uplinks.chain(machines).collect()
    }

    /// Kernel names of the uplinks' devices, and whether their driver leaves a copy of each packet with the kernel.
    #[must_use]
    pub fn uplinks(&self) -> Vec<(String, bool)> {
        let uplinks = self.uplinks.iter();
        uplinks
            .map(|info| (netdev(info), info.driver == "net_af_packet"))
            .collect()
    }

    /// Largest layer-3 packets of the uplinks.
    #[must_use]
    pub fn uplink_mtus(&self) -> Vec<(String, usize)> {
        let uplinks = self.uplinks.iter();
        uplinks
            .map(|info| (netdev(info), usize::from(info.mtu)))
            .collect()
    }

    /// Opens uplink `number`.
    ///
    /// # Errors
    /// What DPDK says.
    pub fn open_uplink(&self, number: usize) -> Result<Driver, OpenError> {
        self.open_port(self.uplinks.get(number), number)
    }

    /// Opens the port that is the engine's port `place`.
    fn open_port(&self, info: Option<&Info>, place: usize) -> Result<Driver, OpenError> {
        let name = info.map_or_else(|| "DPDK port".to_owned(), netdev);
        let fail = |errno: i32, action| OpenError {
            device: name.clone(),
            action,
            cause: io::Error::from_raw_os_error(errno),
        };
        let info = info.ok_or_else(|| fail(libc_enodev(), "find"))?;
        let config = Config {
            queues: self.queues,
            descriptors: DESCRIPTORS,
            interrupts: !self.poll,
            tx_offloads: 0,
            // What a driver says unasked is enough: checksums that it would only verify are the machines' business.
            rx_offloads: 0,
            isolated: self.offload && place < self.uplinks.len() && info.driver != TAP_DRIVER,
        };
        let port = PortId(u16::try_from(place).unwrap_or(u16::MAX));
        let device = self
            .eal
            .open(info.port, &self.pool, config)
            .map_err(|error| fail(error.0, "start DPDK port"))?;
        self.rules.started(port, info.port, &device);
        self.isolate(&device, port)
            .map_err(|error| fail(error.0, "take tunnelled packets from the kernel"))?;
        let queues = DpdkPort::of(device)?.into_iter();
        Ok(Driver::Dpdk(
            queues.map(|queue| Box::new(queue) as _).collect(),
        ))
    }
}

fn libc_enodev() -> i32 {
    nix::errno::Errno::ENODEV as i32
}

impl Devices for Layout {
    fn netdev(&self, index: u16) -> String {
        self.machines
            .get(usize::from(index))
            .map(netdev)
            .unwrap_or_default()
    }

    fn open(&self, index: u16) -> Result<Driver, OpenError> {
        let index = usize::from(index);
        self.open_port(self.machines.get(index), self.uplinks.len() + index)
    }
}
