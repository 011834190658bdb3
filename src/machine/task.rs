//! The task of one machine. It owns the state, the data and the watchers; checks run as futures of their own and report
//! back, so that no check holds up another, and nothing here is locked.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::events::{Body, Event, Origin};
use crate::names::Label;

use super::brake::Brake;
use super::data::{self, Data};
use super::fsm::{Fsm, Refused};
use super::runner::{Command, Setup};
use super::slot::Slot;
use super::status::MachineStatus;
use super::watcher::{Announce, Cause, Check, Context, Fire, Report, Signal, Told};

/// Transitions that wait for the brake; more are dropped with a warning.
const MAXIMUM_QUEUED: usize = 64;
/// How long a stopping machine waits for its data to be written.
const SAVE_PATIENCE: Duration = Duration::from_secs(5);
/// Data that could not be written is written again after this.
const SAVE_AGAIN: Duration = Duration::from_secs(10);

struct Finished {
    index: usize,
    run_time: Duration,
    report: Report,
    /// The stay in the watcher's states in which the check started.
    visit: u64,
}

/// A transition that waits for the brake.
struct Asked {
    event: Label,
    fire: Fire,
    /// Who asked, and in which stay in its states.
    index: usize,
    visit: u64,
}

/// Whether the machine is in a state that it has just entered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moved {
    Yes,
    No,
}

/// A machine that runs.
pub(super) struct Task {
    setup: Setup,
    fsm: Fsm,
    state: Label,
    data: Data,
    slots: Vec<Slot>,
    wake: Signal,
    checks: JoinSet<Finished>,
    background: JoinSet<()>,
    saving: Option<JoinHandle<Result<(), crate::fs::FileError>>>,
    unsaved: bool,
    /// After a failed write: not before this.
    save_after: Option<Instant>,
    brake: Brake,
    queued: VecDeque<Asked>,
    origin: Origin,
    started: Timestamp,
    /// About the data itself.
    problem: Option<String>,
    /// Why the data is not on disk.
    save_problem: Option<String>,
    publisher: watch::Sender<Arc<MachineStatus>>,
}

impl Task {
    /// Reads the data that an earlier run has kept.
    pub(super) fn new(mut setup: Setup) -> Self {
        let wake = Signal::default();
        let watchers = std::mem::take(&mut setup.watchers);
        let slots = setup
            .definition
            .watchers
            .iter()
            .zip(watchers)
            .map(|(definition, (kind, watcher))| Slot::new(Arc::clone(definition), kind, watcher, wake.sibling()));
        let slots = slots.collect();
        let (data, problem) = Data::load(&setup.data_directory);
        let origin = Origin {
            identity: setup.services.node.identity.clone(),
            machine: setup.definition.name.clone(),
            version: setup.definition.version.clone(),
            instance: uuid::Uuid::new_v4().to_string().into(),
        };
        let fsm = setup.definition.fsm();
        let state = setup.definition.initial_state.clone();
        let started = Timestamp::now();
        let empty = MachineStatus {
            name: setup.definition.name.clone(),
            version: setup.definition.version.clone(),
            state: state.clone(),
            path: setup.directory.clone(),
            id: origin.instance.to_string(),
            start_time: started,
            available_transitions: Vec::new(),
            problem: None,
            watchers: Vec::new(),
        };
        let task = Self {
            setup,
            fsm,
            state,
            data,
            slots,
            wake,
            checks: JoinSet::new(),
            background: JoinSet::new(),
            saving: None,
            unsaved: false,
            save_after: None,
            brake: Brake::default(),
            queued: VecDeque::new(),
            origin,
            started,
            problem,
            save_problem: None,
            publisher: watch::Sender::new(Arc::new(empty)),
        };
        task.publish_status();
        task
    }

    /// Where the newest snapshot is.
    pub(super) fn status(&self) -> watch::Receiver<Arc<MachineStatus>> {
        self.publisher.subscribe()
    }

    fn name(&self) -> &str {
        self.setup.definition.name.as_str()
    }

