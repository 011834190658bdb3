//! Maintenance, as an operator asks for it: nothing that is installed is changed until it ends, over restarts and reloads,
//! by whichever of the two ways it was begun; and everyone who looks is told first.

#![cfg(test)]

#[path = "http/mod.rs"]
mod http;
mod support;

use std::fs;
use std::time::Duration;

use http::{Answer, Server};
use rustix::process::Signal;
use serde_json::Value;
use support::daemon::{Daemon, is_running, text};
use support::fleet::{Agent, Backend, Fleet};

fn agent(version: &str) -> Agent {
    Agent { interval: "1h", ..Agent::new("hello", version) }
}

fn manager(status: &Value) -> String {
    let machines = status["machines"].as_array().unwrap();
    let manager = machines.iter().find(|report| report["machine"]["name"] == "manager");
    manager.map(|report| text(report, "/machine/state")).unwrap_or_default()
}

fn said(daemon: &Daemon, words: &[&str], code: i32) -> String {
    let printed = daemon.run(words);
    assert_eq!(printed.code, Some(code), "{words:?}: {printed:?}");
    support::unwrapped(&format!("{}{}", printed.out, printed.err))
}

fn digest(status: &Value) -> String {
    text(status, "/sync/specification/digest")
}

/// A node in maintenance, on which version 1.0.0 runs and which does not know of 2.0.0, which is published.
async fn node(fleet: &Fleet) -> Daemon {
    let mut daemon = fleet.daemon();
    daemon.start().await;
    fleet.publish(&[&fleet.build(&agent("1.0.0"))]).await;
    daemon.until_running("hello", "1.0.0").await;
    let on = said(&daemon, &["maintenance", "on", "--because", "disks are exchanged"], 0);
    assert!(on.ends_with(" ago), until it is ended, by root, because disks are exchanged: nothing is changed"), "{on}");
    fleet.publish(&[&fleet.build(&agent("2.0.0"))]).await;
    daemon
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_changed_over_restart_and_reload_until_it_is_ended() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = node(&fleet).await;
    let accepted = digest(&daemon.status().await);
    // An operator's own work at an installed file is not repaired either.
    let notes = daemon.installed("hello").unwrap().join("notes.txt");
    fs::remove_file(&notes).unwrap();

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    daemon.set("http", "listen", &format!("127.0.0.1:{port}"));
    daemon.set("sync", "interval", "1s");
    daemon.set("sync", "manage_interval", "1s");
    daemon.write_settings();
    daemon.signal(Signal::HUP);
    daemon.until_log("taken: [sync] interval, [sync] manage_interval, [http] listen").await;
    let in_maintenance = |status: &Value| manager(status) == "MAINTENANCE" && !status["maintenance"].is_null();
    daemon.until("the manager begins in maintenance after the reload", in_maintenance).await;
    for _ in 0..2 {
        let status = daemon.until("it is in maintenance", in_maintenance).await;
        assert_eq!(digest(&status), accepted);
        assert_eq!(text(&status, "/maintenance/because"), "disks are exchanged");
        assert_eq!((&status["maintenance"]["by"], &status["maintenance"]["until"]), (&0.into(), &Value::Null));
        assert!(!notes.exists(), "it was repaired");
        let printed = daemon.run(&["status"]).out;
        assert!(printed.starts_with("MAINTENANCE    since "), "{printed}");
        assert!(support::unwrapped(&printed).contains("because disks are exchanged; nothing is changed"), "{printed}");
        let sync = said(&daemon, &["sync"], 1);
        assert!(sync.contains("this node is in maintenance since ") && sync.contains("--in-maintenance"), "{sync}");
        assert!(said(&daemon, &["why", "hello"], 0).contains("maintenance: since "));
        let shown = said(&daemon, &["maintenance"], 0);
        assert!(shown.starts_with("in maintenance since "), "{shown}");
        let document: Value =
            serde_json::from_str(&daemon.run(&["maintenance", "status", "--format", "json"]).out).unwrap();
        assert_eq!(document["because"], "disks are exchanged");
        assert!(metrics(port).contains("\nmachinesd_maintenance 1\n"));
        daemon.restart().await;
    }

    // A person may still ask for a pass, which does what there is to do.
    assert_eq!(said(&daemon, &["sync", "--in-maintenance"], 0), "converged");
    let status = daemon.until("2.0.0 runs", |status| is_running(status, "hello")).await;
    assert!(in_maintenance(&status) && digest(&status) != accepted);
    fleet.publish(&[&fleet.build(&agent("3.0.0"))]).await;
    let off = said(&daemon, &["maintenance", "off"], 0);
    assert!(off.starts_with("no longer in maintenance; it was since "), "{off}");
    let status = daemon.until_running("hello", "3.0.0").await;
    assert!(status["maintenance"].is_null());
    assert!(metrics(port).contains("\nmachinesd_maintenance 0\n"));
    assert_eq!(said(&daemon, &["maintenance"], 0), "not in maintenance");
    assert_eq!(said(&daemon, &["maintenance", "off"], 0), "not in maintenance");
    daemon.restart().await;
    assert!(daemon.until_running("hello", "3.0.0").await["maintenance"].is_null());
}

