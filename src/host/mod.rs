//! The host runs the machines that it finds: built-in ones, the operator's own in `local_dir`, and the managed ones that
//! sync installs. It learns of changes from the directories and from sync, and looks again every 10 s as the safety net.

pub mod built_in;
mod load;
mod notices;
mod scan;
mod scripts;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::digest::Sha256Digest;
use crate::events::Bus;
use crate::machine::definition::Definition;
use crate::machine::fsm::Refused;
use crate::machine::runner::{Handle, Remote};
use crate::machine::status::MachineStatus;
use crate::machine::watcher::{Kind, Services};
use crate::names::{Label, MachineName};
use crate::sync::Lease;

use load::Loaded;
use notices::Notices;
use scan::Found;

/// Directories are looked at this often even if nobody said that they changed.
pub const RESCAN: Duration = Duration::from_secs(10);
/// After a look that the system called for there is one more: a new directory may have been filled, or the local one
/// made anew, in the moment before the system's watch was on it.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// The loop gives a sign of life this often.
const BEAT: Duration = Duration::from_secs(2);
/// So many machines are read and verified at once.
const PARALLEL_LOADS: usize = 4;
/// Changes come in bursts (an editor, `cp -r`); they are taken together.
const SETTLE: Duration = Duration::from_millis(30);

/// Where a machine comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Compiled into the binary.
    BuiltIn,
    /// The operator's own.
    Local,
    /// Installed by sync; verified before each start.
    Managed,
}

/// Where to look, and what to run with.
pub struct Setup {
    pub local_directory: Option<PathBuf>,
    /// The links that sync maintains.
    pub managed_directory: Option<PathBuf>,
    /// Each machine's data is in a directory of its name in here.
    pub data_directory: PathBuf,
    pub built_in: Vec<Arc<Definition>>,
    pub kinds: &'static [Kind],
    pub services: Arc<Services>,
    pub bus: Bus,
    /// How often to look without being told of a change: [`RESCAN`], unless a test wants to see what is told.
    pub rescan: Duration,
}

/// What a reload may change of the setup while machines run; only the machines that it concerns are stopped or started.
#[derive(Debug, Clone)]
struct Sources {
    local_directory: Option<PathBuf>,
    built_in: Vec<Arc<Definition>>,
}

/// A machine as the host knows it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub source: Source,
    pub path: PathBuf,
    /// `None`: it does not run, and `problem` says why.
    pub machine: Option<Arc<MachineStatus>>,
    /// What keeps it from running; with a machine: why a newer definition was not taken.
    pub problem: Option<String>,
}

#[derive(Clone)]
struct View {
    source: Source,
    path: PathBuf,
    remote: Option<Remote>,
    problem: Option<String>,
}

/// The running host, seen from outside; cheap to clone.
#[derive(Clone)]
pub struct HostHandle {
    views: watch::Receiver<Arc<Vec<View>>>,
    rescan: Arc<Notify>,
    sources: watch::Sender<Sources>,
    stop: mpsc::Sender<oneshot::Sender<()>>,
    beats: watch::Receiver<()>,
}

/// A machine that was asked for by hand and is not there, or would not move.
#[derive(Debug, thiserror::Error)]
pub enum TransitionError {
    #[error("no machine is called {selector:?}; there are: {known}")]
    NoMachine { selector: String, known: String },
    #[error("{selector:?} could be any of {matches}; give the path or the id")]
    Ambiguous { selector: String, matches: String },
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl HostHandle {
    /// All machines, built-in ones first, then by path.
    pub fn reports(&self) -> Vec<Report> {
        let report = |view: &View| Report {
            source: view.source,
            path: view.path.clone(),
            machine: view.remote.as_ref().map(Remote::status),
            problem: match &view.remote {
                Some(remote) if !remote.is_running() => Some("it has ended unexpectedly; see the log".to_owned()),
                _ => view.problem.clone(),
            },
        };
        self.views.borrow().iter().map(report).collect()
    }

    /// Makes a transition of the machine with this name, version, path or instance id.
    ///
    /// # Errors
    /// When there is no such machine, or the transition is not valid in its state.
    pub async fn transition(&self, selector: &str, event: &str) -> Result<Label, TransitionError> {
        Ok(self.find(selector)?.transition(event).await?)
    }

    /// The name of the machine that a selector of [`Self::transition`] means.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn name_of(&self, selector: &str) -> Result<MachineName, TransitionError> {
        Ok(self.find(selector)?.status().name.clone())
    }

