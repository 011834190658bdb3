//! The checker's promises: it finds each fault that it has a rule for, where it stands, and nothing in the machines that
//! are sound; it does so in bounded time; and what it prints for programs has the form that they expect.
//!
//! `tests/data/broken` has one directory for each fault: a machine, or machines that are wrong together. A line with a
//! fault ends in `#! rule: message`, of which the message may stop early.

#![cfg(test)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use machines::host::built_in;
use machines::machine::lint::{Examined, together};
use machines::machine::rule::{RULES, Severity, Stage};
use machines::machine::watcher::{Fires, Kind};
use machines::watchers::KINDS;
use serde_json::Value;

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn inside(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The machines of each case.
fn broken() -> Vec<Vec<PathBuf>> {
    let cases = inside(&project().join("tests/data/broken"));
    cases.into_iter().map(|case| if case.join("machine.yaml").exists() { vec![case] } else { inside(&case) }).collect()
}

fn sound() -> Vec<PathBuf> {
    let mut machines = inside(&project().join("machines/examples"));
    machines.push(project().join("machines/manager"));
    machines
}

fn examine(directories: &[PathBuf]) -> Vec<Examined> {
    let mut machines: Vec<_> = directories.iter().map(|directory| Examined::directory(directory, KINDS)).collect();
    together(&mut machines, &built_in::as_compiled().unwrap());
    machines
}

/// `line rule: message (help)` for each problem.
fn told(machine: &Examined) -> Vec<String> {
    let line = |place: Option<machines::machine::problem::Place>| place.map_or(0, |place| place.line);
    let help = |help: &Option<String>| help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
    machine
        .problems
        .iter()
        .map(|problem| {
            format!("{} {}: {}{}", line(problem.place), problem.rule.id, problem.message, help(&problem.help))
        })
        .collect()
}

fn text(path: &Path, kinds: &[Kind], text: &str) -> Examined {
    Examined::text(path, text.to_owned(), kinds)
}

#[test]
fn every_broken_machine_is_told_its_fault_and_no_other() {
    let cases = broken();
    assert!(cases.len() >= 25, "only {} broken machines", cases.len());
    let mut wrong = String::new();
    for case in cases {
        let mut expected_any = false;
        for (machine, directory) in examine(&case).iter().zip(&case) {
            let source = fs::read_to_string(directory.join("machine.yaml")).unwrap();
            let expected: Vec<String> = source
                .lines()
                .enumerate()
                .filter_map(|(index, line)| Some(format!("{} {}", index + 1, line.split_once("#! ")?.1)))
                .collect();
            expected_any |= !expected.is_empty();
            let told = told(machine);
            // The message in a comment may stop early, or leave out how it begins.
            let is_told = |told: &String, expected: &String| {
                let (rule, message) = expected.split_once(": ").unwrap();
                told.strip_prefix(&format!("{rule}: ")).is_some_and(|told| told.contains(message))
            };
            if told.len() != expected.len()
                || !told.iter().zip(&expected).all(|(told, expected)| is_told(told, expected))
            {
                write!(wrong, "{}:\n  expected {expected:#?}\n  told {told:#?}\n", directory.display()).unwrap();
            }
        }
        assert!(expected_any, "{case:?} has no `#!` line");
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_rule_has_a_broken_machine() {
    let sources = broken().into_iter().flatten().map(|path| fs::read_to_string(path.join("machine.yaml")).unwrap());
    let sources: String = sources.collect();
    // The one has no file to be marked in, the other needs a kind that fires nothing: both have tests of their own.
    let elsewhere = ["unreadable-file", "outcome-never-fired"];
    for rule in RULES.iter().filter(|rule| !elsewhere.contains(&rule.id)) {
        assert!(sources.contains(&format!("#! {}: ", rule.id)), "no machine breaks {}", rule.id);
    }
}

#[test]
fn nothing_is_told_of_the_manager_and_the_examples() {
    let machines = examine(&sound());
    for machine in &machines {
        assert_eq!(told(machine), Vec::<String>::new(), "{}", machine.path.display());
    }
    // Each alone, too.
    for directory in sound() {
        assert_eq!(told(&examine(&[directory])[0]), Vec::<String>::new());
    }
}

#[test]
fn faults_of_the_file_and_of_the_properties_are_told_at_once() {
    let directory = project().join("tests/data/broken/undefined_state");
    let source = fs::read_to_string(directory.join("machine.yaml")).unwrap();
    let source = source.replace("command: ./look", "comand: ./look").replace("name: keeper", "name: 9lives");
    let rules: Vec<&str> = text(&directory, KINDS, &source).problems.iter().map(|problem| problem.rule.id).collect();
    assert_eq!(BTreeSet::from_iter(rules), BTreeSet::from(["invalid-definition", "undefined-state", "unknown-key"]));
}

#[test]
fn a_directory_without_a_definition_is_told_as_unreadable() {
    let machine = &examine(&[PathBuf::from("/nonexistent")])[0];
    assert!(told(machine)[0].starts_with("0 unreadable-file: could not open /nonexistent/machine.yaml"));
    assert!(machine.definition().is_none());
}

#[test]
fn a_transition_that_the_kind_never_fires_is_told() {
    let directory = project().join("tests/data/broken/unfired_transition");
    let source = fs::read_to_string(directory.join("machine.yaml")).unwrap();
    let with = |fires: Fires| {
        let kinds: Vec<Kind> =
            KINDS.iter().map(|kind| if kind.name == "exec" { Kind { fires, ..*kind } } else { *kind }).collect();
        told(&text(&directory, &kinds, &source)).into_iter().find(|told| told.contains("outcome-never-fired"))
    };
    assert_eq!(with(Fires::Both), None);
    let nothing = with(Fires::Nothing).unwrap();
    assert!(nothing.ends_with("exec watchers never fire their success_transition (they fire nothing)"), "{nothing}");
    let named = with(Fires::Named(&["OK", "WARNING"])).unwrap();
    assert!(named.ends_with("(they fire the transitions named OK, WARNING)"), "{named}");
}

#[test]
fn a_transition_of_a_fixed_name_counts_as_fired() {
    let source = "name: check\nversion: 1.0.0\ninitial_state: GOOD\ntransitions:\n  - {name: CRITICAL, from: [GOOD], \
                  destination: BAD}\n  - {name: OK, from: [BAD], destination: GOOD}\nwatchers:\n  - {name: look, type: \
                  exec, interval: 1m, properties: {command: ./look}}\n";
    let exec = KINDS.iter().find(|kind| kind.name == "exec").unwrap();
    let path = Path::new("check/machine.yaml");
    let nagios = [Kind { fires: Fires::Named(&["OK", "WARNING", "CRITICAL", "UNKNOWN"]), ..*exec }];
    assert_eq!(told(&text(path, &nagios, source)), Vec::<String>::new());
    assert_eq!(told(&text(path, KINDS, source)).len(), 2, "without names nothing fires them");
}

#[test]
fn waits_that_can_end_are_not_told() {
    let directory = project().join("tests/data/broken/each_waits_for_the_other");
    let keeper = fs::read_to_string(directory.join("keeper/machine.yaml")).unwrap();
    let other = fs::read_to_string(directory.join("other/machine.yaml")).unwrap();
    // A second watcher starts the other machine without waiting.
    let free = "watchers:\n  - {name: free, type: exec, state_match: [IDLE], interval: 1m, success_transition: start, \
                properties: {command: ./free}}\n";
    let mut machines = vec![
        text(Path::new("keeper/machine.yaml"), KINDS, &keeper),
        text(Path::new("other/machine.yaml"), KINDS, &other.replacen("watchers:\n", free, 1)),
    ];
    together(&mut machines, &[]);
    assert!(machines.iter().all(|machine| machine.problems.is_empty()), "{:?}", told(&machines[0]));
}

/// A definition of about a mebibyte.
fn large(transitions: impl Fn(usize) -> String, watchers: impl Fn(usize) -> String) -> String {
    let mut text = "name: large\nversion: 1.0.0\ninitial_state: s0\ntransitions:\n".to_owned();
    (0..1_024).for_each(|index| text.push_str(&transitions(index)));
    text.push_str("watchers:\n");
    (0..1_024).for_each(|index| text.push_str(&watchers(index)));
    assert!(text.len() < 1024 * 1024, "{}", text.len());
    text
}

#[test]
fn hostile_definitions_are_judged_in_bounded_time_and_words() {
    let many = |count: usize, name: &dyn Fn(usize) -> String| (0..count).map(name).collect::<Vec<_>>().join(",");
    let exec =
        |index: usize, rest: &str| format!("  - {{name: w{index}, type: exec, {rest}, properties: {{command: x}}}}\n");
    let cases = [
        // Every state leads to every other, and every watcher works everywhere.
        large(
            |index| {
                let from = many(100, &|at| format!("s{}", (index + at) % 1_024));
                format!("  - {{name: t, from: [{from}], destination: s{index}}}\n").replacen(
                    "name: t",
                    &format!("name: t{index}"),
                    1,
                )
            },
            |index| exec(index, &format!("success_transition: t{index}, fail_transition: t0")),
        ),
        // One long circle, and states that can't be reached.
        large(
            |index| {
                let unreachable = many(60, &|at| format!("u{index}_{at}"));
                format!("  - {{name: t, from: [s{index}, {unreachable}], destination: s{}}}\n", (index + 1) % 1_024)
            },
            |index| exec(index, "success_transition: t"),
        ),
        // Names that are not defined, each near to many that are.
        large(
            |index| format!("  - {{name: t{index}, from: [s{index}], destination: s0}}\n"),
            |index| exec(index, &format!("state_match: [{}]", many(80, &|at| format!("x{at}")))),
        ),
        // Machines that are waited for.
        large(
            |index| {
                let wanted = many(16, &|_| "{machine_name: large, event: t0}".to_owned());
                format!(
                    "  - {{name: t{index}, from: [s{index}], destination: s{}, subscribe: [{wanted}]}}\n",
                    index + 1
                )
            },
            |index| {
                let wanted = format!("{{machine_name: large, state: s{}}}", 1_024 - index);
                exec(index, &format!("state_match: [s{index}], foreign_state_required: [{wanted}]"))
            },
        ),
        // One watcher with a fault in each of its entries.
        large(
            |index| format!("  - {{name: t{index}, from: [s{index}], destination: s0}}\n"),
            |index| {
                format!(
                    "  - {{name: w{index}, type: exec, properties: {{command: x, environment: [{}]}}}}\n",
                    many(200, &|_| "a".to_owned())
                )
            },
        ),
        format!("{}a{}", "[".repeat(500_000), "]".repeat(500_000)),
        format!("name: {}", "{a: ".repeat(200_000)),
    ];
    for (index, case) in cases.into_iter().enumerate() {
        let begun = Instant::now();
        let mut machines = vec![text(Path::new("large/machine.yaml"), KINDS, &case)];
        together(&mut machines, &[]);
        let problems = machines[0].to_problems();
        let words = problems.to_string().len();
        assert!(problems.problems.len() < 600 && words < 512 * 1024, "case {index}: {words} bytes");
        // Unoptimised and beside other tests; a product build takes a tenth.
        assert!(begun.elapsed() < Duration::from_secs(60), "case {index} took {:?}", begun.elapsed());
    }
}

fn validate(arguments: &[&str], directories: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_machinesd"));
    command.current_dir(project().join("tests/data/broken")).arg("validate").args(arguments).args(directories);
    command.output().unwrap()
}

#[test]
fn errors_exit_1_and_warnings_only_when_they_are_denied() {
    let code = |arguments: &[&str], directory: &str| validate(arguments, &[directory]).status.code();
    assert_eq!(code(&[], "transition_never_valid"), Some(1));
    assert_eq!(code(&[], "unknown_key"), Some(1));
    for format in ["text", "json", "sarif"] {
        assert_eq!(code(&["--format", format], "dead_end"), Some(0), "{format}");
        assert_eq!(code(&["--format", format, "--deny", "warnings"], "dead_end"), Some(1), "{format}");
    }
    let sound: Vec<String> = sound().iter().map(|path| path.display().to_string()).collect();
    let sound: Vec<&str> = sound.iter().map(String::as_str).collect();
    assert_eq!(validate(&["--deny", "warnings"], &sound).status.code(), Some(0));
}

#[test]
fn sarif_has_the_structure_that_the_standard_requires() {
    let directories: Vec<&str> = vec!["dead_end", "unknown_key", "absent", "each_waits_for_the_other/keeper"];
    let output = validate(&["--format", "sarif"], &directories);
    let log: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(log["version"], "2.1.0");
    assert!(log["$schema"].as_str().unwrap().ends_with("sarif-2.1.0.json"));
    let run = &log["runs"][0];
    let driver = &run["tool"]["driver"];
    assert_eq!(driver["name"], "machinesd");
    let rules = driver["rules"].as_array().unwrap();
    assert_eq!(rules.len(), RULES.len());
    for (rule, known) in rules.iter().zip(RULES) {
        assert_eq!(rule["id"], known.id);
        assert!(rule["shortDescription"]["text"].is_string() && rule["help"]["text"].is_string(), "{rule}");
        let level = if known.severity == Severity::Error { "error" } else { "warning" };
        assert_eq!(rule["defaultConfiguration"]["level"], level);
    }
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), 4, "{results:#?}");
    for result in results {
        let rule = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[rule]["id"], result["ruleId"]);
        assert!(["error", "warning"].contains(&result["level"].as_str().unwrap()));
        assert!(!result["message"]["text"].as_str().unwrap().is_empty());
        let location = &result["locations"][0]["physicalLocation"];
        assert!(location["artifactLocation"]["uri"].as_str().unwrap().ends_with("/machine.yaml"), "{location}");
        if result["ruleId"] != "unreadable-file" {
            assert!(location["region"]["startLine"].as_u64() >= Some(1), "{location}");
            assert!(location["region"]["startColumn"].as_u64() >= Some(1), "{location}");
        }
    }
}

#[test]
fn rules_of_the_model_never_keep_a_machine_from_running() {
    for case in broken().into_iter().flatten() {
        let machine = &examine(&[case])[0];
        let refused = machine.problems.iter().any(|problem| problem.rule.stage == Stage::Definition);
        assert_eq!(machine.definition().is_none(), refused, "{}", machine.path.display());
    }
}
