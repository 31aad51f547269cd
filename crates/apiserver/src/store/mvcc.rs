//! The in-memory truth shared by the engines: every live version of every key, and the history since the floor.
//!
//! Pure: no locks, no clock, no IO. A change goes through two steps so that a durable engine can write in between:
//! [`Mvcc::stage`] checks guards against the state *and* what is already staged, [`Mvcc::publish`] makes staged changes visible.

use super::{Change, Expect, Kv, Op, Page, Rev, Txn, TxnOutcome, WatchBatch};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// Position of a version in the log: its revision, and its place among the changes of that revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RowId {
    pub rev: Rev,
    pub seq: u32,
}

/// One version of a key; `value` is absent for a deletion.
#[derive(Debug, Clone)]
struct Version {
    row: RowId,
    create_rev: Rev,
    value: Option<Bytes>,
}

/// The changes of one revision.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub rev: Rev,
    pub changes: Arc<[Change]>,
}

/// Changes that passed their guards but are not visible yet.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    pub records: Vec<Record>,
    /// Newest staged version of each touched key; `None` when staged as deleted.
    newest: HashMap<Bytes, Option<Kv>>,
}

#[derive(Debug, Default)]
pub(crate) struct Mvcc {
    keys: BTreeMap<Bytes, Vec<Version>>,
    /// One record per revision in `floor+1 ..= rev`, without holes.
    history: VecDeque<Record>,
    history_bytes: usize,
    rev: Rev,
    floor: Rev,
}

impl Mvcc {
    /// An empty state whose history begins after `floor`.
    pub(crate) fn with_floor(floor: Rev) -> Mvcc {
        Mvcc {
            rev: floor,
            floor,
            ..Mvcc::default()
        }
    }

    pub(crate) fn rev(&self) -> Rev {
        self.rev
    }

    pub(crate) fn floor(&self) -> Rev {
        self.floor
    }

    pub(crate) fn history_len(&self) -> usize {
        self.history.len()
    }

    /// Bytes of values and keys that the history keeps alive (an upper bound: live values are shared with the state).
    pub(crate) fn history_bytes(&self) -> usize {
        self.history_bytes
    }

    /// The newest version of a key as of `rev`.
    pub(crate) fn get(&self, key: &[u8], rev: Rev) -> Option<Kv> {
        let (key, versions) = self.keys.get_key_value(key)?;
        visible(key, versions, rev)
    }

    pub(crate) fn range(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        rev: Rev,
    ) -> Page {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut found = self
            .keys
            .range::<[u8], _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter_map(|(key, versions)| visible(key, versions, rev));
        let limit = if limit == 0 { usize::MAX } else { limit };
        let kvs: Vec<Kv> = found.by_ref().take(limit).collect();
        let remaining = found.count() as u64;
        Page {
            kvs,
            rev,
            more: remaining > 0,
            remaining,
        }
    }

    /// Checks a transaction on top of what is staged and stages its changes as the next revision.
    pub(crate) fn stage(&self, staged: &mut Staged, txn: &Txn) -> TxnOutcome {
        for (index, guard) in txn.guards.iter().enumerate() {
            if guard.expect == Expect::Any {
                continue;
            }
            let current = self.newest(staged, &guard.key);
            let holds = match (guard.expect, &current) {
                (Expect::Any, _) | (Expect::Absent, None) => true,
                (Expect::ModRev(rev), Some(kv)) => kv.mod_rev == rev,
                (Expect::Absent, Some(_)) | (Expect::ModRev(_), None) => false,
            };
            if !holds {
                return TxnOutcome::Failed { index, current };
            }
        }
        let last = staged.records.last().map_or(self.rev, |record| record.rev);
        let rev = last + 1;
        let mut changes = Vec::with_capacity(txn.ops.len());
        for op in &txn.ops {
            let prev = self.newest(staged, op.key());
            match op {
                Op::Put { key, value } => {
                    let create_rev = prev.as_ref().map_or(rev, |prev| prev.create_rev);
                    let kv = Kv {
                        key: key.clone(),
                        value: value.clone(),
                        mod_rev: rev,
                        create_rev,
                    };
                    changes.push(Change::Put { kv, prev });
                }
                Op::Delete { .. } => {
                    if let Some(prev) = prev {
                        changes.push(Change::Delete { prev });
                    }
                }
            }
        }
        if changes.is_empty() {
            return TxnOutcome::Committed(last);
        }
        for change in &changes {
            let newest = match change {
                Change::Put { kv, .. } => Some(kv.clone()),
                Change::Delete { .. } => None,
            };
            staged.newest.insert(change.key().clone(), newest);
        }
        staged.records.push(Record {
            rev,
            changes: changes.into(),
        });
        TxnOutcome::Committed(rev)
    }

