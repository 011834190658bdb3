//! A machine's definition, judged as the host judges it: the file, and the properties of every watcher.

use std::path::Path;

use machines::machine::definition::{Definition, FILE_NAME};
use machines::machine::problem::Problems;
use machines::machine::watcher::build_all;
use machines::watchers::KINDS;

/// Reads `directory/machine.yaml`, or gives every fault in it.
pub fn load(directory: &Path) -> Result<Definition, Problems> {
    let definition = Definition::load(directory)?;
    match build_all(&definition, KINDS) {
        Ok(_) => Ok(definition),
        Err(problems) => {
            let path = directory.join(FILE_NAME);
            let text = machines::fs::read_text(&path, machines::machine::document::MAXIMUM_BYTES).unwrap_or_default();
            Err(Problems::new(&path, &text, problems))
        }
    }
}
