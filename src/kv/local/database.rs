//! The SQLite file: opening it (or refusing a damaged or newer one), its tables, and running statements on it off the
//! asynchronous threads. Also the one place that learns of changes, by this process or another, and wakes watches.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher as _};
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use tokio::sync::{Notify, watch};

use super::entries::Failure;
use crate::fs;
use crate::kv::KvError;
use crate::kv::settings::CreateDatabase;

/// The format of the tables below, kept in SQLite's `user_version`.
const FORMAT: i64 = 1;
/// Longest wait for another process' transaction.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// Between two attempts at what SQLite does not wait for itself.
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// The safety net below `notify`.
const POLL: Duration = Duration::from_secs(1);

/// `AUTOINCREMENT`, so that a bucket that is deleted and made anew is seen to be another.
const TABLES: &str = "
CREATE TABLE buckets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    history INTEGER NOT NULL,
    ttl_milliseconds INTEGER,
    maximum_value_bytes INTEGER,
    revision INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE entries (
    bucket INTEGER NOT NULL REFERENCES buckets (id) ON DELETE CASCADE,
    revision INTEGER NOT NULL,
    key TEXT NOT NULL,
    operation TEXT NOT NULL,
    created_milliseconds INTEGER NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (bucket, revision)
) STRICT;
CREATE INDEX entries_by_key ON entries (bucket, key, revision);
";

/// What statements do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Access {
    /// Sees one state of the store and waits for nobody.
    Read,
    /// Takes the write lock at the start, so that it can't fail half-way.
    Write,
}

impl Access {
    fn behavior(self) -> TransactionBehavior {
        match self {
            Self::Read => TransactionBehavior::Deferred,
            Self::Write => TransactionBehavior::Immediate,
        }
    }
}

/// An open database file.
pub(super) struct Database {
    path: PathBuf,
    /// One connection per store: statements are short, and the daemon has one store.
    connection: Arc<Mutex<Connection>>,
    changes: watch::Sender<u64>,
    follower: OnceLock<()>,
}

impl Database {
    /// Opens or makes the file. Blocks.
    pub fn open(path: &Path, create: CreateDatabase) -> Result<Self, KvError> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !path.exists() {
            match create {
                CreateDatabase::Yes => {
                    fs::create_directory(directory, 0o700)?;
                    // Made here and not by SQLite for its mode; the -wal and -shm files inherit it.
                    match fs::create_new(path, 0o600) {
                        Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => {}
                        result => drop(result?),
                    }
                }
                CreateDatabase::No if !directory.is_dir() => {
                    return Err(KvError::NoDirectory { path: path.to_owned(), directory: directory.to_owned() });
                }
                CreateDatabase::No => return Err(KvError::NoDatabase { path: path.to_owned() }),
            }
        }
        let connection = connect(path).map_err(|error| opening(path, error))?;
        Self::prepare(path, connection)
    }

    fn prepare(path: &Path, mut connection: Connection) -> Result<Self, KvError> {
        let fail = |error| opening(path, error);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail)?;
        if !(0..=FORMAT).contains(&found) {
            return Err(KvError::NewerDatabase { path: path.to_owned(), found, supported: FORMAT });
        }
        if found == 0 {
            transaction.execute_batch(TABLES).map_err(fail)?;
            transaction.pragma_update(None, "user_version", FORMAT).map_err(fail)?;
        }
        transaction.execute_batch(super::slots::TABLES).map_err(fail)?;
        transaction.commit().map_err(fail)?;
        Ok(Self {
            path: path.to_owned(),
            connection: Arc::new(Mutex::new(connection)),
            changes: watch::Sender::new(0),
            follower: OnceLock::new(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs statements in one transaction.
    pub async fn call<T: Send + 'static>(
        &self,
        access: Access,
        operation: String,
        statements: impl FnOnce(&Transaction<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, KvError> {
        let (connection, path) = (Arc::clone(&self.connection), self.path.clone());
        let result = tokio::task::spawn_blocking(move || {
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let transaction = connection.transaction_with_behavior(access.behavior())?;
            let value = statements(&transaction)?;
            transaction.commit()?;
            if matches!(access, Access::Write)
                && let Err(error) = fs::touch(&path)
            {
                tracing::debug!("other processes notice the change later: {}", crate::errors::chain(&error));
            }
            Ok(value)
        })
        .await;
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Failure::Refused(KvError::NoBucket { bucket, .. }))) => {
                Err(KvError::NoBucket { bucket, embedded: Some(self.path.clone()) })
            }
            Ok(Err(Failure::Refused(error))) => Err(error),
            Ok(Err(Failure::Database(error))) => Err(meaning(operation, &self.path, error)),
            Err(_) => Err(KvError::Stopping { operation }),
        }
    }

    /// Wakes the watches.
    pub fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Tells of every change of the database from now on, by whichever process. Must be called within a runtime.
    pub fn follow(self: &Arc<Self>) -> watch::Receiver<u64> {
        let receiver = self.changes.subscribe();
        self.follower.get_or_init(|| {
            tokio::spawn(follow_others(Arc::downgrade(self), self.path.clone()));
        });
        receiver
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_LIMIT)?;
    use_write_ahead_log(&connection)?;
    // A put that was answered must survive a power cut.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // In KiB. The default of 2 MiB is much for a daemon that idles in 20.
    connection.pragma_update(None, "cache_size", -256)?;
    connection.pragma_update(None, "journal_size_limit", 4 * 1024 * 1024)?;
    Ok(connection)
}

