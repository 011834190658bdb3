//! A running machine, seen from outside: it is started from a validated definition, asked for its status, moved by hand,
//! and stopped. `task` is its inside.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::events::Bus;
use crate::names::Label;

use super::data::Change;
use super::definition::Definition;
use super::fsm::Refused;
use super::status::MachineStatus;
use super::task::Task;
use super::watcher::{Kind, Services, Watcher};

/// Everything a machine needs to run.
pub struct Setup {
    pub definition: Arc<Definition>,
    pub watchers: Vec<(Kind, Arc<dyn Watcher>)>,
    pub directory: PathBuf,
    pub data_directory: PathBuf,
    pub services: Arc<Services>,
    pub bus: Bus,
}

pub(super) enum Command {
    Transition(String, oneshot::Sender<Result<Label, Refused>>),
    Change(Vec<Change>, oneshot::Sender<()>),
    Stop,
}

/// A running machine, seen from outside; cheap to clone.
#[derive(Clone)]
pub struct Remote {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Arc<MachineStatus>>,
}

impl Remote {
    /// The newest snapshot.
    pub fn status(&self) -> Arc<MachineStatus> {
        Arc::clone(&self.status.borrow())
    }

    /// Whether the machine runs. It ends by itself only through a defect, which must then be visible.
    pub fn is_running(&self) -> bool {
        !self.commands.is_closed()
    }

    /// Makes a transition by hand and returns the new state. The brake does not hold up a person.
    ///
    /// # Errors
    /// When the transition is not valid in the current state, or the machine is gone or not yet started.
    pub async fn transition(&self, event: &str) -> Result<Label, Refused> {
        let (answer, answered) = oneshot::channel();
        let gone = || Refused::NotRunning { machine: self.status().name.clone() };
        self.commands.send(Command::Transition(event.to_owned(), answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

impl Remote {
    /// Changes the machine's data from outside; the watchers that read it look at once.
    ///
    /// # Errors
    /// When the machine is gone or not yet started.
    pub async fn change(&self, changes: Vec<Change>) -> Result<(), Refused> {
        let (done, answered) = oneshot::channel();
        let gone = || Refused::NotRunning { machine: self.status().name.clone() };
        self.commands.send(Command::Change(changes, done)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

/// The owner of a running machine. Dropping it ends the machine at once; [`Handle::stop`] also keeps its data.
pub struct Handle {
    pub remote: Remote,
    task: Option<JoinHandle<()>>,
}

impl Handle {
    /// Stops the watchers (commands are ended with all that they started) and keeps the data.
    pub async fn stop(mut self) {
        _ = self.remote.commands.send(Command::Stop).await;
        if let Some(task) = self.task.take() {
            _ = task.await;
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Starts a machine.
pub fn spawn(setup: Setup) -> Handle {
    let (commands, receiver) = mpsc::channel(16);
    let mut task = Task::new(setup);
    let status = task.status();
    let task = tokio::spawn(async move { task.run(receiver).await });
    Handle { remote: Remote { commands, status }, task: Some(task) }
}
