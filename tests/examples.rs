//! Every machine in `machines/examples/` is valid, can be archived, and does what its comment says when it runs.

#![cfg(test)]

use std::os::unix::fs::PermissionsExt as _;
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

/// What the examples call on a node, made harmless: each call is noted, and tells what the scene needs. No test may
/// restart a service or write below `/etc` of the machine it runs on.
const FAKES: [(&str, &str); 6] = [
    ("systemctl", "case $1 in is-active) exit 3;; esac"),
    ("logger", ""),
    ("curl", ""),
    ("openssl", "echo 'notAfter=Jan  1 00:00:00 2100 GMT'"),
    ("tar", "exit 1"),
    ("install", "cat \"$3\" >> \"$CALLS\""),
];

/// A daemon that runs copies of the examples as an operator's own machines.
fn start() -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for example in examples() {
        let copy = path("local").join(example.file_name().unwrap());
        std::fs::create_dir_all(&copy).unwrap();
        for file in std::fs::read_dir(example).unwrap().map(|entry| entry.unwrap()) {
            std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
    }
    std::fs::create_dir(path("bin")).unwrap();
    for (name, body) in FAKES {
        let program = path("bin").join(name);
        let calls = path("calls").display().to_string();
        std::fs::write(&program, format!("#!/bin/sh\nCALLS='{calls}'\necho {name} \"$@\" >> \"$CALLS\"\n{body}\n"))
            .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let settings = format!(
        "state_dir = {:?}\nlocal_dir = {:?}\nfacts = []\n[sync]\nenabled = false\n[control]\nsocket = {:?}\n",
        path("state"),
        path("local"),
        path("socket"),
    );
    std::fs::write(path("machinesd.toml"), settings).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_machinesd"));
    child.args(["run", "--config"]).arg(path("machinesd.toml")).stderr(Stdio::null());
    child.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", path("bin").display()));
    Daemon { child: child.spawn().unwrap(), directory }
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

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `mms` with the daemon's own store.
    fn mms(&self, arguments: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mms"));
        command.args(arguments).env("MACHINES_KV", format!("local:{}", self.path("state/kv.db").display()));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Waits until a machine is in a state.
    fn state(&self, machine: &str, state: &str) {
        self.until(&format!("{machine} in {state}"), || {
            let status = self.status()?;
            let mut machines = status["machines"].as_array()?.iter().map(|report| &report["machine"]);
            machines.find(|found| found["name"] == machine && found["state"] == state).map(|_| ())
        });
    }

    /// Waits until the fakes were called like this.
    fn called(&self, line: &str) {
        self.until(line, || {
            let calls = std::fs::read_to_string(self.path("calls")).ok()?;
            calls.contains(line).then_some(())
        });
    }

    fn until<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(found) = look() {
                return found;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("no {what:?} within {PATIENCE:?}: {:#?}", self.status());
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

#[test]
fn the_others_do_what_their_comments_say() {
    let daemon = start();
    daemon.state("certificate", "OK");
    daemon.state("registration", "UP");
    daemon.mms(&["kv", "add", "CHORIA_SERVICES", "--ttl", "1m"]);
    daemon.mms(&["kv", "add", "CONFIGURATION"]);
    daemon.mms(&["kv", "put", "CONFIGURATION", "ntp", r#"{"servers": ["a.example.net"]}"#]);
    daemon.called("server a.example.net iburst");
    daemon.called("systemctl try-restart ntp.service");
    daemon.state("service_keeper", "ALARM");
    daemon.called("logger -p daemon.alert service_keeper: cron.service does not run");
    let calls = std::fs::read_to_string(daemon.path("calls")).unwrap();
    assert_eq!(calls.matches("systemctl restart cron.service").count(), 3, "{calls}");
    let status = daemon.status().unwrap();
    let running: Vec<_> =
        status["machines"].as_array().unwrap().iter().map(|report| &report["machine"]["name"]).collect();
    for example in examples() {
        let name = example.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(running.iter().any(|running| **running == *name), "{name} does not run: {running:?}");
    }
}

#[test]
fn the_configuration_that_a_key_fills_gets_no_line_that_a_value_smuggles_in() {
    let directory = tempfile::tempdir().unwrap();
    let (file, target) = (directory.path().join("ntp.conf"), directory.path().join("installed"));
    // The service of this host is not told.
    let systemctl = directory.path().join("systemctl");
    std::fs::write(&systemctl, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&systemctl, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let install = |servers: &str| {
        let head = "# Written by the machine \"configuration\"; changes here are undone.\n";
        std::fs::write(&file, format!("{head}{servers}driftfile /var/lib/ntp/ntp.drift\n")).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("machines/examples/configuration/install.sh");
        let mut command = Command::new(script);
        command.env("PATH", &path).env("MACHINE_DATA_DIR", directory.path()).env("TARGET", &target);
        command.output().unwrap()
    };
    let good = install("server a.example.net iburst\nserver 2001:db8::1 iburst\n");
    assert!(good.status.success(), "{good:?}");
    let installed = std::fs::read_to_string(&target).unwrap();
    assert!(installed.contains("server 2001:db8::1 iburst"), "{installed}");
    for smuggled in
        ["server a\nrestrict default iburst\n", "server a iburst #\n", "server $(id) iburst\n", "server a\0 iburst\n"]
    {
        let refused = install(smuggled);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("correct the value of the key ntp"), "{smuggled:?}: {said}");
        assert_eq!(refused.status.code(), Some(1));
        assert_eq!(std::fs::read_to_string(&target).unwrap(), installed, "{smuggled:?}");
    }
}
