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
fn a_second_run_keeps_the_key_the_agent_and_the_settings() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("work");
    let words = ["--directory", directory.to_str().unwrap()];
    let mut first = Dev::start(&words, temporary.path());
    first.expect("output: hello from hello");
    assert!(first.interrupt().success());
    let script = directory.join("hello/hello.sh");
    let edited = std::fs::read_to_string(&script).unwrap().replace("hello from", "good day from");
    std::fs::write(&script, edited).unwrap();
    let settings = directory.join("machinesd.toml");
    let mine = format!("# mine\n{}", std::fs::read_to_string(&settings).unwrap());
    std::fs::write(&settings, &mine).unwrap();
    let key = std::fs::read(directory.join("key")).unwrap();

    let mut second = Dev::start(&words, temporary.path());
    second.expect("agent      kept as it is");
    second.expect("keys       kept; the node trusts");
    second.expect("output: good day from hello");
    assert!(second.interrupt().success());
    assert_eq!(std::fs::read(directory.join("key")).unwrap(), key);
    assert_eq!(std::fs::read_to_string(&settings).unwrap(), mine);

    std::fs::write(directory.join("key"), "no key").unwrap();
    let message = refused(&directory, Some(1));
    assert!(message.contains("is there, and is no private key"), "{message}");
    assert_eq!(std::fs::read(directory.join("key")).unwrap(), b"no key");
}

/// Everything below a directory, with its content.
fn everything(directory: &Path) -> std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn refused(directory: &Path, code: Option<i32>) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_machinesd"));
    let output = command.args(["dev", "--directory"]).arg(directory).output().unwrap();
    assert_eq!(output.status.code(), code, "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_directory_of_somebody_else_is_refused_and_untouched() {
    let temporary = tempfile::tempdir().unwrap();
    let files = temporary.path().join("files");
    std::fs::create_dir(&files).unwrap();
    for name in ["key", "machinesd.toml", "spec.json"] {
        std::fs::write(files.join(name), "precious").unwrap();
    }
    let before = everything(&files);
    let message = refused(&files, Some(2));
    let expected = "holds files that `machinesd dev` did not make, and is left as it is; give `machinesd dev --directory` \
                    one that does not exist yet, or is empty";
    assert!(message.contains(expected), "{message}");
    assert_eq!(everything(&files), before);
    // A link is no mark: who can make it need not be us.
    std::os::unix::fs::symlink("/dev/null", files.join("made-by-machinesd-dev")).unwrap();
    assert!(refused(&files, Some(2)).contains("did not make"));

    let open = temporary.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let message = refused(&open, Some(2));
    assert!(message.contains("others may write in") && message.contains("chmod o-w"), "{message}");
    assert_eq!(everything(&open).len(), 0);

    let message = refused(&files.join("key"), Some(2));
    assert!(message.contains("is not a directory"), "{message}");
    if rustix::process::geteuid().is_root() {
        let strange = temporary.path().join("strange");
        std::fs::create_dir(&strange).unwrap();
        std::os::unix::fs::chown(&strange, Some(65_534), None).unwrap();
        let message = refused(&strange, Some(2));
        assert!(message.contains("belongs to another user"), "{message}");
        assert_eq!(everything(&strange).len(), 0);
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_machinesd")).args(["dev", "--directory", "/proc/nowhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("error: could not create directory"), "{message}");
    assert!(message.contains("/proc/nowhere"), "{message}");
    // As what can't even be looked at.
    let output =
        Command::new(env!("CARGO_BIN_EXE_machinesd")).args(["dev", "--directory", "/dev/null/x"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("error: could not look at /dev/null/x: Not a directory"), "{message}");
}
