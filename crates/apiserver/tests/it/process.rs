//! The API server in a process of its own, so that it can be killed. The server benchmark uses it too.

use crate::client::{Client, Credentials};
use clap::Parser as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time that a start may take.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// What the process runs: a server on a free port.
pub async fn serve(state: &Path) -> anyhow::Result<()> {
    #[derive(clap::Parser)]
    struct Server {
        #[command(flatten)]
        args: apiserver::Args,
    }
    let state = state.to_string_lossy().into_owned();
    let flags = [
        "apiserver",
        "--state",
        &state,
        "--bind-address",
        "127.0.0.1",
        "--secure-port",
        "0",
    ];
    let Server { args } = Server::try_parse_from(flags)?;
    apiserver::run(args, tokio_util::sync::CancellationToken::new()).await
}

/// A process that ends by SIGKILL when dropped: what it leaves behind is what a crash leaves.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already; then there is nobody to kill.
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

/// A running server.
pub struct Process {
    child: Killed,
    pub credentials: Arc<Credentials>,
}

impl Process {
    /// Starts `command`, which runs [`serve`], and waits until it is ready. Tells how long that took.
    pub async fn start(command: &mut Command, state: &Path) -> anyhow::Result<(Process, Duration)> {
        let kubeconfig = state.join("pki/admin.kubeconfig");
        if kubeconfig.exists() {
            std::fs::remove_file(&kubeconfig)?;
        }
        let started = Instant::now();
        let mut child = Killed(command.stdin(Stdio::null()).spawn()?);
        loop {
            anyhow::ensure!(
                started.elapsed() < START_TIMEOUT,
                "the server does not start"
            );
            if let Some(status) = child.0.try_wait()? {
                anyhow::bail!("the server ended: {status}");
            }
            // The file appears by rename, so it is whole.
            if kubeconfig.exists() {
                let credentials = Arc::new(Credentials::read(&kubeconfig)?);
                if let Ok(mut client) = Client::connect(&credentials).await
                    && client.get("/readyz").await?.0 == 200
                {
                    return Ok((Process { child, credentials }, started.elapsed()));
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub fn id(&self) -> u32 {
        let Killed(child) = &self.child;
        child.id()
    }
}
