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

use crate::machine::property::{NameOrNumber, Size};
use crate::machine::template::{Form, Hazard, Rendered, Scope, Template};
use crate::process::{self, Command, Confinement, Ended, Limits};

use super::governed::{Governed, five_minutes};

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

/// The kernel takes no more for a command's words and environment together (`ARG_MAX` with the usual stack), and a command whose
/// many variables look up the same long value must not take gigabytes before that is found.
const MAXIMUM_BYTES: usize = 2 * 1024 * 1024;

/// Of a command's output, this much is shown to people: its end.
const DETAIL_BYTES: usize = 1_024;

#[expect(clippy::struct_excessive_bools, reason = "the reference's switches, each by itself")]
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Properties {
    /// The command and its arguments in shell words; no shell is involved. A template that stands in quotes is one word,
    /// whatever its value holds: `'{{ lookup "data.name" "" }}'`. The value of one outside of quotes is split into words.
    /// In a script (`sh -c '…'`) the interpreter reads the value: write `{{ Quote (lookup "data.name" "") }}` there.
    command: Template,
    /// More environment, as `NAME=value`; each may be a template.
    #[serde(default)]
    environment: Vec<Template>,
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
    /// The governor whose slot is held while the command runs.
    governor: Option<Template>,
    /// How long a slot is waited for, besides the command's own limit; then the check has failed.
    #[serde(default = "five_minutes", deserialize_with = "crate::duration::deserialize")]
    #[schemars(schema_with = "crate::duration::schema")]
    governor_timeout: Duration,
    /// The user that the command runs as, by name or number, with the user's groups; the daemon must run as root.
    user: Option<NameOrNumber>,
    /// The group that the command runs as, by name or number; the user's own by default.
    group: Option<NameOrNumber>,
    /// Permissions that new files of the command do not get, in octal digits such as "0027".
    umask: Option<String>,
    /// How much memory each process of the command may have, and all together, for example 64MiB.
    memory: Option<Size>,
    /// How much processor time the command may use with all it starts.
    #[serde(default, deserialize_with = "some_duration")]
    #[schemars(schema_with = "crate::duration::schema")]
    cpu: Option<Duration>,
    /// How many processes and threads the command may have at one time; needs `user`, as root is never bound by it.
    tasks: Option<u32>,
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

fn some_duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    crate::duration::deserialize(deserializer).map(Some)
}

struct Exec {
    properties: Properties,
    confinement: Confinement,
    governed: Governed,
}

fn build(context: &BuildContext<'_>) -> Built {
    let properties: Properties = context.properties()?;
    _ = properties.gather_initial_state;
    let mut problems = Vec::new();
    let (governor, patience) = (properties.governor.clone(), properties.governor_timeout);
    let governed = Governed::new(context, governor, patience, &mut problems);
    // What is a template is judged when it is rendered.
    if properties.command.is_plain()
        && let Err(reason) = Rendered::plain(properties.command.source()).words()
    {
        problems.push(context.fault("command", format!("command {reason}")));
    }
    for (index, line) in properties.environment.iter().enumerate().filter(|(_, line)| line.is_plain()) {
        if let Err(reason) = variable(line.source()) {
            problems.push(context.fault(&format!("environment/{index}"), reason));
        }
    }
    let umask = properties.umask.as_deref().map(octal).transpose().unwrap_or_else(|reason| {
        problems.push(context.fault("umask", reason));
        None
    });
    for (name, is_zero) in [
        ("memory", properties.memory.is_some_and(|size| size.bytes() == 0)),
        ("cpu", properties.cpu.is_some_and(|time| time.is_zero())),
        ("tasks", properties.tasks == Some(0)),
    ] {
        if is_zero {
            problems.push(context.fault(name, format!("{name} must be more than 0")));
        }
    }
    if properties.timeout.is_zero() {
        problems.push(context.fault("timeout", "timeout must be longer than 0s"));
    }
    let confinement = Confinement {
        user: properties.user.clone().map(NameOrNumber::account),
        group: properties.group.clone().map(NameOrNumber::account),
        umask,
        limits: Limits {
            memory_bytes: properties.memory.map(Size::bytes),
            cpu: properties.cpu,
            tasks: properties.tasks,
        },
    };
    if problems.is_empty() { Ok(Arc::new(Exec { properties, confinement, governed })) } else { Err(problems) }
}

