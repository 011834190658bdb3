//! The promises of sync, kept with real archives, real signatures and a real disk.

#![cfg(test)]

mod sync_world;

use machines::archive::{FetchSettings, Fetcher};
use machines::fs;
use machines::journal::{Journal, Scope};
use machines::names::{Identity, MachineName};
use machines::node::Node;
use machines::spec::{SecretKey, Trust, pack};
use machines::sync::{Disbelief, MachineState, Outcome, Purge, Reconciler, Removals, Settings, Standing};
use serde_json::{Value, json};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sync_world::{World, actions, names, tamper, with_match};

#[tokio::test]
async fn installs_keeps_upgrades_and_removes() {
    let world = World::new();
    let node = world.open();
    let mut changes = node.changes();
    let first = world.publish("facts", "1.0.0");
    let pass = world.reconcile(&node, std::slice::from_ref(&first)).await;
    assert_eq!(pass.complaints(), [""; 0]);
    assert_eq!((pass.outcome, actions(&pass)), (Outcome::Updated, vec!["install facts".to_owned()]));
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert_eq!(world.text("facts/run.sh"), "echo 1.0.0\n");
    let target = fs::read_link(&world.machine("facts")).unwrap().unwrap();
    assert_eq!(target, Path::new("../store").join(first["checksum"].as_str().unwrap()).join("facts"));

    let pass = world.reconcile(&node, std::slice::from_ref(&first)).await;
    assert_eq!((pass.outcome, actions(&pass)), (Outcome::Unchanged, vec!["keep facts".to_owned()]));
    assert!(!changes.has_changed().unwrap());

    let second = world.publish("facts", "1.1.0");
    let other = world.publish("other", "0.1.0");
    let pass = world.reconcile(&node, &[second, other.clone()]).await;
    assert_eq!(actions(&pass), ["upgrade facts", "install other"]);
    assert_eq!(world.text("facts/run.sh"), "echo 1.1.0\n");

    let pass = world.reconcile(&node, &[other]).await;
    assert_eq!(actions(&pass), ["remove facts", "keep other"]);
    assert!(pass.converged());
    assert_eq!(names(&world.path("state/machines")), ["other"]);
    let kinds: Vec<_> = Journal::open(&world.path("state/state.db"))
        .unwrap()
        .recent(Scope::Machine(&MachineName::new("facts").unwrap()), 10)
        .unwrap()
        .into_iter()
        .map(|record| record.kind)
        .collect();
    assert_eq!(kinds, ["removed", "upgraded", "installed"]);
}

#[tokio::test]
async fn repairs_every_kind_of_drift() {
    let world = World::new();
    let node = world.open();
    let entry = world.publish("facts", "1.0.0");
    world.reconcile(&node, std::slice::from_ref(&entry)).await;
    // file, what happened to it, how
    type Change = (&'static str, &'static str, fn(&Path));
    let changes: [Change; 4] = [
        ("run.sh", "edited", |path| fs::write(path, b"echo owned\n", 0o755).unwrap()),
        ("run.sh", "deleted", |path| fs::remove_file(path).unwrap()),
        ("read.me", "made executable", |path| fs::set_mode(path, 0o755).unwrap()),
        ("new.sh", "added", |path| fs::write(path, b"echo owned\n", 0o755).unwrap()),
    ];
    for (file, what, change) in changes {
        tamper(&world.machine("facts").join(file), change);
        let refused = node.verify_for_start(&MachineName::new("facts").unwrap()).await.unwrap_err();
        assert!(refused.starts_with("\"facts\" is not run: it has drifted: "), "{what}: {refused}");
        assert!(refused.contains(file), "{what}: {refused}");
        let pass = node.resume(&world.trust(), Purge::Unknown).await.unwrap();
        assert_eq!(pass.complaints(), [""; 0], "{what}");
        assert_eq!((pass.outcome, actions(&pass)), (Outcome::Updated, vec!["repair facts".to_owned()]), "{what}");
        assert_eq!(world.text("facts/run.sh"), "echo 1.0.0\n", "{what}");
        assert_eq!(names(&world.machine("facts")), ["SHA256SUMS", "machine.yaml", "read.me", "run.sh"], "{what}");
        let mode = world.machine("facts").join("read.me").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0, "{what}");
    }
}

