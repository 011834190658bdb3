//! The sync room: makes the machines on this node agree with a signed specification.
//!
//! [`plan`] decides (pure), `apply` carries out one step, `store` is the disk, `state` is what is remembered, `status`
//! is what others are told, `reconcile` is the pass that ties them together, and `account` what is told of it.
//!
//! In: the exact bytes of an envelope, whom to trust, and the policies. Out: a [`Pass`], the [`SyncStatus`], a signal
//! when what is installed changes, and the gate [`Reconciler::verify_for_start`] that the host asks before it runs
//! anything.

mod account;
mod apply;
mod backoff;
mod lease;
mod maintenance;
mod matching;
mod memory;
mod offers;
pub mod plan;
mod reconcile;
mod state;
mod status;
mod store;

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

pub use lease::Lease;
pub use maintenance::Maintenance;
pub use plan::{Action, HeldRemovals, Purge, Removals};
pub use status::{
    Disbelief, LostMemory, MachineOutcome, MachineState, MachineStatus, Outcome, Pass, Refusal, SpecificationStatus,
    Standing, SyncStatus, nothing_published,
};

use self::backoff::Backoff;
use self::lease::Leases;
use self::maintenance::{During, Record};
use self::matching::Matcher;
use self::memory::{Kind, Memory, Stored, Turn};
use self::offers::{Call, Offers, Side, Work};
use self::reconcile::{Offer, Rules};
use self::state::State;
use self::store::{CopyName, Store};
use crate::archive::{self, Fetcher};
use crate::digest::Sha256Digest;
use crate::errors::chain;
use crate::fs::{self, FileError};
use crate::governor::Governors;
use crate::journal::{DatabaseError, Journal};
use crate::names::MachineName;
use crate::node::Node;
use crate::spec::{self, Form, Trust};

/// How long the lock of the state directory may be held by what a killed daemon left behind.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// How long the end of what was broken off is waited for.
const BREAKING_OFF: Duration = Duration::from_secs(5);

/// The settings of sync.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where `store`, `machines` and the lock are.
    pub state_dir: PathBuf,
    /// Bounds of what an archive may hold.
    pub archive_limits: archive::Limits,
    /// Bounds of what a specification may ask for.
    pub specification_limits: spec::Limits,
    /// Machines that are checked or unpacked at the same time. How many downloads there are is the fetcher's matter.
    pub parallel_work: NonZeroUsize,
    /// The share of installed machines, in percent, above which removals are held.
    pub hold_removals_over_percent: u8,
    /// How long a copy that nothing points at is kept: an old instance may still be stopping, and a rollback within
    /// this time needs no download.
    pub keep_unused: Duration,
    /// The wait after a first failure; it doubles with each further one.
    pub retry_first: Duration,
    /// The longest wait after a failure.
    pub retry_longest: Duration,
}

impl Settings {
    /// The defaults for a state directory.
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            archive_limits: archive::Limits::default(),
            specification_limits: spec::Limits::default(),
            parallel_work: NonZeroUsize::MIN.saturating_add(3),
            hold_removals_over_percent: 50,
            keep_unused: Duration::from_mins(10),
            retry_first: Duration::from_secs(2),
            retry_longest: Duration::from_mins(5),
        }
    }
}

/// Why sync can't start.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// Another process works on the state directory.
    #[error(
        "another machinesd is running on {}: stop it, or give this one another state_dir",
        state_dir.display()
    )]
    Locked {
        /// The directory.
        state_dir: PathBuf,
    },
    /// The directories can't be made ready.
    #[error("could not prepare {}", state_dir.display())]
    Prepare {
        /// The directory.
        state_dir: PathBuf,
        /// What failed.
        #[source]
        source: FileError,
    },
    /// The state database can't be used.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// The right to work on a state directory, for as long as it lives.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes it, and makes the directory where it is missing.
    ///
    /// # Errors
    /// When another process has it.
    pub fn take(state_dir: &Path) -> Result<Self, SyncError> {
        let prepare = |source| SyncError::Prepare { state_dir: state_dir.to_owned(), source };
        fs::create_directory(state_dir, 0o755).map_err(prepare)?;
        let lock = take_lock(&state_dir.join("lock")).map_err(prepare)?;
        lock.map(|file| Self { _file: file }).ok_or_else(|| SyncError::Locked { state_dir: state_dir.to_owned() })
    }
}

