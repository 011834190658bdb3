//! What a metric watcher measures and where it goes: events, the panel that Prometheus and HTTP read, data, Graphite. Real
//! commands, and a real TCP server in Graphite's place.

#![cfg(test)]

mod engine;
mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use engine::{Lab, watcher};
use machines::machine::panel::{Exposure, Measured, Shown};
use machines::machine::runner::Handle;
use machines::machine::status::WatcherStatus;
use machines::machine::watcher::Services;
use machines::names::{Label, MachineName};
use machines::process::{Command, Commands, Ended, ProcessError};
use serde_json::{Value, json};
use support::{eventually, within};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::Instant;

/// A machine with one metric watcher, whose first measurement comes within a second.
fn text(properties: &str) -> String {
    format!(
        "name: host\nversion: 1.0.0\ninitial_state: RUNS\ntransitions:\n  - {{name: broken, from: [RUNS], destination: \
         BROKEN}}\nwatchers:\n  - name: cpu-load\n    type: metric\n    state_match: [RUNS]\n    fail_transition: \
         broken\n    properties:\n{properties}"
    )
}

/// A shell's command that prints JSON, with one second between measurements.
fn writes(script: &str, more: &str) -> String {
    text(&format!("      command: \"python3 -c '{script}'\"\n      interval: 1s\n{more}"))
}

/// A command that prints this, with one second between measurements.
fn prints(output: &Value, more: &str) -> String {
    text(&format!("      command: \"echo '{}'\"\n      interval: 1s\n{more}", output.to_string().replace('"', "\\\"")))
}

struct Running {
    lab: Lab,
    handle: Handle,
    events: engine::Events,
}

impl Running {
    async fn start(text: &str) -> Self {
        let lab = Lab::new().await;
        let events = lab.events();
        let handle = lab.spawn_real(text);
        Self { lab, handle, events }
    }

    fn status(&self) -> WatcherStatus {
        watcher(&self.handle.remote.status(), "cpu-load")
    }

    /// Waits for a measurement, good or bad.
    async fn measured(&self) -> WatcherStatus {
        let done = || async { !matches!(self.status().outcome, "unknown" | "skipped") };
        eventually("a measurement", done).await;
        self.status()
    }

    fn shown(&self) -> Option<(Arc<Measured>, Exposure)> {
        let (machine, watcher) = (MachineName::new("host").unwrap(), Label::new("cpu-load").unwrap());
        match self.lab.services.panel.get(&machine, &watcher)? {
            Shown::Measured(measured, exposure) => Some((measured, exposure)),
            other => panic!("{other:?}"),
        }
    }
}

fn refusal(properties: &str) -> String {
    engine::build(&text(properties)).map(drop).unwrap_err()
}

#[tokio::test]
async fn a_command_measures_as_the_user_and_group_it_was_given() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new().await;
    std::fs::set_permissions(lab.directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let command = "echo \"{\\\"metrics\\\": {\\\"user\\\": $(id -u), \\\"group\\\": $(id -g)}}\"";
    std::fs::write(lab.machine_directory("host").join("measure"), command).unwrap();
    let properties =
        "      command: sh measure\n      interval: 1s\n      store: true\n      user: nobody\n      group: 12\n";
    let (events, handle) = (lab.events(), lab.spawn_real(&text(properties)));
    let running = Running { lab, handle, events };
    let status = running.measured().await;
    assert_eq!(status.last_error, None);
    running.handle.stop().await;
    let metrics = running.lab.saved("host").unwrap()["metric"]["cpu-load"]["metrics"].clone();
    assert_eq!(metrics, json!({"user": 65534.0, "group": 12.0}));
}

