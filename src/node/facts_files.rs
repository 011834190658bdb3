//! The facts files: JSON objects, merged key by key at every level, later files over earlier ones and all of them over
//! the built-in facts. In: paths, and the record of those that were there before. Out: all facts, or why they can't be
//! told: one file that can't be used makes all of them unusable, because any answer could come from it.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value};

use super::{NodeError, built_in};
use crate::fs::Distrust;
use crate::names::Identity;

const FACTS_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
const RECORD_LIMIT_BYTES: u64 = 1024 * 1024;
/// In the state directory: the facts files that were there at some time, so that one that is gone after a restart is
/// told from one that never was.
pub const RECORD_NAME: &str = "facts-seen.json";

/// The facts files of a node.
#[derive(Debug)]
pub struct FactsFiles {
    paths: Vec<PathBuf>,
    missing: Missing,
}

/// What a file that is not there means.
#[derive(Debug)]
enum Missing {
    /// It was named by hand, a moment ago.
    IsAnError,
    /// An empty object, if it never was there.
    IsEmptyUnlessSeen { record: PathBuf, seen: Mutex<Seen> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Files(BTreeSet<PathBuf>),
    /// The record can't be read.
    Unknown(String),
}

impl FactsFiles {
    /// Files that must all be there.
    pub fn given(paths: &[PathBuf]) -> Self {
        Self { paths: paths.to_vec(), missing: Missing::IsAnError }
    }

    /// The files of the settings. Which of them were there is remembered in the state directory.
    pub fn listed(paths: &[PathBuf], state_directory: &Path) -> Self {
        let record = state_directory.join(RECORD_NAME);
        let seen = Mutex::new(Seen::read(&record));
        Self { paths: paths.to_vec(), missing: Missing::IsEmptyUnlessSeen { record, seen } }
    }

    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// All facts. Blocks for as long as the files do.
    ///
    /// # Errors
    /// When a file can't be used.
    pub(super) fn read(&self, identity: &Identity) -> Result<Value, NodeError> {
        let contents: Vec<_> = self.paths.iter().map(|path| (path, self.read_file(path))).collect();
        let gone = |content: &Result<_, NodeError>| matches!(content, Err(error) if error.is_not_found());
        let there = contents.iter().filter(|(_, content)| !gone(content)).map(|(path, _)| (*path).clone()).collect();
        let seen = self.remember(there);
        let mut merged = built_in::facts(identity);
        for (path, content) in contents {
            match (content, &seen) {
                (Err(error), Some(seen)) if error.is_not_found() => self.judge_missing(path, seen)?,
                (content, _) => merge(&mut merged, content?),
            }
        }
        Ok(Value::Object(merged))
    }

    /// # Errors
    /// When the file can't be read, is not JSON, or is not an object; of the files of the settings also when somebody else
    /// than root or the daemon's user may change it, because facts decide what root runs.
    fn read_file(&self, path: &Path) -> Result<Map<String, Value>, NodeError> {
        let content = match self.missing {
            Missing::IsAnError => crate::fs::read(path, FACTS_LIMIT_BYTES).map_err(Distrust::Unknown),
            Missing::IsEmptyUnlessSeen { .. } => crate::fs::trusted::read(path, FACTS_LIMIT_BYTES),
        };
        parse(path, &content.map_err(NodeError::FactsFile)?)
    }

    fn judge_missing(&self, path: &Path, seen: &Seen) -> Result<(), NodeError> {
        let path = path.to_owned();
        match (seen, &self.missing) {
            (Seen::Files(files), _) if !files.contains(&path) => Ok(()),
            (Seen::Unknown(reason), Missing::IsEmptyUnlessSeen { record, .. }) => {
                Err(NodeError::FactsForgotten { path, record: record.clone(), reason: reason.clone() })
            }
            _ => Err(NodeError::FactsGone { path }),
        }
    }

    /// Adds the files that are there to those that were, and takes away what the settings don't list any more; `None`
    /// where nothing is remembered.
    fn remember(&self, there: BTreeSet<PathBuf>) -> Option<Seen> {
        let Missing::IsEmptyUnlessSeen { record, seen } = &self.missing else { return None };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = match &*seen {
            Seen::Files(before) => {
                there.into_iter().chain(before.iter().filter(|path| self.paths.contains(path)).cloned()).collect()
            }
            // What is there now is known again.
            Seen::Unknown(_) if there.len() == BTreeSet::from_iter(&self.paths).len() => there,
            Seen::Unknown(_) => return Some(seen.clone()),
        };
        let now = Seen::Files(now);
        if now != *seen {
            if let Err(error) = now.write(record) {
                tracing::warn!(
                    "a facts file that goes while the daemon is down will count as one that never was: {}",
                    crate::errors::chain(&error)
                );
            }
            *seen = now;
        }
        Some(seen.clone())
    }
}

impl Seen {
    fn read(record: &Path) -> Self {
        match crate::fs::read_plain(record, RECORD_LIMIT_BYTES) {
            Ok(content) => match serde_json::from_slice(&content) {
                Ok(files) => Self::Files(files),
                Err(error) => Self::Unknown(error.to_string()),
            },
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Self::Files(BTreeSet::new()),
            Err(error) => Self::Unknown(crate::errors::chain(&error)),
        }
    }

    fn write(&self, record: &Path) -> crate::fs::Result<()> {
        let Self::Files(files) = self else { return Ok(()) };
        let content = serde_json::to_vec(files).map_err(|error| crate::fs::FileError {
            operation: "write",
            path: record.to_owned(),
            source: error.into(),
        })?;
        crate::fs::write(record, &content, 0o600)
    }
}

fn parse(path: &Path, content: &[u8]) -> Result<Map<String, Value>, NodeError> {
    let found = match serde_json::from_slice(content) {
        Ok(Value::Object(facts)) => return Ok(facts),
        Ok(Value::Array(_)) => "an array",
        Ok(Value::String(_)) => "a string",
        Ok(Value::Number(_)) => "a number",
        Ok(Value::Bool(_) | Value::Null) => "a bare literal",
        Err(error) => {
            let (line, column) = (error.line(), error.column());
            let message = error.to_string();
            // The library appends the place, which the message has already.
            let reason = message.split(" at line ").next().unwrap_or(&message).to_owned();
            return Err(NodeError::FactsSyntax { path: path.to_owned(), line, column, reason });
        }
    };
    Err(NodeError::FactsNotAnObject { path: path.to_owned(), found })
}

/// Merges `over` into `base`; the parser's depth limit (128) bounds the recursion.
fn merge(base: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Object(below)), Value::Object(above)) => merge(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
