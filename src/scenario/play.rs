//! Plays one scenario: starts the machine on a virtual clock, makes the steps happen, and compares.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::sync::broadcast;

use crate::archive::{FetchSettings, Fetcher};
use crate::clock::Clock;
use crate::duration::Chance;
use crate::events::{Body, Bus, Event};
use crate::kv::{BucketSettings, ConnectionSettings, CreateDatabase, KvError, Store};
use crate::machine::data::{self, Change, Item};
use crate::machine::definition::Definition;
use crate::machine::neighbours::Presence;
use crate::machine::problem::{Place, Problem};
use crate::machine::runner::{self, Handle};
use crate::machine::watcher::{Kind, Services, build_all};
use crate::names::{Identity, Label, MachineName};
use crate::node::Node;

use super::Scenarios;
use super::answers::Answers;
use super::file::{Expectation, Neighbour, Scenario, Step};
use super::grants::Grants;

/// Time that passes before something is looked at. The clock moves only when nothing else can, so by then everything
/// that follows from what happened has followed.
const SETTLE: Duration = Duration::from_millis(1);

/// Longest time that one step may take of the real clock. A machine that turns in circles would otherwise never end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Plays scenarios of one machine.
pub struct Player<'a> {
    pub directory: &'a Path,
    pub definition: Arc<Definition>,
    pub kinds: &'static [Kind],
    pub scenarios: &'a Scenarios,
}

/// What is wrong, and which part of the scenario says so.
struct Fault {
    pointer: String,
    message: String,
}

fn fault(pointer: impl Into<String>, message: impl Into<String>) -> Fault {
    Fault { pointer: pointer.into(), message: message.into() }
}

impl Player<'_> {
    /// Plays the scenario at this index; returns what did not hold, each with its place.
    pub fn play(&self, index: usize) -> Vec<Problem> {
        let Some(scenario) = self.scenarios.scenarios.get(index) else { return Vec::new() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let faults = match runtime {
            Ok(runtime) => runtime.block_on(self.run(scenario)),
            Err(error) => vec![fault("", error.to_string())],
        };
        let problem = |fault: Fault| {
            let pointer = format!("/scenarios/{index}{}", fault.pointer);
            Problem::new(self.place(&pointer), fault.message)
        };
        faults.into_iter().map(problem).collect()
    }

    fn place(&self, pointer: &str) -> Option<Place> {
        self.scenarios.document.place(pointer)
    }

    async fn run(&self, scenario: &Scenario) -> Vec<Fault> {
        let mut stage = match Stage::set(self, scenario).await {
            Ok(stage) => stage,
            Err(fault) => return vec![fault],
        };
        let mut faults = Vec::new();
        for (index, step) in scenario.steps.iter().enumerate() {
            let pointer = format!("/steps/{index}");
            let begun = std::time::Instant::now();
            if let Err(found) = stage.make(step, &pointer).await {
                faults.push(found);
            }
            if let Some(expected) = &step.expect {
                faults.extend(stage.compare(expected, &format!("{pointer}/expect")));
            }
            for command in stage.answers.take_unanswered() {
                faults.push(fault(&pointer, format!("nothing under \"commands\" answers {command}")));
            }
            if begun.elapsed() > PATIENCE {
                faults.push(fault(&pointer, "this step takes too long; does the machine turn in circles?"));
            }
            // What follows a wrong turn says nothing.
            if !faults.is_empty() {
                break;
            }
        }
        stage.machine.stop().await;
        faults
    }
}

/// A running machine with all that a scenario can move.
struct Stage {
    machine: Handle,
    node: Arc<Node>,
    services: Arc<Services>,
    answers: Arc<Answers>,
    events: broadcast::Receiver<Arc<Event>>,
    neighbours: BTreeMap<MachineName, Presence>,
    transitions: Vec<String>,
    place: tempfile::TempDir,
}

