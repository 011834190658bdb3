//! One file somewhere below a directory that others may write to. It is reached from open directory to open directory,
//! and no link is followed on the way or at the end, so that nobody can lead a reader or a writer elsewhere.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{Context, DIRECTORY_FLAGS, Result};

/// A place for a file, in an open directory.
#[derive(Debug)]
pub struct Beneath {
    directory: OwnedFd,
    name: String,
    path: PathBuf,
}

/// What a file should be besides its content; `None`: as the system makes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    pub mode: Option<u32>,
    pub user: Option<u32>,
    pub group: Option<u32>,
}

/// A regular file that is there, opened.
#[derive(Debug)]
pub struct PlainFile {
    file: File,
    path: PathBuf,
    pub modified: SystemTime,
    pub mode: u32,
    pub user: u32,
    pub group: u32,
}

impl Beneath {
    /// A file in an open directory, called `name`; `path` is for messages.
    pub(super) fn inside(directory: OwnedFd, name: &str, path: PathBuf) -> Self {
        Self { directory, name: name.to_owned(), path }
    }

    /// A file by its path, whose directory must be there and may be reached through a link.
    ///
    /// # Errors
    /// When the path names no file, or its directory can't be opened.
    pub fn at(path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str());
        let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "it names no file");
        let name = name.ok_or_else(no_name).on("use", path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(super::parent(path), flags, Mode::empty());
        let directory = directory.map_err(io::Error::from).on("open the directory of", path)?;
        Ok(Self::inside(directory, name, path.to_owned()))
    }

    /// For messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file, which must not exist yet, for a caller that streams into it.
    ///
    /// # Errors
    /// When it exists or can't be made.
    pub fn create_new(&self, mode: u32) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, self.name.as_str(), flags, Mode::from_raw_mode(mode));
        file.map(File::from).map_err(io::Error::from).on("create", &self.path)
    }

    /// Removes the file or link; that it is gone already is fine.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self) -> Result<()> {
        match rustix::fs::unlinkat(&self.directory, self.name.as_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(io::Error::from(error)).on("remove", &self.path),
        }
    }

    /// Finds the directory of `relative` below `base`. `None` when there is none (yet).
    ///
    /// # Errors
    /// When `relative` is absolute, empty or has `..` in it, a link is on the way, or what the system says.
    pub fn find(base: &Path, relative: &Path) -> Result<Option<Self>> {
        let path = base.join(relative);
        let refuse = |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, reason)).on("use", &path);
        let mut names = Vec::new();
        for component in relative.components() {
            match component {
                Component::Normal(name) => names.push(name.to_string_lossy().into_owned()),
                Component::CurDir => {}
                _ => return refuse("it must be below the directory, without .."),
            }
        }
        let Some(name) = names.pop() else { return refuse("it names no file") };
        // The base itself is the caller's choice, and may be reached through a link.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut directory = match rustix::fs::open(base, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            opened => opened.map_err(io::Error::from).on("open", base)?,
        };
        for name in &names {
            directory = match rustix::fs::openat(&directory, name.as_str(), DIRECTORY_FLAGS, Mode::empty()) {
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    return refuse("something on the way is not a directory; links are not followed here");
                }
                opened => opened.map_err(io::Error::from).on("open the directory of", &path)?,
            };
        }
        Ok(Some(Self { directory, name, path }))
    }

    /// The file, if there is one.
    ///
    /// # Errors
    /// When something else than a regular file is there, a link for example, or what the system says.
    pub fn open(&self) -> Result<Option<PlainFile>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let irregular =
            || io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file; links are not followed here");
        let file = match rustix::fs::openat(&self.directory, self.name.as_str(), flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NXIO) => return Err(irregular()).on("open", &self.path),
            opened => File::from(opened.map_err(io::Error::from).on("open", &self.path)?),
        };
        let metadata = file.metadata().on("inspect", &self.path)?;
        if !metadata.is_file() {
            return Err(irregular()).on("open", &self.path);
        }
        Ok(Some(PlainFile {
            modified: metadata.modified().on("inspect", &self.path)?,
            mode: metadata.mode() & 0o7777,
            user: metadata.uid(),
            group: metadata.gid(),
            file,
            path: self.path.clone(),
        }))
    }

    /// Replaces the file: readers see the old one or the new one, which has its owner and mode from the first moment
    /// on. A link in its place is replaced, never what it points at.
    ///
    /// # Errors
    /// Any failed step; the old file is then still in place and no temporary file is left.
    pub fn write(&self, content: &[u8], attributes: Attributes) -> Result<()> {
        let staged = format!(".machines-{}-temp", uuid::Uuid::new_v4().simple());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Nobody else reads it before its owner and mode are right.
        let file = rustix::fs::openat(&self.directory, staged.as_str(), flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(file.map_err(io::Error::from).on("create a temporary file for", &self.path)?);
        let written = self.fill(file, content, attributes).and_then(|()| {
            rustix::fs::renameat(&self.directory, staged.as_str(), &self.directory, self.name.as_str())
                .map_err(io::Error::from)
                .on("replace", &self.path)
        });
        if written.is_err() {
            _ = rustix::fs::unlinkat(&self.directory, staged.as_str(), AtFlags::empty());
        }
        written?;
        rustix::fs::fsync(&self.directory).map_err(io::Error::from).on("flush the directory of", &self.path)
    }

    fn fill(&self, mut file: File, content: &[u8], attributes: Attributes) -> Result<()> {
        file.write_all(content).on("write", &self.path)?;
        if attributes.user.is_some() || attributes.group.is_some() {
            std::os::unix::fs::fchown(&file, attributes.user, attributes.group).on("set the owner of", &self.path)?;
        }
        // After the owner: a change of the owner may take bits away.
        let mode = Permissions::from_mode(attributes.mode.unwrap_or(0o644));
        file.set_permissions(mode).on("set the mode of", &self.path)?;
        file.sync_all().on("flush", &self.path)
    }
}