#[tokio::test]
async fn a_lost_copy_is_repaired() {
    let world = World::new();
    let node = world.open();
    let entry = world.publish("facts", "1.0.0");
    world.reconcile(&node, std::slice::from_ref(&entry)).await;
    fs::remove_tree(&world.path("state/store").join(entry["checksum"].as_str().unwrap())).unwrap();
    let pass = world.reconcile(&node, &[entry]).await;
    assert_eq!((pass.complaints(), actions(&pass)), (vec![], vec!["repair facts".to_owned()]));
    assert_eq!(world.text("facts/run.sh"), "echo 1.0.0\n");
}

#[tokio::test]
async fn matches_decide_and_a_failed_match_holds() {
    let world = World::new();
    let node = world.open();
    let (facts, db) = (world.publish("facts", "1.0.0"), world.publish("db", "1.0.0"));
    let here = with_match(facts.clone(), "identity('^web') && has_command('uname')");
    let elsewhere = with_match(db.clone(), "not has_file('/nope') and identity(\"^db\")");
    let pass = world.reconcile(&node, &[here, elsewhere]).await;
    assert!(pass.converged(), "{:?}", pass.complaints());
    assert_eq!(actions(&pass), ["skip db", "install facts"]);

    // Valid when published, and no boolean when evaluated here.
    let newer = with_match(world.publish("facts", "2.0.0"), "[true][5]");
    let db = with_match(db, "[true][5]");
    let pass = world.reconcile(&node, &[newer, db]).await;
    assert_eq!(pass.refused, None);
    assert_eq!(actions(&pass), ["hold db", "hold facts"]);
    assert_eq!(pass.outcome, Outcome::Error);
    assert_eq!(world.text("facts/run.sh"), "echo 1.0.0\n");
    assert_eq!(names(&world.path("state/machines")), ["facts"]);
    let status = node.status();
    let facts = &status.machines["facts"];
    assert_eq!(facts.state, MachineState::Held);
    assert!(facts.reason.as_ref().unwrap().starts_with("its match expression failed: "), "{facts:?}");
}

#[tokio::test]
async fn an_empty_list_is_held_until_it_is_allowed() {
    let world = World::new();
    let node = world.open();
    let entry = world.publish("facts", "1.0.0");
    world.reconcile(&node, &[entry]).await;
    let pass = world.reconcile(&node, &[]).await;
    assert!(!pass.converged());
    let complaint = pass.complaints().join("\n");
    assert!(complaint.contains("\"facts\" is held as it is: the specification is empty"), "{complaint}");
    assert!(node.status().held_removals.is_some());
    assert_eq!(names(&world.path("state/machines")), ["facts"]);
    let pass = node.reconcile(&world.envelope(&[]), &world.trust(), Purge::Unknown, Removals::Allowed).await;
    assert_eq!((pass.outcome, pass.complaints()), (Outcome::Updated, vec![]));
    assert_eq!(names(&world.path("state/machines")), [""; 0]);
}

#[tokio::test]
async fn removing_more_than_half_is_held_and_the_permission_is_for_once() {
    let world = World::new();
    let node = world.open();
    let entries: Vec<Value> = (1..=5).map(|number| world.publish(&format!("m{number}"), "1.0.0")).collect();
    let all = world.reconcile(&node, &entries).await;
    assert_eq!((all.complaints(), names(&world.path("state/machines")).len()), (vec![], 5));
    let pass = world.reconcile(&node, &entries[..2]).await;
    assert_eq!(actions(&pass), ["keep m1", "keep m2", "hold m3", "hold m4", "hold m5"]);
    let half = world.envelope(&entries[..2]);
    let pass = node.reconcile(&half, &world.trust(), Purge::Unknown, Removals::Allowed).await;
    assert!(pass.converged(), "{:?}", pass.complaints());
    assert_eq!(names(&world.path("state/machines")), ["m1", "m2"]);
    world.reconcile(&node, &entries).await;
    let pass = world.reconcile(&node, &entries[..2]).await;
    assert!(pass.held.is_some(), "an old permission does not count");
}

