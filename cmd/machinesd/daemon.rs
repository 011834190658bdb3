//! The daemon put together from its rooms: opened once, then run, changed piece by piece, and stopped.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use machines::archive::Fetcher;
use machines::config::Settings;
use machines::control::listener;
use machines::control::server::{self, Api, Following, Listener, SyncApi};
use machines::control::{maintenance, metrics};
use machines::events::{self, Bus};
use machines::governor::{Governors, StoreGovernors};
use machines::host::built_in::{Begins, ManagerSettings, definitions};
use machines::host::{self, HostHandle};
use machines::journal::Journal;
use machines::kv::{ConnectionSettings, KvError, Store, Target};
use machines::machine::definition::Definition;
use machines::machine::panel::Panel;
use machines::machine::watcher::{Owners, Services};
use machines::node::{FactsFiles, Node};
use machines::process::{Bounds, Containment, System};
use machines::spec::TrustInForce;
use machines::sync::{Purge, Reconciler, Settings as SyncSettings, StateLock};
use tokio::sync::watch;
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
    pub owners: Owners,
    fetcher: Arc<Fetcher>,
    node: Arc<Node>,
    journal: Journal,
}

impl Parts {
    /// Takes the state directory, opens the store. Nothing runs yet.
    pub async fn open(settings: &Settings) -> Result<Self, Failure> {
        machines::kv::install_tls_provider();
        machines::fs::create_directory(&settings.state_dir, 0o755)?;
        // Before anything is opened: what is damaged is moved aside, which must not happen under another daemon.
        let lock = StateLock::take(&settings.state_dir)?;
        let node = Arc::new(observe(settings)?);
        if let Some(unusable) = node.facts().unusable() {
            tracing::error!("the facts can't be used, and what asks for them fails: {}", unusable.reason);
        }
        let mut sync = SyncSettings::new(settings.state_dir.clone());
        sync.archive_limits = settings.archive.clone();
        sync.hold_removals_over_percent = settings.sync.hold_removals_over_percent;
        if let Some(exposure) = settings.kv.exposure() {
            tracing::warn!("[kv] url: {exposure}");
        }
        let store = open_store(&settings.kv).await?;
        let fetcher = Arc::new(Fetcher::new(settings.fetch.clone(), Some(Arc::clone(&store)))?);
        let journal = Journal::open_or_set_aside(&settings.state_dir.join("state.db"))?;
        let governors = StoreGovernors::new(&*store);
        let governing: Arc<dyn Governors> = Arc::new(governors.clone());
        let (own, fetching, writing) = (Arc::clone(&node), Arc::clone(&fetcher), journal.clone());
        let reconciler = Arc::new(Reconciler::open_locked(sync, own, fetching, writing, Some(governing), lock)?);
        Ok(Self {
            store,
            reconciler,
            bus: Bus::default(),
            governors,
            owners: Owners::OursAlone,
            fetcher,
            node,
            journal,
        })
    }
}

/// A damaged embedded store is moved aside as the state database is: what was accepted before is followed without it.
async fn open_store(settings: &ConnectionSettings) -> Result<Arc<dyn Store>, Failure> {
    match (machines::kv::open(settings).await, &settings.target) {
        (Err(KvError::CorruptDatabase { .. }), Target::Local(path)) => {
            let moved = machines::journal::set_aside(path, Timestamp::now())?;
            tracing::error!(
                "the embedded store {} is damaged and was moved to {}; what was published in it is not there: publish it again",
                path.display(),
                moved.display()
            );
            Ok(machines::kv::open(settings).await?)
        }
        (result, _) => Ok(result?),
    }
}

/// The node as the settings want it seen.
fn observe(settings: &Settings) -> Result<Node, Failure> {
    Ok(Node::observe(settings.identity.clone(), &facts_files(settings))?)
}

fn facts_files(settings: &Settings) -> FactsFiles {
    FactsFiles::listed(&settings.facts, &settings.state_dir)
}

