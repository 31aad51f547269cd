//! The API: the real registry in memory, and what its watches have to show, for readers that may be behind.

use std::collections::BTreeMap;
use std::rc::Rc;

use api::names::{VERSION, namespace};
use apiserver::local::{Local, Patch, Place};
use apiserver::region::Ranges;
use apiserver::status::{Failure, Reason};
use controller::{Class, Key, Kind, Op, Target};
use kube_core::DynamicObject;
use serde_json::Value;

/// One change as watches show it.
pub struct Change {
    pub rev: u64,
    pub key: Key,
    pub object: DynamicObject,
    pub gone: bool,
}

/// Everything that happened to the objects of a kind, and how they are now.
#[derive(Default)]
pub struct History {
    pub changes: Vec<Rc<Change>>,
    pub live: BTreeMap<Key, Rc<Change>>,
}

/// A kind by its place in the store's list.
pub type Resource = usize;

/// Why a write failed.
#[derive(Debug)]
pub struct Refusal {
    pub class: Class,
    pub text: String,
}

pub struct Store {
    local: Local,
    resources: BTreeMap<(String, String), Resource>,
    histories: Vec<History>,
    /// Changes of all kinds.
    pub changes: usize,
    /// Writes that changed something, by anybody.
    pub writes: u64,
    pub rev: u64,
    /// Something for the garbage collector to look at.
    pub uncollected: bool,
}

/// The public prefixes of the region: few enough addresses that one freed too early is soon given to somebody else.
pub const PUBLIC: [&str; 2] = ["203.0.113.0/27", "2001:db8:1::/124"];

impl Store {
    pub fn new(seed: u64, now_ms: u64) -> Result<Store, String> {
        let ranges = Ranges {
            vni_min: 200,
            vni_max: 207,
            public: PUBLIC.iter().filter_map(|text| text.parse().ok()).collect(),
        };
        let local = Local::open(ranges, seed, now_ms, &namespace::BOOTSTRAP)
            .map_err(|failure| failure.message)?;
        let mut store = Store {
            local,
            resources: BTreeMap::new(),
            histories: Vec::new(),
            changes: 0,
            writes: 0,
            rev: 0,
            uncollected: false,
        };
        store.follow().map_err(|refusal| refusal.text)?;
        store.writes = 0;
        Ok(store)
    }

    pub fn set_now(&self, now_ms: u64) {
        self.local.set_now(now_ms);
    }

    /// The kind of this group and plural.
    pub fn resource(&mut self, group: &str, plural: &str) -> Resource {
        let name = (group.to_owned(), plural.to_owned());
        if let Some(known) = self.resources.get(&name) {
            return *known;
        }
        let resource = self.histories.len();
        self.histories.push(History::default());
        self.resources.insert(name, resource);
        resource
    }

    pub fn history(&self, resource: Resource) -> Option<&History> {
        self.histories.get(resource)
    }

    /// How often objects of the kind have changed.
    pub fn changes_of(&self, resource: Resource) -> usize {
        self.history(resource)
            .map_or(0, |history| history.changes.len())
    }

    /// All objects of a kind, as they are now.
    pub fn list<K: controller::Object>(&self) -> Vec<K> {
        let kind = Kind::of::<K>();
        let resource = self.resources.get(&(kind.group, kind.plural));
        let history = resource.and_then(|resource| self.history(*resource));
        let live = history
            .into_iter()
            .flat_map(|history| history.live.values());
        live.filter_map(|change| {
            let value = serde_json::to_value(&change.object).ok()?;
            serde_json::from_value(value).ok()
        })
        .collect()
    }

    /// The objects of a kind.
    pub fn of(&self, group: &str, plural: &str) -> impl Iterator<Item = &Rc<Change>> {
        let name = (group.to_owned(), plural.to_owned());
        let resource = self.resources.get(&name);
        let history = resource.and_then(|resource| self.history(*resource));
        history
            .into_iter()
            .flat_map(|history| history.live.values())
    }

    /// Every object, by resource.
    pub fn all(&self) -> impl Iterator<Item = (&(String, String), &Key, &Rc<Change>)> {
        let kinds = self.resources.iter();
        kinds.flat_map(|(name, resource)| {
            let history = self.history(*resource);
            let live = history.into_iter().flat_map(|history| &history.live);
            live.map(move |(key, change)| (name, key, change))
        })
    }

