//! The promises of a key-value bucket, kept alike by the embedded store and by NATS JetStream: each test runs over both.

#![cfg(test)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use machines::kv::{
    self, Bucket, BucketSettings, ConnectionSettings, CreateDatabase, Entry, KvError, Operation, Store, Target, Watch,
    WatchEvent,
};
use support::nats::NatsServer;
use support::{eventually, within};
use tokio::io::AsyncReadExt as _;

/// A store of either kind, and what keeps it alive.
struct Place {
    settings: ConnectionSettings,
    server: Option<NatsServer>,
    #[expect(dead_code, reason = "removed when dropped")]
    directory: Option<tempfile::TempDir>,
}

impl Place {
    fn local() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = ConnectionSettings::local(directory.path().join("kv.db"), CreateDatabase::Yes);
        Self { settings, server: None, directory: Some(directory) }
    }

    fn nats() -> Self {
        let server = NatsServer::start();
        let settings = ConnectionSettings::new(Target::parse(&server.url()).unwrap());
        Self { settings, server: Some(server), directory: None }
    }

    async fn open(&self) -> Arc<dyn Store> {
        kv::open(&self.settings).await.unwrap()
    }

    /// An open store and a bucket `B` with a history of 3.
    async fn bucket(&self) -> (Arc<dyn Store>, Arc<dyn Bucket>) {
        let store = self.open().await;
        let bucket = store.create_bucket(&settings("B")).await.unwrap();
        (store, bucket)
    }
}

