//! Writes the files of a machine below its staging directory: in come checked relative paths and contents, out comes a
//! read-only tree that is flushed to the disk. Every step goes through an open directory and follows no link, so that
//! nothing can be written elsewhere even if someone changes the staging directory meanwhile.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};

use rustix::fs::{AtFlags, Mode, OFlags};

use super::ArchiveError;
use super::path::{ancestors, shown};
use crate::fs::Directory;

/// Installed files are read-only; what a machine writes goes to its data directory.
pub(super) const FILE_MODE: u32 = 0o444;
/// As [`FILE_MODE`], for files that were executable in the archive.
pub(super) const EXECUTABLE_MODE: u32 = 0o555;
/// Directories of an installed machine.
pub(super) const DIRECTORY_MODE: u32 = 0o555;

/// Flushing waits for the disk: several threads let the file system put many files into one commit.
const FLUSHERS: usize = 4;
/// Files that may wait to be flushed; bounds the open files.
const FLUSH_AHEAD: usize = 16;
/// A large file starts on its way to the disk while it is still being written.
const WRITE_BACK_BYTES: u64 = 8 * 1024 * 1024;

/// Opens a directory without following a link at its name.
pub(super) const DIRECTORY_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn on<'a>(operation: &'static str, entry: &'a str) -> impl Fn(rustix::io::Errno) -> ArchiveError + 'a {
    move |error| failed(operation, entry, error.into())
}

fn failed(operation: &'static str, entry: &str, source: io::Error) -> ArchiveError {
    ArchiveError::Write { operation, entry: shown(entry.as_bytes()), source }
}

enum Flush {
    /// What is written so far; best effort, the whole file is flushed later.
    Part(File, String),
    Whole(File, String),
}

/// The machine's directory while it is being written.
pub(super) struct Tree<'scope> {
    top: String,
    root: OwnedFd,
    /// The directory of the last file: most files follow their neighbours.
    last: Option<(String, OwnedFd)>,
    directories: BTreeSet<String>,
    flush: SyncSender<Flush>,
    flushers: Vec<ScopedJoinHandle<'scope, Result<(), ArchiveError>>>,
}

impl<'scope> Tree<'scope> {
    /// Makes `into/<top>`, which must not exist, and starts the flushing threads.
    pub(super) fn create(scope: &'scope Scope<'scope, '_>, into: &Directory, top: &str) -> Result<Self, ArchiveError> {
        let staging = into.descriptor();
        rustix::fs::mkdirat(staging, top, Mode::from_raw_mode(0o700)).map_err(on("create directory", top))?;
        let root =
            rustix::fs::openat(staging, top, DIRECTORY_FLAGS, Mode::empty()).map_err(on("open directory", top))?;
        let (flush, receiver) = sync_channel(FLUSH_AHEAD);
        let receiver = Arc::new(Mutex::new(receiver));
        let flushers = (0..FLUSHERS)
            .map(|_| {
                let receiver = Arc::clone(&receiver);
                thread::Builder::new().name("flush".into()).spawn_scoped(scope, move || flush_all(&receiver))
            })
            .collect::<io::Result<_>>()
            .map_err(|error| failed("start flushing", top, error))?;
        Ok(Self { top: top.to_owned(), root, last: None, directories: BTreeSet::new(), flush, flushers })
    }

    /// Creates a file that must not exist, and the directories above it.
    pub(super) fn create_file(&mut self, path: &str) -> Result<NewFile, ArchiveError> {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        self.enter(directory)?;
        let parent = self.last.as_ref().map_or(&self.root, |(_, parent)| parent);
        let file = rustix::fs::openat(parent, name, flags, mode).map_err(on("create", path))?;
        Ok(NewFile { path: path.to_owned(), file: file.into(), bytes: 0, flush: self.flush.clone() })
    }

