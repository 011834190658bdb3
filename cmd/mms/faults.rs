//! Faults of a specification, shown where they are: from what the library found (line and column in bytes) to the
//! source line, underlined.

use std::path::Path;

use machines::machine::problem::{Place, Problem, Problems};
use machines::spec::{EntryProblem, SpecificationError};

use crate::shared::{self, Failure, note};

/// Shows what is wrong with the list of machines and gives the failure to end with; `name` is what the list is called
/// in messages, `conclusion` what follows from the faults.
pub fn show(name: &str, payload: &[u8], error: &SpecificationError, conclusion: &str) -> Failure {
    let text = String::from_utf8_lossy(payload);
    let (problems, total) = match error {
        SpecificationError::Payload { line, column, reason } => {
            (vec![Problem::new(Some(place(&text, *line, *column)), reason.as_str())], 1)
        }
        SpecificationError::Entries { problems, total } => {
            (problems.iter().map(|problem| convert(&text, problem)).collect(), *total)
        }
        other => return format!("{name}: {other}").into(),
    };
    let shown = problems.len();
    shared::problems(&Problems::new(Path::new(name), &text, problems));
    let count = if total == 1 { "1 fault".to_owned() } else { format!("{total} faults") };
    let cut = if total > shown { format!(" (the first {shown} are shown)") } else { String::new() };
    note("");
    note(format!("{name}: {count}{cut}; {conclusion}"));
    Failure::Negative
}

fn convert(text: &str, problem: &EntryProblem) -> Problem {
    let subject = match (&problem.name, problem.field) {
        (Some(name), Some(field)) => format!("{field} of {name:?}"),
        (Some(name), None) => format!("{name:?}"),
        (None, Some(field)) => format!("{field} of entry {}", problem.entry),
        (None, None) => format!("entry {}", problem.entry),
    };
    Problem::new(Some(place(text, problem.line, problem.column)), format!("{subject}: {}", problem.reason))
}

/// The parsers count columns in bytes, the rendering in characters.
fn place(text: &str, line: usize, column_bytes: usize) -> Place {
    let source = text.split('\n').nth(line.saturating_sub(1)).unwrap_or_default();
    let before = source.char_indices().take_while(|(offset, _)| offset + 1 < column_bytes).count();
    Place { line, column: before + 1 }
}
