//! What Prometheus reads, in its text format
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>): the measurements of metric watchers
//! and the results of nagios watchers, as the reference (Choria Autonomous Agents) names them, and how the daemon is. In:
//! the panel and the daemon's status. Out: text, and the two files for `node_exporter`'s textfile collector.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::events::Deliveries;
use crate::fs::{Attributes, Directory};
use crate::host::Report;
use crate::kv::Connection;
use crate::machine::panel::{Key, Panel, Shown};
use crate::sync::{Maintenance, SyncStatus};

/// The media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The reference's names for the files.
const METRICS_FILE: &str = "choria_machine_metrics_watcher_status.prom";
const NAGIOS_FILE: &str = "choria_machine_nagios_watcher_status.prom";
/// Measurements that make more text than this together are left out, and counted: each metric repeats all labels of its watcher.
const MAXIMUM_BYTES: usize = 32 * 1024 * 1024;
/// Between two writes of the files: changes that come closer together are written together.
const WRITE_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
enum Kind {
    Gauge,
    Counter,
}

struct Family {
    help: &'static str,
    kind: Kind,
    /// By their labels, so that none is there twice.
    samples: BTreeMap<String, String>,
}

/// Families of samples, by name.
#[derive(Default)]
pub struct Exposition {
    families: BTreeMap<String, Family>,
    /// Of the names and labels of measurements.
    bytes: usize,
    /// Measurements for which there was no room.
    left_out: usize,
}

impl Exposition {
    fn add(
        &mut self,
        name: &str,
        kind: Kind,
        help: &'static str,
        labels: &[(&str, &str)],
        value: impl std::fmt::Display,
    ) {
        let new = || Family { help, kind, samples: BTreeMap::new() };
        let family = self.families.entry(name.to_owned()).or_insert_with(new);
        let mut text = String::new();
        let mut names = Vec::new();
        for (label, content) in labels {
            let label = label_name(label);
            // Two names may have become one; the first one stands.
            if names.contains(&label) {
                continue;
            }
            let comma = if text.is_empty() { "" } else { "," };
            _ = write!(text, "{comma}{label}=\"{}\"", escape(content));
            names.push(label);
        }
        family.samples.entry(text).or_insert_with(|| value.to_string());
    }

    fn gauge(&mut self, name: &str, help: &'static str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.add(name, Kind::Gauge, help, labels, value);
    }

    fn counter(&mut self, name: &str, help: &'static str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.add(name, Kind::Counter, help, labels, value);
    }

    /// What metric watchers have measured.
    pub fn measurements(&mut self, all: &[(Key, Shown)]) {
        for ((machine, watcher), shown) in all {
            let Shown::Measured(measured, exposure) = shown else { continue };
            if !exposure.prometheus {
                continue;
            }
            let mut labels = vec![("machine", machine.as_str()), ("watcher", watcher.as_str())];
            for (name, value) in &measured.labels {
                // As Prometheus itself names labels that collide with its own.
                let name = match name.as_str() {
                    "machine" => "exported_machine",
                    "watcher" => "exported_watcher",
                    name => name,
                };
                labels.push((name, value));
            }
            let label_bytes: usize = labels.iter().map(|(name, value)| name.len() + value.len()).sum();
            for (name, value) in &measured.metrics {
                let bytes = self.bytes + label_bytes + name.len();
                if bytes > MAXIMUM_BYTES {
                    self.left_out += 1;
                    continue;
                }
                self.bytes = bytes;
                let name = format!("choria_machine_metric_watcher_{}_{name}", watcher.as_str().to_lowercase());
                self.gauge(&metric_name(&name), "Choria Metric", &labels, value);
            }
        }
    }

    /// What nagios watchers have found.
    pub fn checks(&mut self, all: &[(Key, Shown)]) {
        for ((machine, watcher), shown) in all {
            let Shown::Checked(checked) = shown else { continue };
            let labels = [("name", machine.as_str()), ("watcher", watcher.as_str())];
            let with_status = [labels.as_slice(), &[("status", checked.status)]].concat();
            let name = "choria_machine_nagios_watcher_status";
            self.gauge(name, "Choria Nagios Check Status", &with_status, checked.code);
            let name = "choria_machine_nagios_watcher_last_run_seconds";
            self.gauge(name, "Choria Nagios Check Time", &labels, checked.time);
            let name = "choria_machine_nagios_watcher_checks_count";
            self.counter(name, "Choria Nagios Check Count", &labels, checked.checks);
        }
    }

