//! The promises of a running machine: when its watchers are checked, what their verdicts do, and what becomes of its
//! data. In: machines from text whose watchers do as the test says, on a clock that moves only when nothing else can.
//! Time moves only when everything waits, so a machine that turned in circles would hang these tests.

#![cfg(test)]

mod engine;
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::{Lab, Probe, Step, fail, good, settle, success, watcher};
use machines::machine::data::{Change, Item};
use machines::machine::watcher::{Cause, Fire, Report};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Two states; `watchers` are lines under `watchers:`.
fn machine(watchers: &str) -> String {
    format!(
        "name: probe\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: go, from: [A], destination: B}}\n  \
         - {{name: back, from: [B], destination: A}}\nwatchers:\n{watchers}"
    )
}

fn close(time: Duration, expected: Duration) -> bool {
    time >= expected && time < expected + Duration::from_millis(20)
}

fn set(name: &str, value: serde_json::Value) -> Vec<Change> {
    vec![Change::Set(name.to_owned(), Item::new(value))]
}

#[tokio::test(start_paused = true)]
async fn a_watcher_is_checked_on_entry_then_on_its_interval_with_the_first_repetition_spread() {
    let lab = Lab::new().await;
    let mut firsts = Vec::new();
    for _ in 0..50 {
        let probe = Probe::new(|_| good());
        let handle = lab.spawn(&machine("  - {name: it, type: probe, interval: 1m}\n"), &[&probe]);
        sleep(MINUTE * 5).await;
        handle.stop().await;
        let calls = probe.calls();
        assert_eq!(calls[0].cause, Cause::Entered);
        assert!(calls[1..].iter().all(|call| call.cause == Cause::Interval));
        let gaps = probe.gaps();
        assert!(gaps[0] >= MINUTE / 2 && gaps[0] <= MINUTE + SECOND, "{gaps:?}");
        assert!(gaps.len() >= 4 && gaps[1..].iter().all(|gap| close(*gap, MINUTE)), "{gaps:?}");
        firsts.push(gaps[0]);
    }
    firsts.sort_unstable();
    firsts.dedup();
    assert!(firsts.len() > 40, "the first repetitions are spread: {firsts:?}");
    assert!(*firsts.last().unwrap() - firsts[0] > SECOND * 10, "{firsts:?}");
}

