//! Who writes hostile text to the programs: a daemon that is none, a NATS server that is none, a store with what somebody
//! put into it, and files that somebody made.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use machines::governor::{Governors, Slot, StoreGovernors};
use machines::kv::{self, BucketSettings, ConnectionSettings, CreateDatabase};
use machines::names::GovernorName;
use serde_json::{Value, json};

/// Tells that the text has come through; behind it something of everything that acts on a terminal or on a reader.
pub const HOSTILE: &str = "MARK\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\r\n\tforged\u{8}\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}\
                           \u{e0041}\u{200b}\u{feff}\u{7f}";
/// The same for where line breaks and the like end the text: a name that is a `Label`.
pub const HOSTILE_LABEL: &str = "MARK\u{202e}\u{2066}\u{e0041}\u{200b}";
pub const MARK: &str = "MARK";

pub struct World {
    pub directory: tempfile::TempDir,
    pub nats: String,
    _slot: Slot,
}

impl World {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        serve_control(&root.join("hostile.sock"), 200);
        serve_control(&root.join("refusing.sock"), 409);
        write_files(root);
        let settings = ConnectionSettings::local(root.join("kv.db"), CreateDatabase::Yes);
        let store = kv::open(&settings).await.unwrap();
        let bucket =
            BucketSettings { name: "B".to_owned(), history: 5, ttl: None, replicas: 1, maximum_value_bytes: None };
        let bucket = store.create_bucket(&bucket).await.unwrap();
        bucket.put("k", HOSTILE.as_bytes().to_vec().into()).await.unwrap();
        let governor = GovernorName::new("G").unwrap();
        let slots = store.slots().unwrap();
        let new = kv::GovernorSettings {
            name: governor.clone(),
            capacity: 3,
            expire: Duration::from_secs(600),
            replicas: None,
            collective: None,
        };
        slots.add(&new).await.unwrap();
        let slot = StoreGovernors::new(&*store).enter(&governor, HOSTILE, Duration::from_secs(5)).await.unwrap();
        Self { nats: serve_nats(), directory, _slot: slot }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// A text as YAML writes it in ASCII.
fn yaml(text: &str) -> String {
    let escaped = |character: char| match character {
        ' '..='~' if !matches!(character, '"' | '\\') => character.to_string(),
        other => format!("\\U{:08x}", u32::from(other)),
    };
    format!("\"{}\"", text.chars().map(escaped).collect::<String>())
}

/// A machine that is valid, and hostile wherever a definition may be.
pub fn hostile_machine(name: &str) -> String {
    let (text, label) = (yaml(HOSTILE), yaml(HOSTILE_LABEL));
    let printing = "printf 'MARK\\033]0;owned\\007\\2332J\\r\\342\\200\\256forged\\n'; false";
    let command = yaml(&format!("sh -c {printing:?}"));
    format!(
        "name: {name}\nversion: 1.0.0\ninitial_state: {label}\n\
         transitions:\n  - {{name: go, from: [{label}], destination: DONE, description: {text}}}\n\
         watchers:\n  - {{name: {label}, type: exec, state_match: [{label}], interval: 10s, fail_transition: go, \
         properties: {{command: {command}, timeout: 5s}}}}\n"
    )
}

fn write_files(root: &Path) {
    let write = |path: &str, content: &[u8]| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    write("machine/machine.yaml", hostile_machine("hostile").as_bytes());
    let scenario = json!({"scenarios": [{"name": HOSTILE, "commands": [{"watcher": HOSTILE_LABEL, "output": HOSTILE}],
        "steps": [{"expect": {"state": HOSTILE}}]}]});
    write("machine/machine.test.yaml", scenario.to_string().as_bytes());
    write("broken/machine.yaml", format!("name: x\n{HOSTILE}: 1\n").as_bytes());
    let key = yaml(HOSTILE);
    write("unknown/machine.yaml", format!("{}{key}: 1\n", hostile_machine("unknown")).as_bytes());
    write("names/machine.yaml", hostile_machine("names").as_bytes());
    write(&format!("names/{HOSTILE}"), b"");
    write("secret/machine.yaml", hostile_machine("secret").as_bytes());
    write("secret/MARK\u{202e}.orig", b"");
    let list = json!([{"name": HOSTILE, "source": HOSTILE, "verify": HOSTILE, "match": HOSTILE, HOSTILE: HOSTILE}]);
    write("machines.json", list.to_string().as_bytes());
    write("list.json", format!("[{{{HOSTILE}").as_bytes());
    let envelope = json!({"machines": HOSTILE, "signature": HOSTILE, HOSTILE: HOSTILE});
    write("spec.json", envelope.to_string().as_bytes());
    write("facts.json", json!({"x": HOSTILE}).to_string().as_bytes());
    write("archive.tgz", &archive());
    write(HOSTILE, b"no archive");
    let settings = format!("identity = {key}\n\"{HOSTILE_LABEL}\" = 1\n");
    write("settings.toml", settings.as_bytes());
}

/// An archive with a hostile name in it.
fn archive() -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    let name = format!("m/{HOSTILE}");
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(gzip);
    archive.append(&header, std::io::empty()).unwrap();
    archive.into_inner().unwrap().finish().unwrap()
}

/// Answers as a daemon would that wants to do harm; with another status than 200 it refuses in hostile words.
fn serve_control(socket: &Path, status: u16) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream, status));
        }
    });
}

