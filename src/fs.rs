//! Durable file operations. Every change of the disk goes through here, so that each one is atomic (temp file and
//! rename), durable (file and directory are flushed) and fails with the operation and the path in its message. The raw
//! functions of `std::fs` are banned elsewhere by `clippy.toml`.

#![expect(clippy::disallowed_methods, reason = "this is the one room that may call the raw functions")]

mod aside;
mod beneath;
mod directory;
mod remove;
pub mod trusted;
mod trusted_tree;

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_NOW};

pub use aside::Aside;
pub use beneath::{Attributes, Beneath, PlainFile, give_directory};
pub use directory::{Directory, Lock};
pub use trusted::Distrust;
pub use trusted_tree::check_programs;

/// Opens a directory without following a link at its name.
const DIRECTORY_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A failed file operation.
#[derive(Debug, thiserror::Error)]
#[error("could not {operation} {}", path.display())]
pub struct FileError {
    /// What was tried, as a verb phrase: "write", "create directory".
    pub operation: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// The result of a file operation.
pub type Result<T> = std::result::Result<T, FileError>;

trait Context<T> {
    fn on(self, operation: &'static str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn on(self, operation: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| FileError { operation, path: path.to_owned(), source })
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Replaces a file's content: readers see the old or the new content, also after a power cut.
///
/// # Errors
/// Any failed step; the old file is then still in place and no temp file is left.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    staged(path, content, mode)?.persist(path).map_err(|error| error.error).on("replace", path)?;
    sync_directory(parent(path))
}

/// Creates a file that must not exist yet, for a caller that streams into it and flushes it.
///
/// # Errors
/// When it exists or can't be created.
pub fn create_new(path: &Path, mode: u32) -> Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path).on("create", path)
}

/// Writes a file that must not exist yet: it appears whole, or not at all, and never replaces another one.
///
/// # Errors
/// Any failed step, also when something of that name is there.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    staged(path, content, mode)?.persist_noclobber(path).map_err(|error| error.error).on("create", path)?;
    sync_directory(parent(path))
}

/// The content in a temporary file beside the path, flushed.
fn staged(path: &Path, content: &[u8], mode: u32) -> Result<tempfile::NamedTempFile> {
    let directory = parent(path);
    let mut file = tempfile::Builder::new()
        .prefix(".machines-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory)
        .map_err(without_path)
        .on("create a temporary file in", directory)?;
    file.write_all(content).map_err(without_path).on("write", path)?;
    // The mode given to `open` is cut by the umask; this one is not.
    file.as_file().set_permissions(Permissions::from_mode(mode)).on("set the mode of", path)?;
    file.as_file().sync_all().on("flush", path)?;
    Ok(file)
}

/// The system's error without the random name of a temporary file, which tells nobody anything.
fn without_path(error: io::Error) -> io::Error {
    let text = error.to_string();
    match text.split_once(" at path ") {
        Some((message, _)) => io::Error::new(error.kind(), message),
        None => error,
    }
}

/// Reads a whole file, or fails when it is larger than `limit_bytes`.
///
/// # Errors
/// When it can't be read, or with [`io::ErrorKind::FileTooLarge`].
pub fn read(path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    read_from(File::open(path).on("open", path)?, path, limit_bytes)
}

fn read_from(file: File, path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(limit_bytes.saturating_add(1)).read_to_end(&mut content).on("read", path)?;
    if content.len() as u64 > limit_bytes {
        let message = format!("it is larger than the limit of {limit_bytes} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message)).on("read", path);
    }
    Ok(content)
}

/// As [`read`], for a file in a directory that others may write to: only a regular file, not a link, and no waiting for
/// the other end of a pipe.
///
/// # Errors
/// As [`read`], and when it is something else than a regular file.
pub fn read_plain(path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(no_follow()).open(path).on("open", path)?;
    if !file.metadata().on("inspect", path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")).on("read", path);
    }
    read_from(file, path, limit_bytes)
}

/// A link at the end is refused, and nobody waits for the other end of a pipe.
fn no_follow() -> i32 {
    i32::try_from((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits()).unwrap_or_default()
}

/// Reads a whole text file, or fails when it is larger than `limit_bytes` or not UTF-8.
///
/// # Errors
/// As [`read`], and when the content is not UTF-8.
pub fn read_text(path: &Path, limit_bytes: u64) -> Result<String> {
    let content = read(path, limit_bytes)?;
    String::from_utf8(content)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
        .on("read", path)
}

/// Opens a file for reading.
///
/// # Errors
/// What the system says.
pub fn open(path: &Path) -> Result<File> {
    File::open(path).on("open", path)
}

/// Creates a directory and its parents, with `mode` for the last one when it is new. Nobody else may write to one of them,
/// whatever the umask is: with 000 or 002 we would not trust our own.
///
/// # Errors
/// What the system says.
pub fn create_directory(path: &Path, mode: u32) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).on("create directory", parent)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        result => result.on("create directory", path)?,
    }
    fs::set_permissions(path, Permissions::from_mode(mode)).on("set the mode of", path)?;
    sync_directory(parent(path))
}

