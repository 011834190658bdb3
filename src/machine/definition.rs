//! machine.yaml: from text to a validated definition, or to the list of all its faults. What a watcher's properties
//! mean is judged by its kind; here they are kept with their places.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::digest::Sha256Digest;
use crate::names::{Label, MachineName, Version};
use crate::suggest::nearest;

use super::document::{Document, MAXIMUM_BYTES};
use super::fsm::Fsm;
use super::keys::{self, Key};
use super::problem::{Problem, Problems};
use super::reader::{Name, Reader};
use super::rule::UNREADABLE_FILE;

/// The file that makes a directory a machine.
pub const FILE_NAME: &str = "machine.yaml";

/// A state that is there to force a check of nagios watchers.
pub const FORCE_CHECK: &str = "FORCE_CHECK";

/// More watchers or transitions than this in one machine are refused.
pub const MAXIMUM_ITEMS: usize = 1_024;

/// A validated machine.
#[derive(Debug, Clone)]
pub struct Definition {
    pub name: MachineName,
    pub version: Version,
    pub initial_state: Label,
    /// The machine starts after a random wait below this.
    pub splay_start: Duration,
    pub transitions: Vec<Transition>,
    /// Shared with the running machine, so that each is in memory once.
    pub watchers: Vec<Arc<WatcherDefinition>>,
    /// Of the text; a changed digest means a changed machine.
    pub digest: Sha256Digest,
}

/// A named move from one of several states to one destination.
#[derive(Debug, Clone)]
pub struct Transition {
    pub name: Label,
    pub from: Vec<Label>,
    pub destination: Label,
    pub description: String,
    pub subscribe: Vec<Subscription>,
}

/// Fires a transition when another machine of this node makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    pub machine: MachineName,
    pub event: Label,
}

/// The state that another machine of this node must be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignState {
    pub machine: MachineName,
    pub state: Label,
}

/// A watcher as the file says it, its properties not yet judged.
#[derive(Debug, Clone)]
pub struct WatcherDefinition {
    pub name: Label,
    pub kind: String,
    /// Empty: every state.
    pub state_match: Vec<Label>,
    pub foreign_state_required: Vec<ForeignState>,
    pub success_transition: Option<Label>,
    pub fail_transition: Option<Label>,
    pub interval: Option<Duration>,
    pub announce_interval: Option<Duration>,
    pub properties: Document,
    /// Where the watcher stands in the whole document, for faults found later.
    pub places: WatcherPlaces,
}

/// Places of a watcher's own keys.
#[derive(Debug, Clone, Default)]
pub struct WatcherPlaces(Document);

impl WatcherPlaces {
    /// The place of a key such as `interval`, or of the watcher when it has no such key.
    pub fn of(&self, key: &str) -> Option<super::problem::Place> {
        self.0.place(&format!("/{key}"))
    }
}

impl WatcherDefinition {
    /// Whether the watcher works in this state. A nagios watcher also works in `FORCE_CHECK`, whatever it says: machines
    /// of the reference have that state to force a check, and do not list it.
    pub fn is_active_in(&self, state: &Label) -> bool {
        let forced = self.kind == "nagios" && state.as_str() == FORCE_CHECK;
        self.state_match.is_empty() || self.state_match.contains(state) || forced
    }
}

impl Definition {
    /// Reads and validates `directory/machine.yaml`.
    ///
    /// # Errors
    /// When the file can't be read, or all its faults.
    pub fn load(directory: &Path) -> Result<Self, Problems> {
        let path = directory.join(FILE_NAME);
        let text = crate::fs::read_text(&path, MAXIMUM_BYTES).map_err(|error| {
            let message = format!("{error}: {}", error.source);
            Problems::new(&path, "", vec![Problem::new(None, message).rule(UNREADABLE_FILE)])
        })?;
        Self::parse(&path, &text)
    }

