//! What is in the directories, and whether it is what was there before.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::Sha256Digest;
use crate::machine::definition::{Definition, FILE_NAME};

use super::{Setup, Source};

/// A machine that is there.
#[derive(Debug, Clone)]
pub struct Found {
    pub source: Source,
    /// The entry in the scanned directory.
    pub path: PathBuf,
    pub built_in: Option<Arc<Definition>>,
    fingerprint: Fingerprint,
}

/// Cheap to take, and different whenever the machine must be loaded again.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fingerprint {
    /// Of the definition, which the settings decide.
    BuiltIn(Sha256Digest),
    /// Inode, size, and times of machine.yaml in nanoseconds; `None` when there is no such file.
    File(Option<(u64, u64, i128, i128)>),
    /// Where the link of a managed machine leads: sync never changes what is installed in place.
    Link(Option<PathBuf>),
}

impl Found {
    /// Whether nothing changed since.
    pub fn same_as(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

/// What a scan gives.
pub struct Scan {
    /// Every machine by source and path.
    pub found: BTreeMap<(Source, PathBuf), Found>,
    /// Sources whose directory could not be listed, and why: what runs from there must not be stopped for that.
    pub unreadable: BTreeMap<Source, String>,
}

/// Looks at all directories.
pub async fn scan(setup: &Setup) -> Scan {
    let mut all = BTreeMap::new();
    for definition in &setup.built_in {
        let path = PathBuf::from(definition.name.as_str());
        let found = Found {
            source: Source::BuiltIn,
            path: path.clone(),
            built_in: Some(Arc::clone(definition)),
            fingerprint: Fingerprint::BuiltIn(definition.digest),
        };
        all.insert((Source::BuiltIn, path), found);
    }
    let directories =
        [(Source::Local, setup.local_directory.clone()), (Source::Managed, setup.managed_directory.clone())];
    let scanned = tokio::task::spawn_blocking(move || {
        let (mut found, mut unreadable) = (Vec::new(), BTreeMap::new());
        for (source, directory) in directories {
            let Some(directory) = directory else { continue };
            match crate::fs::list(&directory) {
                Ok(entries) => found.extend(entries.iter().filter_map(|entry| inspect(source, &entry.path()))),
                Err(error) => _ = unreadable.insert(source, crate::errors::chain(&error)),
            }
        }
        (found, unreadable)
    });
    let (found, unreadable) = scanned.await.unwrap_or_else(|error| {
        let both = [Source::Local, Source::Managed];
        (Vec::new(), both.into_iter().map(|source| (source, error.to_string())).collect())
    });
    all.extend(found.into_iter().map(|found| ((found.source, found.path.clone()), found)));
    Scan { found: all, unreadable }
}

fn inspect(source: Source, path: &Path) -> Option<Found> {
    let name = path.file_name()?.to_str()?;
    if name == "tmp" || name.starts_with('.') || name.ends_with("-temp") {
        return None;
    }
    let fingerprint = match source {
        Source::Managed => Fingerprint::Link(std::fs::read_link(path).ok()),
        _ if !path.is_dir() => return None,
        _ => Fingerprint::File(std::fs::metadata(path.join(FILE_NAME)).ok().map(|file| {
            let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
            (file.ino(), file.len(), nanos(file.mtime(), file.mtime_nsec()), nanos(file.ctime(), file.ctime_nsec()))
        })),
    };
    Some(Found { source, path: path.to_owned(), built_in: None, fingerprint })
}
