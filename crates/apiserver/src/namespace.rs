//! Termination of namespaces: everything inside is deleted, then the namespace itself.

use crate::auth::User;
use crate::filter::Filter;
use crate::kinds::Kind;
use crate::query::Query;
use crate::region::Region;
use crate::registry::delete::DeleteOptions;
use crate::registry::update::Proposal;
use crate::registry::{Part, Write};
use crate::status::{Outcome, Reason};
use crate::store::StoreError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Time between two looks at a namespace that still holds objects with finalizers.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Empties namespaces that are being deleted, for as long as the server runs.
pub async fn run(region: Arc<Region>) -> StoreError {
    let Some(kind) = region.kinds.find("", "v1", "namespaces").cloned() else {
        return region.store.stopped().await;
    };
    let Some((_, mut cursor)) = region.cache.list_and_watch(kind.id, None) else {
        return region.store.stopped().await;
    };
    loop {
        let mut waiting = false;
        for entry in region.cache.list(kind.id, None).entries {
            if entry
                .encoded
                .head()
                .is_ok_and(|head| head.deletion_timestamp.is_some())
            {
                match terminate(&region, &kind, entry.name()).await {
                    Ok(done) => waiting |= !done,
                    Err(failure) => {
                        waiting = true;
                        tracing::warn!(namespace = entry.name(), failure = %failure.message, "namespace not emptied, will be tried again");
                    }
                }
            }
        }
        // Anything that happened meanwhile is looked at in the next turn.
        if let crate::cache::Turn::Lagged = region.cache.turn(&mut cursor)
            && let Some((_, fresh)) = region.cache.list_and_watch(kind.id, None)
        {
            cursor = fresh;
        }
        tokio::select! {
            () = region.cache.ready(&mut cursor) => {}
            () = tokio::time::sleep(LOOK_EVERY), if waiting => {}
        }
    }
}

/// Deletes the content. Returns whether the namespace is gone.
async fn terminate(region: &Arc<Region>, kind: &Arc<Kind>, name: &str) -> Outcome<bool> {
    let user = User::server();
    let mut left = Vec::new();
    for content in region.kinds.stored().filter(|content| content.namespaced) {
        let place = (name, "", Part::Main);
        let write = Write::new(
            region,
            content,
            place,
            &user,
            &Query::default(),
            "namespace-controller",
        )?;
        write
            .delete_collection(&Filter::default(), &DeleteOptions::default())
            .await?;
        region.fresh().await?;
        let remaining = region.cache.list(content.id, Some(name)).entries.len();
        if remaining > 0 {
            let resource = crate::status::qualified(content.group, content.plural);
            left.push(format!("{resource} has {remaining} resource instances"));
        }
    }
    let part = if left.is_empty() {
        Part::Finalize
    } else {
        Part::Status
    };
    let write = Write::new(
        region,
        kind,
        ("", name, part),
        &user,
        &Query::default(),
        "namespace-controller",
    )?;
    let now = region.nature.now_text();
    let result = write.change(|live| {
        let live = live.ok_or_else(|| write.not_found())?;
        let mut object = live.value.clone();
        if let Some(map) = object.as_object_mut() {
            match part {
                Part::Finalize => map.insert("spec".into(), json!({ "finalizers": [] })),
                _ => map.insert("status".into(), status(&live.value, &left, &now)),
            };
        }
        Ok(Proposal {
            object,
            warnings: Vec::new(),
            track: true,
        })
    });
    match result.await {
        Ok(written) => Ok(written.deleted),
        Err(failure) if failure.reason == Reason::NotFound => Ok(true),
        Err(failure) => Err(failure),
    }
}

/// Says what still lives in a namespace. The time of an unchanged condition stays.
fn status(live: &Value, left: &[String], now: &str) -> Value {
    let message = format!("Some resources are remaining: {}", left.join(", "));
    let known = live
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let same = known
        .into_iter()
        .find(|condition| {
            condition.get("type").and_then(Value::as_str) == Some("NamespaceContentRemaining")
        })
        .filter(|condition| {
            condition.get("message").and_then(Value::as_str) == Some(message.as_str())
        });
    let condition = same.cloned().unwrap_or_else(|| {
        json!({
            "type": "NamespaceContentRemaining",
            "status": "True",
            "reason": "SomeResourcesRemain",
            "message": message,
            "lastTransitionTime": now,
        })
    });
    json!({ "phase": "Terminating", "conditions": [condition] })
}
