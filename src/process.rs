//! Commands that watchers run. One run of a command: its environment, its output within bounds, its time limit, and its end with all it started.

#![expect(clippy::disallowed_methods, reason = "the one place that starts processes, each in a group of its own")]

mod confine;
pub mod helper;
mod lines;
mod tree;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::duration;

use confine::Resolved;
pub use confine::{Account, ConfineError, Confinement, Limits};
use lines::Lines;
use tree::Family;

/// Of each output stream this much is kept, in bytes; the rest is read and thrown away, so that the command goes on.
pub const MAXIMUM_OUTPUT_BYTES: usize = 1024 * 1024;

/// Between asking a command to end and killing it.
const GRACE: Duration = Duration::from_millis(500);

/// After the command has ended, a grandchild may still hold its output open; that long we read on.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Starting a program that is open for writing fails. Another command that is being started holds, for a moment, every
/// file that the daemon is writing, so a program that was just installed may need a few attempts, this far apart.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
const BUSY_ATTEMPTS: u32 = 10;

/// How often what a limited command uses is added up.
const METER_INTERVAL: Duration = Duration::from_millis(200);

/// The program that runs, also after an update has replaced its file.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// What a command keeps of the daemon's environment, besides `PATH`. Everything else stays here: the daemon's may hold
/// the password of the store.
const KEPT_VARIABLES: [&str; 8] = ["HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"];

/// What happens to a running command when its machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remains {
    Kill,
    Leave,
}

/// A command, ready to run.
pub struct Command {
    pub words: Vec<String>,
    pub directory: PathBuf,
    pub data_directory: PathBuf,
    pub environment: Vec<(String, String)>,
    pub watcher: String,
    pub machine: String,
    /// JSON, for the file that `WATCHER_DATA` names.
    pub data: String,
    /// JSON, for the file that `WATCHER_FACTS` names.
    pub facts: String,
    pub timeout: Duration,
    pub remains: Remains,
    pub confinement: Confinement,
}

/// How a command ended.
pub struct Ended {
    /// Why it counts as failed; `None` for exit code 0.
    pub failure: Option<String>,
    /// `None` when a signal ended it, ours at the time limit included.
    pub exit_code: Option<i32>,
    pub standard_output: Vec<u8>,
    /// Standard output, then standard error.
    pub output: Vec<u8>,
    pub truncated: bool,
}

/// A command that could not be run at all.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("could not write the files for WATCHER_DATA and WATCHER_FACTS")]
    Files(#[source] std::io::Error),
    #[error("could not make {}", path.display())]
    DataDirectory { path: PathBuf, source: crate::fs::FileError },
    #[error("there is no command {name:?} in the machine's directory or on PATH ({path})")]
    NotFound { name: String, path: String },
    #[error("could not start {}", path.display())]
    Start { path: PathBuf, source: std::io::Error },
    #[error("could not wait for its end")]
    Wait(#[source] std::io::Error),
    #[error(transparent)]
    Confine(#[from] ConfineError),
}

/// Kills all that a command has started when dropped, so that a cancelled check leaves nothing running.
struct Group {
    running: Option<(Pid, Arc<Mutex<Family>>)>,
    remains: Remains,
}

impl Group {
    fn new(leader: Option<Pid>, mark: &Path, remains: Remains) -> Self {
        let running = leader.map(|leader| (leader, Arc::new(Mutex::new(Family::new(leader, mark)))));
        Self { running, remains }
    }

    fn signal(&self, signal: Signal) {
        if let Some((leader, _)) = &self.running {
            _ = kill_process_group(*leader, signal);
        }
    }

    /// Works on the family where blocking is allowed: reading `/proc` takes milliseconds.
    async fn family<T: Send + 'static>(&self, work: impl FnOnce(&mut Family) -> T + Send + 'static) -> Option<T> {
        let family = Arc::clone(&self.running.as_ref()?.1);
        let work = move || work(&mut family.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(work).await.ok()
    }

    /// Waits until the family uses more than it may, and says what.
    async fn excess(&self, limits: Limits) -> String {
        if !limits.are_set() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(METER_INTERVAL).await;
            if let Some(Some(excess)) = self.family(move |family| family.excess(&limits)).await {
                return excess;
            }
        }
    }

    /// The command ended in time; what it left in the background on purpose goes on.
    fn release(&mut self) {
        self.running = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.remains == Remains::Kill
            && let Some((_, family)) = self.running.take()
        {
            family.lock().unwrap_or_else(PoisonError::into_inner).kill();
        }
    }
}

/// Where files live that no one needs after a run: in memory, where there is such a place. Making and removing two files
/// on a disk costs more than all else that we do for a run, and what a machine keeps secret need not get there.
fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let given = std::env::var("RUNTIME_DIRECTORY").unwrap_or_default();
        let places = given.split(':').chain(["/dev/shm"]).map(PathBuf::from);
        let usable = |place: &PathBuf| place.is_absolute() && tempfile::tempfile_in(place).is_ok();
        places.into_iter().find(usable).unwrap_or_else(std::env::temp_dir)
    })
}

