//! Answers on the control socket. Who may open it may command the node's machines, so it is its owner's alone.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, watch};

use crate::events::{Bus, Event};
use crate::fs::FileError;
use crate::fs::trusted::is_ours;
use crate::host::HostHandle;
use crate::host::built_in::MANAGER;
use crate::journal::{DatabaseError, Journal, Record, Scope};
use crate::kv::{KvError, Store};
use crate::names::MachineName;
use crate::node::Node;
use crate::process::Bounds;
use crate::spec::Trust;
use crate::sync::{Maintenance, Purge, Reconciler, Removals, nothing_published};

use super::health::Health;
use super::http::{self, Body, Lifetime, Limits, body, json, refuse};
use super::maintenance::{ENTER, MaintenanceDesk, RESUME};
use super::places::Places;
use super::{
    Follows, MaintenanceConsent, MaintenanceRequest, RemovalConsent, Status, SyncAnswer, SyncRequest, TransitionAnswer,
    TransitionRequest, Why,
};

const LIMITS: Limits =
    Limits { name: "control socket", places: Places { all: 64, each: 64 }, reserve: 4, lifetime: Lifetime::Open };
/// So many may follow the events at one time; what is left is for those who ask.
const FOLLOWERS: usize = 32;
const NOTHING_FOLLOWED: &str = "this daemon follows no specification ([sync] enabled = false)";
/// Connections that may wait to be taken.
const WAITING: i32 = 128;
/// So many journal records of a machine are told.
const RECORDS_TOLD: u32 = 10;

/// What the server can tell and do.
pub struct Api {
    pub node: Arc<Node>,
    pub started: Timestamp,
    pub store: Arc<dyn Store>,
    pub host: HostHandle,
    pub bus: Bus,
    pub journal: Journal,
    /// Of commands.
    pub bounds: Bounds,
    pub sync: Option<SyncApi>,
}

/// How a pass is made on request.
pub struct SyncApi {
    pub reconciler: Arc<Reconciler>,
    pub maintenance: MaintenanceDesk,
    /// A reload changes it.
    pub following: watch::Receiver<Following>,
}

/// Which specification is followed, and how.
#[derive(Debug, Clone)]
pub struct Following {
    pub bucket: String,
    pub key: String,
    pub trust: Trust,
    pub purge: Purge,
}

/// Why the socket can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("another machinesd answers at {}; stop it, or give this one another socket", socket.display())]
    InUse { socket: PathBuf },
    #[error("{} is not a socket; move it aside, or set [control] socket to another path", socket.display())]
    NotASocket { socket: PathBuf },
    #[error(
        "{} belongs to user {user}; look what it is and move it aside, or set [control] socket to another path",
        socket.display()
    )]
    Strangers { socket: PathBuf, user: u32 },
    #[error("could not prepare the control socket")]
    Prepare(#[source] FileError),
    #[error("could not listen at {}", socket.display())]
    Bind { socket: PathBuf, source: std::io::Error },
}

/// The socket, listened at. The file is removed when dropped.
pub struct Listener {
    listener: UnixListener,
    socket: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        _ = crate::fs::remove_file(&self.socket);
    }
}

/// Listens at the socket; one that a dead daemon left is replaced.
///
/// # Errors
/// When another daemon answers there, or the socket can't be made.
pub async fn listen(socket: &Path) -> Result<Listener, ServeError> {
    if let Some(directory) = socket.parent() {
        crate::fs::create_directory(directory, 0o755).map_err(ServeError::Prepare)?;
    }
    let there = std::fs::symlink_metadata(socket).ok();
    if let Some(user) = there.as_ref().map(MetadataExt::uid).filter(|user| !is_ours(*user)) {
        return Err(ServeError::Strangers { socket: socket.to_owned(), user });
    }
    if there.is_some_and(|metadata| !metadata.file_type().is_socket()) {
        return Err(ServeError::NotASocket { socket: socket.to_owned() });
    }
    if UnixStream::connect(socket).await.is_ok() {
        return Err(ServeError::InUse { socket: socket.to_owned() });
    }
    crate::fs::remove_file(socket).map_err(ServeError::Prepare)?;
    let listener = bind(socket).map_err(|source| ServeError::Bind { socket: socket.to_owned(), source })?;
    Ok(Listener { listener, socket: socket.to_owned() })
}