/// SQLite does not wait for others when it changes the journal mode, whatever the busy timeout: where two programs make
/// the store at once, one of them is told that it is locked. Once one has done it, it is done for all.
fn use_write_ahead_log(connection: &Connection) -> rusqlite::Result<()> {
    let deadline = Instant::now() + BUSY_LIMIT;
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error) if is_busy(&error) && Instant::now() < deadline => pause(),
            result => return result,
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

#[expect(clippy::disallowed_methods, reason = "opening blocks, and runs on a thread for that")]
fn pause() {
    std::thread::sleep(BUSY_PAUSE);
}

/// As [`meaning`], before it is in use: SQLite's own words are the path, twice.
fn opening(path: &Path, source: rusqlite::Error) -> KvError {
    match source.sqlite_error_code() {
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            KvError::Forbidden { path: path.to_owned() }
        }
        _ => meaning("prepare the tables".to_owned(), path, source),
    }
}

fn meaning(operation: String, path: &Path, source: rusqlite::Error) -> KvError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => KvError::CorruptDatabase { path, source },
        _ => KvError::Database { operation, path, source },
    }
}

/// Watches the directory and, as the safety net, SQLite's counter of other connections' commits. What wakes it is that
/// writers touch the file after the commit: the `-wal` file changes before the commit can be seen, and what makes it
/// visible is memory that no file event tells of. Ends with the store.
async fn follow_others(database: Weak<Database>, path: PathBuf) {
    let touched = Arc::new(Notify::new());
    let watcher = watch_directory(&path, Arc::clone(&touched));
    if let Err(error) = &watcher {
        tracing::warn!(%error, path = %path.display(), "changes of the embedded store are found by polling only");
    }
    let mut seen = None;
    loop {
        let Some(strong) = database.upgrade() else { return };
        let connection = Arc::clone(&strong.connection);
        let version = tokio::task::spawn_blocking(move || {
            let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            connection.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0)).ok()
        })
        .await
        .unwrap_or_default();
        if version != seen {
            seen = version;
            strong.changed();
        }
        drop(strong);
        let _ = tokio::time::timeout(POLL, touched.notified()).await;
    }
}

fn watch_directory(path: &Path, touched: Arc<Notify>) -> notify::Result<notify::RecommendedWatcher> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return touched.notify_one() };
        // Reading is an event too, and reading is what an event leads to.
        let ours = |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&name));
        if !event.kind.is_access() && event.paths.iter().any(ours) {
            touched.notify_one();
        }
    })?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
