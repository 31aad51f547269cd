//! What the server offers: legacy and aggregated discovery, version, OpenAPI. All documents are made once.
//!
//! The groups are also offered in the spelling of the documentation (`networking.OpenKCM.dev`), because kubectl looks a manifest's
//! group up literally. Those entries list kinds without verbs, short names and categories: enough to map a manifest to a URL, and
//! `kubectl api-resources` shows every kind once.

use crate::kinds::{Kind, Kinds};
use crate::negotiate::{MediaRange, accept};
use crate::status::{Failure, Outcome};
use crate::wire::{JSON, Reply};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{HeaderName, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::sync::Arc;

/// The spelling of our domain in the documentation.
const DOCUMENTED: (&str, &str) = ("openkcm.dev", "OpenKCM.dev");

/// The documented spelling of a group of ours.
pub fn alias(group: &str) -> Option<String> {
    group
        .contains(DOCUMENTED.0)
        .then(|| group.replace(DOCUMENTED.0, DOCUMENTED.1))
}

#[derive(Debug)]
struct Document {
    body: Bytes,
    etag: HeaderValue,
    hash: String,
}

impl Document {
    fn new(value: &Value) -> Document {
        let body = Bytes::from(value.to_string());
        let digest = Sha256::digest(&body);
        let hash: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
        let etag = HeaderValue::from_str(&format!("\"{hash}\""))
            .unwrap_or(HeaderValue::from_static("\"\""));
        Document { body, etag, hash }
    }
}

/// All discovery documents by path, without leading and trailing slash.
#[derive(Debug)]
pub struct Documents {
    legacy: HashMap<String, Document>,
    aggregated: HashMap<(String, &'static str), Document>,
    openapi: HashMap<String, Document>,
}

/// Groups with their spelling, canonical ones first.
struct GroupView<'a> {
    name: String,
    versions: Vec<&'static str>,
    kinds: Vec<&'a Arc<Kind>>,
    alias: bool,
}

fn groups(kinds: &Kinds) -> Vec<GroupView<'_>> {
    let mut views: Vec<GroupView<'_>> = Vec::new();
    for kind in kinds.iter().filter(|kind| !kind.group.is_empty()) {
        match views.iter_mut().find(|view| view.name == kind.group) {
            Some(view) => view.kinds.push(kind),
            None => views.push(GroupView {
                name: kind.group.to_owned(),
                versions: vec![kind.version],
                kinds: vec![kind],
                alias: false,
            }),
        }
    }
    let aliases: Vec<GroupView<'_>> = views
        .iter()
        .filter_map(|view| {
            let name = alias(&view.name)?;
            Some(GroupView {
                name,
                versions: view.versions.clone(),
                kinds: view.kinds.clone(),
                alias: true,
            })
        })
        .collect();
    views.extend(aliases);
    views
}

