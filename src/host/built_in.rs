//! The machines that are compiled into the binary (`packager/plugins.yaml`), with the settings laid over the manager's
//! properties. The build validates that the files exist; a test that they are valid.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::digest::Sha256Digest;
use crate::duration;
use crate::machine::definition::Definition;
use crate::machine::document::Document;
use crate::machine::problem::Problems;

include!(concat!(env!("OUT_DIR"), "/builtin.rs"));

/// The name of the machine that follows the specification.
pub const MANAGER: &str = "manager";

/// Its state in which nothing is changed.
pub const MAINTENANCE: &str = "MAINTENANCE";

/// The settings of `[sync]` that the manager works with.
#[derive(Debug, Clone)]
pub struct ManagerSettings {
    pub bucket: String,
    pub key: String,
    pub interval: Duration,
    pub manage_interval: Duration,
    pub purge_unknown: bool,
    pub begins: Begins,
}

/// The state in which the manager begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// In the first one.
    Normally,
    /// The node is to be left as it is, since before the start.
    InMaintenance,
}

/// The built-in machines; without the manager where no specification is followed.
///
/// # Errors
/// When a definition does not hold, which the tests exclude for the machines of this repository.
pub fn definitions(manager: Option<&ManagerSettings>) -> Result<Vec<Arc<Definition>>, Problems> {
    let mut definitions = Vec::new();
    for built_in in BUILTIN_MACHINES {
        let path = Path::new(built_in.name);
        let refuse = |problems| Problems::new(path, built_in.definition, problems);
        let mut document = Document::parse(built_in.definition).map_err(|problem| refuse(vec![problem]))?;
        if built_in.name == MANAGER {
            let Some(settings) = manager else { continue };
            apply(settings, &mut document.value);
        }
        let digest = Sha256Digest::of(document.value.to_string().as_bytes());
        definitions.push(Arc::new(Definition::from_document(&document, digest).map_err(refuse)?));
    }
    Ok(definitions)
}

/// The built-in machines as they stand in the repository, for judging others beside them.
///
/// # Errors
/// As [`definitions`].
pub fn as_compiled() -> Result<Vec<Arc<Definition>>, Problems> {
    let parse =
        |built_in: &BuiltinMachine| Definition::parse(Path::new(built_in.name), built_in.definition).map(Arc::new);
    BUILTIN_MACHINES.iter().map(parse).collect()
}

fn apply(settings: &ManagerSettings, document: &mut Value) {
    if settings.begins == Begins::InMaintenance
        && let Some(document) = document.as_object_mut()
    {
        document.insert("initial_state".to_owned(), json!(MAINTENANCE));
    }
    let watchers = document.get_mut("watchers").and_then(Value::as_array_mut);
    for watcher in watchers.into_iter().flatten() {
        let interval = json!(duration::format(settings.interval));
        let kind = watcher.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some(object) = watcher.as_object_mut() else { continue };
        object.insert("interval".to_owned(), interval);
        let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) else { continue };
        let mut set = |key: &str, value: Value| properties.insert(key.to_owned(), value);
        match kind.as_str() {
            "kv" => {
                set("bucket", json!(settings.bucket));
                set("key", json!(settings.key));
                set("store_key", json!("machines"));
            }
            "machines" => {
                set("purge_unknown", json!(settings.purge_unknown));
                set("machine_manage_interval", json!(duration::format(settings.manage_interval)));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_takes_its_settings() {
        let settings = ManagerSettings {
            bucket: "FLEET".to_owned(),
            key: "spec".to_owned(),
            interval: Duration::from_secs(7),
            manage_interval: Duration::from_secs(11),
            purge_unknown: false,
            begins: Begins::InMaintenance,
        };
        let definitions = definitions(Some(&settings)).unwrap();
        let manager = definitions.iter().find(|definition| definition.name.as_str() == MANAGER).unwrap();
        assert_eq!(manager.initial_state.as_str(), MAINTENANCE);
        for watcher in &manager.watchers {
            assert_eq!(watcher.interval, Some(Duration::from_secs(7)));
            match watcher.kind.as_str() {
                "kv" => assert_eq!(watcher.properties.value["bucket"], "FLEET"),
                _ => assert_eq!(watcher.properties.value["machine_manage_interval"], "11s"),
            }
        }
    }

    #[test]
    fn without_sync_there_is_no_manager() {
        assert!(definitions(None).unwrap().iter().all(|definition| definition.name.as_str() != MANAGER));
    }
}
