//! The claim folder: one small file per interface that says which device it has, so that it keeps it over restarts.
//!
//! A claim is written to a temporary file, synced, and renamed into place, so that a crash leaves either no claim or a
//! whole one. Who may have which device is decided elsewhere; this file only stores it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::model::Uid;
use crate::plan::ops::ClaimOp;

/// Where claims are, below metalnet's own folder.
const FOLDER: &str = "netfns/claims";
/// A claim under this name is made by operators, to keep a device away from us. It is never released.
pub const RESERVED: &str = "00000001-0000-4000-0000-000000000000";
/// Most claims read: far more than a node has devices.
const CLAIMS_MAX: usize = 65_536;
/// Longest claim read, in bytes.
const CLAIM_LENGTH_MAX: u64 = 256;
const TEMPORARY: &str = ".new";

/// The claim folder, locked for this process.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Held as long as we live: two agents on one folder would hand out devices twice.
    _lock: File,
}

/// What the folder held at start.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub claims: BTreeMap<Uid, String>,
    /// Devices that operators reserved.
    pub reserved: Vec<String>,
    /// Files that are not claims, with the reason; left alone, except empty ones, which a power cut leaves behind.
    pub ignored: Vec<(String, &'static str)>,
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("{action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is in use by another metalnet", path.display())]
    Locked { path: PathBuf },
}

impl Folder {
    /// Opens, and if need be creates, the claim folder below `metalnet_dir`.
    pub fn open(metalnet_dir: &Path) -> Result<Self, ClaimError> {
        let path = metalnet_dir.join(FOLDER);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(failed("create", &path))?;
        let lock_path = metalnet_dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(ClaimError::Locked { path: lock_path }),
            Err(fs::TryLockError::Error(source)) => Err(ClaimError::Io {
                action: "lock",
                path: lock_path,
                source,
            }),
        }
    }

    /// Reads all claims.
    pub fn load(&self) -> Result<Found, ClaimError> {
        let mut found = Found::default();
        let entries = fs::read_dir(&self.path).map_err(failed("read", &self.path))?;
        for entry in entries.take(CLAIMS_MAX) {
            let path = entry.map_err(failed("read", &self.path))?.path();
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            self.load_one(&path, name, &mut found)?;
        }
        Ok(found)
    }

    fn load_one(&self, path: &Path, name: String, found: &mut Found) -> Result<(), ClaimError> {
        if name.ends_with(TEMPORARY) {
            return fs::remove_file(path).map_err(failed("remove", path));
        }
        let Some(uid) = Uid::new(&name) else {
            found.ignored.push((name, "its name is not an id"));
            return Ok(());
        };
        let meta = fs::metadata(path).map_err(failed("read", path))?;
        if !meta.is_file() || meta.len() > CLAIM_LENGTH_MAX {
            found.ignored.push((name, "it is not a small file"));
            return Ok(());
        }
        let text = fs::read_to_string(path).map_err(failed("read", path))?;
        let text = text.trim().to_ascii_lowercase();
        if text.is_empty() {
            found.ignored.push((name, "it is empty"));
            return fs::remove_file(path).map_err(failed("remove", path));
        }
        if name == RESERVED {
            found.reserved.push(text);
        } else {
            found.claims.insert(uid, text);
        }
        Ok(())
    }

    /// Carries out a change; returns when it is on disk.
    pub fn apply(&self, op: &ClaimOp) -> Result<(), ClaimError> {
        match op {
            ClaimOp::Take { uid, claim } => self.take(uid, claim),
            ClaimOp::Release { uid } => self.release(uid),
        }
    }

    fn take(&self, uid: &Uid, claim: &str) -> Result<(), ClaimError> {
        let path = self.path.join(uid.as_str());
        let temporary = self.path.join(format!("{uid}{TEMPORARY}"));
        let write = || {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(claim.as_bytes())?;
            file.sync_data()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(failed("write", &path))?;
        self.sync()
    }

    fn release(&self, uid: &Uid) -> Result<(), ClaimError> {
        let path = self.path.join(uid.as_str());
        match fs::remove_file(&path) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("remove", &path)(error)),
        }
    }

    fn sync(&self) -> Result<(), ClaimError> {
        File::open(&self.path)
            .and_then(|folder| folder.sync_all())
            .map_err(failed("sync", &self.path))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ClaimError + use<> {
    let path = path.to_owned();
    move |source| ClaimError::Io {
        action,
        path,
        source,
    }
}