/// The file that the system makes has the mode that the socket had before, cut by the umask: there is no moment in which
/// others could open it, and no umask to change for all threads.
fn bind(path: &Path) -> std::io::Result<UnixListener> {
    let (family, kind) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM);
    let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, WAITING)?;
    UnixListener::from_std(socket.into())
}

/// Answers until dropped.
pub async fn serve(listener: Listener, api: Arc<Api>) {
    let followers = Arc::new(Semaphore::new(FOLLOWERS));
    let answer = move |request| answer(Arc::clone(&api), Arc::clone(&followers), request);
    http::serve(&listener.listener, LIMITS, answer).await;
}

async fn answer(api: Arc<Api>, followers: Arc<Semaphore>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET, "/v1/status") => json(StatusCode::OK, &status(&api)),
        (&Method::GET, "/v1/events") => events(&api, followers, request.uri().query()),
        (&Method::GET, path) if path.starts_with("/v1/why/") => why(&api, path.trim_start_matches("/v1/why/")).await,
        (&Method::POST, "/v1/transition") => {
            let user = http::peer(&request).user;
            match body(request).await {
                Ok(request) => transition(&api, request, user).await,
                Err(response) => response,
            }
        }
        (&Method::POST, "/v1/maintenance") => {
            let user = http::peer(&request).user;
            match body(request).await {
                Ok(request) => maintenance(&api, request, user).await,
                Err(response) => response,
            }
        }
        (&Method::POST, "/v1/sync") => match body(request).await {
            Ok(request) => sync(&api, &request).await,
            Err(response) => response,
        },
        (method, path) => refuse(StatusCode::NOT_FOUND, format!("there is no {method} {path}")),
    }
}

fn status(api: &Api) -> Status {
    let store = api.store.connection();
    let sync = api.sync.as_ref().map(|sync| sync.reconciler.status());
    let facts = api.node.facts().unusable().cloned();
    let machines = api.host.reports();
    Status {
        identity: api.node.identity.clone(),
        version: env!("CARGO_PKG_VERSION"),
        started: api.started,
        health: Health::of(&store, sync.as_ref(), in_maintenance(api).as_ref(), &machines).with_facts(facts.as_ref()),
        store,
        facts,
        events: api.bus.delivery().count(),
        maintenance: in_maintenance(api),
        sync,
        trust: api.sync.as_ref().map(|sync| sync.following.borrow().trust.clone()),
        commands: api.bounds.clone(),
        machines,
    }
}

async fn why(api: &Api, name: &str) -> Response<Body> {
    let name = match MachineName::new(name) {
        Ok(name) => name,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let sync = api.sync.as_ref().map(|sync| sync.reconciler.status());
    let left_alone = sync.as_ref().and_then(|status| status.left_alone().cloned());
    let sync = sync.and_then(|status| status.machines.get(name.as_str()).cloned());
    let left_alone = left_alone.filter(|_| sync.is_some());
    let runs = |report: &crate::host::Report| {
        report.machine.as_ref().is_some_and(|machine| machine.name == name)
            || report.path.file_name().is_some_and(|file| file == name.as_str())
    };
    let host = api.host.reports().into_iter().find(runs);
    let journal = match lately(&api.journal, &name).await {
        Ok(journal) => journal,
        Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, crate::errors::chain(&error)),
    };
    // Of a machine that was removed the journal knows when and why.
    if sync.is_none() && host.is_none() && journal.is_empty() {
        let error = format!("this node knows no machine {name}: neither the specification nor a directory has it");
        return refuse(StatusCode::NOT_FOUND, error);
    }
    let follows = if api.sync.is_some() { Follows::Specification } else { Follows::Nothing };
    let machine = host.as_ref().and_then(|report| report.machine.as_ref());
    let runs_commands = machine.is_some_and(|machine| {
        machine.watchers.iter().any(|watcher| crate::watchers::RUNNING_COMMANDS.contains(&watcher.kind))
    });
    let commands = runs_commands.then(|| api.bounds.clone());
    let maintenance = in_maintenance(api);
    json(StatusCode::OK, &Why { name, follows, maintenance, sync, left_alone, host, commands, journal })
}

fn in_maintenance(api: &Api) -> Option<Maintenance> {
    api.sync.as_ref().and_then(|sync| sync.reconciler.maintenance())
}

