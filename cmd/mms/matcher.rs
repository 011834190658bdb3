//! `mms match`: what an expression gives on this machine, and why.

use std::path::PathBuf;

use machines::expr::MatchExpression;
use machines::names::Identity;
use machines::node::Node;
use serde_json::json;

use crate::shared::{Failure, Format, json, line, note, note_lines};

pub fn matches(expression: &str, identity: Option<Identity>, facts: &[PathBuf], format: Format) -> Result<(), Failure> {
    let node = Node::discover(identity, facts)?;
    let parsed = match MatchExpression::parse(expression) {
        Ok(parsed) => parsed,
        Err(error) => {
            if format == Format::Json {
                json(&json!({"expression": expression, "identity": node.identity, "result": null,
                    "error": error.to_string(), "calls": []}))?;
            }
            note_lines(format!("error: {}", error.render()));
            return Err(Failure::Negative);
        }
    };
    let evaluation = parsed.evaluate(&node);
    let error = evaluation.result.as_ref().err();
    match format {
        Format::Json => {
            let calls = evaluation.calls.iter().map(|call| json!({"call": call.call, "returned": call.returned}));
            json(&json!({
                "expression": expression,
                "identity": node.identity,
                "result": evaluation.result.as_ref().ok(),
                "error": error.map(ToString::to_string),
                "calls": calls.collect::<Vec<_>>(),
            }))?;
        }
        Format::Text => {
            if let Ok(answer) = &evaluation.result {
                line(answer);
            }
            let width = evaluation.calls.iter().map(|call| call.call.chars().count()).max().unwrap_or(0).min(60);
            for call in &evaluation.calls {
                line(format!("  {:width$}  {}", call.call, call.returned));
            }
        }
    }
    let Some(error) = error else { return Ok(()) };
    note_lines(format!("error: {}", error.render()));
    note("a node on which this happens keeps the machine as it is");
    Err(Failure::Negative)
}
