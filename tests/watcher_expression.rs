//! The `expression` watcher: each outcome, what it fires and when it looks again; and what it refuses.

#![cfg(test)]

mod engine;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{Lab, Probe, Step, watcher};
use machines::machine::data::{Change, Item};
use machines::machine::runner::Handle;
use machines::machine::watcher::{Report, Watcher};
use serde_json::{Value, json};

fn machine(properties: &str) -> String {
    format!(
        "name: judge\nversion: 1.0.0\ninitial_state: UNKNOWN\ntransitions:\n  - {{name: good, from: [UNKNOWN, BAD, GOOD], \
         destination: GOOD}}\n  - {{name: bad, from: [UNKNOWN, GOOD], destination: BAD}}\n  - {{name: leave, from: \
         [UNKNOWN, GOOD, BAD], destination: AWAY}}\n  - {{name: back, from: [AWAY], destination: UNKNOWN}}\nwatchers:\n  \
         - name: it\n    type: expression\n    state_match: [UNKNOWN, GOOD, BAD]\n    success_transition: good\n    \
         fail_transition: bad\n    properties:\n{properties}"
    )
}

/// The same with a second watcher, which at each check puts what this says under `x`.
fn spawn(lab: &Lab, properties: &str, x: &Arc<Mutex<Value>>) -> (Handle, Arc<Probe>) {
    let text =
        format!("{}  - {{name: writer, type: expression, properties: {{fail_when: 'false'}}}}\n", machine(properties));
    let x = Arc::clone(x);
    let probe = Probe::new(move |_| {
        let value = x.lock().unwrap().clone();
        Step::Report(Report { changes: vec![Change::Set("x".to_owned(), Item::new(value))], ..Report::new("good") })
    });
    let mut watchers = engine::build(&text).unwrap();
    watchers[1] = (engine::PROBE, Arc::clone(&probe) as Arc<dyn Watcher>);
    (lab.spawn_with(&text, watchers), probe)
}

fn seen(handle: &Handle) -> (String, &'static str) {
    let status = handle.remote.status();
    (status.state.to_string(), watcher(&status, "it").outcome)
}

const BOTH: &str = "      success_when: data.x == 1\n      fail_when: data.x == 2\n";