async fn lately(journal: &Journal, name: &MachineName) -> Result<Vec<Record>, DatabaseError> {
    let (journal, name) = (journal.clone(), name.clone());
    let read = tokio::task::spawn_blocking(move || journal.recent(Scope::Machine(&name), RECORDS_TOLD));
    // It fails only while the daemon ends.
    read.await.unwrap_or_else(|_| Ok(Vec::new()))
}

async fn transition(api: &Api, request: TransitionRequest, user: Option<u32>) -> Response<Body> {
    let TransitionRequest { machine, event } = request;
    let means_maintenance = [ENTER, RESUME].contains(&event.as_str())
        && api.host.name_of(&machine).is_ok_and(|name| name.as_str() == MANAGER);
    let moved = match api.sync.as_ref().filter(|_| means_maintenance) {
        Some(sync) => sync.maintenance.transition(&event, user).await,
        None => api.host.transition(&machine, &event).await.map_err(|error| error.to_string()),
    };
    match moved {
        Ok(state) => json(StatusCode::OK, &TransitionAnswer { state: state.to_string() }),
        Err(error) => refuse(StatusCode::CONFLICT, error),
    }
}

async fn maintenance(api: &Api, request: MaintenanceRequest, user: Option<u32>) -> Response<Body> {
    let Some(sync) = &api.sync else { return refuse(StatusCode::CONFLICT, NOTHING_FOLLOWED) };
    match sync.maintenance.set(request, user).await {
        Ok(answer) => json(StatusCode::OK, &answer),
        Err(error) => refuse(StatusCode::CONFLICT, error),
    }
}

/// One pass with the value that the store has when the pass has its turn.
async fn sync(api: &Api, request: &SyncRequest) -> Response<Body> {
    let Some(sync) = &api.sync else { return refuse(StatusCode::CONFLICT, NOTHING_FOLLOWED) };
    let reconciler = match (request.maintenance, sync.reconciler.maintenance()) {
        (MaintenanceConsent::Overridden, _) => sync.reconciler.in_maintenance(),
        (MaintenanceConsent::Respected, None) => Reconciler::clone(&sync.reconciler),
        (MaintenanceConsent::Respected, Some(maintenance)) => {
            return json(StatusCode::OK, &SyncAnswer { converged: false, complaints: vec![maintenance.to_string()] });
        }
    };
    let removals = match request.removals {
        RemovalConsent::Guarded => Removals::Guarded,
        RemovalConsent::Allowed => Removals::Allowed,
    };
    let Following { bucket, key, trust, purge } = sync.following.borrow().clone();
    let read = || async { Ok::<_, KvError>(api.store.bucket(&bucket)?.get(&key).await?.map(|entry| entry.value)) };
    reconciler.retry_now();
    match reconciler.reconcile_published(read, &trust, purge, removals).await {
        Ok(Some(pass)) => json(StatusCode::OK, &SyncAnswer::from(&pass)),
        Ok(None) => refuse(StatusCode::CONFLICT, nothing_published(&bucket, &key, &api.store.connection())),
        Err(error) => refuse(StatusCode::CONFLICT, crate::errors::chain(&error)),
    }
}

/// The last events; with `follow` also all that come.
fn events(api: &Api, followers: Arc<Semaphore>, query: Option<&str>) -> Response<Body> {
    let (recent, receiver) = api.bus.recent_and_listen();
    let line = |event: &Event| {
        let document = event.cloud_event().to_string();
        Ok(Frame::data(Bytes::from(format!("{}\n", crate::shown::json(&document)))))
    };
    let recent = futures_util::stream::iter(recent.into_iter().map(move |event| line(&event)));
    if query != Some("follow") {
        return Response::new(BodyExt::boxed_unsync(StreamBody::new(recent)));
    }
    let Ok(place) = followers.try_acquire_owned() else {
        let message = format!("{FOLLOWERS} follow the events already; end one of them first");
        return refuse(StatusCode::SERVICE_UNAVAILABLE, message);
    };
    let coming = futures_util::stream::unfold((receiver, place), move |(mut receiver, place)| async move {
        loop {
            match receiver.recv().await {
                Ok(event) => return Some((line(&event), (receiver, place))),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    Response::new(BodyExt::boxed_unsync(StreamBody::new(recent.chain(coming))))
}
