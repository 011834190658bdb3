//! `timer`: starts when a matching state is entered, is cancelled when the machine leaves, and fires the fail transition
//! at its end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::machine::problem::Problem;
use crate::machine::watcher::{BuildContext, Built, Cause, Check, Fire, Fires, Kind, Report, Seen, Watcher, schema_of};

/// The row in `KINDS`.
pub const KIND: Kind = Kind {
    name: "timer",
    summary: "fires the fail transition when a state has lasted for some time",
    minimum_interval: Duration::from_secs(1),
    default_interval: None,
    outcomes: &["running", "stopped"],
    build,
    example: "timer: 1m\nsplay: true\n",
    fires: Fires::Fail,
    schema: schema_of::<Properties>,
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Properties {
    /// How long after entering the state the fail transition fires; at least 1s.
    #[serde(deserialize_with = "crate::duration::deserialize")]
    #[schemars(schema_with = "crate::duration::schema")]
    timer: Duration,
    /// Ends at a random moment below `timer` instead.
    #[serde(default)]
    splay: bool,
}

struct Timer {
    properties: Properties,
    /// When the running timer ends.
    deadline: Mutex<Option<Instant>>,
}

fn build(context: &BuildContext<'_>) -> Built {
    let properties: Properties = context.properties()?;
    let mut problems = Vec::new();
    if properties.timer < Duration::from_secs(1) {
        problems.push(context.fault("timer", "timer must be at least 1s"));
    }
    if context.watcher.success_transition.is_some() {
        let place = context.watcher.places.of("success_transition");
        let message = format!("timer watcher \"{}\": success_transition is not allowed", context.watcher.name);
        problems.push(Problem::new(place, message).help("a timer fires fail_transition at its end"));
    }
    if problems.is_empty() { Ok(Arc::new(Timer { properties, deadline: Mutex::new(None) })) } else { Err(problems) }
}

#[async_trait]
impl Watcher for Timer {
    async fn check(&self, check: Check) -> Report {
        let now = Instant::now();
        let mut deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        match *deadline {
            // Over; only entering a state starts it again.
            None if check.cause != Cause::Entered => Report::new("stopped"),
            None => {
                let wait = if self.properties.splay {
                    self.properties.timer.mul_f64(check.context.services.chance.fraction())
                } else {
                    self.properties.timer
                };
                *deadline = Some(now + wait);
                Report { again: Some(wait), ..Report::new("running") }.announce()
            }
            Some(end) if end <= now => {
                *deadline = None;
                Report::new("stopped").fire(Fire::Fail).announce()
            }
            Some(end) => Report { again: Some(end - now), ..Report::new("running") },
        }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn left(&self) -> Option<Report> {
        let mut deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        deadline.take().map(|_| Report::new("stopped").announce())
    }

    fn event_fields(&self, seen: &Seen) -> Map<String, Value> {
        let nanos = u64::try_from(self.properties.timer.as_nanos()).unwrap_or(u64::MAX);
        Map::from_iter([("state".to_owned(), json!(seen.outcome)), ("timer".to_owned(), json!(nanos))])
    }
}
