//! What every kind of watcher keeps to. In: `machines::watchers::KINDS`, each with its `example` properties. Out: for
//! every kind and every rule a line, or the breach. A new kind is judged as soon as it is in the list.
//!
//! In an example, `/nonexistent` stands for a directory of the test.

#![cfg(test)]

mod engine;
mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use engine::fields::{COMMON_FIELDS, EVENT_FIELDS};
use engine::{Events, Lab, definition, watcher};
use futures_util::poll;
use machines::machine::document::Document;
use machines::machine::runner::Handle;
use machines::machine::watcher::{Background, Check, Context, Fires, Kind, Report, Seen, Signal, Watcher, build_all};
use machines::watchers::KINDS;
use serde_json::{Map, Value, json};
use support::{eventually, within};
use tokio::sync::Notify;

const MINUTE: Duration = Duration::from_secs(60);

/// The last line but one of [`text`]: properties stand below it.
const FIRST_PROPERTY_LINE: usize = 12;

/// A machine with one watcher of a kind, which works in BUSY.
fn text(kind: &Kind, properties: &str, more: &str) -> String {
    // Those that its checks ask for by name; they lead nowhere else, so that it stays in BUSY.
    let named = if let Fires::Named(names) = kind.fires { names } else { &[] };
    let named: String =
        named.iter().map(|name| format!(", {{name: {name}, from: [BUSY], destination: BUSY}}")).collect();
    let properties: String = properties.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "name: conform\nversion: 1.0.0\ninitial_state: IDLE\ntransitions:\n  [{{name: start, from: [IDLE], \
         destination: BUSY}},\n  {{name: stop, from: [BUSY], destination: IDLE}}{named}]\nwatchers:\n  - name: it\n    type: \
         {}{more}\n    state_match: [BUSY]\n    properties:\n{properties}",
        kind.name
    )
}

fn refusal(kind: &Kind, properties: &str, more: &str) -> String {
    match engine::build(&text(kind, properties, more)) {
        Ok(_) => panic!("{}: not refused:\n{properties}{more}", kind.name),
        Err(message) => message,
    }
}

/// The top-level properties of the example, in order, with their lines.
fn properties(kind: &Kind) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in kind.example.lines() {
        match line.split_once(':') {
            Some((key, _)) if !line.starts_with([' ', '-']) => found.push((key.to_owned(), format!("{line}\n"))),
            _ => found.last_mut().expect("an example starts with a key").1 += &format!("{line}\n"),
        }
    }
    found
}

fn without(kind: &Kind, name: &str) -> String {
    properties(kind).into_iter().filter(|(key, _)| key != name).map(|(_, lines)| lines).collect()
}

/// Runs a rule over every kind.
fn every_kind(rule: &str, judge: impl Fn(&Kind)) {
    for kind in KINDS {
        judge(kind);
        println!("{} × {rule}: kept", kind.name);
    }
}

#[test]
fn the_example_builds_and_its_names_are_words() {
    let word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    every_kind("example builds", |kind| {
        let built = engine::build(&text(kind, kind.example, "")).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(built.len(), 1);
        assert!(word(kind.name) && !kind.summary.is_empty(), "{}", kind.name);
        let unique: BTreeSet<_> = kind.outcomes.iter().collect();
        assert_eq!(unique.len(), kind.outcomes.len(), "{}: an outcome stands twice", kind.name);
        assert!(kind.outcomes.iter().all(|outcome| word(outcome)), "{}: {:?}", kind.name, kind.outcomes);
        assert!(!kind.outcomes.is_empty());
    });
    let names: BTreeSet<_> = KINDS.iter().map(|kind| kind.name).collect();
    assert_eq!(names.len(), KINDS.len(), "two kinds have one name");
}

#[test]
fn an_unknown_property_is_refused_with_its_place() {
    every_kind("unknown property", |kind| {
        let line = FIRST_PROPERTY_LINE + kind.example.lines().count();
        let message = refusal(kind, &format!("{}quite_different_thing: 1\n", kind.example), "");
        let start = format!("machine.yaml:{line}:7: {} watcher \"it\": unknown key", kind.name);
        assert!(message.starts_with(&start), "{message}");
        assert!(message.contains("\"quite_different_thing\" (known are: "), "{message}");
    });
}

