//! A node: its directories and settings, and a real `machinesd` in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use machines::control::client::Client;
use machines::kv::{BucketSettings, ConnectionSettings, CreateDatabase, Store, Target};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longest wait for something that must happen; reached only when something is broken.
const PATIENCE: Duration = Duration::from_secs(120);

/// The bucket that nodes follow.
pub const BUCKET: &str = "MACHINES";
/// The key in it.
pub const KEY: &str = "machines";

/// The directories of a node. They are on a real disk, as flushing is part of what is measured.
pub struct Node {
    directory: tempfile::TempDir,
    url: String,
}

impl Node {
    /// A node that follows `url` ("local" or NATS) and has `settings`, lines of TOML for the tables named in them.
    pub fn new(url: &str, settings: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("node-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let root = directory.path().display();
        let configuration = format!(
            "identity = \"web1.dc1.example.net\"\nstate_dir = \"{root}/state\"\nlocal_dir = \"{root}/machines.d\"\n\
             facts = []\n[kv]\nurl = \"{url}\"\n[control]\nsocket = \"{root}/socket\"\n[log]\nlevel = \"warn\"\n\
             {settings}\n"
        );
        fs::write(directory.path().join("machinesd.toml"), configuration).unwrap();
        fs::create_dir(directory.path().join("machines.d")).unwrap();
        Self { directory, url: url.to_owned() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Opens the store that this node follows, with the bucket made.
    pub async fn store(&self) -> std::sync::Arc<dyn Store> {
        machines::kv::install_tls_provider();
        let settings = if self.url == "local" {
            fs::create_dir_all(self.path("state")).unwrap();
            ConnectionSettings::local(self.path("state").join("kv.db"), CreateDatabase::Yes)
        } else {
            ConnectionSettings::new(Target::parse(&self.url).unwrap())
        };
        let store = machines::kv::open(&settings).await.unwrap();
        let bucket =
            BucketSettings { name: BUCKET.to_owned(), history: 1, ttl: None, replicas: 1, maximum_value_bytes: None };
        let started = Instant::now();
        // The connection is made in the background.
        while let Err(error) = store.create_bucket(&bucket).await {
            assert!(started.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        store
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_machinesd"));
        command.args(["run", "--config"]).arg(self.path("machinesd.toml")).stdin(Stdio::null());
        command
    }

    /// One pass, to the end; panics when it does not converge.
    pub fn once(&self) -> Duration {
        let started = Instant::now();
        let output = self.command().arg("--once").output().unwrap();
        let elapsed = started.elapsed();
        assert!(output.status.success(), "{}", text(&output));
        elapsed
    }

    /// Starts the daemon; its log is in the node's directory.
    pub fn start(&self) -> Daemon {
        let log = fs::File::create(self.path("log")).unwrap();
        let started = Instant::now();
        let child = self.command().stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Daemon { child, started, client: Client::new(&self.path("socket")) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // What is installed is read-only, which the temporary directory's own removal does not expect.
        _ = machines::fs::remove_tree(self.directory.path());
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A running daemon; stopped when dropped.
pub struct Daemon {
    child: Child,
    started: Instant,
    pub client: Client,
}

impl Daemon {
    /// Asks for the daemon's status, with `pause` between, until it is as awaited; says how long after the start of the
    /// process that was.
    pub async fn until(&self, pause: Duration, mut is_so: impl FnMut(&Value) -> bool) -> Duration {
        loop {
            if let Ok(status) = self.client.get("/v1/status").await
                && is_so(&status)
            {
                return self.started.elapsed();
            }
            assert!(self.started.elapsed() < PATIENCE, "the daemon's status is not as awaited after {PATIENCE:?}");
            tokio::time::sleep(pause).await;
        }
    }

    /// Resident memory in KiB.
    pub fn memory_kibibytes(&self) -> u64 {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Processor time of the daemon, and of the commands that it ran and that have ended, so far.
    pub fn processor_time(&self) -> (Duration, Duration) {
        let stat = fs::read_to_string(self.proc("stat")).unwrap();
        let fields: Vec<u64> = stat.rsplit(") ").next().unwrap().split(' ').map(|n| n.parse().unwrap_or(0)).collect();
        // proc_pid_stat(5): utime is field 14, cutime field 16, in ticks, of which Linux shows 100 a second.
        let ticks = |first: usize| Duration::from_millis((fields[first - 3] + fields[first - 2]) * 10);
        (ticks(14), ticks(16))
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string()).join(file)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            _ = kill_process(pid, Signal::TERM);
        }
        _ = self.child.wait();
    }
}

/// How many machines run, the built-in ones not counted.
pub fn running(status: &Value) -> usize {
    let reports = status["machines"].as_array().unwrap();
    let runs = |report: &&Value| report["source"] != "built-in" && report["machine"].is_object();
    reports.iter().filter(runs).count()
}