impl Documents {
    pub fn new(kinds: &Kinds) -> Documents {
        let mut legacy = HashMap::new();
        let mut openapi = HashMap::new();
        let views = groups(kinds);
        let core: Vec<&Arc<Kind>> = kinds.iter().filter(|kind| kind.group.is_empty()).collect();
        legacy.insert(
            "api".into(),
            json!({
                "kind": "APIVersions",
                "versions": ["v1"],
                "serverAddressByClientCIDRs": [],
            }),
        );
        legacy.insert("api/v1".into(), resource_list("", "v1", &core, false));
        openapi.insert("api/v1".into(), crate::openapi::document("", "v1", &core));
        let group_documents: Vec<Value> = views
            .iter()
            .map(|view| api_group(&view.name, &view.versions))
            .collect();
        for (view, document) in views.iter().zip(&group_documents) {
            let mut alone = document.clone();
            if let Some(map) = alone.as_object_mut() {
                map.insert("kind".into(), json!("APIGroup"));
                map.insert("apiVersion".into(), json!("v1"));
            }
            legacy.insert(format!("apis/{}", view.name), alone);
            for version in &view.versions {
                let path = format!("apis/{}/{version}", view.name);
                legacy.insert(
                    path.clone(),
                    resource_list(&view.name, version, &view.kinds, view.alias),
                );
                openapi.insert(
                    path,
                    crate::openapi::document(&view.name, version, &view.kinds),
                );
            }
        }
        legacy.insert(
            "apis".into(),
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": group_documents }),
        );
        legacy.insert("version".into(), version());
        let mut aggregated = HashMap::new();
        for version in ["v2", "v2beta1"] {
            aggregated.insert(
                ("apis".to_owned(), version),
                aggregated_groups(&views, version),
            );
            let core = [GroupView {
                name: String::new(),
                versions: vec!["v1"],
                kinds: core.clone(),
                alias: false,
            }];
            aggregated.insert(
                ("api".to_owned(), version),
                aggregated_groups(&core, version),
            );
        }
        let mut openapi: HashMap<String, Document> = openapi
            .iter()
            .map(|(path, value)| (path.clone(), Document::new(value)))
            .collect();
        let paths: serde_json::Map<String, Value> = openapi
            .iter()
            .map(|(path, document)| {
                let url = format!("/openapi/v3/{path}?hash={}", document.hash);
                (path.clone(), json!({ "serverRelativeURL": url }))
            })
            .collect();
        openapi.insert(String::new(), Document::new(&json!({ "paths": paths })));
        Documents {
            legacy: legacy
                .iter()
                .map(|(path, value)| (path.clone(), Document::new(value)))
                .collect(),
            aggregated: aggregated
                .iter()
                .map(|(key, value)| (key.clone(), Document::new(value)))
                .collect(),
            openapi,
        }
    }

    /// The discovery document of a path, in the form that the client prefers.
    pub fn answer(&self, segments: &[String], headers: &HeaderMap) -> Outcome<Reply> {
        let path = segments.join("/");
        if let Some(rest) = path.strip_prefix("openapi/v3") {
            return self.openapi(rest.trim_start_matches('/'), headers);
        }
        for range in accept(headers) {
            if range.parameter("g") == "apidiscovery.k8s.io"
                && range.parameter("as") == "APIGroupDiscoveryList"
            {
                let version = if range.parameter("v") == "v2" {
                    "v2"
                } else {
                    "v2beta1"
                };
                if let Some(document) = self.aggregated.get(&(path.clone(), version)) {
                    let media_type = format!(
                        "application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
                    );
                    let content_type = HeaderValue::from_str(&media_type).unwrap_or(JSON);
                    return Ok(reply(document, content_type, headers));
                }
            } else if range.is_json() {
                break;
            }
        }
        let known = self
            .legacy
            .get(&path)
            .or_else(|| self.legacy.get(&canonical(&path)));
        known
            .map(|document| reply(document, JSON, headers))
            .ok_or_else(Failure::no_such_path)
    }

    fn openapi(&self, path: &str, headers: &HeaderMap) -> Outcome<Reply> {
        let known = self
            .openapi
            .get(path)
            .or_else(|| self.openapi.get(&canonical(path)));
        let document = known.ok_or_else(Failure::no_such_path)?;
        let ranges = accept(headers);
        if !ranges.is_empty() && !ranges.iter().any(MediaRange::is_json) {
            return Err(Failure::new(
                crate::status::Reason::NotAcceptable,
                "only the following media types are accepted: application/json",
            ));
        }
        Ok(reply(document, JSON, headers))
    }
}

fn canonical(path: &str) -> String {
    path.to_ascii_lowercase()
}

fn reply(document: &Document, content_type: HeaderValue, headers: &HeaderMap) -> Reply {
    let known = headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|etag| *etag == document.etag);
    let reply = match known {
        true => Reply::new(StatusCode::NOT_MODIFIED, content_type, Bytes::new()),
        false => Reply::new(StatusCode::OK, content_type, document.body.clone()),
    };
    let cache: (HeaderName, HeaderValue) =
        (header::CACHE_CONTROL, HeaderValue::from_static("public"));
    reply
        .with(header::ETAG, document.etag.clone())
        .with(cache.0, cache.1)
        .with(header::VARY, HeaderValue::from_static("Accept"))
}

