//! Reads a tar stream member by member: in comes the stream, out come files and directories with their raw names, and
//! an error for all else. Long names (GNU `L`, PAX `path`) are followed here and not by the tar library, which would
//! read them into memory without a bound and honour PAX keys that other tools ignore.

use std::io::{self, Read};

use tar::EntryType;

use super::inflate::refusal;
use super::path::shown;
use super::{ArchiveError, Limits};

/// Largest long name or PAX header: several times the longest path that the limits allow.
const EXTENDED_MAXIMUM_BYTES: u64 = 64 * 1024;

/// Bytes after the end mark are read in pieces of this size.
const PADDING_BUFFER_BYTES: usize = 16 * 1024;

/// One file or directory of the archive; nothing about its path is checked yet.
pub(super) struct Member {
    /// As the archive has it, without the slash that ends a directory's name.
    pub(super) path: Vec<u8>,
    pub(super) kind: MemberKind,
    /// What its header says; the reader gives fewer when the stream is cut.
    pub(super) bytes: u64,
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemberKind {
    Directory,
    File,
    /// A file that anyone may execute.
    Executable,
}

/// A reader that remembers whether its source ended, to tell an end mark from a stream that was cut.
struct Ending<R> {
    reader: R,
    ended: bool,
}

impl<R: Read> Read for Ending<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(into)?;
        self.ended |= count == 0 && !into.is_empty();
        Ok(count)
    }
}

/// Calls `visit` with each member and a reader of its content, in the order of the archive; then checks that the stream
/// has its end mark and nothing but zeros after it.
pub(super) fn for_each_member(
    reader: impl Read,
    limits: &Limits,
    mut visit: impl FnMut(Member, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut archive = tar::Archive::new(Ending { reader, ended: false });
    let mut name = None;
    let mut headers = 0usize;
    for entry in archive.entries().map_err(refusal)?.raw(true) {
        let mut entry = entry.map_err(refusal)?;
        headers += 1;
        // One extended header per member at most, so twice the limit is more than any acceptable archive has.
        if headers > limits.entries.saturating_mul(2) {
            return Err(ArchiveError::TooManyEntries { limit: limits.entries });
        }
        let header_path = entry.header().path_bytes().into_owned();
        if entry.header().as_ustar().is_none() && entry.header().as_gnu().is_none() {
            return Err(ArchiveError::TarFormat { entry: shown(&header_path) });
        }
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let mut long = read_extended(&mut entry)?;
                if long.last() == Some(&0) {
                    long.pop();
                }
                set_name(&mut name, long)?;
                continue;
            }
            EntryType::XHeader => {
                if let Some(path) = pax_path(&read_extended(&mut entry)?)? {
                    set_name(&mut name, path)?;
                }
                continue;
            }
            EntryType::XGlobalHeader => return Err(ArchiveError::PaxGlobal),
            _ => {}
        }
        let path = name.take().unwrap_or(header_path);
        let member = member(entry.header(), path)?;
        visit(member, &mut entry)?;
    }
    if name.is_some() {
        let message = "an extended header has no entry after it";
        return Err(ArchiveError::Tar { source: io::Error::new(io::ErrorKind::UnexpectedEof, message) });
    }
    finish(archive.into_inner())
}

fn set_name(name: &mut Option<Vec<u8>>, new: Vec<u8>) -> Result<(), ArchiveError> {
    match name.replace(new) {
        None => Ok(()),
        Some(_) => Err(ArchiveError::NamedTwice),
    }
}

fn member(header: &tar::Header, mut path: Vec<u8>) -> Result<Member, ArchiveError> {
    let bytes = header.entry_size().map_err(|source| ArchiveError::Tar { source })?;
    let kind = match header.entry_type() {
        EntryType::Regular => {
            let mode = header.mode().map_err(|source| ArchiveError::Tar { source })?;
            if mode & 0o111 == 0 { MemberKind::File } else { MemberKind::Executable }
        }
        EntryType::Directory => {
            if bytes != 0 {
                return Err(ArchiveError::DirectoryWithContent { entry: shown(&path) });
            }
            if path.last() == Some(&b'/') {
                path.pop();
            }
            MemberKind::Directory
        }
        other => {
            let kind = match other {
                EntryType::Link => "a hard link",
                EntryType::Symlink => "a symbolic link",
                EntryType::Char | EntryType::Block => "a device",
                EntryType::Fifo => "a named pipe",
                EntryType::GNUSparse => "a sparse file",
                EntryType::GNULongLink => "a long link name",
                _ => "of an unknown type",
            };
            return Err(ArchiveError::NotRegular { entry: shown(&path), kind });
        }
    };
    Ok(Member { path, kind, bytes })
}

