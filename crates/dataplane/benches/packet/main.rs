//! Cost of a packet: cycles by the clock, instructions by callgrind, allocations by a counting allocator.
//!
//! `cargo bench -p dataplane --bench packet` shows the cycles of all cases; what else there is tells `… --bench packet -- --help`.
//!
//! Cycles are of the time stamp counter (2.595 GHz here), converted from elapsed time: minimum and 25th percentile of windows of
//! a quarter of a second. They drift with the machine; instructions do not, so only those are held against a baseline.
//! A packet is restored to its 64 bytes before every burst; that copying is measured alone and subtracted.

mod memory;
mod options;
mod scene;
mod threads;

use crate::options::Wanted;
use crate::scene::Scene;
use dataplane::{Instant, PacketBuf, PortId, Verdict};
use std::alloc::{GlobalAlloc, Layout, System};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Frequency of the time stamp counter of the reference machine.
const TSC_GHZ: f64 = 2.595;
const WINDOW: Duration = Duration::from_millis(250);
const UPLINK: PortId = PortId(0);
const MACHINE: PortId = PortId(2);
/// Allocations of one reading of the clock, at most.
const CLOCK_ALLOCATIONS: u64 = 8;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Bytes allocated and not given back.
static HELD: AtomicI64 = AtomicI64::new(0);

struct Counting;

#[expect(
    unsafe_code,
    reason = "an allocator cannot be written without it; benchmarks only"
)]
// SAFETY: every call is passed on unchanged to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        HELD.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's contract is the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's contract is the callee's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Machine to uplink.
    Encap,
    /// Uplink to machine.
    Decap,
    /// Machine to machine on this host.
    Local,
    /// Machine to uplink, every packet the first of its flow.
    Miss,
    /// Machine to uplink, every packet the first of its flow after a change of configuration that does not concern it.
    Keep,
    /// The same after a change of the packet filter.
    Refilter,
    /// The same after a change of the route, which leads to the same host as before.
    Reroute,
    /// The same after a change of the route, which leads to another host than before.
    Move,
    /// The same after a change that puts everything in doubt.
    Redecide,
    /// Machine to the internet by network NAT.
    NatOut,
    /// The answers to that.
    NatIn,
    /// Machine to the internet with an address of its own.
    VipOut,
    /// The answers to that.
    VipIn,
    /// From the internet through a load balancer to a target on this host.
    Balance,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    work: Work,
    flows: u32,
    ipv6: bool,
    tcp: bool,
    burst: usize,
}

const fn case(name: &'static str, work: Work, flows: u32) -> Case {
    Case {
        name,
        work,
        flows,
        ipv6: false,
        tcp: false,
        burst: 64,
    }
}

const fn case6(name: &'static str, work: Work, flows: u32) -> Case {
    Case {
        ipv6: true,
        ..case(name, work, flows)
    }
}

const fn case_tcp(name: &'static str, work: Work) -> Case {
    Case {
        tcp: true,
        ..case(name, work, 1_000)
    }
}

