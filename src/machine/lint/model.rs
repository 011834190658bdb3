//! A definition as numbers: states, events and moves, which states can be reached, and who fires what where. Its size is
//! that of the definition's text; a watcher that works in every state is kept as such and not multiplied.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use crate::machine::definition::{Definition, Transition};
use crate::machine::watcher::{Fires, OfKind};
use crate::names::Label;

/// One arrow of the drawing: a transition from one of its states.
#[derive(Debug, Clone, Copy)]
pub struct Move {
    /// Index of the transition in the definition.
    pub transition: usize,
    /// Index in its `from`.
    pub position: usize,
    pub from: usize,
    pub event: usize,
    pub to: usize,
}

/// What a watcher does in the model.
pub struct Acting {
    /// It works in every state; `states` is then empty.
    pub everywhere: bool,
    /// The states that it names, each once.
    pub states: Vec<usize>,
    /// Events that its checks may ask for.
    pub fires: Vec<usize>,
}

/// The model of one definition.
pub struct Model<'a> {
    pub definition: &'a Definition,
    pub built: &'a [Option<OfKind>],
    pub states: Vec<&'a Label>,
    pub events: Vec<&'a Label>,
    pub moves: Vec<Move>,
    /// By state: indices of the moves that leave it.
    pub leaving: Vec<Vec<usize>>,
    pub reachable: Vec<bool>,
    /// Of each event: whether it leaves a reachable state.
    pub makeable: Vec<bool>,
    pub watchers: Vec<Acting>,
    state_index: HashMap<&'a str, usize>,
    event_index: HashMap<&'a str, usize>,
    valid: HashSet<(usize, usize)>,
    /// Watchers that may fire an event in a state, as far as they name the state.
    firing: HashMap<(usize, usize), Vec<usize>>,
    /// Watchers of every state that may fire an event.
    firing_everywhere: HashMap<usize, Vec<usize>>,
    works_everywhere: bool,
    works: HashSet<usize>,
}

impl<'a> Model<'a> {
    /// Of a definition that was read without a fault, and its watchers in the same order. One that is missing there is
    /// taken for one that may do anything.
    pub fn new(definition: &'a Definition, built: &'a [Option<OfKind>]) -> Self {
        let mut names = BTreeSet::from([&definition.initial_state]);
        for transition in &definition.transitions {
            names.insert(&transition.destination);
            names.extend(&transition.from);
        }
        let states: Vec<&Label> = names.into_iter().collect();
        let state_index: HashMap<&str, usize> =
            states.iter().enumerate().map(|(index, state)| (state.as_str(), index)).collect();
        let mut events: Vec<&Label> = Vec::new();
        let mut event_index = HashMap::new();
        let mut moves = Vec::new();
        let mut leaving = vec![Vec::new(); states.len()];
        let mut valid = HashSet::new();
        for (index, transition) in definition.transitions.iter().enumerate() {
            let event = *event_index.entry(transition.name.as_str()).or_insert_with(|| {
                events.push(&transition.name);
                events.len() - 1
            });
            let Some(to) = state_index.get(transition.destination.as_str()).copied() else { continue };
            for (position, from) in transition.from.iter().enumerate() {
                let Some(from) = state_index.get(from.as_str()).copied() else { continue };
                if let Some(leaving) = leaving.get_mut(from) {
                    leaving.push(moves.len());
                }
                valid.insert((from, event));
                moves.push(Move { transition: index, position, from, event, to });
            }
        }
        let mut model = Self {
            definition,
            built,
            reachable: Vec::new(),
            makeable: Vec::new(),
            states,
            events,
            moves,
            leaving,
            watchers: Vec::new(),
            state_index,
            event_index,
            valid,
            firing: HashMap::new(),
            firing_everywhere: HashMap::new(),
            works_everywhere: false,
            works: HashSet::new(),
        };
        model.reachable = model.reach(|_| true);
        model.makeable = model.made_from(&model.reachable);
        model.add_watchers();
        model
    }

