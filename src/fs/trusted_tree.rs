//! May what is run from a directory be trusted? Asked of a machine that an operator put there: `machine.yaml`, all that is
//! executable in it, and every directory above such a file. (The host asks also of scripts that a command gives to an
//! interpreter.) Other files are data, which may belong to whom the machine serves: a `file` watcher with an `owner` writes
//! such.

use std::io;
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode};

use super::trusted::{Fault, LOOK, Part, check, judge, open, stat};
use super::{Context, DIRECTORY_FLAGS, Directory, Distrust, FileError};

/// Entries and levels that are looked at; more is no machine, and nobody can say what is in it.
const MAXIMUM_ENTRIES: usize = 65_536;
const MAXIMUM_LEVELS: usize = 64;

/// Asks whether only root or the daemon's user can change what runs from a directory: its definition, called `definition`,
/// and its executable files. Blocks.
///
/// # Errors
/// The first thing that somebody else could change; or what can't be looked at.
pub fn check_programs(directory: &Path, definition: &str) -> Result<(), Distrust> {
    let top = Directory::trusted(directory)?;
    match open(&directory.join(definition)) {
        Err(distrust) if !distrust.is_missing() => return Err(distrust),
        _ => {}
    }
    Search { left: MAXIMUM_ENTRIES, top: directory }.directory(&top, MAXIMUM_LEVELS, None)
}

struct Search<'a> {
    left: usize,
    top: &'a Path,
}

impl Search<'_> {
    /// `above`: who else could change a directory on the way here, and so exchange what is in it.
    fn directory(&mut self, directory: &Directory, levels: usize, above: Option<&Fault>) -> Result<(), Distrust> {
        let failed = |error: rustix::io::Errno| io::Error::from(error);
        let path = directory.path();
        for entry in Dir::read_from(directory.descriptor()).map_err(failed).on("list", path)? {
            let entry = entry.map_err(failed).on("list", path)?;
            let name = entry.file_name();
            if [c".", c".."].contains(&name) {
                continue;
            }
            self.left = self.left.checked_sub(1).ok_or_else(|| self.too_large())?;
            let at = path.join(name.to_string_lossy().as_ref());
            let looked = match rustix::fs::openat(directory.descriptor(), name, LOOK, Mode::empty()) {
                Err(rustix::io::Errno::NOENT) => continue,
                looked => looked.map_err(failed).on("look at", &at)?,
            };
            let stat = stat(&looked, &at)?;
            let runs = stat.st_mode & 0o111 != 0;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if levels == 0 => return Err(self.too_large().into()),
                FileType::Directory => {
                    let opened = rustix::fs::openat(directory.descriptor(), name, DIRECTORY_FLAGS, Mode::empty());
                    let inner = Directory::from_open(opened.map_err(failed).on("open", &at)?, at);
                    let fault = self.judge(&inner)?;
                    self.directory(&inner, levels - 1, above.or(fault.as_ref()))?;
                }
                FileType::RegularFile if runs => {
                    let own = || judge(&looked, &stat, &at, Part::Itself);
                    if let Some(fault) = above.cloned().or_else(own) {
                        return Err(Distrust::Others { path: at, fault });
                    }
                }
                FileType::Symlink => link(&at, above)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn judge(&self, directory: &Directory) -> Result<Option<Fault>, FileError> {
        let found = stat(directory.descriptor(), self.top)?;
        Ok(judge(directory.descriptor(), &found, directory.path(), Part::Itself))
    }

    fn too_large(&self) -> FileError {
        let message = format!(
            "it has more than {MAXIMUM_ENTRIES} entries or {MAXIMUM_LEVELS} levels, of which each would have to be \
             looked at; keep what is no part of the machine elsewhere"
        );
        FileError { operation: "judge", path: self.top.to_owned(), source: io::Error::other(message) }
    }
}

/// A link counts where it leads to something that runs.
fn link(at: &Path, above: Option<&Fault>) -> Result<(), Distrust> {
    use std::os::unix::fs::PermissionsExt;
    // Followed only to learn what it is; the answer is that of the walk.
    let leads = std::fs::metadata(at).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    if !leads {
        return Ok(());
    }
    match above {
        Some(fault) => Err(Distrust::Others { path: at.to_owned(), fault: fault.clone() }),
        None => check(at),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::path::PathBuf;

    use super::*;

    const STRANGER: u32 = 65_534;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            machine.file("machine.yaml", 0o644);
            machine.file("run.sh", 0o755);
            machine
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn file(&self, name: &str, mode: u32) -> PathBuf {
            let path = self.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "text").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        }

        fn check(&self) -> Result<(), String> {
            check_programs(self.0.path(), "machine.yaml").map_err(|distrust| distrust.to_string())
        }
    }

    #[test]
    fn what_runs_must_be_ours_and_data_may_be_anybodys() {
        let machine = Machine::new();
        let data = machine.file("spool/data", 0o666);
        chown(machine.path("spool"), Some(STRANGER), None).unwrap();
        chown(data, Some(STRANGER), None).unwrap();
        symlink("/bin/sh", machine.path("shell")).unwrap();
        symlink("nowhere", machine.path("dangling")).unwrap();
        machine.check().unwrap();
        for name in ["machine.yaml", "run.sh"] {
            chown(machine.path(name), Some(STRANGER), None).unwrap();
            let refused = machine.check().unwrap_err();
            assert!(refused.contains(&format!("chown -h root {}", machine.path(name).display())), "{refused}");
            chown(machine.path(name), Some(0), None).unwrap();
        }
        let inner = machine.file("lib/deeper/tool", 0o775);
        chown(&inner, None, Some(STRANGER)).unwrap();
        fs::set_permissions(&inner, Permissions::from_mode(0o775)).unwrap();
        let refused = machine.check().unwrap_err();
        assert!(refused.contains("group 65534 may write to") && refused.contains("lib/deeper/tool"), "{refused}");
        fs::set_permissions(&inner, Permissions::from_mode(0o755)).unwrap();
        machine.check().unwrap();
        fs::set_permissions(machine.path("lib"), Permissions::from_mode(0o777)).unwrap();
        let refused = machine.check().unwrap_err();
        assert!(refused.contains("tool can't be trusted: everyone may write to "), "{refused}");
    }

    #[test]
    fn a_link_to_somebody_elses_program_counts_as_that() {
        let machine = Machine::new();
        let other = Machine::new();
        symlink(other.path("run.sh"), machine.path("link.sh")).unwrap();
        machine.check().unwrap();
        chown(other.path("run.sh"), Some(STRANGER), None).unwrap();
        let refused = machine.check().unwrap_err();
        assert!(refused.contains("link.sh can't be trusted") && refused.contains("belongs to user 65534"), "{refused}");
    }
}