impl PlainFile {
    /// The file itself.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Whether its content is this.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn has_content(&mut self, content: &[u8]) -> Result<bool> {
        let mut found = Vec::new();
        // One byte more tells a longer file, however long it is.
        let limit = (content.len() as u64).saturating_add(1);
        (&mut self.file).take(limit).read_to_end(&mut found).on("read", &self.path)?;
        Ok(found == content)
    }

    /// Whether it is as the attributes say.
    pub fn has(&self, attributes: Attributes) -> bool {
        attributes.mode.is_none_or(|mode| mode == self.mode)
            && attributes.user.is_none_or(|user| user == self.user)
            && attributes.group.is_none_or(|group| group == self.group)
    }
}

/// Makes the directory `name` in `base` for a user, private to him, unless he has it already. Nothing that stands there is
/// given away: he may have put it there himself, to have it.
///
/// # Errors
/// When something else than his directory is there, or what the system says.
pub fn give_directory(base: &Path, name: &str, user: u32, group: u32) -> Result<()> {
    let path = base.join(name);
    let refuse = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidInput, reason)).on("use", &path);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base = rustix::fs::open(base, flags, Mode::empty()).map_err(io::Error::from).on("open", base)?;
    let made = match rustix::fs::mkdirat(&base, name, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error.into()).on("create directory", &path),
    };
    let directory = match rustix::fs::openat(&base, name, DIRECTORY_FLAGS, Mode::empty()) {
        Err(Errno::LOOP | Errno::NOTDIR) => {
            return refuse("it is not a directory, and links are not followed here; remove it".to_owned());
        }
        opened => File::from(opened.map_err(io::Error::from).on("open", &path)?),
    };
    let metadata = directory.metadata().on("inspect", &path)?;
    if metadata.uid() == user {
        return Ok(());
    }
    // One that we made and did not get to give is empty, and as private as on the first day.
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o7777 == 0o700;
    let is_empty = || {
        let entries = rustix::fs::Dir::read_from(&directory).into_iter().flatten();
        entries.filter_map(std::result::Result::ok).all(|entry| [c".", c".."].contains(&entry.file_name()))
    };
    let may_give = is_ours && (made || is_empty());
    if !may_give {
        let owner = metadata.uid();
        return refuse(format!("it belongs to user {owner}, not to user {user}; remove it, or chown it yourself"));
    }
    std::os::unix::fs::fchown(&directory, Some(user), Some(group)).on("set the owner of", &path)?;
    rustix::fs::fsync(&base).map_err(io::Error::from).on("flush the directory of", &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(mode: u32) -> Attributes {
        Attributes { mode: Some(mode), ..Attributes::default() }
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_and_nothing_else_is_left() {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join("etc")).unwrap();
        let place = Beneath::find(base.path(), Path::new("./etc/motd")).unwrap().unwrap();
        assert!(place.open().unwrap().is_none());
        place.write(b"one", attributes(0o600)).unwrap();
        place.write(b"two", attributes(0o640)).unwrap();
        let mut file = place.open().unwrap().unwrap();
        assert!(file.has(attributes(0o640)) && !file.has(attributes(0o600)));
        assert!(file.has_content(b"two").unwrap());
        assert!(!place.open().unwrap().unwrap().has_content(b"tw").unwrap());
        assert_eq!(super::super::list(&base.path().join("etc")).unwrap().len(), 1);
        assert!(Beneath::find(base.path(), Path::new("nope/motd")).unwrap().is_none());
    }

    #[test]
    fn no_link_and_no_parent_leads_out() {
        let base = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink(outside.path(), base.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), base.path().join("file")).unwrap();
        for bad in ["../x", "/etc/passwd", "a/../../x", "", "link/secret"] {
            let error = Beneath::find(base.path(), Path::new(bad)).unwrap_err();
            assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput, "{bad}");
        }
        let place = Beneath::find(base.path(), Path::new("file")).unwrap().unwrap();
        assert!(place.open().unwrap_err().source.to_string().contains("links are not followed"));
        place.write(b"mine", attributes(0o600)).unwrap();
        assert_eq!(std::fs::read_to_string(outside.path().join("secret")).unwrap(), "s");
        rustix::fs::mkfifoat(rustix::fs::CWD, base.path().join("pipe"), Mode::RUSR).unwrap();
        let pipe = Beneath::find(base.path(), Path::new("pipe")).unwrap().unwrap();
        assert!(pipe.open().unwrap_err().source.to_string().contains("not a regular file"));
    }
}
