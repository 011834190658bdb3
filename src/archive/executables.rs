//! Which files of an installed machine are executable. `SHA256SUMS` cannot say it, so that a file made executable
//! later would go unseen; this record lies beside the machine's directory, outside of what the list describes.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::fs;

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
    pub(super) fn write(&self, directory: &Path) -> Result<(), fs::FileError> {
        let path = directory.join(EXECUTABLES_RECORD);
        let content = serde_json::to_vec_pretty(self).map_err(|error| fs::FileError {
            operation: "write",
            path: path.clone(),
            source: error.into(),
        })?;
        fs::write(&path, &content, 0o444)
    }
}
