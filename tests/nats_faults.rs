//! What a NATS store does when things go wrong: servers that are away, restart or lose their data, buckets that vanish,
//! credentials and certificates that are refused.

#![cfg(test)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use machines::kv::{
    self, Bucket, BucketSettings, ConnectionSettings, Credentials, Entry, KvError, Nkey, Store, Target, Watch,
    WatchEvent,
};
use machines::secret::Secret;
use support::nats::{NatsServer, certificates};
use support::within;

fn settings(server: &NatsServer) -> ConnectionSettings {
    ConnectionSettings::new(Target::parse(&server.url()).unwrap())
}

async fn open(settings: &ConnectionSettings) -> Arc<dyn Store> {
    kv::open(settings).await.unwrap()
}

async fn make_bucket(store: &dyn Store) -> Arc<dyn Bucket> {
    let settings =
        BucketSettings { name: "B".to_owned(), history: 1, ttl: None, replicas: 1, maximum_value_bytes: None };
    store.create_bucket(&settings).await.unwrap()
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

async fn expect_interrupted(watch: &mut Watch) -> String {
    match next(watch).await {
        WatchEvent::Interrupted(reason) => reason,
        other => panic!("expected an interruption, got {other:?}"),
    }
}

/// Waits for a value; interruptions and repetitions may come before it.
async fn await_value(watch: &mut Watch, value: &'static str) {
    loop {
        if let WatchEvent::Entry(entry) = next(watch).await
            && entry.value == value
        {
            return;
        }
    }
}

#[tokio::test]
async fn a_store_opens_while_the_server_is_down_and_works_once_it_is_up() {
    let mut server = NatsServer::stopped();
    let store = open(&settings(&server)).await;
    assert!(!store.connection().connected);
    let bucket = store.bucket("B").unwrap();
    let mut watch = bucket.watch("k").await.unwrap();

    let asked = Instant::now();
    let error = within("the call fails", bucket.get("k")).await.unwrap_err();
    assert!(matches!(error, KvError::Connect { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.starts_with(&format!("could not connect to {}: ", server.url())), "{message}");
    assert!(message.contains("Connection refused"), "{message}");
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert!(expect_interrupted(&mut watch).await.contains("Connection refused"));

    server.start_again();
    let bucket = loop {
        let settings =
            BucketSettings { name: "B".to_owned(), history: 1, ttl: None, replicas: 1, maximum_value_bytes: None };
        match within("the bucket is made", store.create_bucket(&settings)).await {
            Ok(bucket) => break bucket,
            Err(KvError::Connect { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    };
    bucket.put("k", Bytes::from_static(b"1")).await.unwrap();
    await_value(&mut watch, "1").await;
    let connection = store.connection();
    assert!(connection.connected && connection.detail.contains("2."), "{connection:?}");
}

#[tokio::test]
async fn a_host_that_nobody_knows_is_named() {
    // Longer than a part of a name may be, so no name server is asked.
    let (host, url) = ("x".repeat(64), format!("nats://{}:4222", "x".repeat(64)));
    let store = open(&ConnectionSettings::new(Target::parse(&url).unwrap())).await;
    let expected = format!("could not connect to {url}: the host \"{host}\" has no address that can be found: ");
    support::eventually("the reason is known", async || {
        let error = within("the call fails", store.buckets()).await.unwrap_err().to_string();
        error.starts_with(&expected)
    })
    .await;
}

#[tokio::test]
async fn a_watch_goes_on_after_the_server_restarted_with_its_data() {
    let mut server = NatsServer::start();
    let store = open(&settings(&server)).await;
    let bucket = make_bucket(&*store).await;
    bucket.put("k", Bytes::from_static(b"1")).await.unwrap();
    let mut watch = bucket.watch("k").await.unwrap();
    assert_eq!(next_entry(&mut watch).await.value, "1");
    expect_current(&mut watch).await;
    for round in ["2", "3"] {
        server.stop();
        let reason = expect_interrupted(&mut watch).await;
        assert_eq!(reason, format!("the connection to {} was lost", server.url()));
        server.start_again();
        assert_eq!(next_entry(&mut watch).await.revision + 1, round.parse::<u64>().unwrap(), "the newest comes again");
        expect_current(&mut watch).await;
        bucket.put("k", Bytes::from_static(round.as_bytes())).await.unwrap();
        assert_eq!(next_entry(&mut watch).await.value, round);
    }
}

/// async-nats 0.43 to 0.49 lost a watch that nobody polled during a restart.
#[tokio::test]
async fn a_watch_that_nobody_polled_during_a_restart_goes_on() {
    let mut server = NatsServer::start();
    let store = open(&settings(&server)).await;
    let bucket = make_bucket(&*store).await;
    let mut watch = bucket.watch("k").await.unwrap();
    expect_current(&mut watch).await;
    server.restart();
    let put = async { while bucket.put("k", Bytes::from_static(b"1")).await.is_err() {} };
    within("the put", put).await;
    await_value(&mut watch, "1").await;
}

#[tokio::test]
async fn a_watch_goes_on_after_the_server_lost_its_data() {
    let mut server = NatsServer::start();
    let store = open(&settings(&server)).await;
    let bucket = make_bucket(&*store).await;
    bucket.put("k", Bytes::from_static(b"1")).await.unwrap();
    let mut watch = bucket.watch("k").await.unwrap();
    assert_eq!(next_entry(&mut watch).await.value, "1");
    expect_current(&mut watch).await;
    server.stop();
    server.lose_data();
    assert!(expect_interrupted(&mut watch).await.contains("was lost"));
    server.start_again();
    let reason = expect_interrupted(&mut watch).await;
    assert_eq!(reason, "bucket \"B\" does not exist; make it with `mms kv add B`");
    let bucket = make_bucket(&*store).await;
    bucket.put("k", Bytes::from_static(b"2")).await.unwrap();
    await_value(&mut watch, "2").await;
}

#[tokio::test]
async fn a_watch_notices_at_once_that_its_consumer_was_deleted() {
    let server = NatsServer::start();
    let store = open(&settings(&server)).await;
    let bucket = make_bucket(&*store).await;
    let mut watch = bucket.watch("k").await.unwrap();
    expect_current(&mut watch).await;
    let jetstream = async_nats::jetstream::new(store.nats().unwrap());
    let stream = jetstream.get_stream("KV_B").await.unwrap();
    let names: Vec<String> = stream.consumer_names().map(Result::unwrap).collect().await;
    let [name] = names.as_slice() else { panic!("{names:?}") };
    stream.delete_consumer(name).await.unwrap();
    let reason = expect_interrupted(&mut watch).await;
    assert!(reason.contains("Consumer Deleted"), "{reason}");
    expect_current(&mut watch).await;
    bucket.put("k", Bytes::from_static(b"1")).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.value, "1");
}

#[tokio::test]
async fn a_watch_whose_reading_always_ends_is_begun_more_and_more_slowly() {
    let server = NatsServer::start();
    let store = open(&settings(&server)).await;
    make_bucket(&*store).await;
    let mut watch = store.bucket("B").unwrap().watch("k").await.unwrap();
    expect_current(&mut watch).await;
    let jetstream = async_nats::jetstream::new(store.nats().unwrap());
    let stream = jetstream.get_stream("KV_B").await.unwrap();
    let began = Instant::now();
    for _ in 0..4 {
        let names: Vec<String> = stream.consumer_names().map(Result::unwrap).collect().await;
        for name in names {
            stream.delete_consumer(&name).await.unwrap();
        }
        expect_interrupted(&mut watch).await;
        expect_current(&mut watch).await;
    }
    // At least the half of 200, 400, 800 and 1,600 ms.
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1_450), "four readings in {took:?}");
}

#[tokio::test]
async fn a_dropped_watch_leaves_no_consumer_on_the_server() {
    let server = NatsServer::start();
    let store = open(&settings(&server)).await;
    let bucket = make_bucket(&*store).await;
    let mut watch = bucket.watch("k").await.unwrap();
    expect_current(&mut watch).await;
    drop(watch);
    let jetstream = async_nats::jetstream::new(store.nats().unwrap());
    support::eventually("the consumer is removed", async || {
        jetstream.get_stream("KV_B").await.unwrap().cached_info().state.consumer_count == 0
    })
    .await;
}

#[tokio::test]
async fn a_server_without_jetstream_is_told_from_a_missing_bucket() {
    let server =
        NatsServer::with_configuration("accounts { A { users: [{user: u, password: p}] } }\nno_auth_user: u\n");
    let error = open(&settings(&server)).await.bucket("B").unwrap().get("k").await.unwrap_err();
    assert!(matches!(error, KvError::NoJetStream { .. }), "{error:?}");
    assert!(error.to_string().contains("enable jetstream in the NATS server and for this account"), "{error}");
}

async fn refused(settings: &ConnectionSettings) -> String {
    let asked = Instant::now();
    let error = open(settings).await.buckets().await.unwrap_err();
    assert!(matches!(error, KvError::Connect { .. }), "{error:?}");
    assert!(asked.elapsed() < Duration::from_secs(4), "a refusal is told at once, not after {:?}", asked.elapsed());
    error.to_string()
}

const REFUSED: &str = "the server refused the credentials; check the creds file, nkey, token, or user and password";

#[tokio::test]
async fn user_and_password_are_used_and_a_wrong_one_is_told_without_showing_it() {
    let server = NatsServer::with_configuration("authorization { user: ann, password: \"right+1\" }\n");
    let mut settings = settings(&server);
    assert!(refused(&settings).await.ends_with(REFUSED));
    let with = |password| Credentials::UserPassword { user: "ann".to_owned(), password: Secret::new(password) };
    settings.credentials = with("hunter2");
    let message = refused(&settings).await;
    assert!(message.ends_with(REFUSED) && !message.contains("hunter2"), "{message}");
    settings.credentials = with("right+1");
    open(&settings).await.buckets().await.unwrap();

    let url = server.url().replace("nats://", "nats://ann:right+1@");
    let in_url = ConnectionSettings::new(Target::parse(&url).unwrap());
    let store = open(&in_url).await;
    store.buckets().await.unwrap();
    assert_eq!(store.connection().url, server.url());
}

#[tokio::test]
async fn a_token_is_used_and_a_wrong_one_is_told() {
    let server = NatsServer::with_configuration("authorization { token: right }\n");
    let mut settings = settings(&server);
    settings.credentials = Credentials::Token(Secret::new("wrong"));
    assert!(refused(&settings).await.ends_with(REFUSED));
    settings.credentials = Credentials::Token(Secret::new("right"));
    open(&settings).await.buckets().await.unwrap();
}

/// A test vector: the key pair of the NATS documentation's example, of no use anywhere.
const NKEY_SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
const NKEY_PUBLIC: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

#[tokio::test]
async fn an_nkey_is_used_from_a_file_and_as_a_seed() {
    let server = NatsServer::with_configuration(&format!("authorization {{ users: [{{ nkey: {NKEY_PUBLIC} }}] }}\n"));
    let mut settings = settings(&server);
    assert!(refused(&settings).await.ends_with(REFUSED));
    settings.credentials = Credentials::Nkey(Nkey::from_text(NKEY_SEED));
    open(&settings).await.buckets().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("user.nk");
    std::fs::write(&path, format!("{NKEY_SEED}\n")).unwrap();
    settings.credentials = Credentials::Nkey(Nkey::from_text(path.to_str().unwrap()));
    open(&settings).await.buckets().await.unwrap();
}

/// Test vectors, of no use anywhere: an operator with accounts, and a user of one of them.
const OPERATOR: &str = include_str!("data/nats/operator.conf");
const USER_CREDENTIALS: &str = include_str!("data/nats/user-credentials.txt");

#[tokio::test]
async fn a_credentials_file_is_used_and_its_absence_is_told() {
    let server = NatsServer::with_configuration(OPERATOR);
    let mut settings = settings(&server);
    assert!(refused(&settings).await.ends_with(REFUSED));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("user.creds");
    std::fs::write(&path, USER_CREDENTIALS).unwrap();
    settings.credentials = Credentials::CredentialsFile(path);
    let store = open(&settings).await;
    make_bucket(&*store).await.put("k", Bytes::from_static(b"1")).await.unwrap();
}

#[tokio::test]
async fn a_custom_authority_is_trusted_and_another_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let ours = certificates(&directory.path().join("ours"));
    let theirs = certificates(&directory.path().join("theirs"));
    let server = NatsServer::with_tls(&ours);
    let mut settings = ConnectionSettings::new(Target::parse(&format!("tls://localhost:{}", server.port())).unwrap());
    settings.tls.ca = Some(theirs.ca);
    let message = refused(&settings).await;
    let expected = "the server's certificate is not signed by an authority that is trusted here; set `ca` (or NATS_CA) \
                    to the authority's certificate";
    assert!(message.ends_with(expected), "{message}");
    settings.tls.ca = Some(ours.ca);
    open(&settings).await.buckets().await.unwrap();
}

#[tokio::test]
async fn a_client_certificate_is_sent_and_its_absence_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let pair = certificates(directory.path());
    let (certificate, key, ca) = (pair.certificate.display(), pair.key.display(), pair.ca.display());
    let server = NatsServer::with_configuration(&format!(
        "tls {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {ca:?}, verify: true }}\n"
    ));
    let mut settings = settings(&server);
    settings.tls.ca = Some(pair.ca.clone());
    let error = open(&settings).await.buckets().await.unwrap_err().to_string();
    assert!(error.contains("could not connect to"), "{error}");
    settings.tls.certificate = Some(pair.certificate.clone());
    let error = kv::open(&settings).await.err().unwrap().to_string();
    assert_eq!(error, "cert can't be used: it needs `key`, its private key");
    settings.tls.key = Some(pair.key.clone());
    open(&settings).await.buckets().await.unwrap();
}

#[tokio::test]
async fn a_missing_or_wrong_file_is_named_with_its_setting() {
    let server = NatsServer::stopped();
    let directory = tempfile::tempdir().unwrap();
    let wrong = directory.path().join("wrong");
    std::fs::write(&wrong, "hunter2").unwrap();
    let fails = async |change: &dyn Fn(&mut ConnectionSettings)| {
        let mut settings = settings(&server);
        change(&mut settings);
        let error = kv::open(&settings).await.err().unwrap();
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {source}")
    };
    let absent = Path::new("/nonexistent/file");
    let message = fails(&|settings| settings.credentials = Credentials::CredentialsFile(absent.into())).await;
    assert_eq!(message, "could not read the file of creds: could not open /nonexistent/file");
    let message = fails(&|settings| settings.credentials = Credentials::Nkey(Nkey::File(absent.into()))).await;
    assert_eq!(message, "could not read the file of nkey: could not open /nonexistent/file");
    let message = fails(&|settings| settings.tls.ca = Some(absent.into())).await;
    assert_eq!(message, "could not read the file of ca: could not open /nonexistent/file");
    let message = fails(&|settings| settings.credentials = Credentials::CredentialsFile(wrong.clone())).await;
    assert!(message.contains("wrong can't be used as creds") && !message.contains("hunter2"), "{message}");
    let message = fails(&|settings| settings.credentials = Credentials::Nkey(Nkey::File(wrong.clone()))).await;
    assert!(message.contains("wrong can't be used as nkey: it holds no seed"), "{message}");
    let message = fails(&|settings| settings.tls.ca = Some(wrong.clone())).await;
    assert!(message.contains("wrong can't be used as ca: it is not a PEM file"), "{message}");
}

#[tokio::test]
async fn a_context_of_the_nats_command_line_connects() {
    let server = NatsServer::with_configuration("authorization { user: ann, password: right }\n");
    let home = tempfile::tempdir().unwrap();
    let contexts = home.path().join("nats/context");
    std::fs::create_dir_all(&contexts).unwrap();
    let context = format!(r#"{{"url": "{}", "user": "ann", "password": "right", "nsc": ""}}"#, server.url());
    std::fs::write(contexts.join("lab.json"), context).unwrap();
    std::fs::write(home.path().join("nats/context.txt"), "lab").unwrap();
    let home = home.path().to_str().unwrap().to_owned();
    let lookup = |name: &str| (name == "XDG_CONFIG_HOME").then(|| home.clone());
    let settings = ConnectionSettings::from_environment(None, &lookup).unwrap();
    open(&settings).await.buckets().await.unwrap();
}

#[tokio::test]
async fn a_server_that_closes_each_connection_at_once_is_not_connected_to_without_end() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let store = open(&ConnectionSettings::new(Target::parse(&url).unwrap())).await;
    let mut began = None;
    for _ in 0..9 {
        let (mut connection, _) = within("a connection", listener.accept()).await.unwrap();
        began.get_or_insert_with(Instant::now);
        // All that it takes for the client to count it as one.
        let information =
            b"INFO {\"server_id\":\"x\",\"version\":\"2.10.0\",\"proto\":1,\"headers\":true,\"max_payload\":1024}\r\n";
        connection.write_all(information).await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"PING\r\n") {
            assert_ne!(within("its greeting", connection.read_buf(&mut read)).await.unwrap(), 0);
        }
        connection.write_all(b"PONG\r\n").await.unwrap();
    }
    // At least the half of 50, 100, 200, 400, 800 and 1,600 ms.
    let took = began.unwrap().elapsed();
    assert!(took > Duration::from_millis(1_500), "nine connections in {took:?}");
    drop(store);
}

