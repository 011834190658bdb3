//! What the machines of one node know of each other: which state each is in, and which transitions it makes. For
//! `subscribe` and `foreign_state_required`. Nobody waits here: a machine that does not keep up loses news of
//! transitions, never of states, because those are read where they stand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use crate::names::{Label, MachineName};

/// News that wait for one machine; more are dropped with a warning.
const BACKLOG: usize = 256;

/// A machine moved, appeared or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    pub machine: MachineName,
    /// The transition that it made; `None` when it started or ended.
    pub event: Option<Label>,
}

/// The machines of one node.
#[derive(Debug, Default)]
pub struct Neighbours {
    machines: Mutex<HashMap<MachineName, Neighbour>>,
}

#[derive(Debug, Default)]
struct Neighbour {
    /// Of the machine that runs under this name, and which start of it that is.
    present: Option<(Label, Arc<()>)>,
    listeners: Vec<mpsc::Sender<News>>,
}

/// A running machine's place among its neighbours; dropping it tells them that it has ended.
#[derive(Debug)]
pub struct Presence {
    neighbours: Arc<Neighbours>,
    name: MachineName,
    start: Arc<()>,
}

impl Neighbours {
    /// A machine has started in this state.
    pub fn join(self: &Arc<Self>, name: &MachineName, state: &Label) -> Presence {
        let start = Arc::new(());
        self.change(name, |neighbour| neighbour.present = Some((state.clone(), Arc::clone(&start))), None);
        Presence { neighbours: Arc::clone(self), name: name.clone(), start }
    }

    /// Whether a machine of this name runs and is in this state.
    pub fn is_in(&self, name: &MachineName, state: &Label) -> bool {
        let machines = self.machines();
        machines.get(name).and_then(|machine| machine.present.as_ref()).is_some_and(|(current, _)| current == state)
    }

    /// News of these machines from now on, whether they run already or not.
    pub fn listen<'a>(&self, names: impl IntoIterator<Item = &'a MachineName>) -> mpsc::Receiver<News> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let mut machines = self.machines();
        for name in names {
            let listeners = &mut machines.entry(name.clone()).or_default().listeners;
            if !listeners.iter().any(|listener| listener.same_channel(&sender)) {
                listeners.push(sender.clone());
            }
        }
        receiver
    }

    fn machines(&self) -> MutexGuard<'_, HashMap<MachineName, Neighbour>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, name: &MachineName, change: impl FnOnce(&mut Neighbour), event: Option<Label>) {
        let mut machines = self.machines();
        let neighbour = machines.entry(name.clone()).or_default();
        change(neighbour);
        let news = News { machine: name.clone(), event };
        neighbour.listeners.retain(|listener| match listener.try_send(news.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::warn!(machine = %name, "a machine that subscribes to it does not keep up; a transition is lost on it");
                true
            }
        });
        if neighbour.present.is_none() && neighbour.listeners.is_empty() {
            machines.remove(name);
        }
    }
}

impl Presence {
    /// The machine made a transition.
    pub fn moved(&self, event: Label, state: Label) {
        let start = Arc::clone(&self.start);
        self.neighbours.change(&self.name, |neighbour| neighbour.present = Some((state, start)), Some(event));
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // A successor of the same name may run already.
        let leave = |neighbour: &mut Neighbour| {
            neighbour.present.take_if(|(_, start)| Arc::ptr_eq(start, &self.start));
        };
        self.neighbours.change(&self.name, leave, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Label {
        Label::new(text).unwrap()
    }

    #[tokio::test]
    async fn states_and_transitions_are_told_and_nothing_of_the_ended_stays() {
        let neighbours = Arc::new(Neighbours::default());
        let name = MachineName::new("db").unwrap();
        let mut news = neighbours.listen([&name, &name]);
        let presence = neighbours.join(&name, &label("DOWN"));
        assert!(neighbours.is_in(&name, &label("DOWN")));
        presence.moved(label("start"), label("UP"));
        assert!(neighbours.is_in(&name, &label("UP")) && !neighbours.is_in(&name, &label("DOWN")));
        let successor = neighbours.join(&name, &label("DOWN"));
        drop(presence);
        assert!(neighbours.is_in(&name, &label("DOWN")), "the successor stays");
        drop(successor);
        assert!(!neighbours.is_in(&name, &label("DOWN")));
        let mut told = Vec::new();
        while let Ok(news) = news.try_recv() {
            told.push(news.event.map(|event| event.to_string()));
        }
        assert_eq!(told, [None, Some("start".to_owned()), None, None, None]);
        drop(news);
        drop(neighbours.join(&name, &label("DOWN")));
        assert!(neighbours.machines().is_empty());
    }

    #[test]
    fn a_listener_that_does_not_keep_up_costs_no_more_than_its_backlog() {
        let neighbours = Arc::new(Neighbours::default());
        let name = MachineName::new("db").unwrap();
        let news = neighbours.listen([&name]);
        let presence = neighbours.join(&name, &label("A"));
        for _ in 0..2 * BACKLOG {
            presence.moved(label("go"), label("B"));
        }
        assert_eq!(news.len(), BACKLOG);
        assert!(neighbours.is_in(&name, &label("B")));
    }
}
