//! What sync remembers across restarts, as tables of the state database: the accepted envelope, what each copy in the
//! store must contain, and the last outcome of each machine. The trust floor of the release gets its table here.
//!
//! In and out: the records below. All calls block.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::status::{LostMemory, MachineStatus};
use super::store::CopyName;
use crate::digest::Sha256Digest;
use crate::journal::{DatabaseError, StateDatabase};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS accepted (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        envelope BLOB NOT NULL,
        digest TEXT NOT NULL,
        signed_by TEXT,
        accepted_at_milliseconds INTEGER NOT NULL,
        removals_allowed INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS copy (
        name TEXT PRIMARY KEY,
        verify_checksum TEXT,
        unused_since_milliseconds INTEGER
    ) STRICT;
    CREATE TABLE IF NOT EXISTS lost_memory (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        since_milliseconds INTEGER NOT NULL,
        detail TEXT NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS machine (
        name TEXT PRIMARY KEY,
        status TEXT NOT NULL
    ) STRICT;";

/// The specification that this node follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Accepted {
    /// The exact bytes, to be verified again with the keys of the day before each use.
    pub envelope: Vec<u8>,
    /// SHA-256 of the payload.
    pub digest: Sha256Digest,
    /// The key that signed it, if any.
    pub signed_by: Option<String>,
    /// When it was taken.
    pub accepted_at: Timestamp,
    /// An operator allowed its removals and they are not all done: a restart in between must finish them.
    pub removals_allowed: bool,
}

/// What is known of a copy in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CopyRecord {
    /// SHA-256 of its checksums file; `None` for one that is in the store and was not in the database.
    pub verify_checksum: Option<Sha256Digest>,
    /// Since when no link points at it.
    pub unused_since: Option<Timestamp>,
}

/// The tables of sync.
#[derive(Debug)]
pub(super) struct State {
    database: Arc<StateDatabase>,
}

impl State {
    pub fn open(database: Arc<StateDatabase>) -> Result<Self, DatabaseError> {
        database.run("prepare the tables of sync", |connection| connection.execute_batch(SCHEMA))?;
        Ok(Self { database })
    }

    pub fn accepted(&self) -> Result<Option<Accepted>, DatabaseError> {
        self.database.run("read the accepted specification", |connection| {
            let sql = "SELECT envelope, digest, signed_by, accepted_at_milliseconds, removals_allowed FROM accepted";
            let accepted = connection.query_row(sql, [], |row| {
                Ok(Accepted {
                    envelope: row.get(0)?,
                    digest: digest(row, 1)?,
                    signed_by: row.get(2)?,
                    accepted_at: timestamp(row, 3)?.unwrap_or(Timestamp::UNIX_EPOCH),
                    removals_allowed: row.get(4)?,
                })
            });
            accepted.optional()
        })
    }

    /// That this database began in the place of one that was lost, until a specification is accepted again.
    pub fn lost_memory(&self) -> Result<Option<LostMemory>, DatabaseError> {
        self.database.run("read whether an earlier memory was lost", |connection| {
            let sql = "SELECT since_milliseconds, detail FROM lost_memory";
            let lost = connection.query_row(sql, [], |row| {
                let since = timestamp(row, 0)?.unwrap_or(Timestamp::UNIX_EPOCH);
                Ok(LostMemory { since, detail: row.get(1)? })
            });
            lost.optional()
        })
    }

    pub fn remember_loss(&self, lost: &LostMemory) -> Result<(), DatabaseError> {
        self.database.run("note that an earlier memory was lost", |connection| {
            let values = params![lost.since.as_millisecond(), lost.detail];
            connection.execute("INSERT OR REPLACE INTO lost_memory VALUES (1, ?1, ?2)", values).map(drop)
        })
    }

    pub fn remember(&self, accepted: &Accepted) -> Result<(), DatabaseError> {
        self.database.run("remember the accepted specification", |connection| {
            connection.execute("DELETE FROM lost_memory", [])?;
            let values = params![
                accepted.envelope,
                accepted.digest.to_string(),
                accepted.signed_by,
                accepted.accepted_at.as_millisecond(),
                accepted.removals_allowed
            ];
            connection.execute("INSERT OR REPLACE INTO accepted VALUES (1, ?1, ?2, ?3, ?4, ?5)", values).map(drop)
        })
    }

    pub fn copies(&self) -> Result<BTreeMap<CopyName, CopyRecord>, DatabaseError> {
        self.database.run("read what the copies in the store contain", |connection| {
            let mut statement =
                connection.prepare("SELECT name, verify_checksum, unused_since_milliseconds FROM copy")?;
            let rows = statement.query_map([], |row| {
                let name: String = row.get(0)?;
                let name = CopyName::parse(&name).ok_or_else(|| invalid(0, format!("{name:?} is not a copy")))?;
                Ok((name, copy_record(row, 1)?))
            })?;
            rows.collect()
        })
    }

    pub fn copy(&self, name: CopyName) -> Result<Option<CopyRecord>, DatabaseError> {
        self.database.run("read what a copy in the store contains", |connection| {
            let sql = "SELECT verify_checksum, unused_since_milliseconds FROM copy WHERE name = ?1";
            connection.query_row(sql, [name.to_string()], |row| copy_record(row, 0)).optional()
        })
    }

