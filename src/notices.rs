//! Tells of changes in directories. The kernel gives each user few instances of inotify, so everything in a process that
//! looks at directories shares one here. In: a directory. Out: a wake-up on each change of an entry in it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

type Followers = Arc<Mutex<HashMap<PathBuf, Vec<Arc<Notify>>>>>;

/// The one place in a process that watches directories; cheap to clone.
#[derive(Clone, Default)]
pub struct Notices {
    followers: Followers,
    /// Made when the first directory is followed.
    watcher: Arc<Mutex<Option<RecommendedWatcher>>>,
}

/// A directory that is followed until this is dropped.
pub struct Following {
    notices: Notices,
    directory: PathBuf,
    changed: Arc<Notify>,
}

impl Notices {
    /// Follows the entries of a directory that exists.
    ///
    /// # Errors
    /// What the system says: there may be too many already. The periodic check then has to do.
    pub fn follow(&self, directory: &Path) -> notify::Result<Following> {
        let mut watcher = lock(&self.watcher);
        let watcher = match &mut *watcher {
            Some(watcher) => watcher,
            none => none.insert(notify::recommended_watcher(handler(Arc::clone(&self.followers)))?),
        };
        let changed = Arc::new(Notify::new());
        // Also for one that is followed already: the directory may have been made anew under its name.
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        lock(&self.followers).entry(directory.to_owned()).or_default().push(Arc::clone(&changed));
        Ok(Following { notices: self.clone(), directory: directory.to_owned(), changed })
    }
}

impl Following {
    /// Waits for a change since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut watcher = lock(&self.notices.watcher);
        let mut followers = lock(&self.notices.followers);
        if let Some(others) = followers.get_mut(&self.directory) {
            others.retain(|other| !Arc::ptr_eq(other, &self.changed));
            if others.is_empty() {
                followers.remove(&self.directory);
                drop(followers);
                if let Some(watcher) = &mut *watcher {
                    // It fails when the directory is gone, which is fine.
                    _ = watcher.unwatch(&self.directory);
                }
            }
        }
    }
}

fn handler(followers: Followers) -> impl Fn(notify::Result<notify::Event>) + Send + 'static {
    move |event| {
        let Ok(event) = event else { return };
        if event.kind.is_access() {
            return;
        }
        let followers = lock(&followers);
        for path in &event.paths {
            // An event names the entry, or the directory itself when that is what changed.
            for directory in path.parent().into_iter().chain([path.as_path()]) {
                followers.get(directory).into_iter().flatten().for_each(|changed| changed.notify_one());
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn followers_of_a_directory_hear_of_its_changes_and_of_no_others() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let notices = Notices::default();
        let (first, second) = (notices.follow(one.path()).unwrap(), notices.follow(one.path()).unwrap());
        let elsewhere = notices.follow(other.path()).unwrap();
        std::fs::write(one.path().join("a"), "1").unwrap();
        let both = async { tokio::join!(first.changed(), second.changed()) };
        tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
        drop(first);
        std::fs::write(one.path().join("b"), "1").unwrap();
        tokio::time::timeout(Duration::from_secs(30), second.changed()).await.unwrap();
        assert!(tokio::time::timeout(Duration::ZERO, elsewhere.changed()).await.is_err());
        drop(second);
        assert_eq!(lock(&notices.followers).len(), 1);
        assert!(notices.follow(&one.path().join("nope")).is_err());
    }
}
