//! `metric`: runs a command that prints numbers, and passes them on: in events, to Prometheus, and where the properties
//! say so to Graphite, into the machine's data and to the HTTP listener.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;

use crate::machine::data::{Change, Item};
use crate::machine::panel::{Exposure, Measured, Shown};
use crate::machine::property::NameOrNumber;
use crate::machine::template::{Form, Hazard, Template};
use crate::machine::watcher::{
    Background, BuildContext, Built, Cause, Check, Context, Fires, Kind, Report, Seen, Signal, Watcher, Writes,
    schema_of,
};
use crate::process::{Confinement, Ended, MAXIMUM_OUTPUT_BYTES};

use super::nagios_plugin::{self, MAXIMUM_NAME_BYTES, MAXIMUM_VALUES};

/// The row in `KINDS`.
pub const KIND: Kind = Kind {
    name: "metric",
    summary: "measures with a command, for events, Prometheus, Graphite and data",
    minimum_interval: Duration::from_secs(1),
    default_interval: None,
    outcomes: &["unknown", "skipped", "error", "success"],
    build,
    example: "command: \"echo '{\\\"metrics\\\": {\\\"a\\\": 1.5}}'\"\ninterval: 1m\nlabels:\n  role: web\n\
              skip_prometheus: false\nstore: true\nhttp: true\ngraphite_host: 127.0.0.1\ngraphite_port: 1\n\
              graphite_prefix: machines.it\n",
    fires: Fires::Fail,
    schema: schema_of::<Properties>,
};

/// The data item with the measurements of a machine, by watcher.
const ITEM: &str = "metric";
/// How long the command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(1);
/// How long sending to Graphite may take.
const GRAPHITE_LIMIT: Duration = Duration::from_secs(2);
/// Where Graphite takes its plaintext protocol.
const GRAPHITE_PORT: u16 = 2003;
/// Between measurements, when neither the properties nor the watcher say otherwise.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);
const MAXIMUM_LABELS: usize = 64;
/// Of names and values together: Prometheus repeats them all for each of a thousand metrics.
const MAXIMUM_LABEL_BYTES: usize = 8 * 1024;
/// Graphite repeats it for each of a thousand metrics.
const MAXIMUM_PREFIX_BYTES: usize = 1_024;
/// Of what a failed command printed, this much is shown.
const SHOWN_BYTES: usize = 1_024;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Properties {
    /// Prints `{"labels": {}, "metrics": {"name": 1.5}}`, or Nagios performance data; it may take 1s. Shell words, no
    /// shell is involved.
    command: Template,
    /// The user that the command runs as, by name or number, with the user's groups; the daemon must run as root.
    user: Option<NameOrNumber>,
    /// The group that the command runs as, by name or number; the user's own by default.
    group: Option<NameOrNumber>,
    /// Between measurements; at least 1s. The first one comes at a random moment within it. Default: the interval of
    /// the watcher, or 1m.
    #[serde(default, deserialize_with = "crate::duration::deserialize_option")]
    #[schemars(schema_with = "crate::duration::schema")]
    interval: Option<Duration>,
    /// Added to those that the command prints; these win.
    #[serde(default)]
    labels: BTreeMap<String, Template>,
    /// Keeps the measurements out of `/metrics` and of the Prometheus file.
    #[serde(default)]
    skip_prometheus: bool,
    /// Keeps the last measurement in the data of the machine, under `metric.WATCHER`.
    #[serde(default)]
    store: bool,
    /// Serves the last measurement at `/choria/machine/metric/v1/MACHINE/WATCHER` of the HTTP listener.
    #[serde(default)]
    http: bool,
    /// Sends each measurement to Graphite on this host, in its plaintext protocol.
    graphite_host: Option<Template>,
    /// The port there; 2003.
    #[serde(default, deserialize_with = "text_or_number")]
    #[schemars(schema_with = "text_or_number_schema")]
    graphite_port: Option<Template>,
    /// In front of each name there; `choria.WATCHER`.
    graphite_prefix: Option<Template>,
}

