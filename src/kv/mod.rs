//! The key-value bucket, where specifications and other data come from: one trait, two stores. `nats` speaks NATS
//! JetStream KV; `local` is an SQLite file that the daemon and `mms` use at the same time. In: [`ConnectionSettings`].
//! Out: an open [`Store`]. The same promises hold over both stores; `tests/key_value.rs` keeps them.

mod contexts;
mod environment;
mod error;
mod local;
mod names;
mod nats;
mod settings;
mod slots;
mod tls;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use jiff::Timestamp;
use serde::Serialize;

pub use contexts::Context;
pub use environment::EnvironmentLookup;
pub use error::KvError;
pub use names::{check_bucket, check_key, pattern_matches};
pub use settings::{ConnectionSettings, CreateDatabase, Credentials, Nkey, Target, Tls};
pub use slots::{
    Claim, DEFAULT_COLLECTIVE, GovernorSettings, GovernorStatus, HeldSlot, MAXIMUM_CAPACITY, MAXIMUM_EXPIRE,
    MINIMUM_EXPIRE, Owner, Slots, Taken,
};
pub use tls::install_tls_provider;

/// Largest accepted `history`, the limit of JetStream.
pub const MAXIMUM_HISTORY: u8 = 64;

/// Opens a store. For NATS this never fails because the server is down: the connection is made in the background, and
/// calls fail with [`KvError::Connect`] until it is there. Must be called within a Tokio runtime.
///
/// # Errors
/// Settings that can't work (a missing credentials file, a malformed URL), or an embedded database that can't be opened.
pub async fn open(settings: &ConnectionSettings) -> Result<Arc<dyn Store>, KvError> {
    match &settings.target {
        Target::Local(path) => Ok(Arc::new(local::LocalStore::open(path, settings.create_database).await?)),
        Target::Nats { servers } => Ok(Arc::new(nats::NatsStore::open(settings, servers).await?)),
    }
}

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    Put,
    Delete,
    Purge,
}

/// One revision of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub bucket: String,
    pub key: String,
    /// Empty for a delete or a purge.
    pub value: Bytes,
    /// Grows with every change in the bucket; starts at 1.
    pub revision: u64,
    pub created: Timestamp,
    pub operation: Operation,
}

/// What a watch delivers.
#[derive(Debug, Clone)]
pub enum WatchEvent {
    /// A current value (first) or a change (later).
    Entry(Entry),
    /// All values that were there at the start of the watch, or after a reconnection, have been delivered.
    Current,
    /// The watch was interrupted (server away, bucket gone) and goes on by itself; for status and logs.
    Interrupted(String),
}

/// An endless stream of changes; it reconnects by itself and ends only when dropped.
pub type Watch = Pin<Box<dyn Stream<Item = WatchEvent> + Send>>;

/// How a bucket is made.
#[derive(Debug, Clone)]
pub struct BucketSettings {
    pub name: String,
    /// How many revisions of each key are kept, 1 to [`MAXIMUM_HISTORY`].
    pub history: u8,
    /// Entries older than this vanish.
    pub ttl: Option<Duration>,
    /// How many servers keep the bucket; always 1 for the embedded store.
    pub replicas: usize,
    pub maximum_value_bytes: Option<u32>,
}

/// The state of a bucket.
#[derive(Debug, Clone, Serialize)]
pub struct BucketStatus {
    pub bucket: String,
    /// Entries in the bucket, history and deletions included.
    pub values: u64,
    pub history: u64,
    pub ttl_seconds: Option<u64>,
    pub bytes: u64,
    pub maximum_value_bytes: Option<u64>,
    pub replicas: usize,
    /// `JetStream` or `SQLite`.
    pub backing: &'static str,
}

