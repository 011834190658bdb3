//! The HTTP listener of the real daemon on a real port: who may ask for what, switches as Home Assistant turns them,
//! measurements, `/metrics` and the files for Prometheus, and clients that misbehave.

#![cfg(test)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::daemon::Daemon;
use support::{eventually, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TOKEN: &str = "correct-horse-battery-staple";

const LAMP: &str = "name: lamp\nversion: 1.0.0\ninitial_state: DARK\ntransitions:\n  - {name: brighten, from: [DARK], \
                    destination: BRIGHT}\n  - {name: darken, from: [BRIGHT], destination: DARK}\n  - {name: lock, from: \
                    [DARK, BRIGHT], destination: LOCKED}\n  - {name: leave, from: [DARK, BRIGHT, LOCKED], destination: \
                    AWAY}\nwatchers:\n  - name: switch\n    type: httpswitch\n    state_match: [DARK, BRIGHT, \
                    LOCKED]\n    success_transition: brighten\n    fail_transition: darken\n    properties:\n      on_when: \
                    [BRIGHT]\n      off_when: [DARK]\n      disable_when: [LOCKED]\n      annotations: {room: hall}\n  \
                    - name: deaf\n    type: httpswitch\n    properties: {}\n";

const METER: &str = "name: meter\nversion: 1.0.0\ninitial_state: OK\ntransitions:\n  - {name: OK, from: [OK], \
                     destination: OK}\nwatchers:\n  - name: power\n    type: metric\n    properties:\n      command: \
                     \"echo '{\\\"labels\\\": {\\\"phase\\\": \\\"a\\\\\\\\b\\\"}, \\\"metrics\\\": {\\\"watts\\\": \
                     12.5}}'\"\n      interval: 1s\n      http: true\n  - name: secret\n    type: metric\n    \
                     properties: {command: \"echo 'x|a=1'\", interval: 1s, skip_prometheus: true}\n  - name: \
                     alive\n    type: nagios\n    properties: {builtin: heartbeat}\n";

/// An answer: its status, its head and its body.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_default().to_owned()
    }
}

struct Site {
    _directory: tempfile::TempDir,
    daemon: Daemon,
    port: u16,
}

enum WithToken {
    Yes,
    No,
}

