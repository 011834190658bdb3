//! The promises of the archive watcher, with real archives and a real disk: what is verified whole is put in place in one
//! step and kept so, and a place that can't take it, or that others could change, is refused before anything is fetched.

#![cfg(test)]

mod engine;
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use engine::{Lab, watcher};
use machines::archive::{Built, Limits, build};
use machines::machine::runner::Handle;
use machines::machine::status::WatcherStatus;
use machines::names::{MachineName, Version};
use support::eventually;

struct Place {
    lab: Lab,
}

impl Place {
    async fn new() -> Self {
        let place = Self { lab: Lab::new().await };
        for directory in ["out", "target"] {
            fs::create_dir(place.lab.path(directory)).unwrap();
        }
        // A umask of 002 would make it writable by others.
        fs::set_permissions(place.target(), fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    fn target(&self) -> PathBuf {
        self.lab.path("target")
    }

    fn tool(&self) -> PathBuf {
        self.target().join("tool/run.sh")
    }

    fn archive(&self, version: &str) -> Built {
        let source = self.lab.path(&format!("source-{version}"));
        fs::create_dir(&source).unwrap();
        fs::write(source.join("run.sh"), version).unwrap();
        let (name, version) = (MachineName::new("tool").unwrap(), Version::new(version).unwrap());
        build(&source, &name, &version, &self.lab.path("out"), &Limits::default()).unwrap()
    }

    fn run(&self, name: &str, archive: &Built, checksum: &str) -> Handle {
        self.lab.spawn_real(&format!(
            "name: {name}\nversion: 1.0.0\ninitial_state: RUN\n\
             transitions: [{{name: done, from: [RUN], destination: DONE}}, {{name: bad, from: [RUN], destination: BAD}}]\n\
             watchers:\n  - name: tool\n    type: archive\n    success_transition: done\n    fail_transition: bad\n    \
             state_match: [RUN]\n    interval: 10s\n    properties:\n      source: file://{}\n      checksum: {checksum}\n      \
             creates: tool\n      target: {}\n      verify_checksum: {}\n",
            archive.path.display(),
            self.target().display(),
            archive.verify_checksum,
        ))
    }

    /// Runs a machine until its watcher has been checked once.
    async fn once(&self, name: &str, archive: &Built) -> WatcherStatus {
        self.once_with(name, archive, &archive.checksum.to_string()).await
    }

    async fn once_with(&self, name: &str, archive: &Built, checksum: &str) -> WatcherStatus {
        let handle = self.run(name, archive, checksum);
        let status = || handle.remote.status();
        eventually("the check ends", || async { watcher(&status(), "tool").checks > 0 }).await;
        let status = watcher(&status(), "tool");
        handle.stop().await;
        status
    }

    fn copies(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.target().join(".tool.copies"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn content(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[tokio::test]
async fn installs_verifies_repairs_and_upgrades() {
    let place = Place::new().await;
    let one = place.archive("1.0.0");
    assert_eq!(place.once("a", &one).await.outcome, "downloaded");
    assert_eq!(content(&place.tool()), "1.0.0");
    assert_eq!(place.once("b", &one).await.outcome, "verified");

    fs::set_permissions(place.tool(), fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(place.tool(), "edited").unwrap();
    assert_eq!(place.once("c", &one).await.outcome, "downloaded");
    assert_eq!(content(&place.tool()), "1.0.0");

    let two = place.archive("2.0.0");
    assert_eq!(place.once("d", &two).await.outcome, "downloaded");
    assert_eq!(content(&place.tool()), "2.0.0");
    assert_eq!(place.copies().len(), 2, "the newest of the earlier copies is kept, no staging: {:?}", place.copies());
}

#[tokio::test]
async fn a_wrong_checksum_leaves_what_was_there() {
    let place = Place::new().await;
    let one = place.archive("1.0.0");
    place.once("a", &one).await;
    let two = place.archive("2.0.0");
    let status = place.once_with("b", &two, &"a".repeat(64)).await;
    assert_eq!(status.outcome, "verify_failed");
    assert!(status.last_error.unwrap().contains("does not match: expected aaaa"));
    assert_eq!(content(&place.tool()), "1.0.0");
    assert_eq!(place.copies().len(), 1, "{:?}", place.copies());
}

#[tokio::test]
async fn a_directory_that_was_there_is_moved_aside_and_kept() {
    let place = Place::new().await;
    for round in ["a", "b"] {
        _ = fs::remove_file(place.target().join("tool"));
        fs::create_dir(place.target().join("tool")).unwrap();
        fs::write(place.tool(), "somebody's").unwrap();
        let archive = place.archive(if round == "a" { "1.0.0" } else { "1.0.1" });
        assert_eq!(place.once(round, &archive).await.outcome, "downloaded", "{round}");
        assert!(content(&place.tool()).starts_with("1.0."), "{round}");
    }
    let kept = place.copies().into_iter().filter(|name| name.ends_with(".replaced"));
    let kept: Vec<_> =
        kept.map(|name| content(&place.target().join(".tool.copies").join(name).join("run.sh"))).collect();
    assert_eq!(kept, ["somebody's", "somebody's"]);
}

#[tokio::test]
async fn a_file_in_the_way_is_refused_before_anything_is_fetched() {
    let place = Place::new().await;
    fs::write(place.target().join("tool"), "somebody's").unwrap();
    let status = place.once("a", &place.archive("1.0.0")).await;
    assert_eq!(status.outcome, "error");
    assert!(status.last_error.unwrap().contains("it is neither a directory nor a link; move it aside"));
    assert!(!place.target().join(".tool.copies").exists());
    assert_eq!(content(&place.target().join("tool")), "somebody's");
}

#[tokio::test]
async fn a_link_in_the_place_of_the_copies_leads_nowhere() {
    let place = Place::new().await;
    let precious = place.lab.path("precious");
    fs::create_dir_all(precious.join("one")).unwrap();
    fs::create_dir_all(precious.join("two")).unwrap();
    symlink(&precious, place.target().join(".tool.copies")).unwrap();
    let status = place.once("a", &place.archive("1.0.0")).await;
    assert_eq!(status.outcome, "error");
    assert!(status.last_error.unwrap().contains("links are not followed here"));
    assert!(precious.join("one").exists() && precious.join("two").exists());
}

#[tokio::test]
async fn a_target_that_others_may_change_is_refused() {
    let place = Place::new().await;
    fs::set_permissions(place.target(), fs::Permissions::from_mode(0o777)).unwrap();
    let status = place.once("a", &place.archive("1.0.0")).await;
    assert_eq!(status.outcome, "error");
    let error = status.last_error.unwrap();
    assert!(error.contains("others may change") && error.contains("who alone may write to it"), "{error}");
}