/// Flushes a directory, so that the names in it survive a power cut.
///
/// # Errors
/// What the system says.
pub fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|directory| directory.sync_all()).on("flush directory", path)
}

/// Renames within one file system and flushes both directories.
///
/// # Errors
/// What the system says; a rename is never half done.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).on("rename", from)?;
    sync_directory(parent(to))?;
    if parent(from) != parent(to) {
        sync_directory(parent(from))?;
    }
    Ok(())
}

/// Points the symbolic link at `target` in one atomic step, whether it exists or not: readers see the old target or
/// the new one. A directory or a file at `link` is refused, never replaced.
///
/// # Errors
/// When something other than a link is there, or what the system says.
pub fn replace_symlink(link: &Path, target: &Path) -> Result<()> {
    match fs::symlink_metadata(link) {
        Ok(metadata) if !metadata.is_symlink() => {
            return Err(no_link()).on("replace the link", link);
        }
        _ => {}
    }
    let name = link.file_name().unwrap_or_default().to_string_lossy();
    let staged = parent(link).join(format!(".{name}.{}-temp", uuid::Uuid::new_v4().simple()));
    std::os::unix::fs::symlink(target, &staged).on("create the link", &staged)?;
    let renamed = fs::rename(&staged, link).on("replace the link", link);
    if renamed.is_err() {
        _ = fs::remove_file(&staged);
    }
    renamed?;
    sync_directory(parent(link))
}

fn no_link() -> io::Error {
    let message = "something that is not a symbolic link is in the way; move it aside";
    io::Error::new(io::ErrorKind::AlreadyExists, message)
}

/// The target of a symbolic link, not followed; `None` when nothing is there, or something that is no link.
///
/// # Errors
/// What the system says, but for those two.
pub fn read_link(path: &Path) -> Result<Option<PathBuf>> {
    match fs::read_link(path) {
        Ok(target) => Ok(Some(target)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => Ok(None),
        Err(error) => Err(error).on("read the link", path),
    }
}

/// Removes a file or a symbolic link (never what it points at); that it is gone already is fine.
///
/// # Errors
/// What the system says.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.on("remove", path).and_then(|()| sync_directory(parent(path))),
    }
}

/// Removes a directory and all in it, without following links; that it is gone already is fine. Read-only directories
/// inside are made writable first, as what we install is read-only. The directory that it is in may be reached through
/// a link.
///
/// # Errors
/// What the system says; part of the tree may then be gone.
pub fn remove_tree(path: &Path) -> Result<()> {
    let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "it names nothing in a directory");
    let name = path.file_name().and_then(|name| CString::new(name.as_bytes()).ok());
    let name = name.ok_or_else(no_name).on("remove", path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match rustix::fs::open(parent(path), flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        opened => opened.map_err(io::Error::from).on("open", parent(path))?,
    };
    remove::remove(directory.as_fd(), &name, path)?;
    rustix::fs::fsync(&directory).map_err(io::Error::from).on("flush directory", parent(path))
}

/// Sets the permission bits of a path.
///
/// # Errors
/// What the system says.
pub fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode)).on("set the mode of", path)
}

/// Sets a file's times to now, for those who watch it. Never opens the file: closing it again would drop
/// the locks that SQLite holds on it in this process.
///
/// # Errors
/// What the system says.
pub fn touch(path: &Path) -> Result<()> {
    // Both, since that is what those may do who may write to the file and don't own it.
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).map_err(io::Error::from).on("touch", path)
}

/// The entries of a directory by name, sorted; a directory that does not exist has none.
///
/// # Errors
/// What the system says, but for "not found".
pub fn list(path: &Path) -> Result<Vec<fs::DirEntry>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.on("list", path)?,
    };
    let mut entries = entries.collect::<io::Result<Vec<_>>>().on("list", path)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    Ok(entries)
}

