//! Rules about machines that watch each other: what they name must exist, and what they wait for must be able to come.

use std::collections::HashMap;
use std::sync::Arc;

use crate::machine::definition::Definition;
use crate::machine::document::Document;
use crate::machine::problem::Problem;
use crate::machine::rule::{ENDLESS_WAIT, UNKNOWN_FOREIGN_STATE, UNKNOWN_FOREIGN_TRANSITION, UNKNOWN_MACHINE};
use crate::names::{Label, MachineName};

use super::model::{Model, Move};
use super::{Examined, Findings, meant, with_help};

/// Each round of the search for waits that end frees at least one waiting watcher; longer chains are taken for free.
const MAXIMUM_ROUNDS: usize = 64;

/// Everything that is known of the node.
struct Node<'a> {
    /// By machine of the caller; `None` when its definition can't be read.
    models: Vec<Option<(Model<'a>, &'a Document)>>,
    /// Several machines may have one name, for example two versions.
    by_name: HashMap<&'a str, Vec<usize>>,
    built_in: HashMap<&'a str, Model<'a>>,
    /// Whether machines that are missing would have been given.
    is_whole: bool,
}

/// What a machine can get to.
#[derive(Default, PartialEq)]
struct Reached {
    states: Vec<bool>,
    /// Those that leave one of the states.
    events: Vec<bool>,
}

/// What a name of a machine, and of something in it, leads to.
enum Found<'n, 'a> {
    NoMachine,
    /// The machine is there, but can't be read or is built in, so that more can't be said.
    Unclear,
    In(Vec<(usize, &'n Model<'a>)>),
}

/// The problems of each machine, by its index.
pub fn check(machines: &[Examined], built_in: &[Arc<Definition>]) -> Vec<(usize, Vec<Problem>)> {
    let node = Node::new(machines, built_in);
    let reached = node.reach();
    let mut all = Vec::new();
    for (index, model) in node.models.iter().enumerate() {
        let Some((model, document)) = model else { continue };
        let mut findings = Findings::default();
        subscriptions(&node, model, document, &mut findings);
        requirements(&node, index, reached.as_deref(), &mut findings);
        all.push((index, findings.into_problems()));
    }
    all
}

impl<'a> Node<'a> {
    fn new(machines: &'a [Examined], built_in: &'a [Arc<Definition>]) -> Self {
        let mut by_name = HashMap::<&str, Vec<usize>>::new();
        for (index, machine) in machines.iter().enumerate() {
            if let Some(definition) = &machine.definition {
                by_name.entry(definition.name.as_str()).or_default().push(index);
            }
        }
        Self {
            models: machines.iter().map(Examined::model).collect(),
            by_name,
            built_in: built_in
                .iter()
                .map(|definition| (definition.name.as_str(), Model::new(definition, &[])))
                .collect(),
            is_whole: machines.len() > 1,
        }
    }

    fn find(&self, name: &MachineName) -> Found<'_, 'a> {
        let Some(indices) = self.by_name.get(name.as_str()) else {
            return if self.built_in.contains_key(name.as_str()) { Found::Unclear } else { Found::NoMachine };
        };
        let models: Option<Vec<_>> =
            indices.iter().map(|index| Some((*index, &self.models.get(*index)?.as_ref()?.0))).collect();
        models.map_or(Found::Unclear, Found::In)
    }

    /// The built-in machine of a name, unless one of the given has it.
    fn built_in(&self, name: &MachineName) -> Option<&Model<'a>> {
        self.built_in.get(name.as_str())
    }

    /// What each machine reaches when watchers wait for other machines, by the most hopeful reading: what is
    /// reached once counts as reached whenever it is needed. `None` when that takes too long to find out.
    fn reach(&self) -> Option<Vec<Reached>> {
        let mut reached: Vec<Reached> = self.models.iter().map(|_| Reached::default()).collect();
        for _ in 0..MAXIMUM_ROUNDS {
            let next: Vec<Reached> = self
                .models
                .iter()
                .map(|model| model.as_ref().map(|(model, _)| self.reach_one(model, &reached)).unwrap_or_default())
                .collect();
            if next == reached {
                return Some(reached);
            }
            reached = next;
        }
        None
    }

    fn reach_one(&self, model: &Model<'a>, reached: &[Reached]) -> Reached {
        let free: Vec<bool> = model
            .definition
            .watchers
            .iter()
            .map(|watcher| {
                let requirements = &watcher.foreign_state_required;
                requirements.iter().all(|required| self.comes(&required.machine, &required.state, reached))
            })
            .collect();
        let is_free = |watcher: &usize| free.get(*watcher).copied().unwrap_or(true);
        // Of each event: whether one of the watchers of every state is free to make it.
        let everywhere: Vec<bool> = (0..model.events.len())
            .map(|event| model.firing(usize::MAX, event).iter().any(|watchers| watchers.iter().any(is_free)))
            .collect();
        let subscribed: Vec<bool> = model
            .definition
            .transitions
            .iter()
            .map(|transition| {
                transition.subscribe.iter().any(|wanted| self.happens(&wanted.machine, &wanted.event, reached))
            })
            .collect();
        let states = model.reach(|one: &Move| {
            let [here, all] = model.firing(one.from, one.event);
            let is_subscribed = model.transition_of(one).is_some_and(|transition| !transition.subscribe.is_empty());
            let is_by_hand = here.is_empty() && all.is_empty() && !is_subscribed;
            is_by_hand
                || everywhere.get(one.event).copied().unwrap_or(true)
                || subscribed.get(one.transition).copied().unwrap_or(true)
                || here.iter().any(is_free)
        });
        let events = model.made_from(&states);
        Reached { states, events }
    }

    /// Whether a machine may come into a state.
    fn comes(&self, machine: &MachineName, state: &Label, reached: &[Reached]) -> bool {
        match self.find(machine) {
            Found::NoMachine | Found::Unclear => true,
            Found::In(models) => models.iter().any(|(index, model)| {
                let state = model.state(state.as_str());
                // One that does not exist is told as such.
                state.is_none_or(|state| {
                    reached.get(*index).and_then(|reached| reached.states.get(state)) == Some(&true)
                })
            }),
        }
    }

    /// Whether a machine may make a transition.
    fn happens(&self, machine: &MachineName, event: &Label, reached: &[Reached]) -> bool {
        match self.find(machine) {
            Found::NoMachine | Found::Unclear => true,
            Found::In(models) => models.iter().any(|(index, model)| {
                let event = model.event(event.as_str());
                event.is_none_or(|event| {
                    reached.get(*index).and_then(|reached| reached.events.get(event)) == Some(&true)
                })
            }),
        }
    }

    fn unknown_machine(&self, document: &Document, pointer: &str, name: &MachineName, findings: &mut Findings) {
        if !self.is_whole {
            return;
        }
        findings.add(UNKNOWN_MACHINE, || {
            let message = format!("machine \"{name}\" is not among those that are checked");
            let known = self.by_name.keys().chain(self.built_in.keys()).copied();
            let help = meant(name.as_str(), known).unwrap_or_else(|| "check it together with this one".to_owned());
            Problem::new(document.place(&format!("{pointer}/machine_name")), message).help(help)
        });
    }
}