    fn find(&self, selector: &str) -> Result<Remote, TransitionError> {
        let views = Arc::clone(&self.views.borrow());
        let running = views.iter().filter_map(|view| view.remote.as_ref().map(|remote| (view, remote)));
        let running: Vec<_> = running.map(|(view, remote)| (view, remote, remote.status())).collect();
        let fits = |view: &View, status: &MachineStatus| {
            status.name.as_str() == selector
                || status.version.as_str() == selector
                || status.id == selector
                || view.path.as_os_str() == selector
        };
        let matches: Vec<_> = running.iter().filter(|(view, _, status)| fits(view, status)).collect();
        match matches.as_slice() {
            [(_, remote, _)] => Ok(Remote::clone(remote)),
            [] => {
                let known = running.iter().map(|(_, _, status)| status.name.as_str()).collect::<Vec<_>>().join(", ");
                Err(TransitionError::NoMachine { selector: selector.to_owned(), known })
            }
            several => {
                let matches = several.iter().map(|(view, _, _)| view.path.display().to_string());
                let matches = matches.collect::<Vec<_>>().join(", ");
                Err(TransitionError::Ambiguous { selector: selector.to_owned(), matches })
            }
        }
    }

    /// Takes the operator's own machines from another directory. Those that ran from the one before are stopped.
    pub fn set_local_directory(&self, directory: PathBuf) {
        self.sources.send_modify(|sources| sources.local_directory = Some(directory));
    }

    /// Runs these built-in machines; one that is as it was before goes on.
    pub fn set_built_in(&self, definitions: Vec<Arc<Definition>>) {
        self.sources.send_modify(|sources| sources.built_in = definitions);
    }

    /// Looks at the directories now.
    pub fn rescan(&self) {
        self.rescan.notify_one();
    }

    /// Stops every machine and waits for them.
    pub async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        if self.stop.send(done).await.is_ok() {
            _ = stopped.await;
        }
    }

    /// Waits for the next sign of life of the host's loop; false when it has ended. For the watchdog. The loop beats
    /// also while it reads and verifies machines, however long their disk takes.
    pub async fn answers(&self) -> bool {
        let mut beats = self.beats.clone();
        beats.mark_unchanged();
        beats.changed().await.is_ok()
    }
}

struct Entry {
    found: Found,
    running: Option<Running>,
    problem: Option<Refusal>,
}

struct Running {
    handle: Handle,
    /// Of the definition.
    digest: Sha256Digest,
    /// Keeps the files that it runs from.
    lease: Option<Lease>,
}

/// Why what was found is not taken.
#[derive(PartialEq, Eq)]
enum Refusal {
    /// It must change before it can run.
    Itself(String),
    /// Its files are not what was installed; sync may repair them in place.
    Unverified(String),
    /// It can run when another machine is gone.
    NameTaken(String),
    /// Somebody else could change it, which a `chown` mends.
    Untrusted(String),
}

impl Refusal {
    fn message(&self) -> &str {
        match self {
            Self::Itself(message) | Self::Unverified(message) | Self::NameTaken(message) | Self::Untrusted(message) => {
                message
            }
        }
    }
}

struct Host {
    setup: Setup,
    entries: BTreeMap<(Source, PathBuf), Entry>,
    views: watch::Sender<Arc<Vec<View>>>,
    rescan: Arc<Notify>,
    /// Why directories can't be listed, as the log was told: once, not on every look.
    unreadable: BTreeMap<Source, String>,
    notices: Option<Notices>,
}

