//! The journal: what happened on this node and when, kept across restarts, bounded. Sync appends; the
//! control socket reads, for `machinesd why`.
//!
//! In: a kind, a machine and a sentence. Out: the newest records.

mod database;

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::params;
use serde::Serialize;

pub use database::{DatabaseError, SetAside, StateDatabase, set_aside};

use crate::names::MachineName;

/// Records kept; older ones go as new ones come.
pub const RECORDS_KEPT: u32 = 10_000;

/// Longest message kept, in characters: a message may quote what came from outside.
const MESSAGE_MAXIMUM_CHARACTERS: usize = 4_096;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS journal (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        time_milliseconds INTEGER NOT NULL,
        kind TEXT NOT NULL,
        machine TEXT,
        message TEXT NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS journal_by_machine ON journal (machine, sequence);";

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Grows by one with each record; never used twice.
    pub sequence: i64,
    /// When it was appended.
    pub time: Timestamp,
    /// A short word such as `installed` or `refused`.
    pub kind: String,
    /// The machine that it is about, if one.
    pub machine: Option<String>,
    /// A sentence for people.
    pub message: String,
}

/// Which records to read.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// All of them.
    Everything,
    /// Those about one machine.
    Machine(&'a MachineName),
}

/// The journal of this node; cheap to clone. Calls block for a flush of the disk: asynchronous callers use
/// `spawn_blocking`.
#[derive(Debug, Clone)]
pub struct Journal {
    database: Arc<StateDatabase>,
    set_aside: Option<SetAside>,
}

impl Journal {
    /// Opens or creates the state database at `path` and the journal in it.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        Self::of(StateDatabase::open(path)?, None)
    }

    /// As [`Self::open`]; a damaged database is moved aside first. The caller holds the lock of the state directory.
    ///
    /// # Errors
    /// See [`StateDatabase::open_or_set_aside`].
    pub fn open_or_set_aside(path: &Path) -> Result<Self, DatabaseError> {
        let (database, set_aside) = StateDatabase::open_or_set_aside(path)?;
        Self::of(database, set_aside)
    }

    fn of(database: StateDatabase, set_aside: Option<SetAside>) -> Result<Self, DatabaseError> {
        database.run("prepare the journal", |connection| connection.execute_batch(SCHEMA))?;
        Ok(Self { database: Arc::new(database), set_aside })
    }

    /// The damaged database in whose place this one is.
    pub fn in_place_of(&self) -> Option<&SetAside> {
        self.set_aside.as_ref()
    }

    /// The database that the journal lives in, for the rooms that keep their own tables beside it.
    pub fn database(&self) -> Arc<StateDatabase> {
        Arc::clone(&self.database)
    }

    /// Appends one record and drops those beyond [`RECORDS_KEPT`].
    ///
    /// # Errors
    /// When the database can't be written, for example because the disk is full.
    pub fn append(&self, kind: &str, machine: Option<&MachineName>, message: &str) -> Result<(), DatabaseError> {
        let message: String = message.chars().take(MESSAGE_MAXIMUM_CHARACTERS).collect();
        self.database.run("append to the journal", |connection| {
            let transaction = connection.transaction()?;
            transaction.execute(
                "INSERT INTO journal (time_milliseconds, kind, machine, message) VALUES (?1, ?2, ?3, ?4)",
                params![Timestamp::now().as_millisecond(), kind, machine.map(MachineName::as_str), message],
            )?;
            let oldest = transaction.last_insert_rowid() - i64::from(RECORDS_KEPT);
            transaction.execute("DELETE FROM journal WHERE sequence <= ?1", [oldest])?;
            transaction.commit()
        })
    }

    /// The newest records, newest first, at most `count`.
    ///
    /// # Errors
    /// When the database can't be read.
    pub fn recent(&self, scope: Scope<'_>, count: u32) -> Result<Vec<Record>, DatabaseError> {
        let machine = match scope {
            Scope::Everything => None,
            Scope::Machine(name) => Some(name.as_str()),
        };
        self.database.run("read the journal", |connection| {
            let mut statement = connection.prepare(
                "SELECT sequence, time_milliseconds, kind, machine, message FROM journal
                 WHERE ?1 IS NULL OR machine = ?1 ORDER BY sequence DESC LIMIT ?2",
            )?;
            let rows = statement.query_map(params![machine, count], |row| {
                Ok(Record {
                    sequence: row.get(0)?,
                    time: Timestamp::from_millisecond(row.get(1)?).unwrap_or(Timestamp::UNIX_EPOCH),
                    kind: row.get(2)?,
                    machine: row.get(3)?,
                    message: row.get(4)?,
                })
            })?;
            rows.collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_a_restart_newest_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let facts = MachineName::new("facts").unwrap();
        let journal = Journal::open(&path).unwrap();
        journal.append("accepted", None, "specification e3b0 was accepted").unwrap();
        journal.append("installed", Some(&facts), "installed \"facts\"").unwrap();
        drop(journal);
        let journal = Journal::open(&path).unwrap();
        let kinds: Vec<_> =
            journal.recent(Scope::Everything, 10).unwrap().into_iter().map(|record| record.kind).collect();
        assert_eq!(kinds, ["installed", "accepted"]);
        let records = journal.recent(Scope::Machine(&facts), 10).unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].message, "installed \"facts\"");
    }

    #[test]
    fn it_never_grows_beyond_its_bound() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(&directory.path().join("state.db")).unwrap();
        // As if many had been written before: the bound follows the sequence.
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000)
            INSERT INTO journal (time_milliseconds, kind, message) SELECT 0, 'old', 'old' FROM n";
        journal.database().run("fill", |connection| connection.execute_batch(fill)).unwrap();
        journal.append("new", None, &"x".repeat(10_000)).unwrap();
        let records = journal.recent(Scope::Everything, 20_000).unwrap();
        assert_eq!(records.len(), RECORDS_KEPT as usize);
        assert_eq!(records[0].message.len(), MESSAGE_MAXIMUM_CHARACTERS);
    }
}