fn settings(name: &str) -> BucketSettings {
    BucketSettings { name: name.to_owned(), history: 3, ttl: None, replicas: 1, maximum_value_bytes: None }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn next(watch: &mut Watch) -> WatchEvent {
    within("an event of the watch", watch.next()).await.expect("a watch is endless")
}

async fn next_entry(watch: &mut Watch) -> Entry {
    match next(watch).await {
        WatchEvent::Entry(entry) => entry,
        other => panic!("expected an entry, got {other:?}"),
    }
}

async fn expect_current(watch: &mut Watch) {
    let event = next(watch).await;
    assert!(matches!(event, WatchEvent::Current), "{event:?}");
}

macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        mod local {
            $(#[tokio::test] async fn $name() { super::$name(super::Place::local()).await; })*
        }
        mod nats {
            $(#[tokio::test] async fn $name() { super::$name(super::Place::nats()).await; })*
        }
    };
}

promises!(
    what_was_put_is_got,
    create_is_refused_while_the_key_has_a_value,
    update_is_refused_at_another_revision,
    a_deleted_key_is_gone_and_its_history_is_kept,
    a_purged_key_is_gone_with_its_history,
    history_is_bounded_and_oldest_first,
    keys_are_those_with_a_value,
    an_unknown_bucket_is_named_with_the_remedy,
    buckets_are_made_listed_and_deleted_once,
    names_that_are_not_valid_are_refused,
    settings_that_make_no_bucket_are_refused,
    a_value_over_the_limit_is_refused,
    entries_vanish_after_their_time_to_live,
    status_tells_how_the_bucket_is_made,
    a_watch_delivers_values_then_changes_and_deletions,
    a_watch_delivers_only_keys_of_its_pattern,
    a_watch_waits_for_a_bucket_that_does_not_exist,
    a_watch_survives_deletion_and_remaking_of_its_bucket,
    one_client_sees_what_another_does,
    only_one_of_many_racing_updates_wins,
    a_value_of_a_megabyte_comes_back_whole,
    an_object_of_several_megabytes_comes_back_and_is_replaced,
    a_missing_object_is_named,
);

async fn what_was_put_is_got(place: Place) {
    let (_store, bucket) = place.bucket().await;
    assert_eq!(bucket.get("machines").await.unwrap(), None);
    assert_eq!(bucket.put("machines", bytes("one")).await.unwrap(), 1);
    assert_eq!(bucket.put("machines", bytes("two")).await.unwrap(), 2);
    assert_eq!(bucket.put("empty", Bytes::new()).await.unwrap(), 3);
    let entry = bucket.get("machines").await.unwrap().unwrap();
    assert_eq!((entry.bucket.as_str(), entry.key.as_str()), ("B", "machines"));
    assert_eq!((entry.value, entry.revision, entry.operation), (bytes("two"), 2, Operation::Put));
    let age = jiff::Timestamp::now().duration_since(entry.created);
    assert!(age.as_secs().abs() < 60, "{age:?}");
    assert_eq!(bucket.get("empty").await.unwrap().unwrap().value, Bytes::new());
}

async fn create_is_refused_while_the_key_has_a_value(place: Place) {
    let (_store, bucket) = place.bucket().await;
    assert_eq!(bucket.create("k", bytes("1")).await.unwrap(), 1);
    let error = bucket.create("k", bytes("2")).await.unwrap_err();
    assert!(matches!(error, KvError::KeyExists { .. }));
    let expected = "key \"k\" in bucket \"B\" has a value already; use `put` or `update` to change it";
    assert_eq!(error.to_string(), expected);
    bucket.delete("k").await.unwrap();
    assert_eq!(bucket.create("k", bytes("3")).await.unwrap(), 3);
    bucket.purge("k").await.unwrap();
    assert_eq!(bucket.create("k", bytes("4")).await.unwrap(), 5);
}

async fn update_is_refused_at_another_revision(place: Place) {
    let (_store, bucket) = place.bucket().await;
    assert_eq!(bucket.update("k", bytes("0"), 0).await.unwrap(), 1);
    bucket.put("other", bytes("x")).await.unwrap();
    assert_eq!(bucket.update("k", bytes("1"), 1).await.unwrap(), 3);
    let error = bucket.update("k", bytes("2"), 1).await.unwrap_err();
    assert!(matches!(error, KvError::WrongRevision { expected: 1, found: Some(3), .. }), "{error:?}");
    let expected = "could not update key \"k\" in bucket \"B\": expected revision 1, but the newest is 3; \
                    get the key and try again";
    assert_eq!(error.to_string(), expected);
    let error = bucket.update("new", bytes("2"), 1).await.unwrap_err();
    assert!(error.to_string().contains("but the key has none"), "{error}");
    assert_eq!(bucket.get("k").await.unwrap().unwrap().value, bytes("1"));
}

async fn a_deleted_key_is_gone_and_its_history_is_kept(place: Place) {
    let (_store, bucket) = place.bucket().await;
    bucket.put("k", bytes("1")).await.unwrap();
    bucket.delete("k").await.unwrap();
    bucket.delete("never").await.unwrap();
    assert_eq!(bucket.get("k").await.unwrap(), None);
    let history = bucket.history("k").await.unwrap();
    let operations: Vec<_> = history.iter().map(|entry| (entry.operation, entry.revision)).collect();
    assert_eq!(operations, [(Operation::Put, 1), (Operation::Delete, 2)]);
    assert!(history.last().unwrap().value.is_empty());
}

async fn a_purged_key_is_gone_with_its_history(place: Place) {
    let (_store, bucket) = place.bucket().await;
    bucket.put("k", bytes("1")).await.unwrap();
    bucket.put("k", bytes("2")).await.unwrap();
    bucket.purge("k").await.unwrap();
    assert_eq!(bucket.get("k").await.unwrap(), None);
    let history = bucket.history("k").await.unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!((history[0].operation, history[0].revision), (Operation::Purge, 3));
}

async fn history_is_bounded_and_oldest_first(place: Place) {
    let (_store, bucket) = place.bucket().await;
    for value in ["1", "2", "3", "4", "5"] {
        bucket.put("k", bytes(value)).await.unwrap();
    }
    bucket.put("other", bytes("x")).await.unwrap();
    let history = bucket.history("k").await.unwrap();
    assert_eq!(history.iter().map(|entry| entry.value.clone()).collect::<Vec<_>>(), ["3", "4", "5"]);
    assert!(bucket.history("never").await.unwrap().is_empty());
}

async fn keys_are_those_with_a_value(place: Place) {
    let (_store, bucket) = place.bucket().await;
    assert!(bucket.keys().await.unwrap().is_empty());
    for key in ["b", "a.x", "deleted", "purged"] {
        bucket.put(key, bytes("1")).await.unwrap();
        bucket.put(key, bytes("2")).await.unwrap();
    }
    bucket.delete("deleted").await.unwrap();
    bucket.purge("purged").await.unwrap();
    assert_eq!(bucket.keys().await.unwrap(), ["a.x", "b"]);
}

async fn an_unknown_bucket_is_named_with_the_remedy(place: Place) {
    let store = place.open().await;
    let bucket = store.bucket("NONE").unwrap();
    let errors = [
        bucket.get("k").await.unwrap_err(),
        bucket.put("k", bytes("1")).await.unwrap_err(),
        bucket.create("k", bytes("1")).await.unwrap_err(),
        bucket.update("k", bytes("1"), 1).await.unwrap_err(),
        bucket.delete("k").await.unwrap_err(),
        bucket.purge("k").await.unwrap_err(),
        bucket.keys().await.unwrap_err(),
        bucket.history("k").await.unwrap_err(),
        bucket.status().await.unwrap_err(),
        store.delete_bucket("NONE").await.unwrap_err(),
    ];
    for error in errors {
        let message = error.to_string();
        let (before, after) = message.split_once("make it with `mms kv add NONE").unwrap();
        assert_eq!(before, "bucket \"NONE\" does not exist; ");
        // `mms` asks NATS when it is not told otherwise.
        assert!(after == "`" || (after.starts_with(" --kv local:/") && after.ends_with("kv.db`")), "{message}");
    }
}

async fn buckets_are_made_listed_and_deleted_once(place: Place) {
    let store = place.open().await;
    assert!(store.buckets().await.unwrap().is_empty());
    store.create_bucket(&settings("TWO")).await.unwrap();
    store.create_bucket(&settings("ONE")).await.unwrap();
    let different = BucketSettings { history: 1, ..settings("ONE") };
    let error = store.create_bucket(&different).await.err().unwrap();
    assert_eq!(error.to_string(), "bucket \"ONE\" exists already");
    assert_eq!(store.buckets().await.unwrap(), ["ONE", "TWO"]);
    store.delete_bucket("ONE").await.unwrap();
    assert_eq!(store.buckets().await.unwrap(), ["TWO"]);
}

async fn names_that_are_not_valid_are_refused(place: Place) {
    let (store, bucket) = place.bucket().await;
    for key in ["", ".a", "a.", "a..b", "a b", "*", "a.>", "é"] {
        for error in [bucket.get(key).await.unwrap_err(), bucket.put(key, bytes("1")).await.unwrap_err()] {
            assert!(error.to_string().starts_with(&format!("{key:?} is not a valid key: ")), "{error}");
        }
    }
    for name in ["", "a.b", "a b", ">"] {
        let error = store.bucket(name).err().unwrap();
        assert!(error.to_string().contains("is not a valid bucket name: use 1 to 255 letters"), "{error}");
    }
    assert!(bucket.watch("a*").await.is_err());
}

async fn settings_that_make_no_bucket_are_refused(place: Place) {
    let store = place.open().await;
    for (bad, reason) in [
        (BucketSettings { history: 0, ..settings("B") }, "the history must be 1 to 64"),
        (BucketSettings { history: 65, ..settings("B") }, "the history must be 1 to 64"),
        (BucketSettings { ttl: Some(Duration::from_millis(1)), ..settings("B") }, "at least 100ms"),
        (BucketSettings { maximum_value_bytes: Some(0), ..settings("B") }, "must not be 0"),
    ] {
        let error = store.create_bucket(&bad).await.err().unwrap().to_string();
        assert!(error.starts_with("could not make bucket \"B\": ") && error.contains(reason), "{error}");
    }
}

async fn a_value_over_the_limit_is_refused(place: Place) {
    let store = place.open().await;
    let limited = BucketSettings { maximum_value_bytes: Some(100), ..settings("B") };
    let bucket = store.create_bucket(&limited).await.unwrap();
    bucket.put("k", Bytes::from(vec![b'x'; 100])).await.unwrap();
    let error = bucket.put("k", Bytes::from(vec![b'x'; 101])).await.unwrap_err();
    assert!(matches!(error, KvError::TooLarge { size_bytes: 101, limit_bytes: Some(100), .. }), "{error:?}");
    let message = error.to_string();
    let expected = "could not put key \"k\" into bucket \"B\": its 101 bytes are more than the limit of 100; make the \
                    bucket with a larger --max-value-size";
    assert!(message.starts_with(expected), "{message}");
    assert_eq!(bucket.get("k").await.unwrap().unwrap().revision, 1);
}

async fn entries_vanish_after_their_time_to_live(place: Place) {
    let store = place.open().await;
    let short = BucketSettings { ttl: Some(Duration::from_secs(1)), ..settings("B") };
    let bucket = store.create_bucket(&short).await.unwrap();
    bucket.put("k", bytes("1")).await.unwrap();
    eventually("the entry expires", async || bucket.get("k").await.unwrap().is_none()).await;
    assert!(bucket.keys().await.unwrap().is_empty());
    assert!(bucket.history("k").await.unwrap().is_empty());
    bucket.create("k", bytes("2")).await.unwrap();
}

async fn status_tells_how_the_bucket_is_made(place: Place) {
    let store = place.open().await;
    let made =
        BucketSettings { ttl: Some(Duration::from_secs(3600)), maximum_value_bytes: Some(1000), ..settings("B") };
    let bucket = store.create_bucket(&made).await.unwrap();
    bucket.put("k", bytes("12345")).await.unwrap();
    let status = bucket.status().await.unwrap();
    assert_eq!((status.bucket.as_str(), status.values, status.history), ("B", 1, 3));
    assert_eq!((status.ttl_seconds, status.maximum_value_bytes, status.replicas), (Some(3600), Some(1000), 1));
    assert!(status.bytes >= 5);
    assert!(["SQLite", "JetStream"].contains(&status.backing));
    assert!(store.connection().connected);
}

async fn a_watch_delivers_values_then_changes_and_deletions(place: Place) {
    let (_store, bucket) = place.bucket().await;
    bucket.put("k", bytes("old")).await.unwrap();
    bucket.put("k", bytes("new")).await.unwrap();
    let mut watch = bucket.watch("k").await.unwrap();
    let entry = next_entry(&mut watch).await;
    assert_eq!((entry.value, entry.revision), (bytes("new"), 2));
    expect_current(&mut watch).await;
    bucket.put("k", bytes("newer")).await.unwrap();
    let entry = next_entry(&mut watch).await;
    assert_eq!((entry.value, entry.revision, entry.operation), (bytes("newer"), 3, Operation::Put));
    bucket.delete("k").await.unwrap();
    assert_eq!(next_entry(&mut watch).await.operation, Operation::Delete);
    bucket.put("k", bytes("again")).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.value, bytes("again"));
    bucket.purge("k").await.unwrap();
    assert_eq!(next_entry(&mut watch).await.operation, Operation::Purge);
}

