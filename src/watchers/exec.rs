//! `exec`: runs a command; exit 0 is success. A running command and all it has started are one process group: at the
//! time limit, or when the machine stops, nothing of it is left.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::machine::data::{Change, Item, to_json};
use crate::machine::watcher::{
    BuildContext, Built, Check, Fire, Fires, Kind, Report, Seen, Watcher, Writes, schema_of,
};

use crate::process::{self, Command, Ended};

/// The row in `KINDS`.
pub const KIND: Kind = Kind {
    name: "exec",
    summary: "runs a command on an interval or when a state is entered",
    minimum_interval: Duration::from_millis(500),
    default_interval: None,
    outcomes: &["unknown", "skipped", "error", "success"],
    build,
    example: "command: \"true\"\ntimeout: 5s\nparse_as_data: false\n",
    fires: Fires::Both,
    schema: schema_of::<Properties>,
};

/// Of each run's output, so many lines are in the log at debug level.
const LOGGED_LINES: usize = 100;

/// Of a command's output, this much is shown to people: its end.
const DETAIL_BYTES: usize = 1_024;

#[expect(clippy::struct_excessive_bools, reason = "the reference's switches, each by itself")]
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Properties {
    /// The command and its arguments in shell words; no shell is involved.
    command: String,
    /// More environment, as `NAME=value`.
    #[serde(default)]
    environment: Vec<String>,
    /// If the command takes longer, it is killed with all it started, and counts as failed.
    #[serde(default = "one_second", deserialize_with = "crate::duration::deserialize")]
    #[schemars(schema_with = "crate::duration::schema")]
    timeout: Duration,
    /// A JSON object on standard output is merged into the machine's data.
    #[serde(default)]
    parse_as_data: bool,
    /// Successful runs publish no state event.
    #[serde(default)]
    suppress_success_announce: bool,
    /// Accepted for the reference's sake: here every watcher is checked when its machine starts.
    #[serde(default)]
    gather_initial_state: bool,
    /// The command is left running when its machine stops. (What a command starts in the background and leaves when it
    /// ends is left alone in any case, so that a command can start a service.)
    #[serde(default)]
    disown: bool,
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

struct Exec {
    properties: Properties,
    words: Vec<String>,
    environment: Vec<(String, String)>,
}

fn build(context: &BuildContext<'_>) -> Built {
    let properties: Properties = context.properties()?;
    _ = properties.gather_initial_state;
    let mut problems = Vec::new();
    let words = match shell_words::split(&properties.command) {
        Ok(words) if words.is_empty() => {
            problems.push(context.fault("command", "command is empty"));
            Vec::new()
        }
        Ok(words) => words,
        Err(error) => {
            problems.push(context.fault("command", format!("command {:?}: {error}", properties.command)));
            Vec::new()
        }
    };
    if words.iter().any(|word| word.contains('\0')) {
        problems.push(context.fault("command", "command must not hold a NUL character"));
    }
    let mut environment = Vec::new();
    for (index, line) in properties.environment.iter().enumerate() {
        match line.split_once('=') {
            Some((name, value)) if !name.is_empty() && !line.contains('\0') => {
                environment.push((name.to_owned(), value.to_owned()));
            }
            _ => problems.push(
                context.fault(&format!("environment/{index}"), format!("environment {line:?} must be NAME=value")),
            ),
        }
    }
    if properties.timeout.is_zero() {
        problems.push(context.fault("timeout", "timeout must be longer than 0s"));
    }
    if problems.is_empty() { Ok(Arc::new(Exec { properties, words, environment })) } else { Err(problems) }
}

impl Exec {
    fn report(&self, ended: Ended) -> Report {
        let detail = Some(tail(&ended.output)).filter(|text| !text.is_empty());
        let failed = |message: String| Report { detail: detail.clone(), ..Report::error(message) };
        let command = &self.properties.command;
        match ended.failure {
            Some(failure) => {
                let output = detail.as_deref().map(|text| format!("; it printed: {text}")).unwrap_or_default();
                return failed(format!("{command}: {failure}{output}"));
            }
            None if !self.properties.parse_as_data => {}
            None => match parse(&ended) {
                Ok(changes) => {
                    return self.announced(Report { changes, detail, ..Report::new("success") }.fire(Fire::Success));
                }
                Err(reason) => return failed(format!("{command}: its output can't become data: {reason}")),
            },
        }
        self.announced(Report { detail, ..Report::new("success") }.fire(Fire::Success))
    }

    fn announced(&self, report: Report) -> Report {
        if self.properties.suppress_success_announce { report } else { report.announce() }
    }
}

fn parse(ended: &Ended) -> Result<Vec<Change>, String> {
    if ended.truncated {
        return Err(format!("it is larger than {} bytes", process::MAXIMUM_OUTPUT_BYTES));
    }
    match serde_json::from_slice(&ended.standard_output) {
        Ok(Value::Object(object)) => {
            Ok(object.into_iter().map(|(name, value)| Change::Set(name, Item::new(value))).collect())
        }
        Ok(_) => Err("it is JSON, but not an object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The end of an output, on character boundaries.
fn tail(output: &[u8]) -> String {
    let start = output.len().saturating_sub(DETAIL_BYTES);
    let text = String::from_utf8_lossy(output.get(start..).unwrap_or_default());
    text.trim().to_owned()
}

#[async_trait]
impl Watcher for Exec {
    async fn check(&self, check: Check) -> Report {
        let context = &check.context;
        let command = Command {
            words: self.words.clone(),
            directory: context.directory.clone(),
            data_directory: context.data_directory.clone(),
            environment: self.environment.clone(),
            watcher: context.watcher.to_string(),
            machine: context.definition.name.to_string(),
            data: to_json(&check.data).to_string(),
            facts: context.services.node.facts().text().to_owned(),
            timeout: self.properties.timeout,
            remains: if self.properties.disown { process::Remains::Leave } else { process::Remains::Kill },
        };
        match context.services.commands.run(command).await {
            Ok(ended) => {
                for line in String::from_utf8_lossy(&ended.output).lines().take(LOGGED_LINES) {
                    tracing::debug!(machine = %context.definition.name, watcher = %context.watcher, "output: {line}");
                }
                self.report(ended)
            }
            Err(error) => Report::error(format!("{}: {}", self.properties.command, crate::errors::chain(&error))),
        }
    }

    /// The command's own limit ends it first; this is for a disk that hangs.
    fn timeout(&self) -> Duration {
        self.properties.timeout + Duration::from_secs(10)
    }

    fn fires_on_entry(&self) -> bool {
        true
    }

    fn writes(&self) -> Writes {
        if self.properties.parse_as_data { Writes::Anything } else { Writes::Items(Vec::new()) }
    }

    fn event_fields(&self, seen: &Seen) -> Map<String, Value> {
        Map::from_iter([
            ("command".to_owned(), json!(self.properties.command)),
            ("previous_outcome".to_owned(), json!(seen.outcome)),
            ("previous_run_time".to_owned(), json!(seen.run_time_nanos())),
        ])
    }
}
