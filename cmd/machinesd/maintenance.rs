//! `machinesd maintenance`: leaves this node as it is, or no longer, or shows whether it does.

use std::path::Path;

use machines::control::client::Client;
use machines::control::{MaintenanceAnswer, MaintenanceRequest};
use machines::node::accounts;
use machines::sync::Maintenance;
use serde_json::json;

use crate::arguments::Maintenance as Change;
use crate::ask::block_on;
use crate::shared::table::{ago, until};
use crate::shared::{Failure, Format, json, line};

pub fn maintenance(socket: &Path, change: Change, format: Format) -> Result<(), Failure> {
    let client = Client::new(socket);
    let answer = block_on(async {
        Ok(match change {
            Change::Status => {
                let mut status = client.get("/v1/status").await?;
                let now = status.get_mut("maintenance").map(serde_json::Value::take);
                serde_json::from_value(json!({"before": now, "now": now}))?
            }
            Change::On { time, because } => {
                let seconds = time.map(|time| time.as_secs());
                let request = MaintenanceRequest::On { seconds, because };
                serde_json::from_value(client.post("/v1/maintenance", &request).await?)?
            }
            Change::Off => serde_json::from_value(client.post("/v1/maintenance", &MaintenanceRequest::Off).await?)?,
        })
    })?;
    let answer: MaintenanceAnswer = answer;
    if format == Format::Json {
        return json(&answer.now);
    }
    match (&answer.now, &answer.before) {
        (Some(maintenance), _) => line(format!("in maintenance {}: nothing is changed", described(maintenance))),
        (None, Some(before)) => line(format!("no longer in maintenance; it was {}", words(before, None))),
        (None, None) => line("not in maintenance"),
    }
    Ok(())
}

/// The maintenance in a document of the daemon, as a sentence and what ends it.
pub fn of(document: &serde_json::Value) -> Option<String> {
    let maintenance: Maintenance = serde_json::from_value(document.get("maintenance")?.clone()).ok()?;
    Some(format!("{}; nothing is changed: `machinesd maintenance off` ends it", described(&maintenance)))
}

/// `since 2026-11-28T20:52:05Z (5m ago), until 2026-11-28T22:52:05Z (1h55m left), by root, because disks are exchanged`.
fn described(maintenance: &Maintenance) -> String {
    let end = match maintenance.until {
        Some(end) => format!("until {end:.0} ({} left)", until(end)),
        None => "until it is ended".to_owned(),
    };
    words(maintenance, Some(end))
}

/// The reason comes last: it is a text of any words.
fn words(maintenance: &Maintenance, end: Option<String>) -> String {
    let mut parts = vec![format!("since {:.0} ({} ago)", maintenance.since, ago(maintenance.since))];
    parts.extend(end);
    parts.extend(maintenance.by.map(|number| format!("by {}", accounts::name_of_user(number))));
    parts.extend(maintenance.because.as_ref().map(|because| format!("because {because}")));
    parts.join(", ")
}
