//! SIGHUP at the real daemon: a reload touches only what changed. What an agent is (instance, state, data, timers) is the
//! same over the change of any setting, the machine that follows the specification starts again only for its own settings,
//! and keys are rotated under agents that run.

#![cfg(test)]

mod support;

use std::collections::BTreeMap;
use std::fs;

use machines::spec::SecretKey;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::daemon::{Daemon, is_running, text};
use support::fleet::{Agent, Backend, Fleet, pack_with};

/// A local agent that has left its first state, and runs its command once in an hour.
const KEEPER: &str = "name: keeper\nversion: 1.0.0\ninitial_state: FRESH\ntransitions:\n  - {name: settle, from: [FRESH], \
                      destination: SETTLED}\nwatchers:\n  - name: hourly\n    type: exec\n    state_match: [SETTLED]\n    \
                      interval: 1h\n    properties: {command: \"sh -c 'echo ran >> $MACHINE_DATA_DIR/runs'\"}\n";

/// What is of one life of a machine: its instance, since when, its state, and how often each watcher has looked.
fn life(status: &Value, name: &str) -> Option<Value> {
    let machines = status["machines"].as_array().unwrap();
    let machine = &machines.iter().find(|report| report["machine"]["name"] == name)?["machine"];
    let checks: BTreeMap<String, &Value> = machine["watchers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|watcher| (watcher["name"].as_str().unwrap().to_owned(), &watcher["checks"]))
        .collect();
    Some(json!([machine["id"], machine["start_time"], machine["state"], checks]))
}

fn id(status: &Value, name: &str) -> String {
    life(status, name).map(|life| life[0].to_string()).unwrap_or_default()
}

async fn reload(daemon: &mut Daemon, said: &str) {
    let before = daemon.log().len();
    daemon.write_settings();
    daemon.signal(Signal::HUP);
    let log = daemon.root.join("log");
    let has = || fs::read_to_string(&log).unwrap().get(before..).is_some_and(|news| news.contains(said));
    daemon.until(&format!("the log says {said:?}"), |_| has()).await;
}

/// A node with an hourly managed agent and an hourly local one, both of which have run once.
async fn node(fleet: &Fleet) -> Daemon {
    let mut daemon = fleet.daemon();
    daemon.set_toml("", "facts", "[]");
    let keeper = daemon.root.join("local/keeper");
    fs::create_dir_all(&keeper).unwrap();
    fs::write(keeper.join("machine.yaml"), KEEPER).unwrap();
    daemon.start().await;
    fleet.publish(&[&fleet.build(&Agent { interval: "1h", ..Agent::new("hello", "1.0.0") })]).await;
    daemon.until_running("hello", "1.0.0").await;
    daemon.until("the keeper runs", |status| is_running(status, "keeper")).await;
    daemon.client().post("/v1/transition", &json!({"machine": "keeper", "event": "settle"})).await.unwrap();
    let once = |status: &Value, name: &str| life(status, name).is_some_and(|life| life[3].to_string().contains(":1"));
    daemon.until("each has run once", |status| once(status, "hello") && once(status, "keeper")).await;
    daemon
}

#[tokio::test(flavor = "multi_thread")]
async fn no_setting_restarts_an_agent_and_only_its_own_restart_the_manager() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = node(&fleet).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let root = daemon.root.clone();
    let (facts, token) = (root.join("facts.json"), root.join("token"));
    fs::write(&facts, "{\"role\": \"web\"}").unwrap();
    fs::write(&token, "correct-horse-battery-staple\n").unwrap();
    machines::fs::set_mode(&token, 0o600).unwrap();
    fs::create_dir_all(root.join("textfiles")).unwrap();
    let other = SecretKey::generate().unwrap().public_key().to_hex();
    let keys = format!("[{:?}, {other:?}]", fleet.key.public_key().to_hex());
    let quoted = |path: &str| format!("{:?}", root.join(path));
    let changes = [
        ("trust", "public_keys", keys, false),
        ("sync", "interval", "\"61s\"".to_owned(), true),
        ("sync", "manage_interval", "\"301s\"".to_owned(), true),
        ("sync", "purge_unknown", "false".to_owned(), true),
        ("sync", "bucket", "\"OTHER\"".to_owned(), true),
        ("sync", "bucket", "\"MACHINES\"".to_owned(), true),
        ("sync", "key", "\"other\"".to_owned(), true),
        ("sync", "key", "\"machines\"".to_owned(), true),
        ("http", "listen", format!("\"127.0.0.1:{port}\""), false),
        ("http", "token_file", quoted("token"), false),
        ("metrics", "textfile_directory", quoted("textfiles"), false),
        ("", "facts", format!("[{facts:?}]"), false),
        ("log", "level", "\"debug\"".to_owned(), false),
    ];
    let before = daemon.status().await;
    let (hello, keeper) = (life(&before, "hello"), life(&before, "keeper"));
    for (section, key, value, restarts_the_manager) in changes {
        let manager = id(&daemon.status().await, "manager");
        daemon.set_toml(section, key, &value);
        let name = if section.is_empty() { key.to_owned() } else { format!("[{section}] {key}") };
        reload(&mut daemon, &format!("taken: {name}")).await;
        if restarts_the_manager {
            let is_other = |status: &Value| !["", manager.as_str()].contains(&id(status, "manager").as_str());
            daemon.until(&format!("the manager takes {name} = {value}"), is_other).await;
        }
        let status = daemon.status().await;
        assert_eq!(id(&status, "manager") != manager, restarts_the_manager, "the manager, after {name}");
        assert_eq!(life(&status, "hello"), hello, "{name}");
        assert_eq!(life(&status, "keeper"), keeper, "{name}");
    }
    // Each was not only said to be taken.
    fs::write(&facts, "{\"role\": \"db\"}").unwrap();
    daemon.until_log("the facts have changed").await;
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let written = || fs::read_dir(root.join("textfiles")).unwrap().count() == 2;
    daemon.until("the textfiles are written", |_| written()).await;

    // Another directory of local machines ends those of the one before, and those alone.
    let second = root.join("second");
    fs::create_dir_all(second.join("other")).unwrap();
    fs::write(second.join("other/machine.yaml"), KEEPER.replace("name: keeper", "name: other")).unwrap();
    daemon.set("", "local_dir", second.to_str().unwrap());
    let manager = id(&daemon.status().await, "manager");
    reload(&mut daemon, "taken: local_dir").await;
    let moved = |status: &Value| is_running(status, "other") && !is_running(status, "keeper");
    let status = daemon.until("the other directory is taken", moved).await;
    assert_eq!((life(&status, "hello"), id(&status, "manager")), (hello.clone(), manager.clone()));
    assert_eq!(daemon.data("hello", "runs"), "1.0.0\n");

    // What needs a restart is named, exactly; the rest is taken.
    daemon.set("", "identity", "web9");
    daemon.set_toml("archive", "depth", "7");
    daemon.set_toml("metrics", "textfile_directory", "\"\"");
    reload(&mut daemon, "change only with a restart, and stay as they were: identity, [archive] depth\n").await;
    let gone = || fs::read_dir(root.join("textfiles")).unwrap().count() == 0;
    let status = daemon.until("the textfiles are gone", |_| gone()).await;
    assert_eq!((text(&status, "/identity").as_str(), life(&status, "hello")), ("web1", hello));
    assert_eq!(id(&status, "manager"), manager);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_and_no_machine_restarts() {
    let mut fleet = Fleet::start(Backend::Nats).await;
    let mut daemon = node(&fleet).await;
    let before = daemon.status().await;
    let lives = |status: &Value| ["hello", "keeper"].map(|name| life(status, name));
    let manager = id(&before, "manager");

    // Both keys, a list that is signed with the new one, the new one alone.
    let old = std::mem::replace(&mut fleet.key, SecretKey::generate().unwrap());
    let (old_key, new_key) = (old.public_key().to_hex(), fleet.key.public_key().to_hex());
    daemon.trust(&[old_key.clone(), new_key.clone()]);
    reload(&mut daemon, "taken: [trust] public_keys").await;
    let hello = fleet.build(&Agent { interval: "1h", ..Agent::new("hello", "1.0.0") });
    let second = fleet.build(&Agent { interval: "1h", ..Agent::new("second", "1.0.0") });
    fleet.publish(&[&hello, &second]).await;
    let status = daemon.until_running("second", "1.0.0").await;
    assert_eq!(text(&status, "/sync/specification/signed_by"), new_key);
    daemon.trust(std::slice::from_ref(&new_key));
    reload(&mut daemon, "taken: [trust] public_keys").await;
    let status = daemon.status().await;
    assert_eq!(lives(&status), lives(&before), "an agent was touched by the rotation");
    assert_eq!(id(&status, "manager"), manager);

    // The old key counts no longer, from the moment of the reload, and the command `sync` goes by the same keys.
    fleet.put(pack_with(Some(&old), &[&hello])).await;
    daemon.until("the old key is refused", |status| !status["sync"]["refused"].is_null()).await;
    let printed = daemon.run(&["sync"]);
    assert!(printed.err.contains("was not made over this content by a trusted key"), "{printed:?}");
    // A key that comes to be trusted is taken at once, with no new value in the store.
    daemon.trust(&[new_key, old_key.clone()]);
    reload(&mut daemon, "taken: [trust] public_keys").await;
    let taken = |status: &Value| text(status, "/sync/specification/signed_by") == old_key;
    let status = daemon.until("what stands in the store is taken", taken).await;
    assert_eq!(lives(&status), lives(&before));
    assert_eq!(id(&status, "manager"), manager);
}
