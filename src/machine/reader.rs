//! Reads typed values out of a document and collects every fault on the way, so that a person sees all of them at
//! once and not one per run.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use serde_json::Value;

use crate::names::Label;
use crate::suggest::nearest;

use super::document::Document;
use super::problem::Problem;
use super::rule::{INVALID_DEFINITION, Rule, UNDEFINED_STATE, UNDEFINED_TRANSITION, UNKNOWN_KEY};

/// Of the faults of one file, so many are noted; a person mends no more at a time.
pub const MAXIMUM_PROBLEMS: usize = 256;
/// For so many faults the nearest known name is looked for, among so many names.
const MAXIMUM_SUGGESTIONS: usize = 32;
const MAXIMUM_CANDIDATES: usize = 1_024;

/// A document being read, and what was found wrong so far.
pub struct Reader<'a> {
    document: &'a Document,
    pub problems: Vec<Problem>,
}

/// What a name that is used must be defined as.
#[derive(Clone, Copy)]
pub enum Name {
    State,
    Transition,
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl<'a> Reader<'a> {
    /// Starts to read a document.
    pub fn new(document: &'a Document) -> Self {
        Self { document, problems: Vec::new() }
    }

    /// The document that is read.
    pub fn document(&self) -> &'a Document {
        self.document
    }

    fn value(&self, pointer: &str) -> Option<&'a Value> {
        self.document.value.pointer(pointer).filter(|value| !value.is_null())
    }

    /// Notes a fault at a value.
    pub fn problem(&mut self, pointer: &str, message: String) {
        self.problem_with_help(pointer, message, None);
    }

    /// Notes a fault at a value, with what to do about it.
    pub fn problem_with_help(&mut self, pointer: &str, message: String, help: Option<String>) {
        self.note(pointer, message, help, INVALID_DEFINITION);
    }

    fn note(&mut self, pointer: &str, message: String, help: Option<String>, rule: &'static Rule) {
        if self.is_full() {
            return;
        }
        let place = self.document.place(pointer);
        self.problems.push(Problem { place, message, help, rule });
        if self.is_full() {
            let message = format!("there are more faults; these are the first {MAXIMUM_PROBLEMS}");
            self.problems.push(Problem::new(None, message));
        }
    }

    fn is_full(&self) -> bool {
        self.problems.len() >= MAXIMUM_PROBLEMS
    }

    fn suggest<'b>(&self, name: &str, known: impl IntoIterator<Item = &'b str>) -> Option<&'b str> {
        let wanted = self.problems.len() < MAXIMUM_SUGGESTIONS;
        if wanted { nearest(name, known.into_iter().take(MAXIMUM_CANDIDATES)) } else { None }
    }

    /// Notes a name that is used but not defined, with the nearest one that is.
    pub fn undefined(&mut self, pointer: &str, what: Name, name: &str, known: &BTreeSet<&str>) {
        let help = self.suggest(name, known.iter().copied()).map(|meant| format!("did you mean {meant:?}?"));
        let (what, rule) = match what {
            Name::State => ("state", UNDEFINED_STATE),
            Name::Transition => ("transition", UNDEFINED_TRANSITION),
        };
        self.note(pointer, format!("{what} {name:?} is not defined"), help, rule);
    }

    /// Checks that the value is an object that has no other keys than these.
    pub fn keys(&mut self, pointer: &str, known: &[&str]) {
        match self.document.value.pointer(pointer) {
            Some(Value::Object(object)) => {
                for key in object.keys().filter(|key| !known.contains(&key.as_str())) {
                    if self.is_full() {
                        return;
                    }
                    let help = match self.suggest(key, known.iter().copied()) {
                        Some(meant) => format!("did you mean {meant:?}?"),
                        None => format!("known are: {}", known.join(", ")),
                    };
                    // The key's own place, not its value's.
                    let pointer = format!("{pointer}/#{key}");
                    self.note(&pointer, format!("unknown key {key:?}"), Some(help), UNKNOWN_KEY);
                }
            }
            other => {
                let what = if pointer.is_empty() { "the document " } else { "" };
                let found = type_name(other.unwrap_or(&Value::Null));
                self.problem(pointer, format!("{what}must be an object, not {found}"));
            }
        }
    }

    /// Whether there is a value that is not a list where one belongs; already noted by [`Reader::count`].
    pub fn is_wrong_type(&self, pointer: &str) -> bool {
        self.value(pointer).is_some_and(|value| !value.is_array())
    }

    /// The length of a list; a missing one has none.
    pub fn count(&mut self, pointer: &str) -> usize {
        match self.value(pointer) {
            None => 0,
            Some(Value::Array(items)) => items.len(),
            Some(other) => {
                let message = format!("{}: must be a list, not {}", last(pointer), type_name(other));
                self.problem(pointer, message);
                0
            }
        }
    }

    /// A text; other scalars are refused so that `yes`, `1.0` and the like are not reinterpreted.
    pub fn text(&mut self, pointer: &str) -> Option<&'a str> {
        match self.value(pointer)? {
            Value::String(text) => Some(text),
            other => {
                let message = format!("{}: must be a text, not {}", last(pointer), type_name(other));
                self.problem(pointer, message);
                None
            }
        }
    }

    /// A text that `parse` accepts, if there is one.
    pub fn optional<T, E: Display>(&mut self, pointer: &str, parse: impl Fn(&str) -> Result<T, E>) -> Option<T> {
        let text = self.text(pointer)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(pointer, format!("{}: {error}", last(pointer)));
                None
            }
        }
    }

    /// A text that `parse` accepts and that must be there.
    pub fn required<T, E: Display>(
        &mut self,
        parent: &str,
        key: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let pointer = format!("{parent}/{key}");
        let is_object = self.document.value.pointer(parent).is_some_and(Value::is_object);
        if is_object && self.value(&pointer).is_none() {
            self.problem(parent, format!("{key:?} is missing"));
            return None;
        }
        self.optional(&pointer, parse)
    }

    /// A list of labels; a missing one is empty.
    pub fn labels(&mut self, pointer: &str) -> Vec<Label> {
        (0..self.count(pointer).min(super::definition::MAXIMUM_ITEMS))
            .filter_map(|index| self.optional(&format!("{pointer}/{index}"), Label::new))
            .collect()
    }

    /// A whole number of seconds.
    pub fn seconds(&mut self, pointer: &str) -> Option<Duration> {
        let value = self.value(pointer)?;
        match value.as_u64().map(Duration::from_secs).filter(|duration| *duration <= crate::duration::MAXIMUM) {
            Some(duration) => Some(duration),
            None => {
                self.problem(pointer, format!("{}: must be a whole number of seconds", last(pointer)));
                None
            }
        }
    }

    /// The properties of a watcher, an object; missing ones are empty.
    pub fn properties(&mut self, pointer: &str) -> Document {
        match self.value(pointer) {
            None => self.document.part(pointer).or_empty_object(),
            Some(Value::Object(_)) => self.document.part(pointer),
            Some(other) => {
                let message = format!("{}: must be an object, not {}", last(pointer), type_name(other));
                self.problem(pointer, message);
                Document::default()
            }
        }
    }
}

fn last(pointer: &str) -> &str {
    let part = pointer.rsplit('/').next().unwrap_or(pointer);
    if part.bytes().all(|byte| byte.is_ascii_digit()) {
        let parent = pointer.strip_suffix(part).unwrap_or_default().trim_end_matches('/');
        return parent.rsplit('/').next().unwrap_or(parent);
    }
    part
}
