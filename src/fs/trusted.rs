//! May what is at this path be trusted? In: a path. Out: an open descriptor to work through, or who could change what
//! is there, with the command that mends it.
//!
//! What the daemon reads decides what root runs, and whoever may write to any directory above decides what is read. So
//! the way is walked from `/`, from open directory to open directory, and each step must belong to root or to the
//! daemon's user, who alone may write to it. In a directory with the sticky bit (`/tmp`) others can't touch what is
//! ours, so it may be on the way. A symbolic link is as good as a directory when it is ours: it is read, and where it
//! leads is walked in the same manner.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{Context, DIRECTORY_FLAGS, FileError};

/// As many links as the system itself follows.
const MAXIMUM_LINKS: usize = 40;
/// To look at something, whatever it is, without opening it.
pub(super) const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// The numbers of users in our user namespace: the first one here, the first one outside, how many.
const USER_MAP: &str = "/proc/self/uid_map";
const USER_MAP_LIMIT_BYTES: u64 = 64 * 1024;
/// The number of those who have none there, unless the system was told another.
const OVERFLOW_USER: u32 = 65_534;
/// Where the system keeps an access control list, if there is one.
const ACCESS_LIST: &str = "system.posix_acl_access";

/// Why what is at a path can't be trusted.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// Somebody else could change it.
    #[error("{}{fault}", because_of(path, &fault.at))]
    Others { path: PathBuf, fault: Fault },
    /// It could not be looked at.
    #[error(transparent)]
    Unknown(#[from] FileError),
}

/// What a fault elsewhere is about; one of the path itself names it already.
fn because_of(path: &Path, at: &Path) -> String {
    if path == at { String::new() } else { format!("{} can't be trusted: ", path.display()) }
}

impl Distrust {
    /// Whether it is only that nothing is there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Unknown(error) if error.source.kind() == io::ErrorKind::NotFound)
    }
}

/// Who could change what is at a path, and how to mend that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The path itself, a directory above it, or where a link leads.
    pub at: PathBuf,
    pub hand: Hand,
    /// The permission bits there.
    pub mode: u32,
}

/// By what somebody else could change something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hand {
    /// It belongs to this user.
    Owner(u32),
    /// This group may write to it.
    Group(u32),
    /// Everyone may write to it.
    Everyone,
    /// Its access control list lets others write to it.
    AccessList,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, mode) = (self.at.display(), self.mode);
        match self.hand {
            Hand::Owner(user) => {
                let ours = match ours() {
                    0 => "root".to_owned(),
                    user => user.to_string(),
                };
                write!(formatter, "{at} belongs to user {user} (mode {mode:04o}); ")?;
                if is_outside(user, &super::read_text(Path::new(USER_MAP), USER_MAP_LIMIT_BYTES).unwrap_or_default()) {
                    let outside = "in this user namespace all users outside of it have that number, the host's root too: \
                                   run machinesd outside of it, or give it files of its own users";
                    return formatter.write_str(outside);
                }
                write!(formatter, "look at what is there, then `chown -h {ours} {at}`, or move it away")
            }
            Hand::Group(group) => {
                write!(formatter, "group {group} may write to {at} (mode {mode:04o}); `chmod g-w {at}`")
            }
            // Who takes the bit from `/tmp` breaks the host.
            Hand::Everyone if mode & 0o1000 != 0 => {
                write!(
                    formatter,
                    "everyone may write to {at} (mode {mode:04o}); choose a directory that is yours alone"
                )
            }
            Hand::Everyone => write!(formatter, "everyone may write to {at} (mode {mode:04o}); `chmod o-w {at}`"),
            Hand::AccessList => {
                write!(formatter, "an access control list lets others write to {at}; `setfacl -b {at}`")
            }
        }
    }
}

/// What part a directory has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// It is above what is asked for.
    Above,
    /// It is what is asked for.
    Itself,
}

