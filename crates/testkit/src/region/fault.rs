//! What goes wrong: processes die, watches lag or lose their place, connections break, answers get lost.

use std::time::Duration;

use api::ids::apinet_node_name;
use api::names::namespace;
use apiserver::local::Patch;
use controller::{Key, Target};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use rand::Rng;
use serde_json::json;

use crate::region::part::Part;
use crate::region::provider::PARTITION;
use crate::region::rack::{Side, open};
use crate::region::store::Store;
use crate::region::{EPOCH_MS, Region, SILENCE, bond};

/// 2030-01-01: later than any seed lasts.
const FUTURE_MS: u64 = 1_893_456_000_000;

/// Longest time that anything is away.
const AWAY_MAX_MS: u64 = 4_000;

/// One random fault.
pub fn strike(region: &mut Region) {
    region.summary.faults += 1;
    let away = region.rng.random_range(1..AWAY_MAX_MS);
    let until = region.now_ms + away;
    let host = region.rng.random_range(0..region.hosts.len());
    let server = region.rng.random_range(0..region.servers.len());
    let part = region.rng.random_range(0..region.parts.len());
    let now = region.now();
    let kinds = if region.racks.is_empty() { 13 } else { 16 };
    let choice = region.rng.random_range(0..kinds);
    let Region {
        hosts,
        parts,
        servers,
        rng,
        ..
    } = region;
    let (Some(host), Some(hub), Some(part)) = (
        hosts.get_mut(host),
        servers.get_mut(server),
        parts.get_mut(part),
    ) else {
        return;
    };
    let line = match choice {
        0 | 1 => {
            part.crash();
            format!("{} crashes", part.name)
        }
        2 => {
            part.stall(EPOCH_MS + until, rng);
            format!("a watch of {} shows nothing for {away} ms", part.name)
        }
        3 => {
            part.skip(rng);
            format!("a watch of {} loses its place", part.name)
        }
        4 => {
            host.crash_agent();
            format!("metalnet of {} crashes", host.name)
        }
        5 => {
            host.crash_plane(EPOCH_MS + until);
            format!("the data plane of {} restarts in {away} ms", host.name)
        }
        6 => {
            host.losses += rng.random_range(1..4);
            format!("answers to metalnet of {} get lost", host.name)
        }
        7 => {
            host.stall(EPOCH_MS + until, rng);
            format!(
                "a watch of metalnet of {} shows nothing for {away} ms",
                host.name
            )
        }
        8 => {
            host.skip(rng);
            format!("a watch of metalnet of {} loses its place", host.name)
        }
        9 => {
            if rng.random() {
                host.bond.cut(server, hub, now, rng);
                format!("{} loses metalbond server {server}", host.name)
            } else {
                host.bond.delay(server, now + Duration::from_millis(away));
                format!(
                    "{} and metalbond server {server} hear nothing for {away} ms",
                    host.name
                )
            }
        }
        10 => {
            host.pause(EPOCH_MS + until);
            format!("metalnet of {} pauses for {away} ms", host.name)
        }
        11 => {
            let host = region.rng.random_range(0..region.hosts.len());
            come_or_go(region, host)
        }
        12 => {
            restart_server(region, server);
            format!("metalbond server {server} restarts")
        }
        13 => {
            let (at, lost) = (
                region.rng.random_range(0..region.racks.len()),
                region.rng.random_range(1..4),
            );
            let mut rack = region.racks.get(at).map(|rack| open(rack));
            rack.iter_mut().for_each(|rack| rack.losses += lost);
            format!("answers to the machine side {at} get lost")
        }
        _ => {
            let at = region.rng.random_range(0..region.racks.len());
            crash_machine_side(region, at, EPOCH_MS + until);
            format!("poollet or provider {at} crashes, the provider for {away} ms")
        }
    };
    follow(region);
    region.note(format!("FAULT {line}"));
}

/// The machine side of a hypervisor: its processes come after those of the region.
const PARTS: usize = 4;

fn part_of(at: usize, side: Side) -> usize {
    PARTS + 2 * at + usize::from(side == Side::Provider)
}

fn crash_machine_side(region: &mut Region, at: usize, until: u64) {
    let side = match region.rng.random() {
        true => Side::Poollet,
        false => Side::Provider,
    };
    if let Some(part) = region.parts.get_mut(part_of(at, side)) {
        part.crash();
    }
    if let (Side::Provider, Some(rack)) = (side, region.racks.get(at)) {
        open(rack).stay_away(until);
    }
}

