//! The `schedule` watcher on a virtual clock: when it is on, what it fires, across restarts, states and changes of the
//! clocks; and what it refuses.

#![cfg(test)]

mod engine;

use std::sync::Arc;
use std::time::Duration;

use engine::{Lab, watcher};
use machines::clock::Clock;
use machines::machine::runner::Handle;
use machines::machine::watcher::Services;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// A machine that is OPEN while the schedule is on.
fn machine(properties: &str) -> String {
    text(properties, "OPEN, CLOSED", "CLOSED")
}

fn text(properties: &str, states: &str, initial: &str) -> String {
    format!(
        "name: window\nversion: 1.0.0\ninitial_state: {initial}\ntransitions:\n  - {{name: open, from: [CLOSED, OPEN], \
         destination: OPEN}}\n  - {{name: close, from: [OPEN, CLOSED], destination: CLOSED}}\n  - {{name: pause, from: \
         [OPEN, CLOSED], destination: PAUSED}}\n  - {{name: resume, from: [PAUSED], destination: OPEN}}\nwatchers:\n  - \
         name: it\n    type: schedule\n    state_match: [{states}]\n    success_transition: open\n    fail_transition: \
         close\n    properties:\n{properties}"
    )
}

async fn at(time: &str) -> Lab {
    let mut lab = Lab::new().await;
    let clock = Clock::starting_at(time.parse().unwrap());
    lab.services = Arc::new(Services { clock, ..Services::clone(&lab.services) });
    lab
}

async fn outcome(handle: &Handle) -> (String, &'static str) {
    engine::settle().await;
    let status = handle.remote.status();
    (status.state.to_string(), watcher(&status, "it").outcome)
}

const NIGHTLY: &str = "      schedules: [\"0 2 * * *\"]\n      duration: 1h\n      timezone: UTC\n";