#[tokio::test]
async fn command_labels_and_skip_prometheus_reach_events_and_the_panel() {
    let output = json!({"labels": {"format": "mine", "disk": "sda"}, "metrics": {"load": 1.5, "free": 3}});
    let labels = "      labels: {role: \"{{ lookup \\\"facts.role\\\" \\\"db\\\" }}\", disk: sdb}\n";
    let mut running = Running::start(&prints(&output, labels)).await;
    assert_eq!(running.measured().await.outcome, "success");
    let (measured, exposure) = running.shown().unwrap();
    assert_eq!(json!(measured.labels), json!({"format": "mine", "disk": "sdb", "role": "web"}));
    assert_eq!(json!(measured.metrics), json!({"load": 1.5, "free": 3.0}));
    assert_eq!(exposure, Exposure { prometheus: true, http: false, data: false });
    let event = running.events.drain().pop().unwrap();
    assert_eq!(event["type"], "io.choria.machine.watcher.metric.v1.state");
    let told = &event["data"]["metrics"];
    assert_eq!((&told["metrics"]["load"], &told["labels"]["disk"]), (&json!(1.5), &json!("sdb")));
    assert!(told["metrics"]["choria_runtime_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{told}");
    assert!(told["time"].as_i64().is_some_and(|time| time > 1_600_000_000), "{told}");
    assert_eq!(running.handle.remote.status().state.as_str(), "RUNS", "a measurement fires nothing");
    let panel = Arc::clone(&running.lab.services.panel);
    running.handle.stop().await;
    assert!(panel.all().is_empty(), "what a machine shows goes with it");

    let hidden = Running::start(&prints(&output, "      skip_prometheus: true\n      http: true\n")).await;
    hidden.measured().await;
    assert_eq!(hidden.shown().unwrap().1, Exposure { prometheus: false, http: true, data: false });
}

#[tokio::test]
async fn labels_that_would_be_repeated_a_thousand_times_are_bounded() {
    let script = "import json; print(json.dumps(dict(labels=dict(big=chr(120) * 9000), metrics=dict(a=1))))";
    let running = Running::start(&writes(script, "")).await;
    let status = running.measured().await;
    let error = status.last_error.unwrap();
    assert!(error.ends_with("its labels have 9015 bytes together, more than the limit of 8192"), "{error}");
    assert!(running.shown().is_none());
    let prefix = format!("      graphite_host: 127.0.0.1\n      graphite_prefix: {}\n", "p".repeat(1_025));
    let running = Running::start(&prints(&json!({"metrics": {"a": 1}}), &prefix)).await;
    let status = running.measured().await;
    let expected = "graphite_prefix has 1025 bytes, more than the limit of 1024";
    assert_eq!(status.last_error.as_deref(), Some(expected));
}

#[tokio::test]
async fn performance_data_is_a_measurement_too() {
    let running =
        Running::start(&text("      command: \"echo 'OK: fine|time=0.05s;1;2 size=12KB'\"\n      interval: 1s\n"))
            .await;
    assert_eq!(running.measured().await.outcome, "success");
    let (measured, _) = running.shown().unwrap();
    assert_eq!(json!(measured.labels), json!({"format": "nagios"}));
    assert_eq!(json!(measured.metrics), json!({"time": 0.05, "size": 12.0}));
}

#[tokio::test]
async fn store_keeps_it_in_data_by_watcher_where_lookup_finds_it() {
    let second =
        "  - name: other\n    type: metric\n    properties: {command: \"echo 'x|b=2'\", interval: 1s, store: true}\n";
    let text = prints(&json!({"metrics": {"a": 1}}), "      store: true\n") + second;
    let running = Running::start(&text).await;
    let data = running.lab.path("data").join("host/machine_data.json");
    let saved = || std::fs::read(&data).ok().and_then(|content| serde_json::from_slice::<Value>(&content).ok());
    let both = || async {
        saved().is_some_and(|saved| {
            saved["metric"]["cpu-load"]["metrics"]["a"] == 1.0 && saved["metric"]["other"]["metrics"]["b"] == 2.0
        })
    };
    eventually("both measurements in the data", both).await;
    let found = machines::machine::template::query(&saved().unwrap().to_string(), "metric.cpu-load.metrics.a");
    assert_eq!(found, Ok(Some(json!(1.0))));
    let built = engine::build(&text).unwrap();
    let writes = built[0].1.writes();
    assert_eq!(writes, machines::machine::watcher::Writes::Items(vec!["metric".to_owned()]));
}

#[tokio::test]
async fn graphite_gets_one_line_for_each_value() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let graphite = format!(
        "      graphite_host: \"{{{{ lookup \\\"facts.graphite\\\" \\\"127.0.0.1\\\" }}}}\"\n      graphite_port: {port}\n      \
         graphite_prefix: \"site.{{{{ lookup \\\"facts.role\\\" \\\"\\\" }}}}\"\n"
    );
    let _running = Running::start(&prints(&json!({"metrics": {"a b": 1.5}}), &graphite)).await;
    let (mut stream, _) = within("the connection", server.accept()).await.unwrap();
    let mut sent = String::new();
    within("its end", stream.read_to_string(&mut sent)).await.unwrap();
    let lines: Vec<Vec<&str>> = sent.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!((lines[0][0], lines[0][1]), ("site.web.a_b", "1.5"), "{sent}");
    assert_eq!((lines.len(), lines[1][0]), (2, "site.web.runtime"), "{sent}");
    assert!(lines.iter().all(|line| line.len() == 3 && line[2].parse::<i64>().is_ok()), "{sent}");
}

