//! No command of either program lets text from outside act on a terminal: each one is run with hostile text in what it
//! prints, from a daemon, a server, a store, files and its own arguments, and no control character leaves but the line
//! break. The list of commands is clap's own: a command without a row fails the test. `-- --nocapture` prints the table.

#![cfg(test)]

mod support;
#[path = "hostile_text/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use machines::shown::is_unsafe;
use world::{HOSTILE, HOSTILE_LABEL, MARK, World};

const PATIENCE: Duration = Duration::from_secs(30);

/// How a run ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Itself,
    /// It would go on; it is ended when the mark was printed.
    Marked,
    /// On a terminal, where a person reads.
    Terminal,
}

/// One run of a command.
struct Row {
    command: &'static str,
    field: &'static str,
    words: Vec<OsString>,
    end: End,
}

fn program(name: &str) -> &'static str {
    if name == "mms" { env!("CARGO_BIN_EXE_mms") } else { env!("CARGO_BIN_EXE_machinesd") }
}

/// Every command of a program that does something, by what its help lists.
fn commands(program_name: &str, above: &[&str]) -> Vec<String> {
    let output = Command::new(program(program_name)).args(above).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let Some((_, list)) = help.split_once("\nCommands:\n") else {
        return vec![std::iter::once(program_name).chain(above.iter().copied()).collect::<Vec<_>>().join(" ")];
    };
    let list = list.split("\n\n").next().unwrap_or_default().lines();
    let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<&str> = names.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(!names.is_empty(), "{program_name} {above:?}: {help}");
    names.iter().flat_map(|name| commands(program_name, &[above, &[*name]].concat())).collect()
}

