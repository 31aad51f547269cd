//! GET, list and watch, answered from the cache; older revisions from the store's history.

use crate::cache::Entry;
use crate::filter::Filter;
use crate::kinds::Kind;
use crate::print::View;
use crate::query::Query;
use crate::region::Region;
use crate::status::{Cause, Failure, Outcome};
use crate::store::{At, Rev};
use crate::watch::{WatchRequest, Watcher, default_timeout};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// What a list request wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Version {
    /// Everything committed before the request.
    Latest,
    /// Whatever the cache has.
    Any,
    NotOlderThan(Rev),
    Exact(Rev),
}

/// The revision of tokens that go on with whatever is newest.
const NOW: Rev = 0;

/// Where a paged listing goes on.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Continue {
    rev: Rev,
    after: String,
}

/// `limit`, `continue`, `resourceVersion`, `resourceVersionMatch` of a request.
#[derive(Debug, Clone)]
pub struct ListOptions {
    version: Version,
    limit: usize,
    after: Option<String>,
}

fn invalid(field: &str, reason: &str, message: String) -> Failure {
    let cause = Cause {
        reason: reason.into(),
        message,
        field: field.into(),
    };
    Failure::invalid("meta.k8s.io", "ListOptions", "", vec![cause])
}

fn forbidden(field: &str, detail: &str) -> Failure {
    invalid(field, "FieldValueForbidden", format!("Forbidden: {detail}"))
}

fn revision(query: &Query) -> Outcome<Option<Rev>> {
    match query.text("resourceVersion") {
        None => Ok(None),
        Some(text) => match text.parse() {
            Ok(rev) => Ok(Some(rev)),
            Err(_) => Err(invalid(
                "resourceVersion",
                "FieldValueInvalid",
                format!("Invalid value: \"{text}\": must be a number"),
            )),
        },
    }
}

