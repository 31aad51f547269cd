//! The host: two machines of each tenant, all tenants with the same addresses, and everything that can be configured.

use super::frames::{Frames, Random};
use super::judge;
use dataplane::{
    ConfigError, DropReason, Engine, EngineConfig, FirewallAction, FirewallRule, Instant,
    InterfaceSpec, LbPort, LoadBalancerSpec, Metering, PacketBuf, PortConfig, PortId, PortKind,
    PortMatch, RuleDirection, RuleFilter, RulePrefix, Verdict, Worker,
};
use net::{Mac, PortRange, Vni};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const TENANTS: u16 = 50;
pub const UPLINKS: u16 = 2;
pub const HOST: Ipv6Addr = Ipv6Addr::new(0xfc00, 1, 0, 0, 0, 0, 0, 1);
pub const EDGE: Ipv6Addr = Ipv6Addr::new(0xfc00, 0xe, 0, 0, 0, 0, 0, 1);
pub const BALANCED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const NAT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// NAT ports of this host.
pub const NAT_PORTS: (u16, u16) = (1_024, 2_048);
const BURST: usize = 32;
/// Bursts between two exchanges of interfaces.
const CHURN_BURSTS: u64 = 10_000;
/// Violations that are described.
const DESCRIBED_MAX: usize = 10;

/// The first machine of a tenant has a virtual address, a further prefix and a balanced address; the second one shares a NAT address. The
/// second machines of odd tenants are silent, and their packet filter admits little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Machine {
    pub tenant: u16,
    pub is_second: bool,
}

impl Machine {
    pub fn is_guarded(self) -> bool {
        self.is_second && self.tenant % 2 == 1
    }

    pub fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, 1 + u8::from(self.is_second))
    }

    pub fn v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1 + u16::from(self.is_second))
    }

    fn id(self) -> String {
        format!("t{}-{}", self.tenant, u8::from(self.is_second))
    }
}

/// What the policy says about an underlay address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Everything is for this machine.
    Machine(Machine),
    /// For the tenant's first machine, which is the only target.
    Balancer(u16),
    /// For the tenant's second machine, or another host.
    Nat(u16),
}

/// What the judge goes by.
#[derive(Debug, Default)]
pub struct Policy {
    pub owners: BTreeMap<PortId, Machine>,
    pub underlays: BTreeMap<Machine, Ipv6Addr>,
    pub entrances: BTreeMap<Ipv6Addr, Entrance>,
}

pub struct Region {
    engine: Engine,
    worker: Worker,
    pub policy: Policy,
    frames: Frames,
    random: Random,
    now: Instant,
}

/// What became of the packets.
#[derive(Debug, Default)]
pub struct Report {
    pub packets: u64,
    pub to_machines: u64,
    pub to_uplinks: u64,
    pub replies: u64,
    pub exchanges: u64,
    pub drops: BTreeMap<&'static str, u64>,
    pub violations: Vec<String>,
    pub violated: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} packets: {} to machines, {} out, {} answered here, {} dropped; {} exchanges of interfaces; {} violations",
            self.packets,
            self.to_machines,
            self.to_uplinks,
            self.replies,
            self.drops.values().sum::<u64>(),
            self.exchanges,
            self.violated
        )?;
        for (reason, count) in &self.drops {
            writeln!(f, "  {count:12} {reason}")?;
        }
        for violation in &self.violations {
            writeln!(f, "violation: {violation}")?;
        }
        Ok(())
    }
}

/// NAT ports of a tenant's other host: of a shared address, a port belongs to one host whichever network asks.
pub fn other_nat_ports(tenant: u16) -> (u16, u16) {
    (2_048 + tenant * 8, 2_056 + tenant * 8)
}

/// The other host of a tenant's network.
pub fn neighbour(tenant: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfc00, 2, 0, 0, 0xd000, 0, 0, 1 + tenant)
}

fn vni(tenant: u16) -> Vni {
    Vni::new(1_000 + u32::from(tenant)).unwrap_or(Vni::MAX)
}

fn config() -> EngineConfig {
    let ports = (0..UPLINKS + 2 * TENANTS).map(|port| PortConfig {
        name: format!("port{port}"),
        kind: if port < UPLINKS {
            PortKind::Uplink(port as u8)
        } else {
            PortKind::Machine
        },
        mac: mac(PortId(port)),
    });
    let mut config = EngineConfig::new(HOST, ports.collect());
    config.ipv6_overlay = true;
    config.flow_timeout_s = 10;
    config.limits.flows_max = 200_000;
    config.limits.nat_max = 50_000;
    config
}

/// The address under which machines see their gateway.
pub fn mac(port: PortId) -> Mac {
    let [high, low] = port.0.to_be_bytes();
    Mac([2, 0, 0, 0, high, low])
}

