//! The disk of an `archive` watcher: what is in place, and how a verified copy gets there. Beside the target are all
//! copies, each under a name of its own; what is in use is decided by one link:
//!
//! ```text
//! TARGET/.CREATES.copies/<checksum>.<random>/CREATES/…   a verified copy
//! TARGET/.CREATES.copies/.<random>-temp/                 work in progress, held by a lock
//! TARGET/CREATES -> .CREATES.copies/<checksum>.<random>/CREATES
//! ```
//!
//! What is removed and written here is with our rights. So the way to the target is walked from `/`, nobody but root or
//! the daemon's user may change any directory on it, and all that follows goes through the open directory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use rustix::fs::FileType;
use tokio::sync::Semaphore;
use tokio::task::JoinError;

use crate::archive::{Fetcher, Opened, Purpose, unpack_open, verify_open};
use crate::digest::Sha256Digest;
use crate::errors::chain;
use crate::fs::{Aside, Directory, FileError, Lock};
use crate::machine::watcher::Services;
use crate::names::MachineName;
use crate::spec::{Credentials, Source};

/// The name of the list of checksums, as the archives of this project have it.
pub(super) const LIST_NAME: &str = "SHA256SUMS";

/// Names for a staging directory that are tried, as another process may be sweeping the one just made.
const TRIES: usize = 8;

/// Archive watchers of this process that work on the disk at one time; the others wait. When a node with many of them
/// starts, they would otherwise take every blocking thread for minutes, and with them the threads of all else. Downloads
/// have places of their own, by origin: nobody's disk waits for another's server.
static PLACES: Semaphore = Semaphore::const_new(4);

/// Looks or works on the disk where blocking is allowed, a few at a time.
pub(super) async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    // Never closed.
    let _place = PLACES.acquire().await;
    tokio::task::spawn_blocking(work).await
}

/// What is wanted, its templates rendered.
#[derive(Clone)]
pub(super) struct Archive {
    pub source: Source,
    pub credentials: Option<Credentials>,
    pub checksum: Sha256Digest,
    pub verify_checksum: Sha256Digest,
    pub creates: MachineName,
    pub target: PathBuf,
}

/// How what is there now is.
pub(super) enum Condition {
    Sound,
    /// Not as it should be: the outcome that says so, and why.
    Unsound(&'static str, String),
    /// Nothing may be put there, and what is there says nothing: somebody else decides about it.
    Unusable(String),
}

impl Archive {
    pub fn link(&self) -> PathBuf {
        self.target.join(self.creates.as_str())
    }

    fn copies_name(&self) -> String {
        format!(".{}.copies", self.creates)
    }

    /// Looks at what is there now, and removes what an interrupted installation left. Blocks.
    pub fn inspect(&self) -> Condition {
        let missing = || Condition::Unsound("no_creates", format!("{} does not exist", self.link().display()));
        let target = match Directory::trusted(&self.target) {
            Ok(target) => target,
            Err(distrust) if distrust.is_missing() => return missing(),
            Err(distrust) => return Condition::Unusable(chain(&distrust)),
        };
        match self.copies(&target) {
            Ok(Some(copies)) => sweep(&copies),
            Ok(None) => {}
            Err(error) => return Condition::Unusable(error),
        }
        if let Ok(Some(kind)) = target.kind(self.creates.as_str())
            && !matches!(kind, FileType::Directory | FileType::Symlink)
        {
            return Condition::Unsound("no_checksums", format!("{} is not a directory", self.link().display()));
        }
        // Where it leads is looked at anew from `/`: it may be a link that a person made.
        let directory = match Directory::trusted(&self.link()) {
            Ok(directory) => directory,
            Err(distrust) if distrust.is_missing() => return missing(),
            Err(distrust) => return Condition::Unsound("verify_failed", chain(&distrust)),
        };
        if let Ok(None) = directory.kind(LIST_NAME) {
            return Condition::Unsound("no_checksums", format!("{} has no {LIST_NAME}", self.link().display()));
        }
        match verify_open(&directory, &self.verify_checksum) {
            Ok(()) => Condition::Sound,
            Err(drift) => Condition::Unsound("verify_failed", drift.to_string()),
        }
    }

    /// The directory of the copies, if there is one.
    fn copies(&self, target: &Directory) -> Result<Option<Directory>, String> {
        let name = self.copies_name();
        match target.kind(&name) {
            Ok(None) => Ok(None),
            Ok(Some(_)) => target.enter_trusted(&name).map(Some).map_err(|error| chain(&error)),
            Err(error) => Err(chain(&error)),
        }
    }

    /// Fetches the archive and puts it in place. Whatever ends it, a time limit and a dropped future included, nothing of
    /// the work stays, and what nobody waits for any more is not put in place.
    pub async fn install(&self, services: &Services, fetcher: &Fetcher, purpose: Purpose) -> Result<(), String> {
        let this = self.clone();
        let prepared = on_disk(move || this.prepare()).await;
        let staging = Aside::new(prepared.unwrap_or_else(|error| Err(error.to_string()))?);
        let result = self.install_in(&staging, services, fetcher, purpose).await;
        staging.end().await;
        result
    }

    /// Refuses, before anything is fetched, a place that can't take the archive, and one that somebody else could change.
    fn prepare(&self) -> Result<Staging, String> {
        let target = Directory::trusted_or_made(&self.target, 0o755).map_err(|error| chain(&error))?;
        let told = |error: FileError| chain(&error);
        match target.kind(self.creates.as_str()).map_err(told)? {
            None | Some(FileType::Symlink | FileType::Directory) => {}
            Some(_) => {
                let link = self.link();
                let message = "it is neither a directory nor a link; move it aside";
                return Err(format!("{} is in the way: {message}", link.display()));
            }
        }
        let copies = match self.copies(&target)? {
            Some(copies) => copies,
            None => target.make(&self.copies_name(), 0o755).map_err(told)?,
        };
        Staging::make(target, copies).map_err(told)
    }

