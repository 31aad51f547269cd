//! What all mappings to an object of our own have in common: the marks that the object carries, how it goes when its user
//! object goes, and how it goes when the user object has vanished.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::conditions::{self, Verdict};
use api::ids::Origin;
use api::meta::{Condition, LocalObjectReference};
use api::networking::Network;
use controller::{Key, Object, Op, Plan, Target, Watch, World, object};
use serde_json::{Value, json};

use crate::filter::Filter;

/// Names of the labels copied from the user object, so that labels removed there are removed here too.
pub(crate) const COPIED_LABELS: &str = "apinetlet.openkcm.dev/copied-labels";
/// Keys of this domain are between the parts; a user cannot set them through a copied label.
const RESERVED_DOMAIN: &str = "openkcm.dev/";

/// Labels and annotations of an object made for a user object: its origin and a copy of the user's labels, by which
/// policies and selectors of OpenKCM-net find it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Marks {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

impl Marks {
    /// `base` is one of [`api::names::origin`].
    pub(crate) fn of<U: Object>(user: &U, base: &str) -> Marks {
        let source = object::as_origin(user);
        let copied = copied_labels(user);
        let names: Vec<&str> = copied.keys().map(String::as_str).collect();
        let names = names.join(",");
        let mut labels = source.labels(base);
        labels.extend(copied);
        let mut annotations = source.annotations(base);
        annotations.insert(COPIED_LABELS.to_owned(), names);
        Marks {
            labels,
            annotations,
        }
    }

    pub(crate) fn are_on<M: Object>(&self, made: &M) -> bool {
        object::carries(made, &self.labels, &self.annotations)
    }

    /// As the metadata of a body to apply.
    pub(crate) fn metadata(&self) -> Value {
        json!({ "labels": self.labels, "annotations": self.annotations })
    }
}

/// The labels of a user object that are copied.
pub(crate) fn copied_labels<U: Object>(user: &U) -> BTreeMap<String, String> {
    let labels = user.meta().labels.iter().flatten();
    labels
        .filter(|(key, _)| !key.contains(RESERVED_DOMAIN))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Index values of an object made for a user object: the key of that.
pub(crate) fn origin_keys<M: Object>(made: &M, base: &str) -> Vec<String> {
    object::origin_key(made, base)
        .iter()
        .map(Key::to_string)
        .collect()
}

/// How objects of a kind follow user objects of another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    /// One of [`api::names::origin`].
    pub origin: &'static str,
    /// Index of the made objects by [`origin_keys`].
    pub index: &'static str,
    /// Keeps a user object until what was made for it is gone.
    pub finalizer: &'static str,
}

impl Mapping {
    /// Watches the made objects: each wakes its user object.
    pub(crate) fn watch<M: Object>(self, filter: &Filter) -> Watch<M> {
        self.watch_beside(filter)
            .index(self.index, move |made| origin_keys(made, self.origin))
    }

    /// The same for further objects that carry the origin.
    pub(crate) fn watch_beside<M: Object>(self, filter: &Filter) -> Watch<M> {
        Watch::new()
            .namespace(&filter.apinet_namespace)
            .keys(move |made, _| object::origin_key(made, self.origin).into_iter().collect())
    }

    /// The plan for a user object by its key, where the made object has the uid as its name: `realize` for one that lives.
    pub(crate) fn plan<U: Object, M: Object>(
        self,
        world: &World,
        filter: &Filter,
        key: &Key,
        realize: impl FnOnce(&U, Option<&M>) -> Plan,
    ) -> Plan {
        let Some(user) = world.by_key::<U>(key) else {
            return self.clean_up::<U, M>(world, key, |_| false);
        };
        if !filter.admits(&*user) {
            return Plan::none();
        }
        let made = world.get::<M>(&filter.apinet_namespace, object::uid(&*user));
        if object::is_deleting(&*user) {
            return Plan::let_go(&*user, self.finalizer, made.as_deref());
        }
        realize(&user, made.as_deref())
    }

    /// The user object is gone without having waited for us (finalizer removed by hand): nothing made for it may stay, except
    /// what is still `held`.
    pub(crate) fn clean_up<U: Object, M: Object>(
        self,
        world: &World,
        key: &Key,
        held: impl Fn(&M) -> bool,
    ) -> Plan {
        let mut plan = Plan::none();
        for made in world.indexed::<M>(self.index, &key.to_string()) {
            let Some(source) = Origin::of(made.meta(), self.origin) else {
                continue;
            };
            if !object::is_deleting(&*made) && !held(&made) {
                let target = Target::new::<U>(&source.namespace, &source.name);
                plan.push(Op::RequireGone {
                    target,
                    uid: source.uid,
                });
                plan.push(Op::delete(&*made));
            }
        }
        plan
    }
}

/// The user Network that an object is in, or what to say while there is none.
pub(crate) fn network<U: Object>(
    world: &World,
    user: &U,
    LocalObjectReference { name }: &LocalObjectReference,
) -> Result<Arc<Network>, Verdict> {
    let found = world.get::<Network>(object::namespace(user), name);
    let note = || format!("waits for network {name}");
    found.ok_or_else(|| Verdict::not_ready("NetworkNotFound", note()))
}

/// Writes `status` with the conditions that `verdict` leaves of those `shown`; nothing if these stay and the rest `is_same`.
pub(crate) fn report<U: Object>(
    user: &U,
    shown: &[Condition],
    verdict: Verdict,
    is_same: bool,
    now_ms: u64,
    mut status: Value,
) -> Option<Op> {
    let renewed = conditions::renewed(shown, &[verdict], user.meta().generation, now_ms);
    if renewed.is_none() && is_same {
        return None;
    }
    status["conditions"] = json!(renewed.as_deref().unwrap_or(shown));
    Some(Op::patch_status(Target::of(user), status))
}