impl Region {
    /// # Errors
    /// The configuration is refused: a mistake here.
    pub fn new(seed: u64) -> Result<Region, ConfigError> {
        let mut engine = Engine::new(config());
        for uplink in 0..UPLINKS {
            engine.set_next_hop(PortId(uplink), Some(Mac([2, 0, 0, 0, 9, 0])));
        }
        engine.initialize();
        let worker = engine.worker();
        let mut region = Region {
            engine,
            worker,
            policy: Policy::default(),
            frames: Frames::default(),
            random: Random::new(seed),
            now: Instant::from_secs(10),
        };
        for tenant in 0..TENANTS {
            for is_second in [false, true] {
                let port = PortId(UPLINKS + 2 * tenant + u16::from(is_second));
                region.attach(Machine { tenant, is_second }, port)?;
            }
            region.connect(tenant)?;
        }
        region.frames.learn(&region.policy);
        Ok(region)
    }

    fn attach(&mut self, machine: Machine, port: PortId) -> Result<(), ConfigError> {
        let id = machine.id();
        let spec = InterfaceSpec {
            id: id.clone(),
            device: format!("port{}", port.0),
            vni: vni(machine.tenant),
            ipv4: Some(machine.v4()),
            ipv6: Some(machine.v6()),
            pxe: None,
            metering: Metering::default(),
            preferred_underlay: None,
            hostname: None,
        };
        let engine = &mut self.engine;
        let own = engine.create_interface(spec)?.underlay;
        let entrance = Entrance::Machine(machine);
        let mut entrances = vec![(own, entrance)];
        if machine.is_second {
            let ports = PortRange::new(NAT_PORTS.0, NAT_PORTS.1).ok_or(ConfigError::NotFound)?;
            let underlay = engine.create_nat(&id, IpAddr::V4(NAT), ports, None)?;
            entrances.push((underlay, Entrance::Nat(machine.tenant)));
        } else {
            let alias = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 0));
            entrances.push((engine.create_prefix(&id, alias, 24, None)?, entrance));
            let served = engine.create_lb_prefix(&id, IpAddr::V4(BALANCED), 32, None)?;
            entrances.push((served, entrance));
            entrances.push((engine.create_vip(&id, IpAddr::V4(VIP), None)?, entrance));
            let balancer = format!("lb{}", machine.tenant);
            if engine.load_balancer(&balancer).is_ok() {
                engine.create_load_balancer_target(&balancer, IpAddr::V6(served))?;
            }
        }
        if machine.is_guarded() {
            for rule in rules().into_iter().flatten() {
                engine.create_firewall_rule(&id, rule)?;
            }
        }
        self.policy.entrances.extend(entrances);
        self.policy.underlays.insert(machine, own);
        self.policy.owners.insert(port, machine);
        Ok(())
    }

    /// Routes, load balancer and the other host's NAT ports.
    fn connect(&mut self, tenant: u16) -> Result<(), ConfigError> {
        let (engine, vni) = (&mut self.engine, vni(tenant));
        for (prefix, length, hop) in [
            (
                IpAddr::V4(Ipv4Addr::new(10, 1, 0, 0)),
                16,
                neighbour(tenant),
            ),
            (
                IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0)),
                32,
                neighbour(tenant),
            ),
            (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0, EDGE),
            (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0, EDGE),
        ] {
            engine.create_route(vni, prefix, length, IpAddr::V6(hop), vni.get())?;
        }
        let (first, end) = other_nat_ports(tenant);
        let ports = PortRange::new(first, end).ok_or(ConfigError::NotFound)?;
        engine.create_neighbor_nat(IpAddr::V4(NAT), vni, ports, neighbour(tenant))?;
        let id = format!("lb{tenant}");
        let underlay = engine.create_load_balancer(LoadBalancerSpec {
            id: id.clone(),
            vni,
            address: IpAddr::V4(BALANCED),
            ports: vec![
                LbPort {
                    protocol: 17,
                    port: 80,
                },
                LbPort {
                    protocol: 6,
                    port: 443,
                },
            ],
            preferred_underlay: None,
        })?;
        let first = Machine {
            tenant,
            is_second: false,
        };
        let served = engine
            .lb_prefixes(&first.id())?
            .first()
            .map(|(_, underlay)| *underlay);
        if let Some(served) = served {
            engine.create_load_balancer_target(&id, IpAddr::V6(served))?;
        }
        self.policy
            .entrances
            .insert(underlay, Entrance::Balancer(tenant));
        Ok(())
    }

    /// Two machines leave, and each comes back on the other's port.
    fn exchange(&mut self) -> Result<(), ConfigError> {
        let ports: Vec<PortId> = self.policy.owners.keys().copied().collect();
        let mut pick = || {
            ports
                .get(self.random.below(ports.len() as u32) as usize)
                .copied()
        };
        let (Some(one), Some(two)) = (pick(), pick()) else {
            return Ok(());
        };
        if one == two {
            return Ok(());
        }
        let mut moved = Vec::new();
        for (port, to) in [(one, two), (two, one)] {
            if let Some(machine) = self.policy.owners.remove(&port) {
                self.detach(machine)?;
                moved.push((machine, to));
            }
        }
        for (machine, port) in moved {
            self.attach(machine, port)?;
        }
        self.frames.learn(&self.policy);
        Ok(())
    }

    fn detach(&mut self, machine: Machine) -> Result<(), ConfigError> {
        if !machine.is_second {
            let balancer = format!("lb{}", machine.tenant);
            for target in self.engine.load_balancer_targets(&balancer)? {
                self.engine
                    .delete_load_balancer_target(&balancer, IpAddr::V6(target))?;
            }
        }
        self.engine.delete_interface(&machine.id())?;
        self.policy.entrances.retain(|_, entrance| match entrance {
            Entrance::Machine(other) => *other != machine,
            Entrance::Nat(tenant) => !(machine.is_second && *tenant == machine.tenant),
            Entrance::Balancer(_) => true,
        });
        Ok(())
    }

    /// Sends so many packets, and judges all that comes of them.
    ///
    /// # Errors
    /// A change of the configuration is refused: a mistake here, or of the engine.
    pub fn run(&mut self, packets: u64) -> Result<Report, ConfigError> {
        let mut report = Report::default();
        let mut buffers: Vec<PacketBuf> = (0..BURST).map(|_| PacketBuf::new()).collect();
        let mut sent: Vec<Vec<u8>> = vec![Vec::new(); BURST];
        let mut verdicts = vec![Verdict::Drop(DropReason::Bug); BURST];
        for burst in 0..packets.div_ceil(BURST as u64) {
            if burst % CHURN_BURSTS == CHURN_BURSTS - 1 {
                self.exchange()?;
                report.exchanges += 1;
            }
            let port = self.port();
            let machine = self.policy.owners.get(&port).copied();
            for (frame, buffer) in sent.iter_mut().zip(&mut buffers) {
                self.frames.make(&mut self.random, machine, frame);
                let _ = buffer.fill(frame);
            }
            self.now = Instant(self.now.0 + 1_000_000);
            let (worker, now) = (&mut self.worker, self.now);
            self.engine
                .process_burst(worker, port, &mut buffers, &mut verdicts, now);
            if burst % 100 == 0 {
                self.worker.tick(self.now);
            }
            for ((frame, buffer), verdict) in sent.iter().zip(&buffers).zip(&verdicts) {
                self.note(&mut report, port, frame, (*verdict, buffer.frame()));
            }
        }
        Ok(report)
    }

    /// Where the next burst comes in. Guarded machines are silent.
    fn port(&mut self) -> PortId {
        loop {
            if self.random.below(3) == 0 {
                return PortId(self.random.below(u32::from(UPLINKS)) as u16);
            }
            let port = PortId(UPLINKS + self.random.below(u32::from(2 * TENANTS)) as u16);
            if self
                .policy
                .owners
                .get(&port)
                .is_some_and(|machine| !machine.is_guarded())
            {
                return port;
            }
        }
    }

    fn note(
        &self,
        report: &mut Report,
        port: PortId,
        sent: &[u8],
        (verdict, result): (Verdict, &[u8]),
    ) {
        report.packets += 1;
        match verdict {
            Verdict::Drop(reason) => *report.drops.entry(reason.name()).or_default() += 1,
            Verdict::Reply(_) => report.replies += 1,
            Verdict::Transmit(to) if to.0 < UPLINKS => report.to_uplinks += 1,
            Verdict::Transmit(_) => report.to_machines += 1,
        }
        if let Err(reason) = judge::judge(&self.policy, (port, sent), (verdict, result)) {
            report.violated += 1;
            if report.violations.len() < DESCRIBED_MAX {
                report.violations.push(format!(
                    "{reason}: in on {} {sent:02x?}, {verdict:?} {result:02x?}",
                    port.0
                ));
            }
        }
    }
}

