//! `kv`: brings the value of a key into the machine's data, by polling and, in `watch` mode, the moment it changes.
//! Compared is always with the data itself, so that a value which something else removed comes back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::kv::{Entry, Operation, Store, WatchEvent};
use crate::machine::data::{Change, Item};
use crate::machine::watcher::{
    Background, BuildContext, Built, Check, Context, Fire, Fires, Kind, Report, Seen, Signal, Watcher, Writes,
    schema_of,
};

/// The row in `KINDS`.
pub const KIND: Kind = Kind {
    name: "kv",
    summary: "keeps the value of a key-value bucket's key in the machine's data",
    minimum_interval: Duration::from_secs(1),
    default_interval: Some(Duration::from_secs(60)),
    outcomes: &["unknown", "skipped", "error", "changed", "unchanged"],
    build,
    example: "bucket: MACHINES\nkey: machines\nmode: watch\nbucket_prefix: false\n",
    fires: Fires::Both,
    schema: schema_of::<Properties>,
};

/// A broken watch is opened again after this; the store itself handles lost connections.
const REOPEN: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Poll,
    Watch,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Properties {
    /// The bucket.
    bucket: String,
    /// The key in it.
    key: String,
    /// `poll` looks on every interval; `watch` also learns of changes at once.
    #[serde(default)]
    mode: Mode,
    /// Stores the value under `BUCKET_key` (true) or `key` (false).
    #[serde(default = "yes")]
    bucket_prefix: bool,
    /// Stores the value under this name instead.
    store_key: Option<String>,
    /// Every successful get fires the success transition.
    #[serde(default)]
    on_successful_get: bool,
    /// A put of the same value counts as a change too, but for the first read.
    #[serde(default)]
    on_matching_update: bool,
    /// A subject on which the bucket's stream republishes; a message there calls for a check.
    republish_trigger: Option<String>,
}

fn yes() -> bool {
    true
}

struct Kv {
    properties: Properties,
    /// The data item that is written.
    item: String,
    seen: Arc<Mutex<Latest>>,
}

/// What is known of the key besides the data.
#[derive(Default)]
struct Latest {
    /// Delivered by the watch since it was (re)established.
    delivered: Option<Entry>,
    /// Of the value that the last check took.
    revision: Option<u64>,
    /// A change was reported whose transition was not made; it still counts.
    owed: bool,
}