fn metrics(port: u16) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_managers_transitions_mean_the_same_and_are_remembered() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    fleet.publish(&[&fleet.build(&agent("1.0.0"))]).await;
    let status = daemon.until_running("hello", "1.0.0").await;
    let machines = status["machines"].as_array().unwrap();
    let id = text(machines.iter().find(|report| report["machine"]["name"] == "manager").unwrap(), "/machine/id");
    assert_eq!(said(&daemon, &["transition", &id, "enter_maintenance"], 0), format!("{id} is in state MAINTENANCE"));
    assert_eq!(daemon.status().await["maintenance"]["by"], 0);
    daemon.restart().await;
    daemon.until("it is in maintenance", |status| manager(status) == "MAINTENANCE").await;
    let check = said(&daemon, &["status", "--check"], 0);
    assert!(check.starts_with("well, in maintenance since "), "it was asked for: {check}");
    // A reason given later leaves the beginning as it was.
    let since = text(&daemon.status().await, "/maintenance/since");
    said(&daemon, &["maintenance", "on", "--for", "2h", "--because", "as I said"], 0);
    let status = daemon.status().await;
    assert_eq!((text(&status, "/maintenance/since"), status["maintenance"]["until"].is_null()), (since, false));
    assert_eq!(said(&daemon, &["transition", "manager", "resume"], 0), "manager is in state INITIAL");
    daemon.until("it has ended", |status| status["maintenance"].is_null() && manager(status) == "MANAGE").await;
    // And the other way round.
    said(&daemon, &["maintenance", "on"], 0);
    assert_eq!(manager(&daemon.status().await), "MAINTENANCE");
    said(&daemon, &["maintenance", "off"], 0);
    daemon.until("it manages", |status| manager(status) == "MANAGE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_by_itself_when_its_time_is_over_also_over_a_restart() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = node(&fleet).await;
    said(&daemon, &["maintenance", "on", "--for", "2s"], 0);
    let status = daemon.until_running("hello", "2.0.0").await;
    assert!(status["maintenance"].is_null());
    daemon.until_log("this node is no longer in maintenance: its time is over").await;

    said(&daemon, &["maintenance", "on", "--for", "2s"], 0);
    daemon.kill();
    fleet.publish(&[&fleet.build(&agent("3.0.0"))]).await;
    daemon.start().await;
    daemon.until_running("hello", "3.0.0").await;
    let refused = said(&daemon, &["maintenance", "on", "--for", "0s"], 1);
    assert!(refused.contains("for no time at all"), "{refused}");
    let on = said(&daemon, &["maintenance", "on", "--for", "2h"], 0);
    assert!(on.contains(" (2h left), by root"), "{on}");
    let check = said(&daemon, &["status", "--check"], 0);
    assert!(check.starts_with("well, in maintenance since "), "{check}");
    let refused = said(&daemon, &["maintenance", "on", "--because", "two\nlines"], 1);
    assert!(refused.contains("the reason must be one line of text"), "{refused}");
    let refused = said(&daemon, &["maintenance", "on", "--for", "soon"], 2);
    assert!(refused.contains("\"soon\" is not a duration"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_once_says_so_and_does_nothing_unless_it_is_told_to() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = node(&fleet).await;
    daemon.kill();
    let printed = daemon.run_to_the_end(&["run", "--once"]);
    assert_eq!((printed.code, printed.out.as_str()), (Some(1), "not converged\n"), "{printed:?}");
    assert!(
        printed.err.contains("this node is in maintenance since ") && printed.err.contains("(disks are exchanged)")
    );
    let printed = daemon.run_to_the_end(&["run", "--once", "--in-maintenance"]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert!(printed.out.contains("hello: upgrade"), "{printed:?}");
    daemon.start().await;
    daemon.until("it is in maintenance still", |status| manager(status) == "MAINTENANCE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_under_way_is_broken_off_before_it_is_answered() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let server = Server::start().await;
    let mut daemon = fleet.daemon();
    daemon.set_toml("fetch", "minimum_rate", "0");
    daemon.start().await;
    server.answer("/stalls", Answer::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nhalf".to_vec()));
    let stalling = fleet.build(&agent("1.0.0")).from(&format!("http://127.0.0.1:{}/stalls", server.port));
    fleet.publish(&[&stalling]).await;
    support::eventually("the download begins", || async { !server.requests().is_empty() }).await;
    said(&daemon, &["maintenance", "on"], 0);
    assert_eq!(daemon.store_entries(), [""; 0], "the staging is left");
    assert!(!is_running(&daemon.status().await, "hello"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_holds_and_can_be_ended() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = node(&fleet).await;
    daemon.kill();
    fs::write(daemon.state_dir().join("maintenance.json"), "{\"since\": \"yes").unwrap();
    daemon.start().await;
    let status = daemon.until("it is in maintenance", |status| manager(status) == "MAINTENANCE").await;
    assert!(text(&status, "/maintenance/because").contains("maintenance.json can't be understood"), "{status}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!daemon.data("hello", "runs").contains("2.0.0"));
    said(&daemon, &["maintenance", "off"], 0);
    daemon.until_running("hello", "2.0.0").await;
}
