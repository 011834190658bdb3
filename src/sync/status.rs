//! What sync tells others: the outcome of one pass, and the status that operators read. Nothing is lost here: each
//! error of a pass is in one of these.
//!
//! In: steps and their results. Out: outcomes, status, sentences.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::maintenance::Maintenance;
use super::plan::{Action, HeldRemovals, Step};
use crate::digest::Sha256Digest;
use crate::kv::Connection;
use crate::names::Version;

/// The result of a pass in one word; the outcomes of the `machines` watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Something changed, and all is as it should be.
    Updated,
    /// All was as it should be.
    Unchanged,
    /// Something is not as it should be: refused, held or failed. Other machines may have been changed.
    Error,
}

/// What happened with one machine in a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineOutcome {
    /// The machine.
    pub name: String,
    /// What was to be done.
    pub action: Action,
    /// The error is a full sentence for people.
    pub result: Result<(), String>,
}

/// What a pass did.
#[derive(Debug, Clone)]
pub struct Pass {
    /// In one word.
    pub outcome: Outcome,
    /// SHA-256 of the payload of the specification that was followed. After a refusal this is the one accepted before.
    pub specification: Option<Sha256Digest>,
    /// Each machine, by name.
    pub machines: Vec<MachineOutcome>,
    /// Why the offered specification was not accepted.
    pub refused: Option<String>,
    /// Why the one accepted before is not followed either; then nothing is.
    pub left_alone: Option<Disbelief>,
    /// What kept the pass itself from its work, such as a full disk under the state database.
    pub problem: Option<String>,
    /// Why nothing was done at all: the node is in maintenance.
    pub maintenance: Option<String>,
    /// Set when removals are held.
    pub held: Option<HeldRemovals>,
    /// When to call again because a step failed; `None` when nothing waits.
    pub retry_after: Option<Duration>,
}

impl Pass {
    /// One that did nothing.
    pub(super) fn held_by(maintenance: &Maintenance) -> Self {
        Self {
            outcome: Outcome::Unchanged,
            specification: None,
            machines: Vec::new(),
            refused: None,
            left_alone: None,
            problem: None,
            maintenance: Some(maintenance.to_string()),
            held: None,
            retry_after: None,
        }
    }

    /// Whether the node is as the offered specification wants it: nothing refused, held or failed.
    pub fn converged(&self) -> bool {
        let settled =
            |machine: &MachineOutcome| machine.result.is_ok() && !matches!(machine.action, Action::Hold { .. });
        let hindrances =
            [self.refused.is_some(), self.left_alone.is_some(), self.problem.is_some(), self.maintenance.is_some()];
        !hindrances.contains(&true) && self.machines.iter().all(settled)
    }

    /// Why not, in one line each; empty when converged.
    pub fn complaints(&self) -> Vec<String> {
        let refused = self.refused.iter().map(|why| format!("the specification was refused: {why}"));
        let machines = self.machines.iter().filter_map(|machine| match (&machine.result, &machine.action) {
            (Err(error), _) => Some(error.clone()),
            (Ok(()), Action::Hold { reason }) => Some(format!("{:?} is held as it is: {reason}", machine.name)),
            _ => None,
        });
        let left_alone = self.left_alone.iter().map(Disbelief::sentence);
        refused.chain(left_alone).chain(self.maintenance.clone()).chain(self.problem.clone()).chain(machines).collect()
    }
}

/// Why there is nothing to reconcile with. `mms` must be told of a store that is not NATS.
pub fn nothing_published(bucket: &str, key: &str, store: &Connection) -> String {
    let store = if store.url.starts_with("local:") { format!(" --kv {}", store.url) } else { String::new() };
    format!("bucket {bucket:?} has no key {key:?}; publish a specification with `mms kv put {bucket} {key}{store}`")
}

/// How a machine stands, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// As it should be.
    Installed,
    /// Left as it is although something should be done; `reason` says why.
    Held,
    /// The last step failed; `last_error` says why. What was installed before still is.
    Failed,
    /// Removed.
    Removed,
    /// Nothing to do here; `reason` says why.
    Skipped,
}

