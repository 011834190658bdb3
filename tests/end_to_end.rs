//! From a signed specification in the store to a running agent and back: installed, upgraded, repaired, removed, and kept
//! while the store is away. The real `machinesd`, the real stores, real archives; most tests run over both stores.

#![cfg(test)]

#[path = "http/mod.rs"]
mod http;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use support::daemon::{Daemon, is_running, state};
use support::fleet::{Agent, Backend, Fleet, Release};

macro_rules! over_both_stores {
    ($($promise:ident)*) => {
        mod on_nats {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                super::$promise(super::Backend::Nats).await;
            })*
        }
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                super::$promise(super::Backend::Embedded).await;
            })*
        }
    };
}

over_both_stores! {
    installs_runs_and_upgrades_and_data_survives
    repairs_what_was_edited_deleted_or_made_executable
    removes_what_the_specification_no_longer_has
    keeps_what_the_specification_no_longer_has_when_purge_is_off
    takes_archives_from_the_object_store
    removes_nothing_when_the_key_or_the_bucket_goes
    boots_into_its_desired_state_and_goes_on_from_there
    a_put_reaches_the_agent_at_once
}

/// Builds, publishes and waits.
async fn publish(fleet: &Fleet, daemon: &mut Daemon, agent: &Agent) -> Release {
    let release = fleet.build(agent);
    fleet.publish(&[&release]).await;
    daemon.until_running(&agent.name, &agent.version).await;
    release
}

async fn until_it_has_worked(daemon: &mut Daemon, version: &str) {
    let line = format!("{version}\n");
    let before = daemon.data("hello", "runs").len();
    daemon.until_data("hello", "runs", |runs| runs[before.min(runs.len())..].matches(&line).count() >= 2).await;
}

async fn installs_runs_and_upgrades_and_data_survives(backend: Backend) {
    let fleet = Fleet::start(backend).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    publish(&fleet, &mut daemon, &Agent::new("hello", "1.0.0")).await;
    until_it_has_worked(&mut daemon, "1.0.0").await;
    let first = daemon.installed("hello").unwrap();
    fs::write(daemon.state_dir().join("data/hello/kept"), "by hand").unwrap();

    publish(&fleet, &mut daemon, &Agent::new("hello", "2.0.0")).await;
    until_it_has_worked(&mut daemon, "2.0.0").await;
    assert_ne!(daemon.installed("hello").unwrap(), first);
    assert_eq!(daemon.data("hello", "kept"), "by hand");
    let runs = daemon.data("hello", "runs");
    let (old, new) = runs.split_at(runs.find("2.0.0").unwrap());
    assert!(old.starts_with("1.0.0\n1.0.0\n"), "{runs}");
    assert!(!new.contains("1.0.0"), "the old version worked on beside the new one: {runs}");

    // A rollback within a few minutes finds the old archive still there.
    fs::remove_dir_all(fleet.root().join("archives")).unwrap();
    publish(&fleet, &mut daemon, &Agent::new("hello", "1.0.0")).await;
    assert_eq!(daemon.installed("hello").unwrap(), first);
    let status = daemon.status().await;
    assert_eq!(status["sync"]["specification"]["signed_by"], fleet.key.public_key().to_hex());
    assert!(status["sync"]["refused"].is_null());
}

/// What was done to a file, how, and what the repair says of it.
type Change = (&'static str, fn(&Path), &'static str);

const CHANGES: [Change; 4] = [
    (
        "edited",
        |file| {
            fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(file, "changed").unwrap();
        },
        "\"notes.txt\"",
    ),
    ("deleted", |file| fs::remove_file(file).unwrap(), "\"notes.txt\""),
    ("made executable", |file| fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap(), "executable"),
    ("added", |file| fs::write(file.with_file_name("added"), "more").unwrap(), "\"added\""),
];

async fn repairs_what_was_edited_deleted_or_made_executable(backend: Backend) {
    let fleet = Fleet::start(backend).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    publish(&fleet, &mut daemon, &Agent::new("hello", "1.0.0")).await;
    until_it_has_worked(&mut daemon, "1.0.0").await;

    for (what, change, said) in CHANGES {
        let before = daemon.installed("hello").unwrap();
        let repairs = daemon.log().matches("repaired \"hello\"").count();
        change(&before.join("notes.txt"));
        let machines = daemon.state_dir().join("machines/hello");
        daemon
            .until(&format!("a file that was {what} is repaired"), |_| machines.canonicalize().unwrap() != before)
            .await;
        daemon.until_running("hello", "1.0.0").await;
        until_it_has_worked(&mut daemon, "1.0.0").await;
        let notes = daemon.installed("hello").unwrap().join("notes.txt");
        assert_eq!(fs::read_to_string(&notes).unwrap(), "as it was published\n", "{what}");
        assert_eq!(notes.metadata().unwrap().permissions().mode() & 0o777, 0o444, "{what}");
        let log = daemon.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("repaired \"hello\"")).collect();
        assert_eq!(lines.len(), repairs + 1, "{what}: {lines:?}");
        assert!(lines[repairs].contains(said), "{what}: {}", lines[repairs]);
    }
}