/// The user whose daemon this is; root's files are his as well.
fn ours() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether this is the number that the system shows in the place of users who have none in our user namespace. Nobody can
/// tell from it who they are.
fn is_outside(user: u32, map: &str) -> bool {
    let within = |line: &str| {
        let mut numbers = line.split_whitespace().filter_map(|number| number.parse::<u32>().ok());
        let (first, _, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
        Some(user.checked_sub(first)? < count)
    };
    user == OVERFLOW_USER && !map.is_empty() && !map.lines().any(|line| within(line) == Some(true))
}

/// Whether this user is root or the daemon's own.
pub fn is_ours(user: u32) -> bool {
    user == 0 || user == ours()
}

/// Whether somebody else may write to what a stat shows. The group bits are also the mask of an access control list.
pub(super) fn hand(stat: &Stat, part: Part) -> Option<Hand> {
    let mode = stat.st_mode & 0o7777;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if !is_ours(stat.st_uid) {
        return Some(Hand::Owner(stat.st_uid));
    }
    let sticky = part == Part::Above && kind == FileType::Directory && mode & 0o1000 != 0;
    // A link has no mode of its own.
    if sticky || kind == FileType::Symlink {
        return None;
    }
    if mode & 0o002 != 0 {
        return Some(Hand::Everyone);
    }
    (mode & 0o020 != 0 && stat.st_gid != 0).then_some(Hand::Group(stat.st_gid))
}

/// What is at the end of a walk.
pub(super) struct Found {
    /// The directory that it is in.
    pub parent: OwnedFd,
    pub name: OsString,
    pub descriptor: OwnedFd,
    pub stat: Stat,
    /// Without links.
    pub real: PathBuf,
}

/// What to do about a directory that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Fail,
    /// Make it, and those above it, with this mode for the last one.
    Make(u32),
}

struct Walk<'a> {
    /// As it was asked for, for messages.
    path: &'a Path,
    /// The open directories from `/` on, each with its name.
    way: Vec<(OwnedFd, OsString)>,
    links: usize,
}

/// Walks to a path.
pub(super) fn walk(path: &Path, missing: Missing) -> Result<Found, Distrust> {
    let absolute = std::path::absolute(path).on("look at", path)?;
    let root = rustix::fs::openat(CWD, "/", LOOK | OFlags::DIRECTORY, Mode::empty());
    let root = root.map_err(io::Error::from).on("open", Path::new("/"))?;
    let mut walk = Walk { path, way: Vec::new(), links: 0 };
    walk.judge(&root, &stat(&root, path)?, Path::new("/"), Part::Above)?;
    walk.way.push((root, OsString::new()));
    let mut ahead = parts(&absolute);
    while let Some(part) = ahead.pop_front() {
        let name = match part {
            Step::Root => {
                walk.way.truncate(1);
                continue;
            }
            Step::Up => {
                if walk.way.len() > 1 {
                    walk.way.pop();
                }
                continue;
            }
            Step::Name(name) => name,
        };
        let (descriptor, stat) = walk.step(&name, ahead.is_empty(), missing)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                walk.links += 1;
                if walk.links > MAXIMUM_LINKS {
                    return Err(io::Error::from(Errno::LOOP)).on("look at", path)?;
                }
                let target = rustix::fs::readlinkat(&descriptor, c"", Vec::new()).map_err(io::Error::from);
                let target = PathBuf::from(OsString::from_vec(target.on("read the link at", path)?.into_bytes()));
                let mut target = parts(&target);
                target.append(&mut ahead);
                ahead = target;
            }
            FileType::Directory => walk.way.push((descriptor, name)),
            _ if ahead.is_empty() => {
                let real = walk.real(&name);
                walk.judge(&descriptor, &stat, &real, Part::Itself)?;
                let (parent, _) = walk.way.pop().ok_or(Errno::NOTDIR).map_err(io::Error::from).on("look at", path)?;
                return Ok(Found { parent, name, descriptor, stat, real });
            }
            _ => return Err(io::Error::from(Errno::NOTDIR)).on("look at", path)?,
        }
    }
    walk.end()
}

