//! What the clock of the wall tells: several threads beside one, and how long packets wait while the configuration changes.
#![expect(
    clippy::disallowed_methods,
    reason = "what is measured is the time that passes"
)]

use crate::scene::{self, Scene};
use crate::{Case, UPLINK, WINDOW, Work, case, print_line};
use dataplane::{Instant, PacketBuf, PortId, Tables, Verdict, Worker};
use net::PortRange;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant as Wall;

const BURST: usize = 64;
/// Rounds of one thread and of several in turn; the best of each counts.
const ROUNDS: usize = 8;
const NOW: Instant = Instant::from_secs(10);

/// A packet thread: its worker, its flows, its buffers.
struct Lane<'a> {
    tables: Arc<Tables>,
    worker: Worker,
    port: PortId,
    frames: Vec<&'a [u8]>,
    packets: Vec<PacketBuf>,
    verdicts: Vec<Verdict>,
    next: usize,
}

impl<'a> Lane<'a> {
    /// Lane `number` of `count`, which share the flows out among themselves.
    fn new(scene: &Scene, frames: &'a [Vec<u8>], number: usize, count: usize) -> Lane<'a> {
        let frames = frames.iter().skip(number).step_by(count);
        Lane {
            tables: Arc::clone(scene.engine.tables()),
            worker: scene.engine.worker(),
            port: scene.port,
            frames: frames.map(Vec::as_slice).collect(),
            packets: (0..BURST).map(|_| PacketBuf::new()).collect(),
            verdicts: vec![Verdict::Transmit(UPLINK); BURST],
            next: 0,
        }
    }

    /// Lays out the next burst.
    fn fill(&mut self) {
        for packet in &mut self.packets {
            if let Some(frame) = self.frames.get(self.next) {
                let _ = packet.fill(frame);
            }
            self.next = (self.next + 1) % self.frames.len().max(1);
        }
    }

    fn process(&mut self) {
        self.worker.process_burst(
            &self.tables,
            self.port,
            &mut self.packets,
            &mut self.verdicts,
            NOW,
        );
    }

    /// Sends one packet of every flow.
    fn round(&mut self) {
        for _ in 0..self.frames.len().div_ceil(BURST) {
            self.fill();
            self.process();
        }
    }

    /// The same; microseconds of each burst.
    fn timed_round(&mut self) -> Vec<f64> {
        let bursts = 0..self.frames.len() / BURST;
        bursts
            .map(|_| {
                self.fill();
                let start = Wall::now();
                self.process();
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect()
    }

    /// Millions of packets per second over a window, with the laying out.
    fn rate(&mut self) -> f64 {
        let (start, mut packets) = (Wall::now(), 0_u64);
        loop {
            for _ in 0..256 {
                self.fill();
                self.process();
                packets += BURST as u64;
            }
            let elapsed = start.elapsed();
            if elapsed >= WINDOW {
                return packets as f64 / elapsed.as_secs_f64() / 1e6;
            }
        }
    }
}

/// Packets per second of `count` threads beside those of one.
pub fn scaling(count: usize) -> Result<(), String> {
    print_line(&format!(
        "{:16} {:>9} {:>12} {:>12} {:>6}",
        "case", "flows", "1 thread", "all threads", "times"
    ));
    for case in [
        case("encap", Work::Encap, 16_000),
        case("decap", Work::Decap, 16_000),
        case("encap", Work::Encap, 1_000_000),
    ] {
        let scene = scene::scene(&case)?;
        let mut alone = [Lane::new(&scene, &scene.frames, 0, count)];
        let mut all: Vec<Lane<'_>> = (0..count)
            .map(|lane| Lane::new(&scene, &scene.frames, lane, count))
            .collect();
        for lane in alone.iter_mut().chain(&mut all) {
            lane.round();
        }
        let (mut one, mut many) = (0.0_f64, 0.0_f64);
        for _ in 0..ROUNDS {
            one = one.max(together(&mut alone));
            many = many.max(together(&mut all));
        }
        print_line(&format!(
            "{:16} {:>9} {one:>7.2} Mpps {many:>7.2} Mpps {:>6.2}",
            case.name,
            case.flows,
            many / one
        ));
    }
    Ok(())
}

/// The sum of what all lanes do at the same time.
fn together(lanes: &mut [Lane<'_>]) -> f64 {
    let barrier = Barrier::new(lanes.len());
    thread::scope(|scope| {
        let started: Vec<_> = lanes
            .iter_mut()
            .map(|lane| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    lane.rate()
                })
            })
            .collect();
        let rates = started.into_iter().map(|thread| thread.join());
        rates.map(|rate| rate.unwrap_or(f64::NAN)).sum()
    })
}

/// A change of configuration, back and forth.
type Change = fn(&mut Scene, bool);

const CHANGES: &[(&str, Change)] = &[
    ("nothing", |_, _| {}),
    ("a link", |scene, back| {
        scene::change(&mut scene.engine, Work::Keep, back);
    }),
    ("a route", |scene, back| {
        scene::change(&mut scene.engine, Work::Reroute, back);
    }),
    ("a packet filter", |scene, back| {
        scene::change(&mut scene.engine, Work::Refilter, back);
    }),
    ("network NAT", |scene, back| {
        let public = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
        let _ = match PortRange::new(1024, 2048).filter(|_| back) {
            Some(ports) => scene.engine.create_nat("a", public, ports, None).map(drop),
            None => scene.engine.delete_nat("a"),
        };
    }),
    ("a load balancer", |scene, back| scene::balance(scene, back)),
    ("everything", |scene, back| {
        scene::change(&mut scene.engine, Work::Redecide, back);
    }),
];

/// The longest time that a burst takes while every decision of a million flows is in doubt.
pub fn delays() -> Result<(), String> {
    const FLOWS: Case = case("encap", Work::Encap, 1_000_000);
    const CHANGES_EACH: usize = 6;
    print_line(&format!(
        "{:16} {:>12} {:>14} {:>14} {:>14}",
        "what changes", "µs to change", "µs/burst p50", "µs/burst p99.9", "µs/burst most"
    ));
    let mut scene = scene::scene(&FLOWS)?;
    let frames = std::mem::take(&mut scene.frames);
    let mut lane = Lane::new(&scene, &frames, 0, 1);
    for (name, change) in CHANGES {
        let (mut times, mut slowest_change) = (Vec::new(), 0.0_f64);
        // The first round begins the flows, where there are none yet.
        for round in 0..=CHANGES_EACH {
            let start = Wall::now();
            change(&mut scene, round % 2 == 1);
            slowest_change = slowest_change.max(start.elapsed().as_secs_f64() * 1e6);
            lane.tables = Arc::clone(scene.engine.tables());
            let taken = lane.timed_round();
            if round > 0 {
                times.extend(taken);
            }
        }
        times.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let index = (times.len() as f64 * part) as usize;
            times
                .get(index)
                .or(times.last())
                .copied()
                .unwrap_or(f64::NAN)
        };
        print_line(&format!(
            "{name:16} {slowest_change:>12.1} {:>14.1} {:>14.1} {:>14.1}",
            at(0.5),
            at(0.999),
            at(1.0)
        ));
    }
    Ok(())
}
