//! Telemetry commands. The answer to a command is a JSON object whose only key is the command as it was given.

use super::Facts;
use serde_json::{Map, Value, json};

/// Stages per block of an answer.
const BLOCK: usize = 256;

/// Every command, with what it answers. Those about a port want its number behind a comma.
pub const COMMANDS: [(&str, &str); 12] = [
    (
        "/dp_service/firewall/rule_count",
        "Firewall rules by interface",
    ),
    (
        "/dp_service/graph/call_count",
        "Calls of each stage: one per packet",
    ),
    ("/dp_service/graph/cycle_count", "Not measured: 0"),
    ("/dp_service/graph/obj_count", "Packets of each stage"),
    (
        "/dp_service/graph/realloc_count",
        "Nothing is allocated per packet: 0",
    ),
    (
        "/dp_service/nat/used_port_count",
        "Live connections with network NAT by interface",
    ),
    (
        "/dp_service/table/saturation",
        "Capacity and entries of each table",
    ),
    (
        "/dp_service/virtsvc/used_port_count",
        "Live connections of each virtual service",
    ),
    ("/ethdev/info", "Name of a port"),
    ("/ethdev/link_status", "Link of a port"),
    ("/ethdev/list", "Ports"),
    ("/ethdev/xstats", "What the driver of a port counted"),
];

/// The answer to a command such as `/dp_service/table/saturation` or `/ethdev/xstats,0`; `None` if there is no such command or port.
#[must_use]
pub fn answer(facts: &Facts, command: &str) -> Option<Value> {
    let (name, parameter) = match command.split_once(',') {
        Some((name, parameter)) => (name, Some(parameter)),
        None => (command, None),
    };
    let value = match name {
        "/" => COMMANDS.iter().map(|(name, _)| *name).collect(),
        "/dp_service/graph/obj_count" | "/dp_service/graph/call_count" => {
            stages(facts, |count| count)
        }
        "/dp_service/graph/cycle_count" | "/dp_service/graph/realloc_count" => stages(facts, |_| 0),
        "/dp_service/nat/used_port_count" => json!(facts.nat_ports),
        "/dp_service/firewall/rule_count" => json!(facts.firewall_rules),
        "/dp_service/virtsvc/used_port_count" => {
            let services = facts.virtual_services.iter();
            object(services.map(|(name, live)| (name.clone(), json!(live))))
        }
        "/dp_service/table/saturation" => object(facts.tables.iter().map(|table| {
            let fill = json!({"capacity": table.capacity, "entries": table.entries});
            (table.name.clone(), fill)
        })),
        "/ethdev/list" => (0..facts.ports.len()).collect(),
        "/ethdev/info" | "/ethdev/link_status" | "/ethdev/xstats" => {
            let number: usize = parameter?.parse().ok()?;
            let port = facts.ports.get(number)?;
            match name {
                "/ethdev/info" => json!({"name": port.name, "port_id": number}),
                "/ethdev/link_status" => json!({"status": if port.link { "UP" } else { "DOWN" }}),
                _ => {
                    let all = port.statistics.iter();
                    object(all.map(|(name, value)| (name.clone(), json!(value))))
                }
            }
        }
        _ => return None,
    };
    // Without its parameter, as DPDK answers.
    Some(object([(name.to_owned(), value)]))
}

fn object(entries: impl IntoIterator<Item = (String, Value)>) -> Value {
    Value::Object(entries.into_iter().collect::<Map<_, _>>())
}

/// Stages in blocks, because a dictionary of DPDK's telemetry holds no more.
fn stages(facts: &Facts, value: fn(u64) -> u64) -> Value {
    let blocks = facts.stages.chunks(BLOCK).enumerate();
    object(blocks.map(|(number, block)| {
        let first = number * BLOCK;
        let name = format!("Node_{first}_to_{}", first + BLOCK - 1);
        let stages = block.iter();
        let entries = stages.map(|(stage, count)| (stage.clone(), json!(value(*count))));
        (name, object(entries))
    }))
}
