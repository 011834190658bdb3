//! Commands in the form of Nagios plugins, as metric and nagios watchers run them: a templated command line, and
//! performance data in what it prints.

use std::time::Duration;

use serde::Serialize;

use crate::machine::data::to_json;
use crate::machine::problem::Problem;
use crate::machine::property::NameOrNumber;
use crate::machine::template::Rendered;
use crate::machine::watcher::{BuildContext, Check};
use crate::process::{Command, Confinement, Remains};

/// More values in one output are left out.
pub const MAXIMUM_VALUES: usize = 1_000;
/// Longest name of a value, in bytes; longer ones are left out.
pub const MAXIMUM_NAME_BYTES: usize = 256;

/// One value of Nagios performance data, in the reference's form.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PerfData {
    pub unit: String,
    pub label: String,
    pub value: f64,
}

/// What is wrong with a command that has no template actions in it; what others become is seen when they are rendered.
pub fn fault(context: &BuildContext<'_>, property: &str, command: &str) -> Option<Problem> {
    if command.contains("{{") {
        return None;
    }
    Rendered::plain(command).words().err().map(|reason| context.fault(property, format!("{property} {reason}")))
}

/// Under whose rights a command runs.
pub fn confinement(user: Option<NameOrNumber>, group: Option<NameOrNumber>) -> Confinement {
    let (user, group) = (user.map(NameOrNumber::account), group.map(NameOrNumber::account));
    Confinement { user, group, ..Confinement::default() }
}

/// The command of a check, which ends with it.
pub fn command(check: &Check, words: Vec<String>, timeout: Duration, confinement: Confinement) -> Command {
    let context = &check.context;
    Command {
        words,
        directory: context.directory.clone(),
        data_directory: context.data_directory.clone(),
        environment: Vec::new(),
        watcher: context.watcher.to_string(),
        machine: context.definition.name.to_string(),
        data: to_json(&check.data).to_string(),
        facts: context.services.node.facts().text().to_owned(),
        timeout,
        remains: Remains::Kill,
        confinement,
    }
}

/// The beginning of an output, at most so many bytes, on character boundaries.
pub fn beginning(output: &[u8], bytes: usize) -> String {
    String::from_utf8_lossy(output.get(..bytes).unwrap_or(output)).trim().to_owned()
}

/// The performance data of an output: what follows a `|` in the first line, and what follows the first `|` below it
/// (<https://nagios-plugins.org/doc/guidelines.html#AEN200>). What is no number is passed over.
pub fn performance_data(output: &str) -> Vec<PerfData> {
    let (first, below) = output.split_once('\n').unwrap_or((output, ""));
    let parts = [first, below].map(|part| part.split_once('|').map_or("", |(_, data)| data));
    let mut found = Vec::new();
    for part in parts {
        let mut rest = part.trim_start();
        while !rest.is_empty() && found.len() < MAXIMUM_VALUES {
            let (label, after) = label(rest);
            let (value, remaining) = after.split_once(char::is_whitespace).unwrap_or((after, ""));
            rest = remaining.trim_start();
            found.extend(label.and_then(|label| read(&label, value)));
        }
    }
    found
}

/// The label in front of an `=`, quoted or not, and what follows; `None` for a word without one.
fn label(text: &str) -> (Option<String>, &str) {
    let Some(quoted) = text.strip_prefix('\'') else {
        let (word, _) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        return match word.split_once('=') {
            Some((label, _)) => (Some(label.to_owned()), text.split_once('=').map_or("", |(_, after)| after)),
            None => (None, text),
        };
    };
    let (mut label, mut rest) = (String::new(), quoted);
    while let Some((before, after)) = rest.split_once('\'') {
        label.push_str(before);
        // A quote in a label is written twice.
        match after.strip_prefix('\'') {
            Some(more) => {
                label.push('\'');
                rest = more;
            }
            None => {
                return match after.strip_prefix('=') {
                    Some(value) => (Some(label), value),
                    None => (None, after),
                };
            }
        }
    }
    (None, "")
}

fn read(label: &str, value: &str) -> Option<PerfData> {
    if label.is_empty() || label.len() > MAXIMUM_NAME_BYTES {
        return None;
    }
    // Thresholds follow the first `;`.
    let value = value.split(';').next().unwrap_or_default();
    let is_number = |character: char| character.is_ascii_digit() || matches!(character, '.' | '-' | '+');
    let digits = value.find(|character| !is_number(character)).unwrap_or(value.len());
    let (number, unit) = value.split_at_checked(digits)?;
    let value = number.parse().ok().filter(|number: &f64| number.is_finite())?;
    Some(PerfData { unit: unit.to_owned(), label: label.replace(' ', "_"), value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str) -> Vec<(String, f64, String)> {
        performance_data(output).into_iter().map(|data| (data.label, data.value, data.unit)).collect()
    }

    fn value(label: &str, value: f64, unit: &str) -> (String, f64, String) {
        (label.to_owned(), value, unit.to_owned())
    }

    #[test]
    fn reads_labels_values_and_units_and_passes_over_thresholds() {
        let found = read("OK: fine|time=0.05s;1;2;0 size=12KB load=-1.5 'free space'=93% 'it''s'=1c");
        let expected = [
            value("time", 0.05, "s"),
            value("size", 12.0, "KB"),
            value("load", -1.5, ""),
            value("free_space", 93.0, "%"),
            value("it's", 1.0, "c"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn reads_the_data_below_the_first_line_too() {
        let found = read("OK | a=1\nmore text\nstill text | b=2\nc=3");
        assert_eq!(found, [value("a", 1.0, ""), value("b", 2.0, ""), value("c", 3.0, "")]);
        assert_eq!(read("OK: no data\nnone here | d=4"), [value("d", 4.0, "")]);
    }

    #[test]
    fn what_is_no_performance_data_is_passed_over() {
        assert!(read("OK: all is well").is_empty());
        assert!(read("OK|").is_empty() && read("").is_empty() && read("OK|'open=1").is_empty());
        let found = read("OK|nonsense =5 x=U y=1.2.3 'a'b=1 z=7");
        assert_eq!(found, [value("z", 7.0, "")]);
    }

    #[test]
    fn the_number_of_values_is_bounded() {
        let many = format!("OK|{}", "a=1 ".repeat(5_000));
        assert_eq!(read(&many).len(), MAXIMUM_VALUES);
    }
}