/// Runs commands; a scenario test has another answer than the system.
#[async_trait]
pub trait Commands: Send + Sync {
    /// Runs the command to its end, or to its time limit. Dropping the future ends it.
    ///
    /// # Errors
    /// When it could not be started.
    async fn run(&self, command: Command) -> Result<Ended, ProcessError>;
}

/// The commands of this system.
#[derive(Debug, Clone)]
pub struct System {
    helper: PathBuf,
}

impl System {
    /// With another `machinesd` as the helper that confines commands than the program that runs.
    pub fn with_helper(helper: PathBuf) -> Self {
        Self { helper }
    }
}

impl Default for System {
    fn default() -> Self {
        Self::with_helper(PathBuf::from(OWN_PROGRAM))
    }
}

#[async_trait]
impl Commands for System {
    async fn run(&self, command: Command) -> Result<Ended, ProcessError> {
        command.run(&self.helper).await
    }
}

/// The two JSON files; gone when dropped.
struct Files {
    data: NamedTempFile,
    facts: NamedTempFile,
}

impl Files {
    /// Readable for the daemon's user, or for the owner alone.
    fn write(data: &str, facts: &str, owner: Option<(u32, u32)>) -> std::io::Result<Self> {
        let file = |content: &str| {
            let mut file = tempfile::Builder::new().prefix("machines-").suffix(".json").tempfile_in(directory())?;
            file.write_all(content.as_bytes())?;
            if let Some((user, group)) = owner {
                std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
            }
            Ok::<_, std::io::Error>(file)
        };
        Ok(Self { data: file(data)?, facts: file(facts)? })
    }
}

