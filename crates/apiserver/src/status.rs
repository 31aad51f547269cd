//! Failures as Kubernetes `Status` documents: reason, code, message and one cause per wrong field.
//!
//! Wording follows the public API conventions, because clients show these texts and scripts match on them.

use serde_json::{Map, Value, json};

/// Most causes listed in one document; more are counted in the message.
pub const CAUSES_MAX: usize = 256;

/// Why a request failed, as `Status.reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    NotAcceptable,
    AlreadyExists,
    Conflict,
    Expired,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    Invalid,
    TooManyRequests,
    InternalError,
    ServiceUnavailable,
    Timeout,
}

impl Reason {
    /// The HTTP status code of the reason.
    pub const fn code(self) -> u16 {
        match self {
            Reason::BadRequest => 400,
            Reason::Unauthorized => 401,
            Reason::Forbidden => 403,
            Reason::NotFound => 404,
            Reason::MethodNotAllowed => 405,
            Reason::NotAcceptable => 406,
            Reason::AlreadyExists | Reason::Conflict => 409,
            Reason::Expired => 410,
            Reason::RequestEntityTooLarge => 413,
            Reason::UnsupportedMediaType => 415,
            Reason::Invalid => 422,
            Reason::TooManyRequests => 429,
            Reason::InternalError => 500,
            Reason::ServiceUnavailable => 503,
            Reason::Timeout => 504,
        }
    }

    /// The word in `Status.reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::BadRequest => "BadRequest",
            Reason::Unauthorized => "Unauthorized",
            Reason::Forbidden => "Forbidden",
            Reason::NotFound => "NotFound",
            Reason::MethodNotAllowed => "MethodNotAllowed",
            Reason::NotAcceptable => "NotAcceptable",
            Reason::AlreadyExists => "AlreadyExists",
            Reason::Conflict => "Conflict",
            Reason::Expired => "Expired",
            Reason::RequestEntityTooLarge => "RequestEntityTooLarge",
            Reason::UnsupportedMediaType => "UnsupportedMediaType",
            Reason::Invalid => "Invalid",
            Reason::TooManyRequests => "TooManyRequests",
            Reason::InternalError => "InternalError",
            Reason::ServiceUnavailable => "ServiceUnavailable",
            Reason::Timeout => "Timeout",
        }
    }
}

/// One wrong field, or one conflicting field owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// What the failure is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    pub name: String,
    pub group: String,
    /// The resource, except for `Invalid`, which by convention names the kind.
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_s: u32,
    /// A token that goes on with a listing whose own token has expired.
    pub continue_token: String,
}

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub reason: Reason,
    pub message: String,
    /// Boxed: a failure travels in every `Result` of the request path.
    pub details: Box<Details>,
}

/// Result of everything that may answer with a failure.
pub type Outcome<T> = Result<T, Failure>;

/// `networks.networking.openkcm.dev`, or `configmaps` in the core group.
pub fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() {
        name.to_owned()
    } else {
        format!("{name}.{group}")
    }
}

impl Failure {
    pub fn new(reason: Reason, message: impl Into<String>) -> Failure {
        Failure {
            reason,
            message: message.into(),
            details: Box::default(),
        }
    }

