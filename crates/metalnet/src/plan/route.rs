//! The next step for one route.

use super::observed::{Hop, Installed};
use super::ops::{DpOp, RouteKey};

/// Everything the plan for one route looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    pub key: RouteKey,
    pub wanted: Option<Hop>,
    pub installed: Option<Installed>,
    /// Whether the prefix belongs to an interface of this host.
    pub own: bool,
    /// Whether all that could want a route here has been heard.
    pub decided: bool,
}

/// Plans the next step. Before everything has been heard only what is missing is added: a route that looks stale just
/// after a start may be the one that carries traffic. A prefix of our own is freed at once.
pub fn plan(view: View) -> Option<DpOp> {
    let View {
        key,
        wanted,
        installed,
        own,
        decided,
    } = view;
    match (wanted, installed) {
        (None, None) => None,
        (Some(hop), None) => Some(DpOp::CreateRoute { key, hop }),
        (Some(hop), Some(Installed::Hop(present))) if present == hop => None,
        (Some(hop), Some(Installed::Hop(_))) => decided.then_some(DpOp::ReplaceRoute { key, hop }),
        (Some(hop), Some(Installed::Unknown)) => Some(DpOp::ReplaceRoute { key, hop }),
        (None, Some(_)) => (own || decided).then_some(DpOp::DeleteRoute { key }),
    }
}
