//! Control groups, version 2, where a subtree is ours: each command gets a leaf of its own, in which the kernel counts and
//! ends all that it starts, wherever that hides. In: a directory that was delegated to the daemon, found or set. Out: leaves.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, XattrFlags};
use serde::Serialize;

use super::confine::Limits;

/// The daemon's own leaf: a group with controllers for its children has no processes itself.
const OWN: &str = "machinesd";
/// The leaves of commands, by number.
const PREFIX: &str = "command-";
/// Marks a leaf whose processes go on without the daemon.
const LEFT: [&str; 2] = ["user.machines.left", "trusted.machines.left"];
/// How systemd marks what it delegates.
const DELEGATED: [&str; 2] = ["trusted.delegate", "user.delegate"];
/// Processes that are moved out of the way may be forking.
const MOVES: u32 = 10;

/// Where commands are bounded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Setting {
    /// In the daemon's own group, where that is delegated.
    #[default]
    Auto,
    Off,
    /// In this directory of a mounted hierarchy.
    Directory(PathBuf),
}

/// What the kernel limits in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Controller {
    Memory,
    Pids,
}

impl Controller {
    const ALL: [Self; 2] = [Self::Memory, Self::Pids];

    fn word(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }
}

/// A group that can't be used for commands.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("no cgroup is delegated to the daemon ({0})")]
    NotDelegated(String),
    #[error(
        "{} is no cgroup of a mounted hierarchy of version 2; set cgroup under [process] to one, or to \"auto\"",
        .0.display()
    )]
    NotVersion2(PathBuf),
    #[error("another machinesd works in {}", .0.display())]
    Taken(PathBuf),
    #[error("could not {operation} {}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    move |source| CgroupError::File { operation, path: path.to_owned(), source }
}

/// The subtree for commands.
#[derive(Debug)]
pub(super) struct Subtree {
    pub directory: PathBuf,
    pub controllers: BTreeSet<Controller>,
    next: AtomicU64,
    /// Locked, so that no other daemon takes our leaves for those of a dead one.
    _lock: OwnedFd,
}

impl Subtree {
    /// Takes the group that the daemon is in, if it was delegated to it.
    pub(super) fn own() -> Result<Self, CgroupError> {
        let not = |reason: &str| CgroupError::NotDelegated(reason.to_owned());
        let own = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).ok_or_else(|| not("there is no version 2"))?;
        let mounts = read(Path::new("/proc/self/mountinfo")).unwrap_or_default();
        let mount = mounts.lines().find_map(Mount::parse).ok_or_else(|| not("version 2 is not mounted"))?;
        let own = mount.place(own).ok_or_else(|| not("its group is not below the mount"))?;
        // A manager may put the daemon into a group below the one that it delegates.
        let above = own.parent().filter(|above| above.starts_with(&mount.point));
        let delegated = std::iter::once(own.as_path()).chain(above).find(|path| is_delegated(path));
        let directory = delegated.ok_or_else(|| not("the unit needs Delegate=yes, or set cgroup under [process]"))?;
        Self::take(directory)
    }

    /// Takes a directory. The processes in it, the daemon itself for example, move to a leaf of their own.
    pub(super) fn take(directory: &Path) -> Result<Self, CgroupError> {
        if !directory.join("cgroup.procs").exists() || !directory.join("cgroup.subtree_control").exists() {
            return Err(CgroupError::NotVersion2(directory.to_owned()));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = rustix::fs::open(directory, flags, Mode::empty());
        let lock = lock.map_err(io::Error::from).map_err(failed("open", directory))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| CgroupError::Taken(directory.to_owned()))?;
        let controllers = enable(directory)?;
        let next = AtomicU64::new(0);
        Ok(Self { directory: directory.to_owned(), controllers, next, _lock: lock })
    }

    /// The leaves of a daemon before this one: those that were left on purpose; all others are ended first.
    pub(super) fn inherited(&self) -> (Vec<Leaf>, Vec<Leaf>) {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().filter_map(Result::ok);
        let is_leaf = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with(PREFIX);
        let leaves = entries.filter(is_leaf).map(|entry| Leaf { path: entry.path() });
        leaves.partition(Leaf::is_left)
    }

    /// Makes a leaf with these limits, as far as the kernel knows them.
    pub(super) fn leaf(&self, limits: &Limits) -> Result<Leaf, CgroupError> {
        let leaf = loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let path = self.directory.join(format!("{PREFIX}{number}"));
            match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)) {
                Ok(()) => break Leaf { path },
                // Of a daemon before this one.
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(failed("make", &path)(error.into())),
            }
        };
        let limited = leaf.limit(limits, &self.controllers);
        if limited.is_err() {
            leaf.remove();
        }
        limited.map(|()| leaf)
    }
}

/// Turns on what there is, for the groups below.
fn enable(directory: &Path) -> Result<BTreeSet<Controller>, CgroupError> {
    let offered = read(&directory.join("cgroup.controllers")).map_err(failed("read the controllers of", directory))?;
    let offered: Vec<&str> = offered.split_ascii_whitespace().collect();
    let wanted: Vec<Controller> =
        Controller::ALL.into_iter().filter(|controller| offered.contains(&controller.word())).collect();
    if wanted.is_empty() {
        return Ok(BTreeSet::new());
    }
    let control = directory.join("cgroup.subtree_control");
    let turn_on = || wanted.iter().try_for_each(|controller| write(&control, &format!("+{}", controller.word())));
    for _ in 0..MOVES {
        match turn_on() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => make_way(directory)?,
            result => return result.map(|()| wanted.into_iter().collect()).map_err(failed("write", &control)),
        }
    }
    turn_on().map(|()| wanted.iter().copied().collect()).map_err(failed("write", &control))
}