fn build(context: &BuildContext<'_>) -> Built {
    let properties: Properties = context.properties()?;
    let mut problems = Vec::new();
    if let Err(error) = crate::kv::check_bucket(&properties.bucket) {
        problems.push(context.fault("bucket", error));
    }
    if let Err(error) = crate::kv::check_key(&properties.key) {
        problems.push(context.fault("key", error));
    }
    if properties.store_key.as_deref() == Some("") {
        problems.push(context.fault("store_key", "store_key is empty"));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let item = match (&properties.store_key, properties.bucket_prefix) {
        (Some(name), _) => name.clone(),
        (None, true) => format!("{}_{}", properties.bucket, properties.key),
        (None, false) => properties.key.clone(),
    };
    Ok(Arc::new(Kv { properties, item, seen: Arc::default() }))
}

impl Kv {
    /// The newest entry: what the store answers, or what the watch delivered when the store answers with an older one
    /// (a leader that has just been replaced may).
    async fn newest(&self, store: &Arc<dyn Store>) -> Result<Option<Entry>, crate::kv::KvError> {
        let delivered_before = self.latest().delivered.as_ref().map(|entry| entry.revision);
        let polled = store.bucket(&self.properties.bucket)?.get(&self.properties.key).await?;
        let latest = self.latest();
        let Some(delivered) = &latest.delivered else { return Ok(polled) };
        let newer = match &polled {
            Some(polled) => delivered.revision > polled.revision,
            // What expires is not announced: nothing has come since, so there is nothing any more.
            None => delivered_before != Some(delivered.revision),
        };
        if newer { Ok(Some(delivered.clone()).filter(|entry| entry.operation == Operation::Put)) } else { Ok(polled) }
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compare(&self, entry: Option<&Entry>, current: Option<&Item>) -> (&'static str, Vec<Change>) {
        let mut latest = self.latest();
        let owed = std::mem::take(&mut latest.owed);
        let before = std::mem::replace(&mut latest.revision, entry.map(|entry| entry.revision));
        let Some(entry) = entry else {
            return match current {
                Some(_) => ("changed", vec![Change::Delete(self.item.clone())]),
                None if owed => ("changed", Vec::new()),
                None => ("unchanged", Vec::new()),
            };
        };
        let item = Item::from_text(&String::from_utf8_lossy(&entry.value));
        let put_again = before.is_some_and(|revision| revision != entry.revision);
        // After a restart the data has the value without its text.
        let same = current.is_some_and(|current| match &current.raw {
            Some(_) => *current == item,
            None => current.value == item.value,
        });
        let outcome =
            if !same || owed || (put_again && self.properties.on_matching_update) { "changed" } else { "unchanged" };
        let keep = same && current.is_some_and(|current| current.raw.is_some());
        (outcome, if keep { Vec::new() } else { vec![Change::Set(self.item.clone(), item)] })
    }
}

#[async_trait]
impl Watcher for Kv {
    async fn check(&self, check: Check) -> Report {
        let entry = match self.newest(&check.context.services.store).await {
            Ok(entry) => entry,
            Err(error) => return Report::error(crate::errors::chain(&error)),
        };
        let (outcome, changes) = self.compare(entry.as_ref(), check.data.get(&self.item));
        let revision = entry.map(|entry| format!("revision {}", entry.revision));
        let report = Report { changes, detail: revision, ..Report::new(outcome) };
        if outcome == "changed" || self.properties.on_successful_get {
            report.fire(Fire::Success).announce()
        } else {
            report
        }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// The data has the value already, so nothing else would tell of the change again.
    fn not_fired(&self, asked: Fire) {
        if asked == Fire::Success {
            self.latest().owed = true;
        }
    }

    fn observe(&self, context: &Context, signal: Signal) -> Option<Background> {
        let store = Arc::clone(&context.services.store);
        let watched = (self.properties.mode == Mode::Watch)
            .then(|| watch(context.clone(), self.properties.clone(), Arc::clone(&self.seen), signal.clone()));
        let triggered = self.properties.republish_trigger.clone().map(|subject| trigger(store, subject, signal));
        match (watched, triggered) {
            (None, None) => None,
            (Some(watched), None) => Some(Box::pin(watched)),
            (None, Some(triggered)) => Some(Box::pin(triggered)),
            (Some(watched), Some(triggered)) => Some(Box::pin(async {
                tokio::join!(watched, triggered);
            })),
        }
    }

    fn writes(&self) -> Writes {
        Writes::Items(vec![self.item.clone()])
    }

    fn event_fields(&self, seen: &Seen) -> Map<String, Value> {
        let mode = if self.properties.mode == Mode::Watch { "watch" } else { "poll" };
        Map::from_iter([
            ("bucket".to_owned(), json!(self.properties.bucket)),
            ("key".to_owned(), json!(self.properties.key)),
            ("mode".to_owned(), json!(mode)),
            ("state".to_owned(), json!(seen.outcome)),
        ])
    }
}

/// Follows the key for as long as the machine runs, in the states too in which the watcher is not checked.
async fn watch(context: Context, properties: Properties, seen: Arc<Mutex<Latest>>, signal: Signal) {
    let deliver = |entry: Option<Entry>| {
        seen.lock().unwrap_or_else(PoisonError::into_inner).delivered = entry;
    };
    loop {
        let opened = match context.services.store.bucket(&properties.bucket) {
            Ok(bucket) => bucket.watch(&properties.key).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(mut events) => {
                while let Some(event) = events.next().await {
                    match event {
                        WatchEvent::Entry(entry) => deliver(Some(entry)),
                        // The bucket may come back with revisions that start again at 1.
                        WatchEvent::Interrupted(reason) => {
                            tracing::info!(
                                machine = %context.definition.name,
                                watcher = %context.watcher,
                                bucket = properties.bucket,
                                key = properties.key,
                                "watch interrupted: {reason}"
                            );
                            deliver(None);
                            continue;
                        }
                        WatchEvent::Current => {}
                    }
                    signal.check();
                }
            }
            Err(error) => {
                tracing::debug!(
                    machine = %context.definition.name,
                    watcher = %context.watcher,
                    bucket = properties.bucket,
                    key = properties.key,
                    "watch not opened: {error}"
                );
            }
        }
        deliver(None);
        tokio::time::sleep(REOPEN).await;
    }
}

/// Calls for a check on every republished message.
async fn trigger(store: Arc<dyn Store>, subject: String, signal: Signal) {
    let Some(client) = store.nats() else {
        return;
    };
    loop {
        if let Ok(mut messages) = client.subscribe(subject.clone()).await {
            while let Some(message) = messages.next().await {
                if message.headers.is_some_and(|headers| headers.get("Nats-Sequence").is_some()) {
                    signal.check();
                }
            }
        }
        tokio::time::sleep(REOPEN).await;
    }
}
