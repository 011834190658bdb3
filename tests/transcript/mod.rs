//! Transcripts of what a person types and sees: command lines, run by a shell with the real programs in a directory of
//! their own, and compared with a file in `tests/snapshots`. Lines of standard error begin with `2>`. What differs from
//! run to run (times, paths, keys, digests) is replaced. `SNAPSHOTS=overwrite cargo test` writes the files anew.

#![allow(dead_code, reason = "shared by test programs of which each uses a part")]

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use regex::Regex;
use snapbox::Data;
use snapbox::data::DataFormat;

/// The directory with the programs under test.
fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_mms")).parent().unwrap()
}

/// A shell in a temporary directory, and what was said so far.
pub struct Scene {
    directory: tempfile::TempDir,
    transcript: String,
    /// What else is replaced, as pattern and replacement.
    also: Vec<(&'static str, &'static str)>,
}

impl Scene {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), transcript: String::new(), also: Vec::new() }
    }

    /// Replaces more of what differs from run to run.
    pub fn replacing(&mut self, also: &[(&'static str, &'static str)]) {
        self.also.extend(also);
    }

    /// A path in the scene's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file, with the directories above it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// A command line, without anything of the tester's environment.
    pub fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", programs().display());
        command.args(["-c", line]).current_dir(self.directory.path()).stdin(Stdio::null());
        command.env_clear().env("PATH", path).env("HOME", self.directory.path());
        command
    }

    /// Runs a command line quietly.
    pub fn output(&self, line: &str) -> Output {
        self.shell(line).output().unwrap()
    }

    /// Runs a command line quietly, which must succeed; its standard output.
    pub fn prepare(&self, line: &str) -> String {
        let output = self.output(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a command line that goes on until it is dropped; its lines come into the transcript as they are awaited.
    pub fn follow(&mut self, line: &str) -> Follower {
        self.transcript += &format!("$ {line}\n");
        let mut child = self.shell(&format!("exec {line}")).stdout(Stdio::piped()).spawn().unwrap();
        let output = std::io::BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Follower { lines, _process: Background(child) }
    }

    /// Awaits the next line of a follower into the transcript.
    pub fn next_line(&mut self, follower: &Follower) -> String {
        let line = follower.lines.recv_timeout(Duration::from_secs(30)).unwrap();
        self.transcript += &format!("{line}\n");
        line
    }

    /// Runs a command line into the transcript.
    pub fn run(&mut self, line: &str) -> &mut Self {
        self.run_with(":", line)
    }

    /// Runs a command line into the transcript, after a preparation that is not shown.
    pub fn run_with(&mut self, preparation: &str, line: &str) -> &mut Self {
        let output = self.output(&format!("{preparation}; {line}"));
        self.transcript += &format!("$ {line}\n");
        for (prefix, bytes) in [("", &output.stdout), ("2> ", &output.stderr)] {
            for text in String::from_utf8_lossy(bytes).lines() {
                self.transcript += format!("{prefix}{text}").trim_end();
                self.transcript += "\n";
            }
        }
        let code = output.status.code().unwrap();
        if code != 0 {
            self.transcript += &format!("exit {code}\n");
        }
        self.transcript += "\n";
        self
    }

    /// Compares with `tests/snapshots/<name>.txt`.
    pub fn matches(&self, name: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(format!("{name}.txt"));
        let actual = Data::text(filter(&self.transcript, self.directory.path(), &self.also)).raw();
        let expected = Data::read_from(&path, Some(DataFormat::Text)).raw();
        snapbox::Assert::new().action_env("SNAPSHOTS").eq(actual, expected);
    }
}

fn filter(text: &str, directory: &Path, also: &[(&str, &str)]) -> String {
    let mut text = text.replace(directory.to_str().unwrap(), "[DIR]");
    let always = [
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| UTC)", "[TIME]"),
        (r"\b[0-9a-f]{128}\b", "[128 DIGITS]"),
        (r"\b[0-9a-f]{64}\b", "[64 DIGITS]"),
        (r"\b[0-9a-f]{12}\b", "[12 DIGITS]"),
        (r"\b(mms|machinesd|daemon\s+) ?0\.\d+\.\d+", "$1 [VERSION]"),
        (r#""(machines)":"[A-Za-z0-9+/=]+""#, r#""$1":"[BASE64]""#),
    ];
    for (pattern, replacement) in always.iter().chain(also) {
        text = Regex::new(pattern).unwrap().replace_all(&text, *replacement).into_owned();
    }
    text
}

/// A program whose output is read while it runs.
pub struct Follower {
    pub lines: mpsc::Receiver<String>,
    _process: Background,
}

/// A program that runs beside the scene; killed at the end, whatever happens.
pub struct Background(pub Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
