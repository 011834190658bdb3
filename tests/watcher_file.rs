//! The `file` watcher on a real disk: what counts as a change, how a file is kept, and where it never goes.

#![cfg(test)]

mod engine;
mod support;
mod sync_world;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::{Events, Lab, watcher};
use machines::machine::definition::Definition;
use machines::machine::runner::{self, Handle};
use machines::machine::watcher::{Services, build_all};
use machines::names::MachineName;
use serde_json::json;
use support::eventually;
use sync_world::World;

/// A machine that looks by itself once an hour only.
fn machine(properties: &str) -> String {
    named("keeper", "interval: 1h", properties)
}

fn named(name: &str, interval: &str, properties: &str) -> String {
    format!(
        "name: {name}\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: changed, from: [A], destination: A}}\n  \
         - {{name: failed, from: [A], destination: A}}\n  - {{name: leave, from: [A], destination: B}}\n  - {{name: back, \
         from: [B], destination: A}}\nwatchers:\n  - name: it\n    type: file\n    {interval}\n    state_match: [A]\n    \
         properties:\n{properties}"
    )
}

/// Waits for the event of an outcome, which other checks may follow at once.
async fn told(events: &mut Events, outcome: &str) {
    eventually(&format!("the event of {outcome}"), || {
        let found = events.drain().iter().any(|event| event["data"]["previous_outcome"] == outcome);
        async move { found }
    })
    .await;
}

async fn checked(handle: &Handle, outcome: &str) {
    eventually(&format!("the outcome {outcome}"), || async {
        watcher(&handle.remote.status(), "it").outcome == outcome
    })
    .await;
}

fn error(handle: &Handle) -> String {
    watcher(&handle.remote.status(), "it").last_error.unwrap_or_default()
}

fn set_modified(path: &Path, seconds: u64) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
}

#[tokio::test]
async fn its_first_sight_is_a_change_and_each_further_change_is_seen_at_once() {
    let lab = Lab::new().await;
    let path = lab.machine_directory("keeper").join("watched");
    std::fs::write(&path, "one").unwrap();
    let mut events = lab.events();
    let text =
        machine("      path: watched\n").replace("    state_match", "    success_transition: changed\n    state_match");
    let handle = lab.spawn_real(&text);
    let mut told = Vec::new();
    for count in 1..=2 {
        eventually("the transition", || {
            told.extend(events.transitions());
            let enough = told.len() >= count;
            async move { enough }
        })
        .await;
        // Far faster than the interval of an hour.
        set_modified(&path, 1_000 + count as u64);
    }
    handle.stop().await;
}

#[tokio::test]
async fn with_gather_initial_state_only_what_changes_later_counts() {
    let lab = Lab::new().await;
    let path = lab.machine_directory("keeper").join("watched");
    std::fs::write(&path, "one").unwrap();
    let mut events = lab.events();
    let handle = lab.spawn_real(&machine("      path: ./watched\n      gather_initial_state: true\n"));
    checked(&handle, "unchanged").await;
    set_modified(&path, 1_000);
    told(&mut events, "changed").await;
    // What changes while the machine is elsewhere counts when it comes back.
    handle.remote.transition("leave").await.unwrap();
    checked(&handle, "skipped").await;
    set_modified(&path, 2_000);
    handle.remote.transition("back").await.unwrap();
    told(&mut events, "changed").await;
    handle.stop().await;
}

#[tokio::test]
async fn a_missing_file_is_an_error_until_it_appears() {
    let lab = Lab::new().await;
    let path = lab.machine_directory("keeper").join("watched");
    let mut events = lab.events();
    let handle = lab.spawn_real(&machine("      path: watched\n"));
    checked(&handle, "error").await;
    assert_eq!(error(&handle), format!("{} does not exist", path.display()));
    std::fs::write(&path, "one").unwrap();
    told(&mut events, "changed").await;
    std::fs::remove_file(&path).unwrap();
    checked(&handle, "error").await;
    let told = events.drain();
    assert_eq!(told[0]["data"]["path"], json!(path));
    handle.stop().await;
}

const KEPT: &str = "      path: etc/motd\n      contents: \"role {{ lookup `facts.role` `none` }}, {{ lookup `data.x` `-` }}\\n\"\n      mode: \"0640\"\n";

#[tokio::test]
async fn contents_are_kept_against_every_change_and_follow_the_facts() {
    let lab = Lab::new().await;
    let directory = lab.machine_directory("keeper").join("etc");
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("motd");
    let handle = lab.spawn_real(&machine(KEPT));
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    let mode = || std::fs::metadata(&path).map(|metadata| metadata.permissions().mode() & 0o7777).unwrap_or_default();
    let kept = async |what: &str, content: &str| {
        eventually(what, || async { read() == content && mode() == 0o640 }).await;
    };
    kept("the file", "role web, -\n").await;
    std::fs::write(&path, "mine\n").unwrap();
    kept("a repair of the content", "role web, -\n").await;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    kept("a repair of the mode", "role web, -\n").await;
    std::fs::remove_file(&path).unwrap();
    kept("the file back", "role web, -\n").await;
    lab.services.node.set_facts(json!({"role": "db"}));
    kept("the new facts", "role db, -\n").await;
    checked(&handle, "unchanged").await;
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "no temporary file is left");
    handle.stop().await;
}

