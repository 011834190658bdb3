//! `kv`: brings the value of a key into the machine's data, by polling and, in `watch` mode, the moment it changes.
//! Compared is always with the data itself, so that a value which something else removed comes back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::kv::{Entry, Operation, Store, WatchEvent};
use crate::machine::data::{Change, Item};
use crate::machine::hierarchy;
use crate::machine::template::{Template, items_of, query};
use crate::machine::watcher::{
    Background, BuildContext, Built, Check, Context, Fire, Fires, Kind, Report, Seen, Signal, Watcher, Writes,
    follow_facts, schema_of,
};
use crate::node::{Node, check_path};

/// The row in `KINDS`.
pub const KIND: Kind = Kind {
    name: "kv",
    summary: "keeps the value of a key-value bucket's key in the machine's data",
    minimum_interval: Duration::from_secs(1),
    default_interval: Some(Duration::from_secs(60)),
    outcomes: &["unknown", "skipped", "error", "changed", "unchanged"],
    build,
    example: "bucket: MACHINES\nkey: machines\nmode: watch\nbucket_prefix: false\nquery: machines\n\
              hiera_config: false\n",
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

#[expect(clippy::struct_excessive_bools, reason = "the reference's switches, each by itself")]
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Properties {
    /// The bucket.
    bucket: Template,
    /// The key in it.
    key: Template,
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
    /// Stores only what is at this GJSON path of the value. That nothing is there is an error.
    query: Option<String>,
    /// The value is hierarchical data (`hierarchy`, `data`, `overrides`): stored is what it comes to with the facts of
    /// this node, before `query` looks into it. It is resolved again when facts change.
    #[serde(default)]
    hiera_config: bool,
}

fn yes() -> bool {
    true
}

struct Kv {
    properties: Properties,
    /// What is looked at, for the watch; `None` before the first check when facts or data decide it.
    place: watch::Sender<Option<Place>>,
    seen: Arc<Mutex<Latest>>,
}

/// A key in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    bucket: String,
    key: String,
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
    /// The data item that was written last.
    item: Option<String>,
}

