//! Builds the archive of a machine and judges archives: in goes a directory (or an archive file), out comes
//! `name-version.tgz` with its two checksums. The same directory gives the same bytes on every machine, whoever owns
//! the files and whenever they changed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};

use super::checksums::{CHECKSUM_LIST, ChecksumList};
use super::path::{EntryPath, ancestors};
use super::unpack::unpack_contents;
use super::unwanted::{self, Included};
use super::{ArchiveError, Limits};
use crate::digest::Sha256Digest;
use crate::fs;
use crate::names::{MachineName, Version};

/// A new archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// `name-version.tgz` in the output directory.
    pub path: PathBuf,
    pub name: MachineName,
    pub version: Version,
    /// Digest of the archive file.
    pub checksum: Sha256Digest,
    /// Digest of the `SHA256SUMS` in it.
    pub verify_checksum: Sha256Digest,
    /// What is in it, sorted by path.
    pub files: Vec<CheckedFile>,
}

/// An archive that a node would accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Its top directory.
    pub name: MachineName,
    /// Digest of the archive file.
    pub checksum: Sha256Digest,
    /// Digest of the `SHA256SUMS` in it.
    pub verify_checksum: Sha256Digest,
    /// What is in it, `SHA256SUMS` included, sorted by path.
    pub files: Vec<CheckedFile>,
    /// Sum of the files' sizes.
    pub bytes: u64,
}

/// One file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedFile {
    /// Below the top directory.
    pub path: String,
    pub bytes: u64,
    pub executable: bool,
    pub digest: Sha256Digest,
}

/// What an archive must be; each one is asked for only when given.
#[derive(Debug, Clone, Default)]
pub struct Expectation {
    pub name: Option<MachineName>,
    pub checksum: Option<Sha256Digest>,
    pub verify_checksum: Option<Sha256Digest>,
}

/// Judges an archive exactly as a node does: by unpacking it, into a temporary directory that is removed again.
///
/// # Errors
/// The first property that is refused.
pub fn check(archive: &Path, expectation: &Expectation, limits: &Limits) -> Result<Checked, ArchiveError> {
    let read = |source| ArchiveError::Read { path: archive.to_owned(), source };
    let file = fs::open(archive)?;
    let bytes = file.metadata().map_err(read)?.len();
    if bytes > limits.archive_bytes {
        return Err(ArchiveError::TooLarge { bytes, limit_bytes: limits.archive_bytes });
    }
    let (checksum, _) = Sha256Digest::of_reader(file).map_err(read)?;
    if let Some(expected) = expectation.checksum.filter(|expected| *expected != checksum) {
        return Err(ArchiveError::ArchiveMismatch { expected, found: checksum });
    }
    let staging = tempfile::tempdir().map_err(|source| {
        let (operation, entry) = ("make a temporary directory for", archive.display().to_string());
        ArchiveError::Write { operation, entry, source }
    })?;
    let name = expectation.name.as_ref();
    let contents = unpack_contents(archive, staging.path(), limits, name, expectation.verify_checksum.as_ref())?;
    // Its directories are read-only, which the temporary directory's own removal does not expect.
    fs::remove_tree(staging.path())?;
    let files = contents.files.into_iter().map(|(path, file)| CheckedFile {
        path,
        bytes: file.bytes,
        executable: file.executable,
        digest: file.digest,
    });
    let files = files.collect();
    let (name, verify_checksum) = (contents.name, contents.verify_checksum);
    Ok(Checked { name, checksum, verify_checksum, files, bytes: contents.bytes })
}

/// Packs a directory as `name-version.tgz` into the output directory, replacing one of that name. A `SHA256SUMS` in the
/// directory is not read: the archive gets a fresh one. The result has passed [`check`].
///
/// # Errors
/// Anything in the directory that a node would refuse, secrets and left-overs, and failed reads and writes; no archive is then left, and an
/// older one is still in place.
pub fn build(
    directory: &Path,
    name: &MachineName,
    version: &Version,
    output_directory: &Path,
    limits: &Limits,
) -> Result<Built, ArchiveError> {
    build_including(directory, name, version, output_directory, limits, &[])
}

