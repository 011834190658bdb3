//! The connection to NATS: made in the background and for ever re-made, with every request bounded in time and every
//! failure told in words that help. In: settings. Out: answers of the server, and the health of the connection, which
//! watches follow.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, HeaderMap, Message, Request, ServerAddr};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::calm::{Attempts, Errors, Tell};
use super::credentials::authenticate;
use crate::kv::settings::ConnectionSettings;
use crate::kv::{Connection, KvError, install_tls_provider};
use crate::shown::cut;

/// Within this every call ends, connected or not.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(5);
/// A dead connection that TCP does not notice is found by two missed pings.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Of what a server says of itself, or of an error.
pub(super) const SHOWN_CHARACTERS: usize = 400;

/// JetStream's error codes that have a meaning of their own here.
pub(super) mod code {
    pub const STREAM_NOT_FOUND: u64 = 10_059;
    pub const MESSAGE_NOT_FOUND: u64 = 10_037;
    pub const WRONG_LAST_SEQUENCE: u64 = 10_071;
    pub const WRONG_LAST_SEQUENCE_CONSTANT: u64 = 10_164;
    pub const STREAM_NAME_IN_USE: u64 = 10_058;
    /// Maximum messages exceeded, and other reasons for which a stream can't take a message.
    pub const STORE_FAILED: u64 = 10_077;
    /// The stream that took the message is not the one that was meant.
    pub const WRONG_STREAM: u64 = 10_060;
    pub const SEQUENCE_NOT_FOUND: u64 = 10_043;
    pub const DELETE_FAILED: u64 = 10_057;
    pub const MESSAGE_TOO_LARGE: u64 = 10_054;
    pub const NOT_ENABLED: u64 = 10_076;
    pub const NOT_ENABLED_FOR_ACCOUNT: u64 = 10_039;
}

/// Why the last attempts failed.
#[derive(Debug, Clone)]
struct Failure {
    reason: String,
    /// Waiting won't help: the server refuses us, or we it.
    refused: bool,
}

#[derive(Debug)]
pub(super) struct Link {
    pub client: Client,
    pub jetstream: async_nats::jetstream::Context,
    /// `$JS.API`, or that of a domain or another account.
    pub api_prefix: String,
    /// What comes before `$KV.…` when publishing: empty, or the API prefix and a dot (ADR-8).
    pub put_prefix: String,
    /// For messages: without passwords.
    pub url: String,
    /// Changes whenever the connection came, went, or failed to come.
    pub changes: watch::Receiver<u64>,
    failure: Arc<Mutex<Option<Failure>>>,
}

/// An answer of the server that is an error.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ApiError {
    #[serde(default)]
    pub err_code: u64,
    #[serde(default)]
    pub description: String,
}

/// A failed API call: the server's own error, to be given a meaning, or a failure to ask.
#[derive(Debug)]
pub(super) enum ApiFailure {
    Server(ApiError),
    Call(KvError),
}

#[derive(Deserialize)]
struct ErrorPart {
    error: Option<ApiError>,
}

