//! Leader election on a `coordination.k8s.io` Lease, with fencing: a [`Fence`] says whether our lease is still good, and
//! every write asks it first.
//!
//! The lease is judged by our own clock from the moment we saw its record change, so clocks of replicas need not agree. A
//! holder that died on this very host is recognised by its process (boot, pid namespace, pid, start time), so that a restart
//! after a crash does not wait for the lease to run out. Losing the lease for good ends the process; merely not reaching the
//! server only stops writes, and if nobody else led meanwhile the same process goes on.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, api::PostParams};
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// Where and how to elect. The deadlines obey `retry < renew < duration`.
#[derive(Clone, Debug)]
pub struct Election {
    pub namespace: String,
    pub name: String,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

impl Election {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Election {
        Election {
            namespace: namespace.into(),
            name: name.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Whether we may write now. Cheap to clone; all clones see the same lease.
#[derive(Clone)]
pub struct Fence {
    epoch: Instant,
    /// Milliseconds after `epoch` until which the lease is good.
    good_until: Arc<AtomicU64>,
}

impl Fence {
    fn new() -> Fence {
        Fence {
            epoch: Instant::now(),
            good_until: Arc::default(),
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }

    fn extend(&self, until: Instant) {
        self.good_until.store(self.millis(until), Ordering::Release);
    }

    fn drop_now(&self) {
        self.good_until.store(0, Ordering::Release);
    }

    pub fn is_held(&self) -> bool {
        self.millis(Instant::now()) < self.good_until.load(Ordering::Acquire)
    }

    pub fn check(&self) -> Result<(), Error> {
        if self.is_held() {
            Ok(())
        } else {
            Err(Error::Fenced)
        }
    }
}

/// A process, so that another on the same host can tell whether it still lives.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    /// Host name, boot id and pid namespace: processes with equal scope see each other in `/proc`.
    scope: String,
    pid: u32,
    started: String,
    /// Electors of one process are different candidates.
    elector: u32,
}

/// Electors made by this process so far.
static ELECTORS: AtomicU32 = AtomicU32::new(0);

impl Identity {
    fn own() -> Identity {
        let read = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let boot: String = read("/proc/sys/kernel/random/boot_id")
            .chars()
            .take(8)
            .collect();
        let pid_namespace = fs::read_link("/proc/self/ns/pid")
            .map(|link| {
                link.to_string_lossy()
                    .chars()
                    .filter(char::is_ascii_digit)
                    .collect()
            })
            .unwrap_or_else(|_| String::from("unknown"));
        let host = read("/proc/sys/kernel/hostname");
        let pid = std::process::id();
        Identity {
            scope: format!("{host}_{boot}_{pid_namespace}"),
            pid,
            started: start_time(pid).unwrap_or_default(),
            elector: ELECTORS.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn parse(text: &str) -> Option<Identity> {
        let mut parts = text.rsplitn(4, '_');
        let elector = parts.next()?.parse().ok()?;
        let started = parts.next()?.to_owned();
        let pid = parts.next()?.parse().ok()?;
        Some(Identity {
            scope: parts.next()?.to_owned(),
            pid,
            started,
            elector,
        })
    }

    fn text(&self) -> String {
        let Identity {
            scope,
            pid,
            started,
            elector,
        } = self;
        format!("{scope}_{pid}_{started}_{elector}")
    }

    /// True only if `holder` provably no longer runs.
    fn knows_dead(&self, holder: &str) -> bool {
        Identity::parse(holder).is_some_and(|holder| {
            holder.scope == self.scope && start_time(holder.pid).as_ref() != Some(&holder.started)
        })
    }
}

/// Field 22 of `/proc/<pid>/stat`: start time in clock ticks since boot. `None` if there is no such process.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may contain anything, also parentheses and spaces: count fields after its end.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19).map(str::to_owned)
}

/// What we know about the lease record, and since when.
struct Observed {
    record: Option<LeaseSpec>,
    since: Instant,
}

struct Elector {
    api: Api<Lease>,
    election: Election,
    identity: Identity,
    observed: Observed,
    /// Transition count of the term we lead.
    term: Option<i32>,
}

/// What one attempt found.
enum Attempt {
    Held,
    HeldByOther(String),
}

/// Waits until this process leads, then runs `lead` with a fence. When it ends by shutdown, the lease is given back at once.
pub async fn run<F>(
    client: kube::Client,
    election: Election,
    shutdown: CancellationToken,
    lead: impl FnOnce(Fence, CancellationToken) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut elector = Elector {
        api: Api::namespaced(client, &election.namespace),
        identity: Identity::own(),
        observed: Observed {
            record: None,
            since: Instant::now(),
        },
        term: None,
        election,
    };
    let fence = Fence::new();
    if !elector.campaign(&fence, &shutdown).await {
        return Ok(());
    }
    tracing::info!(lease = elector.election.name, "leading");
    let stop = shutdown.child_token();
    let result = tokio::select! {
        result = lead(fence.clone(), stop.clone()) => result,
        lost = elector.keep(&fence, &stop) => lost,
    };
    stop.cancel();
    fence.drop_now();
    elector.release().await;
    result
}

impl Elector {
    /// False if shut down first.
    async fn campaign(&mut self, fence: &Fence, shutdown: &CancellationToken) -> bool {
        let mut waiting_for = String::new();
        loop {
            let started = Instant::now();
            match self.attempt().await {
                Ok(Attempt::Held) => {
                    fence.extend(started + self.election.renew_deadline);
                    return true;
                }
                Ok(Attempt::HeldByOther(holder)) if holder != waiting_for => {
                    tracing::info!(lease = self.election.name, holder, "waiting for the lease");
                    waiting_for = holder;
                }
                Ok(Attempt::HeldByOther(_)) => {}
                Err(error) => {
                    tracing::debug!(lease = self.election.name, err = %error, "lease attempt failed");
                }
            }
            // Candidates ask often: a failed attempt costs one small request.
            let pause = self.election.retry_period.min(Duration::from_millis(250));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return false,
            }
        }
    }

    /// Renews until the lease is another's. Unreachable servers only let the fence expire.
    async fn keep(&mut self, fence: &Fence, stop: &CancellationToken) -> anyhow::Result<()> {
        loop {
            let pause = if fence.is_held() {
                self.election.retry_period
            } else {
                self.election.retry_period.min(Duration::from_millis(250))
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => std::future::pending().await,
            }
            let started = Instant::now();
            let attempt = tokio::time::timeout(self.election.renew_deadline, self.attempt()).await;
            match attempt {
                Ok(Ok(Attempt::Held)) => fence.extend(started + self.election.renew_deadline),
                Ok(Ok(Attempt::HeldByOther(holder))) => {
                    fence.drop_now();
                    bail!("lost the lease {} to {holder}", self.election.name);
                }
                Ok(Err(error)) => {
                    tracing::debug!(lease = self.election.name, err = %error, "lease not renewed");
                }
                Err(_) => tracing::debug!(lease = self.election.name, "lease renewal timed out"),
            }
        }
    }

    async fn attempt(&mut self) -> anyhow::Result<Attempt> {
        let name = self.election.name.clone();
        let own = self.identity.text();
        let Some(mut lease) = self.api.get_opt(&name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(name),
                    ..ObjectMeta::default()
                },
                spec: Some(self.record(None, 0)),
            };
            let created = self.api.create(&PostParams::default(), &lease).await?;
            return Ok(self.observe_held(created));
        };
        let record = lease.spec.clone().unwrap_or_default();
        if self.observed.record.as_ref() != Some(&record) {
            self.observed = Observed {
                record: Some(record.clone()),
                since: Instant::now(),
            };
        }
        let holder = record.holder_identity.clone().unwrap_or_default();
        let transitions = record.lease_transitions.unwrap_or(0);
        let ours = holder == own;
        if !ours && !holder.is_empty() {
            let expired = self.observed.since.elapsed() >= self.election.lease_duration;
            // A leader never takes over again: somebody else's term has begun, even if it has ended.
            if self.term.is_some() || !(expired || self.identity.knows_dead(&holder)) {
                return Ok(Attempt::HeldByOther(holder));
            }
        }
        if self.term.is_some_and(|term| term != transitions) {
            return Ok(Attempt::HeldByOther(holder));
        }
        lease.spec = Some(if ours {
            self.record(Some(&record), transitions)
        } else {
            self.record(None, transitions.saturating_add(1))
        });
        // The version in the metadata makes this a compare-and-swap.
        let stored = self
            .api
            .replace(&name, &PostParams::default(), &lease)
            .await?;
        Ok(self.observe_held(stored))
    }

