//! The promises of the kv watcher, kept over the embedded store and over a real nats-server: what counts as a change,
//! what becomes of the data, how soon, and what it does when the store misbehaves.

#![cfg(test)]

mod engine;
mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::{Lab, Probe, Step, watcher};
use machines::kv::{
    self, Bucket, BucketSettings, BucketStatus, Connection, ConnectionSettings, CreateDatabase, Entry, KvError,
    ObjectReader, Store, Target, Watch,
};
use machines::machine::data::Change;
use machines::machine::runner::Handle;
use machines::machine::watcher::{Kind, Report, Watcher};
use serde_json::{Value, json};
use support::nats::NatsServer;
use support::{eventually, within};

/// A store of either kind, and a machine over it.
struct Place {
    lab: Lab,
    server: Option<NatsServer>,
}

impl Place {
    async fn local() -> Self {
        Self { lab: Lab::new().await, server: None }
    }

    async fn nats() -> Self {
        let server = NatsServer::start();
        let store = kv::open(&ConnectionSettings::new(Target::parse(&server.url()).unwrap())).await.unwrap();
        let place = Self { lab: Lab::with_store(tempfile::tempdir().unwrap(), store), server: Some(server) };
        place.connected().await;
        place
    }

    fn store(&self) -> &Arc<dyn Store> {
        &self.lab.services.store
    }

    async fn connected(&self) {
        eventually("the connection", || async { self.store().buckets().await.is_ok() }).await;
    }

    async fn bucket(&self) -> Arc<dyn Bucket> {
        self.bucket_with_ttl(None).await
    }

    async fn bucket_with_ttl(&self, ttl: Option<Duration>) -> Arc<dyn Bucket> {
        let settings = BucketSettings { name: "B".to_owned(), history: 3, ttl, replicas: 1, maximum_value_bytes: None };
        self.store().create_bucket(&settings).await.unwrap()
    }

    async fn put(&self, value: &str) -> u64 {
        self.store().bucket("B").unwrap().put("k", Bytes::copy_from_slice(value.as_bytes())).await.unwrap()
    }
}

/// A machine whose watcher works in every state; its transitions don't move it, but are published.
fn text(interval: &str, properties: &str) -> String {
    let properties: String = properties.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "name: follower\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: changed, from: [A], destination: \
         A}}\n  - {{name: failed, from: [A], destination: A}}\n  - {{name: leave, from: [A], destination: AWAY}}\n  - \
         {{name: return, from: [AWAY], destination: A}}\nwatchers:\n  - name: it\n    type: kv\n    interval: \
         {interval}\n    state_match: [A]\n    success_transition: changed\n    fail_transition: failed\n    \
         properties:\n      bucket: B\n      key: k\n{properties}"
    )
}

/// A running follower: its data is read from what it saves.
struct Follower<'a> {
    place: &'a Place,
    handle: Handle,
    events: engine::Events,
    seen: Vec<String>,
}

impl<'a> Follower<'a> {
    fn start(place: &'a Place, interval: &str, properties: &str) -> Self {
        let events = place.lab.events();
        let handle = place.lab.spawn_real(&text(interval, properties));
        Self { place, handle, events, seen: Vec::new() }
    }

    async fn item(&self, name: &str, expected: Option<Value>) {
        let saved = || self.place.lab.saved("follower").and_then(|data| data.get(name).cloned());
        eventually(&format!("{name} = {expected:?}"), || async { saved() == expected }).await;
    }

    fn transitions(&mut self) -> Vec<String> {
        self.seen.extend(self.events.transitions());
        self.seen.clone()
    }

    /// Waits for so many transitions in all, then for one more check, so that there are no others.
    async fn transitions_are(&mut self, expected: &[&str]) {
        let begin = Instant::now();
        while self.transitions().len() < expected.len() {
            assert!(begin.elapsed() < support::PATIENCE, "{:?} instead of {expected:?}", self.seen);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.transitions(), expected);
    }