/// A bucket of keys; the same promises over both stores, kept by one test suite.
#[async_trait::async_trait]
pub trait Bucket: Send + Sync {
    /// The newest entry, asked from the leader so that it is not stale; `None` when the key was never put, or was deleted or purged.
    async fn get(&self, key: &str) -> Result<Option<Entry>, KvError>;
    async fn put(&self, key: &str, value: Bytes) -> Result<u64, KvError>;
    /// Puts only when the key has no value.
    async fn create(&self, key: &str, value: Bytes) -> Result<u64, KvError>;
    /// Puts only when the newest revision of the key is `revision`; 0 means that the key has none.
    async fn update(&self, key: &str, value: Bytes, revision: u64) -> Result<u64, KvError>;
    /// Deletes the key and keeps its history. A key that is not there is no error, as in NATS.
    async fn delete(&self, key: &str) -> Result<(), KvError>;
    /// Deletes the key and forgets its history.
    async fn purge(&self, key: &str) -> Result<(), KvError>;
    /// The keys that have a value, sorted.
    async fn keys(&self) -> Result<Vec<String>, KvError>;
    /// Oldest first, deletions included.
    async fn history(&self, key: &str) -> Result<Vec<Entry>, KvError>;
    /// Watches the keys that match a NATS subject pattern (`machines`, `a.*`, `>`), from their current values on: first
    /// the newest entry of each key (deletions included), then [`WatchEvent::Current`], then changes. After an
    /// interruption the newest entries come again, so a change is never missed; a key that vanished without a deletion
    /// (its bucket was made anew) is one that is not among them when `Current` comes.
    async fn watch(&self, pattern: &str) -> Result<Watch, KvError>;
    async fn status(&self) -> Result<BucketStatus, KvError>;
}

/// A connection to one of the stores.
#[async_trait::async_trait]
pub trait Store: Send + Sync {
    /// A handle on a bucket. It need not exist yet: every call then fails with [`KvError::NoBucket`], and a watch waits
    /// for it to appear.
    ///
    /// # Errors
    /// [`KvError::InvalidBucket`] for a name that can't be a bucket's.
    fn bucket(&self, name: &str) -> Result<Arc<dyn Bucket>, KvError>;
    async fn create_bucket(&self, settings: &BucketSettings) -> Result<Arc<dyn Bucket>, KvError>;
    async fn delete_bucket(&self, name: &str) -> Result<(), KvError>;
    async fn buckets(&self) -> Result<Vec<String>, KvError>;
    /// Opens an object of an object store for reading.
    async fn get_object(&self, bucket: &str, name: &str) -> Result<ObjectReader, KvError>;
    /// Stores an object, making the bucket if needed; replaces one of the same name.
    async fn put_object(&self, bucket: &str, name: &str, content: ObjectReader) -> Result<(), KvError>;
    /// The slots of governors, kept beside the buckets; `None` for a store that keeps none.
    fn slots(&self) -> Option<Arc<dyn Slots>> {
        None
    }
    /// For status: connected or not, and to what; never a password.
    fn connection(&self) -> Connection;
    /// The NATS connection, for events; `None` for the embedded store.
    fn nats(&self) -> Option<async_nats::Client>;
}

/// A stream of an object's bytes.
pub type ObjectReader = Pin<Box<dyn tokio::io::AsyncRead + Send>>;

/// The state of the connection to a store.
#[derive(Debug, Clone, Serialize)]
pub struct Connection {
    pub url: String,
    pub connected: bool,
    /// Why not connected, or the server's name and version.
    pub detail: String,
}

/// What both stores refuse in a bucket's settings.
fn check_settings(settings: &BucketSettings) -> Result<(), KvError> {
    let refuse =
        |reason: &str| Err(KvError::InvalidSettings { bucket: settings.name.clone(), reason: reason.to_owned() });
    if settings.history == 0 || settings.history > MAXIMUM_HISTORY {
        return refuse("the history must be 1 to 64");
    }
    if settings.ttl.is_some_and(|ttl| ttl < Duration::from_millis(100)) {
        return refuse("the time to live must be at least 100ms");
    }
    if settings.maximum_value_bytes == Some(0) {
        return refuse("the maximum size of a value must not be 0");
    }
    Ok(())
}
