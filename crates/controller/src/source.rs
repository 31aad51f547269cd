//! What a controller watches: a kind under a selector, the keys an object stands for, and the indexes plans need.
//! Controllers of one process that declare the same kind and selector share one watch and one cache.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    marker::PhantomData,
    sync::Arc,
};

use kube::core::DynamicObject;

use crate::{
    key::{Key, Kind, Object},
    store::{AnyObject, Decode, IndexFn, Store},
    world::World,
};

pub(crate) type KeysFn = Arc<dyn Fn(&(dyn Any + Send + Sync), &World) -> Vec<Key> + Send + Sync>;

/// Which objects of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Selector {
    pub kind: Kind,
    pub namespace: Option<String>,
    pub labels: Option<String>,
    pub fields: Option<String>,
}

/// A watch with the type erased. Build one with [`Watch`].
#[derive(Clone)]
pub struct Source {
    pub(crate) selector: Selector,
    pub(crate) type_id: TypeId,
    pub(crate) decode: Decode,
    pub(crate) keys: Option<KeysFn>,
    pub(crate) removed_keys: Option<KeysFn>,
    pub(crate) indexes: Vec<(&'static str, IndexFn)>,
}

/// Typed builder of a [`Source`].
pub struct Watch<K> {
    source: Source,
    kind: PhantomData<fn() -> K>,
}

impl<K: Object> Watch<K> {
    /// All objects of the kind, in every namespace.
    #[expect(
        clippy::new_without_default,
        reason = "a watch is declared, never defaulted"
    )]
    pub fn new() -> Watch<K> {
        let selector = Selector {
            kind: Kind::of::<K>(),
            namespace: None,
            labels: None,
            fields: None,
        };
        let source = Source {
            selector,
            type_id: TypeId::of::<K>(),
            decode: decode::<K>,
            keys: None,
            removed_keys: None,
            indexes: Vec::new(),
        };
        Watch {
            source,
            kind: PhantomData,
        }
    }

    pub fn namespace(mut self, namespace: impl Into<String>) -> Watch<K> {
        self.source.selector.namespace = Some(namespace.into());
        self
    }

    pub fn labels(mut self, selector: impl Into<String>) -> Watch<K> {
        self.source.selector.labels = Some(selector.into());
        self
    }

    /// Only selectors that the kind declares; the server refuses others.
    pub fn fields(mut self, selector: impl Into<String>) -> Watch<K> {
        self.source.selector.fields = Some(selector.into());
        self
    }

    /// Each object wakes its own key.
    pub fn own_key(self) -> Watch<K> {
        self.keys(|object, _| vec![Key::of(object)])
    }

    /// Each object wakes the keys this pure function yields. On an update it is asked about the old and the new object, on a
    /// delete about the last known one. Without this (and without [`Watch::own_key`]) the kind is only cached.
    pub fn keys(
        mut self,
        function: impl Fn(&K, &World) -> Vec<Key> + Send + Sync + 'static,
    ) -> Watch<K> {
        self.source.keys = Some(erase(function));
        self
    }

    /// Further keys to wake when an object has left the cache, for what waits for its absence. The last known object may not
    /// even have been marked as deleted.
    pub fn removed_keys(
        mut self,
        function: impl Fn(&K, &World) -> Vec<Key> + Send + Sync + 'static,
    ) -> Watch<K> {
        self.source.removed_keys = Some(erase(function));
        self
    }

    /// Names an index for [`World::indexed`]. One name means one function per kind in the whole process.
    pub fn index(
        mut self,
        name: &'static str,
        function: impl Fn(&K) -> Vec<String> + Send + Sync + 'static,
    ) -> Watch<K> {
        let function: IndexFn = Arc::new(move |object| {
            object
                .downcast_ref::<K>()
                .map(&function)
                .unwrap_or_default()
        });
        self.source.indexes.push((name, function));
        self
    }

    pub fn build(self) -> Source {
        self.source
    }
}

impl<K: Object> From<Watch<K>> for Source {
    fn from(watch: Watch<K>) -> Source {
        watch.source
    }
}

fn erase<K: Object>(function: impl Fn(&K, &World) -> Vec<Key> + Send + Sync + 'static) -> KeysFn {
    Arc::new(move |object, world| {
        object
            .downcast_ref::<K>()
            .map(|object| function(object, world))
            .unwrap_or_default()
    })
}

fn decode<K: Object>(mut object: DynamicObject) -> Result<AnyObject, serde_json::Error> {
    // Nobody plans from field ownership; it is often half of an object's size.
    object.metadata.managed_fields = None;
    let object: K = serde_json::from_value(serde_json::to_value(object)?)?;
    Ok(Arc::new(object))
}

/// The caches of a process: one store per distinct selector, with every declared index.
#[derive(Default)]
pub(crate) struct Caches {
    pub stores: HashMap<Selector, Arc<Store>>,
    by_type: HashMap<TypeId, Vec<Arc<Store>>>,
}

impl Caches {
    pub(crate) fn declare(&mut self, source: &Source) -> Arc<Store> {
        let Source {
            selector,
            type_id,
            decode,
            keys: _,
            removed_keys: _,
            indexes,
        } = source;
        let store = match self.stores.get(selector) {
            Some(store) => store.clone(),
            None => {
                let Selector {
                    kind,
                    namespace,
                    labels,
                    fields,
                } = selector;
                let covers_all = namespace.is_none() && labels.is_none() && fields.is_none();
                let store = Arc::new(Store::new(kind.clone(), *decode, covers_all));
                self.stores.insert(selector.clone(), store.clone());
                self.by_type
                    .entry(*type_id)
                    .or_default()
                    .push(store.clone());
                store
            }
        };
        for (name, function) in indexes {
            store.add_index(name, function.clone());
        }
        store
    }

    pub(crate) fn world(&self) -> World {
        World {
            stores: Arc::new(self.by_type.clone()),
            now_ms: 0,
        }
    }
}
