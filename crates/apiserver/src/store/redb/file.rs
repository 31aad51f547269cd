//! Bytes of the store's file: the tables, the row encoding, locking, opening and loading.

use crate::store::Change;
use crate::store::Rev;
use crate::store::mvcc::{LoadedRow, Loader, Mvcc, Record, RowId};
use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The format this build reads and writes.
pub const FORMAT: u64 = 1;

const FILE_NAME: &str = "store.redb";
const LOCK_NAME: &str = "lock";

/// (revision, place among the changes of the revision) → row.
const LOG: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("log");
/// Name → number.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const META_FORMAT: &str = "format";
const META_FLOOR: &str = "floor";

/// kind (1), create revision (8), key length (2).
const HEADER: usize = 11;
const KIND_PUT: u8 = 1;
const KIND_DELETE: u8 = 2;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses the directory; stop it or choose another one.
    #[error("{} is in use by another process ({holder}); two servers must not share one state directory", path.display())]
    Locked { path: PathBuf, holder: String },
    /// Written by a newer (or unknown) release; use that release.
    #[error("the store has format {found}, this release reads format {FORMAT}")]
    Format { found: u64 },
    #[error("cannot use {}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot start the writer thread: {source}")]
    Thread { source: std::io::Error },
    /// The engine refuses the file, or an I/O error under it.
    #[error("storage engine: {0}")]
    Engine(#[source] redb::Error),
    /// The engine's checksums hold but a row is not one of ours.
    #[error("row {rev}.{seq} of the log is malformed")]
    Row { rev: Rev, seq: u32 },
}

/// Creates `dir` if needed (mode 0700) and takes the exclusive lock in it.
pub(super) fn lock_dir(dir: &Path) -> Result<File, OpenError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io(dir))?;
    let path = dir.join(LOCK_NAME);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message; an unreadable note is no reason to fail differently.
            let _ = Read::by_ref(&mut file).take(64).read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "unknown".to_owned(),
                note => note.to_owned(),
            };
            return Err(OpenError::Locked {
                path: dir.to_owned(),
                holder,
            });
        }
        Err(TryLockError::Error(source)) => return Err(OpenError::Io { path, source }),
    }
    file.set_len(0).map_err(io(&path))?;
    file.rewind().map_err(io(&path))?;
    writeln!(file, "pid {}", std::process::id()).map_err(io(&path))?;
    Ok(file)
}

pub(super) fn open_path(dir: &Path, cache_bytes: usize) -> Result<Database, OpenError> {
    let path = dir.join(FILE_NAME);
    let io = |source| OpenError::Io {
        path: path.clone(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io)?;
    // A new name is durable only once its directory is.
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)?;
    let engine = |error: redb::DatabaseError| OpenError::Engine(error.into());
    let backend = redb::backends::FileBackend::new(file).map_err(engine)?;
    redb::Builder::new()
        .set_cache_size(cache_bytes)
        .create_with_backend(backend)
        .map_err(engine)
}

/// Reads the whole log; creates the tables in a new file.
pub(super) fn load(database: &Database) -> Result<Mvcc, OpenError> {
    let engine = |error: redb::Error| OpenError::Engine(error);
    initialise(database).map_err(engine)?;
    let read = database.begin_read().map_err(|e| engine(e.into()))?;
    let meta = read.open_table(META).map_err(|e| engine(e.into()))?;
    let number = |name: &str| -> Result<u64, OpenError> {
        let value = meta.get(name).map_err(|e| engine(e.into()))?;
        Ok(value.map_or(0, |value| value.value()))
    };
    let found = number(META_FORMAT)?;
    if found != FORMAT {
        return Err(OpenError::Format { found });
    }
    let mut loader = Loader::new(number(META_FLOOR)?);
    let log = read.open_table(LOG).map_err(|e| engine(e.into()))?;
    for row in log.iter().map_err(|e| engine(e.into()))? {
        let (id, bytes) = row.map_err(|e| engine(e.into()))?;
        let (rev, seq) = id.value();
        let row = decode(RowId { rev, seq }, bytes.value());
        loader.row(row.ok_or(OpenError::Row { rev, seq })?);
    }
    Ok(loader.finish())
}

fn initialise(database: &Database) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut meta = write.open_table(META)?;
        if meta.get(META_FORMAT)?.is_some() {
            drop(meta);
            return Ok(write.abort()?);
        }
        meta.insert(META_FORMAT, FORMAT)?;
        write.open_table(LOG)?;
    }
    Ok(write.commit()?)
}

/// Removal of old history that rides along with a commit.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    pub floor: Rev,
    pub rows: Vec<RowId>,
}

/// One durable transaction: new records, and optionally a step of compaction.
pub(super) fn commit(
    database: &Database,
    records: &[Record],
    compaction: Option<&Compaction>,
) -> Result<(), redb::Error> {
    let mut write = database.begin_write()?;
    write.set_durability(redb::Durability::Immediate)?;
    {
        let mut log = write.open_table(LOG)?;
        for record in records {
            for (seq, change) in (0u32..).zip(record.changes.iter()) {
                append(
                    &mut log,
                    RowId {
                        rev: record.rev,
                        seq,
                    },
                    change,
                )?;
            }
        }
        if let Some(compaction) = compaction {
            for row in &compaction.rows {
                log.remove((row.rev, row.seq))?;
            }
            write
                .open_table(META)?
                .insert(META_FLOOR, compaction.floor)?;
        }
    }
    Ok(write.commit()?)
}

type Log<'txn> = redb::Table<'txn, (u64, u32), &'static [u8]>;

fn append(log: &mut Log<'_>, row: RowId, change: &Change) -> Result<(), redb::Error> {
    let (kind, kv, value): (u8, _, &[u8]) = match change {
        Change::Put { kv, .. } => (KIND_PUT, kv, &kv.value),
        Change::Delete { prev } => (KIND_DELETE, prev, &[]),
    };
    // `KEY_BYTES_MAX` keeps keys far below this.
    let key_len = u16::try_from(kv.key.len()).unwrap_or(u16::MAX);
    let mut place = log.insert_reserve((row.rev, row.seq), HEADER + kv.key.len() + value.len())?;
    let mut out = place.as_mut();
    // Writing into a slice of the reserved length cannot fall short.
    for part in [
        &[kind][..],
        &kv.create_rev.to_le_bytes(),
        &key_len.to_le_bytes(),
        &kv.key,
        value,
    ] {
        out.write_all(part).map_err(redb::Error::Io)?;
    }
    Ok(())
}

fn decode(row: RowId, bytes: &[u8]) -> Option<LoadedRow> {
    let (kind, rest) = bytes.split_first()?;
    let (create_rev, rest) = rest.split_first_chunk::<8>()?;
    let (key_len, rest) = rest.split_first_chunk::<2>()?;
    let (key, value) = rest.split_at_checked(usize::from(u16::from_le_bytes(*key_len)))?;
    let value = match *kind {
        KIND_PUT => Some(Bytes::copy_from_slice(value)),
        KIND_DELETE => None,
        _ => return None,
    };
    let create_rev = u64::from_le_bytes(*create_rev);
    Some(LoadedRow {
        row,
        key: Bytes::copy_from_slice(key),
        create_rev,
        value,
    })
}
