//! From an HTTP request to its answer: authentication, limits, authorization, and the verb.

use crate::auth::{Action, User, reviews, token};
use crate::decode::{self, Decoded};
use crate::filter::Filter;
use crate::kinds::Kind;
use crate::metrics::RequestLabels;
use crate::negotiate::{Encoding, Form, content_type, encoding, form};
use crate::print::{RowObject, View};
use crate::query::Query;
use crate::region::Region;
use crate::registry::delete::DeleteOptions;
use crate::registry::patch::PatchType;
use crate::registry::read::{self, ListOptions};
use crate::registry::{Part, Write, Written};
use crate::route::{self, Path, ResourcePath};
use crate::status::{Failure, Outcome, Reason, success};
use crate::wire::{Body, JSON, Reply, read_body, takes_gzip};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Reading requests in flight, watches excluded.
pub const READS_MAX: usize = 400;
/// Writing requests in flight.
pub const WRITES_MAX: usize = 200;
/// Longest time that a request may take, watches excluded.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A request that has been taken apart.
pub(crate) struct Call<'a> {
    pub region: &'a Arc<Region>,
    pub user: User,
    pub query: Query,
    pub headers: &'a HeaderMap,
}

/// Answers a request. Never fails: failures are answers.
pub async fn handle(
    region: Arc<Region>,
    user: Option<User>,
    request: Request<Incoming>,
) -> Response<Body> {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let gzip = takes_gzip(&parts.headers);
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let path = route::parse(parts.uri.path());
    let mut labels = RequestLabels {
        verb: "other",
        group: "",
        resource: "",
        code: 0,
    };
    let limit = deadline(&query);
    let call = answer(
        &region,
        user,
        &parts.method,
        &path,
        query,
        &parts.headers,
        body,
        &mut labels,
    );
    let reply = match tokio::time::timeout(limit, Box::pin(call)).await {
        Ok(reply) => reply.unwrap_or_else(Reply::from),
        Err(_) => {
            let message =
                format!("Timeout: request did not complete within the allotted time of {limit:?}");
            Failure::new(Reason::Timeout, message).into()
        }
    };
    labels.code = reply.code.as_u16();
    region.metrics.observe(labels, started.elapsed());
    reply.into_response(gzip)
}

/// `timeout=` may shorten the time that a request takes.
fn deadline(query: &Query) -> Duration {
    let seconds = query
        .text("timeout")
        .and_then(|text| text.strip_suffix('s')?.parse::<u64>().ok());
    seconds
        .filter(|seconds| *seconds > 0)
        .map_or(REQUEST_TIMEOUT, |s| {
            Duration::from_secs(s).min(REQUEST_TIMEOUT)
        })
}

#[expect(
    clippy::too_many_arguments,
    reason = "the parts of one request, each used once"
)]
async fn answer(
    region: &Arc<Region>,
    user: Option<User>,
    method: &Method,
    path: &Path,
    query: Query,
    headers: &HeaderMap,
    body: Incoming,
    labels: &mut RequestLabels,
) -> Outcome<Reply> {
    if let Path::Other(segments) = path
        && let Some(reply) = health(region, segments, &query)
    {
        return Ok(reply);
    }
    // A client certificate goes first, as a token beside it may be meant for somebody behind us.
    let user = match user {
        Some(user) => user,
        None => token::authenticate(region, headers)?.ok_or_else(Failure::unauthorized)?,
    };
    let user = impersonated(region, user, headers)?;
    let writes = !matches!(*method, Method::GET | Method::HEAD);
    let slots = if writes {
        &region.limits.writes
    } else {
        &region.limits.reads
    };
    let _slot = slots.try_acquire().map_err(|_| {
        region.metrics.rejected.inc();
        Failure::too_many_requests(
            "the server has received too many requests and has asked us to try again later",
        )
    })?;
    let call = Call {
        region,
        user,
        query,
        headers,
    };
    match path {
        Path::Other(segments) => other(&call, method, segments),
        Path::Resource(path) => resource(&call, method, path, body, labels).await,
    }
}

