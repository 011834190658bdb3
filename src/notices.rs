//! Tells of changes in directories. The kernel gives each user few instances of inotify, so everything in a process that
//! looks at directories shares one here. In: a directory. Out: a wake-up on each change of an entry in it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

type Followers = Arc<Mutex<HashMap<PathBuf, Vec<Follower>>>>;

/// Who wants to hear of changes in a directory.
struct Follower {
    changed: Arc<Notify>,
    /// The one entry that it asks about; `None`: all of them.
    entry: Option<PathBuf>,
}

impl Follower {
    fn asks_about(&self, path: &Path) -> bool {
        self.entry.as_ref().is_none_or(|entry| entry == path)
    }
}

/// The one place in a process that watches directories; cheap to clone.
#[derive(Clone, Default)]
pub struct Notices {
    followers: Followers,
    /// Made when the first directory is followed.
    watcher: Arc<Mutex<Option<RecommendedWatcher>>>,
}

/// Directories that are followed until this is dropped.
pub struct Following {
    notices: Notices,
    directories: Vec<PathBuf>,
    changed: Arc<Notify>,
}

impl Notices {
    /// Follows the entries of a directory that exists.
    ///
    /// # Errors
    /// What the system says: there may be too many already. The periodic check then has to do.
    pub fn follow(&self, directory: &Path) -> notify::Result<Following> {
        let mut following = self.nothing();
        following.also(directory)?;
        Ok(following)
    }

    /// Follows one entry of a directory that exists; there need not be such an entry.
    ///
    /// # Errors
    /// As [`Self::follow`].
    pub fn follow_entry(&self, path: &Path) -> notify::Result<Following> {
        let mut following = self.nothing();
        following.add(path.parent().unwrap_or(path), Some(path.to_owned()))?;
        Ok(following)
    }

    fn nothing(&self) -> Following {
        Following { notices: self.clone(), directories: Vec::new(), changed: Arc::default() }
    }
}

impl Following {
    /// Follows the entries of another directory too.
    ///
    /// # Errors
    /// As [`Notices::follow`]; what was followed before still is.
    pub fn also(&mut self, directory: &Path) -> notify::Result<()> {
        self.add(directory, None)
    }

    fn add(&mut self, directory: &Path, entry: Option<PathBuf>) -> notify::Result<()> {
        let followers = &self.notices.followers;
        let mut watcher = lock(&self.notices.watcher);
        let watcher = match &mut *watcher {
            Some(watcher) => watcher,
            none => none.insert(notify::recommended_watcher(handler(Arc::clone(followers)))?),
        };
        // Also for one that is followed already: the directory may have been made anew under its name.
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        let follower = Follower { changed: Arc::clone(&self.changed), entry };
        lock(followers).entry(directory.to_owned()).or_default().push(follower);
        self.directories.push(directory.to_owned());
        Ok(())
    }

    /// Waits for a change since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut watcher = lock(&self.notices.watcher);
        for directory in &self.directories {
            let mut followers = lock(&self.notices.followers);
            let Some(others) = followers.get_mut(directory) else { continue };
            others.retain(|other| !Arc::ptr_eq(&other.changed, &self.changed));
            if others.is_empty() {
                followers.remove(directory);
                drop(followers);
                if let Some(watcher) = &mut *watcher {
                    // It fails when the directory is gone, which is fine.
                    _ = watcher.unwatch(directory);
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
                let asked = followers.get(directory).into_iter().flatten();
                // When the directory itself changed, so may have every entry.
                let asked = asked.filter(|follower| path == directory || follower.asks_about(path));
                asked.for_each(|follower| follower.changed.notify_one());
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

    #[tokio::test]
    async fn one_who_asks_about_an_entry_hears_of_it_alone_also_before_there_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let notices = Notices::default();
        let all = notices.follow(directory.path()).unwrap();
        let one = notices.follow_entry(&directory.path().join("one")).unwrap();
        std::fs::write(directory.path().join("two"), "1").unwrap();
        tokio::time::timeout(Duration::from_secs(30), all.changed()).await.unwrap();
        assert!(tokio::time::timeout(Duration::ZERO, one.changed()).await.is_err());
        std::fs::write(directory.path().join("one"), "1").unwrap();
        tokio::time::timeout(Duration::from_secs(30), one.changed()).await.unwrap();
        drop(one);
        std::fs::write(directory.path().join("two"), "2").unwrap();
        tokio::time::timeout(Duration::from_secs(30), all.changed()).await.unwrap();
    }
}
