//! Where a download goes: in come pieces of bytes, out come the file and its digest. Hashing and writing happen on a
//! blocking thread, beside the task that receives, so that the network, the processor and the disk work at once.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::fetch::FetchError;
use crate::digest::Sha256Digest;
use crate::fs::Beneath;

/// Pieces that may wait to be written. A piece is what one read of the network gives, some hundred KiB at most.
const PIECES_AHEAD: usize = 16;

/// A file that removes itself unless it is kept: also when the download is cancelled by dropping it.
pub(super) struct Partial {
    place: Beneath,
    keep: bool,
}

impl Partial {
    /// Makes the new file, readable for us only.
    pub(super) fn create(place: Beneath) -> Result<(Self, File), FetchError> {
        let file = place.create_new(0o600).map_err(|source| FetchError::Create { source })?;
        Ok((Self { place, keep: false }, file))
    }

    pub(super) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing to tell anyone while dropping; left-overs in staging are removed at the next start.
            _ = self.place.remove();
        }
    }
}

/// The writing end.
pub(super) struct Sink {
    pieces: mpsc::Sender<Bytes>,
    writer: JoinHandle<std::io::Result<Sha256Digest>>,
    path: PathBuf,
}

impl Sink {
    pub(super) fn start(mut file: File, path: &Path) -> Self {
        let (pieces, mut receiver) = mpsc::channel::<Bytes>(PIECES_AHEAD);
        let writer = tokio::task::spawn_blocking(move || {
            let mut hasher = Sha256::new();
            while let Some(piece) = receiver.blocking_recv() {
                hasher.update(&piece);
                file.write_all(&piece)?;
            }
            Ok(Sha256Digest::from_hasher(hasher))
        });
        Self { pieces, writer, path: path.to_owned() }
    }

    /// Whether the piece was taken; if not, [`Sink::finish`] tells why.
    pub(super) async fn write(&self, piece: Bytes) -> bool {
        self.pieces.send(piece).await.is_ok()
    }

    /// Waits until all is written. It is not flushed to the disk: it is only a source for unpacking.
    pub(super) async fn finish(self) -> Result<Sha256Digest, FetchError> {
        drop(self.pieces);
        let written = self.writer.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        written.map_err(|source| FetchError::Write { path: self.path, source })
    }
}