    /// Validates the text of a definition; `path` is for messages.
    ///
    /// # Errors
    /// All faults, each with its place.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Problems> {
        let refuse = |problems| Problems::new(path, text, problems);
        let document = Document::parse(text).map_err(|problem| refuse(vec![problem]))?;
        Self::from_document(&document, Sha256Digest::of(text.as_bytes())).map_err(refuse)
    }

    /// Validates a parsed document.
    ///
    /// # Errors
    /// All faults, each with its place.
    pub fn from_document(document: &Document, digest: Sha256Digest) -> Result<Self, Vec<Problem>> {
        match Self::read(document, digest) {
            (Some(definition), problems) if problems.is_empty() => Ok(definition),
            (_, problems) => Err(problems),
        }
    }

    /// Reads as much of a document as can be read, for a judgement of the rest, and gives all faults. With faults the
    /// definition is not fit to run: entries that can't be read are missing in it, and its name may be made up.
    pub fn read(document: &Document, digest: Sha256Digest) -> (Option<Self>, Vec<Problem>) {
        let mut reader = Reader::new(document);
        reader.keys("", &keys::names(keys::MACHINE));
        let name = reader.required("", "name", MachineName::new);
        let version = reader.required("", "version", Version::new);
        let initial_state = reader.required("", "initial_state", Label::new);
        let splay_start = reader.seconds("/splay_start").unwrap_or_default();
        let transitions = read_list(&mut reader, "transitions", read_transition);
        let watchers = read_list(&mut reader, "watchers", read_watcher);
        if let Some(initial_state) = &initial_state {
            check_references(&mut reader, initial_state, &transitions, &watchers);
        }
        let stand_in = (MachineName::new("unnamed").ok(), Version::new("0.0.0").ok(), Label::new("UNNAMED").ok());
        let definition = match (name.or(stand_in.0), version.or(stand_in.1), initial_state.or(stand_in.2)) {
            (Some(name), Some(version), Some(initial_state)) => {
                let transitions = transitions.into_iter().map(|(_, transition)| transition).collect();
                let watchers = watchers.into_iter().map(|(_, watcher)| Arc::new(watcher)).collect();
                Some(Self { name, version, initial_state, splay_start, transitions, watchers, digest })
            }
            _ => None,
        };
        (definition, reader.problems)
    }

    /// The same without the properties and places of its watchers. Those are for building watchers and for messages
    /// about faults; a machine that runs needs neither, and they are most of its memory.
    #[must_use]
    pub fn without_documents(&self) -> Self {
        let strip = |watcher: &Arc<WatcherDefinition>| {
            let mut watcher = WatcherDefinition::clone(watcher);
            watcher.properties = Document::default();
            watcher.places = WatcherPlaces::default();
            Arc::new(watcher)
        };
        Self { watchers: self.watchers.iter().map(strip).collect(), ..self.clone() }
    }

    /// The state machine of this definition.
    pub fn fsm(&self) -> Fsm {
        Fsm::new(&self.initial_state, &self.transitions)
    }
}

/// Reads a list of at least one object; each comes with its pointer.
fn read_list<T>(reader: &mut Reader<'_>, key: &str, read: fn(&mut Reader<'_>, &str) -> Option<T>) -> Vec<(String, T)> {
    let pointer = format!("/{key}");
    let count = reader.count(&pointer);
    if count == 0 && !reader.is_wrong_type(&pointer) {
        reader.problem(&pointer, format!("a machine needs at least one entry under {key:?}"));
    }
    if count > MAXIMUM_ITEMS {
        reader.problem(&pointer, format!("{count} {key} are more than the limit of {MAXIMUM_ITEMS}"));
        return Vec::new();
    }
    let mut items = Vec::new();
    for index in 0..count {
        let pointer = format!("{pointer}/{index}");
        if let Some(item) = read(reader, &pointer) {
            items.push((pointer, item));
        }
    }
    items
}

fn read_transition(reader: &mut Reader<'_>, pointer: &str) -> Option<Transition> {
    reader.keys(pointer, &keys::names(keys::TRANSITION));
    let name = reader.required(pointer, "name", Label::new);
    let from_pointer = format!("{pointer}/from");
    let from = reader.labels(&from_pointer);
    if from.is_empty() && !reader.is_wrong_type(&from_pointer) {
        reader.problem(&from_pointer, "a transition needs at least one state under \"from\"".to_owned());
    }
    let destination = reader.required(pointer, "destination", Label::new);
    let description = reader.text(&format!("{pointer}/description")).unwrap_or_default().to_owned();
    let subscribe = read_pairs(reader, &format!("{pointer}/subscribe"), keys::SUBSCRIPTION, "event")
        .into_iter()
        .map(|(machine, event)| Subscription { machine, event })
        .collect();
    Some(Transition { name: name?, from, destination: destination?, description, subscribe })
}

