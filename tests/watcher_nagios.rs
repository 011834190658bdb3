//! What a nagios watcher does with results: transitions by name, events, history, overrides, forced checks. Real plugins,
//! as shell scripts.

#![cfg(test)]

mod engine;
mod support;

use std::os::unix::fs::PermissionsExt;

use engine::{Events, Lab, watcher};
use machines::machine::panel::Shown;
use machines::machine::runner::Handle;
use serde_json::{Value, json};
use support::eventually;

const STATES: &str = "[UNKNOWN, OK, WARNING, CRITICAL, FORCE_CHECK]";

/// As the reference's machines are: a state for each result, and one that forces a check.
fn text(more: &str, properties: &str) -> String {
    let moves: String = ["OK", "WARNING", "CRITICAL", "UNKNOWN"]
        .iter()
        .map(|name| format!("  - {{name: {name}, from: {STATES}, destination: {name}}}\n"))
        .collect();
    format!(
        "name: web\nversion: 1.0.0\ninitial_state: UNKNOWN\ntransitions:\n{moves}  - {{name: force, from: [UNKNOWN, OK, \
         WARNING, CRITICAL], destination: FORCE_CHECK}}\n  - {{name: pause, from: {STATES}, destination: \
         PAUSED}}\nwatchers:\n  - name: check\n    type: nagios\n    state_match: [UNKNOWN, OK, WARNING, \
         CRITICAL]\n{more}    properties:\n{properties}"
    )
}

struct Running {
    lab: Lab,
    handle: Handle,
    events: Events,
}

impl Running {
    /// With a plugin that prints and answers as `verdict` in the machine's directory says.
    async fn with_verdict(verdict: &str, more: &str) -> Self {
        let lab = Lab::new().await;
        let directory = lab.machine_directory("web");
        let plugin = directory.join("plugin");
        std::fs::write(&plugin, "#!/bin/sh\necho run >> runs\nread code text < verdict\necho \"$text\"\nexit $code\n")
            .unwrap();
        std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(directory.join("verdict"), verdict).unwrap();
        Self::start(lab, &text(more, "      plugin: ./plugin\n      timeout: 20s\n      annotations: {team: web}\n"))
    }

    fn start(lab: Lab, text: &str) -> Self {
        let events = lab.events();
        let handle = lab.spawn_real(text);
        Self { lab, handle, events }
    }

    fn verdict(&self, verdict: &str) {
        std::fs::write(self.lab.machine_directory("web").join("verdict"), verdict).unwrap();
    }

    fn runs(&self) -> usize {
        std::fs::read_to_string(self.lab.machine_directory("web").join("runs")).unwrap_or_default().lines().count()
    }

    fn state(&self) -> String {
        self.handle.remote.status().state.to_string()
    }

    async fn until_state(&self, state: &str) {
        eventually(state, || async { self.state() == state }).await;
    }

