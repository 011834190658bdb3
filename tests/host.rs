//! The promises of the host, kept with real directories: which machines it finds, when it starts, reloads and stops them,
//! what it says of those that it can't run, and how they are moved by hand.

#![cfg(test)]

mod engine;
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Lab;
use machines::host::{self, HostHandle, Report, Source};
use machines::machine::status::MachineStatus;
use support::{eventually, within};
use tokio::task::JoinHandle;

fn text(name: &str) -> String {
    format!(
        "name: {name}\nversion: 1.2.3\ninitial_state: A\ntransitions:\n  - {{name: go, from: [A], destination: B}}\n  \
         - {{name: back, from: [B], destination: A}}\nwatchers:\n  - {{name: it, type: timer, state_match: [B], \
         properties: {{timer: 1h}}}}\n"
    )
}

/// A host over a directory of its own.
struct Place {
    lab: Lab,
    host: HostHandle,
    task: JoinHandle<()>,
}

impl Place {
    async fn new() -> Self {
        let lab = Lab::new().await;
        fs::create_dir(lab.path("local")).unwrap();
        Self::start(lab, Vec::new())
    }

    fn start(lab: Lab, built_in: Vec<Arc<machines::machine::definition::Definition>>) -> Self {
        let setup = host::Setup {
            local_directory: Some(lab.path("local")),
            managed_directory: None,
            data_directory: lab.path("data"),
            built_in,
            kinds: machines::watchers::KINDS,
            services: Arc::clone(&lab.services),
            bus: lab.bus.clone(),
            // What a test sees was told by the system.
            rescan: Duration::from_secs(3600),
        };
        let (host, task) = host::start(setup);
        Self { lab, host, task }
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.lab.path("local").join(name)
    }