fn rows(world: &World) -> Vec<Row> {
    let mut rows = Vec::new();
    let path = |name: &str| OsString::from(world.path(name));
    let mut row = |command: &'static str, field: &'static str, words: &[OsString], end: End| {
        rows.push(Row { command, field, words: words.to_vec(), end });
    };
    let text = |text: &str| OsString::from(text);
    // What the daemon says.
    for (command, words) in [
        ("machinesd status", &[][..]),
        ("machinesd status", &["--check"][..]),
        ("machinesd why", &["x"][..]),
        ("machinesd transition", &["x", "go"][..]),
        ("machinesd events", &[][..]),
        ("machinesd sync", &[][..]),
    ] {
        let words: Vec<OsString> = words.iter().map(|word| text(word)).collect();
        for (field, socket, format) in [
            ("every text of the daemon's answer", "hostile.sock", "text"),
            ("every text of the daemon's answer, as JSON", "hostile.sock", "json"),
            ("the daemon's refusal", "refusing.sock", "text"),
        ] {
            let socket = [text("--socket"), path(socket), text("--format"), text(format)];
            row(command, field, &[words.as_slice(), &socket].concat(), End::Itself);
        }
    }
    // Their socket comes from the environment.
    for command in ["machinesd maintenance on", "machinesd maintenance off", "machinesd maintenance status"] {
        for format in ["text", "json"] {
            row(command, "every text of the daemon's answer", &[text("--format"), text(format)], End::Itself);
        }
    }
    // What machines hold: definitions, scenarios, output, the names of files.
    for name in ["machine", "broken", "unknown", HOSTILE] {
        for format in ["text", "json", "sarif"] {
            row("machinesd validate", "machine.yaml", &[path(name), text("--format"), text(format)], End::Itself);
        }
        for format in ["dot", "mermaid", "svg"] {
            row("machinesd graph", "machine.yaml", &[path(name), text("--format"), text(format)], End::Itself);
        }
        for format in ["text", "json"] {
            row("machinesd test", "machine.test.yaml", &[path(name), text("--format"), text(format)], End::Itself);
        }
    }
    row("machinesd run-machine", "output, states, events", &[path("machine")], End::Marked);
    row("machinesd run-machine", "machine.yaml", &[path("unknown")], End::Itself);
    row("machinesd run-machine", "--nats", &[path("machine"), text("--nats"), text(&world.nats)], End::Marked);
    let bad = [text("--config"), path("settings.toml")];
    row("machinesd run", "settings", &bad, End::Itself);
    row("machinesd run", "the settings' path", &[text("--config"), path(HOSTILE)], End::Itself);
    row("machinesd run", "settings, --once", &[bad.as_slice(), &[text("--once")]].concat(), End::Itself);
    row("machinesd dev", "--directory", &[text("--directory"), path(HOSTILE)], End::Itself);
    row("machinesd version", "nothing from outside", &[text("--verbose")], End::Itself);
    row("machinesd schema", "nothing from outside", &[], End::Itself);
    // What the operator's files hold.
    let facts = [text("--facts"), path("facts.json")];
    for format in ["text", "json"] {
        let format = [text("--format"), text(format)];
        let expression = [OsString::from(format!("has_file('/{HOSTILE_LABEL}')"))];
        row("mms match", "calls", &[&expression[..], &facts, &format].concat(), End::Itself);
        row("mms match", "EXPR", &[&[text(HOSTILE)][..], &format].concat(), End::Itself);
        row(
            "mms verify",
            "envelope",
            &[&[path("spec.json"), "0f".repeat(32).into()][..], &format].concat(),
            End::Itself,
        );
        let archive = [&[path("archive.tgz")][..], &format].concat();
        row("mms archive check", "names in the archive", &archive, End::Itself);
    }
    row("mms keys", "--out", &[text("--out"), path(HOSTILE)], End::Itself);
    row("mms pack", "entries", &[path("machines.json")], End::Itself);
    row("mms pack", "broken JSON", &[path("list.json")], End::Itself);
    row("mms pack", "the key file's path", &[path("list.json"), text("--key-file"), path(HOSTILE)], End::Itself);
    row("mms archive build", "names of files", &[path("names"), text("--output"), path("out")], End::Itself);
    row("mms archive build", "left-overs", &[path("secret"), text("--output"), path("out")], End::Itself);
    row(
        "mms archive put",
        "the archive's path",
        &[path(HOSTILE), text("B"), text("--kv"), text(&world.nats)],
        End::Itself,
    );
    // What a store holds, and what a server says.
    let local = [text("--kv"), OsString::from(format!("local:{}", world.path("kv.db").display()))];
    let in_store = |words: &[&str], store: &[OsString]| -> Vec<OsString> {
        words.iter().map(|word| text(word)).chain(store.iter().cloned()).collect()
    };
    for format in ["text", "json"] {
        row("mms kv history", "value", &in_store(&["B", "k", "--format", format], &local), End::Itself);
        row("mms kv watch", "value", &in_store(&["B", "k", "--format", format], &local), End::Marked);
        row("mms governor view", "holder", &in_store(&["G", "--format", format], &local), End::Itself);
    }
    row("mms kv get", "value, as JSON", &in_store(&["B", "k", "--format", "json"], &local), End::Itself);
    row("mms kv get", "value, on a terminal", &in_store(&["B", "k"], &local), End::Terminal);
    row("mms kv put", "echo, on a terminal", &in_store(&["B", "other", HOSTILE], &local), End::Terminal);
    row("mms kv create", "echo, on a terminal", &in_store(&["B", "new", HOSTILE], &local), End::Terminal);
    row("mms kv put", "KEY", &in_store(&["B", HOSTILE, "v"], &local), End::Itself);
    let server = [text("--kv"), text(&world.nats)];
    for (command, words) in [
        ("mms kv add", &["B"][..]),
        ("mms kv put", &["B", "k", "v"][..]),
        ("mms kv create", &["B", "k", "v"][..]),
        ("mms kv update", &["B", "k", "v", "1"][..]),
        ("mms kv get", &["B", "k"][..]),
        ("mms kv del", &["B", "k"][..]),
        ("mms kv purge", &["B", "k"][..]),
        ("mms kv ls", &[][..]),
        ("mms kv history", &["B", "k"][..]),
        ("mms kv watch", &["B", "k"][..]),
        ("mms kv status", &["B"][..]),
        ("mms governor add", &["G", "3", "10m"][..]),
        ("mms governor run", &["G"][..]),
        ("mms governor view", &["G"][..]),
        ("mms governor list", &[][..]),
        ("mms governor evict", &["G", "5"][..]),
        ("mms governor reset", &["G"][..]),
        ("mms governor delete", &["G"][..]),
    ] {
        let mut words = in_store(words, &server);
        if command == "mms governor run" {
            words.extend(["--max-wait", "1s", "--", "true"].map(text));
        }
        row(command, "the server's errors", &words, End::Itself);
    }
    for format in ["text", "json"] {
        row("mms events", "events of others", &in_store(&["--format", format], &server), End::Marked);
    }
    rows
}

