//! The daemon put together from its rooms: opened once, then run, reloaded and stopped.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use machines::archive::Fetcher;
use machines::config::Settings;
use machines::control::listener::{self, Token};
use machines::control::metrics;
use machines::control::server::{self, Api, Listener, SyncApi};
use machines::events::{self, Bus};
use machines::governor::{Governors, StoreGovernors};
use machines::host::built_in::{ManagerSettings, definitions};
use machines::host::{self, HostHandle};
use machines::journal::Journal;
use machines::kv::Store;
use machines::machine::panel::Panel;
use machines::machine::watcher::Services;
use machines::node::Node;
use machines::spec::Trust;
use machines::sync::{Purge, Reconciler, Settings as SyncSettings};
use tokio::task::JoinHandle;

use crate::shared::Failure;

/// A stopping daemon waits this long for its machines; what has not ended then is killed with the process.
const STOP_PATIENCE: Duration = Duration::from_secs(8);

/// How long the slots of governors that its machines held may take to be left.
pub const SLOT_PATIENCE: Duration = Duration::from_secs(2);

/// The parts that live as long as the process.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub reconciler: Arc<Reconciler>,
    pub bus: Bus,
    pub governors: StoreGovernors,
    fetcher: Arc<Fetcher>,
    node: Arc<Node>,
    journal: Journal,
}

impl Parts {
    /// Takes the state directory, opens the store. Nothing runs yet.
    pub async fn open(settings: &Settings) -> Result<Self, Failure> {
        machines::kv::install_tls_provider();
        machines::fs::create_directory(&settings.state_dir, 0o755)?;
        let node = Arc::new(discover_at_start(settings)?);
        let mut sync = SyncSettings::new(settings.state_dir.clone());
        sync.archive_limits = settings.archive.clone();
        sync.hold_removals_over_percent = settings.sync.hold_removals_over_percent;
        let store = machines::kv::open(&settings.kv).await?;
        let fetcher = Arc::new(Fetcher::new(settings.fetch.clone(), Some(Arc::clone(&store)))?);
        let journal = Journal::open(&settings.state_dir.join("state.db"))?;
        let governors = StoreGovernors::new(&*store);
        let governing: Arc<dyn Governors> = Arc::new(governors.clone());
        let (own, fetching, writing) = (Arc::clone(&node), Arc::clone(&fetcher), journal.clone());
        let reconciler = Arc::new(Reconciler::open_governed(sync, own, fetching, writing, Some(governing))?);
        Ok(Self { store, reconciler, bus: Bus::default(), governors, fetcher, node, journal })
    }
}

/// The node as the settings want it seen. Facts files that do not exist are skipped.
pub fn discover(settings: &Settings) -> Result<Node, Failure> {
    let facts: Vec<_> = settings.facts.iter().filter(|path| path.exists()).cloned().collect();
    Ok(Node::discover(settings.identity.clone(), &facts)?)
}

/// At start a facts file that can't be used is left out, loudly: half-written facts must not keep a node's agents down.
fn discover_at_start(settings: &Settings) -> Result<Node, Failure> {
    match discover(settings) {
        Err(Failure::Error(error)) if !settings.facts.is_empty() => {
            tracing::error!("the facts files are left out: {}", machines::errors::chain(&*error));
            Ok(Node::discover(settings.identity.clone(), &[])?)
        }
        result => result,
    }
}

/// How installed machines that nobody wants are treated.
pub fn purge(settings: &Settings) -> Purge {
    if settings.sync.purge_unknown { Purge::Unknown } else { Purge::Keep }
}

/// Binds the HTTP listener, if the settings have one.
///
/// # Errors
/// When the token can't be used or the address is taken.
pub async fn listen(settings: &Settings) -> Result<Option<listener::Listener>, listener::ListenError> {
    match &settings.http {
        Some(http) => Ok(Some(listener::listen(http).await?)),
        None => Ok(None),
    }
}

/// A running daemon.
pub struct Daemon {
    pub host: HostHandle,
    parts: Parts,
    host_task: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
    started: Timestamp,
    token: Option<Token>,
}

impl Daemon {
    /// Starts to run machines and to answer on the control socket.
    pub async fn start(settings: &Settings, parts: Parts) -> Result<Self, Failure> {
        let http = listen(settings).await?;
        Self::start_with(settings, parts, http).await
    }

    async fn start_with(settings: &Settings, parts: Parts, http: Option<listener::Listener>) -> Result<Self, Failure> {
        let listener = server::listen(&settings.socket).await?;
        let started = Timestamp::now();
        let mut tasks = Vec::new();
        if let Some(client) = parts.store.nats() {
            tasks.push(tokio::spawn(events::nats::publish(parts.bus.clone(), client)));
        }
        tasks.push(tokio::spawn(machines::node::follow(Arc::clone(&parts.node), settings.facts.clone())));
        let panel = Arc::new(Panel::default());
        let (host, host_task) = start_host(settings, &parts, Arc::clone(&panel))?;
        let token = http.as_ref().and_then(|http| http.token().cloned());
        let mut daemon = Self { host, parts, host_task, tasks, started, token };
        daemon.serve(settings, listener);
        if let Some(http) = http {
            daemon.serve_http(settings, http, Arc::clone(&panel));
        }
        if let Some(directory) = settings.textfile_directory.clone() {
            daemon.tasks.push(tokio::spawn(async move { metrics::write_files(panel, &directory).await }));
        }
        Ok(daemon)
    }