fn read_watcher(reader: &mut Reader<'_>, pointer: &str) -> Option<WatcherDefinition> {
    reader.keys(pointer, &keys::names(keys::WATCHER));
    let at = |key: &str| format!("{pointer}/{key}");
    let name = reader.required(pointer, "name", Label::new);
    let kind = reader.required(pointer, "type", |text| Ok::<_, std::convert::Infallible>(text.to_owned()));
    let state_match = reader.labels(&at("state_match"));
    let foreign_state_required = read_pairs(reader, &at("foreign_state_required"), keys::FOREIGN_STATE, "state")
        .into_iter()
        .map(|(machine, state)| ForeignState { machine, state })
        .collect();
    let success_transition = reader.optional(&at("success_transition"), Label::new);
    let fail_transition = reader.optional(&at("fail_transition"), Label::new);
    let interval = reader.optional(&at("interval"), crate::duration::parse).filter(|interval| !interval.is_zero());
    let announce_interval = reader.optional(&at("announce_interval"), crate::duration::parse);
    if announce_interval.is_some_and(|interval| interval < Duration::from_secs(60)) {
        reader.problem(&at("announce_interval"), "announce_interval must be at least 1m".to_owned());
    }
    let properties = reader.properties(&at("properties"));
    let places = WatcherPlaces(reader.document().part(pointer));
    Some(WatcherDefinition {
        name: name?,
        kind: kind?,
        state_match,
        foreign_state_required,
        success_transition,
        fail_transition,
        interval,
        announce_interval,
        properties,
        places,
    })
}

/// Reads `[{machine_name, <key>}]`.
fn read_pairs(reader: &mut Reader<'_>, pointer: &str, keys: &[Key], key: &str) -> Vec<(MachineName, Label)> {
    let mut pairs = Vec::new();
    for index in 0..reader.count(pointer).min(MAXIMUM_ITEMS) {
        let pointer = format!("{pointer}/{index}");
        reader.keys(&pointer, &keys::names(keys));
        let machine = reader.required(&pointer, "machine_name", MachineName::new);
        let label = reader.required(&pointer, key, Label::new);
        if let (Some(machine), Some(label)) = (machine, label) {
            pairs.push((machine, label));
        }
    }
    pairs
}