    /// Writes machine.yaml as an editor does: beside it, then renamed.
    fn write(&self, directory: &str, text: &str) {
        let directory = self.directory(directory);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(".new"), text).unwrap();
        fs::rename(directory.join(".new"), directory.join("machine.yaml")).unwrap();
    }

    fn report(&self, directory: &str) -> Option<Report> {
        let path = self.directory(directory);
        self.host.reports().into_iter().find(|report| report.path == path)
    }

    fn status(&self, directory: &str) -> Option<Arc<MachineStatus>> {
        self.report(directory)?.machine
    }

    async fn runs(&self, directory: &str) -> Arc<MachineStatus> {
        eventually(&format!("the start of {directory}"), || async { self.status(directory).is_some() }).await;
        self.status(directory).unwrap()
    }

    async fn problem(&self, directory: &str, expected: &str) {
        let begin = Instant::now();
        loop {
            let problem = self.report(directory).and_then(|report| report.problem);
            if problem.as_ref().is_some_and(|problem| problem.contains(expected)) {
                return;
            }
            assert!(begin.elapsed() < support::PATIENCE, "{problem:?} instead of {expected:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn gone(&self, directory: &str) {
        eventually(&format!("the end of {directory}"), || async { self.report(directory).is_none() }).await;
    }

    /// A whole look at the directories has been taken since this was called.
    async fn looked(&self) {
        // A machine that is made now is found by a look that begins now or later.
        self.write("marker", &text("marker"));
        self.runs("marker").await;
        fs::remove_dir_all(self.directory("marker")).unwrap();
        self.gone("marker").await;
    }
}

#[tokio::test]
async fn finds_machines_promptly_and_skips_what_is_unfinished() {
    let place = Place::new().await;
    place.looked().await;
    for name in ["tmp", ".hidden", "half-temp"] {
        place.write(name, &text("unfinished"));
    }
    fs::write(place.directory("a-file"), "not a directory").unwrap();
    fs::create_dir(place.directory("empty")).unwrap();
    place.write("good", &text("good"));
    let status = place.runs("good").await;
    assert_eq!((status.name.as_str(), status.version.as_str(), status.state.as_str()), ("good", "1.2.3", "A"));
    assert_eq!(status.path, place.directory("good"));
    place.problem("empty", "could not open").await;
    let reports = place.host.reports();
    let paths: Vec<_> = reports.iter().map(|report| report.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(paths, ["empty", "good"]);
    assert!(reports.iter().all(|report| report.source == Source::Local));
}

#[tokio::test]
async fn a_changed_definition_is_loaded_and_one_that_was_only_touched_is_not() {
    let place = Place::new().await;
    place.write("one", &text("one"));
    let first = place.runs("one").await;
    place.host.transition("one", "go").await.unwrap();
    place.write("one", &text("one"));
    place.looked().await;
    let touched = place.status("one").unwrap();
    assert_eq!((&touched.id, touched.state.as_str()), (&first.id, "B"), "the same text is no change");
    place.write("one", &text("one").replace("1.2.3", "1.2.4"));
    eventually("the new version", || async {
        place.status("one").is_some_and(|status| status.version.as_str() == "1.2.4")
    })
    .await;
    let second = place.status("one").unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(second.state.as_str(), "A");
}

#[tokio::test]
async fn a_broken_new_definition_keeps_the_old_machine_and_is_shown_with_its_place() {
    let place = Place::new().await;
    place.write("one", &text("one"));
    let first = place.runs("one").await;
    let yaml = place.directory("one").join("machine.yaml").display().to_string();
    let cases = [
        (text("one").replace("initial_state: A", "initial_state: X"), ":3:16: no transition leaves the initial state"),
        (text("one").replace("timer: 1h", "tiemr: 1h"), ":8:60: timer watcher \"it\": unknown key \"tiemr\""),
        (text("one").replace("version", "verison"), ":2:1: unknown key \"verison\" (did you mean \"version\"?)"),
        ("a: [".to_owned(), ":1:"),
    ];
    for (broken, expected) in cases {
        place.write("one", &broken);
        place.problem("one", &format!("{yaml}{expected}")).await;
        assert_eq!(place.status("one").unwrap().id, first.id, "the old one goes on");
    }
    place.write("one", &text("one"));
    eventually("the end of the problem", || async { place.report("one").unwrap().problem.is_none() }).await;
    assert_eq!(place.status("one").unwrap().id, first.id, "it never stopped");
    fs::remove_file(place.directory("one").join("machine.yaml")).unwrap();
    place.problem("one", "could not open").await;
    assert_eq!(place.status("one").unwrap().id, first.id);
}

#[tokio::test]
async fn a_broken_machine_starts_when_it_is_mended() {
    let place = Place::new().await;
    place.write("one", "name: one\n");
    place.problem("one", "machine.yaml:1:1: \"version\" is missing").await;
    assert!(place.status("one").is_none());
    place.write("one", &text("one"));
    place.runs("one").await;
    assert_eq!(place.report("one").unwrap().problem, None);
}

#[tokio::test]
async fn a_removed_directory_stops_its_machine() {
    let place = Place::new().await;
    place.write("one", &text("one"));
    place.write("two", &text("two"));
    place.runs("one").await;
    let two = place.runs("two").await;
    fs::remove_dir_all(place.directory("one")).unwrap();
    place.gone("one").await;
    assert_eq!(place.status("two").unwrap().id, two.id);
    let refused = place.host.transition("one", "go").await.unwrap_err();
    assert_eq!(refused.to_string(), "no machine is called \"one\"; there are: two");
}

#[tokio::test]
async fn the_second_of_two_machines_with_one_name_waits_for_the_first_to_go() {
    let place = Place::new().await;
    place.write("first", &text("same"));
    place.runs("first").await;
    place.write("second", &text("same"));
    let first = place.directory("first").display().to_string();
    place.problem("second", &format!("a machine called \"same\" runs already, from {first}; rename one of them")).await;
    assert!(place.status("second").is_none());
    fs::remove_dir_all(place.directory("first")).unwrap();
    place.runs("second").await;
    assert_eq!(place.report("second").unwrap().problem, None);
}

#[tokio::test]
async fn a_directory_that_can_not_be_listed_does_not_stop_what_runs() {
    let place = Place::new().await;
    place.write("one", &text("one"));
    let first = place.runs("one").await;
    // Not permissions, which don't bind root: the path leads to a file for a while.
    fs::rename(place.lab.path("local"), place.lab.path("aside")).unwrap();
    fs::write(place.lab.path("local"), "in the way").unwrap();
    for _ in 0..3 {
        place.host.rescan();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(place.host.answers().await);
    }
    assert_eq!(place.host.reports()[0].machine.as_ref().map(|status| &status.id), Some(&first.id));
    fs::remove_file(place.lab.path("local")).unwrap();
    fs::rename(place.lab.path("aside"), place.lab.path("local")).unwrap();
    place.host.rescan();
    place.looked().await;
    assert_eq!(place.status("one").unwrap().id, first.id);
}

#[tokio::test]
async fn a_directory_that_appears_later_or_is_replaced_is_followed() {
    let place = Place::start(Lab::new().await, Vec::new());
    assert!(place.host.answers().await);
    assert!(place.host.reports().is_empty());
    place.write("one", &text("one"));
    place.runs("one").await;
    // Replaced within one look: the system's watch is on the directory that is gone.
    fs::rename(place.lab.path("local"), place.lab.path("old")).unwrap();
    fs::create_dir(place.lab.path("local")).unwrap();
    place.gone("one").await;
    place.write("two", &text("two"));
    place.runs("two").await;
}

/// Whether this process watches a directory.
fn is_watched(directory: &Path) -> bool {
    let inode = format!("ino:{:x} ", fs::metadata(directory).unwrap().ino());
    let descriptors = fs::read_dir("/proc/self/fdinfo").unwrap().filter_map(Result::ok);
    let watches = descriptors.filter_map(|descriptor| fs::read_to_string(descriptor.path()).ok());
    watches.into_iter().any(|watches| watches.lines().any(|line| line.starts_with("inotify ") && line.contains(&inode)))
}

#[tokio::test]
async fn links_and_directories_inside_a_machine_lead_the_watch_nowhere() {
    let lab = Lab::new().await;
    let (machine, outside, linked) = (lab.path("local/good"), lab.path("outside"), lab.path("linked"));
    // Who owns the data of a machine could have us watch the whole node, and leave nothing to watch with.
    for directory in [&machine.join("data/deep"), &outside, &linked] {
        fs::create_dir_all(directory).unwrap();
    }
    std::os::unix::fs::symlink(&outside, machine.join("data/everything")).unwrap();
    // A machine may be a link, as before.
    std::os::unix::fs::symlink(&linked, lab.path("local/linked")).unwrap();
    for (directory, name) in [(&machine, "good"), (&linked, "linked")] {
        fs::write(directory.join("machine.yaml"), text(name)).unwrap();
    }
    let place = Place::start(lab, Vec::new());
    place.runs("good").await;
    place.runs("linked").await;
    assert!(is_watched(&machine) && is_watched(&linked) && is_watched(&place.lab.path("local")));
    assert!(!is_watched(&outside) && !is_watched(&machine.join("data")) && !is_watched(&machine.join("data/deep")));
    fs::write(linked.join("machine.yaml"), text("linked").replace("1.2.3", "1.2.4")).unwrap();
    let is_new = || async { place.status("linked").is_some_and(|status| status.version.as_str() == "1.2.4") };
    eventually("what a link leads to is followed", is_new).await;
}

#[tokio::test]
async fn built_in_machines_run_and_are_told_apart() {
    let settings = host::built_in::ManagerSettings {
        bucket: "MACHINES".to_owned(),
        key: "machines".to_owned(),
        interval: Duration::from_secs(60),
        manage_interval: Duration::from_secs(60),
        purge_unknown: true,
        begins: host::built_in::Begins::Normally,
    };
    let built_in = host::built_in::definitions(Some(&settings)).unwrap();
    let place = Place::start(Lab::new().await, built_in);
    eventually("the manager", || async { !place.host.reports().is_empty() }).await;
    let report = place.host.reports().remove(0);
    assert_eq!((report.source, report.path.as_path()), (Source::BuiltIn, Path::new("manager")));
    assert_eq!(report.machine.unwrap().state.as_str(), "INITIAL");
    assert_eq!(place.host.transition("manager", "enter_maintenance").await.unwrap().as_str(), "MAINTENANCE");
    place.write("mine", &text("manager"));
    place.problem("mine", "a machine called \"manager\" runs already, from manager; rename one of them").await;
}

#[tokio::test]
async fn a_machine_is_moved_by_name_path_id_or_version_if_that_says_which() {
    let place = Place::new().await;
    place.write("one", &text("one"));
    let status = place.runs("one").await;
    let path = place.directory("one").display().to_string();
    for selector in ["one", status.id.as_str(), path.as_str(), "1.2.3"] {
        assert_eq!(place.host.transition(selector, "go").await.unwrap().as_str(), "B", "{selector}");
        assert_eq!(place.host.transition(selector, "back").await.unwrap().as_str(), "A", "{selector}");
    }
    let refused = place.host.transition("one", "back").await.unwrap_err();
    assert_eq!(refused.to_string(), "transition \"back\" is not valid in state \"A\"; valid are: go");
    place.write("two", &text("two"));
    place.runs("two").await;
    let refused = place.host.transition("1.2.3", "go").await.unwrap_err();
    let two = place.directory("two").display().to_string();
    assert_eq!(refused.to_string(), format!("\"1.2.3\" could be any of {path}, {two}; give the path or the id"));
    assert_eq!(place.host.transition("two", "go").await.unwrap().as_str(), "B");
    let refused = place.host.transition("../one", "go").await.unwrap_err();
    assert_eq!(refused.to_string(), "no machine is called \"../one\"; there are: one, two");
}

#[tokio::test]
async fn stopping_the_host_stops_every_machine() {
    let place = Place::new().await;
    for name in ["one", "two", "three"] {
        place.write(name, &text(name));
        place.runs(name).await;
    }
    within("the stop", place.host.stop()).await;
    within("the end of the task", place.task).await.unwrap();
    assert!(!place.host.answers().await);
    for report in place.host.reports() {
        assert_eq!(report.problem.as_deref(), Some("it has ended unexpectedly; see the log"));
    }
}
