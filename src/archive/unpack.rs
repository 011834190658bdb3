//! Unpacks an archive: in go the file, the machine's name and the digest of its checksums list; out comes a staging
//! directory that holds exactly the listed files, flushed and read-only, or nothing at all. One thread inflates, this
//! one checks, hashes and writes, others flush.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::thread::{self, Scope};

use sha2::{Digest as _, Sha256};

use super::checksums::{CHECKSUM_LIST, CHECKSUM_LIST_MAXIMUM_BYTES, ChecksumList, ChecksumListError};
use super::executables::Executables;
use super::inflate::{self, refusal};
use super::members::{Member, MemberKind, cut_short, for_each_member};
use super::path::{EntryPath, ancestors, shown};
use super::tree::{EXECUTABLE_MODE, FILE_MODE, Tree};
use super::{ArchiveError, Limits};
use crate::digest::Sha256Digest;
use crate::fs::{self, Directory};
use crate::names::MachineName;

/// Content is hashed and written in pieces of this size.
const COPY_BYTES: usize = 256 * 1024;

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Count of files, `SHA256SUMS` included.
    pub files: usize,
    /// Sum of their sizes.
    pub bytes: u64,
}

/// Unpacks a verified archive file into the new directory `into/<name>`, and writes beside it the record of which
/// files are executable. `into` must exist and be empty; it is empty again after an error. Directories without files
/// are not created: what is on disk is exactly what `SHA256SUMS` lists. Blocks; call it on a blocking thread.
///
/// # Errors
/// The first property of the archive that is refused, or a failed write.
pub fn unpack(
    archive: &Path,
    name: &MachineName,
    into: &Path,
    limits: &Limits,
    verify_checksum: &Sha256Digest,
) -> Result<Unpacked, ArchiveError> {
    let contents = unpack_contents(archive, into, limits, Some(name), Some(verify_checksum))?;
    Ok(Unpacked { files: contents.files.len(), bytes: contents.bytes })
}

/// As [`unpack`], from an open archive into an open directory: nobody who could exchange what is above them leads it
/// elsewhere.
///
/// # Errors
/// As there.
pub fn unpack_open(
    archive: Opened<'_>,
    name: &MachineName,
    into: &Directory,
    limits: &Limits,
    verify_checksum: &Sha256Digest,
) -> Result<Unpacked, ArchiveError> {
    let contents = unpack_checked(archive, into, limits, Some(name), Some(verify_checksum))?;
    Ok(Unpacked { files: contents.files.len(), bytes: contents.bytes })
}

/// An open archive, with its path for messages.
pub struct Opened<'a> {
    pub file: File,
    pub path: &'a Path,
}

/// All that unpacking learns about an archive.
pub(super) struct Contents {
    pub(super) name: MachineName,
    pub(super) verify_checksum: Sha256Digest,
    /// By path below the machine's directory.
    pub(super) files: BTreeMap<String, UnpackedFile>,
    pub(super) bytes: u64,
}

/// One file of an archive.
pub(super) struct UnpackedFile {
    pub(super) digest: Sha256Digest,
    pub(super) bytes: u64,
    pub(super) executable: bool,
}

/// As [`unpack`]; without a name the archive's own top directory decides, without a digest any list is accepted.
pub(super) fn unpack_contents(
    archive: &Path,
    into: &Path,
    limits: &Limits,
    name: Option<&MachineName>,
    verify_checksum: Option<&Sha256Digest>,
) -> Result<Contents, ArchiveError> {
    let (into, file) = (Directory::open(into)?, fs::open(archive)?);
    unpack_checked(Opened { file, path: archive }, &into, limits, name, verify_checksum)
}

fn unpack_checked(
    archive: Opened<'_>,
    into: &Directory,
    limits: &Limits,
    name: Option<&MachineName>,
    verify_checksum: Option<&Sha256Digest>,
) -> Result<Contents, ArchiveError> {
    if !into.names()?.is_empty() {
        return Err(ArchiveError::StagingNotEmpty { path: into.path().to_owned() });
    }
    let result = attempt(archive, into, limits, name, verify_checksum);
    if result.is_err() {
        // Why the archive was refused matters more than why a left-over stays; staging is cleared at the next start.
        for name in into.names().unwrap_or_default() {
            _ = into.remove_tree(&name);
        }
    }
    result
}

