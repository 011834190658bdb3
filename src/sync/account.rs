//! The account of a pass: how each machine stands now, what is journalled, what the status says; and the store tidied.
//!
//! In: the steps with their results. Out: a [`Pass`], the status, journal records.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::memory::{Kind, Memory, Stored};
use super::plan::Action;
use super::reconcile::{Done, PassError, Prepared};
use super::state::{Accepted, CopyRecord};
use super::status::{MachineOutcome, MachineState, MachineStatus, Observed, Outcome, Pass, Refusal};
use super::store::CopyName;
use crate::errors::chain;
use crate::fs;
use crate::journal::DatabaseError;
use crate::names::{MachineName, Version};

/// Largest machine definition that is read for its version.
const DEFINITION_MAXIMUM_BYTES: u64 = 1024 * 1024;

/// How long a removed machine is still shown.
const REMOVED_SHOWN_FOR: Duration = Duration::from_hours(24);

/// The name under which the pass itself waits after a failure; no machine can have it.
const WHOLE_PASS: &str = "";

/// Tells: status and journal; and tidies the store. What can't be written down (a full disk)
/// becomes the problem of the pass, as the steps themselves are done.
pub(super) fn finish(memory: &Memory, prepared: Prepared, done: Vec<Done>) -> Pass {
    let changed = done.iter().any(|one| one.attempted && one.result.is_ok());
    let now = Timestamp::now();
    if prepared.specification.is_some() {
        let names: BTreeSet<&str> = done.iter().map(|one| one.step.name.as_str()).chain([WHOLE_PASS]).collect();
        memory.backoff().retain(|name| names.contains(name));
    }
    let (machines, written) = write_down(memory, &prepared, &done, now);
    let problem = written.as_ref().err().map(|error| chain(error));
    let mut retry_after = done.iter().filter_map(|one| one.retry_after).min();
    let outcome = |one: Done| MachineOutcome { name: one.step.name, action: one.step.action, result: one.result };
    let mut pass = Pass {
        outcome: Outcome::Error,
        specification: prepared.specification,
        machines: done.into_iter().map(outcome).collect(),
        refused: prepared.refused,
        left_alone: prepared.left_alone,
        problem,
        maintenance: None,
        held: prepared.plan.held,
        retry_after: None,
    };
    if pass.converged() {
        pass.outcome = if changed { Outcome::Updated } else { Outcome::Unchanged };
    }
    // Not only when all has converged: one machine that is held for long would leave the guard off all the while.
    let is_left = |machine: &MachineOutcome| machine.action == Action::Remove && machine.result.is_err();
    let followed = pass.specification.is_some() && pass.refused.is_none() && pass.problem.is_none();
    if followed && !pass.machines.iter().any(is_left) {
        pass.problem = end_permission(memory).err().map(|error| chain(&error));
    }
    match pass.problem {
        None => memory.backoff().succeeded(WHOLE_PASS),
        Some(_) => {
            pass.outcome = Outcome::Error;
            let wait = memory.backoff().failed(WHOLE_PASS, WHOLE_PASS, Instant::now());
            retry_after = Some(retry_after.map_or(wait, |other| other.min(wait)));
        }
    }
    pass.retry_after = retry_after;
    publish(memory, &pass, machines, now);
    pass
}

/// How each machine stands now, remembered and told; and the store tidied. What stands is told also when it can't be
/// remembered.
fn write_down(
    memory: &Memory,
    prepared: &Prepared,
    done: &[Done],
    now: Timestamp,
) -> (Option<BTreeMap<String, MachineStatus>>, Result<(), PassError>) {
    let links = match memory.store.contents() {
        Ok(contents) => contents.links,
        Err(error) => return (None, Err(error.into())),
    };
    let before = memory.status().machines.clone();
    // Without a specification to follow nothing was done, and all stands as it stood.
    let mut after = if prepared.specification.is_none() { before.clone() } else { BTreeMap::new() };
    for one in done {
        let status = observe(memory, &links, before.get(&one.step.name), one, now);
        tell(memory, before.get(&one.step.name), &status, one);
        after.insert(one.step.name.clone(), status);
    }
    for (name, status) in &before {
        let shown_for = now.duration_since(status.since).unsigned_abs();
        if status.state == MachineState::Removed && shown_for < REMOVED_SHOWN_FOR {
            after.entry(name.clone()).or_insert_with(|| status.clone());
        }
    }
    let stored = *memory.machines_stored() == Stored::AsInTheStatus;
    let saved = memory.state.save_machines(stored.then_some(&before), &after);
    *memory.machines_stored() = if saved.is_ok() { Stored::AsInTheStatus } else { Stored::Unknown };
    let tidied = tidy(memory, &links.into_values().collect(), now);
    (Some(after), saved.map_err(PassError::from).and(tidied))
}

fn observe(
    memory: &Memory,
    links: &BTreeMap<MachineName, CopyName>,
    before: Option<&MachineStatus>,
    done: &Done,
    now: Timestamp,
) -> MachineStatus {
    let link = links.get_key_value(done.step.name.as_str());
    let version = match (link, before) {
        (Some((_, copy)), Some(before)) if before.version.is_some() && before.digest == Some(copy.checksum) => {
            before.version.clone()
        }
        (Some((name, copy)), _) => version(memory, name, *copy),
        (None, _) => None,
    };
    let observed = Observed {
        step: &done.step,
        result: &done.result,
        digest: link.map(|(_, copy)| copy.checksum),
        version,
        attempted: done.attempted,
        failures: memory.backoff().failures(&done.step.name),
        retry_after: done.retry_after,
        now,
    };
    MachineStatus::after(before, observed)
}

