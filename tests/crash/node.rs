//! The node: the state directory, and the real `machinesd` that works in it, begun, killed and waited for.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use machines::control::client::Client;
use machines::digest::Sha256Digest;
use machines::kv::{self, Bucket, BucketSettings, ConnectionSettings, CreateDatabase, Store};
use machines::spec::{self, SecretKey};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::agents::{Agent, Agents, NAMES};

/// Longest wait for what must happen; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// The version of each agent that the specification wants; `None` when it does not list it.
pub type Wanted = [Option<usize>; NAMES.len()];

/// How the program is made to do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manner {
    /// The specification is published to a daemon that runs.
    RunningDaemon,
    /// The daemon is started with a new specification in the store.
    Daemon,
    /// `run --once`.
    Once,
}

/// How far the work had come when it was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// No file had changed.
    Before,
    /// There was unfinished staging.
    Staging,
    /// A new copy was in the store, and no link pointed at it.
    Stored,
    /// One agent was done and the other was not.
    Between,
    /// All links were as they should be.
    After,
}

pub struct Node<'a> {
    directory: PathBuf,
    agents: &'a Agents,
    key: SecretKey,
    runtime: Runtime,
    _store: Arc<dyn Store>,
    bucket: Arc<dyn Bucket>,
    daemon: Option<Child>,
    once: Option<Child>,
    /// SHA-256 of the payload that was published last.
    published: Option<Sha256Digest>,
    log: PathBuf,
}

