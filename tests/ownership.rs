//! What the daemon trusts locally: whoever owns or may write to a file, or to a directory above it, decides what is in it,
//! and what is in it runs as root. With the real daemon as root, and `nobody` as the stranger.

#![cfg(test)]

mod support;

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use machines::control::client::Client;
use machines::control::server::listen;
use notify::{EventKind, RecursiveMode, Watcher};
use rustix::process::{Signal, Uid};
use rustix::thread::set_thread_res_uid;
use serde_json::Value;
use support::daemon::{Daemon, Printed, is_running};
use support::{PATIENCE, eventually, unwrapped};

/// The user and the group `nobody`.
const STRANGER: u32 = 65_534;

struct Node {
    _directory: tempfile::TempDir,
    daemon: Daemon,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let daemon = Daemon::new(directory.path(), "node1", "local");
        Self { _directory: directory, daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.daemon.root.join(name)
    }

    fn file(&self, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    /// A local machine.
    fn machine(&self, name: &str) -> PathBuf {
        let text = format!(
            "name: {name}\nversion: 1.0.0\ninitial_state: IDLE\ntransitions: [{{name: again, from: [IDLE], destination: IDLE}}]\n\
             watchers:\n  - name: tick\n    type: timer\n    properties: {{timer: 1h}}\n"
        );
        let file = self.file(&format!("local/{name}/machine.yaml"), &text, 0o644);
        file.parent().unwrap().to_owned()
    }

    /// A local machine that runs a command.
    fn machine_that(&self, name: &str, command: &str) {
        let text = format!(
            "name: {name}\nversion: 1.0.0\ninitial_state: IDLE\ntransitions: [{{name: again, from: [IDLE], destination: IDLE}}]\n\
             watchers:\n  - name: run\n    type: exec\n    interval: 1h\n    properties: {{command: {command}}}\n"
        );
        self.file(&format!("local/{name}/machine.yaml"), &text, 0o644);
    }

    /// Starts, and expects a refusal that a service manager does not repeat, with these words.
    fn refused(&self, words: &[&str]) -> String {
        let printed = self.daemon.run_to_the_end(&["run"]);
        assert_refused(&printed, words);
        assert_refused(&self.daemon.run_to_the_end(&["run", "--once"]), words);
        printed.err
    }
}

fn assert_refused(printed: &Printed, words: &[&str]) {
    assert_eq!(printed.code, Some(2), "{printed:?}");
    let error = unwrapped(&printed.err);
    assert!(error.contains("others could decide what this daemon does"), "{error}");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

fn give(path: &Path) {
    lchown(path, Some(STRANGER), Some(STRANGER)).unwrap();
}

fn take(path: &Path) {
    lchown(path, Some(0), Some(0)).unwrap();
}

fn report<'a>(status: &'a Value, path: &Path) -> Option<&'a Value> {
    status["machines"].as_array().unwrap().iter().find(|report| report["path"] == path.to_str().unwrap())
}

fn problem(status: &Value, path: &Path) -> String {
    report(status, path).and_then(|report| report["problem"].as_str()).unwrap_or_default().to_owned()
}

#[test]
fn a_state_directory_that_a_stranger_made_is_refused() {
    let node = Node::new();
    let (state, agent) = (node.path("state"), node.path("agent"));
    fs::create_dir_all(&agent).unwrap();
    // What he would have run: an agent, a link to it, and a memory that calls it sound.
    for directory in ["store", "machines"] {
        fs::create_dir_all(state.join(directory)).unwrap();
    }
    symlink(&agent, state.join("machines/agent")).unwrap();
    for file in ["state.db", "kv.db-journal", "maintenance.json"] {
        fs::write(state.join(file), "").unwrap();
    }
    for path in ["store", "machines/agent", "machines", "state.db", "kv.db-journal", "maintenance.json", ""] {
        give(&state.join(path));
    }
    let shown = state.display().to_string();
    node.refused(&["state_dir: ", &format!("{shown} belongs to user 65534"), &format!("`chown -h root {shown}`")]);
    assert!(!state.join("lock").exists(), "nothing was done in it");

    // With the directory alone nothing is won: what he left in it is his.
    take(&state);
    for path in ["state.db", "kv.db-journal", "maintenance.json", "store", "machines"] {
        let left = state.join(path);
        node.refused(&[&format!("{} belongs to user 65534", left.display())]);
        take(&left);
    }
    // Whoever may write to a directory above exchanges it.
    fs::set_permissions(&node.daemon.root, Permissions::from_mode(0o777)).unwrap();
    let root = node.daemon.root.display().to_string();
    node.refused(&[&format!("everyone may write to {root} (mode 0777); `chmod o-w {root}`")]);
    fs::set_permissions(&node.daemon.root, Permissions::from_mode(0o755)).unwrap();
    // A copy in the store is exchanged after it has been verified.
    let copy = state.join("store").join("a".repeat(64));
    fs::create_dir(&copy).unwrap();
    give(&copy);
    node.refused(&[&format!("{} belongs to user 65534", copy.display())]);
}

