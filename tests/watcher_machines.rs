//! The properties of the `machines` watcher and of `plugins`, its newer form: each does for both what it says.

#![cfg(test)]

mod engine;
mod support;
mod sync_world;

use std::sync::Arc;
use std::time::Duration;

use engine::{Lab, watcher};
use machines::machine::runner::Handle;
use machines::machine::watcher::Services;
use machines::spec::{Form, SecretKey, Trust, pack_form};
use machines::sync::{Maintenance, Reconciler};
use serde_json::{Value, json};
use support::eventually;
use sync_world::World;

const FORMS: [(&str, Form); 2] = [("machines", Form::Machines), ("plugins", Form::Plugins)];

/// A node that manages a specification, and trusts as it is told.
async fn lab(node: &Arc<Reconciler>, trust: Trust) -> Lab {
    let mut lab = Lab::new().await;
    let sync = Some(Arc::clone(node));
    let trust = machines::spec::TrustInForce::new(trust);
    lab.services = Arc::new(Services { sync, trust, ..Services::clone(&lab.services) });
    lab
}

/// Runs a machine that finds this list, signed, in its data under `spec`.
fn manage(lab: &Lab, (kind, form): (&str, Form), list: &[Value], key: &SecretKey, more: &str) -> Handle {
    let envelope = pack_form(form, &serde_json::to_vec(list).unwrap(), Some(key)).unwrap().envelope;
    let data = json!({"spec": serde_json::from_str::<Value>(&envelope).unwrap()});
    let directory = lab.path("data/keeper");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("machine_data.json"), data.to_string()).unwrap();
    lab.spawn_real(&format!(
        "name: keeper\nversion: 1.0.0\ninitial_state: A\ntransitions: [{{name: a, from: [A], destination: A}}]\nwatchers:\n  \
         - {{name: it, type: {kind}, interval: 10d, properties: {{data_item: spec{more}}}}}\n"
    ))
}

/// The outcome and the error of the first check.
async fn first(handle: &Handle) -> (&'static str, Option<String>) {
    let status = || watcher(&handle.remote.status(), "it");
    eventually("the check", || async { status().checks > 0 }).await;
    (status().outcome, status().last_error)
}

#[tokio::test]
async fn what_is_no_longer_listed_goes_with_purge_unknown_only() {
    for form in FORMS {
        let world = World::new();
        let node = Arc::new(world.open());
        let lab = lab(&node, world.trust()).await;
        let all = ["one", "two", "three"].map(|name| world.publish(name, "1.0.0"));
        let listed = |name: &str| world.machine(name).exists();
        // What is asked, what is listed, and whether the third is there afterwards.
        for (more, list, stays) in
            [("", &all[..], true), ("", &all[..2], true), (", purge_unknown: true", &all[..2], false)]
        {
            let handle = manage(&lab, form, list, &world.key, more);
            let (outcome, error) = first(&handle).await;
            assert!(["updated", "unchanged"].contains(&outcome), "{}: {outcome} {error:?}", form.0);
            handle.stop().await;
            assert!(listed("one") && listed("two"), "{}", form.0);
            assert_eq!(listed("three"), stays, "{}{more}", form.0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_installed_is_verified_at_each_machine_manage_interval() {
    for form in FORMS {
        for (more, expected) in [("", 120), (", machine_manage_interval: 10m", 600)] {
            let world = World::new();
            let node = Arc::new(world.open());
            let lab = lab(&node, world.trust()).await;
            let handle = manage(&lab, form, &[world.publish("one", "1.0.0")], &world.key, more);
            assert_eq!(first(&handle).await.0, "updated", "{}", form.0);
            let checks = || watcher(&handle.remote.status(), "it").checks;
            // Past what the installation itself makes known.
            tokio::time::sleep(Duration::from_secs(expected)).await;
            let before = checks();
            tokio::time::sleep(Duration::from_secs(expected * 10)).await;
            let more_checks = checks() - before;
            assert!((9..=11).contains(&more_checks), "{}{more}: {more_checks}", form.0);
            handle.stop().await;
        }
    }
}

#[tokio::test]
async fn in_maintenance_no_watcher_changes_anything_and_each_looks_when_it_ends() {
    for form in FORMS {
        let world = World::new();
        let node = Arc::new(world.open());
        let maintenance = Maintenance { since: jiff::Timestamp::now(), until: None, because: None, by: None };
        node.begin_maintenance(maintenance).await.unwrap();
        let lab = lab(&node, world.trust()).await;
        let handle = manage(&lab, form, &[world.publish("one", "1.0.0")], &world.key, "");
        assert_eq!(first(&handle).await, ("skipped", None), "{}", form.0);
        assert!(!world.machine("one").exists(), "{}", form.0);
        node.end_maintenance("ended by the test").await.unwrap();
        eventually("it is installed", || async { world.machine("one").exists() }).await;
        handle.stop().await;
    }
}

#[tokio::test]
async fn the_key_of_the_machine_counts_unless_the_node_has_its_own() {
    for form in FORMS {
        let world = World::new();
        let list = [world.publish("one", "1.0.0")];
        let stranger = SecretKey::generate().unwrap();
        let mine = format!(", public_key: {}", world.key.public_key().to_hex());
        let other = format!(", public_key: {}", stranger.public_key().to_hex());
        let strangers = Trust::Keys(vec![stranger.public_key()]);
        let cases = [
            (&other, Trust::Nobody, "error"),
            (&mine, strangers, "error"),
            (&String::new(), Trust::Nobody, "error"),
            (&other, Trust::Anyone, "error"),
            (&mine, Trust::Nobody, "updated"),
            (&other, world.trust(), "unchanged"),
        ];
        let node = Arc::new(world.open());
        for (more, trust, expected) in cases {
            let lab = lab(&node, trust).await;
            let handle = manage(&lab, form, &list, &world.key, more);
            let (outcome, error) = first(&handle).await;
            assert_eq!(outcome, expected, "{}: {error:?}", form.0);
            assert_eq!(world.machine("one").exists(), expected != "error", "{}", form.0);
            handle.stop().await;
        }
    }
}