impl Site {
    async fn start(token: WithToken) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::new(&directory.path().join("node"), "node1.example.net", "local");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        daemon.set("http", "listen", &format!("127.0.0.1:{port}"));
        daemon.set_toml("sync", "enabled", "false");
        for (name, text) in [("lamp", LAMP), ("meter", METER)] {
            let machine = daemon.root.join("local").join(name);
            fs::create_dir_all(&machine).unwrap();
            fs::write(machine.join("machine.yaml"), text).unwrap();
        }
        let textfiles = daemon.root.join("textfiles");
        fs::create_dir_all(&textfiles).unwrap();
        daemon.set("metrics", "textfile_directory", textfiles.to_str().unwrap());
        let mut site = Self { _directory: directory, daemon, port };
        if matches!(token, WithToken::Yes) {
            site.write_token(TOKEN);
            let file = site.daemon.root.join("token");
            site.daemon.set("http", "token_file", file.to_str().unwrap());
        }
        site.daemon.start().await;
        eventually("the switch", || async { site.get(SWITCH).await.status == 200 }).await;
        site
    }

    fn write_token(&self, token: &str) {
        let file = self.daemon.root.join("token");
        fs::write(&file, format!("{token}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Sends these bytes and reads to the end.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        // What is refused early may be closed before all is sent.
        _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        _ = within("the answer", stream.read_to_end(&mut answer)).await;
        String::from_utf8(answer).unwrap()
    }

    async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
        let answer = self.raw(request.as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", "").await
    }

    async fn turn(&self, on: bool) -> Answer {
        let headers = format!("Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n");
        self.ask("POST", SWITCH, &headers, &json!({"on": on}).to_string()).await
    }

    async fn state(&self) -> String {
        let status = self.daemon.status().await;
        let machines = status["machines"].as_array().unwrap();
        let lamp = machines.iter().find(|report| report["machine"]["name"] == "lamp").unwrap();
        lamp["machine"]["state"].as_str().unwrap().to_owned()
    }

    async fn transition(&self, event: &str) {
        let request = json!({"machine": "lamp", "event": event});
        self.daemon.client().post("/v1/transition", &request).await.unwrap();
    }
}

const SWITCH: &str = "/choria/machine/switch/v1/lamp/switch";
const METRIC: &str = "/choria/machine/metric/v1/meter/power";

/// Reads the text format of Prometheus line by line; panics on any line that is not of it.
fn parse(text: &str) -> Vec<(String, String, f64)> {
    let line = regex::Regex::new(
        r#"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (-?[0-9.]+)$"#,
    );
    let (line, mut samples, mut types) = (line.unwrap(), Vec::new(), std::collections::BTreeSet::new());
    for each in text.lines() {
        if let Some(head) = each.strip_prefix("# ") {
            let mut words = head.split(' ');
            let (what, name) = (words.next().unwrap(), words.next().unwrap().to_owned());
            assert!(matches!(what, "HELP" | "TYPE"), "{each}");
            assert!(what == "HELP" || types.insert(name), "its type stands twice: {each}");
            continue;
        }
        let found = line.captures(each).unwrap_or_else(|| panic!("not a sample: {each:?}"));
        assert!(types.contains(&found[1]), "without a type: {each}");
        let labels = found.get(3).map_or(String::new(), |labels| labels.as_str().to_owned());
        samples.push((found[1].to_owned(), labels, found[4].parse().unwrap()));
    }
    let unique: std::collections::BTreeSet<_> = samples.iter().map(|(name, labels, _)| (name, labels)).collect();
    assert_eq!(unique.len(), samples.len(), "a sample stands twice:\n{text}");
    samples
}

fn value(samples: &[(String, String, f64)], name: &str, labels: &str) -> Option<f64> {
    samples.iter().find(|(other, content, _)| other == name && content.contains(labels)).map(|(.., value)| *value)
}

#[tokio::test]
async fn home_assistant_turns_a_switch_and_reads_its_state() {
    let site = Site::start(WithToken::Yes).await;
    let answer = site.get(SWITCH).await;
    assert!(answer.head.contains("content-type: application/json"), "{answer:?}");
    let body = answer.json();
    assert_eq!((&body["is_on"], &body["is_off"], &body["status"]), (&json!(false), &json!(true), &json!("off")));
    assert_eq!(body["detail"]["annotations"], json!({"room": "hall"}));
    let answer = site.turn(true).await;
    assert_eq!(
        (answer.status, &answer.json()["is_on"]),
        (200, &json!(true)),
        "it has taken effect when it is answered"
    );
    assert_eq!(site.state().await, "BRIGHT");
    assert_eq!(site.get(SWITCH).await.json()["is_on"], true);
    let again = site.turn(true).await;
    assert_eq!((again.status, &again.json()["is_on"]), (200, &json!(true)), "on is on");
    assert_eq!(site.turn(false).await.json()["is_on"], false);
    assert_eq!(site.state().await, "DARK");
}

#[tokio::test]
async fn a_switch_that_is_disabled_inactive_or_without_a_transition_is_refused_with_the_reason() {
    let site = Site::start(WithToken::Yes).await;
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    let deaf = site.ask("POST", "/choria/machine/switch/v1/lamp/deaf", &token, "{\"on\": true}").await;
    assert_eq!(
        (deaf.status, deaf.error().as_str()),
        (409, "nothing would happen: watcher deaf has no success_transition")
    );
    site.transition("lock").await;
    let answer = site.turn(true).await;
    assert_eq!((answer.status, answer.error().as_str()), (409, "the switch is disabled in state LOCKED"));
    assert_eq!(site.state().await, "LOCKED");
    assert_eq!(site.get(SWITCH).await.json()["detail"]["disabled"], true);
    site.transition("leave").await;
    let answer = site.turn(true).await;
    assert_eq!((answer.status, answer.error().as_str()), (409, "the switch does not work in state AWAY"));
}

#[tokio::test]
async fn a_post_needs_the_token_and_reading_on_loopback_does_not() {
    let site = Site::start(WithToken::Yes).await;
    let post = async |headers: &str| site.ask("POST", SWITCH, headers, "{\"on\": true}").await;
    for headers in
        ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic Zm9vOmJhcg==\r\n", "Authorization: \r\n"]
    {
        let answer = post(headers).await;
        assert_eq!(answer.status, 401, "{headers}: {answer:?}");
        assert!(answer.head.contains("www-authenticate: bearer"), "{answer:?}");
        assert!(answer.error().contains("[http] token_file"), "{answer:?}");
    }
    assert_eq!(site.state().await, "DARK");
    for path in [SWITCH, "/metrics"] {
        assert_eq!(site.get(path).await.status, 200);
    }
    assert_eq!(post(&format!("authorization: bearer {TOKEN}\r\n")).await.status, 200);
    assert!(!site.daemon.log().contains(TOKEN), "the token is never logged");
}

#[tokio::test]
async fn a_web_page_whose_name_leads_to_this_node_reads_nothing() {
    let site = Site::start(WithToken::Yes).await;
    let ask = async |host: &str, more: &str| {
        let answer = site.raw(format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n{more}\r\n").as_bytes()).await;
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    for host in
        ["evil.example.net", "evil.example.net:80", "localhost.evil.example.net", "10.0.0.1", "[::2]", "a b", ""]
    {
        assert_eq!(ask(host, "").await, "421", "{host}");
    }
    let port = site.port;
    for host in ["localhost", &format!("LOCALHOST:{port}"), &format!("127.0.0.1:{port}"), "[::1]:80"] {
        assert_eq!(ask(host, "").await, "200", "{host}");
    }
    assert_eq!(ask("proxy.example.net", &format!("Authorization: Bearer {TOKEN}\r\n")).await, "200");
}

#[tokio::test]
async fn without_a_token_nobody_may_turn_anything() {
    let site = Site::start(WithToken::No).await;
    let answer = site.turn(true).await;
    assert_eq!(answer.status, 403);
    assert!(answer.error().contains("set [http] token_file"), "{answer:?}");
    assert_eq!(site.state().await, "DARK");
}

#[tokio::test]
async fn what_is_not_there_or_not_meant_is_refused_in_words() {
    let site = Site::start(WithToken::Yes).await;
    for path in [
        "/",
        "/choria/machine/switch/v1/lamp/none",
        "/choria/machine/switch/v1/none/switch",
        "/choria/machine/switch/v1/../lamp/switch",
        "/choria/machine/switch/v1/meter/power",
        "/choria/machine/metric/v1/meter/secret",
        "/choria/machine/metric/v1/lamp/switch",
    ] {
        let answer = site.get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.error().starts_with("there is no "), "{path}: {answer:?}");
    }
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    for (method, path, allowed) in
        [("POST", "/metrics", "get, head"), ("POST", METRIC, "get, head"), ("DELETE", SWITCH, "get, head, post")]
    {
        let answer = site.ask(method, path, &token, "").await;
        assert_eq!(answer.status, 405, "{method} {path}");
        assert!(answer.head.contains(&format!("allow: {allowed}")), "{answer:?}");
    }
    for body in ["", "on", "{}", "{\"on\": \"yes\"}"] {
        assert_eq!(site.ask("POST", SWITCH, &token, body).await.status, 400, "{body}");
    }
}

#[tokio::test]
async fn a_client_that_sends_too_much_or_too_slowly_holds_up_nobody() {
    let site = Site::start(WithToken::Yes).await;
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    let answer = site.ask("POST", SWITCH, &token, &" ".repeat(70 * 1024)).await;
    assert_eq!((answer.status, answer.error().as_str()), (413, "the request is larger than 65536 bytes"));
    let long = format!("GET /metrics HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    assert!(site.raw(long.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET /metrics HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: x\r\n".repeat(100));
    assert!(site.raw(many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    // A head that never ends is closed, a body that never comes is answered; others are served meanwhile.
    let begin = std::time::Instant::now();
    let body = format!("POST {SWITCH} HTTP/1.1\r\nHost: a\r\n{token}Content-Length: 12\r\n\r\n{{\"on\"");
    let (head, body, other) =
        tokio::join!(site.raw(b"GET /metrics HTTP/1.1\r\nHost:"), site.raw(body.as_bytes()), async {
            let status = site.get(SWITCH).await.status;
            (status, begin.elapsed())
        });
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 408 "), "{head}");
    assert!(body.starts_with("HTTP/1.1 408 "), "{body}");
    assert!(other.0 == 200 && other.1 < Duration::from_secs(8), "{other:?}");
    assert_eq!(site.state().await, "DARK");
}

#[tokio::test]
async fn a_metric_watcher_serves_its_last_value() {
    let site = Site::start(WithToken::No).await;
    eventually("a measurement", || async { site.get(METRIC).await.status == 200 }).await;
    let body = site.get(METRIC).await.json();
    assert_eq!((&body["metrics"], &body["labels"]["phase"]), (&json!({"watts": 12.5}), &json!("a\\b")));
    assert!(body["time"].as_i64().is_some_and(|time| time > 1_600_000_000), "{body}");
}

#[tokio::test]
async fn prometheus_reads_measurements_checks_and_the_daemon_from_metrics_and_from_files() {
    let site = Site::start(WithToken::No).await;
    eventually("a measurement", || async { site.get(METRIC).await.status == 200 }).await;
    site.transition("brighten").await;
    let answer = site.get("/metrics").await;
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{answer:?}");
    let samples = parse(&answer.body);
    let power = "machine=\"meter\",watcher=\"power\"";
    assert_eq!(value(&samples, "choria_machine_metric_watcher_power_watts", power), Some(12.5));
    assert_eq!(value(&samples, "choria_machine_metric_watcher_power_watts", "phase=\"a\\\\b\""), Some(12.5));
    assert_eq!(value(&samples, "choria_machine_metric_watcher_secret_a", ""), None, "it is skipped");
    assert_eq!(value(&samples, "choria_machine_nagios_watcher_status", "name=\"meter\",watcher=\"alive\""), Some(0.0));
    assert_eq!(value(&samples, "machinesd_build_info", "version=\""), Some(1.0));
    assert_eq!(value(&samples, "machinesd_machines_running", ""), Some(2.0));
    assert_eq!(value(&samples, "machinesd_store_connected", ""), Some(1.0));
    for name in ["machinesd_events_sent_total", "machinesd_events_dropped_total", "machinesd_events_waiting"] {
        assert_eq!(value(&samples, name, ""), Some(0.0), "{name}");
    }
    assert_eq!(value(&samples, "machinesd_machine_transitions_total", "machine=\"lamp\""), Some(1.0));
    assert_eq!(value(&samples, "machinesd_machine_state", "state=\"BRIGHT\""), Some(1.0));
    assert!(value(&samples, "machinesd_watcher_checks_total", power).is_some_and(|checks| checks >= 1.0));
    assert_eq!(value(&samples, "machinesd_watcher_errors_total", power), Some(0.0));

    let files = site.daemon.root.join("textfiles");
    let read = |name: &str| fs::read_to_string(files.join(name)).unwrap_or_default();
    let has = || async {
        let text = read("choria_machine_metrics_watcher_status.prom");
        value(&parse(&text), "choria_machine_metric_watcher_power_watts", power) == Some(12.5)
    };
    eventually("the measurement in the file", has).await;
    let has = || async {
        let text = read("choria_machine_nagios_watcher_status.prom");
        value(&parse(&text), "choria_machine_nagios_watcher_status", "status=\"OK\"") == Some(0.0)
    };
    eventually("the result in the other file", has).await;
    fs::remove_dir_all(site.daemon.root.join("local/meter")).unwrap();
    let gone = || async { !read("choria_machine_metrics_watcher_status.prom").contains("watts") };
    eventually("the measurement of a removed machine to go", gone).await;
    let mut daemon = site.daemon;
    daemon.terminate();
    assert_eq!(fs::read_dir(files).unwrap().count(), 0, "a daemon that does not run says nothing");
}

#[tokio::test]
async fn a_reload_takes_a_new_token_and_a_new_address_and_keeps_the_old_when_they_are_bad() {
    let mut site = Site::start(WithToken::Yes).await;
    site.write_token("short");
    site.daemon.signal(Signal::HUP);
    eventually("the refusal", || async { site.daemon.log().contains("it has less than 16 characters") }).await;
    assert_eq!(site.turn(true).await.status, 200, "the token in force stays");
    site.write_token("another-token-that-is-long");
    site.daemon.signal(Signal::HUP);
    eventually("the new token", || async {
        let mut stream = TcpStream::connect(("127.0.0.1", site.port)).await;
        stream.as_mut().is_ok() && site.turn(true).await.status == 401
    })
    .await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    site.daemon.set("http", "listen", &taken.local_addr().unwrap().to_string());
    site.daemon.write_settings();
    site.daemon.signal(Signal::HUP);
    eventually("the refusal", || async { site.daemon.log().contains("the settings in force stay: could not listen") })
        .await;
    assert_eq!(site.get("/metrics").await.status, 200, "the address in force stays");
    site.daemon.set("http", "listen", "");
    site.daemon.write_settings();
    site.daemon.signal(Signal::HUP);
    eventually("the end of the listener", || async { TcpStream::connect(("127.0.0.1", site.port)).await.is_err() })
        .await;
    site.daemon.until("it lives", |status| status["identity"] == "node1.example.net").await;
}

#[tokio::test]
async fn an_address_for_everyone_needs_a_token_and_then_every_request_does() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(&directory.path().join("node"), "node1.example.net", "local");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    daemon.set("http", "listen", &format!("0.0.0.0:{port}"));
    daemon.set_toml("sync", "enabled", "false");
    let printed = daemon.run_to_the_end(&["run"]);
    assert_eq!(printed.code, Some(2), "{printed:?}");
    assert!(support::unwrapped(&printed.err).contains("is open to other nodes and needs a token"), "{printed:?}");
    let mut site = Site { _directory: directory, daemon, port };
    site.write_token(TOKEN);
    let file = site.daemon.root.join("token");
    site.daemon.set("http", "token_file", file.to_str().unwrap());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let printed = site.daemon.run_to_the_end(&["run"]);
    assert!(support::unwrapped(&printed.err).contains("everyone on the node may read it"), "{printed:?}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    site.daemon.start().await;
    assert_eq!(site.get("/metrics").await.status, 401);
    let with_token = site.ask("GET", "/metrics", &format!("Authorization: Bearer {TOKEN}\r\n"), "").await;
    assert_eq!(with_token.status, 200);
    parse(&with_token.body);
}
