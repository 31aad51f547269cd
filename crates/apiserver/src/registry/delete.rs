//! DELETE: finalizers first, then the object and its locks in one transaction.

use super::{CONFLICT_RETRIES_MAX, Write, Written};
use crate::allocate::Draft;
use crate::filter::Filter;
use crate::object::{self, Encoded};
use crate::query::Query;
use crate::status::{Failure, Outcome};
use crate::store::TxnOutcome;
use serde_json::{Value, json};

/// What happens to objects that the deleted one owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// `DeleteOptions`, from the body or the query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

impl DeleteOptions {
    /// Options of a body (may be null) and a query.
    pub fn new(body: &Value, query: &Query) -> Outcome<DeleteOptions> {
        let text = |path: &str| {
            body.pointer(path)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
        };
        let propagation = match text("/propagationPolicy").or(query.text("propagationPolicy")) {
            None => match body.get("orphanDependents").and_then(Value::as_bool) {
                Some(true) => Some(Propagation::Orphan),
                Some(false) => Some(Propagation::Background),
                None => None,
            },
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some("Orphan") => Some(Propagation::Orphan),
            Some(other) => {
                return Err(Failure::invalid(
                    "meta.k8s.io",
                    "DeleteOptions",
                    "",
                    vec![crate::status::Cause {
                        reason: "FieldValueNotSupported".into(),
                        message: format!(
                            "Unsupported value: \"{other}\": supported values: \"Background\", \"Foreground\", \"Orphan\""
                        ),
                        field: "propagationPolicy".into(),
                    }],
                ));
            }
        };
        let in_body = body
            .get("dryRun")
            .and_then(Value::as_array)
            .is_some_and(|list| list.contains(&json!("All")));
        Ok(DeleteOptions {
            propagation,
            uid: text("/preconditions/uid").map(str::to_owned),
            resource_version: text("/preconditions/resourceVersion").map(str::to_owned),
            dry_run: in_body || query.text("dryRun") == Some("All"),
        })
    }
}

impl Write<'_> {
    /// Deletes the object, or marks it as being deleted while finalizers remain.
    pub async fn delete(&self, options: &DeleteOptions) -> Outcome<Written> {
        for _ in 0..CONFLICT_RETRIES_MAX {
            let Some(live) = self.live().await? else {
                return Err(self.not_found());
            };
            self.delete_preconditions(&live.value, options)?;
            let wait = crate::admission::delete(self, &live.value).await?;
            let mut new = live.value.clone();
            self.mark(&mut new, options, wait);
            let gone = self.kind.is_released(&new);
            let done = |encoded: Encoded, rev| {
                Ok(Written {
                    encoded,
                    rev,
                    created: false,
                    deleted: gone,
                    warnings: Vec::new(),
                })
            };
            if new == live.value && !gone {
                return done(live.encoded, live.rev);
            }
            let mut draft = Draft::default();
            if gone {
                crate::allocate::delete(self, &live.value, &mut draft).await?;
            }
            let encoded = Encoded::from_value(&new);
            if options.dry_run || self.dry_run {
                return done(encoded, live.rev);
            }
            let txn = self.over(live.rev, (!gone).then_some(&encoded), draft);
            match self.region.store.txn(txn).await? {
                TxnOutcome::Committed(rev) => return done(encoded, rev),
                TxnOutcome::Failed { .. } => {
                    self.region.metrics.write_retries.inc();
                }
            }
        }
        Err(Failure::too_many_requests(format!(
            "{}: too many concurrent writers",
            self.name
        )))
    }

    fn delete_preconditions(&self, live: &Value, options: &DeleteOptions) -> Outcome<()> {
        let checks = [
            ("UID", "uid", &options.uid),
            (
                "ResourceVersion",
                "resourceVersion",
                &options.resource_version,
            ),
        ];
        for (word, member, wanted) in checks {
            let is = object::metadata_text(live, member);
            if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != is) {
                let why = format!(
                    "Precondition failed: {word} in precondition: {wanted}, {word} in object meta: {is}"
                );
                return Err(Failure::conflict(
                    self.kind.group,
                    self.kind.plural,
                    self.name,
                    &why,
                ));
            }
        }
        Ok(())
    }

    /// Sets the propagation finalizers, and the deletion time when any finalizer remains.
    fn mark(&self, object: &mut Value, options: &DeleteOptions, wait: Option<&str>) {
        let mut finalizers: Vec<Value> = object::metadata(object, "finalizers")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        if let Some(propagation) = options.propagation {
            finalizers.retain(|finalizer| finalizer != FOREGROUND && finalizer != ORPHAN);
            match propagation {
                Propagation::Background => {}
                Propagation::Foreground => finalizers.push(json!(FOREGROUND)),
                Propagation::Orphan => finalizers.push(json!(ORPHAN)),
            }
        }
        if let Some(wait) =
            wait.filter(|wait| !finalizers.iter().any(|finalizer| finalizer == wait))
        {
            finalizers.push(json!(wait));
        }
        object::set_finalizers(object, finalizers);
        if self.kind.is_released(object) || object::is_deleting(object) {
            return;
        }
        object::set_metadata(
            object,
            "deletionTimestamp",
            json!(self.region.nature.now_text()),
        );
        object::set_metadata(object, "deletionGracePeriodSeconds", json!(0));
        if let Some(generation) = object::metadata(object, "generation").and_then(Value::as_i64) {
            object::set_metadata(object, "generation", json!(generation.saturating_add(1)));
        }
        self.kind.mark_deleting(object);
    }

    /// Deletes every object of the selection. Returns how many.
    pub async fn delete_collection(
        &self,
        filter: &Filter,
        options: &DeleteOptions,
    ) -> Outcome<usize> {
        self.region.fresh().await?;
        let namespace = Some(self.namespace).filter(|namespace| !namespace.is_empty());
        let snapshot = self.region.cache.list(self.kind.id, namespace);
        let mut count = 0;
        for entry in snapshot
            .entries
            .iter()
            .filter(|entry| filter.matches(entry))
        {
            let one = Write {
                region: self.region,
                kind: self.kind,
                namespace: entry.namespace(),
                name: entry.name(),
                part: self.part,
                user: self.user,
                manager: self.manager.clone(),
                manager_given: self.manager_given,
                dry_run: self.dry_run,
                validation: self.validation,
            };
            match one.delete(options).await {
                Ok(_) => count += 1,
                Err(failure) if failure.reason == crate::status::Reason::NotFound => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(count)
    }
}