#[tokio::test]
async fn a_bad_specification_changes_nothing_and_the_next_good_one_is_taken_at_once() {
    let world = World::new();
    let node = world.open();
    let entry = world.publish("facts", "1.0.0");
    world.reconcile(&node, std::slice::from_ref(&entry)).await;
    let accepted = node.status().specification;
    let mut forged = world.envelope(&[]);
    let middle = forged.len() / 2;
    forged[middle] = if forged[middle] == b'a' { b'b' } else { b'a' };
    let stranger = SecretKey::generate().unwrap();
    let other_key = pack(b"[]", Some(&stranger)).unwrap().envelope.into_bytes();
    let unsigned = pack(b"[]", None).unwrap().envelope.into_bytes();
    for bad in [forged, other_key, unsigned, b"".to_vec(), b"{}".to_vec(), b"null".to_vec(), vec![b' '; 2 << 20]] {
        let pass = node.reconcile(&bad, &world.trust(), Purge::Unknown, Removals::Allowed).await;
        assert_eq!(pass.outcome, Outcome::Error);
        assert!(pass.complaints()[0].starts_with("the specification was refused: "), "{:?}", pass.complaints());
        assert_eq!(actions(&pass), ["keep facts"], "the one accepted before is followed on");
        assert_eq!(node.status().specification, accepted);
        assert!(node.status().refused.is_some());
        assert_eq!(world.text("facts/run.sh"), "echo 1.0.0\n");
    }
    let newer = world.publish("facts", "1.1.0");
    let pass = world.reconcile(&node, &[newer]).await;
    assert!(pass.converged(), "{:?}", pass.complaints());
    assert_eq!(world.text("facts/run.sh"), "echo 1.1.0\n");
    assert_eq!(node.status().refused, None);
}

#[tokio::test]
async fn a_refused_first_specification_installs_nothing() {
    let world = World::new();
    let node = world.open();
    let unsigned = pack(&serde_json::to_vec(&[world.publish("facts", "1.0.0")]).unwrap(), None).unwrap();
    let pass = node.reconcile(unsigned.envelope.as_bytes(), &world.trust(), Purge::Unknown, Removals::Guarded).await;
    assert!(pass.refused.is_some() && pass.machines.is_empty());
    assert_eq!((names(&world.path("state/machines")), world.store()), (vec![], vec![]));
    assert!(node.resume(&world.trust(), Purge::Unknown).await.is_none());
}

#[tokio::test]
async fn one_failing_machine_does_not_stop_the_others_and_waits_for_its_retry() {
    let world = World::new();
    let node = world.open();
    let (good, bad) = (world.publish("zebra", "1.0.0"), world.publish("facts", "1.0.0"));
    let archive = world.path("out/facts-1.0.0.tgz");
    let content = fs::read(&archive, 1 << 20).unwrap();
    fs::write(&archive, b"something else", 0o644).unwrap();
    let entries = [good, bad.clone()];
    let pass = world.reconcile(&node, &entries).await;
    assert_eq!(names(&world.path("state/machines")), ["zebra"]);
    let message = pass.machines[0].result.clone().unwrap_err();
    let expected: String = bad["checksum"].as_str().unwrap().chars().take(12).collect();
    let start = format!(
        "could not install \"facts\": checksum of file://{} does not match: expected {expected}…, got ",
        archive.display()
    );
    assert!(message.starts_with(&start), "{message}");
    assert!(pass.retry_after.is_some_and(|wait| wait <= Duration::from_hours(1)), "{:?}", pass.retry_after);
    let facts = node.status().machines["facts"].clone();
    assert_eq!((facts.state, facts.failures, facts.last_error), (MachineState::Failed, 1, Some(message.clone())));
    assert!(facts.next_retry.is_some());
    assert_eq!(world.store().len(), 1, "nothing of the refused archive is left");

    fs::write(&archive, &content, 0o644).unwrap();
    let early = world.reconcile(&node, &entries).await;
    assert_eq!(early.machines[0].result, Err(message), "it waits, and says still why");
    assert_eq!(node.status().machines["facts"].failures, 1);
    node.retry_now();
    let pass = world.reconcile(&node, &entries).await;
    assert_eq!((pass.outcome, pass.complaints()), (Outcome::Updated, vec![]));
    assert_eq!(node.status().machines["facts"].last_error, None);
}

