//! The `gossip` watcher over a real nats-server and over the embedded store: where its messages go and what is in them,
//! for how long they are sent, and what it refuses.

#![cfg(test)]

mod engine;
mod support;

use std::sync::Arc;
use std::time::Duration;

use engine::{Lab, watcher};
use futures_util::StreamExt;
use machines::kv::{self, BucketSettings, ConnectionSettings, Target};
use machines::machine::runner::Handle;
use serde_json::{Value, json};
use support::nats::NatsServer;
use support::{eventually, within};

fn machine(properties: &str) -> String {
    format!(
        "name: talker\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: failed, from: [A], destination: B}}\n  \
         - {{name: leave, from: [A], destination: B}}\nwatchers:\n  - name: it\n    type: gossip\n    interval: 1s\n    \
         state_match: [A]\n    properties:\n{properties}"
    )
}

async fn nats() -> (NatsServer, Lab) {
    let server = NatsServer::start();
    let store = kv::open(&ConnectionSettings::new(Target::parse(&server.url()).unwrap())).await.unwrap();
    let lab = Lab::with_store(tempfile::tempdir().unwrap(), store);
    eventually("the connection", || async { lab.services.store.buckets().await.is_ok() }).await;
    (server, lab)
}

async fn services(lab: &Lab) -> Arc<dyn kv::Bucket> {
    let name = "CHORIA_SERVICES".to_owned();
    let settings = BucketSettings { name, history: 1, ttl: None, replicas: 1, maximum_value_bytes: None };
    lab.services.store.create_bucket(&settings).await.unwrap()
}

async fn checked(handle: &Handle, outcome: &str) {
    eventually(&format!("the outcome {outcome}"), || async {
        watcher(&handle.remote.status(), "it").outcome == outcome
    })
    .await;
}

fn error(handle: &Handle) -> String {
    watcher(&handle.remote.status(), "it").last_error.unwrap_or_default()
}

const REGISTRATION: &str = "      registration:\n        cluster: lon\n        service: web\n        protocol: http\n        \
                            address: \"{{ lookup `facts.role` `` }}.example.net\"\n        port: 8080\n        priority: 2\n        \
                            annotations: {role: \"{{ lookup `facts.role` `` }}\"}\n";

#[tokio::test]
async fn a_payload_is_published_again_and_again_while_the_state_lasts() {
    let (_server, lab) = nats().await;
    let client = lab.services.store.nats().unwrap();
    let mut messages = client.subscribe("gossip.>").await.unwrap();
    client.flush().await.unwrap();
    let mut events = lab.events();
    let properties = "      subject: \"gossip.{{ lookup `facts.role` `none` }}\"\n      payload: \"cpus {{ lookup `facts.cpus` 0 }}\"\n      ttl_seconds: 30\n";
    let handle = lab.spawn_real(&machine(properties));
    for _ in 0..3 {
        let message = within("a message", messages.next()).await.unwrap();
        assert_eq!((message.subject.as_str(), message.payload.as_ref()), ("gossip.web", b"cpus 2".as_slice()));
        assert_eq!(message.headers.unwrap().get("Nats-TTL").unwrap().as_str(), "30s");
    }
    let told = events.drain();
    assert_eq!(told[0]["data"]["subject"], "gossip.web");
    assert_eq!(told[0]["data"]["payload"], "cpus 2");
    assert!(told[0]["data"]["published"].as_i64().unwrap() > 1_700_000_000);
    handle.remote.transition("leave").await.unwrap();
    checked(&handle, "skipped").await;
    handle.stop().await;
}

#[tokio::test]
async fn a_registration_is_put_where_others_look_for_it() {
    let (_server, lab) = nats().await;
    let bucket = services(&lab).await;
    let handle = lab.spawn_real(&machine(REGISTRATION));
    checked(&handle, "published").await;
    let key = format!("lon.http.web.{}", handle.remote.status().id);
    let entry = bucket.get(&key).await.unwrap().unwrap();
    let expected = json!({
        "cluster": "lon", "service": "web", "protocol": "http", "address": "web.example.net", "port": 8080, "priority": 2,
        "annotations": {"role": "web"},
    });
    assert_eq!(serde_json::from_slice::<Value>(&entry.value).unwrap(), expected);
    handle.stop().await;
}

#[tokio::test]
async fn a_registration_with_a_prefix_is_published_there() {
    let (_server, lab) = nats().await;
    let client = lab.services.store.nats().unwrap();
    let mut messages = client.subscribe("my.services.>").await.unwrap();
    client.flush().await.unwrap();
    let handle = lab.spawn_real(&machine(&format!("{REGISTRATION}        prefix: my.services\n")));
    let message = within("a message", messages.next()).await.unwrap();
    let expected = format!("my.services.lon.http.web.{}", handle.remote.status().id);
    assert_eq!(message.subject.as_str(), expected);
    handle.stop().await;
}

