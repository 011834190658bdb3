//! What the daemon's program says: every command's help, its success and its failures, word for word, with exit codes.

#![cfg(test)]

mod transcript;

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use transcript::{Background, Scene};

const HELLO: &str = "\
name: hello
version: 1.0.0
initial_state: GREET
transitions:
  - name: again
    description: Somebody came back.
    from: [GREET]
    destination: GREET
watchers:
  - name: greet
    type: exec
    interval: 5s
    state_match: [GREET]
    properties:
      command: ./greet
";

/// Settings that keep everything in the scene's directory.
const SETTINGS: &str = "\
identity = \"web1.example.net\"
state_dir = \"state\"
local_dir = \"machines.d\"
facts = []
[kv]
url = \"local\"
[process]
cgroup = \"off\"
[control]
socket = \"d.sock\"
";

/// These tests are of other things than signatures.
const ALLOW_UNSIGNED: &str = "printf '[trust]\\nallow_unsigned = true\\n' >>m.toml";

fn scene() -> Scene {
    let scene = Scene::new();
    scene.write("hello/machine.yaml", HELLO);
    scene.write("hello/greet", "#!/bin/sh\necho hello\n");
    std::fs::set_permissions(scene.path("hello/greet"), std::fs::Permissions::from_mode(0o755)).unwrap();
    // The daemon wants absolute paths.
    let root = scene.path("").display().to_string();
    let settings = ["state", "machines.d", "d.sock"]
        .iter()
        .fold(SETTINGS.to_owned(), |text, name| text.replace(&format!("\"{name}\""), &format!("\"{root}{name}\"")));
    scene.write("m.toml", settings);
    scene
}

#[test]
fn every_command_explains_itself_with_an_example() {
    let mut scene = Scene::new();
    for command in [
        "",
        "run",
        "dev",
        "run-machine",
        "validate",
        "test",
        "schema",
        "graph",
        "status",
        "why",
        "transition",
        "events",
        "sync",
        "maintenance",
        "version",
    ] {
        let line = format!("machinesd {command} --help").replace("  ", " ");
        scene.run(&line);
        let help = scene.prepare(&line);
        assert!(help.contains("Example: machinesd ") || command.is_empty(), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "wider than 100 columns: {help}");
    }
    scene.matches("machinesd/help");
}

#[test]
fn mistyped_commands_and_options_get_a_suggestion() {
    let mut scene = Scene::new();
    scene
        .run("machinesd")
        .run("machinesd statsu")
        .run("machinesd validate")
        .run("machinesd why")
        .run("machinesd why 'a b'")
        .run("machinesd sync --alow-removals");
    scene.run("machinesd --version").run("machinesd version --verbose");
    scene.run("machinesd version --format json | grep -v '\"version\"'");
    scene.matches("machinesd/usage");
}

#[test]
fn definitions_are_validated_with_every_fault_at_its_place() {
    let mut scene = scene();
    scene.write(
        "broken/machine.yaml",
        "name: 9lives\nversion: 1\nintial_state: A\ntransitions:\n  - name: go\n    from: [A]\n    destination: B\n\
         watchers:\n  - name: w\n    type: exce\n    state_match: [C]\n    interval: soon\n",
    );
    scene.write(
        "properties/machine.yaml",
        HELLO.replace("      command: ./greet", "      comand: ./greet\n      timeout: 1x"),
    );
    scene.write("syntax/machine.yaml", "name: x\n  version: [\n");
    scene
        .run("machinesd validate hello")
        .run("machinesd validate hello --format json")
        .run("machinesd validate broken");
    scene
        .run("machinesd validate properties")
        .run("machinesd validate hello syntax absent")
        .run("machinesd validate broken --format json");
    scene.matches("machinesd/validate");
}