/// Starts the host as a task.
pub fn start(setup: Setup) -> (HostHandle, JoinHandle<()>) {
    let (views, receiver) = watch::channel(Arc::default());
    let (stop, stopped) = mpsc::channel(1);
    let (beat, beats) = watch::channel(());
    let rescan = Arc::new(Notify::new());
    let sources = Sources { local_directory: setup.local_directory.clone(), built_in: setup.built_in.clone() };
    let (sources, other_sources) = watch::channel(sources);
    let handle = HostHandle { views: receiver, rescan: Arc::clone(&rescan), sources, stop, beats };
    let host = Host { setup, entries: BTreeMap::new(), views, rescan, unreadable: BTreeMap::new(), notices: None };
    let task = tokio::spawn(host.run(stopped, other_sources, beat));
    (handle, task)
}

impl Host {
    async fn run(
        mut self,
        mut stop: mpsc::Receiver<oneshot::Sender<()>>,
        mut sources: watch::Receiver<Sources>,
        beat: watch::Sender<()>,
    ) {
        let mut changes = self.setup.services.sync.as_ref().map(|sync| sync.changes());
        let rescan = Arc::clone(&self.rescan);
        let mut pause = SECOND_LOOK;
        let done = 'run: loop {
            self.watch_local_directory();
            {
                let mut look = pin!(self.look());
                while tokio::time::timeout(BEAT, &mut look).await.is_err() {
                    _ = beat.send(());
                }
            }
            let next = tokio::time::Instant::now() + pause.min(self.setup.rescan);
            pause = loop {
                _ = beat.send(());
                tokio::select! {
                    done = stop.recv() => break 'run done,
                    () = tokio::time::sleep(BEAT) => {}
                    () = rescan.notified() => {
                        tokio::time::sleep(SETTLE).await;
                        break SECOND_LOOK;
                    }
                    () = changed(&mut changes) => break self.setup.rescan,
                    Ok(()) = sources.changed() => {
                        let Sources { local_directory, built_in } = sources.borrow_and_update().clone();
                        (self.setup.local_directory, self.setup.built_in) = (local_directory, built_in);
                        break SECOND_LOOK;
                    }
                    () = tokio::time::sleep_until(next) => break self.setup.rescan,
                }
            };
        };
        let everything = self.entries.keys().cloned().collect();
        self.stop_entries(everything).await;
        if let Some(done) = done {
            _ = done.send(());
        }
    }

    /// Makes what runs agree with what is there. A machine whose new definition is broken goes on with the old one.
    async fn look(&mut self) {
        let scan::Scan { found, unreadable } = scan::scan(&self.setup).await;
        let is_gone = |key: &&(Source, PathBuf)| !found.contains_key(*key) && !unreadable.contains_key(&key.0);
        let gone: Vec<_> = self.entries.keys().filter(is_gone).cloned().collect();
        let mut changed = !gone.is_empty();
        for (source, why) in unreadable.iter().filter(|(source, why)| self.unreadable.get(source) != Some(why)) {
            tracing::error!(?source, "its machines stay as they are: {why}");
        }
        self.unreadable = unreadable;
        self.stop_entries(gone).await;
        let is_new = |(key, found): &((Source, PathBuf), Found)| {
            !self.entries.get(key).is_some_and(|entry| entry.found.same_as(found) && entry.is_settled())
        };
        let new: Vec<_> = found.into_iter().filter(is_new).collect();
        changed |= !new.is_empty();
        let setup = &self.setup;
        let load = |(key, found): ((Source, PathBuf), Found)| async move {
            let loaded = load::load(setup, key.0, &found).await;
            (key, found, loaded)
        };
        let loaded: Vec<_> = futures_util::stream::iter(new).map(load).buffered(PARALLEL_LOADS).collect().await;
        for (key, found, loaded) in loaded {
            match loaded.and_then(|loaded| self.check_name(&key, &loaded).map(|()| loaded)) {
                Ok(loaded) if self.runs_already(&key, &loaded) => {
                    if let Some(entry) = self.entries.get_mut(&key) {
                        (entry.found, entry.problem) = (found, None);
                    }
                }
                Ok(mut loaded) => {
                    self.stop_entries(vec![key.clone()]).await;
                    let (name, version) = (&loaded.definition.name, &loaded.definition.version);
                    tracing::info!(machine = %name, %version, path = %loaded.directory.display(), "machine starts");
                    let digest = loaded.definition.digest;
                    let lease = loaded.lease.take();
                    let running = Some(Running { handle: loaded.spawn(&self.setup), digest, lease });
                    self.entries.insert(key, Entry { found, running, problem: None });
                }
                Err(problem) => self.note_broken(key, found, problem),
            }
        }
        if changed {
            self.publish();
        }
    }

    /// A definition that was only touched, or broken and mended, is no reason to begin anew. What sync installs is: the
    /// files beside the definition have changed.
    fn runs_already(&self, key: &(Source, PathBuf), loaded: &Loaded) -> bool {
        let running = self.entries.get(key).and_then(|entry| entry.running.as_ref());
        let same = |running: &Running| running.digest == loaded.definition.digest && running.handle.remote.is_running();
        key.0 == Source::Local && running.is_some_and(same)
    }

    fn note_broken(&mut self, key: (Source, PathBuf), found: Found, problem: Refusal) {
        let before = self.entries.remove(&key);
        // Managed machines are tried again on every look; one line in the log is enough.
        if before.as_ref().is_none_or(|before| before.problem.as_ref() != Some(&problem)) {
            let goes_on = before.as_ref().is_some_and(|before| before.running.is_some());
            let consequence = if goes_on { "the new definition is not taken" } else { "machine not started" };
            tracing::error!(path = %key.1.display(), "{consequence}: {}", problem.message());
        }
        let running = before.and_then(|before| before.running);
        self.entries.insert(key, Entry { found, running, problem: Some(problem) });
    }

    /// Two machines of one name would share their data directory and could not be told apart in events.
    fn check_name(&self, key: &(Source, PathBuf), loaded: &Loaded) -> Result<(), Refusal> {
        let name = &loaded.definition.name;
        let other = self.entries.iter().find(|(other, entry)| {
            *other != key && entry.running.as_ref().is_some_and(|running| running.handle.remote.status().name == *name)
        });
        match other {
            None => Ok(()),
            Some((other, _)) => Err(Refusal::NameTaken(format!(
                "a machine called \"{name}\" runs already, from {}; rename one of them",
                other.1.display()
            ))),
        }
    }

    /// Stops these at the same time, and forgets them.
    async fn stop_entries(&mut self, keys: Vec<(Source, PathBuf)>) {
        let running = keys.iter().filter_map(|key| self.entries.remove(key)?.running);
        let stopping = running.map(|Running { handle, lease, .. }| async move {
            tracing::info!(machine = %handle.remote.status().name, "machine stops");
            handle.stop().await;
            drop(lease);
        });
        futures_util::future::join_all(stopping.collect::<Vec<_>>()).await;
    }

    fn publish(&self) {
        let view = |(key, entry): (&(Source, PathBuf), &Entry)| View {
            source: key.0,
            path: key.1.clone(),
            remote: entry.running.as_ref().map(|running| running.handle.remote.clone()),
            problem: entry.problem.as_ref().map(|problem| problem.message().to_owned()),
        };
        self.views.send_replace(Arc::new(self.entries.iter().map(view).collect()));
    }

    /// Asks the system to tell of changes.
    fn watch_local_directory(&mut self) {
        let before = self.notices.take();
        self.notices = self.setup.local_directory.as_ref().map(|local| Notices::of(local, &self.rescan, before));
    }
}

impl Entry {
    /// Whether it need not be loaded again while nothing changes. A managed machine that failed its verification is
    /// tried again: sync may have repaired it in place.
    fn is_settled(&self) -> bool {
        match (&self.problem, &self.running) {
            (Some(Refusal::Itself(_)), _) => true,
            (None, Some(running)) => running.handle.remote.is_running(),
            (Some(Refusal::Unverified(_) | Refusal::NameTaken(_) | Refusal::Untrusted(_)), _) | (None, None) => false,
        }
    }
}

async fn changed(changes: &mut Option<watch::Receiver<u64>>) {
    match changes {
        Some(receiver) => {
            if receiver.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}
