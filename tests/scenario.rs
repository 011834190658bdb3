//! `machinesd test`: scenarios hold where the machine does what they say, and where it does not, the message says what
//! was otherwise and where that stands.

#![cfg(test)]

use std::path::{Path, PathBuf};
use std::process::Command;

const MACHINE: &str = "\
name: keeper
version: 1.0.0
initial_state: WELL
splay_start: 30
transitions:
  - {name: failed, from: [WELL], destination: ILL}
  - {name: healed, from: [ILL], destination: WELL}
  - {name: rest, from: [WELL, ILL], destination: RESTING, subscribe: [{machine_name: night, event: fall}]}
watchers:
  - name: check
    type: exec
    interval: 1m
    state_match: [WELL]
    fail_transition: failed
    properties: {command: ./check --all, timeout: 5s, parse_as_data: true}
  - name: wait
    type: timer
    state_match: [ILL]
    fail_transition: healed
    properties: {timer: 1h, splay: true}
  - name: setting
    type: kv
    interval: 1m
    foreign_state_required: [{machine_name: night, state: DAY}]
    properties: {bucket: SETTINGS, key: limit, mode: watch}
";

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new(scenarios: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("machine.yaml"), MACHINE).unwrap();
        std::fs::write(directory.path().join("machine.test.yaml"), scenarios).unwrap();
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Exit code, standard output, standard error.
fn run(place: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_machinesd"))
        .arg("test")
        .arg(place)
        .args(arguments)
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(place.to_str().unwrap(), "DIR");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn everything_that_a_scenario_can_move_and_see() {
    let place = Place::new(
        "\
scenarios:
  - name: all of it
    start: 2026-03-29T00:00:00Z
    identity: web1.example.net
    facts: {role: web}
    data: {seen: 1}
    neighbours: {night: DAY}
    kv: {SETTINGS: {limit: '5'}}
    commands:
      - {watcher: check, command: check --all, output: '{\"ok\": true}', times: 2}
      - {watcher: check, exit: 2, output: bad}
    steps:
      - after: 29s
        expect: {state: WELL, runs: {check: 0}, data: {seen: 1, ok: null}}
      - after: 1s
        expect: {runs: {check: 1}, data: {ok: true, SETTINGS_limit: '5'}, watchers: {check: success}}
      - kv: {SETTINGS: {limit: {hard: 7}}}
        expect: {data: {SETTINGS_limit: {hard: 7}}}
      - after: 2m
        expect: {state: ILL, transitions: [failed], runs: {check: 2}, watchers: {check: error}}
      - commands: [{watcher: check, takes: 1m}]
        after: 1h
        expect: {state: WELL, transitions: [healed]}
      - after: 5s
        expect: {state: ILL, transitions: [failed]}
      - data: {seen: null, more: [1]}
        expect: {data: {seen: null, more: [1]}}
      - kv: {SETTINGS: {limit: null}}
        after: 1m
        expect: {data: {SETTINGS_limit: null}}
      - neighbour: {name: night, state: NIGHT, event: fall}
        expect: {state: RESTING, transitions: [rest]}
      - kv: {SETTINGS: {limit: '9'}}
        after: 5m
        expect: {data: {SETTINGS_limit: null}}
      - neighbour: {name: night, state: DAY}
        expect: {data: {SETTINGS_limit: '9'}}
",
    );
    let (code, out, err) = run(place.path(), &[]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.starts_with("holds  keeper: all of it (") && out.ends_with("1 scenario, all hold\n"), "{out}");
}

#[test]
fn a_random_wait_is_as_long_as_it_may_be_and_so_the_same_each_time() {
    let place = Place::new(
        "\
scenarios:
  - name: the splayed timer
    commands: [{exit: 1, times: 1}, {output: '{}'}]
    steps:
      - {after: 30s, expect: {state: ILL}}
      - {after: 59m59s, expect: {state: ILL}}
      - {after: 1s, expect: {state: WELL}}
",
    );
    for _ in 0..3 {
        assert_eq!(run(place.path(), &[]).0, Some(0));
    }
}

#[test]
fn what_does_not_hold_is_told_with_its_place_and_the_rest_is_played() {
    let place = Place::new(
        "\
scenarios:
  - name: wrong
    commands: [{exit: 1}]
    steps:
      - after: 30s
        expect:
          state: WELL
          transitions: []
          data: {ok: true}
          watchers: {check: success, chekc: error}
          runs: {check: 3}
  - name: nothing answers
    steps:
      - after: 30s
  - name: a person errs
    commands: [{output: '{}'}]
    steps:
      - {after: 30s, event: heald}
  - name: good
    commands: [{output: '{}'}]
    steps:
      - {after: 31s, expect: {state: WELL}}
",
    );
    let (code, out, err) = run(place.path(), &[]);
    assert_eq!(code, Some(1));
    assert!(out.contains("FAILS  keeper: wrong") && out.contains("holds  keeper: good"), "{out}");
    assert!(out.ends_with("4 scenarios, 3 do not hold\n"), "{out}");
    for expected in [
        "the machine is in state ILL, not WELL; so far: failed",
        "DIR/machine.test.yaml:7:18",
        "the transitions were [\"failed\"], not []",
        "data item \"ok\" is null, not true",
        "the outcome of watcher \"check\" is error, not success: ./check --all: exited with code 1",
        "there is no watcher \"chekc\"",
        "watcher \"check\" ran its command 1 times, not 3",
        "nothing under \"commands\" answers \"./check --all\" of watcher \"check\"",
        "machine \"keeper\" does not run, or waits for its start",
    ] {
        assert!(err.contains(expected), "{expected:?} is missing in:\n{err}");
    }
    let (code, out, _) = run(place.path(), &["--filter", "good"]);
    assert_eq!(code, Some(0), "{out}");
    let (code, _, err) = run(place.path(), &["--filter", "nosuch"]);
    assert_eq!((code, err.as_str()), (Some(2), "error: no scenario has that in its name\n"));
    let (code, out, _) = run(place.path(), &["--format", "json"]);
    let verdicts: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, verdicts.as_array().unwrap().len()), (Some(1), 4));
    assert_eq!(verdicts[0]["problems"][0]["place"]["line"], 7);
    assert_eq!(verdicts[3]["holds"], true);
}

