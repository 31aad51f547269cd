//! Plays many seeds of the simulated region: `cargo xtask sim`.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser as _;
use testkit::region::bug::Bug;
use testkit::region::{Config, Summary, Violation, run};

/// Plays seeds of the simulated region: the whole control plane, metalbond and the packet engines in one thread per seed, under random
/// users and random faults. A seed that fails prints its history and the command that plays it again.
#[derive(Debug, clap::Parser)]
#[command(name = "cargo xtask sim")]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads; each plays its own seeds. Default: one per processor.
    #[arg(long)]
    threads: Option<usize>,
    /// Print every operation of a failing seed.
    #[arg(long, short)]
    verbose: bool,
    /// Plant this bug, to see that it is found: its number, from 0 on.
    #[arg(long, hide = true)]
    bug: Option<usize>,
    /// Failing seeds after which to stop.
    #[arg(long, default_value_t = 1)]
    failures: usize,
}

#[derive(Default)]
struct Totals {
    summary: Summary,
    failed: Vec<(u64, Violation)>,
    seconds_max: f64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args.threads.unwrap_or(processors).max(1);
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let totals = Mutex::new(Totals::default());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(&args, &next, &stop, &totals, started));
        }
    });
    let totals = totals.into_inner().unwrap_or_default();
    report(&args, &totals, started.elapsed().as_secs_f64(), threads)
}

fn work(
    args: &Args,
    next: &AtomicU64,
    stop: &AtomicBool,
    totals: &Mutex<Totals>,
    started: Instant,
) {
    while !stop.load(Ordering::Relaxed) {
        let count = next.fetch_add(1, Ordering::Relaxed);
        if count >= args.seeds {
            return;
        }
        let seed = args.seed + count;
        let config = Config {
            seed,
            bug: args.bug.and_then(|at| Bug::ALL.get(at).copied()),
            verbose: args.verbose,
        };
        let begun = Instant::now();
        let outcome = run(config);
        let Ok(mut totals) = totals.lock() else {
            return;
        };
        totals.seconds_max = totals.seconds_max.max(begun.elapsed().as_secs_f64());
        match outcome {
            Ok(summary) => totals.summary.add(summary),
            Err(violation) => {
                // At once: whoever cuts a long run short shall know it.
                say(&format!("\rseed {seed} FAILED: {}\n", violation.what));
                totals.failed.push((seed, violation));
                if totals.failed.len() >= args.failures {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
        let done = totals.summary.seeds + totals.failed.len() as u64;
        if done.is_multiple_of(20) || done == args.seeds {
            let seconds = started.elapsed().as_secs_f64();
            let rate = done as f64 / seconds.max(0.001);
            let line = format!(
                "\r{done}/{} seeds, {rate:.1}/s, {} failed ",
                args.seeds,
                totals.failed.len()
            );
            say(&line);
        }
    }
}

fn say(line: &str) {
    let mut out = std::io::stderr();
    // Progress that nobody can see is no reason to stop.
    drop(out.write_all(line.as_bytes()).and_then(|()| out.flush()));
}

fn report(args: &Args, totals: &Totals, seconds: f64, threads: usize) -> ExitCode {
    let Totals {
        summary,
        failed,
        seconds_max,
    } = totals;
    let mut text = String::from("\n");
    for (seed, violation) in failed {
        for line in &violation.history {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str(&format!(
            "seed {seed} FAILED: {}\n  play it again: cargo xtask sim -- --seed {seed} --seeds 1 --verbose\n\n",
            violation.what
        ));
    }
    let done = summary.seeds + failed.len() as u64;
    let rate = done as f64 / seconds.max(0.001);
    text.push_str(&format!(
        "seeds           {done} of {}, {} failed\ntime            {seconds:.1} s on {threads} threads, {rate:.1} seeds/s, slowest {seconds_max:.2} s\n\
         steps           {}\nAPI changes     {}\npackets         {}\nacts of people  {}\nfaults          {}\nvirtual time    {} min\n",
        args.seeds,
        failed.len(),
        summary.steps,
        summary.writes,
        summary.probes,
        summary.user_ops,
        summary.faults,
        summary.virtual_ms / 60_000,
    ));
    drop(std::io::stdout().write_all(text.as_bytes()));
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