    async fn checks(&self, more: u64) {
        let now = watcher(&self.handle.remote.status(), "it").checks;
        let remote = self.handle.remote.clone();
        eventually("more checks", || async { watcher(&remote.status(), "it").checks >= now + more }).await;
    }
}

macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        mod local {
            $(#[tokio::test] async fn $name() { super::$name(super::Place::local().await).await; })*
        }
        mod nats {
            $(#[tokio::test] async fn $name() { super::$name(super::Place::nats().await).await; })*
        }
    };
}

promises!(
    polling_finds_values_changes_and_deletions,
    watching_brings_changes_long_before_the_interval,
    json_is_parsed_and_everything_else_is_a_text,
    bytes_that_are_no_text_are_an_error_that_names_them_and_change_nothing,
    the_item_is_named_by_bucket_and_key_by_key_or_as_it_is_told,
    the_same_value_again_is_no_change,
    with_on_matching_update_the_same_value_again_is_a_change_but_not_at_first,
    with_on_successful_get_every_get_counts,
    a_missing_bucket_is_a_failure_until_it_is_there,
    what_something_else_removed_comes_back,
    a_restart_takes_the_same_value_for_no_change,
    a_key_that_expires_is_gone,
    a_stale_answer_is_not_taken_back,
    a_change_that_was_seen_while_the_state_was_left_counts_on_return,
);

async fn polling_finds_values_changes_and_deletions(place: Place) {
    let bucket = place.bucket().await;
    let mut follower = Follower::start(&place, "1s", "mode: poll");
    follower.checks(1).await;
    follower.transitions_are(&[]).await;
    assert_eq!(watcher(&follower.handle.remote.status(), "it").outcome, "unchanged", "no key is no change");
    place.put("one").await;
    follower.item("B_k", Some(json!("one"))).await;
    follower.transitions_are(&["changed"]).await;
    place.put("two").await;
    follower.item("B_k", Some(json!("two"))).await;
    follower.transitions_are(&["changed"; 2]).await;
    follower.checks(2).await;
    follower.transitions_are(&["changed"; 2]).await;
    bucket.delete("k").await.unwrap();
    follower.item("B_k", None).await;
    follower.transitions_are(&["changed"; 3]).await;
    follower.checks(2).await;
    follower.transitions_are(&["changed"; 3]).await;
    follower.handle.stop().await;
}

async fn watching_brings_changes_long_before_the_interval(place: Place) {
    let bucket = place.bucket().await;
    let mut follower = Follower::start(&place, "1h", "mode: watch");
    follower.checks(1).await;
    for (number, value) in ["one", "two", "three"].into_iter().enumerate() {
        place.put(value).await;
        follower.item("B_k", Some(json!(value))).await;
        follower.transitions_are(&vec!["changed"; number + 1]).await;
    }
    bucket.purge("k").await.unwrap();
    follower.item("B_k", None).await;
    follower.transitions_are(&["changed"; 4]).await;
    follower.handle.stop().await;
}

async fn bytes_that_are_no_text_are_an_error_that_names_them_and_change_nothing(place: Place) {
    let bucket = place.bucket().await;
    let follower = Follower::start(&place, "1h", "mode: watch");
    place.put("one").await;
    follower.item("B_k", Some(json!("one"))).await;
    let revision = bucket.put("k", Bytes::from_static(b"tw\xffo")).await.unwrap();
    let error = || watcher(&follower.handle.remote.status(), "it").last_error;
    eventually("the error", || async { error().is_some() }).await;
    let why = "can't be used: it is not UTF-8 text: byte 0xff at offset 2";
    assert_eq!(error().unwrap(), format!("revision {revision} of key \"k\" in B {why}"));
    follower.item("B_k", Some(json!("one"))).await;
    place.put("three").await;
    follower.item("B_k", Some(json!("three"))).await;
    follower.handle.stop().await;
}