#[tokio::test]
async fn an_object_that_links_to_itself_is_an_error_and_one_link_is_followed() {
    let server = NatsServer::start();
    let store = open(&settings(&server)).await;
    store.put_object("OBJECTS", "real", Box::pin(&b"content"[..])).await.unwrap();
    let jetstream = async_nats::jetstream::new(store.nats().unwrap());
    // The subjects end with the names in base64.
    for (name, subject, to) in [("loop", "bG9vcA==", "loop"), ("link", "bGluaw==", "real")] {
        let information = serde_json::json!({
            "name": name, "bucket": "OBJECTS", "nuid": name, "size": 0, "chunks": 0, "mtime": "2026-01-01T00:00:00Z",
            "options": {"link": {"bucket": "OBJECTS", "name": to}}, "deleted": false,
        });
        let published = jetstream.publish(format!("$O.OBJECTS.M.{subject}"), information.to_string().into()).await;
        published.unwrap().await.unwrap();
    }
    let mut content = Vec::new();
    let mut reader = within("the object", store.get_object("OBJECTS", "link")).await.unwrap();
    tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut content).await.unwrap();
    assert_eq!(content, b"content");
    let Err(error) = within("an end", store.get_object("OBJECTS", "loop")).await else { panic!("it is no object") };
    let KvError::Object { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.to_string(), "it links to too many others in a row");
}
