//! Carries out a plan's operations against the API servers, in order, and afterwards waits until the local caches have seen
//! what was written, so that the next plan of any key handled by this worker is not made from an older world.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kube::{
    Api, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::DynamicObject,
};
use serde_json::Value;

use crate::{
    error::{Class, Error},
    events::Recorder,
    key::{Key, Target},
    leader::Fence,
    metrics::{ControllerMetrics, bump},
    plan::{Op, Plan},
    runner::{Cluster, Controller},
    world::World,
};

/// A write that takes longer is given up and retried; the server may have done it, which the next plan finds out.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// An external act that takes longer is abandoned and planned anew, as after a crash: one that hangs would hold its key, and a
/// worker, for ever.
pub const ACT_TIMEOUT: Duration = Duration::from_secs(120);
/// A cache that does not show our write after this long (watch broken, object outside the selector) is planned from anyway.
pub const CAUGHT_UP_WAIT_MAX: Duration = Duration::from_secs(1);

/// What a write must become visible as.
enum Expect {
    Version(Target, u64),
    Gone(Target, String),
}

/// The writing half of a runner, shared by all its workers.
pub(crate) struct Executor {
    pub clusters: Vec<Cluster>,
    pub recorder: Recorder,
    pub fence: Option<Fence>,
    /// Manager for patches and creates; applies carry their own.
    pub manager: String,
    pub unreachable: AtomicBool,
}

/// How a plan ended besides errors.
pub(crate) struct Executed {
    /// An external act ran: plan again at once.
    pub acted: bool,
    /// The server answered although it had been unreachable before.
    pub reconnected: bool,
}

impl Executor {
    pub(crate) async fn execute(
        &self,
        controller: &Arc<dyn Controller>,
        world: &World,
        key: &Key,
        plan: Plan,
        metrics: &ControllerMetrics,
    ) -> Result<Executed, Error> {
        let mut executed = Executed {
            acted: false,
            reconnected: false,
        };
        let mut expected = Vec::new();
        let mut result = Ok(());
        for op in plan.ops {
            result = self
                .execute_one(
                    controller,
                    world,
                    key,
                    op,
                    metrics,
                    &mut executed,
                    &mut expected,
                )
                .await;
            if result.is_err() {
                break;
            }
        }
        // Also after a failure: the prefix that did succeed must be seen before the retry is planned.
        self.wait_caught_up(world, expected, metrics).await;
        result.map(|()| executed)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one private step of the loop above"
    )]
    async fn execute_one(
        &self,
        controller: &Arc<dyn Controller>,
        world: &World,
        key: &Key,
        op: Op,
        metrics: &ControllerMetrics,
        executed: &mut Executed,
        expected: &mut Vec<Expect>,
    ) -> Result<(), Error> {
        match op {
            Op::Event {
                regarding,
                warning,
                reason,
                action,
                note,
            } => {
                let sent = self
                    .recorder
                    .send(*regarding, warning, reason, action, note);
                bump(if sent {
                    &metrics.events
                } else {
                    &metrics.events_dropped
                });
                Ok(())
            }
            Op::Act(act) => {
                bump(&metrics.acts);
                executed.acted = true;
                let what = format!("{} for {key}", act.label);
                let acting = tokio::time::timeout(ACT_TIMEOUT, controller.act(world, key, act));
                let late = |late| Err(Error::act(what, Class::Retry, late));
                acting.await.unwrap_or_else(late)
            }
            Op::RequireGone { target, uid } => self.require_gone(target, &uid).await,
            Op::RequireSame { target, version } => self.require_same(target, &version).await,
            Op::Apply { .. } | Op::Patch { .. } | Op::Create { .. } | Op::Delete { .. } => {
                if let Some(fence) = &self.fence {
                    fence.check()?;
                }
                bump(&metrics.writes);
                let written = self.write(op).await;
                self.note_reachability(&written, executed);
                expected.extend(written?);
                Ok(())
            }
        }
    }

    fn note_reachability(&self, written: &Result<Option<Expect>, Error>, executed: &mut Executed) {
        let transport_failed = matches!(written, Err(Error::Api { source, .. })
            if !matches!(source.as_ref(), kube::Error::Api(_) | kube::Error::SerdeError(_)));
        if transport_failed {
            self.unreachable.store(true, Ordering::Relaxed);
        } else if self.unreachable.swap(false, Ordering::Relaxed) {
            executed.reconnected = true;
        }
    }

    pub(crate) fn api(&self, target: &Target) -> Api<DynamicObject> {
        let resource = target.kind.api_resource();
        let client = cluster_of(&self.clusters, &target.kind.group)
            .client
            .clone();
        if target.key.namespace.is_empty() {
            Api::all_with(client, &resource)
        } else {
            Api::namespaced_with(client, &target.key.namespace, &resource)
        }
    }

    async fn write(&self, op: Op) -> Result<Option<Expect>, Error> {
        match op {
            Op::Apply {
                target,
                body,
                manager,
                status,
            } => {
                let params = PatchParams::apply(&manager).force();
                self.patch(target, Patch::Apply(body), params, status, "apply")
                    .await
            }
            Op::Patch {
                target,
                body,
                status,
            } => {
                let params = PatchParams {
                    field_manager: Some(self.manager.clone()),
                    ..Default::default()
                };
                self.patch(target, Patch::Merge(body), params, status, "patch")
                    .await
            }
            Op::Create { target, body } => {
                let object: DynamicObject = serde_json::from_value(body)
                    .map_err(|error| Error::Bug(format!("create {target}: {error}")))?;
                let params = PostParams {
                    field_manager: Some(self.manager.clone()),
                    ..Default::default()
                };
                let api = self.api(&target);
                let created = timed(&target, "create", api.create(&params, &object)).await?;
                Ok(expect_version(target, &created))
            }
            Op::Delete { target, uid } => self.delete(target, uid).await,
            Op::RequireGone { .. } | Op::RequireSame { .. } | Op::Event { .. } | Op::Act(_) => {
                Err(Error::Bug("not a write".to_owned()))
            }
        }
    }

    async fn patch(
        &self,
        target: Target,
        patch: Patch<Value>,
        params: PatchParams,
        status: bool,
        verb: &'static str,
    ) -> Result<Option<Expect>, Error> {
        let api = self.api(&target);
        let name = target.key.name.clone();
        let patched = if status {
            timed(&target, verb, api.patch_status(&name, &params, &patch)).await?
        } else {
            timed(&target, verb, api.patch(&name, &params, &patch)).await?
        };
        let meta = patched.meta();
        let released = meta.finalizers.as_ref().is_none_or(Vec::is_empty);
        if meta.deletion_timestamp.is_some() && released {
            let uid = meta.uid.clone().unwrap_or_default();
            return Ok(Some(Expect::Gone(target, uid)));
        }
        Ok(expect_version(target, &patched))
    }

    async fn delete(&self, target: Target, uid: String) -> Result<Option<Expect>, Error> {
        let preconditions = Preconditions {
            uid: (!uid.is_empty()).then(|| uid.clone()),
            resource_version: None,
        };
        let params = DeleteParams::background().preconditions(preconditions);
        let api = self.api(&target);
        let deleted = timed(&target, "delete", api.delete(&target.key.name, &params)).await;
        match deleted.map(|answer| answer.left()) {
            Ok(Some(object)) => {
                let held = object
                    .meta()
                    .finalizers
                    .as_ref()
                    .is_some_and(|f| !f.is_empty());
                Ok(if held {
                    expect_version(target, &object)
                } else {
                    Some(Expect::Gone(target, uid))
                })
            }
            Ok(None) => Ok(Some(Expect::Gone(target, uid))),
            Err(error) if is_status(&error, 404) => Ok(Some(Expect::Gone(target, uid))),
            Err(error) => Err(error),
        }
    }

    /// An uncached read: the caches may not show a young owner yet.
    async fn require_gone(&self, target: Target, uid: &str) -> Result<(), Error> {
        let api = self.api(&target);
        let found = timed(&target, "get", api.get_metadata_opt(&target.key.name)).await?;
        match found.and_then(|object| object.metadata.uid) {
            Some(found) if found == uid => Err(Error::Guard {
                what: format!("{target} still exists"),
            }),
            _ => Ok(()),
        }
    }

    async fn require_same(&self, target: Target, version: &str) -> Result<(), Error> {
        let api = self.api(&target);
        let found = timed(&target, "get", api.get_metadata_opt(&target.key.name)).await?;
        let live = found.and_then(|object| object.metadata.resource_version);
        if live.as_deref().unwrap_or_default() == version {
            return Ok(());
        }
        Err(Error::Guard {
            what: format!("{target} has changed"),
        })
    }

    async fn wait_caught_up(
        &self,
        world: &World,
        expected: Vec<Expect>,
        metrics: &ControllerMetrics,
    ) {
        let deadline = tokio::time::Instant::now() + CAUGHT_UP_WAIT_MAX;
        for expect in expected {
            if tokio::time::timeout_at(deadline, caught_up(world, &expect))
                .await
                .is_err()
            {
                bump(&metrics.stale_waits);
            }
        }
    }
}

