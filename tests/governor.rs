//! The promises of governors, over NATS and over the embedded store: never more holders than the capacity, whoever they
//! are and whatever happens to them; streams made by other means are honoured; nothing that was given up stays behind.

#![cfg(test)]

mod engine;
mod governor_watchers;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures_util::future::join_all;
use machines::governor::{GovernorError, Governors, Left, StoreGovernors};
use machines::kv::{
    self, Claim, ConnectionSettings, CreateDatabase, GovernorSettings, KvError, Owner, Slots, Store, Taken, Target,
};
use machines::names::GovernorName;
use support::daemon::Printed;
use support::nats::NatsServer;
use support::{eventually, within};

const LONG: Duration = Duration::from_secs(3_600);

fn name() -> GovernorName {
    GovernorName::new("UPDATES").unwrap()
}

/// A store of either kind, with what it stands on.
struct World {
    store: Arc<dyn Store>,
    nats: Option<NatsServer>,
    directory: tempfile::TempDir,
}

impl World {
    async fn local() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = ConnectionSettings::local(directory.path().join("kv.db"), CreateDatabase::Yes);
        Self { store: kv::open(&settings).await.unwrap(), nats: None, directory }
    }

    async fn nats() -> Self {
        kv::install_tls_provider();
        let server = NatsServer::start();
        let settings = ConnectionSettings::new(Target::parse(&server.url()).unwrap());
        let store = kv::open(&settings).await.unwrap();
        eventually("a connection", || async { store.connection().connected }).await;
        Self { store, nats: Some(server), directory: tempfile::tempdir().unwrap() }
    }

    async fn both() -> [Self; 2] {
        [Self::local().await, Self::nats().await]
    }

    fn slots(&self) -> Arc<dyn Slots> {
        self.store.slots().unwrap()
    }

    fn governors(&self) -> StoreGovernors {
        StoreGovernors::new(&*self.store)
    }

    async fn add(&self, capacity: u32, expire: Duration) {
        let settings = GovernorSettings { name: name(), capacity, expire, replicas: None, collective: None };
        self.slots().add(&settings).await.unwrap();
    }

    async fn taken(&self) -> u64 {
        self.slots().governor(&name()).await.unwrap().taken
    }

    async fn free(&self, what: &str) {
        eventually(what, || async { self.taken().await == 0 }).await;
    }

    /// The operator's program on this store.
    fn mms(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mms"));
        command.args(words).current_dir(self.directory.path()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("MACHINES_KV", self.store.connection().url);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, words: &[&str]) -> Printed {
        self.mms(words).output().unwrap().into()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Notes itself as running, how many others run, and ends after a while: a directory that is made and removed counts.
const COUNTING: &str = "mkdir running/$$ && ls running | wc -l >> seen && sleep 0.15 && rmdir running/$$";

fn most_seen(path: &Path) -> (usize, usize) {
    let seen = std::fs::read_to_string(path).unwrap();
    let counts: Vec<usize> = seen.lines().map(|line| line.trim().parse().unwrap()).collect();
    (counts.len(), counts.into_iter().max().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_contenders_of_several_processes_never_exceed_a_capacity_of_3() {
    for world in World::both().await {
        world.add(3, LONG).await;
        std::fs::create_dir(world.path("running")).unwrap();
        let programs: Vec<_> = (0..8)
            .map(|_| world.mms(&["governor", "run", "UPDATES", "--", "sh", "-c", COUNTING]).spawn().unwrap())
            .collect();
        let governors = world.governors();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let contend = |index: usize| {
            let (governors, directory, now, most) = (&governors, world.directory.path(), &now, &most);
            async move {
                let slot = governors.enter(&name(), &format!("task {index}"), LONG).await.unwrap();
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let command = tokio::process::Command::new("sh").args(["-c", COUNTING]).current_dir(directory).status();
                assert!(command.await.unwrap().success());
                now.fetch_sub(1, Ordering::SeqCst);
                assert_eq!(slot.leave().await, Left::Held);
            }
        };
        within("everybody's turn", join_all((0..12).map(contend))).await;
        for program in programs {
            let printed = Printed::from(program.wait_with_output().unwrap());
            assert_eq!((printed.code, printed.err.as_str()), (Some(0), ""), "{printed:?}");
        }
        let (count, most_in_all) = most_seen(&world.path("seen"));
        assert_eq!(count, 20);
        assert!(most_in_all <= 3 && most.into_inner() <= 3, "{most_in_all} at once");
        world.free("that all is left").await;
    }
}

#[tokio::test]
async fn a_killed_holder_loses_its_slot_when_it_expires_and_not_before() {
    join_all(World::both().await.map(|world| async move {
        // Long enough for the line that looks before it has passed, on a busy machine too.
        let age = Duration::from_secs(8);
        world.add(1, age).await;
        let begin = Instant::now();
        let mut holder = world.mms(&["governor", "run", "UPDATES", "--", "sleep", "30"]).spawn().unwrap();
        eventually("that it holds the slot", || async { world.taken().await == 1 }).await;
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(world.taken().await, 1, "killed before its slot expired, {:?} after its start", begin.elapsed());
        let slot = within("the slot", world.governors().enter(&name(), "the next", LONG)).await.unwrap();
        // The slot was taken after the holder's start.
        assert!(begin.elapsed() >= age, "{:?}", begin.elapsed());
        assert_eq!(slot.leave().await, Left::Held);
    }))
    .await;
}

#[tokio::test]
async fn a_stream_made_by_hand_is_honoured_with_the_messages_that_others_put_there() {
    let world = World::nats().await;
    let client = async_nats::connect(world.nats.as_ref().unwrap().url()).await.unwrap();
    let jetstream = jetstream::new(client);
    for (governor, subject) in [("UPDATES", "choria.governor.UPDATES"), ("OTHER", "acme.governor.OTHER")] {
        let name = GovernorName::new(governor).unwrap();
        let configuration = jetstream::stream::Config {
            name: format!("GOVERNOR_{governor}"),
            subjects: vec![subject.to_owned()],
            max_messages: 2,
            discard: jetstream::stream::DiscardPolicy::New,
            max_age: Duration::from_secs(300),
            ..Default::default()
        };
        let stream = jetstream.create_stream(configuration).await.unwrap();
        let foreign = jetstream.publish(subject, "another node".into()).await.unwrap().await.unwrap().sequence;
        let slot = world.governors().enter(&name, "this node", Duration::ZERO).await.unwrap();
        let held = world.slots().held(&name).await.unwrap();
        let holders: Vec<&str> = held.iter().map(|slot| slot.holder.as_str()).collect();
        assert_eq!(holders, ["another node", "this node"]);
        let error = world.governors().enter(&name, "a third", Duration::from_millis(300)).await.unwrap_err();
        assert!(matches!(error, GovernorError::Full { .. }), "{error}");
        // Another program's way to leave, and to be full.
        assert!(stream.delete_message(foreign).await.unwrap());
        let third = world.governors().enter(&name, "a third", LONG).await.unwrap();
        let refused = jetstream.publish(subject, "a fourth".into()).await.unwrap().await.unwrap_err();
        assert!(refused.to_string().contains("maximum messages exceeded"), "{refused}");
        assert_eq!((slot.leave().await, third.leave().await), (Left::Held, Left::Held));
        assert_eq!(stream.get_info().await.unwrap().state.messages, 0);
    }
}

#[tokio::test]
async fn what_add_makes_is_the_stream_of_the_reference() {
    let world = World::nats().await;
    let printed = world.run(&["governor", "add", "UPDATES", "3", "10m"]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    let client = async_nats::connect(world.nats.as_ref().unwrap().url()).await.unwrap();
    let stream = jetstream::new(client).get_stream("GOVERNOR_UPDATES").await.unwrap();
    let config = &stream.cached_info().config;
    assert_eq!(config.subjects, ["choria.governor.UPDATES"]);
    assert_eq!((config.max_messages, config.max_age), (3, Duration::from_secs(600)));
    assert_eq!(config.discard, jetstream::stream::DiscardPolicy::New);
    assert!(!config.deny_delete);
}

#[tokio::test]
async fn a_full_governor_is_an_error_after_the_wait_that_names_who_to_ask() {
    for world in World::both().await {
        world.add(1, LONG).await;
        let governors = world.governors();
        let slot = governors.enter(&name(), "the holder", Duration::ZERO).await.unwrap();
        let begin = Instant::now();
        let error = governors.enter(&name(), "late", Duration::from_secs(1)).await.unwrap_err();
        assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
        let message = error.to_string();
        assert!(message.starts_with("could not get a slot of governor \"UPDATES\" within "), "{message}");
        assert!(message.ends_with("all are taken; `mms governor view UPDATES` shows by whom"), "{message}");
        let printed = world.run(&["governor", "run", "UPDATES", "--max-wait", "0", "--", "touch", "ran"]);
        assert_eq!(printed.code, Some(1));
        assert!(printed.err.contains("all are taken"), "{printed:?}");
        assert!(!world.path("ran").exists());
        drop(slot);
        world.free("a dropped slot is left").await;
    }
}

#[tokio::test]
async fn one_who_gives_up_waiting_leaves_no_slot_behind() {
    for world in World::both().await {
        world.add(1, LONG).await;
        let governors = world.governors();
        // Cut off at every moment of the way to a slot, with and without one to be had.
        for round in 0..40u64 {
            let limit = Duration::from_micros(round * 150);
            drop(tokio::time::timeout(limit, governors.enter(&name(), "impatient", LONG)).await);
        }
        let slot = within("the slot", governors.enter(&name(), "patient", LONG)).await.unwrap();
        let name = name();
        let waiting = governors.enter(&name, "waits", LONG);
        assert!(tokio::time::timeout(Duration::from_millis(300), waiting).await.is_err());
        slot.leave().await;
        within("all is left", governors.settle(LONG)).await;
        assert_eq!(world.taken().await, 0);
    }
}

#[tokio::test]
async fn a_publish_whose_answer_was_lost_takes_one_slot_and_not_two() {
    let world = World::nats().await;
    world.add(3, LONG).await;
    let slots = world.slots();
    let mut claim = Claim::new("in doubt");
    let Taken::Slot(first) = slots.take(&name(), &claim).await.unwrap() else { panic!("not taken") };
    // As if the answer had not come: the same attempt again gets the same slot, and it can be found.
    let Taken::Slot(again) = slots.take(&name(), &claim).await.unwrap() else { panic!("not taken") };
    assert_eq!((first, world.taken().await), (again, 1));
    assert_eq!(slots.find(&name(), claim.id()).await.unwrap(), [first]);
    assert_eq!(slots.find(&name(), Claim::new("x").id()).await.unwrap(), Vec::<u64>::new());
    claim.refused();
    assert!(matches!(slots.take(&name(), &claim).await.unwrap(), Taken::Slot(other) if other != first));
    // A slot is freed by its own claim only.
    assert!(!slots.free(&name(), first, Owner::Claim("another")).await.unwrap());
    assert!(slots.free(&name(), first, Owner::Claim(claim.id())).await.unwrap());
    assert!(!slots.free(&name(), first, Owner::Claim(claim.id())).await.unwrap());
}

#[tokio::test]
async fn a_slot_is_left_after_a_server_that_was_away_while_it_was_held() {
    let mut world = World::nats().await;
    world.add(1, LONG).await;
    let slot = world.governors().enter(&name(), "the holder", LONG).await.unwrap();
    world.nats.as_mut().unwrap().stop();
    drop(slot);
    let governors = world.governors();
    let name = name();
    let waiting = governors.enter(&name, "the next", LONG);
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut waiting).await.is_err());
    world.nats.as_mut().unwrap().start_again();
    let slot = within("the slot", waiting).await.unwrap();
    assert_eq!(slot.leave().await, Left::Held);
}

#[tokio::test]
async fn a_governor_that_does_not_exist_is_refused_at_once_with_how_to_make_it() {
    for world in World::both().await {
        let error = world.governors().enter(&name(), "anybody", LONG).await.unwrap_err();
        let message = machines::errors::chain(&error);
        let expected = "could not get a slot of governor \"UPDATES\": governor \"UPDATES\" does not exist; make it with \
                        `mms governor add UPDATES CAPACITY EXPIRE`";
        assert_eq!(message, expected);
        for command in ["view", "reset", "delete"] {
            let printed = world.run(&["governor", command, "UPDATES"]);
            assert_eq!(printed.code, Some(1), "{command}: {printed:?}");
            assert!(printed.err.contains("mms governor add UPDATES"), "{command}: {printed:?}");
        }
    }
}

#[tokio::test]
async fn add_changes_a_governor_and_its_holders_keep_their_slots() {
    for world in World::both().await {
        world.add(2, LONG).await;
        let governors = world.governors();
        let first = governors.enter(&name(), "first", LONG).await.unwrap();
        let second = governors.enter(&name(), "second", LONG).await.unwrap();
        world.add(1, LONG).await;
        let status = world.slots().governor(&name()).await.unwrap();
        assert_eq!((status.capacity, status.taken), (Some(1), 2));
        assert_eq!(first.leave().await, Left::Held);
        let error = governors.enter(&name(), "third", Duration::ZERO).await.unwrap_err();
        assert!(matches!(error, GovernorError::Full { .. }), "{error}");
        world.add(2, LONG).await;
        let third = governors.enter(&name(), "third", LONG).await.unwrap();
        assert_eq!((second.leave().await, third.leave().await), (Left::Held, Left::Held));
    }
}

#[tokio::test]
async fn settings_without_a_meaning_are_refused() {
    for world in World::both().await {
        let good = GovernorSettings { name: name(), capacity: 1, expire: LONG, replicas: None, collective: None };
        for (bad, reason) in [
            (GovernorSettings { capacity: 0, ..good.clone() }, "the capacity must be 1 to 10000"),
            (GovernorSettings { expire: Duration::ZERO, ..good.clone() }, "slots must expire after 1s to 365d"),
            (GovernorSettings { collective: Some("a.>".to_owned()), ..good.clone() }, "the collective must be letters"),
        ] {
            let error = world.slots().add(&bad).await.unwrap_err();
            assert!(matches!(error, KvError::InvalidGovernor { .. }) && error.to_string().contains(reason), "{error}");
        }
        for words in [["UPDATES", "0", "1m"], ["UPDATES", "1", "10ms"], ["UPDATES", "1", "2y"], ["a.b", "1", "1m"]] {
            let printed = world.run(&[&["governor", "add"][..], &words].concat());
            assert_eq!(printed.code, Some(2), "{words:?}: {printed:?}");
        }
    }
}

#[tokio::test]
async fn run_ends_as_its_command_does_and_leaves_the_slot_in_every_case() {
    for world in World::both().await {
        world.add(1, LONG).await;
        let run = |words: &[&str]| world.run(&[&["governor", "run", "UPDATES", "--"], words].concat());
        let printed = run(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
        assert_eq!((printed.code, printed.out.as_str(), printed.err.as_str()), (Some(7), "out\n", "err\n"));
        assert_eq!(run(&["sh", "-c", "kill -KILL $$"]).code, Some(137));
        let printed = run(&["/nonexistent"]);
        assert_eq!(printed.code, Some(1));
        assert!(printed.err.starts_with("error: could not start /nonexistent: "), "{printed:?}");
        assert_eq!(world.taken().await, 0);

        // A signal is passed on; what the command makes of it counts.
        let script = "trap 'echo asked; exit 9' TERM; echo ready > ready; while :; do sleep 0.05; done";
        let words = ["governor", "run", "UPDATES", "--", "sh", "-c", script];
        let program = world.mms(&words).spawn().unwrap();
        eventually("the command", || async { world.path("ready").exists() }).await;
        terminate(&program);
        let printed = Printed::from(program.wait_with_output().unwrap());
        assert_eq!((printed.code, printed.out.as_str()), (Some(9), "asked\n"));
        assert_eq!(world.taken().await, 0);

        // And one that comes while it waits ends the waiting.
        let slot = world.governors().enter(&name(), "the holder", LONG).await.unwrap();
        let program = world.mms(&["governor", "run", "UPDATES", "--", "touch", "ran"]).spawn().unwrap();
        // It listens to signals before it asks; what it asks for can't be seen from outside.
        eventually("that it listens", || async { listens_to_terminate(program.id()) }).await;
        terminate(&program);
        assert_eq!(program.wait_with_output().unwrap().status.code(), Some(143));
        assert!(!world.path("ran").exists());
        slot.leave().await;
        assert_eq!(world.taken().await, 0);
    }
}

fn terminate(program: &std::process::Child) {
    let id = rustix::process::Pid::from_raw(i32::try_from(program.id()).unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
}

fn listens_to_terminate(id: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & (1 << 14) != 0)
}

#[tokio::test]
async fn run_says_when_its_slot_was_taken_from_it() {
    for world in World::both().await {
        world.add(1, LONG).await;
        let words = ["governor", "run", "UPDATES", "--", "sh", "-c", "while ! test -e go; do sleep 0.02; done"];
        let program = world.mms(&words).spawn().unwrap();
        eventually("that it holds the slot", || async { world.taken().await == 1 }).await;
        let sequence = world.slots().held(&name()).await.unwrap()[0].sequence.to_string();
        assert_eq!(world.run(&["governor", "evict", "UPDATES", &sequence]).code, Some(0));
        assert_eq!(world.run(&["governor", "evict", "UPDATES", &sequence]).code, Some(1));
        std::fs::write(world.path("go"), "").unwrap();
        let printed = Printed::from(program.wait_with_output().unwrap());
        assert_eq!(printed.code, Some(0));
        assert!(printed.err.starts_with("warning: the slot was gone before the command ended"), "{printed:?}");
    }
}
