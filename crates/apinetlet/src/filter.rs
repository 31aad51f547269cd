//! Which user objects this apinetlet is responsible for, and where their counterparts live.

use api::names::{annotation, label};
use controller::object;
use kube::Resource;

/// Configuration that every plan of this crate shares.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// OpenKCM-net namespace of all counterparts.
    pub apinet_namespace: String,
    /// Only user objects of this namespace.
    pub namespace: Option<String>,
    /// Only user objects whose watch label has this value.
    pub watch_filter: Option<String>,
}

impl Filter {
    /// Whether the object is ours to handle: it passes the watch filter and nobody else manages it.
    pub fn admits<K: Resource>(&self, user: &K) -> bool {
        let managed_elsewhere = object::annotation(user, annotation::MANAGED_BY).is_some();
        let wanted = self
            .watch_filter
            .as_deref()
            .is_none_or(|wanted| object::label(user, label::WATCH_FILTER) == Some(wanted));
        wanted && !managed_elsewhere
    }
}
