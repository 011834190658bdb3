//! What becomes of values on their way into commands: one that stands in quotes is one argument, whatever it holds, and
//! facts that can't be used reach no command as an answer.

#![cfg(test)]

mod engine;
mod support;

use engine::{Lab, watcher};
use machines::machine::status::WatcherStatus;
use serde_json::{Value, json};
use support::eventually;

/// A machine with a watcher of a kind, and what its data hold.
async fn run(lab: &Lab, kind: &str, properties: &Value, data: &Value) -> WatcherStatus {
    let script = "printf '%s\\0' \"$@\" > arguments.part; mv arguments.part arguments; cat \"$WATCHER_FACTS\" > facts\n\
                  echo '{\"labels\": {}, \"metrics\": {\"a\": 1}}'\n";
    std::fs::write(lab.machine_directory("runner").join("script"), script).unwrap();
    std::fs::create_dir_all(lab.path("data/runner")).unwrap();
    std::fs::write(lab.path("data/runner/machine_data.json"), data.to_string()).unwrap();
    let text = format!(
        "name: runner\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: OK, from: [A], destination: A}}\n  - \
         {{name: WARNING, from: [A], destination: A}}\n  - {{name: CRITICAL, from: [A], destination: A}}\n  - {{name: \
         UNKNOWN, from: [A], destination: A}}\nwatchers:\n  - {{name: it, type: {kind}, properties: {properties}}}\n"
    );
    let handle = lab.spawn_real(&text);
    // A metric watcher is asked before its own interval begins.
    let is_done = |status: WatcherStatus| status.checks > 0 && status.outcome != "skipped";
    eventually("the check", || async { is_done(watcher(&handle.remote.status(), "it")) }).await;
    let status = watcher(&handle.remote.status(), "it");
    handle.stop().await;
    status
}

fn arguments(lab: &Lab) -> Vec<String> {
    let bytes = std::fs::read(lab.machine_directory("runner").join("arguments")).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    text.split_terminator('\0').map(str::to_owned).collect()
}

const HOSTILE: [&str; 7] = [
    "'; touch stolen; '",
    "\"; touch stolen; \"",
    "$(touch stolen)",
    "`touch stolen`",
    "a\nb c",
    "\\",
    "' ' \" # {{ 1 }}",
];

#[tokio::test]
async fn a_value_in_quotes_is_one_argument_of_a_real_command_of_every_kind() {
    for value in HOSTILE {
        for (kind, property) in [("exec", "command"), ("metric", "command"), ("nagios", "plugin")] {
            let lab = Lab::new().await;
            let command = "sh script '{{ lookup `data.v` `` }}' \"-x={{ lookup `data.v` `` }}\" last";
            let properties = json!({property: command, "timeout": "20s"});
            let properties = if kind == "metric" { json!({property: command, "interval": "1s"}) } else { properties };
            let status = run(&lab, kind, &properties, &json!({"v": value})).await;
            assert_eq!(status.last_error, None, "{kind} {value:?}");
            assert_eq!(arguments(&lab), [value, &format!("-x={value}"), "last"], "{kind}");
            assert!(!lab.machine_directory("runner").join("stolen").exists());
        }
    }
}

#[tokio::test]
async fn quote_keeps_a_value_a_value_also_within_a_script() {
    for value in HOSTILE {
        let lab = Lab::new().await;
        let command = "sh -c 'sh script {{ Quote (lookup `data.v` ``) }} last'";
        let status = run(&lab, "exec", &json!({"command": command, "timeout": "20s"}), &json!({"v": value})).await;
        assert_eq!(status.last_error, None, "{value:?}");
        assert_eq!(arguments(&lab), [value, "last"]);
        assert!(!lab.machine_directory("runner").join("stolen").exists());
    }
}

#[tokio::test]
async fn a_value_that_opens_a_quote_outside_of_quotes_is_an_error_that_says_what_to_do() {
    let lab = Lab::new().await;
    let command = "sh script {{ lookup `data.v` `` }} '{{ lookup `data.w` `` }}'";
    let data = json!({"v": "'", "w": "; touch stolen"});
    let status = run(&lab, "exec", &json!({"command": command}), &data).await;
    let error = status.last_error.unwrap();
    assert!(error.contains("a value outside of quotes opens a quote that it does not close"), "{error}");
    assert!(error.ends_with("put the template in quotes"), "{error}");
    assert!(!lab.machine_directory("runner").join("arguments").exists());
}

#[tokio::test]
async fn facts_that_can_not_be_used_reach_no_command_as_a_default() {
    let lab = Lab::new().await;
    lab.services.node.set_facts_unusable("facts file /etc/facts.json is half written".to_owned());
    let command = "sh script '{{ lookup `facts.role` `none` }}'";
    let status = run(&lab, "exec", &json!({"command": command}), &json!({})).await;
    let error = status.last_error.unwrap();
    assert!(error.contains("the facts can't be used: facts file /etc/facts.json is half written"), "{error}");
    assert!(!lab.machine_directory("runner").join("arguments").exists());
    // A command that asks for none runs, and finds those that were known last in the file.
    let status = run(&lab, "exec", &json!({"command": "sh script", "timeout": "20s"}), &json!({})).await;
    assert_eq!(status.last_error, None);
    let facts = std::fs::read_to_string(lab.machine_directory("runner").join("facts")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&facts).unwrap()["role"], "web");
}

#[tokio::test]
async fn a_template_that_would_end_the_daemon_is_an_error_of_its_watcher() {
    let lab = Lab::new().await;
    for (command, reason) in [
        ("x{{ lookup (print `data.` (lookup `data.path` ``)) `` }}", "the limit is 1024; shorten it"),
        (
            "{{ $x := `12345678` }}{{ range 60 }}{{ $x = print $x $x }}{{ end }}",
            "its values have more than 16777216 bytes",
        ),
    ] {
        let status = run(&lab, "exec", &json!({"command": command}), &json!({"path": "[".repeat(5_000)})).await;
        let error = status.last_error.unwrap();
        assert!(error.contains(reason), "{error}");
    }
}
