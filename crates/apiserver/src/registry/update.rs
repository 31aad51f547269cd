//! PUT and the common end of every change of an existing object: rules, validation, locks, commit.

use super::{CONFLICT_RETRIES_MAX, Part, Write, Written, metadata, store_key};
use crate::allocate::Draft;
use crate::auth::Action;
use crate::decode::Decoded;
use crate::object::{self, Encoded};
use crate::status::{Failure, Outcome};
use crate::store::{At, Expect, Guard, Op, Rev, Txn, TxnOutcome};
use api::field::FieldError;
use serde_json::{Value, json};

/// An object as it is in the store.
#[derive(Debug, Clone)]
pub struct Live {
    pub encoded: Encoded,
    pub rev: Rev,
    /// The document with its resourceVersion.
    pub value: Value,
}

/// What a change proposes.
#[derive(Debug)]
pub struct Proposal {
    pub object: Value,
    pub warnings: Vec<String>,
    /// Whether field owners have still to be recorded.
    pub track: bool,
}

impl Write<'_> {
    /// The newest committed version.
    pub async fn live(&self) -> Outcome<Option<Live>> {
        let key = store_key(self.kind, self.namespace, self.name);
        let Some(kv) = self.region.store.get(&key, At::Latest).await? else {
            return Ok(None);
        };
        let encoded = Encoded::restore(kv.value)
            .map_err(|damaged| Failure::internal(format!("{}: {damaged}", self.name)))?;
        let value = encoded.to_value(kv.mod_rev);
        Ok(Some(Live {
            encoded,
            rev: kv.mod_rev,
            value,
        }))
    }

    /// Replaces the object.
    pub async fn put(&self, decoded: Decoded) -> Outcome<Written> {
        let (object, warnings) = self.admit_body(decoded)?;
        let name = object::metadata_text(&object, "name");
        if name.is_empty() {
            return Err(self.bad_request("name must be provided in the object"));
        }
        if name != self.name {
            return Err(self.wrong_name(name));
        }
        if object::metadata_text(&object, "resourceVersion").is_empty() && self.kind.locked_update()
        {
            let error = FieldError::invalid(
                "metadata.resourceVersion",
                0,
                "must be specified for an update",
            );
            return self.check(self.name, vec![error]).and(Err(self.stale()));
        }
        self.change(|live| match live {
            Some(_) => Ok(Proposal {
                object: object.clone(),
                warnings: warnings.clone(),
                track: true,
            }),
            None => Err(self.not_found()),
        })
        .await
    }

    /// Applies a change to the newest version, again when somebody else was faster and the change names no resourceVersion.
    pub async fn change(
        &self,
        propose: impl Fn(Option<&Live>) -> Outcome<Proposal> + Send + Sync,
    ) -> Outcome<Written> {
        for _ in 0..CONFLICT_RETRIES_MAX {
            let live = self.live().await?;
            let proposal = propose(live.as_ref())?;
            let Some(live) = live else {
                self.may_create()?;
                return self
                    .create_object(proposal.object, proposal.warnings, proposal.track)
                    .await;
            };
            if let Some(written) = self.commit(&live, proposal).await? {
                return Ok(written);
            }
            self.region.metrics.write_retries.inc();
        }
        Err(Failure::too_many_requests(format!(
            "{}: too many concurrent writers",
            self.name
        )))
    }

    /// An apply that makes the object needs the right to create, beside the right to patch.
    fn may_create(&self) -> Outcome<()> {
        let action = Action {
            verb: "create",
            group: self.kind.group,
            resource: self.kind.plural,
            namespace: self.namespace,
            name: self.name,
            ..Action::default()
        };
        if self
            .region
            .authorizer
            .allows(self.region, self.user, &action)
        {
            return Ok(());
        }
        let why = action.refusal(self.user);
        Err(Failure::forbidden(
            self.kind.group,
            self.kind.plural,
            self.name,
            &why,
        ))
    }

    /// Commits a proposal over `live`; nothing when somebody else was faster.
    async fn commit(&self, live: &Live, proposal: Proposal) -> Outcome<Option<Written>> {
        let Proposal {
            object: mut new,
            warnings,
            track,
        } = proposal;
        let old = &live.value;
        self.preconditions(old, &new)?;
        self.prepare_update(old, &mut new)?;
        self.kind.defaults(&mut new);
        self.count_generation(old, &mut new);
        let errors = match self.part {
            Part::Main => self.kind.check_update(&new, old),
            Part::Status | Part::Approval => self.kind.check_status(&new, old),
            Part::Finalize => Vec::new(),
        };
        self.check(self.name, errors)?;
        crate::admission::permit(self, Some(old), Some(&new))?;
        if track {
            self.track(Some(old), &mut new);
        }
        object::set_metadata(&mut new, "resourceVersion", json!(live.rev.to_string()));
        let unchanged = |deleted| {
            Some(Written {
                encoded: live.encoded.clone(),
                rev: live.rev,
                created: false,
                deleted,
                warnings: warnings.clone(),
            })
        };
        let gone = object::is_deleting(&new) && self.kind.is_released(&new);
        if new == *old && !gone {
            return Ok(unchanged(false));
        }
        let mut draft = Draft::default();
        if gone {
            crate::allocate::delete(self, old, &mut draft).await?;
        } else if self.part == Part::Main {
            crate::allocate::update(self, old, &mut new, &mut draft).await?;
        }
        let encoded = Encoded::from_value(&new);
        let written = |rev| {
            Some(Written {
                encoded: encoded.clone(),
                rev,
                created: false,
                deleted: gone,
                warnings: warnings.clone(),
            })
        };
        if self.dry_run {
            return Ok(written(live.rev));
        }
        let txn = self.over(live.rev, (!gone).then_some(&encoded), draft);
        match self.region.store.txn(txn).await? {
            TxnOutcome::Committed(rev) => Ok(written(rev)),
            TxnOutcome::Failed { .. } => Ok(None),
        }
    }

    /// The transaction that puts `encoded`, or nothing, in place of version `rev` of the object, with all that was drafted for it.
    pub(super) fn over(&self, rev: Rev, encoded: Option<&Encoded>, draft: Draft) -> Txn {
        let key = store_key(self.kind, self.namespace, self.name);
        let mut txn = Txn::new();
        txn.guards.push(Guard {
            key: key.clone(),
            expect: Expect::ModRev(rev),
        });
        txn.ops.push(match encoded {
            None => Op::Delete { key },
            Some(encoded) => Op::Put {
                key,
                value: encoded.stored(),
            },
        });
        txn.guards.extend(draft.guards);
        txn.ops.extend(draft.ops);
        txn
    }

    fn preconditions(&self, old: &Value, new: &Value) -> Outcome<()> {
        let wanted = object::metadata_text(new, "resourceVersion");
        if !matches!(wanted, "" | "0") && wanted != object::metadata_text(old, "resourceVersion") {
            return Err(self.stale());
        }
        let (is, uid) = (
            object::metadata_text(old, "uid"),
            object::metadata_text(new, "uid"),
        );
        if !uid.is_empty() && uid != is {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {is}"
            );
            return Err(Failure::conflict(
                self.kind.group,
                self.kind.plural,
                self.name,
                &why,
            ));
        }
        Ok(())
    }

    /// After defaulting: a body that leaves out what was filled in before changes nothing.
    fn count_generation(&self, old: &Value, new: &mut Value) {
        let counted = self.part == Part::Main && self.kind.counts_generation();
        if counted && metadata::spec_changed(old, new) {
            let generation = object::metadata(old, "generation").and_then(Value::as_i64);
            let next = generation.unwrap_or(0).saturating_add(1);
            object::set_metadata(new, "generation", json!(next));
        }
    }

    /// What an update may not touch stays as it was.
    fn prepare_update(&self, old: &Value, new: &mut Value) -> Outcome<()> {
        let namespace = object::metadata_text(new, "namespace");
        if self.kind.namespaced && !namespace.is_empty() && namespace != self.namespace {
            return Err(Failure::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        match self.part {
            Part::Main => {
                metadata::keep_server_owned(old, new);
                if self.kind.namespaced {
                    object::set_metadata(new, "namespace", json!(self.namespace));
                }
                if self.kind.has_status {
                    copy_member(old, new, "status");
                }
                self.kind.keep_main(old, new);
            }
            Part::Status | Part::Approval => {
                let mut kept = old.clone();
                copy_member(new, &mut kept, "status");
                crate::certificates::keep_parts(self, old, &mut kept);
                if let Some(managed) = object::metadata(new, "managedFields") {
                    object::set_metadata(&mut kept, "managedFields", managed.clone());
                }
                *new = kept;
            }
            Part::Finalize => {
                let mut kept = old.clone();
                let finalizers = new
                    .pointer("/spec/finalizers")
                    .cloned()
                    .unwrap_or_else(|| json!([]));
                if let Some(map) = kept.as_object_mut() {
                    map.insert("spec".into(), json!({ "finalizers": finalizers }));
                }
                *new = kept;
            }
        }
        Ok(())
    }
}

/// Makes a top-level member of `to` what it is in `from`.
fn copy_member(from: &Value, to: &mut Value, member: &str) {
    if let Some(map) = to.as_object_mut() {
        match from.get(member) {
            Some(value) => map.insert(member.to_owned(), value.clone()),
            None => map.remove(member),
        };
    }
}