fn read_extended(entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<u8>, ArchiveError> {
    let bytes = entry.size();
    if bytes > EXTENDED_MAXIMUM_BYTES {
        return Err(ArchiveError::ExtendedHeaderTooLarge { bytes, limit_bytes: EXTENDED_MAXIMUM_BYTES });
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content).map_err(refusal)?;
    if content.len() as u64 == bytes { Ok(content) } else { Err(cut_short()) }
}

/// That a member's content ends before its header says.
pub(super) fn cut_short() -> ArchiveError {
    ArchiveError::Tar { source: io::Error::new(io::ErrorKind::UnexpectedEof, "it ends within an entry") }
}

/// The `path` of a PAX header, whose records are `<length> <key>=<value>\n`, the length counting all of the record.
/// Source: POSIX.1-2017, pax, "pax Extended Header".
fn pax_path(mut content: &[u8]) -> Result<Option<Vec<u8>>, ArchiveError> {
    let malformed = |reason| ArchiveError::PaxMalformed { reason };
    let mut path = None;
    while !content.is_empty() {
        let space = content.iter().position(|byte| *byte == b' ').ok_or_else(|| malformed("a length is missing"))?;
        let length = content
            .get(..space)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|digits| digits.parse::<usize>().ok())
            .ok_or_else(|| malformed("a length is no number"))?;
        let (record, rest) = content.split_at_checked(length).ok_or_else(|| malformed("a record is cut short"))?;
        let record = record
            .get(space + 1..)
            .and_then(|record| record.strip_suffix(b"\n"))
            .ok_or_else(|| malformed("a record does not end with a line feed"))?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(|| malformed("a record has no value"))?;
        let (key, value) = record.split_at(equals);
        match key {
            b"path" => {
                let value = value.strip_prefix(b"=").unwrap_or_default().to_vec();
                if path.replace(value).is_some() {
                    return Err(malformed("the key path is there twice"));
                }
            }
            // Times are ours.
            b"mtime" => {}
            _ => return Err(ArchiveError::PaxKey { key: shown(key) }),
        }
        content = rest;
    }
    Ok(path)
}

/// The stream must have its end mark, and only zeros may follow it.
fn finish(mut reader: Ending<impl Read>) -> Result<(), ArchiveError> {
    if reader.ended {
        let message = "it ends without an end mark";
        return Err(ArchiveError::Tar { source: io::Error::new(io::ErrorKind::UnexpectedEof, message) });
    }
    let mut buffer = vec![0u8; PADDING_BUFFER_BYTES];
    loop {
        let count = reader.read(&mut buffer).map_err(refusal)?;
        match buffer.get(..count) {
            None | Some([]) => return Ok(()),
            Some(padding) if padding.iter().any(|byte| *byte != 0) => return Err(ArchiveError::TrailingTarData),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_are_read_to_the_letter() {
        assert_eq!(pax_path(b"12 path=a/b\n16 mtime=1.5000\n").unwrap().as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax_path(b"11 mtime=1\n").unwrap(), None);
        for (content, message) in [
            (&b"10 size=1\n"[..], "the PAX key \"size\""),
            (b"20 SCHILY.xattr.u=1\n", "the PAX key \"SCHILY.xattr.u\""),
            (b"10 path=a\n10 path=b\n", "there twice"),
            (b"99 path=a\n", "cut short"),
            (b"+10 path=a\n", "no number"),
            (b"8 path=a\n", "does not end with a line feed"),
            (b"3 \n", "no value"),
            (b"path", "a length is missing"),
        ] {
            let error = pax_path(content).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