async fn a_watch_delivers_only_keys_of_its_pattern(place: Place) {
    let (_store, bucket) = place.bucket().await;
    bucket.put("a.one", bytes("1")).await.unwrap();
    bucket.put("b.one", bytes("1")).await.unwrap();
    let mut watch = bucket.watch("a.*").await.unwrap();
    assert_eq!(next_entry(&mut watch).await.key, "a.one");
    expect_current(&mut watch).await;
    bucket.put("b.two", bytes("1")).await.unwrap();
    bucket.put("a.x.y", bytes("1")).await.unwrap();
    bucket.put("a.two", bytes("1")).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.key, "a.two");
}

async fn a_watch_waits_for_a_bucket_that_does_not_exist(place: Place) {
    let store = place.open().await;
    let mut watch = store.bucket("B").unwrap().watch("k").await.unwrap();
    let event = next(&mut watch).await;
    let WatchEvent::Interrupted(reason) = event else { panic!("{event:?}") };
    assert!(reason.starts_with("bucket \"B\" does not exist; make it with `mms kv add B"), "{reason}");
    let bucket = store.create_bucket(&settings("B")).await.unwrap();
    bucket.put("k", bytes("1")).await.unwrap();
    // The value comes before `Current` or after, as the watch may find the bucket before the value is in it.
    loop {
        match next(&mut watch).await {
            WatchEvent::Entry(entry) => break assert_eq!(entry.value, bytes("1")),
            WatchEvent::Current => {}
            WatchEvent::Interrupted(reason) => panic!("told twice: {reason}"),
        }
    }
}

