//! The brake on fast transitions: after the first, each further one without a quiet minute waits longer, up to 5 s, so
//! that a machine that moves in circles can't take a processor. Pure: the time comes in, the wait goes out.

use std::time::Duration;

use tokio::time::Instant;

const QUIET: Duration = Duration::from_secs(60);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Machines pass through a few states in quick succession for good reasons; those are not slowed.
const FREE_MOVES: u32 = 3;

/// Remembers the moves since the last quiet minute.
#[derive(Debug, Default)]
pub struct Brake {
    last: Option<Instant>,
    moves: u32,
}

impl Brake {
    /// How long a move must wait that is asked for now.
    pub fn wait(&mut self, now: Instant) -> Duration {
        if self.last.is_none_or(|last| now.duration_since(last) >= QUIET) {
            self.moves = 0;
        }
        let excess = self.moves.saturating_sub(FREE_MOVES);
        if excess == 0 {
            return Duration::ZERO;
        }
        let due = Duration::from_millis(500).saturating_mul(excess).min(LONGEST_WAIT);
        let since = self.last.map_or(Duration::MAX, |last| now.duration_since(last));
        due.saturating_sub(since)
    }

    /// Notes that a move was made.
    pub fn moved(&mut self, now: Instant) {
        self.last = Some(now);
        self.moves = self.moves.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_in_circles_are_slowed_to_one_in_five_seconds_and_a_quiet_minute_forgives() {
        let mut brake = Brake::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..20 {
            let wait = brake.wait(now);
            waits.push(wait.as_millis());
            now += wait;
            assert_eq!(brake.wait(now), Duration::ZERO, "after the wait the move is free");
            brake.moved(now);
        }
        assert_eq!(waits[..6], [0, 0, 0, 0, 500, 1_000]);
        assert_eq!(waits[19], 5_000);
        assert_eq!(brake.wait(now + QUIET), Duration::ZERO);
    }
}
