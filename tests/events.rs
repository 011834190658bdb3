//! The promises about events, with a real nats-server: they arrive in order also when the server was away, what does not
//! fit is dropped oldest first and counted, and each is a valid `CloudEvent` with the fields of the reference.

#![cfg(test)]

mod engine;
mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream;
use boon::{Compiler, SchemaIndex, Schemas};
use engine::fields::{COMMON_FIELDS, EVENT_FIELDS};
use futures_util::StreamExt;
use machines::events::{Body, Bus, Event, Origin, nats};
use machines::machine::watcher::{Fires, Kind, Seen};
use machines::names::{Identity, Label, MachineName, Version};
use machines::watchers::KINDS;
use serde_json::{Map, Value};
use support::nats::NatsServer;
use support::{eventually, within};

fn origin() -> Origin {
    Origin {
        identity: Identity::new("web1.example.net").unwrap(),
        machine: MachineName::new("facts").unwrap(),
        version: Version::new("1.0.0").unwrap(),
        instance: "abc".into(),
    }
}

fn transition() -> Event {
    let label = |text| Label::new(text).unwrap();
    let body = Body::Transition { transition: label("go"), from_state: label("A"), to_state: label("B") };
    Event::new(origin(), body)
}

async fn connect(server: &NatsServer) -> async_nats::Client {
    let options = async_nats::ConnectOptions::new()
        .retry_on_initial_connect()
        .reconnect_delay_callback(|_| Duration::from_millis(50));
    let client = options.connect(server.url()).await.unwrap();
    eventually("the connection", || async { client.connection_state() == async_nats::connection::State::Connected })
        .await;
    client
}

/// Keeps what is published, so that no subscriber has to be quicker than the publisher after a restart.
async fn record(server: &NatsServer) -> async_nats::Client {
    let client = connect(server).await;
    let stream = jetstream::stream::Config {
        name: "EVENTS".to_owned(),
        subjects: vec!["choria.machine.>".to_owned()],
        ..Default::default()
    };
    jetstream::new(client.clone()).create_stream(stream).await.unwrap();
    client
}

