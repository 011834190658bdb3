//! `machinesd status`: what the daemon knows, for people, in 100 columns.

use std::path::Path;

use jiff::Timestamp;
use machines::control::client::Client;
use serde_json::Value;

use crate::ask::block_on;
use crate::shared::table::{Table, ago, labelled};
use crate::shared::{Failure, Format, json, line};

pub fn status(socket: &Path, format: Format) -> Result<(), Failure> {
    let document = block_on(async { Ok(Client::new(socket).get("/v1/status").await?) })?;
    match format {
        Format::Json => json(&document),
        Format::Text => {
            print(&document);
            Ok(())
        }
    }
}

pub fn text<'a>(document: &'a Value, pointer: &str) -> &'a str {
    document.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// How long ago the moment at `pointer` was; empty when there is none.
pub fn since(document: &Value, pointer: &str) -> String {
    text(document, pointer).parse::<Timestamp>().map(ago).unwrap_or_default()
}

/// A line with its label, below which longer texts go on.
fn say(label: &str, text: &str) {
    for part in labelled(&format!("{label:<15}"), text) {
        line(part);
    }
}

fn print(document: &Value) {
    say("node", text(document, "/identity"));
    say("daemon", &format!("{}, up {}", text(document, "/version"), since(document, "/started")));
    let connected = document.pointer("/store/connected").and_then(Value::as_bool).unwrap_or(false);
    let word = if connected { "connected" } else { "NOT CONNECTED" };
    say("store", &format!("{} ({word}; {})", text(document, "/store/url"), text(document, "/store/detail")));
    match document.get("sync") {
        None | Some(Value::Null) => say("specification", "not followed ([sync] enabled = false)"),
        Some(sync) => print_specification(sync),
    }
    print_managed(document);
    print_machines(document);
}

fn print_specification(sync: &Value) {
    match sync.get("specification") {
        None | Some(Value::Null) => say("specification", "none accepted yet"),
        Some(specification) => {
            let digest = text(specification, "/digest").chars().take(12).collect::<String>();
            let signer = match text(specification, "/signed_by") {
                "" => "unsigned".to_owned(),
                key => format!("signed by {}…", key.chars().take(12).collect::<String>()),
            };
            say("specification", &format!("{digest}, {signer}, accepted {} ago", since(specification, "/accepted_at")));
        }
    }
    if let Some(refused) = sync.get("refused").filter(|refused| !refused.is_null()) {
        let (message, since) = (text(refused, "/message"), since(refused, "/since"));
        say("REFUSED", &format!("{message} ({since} ago; what was accepted before is followed)"));
    }
    if let Some(held) = sync.get("held_removals").filter(|held| !held.is_null()) {
        say("HELD", text(held, "/reason"));
    }
    if !text(sync, "/problem").is_empty() {
        say("PROBLEM", text(sync, "/problem"));
    }
}

/// The machines of the specification: what sync made of each.
fn print_managed(document: &Value) {
    let Some(machines) = document.pointer("/sync/machines").and_then(Value::as_object).filter(|map| !map.is_empty())
    else {
        return;
    };
    line("");
    let mut table = Table::new(["MANAGED", "VERSION", "STATE", "SINCE", "WHY"]);
    for (name, machine) in machines {
        let why = match (text(machine, "/last_error"), text(machine, "/reason")) {
            ("", reason) => reason.to_owned(),
            (error, _) => error.to_owned(),
        };
        let version = text(machine, "/version").to_owned();
        table.row([name.clone(), version, text(machine, "/state").to_owned(), since(machine, "/since"), why]);
    }
    for row in table.lines() {
        line(row);
    }
}

/// What runs, wherever it came from.
fn print_machines(document: &Value) {
    let Some(machines) = document.get("machines").and_then(Value::as_array) else { return };
    line("");
    let mut table = Table::new(["RUNNING", "VERSION", "STATE", "SOURCE", "SINCE", "PROBLEM"]);
    for report in machines {
        let source = text(report, "/source").to_owned();
        let problem = trouble(report);
        match report.get("machine").filter(|machine| !machine.is_null()) {
            Some(machine) => table.row([
                text(machine, "/name").to_owned(),
                text(machine, "/version").to_owned(),
                text(machine, "/state").to_owned(),
                source,
                since(machine, "/start_time"),
                problem,
            ]),
            None => table.row([
                text(report, "/path").to_owned(),
                String::new(),
                "NOT RUNNING".to_owned(),
                source,
                String::new(),
                problem,
            ]),
        }
    }
    for row in table.lines() {
        line(row);
    }
}

/// Everything that is wrong with a machine, one after the other.
fn trouble(report: &Value) -> String {
    let own = [text(report, "/problem"), text(report, "/machine/problem")];
    let mut all: Vec<String> = own.into_iter().filter(|text| !text.is_empty()).map(str::to_owned).collect();
    for watcher in report.pointer("/machine/watchers").and_then(Value::as_array).into_iter().flatten() {
        let error = text(watcher, "/last_error");
        if !error.is_empty() && watcher.get("active").and_then(Value::as_bool).unwrap_or(false) {
            all.push(format!("{}: {error}", text(watcher, "/name")));
        }
    }
    all.join("; ").replace('\n', " ")
}
