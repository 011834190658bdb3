//! Observers: threads that open an agent's path again and again, follow its link once, and read every file of what they
//! reached. Each observation must be one version, whole; and an agent that is installed must be there.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::agents::{Agents, NAMES};

/// Between two observations, so that observers leave time for what they observe.
const PAUSE: Duration = Duration::from_millis(2);

const LISTED_FAULTS: usize = 5;

/// What an agent may be seen as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    pub absent: bool,
    pub versions: [bool; 3],
}

impl Allowed {
    pub fn between(from: Option<usize>, to: Option<usize>) -> Self {
        let allowed = |version| from == Some(version) || to == Some(version);
        Self { absent: from.is_none() || to.is_none(), versions: std::array::from_fn(allowed) }
    }
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub observations: u64,
    present: u64,
    absent: u64,
    /// Observations during which what may be seen changed; judged for wholeness only.
    at_a_change: u64,
}

impl fmt::Display for Seen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { observations, present, absent, at_a_change } = self;
        write!(
            formatter,
            "observations: {observations} ({present} whole, {absent} absent where that is right, {at_a_change} at a \
             change of what is right); missing=0, mixed=0"
        )
    }
}

struct Shared {
    machines: PathBuf,
    /// By name, version and path.
    files: [[BTreeMap<String, Vec<u8>>; 3]; NAMES.len()],
    allowed: Mutex<[Allowed; NAMES.len()]>,
    changes: AtomicU64,
    stop: AtomicBool,
    /// Read while an observation lasts.
    observing: RwLock<()>,
    seen: Mutex<Seen>,
    faults: Mutex<Vec<String>>,
}

/// The running observers.
pub struct Observers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Observers {
    pub fn start(machines: PathBuf, agents: &Agents) -> Self {
        let nothing = Allowed { absent: true, versions: [false; 3] };
        let files = std::array::from_fn(|name| std::array::from_fn(|version| agents.0[name][version].files.clone()));
        let shared = Arc::new(Shared {
            machines,
            files,
            allowed: Mutex::new([nothing; NAMES.len()]),
            changes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            observing: RwLock::new(()),
            seen: Mutex::default(),
            faults: Mutex::default(),
        });
        let watch = |name| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                while !shared.stop.load(Ordering::SeqCst) {
                    shared.look(name);
                    std::thread::sleep(PAUSE);
                }
            })
        };
        let threads = (0..NAMES.len()).map(watch).collect();
        Self { shared, threads }
    }

    /// From now on the agents may be seen as this.
    pub fn expect(&self, allowed: &[Allowed; NAMES.len()]) {
        *self.shared.allowed.lock().unwrap() = *allowed;
        self.shared.changes.fetch_add(1, Ordering::SeqCst);
        self.check();
    }

    /// One observation of each agent, now.
    pub fn look_at_all(&self) {
        (0..NAMES.len()).for_each(|name| self.shared.look(name));
        self.check();
    }

    /// Does something at a moment at which no observer holds a directory open.
    pub fn between_observations(&self, work: impl FnOnce()) {
        let _pause = self.shared.observing.write().unwrap();
        work();
    }

    pub fn stop(self) -> Seen {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let faults = self.shared.faults.lock().unwrap();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }

    fn check(&self) {
        let faults = self.shared.faults.lock().unwrap();
        assert!(faults.is_empty(), "an observer saw what nobody may see:\n{}", faults.join("\n"));
    }
}

impl Shared {
    fn look(&self, name: usize) {
        let _observing = self.observing.read().unwrap();
        let changes = self.changes.load(Ordering::SeqCst);
        let allowed = self.allowed.lock().unwrap()[name];
        let observed = self.observe(name);
        let at_a_change = changes != self.changes.load(Ordering::SeqCst);
        let fault = match &observed {
            Err(fault) => Some(format!("mixed: {}: {fault}", NAMES[name])),
            _ if at_a_change => None,
            Ok(None) => (!allowed.absent).then(|| format!("missing: {}", NAMES[name])),
            Ok(Some(version)) => (!allowed.versions[*version])
                .then(|| format!("wrong: {} is version {} and may be {allowed:?}", NAMES[name], version + 1)),
        };
        let mut seen = self.seen.lock().unwrap();
        seen.observations += 1;
        match observed {
            _ if at_a_change => seen.at_a_change += 1,
            Ok(None) => seen.absent += 1,
            _ => seen.present += 1,
        }
        let mut faults = self.faults.lock().unwrap();
        if faults.len() < LISTED_FAULTS {
            faults.extend(fault);
        }
    }

    /// Which version is there, whole; `None` when nothing is.
    fn observe(&self, name: usize) -> Result<Option<usize>, String> {
        let path = self.machines.join(NAMES[name]);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(rustix::io::Errno::NOENT) if !is_there(&path) => return Ok(None),
            Err(error) => return Err(format!("its path could not be opened: {error}")),
        };
        let read = |path: &str| {
            let mut content = Vec::new();
            let file = rustix::fs::openat(&directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            let file = file.map_err(|error| format!("{path} could not be opened: {error}"))?;
            File::from(file).read_to_end(&mut content).map_err(|error| format!("{path} could not be read: {error}"))?;
            Ok::<_, String>(content)
        };
        let list = read("SHA256SUMS")?;
        let version = self.files[name].iter().position(|files| files["SHA256SUMS"] == list);
        let version = version.ok_or("its SHA256SUMS is of no version")?;
        // The paths come from the list that was read, which is byte by byte the one of this version.
        for (path, expected) in &self.files[name][version] {
            if read(path)? != *expected {
                return Err(format!("{path} is not of version {}", version + 1));
            }
        }
        Ok(Some(version))
    }
}

/// A link that leads nowhere is no absent agent, it is a broken one. Asked after the failed open, so a link that was
/// removed in between counts as absent, and one that was made in between is opened with the next observation.
fn is_there(path: &Path) -> bool {
    match std::fs::read_link(path) {
        Ok(target) => !path.parent().unwrap().join(target).exists(),
        Err(_) => false,
    }
}