fn answer(mut stream: UnixStream, status: u16) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let length =
        head.to_lowercase().split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    _ = std::io::copy(&mut reader.take(length.unwrap_or(0)), &mut std::io::sink());
    let path = head.split(' ').nth(1).unwrap_or_default();
    let body = match path {
        _ if status != 200 => json!({ "error": HOSTILE }).to_string(),
        "/v1/status" => status_document().to_string(),
        "/v1/sync" => {
            let mut answer = json!({"converged": false, "complaints": [HOSTILE]});
            answer[HOSTILE] = HOSTILE.into();
            answer.to_string()
        }
        "/v1/maintenance" => json!({"before": maintenance(), "now": maintenance()}).to_string(),
        "/v1/transition" => json!({ "state": HOSTILE }).to_string(),
        path if path.starts_with("/v1/why/") => why_document().to_string(),
        _ => format!("{}\n", event()),
    };
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
}

pub fn event() -> Value {
    json!({"data": {"identity": HOSTILE, "machine": HOSTILE, "name": HOSTILE, "type": "exec", "command": HOSTILE,
        HOSTILE: HOSTILE, "previous_outcome": HOSTILE, "machines": [HOSTILE]}})
}

fn maintenance() -> Value {
    json!({"since": "2026-01-01T00:00:00Z", "until": null, "because": HOSTILE, "by": 0})
}

fn machine() -> Value {
    json!({"name": HOSTILE, "version": HOSTILE, "state": HOSTILE, "start_time": HOSTILE, "problem": HOSTILE,
        "available_transitions": [HOSTILE], "watchers": [{"name": HOSTILE, "type": HOSTILE, "active": true,
        "outcome": HOSTILE, "checks": 2, "last_check": HOSTILE, "last_error": HOSTILE, "detail": HOSTILE,
        "waits_for": HOSTILE}]})
}

fn managed() -> Value {
    json!({"name": HOSTILE, "state": HOSTILE, "action": HOSTILE, "version": HOSTILE, "digest": HOSTILE, "since": HOSTILE,
        "reason": HOSTILE, "last_error": HOSTILE, "failures": 2, "last_attempt": HOSTILE, "next_retry": HOSTILE})
}

fn status_document() -> Value {
    let report = json!({"source": HOSTILE, "path": HOSTILE, "problem": HOSTILE, "machine": machine()});
    let away = json!({"source": HOSTILE, "path": HOSTILE, "problem": HOSTILE, "machine": null});
    let mut skipped = managed();
    skipped["state"] = "skipped".into();
    json!({"identity": HOSTILE, "version": HOSTILE, "started": HOSTILE, "maintenance": maintenance(),
        "store": {"connected": false, "url": HOSTILE, "detail": HOSTILE},
        "health": {"well": false, "reasons": [
            {"code": "refused", "about": null, "message": HOSTILE},
            {"code": "watcher", "about": HOSTILE, "message": HOSTILE}]},
        "sync": {"specification": {"digest": HOSTILE, "signed_by": HOSTILE, "accepted_at": HOSTILE},
            "refused": {"message": HOSTILE, "since": HOSTILE}, "problem": HOSTILE,
            "held_removals": {"reason": HOSTILE}, "machines": {HOSTILE: managed(), "skipped": skipped}},
        "machines": [report, away]})
}

fn why_document() -> Value {
    let host = json!({"source": "managed", "path": HOSTILE, "problem": HOSTILE, "machine": machine()});
    json!({"name": HOSTILE, "follows": HOSTILE, "sync": managed(), "host": host,
        "journal": [{"time": HOSTILE, "kind": HOSTILE, "message": HOSTILE}]})
}

/// A NATS server whose name and version are hostile, that answers every request with a hostile error, and that tells
/// hostile events to whoever listens for them.
fn serve_nats() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://127.0.0.1:{}", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || speak(stream));
        }
    });
    url
}

fn speak(stream: TcpStream) -> Option<()> {
    let writer = Arc::new(stream.try_clone().ok()?);
    let say = |text: &str| (&*writer).write_all(text.as_bytes()).ok();
    let information = json!({"server_id": HOSTILE, "server_name": HOSTILE, "version": HOSTILE, "host": "127.0.0.1",
        "go": "", "port": 4222, "proto": 1, "headers": true, "max_payload": 1_048_576, "jetstream": true, "client_id": 1});
    say(&format!("INFO {information}\r\n"))?;
    let mut reader = BufReader::new(stream);
    let mut inbox = String::new();
    let refusal =
        json!({"type": HOSTILE, "error": {"code": 500, "err_code": 10_000, "description": HOSTILE}}).to_string();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["PING"] => say("PONG\r\n")?,
            ["SUB", subject, .., id] => {
                if subject.starts_with("_INBOX") {
                    inbox = (*id).to_owned();
                } else {
                    let subject = subject.replace('*', "exec");
                    let event = event().to_string();
                    say(&format!("MSG {subject} {id} {}\r\n{event}\r\n", event.len()))?;
                }
            }
            ["PUB" | "HPUB", _, rest @ ..] => {
                let length: u64 = rest.last()?.parse().ok()?;
                std::io::copy(&mut reader.by_ref().take(length + 2), &mut std::io::sink()).ok()?;
                if let Some(reply) = rest.first().filter(|word| word.starts_with("_INBOX")) {
                    say(&format!("MSG {reply} {inbox} {}\r\n{refusal}\r\n", refusal.len()))?;
                }
            }
            _ => {}
        }
    }
}
