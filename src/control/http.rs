//! HTTP as both listeners of the daemon speak it: so many connections and no more, of which the slow give way, requests of a
//! bounded size that must come in time, and answers in JSON. Which requests there are is in `server` (Unix socket) and `listener` (TCP).

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::task::{AbortHandle, JoinSet};

use super::Refusal;
use super::accept::{Accept, Acceptor, Peer, Taken};
use super::places::{Places, Progress, Stage, Standing, Verdict};

const MAXIMUM_REQUEST_BYTES: usize = 64 * 1024;
/// Of a request's head, and of what is read ahead.
const MAXIMUM_HEAD_BYTES: usize = 16 * 1024;
const MAXIMUM_HEADERS: usize = 64;
const HEADER_PATIENCE: Duration = Duration::from_secs(10);
const BODY_PATIENCE: Duration = Duration::from_secs(10);
const TURNED_AWAY_WITHIN: Duration = Duration::from_secs(1);

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What connections are bounded by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For the log.
    pub name: &'static str,
    pub places: Places,
    /// File descriptors that are kept for when there are no others.
    pub reserve: usize,
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

/// Answers until dropped. Connections end with it: after a reload nothing may go on with the keys of before.
pub(super) async fn serve<A, F, R>(accept: &A, limits: Limits, answer: F)
where
    A: Accept,
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let mut acceptor = Acceptor::new(accept, limits.name, limits.reserve);
    let mut open = Open::default();
    loop {
        let taken = acceptor.next().await;
        open.forget_ended();
        match limits.places.admit(&open.standings(), taken.peer.address) {
            Verdict::Room => {}
            Verdict::InPlaceOf(slow) => open.close(slow),
            Verdict::Full => {
                open.tasks.spawn(turn_away(taken.stream));
                continue;
            }
        }
        open.add(taken, limits, answer.clone());
    }
}

/// The connections, oldest first.
#[derive(Default)]
struct Open {
    tasks: JoinSet<()>,
    connections: Vec<Connection>,
}

struct Connection {
    task: AbortHandle,
    address: Option<IpAddr>,
    progress: Arc<Progress>,
}

impl Open {
    fn forget_ended(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.connections.retain(|connection| !connection.task.is_finished());
    }

    fn standings(&self) -> Vec<Standing> {
        let standing =
            |connection: &Connection| Standing { address: connection.address, stage: connection.progress.stage() };
        self.connections.iter().map(standing).collect()
    }

    fn close(&mut self, index: usize) {
        if index < self.connections.len() {
            self.connections.remove(index).task.abort();
        }
    }

    fn add<S, F, R>(&mut self, taken: Taken<S>, limits: Limits, answer: F)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Fn(Request<Incoming>) -> R + Send + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let progress = Arc::new(Progress::default());
        let (address, told) = (taken.peer.address, Arc::clone(&progress));
        let task = self.tasks.spawn(connection(taken, limits, told, answer));
        self.connections.push(Connection { task, address, progress });
    }
}

async fn connection<S, F, R>(taken: Taken<S>, limits: Limits, progress: Arc<Progress>, answer: F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let Taken { stream, peer, lent } = taken;
    let service = service_fn(move |mut request: Request<Incoming>| {
        progress.set(Stage::Working);
        request.extensions_mut().insert(peer);
        let (answered, progress) = (answer(request), Arc::clone(&progress));
        async move {
            let answer = answered.await;
            let is_whole = answer.body().size_hint().exact().is_some();
            progress.set(if is_whole { Stage::Sending } else { Stage::Streaming });
            Ok::<_, Infallible>(answer)
        }
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
    drop(lent);
}

/// Says that all places are taken by those that are served, without a look at the request.
async fn turn_away(mut stream: impl AsyncWrite + Unpin) {
    let refusal = Refusal { error: "too many connections are being served; try again in a moment".to_owned() };
    let refusal = serde_json::to_string(&refusal).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: \
         {}\r\n\r\n{refusal}",
        refusal.len()
    );
    _ = tokio::time::timeout(TURNED_AWAY_WITHIN, stream.write_all(answer.as_bytes())).await;
}

/// Who asks.
pub(super) fn peer(request: &Request<Incoming>) -> Peer {
    request.extensions().get::<Peer>().copied().unwrap_or_default()
}

pub(super) fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    // Whoever prints it as it comes is as safe as who asks our programs.
    let document = serde_json::to_string(value).unwrap_or_default();
    full(status, crate::shown::json(&document).into_owned().into_bytes(), "application/json")
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
