//! What tells of changes in the operator's own machines: `local_dir`, and each machine's directory in it, where
//! `machine.yaml` is.
//!
//! Nothing below those is watched. It may belong to whom a machine serves, and whoever can make links and directories there
//! could have us walk and watch the whole node.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// Which directory it is: one that was replaced by another of the same name tells nothing any more. Device and inode, and
/// when it was made, because an inode is soon used again.
type DirectoryId = (u64, u64, Option<SystemTime>);

/// The system's watch on some directories.
pub(super) struct Notices {
    directories: Vec<(PathBuf, DirectoryId)>,
    _watcher: Option<RecommendedWatcher>,
}

impl Notices {
    /// Watches the directory with its machines, or the one above it, which tells when it appears. `before` is kept when it
    /// watches just that. Where the system does not tell, the rescan must do.
    pub(super) fn of(local: &Path, rescan: &Arc<Notify>, before: Option<Self>) -> Self {
        let directories = directories(local);
        match before {
            Some(before) if before.directories == directories => before,
            _ => Self { _watcher: watch(&directories, rescan), directories },
        }
    }
}

fn directories(local: &Path) -> Vec<(PathBuf, DirectoryId)> {
    let Some(id) = directory_id(local) else {
        let above = local.parent().map(Path::to_owned);
        return above.into_iter().filter_map(|above| Some((above.clone(), directory_id(&above)?))).collect();
    };
    let machines = crate::fs::list(local).unwrap_or_default().into_iter().filter_map(|entry| {
        let path = entry.path();
        let id = directory_id(&path)?;
        Some((path, id))
    });
    let mut all: Vec<_> = machines.collect();
    all.sort_unstable();
    all.insert(0, (local.to_owned(), id));
    all
}

fn directory_id(path: &Path) -> Option<DirectoryId> {
    let metadata = std::fs::metadata(path).ok().filter(Metadata::is_dir)?;
    Some((metadata.dev(), metadata.ino(), metadata.created().ok()))
}

fn watch(directories: &[(PathBuf, DirectoryId)], rescan: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let rescan = Arc::clone(rescan);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            rescan.notify_one();
        }
    });
    let not_watched = |path: &Path, error: &notify::Error| {
        tracing::debug!(path = %path.display(), "not watched: {error}");
    };
    let first = directories.first().map_or(Path::new("."), |(path, _)| path);
    let mut watcher = watcher.map_err(|error| not_watched(first, &error)).ok()?;
    for (path, _) in directories {
        if let Err(error) = watcher.watch(path, RecursiveMode::NonRecursive) {
            not_watched(path, &error);
        }
    }
    Some(watcher)
}
