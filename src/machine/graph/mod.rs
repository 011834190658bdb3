//! Drawings of a machine. In: its model. Out: DOT for Graphviz, Mermaid for Markdown, or SVG that is laid out here, so that
//! nothing needs to be installed. Every text from the definition is escaped for the language that it goes into.

mod dot;
mod layout;
mod mermaid;
mod svg;

use std::collections::{BTreeMap, VecDeque};

use super::lint::{Examined, Model};

pub use dot::dot;
pub use mermaid::mermaid;
pub use svg::{TooLarge, svg};

/// What is drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawing {
    pub title: String,
    /// The initial state is the first, the others follow in the order in which they are reached.
    pub states: Vec<State>,
    pub arrows: Vec<Arrow>,
}

/// One box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub name: String,
    /// What works in it, one line each.
    pub watchers: Vec<String>,
}

/// One line from box to box, for all transitions between the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrow {
    pub from: usize,
    pub to: usize,
    pub transitions: Vec<Step>,
}

/// One transition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub text: String,
    pub made_by: MadeBy,
}

/// Who makes a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MadeBy {
    /// A watcher, or another machine's transition.
    Machine,
    Hand,
}

impl Arrow {
    /// Whether only people go this way.
    pub fn is_by_hand(&self) -> bool {
        self.transitions.iter().all(|step| step.made_by == MadeBy::Hand)
    }
}

impl Drawing {
    /// The drawing of a machine that was read without a fault.
    pub fn of(machine: &Examined) -> Option<Self> {
        machine.definition()?;
        let (model, _) = machine.model()?;
        Some(Self::of_model(&model))
    }

    fn of_model(model: &Model<'_>) -> Self {
        let order = order(model);
        let mut numbers = vec![0; order.len()];
        for (number, state) in order.iter().enumerate() {
            if let Some(slot) = numbers.get_mut(*state) {
                *slot = number;
            }
        }
        let number = |state: usize| numbers.get(state).copied().unwrap_or_default();
        let mut watchers: Vec<Vec<String>> = vec![Vec::new(); order.len()];
        for (acting, watcher) in model.watchers.iter().zip(&model.definition.watchers) {
            let pace = watcher.interval.map(|interval| format!(" {}", crate::duration::format(interval)));
            let text = format!("{} ({}{})", watcher.name, watcher.kind, pace.unwrap_or_default());
            let states: Vec<usize> = if acting.everywhere { (0..order.len()).collect() } else { acting.states.clone() };
            for state in states {
                if let Some(lines) = watchers.get_mut(number(state)) {
                    lines.push(text.clone());
                }
            }
        }
        let mut arrows = BTreeMap::<(usize, usize), Vec<Step>>::new();
        for one in &model.moves {
            let Some(transition) = model.transition_of(one) else { continue };
            let mut text = transition.name.to_string();
            for wanted in &transition.subscribe {
                text.push_str(&format!(" (on {}.{})", wanted.machine, wanted.event));
            }
            let is_made = model.is_fired(one.from, one.event) || !transition.subscribe.is_empty();
            let made_by = if is_made { MadeBy::Machine } else { MadeBy::Hand };
            arrows.entry((number(one.from), number(one.to))).or_default().push(Step { text, made_by });
        }
        let name = |state: &usize| model.state_name(*state).to_owned();
        Self {
            title: format!("{} {}", model.definition.name, model.definition.version),
            states: order.iter().zip(watchers).map(|(state, watchers)| State { name: name(state), watchers }).collect(),
            arrows: arrows.into_iter().map(|((from, to), transitions)| Arrow { from, to, transitions }).collect(),
        }
    }
}

/// The states as they are reached from the initial one, then those that are not.
fn order(model: &Model<'_>) -> Vec<usize> {
    let mut seen = vec![false; model.states.len()];
    let mut order = Vec::new();
    let initial = model.state(model.definition.initial_state.as_str());
    for start in initial.into_iter().chain(0..model.states.len()) {
        let mut next = VecDeque::from([start]);
        while let Some(state) = next.pop_front() {
            match seen.get_mut(state) {
                Some(seen) if !*seen => *seen = true,
                _ => continue,
            }
            order.push(state);
            let leaving = model.leaving.get(state).into_iter().flatten();
            next.extend(leaving.filter_map(|index| model.moves.get(*index)).map(|one| one.to));
        }
    }
    order
}
