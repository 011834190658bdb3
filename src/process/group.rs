//! A running command with all it has started: asked to end, ended, metered; and ended when it is dropped, so that a cancelled
//! check leaves nothing running.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Pid;

use super::bounds::Containment;
use super::cgroup::{Controller, Leaf};
use super::confine::Limits;
use super::tree::{Family, excess_of_processor};
use super::{Remains, reaper};

/// How often what a limited command uses is added up.
const METER_INTERVAL: Duration = Duration::from_millis(200);

pub(super) struct Group {
    family: Arc<Mutex<Family>>,
    leaf: Option<Leaf>,
    remains: Remains,
    is_over: bool,
}

impl Group {
    pub(super) fn new(
        leader: Pid,
        containment: &Containment,
        leaf: Option<Leaf>,
        mark: &Path,
        remains: Remains,
    ) -> Self {
        let family = Arc::new(Mutex::new(Family::new(leader, containment.form(), mark)));
        if remains == Remains::Leave
            && let Some(leaf) = &leaf
        {
            leaf.leave();
        }
        Self { family, leaf, remains, is_over: false }
    }

    /// Works on the family where blocking is allowed: reading `/proc` takes milliseconds.
    async fn family<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Family, &[i32]) -> T + Send + 'static,
    ) -> Option<T> {
        let family = Arc::clone(&self.family);
        let leaf = self.leaf.as_ref().map(|leaf| Leaf { path: leaf.path.clone() });
        let work = move || {
            let others = leaf.map(|leaf| leaf.members()).unwrap_or_default();
            work(&mut family.lock().unwrap_or_else(PoisonError::into_inner), &others)
        };
        tokio::task::spawn_blocking(work).await.ok()
    }

    /// Waits until the family uses more than it may, and says what.
    pub(super) async fn excess(&self, limits: Limits, containment: &Containment) -> String {
        // What the kernel counts need not be counted here.
        let limits = Limits {
            memory_bytes: limits.memory_bytes.filter(|_| !containment.has(Controller::Memory)),
            tasks: limits.tasks.filter(|_| !containment.has(Controller::Pids)),
            cpu: limits.cpu,
        };
        loop {
            if !limits.are_set() {
                return std::future::pending().await;
            }
            tokio::time::sleep(METER_INTERVAL).await;
            // One small file, which the kernel makes in memory.
            let used = self.leaf.as_ref().and_then(Leaf::used);
            if let Some(excess) = used.and_then(|used| excess_of_processor(used, &limits)) {
                return excess;
            }
            let rest = Limits { cpu: limits.cpu.filter(|_| used.is_none()), ..limits };
            if rest.are_set()
                && let Some(Some(excess)) = self.family(move |family, others| family.excess(&rest, others)).await
            {
                return excess;
            }
        }
    }

    /// Asks all of it to end.
    pub(super) async fn terminate(&self) {
        self.family(Family::terminate).await;
    }

    /// Ends all of it.
    pub(super) async fn end(mut self) {
        self.is_over = true;
        // It fails only while the program ends.
        _ = reaper::end(Arc::clone(&self.family), self.leaf.take()).await;
    }

    /// Why the command's end was not its own, if the kernel knows.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.leaf.as_ref().is_some_and(Leaf::ran_out_of_memory)
    }

    /// The command ended in time; what it left in the background on purpose goes on.
    pub(super) async fn release(mut self) {
        self.is_over = true;
        self.let_go();
        // What is left is nobody's to find any more.
        _ = self.family(|family, _| family.dismiss()).await;
    }

    fn let_go(&mut self) {
        if let Some(leaf) = self.leaf.take() {
            if !leaf.is_empty() {
                leaf.leave();
            }
            reaper::remove(leaf);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        match self.remains {
            _ if self.is_over => {}
            Remains::Kill => drop(reaper::end(Arc::clone(&self.family), self.leaf.take())),
            Remains::Leave => self.let_go(),
        }
    }
}
