//! The host under test: packet threads, memory ports, and the configuration that changes all the time.

use crate::traffic::{MACHINES, Random, Traffic, VNIS, Wires, machine_address, machine_address6};
use anyhow::{Context as _, Result, bail, ensure};
use dataplane::{
    ConfigError, Engine, EngineConfig, FirewallAction, FirewallRule, InterfaceSpec, LbPort,
    LoadBalancerSpec, Metering, Node, PortConfig, PortId, PortKind, PortMatch, RuleDirection,
    RuleFilter, RulePrefix, UnderlaySeed,
};
use dpservice::devices::Driver;
use dpservice::service;
use dpservice::worker::{Handle, Settings, Threads};
use net::{Mac, PortRange, Vni};
use ports::{Frame, MemoryPeer, memory};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

pub const HOST: Ipv6Addr = Ipv6Addr::new(0xfc00, 1, 0, 0, 0, 0, 0, 1);
/// Another host, and the way out of the region.
pub const NEIGHBOUR: Ipv6Addr = Ipv6Addr::new(0xfc00, 2, 0, 0, 0xd000, 0, 0, 1);
pub const EDGE: Ipv6Addr = Ipv6Addr::new(0xfc00, 0xe, 0, 0, 0, 0, 0, 1);
const UPLINKS: u16 = 2;
/// Connections are forgotten after so many seconds.
const FLOW_TIMEOUT_S: u32 = 2;
const MTU: usize = 1_500;
/// Longest wait for empty tables.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(40);

pub struct Host {
    handle: Handle,
    threads: Threads,
    lost: service::Lost,
    uplinks: Vec<MemoryPeer>,
    machines: Vec<MemoryPeer>,
}

/// What all threads have counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub packets: u64,
    pub dropped: u64,
    pub connections: u64,
}

fn mac(port: u16) -> Mac {
    let [high, low] = port.to_be_bytes();
    Mac([2, 0, 0, 1, high, low])
}

fn vni(machine: u16) -> Vni {
    Vni::new(100 + u32::from(machine % VNIS)).unwrap_or(Vni::MAX)
}

fn id(machine: u16) -> String {
    format!("vm{machine}")
}

fn config() -> EngineConfig {
    let ports = (0..UPLINKS + MACHINES).map(|port| PortConfig {
        name: format!("mem{port}"),
        kind: if port < UPLINKS {
            PortKind::Uplink(port as u8)
        } else {
            PortKind::Machine
        },
        mac: mac(port),
    });
    let mut config = EngineConfig::new(HOST, ports.collect());
    config.ipv6_overlay = true;
    config.underlay_seed = UnderlaySeed::Static;
    config.flow_timeout_s = FLOW_TIMEOUT_S;
    config.wcmp_percent = 50;
    config.limits.flows_max = 100_000;
    config.limits.nat_max = 50_000;
    config
}

impl Host {
    /// Threads with all ports attached and everything configured.
    pub async fn start(workers: usize) -> Result<Host> {
        let config = config();
        let mut uplinks = Vec::new();
        let mut drivers = Vec::new();
        for port in 0..UPLINKS {
            let (driver, peer) = memory::pair(&format!("mem{port}"), mac(port), MTU)?;
            drivers.push(Driver::native(vec![driver]));
            uplinks.push(peer);
        }
        let settings = Settings {
            workers,
            ..Settings::default()
        };
        let (handle, threads, lost) =
            service::start_threads::<Frame>(&config, drivers, settings).await?;
        let mut host = Host {
            handle,
            threads,
            lost,
            uplinks,
            machines: Vec::new(),
        };
        for machine in 0..MACHINES {
            let peer = host.plug(machine).await?;
            host.machines.push(peer);
        }
        host.handle.call(configure).await??;
        Ok(host)
    }

    /// The other ends of all ports.
    pub fn wires(&self) -> Wires {
        Wires {
            uplinks: self.uplinks.clone(),
            machines: self.machines.clone(),
        }
    }

    async fn plug(&self, machine: u16) -> Result<MemoryPeer> {
        let port = UPLINKS + machine;
        let (driver, peer) = memory::pair(&format!("mem{port}"), mac(port), MTU)?;
        let driver = Driver::native(vec![driver]);
        let attached = self.handle.attach(PortId(port), driver, |_| true);
        attached.await?.context("cannot attach a machine port")?;
        Ok(peer)
    }

