//! One pass: verify, match, take stock, plan, remember, apply. Ties the pure and the effectful parts together;
//! `account` then says what came of it.
//!
//! In: an offered envelope (or the remembered one), whom to trust, the policies. Out: a [`Pass`]; errors are part of
//! it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;

use super::account::{broken, finish};
use super::apply::apply;
use super::memory::{Kind, Memory, Turn, blocking};
use super::plan::{
    Action, Condition, Installed, Inventory, Plan, Policy, Purge, Removals, Step, Wanted, plan, urgent_first,
};
use super::state::{Accepted, CopyRecord};
use super::status::{Disbelief, Pass, SpecificationStatus, Standing};
use crate::archive;
use crate::digest::Sha256Digest;
use crate::errors::chain;
use crate::expr::MatchExpression;
use crate::fs::FileError;
use crate::journal::DatabaseError;
use crate::names::MachineName;
use crate::spec::{self, Form, ManagedMachine, SpecificationError, Trust, VerifiedSpecification};

/// How long one match expression may take; longer, and a file system that it looks at hangs.
const MATCH_PATIENCE: Duration = Duration::from_secs(5);

/// Steps that are under way; most of them wait, for one of the few places or for a governor.
const WAITING: usize = 1_024;

/// Which specification to follow.
pub(super) enum Offer {
    /// One that was just received.
    New { envelope: Vec<u8>, removals: Removals },
    /// The one accepted last.
    Accepted,
}

/// What a pass goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    pub form: Form,
    pub trust: Trust,
    pub purge: Purge,
}

/// What kept a pass from its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum PassError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("the pass was broken off by a fault in machinesd; please report it")]
    BrokenOff(#[from] tokio::task::JoinError),
}

/// A pass that is ready to be applied.
pub(super) struct Prepared {
    /// `None` when there is nothing to follow.
    pub specification: Option<Sha256Digest>,
    pub refused: Option<String>,
    pub left_alone: Option<Disbelief>,
    pub entries: BTreeMap<MachineName, ManagedMachine>,
    pub plan: Plan,
}

/// What became of a step.
pub(super) struct Done {
    pub step: Step,
    pub result: Result<(), String>,
    pub attempted: bool,
    pub retry_after: Option<Duration>,
}

pub(super) async fn pass(memory: &Arc<Memory>, turn: &Turn, offer: Offer, rules: Rules) -> Pass {
    match try_pass(memory, turn, offer, rules).await {
        Ok(pass) => pass,
        Err(error) => broken(memory, &chain(&error)),
    }
}

async fn try_pass(memory: &Arc<Memory>, turn: &Turn, offer: Offer, rules: Rules) -> Result<Pass, PassError> {
    let mut prepared = blocking(memory, turn, move |memory| prepare(memory, offer, &rules)).await??;
    let mut steps = std::mem::take(&mut prepared.plan.steps);
    urgent_first(&mut steps);
    let entries = &prepared.entries;
    let running = stream::iter(steps).map(|step| execute(memory, turn, step, entries)).buffer_unordered(WAITING);
    let mut done: Vec<Done> = running.collect().await;
    done.sort_by(|one, other| one.step.name.cmp(&other.step.name));
    Ok(blocking(memory, turn, move |memory| finish(memory, prepared, done)).await?)
}

/// Everything up to the first change of a machine, with the accepted specification remembered.
fn prepare(memory: &Memory, offer: Offer, rules: &Rules) -> Result<Prepared, PassError> {
    let limits = &memory.settings.specification_limits;
    let verify = |envelope: &[u8]| spec::verify_form(rules.form, envelope, &rules.trust, limits);
    let accepted = memory.state.accepted()?;
    let (offered, refused, accepted) = match offer {
        Offer::New { envelope, removals } => match verify(&envelope) {
            Ok(specification) => {
                let accepted = remember(memory, accepted.as_ref(), envelope, &specification, removals)?;
                (Some(specification), None, Some(accepted))
            }
            Err(error) => (None, Some(chain(&error)), accepted),
        },
        Offer::Accepted => (None, None, accepted),
    };
    let (followed, left_alone) = match (offered, &accepted) {
        (None, Some(accepted)) => match verify(&accepted.envelope) {
            Ok(specification) => (Some(specification), None),
            // As when the trusted keys have changed since: what is installed is left as it is, and not kept in order.
            Err(error) => (None, Some(disbelief(accepted, &error))),
        },
        (offered, _) => (offered, None),
    };
    judge(memory, left_alone.as_ref());
    let Some(specification) = followed else {
        let plan = Plan { steps: Vec::new(), held: None };
        return Ok(Prepared { specification: None, refused, left_alone, entries: BTreeMap::new(), plan });
    };
    let wanted = evaluate(memory, &specification);
    let inventory = take_stock(memory, specification.machines())?;
    let removals = match accepted {
        Some(accepted) if accepted.removals_allowed => Removals::Allowed,
        _ => Removals::Guarded,
    };
    let hold_removals_over_percent = memory.settings.hold_removals_over_percent;
    let plan = plan(&wanted, &inventory, Policy { purge: rules.purge, removals, hold_removals_over_percent });
    let machines = specification.machines().iter();
    let entries = machines.map(|machine| (machine.name.clone(), machine.clone())).collect();
    Ok(Prepared { specification: Some(specification.digest()), refused, left_alone, entries, plan })
}

