//! What others ask of the daemon. The local API is HTTP and JSON on a Unix socket that only its owner may open: `server`
//! answers there, and `client` is what `machinesd status` and the like speak with. `listener` answers on TCP to
//! Prometheus and to those who turn switches; `metrics` is what Prometheus reads, there and in files.

mod accept;
pub mod client;
pub mod health;
mod http;
pub mod listener;
pub mod maintenance;
pub mod metrics;
mod places;
pub mod server;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::events::Deliveries;
use crate::host::Report;
use crate::journal::Record;
use crate::kv::Connection;
use crate::names::{Identity, MachineName};
use crate::node::Unusable;
use crate::process::Bounds;
use crate::spec::Trust;
use crate::sync::{Disbelief, MachineStatus, Maintenance, Pass, SyncStatus};

/// What `GET /v1/status` answers.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub identity: Identity,
    /// Of the daemon.
    pub version: &'static str,
    pub started: Timestamp,
    pub store: Connection,
    /// Why the facts can't be used; `None` when they can.
    pub facts: Option<Unusable>,
    /// What became of the events on their way to NATS.
    pub events: Deliveries,
    /// Whether all is well, and every reason why not.
    pub health: health::Health,
    /// Set while the node is to be left as it is.
    pub maintenance: Option<Maintenance>,
    /// `None` where no specification is followed.
    pub sync: Option<SyncStatus>,
    /// Whose specifications are taken; `None` as there.
    pub trust: Option<Trust>,
    /// How commands are bounded here.
    pub commands: Bounds,
    pub machines: Vec<Report>,
}

/// What `POST /v1/transition` takes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransitionRequest {
    /// Name, path or instance id.
    pub machine: String,
    pub event: String,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct TransitionAnswer {
    pub state: String,
}

/// What `POST /v1/sync` takes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncRequest {
    pub removals: RemovalConsent,
    #[serde(default)]
    pub maintenance: MaintenanceConsent,
}

/// Whether a pass may change things while the node is in maintenance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaintenanceConsent {
    #[default]
    Respected,
    Overridden,
}

/// What `POST /v1/maintenance` takes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum MaintenanceRequest {
    On {
        /// How long; `None`: until it is ended.
        seconds: Option<u64>,
        because: Option<String>,
    },
    Off,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct MaintenanceAnswer {
    pub before: Option<Maintenance>,
    pub now: Option<Maintenance>,
}

/// Whether a pass may make removals that are held otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RemovalConsent {
    Guarded,
    Allowed,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct SyncAnswer {
    pub converged: bool,
    /// What keeps the node from its desired state, one line each.
    pub complaints: Vec<String>,
}

impl From<&Pass> for SyncAnswer {
    fn from(pass: &Pass) -> Self {
        Self { converged: pass.converged(), complaints: pass.complaints() }
    }
}

/// What `GET /v1/why/NAME` answers: everything that is known of one machine.
#[derive(Debug, Serialize)]
pub struct Why {
    pub name: MachineName,
    pub follows: Follows,
    /// While it is set, nothing that follows from the specification is done.
    pub maintenance: Option<Maintenance>,
    pub sync: Option<MachineStatus>,
    /// Why the specification that installed it is not followed today.
    pub left_alone: Option<Disbelief>,
    pub host: Option<Report>,
    /// How its commands are bounded here; `None` when it runs none.
    pub commands: Option<Bounds>,
    /// What happened with it lately, newest first.
    pub journal: Vec<Record>,
}

/// Whether the node follows a specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Follows {
    Specification,
    Nothing,
}

/// Whether `GET /v1/events` ends after the last events (`?follow`: goes on with those that come).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    Recent,
    Follow,
}

/// What a refused request answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refusal {
    pub error: String,
}
