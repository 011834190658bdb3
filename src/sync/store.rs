//! What sync keeps on the disk, and the only code that changes it:
//!
//! ```text
//! store/<archive sha256>/<name>/…     a verified copy; a later copy of the same archive is <archive sha256>.2, .3 …
//! store/.staging-<name>-<random>/     work in progress; removed at the next start
//! machines/<name> -> ../store/<archive sha256>/<name>
//! ```
//!
//! A name in `store` without a leading dot is always a complete copy, because it appears by rename only after its
//! content was verified and flushed, and goes by rename to a dotted name before anything in it is removed. What runs is
//! decided by the link alone, and a link changes by one rename. So an observer of `machines/<name>` sees no agent, the
//! old one or the new one, each whole, at every instant and after a crash at any instant.
//!
//! In: names and directories. Out: changes of the disk, and what is there.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::DirEntry;
use std::path::{Component, Path, PathBuf};

use uuid::Uuid;

use crate::digest::Sha256Digest;
use crate::fs::{self, FileError};
use crate::names::MachineName;

const STAGING_PREFIX: &str = ".staging-";
/// Not readable for others: what is being downloaded may not be for them, and is not verified yet.
const STAGING_MODE: u32 = 0o700;
const DIRECTORY_MODE: u32 = 0o755;

/// A copy's own record of what it must contain.
const RECORD: &str = "verify_checksum";
const RECORD_MAXIMUM_BYTES: u64 = 100;

fn write_record(directory: &Path, verify_checksum: Sha256Digest) -> Result<(), FileError> {
    fs::write(&directory.join(RECORD), format!("{verify_checksum}\n").as_bytes(), 0o444)
}

/// The name of a verified copy in the store: an archive's checksum and, from the second copy of the same archive on,
/// its number. A further copy is made when the first one has drifted, as the first may be running until the link flips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CopyName {
    /// SHA-256 of the archive.
    pub checksum: Sha256Digest,
    /// From 1.
    number: u32,
}

impl CopyName {
    /// Reads the name of a directory in the store; `None` when it can't be one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let (checksum, number) = match text.split_once('.') {
            None => (text, 1),
            // Only the spelling that we write: no sign, no leading zero, no ".1".
            Some((checksum, digits)) => {
                let number = digits.parse::<u32>().ok().filter(|number| *number > 1)?;
                (checksum, (number.to_string() == digits).then_some(number)?)
            }
        };
        Some(Self { checksum: Sha256Digest::parse(checksum).ok()?, number })
    }
}

impl fmt::Display for CopyName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            1 => write!(formatter, "{}", self.checksum),
            number => write!(formatter, "{}.{number}", self.checksum),
        }
    }
}

/// What the machines directory holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Our links, and the copy that each points at (which may be missing).
    pub links: BTreeMap<MachineName, CopyName>,
    /// All else, with what it is.
    pub foreign: BTreeMap<String, String>,
}

/// The store and the links into it. The caller sees to it that one daemon and one pass at a time uses it.
#[derive(Debug)]
pub struct Store {
    store: PathBuf,
    machines: PathBuf,
}

impl Store {
    /// Makes the directories where they are missing, and removes what an interrupted run left unfinished.
    ///
    /// # Errors
    /// When a directory can't be made.
    pub fn open(state_dir: &Path) -> Result<Self, FileError> {
        let this = Self { store: state_dir.join("store"), machines: state_dir.join("machines") };
        fs::create_directory(&this.store, DIRECTORY_MODE)?;
        fs::create_directory(&this.machines, DIRECTORY_MODE)?;
        this.remove_left_overs();
        Ok(this)
    }

