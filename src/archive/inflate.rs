//! Inflates an archive file on a thread of its own: in goes the file, out comes a reader of the tar stream. Exactly
//! one gzip member is accepted, and the bounds on what comes out hold before it is handed on, so that a bomb costs a
//! few buffers and nothing else.

#![expect(clippy::disallowed_types, reason = "the one place that inflates, with bounds")]

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, Scope};

use flate2::bufread::GzDecoder;

use super::{ArchiveError, Limits};

/// One buffer between inflating and hashing: large enough that handing it over costs nothing.
const BUFFER_BYTES: usize = 256 * 1024;

/// How far inflating may run ahead; with the one being filled and the one being read, 1.5 MiB in all.
const BUFFERS_AHEAD: usize = 4;

/// The reading end. Its errors carry an [`ArchiveError`]; [`refusal`] takes it out again.
pub(super) struct Inflated {
    filled: Receiver<Result<Vec<u8>, ArchiveError>>,
    emptied: Sender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
}

/// Starts the thread. It ends by itself when the reader is dropped.
pub(super) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    archive: File,
    archive_bytes: u64,
    limits: &Limits,
) -> io::Result<Inflated> {
    let (filled_sender, filled) = sync_channel(BUFFERS_AHEAD);
    let (emptied, emptied_receiver) = channel();
    let limits = limits.clone();
    thread::Builder::new().name("inflate".into()).spawn_scoped(scope, move || {
        if let Err(error) = inflate(archive, archive_bytes, &limits, &filled_sender, &emptied_receiver) {
            // Nobody is listening any more when the archive was refused for another reason already.
            _ = filled_sender.send(Err(error));
        }
    })?;
    Ok(Inflated { filled, emptied, current: Vec::new(), position: 0 })
}

fn inflate(
    archive: File,
    archive_bytes: u64,
    limits: &Limits,
    filled: &SyncSender<Result<Vec<u8>, ArchiveError>>,
    emptied: &Receiver<Vec<u8>>,
) -> Result<(), ArchiveError> {
    let gzip = |source| ArchiveError::Gzip { source };
    let ratio_bytes = archive_bytes.saturating_mul(limits.expansion_ratio);
    let mut decoder = GzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, archive));
    let mut total = 0u64;
    loop {
        let mut buffer = emptied.try_recv().unwrap_or_default();
        buffer.resize(BUFFER_BYTES, 0);
        let count = fill(&mut decoder, &mut buffer).map_err(gzip)?;
        if count == 0 {
            break;
        }
        total += count as u64;
        if total > limits.expanded_bytes {
            return Err(ArchiveError::ExpandsTooLarge { limit_bytes: limits.expanded_bytes });
        }
        if total > ratio_bytes {
            return Err(ArchiveError::RatioExceeded { limit: limits.expansion_ratio });
        }
        buffer.truncate(count);
        if filled.send(Ok(buffer)).is_err() {
            return Ok(());
        }
    }
    // The decoder stops after one member; that nothing follows it is for us to see.
    let mut rest = decoder.into_inner();
    match rest.fill_buf().map_err(gzip)? {
        [] => Ok(()),
        [0x1f, 0x8b, ..] => Err(ArchiveError::SecondGzipMember),
        _ => Err(ArchiveError::TrailingData),
    }
}

/// Reads until the buffer is full or the stream ends.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while let Some(rest) = buffer.get_mut(count..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

impl Read for Inflated {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.current.len() {
            let next = match self.filled.recv() {
                Ok(next) => next.map_err(io::Error::other)?,
                Err(_) => return Ok(0),
            };
            _ = self.emptied.send(std::mem::replace(&mut self.current, next));
            self.position = 0;
        }
        let rest = self.current.get(self.position..).unwrap_or_default();
        let count = rest.len().min(into.len());
        if let (Some(into), Some(rest)) = (into.get_mut(..count), rest.get(..count)) {
            into.copy_from_slice(rest);
        }
        self.position += count;
        Ok(count)
    }
}

/// The refusal inside an error of [`Inflated`]; any other error is one of the tar stream.
pub(super) fn refusal(error: io::Error) -> ArchiveError {
    match error.downcast::<ArchiveError>() {
        Ok(refusal) => refusal,
        Err(source) => ArchiveError::Tar { source },
    }
}
