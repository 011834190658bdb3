//! Who gives way when a listener has as many connections as it may have: whoever is slow, never whoever is served. In: the
//! open connections, oldest first. Out: whether there is room, or whose place is taken.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering};

/// How many connections there may be at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub all: usize,
    /// From one address.
    pub each: usize,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its request is not here yet.
    Reading,
    /// Its request is worked on.
    Working,
    /// Its answer is on the way, or it waits for another request.
    Sending,
    /// Its answer has no end, as that of a follower of events.
    Streaming,
}

impl Stage {
    const ALL: [Self; 4] = [Self::Reading, Self::Working, Self::Sending, Self::Streaming];
}

/// The stage of a connection, told by its task.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicU8);

impl Progress {
    pub fn set(&self, stage: Stage) {
        let number = Stage::ALL.iter().position(|each| *each == stage).unwrap_or_default();
        self.0.store(u8::try_from(number).unwrap_or_default(), Ordering::Relaxed);
    }

    pub fn stage(&self) -> Stage {
        Stage::ALL.get(usize::from(self.0.load(Ordering::Relaxed))).copied().unwrap_or(Stage::Reading)
    }
}

/// A connection as it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    pub address: Option<IpAddr>,
    pub stage: Stage,
}

/// What becomes of one more connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Room,
    /// This one gives way.
    InPlaceOf(usize),
    /// All are being served.
    Full,
}

impl Places {
    /// Makes room for a connection from this address: first the oldest gives way that has not sent its request, then the
    /// oldest that does not take its answer. From an address that has its share already, it is one of its own.
    pub fn admit(self, open: &[Standing], address: Option<IpAddr>) -> Verdict {
        let is_of_it = |standing: &Standing| address.is_some() && standing.address == address;
        let has_its_share = open.iter().filter(|standing| is_of_it(standing)).count() >= self.each;
        if open.len() < self.all && !has_its_share {
            return Verdict::Room;
        }
        let oldest = |stage: Stage| {
            open.iter().position(|standing| standing.stage == stage && (!has_its_share || is_of_it(standing)))
        };
        oldest(Stage::Reading).or_else(|| oldest(Stage::Sending)).map_or(Verdict::Full, Verdict::InPlaceOf)
    }
}

#[cfg(test)]
mod tests {
    use super::Stage::{Reading, Sending, Streaming, Working};
    use super::*;

    const PLACES: Places = Places { all: 4, each: 2 };

    fn open(connections: &[(u8, Stage)]) -> Vec<Standing> {
        let standing = |(host, stage): &(u8, Stage)| Standing { address: Some(address(*host)), stage: *stage };
        connections.iter().map(standing).collect()
    }

    fn address(host: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, host])
    }

    #[test]
    fn the_oldest_that_has_not_sent_its_request_gives_way() {
        let full = open(&[(1, Working), (2, Sending), (3, Reading), (4, Reading)]);
        assert_eq!(PLACES.admit(&full[..3], Some(address(5))), Verdict::Room);
        assert_eq!(PLACES.admit(&full, Some(address(5))), Verdict::InPlaceOf(2));
    }

    #[test]
    fn whoever_does_not_take_its_answer_gives_way_next_and_whoever_is_served_never() {
        let full = open(&[(1, Working), (2, Sending), (3, Streaming), (4, Sending)]);
        assert_eq!(PLACES.admit(&full, Some(address(5))), Verdict::InPlaceOf(1));
        let full = open(&[(1, Working), (2, Streaming), (3, Working), (4, Working)]);
        assert_eq!(PLACES.admit(&full, Some(address(5))), Verdict::Full);
    }

    #[test]
    fn an_address_with_its_share_takes_only_places_of_its_own() {
        let some = open(&[(1, Reading), (2, Reading), (2, Reading)]);
        assert_eq!(PLACES.admit(&some, Some(address(2))), Verdict::InPlaceOf(1));
        assert_eq!(PLACES.admit(&some, Some(address(3))), Verdict::Room);
        let some = open(&[(1, Reading), (2, Working), (2, Working)]);
        assert_eq!(PLACES.admit(&some, Some(address(2))), Verdict::Full);
    }

    #[test]
    fn without_addresses_only_the_whole_counts() {
        let open = [Standing { address: None, stage: Reading }; 4];
        assert_eq!(PLACES.admit(&open[..3], None), Verdict::Room);
        assert_eq!(PLACES.admit(&open, None), Verdict::InPlaceOf(0));
    }

    #[test]
    fn progress_says_what_it_was_told() {
        let progress = Progress::default();
        assert_eq!(progress.stage(), Reading);
        for stage in Stage::ALL {
            progress.set(stage);
            assert_eq!(progress.stage(), stage);
        }
    }
}