/// Moves the processes of a group into a leaf of their own.
fn make_way(directory: &Path) -> Result<(), CgroupError> {
    let leaf = directory.join(OWN);
    match rustix::fs::mkdir(&leaf, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(failed("make", &leaf)(error.into())),
    }
    for pid in members(directory) {
        match write(&leaf.join("cgroup.procs"), &pid.to_string()) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            result => result.map_err(failed("move processes to", &leaf))?,
        }
    }
    Ok(())
}

/// One mounted hierarchy.
struct Mount {
    /// The group that is seen at its point.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// Of a line of mountinfo (`proc_pid_mountinfo(5)`).
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        after.starts_with("cgroup2 ").then(|| Self { root: root.into(), point: point.replace("\\040", " ").into() })
    }

    fn place(&self, group: &str) -> Option<PathBuf> {
        let below = Path::new(group).strip_prefix(&self.root).ok()?;
        Some(if below.as_os_str().is_empty() { self.point.clone() } else { self.point.join(below) })
    }
}

fn is_delegated(path: &Path) -> bool {
    DELEGATED.into_iter().any(|name| has_mark(path, name))
}

fn has_mark(path: &Path, name: &str) -> bool {
    let mut value = [0u8; 8];
    matches!(rustix::fs::getxattr(path, name, &mut value), Ok(1)) && value.first() == Some(&b'1')
}

/// The group of one command, or of what is left of it.
#[derive(Debug)]
pub(super) struct Leaf {
    pub path: PathBuf,
}

/// Whether a leaf could be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    Done,
    InUse,
}

impl Leaf {
    fn limit(&self, limits: &Limits, controllers: &BTreeSet<Controller>) -> Result<(), CgroupError> {
        let set = |name: &str, value: String| {
            let path = self.path.join(name);
            write(&path, &value).map_err(failed("write", &path))
        };
        if let Some(bytes) = limits.memory_bytes.filter(|_| controllers.contains(&Controller::Memory)) {
            set("memory.max", bytes.to_string())?;
            // A kernel without swap has no such file, and an old one can't end a group as a whole.
            _ = set("memory.swap.max", "0".to_owned());
            _ = set("memory.oom.group", "1".to_owned());
        }
        match limits.tasks.filter(|_| controllers.contains(&Controller::Pids)) {
            Some(tasks) => set("pids.max", tasks.to_string()),
            None => Ok(()),
        }
    }

    /// Processor time of all that was ever in it.
    pub(super) fn used(&self) -> Option<Duration> {
        let stat = read(&self.path.join("cpu.stat")).ok()?;
        let used = stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        used.trim().parse().ok().map(Duration::from_micros)
    }

    /// Whether the kernel ended something in it for want of memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        let events = read(&self.path.join("memory.events")).unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|kills| kills.trim() != "0")
    }

    pub(super) fn members(&self) -> Vec<i32> {
        groups_in(&self.path).iter().flat_map(|group| members(group)).collect()
    }

    /// Ends all that is in it, at once.
    pub(super) fn kill(&self) {
        if write(&self.path.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        // A kernel before 5.14: nothing is started in a frozen group.
        _ = write(&self.path.join("cgroup.freeze"), "1");
        for pid in self.members().into_iter().filter_map(rustix::process::Pid::from_raw) {
            _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        _ = write(&self.path.join("cgroup.freeze"), "0");
    }

    pub(super) fn is_empty(&self) -> bool {
        let events = read(&self.path.join("cgroup.events")).unwrap_or_default();
        !events.lines().any(|line| line == "populated 1")
    }

    /// What is in it goes on when the daemon ends.
    pub(super) fn leave(&self) {
        // Kernels know one of the names or the other, and only root may set the second.
        _ = LEFT.into_iter().find(|name| rustix::fs::setxattr(&self.path, *name, b"1", XattrFlags::empty()).is_ok());
    }

    fn is_left(&self) -> bool {
        LEFT.into_iter().any(|name| has_mark(&self.path, name))
    }

    /// With the groups that the command made in it.
    pub(super) fn remove(&self) -> Removal {
        for group in groups_in(&self.path).iter().rev() {
            match rustix::fs::unlinkat(CWD, group, AtFlags::REMOVEDIR) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(_) => return Removal::InUse,
            }
        }
        Removal::Done
    }
}

/// The group and those below it, each before those in it.
fn groups_in(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    let mut next = 0;
    while let Some(group) = found.get(next) {
        let entries = std::fs::read_dir(group).into_iter().flatten().filter_map(Result::ok);
        let inner: Vec<PathBuf> = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        found.extend(inner);
        next += 1;
    }
    found
}

fn members(group: &Path) -> Vec<i32> {
    let list = read(&group.join("cgroup.procs")).unwrap_or_default();
    list.lines().filter_map(|pid| pid.parse().ok()).collect()
}

fn read(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path)
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_below_the_mount_also_in_a_container() {
        let line = "36 32 0:31 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount.place("/system.slice/a.service").unwrap(), Path::new("/sys/fs/cgroup/system.slice/a.service"));
        assert_eq!(mount.place("/").unwrap(), Path::new("/sys/fs/cgroup"));
        let inner = Mount::parse("1 2 0:31 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw").unwrap();
        assert_eq!(inner.place("/docker/abc/x").unwrap(), Path::new("/sys/fs/cgroup/x"));
        assert!(inner.place("/other").is_none());
        assert!(Mount::parse("1 2 0:3 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory").is_none());
    }
}