    /// Runs until it is told to stop, or nobody is left who could tell it.
    pub(super) async fn run(&mut self, mut commands: mpsc::Receiver<Command>) {
        if let Some(problem) = &self.problem {
            tracing::warn!(machine = self.name(), "{problem}");
        }
        let splay = self.setup.definition.splay_start.mul_f64(crate::duration::random_fraction());
        if !splay.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(splay) => {}
                () = wait_for_stop(&mut commands) => return,
            }
        }
        self.observe();
        self.enter();
        loop {
            let next = self.next_deadline();
            let wake = self.wake.clone();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Transition(event, answer)) => _ = answer.send(self.transition(&event)),
                    Some(Command::Stop) | None => break,
                },
                Some(joined) = self.checks.join_next() => self.joined(joined),
                () = wake.raised() => self.take_signals(),
                () = sleep_until(next) => {}
                Some(saved) = finished_saving(&mut self.saving) => self.saved(saved),
            }
            self.work_off();
        }
        self.stop().await;
    }

    /// Starts what looks for changes outside, for as long as the machine runs.
    fn observe(&mut self) {
        for slot in &self.slots {
            let context = self.context(slot);
            if let Some(background) = slot.watcher.observe(&context, slot.signal.clone()) {
                self.background.spawn(background);
            }
        }
    }

    fn context(&self, slot: &Slot) -> Context {
        Context {
            services: Arc::clone(&self.setup.services),
            definition: Arc::clone(&self.setup.definition),
            watcher: slot.definition.name.clone(),
            instance: Arc::clone(&self.origin.instance),
            directory: self.setup.directory.clone(),
            data_directory: self.setup.data_directory.clone(),
        }
    }

    /// The current state was entered: every watcher that works in it is checked at once.
    fn enter(&mut self) {
        let now = Instant::now();
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(index) else { continue };
            if slot.definition.is_active_in(&self.state) {
                slot.entered(now);
                self.start_check(index, Cause::Entered);
            }
        }
        self.publish_status();
    }

    /// Everything that has become due.
    fn work_off(&mut self) {
        let now = Instant::now();
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(index) else { continue };
            if slot.announce_due(now) {
                self.announce(index);
            }
            if let Some(cause) = self.slots.get(index).and_then(|slot| slot.due(now)) {
                self.start_check(index, cause);
            }
        }
        while self.brake.wait(Instant::now()).is_zero()
            && let Some(asked) = self.queued.pop_front()
        {
            self.make(&asked);
        }
        if self.unsaved && self.saving.is_none() && self.save_after.is_none_or(|after| after <= now) {
            self.unsaved = false;
            self.save_after = None;
            let snapshot = self.data.snapshot();
            let directory = self.setup.data_directory.clone();
            self.saving = Some(tokio::task::spawn_blocking(move || data::save(&directory, &snapshot)));
        }
    }

    fn next_deadline(&mut self) -> Option<Instant> {
        let brake = (!self.queued.is_empty()).then(|| {
            let now = Instant::now();
            now + self.brake.wait(now)
        });
        let save = self.save_after.filter(|_| self.unsaved && self.saving.is_none());
        self.slots.iter().filter_map(Slot::next).chain(brake).chain(save).min()
    }

    fn take_signals(&mut self) {
        for index in 0..self.slots.len() {
            if self.slots.get(index).is_some_and(|slot| slot.signal.take()) {
                self.start_check(index, Cause::Signal);
            }
        }
    }

    /// Starts a check if the watcher works in this state; one that runs is followed by another.
    fn start_check(&mut self, index: usize, cause: Cause) {
        let Some(slot) = self.slots.get(index) else { return };
        if !slot.definition.is_active_in(&self.state) {
            return;
        }
        if slot.running.is_some() {
            if let Some(slot) = self.slots.get_mut(index) {
                slot.postpone(cause);
            }
            return;
        }
        let check = Check {
            context: self.context(slot),
            cause,
            state: self.state.clone(),
            data: self.data.snapshot(),
            previous_outcome: slot.outcome(),
        };
        let watcher = Arc::clone(&slot.watcher);
        let visit = slot.visit();
        let handle = self.checks.spawn(async move {
            let started = Instant::now();
            let checked = async {
                let limit = watcher.timeout();
                let late = || Report::error(format!("the check took longer than {}", crate::duration::format(limit)));
                tokio::time::timeout(limit, watcher.check(check)).await.unwrap_or_else(|_| late())
            };
            // A defect of a kind must not take the machine with it.
            let report = AssertUnwindSafe(checked)
                .catch_unwind()
                .await
                .unwrap_or_else(|_| Report::error("defect in the watcher: it panicked; please report it"));
            Finished { index, run_time: started.elapsed(), report, visit }
        });
        if let Some(slot) = self.slots.get_mut(index) {
            slot.started(Instant::now(), handle, crate::duration::random_fraction());
        }
    }

    fn joined(&mut self, joined: Result<Finished, tokio::task::JoinError>) {
        match joined {
            Ok(finished) => self.finished(finished),
            Err(error) if error.is_cancelled() => {}
            Err(error) => tracing::error!(machine = self.name(), "defect in a check: {error}"),
        }
    }

    fn finished(&mut self, finished: Finished) {
        let Finished { index, run_time, mut report, visit } = finished;
        let machine = self.setup.definition.name.clone();
        let Some(slot) = self.slots.get_mut(index) else { return };
        // What goes on being wrong is said once; the status has it all the while.
        let news = report
            .error
            .as_ref()
            .filter(|error| report.told == Told::No && slot.last_error() != Some(error.as_str()))
            .cloned();
        slot.finished(Instant::now(), run_time, &report);
        let watcher = slot.definition.name.clone();
        if let Some(error) = news {
            tracing::warn!(%machine, %watcher, "{error}");
        }
        // The data comes first: whatever is checked from here on must see it.
        let (changed, stored) = self.data.apply(std::mem::take(&mut report.changes));
        match stored {
            Err(error) => {
                tracing::warn!(%machine, %watcher, "{error}");
                self.problem = Some(error.to_string());
            }
            Ok(()) if !changed.is_empty() => self.problem = None,
            Ok(()) => {}
        }
        self.unsaved |= !changed.is_empty();
        if report.announce == Announce::Yes {
            self.announce(index);
        }
        self.end_left_behind(index, visit);
        let moved = report.fire.map_or(Moved::No, |fire| self.fire(index, visit, fire));
        // A transition has every watcher of the new state checked, with the new data.
        if moved == Moved::No {
            self.data_changed(&changed);
        }
        if let Some(cause) = self.slots.get_mut(index).and_then(Slot::take_postponed) {
            self.start_check(index, cause);
        }
        self.publish_status();
    }

    /// A check that began before its state was left may have begun something since the watcher was told to end it.
    fn end_left_behind(&mut self, index: usize, visit: u64) {
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.visit() != visit) else { return };
        if !slot.definition.is_active_in(&self.state) {
            slot.left();
        }
        self.tell_left(index);
    }

    fn tell_left(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        if let Some(report) = slot.watcher.left() {
            slot.note(&report);
            if report.announce == Announce::Yes {
                self.announce(index);
            }
        }
    }

    /// Changes travel: the watchers that read a changed item look at once.
    fn data_changed(&mut self, changed: &[String]) {
        let reads = |slot: &Slot| slot.reads.iter().any(|name| changed.contains(name));
        let readers: Vec<usize> =
            self.slots.iter().enumerate().filter(|(_, slot)| reads(slot)).map(|(index, _)| index).collect();
        for index in readers {
            if let Some(slot) = self.slots.get(index).filter(|slot| slot.running.is_some()) {
                slot.watcher.superseded();
            }
            self.start_check(index, Cause::Signal);
        }
    }

    fn announce(&self, index: usize) {
        let Some(slot) = self.slots.get(index) else { return };
        let body = Body::WatcherState {
            kind: slot.kind.name,
            watcher: slot.definition.name.clone(),
            fields: slot.watcher.event_fields(&slot.seen()),
        };
        self.setup.bus.publish(Event::new(self.origin.clone(), body));
    }

    /// A watcher asks for a transition; the brake may make it wait.
    fn fire(&mut self, index: usize, visit: u64, fire: Fire) -> Moved {
        let Some(slot) = self.slots.get(index) else { return Moved::No };
        let event = match fire {
            Fire::Success => slot.definition.success_transition.clone(),
            Fire::Fail => slot.definition.fail_transition.clone(),
            Fire::Named(event) => Label::new(event).ok(),
        };
        let Some(event) = event else { return Moved::No };
        let asked = Asked { event, fire, index, visit };
        if self.queued.is_empty() && self.brake.wait(Instant::now()).is_zero() {
            return self.make(&asked);
        }
        let event = &asked.event;
        if self.queued.iter().any(|other| other.index == index && other.event == *event && other.visit == visit) {
            tracing::debug!(machine = self.name(), transition = %event, "already waits");
        } else if self.queued.len() < MAXIMUM_QUEUED {
            tracing::debug!(machine = self.name(), transition = %event, "slowed: the machine moves fast");
            self.queued.push_back(asked);
        } else {
            tracing::warn!(machine = self.name(), transition = %event, "dropped: too many transitions wait");
            slot.watcher.not_fired(fire);
        }
        Moved::No
    }

    /// Makes the transition that a watcher asked for, unless its state has been left since: a verdict on that state
    /// says nothing of the one that followed, even if the machine has come back.
    fn make(&mut self, asked: &Asked) -> Moved {
        let Some(slot) = self.slots.get(asked.index) else { return Moved::No };
        if slot.visit() != asked.visit {
            let watcher = &slot.definition.name;
            tracing::debug!(machine = self.name(), %watcher, transition = %asked.event, "not fired: its state was left");
            slot.watcher.not_fired(asked.fire);
            return Moved::No;
        }
        match self.transition(asked.event.as_str()) {
            Ok(_) => Moved::Yes,
            Err(refused) => {
                tracing::warn!(machine = self.name(), "{refused}");
                Moved::No
            }
        }
    }

    fn transition(&mut self, event: &str) -> Result<Label, Refused> {
        let to_state = self.fsm.transition(&self.state, event)?;
        let from_state = std::mem::replace(&mut self.state, to_state.clone());
        self.brake.moved(Instant::now());
        tracing::info!(machine = self.name(), transition = event, from = %from_state, to = %to_state, "transition");
        if let Ok(transition) = Label::new(event) {
            let body = Body::Transition { transition, from_state, to_state: to_state.clone() };
            self.setup.bus.publish(Event::new(self.origin.clone(), body));
        }
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(index) else { continue };
            if !slot.definition.is_active_in(&self.state) {
                slot.left();
                self.tell_left(index);
            }
        }
        self.enter();
        Ok(to_state)
    }

    fn saved(&mut self, result: Result<(), String>) {
        self.saving = None;
        let problem = result.err();
        if problem.is_some() {
            self.unsaved = true;
            self.save_after = Some(Instant::now() + SAVE_AGAIN);
        }
        if self.save_problem != problem {
            if let Some(problem) = &problem {
                tracing::warn!(machine = self.name(), "{problem}");
            }
            self.save_problem = problem;
            self.publish_status();
        }
    }

    fn publish_status(&self) {
        let status = MachineStatus {
            name: self.setup.definition.name.clone(),
            version: self.setup.definition.version.clone(),
            state: self.state.clone(),
            path: self.setup.directory.clone(),
            id: self.origin.instance.to_string(),
            start_time: self.started,
            available_transitions: self.fsm.available(&self.state),
            problem: self.save_problem.clone().or_else(|| self.problem.clone()),
            watchers: self.slots.iter().map(|slot| slot.status(&self.state)).collect(),
        };
        self.publisher.send_replace(Arc::new(status));
    }

    async fn stop(&mut self) {
        self.background.shutdown().await;
        self.checks.shutdown().await;
        let mut saving = self.saving.take();
        if self.unsaved {
            let (earlier, snapshot) = (saving.take(), self.data.snapshot());
            let directory = self.setup.data_directory.clone();
            saving = Some(tokio::spawn(async move {
                if let Some(earlier) = earlier {
                    _ = earlier.await;
                }
                match tokio::task::spawn_blocking(move || data::save(&directory, &snapshot)).await {
                    Ok(result) => result,
                    Err(_) => Ok(()),
                }
            }));
        }
        if let Some(saving) = saving
            && tokio::time::timeout(SAVE_PATIENCE, saving).await.is_err()
        {
            tracing::warn!(machine = self.name(), "its data was not written in time");
        }
    }
}

async fn wait_for_stop(commands: &mut mpsc::Receiver<Command>) {
    loop {
        match commands.recv().await {
            None | Some(Command::Stop) => return,
            // Dropping the answer tells the caller that the machine has not started yet.
            Some(Command::Transition(..)) => {}
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn finished_saving(
    saving: &mut Option<JoinHandle<Result<(), crate::fs::FileError>>>,
) -> Option<Result<(), String>> {
    let result = saving.as_mut()?.await;
    Some(match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{error}: {}", error.source)),
        Err(error) => Err(error.to_string()),
    })
}
