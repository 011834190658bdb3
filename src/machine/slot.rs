//! The place of one watcher in its machine: when it is due, whether it runs, and what it found last. No I/O.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::names::{Label, MachineName};

use super::definition::{ForeignState, WatcherDefinition};
use super::neighbours::Neighbours;
use super::status::WatcherStatus;
use super::watcher::{Cause, Kind, Report, Seen, Signal, Stay, Watcher};

/// One watcher and its timing.
pub struct Slot {
    pub definition: Arc<WatcherDefinition>,
    pub kind: Kind,
    pub watcher: Arc<dyn Watcher>,
    pub signal: Signal,
    /// Names of the data items that it reads.
    pub reads: Vec<String>,
    pub running: Option<AbortHandle>,
    /// Whether it works now: the machine is in one of its states, and the machines that it depends on in theirs.
    works: bool,
    /// The machines that it depends on and that are elsewhere, for people.
    waits_for: Option<String>,
    /// A check that must follow the running one.
    pending: Option<Cause>,
    visits: watch::Sender<u64>,
    due: Option<Instant>,
    again: Option<Instant>,
    announce: Option<Instant>,
    repeated: bool,
    outcome: &'static str,
    run_time: Duration,
    checks: u64,
    errors: u64,
    last_check: Option<Timestamp>,
    last_error: Option<String>,
    detail: Option<String>,
}

impl Slot {
    /// A watcher that has not been checked yet.
    pub fn new(definition: Arc<WatcherDefinition>, kind: Kind, watcher: Arc<dyn Watcher>, signal: Signal) -> Self {
        Self {
            reads: watcher.reads(),
            definition,
            kind,
            watcher,
            signal,
            running: None,
            works: false,
            waits_for: None,
            pending: None,
            visits: watch::Sender::new(0),
            due: None,
            again: None,
            announce: None,
            repeated: false,
            outcome: "unknown",
            run_time: Duration::ZERO,
            checks: 0,
            errors: 0,
            last_check: None,
            last_error: None,
            detail: None,
        }
    }

    fn interval(&self) -> Option<Duration> {
        self.definition.interval.or(self.kind.default_interval)
    }

    /// Whether it works in this state, and beside these neighbours.
    pub fn can_work(&mut self, state: &Label, neighbours: &Neighbours) -> bool {
        self.waits_for = None;
        if !self.definition.is_active_in(state) {
            return false;
        }
        let missing = |needed: &&ForeignState| !neighbours.is_in(&needed.machine, &needed.state);
        let missing = self.definition.foreign_state_required.iter().filter(missing);
        let missing: Vec<_> = missing.map(|needed| format!("{} in {}", needed.machine, needed.state)).collect();
        self.waits_for = Some(missing.join(", ")).filter(|missing| !missing.is_empty());
        self.waits_for.is_none()
    }

    /// Whether it works now.
    pub fn works(&self) -> bool {
        self.works
    }

    /// Whether the state of this machine decides whether it works.
    pub fn depends_on(&self, machine: &MachineName) -> bool {
        self.definition.foreign_state_required.iter().any(|needed| needed.machine == *machine)
    }

    /// A state in which the watcher works was entered: it is checked now.
    pub fn entered(&mut self, now: Instant) {
        self.works = true;
        self.announce = self.definition.announce_interval.map(|interval| now + interval);
    }

    /// A state in which the watcher does not work was entered: nothing is due any more, and what a running check will
    /// find speaks of an earlier visit.
    pub fn left(&mut self) {
        self.works = false;
        self.visits.send_modify(|visit| *visit = visit.wrapping_add(1));
        self.due = None;
        self.again = None;
        self.announce = None;
        self.pending = None;
    }

    /// Counts the stays in states in which the watcher works; a verdict counts only in the stay that it was made in.
    pub fn visit(&self) -> u64 {
        *self.visits.borrow()
    }

    /// The stay of now, for a check.
    pub fn stay(&self) -> Stay {
        Stay::new(self.visits.subscribe())
    }

    /// A check must follow the running one. That a state was entered is not forgotten over lesser causes.
    pub fn postpone(&mut self, cause: Cause) {
        if self.pending != Some(Cause::Entered) {
            self.pending = Some(cause);
        }
    }

    /// The check that must follow, now that none runs.
    pub fn take_postponed(&mut self) -> Option<Cause> {
        if self.running.is_some() { None } else { self.pending.take() }
    }

    /// When to look at this watcher next.
    pub fn next(&self) -> Option<Instant> {
        let check = if self.running.is_some() { None } else { self.due.into_iter().chain(self.again).min() };
        check.into_iter().chain(self.announce).min()
    }

    /// Whether a check is due, and why.
    pub fn due(&self, now: Instant) -> Option<Cause> {
        if self.again.is_some_and(|again| again <= now) {
            Some(Cause::Again)
        } else if self.due.is_some_and(|due| due <= now) {
            Some(Cause::Interval)
        } else {
            None
        }
    }

    /// Whether the state is to be announced again; sets the next time.
    pub fn announce_due(&mut self, now: Instant) -> bool {
        let due = self.announce.is_some_and(|announce| announce <= now);
        if due {
            self.announce = self.definition.announce_interval.map(|interval| now + interval);
        }
        due
    }

    /// A check starts: the interval counts from here. The first repetition comes earlier by a random part of the
    /// interval, so that a fleet that started together does not poll together.
    pub fn started(&mut self, now: Instant, running: AbortHandle, random: f64) {
        self.running = Some(running);
        self.pending = None;
        self.again = None;
        self.due = self.interval().map(|interval| {
            let spread = if self.repeated { 1.0 } else { 0.5 + random.clamp(0.0, 1.0) / 2.0 };
            self.repeated = true;
            now + interval.mul_f64(spread)
        });
    }

    /// Takes what a check found.
    pub fn finished(&mut self, now: Instant, run_time: Duration, report: &Report) {
        self.running = None;
        self.again = report.again.map(|again| now + again);
        self.run_time = run_time;
        self.checks = self.checks.saturating_add(1);
        self.errors = self.errors.saturating_add(u64::from(report.error.is_some()));
        self.last_check = Some(Timestamp::now());
        self.note(report);
    }

    /// Takes a report that no check made.
    pub fn note(&mut self, report: &Report) {
        self.outcome = report.outcome;
        self.last_error.clone_from(&report.error);
        if report.detail.is_some() || report.error.is_some() {
            self.detail.clone_from(&report.detail);
        }
    }

    /// The outcome of the last check.
    pub fn outcome(&self) -> &'static str {
        self.outcome
    }

    /// The fault that the last check found.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// What events tell of the last check.
    pub fn seen(&self) -> Seen {
        Seen { outcome: self.outcome, run_time: self.run_time }
    }

    /// For the status of the machine.
    pub fn status(&self) -> WatcherStatus {
        WatcherStatus {
            name: self.definition.name.clone(),
            kind: self.kind.name,
            active: self.works,
            waits_for: self.waits_for.clone(),
            outcome: self.outcome,
            checks: self.checks,
            errors: self.errors,
            last_check: self.last_check,
            last_error: self.last_error.clone(),
            detail: self.detail.clone(),
        }
    }
}