    /// How the daemon is, and what it runs.
    pub fn daemon(&mut self, started: Timestamp, store: &Connection, sync: Option<&SyncStatus>, reports: &[Report]) {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        self.gauge("machinesd_build_info", "What runs here.", &version, 1);
        let help = "When the daemon started, in seconds of Unix time.";
        self.gauge("machinesd_start_time_seconds", help, &[], started.as_second());
        let help = "Whether the store answers.";
        self.gauge("machinesd_store_connected", help, &[], u8::from(store.connected));
        let help = "Measurements that are not here, since all have too many labels together.";
        self.gauge("machinesd_measurements_left_out", help, &[], self.left_out);
        let running = reports.iter().filter(|report| report.machine.is_some()).count();
        self.gauge("machinesd_machines_running", "Machines that run.", &[], running);
        let broken = reports.iter().filter(|report| report.problem.is_some()).count();
        let help = "Machines whose directory can't be taken as it is; `machinesd status` says why.";
        self.gauge("machinesd_machines_with_problems", help, &[], broken);
        if let Some(sync) = sync {
            self.sync(sync);
        }
        for machine in reports.iter().filter_map(|report| report.machine.as_ref()) {
            let name = machine.name.as_str();
            let labels = [("machine", name), ("version", machine.version.as_str()), ("state", machine.state.as_str())];
            self.gauge("machinesd_machine_state", "The state that a machine is in.", &labels, 1);
            let help = "Transitions that a machine has made since its start.";
            self.counter("machinesd_machine_transitions_total", help, &[("machine", name)], machine.transitions);
            for watcher in &machine.watchers {
                let labels = [("machine", name), ("watcher", watcher.name.as_str()), ("type", watcher.kind)];
                let help = "Checks of a watcher since the start of its machine.";
                self.counter("machinesd_watcher_checks_total", help, &labels, watcher.checks);
                let help = "Checks of a watcher that found a fault.";
                self.counter("machinesd_watcher_errors_total", help, &labels, watcher.errors);
            }
        }
    }

    /// Whether the node is to be left as it is.
    pub fn maintenance(&mut self, maintenance: Option<&Maintenance>) {
        let help = "Whether the node is in maintenance: nothing that is installed is changed.";
        self.gauge("machinesd_maintenance", help, &[], u8::from(maintenance.is_some()));
    }

    /// What became of the events on their way to NATS.
    pub fn events(&mut self, events: &Deliveries) {
        let help = "Events that the NATS server has taken.";
        self.counter("machinesd_events_sent_total", help, &[], events.sent);
        let help = "Events that were lost, since NATS was away for too long or refused them.";
        self.counter("machinesd_events_dropped_total", help, &[], events.dropped);
        let help = "Events that wait for NATS.";
        self.gauge("machinesd_events_waiting", help, &[], events.waiting);
    }

    fn sync(&mut self, sync: &SyncStatus) {
        let help = "When the specification was last followed, in seconds of Unix time.";
        let last = sync.last_pass.map_or(0, Timestamp::as_second);
        self.gauge("machinesd_sync_last_pass_timestamp_seconds", help, &[], last);
        let outcome = sync.last_outcome.and_then(|outcome| serde_json::to_value(outcome).ok());
        let outcome = outcome.as_ref().and_then(serde_json::Value::as_str).unwrap_or("none");
        for each in ["updated", "unchanged", "error"] {
            let help = "The outcome of the last pass.";
            self.gauge("machinesd_sync_outcome", help, &[("outcome", each)], u8::from(each == outcome));
        }
        let help = "Whether the specification that was offered last is refused.";
        self.gauge("machinesd_sync_refused", help, &[], u8::from(sync.refused.is_some()));
        let help = "Whether what was accepted is not followed today: it runs on, and is not repaired.";
        self.gauge("machinesd_sync_left_alone", help, &[], u8::from(sync.left_alone().is_some()));
        for state in ["installed", "held", "failed", "removed", "skipped"] {
            let is_in = |machine: &&crate::sync::MachineStatus| {
                serde_json::to_value(machine.state).is_ok_and(|value| value == state)
            };
            let count = sync.machines.values().filter(is_in).count();
            let help = "Machines of the specification by how they stand.";
            self.gauge("machinesd_sync_machines", help, &[("state", state)], count);
        }
    }

    /// The text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (name, Family { help, kind, samples }) in &self.families {
            let kind = match kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
            };
            _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                _ = if labels.is_empty() {
                    writeln!(text, "{name} {value}")
                } else {
                    writeln!(text, "{name}{{{labels}}} {value}")
                };
            }
        }
        text
    }
}

/// A name of letters, digits, `_` and `:`; everything else becomes an underscore.
fn metric_name(name: &str) -> String {
    name.chars().map(|each| if each.is_ascii_alphanumeric() || each == ':' { each } else { '_' }).collect()
}

/// As the reference writes labels, in lower case; a name can't begin with a digit.
fn label_name(name: &str) -> String {
    let lower = name.chars().map(|each| if each.is_ascii_alphanumeric() { each.to_ascii_lowercase() } else { '_' });
    let name: String = lower.collect();
    if name.starts_with(|first: char| first.is_ascii_digit()) { format!("_{name}") } else { name }
}

