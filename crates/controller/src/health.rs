//! The optional plain-HTTP listener of a part: `/livez`, `/healthz`, `/readyz` and `/metrics`. It is off unless an address is
//! given, and serves nothing else but the pages that a part adds.
//!
//! Checks have names, and the pages speak as those of Kubernetes do: `ok`, or with `?verbose` and whenever something fails
//! one line per check. `/livez` holds what only a restart can cure and is the page for liveness probes; `/healthz` adds the
//! services that the part depends on, `/readyz` also whether its caches are complete. `/healthz/NAME` asks one check alone.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
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

type Ask = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

struct Check {
    name: String,
    /// Whether a failure means that this process needs a restart.
    own: bool,
    ask: Ask,
}

type Render = Arc<dyn Fn(&mut String) + Send + Sync>;

/// Shared state of the listener. `Default` is alive, not ready.
#[derive(Default)]
pub struct Health {
    ready: AtomicBool,
    checks: Mutex<Vec<Check>>,
    renders: Mutex<Vec<Render>>,
    pages: Mutex<BTreeMap<&'static str, Render>>,
}

impl Health {
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// A condition of all pages: a failure asks the supervisor for a restart.
    pub fn add_check(
        &self,
        name: impl Into<String>,
        ask: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        self.add(name.into(), true, Arc::new(ask));
    }

    /// A condition of `/healthz` and `/readyz`: something that the part needs and a restart of the part does not bring back.
    pub fn add_dependency(
        &self,
        name: impl Into<String>,
        ask: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        self.add(name.into(), false, Arc::new(ask));
    }

    fn add(&self, name: String, own: bool, ask: Ask) {
        lock(&self.checks).push(Check { name, own, ask });
    }

    /// Further text for `/metrics`.
    pub fn add_metrics(&self, render: impl Fn(&mut String) + Send + Sync + 'static) {
        lock(&self.renders).push(Arc::new(render));
    }

    /// A further page, `name` without the leading slash.
    pub fn add_page(
        &self,
        name: &'static str,
        render: impl Fn(&mut String) + Send + Sync + 'static,
    ) {
        lock(&self.pages).insert(name, Arc::new(render));
    }

    pub(crate) fn watch<'a>(
        &self,
        part: String,
        watches: &BTreeMap<String, (Arc<Store>, Arc<WatchMetrics>)>,
        controllers: impl Iterator<Item = (&'a str, Arc<ControllerMetrics>, Arc<Queue>)>,
    ) {
        for (store, metrics) in watches.values() {
            let metrics = metrics.clone();
            let name = format!("watch-{}", store.kind.kind.to_lowercase());
            self.add_dependency(name, move || metrics.pulse.check());
        }
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

    /// The page for a path and query.
    pub fn answer(&self, path: &str, query: &str) -> (StatusCode, String) {
        let verbose = query
            .split('&')
            .any(|pair| pair.split('=').next() == Some("verbose"));
        let (page, one) = match path.trim_start_matches('/').split_once('/') {
            Some((page, one)) => (page, Some(one)),
            None => (path.trim_start_matches('/'), None),
        };
        match (page, one) {
            ("livez" | "healthz" | "readyz", _) => self.checked(page, one, verbose),
            ("metrics", None) => {
                let mut out = String::new();
                for render in lock(&self.renders).iter() {
                    render(&mut out);
                }
                (StatusCode::OK, out)
            }
            (name, None) => match lock(&self.pages).get(name) {
                Some(render) => {
                    let mut out = String::new();
                    render(&mut out);
                    (StatusCode::OK, out)
                }
                None => (StatusCode::NOT_FOUND, "not found".to_owned()),
            },
            (_, Some(_)) => (StatusCode::NOT_FOUND, "not found".to_owned()),
        }
    }

    fn checked(&self, page: &str, one: Option<&str>, verbose: bool) -> (StatusCode, String) {
        let mut results = vec![("ping".to_owned(), Ok(()))];
        if page == "readyz" {
            let ready = self.ready.load(Ordering::Relaxed);
            let caches = ready.then_some(()).ok_or("not complete".to_owned());
            results.push(("caches".to_owned(), caches));
        }
        let checks = lock(&self.checks);
        let asked = checks.iter().filter(|check| check.own || page != "livez");
        results.extend(asked.map(|check| (check.name.clone(), (check.ask)())));
        drop(checks);
        if let Some(one) = one {
            results.retain(|(name, _)| name == one);
            if results.is_empty() {
                return (StatusCode::NOT_FOUND, "not found".to_owned());
            }
        }
        let well = results.iter().all(|(_, result)| result.is_ok());
        if well && !verbose {
            return (StatusCode::OK, "ok".to_owned());
        }
        let mut text = String::new();
        for (name, result) in results {
            text.push_str(&match result {
                Ok(()) => format!("[+]{name} ok\n"),
                Err(why) => format!("[-]{name} failed: {why}\n"),
            });
        }
        let (status, verdict) = match well {
            true => (StatusCode::OK, "passed"),
            false => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
        };
        text.push_str(&format!("{page} check {verdict}\n"));
        (status, text)
    }
}

/// A failure younger than this is not reported: connections that break and come back at once are no news.
pub const PULSE_GRACE: Duration = Duration::from_secs(1);
/// A failure that has not been repeated for this long has healed: who fails tries again much sooner.
pub const PULSE_HEALED_AFTER: Duration = Duration::from_secs(5);

/// Whether a conversation with a service that is repeated for ever (a watch, a probe) goes well.
#[derive(Debug, Default)]
pub struct Pulse(Mutex<Beat>);

#[derive(Debug, Default)]
struct Beat {
    /// First and last failure since the last success, and the reason.
    failing: Option<(Instant, Instant, String)>,
}

impl Pulse {
    /// Something came.
    pub fn well(&self) {
        lock(&self.0).failing = None;
    }

    /// It broke, or could not be set up.
    pub fn failed(&self, why: String) {
        let now = Instant::now();
        let mut beat = lock(&self.0);
        let first = beat.failing.as_ref().map_or(now, |(first, ..)| *first);
        beat.failing = Some((first, now, why));
    }

    /// Fails while failures repeat. A watch says nothing while nothing changes, so silence after a failure is health.
    pub fn check(&self) -> Result<(), String> {
        let beat = lock(&self.0);
        let Some((first, last, why)) = &beat.failing else {
            return Ok(());
        };
        if first.elapsed() < PULSE_GRACE || last.elapsed() >= PULSE_HEALED_AFTER {
            return Ok(());
        }
        Err(format!("for {} s: {why}", first.elapsed().as_secs()))
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
                let (status, text) = health.answer(
                    request.uri().path(),
                    request.uri().query().unwrap_or_default(),
                );
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
