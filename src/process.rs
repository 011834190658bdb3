//! Commands that watchers run. One run of a command: its environment, its output within bounds, its time limit, and its end with all it started.

mod bounds;
mod cgroup;
mod confine;
mod group;
pub mod helper;
mod lines;
pub mod orphans;
mod order;
mod reaper;
mod run;
mod scratch;
mod start;
mod tree;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use bounds::{Bounds, By, Containment, Gap};
pub use cgroup::{CgroupError, Setting};
pub use confine::{Account, ConfineError, Confinement, Limits};
use scratch::Scratch;

/// Of each output stream this much is kept, in bytes; the rest is read and thrown away, so that the command goes on.
pub const MAXIMUM_OUTPUT_BYTES: usize = 1024 * 1024;

/// The program that runs, also after an update has replaced its file.
const OWN_PROGRAM: &str = "/proc/self/exe";

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
    #[error("{name:?} is not looked for: PATH has more than {maximum} directories; shorten it, or name a path")]
    ManyPlaces { name: String, maximum: usize },
    #[error("could not start {}", path.display())]
    Start { path: PathBuf, source: std::io::Error },
    #[error("could not {step} for {}", path.display())]
    Prepare { step: String, path: PathBuf, source: std::io::Error },
    #[error("the helper of machinesd did not do its work")]
    Helper(#[source] std::io::Error),
    #[error("could not make a cgroup for the command")]
    Cgroup(#[from] CgroupError),
    #[error("it was not started, as the thread that would end it could not be")]
    NoEnd(#[source] std::io::Error),
    #[error("could not wait for its end")]
    Wait(#[source] std::io::Error),
    #[error(transparent)]
    Confine(#[from] ConfineError),
}

/// Runs commands; a scenario test has another answer than the system.
#[async_trait]
pub trait Commands: Send + Sync {
    /// Runs the command to its end, or to its time limit. Dropping the future ends it.
    ///
    /// # Errors
    /// When it could not be started.
    async fn run(&self, command: Command) -> Result<Ended, ProcessError>;

    /// Waits until nothing is left of the commands whose futures were dropped.
    async fn settled(&self) {}
}

/// The commands of this system.
#[derive(Debug, Clone)]
pub struct System {
    helper: PathBuf,
    containment: Containment,
    scratch: Arc<Scratch>,
}

impl System {
    /// With another `machinesd` as the helper that starts commands than the program that runs.
    pub fn with_helper(helper: PathBuf) -> Self {
        Self { helper, containment: Containment::default(), scratch: Arc::default() }
    }

    /// With commands that are bounded so.
    #[must_use]
    pub fn contained(self, containment: Containment) -> Self {
        Self { containment, ..self }
    }

    /// With the files of commands in this directory.
    #[must_use]
    pub fn files_in(self, place: PathBuf) -> Self {
        Self { scratch: Arc::new(Scratch::in_places(vec![place])), ..self }
    }

    /// How commands are bounded.
    pub fn bounds(&self) -> Bounds {
        self.containment.bounds()
    }

    /// Removes the files that killed daemons left.
    pub fn clean(&self) {
        self.scratch.clean();
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
        command.run(self).await
    }

    async fn settled(&self) {
        reaper::settled().await;
    }
}