async fn removes_what_the_specification_no_longer_has(backend: Backend) {
    let fleet = Fleet::start(backend).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    let hello = publish(&fleet, &mut daemon, &Agent::new("hello", "1.0.0")).await;
    let other = fleet.build(&Agent::new("other", "1.0.0"));
    fleet.publish(&[&hello, &other]).await;
    daemon.until_running("other", "1.0.0").await;
    until_it_has_worked(&mut daemon, "1.0.0").await;

    fleet.publish(&[&other]).await;
    let gone = |status: &Value| state(status, "hello") == "removed" && !is_running(status, "hello");
    daemon.until("hello is removed", gone).await;
    assert!(fs::symlink_metadata(daemon.state_dir().join("machines/hello")).is_err());
    let runs = daemon.data("hello", "runs");
    let others = daemon.data("other", "runs").len();
    daemon.until_data("other", "runs", |runs| runs.len() > others + 12).await;
    assert_eq!(daemon.data("hello", "runs"), runs, "hello still works");
}

async fn keeps_what_the_specification_no_longer_has_when_purge_is_off(backend: Backend) {
    let fleet = Fleet::start(backend).await;
    let mut daemon = fleet.daemon();
    daemon.set_toml("sync", "purge_unknown", "false");
    daemon.start().await;
    publish(&fleet, &mut daemon, &Agent::new("hello", "1.0.0")).await;
    publish(&fleet, &mut daemon, &Agent::new("other", "1.0.0")).await;
    let status = daemon.until("hello is skipped", |status| state(status, "hello") == "skipped").await;
    let reason = &status["sync"]["machines"]["hello"]["reason"];
    assert_eq!(reason, "the specification does not list it; it stays, as purge_unknown is off");
    assert!(is_running(&status, "hello"));
    until_it_has_worked(&mut daemon, "1.0.0").await;
}

