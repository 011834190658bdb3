//! `expression`: asks the facts and the machine's data, and fires when the answer changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::expr::{WatcherExpression, World};
use crate::machine::watcher::{
    Background, BuildContext, Built, Check, Context, Fire, Fires, Kind, Report, Seen, Signal, Watcher, follow_facts,
    schema_of,
};

/// The row in `KINDS`.
pub const KIND: Kind = Kind {
    name: "expression",
    summary: "fires when what an expression says of facts and data changes",
    minimum_interval: Duration::from_millis(500),
    default_interval: Some(Duration::from_secs(10)),
    outcomes: &["success_when", "failed_when", "no_match", "skipped", "error"],
    build,
    example: "success_when: facts.cpus >= 2 && data.count == nil\nfail_when: get_fact(\"role\") != \"web\"\n",
    fires: Fires::Both,
    schema: schema_of::<Properties>,
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Properties {
    /// When this becomes true, the success transition fires. The language is that of `match`; known are `data`, `facts`,
    /// `identity` (the node's name, a text) and `get_fact("path")`, which takes a GJSON path.
    success_when: Option<String>,
    /// When this becomes true, and `success_when` is not, the fail transition fires.
    fail_when: Option<String>,
}

struct Expression {
    success_when: Option<WatcherExpression>,
    fail_when: Option<WatcherExpression>,
}

fn build(context: &BuildContext<'_>) -> Built {
    let properties: Properties = context.properties()?;
    let mut problems = Vec::new();
    let mut read = |name: &str, text: Option<String>| {
        let parsed = WatcherExpression::parse(&text?);
        parsed.map_err(|error| problems.push(context.fault(name, format!("{name}: {error}")))).ok()
    };
    let is_missing = properties.success_when.is_none() && properties.fail_when.is_none();
    let success_when = read("success_when", properties.success_when);
    let fail_when = read("fail_when", properties.fail_when);
    if is_missing {
        problems.push(context.fault("", "success_when or fail_when is needed"));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Arc::new(Expression { success_when, fail_when }))
}

impl Expression {
    fn expressions(&self) -> impl Iterator<Item = &WatcherExpression> {
        self.success_when.iter().chain(&self.fail_when)
    }

    fn outcome(&self, world: &World<'_>) -> Result<&'static str, String> {
        let is_true = |name: &str, expression: &Option<WatcherExpression>| match expression {
            Some(expression) => expression.is_true(world).map_err(|error| format!("{name}: {error}")),
            None => Ok(false),
        };
        if is_true("success_when", &self.success_when)? {
            Ok("success_when")
        } else if is_true("fail_when", &self.fail_when)? {
            Ok("failed_when")
        } else {
            Ok("no_match")
        }
    }
}

#[async_trait]
impl Watcher for Expression {
    async fn check(&self, check: Check) -> Report {
        let node = &check.context.services.node;
        let facts = node.facts();
        let data: BTreeMap<&str, &Value> = check.data.iter().map(|(name, item)| (name.as_str(), &item.value)).collect();
        let outcome = match self.outcome(&World::new(node, &facts, data)) {
            Ok(outcome) => outcome,
            // No verdict is not a bad one: nothing is fired, as in the reference.
            Err(error) => return Report { error: Some(error), ..Report::new("error") }.announce(),
        };
        if outcome == check.previous_outcome {
            return Report::new(outcome);
        }
        let report = Report::new(outcome).announce();
        match outcome {
            "success_when" => report.fire(Fire::Success),
            "failed_when" => report.fire(Fire::Fail),
            _ => report,
        }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn reads(&self) -> Vec<String> {
        self.expressions().flat_map(WatcherExpression::items).collect()
    }

    fn looks_up(&self) -> Vec<String> {
        self.expressions().flat_map(WatcherExpression::lookups).collect()
    }

    fn observe(&self, context: &Context, signal: Signal) -> Option<Background> {
        let asks_facts = self.looks_up().iter().any(|path| path.starts_with("facts"));
        asks_facts.then(|| Box::pin(follow_facts(Arc::clone(&context.services.node), signal)) as Background)
    }

    /// What the verdict was in another stay is no longer known: the next one counts as new.
    fn left(&self) -> Option<Report> {
        Some(Report::new("skipped"))
    }

    fn event_fields(&self, seen: &Seen) -> Map<String, Value> {
        Map::from_iter([("previous_outcome".to_owned(), json!(seen.outcome))])
    }
}