    /// What can't be removed (a file made immutable, a failing disk) stays: it is in nobody's way, and all agents of the
    /// node would be when the daemon did not start for it.
    fn remove_left_overs(&self) {
        let is_staged = |entry: &DirEntry| entry.file_name().to_string_lossy().starts_with(STAGING_PREFIX);
        let is_link = |entry: &DirEntry| {
            entry.file_type().is_ok_and(|kind| kind.is_symlink())
                && is_staged_link(&entry.file_name().to_string_lossy())
        };
        let staged = fs::list(&self.store).unwrap_or_default().into_iter().filter(is_staged);
        let links = fs::list(&self.machines).unwrap_or_default().into_iter().filter(is_link);
        for entry in staged.chain(links) {
            if let Err(error) = fs::remove_tree(&entry.path()) {
                tracing::warn!("left over from an earlier run, and it stays: {}", crate::errors::chain(&error));
            }
        }
    }

    /// The directory whose entries are what runs.
    pub fn machines_directory(&self) -> &Path {
        &self.machines
    }

    /// The directory of all copies, in use or not.
    pub fn store_directory(&self) -> &Path {
        &self.store
    }

    /// Where the files of a machine are in a copy, whether it exists or not.
    pub fn directory(&self, copy: CopyName, name: &MachineName) -> PathBuf {
        self.store.join(copy.to_string()).join(name.as_str())
    }

    /// What a copy's own record says that it must contain (SHA-256 of its checksums file), for when the database is lost.
    /// It lies beside the machine's directory and is as trusted as the database: both are files of ours in a directory
    /// that only we can change.
    pub fn verify_checksum(&self, copy: CopyName) -> Option<Sha256Digest> {
        let path = self.store.join(copy.to_string()).join(RECORD);
        Sha256Digest::parse(fs::read_text(&path, RECORD_MAXIMUM_BYTES).ok()?.trim_end()).ok()
    }

    /// Makes a copy's own record where it has none.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn record_beside(&self, copy: CopyName, verify_checksum: Sha256Digest) -> Result<(), FileError> {
        write_record(&self.store.join(copy.to_string()), verify_checksum)
    }

    /// Reads the machines directory. Nothing is followed.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn contents(&self) -> Result<Contents, FileError> {
        let mut contents = Contents::default();
        for entry in fs::list(&self.machines)? {
            let file_name = entry.file_name().to_string_lossy().into_owned();
            // The host skips these, so they are no machines, whoever made them.
            if file_name.starts_with('.') {
                continue;
            }
            let what = match MachineName::new(&file_name) {
                Err(_) => "it is not named like a machine",
                Ok(name) => match fs::read_link(&entry.path()) {
                    Ok(Some(target)) => match parse_target(&target, &name) {
                        Some(copy) => {
                            contents.links.insert(name, copy);
                            continue;
                        }
                        None => "it is a link that does not point into the store",
                    },
                    Ok(None) => "it is not a link into the store",
                    Err(error) => return Err(error),
                },
            };
            contents.foreign.insert(file_name, what.to_owned());
        }
        Ok(contents)
    }

    /// The copy that a machine's link points at; `None` when there is no link of ours.
    ///
    /// # Errors
    /// When the link can't be read.
    pub fn linked(&self, name: &MachineName) -> Result<Option<CopyName>, FileError> {
        let target = fs::read_link(&self.machines.join(name.as_str()))?;
        Ok(target.and_then(|target| parse_target(&target, name)))
    }

    /// All complete copies, used or not.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn copies(&self) -> Result<Vec<CopyName>, FileError> {
        let entries = fs::list(&self.store)?;
        Ok(entries.iter().filter_map(|entry| CopyName::parse(entry.file_name().to_str()?)).collect())
    }

    /// The name for a further copy of an archive.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn next_copy(&self, checksum: Sha256Digest) -> Result<CopyName, FileError> {
        let copies = self.copies()?;
        let highest = copies.iter().filter(|copy| copy.checksum == checksum).map(|copy| copy.number).max();
        Ok(CopyName { checksum, number: highest.unwrap_or(0).saturating_add(1) })
    }

    /// A new directory for unfinished work on a machine, in the file system of the store so that the result can be
    /// renamed into it. It goes when the returned value is dropped, and at the next start if it could not.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn stage(&self, name: &MachineName) -> Result<Staging, FileError> {
        let path = self.store.join(format!("{STAGING_PREFIX}{name}-{}", Uuid::new_v4().simple()));
        let staging = Staging { path };
        fs::create_directory(&staging.path, STAGING_MODE)?;
        fs::create_directory(&staging.unpacked(), DIRECTORY_MODE)?;
        Ok(staging)
    }

    /// Makes staged, verified and flushed files a copy of the store, in one rename. Nothing runs from it yet.
    ///
    /// # Errors
    /// When the rename fails, for example because the copy exists.
    pub fn admit(&self, staging: &Staging, copy: CopyName) -> Result<(), FileError> {
        fs::rename(&staging.unpacked(), &self.store.join(copy.to_string()))
    }

    /// Lets a machine run from a copy, in one rename of its link: before it the old copy runs, or none; after it the
    /// new one.
    ///
    /// # Errors
    /// When something other than a link is in the way, or the rename fails.
    pub fn point(&self, name: &MachineName, copy: CopyName) -> Result<(), FileError> {
        let target: PathBuf = ["..", "store", &copy.to_string(), name.as_str()].iter().collect();
        fs::replace_symlink(&self.machines.join(name.as_str()), &target)
    }

    /// Removes a machine's link if it is still ours. Its files stay for [`Store::discard`], as the old instance may run
    /// a moment longer.
    ///
    /// # Errors
    /// When the link can't be read or removed.
    pub fn unlink(&self, name: &MachineName) -> Result<(), FileError> {
        match self.linked(name)? {
            Some(_) => fs::remove_file(&self.machines.join(name.as_str())),
            None => Ok(()),
        }
    }

    /// Removes a copy. It first loses its name, so that a crash half-way leaves a left-over and never a copy that
    /// looks complete.
    ///
    /// # Errors
    /// When it can't be renamed or removed.
    pub fn discard(&self, copy: CopyName) -> Result<(), FileError> {
        let staged = self.store.join(format!("{STAGING_PREFIX}discarded-{}", Uuid::new_v4().simple()));
        fs::rename(&self.store.join(copy.to_string()), &staged)?;
        fs::remove_tree(&staged)
    }
}