/// How one machine stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// The machine.
    pub name: String,
    /// In one word.
    pub state: MachineState,
    /// What the last pass meant to do: install, upgrade, repair, remove, keep, skip, hold.
    pub action: String,
    /// Of what is installed, when its definition names one.
    pub version: Option<Version>,
    /// SHA-256 of the archive that is installed.
    pub digest: Option<Sha256Digest>,
    /// Since when it stands so: the same state with the same content.
    pub since: Timestamp,
    /// Why it is held or skipped.
    pub reason: Option<String>,
    /// Why the last step failed; gone when one succeeds.
    pub last_error: Option<String>,
    /// Failed attempts in a row.
    pub failures: u32,
    /// When a step was last tried.
    pub last_attempt: Option<Timestamp>,
    /// When it will be tried again.
    pub next_retry: Option<Timestamp>,
}

/// What a step led to, for [`MachineStatus::after`].
pub(super) struct Observed<'a> {
    pub step: &'a Step,
    pub result: &'a Result<(), String>,
    /// What is installed now.
    pub digest: Option<Sha256Digest>,
    pub version: Option<Version>,
    pub attempted: bool,
    pub failures: u32,
    pub retry_after: Option<Duration>,
    pub now: Timestamp,
}

impl MachineStatus {
    /// How a machine stands after a step, given how it stood before.
    pub(super) fn after(previous: Option<&Self>, observed: Observed<'_>) -> Self {
        let Observed { step, result, now, .. } = observed;
        let state = match (result, &step.action) {
            (Err(_), _) => MachineState::Failed,
            (Ok(()), Action::Hold { .. }) => MachineState::Held,
            (Ok(()), Action::Skip { .. }) => MachineState::Skipped,
            (Ok(()), Action::Remove) => MachineState::Removed,
            (Ok(()), _) => MachineState::Installed,
        };
        let reason = match &step.action {
            Action::Hold { reason } | Action::Skip { reason } => Some(reason.clone()),
            _ => None,
        };
        // A repair starts the time anew: the machine has not been sound all the while.
        let same = |before: &&Self| {
            before.state == state && before.digest == observed.digest && !(observed.attempted && result.is_ok())
        };
        Self {
            name: step.name.clone(),
            state,
            action: step.action.word().to_owned(),
            version: observed.version,
            digest: observed.digest,
            since: previous.filter(same).map_or(now, |before| before.since),
            reason,
            last_error: result.as_ref().err().cloned(),
            failures: observed.failures,
            last_attempt: if observed.attempted { Some(now) } else { previous.and_then(|before| before.last_attempt) },
            next_retry: observed.retry_after.and_then(|wait| now.checked_add(wait).ok()),
        }
    }

    #[cfg(test)]
    pub(super) fn example(name: &str, now: Timestamp) -> Self {
        let step = Step { name: name.to_owned(), action: Action::Install };
        let version = Some(Version::new("1.2.0").unwrap());
        let digest = Some(Sha256Digest::of(b"a"));
        let (attempted, failures, retry_after) = (true, 0, None);
        let result = &Ok(());
        Self::after(None, Observed { step: &step, result, digest, version, attempted, failures, retry_after, now })
    }
}

/// Whether what was accepted is followed today. It is verified again with the keys of the day before each use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Standing {
    /// No pass has looked since the start.
    #[default]
    NotJudged,
    /// The node is kept as it says.
    Followed,
    /// What it installed runs on; nothing is installed, upgraded, repaired or removed for it.
    LeftAlone {
        /// Since when this is so.
        since: Timestamp,
        /// Why.
        why: Disbelief,
    },
}

/// Why what was accepted before is not followed today.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum Disbelief {
    /// The key was trusted when it was accepted.
    #[error("it was signed by {key}, which is not trusted today")]
    KeyNotTrusted {
        /// The public key, as hexadecimal digits.
        key: String,
    },
    /// Nobody's signature was asked for when it was accepted.
    #[error("it was accepted unsigned, which is not allowed today")]
    Unsigned,
    /// For another reason, such as limits that are tighter now.
    #[error("it does not hold today: {message}")]
    Invalid {
        /// For people.
        message: String,
    },
}

impl Disbelief {
    /// What an operator has to know of it, in a sentence that names the specification.
    pub fn sentence(&self) -> String {
        format!(
            "the specification accepted before is left alone: {self}; what it installed runs on, and is neither \
             repaired nor removed"
        )
    }
}

/// The specification that was accepted last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpecificationStatus {
    /// SHA-256 of its payload.
    pub digest: Sha256Digest,
    /// The public key that signed it; `None` for an unsigned one.
    pub signed_by: Option<String>,
    /// When this node took it.
    pub accepted_at: Timestamp,
    /// Whether it is followed today.
    pub standing: Standing,
}