impl Command {
    async fn run(self, helper: &Path) -> Result<Ended, ProcessError> {
        let (data, facts, directory) = (self.data.clone(), self.facts.clone(), self.data_directory.clone());
        let confinement = self.confinement.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            let confined = confinement.resolve()?;
            crate::fs::create_directory(&directory, 0o755)
                .map_err(|source| ProcessError::DataDirectory { path: directory.clone(), source })?;
            let owner = confined.as_ref().and_then(|confined| confined.owner);
            let files = Files::write(&data, &facts, owner).map_err(ProcessError::Files)?;
            Ok::<_, ProcessError>((files, confined))
        });
        let (files, confined) = prepared.await.map_err(|error| ProcessError::Files(std::io::Error::other(error)))??;
        let mut command = self.prepare(&files, confined.as_ref(), helper)?;
        let program = PathBuf::from(command.as_std().get_program());
        let mut child = spawn(&mut command).await.map_err(|source| ProcessError::Start { path: program, source })?;
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let mut group = Group::new(leader, files.data.path(), self.remains);
        let (mut standard_output, mut standard_error) = (Kept::default(), Kept::default());
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let lines = || Lines::new(&self.machine, &self.watcher);
        let (failure, exit_code) = {
            let reading = async {
                tokio::join!(standard_output.fill(out, lines()), standard_error.fill(err, lines()));
            };
            tokio::pin!(reading);
            let mut read = false;
            let deadline = tokio::time::sleep(self.timeout);
            tokio::pin!(deadline);
            let ended = {
                let excess = group.excess(self.confinement.limits);
                tokio::pin!(excess);
                loop {
                    tokio::select! {
                        status = child.wait() => break Ok(status.map_err(ProcessError::Wait)?),
                        () = &mut reading, if !read => read = true,
                        excess = &mut excess => break Err(excess),
                        () = &mut deadline => {
                            break Err(format!("took longer than {}", duration::format(self.timeout)));
                        }
                    }
                }
            };
            match ended {
                Ok(status) => {
                    group.release();
                    if !read {
                        _ = tokio::time::timeout(LAST_WORDS, &mut reading).await;
                    }
                    (self.describe(status), status.code())
                }
                Err(reason) => {
                    group.family(Family::look).await;
                    group.signal(Signal::TERM);
                    _ = tokio::time::timeout(GRACE, async { tokio::join!(child.wait(), &mut reading) }).await;
                    group.family(Family::kill).await;
                    _ = child.wait().await;
                    group.release();
                    (Some(format!("{reason} and was killed")), None)
                }
            }
        };
        let truncated = standard_output.truncated;
        let mut output = standard_output.bytes.clone();
        output.extend_from_slice(&standard_error.bytes);
        Ok(Ended { failure, exit_code, standard_output: standard_output.bytes, output, truncated })
    }

    fn prepare(
        &self,
        files: &Files,
        confined: Option<&Resolved>,
        helper: &Path,
    ) -> Result<tokio::process::Command, ProcessError> {
        let mut search = std::env::var_os("PATH").unwrap_or_default();
        if !search.is_empty() {
            search.push(":");
        }
        search.push(&self.directory);
        let search = match self.environment.iter().rev().find(|(name, _)| name == "PATH") {
            Some((_, path)) => path.into(),
            None => search,
        };
        let (name, arguments) = self.words.split_first().ok_or_else(|| ProcessError::NotFound {
            name: String::new(),
            path: search.to_string_lossy().into_owned(),
        })?;
        let program = find(name, &self.directory, &search).ok_or_else(|| ProcessError::NotFound {
            name: name.clone(),
            path: search.to_string_lossy().into_owned(),
        })?;
        let mut command = match confined {
            None => tokio::process::Command::new(program),
            Some(confined) => {
                let order = serde_json::to_string(&confined.order)
                    .map_err(|source| ProcessError::Files(std::io::Error::other(source)))?;
                let mut command = tokio::process::Command::new(helper);
                command.args([OsString::from(helper::COMMAND), order.into(), program.into()]);
                command
            }
        };
        let account = confined.map(|confined| confined.environment.as_slice()).unwrap_or_default();
        command
            .args(arguments)
            .current_dir(&self.directory)
            .env_clear()
            .envs(KEPT_VARIABLES.iter().filter_map(|name| std::env::var_os(name).map(|value| (name, value))))
            .envs(account.iter().map(|(name, value)| (name, value)))
            .env("PATH", &search)
            .env("MACHINE_WATCHER_NAME", &self.watcher)
            .env("MACHINE_NAME", &self.machine)
            .env("MACHINE_DATA_DIR", &self.data_directory)
            .env("WATCHER_DATA", files.data.path())
            .env("WATCHER_FACTS", files.facts.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        Ok(command)
    }

    /// Why an exit status counts as failed.
    fn describe(&self, status: std::process::ExitStatus) -> Option<String> {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(0), _) => None,
            (Some(code), _) => Some(format!("exited with code {code}")),
            (None, Some(signal)) if signal == Signal::XCPU.as_raw() => {
                let limit = self.confinement.limits.cpu.map_or_else(|| "the system's".to_owned(), duration::format);
                Some(format!("used more processor time than its limit of {limit} and was ended"))
            }
            (None, Some(signal)) => Some(format!("was ended by signal {signal}")),
            (None, None) => Some("ended without an exit code".to_owned()),
        }
    }
}

async fn spawn(command: &mut tokio::process::Command) -> std::io::Result<tokio::process::Child> {
    let mut attempts = 1;
    loop {
        match command.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy && attempts < BUSY_ATTEMPTS => {
                attempts += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            result => return result,
        }
    }
}

/// Resolves a program as a shell would in `directory`, without depending on the daemon's own directory.
fn find(name: &str, directory: &Path, search: &std::ffi::OsStr) -> Option<PathBuf> {
    if name.contains('/') {
        let path = directory.join(name);
        return path.exists().then_some(path);
    }
    std::env::split_paths(search).map(|path| directory.join(path).join(name)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The first part of an output stream.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Kept {
    async fn fill(&mut self, reader: Option<impl AsyncRead + Unpin>, mut lines: Option<Lines<'_>>) {
        let Some(mut reader) = reader else { return };
        let mut buffer = vec![0u8; 16 * 1024];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            let room = MAXIMUM_OUTPUT_BYTES - self.bytes.len();
            self.truncated |= count > room;
            self.bytes.extend_from_slice(buffer.get(..count.min(room)).unwrap_or_default());
            if let Some(lines) = &mut lines {
                lines.take(buffer.get(..count).unwrap_or_default());
            }
        }
        if let Some(lines) = &mut lines {
            lines.end();
        }
    }
}
