//! The lab end to end, through its command line only: real processes, real namespaces, real packets.
//!
//! Needs root and the executables `openkcm` and `dpservice` beside the test's target folder (`cargo build --bins`).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests: a failure is the message"
)]

mod outside;
mod path;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

/// The executable under test: two folders above this test's own.
fn openkcm() -> Command {
    let own = std::env::current_exe().unwrap();
    let folder = own
        .parent()
        .and_then(|deps| deps.parent())
        .unwrap()
        .to_owned();
    let program: PathBuf = folder.join("openkcm");
    assert!(
        program.is_file() && folder.join("dpservice").is_file(),
        "build the executables first: cargo build --workspace --bins"
    );
    let mut command = Command::new(program);
    command.arg("lab").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    openkcm().args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn succeed(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(args: &[&str], why: &str) {
    let output = run(args);
    assert!(!output.status.success(), "{args:?} succeeded");
    assert!(
        text(&output).contains(why),
        "{args:?} does not say {why:?}: {}",
        text(&output)
    );
}

fn namespaces(lab: &str) -> Vec<String> {
    let out = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let prefix = format!("okcm-{lab}-");
    let all = String::from_utf8_lossy(&out.stdout).into_owned();
    all.lines()
        .filter(|l| l.starts_with(&prefix))
        .map(str::to_owned)
        .collect()
}

/// One scenario at a time: each measures a whole region on this machine's few cores.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a lab down even when the test fails halfway.
struct Cleanup(&'static str);

impl Drop for Cleanup {
    fn drop(&mut self) {
        run(&["down", "--name", self.0]);
    }
}

/// Every promise of the demo is a promise of the product: it must hold here as it must for a newcomer.
#[test]
fn every_step_of_the_demo_holds() {
    let _alone = alone();
    let name = "it-demo";
    let _cleanup = Cleanup(name);
    let status = openkcm().args(["demo", "--name", name]).status().unwrap();
    assert!(status.success(), "the demo reports a failed step (above)");
    assert_eq!(
        namespaces(name),
        Vec::<String>::new(),
        "namespaces are left behind"
    );
}

/// A short one; `cargo xtask storm` lasts ten minutes.
#[test]
fn a_region_weathers_hostile_frames_and_bytes() {
    let _alone = alone();
    let name = "it-storm";
    let _cleanup = Cleanup(name);
    let status = openkcm()
        .args(["storm", "--name", name, "--seconds", "10", "--rate", "500"])
        .status()
        .unwrap();
    assert!(status.success(), "the region was disturbed (above)");
}

#[test]
fn two_labs_live_side_by_side_and_each_leaves_nothing() {
    let _alone = alone();
    let _cleanup = (Cleanup("it-one"), Cleanup("it-two"));
    succeed(&[
        "up",
        "--name",
        "it-one",
        "--hypervisors",
        "1",
        "--routers",
        "1",
    ]);
    refused(
        &[
            "up",
            "--name",
            "it-one",
            "--hypervisors",
            "1",
            "--routers",
            "1",
        ],
        "already up",
    );
    succeed(&[
        "up",
        "--name",
        "it-two",
        "--hypervisors",
        "1",
        "--routers",
        "1",
    ]);

    let status: Value =
        serde_json::from_str(&succeed(&["status", "--name", "it-one", "-o", "json"])).unwrap();
    let parts = status["labs"][0]["parts"].as_array().unwrap();
    // Not every machine has iperf3 to put into the internet.
    let own = parts.iter().filter(|part| part["name"] != "iperf3");
    assert_eq!(own.count(), 4 + 2 + 1 + 4);
    assert!(
        parts
            .iter()
            .all(|p| p["state"] == "Running" && p["pid"].as_i64().is_some_and(|pid| pid > 0)),
        "{status}"
    );
    let kubeconfig = succeed(&["kubeconfig", "--name", "it-two"]);
    assert!(PathBuf::from(kubeconfig.trim()).is_file());

    refused(
        &["exec", "--name", "it-one", "nobody", "--", "true"],
        "nobody",
    );
    refused(
        &["kill", "--name", "it-one", "nothing"],
        "its parts are: apinetlet, apiserver",
    );
    refused(
        &[
            "kill",
            "--name",
            "it-one",
            "apiserver",
            "--signal",
            "NONSENSE",
        ],
        "no such signal",
    );
    refused(
        &["logs", "--name", "it-three", "apiserver"],
        "it-one, it-two",
    );
    assert!(!succeed(&["logs", "--name", "it-one", "apiserver"]).is_empty());

    succeed(&["down", "--name", "it-one"]);
    assert_eq!(namespaces("it-one"), Vec::<String>::new());
    assert!(
        !namespaces("it-two").is_empty(),
        "taking one lab down touched the other"
    );
    succeed(&["down", "--name", "it-two"]);
    assert_eq!(namespaces("it-two"), Vec::<String>::new());
}
