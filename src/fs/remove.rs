//! Removes a tree through open directories: no link is followed, no path is looked up twice, and nothing outside of the
//! tree loses a bit of its mode, whatever somebody else does in the tree meanwhile.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Context, DIRECTORY_FLAGS, Result};

/// What may be open at once: one directory for each level. What is deeper is first moved up to the top of the tree.
const MAXIMUM_LEVELS: usize = 64;
/// Each goes [`MAXIMUM_LEVELS`] deeper. Somebody who fills the tree while we empty it must not keep us for ever.
const MAXIMUM_PASSES: usize = 1_024;
/// What the owner of a directory needs in order to empty it.
const OWN: u32 = 0o700;

/// Removes what is called `name` in a directory; that it is gone already is fine. `path` is for messages.
pub(super) fn remove(directory: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<()> {
    attempt(directory, name).map_err(io::Error::from).on("remove", path)
}

fn attempt(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    let Some(top) = unlink_or_enter(directory, name)? else { return Ok(()) };
    let mut moved = 0;
    for _ in 0..MAXIMUM_PASSES {
        let before = moved;
        empty(&top, &top, MAXIMUM_LEVELS, &mut moved)?;
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) if moved > before => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::NOTEMPTY)
}

/// Removes what is no directory; opens what is one.
fn unlink_or_enter(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<Option<OwnedFd>> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
        Ok(_) => {
            return match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(None),
                Err(error) => Err(error),
            };
        }
    }
    match enter(directory, name) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a directory such that it can be emptied. What we install is read-only, and what is not even readable for us must
/// be made so before it can be opened.
fn enter(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let opened = match rustix::fs::openat(directory, name, DIRECTORY_FLAGS, Mode::empty()) {
        Err(Errno::ACCESS) => {
            let look = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let looked = rustix::fs::openat(directory, name, look, Mode::empty())?;
            // The system changes modes by a path or by a descriptor that reads; this path is the open directory itself.
            let itself = format!("/proc/self/fd/{}", looked.as_raw_fd());
            rustix::fs::chmodat(CWD, itself, Mode::from_raw_mode(OWN), AtFlags::empty())?;
            rustix::fs::openat(&looked, ".", DIRECTORY_FLAGS, Mode::empty())?
        }
        opened => opened?,
    };
    let mode = rustix::fs::fstat(&opened)?.st_mode;
    if mode & OWN != OWN {
        rustix::fs::fchmod(&opened, Mode::from_raw_mode(mode & 0o7777 | OWN))?;
    }
    Ok(opened)
}

fn empty(directory: &OwnedFd, top: &OwnedFd, levels: usize, moved: &mut usize) -> rustix::io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let Some(inner) = unlink_or_enter(directory.as_fd(), name)? else { continue };
        if levels == 0 {
            *moved += 1;
            let aside = format!(".removing-{}-{moved}", uuid::Uuid::new_v4().simple());
            rustix::fs::renameat(directory, name, top, aside)?;
            continue;
        }
        empty(&inner, top, levels - 1, moved)?;
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            // Some file systems skip names while others are removed, and what was too deep is at the top now; the next
            // pass sees to it.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => *moved += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