/// Acting as somebody else, for those who may.
fn impersonated(region: &Region, user: User, headers: &HeaderMap) -> Outcome<User> {
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .map(text)
        .collect();
    let Some(name) = headers.get("impersonate-user").map(text) else {
        return match groups.is_empty() {
            true => Ok(user),
            false => Err(Failure::bad_request(
                "requested groups without impersonating a user",
            )),
        };
    };
    let wanted = std::iter::once(("users", name.as_str()))
        .chain(groups.iter().map(|group| ("groups", group.as_str())));
    for (resource, name) in wanted {
        let action = Action {
            verb: "impersonate",
            resource,
            name,
            ..Action::default()
        };
        if !region.authorizer.allows(region, &user, &action) {
            return Err(Failure::forbidden(
                "",
                resource,
                name,
                &action.refusal(&user),
            ));
        }
    }
    Ok(User::new(name, groups))
}

/// Health needs no identity: probes have none.
fn health(region: &Region, segments: &[String], query: &Query) -> Option<Reply> {
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (endpoint, check) = match words.as_slice() {
        [endpoint @ ("livez" | "readyz" | "healthz")] => (*endpoint, None),
        [endpoint @ ("livez" | "readyz" | "healthz"), check] => (*endpoint, Some(*check)),
        _ => return None,
    };
    let checks = [
        ("ping", true),
        ("storage", !region.is_failed()),
        ("cache", region.is_loaded()),
        (
            "shutdown",
            endpoint != "readyz" || !region.stop.is_cancelled(),
        ),
    ];
    let excluded = |name: &str| query.all("exclude").any(|excluded| excluded == name);
    let mut text = String::new();
    let mut good = true;
    for (name, ok) in checks.into_iter().filter(|(name, _)| {
        check.is_none_or(|check| check == *name || check == "etcd" && *name == "storage")
    }) {
        let ok = ok || excluded(name);
        good &= ok;
        text.push_str(&format!(
            "[{}]{name} {}\n",
            if ok { '+' } else { '-' },
            if ok { "ok" } else { "failed: reason withheld" }
        ));
    }
    if text.is_empty() {
        return Some(Failure::no_such_path().into());
    }
    let code = if good {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    Some(match (good, query.flag("verbose")) {
        (true, false) => Reply::text(code, "ok"),
        (true, true) => Reply::text(code, format!("{text}{endpoint} check passed\n")),
        (false, _) => Reply::text(code, format!("{text}{endpoint} check failed\n")),
    })
}

fn other(call: &Call<'_>, method: &Method, segments: &[String]) -> Outcome<Reply> {
    let path = format!("/{}", segments.join("/"));
    let verb = method.as_str().to_ascii_lowercase();
    let action = Action {
        verb: &verb,
        path: &path,
        ..Action::default()
    };
    if !call
        .region
        .authorizer
        .allows(call.region, &call.user, &action)
    {
        return Err(Failure::new(
            Reason::Forbidden,
            format!("forbidden: {}", action.refusal(&call.user)),
        ));
    }
    if *method != Method::GET && *method != Method::HEAD {
        return Err(Failure::method_not_allowed());
    }
    match segments.first().map(String::as_str) {
        None => Ok(index()),
        Some("metrics") => {
            for kind in call.region.kinds.stored() {
                let labels = crate::metrics::ResourceLabels {
                    resource: crate::status::qualified(kind.group, kind.plural),
                };
                call.region
                    .metrics
                    .objects
                    .get_or_create(&labels)
                    .set(call.region.cache.count(kind.id) as u64);
            }
            let text = call.region.metrics.render();
            let content_type = HeaderValue::from_static(
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            );
            Ok(Reply::new(StatusCode::OK, content_type, text.into()))
        }
        Some(_) => call.region.documents().answer(segments, call.headers),
    }
}

fn index() -> Reply {
    let paths = [
        "/api",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v3",
        "/readyz",
        "/version",
    ];
    Reply::value(StatusCode::OK, &serde_json::json!({ "paths": paths }))
}

/// The verb of a request in the words of RBAC.
fn verb(method: &Method, path: &ResourcePath, query: &Query) -> Outcome<&'static str> {
    Ok(match (method.as_str(), &path.name) {
        ("GET" | "HEAD", Some(_)) => "get",
        ("GET" | "HEAD", None) if query.flag("watch") => "watch",
        ("GET" | "HEAD", None) => "list",
        ("POST", None) => "create",
        ("POST", Some(_)) if path.subresource.is_some() => "create",
        ("PUT", Some(_)) => "update",
        ("PATCH", Some(_)) => "patch",
        ("DELETE", Some(_)) => "delete",
        ("DELETE", None) => "deletecollection",
        _ => return Err(Failure::method_not_allowed()),
    })
}

