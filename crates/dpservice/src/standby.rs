//! Two instances on one host, of which one works: whoever holds the lock of a file.
//!
//! An instance without the lock serves requests, so that it is configured like the other, and discards packets. The kernel gives the lock to
//! the waiting one as soon as the working one ends, however it ends.

use crate::sync;
use crate::worker::Handle;
use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::path::Path;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// A lock that is being waited for.
pub type Requested = oneshot::Receiver<Flock<File>>;

/// Opens the file, creating it if need be, and waits for its lock on a thread of its own, which nothing can end but the lock or the end of the
/// process.
///
/// # Errors
/// If the file cannot be opened, or there is no thread.
pub fn request(path: &Path) -> anyhow::Result<Requested> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot open the lock file {}", path.display()))?;
    let (sender, lock) = oneshot::channel();
    let wait = move || match Flock::lock(file, FlockArg::LockExclusive) {
        // Nobody waits any more: dropping the lock gives it back.
        Ok(lock) => drop(sender.send(lock)),
        Err((_, error)) => tracing::error!(%error, "Cannot lock the lock file"),
    };
    std::thread::Builder::new()
        .name("standby".to_owned())
        .spawn(wait)
        .context("cannot start the thread that waits for the lock")?;
    Ok(lock)
}

/// Lets packets pass as soon as the lock is there and what is known of the other instance's connections was taken over, and keeps the lock
/// until `shutdown`.
///
/// # Errors
/// If the lock cannot be had.
pub async fn hold(
    lock: Requested,
    worker: Handle,
    sync: Option<sync::Control>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    tracing::info!("Standing by until the other instance ends");
    let lock = tokio::select! {
        lock = lock => lock.context("the lock file cannot be locked")?,
        () = shutdown.cancelled() => return Ok(()),
    };
    if let Some(sync) = sync {
        sync.take_over().await;
    }
    worker.activate();
    tracing::info!("Active");
    shutdown.cancelled().await;
    // Both must not work: requests may take a while to finish. An error means that there is nothing left that works.
    let _ = worker.stand_by().await;
    drop(lock);
    Ok(())
}
