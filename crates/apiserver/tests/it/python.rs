//! The official Python client, Debian's `python3-kubernetes`, against the server. The scenario is `tests/clients/python.py`.

use crate::support::server;
use std::process::Command;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_client_works_unchanged() {
    let server = server().await;
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("config");
    server.write_kubeconfig(&config).expect("a kubeconfig");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/python.py");
    let mut command = Command::new("/usr/bin/python3");
    command.arg(script).arg(&config);
    let run = tokio::task::spawn_blocking(move || command.output());
    let output = run
        .await
        .expect("the task ends")
        .expect("Debian's python3 with python3-kubernetes: cargo xtask setup");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
