//! `machinesd run-machine`: machines by hand, in the foreground, told as they go. Nothing of a daemon on this node is
//! touched: data, store and links to the machines are in a temporary directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use machines::archive::{FetchSettings, Fetcher};
use machines::events::{self, Body, Bus, Event};
use machines::host;
use machines::kv::{self, ConnectionSettings, CreateDatabase, Store};
use machines::machine::watcher::{Owners, Services};
use machines::names::MachineName;
use machines::node::Node;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::error::RecvError;

use crate::narrator::{self, Narrator};
use crate::run::runtime;
use crate::shared::{Failure, definition, line, note, problems, warn};

/// A server that was named and has not answered by then is not there.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
const MAXIMUM_JSON_BYTES: u64 = 16 * 1024 * 1024;
/// Machines that have not ended by then are killed with the process.
const STOP_PATIENCE: Duration = Duration::from_secs(8);

pub fn run(
    directories: &[PathBuf],
    facts: Option<&Path>,
    data: Option<&Path>,
    nats: Option<&str>,
) -> Result<(), Failure> {
    let machines = load(directories)?;
    let facts = facts.map(read).transpose()?;
    let data = data.map(read).transpose()?;
    let temporary = tempfile::Builder::new().prefix("machines-run-").tempdir()?;
    // Commands of another user must get through to the machines.
    machines::fs::set_mode(temporary.path(), 0o711)?;
    lay_out(temporary.path(), &machines, data.as_ref())?;
    let narrator = narrator::start();
    let runtime = runtime()?;
    let result = runtime.block_on(live(temporary.path(), facts, nats, &narrator));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// The machines by name, or every fault of every one of them.
fn load(directories: &[PathBuf]) -> Result<BTreeMap<MachineName, PathBuf>, Failure> {
    let mut machines: BTreeMap<MachineName, PathBuf> = BTreeMap::new();
    let mut faulty = false;
    for directory in directories {
        match definition::load(directory) {
            Ok(definition) => {
                let path = std::path::absolute(directory)?;
                if let Some(other) = machines.insert(definition.name.clone(), path) {
                    let (other, directory) = (other.display(), directory.display());
                    note(format!("error: {other} and {directory} are both named \"{}\"; rename one", definition.name));
                    faulty = true;
                }
            }
            Err(found) => {
                problems(&found);
                faulty = true;
            }
        }
    }
    if faulty { Err(Failure::Negative) } else { Ok(machines) }
}

/// A file that holds a JSON object.
fn read(path: &Path) -> Result<Value, Failure> {
    let content = machines::fs::read(path, MAXIMUM_JSON_BYTES)?;
    match serde_json::from_slice(&content) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(format!("{} is JSON, but not an object", path.display()).into()),
        Err(error) => Err(format!("{} is not JSON: {error}", path.display()).into()),
    }
}

/// Makes what the host looks at: a link to each machine, and its data.
fn lay_out(root: &Path, machines: &BTreeMap<MachineName, PathBuf>, data: Option<&Value>) -> Result<(), Failure> {
    let links = root.join("machines");
    machines::fs::create_directory(&links, 0o755)?;
    for (name, directory) in machines {
        machines::fs::replace_symlink(&links.join(name.as_str()), directory)?;
        if let Some(data) = data {
            let own = root.join("data").join(name.as_str());
            machines::fs::create_directory(&own, 0o755)?;
            let path = own.join(machines::machine::data::FILE_NAME);
            machines::fs::write(&path, data.to_string().as_bytes(), 0o600)?;
        }
    }
    Ok(())
}

async fn live(root: &Path, facts: Option<Value>, nats: Option<&str>, narrator: &Narrator) -> Result<(), Failure> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let node = Node::discover(None, &[])?;
    if let Some(facts) = facts {
        node.set_facts(facts);
    }
    let store = open(root, nats).await?;
    answered(&*store, CONNECT_PATIENCE).await?;
    let fetcher = Arc::new(Fetcher::new(FetchSettings::default(), Some(Arc::clone(&store)))?);
    let bus = Bus::default();
    let mut events = bus.listen();
    let carrier = store.nats().map(|client| tokio::spawn(events::nats::publish(bus.clone(), client)));
    let (host, task) = host::start(host::Setup {
        local_directory: Some(root.join("machines")),
        managed_directory: None,
        data_directory: root.join("data"),
        rescan: host::RESCAN,
        built_in: Vec::new(),
        kinds: machines::watchers::KINDS,
        services: Arc::new(Services { owners: Owners::Anyone, ..Services::new(Arc::new(node), store, fetcher) }),
        bus,
    });
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            event = events.recv() => match event {
                Ok(event) => tell(narrator, &event),
                Err(RecvError::Lagged(count)) => narrator.tell("node", &format!("{count} events are not shown")),
                Err(RecvError::Closed) => break,
            },
        }
    }
    line("Stopping.");
    if tokio::time::timeout(STOP_PATIENCE, host.stop()).await.is_err() {
        note("some machines did not stop in time");
    }
    task.abort();
    if let Some(carrier) = carrier {
        carrier.abort();
    }
    Ok(())
}

async fn open(root: &Path, nats: Option<&str>) -> Result<Arc<dyn Store>, Failure> {
    kv::install_tls_provider();
    let settings = match nats {
        Some(url) => {
            let variable = |name: &str| std::env::var(name).ok();
            ConnectionSettings::from_environment(Some(url), &variable).map_err(|error| Failure::Usage(error.into()))?
        }
        None => ConnectionSettings::local(root.join("kv.db"), CreateDatabase::Yes),
    };
    if let Some(exposure) = settings.exposure() {
        warn(exposure);
    }
    Ok(kv::open(&settings).await?)
}

/// Waits for the server, as nothing would tell later why keys and governors are not there.
async fn answered(store: &dyn Store, patience: Duration) -> Result<(), Failure> {
    let deadline = tokio::time::Instant::now() + patience;
    while !store.connection().connected {
        if tokio::time::Instant::now() >= deadline {
            let connection = store.connection();
            return Err(format!("{} did not answer: {}", connection.url, connection.detail).into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Transitions are in the log already.
fn tell(narrator: &Narrator, event: &Event) {
    let Body::WatcherState { watcher, .. } = &event.body else { return };
    let who = format!("{}/{watcher}", event.origin.machine);
    let said = events::print::line(&event.cloud_event());
    let state = said.split_once(&format!("#{watcher} ")).map_or("", |(_, state)| state);
    narrator.tell(&who, state);
}
