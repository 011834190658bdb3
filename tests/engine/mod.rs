//! What the tests of the engine share: services over real parts, machines from text, watchers that do as a test says,
//! and the events that they publish.

#![allow(dead_code, reason = "shared by test programs of which each uses a part")]

pub mod fields;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use machines::archive::{FetchSettings, Fetcher};
use machines::events::{Bus, Event};
use machines::kv::{self, ConnectionSettings, CreateDatabase, Store};
use machines::machine::data::Snapshot;
use machines::machine::definition::Definition;
use machines::machine::runner::{self, Handle};
use machines::machine::status::{MachineStatus, WatcherStatus};
use machines::machine::watcher::{
    Background, BuildContext, Cause, Check, Context, Fire, Fires, Kind, Report, Seen, Services, Signal, Watcher,
    build_all, schema_of,
};
use machines::names::Identity;
use machines::node::Node;
use machines::process::System;
use serde_json::{Map, Value};
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

/// A directory and services, enough to run machines.
pub struct Lab {
    pub directory: tempfile::TempDir,
    pub services: Arc<Services>,
    pub bus: Bus,
}

impl Lab {
    /// With an embedded store of its own.
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = ConnectionSettings::local(directory.path().join("kv.db"), CreateDatabase::Yes);
        let store = kv::open(&settings).await.unwrap();
        Self::with_store(directory, store)
    }

    pub fn with_store(directory: tempfile::TempDir, store: Arc<dyn Store>) -> Self {
        let identity = Identity::new("node1.example.net").unwrap();
        let node = Node::new(identity, serde_json::json!({"role": "web", "cpus": 2}), Vec::new().into());
        let fetcher = Arc::new(Fetcher::new(FetchSettings::default(), Some(Arc::clone(&store))).unwrap());
        let commands = Arc::new(System::with_helper(env!("CARGO_BIN_EXE_machinesd").into()));
        let services = Services { commands, ..Services::new(Arc::new(node), store, fetcher) };
        Self { directory, services: Arc::new(services), bus: Bus::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The directory of a machine; made when it is first asked for.
    pub fn machine_directory(&self, name: &str) -> PathBuf {
        let path = self.path("machines").join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// What `machine_data.json` of a machine is.
    pub fn saved(&self, name: &str) -> Option<Value> {
        let content = std::fs::read(self.path("data").join(name).join("machine_data.json")).ok()?;
        Some(serde_json::from_slice(&content).unwrap())
    }

    /// Runs a machine with these watchers in the place of those of its kinds.
    pub fn spawn_with(&self, text: &str, watchers: Built) -> Handle {
        let definition = definition(text);
        assert_eq!(definition.watchers.len(), watchers.len(), "one watcher for each in the text");
        let name = definition.name.as_str().to_owned();
        runner::spawn(runner::Setup {
            watchers,
            directory: self.machine_directory(&name),
            data_directory: self.path("data").join(&name),
            definition,
            services: Arc::clone(&self.services),
            bus: self.bus.clone(),
        })
    }

    /// Runs a machine with probes as its watchers.
    pub fn spawn(&self, text: &str, probes: &[&Arc<Probe>]) -> Handle {
        let watchers = probes.iter().map(|probe| (PROBE, Arc::clone(probe) as Arc<dyn Watcher>));
        self.spawn_with(text, watchers.collect())
    }

    /// Runs a machine as the daemon would.
    pub fn spawn_real(&self, text: &str) -> Handle {
        self.spawn_with(text, build(text).unwrap())
    }

    pub fn events(&self) -> Events {
        Events { receiver: self.bus.listen() }
    }
}

pub fn definition(text: &str) -> Arc<Definition> {
    Arc::new(Definition::parse(Path::new("machine.yaml"), text).unwrap_or_else(|problems| panic!("{problems}\n{text}")))
}

/// Watchers, each with its kind.
pub type Built = Vec<(Kind, Arc<dyn Watcher>)>;

/// The watchers of a machine, or its faults as a person reads them.
pub fn build(text: &str) -> Result<Built, String> {
    let path = Path::new("machine.yaml");
    let definition = Definition::parse(path, text).map_err(|problems| problems.to_string())?;
    build_all(&definition, machines::watchers::KINDS)
        .map_err(|problems| machines::machine::problem::Problems::new(path, text, problems).to_string())
}

/// What machines publish.
pub struct Events {
    receiver: broadcast::Receiver<Arc<Event>>,
}

impl Events {
    /// Those that were published since the last call, as CloudEvents.
    pub fn drain(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.receiver.try_recv().ok()).map(|event| event.cloud_event()).collect()
    }

    /// Whether nothing was published since the last call.
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    /// The names of the transitions since the last call.
    pub fn transitions(&mut self) -> Vec<String> {
        self.drain().iter().filter_map(|event| event["data"]["transition"].as_str().map(str::to_owned)).collect()
    }
}

pub fn watcher(status: &MachineStatus, name: &str) -> WatcherStatus {
    status.watchers.iter().find(|watcher| watcher.name.as_str() == name).cloned().unwrap()
}

/// Lets everything run that can, without the clock moving.
pub async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// The kind of the watchers that do as a test says.
pub const PROBE: Kind = Kind {
    name: "probe",
    summary: "does as the test says",
    minimum_interval: Duration::from_millis(1),
    default_interval: None,
    outcomes: &["good", "error"],
    build: build_probe,
    example: "",
    fires: Fires::Both,
    schema: schema_of::<()>,
};

#[expect(clippy::unnecessary_wraps, reason = "the signature is that of every kind")]
fn build_probe(_: &BuildContext<'_>) -> Result<Arc<dyn Watcher>, Vec<machines::machine::problem::Problem>> {
    Ok(Probe::new(|_| Step::Report(Report::new("good"))))
}

/// What a probe does in a check.
pub enum Step {
    Report(Report),
    /// Reports after this time.
    After(Duration, Report),
    /// Reports when the test says so.
    When(Arc<Notify>, Report),
    Panic,
}

pub fn good() -> Step {
    Step::Report(Report::new("good"))
}

pub fn success() -> Step {
    Step::Report(Report::new("good").fire(Fire::Success))
}

pub fn fail() -> Step {
    Step::Report(Report::new("good").fire(Fire::Fail))
}

/// One check of a probe, as it began.
#[derive(Clone)]
pub struct Call {
    /// Since the probe was made.
    pub at: Duration,
    pub cause: Cause,
    pub state: String,
    pub data: Snapshot,
}

type Behaviour = Box<dyn Fn(usize) -> Step + Send + Sync>;

/// A watcher that does as a test says and remembers its checks.
pub struct Probe {
    behaviour: Behaviour,
    made: Instant,
    calls: Mutex<Vec<Call>>,
    signal: Mutex<Option<Signal>>,
    running: AtomicUsize,
    pub most_at_once: AtomicUsize,
    pub not_fired: AtomicUsize,
    reads: Vec<String>,
    limit: Duration,
}

/// Counts a check as running until it is dropped.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Probe {
    /// The behaviour is asked at each check, with the number of checks before.
    pub fn new(behaviour: impl Fn(usize) -> Step + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self::plain(behaviour))
    }

    pub fn reading(item: &str, behaviour: impl Fn(usize) -> Step + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { reads: vec![item.to_owned()], ..Self::plain(behaviour) })
    }

    pub fn limited(limit: Duration, behaviour: impl Fn(usize) -> Step + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { limit, ..Self::plain(behaviour) })
    }

    fn plain(behaviour: impl Fn(usize) -> Step + Send + Sync + 'static) -> Self {
        Self {
            behaviour: Box::new(behaviour),
            made: Instant::now(),
            calls: Mutex::default(),
            signal: Mutex::default(),
            running: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            not_fired: AtomicUsize::new(0),
            reads: Vec::new(),
            limit: Duration::from_secs(3_600),
        }
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// The times between the checks.
    pub fn gaps(&self) -> Vec<Duration> {
        let calls = self.calls();
        calls.windows(2).map(|pair| pair[1].at - pair[0].at).collect()
    }

    pub fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    /// Calls for a check, as a change outside does.
    pub fn signal(&self) {
        self.signal.lock().unwrap().as_ref().expect("the machine has started").check();
    }
}