    fn about(reason: Reason, group: &str, kind: &str, name: &str, message: String) -> Failure {
        let details = Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            ..Details::default()
        };
        Failure {
            reason,
            message,
            details: Box::new(details),
        }
    }

    pub fn bad_request(message: impl Into<String>) -> Failure {
        Failure::new(Reason::BadRequest, message)
    }

    pub fn internal(message: impl Into<String>) -> Failure {
        let message = message.into();
        tracing::error!(%message, "internal error");
        Failure::new(
            Reason::InternalError,
            format!("Internal error occurred: {message}"),
        )
    }

    pub fn unauthorized() -> Failure {
        Failure::new(Reason::Unauthorized, "Unauthorized")
    }

    pub fn not_found(group: &str, resource: &str, name: &str) -> Failure {
        let message = format!("{} \"{name}\" not found", qualified(group, resource));
        Failure::about(Reason::NotFound, group, resource, name, message)
    }

    /// A path that no resource serves.
    pub fn no_such_path() -> Failure {
        Failure::new(
            Reason::NotFound,
            "the server could not find the requested resource",
        )
    }

    pub fn method_not_allowed() -> Failure {
        Failure::new(
            Reason::MethodNotAllowed,
            "the server does not allow this method on the requested resource",
        )
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Failure {
        let message = format!("{} \"{name}\" already exists", qualified(group, resource));
        Failure::about(Reason::AlreadyExists, group, resource, name, message)
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Failure {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            qualified(group, resource)
        );
        Failure::about(Reason::Conflict, group, resource, name, message)
    }

    /// The caller's resourceVersion is not the newest.
    pub fn stale(group: &str, resource: &str, name: &str) -> Failure {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Failure::conflict(group, resource, name, why)
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Failure {
        let subject = qualified(group, resource);
        let message = match name {
            "" => format!("{subject} is forbidden: {why}"),
            name => format!("{subject} \"{name}\" is forbidden: {why}"),
        };
        Failure::about(Reason::Forbidden, group, resource, name, message)
    }

    /// Every wrong field at once.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Failure {
        let texts: Vec<String> = causes
            .iter()
            .take(CAUSES_MAX)
            .map(|cause| match cause.field.as_str() {
                "" => cause.message.clone(),
                field => format!("{field}: {}", cause.message),
            })
            .collect();
        let listed = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} \"{name}\" is invalid: {listed}", qualified(group, kind));
        let mut failure = Failure::about(Reason::Invalid, group, kind, name, message);
        failure.details.causes = causes.into_iter().take(CAUSES_MAX).collect();
        failure
    }

    pub fn expired(message: impl Into<String>) -> Failure {
        Failure::new(Reason::Expired, message)
    }

    pub fn too_large(limit: usize) -> Failure {
        Failure::new(
            Reason::RequestEntityTooLarge,
            format!("Request entity too large: limit is {limit}"),
        )
    }

    pub fn too_many_requests(message: impl Into<String>) -> Failure {
        Failure::new(Reason::TooManyRequests, message).retry_after(1)
    }

    /// The client knows a revision that this server has not reached.
    pub fn revision_too_large(requested: u64, current: u64) -> Failure {
        let message = format!("Too large resource version: {requested}, current: {current}");
        let mut failure = Failure::new(Reason::Timeout, message).retry_after(1);
        failure.details.causes.push(Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        });
        failure
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Failure {
        self.details.retry_after_s = seconds;
        self
    }

    #[must_use]
    pub fn cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> Failure {
        self.details.causes.push(Cause {
            reason: reason.into(),
            message: message.into(),
            field: field.into(),
        });
        self
    }

    /// The `Status` document.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason.as_str(),
            "code": self.reason.code(),
        });
        if !self.details.continue_token.is_empty()
            && let Some(metadata) = status.get_mut("metadata")
        {
            *metadata = json!({ "continue": self.details.continue_token });
        }
        let details = self.details.to_value();
        if let (Some(status), false) = (status.as_object_mut(), details.is_empty()) {
            status.insert("details".into(), Value::Object(details));
        }
        status
    }
}

impl Details {
    fn to_value(&self) -> Map<String, Value> {
        let mut out = Map::new();
        for (key, text) in [
            ("name", &self.name),
            ("group", &self.group),
            ("kind", &self.kind),
            ("uid", &self.uid),
        ] {
            if !text.is_empty() {
                out.insert(key.into(), json!(text));
            }
        }
        if !self.causes.is_empty() {
            let causes: Vec<Value> = self.causes.iter().map(Cause::to_value).collect();
            out.insert("causes".into(), Value::Array(causes));
        }
        if self.retry_after_s > 0 {
            out.insert("retryAfterSeconds".into(), json!(self.retry_after_s));
        }
        out
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, text) in [
            ("reason", &self.reason),
            ("message", &self.message),
            ("field", &self.field),
        ] {
            if !text.is_empty() {
                out.insert(key.into(), json!(text));
            }
        }
        Value::Object(out)
    }
}

impl From<crate::store::StoreError> for Failure {
    fn from(error: crate::store::StoreError) -> Failure {
        use crate::store::StoreError;
        match error {
            StoreError::Compacted { requested, floor } => {
                Failure::expired(format!("too old resource version: {requested} ({floor})"))
            }
            StoreError::Future { requested, current } => {
                Failure::revision_too_large(requested, current)
            }
            StoreError::Invalid(invalid) => Failure::internal(invalid.to_string()),
            StoreError::Stopped { cause } => Failure::new(
                Reason::ServiceUnavailable,
                format!("storage is not available: {cause}"),
            )
            .retry_after(1),
        }
    }
}

/// The answer to a request that succeeded without an object to show.
pub fn success(group: &str, resource: &str, name: &str, uid: &str) -> Value {
    let details = Details {
        name: name.into(),
        group: group.into(),
        kind: resource.into(),
        uid: uid.into(),
        ..Details::default()
    };
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details.to_value(),
    })
}