    fn observe_held(&mut self, lease: Lease) -> Attempt {
        let record = lease.spec.unwrap_or_default();
        self.term = Some(record.lease_transitions.unwrap_or(0));
        self.observed = Observed {
            record: Some(record),
            since: Instant::now(),
        };
        Attempt::Held
    }

    fn record(&self, before: Option<&LeaseSpec>, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let acquired = before.and_then(|record| record.acquire_time.clone());
        let seconds = self.election.lease_duration.as_secs();
        LeaseSpec {
            holder_identity: Some(self.identity.text()),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Best effort: a lease that stays behind runs out by itself.
    async fn release(&mut self) {
        let released = tokio::time::timeout(Duration::from_secs(1), self.try_release()).await;
        if !matches!(released, Ok(Ok(()))) {
            tracing::debug!(lease = self.election.name, "lease was not given back");
        }
    }

    async fn try_release(&mut self) -> anyhow::Result<()> {
        let name = self.election.name.clone();
        let mut lease = self.api.get(&name).await?;
        let spec = lease.spec.as_mut().context("lease without spec")?;
        if spec.holder_identity.as_deref() != Some(&self.identity.text()) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        self.api
            .replace(&name, &PostParams::default(), &lease)
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_round_trips_and_recognises_a_dead_process_of_the_same_host() {
        let own = Identity::own();
        assert_eq!(Identity::parse(&own.text()), Some(own.clone()));
        assert!(!own.knows_dead(&own.text()));
        let dead = Identity {
            started: "1".to_owned(),
            ..own.clone()
        };
        assert!(own.knows_dead(&dead.text()));
        let elsewhere = Identity {
            scope: "other_host_1_2".to_owned(),
            ..dead
        };
        assert!(!own.knows_dead(&elsewhere.text()));
        assert!(!own.knows_dead("not an identity"));
    }
}