async fn a_watch_survives_deletion_and_remaking_of_its_bucket(place: Place) {
    let (store, bucket) = place.bucket().await;
    bucket.put("k", bytes("1")).await.unwrap();
    let mut watch = bucket.watch("k").await.unwrap();
    assert_eq!(next_entry(&mut watch).await.value, bytes("1"));
    expect_current(&mut watch).await;
    store.delete_bucket("B").await.unwrap();
    let event = next(&mut watch).await;
    assert!(matches!(event, WatchEvent::Interrupted(_)), "{event:?}");
    let bucket = store.create_bucket(&settings("B")).await.unwrap();
    bucket.put("k", bytes("2")).await.unwrap();
    loop {
        match next(&mut watch).await {
            WatchEvent::Entry(entry) => break assert_eq!((entry.value, entry.revision), (bytes("2"), 1)),
            WatchEvent::Current | WatchEvent::Interrupted(_) => {}
        }
    }
}

async fn one_client_sees_what_another_does(place: Place) {
    let (_store, bucket) = place.bucket().await;
    let other_store = place.open().await;
    let other = other_store.bucket("B").unwrap();
    let mut watch = bucket.watch(">").await.unwrap();
    expect_current(&mut watch).await;
    assert_eq!(other.put("k", bytes("1")).await.unwrap(), 1);
    assert_eq!(next_entry(&mut watch).await.value, bytes("1"));
    assert_eq!(bucket.update("k", bytes("2"), 1).await.unwrap(), 2);
    assert!(matches!(other.update("k", bytes("3"), 1).await, Err(KvError::WrongRevision { .. })));
    assert_eq!(other.get("k").await.unwrap().unwrap().value, bytes("2"));
}