    pub fn record_copy(&self, name: CopyName, record: CopyRecord) -> Result<(), DatabaseError> {
        self.database.run("record what a copy in the store contains", |connection| {
            let values = params![
                name.to_string(),
                record.verify_checksum.map(|checksum| checksum.to_string()),
                record.unused_since.map(Timestamp::as_millisecond)
            ];
            connection.execute("INSERT OR REPLACE INTO copy VALUES (?1, ?2, ?3)", values).map(drop)
        })
    }

    pub fn forget_copy(&self, name: CopyName) -> Result<(), DatabaseError> {
        self.database.run("forget a copy in the store", |connection| {
            connection.execute("DELETE FROM copy WHERE name = ?1", [name.to_string()]).map(drop)
        })
    }

    pub fn machines(&self) -> Result<BTreeMap<String, MachineStatus>, DatabaseError> {
        self.database.run("read the outcomes of the machines", |connection| {
            let mut statement = connection.prepare("SELECT name, status FROM machine")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
            // An outcome in the layout of another version is left out; the next pass writes it anew.
            let parsed = rows.filter_map(|row| {
                row.map(|(name, text): (String, String)| Some((name, serde_json::from_str(&text).ok()?))).transpose()
            });
            parsed.collect()
        })
    }

    /// Stores the difference to the outcomes that are stored, or all of them when it is not known what is stored;
    /// nothing is written when there is no difference.
    pub fn save_machines(
        &self,
        stored: Option<&BTreeMap<String, MachineStatus>>,
        after: &BTreeMap<String, MachineStatus>,
    ) -> Result<(), DatabaseError> {
        let before = match stored {
            Some(stored) => Cow::Borrowed(stored),
            None => Cow::Owned(self.machines()?),
        };
        let gone: Vec<_> = before.keys().filter(|name| !after.contains_key(*name)).collect();
        let changed: Vec<_> = after.iter().filter(|(name, status)| before.get(*name) != Some(status)).collect();
        if gone.is_empty() && changed.is_empty() {
            return Ok(());
        }
        self.database.run("store the outcomes of the machines", |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            for name in gone {
                transaction.execute("DELETE FROM machine WHERE name = ?1", [name])?;
            }
            for (name, status) in changed {
                let text = serde_json::to_string(status).map_err(|error| invalid(1, error))?;
                transaction.execute("INSERT OR REPLACE INTO machine VALUES (?1, ?2)", params![name, text])?;
            }
            transaction.commit()
        })
    }
}

fn invalid(column: usize, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, why.into())
}

fn digest(row: &Row<'_>, column: usize) -> rusqlite::Result<Sha256Digest> {
    Sha256Digest::parse(&row.get::<_, String>(column)?).map_err(|error| invalid(column, error))
}

fn timestamp(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    let milliseconds: Option<i64> = row.get(column)?;
    milliseconds.map(Timestamp::from_millisecond).transpose().map_err(|error| invalid(column, error))
}

/// A record from two columns, the first of which is `column`.
fn copy_record(row: &Row<'_>, column: usize) -> rusqlite::Result<CopyRecord> {
    let verify_checksum = match row.get::<_, Option<String>>(column)? {
        Some(text) => Some(Sha256Digest::parse(&text).map_err(|error| invalid(column, error))?),
        None => None,
    };
    Ok(CopyRecord { verify_checksum, unused_since: timestamp(row, column + 1)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;

    #[test]
    fn everything_reads_back_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let now = Timestamp::from_millisecond(1_700_000_000_123).unwrap();
        let accepted = Accepted {
            envelope: vec![0, 255, 7],
            digest: Sha256Digest::of(b"payload"),
            signed_by: Some("6403".to_owned()),
            accepted_at: now,
            removals_allowed: true,
        };
        let copy = CopyName::parse(&format!("{}.2", Sha256Digest::of(b"a"))).unwrap();
        let record = CopyRecord { verify_checksum: Some(Sha256Digest::of(b"sums")), unused_since: Some(now) };
        let machine = MachineStatus::example("facts", now);
        let machines = BTreeMap::from([("facts".to_owned(), machine)]);
        {
            let state = State::open(Journal::open(&path).unwrap().database()).unwrap();
            assert_eq!(state.accepted().unwrap(), None);
            state.remember(&accepted).unwrap();
            state.record_copy(copy, record).unwrap();
            state.save_machines(None, &machines).unwrap();
        }
        let state = State::open(Journal::open(&path).unwrap().database()).unwrap();
        assert_eq!(state.accepted().unwrap(), Some(accepted));
        assert_eq!(state.copy(copy).unwrap(), Some(record));
        assert_eq!(state.copies().unwrap(), BTreeMap::from([(copy, record)]));
        assert_eq!(state.machines().unwrap(), machines);
        state.forget_copy(copy).unwrap();
        assert_eq!(state.copy(copy).unwrap(), None);
        state.save_machines(Some(&machines), &BTreeMap::new()).unwrap();
        assert_eq!(state.machines().unwrap(), BTreeMap::new());
    }
}