impl Stage {
    async fn set(player: &Player<'_>, scenario: &Scenario) -> Result<Self, Fault> {
        let place = tempfile::tempdir().map_err(|error| fault("", error.to_string()))?;
        let identity = Identity::new(&scenario.identity).map_err(|error| fault("/identity", error.to_string()))?;
        let node = Arc::new(Node::new(identity, Value::Object(scenario.facts.clone()), Arc::default()));
        let settings = ConnectionSettings::local(place.path().join("kv.db"), CreateDatabase::Yes);
        let store = crate::kv::open(&settings).await.map_err(|error| fault("", error.to_string()))?;
        put(&store, &scenario.kv).await.map_err(|error| fault("/kv", error.to_string()))?;
        let fetcher = Fetcher::new(FetchSettings::default(), Some(Arc::clone(&store)));
        let fetcher = fetcher.map_err(|error| fault("", error.to_string()))?;
        let answers = Arc::new(Answers::default());
        answers.add(&scenario.commands);
        let services = Arc::new(Services {
            clock: Clock::starting_at(scenario.start),
            chance: Chance::Longest,
            commands: Arc::clone(&answers) as _,
            // A test must leave nothing in the author's sources.
            directories_are_foreign: true,
            governors: Arc::new(Grants { full: scenario.full_governors.clone() }),
            ..Services::new(Arc::clone(&node), store, Arc::new(fetcher))
        });
        let mut neighbours = BTreeMap::new();
        for (name, state) in &scenario.neighbours {
            let pointer = format!("/neighbours/{name}");
            let (name, state) = (machine_name(name, &pointer)?, label(state, &pointer)?);
            let presence = services.neighbours.join(&name, &state);
            neighbours.insert(name, presence);
        }
        let data_directory = place.path().join("data");
        seed(&data_directory, &scenario.data)?;
        let watchers = build_all(&player.definition, player.kinds).map_err(|problems| {
            let messages: Vec<String> = problems.iter().map(|problem| problem.message.clone()).collect();
            fault("", messages.join("; "))
        })?;
        let bus = Bus::default();
        let events = bus.listen();
        let machine = runner::spawn(runner::Setup {
            definition: Arc::clone(&player.definition),
            watchers,
            directory: player.directory.to_owned(),
            data_directory,
            services: Arc::clone(&services),
            bus,
        });
        Ok(Self { machine, node, services, answers, events, neighbours, transitions: Vec::new(), place })
    }

    /// Makes happen what the step says, and lets its time pass.
    async fn make(&mut self, step: &Step, pointer: &str) -> Result<(), Fault> {
        let at = |key: &str| format!("{pointer}/{key}");
        self.answers.add(&step.commands);
        if !step.facts.is_empty() {
            let mut facts = self.node.facts().value().clone();
            merge(&mut facts, &step.facts);
            self.node.set_facts(facts);
        }
        // The machine must have started before its data can be changed or a person can move it.
        self.pass(SETTLE).await;
        if !step.data.is_empty() {
            let change = |(name, value): (&String, &Value)| match value {
                Value::Null => Change::Delete(name.clone()),
                value => Change::Set(name.clone(), Item::new(value.clone())),
            };
            let changes = step.data.iter().map(change).collect();
            self.machine.remote.change(changes).await.map_err(|error| fault(at("data"), error.to_string()))?;
        }
        put(&self.services.store, &step.kv).await.map_err(|error| fault(at("kv"), error.to_string()))?;
        if let Some(neighbour) = &step.neighbour {
            self.move_neighbour(neighbour, &at("neighbour"))?;
        }
        if let Some(event) = &step.event {
            let moved = self.machine.remote.transition(event).await;
            moved.map_err(|error| fault(at("event"), error.to_string()))?;
        }
        self.pass(step.after.unwrap_or_default() + SETTLE).await;
        Ok(())
    }