#[async_trait]
impl Watcher for Probe {
    async fn check(&self, check: Check) -> Report {
        let before = {
            let mut calls = self.calls.lock().unwrap();
            let (cause, state, data) = (check.cause, check.state.to_string(), check.data);
            calls.push(Call { at: self.made.elapsed(), cause, state, data });
            calls.len() - 1
        };
        let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        let _running = Running(&self.running);
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        match (self.behaviour)(before) {
            Step::Report(report) => report,
            Step::After(time, report) => {
                tokio::time::sleep(time).await;
                report
            }
            Step::When(gate, report) => {
                gate.notified().await;
                report
            }
            Step::Panic => panic!("as the test says"),
        }
    }

    fn timeout(&self) -> Duration {
        self.limit
    }

    fn reads(&self) -> Vec<String> {
        self.reads.clone()
    }

    fn observe(&self, _: &Context, signal: Signal) -> Option<Background> {
        *self.signal.lock().unwrap() = Some(signal);
        None
    }

    fn not_fired(&self, _: Fire) {
        self.not_fired.fetch_add(1, Ordering::SeqCst);
    }

    fn event_fields(&self, seen: &Seen) -> Map<String, Value> {
        Map::from_iter([("previous_outcome".to_owned(), seen.outcome.into())])
    }
}
