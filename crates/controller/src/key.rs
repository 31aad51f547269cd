//! Names of things: a [`Key`] names an object of a known kind, a [`Kind`] names a resource, a [`Target`] names one object of
//! one resource. Parsing of objects happens in `store`, not here.

use std::fmt;

use kube::core::ApiResource;
use serde::{Serialize, de::DeserializeOwned};

/// Every type a controller may read or write: known at compile time, JSON both ways.
pub trait Object:
    kube::Resource<DynamicType = ()>
    + DeserializeOwned
    + Serialize
    + Clone
    + fmt::Debug
    + Send
    + Sync
    + 'static
{
}

impl<K> Object for K where
    K: kube::Resource<DynamicType = ()>
        + DeserializeOwned
        + Serialize
        + Clone
        + fmt::Debug
        + Send
        + Sync
        + 'static
{
}

/// Namespace (empty for cluster scope) and name. What the queue holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Key {
        Key {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of a cluster-scoped object.
    pub fn cluster(name: impl Into<String>) -> Key {
        Key {
            namespace: String::new(),
            name: name.into(),
        }
    }

    pub fn of<K: kube::Resource>(object: &K) -> Key {
        let meta = object.meta();
        Key {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// One resource of the API: group, version, kind and plural.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
}

impl Kind {
    pub fn of<K: kube::Resource<DynamicType = ()>>() -> Kind {
        Kind {
            group: K::group(&()).into_owned(),
            version: K::version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            plural: K::plural(&()).into_owned(),
        }
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    pub fn api_resource(&self) -> ApiResource {
        ApiResource {
            group: self.group.clone(),
            version: self.version.clone(),
            api_version: self.api_version(),
            kind: self.kind.clone(),
            plural: self.plural.clone(),
        }
    }
}

/// One object of one resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    pub kind: Kind,
    pub key: Key,
}

impl Target {
    pub fn new<K: kube::Resource<DynamicType = ()>>(
        namespace: impl Into<String>,
        name: impl Into<String>,
    ) -> Target {
        Target {
            kind: Kind::of::<K>(),
            key: Key::new(namespace, name),
        }
    }

    pub fn of<K: kube::Resource<DynamicType = ()>>(object: &K) -> Target {
        Target {
            kind: Kind::of::<K>(),
            key: Key::of(object),
        }
    }

    /// The namesake of another kind.
    pub fn of_kind<K: kube::Resource<DynamicType = ()>>(self) -> Target {
        Target {
            kind: Kind::of::<K>(),
            key: self.key,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.kind, self.key)
    }
}
