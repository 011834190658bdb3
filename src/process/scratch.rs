//! Where the files for `WATCHER_DATA` and `WATCHER_FACTS` live, for as long as a command runs: in a directory of this process
//! alone, in memory where there is such a place. Making and removing two files on a disk costs more than all else that we
//! do for a run, and what a machine keeps secret need not get there. What a killed daemon left is removed by the next.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FlockOperation, Mode, OFlags};
use tempfile::NamedTempFile;

/// Of the directories, each with a random end.
const PREFIX: &str = "machines-commands-";

/// The directory, made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    place: Option<PathBuf>,
    made: Mutex<Option<Arc<Directory>>>,
}

/// Removed when dropped.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// Tells the next daemon that this one lives.
    _lock: File,
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = crate::fs::remove_tree(&self.path) {
            tracing::debug!("{}", crate::errors::chain(&error));
        }
    }
}

/// The two JSON files of a run; gone when dropped.
pub(super) struct Files {
    pub data: NamedTempFile,
    pub facts: NamedTempFile,
    _directory: Arc<Directory>,
}

impl Scratch {
    /// In another place than the usual ones.
    pub(super) fn in_place(place: PathBuf) -> Self {
        Self { place: Some(place), made: Mutex::default() }
    }

    /// Readable for the daemon's user, or for the owner alone.
    pub(super) fn write(&self, data: &str, facts: &str, owner: Option<(u32, u32)>) -> io::Result<Files> {
        let directory = self.directory()?;
        let file = |content: &str| {
            let mut file = tempfile::Builder::new().suffix(".json").tempfile_in(&directory.path)?;
            file.write_all(content.as_bytes())?;
            if let Some((user, group)) = owner {
                std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
            }
            Ok::<_, io::Error>(file)
        };
        Ok(Files { data: file(data)?, facts: file(facts)?, _directory: Arc::clone(&directory) })
    }

    /// Removes what dead daemons left.
    pub(super) fn clean(&self) {
        clean(&self.place.clone().unwrap_or_else(usual_place));
    }

    fn directory(&self) -> io::Result<Arc<Directory>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have cleaned up.
        if let Some(directory) = made.as_ref().filter(|directory| directory.path.is_dir()) {
            return Ok(Arc::clone(directory));
        }
        let place = self.place.clone().unwrap_or_else(usual_place);
        clean(&place);
        let directory = Arc::new(Directory::make(&place)?);
        *made = Some(Arc::clone(&directory));
        Ok(directory)
    }
}

impl Directory {
    fn make(place: &Path) -> io::Result<Self> {
        loop {
            let path = tempfile::Builder::new().prefix(PREFIX).tempdir_in(place)?.keep();
            // Another daemon that starts may take it for that of a dead one, until it is locked.
            if let Ok(lock) = open(&path)
                && rustix::fs::flock(&lock, FlockOperation::LockExclusive).is_ok()
                && path.is_dir()
            {
                // Others get to their own file, whose name they are told, and see no other.
                crate::fs::set_mode(&path, 0o711).map_err(|error| error.source)?;
                return Ok(Self { path, _lock: lock });
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

fn usual_place() -> PathBuf {
    let given = std::env::var("RUNTIME_DIRECTORY").unwrap_or_default();
    let places = given.split(':').chain(["/dev/shm"]).map(PathBuf::from);
    let usable = |place: &PathBuf| place.is_absolute() && tempfile::tempfile_in(place).is_ok();
    places.into_iter().find(usable).unwrap_or_else(std::env::temp_dir)
}

/// Removes what dead daemons left. In a place that others write to, only what is ours, and nobody can exchange that for
/// something else.
fn clean(place: &Path) {
    use std::os::unix::fs::MetadataExt;
    let own = rustix::process::geteuid().as_raw();
    for entry in crate::fs::list(place).unwrap_or_default() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(lock) = open(&entry.path()) else { continue };
        let is_ours = lock.metadata().is_ok_and(|metadata| metadata.uid() == own);
        // A directory whose maker lives is locked.
        if is_ours
            && rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Err(error) = crate::fs::remove_tree(&entry.path())
        {
            tracing::warn!("{}", crate::errors::chain(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_killed_daemon_are_removed_and_those_of_a_living_one_stay() {
        let place = tempfile::tempdir().unwrap();
        let dead = place.path().join("machines-commands-dead");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("a.json"), "secret").unwrap();
        std::fs::create_dir(place.path().join("other")).unwrap();
        let alive = Scratch::in_place(place.path().to_owned());
        let files = alive.write("{}", "{}", None).unwrap();
        assert!(!dead.exists());
        let second = Scratch::in_place(place.path().to_owned());
        second.write("{}", "{}", None).unwrap();
        assert!(files.data.path().exists() && place.path().join("other").exists());
        let path = files.data.path().parent().unwrap().to_owned();
        drop((alive, files));
        assert!(!path.exists(), "nothing is left");
    }
}
