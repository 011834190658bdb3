//! The promise of `machinesd schema`: what it accepts and what the reader accepts are the same, as far as a schema can know
//! it. A validator of JSON Schema that knows nothing of this project judges.

#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};

use boon::{Compiler, SchemaIndex, Schemas};
use machines::machine::document::Document;
use machines::machine::lint::Examined;
use machines::machine::rule::Stage;
use machines::machine::schema;
use machines::watchers::KINDS;
use serde_json::{Value, json};

struct Judge {
    schemas: Schemas,
    machine: SchemaIndex,
}

impl Judge {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.add_resource("machine.json", schema::of(KINDS)).unwrap();
        let machine = compiler.compile("machine.json", &mut schemas).unwrap_or_else(|error| panic!("{error:#}"));
        Self { schemas, machine }
    }

    fn judge(&self, document: &Value) -> Result<(), String> {
        self.schemas.validate(document, self.machine).map_err(|error| format!("{error:#}"))
    }
}

fn is_read(text: &str) -> bool {
    let machine = Examined::text(Path::new("machine.yaml"), text.to_owned(), KINDS);
    machine.problems.iter().all(|problem| problem.rule.stage == Stage::Model)
}

fn definitions(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut found: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path().join("machine.yaml")).collect();
    found.retain(|path| path.exists());
    found
}

/// Every key of every object, none of them wrong.
const COMPLETE: &str = "\
name: complete
version: 1.0.0
initial_state: IDLE
splay_start: 10
transitions:
  - name: start
    from: [IDLE]
    destination: BUSY
    description: Begins.
    subscribe:
      - machine_name: other
        event: done
watchers:
  - name: look
    type: timer
    state_match: [IDLE]
    foreign_state_required:
      - machine_name: other
        state: UP
    fail_transition: start
    interval: 1m
    announce_interval: 1h30m
    properties:
      timer: 1m
";

/// The objects of [`COMPLETE`] whose keys are ours.
const OBJECTS: [&str; 5] =
    ["", "/transitions/0", "/transitions/0/subscribe/0", "/watchers/0", "/watchers/0/foreign_state_required/0"];

#[test]
fn accepts_the_manager_and_every_example() {
    let judge = Judge::new();
    let mut sound = definitions("machines/examples");
    sound.extend(definitions("machines"));
    assert!(sound.len() >= 3, "{sound:?}");
    for path in sound {
        let document = Document::parse(&fs::read_to_string(&path).unwrap()).unwrap();
        judge.judge(&document.value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

#[test]
fn accepts_the_example_properties_of_every_kind() {
    let judge = Judge::new();
    for kind in KINDS {
        let mut document = Document::parse(COMPLETE).unwrap().value;
        document["watchers"][0]["type"] = json!(kind.name);
        document["watchers"][0]["properties"] = Document::parse(kind.example).unwrap().value;
        judge.judge(&document).unwrap_or_else(|error| panic!("{}: {error}", kind.name));
        document["watchers"][0]["properties"]["no_such_property"] = json!(1);
        assert!(judge.judge(&document).is_err(), "{}: an unknown property is accepted", kind.name);
    }
}

#[test]
fn refuses_the_broken_machines_whose_fault_a_schema_can_know() {
    let judge = Judge::new();
    let judged = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/broken").join(name).join("machine.yaml");
        judge.judge(&Document::parse(&fs::read_to_string(path).unwrap()).unwrap().value)
    };
    for name in [
        "unknown_key",
        "missing_version",
        "bad_name",
        "number_as_version",
        "unknown_watcher_type",
        "bad_interval",
        "unknown_property",
        "missing_property",
        "no_watchers",
    ] {
        assert!(judged(name).is_err(), "{name} is accepted");
    }
    // What only the checker can know.
    for name in ["undefined_state", "unreachable_state", "dead_end", "spinning_cycle", "short_interval"] {
        judged(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn knows_the_same_keys_as_the_reader() {
    let judge = Judge::new();
    let complete = Document::parse(COMPLETE).unwrap().value;
    assert!(is_read(COMPLETE) && judge.judge(&complete).is_ok());
    let agree = |document: &Value, what: &str| {
        let (read, judged) = (is_read(&document.to_string()), judge.judge(document));
        assert_eq!(read, judged.is_ok(), "{what}: the reader says {read}, the schema {judged:?}");
    };
    for pointer in OBJECTS {
        let keys: Vec<String> = complete.pointer(pointer).unwrap().as_object().unwrap().keys().cloned().collect();
        for key in keys {
            let mut without = complete.clone();
            without.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(&key);
            agree(&without, &format!("without {pointer}/{key}"));
            for value in [json!(5), json!(-1), json!(""), json!("a b"), json!([]), json!({}), json!([5]), json!(true)] {
                let mut changed = complete.clone();
                changed.pointer_mut(pointer).unwrap()[&key] = value.clone();
                // Whether a name is defined, only the reader knows.
                let is_known_to_both = !(value.is_string() && matches!(key.as_str(), "description" | "type"));
                if is_known_to_both {
                    agree(&changed, &format!("{pointer}/{key}: {value}"));
                }
            }
        }
        let mut more = complete.clone();
        more.pointer_mut(pointer).unwrap()["no_such_key"] = json!(1);
        agree(&more, &format!("{pointer}/no_such_key"));
        assert!(judge.judge(&more).is_err(), "{pointer}");
    }
    // The keys of the complete document are all that the schema has.
    let schema = schema::of(KINDS);
    for (object, name) in OBJECTS.iter().zip(["", "transition", "subscription", "watcher", "foreign_state"]) {
        let properties = if name.is_empty() { &schema["properties"] } else { &schema["$defs"][name]["properties"] };
        let known: Vec<&String> = properties.as_object().unwrap().keys().collect();
        let mut used: Vec<&str> =
            complete.pointer(object).unwrap().as_object().unwrap().keys().map(String::as_str).collect();
        if name == "watcher" {
            // A timer must not have it.
            used.push("success_transition");
        }
        used.sort_unstable();
        assert_eq!(known, used, "{name}");
        assert!(properties.as_object().unwrap().values().all(|property| property["description"].is_string()));
    }
}
