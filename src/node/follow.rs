//! Facts that live: reads the facts files again when they change. In: the files. Out: new facts of the node.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use super::{FactsFiles, Node};

/// The safety net below `notify`; also how old the built-in facts may be, for example the addresses.
const POLL: Duration = Duration::from_secs(60);
/// Files are written in several steps.
const SETTLE: Duration = Duration::from_millis(200);

/// Keeps the facts of a node as the files have them, until dropped. While a file can't be used the facts can't be used
/// either, and the log says why, once.
pub async fn follow(node: Arc<Node>, files: Arc<FactsFiles>) {
    let changed = Arc::new(Notify::new());
    let watcher = watch(files.paths(), &changed);
    if let Err(error) = &watcher {
        tracing::debug!("changes of the facts files are found by polling only: {error}");
    }
    loop {
        _ = tokio::time::timeout(POLL, changed.notified()).await;
        tokio::time::sleep(SETTLE).await;
        let (identity, reading) = (node.identity.clone(), Arc::clone(&files));
        // It fails only while the daemon ends.
        let Ok(read) = tokio::task::spawn_blocking(move || reading.read(&identity)).await else { return };
        match read {
            Ok(facts) => {
                if node.set_facts(facts) {
                    tracing::info!("the facts have changed");
                }
            }
            Err(error) => {
                let reason = crate::errors::chain(&error);
                if node.set_facts_unusable(reason.clone()) {
                    tracing::error!("the facts can't be used, and what asks for them fails: {reason}");
                }
            }
        }
    }
}

/// The directories are watched and not the files, which may be replaced, or not be there yet.
fn watch(files: &[PathBuf], changed: &Arc<Notify>) -> notify::Result<notify::RecommendedWatcher> {
    let (ours, changed) = (files.to_vec(), Arc::clone(changed));
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return changed.notify_one() };
        if !event.kind.is_access() && event.paths.iter().any(|path| ours.contains(path)) {
            changed.notify_one();
        }
    })?;
    let mut directories: Vec<&Path> = files.iter().filter_map(|file| file.parent()).collect();
    directories.sort_unstable();
    directories.dedup();
    for directory in directories.into_iter().filter(|directory| directory.is_dir()) {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}
