//! What goes wrong: processes die, watches lag or lose their place, connections break, answers get lost.

use std::time::Duration;

use rand::Rng;

use crate::region::{EPOCH_MS, Region, bond};

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
    let choice = region.rng.random_range(0..12);
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
        _ => {
            restart_server(region, server);
            format!("metalbond server {server} restarts")
        }
    };
    region.note(format!("FAULT {line}"));
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

/// Nothing more goes wrong: what is away has come back or will by itself.
pub fn heal(region: &mut Region) {
    for host in &mut region.hosts {
        host.losses = 0;
    }
}
