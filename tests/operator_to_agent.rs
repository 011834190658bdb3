//! The whole way with the two programs and nothing else: `mms` makes keys, bucket and archives, signs and publishes;
//! `machinesd` installs, upgrades, repairs and removes.

#![cfg(test)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;
use support::daemon::{Daemon, is_running, state};
use support::fleet::{Agent, Backend, Fleet};

/// Where the archives are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Archives {
    Files,
    Objects,
}

/// What a command printed; it must have succeeded, silently but for warnings.
fn mms(fleet: &Fleet, words: &[&str], input: &str) -> String {
    let printed = fleet.mms(words, input);
    assert_eq!(printed.code, Some(0), "mms {words:?}: {printed:?}");
    printed.out
}

/// Builds an archive and gives its entry for the list.
fn build(fleet: &Fleet, agent: &Agent, archives: Archives) -> Value {
    let source = agent.write(&fleet.root().join(format!("sources/{}", agent.version)));
    let entry = mms(fleet, &["archive", "build", source.to_str().unwrap()], "");
    let mut entry: Value = serde_json::from_str(&entry).unwrap();
    if archives == Archives::Objects {
        let file = format!("{}-{}.tgz", agent.name, agent.version);
        let printed = mms(fleet, &["archive", "put", &file, "ARCHIVES"], "");
        entry["source"] = printed.trim().into();
        fs::remove_file(fleet.root().join("ops").join(file)).unwrap();
    }
    entry
}

fn publish(fleet: &Fleet, entries: &[&Value]) {
    let list = serde_json::to_string_pretty(entries).unwrap();
    fs::write(fleet.root().join("ops/machines.json"), list).unwrap();
    let specification = mms(fleet, &["pack", "machines.json", "--key-file", "ops.key"], "");
    mms(fleet, &["kv", "put", "MACHINES", "machines", "-"], &specification);
}

/// A change to an installed file, by name.
type Damage = (&'static str, fn(&std::path::Path));

const DAMAGES: [Damage; 3] = [
    ("edited", |file| {
        fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(file, "changed").unwrap();
    }),
    ("deleted", |file| fs::remove_file(file).unwrap()),
    ("made executable", |file| fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap()),
];

async fn the_whole_way(backend: Backend, archives: Archives) {
    let fleet = Fleet::start(backend).await;
    fleet.store.delete_bucket("MACHINES").await.unwrap();
    let mut daemon: Daemon = fleet.daemon();
    mms(&fleet, &["keys", "--out", "ops"], "");
    let public = fs::read_to_string(fleet.root().join("ops/ops.pub")).unwrap();
    daemon.trust(&[public.trim().to_owned()]);
    // A node may be there before there is anything for it.
    daemon.start().await;
    mms(&fleet, &["kv", "add", "MACHINES"], "");

    let hello = build(&fleet, &Agent::new("hello", "1.0.0"), archives);
    let other = build(&fleet, &Agent::new("other", "1.0.0"), archives);
    publish(&fleet, &[&hello, &other]);
    daemon.until_running("hello", "1.0.0").await;
    daemon.until_data("hello", "runs", |runs| runs.contains("1.0.0")).await;

    let hello = build(&fleet, &Agent::new("hello", "2.0.0"), archives);
    publish(&fleet, &[&hello, &other]);
    daemon.until_running("hello", "2.0.0").await;
    daemon.until_data("hello", "runs", |runs| runs.contains("2.0.0")).await;

    for (what, damage) in DAMAGES {
        let before = daemon.installed("hello").unwrap();
        damage(&before.join("notes.txt"));
        let link = daemon.state_dir().join("machines/hello");
        daemon.until(&format!("what was {what} is repaired"), |_| link.canonicalize().unwrap() != before).await;
        daemon.until_running("hello", "2.0.0").await;
        let notes = daemon.installed("hello").unwrap().join("notes.txt");
        assert_eq!(fs::read_to_string(&notes).unwrap(), "as it was published\n", "{what}");
        assert_eq!(notes.metadata().unwrap().permissions().mode() & 0o111, 0, "{what}");
    }

    publish(&fleet, &[&other]);
    let gone = |status: &Value| state(status, "hello") == "removed" && !is_running(status, "hello");
    let status = daemon.until("hello is removed", gone).await;
    assert!(is_running(&status, "other"));
    assert!(fs::symlink_metadata(daemon.state_dir().join("machines/hello")).is_err());
    assert_eq!(status["sync"]["specification"]["signed_by"], public.trim());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_way_on_nats() {
    the_whole_way(Backend::Nats, Archives::Files).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_way_on_nats_with_archives_in_its_object_store() {
    the_whole_way(Backend::Nats, Archives::Objects).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_way_embedded() {
    the_whole_way(Backend::Embedded, Archives::Files).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_way_embedded_with_archives_in_its_object_store() {
    the_whole_way(Backend::Embedded, Archives::Objects).await;
}
