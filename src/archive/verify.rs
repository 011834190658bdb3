//! Compares an installed machine with its checksums list: in go the directory and the list's digest, out comes nothing,
//! or what differs. It looks through open directories and follows no link below the machine's directory.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::Limits;
use super::checksums::{CHECKSUM_LIST, CHECKSUM_LIST_MAXIMUM_BYTES, ChecksumList};
use super::executables::{EXECUTABLES_MAXIMUM_BYTES, EXECUTABLES_RECORD, Executables};
use super::path::{ancestors, shown};
use super::tree::{DIRECTORY_FLAGS, DIRECTORY_MODE, EXECUTABLE_MODE, FILE_MODE, LOOK};
use crate::digest::Sha256Digest;
use crate::fs::Directory;
use crate::fs::trusted::is_ours;

/// Differences beyond these are counted, not listed.
const LISTED_DIFFERENCES: usize = 10;

/// A file is opened so that a pipe put in its place cannot block us.
const FILE_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// What keeps an installed directory from being exactly what its checksums list says; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Drift {
    /// For people, one per file: `"run.sh" was changed`. The first ten.
    pub differences: Vec<String>,
    /// How many more there are.
    pub more: usize,
}

impl fmt::Display for Drift {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.differences.join("; "))?;
        if self.more > 0 { write!(formatter, "; and {} more", self.more) } else { Ok(()) }
    }
}

impl Drift {
    fn new() -> Self {
        Self { differences: Vec::new(), more: 0 }
    }

    fn add(&mut self, path: &str, what: impl fmt::Display) {
        if self.differences.len() < LISTED_DIFFERENCES {
            self.differences.push(format!("{:?} {what}", shown(path.as_bytes())));
        } else {
            self.more += 1;
        }
    }

    fn result(self) -> Result<(), Self> {
        if self.differences.is_empty() { Ok(()) } else { Err(self) }
    }
}

/// Checks that the directory holds exactly the files that its `SHA256SUMS` lists, with these contents, that the list
/// itself has the digest `verify_checksum`, and that all owners and modes are as installed: ours, nothing writable, and
/// executable only what was so in the archive (when the record that unpacking writes is there). `directory` may be a symbolic link to
/// the installed directory. Blocks; call it on a blocking thread.
///
/// # Errors
/// What differs. A file that can't be read counts as different.
pub fn verify_directory(directory: &Path, verify_checksum: &Sha256Digest) -> Result<(), Drift> {
    match Directory::open(directory) {
        Ok(directory) => verify_open(&directory, verify_checksum),
        Err(error) => {
            let mut drift = Drift::new();
            drift.add(&directory.display().to_string(), format_args!("could not be opened: {}", error.source));
            drift.result()
        }
    }
}

/// As [`verify_directory`], of a directory that is open.
///
/// # Errors
/// As there.
pub fn verify_open(directory: &Directory, verify_checksum: &Sha256Digest) -> Result<(), Drift> {
    let mut drift = Drift::new();
    let root = directory.descriptor();
    let Some(list) = read_list(root.as_fd(), verify_checksum, &mut drift) else { return drift.result() };
    let executables = match read_executables(root.as_fd()) {
        Ok(executables) => executables,
        Err(error) => {
            drift.add(EXECUTABLES_RECORD, format_args!("could not be read: {error}"));
            None
        }
    };
    let directories = list.iter().flat_map(|(path, _)| ancestors(path).map(str::to_owned)).collect();
    let mut walk = Walk { list: &list, directories, executables, seen: BTreeSet::new(), drift };
    match rustix::fs::fstat(root) {
        Ok(stat) => {
            walk.owner("", &stat);
            walk.mode("", stat.st_mode, DIRECTORY_MODE);
        }
        Err(error) => walk.drift.add(".", format_args!("could not be inspected: {}", io::Error::from(error))),
    }
    walk.directory(root, "");
    let Walk { seen, mut drift, .. } = walk;
    for (path, _) in list.iter().filter(|(path, _)| !seen.contains(*path)) {
        drift.add(path, "is missing");
    }
    drift.result()
}

/// The list, when it is the one that the digest stands for; else there is nothing to compare with.
fn read_list(root: BorrowedFd<'_>, verify_checksum: &Sha256Digest, drift: &mut Drift) -> Option<ChecksumList> {
    let content = match read_below(root, CHECKSUM_LIST, CHECKSUM_LIST_MAXIMUM_BYTES) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            drift.add(CHECKSUM_LIST, "is missing");
            return None;
        }
        Err(error) => {
            drift.add(CHECKSUM_LIST, format_args!("could not be read: {error}"));
            return None;
        }
    };
    if Sha256Digest::of(&content) != *verify_checksum {
        drift.add(CHECKSUM_LIST, "was changed, or is of another version");
        return None;
    }
    // The digest is the signed one: the count of lines was judged when it was unpacked, under the limits of then.
    let limits = Limits { entries: usize::MAX, depth: usize::MAX, component_bytes: usize::MAX, ..Limits::default() };
    ChecksumList::parse(&content, &limits).map_err(|error| drift.add(CHECKSUM_LIST, error)).ok()
}