async fn only_one_of_many_racing_updates_wins(place: Place) {
    let (_store, bucket) = place.bucket().await;
    bucket.put("k", bytes("0")).await.unwrap();
    let mut racers = tokio::task::JoinSet::new();
    for number in 0..8 {
        let store = place.open().await;
        racers.spawn(async move { store.bucket("B").unwrap().update("k", bytes(&number.to_string()), 1).await });
    }
    let results = racers.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    assert_eq!(results.iter().filter(|result| matches!(result, Err(KvError::WrongRevision { .. }))).count(), 7);
}

async fn a_value_of_a_megabyte_comes_back_whole(place: Place) {
    let (_store, bucket) = place.bucket().await;
    let value = Bytes::from(content(1024 * 1024));
    let mut watch = bucket.watch("k").await.unwrap();
    expect_current(&mut watch).await;
    bucket.put("k", value.clone()).await.unwrap();
    assert_eq!(bucket.get("k").await.unwrap().unwrap().value, value);
    assert_eq!(next_entry(&mut watch).await.value, value);
    if place.server.is_some() {
        let error = bucket.put("k", Bytes::from(content(1024 * 1024 + 1))).await.unwrap_err();
        assert!(matches!(error, KvError::TooLarge { limit_bytes: Some(1_048_576), .. }), "{error:?}");
    }
}

async fn an_object_of_several_megabytes_comes_back_and_is_replaced(place: Place) {
    let store = place.open().await;
    let name = "../web server-1.2.3.tgz";
    for size in [5 * 1024 * 1024 + 7, 10, 0] {
        let sent = content(size);
        store.put_object("ARCHIVES", name, Box::pin(std::io::Cursor::new(sent.clone()))).await.unwrap();
        let mut received = Vec::new();
        let mut reader = store.get_object("ARCHIVES", name).await.unwrap();
        within("the object", reader.read_to_end(&mut received)).await.unwrap();
        assert!(sent == received, "{} bytes became {}", sent.len(), received.len());
    }
}

