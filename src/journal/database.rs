//! The daemon's own memory: one SQLite file, `state.db` in the state directory, opened once and shared by the rooms
//! that keep something in it. Each room makes its own tables; this file opens, checks and serialises access.
//!
//! In: a path. Out: a connection for one short piece of work at a time.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use crate::fs;

/// The layout that this version writes; a file of a later one is refused, as its meaning is unknown here.
const LAYOUT_VERSION: i64 = 1;

/// How long to wait for another process that reads the file, such as a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// What can go wrong with the state database.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The file or its directory can't be made or opened.
    #[error("could not open the state database {}", path.display())]
    Open {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The file can't be created.
    #[error("could not prepare the state database {}", path.display())]
    Create {
        /// The database.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: fs::FileError,
    },
    /// It is not a database, or a check of it fails. Never replaced in silence: a lost memory is something that the
    /// operator must know of. A file that is full, locked or only to be read is not damaged.
    #[error("the state database {} is damaged: {detail}", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// It was written by a later version.
    #[error(
        "the state database {} has layout {found}, and this machinesd knows layouts up to {LAYOUT_VERSION}: install \
         the version of machinesd that wrote it, or move the file aside",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its layout.
        found: i64,
    },
    /// A statement failed.
    #[error("could not {operation} in the state database {}", path.display())]
    Use {
        /// What was tried, as a verb phrase.
        operation: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
}

/// A damaged database that was moved aside, and what was wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now.
    pub path: PathBuf,
    pub detail: String,
}

/// Moves a damaged database aside, for whoever wants to look into it. Its companions go first: a log beside a new file
/// would be played into that.
///
/// # Errors
/// When it can't be moved.
pub fn set_aside(path: &Path, now: jiff::Timestamp) -> Result<PathBuf, fs::FileError> {
    let aside = |companion: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{}{companion}", now.strftime("%Y%m%dT%H%M%SZ")));
        PathBuf::from(name)
    };
    for companion in ["-wal", "-shm", "-journal", ""] {
        let mut name = path.as_os_str().to_owned();
        name.push(companion);
        match fs::rename(Path::new(&name), &aside(companion)) {
            Err(error) if !companion.is_empty() && error.source.kind() == std::io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(aside(""))
}

/// The open state database. Calls block for as long as a flush of the disk takes: asynchronous callers use
/// `spawn_blocking`. The lock is held for one piece of work and never across an await.
#[derive(Debug)]
pub struct StateDatabase {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl StateDatabase {
    /// Opens or creates the file, readable for its owner alone: a specification in it may hold download passwords.
    ///
    /// # Errors
    /// When the file can't be opened, is damaged or comes from a later version.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        match fs::create_new(path, 0o600) {
            Err(error) if error.source.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(DatabaseError::Create { path: path.to_owned(), source: error });
            }
            _ => {}
        }
        let refuse = |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                DatabaseError::Damaged { path: path.to_owned(), detail: source.to_string() }
            }
            _ => DatabaseError::Open { path: path.to_owned(), source },
        };
        let connection = Connection::open(path).map_err(refuse)?;
        prepare(&connection).map_err(refuse)?;
        let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(refuse)?;
        if verdict != "ok" {
            return Err(DatabaseError::Damaged { path: path.to_owned(), detail: verdict });
        }
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(refuse)?;
        if found > LAYOUT_VERSION {
            return Err(DatabaseError::Newer { path: path.to_owned(), found });
        }
        connection.pragma_update(None, "user_version", LAYOUT_VERSION).map_err(refuse)?;
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection) })
    }

    /// As [`Self::open`]; a damaged file is moved aside and a new one made, so that what can be had without it can be had.
    /// The caller holds the lock of the state directory: nobody else has the file open.
    ///
    /// # Errors
    /// As there, but for damage; and when it can't be moved.
    pub fn open_or_set_aside(path: &Path) -> Result<(Self, Option<SetAside>), DatabaseError> {
        let detail = match Self::open(path) {
            Err(DatabaseError::Damaged { detail, .. }) => detail,
            result => return Ok((result?, None)),
        };
        let moved = set_aside(path, jiff::Timestamp::now());
        let moved = moved.map_err(|source| DatabaseError::Create { path: path.to_owned(), source })?;
        tracing::error!(
            "the state database {} is damaged ({detail}) and was moved to {}; this node begins with an empty memory",
            path.display(),
            moved.display()
        );
        Ok((Self::open(path)?, Some(SetAside { path: moved, detail })))
    }

    /// Runs one short piece of work; `operation` is the verb phrase for the message when it fails.
    ///
    /// # Errors
    /// What the work returns.
    pub fn run<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, DatabaseError> {
        // A panic of another holder leaves at most a rolled-back transaction behind, so the connection stays usable.
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut connection).map_err(|source| DatabaseError::Use { operation, path: self.path.clone(), source })
    }
}