#[tokio::test]
async fn files_and_directories_of_the_settings_that_others_could_change_are_refused_all_at_once() {
    let mut node = Node::new();
    let token = node.file("token", "correct-horse-battery-staple", 0o600);
    let authority = node.file("ca.pem", "-----BEGIN CERTIFICATE-----", 0o666);
    node.daemon.set("http", "listen", "127.0.0.1:0");
    node.daemon.set("http", "token_file", token.to_str().unwrap());
    node.daemon.set("fetch", "ca", authority.to_str().unwrap());
    give(&token);
    chown(node.path("local"), None, Some(STRANGER)).unwrap();
    fs::set_permissions(node.path("local"), Permissions::from_mode(0o775)).unwrap();
    let local = node.path("local").display().to_string();
    node.refused(&[
        &format!("[http] token_file: {0} belongs to user 65534", token.display()),
        &format!("[fetch] ca: everyone may write to {0}", authority.display()),
        &format!("local_dir: group 65534 may write to {local} (mode 0775); `chmod g-w {local}`"),
    ]);
    take(&token);
    take(Path::new(&local));
    fs::set_permissions(&authority, Permissions::from_mode(0o644)).unwrap();

    // The settings themselves, before a word of them is believed.
    let elsewhere = node.file("elsewhere/machinesd.toml", "identity = \"", 0o644);
    give(&elsewhere);
    let link = node.path("link.toml");
    symlink(&elsewhere, &link).unwrap();
    let printed = node.daemon.run(&["run", "--config", link.to_str().unwrap()]);
    assert_refused(&printed, &["settings: ", &format!("{} belongs to user 65534", elsewhere.display())]);

    // A secret that others may read is told and no reason not to start: a group of readers may be meant.
    let mut node = Node::new();
    let token = node.file("token", "correct-horse-battery-staple", 0o600);
    node.daemon.set("http", "listen", "127.0.0.1:0");
    node.daemon.set("http", "token_file", token.to_str().unwrap());
    fs::set_permissions(&token, Permissions::from_mode(0o640)).unwrap();
    chown(&token, None, Some(STRANGER)).unwrap();
    node.daemon.start().await;
    node.daemon.until_log("[http] token_file: others may read").await;

    let mut node = Node::new();
    node.daemon.set("fetch", "proxy", "http://me:secret@127.0.0.1:1");
    node.daemon.start().await;
    node.daemon.until_log("settings: others may read").await;
}

