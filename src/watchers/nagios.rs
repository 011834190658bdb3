//! `nagios`: runs a Nagios plugin or a check of its own, and moves its machine to the state that the result names: exit
//! codes 0 to 3 ask for the transitions `OK`, `WARNING`, `CRITICAL` and `UNKNOWN`.
//!
//! A transition that leads to the state that the machine is in already, or that does not leave this state, is not asked
//! for: the result is told all the same, and nothing is refused every minute.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use gotmpl::{FuncMap, TemplateError as GoError, Value as GoValue};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::machine::panel::{Checked, Shown};
use crate::machine::problem::Problem;
use crate::machine::property::NameOrNumber;
use crate::machine::template::{Form, Hazard, Template, query};
use crate::machine::watcher::{
    Background, BuildContext, Built, Cause, Check, Context, Fire, Fires, Kind, Report, Seen, Signal, Watcher, schema_of,
};
use crate::names::Label;
use crate::process::{Confinement, ProcessError};

use super::nagios_plugin::{self, PerfData};

/// The row in `KINDS`.
pub const KIND: Kind = Kind {
    name: "nagios",
    summary: "moves its machine to OK, WARNING, CRITICAL or UNKNOWN, as a Nagios plugin says",
    minimum_interval: Duration::from_millis(500),
    default_interval: None,
    outcomes: &["unknown", "error", "critical", "warning", "ok"],
    build,
    example: "plugin: \"echo 'OK: fine|a=1s'\"\ntimeout: 5s\nannotations:\n  team: web\n",
    fires: Fires::Named(&["OK", "WARNING", "CRITICAL", "UNKNOWN"]),
    schema: schema_of::<Properties>,
};

/// Results that events tell, the newest last.
const HISTORY: usize = 15;
/// Of an output, this much is told.
const OUTPUT_BYTES: usize = 8 * 1_024;
/// The data item with values for `o`, by machine.
const OVERRIDES: &str = "overrides";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Builtin {
    /// Always OK: that the events come is the news.
    Heartbeat,
    /// Runs `goss` on `gossfile`.
    Goss,
    /// Looks at the daemon itself: its store, and how it follows the specification.
    ChoriaStatus,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Properties {
    /// A Nagios plugin and its arguments in shell words; no shell is involved. In its templates, `o "path" default` is
    /// the value at `MACHINE.path` of the data item `overrides`.
    plugin: Option<String>,
    /// A check that needs no plugin.
    builtin: Option<Builtin>,
    /// For `builtin: goss`: the file with its tests.
    gossfile: Option<Template>,
    /// The user that the plugin runs as, by name or number, with the user's groups; the daemon must run as root.
    user: Option<NameOrNumber>,
    /// The group that the plugin runs as, by name or number; the user's own by default.
    group: Option<NameOrNumber>,
    /// A plugin that takes longer is killed, and counts as UNKNOWN.
    #[serde(default = "one_second", deserialize_with = "crate::duration::deserialize")]
    #[schemars(schema_with = "crate::duration::schema")]
    timeout: Duration,
    /// Told in events.
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    /// Accepted for the reference's sake: `choria_status` has no messages to look for here.
    #[serde(default, deserialize_with = "crate::duration::deserialize_option")]
    #[schemars(schema_with = "crate::duration::schema")]
    last_message: Option<Duration>,
    /// Accepted for the reference's sake, as there are no such certificates here.
    #[serde(default, deserialize_with = "crate::duration::deserialize_option")]
    #[schemars(schema_with = "crate::duration::schema")]
    pubcert_expire: Option<Duration>,
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

/// What is run.
enum Plugin {
    Command(Template),
    Heartbeat,
    Goss(Template),
    Daemon,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    Warning,
    Critical,
    Unknown,
}

impl Status {
    fn of(exit_code: Option<i32>) -> Self {
        match exit_code {
            Some(0) => Self::Ok,
            Some(1) => Self::Warning,
            Some(2) => Self::Critical,
            _ => Self::Unknown,
        }
    }

    /// The transition, and the status in events.
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }

    fn outcome(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Unknown => "unknown",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Critical => 2,
            Self::Unknown => 3,
        }
    }
}

/// One result, as events tell the last ones.
#[derive(Clone, Serialize)]
struct Execution {
    execute: Timestamp,
    status: u8,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    perfdata: Vec<PerfData>,
}