fn variable(line: &str) -> Result<(String, String), String> {
    match line.split_once('=') {
        Some((name, value)) if !name.is_empty() && !line.contains('\0') => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("environment {line:?} must be NAME=value")),
    }
}

fn octal(text: &str) -> Result<u32, String> {
    let digits = (3..=4).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let value = if digits { u32::from_str_radix(text, 8).ok() } else { None };
    value.filter(|mask| *mask <= 0o777).ok_or_else(|| format!("umask {text:?} must be octal digits such as \"0027\""))
}

impl Exec {
    /// The words and the environment of the moment.
    fn render(&self, scope: &Scope) -> Result<(Vec<String>, Vec<(String, String)>), String> {
        let render = |template: &Template| {
            template.render(scope).map(std::borrow::Cow::into_owned).map_err(|error| crate::errors::chain(&error))
        };
        let command = self.properties.command.render_command(scope).map_err(|error| crate::errors::chain(&error))?;
        let words = command.words().map_err(|reason| format!("command {reason}"))?;
        let mut bytes: usize = words.iter().map(String::len).sum();
        let environment = self.properties.environment.iter().map(|line| {
            let line = render(line)?;
            bytes += line.len();
            if bytes > MAXIMUM_BYTES {
                return Err(format!("its words and environment have more than {MAXIMUM_BYTES} bytes together"));
            }
            variable(&line)
        });
        Ok((words, environment.collect::<Result<_, _>>()?))
    }

    fn report(&self, ended: Ended) -> Report {
        let detail = Some(tail(&ended.output)).filter(|text| !text.is_empty());
        let failed = |message: String| Report { detail: detail.clone(), ..Report::error(message) };
        let command = self.properties.command.brief();
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
        let _slot = match self.governed.enter(&check).await {
            Ok(slot) => slot,
            Err(report) => return report,
        };
        let context = &check.context;
        let (words, environment) = match self.render(&check.scope()) {
            Ok(rendered) => rendered,
            Err(reason) => return Report::error(format!("{}: {reason}", self.properties.command.brief())),
        };
        let command = Command {
            words,
            directory: context.directory.clone(),
            data_directory: context.data_directory.clone(),
            environment,
            watcher: context.watcher.to_string(),
            machine: context.definition.name.to_string(),
            data: to_json(&check.data).to_string(),
            facts: context.services.node.facts().text().to_owned(),
            timeout: self.properties.timeout,
            remains: if self.properties.disown { process::Remains::Leave } else { process::Remains::Kill },
            confinement: self.confinement.clone(),
        };
        match context.services.commands.run(command).await {
            Ok(ended) => self.report(ended),
            Err(error) => {
                Report::error(format!("{}: {}", self.properties.command.brief(), crate::errors::chain(&error)))
            }
        }
    }

    /// The command's own limit ends it first; this is for a disk that hangs.
    fn timeout(&self) -> Duration {
        self.properties.timeout + Duration::from_secs(10) + self.governed.patience()
    }

    fn looks_up(&self) -> Vec<String> {
        let templates = std::iter::once(&self.properties.command).chain(&self.properties.environment);
        let mut paths: Vec<String> = templates.flat_map(|template| template.lookups().to_vec()).collect();
        paths.extend(self.governed.looks_up());
        paths
    }

    fn hazards(&self) -> Vec<Hazard> {
        let environment = self.properties.environment.iter().map(|line| line.hazards(Form::Variable));
        [self.properties.command.hazards(Form::Command)].into_iter().chain(environment).flatten().collect()
    }

    fn fires_on_entry(&self) -> bool {
        true
    }

    fn writes(&self) -> Writes {
        if self.properties.parse_as_data { Writes::Anything } else { Writes::Items(Vec::new()) }
    }

    fn event_fields(&self, seen: &Seen) -> Map<String, Value> {
        Map::from_iter([
            ("command".to_owned(), json!(crate::secret::masked(self.properties.command.source()))),
            ("previous_outcome".to_owned(), json!(seen.outcome)),
            ("previous_run_time".to_owned(), json!(seen.run_time_nanos())),
        ])
    }
}