/// WAL, so that a reader never blocks the daemon; a full flush on each commit, as what we remember here decides what
/// may run after a power cut.
fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_its_owner_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let database = StateDatabase::open(&path).unwrap();
        database.run("make a table", |connection| connection.execute_batch("CREATE TABLE a (b)")).unwrap();
        for entry in fs::list(directory.path()).unwrap() {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
    }

    #[test]
    fn a_damaged_file_is_named_and_kept_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        fs::write(&path, &[b'x'; 8192], 0o600).unwrap();
        let error = StateDatabase::open(&path).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains("is damaged"), "{error}");
        assert_eq!(fs::read(&path, 10_000).unwrap(), [b'x'; 8192], "only to open it changes nothing");
    }

    #[test]
    fn whatever_is_damaged_is_moved_aside_whole_and_a_new_one_made() {
        let good = || {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("state.db");
            let database = StateDatabase::open(&path).unwrap();
            let fill =
                "CREATE TABLE a (b); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000)
                INSERT INTO a SELECT hex(randomblob(20)) FROM n; PRAGMA wal_checkpoint(TRUNCATE);";
            database.run("fill", |connection| connection.execute_batch(fill)).unwrap();
            drop(database);
            let content = fs::read(&path, 10_000_000).unwrap();
            assert!(content.len() > 100_000);
            (directory, path, content)
        };
        let damages: [(&str, fn(&mut Vec<u8>)); 4] = [
            ("no header", |content| content.get_mut(..100).unwrap().fill(b'x')),
            ("cut off", |content| content.truncate(20_000)),
            ("pages of garbage", |content| content.get_mut(4_096..40_000).unwrap().fill(0xa5)),
            ("something else", |content| *content = b"not a database, but long enough to be taken for one".repeat(99)),
        ];
        for (what, damage) in damages {
            let (directory, path, mut content) = good();
            damage(&mut content);
            fs::write(&path, &content, 0o600).unwrap();
            fs::write(&directory.path().join("state.db-wal"), b"left over", 0o600).unwrap();
            let (database, aside) = StateDatabase::open_or_set_aside(&path).unwrap();
            let aside = aside.unwrap_or_else(|| panic!("{what}: not found to be damaged"));
            assert!(aside.path.to_string_lossy().contains("/state.db.damaged-2"), "{what}: {aside:?}");
            assert_eq!(fs::read(&aside.path, 10_000_000).unwrap(), content, "{what}");
            database.run("use it", |connection| connection.execute_batch("CREATE TABLE a (b)")).unwrap();
            drop(database);
            assert_eq!(StateDatabase::open_or_set_aside(&path).unwrap().1, None, "{what}: the new one is sound");
        }
    }

    #[test]
    fn what_is_locked_or_of_a_later_version_is_not_damaged_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        drop(StateDatabase::open(&path).unwrap());
        let other = Connection::open(&path).unwrap();
        other.pragma_update(None, "user_version", 99).unwrap();
        let error = StateDatabase::open_or_set_aside(&path).unwrap_err();
        assert!(matches!(error, DatabaseError::Newer { .. }), "{error}");
        other.pragma_update(None, "user_version", 1).unwrap();
        other.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; CREATE TABLE b (c)").unwrap();
        let error = StateDatabase::open_or_set_aside(&path).unwrap_err();
        assert!(matches!(error, DatabaseError::Open { .. }), "{error}");
        assert!(
            !fs::list(directory.path())
                .unwrap()
                .iter()
                .any(|entry| entry.file_name().to_string_lossy().contains("damaged"))
        );
    }

    #[test]
    fn a_file_of_a_later_version_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let database = StateDatabase::open(&path).unwrap();
        database.run("raise the layout", |connection| connection.pragma_update(None, "user_version", 99)).unwrap();
        drop(database);
        let error = StateDatabase::open(&path).unwrap_err().to_string();
        assert!(error.contains("has layout 99"), "{error}");
    }

    #[test]
    fn a_failure_names_the_operation() {
        let directory = tempfile::tempdir().unwrap();
        let database = StateDatabase::open(&directory.path().join("state.db")).unwrap();
        let error = database.run("count stars", |connection| connection.execute_batch("SELECT * FROM sky"));
        assert!(error.unwrap_err().to_string().starts_with("could not count stars in the state database"));
    }
}
