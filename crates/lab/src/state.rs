//! The files of a lab: which labs exist (`/run/openkcm/labs`), what runs in each (`parts.json`), and the lock that one
//! supervisor holds. The status file is replaced atomically, so readers need no lock.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::topology::Topology;

const REGISTRY: &str = "/run/openkcm/labs";
/// Where a lab keeps its state unless `--state` says otherwise.
const STATE_ROOT: &str = "/var/lib/openkcm/lab";

/// What `lab up` was asked for; enough to find and rebuild everything else.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub name: String,
    pub hypervisors: u8,
    pub routers: u8,
    pub state: PathBuf,
}

impl Record {
    /// # Errors
    /// The record holds sizes that no lab has.
    pub fn topology(&self) -> Result<Topology> {
        Topology::new(&self.name, self.hypervisors, self.routers)
    }
}

/// Lifecycle of one part as the supervisor sees it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
pub enum PartState {
    Running,
    /// The process ended and is about to be started again.
    Restarting,
    Stopped,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PartStatus {
    pub name: String,
    pub state: PartState,
    pub pid: Option<i32>,
    pub restarts: u32,
    pub netns: String,
    /// How the process ended last, if it did: `signal 9`, `exit code 1`.
    pub last_exit: Option<String>,
    /// Seconds since the epoch at which the running process started.
    pub started_at: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LabStatus {
    pub supervisor_pid: i32,
    pub parts: BTreeMap<String, PartStatus>,
}

pub fn default_state(name: &str) -> PathBuf {
    Path::new(STATE_ROOT).join(name)
}

fn registry_file(name: &str) -> PathBuf {
    Path::new(REGISTRY).join(format!("{name}.json"))
}

/// # Errors
/// The registry cannot be written (it needs root).
pub fn register(record: &Record) -> Result<()> {
    fs::create_dir_all(REGISTRY).with_context(|| format!("cannot create {REGISTRY}"))?;
    replace(
        &registry_file(&record.name),
        &serde_json::to_vec_pretty(record)?,
    )
}

/// # Errors
/// The entry exists and cannot be removed.
pub fn unregister(name: &str) -> Result<()> {
    match fs::remove_file(registry_file(name)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

/// # Errors
/// No lab of that name is up; the message says which are.
pub fn find(name: &str) -> Result<Record> {
    let file = registry_file(name);
    let Ok(bytes) = fs::read(&file) else {
        let names: Vec<String> = list().into_iter().map(|r| r.name).collect();
        if names.is_empty() {
            bail!("no lab is up; start one with: openkcm lab up");
        }
        bail!(
            "no lab named {name:?} is up (there are: {}); choose one with --name",
            names.join(", ")
        );
    };
    serde_json::from_slice(&bytes).with_context(|| {
        format!(
            "{} is damaged; remove it and run: openkcm lab down --name {name}",
            file.display()
        )
    })
}

pub fn list() -> Vec<Record> {
    let Ok(entries) = fs::read_dir(REGISTRY) else {
        return Vec::new();
    };
    let mut records: Vec<Record> = entries
        .flatten()
        .filter_map(|e| fs::read(e.path()).ok())
        .filter_map(|bytes| serde_json::from_slice(&bytes).ok())
        .collect();
    records.sort_by(|a: &Record, b| a.name.cmp(&b.name));
    records
}

/// The lock of a lab, held by its supervisor for as long as it lives.
///
/// # Errors
/// Another supervisor holds it.
pub fn lock(state: &Path) -> Result<File> {
    hold(state, "lock", "this lab is already up (its supervisor")
}

/// Held by `lab up` until the lab is ready, so that of two started in the same instant one is refused.
///
/// # Errors
/// Another `lab up` of the same lab is under way.
pub fn lock_start(state: &Path) -> Result<File> {
    hold(
        state,
        "lock.up",
        "this lab is being started (another lab up",
    )
}

fn hold(state: &Path, name: &str, holder: &str) -> Result<File> {
    let path = state.join(name);
    let file =
        File::create(&path).with_context(|| format!("cannot write to {}", state.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => bail!(
            "{holder} holds {}); see: openkcm lab status",
            path.display()
        ),
    }
}

pub fn is_locked(state: &Path) -> bool {
    File::open(state.join("lock")).is_ok_and(|f| f.try_lock().is_err())
}

pub fn write_status(state: &Path, status: &LabStatus) -> Result<()> {
    replace(
        &state.join("parts.json"),
        &serde_json::to_vec_pretty(status)?,
    )
}

pub fn read_status(state: &Path) -> Result<LabStatus> {
    let file = state.join("parts.json");
    let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", file.display()))
}

fn replace(file: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = file.with_extension("new");
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, file))
        .with_context(|| format!("cannot write {}", file.display()))
}