/// As the format has it, and without characters that would act on a terminal.
fn escape(value: &str) -> String {
    crate::shown::lines(value).replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

/// The files of a running daemon. They go with it: what is there is true.
struct Files {
    directory: PathBuf,
}

impl Files {
    fn write(&self, name: &str, content: &str) -> Result<(), crate::fs::FileError> {
        // The directory may be another user's, who could exchange it for a link while we write.
        let attributes = Attributes { mode: Some(0o644), ..Attributes::default() };
        Directory::open(&self.directory)?.place(name)?.write(content.as_bytes(), attributes)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for name in [METRICS_FILE, NAGIOS_FILE] {
            _ = Directory::open(&self.directory).and_then(|directory| directory.place(name)?.remove());
        }
    }
}

/// Keeps the files in `node_exporter`'s textfile directory as the panel is, until dropped.
pub async fn write_files(panel: Arc<Panel>, directory: &Path) {
    let files = Arc::new(Files { directory: directory.to_owned() });
    let mut told = false;
    loop {
        let all = panel.all();
        let writer = Arc::clone(&files);
        let written = tokio::task::spawn_blocking(move || {
            let (mut metrics, mut nagios) = (Exposition::default(), Exposition::default());
            metrics.measurements(&all);
            nagios.checks(&all);
            writer.write(METRICS_FILE, &metrics.render())?;
            writer.write(NAGIOS_FILE, &nagios.render())
        });
        match written.await {
            Ok(Ok(())) => told = false,
            Ok(Err(error)) if !told => {
                tracing::warn!("[metrics] textfile_directory: {}", crate::errors::chain(&error));
                told = true;
            }
            Ok(Err(_)) | Err(_) => {}
        }
        tokio::time::sleep(WRITE_PAUSE).await;
        panel.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::panel::{Checked, Exposure, Measured};
    use crate::names::{Label, MachineName};

    fn key(watcher: &str) -> Key {
        (MachineName::new("facts").unwrap(), Label::new(watcher).unwrap())
    }

    fn measured(metrics: &[(&str, f64)], labels: &[(&str, &str)], prometheus: bool) -> Shown {
        let metrics = metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let exposure = Exposure { prometheus, http: false, data: false };
        Shown::Measured(Arc::new(Measured { labels, metrics, time: 5 }), exposure)
    }

    #[test]
    fn names_and_labels_are_such_that_prometheus_takes_them() {
        let shown = measured(
            &[("load-1 min", 1.5), ("big", 1e21)],
            &[
                ("format", "choria"),
                ("Machine Room", "a\"b\\c\nd"),
                ("machine_room", "x"),
                ("machine", "m"),
                ("9", "y\u{1b}"),
            ],
            true,
        );
        let mut exposition = Exposition::default();
        exposition.measurements(&[(key("CPU-load"), shown), (key("quiet"), measured(&[("a", 1.0)], &[], false))]);
        let labels = "{machine=\"facts\",watcher=\"CPU-load\",_9=\"y\\\\x1b\",machine_room=\"a\\\"b\\\\c\\nd\",\
                      format=\"choria\",exported_machine=\"m\"}";
        let expected = format!(
            "# HELP choria_machine_metric_watcher_cpu_load_big Choria Metric\n\
             # TYPE choria_machine_metric_watcher_cpu_load_big gauge\n\
             choria_machine_metric_watcher_cpu_load_big{labels} 1000000000000000000000\n\
             # HELP choria_machine_metric_watcher_cpu_load_load_1_min Choria Metric\n\
             # TYPE choria_machine_metric_watcher_cpu_load_load_1_min gauge\n\
             choria_machine_metric_watcher_cpu_load_load_1_min{labels} 1.5\n"
        );
        assert_eq!(exposition.render(), expected);
    }

    #[test]
    fn measurements_with_too_many_labels_together_are_left_out_and_counted() {
        let label = "x".repeat(8_000);
        let metrics: Vec<String> = (0..1_000).map(|number| format!("m{number}")).collect();
        let metrics: Vec<(&str, f64)> = metrics.iter().map(|name| (name.as_str(), 1.0)).collect();
        let all: Vec<_> =
            (0..6).map(|number| (key(&format!("w{number}")), measured(&metrics, &[("l", &label)], true))).collect();
        let mut exposition = Exposition::default();
        exposition.measurements(&all);
        let left_out = exposition.left_out;
        assert!((1_700..2_000).contains(&left_out), "{left_out}");
        assert!(exposition.render().len() < 2 * MAXIMUM_BYTES);
    }

    #[test]
    fn one_family_has_one_head_however_many_watchers_it_comes_from() {
        let checked = |status, code| Shown::Checked(Arc::new(Checked { status, code, time: 7, checks: 3 }));
        let mut exposition = Exposition::default();
        exposition.checks(&[(key("a"), checked("OK", 0)), (key("b"), checked("CRITICAL", 2))]);
        let text = exposition.render();
        assert_eq!(text.matches("# TYPE choria_machine_nagios_watcher_status gauge").count(), 1, "{text}");
        let line = "choria_machine_nagios_watcher_status{name=\"facts\",watcher=\"b\",status=\"CRITICAL\"} 2\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("# TYPE choria_machine_nagios_watcher_checks_count counter\n"), "{text}");
    }
}
