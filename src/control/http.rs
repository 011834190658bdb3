//! HTTP as both listeners of the daemon speak it: so many connections and no more, requests of a bounded size that must
//! come in time, and answers in JSON. Which requests there are is in `server` (Unix socket) and `listener` (TCP).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Refusal;

const MAXIMUM_REQUEST_BYTES: usize = 64 * 1024;
/// Of a request's head, and of what is read ahead.
const MAXIMUM_HEAD_BYTES: usize = 16 * 1024;
const MAXIMUM_HEADERS: usize = 64;
const HEADER_PATIENCE: Duration = Duration::from_secs(10);
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// Before a failed accept is tried again, for example when there are no file descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What connections are bounded by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For the log.
    pub name: &'static str,
    /// At one time; further ones wait.
    pub connections: usize,
    pub lifetime: Lifetime,
}

/// How long a connection may last.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lifetime {
    /// As long as its other side wants: it may follow events.
    Open,
    /// One request, answered and taken within this time.
    OneRequest(Duration),
}

/// Something that hands out connections.
pub(super) trait Accept {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn next(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn next(&self) -> std::io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

impl Accept for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> std::io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

/// Answers until dropped. Connections end with it: after a reload nothing may go on with the keys of before.
pub(super) async fn serve<A, F, R>(accept: &A, limits: Limits, answer: F)
where
    A: Accept,
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match accept.next().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!("{}: {error}", limits.name);
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let answer = answer.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_PATIENCE)
                .max_headers(MAXIMUM_HEADERS)
                .max_buf_size(MAXIMUM_HEAD_BYTES)
                .keep_alive(matches!(limits.lifetime, Lifetime::Open))
                .serve_connection(TokioIo::new(stream), service);
            let ended = match limits.lifetime {
                Lifetime::Open => connection.await,
                // Who does not read the answer must not hold a place for ever.
                Lifetime::OneRequest(patience) => tokio::time::timeout(patience, connection).await.unwrap_or(Ok(())),
            };
            if let Err(error) = ended {
                tracing::debug!("{}: {error}", limits.name);
            }
            drop(place);
        });
    }
}

pub(super) fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    full(status, serde_json::to_vec(value).unwrap_or_default(), "application/json")
}

pub(super) fn full(status: StatusCode, content: Vec<u8>, kind: &'static str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(content)).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub(super) fn refuse(status: StatusCode, error: impl Into<String>) -> Response<Body> {
    json(status, &Refusal { error: error.into() })
}

/// The JSON document that a request carries.
pub(super) async fn body<T: serde::de::DeserializeOwned>(request: Request<Incoming>) -> Result<T, Response<Body>> {
    let read = Limited::new(request.into_body(), MAXIMUM_REQUEST_BYTES).collect();
    let Ok(read) = tokio::time::timeout(BODY_PATIENCE, read).await else {
        return Err(refuse(StatusCode::REQUEST_TIMEOUT, "the request did not come to its end in time"));
    };
    let bytes = read.map_err(|error| {
        if error.is::<LengthLimitError>() {
            let message = format!("the request is larger than {MAXIMUM_REQUEST_BYTES} bytes");
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, message);
        }
        refuse(StatusCode::BAD_REQUEST, error.to_string())
    })?;
    serde_json::from_slice(&bytes.to_bytes())
        .map_err(|error| refuse(StatusCode::BAD_REQUEST, format!("the request can't be read as JSON: {error}")))
}
