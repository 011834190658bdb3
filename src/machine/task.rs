//! The task of one machine. It owns the state, the data and the watchers; checks run as futures of their own and report
//! back, so that no check holds up another, and nothing here is locked.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::events::{Body, Event, Origin};
use crate::names::{Label, MachineName};

use super::brake::Brake;
use super::data::{Change, Data};
use super::definition::Transition;
use super::fsm::{Fsm, Refused};
use super::keeper::{self, Keeper};
use super::neighbours::{News, Presence};
use super::runner::{Command, Setup};
use super::slot::Slot;
use super::status::MachineStatus;
use super::watcher::{Announce, Cause, Check, Context, Fire, Report, Signal, Told};

/// Transitions that wait for the brake; more are dropped with a warning.
const MAXIMUM_QUEUED: usize = 64;
struct Finished {
    index: usize,
    run_time: Duration,
    report: Report,
    /// The stay in the watcher's states in which the check started.
    visit: u64,
}

/// A transition that waits for the brake.
#[derive(PartialEq, Eq)]
struct Asked {
    event: Label,
    by: Asker,
}

/// Who asks for a transition.
#[derive(PartialEq, Eq)]
enum Asker {
    /// A watcher, in this stay in its states.
    Watcher { index: usize, visit: u64, fire: Fire },
    /// A transition of another machine.
    Neighbour(MachineName),
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
    keeper: Keeper,
    presence: Option<Presence>,
    news: mpsc::Receiver<News>,
    brake: Brake,
    queued: VecDeque<Asked>,
    origin: Origin,
    started: Timestamp,
    transitions: u64,
    /// About the data itself.
    problem: Option<String>,
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
            transitions: 0,
            problem: None,
            watchers: Vec::new(),
        };
        let news = listen(&setup);
        let keeper = Keeper::new(setup.data_directory.clone());
        let task = Self {
            setup,
            fsm,
            state,
            data,
            slots,
            wake,
            checks: JoinSet::new(),
            background: JoinSet::new(),
            keeper,
            presence: None,
            news,
            brake: Brake::default(),
            queued: VecDeque::new(),
            origin,
            started,
            transitions: 0,
            problem,
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
        let splay = self.setup.definition.splay_start.mul_f64(self.setup.services.chance.fraction());
        if !splay.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(splay) => {}
                () = wait_for_stop(&mut commands) => return,
            }
        }
        self.presence = Some(self.setup.services.neighbours.join(&self.setup.definition.name, &self.state));
        self.observe();
        self.enter();
        loop {
            let next = self.next_deadline();
            let wake = self.wake.clone();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Transition(event, answer)) => _ = answer.send(self.transition(&event)),
                    Some(Command::Change(changes, done)) => {
                        let changed = self.store(changes);
                        self.data_changed(&changed);
                        self.publish_status();
                        _ = done.send(());
                    }
                    Some(Command::Stop) | None => break,
                },
                Some(joined) = self.checks.join_next() => self.joined(joined),
                () = wake.raised() => self.take_signals(),
                Some(news) = self.news.recv() => self.neighbour_moved(&news),
                () = sleep_until(next) => {}
                Some(told) = self.keeper.written() => self.written(&told),
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
            if slot.can_work(&self.state, &self.setup.services.neighbours) {
                slot.entered(now);
                self.start_check(index, Cause::Entered);
            }
        }
        self.publish_status();
    }

    /// The current state was left, or another machine left a state that is required: what no longer works is told.
    fn leave(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        if !slot.can_work(&self.state, &self.setup.services.neighbours) {
            slot.left();
            self.tell_left(index);
        }
    }

    /// Another machine moved: watchers that require a state of it begin or end their work, and the transitions that
    /// subscribe to its transition are made where they are possible.
    fn neighbour_moved(&mut self, news: &News) {
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(index) else { continue };
            if !slot.depends_on(&news.machine) {
                continue;
            }
            match (slot.works(), slot.can_work(&self.state, &self.setup.services.neighbours)) {
                (false, true) => {
                    slot.entered(Instant::now());
                    self.start_check(index, Cause::Entered);
                }
                (true, false) => self.leave(index),
                _ => {}
            }
        }
        if let Some(event) = &news.event {
            let subscribes = |transition: &&Transition| {
                transition.subscribe.iter().any(|to| to.machine == news.machine && to.event == *event)
            };
            let definition = Arc::clone(&self.setup.definition);
            for transition in definition.transitions.iter().filter(subscribes) {
                let by = Asker::Neighbour(news.machine.clone());
                self.ask(Asked { event: transition.name.clone(), by });
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
        self.keeper.work_off(now, || self.data.snapshot());
    }

    fn next_deadline(&mut self) -> Option<Instant> {
        let brake = (!self.queued.is_empty()).then(|| {
            let now = Instant::now();
            now + self.brake.wait(now)
        });
        self.slots.iter().filter_map(Slot::next).chain(brake).chain(self.keeper.next()).min()
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
        let Some(slot) = self.slots.get(index).filter(|slot| slot.works()) else { return };
        if slot.running.is_some() {
            if let Some(slot) = self.slots.get_mut(index) {
                slot.postpone(cause);
            }
            return;
        }
        let check = Check {
            context: self.context(slot),
            stay: slot.stay(),
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
            Finished { index, run_time: started.elapsed(), report: report.bounded(), visit }
        });
        if let Some(slot) = self.slots.get_mut(index) {
            slot.started(Instant::now(), handle, self.setup.services.chance.fraction());
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
        let changed = self.store(std::mem::take(&mut report.changes));
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

    /// Makes changes of the data; the names of the items that are other than before.
    fn store(&mut self, changes: Vec<Change>) -> Vec<String> {
        let (changed, stored) = self.data.apply(changes);
        match stored {
            Err(error) => {
                tracing::warn!(machine = self.name(), "{error}");
                self.problem = Some(error.to_string());
            }
            Ok(()) if !changed.is_empty() => self.problem = None,
            Ok(()) => {}
        }
        if !changed.is_empty() {
            self.keeper.changed();
        }
        changed
    }

    /// A check that began before its state was left may have begun something since the watcher was told to end it.
    fn end_left_behind(&mut self, index: usize, visit: u64) {
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.visit() != visit) else { return };
        if !slot.works() {
            slot.left();
        }
        self.tell_left(index);
    }

    fn tell_left(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        if let Some(report) = slot.watcher.left().map(Report::bounded) {
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
        self.ask(Asked { event, by: Asker::Watcher { index, visit, fire } })
    }

    fn ask(&mut self, asked: Asked) -> Moved {
        if self.queued.is_empty() && self.brake.wait(Instant::now()).is_zero() {
            return self.make(&asked);
        }
        let event = &asked.event;
        if self.queued.contains(&asked) {
            tracing::debug!(machine = self.name(), transition = %event, "already waits");
        } else if self.queued.len() < MAXIMUM_QUEUED {
            tracing::debug!(machine = self.name(), transition = %event, "slowed: the machine moves fast");
            self.queued.push_back(asked);
        } else {
            tracing::warn!(machine = self.name(), transition = %event, "dropped: too many transitions wait");
            self.not_made(&asked);
        }
        Moved::No
    }

    /// The watcher that asked learns that nothing came of it.
    fn not_made(&self, asked: &Asked) {
        if let Asker::Watcher { index, fire, .. } = asked.by
            && let Some(slot) = self.slots.get(index)
        {
            slot.watcher.not_fired(fire);
        }
    }

    /// Makes the transition that was asked for, unless the state of the watcher that asked has been left since: a
    /// verdict on that state says nothing of the one that followed, even if the machine has come back.
    fn make(&mut self, asked: &Asked) -> Moved {
        if let Asker::Watcher { index, visit, .. } = asked.by
            && let Some(slot) = self.slots.get(index)
            && slot.visit() != visit
        {
            let watcher = &slot.definition.name;
            tracing::debug!(machine = self.name(), %watcher, transition = %asked.event, "not fired: its state was left");
            self.not_made(asked);
            return Moved::No;
        }
        match (self.transition(asked.event.as_str()), &asked.by) {
            (Ok(_), _) => Moved::Yes,
            // Who subscribes does so in all its states.
            (Err(refused), Asker::Neighbour(neighbour)) => {
                tracing::debug!(machine = self.name(), %neighbour, "{refused}");
                Moved::No
            }
            (Err(refused), Asker::Watcher { .. }) => {
                tracing::warn!(machine = self.name(), "{refused}");
                Moved::No
            }
        }
    }

    fn transition(&mut self, event: &str) -> Result<Label, Refused> {
        let to_state = self.fsm.transition(&self.state, event)?;
        let from_state = std::mem::replace(&mut self.state, to_state.clone());
        self.brake.moved(Instant::now());
        self.transitions = self.transitions.saturating_add(1);
        tracing::info!(machine = self.name(), transition = event, from = %from_state, to = %to_state, "transition");
        if let Ok(transition) = Label::new(event) {
            if let Some(presence) = &self.presence {
                presence.moved(transition.clone(), to_state.clone());
            }
            let body = Body::Transition { transition, from_state, to_state: to_state.clone() };
            self.setup.bus.publish(Event::new(self.origin.clone(), body));
        }
        for index in 0..self.slots.len() {
            self.leave(index);
        }
        self.enter();
        Ok(to_state)
    }

    fn written(&self, told: &keeper::Told) {
        if *told == keeper::Told::News {
            if let Some(problem) = self.keeper.problem() {
                tracing::warn!(machine = self.name(), "{problem}");
            }
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
            problem: self.keeper.problem().or(self.problem.as_ref()).cloned(),
            watchers: self.slots.iter().map(Slot::status).collect(),
            transitions: self.transitions,
        };
        self.publisher.send_replace(Arc::new(status));
    }

    async fn stop(&mut self) {
        self.presence = None;
        self.background.shutdown().await;
        self.checks.shutdown().await;
        self.setup.services.commands.settled().await;
        if !self.keeper.finish(self.data.snapshot()).await {
            tracing::warn!(machine = self.name(), "its data was not written in time");
        }
    }
}

/// News of the machines that the definition names.
fn listen(setup: &Setup) -> mpsc::Receiver<News> {
    let definition = &setup.definition;
    let required = definition.watchers.iter().flat_map(|watcher| &watcher.foreign_state_required);
    let subscribed = definition.transitions.iter().flat_map(|transition| &transition.subscribe);
    let names = required.map(|needed| &needed.machine).chain(subscribed.map(|to| &to.machine));
    setup.services.neighbours.listen(names)
}

async fn wait_for_stop(commands: &mut mpsc::Receiver<Command>) {
    loop {
        match commands.recv().await {
            None | Some(Command::Stop) => return,
            // Dropping the answer tells the caller that the machine has not started yet.
            Some(Command::Transition(..) | Command::Change(..)) => {}
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