const CASES: &[Case] = &[
    case("hit-encap-1", Work::Encap, 1),
    case("hit-encap-1k", Work::Encap, 1_000),
    case("hit-encap-16k", Work::Encap, 16_000),
    case("hit-encap-1m", Work::Encap, 1_000_000),
    case("hit-decap-1", Work::Decap, 1),
    case("hit-decap-1k", Work::Decap, 1_000),
    case("hit-decap-16k", Work::Decap, 16_000),
    case("hit-decap-1m", Work::Decap, 1_000_000),
    case("hit-local-1", Work::Local, 1),
    case("hit-local-1k", Work::Local, 1_000),
    case6("hit-encap6-1", Work::Encap, 1),
    case6("hit-encap6-1k", Work::Encap, 1_000),
    case6("hit-encap6-16k", Work::Encap, 16_000),
    case6("hit-encap6-1m", Work::Encap, 1_000_000),
    case6("hit-decap6-1k", Work::Decap, 1_000),
    Case {
        burst: 256,
        ..case("burst256-encap-1k", Work::Encap, 1_000)
    },
    Case {
        burst: 256,
        ..case("burst256-encap-1m", Work::Encap, 1_000_000)
    },
    case("hit-nat-out-1k", Work::NatOut, 1_000),
    case("hit-nat-in-1k", Work::NatIn, 1_000),
    case("hit-vip-out-1k", Work::VipOut, 1_000),
    case("hit-vip-in-1k", Work::VipIn, 1_000),
    case("hit-balance-1k", Work::Balance, 1_000),
    case_tcp("hit-encap-tcp", Work::Encap),
    case_tcp("hit-decap-tcp", Work::Decap),
    case_tcp("hit-nat-out-tcp", Work::NatOut),
    case_tcp("hit-nat-in-tcp", Work::NatIn),
    case("keep-16k", Work::Keep, 16_000),
    case("refilter-16k", Work::Refilter, 16_000),
    case("reroute-16k", Work::Reroute, 16_000),
    case("move-16k", Work::Move, 16_000),
    case("redecide-16k", Work::Redecide, 16_000),
    case("miss", Work::Miss, 1_000_000),
];

struct Bench {
    scene: Scene,
    packets: Vec<PacketBuf>,
    verdicts: Vec<Verdict>,
    burst: usize,
    work: Work,
    /// Of the second uplink, which nothing uses: its changes make every decision stale.
    link: bool,
    next: usize,
    now: Instant,
    /// Made while packets were processed.
    allocations: u64,
}

