//! What all steps of the reconciler share, and the way in which they do blocking work.
//!
//! In: settings and the rooms below. Out: [`Memory`], shared by reference count.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedMutexGuard, Semaphore, watch};
use tokio::task::JoinError;

use super::backoff::Backoff;
use super::lease::Leases;
use super::maintenance::Record;
use super::matching::Matcher;
use super::state::State;
use super::status::SyncStatus;
use super::store::Store;
use super::{Settings, StateLock};
use crate::archive::Fetcher;
use crate::governor::Governors;
use crate::journal::Journal;
use crate::names::MachineName;
use crate::node::Node;

/// The reconciler's parts.
pub(super) struct Memory {
    pub settings: Settings,
    pub node: Arc<Node>,
    pub fetcher: Arc<Fetcher>,
    /// `None` where no entry may ask for one.
    pub governors: Option<Arc<dyn Governors>>,
    /// For work on the disk (checking, unpacking) at the same time. Downloads have places of their own, so that none of
    /// this waits behind a server.
    pub disk: Semaphore,
    pub maintenance: Record,
    pub journal: Journal,
    pub state: State,
    pub store: Store,
    pub matcher: Matcher,
    /// What the host runs from.
    pub leases: Leases,
    pub backoff: Mutex<Backoff>,
    pub status: Mutex<SyncStatus>,
    pub machines_stored: Mutex<Stored>,
    /// Counts the changes of what is installed.
    pub changes: watch::Sender<u64>,
    /// Held for as long as this process works on the state directory.
    pub _lock: StateLock,
}

/// What the state database says of the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// The same as the status in memory, so that only differences need to be written.
    AsInTheStatus,
    /// It could not be written.
    Unknown,
}

impl Memory {
    pub fn status(&self) -> MutexGuard<'_, SyncStatus> {
        // Each change is a single assignment, so a panic elsewhere leaves nothing half-done behind.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn machines_stored(&self) -> MutexGuard<'_, Stored> {
        self.machines_stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn backoff(&self) -> MutexGuard<'_, Backoff> {
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signals the host, at the flip of each link: a machine need not wait for the download of another one.
    pub fn installed_changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Says it in the log and in the journal. A journal that can't be written (a full disk) must not stop the work.
    pub fn note(&self, kind: Kind, machine: Option<&MachineName>, message: &str) {
        let machine_name = machine.map(MachineName::as_str);
        match kind {
            Kind::Refused | Kind::LeftAlone | Kind::Failed | Kind::Held | Kind::Problem => {
                tracing::warn!(machine = machine_name, "{message}");
            }
            _ => tracing::info!(machine = machine_name, "{message}"),
        }
        if let Err(error) = self.journal.append(kind.word(), machine, message) {
            tracing::warn!(error = crate::errors::chain(&error), "the journal misses a record");
        }
    }
}

/// The kinds of journal records that sync writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Accepted,
    Refused,
    LeftAlone,
    Installed,
    Upgraded,
    Repaired,
    Removed,
    Held,
    Failed,
    Problem,
    Maintenance,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::LeftAlone => "left alone",
            Self::Installed => "installed",
            Self::Upgraded => "upgraded",
            Self::Repaired => "repaired",
            Self::Removed => "removed",
            Self::Held => "held",
            Self::Failed => "failed",
            Self::Problem => "problem",
            Self::Maintenance => "maintenance",
        }
    }
}

/// The right to work on the store. Passes take turns, so the guard lives across awaits; nothing else ever waits for
/// it. Blocking work holds a share: when the future of a pass is dropped, its blocking work goes on to its end on its
/// thread, and only then may the next pass begin.
pub(super) type Turn = Arc<OwnedMutexGuard<()>>;

/// Does blocking work (disk, hashing, database) on a thread meant for it.
pub(super) async fn blocking<T: Send + 'static>(
    memory: &Arc<Memory>,
    turn: &Turn,
    work: impl FnOnce(&Memory) -> T + Send + 'static,
) -> Result<T, JoinError> {
    let (memory, turn) = (Arc::clone(memory), Arc::clone(turn));
    // Together, so that what a dropped future leaves behind, such as staging, is gone before the turn ends.
    let (result, _turn) = tokio::task::spawn_blocking(move || (work(&memory), turn)).await?;
    Ok(result)
}