/// What a check found.
struct Found {
    status: Status,
    output: String,
    perfdata: Vec<PerfData>,
    /// Why there is no result.
    error: Option<String>,
}

impl Found {
    fn new(status: Status, output: String) -> Self {
        let perfdata = nagios_plugin::performance_data(&output);
        Self { status, output, perfdata, error: None }
    }

    fn error(message: String) -> Self {
        Self { error: Some(message.clone()), ..Self::new(Status::Unknown, message) }
    }
}

/// The last result, for events.
#[derive(Default)]
struct Last {
    plugin: String,
    status: Option<Status>,
    output: String,
    check_time: Option<Timestamp>,
    perfdata: Vec<PerfData>,
    run_time: Duration,
    history: VecDeque<Execution>,
    checks: u64,
    error: Option<String>,
    /// The state that the last result leads to: what was just checked is not checked again on entering it.
    arriving: Option<Label>,
}

struct Nagios {
    plugin: Plugin,
    timeout: Duration,
    confinement: Confinement,
    annotations: BTreeMap<String, String>,
    last: Mutex<Last>,
}

fn build(context: &BuildContext<'_>) -> Built {
    let properties: Properties = context.properties()?;
    _ = (properties.last_message, properties.pubcert_expire);
    let mut problems = Vec::new();
    let mut note = |key: &str, message: String| problems.push(context.fault(key, message));
    let plugin = match (properties.plugin, properties.builtin) {
        (Some(_), Some(_)) => {
            note("builtin", "plugin and builtin exclude each other".to_owned());
            None
        }
        (None, None) => {
            note("plugin", "plugin or builtin is missing".to_owned());
            None
        }
        (Some(plugin), None) => {
            let template = Template::parse_with(&plugin, &["o"]);
            template.map_err(|error| note("plugin", crate::errors::chain(&error))).ok().map(Plugin::Command)
        }
        (None, Some(Builtin::Heartbeat)) => Some(Plugin::Heartbeat),
        (None, Some(Builtin::ChoriaStatus)) => Some(Plugin::Daemon),
        (None, Some(Builtin::Goss)) => {
            if properties.gossfile.is_none() {
                note("gossfile", "builtin goss needs a gossfile".to_owned());
            }
            properties.gossfile.clone().map(Plugin::Goss)
        }
    };
    if properties.gossfile.is_some() && properties.builtin != Some(Builtin::Goss) {
        note("gossfile", "gossfile is for builtin: goss".to_owned());
    }
    if properties.timeout.is_zero() {
        note("timeout", "timeout must be longer than 0s".to_owned());
    }
    if let Some(Plugin::Command(template)) = &plugin {
        problems.extend(nagios_plugin::fault(context, "plugin", template.source()));
    }
    problems.extend(missing_transitions(context, properties.builtin));
    match plugin {
        Some(plugin) if problems.is_empty() => Ok(Arc::new(Nagios {
            plugin,
            timeout: properties.timeout,
            confinement: nagios_plugin::confinement(properties.user, properties.group),
            annotations: properties.annotations,
            last: Mutex::default(),
        })),
        _ => Err(problems),
    }
}

/// The machine must be able to take every result that the check may have; a heartbeat is always OK.
fn missing_transitions(context: &BuildContext<'_>, builtin: Option<Builtin>) -> Option<Problem> {
    let needed: &[&str] = match builtin {
        Some(Builtin::Heartbeat) => &["OK"],
        _ => &["OK", "WARNING", "CRITICAL", "UNKNOWN"],
    };
    let known = &context.machine.transitions;
    let is_missing = |name: &&&str| !known.iter().any(|transition| transition.name.as_str() == **name);
    let missing: Vec<&str> = needed.iter().filter(is_missing).copied().collect();
    (!missing.is_empty()).then(|| {
        let missing = missing.join(", ");
        let name = &context.watcher.name;
        let message = format!("nagios watcher \"{name}\": its results ask for transitions that are missing: {missing}");
        let help = "each result moves the machine by the transition of its name; add them, from every state that is \
                    checked";
        Problem::new(context.watcher.places.of("type"), message).help(help)
    })
}

