//! Keeps calm with a server that doesn't: one that takes each connection and closes it at once is not connected to without
//! end, and one that reports errors without end does not fill the log. In: what happens, and when. Out: how long to wait,
//! and whether to tell.

use std::time::Duration;

use tokio::time::Instant;

use super::backoff;

/// A connection, or a reading, that lived for less does not count as a success.
pub(super) const STEADY: Duration = Duration::from_secs(30);
const FIRST: Duration = Duration::from_millis(50);
const MAXIMUM: Duration = Duration::from_secs(10);

/// So many errors of a server are told, and then none until the time is over.
const TOLD: u32 = 10;
const TOLD_WITHIN: Duration = Duration::from_mins(1);

/// When to try again. The client itself counts from nothing after each connection, however short.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// When the last one was to begin.
    last: Option<Instant>,
    /// Connections in a row that were lost soon.
    short: usize,
}

impl Attempts {
    /// Fast at first, as most interruptions are restarts; then slower, and spread, so that a fleet does not come back as
    /// one wave. `attempt` counts from 1 after each connection.
    pub fn delay(&mut self, attempt: usize, now: Instant) -> Duration {
        if attempt <= 1 {
            let was_short = self.last.is_some_and(|last| now.saturating_duration_since(last) < STEADY);
            self.short = if was_short { self.short.saturating_add(1) } else { 0 };
        }
        // One that was lost soon is forgiven: a server may restart twice.
        let delay = match attempt.max(self.short) {
            0 | 1 => Duration::ZERO,
            more => backoff(more.saturating_sub(2), FIRST, MAXIMUM),
        };
        self.last = Some(now + delay);
        delay
    }
}

/// What to tell of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tell {
    Error,
    /// And that the next ones are not told.
    LastError,
    Nothing,
}

/// The errors that a server reports.
#[derive(Debug, Default)]
pub(super) struct Errors {
    since: Option<Instant>,
    count: u32,
}

impl Errors {
    pub fn tell(&mut self, now: Instant) -> Tell {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= TOLD_WITHIN) {
            (self.since, self.count) = (Some(now), 0);
        }
        self.count = self.count.saturating_add(1);
        match self.count {
            ..TOLD => Tell::Error,
            TOLD => Tell::LastError,
            _ => Tell::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_are_lost_at_once_are_made_more_and_more_slowly() {
        let (mut attempts, mut now) = (Attempts::default(), Instant::now());
        let began = now;
        for _ in 0..60 {
            now += attempts.delay(1, now) + Duration::from_millis(1);
        }
        assert!(now - began > Duration::from_mins(4), "60 connections in {:?}", now - began);
        now += STEADY;
        assert_eq!(attempts.delay(1, now), Duration::ZERO, "after a steady one, at once");
    }

    #[test]
    fn a_server_that_restarts_is_tried_at_once_and_then_more_slowly() {
        let (mut attempts, mut now) = (Attempts::default(), Instant::now());
        assert_eq!(attempts.delay(1, now), Duration::ZERO);
        for _ in 0..2 {
            now += STEADY;
            assert_eq!(attempts.delay(1, now), Duration::ZERO);
        }
        now += Duration::from_secs(1);
        assert_eq!(attempts.delay(1, now), Duration::ZERO, "one that was lost soon is forgiven");
        assert!(attempts.delay(2, now) >= FIRST / 2);
        assert!(attempts.delay(30, now) >= MAXIMUM / 2);
    }

    #[test]
    fn errors_without_end_are_told_a_few_times_a_minute() {
        let (mut errors, now) = (Errors::default(), Instant::now());
        let told: Vec<Tell> = (0..10_000).map(|_| errors.tell(now)).filter(|tell| *tell != Tell::Nothing).collect();
        assert_eq!(told.len(), 10);
        assert_eq!(told.last(), Some(&Tell::LastError));
        assert_eq!(errors.tell(now + TOLD_WITHIN), Tell::Error);
    }
}
