//! Prometheus metrics over HTTP: every counter of the engine, the drivers and the packet thread.

use crate::worker::{self, Handle, Stopped};
use anyhow::Context;
use dataplane::{Counters, DropReason, Node, PortId};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Connections served at the same time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 16;
/// How long a client may keep a connection.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PortLabels {
    device: String,
    counter: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabels {
    graph_node: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// All counters, of each packet thread at a moment of its own.
struct Snapshot {
    engines: Vec<Counters>,
    thread: worker::Counters,
    drivers: Vec<(PortId, ports::Counters)>,
    interfaces: usize,
}

impl Snapshot {
    async fn take(worker: &Handle) -> Result<Snapshot, Stopped> {
        let interfaces = worker
            .call(|plane| plane.engine.interfaces().count())
            .await?;
        let threads = worker.inspect(|inspection| {
            (
                inspection.worker.counters().clone(),
                inspection.counters,
                inspection.drivers,
            )
        });
        let mut snapshot = Snapshot {
            engines: Vec::new(),
            thread: worker::Counters::default(),
            drivers: Vec::new(),
            interfaces,
        };
        for (engine, thread, drivers) in threads.await? {
            snapshot.engines.push(engine);
            snapshot.thread.add(thread);
            snapshot.drivers.extend(drivers);
        }
        Ok(snapshot)
    }

    fn sum(&self, value: impl Fn(&Counters) -> u64) -> u64 {
        self.engines.iter().map(value).sum()
    }
}

/// Serves `/metrics` on `listener` until `shutdown`. `devices` are the names of the engine's ports.
///
/// # Errors
/// None after the start; failing connections are their clients' concern.
pub async fn serve(
    listener: TcpListener,
    devices: Vec<String>,
    worker: Handle,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let address = listener
        .local_addr()
        .context("cannot tell the listening address")?;
    tracing::info!(%address, "Metrics are served");
    let devices: Arc<[String]> = devices.into();
    let mut connections = JoinSet::new();
    loop {
        let full = connections.len() >= CONNECTIONS_MAX;
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if !full => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, Arc::clone(&devices), worker.clone()));
                }
            }
        }
    }
}

async fn connection(stream: TcpStream, devices: Arc<[String]>, worker: Handle) {
    let answer = hyper::service::service_fn(|request: Request<Incoming>| {
        respond(request, &devices, &worker)
    });
    let serving =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
    // A client that breaks off or lingers is not our failure.
    let _ = tokio::time::timeout(CONNECTION_TIME_MAX, serving).await;
}

async fn respond(
    request: Request<Incoming>,
    devices: &[String],
    worker: &Handle,
) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    if request.method() != Method::GET || request.uri().path() != "/metrics" {
        return Response::builder()
            .status(StatusCode::NOT_FOUND)
            .body(Full::default());
    }
    let text = match Snapshot::take(worker).await {
        Ok(snapshot) => render(&snapshot, devices),
        Err(_) => Err(std::fmt::Error),
    };
    match text {
        Ok(text) => Response::builder()
            .header(
                "content-type",
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )
            .body(Full::from(text)),
        Err(_) => Response::builder()
            .status(StatusCode::SERVICE_UNAVAILABLE)
            .body(Full::default()),
    }
}

fn render(snapshot: &Snapshot, devices: &[String]) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("dpservice");
    let Snapshot {
        engines: _,
        thread,
        drivers,
        interfaces,
    } = snapshot;
    let nodes = Family::<NodeLabels, Counter>::default();
    for node in Node::ALL {
        nodes
            .get_or_create(&NodeLabels {
                graph_node: node.name(),
            })
            .inc_by(snapshot.sum(|engine| engine.node(*node)));
    }
    registry.register("graph_packets", "Packets that passed a stage", nodes);
    let drops = Family::<ReasonLabels, Counter>::default();
    for reason in DropReason::ALL {
        drops
            .get_or_create(&ReasonLabels {
                reason: reason.name(),
            })
            .inc_by(snapshot.sum(|engine| engine.drops(*reason)));
    }
    registry.register(
        "dropped_packets",
        "Packets discarded by the engine, by reason",
        drops,
    );
    let ports = Family::<PortLabels, Counter>::default();
    for (port, counters) in drivers {
        let device = devices.get(port.index()).cloned().unwrap_or_default();
        for (counter, value) in counters.entries() {
            ports
                .get_or_create(&PortLabels {
                    device: device.clone(),
                    counter,
                })
                .inc_by(value);
        }
    }
    registry.register("port", "What the driver of a port counted", ports);
    let single = [
        (
            "flows_created",
            "Flows created",
            snapshot.sum(|engine| engine.flows_created),
        ),
        (
            "flows_expired",
            "Flows forgotten after their timeout",
            snapshot.sum(|engine| engine.flows_expired),
        ),
        (
            "flows_redecided",
            "Flows decided again after a change",
            snapshot.sum(|engine| engine.flows_redecided),
        ),
        (
            "no_device",
            "Packets for a port without device",
            thread.no_device,
        ),
        (
            "devices_lost",
            "Devices that disappeared",
            thread.devices_lost,
        ),
        ("sleeps", "Times a packet thread slept", thread.sleeps),
        (
            "handed_over",
            "Packets handed to another packet thread",
            thread.handed_over,
        ),
        (
            "hand_over_full",
            "Packets dropped because another packet thread did not keep up",
            thread.hand_over_full,
        ),
        (
            "standby",
            "Packets discarded while another instance works",
            thread.standby,
        ),
        (
            "mirrored",
            "Frames sent to the receiver of a capture",
            thread.mirrored,
        ),
        (
            "mirror_failed",
            "Frames of a capture that could not be sent to its receiver",
            thread.mirror_failed,
        ),
    ];
    for (name, help, value) in single {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    }
    let gauge: Gauge = Gauge::default();
    gauge.set(i64::try_from(*interfaces).unwrap_or(i64::MAX));
    registry.register("interfaces", "Attached interfaces", gauge);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}
