//! The checker: everything that is wrong with a machine, found before it runs. In: the text of machine.yaml and the kinds
//! of watchers. Out: problems with their rules and places, those of the definition (a node refuses it) and those of the
//! model (a node runs it, but it can't do what it says). Pure, and its work is bounded by the size of the text.

mod between;
mod data;
mod model;
mod states;
mod transitions;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::Sha256Digest;

use super::definition::{Definition, FILE_NAME};
use super::document::{Document, MAXIMUM_BYTES};
use super::problem::{Problem, Problems};
use super::rule::{INVALID_PROPERTY, Rule, Severity, UNREADABLE_FILE};
use super::watcher::{Kind, OfKind, build_each};

pub(super) use model::Model;

/// Of one rule and one machine, so many breaches are told.
const MAXIMUM_OF_A_RULE: usize = 50;
/// So many faults of properties are told.
const MAXIMUM_OF_PROPERTIES: usize = 256;
/// A name that was meant is looked for among so many.
const MAXIMUM_CANDIDATES: usize = 1_024;

/// A machine that was looked at.
pub struct Examined {
    pub path: PathBuf,
    pub problems: Vec<Problem>,
    source: String,
    document: Document,
    definition: Option<Definition>,
    /// In the definition's order; `None` where the watcher can't be made.
    watchers: Vec<Option<OfKind>>,
    /// The definition was read without a fault, so that its model can be judged.
    is_read: bool,
}

impl Examined {
    /// Looks at the machine in a directory.
    pub fn directory(directory: &Path, kinds: &[Kind]) -> Self {
        let path = directory.join(FILE_NAME);
        match crate::fs::read_text(&path, MAXIMUM_BYTES) {
            Ok(text) => Self::text(&path, text, kinds),
            Err(error) => {
                let problem = Problem::new(None, format!("{error}: {}", error.source)).rule(UNREADABLE_FILE);
                Self::refused(&path, String::new(), problem)
            }
        }
    }

    /// Looks at a definition; `path` is for messages.
    pub fn text(path: &Path, text: String, kinds: &[Kind]) -> Self {
        let document = match Document::parse(&text) {
            Ok(document) => document,
            Err(problem) => return Self::refused(path, text, problem),
        };
        let (definition, mut problems) = Definition::read(&document, Sha256Digest::of(text.as_bytes()));
        let is_read = problems.is_empty();
        let mut watchers = Vec::new();
        if let Some(definition) = &definition {
            let (built, faults) = build_each(definition, kinds);
            add_bounded(&mut problems, faults);
            watchers = built;
            if is_read {
                let model = Model::new(definition, &watchers);
                let mut findings = Findings::default();
                states::check(&model, &document, &mut findings);
                transitions::check(&model, &document, &mut findings);
                data::check(&model, &mut findings);
                problems.extend(findings.into_problems());
            }
        }
        Self { path: path.to_owned(), problems, source: text, document, definition, watchers, is_read }
    }

    fn refused(path: &Path, source: String, problem: Problem) -> Self {
        Self {
            path: path.to_owned(),
            problems: vec![problem],
            source,
            document: Document::default(),
            definition: None,
            watchers: Vec::new(),
            is_read: false,
        }
    }

    /// The definition, when a node would run it.
    pub fn definition(&self) -> Option<&Definition> {
        let refused = self.problems.iter().any(|problem| problem.rule.stage == super::rule::Stage::Definition);
        self.definition.as_ref().filter(|_| !refused)
    }

    /// The definition's model and text, when it can be judged together with others.
    pub(super) fn model(&self) -> Option<(Model<'_>, &Document)> {
        let definition = self.definition.as_ref().filter(|_| self.is_read)?;
        Some((Model::new(definition, &self.watchers), &self.document))
    }

    /// How many problems are this grave.
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity() == severity).count()
    }

    /// The problems with the text, for people.
    pub fn to_problems(&self) -> Problems {
        Problems::new(&self.path, &self.source, self.problems.clone())
    }
}

/// Looks at machines of one node together, and adds what is wrong between them. The built-in machines are known besides.
pub fn together(machines: &mut [Examined], built_in: &[Arc<Definition>]) {
    for (machine, problems) in between::check(machines, built_in) {
        if let Some(machine) = machines.get_mut(machine) {
            machine.problems.extend(problems);
        }
    }
    for machine in machines {
        machine.problems.sort_by_key(|problem| problem.place);
    }
}

/// A list in a property may have a fault in each of many entries.
fn add_bounded(problems: &mut Vec<Problem>, more: Vec<Problem>) {
    let hidden = more.len().saturating_sub(MAXIMUM_OF_PROPERTIES);
    problems.extend(more.into_iter().take(MAXIMUM_OF_PROPERTIES));
    if hidden > 0 {
        problems.push(Problem::new(None, format!("{hidden} more faults in properties")).rule(INVALID_PROPERTY));
    }
}

/// Problems as they are found, bounded for each rule.
#[derive(Default)]
struct Findings {
    problems: Vec<Problem>,
    counts: HashMap<&'static str, usize>,
}

impl Findings {
    fn add(&mut self, rule: &'static Rule, problem: impl FnOnce() -> Problem) {
        let count = self.counts.entry(rule.id).or_default();
        *count += 1;
        if *count <= MAXIMUM_OF_A_RULE {
            self.problems.push(problem().rule(rule));
        }
    }

    fn into_problems(mut self) -> Vec<Problem> {
        for rule in super::rule::RULES {
            let more = self.counts.get(rule.id).copied().unwrap_or_default().saturating_sub(MAXIMUM_OF_A_RULE);
            if more > 0 {
                self.problems.push(Problem::new(None, format!("{more} more of these")).rule(rule));
            }
        }
        self.problems
    }
}

/// `did you mean …?` for a name, if one of these is near.
fn meant<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let nearest = crate::suggest::nearest(name, known.into_iter().take(MAXIMUM_CANDIDATES))?;
    Some(format!("did you mean {nearest:?}?"))
}

fn with_help(problem: Problem, help: Option<String>) -> Problem {
    match help {
        Some(help) => problem.help(help),
        None => problem,
    }
}
