//! `grpc.health.v1.Health`: whether the server listens. It depends neither on Initialize nor on any interface.

use futures::Stream;
use std::pin::Pin;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};

/// Life of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// Requests are answered.
    Listening,
    /// A shutdown was asked for; watchers are told and sent away.
    Stopping,
}

/// The health service. Clone the receiver's side per server; the owner of the sender announces changes.
#[derive(Clone, Debug)]
pub struct Health(pub watch::Receiver<Serving>);

fn reply(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

fn current(serving: Serving) -> HealthCheckResponse {
    reply(match serving {
        Serving::Stopping => ServingStatus::NotServing,
        Serving::Listening => ServingStatus::Serving,
    })
}

fn is_known(service: &str) -> bool {
    service.is_empty() || service == super::SERVICE
}

enum Watching {
    First,
    Changes,
    Ended,
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let answer = if is_known(&request.get_ref().service) {
            current(*self.0.borrow())
        } else {
            reply(ServingStatus::ServiceUnknown)
        };
        Ok(Response::new(answer))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// The status at once, then only changes; ends with CANCELLED when the server stops.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !is_known(&request.get_ref().service) {
            return Err(Status::not_found("Service not found"));
        }
        let start = (self.0.clone(), Watching::First);
        let stream = futures::stream::unfold(start, |(mut serving, watching)| async move {
            match watching {
                Watching::Ended => return None,
                Watching::First => {}
                Watching::Changes => {
                    let stopping = *serving.borrow() == Serving::Stopping;
                    if stopping || serving.changed().await.is_err() {
                        let end = Err(Status::cancelled("the server is stopping"));
                        return Some((end, (serving, Watching::Ended)));
                    }
                }
            }
            let item = Ok(current(*serving.borrow_and_update()));
            Some((item, (serving, Watching::Changes)))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