fn subscriptions(node: &Node<'_>, model: &Model<'_>, document: &Document, findings: &mut Findings) {
    for (index, transition) in model.definition.transitions.iter().enumerate() {
        for (position, wanted) in transition.subscribe.iter().enumerate() {
            let pointer = format!("/transitions/{index}/subscribe/{position}");
            let models: Vec<&Model<'_>> = match node.find(&wanted.machine) {
                Found::NoMachine => {
                    node.unknown_machine(document, &pointer, &wanted.machine, findings);
                    continue;
                }
                Found::Unclear => node.built_in(&wanted.machine).into_iter().collect(),
                Found::In(models) => models.into_iter().map(|(_, model)| model).collect(),
            };
            let place = || document.place(&format!("{pointer}/event"));
            let event = wanted.event.as_str();
            let known: Vec<(&Model<'_>, usize)> =
                models.iter().filter_map(|model| Some((*model, model.event(event)?))).collect();
            let happens = |(model, event): &(&Model<'_>, usize)| model.makeable.get(*event) == Some(&true);
            if !models.is_empty() && known.is_empty() {
                findings.add(UNKNOWN_FOREIGN_TRANSITION, || {
                    let message = format!("machine \"{}\" has no transition \"{event}\"", wanted.machine);
                    let names = models.iter().flat_map(|model| &model.events).map(|event| event.as_str());
                    with_help(Problem::new(place(), message), meant(event, names))
                });
            } else if !known.is_empty() && !known.iter().any(happens) {
                findings.add(ENDLESS_WAIT, || {
                    let message = format!(
                        "machine \"{}\" never makes the transition \"{event}\": it reaches no state that it leaves",
                        wanted.machine
                    );
                    Problem::new(place(), message).help("subscribe a transition that it can make")
                });
            }
        }
    }
}

fn requirements(node: &Node<'_>, own: usize, reached: Option<&[Reached]>, findings: &mut Findings) {
    let Some(Some((model, document))) = node.models.get(own) else { return };
    for (index, watcher) in model.definition.watchers.iter().enumerate() {
        for (position, required) in watcher.foreign_state_required.iter().enumerate() {
            let pointer = format!("/watchers/{index}/foreign_state_required/{position}");
            let place = || document.place(&format!("{pointer}/state"));
            let (machine, name) = (&required.machine, required.state.as_str());
            let models: Vec<(Option<usize>, &Model<'_>)> = match node.find(machine) {
                Found::NoMachine => {
                    node.unknown_machine(document, &pointer, machine, findings);
                    continue;
                }
                Found::Unclear => node.built_in(machine).into_iter().map(|model| (None, model)).collect(),
                Found::In(models) => models.into_iter().map(|(index, model)| (Some(index), model)).collect(),
            };
            let known: Vec<(Option<usize>, &Model<'_>, usize)> =
                models.iter().filter_map(|(index, model)| Some((*index, *model, model.state(name)?))).collect();
            if models.is_empty() {
                continue;
            }
            if known.is_empty() {
                findings.add(UNKNOWN_FOREIGN_STATE, || {
                    let message = format!("machine \"{machine}\" has no state \"{name}\"");
                    let names = models.iter().flat_map(|(_, model)| &model.states).map(|state| state.as_str());
                    with_help(Problem::new(place(), message), meant(name, names))
                });
                continue;
            }
            let is_itself = *machine == model.definition.name;
            let reason = if is_itself && !watcher.is_active_in(&required.state) {
                Some((
                    "the watcher does not work in that state",
                    "the state of its own machine belongs into state_match",
                ))
            } else if !known.iter().any(|(_, model, state)| model.is_reachable(*state)) {
                Some(("it never reaches that state", "require a state that it can reach"))
            } else if reached.is_some_and(|reached| !node.comes(machine, &required.state, reached)) {
                let help = "break the circle: let one of the machines go ahead without the other";
                Some(("it gets there only after something that waits itself", help))
            } else {
                None
            };
            if let Some((reason, help)) = reason {
                findings.add(ENDLESS_WAIT, || {
                    let message = format!(
                        "watcher \"{}\" waits for ever for machine \"{machine}\" to be in \"{name}\": {reason}",
                        watcher.name
                    );
                    Problem::new(place(), message).help(help)
                });
            }
        }
    }
}
