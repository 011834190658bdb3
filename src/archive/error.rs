//! Why an archive is refused or could not be handled: one variant per refused property. Paths in the messages are
//! quoted, so that what an attacker writes into a name cannot act on a terminal.

use std::io;
use std::path::PathBuf;

use super::checksums::ChecksumListError;
use super::path::PathProblem;
use super::unwanted::Unwanted;
use crate::digest::Sha256Digest;
use crate::fs::FileError;
use crate::names::{MachineName, NameError};

/// The files, each with what it is.
fn listed(found: &[Unwanted]) -> String {
    found.iter().map(|unwanted| format!("{:?}, which {}", unwanted.path, unwanted.why)).collect::<Vec<_>>().join("; ")
}

/// A refused archive, or a failed step of building, checking or unpacking one.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file operation around the archive failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The archive file could not be read.
    #[error("could not read the archive {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The archive file is larger than [`super::Limits::archive_bytes`].
    #[error("the archive has {bytes} bytes, more than the limit of {limit_bytes}; make it smaller or raise the limit")]
    TooLarge { bytes: u64, limit_bytes: u64 },
    /// The digest of the archive file is not the expected one.
    #[error("the archive's checksum does not match: expected {expected}, found {found}; publish the right one")]
    ArchiveMismatch { expected: Sha256Digest, found: Sha256Digest },

    /// Not gzip, cut short or damaged.
    #[error("the archive is not one whole gzip stream; download or build it again")]
    Gzip { source: io::Error },
    /// A second gzip member follows: other tools would unpack it too, or not.
    #[error("the archive has a second gzip member; build it again with `mms archive build`")]
    SecondGzipMember,
    /// Bytes follow the gzip member.
    #[error("the archive has data after its end; build it again with `mms archive build`")]
    TrailingData,
    /// More comes out than [`super::Limits::expanded_bytes`].
    #[error("the archive expands to more than the limit of {limit_bytes} bytes; make it smaller or raise the limit")]
    ExpandsTooLarge { limit_bytes: u64 },
    /// More comes out per byte than [`super::Limits::expansion_ratio`].
    #[error("the archive expands to more than {limit} times its size, as a zip bomb does; leave out the padding")]
    RatioExceeded { limit: u64 },

    /// The tar stream is cut short or has an invalid header.
    #[error("the archive holds no whole tar stream; build it again with `mms archive build`")]
    Tar { source: io::Error },
    /// Data other than padding follows the tar stream: a second tar, or something hidden.
    #[error("the archive has data after the end of its tar stream; build it again with `mms archive build`")]
    TrailingTarData,
    /// A header of the pre-POSIX tar format, whose names tools read in different ways.
    #[error("archive entry {entry:?} has an unknown tar format; write the archive in the ustar, pax or gnu format")]
    TarFormat { entry: String },
    /// A long name or a PAX header that is larger than any acceptable path.
    #[error("the archive has an extended header of {bytes} bytes, more than the limit of {limit_bytes}; shorten names")]
    ExtendedHeaderTooLarge { bytes: u64, limit_bytes: u64 },
    /// Two extended headers name the same entry.
    #[error("the archive names one entry twice in extended headers; build it again with `mms archive build`")]
    NamedTwice,
    /// A PAX record that changes what other tools would unpack.
    #[error("the archive has the PAX key {key:?}; only path and mtime are accepted: build it with `mms archive build`")]
    PaxKey { key: String },
    /// A PAX header that applies to all later entries.
    #[error("the archive has a global PAX header; build it again with `mms archive build`")]
    PaxGlobal,
    /// A PAX header that does not follow its grammar.
    #[error("the archive has a malformed PAX header: {reason}; build it again with `mms archive build`")]
    PaxMalformed { reason: &'static str },
    /// More than [`super::Limits::entries`] files and directories.
    #[error("the archive has more entries than the limit of {limit}; leave some out or raise the limit")]
    TooManyEntries { limit: usize },

    /// A path that could lead outside or that tools read in different ways.
    #[error("archive entry {entry:?} is refused: {problem}")]
    Path { entry: String, problem: PathProblem },
    /// The same path twice.
    #[error("archive entry {entry:?} is there twice; each path may appear once")]
    Duplicate { entry: String },
    /// Two paths that are one on a file system that ignores case.
    #[error("archive entries {entry:?} and {other:?} differ only in case; rename one of them")]
    DuplicateIgnoringCase { entry: String, other: String },
    /// A file that other entries use as a directory.
    #[error("archive entry {entry:?} is below {file:?}, which is a file; rename one of them")]
    BelowFile { entry: String, file: String },
    /// A link, device, pipe, sparse file or anything else but a file or a directory.
    #[error("archive entry {entry:?} is {kind}; only regular files and directories are accepted")]
    NotRegular { entry: String, kind: &'static str },
    /// A directory with content.
    #[error("archive entry {entry:?} is a directory with content; build the archive again with `mms archive build`")]
    DirectoryWithContent { entry: String },
    /// Another top directory than the machine's name, or a second one.
    #[error("archive entry {entry:?} is not in the top directory {expected:?}; an archive holds only that one")]
    WrongTopDirectory { entry: String, expected: String },
    /// The top of the archive is a file.
    #[error("archive entry {entry:?} is a file at the top; the archive must hold one directory, named as the machine")]
    TopIsFile { entry: String },
    /// The top directory's name is no machine name.
    #[error("the archive's top directory: {0}")]
    TopName(NameError),
    /// Nothing in it.
    #[error("the archive is empty; it must hold one directory, named as the machine")]
    Empty,

    /// No `SHA256SUMS` in the top directory.
    #[error("the archive has no SHA256SUMS in its top directory; build it with `mms archive build`")]
    ChecksumListMissing,
    /// The digest of `SHA256SUMS` is not the one of the specification.
    #[error("the checksum of SHA256SUMS does not match verify_checksum: expected {expected}, found {found}")]
    ChecksumListMismatch { expected: Sha256Digest, found: Sha256Digest },
    /// `SHA256SUMS` is malformed.
    #[error(transparent)]
    ChecksumList(#[from] ChecksumListError),
    /// A file that the list does not have.
    #[error("archive entry {entry:?} is not listed in SHA256SUMS; list it or leave it out")]
    Unlisted { entry: String },
    /// A listed file that the archive does not have.
    #[error("SHA256SUMS lists {entry:?}, which the archive does not hold; add the file or remove the line")]
    Missing { entry: String },
    /// A file with another content than listed.
    #[error("archive entry {entry:?} does not match SHA256SUMS: expected {expected}, found {found}")]
    FileMismatch { entry: String, expected: Sha256Digest, found: Sha256Digest },

    /// The staging directory has something in it already.
    #[error("the staging directory {} is not empty; remove what is in it", path.display())]
    StagingNotEmpty { path: PathBuf },
    /// A file or directory could not be written.
    #[error("could not {operation} {entry:?} from the archive")]
    Write { operation: &'static str, entry: String, source: io::Error },

    /// A file for a new archive that is neither a regular file nor a directory.
    #[error("{} is {kind}; an archive holds only regular files and directories: replace or remove it", path.display())]
    SourceNotRegular { path: PathBuf, kind: &'static str },
    /// Files that no node should get.
    #[error(
        "{name} is not packed, for every node would get {}; move {} away, or give --include for what belongs: {}",
        listed(found),
        if found.len() == 1 { "it" } else { "them" },
        found.iter().map(|unwanted| format!("--include {}", shell_words::quote(&unwanted.path))).collect::<Vec<_>>().join(" ")
    )]
    Unwanted { name: MachineName, found: Vec<Unwanted> },
    /// A directory without files, which an archive cannot keep.
    #[error("{} has no files in it; remove it, or put a file in it", path.display())]
    SourceEmpty { path: PathBuf },
    /// A path that an archive may not hold.
    #[error("{} cannot go into an archive: {problem}", path.display())]
    SourcePath { path: PathBuf, problem: PathProblem },
    /// A file that changed while it was packed.
    #[error("{} changed while it was being packed; try again when nothing writes to it", path.display())]
    SourceChanged { path: PathBuf },
    /// The archive would be written into the directory that it packs, and be part of the next one.
    #[error("the output directory {} is inside the directory to be packed; choose another one", path.display())]
    OutputInside { path: PathBuf },
    /// The new archive could not be written.
    #[error("could not write the archive {}", path.display())]
    WriteArchive { path: PathBuf, source: io::Error },
}
