//! Requests of gRPC servers are carried out as a whole.
//!
//! A server drops the work of a request when its client cancels it, waits no longer or dies. What was half done then, an interface without its
//! device or a record on disk that memory does not show, nobody would finish.

use std::future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tower::{Layer, Service};

/// Layer of a server under which every request is worked off by a task of its own, until the answer is there.
#[derive(Clone, Copy, Debug)]
pub struct Whole;

impl<S> Layer<S> for Whole {
    type Service = Worked<S>;

    fn layer(&self, inner: S) -> Worked<S> {
        Worked(inner)
    }
}

/// A service under [`Whole`].
#[derive(Clone, Debug)]
pub struct Worked<S>(S);

impl<S, R> Service<R> for Worked<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this task is to outlive whoever waits for it; it ends with the answer"
    )]
    fn call(&mut self, request: R) -> Self::Future {
        let work = tokio::spawn(self.0.call(request));
        Box::pin(async move {
            match work.await {
                Ok(answer) => answer,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The process ends.
                    Err(_) => future::pending().await,
                },
            }
        })
    }
}