/// As [`build`], with files that would be refused as secrets or left-overs.
///
/// # Errors
/// As there.
pub fn build_including(
    directory: &Path,
    name: &MachineName,
    version: &Version,
    output_directory: &Path,
    limits: &Limits,
    included: &[Included],
) -> Result<Built, ArchiveError> {
    let canonical =
        |path: &Path| path.canonicalize().map_err(|source| ArchiveError::Read { path: path.to_owned(), source });
    let source_directory = canonical(directory)?;
    if canonical(output_directory)?.starts_with(&source_directory) {
        return Err(ArchiveError::OutputInside { path: output_directory.to_owned() });
    }
    let mut sources = BTreeMap::new();
    collect(&source_directory, name.as_str(), limits, &mut sources)?;
    refuse_unwanted(name, &sources, included)?;

    let path = output_directory.join(format!("{name}-{version}.tgz"));
    let staged = output_directory.join(format!(".{name}-{version}.tgz.{}", uuid::Uuid::new_v4().simple()));
    let expectation = Expectation { name: Some(name.clone()), ..Expectation::default() };
    let checked = write_archive(&staged, name, &sources).and_then(|()| check(&staged, &expectation, limits));
    let placed = checked.and_then(|checked| {
        fs::rename(&staged, &path)?;
        Ok(checked)
    });
    if placed.is_err() {
        // Why there is no archive matters more than why a left-over stays.
        _ = fs::remove_file(&staged);
    }
    let Checked { checksum, verify_checksum, files, .. } = placed?;
    Ok(Built { path, name: name.clone(), version: version.clone(), checksum, verify_checksum, files })
}

/// What every node gets must not hold what no node should know.
fn refuse_unwanted(
    name: &MachineName,
    sources: &BTreeMap<String, Source>,
    included: &[Included],
) -> Result<(), ArchiveError> {
    let mut found = Vec::new();
    for (archived, source) in sources {
        let path = archived.split_once('/').map_or(archived.as_str(), |(_, path)| path);
        let read = |error| ArchiveError::Read { path: source.path.clone(), source: error };
        let mut beginning = Vec::new();
        fs::open(&source.path)?.take(unwanted::LOOKED_AT_BYTES).read_to_end(&mut beginning).map_err(read)?;
        found.extend(unwanted::judge(path, &beginning, included));
    }
    if found.is_empty() { Ok(()) } else { Err(ArchiveError::Unwanted { name: name.clone(), found }) }
}

/// A file to be packed.
struct Source {
    path: PathBuf,
    bytes: u64,
    executable: bool,
    digest: Sha256Digest,
}

/// Fills `sources`, by path in the archive, with all files below `directory`.
fn collect(
    directory: &Path,
    prefix: &str,
    limits: &Limits,
    sources: &mut BTreeMap<String, Source>,
) -> Result<(), ArchiveError> {
    let entries = fs::list(directory)?;
    if entries.is_empty() {
        return Err(ArchiveError::SourceEmpty { path: directory.to_owned() });
    }
    for entry in entries {
        let path = entry.path();
        let read = |source| ArchiveError::Read { path: path.clone(), source };
        let name = entry.file_name();
        let archived = EntryPath::parse(&[prefix.as_bytes(), b"/", name.as_bytes()].concat(), limits)
            .map_err(|problem| ArchiveError::SourcePath { path: path.clone(), problem })?;
        let metadata = path.symlink_metadata().map_err(read)?;
        if metadata.is_dir() {
            collect(&path, archived.as_str(), limits, sources)?;
        } else if !metadata.is_file() {
            let kind = if metadata.is_symlink() { "a symbolic link" } else { "a socket, pipe or device" };
            return Err(ArchiveError::SourceNotRegular { path, kind });
        } else if archived.split_top().1 == Some(CHECKSUM_LIST) {
            // The archive gets its own.
        } else {
            if sources.len() >= limits.entries {
                return Err(ArchiveError::TooManyEntries { limit: limits.entries });
            }
            let executable = metadata.permissions().mode() & 0o111 != 0;
            let (digest, bytes) = Sha256Digest::of_reader(fs::open(&path)?).map_err(read)?;
            sources.insert(archived.as_str().to_owned(), Source { path, bytes, executable, digest });
        }
    }
    Ok(())
}