#[tokio::test(start_paused = true)]
async fn fires_once_for_each_change_of_the_outcome_at_the_moment_the_data_changes() {
    let lab = Lab::new().await;
    let mut events = lab.events();
    let x = Arc::new(Mutex::new(json!(0)));
    let (handle, writer) = spawn(&lab, BOTH, &x);
    engine::settle().await;
    assert_eq!(seen(&handle), ("UNKNOWN".to_owned(), "no_match"));
    let steps = [
        (1, "GOOD", "success_when"),
        (1, "GOOD", "success_when"),
        (2, "BAD", "failed_when"),
        (3, "BAD", "no_match"),
        (1, "GOOD", "success_when"),
    ];
    for (value, state, outcome) in steps {
        // The brake is at rest between these.
        tokio::time::sleep(Duration::from_secs(601)).await;
        *x.lock().unwrap() = json!(value);
        writer.signal();
        engine::settle().await;
        assert_eq!(seen(&handle), (state.to_owned(), outcome), "{value}");
    }
    assert_eq!(events.transitions(), ["good", "bad", "good"]);
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn looks_at_data_facts_and_the_identity() {
    for (expression, outcome) in [
        ("data == {} && facts.role == \"web\" && facts[\"cpus\"] == 2", "success_when"),
        ("identity == \"node1.example.net\" && identity matches \"^node[0-9]\"", "success_when"),
        ("get_fact(\"role\") in [\"db\", \"web\"] && get_fact(\"no.such\") == nil", "success_when"),
        ("data.nope == nil && data?.nope?.deeper == nil && \"role\" in facts", "success_when"),
        ("facts.cpus * 2 + 1 > 5", "no_match"),
        ("len(facts.role) == 3 ? upper(facts.role) == \"WEB\" : false", "success_when"),
    ] {
        let lab = Lab::new().await;
        let handle = lab.spawn_real(&machine(&format!("      success_when: '{expression}'\n")));
        engine::settle().await;
        assert_eq!(seen(&handle).1, outcome, "{expression}");
        handle.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_judged_is_an_error_and_fires_nothing() {
    for (expression, message) in [
        ("data.nope.deeper == 1", "success_when: at column 10: [] can't be applied to nil and the string \"deeper\""),
        (
            "facts.role + 1 == 2",
            "success_when: at column 12: + can't be applied to the string \"web\" and the number 1",
        ),
        ("facts.cpus", "success_when: the expression gave 2, not true or false"),
    ] {
        let lab = Lab::new().await;
        let mut events = lab.events();
        let handle = lab.spawn_real(&machine(&format!("      success_when: '{expression}'\n")));
        engine::settle().await;
        let status = watcher(&handle.remote.status(), "it");
        assert_eq!((status.outcome, status.last_error.as_deref()), ("error", Some(message)));
        assert_eq!(seen(&handle).0, "UNKNOWN");
        let told = events.drain();
        assert_eq!(told.last().unwrap()["data"]["previous_outcome"], "error");
        handle.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn looks_again_when_facts_change_and_every_ten_seconds() {
    let lab = Lab::new().await;
    let handle = lab.spawn_real(&machine("      success_when: facts.role == 'db'\n"));
    engine::settle().await;
    assert_eq!(seen(&handle), ("UNKNOWN".to_owned(), "no_match"));
    let before = watcher(&handle.remote.status(), "it").checks;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let checks = watcher(&handle.remote.status(), "it").checks - before;
    assert!((9..=11).contains(&checks), "{checks}");
    lab.services.node.set_facts(json!({"role": "db"}));
    engine::settle().await;
    assert_eq!(seen(&handle), ("GOOD".to_owned(), "success_when"));
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_verdict_counts_as_new_in_another_stay() {
    let lab = Lab::new().await;
    let mut events = lab.events();
    let handle = lab.spawn_real(&machine("      success_when: facts.cpus == 2\n"));
    engine::settle().await;
    assert_eq!(seen(&handle), ("GOOD".to_owned(), "success_when"));
    handle.remote.transition("leave").await.unwrap();
    engine::settle().await;
    assert_eq!(seen(&handle), ("AWAY".to_owned(), "skipped"));
    tokio::time::sleep(Duration::from_secs(600)).await;
    handle.remote.transition("back").await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(seen(&handle), ("GOOD".to_owned(), "success_when"));
    assert_eq!(events.transitions(), ["good", "leave", "back", "good"]);
    handle.stop().await;
}

#[test]
fn tells_what_it_looks_at() {
    let text = machine(
        "      success_when: data.a.b == facts.os.id || get_fact('x.y')\n      fail_when: data['c'] == data[identity]\n",
    );
    let watchers = engine::build(&text).unwrap();
    assert_eq!(watchers[0].1.reads(), ["a", "c"]);
    assert_eq!(watchers[0].1.looks_up(), ["data.a.b", "facts.os.id", "facts.x.y", "data", "data.c"]);
}

#[test]
fn a_bad_expression_is_refused_with_its_place() {
    let refused = |properties: &str| engine::build(&machine(properties)).map(drop).unwrap_err();
    let cases = [
        (
            "success_when: dat.x == 1",
            "16:21: ",
            "success_when: at column 1: unknown name \"dat\"; did you mean \"data\"?",
        ),
        ("fail_when: has_file('/x')", "16:18: ", "fail_when: at column 1: unknown function \"has_file\""),
        ("fail_when: identity('x')", "16:18: ", "fail_when: at column 1: unknown function \"identity\""),
        ("success_when: ''", "16:21: ", "success_when: at column 1: expected an expression, found nothing"),
        ("success_when: 1 +", "16:21: ", "success_when: at column 4: "),
        (
            "success_when: get_fact(1) == 2",
            "16:21: ",
            "get_fact takes one string, the path of a fact, but got the number 1",
        ),
    ];
    for (property, place, reason) in cases {
        let message = refused(&format!("      {property}\n"));
        assert!(message.starts_with(&format!("machine.yaml:{place}expression watcher \"it\": ")), "{message}");
        assert!(message.contains(reason), "{property}: {message}");
    }
    let message = engine::build(&machine("      {}\n")).map(drop).unwrap_err();
    assert!(message.ends_with("expression watcher \"it\": success_when or fail_when is needed"), "{message}");
}