impl ListOptions {
    pub fn parse(query: &Query) -> Outcome<ListOptions> {
        let limit = match query.text("limit") {
            None => 0,
            Some(text) => text
                .parse::<i64>()
                .map_err(|_| Failure::bad_request(format!("limit: not a number: {text:?}")))?
                .max(0),
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let rev = revision(query)?;
        let matching = query.text("resourceVersionMatch");
        if let Some(token) = query.text("continue") {
            if matching.is_some() {
                return Err(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if rev.is_some_and(|rev| rev != 0) {
                return Err(Failure::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let decoded = URL_SAFE_NO_PAD.decode(token).ok();
            let parsed = decoded.and_then(|bytes| serde_json::from_slice::<Continue>(&bytes).ok());
            let Some(Continue { rev, after }) = parsed else {
                return Err(Failure::bad_request("continue key is not valid"));
            };
            return Ok(ListOptions {
                version: Version::Exact(rev),
                limit,
                after: Some(after),
            });
        }
        let version = match (matching, rev) {
            (None, None) => Version::Latest,
            (None, Some(0)) => Version::Any,
            // A first page at a revision is exact by convention, a whole list at a revision is "not older".
            (None, Some(rev)) if limit > 0 => Version::Exact(rev),
            (None, Some(rev)) => Version::NotOlderThan(rev),
            (Some(_), None) => {
                return Err(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            (Some("NotOlderThan"), Some(0)) => Version::Any,
            (Some("NotOlderThan"), Some(rev)) => Version::NotOlderThan(rev),
            (Some("Exact"), Some(0)) => {
                return Err(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            (Some("Exact"), Some(rev)) => Version::Exact(rev),
            (Some(other), Some(_)) => {
                return Err(invalid(
                    "resourceVersionMatch",
                    "FieldValueNotSupported",
                    format!(
                        "Unsupported value: \"{other}\": supported values: \"Exact\", \"NotOlderThan\""
                    ),
                ));
            }
        };
        Ok(ListOptions {
            version,
            limit,
            after: None,
        })
    }
}

/// A page of a listing.
#[derive(Debug)]
pub struct ListPage {
    pub entries: Vec<Arc<Entry>>,
    pub rev: Rev,
    pub next: Option<String>,
    pub remaining: Option<u64>,
}

/// One object, at least as new as the request demands.
pub async fn get(
    region: &Region,
    kind: &Kind,
    namespace: &str,
    name: &str,
    query: &Query,
) -> Outcome<Arc<Entry>> {
    match revision(query)? {
        None => region.fresh().await?,
        Some(rev) => region.cache.wait_for(rev).await?,
    }
    let key = super::cache_key(kind, namespace, name);
    region
        .cache
        .get(kind.id, &key)
        .ok_or_else(|| Failure::not_found(kind.group, kind.plural, name))
}

/// Lists objects of a kind.
pub async fn list(
    region: &Region,
    kind: &Kind,
    namespace: Option<&str>,
    filter: &Filter,
    options: &ListOptions,
) -> Outcome<ListPage> {
    match options.version {
        Version::Latest => region.fresh().await?,
        Version::Any => {}
        Version::NotOlderThan(rev) => region.cache.wait_for(rev).await?,
        Version::Exact(rev) => return list_at(region, kind, namespace, filter, options, rev).await,
    }
    let snapshot = region.cache.list(kind.id, namespace);
    let rev = snapshot.rev;
    let mut selected = snapshot.entries;
    if !filter.is_everything() {
        selected.retain(|entry| filter.matches(entry));
    }
    let total = selected.len();
    let cut = options.limit > 0 && total > options.limit && options.version != Version::Any;
    if !cut {
        return Ok(ListPage {
            entries: selected,
            rev,
            next: None,
            remaining: None,
        });
    }
    selected.truncate(options.limit);
    let left = (total - options.limit) as u64;
    Ok(page(selected, rev, filter, left))
}

fn token(rev: Rev, after: &str) -> Option<String> {
    let after = after.to_owned();
    let bytes = serde_json::to_vec(&Continue { rev, after }).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

fn page(entries: Vec<Arc<Entry>>, rev: Rev, filter: &Filter, left: u64) -> ListPage {
    let next = entries.last().and_then(|last| token(rev, &last.key));
    let remaining = filter.is_everything().then_some(left);
    ListPage {
        entries,
        rev,
        next,
        remaining,
    }
}

/// Lists from the store's history.
async fn list_at(
    region: &Region,
    kind: &Kind,
    namespace: Option<&str>,
    filter: &Filter,
    options: &ListOptions,
    rev: Rev,
) -> Outcome<ListPage> {
    let rev = match rev {
        NOW => region.store.current().await,
        rev => rev,
    };
    let mut prefix = kind.prefix();
    let base = prefix.clone();
    if let Some(namespace) = namespace {
        prefix.extend_from_slice(namespace.as_bytes());
        prefix.push(b'/');
    }
    let mut after = options
        .after
        .as_ref()
        .map(|key| [base.as_slice(), key.as_bytes()].concat());
    if after
        .as_ref()
        .is_some_and(|after| !after.starts_with(&prefix))
    {
        return Err(Failure::bad_request(
            "continue key is not valid: it belongs to another listing",
        ));
    }
    let mut entries = Vec::new();
    loop {
        // Without a selector every key counts, and one more key than asked tells whether to go on.
        let want = if filter.is_everything() {
            options.limit
        } else {
            0
        };
        let result = region
            .store
            .range(&prefix, after.as_deref(), want, At::Exactly(rev))
            .await;
        let page_read = result.map_err(|error| expired_token(error, options))?;
        let more = page_read.more;
        let left = page_read.remaining;
        for kv in page_read.kvs {
            after = Some(kv.key.to_vec());
            let key = kv
                .key
                .get(base.len()..)
                .and_then(|key| std::str::from_utf8(key).ok())
                .map(str::to_owned);
            let entry = key.and_then(|key| Entry::from_kv(kv, &key));
            if let Some(entry) = entry.filter(|entry| filter.matches(entry)) {
                entries.push(entry);
            }
        }
        let full = options.limit > 0 && entries.len() >= options.limit;
        if full {
            let surplus = entries.len() - options.limit;
            entries.truncate(options.limit);
            return Ok(match (more, surplus) {
                (false, 0) => ListPage {
                    entries,
                    rev,
                    next: None,
                    remaining: None,
                },
                _ => page(entries, rev, filter, left + surplus as u64),
            });
        }
        if !more {
            return Ok(ListPage {
                entries,
                rev,
                next: None,
                remaining: None,
            });
        }
    }
}

/// A listing whose revision is forgotten may start again, or go on with what there is now.
fn expired_token(error: crate::store::StoreError, options: &ListOptions) -> Failure {
    let Some(after) = &options.after else {
        return error.into();
    };
    let crate::store::StoreError::Compacted { .. } = error else {
        return error.into();
    };
    let mut failure = Failure::expired(
        "The provided continue parameter is too old to display a consistent list result. Start a new list without it, or go on with the \
         token of this answer: changes made since the first page may then be missing or appear in part.",
    );
    failure.details.continue_token = token(NOW, after).unwrap_or_default();
    failure
}

/// The text of a list answer.
pub fn render_list(view: &View, page: &ListPage) -> Bytes {
    let mut out = BytesMut::new();
    view.write_list(page, &mut out);
    out.freeze()
}

/// Starts a watch.
pub async fn watch(
    region: &Arc<Region>,
    kind: &Kind,
    namespace: Option<&str>,
    filter: Filter,
    view: View,
    query: &Query,
) -> Outcome<Watcher> {
    let bookmarks = query.flag("allowWatchBookmarks");
    let rev = revision(query)?;
    let matching = query.text("resourceVersionMatch");
    let streaming = match query.text("sendInitialEvents") {
        None => None,
        Some("true" | "1") => Some(true),
        Some("false" | "0") => Some(false),
        Some(other) => {
            return Err(Failure::bad_request(format!(
                "sendInitialEvents: not a boolean: {other:?}"
            )));
        }
    };
    match (streaming, matching) {
        (None, None) | (Some(_), Some("NotOlderThan")) => {}
        (None, Some(_)) => {
            return Err(forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        (Some(_), None) => {
            return Err(forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        (Some(_), Some(_)) => {
            return Err(forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires resourceVersionMatch NotOlderThan",
            ));
        }
    }
    let timeout = match query.text("timeoutSeconds") {
        None => default_timeout(),
        Some(text) => match text.parse::<u32>() {
            Ok(0) => default_timeout(),
            Ok(seconds) => Duration::from_secs(seconds.into()),
            Err(_) => {
                return Err(Failure::bad_request(format!(
                    "timeoutSeconds: not a number: {text:?}"
                )));
            }
        },
    };
    let begin_with_state = match streaming {
        Some(wanted) => wanted,
        None => matches!(rev, None | Some(0)),
    };
    let (initial, initial_end, cursor) = if begin_with_state {
        match rev {
            None => region.fresh().await?,
            Some(rev) => region.cache.wait_for(rev).await?,
        }
        let listed = region
            .cache
            .list_and_watch(kind.id, namespace)
            .ok_or_else(Failure::no_such_path)?;
        let (mut snapshot, cursor) = listed;
        snapshot.entries.retain(|entry| filter.matches(entry));
        let end = (streaming == Some(true) && bookmarks).then_some(snapshot.rev);
        (snapshot.entries, end, cursor)
    } else {
        let from = match rev {
            Some(rev) if rev > 0 => rev,
            _ => {
                region.fresh().await?;
                region.cache.progress()
            }
        };
        (Vec::new(), None, region.cache.watch(kind.id, from).await?)
    };
    let request = WatchRequest {
        view,
        filter,
        bookmarks,
        timeout,
        initial,
        initial_end,
        cursor,
    };
    Ok(Watcher::new(Arc::clone(region), request))
}