impl<'a> Node<'a> {
    pub fn new(directory: &Path, agents: &'a Agents) -> Self {
        let key = SecretKey::generate().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let settings = ConnectionSettings::local(directory.join("state/kv.db"), CreateDatabase::Yes);
        let store = runtime.block_on(kv::open(&settings)).unwrap();
        let bucket = BucketSettings {
            name: "MACHINES".to_owned(),
            history: 1,
            ttl: None,
            replicas: 1,
            maximum_value_bytes: None,
        };
        let bucket = runtime.block_on(store.create_bucket(&bucket)).unwrap();
        let shown = directory.display();
        let text = format!(
            "identity = \"crash.example.net\"\nstate_dir = \"{shown}/state\"\nlocal_dir = \"{shown}/local\"\n\
             facts = []\n[sync]\ninterval = \"1s\"\nmanage_interval = \"1s\"\n[trust]\npublic_keys = [\"{}\"]\n\
             [control]\nsocket = \"{shown}/control.sock\"\n",
            key.public_key()
        );
        std::fs::write(directory.join("machinesd.toml"), text).unwrap();
        Self {
            directory: directory.to_owned(),
            agents,
            key,
            runtime,
            _store: store,
            bucket,
            daemon: None,
            once: None,
            published: None,
            log: directory.join("log"),
        }
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    pub fn machines(&self) -> PathBuf {
        self.state().join("machines")
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    fn agent(&self, name: usize, version: usize) -> &Agent {
        &self.agents.0[name][version]
    }

    /// Puts a signed specification into the embedded store, from outside of the daemon.
    pub fn publish(&mut self, wanted: Wanted) {
        let entries = wanted.iter().enumerate().filter_map(|(name, version)| Some(self.agent(name, (*version)?)));
        let payload = serde_json::to_vec(&entries.map(Agent::entry).collect::<Vec<_>>()).unwrap();
        let packed = spec::pack(&payload, Some(&self.key)).unwrap();
        self.runtime.block_on(self.bucket.put("machines", packed.envelope.into())).unwrap();
        self.published = Some(Sha256Digest::of(&payload));
    }

    /// A daemon that runs and has nothing to do, or no daemon.
    pub fn be_ready_for(&mut self, manner: Manner) {
        match (manner, &self.daemon) {
            (Manner::RunningDaemon, None) => {
                self.daemon = Some(self.spawn(&["run"]));
                self.until("the daemon answers", |this| this.status().is_some());
            }
            (Manner::Daemon | Manner::Once, Some(_)) => _ = self.kill(),
            _ => {}
        }
    }

    /// Begins the work, if it has not begun by itself, and says when.
    pub fn begin(&mut self, manner: Manner) -> Instant {
        let begun = Instant::now();
        match (manner, &self.daemon) {
            (Manner::RunningDaemon | Manner::Daemon, None) => self.daemon = Some(self.spawn(&["run"])),
            (Manner::Once, None) => self.once = Some(self.spawn(&["run", "--once"])),
            _ => {}
        }
        begun
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_machinesd"));
        command.args(arguments).arg("--config").arg(self.directory.join("machinesd.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap()
    }

    /// Kills what runs; whether it was still alive. A daemon that ended by itself is a fault.
    pub fn kill(&mut self) -> bool {
        let is_daemon = self.daemon.is_some();
        let Some(mut child) = self.daemon.take().or_else(|| self.once.take()) else { return false };
        if let Some(exit) = child.try_wait().unwrap() {
            assert!(exit.success() && !is_daemon, "machinesd ended by itself, {exit}: {}", self.account());
            return false;
        }
        child.kill().unwrap();
        let exit = child.wait().unwrap();
        exit.signal() == Some(9)
    }

    /// How far the work has come, from what is on the disk; to be asked while nothing runs.
    pub fn progress(&self, from: Wanted, to: Wanted) -> Progress {
        let done = (0..NAMES.len()).filter(|name| self.linked(*name) == self.target(*name, to[*name])).count();
        let changes = (0..NAMES.len()).filter(|name| from[*name] != to[*name]).count();
        let undone = NAMES.len() - done;
        let stored = |name: usize| {
            to[name]
                .is_some_and(|version| self.linked(name) != self.target(name, to[name]) && self.has_copy(name, version))
        };
        match undone {
            0 => Progress::After,
            _ if undone < changes => Progress::Between,
            _ if self.store().iter().any(|name| name.starts_with('.')) => Progress::Staging,
            _ if (0..NAMES.len()).any(stored) => Progress::Stored,
            _ => Progress::Before,
        }
    }

    /// Waits until something changes in the store or among the links, up to a limit.
    pub fn wait_for_a_change(&self, limit: Duration) {
        let look = || (self.store(), [self.linked(0), self.linked(1)]);
        let (before, deadline) = (look(), Instant::now() + limit);
        while look() == before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(300));
        }
    }

    fn has_copy(&self, name: usize, version: usize) -> bool {
        self.store().contains(&self.agent(name, version).built.checksum.to_string())
    }

    fn store(&self) -> BTreeSet<String> {
        names(&self.state().join("store"))
    }

    /// The archive that an agent's link leads to.
    fn linked(&self, name: usize) -> Option<String> {
        let target = std::fs::read_link(self.machines().join(NAMES[name])).ok()?;
        Some(target.iter().nth(2)?.to_str()?.split('.').next()?.to_owned())
    }

    fn target(&self, name: usize, version: Option<usize>) -> Option<String> {
        version.map(|version| self.agent(name, version).built.checksum.to_string())
    }

    /// Waits until the node is as it should be: the links, the account of it, and what the host runs.
    pub fn converge(&mut self, wanted: Wanted) {
        if let Some(mut once) = self.once.take() {
            let deadline = Instant::now() + PATIENCE;
            let exit = loop {
                if let Some(exit) = once.try_wait().unwrap() {
                    break exit;
                }
                assert!(Instant::now() < deadline, "`run --once` did not end: {}", self.account());
                std::thread::sleep(Duration::from_millis(3));
            };
            assert!(exit.success(), "`run --once` did not converge: {}", self.account());
            let links = (0..NAMES.len()).all(|name| self.linked(name) == self.target(name, wanted[name]));
            assert!(links, "`run --once` says that it has converged: {}", self.account());
            return;
        }
        self.until("the node converges", |this| {
            let links = (0..NAMES.len()).all(|name| this.linked(name) == this.target(name, wanted[name]));
            links && this.status().is_some_and(|status| this.is_settled(&status, wanted))
        });
    }

    fn is_settled(&self, status: &Value, wanted: Wanted) -> bool {
        let sync = &status["sync"];
        let follows = sync["specification"]["digest"] == self.published.unwrap().to_string();
        let content = matches!(sync["last_outcome"].as_str(), Some("updated" | "unchanged"));
        let managed: Vec<_> = status["machines"].as_array().unwrap().iter().collect();
        let managed = managed.into_iter().filter(|machine| machine["source"] == "managed");
        let running: BTreeSet<_> = managed
            .map(|machine| (&machine["machine"]["name"], &machine["machine"]["version"]))
            .map(|(name, version)| (name.as_str().map(str::to_owned), version.as_str().map(str::to_owned)))
            .collect();
        let expected = wanted.iter().enumerate().filter_map(|(name, version)| {
            Some((Some(NAMES[name].to_owned()), Some(self.agent(name, (*version)?).version.clone())))
        });
        follows && content && running == expected.collect()
    }

    fn status(&self) -> Option<Value> {
        self.runtime.block_on(Client::new(&self.socket()).get("/v1/status")).ok()
    }

    fn until(&self, what: &str, mut question: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !question(self) {
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}: {}", self.account());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// As a crash just before the flips leaves it: the copies are there, the links lead to what was before.
    pub fn undo_the_flips(&self, before: Wanted) {
        for (name, version) in before.into_iter().enumerate() {
            let link = self.machines().join(NAMES[name]);
            std::fs::remove_file(&link).unwrap();
            if let Some(checksum) = self.target(name, version) {
                std::os::unix::fs::symlink(format!("../store/{checksum}/{}", NAMES[name]), &link).unwrap();
            }
        }
    }

    /// The settings now name a server that nobody can reach.
    pub fn lose_the_store(&self) {
        let path = self.directory.join("machinesd.toml");
        let settings = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{settings}[kv]\nurl = \"nats://127.0.0.1:9\"\n")).unwrap();
    }

    /// For a failure's message.
    fn account(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(60)..].join("\n");
        let status = self.status().map(|status| format!("{status:#}")).unwrap_or_default();
        format!("\nstore {:?}\nmachines {:?}\n{status}\n{tail}", self.store(), names(&self.machines()))
    }