/// What this node remembered is gone: its state database was damaged, or was taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LostMemory {
    /// Since when this is known.
    pub since: Timestamp,
    /// What happened, and where the damaged file is.
    pub detail: String,
}

impl LostMemory {
    /// For people, with what it means.
    pub fn sentence(&self) -> String {
        format!(
            "{}; what is installed is verified as before and runs on, and nothing is installed, repaired or removed \
             until a specification is received and accepted again",
            self.detail
        )
    }
}

/// A specification that was offered last and is not followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Why.
    pub message: String,
    /// Since when this is so.
    pub since: Timestamp,
}

/// How sync stands; what `machinesd status` shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SyncStatus {
    /// What was accepted; `None` before the first good specification.
    pub specification: Option<SpecificationStatus>,
    /// Set while the last offered specification is a refused one.
    pub refused: Option<Refusal>,
    /// What kept the last pass from its work.
    pub problem: Option<String>,
    /// Set from a loss until a specification is accepted again.
    pub lost_memory: Option<LostMemory>,
    /// Set when removals are held.
    pub held_removals: Option<HeldRemovals>,
    /// When the last pass ended.
    pub last_pass: Option<Timestamp>,
    /// Its outcome.
    pub last_outcome: Option<Outcome>,
    /// Each machine, by name.
    pub machines: BTreeMap<String, MachineStatus>,
}

impl SyncStatus {
    /// Why what was accepted is not followed today.
    pub fn left_alone(&self) -> Option<&Disbelief> {
        match &self.specification.as_ref()?.standing {
            Standing::LeftAlone { why, .. } => Some(why),
            Standing::NotJudged | Standing::Followed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "the cases read better")]
    fn after(before: Option<&MachineStatus>, action: Action, result: Result<(), String>, second: i64) -> MachineStatus {
        let step = Step { name: "facts".to_owned(), action };
        let attempted = step.action.changes_the_node();
        let observed = Observed {
            step: &step,
            result: &result,
            digest: Some(Sha256Digest::of(b"a")),
            version: None,
            attempted,
            failures: u32::from(result.is_err()),
            retry_after: result.is_err().then_some(Duration::from_secs(4)),
            now: Timestamp::from_second(second).unwrap(),
        };
        MachineStatus::after(before, observed)
    }

    #[test]
    fn since_moves_only_when_the_state_or_the_content_does() {
        let installed = after(None, Action::Install, Ok(()), 10);
        let kept = after(Some(&installed), Action::Keep, Ok(()), 20);
        assert_eq!((kept.state, kept.since.as_second()), (MachineState::Installed, 10));
        assert_eq!(kept.last_attempt, Some(installed.since));
        let repair = Action::Repair { differences: vec!["\"a\" was changed".to_owned()] };
        let failed = after(Some(&kept), repair.clone(), Err("could not repair".to_owned()), 30);
        assert_eq!((failed.state, failed.since.as_second()), (MachineState::Failed, 30));
        assert_eq!(failed.last_error.as_deref(), Some("could not repair"));
        assert_eq!(failed.next_retry.map(Timestamp::as_second), Some(34));
        let repaired = after(Some(&failed), repair, Ok(()), 40);
        assert_eq!((repaired.state, repaired.since.as_second()), (MachineState::Installed, 40));
        assert_eq!((repaired.last_error, repaired.failures, repaired.next_retry), (None, 0, None));
    }

    #[test]
    fn a_held_machine_is_not_converged_and_says_why() {
        let hold = Action::Hold { reason: "its match expression failed: unknown".to_owned() };
        let machine = MachineOutcome { name: "facts".to_owned(), action: hold, result: Ok(()) };
        let mut pass = Pass {
            outcome: Outcome::Error,
            specification: None,
            machines: vec![machine],
            refused: Some("bad signature".to_owned()),
            left_alone: None,
            problem: None,
            maintenance: None,
            held: None,
            retry_after: None,
        };
        assert!(!pass.converged());
        let expected = [
            "the specification was refused: bad signature",
            "\"facts\" is held as it is: its match expression failed: unknown",
        ];
        assert_eq!(pass.complaints(), expected);
        pass.machines.clear();
        pass.refused = None;
        assert!(pass.converged() && pass.complaints().is_empty());
    }
}
