//! Scenario tests for machines: `machine.test.yaml` beside a `machine.yaml` says what is given, what happens when, and
//! what must then be so. A machine runs for it as the daemon would run it, but on a clock that moves only when nothing
//! else can, so that days pass in milliseconds, and with answers in the place of commands.
//!
//! In: a machine's directory, and the file's text. Out: for each scenario that it holds, or where it does not.

mod answers;
mod file;
mod grants;
mod play;

use std::path::{Path, PathBuf};

use crate::machine::document::{Document, MAXIMUM_BYTES};
use crate::machine::problem::{Problem, Problems};

pub use file::{Answer, Expectation, File, Neighbour, Scenario, Step};
pub use play::Player;

/// The file beside machine.yaml.
pub const FILE_NAME: &str = "machine.test.yaml";

/// Scenarios that were read, with the text for messages about them.
pub struct Scenarios {
    pub path: PathBuf,
    pub text: String,
    pub document: Document,
    pub scenarios: Vec<Scenario>,
}

/// Reads the scenarios of a machine.
///
/// # Errors
/// When the file can't be read, or its first fault, with its place.
pub fn load(directory: &Path) -> Result<Scenarios, Problems> {
    let path = directory.join(FILE_NAME);
    let text = crate::fs::read_text(&path, MAXIMUM_BYTES).map_err(|error| {
        let message = format!("{error}: {}", error.source);
        Problems::new(&path, "", vec![Problem::new(None, message)])
    })?;
    let parsed = Document::parse(&text).and_then(|document| {
        let file: File = document.typed()?;
        Ok((document, file.scenarios))
    });
    match parsed {
        Ok((document, scenarios)) => Ok(Scenarios { path, text, document, scenarios }),
        Err(problem) => Err(Problems::new(&path, &text, vec![problem])),
    }
}
