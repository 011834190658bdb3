//! `machinesd status`: what the daemon knows, for people, in 100 columns.

use std::path::Path;

use jiff::Timestamp;
use machines::control::client::Client;
use machines::control::health::{Code, Health};
use machines::spec::SpecificationError;
use serde_json::Value;

use crate::ask::block_on;
use crate::maintenance;
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

/// Says only whether all is well, for monitors.
pub fn check(socket: &Path, format: Format) -> Result<(), Failure> {
    let (health, maintenance) = match block_on(async { Ok(Client::new(socket).get("/v1/status").await?) }) {
        Ok(document) => (health(&document), maintenance::of(&document)),
        Err(Failure::Error(error)) => (Health::unknown(machines::errors::chain(&*error)), None),
        Err(failure) => return Err(failure),
    };
    match format {
        Format::Json => json(&health)?,
        // No fault, but who reads that all is well must not think that it is kept so.
        Format::Text if health.well => match maintenance {
            Some(maintenance) => line(format!("well, in maintenance {maintenance}")),
            None => line("well"),
        },
        Format::Text => health.reasons.iter().for_each(line),
    }
    if health.well { Ok(()) } else { Err(Failure::Negative) }
}

/// As the daemon judges itself.
fn health(document: &Value) -> Health {
    let health = document.get("health").cloned().unwrap_or_default();
    serde_json::from_value(health).unwrap_or_else(|_| {
        let version = text(document, "/version");
        Health::unknown(format!(
            "the daemon's answer, of version {version}, can't be read; restart it after an upgrade"
        ))
    })
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
    if let Some(maintenance) = maintenance::of(document) {
        say("MAINTENANCE", &maintenance);
    }
    say("node", text(document, "/identity"));
    say("daemon", &format!("{}, up {}", text(document, "/version"), since(document, "/started")));
    let connected = document.pointer("/store/connected").and_then(Value::as_bool).unwrap_or(false);
    let word = if connected { "connected" } else { "NOT CONNECTED" };
    say("store", &format!("{} ({word}; {})", text(document, "/store/url"), text(document, "/store/detail")));
    match document.get("sync") {
        None | Some(Value::Null) => say("specification", "not followed ([sync] enabled = false)"),
        Some(sync) => {
            print_specification(sync);
            print_trust(document);
        }
    }
    print_reasons(document);
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
}

/// Everything that is wrong, once; the tables below say only how things stand.
fn print_reasons(document: &Value) {
    for reason in health(document).reasons {
        let mut message = match &reason.about {
            Some(about) => format!("{about}: {}", reason.message),
            None => reason.message,
        };
        match reason.code {
            // The lines above have said so.
            Code::NotConnected | Code::NoSpecification => continue,
            Code::Refused => {
                let since = since(document, "/sync/refused/since");
                let followed = text(document, "/sync/specification/standing/state") == "followed";
                let instead = if followed { "; what was accepted before is followed" } else { "" };
                message.push_str(&format!(" ({since} ago{instead})"));
            }
            Code::NotFollowed => {
                let since = since(document, "/sync/specification/standing/since");
                message.push_str(&format!(" ({since} ago)"));
            }
            _ => {}
        }
        say(reason.code.label(), &message);
    }
}

/// Whose specifications are taken, where that is nobody's or anyone's. A refusal says it already.
fn print_trust(document: &Value) {
    let refused = document.pointer("/sync/refused").is_some_and(|refused| !refused.is_null());
    match text(document, "/trust") {
        "nobody" if !refused => say("TRUST", &SpecificationError::NoTrustedKey.to_string()),
        "anyone" => say("TRUST", "anyone's: [trust] allow_unsigned = true; whoever writes to the bucket decides"),
        _ => {}
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
        let state = text(machine, "/state");
        // Why a machine is held or has failed is among the reasons above.
        let why = if state == "skipped" { text(machine, "/reason") } else { "" };
        let version = text(machine, "/version").to_owned();
        table.row([name.clone(), version, state.to_owned(), since(machine, "/since"), why.to_owned()]);
    }
    for row in table.lines() {
        line(row);
    }
}

/// What runs, wherever it came from.
fn print_machines(document: &Value) {
    let Some(machines) = document.get("machines").and_then(Value::as_array) else { return };
    line("");
    let mut table = Table::new(["RUNNING", "VERSION", "STATE", "SOURCE", "SINCE"]);
    for report in machines {
        let source = text(report, "/source").to_owned();
        match report.get("machine").filter(|machine| !machine.is_null()) {
            Some(machine) => table.row([
                text(machine, "/name").to_owned(),
                text(machine, "/version").to_owned(),
                text(machine, "/state").to_owned(),
                source,
                since(machine, "/start_time"),
            ]),
            None => table.row([
                text(report, "/path").to_owned(),
                String::new(),
                "NOT RUNNING".to_owned(),
                source,
                String::new(),
            ]),
        }
    }
    for row in table.lines() {
        line(row);
    }
}
