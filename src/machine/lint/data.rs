//! Rules about the machine's data: items that are read but not written, and items with two writers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use crate::machine::definition::WatcherDefinition;
use crate::machine::problem::{Place, Problem};
use crate::machine::rule::{DATA_WRITTEN_TWICE, UNQUOTED_VALUE, UNWRITTEN_DATA};
use crate::machine::template::{Hazard, HazardPlace};
use crate::machine::watcher::Writes;

use super::model::Model;
use super::{Findings, meant, with_help};

/// The customary name of an item that is read on purpose as one that never exists.
const NO_ITEM: &str = "none";
/// The properties of a watcher are searched to this depth for the place of a name.
const MAXIMUM_DEPTH: usize = 16;

pub fn check(model: &Model<'_>, findings: &mut Findings) {
    let mut written = BTreeMap::<String, Vec<usize>>::new();
    let mut anything = false;
    for (index, built) in model.built.iter().enumerate() {
        match built.as_ref().map(|(_, watcher)| watcher.writes()) {
            Some(Writes::Items(items)) => {
                for item in BTreeSet::from_iter(items) {
                    written.entry(item).or_default().push(index);
                }
            }
            Some(Writes::Anything) | None => anything = true,
        }
    }
    if !anything {
        unwritten(model, &written, findings);
    }
    written_twice(model, &written, findings);
    unquoted(model, findings);
}

fn unquoted(model: &Model<'_>, findings: &mut Findings) {
    for (definition, built) in model.definition.watchers.iter().zip(model.built) {
        let hazards = built.iter().flat_map(|(_, watcher)| watcher.hazards());
        for Hazard { source, place: hazard } in hazards {
            let name = &definition.name;
            let (what, help) = match hazard {
                HazardPlace::OutsideOfQuotes => (
                    "into its command outside of quotes, where it can add words".to_owned(),
                    "write '{{ … }}'".to_owned(),
                ),
                HazardPlace::Script { of } => (
                    format!("into a script of {of}, where it can add commands"),
                    "pass it as an argument, or write {{ Quote (…) }}".to_owned(),
                ),
                HazardPlace::NameOfVariable => (
                    "into the name of a variable of the environment".to_owned(),
                    "write the name, and `=`, first".to_owned(),
                ),
            };
            findings.add(UNQUOTED_VALUE, || {
                let message = format!("watcher \"{name}\" puts \"{source}\" {what}");
                Problem::new(place(definition, &source), message).help(help)
            });
        }
    }
}

fn unwritten(model: &Model<'_>, written: &BTreeMap<String, Vec<usize>>, findings: &mut Findings) {
    // A name with dots in it can be meant by the first part of a path.
    let is_written = |item: &str| {
        let prefix = format!("{item}.");
        item == NO_ITEM || written.contains_key(item) || written.keys().any(|name| name.starts_with(&prefix))
    };
    for (definition, built) in model.definition.watchers.iter().zip(model.built) {
        let Some((_, watcher)) = built else { continue };
        // By item: what stands in the text for it.
        let mut read: BTreeMap<String, String> =
            watcher.looks_up().into_iter().filter_map(|path| Some((item_of(&path)?, path))).collect();
        read.extend(watcher.reads().into_iter().map(|item| (item.clone(), item)));
        for (item, text) in read {
            if !is_written(&item) {
                findings.add(UNWRITTEN_DATA, || {
                    let message = format!("watcher \"{}\" reads \"{item}\", which no watcher writes", definition.name);
                    let help = meant(&item, written.keys().map(String::as_str));
                    with_help(Problem::new(place(definition, &text), message), help)
                });
            }
        }
    }
}

/// The data item that a GJSON path leads into; `None` when it is none, or not one name.
fn item_of(path: &str) -> Option<String> {
    let path = path.strip_prefix("data.")?;
    let mut item = String::new();
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        match character {
            '.' | '|' => break,
            '\\' => item.extend(characters.next()),
            '*' | '?' | '#' | '@' | '!' | '{' | '[' | '(' => return None,
            other => item.push(other),
        }
    }
    Some(item).filter(|item| !item.is_empty())
}

/// Where a text stands in the properties of a watcher.
fn place(definition: &WatcherDefinition, text: &str) -> Option<Place> {
    let pointer = find(&definition.properties.value, text, 0);
    pointer.and_then(|pointer| definition.properties.place(&pointer)).or_else(|| definition.places.of("properties"))
}

fn find(value: &Value, text: &str, depth: usize) -> Option<String> {
    let inside = |key: &str, value: &Value| Some(format!("/{key}{}", find(value, text, depth + 1)?));
    match value {
        _ if depth > MAXIMUM_DEPTH => None,
        Value::String(found) => (found == text || found.contains(text)).then(String::new),
        Value::Array(items) => items.iter().enumerate().find_map(|(index, item)| inside(&index.to_string(), item)),
        Value::Object(entries) => entries.iter().find_map(|(key, item)| inside(key, item)),
        _ => None,
    }
}

fn written_twice(model: &Model<'_>, written: &BTreeMap<String, Vec<usize>>, findings: &mut Findings) {
    for (item, writers) in written.iter().filter(|(_, writers)| writers.len() > 1) {
        let Some((first, second)) = common(model, writers) else { continue };
        let name = |index: usize| model.definition.watchers.get(index).map(|watcher| watcher.name.as_str());
        let (Some(first), Some(watcher)) = (name(first), model.definition.watchers.get(second)) else { continue };
        findings.add(DATA_WRITTEN_TWICE, || {
            let message =
                format!("watchers \"{first}\" and \"{}\" both write \"{item}\" in the same state", watcher.name);
            Problem::new(watcher.places.of("name"), message)
                .help("let them write different items, or work in different states")
        });
    }
}

/// The first two of these watchers that work in the same reachable state.
fn common(model: &Model<'_>, writers: &[usize]) -> Option<(usize, usize)> {
    let mut everywhere = None;
    let mut anywhere = None;
    let mut by_state = HashMap::new();
    for index in writers {
        let acting = model.watchers.get(*index)?;
        let works = acting.everywhere || acting.states.iter().any(|state| model.is_reachable(*state));
        let other = if acting.everywhere { anywhere } else { everywhere };
        if let (true, Some(other)) = (works, other) {
            return Some((other, *index));
        }
        for state in acting.states.iter().filter(|state| model.is_reachable(**state)) {
            if let Some(other) = by_state.insert(*state, *index) {
                return Some((other, *index));
            }
        }
        if works {
            anywhere = anywhere.or(Some(*index));
        }
        if acting.everywhere {
            everywhere = Some(*index);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_into_one_item_or_into_none_that_is_known() {
        assert_eq!(item_of("data.item").as_deref(), Some("item"));
        assert_eq!(item_of("data.item.name.#").as_deref(), Some("item"));
        assert_eq!(item_of("data.a\\.b.c").as_deref(), Some("a.b"));
        for path in ["facts.item", "data", "data.", "data.*", "data.@this", "data.i?em"] {
            assert_eq!(item_of(path), None, "{path}");
        }
    }
}
