//! Who makes the next pass, and with which envelope: the newest one. Passes take turns, and an operator's must not hold an
//! older specification in front of a newer one for as long as its downloads take, nor a watcher's one that an operator has
//! just read something newer than. Two sides offer: the watchers, whose data a `kv` watcher keeps, and operators, whose
//! pass reads the store itself.
//!
//! In: envelopes as they arrive and are read. Out: which one to take at one's turn, the end of a pass that another one
//! supersedes, and the result of a pass that has covered what somebody waits for.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::plan::Removals;
use super::reconcile::Rules;
use super::status::Pass;
use crate::digest::Sha256Digest;

/// For so long what an operator's pass has read counts as newer than what a watcher has had since before: in that time
/// the watcher's data is brought up to date, by its watch or by its poll.
const READ_IS_NEWER_FOR: Duration = Duration::from_mins(2);

/// Whose pass it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Watcher,
    Operator,
}

/// What a pass is made with.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub side: Side,
    pub rules: Rules,
    /// `None`: the specification accepted last.
    pub envelope: Option<Sha256Digest>,
    pub removals: Removals,
}

/// All offers and passes of one node.
#[derive(Debug)]
pub(super) struct Offers {
    ledger: Mutex<Ledger>,
    /// Passes up to this number are to end.
    superseded: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ledger {
    /// Passes that have begun.
    begun: u64,
    running: Option<(u64, Work)>,
    /// Calls that wait or work.
    calls: usize,
    /// The last pass that came to its end, while somebody may wait for it.
    ended: Option<(u64, Work, Pass)>,
    /// Of what arrives and is read: the greater, the newer.
    sequence: u64,
    brought: Option<Offered<Sha256Digest>>,
    read: Option<Offered<Vec<u8>>>,
}

#[derive(Debug)]
struct Offered<T> {
    rules: Rules,
    what: T,
    sequence: u64,
    at: Instant,
}

impl Default for Offers {
    fn default() -> Self {
        Self { ledger: Mutex::default(), superseded: watch::Sender::new(0) }
    }
}

/// One call for a pass, from its arrival to its end.
#[derive(Debug)]
pub(super) struct Call<'a> {
    offers: &'a Offers,
    /// A pass with a greater number began after the call had arrived, and so has seen what the call is about.
    arrived: u64,
    /// Of the envelope that it came with.
    sequence: u64,
}

/// A pass that has begun; over when dropped.
pub(super) struct Begun<'a> {
    offers: &'a Offers,
    number: u64,
}

impl Offers {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrive(&self, ledger: &mut Ledger, sequence: u64) -> Call<'_> {
        ledger.calls += 1;
        Call { offers: self, arrived: ledger.begun, sequence }
    }

    /// Without an envelope.
    pub fn call(&self) -> Call<'_> {
        let mut ledger = self.ledger();
        let sequence = ledger.sequence;
        self.arrive(&mut ledger, sequence)
    }

    /// With what a watcher has. It is news only when it is other than what was there before; then an operator's pass with
    /// something else is to end.
    pub fn bring(&self, work: &Work) -> Call<'_> {
        let mut ledger = self.ledger();
        let Some(digest) = work.envelope else { return self.arrive(&mut ledger, 0) };
        let known = ledger.brought.as_ref().filter(|known| known.rules == work.rules && known.what == digest);
        let sequence = match known {
            Some(known) => known.sequence,
            None => {
                ledger.sequence += 1;
                let sequence = ledger.sequence;
                ledger.brought =
                    Some(Offered { rules: work.rules.clone(), what: digest, sequence, at: Instant::now() });
                self.supersede(&ledger, Side::Operator, work);
                sequence
            }
        };
        self.arrive(&mut ledger, sequence)
    }

    /// Ends the pass that runs for a side by the same rules with another envelope.
    fn supersede(&self, ledger: &Ledger, side: Side, by: &Work) {
        if let Some((number, running)) = &ledger.running
            && running.side == side
            && running.rules == by.rules
            && running.envelope != by.envelope
        {
            self.superseded.send_replace(*number);
        }
    }

    /// Waits until a pass has to end for a newer one.
    pub async fn superseded(&self, begun: &Begun<'_>) {
        let mut superseded = self.superseded.subscribe();
        // The sender is our own.
        _ = superseded.wait_for(|up_to| *up_to >= begun.number).await;
    }
}

impl<'a> Call<'a> {
    /// Before an operator's look at the store: what is brought from here on is newer than what it finds.
    pub fn look(&mut self) {
        let mut ledger = self.offers.ledger();
        ledger.sequence += 1;
        self.sequence = ledger.sequence;
    }

    /// What it found: a watcher's pass with something else is to end, now or at its turn.
    pub fn found(&self, work: &Work, envelope: &[u8]) {
        let mut ledger = self.offers.ledger();
        let (rules, what) = (work.rules.clone(), envelope.to_vec());
        ledger.read = Some(Offered { rules, what, sequence: self.sequence, at: Instant::now() });
        self.offers.supersede(&ledger, Side::Watcher, work);
    }

    /// What an operator has read since the watcher's value came; it is newer.
    pub fn newer(&self, work: &Work) -> Option<Vec<u8>> {
        let ledger = self.offers.ledger();
        let read = ledger.read.as_ref()?;
        let newer = read.sequence > self.sequence && read.rules == work.rules;
        (newer && read.at.elapsed() < READ_IS_NEWER_FOR).then(|| read.what.clone())
    }

    /// The result of a pass that began after this call had arrived, with the same envelope or, for a watcher's, with what
    /// an operator's pass read meanwhile.
    pub fn covered(&self, work: &Work) -> Option<Pass> {
        let ledger = self.offers.ledger();
        let (number, ended, pass) = ledger.ended.as_ref()?;
        let same = ended.envelope == work.envelope;
        let newer = work.side == Side::Watcher && ended.side == Side::Operator;
        let allowed = work.removals == Removals::Guarded || ended.removals == Removals::Allowed;
        (*number > self.arrived && ended.rules == work.rules && allowed && (same || newer)).then(|| pass.clone())
    }

    /// Begins a pass; `None` when something newer was brought since this call's envelope was read.
    pub fn begin(&self, work: &Work) -> Option<Begun<'a>> {
        let mut ledger = self.offers.ledger();
        let is_newer = |brought: &Offered<Sha256Digest>| {
            brought.sequence > self.sequence && brought.rules == work.rules && Some(brought.what) != work.envelope
        };
        if work.side == Side::Operator && ledger.brought.as_ref().is_some_and(is_newer) {
            return None;
        }
        ledger.begun += 1;
        let number = ledger.begun;
        ledger.running = Some((number, work.clone()));
        Some(Begun { offers: self.offers, number })
    }
}

impl Begun<'_> {
    /// The pass came to its end.
    pub fn ended(&self, work: Work, pass: &Pass) {
        let mut ledger = self.offers.ledger();
        // Only for those that wait: it may be large.
        ledger.ended = (ledger.calls > 1).then(|| (self.number, work, pass.clone()));
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.offers.ledger().running = None;
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut ledger = self.offers.ledger();
        ledger.calls = ledger.calls.saturating_sub(1);
        if ledger.calls == 0 {
            ledger.ended = None;
        }
    }
}