/// Devices are gone with their data planes.
fn follow(region: &mut Region) {
    for (rack, host) in region.racks.iter().zip(&region.hosts) {
        open(rack).kernel.follow(host.plane.as_ref());
    }
}

fn restart_server(region: &mut Region, server: usize) {
    let now = region.now();
    let Region {
        hosts,
        servers,
        edge,
        rng,
        ..
    } = region;
    let Some(hub) = servers.get_mut(server) else {
        return;
    };
    for host in hosts {
        host.bond.cut(server, hub, now, rng);
    }
    edge.bond.cut(server, hub, now, rng);
    *hub = bond::Server::default();
}

/// Writes a heartbeat of a hypervisor or its pool, which counts from that time on: one in the far future stands for all that follow.
pub fn beat(store: &mut Store, place: &str, host: &str, at_ms: u64) -> Result<(), String> {
    let at_ms = at_ms.min(FUTURE_MS);
    let at = Timestamp::from_millisecond(at_ms as i64).map_err(|error| error.to_string())?;
    let body = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "name": host, "namespace": place },
        "spec": {
            "holderIdentity": host,
            "leaseDurationSeconds": 3,
            "renewTime": format!("{at:.6}"),
        },
    });
    let target = Target::new::<Lease>(place, host);
    let written = store.patch(&target, Patch::Apply, false, &body, "metalnet");
    written.map(|_| ()).map_err(|refusal| refusal.text)
}

/// A hypervisor is cut off, or comes back.
fn come_or_go(region: &mut Region, at: usize) -> String {
    let (now, epoch) = (region.now(), region.epoch_ms());
    let others = region.hosts.iter().enumerate();
    let others = others
        .filter(|(other, host)| *other != at && !host.offline)
        .count();
    let with_plane = region.rng.random();
    let Region {
        hosts,
        racks,
        parts,
        servers,
        store,
        rng,
        ..
    } = region;
    let Some(host) = hosts.get_mut(at).filter(|host| !host.departed) else {
        return "nothing happens".to_owned();
    };
    if host.offline {
        host.come_back(epoch);
        let back = racks.get(at);
        if let Some(rack) = back {
            open(rack).offline = false;
            for side in [Side::Poollet, Side::Provider] {
                let part = parts.get_mut(part_of(at, side));
                part.into_iter().for_each(Part::crash);
            }
        }
        let beaten = beat(store, namespace::NODE_LEASE, &host.name, u64::MAX);
        return format!("{} is back {beaten:?}", host.name);
    }
    if others == 0 {
        return "nothing happens".to_owned();
    }
    host.go(with_plane);
    if let Some(rack) = racks.get(at) {
        let mut rack = open(rack);
        rack.offline = true;
        if with_plane {
            rack.power_fails();
        }
    }
    for (server, hub) in servers.iter_mut().enumerate() {
        host.bond.cut(server, hub, now, rng);
    }
    let beaten = beat(store, namespace::NODE_LEASE, &host.name, epoch);
    let noticed = epoch + SILENCE.as_millis() as u64 + 1;
    remind_of(parts, &host.name, noticed);
    let plane = if with_plane { "with" } else { "without" };
    format!(
        "{} is cut off, {plane} its data plane {beaten:?}",
        host.name
    )
}

/// Whoever judges heartbeats looks at a hypervisor at that time.
pub fn remind_of(parts: &mut [Part], host: &str, at_ms: u64) {
    if let Some(part) = parts.first_mut() {
        let node = Key::cluster(apinet_node_name(PARTITION, host));
        part.remind("apinetnodelifecycle", node, at_ms);
    }
}

/// Nothing more goes wrong: what is away has come back or will by itself.
pub fn heal(region: &mut Region) {
    for at in 0..region.hosts.len() {
        let away = region
            .hosts
            .get(at)
            .is_some_and(|host| host.offline && !host.departed);
        if away {
            let line = come_or_go(region, at);
            region.note(format!("HEALED {line}"));
        }
    }
    for host in &mut region.hosts {
        host.losses = 0;
    }
    let Region { racks, store, .. } = region;
    for rack in racks.iter() {
        let mut rack = open(rack);
        rack.losses = 0;
        if !rack.departed {
            // One that is worth the rest of the story.
            drop(beat(
                store,
                namespace::MACHINE_POOL_LEASE,
                &rack.pool,
                u64::MAX,
            ));
        }
    }
    follow(region);
}
