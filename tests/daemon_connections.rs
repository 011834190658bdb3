//! Those who connect to the daemon and do not let go: slow ones do not starve the others, and a daemon without file
//! descriptors still answers an operator, and says what is wrong once.

#![cfg(test)]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit};
use serde_json::Value;
use support::daemon::Daemon;

/// Many more than there are places.
const SLOW: usize = 120;
/// Well below the time after which a slow connection is ended anyway.
const PROMPT: Duration = Duration::from_secs(5);

struct Site {
    _directory: tempfile::TempDir,
    daemon: Daemon,
    port: u16,
}

async fn site() -> Site {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(&directory.path().join("node"), "node1.example.net", "local");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    daemon.set("http", "listen", &format!("127.0.0.1:{port}"));
    daemon.start().await;
    Site { _directory: directory, daemon, port }
}

impl Site {
    fn scrape(&self) -> (String, Duration) {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer, begun.elapsed())
    }

    fn status(&self) -> Duration {
        let begun = Instant::now();
        let printed = self.daemon.run(&["status"]);
        assert_eq!(printed.code, Some(0), "{printed:?}");
        begun.elapsed()
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.daemon.process())).unwrap().count()
    }

    fn limit_descriptors(&self, limit: u64) {
        let process = rustix::process::Pid::from_raw(self.daemon.process().try_into().unwrap());
        let limit = Rlimit { current: Some(limit), maximum: Some(1_024) };
        rustix::process::prlimit(process, Resource::Nofile, limit).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_connections_do_not_starve_metrics_or_the_control_socket() {
    let site = site().await;
    let slow: Vec<TcpStream> = (0..SLOW)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", site.port)).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: loc").unwrap();
            stream
        })
        .collect();
    // These have sent all, and don't take the answer.
    let deaf: Vec<UnixStream> = (0..SLOW)
        .map(|_| {
            let mut stream = UnixStream::connect(site.daemon.socket()).unwrap();
            stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\nGET").unwrap();
            stream
        })
        .collect();
    for _ in 0..3 {
        let (answer, taken) = site.scrape();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(taken < PROMPT, "/metrics took {taken:?} beside {SLOW} slow connections");
        let taken = site.status();
        assert!(taken < PROMPT, "status took {taken:?} beside {SLOW} deaf connections");
    }
    assert!(site.descriptors() < 200, "{} descriptors are open", site.descriptors());
    drop((slow, deaf));
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_follow_events_and_the_next_one_is_told() {
    let mut site = site().await;
    let mut followers: Vec<UnixStream> = Vec::new();
    for number in 0..33 {
        let mut stream = UnixStream::connect(site.daemon.socket()).unwrap();
        stream.write_all(b"GET /v1/events?follow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        let status = String::from_utf8_lossy(&head[9..]).into_owned();
        assert_eq!(status, if number < 32 { "200" } else { "503" }, "follower {number}");
        followers.push(stream);
    }
    // Followers are served: nobody who is slow takes their place.
    let slow: Vec<_> = (0..SLOW).map(|_| UnixStream::connect(site.daemon.socket()).unwrap()).collect();
    assert!(site.status() < PROMPT);
    site.daemon.client().post("/v1/maintenance", &serde_json::json!("off")).await.unwrap();
    let moved = serde_json::json!({"machine": "manager", "event": "enter_maintenance"});
    site.daemon.until("the manager runs", |status| !status["machines"].as_array().unwrap().is_empty()).await;
    site.daemon.client().post("/v1/transition", &moved).await.unwrap();
    for follower in followers.iter_mut().take(32) {
        let mut seen = Vec::new();
        let mut piece = [0; 4_096];
        while !String::from_utf8_lossy(&seen).contains("enter_maintenance") {
            let read = follower.read(&mut piece).unwrap();
            assert_ne!(read, 0, "a follower was turned away");
            seen.extend_from_slice(&piece[..read]);
        }
    }
    drop(slow);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_file_descriptors_status_answers_and_the_log_says_it_once() {
    let mut site = site().await;
    site.daemon.until("it is at rest", |status| status["maintenance"].is_null()).await;
    // So that each listener has seen a connection come and go.
    site.scrape();
    site.limit_descriptors(u64::try_from(site.descriptors()).unwrap());
    let waiting: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(("127.0.0.1", site.port)).unwrap()).collect();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        let taken = site.status();
        assert!(taken < PROMPT, "status took {taken:?} without file descriptors");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let lines = |log: &str, text: &str| log.lines().filter(|line| line.contains(text)).count();
    let log = site.daemon.log();
    for name in ["control socket", "HTTP listener"] {
        let said = lines(&log, &format!("{name}: "));
        assert!(said <= 1, "the log says it {said} times:\n{log}");
    }
    assert!(lines(&log, "a connection could not be taken: Too many open files") >= 1, "{log}");
    site.limit_descriptors(1_024);
    drop(waiting);
    let again = |site: &Site| lines(&site.daemon.log(), "control socket: connections are taken again; ") == 1;
    let begun = Instant::now();
    while !again(&site) {
        assert!(begun.elapsed() < support::PATIENCE, "{}", site.daemon.log());
        site.status();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let status: Value = site.daemon.status().await;
    assert_eq!(status["identity"], "node1.example.net");
    assert!(site.scrape().0.starts_with("HTTP/1.1 200"));
}
