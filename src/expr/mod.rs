//! Match expressions: parse with limits, evaluate with a trace of what each function call returned.
//!
//! The language is the reference's, expr (<https://expr-lang.org>), without what makes its cost unbounded: closures,
//! ranges, `let`, pipes, slices and methods. Operators: `&& || ! and or not == != < <= > >= in matches contains
//! startsWith endsWith + - * / % ** ?? ?:`; literals: numbers, strings in `'`, `"` and backticks, arrays, maps.
//! Functions and variables: those of the [`Scope`]. Whatever is not understood whole is an error with its place.

mod error;
mod evaluate;
mod functions;
mod lexer;
pub mod limits;
mod parser;
mod pattern;
mod tree;
mod value;
mod watcher;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::node::{Facts, Node};

pub use error::{ExpressionError, Problem};
pub use functions::{Function, Scope};
pub use watcher::WatcherExpression;

/// What an expression may look at.
pub struct World<'a> {
    pub node: &'a Node,
    pub facts: &'a Facts,
    /// The items of a machine's data by name; `match` has none.
    pub data: BTreeMap<&'a str, &'a serde_json::Value>,
    /// What all lookups together have looked at, in bytes: many expressions may share a world.
    worked: AtomicUsize,
}

impl<'a> World<'a> {
    pub fn new(node: &'a Node, facts: &'a Facts, data: BTreeMap<&'a str, &'a serde_json::Value>) -> Self {
        Self { node, facts, data, worked: AtomicUsize::new(0) }
    }

    /// Looks a fact up, within what all lookups may look at.
    fn fact(&self, path: &str) -> Result<Option<serde_json::Value>, Problem> {
        let cost = crate::node::cost(self.facts.text(), path);
        let before = self.worked.fetch_add(cost.min(limits::WORK_BYTES), Ordering::Relaxed);
        if before.saturating_add(cost) > limits::WORK_BYTES {
            return Err(Problem::TooMuchWork);
        }
        self.facts.query(path).map_err(Problem::Facts)
    }
}

/// A parsed and checked `match` expression; the empty one is true on every node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MatchExpression {
    source: Arc<str>,
    /// `None` when the text is blank.
    tree: Option<Arc<tree::Tree>>,
}

/// What an evaluation gave, and every function call on the way to it.
#[derive(Debug)]
pub struct Evaluation {
    /// Only a boolean counts as an answer; all else is an error, never "no match".
    pub result: Result<bool, ExpressionError>,
    pub calls: Vec<Call>,
}

/// One function call: `identity("^web")` returned `true`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub call: String,
    pub returned: String,
}

impl MatchExpression {
    /// Reads and checks an expression. Names, argument counts, literal arguments and literal regular expressions are
    /// checked here, so that only what depends on the node is left to [`Self::evaluate`].
    ///
    /// # Errors
    /// The first problem, with its place.
    pub fn parse(source: &str) -> Result<Self, ExpressionError> {
        Self::parse_in(source, &Scope::MATCH)
    }

    /// As [`Self::parse`], with the names of another scope.
    ///
    /// # Errors
    /// As there.
    pub fn parse_in(source: &str, scope: &Scope) -> Result<Self, ExpressionError> {
        match parser::parse(source, scope) {
            Ok(tree) => Ok(Self { source: source.into(), tree: tree.map(Arc::new) }),
            Err((offset, problem)) => Err(ExpressionError::new(source, offset, problem)),
        }
    }

    /// The text as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Evaluates on a node. It looks at the disk (`has_file` and the like), so that it may block for as long as the
    /// file system does.
    pub fn evaluate(&self, node: &Node) -> Evaluation {
        let Some(tree) = &self.tree else {
            return Evaluation { result: Ok(true), calls: Vec::new() };
        };
        let facts = node.facts();
        let world = World::new(node, &facts, BTreeMap::new());
        let mut evaluator = evaluate::Evaluator::new(&world);
        let result = match evaluator.value(tree) {
            Ok(value::Value::Boolean(answer)) => Ok(answer),
            Ok(other) => Err((0, Problem::NotBoolean { value: other.to_string() })),
            Err(refused) => Err(refused),
        };
        let result = result.map_err(|(offset, problem)| ExpressionError::new(&self.source, offset, problem));
        Evaluation { result, calls: evaluator.into_calls() }
    }
}