#[test]
fn what_can_not_be_looked_at_is_refused_like_what_others_could_change() {
    let mut node = Node::new();
    let round = node.path("round");
    symlink(&round, &round).unwrap();
    node.daemon.set("http", "listen", "127.0.0.1:0");
    node.daemon.set("http", "token_file", round.to_str().unwrap());
    let reason = "Too many levels of symbolic links";
    node.refused(&[
        "it is not known whether ",
        &format!("[http] token_file: could not look at {}: {reason}", round.display()),
    ]);
    // A name alone says nothing about what stands there.
    let mut node = Node::new();
    let pipe = node.path("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
    node.daemon.set("fetch", "ca", pipe.to_str().unwrap());
    node.refused(&[&format!("[fetch] ca: could not open {}: it is not a regular file", pipe.display())]);
}

#[test]
fn a_context_that_others_could_change_is_refused() {
    let mut node = Node::new();
    let context = node.file("home/nats/context/lab.json", "{}", 0o600);
    node.daemon.wrapper = vec!["env".to_owned(), format!("XDG_CONFIG_HOME={}", node.path("home").display())];
    node.daemon.set("kv", "url", "nats://127.0.0.1:1");
    node.daemon.set("kv", "context", "lab");
    give(&context);
    node.refused(&[&format!("[kv] context: {0} belongs to user 65534", context.display())]);
}

/// The README's tour, and `dev`, are for everyone: who is not root trusts himself and root, and nobody else.
#[test]
fn who_is_not_root_trusts_his_own_files() {
    let node = Node::new();
    let home = node.path("home");
    fs::create_dir(&home).unwrap();
    let settings = node.file(
        "home/machinesd.toml",
        &format!(
            "identity = \"node1\"\nstate_dir = \"{0}/state\"\nlocal_dir = \"{0}/local\"\nfacts = []\n[control]\nsocket = \
             \"{0}/socket\"\n",
            home.display()
        ),
        0o600,
    );
    fs::set_permissions(&node.daemon.root, Permissions::from_mode(0o755)).unwrap();
    give(&settings);
    give(&home);
    // As root the same is refused.
    let words = ["run", "--once", "--config", settings.to_str().unwrap()];
    assert_refused(&node.daemon.run(&words), &[&format!("{} belongs to user 65534", home.display())]);
    // Where it was built, not everybody may go.
    let program = node.path("machinesd");
    fs::copy(env!("CARGO_BIN_EXE_machinesd"), &program).unwrap();
    let mut command = Command::new(program);
    let output = command.args(words).uid(STRANGER).gid(STRANGER).env_clear().output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("MACHINES"), "nothing is published, and that is all: {printed}");
    assert_eq!(fs::metadata(home.join("state/store")).unwrap().uid(), STRANGER);
}

#[tokio::test]
async fn a_reload_does_not_take_what_others_could_change() {
    let mut node = Node::new();
    let local = node.machine("ours");
    node.daemon.start().await;
    node.daemon.until("it runs", |status| is_running(status, "ours")).await;
    let theirs = node.path("theirs");
    fs::create_dir(&theirs).unwrap();
    give(&theirs);
    node.daemon.set("", "local_dir", theirs.to_str().unwrap());
    node.daemon.write_settings();
    node.daemon.signal(Signal::HUP);
    node.daemon.until_log("the settings in force stay: others could decide what this daemon does: local_dir: ").await;
    let status = node.daemon.status().await;
    assert!(report(&status, &local).is_some(), "{status:#}");
}

#[tokio::test]
async fn a_local_machine_of_a_stranger_is_refused_alone_and_runs_when_it_is_ours() {
    let mut node = Node::new();
    let (ours, theirs, script) = (node.machine("ours"), node.machine("theirs"), node.machine("script"));
    give(&theirs);
    let run = node.file("local/script/bin/run.sh", "#!/bin/sh\n", 0o755);
    give(&run);
    // A machine's own data may be anybody's.
    give(&node.file("local/ours/spool/data", "x", 0o600));
    node.daemon.start().await;
    let all = |status: &Value| [&ours, &theirs, &script].iter().all(|path| report(status, path).is_some());
    let status = node.daemon.until("all are seen", all).await;
    assert!(is_running(&status, "ours") && problem(&status, &ours).is_empty(), "{status:#}");
    assert!(!is_running(&status, "theirs") && !is_running(&status, "script"), "{status:#}");
    let told = problem(&status, &theirs);
    assert!(told.contains("belongs to user 65534") && told.contains("`chown -h root "), "{told}");
    assert!(problem(&status, &script).contains(&run.display().to_string()), "{}", problem(&status, &script));

    take(&theirs);
    take(&run);
    let mended = |status: &Value| ["theirs", "script"].iter().all(|name| is_running(status, name));
    node.daemon.until("what is mended runs", mended).await;
}