/// Remembers a specification before anything of it is applied, so that a crash in between goes on with it. Writes
/// only when something differs: polling offers the same bytes again and again.
fn remember(
    memory: &Memory,
    before: Option<&Accepted>,
    envelope: Vec<u8>,
    specification: &VerifiedSpecification,
    removals: Removals,
) -> Result<Accepted, DatabaseError> {
    let digest = specification.digest();
    let same = before.filter(|before| before.digest == digest);
    let accepted = Accepted {
        envelope,
        digest,
        signed_by: specification.signed_by().map(ToString::to_string),
        accepted_at: same.map_or_else(now, |before| before.accepted_at),
        // A permission is for these removals: another specification needs its own.
        removals_allowed: removals == Removals::Allowed || same.is_some_and(|before| before.removals_allowed),
    };
    let is_new = same.is_none();
    if before != Some(&accepted) {
        memory.state.remember(&accepted)?;
    }
    if is_new {
        let by = accepted.signed_by.as_ref().map_or("unsigned".to_owned(), |key| format!("signed by {key}"));
        memory.note(Kind::Accepted, None, &format!("specification {} verified ({by}) and accepted", digest.short()));
    }
    memory.status().lost_memory = None;
    memory.status().specification = Some(SpecificationStatus { standing: Standing::Followed, ..accepted.status() });
    Ok(accepted)
}

fn disbelief(accepted: &Accepted, error: &SpecificationError) -> Disbelief {
    match &accepted.signed_by {
        _ if !error.is_of_trust() => Disbelief::Invalid { message: chain(error) },
        Some(key) => Disbelief::KeyNotTrusted { key: key.clone() },
        None => Disbelief::Unsigned,
    }
}

/// Says how what was accepted stands today.
fn judge(memory: &Memory, left_alone: Option<&Disbelief>) {
    let standing = |before: &Standing| match (before, left_alone) {
        (_, None) => Standing::Followed,
        (Standing::LeftAlone { why, .. }, Some(now)) if why == now => before.clone(),
        (_, Some(why)) => Standing::LeftAlone { since: now(), why: why.clone() },
    };
    let mut status = memory.status();
    let Some(specification) = &mut status.specification else { return };
    let standing = standing(&specification.standing);
    let turned = standing != specification.standing;
    specification.standing = standing;
    drop(status);
    if let Some(why) = left_alone.filter(|_| turned) {
        memory.note(Kind::LeftAlone, None, &why.sentence());
    }
}

/// As exact as the state database keeps it, so that it reads the same after a restart.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

impl Accepted {
    pub(super) fn status(&self) -> SpecificationStatus {
        let (digest, signed_by, accepted_at) = (self.digest, self.signed_by.clone(), self.accepted_at);
        SpecificationStatus { digest, signed_by, accepted_at, standing: Standing::NotJudged }
    }
}

fn evaluate(memory: &Memory, specification: &VerifiedSpecification) -> Vec<Wanted> {
    let machines = specification.machines();
    let expressions: Vec<_> = machines.iter().map(|machine| machine.matcher.clone()).collect();
    let node = Arc::clone(&memory.node);
    let evaluate = move |expression: &MatchExpression| expression.evaluate(&node).result.map_err(|error| chain(&error));
    let answers = memory.matcher.ask(&expressions, MATCH_PATIENCE, &evaluate);
    let wanted = machines.iter().zip(answers).map(|(machine, matching)| Wanted {
        name: machine.name.clone(),
        checksum: machine.checksum,
        verify_checksum: machine.verify_checksum,
        matching,
    });
    wanted.collect()
}

