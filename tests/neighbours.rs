//! Machines of one node that follow each other: `subscribe` and `foreign_state_required`.

#![cfg(test)]

mod engine;
mod support;

use std::time::Duration;

use engine::{Lab, Probe, good, settle, watcher};
use machines::machine::runner::Handle;
use machines::machine::watcher::Cause;

/// A machine with one watcher, which works in every state.
fn machine(name: &str, transitions: &str, watcher: &str) -> String {
    format!(
        "name: {name}\nversion: 1.0.0\ninitial_state: DOWN\ntransitions:\n{transitions}\nwatchers:\n  - name: it\n    \
         type: exec\n{watcher}"
    )
}

const UP_AND_DOWN: &str =
    "  - {name: start, from: [DOWN], destination: UP}\n  - {name: stop, from: [UP], destination: DOWN}";

fn database() -> String {
    machine("database", UP_AND_DOWN, "")
}

fn state(handle: &Handle) -> String {
    handle.remote.status().state.to_string()
}

#[tokio::test(start_paused = true)]
async fn a_transition_follows_one_of_another_machine_wherever_it_is_possible() {
    let lab = Lab::new().await;
    let follower = machine(
        "website",
        "  - {name: open, from: [DOWN], destination: UP, subscribe: [{machine_name: database, event: start}]}\n  - \
         {name: close, from: [UP], destination: DOWN, subscribe: [{machine_name: database, event: stop}]}",
        "",
    );
    let probes = [Probe::new(|_| good()), Probe::new(|_| good())];
    let follower = lab.spawn(&follower, &[&probes[0]]);
    settle().await;
    // It starts later than the one that follows it.
    let database = lab.spawn(&database(), &[&probes[1]]);
    settle().await;
    assert_eq!(state(&follower), "DOWN", "a start is no transition");
    database.remote.transition("start").await.unwrap();
    settle().await;
    assert_eq!(state(&follower), "UP");
    follower.remote.transition("close").await.unwrap();
    database.remote.transition("stop").await.unwrap();
    settle().await;
    assert_eq!(state(&follower), "DOWN", "not possible, and no harm");
    database.remote.transition("start").await.unwrap();
    settle().await;
    assert_eq!(state(&follower), "UP");
}

#[tokio::test(start_paused = true)]
async fn machines_that_follow_each_other_in_a_circle_are_slowed() {
    let lab = Lab::new().await;
    let follow = |name: &str, other: &str| {
        machine(
            name,
            &format!(
                "  - {{name: go, from: [DOWN], destination: DOWN, subscribe: [{{machine_name: {other}, event: go}}]}}"
            ),
            "",
        )
    };
    let probes = [Probe::new(|_| good()), Probe::new(|_| good())];
    let mut events = lab.events();
    let one = lab.spawn(&follow("one", "two"), &[&probes[0]]);
    let _two = lab.spawn(&follow("two", "one"), &[&probes[1]]);
    settle().await;
    one.remote.transition("go").await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let made = events.transitions().len();
    assert!((100..=300).contains(&made), "{made} transitions in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn a_watcher_works_only_while_the_required_states_hold() {
    let lab = Lab::new().await;
    let text = machine(
        "website",
        UP_AND_DOWN,
        "    interval: 10s\n    foreign_state_required: [{machine_name: database, state: UP}, {machine_name: cache, \
         state: UP}]\n",
    );
    let (probe, other) = (Probe::new(|_| good()), Probe::new(|_| good()));
    let website = lab.spawn(&text, &[&probe]);
    let database = lab.spawn(&database(), &[&other]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    probe.signal();
    settle().await;
    assert_eq!(probe.count(), 0);
    let status = watcher(&website.remote.status(), "it");
    assert_eq!((status.active, status.waits_for.as_deref()), (false, Some("database in UP, cache in UP")));

    database.remote.transition("start").await.unwrap();
    settle().await;
    assert_eq!(watcher(&website.remote.status(), "it").waits_for.as_deref(), Some("cache in UP"));
    let cache = lab.spawn(&machine("cache", UP_AND_DOWN, "").replace("state: DOWN", "state: UP"), &[&other]);
    settle().await;
    assert_eq!(probe.count(), 1, "it works at once");
    assert_eq!(probe.calls()[0].cause, Cause::Entered);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(probe.count() >= 6, "and on its interval");
    assert!(watcher(&website.remote.status(), "it").active);

    let before = probe.count();
    cache.stop().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(probe.count(), before, "a machine that has ended is in no state");
    assert_eq!(watcher(&website.remote.status(), "it").waits_for.as_deref(), Some("cache in UP"));
}

#[tokio::test(start_paused = true)]
async fn a_timer_is_cancelled_when_a_required_state_is_left() {
    let lab = Lab::new().await;
    let text = "name: alarm\nversion: 1.0.0\ninitial_state: QUIET\ntransitions:\n  - {name: ring, from: [QUIET], \
                destination: LOUD}\n  - {name: hush, from: [LOUD], destination: QUIET}\nwatchers:\n  - name: it\n    \
                type: timer\n    fail_transition: ring\n    state_match: [QUIET]\n    foreign_state_required: \
                [{machine_name: database, state: DOWN}]\n    properties: {timer: 5m}\n";
    let other = Probe::new(|_| good());
    let alarm = lab.spawn_real(text);
    let database = lab.spawn(&database(), &[&other]);
    tokio::time::sleep(Duration::from_secs(240)).await;
    database.remote.transition("start").await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(state(&alarm), "QUIET");
    assert_eq!(watcher(&alarm.remote.status(), "it").outcome, "stopped");
    database.remote.transition("stop").await.unwrap();
    tokio::time::sleep(Duration::from_secs(290)).await;
    assert_eq!(state(&alarm), "QUIET", "it began anew");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(state(&alarm), "LOUD");
}
