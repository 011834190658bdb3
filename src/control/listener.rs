//! Answers on TCP: `/metrics` for Prometheus, and the reference's paths for metrics and switches. Off unless the settings
//! name an address.
//!
//! On a loopback address anyone on the node may read; everything else needs the bearer token of the settings: every
//! `POST`, every request on any other address, and one that comes under a foreign name, as a web page sends it that has
//! its own name lead to this node.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, AUTHORIZATION, HOST, HeaderValue, WWW_AUTHENTICATE};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::digest::Sha256Digest;
use crate::events::Delivery;
use crate::fs::FileError;
use crate::host::HostHandle;
use crate::kv::Store;
use crate::machine::panel::{Exposure, Panel, Position, Shown, Switch};
use crate::machine::status::MachineStatus;
use crate::names::{Label, MachineName};
use crate::sync::Reconciler;

use super::http::{self, Body, Lifetime, Limits, body, full, json as answer_json, refuse};
use super::metrics::{CONTENT_TYPE, Exposition};
use super::places::Places;

const LIMITS: Limits = Limits {
    name: "HTTP listener",
    places: Places { all: 64, each: 32 },
    reserve: 1,
    lifetime: Lifetime::OneRequest(Duration::from_secs(30)),
};
/// How long a machine may take to move.
const SWITCH_PATIENCE: Duration = Duration::from_secs(5);
const TOKEN_LIMIT_BYTES: u64 = 4_096;
/// Shorter tokens can be guessed.
const MINIMUM_TOKEN_BYTES: usize = 16;

const SWITCH_PATH: &str = "/choria/machine/switch/v1/";
const METRIC_PATH: &str = "/choria/machine/metric/v1/";

/// Where to listen, and who may do more than read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub address: SocketAddr,
    /// Needed for any but a loopback address.
    pub token_file: Option<PathBuf>,
}

/// A bearer token. Only its digest is kept, and digests are compared: how long that takes tells nothing of the token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Sha256Digest);

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("(hidden)")
    }
}

/// Why the listener can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("could not read the token of the HTTP listener ([http] token_file)")]
    Token(#[source] FileError),
    #[error("the token in {} can't be used: {reason}", path.display())]
    UnusableToken { path: PathBuf, reason: String },
    #[error("[http] listen = \"{address}\" is open to other nodes and needs a token: set [http] token_file")]
    NoToken { address: SocketAddr },
    #[error("could not listen at {address} ([http] listen)")]
    Bind { address: SocketAddr, source: std::io::Error },
}