/// The version that an installed definition names. What the definition means is the machine room's business, which is
/// above this one; a definition that it would refuse has no version here.
fn version(memory: &Memory, name: &MachineName, copy: CopyName) -> Option<Version> {
    #[derive(serde::Deserialize)]
    struct Definition {
        version: Version,
    }
    let path = memory.store.directory(copy, name).join("machine.yaml");
    let text = fs::read_text(&path, DEFINITION_MAXIMUM_BYTES).ok()?;
    serde_saphyr::from_str::<Definition>(&text).ok().map(|definition| definition.version)
}

/// One record for each thing that happened or began; none for what only goes on.
fn tell(memory: &Memory, before: Option<&MachineStatus>, status: &MachineStatus, done: &Done) {
    let name = MachineName::new(&done.step.name).ok();
    let version = status.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
    let archive = status.digest.map(|digest| format!(" from archive {}", digest.short())).unwrap_or_default();
    let (kind, message) = match (&done.result, &done.step.action) {
        (Err(error), _) if before.is_none_or(|before| before.last_error.as_ref() != Some(error)) => {
            (Kind::Failed, error.clone())
        }
        (Ok(()), Action::Install) => (Kind::Installed, format!("installed {:?}{version}{archive}", status.name)),
        (Ok(()), Action::Upgrade { from }) => {
            let message = format!("upgraded {:?}{version}{archive}, before {}", status.name, from.short());
            (Kind::Upgraded, message)
        }
        (Ok(()), Action::Repair { differences }) => {
            let found = differences.join("; ");
            (Kind::Repaired, format!("repaired {:?}{version}{archive}: {found}", status.name))
        }
        (Ok(()), Action::Remove) => (Kind::Removed, format!("removed {:?}", status.name)),
        (Ok(()), Action::Hold { reason }) if before.is_none_or(|before| before.reason.as_ref() != Some(reason)) => {
            (Kind::Held, format!("{:?} is held as it is: {reason}", status.name))
        }
        _ => return,
    };
    memory.note(kind, name.as_ref(), &message);
}

/// Removes copies that nothing has pointed at for a while, and notes since when.
fn tidy(memory: &Memory, used: &BTreeSet<CopyName>, now: Timestamp) -> Result<(), PassError> {
    let mut records = memory.state.copies()?;
    for copy in memory.store.copies()? {
        let record = records.remove(&copy);
        let verify_checksum = record.and_then(|record| record.verify_checksum);
        let unused_since = record.and_then(|record| record.unused_since);
        match (used.contains(&copy), unused_since) {
            (true, Some(_)) => memory.state.record_copy(copy, CopyRecord { verify_checksum, unused_since: None })?,
            (false, None) => {
                memory.state.record_copy(copy, CopyRecord { verify_checksum, unused_since: Some(now) })?;
            }
            // A clock that was set back makes this negative, and the copy stays longer.
            (false, Some(_)) if memory.leases.is_taken(copy) => {}
            (false, Some(since)) if now.duration_since(since) >= signed(memory.settings.keep_unused) => {
                memory.store.discard(copy)?;
                memory.state.forget_copy(copy)?;
            }
            (true, None) | (false, Some(_)) => {}
        }
    }
    for gone in records.into_keys() {
        memory.state.forget_copy(gone)?;
    }
    Ok(())
}

fn signed(duration: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX)
}

/// The removals that were allowed are done: the next ones need a new permission.
fn end_permission(memory: &Memory) -> Result<(), DatabaseError> {
    match memory.state.accepted()? {
        Some(accepted) if accepted.removals_allowed => {
            memory.state.remember(&Accepted { removals_allowed: false, ..accepted })
        }
        _ => Ok(()),
    }
}

/// A pass that could not do its work.
pub(super) fn broken(memory: &Memory, problem: &str) -> Pass {
    let wait = memory.backoff().failed(WHOLE_PASS, WHOLE_PASS, Instant::now());
    let pass = Pass {
        outcome: Outcome::Error,
        specification: memory.status().specification.as_ref().map(|specification| specification.digest),
        machines: Vec::new(),
        refused: None,
        left_alone: None,
        problem: Some(problem.to_owned()),
        maintenance: None,
        held: None,
        retry_after: Some(wait),
    };
    publish(memory, &pass, None, Timestamp::now());
    pass
}

fn publish(memory: &Memory, pass: &Pass, machines: Option<BTreeMap<String, MachineStatus>>, now: Timestamp) {
    let before = memory.status().clone();
    if let Some(problem) = pass.problem.as_ref().filter(|problem| before.problem.as_ref() != Some(problem)) {
        memory.note(Kind::Problem, None, problem);
    }
    let known = before.refused.filter(|known| pass.refused.as_ref() == Some(&known.message));
    let refused = pass.refused.as_ref().map(|message| {
        known.unwrap_or_else(|| {
            memory.note(Kind::Refused, None, &format!("the specification was refused: {message}"));
            Refusal { message: message.clone(), since: now }
        })
    });
    let mut status = memory.status();
    status.refused = refused;
    status.problem.clone_from(&pass.problem);
    status.held_removals.clone_from(&pass.held);
    status.last_pass = Some(now);
    status.last_outcome = Some(pass.outcome);
    if let Some(machines) = machines {
        status.machines = machines;
    }
}
