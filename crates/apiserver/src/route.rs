//! From URL path to what it names. The URL space is data driven: one grammar for all groups and kinds.

use crate::query::percent_decode;

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Path {
    /// `/api/v1/…` or `/apis/<group>/<version>/…` with a resource.
    Resource(ResourcePath),
    /// Everything else: discovery, OpenAPI, health, metrics.
    Other(Vec<String>),
}

/// The parts of a resource path. The group is as typed, without lower-casing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourcePath {
    pub group: String,
    pub version: String,
    pub namespace: Option<String>,
    pub resource: String,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

/// Splits a path. Trailing slashes are tolerated.
pub fn parse(path: &str) -> Path {
    let segments: Vec<String> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| percent_decode(segment, false))
        .collect();
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let parsed = match words.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => resource("", version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => resource(group, version, rest),
        _ => None,
    };
    parsed.map_or(Path::Other(segments), Path::Resource)
}

fn resource(group: &str, version: &str, rest: &[&str]) -> Option<ResourcePath> {
    let base = ResourcePath {
        group: group.to_owned(),
        version: version.to_owned(),
        ..ResourcePath::default()
    };
    let named = |namespace: Option<&str>, resource: &str, tail: &[&str]| {
        let (name, subresource) = match tail {
            [] => (None, None),
            [name] => (Some(*name), None),
            [name, subresource] => (Some(*name), Some(*subresource)),
            _ => return None,
        };
        Some(ResourcePath {
            namespace: namespace.map(str::to_owned),
            resource: resource.to_owned(),
            name: name.map(str::to_owned),
            subresource: subresource.map(str::to_owned),
            ..base.clone()
        })
    };
    match rest {
        // Namespaces are themselves objects: `/api/v1/namespaces/<name>` and its two subresources.
        ["namespaces", name, sub @ ("status" | "finalize")] => {
            named(None, "namespaces", &[name, sub])
        }
        ["namespaces", namespace, resource, tail @ ..] => named(Some(namespace), resource, tail),
        [resource, tail @ ..] => named(None, resource, tail),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, group: &str, namespace: Option<&str>, rest: &str) {
        let Path::Resource(r) = parse(path) else {
            panic!("{path} is no resource path")
        };
        let shown = format!(
            "{}/{}/{}",
            r.resource,
            r.name.unwrap_or_default(),
            r.subresource.unwrap_or_default()
        );
        assert_eq!(
            (r.group.as_str(), r.namespace.as_deref(), shown.as_str()),
            (group, namespace, rest)
        );
    }

    #[test]
    fn paths() {
        check("/api/v1/namespaces", "", None, "namespaces//");
        check("/api/v1/namespaces/x/", "", None, "namespaces/x/");
        check(
            "/api/v1/namespaces/x/status",
            "",
            None,
            "namespaces/x/status",
        );
        check(
            "/api/v1/namespaces/x/configmaps",
            "",
            Some("x"),
            "configmaps//",
        );
        check(
            "/apis/g/v1/namespaces/x/networks/n/status",
            "g",
            Some("x"),
            "networks/n/status",
        );
        check(
            "/apis/g/v1/ipaddresses/fd00%3A%3A1",
            "g",
            None,
            "ipaddresses/fd00::1/",
        );
        assert!(matches!(parse("/apis/g/v1"), Path::Other(_)));
        assert!(matches!(parse("/apis/g/v1/a/b/c/d"), Path::Other(_)));
    }
}