    /// Lets time pass, and keeps what happens meanwhile.
    async fn pass(&mut self, time: Duration) {
        let end = tokio::time::sleep(time);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => break,
                event = self.events.recv() => match event {
                    Ok(event) => self.note(&event),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break,
                },
            }
        }
        while let Ok(event) = self.events.try_recv() {
            self.note(&event);
        }
    }

    fn note(&mut self, event: &Event) {
        if let Body::Transition { transition, .. } = &event.body {
            self.transitions.push(transition.to_string());
        }
    }

    fn move_neighbour(&mut self, neighbour: &Neighbour, pointer: &str) -> Result<(), Fault> {
        let name = machine_name(&neighbour.name, pointer)?;
        let Some(state) = &neighbour.state else {
            self.neighbours.remove(&name);
            return Ok(());
        };
        let state = label(state, pointer)?;
        let event = neighbour.event.as_ref().map(|event| label(event, pointer)).transpose()?;
        match (self.neighbours.get(&name), event) {
            (Some(presence), Some(event)) => presence.moved(event, state),
            (None, Some(event)) => {
                let presence = self.services.neighbours.join(&name, &state);
                presence.moved(event, state);
                self.neighbours.insert(name, presence);
            }
            (_, None) => {
                let presence = self.services.neighbours.join(&name, &state);
                self.neighbours.insert(name, presence);
            }
        }
        Ok(())
    }

    fn compare(&mut self, expected: &Expectation, pointer: &str) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut note = |key: String, message: String| faults.push(fault(format!("{pointer}/{key}"), message));
        let status = self.machine.remote.status();
        if let Some(state) = &expected.state
            && *state != status.state.as_str()
        {
            let way =
                if self.transitions.is_empty() { "no transition".to_owned() } else { self.transitions.join(", ") };
            note("state".to_owned(), format!("the machine is in state {}, not {state}; so far: {way}", status.state));
        }
        if let Some(transitions) = &expected.transitions {
            let made = std::mem::take(&mut self.transitions);
            if made != *transitions {
                let message = format!("the transitions were {made:?}, not {transitions:?}");
                note("transitions".to_owned(), message);
            }
        }
        let data = self.data();
        for (name, value) in &expected.data {
            let found = data.get(name).unwrap_or(&Value::Null);
            if found != value {
                note(format!("data/{name}"), format!("data item {name:?} is {found}, not {value}"));
            }
        }
        for (name, outcome) in &expected.watchers {
            let watcher = status.watchers.iter().find(|watcher| watcher.name.as_str() == name);
            let message = match watcher {
                None => format!("there is no watcher {name:?}"),
                Some(watcher) if watcher.outcome == outcome => continue,
                Some(watcher) => {
                    let error = watcher.last_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
                    format!("the outcome of watcher {name:?} is {}, not {outcome}{error}", watcher.outcome)
                }
            };
            note(format!("watchers/{name}"), message);
        }
        if let Some(runs) = &expected.runs {
            let made = self.answers.take_runs();
            for (name, times) in runs {
                let found = made.get(name).copied().unwrap_or_default();
                if found != *times {
                    note(
                        format!("runs/{name}"),
                        format!("watcher {name:?} ran its command {found} times, not {times}"),
                    );
                }
            }
        }
        faults
    }

    /// As the machine has written it.
    fn data(&self) -> Map<String, Value> {
        let content = crate::fs::read(&data::path(&self.place.path().join("data")), 2 * data::MAXIMUM_BYTES as u64);
        content.ok().and_then(|content| serde_json::from_slice(&content).ok()).unwrap_or_default()
    }
}

fn machine_name(name: &str, pointer: &str) -> Result<MachineName, Fault> {
    MachineName::new(name).map_err(|error| fault(pointer, error.to_string()))
}

fn label(text: &str, pointer: &str) -> Result<Label, Fault> {
    Label::new(text).map_err(|error| fault(pointer, error.to_string()))
}

fn merge(facts: &mut Value, changes: &Map<String, Value>) {
    let Some(facts) = facts.as_object_mut() else { return };
    for (name, value) in changes {
        match value {
            Value::Null => facts.remove(name),
            value => facts.insert(name.clone(), value.clone()),
        };
    }
}

fn seed(directory: &Path, items: &Map<String, Value>) -> Result<(), Fault> {
    let items = items.iter().map(|(name, value)| (name.clone(), Item::new(value.clone()))).collect();
    data::save(directory, &Arc::new(items)).map_err(|error| fault("/data", crate::errors::chain(&error)))
}

/// Puts values, into buckets that are made when they are missing.
async fn put(store: &Arc<dyn Store>, values: &BTreeMap<String, BTreeMap<String, Value>>) -> Result<(), KvError> {
    let there = if values.is_empty() { Vec::new() } else { store.buckets().await? };
    for (bucket, values) in values {
        if !there.contains(bucket) {
            let settings =
                BucketSettings { name: bucket.clone(), history: 1, ttl: None, replicas: 1, maximum_value_bytes: None };
            store.create_bucket(&settings).await?;
        }
        let bucket = store.bucket(bucket)?;
        for (key, value) in values {
            match value {
                Value::Null => bucket.delete(key).await?,
                Value::String(text) => drop(bucket.put(key, Bytes::from(text.clone())).await?),
                value => drop(bucket.put(key, Bytes::from(value.to_string())).await?),
            }
        }
    }
    Ok(())
}
