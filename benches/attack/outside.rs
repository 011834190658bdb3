//! Attacks by servers that the daemon asks, and by clients that ask it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::nats::NatsServer;
use crate::node::{Node, Program, definition};
use crate::observer::{Asking, Seen};
use crate::servers::{Pace, artefacts, endless_nats, hostile_at_first};

const BUCKET: &str = "MACHINES";
const KEY: &str = "machines";

/// Bytes that do not compress.
fn noise(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

/// Builds the archive of an agent with 100 KB; its entry in the list, from this server.
fn release(node: &Node<'_>, name: &str, server: &str) -> Value {
    let source = node.path("sources").join(name);
    fs::create_dir_all(&source).unwrap();
    fs::create_dir_all(node.path("archives")).unwrap();
    fs::write(source.join("machine.yaml"), definition(name, "  - {name: t, type: timer, properties: {timer: 1h}}\n"))
        .unwrap();
    fs::write(source.join("payload"), noise(100_000)).unwrap();
    let (source, output) = (source.display().to_string(), node.path("archives").display().to_string());
    let entry = node.program.mms(&["archive", "build", &source, "--output", &output, "--source", server], b"");
    serde_json::from_str(&entry).unwrap()
}

fn publish(node: &Node<'_>, entries: &[Value]) {
    let text = |name: &str| node.path(name).display().to_string();
    let list = json!(entries).to_string();
    let signed = node.program.mms(&["pack", "-", "--key-file", &text("fleet.key")], list.as_bytes());
    let store = format!("local:{}", text("state/kv.db"));
    node.program.mms(&["kv", "put", BUCKET, KEY, "-", "--kv", &store], signed.as_bytes());
}

pub fn slow_artefacts(program: &Program) -> (Seen, String) {
    let keys = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let prefix = keys.path().join("fleet").display().to_string();
    program.mms(&["keys", "--out", &prefix], b"");
    let public = fs::read_to_string(keys.path().join("fleet.pub")).unwrap();
    let node = Node::new(program, &format!("[trust]\npublic_keys = [\"{}\"]\n", public.trim()));
    fs::copy(keys.path().join("fleet.key"), node.path("fleet.key")).unwrap();
    fs::set_permissions(node.path("fleet.key"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::create_dir_all(node.path("archives")).unwrap();
    let fast = artefacts(&node.path("archives"), Pace::AtOnce);
    let slow = artefacts(&node.path("archives"), Pace::Drip);

    let mut daemon = node.start();
    let store = format!("local:{}", node.path("state/kv.db").display());
    program.mms(&["kv", "add", BUCKET, "--kv", &store], b"");
    let first = release(&node, "zfirst", &fast);
    publish(&node, std::slice::from_ref(&first));
    let installed = |name: &str, status: &Value| status["sync"]["machines"][name]["state"] == "installed";
    assert!(daemon.until(Duration::from_secs(20), |status| installed("zfirst", status)).is_some(), "not installed");

    let observer = daemon.observe(Asking::OnNewConnections);
    let mut entries: Vec<Value> = (0..5).map(|index| release(&node, &format!("slow{index}"), &slow)).collect();
    entries.extend([first, release(&node, "zsecond", &fast)]);
    publish(&node, &entries);
    let other = daemon.until(Duration::from_secs(12), |status| installed("zsecond", status));
    // A file of what is installed is changed: it must be as it was, also while the slow ones go on.
    let file = node.path("state/machines/zfirst/payload");
    let good = fs::read(&file).unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    fs::write(&file, b"changed").unwrap();
    let repaired = daemon.until(Duration::from_secs(12), |_| fs::read(&file).is_ok_and(|content| content == good));
    let seen = observer.end();
    let told = |what: &str, took: Option<Duration>| match took {
        Some(took) => format!("{what} after {took:.1?}"),
        None => format!("**not {what} in 12 s**"),
    };
    let outcome = format!("the other one is {}; a repair: {}", told("installed", other), told("done", repaired));
    (seen, daemon.ended().unwrap_or(outcome))
}

pub fn slow_archive(program: &Program) -> (Seen, String) {
    let node = Node::new(program, "");
    let target = node.path("target");
    fs::create_dir_all(node.path("archives")).unwrap();
    fs::create_dir(&target).unwrap();
    let slow = artefacts(&node.path("archives"), Pace::Drip);
    let entry = release(&node, "tool", &slow);
    let text = |key: &str| entry[key].as_str().unwrap().to_owned();
    let (source, checksum, list) = (text("source"), text("checksum"), text("verify_checksum"));
    let mut daemon = node.start();
    let observer = daemon.observe(Asking::OnNewConnections);
    node.agent(
        "attack",
        &format!(
            "  - name: tool\n    type: archive\n    interval: 1m\n    properties: {{source: \"{source}\", checksum: \
             {checksum}, verify_checksum: {list}, creates: tool, target: \"{}\", timeout: 5m}}\n",
            target.display()
        ),
    );
    let began = daemon.until(Duration::from_secs(5), |_| stagings(&target) > 0).is_some();
    fs::rename(node.path("local/attack"), node.path("aside")).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let left = stagings(&target);
    let trouble = daemon.trouble("attack").unwrap_or_default();
    let seen = observer.end();
    let told = match (began, left) {
        (false, _) => format!("**the download did not begin** {trouble}"),
        (true, 0) => "nothing is left of it".to_owned(),
        (true, left) => format!("**{left} staging directory is left**"),
    };
    (seen, daemon.ended().unwrap_or(told))
}

/// Where downloads into this directory are kept until they are whole.
fn stagings(target: &Path) -> usize {
    let copies = fs::read_dir(target.join(".tool.copies")).into_iter().flatten().filter_map(Result::ok);
    copies.filter(|entry| entry.file_name().to_string_lossy().ends_with("-temp")).count()
}

/// A node with an HTTP listener, and its address.
fn listening<'a>(program: &'a Program) -> (Node<'a>, String) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    (Node::new(program, &format!("[sync]\nenabled = false\n[http]\nlisten = \"{free}\"\n")), free.to_string())
}

pub fn slow_connections(program: &Program) -> (Seen, String) {
    let (node, address) = listening(program);
    let mut daemon = node.start();
    let observer = daemon.observe(Asking::OnNewConnections);
    let slow: Vec<TcpStream> = (0..120).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let dripping = std::thread::spawn(move || {
        for letter in b"GET /metrics HTTP/1.1\r\nX-Long: aaaaaaaaaaa".iter().take(16) {
            slow.iter().for_each(|mut stream| _ = stream.write_all(&[*letter]));
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    std::thread::sleep(Duration::from_millis(500));
    let mut answers = Vec::new();
    while !dripping.is_finished() {
        answers.push(scrape(&address));
        std::thread::sleep(Duration::from_millis(200));
    }
    dripping.join().unwrap();
    let seen = observer.end();
    let longest = answers.iter().flatten().max();
    let told = match (longest, answers.iter().filter(|answer| answer.is_none()).count()) {
        (Some(longest), 0) => format!("`/metrics` answered each of {} in {longest:.0?} at most", answers.len()),
        (_, failed) => format!("**`/metrics` did not answer {failed} of {} in 5 s**", answers.len()),
    };
    (seen, daemon.ended().unwrap_or(told))
}

/// How long `/metrics` takes to answer.
fn scrape(address: &str) -> Option<Duration> {
    let asked = Instant::now();
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    answer.starts_with(b"HTTP/1.1 200").then(|| asked.elapsed())
}

pub fn no_descriptors(program: &Program) -> (Seen, String) {
    let (mut node, address) = listening(program);
    // With a few more than it has by itself.
    let own = {
        let daemon = node.start();
        fs::read_dir(format!("/proc/{}/fd", daemon.process())).unwrap().count()
    };
    node.limit_descriptors(u32::try_from(own).unwrap() + 12);
    let mut daemon = node.start();
    let observer = daemon.observe(Asking::OnOneConnection);
    std::thread::sleep(Duration::from_millis(200));
    let before = node.log_lines();
    let connections: Vec<TcpStream> = (0..60).filter_map(|_| TcpStream::connect(&address).ok()).collect();
    std::thread::sleep(Duration::from_secs(8));
    let lines = node.log_lines() - before;
    drop(connections);
    let well_again = daemon.until(Duration::from_secs(10), |_| true).is_some();
    let seen = observer.end();
    let lines = if lines > 8 { format!("**{lines} lines**") } else { format!("{lines} lines") };
    let rest = if well_again { "then it answers as before" } else { "**then it does not answer**" };
    (seen, daemon.ended().unwrap_or_else(|| format!("{lines} in the log in 8 s; {rest}")))
}

/// Before anything else, a server that speaks NATS says who it is.
const GREETING: &[u8] = b"INFO {\"server_id\":\"x\",\"version\":\"2.11.0\",\"max_payload\":1048576,\"headers\":true,\
                          \"jetstream\":true}\r\n";

pub fn endless_line(program: &Program) -> (Seen, String) {
    hostile_nats(program, &endless_nats(b"INFO {\"server_id\":\"", b""))
}

pub fn endless_message(program: &Program) -> (Seen, String) {
    hostile_nats(program, &endless_nats(GREETING, b"PONG\r\nMSG _INBOX.a 1 9000000000\r\n"))
}

fn hostile_nats(program: &Program, url: &str) -> (Seen, String) {
    let node = Node::new(program, &format!("[kv]\nurl = \"{url}\"\n"));
    let before = Node::new(program, "").start().observe(Asking::OnNewConnections).end();
    let mut daemon = node.start();
    let observer = daemon.observe(Asking::OnNewConnections);
    std::thread::sleep(Duration::from_secs(6));
    let detail = daemon.status().and_then(|status| Some(status["store"]["detail"].as_str()?.to_owned()));
    let seen = observer.end().compared_with(&before);
    let told: String = detail.unwrap_or_default().chars().take(100).collect();
    (seen, daemon.ended().unwrap_or(format!("store: {}", told.trim())))
}

/// The first four connections (of the store and of the events, with one more try each) get a message whose length
/// overflows a sum; those that follow get the real server.
pub fn overflowing_message(program: &Program) -> (Seen, String) {
    let server = NatsServer::start();
    let url = hostile_at_first(server.port(), 4, GREETING, b"PONG\r\nMSG a 1 18446744073709551615\r\nx\r\n");
    let node = Node::new(program, &format!("[kv]\nurl = \"{url}\"\n"));
    let mut daemon = node.start();
    let observer = daemon.observe(Asking::OnNewConnections);
    let is_well = |status: &Value| status["store"]["detail"].as_str().is_some_and(|detail| detail.contains("2.15"));
    let well = daemon.until(Duration::from_secs(15), is_well);
    let seen = observer.end();
    let told = match well {
        Some(_) => "connected when the server is well again".to_owned(),
        None => format!("**not connected again in 15 s: {}**", daemon.status().unwrap_or_default()["store"]),
    };
    (seen, daemon.ended().unwrap_or(told))
}
