//! The verbs over every kind: one implementation, driven by the kind's row.
//!
//! A write is decoded, checked for unknown fields, defaulted, validated as a whole, admitted, given its addresses and numbers, and
//! committed in one transaction with everything it locks. Validation comes before allocation, and nothing is allocated outside the
//! transaction, so a failed request leaves nothing behind.

pub mod create;
pub mod delete;
pub mod metadata;
pub mod patch;
pub mod read;
pub mod update;

use crate::auth::User;
use crate::decode::Decoded;
use crate::kinds::Kind;
use crate::object::{self, Encoded};
use crate::query::Query;
use crate::region::Region;
use crate::status::{Cause, Failure, Outcome};
use crate::store::Rev;
use bytes::Bytes;
use serde_json::Value;
use std::sync::Arc;

/// How often a write without a resourceVersion is tried again when somebody else was faster.
pub const CONFLICT_RETRIES_MAX: usize = 16;

/// What to do about unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    Strict,
    Warn,
    Ignore,
}

/// Which part of an object a write concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Main,
    Status,
    /// Namespaces only: `spec.finalizers`.
    Finalize,
    /// Certificate signing requests only: whether they are approved.
    Approval,
}

impl Part {
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Main => "",
            Part::Status => "status",
            Part::Finalize => "finalize",
            Part::Approval => "approval",
        }
    }
}

/// A write request as far as all verbs share it.
#[derive(Debug)]
pub struct Write<'a> {
    pub region: &'a Arc<Region>,
    pub kind: &'a Kind,
    pub namespace: &'a str,
    pub name: &'a str,
    pub part: Part,
    pub user: &'a User,
    /// The field manager that managedFields record.
    pub manager: String,
    pub manager_given: bool,
    pub dry_run: bool,
    pub validation: FieldValidation,
}

/// Longest field manager.
const MANAGER_BYTES_MAX: usize = 128;

