//! The promises of watchers and of sync that act under a governor.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use machines::archive::{FetchSettings, Fetcher};
use machines::governor::{GovernorError, Governors, Slot, StoreGovernors};
use machines::journal::Journal;
use machines::kv::{GovernorSettings, Slots};
use machines::machine::runner::Handle;
use machines::machine::status::WatcherStatus;
use machines::machine::watcher::Services;
use machines::names::{GovernorName, Identity, MachineName, Version};
use machines::node::Node;
use machines::process::{Command, Commands, Ended, ProcessError};
use machines::spec::{Trust, pack};
use machines::sync::{Pass, Purge, Reconciler, Removals};

use crate::engine::{Lab, watcher};
use crate::support::eventually;

const LONG: Duration = Duration::from_secs(3_600);

fn name() -> GovernorName {
    GovernorName::new("UPDATES").unwrap()
}

struct Governed {
    lab: Lab,
    governors: StoreGovernors,
    slots: Arc<dyn Slots>,
}

impl Governed {
    async fn new() -> Self {
        let lab = Lab::new().await;
        let governors = StoreGovernors::new(&*lab.services.store);
        let slots = lab.services.store.slots().unwrap();
        let settings = GovernorSettings { name: name(), capacity: 1, expire: LONG, replicas: None, collective: None };
        slots.add(&settings).await.unwrap();
        Self { lab, governors, slots }
    }

    async fn hold(&self) -> Slot {
        self.governors.enter(&name(), "the test", LONG).await.unwrap()
    }

    async fn holders(&self) -> Vec<String> {
        self.slots.held(&name()).await.unwrap().into_iter().map(|slot| slot.holder).collect()
    }

    async fn free(&self) {
        eventually("that all is left", || async { self.holders().await.is_empty() }).await;
    }

    fn spawn(&self, kind: &str, properties: &str) -> Handle {
        let properties: String = properties.lines().map(|line| format!("      {line}\n")).collect();
        self.lab.spawn_real(&format!(
            "name: runner\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: good, from: [A], destination: \
             GOOD}}\n  - {{name: bad, from: [A], destination: BAD}}\nwatchers:\n  - name: run\n    type: {kind}\n    \
             state_match: [A]\n    success_transition: good\n    fail_transition: bad\n    \
             properties:\n{properties}      governor: UPDATES\n"
        ))
    }

    /// An archive whose watcher puts it in place, as properties.
    fn archive(&self) -> String {
        use std::os::unix::fs::PermissionsExt as _;
        for directory in ["out", "target", "source"] {
            std::fs::create_dir(self.lab.path(directory)).unwrap();
        }
        std::fs::set_permissions(self.lab.path("target"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(self.lab.path("source/run.sh"), "x").unwrap();
        let (tool, version) = (MachineName::new("tool").unwrap(), Version::new("1.0.0").unwrap());
        let (source, out) = (self.lab.path("source"), self.lab.path("out"));
        let built = machines::archive::build(&source, &tool, &version, &out, &Default::default()).unwrap();
        format!(
            "source: file://{}\nchecksum: {}\ncreates: tool\ntarget: {}\nverify_checksum: {}\ntimeout: 5s\n",
            built.path.display(),
            built.checksum,
            self.lab.path("target").display(),
            built.verify_checksum
        )
    }
}

async fn checked(handle: &Handle) -> WatcherStatus {
    eventually("the end of the check", || async { watcher(&handle.remote.status(), "run").checks > 0 }).await;
    watcher(&handle.remote.status(), "run")
}

/// Time for what must not happen.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(400)).await;
}

/// Commands that take almost all of their time, and see who holds a slot meanwhile.
struct Slow {
    slots: Arc<dyn Slots>,
    seen: Mutex<Vec<String>>,
}

#[async_trait]
impl Commands for Slow {
    async fn run(&self, command: Command) -> Result<Ended, ProcessError> {
        tokio::time::sleep(command.timeout - Duration::from_millis(1)).await;
        let held = self.slots.held(&name()).await.unwrap().into_iter().map(|slot| slot.holder);
        self.seen.lock().unwrap().extend(held);
        Ok(Ended {
            exit_code: Some(0),
            failure: None,
            standard_output: Vec::new(),
            output: Vec::new(),
            truncated: false,
        })
    }
}

#[tokio::test(start_paused = true)]
async fn exec_runs_its_command_under_a_slot_and_the_waiting_is_not_its_time() {
    let mut governed = Governed::new().await;
    let slow = Arc::new(Slow { slots: Arc::clone(&governed.slots), seen: Mutex::default() });
    let commands: Arc<dyn Commands> = Arc::clone(&slow) as _;
    governed.lab.services = Arc::new(Services { commands, ..Services::clone(&governed.lab.services) });
    let slot = governed.hold().await;
    let handle = governed.spawn("exec", "command: sleep 1\ntimeout: 1s\n");
    tokio::time::sleep(Duration::from_secs(240)).await;
    assert_eq!(watcher(&handle.remote.status(), "run").checks, 0);
    slot.leave().await;
    let status = checked(&handle).await;
    assert_eq!((status.outcome, status.last_error), ("success", None));
    assert_eq!(*slow.seen.lock().unwrap(), ["runner#run @ node1.example.net"]);
    assert_eq!(handle.remote.status().state.as_str(), "GOOD");
    governed.free().await;
}

#[tokio::test]
async fn exec_fails_when_no_slot_is_free_in_time() {
    let governed = Governed::new().await;
    let _slot = governed.hold().await;
    let handle = governed.spawn("exec", "command: touch ran\ngovernor_timeout: 1s\n");
    let status = checked(&handle).await;
    let message = status.last_error.unwrap();
    assert!(message.contains("governor \"UPDATES\" within 1") && message.contains("all are taken"), "{message}");
    assert_eq!((status.outcome, handle.remote.status().state.as_str()), ("error", "BAD"));
    assert!(!governed.lab.machine_directory("runner").join("ran").exists());
}

#[tokio::test]
async fn archive_fails_when_no_slot_is_free_in_time() {
    let governed = Governed::new().await;
    let _slot = governed.hold().await;
    let handle = governed.spawn("archive", &format!("{}governor_timeout: 1s\n", governed.archive()));
    let status = checked(&handle).await;
    let message = status.last_error.unwrap();
    assert!(message.contains("governor \"UPDATES\" within 1") && message.contains("all are taken"), "{message}");
    assert_eq!((status.outcome, handle.remote.status().state.as_str()), ("error", "BAD"));
    assert!(!governed.lab.path("target").join("tool").exists());
}

#[tokio::test]
async fn exec_goes_on_with_a_clear_error_when_its_governor_does_not_exist() {
    let governed = Governed::new().await;
    governed.slots.delete(&name()).await.unwrap();
    let handle = governed.spawn("exec", "command: touch ran\n");
    let message = checked(&handle).await.last_error.unwrap();
    assert!(message.ends_with("make it with `mms governor add UPDATES CAPACITY EXPIRE`"), "{message}");
    assert_eq!(handle.remote.status().state.as_str(), "BAD");
}

/// Governors that count who asks.
struct Counting {
    inner: StoreGovernors,
    asked: AtomicUsize,
}

#[async_trait]
impl Governors for Counting {
    async fn enter(&self, name: &GovernorName, who: &str, patience: Duration) -> Result<Slot, GovernorError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.inner.enter(name, who, patience).await
    }
}