#[tokio::test]
async fn a_machine_whose_data_is_a_strangers_is_refused_alone() {
    let mut node = Node::new();
    let (ours, other, kept) = (node.machine("ours"), node.machine("other"), node.machine("kept"));
    let data = node.path("state/data/other");
    fs::create_dir_all(&data).unwrap();
    give(&data);
    // What he made before the directory was given to us is still his to write.
    let file = node.file("state/data/kept/machine_data.json", "{}", 0o644);
    give(&file);
    node.daemon.start().await;
    let all = |status: &Value| [&ours, &other, &kept].iter().all(|path| report(status, path).is_some());
    let status = node.daemon.until("all are seen", all).await;
    assert!(is_running(&status, "ours") && !is_running(&status, "other") && !is_running(&status, "kept"), "{status:#}");
    let told = problem(&status, &other);
    assert!(told.contains(&format!("{} belongs to user 65534", data.display())), "{told}");
    let told = problem(&status, &kept);
    assert!(told.contains(&format!("{} belongs to user 65534", file.display())), "{told}");
    take(&file);
    node.daemon.until("what is mended runs", |status| is_running(status, "kept")).await;
}

/// As some containers, init systems and users have it.
#[tokio::test]
async fn what_the_daemon_makes_is_its_own_whatever_the_umask() {
    let mut node = Node::new();
    node.machine_that("ours", "id -u");
    node.daemon.wrapper = ["sh", "-c", "umask 000; exec \"$@\"", "sh"].map(str::to_owned).to_vec();
    node.daemon.start().await;
    let data = node.path("state/data/ours");
    node.daemon.until("it runs", |status| is_running(status, "ours")).await;
    eventually("it has data", || async { data.is_dir() }).await;
    for path in ["state", "state/data", "state/data/ours", "state/store", "state/machines"] {
        assert_eq!(fs::metadata(node.path(path)).unwrap().mode() & 0o022, 0, "{path}");
    }
    node.daemon.restart().await;
    node.daemon.until("it trusts what it made", |status| is_running(status, "ours")).await;
}

/// An interpreter needs no executable bit. What a command only reads may be anybody's.
#[tokio::test]
async fn a_script_of_a_stranger_that_an_interpreter_would_run_is_refused() {
    let mut node = Node::new();
    for (name, command) in [("runs", "sh lib/check.sh"), ("reads", "cat lib/check.sh")] {
        node.machine_that(name, command);
        let script = node.file(&format!("local/{name}/lib/check.sh"), "id -u\n", 0o644);
        give(&script);
        give(script.parent().unwrap());
    }
    let (runs, reads) = (node.path("local/runs"), node.path("local/reads"));
    node.daemon.start().await;
    let both = |status: &Value| [&runs, &reads].iter().all(|path| report(status, path).is_some());
    let status = node.daemon.until("both are seen", both).await;
    assert!(is_running(&status, "reads") && !is_running(&status, "runs"), "{status:#}");
    let told = problem(&status, &runs);
    assert!(told.contains(&format!("{} belongs to user 65534", runs.join("lib").display())), "{told}");
}

/// An access control list as the system keeps it: all may read, `nobody` may also write.
fn list_for_stranger() -> Vec<u8> {
    const NO_ONE: u32 = u32::MAX;
    let entries = [(1_u16, 7_u16, NO_ONE), (2, 7, STRANGER), (4, 5, NO_ONE), (16, 7, NO_ONE), (32, 5, NO_ONE)];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, number) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(rights.to_le_bytes());
        list.extend(number.to_le_bytes());
    }
    list
}

/// The group bits show only that root's group may write.
#[tokio::test]
async fn an_access_list_that_lets_others_write_to_a_file_is_seen() {
    let mut node = Node::new();
    let script = node.machine("script");
    let run = node.file("local/script/run.sh", "#!/bin/sh\n", 0o755);
    let memory = node.file("state/maintenance.json", "", 0o600);
    for file in [&run, &memory] {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(file, "system.posix_acl_access", &list_for_stranger(), flags).unwrap();
        let metadata = fs::metadata(file).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.uid(), metadata.gid()), (0o775, 0, 0));
    }
    let told = |path: &Path| format!("lets others write to {0}; `setfacl -b {0}`", path.display());
    node.refused(&["state_dir: ", &told(&memory)]);
    fs::remove_file(&memory).unwrap();
    node.daemon.start().await;
    let status = node.daemon.until("it is seen", |status| report(status, &script).is_some()).await;
    assert!(!is_running(&status, "script") && problem(&status, &script).contains(&told(&run)), "{status:#}");
    rustix::fs::removexattr(&run, "system.posix_acl_access").unwrap();
    node.daemon.until("what is mended runs", |status| is_running(status, "script")).await;
}

