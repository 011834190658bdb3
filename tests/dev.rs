//! A newcomer's first minute: `machinesd dev`, as a person meets it, with the three things that it invites to try.

#![cfg(test)]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

struct Dev {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Dev {
    fn start(arguments: &[&str], temporary: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_machinesd"))
            .arg("dev")
            .args(arguments)
            .env("TMPDIR", temporary)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
        Self { child, lines, seen: Vec::new() }
    }

    /// Reads on until a line holds the text.
    fn expect(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.seen.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
        panic!("{text:?} was not said within {PATIENCE:?}; said was:\n{}", self.seen.join("\n"));
    }

    fn interrupt(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[test]
fn shows_the_whole_way_and_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(&[], temporary.path());
    for said in [
        "the whole way of an agent onto a node",
        "keys       made",
        "archive    hello-1.0.0.tgz built",
        "pack       machines.json signed",
        "kv put     MACHINES machines: revision 1",
        "verified (signed by",
        "matched: has_command('uname'); to do: install",
        "downloaded file://",
        "unpacked: every file is as SHA256SUMS says",
        "installed \"hello\" 1.0.0",
        "output: hello from hello",
        "1. Change the agent",
        "2. Break an installed file",
        "3. Publish a bad signature",
    ] {
        dev.expect(said);
    }
    assert!(dev.interrupt().success());
    dev.expect("Nothing is left behind.");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn takes_the_three_invitations_while_it_runs() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("work");
    let mut dev = Dev::start(&["--directory", directory.to_str().unwrap()], temporary.path());
    // The commands as they are printed, so that what a person reads is what is tested.
    let first = following(&mut dev, "1. Change the agent");
    let second = following(&mut dev, "2. Break an installed file");
    let third = following(&mut dev, "3. Publish a bad signature");
    shell(&first);
    dev.expect("upgraded \"hello\" 1.1.0");
    dev.expect("output: good day from hello");
    shell(&second);
    dev.expect("repaired \"hello\" 1.1.0");
    let installed = directory.join("state/machines/hello/hello.sh");
    assert!(!std::fs::read_to_string(&installed).unwrap().contains("broken"));
    assert_eq!(installed.metadata().unwrap().permissions().mode() & 0o777, 0o555);
    shell(&third);
    dev.expect("the specification was refused: ");
    assert!(installed.exists(), "a refused specification changes nothing");
    assert!(dev.interrupt().success());
    assert!(directory.join("key").exists(), "a directory that was asked for is kept");
}

/// The command that stands below an invitation.
fn following(dev: &mut Dev, invitation: &str) -> String {
    dev.expect(invitation);
    dev.expect("     ").trim().to_owned()
}

fn shell(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_machinesd")).args(["dev", "--directory", "/proc/nowhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("error: could not create directory"), "{message}");
    assert!(message.contains("/proc/nowhere"), "{message}");
}
