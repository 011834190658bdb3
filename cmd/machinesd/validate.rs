//! `machinesd validate`: judges machine definitions as the host would.

use std::path::PathBuf;

use serde_json::json;

use crate::shared::{Failure, Format, definition, json, line, note, styled};

pub fn validate(directories: &[PathBuf], format: Format) -> Result<(), Failure> {
    let checked: Vec<_> = directories.iter().map(|directory| (directory, definition::load(directory))).collect();
    let good = checked.iter().all(|(_, result)| result.is_ok());
    match format {
        Format::Json => {
            let documents = checked.iter().map(|(directory, result)| match result {
                Ok(definition) => {
                    json!({"path": directory, "valid": true, "name": definition.name, "version": definition.version})
                }
                Err(problems) => json!({"path": directory, "valid": false, "problems": problems.problems}),
            });
            json(&documents.collect::<Vec<_>>())?;
        }
        Format::Text => {
            for (directory, result) in &checked {
                match result {
                    Ok(definition) => {
                        line(format!("{}: {} {} is valid", directory.display(), definition.name, definition.version));
                    }
                    Err(problems) => {
                        note(problems.render(styled()));
                        let count = problems.problems.len();
                        note(format!(
                            "{}: {count} {}\n",
                            directory.display(),
                            if count == 1 { "fault" } else { "faults" }
                        ));
                    }
                }
            }
        }
    }
    if good { Ok(()) } else { Err(Failure::Negative) }
}
