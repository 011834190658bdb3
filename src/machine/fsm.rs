//! The state machine proper: pure, without time or I/O. States are the initial state plus every `from` and
//! `destination`.

use std::collections::{BTreeSet, HashMap};

use crate::names::Label;

use super::definition::Transition;

/// States and the moves between them.
#[derive(Debug, Clone)]
pub struct Fsm {
    destinations: HashMap<(Label, Label), Label>,
    events: Vec<Label>,
    states: BTreeSet<Label>,
}

/// A move that is not possible in the current state, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("transition \"{event}\" is not valid in state \"{state}\"; valid are: {}", list(.available))]
    NotValidHere { event: Label, state: Label, available: Vec<Label> },
    #[error("there is no transition {event:?}; there are: {}", list(.known))]
    Unknown { event: String, known: Vec<Label> },
    #[error("machine \"{machine}\" does not run, or waits for its start")]
    NotRunning { machine: crate::names::MachineName },
}

fn list(labels: &[Label]) -> String {
    if labels.is_empty() {
        return "none".to_owned();
    }
    labels.iter().map(Label::as_str).collect::<Vec<_>>().join(", ")
}

impl Fsm {
    /// Builds the machine; where two transitions of one name leave the same state, the first one counts (validation
    /// refuses such a definition).
    pub fn new(initial: &Label, transitions: &[Transition]) -> Self {
        let mut destinations = HashMap::new();
        let mut events = Vec::new();
        let mut states = BTreeSet::from([initial.clone()]);
        for transition in transitions {
            states.insert(transition.destination.clone());
            states.extend(transition.from.iter().cloned());
            if !events.contains(&transition.name) {
                events.push(transition.name.clone());
            }
            for from in &transition.from {
                destinations
                    .entry((from.clone(), transition.name.clone()))
                    .or_insert_with(|| transition.destination.clone());
            }
        }
        Self { destinations, events, states }
    }

    /// The state that `event` leads to from `state`.
    ///
    /// # Errors
    /// When the event does not exist or is not valid in this state; the message names the valid ones.
    pub fn transition(&self, state: &Label, event: &str) -> Result<Label, Refused> {
        let Some(event) = self.events.iter().find(|known| known.as_str() == event) else {
            return Err(Refused::Unknown { event: event.to_owned(), known: self.events.clone() });
        };
        self.destinations.get(&(state.clone(), event.clone())).cloned().ok_or_else(|| Refused::NotValidHere {
            event: event.clone(),
            state: state.clone(),
            available: self.available(state),
        })
    }

    /// The events that are valid in a state, in the order of the definition.
    pub fn available(&self, state: &Label) -> Vec<Label> {
        let valid = |event: &&Label| self.destinations.contains_key(&(state.clone(), (*event).clone()));
        self.events.iter().filter(valid).cloned().collect()
    }

    /// All states, sorted.
    pub fn states(&self) -> &BTreeSet<Label> {
        &self.states
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Label {
        Label::new(text).unwrap()
    }

    fn fsm() -> Fsm {
        let transition = |name: &str, from: &[&str], destination: &str| Transition {
            name: label(name),
            from: from.iter().map(|state| label(state)).collect(),
            destination: label(destination),
            description: String::new(),
            subscribe: Vec::new(),
        };
        let transitions =
            [transition("start", &["STOPPED", "FAILED"], "RUNNING"), transition("stop", &["RUNNING"], "STOPPED")];
        Fsm::new(&label("STOPPED"), &transitions)
    }

    #[test]
    fn moves_where_a_transition_leads() {
        assert_eq!(fsm().transition(&label("STOPPED"), "start"), Ok(label("RUNNING")));
        assert_eq!(fsm().available(&label("RUNNING")), vec![label("stop")]);
        assert_eq!(fsm().states().len(), 3);
    }

    #[test]
    fn an_impossible_move_is_refused_and_says_what_is_possible() {
        let error = fsm().transition(&label("STOPPED"), "stop").unwrap_err();
        assert_eq!(error.to_string(), "transition \"stop\" is not valid in state \"STOPPED\"; valid are: start");
        let error = fsm().transition(&label("STOPPED"), "fly").unwrap_err();
        assert_eq!(error.to_string(), "there is no transition \"fly\"; there are: start, stop");
    }
}
