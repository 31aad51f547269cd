//! What the provider knows of its machines, one JSON file each.
//!
//! A change is written to a new file, flushed, renamed over the old one, and the folder is flushed, before anybody
//! sees the change: whatever moment the process or the power fails at, either the old or the new record is there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

/// Folder of the records below the state directory.
pub const MACHINES_DIR: &str = "machines";
/// Machines that one provider keeps.
pub const MACHINES_MAX: usize = 4096;
/// Interfaces of one machine.
pub const INTERFACES_MAX: usize = 64;

/// Everything about one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Random UUID.
    pub id: String,
    /// Name of the network namespace.
    pub netns: String,
    /// Labels of the caller, verbatim.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the caller, verbatim.
    pub annotations: BTreeMap<String, String>,
    /// Grows with every change of what is wanted.
    pub generation: i64,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// Nanoseconds since 1970; 0 while the machine is wanted.
    pub deleted_at: i64,
    /// Machine class.
    pub class: String,
    /// Whether the machine shall run.
    pub power_on: bool,
    /// Host name for DHCP.
    pub hostname: String,
    /// First-boot configuration; kept, not used.
    #[serde(default)]
    pub ignition: Vec<u8>,
    /// Volumes; kept and reported, not used.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Wanted interfaces.
    pub interfaces: Vec<Interface>,
    /// Interfaces that something was done for, wanted or not, by name.
    pub known: BTreeMap<String, Known>,
    /// The machine has had all its interfaces once.
    #[serde(default)]
    pub started: bool,
}

/// A wanted interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name, unique in the machine.
    pub name: String,
    /// Provider id of the network.
    pub network_id: String,
    /// Addresses in order.
    pub ips: Vec<String>,
    /// Hints of the caller.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// An interface that exists or may exist outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Namespace of the OpenKCM-net NetworkInterface.
    pub namespace: String,
    /// Number of the device in the machine: `eth<slot>`.
    pub slot: u32,
    /// Handle, once the interface is attached.
    #[serde(default)]
    pub handle: Option<String>,
}

/// A volume, as the caller described it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Name, unique in the machine.
    pub name: String,
    /// Device name in the guest.
    pub device: String,
    /// Handle of the connection; empty for a local disk.
    pub handle: String,
}

impl Record {
    /// The record holds a machine that nobody wants any more.
    pub fn is_deleted(&self) -> bool {
        self.deleted_at != 0
    }

    /// Name of the device of an interface in the machine.
    pub fn device(&self, interface: &str) -> Option<String> {
        self.known
            .get(interface)
            .map(|known| device_name(known.slot))
    }

    /// Smallest number that no interface uses.
    pub fn free_slot(&self) -> u32 {
        let used: Vec<u32> = self.known.values().map(|known| known.slot).collect();
        (0..).find(|slot| !used.contains(slot)).unwrap_or_default()
    }

    /// Something is about to be done for an interface: it gets a device number. False when that was known.
    pub fn remember(&mut self, interface: String, namespace: String) -> bool {
        if self.known.contains_key(&interface) {
            return false;
        }
        let slot = self.free_slot();
        let handle = None;
        let known = Known {
            namespace,
            slot,
            handle,
        };
        self.known.insert(interface, known);
        true
    }

    /// Nothing is left of an interface. False when that was known.
    pub fn forget(&mut self, interface: &str) -> bool {
        self.known.remove(interface).is_some()
    }

    /// An interface's device is in the machine and configured. False when that was known.
    pub fn attached(&mut self, interface: &str, handle: &str) -> bool {
        let Some(known) = self.known.get_mut(interface) else {
            return false;
        };
        let mut changed = known.handle.as_deref() != Some(handle);
        known.handle = Some(handle.to_owned());
        if !self.started && self.is_complete() {
            self.started = true;
            changed = true;
        }
        changed
    }

    /// All wanted interfaces are attached.
    pub fn is_complete(&self) -> bool {
        self.interfaces.iter().all(|interface| {
            self.known
                .get(&interface.name)
                .is_some_and(|known| known.handle.is_some())
        })
    }
}

/// Name of a device in a machine.
pub fn device_name(slot: u32) -> String {
    format!("eth{slot}")
}