async fn a_missing_object_is_named(place: Place) {
    let store = place.open().await;
    let expected = "object \"a.tgz\" does not exist in object bucket \"ARCHIVES\"";
    assert_eq!(store.get_object("ARCHIVES", "a.tgz").await.err().unwrap().to_string(), expected);
    store.put_object("ARCHIVES", "b.tgz", Box::pin(&b"b"[..])).await.unwrap();
    assert_eq!(store.get_object("ARCHIVES", "a.tgz").await.err().unwrap().to_string(), expected);
    assert!(matches!(store.get_object("../x", "a").await.err(), Some(KvError::InvalidBucket { .. })));
}

/// Bytes that are not all alike.
fn content(size: usize) -> Vec<u8> {
    (0..size).map(|index| u8::try_from(index * 31 % 251).unwrap()).collect()
}

#[tokio::test]
async fn a_damaged_foreign_or_newer_database_is_refused_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let open = async |name: &str, create| {
        let error = kv::open(&ConnectionSettings::local(directory.path().join(name), create)).await.err().unwrap();
        error.to_string()
    };
    std::fs::write(directory.path().join("damaged.db"), vec![b'x'; 8192]).unwrap();
    let error = open("damaged.db", CreateDatabase::Yes).await;
    assert!(error.contains("damaged.db is damaged or not one of ours; move it"), "{error}");
    let newer = rusqlite::Connection::open(directory.path().join("newer.db")).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    let error = open("newer.db", CreateDatabase::Yes).await;
    assert!(error.contains("newer.db has format 99") && error.contains("use a newer program"), "{error}");
    let error = open("absent.db", CreateDatabase::No).await;
    assert!(error.contains("absent.db does not exist; start machinesd with it"), "{error}");
    let error = open("no/absent.db", CreateDatabase::No).await;
    assert!(error.contains("the directory") && error.contains("does not exist; create it"), "{error}");
}

#[tokio::test]
async fn many_programs_may_make_the_store_at_once() {
    let place = Place::local();
    let Target::Local(path) = &place.settings.target else { panic!() };
    let mut programs = tokio::task::JoinSet::new();
    for index in 0..8 {
        let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_mms"));
        program.args(["kv", "add", &format!("B{index}"), "--kv"]).arg(format!("local:{}", path.display()));
        program.env_clear().kill_on_drop(true);
        programs.spawn(async move { program.output().await.unwrap() });
    }
    for output in within("every program ends", programs.join_all()).await {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let mut names: Vec<String> = place.open().await.buckets().await.unwrap();
    names.sort();
    assert_eq!(names, ["B0", "B1", "B2", "B3", "B4", "B5", "B6", "B7"]);
}

#[tokio::test]
async fn the_database_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::local();
    let (_store, bucket) = place.bucket().await;
    bucket.put("k", bytes("1")).await.unwrap();
    let Target::Local(path) = &place.settings.target else { panic!() };
    for suffix in ["", "-wal"] {
        let file = format!("{}{suffix}", path.display());
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
}

/// Another process: this test's program, run again with a variable that makes it the writer.
#[tokio::test]
async fn a_watch_sees_what_another_process_puts() {
    const DATABASE: &str = "KEY_VALUE_TEST_DATABASE";
    const NAME: &str = "a_watch_sees_what_another_process_puts";
    if let Some(path) = std::env::var_os(DATABASE) {
        let store = kv::open(&ConnectionSettings::local(path, CreateDatabase::No)).await.unwrap();
        store.bucket("B").unwrap().put("k", bytes("from afar")).await.unwrap();
        return;
    }
    let place = Place::local();
    let (_store, bucket) = place.bucket().await;
    let mut watch = bucket.watch("k").await.unwrap();
    expect_current(&mut watch).await;
    let Target::Local(path) = &place.settings.target else { panic!() };
    let mut writer = tokio::process::Command::new(std::env::current_exe().unwrap());
    let status = writer.args(["--exact", NAME]).env(DATABASE, path).status();
    assert!(within("the other process ends", status).await.unwrap().success());
    assert_eq!(next_entry(&mut watch).await.value, bytes("from afar"));
}
