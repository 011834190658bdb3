//! Whether a node stands well, and if not, why: each reason once, however many parts of the daemon tell of it. In: what
//! the store, sync and the host say of themselves. Out: the reasons, for `status`, `status --check` and whoever else asks.

use serde::{Deserialize, Serialize};

use crate::host::{Report, Source};
use crate::kv::Connection;
use crate::machine::status::WatcherStatus;
use crate::node::Unusable;
use crate::sync::{MachineState, Maintenance, SyncStatus};

/// How a node stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Nothing is wrong, and nothing that has to be known is unknown.
    pub well: bool,
    /// Why not; empty when well.
    pub reasons: Vec<Reason>,
}

/// One reason why a node does not stand well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    pub code: Code,
    /// A machine, or `machine/watcher`; `None` when it is the node as a whole.
    pub about: Option<String>,
    /// A sentence for people.
    pub message: String,
}

/// What kind of reason it is; the words are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Nobody who would know has answered.
    Unknown,
    /// The store does not answer.
    NotConnected,
    /// Something is wrong with a facts file.
    FactsUnusable,
    /// A specification is to be followed, and none was ever accepted.
    NoSpecification,
    /// Since its start the daemon has not compared the node with its specification.
    NoPass,
    /// The state database was damaged or taken away, and nothing was accepted since.
    MemoryLost,
    /// What is published is not followed.
    Refused,
    /// What was accepted before is not followed today: it runs on and is not repaired.
    NotFollowed,
    /// The last pass could not do its work.
    PassBroken,
    /// Removals wait for a person.
    RemovalsHeld,
    /// A machine of the specification could not be brought to what is wanted.
    Failed,
    /// A machine of the specification is left as it is on doubt.
    Held,
    /// A machine that is there does not run.
    NotRunning,
    /// A machine runs, but not as its directory says, or with a fault of its own.
    Machine,
    /// The last check of a watcher found a fault.
    Watcher,
}

impl Code {
    /// For a label before the reason.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::NotConnected => "NOT CONNECTED",
            Self::FactsUnusable => "FACTS",
            Self::NoSpecification => "NOTHING YET",
            Self::NoPass => "NO PASS YET",
            Self::MemoryLost => "MEMORY LOST",
            Self::Refused => "REFUSED",
            Self::NotFollowed => "NOT FOLLOWED",
            Self::PassBroken | Self::Machine => "PROBLEM",
            Self::RemovalsHeld | Self::Held => "HELD",
            Self::Failed => "FAILED",
            Self::NotRunning => "NOT RUNNING",
            Self::Watcher => "ERROR",
        }
    }
}

impl Reason {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, about: None, message: message.into() }
    }

    fn about(code: Code, about: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code, about: Some(about.into()), message: message.into() }
    }
}

impl std::fmt::Display for Reason {
    /// On one line of a monitor.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: ", self.code.label().to_lowercase())?;
        match &self.about {
            Some(about) => write!(formatter, "{about}: {}", self.message),
            None => formatter.write_str(&self.message),
        }
    }
}

impl Health {
    /// Of a node that follows a specification, or of one that does not (`None`). Maintenance was asked for, and is no fault
    /// by itself.
    pub fn of(
        store: &Connection,
        sync: Option<&SyncStatus>,
        maintenance: Option<&Maintenance>,
        machines: &[Report],
    ) -> Self {
        let mut reasons = Vec::new();
        if !store.connected {
            let message = format!("the store at {} is not connected: {}", store.url, store.detail);
            reasons.push(Reason::new(Code::NotConnected, message));
        }
        if let Some(sync) = sync {
            of_sync(sync, maintenance, &mut reasons);
        }
        // What the manager's watchers say was said above by those whose work they drive.
        let told =
            Told { store: !store.connected, sync: !reasons.iter().all(|reason| reason.code == Code::NotConnected) };
        for report in machines {
            of_machine(report, told, &mut reasons);
        }
        Self { well: reasons.is_empty(), reasons }
    }

    /// The same, of a node whose facts can't be used, if that is so. It comes first: other reasons may follow from it.
    #[must_use]
    pub fn with_facts(mut self, unusable: Option<&Unusable>) -> Self {
        let Some(Unusable { since, reason }) = unusable else { return self };
        let message = format!("what asks for facts fails since {since:.0}, as they can't be used: {reason}");
        self.reasons.insert(0, Reason::new(Code::FactsUnusable, message));
        Self { well: false, ..self }
    }