impl Nagios {
    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the check, and what it was in words.
    async fn run(&self, check: &Check) -> (String, Found) {
        match &self.plugin {
            Plugin::Heartbeat => {
                let now = check.context.services.clock.now().as_second();
                ("heartbeat".to_owned(), Found::new(Status::Ok, now.to_string()))
            }
            Plugin::Daemon => ("choria_status".to_owned(), look_at_daemon(&check.context)),
            Plugin::Goss(file) => match file.render(&check.scope()) {
                Ok(file) => {
                    let words = ["goss", "--gossfile", &file, "validate", "--format", "nagios"];
                    let words = words.map(str::to_owned).to_vec();
                    (format!("goss --gossfile {file} validate"), self.execute(check, words).await)
                }
                Err(error) => ("goss".to_owned(), Found::error(crate::errors::chain(&error))),
            },
            Plugin::Command(template) => match template.render_command_with(&check.scope(), overrides(check)) {
                Ok(command) => {
                    let found = match command.words() {
                        Ok(words) => self.execute(check, words).await,
                        Err(reason) => Found::error(format!("plugin {reason}")),
                    };
                    (command.into_text(), found)
                }
                Err(error) => (template.source().to_owned(), Found::error(crate::errors::chain(&error))),
            },
        }
    }

    async fn execute(&self, check: &Check, words: Vec<String>) -> Found {
        let program = words.first().cloned().unwrap_or_default();
        let command = nagios_plugin::command(check, words, self.timeout, self.confinement.clone());
        match check.context.services.commands.run(command).await {
            Ok(ended) => {
                let output = nagios_plugin::beginning(&ended.output, OUTPUT_BYTES);
                let output = match (ended.exit_code, ended.failure) {
                    // No plugin's words say that it was killed.
                    (None, Some(failure)) => format!("{program} {failure}; it printed: {output}"),
                    _ => output,
                };
                let perfdata = nagios_plugin::performance_data(&String::from_utf8_lossy(&ended.standard_output));
                Found { perfdata, ..Found::new(Status::of(ended.exit_code), output) }
            }
            Err(ProcessError::NotFound { name, path }) if name == "goss" => Found::error(format!(
                "there is no goss in the machine's directory or on PATH ({path}); install it from https://goss.rocks"
            )),
            Err(error) => Found::error(format!("{program}: {}", crate::errors::chain(&error))),
        }
    }

    /// The transition that a result asks for, if it moves the machine.
    fn moves(check: &Check, status: Status) -> Option<Label> {
        let definition = &check.context.definition;
        let leaves = definition
            .transitions
            .iter()
            .find(|transition| transition.name.as_str() == status.name() && transition.from.contains(&check.state));
        leaves.map(|transition| transition.destination.clone()).filter(|destination| *destination != check.state)
    }
}

/// How the daemon is, as far as a watcher can tell; that this runs shows that the host does.
fn look_at_daemon(context: &Context) -> Found {
    let store = context.services.store.connection();
    let sync = context.services.sync.as_ref().map(|sync| sync.status());
    let machines = sync.as_ref().map_or(0, |sync| sync.machines.len());
    let data = format!("|connected={} machines={machines}", u8::from(store.connected));
    if !store.connected {
        return Found::new(
            Status::Critical,
            format!("CRITICAL: not connected to {}: {}{data}", store.url, store.detail),
        );
    }
    let refused = sync.as_ref().and_then(|sync| sync.refused.as_ref()).map(|refused| refused.message.clone());
    let left_alone = || sync.as_ref().and_then(|sync| sync.left_alone()).map(crate::sync::Disbelief::sentence);
    match refused.or_else(left_alone).or_else(|| sync.as_ref().and_then(|sync| sync.problem.clone())) {
        // A `|` would begin the performance data.
        Some(trouble) => Found::new(Status::Warning, format!("WARNING: {}{data}", trouble.replace('|', "/"))),
        None => Found::new(Status::Ok, format!("OK: connected to {}{data}", store.url)),
    }
}

