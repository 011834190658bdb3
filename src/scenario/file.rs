//! The shape of `machine.test.yaml`. Whatever a scenario does not mention is empty: no facts, no data, no neighbours.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The whole file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Each runs by itself, from the machine's start.
    pub scenarios: Vec<Scenario>,
}

/// One story of a machine.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What holds, as a sentence.
    pub name: String,
    /// The time of day at the start, such as `2026-03-29T00:00:00Z`.
    #[serde(default = "new_year")]
    #[schemars(with = "String")]
    pub start: Timestamp,
    /// The node's identity.
    #[serde(default = "identity")]
    pub identity: String,
    /// The node's facts, all of them.
    #[serde(default)]
    pub facts: Map<String, Value>,
    /// The machine's data at its start.
    #[serde(default)]
    pub data: Map<String, Value>,
    /// Other machines of the node, by name, with the states they are in.
    #[serde(default)]
    pub neighbours: BTreeMap<String, String>,
    /// Values in the key-value store: bucket, key, value. What is not a text is stored as JSON.
    #[serde(default)]
    pub kv: BTreeMap<String, BTreeMap<String, Value>>,
    /// Governors whose slots are all taken; every other has one.
    #[serde(default)]
    pub full_governors: Vec<String>,
    /// What commands answer. The first that fits and is not used up counts.
    #[serde(default)]
    pub commands: Vec<Answer>,
    pub steps: Vec<Step>,
}

/// What a command answers.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The name of the watcher that runs it; without it every watcher's.
    pub watcher: Option<String>,
    /// Answers only commands that have this in them.
    pub command: Option<String>,
    /// Its exit code.
    #[serde(default)]
    pub exit: u8,
    /// What it prints.
    #[serde(default)]
    pub output: String,
    /// How long it takes; longer than the watcher's timeout, and it is killed.
    #[serde(default, deserialize_with = "crate::duration::deserialize")]
    #[schemars(schema_with = "crate::duration::schema")]
    pub takes: Duration,
    /// So often it answers; without it always.
    pub times: Option<u32>,
}

/// What happens, in the order of these keys, and what must be so afterwards.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// New answers; they count before those that were given earlier.
    pub commands: Vec<Answer>,
    /// Facts to change; `null` removes one.
    pub facts: Map<String, Value>,
    /// Data items to change; `null` removes one.
    pub data: Map<String, Value>,
    /// Values to put into the key-value store; `null` deletes the key.
    pub kv: BTreeMap<String, BTreeMap<String, Value>>,
    /// Another machine moves.
    pub neighbour: Option<Neighbour>,
    /// A person makes this transition.
    pub event: Option<String>,
    /// So much time passes.
    #[serde(deserialize_with = "crate::duration::deserialize_option")]
    #[schemars(schema_with = "crate::duration::schema")]
    pub after: Option<Duration>,
    pub expect: Option<Expectation>,
}

/// A move of another machine.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    pub name: String,
    /// The state that it is in now; without it the machine has ended.
    pub state: Option<String>,
    /// The transition that brought it there.
    pub event: Option<String>,
}

/// What must be so. What is not mentioned may be anything.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Expectation {
    /// The machine's state.
    pub state: Option<String>,
    /// All transitions since the last step that expected transitions, in order.
    pub transitions: Option<Vec<String>>,
    /// Data items; `null`: there is none.
    pub data: Map<String, Value>,
    /// Outcomes of watchers, by name.
    pub watchers: BTreeMap<String, String>,
    /// How often commands have run since the last step that expected runs, by watcher.
    pub runs: Option<BTreeMap<String, u64>>,
}

fn new_year() -> Timestamp {
    Timestamp::constant(1_767_225_600, 0)
}

fn identity() -> String {
    "node1.example.net".to_owned()
}