#[test]
fn a_file_that_is_no_scenario_is_refused_with_its_place() {
    for (text, expected) in [
        ("scenarios:\n  - nam: x\n    steps: []\n", "did you mean \"name\"?"),
        ("scenarios:\n  - name: x\n    steps: [{after: soon}]\n", "\"soon\" is not a duration"),
        ("scenarios:\n  - name: x\n    start: yesterday\n    steps: []\n", "DIR/machine.test.yaml:3:"),
        ("scenarios: 5\n", "expected a sequence"),
        ("scenarios: [\n", "DIR/machine.test.yaml:"),
    ] {
        let place = Place::new(text);
        let (code, out, err) = run(place.path(), &[]);
        assert_eq!((code, out.as_str()), (Some(1), ""));
        assert!(err.contains(expected), "{expected:?} is missing in:\n{err}");
    }
    let place = Place::new("");
    std::fs::remove_file(place.path().join("machine.test.yaml")).unwrap();
    let (code, _, err) = run(place.path(), &[]);
    assert_eq!(code, Some(1));
    assert!(err.contains("machine.test.yaml"), "{err}");
}

/// Of the examples, each has scenarios, and they hold.
#[test]
fn the_examples_keep_their_scenarios() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("machines/examples");
    let examples: Vec<PathBuf> = std::fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().path()).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_machinesd"));
    let output = command.arg("test").args(&examples).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for example in examples {
        let name = example.file_name().unwrap().to_str().unwrap();
        assert!(said.contains(&format!("holds  {name}: ")), "{name} has no scenario:\n{said}");
    }
}

/// Authors commit what is in their sources; a file that a test made would be packed and published with them.
#[test]
fn a_test_leaves_nothing_in_the_directory_of_the_machine() {
    let place = Place::new("scenarios: [{name: writes, steps: [{after: 1m, expect: {state: WELL}}]}]");
    std::fs::write(
        place.path().join("machine.yaml"),
        "name: writer\nversion: 1.0.0\ninitial_state: WELL\ntransitions: [{name: stay, from: [WELL], destination: WELL}]\n\
         watchers: [{name: file, type: file, interval: 5s, properties: {path: made.conf, contents: made}}]\n",
    )
    .unwrap();
    let (code, said, faults) = run(place.path(), &[]);
    assert_eq!(code, Some(0), "{said}{faults}");
    assert!(!place.path().join("made.conf").exists());
}
