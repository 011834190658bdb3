//! Ends what is to be ended, on a thread of its own: reading `/proc` and waiting for deaths takes milliseconds, which no worker
//! of the runtime has. All families that wait share one look at the processes of the node.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::cgroup::{Leaf, Removal};
use super::tree::{self, Family};

/// Between two looks at those that were killed.
const PAUSE: Duration = Duration::from_millis(2);
/// What is not dead then hangs in the kernel, or outruns us; it is told and left.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between attempts to remove the leaves of what was left in the background.
const LEAF_PAUSE: Duration = Duration::from_secs(5);

/// A command and all it started, to be ended.
struct Doomed {
    family: Arc<Mutex<Family>>,
    leaf: Option<Leaf>,
    /// Told when nothing is left. Nobody may wait for it.
    done: Option<oneshot::Sender<()>>,
    since: Instant,
    is_stopped: bool,
}

enum Task {
    End(Doomed),
    /// Removed when it is empty.
    Remove(Leaf),
    /// Told when nothing is left of what was to be ended until now.
    Settle(Instant, oneshot::Sender<()>),
}

/// Where work is handed over; nothing until the first command is started.
static TASKS: Mutex<Option<Sender<Task>>> = Mutex::new(None);

/// Ends a family. Comes back at once; the receiver hears when nothing is left.
pub(super) fn end(family: Arc<Mutex<Family>>, leaf: Option<Leaf>) -> oneshot::Receiver<()> {
    let (done, receiver) = oneshot::channel();
    hand_over(Task::End(Doomed { family, leaf, done: Some(done), since: Instant::now(), is_stopped: false }));
    receiver
}

/// Removes a leaf once nothing is in it any more.
pub(super) fn remove(leaf: Leaf) {
    hand_over(Task::Remove(leaf));
}

/// Takes over the leaves of a dead daemon.
pub(super) fn inherit(left: Vec<Leaf>, ended: Vec<Leaf>) {
    if let Err(error) = ready() {
        tracing::warn!("empty cgroups of before stay until a later start: {error}");
    }
    for leaf in ended {
        leaf.kill();
        remove(leaf);
    }
    left.into_iter().for_each(remove);
}

/// Waits until nothing is left of all that was to be ended until now.
pub(super) async fn settled() {
    let (done, receiver) = oneshot::channel();
    hand_over(Task::Settle(Instant::now(), done));
    // Where nothing was ever started, nobody answers.
    _ = receiver.await;
}

/// Sees to it that commands can be ended. To be asked before each is started: one that multiplies may leave no room for
/// another thread.
///
/// # Errors
/// When there is no room for one now.
pub(super) fn ready() -> io::Result<()> {
    let mut tasks = tasks();
    if tasks.is_none() {
        let (sender, receiver) = mpsc::channel();
        std::thread::Builder::new().name("machines-reaper".to_owned()).spawn(move || work(&receiver))?;
        *tasks = Some(sender);
    }
    Ok(())
}

fn tasks() -> MutexGuard<'static, Option<Sender<Task>>> {
    TASKS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hand_over(task: Task) {
    // The thread ends only with the process.
    if let Some(tasks) = &*tasks() {
        _ = tasks.send(task);
    }
}

fn work(tasks: &Receiver<Task>) {
    // Ahead of what multiplies; only root may.
    _ = rustix::process::setpriority_process(None, -10);
    let (mut doomed, mut leaves): (Vec<Doomed>, Vec<Leaf>) = (Vec::new(), Vec::new());
    let mut waiting: Vec<(Instant, Option<oneshot::Sender<()>>)> = Vec::new();
    loop {
        let wait = match (doomed.is_empty(), leaves.is_empty()) {
            (false, _) => PAUSE,
            (true, false) => LEAF_PAUSE,
            (true, true) => Duration::MAX,
        };
        match tasks.recv_timeout(wait) {
            Ok(task) => std::iter::once(task).chain(tasks.try_iter()).for_each(|task| match task {
                Task::End(family) => doomed.push(family),
                Task::Remove(leaf) => leaves.push(leaf),
                Task::Settle(asked, done) => waiting.push((asked, Some(done))),
            }),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        stop_new(&mut doomed);
        doomed.retain_mut(|family| {
            let is_over = family.kill();
            if is_over {
                leaves.extend(family.leaf.take());
                _ = family.done.take().map(|done| done.send(()));
            }
            !is_over
        });
        let oldest = doomed.iter().map(|family| family.since).min();
        waiting.retain_mut(|(asked, done)| {
            let waits = oldest.is_some_and(|since| since <= *asked);
            if !waits {
                _ = done.take().map(|done| done.send(()));
            }
            waits
        });
        leaves.retain(|leaf| leaf.remove() == Removal::InUse);
    }
}

/// Stops all that is new, with one look for what has hidden from its family.
fn stop_new(doomed: &mut [Doomed]) {
    let new: Vec<&mut Doomed> = doomed.iter_mut().filter(|family| !family.is_stopped).collect();
    if new.is_empty() {
        return;
    }
    let marks: Vec<Vec<u8>> = new.iter().map(|doomed| doomed.family().mark().to_vec()).collect();
    // First what is near, so that nothing of it is born while the others are looked for.
    for family in &new {
        family.stop(&[]);
    }
    let mut hidden = tree::marked(marks.iter().map(Vec::as_slice));
    for (family, mark) in new.into_iter().zip(&marks) {
        family.stop(&hidden.remove(mark.as_slice()).unwrap_or_default());
        family.is_stopped = true;
    }
}

impl Doomed {
    fn family(&self) -> MutexGuard<'_, Family> {
        self.family.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn members(&self) -> Vec<i32> {
        self.leaf.as_ref().map(Leaf::members).unwrap_or_default()
    }

    fn stop(&self, hidden: &[i32]) {
        let mut others = self.members();
        others.extend(hidden);
        self.family().stop(&others);
    }

    /// Kills what there is. Whether nothing is left, or nothing more can be done.
    fn kill(&self) -> bool {
        if let Some(leaf) = &self.leaf {
            leaf.kill();
        }
        let left = self.family().kill(&self.members());
        let is_empty = left == 0 && self.leaf.as_ref().is_none_or(Leaf::is_empty);
        let is_late = self.since.elapsed() > PATIENCE;
        if is_late && !is_empty {
            tracing::error!(
                "{left} processes of a command could not be ended within {}",
                crate::duration::format(PATIENCE)
            );
        }
        // The supervisor goes last: below it, everything is found.
        let is_dismissed = (is_empty || is_late) && self.family().dismiss();
        is_dismissed || is_late
    }
}
