//! What the daemon does with bad specifications, bad archives, a second daemon, a full disk, bad settings and signals:
//! nothing that runs is changed, a person can read why, and the next good thing is taken.

#![cfg(test)]

#[path = "http/mod.rs"]
mod http;
mod support;

use std::fs;
use std::time::Duration;

use http::{Answer, Server};
use machines::spec::{EXAMPLE_PUBLIC_KEY, SecretKey};
use rustix::process::Signal;
use serde_json::Value;
use support::daemon::{Daemon, is_running, state, text};
use support::fleet::{Agent, Backend, Fleet, list, pack_with};
use support::nats::NatsServer;
use support::unwrapped;

/// Everything that a node with a trusted key refuses, and what it says.
fn bad_specifications(fleet: &Fleet) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    use base64::Engine as _;
    let release = fleet.build(&Agent::new("other", "1.0.0"));
    let good = fleet.pack(&[&release]);
    let broken = {
        let mut envelope: Value = serde_json::from_str(&good).unwrap();
        let machines = base64::engine::general_purpose::STANDARD.encode(list(&[&release.matching("false")]));
        envelope["machines"] = machines.into();
        envelope.to_string()
    };
    let unsigned = pack_with(None, &[&release]);
    let stranger = pack_with(Some(&SecretKey::generate().unwrap()), &[&release]);
    let list = list(&[&release]);
    let signed = |list: &str| {
        use base64::engine::general_purpose::STANDARD;
        let signature = hex::encode(fleet.key.sign(list.as_bytes()));
        format!(r#"{{"machines":"{}","signature":"{signature}"}}"#, STANDARD.encode(list))
    };
    vec![
        (
            "another list under the signature",
            broken.into(),
            "the signature was not made over this content by a trusted key",
        ),
        ("a stranger's key", stranger.into(), "the signature was not made over this content by a trusted key"),
        ("no signature", unsigned.into(), "the specification is not signed, but a trusted key is configured"),
        ("no JSON", b"once upon a time".to_vec(), "the envelope is not valid at line 1, column 1"),
        ("nothing", Vec::new(), "the envelope is not valid"),
        ("over 1 MiB", vec![b' '; 1024 * 1024 + 1], "the specification has 1048577 bytes, the limit is 1048576"),
        ("a name that is a path", signed(&list.replace("\"other\"", "\"../other\"")).into(), "\"../other\""),
        ("a null entry", signed("[null]").into(), "entry 1 at line 1, column 2: it is null"),
        (
            "an unknown function",
            signed(&list.replace("{\"checksum\"", "{\"match\":\"shell('ls')\",\"checksum\"")).into(),
            "unknown function \"shell\"",
        ),
    ]
}

