//! Asks the daemon of this node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::fs::trusted::is_ours;

use super::{Refusal, Span};

/// How long the daemon may take to answer from what it knows.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a sync pass may take: it may download.
const SYNC_PATIENCE: Duration = Duration::from_mins(20);
const SYNC_PATH: &str = "/v1/sync";
const MAXIMUM_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Why the daemon gave no answer, or refused.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("could not reach the daemon at {}; {}", socket.display(), remedy(source.kind()))]
    Connect { socket: PathBuf, source: std::io::Error },
    #[error(
        "{} is served by user {user}, who is neither root nor you: nothing was asked of it; name your daemon's socket \
         with --socket, and to speak with that user's daemon, do it as that user",
        socket.display()
    )]
    Stranger { socket: PathBuf, user: u32 },
    #[error("could not make the request for {path}")]
    Request { path: String, source: hyper::http::Error },
    #[error("could not write what the request for {path} sends")]
    RequestBody { path: String, source: serde_json::Error },
    #[error("the connection to the daemon broke")]
    Exchange(#[source] hyper::Error),
    #[error("the daemon's answer could not be read: {0}")]
    Answer(String),
    #[error(
        "the daemon at {} did not answer within {}; its log (`journalctl -u machinesd`) may say why",
        socket.display(),
        crate::duration::format(*patience)
    )]
    Timeout { socket: PathBuf, patience: Duration },
    #[error("{0}")]
    Refused(String),
}

/// A daemon's socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Nothing is opened yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks for a JSON document.
    ///
    /// # Errors
    /// When the daemon can't be reached, or refuses; then with its words.
    pub async fn get(&self, path: &str) -> Result<serde_json::Value, ClientError> {
        self.json(Method::GET, path, Bytes::new()).await
    }

    /// Sends a JSON document and takes one back.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post(&self, path: &str, body: &impl serde::Serialize) -> Result<serde_json::Value, ClientError> {
        let body =
            serde_json::to_vec(body).map_err(|source| ClientError::RequestBody { path: path.to_owned(), source })?;
        self.json(Method::POST, path, body.into()).await
    }

    /// The daemon's last events, one `CloudEvent` a line; when they are followed, until it ends or `line` returns false.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn events(&self, span: Span, mut line: impl FnMut(&str) -> bool) -> Result<(), ClientError> {
        let path = match span {
            Span::Recent => "/v1/events",
            Span::Follow => "/v1/events?follow",
        };
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        if !response.status().is_success() {
            return Err(refused(response).await?);
        }
        let mut body = response.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(ClientError::Exchange)?;
            rest.extend_from_slice(frame.data_ref().map_or(&[][..], Bytes::as_ref));
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let complete: Vec<u8> = rest.drain(..=end).collect();
                if !line(String::from_utf8_lossy(&complete).trim_end()) {
                    return Ok(());
                }
            }
            if rest.len() > MAXIMUM_ANSWER_BYTES {
                return Err(ClientError::Answer("an event is too large".to_owned()));
            }
        }
        Ok(())
    }

    async fn json(&self, method: Method, path: &str, body: Bytes) -> Result<serde_json::Value, ClientError> {
        let patience = if path == SYNC_PATH { SYNC_PATIENCE } else { PATIENCE };
        let exchange = async {
            let response = self.send(method, path, body).await?;
            if !response.status().is_success() {
                return Err(refused(response).await?);
            }
            serde_json::from_slice(&whole(response).await?).map_err(|error| ClientError::Answer(error.to_string()))
        };
        let timeout = |_| ClientError::Timeout { socket: self.socket.clone(), patience };
        tokio::time::timeout(patience, exchange).await.map_err(timeout)?
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let connect = |source| ClientError::Connect { socket: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(connect)?;
        // Whoever answers is believed, and is told what to do: a path alone says nothing about who that is.
        let user = stream.peer_cred().map_err(connect)?.uid();
        if !is_ours(user) {
            return Err(ClientError::Stranger { socket: self.socket.clone(), user });
        }
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Exchange)?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "machinesd").body(Full::new(body));
        let request = request.map_err(|source| ClientError::Request { path: path.to_owned(), source })?;
        sender.send_request(request).await.map_err(ClientError::Exchange)
    }
}

/// What to do about a socket that can't be used.
fn remedy(kind: std::io::ErrorKind) -> &'static str {
    match kind {
        std::io::ErrorKind::NotFound => "start machinesd, or name its socket with --socket",
        std::io::ErrorKind::PermissionDenied => "its socket is for root and the daemon's user: ask as one of them",
        std::io::ErrorKind::ConnectionRefused => "nothing listens there any more: start machinesd",
        _ => "is that the socket of machinesd?",
    }
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(response.into_body(), MAXIMUM_ANSWER_BYTES).collect().await;
    Ok(body.map_err(|error| ClientError::Answer(error.to_string()))?.to_bytes())
}

/// Why the daemon does not do it, in its own words.
async fn refused(response: Response<Incoming>) -> Result<ClientError, ClientError> {
    let status = response.status();
    let refusal: Result<Refusal, _> = serde_json::from_slice(&whole(response).await?);
    let reason = refusal.map_or_else(|_| format!("the daemon answered {status}"), |refusal| refusal.error);
    Ok(ClientError::Refused(reason))
}