#[tokio::test]
async fn a_failed_upgrade_leaves_the_old_machine_whole() {
    let world = World::new();
    let node = world.open();
    let first = world.publish("facts", "1.0.0");
    world.reconcile(&node, &[first]).await;
    let mut second = world.publish("facts", "1.1.0");
    second["verify_checksum"] = json!("0".repeat(64));
    let pass = world.reconcile(&node, &[second.clone()]).await;
    assert!(pass.complaints()[0].starts_with("could not upgrade \"facts\": "), "{:?}", pass.complaints());
    second["source"] = json!("file:///nonexistent/facts.tgz");
    let pass = world.reconcile(&node, &[second]).await;
    assert!(pass.complaints()[0].contains("/nonexistent/facts.tgz"), "{:?}", pass.complaints());
    assert_eq!(world.text("facts/run.sh"), "echo 1.0.0\n");
    assert_eq!(world.store().len(), 1);
    assert!(node.verify_for_start(&MachineName::new("facts").unwrap()).await.is_ok());
}

#[tokio::test]
async fn a_rollback_needs_no_download_and_unused_copies_go_after_a_while() {
    let world = World::new();
    let (first, second) = (world.publish("facts", "1.0.0"), world.publish("facts", "1.1.0"));
    {
        let node = world.open();
        world.reconcile(&node, std::slice::from_ref(&first)).await;
        world.reconcile(&node, std::slice::from_ref(&second)).await;
        assert_eq!(world.store().len(), 2);
        fs::remove_file(&world.path("out/facts-1.0.0.tgz")).unwrap();
        let pass = world.reconcile(&node, std::slice::from_ref(&first)).await;
        assert!(pass.converged(), "{:?}", pass.complaints());
        assert_eq!(world.text("facts/run.sh"), "echo 1.0.0\n");
    }
    let node = world.open_with(Settings { keep_unused: Duration::ZERO, ..world.settings() });
    node.resume(&world.trust(), Purge::Unknown).await.unwrap();
    assert_eq!(world.store(), [first["checksum"].as_str().unwrap()]);
    assert_eq!(world.text("facts/run.sh"), "echo 1.0.0\n");
}

#[tokio::test]
async fn boots_into_the_accepted_specification_and_finishes_interrupted_work() {
    let world = World::new();
    let entry = world.publish("facts", "1.0.0");
    {
        let node = world.open();
        world.reconcile(&node, std::slice::from_ref(&entry)).await;
    }
    // As after a kill just before the flip, with half a download beside it, and the publisher gone.
    fs::remove_file(&world.machine("facts")).unwrap();
    fs::remove_file(&world.path("out/facts-1.0.0.tgz")).unwrap();
    fs::create_directory(&world.path("state/store/.staging-facts-1"), 0o700).unwrap();
    fs::write(&world.path("state/store/.staging-facts-1/archive"), b"half", 0o600).unwrap();
    let node = world.open();
    assert_eq!(world.store().len(), 1);
    assert!(node.status().specification.unwrap().signed_by.is_some());
    let pass = node.resume(&world.trust(), Purge::Unknown).await.unwrap();
    assert!(pass.converged(), "{:?}", pass.complaints());
    assert_eq!(world.text("facts/run.sh"), "echo 1.0.0\n");
    drop(node);

    let other = Trust::Keys(vec![SecretKey::generate().unwrap().public_key()]);
    let pass = world.open().resume(&other, Purge::Unknown).await.unwrap();
    let complaint = pass.complaints().join("\n");
    let key = world.key.public_key();
    assert!(complaint.contains(&format!("it was signed by {key}, which is not trusted today")), "{complaint}");
    assert_eq!(world.text("facts/run.sh"), "echo 1.0.0\n");
}

