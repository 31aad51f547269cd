//! PATCH: JSON Patch, merge patch, strategic merge (built-in kinds only) and server-side apply.

use super::update::{Live, Proposal};
use super::{Part, Write, Written};
use crate::decode::{self, Decoded};
use crate::negotiate::{Encoding, unsupported};
use crate::object;
use crate::patch;
use crate::patch::apply::{ApplyError, Conflict};
use crate::query::Query;
use crate::status::{Cause, Failure, Outcome};
use bytes::Bytes;
use serde_json::{Value, json};

/// Kind of a patch, from its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

const ACCEPTED: &str =
    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
const ACCEPTED_BUILTIN: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, \
                                application/apply-patch+yaml";

impl PatchType {
    /// The type that a media type names. Strategic merge exists for built-in kinds only, as on a cluster with CRDs.
    pub fn parse(media_type: &str, builtin: bool) -> Outcome<PatchType> {
        match media_type {
            "application/json-patch+json" => Ok(PatchType::Json),
            "application/merge-patch+json" => Ok(PatchType::Merge),
            "application/apply-patch+yaml" => Ok(PatchType::Apply),
            "application/strategic-merge-patch+json" if builtin => Ok(PatchType::Strategic),
            other => Err(unsupported(
                other,
                if builtin { ACCEPTED_BUILTIN } else { ACCEPTED },
            )),
        }
    }
}

