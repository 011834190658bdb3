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
        (None, Some(before)) => line(format!("no longer in maintenance; it was {}", described(before))),
        (None, None) => line("not in maintenance"),
    }
    Ok(())
}

/// The maintenance in a document of the daemon, as a sentence and what ends it.
pub fn of(document: &serde_json::Value) -> Option<String> {
    let maintenance: Maintenance = serde_json::from_value(document.get("maintenance")?.clone()).ok()?;
    Some(format!("{}; nothing is changed: `machinesd maintenance off` ends it", described(&maintenance)))
}

/// `since 5m, for 2h more, by root, because disks are exchanged`.
pub fn described(maintenance: &Maintenance) -> String {
    let mut parts = vec![format!("since {}", ago(maintenance.since))];
    parts.push(match maintenance.until {
        Some(end) => format!("until {end:.0} (for {} more)", until(end)),
        None => "until it is ended".to_owned(),
    });
    parts.extend(maintenance.by.map(|number| format!("by {}", accounts::name_of_user(number))));
    parts.extend(maintenance.because.as_ref().map(|because| format!("because {because}")));
    parts.join(", ")
}