fn main() -> ExitCode {
    // Cargo adds `--bench`.
    let arguments = std::env::args().skip(1);
    let wanted = options::read(arguments.filter(|argument| argument != "--bench"));
    match wanted.and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            print_line(&format!("packet bench: {message}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the output of the benchmark")]
fn print_line(line: &str) {
    println!("{line}");
}

fn run(wanted: Wanted) -> Result<(), String> {
    match wanted {
        Wanted::Help => {
            print_line(&options::help());
            Ok(())
        }
        Wanted::Cycles {
            only,
            windows,
            json,
        } => {
            cycles(only, windows, json);
            Ok(())
        }
        Wanted::Instructions { only, update } => instructions(only, update),
        Wanted::Exactly { case, bursts, work } => run_exactly(case, bursts, work),
        Wanted::Workers(count) => threads::scaling(count),
        Wanted::Changes => threads::delays(),
        Wanted::Memory => memory::report(),
    }
}

/// All cases, or one.
fn cases(only: Option<&'static Case>) -> impl Iterator<Item = &'static Case> {
    CASES
        .iter()
        .filter(move |case| only.is_none_or(|only| only.name == case.name))
}

fn cycles(only: Option<&'static Case>, windows: usize, json: bool) {
    let mut lines = Vec::new();
    if !json {
        print_line(&format!(
            "{:16} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8}",
            "case", "flows", "cyc min", "cyc p25", "ns min", "Mpps", "allocs"
        ));
    }
    for case in cases(only) {
        let measured = measure(case, windows);
        let ns = measured.minimum_ns;
        if json {
            lines.push(format!(
                "{{\"case\":\"{}\",\"flows\":{},\"cycles_min\":{:.1},\"cycles_p25\":{:.1},\"ns_min\":{:.2},\"allocations\":{}}}",
                case.name, case.flows, ns * TSC_GHZ, measured.p25_ns * TSC_GHZ, ns, measured.allocations
            ));
        } else {
            print_line(&format!(
                "{:16} {:>9} {:>9.1} {:>9.1} {:>9.2} {:>8.2} {:>8}",
                case.name,
                case.flows,
                ns * TSC_GHZ,
                measured.p25_ns * TSC_GHZ,
                ns,
                1e3 / ns,
                measured.allocations
            ));
        }
    }
    if json {
        print_line(&format!("[{}]", lines.join(",\n ")));
    }
}

// ---- the loop ----------------------------------------------------------------------------------------------------------------

fn bench(case: &Case) -> Result<Bench, String> {
    let mut bench = Bench {
        scene: scene::scene(case)?,
        packets: (0..case.burst).map(|_| PacketBuf::new()).collect(),
        verdicts: vec![Verdict::Transmit(UPLINK); case.burst],
        burst: case.burst,
        work: case.work,
        link: false,
        next: 0,
        now: Instant::from_secs(10),
        allocations: 0,
    };
    if case.work != Work::Miss {
        bench.warm_up(case.flows);
    }
    Ok(bench)
}

impl Bench {
    /// Sends one packet of every flow.
    fn warm_up(&mut self, flows: u32) {
        for _ in 0..(flows as usize).div_ceil(self.burst) {
            self.fill();
            self.process();
        }
        self.next = 0;
    }

    fn fill(&mut self) {
        for packet in &mut self.packets {
            if let Some(frame) = self.scene.frames.get(self.next) {
                let _ = packet.fill(frame);
            }
            self.next += 1;
            if self.next >= self.scene.frames.len() {
                self.next = 0;
            }
        }
    }

    fn process(&mut self) {
        if (1..=self.burst).contains(&self.next) {
            // Once per round over all flows: the next packet of each meets the next epoch.
            self.link = !self.link;
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            scene::change(&mut self.scene.engine, self.work, self.link);
            // What a change allocates is not the packets'.
            ALLOCATIONS.store(before, Ordering::Relaxed);
        }
        self.scene.engine.process_burst(
            &mut self.scene.worker,
            self.scene.port,
            &mut self.packets,
            &mut self.verdicts,
            self.now,
        );
    }

    fn assert_all_sent(&self) -> Result<(), String> {
        match self
            .verdicts
            .iter()
            .find(|verdict| !matches!(verdict, Verdict::Transmit(_)))
        {
            Some(verdict) => Err(format!("unexpected verdict {verdict:?}")),
            None => Ok(()),
        }
    }
}

// ---- cycles ------------------------------------------------------------------------------------------------------------------

struct Measured {
    minimum_ns: f64,
    p25_ns: f64,
    allocations: u64,
}

fn measure(case: &Case, windows: usize) -> Measured {
    let Ok(mut bench) = bench(case) else {
        return Measured {
            minimum_ns: f64::NAN,
            p25_ns: f64::NAN,
            allocations: 0,
        };
    };
    let run = if case.work == Work::Miss {
        misses
    } else {
        window
    };
    let (mut with_work, mut without) = (Vec::new(), Vec::new());
    for _ in 0..windows {
        with_work.push(run(&mut bench, true));
        without.push(run(&mut bench, false));
    }
    with_work.sort_by(f64::total_cmp);
    without.sort_by(f64::total_cmp);
    let floor = without.first().copied().unwrap_or(0.0);
    let quarter = with_work.len() / 4;
    Measured {
        minimum_ns: with_work.first().copied().unwrap_or(f64::NAN) - floor,
        p25_ns: with_work.get(quarter).copied().unwrap_or(f64::NAN) - floor,
        allocations: bench.allocations,
    }
}

/// Time this thread has run, from the scheduler's books: other processes on the machine do not count. Exact to one tick
/// (4 ms), hence the length of the windows.
fn clock() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let running = text
        .split_whitespace()
        .next()
        .and_then(|text| text.parse().ok());
    Duration::from_nanos(running.unwrap_or(0))
}

/// Nanoseconds per packet over one window, with or without the engine.
fn window(bench: &mut Bench, work: bool) -> f64 {
    let start = clock();
    let mut packets = 0_u64;
    loop {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..256 {
            bench.fill();
            if work {
                bench.process();
            }
            packets += bench.burst as u64;
        }
        bench.allocations += ALLOCATIONS.load(Ordering::Relaxed) - before;
        let elapsed = clock() - start;
        if elapsed >= WINDOW {
            return elapsed.as_nanos() as f64 / packets as f64;
        }
    }
}

/// Nanoseconds per new flow: all flows once through an empty table.
fn misses(bench: &mut Bench, work: bool) -> f64 {
    bench.scene.worker = bench.scene.engine.worker();
    bench.next = 0;
    let bursts = bench.scene.frames.len() / bench.burst;
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let start = clock();
    for _ in 0..bursts {
        bench.fill();
        if work {
            bench.process();
        }
    }
    let elapsed = clock() - start;
    // Reading the clock allocates a little; the packets do not.
    bench.allocations +=
        (ALLOCATIONS.load(Ordering::Relaxed) - before).saturating_sub(2 * CLOCK_ALLOCATIONS);
    elapsed.as_nanos() as f64 / (bursts * bench.burst) as f64
}

// ---- instructions ------------------------------------------------------------------------------------------------------------

/// Runs a case for an exact number of bursts, to be counted from outside.
fn run_exactly(case: &Case, bursts: usize, work: bool) -> Result<(), String> {
    // A million flows would take valgrind minutes; instructions hardly depend on the number.
    let case = Case {
        flows: case.flows.min(16_384),
        ..*case
    };
    let mut bench = bench(&case)?;
    for _ in 0..bursts {
        bench.fill();
        if work {
            bench.process();
        }
    }
    if bursts > 0 && work {
        bench.assert_all_sent()
    } else {
        Ok(())
    }
}

/// Instructions of the whole process under callgrind.
fn count_instructions(name: &str, bursts: usize, work: bool) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--callgrind", name, "--bursts", &bursts.to_string()])
        .args((!work).then_some("--fill-only"))
        .output()
        .map_err(|error| format!("cannot run valgrind: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let collected = text
        .lines()
        .find_map(|line| line.split("Collected :").nth(1));
    collected
        .and_then(|number| number.trim().parse().ok())
        .ok_or(format!("no count in valgrind's output:\n{text}"))
}

#[expect(clippy::disallowed_methods, reason = "--update writes the baseline")]
fn instructions(only: Option<&'static Case>, update: bool) -> Result<(), String> {
    const BURSTS: usize = 64;
    const TOLERANCE: f64 = 0.005;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/packet/baseline.json");
    let baseline = std::fs::read_to_string(path).unwrap_or_default();
    let (mut lines, mut worse) = (Vec::new(), Vec::new());
    for case in cases(only).filter(|case| case.flows <= 16_000 || case.work == Work::Miss) {
        let packets = (BURSTS * case.burst) as f64;
        let count = |bursts, work| count_instructions(case.name, bursts, work);
        // Differences remove set-up and, in the second line, the restoring of packets.
        let worked = count(2 * BURSTS, true)? - count(BURSTS, true)?;
        let filled = count(2 * BURSTS, false)? - count(BURSTS, false)?;
        let per_packet = (worked - filled) as f64 / packets;
        let before = field(&baseline, case.name);
        let change = before.map_or(0.0, |before| per_packet / before - 1.0);
        print_line(&format!(
            "{:16} {per_packet:9.1} instructions/packet  {:+.2} %",
            case.name,
            change * 100.0
        ));
        if change.abs() > TOLERANCE {
            worse.push(case.name);
        }
        lines.push(format!("  \"{}\": {per_packet:.1}", case.name));
    }
    if update || baseline.is_empty() {
        std::fs::write(path, format!("{{\n{}\n}}\n", lines.join(",\n")))
            .map_err(|error| error.to_string())?;
        return Ok(());
    }
    if worse.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "differs from baseline.json by more than 0.5 %: {worse:?} (accept with --update)"
        ))
    }
}

/// The number after a key of a flat JSON object.
fn field(json: &str, key: &str) -> Option<f64> {
    let rest = json.split(&format!("\"{key}\":")).nth(1)?;
    rest.split([',', '\n', '}']).next()?.trim().parse().ok()
}
