//! Carries out one step of a plan. Each is idempotent and safe to be cut off anywhere.
//!
//! What an observer of `machines/<name>` sees when this is cut off after each line, by a crash, a full disk or a
//! dropped future; the next start removes the staging and the next pass goes on:
//!
//! | install, upgrade, repair          | observer                   | left on the disk                          |
//! |-----------------------------------|----------------------------|-------------------------------------------|
//! | staging made, archive downloaded  | what was there before      | staging                                   |
//! | archive's checksum compared       | what was there before      | staging                                   |
//! | unpacked, verified, flushed       | what was there before      | staging                                   |
//! | record written                    | what was there before      | staging, a record without a copy          |
//! | staging renamed into the store    | what was there before      | an unused copy: found and used next time  |
//! | link renamed                      | the new copy, whole        | an unused old copy, removed after a while |
//!
//! Removal is the unlinking of the link: the machine, whole, or none. A repair makes a second copy and never writes
//! into the first, so a half-repaired machine can't exist either.
//!
//! In: a step. Out: done, or why not.

use std::sync::Arc;
use std::time::Duration;

use super::memory::{Memory, Turn, blocking};
use super::plan::Action;
use super::state::CopyRecord;
use super::store::{CopyName, Staging};
use crate::archive::{self, ArchiveError, FetchError, Place, Purpose};
use crate::digest::Sha256Digest;
use crate::fs::{Aside, Beneath, FileError};
use crate::governor::{GovernorError, Slot};
use crate::journal::DatabaseError;
use crate::names::{GovernorName, MachineName};
use crate::spec::ManagedMachine;

/// How long a step waits for its governor's slot, as in the reference; then it has failed, and is tried again later.
const SLOT_PATIENCE: Duration = Duration::from_mins(5);

/// Why a step could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Nothing was unpacked.
    #[error(
        "checksum of {from} does not match: expected {}…, got {}…; put the archive that was published there, or \
         publish the checksum of this one",
        expected.short(),
        got.short()
    )]
    Checksum {
        /// The source.
        from: String,
        expected: Sha256Digest,
        got: Sha256Digest,
    },
    /// Nothing was done.
    #[error(transparent)]
    Governor(#[from] GovernorError),
    #[error(transparent)]
    Unpack(#[from] ArchiveError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The thread that did the work ended without a result.
    #[error("the work on it was broken off by a fault in machinesd; please report it")]
    BrokenOff(#[from] tokio::task::JoinError),
}

/// Carries out an action on a machine. `entry` is what the specification says of it; only a removal goes without.
///
/// The slot of a governor comes first and the places among this node's own after it: who waits for the fleet must not hold
/// up what else the node has to do. A removal needs none of them, and what the store still has no download. When the
/// future is dropped, the slot is left.
pub(super) async fn apply(
    memory: &Arc<Memory>,
    turn: &Turn,
    name: &MachineName,
    action: &Action,
    entry: Option<&ManagedMachine>,
) -> Result<(), StepError> {
    let governor = entry.and_then(|entry| entry.governor.as_ref()).filter(|_| *action != Action::Remove);
    let _slot = match governor {
        Some(governor) => Some(enter(memory, name, governor).await?),
        None => None,
    };
    match (action, entry) {
        (Action::Install | Action::Upgrade { .. }, Some(entry)) => {
            put_in_place(memory, turn, entry, Purpose::Install).await
        }
        (Action::Repair { .. }, Some(entry)) => put_in_place(memory, turn, entry, Purpose::Repair).await,
        (Action::Remove, _) => {
            let name = name.clone();
            let work = move |memory: &Memory| {
                memory.store.unlink(&name)?;
                memory.installed_changed();
                Ok(())
            };
            blocking(memory, turn, work).await?
        }
        _ => Ok(()),
    }
}

async fn enter(memory: &Memory, name: &MachineName, governor: &GovernorName) -> Result<Slot, GovernorError> {
    let Some(governors) = &memory.governors else { return Err(GovernorError::None { name: governor.clone() }) };
    let description = format!("installs {name} @ {}", memory.node.identity);
    governors.enter(governor, &description, SLOT_PATIENCE).await
}

/// Lets the machine run from a sound copy of the entry's archive, downloading it when the store has none.
async fn put_in_place(
    memory: &Arc<Memory>,
    turn: &Turn,
    entry: &ManagedMachine,
    purpose: Purpose,
) -> Result<(), StepError> {
    let (name, checksum, verify_checksum) = (entry.name.clone(), entry.checksum, entry.verify_checksum);
    let work = move |memory: &Memory| reuse(memory, &name, checksum, verify_checksum);
    if on_disk(memory, turn, work).await?? == Reused::Yes {
        return Ok(());
    }

    let place = memory.fetcher.place(&entry.source, purpose).await;
    // Made only now: thousands that wait for a server leave nothing on the disk.
    let name = entry.name.clone();
    let staging = blocking(memory, turn, move |memory| memory.store.stage(&name)).await??;
    // The turn lasts until it is removed again, whatever becomes of this future.
    let staging = Aside::new((staging, Arc::clone(turn)));
    let result = download(memory, turn, entry, place, &staging).await;
    staging.end().await;
    result
}

/// Downloads an entry's archive, and lets the machine run from what is in it.
async fn download(
    memory: &Arc<Memory>,
    turn: &Turn,
    entry: &ManagedMachine,
    place: Place,
    staging: &Aside<(Staging, Turn)>,
) -> Result<(), StepError> {
    let Some(staging) = staging.share() else { return Ok(()) };
    let into = Beneath::at(&staging.0.archive())?;
    let fetched = memory.fetcher.fetch_at(&place, &entry.source, entry.credentials.as_ref(), into).await?;
    drop(place);
    if fetched.digest != entry.checksum {
        let from = entry.source.to_string();
        return Err(StepError::Checksum { from, expected: entry.checksum, got: fetched.digest });
    }
    let from = &entry.source;
    tracing::info!(machine = %entry.name, bytes = fetched.bytes, "downloaded {from}: its checksum holds");

    let (name, checksum, verify_checksum) = (entry.name.clone(), entry.checksum, entry.verify_checksum);
    let work = move |memory: &Memory| install_staged(memory, &staging.0, &name, checksum, verify_checksum);
    on_disk(memory, turn, work).await?
}

/// As [`blocking`], for work that reads or writes much: a few at a time, or the threads would all be taken.
async fn on_disk<T: Send + 'static>(
    memory: &Arc<Memory>,
    turn: &Turn,
    work: impl FnOnce(&Memory) -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    // Never closed.
    let _place = memory.disk.acquire().await;
    blocking(memory, turn, work).await
}

/// Whether the store had what was needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reused {
    Yes,
    No,
}