async fn json_is_parsed_and_everything_else_is_a_text(place: Place) {
    place.bucket().await;
    let follower = Follower::start(&place, "1h", "mode: watch");
    let cases = [
        ("{\"a\": [1]}", json!({"a": [1]})),
        ("[1, 2]", json!([1, 2])),
        ("{broken", json!("{broken")),
        ("5", json!("5")),
        ("true", json!("true")),
        ("", json!("")),
        ("größe", json!("größe")),
    ];
    for (value, expected) in cases {
        place.put(value).await;
        follower.item("B_k", Some(expected)).await;
    }
    follower.handle.stop().await;
}

async fn the_item_is_named_by_bucket_and_key_by_key_or_as_it_is_told(place: Place) {
    place.bucket().await;
    place.put("value").await;
    let cases = [
        ("mode: poll", "B_k"),
        ("mode: poll\nbucket_prefix: true", "B_k"),
        ("mode: poll\nbucket_prefix: false", "k"),
        ("mode: poll\nstore_key: mine", "mine"),
        ("mode: poll\nstore_key: mine.too\nbucket_prefix: false", "mine.too"),
    ];
    for (properties, name) in cases {
        let follower = Follower::start(&place, "1h", properties);
        follower.item(name, Some(json!("value"))).await;
        follower.handle.stop().await;
        std::fs::remove_dir_all(place.lab.path("data")).unwrap();
    }
}

async fn the_same_value_again_is_no_change(place: Place) {
    place.bucket().await;
    place.put("one").await;
    let mut follower = Follower::start(&place, "1h", "mode: watch");
    follower.transitions_are(&["changed"]).await;
    let revision = place.put("one").await;
    let remote = follower.handle.remote.clone();
    eventually("the check of the new revision", || async {
        watcher(&remote.status(), "it").detail == Some(format!("revision {revision}"))
    })
    .await;
    follower.transitions_are(&["changed"]).await;
    assert_eq!(watcher(&remote.status(), "it").outcome, "unchanged");
    follower.handle.stop().await;
}

async fn with_on_matching_update_the_same_value_again_is_a_change_but_not_at_first(place: Place) {
    place.bucket().await;
    place.put("one").await;
    let properties = "mode: poll\non_matching_update: true";
    let mut follower = Follower::start(&place, "1s", properties);
    follower.transitions_are(&["changed"]).await;
    place.put("one").await;
    follower.transitions_are(&["changed"; 2]).await;
    follower.handle.stop().await;
    // The first read after a restart finds the value that it knows.
    let mut follower = Follower::start(&place, "1s", properties);
    follower.checks(2).await;
    follower.transitions_are(&[]).await;
    follower.handle.stop().await;
}

async fn with_on_successful_get_every_get_counts(place: Place) {
    place.bucket().await;
    place.put("one").await;
    let mut follower = Follower::start(&place, "1h", "mode: poll\non_successful_get: true");
    // Its transition leads back to its own state, so each get has another follow it, slowed by the brake.
    follower.transitions_are(&["changed"; 4]).await;
    follower.handle.stop().await;
}

async fn a_missing_bucket_is_a_failure_until_it_is_there(place: Place) {
    let mut follower = Follower::start(&place, "1h", "mode: watch");
    eventually("a failure", || async { !follower.events.is_empty() }).await;
    let remote = follower.handle.remote.clone();
    let error = watcher(&remote.status(), "it").last_error.unwrap();
    assert!(error.contains("\"B\"") && error.contains("does not exist"), "{error}");
    assert!(follower.transitions().iter().all(|transition| transition == "failed"), "{:?}", follower.seen);
    place.bucket().await;
    place.put("one").await;
    follower.item("B_k", Some(json!("one"))).await;
    eventually("the end of the failure", || async { watcher(&remote.status(), "it").last_error.is_none() }).await;
    follower.handle.stop().await;
}