#[tokio::test]
async fn the_owner_and_the_group_are_set_before_the_file_appears() {
    // What a test may give a file to anybody is root; others keep their own.
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (user, group) = if user == 0 { (4_711, 4_712) } else { (user, group) };
    let lab = Lab::new().await;
    let path = lab.machine_directory("keeper").join("mine");
    let properties = format!(
        "      path: mine\n      contents: x\n      owner: \"{user}\"\n      group: \"{group}\"\n      mode: \"0700\"\n"
    );
    let mut events = lab.events();
    let handle = lab.spawn_real(&machine(&properties));
    told(&mut events, "changed").await;
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (user, group, 0o700));
    handle.stop().await;
    let handle = lab.spawn_real(&machine("      path: mine\n      contents: x\n      owner: nobody-there\n"));
    checked(&handle, "error").await;
    assert!(error(&handle).contains("there is no user \"nobody-there\" on this node"), "{}", error(&handle));
    handle.stop().await;
}

#[tokio::test]
async fn nothing_leads_out_of_the_machine() {
    let lab = Lab::new().await;
    let directory = lab.machine_directory("keeper");
    let outside = lab.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "s").unwrap();
    std::os::unix::fs::symlink(&outside, directory.join("link")).unwrap();
    std::os::unix::fs::symlink(outside.join("secret"), directory.join("file")).unwrap();
    for (properties, reason) in [
        ("      path: link/secret\n", "links are not followed here"),
        ("      path: link/new\n      contents: x\n", "links are not followed here"),
        ("      path: file\n", "links are not followed here"),
        ("      path: file\n      contents: x\n", "links are not followed here"),
        (
            "      path: \"{{ lookup `facts.role` `` }}/../../outside/new\"\n      contents: x\n",
            "it must not have .. in it",
        ),
        ("      path: \"/{{ lookup `facts.role` `` }}\"\n      contents: x\n", "it must be relative to the machine"),
        ("      path: nowhere/new\n      contents: x\n", "its directory does not exist"),
    ] {
        let handle = lab.spawn_real(&machine(properties));
        checked(&handle, "error").await;
        assert!(error(&handle).contains(reason), "{properties}: {}", error(&handle));
        handle.stop().await;
    }
    assert_eq!(std::fs::read_to_string(outside.join("secret")).unwrap(), "s");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
}

#[tokio::test]
async fn a_machine_that_sync_installed_keeps_files_in_its_data_directory_only() {
    let world = World::new();
    let node = Arc::new(world.open());
    let text = named("agent", "interval: 1h", "      path: read.me\n      contents: kept\n");
    let entry = world.publish_definition("agent", "1.0.0", &text);
    world.reconcile(&node, &[entry]).await;
    let directory = node.verify_for_start(&MachineName::new("agent").unwrap()).await.unwrap();
    let mut lab = Lab::new().await;
    lab.services = Arc::new(Services { sync: Some(Arc::clone(&node)), ..Services::clone(&lab.services) });
    let run = |text: &str, directory: PathBuf| {
        let definition: Arc<Definition> = engine::definition(text);
        let watchers = build_all(&definition, machines::watchers::KINDS).unwrap();
        runner::spawn(runner::Setup {
            watchers,
            directory,
            data_directory: lab.path("data/agent"),
            definition,
            services: Arc::clone(&lab.services),
            bus: lab.bus.clone(),
        })
    };
    let mut events = lab.events();
    // What came with the machine can be watched.
    let handle = run(&named("agent", "interval: 1h", "      path: read.me\n"), directory.clone());
    told(&mut events, "changed").await;
    handle.stop().await;
    let handle = run(&text, directory.clone());
    told(&mut events, "changed").await;
    handle.stop().await;
    assert_eq!(std::fs::read_to_string(lab.path("data/agent/read.me")).unwrap(), "kept");
    assert_eq!(std::fs::read_to_string(directory.join("read.me")).unwrap(), "text\n");
    node.verify_for_start(&MachineName::new("agent").unwrap()).await.expect("what was installed is as it was");
}

#[test]
fn bad_properties_are_refused_with_their_places() {
    let cases = [
        ("path: ../x", "path \"../x\" can't be used: it must not have .. in it"),
        ("path: /etc/motd", "path \"/etc/motd\" can't be used: it must be relative to the machine"),
        ("path: \"\"", "path \"\" can't be used: it names no file"),
        ("path: ..", "path \"..\" can't be used: it names no file"),
        ("path: x\n      mode: \"0600\"", "mode belongs to contents, which is missing"),
        ("path: x\n      owner: root", "owner belongs to contents, which is missing"),
        ("path: x\n      group: root", "group belongs to contents, which is missing"),
        ("path: x\n      contents: z\n      mode: \"4755\"", "mode \"4755\" must be three octal digits"),
        ("path: x\n      contents: z\n      mode: \"0680\"", "mode \"0680\" must be three octal digits"),
        (
            "path: x\n      contents: \"{{ nope }}\"",
            "contents: the template \"{{ nope }}\" calls \"nope\", which is no function",
        ),
        ("contents: z", "missing field `path`"),
    ];
    for (properties, reason) in cases {
        let message = engine::build(&machine(&format!("      {properties}\n"))).map(drop).unwrap_err();
        assert!(message.contains(&format!("file watcher \"it\": {reason}")), "{properties}: {message}");
        assert!(message.starts_with("machine.yaml:1"), "{message}");
    }
    let text = machine("      path: a\n      contents: \"{{ lookup `data.a.b` 1 }}{{ lookup `facts.c` 1 }}\"\n");
    let watchers = engine::build(&text).unwrap();
    assert_eq!(
        (watchers[0].1.reads(), watchers[0].1.looks_up()),
        (vec!["a".to_owned()], vec!["data.a.b".to_owned(), "facts.c".to_owned()])
    );
}