/// Flips to a copy that the store still has, as after a rollback or after a crash just before the flip. Only one whose
/// files are exactly right is used; the one that has drifted and is to be repaired is not.
fn reuse(
    memory: &Memory,
    name: &MachineName,
    checksum: Sha256Digest,
    verify_checksum: Sha256Digest,
) -> Result<Reused, StepError> {
    for copy in memory.store.copies()?.into_iter().filter(|copy| copy.checksum == checksum) {
        if archive::verify_directory(&memory.store.directory(copy, name), &verify_checksum).is_ok() {
            run_from(memory, name, copy, verify_checksum)?;
            return Ok(Reused::Yes);
        }
    }
    Ok(Reused::No)
}

fn install_staged(
    memory: &Memory,
    staging: &Staging,
    name: &MachineName,
    checksum: Sha256Digest,
    verify_checksum: Sha256Digest,
) -> Result<(), StepError> {
    let limits = &memory.settings.archive_limits;
    let unpacked = archive::unpack(&staging.archive(), name, &staging.unpacked(), limits, &verify_checksum)?;
    tracing::info!(machine = %name, files = unpacked.files, "unpacked: every file is as SHA256SUMS says");
    staging.record(verify_checksum)?;
    let copy = memory.store.next_copy(checksum)?;
    memory.state.record_copy(copy, CopyRecord { verify_checksum: Some(verify_checksum), unused_since: None })?;
    memory.store.admit(staging, copy)?;
    run_from(memory, name, copy, verify_checksum)
}

/// The record comes before the flip: whoever starts the machine after a crash must know what to verify.
fn run_from(
    memory: &Memory,
    name: &MachineName,
    copy: CopyName,
    verify_checksum: Sha256Digest,
) -> Result<(), StepError> {
    let record = CopyRecord { verify_checksum: Some(verify_checksum), unused_since: None };
    if memory.state.copy(copy)? != Some(record) {
        memory.state.record_copy(copy, record)?;
    }
    memory.store.point(name, copy)?;
    memory.installed_changed();
    Ok(())
}
