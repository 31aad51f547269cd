//! The next step for one route.

use super::observed::{Hop, Installed};
use super::ops::{DpOp, RouteKey};
use super::rib::Heard;

/// Everything the plan for one route looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    pub key: RouteKey,
    pub wanted: Option<Hop>,
    pub installed: Option<Installed>,
    /// Whether the prefix belongs to an interface of this host.
    pub own: bool,
    /// How far all that could want a route here is known.
    pub heard: Heard,
    /// Whether the last one who announced the prefix has taken it back, which counts whatever else is known.
    pub withdrawn: bool,
}

/// Plans the next step. A route that looks stale just after a start may be the one that carries traffic: until enough
/// has been heard only what is missing is added. A prefix of our own is freed at once.
pub fn plan(view: View) -> Option<DpOp> {
    let View {
        key,
        wanted,
        installed,
        own,
        heard,
        withdrawn,
    } = view;
    match (wanted, installed) {
        (None, None) => None,
        (Some(hop), None) => Some(DpOp::CreateRoute { key, hop }),
        (Some(hop), Some(Installed::Hop(present))) if present == hop => None,
        (Some(hop), Some(Installed::Hop(_))) => {
            (withdrawn || heard >= Heard::Dumped).then_some(DpOp::ReplaceRoute { key, hop })
        }
        (Some(hop), Some(Installed::Unknown)) => Some(DpOp::ReplaceRoute { key, hop }),
        (None, Some(_)) => {
            (own || withdrawn || heard == Heard::All).then_some(DpOp::DeleteRoute { key })
        }
    }
}