async fn takes_archives_from_the_object_store(backend: Backend) {
    let fleet = Fleet::start(backend).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    // More than one chunk of the object store.
    let mut agent = Agent::new("hello", "1.0.0");
    let noise: Vec<u8> = (0..400_000u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    agent.files.push(("noise", noise));
    for version in ["1.0.0", "2.0.0"] {
        let release = fleet.build(&Agent { version: version.to_owned(), ..agent.clone() });
        let name = format!("hello-{version}.tgz");
        let content = Box::pin(std::io::Cursor::new(release.bytes()));
        fleet.store.put_object("ARCHIVES", &name, content).await.unwrap();
        fs::remove_file(&release.built.path).unwrap();
        fleet.publish(&[&release.from(&format!("obj://ARCHIVES/{name}"))]).await;
        daemon.until_running("hello", version).await;
    }
    until_it_has_worked(&mut daemon, "1.0.0").await;
}

async fn removes_nothing_when_the_key_or_the_bucket_goes(backend: Backend) {
    let fleet = Fleet::start(backend).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    let hello = publish(&fleet, &mut daemon, &Agent::new("hello", "1.0.0")).await;

    let checks = |status: &Value| {
        let manager = &status["machines"][0]["machine"]["watchers"];
        let machines = manager.as_array().unwrap().iter().find(|watcher| watcher["name"] == "machines").unwrap();
        machines["checks"].as_u64().unwrap()
    };
    let before = checks(&daemon.status().await);
    fleet.bucket().delete("machines").await.unwrap();
    daemon.until("sync looks again without the key", |status| checks(status) > before).await;
    daemon.until_running("hello", "1.0.0").await;

    fleet.store.delete_bucket("MACHINES").await.unwrap();
    daemon.until_log("watch interrupted").await;
    until_it_has_worked(&mut daemon, "1.0.0").await;
    daemon.until_running("hello", "1.0.0").await;

    fleet.make_bucket().await;
    let other = fleet.build(&Agent::new("other", "1.0.0"));
    fleet.publish(&[&hello, &other]).await;
    daemon.until_running("other", "1.0.0").await;
    daemon.until_running("hello", "1.0.0").await;
}

async fn boots_into_its_desired_state_and_goes_on_from_there(backend: Backend) {
    let mut fleet = Fleet::start(backend).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    publish(&fleet, &mut daemon, &Agent::new("hello", "1.0.0")).await;
    until_it_has_worked(&mut daemon, "1.0.0").await;

    // The store goes: what runs goes on, and is still repaired.
    match &mut fleet.nats {
        Some(server) => server.stop(),
        None => fleet.store.delete_bucket("MACHINES").await.unwrap(),
    }
    until_it_has_worked(&mut daemon, "1.0.0").await;
    drift_is_repaired(&mut daemon).await;

    // A start without the store: the same.
    daemon.kill();
    let installed = daemon.installed("hello").unwrap();
    fs::remove_file(installed.join("notes.txt")).unwrap();
    daemon.start().await;
    daemon.until_running("hello", "1.0.0").await;
    until_it_has_worked(&mut daemon, "1.0.0").await;
    assert!(daemon.installed("hello").unwrap().join("notes.txt").exists());
    drift_is_repaired(&mut daemon).await;

    // The store comes back, with news.
    match &mut fleet.nats {
        Some(server) => {
            let status = daemon.status().await;
            assert_eq!(status["store"]["connected"], false);
            server.start_again();
        }
        None => fleet.make_bucket().await,
    }
    publish_patiently(&fleet, &Agent::new("hello", "2.0.0")).await;
    daemon.until_running("hello", "2.0.0").await;
    until_it_has_worked(&mut daemon, "2.0.0").await;
}

async fn drift_is_repaired(daemon: &mut Daemon) {
    let before = daemon.installed("hello").unwrap();
    fs::remove_file(before.join("notes.txt")).unwrap();
    let machines = daemon.state_dir().join("machines/hello");
    daemon.until("a deleted file is repaired", |_| machines.canonicalize().unwrap() != before).await;
    daemon.until_running("hello", "1.0.0").await;
}

/// The operator's own connection may still be on its way back.
async fn publish_patiently(fleet: &Fleet, agent: &Agent) {
    let envelope = fleet.pack(&[&fleet.build(agent)]);
    let bucket = fleet.bucket();
    let put = || async { bucket.put("machines", envelope.clone().into()).await.is_ok() };
    support::eventually("the specification is put", put).await;
}

/// Far below every interval: nothing here waits for a poll, a rescan or a settling time.
const AT_ONCE_MILLISECONDS: u128 = 2_000;

async fn a_put_reaches_the_agent_at_once(backend: Backend) {
    let fleet = Fleet::start(backend).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    let mut taken = Vec::new();
    for number in 0..10 {
        let version = format!("1.0.{number}");
        let envelope = fleet.pack(&[&fleet.build(&Agent::new("hello", &version))]);
        let runs = daemon.state_dir().join("data/hello/runs");
        let started = Instant::now();
        fleet.put(envelope).await;
        while !fs::read_to_string(&runs).unwrap_or_default().contains(&version) {
            assert!(started.elapsed() < support::PATIENCE, "{version} does not run:\n{}", daemon.log());
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        taken.push(started.elapsed().as_millis());
    }
    println!("kv put to the agent's first run on {backend:?}, milliseconds: {taken:?}");
    taken.sort_unstable();
    assert!(taken[taken.len() / 2] < AT_ONCE_MILLISECONDS, "{taken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn takes_archives_from_a_web_server_with_a_password() {
    let fleet = Fleet::start(Backend::Nats).await;
    let server = http::Server::start().await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    let release = fleet.build(&Agent::new("hello", "1.0.0"));
    server.answer("/archives/hello.tgz", http::Answer::ok(&release.bytes()));
    let mut entry: Value = serde_json::from_str(&support::fleet::list(&[
        &release.from(&format!("http://127.0.0.1:{}/archives/hello.tgz", server.port))
    ]))
    .unwrap();
    entry[0]["username"] = "node".into();
    entry[0]["password"] = "hunter2".into();
    let envelope = machines::spec::pack(entry.to_string().as_bytes(), Some(&fleet.key)).unwrap().envelope;
    fleet.put(envelope).await;
    daemon.until_running("hello", "1.0.0").await;
    until_it_has_worked(&mut daemon, "1.0.0").await;
    let requests = server.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert!(requests[0].to_lowercase().contains("authorization: basic bm9kztpodw50zxiy"), "{requests:?}");
    assert!(!daemon.log().contains("hunter2"));
}
