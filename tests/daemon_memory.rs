//! A node whose memory is damaged: what can be had without it runs, and the loss is said loudly.

#![cfg(test)]

mod support;

use std::fs;

use machines::kv::{self, BucketSettings, ConnectionSettings, CreateDatabase};
use support::daemon::{is_running, text};
use support::fleet::{Agent, Backend, Fleet};
use support::unwrapped;

fn aside(directory: &std::path::Path, of: &str) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(&format!("{of}.damaged-"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_damaged_state_database_what_is_installed_runs_and_the_loss_is_said() {
    let mut fleet = Fleet::start(Backend::Nats).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    fleet.publish(&[&fleet.build(&Agent::new("hello", "1.0.0"))]).await;
    daemon.until_running("hello", "1.0.0").await;
    assert!(daemon.terminate().0.success());

    // The network is away, so that nothing tells the node what it has forgotten.
    fleet.nats.as_mut().unwrap().stop();
    let database = daemon.state_dir().join("state.db");
    fs::write(&database, "not a database, but long enough to be taken for one\n".repeat(100)).unwrap();
    let _ = fs::remove_file(daemon.state_dir().join("state.db-wal"));
    daemon.start().await;
    let status = daemon.until("hello runs", |status| is_running(status, "hello")).await;
    let lost = text(&status, "/sync/lost_memory/detail");
    assert!(lost.starts_with("the state database was damaged (") && lost.contains("state.db.damaged-"), "{lost}");
    let printed = unwrapped(&daemon.run(&["status"]).out);
    let effect =
        "what is installed is verified as before and runs on, and nothing is installed, repaired or removed until";
    assert!(printed.contains("MEMORY LOST the state database was damaged") && printed.contains(effect), "{printed}");
    assert_eq!(daemon.run(&["status", "--check"]).code, Some(1));
    daemon.until_log("this node begins with an empty memory").await;
    assert_eq!(aside(&daemon.state_dir(), "state.db").len(), 1);

    // What is published comes back, and all is as it was.
    fleet.nats.as_mut().unwrap().start_again();
    daemon.until("it is known again", |status| status["sync"]["lost_memory"].is_null()).await;
    daemon.until_running("hello", "1.0.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_embedded_store_stops_nothing_that_was_accepted() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    fleet.publish(&[&fleet.build(&Agent::new("hello", "1.0.0"))]).await;
    daemon.until_running("hello", "1.0.0").await;
    assert!(daemon.terminate().0.success());
    let database = daemon.state_dir().join("kv.db");
    // The operator's side of this test has it open too, so that its log is still there.
    for companion in ["kv.db-wal", "kv.db-shm"] {
        let _ = fs::remove_file(daemon.state_dir().join(companion));
    }
    fs::write(&database, "not a database, but long enough to be taken for one\n".repeat(100)).unwrap();
    daemon.start().await;
    daemon.until_running("hello", "1.0.0").await;
    daemon.until_log("is damaged and was moved to").await;
    assert_eq!(aside(&daemon.state_dir(), "kv.db").len(), 1);

    // It is published again, into the new one.
    let settings =
        BucketSettings { name: "MACHINES".to_owned(), history: 1, ttl: None, replicas: 1, maximum_value_bytes: None };
    let store = kv::open(&ConnectionSettings::local(&database, CreateDatabase::No)).await.unwrap();
    let bucket = store.create_bucket(&settings).await.unwrap();
    let second = fleet.build(&Agent::new("hello", "2.0.0"));
    bucket.put("machines", fleet.pack(&[&second]).into()).await.unwrap();
    daemon.until_running("hello", "2.0.0").await;
}