async fn caught_up(world: &World, expect: &Expect) {
    match expect {
        Expect::Version(target, version) => {
            for store in world.store_of_kind(&target.kind) {
                // A narrowed watch may never show this object; what it shows already, it keeps showing.
                if store.covers_all() || store.uid(&target.key).is_some() {
                    store.wait_seen(*version).await;
                }
            }
        }
        Expect::Gone(target, uid) => {
            for store in world.store_of_kind(&target.kind) {
                store.wait_gone(&target.key, uid).await;
            }
        }
    }
}

fn expect_version(target: Target, object: &DynamicObject) -> Option<Expect> {
    let version = object.meta().resource_version.as_ref()?.parse().ok()?;
    Some(Expect::Version(target, version))
}

/// The cluster that declared the group, else the first one.
pub(crate) fn cluster_of<'a>(clusters: &'a [Cluster], group: &str) -> &'a Cluster {
    let declared = clusters
        .iter()
        .find(|cluster| cluster.groups.iter().any(|g| g == group));
    #[expect(
        clippy::indexing_slicing,
        reason = "a runner is built from at least one cluster"
    )]
    declared.unwrap_or_else(|| &clusters[0])
}

async fn timed<T>(
    target: &Target,
    verb: &'static str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Error> {
    let api = |source| Error::Api {
        verb,
        target: Box::new(target.clone()),
        source: Box::new(source),
    };
    match tokio::time::timeout(WRITE_TIMEOUT, request).await {
        Ok(result) => result.map_err(api),
        Err(elapsed) => Err(api(kube::Error::Service(Box::new(elapsed)))),
    }
}

pub(crate) fn is_status(error: &Error, code: u16) -> bool {
    matches!(error, Error::Api { source, .. }
        if matches!(source.as_ref(), kube::Error::Api(status) if status.code == code))
}
