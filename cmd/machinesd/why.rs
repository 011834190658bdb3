//! `machinesd why`: everything that is known of one machine, in sentences.

use std::path::Path;

use jiff::Timestamp;
use machines::control::client::Client;
use machines::names::MachineName;
use machines::process::Bounds;
use machines::sync::Disbelief;
use serde::Deserialize as _;
use serde_json::Value;

use crate::ask::block_on;
use crate::maintenance;
use crate::shared::table::{Table, labelled, until};
use crate::shared::{Failure, Format, json, line};
use crate::status::{since, text};

pub fn why(socket: &Path, name: &MachineName, format: Format) -> Result<(), Failure> {
    let document = block_on(async { Ok(Client::new(socket).get(&format!("/v1/why/{name}")).await?) })?;
    match format {
        Format::Json => json(&document),
        Format::Text => {
            explain(name.as_str(), &document);
            Ok(())
        }
    }
}

fn present<'a>(document: &'a Value, field: &str) -> Option<&'a Value> {
    document.get(field).filter(|value| !value.is_null())
}

fn number(document: &Value, pointer: &str) -> u64 {
    document.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

fn list<'a>(document: &'a Value, field: &str) -> &'a [Value] {
    document.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A line below another, with what it is.
fn say(label: &str, text: &str) {
    if !text.is_empty() {
        for part in labelled(&format!("  {label}: "), text) {
            line(part);
        }
    }
}

fn explain(name: &str, document: &Value) {
    explain_origin(name, document);
    say("maintenance", &maintenance::of(document).unwrap_or_default());
    if let Some(sync) = present(document, "sync") {
        explain_sync(sync);
    }
    let left_alone = present(document, "left_alone").and_then(|why| Disbelief::deserialize(why).ok());
    say("left alone", &left_alone.map(|why| why.sentence()).unwrap_or_default());
    match present(document, "host") {
        Some(host) => explain_host(host),
        None => line("it does not run: no directory has it"),
    }
    if let Some(commands) = present(document, "commands") {
        explain_bounds(commands);
    }
    explain_journal(document);
}

/// How its commands are bounded here, and what does not hold.
fn explain_bounds(commands: &Value) {
    let Ok(bounds) = serde_json::from_value::<Bounds>(commands.clone()) else { return };
    let by = match (&bounds.directory, &bounds.because) {
        (Some(directory), _) => format!("the cgroup {}", directory.display()),
        (None, because) => format!("rlimits and /proc: {}", because.as_deref().unwrap_or_default()),
    };
    say("commands", &format!("bounded by {by}"));
    for gap in bounds.gaps {
        say("  but", gap.sentence());
    }
}

/// Where the machine comes from, and how it stands.
fn explain_origin(name: &str, document: &Value) {
    let path = text(document, "/host/path");
    match (text(document, "/host/source"), present(document, "sync")) {
        ("built-in", _) => line(format!("{name} is compiled into machinesd")),
        ("local", _) => line(format!("{name} is your own machine, in {path}")),
        (_, Some(sync)) => line(format!("{name} is {}, for {} now", text(sync, "/state"), since(sync, "/since"))),
        _ if text(document, "/follows") == "nothing" => line("this node follows no specification"),
        _ => line(format!("{name} is not in the specification that this node follows")),
    }
}

fn explain_sync(sync: &Value) {
    for (label, pointer) in [
        ("version", "/version"),
        ("archive", "/digest"),
        ("last step", "/action"),
        ("reason", "/reason"),
        ("last error", "/last_error"),
    ] {
        say(label, text(sync, pointer));
    }
    match number(sync, "/failures") {
        0 => {}
        1 => line("  failed once"),
        failures => line(format!("  failed {failures} times in a row")),
    }
    let tried = since(sync, "/last_attempt");
    if !tried.is_empty() {
        line(format!("  tried {tried} ago"));
    }
    if let Ok(moment) = text(sync, "/next_retry").parse::<Timestamp>() {
        line(format!("  tried again in {}", until(moment)));
    }
}

fn explain_host(host: &Value) {
    if text(host, "/source") == "managed" {
        line(format!("its directory is {} (managed)", text(host, "/path")));
    }
    say("problem", text(host, "/problem"));
    let Some(machine) = present(host, "machine") else {
        line("it does not run");
        return;
    };
    let transitions: Vec<&str> = list(machine, "available_transitions").iter().filter_map(Value::as_str).collect();
    let onward = if transitions.is_empty() {
        "no transition leads on from there".to_owned()
    } else {
        format!("transitions from there: {}", transitions.join(", "))
    };
    line(format!("it runs in state {}; {onward}", text(machine, "/state")));
    say("problem", text(machine, "/problem"));
    list(machine, "watchers").iter().for_each(explain_watcher);
}

fn explain_watcher(watcher: &Value) {
    let active = watcher.get("active").and_then(Value::as_bool).unwrap_or(false);
    let checks = match number(watcher, "/checks") {
        1 => "1 check".to_owned(),
        checks => format!("{checks} checks"),
    };
    let when = match since(watcher, "/last_check") {
        _ if !active => ", asleep in this state".to_owned(),
        age if age.is_empty() => age,
        age => format!(", the last {age} ago"),
    };
    let (name, kind, outcome) = (text(watcher, "/name"), text(watcher, "/type"), text(watcher, "/outcome"));
    line(format!("  {name} ({kind}): {outcome}, {checks}{when}"));
    for pointer in ["/last_error", "/detail"] {
        for part in text(watcher, pointer).lines() {
            line(format!("      {part}"));
        }
    }
}

/// What happened with the machine, newest first.
fn explain_journal(document: &Value) {
    let records = list(document, "journal");
    if records.is_empty() {
        return;
    }
    line("lately:");
    let mut table = Table::plain();
    for record in records {
        table.row([format!("  {} ago", since(record, "/time")), text(record, "/message").to_owned()]);
    }
    for row in table.lines() {
        line(row);
    }
}
