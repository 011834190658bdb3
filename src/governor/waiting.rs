//! How one waits for a slot and leaves it, whatever the store does meanwhile. In: the store's slots. Out: [`Slot`]s.
//!
//! Two things must never happen: that one who gave up holds a slot, and that one who waits holds two. So each attempt is a
//! task of its own that nobody can cut off half-way: when the one who waits is gone, what the attempt brought is dropped,
//! and a dropped slot is left. And an attempt that got no answer (see `kv::Taken::Unclear`) is not blindly repeated: first
//! the store is searched for our own mark, and when we give up, it is searched again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use super::{GovernorError, Governors, Left, Slot};
use crate::errors::chain;
use crate::kv::{Claim, KvError, Owner, Slots, Store, Taken};
use crate::names::GovernorName;

/// The wait after a first refusal; it doubles up to the longest, each time spread over its upper half, so that a fleet
/// does not ask as one.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Even who does not want to wait asks once, and the store may take this long to answer.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(2);
/// A store that is away is told of a left slot for this long; after that the slot's age has to free it.
const LEAVE_PATIENCE: Duration = Duration::from_secs(600);
/// What was sent before may arrive after we looked for it, but hardly later than this.
const LATE_ARRIVAL: Duration = Duration::from_secs(10);

/// The governors of a store.
#[derive(Clone)]
pub struct StoreGovernors {
    shared: Arc<Shared>,
}

struct Shared {
    slots: Option<Arc<dyn Slots>>,
    /// What is being asked for and left in the background.
    leaving: TaskTracker,
}

impl StoreGovernors {
    pub fn new(store: &dyn Store) -> Self {
        Self::of(store.slots())
    }

    pub(super) fn of(slots: Option<Arc<dyn Slots>>) -> Self {
        Self { shared: Arc::new(Shared { slots, leaving: TaskTracker::new() }) }
    }

    /// Waits until every slot that was dropped or given up is left, for a program that is about to end; not longer than `patience`.
    pub async fn settle(&self, patience: Duration) {
        self.shared.leaving.close();
        if timeout(patience, self.shared.leaving.wait()).await.is_err() {
            tracing::warn!("some slots of governors could not be left in time; they are free when they expire");
        }
        self.shared.leaving.reopen();
    }
}

#[async_trait]
impl Governors for StoreGovernors {
    async fn enter(&self, name: &GovernorName, description: &str, patience: Duration) -> Result<Slot, GovernorError> {
        let Some(slots) = &self.shared.slots else { return Err(GovernorError::None { name: name.clone() }) };
        let begin = Instant::now();
        let deadline = begin + patience;
        let wish = Wish {
            shared: Arc::clone(&self.shared),
            slots: Arc::clone(slots),
            handle: Handle::current(),
            name: name.clone(),
            claim: Claim::new(description),
            doubtful: false,
        };
        let mut waiting = Some(wish);
        let mut attempts = 0;
        while let Some(wish) = waiting.take() {
            let (sender, answer) = oneshot::channel();
            // What nobody waits for any more is dropped within the task, so that `settle` waits for its leaving as well.
            self.shared.leaving.spawn(async move { drop(sender.send(wish.attempt().await)) });
            let end = deadline.max(Instant::now() + SHORTEST_PATIENCE);
            let waited = || begin.elapsed();
            let Ok(Ok((wish, result))) = timeout_at(end, answer).await else {
                return Err(GovernorError::NoAnswer { name: name.clone(), waited: waited() });
            };
            let error = match result {
                Attempt::Got(slot) => return Ok(slot),
                Attempt::Full => None,
                Attempt::Failed(source @ (KvError::NoGovernor { .. } | KvError::InvalidGovernor { .. })) => {
                    return Err(GovernorError::Store { name: name.clone(), source });
                }
                Attempt::Failed(source) => Some(source),
            };
            if Instant::now() >= deadline {
                let name = name.clone();
                return Err(match error {
                    Some(source) => GovernorError::Store { name, source },
                    None => GovernorError::Full { name, waited: waited() },
                });
            }
            if attempts == 0 {
                let reason = error.as_ref().map_or_else(|| "all are taken".to_owned(), |error| chain(error));
                tracing::info!("{description} waits for a slot of governor \"{name}\": {reason}");
            }
            let wait = backoff(attempts);
            sleep(wait.min(deadline.saturating_duration_since(Instant::now()))).await;
            attempts += 1;
            waiting = Some(wish);
        }
        Err(GovernorError::NoAnswer { name: name.clone(), waited: begin.elapsed() })
    }
}

/// The wait after this many refusals before.
fn backoff(refusals: u32) -> Duration {
    let full = FIRST_WAIT.saturating_mul(1 << refusals.min(16)).min(LONGEST_WAIT);
    full.mul_f64(0.5 + 0.5 * crate::duration::random_fraction())
}

/// What one attempt brought.
enum Attempt {
    Got(Slot),
    Full,
    Failed(KvError),
}

