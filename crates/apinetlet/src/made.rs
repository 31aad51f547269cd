//! What all mappings to an object of our own have in common: the marks that the object carries, how it goes when its user
//! object goes, and how it goes when the user object has vanished.

use std::collections::BTreeMap;

use api::ids::Origin;
use controller::{Key, Object, Op, Plan, Target, World, object};
use serde_json::{Value, json};

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

/// The user object is being deleted: the made one goes first, and the user object stays until it is gone, because its
/// finalizers speak for the data plane.
pub(crate) fn delete<U: Object, M: Object>(user: &U, finalizer: &str, made: Option<&M>) -> Plan {
    let mut plan = Plan::none();
    match made {
        Some(made) if object::is_deleting(made) => {}
        Some(made) => {
            plan.push(Op::delete(made));
        }
        None => {
            plan.extend(Op::remove_finalizer(user, finalizer));
        }
    }
    plan
}

/// The user object is gone without having waited for us (finalizer removed by hand): nothing made for it may stay.
/// `index` names the index of made objects by [`origin_keys`].
pub(crate) fn clean_up<U: Object, M: Object>(
    world: &World,
    index: &'static str,
    base: &str,
    key: &Key,
) -> Plan {
    let mut plan = Plan::none();
    for made in world.indexed::<M>(index, &key.to_string()) {
        let Some(source) = Origin::of(made.meta(), base) else {
            continue;
        };
        if !object::is_deleting(&*made) {
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
