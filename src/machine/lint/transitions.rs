//! Rules about who makes which transition where.

use crate::machine::document::Document;
use crate::machine::problem::Problem;
use crate::machine::rule::{IDLE_WATCHER, OUTCOME_NEVER_FIRED, TRANSITION_NEVER_VALID, UNFIRED_TRANSITION};
use crate::machine::watcher::Fires;
use crate::names::Label;

use super::Findings;
use super::model::{Acting, Model};

pub fn check(model: &Model<'_>, document: &Document, findings: &mut Findings) {
    unfired(model, document, findings);
    for index in 0..model.watchers.len() {
        watcher(model, index, findings);
    }
}

fn unfired(model: &Model<'_>, document: &Document, findings: &mut Findings) {
    let count = model.definition.transitions.len();
    // What leaves no reachable state is told as an unreachable state.
    let (mut reachable, mut fired) = (vec![false; count], vec![false; count]);
    for one in model.moves.iter().filter(|one| model.is_reachable(one.from)) {
        if let (Some(reachable), Some(fired)) = (reachable.get_mut(one.transition), fired.get_mut(one.transition)) {
            *reachable = true;
            *fired |= model.is_fired(one.from, one.event);
        }
    }
    for (index, transition) in model.definition.transitions.iter().enumerate() {
        let is_for_others = !transition.subscribe.is_empty() || !transition.description.trim().is_empty();
        if reachable.get(index) == Some(&true) && fired.get(index) == Some(&false) && !is_for_others {
            findings.add(UNFIRED_TRANSITION, || {
                let place = document.place(&format!("/transitions/{index}/name"));
                Problem::new(place, format!("nothing makes the transition \"{}\"", transition.name))
                    .help("if a person makes it, say so in its description; otherwise name it in a watcher")
            });
        }
    }
}

fn watcher(model: &Model<'_>, index: usize, findings: &mut Findings) {
    let (Some(acting), Some(watcher)) = (model.watchers.get(index), model.definition.watchers.get(index)) else {
        return;
    };
    if !acting.everywhere && !acting.states.iter().any(|state| model.is_reachable(*state)) {
        findings.add(IDLE_WATCHER, || {
            let message = format!("watcher \"{}\" works only in states that are never reached", watcher.name);
            Problem::new(watcher.places.of("state_match"), message)
                .help("correct state_match, or add a transition that leads to one of these states")
        });
        return;
    }
    let fires = model.built.get(index).and_then(Option::as_ref).map_or(Fires::Both, |(kind, _)| kind.fires);
    let named = [
        ("success_transition", &watcher.success_transition, fires == Fires::Both),
        ("fail_transition", &watcher.fail_transition, matches!(fires, Fires::Both | Fires::Fail)),
    ];
    for (key, event, is_fired) in named {
        let Some(event) = event else { continue };
        if !is_fired {
            findings.add(OUTCOME_NEVER_FIRED, || {
                let message = format!("{} watchers never fire their {key}", watcher.kind);
                Problem::new(watcher.places.of(key), message).help(match fires {
                    Fires::Named(names) => format!("they fire the transitions named {}", names.join(", ")),
                    Fires::Fail => "they fire only fail_transition".to_owned(),
                    _ => "they fire nothing".to_owned(),
                })
            });
        } else if !is_ever_valid(model, acting, event) {
            findings.add(TRANSITION_NEVER_VALID, || {
                let states: Vec<&str> = watcher.state_match.iter().take(8).map(Label::as_str).collect();
                let message = format!(
                    "watcher \"{}\" asks for \"{event}\", which leaves none of its states: {}",
                    watcher.name,
                    states.join(", ")
                );
                let from = model.definition.transitions.iter().filter(|transition| transition.name == *event);
                let from: Vec<&str> = from.flat_map(|transition| &transition.from).take(8).map(Label::as_str).collect();
                Problem::new(watcher.places.of(key), message).help(format!("\"{event}\" leaves: {}", from.join(", ")))
            });
        }
    }
}

fn is_ever_valid(model: &Model<'_>, acting: &Acting, event: &Label) -> bool {
    let Some(event) = model.event(event.as_str()) else { return true };
    // Every transition leaves some state, and a watcher of every state works there.
    acting.everywhere || acting.states.iter().any(|state| model.is_valid(*state, event))
}