#[test]
fn a_mistyped_property_is_refused_with_what_was_meant() {
    every_kind("mistyped property", |kind| {
        for (key, lines) in properties(kind).into_iter().filter(|(key, _)| key.len() > 3) {
            let mistyped = key.replacen(&key[1..3], &key[2..3], 1);
            let bad = format!("{}{}", without(kind, &key), lines.replacen(&key, &mistyped, 1));
            let message = refusal(kind, &bad, "");
            let expected = format!("unknown key \"{mistyped}\" (did you mean \"{key}\"?)");
            assert!(message.contains(&expected), "{}: {message}", kind.name);
        }
    });
}

#[test]
fn a_value_of_the_wrong_type_is_refused_naming_the_property() {
    every_kind("wrong type", |kind| {
        let example = Document::parse(kind.example).unwrap().value;
        for (key, lines) in properties(kind) {
            let wrong = if example[&key].is_object() { "5" } else { "{wrong: [type]}" };
            let bad = format!("{key}: {wrong}\n{}", without(kind, &key));
            let message = refusal(kind, &bad, "");
            let start = format!("machine.yaml:{FIRST_PROPERTY_LINE}:");
            assert!(message.starts_with(&start), "{}: {lines}{message}", kind.name);
            assert!(message.contains(&format!("watcher \"it\": {key}: ")), "{}: {message}", kind.name);
        }
    });
}

#[test]
fn a_missing_required_property_is_refused_by_name() {
    every_kind("missing property", |kind| {
        let example: BTreeSet<String> = properties(kind).into_iter().map(|(key, _)| key).collect();
        // What is required is what the kind asks for, one after the other, from nothing on.
        let mut given = String::new();
        while let Err(message) = engine::build(&text(kind, &given, "")) {
            let Some(missing) = message.split("missing field `").nth(1).and_then(|rest| rest.split('`').next()) else {
                break;
            };
            assert!(message.starts_with("machine.yaml:1"), "without a place: {message}");
            assert!(message.contains(&format!("{} watcher \"it\": missing field", kind.name)), "{message}");
            assert!(example.contains(missing), "{}: the example lacks {missing:?}, which is required", kind.name);
            let message = refusal(kind, &without(kind, missing), "");
            assert!(message.contains(&format!("missing field `{missing}`")), "{message}");
            given += &properties(kind).into_iter().find(|(key, _)| key == missing).unwrap().1;
        }
    });
}

#[test]
fn an_interval_below_the_minimum_is_refused() {
    every_kind("minimum interval", |kind| {
        let interval = |time: Duration| format!("\n    interval: {}", machines::duration::format(time));
        engine::build(&text(kind, kind.example, &interval(kind.minimum_interval))).unwrap();
        let message = refusal(kind, kind.example, &interval(kind.minimum_interval - Duration::from_millis(1)));
        let minimum = machines::duration::format(kind.minimum_interval);
        let expected = format!("machine.yaml:10:15: interval of a {} watcher must be at least {minimum}", kind.name);
        assert_eq!(message, expected);
        assert!(kind.default_interval.is_none_or(|interval| interval >= kind.minimum_interval), "{}", kind.name);
    });
}

#[test]
fn a_check_has_a_time_limit() {
    every_kind("time limit", |kind| {
        let built = engine::build(&text(kind, kind.example, "")).unwrap();
        let limit = built[0].1.timeout();
        assert!(limit > Duration::ZERO && limit <= MINUTE * 60 * 24, "{}: {limit:?}", kind.name);
    });
}

/// How a check goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// As the kind does it.
    Real,
    /// Begun as the kind does it, never ended.
    Frozen,
    /// A report with this outcome, the first time after a panic.
    PanicsFirst(&'static str),
}

/// A watcher of some kind under observation.
struct Observed {
    inner: Arc<dyn Watcher>,
    mode: Mode,
    signal: Mutex<Option<Signal>>,
    begun: Notify,
    checks: AtomicUsize,
}

#[async_trait]
impl Watcher for Observed {
    async fn check(&self, check: Check) -> Report {
        let before = self.checks.fetch_add(1, Ordering::SeqCst);
        match self.mode {
            Mode::Real => self.inner.check(check).await,
            Mode::Frozen => {
                let mut checking = self.inner.check(check);
                if poll!(&mut checking).is_pending() {
                    // A moment for what the check has begun: a command, a file, a request.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    _ = poll!(&mut checking);
                }
                self.begun.notify_one();
                std::future::pending().await
            }
            Mode::PanicsFirst(_) if before == 0 => panic!("as the test says"),
            Mode::PanicsFirst(outcome) => Report::new(outcome),
        }
    }

