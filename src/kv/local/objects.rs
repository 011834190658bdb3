//! Objects of the embedded store: plain files `objects/BUCKET/<sha256 of the name>` beside the database, written whole
//! or not at all. Content is streamed both ways.

use std::path::{Path, PathBuf};

use tokio::io::AsyncWriteExt as _;

use crate::digest::Sha256Digest;
use crate::fs;
use crate::kv::{KvError, ObjectReader, check_bucket};

/// The digest, as names of objects may hold anything.
fn location(database: &Path, bucket: &str, name: &str) -> PathBuf {
    let directory = database.parent().unwrap_or(Path::new(""));
    directory.join("objects").join(bucket).join(Sha256Digest::of(name.as_bytes()).to_string())
}

pub(super) async fn get(database: &Path, bucket: &str, name: &str) -> Result<ObjectReader, KvError> {
    check_bucket(bucket)?;
    let path = location(database, bucket, name);
    let absent = KvError::NoObject { bucket: bucket.to_owned(), name: name.to_owned() };
    let opened = blocking("open an object", move || match fs::open(&path) {
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Err(absent),
        result => Ok(result?),
    });
    Ok(Box::pin(tokio::fs::File::from_std(opened.await?)))
}

pub(super) async fn put(database: &Path, bucket: &str, name: &str, mut content: ObjectReader) -> Result<(), KvError> {
    check_bucket(bucket)?;
    let failed = |source: std::io::Error| KvError::Object {
        operation: "store",
        bucket: bucket.to_owned(),
        name: name.to_owned(),
        source: Box::new(source),
    };
    let path = location(database, bucket, name);
    let directory = path.parent().unwrap_or(Path::new("")).to_owned();
    let staged = blocking("make a directory for objects", move || {
        fs::create_directory(&directory, 0o700)?;
        let staged = tempfile::Builder::new().prefix(".staged-").tempfile_in(&directory);
        staged.map_err(|source| fs::FileError { operation: "create a file in", path: directory, source }.into())
    });
    // The path removes the file when dropped, also when this future is.
    let (file, staged) = staged.await?.into_parts();
    let mut file = tokio::fs::File::from_std(file);
    tokio::io::copy(&mut content, &mut file).await.map_err(failed)?;
    file.flush().await.map_err(failed)?;
    file.sync_all().await.map_err(failed)?;
    let put_in_place = blocking("put an object in place", move || {
        // Replaces an object of the same name; who reads the old one reads on.
        fs::rename(&staged, &path)?;
        let _ = staged.keep();
        Ok(())
    });
    put_in_place.await
}

async fn blocking<T: Send + 'static>(
    operation: &str,
    work: impl FnOnce() -> Result<T, KvError> + Send + 'static,
) -> Result<T, KvError> {
    let stopping = |_| KvError::Stopping { operation: operation.to_owned() };
    tokio::task::spawn_blocking(work).await.map_err(stopping)?
}