async fn what_something_else_removed_comes_back(place: Place) {
    place.bucket().await;
    place.put("one").await;
    let removed = Arc::new(AtomicBool::new(false));
    let ask = Arc::clone(&removed);
    let remover: Arc<dyn Watcher> = Probe::new(move |before| {
        let changes = if before == 1 { vec![Change::Delete("B_k".to_owned())] } else { Vec::new() };
        ask.store(before == 1, Ordering::SeqCst);
        Step::Report(Report { changes, ..Report::new("good") })
    });
    let text = text("1s", "mode: poll") + "  - {name: remover, type: probe, interval: 2s}\n";
    let real = text.lines().filter(|line| !line.contains("remover")).collect::<Vec<_>>().join("\n");
    let mut watchers: Vec<(Kind, Arc<dyn Watcher>)> = engine::build(&real).unwrap();
    watchers.push((engine::PROBE, remover));
    let mut events = place.lab.events();
    let handle = place.lab.spawn_with(&text, watchers);
    eventually("the removal", || async { removed.load(Ordering::SeqCst) }).await;
    events.drain();
    eventually("the value", || async { place.lab.saved("follower") == Some(json!({"B_k": "one"})) }).await;
    let mut told = Vec::new();
    eventually("the transition", || {
        told.extend(events.transitions());
        let is_told = told.contains(&"changed".to_owned());
        async move { is_told }
    })
    .await;
    handle.stop().await;
}

async fn a_restart_takes_the_same_value_for_no_change(place: Place) {
    place.bucket().await;
    place.put(" {\"a\": 1}").await;
    for expected in [&["changed"] as &[&str], &[], &[]] {
        let mut follower = Follower::start(&place, "1s", "mode: watch");
        follower.checks(3).await;
        follower.transitions_are(expected).await;
        follower.item("B_k", Some(json!({"a": 1}))).await;
        follower.handle.stop().await;
    }
}

async fn a_key_that_expires_is_gone(place: Place) {
    place.bucket_with_ttl(Some(Duration::from_secs(2))).await;
    let mut follower = Follower::start(&place, "1s", "mode: watch");
    follower.checks(1).await;
    place.put("one").await;
    follower.transitions_are(&["changed"]).await;
    follower.transitions_are(&["changed"; 2]).await;
    follower.item("B_k", None).await;
    follower.handle.stop().await;
}

async fn a_change_that_was_seen_while_the_state_was_left_counts_on_return(place: Place) {
    place.bucket().await;
    place.put("one").await;
    let store = Arc::new(Unreliable::over(place.store()));
    let lab = Lab::with_store(tempfile::tempdir().unwrap(), Arc::clone(&store) as Arc<dyn Store>);
    let mut events = lab.events();
    *store.hold.lock().unwrap() = true;
    let handle = lab.spawn_real(&text("1h", "mode: poll"));
    eventually("the get", || async { store.held.load(Ordering::SeqCst) }).await;
    handle.remote.transition("leave").await.unwrap();
    *store.hold.lock().unwrap() = false;
    let remote = handle.remote.clone();
    eventually("the end of the check", || async { watcher(&remote.status(), "it").checks == 1 }).await;
    assert_eq!(events.transitions(), ["leave"]);
    handle.remote.transition("return").await.unwrap();
    let mut told = Vec::new();
    eventually("the transition", || {
        told.extend(events.transitions());
        let is_told = told.contains(&"changed".to_owned());
        async move { is_told }
    })
    .await;
    handle.stop().await;
}

async fn a_stale_answer_is_not_taken_back(place: Place) {
    place.bucket().await;
    place.put("old").await;
    let store = Arc::new(Unreliable::over(place.store()));
    let old = place.store().bucket("B").unwrap().get("k").await.unwrap();
    let lab = Lab::with_store(tempfile::tempdir().unwrap(), Arc::clone(&store) as Arc<dyn Store>);
    let handle = lab.spawn_real(&text("1s", "mode: watch"));
    eventually("the old value", || async { lab.saved("follower") == Some(json!({"B_k": "old"})) }).await;
    place.put("new").await;
    eventually("the new value", || async { lab.saved("follower") == Some(json!({"B_k": "new"})) }).await;
    // From here on every get is answered with what was there before.
    *store.stale.lock().unwrap() = old;
    let checks = watcher(&handle.remote.status(), "it").checks;
    let remote = handle.remote.clone();
    eventually("more checks", || async { watcher(&remote.status(), "it").checks > checks + 2 }).await;
    assert_eq!(lab.saved("follower"), Some(json!({"B_k": "new"})));
    assert_eq!(watcher(&remote.status(), "it").outcome, "unchanged");
    handle.stop().await;
}

