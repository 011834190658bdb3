//! Every machine in `machines/examples/` is valid, can be archived, and does what its comment says when it runs.

#![cfg(test)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use machines::archive::{Expectation, Limits, build, check};
use machines::machine::definition::Definition;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn examples() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("machines/examples");
    let mut examples: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    examples.sort();
    assert!(examples.len() >= 2, "{examples:?}");
    examples
}

#[test]
fn are_valid() {
    let output = Command::new(env!("CARGO_BIN_EXE_machinesd")).arg("validate").args(examples()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.matches("is valid").count(), examples().len(), "{said}");
}

#[test]
fn can_be_archived_and_pass_as_on_a_node() {
    let output = tempfile::tempdir().unwrap();
    for example in examples() {
        let definition = Definition::load(&example).unwrap();
        assert_eq!(example.file_name().unwrap(), definition.name.as_str(), "the directory has the machine's name");
        let built = build(&example, &definition.name, &definition.version, output.path(), &Limits::default()).unwrap();
        let expectation = Expectation {
            name: Some(definition.name.clone()),
            checksum: Some(built.checksum),
            verify_checksum: Some(built.verify_checksum),
        };
        check(&built.path, &expectation, &Limits::default()).unwrap();
    }
}

struct Daemon {
    child: Child,
    directory: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A daemon that runs the examples as an operator's own machines.
fn start() -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let settings = format!(
        "state_dir = {:?}\nlocal_dir = {:?}\nfacts = []\n[sync]\nenabled = false\n[control]\nsocket = {:?}\n",
        path("state"),
        Path::new(env!("CARGO_MANIFEST_DIR")).join("machines/examples"),
        path("socket"),
    );
    std::fs::write(path("machinesd.toml"), settings).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_machinesd"))
        .args(["run", "--config"])
        .arg(path("machinesd.toml"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Daemon { child, directory }
}

impl Daemon {
    fn status(&self) -> Option<Value> {
        let output = Command::new(env!("CARGO_BIN_EXE_machinesd"))
            .args(["status", "--format", "json", "--socket"])
            .arg(self.directory.path().join("socket"))
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Waits until a machine's watcher has had a good check, and gives that watcher's status.
    fn success(&self, machine: &str, watcher: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < end {
            last = self.status();
            let machines = last.iter().filter_map(|status| status["machines"].as_array()).flatten();
            let found = machines.filter(|report| report["machine"]["name"] == machine).find_map(|report| {
                let watchers = report["machine"]["watchers"].as_array()?;
                watchers.iter().find(|status| status["name"] == watcher && status["outcome"] == "success").cloned()
            });
            if let Some(found) = found {
                return found;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{watcher} of {machine} had no success within {PATIENCE:?}: {last:#?}");
    }
}

#[test]
fn hello_greets_and_facts_gathers() {
    let daemon = start();
    let greeting = daemon.success("hello", "greet");
    assert!(greeting["detail"].as_str().unwrap().starts_with("hello from hello on "), "{greeting}");
    daemon.success("facts", "gather");
    let path = daemon.directory.path().join("state/data/facts/machine_data.json");
    let end = Instant::now() + PATIENCE;
    let data = loop {
        // Written by a task of its own, so a moment after the check.
        if let Some(data) = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) {
            break data;
        }
        assert!(Instant::now() < end, "{} was not written", path.display());
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(data["kernel"].is_string() && data["uptime_seconds"].is_number(), "{data}");
}