/// `/version`. kubectl compares it with its own; we are closest to 1.32.
fn version() -> Value {
    json!({
        "major": "1",
        "minor": "32",
        "gitVersion": concat!("v1.32.0-openkcm.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": "linux/amd64",
    })
}

fn api_group(group: &str, versions: &[&str]) -> Value {
    let list: Vec<Value> = versions
        .iter()
        .map(|version| json!({ "groupVersion": format!("{group}/{version}"), "version": version }))
        .collect();
    json!({ "name": group, "versions": list, "preferredVersion": list.first() })
}

fn resource_list(group: &str, version: &str, kinds: &[&Arc<Kind>], alias: bool) -> Value {
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    let mut resources = Vec::new();
    for kind in kinds {
        let verbs: &[&str] = if alias { &[] } else { kind.verbs() };
        let mut row = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": verbs,
        });
        if let (Some(map), false) = (row.as_object_mut(), alias) {
            if !kind.short_names.is_empty() {
                map.insert("shortNames".into(), json!(kind.short_names));
            }
            if !kind.categories.is_empty() {
                map.insert("categories".into(), json!(kind.categories));
            }
            if !kind.is_virtual() {
                let digest = Sha256::digest(format!("{group}/{version}/{}", kind.kind));
                let hash: String = digest
                    .iter()
                    .take(8)
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                map.insert("storageVersionHash".into(), json!(hash));
            }
        }
        resources.push(row);
        for (subresource, verbs) in kind.subresources() {
            let verbs: &[&str] = if alias { &[] } else { verbs };
            let mut row = json!({
                "name": format!("{}/{subresource}", kind.plural),
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": kind.kind,
                "verbs": verbs,
            });
            if let (Some((group, version, kind)), Some(map)) =
                (foreign_kind(subresource), row.as_object_mut())
            {
                map.insert("group".into(), group.into());
                map.insert("version".into(), version.into());
                map.insert("kind".into(), kind.into());
            }
            resources.push(row);
        }
    }
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    })
}

/// Group, version and kind of a subresource that does not speak its parent's kind.
fn foreign_kind(subresource: &str) -> Option<(&'static str, &'static str, &'static str)> {
    (subresource == "token").then_some(("authentication.k8s.io", "v1", "TokenRequest"))
}

fn aggregated_groups(views: &[GroupView<'_>], api_version: &str) -> Value {
    let items: Vec<Value> = views
        .iter()
        .map(|view| {
            let versions: Vec<Value> = view
                .versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> = view
                        .kinds
                        .iter()
                        .map(|kind| aggregated_resource(view, version, kind))
                        .collect();
                    json!({ "version": version, "resources": resources, "freshness": "Current" })
                })
                .collect();
            let metadata = if view.name.is_empty() {
                json!({})
            } else {
                json!({ "name": view.name })
            };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{api_version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(view: &GroupView<'_>, version: &str, kind: &Kind) -> Value {
    let response = json!({ "group": view.name, "version": version, "kind": kind.kind });
    let verbs: &[&str] = if view.alias { &[] } else { kind.verbs() };
    let mut row = json!({
        "resource": kind.plural,
        "responseKind": response,
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": verbs,
    });
    let Some(map) = row.as_object_mut() else {
        return row;
    };
    if view.alias {
        return row;
    }
    if !kind.short_names.is_empty() {
        map.insert("shortNames".into(), json!(kind.short_names));
    }
    if !kind.categories.is_empty() {
        map.insert("categories".into(), json!(kind.categories));
    }
    let subresources: Vec<Value> = kind
        .subresources()
        .iter()
        .map(|(subresource, verbs)| {
            let response = match foreign_kind(subresource) {
                Some((group, version, kind)) => {
                    json!({ "group": group, "version": version, "kind": kind })
                }
                None => response.clone(),
            };
            json!({ "subresource": subresource, "responseKind": response, "verbs": verbs })
        })
        .collect();
    if !subresources.is_empty() {
        map.insert("subresources".into(), json!(subresources));
    }
    row
}
