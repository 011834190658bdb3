//! The real `machinesd` as a test runs it: own state, own settings, own control socket. It is killed when dropped.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use machines::control::client::Client;
use serde_json::Value;

use super::PATIENCE;

/// Settings as the lines of a file: section, key, value in TOML. The section "" is the top of the file.
type Settings = BTreeMap<&'static str, BTreeMap<&'static str, String>>;

/// A daemon, running or not.
pub struct Daemon {
    pub root: PathBuf,
    settings: Settings,
    /// Run before the daemon's own words, for example a shell that sets limits.
    pub wrapper: Vec<String>,
    child: Option<Child>,
}

/// What a command printed, and its exit code.
#[derive(Debug)]
pub struct Printed {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Printed {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Daemon {
    /// A daemon that is not running yet, with all its files below `root`. Intervals are the defaults, longer than the
    /// patience of a test: what it sees in time was noticed, not polled.
    pub fn new(root: &Path, identity: &str, url: &str) -> Self {
        fs::create_dir_all(root.join("local")).unwrap();
        let settings = Settings::new();
        let mut daemon = Self { root: root.to_owned(), settings, wrapper: Vec::new(), child: None };
        daemon.set("", "identity", identity);
        daemon.set("", "state_dir", root.join("state").to_str().unwrap());
        daemon.set("", "local_dir", root.join("local").to_str().unwrap());
        daemon.set_toml("", "facts", "[]");
        daemon.set("kv", "url", url);
        daemon.set("control", "socket", root.join("socket").to_str().unwrap());
        daemon
    }

    /// Sets a text.
    pub fn set(&mut self, section: &'static str, key: &'static str, text: &str) {
        self.set_toml(section, key, &format!("{text:?}"));
    }

    /// Sets any value, as TOML.
    pub fn set_toml(&mut self, section: &'static str, key: &'static str, toml: &str) {
        self.settings.entry(section).or_default().insert(key, toml.to_owned());
    }

    /// Trusts these keys.
    pub fn trust(&mut self, keys: &[String]) {
        self.set_toml("trust", "public_keys", &format!("{keys:?}"));
    }

    pub fn settings_file(&self) -> PathBuf {
        self.root.join("machinesd.toml")
    }

    pub fn write_settings(&self) {
        let mut text = String::new();
        for (section, keys) in &self.settings {
            if !section.is_empty() {
                text += &format!("[{section}]\n");
            }
            for (key, value) in keys {
                text += &format!("{key} = {value}\n");
            }
        }
        fs::write(self.settings_file(), text).unwrap();
    }

    pub fn state_dir(&self) -> PathBuf {
        let text = &self.settings[""]["state_dir"];
        PathBuf::from(text.trim_matches('"'))
    }

    pub fn socket(&self) -> PathBuf {
        let text = &self.settings["control"]["socket"];
        PathBuf::from(text.trim_matches('"'))
    }

    /// A file in a machine's data directory; empty when it is not there.
    pub fn data(&self, machine: &str, file: &str) -> String {
        fs::read_to_string(self.state_dir().join("data").join(machine).join(file)).unwrap_or_default()
    }

    /// The directory that a managed machine's link leads to.
    pub fn installed(&self, machine: &str) -> Option<PathBuf> {
        self.state_dir().join("machines").join(machine).canonicalize().ok()
    }

