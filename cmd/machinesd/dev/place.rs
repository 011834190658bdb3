//! The directory that `machinesd dev` works in: one that it made, or an empty one. In: a directory. Out: its mark there, or
//! why it is left alone.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use machines::fs::FileError;

use crate::shared::Failure;

/// Says whose directory this is.
const MARK: &str = "made-by-machinesd-dev";
const MARK_TEXT: &str = "This directory was made by `machinesd dev`, which works in it each time that it is started with\n\
    --directory. What you change in hello/, key and machinesd.toml is kept; archives/, machines.json,\n\
    spec.json and state/ are made anew from them. Remove the directory when you need it no longer.\n";

/// Takes a directory to work in. One that is there must be ours: with our mark, or with nothing in it.
pub fn claim(directory: &Path) -> Result<(), Failure> {
    let Some(metadata) = there(directory, std::fs::metadata(directory))? else {
        machines::fs::create_directory(directory, 0o755)?;
        return Ok(machines::fs::write_new(&directory.join(MARK), MARK_TEXT.as_bytes(), 0o644)?);
    };
    let shown = directory.display();
    let other = "give `machinesd dev --directory` one that does not exist yet, or is empty";
    if !metadata.is_dir() {
        return Err(Failure::Usage(format!("{shown} is not a directory; {other}").into()));
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(Failure::Usage(format!("{shown} belongs to another user, and is left as it is; {other}").into()));
    }
    if metadata.mode() & 0o002 != 0 {
        let why = format!("others may write in {shown}, which would be run here; `chmod o-w {shown}`, or {other}");
        return Err(Failure::Usage(why.into()));
    }
    let mark = directory.join(MARK);
    match there(&mark, std::fs::symlink_metadata(&mark))? {
        Some(mark) if mark.is_file() && mark.uid() == metadata.uid() => Ok(()),
        None if machines::fs::list(directory)?.is_empty() => {
            Ok(machines::fs::write_new(&mark, MARK_TEXT.as_bytes(), 0o644)?)
        }
        _ => {
            let why = format!("{shown} holds files that `machinesd dev` did not make, and is left as it is; {other}");
            Err(Failure::Usage(why.into()))
        }
    }
}

fn there(path: &Path, inspected: std::io::Result<Metadata>) -> Result<Option<Metadata>, FileError> {
    match inspected {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError { operation: "look at", path: path.to_owned(), source }),
    }
}

/// Writes a file that is not there yet.
pub fn keep_or_write(path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    match machines::fs::write_new(path, content, mode) {
        Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        result => Ok(result?),
    }
}