#[tokio::test]
async fn what_sync_did_not_install_is_never_touched_and_never_run() {
    let world = World::new();
    let node = world.open();
    let machines = world.path("state/machines");
    fs::create_directory(&machines.join("facts"), 0o755).unwrap();
    fs::write(&machines.join("facts/machine.yaml"), b"mine", 0o644).unwrap();
    symlink("/etc", machines.join("link")).unwrap();
    let entries = [world.publish("facts", "1.0.0"), world.publish("other", "1.0.0")];
    let pass = world.reconcile(&node, &entries).await;
    assert_eq!(actions(&pass), ["hold facts", "skip link", "install other"]);
    assert_eq!(
        pass.complaints(),
        ["\"facts\" is held as it is: it is not a link into the store, and sync did not install it: move it aside"]
    );
    assert_eq!(world.text("facts/machine.yaml"), "mine");
    assert_eq!(fs::read_link(&machines.join("link")).unwrap().unwrap(), Path::new("/etc"));
    for name in ["facts", "link"] {
        let refused = node.verify_for_start(&MachineName::new(name).unwrap()).await.unwrap_err();
        assert_eq!(refused, format!("\"{name}\" is not run: sync did not install it"));
    }
    let started = node.verify_for_start(&MachineName::new("other").unwrap()).await.unwrap();
    assert!(started.ends_with(Path::new(entries[1]["checksum"].as_str().unwrap()).join("other")), "{started:?}");
}

#[tokio::test]
async fn a_lost_state_database_costs_no_machine() {
    let world = World::new();
    let entry = world.publish("facts", "1.0.0");
    {
        let node = world.open();
        world.reconcile(&node, std::slice::from_ref(&entry)).await;
    }
    for file in ["state.db", "state.db-wal", "state.db-shm"] {
        fs::remove_file(&world.path("state").join(file)).unwrap();
    }
    let node = world.open();
    let facts = MachineName::new("facts").unwrap();
    // Each copy has a record of its own, so that it runs, verified as ever.
    assert!(node.verify_for_start(&facts).await.is_ok());
    let lost = node.status().lost_memory.unwrap().sentence();
    assert!(
        lost.contains("the state database that knew of them is not there; what is installed is verified"),
        "{lost}"
    );
    drop(node);
    // It is still so after another start, and a machine that was changed is not run.
    let node = world.open();
    assert!(node.status().lost_memory.is_some());
    tamper(&world.machine("facts/run.sh"), |path| std::fs::write(path, "echo bad\n").unwrap());
    let refused = node.verify_for_start(&facts).await.unwrap_err();
    assert!(refused.contains("it has drifted"), "{refused}");
    let pass = world.reconcile(&node, std::slice::from_ref(&entry)).await;
    assert_eq!((pass.complaints(), actions(&pass)), (vec![], vec!["repair facts".to_owned()]));
    assert_eq!(node.status().lost_memory, None);
    assert!(node.verify_for_start(&facts).await.is_ok());
    drop(node);
    assert_eq!(world.open().status().lost_memory, None);
}

#[tokio::test]
async fn a_copy_of_an_earlier_version_has_no_record_of_its_own_until_it_was_checked_once() {
    let world = World::new();
    let entry = world.publish("facts", "1.0.0");
    let node = world.open();
    world.reconcile(&node, std::slice::from_ref(&entry)).await;
    let record = world.machine("facts").canonicalize().unwrap().with_file_name("verify_checksum");
    fs::remove_file(&record).unwrap();
    assert!(node.resume(&world.trust(), Purge::Unknown).await.unwrap().converged());
    assert!(record.exists(), "the pass has made it");
    fs::remove_file(&record).unwrap();
    drop(node);
    for file in ["state.db", "state.db-wal", "state.db-shm"] {
        fs::remove_file(&world.path("state").join(file)).unwrap();
    }
    let node = world.open();
    let facts = MachineName::new("facts").unwrap();
    let refused = node.verify_for_start(&facts).await.unwrap_err();
    assert!(refused.contains("no record of what it should contain"), "{refused}");
    let pass = world.reconcile(&node, &[entry]).await;
    assert_eq!((pass.complaints(), actions(&pass)), (vec![], vec!["keep facts".to_owned()]));
    assert!(node.verify_for_start(&facts).await.is_ok());
}

#[tokio::test]
async fn a_second_daemon_on_the_same_directory_is_refused() {
    let world = World::new();
    let _node = world.open();
    let journal = Journal::open(&world.path("state/state.db")).unwrap();
    let node = Node::new(Identity::new("web1").unwrap(), json!({}), Arc::from([]));
    let fetcher = Arc::new(Fetcher::new(FetchSettings::default(), None).unwrap());
    let second = Reconciler::open(world.settings(), Arc::new(node), fetcher, journal);
    let message = second.err().unwrap().to_string();
    let state_dir = world.path("state");
    let expected = format!("another machinesd is running on {}: stop it, or give", state_dir.display());
    assert!(message.starts_with(&expected), "{message}");
}