    fn newest(&self, staged: &Staged, key: &Bytes) -> Option<Kv> {
        match staged.newest.get(key) {
            Some(newest) => newest.clone(),
            None => self.get(key, Rev::MAX),
        }
    }

    /// Makes staged records visible.
    pub(crate) fn publish(&mut self, staged: Staged) {
        for record in staged.records {
            self.push(record);
        }
    }

    /// Appends the next revision.
    fn push(&mut self, record: Record) {
        for (seq, change) in (0u32..).zip(record.changes.iter()) {
            let row = RowId {
                rev: record.rev,
                seq,
            };
            match change {
                Change::Put { kv, .. } => self.push_version(
                    kv.key.clone(),
                    Version {
                        row,
                        create_rev: kv.create_rev,
                        value: Some(kv.value.clone()),
                    },
                ),
                Change::Delete { prev } => self.push_version(
                    prev.key.clone(),
                    Version {
                        row,
                        create_rev: prev.create_rev,
                        value: None,
                    },
                ),
            }
        }
        self.rev = record.rev;
        self.history_bytes += record_bytes(&record);
        self.history.push_back(record);
    }

    fn push_version(&mut self, key: Bytes, version: Version) {
        self.keys
            .entry(key)
            .or_insert_with(|| Vec::with_capacity(1))
            .push(version);
    }

    /// Rows that no longer matter once the floor has risen to `floor`: versions superseded at or before it, and deletions.
    pub(crate) fn compaction_rows(&self, floor: Rev) -> Vec<RowId> {
        let mut rows = Vec::new();
        for record in self.history.iter().take_while(|record| record.rev <= floor) {
            for (seq, change) in (0u32..).zip(record.changes.iter()) {
                let row = RowId {
                    rev: record.rev,
                    seq,
                };
                let Some(versions) = self.keys.get(change.key()) else {
                    continue;
                };
                let older = versions
                    .iter()
                    .take_while(|version| version.row < row)
                    .last();
                match (older, change) {
                    (Some(older), Change::Put { prev: Some(_), .. }) => rows.push(older.row),
                    (Some(older), Change::Delete { .. }) => rows.extend([older.row, row]),
                    _ => {}
                }
            }
        }
        rows
    }

    /// Raises the floor, forgetting history up to it.
    pub(crate) fn compact(&mut self, floor: Rev) {
        let floor = floor.min(self.rev);
        while let Some(record) = self.history.pop_front_if(|record| record.rev <= floor) {
            self.history_bytes = self.history_bytes.saturating_sub(record_bytes(&record));
            for change in record.changes.iter() {
                self.prune(change.key(), floor);
            }
        }
        self.floor = self.floor.max(floor);
    }

    fn prune(&mut self, key: &Bytes, floor: Rev) {
        let Some(versions) = self.keys.get_mut(key) else {
            return;
        };
        let at_floor = versions
            .iter()
            .take_while(|version| version.row.rev <= floor)
            .count();
        // The newest version at the floor stays, unless it says "deleted".
        let gone = match at_floor
            .checked_sub(1)
            .and_then(|index| versions.get(index))
        {
            Some(Version { value: None, .. }) => at_floor,
            Some(_) => at_floor - 1,
            None => 0,
        };
        versions.drain(..gone);
        if versions.is_empty() {
            self.keys.remove(key);
        } else {
            versions.shrink_to_fit();
        }
    }

