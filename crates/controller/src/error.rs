//! What went wrong while executing a plan, and what the caller may do about it. Back-off depends on [`Class`] only.

use thiserror::Error;

use crate::key::Target;

/// What the runner does next with the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Transient: the server is away, busy or limited us. Back off, or go on at once when a watch reconnects.
    Retry,
    /// The world moved while we planned. Plan again as soon as the cache has caught up.
    Conflict,
    /// The same plan will fail the same way. Wait long; any change of the inputs resets the wait.
    Permanent,
    /// Our own mistake: counted apart, waits like `Permanent`.
    Bug,
}

impl Class {
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Retry => "retry",
            Class::Conflict => "conflict",
            Class::Permanent => "permanent",
            Class::Bug => "bug",
        }
    }
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("{verb} {target}: {source}")]
    Api {
        verb: &'static str,
        target: Box<Target>,
        #[source]
        source: Box<kube::Error>,
    },
    /// A guard of the plan does not hold (any more), so the rest of the plan was not executed.
    #[error("{what}")]
    Guard { what: String },
    /// Another process leads, or our lease ran out: nothing may be written.
    #[error("not the leader")]
    Fenced,
    /// An external act (data plane, bus) failed.
    #[error("{what}: {source}")]
    Act {
        what: String,
        class: Class,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{0}")]
    Bug(String),
}

impl Error {
    /// For executors of external acts.
    pub fn act(
        what: impl Into<String>,
        class: Class,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error::Act {
            what: what.into(),
            class,
            source: source.into(),
        }
    }

    pub fn class(&self) -> Class {
        match self {
            Error::Api { source, .. } => class_of(source),
            Error::Guard { .. } => Class::Conflict,
            Error::Fenced => Class::Retry,
            Error::Act { class, .. } => *class,
            Error::Bug(_) => Class::Bug,
        }
    }
}

/// Classes of API errors. 404 is a conflict: the object (or its namespace) went away under the plan.
fn class_of(error: &kube::Error) -> Class {
    match error {
        kube::Error::Api(status) => match status.code {
            404 | 409 | 410 | 412 => Class::Conflict,
            408 | 425 | 429 | 500..=599 => Class::Retry,
            400..=499 => Class::Permanent,
            _ => Class::Retry,
        },
        kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) | kube::Error::HttpError(_) => {
            Class::Bug
        }
        // Transport, TLS, DNS, proxies, credentials: all may heal without us.
        _ => Class::Retry,
    }
}
