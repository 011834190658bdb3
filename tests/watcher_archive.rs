//! The promises of the archive watcher, with real archives and a real disk: what is verified whole is put in place in one
//! step and kept so, and a place that can't take it, or that others could change, is refused before anything is fetched.

#![cfg(test)]

mod engine;
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use engine::{Lab, watcher};
use machines::archive::{Built, Limits, build};
use machines::machine::runner::Handle;
use machines::machine::status::WatcherStatus;
use machines::names::{MachineName, Version};
use support::eventually;

struct Place {
    lab: Lab,
    target: PathBuf,
}

impl Place {
    async fn new() -> Self {
        let lab = Lab::new().await;
        let place = Self { target: lab.path("target"), lab };
        for directory in ["out", "target"] {
            fs::create_dir(place.lab.path(directory)).unwrap();
        }
        // A umask of 002 would make it writable by others.
        fs::set_permissions(place.target(), fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    fn target(&self) -> PathBuf {
        self.target.clone()
    }

    fn tool(&self) -> PathBuf {
        self.target().join("tool/run.sh")
    }

    fn archive(&self, version: &str) -> Built {
        let source = self.lab.path(&format!("source-{version}"));
        fs::create_dir(&source).unwrap();
        fs::write(source.join("run.sh"), version).unwrap();
        self.archive_again(version)
    }

    fn archive_again(&self, version: &str) -> Built {
        let source = self.lab.path(&format!("source-{version}"));
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

    fn has_copies(&self) -> bool {
        self.target().join(".tool.copies").exists()
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
    let remedy = format!("`chmod o-w {}`", place.target().display());
    assert!(error.contains("everyone may write to") && error.contains(&remedy), "{error}");
}

/// The user `nobody`.
const STRANGER: u32 = 65_534;

#[tokio::test]
async fn who_owns_a_directory_above_the_target_gains_nothing() {
    let place = Place::new().await;
    let (above, precious) = (place.lab.path("above"), place.lab.path("precious"));
    fs::create_dir_all(above.join("target")).unwrap();
    fs::create_dir(&precious).unwrap();
    let mut place = place;
    place.target = above.join("target");
    let one = place.archive("1.0.0");
    assert_eq!(place.once("a", &one).await.outcome, "downloaded");

    chown(&above, Some(STRANGER), None).unwrap();
    let refused = |status: WatcherStatus| {
        let error = status.last_error.unwrap_or_default();
        let remedy = format!("{} belongs to user 65534", above.display());
        assert!(status.outcome == "error" && error.contains(&remedy), "{}: {error}", status.outcome);
        assert!(error.contains(&format!("`chown -h root {}`", above.display())), "{error}");
    };
    // What is there is still as it should be, and may be exchanged the moment after.
    refused(place.once("b", &one).await);
    // The stranger lays a trap: what is installed or removed "in the target" happens elsewhere.
    fs::rename(place.target(), above.join("aside")).unwrap();
    symlink(&precious, place.target()).unwrap();
    lchown(place.target(), Some(STRANGER), None).unwrap();
    let two = place.archive("2.0.0");
    refused(place.once("c", &two).await);
    assert_eq!(fs::read_dir(&precious).unwrap().count(), 0);
    // A stranger's directory in which ours would be made.
    place.target = above.join("new/target");
    refused(place.once("d", &two).await);
    assert!(!above.join("new").exists());
}

#[tokio::test]
async fn a_link_that_only_we_may_change_is_followed_to_the_target() {
    let mut place = Place::new().await;
    symlink(place.target(), place.lab.path("link")).unwrap();
    place.target = place.lab.path("link/deeper");
    assert_eq!(place.once("a", &place.archive("1.0.0")).await.outcome, "downloaded");
    assert_eq!(content(&place.lab.path("target/deeper/tool/run.sh")), "1.0.0");
    assert_eq!(place.once("b", &place.archive_again("1.0.0")).await.outcome, "verified");
}

/// A source that takes connections and never answers.
fn silent() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let source = format!("http://{}/tool.tgz", listener.local_addr().unwrap());
    (listener, source)
}

/// Runs a machine whose archive does not come.
fn waiting(place: &Place, source: &str, archive: &Built) -> Handle {
    staying(
        &place.lab,
        &format!(
            "      source: {source}\n      checksum: {}\n      creates: tool\n      target: {}\n      \
             verify_checksum: {}\n      timeout: 5s\n",
            archive.checksum,
            place.target().display(),
            archive.verify_checksum
        ),
    )
}

#[tokio::test]
async fn unfinished_work_is_removed_after_a_time_limit() {
    let place = Place::new().await;
    let (_listener, source) = silent();
    let handle = waiting(&place, &source, &place.archive("1.0.0"));
    eventually("the download begins", || async { place.has_copies() && !place.copies().is_empty() }).await;
    eventually("the time limit", || async { watcher(&handle.remote.status(), "tool").checks > 0 }).await;
    let error = watcher(&handle.remote.status(), "tool").last_error.unwrap();
    assert!(error.contains("took longer than 5s"), "{error}");
    eventually("nothing is left", || async { place.copies().is_empty() }).await;
    handle.stop().await;
}

#[tokio::test]
async fn unfinished_work_is_removed_when_the_machine_stops() {
    let place = Place::new().await;
    let (_listener, source) = silent();
    let handle = waiting(&place, &source, &place.archive("1.0.0"));
    eventually("the download begins", || async { place.has_copies() && !place.copies().is_empty() }).await;
    handle.stop().await;
    eventually("nothing is left", || async { place.copies().is_empty() }).await;
}

#[tokio::test]
async fn unfinished_work_of_a_killed_daemon_is_removed_at_the_next_check_and_work_in_use_is_not() {
    let place = Place::new().await;
    let one = place.archive("1.0.0");
    place.once("a", &one).await;
    let copies = place.target().join(".tool.copies");
    let names = [1, 2].map(|digit| format!(".{}-temp", digit.to_string().repeat(32)));
    for name in &names {
        fs::create_dir_all(copies.join(name).join("unpacked/tool")).unwrap();
        fs::write(copies.join(name).join("archive"), "half").unwrap();
    }
    // What another process holds, such as `run-machine`.
    let held = fs::File::open(copies.join(&names[1])).unwrap();
    held.lock().unwrap();
    assert_eq!(place.once("b", &one).await.outcome, "verified");
    assert!(!copies.join(&names[0]).exists() && copies.join(&names[1]).exists(), "{:?}", place.copies());
    drop(held);
    assert_eq!(place.once("c", &one).await.outcome, "verified");
    assert_eq!(place.copies().len(), 1, "{:?}", place.copies());
}

#[tokio::test]
async fn a_server_that_stalls_holds_up_no_other_archive_and_no_check_of_one() {
    let place = Place::new().await;
    let archive = place.archive("1.0.0");
    let (_listener, source) = silent();
    let with = |source: &str, target: &str| {
        staying(
            &place.lab,
            &format!(
                "      source: {source}\n      checksum: {}\n      creates: tool\n      target: {}\n      \
                 verify_checksum: {}\n      timeout: 10m\n",
                archive.checksum,
                place.lab.path(target).display(),
                archive.verify_checksum
            ),
        )
    };
    let stalled: Vec<Handle> = (0..8).map(|number| with(&source, &format!("stalled{number}"))).collect();
    let begun = |number: usize| place.lab.path(&format!("stalled{number}/.tool.copies")).exists();
    eventually("each has begun", || async { (0..stalled.len()).all(begun) }).await;
    let good = with(&format!("file://{}", archive.path.display()), "good");
    eventually("another origin's archive", || async { place.lab.path("good/tool/run.sh").exists() }).await;
    let outcome = || watcher(&good.remote.status(), "tool").outcome;
    eventually("its check", || async { outcome() == "downloaded" }).await;
    fs::write(place.lab.path("good/tool/run.sh"), "changed").unwrap();
    eventually("its repair", || async { content(&place.lab.path("good/tool/run.sh")) == "1.0.0" }).await;
    for handle in stalled.into_iter().chain([good]) {
        handle.stop().await;
    }
}

/// A watcher that stays, with these properties.
fn staying(lab: &Lab, properties: &str) -> Handle {
    lab.spawn_real(&format!(
        "name: stays\nversion: 1.0.0\ninitial_state: RUN\ntransitions: [{{name: again, from: [RUN], destination: RUN}}]\n\
         watchers:\n  - name: tool\n    type: archive\n    interval: 1h\n    properties:\n{properties}"
    ))
}

#[tokio::test]
async fn templates_are_rendered_at_each_check_and_judged_then() {
    let place = Place::new().await;
    let one = place.archive("1.0.0");
    let data = place.lab.path("data/stays");
    fs::create_dir_all(&data).unwrap();
    let values = serde_json::json!({
        "path": one.path, "sum": one.checksum.to_string(), "list": one.verify_checksum.to_string(),
        "target": place.target(),
    });
    let properties = "      source: 'file://{{ lookup \"data.path\" \"\" }}'\n      \
                      checksum: '{{ lookup \"data.sum\" \"x\" }}'\n      creates: '{{ ToLower \"TOOL\" }}'\n      \
                      target: '{{ lookup \"data.target\" \"/nonexistent\" }}'\n      \
                      verify_checksum: '{{ lookup \"data.list\" \"\" }}'\n";
    for (values, outcome) in [(values.to_string(), "downloaded"), ("{}".to_owned(), "error")] {
        fs::write(data.join("machine_data.json"), values).unwrap();
        let handle = staying(&place.lab, properties);
        eventually("the check ends", || async { watcher(&handle.remote.status(), "tool").checks > 0 }).await;
        let status = watcher(&handle.remote.status(), "tool");
        assert_eq!(status.outcome, outcome, "{:?}", status.last_error);
        if let Some(error) = status.last_error {
            assert!(error.contains("checksum: ") && error.contains("verify_checksum: "), "{error}");
        }
        handle.stop().await;
    }
    assert_eq!(content(&place.tool()), "1.0.0");
}

#[test]
fn faults_of_plain_values_are_found_at_once_also_beside_templates() {
    let text = "name: stays\nversion: 1.0.0\ninitial_state: RUN\n\
                transitions: [{name: again, from: [RUN], destination: RUN}]\nwatchers:\n  - name: tool\n    type: archive\n    \
                properties:\n      source: '{{ lookup \"facts.a\" \"\" }}'\n      checksum: short\n      creates: ../x\n      \
                target: '{{ lookup \"data.t\" \"\" }}'\n      verify_checksum: '{{ lookup \"data.v\" \"\" }}'\n      \
                username: me\n";
    let refused = engine::build(text).map(drop).unwrap_err();
    for expected in
        ["machine.yaml:10:", "machine.yaml:11:", "machine.yaml:14:", "username and password belong together"]
    {
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
    assert!(!refused.contains("machine.yaml:9:") && !refused.contains("machine.yaml:12:"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_on_disk_is_seen_and_repaired_without_waiting_for_the_interval() {
    let place = Place::new().await;
    let one = place.archive("1.0.0");
    let handle = staying(
        &place.lab,
        &format!(
            "      source: file://{}\n      checksum: {}\n      creates: tool\n      target: {}\n      verify_checksum: {}\n",
            one.path.display(),
            one.checksum,
            place.target().display(),
            one.verify_checksum
        ),
    );
    let is = |expected: &'static str| {
        let tool = place.tool();
        async move { fs::read_to_string(tool).is_ok_and(|content| content == expected) }
    };
    eventually("the installation", || is("1.0.0")).await;
    for _ in 0..2 {
        eventually("rest", || async { watcher(&handle.remote.status(), "tool").outcome == "verified" }).await;
        fs::set_permissions(place.tool(), fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(place.tool(), "edited").unwrap();
        eventually("the repair", || is("1.0.0")).await;
    }
    fs::remove_file(place.target().join("tool")).unwrap();
    eventually("the repair of the link", || is("1.0.0")).await;
    handle.stop().await;
}