    /// Collects batches of `prefix` after `from`, at most `batches_max` of them, and the revision up to which it looked.
    /// `None` when `from` lies before the floor.
    pub(crate) fn since(
        &self,
        prefix: &[u8],
        from: Rev,
        batches_max: usize,
    ) -> Option<(Vec<WatchBatch>, Rev)> {
        let skip = usize::try_from(from.checked_sub(self.floor)?).unwrap_or(usize::MAX);
        let mut batches = Vec::new();
        let mut seen = from;
        for record in self.history.range(skip.min(self.history.len())..) {
            if batches.len() >= batches_max {
                return Some((batches, seen));
            }
            seen = record.rev;
            let events: Vec<Change> = record
                .changes
                .iter()
                .filter(|change| change.key().starts_with(prefix))
                .cloned()
                .collect();
            if !events.is_empty() {
                batches.push(WatchBatch {
                    rev: record.rev,
                    events,
                });
            }
        }
        Some((batches, seen))
    }
}

/// Rebuilds the state from log rows in ascending order.
#[derive(Debug)]
pub(crate) struct Loader {
    state: Mvcc,
    pending: Vec<Change>,
    pending_rev: Rev,
}

/// One row of the log as read back.
#[derive(Debug)]
pub(crate) struct LoadedRow {
    pub row: RowId,
    pub key: Bytes,
    pub create_rev: Rev,
    pub value: Option<Bytes>,
}

impl Loader {
    pub(crate) fn new(floor: Rev) -> Loader {
        Loader {
            state: Mvcc::with_floor(floor),
            pending: Vec::new(),
            pending_rev: 0,
        }
    }

    /// Takes the next row.
    pub(crate) fn row(&mut self, row: LoadedRow) {
        if row.row.rev <= self.state.floor {
            // Older than the history: only the newest version of a key is left, and it is live.
            let version = Version {
                row: row.row,
                create_rev: row.create_rev,
                value: row.value,
            };
            self.state.push_version(row.key, version);
            return;
        }
        if row.row.rev != self.pending_rev {
            self.flush();
            self.pending_rev = row.row.rev;
        }
        let prev = self.state.get(&row.key, Rev::MAX);
        match (row.value, prev) {
            (Some(value), prev) => {
                let kv = Kv {
                    key: row.key,
                    value,
                    mod_rev: row.row.rev,
                    create_rev: row.create_rev,
                };
                self.pending.push(Change::Put { kv, prev });
            }
            (None, Some(prev)) => self.pending.push(Change::Delete { prev }),
            // A deletion is logged only after the version it deletes, which compaction keeps while the deletion is history.
            (None, None) => {}
        }
    }

    fn flush(&mut self) {
        if !self.pending.is_empty() {
            let changes = std::mem::take(&mut self.pending).into();
            self.state.push(Record {
                rev: self.pending_rev,
                changes,
            });
        }
    }

    pub(crate) fn finish(mut self) -> Mvcc {
        self.flush();
        self.state
    }
}

fn visible(key: &Bytes, versions: &[Version], rev: Rev) -> Option<Kv> {
    let version = versions
        .iter()
        .rev()
        .find(|version| version.row.rev <= rev)?;
    let value = version.value.clone()?;
    Some(Kv {
        key: key.clone(),
        value,
        mod_rev: version.row.rev,
        create_rev: version.create_rev,
    })
}

fn record_bytes(record: &Record) -> usize {
    record
        .changes
        .iter()
        .map(|change| match change {
            Change::Put { kv, .. } => kv.key.len() + kv.value.len() + 128,
            Change::Delete { prev } => prev.key.len() + 128,
        })
        .sum()
}
