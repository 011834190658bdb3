//! The statements on buckets and entries. Each function runs inside one transaction of the caller's.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use crate::kv::{BucketSettings, BucketStatus, Entry, KvError, Operation, pattern_matches};

/// Why statements failed: the store, or a promise that would be broken.
pub(super) enum Failure {
    Database(rusqlite::Error),
    Refused(KvError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl From<KvError> for Failure {
    fn from(error: KvError) -> Self {
        Self::Refused(error)
    }
}

type Result<T> = std::result::Result<T, Failure>;

/// How an entry is stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    Put,
    Create,
    Update { revision: u64 },
    Delete,
    Purge,
}

/// A bucket as it is stored.
pub(super) struct StoredBucket {
    /// Another one when a bucket of the same name was made anew.
    pub id: i64,
    pub revision: u64,
    history: u8,
    ttl: Option<Duration>,
    maximum_value_bytes: Option<u64>,
}

impl StoredBucket {
    /// Entries made at or before this have expired.
    fn expired_milliseconds(&self) -> i64 {
        let now = Timestamp::now().as_millisecond();
        match self.ttl {
            Some(ttl) => now.saturating_sub(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)),
            None => i64::MIN,
        }
    }
}

pub(super) fn bucket(transaction: &Transaction<'_>, name: &str) -> Result<StoredBucket> {
    let sql = "SELECT id, revision, history, ttl_milliseconds, maximum_value_bytes FROM buckets WHERE name = ?1";
    let found = transaction
        .prepare(sql)?
        .query_row([name], |row| {
            Ok(StoredBucket {
                id: row.get(0)?,
                revision: unsigned(row, 1)?,
                history: row.get(2)?,
                ttl: row.get::<_, Option<i64>>(3)?.map(|ttl| Duration::from_millis(ttl.unsigned_abs())),
                maximum_value_bytes: row.get::<_, Option<i64>>(4)?.map(i64::unsigned_abs),
            })
        })
        .optional()?;
    found.ok_or_else(|| no_bucket(name))
}

fn no_bucket(name: &str) -> Failure {
    KvError::NoBucket { bucket: name.to_owned(), embedded: None }.into()
}

pub(super) fn create_bucket(transaction: &Transaction<'_>, settings: &BucketSettings) -> Result<()> {
    let milliseconds = |ttl: Duration| i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    let added = transaction.execute(
        "INSERT INTO buckets (name, history, ttl_milliseconds, maximum_value_bytes) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (name) DO NOTHING",
        params![settings.name, settings.history, settings.ttl.map(milliseconds), settings.maximum_value_bytes],
    )?;
    if added == 0 { Err(KvError::BucketExists { bucket: settings.name.clone() }.into()) } else { Ok(()) }
}

pub(super) fn delete_bucket(transaction: &Transaction<'_>, name: &str) -> Result<()> {
    let deleted = transaction.execute("DELETE FROM buckets WHERE name = ?1", [name])?;
    if deleted == 0 { Err(no_bucket(name)) } else { Ok(()) }
}

pub(super) fn buckets(transaction: &Transaction<'_>) -> Result<Vec<String>> {
    let mut statement = transaction.prepare("SELECT name FROM buckets ORDER BY name")?;
    let names = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(names)
}

/// Stores an entry and drops those that it makes superfluous. Returns its revision.
pub(super) fn store(
    transaction: &Transaction<'_>,
    name: &str,
    key: &str,
    change: Change,
    value: &Bytes,
) -> Result<u64> {
    let bucket = bucket(transaction, name)?;
    let size_bytes = value.len() as u64;
    if let Some(limit) = bucket.maximum_value_bytes.filter(|limit| size_bytes > *limit) {
        let (bucket, key) = (name.to_owned(), key.to_owned());
        return Err(KvError::TooLarge { bucket, key, size_bytes, limit_bytes: Some(limit) }.into());
    }
    transaction
        .prepare("DELETE FROM entries WHERE bucket = ?1 AND created_milliseconds <= ?2")?
        .execute(params![bucket.id, bucket.expired_milliseconds()])?;
    let newest: Option<(u64, String)> = transaction
        .prepare(
            "SELECT revision, operation FROM entries WHERE bucket = ?1 AND key = ?2 ORDER BY revision DESC LIMIT 1",
        )?
        .query_row(params![bucket.id, key], |row| Ok((unsigned(row, 0)?, row.get(1)?)))
        .optional()?;
    let operation = match change {
        Change::Put => Operation::Put,
        Change::Create => {
            if newest.is_some_and(|(_, operation)| operation == name_of(Operation::Put)) {
                return Err(KvError::KeyExists { bucket: name.to_owned(), key: key.to_owned() }.into());
            }
            Operation::Put
        }
        Change::Update { revision: expected } => {
            let found = newest.map_or(0, |(revision, _)| revision);
            if found != expected {
                let (bucket, key) = (name.to_owned(), key.to_owned());
                return Err(KvError::WrongRevision { bucket, key, expected, found: Some(found) }.into());
            }
            Operation::Put
        }
        Change::Delete => Operation::Delete,
        Change::Purge => Operation::Purge,
    };
    let revision = bucket.revision + 1;
    transaction
        .prepare("UPDATE buckets SET revision = ?2 WHERE id = ?1")?
        .execute(params![bucket.id, revision.cast_signed()])?;
    transaction
        .prepare(
            "INSERT INTO entries (bucket, revision, key, operation, created_milliseconds, value)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            bucket.id,
            revision.cast_signed(),
            key,
            name_of(operation),
            Timestamp::now().as_millisecond(),
            value.as_ref()
        ])?;
    let kept = if operation == Operation::Purge { 1 } else { bucket.history };
    transaction
        .prepare(
            "DELETE FROM entries WHERE bucket = ?1 AND key = ?2 AND revision NOT IN
             (SELECT revision FROM entries WHERE bucket = ?1 AND key = ?2 ORDER BY revision DESC LIMIT ?3)",
        )?
        .execute(params![bucket.id, key, kept])?;
    Ok(revision)
}