/// Names must be unique, and every state and transition that is named must exist.
fn check_references(
    reader: &mut Reader<'_>,
    initial_state: &Label,
    transitions: &[(String, Transition)],
    watchers: &[(String, WatcherDefinition)],
) {
    let mut states = BTreeSet::from([initial_state.as_str()]);
    let mut events = BTreeSet::new();
    let mut moves = HashSet::new();
    for (pointer, transition) in transitions {
        events.insert(transition.name.as_str());
        states.insert(transition.destination.as_str());
        for from in &transition.from {
            states.insert(from.as_str());
            if !moves.insert((from, &transition.name)) {
                let message = format!("transition \"{}\" leaves state \"{from}\" twice", transition.name);
                reader.problem(&format!("{pointer}/from"), message);
            }
        }
    }
    let leaves_initial = transitions.iter().any(|(_, transition)| transition.from.contains(initial_state));
    if !transitions.is_empty() && !leaves_initial {
        let known = states.iter().copied().filter(|state| *state != initial_state.as_str());
        let help = nearest(initial_state.as_str(), known).map(|meant| format!("did you mean {meant:?}?"));
        reader.problem_with_help(
            "/initial_state",
            format!("no transition leaves the initial state \"{initial_state}\""),
            help,
        );
    }
    let mut names = HashSet::new();
    for (pointer, watcher) in watchers {
        if !names.insert(watcher.name.as_str()) {
            reader.problem(&format!("{pointer}/name"), format!("there are two watchers named \"{}\"", watcher.name));
        }
        for (index, state) in watcher.state_match.iter().enumerate() {
            if !states.contains(state.as_str()) {
                reader.undefined(&format!("{pointer}/state_match/{index}"), Name::State, state.as_str(), &states);
            }
        }
        let named =
            [("success_transition", &watcher.success_transition), ("fail_transition", &watcher.fail_transition)];
        for (key, event) in named {
            if let Some(event) = event.as_ref().filter(|event| !events.contains(event.as_str())) {
                reader.undefined(&format!("{pointer}/{key}"), Name::Transition, event.as_str(), &events);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
name: facts
version: 1.0.0
initial_state: IDLE
splay_start: 10
transitions:
  - name: go
    from: [IDLE]
    destination: BUSY
    subscribe: [{machine_name: other, event: done}]
watchers:
  - name: run
    type: exec
    interval: 1m
    announce_interval: 5m
    state_match: [IDLE]
    success_transition: go
    properties: {command: ./run.sh}
";

    fn faults(text: &str) -> Vec<String> {
        let problems = Definition::parse(Path::new("machine.yaml"), text).unwrap_err();
        problems.to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn reads_every_key_of_the_reference() {
        let definition = Definition::parse(Path::new("machine.yaml"), GOOD).unwrap();
        assert_eq!(definition.name.as_str(), "facts");
        assert_eq!(definition.splay_start, Duration::from_secs(10));
        assert_eq!(definition.transitions[0].subscribe[0].machine.as_str(), "other");
        let watcher = &definition.watchers[0];
        assert_eq!(watcher.interval, Some(Duration::from_secs(60)));
        assert!(watcher.is_active_in(&Label::new("IDLE").unwrap()));
        assert!(!watcher.is_active_in(&Label::new("BUSY").unwrap()));
        assert_eq!(watcher.properties.value["command"], "./run.sh");
    }

    #[test]
    fn reports_all_faults_at_once_with_their_places() {
        let text = GOOD
            .replace("version: 1.0.0", "version: \"1.0\"")
            .replace("[IDLE]\n    success", "[IDEL]\n    success")
            .replace("success_transition: go", "success_transition: goo")
            .replace("interval: 1m\n", "interval: soon\n")
            .replace("splay_start", "splay_strat");
        let faults = faults(&text);
        assert_eq!(
            faults,
            [
                "machine.yaml:2:10: version: \"1.0\" is not a valid version: use three numbers such as 1.2.3",
                "machine.yaml:4:1: unknown key \"splay_strat\" (did you mean \"splay_start\"?)",
                "machine.yaml:13:15: interval: \"soon\" is not a duration: a number is missing or malformed; \
                 write for example 500ms, 30s, 1h30m or 2d",
                "machine.yaml:15:19: state \"IDEL\" is not defined (did you mean \"IDLE\"?)",
                "machine.yaml:16:25: transition \"goo\" is not defined (did you mean \"go\"?)",
            ]
        );
    }

    #[test]
    fn refuses_what_is_missing_or_of_the_wrong_type() {
        let cases = [
            ("[]", "the document must be an object, not a list"),
            ("name: a", "\"version\" is missing"),
            (
                "name: a\nversion: 1.0.0\ninitial_state: A\ntransitions: 5\nwatchers: []",
                "transitions: must be a list, not a number",
            ),
            ("name: ..\n", "\"..\" is not a valid machine name"),
            ("name: a\nwatchers:\n  - 5\n", "must be an object, not a number"),
        ];
        for (text, expected) in cases {
            let faults = faults(text).join("\n");
            assert!(faults.contains(expected), "{text}: {faults}");
        }
        let twice = GOOD.replace("watchers:\n", "watchers:\n  - {name: run, type: exec, properties: {}}\n");
        assert!(faults(&twice).join("\n").contains("there are two watchers named \"run\""));
        let short = GOOD.replace("announce_interval: 5m", "announce_interval: 5s");
        assert!(faults(&short).join("\n").contains("announce_interval must be at least 1m"));
        let dead = GOOD.replace("initial_state: IDLE", "initial_state: START");
        assert!(faults(&dead).join("\n").contains("no transition leaves the initial state \"START\""));
    }

    #[test]
    fn a_missing_file_is_named() {
        let problems = Definition::load(Path::new("/nonexistent")).unwrap_err();
        assert!(problems.to_string().contains("could not open /nonexistent/machine.yaml"), "{problems}");
    }
}
