//! Keeps the files of what runs: a copy that no link points at any more may still be run from, for as long as the host
//! does not take its successor, and must not be removed under it.
//!
//! In: copies. Out: leases; which copies have one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::store::CopyName;

/// The copies that are run from, with the count of their leases.
#[derive(Debug, Default)]
pub(super) struct Leases(Arc<Mutex<BTreeMap<CopyName, usize>>>);

/// Keeps a copy in the store until it is dropped.
#[derive(Debug)]
pub struct Lease {
    leases: Arc<Mutex<BTreeMap<CopyName, usize>>>,
    copy: CopyName,
}

impl Leases {
    pub fn take(&self, copy: CopyName) -> Lease {
        *lock(&self.0).entry(copy).or_default() += 1;
        Lease { leases: Arc::clone(&self.0), copy }
    }

    pub fn is_taken(&self, copy: CopyName) -> bool {
        lock(&self.0).contains_key(&copy)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = lock(&self.leases);
        match leases.get_mut(&self.copy) {
            Some(count) if *count > 1 => *count -= 1,
            _ => _ = leases.remove(&self.copy),
        }
    }
}

fn lock(leases: &Mutex<BTreeMap<CopyName, usize>>) -> MutexGuard<'_, BTreeMap<CopyName, usize>> {
    leases.lock().unwrap_or_else(PoisonError::into_inner)
}