    /// Makes all unused copies look as if they had been unused for long, so that the next pass removes them. Nothing
    /// may run. Returns how many there were.
    pub fn age_unused_copies(&self) -> usize {
        let path = self.state().join("state.db");
        if !path.exists() {
            return 0;
        }
        let database = rusqlite::Connection::open(path).unwrap();
        let age = "UPDATE copy SET unused_since_milliseconds = 1 WHERE unused_since_milliseconds IS NOT NULL";
        match database.execute(age, []) {
            Ok(count) => count,
            Err(error) if error.to_string().contains("no such table") => 0,
            Err(error) => panic!("{error}"),
        }
    }

    /// Ends the daemon as systemd does.
    pub fn stop(&mut self) {
        if self.daemon.is_none() {
            self.daemon = Some(self.spawn(&["run"]));
            self.until("the daemon answers", |this| this.status().is_some());
        }
        let mut daemon = self.daemon.take().unwrap();
        let id = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        assert!(daemon.wait().unwrap().success(), "{}", self.account());
    }

    /// After a clean stop: no left-overs, no copy that should be gone, sound databases.
    pub fn check_what_is_left(&self, wanted: Wanted) {
        let installed = wanted.iter().enumerate().filter_map(|(name, version)| version.map(|_| NAMES[name].to_owned()));
        assert_eq!(names(&self.machines()), installed.collect(), "machines holds the links and nothing else");
        let database = rusqlite::Connection::open(self.state().join("state.db")).unwrap();
        let mut statement = database.prepare("SELECT name, unused_since_milliseconds FROM copy").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Option<i64>>(1)?)));
        let rows: Vec<_> = rows.unwrap().map(Result::unwrap).collect();
        let recorded: BTreeSet<_> = rows.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(self.store(), recorded, "the store holds what is recorded, and no staging");
        let used: BTreeSet<_> = (0..NAMES.len()).filter_map(|name| self.copy_of(name)).collect();
        for (name, unused_since) in rows {
            assert_eq!(
                unused_since.is_none(),
                used.contains(&name),
                "{name}: a copy is in use, or it is known since when not"
            );
        }
        for file in ["state.db", "kv.db"] {
            let database = rusqlite::Connection::open(self.state().join(file)).unwrap();
            let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(verdict, "ok", "{file}");
        }
        assert!(!self.socket().exists(), "the control socket goes with a daemon that is asked to stop");
    }

    /// The copy that an agent's link leads to.
    fn copy_of(&self, name: usize) -> Option<String> {
        let target = std::fs::read_link(self.machines().join(NAMES[name])).ok()?;
        Some(target.iter().nth(2)?.to_str()?.to_owned())
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        for child in self.daemon.iter_mut().chain(&mut self.once) {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

fn names(directory: &Path) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return BTreeSet::new() };
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}
