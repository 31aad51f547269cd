//! NATGatewayAutoscaler: as many addresses as the interfaces of the gateway need.
//!
//! Growing adds an address, or takes one back that is being drained. Shrinking has two steps: an address is marked as draining, so
//! that nobody new comes, and it is taken away when the table that was made with the mark in sight has nobody left on it. So no
//! connection is broken by scaling. The emptiest address drains first.

use std::collections::BTreeMap;

use api::{
    apinet::{NATGateway, NATGatewayAutoscaler, NATTable, NatGatewayIp, NatTableIp},
    meta::Ip,
};
use controller::{Controller, Key, Op, Plan, Source, Watch, World, object};
use serde_json::json;

use crate::{index, ports::slots};

/// Autoscalers by the key of their gateway.
const BY_GATEWAY: &str = "apinet-autoscaler-gateway";
/// Shrinking waits until this part of an address would stay free, so that one interface more does not bring the address back.
const SLACK_DIVISOR: i64 = 10;

pub struct NatAutoscalerController;

impl Controller for NatAutoscalerController {
    fn name(&self) -> &'static str {
        "natgatewayautoscaler"
    }

    fn sources(&self) -> Vec<Source> {
        let scalers = Watch::<NATGatewayAutoscaler>::new()
            .own_key()
            .index(BY_GATEWAY, |scaler| vec![gateway_of(scaler).to_string()]);
        let of = |key: Key, world: &World| {
            let scalers = world.indexed::<NATGatewayAutoscaler>(BY_GATEWAY, &key.to_string());
            scalers
                .iter()
                .map(|scaler| Key::of(&**scaler))
                .collect::<Vec<_>>()
        };
        let gateways = index::gateways().keys(move |gateway, world| of(Key::of(gateway), world));
        let tables = Watch::<NATTable>::new().keys(move |table, world| of(Key::of(table), world));
        vec![scalers.build(), gateways.build(), tables.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(scaler) = world.by_key::<NATGatewayAutoscaler>(key) else {
            return Plan::none();
        };
        let Some(gateway) = world.by_key::<NATGateway>(&gateway_of(&scaler)) else {
            return Plan::none();
        };
        if object::is_deleting(&*scaler) || object::is_deleting(&*gateway) {
            return Plan::none();
        }
        let table = world.by_key::<NATTable>(&gateway_of(&scaler));
        let rows = table.as_ref().map_or(&[][..], |table| &table.ips);
        let status = gateway.status.clone().unwrap_or_default();
        let demand = Demand {
            requests: status.requested_nat_ips.unwrap_or(0),
            slots: i64::from(slots(gateway.spec.ports_per_network_interface)),
            min: i64::from(scaler.spec.min_public_ips.unwrap_or(0)),
            max: scaler.spec.max_public_ips.map(i64::from),
            settled: status.observed_generation.is_some()
                && status.observed_generation == gateway.metadata.generation,
        };
        let scaled = scale(&gateway.spec.ips, rows, &demand);
        match scaled == gateway.spec.ips {
            true => Plan::none(),
            false => vec![Op::locked(&*gateway, json!({ "spec": { "ips": scaled } }))].into(),
        }
    }
}

fn gateway_of(scaler: &NATGatewayAutoscaler) -> Key {
    Key::new(object::namespace(scaler), &scaler.spec.nat_gateway_ref.name)
}

/// What is needed, and the bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Interfaces that want a block.
    pub requests: i64,
    /// Blocks of one address.
    pub slots: i64,
    /// Fewest addresses.
    pub min: i64,
    /// Most addresses.
    pub max: Option<i64>,
    /// Whether the table was made from the addresses as they are now.
    pub settled: bool,
}

impl Demand {
    fn addresses(&self, requests: i64) -> i64 {
        let needed = match self.slots {
            ..=0 => 0,
            // Every block that is missing needs an address, also if it is the only one on it.
            slots => (requests + slots - 1) / slots,
        };
        let bounded = needed.max(self.min);
        self.max.map_or(bounded, |max| bounded.min(max)).max(0)
    }

    /// Addresses to have at least.
    fn grow_to(&self) -> i64 {
        self.addresses(self.requests)
    }

    /// Addresses to have at most.
    fn shrink_to(&self) -> i64 {
        let slack = match self.requests {
            0 => 0,
            _ => self.slots / SLACK_DIVISOR,
        };
        self.addresses(self.requests.saturating_add(slack))
    }
}

/// The addresses of a gateway after one step of scaling.
pub fn scale(ips: &[NatGatewayIp], rows: &[NatTableIp], demand: &Demand) -> Vec<NatGatewayIp> {
    let used: BTreeMap<Ip, usize> = rows
        .iter()
        .map(|row| (row.ip, row.sections.len()))
        .collect();
    let load = |entry: &NatGatewayIp| entry.ip.and_then(|ip| used.get(&ip)).copied().unwrap_or(0);
    let mut out = ips.to_vec();
    let active = |list: &[NatGatewayIp]| {
        let count = list.iter().filter(|entry| !entry.draining).count();
        i64::try_from(count).unwrap_or(i64::MAX)
    };
    if active(&out) < demand.grow_to() {
        grow(&mut out, demand, load, active);
    } else {
        for _ in demand.shrink_to()..active(&out) {
            // The last of the emptiest ones; the first addresses are the best known.
            let emptiest = out.iter_mut().rev().filter(|entry| !entry.draining);
            if let Some(entry) = emptiest.min_by_key(|entry| load(entry)) {
                entry.draining = true;
            }
        }
    }
    keep_the_used(&mut out, load);
    if demand.settled {
        // Only what was draining before this step: the table has seen that mark.
        let drained = |entry: &NatGatewayIp| {
            let before = ips.iter().any(|old| old.name == entry.name && old.draining);
            entry.draining && before && load(entry) == 0
        };
        out.retain(|entry| !drained(entry));
    }
    out
}

/// An address that nobody uses drains in place of one that is used: interfaces go in any order, and those that stayed may be on the
/// address that was chosen when they were fewer there than elsewhere.
fn keep_the_used(out: &mut [NatGatewayIp], load: impl Fn(&NatGatewayIp) -> usize) {
    loop {
        let used = out
            .iter()
            .position(|entry| entry.draining && load(entry) > 0);
        let unused = out
            .iter()
            .rposition(|entry| !entry.draining && load(entry) == 0);
        let Some((used, unused)) = used.zip(unused) else {
            return;
        };
        for (place, draining) in [(used, false), (unused, true)] {
            if let Some(entry) = out.get_mut(place) {
                entry.draining = draining;
            }
        }
    }
}

fn grow(
    out: &mut Vec<NatGatewayIp>,
    demand: &Demand,
    load: impl Fn(&NatGatewayIp) -> usize,
    active: impl Fn(&[NatGatewayIp]) -> i64,
) {
    while active(out) < demand.grow_to() {
        let fullest = out.iter_mut().filter(|entry| entry.draining);
        if let Some(entry) = fullest.max_by_key(|entry| load(entry)) {
            entry.draining = false;
            continue;
        }
        let name = (0..=out.len())
            .map(|n| format!("ip-{n}"))
            .find(|name| out.iter().all(|entry| entry.name != *name));
        out.push(NatGatewayIp {
            name: name.unwrap_or_default(),
            ip: None,
            draining: false,
        });
    }
}