    async fn install_in(
        &self,
        staging: &Aside<Staging>,
        services: &Services,
        fetcher: &Fetcher,
        purpose: Purpose,
    ) -> Result<(), String> {
        let Some(staging) = staging.share() else { return Ok(()) };
        let archive = staging.directory.place("archive").map_err(|error| chain(&error))?;
        let place = fetcher.place(&self.source, purpose).await;
        let fetched = fetcher.fetch_at(&place, &self.source, self.credentials.as_ref(), archive).await;
        drop(place);
        let fetched = fetched.map_err(|error| chain(&error))?;
        if fetched.digest != self.checksum {
            return Err(format!(
                "checksum of {} does not match: expected {}, got {}",
                self.source, self.checksum, fetched.digest
            ));
        }
        // Lives as long as somebody waits: a thread that unpacks can't be stopped, but it can be kept from the last step.
        let wanted = Arc::new(());
        let (this, limits, waits) = (self.clone(), services.archive_limits.clone(), Arc::downgrade(&wanted));
        let placed = on_disk(move || this.put_in_place(&staging, &limits, &waits)).await;
        placed.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn put_in_place(&self, staging: &Staging, limits: &crate::archive::Limits, waits: &Weak<()>) -> Result<(), String> {
        let told = |error: FileError| chain(&error);
        let archive = staging.directory.place("archive").map_err(told)?;
        let file = archive.open().map_err(told)?.ok_or("the archive is gone; the next check fetches it again")?;
        let opened = Opened { file: file.into_file(), path: archive.path() };
        let unpacked = staging.directory.make("unpacked", 0o755).map_err(told)?;
        unpack_open(opened, &self.creates, &unpacked, limits, &self.verify_checksum).map_err(|error| chain(&error))?;
        if waits.strong_count() == 0 {
            return Err("it took too long; nothing is put in place".to_owned());
        }
        let copy = format!("{}.{}", self.checksum.short(), uuid::Uuid::new_v4().simple());
        if let Err(error) = self.switch(staging, &copy) {
            // Or each further attempt would leave another copy.
            _ = staging.copies.remove_tree(&copy);
            return Err(chain(&error));
        }
        forget_others(&staging.copies, &copy).map_err(told)
    }

    /// Moves the verified copy beside the others and points the link at it, in one step.
    fn switch(&self, staging: &Staging, copy: &str) -> Result<(), FileError> {
        let (target, copies, creates) = (&staging.target, &staging.copies, self.creates.as_str());
        staging.directory.rename("unpacked", copies, copy)?;
        if target.kind(creates)? == Some(FileType::Directory) {
            // A directory that the reference or a person put there; it is moved aside once, never deleted.
            target.rename(creates, copies, &format!("{copy}.replaced"))?;
        }
        target.replace_symlink(creates, &Path::new(&self.copies_name()).join(copy).join(creates))
    }
}

/// A directory of unfinished work; removed when dropped, which blocks.
struct Staging {
    target: Directory,
    copies: Directory,
    name: String,
    directory: Directory,
    /// Tells others that it is in use. The system takes it from a process that was killed.
    _lock: Lock,
}

impl Staging {
    fn make(target: Directory, copies: Directory) -> Result<Self, FileError> {
        for _ in 0..TRIES {
            let name = format!(".{}-temp", uuid::Uuid::new_v4().simple());
            // Not for others: it is not verified yet, and may be secret.
            let directory = copies.make(&name, 0o700)?;
            match directory.try_lock()? {
                Some(lock) if !directory.is_removed() => {
                    return Ok(Self { target, copies, name, directory, _lock: lock });
                }
                // Somebody took it for a left-over in the moment before we held it.
                _ => {}
            }
        }
        let source = std::io::Error::other("another process removes it again and again");
        Err(FileError { operation: "hold a staging directory in", path: copies.path().to_owned(), source })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = self.copies.remove_tree(&self.name) {
            tracing::warn!("a later check removes unfinished work: {}", chain(&error));
        }
    }
}

/// Removes the unfinished work of those who were killed.
fn sweep(copies: &Directory) {
    let names = copies.names().unwrap_or_default();
    for name in names.iter().filter(|name| is_staging(name)) {
        let swept = copies.enter(name).and_then(|left| match left.try_lock()? {
            Some(_lock) => copies.remove_tree(name),
            // It is in use.
            None => Ok(()),
        });
        if let Err(error) = swept {
            tracing::debug!("left over, and it stays: {}", chain(&error));
        }
    }
}

fn has_digits(text: &str, count: usize) -> bool {
    text.len() == count && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a name is that of unfinished work: a dot, a UUID, `-temp`.
fn is_staging(name: &str) -> bool {
    name.strip_prefix('.').and_then(|rest| rest.strip_suffix("-temp")).is_some_and(|unique| has_digits(unique, 32))
}

/// Whether a name is that of a copy which an earlier run of this watcher made: 12 digits of the checksum, a dot, a UUID.
fn is_copy(name: &str) -> bool {
    name.split_once('.').is_some_and(|(checksum, unique)| has_digits(checksum, 12) && has_digits(unique, 32))
}

/// Removes earlier copies, but for the newest of them: a command may still run in it.
fn forget_others(copies: &Directory, kept: &str) -> Result<(), FileError> {
    let mut others: Vec<_> = copies.names()?.into_iter().filter(|name| name != kept && is_copy(name)).collect();
    others.sort_by_key(|name| copies.modified(name));
    others.pop();
    others.iter().try_for_each(|name| copies.remove_tree(name))
}
