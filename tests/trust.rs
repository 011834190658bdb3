//! Whom a node believes: without a trusted key nobody, and what it believed before and does not today runs on, is left
//! alone, and is shown as what it is.

#![cfg(test)]

mod support;

use std::fs;
use std::path::Path;

use machines::spec::SecretKey;
use serde_json::Value;
use support::daemon::{Daemon, is_running, text};
use support::fleet::{Agent, Backend, Fleet, pack_with};
use support::unwrapped;

const HOW_TO_GO_ON: &str = "no key is trusted here, and without one nothing of a specification is taken: make keys with \
                            \"mms keys\" and set [trust] public_keys to the public one; or set allow_unsigned = true";

fn without_keys(fleet: &Fleet) -> Daemon {
    let mut daemon = fleet.daemon();
    daemon.trust(&[]);
    daemon
}

fn tamper(daemon: &Daemon, file: &str) {
    let path = daemon.installed("hello").unwrap().join(file);
    machines::fs::set_mode(path.parent().unwrap(), 0o755).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(path, "tampered").unwrap();
}

fn content(daemon: &Daemon, file: &str) -> String {
    fs::read_to_string(daemon.installed("hello").unwrap().join(file)).unwrap()
}

fn refused(status: &Value) -> bool {
    text(status, "/sync/refused/message").starts_with(HOW_TO_GO_ON)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_nothing_is_taken_local_machines_run_and_all_say_how_to_go_on() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = without_keys(&fleet);
    Agent::new("own", "1.0.0").write(&daemon.root.join("local"));
    daemon.start().await;
    daemon.until("its own machine runs", |status| is_running(status, "own")).await;
    daemon.until_log(&format!("no specification is followed: {HOW_TO_GO_ON}")).await;
    let printed = daemon.run(&["status"]).out;
    assert!(unwrapped(&printed).contains(&format!("TRUST {HOW_TO_GO_ON}")), "{printed}");
    assert_eq!(daemon.status().await["trust"], "nobody");

    let release = fleet.build(&Agent::new("hello", "1.0.0"));
    for envelope in [pack_with(None, &[&release]), fleet.pack(&[&release]), "garbage".to_owned()] {
        fleet.put(envelope).await;
        let printed = daemon.run(&["sync"]);
        assert_eq!(printed.code, Some(1));
        assert!(printed.err.contains(HOW_TO_GO_ON), "{}", printed.err);
        let status = daemon.until("it is refused", refused).await;
        assert!(status["sync"]["specification"].is_null() && !is_running(&status, "hello"));
    }
    let printed = daemon.run(&["status"]).out;
    assert!(unwrapped(&printed).contains(&format!("REFUSED {HOW_TO_GO_ON}")), "{printed}");
    assert_eq!(printed.matches("no key is trusted").count(), 1, "once is enough: {printed}");
    assert_eq!(daemon.installed("hello"), None);
    assert!(daemon.terminate().0.success());

    let once = daemon.run_to_the_end(&["run", "--once"]);
    assert_eq!(once.code, Some(1));
    assert!(once.err.contains(&format!("the specification was refused: {HOW_TO_GO_ON}")), "{}", once.err);
    assert_eq!(daemon.installed("hello"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsigned_list_of_before_the_upgrade_runs_on_is_not_repaired_and_not_removed() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = without_keys(&fleet);
    daemon.set_toml("trust", "allow_unsigned", "true");
    daemon.start().await;
    fleet.put(pack_with(None, &[&fleet.build(&Agent::new("hello", "1.0.0"))])).await;
    daemon.until_running("hello", "1.0.0").await;
    daemon.until_log("[trust] allow_unsigned = true: anyone who can write to bucket MACHINES decides").await;
    let printed = daemon.run(&["status"]).out;
    assert!(printed.contains("TRUST          anyone's: [trust] allow_unsigned = true"), "{printed}");
    assert!(daemon.terminate().0.success());

    // As an upgrade finds it: the permission does not stand in the file.
    let mut daemon = without_keys(&fleet);
    daemon.start().await;
    daemon.until("hello runs on", |status| is_running(status, "hello")).await;
    tamper(&daemon, "notes.txt");
    fleet.put(pack_with(None, &[])).await;
    assert_eq!(daemon.run(&["sync", "--allow-removals"]).code, Some(1));
    assert_eq!(content(&daemon, "notes.txt"), "tampered", "nobody vouches for what a repair would write");
    let status = daemon.until("it is refused", refused).await;
    assert!(is_running(&status, "hello"));
    assert_eq!(text(&status, "/sync/specification/standing/state"), "left_alone");
    assert_eq!(text(&status, "/sync/specification/standing/why/cause"), "unsigned");
    let printed = unwrapped(&daemon.run(&["status"]).out);
    let why = "it was accepted unsigned, which is not allowed today; what it installed runs on, and is neither repaired \
               nor removed";
    assert!(
        printed.contains(&format!("NOT FOLLOWED the specification accepted before is left alone: {why}")),
        "{printed}"
    );
    assert!(printed.contains(&format!("REFUSED {HOW_TO_GO_ON}")), "{printed}");
    assert!(!printed.contains("is followed"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_no_longer_trusted_is_named_and_nothing_is_said_to_be_followed() {
    let mut fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    fleet.publish(&[&fleet.build(&Agent::new("hello", "1.0.0"))]).await;
    daemon.until_running("hello", "1.0.0").await;
    assert_eq!(text(&daemon.status().await, "/sync/specification/standing/state"), "followed");
    assert!(daemon.terminate().0.success());

    let old = std::mem::replace(&mut fleet.key, SecretKey::generate().unwrap()).public_key().to_hex();
    let mut daemon = fleet.daemon();
    daemon.set("http", "listen", "127.0.0.1:0");
    daemon.start().await;
    let status = daemon.until("it is left alone", |status| !status["sync"]["refused"].is_null()).await;
    assert_eq!(text(&status, "/sync/specification/standing/why/cause"), "key_not_trusted");
    assert_eq!(text(&status, "/sync/specification/standing/why/key"), old);
    assert!(is_running(&status, "hello"));
    tamper(&daemon, "notes.txt");
    let printed = daemon.run(&["sync"]);
    let why = format!("it was signed by {old}, which is not trusted today");
    assert!(printed.err.contains(&why), "{}", printed.err);
    assert_eq!(content(&daemon, "notes.txt"), "tampered");
    let effect = "what it installed runs on, and is neither repaired nor removed";
    let printed = unwrapped(&daemon.run(&["status"]).out);
    assert!(
        printed.contains(&format!("NOT FOLLOWED the specification accepted before is left alone: {why}; {effect}")),
        "{printed}"
    );
    assert!(!printed.contains("is followed"), "{printed}");
    let printed = unwrapped(&daemon.run(&["why", "hello"]).out);
    assert!(printed.contains(&format!("{why}; {effect}")), "{printed}");

    // The next specification, signed by a key of today, is another matter.
    fleet.publish(&[&fleet.build(&Agent::new("hello", "2.0.0"))]).await;
    let status = daemon.until_running("hello", "2.0.0").await;
    assert_eq!(text(&status, "/sync/specification/standing/state"), "followed");
    assert!(Path::exists(&daemon.installed("hello").unwrap()));
}
