//! Contexts of the `nats` command line: named connection settings in `${XDG_CONFIG_HOME:-~/.config}/nats/context/`, of
//! which `nats/context.txt` names the selected one. Only the fields that concern a connection are read; others are
//! tolerated, as that tool adds some with each version.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use super::KvError;
use crate::fs;
use crate::secret::Secret;

/// Contexts are small; a larger file is something else.
const MAXIMUM_BYTES: u64 = 64 * 1024;

/// One context. Fields that are absent or empty are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Context {
    #[serde(deserialize_with = "text")]
    pub url: Option<String>,
    #[serde(deserialize_with = "secret")]
    pub token: Option<Secret>,
    #[serde(deserialize_with = "text")]
    pub user: Option<String>,
    #[serde(deserialize_with = "secret")]
    pub password: Option<Secret>,
    #[serde(deserialize_with = "text")]
    pub creds: Option<String>,
    #[serde(deserialize_with = "text")]
    pub nkey: Option<String>,
    #[serde(deserialize_with = "text")]
    pub cert: Option<String>,
    #[serde(deserialize_with = "text")]
    pub key: Option<String>,
    #[serde(deserialize_with = "text")]
    pub ca: Option<String>,
    #[serde(deserialize_with = "text")]
    pub jetstream_domain: Option<String>,
    #[serde(deserialize_with = "text")]
    pub jetstream_api_prefix: Option<String>,
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.filter(|text| !text.is_empty()))
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    Ok(text(deserializer)?.map(Secret::new))
}

impl Context {
    /// Where the context of this name is.
    pub(super) fn path(configuration: &Path, name: &str) -> PathBuf {
        directory(configuration).join("context").join(format!("{name}.json"))
    }

    /// Reads the context of this name from the `nats` directory in `configuration` (`~/.config`).
    ///
    /// # Errors
    /// [`KvError::Context`] when the name is no plain file name, or the file can't be read or is not a context.
    pub fn load(configuration: &Path, name: &str) -> Result<Self, KvError> {
        let refuse = |reason: String| KvError::Context { name: name.chars().take(80).collect(), reason };
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
            return Err(refuse("it is not a plain name".to_owned()));
        }
        let path = Self::path(configuration, name);
        let content = fs::read_text(&path, MAXIMUM_BYTES)
            .map_err(|error| refuse(format!("{error}: {}; `nats context ls` lists those there are", error.source)))?;
        // The position is enough: the text that serde quotes might be a password.
        serde_json::from_str(&content).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            refuse(format!("{} is not a context, see line {line}, column {column}", path.display()))
        })
    }

    /// The name of the selected context, if any.
    pub(super) fn selected(configuration: &Path) -> Option<String> {
        let content = fs::read_text(&directory(configuration).join("context.txt"), MAXIMUM_BYTES).ok()?;
        let name = content.trim();
        (!name.is_empty()).then(|| name.to_owned())
    }
}

fn directory(configuration: &Path) -> PathBuf {
    configuration.join("nats")
}
