//! The promises of `machinesd run-machine`, of `machinesd events` and of `mms events`: the real programs, by hand.

#![cfg(test)]

mod support;
mod transcript;

use std::time::{Duration, Instant};

use support::nats::NatsServer;
use transcript::Scene;

const MACHINE: &str = "\
name: greeter
version: 1.0.0
initial_state: A
transitions:
  - {name: done, from: [A], destination: B}
watchers:
  - name: greet
    type: exec
    state_match: [A]
    success_transition: done
    properties:
      command: sh -c 'echo hello {{ lookup \"facts.planet\" \"nobody\" }} and {{ lookup \"data.guest\" \"nobody\" }}'
      timeout: 20s
";

fn scene() -> Scene {
    let scene = Scene::new();
    scene.write("greeter/machine.yaml", MACHINE);
    scene.write("facts.json", "{\"planet\": \"mars\"}");
    scene.write("data.json", "{\"guest\": \"you\"}");
    scene
}

#[test]
fn machines_run_in_the_foreground_and_end_on_an_interrupt() {
    let mut scene = scene();
    let command = "timeout --foreground -s INT 12 machinesd run-machine greeter --facts facts.json --data data.json";
    let begun = Instant::now();
    let follower = scene.follow(command);
    let mut lines = Vec::new();
    while let Ok(line) = follower.lines.recv_timeout(Duration::from_secs(30)) {
        lines.push(line);
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "it ended: {lines:?}");
    let all = lines.join("\n");
    for part in ["greeter/greet  output: hello mars and you", "previous: success ran:", "transition", "Stopping."] {
        assert!(all.contains(part), "{part}: {all}");
    }
    assert!(!scene.path("greeter/machine_data.json").exists());
}

#[test]
fn broken_machines_and_files_are_all_told_and_nothing_runs() {
    let scene = scene();
    scene.write("one/machine.yaml", MACHINE.replace("destination: B", "destination: 'B C'"));
    scene.write("two/machine.yaml", MACHINE.replace("command:", "comand:"));
    let output = scene.output("machinesd run-machine one greeter two");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("one/machine.yaml") && message.contains("two/machine.yaml"), "{message}");
    let output = scene.output("machinesd run-machine greeter --data machines.json");
    assert_eq!(output.status.code(), Some(1));
    scene.write("list.json", "[]");
    let output = scene.output("machinesd run-machine greeter --facts list.json");
    assert!(String::from_utf8_lossy(&output.stderr).contains("list.json is JSON, but not an object"));
}

#[test]
fn mms_follows_what_is_published_with_filters() {
    let server = NatsServer::start();
    let mut scene = scene();
    let url = server.url();
    let everything = scene.follow(&format!("mms events --kv {url} 2>all.err"));
    let transitions = scene.follow(&format!("mms events --transitions --machine greeter --kv {url} 2>one.err"));
    let others = scene.follow(&format!("mms events --machine other --format json --kv {url} 2>other.err"));
    let begun = Instant::now();
    let directory = scene.path("");
    let follows =
        |name: &str| std::fs::read_to_string(directory.join(name)).is_ok_and(|text| text.contains("Following"));
    while !["all.err", "one.err", "other.err"].iter().all(|name| follows(name)) {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    let _machine = scene.follow(&format!("machinesd run-machine greeter --nats {url}"));
    let next = |follower: &transcript::Follower| follower.lines.recv_timeout(Duration::from_secs(30)).unwrap();
    let line = next(&transitions);
    assert!(line.ends_with(" greeter transitioned via event done: A => B"), "{line}");
    let (first, second) = (next(&everything), next(&everything));
    let exec = [&first, &second].into_iter().find(|line| line.contains("greeter#greet command: ")).unwrap();
    assert!(exec.contains(", previous: success ran: 0."), "{exec}");
    assert!(others.lines.try_recv().is_err());
    let output = scene.output("mms events --kv local:kv.db");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_ne!(output.status.code(), Some(0), "{message}");
}