/// A port may stand with or without quotes.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Template>, D::Error> {
    use serde::de::Error;
    let text = match Value::deserialize(deserializer)? {
        Value::Null => return Ok(None),
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        other => return Err(D::Error::custom(format!("{other} is not a port"))),
    };
    Template::parse(&text).map(Some).map_err(D::Error::custom)
}

fn text_or_number_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": ["string", "integer", "null"]})
}

/// What a command may print as JSON; the reference passes over other keys.
#[derive(Deserialize)]
struct Printed {
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    metrics: BTreeMap<String, f64>,
}

struct Metric {
    properties: Properties,
    confinement: Confinement,
    /// `None`: the runner keeps the interval.
    own_interval: Option<Duration>,
    runner_interval: Option<Duration>,
    /// The random wait before the first measurement is over.
    begun: Arc<AtomicBool>,
    last: Mutex<Arc<Measured>>,
}

fn build(context: &BuildContext<'_>) -> Built {
    let properties: Properties = context.properties()?;
    let mut problems = Vec::new();
    problems.extend(nagios_plugin::fault(context, "command", properties.command.source()));
    if properties.interval.is_some_and(|interval| interval < Duration::from_secs(1)) {
        problems.push(context.fault("interval", "interval must be at least 1s"));
    }
    if properties.labels.len() > MAXIMUM_LABELS {
        problems.push(context.fault("labels", format!("more than {MAXIMUM_LABELS} labels")));
    }
    if let Some(port) = properties.graphite_port.as_ref().filter(|port| port.is_plain())
        && let Err(reason) = parse_port(port.source())
    {
        problems.push(context.fault("graphite_port", reason));
    }
    for (key, given) in [
        ("graphite_port", properties.graphite_port.is_some()),
        ("graphite_prefix", properties.graphite_prefix.is_some()),
    ] {
        if given && properties.graphite_host.is_none() {
            problems.push(context.fault(key, format!("{key} has no use without graphite_host")));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let confinement = nagios_plugin::confinement(properties.user.clone(), properties.group.clone());
    let runner_interval = context.watcher.interval;
    let own_interval = properties.interval.or(runner_interval.is_none().then_some(DEFAULT_INTERVAL));
    Ok(Arc::new(Metric {
        properties,
        confinement,
        own_interval,
        runner_interval,
        begun: Arc::default(),
        last: Mutex::default(),
    }))
}

fn parse_port(text: &str) -> Result<u16, String> {
    let port = text.trim().parse().ok().filter(|port: &u16| *port != 0);
    port.ok_or_else(|| format!("graphite_port {text:?} must be a number from 1 to 65535"))
}

impl Metric {
    async fn measure(&self, check: &Check) -> Result<Measured, String> {
        let scope = check.scope();
        let render = |template: &Template| match template.render(&scope) {
            Ok(text) => Ok(text.into_owned()),
            Err(error) => Err(crate::errors::chain(&error)),
        };
        let command = self.properties.command.render_command(&scope).map_err(|error| crate::errors::chain(&error))?;
        let words = command.words().map_err(|reason| format!("command {reason}"))?;
        let command = nagios_plugin::command(check, words, COMMAND_LIMIT, self.confinement.clone());
        let services = &check.context.services;
        let shown = self.properties.command.brief();
        let ended = services.commands.run(command).await;
        let ended = ended.map_err(|error| format!("{shown}: {}", crate::errors::chain(&error)))?;
        let (mut labels, metrics) = read(&ended).map_err(|reason| format!("{shown}: {reason}"))?;
        for (name, value) in &self.properties.labels {
            labels.insert(name.clone(), render(value)?);
        }
        let label_bytes: usize = labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        if label_bytes > MAXIMUM_LABEL_BYTES {
            return Err(format!(
                "{shown}: its labels have {label_bytes} bytes together, more than the limit of {MAXIMUM_LABEL_BYTES}"
            ));
        }
        Ok(Measured { labels, metrics, time: services.clock.now().as_second() })
    }

    async fn send_to_graphite(&self, check: &Check, measured: &Measured, run_time: Duration) -> Result<(), String> {
        let properties = &self.properties;
        let Some(host) = properties.graphite_host.as_ref().filter(|_| !measured.metrics.is_empty()) else {
            return Ok(());
        };
        let scope = check.scope();
        let render = |template: &Template| match template.render(&scope) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) => Err(crate::errors::chain(&error)),
        };
        let host = render(host)?;
        let port = match &properties.graphite_port {
            Some(port) => parse_port(&render(port)?)?,
            None => GRAPHITE_PORT,
        };
        let prefix = match &properties.graphite_prefix {
            Some(prefix) => render(prefix)?,
            None => format!("choria.{}", check.context.watcher),
        };
        if prefix.len() > MAXIMUM_PREFIX_BYTES {
            let bytes = prefix.len();
            return Err(format!("graphite_prefix has {bytes} bytes, more than the limit of {MAXIMUM_PREFIX_BYTES}"));
        }
        let run_time = ("runtime", run_time.as_secs_f64());
        let values = measured.metrics.iter().map(|(name, value)| (name.as_str(), *value)).chain([run_time]);
        let lines: String = values
            .map(|(name, value)| format!("{} {value} {}\n", graphite_name(&format!("{prefix}.{name}")), measured.time))
            .collect();
        let send = async {
            let mut stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.write_all(lines.as_bytes()).await?;
            stream.shutdown().await
        };
        let fault = |reason: String| format!("could not send to Graphite at {host}:{port}: {reason}");
        match tokio::time::timeout(GRAPHITE_LIMIT, send).await {
            Ok(sent) => sent.map_err(|error| fault(error.to_string())),
            Err(_) => Err(fault(format!("it took longer than {}", crate::duration::format(GRAPHITE_LIMIT)))),
        }
    }

    /// The item with the measurements of all watchers of the machine. Another watcher may have measured since this check
    /// began, so the panel counts before the data of then.
    fn item(check: &Check, measured: &Measured) -> Change {
        let context = &check.context;
        let mut all = match check.data.get(ITEM).map(|item| &item.value) {
            Some(Value::Object(all)) => all.clone(),
            _ => Map::new(),
        };
        for ((machine, watcher), shown) in context.services.panel.all() {
            if let Shown::Measured(other, Exposure { data: true, .. }) = shown
                && machine == context.definition.name
            {
                all.insert(watcher.to_string(), json!(other));
            }
        }
        all.insert(context.watcher.to_string(), json!(measured));
        Change::Set(ITEM.to_owned(), Item::new(Value::Object(all)))
    }

    fn exposure(&self) -> Exposure {
        let Properties { skip_prometheus, http, store, .. } = self.properties;
        Exposure { prometheus: !skip_prometheus, http, data: store }
    }

    /// The first measurement waits for a random part of the interval, so that a fleet that started together does not
    /// measure together.
    fn waits(&self, check: &Check) -> Option<Report> {
        if check.cause != Cause::Entered || self.begun.load(Ordering::Acquire) {
            return None;
        }
        let wait = match (self.own_interval, self.runner_interval) {
            (None, Some(interval)) => {
                self.begun.store(true, Ordering::Release);
                Some(interval.mul_f64(check.context.services.chance.fraction()))
            }
            _ => None,
        };
        Some(Report { again: wait, ..Report::new("skipped") })
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Arc<Measured>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that Graphite takes: what would end it becomes an underscore.
fn graphite_name(name: &str) -> String {
    name.chars().map(|each| if each.is_whitespace() || each.is_control() { '_' } else { each }).collect()
}

type Values = (BTreeMap<String, String>, BTreeMap<String, f64>);

/// What a command printed.
fn read(ended: &Ended) -> Result<Values, String> {
    if let Some(failure) = &ended.failure {
        let output = nagios_plugin::beginning(&ended.output, SHOWN_BYTES);
        return Err(if output.is_empty() { failure.clone() } else { format!("{failure}; it printed: {output}") });
    }
    if ended.truncated {
        return Err(format!("it printed more than {MAXIMUM_OUTPUT_BYTES} bytes"));
    }
    let output = String::from_utf8_lossy(&ended.standard_output);
    let labelled = |format: &str| BTreeMap::from([("format".to_owned(), format.to_owned())]);
    if !output.trim_start().starts_with('{') {
        let data = nagios_plugin::performance_data(&output);
        return Ok((labelled("nagios"), data.into_iter().map(|data| (data.label, data.value)).collect()));
    }
    let Printed { labels, metrics } = serde_json::from_str(&output).map_err(|error| {
        format!("{error}; it must print {{\"labels\": {{}}, \"metrics\": {{\"name\": 1.5}}}} or performance data")
    })?;
    if metrics.len() > MAXIMUM_VALUES || labels.len() > MAXIMUM_LABELS {
        return Err(format!("more than {MAXIMUM_VALUES} metrics or {MAXIMUM_LABELS} labels"));
    }
    let names = metrics.keys().chain(labels.keys());
    if let Some(bad) = names.into_iter().find(|name| name.is_empty() || name.len() > MAXIMUM_NAME_BYTES) {
        return Err(format!("a name must have 1 to {MAXIMUM_NAME_BYTES} bytes, not {}", bad.len()));
    }
    let mut all = labelled("choria");
    all.extend(labels);
    Ok((all, metrics))
}

#[async_trait]
impl Watcher for Metric {
    async fn check(&self, check: Check) -> Report {
        if let Some(wait) = self.waits(&check) {
            return wait;
        }
        let started = tokio::time::Instant::now();
        let measured = match self.measure(&check).await {
            Ok(measured) => measured,
            Err(reason) => return Report::error(reason),
        };
        let run_time = started.elapsed();
        let sent = self.send_to_graphite(&check, &measured, run_time).await;
        let detail = Some(format!("{} metrics", measured.metrics.len()));
        let changes = if self.properties.store { vec![Self::item(&check, &measured)] } else { Vec::new() };
        let measured = Arc::new(measured);
        *self.last() = Arc::clone(&measured);
        let context = &check.context;
        let shown = Shown::Measured(measured, self.exposure());
        context.services.panel.show(&context.definition.name, &context.watcher, shown);
        // The measurement stands even when Graphite does not take it, so nothing is fired.
        let outcome = if sent.is_ok() { "success" } else { "error" };
        Report { changes, detail, error: sent.err(), ..Report::new(outcome) }.announce()
    }

    /// The command and Graphite have limits of their own; this is for a disk that hangs.
    fn timeout(&self) -> Duration {
        COMMAND_LIMIT + GRAPHITE_LIMIT + Duration::from_secs(10)
    }

    fn hazards(&self) -> Vec<Hazard> {
        self.properties.command.hazards(Form::Command)
    }

    fn looks_up(&self) -> Vec<String> {
        let Properties { command, labels, graphite_host, graphite_port, graphite_prefix, .. } = &self.properties;
        let graphite = graphite_host.iter().chain(graphite_port).chain(graphite_prefix);
        let templates = [command].into_iter().chain(labels.values()).chain(graphite);
        templates.flat_map(|template| template.lookups().iter().cloned()).collect()
    }

    fn writes(&self) -> Writes {
        Writes::Items(if self.properties.store { vec![ITEM.to_owned()] } else { Vec::new() })
    }

    fn observe(&self, context: &Context, signal: Signal) -> Option<Background> {
        let held = context.services.panel.hold(&context.definition.name, &context.watcher, None);
        let (interval, begun) = (self.own_interval, Arc::clone(&self.begun));
        let chance = context.services.chance;
        Some(Box::pin(async move {
            let _held = held;
            let Some(interval) = interval else { return std::future::pending().await };
            tokio::time::sleep(interval.mul_f64(chance.fraction())).await;
            begun.store(true, Ordering::Release);
            let mut ticks = tokio::time::interval(interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                signal.check();
            }
        }))
    }

    fn event_fields(&self, seen: &Seen) -> Map<String, Value> {
        let mut measured = Measured::clone(&self.last());
        measured.metrics.insert("choria_runtime_seconds".to_owned(), seen.run_time.as_secs_f64());
        Map::from_iter([("metrics".to_owned(), json!(measured))])
    }
}
