//! Role based access control: roles and bindings compiled from the cache, asked per request.

use super::{Action, MASTERS, User};
use crate::kinds::ResourceId;
use crate::region::Region;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// One rule of a role.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub non_resource_urls: Vec<String>,
}

fn listed(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    pub fn allows(&self, action: &Action<'_>) -> bool {
        if !listed(&self.verbs, action.verb) {
            return false;
        }
        if !action.path.is_empty() {
            return self
                .non_resource_urls
                .iter()
                .any(|url| match url.strip_suffix('*') {
                    Some(prefix) => action.path.starts_with(prefix),
                    None => url == action.path,
                });
        }
        listed(&self.api_groups, action.group)
            && self
                .resources
                .iter()
                .any(|resource| matches_resource(resource, action))
            && (self.resource_names.is_empty()
                || self.resource_names.iter().any(|name| name == action.name))
    }

    /// Whether everything that `other` allows is allowed by one of `rules`, as far as single rules can tell.
    fn covered_by(&self, rules: &[&Rule]) -> bool {
        let each = |list: &[String]| {
            if list.is_empty() {
                vec![String::new()]
            } else {
                list.to_vec()
            }
        };
        each(&self.verbs).iter().all(|verb| {
            let paths = self.non_resource_urls.iter().all(|url| {
                rules.iter().any(|rule| {
                    listed(&rule.verbs, verb) && covers_url(&rule.non_resource_urls, url)
                })
            });
            let resources = self.resources.iter().all(|resource| {
                self.api_groups.iter().all(|group| {
                    each(&self.resource_names).iter().all(|name| {
                        rules.iter().any(|rule| {
                            listed(&rule.verbs, verb)
                                && listed(&rule.api_groups, group)
                                && covers_resource(&rule.resources, resource)
                                && (rule.resource_names.is_empty()
                                    || rule.resource_names.contains(name))
                        })
                    })
                })
            });
            paths && resources
        })
    }

    pub fn to_value(&self) -> Value {
        let mut value = json!({ "verbs": self.verbs });
        if let Some(map) = value.as_object_mut() {
            if self.non_resource_urls.is_empty() {
                map.insert("apiGroups".into(), json!(self.api_groups));
                map.insert("resources".into(), json!(self.resources));
                if !self.resource_names.is_empty() {
                    map.insert("resourceNames".into(), json!(self.resource_names));
                }
            } else {
                map.insert("nonResourceURLs".into(), json!(self.non_resource_urls));
            }
        }
        value
    }
}

fn matches_resource(pattern: &str, action: &Action<'_>) -> bool {
    if pattern == "*" {
        return true;
    }
    match pattern.split_once('/') {
        None => action.subresource.is_empty() && pattern == action.resource,
        Some((resource, subresource)) => {
            (resource == "*" || resource == action.resource) && subresource == action.subresource
        }
    }
}

fn covers_url(patterns: &[String], url: &str) -> bool {
    patterns
        .iter()
        .any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => url.starts_with(prefix),
            None => pattern == url,
        })
}

fn covers_resource(patterns: &[String], resource: &str) -> bool {
    patterns.iter().any(|pattern| {
        let subresource = |text: &str| text.split_once('/').map(|(_, sub)| sub.to_owned());
        pattern == "*"
            || pattern == resource
            || (pattern.starts_with("*/") && subresource(pattern) == subresource(resource))
    })
}

/// Rules that hold in one namespace, or everywhere.
#[derive(Debug, Clone)]
struct Grant {
    namespace: Option<String>,
    rules: Arc<Vec<Rule>>,
}

#[derive(Debug, Default)]
struct Compiled {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

type Versions = [u64; 4];

/// Answers whether a user may do something.
#[derive(Debug, Default)]
pub struct Authorizer {
    compiled: RwLock<(Option<Versions>, Arc<Compiled>)>,
}

/// The four kinds that grants are made of.
const SOURCES: [&str; 4] = [
    "roles",
    "clusterroles",
    "rolebindings",
    "clusterrolebindings",
];

#[derive(Deserialize)]
struct RoleDocument {
    #[serde(default)]
    rules: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BindingDocument {
    #[serde(default)]
    subjects: Option<Vec<Subject>>,
    role_ref: RoleRef,
}

#[derive(Deserialize)]
struct Subject {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: Option<String>,
}

#[derive(Deserialize)]
pub struct RoleRef {
    pub kind: String,
    pub name: String,
}

impl Authorizer {
    fn compiled(&self, region: &Region) -> Arc<Compiled> {
        let ids: Vec<ResourceId> = SOURCES
            .iter()
            .filter_map(|plural| region.kinds.find("rbac.authorization.k8s.io", "v1", plural))
            .map(|kind| kind.id)
            .collect();
        let [roles, cluster_roles, bindings, cluster_bindings] = ids.as_slice() else {
            return Arc::default();
        };
        let versions = [*roles, *cluster_roles, *bindings, *cluster_bindings]
            .map(|id| region.cache.changes(id));
        {
            let known = self.compiled.read().unwrap_or_else(PoisonError::into_inner);
            if known.0 == Some(versions) {
                return Arc::clone(&known.1);
            }
        }
        let fresh = Arc::new(compile(
            region,
            *roles,
            *cluster_roles,
            *bindings,
            *cluster_bindings,
        ));
        *self
            .compiled
            .write()
            .unwrap_or_else(PoisonError::into_inner) = (Some(versions), Arc::clone(&fresh));
        fresh
    }