    fn add_watchers(&mut self) {
        for (index, watcher) in self.definition.watchers.iter().enumerate() {
            let fired = match self.built.get(index).and_then(Option::as_ref) {
                Some((kind, _)) => kind.fires,
                None => Fires::Both,
            };
            let names: Vec<&str> = match fired {
                Fires::Both => {
                    watcher.success_transition.iter().chain(&watcher.fail_transition).map(Label::as_str).collect()
                }
                Fires::Fail => watcher.fail_transition.iter().map(Label::as_str).collect(),
                Fires::Named(names) => names.to_vec(),
                Fires::Nothing => Vec::new(),
            };
            let mut fires: Vec<usize> = names.iter().filter_map(|name| self.event(name)).collect();
            fires.sort_unstable();
            fires.dedup();
            let mut states: Vec<usize> =
                watcher.state_match.iter().filter_map(|state| self.state(state.as_str())).collect();
            states.sort_unstable();
            states.dedup();
            let everywhere = watcher.state_match.is_empty();
            self.works_everywhere |= everywhere;
            self.works.extend(&states);
            for event in &fires {
                if everywhere {
                    self.firing_everywhere.entry(*event).or_default().push(index);
                }
                for state in &states {
                    self.firing.entry((*state, *event)).or_default().push(index);
                }
            }
            self.watchers.push(Acting { everywhere, states, fires });
        }
    }

    pub fn state(&self, name: &str) -> Option<usize> {
        self.state_index.get(name).copied()
    }

    pub fn event(&self, name: &str) -> Option<usize> {
        self.event_index.get(name).copied()
    }

    pub fn state_name(&self, state: usize) -> &str {
        self.states.get(state).map_or("", |label| label.as_str())
    }

    pub fn event_name(&self, event: usize) -> &str {
        self.events.get(event).map_or("", |label| label.as_str())
    }

    pub fn is_reachable(&self, state: usize) -> bool {
        self.reachable.get(state).copied().unwrap_or_default()
    }

    pub fn transition_of(&self, one: &Move) -> Option<&'a Transition> {
        self.definition.transitions.get(one.transition)
    }

    /// Of each event: whether it leaves one of these states.
    pub fn made_from(&self, states: &[bool]) -> Vec<bool> {
        let mut made = vec![false; self.events.len()];
        for one in self.moves.iter().filter(|one| states.get(one.from) == Some(&true)) {
            if let Some(made) = made.get_mut(one.event) {
                *made = true;
            }
        }
        made
    }

    /// Whether an event is valid in a state.
    pub fn is_valid(&self, state: usize, event: usize) -> bool {
        self.valid.contains(&(state, event))
    }

    /// Whether any watcher works in a state.
    pub fn is_worked_in(&self, state: usize) -> bool {
        self.works_everywhere || self.works.contains(&state)
    }

    /// Watchers that may fire an event in a state: those that name the state, and those of every state.
    pub fn firing(&self, state: usize, event: usize) -> [&[usize]; 2] {
        [
            self.firing.get(&(state, event)).map(Vec::as_slice).unwrap_or_default(),
            self.firing_everywhere.get(&event).map(Vec::as_slice).unwrap_or_default(),
        ]
    }

    /// Whether any watcher may fire an event in a state.
    pub fn is_fired(&self, state: usize, event: usize) -> bool {
        self.firing(state, event).iter().any(|watchers| !watchers.is_empty())
    }

    /// The states that are reached from the initial one by these moves.
    pub fn reach(&self, passes: impl Fn(&Move) -> bool) -> Vec<bool> {
        let mut reached = vec![false; self.states.len()];
        let mut next: VecDeque<usize> = self.state(self.definition.initial_state.as_str()).into_iter().collect();
        while let Some(state) = next.pop_front() {
            match reached.get_mut(state) {
                Some(seen) if !*seen => *seen = true,
                _ => continue,
            }
            for index in self.leaving.get(state).into_iter().flatten() {
                if let Some(one) = self.moves.get(*index).filter(|one| passes(one)) {
                    next.push_back(one.to);
                }
            }
        }
        reached
    }
}
