//! What an operator does on a node: `run --once`, `sync`, `why`, `transition`, `events`; and what the node tells the
//! world: events on NATS and in the log.

#![cfg(test)]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};

use futures_util::StreamExt as _;
use serde_json::Value;
use support::daemon::{is_running, state};
use support::fleet::{Agent, Backend, Fleet};
use support::within;

async fn once_says_whether_the_node_has_converged(backend: Backend) {
    let fleet = Fleet::start(backend).await;
    let daemon = fleet.daemon();
    let once = || daemon.run_to_the_end(&["run", "--once"]);

    let printed = once();
    assert_eq!((printed.code, printed.out.as_str()), (Some(1), "not converged\n"), "{printed:?}");
    let message =
        "bucket \"MACHINES\" has no key \"machines\"; publish a specification with `mms kv put MACHINES machines";
    let (_, store) = printed.err.split_once(message).unwrap_or_else(|| panic!("{}", printed.err));
    // `mms` asks NATS when it is not told otherwise.
    match backend {
        Backend::Nats => assert!(store.starts_with('`'), "{store}"),
        Backend::Embedded => assert!(store.starts_with(" --kv local:/"), "{store}"),
    }

    let hello = fleet.build(&Agent::new("hello", "1.0.0"));
    fleet.publish(&[&hello]).await;
    let printed = once();
    assert_eq!((printed.code, printed.out.as_str()), (Some(0), "hello: install\nconverged\n"), "{printed:?}");
    assert!(daemon.installed("hello").unwrap().join("work.sh").exists());
    assert_eq!(daemon.data("hello", "runs"), "", "--once runs no machine");
    assert_eq!(once().out, "hello: keep\nconverged\n");

    fs::remove_file(daemon.installed("hello").unwrap().join("notes.txt")).unwrap();
    let printed = once();
    assert_eq!(
        (printed.code, printed.out.as_str()),
        (Some(0), "hello: repair (\"notes.txt\" is missing)\nconverged\n")
    );

    let nowhere = hello.from("file:///nowhere/hello.tgz");
    let other = fleet.build(&Agent::new("other", "1.0.0")).from("file:///nowhere/other.tgz");
    fleet.publish(&[&nowhere, &other]).await;
    let printed = once();
    assert_eq!((printed.code, printed.out.as_str()), (Some(1), "hello: keep\nnot converged\n"), "{printed:?}");
    assert!(printed.err.contains("could not install \"other\""), "{}", printed.err);
    assert!(printed.err.contains("/nowhere/other.tgz"), "{}", printed.err);

    fleet.put("garbage").await;
    let printed = once();
    assert_eq!(printed.code, Some(1), "{printed:?}");
    assert!(printed.err.contains("the specification was refused: the envelope is not valid"), "{}", printed.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn once_says_whether_the_node_has_converged_on_nats() {
    once_says_whether_the_node_has_converged(Backend::Nats).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn once_says_whether_the_node_has_converged_embedded() {
    once_says_whether_the_node_has_converged(Backend::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_removals_wait_for_consent() {
    let fleet = Fleet::start(Backend::Nats).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    let releases: Vec<_> = ["a", "b", "c", "d"].map(|name| fleet.build(&Agent::new(name, "1.0.0"))).into();
    fleet.publish(&releases.iter().collect::<Vec<_>>()).await;
    for name in ["a", "b", "c", "d"] {
        daemon.until_running(name, "1.0.0").await;
    }
    fleet.publish(&[&releases[0]]).await;
    let status = daemon.until("three removals are held", |status| state(status, "b") == "held").await;
    assert!(["a", "b", "c", "d"].iter().all(|name| is_running(&status, name)));
    let why = "the specification would remove 3 of 4 installed machines, over 50%: if that is meant, run `machinesd sync --allow-removals` on this node";
    assert_eq!(status["sync"]["held_removals"]["reason"], why);
    let printed = daemon.run(&["status"]).out;
    assert!(printed.lines().all(|line| line.chars().count() <= 100), "wider than 100 columns: {printed}");
    assert!(support::unwrapped(&printed).contains(&format!("HELD {why}")), "{printed}");
    let printed = support::unwrapped(&daemon.run(&["why", "b"]).out);
    assert!(printed.contains("b is held") && printed.contains(why), "{printed}");

    let printed = daemon.run(&["sync", "--allow-removals"]);
    assert_eq!((printed.code, printed.out.as_str()), (Some(0), "converged\n"), "{}", printed.err);
    let gone = |status: &Value| !["b", "c", "d"].iter().any(|name| is_running(status, name));
    let status = daemon.until("they are gone", gone).await;
    assert!(is_running(&status, "a"));
    assert!(status["sync"]["held_removals"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_maintenance_nothing_changes_until_it_is_resumed() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    fleet.publish(&[&fleet.build(&Agent::new("hello", "1.0.0"))]).await;
    daemon.until_running("hello", "1.0.0").await;
    let printed = daemon.run(&["transition", "manager", "enter_maintenance"]);
    assert_eq!((printed.code, printed.out.as_str()), (Some(0), "manager is in state MAINTENANCE\n"), "{}", printed.err);
    let printed = daemon.run(&["transition", "manager", "enter_maintenance"]);
    assert_eq!(printed.code, Some(1), "{printed:?}");
    assert!(printed.err.contains("resume"), "what is possible is not said: {}", printed.err);

    fleet.publish(&[&fleet.build(&Agent::new("hello", "2.0.0"))]).await;
    let before = daemon.data("hello", "runs").len();
    daemon.until_data("hello", "runs", |runs| runs.len() > before + 18).await;
    assert!(!daemon.data("hello", "runs").contains("2.0.0"));
    daemon.until_running("hello", "1.0.0").await;

    let printed = daemon.run(&["transition", "manager", "resume"]);
    assert_eq!(printed.out, "manager is in state INITIAL\n", "{}", printed.err);
    daemon.until_running("hello", "2.0.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn why_tells_all_that_is_known_of_a_machine() {
    let fleet = Fleet::start(Backend::Nats).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    let hello = fleet.build(&Agent::new("hello", "1.0.0"));
    let other = fleet.build(&Agent::new("other", "1.0.0")).matching("identity('^db')");
    fleet.publish(&[&hello, &other]).await;
    daemon.until_running("hello", "1.0.0").await;
    daemon.until_data("hello", "runs", |runs| !runs.is_empty()).await;
    let printed = daemon.run(&["why", "hello"]).out;
    for part in ["hello is installed", "version: 1.0.0", "(managed)", "it runs in state RUN", "work (exec): success"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let printed = daemon.run(&["why", "other"]).out;
    assert!(
        printed.contains("other is skipped") && printed.contains("its match expression is false here"),
        "{printed}"
    );
    assert!(printed.contains("it does not run"), "{printed}");
    let printed = daemon.run(&["why", "nothing"]);
    assert_eq!(printed.code, Some(1));
    assert!(printed.err.contains("this node knows no machine nothing"), "{}", printed.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_reach_nats_the_command_and_the_log() {
    let fleet = Fleet::start(Backend::Nats).await;
    let mut daemon = fleet.daemon();
    let nats = fleet.store.nats().unwrap();
    let mut transitions = nats.subscribe("choria.machine.transition").await.unwrap();
    let mut states = nats.subscribe("choria.machine.watcher.*.state").await.unwrap();
    nats.flush().await.unwrap();
    // Before there is a specification, the manager moves to MANAGE as soon as the store has answered.
    daemon.start().await;

    let message = within("a transition event", transitions.next()).await.unwrap();
    let event: Value = serde_json::from_slice(&message.payload).unwrap();
    assert_eq!(message.subject.as_str(), "choria.machine.transition");
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["type"], "io.choria.machine.v1.transition");
    assert_eq!(event["source"], "io.choria.machine");
    assert_eq!(event["subject"], "web1");
    assert_eq!(event["datacontenttype"], "application/json");
    let data = &event["data"];
    assert_eq!(data["protocol"], "io.choria.machine.v1.transition");
    assert_eq!((&data["identity"], &data["machine"]), (&"web1".into(), &"manager".into()));
    assert_eq!((&data["from_state"], &data["to_state"]), (&"INITIAL".into(), &"MANAGE".into()));
    assert_eq!(data["transition"], "specification_received");
    assert!(data["timestamp"].as_i64().unwrap() > 1_600_000_000);

    let mut followed = daemon.spawn(&["events", "--follow", "--format", "json"]);
    let output = BufReader::new(followed.stdout.take().unwrap());
    fleet.publish(&[&fleet.build(&Agent::new("hello", "1.0.0"))]).await;
    let mut seen = std::collections::BTreeMap::new();
    while !(seen.contains_key("machines") && seen.contains_key("exec")) {
        let message = within("watcher state events", states.next()).await.unwrap();
        let event: Value = serde_json::from_slice(&message.payload).unwrap();
        let kind = event["data"]["type"].as_str().unwrap().to_owned();
        assert_eq!(message.subject.as_str(), format!("choria.machine.watcher.{kind}.state"));
        assert_eq!(event["type"], format!("io.choria.machine.watcher.{kind}.v1.state"));
        assert_eq!(event["data"]["identity"], "web1");
        seen.insert(kind, event["data"].clone());
    }
    assert_eq!(seen["machines"]["machines"], serde_json::json!(["hello"]));
    assert_eq!((&seen["machines"]["machine"], &seen["machines"]["name"]), (&"manager".into(), &"machines".into()));
    assert_eq!((&seen["exec"]["machine"], &seen["exec"]["version"]), (&"hello".into(), &"1.0.0".into()));
    assert_eq!((&seen["exec"]["command"], &seen["exec"]["previous_outcome"]), (&"./work.sh".into(), &"success".into()));
    assert!(seen["exec"]["previous_run_time"].as_u64().unwrap() > 0);

    let reading = tokio::task::spawn_blocking(move || {
        let lines = output.lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
        lines.into_iter().find(|event| event["data"]["machine"] == "hello" && event["data"]["type"] == "exec")
    });
    let event = within("an event of `machinesd events`", reading).await.unwrap().unwrap();
    assert_eq!(event["type"], "io.choria.machine.watcher.exec.v1.state");
    followed.kill().unwrap();
    followed.wait().unwrap();

    let log = daemon.log();
    for part in [
        "transition",
        "from=INITIAL",
        "to=MANAGE",
        "installed \"hello\" 1.0.0",
        "verified (signed by",
        "machine starts",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn why_says_where_a_machine_comes_from_and_what_happened_lately() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    let hello = fleet.build(&Agent::new("hello", "1.0.0"));
    let broken = fleet.build(&Agent::new("broken", "1.0.0")).from("file:///nowhere/broken.tgz");
    fleet.publish(&[&hello, &broken]).await;
    daemon.until_running("hello", "1.0.0").await;
    daemon.until("broken fails", |status| state(status, "broken") == "failed").await;

    let printed = daemon.run(&["why", "manager"]).out;
    assert!(printed.starts_with("manager is compiled into machinesd\n"), "{printed}");
    let printed = daemon.run(&["why", "hello"]).out;
    let (_, lately) = printed.split_once("lately:\n").unwrap();
    assert!(lately.contains(" ago  installed \"hello\" 1.0.0"), "{printed}");
    let printed = daemon.run(&["why", "broken"]).out;
    assert!(printed.contains("  failed ") && printed.contains("  tried again in "), "{printed}");
    assert!(support::unwrapped(&printed).contains("last error: could not install \"broken\""), "{printed}");
    assert!(!printed.contains("T0") && !printed.contains("T1"), "ages are easier to read than times: {printed}");

    // Of a machine that is gone there is still what happened.
    fleet.publish(&[&broken]).await;
    daemon.run(&["sync", "--allow-removals"]);
    daemon.until("hello is gone", |status| !is_running(status, "hello")).await;
    let printed = daemon.run(&["why", "hello"]).out;
    let (_, lately) = printed.split_once("lately:\n").unwrap();
    assert!(lately.contains("removed") && lately.contains("installed"), "{printed}");

    let printed = daemon.run(&["why", "hello", "--format", "json"]);
    let document: Value = serde_json::from_str(&printed.out).unwrap();
    assert_eq!(document["follows"], "specification");
    assert!(document["journal"].as_array().unwrap().len() >= 2, "{document}");
    let printed = daemon.run(&["sync", "--format", "json"]);
    let document: Value = serde_json::from_str(&printed.out).unwrap();
    assert_eq!((printed.code, &document["converged"]), (Some(1), &false.into()), "{document}");
    assert!(document["complaints"][0].as_str().unwrap().contains("broken"), "{document}");
    let printed = daemon.run(&["transition", "manager", "enter_maintenance", "--format", "json"]);
    let document: Value = serde_json::from_str(&printed.out).unwrap();
    assert_eq!((printed.code, &document["state"]), (Some(0), &"MAINTENANCE".into()));
}