/// Serves a socket as `nobody`, and notes what it is asked.
fn serve_as_stranger(socket: &Path) -> Arc<Mutex<Vec<u8>>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (heard, path) = (Arc::clone(&asked), socket.to_owned());
    let (ready, is_ready) = std::sync::mpsc::channel();
    // The system gives each thread a user of its own; who listens is who serves.
    std::thread::spawn(move || {
        let nobody = Uid::from_raw(STRANGER);
        set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        ready.send(()).unwrap();
        for stream in listener.incoming() {
            let (mut stream, mut piece) = (stream.unwrap(), [0; 1024]);
            let count = stream.read(&mut piece).unwrap_or(0);
            heard.lock().unwrap().extend_from_slice(&piece[..count]);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            _ = stream.write_all(answer);
        }
    });
    is_ready.recv_timeout(PATIENCE).unwrap();
    asked
}

#[tokio::test]
async fn root_does_not_believe_a_strangers_socket() {
    let node = Node::new();
    let theirs = node.path("theirs");
    fs::create_dir(&theirs).unwrap();
    give(&theirs);
    fs::set_permissions(&node.daemon.root, Permissions::from_mode(0o711)).unwrap();
    let socket = theirs.join("machinesd.sock");
    let asked = serve_as_stranger(&socket);
    let error = Client::new(&socket).get("/v1/status").await.unwrap_err().to_string();
    let expected = format!("{} is served by user 65534, who is neither root nor you", socket.display());
    assert!(error.starts_with(&expected) && error.contains("--socket"), "{error}");
    let printed = node.daemon.run(&["status", "--socket", socket.to_str().unwrap()]);
    assert!(printed.code == Some(1) && printed.err.contains(&expected), "{printed:?}");
    assert!(asked.lock().unwrap().is_empty(), "nothing was said to it");

    // And a daemon neither takes its place nor ends because of it.
    let error = listen(&socket).await.err().unwrap().to_string();
    assert!(error.contains("belongs to user 65534"), "{error}");
}

#[tokio::test]
async fn a_socket_in_a_directory_that_others_may_write_to_is_refused() {
    let mut node = Node::new();
    let open = node.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o1777)).unwrap();
    node.daemon.set("control", "socket", open.join("socket").to_str().unwrap());
    let printed = node.daemon.run_to_the_end(&["run"]);
    let expected =
        format!("everyone may write to {} (mode 1777); choose a directory that is yours alone", open.display());
    assert_refused(&printed, &["[control] socket: ", &expected]);
}

/// What happens in a directory, in order.
struct Observed {
    events: Arc<Mutex<Vec<notify::Event>>>,
    directory: PathBuf,
    _watcher: notify::RecommendedWatcher,
}

impl Observed {
    fn new(directory: &Path) -> Self {
        let events: Arc<Mutex<Vec<notify::Event>>> = Arc::default();
        let noted = Arc::clone(&events);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            noted.lock().unwrap().push(event.unwrap());
        })
        .unwrap();
        watcher.watch(directory, RecursiveMode::NonRecursive).unwrap();
        Self { events, directory: directory.to_owned(), _watcher: watcher }
    }

    /// What happened to a file until now.
    async fn kinds(&self, path: &Path) -> Vec<EventKind> {
        let marker = self.directory.join("marker");
        fs::write(&marker, "").unwrap();
        let has = |path: &Path| self.events.lock().unwrap().iter().any(|event| event.paths.iter().any(|at| at == path));
        eventually("the marker is seen", || async { has(&marker) }).await;
        let events = self.events.lock().unwrap();
        events.iter().filter(|event| event.paths.iter().any(|at| at == path)).map(|event| event.kind).collect()
    }
}

#[tokio::test]
async fn the_control_socket_is_its_owners_alone_from_the_first_moment_on() {
    let node = Node::new();
    let socket = node.path("socket");
    let observed = Observed::new(&node.daemon.root);
    let listener = listen(&socket).await.unwrap();
    let metadata = fs::symlink_metadata(&socket).unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.uid()), (0o600, 0));
    let kinds = observed.kinds(&socket).await;
    assert!(kinds.iter().any(EventKind::is_create), "{kinds:?}");
    // A mode that is set afterwards was another one before.
    assert!(!kinds.iter().any(EventKind::is_modify), "{kinds:?}");
    drop(listener);
    assert!(!socket.exists());
}
