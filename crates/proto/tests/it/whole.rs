//! What a client does not wait for is done nevertheless.

use proto::whole::Whole;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tower::{Layer, Service, service_fn};

#[tokio::test]
async fn a_request_ends_without_its_client() {
    let (finish, finished) = oneshot::channel::<()>();
    let (tell, mut told) = mpsc::channel(1);
    let mut finished = Some(finished);
    let mut server = Whole.layer(service_fn(move |request: &'static str| {
        let (finished, tell) = (finished.take().unwrap(), tell.clone());
        async move {
            finished.await.unwrap();
            tell.send(request).await.unwrap();
            Ok::<_, Infallible>(())
        }
    }));
    let call = server.call("a request");
    tokio::time::timeout(Duration::from_millis(1), call)
        .await
        .unwrap_err();
    finish.send(()).unwrap();
    let done = tokio::time::timeout(Duration::from_secs(20), told.recv()).await;
    assert_eq!(done, Ok(Some("a request")));
}
