//! The daemon gets children that it did not start: as process 1 of a container every process there whose parent has died; and,
//! where a command is its child itself, in a cgroup, what that starts as a sibling (`CLONE_PARENT`). It must wait for each, or
//! they stay as dead entries until there is no room for another process.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

use super::bounds::By;
use super::tree;

/// At most this often.
const PAUSE: Duration = Duration::from_secs(1);

/// Held while a child is started, so that none is taken for an orphan before its number is noted.
static STARTS: RwLock<()> = RwLock::new(());
/// Children that somebody here waits for.
static OWN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// The number of a child that is waited for elsewhere, for as long as this lives.
pub(super) struct Own(pub Pid);

impl Drop for Own {
    fn drop(&mut self) {
        OWN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0.as_raw_nonzero().get());
    }
}

/// Starts a child that its caller waits for.
pub(super) fn spawning(start: impl FnOnce() -> io::Result<Child>) -> io::Result<(Child, Own)> {
    let _starting = STARTS.read().unwrap_or_else(PoisonError::into_inner);
    let child = start()?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("it has no process id"))?;
    OWN.lock().unwrap_or_else(PoisonError::into_inner).insert(pid.as_raw_nonzero().get());
    Ok((child, Own(pid)))
}

/// Waits for orphans, for as long as the program runs; ends at once where nobody gets any.
pub async fn reap(bounded: By) {
    if rustix::process::getpid() != Pid::INIT && bounded != By::Cgroup {
        return;
    }
    let mut deaths = match signal(SignalKind::child()) {
        Ok(deaths) => deaths,
        Err(error) => return tracing::error!("orphans are not waited for: {error}"),
    };
    loop {
        _ = tokio::task::spawn_blocking(bury).await;
        tokio::time::sleep(PAUSE).await;
        deaths.recv().await;
    }
}

fn bury() {
    // Mostly there are none, and no start need wait for this.
    if orphans().is_empty() {
        return;
    }
    let _no_start = STARTS.write().unwrap_or_else(PoisonError::into_inner);
    for pid in orphans() {
        // One that lives is left alone.
        _ = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

fn orphans() -> Vec<Pid> {
    let children = tree::children(rustix::process::getpid());
    let own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    children.into_iter().filter(|pid| !own.contains(pid)).filter_map(Pid::from_raw).collect()
}
