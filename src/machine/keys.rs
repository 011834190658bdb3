//! The keys of machine.yaml, each with what it means and may hold. The reader takes the names from here, and the JSON
//! Schema everything, so that the two can't drift apart.

use serde_json::{Value, json};

use super::definition::MAXIMUM_ITEMS;

/// One key of an object.
pub struct Key {
    pub name: &'static str,
    pub required: bool,
    /// For people, in editors.
    pub meaning: &'static str,
    /// What its value must be.
    pub schema: fn() -> Value,
}

const fn required(name: &'static str, meaning: &'static str, schema: fn() -> Value) -> Key {
    Key { name, required: true, meaning, schema }
}

const fn optional(name: &'static str, meaning: &'static str, schema: fn() -> Value) -> Key {
    Key { name, required: false, meaning, schema }
}

/// Of the document.
pub const MACHINE: &[Key] = &[
    required("name", "The machine's name, which is also that of its directory.", machine_name),
    required("version", "Three numbers.", || reference("version")),
    required("initial_state", "The state at the start; a transition must leave it.", label),
    optional("splay_start", "The machine starts after a random wait below this many seconds.", seconds),
    required(
        "transitions",
        "Named moves between states. States are what is named here; they are not declared.",
        || list("transition", 1),
    ),
    required("watchers", "What looks and acts in which state.", || list("watcher", 1)),
];

/// Of an entry under `transitions`.
pub const TRANSITION: &[Key] = &[
    required("name", "What watchers and people call it. Several transitions may have one name.", label),
    required("from", "The states that it leaves.", || json!({"type": "array", "items": label(), "minItems": 1})),
    required("destination", "The state that it leads to.", label),
    optional("description", "For people; one that only people make needs it.", || json!({"type": "string"})),
    optional("subscribe", "It is made when another machine of this node makes one of these.", || {
        list("subscription", 0)
    }),
];

/// Of an entry under `subscribe`.
pub const SUBSCRIPTION: &[Key] =
    &[required("machine_name", "The other machine.", machine_name), required("event", "Its transition.", label)];

/// Of an entry under `watchers`.
pub const WATCHER: &[Key] = &[
    required("name", "Unique in the machine.", label),
    required("type", "What it does.", || json!({"type": "string"})),
    optional(
        "state_match",
        "The states in which it works; none means every state.",
        || json!({"type": "array", "items": label()}),
    ),
    optional("foreign_state_required", "It works only while other machines of this node are in these states.", || {
        list("foreign_state", 0)
    }),
    optional("success_transition", "Made when a check succeeds.", label),
    optional("fail_transition", "Made when a check fails.", label),
    optional("interval", "The time between checks.", duration),
    optional("announce_interval", "Its state is published this often, at least every 1m.", duration),
    optional("properties", "What its type needs.", || json!({"type": ["object", "null"]})),
];

/// Of an entry under `foreign_state_required`.
pub const FOREIGN_STATE: &[Key] = &[
    required("machine_name", "The other machine.", machine_name),
    required("state", "The state that it must be in.", label),
];

/// The names of a table.
pub fn names(keys: &[Key]) -> Vec<&'static str> {
    keys.iter().map(|key| key.name).collect()
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/$defs/{name}")})
}

fn machine_name() -> Value {
    reference("machine_name")
}

fn label() -> Value {
    reference("label")
}

fn duration() -> Value {
    reference("duration")
}

fn seconds() -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": crate::duration::MAXIMUM.as_secs()})
}

fn list(of: &str, minimum: usize) -> Value {
    json!({"type": "array", "items": reference(of), "minItems": minimum, "maxItems": MAXIMUM_ITEMS})
}