async fn resource(
    call: &Call<'_>,
    method: &Method,
    path: &ResourcePath,
    body: Incoming,
    labels: &mut RequestLabels,
) -> Outcome<Reply> {
    let region = call.region;
    let kind = region
        .kinds
        .find(&path.group, &path.version, &path.resource)
        .ok_or_else(Failure::no_such_path)?;
    let verb = verb(method, path, &call.query)?;
    (labels.verb, labels.group, labels.resource) = (verb, kind.group, kind.plural);
    let subresource = path.subresource.as_deref().unwrap_or_default();
    let namespace = path.namespace.as_deref().unwrap_or_default();
    let name = path.name.as_deref().unwrap_or_default();
    // A watch or list of one object needs the right for that object only.
    let filter = match verb {
        "list" | "watch" | "deletecollection" => {
            Filter::parse(kind, path.namespace.as_deref(), &call.query)?
        }
        _ => Filter::default(),
    };
    let action = Action {
        verb,
        group: kind.group,
        resource: kind.plural,
        subresource,
        namespace,
        name: filter.name().unwrap_or(name),
        path: "",
    };
    if !region.authorizer.allows(region, &call.user, &action) {
        return Err(Failure::forbidden(
            kind.group,
            kind.plural,
            name,
            &action.refusal(&call.user),
        ));
    }
    check_place(kind, path, verb)?;
    if (kind.plural, subresource, verb) == ("serviceaccounts", "token", "create") {
        let decoded = decode::object(&read_body(body).await?, encoding(call.headers)?)?;
        return token::request(call, namespace, name, decoded.value).await;
    }
    let part = part(kind, subresource, verb)?;
    let view = view(call, kind, &path.group, &path.version)?;
    match verb {
        "get" => {
            let entry = read::get(region, kind, namespace, name, &call.query).await?;
            Ok(Reply::json(
                StatusCode::OK,
                view.object(&entry.encoded, entry.rev),
            ))
        }
        "list" => {
            let options = ListOptions::parse(&call.query)?;
            let page =
                read::list(region, kind, path.namespace.as_deref(), &filter, &options).await?;
            Ok(Reply::json(StatusCode::OK, read::render_list(&view, &page))
                .with(header::VARY, HeaderValue::from_static("Accept")))
        }
        "watch" => {
            let namespace = path.namespace.as_deref();
            match read::watch(region, kind, namespace, filter, view, &call.query).await {
                Ok(watcher) => Ok(Reply::stream(JSON, watcher.into_chunks())),
                Err(failure) => watch_failure(failure),
            }
        }
        _ => {
            let agent = call
                .headers
                .get(header::USER_AGENT)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default();
            let write = Write::new(
                region,
                kind,
                (namespace, name, part),
                &call.user,
                &call.query,
                agent,
            )?;
            let body = read_body(body).await?;
            change(call, &write, verb, view, &filter, body).await
        }
    }
}

/// A revision that this server cannot continue from, too old or from another history, is told inside the stream: kube-rs lists
/// again for an ERROR event only, and repeats a request that failed as such for ever.
fn watch_failure(failure: Failure) -> Outcome<Reply> {
    let unknown = failure.reason == Reason::Timeout;
    if failure.reason != Reason::Expired && !unknown {
        return Err(failure);
    }
    let status = Failure::expired(failure.message).to_status();
    let line = format!(
        "{}\n",
        serde_json::json!({ "type": "ERROR", "object": status })
    );
    let chunks = futures::stream::once(std::future::ready(Bytes::from(line)));
    Ok(Reply::stream(JSON, Box::pin(chunks)))
}

/// Namespaced kinds need a namespace to write, cluster-scoped ones have none.
fn check_place(kind: &Kind, path: &ResourcePath, verb: &str) -> Outcome<()> {
    let across = matches!(verb, "list" | "watch");
    match (kind.namespaced, path.namespace.is_some()) {
        (true, true) | (false, false) => Ok(()),
        (true, false) if across => Ok(()),
        (true, false) if path.name.is_none() && verb == "create" => Err(Failure::bad_request(
            "an empty namespace may not be set during creation",
        )),
        _ => Err(Failure::no_such_path()),
    }
}

