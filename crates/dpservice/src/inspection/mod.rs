//! The gRPC service `openkcm.dpservice.v1alpha1.Inspection`: looking into a running service without changing anything.
//!
//! It is ours alone and stands beside the control protocol, whose messages stay as they are. [`explain`] tells what would become of a packet.

mod explain;
mod frame;

use crate::worker::{Handle, Stopped};
use proto::inspection::inspection_server::Inspection;
use proto::inspection::{ExplainRequest, ExplainResponse};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Full name of the service.
pub const SERVICE: &str = proto::inspection::inspection_server::SERVICE_NAME;

/// The service.
#[derive(Clone, Debug)]
pub struct Inspector {
    /// Way to the packet threads.
    pub worker: Handle,
    /// Names of the engine's ports, in their order.
    pub devices: Arc<[String]>,
}

impl Inspector {
    fn device(&self, port: dataplane::PortId) -> String {
        self.devices.get(port.index()).cloned().unwrap_or_default()
    }
}

fn stopping(_: Stopped) -> Status {
    Status::unavailable("the service is stopping")
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
}
