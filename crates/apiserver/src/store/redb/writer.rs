//! The writer thread: the only place that changes the file and the visible state.

use super::file::{self, Compaction};
use super::{COMPACT_STEP_MAX, Counters, GROUP_OPS_MAX, Options};
use crate::store::mvcc::Staged;
use crate::store::shared::Shared;
use crate::store::{Rev, StoreError, Txn, TxnOutcome};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// How often an idle writer looks at the age of the history.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// Points in time kept for ageing. With one a second this covers over an hour.
const MARKS_MAX: usize = 4096;

type TxnReply = oneshot::Sender<Result<TxnOutcome, StoreError>>;
type CompactReply = oneshot::Sender<Result<(), StoreError>>;

#[derive(Debug)]
pub(super) enum Request {
    Txn {
        txn: Txn,
        reply: TxnReply,
        _permit: OwnedSemaphorePermit,
    },
    Compact {
        floor: Rev,
        reply: CompactReply,
        _permit: OwnedSemaphorePermit,
    },
}

#[derive(Debug)]
pub(super) struct Writer {
    database: redb::Database,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    options: Options,
    requests: Receiver<Request>,
    /// The floor rises to here in steps.
    floor_target: Rev,
    compact_waiters: Vec<(Rev, CompactReply)>,
    /// At most one a second: the revision at that time.
    marks: VecDeque<(Instant, Rev)>,
}

/// Answers that are sent once the group is durable.
#[derive(Debug, Default)]
struct Answers(Vec<(TxnReply, TxnOutcome)>);

impl Writer {
    pub(super) fn new(
        database: redb::Database,
        shared: Arc<Shared>,
        counters: Arc<Counters>,
        options: Options,
        requests: Receiver<Request>,
    ) -> Writer {
        let floor_target = shared.read().floor();
        Writer {
            database,
            shared,
            counters,
            options,
            requests,
            floor_target,
            compact_waiters: Vec::new(),
            marks: VecDeque::new(),
        }
    }

    pub(super) fn run(mut self) {
        loop {
            // While a compaction is under way the writer must not sleep.
            let wait = if self.compacting() {
                Duration::ZERO
            } else {
                IDLE_TICK
            };
            let first = match self.requests.recv_timeout(wait) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let (staged, answers) = self.gather(first);
            if let Err(error) = self.commit(staged) {
                tracing::error!(%error, "store commit failed, stopping");
                self.fail(&error.to_string(), answers);
                return;
            }
            self.answer(answers);
            self.plan_compaction(Instant::now());
        }
    }

    fn compacting(&self) -> bool {
        self.floor_target > self.shared.read().floor()
    }

    /// Stages what is waiting, up to one group.
    fn gather(&mut self, first: Option<Request>) -> (Staged, Answers) {
        let mut staged = Staged::default();
        let mut answers = Answers::default();
        let mut operations = 0;
        let mut next = first;
        while let Some(request) = next {
            match request {
                Request::Txn {
                    txn,
                    reply,
                    _permit,
                } => {
                    operations += txn.ops.len().max(1);
                    let outcome = self.shared.read().stage(&mut staged, &txn);
                    answers.0.push((reply, outcome));
                }
                Request::Compact {
                    floor,
                    reply,
                    _permit,
                } => {
                    let floor = floor.min(self.shared.read().rev());
                    self.floor_target = self.floor_target.max(floor);
                    self.compact_waiters.push((floor, reply));
                }
            }
            next = match operations < GROUP_OPS_MAX {
                true => self.requests.try_recv().ok(),
                false => None,
            };
        }
        (staged, answers)
    }

    fn commit(&mut self, staged: Staged) -> Result<(), redb::Error> {
        let compaction = self.compaction_step();
        if staged.records.is_empty() && compaction.is_none() {
            return Ok(());
        }
        file::commit(&self.database, &staged.records, compaction.as_ref())?;
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        if let Some(compaction) = compaction {
            self.counters
                .rows_compacted
                .fetch_add(compaction.rows.len() as u64, Ordering::Relaxed);
            self.shared.write().compact(compaction.floor);
        }
        self.shared.publish(staged);
        Ok(())
    }

    fn compaction_step(&self) -> Option<Compaction> {
        let state = self.shared.read();
        let floor = self.floor_target.min(state.floor() + COMPACT_STEP_MAX);
        (floor > state.floor()).then(|| Compaction {
            floor,
            rows: state.compaction_rows(floor),
        })
    }

    fn answer(&mut self, answers: Answers) {
        for (reply, outcome) in answers.0 {
            let counter = match outcome {
                TxnOutcome::Committed(_) => &self.counters.txns_committed,
                TxnOutcome::Failed { .. } => &self.counters.txns_failed,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            // The caller may have gone; its transaction stands.
            let _ = reply.send(Ok(outcome));
        }
        let floor = self.shared.read().floor();
        for (wanted, reply) in std::mem::take(&mut self.compact_waiters) {
            if wanted <= floor {
                let _ = reply.send(Ok(()));
            } else {
                self.compact_waiters.push((wanted, reply));
            }
        }
    }

    /// Raises the floor by the rules of [`Options`].
    fn plan_compaction(&mut self, now: Instant) {
        let state = self.shared.read();
        let (rev, floor, len) = (state.rev(), state.floor(), state.history_len());
        let bytes = state.history_bytes();
        drop(state);
        let due = self
            .marks
            .back()
            .is_none_or(|(at, _)| now.duration_since(*at) >= IDLE_TICK);
        if due {
            if self.marks.len() >= MARKS_MAX {
                self.marks.pop_front();
            }
            self.marks.push_back((now, rev));
        }
        let age = self.options.history_age;
        let old = |mark: &mut (Instant, Rev)| now.duration_since(mark.0) > age;
        while let Some((_, then)) = self.marks.pop_front_if(old) {
            let keep = rev.saturating_sub(self.options.history_min as Rev);
            self.floor_target = self.floor_target.max(then.min(keep));
        }
        if len > self.options.history_max {
            let keep = rev.saturating_sub(self.options.history_max as Rev);
            self.floor_target = self.floor_target.max(keep);
        }
        if bytes > self.options.history_bytes_max {
            self.floor_target = self.floor_target.max(floor + (len / 8).max(1) as Rev);
        }
    }

    /// Tells everybody that the engine is gone: this group, and whoever still waits in the queue.
    fn fail(self, cause: &str, answers: Answers) {
        self.shared.stop(cause);
        let stopped = StoreError::Stopped {
            cause: cause.into(),
        };
        for (reply, _) in answers.0 {
            let _ = reply.send(Err(stopped.clone()));
        }
        for (_, reply) in self.compact_waiters {
            let _ = reply.send(Err(stopped.clone()));
        }
        while let Ok(request) = mpsc::Receiver::recv_timeout(&self.requests, Duration::ZERO) {
            match request {
                Request::Txn { reply, .. } => drop(reply.send(Err(stopped.clone()))),
                Request::Compact { reply, .. } => drop(reply.send(Err(stopped.clone()))),
            }
        }
    }
}
