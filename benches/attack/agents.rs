//! Attacks by an agent: its definition, and the commands that it runs.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::node::{Daemon, Node, Program};
use crate::observer::{Asking, Seen};

/// How long an attack on memory is watched.
const WINDOW: Duration = Duration::from_secs(5);

/// What it costs to look at a daemon that is left alone.
pub fn none(program: &Program) -> (Seen, String) {
    let node = Node::new(program, "");
    let daemon = node.start();
    let observer = daemon.observe(Asking::OnNewConnections);
    std::thread::sleep(Duration::from_secs(3));
    (observer.end(), String::new())
}

pub fn nested_path(program: &Program) -> (Seen, String) {
    let path = format!("data.{}a{}", "[".repeat(2_500), "]".repeat(2_500));
    definition(program, &format!("command: 'echo {{{{ lookup \"{path}\" \"none\" }}}}'"))
}

pub fn doubling_template(program: &Program) -> (Seen, String) {
    let doubling = "{{ $x := \"0123456789abcdef\" }}{{ range 60 }}{{ $x = print $x $x }}{{ end }}{{ len $x }}";
    definition(program, &format!("command: 'echo {doubling}'"))
}

/// An agent with this property, given to a daemon that runs.
fn definition(program: &Program, property: &str) -> (Seen, String) {
    let node = Node::new(program, "");
    let mut daemon = node.start();
    let observer = daemon.observe(Asking::OnNewConnections);
    node.agent("attack", &exec("run", property));
    std::thread::sleep(WINDOW);
    let trouble = daemon.trouble("attack");
    let seen = observer.end();
    (seen, daemon.ended().or(trouble).unwrap_or_else(|| "**no limit seen**".to_owned()))
}

fn exec(name: &str, properties: &str) -> String {
    format!("  - name: {name}\n    type: exec\n    state_match: [RUN]\n    properties:\n      {properties}\n")
}

/// Processes that have nothing to do with the daemon; ended when dropped.
struct Bystanders(Vec<Child>);

impl Bystanders {
    fn start(count: usize) -> Self {
        let sleep = |_| Command::new("sleep").arg("300").stdin(Stdio::null()).spawn().unwrap();
        Self((0..count).map(sleep).collect())
    }
}

