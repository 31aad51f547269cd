//! A local cache of one watched kind under one selector: decoded objects by key, named indexes, and the highest resource
//! version seen. Readers take a short lock; nothing here does IO or wakes a controller (that is `source`'s job).

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use kube::{Resource, core::DynamicObject};
use tokio::sync::watch;

use crate::key::{Key, Kind};

/// A decoded object of a type only the declaring code knows.
pub type AnyObject = Arc<dyn Any + Send + Sync>;
pub(crate) type Decode = fn(DynamicObject) -> Result<AnyObject, serde_json::Error>;
pub(crate) type IndexFn = Arc<dyn Fn(&(dyn Any + Send + Sync)) -> Vec<String> + Send + Sync>;

/// What changed with one [`Store::put`] or [`Store::remove`].
pub(crate) struct Change {
    pub old: Option<AnyObject>,
    pub new: Option<AnyObject>,
}

struct Entry {
    uid: String,
    version: String,
    object: AnyObject,
}

struct Index {
    function: IndexFn,
    keys: BTreeMap<String, BTreeSet<Key>>,
}

#[derive(Default)]
struct Inner {
    objects: BTreeMap<Key, Entry>,
    indexes: BTreeMap<&'static str, Index>,
}

pub struct Store {
    pub(crate) kind: Kind,
    decode: Decode,
    /// The watch has no selector: every object of the kind is seen.
    covers_all: bool,
    inner: RwLock<Inner>,
    /// Highest numeric resource version seen in an event of this watch.
    seen: watch::Sender<u64>,
    synced: watch::Sender<bool>,
}

impl Store {
    pub(crate) fn new(kind: Kind, decode: Decode, covers_all: bool) -> Store {
        Store {
            kind,
            decode,
            covers_all,
            inner: RwLock::default(),
            seen: watch::Sender::new(0),
            synced: watch::Sender::new(false),
        }
    }

    // A poisoned lock means a panic inside a short, pure section; the maps are still consistent enough to read, and the
    // executables abort on panic anyway.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an index; one name means one function per kind, so a second declaration of the same name is ignored.
    pub(crate) fn add_index(&self, name: &'static str, function: IndexFn) {
        let mut inner = self.write();
        if inner.indexes.contains_key(name) {
            return;
        }
        let mut index = Index {
            function,
            keys: BTreeMap::new(),
        };
        for (key, entry) in &inner.objects {
            index.insert(key, &entry.object);
        }
        inner.indexes.insert(name, index);
    }

    /// Takes an object in. `Ok(None)` if this version is known already.
    pub(crate) fn put(&self, object: DynamicObject) -> Result<Option<Change>, serde_json::Error> {
        let key = Key::of(&object);
        let uid = object.meta().uid.clone().unwrap_or_default();
        let version = object.meta().resource_version.clone().unwrap_or_default();
        let decoded = (self.decode)(object);
        self.advance(&version);
        let new = decoded?;
        let mut inner = self.write();
        let known = inner.objects.get(&key);
        if known.is_some_and(|e| e.uid == uid && e.version == version && !version.is_empty()) {
            return Ok(None);
        }
        let entry = Entry {
            uid,
            version,
            object: new.clone(),
        };
        let old = inner
            .objects
            .insert(key.clone(), entry)
            .map(|entry| entry.object);
        for index in inner.indexes.values_mut() {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            index.insert(&key, &new);
        }
        Ok(Some(Change {
            old,
            new: Some(new),
        }))
    }

    pub(crate) fn remove(&self, key: &Key, version: Option<&str>) -> Option<Change> {
        let old = {
            let mut inner = self.write();
            let old = inner.objects.remove(key).map(|entry| entry.object);
            if let Some(old) = &old {
                for index in inner.indexes.values_mut() {
                    index.remove(key, old);
                }
            }
            old
        };
        if let Some(version) = version {
            self.advance(version);
        }
        old.map(|old| Change {
            old: Some(old),
            new: None,
        })
    }

    fn advance(&self, version: &str) {
        // Versions are ordered decimal numbers (stated by Kubernetes since 1.35, true of our server and of etcd-backed
        // ones); one that is not a number only costs us the read-your-writes wait.
        if let Ok(version) = version.parse::<u64>() {
            self.seen.send_if_modified(|seen| {
                let newer = version > *seen;
                if newer {
                    *seen = version;
                }
                newer
            });
        }
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        self.read().objects.keys().cloned().collect()
    }

    pub(crate) fn all(&self) -> Vec<AnyObject> {
        self.read()
            .objects
            .values()
            .map(|entry| entry.object.clone())
            .collect()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<AnyObject> {
        self.read()
            .objects
            .get(key)
            .map(|entry| entry.object.clone())
    }

    pub(crate) fn uid(&self, key: &Key) -> Option<String> {
        self.read().objects.get(key).map(|entry| entry.uid.clone())
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<AnyObject> {
        self.read()
            .objects
            .range(Key::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, entry)| entry.object.clone())
            .collect()
    }

    /// `None` if there is no index of this name.
    pub(crate) fn indexed(&self, index: &str, value: &str) -> Option<Vec<AnyObject>> {
        let inner = self.read();
        let keys = &inner.indexes.get(index)?.keys;
        let found = keys.get(value).into_iter().flatten();
        Some(
            found
                .filter_map(|key| inner.objects.get(key))
                .map(|entry| entry.object.clone())
                .collect(),
        )
    }

    pub(crate) fn covers_all(&self) -> bool {
        self.covers_all
    }

    pub(crate) fn len(&self) -> usize {
        self.read().objects.len()
    }

    pub(crate) fn mark_synced(&self) {
        self.synced.send_replace(true);
    }

    pub(crate) async fn wait_synced(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let waited = self
            .synced
            .subscribe()
            .wait_for(|synced| *synced)
            .await
            .map(|_| ());
        debug_assert!(waited.is_ok(), "the store owns the sender");
    }

    /// Returns when an event at or after `version` has been seen.
    pub(crate) async fn wait_seen(&self, version: u64) {
        let waited = self
            .seen
            .subscribe()
            .wait_for(|seen| *seen >= version)
            .await
            .map(|_| ());
        debug_assert!(waited.is_ok(), "the store owns the sender");
    }

    /// Returns when the object of this uid has left the cache.
    pub(crate) async fn wait_gone(&self, key: &Key, uid: &str) {
        let mut seen = self.seen.subscribe();
        while self.uid(key).is_some_and(|known| known == uid) {
            if seen.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Index {
    fn insert(&mut self, key: &Key, object: &AnyObject) {
        for value in (self.function)(object.as_ref()) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, key: &Key, object: &AnyObject) {
        for value in (self.function)(object.as_ref()) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}
