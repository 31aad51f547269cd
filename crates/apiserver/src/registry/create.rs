//! POST: a new object, its locks, and nothing else, in one transaction.

use super::{CONFLICT_RETRIES_MAX, Write, Written, store_key};
use crate::allocate::Draft;
use crate::decode::Decoded;
use crate::object::{self, Encoded};
use crate::status::{Failure, Outcome};
use crate::store::{Expect, Guard, Op, Txn, TxnOutcome};
use serde_json::{Value, json};

/// Fresh names tried for one `generateName`.
const NAME_TRIES_MAX: usize = 8;

impl Write<'_> {
    /// Creates the object in a body.
    pub async fn create(&self, decoded: Decoded) -> Outcome<Written> {
        let (object, warnings) = self.admit_body(decoded)?;
        self.create_object(object, warnings, true).await
    }

    /// Creates an object. `track` is off when an apply has already recorded field owners.
    pub async fn create_object(
        &self,
        mut object: Value,
        warnings: Vec<String>,
        track: bool,
    ) -> Outcome<Written> {
        self.place(&mut object)?;
        let generated = object::metadata_text(&object, "name").is_empty()
            && !object::metadata_text(&object, "generateName").is_empty();
        let mut tries = if generated { NAME_TRIES_MAX } else { 1 };
        self.prepare_create(&mut object);
        loop {
            tries -= 1;
            let mut candidate = object.clone();
            if generated {
                let prefix = object::metadata_text(&object, "generateName");
                object::set_metadata(
                    &mut candidate,
                    "name",
                    json!(object::generate_name(prefix, &self.region.nature)),
                );
            }
            match self.insert(candidate, track).await {
                Ok((encoded, rev)) => {
                    return Ok(Written {
                        encoded,
                        rev,
                        created: true,
                        deleted: false,
                        warnings,
                    });
                }
                Err(failure)
                    if tries > 0 && failure.reason == crate::status::Reason::AlreadyExists => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Name and namespace of the URL, which the body must agree with.
    fn place(&self, object: &mut Value) -> Outcome<()> {
        let namespace = object::metadata_text(object, "namespace");
        if self.kind.namespaced {
            if !namespace.is_empty() && namespace != self.namespace {
                return Err(Failure::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            object::set_metadata(object, "namespace", json!(self.namespace));
        } else if !namespace.is_empty() {
            return Err(Failure::bad_request(
                "namespace may not be set on cluster-scoped objects",
            ));
        }
        let name = object::metadata_text(object, "name");
        if !self.name.is_empty() {
            if !name.is_empty() && name != self.name {
                return Err(self.wrong_name(name));
            }
            object::set_metadata(object, "name", json!(self.name));
        }
        if !matches!(object::metadata_text(object, "resourceVersion"), "" | "0") {
            return Err(Failure::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        Ok(())
    }

    pub(super) fn wrong_name(&self, name: &str) -> Failure {
        Failure::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            self.name
        ))
    }

    fn prepare_create(&self, object: &mut Value) {
        for key in [
            "resourceVersion",
            "selfLink",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ] {
            object::remove_metadata(object, key);
        }
        object::set_metadata(object, "uid", json!(self.region.nature.uid()));
        object::set_metadata(
            object,
            "creationTimestamp",
            json!(self.region.nature.now_text()),
        );
        if self.kind.counts_generation() {
            object::set_metadata(object, "generation", json!(1));
        } else {
            object::remove_metadata(object, "generation");
        }
        // Built-in kinds such as Node are registered with their status.
        if self.kind.has_status
            && !self.kind.builtin
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
        self.kind.defaults(object);
        crate::admission::mutate_create(self.kind, self.user, object);
    }

    async fn insert(&self, mut object: Value, track: bool) -> Outcome<(Encoded, u64)> {
        let name = object::metadata_text(&object, "name").to_owned();
        let mut errors = self.kind.check_create(&object);
        errors.extend(crate::certificates::check_create(self.kind, &object));
        self.check(&name, errors)?;
        crate::admission::permit(self, None, Some(&object))?;
        if track {
            object::remove_metadata(&mut object, "managedFields");
            self.track(None, &mut object);
        }
        let key = store_key(self.kind, self.namespace, &name);
        for _ in 0..CONFLICT_RETRIES_MAX {
            let namespace = crate::admission::namespace_guard(self, &name).await?;
            let mut allocated = object.clone();
            let mut draft = Draft::default();
            crate::allocate::create(self, &mut allocated, &mut draft).await?;
            let encoded = Encoded::from_value(&allocated);
            if self.dry_run {
                let exists = self
                    .region
                    .store
                    .get(&key, crate::store::At::Latest)
                    .await?
                    .is_some();
                let taken = || Failure::already_exists(self.kind.group, self.kind.plural, &name);
                return if exists {
                    Err(taken())
                } else {
                    Ok((encoded, 0))
                };
            }
            let mut txn = Txn::new();
            txn.guards.push(Guard {
                key: key.clone(),
                expect: Expect::Absent,
            });
            txn.guards.extend(namespace);
            txn.ops.push(Op::Put {
                key: key.clone(),
                value: encoded.stored(),
            });
            txn.guards.extend(draft.guards);
            txn.ops.extend(draft.ops);
            match self.region.store.txn(txn).await? {
                TxnOutcome::Committed(rev) => return Ok((encoded, rev)),
                TxnOutcome::Failed { index: 0, .. } => {
                    return Err(Failure::already_exists(
                        self.kind.group,
                        self.kind.plural,
                        &name,
                    ));
                }
                // The namespace changed, or somebody took a number first: look again.
                TxnOutcome::Failed { .. } => {
                    self.region.metrics.write_retries.inc();
                }
            }
        }
        Err(Failure::too_many_requests(format!(
            "{name}: too many concurrent writers"
        )))
    }
}
