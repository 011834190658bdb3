//! Governors: fleet-wide limits on how many do something at once. Who wants to act takes one of a governor's slots first
//! and leaves it afterwards; when all are taken, he waits. A holder that crashes loses its slot by age.
//!
//! In: a governor's name, who asks, and how long he waits. Out: a [`Slot`] that is left when it is dropped, or why there
//! is none. `waiting` is how one waits; the slots themselves are kept by the store (`kv`), so that on NATS they limit the
//! fleet, and in the embedded store this node. A slot is not renewed: one that outlives the governor's expiry is gone,
//! and what goes on under it goes on.

#[cfg(test)]
mod tests;
mod waiting;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinHandle;

pub use waiting::StoreGovernors;

use self::waiting::Holding;
use crate::duration::format;
use crate::kv::KvError;
use crate::names::GovernorName;

/// How long somebody waited, to the millisecond: more digits are noise.
fn rounded(waited: Duration) -> String {
    format(Duration::from_millis(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)))
}

/// Why there is no slot.
#[derive(Debug, thiserror::Error)]
pub enum GovernorError {
    #[error(
        "could not get a slot of governor \"{name}\" within {}: all are taken; `mms governor view {name}` shows by whom",
        rounded(*waited)
    )]
    Full { name: GovernorName, waited: Duration },
    #[error("could not get a slot of governor \"{name}\"")]
    Store {
        name: GovernorName,
        #[source]
        source: KvError,
    },
    #[error("could not get a slot of governor \"{name}\" within {}: the store did not answer", rounded(*waited))]
    NoAnswer { name: GovernorName, waited: Duration },
    #[error("could not get a slot of governor \"{name}\": there are no governors here")]
    None { name: GovernorName },
}

/// Gives slots.
#[async_trait]
pub trait Governors: Send + Sync {
    /// Waits for a slot, but not longer than `patience`. Dropping the future ends the waiting and leaves no slot behind.
    /// `description` tells people who holds it.
    ///
    /// # Errors
    /// When all slots stay taken, the store stays away, or there is no such governor; the last is found out at once.
    async fn enter(&self, name: &GovernorName, description: &str, patience: Duration) -> Result<Slot, GovernorError>;
}

/// What became of a slot that was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It was held to the end.
    Held,
    /// It was gone before: it had expired, or an operator evicted its holder.
    Gone,
    /// The store could not be told; the slot is free when it expires.
    Untold,
}

/// A slot that is held; dropping it leaves it, in the background.
pub struct Slot {
    holding: Option<Holding>,
}

impl Slot {
    fn new(holding: Holding) -> Self {
        Self { holding: Some(holding) }
    }

    /// A slot where nothing limits: there is nothing to leave.
    pub fn unlimited() -> Self {
        Self { holding: None }
    }

    /// Leaves it and waits for that. The leaving goes on when the future is dropped.
    pub async fn leave(mut self) -> Left {
        match self.start_leaving() {
            Some(leaving) => leaving.await.unwrap_or(Left::Untold),
            None => Left::Untold,
        }
    }

    fn start_leaving(&mut self) -> Option<JoinHandle<Left>> {
        Some(self.holding.take()?.leave())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Detached: the store is told when there is a connection.
        drop(self.start_leaving());
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Slot").field("holding", &self.holding).finish()
    }
}