#[tokio::test]
async fn a_measurement_stands_when_graphite_does_not_take_it() {
    let port = {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        server.local_addr().unwrap().port()
    };
    let graphite = format!("      graphite_host: 127.0.0.1\n      graphite_port: \"{port}\"\n");
    let running = Running::start(&prints(&json!({"metrics": {"a": 1}}), &graphite)).await;
    let status = running.measured().await;
    let error = status.last_error.unwrap();
    assert!(error.starts_with(&format!("could not send to Graphite at 127.0.0.1:{port}: ")), "{error}");
    assert!(running.shown().is_some());
    assert_eq!(running.handle.remote.status().state.as_str(), "RUNS");
}

#[tokio::test]
async fn a_command_that_fails_is_late_or_prints_nonsense_fires_the_fail_transition() {
    let cases = [
        ("sh -c 'echo oops; exit 3'", "exited with code 3; it printed: oops"),
        ("sleep 30", "took longer than 1s and was killed"),
        ("echo '{\\\"metrics\\\": {\\\"a\\\": \\\"x\\\"}}'", "it must print {\"labels\": {}, \"metrics\""),
        ("no-such-command", "there is no command \"no-such-command\""),
    ];
    for (command, expected) in cases {
        let running = Running::start(&text(&format!("      command: \"{command}\"\n      interval: 1s\n"))).await;
        let state = || async { running.handle.remote.status().state.as_str() == "BROKEN" };
        eventually("the fail transition", state).await;
        let status = running.status();
        assert_eq!(status.outcome, "error");
        assert!(status.last_error.as_deref().is_some_and(|error| error.contains(expected)), "{command}: {status:?}");
    }
}

/// Remembers when commands were run, and answers for them.
#[derive(Default)]
struct Stub(Mutex<Vec<Instant>>);

#[async_trait]
impl Commands for Stub {
    async fn run(&self, _: Command) -> Result<Ended, ProcessError> {
        self.0.lock().unwrap().push(Instant::now());
        let output = b"OK|a=1".to_vec();
        Ok(Ended { failure: None, exit_code: Some(0), standard_output: output.clone(), output, truncated: false })
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_measurement_comes_within_the_interval_and_the_others_an_interval_apart() {
    let hour = Duration::from_secs(3_600);
    let watchers_own = text("      command: a\n").replace("    properties:", "    interval: 1h\n    properties:");
    for text in [text("      command: a\n      interval: 1h\n"), watchers_own] {
        let mut lab = Lab::new().await;
        let stub = Arc::new(Stub::default());
        let commands = Arc::clone(&stub) as Arc<dyn Commands>;
        lab.services = Arc::new(Services { commands, ..Services::clone(&lab.services) });
        let begin = Instant::now();
        let handle = lab.spawn_real(&text);
        engine::settle().await;
        assert_eq!(watcher(&handle.remote.status(), "cpu-load").outcome, "skipped", "it waits for its moment");
        assert!(lab.services.panel.all().is_empty(), "nothing is shown before the first measurement");
        tokio::time::sleep(hour * 10).await;
        let times = stub.0.lock().unwrap().clone();
        assert!(times.len() >= 9 && times[0] - begin <= hour, "{times:?}");
        let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let slack = Duration::from_secs(1);
        assert!(gaps.iter().skip(1).all(|gap| gap.abs_diff(hour) <= slack), "{gaps:?}");
        assert!(gaps[0] <= hour + slack, "{gaps:?}");
        handle.stop().await;
    }
}

#[test]
fn bad_properties_are_refused_with_what_is_wrong() {
    let cases = [
        ("      command: \"\"\n", "command is empty"),
        ("      command: \"a 'b\"\n", "command \"a 'b\""),
        ("      command: \"{{ nope }}\"\n", "calls \"nope\", which is no function"),
        ("      command: a\n      interval: 10ms\n", "interval must be at least 1s"),
        ("      command: a\n      graphite_host: a\n      graphite_port: 99999\n", "must be a number from 1 to 65535"),
        ("      command: a\n      graphite_port: 1\n", "graphite_port has no use without graphite_host"),
        ("      command: a\n      graphite_prefix: b\n", "graphite_prefix has no use without graphite_host"),
    ];
    for (properties, expected) in cases {
        let message = refusal(properties);
        assert!(message.contains(expected) && message.starts_with("machine.yaml:"), "{properties}: {message}");
    }
    let template =
        "      command: \"a {{ lookup \\\"data.a\\\" 1 }}\"\n      labels: {b: \"{{ lookup \\\"facts.b\\\" 1 }}\"}\n";
    assert_eq!(engine::build(&text(template)).unwrap()[0].1.looks_up(), ["data.a", "facts.b"]);
}
