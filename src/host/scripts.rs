//! Scripts that a local machine hands to an interpreter: `sh lib/check.sh` runs what is in that file as surely as if it were
//! executable. In: a definition and its directory. Out: the files. What other words name is data, which may be anybody's.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::machine::definition::{Definition, WatcherDefinition};

/// Programs that run the file which is their first argument; with a version behind the name they are meant as well.
const INTERPRETERS: [&str; 12] =
    ["sh", "bash", "dash", "ash", "ksh", "zsh", "python", "perl", "ruby", "node", "lua", "php"];

/// Where a command stands in the properties of a watcher.
const COMMANDS: [&str; 2] = ["command", "plugin"];

/// The scripts in `directory` that run with the daemon's own rights.
pub(super) fn scripts(definition: &Definition, directory: &Path) -> Vec<PathBuf> {
    let named = definition.watchers.iter().flat_map(|watcher| of_watcher(watcher));
    let inside = named.filter(|word| Path::new(word).components().all(|part| !matches!(part, Component::RootDir)));
    inside.map(|word| directory.join(word)).filter(|path| path.is_file()).collect()
}

fn of_watcher(watcher: &WatcherDefinition) -> Vec<&str> {
    let properties = &watcher.properties.value;
    // What runs as somebody may be his.
    if properties.get("user").is_some() {
        return Vec::new();
    }
    COMMANDS.into_iter().filter_map(|key| properties.get(key).and_then(Value::as_str)).filter_map(script).collect()
}

/// The file that a command gives to an interpreter. A word of a template names none.
fn script(command: &str) -> Option<&str> {
    let words = command.split_whitespace().map(|word| word.trim_matches(['\'', '"']));
    let mut words = words.skip_while(|word| *word == "env" || word.ends_with("/env") || word.contains('='));
    let program = words.next()?;
    let name = program.rsplit('/').next().unwrap_or(program);
    let name = name.trim_end_matches(|character: char| character.is_ascii_digit() || character == '.');
    if !INTERPRETERS.contains(&name) {
        return None;
    }
    words.find(|word| !word.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_of_an_interpreter_is_told_from_data() {
        let cases = [
            ("sh lib/check.sh data", Some("lib/check.sh")),
            ("/usr/bin/env LANG=C python3.11 -u 'lib/check.py'", Some("lib/check.py")),
            ("/bin/bash -eu ./run", Some("./run")),
            ("cat data/state.json", None),
            ("./run.sh data/input", None),
            ("python3 --version", None),
            ("", None),
        ];
        for (command, expected) in cases {
            assert_eq!(script(command), expected, "{command}");
        }
    }
}