#[tokio::test(start_paused = true)]
async fn without_an_interval_it_is_checked_on_entry_only() {
    let lab = Lab::new().await;
    let probe = Probe::new(|_| good());
    let handle = lab.spawn(&machine("  - {name: it, type: probe}\n"), &[&probe]);
    sleep(MINUTE * 60).await;
    assert_eq!(probe.count(), 1);
    handle.remote.transition("go").await.unwrap();
    sleep(MINUTE * 60).await;
    assert_eq!(probe.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_report_may_ask_for_an_earlier_check() {
    let lab = Lab::new().await;
    let probe = Probe::new(|before| {
        let again = (before < 3).then_some(SECOND * 7);
        Step::Report(Report { again, ..Report::new("good") })
    });
    let handle = lab.spawn(&machine("  - {name: it, type: probe, interval: 1m}\n"), &[&probe]);
    sleep(MINUTE * 2).await;
    handle.stop().await;
    let gaps = probe.gaps();
    assert!(gaps[..3].iter().all(|gap| close(*gap, SECOND * 7)), "{gaps:?}");
    assert!(probe.calls()[1..4].iter().all(|call| call.cause == Cause::Again));
    assert!(close(gaps[3], MINUTE), "then the interval counts again: {gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn verdicts_move_the_machine_and_events_tell_of_it() {
    let lab = Lab::new().await;
    let mut events = lab.events();
    let there = Probe::new(|_| success());
    let again = Probe::new(|_| Step::After(SECOND, Report::new("good").fire(Fire::Fail)));
    let text = machine(
        "  - {name: there, type: probe, state_match: [A], success_transition: go}\n  \
         - {name: again, type: probe, state_match: [B], fail_transition: back}\n",
    );
    let handle = lab.spawn(&text, &[&there, &again]);
    settle().await;
    assert_eq!(handle.remote.status().state.as_str(), "B");
    assert_eq!(handle.remote.status().available_transitions[0].as_str(), "back");
    sleep(SECOND + Duration::from_millis(10)).await;
    assert_eq!((there.count(), again.count()), (2, 2), "each was checked when its state was entered");
    let seen = events.drain();
    let data = &seen[0]["data"];
    assert_eq!((&data["transition"], &data["from_state"], &data["to_state"]), (&json!("go"), &json!("A"), &json!("B")));
    assert_eq!(seen[1]["data"]["transition"], "back");
}

#[tokio::test(start_paused = true)]
async fn a_transition_that_is_not_valid_here_changes_nothing_and_the_machine_goes_on() {
    let lab = Lab::new().await;
    let mut events = lab.events();
    let probe = Probe::new(|_| success());
    let text = machine("  - {name: it, type: probe, interval: 10s, success_transition: back}\n");
    let handle = lab.spawn(&text, &[&probe]);
    sleep(MINUTE).await;
    assert!(handle.remote.is_running());
    assert!(probe.count() >= 5);
    let status = handle.remote.status();
    assert_eq!((status.state.as_str(), watcher(&status, "it").last_error), ("A", None));
    assert!(events.transitions().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_moves_in_circles_is_slowed_to_one_transition_in_five_seconds() {
    let lab = Lab::new().await;
    let mut events = lab.events();
    let there = Probe::new(|_| success());
    let again = Probe::new(|_| success());
    let text = machine(
        "  - {name: there, type: probe, state_match: [A], success_transition: go}\n  \
         - {name: again, type: probe, state_match: [B], success_transition: back}\n",
    );
    let handle = lab.spawn(&text, &[&there, &again]);
    sleep(MINUTE * 2).await;
    events.drain();
    sleep(MINUTE).await;
    let transitions = events.transitions().len();
    assert!((11..=13).contains(&transitions), "{transitions} transitions in a minute");
    // The brake holds up no person.
    let state = handle.remote.status().state.to_string();
    let begin = Instant::now();
    handle.remote.transition(if state == "A" { "go" } else { "back" }).await.unwrap();
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn changed_data_is_seen_by_its_readers_at_once_and_by_nobody_else() {
    let lab = Lab::new().await;
    let writer =
        Probe::new(|before| Step::Report(Report { changes: set("a", json!(before / 2)), ..Report::new("good") }));
    let reader = Probe::reading("a", |_| good());
    let other = Probe::reading("b", |_| good());
    let text = machine(
        "  - {name: writer, type: probe, interval: 1m}\n  - {name: reader, type: probe}\n  \
         - {name: other, type: probe}\n",
    );
    let handle = lab.spawn(&text, &[&writer, &reader, &other]);
    sleep(MINUTE * 4 + SECOND).await;
    handle.stop().await;
    let seen: Vec<_> = reader.calls().iter().filter_map(|call| Some(call.data.get("a")?.value.clone())).collect();
    assert_eq!(seen[..2], [json!(0), json!(1)], "a value that is put again is no change");
    let second_change = writer.calls()[2].at;
    assert!(reader.calls().iter().any(|call| call.at == second_change && call.cause == Cause::Signal));
    assert_eq!(other.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_follows_another_sees_its_data() {
    let lab = Lab::new().await;
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    let probe = Probe::new(move |before| match before {
        0 => Step::When(Arc::clone(&opened), Report { changes: set("a", json!(1)), ..Report::new("good") }),
        _ => good(),
    });
    let handle = lab.spawn(&machine("  - {name: it, type: probe}\n"), &[&probe]);
    settle().await;
    probe.signal();
    settle().await;
    gate.notify_one();
    settle().await;
    assert_eq!(probe.count(), 2);
    assert_eq!(probe.calls()[1].data["a"].value, 1, "or the change would count a second time");
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn data_survives_a_restart() {
    let lab = Lab::new().await;
    let writer = Probe::new(|_| Step::Report(Report { changes: set("a", json!({"b": [1]})), ..Report::new("good") }));
    let text = machine("  - {name: it, type: probe}\n");
    let handle = lab.spawn(&text, &[&writer]);
    settle().await;
    handle.stop().await;
    assert_eq!(lab.saved("probe"), Some(json!({"a": {"b": [1]}})));
    let reader = Probe::new(|_| good());
    let handle = lab.spawn(&text, &[&reader]);
    settle().await;
    assert_eq!(reader.calls()[0].data["a"].value, json!({"b": [1]}));
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn data_that_could_not_be_written_is_shown_and_written_later() {
    let lab = Lab::new().await;
    std::fs::write(lab.path("data"), "in the way").unwrap();
    let writer = Probe::new(|_| Step::Report(Report { changes: set("a", json!(1)), ..Report::new("good") }));
    let handle = lab.spawn(&machine("  - {name: it, type: probe}\n"), &[&writer]);
    sleep(MINUTE).await;
    let problem = handle.remote.status().problem.clone().unwrap();
    assert!(problem.contains("data"), "{problem}");
    std::fs::remove_file(lab.path("data")).unwrap();
    sleep(SECOND * 30).await;
    assert_eq!(handle.remote.status().problem, None);
    assert_eq!(lab.saved("probe"), Some(json!({"a": 1})));
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn more_data_than_fits_is_refused_and_shown() {
    let lab = Lab::new().await;
    let writer = Probe::new(|before| {
        let size = if before == 0 { 9 * 1024 * 1024 } else { 9 };
        Step::Report(Report { changes: set("big", json!("x".repeat(size))), ..Report::new("good") })
    });
    let handle = lab.spawn(&machine("  - {name: it, type: probe, interval: 1m}\n"), &[&writer]);
    settle().await;
    let problem = handle.remote.status().problem.clone().unwrap();
    assert!(problem.contains("\"big\" was not stored"), "{problem}");
    sleep(MINUTE + SECOND).await;
    assert_eq!(handle.remote.status().problem, None);
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn splay_start_spreads_the_start_and_nothing_happens_before_it() {
    let lab = Lab::new().await;
    let mut starts = Vec::new();
    for number in 0..40 {
        let text = machine("  - {name: it, type: probe}\n").replace("initial_state", "splay_start: 100\ninitial_state");
        let probe = Probe::new(|_| good());
        let handle = lab.spawn(&text, &[&probe]);
        if number == 0 {
            let refused = handle.remote.transition("go").await.unwrap_err();
            assert_eq!(refused.to_string(), "machine \"probe\" does not run, or waits for its start");
        }
        sleep(SECOND * 101).await;
        starts.push(probe.calls()[0].at);
        handle.stop().await;
    }
    starts.sort_unstable();
    assert!(starts[0] < SECOND * 40 && starts[39] > SECOND * 60, "{starts:?}");
    let text = machine("  - {name: it, type: probe}\n").replace("initial_state", "splay_start: 100\ninitial_state");
    let probe = Probe::new(|_| good());
    let begin = Instant::now();
    lab.spawn(&text, &[&probe]).stop().await;
    assert_eq!((begin.elapsed(), probe.count()), (Duration::ZERO, 0), "a machine that waits can be stopped");
}

#[tokio::test(start_paused = true)]
async fn a_transition_by_hand_answers_with_the_new_state_or_with_what_is_possible() {
    let lab = Lab::new().await;
    let probe = Probe::new(|_| good());
    let handle = lab.spawn(&machine("  - {name: it, type: probe, state_match: [B]}\n"), &[&probe]);
    settle().await;
    assert_eq!(probe.count(), 0);
    assert_eq!(handle.remote.transition("go").await.unwrap().as_str(), "B");
    settle().await;
    assert_eq!(probe.calls()[0].state, "B");
    let refused = handle.remote.transition("go").await.unwrap_err();
    assert_eq!(refused.to_string(), "transition \"go\" is not valid in state \"B\"; valid are: back");
    let refused = handle.remote.transition("fly").await.unwrap_err();
    assert_eq!(refused.to_string(), "there is no transition \"fly\"; there are: go, back");
    let remote = handle.remote.clone();
    handle.stop().await;
    assert!(!remote.is_running());
    let refused = remote.transition("back").await.unwrap_err();
    assert_eq!(refused.to_string(), "machine \"probe\" does not run, or waits for its start");
}

#[tokio::test(start_paused = true)]
async fn a_verdict_on_a_state_that_was_left_does_not_fire_even_if_the_machine_came_back() {
    for come_back in [false, true] {
        let lab = Lab::new().await;
        let mut events = lab.events();
        let gate = Arc::new(Notify::new());
        let opened = Arc::clone(&gate);
        let probe = Probe::new(move |before| match before {
            0 => Step::When(Arc::clone(&opened), Report::new("good").fire(Fire::Success)),
            _ => good(),
        });
        let text = machine("  - {name: it, type: probe, state_match: [A], success_transition: go}\n");
        let handle = lab.spawn(&text, &[&probe]);
        settle().await;
        handle.remote.transition("go").await.unwrap();
        if come_back {
            handle.remote.transition("back").await.unwrap();
        }
        events.drain();
        gate.notify_one();
        settle().await;
        assert!(events.transitions().is_empty());
        assert_eq!(probe.not_fired.load(Ordering::SeqCst), 1, "the watcher is told");
        assert_eq!(probe.count(), if come_back { 2 } else { 1 }, "the new visit has a check of its own");
        handle.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_watcher_of_both_states_may_end_its_check_in_the_second() {
    let lab = Lab::new().await;
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    let probe = Probe::new(move |before| match before {
        0 => Step::When(Arc::clone(&opened), Report::new("good").fire(Fire::Success)),
        _ => good(),
    });
    let handle = lab.spawn(&machine("  - {name: it, type: probe, success_transition: back}\n"), &[&probe]);
    settle().await;
    handle.remote.transition("go").await.unwrap();
    gate.notify_one();
    settle().await;
    assert_eq!(handle.remote.status().state.as_str(), "A");
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_transition_that_waits_for_the_brake_is_dropped_when_its_state_is_left() {
    let lab = Lab::new().await;
    let probe = Probe::new(|_| fail());
    let text = machine("  - {name: it, type: probe, state_match: [B], fail_transition: back}\n");
    let handle = lab.spawn(&text, &[&probe]);
    // Uses up the free moves: each `go` is followed by the watcher's `back`.
    for _ in 0..4 {
        handle.remote.transition("go").await.unwrap();
        settle().await;
        if handle.remote.status().state.as_str() == "B" {
            break;
        }
    }
    assert_eq!(handle.remote.status().state.as_str(), "B", "the brake holds `back`");
    handle.remote.transition("back").await.unwrap();
    handle.remote.transition("go").await.unwrap();
    sleep(MINUTE).await;
    assert_eq!(handle.remote.status().state.as_str(), "A", "the verdict on the new visit counts");
    assert_eq!(probe.not_fired.load(Ordering::SeqCst), 1, "that on the old one does not");
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn checks_of_a_watcher_never_overlap_and_many_calls_make_one_more() {
    let lab = Lab::new().await;
    let probe = Probe::new(|_| Step::After(SECOND * 90, Report::new("good")));
    let handle = lab.spawn(&machine("  - {name: it, type: probe, interval: 1h}\n"), &[&probe]);
    settle().await;
    for _ in 0..100 {
        probe.signal();
        settle().await;
    }
    sleep(MINUTE * 20).await;
    assert_eq!(probe.count(), 2);
    assert!(close(probe.gaps()[0], SECOND * 90), "{:?}", probe.gaps());
    assert_eq!(probe.most_at_once.load(Ordering::SeqCst), 1);
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_check_that_takes_longer_than_its_interval_is_followed_by_one_and_turns_no_circles() {
    let lab = Lab::new().await;
    let slow = Probe::new(|_| Step::After(SECOND * 90, Report::new("good")));
    let busy = Probe::new(|_| good());
    let text = machine("  - {name: slow, type: probe, interval: 10s}\n  - {name: busy, type: probe, interval: 1s}\n");
    let handle = lab.spawn(&text, &[&slow, &busy]);
    sleep(SECOND * 901).await;
    assert_eq!(slow.count(), 11);
    assert_eq!(slow.most_at_once.load(Ordering::SeqCst), 1);
    assert!((900..=903).contains(&busy.count()), "{}", busy.count());
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_check_that_panics_or_takes_too_long_is_an_error_and_the_next_one_runs() {
    let lab = Lab::new().await;
    let probe = Probe::limited(SECOND * 5, |before| match before {
        0 => Step::Panic,
        1 => Step::After(MINUTE * 9, Report::new("good")),
        _ => good(),
    });
    let text = machine("  - {name: it, type: probe, interval: 1m, state_match: [A]}\n");
    let handle = lab.spawn(&text, &[&probe]);
    settle().await;
    let status = watcher(&handle.remote.status(), "it");
    assert_eq!(status.last_error.as_deref(), Some("defect in the watcher: it panicked; please report it"));
    sleep(SECOND * 66).await;
    let status = watcher(&handle.remote.status(), "it");
    assert_eq!(status.last_error.as_deref(), Some("the check took longer than 5s"));
    assert_eq!(probe.running(), 0, "it was cancelled");
    sleep(MINUTE).await;
    let status = watcher(&handle.remote.status(), "it");
    assert_eq!((status.outcome, status.last_error, status.checks), ("good", None, 3));
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn stopping_and_dropping_end_the_checks_at_once() {
    let lab = Lab::new().await;
    for stop in [true, false] {
        let probe = Probe::new(|_| Step::After(MINUTE * 60, Report::new("good")));
        let handle = lab.spawn(&machine("  - {name: it, type: probe}\n"), &[&probe]);
        settle().await;
        assert_eq!(probe.running(), 1);
        let begin = Instant::now();
        if stop {
            handle.stop().await;
        } else {
            drop(handle);
            settle().await;
        }
        assert_eq!((probe.running(), begin.elapsed()), (0, Duration::ZERO));
        assert_eq!(Arc::strong_count(&probe), 1, "nothing holds it any more");
    }
}

#[tokio::test]
async fn a_thousand_machines_with_five_watchers_each_start_and_stop() {
    let lab = Lab::new().await;
    let probe = Probe::new(|_| good());
    let watchers: String =
        (0..5).map(|number| format!("  - {{name: w{number}, type: probe, interval: 1h}}\n")).collect();
    let handles: Vec<_> = (0..1_000)
        .map(|number| {
            let text = machine(&watchers).replace("name: probe", &format!("name: probe{number}"));
            lab.spawn(&text, &[&probe; 5])
        })
        .collect();
    support::eventually("5,000 checks", || async { probe.count() == 5_000 }).await;
    futures_util::future::join_all(handles.into_iter().map(machines::machine::runner::Handle::stop)).await;
    assert_eq!(Arc::strong_count(&probe), 1);
}

mod timer {
    use super::*;

    fn text(properties: &str, more: &str) -> String {
        machine(&format!(
            "  - {{name: it, type: timer, state_match: [B], fail_transition: back{more}, \
             properties: {{{properties}}}}}\n"
        ))
    }

    #[tokio::test(start_paused = true)]
    async fn starts_on_entry_and_fires_the_fail_transition_at_its_end() {
        let lab = Lab::new().await;
        let mut events = lab.events();
        let handle = lab.spawn_real(&text("timer: 1m", ""));
        sleep(MINUTE * 3).await;
        assert!(events.drain().is_empty(), "it does not run in A");
        for _ in 0..2 {
            handle.remote.transition("go").await.unwrap();
            sleep(SECOND * 59).await;
            assert_eq!(handle.remote.status().state.as_str(), "B");
            assert_eq!(watcher(&handle.remote.status(), "it").outcome, "running");
            sleep(SECOND + Duration::from_millis(10)).await;
            assert_eq!(handle.remote.status().state.as_str(), "A");
            assert_eq!(watcher(&handle.remote.status(), "it").outcome, "stopped");
        }
        let states: Vec<_> =
            events.drain().iter().filter_map(|event| Some(event["data"]["state"].as_str()?.to_owned())).collect();
        assert_eq!(states, ["running", "stopped", "running", "stopped"]);
    }

    #[tokio::test(start_paused = true)]
    async fn is_cancelled_when_the_state_is_left_and_begins_anew_in_the_next() {
        let lab = Lab::new().await;
        let mut events = lab.events();
        let handle = lab.spawn_real(&text("timer: 1m", ""));
        settle().await;
        handle.remote.transition("go").await.unwrap();
        sleep(SECOND * 50).await;
        handle.remote.transition("back").await.unwrap();
        sleep(MINUTE * 5).await;
        assert_eq!(events.transitions(), ["go", "back"]);
        assert_eq!(watcher(&handle.remote.status(), "it").outcome, "stopped");
        handle.remote.transition("go").await.unwrap();
        sleep(SECOND * 59).await;
        assert_eq!(handle.remote.status().state.as_str(), "B");
        sleep(SECOND * 2).await;
        assert_eq!(handle.remote.status().state.as_str(), "A");
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_whose_state_is_left_while_it_is_being_started_does_not_stay_behind() {
        let lab = Lab::new().await;
        let handle = lab.spawn_real(&text("timer: 1m", ""));
        settle().await;
        for _ in 0..4 {
            let (went, came) = tokio::join!(handle.remote.transition("go"), handle.remote.transition("back"));
            assert_eq!((went.unwrap().as_str(), came.unwrap().as_str()), ("B", "A"));
            sleep(SECOND * 59).await;
            assert_eq!(watcher(&handle.remote.status(), "it").outcome, "stopped");
            handle.remote.transition("go").await.unwrap();
            sleep(SECOND * 59).await;
            assert_eq!(handle.remote.status().state.as_str(), "B", "it began anew");
            handle.remote.transition("back").await.unwrap();
            sleep(MINUTE * 2).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn that_has_fired_stays_stopped_whatever_else_calls_for_a_check() {
        let lab = Lab::new().await;
        let mut events = lab.events();
        let text = text("timer: 1m", ", interval: 10s").replace(", fail_transition: back", "");
        let handle = lab.spawn_real(&text);
        settle().await;
        handle.remote.transition("go").await.unwrap();
        sleep(MINUTE * 10).await;
        assert_eq!(watcher(&handle.remote.status(), "it").outcome, "stopped");
        let told = events.drain().iter().filter(|event| event["data"]["state"] == "stopped").count();
        assert_eq!(told, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_splayed_one_ends_at_different_moments_below_its_time() {
        let lab = Lab::new().await;
        let mut times = Vec::new();
        for _ in 0..30 {
            let handle = lab.spawn_real(&text("timer: 100s, splay: true", ""));
            settle().await;
            handle.remote.transition("go").await.unwrap();
            let begin = Instant::now();
            while handle.remote.status().state.as_str() == "B" {
                sleep(Duration::from_millis(100)).await;
            }
            times.push(begin.elapsed());
            handle.stop().await;
        }
        times.sort_unstable();
        assert!(times[29] <= SECOND * 101, "{times:?}");
        assert!(times[0] < SECOND * 40 && times[29] > SECOND * 60, "{times:?}");
    }

    #[test]
    fn refuses_what_it_can_not_do() {
        let refused = |text: &str| engine::build(text).map(drop).unwrap_err();
        let short = refused(&text("timer: 500ms", ""));
        assert!(short.contains("timer watcher \"it\": timer must be at least 1s"), "{short}");
        let success = refused(&text("timer: 1m", ", success_transition: back"));
        assert!(success.contains("success_transition is not allowed (a timer fires fail_transition"), "{success}");
    }
}