    /// Of a node of which nothing is known: that is not well.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self { well: false, reasons: vec![Reason::new(Code::Unknown, why)] }
    }
}

fn of_sync(sync: &SyncStatus, maintenance: Option<&Maintenance>, reasons: &mut Vec<Reason>) {
    if maintenance.is_some() {
        // No pass is made, so none is missing.
    } else if sync.specification.is_none() {
        reasons.push(Reason::new(Code::NoSpecification, "no specification was accepted yet"));
    } else if sync.last_pass.is_none() {
        reasons.push(Reason::new(Code::NoPass, "the node was not compared with its specification since the start"));
    }
    if let Some(lost) = &sync.lost_memory {
        reasons.push(Reason::new(Code::MemoryLost, lost.sentence()));
    }
    if let Some(refused) = &sync.refused {
        reasons.push(Reason::new(Code::Refused, &refused.message));
    }
    if let Some(why) = sync.left_alone() {
        reasons.push(Reason::new(Code::NotFollowed, why.sentence()));
    }
    if let Some(problem) = &sync.problem {
        reasons.push(Reason::new(Code::PassBroken, problem));
    }
    let held_removals = sync.held_removals.as_ref().map(|held| held.reason.as_str());
    if let Some(reason) = held_removals {
        reasons.push(Reason::new(Code::RemovalsHeld, reason));
    }
    for (name, machine) in &sync.machines {
        let (code, message) = match machine.state {
            MachineState::Failed => (Code::Failed, &machine.last_error),
            // Each of the removals that are held together would say the same again.
            MachineState::Held if machine.reason.as_deref() == held_removals => continue,
            MachineState::Held => (Code::Held, &machine.reason),
            MachineState::Installed | MachineState::Removed | MachineState::Skipped => continue,
        };
        reasons.push(Reason::about(code, name, message.clone().unwrap_or_default()));
    }
}

/// Of what the reasons so far have told.
#[derive(Clone, Copy)]
struct Told {
    store: bool,
    sync: bool,
}

impl Told {
    fn covers(self, source: Source, watcher: &WatcherStatus) -> bool {
        source == Source::BuiltIn
            && match watcher.kind {
                "machines" => self.sync,
                "kv" => self.store,
                _ => false,
            }
    }
}