/// Takes an exclusive lock for as long as the returned file lives; `None` when another process holds it.
///
/// # Errors
/// When the lock file can't be created or locked for another reason.
pub fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(no_follow())
        .open(path)
        .on("open", path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error).on("lock", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_replaces_and_leaves_no_temporary_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        write(&path, b"one", 0o600).unwrap();
        write(&path, b"two", 0o640).unwrap();
        assert_eq!(read(&path, 10).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(list(directory.path()).unwrap().len(), 1);
    }

    #[test]
    fn write_new_never_replaces_and_leaves_no_temporary_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        write_new(&path, b"one", 0o600).unwrap();
        let error = write_new(&path, b"two", 0o600).unwrap_err();
        assert_eq!((error.operation, error.source.kind()), ("create", io::ErrorKind::AlreadyExists));
        assert_eq!(read(&path, 10).unwrap(), b"one");
        assert_eq!(list(directory.path()).unwrap().len(), 1);
    }

    #[test]
    fn errors_name_the_operation_and_the_path() {
        let error = write(Path::new("/nonexistent/a"), b"", 0o600).unwrap_err();
        assert_eq!(error.to_string(), "could not create a temporary file in /nonexistent");
        assert_eq!(error.source.to_string(), "No such file or directory (os error 2)");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("big");
        write(&path, &[0; 11], 0o600).unwrap();
        let error = read(&path, 10).unwrap_err();
        assert_eq!(error.source.to_string(), "it is larger than the limit of 10 bytes");
    }

    #[test]
    fn a_link_is_replaced_and_a_directory_in_its_place_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        replace_symlink(&link, Path::new("one")).unwrap();
        replace_symlink(&link, Path::new("two")).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("two"));
        let real = directory.path().join("real");
        fs::create_dir(&real).unwrap();
        let error = replace_symlink(&real, Path::new("one")).unwrap_err();
        assert!(error.source.to_string().contains("not a symbolic link"), "{error}");
        assert_eq!(list(directory.path()).unwrap().len(), 2, "no staged link is left");
    }

    #[test]
    fn remove_tree_takes_read_only_directories_and_does_not_follow_links() {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        write(&outside, b"kept", 0o600).unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir_all(tree.join("inner")).unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("inner/link")).unwrap();
        set_mode(&tree.join("inner"), 0o555).unwrap();
        remove_tree(&tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(read(&outside, 10).unwrap(), b"kept");
    }

    #[test]
    fn removing_a_tree_changes_no_mode_outside_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("outside")).unwrap();
        set_mode(&at("outside"), 0o700).unwrap();
        for _ in 0..5 {
            let inner: Vec<String> = (0..200).map(|number| number.to_string()).collect();
            fs::create_dir(at("links")).unwrap();
            for name in &inner {
                fs::create_dir_all(at("tree").join(name)).unwrap();
                std::os::unix::fs::symlink(at("outside"), at("links").join(name)).unwrap();
            }
            std::thread::scope(|scope| {
                // Somebody exchanges the directories in it for links while it is removed.
                scope.spawn(|| {
                    for name in &inner {
                        let (tree, link) = (at("tree").join(name), at("links").join(name));
                        _ = rustix::fs::renameat_with(CWD, &tree, CWD, &link, rustix::fs::RenameFlags::EXCHANGE);
                    }
                });
                _ = remove_tree(&at("tree"));
            });
            assert_eq!(fs::metadata(at("outside")).unwrap().permissions().mode() & 0o777, 0o700);
            remove_tree(&at("tree")).unwrap();
            remove_tree(&at("links")).unwrap();
        }
    }

    #[test]
    fn remove_tree_takes_paths_that_are_longer_than_the_system_takes() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut current = rustix::fs::open(&tree, DIRECTORY_FLAGS, Mode::empty()).unwrap();
        let name = "n".repeat(255);
        // Deeper than directories that may be open at once.
        for _ in 0..200 {
            rustix::fs::mkdirat(&current, name.as_str(), Mode::from_raw_mode(0o700)).unwrap();
            let inner = rustix::fs::openat(&current, name.as_str(), DIRECTORY_FLAGS, Mode::empty()).unwrap();
            rustix::fs::fchmod(&current, Mode::from_raw_mode(0o555)).unwrap();
            current = inner;
        }
        drop(current);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn a_lock_is_exclusive_until_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = try_lock(&path).unwrap();
        assert!(held.is_some());
        assert!(try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(try_lock(&path).unwrap().is_some());
    }
}
