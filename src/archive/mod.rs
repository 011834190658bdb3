//! Archives of machines: build, fetch, unpack, verify. Nothing about watchers.
//!
//! An archive is a file that a stranger may have written: everything about it is judged while it streams by, against
//! [`Limits`] and against the checksums list whose digest the signed specification gives. What passes is on disk
//! exactly as listed, flushed and read-only; what does not pass leaves nothing behind.

mod build;
mod checksums;
mod error;
mod executables;
mod fetch;
mod http;
mod inflate;
mod members;
mod path;
mod places;
mod reach;
mod sink;
mod tree;
mod unpack;
mod unwanted;
mod verify;

pub use build::{Built, Checked, CheckedFile, Expectation, build, build_including, check};
pub use checksums::{CHECKSUM_LIST, ChecksumList, ChecksumListError};
pub use error::ArchiveError;
pub use executables::EXECUTABLES_RECORD;
pub use fetch::{FetchError, FetchSettings, Fetched, Fetcher};
pub use path::PathProblem;
pub use places::{Place, Purpose};
pub use unpack::{Opened, Unpacked, unpack, unpack_open};
pub use unwanted::{Included, Unwanted};
pub use verify::{Drift, verify_directory, verify_open};

/// The bounds of ARCHITECTURE.md, "Archive limits"; all are settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest archive file.
    pub archive_bytes: u64,
    /// Largest tar stream that may come out of it, headers and padding included.
    pub expanded_bytes: u64,
    /// Expanded bytes per archive byte.
    pub expansion_ratio: u64,
    /// Most files and directories, those directories included that only the paths of files imply.
    pub entries: usize,
    /// Most components of a path, the top directory included.
    pub depth: usize,
    /// Longest component of a path.
    pub component_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            archive_bytes: 256 * 1024 * 1024,
            expanded_bytes: 256 * 1024 * 1024,
            expansion_ratio: 200,
            entries: 4_096,
            depth: 16,
            component_bytes: 255,
        }
    }
}
