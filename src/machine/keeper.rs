//! Brings a machine's data to disk, off the machine's own task: one write at a time, of the newest data, and again after
//! a while when one fails.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::data::{self, Snapshot};

/// How long a stopping machine waits for its data to be written.
const PATIENCE: Duration = Duration::from_secs(5);
/// Data that could not be written is written again after this.
const AGAIN: Duration = Duration::from_secs(10);

type Writing = JoinHandle<Result<(), crate::fs::FileError>>;

/// What is still to be written, and what is being written.
pub struct Keeper {
    directory: PathBuf,
    writing: Option<Writing>,
    changed: bool,
    /// After a failed write: not before this.
    after: Option<Instant>,
    problem: Option<String>,
}

/// Whether a write that ended made a difference to the problem that there is with writing.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    News,
    AsBefore,
}

impl Keeper {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, writing: None, changed: false, after: None, problem: None }
    }

    /// The data has changed since it was given to be written.
    pub fn changed(&mut self) {
        self.changed = true;
    }

    /// Why the data is not on disk.
    pub fn problem(&self) -> Option<&String> {
        self.problem.as_ref()
    }

    /// When to call [`Self::work_off`] again, though nothing happens.
    pub fn next(&self) -> Option<Instant> {
        self.after.filter(|_| self.changed && self.writing.is_none())
    }

    /// Begins a write when one is due.
    pub fn work_off(&mut self, now: Instant, snapshot: impl FnOnce() -> Snapshot) {
        if self.changed && self.writing.is_none() && self.after.is_none_or(|after| after <= now) {
            self.changed = false;
            self.after = None;
            let (directory, snapshot) = (self.directory.clone(), snapshot());
            self.writing = Some(tokio::task::spawn_blocking(move || data::save(&directory, &snapshot)));
        }
    }

    /// Waits for the end of the write that is under way; `None` when there is none.
    pub async fn written(&mut self) -> Option<Told> {
        let result = self.writing.as_mut()?.await;
        self.writing = None;
        let problem = match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error}: {}", error.source)),
            Err(error) => Some(error.to_string()),
        };
        if problem.is_some() {
            self.changed = true;
            self.after = Some(Instant::now() + AGAIN);
        }
        let told = if problem == self.problem { Told::AsBefore } else { Told::News };
        self.problem = problem;
        Some(told)
    }

    /// Writes what is not written yet. False when that did not end in time.
    pub async fn finish(&mut self, snapshot: Snapshot) -> bool {
        let mut writing = self.writing.take();
        if std::mem::take(&mut self.changed) {
            let (earlier, directory) = (writing.take(), self.directory.clone());
            writing = Some(tokio::spawn(async move {
                if let Some(earlier) = earlier {
                    _ = earlier.await;
                }
                match tokio::task::spawn_blocking(move || data::save(&directory, &snapshot)).await {
                    Ok(result) => result,
                    Err(_) => Ok(()),
                }
            }));
        }
        match writing {
            Some(writing) => tokio::time::timeout(PATIENCE, writing).await.is_ok(),
            None => true,
        }
    }
}
