//! Status pages over HTTP: routes as HTML, JSON and YAML in the reference's form; peers, metrics and health of our own.
//!
//! No authentication and no encryption: bind it to a management or loopback address.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::debug;

use crate::route::Route;

mod render;

pub(crate) use render::PeerRow;

/// HTTP connections at the same time; more wait.
pub const HTTP_CONNECTIONS_MAX: usize = 64;
/// Large pages in the making at the same time; more wait.
const RENDERINGS_MAX: usize = 2;
/// Route ids read under one lock.
const SNAPSHOT_STEP: u32 = 4096;

/// Shown as `metalbondVersion`.
pub(crate) const PRODUCT_VERSION: &str = concat!("openkcm ", env!("CARGO_PKG_VERSION"));

/// What the pages show.
pub(crate) trait Source: Send + Sync {
    /// Appends routes from position `start` on, examining at most `max`; where to go on.
    fn routes_from(&self, start: u32, max: u32, routes: &mut Vec<Route>) -> Option<u32>;
    /// The connections.
    fn peers(&self) -> Vec<PeerRow>;
    /// The numbers for `/metrics`.
    fn metrics(&self) -> Vec<Metric>;
}

/// One number for `/metrics`.
pub(crate) struct Metric {
    name: &'static str,
    kind: &'static str,
    value: u64,
}

pub(crate) fn gauge(name: &'static str, value: u64) -> Metric {
    Metric {
        name,
        kind: "gauge",
        value,
    }
}

pub(crate) fn counter(name: &'static str, value: u64) -> Metric {
    Metric {
        name,
        kind: "counter",
        value,
    }
}

/// Serves the pages until the returned set is dropped.
pub(crate) fn spawn(listener: TcpListener, source: Arc<dyn Source>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(listener, source));
    tasks
}

async fn serve(listener: TcpListener, source: Arc<dyn Source>) {
    let renderings = Arc::new(Semaphore::new(RENDERINGS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= HTTP_CONNECTIONS_MAX {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!("status page: cannot accept: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                continue;
            }
        };
        let source = Arc::clone(&source);
        let renderings = Arc::clone(&renderings);
        let service = hyper::service::service_fn(move |request| {
            answer(request, Arc::clone(&source), Arc::clone(&renderings))
        });
        connections.spawn(async move {
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                debug!("status page: {error}");
            }
        });
    }
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    source: Arc<dyn Source>,
    renderings: Arc<Semaphore>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(respond(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            String::new(),
        ));
    }
    let (content_type, body) = match request.uri().path() {
        "/healthz" => ("text/plain", "ok\n".to_owned()),
        "/metrics" => ("text/plain; version=0.0.4", metrics_text(&source.metrics())),
        "/peers.json" => ("application/json", render::peers_json(source.peers())),
        path => {
            // The semaphore is never closed.
            let _permit = renderings.acquire().await;
            let routes = snapshot(source.as_ref()).await;
            let date = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
            match path {
                "/routes.json" => ("application/json", render::routes_json(&date, routes)),
                "/routes.yaml" => ("text/yaml", render::routes_yaml(&date, routes)),
                _ => (
                    "text/html; charset=utf-8",
                    render::routes_html(&date, routes),
                ),
            }
        }
    };
    Ok(respond(StatusCode::OK, content_type, body))
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    response
}

/// Reads all routes without holding the table for long; a change during the reading may be seen or not.
async fn snapshot(source: &dyn Source) -> Vec<Route> {
    let mut routes = Vec::new();
    let mut start = Some(0);
    while let Some(from) = start {
        start = source.routes_from(from, SNAPSHOT_STEP, &mut routes);
        tokio::task::yield_now().await;
    }
    routes
}

fn metrics_text(metrics: &[Metric]) -> String {
    let mut text = String::new();
    for Metric { name, kind, value } in metrics {
        let suffix = if *kind == "counter" { "_total" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# TYPE metalbond_{name}{suffix} {kind}");
        let _ = writeln!(text, "metalbond_{name}{suffix} {value}");
    }
    text
}
