//! Faults found in a file, each with its place, and their rendering for people: the source line, underlined.

use std::fmt;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

use crate::{secret, shown};

use super::rule::{INVALID_DEFINITION, Rule, Severity, Stage};

/// Source lines are cut to this many columns around the fault.
const WIDTH: usize = 100;

/// A place in a text file, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

/// One fault: what is wrong, where, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub place: Option<Place>,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The rule that is broken; it also says how grave that is.
    #[serde(skip)]
    pub rule: &'static Rule,
}

impl Problem {
    /// A fault without help text, of the definition.
    pub fn new(place: Option<Place>, message: impl Into<String>) -> Self {
        Self { place, message: message.into(), help: None, rule: INVALID_DEFINITION }
    }

    /// Says which rule is broken.
    #[must_use]
    pub fn rule(mut self, rule: &'static Rule) -> Self {
        self.rule = rule;
        self
    }

    /// How grave it is.
    pub fn severity(&self) -> Severity {
        self.rule.severity
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// All faults of one file, never none; `Display` gives one line per fault, [`Problems::render`] the long form.
#[derive(Debug, Clone)]
pub struct Problems {
    pub path: PathBuf,
    pub problems: Vec<Problem>,
    /// As it may be seen.
    source: String,
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(formatter)?;
            }
            write!(formatter, "{}", self.path.display())?;
            if let Some(place) = problem.place {
                write!(formatter, ":{}:{}", place.line, place.column)?;
            }
            write!(formatter, ": {}", problem.message)?;
            if let Some(help) = &problem.help {
                write!(formatter, " ({help})")?;
            }
        }
        Ok(())
    }
}

impl Problems {
    /// Faults of the file at `path`, whose text is kept for the rendering; sorted by place.
    pub fn new(path: &Path, source: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.place);
        // With as many characters in each line as before, so that the places hold.
        Self { path: path.to_owned(), problems, source: secret::masked_source(&shown::columns(source)).into_owned() }
    }

    /// Every fault with its source line underlined, as compilers print it.
    pub fn render(&self, styled: Styled) -> String {
        let renderer = match styled {
            Styled::Yes => Renderer::styled(),
            Styled::No => Renderer::plain(),
        };
        let renderer = renderer.term_width(WIDTH);
        let path = shown::line(&self.path.display().to_string()).into_owned();
        let rendered = self.problems.iter().map(|problem| {
            let level = match problem.severity() {
                Severity::Error => Level::ERROR,
                Severity::Warning => Level::WARNING,
            };
            let mut title = level.primary_title(shown::line(&problem.message).into_owned());
            // What a node refuses explains itself; what the checker thinks of it can be looked up.
            if problem.rule.stage == Stage::Model {
                title = title.id(problem.rule.id);
            }
            let mut group = match problem.place.and_then(|place| self.span(place)) {
                Some(span) => title.element(
                    Snippet::source(self.source.as_str())
                        .path(path.as_str())
                        .annotation(AnnotationKind::Primary.span(span)),
                ),
                // "could not open FILE" says where already.
                None if problem.message.contains(&path) => Group::with_title(title),
                None => title.element(Level::NOTE.message(format!("in {path}"))),
            };
            if let Some(help) = &problem.help {
                group = group.element(Level::HELP.message(shown::line(help).into_owned()));
            }
            renderer.render(&[group])
        });
        rendered.collect::<Vec<_>>().join("\n\n")
    }

    /// The word that starts at a place, as byte range.
    fn span(&self, place: Place) -> Option<std::ops::Range<usize>> {
        let line_start: usize = self.source.split_inclusive('\n').take(place.line.checked_sub(1)?).map(str::len).sum();
        let line = self.source.get(line_start..)?.lines().next()?;
        let offset = line.char_indices().nth(place.column.checked_sub(1)?).map_or(line.len(), |(offset, _)| offset);
        let rest = line.get(offset..)?.trim_end();
        let ends = |character: char| character == ':' || character == ',' || character == ']' || character == ' ';
        let length = match rest.chars().next() {
            Some(quote @ ('"' | '\'')) => quoted_length(rest, quote),
            Some('{' | '[') => rest.len(),
            _ => rest.find(ends).unwrap_or(rest.len()),
        };
        let start = line_start + offset;
        Some(start..start + length.max(1).min(self.source.len().saturating_sub(start)))
    }
}

/// Bytes of a quoted text up to its closing quote, or up to the end of the line.
fn quoted_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (offset, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' if quote == '"' => escaped = true,
            _ if character == quote => return offset + character.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Whether to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Styled {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn underlines_the_word_at_the_place() {
        let source = "name: x\nintial_state: A\n";
        let problem = Problem::new(Some(Place { line: 2, column: 1 }), "unknown key \"intial_state\"")
            .help("did you mean \"initial_state\"?");
        let problems = Problems::new(Path::new("machine.yaml"), source, vec![problem]);
        let text = problems.render(Styled::No);
        assert!(text.contains("error: unknown key"), "{text}");
        assert!(text.contains("machine.yaml:2:1"), "{text}");
        assert!(text.contains("^^^^^^^^^^^^\n") || text.contains("^^^^^^^^^^^^"), "{text}");
        assert!(text.contains("help: did you mean"), "{text}");
        assert_eq!(
            problems.to_string(),
            "machine.yaml:2:1: unknown key \"intial_state\" (did you mean \"initial_state\"?)"
        );
    }

    #[test]
    fn underlines_a_quoted_text_up_to_its_closing_quote() {
        let source = r#"{"name": "a\"b", "source": 'c'}"#;
        let underlined = |column, length| {
            let problem = Problem::new(Some(Place { line: 1, column }), "bad");
            let text = Problems::new(Path::new("a"), source, vec![problem]).render(Styled::No);
            let carets = text.chars().filter(|character| *character == '^').count();
            assert_eq!(carets, length, "{text}");
        };
        underlined(10, 6);
        underlined(28, 3);
    }

    #[test]
    fn a_fault_of_the_whole_file_names_the_file_once() {
        let render =
            |message| Problems::new(Path::new("x.yaml"), "", vec![Problem::new(None, message)]).render(Styled::No);
        assert_eq!(render("could not open x.yaml: gone"), "error: could not open x.yaml: gone");
        assert!(render("no transitions").contains("in x.yaml"));
    }

    #[test]
    fn a_place_outside_the_text_does_not_panic() {
        let place = Some(Place { line: 99, column: 99 });
        let problems = Problems::new(Path::new("a"), "x\n", vec![Problem::new(place, "bad")]);
        assert!(problems.render(Styled::No).contains("bad"));
    }
}