async fn refuses_bad_specifications_and_takes_the_next_good_one(backend: Backend) {
    let fleet = match backend {
        Backend::Nats => Fleet::on_nats(NatsServer::with_configuration("max_payload: 4MB\n")).await,
        Backend::Embedded => Fleet::start(backend).await,
    };
    let mut daemon = fleet.daemon();
    daemon.start().await;
    let hello = fleet.build(&Agent::new("hello", "1.0.0"));
    fleet.publish(&[&hello]).await;
    let accepted = daemon.until_running("hello", "1.0.0").await["sync"]["specification"]["digest"].clone();
    let instance = |status: &Value| {
        let machines = status["machines"].as_array().unwrap().iter();
        machines.map(|report| text(report, "/machine/id")).next_back().unwrap()
    };
    let first = instance(&daemon.status().await);
    for (what, value, message) in bad_specifications(&fleet) {
        fleet.put(value).await;
        let status = daemon
            .until(&format!("{what} is refused"), |status| text(status, "/sync/refused/message").contains(message))
            .await;
        assert_eq!(status["sync"]["specification"]["digest"], accepted, "{what}");
        assert!(!is_running(&status, "other"), "{what}");
        assert_eq!(state(&status, "hello"), "installed", "{what}");
        assert_eq!(instance(&status), first, "{what}: hello was started again");
        let printed = daemon.run(&["status"]).out;
        let (_, refused) = printed.split_once("REFUSED").unwrap();
        assert!(unwrapped(refused).contains(message), "{what}: {printed}");

        // The list that is followed again: the complaint goes, and nothing else happens.
        fleet.publish(&[&hello]).await;
        let status = daemon.until("it is good again", |status| status["sync"]["refused"].is_null()).await;
        assert_eq!(instance(&status), first, "{what}");
    }

    // What is no text is no value that the kv watcher brings; what it brought before is followed.
    fleet.put(vec![0xff, 0xfe, 0x00]).await;
    let why = "of key \\\"machines\\\" in MACHINES can't be used: it is not UTF-8 text: byte 0xff at offset 0";
    let status = daemon.until("no text is named", |status| status["health"].to_string().contains(why)).await;
    assert_eq!((state(&status, "hello").as_str(), instance(&status)), ("installed", first));

    fleet.put("garbage").await;
    daemon.until("garbage is refused", |status| !status["sync"]["refused"].is_null()).await;
    fleet.publish(&[&fleet.build(&Agent::new("hello", "2.0.0"))]).await;
    let status = daemon.until_running("hello", "2.0.0").await;
    assert!(status["sync"]["refused"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_bad_specifications_and_takes_the_next_good_one_on_nats() {
    refuses_bad_specifications_and_takes_the_next_good_one(Backend::Nats).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_bad_specifications_and_takes_the_next_good_one_embedded() {
    refuses_bad_specifications_and_takes_the_next_good_one(Backend::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_an_empty_list_until_it_is_allowed() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    fleet.publish(&[&fleet.build(&Agent::new("hello", "1.0.0"))]).await;
    daemon.until_running("hello", "1.0.0").await;
    fleet.publish(&[]).await;
    let status = daemon.until("hello is held", |status| state(status, "hello") == "held").await;
    assert!(is_running(&status, "hello"));
    let why = "the specification is empty and would remove all 1 installed machines: if that is meant, run `machinesd sync --allow-removals` on this node";
    assert_eq!(text(&status, "/sync/held_removals/reason"), why);
    let printed = daemon.run(&["status"]).out;
    assert!(unwrapped(&printed).contains(&format!("HELD {why}")), "{printed}");

    let printed = daemon.run(&["sync"]);
    assert_eq!((printed.code, printed.out.as_str()), (Some(1), "not converged\n"));
    assert!(printed.err.contains(why), "{}", printed.err);
    let printed = daemon.run(&["sync", "--allow-removals"]);
    assert_eq!((printed.code, printed.out.as_str()), (Some(0), "converged\n"), "{}", printed.err);
    daemon.until("hello stops", |status| !is_running(status, "hello")).await;
    assert!(daemon.status().await["sync"]["held_removals"].is_null());
}

async fn failed_archive(daemon: &mut Daemon, why: &str) -> Value {
    let failed = |status: &Value| {
        let hello = &status["sync"]["machines"]["hello"];
        hello["state"] == "failed" && hello["last_error"].as_str().is_some_and(|error| error.contains(why))
    };
    daemon.until(&format!("hello fails: {why}"), failed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_archive_fails_alone_is_retried_and_leaves_the_old_version_running() {
    let fleet = Fleet::start(Backend::Nats).await;
    let server = Server::start().await;
    let mut daemon = fleet.daemon();
    daemon.set_toml("archive", "archive_bytes", "1_000_000");
    daemon.start().await;
    let old = fleet.build(&Agent::new("hello", "1.0.0"));
    fleet.publish(&[&old]).await;
    daemon.until_running("hello", "1.0.0").await;
    let installed = daemon.installed("hello").unwrap();

    let new = fleet.build(&Agent::new("hello", "2.0.0"));
    let secret = fleet.root().join("secret.tgz");
    fs::copy(&new.built.path, &secret).unwrap();
    let endless = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", server.port);
    let (round, file) = (url("/round"), format!("file://{}", secret.display()));
    let faults = [
        ("missing", Answer::status("404 Not Found"), "404"),
        ("wrong", Answer::ok(&old.bytes()), "does not match: expected"),
        ("endless", Answer::Endless(endless), "is larger than the limit of 1000000 bytes"),
        (
            "cut-off",
            Answer::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nhalf".to_vec()),
            "broke off after 4 bytes",
        ),
        ("round", Answer::redirect(&round), "redirects more than 5 times"),
        ("to-file", Answer::redirect(&file), "redirects to another scheme are not followed"),
    ];
    let others: Vec<_> =
        faults.iter().map(|(name, ..)| fleet.build(&Agent::new(&format!("after-{name}"), "1.0.0"))).collect();
    for ((name, answer, why), other) in faults.iter().zip(&others) {
        let path = format!("/{name}");
        server.answer(&path, answer.clone());
        fleet.publish(&[&new.from(&url(&path)), other]).await;
        let status = failed_archive(&mut daemon, why).await;
        let hello = &status["sync"]["machines"]["hello"];
        let error = hello["last_error"].as_str().unwrap();
        assert!(error.starts_with("could not upgrade \"hello\": "), "{name}: {error}");
        assert!(error.contains(&path), "{name}: {error}");
        assert_eq!(hello["version"], "1.0.0", "{name}");
        assert!(!hello["next_retry"].is_null(), "{name}");
        daemon.until_running(&format!("after-{name}"), "1.0.0").await;
        assert_eq!(daemon.installed("hello").unwrap(), installed, "{name}");
        assert!(is_running(&daemon.status().await, "hello"), "{name}");
    }
    let printed = daemon.run(&["status"]).out;
    assert!(unwrapped(&printed).contains("could not upgrade \"hello\""), "{printed}");
    assert!(daemon.store_entries().iter().all(|entry| !entry.starts_with('.')), "{:?}", daemon.store_entries());

    // The last source is mended: nobody has to say so.
    server.answer("/to-file", Answer::ok(&new.bytes()));
    let status = daemon.until_running("hello", "2.0.0").await;
    assert_eq!(status["sync"]["machines"]["hello"]["failures"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_stalls_does_not_hold_up_the_next_specification() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let server = Server::start().await;
    let mut daemon = fleet.daemon();
    // Nothing but the next specification may end the download while the test waits.
    daemon.set_toml("fetch", "minimum_rate", "0");
    daemon.start().await;
    server.answer("/stalls", Answer::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nhalf".to_vec()));
    let url = format!("http://127.0.0.1:{}/stalls", server.port);
    let stalling = fleet.build(&Agent::new("hello", "1.0.0")).from(&url);
    fleet.publish(&[&stalling]).await;
    support::eventually("the download begins", || async { !server.requests().is_empty() }).await;
    fleet.publish(&[&fleet.build(&Agent::new("urgent", "1.0.0"))]).await;
    let status = daemon.until_running("urgent", "1.0.0").await;
    assert!(!is_running(&status, "hello"));
    assert!(daemon.store_entries().iter().all(|entry| !entry.starts_with('.')), "{:?}", daemon.store_entries());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_on_request_does_not_hold_an_older_value_in_front_of_a_newer_one() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let server = Server::start().await;
    let mut daemon = fleet.daemon();
    daemon.set_toml("fetch", "minimum_rate", "0");
    daemon.start().await;
    server.answer("/stalls", Answer::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nhalf".to_vec()));
    let url = format!("http://127.0.0.1:{}/stalls", server.port);
    fleet.publish(&[&fleet.build(&Agent::new("hello", "1.0.0")).from(&url)]).await;
    support::eventually("the download begins", || async { !server.requests().is_empty() }).await;
    let mut sync = daemon.spawn(&["sync"]);
    // It may or may not have read the older value by now; what it makes of either is the same.
    daemon.until_log("matched: every node").await;
    fleet.publish(&[&fleet.build(&Agent::new("urgent", "1.0.0"))]).await;
    daemon.until_running("urgent", "1.0.0").await;
    let ended = tokio::task::spawn_blocking(move || sync.wait().unwrap());
    assert!(support::within("the answer", ended).await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_is_turned_away() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    fleet.publish(&[&fleet.build(&Agent::new("hello", "1.0.0"))]).await;
    daemon.until_running("hello", "1.0.0").await;

    let root = fleet.root().join("second");
    let mut second = Daemon::new(&root, "web2", "local");
    second.set("", "state_dir", daemon.state_dir().to_str().unwrap());
    for words in [&["run"][..], &["run", "--once"]] {
        let printed = second.run_to_the_end(words);
        assert_eq!(printed.code, Some(1), "{printed:?}");
        let message = format!(
            "error: another machinesd is running on {}: stop it, or give this one another state_dir",
            daemon.state_dir().display()
        );
        assert!(printed.err.contains(&message), "{}", printed.err);
    }

    let mut third = Daemon::new(&root, "web2", "local");
    third.set("control", "socket", daemon.socket().to_str().unwrap());
    let printed = third.run_to_the_end(&["run"]);
    assert_eq!(printed.code, Some(1), "{printed:?}");
    let message = format!(
        "error: another machinesd answers at {}; stop it, or give this one another socket",
        daemon.socket().display()
    );
    assert!(printed.err.contains(&message), "{}", printed.err);
    let status = daemon.until_running("hello", "1.0.0").await;
    assert_eq!(status["identity"], "web1");
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_settings_end_the_start_with_exit_code_2() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = fleet.daemon();
    daemon.trust(&[EXAMPLE_PUBLIC_KEY.to_owned()]);
    let printed = daemon.run_to_the_end(&["run"]);
    assert_eq!(printed.code, Some(2), "{printed:?}");
    assert!(printed.err.contains("is that of the example in the documentation"), "{}", printed.err);
    assert!(printed.err.contains("mms keys"), "{}", printed.err);
    let shown = format!("{}:", daemon.settings_file().display());
    assert!(printed.err.contains(&shown), "the place is missing: {}", printed.err);

    let mut daemon = fleet.daemon();
    daemon.set("sync", "intervall", "1m");
    let printed = daemon.run_to_the_end(&["run"]);
    assert_eq!(printed.code, Some(2), "{printed:?}");
    assert!(printed.err.contains("intervall"), "{}", printed.err);

    let missing = fleet.root().join("nowhere.toml");
    let printed = daemon.run(&["run", "--config", missing.to_str().unwrap()]);
    assert_eq!(printed.code, Some(2), "{printed:?}");
    assert!(printed.err.contains(missing.to_str().unwrap()), "{}", printed.err);
    assert!(!daemon.state_dir().join("state.db").exists(), "it began to work with settings that it refused");
}

/// A script that nothing but SIGKILL ends, with a grandchild that is the same.
fn stubborn() -> Agent {
    let script = "#!/bin/sh\ntrap '' TERM INT HUP\n(sleep 1000; true) &\necho $$ $! > \"$MACHINE_DATA_DIR/processes\"\nsleep 1000\nwait\n";
    Agent { script: script.to_owned(), ..Agent::new("hello", "1.0.0") }
}

/// Zombies are gone as well: their place in the table has no command line.
fn lives(process: &str) -> bool {
    fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// The processes of the stubborn agent, once they run.
async fn processes(daemon: &mut Daemon) -> Vec<String> {
    let processes = daemon.until_data("hello", "processes", |text| text.ends_with('\n')).await;
    let processes: Vec<String> = processes.split_whitespace().map(str::to_owned).collect();
    assert!(processes.len() == 2 && processes.iter().all(|process| lives(process)), "{processes:?}");
    processes
}

async fn until_gone(processes: &[String]) {
    support::eventually("its commands are gone", || async { !processes.iter().any(|process| lives(process)) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_and_sigterm_leave_no_process_behind() {
    let fleet = Fleet::start(Backend::Nats).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    fleet.publish(&[&fleet.build(&stubborn())]).await;
    daemon.until_running("hello", "1.0.0").await;
    let old = processes(&mut daemon).await;
    fs::remove_file(daemon.state_dir().join("data/hello/processes")).unwrap();

    fleet.publish(&[&fleet.build(&Agent { version: "2.0.0".to_owned(), ..stubborn() })]).await;
    daemon.until_running("hello", "2.0.0").await;
    let new = processes(&mut daemon).await;
    until_gone(&old).await;

    let (status, taken) = daemon.terminate();
    assert!(status.success(), "{status}");
    assert!(taken < Duration::from_secs(10), "{taken:?}");
    until_gone(&new).await;
    assert!(!daemon.socket().exists());
    assert!(daemon.installed("hello").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_breaks_off_a_download_and_leaves_no_staging() {
    let fleet = Fleet::start(Backend::Nats).await;
    let server = Server::start().await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    let release = fleet.build(&Agent::new("hello", "1.0.0"));
    server.answer("/hello", Answer::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nhalf".to_vec()));
    fleet.publish(&[&release.from(&format!("http://127.0.0.1:{}/hello", server.port))]).await;
    support::eventually("the download begins", || async { !server.requests().is_empty() }).await;
    let (status, taken) = daemon.terminate();
    assert!(status.success(), "{status}");
    assert!(taken < Duration::from_secs(10), "{taken:?}");
    assert_eq!(daemon.store_entries(), [""; 0]);

    server.answer("/hello", Answer::ok(&release.bytes()));
    daemon.start().await;
    daemon.until_running("hello", "1.0.0").await;
}

/// Changes with every start of the machine.
fn hellos_id(status: &Value) -> String {
    let machines = status["machines"].as_array().unwrap();
    let hello = machines.iter().find(|report| report["machine"]["name"] == "hello");
    hello.map(|report| report["machine"]["id"].to_string()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_facts_file_stops_neither_the_start_nor_what_runs_and_holds_what_asks_for_facts() {
    let fleet = Fleet::start(Backend::Embedded).await;
    let mut daemon = fleet.daemon();
    let facts = fleet.root().join("facts.json");
    fs::write(&facts, "{\"role\": \"we").unwrap();
    daemon.set_toml("", "facts", &format!("[{facts:?}]"));
    daemon.start().await;
    daemon.until_log("the facts can't be used, and what asks for them fails").await;
    fleet.publish(&[&fleet.build(&Agent::new("hello", "1.0.0"))]).await;
    let status = daemon.until_running("hello", "1.0.0").await;
    let started = hellos_id(&status);
    let reason = status["facts"]["reason"].as_str().unwrap();
    assert!(reason.contains("facts.json at line 1, column 12: EOF while parsing a string"), "{reason}");

    daemon.signal(Signal::HUP);
    daemon.until_log("the settings in force stay").await;
    assert_eq!(hellos_id(&daemon.status().await), started, "hello was started again");

    // Mended facts are taken as soon as they are there, and nothing is started again for them.
    fs::write(&facts, "{\"role\": \"web\"}").unwrap();
    daemon.until_log("the facts have changed").await;
    let status = daemon.status().await;
    assert_eq!(hellos_id(&status), started, "hello was started again");
    assert!(status["facts"].is_null(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_takes_rotated_keys_and_keeps_the_settings_in_force_when_the_new_ones_are_bad() {
    let mut fleet = Fleet::start(Backend::Nats).await;
    let mut daemon = fleet.daemon();
    daemon.start().await;
    fleet.publish(&[&fleet.build(&Agent::new("hello", "1.0.0"))]).await;
    daemon.until_running("hello", "1.0.0").await;

    // The same settings: nothing is stopped for them.
    let instance = |status: &Value| {
        let machines = status["machines"].as_array().unwrap();
        let hello = machines.iter().find(|report| report["machine"]["name"] == "hello").unwrap();
        hello["machine"]["id"].as_str().unwrap().to_owned()
    };
    let first = instance(&daemon.status().await);
    daemon.signal(Signal::HUP);
    daemon.until_log("the settings are the same as before, so are the facts").await;
    assert_eq!(instance(&daemon.status().await), first, "hello was started again");

    // Bad settings: an error in the log, and all goes on.
    fs::write(daemon.settings_file(), "identity = \"web1\"\n[trust]\npublic_keys = [\"abc\"]\n").unwrap();
    daemon.signal(Signal::HUP);
    daemon.until_log("the settings in force stay").await;
    daemon.until_running("hello", "1.0.0").await;
    let mut moved = fleet.daemon();
    moved.set("", "state_dir", "/nowhere");
    moved.write_settings();
    daemon.signal(Signal::HUP);
    daemon.until_log("change only with a restart").await;

    // A facts file that can't be used is no reason to end.
    let facts = daemon.settings_file().with_file_name("facts.json");
    fs::write(&facts, "[]").unwrap();
    let mut facty = fleet.daemon();
    facty.set_toml("", "facts", &format!("[{facts:?}]"));
    facty.write_settings();
    daemon.signal(Signal::HUP);
    daemon.until_log("it must hold one JSON object").await;

    // The new key is not trusted before the reload, and is after it; the old one no longer.
    let old = std::mem::replace(&mut fleet.key, SecretKey::generate().unwrap());
    let second = fleet.build(&Agent::new("hello", "2.0.0"));
    fleet.publish(&[&second]).await;
    daemon.until("the new key is not trusted yet", |status| !status["sync"]["refused"].is_null()).await;
    daemon.trust(&[fleet.key.public_key().to_hex()]);
    daemon.write_settings();
    daemon.signal(Signal::HUP);
    let status = daemon.until_running("hello", "2.0.0").await;
    assert!(status["sync"]["refused"].is_null());

    let third = fleet.build(&Agent::new("hello", "3.0.0"));
    fleet.put(pack_with(Some(&old), &[&third])).await;
    daemon.until("the old key is not trusted", |status| !status["sync"]["refused"].is_null()).await;
    daemon.until_running("hello", "2.0.0").await;
    assert!(daemon.terminate().0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_seen_in_status_and_the_daemon_lives() {
    let server = NatsServer::with_configuration("authorization { user: node, password: right }\n");
    let root = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(root.path(), "web1", &server.url());
    daemon.set("kv", "user", "node");
    daemon.set("kv", "password", "wrong");
    daemon.start().await;
    let refused = |status: &Value| {
        status["store"]["connected"] == false
            && text(status, "/store/detail").starts_with("the server refused the credentials; check")
    };
    daemon.until("the refusal is shown", refused).await;
    let printed = daemon.run(&["status"]).out;
    assert!(printed.contains("NOT CONNECTED"), "{printed}");
    assert!(!printed.contains("wrong") && !daemon.log().contains("wrong"), "{printed}");
    // Of the attempts that follow every few seconds nothing more is to be said.
    assert!(!daemon.log().contains("authorization violation"), "{}", daemon.log());
    assert!(daemon.terminate().0.success());
}

/// A small file system of its own; `None` where this may not be mounted.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(place: &std::path::Path) -> Option<Self> {
        fs::create_dir_all(place).unwrap();
        let words = ["-t", "tmpfs", "-o", "size=3m,mode=755", "machines-test"];
        let mounted = std::process::Command::new("mount").args(words).arg(place).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(place.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_install_and_the_old_version_stays() {
    let fleet = Fleet::start(Backend::Nats).await;
    let mut daemon = fleet.daemon();
    let disk = SmallDisk::mount(&daemon.state_dir());
    if disk.is_none() {
        // Without the right to mount: no file may grow beyond 2 MiB, which fails in the same places.
        let limit = "trap '' XFSZ; ulimit -f 4096; exec \"$@\"";
        daemon.wrapper = ["sh", "-c", limit, "sh"].map(str::to_owned).into();
    }
    daemon.start().await;
    fleet.publish(&[&fleet.build(&Agent::new("hello", "1.0.0"))]).await;
    daemon.until_running("hello", "1.0.0").await;
    let entries = daemon.store_entries();

    let mut large = Agent::new("hello", "2.0.0");
    let noise: Vec<u8> =
        (0..1_200_000u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    large.files.push(("noise", noise));
    let large = fleet.build(&large);
    fleet.publish(&[&large]).await;
    let why = if disk.is_some() { "No space left on device" } else { "File too large" };
    let status = failed_archive(&mut daemon, why).await;
    let error = text(&status, "/sync/machines/hello/last_error");
    assert!(error.starts_with("could not upgrade \"hello\": "), "{error}");
    daemon.until("hello runs on", |status| is_running(status, "hello")).await;
    let before = daemon.data("hello", "runs").len();
    daemon.until_data("hello", "runs", |runs| runs.len() > before).await;
    support::eventually("the staging is gone", || async { daemon.store_entries() == entries }).await;

    // Something that fits is taken.
    fleet.publish(&[&fleet.build(&Agent::new("hello", "3.0.0"))]).await;
    daemon.until_running("hello", "3.0.0").await;
    daemon.kill();
    drop(disk);
}
