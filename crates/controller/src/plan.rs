//! What a controller returns: an ordered list of operations. A plan is data; nothing in it has happened yet.
//!
//! Operations run in order and stop at the first failure, so a plan must converge from any prefix of itself. A plan whose
//! wishes are already fulfilled is empty: that is how "write only if changed" is expressed and tested.

use std::{any::Any, fmt, sync::Arc, time::Duration};

use serde_json::{Value, json};

use crate::key::{Key, Kind, Object, Target};

/// What should happen for one key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub ops: Vec<Op>,
    /// Plan this key again after this time, even if nothing changes.
    pub requeue: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Server-side apply with force. Creates the object if it is absent.
    Apply {
        target: Target,
        body: Value,
        manager: String,
        status: bool,
    },
    /// JSON merge patch. Put `metadata.resourceVersion` in with [`Op::locked`] when lists are replaced.
    Patch {
        target: Target,
        body: Value,
        status: bool,
    },
    Create {
        target: Target,
        body: Value,
    },
    /// Delete with the uid as a precondition, in the background. Absence is success.
    Delete {
        target: Target,
        uid: String,
    },
    /// Goes on only if an uncached read shows that no object of this name *and* uid exists.
    RequireGone {
        target: Target,
        uid: String,
    },
    /// Goes on only if an uncached read shows the object at this version; an empty one stands for absence.
    RequireSame {
        target: Target,
        version: String,
    },
    /// An event about an object, rate limited per object.
    Event {
        regarding: Box<Regarding>,
        warning: bool,
        reason: &'static str,
        action: &'static str,
        note: String,
    },
    /// A side effect beyond the API, executed by [`crate::Controller::act`]. The key is planned again right after.
    Act(Act),
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Regarding {
    pub target: Target,
    pub uid: String,
}

impl Regarding {
    pub fn of<K: Object>(object: &K) -> Box<Regarding> {
        Box::new(Regarding {
            target: Target::of(object),
            uid: object.meta().uid.clone().unwrap_or_default(),
        })
    }
}

/// A typed external operation: the controller that planned it knows the payload's type. `label` describes it in logs and
/// in comparisons of plans, so it must name every parameter that matters.
#[derive(Clone)]
pub struct Act {
    pub label: String,
    payload: Arc<dyn Any + Send + Sync>,
}

impl Act {
    pub fn new<T: fmt::Debug + Send + Sync + 'static>(payload: T) -> Act {
        Act {
            label: format!("{payload:?}"),
            payload: Arc::new(payload),
        }
    }

    pub fn payload<T: 'static>(&self) -> Option<&T> {
        self.payload.downcast_ref()
    }
}

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Act({})", self.label)
    }
}

impl PartialEq for Act {
    fn eq(&self, other: &Act) -> bool {
        self.label == other.label
    }
}

impl Plan {
    /// Nothing to do.
    pub fn none() -> Plan {
        Plan::default()
    }

    pub fn is_none(&self) -> bool {
        self.ops.is_empty() && self.requeue.is_none()
    }

    pub fn push(&mut self, op: Op) -> &mut Plan {
        self.ops.push(op);
        self
    }

    pub fn extend(&mut self, ops: impl IntoIterator<Item = Op>) -> &mut Plan {
        self.ops.extend(ops);
        self
    }

    /// What was made for an object that goes: it goes first, and the object's `finalizer` only when it is gone, because the
    /// finalizers of what was made speak for the data plane.
    pub fn let_go<K: Object, M: Object>(object: &K, finalizer: &str, made: Option<&M>) -> Plan {
        let mut plan = Plan::none();
        match made {
            Some(made) if crate::object::is_deleting(made) => {}
            Some(made) => {
                plan.push(Op::delete(made));
            }
            None => {
                plan.extend(Op::remove_finalizer(object, finalizer));
            }
        }
        plan
    }

    /// Keeps the earliest of several wishes.
    pub fn requeue_after(&mut self, after: Duration) -> &mut Plan {
        self.requeue = Some(self.requeue.map_or(after, |before| before.min(after)));
        self
    }
}

impl From<Vec<Op>> for Plan {
    fn from(ops: Vec<Op>) -> Plan {
        Plan { ops, requeue: None }
    }
}

