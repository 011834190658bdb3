//! `SHA256SUMS`, the list that says what an installed machine consists of: lines of `<64 hex digits>  <path>`, as
//! `sha256sum` writes and reads them (a `*` before the path, its mark for binary mode, is accepted). In come bytes from
//! an archive or a disk, out comes a sorted list of plain relative paths.

use std::collections::BTreeMap;
use std::fmt;

use super::Limits;
use super::path::{EntryPath, PathProblem, shown};
use crate::digest::{DigestError, Sha256Digest};

/// The name of the list, in the top directory of an archive.
pub const CHECKSUM_LIST: &str = "SHA256SUMS";

/// Largest accepted list.
pub(super) const CHECKSUM_LIST_MAXIMUM_BYTES: u64 = 1024 * 1024;

/// The digest of each file, by its path below the machine's directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChecksumList {
    files: BTreeMap<String, Sha256Digest>,
}

/// Why a list is refused. `line` counts from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChecksumListError {
    /// Larger than 1 MiB.
    #[error("SHA256SUMS is larger than the limit of {limit_bytes} bytes; leave out files")]
    TooLarge { limit_bytes: u64 },
    /// More lines than [`Limits::entries`].
    #[error("SHA256SUMS has more lines than the limit of {limit}; leave out files")]
    TooManyLines { limit: usize },
    /// Not `<hex>  <path>`.
    #[error("line {line} of SHA256SUMS is not \"<checksum>  <path>\"; write it with sha256sum or `mms archive build`")]
    Malformed { line: usize },
    /// The checksum is not one.
    #[error("line {line} of SHA256SUMS: {problem}")]
    Digest { line: usize, problem: DigestError },
    /// The path could lead outside or is read in different ways.
    #[error("line {line} of SHA256SUMS names {path:?}: {problem}")]
    Path { line: usize, path: String, problem: PathProblem },
    /// The same path twice.
    #[error("line {line} of SHA256SUMS names {path:?} a second time; remove one")]
    Duplicate { line: usize, path: String },
    /// The list in the list: no content could match.
    #[error("line {line} of SHA256SUMS names SHA256SUMS itself; remove the line")]
    Itself { line: usize },
}

impl ChecksumList {
    /// Reads a list strictly: a line that one tool skips and another follows would be a way around the check.
    ///
    /// # Errors
    /// The first line that breaks a rule, with its number.
    pub fn parse(content: &[u8], limits: &Limits) -> Result<Self, ChecksumListError> {
        if content.len() as u64 > CHECKSUM_LIST_MAXIMUM_BYTES {
            return Err(ChecksumListError::TooLarge { limit_bytes: CHECKSUM_LIST_MAXIMUM_BYTES });
        }
        let mut files = BTreeMap::new();
        let content = content.strip_suffix(b"\n").unwrap_or(content);
        if content.is_empty() {
            return Ok(Self { files });
        }
        for (index, text) in content.split(|byte| *byte == b'\n').enumerate() {
            let line = index + 1;
            if index >= limits.entries {
                return Err(ChecksumListError::TooManyLines { limit: limits.entries });
            }
            let malformed = || ChecksumListError::Malformed { line };
            let (digest, rest) = text.split_at_checked(64).ok_or_else(malformed)?;
            let path = rest.strip_prefix(b"  ").or_else(|| rest.strip_prefix(b" *")).ok_or_else(malformed)?;
            let digest = std::str::from_utf8(digest).map_err(|_| malformed())?;
            let digest = Sha256Digest::parse(digest).map_err(|problem| ChecksumListError::Digest { line, problem })?;
            let path = EntryPath::parse(path, limits).map_err(|problem| ChecksumListError::Path {
                line,
                path: shown(path),
                problem,
            })?;
            if path.as_str() == CHECKSUM_LIST {
                return Err(ChecksumListError::Itself { line });
            }
            if files.insert(path.as_str().to_owned(), digest).is_some() {
                return Err(ChecksumListError::Duplicate { line, path: shown(path.as_str().as_bytes()) });
            }
        }
        Ok(Self { files })
    }

    /// The digest that a file must have; `None` when it is not listed.
    pub fn get(&self, path: &str) -> Option<&Sha256Digest> {
        self.files.get(path)
    }

    /// Paths and digests, sorted by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Sha256Digest)> {
        self.files.iter().map(|(path, digest)| (path.as_str(), digest))
    }

    /// How many files are listed.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether no file is listed.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

impl FromIterator<(String, Sha256Digest)> for ChecksumList {
    fn from_iter<T: IntoIterator<Item = (String, Sha256Digest)>>(files: T) -> Self {
        Self { files: files.into_iter().collect() }
    }
}

/// Writes the list in the form that [`ChecksumList::parse`] and `sha256sum --check` read.
impl fmt::Display for ChecksumList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|(path, digest)| writeln!(formatter, "{digest}  {path}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(content: &str) -> String {
        ChecksumList::parse(content.as_bytes(), &Limits::default()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_reads_back_sorted() {
        let digest = Sha256Digest::of(b"x");
        let content = format!("{digest}  b/c\n{digest} *a");
        let list = ChecksumList::parse(content.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(list.to_string(), format!("{digest}  a\n{digest}  b/c\n"));
        assert_eq!(ChecksumList::parse(list.to_string().as_bytes(), &Limits::default()).unwrap(), list);
        assert!(ChecksumList::parse(b"", &Limits::default()).unwrap().is_empty());
    }

    #[test]
    fn a_line_that_tools_could_read_differently_is_refused_with_its_number() {
        let digest = Sha256Digest::of(b"x");
        let upper = digest.to_string().to_uppercase();
        for (content, message) in [
            (format!("{digest}  a\n{digest} a\n"), "line 2 of SHA256SUMS is not"),
            (format!("{digest}  a\n\n{digest}  b\n"), "line 2 of SHA256SUMS is not"),
            ("# comment".into(), "line 1 of SHA256SUMS is not"),
            (format!("{upper}  a\n"), "lower-case"),
            (format!("{digest}  ../a\n"), "\"..\" component"),
            (format!("{digest}  /etc/passwd\n"), "absolute"),
            (format!("{digest}  ./a\n"), "\".\" component"),
            (format!("{digest}  a\r\n"), "control character"),
            (format!("{digest}  \n"), "empty"),
            (format!("{digest}  a\n{digest}  a\n"), "line 2 of SHA256SUMS names \"a\" a second time"),
            (format!("{digest}  SHA256SUMS\n"), "names SHA256SUMS itself"),
        ] {
            assert!(refusal(&content).contains(message), "{content}: {}", refusal(&content));
        }
    }

    #[test]
    fn a_list_has_bounds() {
        let digest = Sha256Digest::of(b"x");
        let limits = Limits { entries: 1, ..Limits::default() };
        let error = ChecksumList::parse(format!("{digest}  a\n{digest}  b\n").as_bytes(), &limits).unwrap_err();
        assert_eq!(error, ChecksumListError::TooManyLines { limit: 1 });
        let error = ChecksumList::parse(&vec![b'a'; 1024 * 1024 + 1], &limits).unwrap_err();
        assert!(error.to_string().contains("larger than the limit of 1048576 bytes"), "{error}");
    }
}
