//! What one rendering may hold and do. A template loops, calls itself and assigns variables, so that a few lines can ask
//! for gigabytes or for years; whatever it makes and whatever it looks at is counted here, and never given back.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gotmpl::{TemplateError as GoError, Value as GoValue};
use serde_json::Value;

/// The values that one rendering makes may have this many bytes together.
pub const MAXIMUM_HELD_BYTES: usize = 16 * 1024 * 1024;
/// So many bytes one rendering may look at; a step counts as some, too.
pub const MAXIMUM_WORK_BYTES: usize = 256 * 1024 * 1024;
/// What a step costs: a text, an action, a branch, a call of a template.
const STEP_BYTES: usize = 1024;
/// What a value takes in memory besides its text.
const VALUE_BYTES: usize = 64;

/// The counts of one rendering; the clones share them.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    held: AtomicUsize,
    worked: AtomicUsize,
}

/// What is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    #[error("its values have more than {MAXIMUM_HELD_BYTES} bytes together")]
    Memory,
    #[error("it takes too many steps, or looks at too much data too often")]
    Work,
}

impl From<Exhausted> for GoError {
    fn from(exhausted: Exhausted) -> Self {
        Self::Exec(exhausted.to_string())
    }
}

impl Budget {
    /// Something of so many bytes was made, or is about to be.
    pub fn hold(&self, bytes: usize) -> Result<(), Exhausted> {
        self.work(bytes)?;
        add(&self.counts.held, bytes, MAXIMUM_HELD_BYTES).ok_or(Exhausted::Memory)
    }

    /// So many bytes are looked at.
    pub fn work(&self, bytes: usize) -> Result<(), Exhausted> {
        add(&self.counts.worked, bytes, MAXIMUM_WORK_BYTES).ok_or(Exhausted::Work)
    }

    pub fn step(&self) -> Result<(), Exhausted> {
        self.work(STEP_BYTES)
    }

    /// What is used up, if something is.
    pub fn exhausted(&self) -> Option<Exhausted> {
        let over = |count: &AtomicUsize, limit| count.load(Ordering::Relaxed) > limit;
        if over(&self.counts.held, MAXIMUM_HELD_BYTES) {
            return Some(Exhausted::Memory);
        }
        over(&self.counts.worked, MAXIMUM_WORK_BYTES).then_some(Exhausted::Work)
    }

    /// A text that grows within the budget.
    pub fn text(&self) -> Growing<'_> {
        Growing { text: String::new(), budget: self }
    }

    /// A value as Go prints it.
    pub fn print(&self, value: &GoValue) -> Result<String, GoError> {
        let mut text = self.text();
        text.add(format_args!("{value}"))?;
        Ok(text.into_text())
    }
}

fn add(count: &AtomicUsize, bytes: usize, limit: usize) -> Option<()> {
    // Only one thread renders; the count is shared with the functions of the template, which must be `Sync`.
    let sum = count.load(Ordering::Relaxed).saturating_add(bytes);
    count.store(sum, Ordering::Relaxed);
    (sum <= limit).then_some(())
}

/// See [`Budget::text`].
pub struct Growing<'a> {
    text: String,
    budget: &'a Budget,
}

impl Growing<'_> {
    pub fn add(&mut self, arguments: fmt::Arguments<'_>) -> Result<(), Exhausted> {
        fmt::Write::write_fmt(self, arguments).map_err(|_| self.budget.exhausted().unwrap_or(Exhausted::Memory))
    }

    pub fn into_text(self) -> String {
        self.text
    }
}

impl fmt::Write for Growing<'_> {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        self.budget.hold(more.len()).map_err(|_| fmt::Error)?;
        self.text.push_str(more);
        Ok(())
    }
}

/// What a value takes in memory, about. The depth of documents bounds the recursion.
pub fn weight(value: &Value) -> usize {
    VALUE_BYTES
        + match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(weight).sum(),
            Value::Object(map) => map.iter().map(|(key, value)| key.len() + weight(value)).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}

/// What an operation that compares or copies a value looks at.
pub fn size(value: &GoValue) -> usize {
    VALUE_BYTES
        + match value {
            GoValue::String(text) => text.len(),
            GoValue::List(items) => items.len().saturating_mul(VALUE_BYTES),
            GoValue::Map(map) => map.len().saturating_mul(VALUE_BYTES),
            _ => 0,
        }
}
