//! What the kv watcher stores of a value, and under which name: `query`, `hiera_config`, and a bucket and a key that
//! facts and data decide.

#![cfg(test)]

mod engine;
mod support;

use std::sync::Arc;

use engine::{Lab, watcher};
use machines::kv::{Bucket, BucketSettings};
use machines::machine::runner::Handle;
use serde_json::{Value, json};
use support::eventually;

fn machine(properties: &str) -> String {
    format!(
        "name: taker\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: changed, from: [A], destination: A}}\n\
         watchers:\n  - name: it\n    type: kv\n    interval: 1h\n    properties:\n      mode: watch\n{properties}"
    )
}

async fn bucket(lab: &Lab) -> Arc<dyn Bucket> {
    let settings =
        BucketSettings { name: "B".to_owned(), history: 3, ttl: None, replicas: 1, maximum_value_bytes: None };
    lab.services.store.create_bucket(&settings).await.unwrap()
}

async fn put(bucket: &Arc<dyn Bucket>, key: &str, value: &Value) {
    bucket.put(key, value.to_string().into_bytes().into()).await.unwrap();
}

async fn saved(lab: &Lab, expected: Value) {
    eventually(&format!("the data {expected}"), || async { lab.saved("taker") == Some(expected.clone()) }).await;
}

async fn fails(handle: &Handle, reason: &str) {
    eventually(&format!("the fault {reason}"), || async {
        let status = watcher(&handle.remote.status(), "it");
        status.outcome == "error" && status.last_error.unwrap_or_default().contains(reason)
    })
    .await;
}

#[tokio::test]
async fn a_query_stores_a_part_of_the_value_and_what_it_does_not_find_is_an_error() {
    let lab = Lab::new().await;
    let bucket = bucket(&lab).await;
    put(&bucket, "k", &json!({"hosts": [{"name": "a"}, {"name": "b"}]})).await;
    let handle = lab.spawn_real(&machine("      bucket: B\n      key: k\n      query: hosts.#.name\n"));
    saved(&lab, json!({"B_k": ["a", "b"]})).await;
    put(&bucket, "k", &json!({"other": 1})).await;
    fails(&handle, "revision 2 of key \"k\" in B can't be used: query \"hosts.#.name\" finds nothing in it").await;
    assert_eq!(lab.saved("taker"), Some(json!({"B_k": ["a", "b"]})), "what was good stays");
    put(&bucket, "k", &json!({"hosts": [{"name": "c"}]})).await;
    saved(&lab, json!({"B_k": ["c"]})).await;
    bucket.delete("k").await.unwrap();
    saved(&lab, json!({})).await;
    handle.stop().await;
}

#[tokio::test]
async fn a_change_outside_of_the_queried_part_is_no_change() {
    let lab = Lab::new().await;
    let bucket = bucket(&lab).await;
    put(&bucket, "k", &json!({"a": 1, "b": 1})).await;
    let handle = lab.spawn_real(&machine("      bucket: B\n      key: k\n      query: a\n"));
    saved(&lab, json!({"B_k": 1})).await;
    put(&bucket, "k", &json!({"a": 1, "b": 2})).await;
    eventually("the second revision", || async {
        watcher(&handle.remote.status(), "it").detail.as_deref() == Some("revision 2")
    })
    .await;
    assert_eq!(watcher(&handle.remote.status(), "it").outcome, "unchanged");
    handle.stop().await;
}

#[tokio::test]
async fn hierarchical_data_is_resolved_for_the_node_and_again_when_its_facts_change() {
    let lab = Lab::new().await;
    let bucket = bucket(&lab).await;
    let document = json!({
        "hierarchy": {"order": ["role:{{ lookup('facts.role') }}", "default"], "merge": "deep"},
        "data": {"level": "info", "ports": [22], "cpus": "{{ lookup('facts.cpus', 0) }}"},
        "overrides": {
            "role:web": {"ports": [80]}, "role:db": {"level": "debug", "ports": [5432]}, "default": {"default": true},
        },
    });
    put(&bucket, "k", &document).await;
    let handle = lab
        .spawn_real(&machine("      bucket: B\n      key: k\n      bucket_prefix: false\n      hiera_config: true\n"));
    saved(&lab, json!({"k": {"level": "info", "ports": [22, 80], "cpus": 2, "default": true}})).await;
    lab.services.node.set_facts(json!({"role": "db"}));
    saved(&lab, json!({"k": {"level": "debug", "ports": [22, 5432], "cpus": 0, "default": true}})).await;
    put(&bucket, "k", &json!({"data": {}})).await;
    fails(&handle, "can't be used: it is not a hierarchy: \"hierarchy\" is missing").await;
    handle.stop().await;
    let handle = lab.spawn_real(&machine(
        "      bucket: B\n      key: k\n      store_key: level\n      hiera_config: true\n      query: level\n",
    ));
    put(&bucket, "k", &document).await;
    eventually("the level", || async { lab.saved("taker").is_some_and(|data| data["level"] == "debug") }).await;
    handle.stop().await;
}

#[tokio::test]
async fn the_key_that_facts_decide_is_watched_and_what_the_last_one_left_goes() {
    let lab = Lab::new().await;
    let bucket = bucket(&lab).await;
    put(&bucket, "web", &json!("one")).await;
    put(&bucket, "db", &json!("two")).await;
    let mut events = lab.events();
    let handle = lab.spawn_real(&machine("      bucket: B\n      key: \"{{ lookup `facts.role` `none` }}\"\n"));
    saved(&lab, json!({"B_web": "\"one\""})).await;
    assert_eq!(events.drain()[0]["data"]["key"], "web");
    put(&bucket, "web", &json!("more")).await;
    saved(&lab, json!({"B_web": "\"more\""})).await;
    lab.services.node.set_facts(json!({"role": "db"}));
    saved(&lab, json!({"B_db": "\"two\""})).await;
    put(&bucket, "db", &json!("three")).await;
    saved(&lab, json!({"B_db": "\"three\""})).await;
    lab.services.node.set_facts(json!({"role": "no key"}));
    fails(&handle, "\"no key\"").await;
    handle.stop().await;
}

#[test]
fn bad_properties_are_refused_and_what_is_looked_up_and_written_is_told() {
    for (properties, reason) in [
        ("bucket: B\n      key: k\n      query: ''", "kv watcher \"it\": query is empty"),
        ("bucket: B\n      key: k\n      hiera_config: 5", "kv watcher \"it\": hiera_config: invalid type"),
        ("bucket: a.b\n      key: k", "\"a.b\""),
        ("bucket: B\n      key: \"{{ nope }}\"", "kv watcher \"it\": key: the template \"{{ nope }}\" calls \"nope\""),
    ] {
        let message = engine::build(&machine(&format!("      {properties}\n"))).map(drop).unwrap_err();
        assert!(message.contains(reason), "{properties}: {message}");
    }
    let text = machine("      bucket: B\n      key: \"{{ lookup `data.x.y` `` }}\"\n");
    let watchers = engine::build(&text).unwrap();
    assert_eq!((watchers[0].1.reads(), watchers[0].1.looks_up()), (vec!["x".to_owned()], vec!["data.x.y".to_owned()]));
    use machines::machine::watcher::Writes;
    assert_eq!(watchers[0].1.writes(), Writes::Anything);
    let watchers = engine::build(&machine("      bucket: B\n      key: k\n")).unwrap();
    assert_eq!(watchers[0].1.writes(), Writes::Items(vec!["B_k".to_owned()]));
}
