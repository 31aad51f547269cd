//! Keeps the parts of one lab running: starts each in its namespace, restarts what ends, publishes who runs under which pid.
//!
//! One thread on purpose: parts are started with a parent-death signal, which the kernel ties to the thread that forked,
//! so that a killed supervisor never leaves orphans behind.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, timeout};

use crate::parts::{Layout, Part};
use crate::state::{LabStatus, PartState, PartStatus, write_status};

/// First wait before a part that ended is started again; doubles up to [`RESTART_DELAY_MAX`].
const RESTART_DELAY_MIN: Duration = Duration::from_millis(20);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);
/// A part that ran this long starts over with the shortest delay.
const STABLE_AFTER: Duration = Duration::from_secs(5);
/// How long a part may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

type Shared = Rc<RefCell<Board>>;

/// The published status and where it goes.
struct Board {
    status: LabStatus,
    state: PathBuf,
}

impl Board {
    fn update(&mut self, name: &str, change: impl FnOnce(&mut PartStatus)) {
        if let Some(part) = self.status.parts.get_mut(name) {
            change(part);
        }
        // A full disk must not take the region down; the next change tries again.
        if let Err(err) = write_status(&self.state, &self.status) {
            tracing::warn!(%err, "cannot publish the status");
        }
    }
}

/// Runs until SIGTERM, SIGINT or SIGHUP; then stops every part, the last started first.
///
/// # Errors
/// The signal handlers cannot be installed or the state directory is not writable.
pub async fn run(parts: Vec<Part>, layout: Layout) -> Result<()> {
    let status = LabStatus {
        supervisor_pid: Pid::this().as_raw(),
        parts: parts.iter().map(|p| (p.name.clone(), initial(p))).collect(),
    };
    write_status(&layout.state, &status)?;
    let board: Shared = Rc::new(RefCell::new(Board {
        status,
        state: layout.state.clone(),
    }));
    let (stop, stopped) = watch::channel(false);
    let mut signals = Signals::new()?;
    LocalSet::new()
        .run_until(async move {
            let mut tasks = JoinSet::new();
            for part in parts {
                tasks.spawn_local(keep(
                    part,
                    layout.clone(),
                    Rc::clone(&board),
                    stopped.clone(),
                ));
            }
            signals.wait().await;
            tracing::info!("stopping all parts");
            // The receivers live in the tasks below; none left means that all have ended already.
            let _ = stop.send(true);
            while tasks.join_next().await.is_some() {}
        })
        .await;
    Ok(())
}

fn initial(part: &Part) -> PartStatus {
    PartStatus {
        name: part.name.clone(),
        state: PartState::Restarting,
        pid: None,
        restarts: 0,
        netns: part.netns.clone(),
        last_exit: None,
        started_at: 0,
    }
}

/// Starts one part over and over until told to stop.
async fn keep(part: Part, layout: Layout, board: Shared, mut stopped: watch::Receiver<bool>) {
    let mut delay = RESTART_DELAY_MIN;
    while !*stopped.borrow() {
        let begun = Instant::now();
        let end = match start(&part, &layout) {
            Ok(mut child) => {
                publish_started(&board, &part.name, child.id());
                tokio::select! {
                    status = child.wait() => describe(status.ok()),
                    _ = stopped.changed() => {
                        terminate(&mut child).await;
                        break;
                    }
                }
            }
            Err(err) => format!("cannot start: {err:#}"),
        };
        tracing::warn!(part = part.name, end, "part ended; starting it again");
        board.borrow_mut().update(&part.name, |p| {
            p.state = PartState::Restarting;
            p.pid = None;
            p.restarts += 1;
            p.last_exit = Some(end);
        });
        if begun.elapsed() > STABLE_AFTER {
            delay = RESTART_DELAY_MIN;
        }
        tokio::select! {
            () = sleep(delay) => {}
            _ = stopped.changed() => break,
        }
        delay = (delay * 2).min(RESTART_DELAY_MAX);
    }
    board.borrow_mut().update(&part.name, |p| {
        p.state = PartState::Stopped;
        p.pid = None;
    });
}

fn start(part: &Part, layout: &Layout) -> Result<Child> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(layout.log(&part.name))
        .context("cannot open the log file")?;
    Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", part.netns))
        .args(["--", "setpriv", "--pdeathsig", "KILL", "--"])
        .args(&part.argv)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("cannot run nsenter (package util-linux)")
}

fn publish_started(board: &Shared, name: &str, pid: Option<u32>) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    board.borrow_mut().update(name, |p| {
        p.state = PartState::Running;
        p.pid = pid.and_then(|pid| i32::try_from(pid).ok());
        p.started_at = now;
    });
}

async fn terminate(child: &mut Child) {
    let Some(pid) = child.id().and_then(|p| i32::try_from(p).ok()) else {
        return;
    };
    // ESRCH: it ended by itself in this moment; the wait below reaps it.
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    if timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn describe(status: Option<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match status {
        Some(s) => match (s.code(), s.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "unknown".into(),
        },
        None => "lost".into(),
    }
}

struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    hup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
            _ = self.hup.recv() => {}
        }
    }
}
