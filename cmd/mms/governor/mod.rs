//! `mms governor`: makes, shows and changes governors, and runs commands under them, over NATS and over the embedded
//! store.

pub mod arguments;
mod command;

use std::sync::Arc;
use std::time::Duration;

use machines::kv::{CreateDatabase, GovernorSettings, GovernorStatus, HeldSlot, KvError, Owner, Slots, Store};
use machines::names::GovernorName;
use serde::Serialize;

use self::arguments::GovernorCommand;
use crate::kv::print::one_line;
use crate::shared::table::{Table, ago};
use crate::shared::{Failure, Format, json, line, note};
use crate::store;

/// Of what a holder says of itself, this much is shown.
const SHOWN_CHARACTERS: usize = 200;

/// A governor with its holders.
#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    governor: &'a GovernorStatus,
    slots: &'a [HeldSlot],
}

pub async fn run(url: Option<&str>, command: GovernorCommand) -> Result<(), Failure> {
    match command {
        GovernorCommand::Add { name, capacity, expire, replicas, collective, format } => {
            let settings = GovernorSettings { name, capacity, expire, replicas, collective };
            let slots = slots(&*store::open(url, CreateDatabase::Yes).await?)?;
            slots.add(&settings).await?;
            show(&slots.governor(&settings.name).await?, &slots.held(&settings.name).await?, format)
        }
        GovernorCommand::Run { name, max_wait, command } => {
            let store = store::open(url, CreateDatabase::No).await?;
            command::run(&*store, &name, max_wait, &command).await
        }
        GovernorCommand::View { name, format } => {
            let slots = open(url).await?;
            show(&slots.governor(&name).await?, &slots.held(&name).await?, format)
        }
        GovernorCommand::List { format } => list(&open(url).await?.governors().await?, format),
        GovernorCommand::Evict { name, sequence } => evict(&*open(url).await?, &name, sequence).await,
        GovernorCommand::Reset { name } => {
            let slots = open(url).await?;
            // Which says so when there is no such governor, and what was there.
            let before = slots.governor(&name).await?;
            slots.reset(&name).await?;
            note(format!("freed every slot of governor \"{name}\" ({} taken)", before.taken));
            Ok(())
        }
        GovernorCommand::Delete { name } => {
            open(url).await?.delete(&name).await?;
            note(format!("deleted governor \"{name}\""));
            Ok(())
        }
    }
}

async fn open(url: Option<&str>) -> Result<Arc<dyn Slots>, Failure> {
    slots(&*store::open(url, CreateDatabase::No).await?)
}

fn slots(store: &dyn Store) -> Result<Arc<dyn Slots>, Failure> {
    store.slots().ok_or_else(|| "this store keeps no governors".into())
}

async fn evict(slots: &dyn Slots, name: &GovernorName, sequence: u64) -> Result<(), Failure> {
    if !slots.free(name, sequence, Owner::Anybody).await? {
        return Err(KvError::NoSlot { governor: name.clone(), sequence }.into());
    }
    note(format!("freed slot {sequence} of governor \"{name}\""));
    Ok(())
}

fn list(governors: &[GovernorStatus], format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return json(&governors);
    }
    if governors.is_empty() {
        note("there are no governors; mms governor add makes one");
        return Ok(());
    }
    let mut table = Table::new(["GOVERNOR", "TAKEN", "EXPIRE"]);
    for governor in governors {
        table.row([governor.name.to_string(), taken(governor), expire(governor)]);
    }
    for row in table.lines() {
        line(row);
    }
    Ok(())
}

fn show(governor: &GovernorStatus, held: &[HeldSlot], format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return json(&View { governor, slots: held });
    }
    line(format!("governor      {}", governor.name));
    line(format!("slots taken   {}", taken(governor)));
    line(format!("slots expire  {}", expire(governor)));
    if let Some(subject) = &governor.subject {
        line(format!("subject       {subject}"));
    }
    line(format!("replicas      {}", governor.replicas));
    line(format!("kept by       {}", governor.backing));
    if held.is_empty() {
        return Ok(());
    }
    line("");
    let mut table = Table::new(["SLOT", "HELD FOR", "HOLDER"]);
    for slot in held {
        let holder = one_line(slot.holder.as_bytes(), SHOWN_CHARACTERS);
        table.row([slot.sequence.to_string(), ago(slot.since), holder]);
    }
    for row in table.lines() {
        line(row);
    }
    Ok(())
}

fn taken(governor: &GovernorStatus) -> String {
    match governor.capacity {
        Some(capacity) => format!("{} of {capacity}", governor.taken),
        None => format!("{}, without a limit", governor.taken),
    }
}

fn expire(governor: &GovernorStatus) -> String {
    let seconds = governor.expire_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.map_or_else(|| "never".to_owned(), |expire| format!("after {}", machines::duration::format(expire)))
}