    fn timeout(&self) -> Duration {
        self.inner.timeout()
    }

    fn reads(&self) -> Vec<String> {
        self.inner.reads()
    }

    fn observe(&self, context: &Context, signal: Signal) -> Option<Background> {
        *self.signal.lock().unwrap() = Some(signal.clone());
        if self.mode == Mode::Real { self.inner.observe(context, signal) } else { None }
    }

    fn left(&self) -> Option<Report> {
        self.inner.left()
    }

    fn event_fields(&self, seen: &Seen) -> Map<String, Value> {
        self.inner.event_fields(seen)
    }
}

/// A machine that runs, with what is needed to judge it.
struct Trial {
    lab: Lab,
    observed: Arc<Observed>,
    handle: Handle,
    events: Events,
}

impl Trial {
    async fn begin(kind: &Kind, mode: Mode, more: &str) -> Self {
        let lab = Lab::new().await;
        let example = kind.example.replace("/nonexistent", lab.path("there").to_str().unwrap());
        let text = text(kind, &example, more);
        let (kind, inner) = build_all(&definition(&text), KINDS).unwrap().remove(0);
        let (signal, begun, checks) = (Mutex::default(), Notify::new(), AtomicUsize::new(0));
        let observed = Arc::new(Observed { inner, mode, signal, begun, checks });
        let events = lab.events();
        let handle = lab.spawn_with(&text, vec![(kind, Arc::clone(&observed) as Arc<dyn Watcher>)]);
        Self { lab, observed, handle, events }
    }

