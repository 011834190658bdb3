//! The properties of the `machines` watcher and of `plugins`, its newer form: each does for both what it says.

#![cfg(test)]

mod engine;
mod support;
mod sync_world;

use std::sync::Arc;
use std::time::Duration;

use engine::{Lab, watcher};
use machines::machine::data::{self, Change, Data, Item};
use machines::machine::runner::Handle;
use machines::machine::watcher::Services;
use machines::spec::{Form, SecretKey, Trust, pack_form};
use machines::sync::{Maintenance, Reconciler};
use serde_json::Value;
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
    keep(lab, Item::from_bytes(envelope.into()).unwrap());
    spawn(lab, kind, more)
}

/// What the keeper finds in its data under `spec`, as after a restart.
fn keep(lab: &Lab, item: Item) {
    let mut data = Data::default();
    data.apply(vec![Change::Set("spec".to_owned(), item)]).1.unwrap();
    data::save(&lab.path("data/keeper"), &data.snapshot()).unwrap();
}

fn spawn(lab: &Lab, kind: &str, more: &str) -> Handle {
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

#[tokio::test]
async fn after_a_restart_the_exact_bytes_are_verified_and_never_what_they_were_read_as() {
    for (kind, form) in FORMS {
        let world = World::new();
        let node = Arc::new(world.open());
        let lab = lab(&node, world.trust()).await;
        let list = serde_json::to_vec(&[world.publish("one", "1.0.0")]).unwrap();
        let good = pack_form(form, &list, Some(&world.key)).unwrap().envelope;
        // Refused as it was published: a key appears twice. Written anew from its value, it would be in order.
        let doubled = good.replacen('{', "{\"note\":1,\"note\":2,", 1);
        keep(&lab, Item::from_bytes(doubled.into()).unwrap());
        let handle = spawn(&lab, kind, "");
        let (outcome, error) = first(&handle).await;
        assert_eq!(outcome, "error", "{kind}");
        assert!(error.as_ref().is_some_and(|error| error.contains("key \"note\" appears twice")), "{kind}: {error:?}");
        handle.stop().await;

        // What no longer has its bytes is no envelope, though its value would make one.
        keep(&lab, Item::new(serde_json::from_str(&good).unwrap()));
        let handle = spawn(&lab, kind, "");
        let (outcome, error) = first(&handle).await;
        assert_eq!(outcome, "error", "{kind}");
        let why = "data item \"spec\" was made on this node, and a signature covers only bytes as they were received";
        assert!(error.as_ref().is_some_and(|error| error.contains(why)), "{kind}: {error:?}");
        handle.stop().await;
        assert!(!world.machine("one").exists() && node.status().specification.is_none(), "{kind}");

        keep(&lab, Item::from_bytes(good.into()).unwrap());
        let handle = spawn(&lab, kind, "");
        assert_eq!(first(&handle).await.0, "updated", "{kind}");
        handle.stop().await;
    }
}
