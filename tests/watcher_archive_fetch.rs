//! How the archive watcher fetches: with which user and password, from whom, for how long, and which list of checksums
//! it goes by.

#![cfg(test)]

mod engine;
mod http;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::{Lab, watcher};
use http::{Answer, Server};
use machines::archive::{Built, Limits, build};
use machines::machine::status::WatcherStatus;
use machines::names::{MachineName, Version};
use support::eventually;

struct Place {
    lab: Lab,
    archive: Built,
}

impl Place {
    async fn new() -> Self {
        let lab = Lab::new().await;
        for directory in ["out", "target", "source"] {
            fs::create_dir(lab.path(directory)).unwrap();
        }
        // A umask of 002 would make it writable by others.
        fs::set_permissions(lab.path("target"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(lab.path("source/run.sh"), "x").unwrap();
        let (name, version) = (MachineName::new("tool").unwrap(), Version::new("1.0.0").unwrap());
        let archive = build(&lab.path("source"), &name, &version, &lab.path("out"), &Limits::default()).unwrap();
        Self { lab, archive }
    }

    fn text(&self, source: &str, verify_checksum: &str, more: &str) -> String {
        let (target, checksum) = (self.lab.path("target"), self.archive.checksum);
        format!(
            "name: fetcher\nversion: 1.0.0\ninitial_state: A\ntransitions: [{{name: again, from: [A], destination: A}}]\n\
             watchers:\n  - name: tool\n    type: archive\n    interval: 1h\n    properties: {{source: '{source}', checksum: \
             {checksum}, creates: tool, target: {}, verify_checksum: {verify_checksum}{more}}}\n",
            target.display(),
        )
    }

    /// The first check of a watcher.
    async fn once(&self, source: &str, verify_checksum: &str, more: &str) -> WatcherStatus {
        let handle = self.lab.spawn_real(&self.text(source, verify_checksum, more));
        let status = || watcher(&handle.remote.status(), "tool");
        eventually("the check", || async { status().checks > 0 }).await;
        let status = status();
        handle.stop().await;
        status
    }

    async fn fetch(&self, source: &str, more: &str) -> WatcherStatus {
        self.once(source, &self.archive.verify_checksum.to_string(), more).await
    }

    fn answer(&self) -> Answer {
        Answer::ok(&fs::read(&self.archive.path).unwrap())
    }
}

#[tokio::test]
async fn a_user_and_a_password_are_sent_with_the_request() {
    let place = Place::new().await;
    let server = Server::start().await;
    server.answer("/tool-1.0.0.tgz", place.answer());
    let source = format!("http://127.0.0.1:{}/tool-1.0.0.tgz", server.port);
    let more = ", username: '{{ lookup \"facts.role\" \"\" }}', password: secret";
    let status = place.fetch(&source, more).await;
    assert_eq!((status.outcome, status.last_error), ("downloaded", None));
    let expected = format!("basic {}", STANDARD.encode("web:secret")).to_lowercase();
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].to_lowercase().contains(&format!("authorization: {expected}")), "{requests:?}");
    for half in [", username: me", ", password: secret"] {
        let refused = engine::build(&place.text(&source, &"a".repeat(64), half)).map(drop).unwrap_err();
        assert!(refused.contains("username and password belong together"), "{refused}");
    }
}

#[tokio::test]
async fn only_with_insecure_is_any_certificate_taken() {
    let place = Place::new().await;
    let (server, _) = http::tls_server(&["elsewhere.example"]).await;
    server.answer("/tool-1.0.0.tgz", place.answer());
    let source = format!("https://127.0.0.1:{}/tool-1.0.0.tgz", server.port);
    for more in ["", ", insecure: false"] {
        let status = place.fetch(&source, more).await;
        assert_eq!(status.outcome, "error");
        let error = status.last_error.unwrap();
        assert!(error.contains("certificate is not trusted"), "{error}");
        assert!(server.requests().is_empty(), "nothing was sent");
    }
    let status = place.fetch(&source, ", insecure: true").await;
    assert_eq!((status.outcome, status.last_error), ("downloaded", None));
}

#[tokio::test]
async fn a_download_that_stalls_ends_at_the_time_limit() {
    let place = Place::new().await;
    let server = Server::start().await;
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n".to_vec();
    server.answer("/tool-1.0.0.tgz", Answer::Stall(head));
    let source = format!("http://127.0.0.1:{}/tool-1.0.0.tgz", server.port);
    let begin = std::time::Instant::now();
    let status = place.fetch(&source, ", timeout: 5s").await;
    assert_eq!(status.outcome, "error");
    let error = status.last_error.unwrap();
    assert!(error.contains("5s"), "{error}");
    assert!(begin.elapsed() >= Duration::from_secs(5), "{error}");
    let text = place.text(&source, &"a".repeat(64), ", timeout: 4s");
    let refused = engine::build(&text).map(drop).unwrap_err();
    assert!(refused.contains("timeout must be at least 5s"), "{refused}");
}

#[tokio::test]
async fn the_list_of_checksums_must_be_the_one_that_is_named() {
    let place = Place::new().await;
    let source = format!("file://{}", place.archive.path.display());
    let status = place.once(&source, &"a".repeat(64), "").await;
    assert_eq!(status.outcome, "error");
    let error = status.last_error.unwrap();
    assert!(error.contains("the checksum of SHA256SUMS does not match verify_checksum"), "{error}");
    assert!(!place.lab.path("target/tool").exists());
    let status = place.fetch(&source, ", verify: SHA256SUMS").await;
    assert_eq!((status.outcome, status.last_error), ("downloaded", None));
    let refused = engine::build(&place.text(&source, &"a".repeat(64), ", verify: OTHER")).map(drop).unwrap_err();
    assert!(refused.contains("verify must be SHA256SUMS"), "{refused}");
}
