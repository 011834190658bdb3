//! What the daemon and its helper say to each other, as JSON on a socket that is the helper's standard input: one order, and
//! the helper's answers, a line each. Never in arguments or the environment: those of root's processes are for all to see,
//! and what an agent writes there would act in the helper.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The hidden command of `machinesd`.
pub const COMMAND: &str = "exec-helper";
/// Its one argument, for the form that stays above the command.
pub const SUPERVISE: &str = "supervise";

/// Longer orders are refused; the kernel takes no more than 2 MiB of arguments and environment.
pub const MAXIMUM_ORDER_BYTES: u64 = 16 * 1024 * 1024;
/// A helper says no more than this.
pub const MAXIMUM_ANSWER_BYTES: u64 = 64 * 1024;

/// What the helper does to its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// It becomes the command: something else, a cgroup, knows all that the command starts.
    Become,
    /// It stays above the command, with the daemon's rights, and adopts all that the command orphans, so that no descendant
    /// leaves the tree below it.
    Supervise,
}

/// A command to the last detail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub directory: PathBuf,
    /// Joined before anything else is done.
    pub cgroup: Option<PathBuf>,
    pub rights: Rights,
}

/// Whose rights the command has, and how much it may use; by default the daemon's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rights {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub groups: Option<Vec<u32>>,
    pub umask: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub cpu_seconds: Option<u64>,
    /// Of the user's tasks, all together.
    pub tasks: Option<u64>,
    pub privileges: Privileges,
}

/// Whether the command may get more rights than it starts with, from a set-user-id file for example.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Privileges {
    #[default]
    New,
    NoNew,
}

/// What a helper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// Everything is set; the start of the program is all that can still fail.
    Ready,
    Refused(Refusal),
    /// Of a supervisor: how the command ended.
    Ended(End),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    Code(i32),
    Signal(i32),
}

/// Why the command did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub step: Step,
    errno: Option<i32>,
    reason: String,
}

impl Refusal {
    pub(super) fn new(step: Step, error: &io::Error) -> Self {
        Self { step, errno: error.raw_os_error(), reason: error.to_string() }
    }

    pub(super) fn source(self) -> io::Error {
        self.errno.map_or_else(|| io::Error::other(self.reason), io::Error::from_raw_os_error)
    }
}

/// What a helper does, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    Order,
    Cgroup(PathBuf),
    Session,
    Adopt,
    Directory(PathBuf),
    Limit(String),
    Become(String),
    Privileges,
    Start,
}

/// What could not be done, as a verb phrase.
impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order => formatter.write_str("read its order"),
            Self::Cgroup(path) => write!(formatter, "join the cgroup {}", path.display()),
            Self::Session => formatter.write_str("leave the session of machinesd"),
            Self::Adopt => formatter.write_str("adopt what the command leaves behind"),
            Self::Directory(path) => write!(formatter, "enter the directory {}", path.display()),
            Self::Limit(limit) => write!(formatter, "set the limit of {limit}"),
            Self::Become(account) => write!(formatter, "become {account}"),
            Self::Privileges => formatter.write_str("give up new privileges"),
            Self::Start => formatter.write_str("start the command"),
        }
    }
}