impl Walk<'_> {
    fn real(&self, name: &OsStr) -> PathBuf {
        let mut real: PathBuf = Path::new("/").into();
        real.extend(self.way.iter().map(|(_, name)| name).filter(|name| !name.is_empty()));
        real.join(name)
    }

    fn step(&self, name: &OsStr, last: bool, missing: Missing) -> Result<(OwnedFd, Stat), Distrust> {
        let Some((directory, _)) = self.way.last() else {
            return Err(io::Error::from(Errno::NOENT)).on("look at", self.path)?;
        };
        let mut opened = rustix::fs::openat(directory, name, LOOK, Mode::empty());
        if let (Err(Errno::NOENT), Missing::Make(mode)) = (&opened, missing) {
            make(directory, name, last.then_some(mode)).map_err(io::Error::from).on("create directory", self.path)?;
            opened = rustix::fs::openat(directory, name, LOOK, Mode::empty());
        }
        let descriptor = opened.map_err(io::Error::from).on("look at", self.path)?;
        let stat = stat(&descriptor, self.path)?;
        self.judge(&descriptor, &stat, &self.real(name), Part::Above)?;
        Ok((descriptor, stat))
    }

    fn judge(&self, descriptor: &OwnedFd, stat: &Stat, real: &Path, part: Part) -> Result<(), Distrust> {
        match judge(descriptor, stat, real, part) {
            None => Ok(()),
            Some(fault) => Err(Distrust::Others { path: self.path.to_owned(), fault }),
        }
    }

    /// The way ends in a directory.
    fn end(mut self) -> Result<Found, Distrust> {
        let path = self.path;
        let Some((descriptor, name)) = self.way.pop() else {
            return Err(io::Error::from(Errno::NOENT)).on("look at", path)?;
        };
        let real = self.real(&name);
        let stat = stat(&descriptor, path)?;
        self.judge(&descriptor, &stat, &real, Part::Itself)?;
        let parent = match self.way.pop() {
            Some((parent, _)) => parent,
            // The root is its own.
            None => {
                rustix::fs::openat(&descriptor, ".", LOOK, Mode::empty()).map_err(io::Error::from).on("open", path)?
            }
        };
        Ok(Found { parent, name, descriptor, stat, real })
    }
}

pub(super) fn judge(descriptor: &OwnedFd, stat: &Stat, at: &Path, part: Part) -> Option<Fault> {
    let hand = hand(stat, part).or_else(|| has_list_for_others(descriptor, stat).then_some(Hand::AccessList))?;
    Some(Fault { at: at.to_owned(), hand, mode: stat.st_mode & 0o7777 })
}

/// Judges an open directory by itself, for those who know that what is above it is ours.
pub(super) fn judge_open(descriptor: &OwnedFd, path: &Path) -> Result<(), Distrust> {
    match judge(descriptor, &stat(descriptor, path)?, path, Part::Itself) {
        None => Ok(()),
        Some(fault) => Err(Distrust::Others { path: path.to_owned(), fault }),
    }
}

/// Whether others may write by an access control list, where the group bits alone look harmless because the group is
/// root's.
fn has_list_for_others(descriptor: &OwnedFd, stat: &Stat) -> bool {
    if stat.st_mode & 0o020 == 0 || FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return false;
    }
    // A descriptor that only looks has no attributes; this path is what it is open for, whatever that is called now.
    let itself = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let mut nothing: [u8; 0] = [];
    let listed = rustix::fs::getxattr(itself, ACCESS_LIST, &mut nothing);
    !matches!(listed, Err(Errno::NODATA | Errno::OPNOTSUPP))
}

pub(super) fn stat(descriptor: &OwnedFd, path: &Path) -> Result<Stat, FileError> {
    rustix::fs::fstat(descriptor).map_err(io::Error::from).on("look at", path)
}

fn make(directory: &OwnedFd, name: &OsStr, mode: Option<u32>) -> rustix::io::Result<()> {
    match rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => {}
        // Somebody was quicker; what is there is judged.
        Err(Errno::EXIST) => return Ok(()),
        Err(error) => return Err(error),
    }
    let made = rustix::fs::openat(directory, name, DIRECTORY_FLAGS, Mode::empty())?;
    if let Some(mode) = mode {
        rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))?;
    }
    rustix::fs::fsync(rustix::fs::openat(directory, ".", DIRECTORY_FLAGS, Mode::empty())?)
}

/// A part of a path that is still to be walked.
enum Step {
    Root,
    Up,
    Name(OsString),
}

fn parts(path: &Path) -> VecDeque<Step> {
    let part = |part: Component<'_>| match part {
        Component::RootDir | Component::Prefix(_) => Some(Step::Root),
        Component::CurDir => None,
        Component::ParentDir => Some(Step::Up),
        Component::Normal(name) => Some(Step::Name(name.to_owned())),
    };
    path.components().filter_map(part).collect()
}

/// A regular file that nobody else could have changed, opened for reading.
#[derive(Debug)]
pub struct TrustedFile {
    pub file: File,
    mode: u32,
    group: u32,
}

impl TrustedFile {
    /// Whether others may read it, which matters when it holds a secret.
    pub fn others_may_read(&self) -> bool {
        self.mode & 0o004 != 0 || (self.mode & 0o040 != 0 && self.group != 0)
    }
}

