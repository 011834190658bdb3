//! Governors of the embedded store: they limit what the processes of this node do at once. A slot is a row that expires;
//! each call is one transaction, so that two processes never both see the last free place.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::database::{Access, Database};
use super::entries::{Failure, unsigned};
use crate::kv::{Claim, GovernorSettings, GovernorStatus, HeldSlot, KvError, Owner, Slots, Taken};
use crate::names::GovernorName;

/// Made beside the tables of format 1. A program that does not know them does not mind them, so the format stays.
pub(super) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS governors (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    capacity INTEGER NOT NULL,
    expire_milliseconds INTEGER NOT NULL,
    sequence INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS slots (
    governor INTEGER NOT NULL REFERENCES governors (id) ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    claim TEXT NOT NULL,
    holder TEXT NOT NULL,
    taken_milliseconds INTEGER NOT NULL,
    PRIMARY KEY (governor, sequence)
) STRICT;
";

type Result<T> = std::result::Result<T, Failure>;

/// The governors in one database.
pub(super) struct LocalSlots {
    database: Arc<Database>,
}

impl LocalSlots {
    pub fn new(database: Arc<Database>) -> Self {
        Self { database }
    }

    async fn call<T: Send + 'static>(
        &self,
        access: Access,
        verb: &str,
        name: &GovernorName,
        statements: impl FnOnce(&Transaction<'_>, &Stored) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, KvError> {
        let operation = format!("{verb} governor \"{name}\"");
        let name = name.clone();
        self.database
            .call(access, operation, move |transaction| statements(transaction, &stored(transaction, &name)?))
            .await
    }
}

/// A governor as it is stored.
struct Stored {
    id: i64,
    capacity: i64,
    expire_milliseconds: i64,
}

impl Stored {
    /// Slots taken at or before this have expired.
    fn expired_milliseconds(&self) -> i64 {
        Timestamp::now().as_millisecond().saturating_sub(self.expire_milliseconds)
    }

    fn taken(&self, transaction: &Transaction<'_>) -> rusqlite::Result<i64> {
        transaction
            .prepare("SELECT count(*) FROM slots WHERE governor = ?1 AND taken_milliseconds > ?2")?
            .query_row(params![self.id, self.expired_milliseconds()], |row| row.get(0))
    }

    fn status(&self, transaction: &Transaction<'_>, name: GovernorName) -> Result<GovernorStatus> {
        let expire = Duration::from_millis(self.expire_milliseconds.unsigned_abs());
        Ok(GovernorStatus {
            name,
            capacity: Some(self.capacity.unsigned_abs()),
            taken: self.taken(transaction)?.unsigned_abs(),
            expire_seconds: Some(expire.as_secs_f64()),
            replicas: 1,
            subject: None,
            backing: "SQLite",
        })
    }
}

fn stored(transaction: &Transaction<'_>, name: &GovernorName) -> Result<Stored> {
    let found = transaction
        .prepare("SELECT id, capacity, expire_milliseconds FROM governors WHERE name = ?1")?
        .query_row([name.as_str()], |row| {
            Ok(Stored { id: row.get(0)?, capacity: row.get(1)?, expire_milliseconds: row.get(2)? })
        })
        .optional()?;
    found.ok_or_else(|| KvError::NoGovernor { governor: name.clone() }.into())
}

fn add(transaction: &Transaction<'_>, settings: &GovernorSettings) -> Result<()> {
    let expire = i64::try_from(settings.expire.as_millis()).unwrap_or(i64::MAX);
    transaction.execute(
        "INSERT INTO governors (name, capacity, expire_milliseconds) VALUES (?1, ?2, ?3)
         ON CONFLICT (name) DO UPDATE SET capacity = ?2, expire_milliseconds = ?3",
        params![settings.name.as_str(), settings.capacity, expire],
    )?;
    Ok(())
}

fn take(transaction: &Transaction<'_>, governor: &Stored, claim: &Claim) -> Result<Option<u64>> {
    transaction
        .prepare("DELETE FROM slots WHERE governor = ?1 AND taken_milliseconds <= ?2")?
        .execute(params![governor.id, governor.expired_milliseconds()])?;
    if governor.taken(transaction)? >= governor.capacity {
        return Ok(None);
    }
    let sequence: i64 = transaction
        .prepare("UPDATE governors SET sequence = sequence + 1 WHERE id = ?1 RETURNING sequence")?
        .query_row([governor.id], |row| row.get(0))?;
    transaction
        .prepare(
            "INSERT INTO slots (governor, sequence, claim, holder, taken_milliseconds) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![governor.id, sequence, claim.id(), claim.description(), Timestamp::now().as_millisecond()])?;
    Ok(Some(sequence.unsigned_abs()))
}

fn find(transaction: &Transaction<'_>, governor: &Stored, claim: &str) -> Result<Vec<u64>> {
    let mut statement = transaction.prepare("SELECT sequence FROM slots WHERE governor = ?1 AND claim = ?2")?;
    let found = statement.query_map(params![governor.id, claim], |row| unsigned(row, 0))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

fn held(transaction: &Transaction<'_>, governor: &Stored) -> Result<Vec<HeldSlot>> {
    let mut statement = transaction.prepare(
        "SELECT sequence, taken_milliseconds, holder FROM slots WHERE governor = ?1 AND taken_milliseconds > ?2
         ORDER BY sequence",
    )?;
    let found = statement.query_map(params![governor.id, governor.expired_milliseconds()], |row| {
        let since = Timestamp::from_millisecond(row.get(1)?).unwrap_or_default();
        Ok(HeldSlot { sequence: unsigned(row, 0)?, since, holder: row.get(2)? })
    })?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

fn all(transaction: &Transaction<'_>) -> Result<Vec<GovernorStatus>> {
    let mut statement = transaction.prepare("SELECT name FROM governors ORDER BY name")?;
    let names: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let valid = names.iter().filter_map(|name| GovernorName::new(name).ok());
    valid.map(|name| stored(transaction, &name)?.status(transaction, name)).collect()
}

#[async_trait::async_trait]
impl Slots for LocalSlots {
    async fn add(&self, settings: &GovernorSettings) -> std::result::Result<(), KvError> {
        settings.check()?;
        let operation = format!("set up governor \"{}\"", settings.name);
        let settings = settings.clone();
        self.database.call(Access::Write, operation, move |transaction| add(transaction, &settings)).await
    }

    async fn take(&self, name: &GovernorName, claim: &Claim) -> std::result::Result<Taken, KvError> {
        let claim = claim.clone();
        let statements = move |transaction: &Transaction<'_>, governor: &Stored| take(transaction, governor, &claim);
        let sequence = self.call(Access::Write, "take a slot of", name, statements).await?;
        Ok(sequence.map_or(Taken::Full, Taken::Slot))
    }

    async fn find(&self, name: &GovernorName, claim: &str) -> std::result::Result<Vec<u64>, KvError> {
        let claim = claim.to_owned();
        let statements = move |transaction: &Transaction<'_>, governor: &Stored| find(transaction, governor, &claim);
        self.call(Access::Read, "look for a slot of", name, statements).await
    }

    async fn free(&self, name: &GovernorName, sequence: u64, owner: Owner<'_>) -> std::result::Result<bool, KvError> {
        let claim = match owner {
            Owner::Claim(claim) => Some(claim.to_owned()),
            Owner::Anybody => None,
        };
        let statements = move |transaction: &Transaction<'_>, governor: &Stored| {
            let freed = transaction
                .prepare("DELETE FROM slots WHERE governor = ?1 AND sequence = ?2 AND claim = coalesce(?3, claim)")?
                .execute(params![governor.id, sequence.cast_signed(), claim])?;
            Ok(freed > 0)
        };
        self.call(Access::Write, "free a slot of", name, statements).await
    }

    async fn governor(&self, name: &GovernorName) -> std::result::Result<GovernorStatus, KvError> {
        let own = name.clone();
        let statements = move |transaction: &Transaction<'_>, governor: &Stored| governor.status(transaction, own);
        self.call(Access::Read, "look at", name, statements).await
    }

    async fn governors(&self) -> std::result::Result<Vec<GovernorStatus>, KvError> {
        self.database.call(Access::Read, "list the governors".to_owned(), all).await
    }

    async fn held(&self, name: &GovernorName) -> std::result::Result<Vec<HeldSlot>, KvError> {
        self.call(Access::Read, "list the slots of", name, held).await
    }

    async fn reset(&self, name: &GovernorName) -> std::result::Result<(), KvError> {
        let statements = |transaction: &Transaction<'_>, governor: &Stored| {
            transaction.execute("DELETE FROM slots WHERE governor = ?1", [governor.id])?;
            Ok(())
        };
        self.call(Access::Write, "reset", name, statements).await
    }

    async fn delete(&self, name: &GovernorName) -> std::result::Result<(), KvError> {
        let statements = |transaction: &Transaction<'_>, governor: &Stored| {
            transaction.execute("DELETE FROM governors WHERE id = ?1", [governor.id])?;
            Ok(())
        };
        self.call(Access::Write, "delete", name, statements).await
    }
}
