//! What running machines show to those outside: measurements, results of checks, and switches, by machine and watcher.
//! Watchers put them here for as long as their machine runs; the HTTP listener and the Prometheus files read them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::Notify;

use crate::names::{Label, MachineName};

/// What a watcher is known by.
pub type Key = (MachineName, Label);

/// A measurement: the names and the numbers that a command printed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Measured {
    pub labels: BTreeMap<String, String>,
    pub metrics: BTreeMap<String, f64>,
    /// When it was made, in seconds of Unix time.
    pub time: i64,
}

/// Where a measurement is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exposure {
    pub prometheus: bool,
    pub http: bool,
    /// In the data of its machine.
    pub data: bool,
}

/// The result of a Nagios check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    pub status: &'static str,
    /// 0 to 3, as Nagios has it.
    pub code: u8,
    /// When it was made, in seconds of Unix time.
    pub time: i64,
    pub checks: u64,
}

/// How a switch stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Position {
    #[default]
    Unknown,
    On,
    Off,
}

impl Position {
    /// As events and answers say it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// A switch: what it is in which states, and what turning it asks for.
#[derive(Debug)]
pub struct Switch {
    pub on_when: Vec<String>,
    pub off_when: Vec<String>,
    pub disable_when: Vec<String>,
    pub on_event: Option<Label>,
    pub off_event: Option<Label>,
    pub annotations: BTreeMap<String, String>,
    position: Mutex<Position>,
}

impl Switch {
    /// A switch of which nothing is known yet.
    pub fn new(on_when: Vec<String>, off_when: Vec<String>, disable_when: Vec<String>) -> Self {
        Self {
            on_when,
            off_when,
            disable_when,
            on_event: None,
            off_event: None,
            annotations: BTreeMap::new(),
            position: Mutex::default(),
        }
    }

    /// How it stands when the machine is in this state. A state that is in neither list leaves it as it was.
    pub fn position_in(&self, state: &Label) -> Position {
        let mut position = self.lock();
        let is_in = |states: &[String]| states.iter().any(|other| other == state.as_str());
        if is_in(&self.on_when) {
            *position = Position::On;
        } else if is_in(&self.off_when) {
            *position = Position::Off;
        }
        *position
    }

    /// How it stood when it was last looked at.
    pub fn position(&self) -> Position {
        *self.lock()
    }

    /// Whether nobody may turn it in this state.
    pub fn is_disabled_in(&self, state: &Label) -> bool {
        self.disable_when.iter().any(|other| other == state.as_str())
    }

    /// Somebody turned it; answers how it stood before.
    pub fn turn(&self, position: Position) -> Position {
        std::mem::replace(&mut self.lock(), position)
    }

    fn lock(&self) -> MutexGuard<'_, Position> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a watcher shows.
#[derive(Debug, Clone)]
pub enum Shown {
    Measured(Arc<Measured>, Exposure),
    Checked(Arc<Checked>),
    Switch(Arc<Switch>),
}

#[derive(Debug)]
struct Place {
    number: u64,
    shown: Option<Shown>,
}

/// What all machines of a daemon show.
#[derive(Debug, Default)]
pub struct Panel {
    places: Mutex<BTreeMap<Key, Place>>,
    next: AtomicU64,
    changed: Notify,
}

/// A place on the panel; dropping it takes what it shows away.
#[derive(Debug)]
pub struct Held {
    panel: Arc<Panel>,
    key: Key,
    number: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut places = self.panel.lock();
        // A machine that was started anew may have the place already.
        if places.get(&self.key).is_some_and(|place| place.number == self.number) {
            places.remove(&self.key);
        }
        drop(places);
        self.panel.changed.notify_one();
    }
}

impl Panel {
    /// Takes the place of a watcher, for as long as the answer lives.
    pub fn hold(self: &Arc<Self>, machine: &MachineName, watcher: &Label, shown: Option<Shown>) -> Held {
        let key = (machine.clone(), watcher.clone());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(key.clone(), Place { number, shown });
        self.changed.notify_one();
        Held { panel: Arc::clone(self), key, number }
    }

    /// Shows something new; without effect when nobody holds the place, because the machine has ended.
    pub fn show(&self, machine: &MachineName, watcher: &Label, shown: Shown) {
        if let Some(place) = self.lock().get_mut(&(machine.clone(), watcher.clone())) {
            place.shown = Some(shown);
        }
        self.changed.notify_one();
    }

    /// What a watcher shows.
    pub fn get(&self, machine: &MachineName, watcher: &Label) -> Option<Shown> {
        self.lock().get(&(machine.clone(), watcher.clone())).and_then(|place| place.shown.clone())
    }

    /// Everything that is shown, by machine and watcher.
    pub fn all(&self) -> Vec<(Key, Shown)> {
        let places = self.lock();
        places.iter().filter_map(|(key, place)| Some((key.clone(), place.shown.clone()?))).collect()
    }

    /// Waits until something has changed since the last call; for one caller.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Key {
        (MachineName::new("facts").unwrap(), Label::new("cpu").unwrap())
    }

    fn measured() -> Shown {
        let exposure = Exposure { prometheus: true, http: true, data: false };
        Shown::Measured(Arc::default(), exposure)
    }

    #[test]
    fn what_a_machine_shows_goes_with_it() {
        let panel = Arc::new(Panel::default());
        let (machine, watcher) = names();
        let held = panel.hold(&machine, &watcher, None);
        assert!(panel.get(&machine, &watcher).is_none());
        panel.show(&machine, &watcher, measured());
        assert_eq!(panel.all().len(), 1);
        drop(held);
        panel.show(&machine, &watcher, measured());
        assert!(panel.all().is_empty(), "a check that ends after its machine leaves nothing");
    }

    #[test]
    fn the_end_of_an_old_instance_does_not_hide_the_new_one() {
        let panel = Arc::new(Panel::default());
        let (machine, watcher) = names();
        let old = panel.hold(&machine, &watcher, Some(measured()));
        let _new = panel.hold(&machine, &watcher, Some(measured()));
        drop(old);
        assert_eq!(panel.all().len(), 1);
    }

    #[test]
    fn a_switch_keeps_its_position_in_states_that_say_nothing() {
        let label = |text| Label::new(text).unwrap();
        let switch = Switch::new(vec!["RUNS".to_owned()], vec!["STOPPED".to_owned()], vec!["BROKEN".to_owned()]);
        assert_eq!(switch.position_in(&label("STARTING")), Position::Unknown);
        assert_eq!(switch.position_in(&label("RUNS")), Position::On);
        assert_eq!(switch.position_in(&label("BROKEN")), Position::On);
        assert_eq!(switch.position_in(&label("STOPPED")), Position::Off);
        assert_eq!(switch.turn(Position::On), Position::Off);
        assert!(switch.is_disabled_in(&label("BROKEN")) && !switch.is_disabled_in(&label("RUNS")));
    }
}
