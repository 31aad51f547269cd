//! What an operator types about a lab that is up: status, exec, capture, logs, kill, disconnect, connect, down.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::str::FromStr as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;

use crate::parts::Layout;
use crate::state::{self, LabStatus, PartState, PartStatus, Record};
use crate::{Output, machines, network, say, up};

/// How long the supervisor may take to stop every part.
const DOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// # Errors
/// The named lab is not up.
pub fn status(name: Option<&str>, output: Output) -> Result<ExitCode> {
    let records = match name {
        Some(name) => vec![state::find(name)?],
        None => state::list(),
    };
    let labs: Vec<(Record, bool, LabStatus)> = records
        .into_iter()
        .map(|r| {
            let supervised = state::is_locked(&r.state);
            let mut status = state::read_status(&r.state).unwrap_or_default();
            if !supervised {
                status
                    .parts
                    .values_mut()
                    .for_each(|p| (p.state, p.pid) = (PartState::Stopped, None));
            }
            (r, supervised, status)
        })
        .collect();
    match output {
        Output::Json => print_json(&labs)?,
        Output::Table if labs.is_empty() => say("no lab is up; start one with: openkcm lab up"),
        Output::Table => labs
            .iter()
            .for_each(|(record, supervised, status)| print_table(record, *supervised, status)),
    }
    let healthy = labs.iter().all(|(_, supervised, s)| {
        *supervised && s.parts.values().all(|p| p.state == PartState::Running)
    });
    Ok(if healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print_json(labs: &[(Record, bool, LabStatus)]) -> Result<()> {
    let labs: Vec<serde_json::Value> = labs
        .iter()
        .map(|(record, supervised, status)| {
            let parts: Vec<&PartStatus> = status.parts.values().collect();
            serde_json::json!({
                "name": record.name,
                "hypervisors": record.hypervisors,
                "routers": record.routers,
                "state": record.state,
                "kubeconfig": up::layout(record).map(|l| l.admin_kubeconfig()).ok(),
                "supervised": supervised,
                "supervisorPid": status.supervisor_pid,
                "parts": parts,
            })
        })
        .collect();
    say(&serde_json::to_string_pretty(
        &serde_json::json!({ "labs": labs }),
    )?);
    Ok(())
}

fn print_table(record: &Record, supervised: bool, status: &LabStatus) {
    let supervisor = if supervised {
        "running"
    } else {
        "NOT RUNNING; clean up with: openkcm lab down"
    };
    say(&format!(
        "lab {}: {} hypervisors, {} routers, supervisor {supervisor}",
        record.name, record.hypervisors, record.routers
    ));
    say(&format!(
        "  {:<22} {:<11} {:>8} {:>9} {:>8}  LAST EXIT",
        "PART", "STATE", "PID", "RESTARTS", "UP"
    ));
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    for p in status.parts.values() {
        let pid = p.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let up = if p.pid.is_some() {
            format!("{} s", now.saturating_sub(p.started_at))
        } else {
            "-".into()
        };
        let state = format!("{:?}", p.state);
        say(&format!(
            "  {:<22} {state:<11} {pid:>8} {:>9} {up:>8}  {}",
            p.name,
            p.restarts,
            p.last_exit.as_deref().unwrap_or("-")
        ));
    }
}

/// # Errors
/// No such lab.
pub fn kubeconfig(name: &str) -> Result<()> {
    say(&up::layout(&state::find(name)?)?
        .admin_kubeconfig()
        .display()
        .to_string());
    Ok(())
}

/// # Errors
/// No such lab or machine; does not return when the command could be started.
pub fn exec(name: &str, machine: &str, command: &[String]) -> Result<ExitCode> {
    let record = state::find(name)?;
    let netns = machines::netns(&record, machine)?;
    let (program, args) = command.split_first().context("no command given after --")?;
    let err = network::inside(&netns, program).args(args).exec();
    Err(err).with_context(|| format!("cannot run {program}"))
}

/// # Errors
/// No such lab or machine, or tcpdump is missing.
pub fn capture(name: &str, target: &str, tcpdump: &[String]) -> Result<ExitCode> {
    let record = state::find(name)?;
    let netns = if target.eq_ignore_ascii_case("underlay") {
        // Every overlay packet passes the first router, unless its uplink is down.
        record.topology()?.netns("r1")
    } else {
        machines::netns(&record, target)?
    };
    let err = network::inside(&netns, "tcpdump")
        .args(["-n", "-l", "-i", "any"])
        .args(tcpdump)
        .exec();
    Err(err).context("cannot run tcpdump (package tcpdump)")
}

/// # Errors
/// No such lab or part.
pub fn logs(name: &str, part: &str, follow: bool) -> Result<ExitCode> {
    let record = state::find(name)?;
    known(&record, part)?;
    let file = up::layout(&record)?.log(part);
    let mut command = Command::new(if follow { "tail" } else { "cat" });
    if follow {
        command.args(["-n", "100", "-F"]);
    }
    let err = command.arg(&file).exec();
    Err(err).with_context(|| format!("cannot show {}", file.display()))
}

fn known(record: &Record, part: &str) -> Result<PartStatus> {
    let status = state::read_status(&record.state)?;
    match status.parts.get(part) {
        Some(p) => Ok(p.clone()),
        None => {
            let names: Vec<&str> = status.parts.keys().map(String::as_str).collect();
            bail!(
                "lab {} has no part {part:?}; its parts are: {}",
                record.name,
                names.join(", ")
            )
        }
    }
}

/// # Errors
/// No such lab, part or signal, or the part is not running right now.
pub fn kill(name: &str, part: &str, signal: &str) -> Result<()> {
    let record = state::find(name)?;
    let status = known(&record, part)?;
    let upper = signal.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    let signal = Signal::from_str(&full).map_err(|_| {
        anyhow::anyhow!("--signal {signal:?}: no such signal; use KILL, TERM, STOP, CONT, HUP …")
    })?;
    let Some(pid) = status.pid else {
        bail!("{part} is not running right now; see: openkcm lab status")
    };
    send(Pid::from_raw(pid), signal)
        .with_context(|| format!("cannot signal {part} (pid {pid})"))?;
    say(&format!("sent {signal} to {part} (pid {pid})"));
    Ok(())
}

/// Pulls the plugs of a hypervisor, or puts them in again.
///
/// # Errors
/// No such lab or hypervisor.
pub fn plug(name: &str, hypervisor: &str, connected: bool) -> Result<()> {
    let topology = state::find(name)?.topology()?;
    let number = (1..=topology.hypervisors).find(|i| format!("hv{i}") == hypervisor);
    let Some(number) = number else {
        let names: Vec<String> = topology.hypervisor_names().collect();
        bail!(
            "lab {name} has no hypervisor {hypervisor:?}; it has: {}",
            names.join(", ")
        )
    };
    if connected {
        network::connect(&topology, number)?;
        say(&format!("{hypervisor} is on its networks again"));
    } else {
        network::disconnect(&topology, number)?;
        say(&format!(
            "{hypervisor} is off every network; put it back with: openkcm lab connect --name {name} {hypervisor}"
        ));
    }
    Ok(())
}

/// # Errors
/// No such lab, or something could not be removed.
pub fn down(name: &str, keep_state: bool) -> Result<()> {
    let record = state::find(name)?;
    stop_supervisor(&record)?;
    network::remove(&record.topology()?)?;
    if !keep_state {
        remove_state(&up::layout(&record)?, &record)?;
    }
    state::unregister(name)?;
    say(&format!("lab {name} is down"));
    Ok(())
}

/// Only what the lab made itself: a state directory given by the user may hold other files.
fn remove_state(layout: &Layout, record: &Record) -> Result<()> {
    let mut folders = vec!["apiserver".to_owned(), "kubeconfig".into(), "logs".into()];
    folders.extend(record.topology()?.hypervisor_names());
    for folder in folders {
        ignore_missing(std::fs::remove_dir_all(layout.state.join(folder)))?;
    }
    for file in [
        "parts.json",
        "parts.new",
        "lock",
        "lock.up",
        "machine-classes.json",
    ] {
        ignore_missing(std::fs::remove_file(layout.state.join(file)))?;
    }
    // Not empty: the user keeps files there; they stay.
    let _ = std::fs::remove_dir(&layout.state);
    Ok(())
}

fn ignore_missing(result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

fn stop_supervisor(record: &Record) -> Result<()> {
    if !state::is_locked(&record.state) {
        return Ok(());
    }
    let pid = state::read_status(&record.state)?.supervisor_pid;
    send(Pid::from_raw(pid), Signal::SIGTERM).context("cannot stop the supervisor")?;
    let deadline = Instant::now() + DOWN_TIMEOUT;
    while state::is_locked(&record.state) {
        if Instant::now() > deadline {
            send(Pid::from_raw(pid), Signal::SIGKILL).context("cannot kill the supervisor")?;
            return Ok(());
        }
        wait_a_little();
    }
    Ok(())
}

/// Between two looks at the lock file of a process that is not our child.
#[expect(
    clippy::disallowed_methods,
    reason = "synchronous command that polls a file lock; there is no event to wait for"
)]
fn wait_a_little() {
    std::thread::sleep(Duration::from_millis(20));
}
