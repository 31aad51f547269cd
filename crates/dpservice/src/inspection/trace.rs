//! The live trace: turns what packet threads tell into a stream of messages.

use super::explain::show_tuple;
use super::{Inspector, invalid, stopping};
use crate::worker::Plane;
use crate::worker::trace::{FRAME_BYTES_MAX, TraceFilter, Traced, Tracer};
use dataplane::{Node, PortKind, Verdict};
use futures::Stream;
use proto::inspection::verdict::Kind;
use proto::inspection::{self, TraceEvent, TraceRequest};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tonic::Status;

/// Packets of a trace unless its request says otherwise, and at most.
const COUNT: u32 = 100;
const COUNT_MAX: u32 = 100_000;
/// The same for its duration in seconds.
const SECONDS: u32 = 60;
const SECONDS_MAX: u32 = 3_600;

/// The messages of a trace.
pub(super) type Events = Pin<Box<dyn Stream<Item = Result<TraceEvent, Status>> + Send>>;

/// A running trace.
struct Running {
    tracer: Arc<Tracer>,
    traced: mpsc::Receiver<Traced>,
    inspector: Inspector,
    /// Interface ids by port at the start.
    ports: BTreeMap<u16, String>,
    number: u64,
    count: u64,
    end: Instant,
    _only: OwnedSemaphorePermit,
}

pub(super) async fn start(inspector: &Inspector, request: TraceRequest) -> Result<Events, Status> {
    let only = Arc::clone(&inspector.traces)
        .try_acquire_owned()
        .map_err(|_| Status::resource_exhausted("another trace is running"))?;
    let limit = |value: u32, default: u32, max: u32| match value {
        0 => default,
        value => value.min(max),
    };
    let count = limit(request.count, COUNT, COUNT_MAX);
    let seconds = limit(request.seconds, SECONDS, SECONDS_MAX);
    let prepared = inspector.worker.call(move |plane| {
        let filter = filter(plane, request)?;
        let ids = plane.engine.interfaces().map(|interface| {
            let id = interface.spec.id.clone();
            (interface.port.0, id)
        });
        Ok::<_, Status>((filter, ids.collect::<BTreeMap<_, _>>()))
    });
    let (filter, ports) = prepared.await.map_err(stopping)??;
    let (tracer, traced) = Tracer::new(filter);
    let tracer = Arc::new(tracer);
    inspector
        .worker
        .trace(Arc::clone(&tracer))
        .await
        .map_err(stopping)?;
    let running = Running {
        tracer,
        traced,
        inspector: inspector.clone(),
        ports,
        number: 0,
        count: u64::from(count),
        end: Instant::now() + Duration::from_secs(u64::from(seconds)),
        _only: only,
    };
    let events = futures::stream::unfold(running, |mut running| async move {
        let event = running.next().await?;
        Some((Ok(event), running))
    });
    Ok(Box::pin(events))
}

fn filter(plane: &Plane, request: TraceRequest) -> Result<TraceFilter, Status> {
    let TraceRequest {
        interface_id,
        address,
        port,
        protocol,
        drops,
        count: _,
        seconds: _,
        frame_bytes,
    } = request;
    let machine = if interface_id.is_empty() {
        None
    } else {
        let found = plane.engine.interface(&interface_id);
        let missing = |_| Status::not_found(format!("There is no interface {interface_id}"));
        let port = found.map_err(missing)?.port;
        let endpoints = plane.engine.endpoints().into_iter();
        let own = endpoints.filter(|row| row.port == port);
        Some((port, own.map(|row| row.underlay).collect()))
    };
    Ok(TraceFilter {
        machine,
        address: match address.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| invalid("address"))?),
        },
        port: match port {
            0 => None,
            port => Some(u16::try_from(port).map_err(|_| invalid("port"))?),
        },
        protocol: match protocol {
            0 => None,
            protocol => Some(u8::try_from(protocol).map_err(|_| invalid("protocol"))?),
        },
        drops,
        frame_bytes: usize::try_from(frame_bytes)
            .unwrap_or(FRAME_BYTES_MAX)
            .min(FRAME_BYTES_MAX),
    })
}

impl Running {
    async fn next(&mut self) -> Option<TraceEvent> {
        if self.number >= self.count {
            return None;
        }
        let waiting = tokio::time::timeout_at(self.end, self.traced.recv());
        let traced = waiting.await.ok()??;
        self.number += 1;
        Some(self.show(traced))
    }

    fn show(&self, traced: Traced) -> TraceEvent {
        let Traced {
            time,
            ingress,
            shows,
            underlay,
            length,
            frame,
            stages,
            verdict,
            length_after,
            frame_after,
        } = traced;
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        TraceEvent {
            time_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
            number: self.number,
            lost: self.tracer.lost(),
            ingress: self.inspector.device(ingress),
            verdict: Some(self.show_verdict(verdict, &stages)),
            stages: stages.iter().map(|node| node.name().to_owned()).collect(),
            shows: shows.map(show_tuple),
            underlay: underlay.map_or_else(String::new, |underlay| underlay.to_string()),
            length: u32::try_from(length).unwrap_or(u32::MAX),
            frame,
            length_after: u32::try_from(length_after).unwrap_or(u32::MAX),
            frame_after,
        }
    }

    fn show_verdict(&self, verdict: Verdict, stages: &[Node]) -> inspection::Verdict {
        let mut shown = inspection::Verdict::default();
        let port = match verdict {
            Verdict::Drop(reason) => {
                shown.reason = reason.name().to_owned();
                return shown;
            }
            Verdict::Reply(port) => {
                shown.set_kind(Kind::Reply);
                port
            }
            Verdict::Transmit(port) => {
                let is_machine = self.inspector.kinds.get(port.index()) == Some(&PortKind::Machine);
                let is_encapsulated =
                    stages.contains(&Node::IpipEncap) || stages.contains(&Node::FlowCache);
                shown.set_kind(match (is_machine, is_encapsulated) {
                    (true, _) => Kind::Deliver,
                    (false, true) => Kind::Encapsulate,
                    (false, false) => Kind::Transmit,
                });
                port
            }
        };
        shown.device = self.inspector.device(port);
        shown.interface_id = self.ports.get(&port.0).cloned().unwrap_or_default();
        shown
    }
}