/// The different events up to this one, in the order of their first arrival.
async fn recorded(server: &NatsServer, last: &str) -> Vec<String> {
    let client = connect(server).await;
    let stream = jetstream::new(client).get_stream("EVENTS").await.unwrap();
    let consumer = stream.create_consumer(jetstream::consumer::pull::OrderedConfig::default()).await.unwrap();
    let mut messages = consumer.messages().await.unwrap();
    let mut ids: Vec<String> = Vec::new();
    within("the arrival of the events", async {
        while ids.last().is_none_or(|id| id != last) {
            let message = messages.next().await.unwrap().unwrap();
            let event: Value = serde_json::from_slice(&message.payload).unwrap();
            let id = event["id"].as_str().unwrap().to_owned();
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    })
    .await;
    ids
}

fn publish(bus: &Bus, count: usize) -> Vec<String> {
    let events = (0..count).map(|_| transition());
    events
        .map(|event| {
            let id = event.id.to_string();
            bus.publish(event);
            id
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_in_order_also_those_from_while_the_server_was_away() {
    let mut server = NatsServer::start();
    let client = record(&server).await;
    let bus = Bus::default();
    let delivery = bus.delivery();
    let carrier = tokio::spawn(nats::publish(bus.clone(), client.clone()));
    let published = publish(&bus, 200);
    eventually("the first part", || async { delivery.sent() == 200 }).await;
    assert_eq!(recorded(&server, published.last().unwrap()).await, published);
    server.stop();
    let away = publish(&bus, 300);
    eventually("the queue", || async { delivery.waiting() == 300 }).await;
    server.start_again();
    eventually("the rest", || async { delivery.sent() == 500 }).await;
    // A killed server may have lost what it had not written yet; what came after its restart it has.
    let all = recorded(&server, away.last().unwrap()).await;
    assert!(all.ends_with(&away), "{} events", all.len());
    assert_eq!((delivery.dropped(), delivery.waiting()), (0, 0));
    drop(bus);
    within("the end of the carrier", carrier).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_dropped_oldest_first_and_counted() {
    let mut server = NatsServer::start();
    let client = record(&server).await;
    let bus = Bus::default();
    let delivery = bus.delivery();
    let _carrier = tokio::spawn(nats::publish_within(bus.clone(), client.clone(), 100));
    server.stop();
    eventually("the loss of the connection", || async {
        client.connection_state() != async_nats::connection::State::Connected
    })
    .await;
    let published = publish(&bus, 250);
    eventually("the drops", || async { delivery.dropped() == 150 }).await;
    assert_eq!(delivery.waiting(), 100);
    server.start_again();
    eventually("the rest", || async { delivery.sent() == 100 }).await;
    assert_eq!(recorded(&server, published.last().unwrap()).await, published[150..]);
    assert_eq!(delivery.dropped(), 150);
}

/// The rules of the `CloudEvents` 1.0 JSON format
/// (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/cloudevents.json>), those for what we send.
fn assert_cloud_event(event: &Value) {
    let event = event.as_object().unwrap();
    let text = |name: &str| event[name].as_str().filter(|text| !text.is_empty()).unwrap_or_else(|| panic!("{name}"));
    assert_eq!(text("specversion"), "1.0");
    assert_eq!(text("source"), "io.choria.machine");
    assert_eq!(text("datacontenttype"), "application/json");
    uuid::Uuid::parse_str(text("id")).unwrap();
    text("type");
    text("subject");
    let time: jiff::Timestamp = text("time").parse().unwrap();
    assert_eq!(event["data"]["timestamp"], time.as_second());
    let known: BTreeSet<&str> =
        ["specversion", "source", "datacontenttype", "id", "type", "subject", "time", "data"].into();
    assert_eq!(event.keys().map(String::as_str).collect::<BTreeSet<_>>(), known);
}

/// The JSON Schema of `CloudEvents` 1.0 as that project publishes it, in the hands of a validator that knows nothing of us.
struct CloudEvents {
    schemas: Schemas,
    event: SchemaIndex,
}

impl CloudEvents {
    fn new() -> Self {
        let schema: Value = serde_json::from_str(include_str!("data/cloudevents/cloudevents.json")).unwrap();
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.enable_format_assertions();
        compiler.enable_content_assertions();
        compiler.add_resource("cloudevents.json", schema).unwrap();
        let event = compiler.compile("cloudevents.json", &mut schemas).unwrap_or_else(|error| panic!("{error:#}"));
        Self { schemas, event }
    }

    fn judge(&self, event: &Value) -> Result<(), String> {
        self.schemas.validate(event, self.event).map_err(|error| format!("{error:#}"))
    }
}

#[test]
fn the_schema_of_cloud_events_refuses_what_is_none() {
    let judge = CloudEvents::new();
    let good = transition().cloud_event();
    judge.judge(&good).unwrap();
    let wrong = [
        ("id", Value::Null),
        ("source", "not a reference: \u{7f}<>".into()),
        ("time", "yesterday".into()),
        ("subject", "".into()),
        ("type", 5.into()),
    ];
    for (name, value) in wrong {
        let mut event = good.clone();
        event[name] = value;
        assert!(judge.judge(&event).is_err(), "{name}: {event}");
    }
    let mut without = good;
    without.as_object_mut().unwrap().remove("specversion");
    assert!(judge.judge(&without).is_err());
}

fn keys(data: &Value) -> BTreeSet<&str> {
    data.as_object().unwrap().keys().map(String::as_str).collect()
}

/// A machine with one watcher of a kind, with the states and transitions that the examples name.
fn machine(kind: &Kind) -> String {
    let named = if let Fires::Named(names) = kind.fires { names } else { &[] };
    let named: String =
        named.iter().map(|name| format!(", {{name: {name}, from: [BUSY], destination: BUSY}}")).collect();
    let properties: String = kind.example.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "name: facts\nversion: 1.0.0\ninitial_state: IDLE\ntransitions: [{{name: go, from: [IDLE], destination: \
         BUSY}}{named}]\nwatchers:\n  - name: it\n    type: {}\n    properties:\n{properties}",
        kind.name
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_subscriber_gets_every_kind_as_a_cloud_event_with_the_fields_of_the_reference() {
    let server = NatsServer::start();
    let plain = connect(&server).await;
    let mut events = plain.subscribe("choria.machine.>").await.unwrap();
    plain.flush().await.unwrap();
    let bus = Bus::default();
    let _carrier = tokio::spawn(nats::publish(bus.clone(), connect(&server).await));
    bus.publish(transition());
    for kind in KINDS {
        let text = machine(kind);
        let built = engine::build(&text).unwrap();
        let seen = Seen { outcome: "unknown", run_time: Duration::from_millis(5) };
        let fields: Map<String, Value> = built[0].1.event_fields(&seen);
        let body = Body::WatcherState { kind: kind.name, watcher: Label::new("it").unwrap(), fields };
        bus.publish(Event::new(origin(), body));
    }
    let judge = CloudEvents::new();
    let mut next = async || {
        let message = within("an event", events.next()).await.unwrap();
        let event: Value = serde_json::from_slice(&message.payload).unwrap();
        judge.judge(&event).unwrap_or_else(|error| panic!("{error}\n{event}"));
        assert_cloud_event(&event);
        assert_eq!(
            (&event["subject"], &event["data"]["identity"]),
            (&"web1.example.net".into(), &"web1.example.net".into())
        );
        (message.subject.to_string(), event)
    };
    let (subject, event) = next().await;
    assert_eq!(
        (subject.as_str(), &event["type"]),
        ("choria.machine.transition", &"io.choria.machine.v1.transition".into())
    );
    let expected =
        ["protocol", "identity", "id", "version", "timestamp", "machine", "transition", "from_state", "to_state"];
    assert_eq!(keys(&event["data"]), BTreeSet::from(expected));
    for kind in KINDS {
        let (subject, event) = next().await;
        assert_eq!(subject, format!("choria.machine.watcher.{}.state", kind.name));
        assert_eq!(event["type"], format!("io.choria.machine.watcher.{}.v1.state", kind.name));
        assert_eq!(event["data"]["protocol"], event["type"]);
        let keys = keys(&event["data"]);
        assert!(COMMON_FIELDS.iter().all(|field| keys.contains(field)), "{}: {keys:?}", kind.name);
        if let Some((_, fields)) = EVENT_FIELDS.iter().find(|(name, _)| *name == kind.name) {
            let expected = COMMON_FIELDS.iter().chain(*fields).copied().collect::<BTreeSet<_>>();
            assert_eq!(keys, expected, "{}", kind.name);
        }
        println!("{}: a valid CloudEvent, {} fields", kind.name, keys.len());
    }
}