fn part(kind: &Kind, subresource: &str, verb: &str) -> Outcome<Part> {
    let part = match subresource {
        "" if kind.verbs().contains(&verb) => return Ok(Part::Main),
        "" => return Err(Failure::method_not_allowed()),
        "status" => Part::Status,
        "finalize" => Part::Finalize,
        "approval" => Part::Approval,
        _ => return Err(Failure::no_such_path()),
    };
    let known = kind
        .subresources()
        .into_iter()
        .find(|(name, _)| *name == subresource);
    match known {
        None => Err(Failure::no_such_path()),
        Some((_, verbs)) if verbs.contains(&verb) => Ok(part),
        Some(_) => Err(Failure::method_not_allowed()),
    }
}

fn view(call: &Call<'_>, kind: &Arc<Kind>, group: &str, version: &str) -> Outcome<View> {
    let form = form(call.headers)?;
    let rows = match call.query.text("includeObject") {
        None | Some("Metadata") => RowObject::Metadata,
        Some("None") => RowObject::None,
        Some("Object") => RowObject::Whole,
        Some(other) => {
            return Err(Failure::bad_request(format!(
                "includeObject: unknown value {other:?}"
            )));
        }
    };
    let alias = (group != kind.group).then(|| format!("{group}/{version}"));
    Ok(View {
        kind: Arc::clone(kind),
        form,
        rows,
        alias,
    })
}

async fn change(
    call: &Call<'_>,
    write: &Write<'_>,
    verb: &str,
    view: View,
    filter: &Filter,
    body: Bytes,
) -> Outcome<Reply> {
    let kind = write.kind;
    match verb {
        "create" if kind.is_virtual() => {
            let decoded = decode::object(&body, encoding(call.headers)?)?;
            reviews::answer(call, kind, write.namespace, decoded.value)
        }
        "create" => {
            let written = write
                .create(decode::object(&body, encoding(call.headers)?)?)
                .await?;
            Ok(written_reply(&view, written))
        }
        "update" => {
            let written = write
                .put(decode::object(&body, encoding(call.headers)?)?)
                .await?;
            Ok(written_reply(&view, written))
        }
        "patch" => {
            let patch_type = PatchType::parse(&content_type(call.headers), kind.builtin)?;
            let written = write.patch(patch_type, &body, &call.query).await?;
            Ok(written_reply(&view, written))
        }
        "delete" => {
            let options = delete_options(call, &body)?;
            let written = write.delete(&options).await?;
            Ok(deleted_reply(
                write,
                &View {
                    form: Form::Plain,
                    ..view
                },
                &written,
            ))
        }
        _ => {
            let options = delete_options(call, &body)?;
            write.delete_collection(filter, &options).await?;
            Ok(Reply::value(
                StatusCode::OK,
                &success(kind.group, kind.plural, "", ""),
            ))
        }
    }
}

fn delete_options(call: &Call<'_>, body: &[u8]) -> Outcome<DeleteOptions> {
    let document = match body {
        [] => Value::Null,
        body => {
            // The media type of DeleteOptions is what the client sends for everything else, protobuf included.
            let encoding = if body.starts_with(b"k8s\0") {
                Encoding::Protobuf
            } else {
                Encoding::Yaml
            };
            let Decoded {
                value,
                duplicates: _,
            } = decode::object(body, encoding)?;
            value
        }
    };
    DeleteOptions::new(&document, &call.query)
}

fn written_reply(view: &View, written: Written) -> Reply {
    let code = if written.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Reply::json(code, view.object(&written.encoded, written.rev)).warn(&written.warnings)
}

fn deleted_reply(write: &Write<'_>, view: &View, written: &Written) -> Reply {
    if !written.deleted {
        return Reply::json(StatusCode::OK, view.object(&written.encoded, written.rev));
    }
    let uid = written
        .encoded
        .head()
        .map(|head| head.uid)
        .unwrap_or_default();
    Reply::value(
        StatusCode::OK,
        &success(write.kind.group, write.kind.plural, write.name, &uid),
    )
}