fn build(context: &BuildContext<'_>) -> Built {
    let properties: Properties = context.properties()?;
    let mut problems = Vec::new();
    if properties.bucket.is_plain()
        && let Err(error) = crate::kv::check_bucket(properties.bucket.source())
    {
        problems.push(context.fault("bucket", error));
    }
    if properties.key.is_plain()
        && let Err(error) = crate::kv::check_key(properties.key.source())
    {
        problems.push(context.fault("key", error));
    }
    if properties.query.as_deref() == Some("") {
        problems.push(context.fault("query", "query is empty"));
    }
    if let Some(Err(error)) = properties.query.as_deref().map(check_path) {
        problems.push(context.fault("query", format!("query: {error}")));
    }
    if properties.store_key.as_deref() == Some("") {
        problems.push(context.fault("store_key", "store_key is empty"));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let (bucket, key) = (properties.bucket.source().to_owned(), properties.key.source().to_owned());
    let place = properties.is_plain().then_some(Place { bucket, key });
    Ok(Arc::new(Kv { properties, place: watch::Sender::new(place), seen: Arc::default() }))
}

impl Properties {
    fn is_plain(&self) -> bool {
        self.bucket.is_plain() && self.key.is_plain()
    }

    fn item(&self, place: &Place) -> String {
        match (&self.store_key, self.bucket_prefix) {
            (Some(name), _) => name.clone(),
            (None, true) => format!("{}_{}", place.bucket, place.key),
            (None, false) => place.key.clone(),
        }
    }

    /// What is stored of a value.
    fn item_of(&self, value: &Bytes, node: &Node) -> Result<Item, String> {
        let item = Item::from_bytes(value.clone()).map_err(|error| error.to_string())?;
        if self.query.is_none() && !self.hiera_config {
            return Ok(item);
        }
        let mut value = item.value;
        if self.hiera_config {
            value = hierarchy::resolve(&value, node).map_err(|error| crate::errors::chain(&error))?;
        }
        if let Some(path) = &self.query {
            let found = query(&value.to_string(), path).map_err(|error| format!("query: {error}"))?;
            value = found.ok_or_else(|| format!("query {path:?} finds nothing in it"))?;
        }
        Ok(Item::new(value))
    }
}

impl Kv {
    /// The newest entry: what the store answers, or what the watch delivered when the store answers with an older one
    /// (a leader that has just been replaced may).
    async fn newest(&self, store: &Arc<dyn Store>, place: &Place) -> Result<Option<Entry>, crate::kv::KvError> {
        let delivered_before = self.latest().delivered.as_ref().map(|entry| entry.revision);
        let polled = store.bucket(&place.bucket)?.get(&place.key).await?;
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

    /// The bucket and the key of the moment.
    fn place(&self, check: &Check) -> Result<Place, String> {
        if self.properties.is_plain() {
            let (bucket, key) = (self.properties.bucket.source().to_owned(), self.properties.key.source().to_owned());
            return Ok(Place { bucket, key });
        }
        let scope = check.scope();
        let render = |template: &Template| {
            let rendered = template.render(&scope).map(std::borrow::Cow::into_owned);
            rendered.map_err(|error| crate::errors::chain(&error))
        };
        let place = Place { bucket: render(&self.properties.bucket)?, key: render(&self.properties.key)? };
        crate::kv::check_bucket(&place.bucket).map_err(|error| crate::errors::chain(&error))?;
        crate::kv::check_key(&place.key).map_err(|error| crate::errors::chain(&error))?;
        let moved = self.place.send_if_modified(|current| {
            let other = current.as_ref() != Some(&place);
            if other {
                *current = Some(place.clone());
            }
            other
        });
        if moved {
            // It spoke of another key.
            let mut latest = self.latest();
            (latest.delivered, latest.revision) = (None, None);
        }
        Ok(place)
    }

    fn compare(&self, name: &str, entry: Option<(u64, Item)>, current: Option<&Item>) -> (&'static str, Vec<Change>) {
        let mut latest = self.latest();
        let owed = std::mem::take(&mut latest.owed);
        let before = std::mem::replace(&mut latest.revision, entry.as_ref().map(|(revision, _)| *revision));
        // What another key has left.
        let left = latest.item.replace(name.to_owned()).filter(|left| left != name).map(Change::Delete);
        let mut changes: Vec<Change> = left.into_iter().collect();
        let Some((revision, item)) = entry else {
            let outcome = if current.is_some() || owed || !changes.is_empty() { "changed" } else { "unchanged" };
            changes.extend(current.map(|_| Change::Delete(name.to_owned())));
            return (outcome, changes);
        };
        let put_again = before.is_some_and(|before| before != revision);
        // After an upgrade from 0.1.0 the data has the value without its bytes.
        let same = current.is_some_and(|current| match current.raw() {
            Some(_) => *current == item,
            None => current.value == item.value,
        });
        let outcome =
            if !same || owed || (put_again && self.properties.on_matching_update) { "changed" } else { "unchanged" };
        if !same || current.is_some_and(|current| current.raw().is_none() && item.raw().is_some()) {
            changes.push(Change::Set(name.to_owned(), item));
        }
        (outcome, changes)
    }
}

#[async_trait]
impl Watcher for Kv {
    async fn check(&self, check: Check) -> Report {
        let services = &check.context.services;
        let place = match self.place(&check) {
            Ok(place) => place,
            Err(error) => return Report::error(error),
        };
        let entry = match self.newest(&services.store, &place).await {
            Ok(entry) => entry,
            Err(error) => return Report::error(crate::errors::chain(&error)),
        };
        let entry = match entry {
            None => None,
            Some(entry) => match self.properties.item_of(&entry.value, &services.node) {
                Ok(item) => Some((entry.revision, item)),
                Err(error) => {
                    let Place { bucket, key } = place;
                    let revision = entry.revision;
                    return Report::error(format!(
                        "revision {revision} of key {key:?} in {bucket} can't be used: {error}"
                    ));
                }
            },
        };
        let revision = entry.as_ref().map(|(revision, _)| format!("revision {revision}"));
        let name = self.properties.item(&place);
        let (outcome, changes) = self.compare(&name, entry, check.data.get(&name));
        let report = Report { changes, detail: revision, ..Report::new(outcome) };
        if outcome == "changed" || self.properties.on_successful_get {
            report.fire(Fire::Success).announce()
        } else {
            report
        }
    }

    fn fires_on_entry(&self) -> bool {
        self.properties.on_successful_get
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

    fn reads(&self) -> Vec<String> {
        items_of(self.lookups().map(String::as_str))
    }

    fn looks_up(&self) -> Vec<String> {
        self.lookups().cloned().collect()
    }

    fn observe(&self, context: &Context, signal: Signal) -> Option<Background> {
        let store = Arc::clone(&context.services.store);
        let properties = &self.properties;
        let mut tasks: Vec<Background> = Vec::new();
        if properties.mode == Mode::Watch {
            let (places, seen) = (self.place.subscribe(), Arc::clone(&self.seen));
            tasks.push(Box::pin(follow(context.clone(), places, seen, signal.clone())));
        }
        if properties.hiera_config || self.lookups().any(|path| !path.starts_with("data.")) {
            tasks.push(Box::pin(follow_facts(Arc::clone(&context.services.node), signal.clone())));
        }
        tasks
            .extend(properties.republish_trigger.clone().map(|subject| Box::pin(trigger(store, subject, signal)) as _));
        if tasks.is_empty() { None } else { Some(Box::pin(join_all(tasks).map(drop))) }
    }

    fn writes(&self) -> Writes {
        let place = self.place.borrow();
        match (&self.properties.store_key, place.as_ref().filter(|_| self.properties.is_plain())) {
            (Some(name), _) => Writes::Items(vec![name.clone()]),
            (None, Some(place)) => Writes::Items(vec![self.properties.item(place)]),
            (None, None) => Writes::Anything,
        }
    }

    fn event_fields(&self, seen: &Seen) -> Map<String, Value> {
        let mode = if self.properties.mode == Mode::Watch { "watch" } else { "poll" };
        let place = self.place.borrow();
        let (bucket, key) = place.as_ref().map_or_else(
            || (self.properties.bucket.source(), self.properties.key.source()),
            |place| (place.bucket.as_str(), place.key.as_str()),
        );
        Map::from_iter([
            ("bucket".to_owned(), json!(bucket)),
            ("key".to_owned(), json!(key)),
            ("mode".to_owned(), json!(mode)),
            ("state".to_owned(), json!(seen.outcome)),
        ])
    }
}

impl Kv {
    fn lookups(&self) -> impl Iterator<Item = &String> {
        self.properties.bucket.lookups().iter().chain(self.properties.key.lookups())
    }
}

/// Follows the key of the moment for as long as the machine runs.
async fn follow(
    context: Context,
    mut places: watch::Receiver<Option<Place>>,
    seen: Arc<Mutex<Latest>>,
    signal: Signal,
) {
    loop {
        let place = places.borrow_and_update().clone();
        let moved = match place {
            None => places.changed().await,
            Some(place) => tokio::select! {
                moved = places.changed() => moved,
                () = watch_key(&context, &place, &seen, &signal) => return,
            },
        };
        if moved.is_err() {
            return;
        }
    }
}

/// Follows one key, in the states too in which the watcher is not checked.
async fn watch_key(context: &Context, place: &Place, seen: &Mutex<Latest>, signal: &Signal) {
    let deliver = |entry: Option<Entry>| {
        seen.lock().unwrap_or_else(PoisonError::into_inner).delivered = entry;
    };
    let Place { bucket, key } = place;
    loop {
        let opened = match context.services.store.bucket(bucket) {
            Ok(bucket) => bucket.watch(key).await,
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
                                bucket,
                                key,
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
                    bucket,
                    key,
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