    /// Changes something. Machine 0 is left alone but for links and routes.
    pub async fn disturb(&mut self, random: &mut Random, traffic: &Traffic) -> Result<()> {
        while self.lost.try_recv().is_ok() {}
        let machine = 1 + random.below(u32::from(MACHINES) - 1) as u16;
        let choice = random.below(16);
        if choice == 0 {
            // The device goes away under the packet threads, and another one comes.
            if let Some(peer) = self.machines.get(usize::from(machine)) {
                peer.unplug();
            }
            let peer = self.plug(machine).await?;
            if let Some(place) = self.machines.get_mut(usize::from(machine)) {
                *place = peer;
            }
            traffic.rewire(self.wires());
            return Ok(());
        }
        let number = random.below(1 << 16);
        let done = self.handle.call(move |plane| {
            plane.tick();
            change(&mut plane.engine, choice, machine, number)
        });
        done.await?
            .map_err(|error| anyhow::anyhow!("change {choice}: {error}"))
    }

    /// Waits until nothing is remembered any more, and checks the books.
    pub async fn settled(&self) -> Result<Totals> {
        let start = Instant::now();
        loop {
            let seen = self.handle.inspect(|inspection| {
                let worker = &inspection.worker;
                let counters = worker.counters();
                let ports = (0..UPLINKS + MACHINES).map(PortId);
                let sent: u64 = ports.map(|port| counters.port(port).tx_packets).sum();
                let totals = Totals {
                    packets: counters.node(Node::Cls),
                    dropped: counters.node(Node::Drop),
                    connections: counters.flows_created,
                };
                let held = worker.flow_saturation().0
                    + worker.adjacency_saturation().0
                    + worker.nat().saturation().0
                    + worker.nat().mappings_len();
                (totals, sent, held)
            });
            let mut sum = Totals::default();
            let mut left = 0;
            for (totals, sent, held) in seen.await? {
                let Totals {
                    packets,
                    dropped,
                    connections,
                } = totals;
                ensure!(
                    packets == sent + dropped,
                    "{packets} packets, {sent} sent, {dropped} dropped"
                );
                sum.packets += packets;
                sum.dropped += dropped;
                sum.connections += connections;
                left += held;
            }
            if left == 0 {
                return Ok(sum);
            }
            if start.elapsed() > SETTLE_TIMEOUT {
                bail!("{left} places are still taken");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub async fn stop(self) -> Result<()> {
        let Host {
            handle, threads, ..
        } = self;
        tokio::task::spawn_blocking(move || threads.stop(handle)).await?;
        Ok(())
    }
}

fn configure(plane: &mut dpservice::worker::Plane) -> Result<()> {
    let engine = &mut plane.engine;
    let done: Result<(), ConfigError> = (|| {
        for uplink in 0..UPLINKS {
            engine.set_next_hop(PortId(uplink), Some(Mac([2, 0, 0, 0, 9, uplink as u8])));
            engine.set_uplink_mtu(PortId(uplink), 9_000);
        }
        engine.initialize();
        for machine in 0..MACHINES {
            create(engine, machine)?;
        }
        for network in 0..VNIS {
            let vni = vni(network);
            for (prefix, length, hop) in [
                (IpAddr::V4(Ipv4Addr::new(10, 1, 0, 0)), 16, NEIGHBOUR),
                (
                    IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0)),
                    32,
                    NEIGHBOUR,
                ),
                (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0, EDGE),
                (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0, EDGE),
            ] {
                engine.create_route(vni, prefix, length, IpAddr::V6(hop), 0)?;
            }
            let spec = LoadBalancerSpec {
                id: format!("lb{network}"),
                vni,
                address: balanced(network),
                ports: vec![LbPort {
                    protocol: 17,
                    port: 80,
                }],
                preferred_underlay: None,
            };
            engine.create_load_balancer(spec)?;
            engine.create_load_balancer_target(&format!("lb{network}"), IpAddr::V6(NEIGHBOUR))?;
        }
        Ok(())
    })();
    done.map_err(|error| anyhow::anyhow!("cannot configure: {error}"))
}

/// The address that a network's load balancer serves.
pub fn balanced(network: u16) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, network as u8))
}

