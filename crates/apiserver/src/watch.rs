//! Watch streams: what one client sees of a kind from a revision on.
//!
//! A watcher is a body, not a task: it is polled by the connection and dropped with it. All events that are ready are written
//! into one chunk, so a burst costs one TLS record, and the object text is the stored one.

use crate::cache::{Cursor, Entry, Event, Turn};
use crate::filter::Filter;
use crate::print::View;
use crate::region::Region;
use crate::store::Rev;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// Time between bookmarks.
pub const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Objects of the initial state written per chunk.
const INITIAL_BURST_MAX: usize = 256;

/// Marks the bookmark that ends the initial events of a streaming list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What a client asked for.
#[derive(Debug)]
pub struct WatchRequest {
    pub view: View,
    pub filter: Filter,
    pub bookmarks: bool,
    pub timeout: Duration,
    /// The state to begin with, as synthetic ADDED events.
    pub initial: Vec<Arc<Entry>>,
    /// Announce the end of the initial state at this revision.
    pub initial_end: Option<Rev>,
    pub cursor: Cursor,
}

/// A running watch.
pub struct Watcher {
    region: Arc<Region>,
    view: View,
    filter: Filter,
    bookmarks: bool,
    initial: VecDeque<Arc<Entry>>,
    initial_end: Option<Rev>,
    cursor: Cursor,
    deadline: Instant,
    timer: Pin<Box<Sleep>>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    finished: bool,
    _counted: crate::metrics::Counted,
}

enum Wake {
    Ready,
    Timer,
    Stop,
}

impl Watcher {
    pub fn new(region: Arc<Region>, request: WatchRequest) -> Watcher {
        let WatchRequest {
            view,
            filter,
            bookmarks,
            timeout,
            initial,
            initial_end,
            cursor,
        } = request;
        let now = Instant::now();
        let deadline = now + timeout;
        let timer = Box::pin(tokio::time::sleep_until(deadline.min(now + BOOKMARK_EVERY)));
        let stop = Box::pin(region.stop.clone().cancelled_owned());
        let counted = region.metrics.watchers.enter();
        Watcher {
            region,
            view,
            filter,
            bookmarks,
            initial: initial.into(),
            initial_end,
            cursor,
            deadline,
            timer,
            stop,
            finished: false,
            _counted: counted,
        }
    }

    /// The stream as a body.
    pub fn into_chunks(self) -> crate::wire::Chunks {
        Box::pin(futures::stream::unfold(self, |mut watcher| async move {
            let chunk = watcher.next().await?;
            Some((chunk, watcher))
        }))
    }

    async fn next(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        loop {
            if self.finished {
                return None;
            }
            self.write_initial(&mut out);
            // Progress first: every event up to it is then in the ring.
            let progress = self.region.cache.progress();
            if self.initial.is_empty() && out.is_empty() {
                match self.region.cache.turn(&mut self.cursor) {
                    Turn::Lagged => {
                        self.region.metrics.watchers_lagged.inc();
                        return None;
                    }
                    Turn::Events(events) => {
                        events.iter().for_each(|event| self.write(event, &mut out))
                    }
                }
            }
            if !out.is_empty() {
                self.region.metrics.watch_chunks.inc();
                return Some(out.freeze());
            }
            match self.wait().await {
                Wake::Ready => {}
                Wake::Stop => self.finished = true,
                Wake::Timer => self.tick(progress, &mut out),
            }
            if !out.is_empty() {
                return Some(out.freeze());
            }
        }
    }

    async fn wait(&mut self) -> Wake {
        tokio::select! {
            biased;
            () = self.region.cache.ready(&mut self.cursor) => Wake::Ready,
            () = self.stop.as_mut() => Wake::Stop,
            () = self.timer.as_mut() => Wake::Timer,
        }
    }

    /// A bookmark every minute, and a last one before the end.
    fn tick(&mut self, progress: Rev, out: &mut BytesMut) {
        let now = Instant::now();
        self.finished = now >= self.deadline;
        self.timer
            .as_mut()
            .reset(self.deadline.min(now + BOOKMARK_EVERY));
        // Events may have arrived since the last turn; they come before any bookmark, so leave it out then.
        if self.bookmarks && !self.region.cache.pending(&self.cursor) {
            self.view.write_bookmark(progress, None, out);
        }
    }

    fn write_initial(&mut self, out: &mut BytesMut) {
        for _ in 0..INITIAL_BURST_MAX {
            match self.initial.pop_front() {
                Some(entry) => self.view.write_event("ADDED", &entry, entry.rev, out),
                None => break,
            }
        }
        if self.initial.is_empty()
            && let Some(rev) = self.initial_end.take()
        {
            self.view.write_bookmark(rev, Some(INITIAL_EVENTS_END), out);
        }
    }

    /// Objects that enter the selection are added, those that leave it are deleted, whatever happened to them.
    fn write(&self, event: &Event, out: &mut BytesMut) {
        let before = event
            .prev
            .as_ref()
            .filter(|entry| self.filter.matches(entry));
        let after = event
            .next
            .as_ref()
            .filter(|entry| self.filter.matches(entry));
        match (before, after) {
            (None, Some(entry)) => self.view.write_event("ADDED", entry, event.rev, out),
            (Some(_), Some(entry)) => self.view.write_event("MODIFIED", entry, event.rev, out),
            (Some(entry), None) => {
                // The last state that was selected, under the revision of its departure.
                self.view.write_event("DELETED", entry, event.rev, out);
            }
            (None, None) => {}
        }
    }
}

/// How long a watch lives when the client names no limit: spread, so that clients do not reconnect together.
pub fn default_timeout() -> Duration {
    use rand::Rng as _;
    Duration::from_secs(rand::rng().random_range(1_800..3_600))
}
