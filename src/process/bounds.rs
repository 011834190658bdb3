//! How commands are bounded on this node: by a cgroup, where one is ours, or by rlimits and `/proc`; and what does not hold
//! then. The documents repeat this as a table.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cgroup::{CgroupError, Controller, Setting, Subtree};
use super::order::Form;
use super::reaper;

/// What commands are bounded by.
#[derive(Debug, Clone)]
pub struct Containment(Means);

#[derive(Debug, Clone)]
enum Means {
    Cgroup(Arc<Subtree>),
    Processes { because: String },
}

/// As status and `why` tell it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    pub by: By,
    /// The cgroup in which each command has one of its own.
    pub directory: Option<PathBuf>,
    /// Why it is no cgroup.
    pub because: Option<String>,
    /// What does not hold.
    pub gaps: Vec<Gap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    Cgroup,
    Processes,
}

/// A promise that is smaller than one might think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gap {
    Memory,
    Cpu,
    Tasks,
    Kill,
}

impl Gap {
    /// For a person.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Memory => {
                "memory counts what processes hold, looked at 5 times a second; not memfd, /dev/shm and caches"
            }
            Self::Cpu => "cpu does not count children that live shorter than 200ms and whose parent ignores their end",
            Self::Tasks => "tasks counts all processes of the user, and needs user",
            Self::Kill => "a command that runs as the daemon's own user can end its supervisor, and so escape the kill",
        }
    }
}

impl Default for Containment {
    fn default() -> Self {
        Self(Means::Processes { because: "none was asked for".to_owned() })
    }
}

impl Containment {
    /// Takes the cgroup that the setting means. What a daemon before this one did not leave there on purpose is ended.
    ///
    /// # Errors
    /// When a directory is set and can't be used. What is found by itself and can't be used is told, and passed over.
    pub fn establish(setting: &Setting) -> Result<Self, CgroupError> {
        let taken = match setting {
            Setting::Off => {
                return Ok(Self(Means::Processes { because: "[process] cgroup is \"off\"".to_owned() }));
            }
            Setting::Directory(directory) => Subtree::take(directory)?,
            Setting::Auto => match Subtree::own() {
                Ok(subtree) => subtree,
                Err(error) => {
                    let because = crate::errors::chain(&error);
                    if !matches!(error, CgroupError::NotDelegated(_)) {
                        tracing::warn!("commands are bounded without a cgroup: {because}");
                    }
                    return Ok(Self(Means::Processes { because }));
                }
            },
        };
        let (left, ended) = taken.inherited();
        reaper::inherit(left, ended);
        Ok(Self(Means::Cgroup(Arc::new(taken))))
    }

    pub(super) fn subtree(&self) -> Option<&Subtree> {
        match &self.0 {
            Means::Cgroup(subtree) => Some(subtree),
            Means::Processes { .. } => None,
        }
    }

    /// Whether the kernel itself keeps this limit for all that a command starts.
    pub(super) fn has(&self, controller: Controller) -> bool {
        self.subtree().is_some_and(|subtree| subtree.controllers.contains(&controller))
    }

    pub(super) fn form(&self) -> Form {
        if self.subtree().is_some() { Form::Become } else { Form::Supervise }
    }

    /// What holds here.
    pub fn bounds(&self) -> Bounds {
        let (by, directory, because) = match &self.0 {
            Means::Cgroup(subtree) => (By::Cgroup, Some(subtree.directory.clone()), None),
            Means::Processes { because } => (By::Processes, None, Some(because.clone())),
        };
        let gaps = [
            (Gap::Memory, !self.has(Controller::Memory)),
            (Gap::Cpu, by == By::Processes),
            (Gap::Tasks, !self.has(Controller::Pids)),
            (Gap::Kill, by == By::Processes),
        ];
        let gaps = gaps.into_iter().filter_map(|(gap, is_open)| is_open.then_some(gap)).collect();
        Bounds { by, directory, because, gaps }
    }
}