#[tokio::test]
async fn a_time_to_live_that_the_bucket_does_not_allow_is_an_error_and_one_that_it_allows_holds() {
    let (_server, lab) = nats().await;
    services(&lab).await;
    let properties = format!("{REGISTRATION}      ttl_seconds: 60\n");
    let handle = lab.spawn_real(&machine(&properties));
    checked(&handle, "error").await;
    assert!(error(&handle).contains("allow a time to live for each message"), "{}", error(&handle));
    handle.stop().await;
    let context = async_nats::jetstream::new(lab.services.store.nats().unwrap());
    let mut stream = context.get_stream("KV_CHORIA_SERVICES").await.unwrap().info().await.unwrap().config.clone();
    stream.allow_message_ttl = true;
    context.update_stream(&stream).await.unwrap();
    let handle = lab.spawn_real(&machine(&properties));
    checked(&handle, "published").await;
    handle.stop().await;
}

#[tokio::test]
async fn the_embedded_store_takes_registrations_into_its_bucket_and_nothing_else() {
    let lab = Lab::new().await;
    let handle = lab.spawn_real(&machine(REGISTRATION));
    checked(&handle, "error").await;
    assert!(error(&handle).contains("mms kv add CHORIA_SERVICES"), "{}", error(&handle));
    let bucket = services(&lab).await;
    checked(&handle, "published").await;
    assert_eq!(bucket.keys().await.unwrap(), [format!("lon.http.web.{}", handle.remote.status().id)]);
    handle.stop().await;
    let failing = machine("      subject: a.b\n      payload: x\n")
        .replace("    interval", "    fail_transition: failed\n    interval");
    let handle = lab.spawn_real(&failing);
    eventually("the fail transition", || async { handle.remote.status().state.as_str() == "B" }).await;
    handle.stop().await;
    let handle = lab.spawn_real(&machine("      subject: a.b\n      payload: x\n"));
    checked(&handle, "error").await;
    assert!(
        error(&handle).contains("a.b is a NATS subject, but the node has the embedded store"),
        "{}",
        error(&handle)
    );
    handle.stop().await;
}

#[tokio::test]
async fn what_templates_make_is_judged_as_what_is_written() {
    let lab = Lab::new().await;
    for (properties, reason) in [
        (
            "      subject: \"a..{{ lookup `facts.role` `` }}\"\n      payload: x\n".to_owned(),
            "must be words joined by dots",
        ),
        (
            REGISTRATION.replace("cluster: lon", "cluster: \"{{ lookup `facts.role` `` }}.x\""),
            "cluster \"web.x\" must be letters",
        ),
    ] {
        let handle = lab.spawn_real(&machine(&properties));
        checked(&handle, "error").await;
        assert!(error(&handle).contains(reason), "{}", error(&handle));
        handle.stop().await;
    }
}

#[test]
fn bad_properties_are_refused_with_their_places() {
    let refused = |properties: &str| engine::build(&machine(properties)).map(drop).unwrap_err();
    let cases = [
        ("subject: a.b", "payload is missing; give subject and payload, or registration"),
        ("payload: a", "subject is missing; give subject and payload, or registration"),
        ("subject: a b\n      payload: x", "subject \"a b\" must be words joined by dots"),
        ("subject: a.*\n      payload: x", "subject \"a.*\" must be words joined by dots"),
        ("subject: a.b\n      payload: x\n      ttl_seconds: 0", "ttl_seconds must be at least 1"),
    ];
    for (properties, reason) in cases {
        let message = refused(&format!("      {properties}\n"));
        assert!(message.contains(&format!("gossip watcher \"it\": {reason}")), "{properties}: {message}");
    }
    let cases = [
        ("cluster: lon", "cluster: l.n", "14:18: ", "cluster \"l.n\" must be letters, digits, _ and -, a letter first"),
        ("port: 8080", "port: 0", "18:15: ", "port must not be 0"),
        ("port: 8080", "port: 80800", "18:15: ", "port: invalid value"),
        ("priority: 2", "prefix: a b", "19:17: ", "prefix: subject \"a b\" must be words"),
        ("priority: 2", "prio: 2", "19:9: ", "unknown key \"prio\""),
        ("        service: web\n", "", "14:", "missing field `service`"),
    ];
    for (from, to, place, reason) in cases {
        let message = refused(&REGISTRATION.replace(from, to));
        assert!(message.contains(reason), "{to}: {message}");
        assert!(message.starts_with(&format!("machine.yaml:{place}")), "{to}: {message}");
    }
    let message = refused(&format!("{REGISTRATION}      subject: a\n"));
    assert!(message.contains("registration takes the place of subject and payload"), "{message}");
    let watchers = engine::build(&machine("      subject: a\n      payload: \"{{ lookup `data.x` 1 }}\"\n")).unwrap();
    assert_eq!((watchers[0].1.reads(), watchers[0].1.looks_up()), (vec!["x".to_owned()], vec!["data.x".to_owned()]));
    assert!(watchers[0].1.timeout() > Duration::from_secs(1));
}
