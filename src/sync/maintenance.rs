//! Maintenance: somebody wants this node left as it is, and nothing that is installed is changed until they are done. It is
//! written down beside the state database, not in it, so that it outlives a damaged one, and every restart and upgrade.
//!
//! In: who wants it, how long, and why. Out: whether it holds now. Doubt is not "no": a record that can't be read holds.

use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::fs::{self, FileError};

const FILE_NAME: &str = "maintenance.json";
const LIMIT_BYTES: u64 = 64 * 1024;

/// That a node is to be left as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maintenance {
    pub since: Timestamp,
    /// It ends by itself then, by the clock on the wall; `None`: when somebody ends it.
    pub until: Option<Timestamp>,
    pub because: Option<String>,
    /// The number of the user who wanted it.
    pub by: Option<u32>,
}

impl Maintenance {
    /// Whether its time is over.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// One sentence, and what ends it.
impl fmt::Display for Maintenance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "this node is in maintenance since {:.0}", self.since)?;
        match self.until {
            Some(until) => write!(formatter, " until {until:.0}")?,
            None => write!(formatter, " until somebody ends it")?,
        }
        if let Some(because) = &self.because {
            write!(formatter, " ({because})")?;
        }
        write!(
            formatter,
            ", and nothing is changed: `machinesd maintenance off` ends it, and --in-maintenance makes a pass all the same"
        )
    }
}

/// Whether a pass may change things during maintenance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum During {
    #[default]
    Holds,
    Works,
}

/// The record, on disk and in memory.
pub(super) struct Record {
    path: PathBuf,
    current: watch::Sender<Option<Maintenance>>,
}

impl Record {
    /// Reads what an earlier run has written down.
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE_NAME);
        let current = match read(&path) {
            Ok(current) => current,
            Err(why) => {
                tracing::error!("{why}; until it is known, nothing is changed; `machinesd maintenance off` ends that");
                Some(Maintenance { since: Timestamp::now(), until: None, because: Some(why), by: None })
            }
        };
        Self { path, current: watch::Sender::new(current) }
    }

    /// What is written down, also when its time is over.
    pub fn written(&self) -> Option<Maintenance> {
        self.current.borrow().clone()
    }

    /// What holds now.
    pub fn now(&self) -> Option<Maintenance> {
        self.written().filter(|maintenance| !maintenance.is_over(Timestamp::now()))
    }

    pub fn follow(&self) -> watch::Receiver<Option<Maintenance>> {
        self.current.subscribe()
    }

    /// It holds from here on, even if it can't be written down.
    pub fn begin(&self, maintenance: Maintenance) -> Result<(), FileError> {
        let text = serde_json::to_vec(&maintenance).unwrap_or_default();
        self.current.send_replace(Some(maintenance));
        fs::write(&self.path, &text, 0o600)
    }

    /// It holds no longer, once nothing is written down.
    pub fn end(&self) -> Result<(), FileError> {
        fs::remove_file(&self.path)?;
        self.current.send_replace(None);
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<Maintenance>, String> {
    match fs::read(path, LIMIT_BYTES) {
        Ok(content) => match serde_json::from_slice(&content) {
            Ok(maintenance) => Ok(Some(maintenance)),
            Err(error) => Err(format!("{} can't be understood: {error}", path.display())),
        },
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(crate::errors::chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maintenance(until: Option<Timestamp>) -> Maintenance {
        let because = Some("disks are exchanged".to_owned());
        Maintenance { since: Timestamp::UNIX_EPOCH, until, because, by: Some(0) }
    }

    #[test]
    fn it_is_read_back_after_a_restart_and_gone_when_it_was_ended() {
        let directory = tempfile::tempdir().unwrap();
        let record = Record::open(directory.path());
        assert_eq!(record.now(), None);
        record.begin(maintenance(None)).unwrap();
        assert_eq!(Record::open(directory.path()).now(), Some(maintenance(None)));
        record.end().unwrap();
        assert_eq!((record.now(), Record::open(directory.path()).written()), (None, None));
    }

    #[test]
    fn it_ends_by_itself_also_over_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let until = Timestamp::from_second(7_200).unwrap();
        Record::open(directory.path()).begin(maintenance(Some(until))).unwrap();
        let record = Record::open(directory.path());
        assert_eq!((record.now(), record.written()), (None, Some(maintenance(Some(until)))));
        let before = Timestamp::from_second(7_199).unwrap();
        assert!(!maintenance(Some(until)).is_over(before) && maintenance(Some(until)).is_over(until));
    }

    #[test]
    fn a_record_that_cannot_be_read_holds_and_says_why() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(&directory.path().join(FILE_NAME), b"{\"since\": ", 0o600).unwrap();
        let record = Record::open(directory.path());
        let because = record.now().unwrap().because.unwrap();
        assert!(because.contains("maintenance.json can't be understood: EOF"), "{because}");
        record.end().unwrap();
        assert_eq!(Record::open(directory.path()).now(), None);
    }

    #[test]
    fn it_says_itself_in_a_sentence() {
        let said = maintenance(Some(Timestamp::from_second(7_200).unwrap())).to_string();
        let expected = "this node is in maintenance since 1970-01-01T00:00:00Z until 1970-01-01T02:00:00Z (disks are \
                        exchanged), and nothing is changed: ";
        assert!(said.starts_with(expected), "{said}");
    }
}