impl Token {
    /// Reads the file.
    ///
    /// # Errors
    /// When it can't be read, others may read it, or what is in it is no token.
    pub fn read(path: &Path) -> Result<Self, ListenError> {
        use std::os::unix::fs::MetadataExt;
        let unusable = |reason: &str| ListenError::UnusableToken { path: path.to_owned(), reason: reason.to_owned() };
        let text = crate::fs::read_text(path, TOKEN_LIMIT_BYTES).map_err(ListenError::Token)?;
        if std::fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o007 != 0) {
            return Err(unusable(&format!("everyone on the node may read it; `chmod o= {}`", path.display())));
        }
        let text = text.trim();
        if text.len() < MINIMUM_TOKEN_BYTES {
            return Err(unusable("it has less than 16 characters; make one with `openssl rand -hex 32`"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(unusable("it must be one word of ASCII characters"));
        }
        Ok(Self(Sha256Digest::of(text.as_bytes())))
    }

    fn is(&self, given: &str) -> bool {
        Sha256Digest::of(given.as_bytes()) == self.0
    }
}

/// The token of the settings.
///
/// # Errors
/// When it can't be used, or is missing for an address that others reach.
pub fn token(settings: &Settings) -> Result<Option<Token>, ListenError> {
    let token = settings.token_file.as_deref().map(Token::read).transpose()?;
    if token.is_none() && !settings.address.ip().is_loopback() {
        return Err(ListenError::NoToken { address: settings.address });
    }
    Ok(token)
}

/// The listener, bound for as long as one of its clones lives.
#[derive(Clone)]
pub struct Listener {
    listener: Arc<TcpListener>,
    token: Option<Token>,
    address: SocketAddr,
}

impl Listener {
    /// What it takes; to tell whether the file has another one now.
    pub fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// Where it was to listen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same port with another token, never given up in between.
    #[must_use]
    pub fn taking(&self, token: Option<Token>) -> Self {
        Self { token, ..self.clone() }
    }
}

/// Listens; nothing is answered yet.
///
/// # Errors
/// When the token can't be used or the address is taken.
pub async fn listen(settings: &Settings) -> Result<Listener, ListenError> {
    let token = token(settings)?;
    let bind = |source| ListenError::Bind { address: settings.address, source };
    let listener = TcpListener::bind(settings.address).await.map_err(bind)?;
    // With port 0 it is another one.
    let address = listener.local_addr().unwrap_or(settings.address);
    tracing::info!(%address, "HTTP listener");
    Ok(Listener { listener: Arc::new(listener), token, address: settings.address })
}

/// What the listener can tell and do.
pub struct Api {
    pub started: Timestamp,
    pub store: Arc<dyn Store>,
    pub host: HostHandle,
    pub panel: Arc<Panel>,
    /// Of events, to NATS.
    pub delivery: Arc<Delivery>,
    /// `None` where no specification is followed.
    pub sync: Option<Arc<Reconciler>>,
}

/// Answers until dropped.
pub async fn serve(listener: Listener, api: Arc<Api>) {
    let gate = Arc::new(Gate { token: listener.token, is_local: listener.address.ip().is_loopback() });
    http::serve(&*listener.listener, LIMITS, move |request| answer(Arc::clone(&api), Arc::clone(&gate), request)).await;
}

/// Who may ask for what.
struct Gate {
    token: Option<Token>,
    is_local: bool,
}

impl Gate {
    fn refuses(&self, request: &Request<Incoming>) -> Option<Response<Body>> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let foreign = if self.is_local { foreign_name(request) } else { None };
        if reads && self.is_local && foreign.is_none() {
            return None;
        }
        let carries = request.headers().contains_key(AUTHORIZATION);
        if let Some(name) = foreign.filter(|_| !carries) {
            let message = format!(
                "{name:?} is not this node: ask localhost, 127.0.0.1 or [::1], or send the token of [http] token_file"
            );
            return Some(refuse(StatusCode::MISDIRECTED_REQUEST, message));
        }
        let Some(token) = &self.token else {
            let message = "this needs a token, and the daemon has none: set [http] token_file in its settings";
            return Some(refuse(StatusCode::FORBIDDEN, message));
        };
        let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer =
            given.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let message = match bearer {
            Some((_, given)) if token.is(given.trim()) => return None,
            Some(_) => "this is not the token of [http] token_file",
            None => "send the token of [http] token_file, as \"Authorization: Bearer TOKEN\"",
        };
        let mut response = refuse(StatusCode::UNAUTHORIZED, message);
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"machinesd\""));
        Some(response)
    }
}

