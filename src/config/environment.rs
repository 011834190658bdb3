//! The `MACHINESD_*` variables, laid over the file: `MACHINESD_KV_URL` is `url` under `[kv]`.

use toml::{Table, Value};

use crate::suggest::nearest;

use super::{ConfigError, raw, service};

/// How the text of a variable becomes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Text,
    Number,
    /// `true` or `false`.
    Switch,
    /// Separated by commas; empty for none.
    List,
    /// As a list, but an empty variable is as one that is not set: orchestrators make it of a value that nobody filled
    /// in, and it must not take away what the file demands.
    Keys,
}

/// Every key that settings may have: section (empty for the top), key, form.
pub const KEYS: &[(&str, &str, Form)] = &[
    ("", "identity", Form::Text),
    ("", "state_dir", Form::Text),
    ("", "local_dir", Form::Text),
    ("", "facts", Form::List),
    ("kv", "url", Form::Text),
    ("kv", "creds", Form::Text),
    ("kv", "nkey", Form::Text),
    ("kv", "user", Form::Text),
    ("kv", "password", Form::Text),
    ("kv", "token", Form::Text),
    ("kv", "ca", Form::Text),
    ("kv", "cert", Form::Text),
    ("kv", "key", Form::Text),
    ("kv", "context", Form::Text),
    ("sync", "enabled", Form::Switch),
    ("sync", "bucket", Form::Text),
    ("sync", "key", Form::Text),
    ("sync", "interval", Form::Text),
    ("sync", "manage_interval", Form::Text),
    ("sync", "purge_unknown", Form::Switch),
    ("sync", "hold_removals_over", Form::Text),
    ("trust", "public_keys", Form::Keys),
    ("fetch", "proxy", Form::Text),
    ("fetch", "ca", Form::Text),
    ("fetch", "deadline", Form::Text),
    ("fetch", "minimum_rate", Form::Number),
    ("archive", "archive_bytes", Form::Number),
    ("archive", "expanded_bytes", Form::Number),
    ("archive", "expansion_ratio", Form::Number),
    ("archive", "entries", Form::Number),
    ("archive", "depth", Form::Number),
    ("archive", "component_bytes", Form::Number),
    ("process", "cgroup", Form::Text),
    ("control", "socket", Form::Text),
    ("http", "listen", Form::Text),
    ("http", "token_file", Form::Text),
    ("metrics", "textfile_directory", Form::Text),
    ("log", "format", Form::Text),
    ("log", "level", Form::Text),
];

/// Keys that no variable sets: who runs a program in an environment of his own making must not be able to switch a
/// check off.
pub const FILE_ONLY: &[(&str, &str)] = &[("trust", "allow_unsigned")];

/// The variable of a key.
pub fn variable(section: &str, key: &str) -> String {
    let section = if section.is_empty() { String::new() } else { format!("{section}_") };
    format!("MACHINESD_{section}{key}").to_uppercase()
}

/// Sets what the variables say. A `MACHINESD_` variable that names no key is refused, as an unknown key is: it was
/// meant to change something. Those that an orchestrator sets because a service has our name were not.
pub fn overlay(table: &mut Table, variables: impl Iterator<Item = (String, String)>) -> Result<(), ConfigError> {
    for (name, text) in variables.filter(|(name, _)| name.starts_with("MACHINESD_")) {
        if service::is_of_a_service(&name, &text) {
            tracing::debug!("{name} is of a service of that name, and no setting");
            continue;
        }
        let refuse = |reason: String| ConfigError::Environment { variable: name.clone(), reason };
        if let Some((section, key)) = FILE_ONLY.iter().find(|(section, key)| variable(section, key) == name) {
            return Err(refuse(format!("only the settings file can say this: set {key} under [{section}] there")));
        }
        let Some((section, key, form)) = KEYS.iter().find(|(section, key, _)| variable(section, key) == name) else {
            let known: Vec<String> = KEYS.iter().map(|(section, key, _)| variable(section, key)).collect();
            return Err(refuse(match nearest(&name, known.iter().map(String::as_str)) {
                Some(meant) => format!("there is no such setting; did you mean {meant}?"),
                None => "there is no such setting".to_owned(),
            }));
        };
        let value = match form {
            Form::Text => Value::String(text),
            Form::Number => {
                Value::Integer(text.trim().parse().map_err(|_| refuse(format!("{text:?} is not a whole number")))?)
            }
            Form::Switch => {
                Value::Boolean(text.trim().parse().map_err(|_| refuse(format!("{text:?} is neither true nor false")))?)
            }
            Form::Keys if text.split(',').all(|item| item.trim().is_empty()) => continue,
            Form::List | Form::Keys => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
            }
        };
        let place = if section.is_empty() {
            Some(&mut *table)
        } else {
            table.entry(*section).or_insert_with(|| Value::Table(Table::new())).as_table_mut()
        };
        if let Some(place) = place {
            place.insert((*key).to_owned(), value);
        }
        // One at a time, so that a value that has the wrong form is blamed on its variable.
        let shape: Result<raw::File, toml::de::Error> = table.clone().try_into();
        shape.map_err(|error| refuse(super::reason(&error)))?;
    }
    Ok(())
}