#[tokio::test(start_paused = true)]
async fn turning_on_fires_success_and_turning_off_fires_fail_to_the_minute_for_thirty_days() {
    let lab = at("2026-01-01T00:00:00Z").await;
    let mut events = lab.events();
    let handle = lab.spawn_real(&machine(NIGHTLY));
    assert_eq!(outcome(&handle).await, ("CLOSED".to_owned(), "off"));
    assert_eq!(events.transitions(), Vec::<String>::new(), "being off at the start is no turning off");
    tokio::time::sleep(2 * HOUR - Duration::from_millis(20)).await;
    assert_eq!(outcome(&handle).await, ("CLOSED".to_owned(), "off"));
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(outcome(&handle).await, ("OPEN".to_owned(), "on"));
    tokio::time::sleep(HOUR - Duration::from_millis(40)).await;
    assert_eq!(outcome(&handle).await, ("OPEN".to_owned(), "on"));
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(outcome(&handle).await, ("CLOSED".to_owned(), "off"));
    assert_eq!(events.transitions(), ["open", "close"]);
    tokio::time::sleep(29 * 24 * HOUR).await;
    assert_eq!(events.transitions().len(), 2 * 29);
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_starts_within_a_window_is_on() {
    let lab = at("2026-01-01T02:59:00Z").await;
    let mut events = lab.events();
    let handle = lab.spawn_real(&machine(NIGHTLY));
    assert_eq!(outcome(&handle).await, ("OPEN".to_owned(), "on"));
    tokio::time::sleep(2 * MINUTE).await;
    assert_eq!(outcome(&handle).await, ("CLOSED".to_owned(), "off"));
    assert_eq!(events.transitions(), ["open", "close"]);
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn overlapping_schedules_keep_it_on_until_the_last_one_ends() {
    let lab = at("2026-01-01T01:00:00Z").await;
    let mut events = lab.events();
    let both = "      schedules: [\"0 2 * * *\", \"30 2 * * *\"]\n      duration: 1h\n      timezone: UTC\n";
    let handle = lab.spawn_real(&machine(both));
    tokio::time::sleep(HOUR + 80 * MINUTE).await;
    assert_eq!(outcome(&handle).await.1, "on");
    tokio::time::sleep(11 * MINUTE).await;
    assert_eq!(outcome(&handle).await.1, "off");
    assert_eq!(events.transitions(), ["open", "close"]);
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_duration_is_a_minute_unless_said_and_every_counts_from_1970() {
    let lab = at("2026-01-01T00:10:30Z").await;
    let mut events = lab.events();
    let handle = lab.spawn_real(&machine("      schedules: [\"@every 15m\"]\n"));
    assert_eq!(outcome(&handle).await.1, "off");
    tokio::time::sleep(Duration::from_secs(4 * 60 + 35)).await;
    assert_eq!(outcome(&handle).await.1, "on");
    tokio::time::sleep(MINUTE).await;
    assert_eq!(outcome(&handle).await.1, "off");
    tokio::time::sleep(HOUR).await;
    assert_eq!(events.transitions().len(), 2 + 8);
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nicknames_are_schedules() {
    for (nickname, before) in [
        ("@hourly", "2026-01-05T11:59:59Z"),
        ("@daily", "2026-01-05T23:59:59Z"),
        ("@midnight", "2026-01-05T23:59:59Z"),
        ("@weekly", "2026-01-03T23:59:59Z"),
        ("@monthly", "2026-01-31T23:59:59Z"),
        ("@yearly", "2025-12-31T23:59:59Z"),
    ] {
        let lab = at(before).await;
        let handle = lab.spawn_real(&machine(&format!("      schedules: [\"{nickname}\"]\n      timezone: UTC\n")));
        assert_eq!(outcome(&handle).await.1, "off", "{nickname}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(outcome(&handle).await.1, "on", "{nickname}");
        handle.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn coming_back_into_a_state_fires_what_is_the_case_unless_that_is_skipped() {
    for (more, expected) in [("", "CLOSED"), ("      skip_trigger_on_reenter: true\n", "OPEN")] {
        let lab = at("2026-01-01T12:00:00Z").await;
        let handle = lab.spawn_real(&machine(&format!("{NIGHTLY}{more}")));
        assert_eq!(outcome(&handle).await.1, "off");
        handle.remote.transition("pause").await.unwrap();
        assert_eq!(outcome(&handle).await, ("PAUSED".to_owned(), "skipped"));
        // The brake is at rest again.
        tokio::time::sleep(10 * MINUTE).await;
        handle.remote.transition("resume").await.unwrap();
        tokio::time::sleep(MINUTE).await;
        assert_eq!(outcome(&handle).await, (expected.to_owned(), "off"), "{more}");
        // It turns on and off all the same.
        tokio::time::sleep(14 * HOUR).await;
        assert_eq!(outcome(&handle).await, ("OPEN".to_owned(), "on"), "{more}");
        tokio::time::sleep(HOUR).await;
        assert_eq!(outcome(&handle).await, ("CLOSED".to_owned(), "off"), "{more}");
        handle.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_between_two_of_its_states_fires_nothing() {
    let lab = at("2026-01-01T12:00:00Z").await;
    let mut events = lab.events();
    let handle = lab.spawn_real(&machine(NIGHTLY));
    engine::settle().await;
    handle.remote.transition("open").await.unwrap();
    tokio::time::sleep(5 * MINUTE).await;
    assert_eq!(outcome(&handle).await, ("OPEN".to_owned(), "off"));
    assert_eq!(events.transitions(), ["open"]);
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_splay_delays_the_start_by_less_than_it_says_and_leaves_the_end() {
    let lab = at("2026-01-01T02:00:00Z").await;
    let mut events = lab.events();
    let handle = lab.spawn_real(&machine(&format!("{NIGHTLY}      start_splay: 30m\n")));
    assert_eq!(outcome(&handle).await.1, "off", "this node's part is more than nothing");
    tokio::time::sleep(30 * MINUTE).await;
    assert_eq!(outcome(&handle).await.1, "on");
    tokio::time::sleep(29 * MINUTE).await;
    assert_eq!(outcome(&handle).await.1, "on");
    tokio::time::sleep(MINUTE + Duration::from_secs(1)).await;
    assert_eq!(outcome(&handle).await.1, "off");
    assert_eq!(events.transitions(), ["open", "close"]);
    handle.stop().await;
}

/// When the watcher turns on after a moment, as hours and minutes since.
async fn turns_on(from: &str, properties: &str) -> Duration {
    let lab = at(from).await;
    let handle = lab.spawn_real(&machine(properties));
    let begin = tokio::time::Instant::now();
    assert_eq!(outcome(&handle).await.1, "off", "{from}");
    while outcome(&handle).await.1 != "on" {
        assert!(begin.elapsed() < 48 * HOUR, "{from}: never on");
        tokio::time::sleep(MINUTE).await;
    }
    handle.stop().await;
    begin.elapsed()
}

#[tokio::test(start_paused = true)]
async fn changes_of_the_clocks_neither_skip_a_start_nor_double_it() {
    let berlin = "      schedules: [\"30 2 * * *\"]\n      duration: 10m\n      timezone: Europe/Berlin\n";
    // Winter time: 02:30 is 01:30 in UTC.
    assert_eq!(turns_on("2026-01-10T00:00:00Z", berlin).await, 90 * MINUTE);
    // Summer time: 00:30 in UTC.
    assert_eq!(turns_on("2026-07-10T00:00:00Z", berlin).await, 30 * MINUTE);
    // On 29 March there is no 02:30: the clocks go from 02:00 to 03:00 at 01:00 in UTC.
    let begin = turns_on("2026-03-29T00:00:00Z", berlin).await;
    assert!((HOUR..=90 * MINUTE).contains(&begin), "{begin:?}");
    // On 25 October 02:30 comes twice, at 00:30 and 01:30 in UTC.
    let lab = at("2026-10-24T22:00:00Z").await;
    let mut events = lab.events();
    let handle = lab.spawn_real(&machine(berlin));
    tokio::time::sleep(8 * HOUR).await;
    assert_eq!(events.transitions(), ["open", "close"]);
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_is_noticed_within_seconds() {
    // The host's own clock stands (almost) still here while the runtime's goes on, as one that was set back does.
    let lab = Lab::new().await;
    let handle = lab.spawn_real(&machine("      schedules: [\"0 0 1 1 *\"]\n      timezone: UTC\n"));
    engine::settle().await;
    let before = watcher(&handle.remote.status(), "it").checks;
    tokio::time::sleep(5 * MINUTE).await;
    assert!(watcher(&handle.remote.status(), "it").checks >= before + 10);
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn its_event_says_the_state() {
    let lab = at("2026-01-01T02:10:00Z").await;
    let mut events = lab.events();
    let handle = lab.spawn_real(&machine(NIGHTLY));
    engine::settle().await;
    let told = events.drain();
    let state = told.iter().find(|event| event["data"]["type"] == "schedule").unwrap();
    assert_eq!(state["data"]["state"], "on");
    handle.stop().await;
}

#[test]
fn a_bad_schedule_is_refused_with_its_place_and_the_reason() {
    let refused = |properties: &str| engine::build(&machine(properties)).map(drop).unwrap_err();
    for (schedule, reason) in [
        ("0 25 * * *", "schedule \"0 25 * * *\" can't be used: "),
        ("0 2 * *", "schedule \"0 2 * *\" can't be used: "),
        ("0 0 2 * * *", "schedule \"0 0 2 * * *\" can't be used: "),
        ("", "schedule \"\" can't be used: "),
        ("0 0 30 2 *", "there is no such time, ever"),
        ("@every 1500ms", "@every takes whole seconds, at least 1s"),
        ("@every soon", "schedule \"@every soon\" can't be used: "),
        ("@sometimes", "schedule \"@sometimes\" can't be used: "),
    ] {
        let message = refused(&format!("      schedules: [\"@daily\", \"{schedule}\"]\n"));
        assert!(message.contains(reason), "{schedule}: {message}");
        assert!(message.starts_with("machine.yaml:16:29: schedule watcher \"it\": "), "{message}");
    }
    let cases = [
        ("schedules: []", "schedules is empty; it needs at least one"),
        ("schedules: [\"@daily\"]\n      duration: 500ms", "duration must be at least 1s"),
        (
            "schedules: [\"@daily\"]\n      duration: 10m\n      start_splay: 6m",
            "start_splay must be at most half of duration, which is 5m",
        ),
        (
            "schedules: [\"@daily\"]\n      timezone: Europe/Berlim",
            "there is no time zone \"Europe/Berlim\"; use an IANA name",
        ),
    ];
    for (properties, reason) in cases {
        let message = refused(&format!("      {properties}\n"));
        assert!(message.contains(reason), "{properties}: {message}");
    }
}
