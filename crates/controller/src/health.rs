//! The optional plain-HTTP listener of a part: `/healthz`, `/livez` (alive), `/readyz` (caches complete, all checks pass) and
//! `/metrics`. It is off unless an address is given, and serves nothing else.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::{ControllerMetrics, WatchMetrics},
    queue::Queue,
    store::Store,
};

/// Probe connections served at a time.
pub const PROBES_MAX: usize = 64;

type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;
type Render = Arc<dyn Fn(&mut String) + Send + Sync>;

/// Shared state of the listener. `Default` is alive, not ready.
#[derive(Default)]
pub struct Health {
    ready: AtomicBool,
    checks: Mutex<Vec<(&'static str, Check)>>,
    renders: Mutex<Vec<Render>>,
}

impl Health {
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// A condition of `/healthz`: a failure asks the supervisor for a restart.
    pub fn add_check(
        &self,
        name: &'static str,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        lock(&self.checks).push((name, Arc::new(check)));
    }

    /// Further text for `/metrics`.
    pub fn add_metrics(&self, render: impl Fn(&mut String) + Send + Sync + 'static) {
        lock(&self.renders).push(Arc::new(render));
    }

    pub(crate) fn watch<'a>(
        &self,
        part: String,
        watches: &BTreeMap<String, (Arc<Store>, Arc<WatchMetrics>)>,
        controllers: impl Iterator<Item = (&'a str, Arc<ControllerMetrics>, Arc<Queue>)>,
    ) {
        let watches: Vec<_> = watches.values().cloned().collect();
        let controllers: Vec<_> = controllers
            .map(|(name, metrics, queue)| (name.to_owned(), metrics, queue))
            .collect();
        self.add_metrics(move |out| {
            for (store, metrics) in &watches {
                metrics.render(out, &part, &store.kind.kind, store.len());
            }
            for (name, metrics, queue) in &controllers {
                metrics.render(out, &part, name);
                let (ready, delayed) = queue.depth();
                let labels = format!("part=\"{part}\",controller=\"{name}\"");
                out.push_str(&format!(
                    "openkcm_controller_queue_keys{{{labels}}} {ready}\n"
                ));
                out.push_str(&format!(
                    "openkcm_controller_delayed_keys{{{labels}}} {delayed}\n"
                ));
                let overflows = queue.overflows();
                out.push_str(&format!(
                    "openkcm_controller_queue_overflows_total{{{labels}}} {overflows}\n"
                ));
            }
        });
    }

    fn answer(&self, path: &str) -> (StatusCode, String) {
        match path {
            "/healthz" | "/livez" => self.checked(),
            "/readyz" if self.ready.load(Ordering::Relaxed) => self.checked(),
            "/readyz" => (
                StatusCode::SERVICE_UNAVAILABLE,
                "caches are not complete".to_owned(),
            ),
            "/metrics" => {
                let mut out = String::new();
                for render in lock(&self.renders).iter() {
                    render(&mut out);
                }
                (StatusCode::OK, out)
            }
            _ => (StatusCode::NOT_FOUND, "not found".to_owned()),
        }
    }

    fn checked(&self) -> (StatusCode, String) {
        for (name, check) in lock(&self.checks).iter() {
            if let Err(why) = check() {
                return (StatusCode::INTERNAL_SERVER_ERROR, format!("{name}: {why}"));
            }
        }
        (StatusCode::OK, "ok".to_owned())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves until shutdown. `address` is `0` for "off", `:PORT` for all addresses, or an address with port.
pub async fn serve(
    address: &str,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    if address.is_empty() || address == "0" {
        shutdown.cancelled().await;
        return Ok(());
    }
    let parsed: SocketAddr = match address.strip_prefix(':') {
        Some(port) => format!("[::]:{port}").parse(),
        None => address.parse(),
    }
    .with_context(|| format!("--health-probe-bind-address {address:?}"))?;
    let listener = TcpListener::bind(parsed)
        .await
        .with_context(|| format!("health probes on {parsed}"))?;
    let mut probes = JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted.context("health probes")?,
            () = shutdown.cancelled() => return Ok(()),
        };
        while probes.len() >= PROBES_MAX && probes.join_next().await.is_some() {}
        let health = health.clone();
        probes.spawn(async move {
            let service = service_fn(|request: Request<hyper::body::Incoming>| {
                let (status, text) = health.answer(request.uri().path());
                let mut response = Response::new(Full::new(Bytes::from(text)));
                *response.status_mut() = status;
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(err = %error, "probe connection");
            }
        });
    }
}
