//! SIGKILL of a whole server under load: nothing acknowledged is lost, and watches go on from where they were.

use crate::client::{Chunks, Client};
use crate::process::{Process, serve};
use crate::support::DEADLINE;
use http::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::task::JoinSet;

const STATE: &str = "OPENKCM_TEST_SERVER_STATE";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const ROUNDS: usize = 3;
const WRITERS: usize = 4;
/// Acknowledged writes per round before the server is killed.
const WRITES: usize = 60;

/// Not a case of its own: the body of the server process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_serves_until_killed() {
    if let Some(state) = std::env::var_os(STATE) {
        serve(Path::new(&state)).await.expect("the server runs");
    }
}

async fn start(state: &Path) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--exact", "killed::child_serves_until_killed"])
        .env(STATE, state)
        .stdout(Stdio::null());
    let (process, _) = Process::start(&mut command, state)
        .await
        .expect("the server starts");
    process
}

/// Creates objects until the server dies; returns name and resourceVersion of what was acknowledged.
async fn write(mut client: Client, label: String, total: Arc<AtomicUsize>) -> Vec<(String, u64)> {
    let mut acknowledged = Vec::new();
    for index in 0.. {
        let name = format!("{label}-{index}");
        let body = json!({ "metadata": { "name": name } }).to_string();
        let Ok((code, body)) = client
            .call(Method::POST, CONFIG_MAPS, "application/json", body)
            .await
        else {
            break;
        };
        assert_eq!(code, 201);
        acknowledged.push((name, rev(&serde_json::from_slice(&body).expect("JSON"))));
        total.fetch_add(1, Ordering::Relaxed);
    }
    acknowledged
}

fn rev(object: &Value) -> u64 {
    let text = object
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str);
    text.and_then(|text| text.parse().ok()).expect("a revision")
}

/// Follows a watch and notes every event: name and resourceVersion, in order.
#[derive(Default)]
struct Seen {
    events: Vec<(String, u64)>,
    rest: Vec<u8>,
}

impl Seen {
    async fn follow(&mut self, watch: &mut Chunks, enough: impl Fn(&Seen) -> bool) {
        while !enough(self) {
            let Some(chunk) = watch.next().await else {
                break;
            };
            self.rest.extend_from_slice(&chunk);
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line).expect("a JSON line");
                assert_eq!(event["type"], "ADDED", "{event}");
                let name = event["object"]["metadata"]["name"]
                    .as_str()
                    .expect("a name");
                self.events.push((name.to_owned(), rev(&event["object"])));
            }
        }
        // What was cut short by the end of the stream comes again.
        self.rest.clear();
    }

    fn newest(&self) -> u64 {
        self.events.last().map_or(0, |(_, rev)| *rev)
    }
}

async fn watch(process: &Process, from: u64) -> (Client, Chunks) {
    let mut client = Client::connect(&process.credentials)
        .await
        .expect("a connection");
    let path = format!("{CONFIG_MAPS}?watch=1&resourceVersion={from}");
    let chunks = client.stream(&path).await.expect("a watch");
    (client, chunks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_resume_over_a_killed_server_without_gap_or_repetition() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut process = start(folder.path()).await;
    let mut client = Client::connect(&process.credentials)
        .await
        .expect("a connection");
    let (_, list) = client.get(CONFIG_MAPS).await.expect("a list");
    let first = rev(&serde_json::from_slice(&list).expect("JSON"));
    let mut seen = Seen::default();
    let mut acknowledged = BTreeMap::new();
    for round in 0..ROUNDS {
        let (open, mut chunks) = watch(&process, seen.newest().max(first)).await;
        let total = Arc::new(AtomicUsize::new(0));
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let client = Client::connect(&process.credentials)
                .await
                .expect("a connection");
            writers.spawn(write(
                client,
                format!("r{round}-w{writer}"),
                Arc::clone(&total),
            ));
        }
        seen.follow(&mut chunks, |_| total.load(Ordering::Relaxed) >= WRITES)
            .await;
        let pid = process.id();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "killed");
        // What was under way when the server died.
        seen.follow(&mut chunks, |_| false).await;
        drop(open);
        while let Some(more) = writers.join_next().await {
            acknowledged.extend(more.expect("a writer"));
        }
        process = start(folder.path()).await;
    }
    // Now everything that the last round left, and the same again from the very beginning.
    for from in [seen.newest(), first] {
        if from == first {
            seen = Seen::default();
        }
        let (_open, mut chunks) = watch(&process, from).await;
        let complete = |seen: &Seen| {
            let names: BTreeMap<&String, u64> = seen.events.iter().map(|(n, r)| (n, *r)).collect();
            acknowledged
                .iter()
                .all(|(name, rev)| names.get(name) == Some(rev))
        };
        tokio::time::timeout(DEADLINE, seen.follow(&mut chunks, complete))
            .await
            .expect("every acknowledged write is seen");
        assert!(
            seen.events.is_sorted_by_key(|(_, rev)| *rev),
            "in the order of revisions"
        );
        let mut names: Vec<&String> = seen.events.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), seen.events.len(), "exactly once");
    }
}
