//! The time of day, as machines see it. A scenario test (`machinesd test`) runs machines on a virtual clock, on which days
//! pass in milliseconds; everywhere else it is the system's.

use jiff::Timestamp;
use tokio::time::Instant;

/// Tells the time of day; cheap to clone.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The system's.
    #[default]
    System,
    /// Was `begin` at `since`, and goes on as the runtime's clock does, which may be paused.
    Virtual { begin: Timestamp, since: Instant },
}

impl Clock {
    /// A clock that is at `begin` now and goes with the runtime's clock.
    pub fn starting_at(begin: Timestamp) -> Self {
        Self::Virtual { begin, since: Instant::now() }
    }

    /// The time of day.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            Self::Virtual { begin, since } => begin.saturating_add(since.elapsed()).unwrap_or(Timestamp::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_virtual_clock_goes_with_the_runtime() {
        let begin: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let clock = Clock::starting_at(begin);
        tokio::time::sleep(Duration::from_secs(86_400)).await;
        assert_eq!(clock.now().to_string(), "2026-01-02T00:00:00Z");
    }
}
