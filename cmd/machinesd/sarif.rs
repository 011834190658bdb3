//! Problems as SARIF 2.1.0 (<https://docs.oasis-open.org/sarif/sarif/v2.1.0/>), which code hosts show beside the lines.

use std::path::Path;

use machines::machine::lint::Examined;
use machines::machine::rule::{RULES, Stage};
use serde_json::{Value, json};

/// The log of one run.
pub fn document(machines: &[Examined]) -> Value {
    let rules: Vec<Value> = RULES
        .iter()
        .map(|rule| {
            let stage = if rule.stage == Stage::Model { "model" } else { "definition" };
            json!({
                "id": rule.id,
                "shortDescription": {"text": rule.summary},
                "help": {"text": rule.help},
                "defaultConfiguration": {"level": rule.severity.as_str()},
                "properties": {"tags": [stage]},
            })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "machinesd", "semanticVersion": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "columnKind": "unicodeCodePoints",
            "results": machines.iter().flat_map(results).collect::<Vec<_>>(),
        }],
    })
}

fn results(machine: &Examined) -> Vec<Value> {
    let uri = uri(&machine.path);
    let result = |problem: &machines::machine::problem::Problem| {
        let mut location = json!({"artifactLocation": {"uri": uri}});
        if let (Some(place), Some(location)) = (problem.place, location.as_object_mut()) {
            let region = json!({"startLine": place.line.max(1), "startColumn": place.column.max(1)});
            location.insert("region".to_owned(), region);
        }
        let text = match &problem.help {
            Some(help) => format!("{} ({help})", problem.message),
            None => problem.message.clone(),
        };
        json!({
            "ruleId": problem.rule.id,
            "ruleIndex": RULES.iter().position(|rule| rule.id == problem.rule.id),
            "level": problem.severity().as_str(),
            "message": {"text": text},
            "locations": [{"physicalLocation": location}],
        })
    };
    machine.problems.iter().map(result).collect()
}

/// A file's path as URI reference: absolute paths with their scheme, others as they are.
fn uri(path: &Path) -> String {
    if let Ok(url) = url::Url::from_file_path(path) {
        return url.into();
    }
    let mut text = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'~' => text.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => text.push(char::from(*byte)),
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}
