//! A node to attack: its directories and settings, and a real `machinesd` in them, which an attack can't take the whole
//! machine with.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::observer::{Asking, Observer, ask};

/// Longest wait for something that is no part of an attack.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of address space, so that an attack on memory does not take this machine's.
const ADDRESS_SPACE_KIBIBYTES: u32 = 4 * 1024 * 1024;
const DESCRIPTORS: u32 = 4_096;

/// The two programs of one build.
pub struct Program {
    machinesd: PathBuf,
    mms: PathBuf,
}

impl Program {
    pub fn at(machinesd: &Path) -> Self {
        let machinesd = fs::canonicalize(machinesd).unwrap_or_else(|error| panic!("{}: {error}", machinesd.display()));
        Self { mms: machinesd.with_file_name("mms"), machinesd }
    }

    /// Which build this is, and how busy this machine: both show in the figures.
    pub fn describe(&self) -> String {
        let version = output(Command::new(&self.machinesd).arg("--version"));
        let digest = machines::digest::Sha256Digest::of(&fs::read(&self.machinesd).unwrap()).to_string();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC");
        format!("{} (sha256 {}…), {now}, {cores} cores, load {load}", version.trim(), &digest[..12])
    }

    /// Runs `mms` to its good end.
    pub fn mms(&self, words: &[&str], input: &[u8]) -> String {
        let mut command = Command::new(&self.mms);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.mms.display()));
        child.stdin.take().unwrap().write_all(input).unwrap();
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success(), "mms {words:?}: {}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8(ended.stdout).unwrap()
    }
}

fn output(command: &mut Command) -> String {
    String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
}

/// The directories of a node; gone when dropped.
pub struct Node<'a> {
    pub program: &'a Program,
    directory: tempfile::TempDir,
    descriptors: u32,
}

impl<'a> Node<'a> {
    /// A node with these settings: lines of TOML for the tables named in them. Without any it follows nothing.
    pub fn new(program: &'a Program, settings: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("attack-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let root = directory.path().display();
        let settings = if settings.is_empty() { "[sync]\nenabled = false\n" } else { settings };
        let configuration = format!(
            "identity = \"node.example.net\"\nstate_dir = \"{root}/state\"\nlocal_dir = \"{root}/local\"\nfacts = []\n\
             [control]\nsocket = \"{root}/socket\"\n[log]\nlevel = \"info\"\n{settings}"
        );
        fs::write(directory.path().join("machinesd.toml"), configuration).unwrap();
        fs::create_dir(directory.path().join("local")).unwrap();
        Self { program, directory, descriptors: DESCRIPTORS }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Lets the daemon have no more descriptors than this.
    pub fn limit_descriptors(&mut self, descriptors: u32) {
        self.descriptors = descriptors;
    }

    /// Gives the node an agent of its own; it begins in state RUN.
    pub fn agent(&self, name: &str, watchers: &str) {
        let directory = self.path("local").join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("machine.yaml"), definition(name, watchers)).unwrap();
    }

    pub fn log_lines(&self) -> usize {
        fs::read_to_string(self.path("log")).unwrap_or_default().lines().count()
    }

    /// Starts the daemon and waits until it has answered and settled.
    pub fn start(&self) -> Daemon {
        self.start_under(&[])
    }

    /// The same, by another program that starts it, for example one that makes a namespace.
    pub fn start_under(&self, wrapper: &[&str]) -> Daemon {
        let daemon = self.launch(wrapper);
        daemon.unwrap_or_else(|| panic!("it does not start: {}", fs::read_to_string(self.path("log")).unwrap()))
    }

    /// Starts the daemon; `None` when it ends instead of answering.
    pub fn try_start(&self) -> Option<Daemon> {
        self.launch(&[])
    }

    fn launch(&self, wrapper: &[&str]) -> Option<Daemon> {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let limits = format!("ulimit -v {ADDRESS_SPACE_KIBIBYTES} -n {}; exec \"$@\"", self.descriptors);
        let mut command = Command::new("bash");
        command.args(["-c", &limits, "bash"]).args(wrapper).arg(&self.program.machinesd);
        command.args(["run", "--config"]).arg(self.path("machinesd.toml"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut daemon = Daemon { child, socket: self.path("socket") };
        daemon.until(PATIENCE, |_| true)?;
        std::thread::sleep(Duration::from_millis(700));
        Some(daemon)
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // What is installed is read-only, which the temporary directory's own removal does not expect.
        _ = machines::fs::remove_tree(self.directory.path());
    }
}

/// A machine that is in RUN until it is told to `stop`, and again after `go`.
pub fn definition(name: &str, watchers: &str) -> String {
    let mut text = format!("name: {name}\nversion: 1.0.0\ninitial_state: RUN\ntransitions:\n");
    text += "  - {name: stop, from: [RUN], destination: STOPPED}\n  - {name: go, from: [STOPPED], destination: RUN}\n";
    write!(text, "watchers:\n{watchers}").unwrap();
    text
}

/// A running daemon; stopped when dropped.
pub struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    /// The daemon's process: our child, or where that only starts it, its child.
    pub fn process(&self) -> u32 {
        let id = self.child.id();
        let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        if name.trim() == "machinesd" {
            return id;
        }
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        children.split_whitespace().next().and_then(|child| child.parse().ok()).unwrap_or(id)
    }

    pub fn observe(&self, asking: Asking) -> Observer {
        Observer::start(self.process(), &self.socket, asking)
    }

    /// How it ended, when it has: what an attack is after.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().unwrap()?;
        Some(match status.signal() {
            Some(signal) => format!("**the daemon was ended by signal {signal}**"),
            None => format!("**the daemon ended: {status}**"),
        })
    }

    /// Waits until the status is as wanted; how long that took. `None` when it was not in that time, or the daemon ended.
    pub fn until(&mut self, patience: Duration, mut wanted: impl FnMut(&Value) -> bool) -> Option<Duration> {
        let begun = Instant::now();
        while begun.elapsed() < patience && self.ended().is_none() {
            if self.status().is_some_and(|status| wanted(&status)) {
                return Some(begun.elapsed());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    pub fn status(&self) -> Option<Value> {
        serde_json::from_slice(&ask(&self.socket).ok()?).ok()
    }

    /// Why an agent does not run, or the last error of its first watcher, cut to what fits a table.
    pub fn trouble(&self, name: &str) -> Option<String> {
        let status = self.status()?;
        let report = status["machines"].as_array()?.iter().find(|report| {
            report["machine"]["name"] == name || report["path"].as_str().is_some_and(|path| path.ends_with(name))
        })?;
        let problem = report["problem"].as_str().or_else(|| report["machine"]["watchers"][0]["last_error"].as_str())?;
        let problem = problem.rsplit_once("machine.yaml:").map_or(problem, |(_, fault)| fault);
        let cut: String = problem.chars().take(110).collect();
        Some(if cut.len() < problem.len() { format!("{cut}…") } else { cut })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.process()).ok().and_then(Pid::from_raw) {
            _ = kill_process(pid, Signal::TERM);
        }
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && self.child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(10));
        }
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
