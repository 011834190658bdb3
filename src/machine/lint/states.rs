//! Rules about states: those that nothing leads to, those that nothing leaves, and circles without delay.

use std::collections::{BTreeMap, VecDeque};

use crate::machine::document::Document;
use crate::machine::problem::Problem;
use crate::machine::rule::{DEAD_END, SPINNING_CYCLE, UNREACHABLE_STATE};

use super::Findings;
use super::model::Model;

/// Of a circle, so many states are named.
const SHOWN_STATES: usize = 8;

pub fn check(model: &Model<'_>, document: &Document, findings: &mut Findings) {
    for state in 0..model.states.len() {
        let name = model.state_name(state);
        if !model.is_reachable(state) {
            findings.add(UNREACHABLE_STATE, || {
                let message = format!("state \"{name}\" can't be reached from \"{}\"", model.definition.initial_state);
                Problem::new(place(model, document, state), message)
                    .help("add a transition that leads to it, or remove what leaves it")
            });
        } else if model.leaving.get(state).is_some_and(Vec::is_empty) && !model.is_worked_in(state) {
            findings.add(DEAD_END, || {
                let message = format!("no transition leaves state \"{name}\", and no watcher works in it");
                Problem::new(place(model, document, state), message)
                    .help("add a transition that leaves it, or a watcher that works in it")
            });
        }
    }
    spinning(model, findings);
}

/// Where a state is named first: as one that is left, or else as a destination.
fn place(model: &Model<'_>, document: &Document, state: usize) -> Option<crate::machine::problem::Place> {
    let leaving = model.leaving.get(state).and_then(|moves| moves.first()).and_then(|index| model.moves.get(*index));
    match leaving {
        Some(one) => document.place(&format!("/transitions/{}/from/{}", one.transition, one.position)),
        None => {
            let one = model.moves.iter().find(|one| one.to == state)?;
            document.place(&format!("/transitions/{}/destination", one.transition))
        }
    }
}

/// A step that is made at once, and the watcher that makes it.
#[derive(Clone, Copy)]
struct Step {
    to: usize,
    event: usize,
    watcher: usize,
}

fn spinning(model: &Model<'_>, findings: &mut Findings) {
    // By state: what watchers that act on entering it, and that nobody has given an interval, may do at once.
    let mut at_once: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut everywhere: BTreeMap<usize, usize> = BTreeMap::new();
    for (index, (acting, built)) in model.watchers.iter().zip(model.built).enumerate() {
        let Some((_, watcher)) = built else { continue };
        let interval = model.definition.watchers.get(index).and_then(|watcher| watcher.interval);
        if interval.is_some() || !watcher.fires_on_entry() {
            continue;
        }
        for event in &acting.fires {
            if acting.everywhere {
                everywhere.entry(*event).or_insert(index);
            }
            for state in &acting.states {
                at_once.entry((*state, *event)).or_insert(index);
            }
        }
    }
    let mut steps: Vec<Vec<Step>> = vec![Vec::new(); model.states.len()];
    for one in &model.moves {
        let watcher = at_once.get(&(one.from, one.event)).or_else(|| everywhere.get(&one.event));
        if let (Some(watcher), true, Some(steps)) = (watcher, model.is_reachable(one.from), steps.get_mut(one.from)) {
            steps.push(Step { to: one.to, event: one.event, watcher: *watcher });
        }
    }
    for state in one_of_each_circle(&steps) {
        let Some(circle) = shortest_circle(&steps, state) else { continue };
        findings.add(SPINNING_CYCLE, || {
            let mut names: Vec<&str> = std::iter::once(state)
                .chain(circle.iter().map(|step| step.to))
                .map(|at| model.state_name(at))
                .collect();
            if names.len() > SHOWN_STATES {
                names.truncate(SHOWN_STATES);
                names.push("…");
            }
            let first = circle.first().and_then(|step| Some((step, model.definition.watchers.get(step.watcher)?)));
            let place = first.and_then(|(step, watcher)| {
                let event = model.event_name(step.event);
                let is_success = watcher.success_transition.as_ref().is_some_and(|name| name.as_str() == event);
                watcher.places.of(if is_success { "success_transition" } else { "fail_transition" })
            });
            Problem::new(place, format!("the machine can go in a circle without delay: {}", names.join(" -> ")))
                .help("give a watcher on the way an interval, or put a state with a timer into the circle")
        });
    }
}

/// One state of each strongly connected component that has a circle in it, by Kosaraju's method without recursion.
fn one_of_each_circle(steps: &[Vec<Step>]) -> Vec<usize> {
    let mut backwards: Vec<Vec<usize>> = vec![Vec::new(); steps.len()];
    for (from, leaving) in steps.iter().enumerate() {
        for step in leaving {
            if let Some(backwards) = backwards.get_mut(step.to) {
                backwards.push(from);
            }
        }
    }
    let forwards: Vec<Vec<usize>> = steps.iter().map(|leaving| leaving.iter().map(|step| step.to).collect()).collect();
    let mut order = Vec::new();
    let mut seen = vec![false; steps.len()];
    for start in 0..steps.len() {
        order.extend(finished(&forwards, start, &mut seen));
    }
    let mut found = Vec::new();
    let mut seen = vec![false; steps.len()];
    for start in order.into_iter().rev() {
        let component = finished(&backwards, start, &mut seen);
        let turns_on_itself = |state: usize| forwards.get(state).is_some_and(|next| next.contains(&state));
        let first = component.iter().copied().min();
        if let Some(first) = first.filter(|first| component.len() > 1 || turns_on_itself(*first)) {
            found.push(first);
        }
    }
    found.sort_unstable();
    found
}

/// The states that are found from a start and were not seen before, in the order in which a search leaves them.
fn finished(next: &[Vec<usize>], start: usize, seen: &mut [bool]) -> Vec<usize> {
    let mut order = Vec::new();
    let mut path = Vec::new();
    let mut enter = |state: usize, path: &mut Vec<(usize, usize)>| {
        if let Some(seen) = seen.get_mut(state).filter(|seen| !**seen) {
            *seen = true;
            path.push((state, 0));
        }
    };
    enter(start, &mut path);
    while let Some((state, position)) = path.pop() {
        match next.get(state).and_then(|next| next.get(position)) {
            Some(following) => {
                path.push((state, position + 1));
                enter(*following, &mut path);
            }
            None => order.push(state),
        }
    }
    order
}

/// The shortest way from a state back to it.
fn shortest_circle(steps: &[Vec<Step>], start: usize) -> Option<Vec<Step>> {
    let mut came_by: BTreeMap<usize, (usize, Step)> = BTreeMap::new();
    let mut next = VecDeque::from([start]);
    while let Some(state) = next.pop_front() {
        for step in steps.get(state).into_iter().flatten() {
            if came_by.contains_key(&step.to) {
                continue;
            }
            came_by.insert(step.to, (state, *step));
            if step.to != start {
                next.push_back(step.to);
                continue;
            }
            let mut circle = Vec::new();
            let mut at = start;
            while let Some((before, step)) = came_by.get(&at) {
                circle.push(*step);
                at = *before;
                if at == start {
                    break;
                }
            }
            circle.reverse();
            return Some(circle);
        }
    }
    None
}
