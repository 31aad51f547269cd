//! HTTP bodies and answers: what goes over the wire, in which form, how large.

use crate::status::{Failure, Outcome};
use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Largest request body in bytes.
pub const BODY_BYTES_MAX: usize = 3 << 20;
/// Most of a refused body that is read and thrown away before the refusal is sent.
const DISCARD_BYTES_MAX: usize = 32 << 20;
/// Longest time spent on that.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);
/// Answers larger than this are compressed when the client asks for it. Watches never are.
pub const GZIP_BYTES_MIN: usize = 128 << 10;

/// Chunks of a watch.
pub type Chunks = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// An answer's body.
pub enum Body {
    Full(Option<Bytes>),
    Stream(Chunks),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Body::Full(bytes) => f
                .debug_tuple("Full")
                .field(&bytes.as_ref().map(Bytes::len))
                .finish(),
            Body::Stream(_) => f.write_str("Stream"),
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Body::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Stream(chunks) => chunks
                .as_mut()
                .poll_next(context)
                .map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Body::Stream(_) => SizeHint::default(),
        }
    }
}

/// An answer before it becomes HTTP.
#[derive(Debug)]
pub struct Reply {
    pub code: StatusCode,
    pub content_type: HeaderValue,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Body,
}

/// The content type of almost everything.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

impl Reply {
    pub fn new(code: StatusCode, content_type: HeaderValue, body: Bytes) -> Reply {
        Reply {
            code,
            content_type,
            headers: Vec::new(),
            body: Body::Full(Some(body)),
        }
    }

    pub fn json(code: StatusCode, body: impl Into<Bytes>) -> Reply {
        Reply::new(code, JSON, body.into())
    }

    pub fn value(code: StatusCode, value: &serde_json::Value) -> Reply {
        Reply::json(code, value.to_string())
    }

    pub fn text(code: StatusCode, text: impl Into<Bytes>) -> Reply {
        Reply::new(
            code,
            HeaderValue::from_static("text/plain; charset=utf-8"),
            text.into(),
        )
    }

    pub fn stream(content_type: HeaderValue, chunks: Chunks) -> Reply {
        Reply {
            code: StatusCode::OK,
            content_type,
            headers: Vec::new(),
            body: Body::Stream(chunks),
        }
    }

    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Reply {
        self.headers.push((name, value));
        self
    }

    /// Adds one `Warning` header per text, as far as they fit.
    #[must_use]
    pub fn warn(mut self, warnings: &[String]) -> Reply {
        /// Bytes of all warnings together.
        const WARNING_BYTES_MAX: usize = 4 << 10;
        let mut left = WARNING_BYTES_MAX;
        for warning in warnings {
            let quoted: String = warning
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .flat_map(|c| {
                    matches!(c, '"' | '\\')
                        .then_some('\\')
                        .into_iter()
                        .chain([c])
                })
                .collect();
            let text = format!("299 - \"{quoted}\"");
            let Some(rest) = left.checked_sub(text.len()) else {
                break;
            };
            if let Ok(value) = HeaderValue::from_str(&text) {
                self.headers.push((header::WARNING, value));
                left = rest;
            }
        }
        self
    }

    /// The HTTP answer, compressed when that pays.
    pub fn into_response(self, gzip: bool) -> Response<Body> {
        let Reply {
            code,
            content_type,
            headers,
            body,
        } = self;
        let (body, compressed) = match body {
            Body::Full(Some(bytes)) if gzip && bytes.len() > GZIP_BYTES_MIN => {
                match deflate(&bytes) {
                    Some(small) => (Body::Full(Some(small)), true),
                    None => (Body::Full(Some(bytes)), false),
                }
            }
            body => (body, false),
        };
        let mut response = Response::new(body);
        *response.status_mut() = code;
        let map = response.headers_mut();
        map.insert(header::CONTENT_TYPE, content_type);
        map.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, private"),
        );
        if compressed {
            map.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        for (name, value) in headers {
            match name {
                header::WARNING => map.append(name, value),
                name => map.insert(name, value).is_some(),
            };
        }
        response
    }
}

impl From<Failure> for Reply {
    fn from(failure: Failure) -> Reply {
        let code = StatusCode::from_u16(failure.reason.code()).unwrap_or_default();
        let reply = Reply::value(code, &failure.to_status());
        match (failure.details.retry_after_s, code) {
            (0, StatusCode::UNAUTHORIZED) => reply.with(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"openkcm\""),
            ),
            (0, _) => reply,
            (seconds, _) => reply.with(header::RETRY_AFTER, HeaderValue::from(seconds)),
        }
    }
}

fn deflate(bytes: &[u8]) -> Option<Bytes> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

/// Whether the client takes gzip.
pub fn takes_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|encoding| {
            let mut parts = encoding.split(';').map(str::trim);
            parts.next() == Some("gzip") && parts.next() != Some("q=0")
        })
}

/// Reads a whole body, refusing more than [`BODY_BYTES_MAX`].
pub async fn read_body(mut body: Incoming) -> Outcome<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Failure::bad_request(format!("cannot read the body: {error}")))?;
        if let Ok(data) = frame.into_data() {
            if whole.len() + data.len() > BODY_BYTES_MAX {
                drop(whole);
                let _ = tokio::time::timeout(DISCARD_TIME_MAX, discard(body)).await;
                return Err(Failure::too_large(BODY_BYTES_MAX));
            }
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole.freeze())
}

/// Reads what is left of a refused body, up to [`DISCARD_BYTES_MAX`]: a connection closed on bytes
/// that nobody read is reset, and the client would see the reset in place of the answer.
async fn discard(mut body: Incoming) {
    let mut discarded = 0;
    while discarded < DISCARD_BYTES_MAX {
        match body.frame().await {
            Some(Ok(frame)) => discarded += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) | None => return,
        }
    }
}
