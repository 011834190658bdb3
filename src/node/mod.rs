//! The node as expressions and machines see it: its identity, its facts, and probes of its disk. Facts are the
//! built-in ones (os, kernel, arch, cpus, memory, addresses) with the facts files merged over them, later files over
//! earlier ones.

pub mod accounts;
mod addresses;
mod built_in;
mod facts;
mod facts_files;
mod follow;
mod hostname;
mod query;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::names::{Identity, NameError};

pub use addresses::own as own_addresses;
pub use facts::{Facts, FactsError, Unusable};
pub use facts_files::{FactsFiles, RECORD_NAME};
pub use follow::follow;
pub use query::{QueryError, check_path, cost, escaped, query, split_first};

/// Where `has_command` looks. It is the same for the daemon, `run --once`, `mms match` and every shell, because a pass with
/// a shorter `PATH` would remove machines.
pub const SEARCH_PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

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
    FactsFile(#[source] crate::fs::Distrust),
    #[error("could not parse facts file {} at line {line}, column {column}: {reason}", path.display())]
    FactsSyntax { path: PathBuf, line: usize, column: usize, reason: String },
    #[error("facts file {} holds {found}; it must hold one JSON object, such as {{\"role\": \"web\"}}", path.display())]
    FactsNotAnObject { path: PathBuf, found: &'static str },
    #[error("facts file {} was there and is gone; put it back, or take it out of `facts` in the settings", path.display())]
    FactsGone { path: PathBuf },
    #[error(
        "facts file {} is not there, and {}, which tells whether it ever was, can't be read: {reason}; put the file \
         there, or remove the record if it never was",
        path.display(), record.display()
    )]
    FactsForgotten { path: PathBuf, record: PathBuf, reason: String },
}

impl NodeError {
    fn is_not_found(&self) -> bool {
        matches!(self, Self::FactsFile(fault) if fault.is_missing())
    }
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
            let other = current.value() != &facts || current.unusable().is_some();
            if other {
                *current = Arc::new(Facts::new(facts));
            }
            other
        })
    }

    /// The facts can't be used any more, for this node and all its clones: what asks for them fails, until
    /// [`Self::set_facts`]. Whether that is news.
    pub fn set_facts_unusable(&self, reason: String) -> bool {
        self.facts.send_if_modified(|current| {
            let before = current.unusable();
            if before.is_some_and(|before| before.reason == reason) {
                return false;
            }
            let since = before.map_or_else(Timestamp::now, |before| before.since);
            *current = Arc::new(current.spoiled(Unusable { since, reason }));
            true
        })
    }

    /// Tells of new facts.
    pub fn follow_facts(&self) -> watch::Receiver<Arc<Facts>> {
        self.facts.subscribe()
    }

    /// Describes this host. The identity defaults to the host's fully qualified name; facts files that are named here
    /// must be there and be good.
    ///
    /// # Errors
    /// When the host's name is no identity, or a facts file can't be read or is not a JSON object of at most 4 MiB.
    pub fn discover(identity: Option<Identity>, facts_files: &[PathBuf]) -> Result<Self, NodeError> {
        let identity = identify(identity)?;
        let facts = FactsFiles::given(facts_files).read(&identity)?;
        Ok(Self::new(identity, facts, search_path()))
    }

    /// Describes this host as its settings list the facts files. Files that can't be used make the facts unusable, and
    /// are no reason not to start: machines that don't ask for facts run.
    ///
    /// # Errors
    /// When the host's name is no identity.
    pub fn observe(identity: Option<Identity>, facts_files: &FactsFiles) -> Result<Self, NodeError> {
        let node = Self::new(identify(identity)?, serde_json::Value::Null, search_path());
        match facts_files.read(&node.identity) {
            Ok(facts) => node.set_facts(facts),
            Err(error) => node.set_facts_unusable(crate::errors::chain(&error)),
        };
        Ok(node)
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

fn identify(identity: Option<Identity>) -> Result<Identity, NodeError> {
    match identity {
        Some(identity) => Ok(identity),
        None => Identity::new(&hostname::fully_qualified()).map_err(NodeError::HostName),
    }
}

fn search_path() -> Arc<[PathBuf]> {
    SEARCH_PATH.iter().map(PathBuf::from).collect()
}

/// `None` when nothing is there.
fn probe(path: &Path) -> io::Result<Option<std::fs::Metadata>> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
