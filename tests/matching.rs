//! Which machines a node takes: what a match expression says, and that an expression without an answer changes nothing.

#![cfg(test)]

mod support;

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;
use support::daemon::{is_running, state};
use support::fleet::{Agent, Backend, Fleet};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_what_matches_it_and_nothing_else() {
    let fleet = Fleet::start(Backend::Nats).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    let web = fleet.build(&Agent::new("web", "1.0.0")).matching("identity('^web') && has_command('uname')");
    let db = fleet.build(&Agent::new("db", "1.0.0")).matching("not has_file('/nope') and identity(\"^db\")");
    fleet.publish(&[&web, &db]).await;
    let status = daemon.until_running("web", "1.0.0").await;
    assert_eq!(state(&status, "db"), "skipped");
    assert_eq!(status["sync"]["machines"]["db"]["reason"], "its match expression is false here");
    assert!(!is_running(&status, "db"));
    assert!(daemon.installed("db").is_none());

    // An expression that turns false removes the machine; one that turns true brings the other.
    let (web, db) = (web.matching("identity('^db')"), db.matching("identity('^web')"));
    fleet.publish(&[&web, &db]).await;
    daemon.until_running("db", "1.0.0").await;
    let gone = |status: &Value| state(status, "web") == "removed" && !is_running(status, "web");
    daemon.until("web is removed", gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expression_that_fails_keeps_what_is_installed_and_status_says_why() {
    for backend in [Backend::Nats, Backend::Embedded] {
        let fleet = Fleet::start(backend).await;
        let mut daemon = fleet.daemon();
        daemon.start().await;
        let release = fleet.build(&Agent::new("web", "1.0.0"));
        fleet.publish(&[&release.matching("identity('^web')")]).await;
        daemon.until_running("web", "1.0.0").await;

        // Neither the new version is taken, nor is a machine installed of which nobody knows whether it is wanted here.
        let upgrade = fleet.build(&Agent::new("web", "2.0.0")).matching("identity(upper('[a'))");
        let other = fleet.build(&Agent::new("other", "1.0.0")).matching("len(lower('ABC'))");
        fleet.publish(&[&upgrade, &other]).await;
        let status = daemon.until("web is held", |status| state(status, "web") == "held").await;
        assert_eq!(state(&status, "other"), "held");
        assert!(is_running(&status, "web") && !is_running(&status, "other"));
        let web = &status["sync"]["machines"]["web"];
        assert_eq!(web["version"], "1.0.0");
        let why = "its match expression failed: at column 1: invalid regular expression \"[A\"";
        let reason = web["reason"].as_str().unwrap();
        assert!(reason.starts_with(why), "{reason}");
        let reason = status["sync"]["machines"]["other"]["reason"].as_str().unwrap();
        assert_eq!(reason, "its match expression failed: the expression gave 3, not true or false");

        let printed = daemon.run(&["status"]);
        assert_eq!(printed.code, Some(0), "{printed:?}");
        let row = printed.out.lines().find(|line| line.starts_with("web ")).unwrap();
        assert!(row.contains("1.0.0") && row.contains("held"), "{}", printed.out);
        assert!(printed.out.lines().all(|line| line.chars().count() <= 100), "{}", printed.out);
        let told = support::unwrapped(&printed.out);
        assert_eq!(told.matches(&format!("web: {why}")).count(), 1, "{}", printed.out);
        let printed = daemon.run(&["status", "--format", "json"]);
        let document: Value = serde_json::from_str(&printed.out).unwrap();
        assert_eq!(state(&document, "web"), "held");
        let printed = daemon.run(&["why", "web"]);
        assert!(printed.out.contains("web is held") && support::unwrapped(&printed.out).contains(why), "{printed:?}");

        // With an answer again, the upgrade is made.
        fleet.publish(&[&upgrade.matching("identity('^web')")]).await;
        daemon.until_running("web", "2.0.0").await;
    }
}

/// Nobody's shell decides what a node takes: the places where `has_command` looks are the same for all.
#[tokio::test(flavor = "multi_thread")]
async fn the_path_of_a_shell_changes_no_answer_of_daemon_once_and_mms() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let own = tempfile::tempdir().unwrap();
    let command = own.path().join("only-in-this-shell");
    std::fs::write(&command, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&command, std::fs::Permissions::from_mode(0o755)).unwrap();
    let usual = fleet.build(&Agent::new("usual", "1.0.0")).matching("has_command('uname')");
    let own_only = fleet.build(&Agent::new("own", "1.0.0")).matching("has_command('only-in-this-shell')");
    fleet.publish(&[&usual, &own_only]).await;
    // A shell that knows only the command of its own, and none of the system's.
    let path = format!("PATH={}", own.path().display());
    let mut daemon = fleet.daemon();
    daemon.wrapper = vec!["/usr/bin/env".to_owned(), path.clone()];
    let once = daemon.run_to_the_end(&["run", "--once"]);
    assert_eq!(
        (once.code, once.out.as_str()),
        (Some(0), "own: skip (its match expression is false here)\nusual: install\nconverged\n")
    );
    daemon.start().await;
    let status = daemon.until_running("usual", "1.0.0").await;
    assert_eq!(state(&status, "own"), "skipped");
    for (name, answer) in [("uname", "true\n"), ("only-in-this-shell", "false\n")] {
        let words = [path.as_str(), env!("CARGO_BIN_EXE_mms"), "match", &format!("has_command('{name}')")];
        let said = std::process::Command::new("/usr/bin/env").args(words).output().unwrap();
        assert!(String::from_utf8_lossy(&said.stdout).starts_with(answer), "{name}: {said:?}");
    }
}