fn run(world: &World, command_name: &str, words: &[OsString], end: End) -> Output {
    let mut names = command_name.split(' ');
    let binary = program(names.next().unwrap());
    let words: Vec<OsString> = names.map(OsString::from).chain(words.iter().cloned()).collect();
    let mut command = if end == End::Terminal {
        let line = std::iter::once(&OsString::from(binary)).chain(&words).map(quoted).collect::<Vec<_>>();
        let mut command = Command::new("script");
        command.args(["--quiet", "--flush", "--return", "--command", &line.join(" "), "/dev/null"]);
        command
    } else {
        let mut command = Command::new(binary);
        command.args(&words);
        command
    };
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", world.directory.path());
    command.env("MACHINESD_CONTROL_SOCKET", world.path("hostile.sock"));
    command.current_dir(world.directory.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let reading = |mut pipe: Box<dyn std::io::Read + Send>| {
        let bytes = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let written = std::sync::Arc::clone(&bytes);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                written.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        (bytes, thread)
    };
    let (out, out_thread) = reading(Box::new(child.stdout.take().unwrap()));
    let (err, err_thread) = reading(Box::new(child.stderr.take().unwrap()));
    let has_mark = |bytes: &std::sync::Mutex<Vec<u8>>| String::from_utf8_lossy(&bytes.lock().unwrap()).contains(MARK);
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if end == End::Marked && (has_mark(&out) || has_mark(&err)) {
            // What follows closely is looked at too.
            std::thread::sleep(Duration::from_millis(300));
            let process = rustix::process::Pid::from_child(&child);
            _ = rustix::process::kill_process(process, rustix::process::Signal::INT);
            break child.wait().unwrap();
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            let (out, err) = (out.lock().unwrap(), err.lock().unwrap());
            let (out, err) = (String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
            panic!("{command_name} {words:?} does not end\n{out:?}\n{err:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    out_thread.join().unwrap();
    err_thread.join().unwrap();
    let bytes = |bytes: std::sync::Arc<std::sync::Mutex<Vec<u8>>>| std::mem::take(&mut *bytes.lock().unwrap());
    Output { status, stdout: bytes(out), stderr: bytes(err) }
}

/// For a shell.
fn quoted(word: &OsString) -> String {
    format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''"))
}

/// The characters that act, in what a command printed.
fn acting(output: &[u8], end: End) -> BTreeSet<char> {
    let text = String::from_utf8_lossy(output);
    // A terminal gets its line breaks as two characters.
    let text = if end == End::Terminal { text.replace("\r\n", "\n") } else { text.into_owned() };
    assert!(!text.contains("\nforged"), "a line was forged: {text}");
    text.chars().filter(|character| is_unsafe(*character) && *character != '\n').collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_lets_text_from_outside_act() {
    let world = World::new().await;
    let commands: Vec<String> = [commands("machinesd", &[]), commands("mms", &[])].concat();
    assert!(commands.len() > 25, "{commands:?}");
    let mut faults = Vec::new();
    let mut table: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    let mut judge = |command: &str, field: &str, words: &[OsString], end: End, needs_mark: bool| {
        let output = run(&world, command, words, end);
        let all = [output.stdout.as_slice(), &output.stderr].concat();
        let found = acting(&all, end);
        if !found.is_empty() {
            faults.push(format!("{command}: {field}: {found:?} left: {:?}", String::from_utf8_lossy(&all)));
        } else if needs_mark && !String::from_utf8_lossy(&all).contains(MARK) {
            faults.push(format!("{command}: {field}: not printed, so nothing is shown: {words:?} {output:?}"));
        }
        *table.entry(command.to_owned()).or_default().entry(field.to_owned()).or_default() += 1;
    };
    for command in &commands {
        judge(command, "an unknown flag", &[OsString::from(format!("--{HOSTILE}"))], End::Itself, true);
    }
    let rows = rows(&world);
    for row in &rows {
        // Of a file whose faults have no text of it, and of a purged key, only the safety is judged.
        let needs_mark =
            !matches!(row.field, "nothing from outside" | "machine.test.yaml" | "machine.yaml" | "envelope");
        judge(row.command, row.field, &row.words, row.end, needs_mark);
    }
    for command in &commands {
        let has_row = rows.iter().any(|row| row.command == command);
        assert!(has_row, "{command} has no row in tests/hostile_text.rs: say what it prints from outside");
    }
    for (command, fields) in &table {
        let fields: Vec<String> = fields.iter().map(|(field, runs)| format!("{field} ({runs})")).collect();
        println!("| {command} | {} |", fields.join(", "));
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// An agent prints what it likes; each line of the log is still one that the daemon wrote.
#[tokio::test(flavor = "multi_thread")]
async fn no_log_line_is_forged_and_none_acts() {
    for format in ["text", "json"] {
        let root = tempfile::tempdir().unwrap();
        let mut daemon = support::daemon::Daemon::new(root.path(), "web1", "local");
        daemon.set_toml("sync", "enabled", "false");
        daemon.set("log", "format", format);
        daemon.set("log", "level", "debug");
        let machine = root.path().join("local/hostile");
        std::fs::create_dir_all(&machine).unwrap();
        std::fs::write(machine.join("machine.yaml"), world::hostile_machine("hostile")).unwrap();
        daemon.start().await;
        daemon.until_log("MARK").await;
        daemon.until_log("DONE").await;
        daemon.terminate();
        let log = std::fs::read(root.path().join("log")).unwrap();
        assert_eq!(acting(&log, End::Itself), BTreeSet::new(), "{}", String::from_utf8_lossy(&log));
        for line in String::from_utf8(log).unwrap().lines() {
            let is_ours = match format {
                "json" => {
                    serde_json::from_str::<serde_json::Value>(line).is_ok_and(|line| line["timestamp"].is_string())
                }
                _ => line.starts_with("20") && line.contains("Z "),
            };
            assert!(is_ours, "{format}: {line:?}");
        }
    }
}
