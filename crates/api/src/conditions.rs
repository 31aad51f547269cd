//! Conditions: what a part says about an aspect of an object, for `kubectl wait --for=condition=Ready`.
//!
//! Every status of the user API has a condition `Ready` beside its documented state. Whoever writes the state writes the
//! condition in the same patch, through [`renewed`]: it answers `None` while nothing changes, so that a plan stays empty.

use k8s_openapi::jiff::Timestamp;

use crate::macros::words;
use crate::meta::{Condition, Time};

/// The condition that every user object has.
pub const READY: &str = "Ready";

words! {
    /// Whether a condition holds.
    ConditionStatus { True, False, Unknown }
}

/// What a part says about one aspect of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Type of the condition, in CamelCase.
    pub type_: &'static str,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One word saying why, in CamelCase; for programs.
    pub reason: &'static str,
    /// A sentence for a human: what is missing and for whom it waits.
    pub message: String,
}

impl Verdict {
    /// The object does what its spec says.
    pub fn ready(reason: &'static str, message: impl Into<String>) -> Self {
        Self::of(READY, ConditionStatus::True, reason, message)
    }

    /// The object does not do yet, or no longer, what its spec says.
    pub fn not_ready(reason: &'static str, message: impl Into<String>) -> Self {
        Self::of(READY, ConditionStatus::False, reason, message)
    }

    /// A condition of any type.
    pub fn of(
        type_: &'static str,
        status: ConditionStatus,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            type_,
            status,
            reason,
            message: message.into(),
        }
    }
}

/// The conditions with the verdicts in place, each where a condition of its type stood, new ones behind. `None` when all of it
/// is shown already. `generation` is the generation of the object that the verdicts were reached on; `now_ms` (milliseconds
/// since the Unix epoch, cut to seconds) becomes the transition time of conditions whose status changes.
pub fn renewed(
    shown: &[Condition],
    verdicts: &[Verdict],
    generation: Option<i64>,
    now_ms: u64,
) -> Option<Vec<Condition>> {
    let mut list = shown.to_vec();
    for verdict in verdicts {
        let Verdict {
            type_,
            status,
            reason,
            message,
        } = verdict;
        let mut condition = Condition {
            type_: (*type_).to_owned(),
            status: status.as_str().to_owned(),
            reason: (*reason).to_owned(),
            message: message.clone(),
            observed_generation: generation,
            last_transition_time: at(now_ms),
        };
        match list.iter_mut().find(|known| known.type_ == *type_) {
            Some(known) => {
                if known.status == condition.status {
                    condition.last_transition_time = known.last_transition_time.clone();
                }
                *known = condition;
            }
            None => list.push(condition),
        }
    }
    (list != shown).then_some(list)
}

/// The condition of a type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition [`READY`] holds.
pub fn is_ready(conditions: &[Condition]) -> bool {
    find(conditions, READY).is_some_and(|ready| ready.status == ConditionStatus::True.as_str())
}

/// A point in time as objects show it: whole seconds.
pub fn at(now_ms: u64) -> Time {
    let seconds = i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
}