    fn serve(&mut self, settings: &Settings, listener: Listener) {
        let sync = settings.sync.enabled.then(|| SyncApi {
            reconciler: Arc::clone(&self.parts.reconciler),
            bucket: settings.sync.bucket.clone(),
            key: settings.sync.key.clone(),
            trust: settings.trust.clone(),
            purge: purge(settings),
        });
        let api = Api {
            identity: self.parts.node.identity.clone(),
            started: self.started,
            store: Arc::clone(&self.parts.store),
            host: self.host.clone(),
            bus: self.parts.bus.clone(),
            journal: self.parts.journal.clone(),
            sync,
        };
        self.tasks.push(tokio::spawn(server::serve(listener, Arc::new(api))));
    }

    /// Takes the facts of a node that was described anew. Whether they are other than before; machines see them at once.
    pub fn take_facts(&self, node: &Node) -> bool {
        self.parts.node.set_facts(node.facts().value().clone())
    }

    fn serve_http(&mut self, settings: &Settings, listener: listener::Listener, panel: Arc<Panel>) {
        let api = listener::Api {
            started: self.started,
            store: Arc::clone(&self.parts.store),
            host: self.host.clone(),
            panel,
            delivery: self.parts.bus.delivery(),
            sync: settings.sync.enabled.then(|| Arc::clone(&self.parts.reconciler)),
        };
        self.tasks.push(tokio::spawn(listener::serve(listener, Arc::new(api))));
    }

    /// Whether this is the token that the HTTP listener takes already.
    pub fn takes(&self, token: Option<&Token>) -> bool {
        self.token.as_ref() == token
    }

    /// Takes new settings. Machines are stopped and started again with them; the store and the state stay open. `http` is
    /// the listener, if it is bound already.
    pub async fn reload(mut self, settings: &Settings, http: Option<listener::Listener>) -> Result<Self, Failure> {
        self.end().await;
        let http = match http {
            Some(http) => Some(http),
            // The machines are worth more than a listener.
            None => listen(settings).await.unwrap_or_else(|error| {
                tracing::error!("there is no HTTP listener: {}", machines::errors::chain(&error));
                None
            }),
        };
        Self::start_with(settings, self.parts, http).await
    }

    /// Stops the machines and waits for them, within limits.
    pub async fn stop(mut self) {
        self.end().await;
    }

    async fn end(&mut self) {
        if tokio::time::timeout(STOP_PATIENCE, self.host.stop()).await.is_err() {
            tracing::warn!("some machines did not stop in time");
        }
        self.parts.governors.settle(SLOT_PATIENCE).await;
        self.host_task.abort();
        for task in &self.tasks {
            task.abort();
        }
        futures_util::future::join_all(self.tasks.drain(..)).await;
    }
}

fn start_host(settings: &Settings, parts: &Parts, panel: Arc<Panel>) -> Result<(HostHandle, JoinHandle<()>), Failure> {
    let manager = settings.sync.enabled.then(|| ManagerSettings {
        bucket: settings.sync.bucket.clone(),
        key: settings.sync.key.clone(),
        interval: settings.sync.interval,
        manage_interval: settings.sync.manage_interval,
        purge_unknown: settings.sync.purge_unknown,
    });
    // Without keys in the settings or the binary, those in a machine's own properties count.
    let trust = match &settings.trust {
        Trust::Unsigned => None,
        keys @ Trust::Keys(_) => Some(keys.clone()),
    };
    let services = Services {
        archive_limits: settings.archive.clone(),
        sync: settings.sync.enabled.then(|| Arc::clone(&parts.reconciler)),
        trust,
        governors: Arc::new(parts.governors.clone()),
        panel,
        ..Services::new(Arc::clone(&parts.node), Arc::clone(&parts.store), Arc::clone(&parts.fetcher))
    };
    Ok(host::start(host::Setup {
        local_directory: Some(settings.local_dir.clone()),
        managed_directory: settings.sync.enabled.then(|| parts.reconciler.machines_directory().to_owned()),
        data_directory: data_directory(&settings.state_dir),
        built_in: definitions(manager.as_ref())?,
        kinds: machines::watchers::KINDS,
        services: Arc::new(services),
        bus: parts.bus.clone(),
        rescan: host::RESCAN,
    }))
}

fn data_directory(state_dir: &Path) -> std::path::PathBuf {
    state_dir.join("data")
}