#[tokio::test]
async fn status_says_what_stands_where_and_since_when() {
    let world = World::new();
    let node = world.open();
    let entry = world.publish("facts", "1.0.0");
    let skipped = with_match(world.publish("db", "1.0.0"), "identity('^db')");
    world.reconcile(&node, &[entry.clone(), skipped]).await;
    let status = serde_json::to_value(node.status()).unwrap();
    assert_eq!(status["specification"]["signed_by"], json!(world.key.public_key().to_string()));
    assert_eq!(status["last_outcome"], json!("updated"));
    let facts = &status["machines"]["facts"];
    assert_eq!(
        (&facts["state"], &facts["version"], &facts["digest"], &facts["action"]),
        (&json!("installed"), &json!("1.0.0"), &entry["checksum"], &json!("install"))
    );
    assert_eq!(status["machines"]["db"]["state"], json!("skipped"));
    let since = facts["since"].clone();
    drop(node);
    let restarted = serde_json::to_value(world.open().status()).unwrap();
    assert_eq!(restarted["machines"]["facts"]["since"], since);
}

#[tokio::test]
async fn a_pass_that_is_dropped_leaves_the_next_one_a_clean_store() {
    let world = World::new();
    let node = world.open();
    let entries: Vec<Value> = (1..=4).map(|number| world.publish(&format!("m{number}"), "1.0.0")).collect();
    let envelope = world.envelope(&entries);
    // Poll by poll, so that it is dropped at each of its awaits.
    for polls in 1..60 {
        let trust = world.trust();
        let pass = node.reconcile(&envelope, &trust, Purge::Unknown, Removals::Guarded);
        let mut pass = std::pin::pin!(pass);
        for _ in 0..polls {
            let polled = std::future::poll_fn(|context| std::task::Poll::Ready(pass.as_mut().poll(context))).await;
            if polled.is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let pass = world.reconcile(&node, &entries).await;
    assert!(pass.converged(), "{:?}", pass.complaints());
    let left: Vec<_> = world.store().into_iter().filter(|name| name.starts_with('.')).collect();
    assert_eq!(left, [""; 0]);
    assert_eq!(names(&world.path("state/machines")), ["m1", "m2", "m3", "m4"]);
}

#[tokio::test]
async fn the_files_of_what_runs_stay_for_as_long_as_it_runs() {
    let world = World::new();
    let node = world.open_with(Settings { keep_unused: Duration::ZERO, ..world.settings() });
    let (one, two) = (world.publish("facts", "1.0.0"), world.publish("facts", "2.0.0"));
    world.reconcile(&node, &[one]).await;
    let directory = node.verify_for_start(&MachineName::new("facts").unwrap()).await.unwrap();
    let lease = node.lease(&directory).unwrap();
    let another = node.lease(&directory).unwrap();
    assert!(node.lease(&world.path("out")).is_none());
    // The host may go on with the old one, as when it can't take the new one.
    for _ in 0..3 {
        assert!(world.reconcile(&node, std::slice::from_ref(&two)).await.converged());
    }
    assert!(directory.join("run.sh").exists());
    drop(lease);
    world.reconcile(&node, std::slice::from_ref(&two)).await;
    assert!(directory.join("run.sh").exists(), "one lease is left");
    drop(another);
    world.reconcile(&node, std::slice::from_ref(&two)).await;
    assert!(!directory.exists());
    assert_eq!(world.text("facts/run.sh"), "echo 2.0.0\n");
}

#[tokio::test]
async fn a_machine_that_writes_into_itself_is_not_repaired_without_end() {
    let world = World::new();
    let node = world.open();
    let entry = world.publish("facts", "1.0.0");
    world.reconcile(&node, std::slice::from_ref(&entry)).await;
    let write = || tamper(&world.machine("facts/cache"), |path| fs::write(path, b"written at start", 0o644).unwrap());
    for _ in 0..10 {
        write();
        let pass = world.reconcile(&node, std::slice::from_ref(&entry)).await;
        assert_eq!((actions(&pass), pass.converged()), (vec!["repair facts".to_owned()], true));
    }
    write();
    let pass = world.reconcile(&node, std::slice::from_ref(&entry)).await;
    let expected = "could not repair \"facts\": it has changed again after each of 10 repairs (";
    let complaint = pass.complaints()[0].clone();
    assert!(complaint.starts_with(expected) && complaint.contains("\"cache\" was added"), "{complaint}");
    assert!(complaint.contains("$MACHINE_DATA_DIR"), "{complaint}");
    assert!(pass.retry_after.is_some_and(|wait| wait > Duration::from_mins(50)));
    assert_eq!(node.status().machines["facts"].state, MachineState::Failed);
    // Another version is another matter, and so is an operator who asks.
    node.retry_now();
    assert!(world.reconcile(&node, std::slice::from_ref(&entry)).await.converged());
}

#[tokio::test]
async fn what_failed_is_told_also_when_it_cannot_be_remembered() {
    let world = World::new();
    fs::create_directory(&world.path("state"), 0o755).unwrap();
    let node = world.open();
    let entry = world.publish("facts", "1.0.0");
    world.reconcile(&node, std::slice::from_ref(&entry)).await;
    let database = rusqlite::Connection::open(world.path("state/state.db")).unwrap();
    // What SQLite says of a full disk, at the one table that is to fail.
    let fail = "CREATE TRIGGER full BEFORE INSERT ON machine BEGIN SELECT RAISE(ABORT, 'disk is full'); END";
    database.execute_batch(fail).unwrap();
    std::fs::remove_file(world.path("out/facts-1.0.0.tgz")).unwrap();
    tamper(&world.machine("facts/run.sh"), |path| std::fs::remove_file(path).unwrap());
    let pass = world.reconcile(&node, std::slice::from_ref(&entry)).await;
    assert!(pass.complaints()[0].contains("disk is full"), "{:?}", pass.complaints());
    let status = node.status().machines["facts"].clone();
    assert_eq!(status.state, MachineState::Failed);
    assert!(status.last_error.unwrap().contains("facts-1.0.0.tgz"));
    // When there is room again, all of it is written.
    database.execute_batch("DROP TRIGGER full").unwrap();
    world.reconcile(&node, &[entry]).await;
    let told = node.status().machines;
    drop(node);
    assert_eq!(world.open().status().machines, told);
}

#[tokio::test]
async fn after_a_change_of_keys_the_account_says_that_nothing_is_kept_in_order() {
    let world = World::new();
    let node = world.open();
    let entry = world.publish("facts", "1.0.0");
    world.reconcile(&node, std::slice::from_ref(&entry)).await;
    let trust = Trust::Keys(vec![SecretKey::generate().unwrap().public_key()]);
    let offered = world.envelope(&[entry]);
    let refused = node.reconcile(&offered, &trust, Purge::Unknown, Removals::Guarded).await;
    let resumed = node.resume(&trust, Purge::Unknown).await.unwrap();
    assert!(refused.refused.is_some() && resumed.refused.is_none(), "nothing was offered the second time");
    let key = world.key.public_key().to_hex();
    for pass in [refused, resumed] {
        let complaints = pass.complaints().join("\n");
        assert!(
            complaints.contains(&format!(
                "the specification accepted before is left alone: it was signed by {key}, which is not trusted today; \
                 what it installed runs on, and is neither repaired nor removed"
            )),
            "{complaints}"
        );
        assert_eq!(pass.left_alone, Some(Disbelief::KeyNotTrusted { key: key.clone() }));
        assert_eq!((pass.specification, pass.machines.len()), (None, 0));
    }
    assert_eq!(node.status().specification.unwrap().signed_by, Some(key), "it says who signed it");
    assert!(matches!(node.status().left_alone(), Some(Disbelief::KeyNotTrusted { .. })));
    // The key comes back into the settings.
    assert!(node.resume(&world.trust(), Purge::Unknown).await.unwrap().converged());
    assert_eq!(node.status().specification.unwrap().standing, Standing::Followed);
    assert_eq!(world.text("facts/run.sh"), "echo 1.0.0\n", "what is installed stays");
}