/// Reads the links and checks the files behind each.
fn take_stock(memory: &Memory, entries: &[ManagedMachine]) -> Result<Inventory, PassError> {
    let contents = memory.store.contents()?;
    let records = memory.state.copies()?;
    let listed: BTreeMap<&MachineName, &ManagedMachine> = entries.iter().map(|entry| (&entry.name, entry)).collect();
    let mut machines = BTreeMap::new();
    for (name, copy) in contents.links {
        let recorded = records.get(&copy).and_then(|record| record.verify_checksum);
        let beside = memory.store.verify_checksum(copy);
        if let (Some(recorded), None) = (recorded, beside) {
            // A copy of an earlier version: best effort, as the database has it.
            _ = memory.store.record_beside(copy, recorded);
        }
        let recorded = recorded.or(beside);
        // When our record is lost, the signed entry for the same archive says what must be in it.
        let entry = listed.get(&name).filter(|entry| entry.checksum == copy.checksum);
        let expected = recorded.or(entry.map(|entry| entry.verify_checksum));
        let condition = match expected {
            None => Condition::Drifted(vec!["there is no record of what it should contain".to_owned()]),
            Some(expected) => match archive::verify_directory(&memory.store.directory(copy, &name), &expected) {
                Err(drift) => Condition::Drifted(drift.differences),
                Ok(()) => {
                    if recorded.is_none() {
                        let record = CopyRecord { verify_checksum: Some(expected), unused_since: None };
                        memory.state.record_copy(copy, record)?;
                    }
                    Condition::Sound
                }
            },
        };
        machines.insert(name, Installed { checksum: copy.checksum, verify_checksum: recorded, condition });
    }
    Ok(Inventory { machines, foreign: contents.foreign })
}

/// One step, with its wait after failures. Its error becomes its result: the other steps go on.
async fn execute(
    memory: &Arc<Memory>,
    turn: &Turn,
    step: Step,
    entries: &BTreeMap<MachineName, ManagedMachine>,
) -> Done {
    let name = match MachineName::new(&step.name) {
        Ok(name) if step.action.changes_the_node() => name,
        _ => {
            memory.backoff().succeeded(&step.name);
            return Done { step, result: Ok(()), attempted: false, retry_after: None };
        }
    };
    let entry = entries.get(&name);
    let subject = match (&step.action, entry) {
        (Action::Remove, _) | (_, None) => "remove".to_owned(),
        (_, Some(entry)) => format!("{} {}", entry.checksum, entry.source),
    };
    let waiting = memory.backoff().waiting(name.as_str(), &subject, Instant::now());
    if let Some(left) = waiting {
        let before = memory.status().machines.get(name.as_str()).and_then(|status| status.last_error.clone());
        let error = before.unwrap_or_else(|| sentence(&step, "it waits after a failure"));
        return Done { step, result: Err(error), attempted: false, retry_after: Some(left) };
    }
    let is_repair = matches!(step.action, Action::Repair { .. });
    let repeated =
        is_repair.then(|| memory.backoff().repair_waiting(name.as_str(), &subject, Instant::now())).flatten();
    if let (Some((count, left)), Action::Repair { differences }) = (repeated, &step.action) {
        let why = format!(
            "it has changed again after each of {count} repairs ({}): something on this node writes into it, perhaps \
             the machine itself, which has $MACHINE_DATA_DIR for that; the next repair waits",
            differences.join("; ")
        );
        return Done { result: Err(sentence(&step, &why)), step, attempted: false, retry_after: Some(left) };
    }
    if let Some(expression) = entry.map(|entry| entry.matcher.source()).filter(|_| step.action != Action::Remove) {
        let expression = if expression.is_empty() { "every node" } else { expression };
        tracing::info!(machine = %name, "matched: {expression}; to do: {}", step.action.word());
    }
    let result = apply(memory, turn, &name, &step.action, entry).await;
    let (result, retry_after) = match result {
        Ok(()) => {
            let mut backoff = memory.backoff();
            backoff.succeeded(name.as_str());
            if is_repair {
                backoff.repaired(name.as_str(), &subject, Instant::now());
            }
            (Ok(()), None)
        }
        Err(error) => {
            let wait = memory.backoff().failed(name.as_str(), &subject, Instant::now());
            (Err(sentence(&step, &chain(&error))), Some(wait))
        }
    };
    Done { step, result, attempted: true, retry_after }
}

fn sentence(step: &Step, why: &str) -> String {
    format!("could not {} {:?}: {why}", step.action.word(), step.name)
}