    async fn enter(&self) {
        within("the start", async {
            while self.observed.signal.lock().unwrap().is_none() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        self.handle.remote.transition("start").await.unwrap();
    }

    fn signal(&self) {
        self.observed.signal.lock().unwrap().as_ref().unwrap().check();
    }

    fn ended_checks(&self) -> u64 {
        watcher(&self.handle.remote.status(), "it").checks
    }
}

#[tokio::test(start_paused = true)]
async fn outside_of_its_states_it_is_never_checked() {
    for kind in KINDS {
        let trial = Trial::begin(kind, Mode::Real, "").await;
        tokio::time::sleep(MINUTE * 60).await;
        trial.signal();
        engine::settle().await;
        assert_eq!(trial.observed.checks.load(Ordering::SeqCst), 0, "{}", kind.name);
        let status = watcher(&trial.handle.remote.status(), "it");
        assert_eq!((status.active, status.outcome, status.checks), (false, "unknown", 0), "{}", kind.name);
        trial.handle.stop().await;
        println!("{} × state gating: kept", kind.name);
    }
}

#[tokio::test]
async fn entering_a_state_and_a_signal_call_for_a_check_with_an_outcome_of_its_list() {
    for kind in KINDS {
        let trial = Trial::begin(kind, Mode::Real, "").await;
        trial.enter().await;
        eventually("the check on entry", || async { trial.ended_checks() >= 1 }).await;
        let status = watcher(&trial.handle.remote.status(), "it");
        assert!(kind.outcomes.contains(&status.outcome), "{}: {:?}", kind.name, status.outcome);
        assert_eq!(status.last_error.is_some(), status.outcome == "error", "{}: {status:?}", kind.name);
        let before = trial.ended_checks();
        trial.signal();
        eventually("the check on a signal", || async { trial.ended_checks() > before }).await;
        trial.handle.stop().await;
        println!("{} × entry and signal: kept, outcome {}", kind.name, status.outcome);
    }
}

#[tokio::test]
async fn stopping_in_the_middle_of_a_check_is_prompt_and_leaves_nothing() {
    for kind in KINDS {
        let Trial { lab, observed, handle, mut events } = Trial::begin(kind, Mode::Frozen, "").await;
        within("the start", async {
            while observed.signal.lock().unwrap().is_none() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        handle.remote.transition("start").await.unwrap();
        within("the check", observed.begun.notified()).await;
        let begin = std::time::Instant::now();
        within("the stop", handle.stop()).await;
        assert!(begin.elapsed() < Duration::from_secs(10), "{}: {:?}", kind.name, begin.elapsed());
        assert_eq!(Arc::strong_count(&observed), 1, "{}: something still holds the watcher", kind.name);
        eventually("the end of every child process", || async { children() == Vec::<String>::new() }).await;
        events.drain();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(events.drain().is_empty(), "{}: it speaks after its end", kind.name);
        drop(lab);
        println!("{} × cancellation: kept", kind.name);
    }
}

/// The commands that this process has started and that have not been reaped.
fn children() -> Vec<String> {
    let own = std::process::id().to_string();
    let stat = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("stat")).ok();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| stat(entry.ok()?));
    processes
        .filter(|stat| stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) == Some(&own))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn announce_interval_publishes_the_state_again_with_the_fields_of_the_reference() {
    for kind in KINDS {
        let outcome = kind.outcomes.last().unwrap();
        let mut trial = Trial::begin(kind, Mode::PanicsFirst(outcome), "\n    announce_interval: 1m").await;
        trial.enter().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        trial.events.drain();
        tokio::time::sleep(MINUTE * 10).await;
        let told = trial.events.drain();
        assert!((9..=11).contains(&told.len()), "{}: {} events", kind.name, told.len());
        trial.handle.remote.transition("stop").await.unwrap();
        engine::settle().await;
        trial.events.drain();
        tokio::time::sleep(MINUTE * 10).await;
        assert!(trial.events.drain().is_empty(), "{}: it speaks outside of its states", kind.name);
        let event = told.last().unwrap();
        let of_type = format!("io.choria.machine.watcher.{}.v1.state", kind.name);
        assert_eq!((&event["type"], &event["data"]["protocol"]), (&json!(of_type), &json!(of_type)));
        assert_eq!(event["source"], "io.choria.machine");
        assert_eq!((&event["subject"], &event["data"]["identity"]), (&json!("node1.example.net"), &event["subject"]));
        assert_eq!((&event["data"]["type"], &event["data"]["name"]), (&json!(kind.name), &json!("it")));
        assert_eq!((&event["data"]["machine"], &event["data"]["version"]), (&json!("conform"), &json!("1.0.0")));
        assert!(event["data"]["timestamp"].is_i64(), "{event}");
        let fields: BTreeSet<&str> = event["data"].as_object().unwrap().keys().map(String::as_str).collect();
        assert!(COMMON_FIELDS.iter().all(|field| fields.contains(field)), "{}: {fields:?}", kind.name);
        if let Some((_, own)) = EVENT_FIELDS.iter().find(|(name, _)| *name == kind.name) {
            let expected: BTreeSet<&str> = COMMON_FIELDS.iter().chain(*own).copied().collect();
            assert_eq!(fields, expected, "{}", kind.name);
        }
        trial.handle.stop().await;
        println!("{} × announcements and event fields: kept", kind.name);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_check_does_not_take_the_machine_down() {
    for kind in KINDS {
        let outcome = kind.outcomes.last().unwrap();
        let mut trial = Trial::begin(kind, Mode::PanicsFirst(outcome), "").await;
        trial.enter().await;
        engine::settle().await;
        let status = watcher(&trial.handle.remote.status(), "it");
        let expected = Some("defect in the watcher: it panicked; please report it");
        assert_eq!((status.outcome, status.last_error.as_deref()), ("error", expected), "{}", kind.name);
        assert!(!trial.events.drain().is_empty(), "{}: an error is announced", kind.name);
        trial.signal();
        engine::settle().await;
        let status = watcher(&trial.handle.remote.status(), "it");
        assert_eq!((status.outcome, status.last_error), (*outcome, None), "{}", kind.name);
        trial.handle.stop().await;
        println!("{} × panic: kept", kind.name);
    }
}

#[test]
fn a_kind_that_is_not_compiled_in_is_refused_with_what_was_meant() {
    let text = text(&KINDS[0], KINDS[0].example, "");
    let bad = text.replace(&format!("type: {}", KINDS[0].name), "type: exce");
    let message = engine::build(&bad).map(drop).unwrap_err();
    assert_eq!(message, "machine.yaml:9:11: there is no watcher type \"exce\" (did you mean \"exec\"?)");
}