#[test]
fn settings_that_cannot_work_exit_2_and_say_where() {
    let mut scene = scene();
    scene.write(
        "faults.toml",
        "identity = \"a b\"\nstate_dir = \"x\"\n[kv]\nurl = \"http://x\"\n[sync]\ninterval = \"1ms\"\nbucket = \"A B\"\n\
         [trust]\npublic_keys = [\"64031219d4922eed63a5f567303e98607c632139c01bc9fa4ca2514c2d9d30da\"]\n",
    );
    scene.write("unknown.toml", "state_dri = \"/x\"\n");
    scene.write("syntax.toml", "[kv\nurl = 1\n");
    scene
        .run("machinesd run --config absent.toml")
        .run("machinesd run --config faults.toml")
        .run("machinesd run --config unknown.toml")
        .run("machinesd run --config syntax.toml")
        .run("MACHINESD_KV_ULR=local machinesd run --config m.toml");
    scene
        .run("machinesd run --once --config faults.toml")
        .run("MACHINESD_SYNC_INTERVAL=0s machinesd run --once --config m.toml")
        .run("MACHINESD_SYNC_INTERVAL=soon machinesd run --once --config m.toml")
        .run("MACHINESD_LOG_FORMAT=xml machinesd run --once --config m.toml")
        .run("MACHINESD_KV_PASSWORD=x machinesd run --once --config m.toml");
    scene.run("MACHINESD_SYNC_ENABLED=false machinesd run --once --config m.toml");
    scene.matches("machinesd/settings");
}

#[test]
fn one_pass_converges_or_says_what_is_missing() {
    let mut scene = scene();
    scene.prepare(ALLOW_UNSIGNED);
    let pass = "machinesd run --once --config m.toml 2>log";
    scene.run(pass).run("grep -v -e ' INFO ' -e ' WARN ' log");
    scene.prepare("mms archive build hello 2>&1 >entry.json; (echo [; cat entry.json; echo ]) >machines.json");
    scene.prepare("export MACHINES_KV=local:state/kv.db; mms kv add MACHINES; mms pack machines.json --force | mms kv put MACHINES machines -");
    scene.run(pass).run(pass).run("ls -l state/machines | sed 1d | sed 's/.* hello/hello/'");
    scene.prepare("mms kv put --kv local:state/kv.db MACHINES machines '{}'");
    scene.run(pass).run("grep -v -e ' INFO ' -e ' WARN ' log");
    scene.matches("machinesd/once");
}

#[test]
fn without_a_daemon_its_commands_say_so() {
    let mut scene = Scene::new();
    for command in ["status", "status --format json", "why hello", "transition hello again", "events", "sync"] {
        scene.run(&format!("machinesd {command} --socket d.sock"));
    }
    scene.matches("machinesd/no_daemon");
}

