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
    /// Empty: the usual ones.
    places: Vec<PathBuf>,
    made: Mutex<Option<Arc<Directory>>>,
}

/// Removed when dropped.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// The directory itself; locked, it tells the next daemon that this one lives.
    lock: File,
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
    /// In the first of these that can be used, instead of the usual ones.
    pub(super) fn in_places(places: Vec<PathBuf>) -> Self {
        Self { places, made: Mutex::default() }
    }

    /// Readable for the daemon's user, or for the owner alone.
    pub(super) fn write(&self, data: &str, facts: &str, owner: Option<(u32, u32)>) -> io::Result<Files> {
        let directory = self.directory()?;
        match Files::write(&directory, data, facts, owner) {
            // In a place like `/dev/shm` anyone may take all the room, and no command would run here any more.
            Err(error) if is_full(&error) => {
                let elsewhere = self.elsewhere(&directory.path).ok_or(error)?;
                Files::write(&elsewhere, data, facts, owner)
            }
            written => written,
        }
    }

    /// Removes what dead daemons left.
    pub(super) fn clean(&self) {
        for place in self.places() {
            clean(&place);
        }
    }

    fn places(&self) -> Vec<PathBuf> {
        if self.places.is_empty() { usual_places() } else { self.places.clone() }
    }

    fn directory(&self) -> io::Result<Arc<Directory>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have cleaned up, and somebody else may have put his own there since.
        if let Some(directory) = made.as_ref().filter(|directory| directory.is_there()) {
            return Ok(Arc::clone(directory));
        }
        let places = self.places();
        let place = places.iter().find(|place| is_usable(place)).or(places.last());
        let place = place.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        clean(place);
        let directory = Arc::new(Directory::make(place)?);
        *made = Some(Arc::clone(&directory));
        Ok(directory)
    }

    /// In another place than the one that is full, from now on.
    fn elsewhere(&self, full: &Path) -> Option<Arc<Directory>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        // Another command may have moved already.
        if let Some(directory) = made.as_ref().filter(|directory| directory.path != full) {
            return Some(Arc::clone(directory));
        }
        let others = self.places().into_iter().filter(|place| full.parent() != Some(place));
        let directory = others.filter(is_usable).find_map(|place| Directory::make(&place).ok())?;
        let (from, to) = (full.display(), directory.path.display());
        tracing::warn!("there is no room in {from} for what commands are given; it is put into {to} from now on");
        let directory = Arc::new(directory);
        *made = Some(Arc::clone(&directory));
        Some(directory)
    }
}

impl Files {
    fn write(directory: &Arc<Directory>, data: &str, facts: &str, owner: Option<(u32, u32)>) -> io::Result<Self> {
        let file = |content: &str| {
            let mut file = tempfile::Builder::new().suffix(".json").tempfile_in(&directory.path)?;
            file.write_all(content.as_bytes())?;
            if let Some((user, group)) = owner {
                std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
            }
            Ok::<_, io::Error>(file)
        };
        Ok(Self { data: file(data)?, facts: file(facts)?, _directory: Arc::clone(directory) })
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
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
                rustix::fs::fchmod(&lock, Mode::from_raw_mode(0o711))?;
                return Ok(Self { path, lock });
            }
        }
    }

    /// Whether what is at its path is still this directory.
    fn is_there(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let at_path = std::fs::symlink_metadata(&self.path).ok().map(id);
        at_path.is_some() && at_path == self.lock.metadata().ok().map(id)
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

fn usual_places() -> Vec<PathBuf> {
    let given = std::env::var("RUNTIME_DIRECTORY").unwrap_or_default();
    let places = given.split(':').chain(["/dev/shm"]).map(PathBuf::from);
    places.filter(|place| place.is_absolute()).chain([std::env::temp_dir()]).collect()
}

fn is_usable(place: &PathBuf) -> bool {
    tempfile::tempfile_in(place).is_ok()
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
        let alive = Scratch::in_places(vec![place.path().to_owned()]);
        let files = alive.write("{}", "{}", None).unwrap();
        assert!(!dead.exists());
        let second = Scratch::in_places(vec![place.path().to_owned()]);
        second.write("{}", "{}", None).unwrap();
        assert!(files.data.path().exists() && place.path().join("other").exists());
        let path = files.data.path().parent().unwrap().to_owned();
        drop((alive, files));
        assert!(!path.exists(), "nothing is left");
    }
    #[test]
    fn a_directory_that_somebody_else_put_in_the_place_of_ours_is_not_used() {
        let place = tempfile::tempdir().unwrap();
        let scratch = Scratch::in_places(vec![place.path().to_owned()]);
        let directory = scratch.directory().unwrap().path.clone();
        // A cleaner of old files was here, and then somebody who had seen the name.
        std::fs::remove_dir(&directory).unwrap();
        std::fs::create_dir(&directory).unwrap();
        let files = scratch.write("{}", "{}", None).unwrap();
        assert_ne!(files.data.path().parent().unwrap(), directory);
    }

    #[test]
    fn a_place_without_room_is_left_for_the_next() {
        let (full, next) = (Path::new("/dev/full"), tempfile::tempdir().unwrap());
        let scratch = Scratch::in_places(vec![full.to_owned(), next.path().to_owned()]);
        let elsewhere = scratch.elsewhere(&full.join("machines-commands-a")).unwrap();
        assert_eq!(elsewhere.path.parent().unwrap(), next.path());
        // It is remembered, and those who ask at the same time get the same.
        let again = scratch.elsewhere(&full.join("machines-commands-a")).unwrap();
        assert_eq!((&again.path, &scratch.directory().unwrap().path), (&elsewhere.path, &elsewhere.path));
    }
}
