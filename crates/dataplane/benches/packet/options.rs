//! What the command line asks for. Whatever is not understood is refused, so that a mistyped option does not measure something else.

use crate::{CASES, Case};

/// Windows of cycles, unless told otherwise.
const WINDOWS: usize = 20;
const WINDOWS_MAX: usize = 10_000;
const WORKERS_MAX: usize = 64;

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    Help,
    /// Cycles of all cases or one.
    Cycles {
        only: Option<&'static Case>,
        windows: usize,
        json: bool,
    },
    /// Instructions of all cases or one; `update` makes them the baseline.
    Instructions {
        only: Option<&'static Case>,
        update: bool,
    },
    /// A case for an exact number of bursts, with or without the engine, to be counted from outside.
    Exactly {
        case: &'static Case,
        bursts: usize,
        work: bool,
    },
    /// So many threads beside one.
    Workers(usize),
    /// Delays by changes.
    Changes,
    /// Bytes of flows and interfaces.
    Memory,
}

pub fn help() -> String {
    let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
    format!(
        "\
What a packet costs.

cargo bench -p dataplane --bench packet [-- OPTIONS]

  (none)             cycles per packet of all cases: minimum and 25th percentile of windows
    --windows N      windows of a quarter of a second per case, 1 to {WINDOWS_MAX} ({WINDOWS} unless given)
    -o json          as JSON
  --instructions     exact instructions per packet (needs valgrind), held against baseline.json
    --update         make them the baseline; only with all cases
  --workers N        packets per second of N threads beside those of one, 2 to {WORKERS_MAX}
  --changes          the longest time of a burst while the configuration changes under a million flows
  --memory           bytes that a flow and an interface take
  --case NAME        of cycles or instructions: only this case
  --callgrind NAME   run a case for an exact number of bursts, to be counted from outside
    --bursts N       how many (16 unless given)
    --fill-only      lay the packets out, but do not process them
  --help             this

Cases: {}",
        names.join(", ")
    )
}

#[derive(Default)]
struct Given {
    only: Option<&'static Case>,
    windows: Option<usize>,
    json: bool,
    instructions: bool,
    update: bool,
    callgrind: Option<&'static Case>,
    bursts: Option<usize>,
    fill_only: bool,
    workers: Option<usize>,
    changes: bool,
    memory: bool,
}

/// # Errors
/// An option is unknown, lacks its value or does not go with another; says which.
pub fn read(mut arguments: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let mut given = Given::default();
    while let Some(option) = arguments.next() {
        let mut value = || {
            let value = arguments.next();
            value.ok_or(format!("{option}: value missing (try --help)"))
        };
        match option.as_str() {
            "--help" | "-h" => return Ok(Wanted::Help),
            "--windows" => given.windows = Some(number(&option, &value()?, 1, WINDOWS_MAX)?),
            "-o" => match value()?.as_str() {
                "json" => given.json = true,
                other => return Err(format!("-o {other}: only json is known")),
            },
            "--case" => given.only = Some(case(&value()?)?),
            "--instructions" => given.instructions = true,
            "--update" => given.update = true,
            "--callgrind" => given.callgrind = Some(case(&value()?)?),
            "--bursts" => given.bursts = Some(number(&option, &value()?, 0, usize::MAX)?),
            "--fill-only" => given.fill_only = true,
            "--workers" => given.workers = Some(number(&option, &value()?, 2, WORKERS_MAX)?),
            "--changes" => given.changes = true,
            "--memory" => given.memory = true,
            other => return Err(format!("{other}: unknown option (try --help)")),
        }
    }
    decide(&given)
}

fn decide(given: &Given) -> Result<Wanted, String> {
    let Given {
        only,
        windows,
        json,
        instructions,
        update,
        callgrind,
        bursts,
        fill_only,
        workers,
        changes,
        memory,
    } = *given;
    // Each kind of work with the options that go with it, beside the number of all that are given.
    let all = [
        only.is_some(),
        windows.is_some(),
        json,
        instructions,
        update,
        callgrind.is_some(),
        bursts.is_some(),
        fill_only,
        workers.is_some(),
        changes,
        memory,
    ];
    let count = |given: &[bool]| given.iter().filter(|is_given| **is_given).count();
    let (wanted, fitting) = if let Some(case) = callgrind {
        let (bursts, work) = (bursts.unwrap_or(16), !fill_only);
        let fitting = 1 + count(&[given.bursts.is_some(), fill_only]);
        (Wanted::Exactly { case, bursts, work }, fitting)
    } else if let Some(threads) = workers {
        (Wanted::Workers(threads), 1)
    } else if changes {
        (Wanted::Changes, 1)
    } else if memory {
        (Wanted::Memory, 1)
    } else if instructions {
        if update && only.is_some() {
            return Err("--update: a baseline has all cases, not one".to_owned());
        }
        let fitting = 1 + count(&[only.is_some(), update]);
        (Wanted::Instructions { only, update }, fitting)
    } else {
        let fitting = count(&[only.is_some(), windows.is_some(), json]);
        let windows = windows.unwrap_or(WINDOWS);
        let cycles = Wanted::Cycles {
            only,
            windows,
            json,
        };
        (cycles, fitting)
    };
    if fitting == count(&all) {
        Ok(wanted)
    } else {
        Err("these options do not go together (try --help)".to_owned())
    }
}

fn number(option: &str, text: &str, least: usize, most: usize) -> Result<usize, String> {
    let number = text.parse().ok();
    let number = number.filter(|number| (least..=most).contains(number));
    number.ok_or(format!(
        "{option} {text}: not a number from {least} to {most}"
    ))
}

fn case(name: &str) -> Result<&'static Case, String> {
    let found = CASES.iter().find(|case| case.name == name);
    found.ok_or(format!("{name}: no such case (try --help)"))
}
