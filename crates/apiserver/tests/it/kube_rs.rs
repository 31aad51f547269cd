//! kube-rs against the server: watchers in both modes, the finalizer helper, the event recorder, metadata-only access.

use crate::support::{DEADLINE, client, server};
use api::k8s_openapi::api::core::v1::ConfigMap;
use api::networking::Network;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::finalizer::{Event as Finalizer, finalizer};
use kube::runtime::watcher::{self, watcher};
use kube::{Resource as _, ResourceExt as _};
use std::collections::BTreeMap;
use std::sync::Arc;

fn config_map(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: kube::core::ObjectMeta {
            name: Some(name.to_owned()),
            ..Default::default()
        },
        data: Some(BTreeMap::from([("a".to_owned(), "b".to_owned())])),
        ..ConfigMap::default()
    }
}

async fn reflects(config: watcher::Config) {
    let server = server().await;
    let client = client(&server).await;
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    for index in 0..7 {
        api.create(
            &PostParams::default(),
            &config_map(&format!("before-{index}")),
        )
        .await
        .expect("created");
    }
    let mut seen = watcher(api.clone(), config.page_size(3))
        .applied_objects()
        .boxed();
    let mut names = Vec::new();
    let mut next = async || {
        let object = tokio::time::timeout(DEADLINE, seen.try_next())
            .await
            .expect("in time")
            .expect("no error");
        object.expect("an object").name_any()
    };
    for _ in 0..7 {
        names.push(next().await);
    }
    names.sort();
    assert_eq!(names.first().map(String::as_str), Some("before-0"));
    api.create(&PostParams::default(), &config_map("after"))
        .await
        .expect("created");
    assert_eq!(next().await, "after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_lists_pages_and_watches() {
    reflects(watcher::Config::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_streams_its_list() {
    reflects(watcher::Config::default().streaming_lists()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_finalizer_helper_goes_through_its_life() {
    let server = server().await;
    let client = client(&server).await;
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let name = "example.com/finalizer";
    api.create(&PostParams::default(), &config_map("f"))
        .await
        .expect("created");
    let step = async || {
        let object = Arc::new(api.get("f").await.expect("the object"));
        let done = finalizer(&api, name, object, async |event| {
            let (Finalizer::Apply(_) | Finalizer::Cleanup(_)) = event;
            Ok::<_, std::io::Error>(kube::runtime::controller::Action::await_change())
        });
        done.await.expect("the step succeeds")
    };
    step().await;
    assert_eq!(api.get("f").await.expect("the object").finalizers(), [name]);
    step().await;
    let left = api
        .delete("f", &DeleteParams::default())
        .await
        .expect("deletion begins")
        .left();
    assert!(
        left.expect("the object waits")
            .meta()
            .deletion_timestamp
            .is_some()
    );
    step().await;
    assert!(api.get_opt("f").await.expect("an answer").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_events_are_seen_through_both_groups() {
    let server = server().await;
    let client = client(&server).await;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let object = api
        .create(&PostParams::default(), &config_map("e"))
        .await
        .expect("created");
    let reporter = Reporter {
        controller: "example.com/test".into(),
        instance: None,
    };
    let recorder = Recorder::new(client.clone(), reporter);
    let event = Event {
        type_: EventType::Normal,
        reason: "Tested".into(),
        note: Some("a note".into()),
        action: "Test".into(),
        secondary: None,
    };
    for _ in 0..3 {
        recorder
            .publish(&event, &object.object_ref(&()))
            .await
            .expect("published");
    }
    let core: Api<api::k8s_openapi::api::core::v1::Event> =
        Api::namespaced(client.clone(), "default");
    let selector = format!("involvedObject.uid={}", object.uid().expect("a uid"));
    let found = core
        .list(&ListParams::default().fields(&selector))
        .await
        .expect("a list")
        .items;
    assert_eq!(found.len(), 1);
    assert_eq!(
        found.first().and_then(|event| event.message.as_deref()),
        Some("a note")
    );
    let new: Api<api::k8s_openapi::api::events::v1::Event> = Api::namespaced(client, "default");
    let found = new
        .list(&ListParams::default().fields(&selector.replace("involvedObject", "regarding")))
        .await
        .expect("a list")
        .items;
    let event = found.first().expect("the same event");
    assert_eq!(
        (event.note.as_deref(), event.reporting_controller.as_deref()),
        (Some("a note"), Some("example.com/test"))
    );
    assert!(event.series.is_some(), "repetitions are counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_and_metadata_only_access() {
    let server = server().await;
    let client = client(&server).await;
    let api: Api<Network> = Api::namespaced(client.clone(), "default");
    let manifest = serde_json::json!({
        "apiVersion": "networking.openkcm.dev/v1alpha1", "kind": "Network", "metadata": { "name": "n", "labels": { "a": "b" } }, "spec": {},
    });
    let applied = api
        .patch("n", &PatchParams::apply("one"), &Patch::Apply(&manifest))
        .await
        .expect("applied");
    let again = api
        .patch("n", &PatchParams::apply("one"), &Patch::Apply(&manifest))
        .await
        .expect("applied");
    assert_eq!(
        applied.resource_version(),
        again.resource_version(),
        "an apply that changes nothing writes nothing"
    );
    let mut other = manifest.clone();
    other["metadata"]["labels"]["a"] = "c".into();
    let conflict = api
        .patch("n", &PatchParams::apply("two"), &Patch::Apply(&other))
        .await
        .expect_err("a conflict");
    assert!(
        matches!(&conflict, kube::Error::Api(status) if status.code == 409),
        "{conflict}"
    );
    api.patch(
        "n",
        &PatchParams::apply("two").force(),
        &Patch::Apply(&other),
    )
    .await
    .expect("forced");
    let metadata: Api<PartialObjectMeta<Network>> = Api::namespaced(client, "default");
    assert_eq!(
        metadata
            .get_metadata("n")
            .await
            .expect("metadata")
            .labels()
            .get("a")
            .map(String::as_str),
        Some("c")
    );
    let seen = watcher(metadata, watcher::Config::default()).applied_objects();
    let first = tokio::time::timeout(DEADLINE, Box::pin(seen).try_next())
        .await
        .expect("in time")
        .expect("no error");
    assert_eq!(first.expect("an object").name_any(), "n");
}
