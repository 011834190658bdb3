//! Which files of an installed machine are executable. `SHA256SUMS` cannot say it, so that a file made executable
//! later would go unseen; this record lies beside the machine's directory, outside of what the list describes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::fs::{self, Attributes, Directory};

/// The name of the record, a sibling of the machine's directory.
pub const EXECUTABLES_RECORD: &str = "executables.json";

/// Larger than any record that the limits allow for real archives.
pub(super) const EXECUTABLES_MAXIMUM_BYTES: u64 = 16 * 1024 * 1024;

/// The paths of the executable files, relative to the machine's directory.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Executables {
    pub(super) executables: BTreeSet<String>,
}

impl Executables {
    /// Writes the record durably into `directory`.
    pub(super) fn write(&self, directory: &Directory) -> Result<(), fs::FileError> {
        let content = serde_json::to_vec_pretty(self).map_err(|error| fs::FileError {
            operation: "write",
            path: directory.path().join(EXECUTABLES_RECORD),
            source: error.into(),
        })?;
        let attributes = Attributes { mode: Some(0o444), ..Attributes::default() };
        directory.place(EXECUTABLES_RECORD)?.write(&content, attributes)
    }
}
