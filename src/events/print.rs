//! Events for people: a line each, as the reference (`choria machine watch`) prints them, and which of them are wanted. In:
//! `CloudEvents` as JSON, from the daemon or from anyone who may publish to NATS.

use serde_json::{Map, Value};

/// Of a value on a line, this many characters.
const MAXIMUM_VALUE: usize = 40;
/// What every event says, and what its line shows in a place of its own.
const ELSEWHERE: [&str; 10] = [
    "protocol",
    "identity",
    "id",
    "version",
    "timestamp",
    "type",
    "machine",
    "name",
    "previous_outcome",
    "previous_run_time",
];

/// Which events are wanted; by default all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub about: About,
    /// Of this watcher type.
    pub kind: Option<String>,
    pub identity: Option<String>,
    pub machine: Option<String>,
}

/// What events are about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum About {
    #[default]
    Everything,
    Transitions,
    Watchers,
}

impl Filter {
    /// Whether an event is wanted.
    pub fn takes(&self, event: &Value) -> bool {
        let data = event.get("data").and_then(Value::as_object);
        let text = |key: &str| data.and_then(|data| data.get(key)).and_then(Value::as_str);
        let is = |wanted: &Option<String>, key: &str| wanted.as_deref().is_none_or(|wanted| text(key) == Some(wanted));
        let about = match self.about {
            About::Everything => true,
            About::Transitions => text("transition").is_some(),
            About::Watchers => text("transition").is_none(),
        };
        about && is(&self.kind, "type") && is(&self.identity, "identity") && is(&self.machine, "machine")
    }
}

/// An event on one line.
pub fn line(event: &Value) -> String {
    let none = Map::new();
    let data = event.get("data").and_then(Value::as_object).unwrap_or(&none);
    let text = |key: &str| data.get(key).map(shown).unwrap_or_default();
    let (identity, machine) = (text("identity"), text("machine"));
    if data.contains_key("transition") {
        let (transition, from, to) = (text("transition"), text("from_state"), text("to_state"));
        return format!("{identity} {machine} transitioned via event {transition}: {from} => {to}");
    }
    let is_plain = |value: &Value| !matches!(value, Value::Object(_) | Value::Null);
    let fields = data.iter().filter(|(key, value)| !ELSEWHERE.contains(&key.as_str()) && is_plain(value));
    let mut parts: Vec<String> = fields.map(|(key, value)| format!("{key}: {}", shown(value))).collect();
    if let Some(outcome) = data.get("previous_outcome") {
        let ran = data.get("previous_run_time").and_then(Value::as_f64);
        let ran = ran.map(|nanoseconds| format!(" ran: {:.3}s", nanoseconds / 1e9)).unwrap_or_default();
        parts.push(format!("previous: {}{ran}", shown(outcome)));
    }
    format!("{identity} {machine}#{} {}", text("name"), parts.join(", "))
}

/// Anyone may have written it.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().take(MAXIMUM_VALUE).map(shown).collect();
            items.join(", ")
        }
        other => other.to_string(),
    };
    crate::shown::cut(&text, MAXIMUM_VALUE)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn transition() -> Value {
        json!({"data": {"identity": "web1", "machine": "facts", "transition": "go", "from_state": "A", "to_state": "B"}})
    }

    fn state() -> Value {
        json!({"data": {
            "identity": "web1", "machine": "facts", "name": "run", "type": "exec", "command": "./run.sh \u{1b}[2J",
            "previous_outcome": "success", "previous_run_time": 1_500_000,
        }})
    }

    #[test]
    fn lines_are_those_of_the_reference() {
        assert_eq!(line(&transition()), "web1 facts transitioned via event go: A => B");
        assert_eq!(line(&state()), "web1 facts#run command: ./run.sh \\x1b[2J, previous: success ran: 0.002s");
        let machines = json!({"data": {
            "identity": "web1", "machine": "manager", "name": "machines", "type": "machines", "machines": ["a", "b"],
            "previous_outcome": "updated",
        }});
        assert_eq!(line(&machines), "web1 manager#machines machines: a, b, previous: updated");
        let long = json!({"data": {"identity": "i".repeat(500), "transition": "t"}});
        assert!(line(&long).chars().count() < 100);
        assert_eq!(line(&json!(5)), " # ");
    }

    #[test]
    fn filters_take_what_they_say() {
        let takes = |filter: Filter| (filter.takes(&transition()), filter.takes(&state()));
        assert_eq!(takes(Filter::default()), (true, true));
        assert_eq!(takes(Filter { about: About::Transitions, ..Filter::default() }), (true, false));
        assert_eq!(takes(Filter { about: About::Watchers, ..Filter::default() }), (false, true));
        assert_eq!(takes(Filter { kind: Some("exec".to_owned()), ..Filter::default() }), (false, true));
        assert_eq!(takes(Filter { kind: Some("kv".to_owned()), ..Filter::default() }), (false, false));
        assert_eq!(takes(Filter { identity: Some("web2".to_owned()), ..Filter::default() }), (false, false));
        assert_eq!(takes(Filter { machine: Some("facts".to_owned()), ..Filter::default() }), (true, true));
    }
}