#[tokio::test]
async fn a_state_that_is_left_and_a_machine_that_is_stopped_end_the_waiting() {
    let mut governed = Governed::new().await;
    let counting = Arc::new(Counting { inner: governed.governors.clone(), asked: AtomicUsize::new(0) });
    let governors: Arc<dyn Governors> = Arc::clone(&counting) as _;
    governed.lab.services = Arc::new(Services { governors, ..Services::clone(&governed.lab.services) });
    let asked = |count| {
        let asked = &counting.asked;
        eventually("that it waits", move || async move { asked.load(Ordering::SeqCst) == count })
    };
    let slot = governed.hold().await;
    let handle = governed.spawn("exec", "command: touch ran\n");
    asked(1).await;
    handle.remote.transition("bad").await.unwrap();
    let status = checked(&handle).await;
    assert_eq!((status.outcome, status.last_error), ("skipped", None));
    handle.stop().await;
    let handle = governed.spawn("exec", "command: touch ran\n");
    asked(2).await;
    crate::within("the stop", handle.stop()).await;
    slot.leave().await;
    governed.governors.settle(LONG).await;
    assert_eq!(governed.holders().await, Vec::<String>::new());
    assert!(!governed.lab.machine_directory("runner").join("ran").exists());
}

#[tokio::test]
async fn a_state_that_is_left_before_the_waiting_begins_ends_it_too() {
    let governed = Governed::new().await;
    let slot = governed.hold().await;
    let handle = governed.spawn("exec", "command: touch ran\n");
    // The machine takes this in the same breath in which it starts the check, which has not begun then.
    handle.remote.transition("good").await.unwrap();
    slot.leave().await;
    assert_eq!(checked(&handle).await.outcome, "skipped");
    assert!(!governed.lab.machine_directory("runner").join("ran").exists());
    governed.free().await;
}

#[tokio::test]
async fn a_machine_that_stops_while_its_command_runs_leaves_the_slot() {
    let governed = Governed::new().await;
    let handle = governed.spawn("exec", "command: sleep 30\ntimeout: 1m\n");
    eventually("its slot", || async { !governed.holders().await.is_empty() }).await;
    crate::within("the stop", handle.stop()).await;
    governed.free().await;
}

