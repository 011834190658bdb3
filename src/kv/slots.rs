//! The slots of governors, as the stores keep them: one trait, two stores, as for buckets. What a governor is for and how
//! one waits for a slot is the `governor` room's business; here one call is one attempt.
//!
//! On NATS a governor is a stream (Choria's format): its messages are the slots, its message limit is the capacity.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::KvError;
use crate::names::GovernorName;

/// The first word of a governor's subject, unless it was made with another one.
pub const DEFAULT_COLLECTIVE: &str = "choria";
/// Largest accepted capacity: looking through the holders is one request for each.
pub const MAXIMUM_CAPACITY: u32 = 10_000;
/// Shorter, and a slot would be gone before anything is done with it.
pub const MINIMUM_EXPIRE: Duration = Duration::from_secs(1);
/// Longer, and the slot of a crashed holder would be as good as lost.
pub const MAXIMUM_EXPIRE: Duration = Duration::from_secs(365 * 86_400);
/// Of what a holder says of itself, this much is kept, in bytes.
const MAXIMUM_DESCRIPTION_BYTES: usize = 512;

/// How a governor is made.
#[derive(Debug, Clone)]
pub struct GovernorSettings {
    pub name: GovernorName,
    /// How many may hold a slot at once; 1 to [`MAXIMUM_CAPACITY`].
    pub capacity: u32,
    /// After this time a slot is free again, whatever its holder does.
    pub expire: Duration,
    /// How many servers keep it; `None` keeps what it has, or one. Always one for the embedded store.
    pub replicas: Option<u8>,
    /// The first word of the subject; `None` keeps what it has, or [`DEFAULT_COLLECTIVE`].
    pub collective: Option<String>,
}

impl GovernorSettings {
    pub(super) fn check(&self) -> Result<(), KvError> {
        let refuse = |reason: String| Err(KvError::InvalidGovernor { governor: self.name.clone(), reason });
        if !(1..=MAXIMUM_CAPACITY).contains(&self.capacity) {
            return refuse(format!("the capacity must be 1 to {MAXIMUM_CAPACITY}"));
        }
        if !(MINIMUM_EXPIRE..=MAXIMUM_EXPIRE).contains(&self.expire) {
            return refuse("slots must expire after 1s to 365d".to_owned());
        }
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if self.collective.as_ref().is_some_and(|word| word.is_empty() || !word.bytes().all(is_word)) {
            return refuse("the collective must be letters, digits, '_' and '-'".to_owned());
        }
        Ok(())
    }
}

/// How a governor stands.
#[derive(Debug, Clone, Serialize)]
pub struct GovernorStatus {
    pub name: GovernorName,
    /// `None`: without a limit, as only a stream made by other means can be.
    pub capacity: Option<u64>,
    pub taken: u64,
    /// `None`: slots never expire.
    pub expire_seconds: Option<f64>,
    pub replicas: usize,
    /// Where slots are asked for; `None` for the embedded store.
    pub subject: Option<String>,
    /// `JetStream` or `SQLite`.
    pub backing: &'static str,
}

/// A slot and its holder.
#[derive(Debug, Clone, Serialize)]
pub struct HeldSlot {
    pub sequence: u64,
    pub since: Timestamp,
    /// What the holder says of itself.
    pub holder: String,
}

/// Somebody's wish for a slot, from the first attempt to the last.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Nobody else's.
    id: String,
    /// Counts what is asked for anew: see [`Claim::refused`].
    attempt: u32,
    description: String,
}

impl Claim {
    /// A new claim; `description` tells people who it is.
    pub fn new(description: &str) -> Self {
        let end = description.floor_char_boundary(MAXIMUM_DESCRIPTION_BYTES);
        let (description, _) = description.split_at_checked(end).unwrap_or_default();
        Self { id: uuid::Uuid::new_v4().simple().to_string(), attempt: 0, description: description.to_owned() }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn description(&self) -> &str {
        &self.description
    }

    /// The id of one attempt. A repetition of an attempt has the same, so that a store can tell it from a second wish.
    pub(super) fn message_id(&self) -> String {
        format!("{}.{}", self.id, self.attempt)
    }

    /// Whether a message's id is that of an attempt of this claim.
    pub(super) fn is_own(id: &str, message_id: &str) -> bool {
        message_id.split_once('.').is_some_and(|(own, _)| own == id)
    }

    /// The attempt was clearly refused: the next one is another, as a server may remember the ids of what it refused.
    pub fn refused(&mut self) {
        self.attempt = self.attempt.wrapping_add(1);
    }
}

/// What one attempt came to.
#[derive(Debug)]
pub enum Taken {
    /// The slot of this sequence is ours.
    Slot(u64),
    /// All slots are taken.
    Full,
    /// It was asked for, and no answer came: a slot may be ours or not, or may yet become ours.
    Unclear(KvError),
}

/// Whose slot is to be freed.
#[derive(Debug, Clone, Copy)]
pub enum Owner<'a> {
    /// Only one that this claim got. Sequences begin anew with a governor that was deleted and made again, and a late
    /// holder must not free somebody else's slot.
    Claim(&'a str),
    Anybody,
}

/// The governors of a store.
#[async_trait::async_trait]
pub trait Slots: Send + Sync {
    /// Makes a governor, or changes one that is there; its holders keep their slots.
    async fn add(&self, settings: &GovernorSettings) -> Result<(), KvError>;
    /// One attempt to take a slot. An error says that none was taken.
    async fn take(&self, governor: &GovernorName, claim: &Claim) -> Result<Taken, KvError>;
    /// The slots that a claim holds.
    async fn find(&self, governor: &GovernorName, claim: &str) -> Result<Vec<u64>, KvError>;
    /// Frees a slot; `false` when there is none of that owner.
    async fn free(&self, governor: &GovernorName, sequence: u64, owner: Owner<'_>) -> Result<bool, KvError>;
    async fn governor(&self, governor: &GovernorName) -> Result<GovernorStatus, KvError>;
    /// All governors, by name.
    async fn governors(&self) -> Result<Vec<GovernorStatus>, KvError>;
    /// The slots that are taken, oldest first.
    async fn held(&self, governor: &GovernorName) -> Result<Vec<HeldSlot>, KvError>;
    /// Frees all slots.
    async fn reset(&self, governor: &GovernorName) -> Result<(), KvError>;
    async fn delete(&self, governor: &GovernorName) -> Result<(), KvError>;
}