/// A real store whose gets can be answered with something old, as by a leader that does not know yet that it was
/// replaced, or held up.
struct Unreliable {
    store: Arc<dyn Store>,
    stale: Arc<Mutex<Option<Entry>>>,
    hold: Arc<Mutex<bool>>,
    held: Arc<AtomicBool>,
}

impl Unreliable {
    fn over(store: &Arc<dyn Store>) -> Self {
        Self { store: Arc::clone(store), stale: Arc::default(), hold: Arc::default(), held: Arc::default() }
    }
}

struct UnreliableBucket {
    bucket: Arc<dyn Bucket>,
    stale: Arc<Mutex<Option<Entry>>>,
    hold: Arc<Mutex<bool>>,
    held: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl Store for Unreliable {
    fn bucket(&self, name: &str) -> Result<Arc<dyn Bucket>, KvError> {
        let bucket = self.store.bucket(name)?;
        let (stale, hold, held) = (Arc::clone(&self.stale), Arc::clone(&self.hold), Arc::clone(&self.held));
        Ok(Arc::new(UnreliableBucket { bucket, stale, hold, held }))
    }
    async fn create_bucket(&self, settings: &BucketSettings) -> Result<Arc<dyn Bucket>, KvError> {
        self.store.create_bucket(settings).await
    }
    async fn delete_bucket(&self, name: &str) -> Result<(), KvError> {
        self.store.delete_bucket(name).await
    }
    async fn buckets(&self) -> Result<Vec<String>, KvError> {
        self.store.buckets().await
    }
    async fn get_object(&self, bucket: &str, name: &str) -> Result<ObjectReader, KvError> {
        self.store.get_object(bucket, name).await
    }
    async fn put_object(&self, bucket: &str, name: &str, content: ObjectReader) -> Result<(), KvError> {
        self.store.put_object(bucket, name, content).await
    }
    fn connection(&self) -> Connection {
        self.store.connection()
    }
    fn nats(&self) -> Option<async_nats::Client> {
        self.store.nats()
    }
}

#[async_trait::async_trait]
impl Bucket for UnreliableBucket {
    async fn get(&self, key: &str) -> Result<Option<Entry>, KvError> {
        while *self.hold.lock().unwrap() {
            self.held.store(true, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let stale = self.stale.lock().unwrap().clone();
        match stale {
            Some(entry) => Ok(Some(entry)),
            None => self.bucket.get(key).await,
        }
    }
    async fn put(&self, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.bucket.put(key, value).await
    }
    async fn create(&self, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.bucket.create(key, value).await
    }
    async fn update(&self, key: &str, value: Bytes, revision: u64) -> Result<u64, KvError> {
        self.bucket.update(key, value, revision).await
    }
    async fn delete(&self, key: &str) -> Result<(), KvError> {
        self.bucket.delete(key).await
    }
    async fn purge(&self, key: &str) -> Result<(), KvError> {
        self.bucket.purge(key).await
    }
    async fn keys(&self) -> Result<Vec<String>, KvError> {
        self.bucket.keys().await
    }
    async fn history(&self, key: &str) -> Result<Vec<Entry>, KvError> {
        self.bucket.history(key).await
    }
    async fn watch(&self, pattern: &str) -> Result<Watch, KvError> {
        self.bucket.watch(pattern).await
    }
    async fn status(&self) -> Result<BucketStatus, KvError> {
        self.bucket.status().await
    }
}

#[tokio::test]
async fn a_watch_goes_on_after_the_server_was_restarted_and_misses_nothing() {
    let mut place = Place::nats().await;
    place.bucket().await;
    place.put("one").await;
    let lab = Lab::with_store(tempfile::tempdir().unwrap(), Arc::clone(place.store()));
    let handle = lab.spawn_real(&text("1h", "mode: watch"));
    let saved = |expected: Value| {
        let lab = &lab;
        async move {
            eventually(&format!("{expected}"), || async { lab.saved("follower") == Some(json!({"B_k": expected})) })
                .await;
        }
    };
    saved(json!("one")).await;
    place.server.as_mut().unwrap().restart();
    place.connected().await;
    place.put("two").await;
    saved(json!("two")).await;
    // And a server that has lost everything.
    let server = place.server.as_mut().unwrap();
    server.stop();
    server.lose_data();
    server.start_again();
    place.connected().await;
    place.bucket().await;
    place.put("three").await;
    saved(json!("three")).await;
    handle.stop().await;
}

#[tokio::test]
async fn a_republished_message_calls_for_a_check_and_any_other_does_not() {
    let place = Place::nats().await;
    place.bucket().await;
    let follower = Follower::start(&place, "1h", "mode: poll\nrepublish_trigger: changes.k");
    follower.checks(1).await;
    let client = place.store().nats().unwrap();
    place.put("one").await;
    let republish = || async {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Sequence", "1");
        client.publish_with_headers("changes.k", headers, Bytes::new()).await.unwrap();
        client.flush().await.unwrap();
    };
    // The subscription may take a moment; from then on every message counts.
    within("the value", async {
        while place.lab.saved("follower").is_none() {
            republish().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    follower.item("B_k", Some(json!("one"))).await;
    let checks = || watcher(&follower.handle.remote.status(), "it").checks;
    // What was republished above may still be on its way: nothing of it is, once nothing has come for a long while.
    let (mut before, mut quiet_since) = (checks(), Instant::now());
    while quiet_since.elapsed() < Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if checks() != before {
            (before, quiet_since) = (checks(), Instant::now());
        }
    }
    client.publish("changes.k", Bytes::from_static(b"no headers")).await.unwrap();
    client.flush().await.unwrap();
    // A message after it was taken, so it was taken too, and did nothing.
    republish().await;
    follower.checks(1).await;
    assert_eq!(checks(), before + 1);
    follower.handle.stop().await;
}

#[tokio::test]
async fn two_watchers_of_one_embedded_store_see_what_another_process_would_write() {
    let place = Place::local().await;
    place.bucket().await;
    let follower = Follower::start(&place, "1h", "mode: watch");
    follower.checks(1).await;
    let settings = ConnectionSettings::local(place.lab.path("kv.db"), CreateDatabase::No);
    let other = kv::open(&settings).await.unwrap();
    other.bucket("B").unwrap().put("k", Bytes::from_static(b"theirs")).await.unwrap();
    follower.item("B_k", Some(json!("theirs"))).await;
    follower.handle.stop().await;
}

#[test]
fn what_names_no_key_is_refused() {
    let refused = |text: &str| engine::build(text).map(drop).unwrap_err();
    let good = text("1h", "mode: poll");
    let cases = [
        (good.replace("bucket: B", "bucket: \"a b\""), "kv watcher \"it\": "),
        (good.replace("key: k", "key: a.*"), "kv watcher \"it\": "),
        (good.replace("mode: poll", "mode: pull"), "unknown variant `pull`, expected `poll` or `watch`"),
        (good.replace("mode: poll", "mode: poll\n      store_key: \"\""), "kv watcher \"it\": store_key is empty"),
        (
            good.replace("mode: poll", &format!("mode: poll\n      query: \"{}\"", "[".repeat(40))),
            "has more than 32 brackets, braces and parentheses",
        ),
        (good.replace("interval: 1h", "interval: 1ms"), "interval of a kv watcher must be at least 1s"),
    ];
    for (text, expected) in cases {
        let message = refused(&text);
        assert!(message.starts_with("machine.yaml:") && message.contains(expected), "{message}");
    }
}