#[test]
fn a_node_at_work_is_shown_and_explained() {
    let mut scene = scene();
    // Checked once, on its start.
    scene.write("hello/machine.yaml", HELLO.replace("5s", "1h"));
    scene.prepare(ALLOW_UNSIGNED);
    scene.prepare("mms archive build hello 2>&1 >entry.json; (echo [; cat entry.json; echo ]) >machines.json");
    scene.prepare("export MACHINES_KV=local:state/kv.db; mkdir state; mms kv add MACHINES; mms pack machines.json --force | mms kv put MACHINES machines -");
    let log = std::fs::File::create(scene.path("log")).unwrap();
    let daemon = scene.shell("exec machinesd run --config m.toml").stderr(log).spawn().unwrap();
    let _daemon = Background(daemon);
    let begun = Instant::now();
    let status = "machinesd status --socket d.sock --format json";
    let is_at_work = |status: &serde_json::Value| {
        let checked = |name: &str| {
            let machines = status["machines"].as_array();
            let machine = machines.and_then(|all| all.iter().find(|report| report["machine"]["name"] == name));
            machine.is_some_and(|report| {
                report["machine"]["watchers"].as_array().is_some_and(|watchers| {
                    let active = |watcher: &&serde_json::Value| watcher["active"] == true;
                    watchers.iter().filter(active).all(|watcher| watcher["checks"].as_u64() > Some(0))
                })
            })
        };
        checked("hello") && checked("manager") && status["sync"]["machines"]["hello"]["state"] == "installed"
    };
    while !serde_json::from_slice(&scene.output(status).stdout).is_ok_and(|status| is_at_work(&status)) {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", scene.prepare("cat log"));
        std::thread::sleep(Duration::from_millis(50));
    }
    scene.replacing(&[
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-\[12 DIGITS\]", "[ID]"),
        (r"\b\d+s\b", "[AGO]"),
        (r"\b\d+ checks?", "[N] checks"),
        (r#""checks": \d+"#, r#""checks": [N]"#),
        (r#""errors": \d+"#, r#""errors": [N]"#),
        // A second look at the manager's machines may have come already.
        (r#""outcome": "(updated|unchanged)""#, r#""outcome": "[OUTCOME]""#),
        (r"machines \(machines\): (updated|unchanged)", "machines (machines): [OUTCOME]"),
        (r"SQLite \d+\.\d+\.\d+", "SQLite [VERSION]"),
        (r#""version": "0\.\d+\.\d+""#, r#""version": "[VERSION]""#),
    ]);
    for command in ["sync", "status", "status --format json", "why hello", "why hello --format json", "why manager"] {
        scene.run(&format!("machinesd {command} --socket d.sock"));
    }
    scene.matches("machinesd/node");
}

#[test]
fn a_running_daemon_answers_and_refuses_in_words() {
    let mut scene = scene();
    scene.write("machines.d/hello/machine.yaml", HELLO);
    scene.write("machines.d/hello/greet", "#!/bin/sh\necho hello\n");
    std::fs::set_permissions(scene.path("machines.d/hello/greet"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let log = std::fs::File::create(scene.path("log")).unwrap();
    let daemon = scene.shell("exec machinesd run --config m.toml").stderr(log).spawn().unwrap();
    let _daemon = Background(daemon);
    let begun = Instant::now();
    while !String::from_utf8_lossy(&scene.output("machinesd status --socket d.sock").stdout).contains("GREET") {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", scene.prepare("cat log"));
        std::thread::sleep(Duration::from_millis(50));
    }
    for command in [
        "transition hello again",
        "transition hello agian",
        "transition helo again",
        "sync",
        "maintenance",
        "transition manager enter_maintenance",
        "transition manager enter_maintenance",
        "why nobody",
    ] {
        scene.run(&format!("machinesd {command} --socket d.sock"));
    }
    scene.run("machinesd run --config m.toml 2>&1 | grep -v ' INFO '");
    scene.matches("machinesd/daemon");
    let events = scene.follow("machinesd events --follow --format json --socket d.sock");
    let begun = Instant::now();
    let event = loop {
        // It may not listen yet, so there must be more than one transition.
        for event in ["resume", "enter_maintenance"] {
            scene.prepare(&format!("machinesd transition manager {event} --socket d.sock"));
        }
        match events.lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => break line,
            Err(_) => assert!(begun.elapsed() < Duration::from_secs(60), "no event came"),
        }
    };
    let event: serde_json::Value = serde_json::from_str(&event).unwrap();
    assert_eq!(event["source"], "io.choria.machine");
    // Without --follow it ends, with what was before.
    let shown = scene.prepare("machinesd events --transitions --machine manager --socket d.sock");
    let last = shown.lines().last().unwrap_or_default();
    assert!(last.starts_with("web1.example.net manager transitioned via event "), "{shown}");
    assert_eq!(scene.prepare("machinesd events --type kv --machine hello --socket d.sock"), "");
}

#[test]
fn the_checker_tells_people_and_programs_what_a_machine_can_not_do() {
    let mut scene = scene();
    let lost = HELLO.replace("watchers:", "  - name: lose\n    from: [GREET]\n    destination: LOST\nwatchers:");
    scene.write("lost/machine.yaml", &lost);
    let waiting = HELLO.replace("name: hello", "name: waiting").replace(
        "    properties:",
        "    foreign_state_required: [{machine_name: hello, state: GRET}]\n    properties:",
    );
    scene.write("waiting/machine.yaml", &waiting);
    scene.replacing(&[(r#""semanticVersion": "0\.\d+\.\d+""#, r#""semanticVersion": "[VERSION]""#)]);
    scene
        .run("machinesd validate lost")
        .run("machinesd validate lost --deny warnings")
        .run("machinesd validate hello waiting")
        .run("machinesd validate lost waiting --format json")
        .run("machinesd validate hello waiting --format sarif")
        .run("machinesd validate hello --deny nothing");
    scene.matches("machinesd/checker");
}

#[test]
fn a_machine_is_drawn_in_three_languages() {
    let mut scene = scene();
    let states = HELLO
        .replace("watchers:", "  - name: '\"a\"<b>&c;'\n    from: [GREET]\n    destination: S\\T\nwatchers:")
        .replace("state_match: [GREET]", "fail_transition: again");
    scene.write("strange/machine.yaml", &states);
    scene.write("broken/machine.yaml", HELLO.replace("[GREET]", "[GRET]"));
    for format in ["dot", "mermaid", "svg"] {
        scene.run(&format!("machinesd graph strange --format {format}"));
    }
    scene.run("machinesd graph broken").run("machinesd graph");
    scene.run("machinesd schema | grep 2020-12");
    scene.matches("machinesd/graph");
}