/// What guarded machines admit: UDP to port 80 from the tenant's first machine, TCP to port 443 from half of the other host.
fn rules() -> [Option<FirewallRule>; 2] {
    let any = RulePrefix::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let only = |port| PortMatch {
        lower: Some(port),
        upper: Some(port),
    };
    let rule = |id: &str, source, length, filter| {
        Some(FirewallRule {
            id: id.to_owned(),
            direction: RuleDirection::Ingress,
            action: FirewallAction::Accept,
            priority: 1,
            source: RulePrefix::new(IpAddr::V4(source), length)?,
            destination: any?,
            filter,
        })
    };
    let (source, ports) = (PortMatch::ANY, only(80));
    let udp = RuleFilter::Udp {
        source,
        destination: ports,
    };
    let tcp = RuleFilter::Tcp {
        source,
        destination: only(443),
    };
    [
        rule("udp", Ipv4Addr::new(10, 0, 0, 1), 32, udp),
        rule("tcp", Ipv4Addr::new(10, 1, 0, 0), 17, tcp),
    ]
}

/// Whether those rules admit a packet.
pub fn admits(source: Ipv4Addr, protocol: u8, port: u16) -> bool {
    match (protocol, port) {
        (17, 80) => source == Ipv4Addr::new(10, 0, 0, 1),
        (6, 443) => matches!(source.octets(), [10, 1, 0..=127, _]),
        _ => false,
    }
}