impl Link {
    pub async fn open(settings: &ConnectionSettings, servers: &[Url]) -> Result<Self, KvError> {
        install_tls_provider();
        let url = settings.target.display();
        let (sender, changes) = watch::channel(0);
        let failure = Arc::new(Mutex::new(None));
        let attempts = Mutex::new(Attempts::default());
        let options = authenticate(ConnectOptions::new(), settings, servers)?;
        let options = observe(options, Arc::new(sender), Arc::clone(&failure));
        let addresses = servers
            .iter()
            .map(|server| ServerAddr::from_url(without_password(server)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| KvError::InvalidUrl { url: url.clone(), reason: error.to_string() })?;
        let client = options
            .name(&settings.name)
            .retry_on_initial_connect()
            .max_reconnects(None)
            .connection_timeout(CONNECT_LIMIT)
            .request_timeout(Some(CALL_LIMIT))
            .ping_interval(PING_INTERVAL)
            .reconnect_delay_callback(move |attempt| {
                attempts.lock().unwrap_or_else(PoisonError::into_inner).delay(attempt, Instant::now())
            })
            .connect(addresses)
            .await
            .map_err(|error| KvError::Connect { url: url.clone(), reason: error.to_string() })?;
        let api_prefix = match (&settings.jetstream_api_prefix, &settings.jetstream_domain) {
            (Some(prefix), _) => prefix.trim_end_matches('.').to_owned(),
            (None, Some(domain)) => format!("$JS.{domain}.API"),
            (None, None) => "$JS.API".to_owned(),
        };
        let mut jetstream = async_nats::jetstream::with_prefix(client.clone(), &api_prefix);
        jetstream.set_timeout(CALL_LIMIT);
        let put_prefix = if api_prefix == "$JS.API" { String::new() } else { format!("{api_prefix}.") };
        Ok(Self { client, jetstream, api_prefix, put_prefix, url, changes, failure })
    }

    pub fn connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Counts the connections made; consumers of an earlier one must be made anew.
    pub fn epoch(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    pub fn connection(&self) -> Connection {
        let connected = self.connected();
        let detail = match self.client.try_server_info() {
            Some(info) if connected => format!("{} {}", shown(&info.server_name), cut(&info.version, SHOWN_CHARACTERS)),
            _ => self.failure().map_or_else(|| "connecting".to_owned(), |failure| failure.reason),
        };
        Connection { url: self.url.clone(), connected, detail }
    }

    fn failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the connection, until the deadline or until the server has refused us.
    pub async fn ready(&self, deadline: Instant) -> Result<(), KvError> {
        let mut changes = self.changes.clone();
        loop {
            if self.connected() {
                return Ok(());
            }
            let failure = self.failure();
            let refused = failure.as_ref().is_some_and(|failure| failure.refused);
            if refused || Instant::now() >= deadline {
                let reason = failure.map_or_else(|| "no connection yet".to_owned(), |failure| failure.reason);
                return Err(KvError::Connect { url: self.url.clone(), reason });
            }
            // The news of a connection may come before the client's state has changed, so look again soon.
            let tick = deadline.min(Instant::now() + Duration::from_millis(250));
            let _ = timeout_at(tick, changes.changed()).await;
        }
    }

    /// One request and its answer within [`CALL_LIMIT`]. `None` when nobody listens on the subject.
    pub async fn request(
        &self,
        operation: &str,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Option<Message>, KvError> {
        let deadline = Instant::now() + CALL_LIMIT;
        self.ready(deadline).await?;
        let mut request = Request::new().payload(payload);
        if !headers.is_empty() {
            request = request.headers(headers);
        }
        let result = match timeout_at(deadline, self.client.send_request(subject, request)).await {
            Ok(Ok(message)) => return Ok(Some(message)),
            Ok(Err(error)) => match error.kind() {
                RequestErrorKind::NoResponders => return Ok(None),
                RequestErrorKind::TimedOut => None,
                _ => Some(error.to_string()),
            },
            Err(_) => None,
        };
        match result {
            Some(reason) => Err(KvError::Answer { operation: operation.to_owned(), url: self.url.clone(), reason }),
            // A connection that broke while waiting is the better reason.
            None if !self.connected() => {
                let reason = self.failure().map_or_else(|| "the connection was lost".to_owned(), |it| it.reason);
                Err(KvError::Connect { url: self.url.clone(), reason })
            }
            None => Err(KvError::Timeout { operation: operation.to_owned(), url: self.url.clone(), limit: CALL_LIMIT }),
        }
    }

    /// One call of the JetStream API. `subject` is what follows the API's prefix.
    pub async fn api<T: DeserializeOwned>(
        &self,
        operation: &str,
        subject: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, ApiFailure> {
        let payload = serde_json::to_vec(body)
            .map_err(|error| ApiFailure::Call(self.not_understood(operation, &error.to_string())))?;
        let subject = format!("{}.{subject}", self.api_prefix);
        let answer = self
            .request(operation, subject, HeaderMap::new(), payload.into())
            .await
            .map_err(ApiFailure::Call)?
            .ok_or_else(|| ApiFailure::Call(self.no_jetstream(operation)))?;
        self.parse(operation, &answer.payload)
    }

    /// Reads an answer that is either an error of the API or a `T`.
    pub fn parse<T: DeserializeOwned>(&self, operation: &str, payload: &[u8]) -> Result<T, ApiFailure> {
        let fail = |error: serde_json::Error| ApiFailure::Call(self.not_understood(operation, &error.to_string()));
        let part: ErrorPart = serde_json::from_slice(payload).map_err(fail)?;
        match part.error {
            Some(error) => Err(ApiFailure::Server(error)),
            None => serde_json::from_slice(payload).map_err(fail),
        }
    }

    pub fn not_understood(&self, operation: &str, reason: &str) -> KvError {
        let reason = cut(reason, SHOWN_CHARACTERS);
        KvError::Answer { operation: operation.to_owned(), url: self.url.clone(), reason }
    }

    pub fn no_jetstream(&self, operation: &str) -> KvError {
        KvError::NoJetStream { operation: operation.to_owned(), url: self.url.clone() }
    }

    /// The meaning of an error that has none of its own for the caller's operation.
    pub fn meaning(&self, operation: &str, bucket: &str, failure: ApiFailure) -> KvError {
        match failure {
            ApiFailure::Call(error) => error,
            ApiFailure::Server(error) => match error.err_code {
                code::STREAM_NOT_FOUND => KvError::NoBucket { bucket: bucket.to_owned(), embedded: None },
                code::NOT_ENABLED | code::NOT_ENABLED_FOR_ACCOUNT => self.no_jetstream(operation),
                code => KvError::Server {
                    operation: operation.to_owned(),
                    url: self.url.clone(),
                    code,
                    description: cut(&error.description, SHOWN_CHARACTERS),
                },
            },
        }
    }
}

/// Has the client tell us what happens to the connection.
fn observe(
    options: ConnectOptions,
    changed: Arc<watch::Sender<u64>>,
    failure: Arc<Mutex<Option<Failure>>>,
) -> ConnectOptions {
    let (failure_of_events, changed_by_events) = (Arc::clone(&failure), Arc::clone(&changed));
    let (lost, errors) = (AtomicBool::new(false), Mutex::new(Errors::default()));
    options
        .event_callback(move |event| {
            match event {
                Event::Connected => {
                    if lost.swap(false, Ordering::Relaxed) {
                        tracing::info!("connected to the NATS server again");
                    }
                    *failure_of_events.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    changed_by_events.send_modify(|count| *count += 1);
                }
                Event::Disconnected => {
                    if !lost.swap(true, Ordering::Relaxed) {
                        tracing::warn!("the connection to the NATS server is lost; it is tried again until it is back");
                    }
                    changed_by_events.send_modify(|count| *count += 1);
                }
                Event::Closed => changed_by_events.send_modify(|count| *count += 1),
                Event::ServerError(error) => {
                    let tell = errors.lock().unwrap_or_else(PoisonError::into_inner).tell(Instant::now());
                    if tell != Tell::Nothing {
                        let error = cut(&error.to_string(), SHOWN_CHARACTERS);
                        tracing::warn!(%error, "the NATS server reports an error");
                    }
                    if tell == Tell::LastError {
                        tracing::warn!("the NATS server reports many errors; the next ones are not logged for a while");
                    }
                }
                _ => {}
            }
            std::future::ready(())
        })
        // The only place where the client tells the whole reason of a failed attempt. The choice of the server is left
        // to the client.
        .reconnect_to_server_callback(move |servers, _| {
            let worst = servers
                .iter()
                .filter_map(|server| server.last_error.as_deref())
                .map(explain)
                .max_by_key(|failure| failure.refused);
            let (failure, changed) = (Arc::clone(&failure), Arc::clone(&changed));
            async move {
                let worst = match worst {
                    None => unknown_host(servers.iter().map(|server| &server.addr)).await,
                    known => known,
                };
                if let Some(worst) = worst {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(worst);
                    changed.send_modify(|count| *count += 1);
                }
                None
            }
        })
}

/// The client does not tell of a host name that has no address, which is what a mistyped one is: so ask as it does.
async fn unknown_host(servers: impl Iterator<Item = &ServerAddr>) -> Option<Failure> {
    let mut unknown = None;
    for server in servers {
        match server.socket_addrs().await {
            Ok(_) => return None,
            Err(error) => {
                let reason = format!("the host {:?} has no address that can be found: {error}", server.host());
                unknown = Some(Failure { reason, refused: false });
            }
        }
    }
    unknown
}

/// A server that nobody named is called by its key, of which the beginning says enough.
fn shown(name: &str) -> String {
    let is_key = name.len() == 56 && name.starts_with('N') && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_key { format!("{}…", name.get(..12).unwrap_or(name)) } else { cut(name, SHOWN_CHARACTERS) }
}

/// The client's reason for a failed attempt, with what to do about it.
fn explain(error: &str) -> Failure {
    let (reason, refused) = if error.contains("authorization violation") || error.contains("authentication") {
        let advice = "the server refused the credentials; check the creds file, nkey, token, or user and password";
        (advice.to_owned(), true)
    } else if error.contains("UnknownIssuer") || error.contains("BadSignature") {
        // The second when another authority has the same name as the right one.
        let advice = "the server's certificate is not signed by an authority that is trusted here; \
                      set `ca` (or NATS_CA) to the authority's certificate";
        (advice.to_owned(), true)
    } else if error.contains("invalid peer certificate") {
        (format!("the server's certificate is refused: {}", cut(error, SHOWN_CHARACTERS)), true)
    } else if error.contains("CertificateRequired") {
        ("the server asks for a client certificate; set `cert` and `key`".to_owned(), true)
    } else {
        (cut(error, SHOWN_CHARACTERS), false)
    };
    Failure { reason, refused }
}

/// The credentials of a URL go into the options; the client would show them in its own logs.
fn without_password(server: &Url) -> Url {
    let mut server = server.clone();
    // Both fail only for URLs without a host, which the parser of targets has refused.
    let _ = server.set_username("");
    let _ = server.set_password(None);
    server
}