impl Op {
    /// Applies `body`; `apiVersion`, `kind` and the names are filled in from `target`.
    pub fn apply(target: Target, manager: impl Into<String>, body: Value) -> Op {
        let body = named(&target, body);
        Op::Apply {
            target,
            body,
            manager: manager.into(),
            status: false,
        }
    }

    pub fn apply_status(target: Target, manager: impl Into<String>, body: Value) -> Op {
        let body = named(&target, body);
        Op::Apply {
            target,
            body,
            manager: manager.into(),
            status: true,
        }
    }

    pub fn create(target: Target, body: Value) -> Op {
        let body = named(&target, body);
        Op::Create { target, body }
    }

    pub fn patch(target: Target, body: Value) -> Op {
        Op::Patch {
            target,
            body,
            status: false,
        }
    }

    pub fn patch_status(target: Target, status: Value) -> Op {
        Op::Patch {
            target,
            body: json!({ "status": status }),
            status: true,
        }
    }

    /// A merge patch that only succeeds on exactly the version of `object` that was read.
    pub fn locked<K: Object>(object: &K, mut body: Value) -> Op {
        body["metadata"]["resourceVersion"] = json!(object.meta().resource_version);
        Op::Patch {
            target: Target::of(object),
            body,
            status: false,
        }
    }

    /// Goes on only if nobody has changed `object` since it was read.
    pub fn require_same<K: Object>(object: &K) -> Op {
        Op::RequireSame {
            target: Target::of(object),
            version: object.meta().resource_version.clone().unwrap_or_default(),
        }
    }

    /// Goes on only if there is no such object.
    pub fn require_absent(target: Target) -> Op {
        Op::RequireSame {
            target,
            version: String::new(),
        }
    }

    pub fn delete<K: Object>(object: &K) -> Op {
        Op::Delete {
            target: Target::of(object),
            uid: object.meta().uid.clone().unwrap_or_default(),
        }
    }

    /// Adds `finalizer` under the version lock, so that two writers cannot drop each other's entry. `None` if present, or if
    /// the object is already being deleted (the server would refuse).
    pub fn add_finalizer<K: Object>(object: &K, finalizer: &str) -> Option<Op> {
        let meta = object.meta();
        let mut finalizers = meta.finalizers.clone().unwrap_or_default();
        if meta.deletion_timestamp.is_some() || finalizers.iter().any(|f| f == finalizer) {
            return None;
        }
        finalizers.push(finalizer.to_owned());
        Some(Op::locked(
            object,
            json!({ "metadata": { "finalizers": finalizers } }),
        ))
    }

    /// Removes `finalizer` under the version lock. `None` if absent.
    pub fn remove_finalizer<K: Object>(object: &K, finalizer: &str) -> Option<Op> {
        let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
        let before = finalizers.len();
        finalizers.retain(|f| f != finalizer);
        if finalizers.len() == before {
            return None;
        }
        Some(Op::locked(
            object,
            json!({ "metadata": { "finalizers": finalizers } }),
        ))
    }

    /// `action` names what was being done ("Reconcile", "Scheduling"), `reason` why the event exists.
    pub fn event<K: Object>(
        object: &K,
        warning: bool,
        reason: &'static str,
        action: &'static str,
        note: impl Into<String>,
    ) -> Op {
        Op::Event {
            regarding: Regarding::of(object),
            warning,
            reason,
            action,
            note: note.into(),
        }
    }

    pub fn target(&self) -> Option<&Target> {
        match self {
            Op::Apply { target, .. }
            | Op::Patch { target, .. }
            | Op::Create { target, .. }
            | Op::Delete { target, .. } => Some(target),
            Op::RequireGone { .. } | Op::RequireSame { .. } | Op::Event { .. } | Op::Act(_) => None,
        }
    }
}

/// Fills in type and name.
fn named(target: &Target, mut body: Value) -> Value {
    let Target {
        kind: kind @ Kind { .. },
        key: Key { namespace, name },
    } = target;
    body["apiVersion"] = json!(kind.api_version());
    body["kind"] = json!(kind.kind);
    body["metadata"]["name"] = json!(name);
    if !namespace.is_empty() {
        body["metadata"]["namespace"] = json!(namespace);
    }
    body
}