/// The name that a request was sent to, unless it is this node's own on loopback.
fn foreign_name(request: &Request<Incoming>) -> Option<String> {
    let given = request.headers().get(HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    let given = request.uri().authority().map(ToString::to_string).or(given)?;
    let host = given.parse::<Authority>().map(|authority| authority.host().to_owned()).unwrap_or_default();
    let is_loopback = |host: &str| {
        host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    let is_ours = host.eq_ignore_ascii_case("localhost") || is_loopback(&host);
    (!is_ours).then(|| given.chars().take(80).collect())
}

async fn answer(api: Arc<Api>, gate: Arc<Gate>, request: Request<Incoming>) -> Response<Body> {
    if let Some(refused) = gate.refuses(&request) {
        return refused;
    }
    let path = request.uri().path().to_owned();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let posts = request.method() == Method::POST;
    if path == "/metrics" {
        if !reads {
            return only("GET, HEAD");
        }
        // Agents decide how much there is to write.
        return match tokio::task::spawn_blocking(move || metrics(&api)).await {
            Ok(text) => full(StatusCode::OK, text.into_bytes(), CONTENT_TYPE),
            Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        };
    }
    if let Some(rest) = path.strip_prefix(METRIC_PATH) {
        return if reads { metric(&api, rest) } else { only("GET, HEAD") };
    }
    if let Some(rest) = path.strip_prefix(SWITCH_PATH) {
        return match Turned::find(&api, rest) {
            Err(refused) => refused,
            Ok(found) if reads => answer_json(StatusCode::OK, &found.describe()),
            Ok(_) if posts => turn(&api, rest, request).await,
            Ok(_) => only("GET, HEAD, POST"),
        };
    }
    refuse(
        StatusCode::NOT_FOUND,
        format!(
            "there is no {path} here; there are /metrics, {METRIC_PATH}MACHINE/WATCHER and {SWITCH_PATH}MACHINE/WATCHER"
        ),
    )
}

fn only(methods: &'static str) -> Response<Body> {
    let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, format!("here is only {methods}"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

fn metrics(api: &Api) -> String {
    let all = api.panel.all();
    let mut exposition = Exposition::default();
    exposition.measurements(&all);
    exposition.checks(&all);
    let sync = api.sync.as_ref().map(|sync| sync.status());
    exposition.daemon(api.started, &api.store.connection(), sync.as_ref(), &api.host.reports());
    if let Some(sync) = &api.sync {
        exposition.maintenance(sync.maintenance().as_ref());
    }
    exposition.events(&api.delivery.count());
    exposition.render()
}

/// `MACHINE/WATCHER` of a path.
fn names(rest: &str) -> Option<(MachineName, Label)> {
    let (machine, watcher) = rest.split_once('/')?;
    Some((MachineName::new(machine).ok()?, Label::new(watcher).ok()?))
}

fn metric(api: &Api, rest: &str) -> Response<Body> {
    let shown = names(rest).and_then(|(machine, watcher)| api.panel.get(&machine, &watcher));
    match shown {
        Some(Shown::Measured(measured, Exposure { http: true, .. })) => answer_json(StatusCode::OK, &*measured),
        _ => {
            let message = format!(
                "there is no measurement of {rest:?}: no such machine runs, it has no such metric watcher with \
                 http: true, or that has not measured yet"
            );
            refuse(StatusCode::NOT_FOUND, message)
        }
    }
}

/// A switch, with the machine that it turns.
struct Turned {
    switch: Arc<Switch>,
    watcher: Label,
    machine: Arc<MachineStatus>,
}

#[derive(Deserialize)]
struct TurnRequest {
    on: bool,
}

impl Turned {
    fn find(api: &Api, rest: &str) -> Result<Self, Response<Body>> {
        let missing = || {
            let message = format!("there is no switch {rest:?}: no such machine runs, or it has no such switch");
            refuse(StatusCode::NOT_FOUND, message)
        };
        let (name, watcher) = names(rest).ok_or_else(missing)?;
        let Some(Shown::Switch(switch)) = api.panel.get(&name, &watcher) else { return Err(missing()) };
        let mut running = api.host.reports().into_iter().filter_map(|report| report.machine);
        let machine = running.find(|machine| machine.name == name).ok_or_else(missing)?;
        Ok(Self { switch, watcher, machine })
    }

    fn position(&self) -> Position {
        self.switch.position_in(&self.machine.state)
    }

    /// Why nobody may turn it now.
    fn is_held(&self) -> Option<String> {
        let state = &self.machine.state;
        if self.switch.is_disabled_in(state) {
            return Some(format!("the switch is disabled in state {state}"));
        }
        let active = self.machine.watchers.iter().any(|watcher| watcher.name == self.watcher && watcher.active);
        (!active).then(|| format!("the switch does not work in state {state}"))
    }

    /// As the reference answers.
    fn describe(&self) -> Value {
        let position = self.position();
        json!({
            "is_on": position == Position::On,
            "is_off": position != Position::On,
            "status": position.word(),
            "detail": {
                "type": "httpswitch",
                "machine": self.machine.name,
                "version": self.machine.version,
                "id": self.machine.id,
                "name": self.watcher,
                "state": self.machine.state,
                "previous_outcome": position.word(),
                "is_on": position == Position::On,
                "disabled": self.is_held().is_some(),
                "annotations": self.switch.annotations,
            },
        })
    }
}

/// Turns a switch. When this is answered, the machine has moved or has refused to.
async fn turn(api: &Api, rest: &str, request: Request<Incoming>) -> Response<Body> {
    let on = match body::<TurnRequest>(request).await {
        Ok(asked) => asked.on,
        Err(refused) => return refused,
    };
    // Looked at only now: sending the request may have taken its time.
    let found = match Turned::find(api, rest) {
        Ok(found) => found,
        Err(refused) => return refused,
    };
    if let Some(reason) = found.is_held() {
        return refuse(StatusCode::CONFLICT, reason);
    }
    let wanted = if on { Position::On } else { Position::Off };
    if found.position() == wanted {
        return answer_json(StatusCode::OK, &found.describe());
    }
    let (event, key) =
        if on { (&found.switch.on_event, "success_transition") } else { (&found.switch.off_event, "fail_transition") };
    let Some(event) = event else {
        let message = format!("nothing would happen: watcher {} has no {key}", found.watcher);
        return refuse(StatusCode::CONFLICT, message);
    };
    // Before the machine moves, so that what it announces there is the new position.
    let before = found.switch.turn(wanted);
    let moved = api.host.transition(&found.machine.id, event.as_str());
    let refused = match tokio::time::timeout(SWITCH_PATIENCE, moved).await {
        Ok(Ok(_)) => {
            return match Turned::find(api, rest) {
                Ok(now) => answer_json(StatusCode::OK, &now.describe()),
                Err(refused) => refused,
            };
        }
        Ok(Err(error)) => refuse(StatusCode::CONFLICT, error.to_string()),
        Err(_) => refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "the machine did not answer in time; look at it before you try again",
        ),
    };
    found.switch.turn(before);
    refused
}
