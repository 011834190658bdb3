//! `machinesd validate`: judges machine definitions as the host would, and their models beyond that.

use std::path::PathBuf;

use machines::host::built_in;
use machines::machine::lint::{Examined, together};
use machines::machine::rule::Severity;
use machines::watchers::KINDS;
use serde_json::{Value, json};

use crate::arguments::{Deny, ReportFormat};
use crate::sarif;
use crate::shared::{Failure, json, line, note, problems};

pub fn validate(directories: &[PathBuf], format: ReportFormat, deny: Option<Deny>) -> Result<(), Failure> {
    let mut machines: Vec<_> = directories.iter().map(|directory| Examined::directory(directory, KINDS)).collect();
    together(&mut machines, &built_in::as_compiled()?);
    match format {
        ReportFormat::Json => json(&directories.iter().zip(&machines).map(document).collect::<Vec<_>>())?,
        ReportFormat::Sarif => json(&sarif::document(&machines))?,
        ReportFormat::Text => {
            for (directory, machine) in directories.iter().zip(&machines) {
                if !machine.problems.is_empty() {
                    problems(&machine.to_problems());
                }
                let (errors, warnings) = (machine.count(Severity::Error), machine.count(Severity::Warning));
                let warned = counted(warnings, "warning");
                match machine.definition().filter(|_| errors == 0) {
                    Some(definition) if warnings > 0 && deny.is_some() => {
                        let (name, version) = (&definition.name, &definition.version);
                        note(format!("{}: {name} {version} is refused: {warned} denied", directory.display()));
                        note("");
                    }
                    Some(definition) => {
                        let but = if warnings > 0 { format!(", with {warned}") } else { String::new() };
                        let (name, version) = (&definition.name, &definition.version);
                        line(format!("{}: {name} {version} is valid{but}", directory.display()));
                    }
                    None => {
                        let and = if warnings > 0 { format!(" and {warned}") } else { String::new() };
                        note(format!("{}: {}{and}", directory.display(), counted(errors, "fault")));
                        note("");
                    }
                }
            }
        }
    }
    let is_refused = |machine: &Examined| {
        machine.count(Severity::Error) > 0 || (deny.is_some() && machine.count(Severity::Warning) > 0)
    };
    if machines.iter().any(is_refused) { Err(Failure::Negative) } else { Ok(()) }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn document((directory, machine): (&PathBuf, &Examined)) -> Value {
    let problem = |problem: &machines::machine::problem::Problem| {
        let mut value = json!({
            "place": problem.place,
            "message": problem.message,
            "rule": problem.rule.id,
            "severity": problem.severity(),
        });
        if let (Some(help), Some(object)) = (&problem.help, value.as_object_mut()) {
            object.insert("help".to_owned(), json!(help));
        }
        value
    };
    let mut value = json!({"path": directory, "valid": machine.count(Severity::Error) == 0});
    if let Some(object) = value.as_object_mut() {
        if let Some(definition) = machine.definition().filter(|_| machine.count(Severity::Error) == 0) {
            object.insert("name".to_owned(), json!(definition.name));
            object.insert("version".to_owned(), json!(definition.version));
        }
        if !machine.problems.is_empty() {
            object.insert("problems".to_owned(), machine.problems.iter().map(problem).collect());
        }
    }
    value
}