fn attempt(
    archive: Opened<'_>,
    into: &Directory,
    limits: &Limits,
    name: Option<&MachineName>,
    verify_checksum: Option<&Sha256Digest>,
) -> Result<Contents, ArchiveError> {
    let Opened { file, path } = archive;
    let read = |source| ArchiveError::Read { path: path.to_owned(), source };
    let bytes = file.metadata().map_err(read)?.len();
    if bytes > limits.archive_bytes {
        return Err(ArchiveError::TooLarge { bytes, limit_bytes: limits.archive_bytes });
    }
    let contents = thread::scope(|scope| {
        let inflated = inflate::start(scope, file, bytes, limits).map_err(read)?;
        let mut unpacker = Unpacker {
            scope,
            into,
            limits,
            expected_name: name,
            expected_list: verify_checksum,
            top: None,
            nodes: HashMap::new(),
            list: None,
            files: BTreeMap::new(),
            bytes: 0,
            buffer: vec![0; COPY_BYTES],
        };
        for_each_member(inflated, limits, |member, content| unpacker.take(&member, content))?;
        unpacker.finish()
    })?;
    let executable = contents.files.iter().filter(|(_, file)| file.executable);
    let executables: BTreeSet<String> = executable.map(|(path, _)| path.clone()).collect();
    Executables { executables }.write(into)?;
    into.flush()?;
    Ok(contents)
}

/// A path that the archive has used.
struct Node {
    path: String,
    kind: NodeKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NodeKind {
    File,
    Directory,
    /// Known only as part of another path; its own entry may still come.
    ImpliedDirectory,
}

struct Unpacker<'scope, 'environment, 'a> {
    scope: &'scope Scope<'scope, 'environment>,
    into: &'a Directory,
    limits: &'a Limits,
    expected_name: Option<&'a MachineName>,
    expected_list: Option<&'a Sha256Digest>,
    top: Option<(MachineName, Tree<'scope>)>,
    /// By the path in lower case.
    nodes: HashMap<String, Node>,
    list: Option<(Sha256Digest, ChecksumList)>,
    files: BTreeMap<String, UnpackedFile>,
    bytes: u64,
    buffer: Vec<u8>,
}

impl Unpacker<'_, '_, '_> {
    fn take(&mut self, member: &Member, content: &mut dyn Read) -> Result<(), ArchiveError> {
        let path = EntryPath::parse(&member.path, self.limits)
            .map_err(|problem| ArchiveError::Path { entry: shown(&member.path), problem })?;
        let (top, rest) = path.split_top();
        self.check_top(top, &path)?;
        self.note(&path, member.kind)?;
        let executable = match member.kind {
            // Made when a file needs it.
            MemberKind::Directory => return Ok(()),
            MemberKind::File => false,
            MemberKind::Executable => true,
        };
        let Some(relative) = rest else {
            return Err(ArchiveError::TopIsFile { entry: shown(&member.path) });
        };
        if relative == CHECKSUM_LIST {
            self.take_list(member.bytes, content)
        } else {
            self.take_file(relative, executable, member.bytes, content)
        }
    }

    /// The first entry opens the staging directory, all others must be below the same top.
    fn check_top(&mut self, top: &str, path: &EntryPath) -> Result<(), ArchiveError> {
        let wrong = |expected: &MachineName| ArchiveError::WrongTopDirectory {
            entry: shown(path.as_str().as_bytes()),
            expected: expected.as_str().to_owned(),
        };
        match (&self.top, self.expected_name) {
            (Some((name, _)), _) if name.as_str() == top => Ok(()),
            (Some((name, _)), _) => Err(wrong(name)),
            (None, Some(name)) if name.as_str() != top => Err(wrong(name)),
            (None, _) => {
                let name = MachineName::new(top).map_err(ArchiveError::TopName)?;
                let tree = Tree::create(self.scope, self.into, top)?;
                self.top = Some((name, tree));
                Ok(())
            }
        }
    }

    /// Refuses a path that was used before, also in another case or as something else.
    fn note(&mut self, path: &EntryPath, kind: MemberKind) -> Result<(), ArchiveError> {
        for ancestor in ancestors(path.as_str()) {
            self.note_one(ancestor, path, NodeKind::ImpliedDirectory)?;
        }
        let kind = if kind == MemberKind::Directory { NodeKind::Directory } else { NodeKind::File };
        self.note_one(path.as_str(), path, kind)
    }

