//! A machine's definition, judged as the host judges it: the file, and the properties of every watcher.

use std::path::Path;

use machines::machine::definition::Definition;
use machines::machine::lint::Examined;
use machines::machine::problem::Problems;
use machines::machine::rule::Stage;
use machines::watchers::KINDS;

/// Reads `directory/machine.yaml`, or gives every fault in it for which a node would refuse it.
pub fn load(directory: &Path) -> Result<Definition, Problems> {
    let mut machine = Examined::directory(directory, KINDS);
    match machine.definition() {
        Some(definition) => Ok(definition.clone()),
        None => {
            machine.problems.retain(|problem| problem.rule.stage == Stage::Definition);
            Err(machine.to_problems())
        }
    }
}