/// The node as new settings want it seen: facts files that can't be used refuse the settings.
pub fn discover(settings: &Settings) -> Result<Node, Failure> {
    let node = observe(settings)?;
    match node.facts().usable() {
        Ok(_) => Ok(node),
        Err(error) => Err(Failure::Error(error.into())),
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

/// What a reload may exchange by itself.
struct Served {
    listener: listener::Listener,
    task: JoinHandle<()>,
}

/// A running daemon.
pub struct Daemon {
    pub host: HostHandle,
    bounds: Bounds,
    parts: Parts,
    host_task: JoinHandle<()>,
    /// What goes on for as long as the daemon does.
    tasks: Vec<JoinHandle<()>>,
    facts: JoinHandle<()>,
    http: Option<Served>,
    textfiles: Option<JoinHandle<()>>,
    panel: Arc<Panel>,
    trust: TrustInForce,
    following: watch::Sender<Following>,
    started: Timestamp,
}

impl Daemon {
    /// Starts to run machines and to answer on the control socket.
    pub async fn start(settings: &Settings, parts: Parts) -> Result<Self, Failure> {
        let http = listen(settings).await?;
        let listener = server::listen(&settings.socket).await?;
        let mut tasks = Vec::new();
        if let Some(client) = parts.store.nats() {
            tasks.push(tokio::spawn(events::nats::publish(parts.bus.clone(), client)));
        }
        let system = System::default().contained(Containment::establish(&settings.process)?);
        system.clean();
        let bounds = system.bounds();
        tasks.push(tokio::spawn(machines::process::orphans::reap(bounds.by)));
        let panel = Arc::new(Panel::default());
        let trust = TrustInForce::new(settings.trust.clone());
        let (host, host_task) = start_host(settings, &parts, Arc::clone(&panel), trust.clone(), system)?;
        let facts = tokio::spawn(machines::node::follow(Arc::clone(&parts.node), Arc::new(facts_files(settings))));
        let mut daemon = Self {
            host,
            bounds,
            parts,
            host_task,
            tasks,
            facts,
            http: None,
            textfiles: None,
            panel,
            trust,
            following: watch::Sender::new(following(settings)),
            started: Timestamp::now(),
        };
        daemon.serve(settings, listener);
        daemon.serve_http(settings, http).await;
        daemon.write_textfiles(settings).await;
        Ok(daemon)
    }

    fn serve(&mut self, settings: &Settings, listener: Listener) {
        let reconciler = || Arc::clone(&self.parts.reconciler);
        let (desk, maintenance) = maintenance::open(reconciler(), self.host.clone());
        if settings.sync.enabled {
            self.tasks.push(tokio::spawn(maintenance));
        }
        let api = Api {
            node: Arc::clone(&self.parts.node),
            started: self.started,
            store: Arc::clone(&self.parts.store),
            host: self.host.clone(),
            bus: self.parts.bus.clone(),
            journal: self.parts.journal.clone(),
            bounds: self.bounds.clone(),
            sync: settings.sync.enabled.then(|| SyncApi {
                reconciler: reconciler(),
                maintenance: desk,
                following: self.following.subscribe(),
            }),
        };
        self.tasks.push(tokio::spawn(server::serve(listener, Arc::new(api))));
    }

    /// Takes the facts of a node that was described anew. Whether they are other than before; machines see them at once.
    pub fn take_facts(&self, node: &Node) -> bool {
        self.parts.node.set_facts(node.facts().value().clone())
    }

    /// Follows other facts files.
    pub async fn follow_facts(&mut self, settings: &Settings) {
        let task = tokio::spawn(machines::node::follow(Arc::clone(&self.parts.node), Arc::new(facts_files(settings))));
        ended(std::mem::replace(&mut self.facts, task)).await;
    }

    /// The HTTP listener, if there is one.
    pub fn http(&self) -> Option<&listener::Listener> {
        self.http.as_ref().map(|served| &served.listener)
    }

    /// Answers there from now on, and nowhere else. Connections of before end: nothing may go on with the token of before.
    pub async fn serve_http(&mut self, settings: &Settings, listener: Option<listener::Listener>) {
        if let Some(served) = self.http.take() {
            ended(served.task).await;
        }
        let Some(listener) = listener else { return };
        let api = listener::Api {
            started: self.started,
            store: Arc::clone(&self.parts.store),
            host: self.host.clone(),
            panel: Arc::clone(&self.panel),
            delivery: self.parts.bus.delivery(),
            sync: settings.sync.enabled.then(|| Arc::clone(&self.parts.reconciler)),
        };
        let task = tokio::spawn(listener::serve(listener.clone(), Arc::new(api)));
        self.http = Some(Served { listener, task });
    }

    /// Writes the files for `node_exporter` where the settings want them, and takes away those of before.
    pub async fn write_textfiles(&mut self, settings: &Settings) {
        if let Some(task) = self.textfiles.take() {
            ended(task).await;
        }
        let panel = Arc::clone(&self.panel);
        self.textfiles = settings
            .textfile_directory
            .clone()
            .map(|directory| tokio::spawn(async move { metrics::write_files(panel, &directory).await }));
    }

    /// Trusts whom the settings trust. What was accepted is judged anew at once; no machine is started again for it.
    pub fn set_trust(&self, settings: &Settings) {
        self.following.send_replace(following(settings));
        self.trust.set(settings.trust.clone());
    }

    /// The built-in machines as these settings want them.
    pub fn built_in(&self, settings: &Settings) -> Result<Vec<Arc<Definition>>, Failure> {
        built_in(settings, &self.parts)
    }

    /// Follows the specification as the settings want it: only the machine that does so starts again.
    pub fn set_manager(&self, settings: &Settings, built_in: Vec<Arc<Definition>>) {
        self.following.send_replace(following(settings));
        self.host.set_built_in(built_in);
    }

    /// Stops the machines and waits for them, within limits.
    pub async fn stop(mut self) {
        if tokio::time::timeout(STOP_PATIENCE, self.host.stop()).await.is_err() {
            tracing::warn!("some machines did not stop in time");
        }
        self.parts.reconciler.settled().await;
        self.parts.governors.settle(SLOT_PATIENCE).await;
        let own = [self.host_task, self.facts].into_iter();
        let all = own.chain(self.tasks.drain(..)).chain(self.textfiles).chain(self.http.map(|served| served.task));
        futures_util::future::join_all(all.map(ended).collect::<Vec<_>>()).await;
    }
}

async fn ended(task: JoinHandle<()>) {
    task.abort();
    _ = task.await;
}

/// The built-in machines as the settings want them, and the record of maintenance.
///
/// # Errors
/// Never for the machines of this repository.
fn built_in(settings: &Settings, parts: &Parts) -> Result<Vec<Arc<Definition>>, Failure> {
    let is_in_maintenance = parts.reconciler.maintenance().is_some();
    let manager = settings.sync.enabled.then(|| ManagerSettings {
        bucket: settings.sync.bucket.clone(),
        key: settings.sync.key.clone(),
        interval: settings.sync.interval,
        manage_interval: settings.sync.manage_interval,
        purge_unknown: settings.sync.purge_unknown,
        begins: if is_in_maintenance { Begins::InMaintenance } else { Begins::Normally },
    });
    Ok(definitions(manager.as_ref())?)
}

fn following(settings: &Settings) -> Following {
    Following {
        bucket: settings.sync.bucket.clone(),
        key: settings.sync.key.clone(),
        trust: settings.trust.clone(),
        purge: purge(settings),
    }
}

fn start_host(
    settings: &Settings,
    parts: &Parts,
    panel: Arc<Panel>,
    trust: TrustInForce,
    system: System,
) -> Result<(HostHandle, JoinHandle<()>), Failure> {
    let services = Services {
        archive_limits: settings.archive.clone(),
        sync: settings.sync.enabled.then(|| Arc::clone(&parts.reconciler)),
        trust,
        owners: parts.owners,
        governors: Arc::new(parts.governors.clone()),
        panel,
        commands: Arc::new(system),
        ..Services::new(Arc::clone(&parts.node), Arc::clone(&parts.store), Arc::clone(&parts.fetcher))
    };
    Ok(host::start(host::Setup {
        local_directory: Some(settings.local_dir.clone()),
        managed_directory: settings.sync.enabled.then(|| parts.reconciler.machines_directory().to_owned()),
        data_directory: data_directory(&settings.state_dir),
        built_in: built_in(settings, parts)?,
        kinds: machines::watchers::KINDS,
        services: Arc::new(services),
        bus: parts.bus.clone(),
        rescan: host::RESCAN,
    }))
}

fn data_directory(state_dir: &Path) -> std::path::PathBuf {
    state_dir.join("data")
}
