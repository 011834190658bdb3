//! The other side of a confined command: `machinesd exec-helper ORDER PROGRAM ARGUMENT…`. The daemon can't limit a child
//! between its fork and its start without unsafe code, so a fresh process limits itself and then becomes the command.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getpid, set_child_subreaper, setrlimit, umask};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde::{Deserialize, Serialize};

/// The hidden command of `machinesd`.
pub const COMMAND: &str = "exec-helper";

/// As shells end when a command can't be started.
pub const EXIT_CODE: u8 = 126;

/// A program that is open for writing can't be started; see `BUSY_PAUSE` of the daemon's side.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
const BUSY_ATTEMPTS: u32 = 10;

/// What the process makes of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub groups: Option<Vec<u32>>,
    pub umask: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub cpu_seconds: Option<u64>,
    /// Of the user's tasks, all together.
    pub tasks: Option<u64>,
}

/// Why the command did not start.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    #[error("{COMMAND} is for machinesd itself, and its order can't be read")]
    Order(#[source] serde_json::Error),
    #[error("could not set the limit of {limit}")]
    Limit { limit: &'static str, source: io::Error },
    #[error("could not become {what}")]
    Become { what: String, source: io::Error },
    #[error("could not adopt what the command leaves behind")]
    Adopt(#[source] io::Error),
    #[error("could not start {}", program.display())]
    Start { program: PathBuf, source: io::Error },
}

/// Carries out the order and becomes the command; comes back only when that fails. For a process with one thread.
#[must_use]
pub fn become_command(order: &str, command: Vec<OsString>) -> HelperError {
    let order: Order = match serde_json::from_str(order) {
        Ok(order) => order,
        Err(source) => return HelperError::Order(source),
    };
    if let Err(error) = order.carry_out() {
        return error;
    }
    let mut words = command.into_iter();
    let program = PathBuf::from(words.next().unwrap_or_default());
    let mut command = std::process::Command::new(&program);
    command.args(words);
    for _ in 1..BUSY_ATTEMPTS {
        let error = command.exec();
        if error.kind() != io::ErrorKind::ExecutableFileBusy {
            return HelperError::Start { program, source: error };
        }
        std::thread::sleep(BUSY_PAUSE);
    }
    HelperError::Start { source: command.exec(), program }
}

impl Order {
    fn carry_out(&self) -> Result<(), HelperError> {
        // The command keeps this over its start: what it orphans becomes its child, where the daemon finds it.
        set_child_subreaper(Some(getpid())).map_err(|error| HelperError::Adopt(error.into()))?;
        if let Some(mask) = self.umask {
            umask(Mode::from_raw_mode(mask));
        }
        // The data of a process, not its address space, of which many runtimes reserve far more than they use.
        limit("memory", Resource::Data, self.memory_bytes, self.memory_bytes)?;
        let after = self.cpu_seconds.map(|seconds| seconds.saturating_add(1));
        limit("cpu", Resource::Cpu, self.cpu_seconds, after)?;
        if self.cpu_seconds.is_some() {
            limit("core", Resource::Core, Some(0), Some(0))?;
        }
        // Before the user changes: only then may a limit be higher than the daemon's own.
        limit("tasks", Resource::Nproc, self.tasks, self.tasks)?;
        let refused = |what: String| move |error: rustix::io::Errno| HelperError::Become { what, source: error.into() };
        if let Some(groups) = &self.groups {
            let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            set_thread_groups(&groups).map_err(refused("a member of the user's groups".to_owned()))?;
        }
        if let Some(gid) = self.gid {
            let gid = Some(Gid::from_raw(gid));
            set_thread_res_gid(gid, gid, gid).map_err(refused(format!("group {}", self.gid.unwrap_or_default())))?;
        }
        if let Some(uid) = self.uid {
            let uid = Some(Uid::from_raw(uid));
            set_thread_res_uid(uid, uid, uid).map_err(refused(format!("user {}", self.uid.unwrap_or_default())))?;
        }
        Ok(())
    }
}

fn limit(name: &'static str, resource: Resource, soft: Option<u64>, hard: Option<u64>) -> Result<(), HelperError> {
    if soft.is_none() {
        return Ok(());
    }
    let new = Rlimit { current: soft, maximum: hard };
    setrlimit(resource, new).map_err(|error| HelperError::Limit { limit: name, source: error.into() })
}