    fn note_one(&mut self, node: &str, path: &EntryPath, kind: NodeKind) -> Result<(), ArchiveError> {
        let entry = || shown(path.as_str().as_bytes());
        let count = self.nodes.len();
        let known = match self.nodes.entry(node.to_lowercase()) {
            std::collections::hash_map::Entry::Vacant(_) if count >= self.limits.entries => {
                return Err(ArchiveError::TooManyEntries { limit: self.limits.entries });
            }
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(Node { path: node.to_owned(), kind });
                return Ok(());
            }
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
        };
        if known.path != node {
            let other = shown(known.path.as_bytes());
            return Err(ArchiveError::DuplicateIgnoringCase { entry: shown(node.as_bytes()), other });
        }
        match (known.kind, kind) {
            (NodeKind::File, NodeKind::ImpliedDirectory) => {
                Err(ArchiveError::BelowFile { entry: entry(), file: shown(node.as_bytes()) })
            }
            (_, NodeKind::ImpliedDirectory) => Ok(()),
            (NodeKind::ImpliedDirectory, NodeKind::Directory) => {
                known.kind = kind;
                Ok(())
            }
            _ => Err(ArchiveError::Duplicate { entry: entry() }),
        }
    }

    /// The list is small: it is read whole, judged, and only then written.
    fn take_list(&mut self, size_bytes: u64, content: &mut dyn Read) -> Result<(), ArchiveError> {
        if size_bytes > CHECKSUM_LIST_MAXIMUM_BYTES {
            return Err(ChecksumListError::TooLarge { limit_bytes: CHECKSUM_LIST_MAXIMUM_BYTES }.into());
        }
        let mut list = Vec::new();
        content.read_to_end(&mut list).map_err(refusal)?;
        if list.len() as u64 != size_bytes {
            return Err(cut_short());
        }
        let found = Sha256Digest::of(&list);
        if let Some(&expected) = self.expected_list.filter(|expected| **expected != found) {
            return Err(ArchiveError::ChecksumListMismatch { expected, found });
        }
        self.list = Some((found, ChecksumList::parse(&list, self.limits)?));
        self.take_file(CHECKSUM_LIST, false, size_bytes, &mut list.as_slice())
    }

    fn take_file(
        &mut self,
        relative: &str,
        executable: bool,
        size_bytes: u64,
        content: &mut dyn Read,
    ) -> Result<(), ArchiveError> {
        let Some((_, tree)) = &mut self.top else { return Err(ArchiveError::Empty) };
        let mut file = tree.create_file(relative)?;
        let mut hasher = Sha256::new();
        let mut bytes = 0u64;
        loop {
            let count = content.read(&mut self.buffer).map_err(refusal)?;
            let Some(piece) = self.buffer.get(..count).filter(|piece| !piece.is_empty()) else { break };
            hasher.update(piece);
            file.write(piece)?;
            bytes += count as u64;
        }
        if bytes != size_bytes {
            return Err(cut_short());
        }
        let unpacked = UnpackedFile { digest: Sha256Digest::from_hasher(hasher), bytes, executable };
        // When the list came first, a wrong file is refused before the rest is written.
        if let Some((_, list)) = &self.list {
            check_listed(list, relative, &unpacked)?;
        }
        file.finish(if executable { EXECUTABLE_MODE } else { FILE_MODE })?;
        self.bytes += bytes;
        self.files.insert(relative.to_owned(), unpacked);
        Ok(())
    }

    fn finish(self) -> Result<Contents, ArchiveError> {
        let (name, tree) = self.top.ok_or(ArchiveError::Empty)?;
        let (verify_checksum, list) = self.list.ok_or(ArchiveError::ChecksumListMissing)?;
        for (path, file) in &self.files {
            check_listed(&list, path, file)?;
        }
        if let Some((path, _)) = list.iter().find(|(path, _)| !self.files.contains_key(*path)) {
            return Err(ArchiveError::Missing { entry: shown(path.as_bytes()) });
        }
        tree.finish()?;
        Ok(Contents { name, verify_checksum, files: self.files, bytes: self.bytes })
    }
}

fn check_listed(list: &ChecksumList, path: &str, file: &UnpackedFile) -> Result<(), ArchiveError> {
    if path == CHECKSUM_LIST {
        return Ok(());
    }
    let entry = shown(path.as_bytes());
    match list.get(path) {
        None => Err(ArchiveError::Unlisted { entry }),
        Some(&expected) if expected != file.digest => {
            Err(ArchiveError::FileMismatch { entry, expected, found: file.digest })
        }
        Some(_) => Ok(()),
    }
}