/// An interface with what belongs to it: NAT for even machines of a network, an address of its own for the others.
fn create(engine: &mut Engine, machine: u16) -> Result<(), ConfigError> {
    engine.create_interface(InterfaceSpec {
        id: id(machine),
        device: format!("mem{}", UPLINKS + machine),
        vni: vni(machine),
        ipv4: Some(machine_address(machine)),
        ipv6: Some(machine_address6(machine)),
        pxe: None,
        metering: Metering::default(),
        preferred_underlay: None,
        hostname: None,
    })?;
    translate(engine, machine)
}

fn translate(engine: &mut Engine, machine: u16) -> Result<(), ConfigError> {
    if (machine / VNIS).is_multiple_of(2) {
        let first = 10_000 + machine * 200;
        let ports = PortRange::new(first, first + 200).ok_or(ConfigError::NotFound)?;
        let address = IpAddr::V4(Ipv4Addr::new(203, 0, 113, (machine % VNIS) as u8));
        engine.create_nat(&id(machine), address, ports, None)?;
    } else {
        let address = IpAddr::V4(Ipv4Addr::new(203, 0, 112, machine as u8));
        engine.create_vip(&id(machine), address, None)?;
    }
    Ok(())
}

/// One change of many kinds; what is already as it would be is left so.
fn change(engine: &mut Engine, choice: u32, machine: u16, number: u32) -> Result<(), ConfigError> {
    let id = id(machine);
    let network = machine % VNIS;
    match choice {
        1 => {
            engine.delete_interface(&id)?;
            create(engine, machine)
        }
        2 | 3 => {
            let has_link = engine.has_link(PortId(1));
            engine.set_link(PortId(1), !has_link);
            Ok(())
        }
        4 => {
            engine.set_link(PortId(0), false);
            engine.set_link(PortId(0), true);
            Ok(())
        }
        5 | 6 => {
            let prefix = IpAddr::V4(Ipv4Addr::new(10, 1, number as u8, 0));
            match engine.delete_route(vni(network), prefix, 24) {
                Ok(()) => Ok(()),
                Err(_) => engine.create_route(vni(network), prefix, 24, IpAddr::V6(NEIGHBOUR), 0),
            }
        }
        7 | 8 => {
            let name = "extra";
            if engine.firewall_rule(&id, name).is_ok() {
                return engine.delete_firewall_rule(&id, name);
            }
            let any = RulePrefix::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
            let any = any.ok_or(ConfigError::NotFound)?;
            engine.create_firewall_rule(
                &id,
                FirewallRule {
                    id: name.to_owned(),
                    direction: RuleDirection::Egress,
                    action: FirewallAction::Accept,
                    priority: number,
                    source: any,
                    destination: any,
                    filter: RuleFilter::Udp {
                        source: PortMatch::ANY,
                        destination: PortMatch {
                            lower: Some(1),
                            upper: Some(number as u16 | 1),
                        },
                    },
                },
            )
        }
        9 | 10 => {
            if engine.nat(&id).is_ok() {
                engine.delete_nat(&id)
            } else if engine.vip(&id).is_ok() {
                engine.delete_vip(&id)
            } else {
                translate(engine, machine)
            }
        }
        11 | 12 => {
            let address = balanced(network);
            let name = format!("lb{network}");
            let served = engine
                .lb_prefixes(&id)?
                .first()
                .map(|(_, underlay)| *underlay);
            match served {
                Some(underlay) => {
                    engine.delete_load_balancer_target(&name, IpAddr::V6(underlay))?;
                    engine.delete_lb_prefix(&id, address, 32)
                }
                None => {
                    let underlay = engine.create_lb_prefix(&id, address, 32, None)?;
                    engine.create_load_balancer_target(&name, IpAddr::V6(underlay))
                }
            }
        }
        _ => {
            let mtu = if number.is_multiple_of(2) {
                9_000
            } else {
                1_500
            };
            engine.set_uplink_mtu(PortId(1), mtu);
            Ok(())
        }
    }
}