/// The function `o` of plugin templates.
fn overrides(check: &Check) -> FuncMap {
    let overrides = check.data.get(OVERRIDES).map(|item| item.value.to_string());
    let machine = check.context.definition.name.clone();
    let call = move |arguments: &[GoValue]| {
        let [path, default] = arguments else {
            return Err(GoError::Exec(format!("o takes a path and a default, not {} arguments", arguments.len())));
        };
        let found = overrides.as_ref().map(|overrides| query(overrides, &format!("{machine}.{path}")));
        let found = found.transpose().map_err(|error| GoError::Exec(error.to_string()))?.flatten();
        let text = match found {
            Some(Value::String(text)) => text,
            Some(value) => value.to_string(),
            None => default.to_string(),
        };
        Ok(GoValue::String(text.into()))
    };
    FuncMap::from_iter([("o".to_owned(), Arc::new(call) as _)])
}

#[async_trait]
impl Watcher for Nagios {
    async fn check(&self, check: Check) -> Report {
        let arriving = self.last().arriving.take();
        if check.cause == Cause::Entered && arriving.as_ref() == Some(&check.state) {
            let error = self.last().error.clone();
            return Report { error, ..Report::new(check.previous_outcome) }.told();
        }
        let time = check.context.services.clock.now();
        let started = tokio::time::Instant::now();
        let (plugin, found) = self.run(&check).await;
        let Found { status, output, perfdata, error } = found;
        let destination = Self::moves(&check, status);
        let checks = {
            let mut last = self.last();
            if last.history.len() >= HISTORY {
                last.history.pop_front();
            }
            last.history.push_back(Execution { execute: time, status: status.code(), perfdata: perfdata.clone() });
            last.checks = last.checks.saturating_add(1);
            let (history, checks) = (std::mem::take(&mut last.history), last.checks);
            *last = Last {
                plugin,
                status: Some(status),
                output: output.clone(),
                check_time: Some(time),
                perfdata,
                run_time: started.elapsed(),
                history,
                checks,
                error: error.clone(),
                arriving: destination.clone(),
            };
            checks
        };
        let context = &check.context;
        let checked = Checked { status: status.name(), code: status.code(), time: time.as_second(), checks };
        let shown = Shown::Checked(Arc::new(checked));
        context.services.panel.show(&context.definition.name, &context.watcher, shown);
        let outcome = if error.is_some() { "error" } else { status.outcome() };
        let report = Report { error, detail: Some(output), ..Report::new(outcome) }.announce();
        if destination.is_some() { report.fire(Fire::Named(status.name())) } else { report }
    }

    /// The plugin's own limit ends it first; this is for a disk that hangs.
    fn timeout(&self) -> Duration {
        self.timeout + Duration::from_secs(10)
    }

    fn hazards(&self) -> Vec<Hazard> {
        match &self.plugin {
            Plugin::Command(template) => template.hazards(Form::Command),
            Plugin::Goss(_) | Plugin::Heartbeat | Plugin::Daemon => Vec::new(),
        }
    }

    fn looks_up(&self) -> Vec<String> {
        match &self.plugin {
            Plugin::Command(template) | Plugin::Goss(template) => template.lookups().to_vec(),
            Plugin::Heartbeat | Plugin::Daemon => Vec::new(),
        }
    }

    fn observe(&self, context: &Context, _: Signal) -> Option<Background> {
        let held = context.services.panel.hold(&context.definition.name, &context.watcher, None);
        Some(Box::pin(async move {
            let _held = held;
            std::future::pending::<()>().await;
        }))
    }

    fn left(&self) -> Option<Report> {
        self.last().arriving = None;
        None
    }

    fn not_fired(&self, _: Fire) {
        self.last().arriving = None;
    }

    fn event_fields(&self, _: &Seen) -> Map<String, Value> {
        let last = self.last();
        // The reference's words for a check that has not run.
        let (status, code) = last.status.map_or(("NOTCHECKED", 5), |status| (status.name(), status.code()));
        Map::from_iter([
            ("plugin".to_owned(), json!(crate::secret::masked(&last.plugin))),
            ("status".to_owned(), json!(status)),
            ("status_code".to_owned(), json!(code)),
            ("output".to_owned(), json!(last.output)),
            ("check_time".to_owned(), json!(last.check_time.map_or(0, Timestamp::as_second))),
            ("perfdata".to_owned(), json!(last.perfdata)),
            ("runtime".to_owned(), json!(last.run_time.as_secs_f64())),
            ("history".to_owned(), json!(last.history)),
            ("annotations".to_owned(), json!(self.annotations)),
        ])
    }
}
