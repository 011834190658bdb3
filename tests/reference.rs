//! The promise of compatibility: machines written from the reference's documentation alone are valid here and run,
//! unchanged, and every property of every kind has a test that proves it. `cargo test --test reference -- --nocapture`
//! prints the table; COMPATIBILITY.md at the root shows it.

#![cfg(test)]

mod compatibility;
mod engine;
mod support;
mod sync_world;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compatibility::{Origin, TABLE};
use engine::{Lab, definition, watcher};
use machines::kv::{self, BucketSettings, ConnectionSettings, Target};
use machines::machine::data;
use machines::machine::document::Document;
use machines::machine::schema;
use machines::machine::watcher::{Services, build_all};
use machines::watchers::KINDS;
use serde_json::Value;
use snapbox::Data;
use snapbox::data::DataFormat;
use support::nats::NatsServer;
use support::{PATIENCE, eventually};
use sync_world::World;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The machines of the reference, by name.
fn machines() -> Vec<(String, String)> {
    let entries = fs::read_dir(root().join("tests/data/reference")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// The machine that `definition` follows and needs.
const OTHER: &str = "\
name: other
version: 1.0.0
initial_state: RUNNING
transitions: [{name: started, from: [RUNNING], destination: RUNNING, description: By hand.}]
watchers: [{name: idle, type: timer, properties: {timer: 1d}}]
";

#[test]
fn there_is_one_for_each_kind_and_each_is_valid_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let machines = machines();
    let names: BTreeSet<&str> = machines.iter().map(|(name, _)| name.as_str()).collect();
    let expected: BTreeSet<&str> = KINDS.iter().map(|kind| kind.name).chain(["definition"]).collect();
    assert_eq!(names, expected);
    for (name, text) in machines.iter().chain([&("other".to_owned(), OTHER.to_owned())]) {
        build_all(&definition(text), KINDS).unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
        fs::create_dir(directory.path().join(name)).unwrap();
        fs::write(directory.path().join(name).join("machine.yaml"), text).unwrap();
    }
    let judge = |names: &[&str]| {
        let paths = names.iter().map(|name| directory.path().join(name));
        let output = Command::new(env!("CARGO_BIN_EXE_machinesd")).arg("validate").args(paths).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{names:?}: {}", String::from_utf8_lossy(&said));
    };
    for (name, _) in &machines {
        judge(&[name]);
    }
    judge(&["definition", "other"]);
}

/// What each watcher comes to that works from the start, where everything is there that its machine asks for, but for
/// the web server and the governor of `archive`.
const OUTCOMES: &[(&str, &str, &[&str])] = &[
    ("archive", "download", &["error"]),
    ("exec", "run", &["success"]),
    ("expression", "judge", &["success_when"]),
    ("file", "watched", &["unchanged"]),
    ("file", "kept", &["unchanged"]),
    ("gossip", "plain", &["published"]),
    ("gossip", "registered", &["published"]),
    ("httpswitch", "light", &["on"]),
    ("kv", "poll", &["unchanged", "changed"]),
    ("kv", "hierarchy", &["unchanged", "changed"]),
    ("kv", "named", &["unchanged", "changed"]),
    ("machines", "manage", &["updated", "unchanged"]),
    // It waits for a random moment within its interval, or has measured.
    ("metric", "weather", &["skipped", "success"]),
    ("nagios", "check", &["ok"]),
    ("nagios", "alive", &["ok"]),
    // It has been given nothing.
    ("plugins", "manage", &["skipped"]),
    ("schedule", "window", &["off", "on"]),
    ("timer", "wait", &["running"]),
];

/// Services over a real nats-server, with all that the machines ask for.
async fn furnished(server: &NatsServer, world: &World) -> Lab {
    let store = kv::open(&ConnectionSettings::new(Target::parse(&server.url()).unwrap())).await.unwrap();
    let mut lab = Lab::with_store(tempfile::tempdir().unwrap(), store);
    let store = Arc::clone(&lab.services.store);
    eventually("the connection", || async { store.buckets().await.is_ok() }).await;
    let settings =
        BucketSettings { name: "CFG".to_owned(), history: 1, ttl: None, replicas: 1, maximum_value_bytes: None };
    let bucket = store.create_bucket(&settings).await.unwrap();
    let hierarchy = r#"{"hierarchy": {"order": ["role:{{ lookup('facts.role') }}"]}, "data": {"a": 1}}"#;
    for (key, value) in [("web.settings", r#"{"settings": {"limit": 5}}"#), ("hierarchy", hierarchy), ("other", "x")] {
        bucket.put(key, value.into()).await.unwrap();
    }
    fs::write(lab.machine_directory("file").join("trigger"), "x").unwrap();
    let envelope = data::Item::from_bytes(world.envelope(&[world.publish("one", "1.0.0")]).into()).unwrap();
    let mut data = data::Data::default();
    data.apply(vec![data::Change::Set("machines".to_owned(), envelope)]).1.unwrap();
    data::save(&lab.path("data/machines"), &data.snapshot()).unwrap();
    let (sync, trust) = (Some(Arc::new(world.open())), world.trust());
    let trust = machines::spec::TrustInForce::new(trust);
    lab.services = Arc::new(Services { sync, trust, ..Services::clone(&lab.services) });
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn each_runs_as_it_is_and_comes_to_what_it_is_for() {
    let (server, world) = (NatsServer::start(), World::new());
    let lab = furnished(&server, &world).await;
    // A node that takes specifications of one form refuses the other: this one has taken none.
    let (other_world, mut other) = (World::new(), Lab::new().await);
    let sync = Some(Arc::new(other_world.open()));
    other.services = Arc::new(Services { sync, ..Services::clone(&other.services) });
    let mut running = Vec::new();
    for (name, text) in machines().into_iter().filter(|(name, _)| name != "definition") {
        let handle = if name == "plugins" { other.spawn_real(&text) } else { lab.spawn_real(&text) };
        running.push((name, definition(&text), handle));
    }
    let mut seen = Vec::new();
    for (name, definition, handle) in &running {
        for declared in definition.watchers.iter().filter(|watcher| watcher.is_active_in(&definition.initial_state)) {
            let own = declared.name.as_str();
            let (.., expected) =
                OUTCOMES.iter().find(|(machine, watcher, _)| (*machine, *watcher) == (name, own)).unwrap();
            let kind = KINDS.iter().find(|kind| kind.name == declared.kind).unwrap();
            let begin = Instant::now();
            let status = loop {
                let status = watcher(&handle.remote.status(), own);
                assert!(status.checks == 0 || kind.outcomes.contains(&status.outcome), "{name}: {status:?}");
                if status.checks > 0 && expected.contains(&status.outcome) {
                    break status;
                }
                assert!(begin.elapsed() < PATIENCE, "{name}, {own}: {expected:?} did not come: {status:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            println!("{name}, {own}: {}{}", status.outcome, reason(status.last_error.as_deref()));
            seen.push((name.clone(), own.to_owned()));
        }
    }
    assert_eq!(seen.len(), OUTCOMES.len(), "{seen:?}");
    for (_, _, handle) in running {
        handle.stop().await;
    }
}

fn reason(error: Option<&str>) -> String {
    error.map(|error| format!(" ({error})")).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn the_definition_with_every_key_runs_beside_the_machine_that_it_names() {
    let lab = Lab::new().await;
    let (_, text) = machines().into_iter().find(|(name, _)| name == "definition").unwrap();
    let other = lab.spawn_real(OTHER);
    let handle = lab.spawn_real(&text);
    eventually("the start", || async { watcher(&handle.remote.status(), "first").outcome == "running" }).await;
    assert_eq!(handle.remote.status().state.as_str(), "unknown");
    other.remote.transition("started").await.unwrap();
    let command = || watcher(&handle.remote.status(), "second");
    eventually("the command", || async { command().checks >= 1 }).await;
    eventually("the end", || async { handle.remote.status().state.as_str() == "stopped" }).await;
    handle.stop().await;
    other.stop().await;
}

#[test]
fn descriptions_are_read() {
    let (_, text) = machines().into_iter().find(|(name, _)| name == "definition").unwrap();
    let definition = definition(&text);
    assert_eq!(definition.transitions[0].description, "Everything starts");
    assert_eq!(definition.transitions[1].description, "");
}

#[tokio::test]
async fn a_command_runs_at_the_start_with_gather_initial_state_as_without() {
    for gather in ["true", "false"] {
        let lab = Lab::new().await;
        let handle = lab.spawn_real(&format!(
            "name: gather\nversion: 1.0.0\ninitial_state: A\ntransitions: [{{name: a, from: [A], destination: A}}]\n\
             watchers: [{{name: run, type: exec, interval: 1h, properties: {{command: /bin/true, timeout: 20s, \
             gather_initial_state: {gather}}}}}]\n"
        ));
        eventually("the command", || async { watcher(&handle.remote.status(), "run").outcome == "success" }).await;
        handle.stop().await;
    }
}

/// The names under `properties` of a schema, those of objects inside with the name outside in front.
fn names(root: &Value, schema: &Value, before: &str, found: &mut BTreeSet<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        names(root, root.pointer(reference.trim_start_matches('#')).unwrap(), before, found);
    }
    for key in ["anyOf", "oneOf"] {
        for part in schema[key].as_array().into_iter().flatten() {
            names(root, part, before, found);
        }
    }
    names_of_items(root, schema, before, found);
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let name = format!("{before}{name}");
        names(root, inner, &format!("{name}."), found);
        found.insert(name);
    }
}

fn names_of_items(root: &Value, schema: &Value, before: &str, found: &mut BTreeSet<String>) {
    if schema["items"].is_object() {
        names(root, &schema["items"], before, found);
    }
}

#[test]
fn the_table_has_every_property_and_no_other() {
    let mut expected = BTreeSet::new();
    let mut add = |kind: &str, schema: &Value| {
        let mut found = BTreeSet::new();
        names(schema, schema, "", &mut found);
        expected.extend(found.into_iter().map(|name| (kind.to_owned(), name)));
    };
    // Without kinds, so that `properties` of a watcher stays one key.
    add("definition", &schema::of(&[]));
    for kind in KINDS {
        add(kind.name, &(kind.schema)().to_value());
    }
    let table: BTreeSet<_> = TABLE.iter().map(|row| (row.kind.to_owned(), row.property.to_owned())).collect();
    assert_eq!(table.len(), TABLE.len(), "a row stands twice");
    assert_eq!(table, expected);
}

/// Whether a file has a test of this name: a function that is marked as one, or one of its `promises!`.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let head = [format!("fn {name}("), format!("async fn {name}(")];
    let Some(at) = lines.iter().position(|line| head.iter().any(|head| line.starts_with(head))) else { return false };
    let marked = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let promised = || {
        let block = source.split("promises!(").nth(1).and_then(|rest| rest.split(");").next());
        block.is_some_and(|block| block.split(',').any(|promise| promise.trim() == name))
    };
    marked.into_iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test")) || promised()
}

#[test]
fn the_test_of_every_row_is_there() {
    for row in TABLE {
        let (file, name) = row.test.split_once("::").unwrap();
        let source = fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(has_test(&source, name), "{} {}: there is no test {}", row.kind, row.property, row.test);
        let own = row.property.rsplit('.').next().unwrap();
        assert!(source.contains(own), "{} {}: {file} does not even name it", row.kind, row.property);
    }
    assert!(!has_test("fn helper() {}\n", "helper"), "a helper is no test");
}

/// Whether a property, of an object or of every object in a list, is given.
fn is_given(value: &Value, path: &str) -> bool {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    match value {
        Value::Array(items) => items.iter().any(|item| is_given(item, path)),
        Value::Object(entries) => entries.get(first).is_some_and(|inner| rest.is_none_or(|rest| is_given(inner, rest))),
        _ => false,
    }
}

#[test]
fn the_machines_use_every_property_of_the_reference() {
    let documents: Vec<Value> = machines().iter().map(|(_, text)| Document::parse(text).unwrap().value).collect();
    for row in TABLE.iter().filter(|row| row.origin == Origin::Reference) {
        let of_kind = |watcher: &&Value| watcher["type"] == row.kind;
        let given = documents.iter().any(|document| {
            let watchers = || document["watchers"].as_array().unwrap().iter();
            match row.kind {
                "definition" => is_given(document, row.property),
                _ => watchers().filter(of_kind).any(|watcher| is_given(&watcher["properties"], row.property)),
            }
        });
        assert!(given, "no machine in tests/data/reference has {} {}", row.kind, row.property);
    }
}

fn table() -> String {
    let mut text = "| kind | property | test |\n|---|---|---|\n".to_owned();
    for row in TABLE {
        let mark = match row.origin {
            Origin::Reference => "",
            Origin::Accepted => " (accepted)",
            Origin::Ours => " (ours)",
        };
        let (file, name) = row.test.split_once("::").unwrap();
        writeln!(text, "| {} | `{}`{mark} | [`{name}`]({file}) |", row.kind, row.property).unwrap();
    }
    text
}

#[test]
fn compatibility_md_shows_the_table() {
    println!("{}", table());
    let text = format!("{}\n{}", include_str!("compatibility/introduction.md").trim_end(), table());
    let expected = Data::read_from(&root().join("COMPATIBILITY.md"), Some(DataFormat::Text));
    snapbox::Assert::new().action_env("SNAPSHOTS").eq(Data::text(text).raw(), expected.raw());
}
