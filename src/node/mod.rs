//! The node as expressions and machines see it: its identity, its facts, and probes of its disk. Facts are the
//! built-in ones (os, kernel, arch, cpus, memory, addresses) with the facts files merged over them, later files over
//! earlier ones.

pub mod accounts;
mod addresses;
mod facts;
mod follow;
mod hostname;
mod query;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::names::{Identity, NameError};

pub use addresses::own as own_addresses;
pub use follow::follow;
pub use query::{escaped, query, split_first};

/// Where commands are looked for when the daemon has no `PATH`.
const DEFAULT_SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What describes a node: a JSON object.
#[derive(Debug, Default)]
pub struct Facts {
    value: serde_json::Value,
    text: OnceLock<String>,
}

impl Facts {
    pub fn new(value: serde_json::Value) -> Self {
        Self { value, text: OnceLock::new() }
    }

    pub fn value(&self) -> &serde_json::Value {
        &self.value
    }

    /// As JSON.
    pub fn text(&self) -> &str {
        self.text.get_or_init(|| self.value.to_string())
    }

    /// The value at a GJSON path; `None` when there is none.
    pub fn query(&self, path: &str) -> Option<serde_json::Value> {
        query(self.text(), path)
    }
}

/// What is known of this node; cheap to clone. The clones share their facts.
#[derive(Debug, Clone)]
pub struct Node {
    pub identity: Identity,
    facts: watch::Sender<Arc<Facts>>,
    /// Directories in which commands are looked for, in order.
    pub search_path: Arc<[PathBuf]>,
}

/// Why a node could not be described.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("could not use this host's name as its identity; set \"identity\" in the settings")]
    HostName(#[source] NameError),
    #[error("could not read a facts file")]
    FactsFile(#[source] crate::fs::FileError),
    #[error("could not parse facts file {} at line {line}, column {column}: {reason}", path.display())]
    FactsSyntax { path: PathBuf, line: usize, column: usize, reason: String },
    #[error("facts file {} holds {found}; it must hold one JSON object, such as {{\"role\": \"web\"}}", path.display())]
    FactsNotAnObject { path: PathBuf, found: &'static str },
}

impl Node {
    /// A node that is known already.
    pub fn new(identity: Identity, facts: serde_json::Value, search_path: Arc<[PathBuf]>) -> Self {
        Self { identity, facts: watch::Sender::new(Arc::new(Facts::new(facts))), search_path }
    }

    /// The facts as they are now.
    pub fn facts(&self) -> Arc<Facts> {
        Arc::clone(&self.facts.borrow())
    }

    /// Takes new facts, for this node and all its clones. Whether they are other than before.
    pub fn set_facts(&self, facts: serde_json::Value) -> bool {
        self.facts.send_if_modified(|current| {
            let other = current.value != facts;
            if other {
                *current = Arc::new(Facts::new(facts));
            }
            other
        })
    }

    /// Tells of new facts.
    pub fn follow_facts(&self) -> watch::Receiver<Arc<Facts>> {
        self.facts.subscribe()
    }

    /// Describes this host. The identity defaults to the host's fully qualified name, the search path is `PATH`.
    ///
    /// A facts file is a JSON object of at most 4 MiB. Objects are merged key by key at every level, later files over
    /// earlier ones and all of them over the built-in facts; any other value, also an array, replaces what was there.
    ///
    /// # Errors
    /// When the host's name is no identity, or a facts file can't be read or is not a JSON object.
    pub fn discover(identity: Option<Identity>, facts_files: &[PathBuf]) -> Result<Self, NodeError> {
        let identity = match identity {
            Some(identity) => identity,
            None => Identity::new(&hostname::fully_qualified()).map_err(NodeError::HostName)?,
        };
        let facts = describe(&identity, facts_files)?;
        let search_path = match std::env::var_os("PATH") {
            Some(path) if !path.is_empty() => search_path(&path),
            _ => search_path(DEFAULT_SEARCH_PATH.as_ref()),
        };
        Ok(Self::new(identity, facts, search_path))
    }

    /// Whether a regular file is at the path; symbolic links are followed, as the reference does.
    ///
    /// # Errors
    /// When that can't be known, for example for want of permission: this is not the same as "no".
    pub fn has_file(&self, path: &Path) -> io::Result<bool> {
        Ok(probe(path)?.is_some_and(|metadata| metadata.is_file()))
    }

    /// Whether a directory is at the path; symbolic links are followed.
    ///
    /// # Errors
    /// As [`Self::has_file`].
    pub fn has_directory(&self, path: &Path) -> io::Result<bool> {
        Ok(probe(path)?.is_some_and(|metadata| metadata.is_dir()))
    }

    /// Whether an executable regular file of that name is in the search path; an absolute path is looked at itself.
    ///
    /// # Errors
    /// When it is nowhere to be found and one of the places could not be looked at.
    pub fn has_command(&self, name: &str) -> io::Result<bool> {
        let executable = |path: &Path| {
            let metadata = probe(path)?;
            Ok(metadata.is_some_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0))
        };
        if name.is_empty() || name.contains('/') {
            return if name.starts_with('/') { executable(Path::new(name)) } else { Ok(false) };
        }
        let mut unknown = None;
        for directory in self.search_path.iter() {
            match executable(&directory.join(name)) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) => unknown = Some(error),
            }
        }
        unknown.map_or(Ok(false), Err)
    }
}

/// The built-in facts with those of the files over them.
fn describe(identity: &Identity, files: &[PathBuf]) -> Result<serde_json::Value, NodeError> {
    let mut merged = facts::built_in(identity);
    for path in files {
        facts::merge(&mut merged, facts::read(path)?);
    }
    Ok(serde_json::Value::Object(merged))
}

/// `None` when nothing is there.
fn probe(path: &Path) -> io::Result<Option<std::fs::Metadata>> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A relative entry would mean another place in each working directory, so it is left out.
fn search_path(path: &std::ffi::OsStr) -> Arc<[PathBuf]> {
    std::env::split_paths(path).filter(|directory| directory.is_absolute()).collect()
}

#[cfg(test)]
mod tests;
