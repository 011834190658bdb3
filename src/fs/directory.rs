//! An open directory. All that is done in it goes through its descriptor, so that what is above it can be exchanged by
//! nobody between a look and a step.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::trusted::{Distrust, Missing, walk};
use super::{Beneath, Context, DIRECTORY_FLAGS, Result, remove, trusted};

/// A directory, open.
#[derive(Debug)]
pub struct Directory {
    descriptor: OwnedFd,
    path: PathBuf,
}

/// An exclusive hold on a directory; it ends when dropped, and with the process.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not read")] OwnedFd);

impl Directory {
    /// Opens a directory that is the caller's choice, and may be reached through links.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from).on("open", path)?;
        Ok(Self { descriptor, path: path.to_owned() })
    }

    /// Opens a directory that only root or the daemon's user can change, and of which nobody else can decide where its
    /// path leads.
    ///
    /// # Errors
    /// Who else could; [`Distrust::is_missing`] tells that nothing is there.
    pub fn trusted(path: &Path) -> std::result::Result<Self, Distrust> {
        Self::walked(path, Missing::Fail)
    }

    /// As [`Directory::trusted`], and makes what is missing on the way, with `mode` for the last one.
    ///
    /// # Errors
    /// As there.
    pub fn trusted_or_made(path: &Path, mode: u32) -> std::result::Result<Self, Distrust> {
        Self::walked(path, Missing::Make(mode))
    }

    fn walked(path: &Path, missing: Missing) -> std::result::Result<Self, Distrust> {
        let found = walk(path, missing)?;
        let opened = rustix::fs::openat(&found.descriptor, ".", DIRECTORY_FLAGS, Mode::empty());
        let descriptor = opened.map_err(io::Error::from).on("open", path)?;
        Ok(Self { descriptor, path: path.to_owned() })
    }

    pub(super) fn from_open(descriptor: OwnedFd, path: PathBuf) -> Self {
        Self { descriptor, path }
    }

    /// For messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The place of a file in it.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn place(&self, name: &str) -> Result<Beneath> {
        let directory = self.descriptor.try_clone().on("open", &self.path)?;
        Ok(Beneath::inside(directory, name, self.path.join(name)))
    }

    /// Opens a directory in it; a link is not followed.
    ///
    /// # Errors
    /// When it is no directory or can't be opened.
    pub fn enter(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        let descriptor = match rustix::fs::openat(&self.descriptor, name, DIRECTORY_FLAGS, Mode::empty()) {
            Err(Errno::LOOP | Errno::NOTDIR) => {
                let message = "it is not a directory; links are not followed here";
                return Err(io::Error::new(io::ErrorKind::NotADirectory, message)).on("open", &path);
            }
            opened => opened.map_err(io::Error::from).on("open", &path)?,
        };
        Ok(Self { descriptor, path })
    }

    /// As [`Directory::enter`], where only root or the daemon's user may change the directory.
    ///
    /// # Errors
    /// As there, or who else could.
    pub fn enter_trusted(&self, name: &str) -> std::result::Result<Self, Distrust> {
        let entered = self.enter(name)?;
        trusted::judge_open(&entered.descriptor, &entered.path)?;
        Ok(entered)
    }

    /// Makes a directory in it, which must not exist yet, and opens that.
    ///
    /// # Errors
    /// What the system says.
    pub fn make(&self, name: &str, mode: u32) -> Result<Self> {
        let path = self.path.join(name);
        rustix::fs::mkdirat(&self.descriptor, name, Mode::from_raw_mode(0o700))
            .map_err(io::Error::from)
            .on("create directory", &path)?;
        let made = self.enter(name)?;
        // The mode given at making is cut by the umask; this one is not.
        rustix::fs::fchmod(&made.descriptor, Mode::from_raw_mode(mode))
            .map_err(io::Error::from)
            .on("set the mode of", &path)?;
        self.flush()?;
        Ok(made)
    }

    /// What kind of thing is called `name`, a link for itself; `None` when nothing is.
    ///
    /// # Errors
    /// What the system says.
    pub fn kind(&self, name: &str) -> Result<Option<FileType>> {
        match rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(io::Error::from(error)).on("look at", &self.path.join(name)),
        }
    }

    /// When what is called `name` was last changed; `None` when that can't be told.
    pub fn modified(&self, name: &str) -> Option<SystemTime> {
        let stat = rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let seconds = Duration::from_secs(u64::try_from(stat.st_mtime).ok()?);
        let nanoseconds = Duration::from_nanos(stat.st_mtime_nsec);
        SystemTime::UNIX_EPOCH.checked_add(seconds.checked_add(nanoseconds)?)
    }

    /// The names in it that are UTF-8, sorted.
    ///
    /// # Errors
    /// What the system says.
    pub fn names(&self) -> Result<Vec<String>> {
        let failed = |error: Errno| io::Error::from(error);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.descriptor).map_err(failed).on("list", &self.path)? {
            let entry = entry.map_err(failed).on("list", &self.path)?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Renames within one file system and flushes both directories.
    ///
    /// # Errors
    /// What the system says; a rename is never half done.
    pub fn rename(&self, from: &str, into: &Self, to: &str) -> Result<()> {
        rustix::fs::renameat(&self.descriptor, from, &into.descriptor, to)
            .map_err(io::Error::from)
            .on("rename", &self.path.join(from))?;
        into.flush()?;
        self.flush()
    }

    /// Points the symbolic link at `target` in one atomic step, whether it exists or not. Anything else in its place is
    /// refused, never replaced.
    ///
    /// # Errors
    /// When something other than a link is there, or what the system says.
    pub fn replace_symlink(&self, name: &str, target: &Path) -> Result<()> {
        let path = self.path.join(name);
        if self.kind(name)?.is_some_and(|kind| kind != FileType::Symlink) {
            return Err(super::no_link()).on("replace the link", &path);
        }
        let staged = format!(".{name}.{}-temp", uuid::Uuid::new_v4().simple());
        rustix::fs::symlinkat(target, &self.descriptor, staged.as_str())
            .map_err(io::Error::from)
            .on("create the link", &path)?;
        let renamed = rustix::fs::renameat(&self.descriptor, staged.as_str(), &self.descriptor, name);
        if renamed.is_err() {
            _ = rustix::fs::unlinkat(&self.descriptor, staged.as_str(), AtFlags::empty());
        }
        renamed.map_err(io::Error::from).on("replace the link", &path)?;
        self.flush()
    }

    /// Removes what is called `name`, a directory with all in it; no link is followed, and that it is gone already is
    /// fine.
    ///
    /// # Errors
    /// What the system says; part of a tree may then be gone.
    pub fn remove_tree(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        let no_name = |_| io::Error::new(io::ErrorKind::InvalidInput, "the name has a null byte in it");
        let name = CString::new(name).map_err(no_name).on("remove", &path)?;
        remove::remove(self.descriptor.as_fd(), &name, &path)?;
        self.flush()
    }

    /// Takes an exclusive hold on the directory; `None` when somebody else has it.
    ///
    /// # Errors
    /// What the system says.
    pub fn try_lock(&self) -> Result<Option<Lock>> {
        // A description of its own, as the hold belongs to that.
        let opened = rustix::fs::openat(&self.descriptor, ".", DIRECTORY_FLAGS, Mode::empty());
        let opened = opened.map_err(io::Error::from).on("open", &self.path)?;
        match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock(opened))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(io::Error::from(error)).on("lock", &self.path),
        }
    }

    /// Whether it has been removed since it was opened.
    pub fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.descriptor).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Flushes it, so that the names in it survive a power cut.
    ///
    /// # Errors
    /// What the system says.
    pub fn flush(&self) -> Result<()> {
        rustix::fs::fsync(&self.descriptor).map_err(io::Error::from).on("flush directory", &self.path)
    }

    /// The descriptor, for those who walk on from here.
    pub fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }
}