    /// Makes `last` the directory (`None` for the root), creating what is missing on the way.
    fn enter(&mut self, directory: &str) -> Result<(), ArchiveError> {
        if directory.is_empty() {
            self.last = None;
            return Ok(());
        }
        if self.last.as_ref().is_some_and(|(last, _)| last == directory) {
            return Ok(());
        }
        self.last = None;
        let mut current: Option<OwnedFd> = None;
        for path in ancestors(directory).chain([directory]) {
            let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
            let parent = current.as_ref().unwrap_or(&self.root);
            if self.directories.insert(path.to_owned()) {
                rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)).map_err(on("create directory", path))?;
            }
            current = Some(
                rustix::fs::openat(parent, name, DIRECTORY_FLAGS, Mode::empty()).map_err(on("open directory", path))?,
            );
        }
        self.last = current.map(|directory_fd| (directory.to_owned(), directory_fd));
        Ok(())
    }

    /// Waits until all files are on the disk, makes the directories read-only and flushes them too.
    pub(super) fn finish(mut self) -> Result<(), ArchiveError> {
        // A directory that is read-only can still be flushed, and its mode then goes with it. Innermost first, as a
        // read-only parent must not hinder anything.
        let directories = std::mem::take(&mut self.directories);
        for path in directories.iter().rev() {
            self.enter_existing(path)?;
            if let Some((_, directory)) = &self.last {
                seal(directory, path)?;
            }
        }
        seal(&self.root, &self.top)?;
        drop(self.flush);
        for flusher in self.flushers {
            flusher.join().unwrap_or_else(|_| {
                Err(failed("flush", &self.top, io::Error::other("the flushing thread failed; try again")))
            })?;
        }
        Ok(())
    }

    fn enter_existing(&mut self, directory: &str) -> Result<(), ArchiveError> {
        self.directories.extend(ancestors(directory).chain([directory]).map(str::to_owned));
        self.enter(directory)
    }
}

fn seal(directory: &OwnedFd, path: &str) -> Result<(), ArchiveError> {
    rustix::fs::fchmod(directory, Mode::from_raw_mode(DIRECTORY_MODE)).map_err(on("set the mode of", path))?;
    rustix::fs::fsync(directory).map_err(on("flush directory", path))
}

/// The work of a flushing thread. After an error it goes on taking files, so that the writer never waits in vain.
fn flush_all(receiver: &Mutex<Receiver<Flush>>) -> Result<(), ArchiveError> {
    let mut result = Ok(());
    loop {
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Err(_) => return result,
            // The system reports a failed write once per open file: an error dropped here would be gone.
            Ok(Flush::Part(file, path)) => note(&mut result, &path, file.sync_data()),
            Ok(Flush::Whole(file, path)) => note(&mut result, &path, file.sync_all()),
        }
    }
}

fn note(result: &mut Result<(), ArchiveError>, path: &str, flushed: io::Result<()>) {
    if let Err(error) = flushed
        && result.is_ok()
    {
        *result = Err(failed("flush", path, error));
    }
}

/// A file that is being written.
pub(super) struct NewFile {
    path: String,
    file: File,
    bytes: u64,
    flush: SyncSender<Flush>,
}

impl NewFile {
    pub(super) fn write(&mut self, content: &[u8]) -> Result<(), ArchiveError> {
        self.file.write_all(content).map_err(|error| failed("write", &self.path, error))?;
        let before = self.bytes / WRITE_BACK_BYTES;
        self.bytes += content.len() as u64;
        if self.bytes / WRITE_BACK_BYTES > before
            && let Ok(file) = self.file.try_clone()
        {
            // When all flushers are busy the disk is the bottleneck already.
            _ = self.flush.try_send(Flush::Part(file, self.path.clone()));
        }
        Ok(())
    }

    /// Sets the final mode and hands the file to a flushing thread.
    pub(super) fn finish(self, mode: u32) -> Result<(), ArchiveError> {
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode)).map_err(on("set the mode of", &self.path))?;
        let stopped = |_| io::Error::other("the flushing threads stopped; try again");
        let path = self.path.clone();
        self.flush.send(Flush::Whole(self.file, self.path)).map_err(|error| failed("flush", &path, stopped(error)))
    }
}

/// Flags for looking at a name itself, never at what a link points to.
pub(super) const LOOK: AtFlags = AtFlags::SYMLINK_NOFOLLOW;
