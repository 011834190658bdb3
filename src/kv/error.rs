//! What can go wrong with a store: one variant per failed operation, naming the bucket, the key or the server, and what
//! to do about it. URLs in here have their passwords taken out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::fs::FileError;
use crate::names::GovernorName;

/// A failed operation on a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// `embedded` is the store's path when it is not NATS, as `mms` must be told of it.
    #[error("bucket {bucket:?} does not exist; make it with `mms kv add {bucket}{}`", store_option(embedded.as_deref()))]
    NoBucket { bucket: String, embedded: Option<PathBuf> },
    #[error("bucket {bucket:?} exists already")]
    BucketExists { bucket: String },
    #[error("key {key:?} in bucket {bucket:?} has a value already; use `put` or `update` to change it")]
    KeyExists { bucket: String, key: String },
    #[error(
        "could not update key {key:?} in bucket {bucket:?}: expected revision {expected}, {}; get the key and try again",
        found_revision(*found)
    )]
    WrongRevision { bucket: String, key: String, expected: u64, found: Option<u64> },
    #[error("{bucket:?} is not a valid bucket name: use 1 to 255 letters, digits, '_' and '-'")]
    InvalidBucket { bucket: String },
    #[error("{key:?} is not a valid key: {reason}")]
    InvalidKey { key: String, reason: &'static str },
    #[error("could not make bucket {bucket:?}: {reason}")]
    InvalidSettings { bucket: String, reason: String },
    #[error(
        "could not put key {key:?} into bucket {bucket:?}: its {size_bytes} bytes are more than {}; make the bucket with \
         a larger --max-value-size, or raise max_payload of the NATS server",
        size_limit(*limit_bytes)
    )]
    TooLarge { bucket: String, key: String, size_bytes: u64, limit_bytes: Option<u64> },

    #[error("governor \"{governor}\" does not exist; make it with `mms governor add {governor} CAPACITY EXPIRE`")]
    NoGovernor { governor: GovernorName },
    #[error(
        "governor \"{governor}\" has no slot {sequence}; `mms governor view {governor}` shows those that are taken"
    )]
    NoSlot { governor: GovernorName, sequence: u64 },
    #[error("could not set up governor \"{governor}\": {reason}")]
    InvalidGovernor { governor: GovernorName, reason: String },

    #[error("could not connect to {url}: {reason}")]
    Connect { url: String, reason: String },
    #[error("could not {operation}: {url} did not answer within {}", crate::duration::format(*limit))]
    Timeout { operation: String, url: String, limit: Duration },
    #[error(
        "could not {operation}: nothing answers for JetStream at {url}; enable jetstream in the NATS server and for this \
         account, and check the JetStream domain"
    )]
    NoJetStream { operation: String, url: String },
    #[error("could not {operation}: {url} says: {description} (code {code})")]
    Server { operation: String, url: String, code: u64, description: String },
    #[error("could not {operation}: the answer of {url} is not understood: {reason}")]
    Answer { operation: String, url: String, reason: String },

    #[error(
        "the embedded store {0} does not exist; start machinesd with it, or make a bucket with \
         `mms kv add BUCKET --kv local:{0}`",
        path.display()
    )]
    NoDatabase { path: PathBuf },
    #[error("could not open the embedded store {}: the directory {} does not exist; create it", path.display(), directory.display())]
    NoDirectory { path: PathBuf, directory: PathBuf },
    #[error("the embedded store {} is damaged or not one of ours; move it and its -wal and -shm files aside", path.display())]
    CorruptDatabase {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error(
        "the embedded store {} has format {found}, and this program knows formats up to {supported}; use a newer program",
        path.display()
    )]
    NewerDatabase { path: PathBuf, found: i64, supported: i64 },
    #[error(
        "could not open the embedded store {}; may this user write to it, and to the directory that it is in?",
        path.display()
    )]
    Forbidden { path: PathBuf },
    #[error("could not {operation} in the embedded store {}", path.display())]
    Database {
        operation: String,
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("could not {operation}: the program is stopping")]
    Stopping { operation: String },
    #[error(transparent)]
    File(#[from] FileError),

    #[error("object {name:?} does not exist in object bucket {bucket:?}")]
    NoObject { bucket: String, name: String },
    #[error("could not {operation} object {name:?} of object bucket {bucket:?}")]
    Object {
        operation: &'static str,
        bucket: String,
        name: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    #[error("{url:?} is not the address of a store: {reason}; use local:PATH/kv.db or nats://HOST:4222")]
    InvalidUrl { url: String, reason: String },
    #[error("could not read the file of {setting}")]
    SettingFile {
        setting: &'static str,
        #[source]
        source: FileError,
    },
    #[error("{} can't be used as {setting}: {reason}", path.display())]
    SettingContent { setting: &'static str, path: PathBuf, reason: &'static str },
    #[error("{setting} can't be used: {reason}")]
    Setting { setting: &'static str, reason: &'static str },
    #[error("could not use the NATS context {name:?}: {reason}")]
    Context { name: String, reason: String },
}

fn store_option(embedded: Option<&Path>) -> String {
    embedded.map(|path| format!(" --kv local:{}", path.display())).unwrap_or_default()
}

fn found_revision(found: Option<u64>) -> String {
    match found {
        Some(0) => "but the key has none".to_owned(),
        Some(revision) => format!("but the newest is {revision}"),
        None => "which is not the newest".to_owned(),
    }
}

fn size_limit(limit: Option<u64>) -> String {
    match limit {
        Some(bytes) => format!("the limit of {bytes}"),
        None => "the bucket's limit".to_owned(),
    }
}