/// Keeps the machines of this node as the specification wants them. One per state directory.
#[derive(Clone)]
pub struct Reconciler {
    /// Of the specifications that it takes.
    form: Form,
    /// Whether its passes work in maintenance.
    during: During,
    memory: Arc<Memory>,
    /// See [`memory::Turn`].
    turns: Arc<tokio::sync::Mutex<()>>,
    offers: Arc<Offers>,
}

impl Reconciler {
    /// Takes the lock of the state directory, removes what an interrupted run left unfinished, and reads what is
    /// remembered. Changes nothing that runs.
    ///
    /// # Errors
    /// When another process holds the lock, or the directory or the state database can't be used.
    pub fn open(
        settings: Settings,
        node: Arc<Node>,
        fetcher: Arc<Fetcher>,
        journal: Journal,
    ) -> Result<Self, SyncError> {
        Self::open_governed(settings, node, fetcher, journal, None)
    }

    /// As [`Self::open`], with governors: an entry that names one is installed, upgraded and repaired under its slot.
    /// Without them such an entry fails.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_governed(
        settings: Settings,
        node: Arc<Node>,
        fetcher: Arc<Fetcher>,
        journal: Journal,
        governors: Option<Arc<dyn Governors>>,
    ) -> Result<Self, SyncError> {
        let lock = StateLock::take(&settings.state_dir)?;
        Self::open_locked(settings, node, fetcher, journal, governors, lock)
    }

    /// As [`Self::open_governed`], by who holds the lock of the state directory already.
    ///
    /// # Errors
    /// As there.
    pub fn open_locked(
        mut settings: Settings,
        node: Arc<Node>,
        fetcher: Arc<Fetcher>,
        journal: Journal,
        governors: Option<Arc<dyn Governors>>,
        lock: StateLock,
    ) -> Result<Self, SyncError> {
        let state_dir = settings.state_dir.clone();
        let prepare = |source| SyncError::Prepare { state_dir: state_dir.clone(), source };
        settings.state_dir = std::path::absolute(&state_dir).unwrap_or_else(|_| state_dir.clone());
        let store = Store::open(&settings.state_dir).map_err(prepare)?;
        let state = State::open(journal.database())?;
        let specification = state.accepted()?.map(|accepted| accepted.status());
        let lost_memory = lost_memory(&journal, &state, &store, specification.is_some())?;
        let status = SyncStatus { specification, lost_memory, machines: state.machines()?, ..SyncStatus::default() };
        let memory = Memory {
            matcher: Matcher::default(),
            leases: Leases::default(),
            backoff: Mutex::new(Backoff::new(settings.retry_first, settings.retry_longest)),
            status: Mutex::new(status),
            machines_stored: Mutex::new(Stored::Unknown),
            changes: watch::Sender::new(0),
            disk: Semaphore::new(settings.parallel_work.get().min(Semaphore::MAX_PERMITS)),
            maintenance: Record::open(&settings.state_dir),
            settings,
            node,
            fetcher,
            governors,
            journal,
            state,
            store,
            _lock: lock,
        };
        let (turns, offers) = (Arc::default(), Arc::default());
        Ok(Self { form: Form::default(), during: During::Holds, memory: Arc::new(memory), turns, offers })
    }

    /// The same, for specifications of this form only. What was accepted in the other form is not followed.
    #[must_use]
    pub fn of_form(&self, form: Form) -> Self {
        Self { form, ..self.clone() }
    }

    /// The same, whose passes change things also in maintenance: a person asked for that.
    #[must_use]
    pub fn in_maintenance(&self) -> Self {
        Self { during: During::Works, ..self.clone() }
    }

    /// One pass with the envelope that was offered. Never fails: every error is in the result and in the status. After
    /// a refusal the specification accepted before is followed on, so that a bad value in the store can't stop the
    /// care for what is installed.
    ///
    /// Passes take turns. Dropping the future ends the pass at a safe point: a caller that has a newer envelope drops
    /// this one and calls again, rather than wait for a slow download. An operator's pass with something else ends for
    /// what is new here; then his result is that of this pass.
    pub async fn reconcile(&self, envelope: &[u8], trust: &Trust, purge: Purge, removals: Removals) -> Pass {
        let work = self.work(Side::Watcher, Some(envelope), trust, purge, removals);
        let call = self.offers.bring(&work);
        loop {
            let turn = self.turn().await;
            if let Some(pass) = call.covered(&work) {
                return pass;
            }
            let (work, envelope) = match call.newer(&work) {
                Some(newer) => (Work { envelope: Some(Sha256Digest::of(&newer)), ..work.clone() }, newer),
                None => (work.clone(), envelope.to_vec()),
            };
            let offer = Offer::New { envelope, removals };
            if let Some(pass) = self.pass(&call, turn, offer, work).await {
                return pass;
            }
        }
    }

    /// One pass with what is published, for an operator who asks: it is read when the pass has its turn, so that nothing
    /// older is carried out while something newer is there. A watcher's pass with something else ends for it, and it ends
    /// for what is newer still; then the result is that of the pass which took its place. `None` when nothing is published.
    ///
    /// # Errors
    /// What reading gives.
    pub async fn reconcile_published<R, E>(
        &self,
        read: impl Fn() -> R,
        trust: &Trust,
        purge: Purge,
        removals: Removals,
    ) -> Result<Option<Pass>, E>
    where
        R: Future<Output = Result<Option<Bytes>, E>>,
    {
        let work = |envelope: &[u8]| self.work(Side::Operator, Some(envelope), trust, purge, removals);
        let mut call = self.offers.call();
        // The first time only so that who works on something else knows of it.
        call.look();
        let Some(envelope) = read().await? else { return Ok(None) };
        call.found(&work(&envelope), &envelope);
        let mut turn = self.turn().await;
        loop {
            call.look();
            let Some(envelope) = read().await? else { return Ok(None) };
            let work = work(&envelope);
            call.found(&work, &envelope);
            if let Some(pass) = call.covered(&work) {
                return Ok(Some(pass));
            }
            let offer = Offer::New { envelope: envelope.to_vec(), removals };
            if let Some(pass) = self.pass(&call, turn, offer, work).await {
                return Ok(Some(pass));
            }
            turn = self.turn().await;
        }
    }

    /// One pass with the specification accepted last, verified again with today's keys: at start, so that a node boots
    /// into its desired state with the network down, and from time to time, to find drift. `None` when none was ever
    /// accepted.
    pub async fn resume(&self, trust: &Trust, purge: Purge) -> Option<Pass> {
        let known = self.memory.status().specification.is_some();
        if !known {
            return None;
        }
        let work = self.work(Side::Watcher, None, trust, purge, Removals::Guarded);
        let call = self.offers.call();
        loop {
            let turn = self.turn().await;
            if let Some(pass) = call.covered(&work) {
                return Some(pass);
            }
            if let Some(pass) = self.pass(&call, turn, Offer::Accepted, work.clone()).await {
                return Some(pass);
            }
        }
    }

    fn work(&self, side: Side, envelope: Option<&[u8]>, trust: &Trust, purge: Purge, removals: Removals) -> Work {
        let rules = Rules { form: self.form, trust: trust.clone(), purge };
        Work { side, rules, envelope: envelope.map(Sha256Digest::of), removals }
    }

    async fn turn(&self) -> Turn {
        Arc::new(Arc::clone(&self.turns).lock_owned().await)
    }

    /// A pass in its turn; `None` when it gave way to a newer one. It then has ended at a safe point, and the turn ends
    /// with the last of its work.
    async fn pass(&self, call: &Call<'_>, turn: Turn, offer: Offer, work: Work) -> Option<Pass> {
        let mut maintenance = self.memory.maintenance.follow();
        if let Some(maintenance) = self.holds() {
            return Some(Pass::held_by(&maintenance));
        }
        let begins = async {
            loop {
                // The sender lives as long as we do.
                _ = maintenance.changed().await;
                if let Some(maintenance) = self.holds() {
                    break maintenance;
                }
            }
        };
        let begun = call.begin(&work)?;
        // What is under way ends at a safe point.
        tokio::select! {
            pass = reconcile::pass(&self.memory, &turn, offer, work.rules.clone()) => {
                begun.ended(work, &pass);
                Some(pass)
            }
            maintenance = begins => Some(Pass::held_by(&maintenance)),
            () = self.offers.superseded(&begun) => None,
        }
    }

    /// The maintenance that passes must not change anything in.
    fn holds(&self) -> Option<Maintenance> {
        self.maintenance().filter(|_| self.during == During::Holds)
    }

    /// Set while the node is to be left as it is.
    pub fn maintenance(&self) -> Option<Maintenance> {
        self.memory.maintenance.now()
    }

    /// Whether it has ended by itself, and nobody has taken note yet.
    pub fn maintenance_is_over(&self) -> bool {
        self.memory.maintenance.written().is_some() && self.maintenance().is_none()
    }

    /// Tells when it begins, is changed, or is ended.
    pub fn follow_maintenance(&self) -> watch::Receiver<Option<Maintenance>> {
        self.memory.maintenance.follow()
    }

    /// From here on nothing is changed. When this returns, what was under way has ended; of what can't be broken off,
    /// such as a file system that hangs, the end is not waited for.
    ///
    /// # Errors
    /// When it can't be written down. It holds nevertheless, until the process ends.
    pub async fn begin_maintenance(&self, maintenance: Maintenance) -> Result<(), FileError> {
        let memory = Arc::clone(&self.memory);
        let begun = tokio::task::spawn_blocking(move || {
            memory.note(Kind::Maintenance, None, &maintenance.to_string());
            memory.maintenance.begin(maintenance)
        });
        // It fails only while the daemon ends.
        let written = begun.await.unwrap_or(Ok(()));
        self.settled().await;
        written
    }

    /// Waits until what was broken off has come to its end, and has removed what it had not finished; not for ever.
    pub async fn settled(&self) {
        _ = tokio::time::timeout(BREAKING_OFF, self.turns.lock()).await;
    }

    /// Things are changed again.
    ///
    /// # Errors
    /// When what is written down can't be removed; then it goes on.
    pub async fn end_maintenance(&self, how: &'static str) -> Result<(), FileError> {
        let memory = Arc::clone(&self.memory);
        let ended = tokio::task::spawn_blocking(move || {
            let was = memory.maintenance.written().is_some();
            memory.maintenance.end()?;
            if was {
                memory.note(Kind::Maintenance, None, &format!("this node is no longer in maintenance: {how}"));
            }
            Ok(())
        });
        ended.await.unwrap_or(Ok(()))
    }

    /// Lets the next pass try at once what waits after a failure: an operator asked for it.
    pub fn retry_now(&self) {
        self.memory.backoff().forget_all();
    }

    /// How sync stands.
    pub fn status(&self) -> SyncStatus {
        self.memory.status().clone()
    }

    /// Counts changes of what is installed; the host looks again on each.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.memory.changes.subscribe()
    }

    /// The directory whose entries the host runs.
    pub fn machines_directory(&self) -> &Path {
        self.memory.store.machines_directory()
    }

    /// The directory of what is installed, where the entries of [`Self::machines_directory`] lead.
    pub fn store_directory(&self) -> &Path {
        self.memory.store.store_directory()
    }

    /// The gate before a machine is run: its directory, when it is one that sync installed and its files are exactly
    /// what was installed. The path is the copy itself, not the link, so that a running instance never sees files of
    /// two versions.
    ///
    /// # Errors
    /// A sentence for people that says why it must not be run.
    pub async fn verify_for_start(&self, name: &MachineName) -> Result<PathBuf, String> {
        let (memory, machine) = (Arc::clone(&self.memory), name.clone());
        let checked = tokio::task::spawn_blocking(move || gate(&memory, &machine)).await;
        let checked = checked.unwrap_or_else(|error| Err(error.to_string()));
        checked.map_err(|why| format!("{:?} is not run: {why}", name.as_str()))
    }
}

