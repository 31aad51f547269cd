//! Reads one page of a part's status server.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a part may take to begin its answer. The kernel still takes connections for one that was stopped.
pub const BEGIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest page that is read: about a million routes.
const PAGE_BYTES_MAX: usize = 512 << 20;

/// Asks for `path` over a fresh connection to `host`, and closes it.
///
/// # Errors
/// The part does not begin to answer in time, breaks off, refuses, or says too much.
pub async fn fetch(stream: TcpStream, host: &str, path: &str) -> Result<Vec<u8>> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = hyper::Request::get(path)
        .header("host", host)
        .body(Empty::<&[u8]>::new())?;
    let exchange = async move {
        let begun = timeout(BEGIN_TIMEOUT, sender.send_request(request)).await;
        let response =
            begun.with_context(|| format!("no answer within {} s", BEGIN_TIMEOUT.as_secs()))??;
        if !response.status().is_success() {
            bail!("{path}: {}", response.status());
        }
        let body = Limited::new(response.into_body(), PAGE_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("{path}: {error}"))?;
        Ok(body.to_bytes().to_vec())
    };
    tokio::pin!(exchange, connection);
    // The connection moves the bytes; it ends by itself, and before us only if the part hangs up.
    tokio::select! {
        body = &mut exchange => body,
        _ = &mut connection => exchange.await,
    }
}