impl Drop for Bystanders {
    fn drop(&mut self) {
        for child in &mut self.0 {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

pub fn cancelled_commands(program: &Program) -> (Seen, String) {
    let _bystanders = Bystanders::start(600);
    let node = Node::new(program, "");
    // A time of its own makes the commands known by their words.
    let mark = format!("299.{}", std::process::id());
    let watchers =
        (0..60).map(|index| exec(&format!("run{index}"), &format!("{{command: sleep {mark}, timeout: 10m}}")));
    node.agent("attack", &watchers.collect::<String>());
    let mut daemon = node.start();
    let all_run = |_: &serde_json::Value| with_words(&mark) == 60;
    assert!(daemon.until(Duration::from_secs(20), all_run).is_some(), "the commands do not start");
    let observer = daemon.observe(Asking::OnNewConnections);
    let mut gone = Vec::new();
    for _ in 0..2 {
        // A machine whose directory is gone is stopped, and what it runs is cancelled.
        fs::rename(node.path("local/attack"), node.path("aside")).unwrap();
        gone.push(daemon.until(Duration::from_secs(20), |_| with_words(&mark) == 0));
        fs::rename(node.path("aside"), node.path("local/attack")).unwrap();
        _ = daemon.until(Duration::from_secs(20), all_run);
    }
    let seen = observer.end();
    let longest = gone.into_iter().max_by_key(|took| took.unwrap_or(Duration::MAX)).flatten();
    let told =
        longest.map_or_else(|| "**some are left after 20 s**".to_owned(), |took| format!("gone after {took:.1?}"));
    (seen, daemon.ended().unwrap_or(told))
}

/// How many processes have this in their command line.
fn with_words(mark: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let line = |path: &Path| fs::read(path.join("cmdline")).unwrap_or_default();
    entries.filter(|entry| String::from_utf8_lossy(&line(&entry.path())).contains(mark)).count()
}

pub fn fork_chain(program: &Program) -> (Seen, String) {
    chain(program, "")
}

pub fn confined_fork_chain(program: &Program) -> (Seen, String) {
    chain(program, ", memory: 1GiB")
}

/// Each process starts the next in a session of its own, with nothing in its environment, and ends. The chain ends by
/// itself when its file is gone.
fn chain(program: &Program, confinement: &str) -> (Seen, String) {
    let node = Node::new(program, "");
    let (script, file) = (node.path("chain"), node.path("beats"));
    fs::write(&script, "[ -e \"$1\" ] || exit 0\necho >>\"$1\"\nexec setsid -f env -i sh \"$0\" \"$1\"\n").unwrap();
    fs::write(&file, "").unwrap();
    let (script, beats) = (script.display().to_string(), file.display().to_string());
    let mut daemon = node.start();
    let observer = daemon.observe(Asking::OnNewConnections);
    let command = format!("command: sh -c \"sh {script} {beats} & sleep 60\", timeout: 2s{confinement}");
    node.agent("attack", &exec("run", &format!("{{{}}}", command.replace("\"sh", "'sh").replace("60\"", "60'"))));
    let length = || fs::metadata(&file).unwrap().len();
    std::thread::sleep(Duration::from_secs(1));
    let runs = length() > 0;
    // The time limit, and what follows it.
    std::thread::sleep(Duration::from_secs(4));
    let before = length();
    std::thread::sleep(Duration::from_secs(1));
    let goes_on = length() > before;
    let seen = observer.end();
    let told = match (runs, goes_on) {
        (false, _) => format!("**the chain did not start: {:?}**", daemon.trouble("attack")),
        (true, true) => "**the chain goes on 3 s after the limit**".to_owned(),
        (true, false) => format!("gone; {before} links were made"),
    };
    (seen, daemon.ended().unwrap_or(told))
}

pub fn flood(program: &Program) -> (Seen, String) {
    let node = Node::new(program, "");
    let mut daemon = node.start();
    let observer = daemon.observe(Asking::OnNewConnections);
    let watchers = (0..20).map(|index| exec(&format!("run{index}"), "{command: cat /dev/zero, timeout: 4s}"));
    node.agent("attack", &watchers.collect::<String>());
    std::thread::sleep(Duration::from_secs(7));
    let trouble = daemon.trouble("attack");
    let seen = observer.end();
    (seen, daemon.ended().or(trouble).unwrap_or_else(|| "**they are not ended**".to_owned()))
}

pub fn orphans_of_the_first_process(program: &Program) -> (Seen, String) {
    let node = Node::new(program, "");
    let mut daemon = node.start_under(&["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    let observer = daemon.observe(Asking::OnNewConnections);
    let orphans = "for i in $(seq 100); do (sleep 0.5 &); done";
    node.agent("attack", &exec("run", &format!("{{command: \"sh -c '{orphans}'\", timeout: 20s}}")));
    let ran = daemon.until(Duration::from_secs(20), |status| checks(status, "attack") > 0);
    std::thread::sleep(Duration::from_secs(2));
    let seen = observer.end();
    let told = match (ran, zombies(&daemon)) {
        (None, _) => "**the command did not run**".to_owned(),
        (_, 0) => "none is left".to_owned(),
        (_, count) => format!("**{count} dead processes are left**"),
    };
    (seen, daemon.ended().unwrap_or(told))
}

fn checks(status: &serde_json::Value, machine: &str) -> u64 {
    let reports = status["machines"].as_array().unwrap();
    let report = reports.iter().find(|report| report["machine"]["name"] == machine);
    report.and_then(|report| report["machine"]["watchers"][0]["checks"].as_u64()).unwrap_or_default()
}

fn zombies(daemon: &Daemon) -> usize {
    let parent = daemon.process().to_string();
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let is_zombie = |stat: &String| {
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[0] == "Z" && fields[1] == parent
    };
    stats.filter(is_zombie).count()
}

pub fn damaged_state(program: &Program) -> (Seen, String) {
    let node = Node::new(program, "");
    node.agent("mine", &exec("run", "{command: \"true\"}"));
    drop(node.start());
    fs::write(node.path("state").join("state.db"), vec![0xa5; 100_000]).unwrap();
    for rest in ["state.db-wal", "state.db-shm"] {
        _ = fs::remove_file(node.path("state").join(rest));
    }
    let Some(mut daemon) = node.try_start() else {
        return (Seen::default(), "**the daemon does not start**".to_owned());
    };
    let observer = daemon.observe(Asking::OnNewConnections);
    let runs = daemon.until(Duration::from_secs(3), |status| checks(status, "mine") > 0).is_some();
    let seen = observer.end();
    (
        seen,
        if runs { "it starts, and its own agent runs" } else { "**it starts, its own agent does not run**" }.to_owned(),
    )
}