    /// The last state event of the watcher, once there is one that is as wanted.
    async fn event(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let begin = std::time::Instant::now();
        loop {
            let found = self.events.drain().into_iter().map(|event| event["data"].clone()).rfind(&wanted);
            if let Some(found) = found {
                return found;
            }
            assert!(begin.elapsed() < support::PATIENCE, "no such event");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn each_exit_code_makes_the_transition_of_its_name() {
    let cases =
        [("0 fine", "OK"), ("1 hm", "WARNING"), ("2 bad", "CRITICAL"), ("3 what", "UNKNOWN"), ("77 odd", "UNKNOWN")];
    for (verdict, state) in cases {
        let mut running = Running::with_verdict(verdict, "").await;
        let (code, output) = verdict.split_once(' ').unwrap();
        let told = running.event(|event| event["status"] == state && event["output"] == output).await;
        let code: u8 = code.parse().unwrap();
        assert_eq!(told["status_code"], json!(code.min(3)), "{told}");
        running.until_state(state).await;
        assert_eq!(running.runs(), 1, "what was just checked is not checked again on entering its state");
    }
}

#[tokio::test]
async fn the_event_has_every_field_of_the_reference() {
    let mut running = Running::with_verdict("1 slow|time=2s;1;3", "").await;
    let told = running.event(|event| event["status"] == "WARNING").await;
    assert_eq!((&told["plugin"], &told["status_code"]), (&json!("./plugin"), &json!(1)));
    assert_eq!(told["output"], "slow|time=2s;1;3");
    assert_eq!(told["perfdata"], json!([{"unit": "s", "label": "time", "value": 2.0}]));
    assert_eq!(told["annotations"], json!({"team": "web"}));
    assert!(told["check_time"].as_i64().is_some_and(|time| time > 1_600_000_000), "{told}");
    assert!(told["runtime"].as_f64().is_some_and(|seconds| seconds > 0.0), "{told}");
    let history = told["history"].as_array().unwrap();
    assert_eq!((history.len(), &history[0]["status"]), (1, &json!(1)));
    let shown = running.lab.services.panel.all();
    let [(_, Shown::Checked(checked))] = shown.as_slice() else { panic!("{shown:?}") };
    assert_eq!((checked.status, checked.code, checked.checks), ("WARNING", 1, 1));
}

#[tokio::test]
async fn a_result_that_moves_nothing_is_told_but_asks_for_no_transition() {
    let mut running = Running::with_verdict("0 fine", "    interval: 500ms\n").await;
    running.until_state("OK").await;
    let told = running.event(|event| event["history"].as_array().is_some_and(|history| history.len() == 15)).await;
    assert_eq!(told["status"], "OK");
    running.verdict("2 bad");
    running.until_state("CRITICAL").await;
    let status = running.handle.remote.status();
    assert_eq!(status.transitions, 2, "only real moves: to OK, then to CRITICAL");
    let told = running.event(|event| event["status"] == "CRITICAL").await;
    assert_eq!(told["history"].as_array().unwrap().len(), 15, "the last 15 results");
}

#[tokio::test]
async fn the_state_force_check_forces_a_check_although_it_is_not_listed() {
    let running = Running::with_verdict("0 fine", "").await;
    running.until_state("OK").await;
    running.verdict("1 hm");
    running.handle.remote.transition("force").await.unwrap();
    running.until_state("WARNING").await;
    assert_eq!(running.runs(), 2);
    running.handle.remote.transition("pause").await.unwrap();
    engine::settle().await;
    assert!(!watcher(&running.handle.remote.status(), "check").active);
}

#[tokio::test]
async fn a_plugin_that_is_late_or_missing_is_unknown_with_the_reason() {
    let lab = Lab::new().await;
    let mut running = Running::start(lab, &text("", "      plugin: sleep 30\n      timeout: 100ms\n"));
    let told = running.event(|event| event["status"] == "UNKNOWN").await;
    assert_eq!(told["output"], "sleep took longer than 100ms and was killed; it printed: ");
    let lab = Lab::new().await;
    let mut running = Running::start(lab, &text("", "      plugin: no-such-plugin\n"));
    let told = running.event(|event| event["status"] == "UNKNOWN").await;
    assert!(told["output"].as_str().unwrap().contains("there is no command \"no-such-plugin\""), "{told}");
    assert_eq!(watcher(&running.handle.remote.status(), "check").outcome, "error");
}

#[tokio::test]
async fn a_plugin_runs_as_the_user_and_group_it_was_given() {
    let lab = Lab::new().await;
    let everyone = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(lab.directory.path(), everyone).unwrap();
    let properties =
        "      plugin: sh -c 'echo $(id -u):$(id -g)'\n      timeout: 20s\n      user: nobody\n      group: 12\n";
    let mut running = Running::start(lab, &text("", properties));
    let told = running.event(|event| event["status"] == "OK").await;
    assert_eq!(told["output"], "65534:12");
}

#[tokio::test]
async fn o_reads_the_overrides_of_the_machine_from_its_data() {
    let lab = Lab::new().await;
    let data = lab.path("data").join("web");
    std::fs::create_dir_all(&data).unwrap();
    let overrides = json!({"overrides": {"web": {"limits": {"warn": 80}}, "other": {"limits": {"crit": 1}}}});
    std::fs::write(data.join("machine_data.json"), overrides.to_string()).unwrap();
    let plugin = "      plugin: \"echo {{ o \\\"limits.warn\\\" 50 }} {{ o \\\"limits.crit\\\" 90 }} {{ lookup \\\"facts.role\\\" 1 }}\"\n";
    let mut running = Running::start(lab, &text("", plugin));
    let told = running.event(|event| event["status"] == "OK").await;
    assert_eq!((&told["output"], &told["plugin"]), (&json!("80 90 web"), &json!("echo 80 90 web")));
}

#[tokio::test]
async fn the_built_in_checks_need_no_plugin() {
    let lab = Lab::new().await;
    let mut running = Running::start(lab, &text("", "      builtin: heartbeat\n"));
    let told = running.event(|event| event["status"] == "OK").await;
    assert!(told["output"].as_str().unwrap().parse::<i64>().unwrap() > 1_600_000_000);
    let lab = Lab::new().await;
    let choria_status = "      builtin: choria_status\n      last_message: 1h\n      pubcert_expire: 1d\n";
    let mut running = Running::start(lab, &text("", choria_status));
    let told = running.event(|event| event["status"] == "OK").await;
    assert!(told["output"].as_str().unwrap().starts_with("OK: connected to "), "{told}");
    assert_eq!(told["perfdata"][0], json!({"unit": "", "label": "connected", "value": 1.0}));
}

#[tokio::test]
async fn a_daemon_without_its_store_is_critical() {
    let target = machines::kv::Target::parse("nats://127.0.0.1:1").unwrap();
    machines::kv::install_tls_provider();
    let store = machines::kv::open(&machines::kv::ConnectionSettings::new(target)).await.unwrap();
    let lab = Lab::with_store(tempfile::tempdir().unwrap(), store);
    let mut running = Running::start(lab, &text("", "      builtin: choria_status\n"));
    let told = running.event(|event| event["status"] == "CRITICAL").await;
    assert!(told["output"].as_str().unwrap().starts_with("CRITICAL: not connected to nats://127.0.0.1:1"), "{told}");
}

#[tokio::test]
async fn goss_is_run_with_its_file_and_its_absence_is_said() {
    let goss =
        "      builtin: goss\n      gossfile: \"{{ lookup \\\"facts.role\\\" \\\"\\\" }}.yaml\"\n      timeout: 20s\n";
    let lab = Lab::new().await;
    let program = lab.machine_directory("web").join("goss");
    std::fs::write(&program, "#!/bin/sh\necho \"GOSS $*|failed=1\"\nexit 2\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut running = Running::start(lab, &text("", goss));
    let told = running.event(|event| event["status"] == "CRITICAL").await;
    assert_eq!(told["output"], "GOSS --gossfile web.yaml validate --format nagios|failed=1");
    let mut running = Running::start(Lab::new().await, &text("", goss));
    let told = running.event(|event| event["status"] == "UNKNOWN").await;
    assert!(told["output"].as_str().unwrap().starts_with("there is no goss in the machine's directory"), "{told}");
}

#[test]
fn bad_properties_and_missing_transitions_are_refused_with_what_is_wrong() {
    let refusal = |text: &str| engine::build(text).map(drop).unwrap_err();
    let cases = [
        ("      timeout: 1s\n", "plugin or builtin is missing"),
        ("      plugin: a\n      builtin: heartbeat\n", "plugin and builtin exclude each other"),
        ("      builtin: goss\n", "builtin goss needs a gossfile"),
        ("      plugin: a\n      gossfile: b\n", "gossfile is for builtin: goss"),
        ("      plugin: a\n      timeout: 0s\n", "timeout must be longer than 0s"),
        ("      plugin: \"a 'b\"\n", "plugin \"a 'b\""),
        ("      plugin: \"{{ p \\\"a\\\" 1 }}\"\n", "calls \"p\", which is no function"),
        ("      builtin: gos\n", "unknown variant `gos`"),
    ];
    for (properties, expected) in cases {
        let message = refusal(&text("", properties));
        assert!(message.contains(expected) && message.starts_with("machine.yaml:"), "{properties}: {message}");
    }
    let without = |name: &str, properties: &str| {
        let line = format!("  - {{name: {name}, from: {STATES}, destination: {name}}}\n");
        text("", properties).replace(&line, "").replace("initial_state: UNKNOWN", "initial_state: OK")
    };
    let message = refusal(&without("WARNING", "      plugin: a\n"));
    assert!(message.contains("its results ask for transitions that are missing: WARNING"), "{message}");
    assert!(engine::build(&without("WARNING", "      builtin: heartbeat\n")).is_ok(), "a heartbeat is always OK");
}
