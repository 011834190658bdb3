//! `machines`: makes the node's machines agree with the signed specification in a data item. The work is done in the
//! sync room; here is when it is done: when the item changes, when something that is installed changes on disk, when a
//! failed step is due again, and from time to time.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use notify::{RecursiveMode, Watcher as _};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use crate::machine::data::Item;
use crate::machine::watcher::{
    Background, BuildContext, Built, Check, Context, Fire, Fires, Kind, Report, Seen, Signal, Watcher, schema_of,
};
use crate::spec::{Form, Trust};
use crate::sync::{Outcome, Pass, Purge, Removals};

/// The row in `KINDS`.
pub const KIND: Kind = Kind {
    name: "machines",
    summary: "makes the node's machines agree with a signed specification",
    minimum_interval: Duration::from_secs(1),
    default_interval: Some(Duration::from_secs(60)),
    outcomes: &["unknown", "skipped", "error", "updated", "unchanged"],
    build,
    example: "data_item: machines\npurge_unknown: true\nmachine_manage_interval: 5m\n",
    fires: Fires::Both,
    schema: schema_of::<Properties>,
};

/// Changes on disk come in bursts.
const SETTLE: Duration = Duration::from_millis(200);
/// A pass may download for a long time; each download has its own limits.
const LONGEST_PASS: Duration = Duration::from_secs(24 * 3_600);

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Properties {
    /// The data item with the envelope, as a `kv` watcher received it.
    data_item: String,
    /// Removes installed machines that the specification does not want on this node.
    #[serde(default)]
    purge_unknown: bool,
    /// How often everything that is installed is verified, file by file.
    #[serde(
        default = "two_minutes",
        alias = "plugin_manage_interval",
        deserialize_with = "crate::duration::deserialize"
    )]
    #[schemars(schema_with = "crate::duration::schema")]
    machine_manage_interval: Duration,
    /// Hexadecimal ed25519 key that must have signed the specification. A key in the daemon's settings or in the
    /// binary overrides it. Without any key nothing is taken, unless the settings allow unsigned specifications.
    public_key: Option<String>,
}

fn two_minutes() -> Duration {
    Duration::from_secs(120)
}

struct Machines {
    form: Form,
    properties: Properties,
    trust: Trust,
    managed: Mutex<Vec<String>>,
    /// Ends the pass that is under way.
    over: Notify,
}

fn build(context: &BuildContext<'_>) -> Built {
    build_form(context, Form::Machines)
}

/// A watcher for specifications of one form.
pub fn build_form(context: &BuildContext<'_>, form: Form) -> Built {
    let properties: Properties = context.properties()?;
    let mut problems = Vec::new();
    if properties.data_item.is_empty() {
        problems.push(context.fault("data_item", "data_item is empty"));
    }
    if properties.machine_manage_interval < Duration::from_secs(1) {
        problems.push(context.fault("machine_manage_interval", "machine_manage_interval must be at least 1s"));
    }
    let keys: Vec<String> = properties.public_key.iter().cloned().collect();
    match Trust::from_settings(&keys) {
        Ok(trust) if problems.is_empty() => {
            Ok(Arc::new(Machines { form, properties, trust, managed: Mutex::default(), over: Notify::new() }))
        }
        Ok(_) => Err(problems),
        Err(error) => {
            problems.push(context.fault("public_key", error));
            Err(problems)
        }
    }
}

impl Machines {
    /// There is nothing to follow.
    fn nothing(&self, check: &Check) -> Report {
        let name = &self.properties.data_item;
        match check.data.get(name) {
            None => Report::new("skipped"),
            Some(_) => Report::error(format!(
                "data item {name:?} was made on this node, and a signature covers only bytes as they were received: let a \
                 kv watcher without query bring the specification"
            )),
        }
    }

    fn report(&self, pass: &Pass) -> Report {
        let names = pass.machines.iter().map(|machine| machine.name.clone()).collect();
        *self.managed.lock().unwrap_or_else(PoisonError::into_inner) = names;
        let again = pass.retry_after.unwrap_or(self.properties.machine_manage_interval);
        let again = Some(again.min(self.properties.machine_manage_interval));
        let report = match pass.outcome {
            _ if pass.maintenance.is_some() => Report::new("skipped"),
            Outcome::Updated => Report::new("updated").fire(Fire::Success).announce(),
            Outcome::Unchanged => Report::new("unchanged"),
            Outcome::Error => Report::error(pass.complaints().join("; ")).told(),
        };
        Report { again, ..report }
    }
}