impl Reconciler {
    /// Keeps the files in a directory that [`Self::verify_for_start`] gave, for as long as the lease lives, even when
    /// nothing wants them any more: a machine whose successor is broken runs on from them. `None` for a directory that
    /// is not in the store.
    pub fn lease(&self, directory: &Path) -> Option<Lease> {
        let inside = directory.strip_prefix(self.memory.store.store_directory()).ok()?;
        let copy = CopyName::parse(inside.iter().next()?.to_str()?)?;
        Some(self.memory.leases.take(copy))
    }
}

/// A command that a killed daemon was just starting holds the lock until it is a program of its own, so a lock that is
/// held is asked for again, for a while. Blocks; nothing runs yet.
#[expect(clippy::disallowed_methods, reason = "at start, before anything else runs on this thread")]
fn take_lock(path: &Path) -> Result<Option<File>, FileError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match fs::try_lock(path)? {
            None if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY),
            result => return Ok(result),
        }
    }
}

/// Whether what was remembered is lost: told by who moved it aside, or seen, as machines are installed and nothing was
/// ever accepted.
fn lost_memory(
    journal: &Journal,
    state: &State,
    store: &Store,
    accepted: bool,
) -> Result<Option<LostMemory>, DatabaseError> {
    let detail = match journal.in_place_of() {
        Some(aside) => {
            format!("the state database was damaged ({}) and is kept as {}", aside.detail, aside.path.display())
        }
        None if !accepted && store.contents().is_ok_and(|contents| !contents.links.is_empty()) => {
            if let Some(known) = state.lost_memory()? {
                return Ok(Some(known));
            }
            "machines are installed, and the state database that knew of them is not there".to_owned()
        }
        None => return Ok(None),
    };
    let since = jiff::Timestamp::now();
    let lost = LostMemory { since, detail };
    state.remember_loss(&lost)?;
    if let Err(error) = journal.append(Kind::Problem.word(), None, &lost.sentence()) {
        tracing::warn!(error = chain(&error), "the journal misses a record");
    }
    Ok(Some(lost))
}

fn gate(memory: &Memory, name: &MachineName) -> Result<PathBuf, String> {
    let linked = memory.store.linked(name).map_err(|error| chain(&error))?;
    let Some(copy) = linked else { return Err("sync did not install it".to_owned()) };
    let record = memory.state.copy(copy).map_err(|error| chain(&error))?;
    let recorded = record.and_then(|record| record.verify_checksum);
    let Some(verify_checksum) = recorded.or_else(|| memory.store.verify_checksum(copy)) else {
        return Err("there is no record of what it should contain; the next sync pass checks it".to_owned());
    };
    let directory = memory.store.directory(copy, name);
    match archive::verify_directory(&directory, &verify_checksum) {
        Ok(()) => Ok(directory),
        Err(drift) => Err(format!("it has drifted: {drift}; the next sync pass repairs it")),
    }
}
