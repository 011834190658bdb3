//! When a failed step may be tried again: later and later, never exactly when the other nodes do.
//!
//! In: outcomes and the time. Out: how long to wait.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The waits of all machines that failed. Kept in memory only: a restart is a good reason to try at once.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    waits: BTreeMap<String, Wait>,
    repairs: BTreeMap<String, Repairs>,
}

/// Repairs of one machine that followed each other closely.
#[derive(Debug)]
struct Repairs {
    subject: String,
    count: u32,
    last: Instant,
}

/// So many repairs in a row are made at once. Then something on the node writes into the machine whenever it is
/// repaired, most likely the machine itself when it starts; each repair costs a download, a copy and a restart.
const FREE_REPAIRS: u32 = 10;

#[derive(Debug)]
struct Wait {
    /// What failed, such as a checksum and a source. Something else under the same name is tried at once.
    subject: String,
    failures: u32,
    due: Instant,
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, waits: BTreeMap::new(), repairs: BTreeMap::new() }
    }

    /// How long the subject has to wait; `None` when it may be tried now.
    pub fn waiting(&self, name: &str, subject: &str, now: Instant) -> Option<Duration> {
        let wait = self.waits.get(name).filter(|wait| wait.subject == subject)?;
        wait.due.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// Counts a failure and returns how long to wait.
    pub fn failed(&mut self, name: &str, subject: &str, now: Instant) -> Duration {
        let failures = match self.waits.get(name) {
            Some(wait) if wait.subject == subject => wait.failures.saturating_add(1),
            _ => 1,
        };
        let doubled = self.first.saturating_mul(1u32.checked_shl(failures - 1).unwrap_or(u32::MAX));
        let delay = doubled.min(self.longest).mul_f64(0.5 + random_share() / 2.0);
        let due = now.checked_add(delay).unwrap_or(now);
        self.waits.insert(name.to_owned(), Wait { subject: subject.to_owned(), failures, due });
        delay
    }

    /// Counts a repair that succeeded.
    pub fn repaired(&mut self, name: &str, subject: &str, now: Instant) {
        let forget_after = self.longest.saturating_mul(2);
        let repairs = self
            .repairs
            .remove(name)
            .filter(|repairs| repairs.subject == subject && now.saturating_duration_since(repairs.last) < forget_after);
        let count = repairs.map_or(1, |repairs| repairs.count.saturating_add(1));
        self.repairs.insert(name.to_owned(), Repairs { subject: subject.to_owned(), count, last: now });
    }

    /// How long the next repair has to wait, and after how many; `None` when it may be made now.
    pub fn repair_waiting(&self, name: &str, subject: &str, now: Instant) -> Option<(u32, Duration)> {
        let repairs = self.repairs.get(name).filter(|repairs| repairs.subject == subject)?;
        let doublings = repairs.count.checked_sub(FREE_REPAIRS)?;
        let delay = self.first.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(self.longest);
        let left = repairs.last.checked_add(delay)?.checked_duration_since(now).filter(|left| !left.is_zero())?;
        Some((repairs.count, left))
    }

    /// Forgets what is not among the names, so that nothing is kept of machines that are gone.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.waits.retain(|name, _| keep(name));
        self.repairs.retain(|name, _| keep(name));
    }

    /// Failures in a row.
    pub fn failures(&self, name: &str) -> u32 {
        self.waits.get(name).map_or(0, |wait| wait.failures)
    }

    pub fn succeeded(&mut self, name: &str) {
        self.waits.remove(name);
    }

    pub fn forget_all(&mut self) {
        self.waits.clear();
        self.repairs.clear();
    }
}

/// Uniform in [0, 1]. Without randomness from the system the waits only lose their spread.
fn random_share() -> f64 {
    f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_are_spread() {
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(300));
        let now = Instant::now();
        for (failure, seconds) in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300].into_iter().enumerate() {
            let wait = backoff.failed("facts", "one", now);
            let full = Duration::from_secs(seconds);
            assert!(wait >= full / 2 && wait <= full, "failure {failure}: {wait:?}");
            assert_eq!(backoff.waiting("facts", "one", now), Some(wait));
            assert_eq!(backoff.waiting("facts", "one", now + wait), None);
        }
        for _ in 0..100 {
            assert!(backoff.failed("facts", "one", now) <= Duration::from_secs(300));
        }
    }

    #[test]
    fn repairs_that_do_not_last_are_made_less_and_less_often() {
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(300));
        let mut now = Instant::now();
        for _ in 0..FREE_REPAIRS {
            assert_eq!(backoff.repair_waiting("facts", "one", now), None);
            backoff.repaired("facts", "one", now);
        }
        for (index, seconds) in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300].into_iter().enumerate() {
            let count = FREE_REPAIRS + u32::try_from(index).unwrap();
            let wait = Duration::from_secs(seconds);
            assert_eq!(backoff.repair_waiting("facts", "one", now), Some((count, wait)));
            assert_eq!(backoff.repair_waiting("facts", "two", now), None, "another version is another matter");
            now += wait;
            assert_eq!(backoff.repair_waiting("facts", "one", now), None);
            backoff.repaired("facts", "one", now);
        }
        backoff.repaired("facts", "one", now + Duration::from_secs(601));
        assert_eq!(backoff.repair_waiting("facts", "one", now + Duration::from_secs(602)), None, "it lasted");
        backoff.retain(|name| name != "facts");
        assert!(backoff.waits.is_empty() && backoff.repairs.is_empty());
    }

    #[test]
    fn another_subject_and_another_machine_do_not_wait() {
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(300));
        let now = Instant::now();
        backoff.failed("facts", "one", now);
        assert_eq!(backoff.waiting("facts", "two", now), None);
        assert_eq!(backoff.waiting("other", "one", now), None);
        backoff.failed("facts", "two", now);
        assert_eq!(backoff.failures("facts"), 1);
        backoff.succeeded("facts");
        assert_eq!((backoff.failures("facts"), backoff.waiting("facts", "two", now)), (0, None));
    }
}