#[async_trait]
impl Watcher for Machines {
    async fn check(&self, check: Check) -> Report {
        let services = &check.context.services;
        let Some(sync) = &services.sync else {
            return Report::error("no specification can be managed here: the daemon runs with [sync] enabled = false");
        };
        let sync = sync.of_form(self.form);
        let mut keys = services.trust.follow();
        let trust = &keys.borrow_and_update().or(&self.trust).clone();
        let purge = if self.properties.purge_unknown { Purge::Unknown } else { Purge::Keep };
        let pass = async {
            // Only what was received counts: a document that is written anew is another one than was signed.
            match check.data.get(&self.properties.data_item).and_then(Item::raw) {
                Some(bytes) => Some(sync.reconcile(bytes, trust, purge, Removals::Guarded).await),
                // The store has nothing for us, or can't be asked: what was accepted before is kept in order.
                None => sync.resume(trust, purge).await,
            }
        };
        // A pass that is dropped ends at a safe point. A slow download must hold up neither what the next state is for
        // nor a newer specification, which may be the one that removes what should not run.
        tokio::select! {
            pass = pass => pass.map_or_else(|| self.nothing(&check), |pass| self.report(&pass)),
            () = self.over.notified() => Report::new("skipped"),
            // It went by the keys of before; a check with those of now follows.
            Ok(()) = keys.changed() => Report::new("skipped"),
        }
    }

    fn left(&self) -> Option<Report> {
        self.over.notify_waiters();
        None
    }

    fn superseded(&self) {
        self.over.notify_waiters();
    }

    fn timeout(&self) -> Duration {
        LONGEST_PASS
    }

    fn reads(&self) -> Vec<String> {
        vec![self.properties.data_item.clone()]
    }

    fn observe(&self, context: &Context, signal: Signal) -> Option<Background> {
        let sync = context.services.sync.as_ref()?;
        let machines = sync.machines_directory().to_owned();
        let store = sync.store_directory().to_owned();
        let disk = {
            let signal = signal.clone();
            async move {
                let changed = Arc::new(Notify::new());
                let Some(_watcher) = watch(&store, &machines, Arc::clone(&changed)) else { return };
                loop {
                    changed.notified().await;
                    tokio::time::sleep(SETTLE).await;
                    signal.check();
                }
            }
        };
        let (mut keys, mut maintenance) = (context.services.trust.follow(), sync.follow_maintenance());
        let orders = async move {
            loop {
                tokio::select! {
                    Ok(()) = keys.changed() => signal.check(),
                    Ok(()) = maintenance.changed() => signal.check(),
                    else => return,
                }
            }
        };
        Some(Box::pin(async move { _ = tokio::join!(disk, orders) }))
    }

    fn event_fields(&self, seen: &Seen) -> Map<String, Value> {
        let managed = self.managed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Map::from_iter([
            (self.form.field().to_owned(), json!(managed)),
            ("previous_outcome".to_owned(), json!(seen.outcome)),
            ("previous_run_time".to_owned(), json!(seen.run_time_nanos())),
        ])
    }
}

/// Tells of changes to what is installed. Staging is our own work, and reading changes nothing.
fn watch(store: &Path, machines: &Path, changed: Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let roots = [store.to_owned(), machines.to_owned()];
    let is_staging = move |path: &std::path::PathBuf| {
        let inside = roots.iter().find_map(|root| path.strip_prefix(root).ok());
        let first = inside.and_then(|inside| inside.components().next());
        first.is_some_and(|part| part.as_os_str().to_string_lossy().starts_with('.'))
    };
    let handler = move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access() && !event.paths.iter().all(&is_staging)) {
            changed.notify_one();
        }
    };
    let watched = notify::recommended_watcher(handler).and_then(|mut watcher| {
        watcher.watch(store, RecursiveMode::Recursive)?;
        watcher.watch(machines, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    match watched {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!("changes on disk are found by the periodic check only: {error}");
            None
        }
    }
}
