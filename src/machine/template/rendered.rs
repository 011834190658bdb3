//! What a rendering gave: a text, and where in it values stand. In: what the library writes. Out: the text, or the words
//! of a command, in which a value that stands in quotes stays within them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::budget::Budget;
use super::words::{Splitter, WordsError};

/// What a template makes may be this long, in bytes.
pub const MAXIMUM_OUTPUT_BYTES: usize = 1024 * 1024;
/// Of a command that is no command, so much is shown.
const SHOWN_CHARACTERS: usize = 200;

/// A rendered text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    text: String,
    /// Where values stand, in order.
    values: Vec<Range<usize>>,
}

/// Why a rendered text is no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("is empty")]
    Empty,
    #[error("must not hold a NUL character")]
    Nul,
    #[error("{command:?}: {source}")]
    Words { command: String, source: WordsError },
}

impl Rendered {
    /// A text as it is written, in which nothing is a value.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), values: Vec::new() }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn into_text(self) -> String {
        self.text
    }

    /// The words of the text as a command.
    ///
    /// # Errors
    /// When there are none, or a quote is left open.
    pub fn words(&self) -> Result<Vec<String>, CommandError> {
        let words = self.split().map_err(|source| CommandError::Words {
            command: self.text.chars().take(SHOWN_CHARACTERS).collect(),
            source,
        })?;
        if words.is_empty() {
            return Err(CommandError::Empty);
        }
        if words.iter().any(|word| word.contains('\0')) {
            return Err(CommandError::Nul);
        }
        Ok(words)
    }

    fn split(&self) -> Result<Vec<String>, WordsError> {
        let mut splitter = Splitter::default();
        let mut begin = 0;
        let part = |range: Range<usize>| self.text.get(range).unwrap_or_default();
        for value in &self.values {
            splitter.literal(part(begin..value.start));
            splitter.value(part(value.clone()))?;
            begin = value.end;
        }
        splitter.literal(part(begin..self.text.len()));
        splitter.finish()
    }
}

/// Says that what is written next is a value.
#[derive(Debug, Clone, Default)]
pub struct Announcement(Arc<AtomicBool>);

impl Announcement {
    pub fn make(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Takes what the library writes.
pub struct Output {
    pub rendered: Rendered,
    pub announcement: Announcement,
    pub budget: Budget,
    pub full: bool,
}

impl Output {
    pub fn new(budget: Budget) -> Self {
        Self { rendered: Rendered::default(), announcement: Announcement::default(), budget, full: false }
    }
}

impl fmt::Write for Output {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let is_value = self.announcement.take();
        self.budget.step().map_err(|_| fmt::Error)?;
        let rendered = &mut self.rendered;
        let begin = rendered.text.len();
        if begin + more.len() > MAXIMUM_OUTPUT_BYTES {
            self.full = true;
            return Err(fmt::Error);
        }
        rendered.text.push_str(more);
        if is_value {
            // Also an empty one: it ends what a backslash before it began.
            rendered.values.push(begin..rendered.text.len());
        }
        Ok(())
    }
}