impl<'a> Write<'a> {
    pub fn new(
        region: &'a Arc<Region>,
        kind: &'a Kind,
        place: (&'a str, &'a str, Part),
        user: &'a User,
        query: &Query,
        agent: &str,
    ) -> Outcome<Write<'a>> {
        let (namespace, name, part) = place;
        let validation = match query.text("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => {
                return Err(bad_option("fieldValidation", other, "Ignore, Warn, Strict"));
            }
        };
        let dry_run = match query.text("dryRun") {
            None => false,
            Some("All") => true,
            Some(other) => return Err(bad_option("dryRun", other, "All")),
        };
        let given = query.text("fieldManager");
        // Without a name the first part of the user agent identifies the program, as everywhere in Kubernetes.
        let manager = given.unwrap_or_else(|| agent.split(['/', ' ']).next().unwrap_or_default());
        if given.is_some_and(|manager| manager.len() > MANAGER_BYTES_MAX) {
            return Err(Failure::invalid(
                "meta.k8s.io",
                "PatchOptions",
                "",
                vec![Cause {
                    reason: "FieldValueTooLong".into(),
                    message: format!("Too long: may not be more than {MANAGER_BYTES_MAX} bytes"),
                    field: "fieldManager".into(),
                }],
            ));
        }
        let manager = match manager {
            "" => "unknown".to_owned(),
            manager => manager.chars().take(MANAGER_BYTES_MAX).collect(),
        };
        Ok(Write {
            region,
            kind,
            namespace,
            name,
            part,
            user,
            manager,
            manager_given: given.is_some(),
            dry_run,
            validation,
        })
    }

    pub fn not_found(&self) -> Failure {
        Failure::not_found(self.kind.group, self.kind.plural, self.name)
    }

    pub fn stale(&self) -> Failure {
        Failure::stale(self.kind.group, self.kind.plural, self.name)
    }

    pub fn bad_request(&self, message: impl Into<String>) -> Failure {
        Failure::bad_request(message)
    }

    /// Turns a decoded body into an object of the kind: apiVersion and kind checked and made canonical, nulls dropped, unknown fields
    /// pruned. Returns warnings.
    pub fn admit_body(&self, decoded: Decoded) -> Outcome<(Value, Vec<String>)> {
        let Decoded {
            value: mut object,
            duplicates,
        } = decoded;
        self.canonical_kind(&mut object)?;
        let schema = self.kind.client_schema();
        schema.drop_nulls(&mut object);
        let mut problems: Vec<String> = duplicates
            .into_iter()
            .map(|path| format!("duplicate field \"{path}\""))
            .collect();
        let unknown = schema.unknown_fields(&object);
        if !unknown.is_empty() {
            schema.prune(&mut object);
        }
        problems.extend(
            unknown
                .into_iter()
                .map(|path| format!("unknown field \"{path}\"")),
        );
        let warnings = self.judge(problems, &object)?;
        if let Some(shape) = self.kind.view {
            shape.to_stored(&mut object);
        }
        crate::admission::expand(self.kind, &mut object);
        Ok((object, warnings))
    }

    /// Strict fails, warn tells, ignore is silent.
    pub fn judge(&self, problems: Vec<String>, object: &Value) -> Outcome<Vec<String>> {
        match self.validation {
            _ if problems.is_empty() => Ok(problems),
            FieldValidation::Ignore => Ok(Vec::new()),
            FieldValidation::Warn => Ok(problems),
            FieldValidation::Strict => {
                let name = match object::metadata_text(object, "name") {
                    "" => self.name,
                    name => name,
                };
                Err(Failure::bad_request(format!(
                    "{} in version \"{}\" cannot be handled as a {}: strict decoding error: {} (object {name:?})",
                    self.kind.kind,
                    self.kind.version,
                    self.kind.kind,
                    problems.join(", ")
                )))
            }
        }
    }

    /// Checks apiVersion and kind without regard to the case of the group, and writes the canonical ones.
    pub fn canonical_kind(&self, object: &mut Value) -> Outcome<()> {
        let kind = self.kind;
        let version = object
            .get("apiVersion")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let given = object
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let expected = kind.api_version();
        if !version.is_empty() && !version.eq_ignore_ascii_case(&expected) {
            return Err(Failure::bad_request(format!(
                "the API version in the data ({version}) does not match the expected API version ({expected})"
            )));
        }
        if !given.is_empty() && given != kind.kind {
            return Err(Failure::bad_request(format!(
                "the kind in the data ({given}) does not match the expected kind ({})",
                kind.kind
            )));
        }
        let Some(map) = object.as_object_mut() else {
            return Err(Failure::bad_request(
                "the object provided is unrecognized: not a JSON object",
            ));
        };
        if map
            .get("metadata")
            .is_some_and(|metadata| !metadata.is_object() && !metadata.is_null())
        {
            return Err(Failure::bad_request(
                "the object provided is unrecognized: metadata is not an object",
            ));
        }
        map.insert("apiVersion".into(), Value::from(expected));
        map.insert("kind".into(), Value::from(kind.kind));
        Ok(())
    }

    /// The failure for wrong fields, if there are any.
    pub fn check(&self, name: &str, errors: Vec<api::field::FieldError>) -> Outcome<()> {
        if errors.is_empty() {
            return Ok(());
        }
        let causes = api::field::sorted(errors).iter().map(cause).collect();
        Err(Failure::invalid(
            self.kind.group,
            self.kind.kind,
            name,
            causes,
        ))
    }
}

/// One wrong field as a cause of a `Status`.
pub fn cause(error: &api::field::FieldError) -> Cause {
    Cause {
        reason: error.kind.reason().to_owned(),
        message: error.message(),
        field: error.path.clone(),
    }
}

fn bad_option(option: &str, got: &str, allowed: &str) -> Failure {
    let message = format!("{option}: Unsupported value: \"{got}\": supported values: {allowed}");
    Failure::invalid(
        "meta.k8s.io",
        "CreateOptions",
        "",
        vec![Cause {
            reason: "FieldValueNotSupported".into(),
            message,
            field: option.to_owned(),
        }],
    )
}

/// The outcome of a write.
#[derive(Debug)]
pub struct Written {
    pub encoded: Encoded,
    pub rev: Rev,
    /// Whether the object did not exist before.
    pub created: bool,
    /// Whether the object is gone now.
    pub deleted: bool,
    pub warnings: Vec<String>,
}

/// A store key as bytes.
pub fn store_key(kind: &Kind, namespace: &str, name: &str) -> Bytes {
    Bytes::from(kind.key(namespace, name))
}

/// A namespaced object's key in the cache.
pub fn cache_key(kind: &Kind, namespace: &str, name: &str) -> String {
    if kind.namespaced {
        format!("{namespace}/{name}")
    } else {
        name.to_owned()
    }
}
