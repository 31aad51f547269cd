//! What flows and interfaces take of memory: bytes that are allocated for them and not given back.

use crate::{HELD, print_line, scene};
use dataplane::{Engine, EngineConfig, PortConfig, PortId, PortKind};
use net::Mac;
use std::sync::atomic::Ordering;

/// Machines of the host that is measured.
const MACHINES: u16 = 120;
/// Flows of the workers that are compared.
const FEW: u32 = 1_000;
const MANY: u32 = 1_000_000;

/// # Errors
/// The configuration is refused: a mistake of the benchmark.
pub fn report() -> Result<(), String> {
    let few = worker_bytes(FEW);
    let flow = (worker_bytes(MANY) - few) as f64 / f64::from(MANY - FEW);
    print_line(&format!("a flow: {flow:.1} bytes per worker"));
    let mut engine = host(FEW);
    let before = held();
    for port in 2..MACHINES + 2 {
        let spec = scene::interface(&format!("machine{port}"), port, port);
        let made = engine.create_interface(spec);
        made.map_err(|error| error.to_string())?;
    }
    let bare = per_machine(held() - before);
    for port in 2..MACHINES + 2 {
        for rule in scene::rules() {
            let made = engine.create_firewall_rule(&format!("machine{port}"), rule);
            made.map_err(|error| error.to_string())?;
        }
    }
    let filtered = per_machine(held() - before);
    print_line(&format!(
        "an interface with an address of each family: {bare:.0} bytes; with eight rules of the packet filter: {filtered:.0}"
    ));
    Ok(())
}

fn per_machine(bytes: i64) -> f64 {
    bytes as f64 / f64::from(MACHINES)
}

fn held() -> i64 {
    HELD.load(Ordering::Relaxed)
}

fn worker_bytes(flows_max: u32) -> i64 {
    let engine = host(flows_max);
    let before = held();
    let worker = engine.worker();
    let bytes = held() - before;
    drop(worker);
    bytes
}

fn host(flows_max: u32) -> Engine {
    let ports = (0..MACHINES + 2).map(|index| PortConfig {
        name: format!("net_tap{index}"),
        kind: if index < 2 {
            PortKind::Uplink(index as u8)
        } else {
            PortKind::Machine
        },
        mac: Mac([2, 0, 0, 0, (index >> 8) as u8, index as u8]),
    });
    let mut config = EngineConfig::new(scene::HOST, ports.collect());
    config.limits.flows_max = flows_max;
    let mut engine = Engine::new(config);
    engine.set_next_hop(PortId(0), Some(Mac([2, 0, 0, 0, 255, 0])));
    engine
}