    /// Whether `user` may do `action`.
    pub fn allows(&self, region: &Region, user: &User, action: &Action<'_>) -> bool {
        if user.in_group(MASTERS) {
            return true;
        }
        let compiled = self.compiled(region);
        compiled
            .grants(user)
            .filter(|grant| {
                grant
                    .namespace
                    .as_deref()
                    .is_none_or(|namespace| namespace == action.namespace)
            })
            .any(|grant| grant.rules.iter().any(|rule| rule.allows(action)))
    }

    /// The rules of a user in a namespace.
    pub fn rules(&self, region: &Region, user: &User, namespace: &str) -> Vec<Rule> {
        if user.in_group(MASTERS) {
            return vec![everything(), every_path()];
        }
        let compiled = self.compiled(region);
        let grants = compiled
            .grants(user)
            .filter(|grant| grant.namespace.as_deref().is_none_or(|n| n == namespace));
        grants
            .flat_map(|grant| grant.rules.iter().cloned())
            .collect()
    }

    /// Whether `user` may hand out `rules` in `namespace`: only what he has himself.
    pub fn may_grant(&self, region: &Region, user: &User, namespace: &str, rules: &[Rule]) -> bool {
        if user.in_group(MASTERS) {
            return true;
        }
        let own = self.rules(region, user, namespace);
        let own: Vec<&Rule> = own.iter().collect();
        rules.iter().all(|rule| rule.covered_by(&own))
    }
}

/// May everything on resources.
pub fn everything() -> Rule {
    let all = || vec!["*".to_owned()];
    Rule {
        verbs: all(),
        api_groups: all(),
        resources: all(),
        ..Rule::default()
    }
}

/// May everything on paths.
pub fn every_path() -> Rule {
    Rule {
        verbs: vec!["*".into()],
        non_resource_urls: vec!["*".into()],
        ..Rule::default()
    }
}

impl Compiled {
    fn grants<'a>(&'a self, user: &'a User) -> impl Iterator<Item = &'a Grant> {
        let own = self.users.get(&user.name).into_iter().flatten();
        own.chain(
            user.groups
                .iter()
                .filter_map(|group| self.groups.get(group))
                .flatten(),
        )
    }

    fn bind(&mut self, subject: Subject, grant: Grant, binding_namespace: &str) {
        match subject.kind.as_str() {
            "User" => self.users.entry(subject.name).or_default().push(grant),
            "Group" => self.groups.entry(subject.name).or_default().push(grant),
            "ServiceAccount" => {
                let namespace = subject
                    .namespace
                    .unwrap_or_else(|| binding_namespace.to_owned());
                let user = format!("system:serviceaccount:{namespace}:{}", subject.name);
                self.users.entry(user).or_default().push(grant);
            }
            _ => {}
        }
    }
}

/// The rules of a role document.
pub fn rules_of(role: &Value) -> Vec<Rule> {
    RoleDocument::deserialize(role)
        .ok()
        .and_then(|role| role.rules)
        .unwrap_or_default()
}

fn compile(
    region: &Region,
    roles: ResourceId,
    cluster_roles: ResourceId,
    bindings: ResourceId,
    cluster_bindings: ResourceId,
) -> Compiled {
    let rules = |id| -> HashMap<String, Arc<Vec<Rule>>> {
        let entries = region.cache.list(id, None).entries;
        entries
            .iter()
            .map(|entry| (entry.key.to_string(), Arc::new(rules_of(&entry.value()))))
            .collect()
    };
    let (roles, cluster_roles) = (rules(roles), rules(cluster_roles));
    let mut compiled = Compiled::default();
    for (id, namespaced) in [(bindings, true), (cluster_bindings, false)] {
        for entry in region.cache.list(id, None).entries {
            let Ok(binding) = BindingDocument::deserialize(entry.value()) else {
                continue;
            };
            let found = match (binding.role_ref.kind.as_str(), namespaced) {
                ("ClusterRole", _) => cluster_roles.get(&binding.role_ref.name),
                ("Role", true) => {
                    roles.get(&format!("{}/{}", entry.namespace(), binding.role_ref.name))
                }
                _ => None,
            };
            let Some(rules) = found else { continue };
            let namespace = namespaced.then(|| entry.namespace().to_owned());
            for subject in binding.subjects.into_iter().flatten() {
                let grant = Grant {
                    namespace: namespace.clone(),
                    rules: Arc::clone(rules),
                };
                compiled.bind(subject, grant, entry.namespace());
            }
        }
    }
    compiled
}