impl Write<'_> {
    pub async fn patch(
        &self,
        patch_type: PatchType,
        body: &Bytes,
        query: &Query,
    ) -> Outcome<Written> {
        if patch_type == PatchType::Apply {
            return self.apply(body, query.flag("force")).await;
        }
        if query.flag("force") {
            return Err(Failure::invalid(
                "meta.k8s.io",
                "PatchOptions",
                "",
                vec![Cause {
                    reason: "FieldValueForbidden".into(),
                    message: "Forbidden: may not be specified for non-apply patch".into(),
                    field: "force".into(),
                }],
            ));
        }
        let Decoded {
            value: document,
            duplicates,
        } = decode::json(body)?;
        let duplicates: Vec<String> = duplicates
            .into_iter()
            .map(|path| format!("duplicate field \"{path}\""))
            .collect();
        self.change(|live| {
            let live = live.ok_or_else(|| self.not_found())?;
            self.patched(live, patch_type, &document, &duplicates)
        })
        .await
    }

    fn patched(
        &self,
        live: &Live,
        patch_type: PatchType,
        document: &Value,
        duplicates: &[String],
    ) -> Outcome<Proposal> {
        let mut base = live.value.clone();
        if let Some(shape) = self.kind.view {
            shape.restore(&mut base);
        }
        let invalid = |error: String| {
            Failure::invalid(
                self.kind.group,
                self.kind.kind,
                self.name,
                vec![Cause {
                    reason: "FieldValueInvalid".into(),
                    message: error,
                    field: "patch".into(),
                }],
            )
        };
        let value = match patch_type {
            PatchType::Json => {
                patch::json_patch(base, document).map_err(|error| match error.code() {
                    400 => Failure::bad_request(error.to_string()),
                    413 => Failure::new(
                        crate::status::Reason::RequestEntityTooLarge,
                        error.to_string(),
                    ),
                    _ => invalid(error.to_string()),
                })?
            }
            PatchType::Merge => {
                if !document.is_object() {
                    return Err(Failure::bad_request("a merge patch must be a JSON object"));
                }
                patch::merge_patch(base, document)
            }
            PatchType::Strategic => patch::strategic(base, document, self.kind.schema())
                .map_err(|error| Failure::bad_request(error.to_string()))?,
            PatchType::Apply => return Err(Failure::internal("apply is no change of a document")),
        };
        if !value.is_object() {
            return Err(invalid("the patched document is not an object".into()));
        }
        if object::metadata_text(&value, "name") != self.name {
            return Err(invalid(
                "metadata.name: Invalid value: the name may not be changed".into(),
            ));
        }
        let (object, mut warnings) = self.admit_body(Decoded {
            value,
            duplicates: Vec::new(),
        })?;
        warnings.extend(self.judge(duplicates.to_vec(), &object)?);
        Ok(Proposal {
            object,
            warnings,
            track: true,
        })
    }

    /// Server-side apply; creates the object when it does not exist.
    async fn apply(&self, body: &Bytes, force: bool) -> Outcome<Written> {
        if !self.manager_given {
            return Err(Failure::invalid(
                "meta.k8s.io",
                "PatchOptions",
                "",
                vec![Cause {
                    reason: "FieldValueRequired".into(),
                    message: "Required value: is required for apply patch".into(),
                    field: "fieldManager".into(),
                }],
            ));
        }
        let decoded = decode::object(body, Encoding::Yaml)?;
        for member in ["apiVersion", "kind"] {
            if decoded
                .value
                .get(member)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .is_empty()
            {
                return Err(Failure::bad_request(format!(
                    "Object '{member}' is missing in the body of the apply request"
                )));
            }
        }
        let managed = object::metadata(&decoded.value, "managedFields");
        if managed
            .and_then(Value::as_array)
            .is_some_and(|list| !list.is_empty())
        {
            return Err(Failure::bad_request("metadata.managedFields must be nil"));
        }
        let (mut config, warnings) = self.admit_body(decoded)?;
        object::remove_metadata(&mut config, "managedFields");
        let name = object::metadata_text(&config, "name");
        if !name.is_empty() && name != self.name {
            return Err(self.wrong_name(name));
        }
        object::set_metadata(&mut config, "name", json!(self.name));
        if self.kind.namespaced && object::metadata_text(&config, "namespace").is_empty() {
            object::set_metadata(&mut config, "namespace", json!(self.namespace));
        }
        self.change(|live| {
            if live.is_none() && self.part != Part::Main {
                return Err(self.not_found());
            }
            if live.is_none() && !object::metadata_text(&config, "uid").is_empty() {
                let why = "Precondition failed: UID in precondition, and the object does not exist";
                return Err(Failure::conflict(
                    self.kind.group,
                    self.kind.plural,
                    self.name,
                    why,
                ));
            }
            self.applied(live, &config, &warnings, force)
        })
        .await
    }

    fn applied(
        &self,
        live: Option<&Live>,
        config: &Value,
        warnings: &[String],
        force: bool,
    ) -> Outcome<Proposal> {
        let result = self.with_manager(|manager| {
            patch::apply::apply(
                live.map(|live| &live.value),
                config,
                self.kind.schema(),
                manager,
                force,
            )
        });
        let object = result.map_err(|error| match error {
            ApplyError::Conflicts(conflicts) => conflict_failure(&conflicts),
            other => Failure::bad_request(other.to_string()),
        })?;
        Ok(Proposal {
            object,
            warnings: warnings.to_vec(),
            track: false,
        })
    }

    /// Records which fields a write that is no apply has set.
    pub(super) fn track(&self, old: Option<&Value>, new: &mut Value) {
        self.with_manager(|manager| {
            patch::apply::track_update(old, new, self.kind.schema(), manager)
        });
    }

    fn with_manager<T>(&self, run: impl FnOnce(&patch::apply::Write<'_>) -> T) -> T {
        let ignored: &[&str] = match self.part {
            Part::Main if self.kind.has_status && !self.kind.builtin => &["status"],
            Part::Main => &[],
            Part::Status | Part::Approval => &["metadata", "spec"],
            Part::Finalize => &["metadata", "status"],
        };
        run(&patch::apply::Write {
            manager: &self.manager,
            api_version: &self.kind.api_version(),
            subresource: self.part.as_str(),
            now: &self.region.nature.now_text(),
            ignored,
        })
    }
}

fn conflict_failure(conflicts: &[Conflict]) -> Failure {
    let message = ApplyError::Conflicts(conflicts.to_vec()).to_string();
    let causes = conflicts.iter().map(|conflict| Cause {
        reason: "FieldManagerConflict".into(),
        message: conflict.message(),
        field: conflict.path.clone(),
    });
    let mut failure = Failure::new(crate::status::Reason::Conflict, message);
    failure.details.causes = causes.collect();
    failure
}
