//! What a running machine says of itself; a snapshot, published after every change.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use crate::names::{Label, MachineName, Version};

/// The state of a machine, with the fields that the reference reports and its watchers.
#[derive(Debug, Clone, Serialize)]
pub struct MachineStatus {
    pub name: MachineName,
    pub version: Version,
    pub state: Label,
    pub path: PathBuf,
    pub id: String,
    pub start_time: Timestamp,
    pub available_transitions: Vec<Label>,
    /// How many transitions it has made since its start.
    pub transitions: u64,
    /// What is wrong with the machine as a whole, for example data that can't be saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    pub watchers: Vec<WatcherStatus>,
}

/// The state of a watcher.
#[derive(Debug, Clone, Serialize)]
pub struct WatcherStatus {
    pub name: Label,
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it works in the machine's current state.
    pub active: bool,
    /// What it waits for in that state: other machines that are not in the states that it requires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Of the last check; `unknown` before the first.
    pub outcome: &'static str,
    pub checks: u64,
    /// How many of them found a fault.
    pub errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_check: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}