/// Why the records could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused. May heal; the change did not happen.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A record is no record. Somebody else wrote it; it must be repaired or removed by hand.
    #[error("record {}: {source}", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
    /// There are [`MACHINES_MAX`] machines.
    #[error("this provider keeps at most {MACHINES_MAX} machines")]
    Full,
    /// The task that writes was cancelled.
    #[error("writing was interrupted")]
    Interrupted,
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

/// All records of a folder by machine id; nothing when there is no folder.
pub fn read_all(dir: &Path) -> Result<BTreeMap<String, Record>, StoreError> {
    let mut records = BTreeMap::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(records),
        Err(error) => return Err(io_error("list", dir)(error)),
    };
    for entry in entries {
        let path = entry.map_err(io_error("list", dir))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            // Removed while we were listing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let record: Record = serde_json::from_slice(&bytes)
            .map_err(|source| StoreError::Corrupt { path, source })?;
        records.insert(record.id.clone(), record);
    }
    Ok(records)
}

/// The records in memory, and the folder behind them.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    records: RwLock<BTreeMap<String, Arc<Record>>>,
    /// Changes are made one after the other.
    writer: tokio::sync::Mutex<()>,
}

impl Store {
    /// Opens the folder `machines` below `state`, making it if needed.
    pub fn open(state: &Path) -> Result<Store, StoreError> {
        let dir = state.join(MACHINES_DIR);
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        let records = read_all(&dir)?
            .into_iter()
            .map(|(id, record)| (id, Arc::new(record)));
        Ok(Store {
            records: RwLock::new(records.collect()),
            dir,
            writer: tokio::sync::Mutex::default(),
        })
    }

    /// One machine.
    pub fn get(&self, id: &str) -> Option<Arc<Record>> {
        self.records
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    /// All machines, ordered by id.
    pub fn all(&self) -> Vec<Arc<Record>> {
        self.records
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Adds a machine.
    pub async fn insert(&self, record: Record) -> Result<(), StoreError> {
        let _writing = self.writer.lock().await;
        if self.all().len() >= MACHINES_MAX {
            return Err(StoreError::Full);
        }
        self.write(record).await
    }

    /// Changes a machine. `change` says whether it changed anything. `None` when there is no such machine.
    pub async fn update(
        &self,
        id: &str,
        change: impl FnOnce(&mut Record) -> bool,
    ) -> Result<Option<Arc<Record>>, StoreError> {
        let _writing = self.writer.lock().await;
        let Some(old) = self.get(id) else {
            return Ok(None);
        };
        let mut record = (*old).clone();
        if change(&mut record) {
            self.write(record).await?;
        }
        Ok(self.get(id))
    }

    /// Forgets a machine.
    pub async fn remove(&self, id: &str) -> Result<(), StoreError> {
        let _writing = self.writer.lock().await;
        let path = self.path(id);
        let removed = tokio::fs::remove_file(&path).await;
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(io_error("remove", &path)(error));
        }
        self.records
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
        Ok(())
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    async fn write(&self, record: Record) -> Result<(), StoreError> {
        let (dir, path) = (self.dir.clone(), self.path(&record.id));
        let record = Arc::new(record);
        let copy = record.clone();
        let written = tokio::task::spawn_blocking(move || write_file(&dir, &path, &copy)).await;
        written.map_err(|_| StoreError::Interrupted)??;
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        records.insert(record.id.clone(), record);
        Ok(())
    }
}

fn write_file(dir: &Path, path: &Path, record: &Record) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec_pretty(record).map_err(|source| StoreError::Corrupt {
        path: path.to_owned(),
        source,
    })?;
    let temporary = path.with_extension("json.new");
    let mut file = File::create(&temporary).map_err(io_error("create", &temporary))?;
    file.write_all(&bytes)
        .map_err(io_error("write", &temporary))?;
    file.sync_all().map_err(io_error("flush", &temporary))?;
    fs::rename(&temporary, path).map_err(io_error("rename", path))?;
    let folder = File::open(dir).map_err(io_error("open", dir))?;
    folder.sync_all().map_err(io_error("flush", dir))
}