/// A directory of unfinished work; removed on drop, whatever the reason.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
}

impl Staging {
    /// Where to download to.
    pub fn archive(&self) -> PathBuf {
        self.path.join("archive")
    }

    /// Writes the record that the copy keeps of itself.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn record(&self, verify_checksum: Sha256Digest) -> Result<(), FileError> {
        write_record(&self.unpacked(), verify_checksum)
    }

    /// The empty directory to unpack into.
    pub fn unpacked(&self) -> PathBuf {
        self.path.join("unpacked")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_tree(&self.path) {
            tracing::warn!(error = crate::errors::chain(&error), "the next start removes unfinished work");
        }
    }
}

/// The copy in `../store/<copy>/<name>`; `None` for all that we would not have written.
fn parse_target(target: &Path, name: &MachineName) -> Option<CopyName> {
    let mut parts = target.components();
    let (up, store, copy, last) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let plain = up == Component::ParentDir
        && store.as_os_str() == "store"
        && last.as_os_str() == name.as_str()
        && parts.next().is_none();
    plain.then(|| CopyName::parse(copy.as_os_str().to_str()?)).flatten()
}

/// Whether this is the temporary name that `fs::replace_symlink` gives a link: `.<name>.<32 hex digits>-temp`.
fn is_staged_link(file_name: &str) -> bool {
    let inner = file_name.strip_prefix('.').and_then(|rest| rest.strip_suffix("-temp"));
    let Some((name, random)) = inner.and_then(|inner| inner.rsplit_once('.')) else { return false };
    MachineName::new(name).is_ok() && random.len() == 32 && random.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn name(text: &str) -> MachineName {
        MachineName::new(text).unwrap()
    }

    fn copy(seed: &str, number: u32) -> CopyName {
        CopyName { checksum: Sha256Digest::of(seed.as_bytes()), number }
    }

    fn names(path: &Path) -> Vec<String> {
        fs::list(path).unwrap().iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn copies_have_one_spelling() {
        for number in [1, 2, 17] {
            let copy = copy("a", number);
            assert_eq!(CopyName::parse(&copy.to_string()), Some(copy));
        }
        let checksum = Sha256Digest::of(b"a").to_string();
        for bad in [".1", ".0", ".02", ".+2", ".", ".2.2", "2"].map(|tail| format!("{checksum}{tail}")) {
            assert_eq!(CopyName::parse(&bad), None, "{bad}");
        }
        assert_eq!(CopyName::parse(".."), None);
    }

    #[test]
    fn unfinished_work_of_an_interrupted_run_is_gone_after_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let staging = store.stage(&name("facts")).unwrap();
        // What a killed process does not do is to drop it, so a copy of it stands in.
        let left = staging.path.with_file_name(".staging-facts-left");
        fs::create_directory(&left.join("unpacked"), DIRECTORY_MODE).unwrap();
        fs::write(&left.join("archive"), b"half", 0o600).unwrap();
        drop(staging);
        let machines = directory.path().join("machines");
        symlink("../store/x", machines.join(format!(".facts.{}-temp", Uuid::new_v4().simple()))).unwrap();
        fs::write(&machines.join(".keep-temp"), b"not ours", 0o600).unwrap();
        Store::open(directory.path()).unwrap();
        assert_eq!(names(&directory.path().join("store")), [""; 0]);
        assert_eq!(names(&machines), [".keep-temp"]);
    }

    #[test]
    fn staging_goes_when_work_stops() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let staging = store.stage(&name("facts")).unwrap();
        fs::write(&staging.archive(), b"half", 0o600).unwrap();
        drop(staging);
        assert_eq!(names(&directory.path().join("store")), [""; 0]);
    }

    #[test]
    fn only_links_of_the_exact_form_are_ours() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let machines = directory.path().join("machines");
        store.point(&name("facts"), copy("a", 2)).unwrap();
        let checksum = Sha256Digest::of(b"a");
        symlink("/etc", machines.join("absolute")).unwrap();
        symlink(format!("../store/{checksum}/other"), machines.join("another")).unwrap();
        symlink(format!("../store/{checksum}/deeper/deeper"), machines.join("deeper")).unwrap();
        fs::create_directory(&machines.join("directory"), 0o755).unwrap();
        fs::write(&machines.join("a file"), b"", 0o644).unwrap();
        let contents = store.contents().unwrap();
        assert_eq!(contents.links, BTreeMap::from([(name("facts"), copy("a", 2))]));
        let foreign: Vec<_> = contents.foreign.keys().collect();
        assert_eq!(foreign, ["a file", "absolute", "another", "deeper", "directory"]);
        for foreign in ["absolute", "another", "directory"] {
            store.unlink(&name(foreign)).unwrap();
        }
        assert_eq!(store.contents().unwrap().foreign.len(), 5, "unlink takes only links of ours");
        store.unlink(&name("facts")).unwrap();
        assert_eq!(store.linked(&name("facts")).unwrap(), None);
    }

    #[test]
    fn a_further_copy_does_not_disturb_the_one_that_runs() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let facts = name("facts");
        let checksum = Sha256Digest::of(b"a");
        for text in ["one", "two"] {
            let staging = store.stage(&facts).unwrap();
            fs::create_directory(&staging.unpacked().join("facts"), 0o755).unwrap();
            fs::write(&staging.unpacked().join("facts/text"), text.as_bytes(), 0o644).unwrap();
            let copy = store.next_copy(checksum).unwrap();
            store.admit(&staging, copy).unwrap();
            if text == "one" {
                store.point(&facts, copy).unwrap();
            }
        }
        let text = directory.path().join("machines/facts/text");
        assert_eq!(fs::read(&text, 10).unwrap(), b"one");
        store.point(&facts, copy("a", 2)).unwrap();
        assert_eq!(fs::read(&text, 10).unwrap(), b"two");
        store.discard(copy("a", 1)).unwrap();
        assert_eq!(store.copies().unwrap(), [copy("a", 2)]);
        assert_eq!(names(&directory.path().join("store")).len(), 1);
    }
}