/// The list first, so that a node refuses a wrong file before it writes the next.
fn write_archive(path: &Path, name: &MachineName, sources: &BTreeMap<String, Source>) -> Result<(), ArchiveError> {
    let failed = |source| ArchiveError::WriteArchive { path: path.to_owned(), source };
    let top = format!("{name}/");
    let relative = |path: &str| path.strip_prefix(&top).unwrap_or(path).to_owned();
    let list: ChecksumList = sources.iter().map(|(path, source)| (relative(path), source.digest)).collect();
    let list = list.to_string();

    let file = fs::create_new(path, 0o644)?;
    // No name and no time in the gzip header, and "unknown" for the operating system.
    let gzip = GzBuilder::new().mtime(0).operating_system(255).write(file, Compression::default());
    let mut archive = tar::Builder::new(gzip);
    append(&mut archive, tar::EntryType::Directory, &top, 0o755, 0, io::empty()).map_err(failed)?;
    let list_path = format!("{top}{CHECKSUM_LIST}");
    let list_bytes = list.len() as u64;
    append(&mut archive, tar::EntryType::Regular, &list_path, 0o644, list_bytes, list.as_bytes()).map_err(failed)?;
    let mut directories = std::collections::BTreeSet::from([name.as_str()]);
    for (archived, source) in sources {
        for directory in ancestors(archived).filter(|directory| directories.insert(directory)) {
            let directory = format!("{directory}/");
            append(&mut archive, tar::EntryType::Directory, &directory, 0o755, 0, io::empty()).map_err(failed)?;
        }
        let mode = if source.executable { 0o755 } else { 0o644 };
        let mut content = Unchanged::open(source)?;
        append(&mut archive, tar::EntryType::Regular, archived, mode, source.bytes, &mut content).map_err(failed)?;
        content.finish(source)?;
    }
    let gzip = archive.into_inner().map_err(failed)?;
    gzip.finish().and_then(|mut file| file.flush().and_then(|()| file.sync_all())).map_err(failed)
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    kind: tar::EntryType,
    path: &str,
    mode: u32,
    bytes: u64,
    content: impl Read,
) -> io::Result<()> {
    // A new header has no owner, no group and the time 0.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes);
    archive.append_data(&mut header, path, content)
}

/// Reads a file that must still be what it was when it was hashed: exactly so many bytes, and the same ones.
struct Unchanged {
    file: io::Take<File>,
    missing: u64,
    hasher: sha2::Sha256,
}

impl Unchanged {
    fn open(source: &Source) -> Result<Self, ArchiveError> {
        let file = fs::open(&source.path)?.take(source.bytes);
        Ok(Self { file, missing: source.bytes, hasher: sha2::Digest::new() })
    }

    fn finish(self, source: &Source) -> Result<(), ArchiveError> {
        if self.missing == 0 && Sha256Digest::from_hasher(self.hasher) == source.digest {
            Ok(())
        } else {
            Err(ArchiveError::SourceChanged { path: source.path.clone() })
        }
    }
}

impl Read for Unchanged {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(into)?;
        self.missing = self.missing.saturating_sub(count as u64);
        sha2::Digest::update(&mut self.hasher, into.get(..count).unwrap_or_default());
        Ok(count)
    }
}
