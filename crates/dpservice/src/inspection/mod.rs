//! The gRPC service `openkcm.dpservice.v1alpha1.Inspection`: looking into a running service without changing anything.
//!
//! It is ours alone and stands beside the control protocol, whose messages stay as they are. [`explain`] tells what would become of a packet,
//! [`rows`] lists tables, [`trace`] tells what becomes of packets.

mod explain;
mod frame;
mod rows;
mod trace;

use crate::worker::{Handle, Stopped};
use dataplane::{EngineConfig, PortKind};
use proto::inspection::inspection_server::Inspection;
use proto::inspection::{
    ExplainRequest, ExplainResponse, ListRowsRequest, ListRowsResponse, TraceRequest,
};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

/// Full name of the service.
pub const SERVICE: &str = proto::inspection::inspection_server::SERVICE_NAME;
/// Traces at the same time. Each makes the packet threads slower.
const TRACES_MAX: usize = 1;

/// The service.
#[derive(Clone, Debug)]
pub struct Inspector {
    worker: Handle,
    /// Names and kinds of the engine's ports, in their order.
    devices: Arc<[String]>,
    kinds: Arc<[PortKind]>,
    traces: Arc<Semaphore>,
}

impl Inspector {
    /// An inspector of packet threads that were started with `config`.
    #[must_use]
    pub fn new(config: &EngineConfig, worker: Handle) -> Inspector {
        let ports = config.ports.iter();
        Inspector {
            worker,
            devices: ports.clone().map(|port| port.name.clone()).collect(),
            kinds: ports.map(|port| port.kind).collect(),
            traces: Arc::new(Semaphore::new(TRACES_MAX)),
        }
    }

    fn device(&self, port: dataplane::PortId) -> String {
        self.devices.get(port.index()).cloned().unwrap_or_default()
    }
}

fn stopping(_: Stopped) -> Status {
    Status::unavailable("the service is stopping")
}

fn invalid(what: &str) -> Status {
    Status::invalid_argument(format!("Invalid {what}"))
}

#[tonic::async_trait]
impl Inspection for Inspector {
    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let explained = explain::explain(self, request.into_inner()).await?;
        Ok(Response::new(explained))
    }

    async fn list_rows(
        &self,
        request: Request<ListRowsRequest>,
    ) -> Result<Response<ListRowsResponse>, Status> {
        let listed = rows::list(self, request.into_inner()).await?;
        Ok(Response::new(listed))
    }

    type TraceStream = trace::Events;

    async fn trace(
        &self,
        request: Request<TraceRequest>,
    ) -> Result<Response<Self::TraceStream>, Status> {
        let events = trace::start(self, request.into_inner()).await?;
        Ok(Response::new(events))
    }
}
