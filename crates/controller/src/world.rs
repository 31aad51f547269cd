//! What a plan reads: typed views of the local caches, and the time of planning. Reads never block on the network; a kind
//! that no source declared reads as empty and is reported as a bug.

use std::{any::TypeId, collections::HashMap, sync::Arc};

use crate::{
    key::{Key, Kind, Object},
    store::{AnyObject, Store},
};

/// Cheap to clone. All clones see the same caches.
#[derive(Clone)]
pub struct World {
    pub(crate) stores: Arc<HashMap<TypeId, Vec<Arc<Store>>>>,
    pub(crate) now_ms: u64,
}

impl World {
    /// Milliseconds since the Unix epoch, read once by the shell before it calls `plan`.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    pub fn get<K: Object>(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let key = Key::new(namespace, name);
        self.stores::<K>()
            .iter()
            .find_map(|store| store.get(&key))
            .and_then(downcast)
    }

    pub fn by_key<K: Object>(&self, key: &Key) -> Option<Arc<K>> {
        self.stores::<K>()
            .iter()
            .find_map(|store| store.get(key))
            .and_then(downcast)
    }

    /// All objects of the kind, ordered by namespace and name within each watch.
    pub fn list<K: Object>(&self) -> Vec<Arc<K>> {
        self.stores::<K>()
            .iter()
            .flat_map(|store| store.all())
            .filter_map(downcast)
            .collect()
    }

    pub fn list_in<K: Object>(&self, namespace: &str) -> Vec<Arc<K>> {
        let stores = self.stores::<K>().iter();
        stores
            .flat_map(|store| store.in_namespace(namespace))
            .filter_map(downcast)
            .collect()
    }

    /// Objects for which the index function of this name yielded `value`.
    pub fn indexed<K: Object>(&self, index: &'static str, value: &str) -> Vec<Arc<K>> {
        let mut found = Vec::new();
        for store in self.stores::<K>() {
            match store.indexed(index, value) {
                Some(objects) => found.extend(objects.into_iter().filter_map(downcast)),
                None => {
                    tracing::error!(kind = store.kind.kind, index, "bug: index was not declared")
                }
            }
        }
        found
    }

    fn stores<K: Object>(&self) -> &[Arc<Store>] {
        match self.stores.get(&TypeId::of::<K>()) {
            Some(stores) => stores,
            None => {
                tracing::error!(
                    kind = Kind::of::<K>().kind,
                    "bug: kind is read but not watched"
                );
                &[]
            }
        }
    }

    pub(crate) fn store_of_kind(&self, kind: &Kind) -> impl Iterator<Item = &Arc<Store>> {
        self.stores
            .values()
            .flatten()
            .filter(move |store| store.kind == *kind)
    }
}

fn downcast<K: Object>(object: AnyObject) -> Option<Arc<K>> {
    object.downcast().ok()
}