#[tokio::test]
async fn archive_fetches_under_a_slot_and_verifies_without_one() {
    let governed = Governed::new().await;
    let slot = governed.hold().await;
    let properties = governed.archive();
    let handle = governed.spawn("archive", &properties);
    a_moment().await;
    assert!(!governed.lab.path("target/tool").exists());
    slot.leave().await;
    assert_eq!(checked(&handle).await.outcome, "downloaded");
    governed.free().await;
    handle.stop().await;
    let _slot = governed.hold().await;
    let handle = governed.spawn("archive", &properties);
    assert_eq!(checked(&handle).await.outcome, "verified");
}

#[test]
fn a_governor_that_can_not_be_is_refused_before_anything_runs() {
    let text = |properties: &str| {
        let text = "name: runner\nversion: 1.0.0\ninitial_state: A\ntransitions: [{name: a, from: [A], destination: \
                    A}]\nwatchers:\n  - name: run\n    type: exec\n    properties: {command: x, ";
        crate::engine::build(&format!("{text}{properties}}}\n")).map(drop).unwrap_err()
    };
    assert!(text("governor: a.b").contains("is not a valid governor name: it has 1 to 128 letters"));
    for time in ["0s", "13h"] {
        let message = text(&format!("governor: a, governor_timeout: {time}"));
        assert!(message.contains("governor_timeout must be 1s to 12h"), "{message}");
    }
}

async fn reconcile(node: &Reconciler, entries: &serde_json::Value) -> Pass {
    let envelope = pack(entries.to_string().as_bytes(), None).unwrap().envelope;
    node.reconcile(envelope.as_bytes(), &Trust::Anyone, Purge::Unknown, Removals::Guarded).await
}

#[tokio::test]
async fn an_entry_with_a_governor_is_installed_under_its_slot_and_holds_up_no_other() {
    let governed = Governed::new().await;
    let lab = &governed.lab;
    let entry = |name: &str, governor: &str| {
        let source = lab.path(&format!("source-{name}"));
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("machine.yaml"), format!("name: {name}\n")).unwrap();
        let (machine, version) = (MachineName::new(name).unwrap(), Version::new("1.0.0").unwrap());
        let out = lab.path(&format!("out-{name}"));
        std::fs::create_dir(&out).unwrap();
        let built = machines::archive::build(&source, &machine, &version, &out, &Default::default()).unwrap();
        serde_json::json!({"name": name, "source": format!("file://{}", built.path.display()), "governor": governor,
            "checksum": built.checksum, "verify_checksum": built.verify_checksum})
    };
    let entries = serde_json::json!([
        entry("one", "UPDATES"),
        entry("two", "UPDATES"),
        entry("lost", "NONE"),
        entry("plain", ""),
    ]);
    let node = Node::new(Identity::new("web1").unwrap(), serde_json::json!({}), Vec::new().into());
    let mut settings = machines::sync::Settings::new(lab.path("state"));
    settings.parallel_work = std::num::NonZeroUsize::MIN;
    std::fs::create_dir(lab.path("state")).unwrap();
    let journal = Journal::open(&lab.path("state/state.db")).unwrap();
    let fetcher = Arc::new(Fetcher::new(FetchSettings::default(), None).unwrap());
    let governing: Arc<dyn Governors> = Arc::new(governed.governors.clone());
    let node = Reconciler::open_governed(settings, Arc::new(node), fetcher, journal, Some(governing)).unwrap();
    let installed = |name: &str| lab.path("state/machines").join(name).exists();

    let slot = governed.hold().await;
    let pass = reconcile(&node, &entries);
    let watch = async {
        eventually("what needs no slot", || async { installed("plain") }).await;
        a_moment().await;
        assert!(!installed("one") && !installed("two"));
        slot.leave().await;
    };
    let (pass, ()) = crate::within("the pass", async { tokio::join!(pass, watch) }).await;
    assert!(installed("one") && installed("two") && !installed("lost"));
    let lost = pass.machines.iter().find(|machine| machine.name == "lost").unwrap();
    let error = lost.result.as_ref().unwrap_err();
    assert!(error.starts_with("could not install \"lost\": could not get a slot of governor \"NONE\""), "{error}");
    assert!(error.ends_with("`mms governor add NONE CAPACITY EXPIRE`"), "{error}");
    assert!(pass.retry_after.is_some());
    assert!(node.status().machines["lost"].last_error.as_ref().is_some_and(|shown| shown == error));
    governed.free().await;

    // A pass that is dropped while it waits leaves nothing, and what is in place needs no slot.
    machines::fs::remove_file(&lab.path("state/machines/one")).unwrap();
    let slot = governed.hold().await;
    assert!(tokio::time::timeout(Duration::from_millis(500), reconcile(&node, &entries)).await.is_err());
    slot.leave().await;
    governed.governors.settle(LONG).await;
    assert_eq!(governed.holders().await, Vec::<String>::new());
    let store = lab.path("state/store");
    drop(node);
    machines::fs::remove_tree(&store).unwrap();
}