/// Opens a file that only root or the daemon's user can change.
///
/// # Errors
/// When somebody else could, it is no regular file, or what the system says; [`Distrust::is_missing`] tells that nothing
/// is there.
pub fn open(path: &Path) -> Result<TrustedFile, Distrust> {
    let found = walk(path, Missing::Fail)?;
    let irregular = || io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
    if FileType::from_raw_mode(found.stat.st_mode) != FileType::RegularFile {
        return Err(irregular()).on("open", path)?;
    }
    let file = rustix::fs::openat(&found.parent, found.name.as_os_str(), READ, Mode::empty());
    let file = file.map_err(io::Error::from).on("open", path)?;
    // Of the file that is open now; nobody but us could have exchanged it.
    let stat = stat(&file, path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(irregular()).on("open", path)?;
    }
    if let Some(fault) = judge(&file, &stat, &found.real, Part::Itself) {
        return Err(Distrust::Others { path: path.to_owned(), fault });
    }
    Ok(TrustedFile { file: file.into(), mode: stat.st_mode & 0o7777, group: stat.st_gid })
}

/// Reads a whole file that only root or the daemon's user can change, or fails when it is larger than `limit_bytes`.
///
/// # Errors
/// As [`open`], and [`io::ErrorKind::FileTooLarge`].
pub fn read(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, Distrust> {
    Ok(super::read_from(open(path)?.file, path, limit_bytes)?)
}

/// Asks whether only root or the daemon's user can change what is at the path, be it a file, a directory or a socket.
/// What is inside of a directory is not looked at.
///
/// # Errors
/// As [`open`].
pub fn check(path: &Path) -> Result<(), Distrust> {
    walk(path, Missing::Fail).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    use super::super::Directory;
    use super::*;

    /// Of `nobody`, who is everybody that is not us.
    const STRANGER: u32 = 65_534;

    /// A directory of ours below `/tmp`, which has the sticky bit.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self, relative: &str) -> PathBuf {
            self.0.path().join(relative)
        }

        fn directory(&self, relative: &str, mode: u32) -> PathBuf {
            let path = self.path(relative);
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        }

        fn file(&self, relative: &str, mode: u32) -> PathBuf {
            let path = self.path(relative);
            fs::write(&path, "text").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    fn fault(path: &Path) -> Fault {
        match check(path) {
            Err(Distrust::Others { fault, .. }) => fault,
            other => panic!("{}: {other:?}", path.display()),
        }
    }

    #[test]
    fn what_is_ours_all_the_way_is_trusted_also_below_a_sticky_directory() {
        let place = Place::new();
        place.directory("a/b", 0o755);
        let file = place.file("a/b/file", 0o640);
        assert_eq!(read(&file, 10).unwrap(), b"text");
        assert!(Directory::trusted(&place.path("a/b")).unwrap().names().unwrap() == ["file"]);
        assert!(read(&place.path("a/none"), 10).unwrap_err().is_missing());
        assert!(read(&place.path("a/b"), 10).unwrap_err().to_string().contains("could not open"));
        check(Path::new("/")).unwrap();
    }

    #[test]
    fn an_owner_or_a_writer_anywhere_above_is_named_with_the_remedy() {
        let place = Place::new();
        let (a, b) = (place.directory("a", 0o755), place.directory("a/b", 0o755));
        let file = place.file("a/b/file", 0o644);
        for (at, owner) in [(&a, STRANGER), (&b, STRANGER), (&file, STRANGER)] {
            chown(at, Some(owner), None).unwrap();
            assert_eq!((fault(&file).at, fault(&file).hand), (at.clone(), Hand::Owner(owner)));
            let text = read(&file, 10).unwrap_err().to_string();
            assert_eq!(text.starts_with(&format!("{} can't be trusted: ", file.display())), *at != file, "{text}");
            assert_eq!(text.matches(&at.display().to_string()).count(), if *at == file { 2 } else { 3 }, "{text}");
            let remedy = format!("{} belongs to user 65534 (mode 0", at.display());
            assert!(text.contains(&remedy) && text.contains(&format!("`chown -h root {}`", at.display())), "{text}");
            chown(at, Some(0), None).unwrap();
        }
        for (at, mode, hand) in [
            (&a, 0o757, Hand::Everyone),
            (&b, 0o775, Hand::Group(STRANGER)),
            (&file, 0o660, Hand::Group(STRANGER)),
            (&file, 0o646, Hand::Everyone),
        ] {
            let before = fs::metadata(at).unwrap().permissions();
            chown(at, None, Some(STRANGER)).unwrap();
            fs::set_permissions(at, Permissions::from_mode(mode)).unwrap();
            assert_eq!((fault(&file).at, fault(&file).hand), (at.clone(), hand));
            let text = check(&file).unwrap_err().to_string();
            assert!(text.contains("-w ") && text.contains(&format!("(mode {mode:04o})")), "{text}");
            fs::set_permissions(at, before).unwrap();
        }
        // The group of root may write.
        chown(&b, None, Some(0)).unwrap();
        fs::set_permissions(&b, Permissions::from_mode(0o775)).unwrap();
        check(&file).unwrap();
    }

    #[test]
    fn a_sticky_directory_is_good_above_and_no_place_itself() {
        let place = Place::new();
        let sticky = place.directory("sticky", 0o1777);
        check(&place.directory("sticky/ours", 0o755)).unwrap();
        assert_eq!(fault(&sticky).hand, Hand::Everyone);
        assert!(fault(&sticky).to_string().contains("choose a directory that is yours alone"));
        let theirs = place.directory("sticky/theirs", 0o755);
        chown(&theirs, Some(STRANGER), None).unwrap();
        assert_eq!(fault(&theirs).hand, Hand::Owner(STRANGER));
    }

    #[test]
    fn a_link_of_ours_is_followed_and_where_it_leads_is_judged() {
        let place = Place::new();
        place.directory("real/inner", 0o755);
        place.file("real/inner/file", 0o644);
        symlink("real/../real/./inner", place.path("relative")).unwrap();
        symlink(place.path("relative"), place.path("absolute")).unwrap();
        assert_eq!(read(&place.path("absolute/file"), 10).unwrap(), b"text");
        symlink("file", place.path("real/inner/last")).unwrap();
        assert_eq!(read(&place.path("absolute/last"), 10).unwrap(), b"text");
        fs::set_permissions(place.path("real"), Permissions::from_mode(0o777)).unwrap();
        assert_eq!(fault(&place.path("absolute/file")).at, place.path("real"));
        fs::set_permissions(place.path("real"), Permissions::from_mode(0o755)).unwrap();
        lchown(place.path("relative"), Some(STRANGER), None).unwrap();
        assert_eq!(fault(&place.path("absolute/file")).at, place.path("relative"));
        symlink("round", place.path("round")).unwrap();
        let error = check(&place.path("round")).unwrap_err();
        assert!(error.to_string().contains("could not look at"), "{error}");
        symlink("nothing", place.path("dangling")).unwrap();
        assert!(check(&place.path("dangling")).unwrap_err().is_missing());
    }

    #[test]
    fn what_is_missing_is_made_where_only_we_may_write() {
        let place = Place::new();
        Directory::trusted_or_made(&place.path("new/inner"), 0o711).unwrap();
        let mode = |path: &str| fs::metadata(place.path(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("new"), mode("new/inner")), (0o755, 0o711));
        let open = place.directory("open", 0o777);
        Directory::trusted_or_made(&open.join("x/y"), 0o755).unwrap_err();
        assert!(!open.join("x").exists());
    }

    #[test]
    fn an_access_list_counts_where_the_group_is_roots() {
        let place = Place::new();
        let (directory, file) = (place.directory("a", 0o755), place.file("a/file", 0o644));
        // Version 2; the owner, user nobody, the group, the mask, others: tag, permissions, id.
        let entries = [(1, 6, u32::MAX), (2, 6, STRANGER), (4, 4, u32::MAX), (0x10, 6, u32::MAX), (0x20, 4, u32::MAX)];
        let mut list = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            list.extend([u16::to_le_bytes(tag), u16::to_le_bytes(permissions)].concat());
            list.extend(u32::to_le_bytes(id));
        }
        for at in [&file, &directory] {
            match rustix::fs::setxattr(at, ACCESS_LIST, &list, rustix::fs::XattrFlags::empty()) {
                // A file system without lists can't have one that harms.
                Err(Errno::OPNOTSUPP) => return,
                set => set.unwrap(),
            }
            assert!(open(&file).unwrap_err().to_string().contains("an access control list lets others write"));
            rustix::fs::removexattr(at, ACCESS_LIST).unwrap();
            fs::set_permissions(at, Permissions::from_mode(0o755)).unwrap();
            open(&file).unwrap();
        }
    }

    #[test]
    fn users_outside_of_the_namespace_are_told_from_nobody() {
        let (host, alone, container) =
            ("         0          0 4294967295\n", "0 1000 1\n", "0 1000 1\n1 100000 65536\n");
        for (user, map, expected) in [
            (65_534, host, false),
            (65_534, alone, true),
            (65_534, container, false),
            (1_000, alone, false),
            (65_534, "", false),
        ] {
            assert_eq!(is_outside(user, map), expected, "{user} {map:?}");
        }
    }
}