/// A wish for a slot. Dropped in doubt, it sees to it that no slot stays behind.
struct Wish {
    shared: Arc<Shared>,
    slots: Arc<dyn Slots>,
    handle: Handle,
    name: GovernorName,
    claim: Claim,
    /// An attempt got no answer, and may have taken a slot or take one yet.
    doubtful: bool,
}

impl Wish {
    async fn attempt(mut self) -> (Self, Attempt) {
        let attempt = self.ask().await;
        (self, attempt)
    }

    async fn ask(&mut self) -> Attempt {
        if self.doubtful {
            match self.slots.find(&self.name, self.claim.id()).await {
                Ok(found) => {
                    if let Some(sequence) = found.first() {
                        return self.got(*sequence);
                    }
                }
                Err(error) => return Attempt::Failed(error),
            }
        }
        match self.slots.take(&self.name, &self.claim).await {
            Ok(Taken::Slot(sequence)) => self.got(sequence),
            Ok(Taken::Full) => {
                // In doubt the attempt keeps its id: the server must know an earlier message of it for the same.
                if !self.doubtful {
                    self.claim.refused();
                }
                Attempt::Full
            }
            Ok(Taken::Unclear(error)) => {
                self.doubtful = true;
                Attempt::Failed(error)
            }
            Err(error) => Attempt::Failed(error),
        }
    }

    fn got(&mut self, sequence: u64) -> Attempt {
        let holding = self.holding(Some(sequence));
        // The slot looks for others of this claim when it is left.
        self.doubtful = false;
        Attempt::Got(Slot::new(holding))
    }

    fn holding(&self, sequence: Option<u64>) -> Holding {
        Holding {
            shared: Arc::clone(&self.shared),
            slots: Arc::clone(&self.slots),
            handle: self.handle.clone(),
            name: self.name.clone(),
            claim: self.claim.id().to_owned(),
            sequence,
            doubtful: self.doubtful,
        }
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        if self.doubtful {
            drop(self.holding(None).leave());
        }
    }
}

/// What a claim holds, or may hold.
pub(super) struct Holding {
    shared: Arc<Shared>,
    slots: Arc<dyn Slots>,
    handle: Handle,
    name: GovernorName,
    claim: String,
    /// `None` when it is not known whether it holds any.
    sequence: Option<u64>,
    /// More of this claim may be held, or arrive late.
    doubtful: bool,
}

impl Holding {
    pub fn leave(self) -> JoinHandle<Left> {
        let (leaving, handle) = (self.shared.leaving.clone(), self.handle.clone());
        // Dropping happens anywhere, also outside of the runtime.
        leaving.spawn_on(self.leave_all(), &handle)
    }

    async fn leave_all(self) -> Left {
        let mut left = Left::Held;
        if let Some(sequence) = self.sequence {
            left = self.leave_one(sequence).await;
            if left == Left::Gone {
                tracing::warn!(
                    "slot {sequence} of governor \"{}\" was gone before it was left: it expired or was evicted",
                    self.name
                );
            }
        }
        if self.doubtful {
            let (tracker, handle) = (self.shared.leaving.clone(), self.handle.clone());
            // Who leaves a slot does not wait for one that he may not have.
            drop(tracker.spawn_on(self.search_twice(), &handle));
        }
        left
    }

    async fn search_twice(self) {
        self.search().await;
        sleep(LATE_ARRIVAL).await;
        self.search().await;
    }

    async fn leave_one(&self, sequence: u64) -> Left {
        let free = || self.slots.free(&self.name, sequence, Owner::Claim(&self.claim));
        match persistently(free).await {
            Ok(true) => Left::Held,
            Ok(false) | Err(KvError::NoGovernor { .. }) => Left::Gone,
            Err(error) => {
                tracing::warn!(
                    "slot {sequence} of governor \"{}\" is free when it expires: {}",
                    self.name,
                    chain(&error)
                );
                Left::Untold
            }
        }
    }

    /// Frees whatever this claim holds.
    async fn search(&self) {
        match persistently(|| self.slots.find(&self.name, &self.claim)).await {
            Ok(found) => {
                for sequence in found {
                    self.leave_one(sequence).await;
                }
            }
            Err(KvError::NoGovernor { .. }) => {}
            Err(error) => {
                tracing::warn!("a slot of governor \"{}\" may be held until it expires: {}", self.name, chain(&error));
            }
        }
    }
}

impl fmt::Debug for Holding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "slot {:?} of governor {}", self.sequence, self.name)
    }
}

/// Asks the store until it answers, within [`LEAVE_PATIENCE`].
async fn persistently<T, F: Future<Output = Result<T, KvError>>>(mut call: impl FnMut() -> F) -> Result<T, KvError> {
    let deadline = Instant::now() + LEAVE_PATIENCE;
    let mut failures = 0;
    loop {
        match call().await {
            Err(error) if !matches!(error, KvError::NoGovernor { .. }) && Instant::now() < deadline => {
                tracing::debug!("asked again: {}", chain(&error));
                sleep(backoff(failures)).await;
                failures += 1;
            }
            result => return result,
        }
    }
}
