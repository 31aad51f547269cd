//! A dpservice that takes calls and never answers: every wait for it ends.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::http::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use metalnet::agent::Input;
use metalnet::dpservice as shell;
use metalnet::plan::ops::{DpError, DpOp};
use proto::dpdk::{CheckInitializedResponse, dpd_kironcore_client::DpdKironcoreClient};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Far beyond the time of a call, even on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A server that keeps its connections alive but answers only the first `answers` calls.
struct Server {
    address: SocketAddr,
    calls: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

async fn server(answers: usize) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let calls = Arc::<AtomicUsize>::default();
    let counter = calls.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let counter = counter.clone();
            let answer = service_fn(move |_: Request<hyper::body::Incoming>| {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                async move {
                    if number >= answers {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, Infallible>(initialized())
                }
            });
            connections.spawn(async move {
                let io = TokioIo::new(stream);
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                // A client that gives up closes the connection; that is its right.
                let _ = http.serve_connection(io, answer).await;
            });
        }
    });
    Server {
        address,
        calls,
        _tasks: tasks,
    }
}

/// The answer of an instance to CheckInitialized.
fn initialized() -> Response<BoxBody<Bytes, Infallible>> {
    let reply = CheckInitializedResponse {
        uuid: "i".to_owned(),
        ..CheckInitializedResponse::default()
    };
    let message = prost::Message::encode_to_vec(&reply);
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    let trailers = HeaderMap::from_iter([(
        hyper::http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let body = Full::new(Bytes::from(frame)).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    response
}

/// Follows the instance as the agent does.
fn supervise(server: &Server) -> (mpsc::Receiver<Input>, JoinSet<()>) {
    let (current, service) = shell::channel();
    let (inputs, seen) = mpsc::channel(16);
    let endpoint = shell::endpoint(&server.address.to_string()).unwrap();
    let mut tasks = JoinSet::new();
    let bell = service.bell();
    let stop = CancellationToken::new();
    tasks.spawn(async move {
        let _held = service;
        shell::supervise(endpoint, current, bell, inputs, stop).await;
    });
    (seen, tasks)
}

#[tokio::test]
async fn a_call_that_nobody_answers_is_lost_after_its_time() {
    let server = server(0).await;
    let (current, service) = shell::channel();
    let endpoint = shell::endpoint(&server.address.to_string()).unwrap();
    current.send_replace(Some(DpdKironcoreClient::new(endpoint.connect_lazy())));
    for op in [DpOp::Initialize, DpOp::List] {
        let started = Instant::now();
        let answer = tokio::time::timeout(DEADLINE, service.call(&op)).await;
        let answer = answer.expect("the call ends");
        assert!(matches!(answer, Err(DpError::Unavailable(_))), "{answer:?}");
        let took = started.elapsed();
        assert!(
            took >= shell::CALL_TIMEOUT,
            "a slow answer counts: {took:?}"
        );
    }
}

#[tokio::test]
async fn an_instance_that_never_answers_is_asked_again_and_not_believed_alive() {
    let server = server(0).await;
    let (mut seen, _tasks) = supervise(&server);
    let deadline = Instant::now() + DEADLINE;
    while server.calls.load(Ordering::SeqCst) < 2 {
        assert!(Instant::now() < deadline, "asked once and never again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(seen.try_recv().is_err(), "nothing is known of it");
}

#[tokio::test]
async fn an_instance_that_stops_answering_counts_as_gone() {
    let server = server(1).await;
    let (mut seen, _tasks) = supervise(&server);
    let mut next = async || tokio::time::timeout(DEADLINE, seen.recv()).await.unwrap();
    let up = next().await;
    assert!(
        matches!(&up, Some(Input::DpUp { instance: Some(id) }) if id == "i"),
        "{up:?}"
    );
    let down = next().await;
    assert!(matches!(down, Some(Input::DpDown)), "{down:?}");
}