fn of_machine(report: &Report, told: Told, reasons: &mut Vec<Reason>) {
    let Some(machine) = &report.machine else {
        let path = report.path.display().to_string();
        let message = report.problem.clone().unwrap_or_else(|| "it does not run".to_owned());
        reasons.push(Reason::about(Code::NotRunning, path, message));
        return;
    };
    let name = machine.name.as_str();
    for problem in report.problem.iter().chain(&machine.problem) {
        reasons.push(Reason::about(Code::Machine, name, problem));
    }
    for watcher in machine.watchers.iter().filter(|watcher| watcher.active && !told.covers(report.source, watcher)) {
        if let Some(error) = &watcher.last_error {
            reasons.push(Reason::about(Code::Watcher, format!("{name}/{}", watcher.name), error));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;

    use super::*;
    use crate::machine::status::MachineStatus;
    use crate::names::{Label, MachineName, Version};
    use crate::sync::{Disbelief, Refusal, SpecificationStatus, Standing};

    fn store(connected: bool) -> Connection {
        Connection { url: "nats://a:4222".to_owned(), connected, detail: "refused".to_owned() }
    }

    fn followed() -> SyncStatus {
        let digest = crate::digest::Sha256Digest::of(b"a");
        let accepted_at = Timestamp::UNIX_EPOCH;
        SyncStatus {
            specification: Some(SpecificationStatus {
                digest,
                signed_by: None,
                accepted_at,
                standing: Standing::Followed,
            }),
            last_pass: Some(accepted_at),
            ..SyncStatus::default()
        }
    }

    fn running(source: Source, kind: &'static str, error: Option<&str>) -> Report {
        let watcher = WatcherStatus {
            name: Label::new("w").unwrap(),
            kind,
            active: true,
            waits_for: None,
            outcome: "error",
            checks: 1,
            errors: 1,
            last_check: None,
            last_error: error.map(str::to_owned),
            detail: None,
        };
        let machine = MachineStatus {
            name: MachineName::new("m").unwrap(),
            version: Version::new("1.0.0").unwrap(),
            state: Label::new("S").unwrap(),
            path: "/m".into(),
            id: String::new(),
            start_time: Timestamp::UNIX_EPOCH,
            available_transitions: Vec::new(),
            transitions: 0,
            problem: None,
            watchers: vec![watcher],
        };
        Report { source, path: "/m".into(), machine: Some(Arc::new(machine)), problem: None }
    }

    fn lines(health: &Health) -> Vec<String> {
        health.reasons.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn facts_that_can_not_be_used_are_a_reason_and_hide_no_other() {
        let since = "2026-01-02T03:04:05Z".parse().unwrap();
        let unusable = Unusable { since, reason: "facts file /f is gone".to_owned() };
        let broken = running(Source::Local, "exec", Some("broken"));
        let health = Health::of(&store(true), None, None, &[broken]).with_facts(Some(&unusable));
        let expected =
            "facts: what asks for facts fails since 2026-01-02T03:04:05Z, as they can't be used: facts file /f is gone";
        assert_eq!(health.reasons[0].to_string(), expected);
        assert_eq!((health.well, health.reasons.len()), (false, 2));
        assert!(Health::of(&store(true), None, None, &[]).with_facts(None).well);
    }

    #[test]
    fn a_node_without_a_fault_is_well() {
        let health = Health::of(&store(true), Some(&followed()), None, &[running(Source::Local, "exec", None)]);
        assert_eq!(health, Health { well: true, reasons: Vec::new() });
        assert!(Health::of(&store(true), None, None, &[]).well);
    }

    #[test]
    fn a_refusal_is_told_once_whoever_repeats_it() {
        let message = "bad signature".to_owned();
        let sync = SyncStatus { refused: Some(Refusal { message, since: Timestamp::UNIX_EPOCH }), ..followed() };
        let manager = running(Source::BuiltIn, "machines", Some("the specification was refused: bad signature"));
        let health = Health::of(&store(true), Some(&sync), None, std::slice::from_ref(&manager));
        assert_eq!(lines(&health), ["refused: bad signature"]);
        // Where sync has nothing to say, the watcher's word is the only one.
        assert_eq!(Health::of(&store(true), Some(&followed()), None, &[manager]).reasons.len(), 1);
    }

    #[test]
    fn what_is_not_followed_today_is_not_well_and_names_its_signer() {
        let mut sync = followed();
        let why = Disbelief::KeyNotTrusted { key: "6403".to_owned() };
        let standing = Standing::LeftAlone { since: Timestamp::UNIX_EPOCH, why };
        sync.specification.as_mut().unwrap().standing = standing;
        assert_eq!(
            lines(&Health::of(&store(true), Some(&sync), None, &[])),
            ["not followed: the specification accepted before is left alone: it was signed by 6403, which is not \
                 trusted today; what it installed runs on, and is neither repaired nor removed"]
        );
    }

    #[test]
    fn what_is_unknown_is_not_well() {
        assert_eq!(lines(&Health::unknown("no answer")), ["unknown: no answer"]);
        let never = SyncStatus::default();
        assert_eq!(
            lines(&Health::of(&store(true), Some(&never), None, &[])),
            ["nothing yet: no specification was accepted yet"]
        );
        let not_yet = SyncStatus { last_pass: None, ..followed() };
        assert_eq!(Health::of(&store(true), Some(&not_yet), None, &[]).reasons[0].code, Code::NoPass);
        // Where nothing is to be changed, nobody looks.
        let maintenance = Maintenance { since: Timestamp::UNIX_EPOCH, until: None, because: None, by: None };
        assert!(Health::of(&store(true), Some(&not_yet), Some(&maintenance), &[]).well);
        let away = running(Source::BuiltIn, "kv", Some("no connection"));
        let health = Health::of(&store(false), Some(&followed()), None, &[away]);
        assert_eq!(lines(&health), ["not connected: the store at nats://a:4222 is not connected: refused"]);
    }

    #[test]
    fn faults_of_machines_and_watchers_name_them() {
        let gone = Report {
            source: Source::Local,
            path: "/etc/machines/machines.d/x".into(),
            machine: None,
            problem: Some("no machine.yaml".to_owned()),
        };
        let health = Health::of(&store(true), None, None, &[gone, running(Source::Local, "exec", Some("exit code 1"))]);
        assert_eq!(
            lines(&health),
            ["not running: /etc/machines/machines.d/x: no machine.yaml", "error: m/w: exit code 1"]
        );
    }
}