    fn follow(&mut self) -> Result<(), Refusal> {
        for event in self.local.events().map_err(refusal)? {
            self.writes += 1;
            // Heartbeats are no news.
            if event.plural != "leases" {
                self.uncollected = true;
                self.rev = event.rev;
            }
            let key = Key::new(event.namespace, event.name);
            let Ok(mut object) = serde_json::from_value::<DynamicObject>(event.object) else {
                continue;
            };
            object.metadata.managed_fields = None;
            let change = Rc::new(Change {
                rev: event.rev,
                key: key.clone(),
                object,
                gone: event.gone,
            });
            let resource = self.resource(event.group, event.plural);
            let Some(history) = self.histories.get_mut(resource) else {
                continue;
            };
            self.changes += 1;
            history.changes.push(change.clone());
            if event.gone {
                history.live.remove(&key);
            } else {
                history.live.insert(key, change);
            }
        }
        Ok(())
    }

    /// Lets the garbage collector work; with `all`, over everything that has an owner.
    pub fn collect(&mut self, all: bool) -> Result<(), Refusal> {
        self.local.collect(all).map_err(refusal)?;
        self.follow()?;
        self.uncollected = false;
        Ok(())
    }

    pub fn create(&mut self, target: &Target, body: Value, who: &str) -> Result<Value, Refusal> {
        let created = self.local.create(place(target), body, who);
        self.follow()?;
        created.map_err(refusal)
    }

    pub fn patch(
        &mut self,
        target: &Target,
        patch: Patch,
        status: bool,
        body: &Value,
        who: &str,
    ) -> Result<Value, Refusal> {
        let patched = self.local.patch(place(target), patch, status, body, who);
        self.follow()?;
        patched.map_err(refusal)
    }

    pub fn delete(&mut self, target: &Target, uid: Option<&str>) -> Result<(), Refusal> {
        let deleted = self.local.delete(place(target), uid);
        self.follow()?;
        deleted.map_err(refusal)
    }

    /// Carries out one operation of a plan.
    pub fn execute(&mut self, op: &Op, who: &str) -> Result<(), Refusal> {
        match op {
            Op::Apply {
                target,
                body,
                manager,
                status,
            } => self
                .patch(target, Patch::Apply, *status, body, manager)
                .map(|_| ()),
            Op::Patch {
                target,
                body,
                status,
            } => self
                .patch(target, Patch::Merge, *status, body, who)
                .map(|_| ()),
            Op::Create { target, body } => self.create(target, body.clone(), who).map(|_| ()),
            Op::Delete { target, uid } => {
                let uid = Some(uid.as_str()).filter(|uid| !uid.is_empty());
                let deleted = self.local.delete(place(target), uid);
                self.follow()?;
                match deleted {
                    Err(failure) if failure.reason == Reason::NotFound => Ok(()),
                    other => other.map_err(refusal),
                }
            }
            Op::RequireGone { target, uid } => {
                let live = self.local.get(place(target)).map_err(refusal)?;
                let live =
                    live.and_then(|live| live["metadata"]["uid"].as_str().map(str::to_owned));
                if live.as_ref() == Some(uid) {
                    let text = format!("{target} still exists");
                    let class = Class::Conflict;
                    return Err(Refusal { class, text });
                }
                Ok(())
            }
            Op::RequireSame { target, version } => {
                let live = self.local.get(place(target)).map_err(refusal)?;
                let live = live.as_ref().and_then(|live| {
                    live.pointer("/metadata/resourceVersion")
                        .and_then(Value::as_str)
                });
                if live.unwrap_or_default() != version {
                    let text = format!("{target} has changed");
                    let class = Class::Conflict;
                    return Err(Refusal { class, text });
                }
                Ok(())
            }
            Op::Event { .. } => Ok(()),
            Op::Act(act) => Err(Refusal {
                class: Class::Bug,
                text: format!("nobody acts on {act:?} here"),
            }),
        }
    }
}

fn place(target: &Target) -> Place<'_> {
    let Target { kind, key } = target;
    let version = if kind.version.is_empty() {
        VERSION
    } else {
        &kind.version
    };
    Place {
        group: &kind.group,
        version,
        plural: &kind.plural,
        namespace: &key.namespace,
        name: &key.name,
    }
}

fn refusal(failure: Failure) -> Refusal {
    let class = match failure.reason {
        Reason::NotFound | Reason::Conflict | Reason::AlreadyExists => Class::Conflict,
        Reason::TooManyRequests => Class::Retry,
        Reason::InternalError => Class::Bug,
        _ => Class::Permanent,
    };
    let text = format!("{:?}: {}", failure.reason, failure.message);
    Refusal { class, text }
}