/// `None` when there is no record, as beside a directory that was not unpacked by us.
fn read_executables(root: BorrowedFd<'_>) -> io::Result<Option<BTreeSet<String>>> {
    // The `..` of an open directory is where it really is, also when we came through a link.
    match read_below(root, &format!("../{EXECUTABLES_RECORD}"), EXECUTABLES_MAXIMUM_BYTES) {
        Ok(content) => Ok(Some(serde_json::from_slice::<Executables>(&content)?.executables)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn open_file(directory: impl AsFd, name: &str) -> io::Result<File> {
    let file = File::from(rustix::fs::openat(directory, name, FILE_FLAGS, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

fn read_below(directory: BorrowedFd<'_>, path: &str, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_file(directory, path)?.take(limit_bytes + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit_bytes {
        return Err(io::Error::other(format!("it is larger than the limit of {limit_bytes} bytes")));
    }
    Ok(content)
}

struct Walk<'a> {
    list: &'a ChecksumList,
    /// All directories above listed files; any other is extra.
    directories: BTreeSet<String>,
    executables: Option<BTreeSet<String>>,
    seen: BTreeSet<String>,
    drift: Drift,
}

impl Walk<'_> {
    /// Descends only into expected directories, so the depth is that of the list.
    fn directory(&mut self, directory: &OwnedFd, prefix: &str) {
        let shown_prefix = if prefix.is_empty() { "." } else { prefix };
        let names = match names(directory) {
            Ok(names) => names,
            Err(error) => {
                return self.drift.add(shown_prefix, format_args!("could not be listed: {error}"));
            }
        };
        for name in names {
            let Ok(name) = std::str::from_utf8(&name) else {
                let name = String::from_utf8_lossy(&name);
                self.drift.add(&format!("{prefix}{name}"), "was added");
                continue;
            };
            self.entry(directory, name, &format!("{prefix}{name}"));
        }
    }

    fn entry(&mut self, directory: &OwnedFd, name: &str, path: &str) {
        let stat = match rustix::fs::statat(directory, name, LOOK) {
            Ok(stat) => stat,
            Err(error) => {
                let error = io::Error::from(error);
                return self.drift.add(path, format_args!("could not be inspected: {error}"));
            }
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let listed = path == CHECKSUM_LIST || self.list.get(path).is_some();
        if listed {
            self.seen.insert(path.to_owned());
        }
        if listed || self.directories.contains(path) {
            self.owner(path, &stat);
        }
        match (kind, listed, self.directories.contains(path)) {
            (FileType::RegularFile, true, _) => self.file(directory, name, path, stat.st_mode),
            (FileType::Directory, _, true) => {
                self.mode(path, stat.st_mode, DIRECTORY_MODE);
                match rustix::fs::openat(directory, name, DIRECTORY_FLAGS, Mode::empty()) {
                    Ok(directory) => self.directory(&directory, &format!("{path}/")),
                    Err(error) => {
                        let error = io::Error::from(error);
                        self.drift.add(path, format_args!("could not be opened: {error}"));
                    }
                }
            }
            (_, false, false) => self.drift.add(path, "was added"),
            (FileType::Symlink, ..) => self.drift.add(path, "was replaced by a link"),
            (FileType::Directory, ..) => self.drift.add(path, "was replaced by a directory"),
            (FileType::RegularFile, ..) => self.drift.add(path, "was replaced by a file"),
            _ => self.drift.add(path, "was replaced by something that is not a file"),
        }
    }

    fn file(&mut self, directory: &OwnedFd, name: &str, path: &str, mode: u32) {
        // The list's own digest was compared before.
        if let Some(expected) = self.list.get(path) {
            match open_file(directory, name).and_then(Sha256Digest::of_reader) {
                Ok((found, _)) if found == *expected => {}
                Ok(_) => return self.drift.add(path, "was changed"),
                Err(error) => {
                    return self.drift.add(path, format_args!("could not be read: {error}"));
                }
            }
        }
        let is_executable = mode & 0o111 != 0;
        let executable = match &self.executables {
            Some(executables) => executables.contains(path),
            None => is_executable,
        };
        match (executable, is_executable) {
            (false, true) => self.drift.add(path, "was made executable"),
            (true, false) => self.drift.add(path, "is no longer executable"),
            _ => self.mode(path, mode, if executable { EXECUTABLE_MODE } else { FILE_MODE }),
        }
    }

    /// Who owns a file may write to it after we have looked, whatever its mode is now.
    fn owner(&mut self, path: &str, stat: &Stat) {
        if !is_ours(stat.st_uid) {
            let path = if path.is_empty() { "." } else { path };
            self.drift.add(path, format_args!("belongs to user {}", stat.st_uid));
        }
    }

    fn mode(&mut self, path: &str, mode: u32, expected: u32) {
        let path = if path.is_empty() { "." } else { path };
        match mode & 0o7777 {
            mode if mode == expected => {}
            mode if mode & 0o222 != 0 => {
                self.drift.add(path, format_args!("was made writable (mode {mode:04o} instead of {expected:04o})"));
            }
            mode => self.drift.add(path, format_args!("has mode {mode:04o} instead of {expected:04o}")),
        }
    }
}

/// The names in a directory, sorted, so that the same drift reads the same each time.
fn names(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