    /// What the store of archives holds, staging included.
    pub fn store_entries(&self) -> Vec<String> {
        let entries = fs::read_dir(self.state_dir().join("store")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    /// A command of the real program, in an environment without settings.
    fn command(&self, words: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_machinesd");
        let mut all: Vec<&str> = self.wrapper.iter().map(String::as_str).collect();
        all.push(program);
        all.extend(words);
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("MACHINESD_CONTROL_SOCKET", self.socket()).stdin(Stdio::null());
        command
    }

    /// Runs a command of the program to its end.
    pub fn run(&self, words: &[&str]) -> Printed {
        self.command(words).output().unwrap().into()
    }

    /// `machinesd run` or another long-running command with these settings, to its end.
    pub fn run_to_the_end(&self, words: &[&str]) -> Printed {
        self.write_settings();
        let file = self.settings_file();
        let words: Vec<&str> = words.iter().copied().chain(["--config", file.to_str().unwrap()]).collect();
        let mut command = self.command(&words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("{words:?} did not end: {:?}", Printed::from(child.wait_with_output().unwrap()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.wait_with_output().unwrap().into()
    }

    /// A command whose output the test reads while it runs.
    pub fn spawn(&self, words: &[&str]) -> Child {
        self.command(words).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// Starts the daemon and waits until it answers.
    pub async fn start(&mut self) {
        self.launch();
        self.until("it answers", |_| true).await;
    }

    /// Starts the daemon.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "the daemon runs already");
        self.write_settings();
        let log = fs::File::options().create(true).append(true).open(self.root.join("log")).unwrap();
        let mut command = self.command(&["run", "--config", self.settings_file().to_str().unwrap()]);
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    pub fn process(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let process = rustix::process::Pid::from_raw(self.process().try_into().unwrap()).unwrap();
        rustix::process::kill_process(process, signal).unwrap();
    }

    /// Kills it, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Asks it to stop, and waits for that: how it ended and how long that took.
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        self.signal(rustix::process::Signal::TERM);
        let started = Instant::now();
        let status = self.wait();
        (status, started.elapsed())
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let child = self.child.as_mut().unwrap();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                self.child = None;
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub async fn restart(&mut self) {
        self.kill();
        self.start().await;
    }

    pub fn client(&self) -> Client {
        Client::new(&self.socket())
    }

    /// Its status as JSON.
    pub async fn status(&self) -> Value {
        self.client().get("/v1/status").await.unwrap()
    }

    /// Waits until its status is as wanted, and returns it.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let client = self.client();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = client.get("/v1/status").await;
            match &answer {
                Ok(status) if wanted(status) => return status.clone(),
                _ => {}
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("the daemon ended with {status} before {what}:\n{}", self.log());
            }
            if Instant::now() > deadline {
                let status = answer.map_or_else(|error| error.to_string(), |status| format!("{status:#}"));
                panic!("not within {PATIENCE:?}: {what}\nstatus: {status}\nlog:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a managed machine runs in this version, and nothing is wrong with it.
    pub async fn until_running(&mut self, machine: &str, version: &str) -> Value {
        self.until(&format!("{machine} {version} runs"), |status| runs(status, machine, version)).await
    }

    /// Waits until what a machine wrote is as wanted.
    pub async fn until_data(&mut self, machine: &str, file: &str, wanted: impl Fn(&str) -> bool) -> String {
        let path = self.state_dir().join("data").join(machine).join(file);
        let read = || fs::read_to_string(&path).unwrap_or_default();
        self.until(&format!("{} is as wanted", path.display()), |_| wanted(&read())).await;
        read()
    }

    /// Waits until the log has a line with this text.
    pub async fn until_log(&mut self, text: &str) {
        let path = self.root.join("log");
        let has = || fs::read_to_string(&path).unwrap_or_default().contains(text);
        self.until(&format!("the log has {text:?}"), |_| has()).await;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether a managed machine is installed and runs in this version, without a fault.
pub fn runs(status: &Value, machine: &str, version: &str) -> bool {
    let managed = &status["sync"]["machines"][machine];
    let running = status["machines"].as_array().unwrap().iter().filter(|report| report["machine"]["name"] == machine);
    let versions: Vec<&Value> = running.map(|report| &report["machine"]["version"]).collect();
    let installed = managed["state"] == "installed" && managed["version"] == version;
    installed && managed["last_error"].is_null() && versions == [version]
}

/// The state of a managed machine, for example "installed".
pub fn state(status: &Value, machine: &str) -> String {
    status["sync"]["machines"][machine]["state"].as_str().unwrap_or_default().to_owned()
}

/// Whether a machine of this name runs.
pub fn is_running(status: &Value, machine: &str) -> bool {
    status["machines"].as_array().unwrap().iter().any(|report| report["machine"]["name"] == machine)
}

/// A text at a JSON pointer.
pub fn text(status: &Value, pointer: &str) -> String {
    status.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}
