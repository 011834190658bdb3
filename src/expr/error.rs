//! What can be wrong with an expression, with its place. In: a problem and a byte offset. Out: one line for a list of
//! problems, or three lines with a caret for a person at a terminal.

use std::sync::Arc;

use super::limits;
use crate::node::FactsError;

/// A refused or failed expression: the problem, and where in the text it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpressionError {
    expression: Arc<str>,
    offset: usize,
    problem: Problem,
}

/// One way in which an expression is refused or fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("the expression has {bytes} bytes, the limit is {}; shorten it", limits::LENGTH_BYTES)]
    TooLong { bytes: usize },
    #[error("the expression is nested deeper than {} levels; simplify it", limits::DEPTH)]
    TooDeep,
    #[error("the expression has more than {} names, literals and calls; shorten it", limits::TERMS)]
    TooManyTerms,
    #[error("the string is not closed; add the closing {quote}")]
    UnterminatedString { quote: char },
    #[error("the comment is not closed; add \"*/\"")]
    UnterminatedComment,
    #[error("{escape:?} is not an escape; write the backslash twice, or put the text between backticks")]
    BadEscape { escape: String },
    #[error("{character:?} is not part of the expression language")]
    BadCharacter { character: char },
    #[error("{text:?} is not a number that can be used: {reason}")]
    BadNumber { text: String, reason: &'static str },
    #[error("expected {expected}, found {found}")]
    Unexpected { expected: &'static str, found: String },
    #[error("{construct} is not available here: {reason}")]
    Unavailable { construct: String, reason: &'static str },
    #[error("?? and {operator} can't be mixed; put parentheses around one of them")]
    MixedCoalesce { operator: &'static str },
    #[error("comparisons can't be chained; join two of them with &&")]
    ChainedComparison,
    #[error("unknown function {name:?}; {help}")]
    UnknownFunction { name: String, help: String },
    #[error("unknown name {name:?}; {help}")]
    UnknownName { name: String, help: String },
    #[error("{function} takes {expected}, but got {found}")]
    Arguments { function: &'static str, expected: &'static str, found: String },
    #[error("the key {key:?} is in the map twice")]
    DuplicateMapKey { key: String },
    #[error("invalid regular expression {pattern:?}: {reason}")]
    Regex { pattern: String, reason: String },
    #[error("{path:?} is not usable as {what}: {reason}")]
    Path { what: &'static str, path: String, reason: &'static str },
    #[error("{operator} can't be applied to {operands}")]
    Operands { operator: &'static str, operands: String },
    #[error("the result of {operator} is out of range")]
    OutOfRange { operator: &'static str },
    #[error("it takes in more than {} bytes of facts and data; ask for a part of them", limits::VALUE_BYTES)]
    TooMuchData,
    #[error("its lookups look at more than {} bytes together; look up less, or a part of it", limits::WORK_BYTES)]
    TooMuchWork,
    #[error(transparent)]
    Facts(FactsError),
    #[error("could not look at {subject:?}: {reason}")]
    Probe { subject: String, reason: String },
    #[error("the expression gave {value}, not true or false")]
    NotBoolean { value: String },
}

impl ExpressionError {
    pub(super) fn new(expression: &str, offset: usize, problem: Problem) -> Self {
        // An expression over the limit is not carried around: only its beginning is ever shown.
        let end = expression.floor_char_boundary(limits::LENGTH_BYTES);
        Self { expression: expression.get(..end).unwrap_or_default().into(), offset: offset.min(end), problem }
    }

    /// What is wrong, for code that has to tell one problem from another.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The line of the problem in the expression, from 1.
    pub fn line(&self) -> usize {
        self.before().matches('\n').count() + 1
    }

    /// The column of the problem in its line, in characters from 1.
    pub fn column(&self) -> usize {
        self.before().rsplit('\n').next().unwrap_or_default().chars().count() + 1
    }

    /// The message, the line of the expression and a caret under the place.
    pub fn render(&self) -> String {
        let line = self.expression.split('\n').nth(self.line() - 1).unwrap_or_default();
        // A screenful around the place is enough.
        let skipped = self.column().saturating_sub(60);
        let shown: String = crate::shown::columns(line).chars().skip(skipped).take(90).collect();
        let indent = " ".repeat(self.column().saturating_sub(1 + skipped));
        format!("{}\n  {shown}\n  {indent}^", crate::shown::line(&self.problem.to_string()))
    }

    fn before(&self) -> &str {
        let end = self.expression.floor_char_boundary(self.offset);
        self.expression.get(..end).unwrap_or_default()
    }
}

impl std::fmt::Display for ExpressionError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.problem, self.line()) {
            // These concern the whole expression, so that a place would mislead.
            (Problem::TooLong { .. } | Problem::NotBoolean { .. }, _) => write!(formatter, "{}", self.problem),
            (problem, 1) => write!(formatter, "at column {}: {problem}", self.column()),
            (problem, line) => write!(formatter, "at line {line}, column {}: {problem}", self.column()),
        }
    }
}

impl std::error::Error for ExpressionError {}