/// The newest entry of a key, deletions included.
pub(super) fn newest(transaction: &Transaction<'_>, name: &str, key: &str) -> Result<Option<Entry>> {
    let bucket = bucket(transaction, name)?;
    let entry = transaction
        .prepare(
            "SELECT key, revision, operation, created_milliseconds, value FROM entries
             WHERE bucket = ?1 AND key = ?2 AND created_milliseconds > ?3 ORDER BY revision DESC LIMIT 1",
        )?
        .query_row(params![bucket.id, key, bucket.expired_milliseconds()], |row| entry(name, row))
        .optional()?;
    Ok(entry)
}

pub(super) fn history(transaction: &Transaction<'_>, name: &str, key: &str) -> Result<Vec<Entry>> {
    let bucket = bucket(transaction, name)?;
    let mut statement = transaction.prepare(
        "SELECT key, revision, operation, created_milliseconds, value FROM entries
         WHERE bucket = ?1 AND key = ?2 AND created_milliseconds > ?3 ORDER BY revision",
    )?;
    let rows = statement.query_map(params![bucket.id, key, bucket.expired_milliseconds()], |row| entry(name, row))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn keys(transaction: &Transaction<'_>, name: &str) -> Result<Vec<String>> {
    let bucket = bucket(transaction, name)?;
    let mut statement = transaction.prepare(
        "SELECT key FROM entries AS one WHERE bucket = ?1 AND created_milliseconds > ?2 AND operation = ?3 AND revision =
         (SELECT max(revision) FROM entries WHERE bucket = ?1 AND key = one.key) ORDER BY key",
    )?;
    let parameters = params![bucket.id, bucket.expired_milliseconds(), name_of(Operation::Put)];
    let keys = statement.query_map(parameters, |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(keys)
}

pub(super) fn status(transaction: &Transaction<'_>, name: &str) -> Result<BucketStatus> {
    let bucket = bucket(transaction, name)?;
    let (values, bytes) = transaction
        .prepare(
            "SELECT count(*), coalesce(sum(length(value)), 0) FROM entries WHERE bucket = ?1 AND created_milliseconds > ?2",
        )?
        .query_row(params![bucket.id, bucket.expired_milliseconds()], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))?;
    Ok(BucketStatus {
        bucket: name.to_owned(),
        values,
        history: u64::from(bucket.history),
        ttl_seconds: bucket.ttl.map(|ttl| u64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(u64::MAX)),
        bytes,
        maximum_value_bytes: bucket.maximum_value_bytes,
        replicas: 1,
        backing: "SQLite",
    })
}

/// The newest entries, oldest first, of the keys that match and changed after a revision.
pub(super) fn since(
    transaction: &Transaction<'_>,
    name: &str,
    bucket: &StoredBucket,
    pattern: &str,
    revision: u64,
) -> Result<Vec<Entry>> {
    let mut statement = transaction.prepare(
        "SELECT key, revision, operation, created_milliseconds, value FROM entries AS one
         WHERE bucket = ?1 AND revision > ?2 AND created_milliseconds > ?3 AND revision =
         (SELECT max(revision) FROM entries WHERE bucket = ?1 AND key = one.key) ORDER BY revision",
    )?;
    let mut rows = statement.query(params![bucket.id, revision.cast_signed(), bucket.expired_milliseconds()])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        // The value, which may be large, is read only when it is wanted.
        let wanted = row.get_ref(0)?.as_str().is_ok_and(|key| pattern_matches(pattern, key));
        if wanted {
            entries.push(entry(name, row)?);
        }
    }
    Ok(entries)
}

fn entry(bucket: &str, row: &Row<'_>) -> rusqlite::Result<Entry> {
    let created: i64 = row.get(3)?;
    let created = Timestamp::from_millisecond(created)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(3, Type::Integer, Box::new(error)))?;
    let operation = match row.get_ref(2)?.as_str()? {
        "DEL" => Operation::Delete,
        "PURGE" => Operation::Purge,
        _ => Operation::Put,
    };
    Ok(Entry {
        bucket: bucket.to_owned(),
        key: row.get(0)?,
        value: Bytes::from(row.get::<_, Vec<u8>>(4)?),
        revision: unsigned(row, 1)?,
        created,
        operation,
    })
}

/// SQLite's integers have a sign; ours never are below zero.
pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::unsigned_abs)
}

/// As NATS writes them in its headers.
fn name_of(operation: Operation) -> &'static str {
    match operation {
        Operation::Put => "PUT",
        Operation::Delete => "DEL",
        Operation::Purge => "PURGE",
    }
}
