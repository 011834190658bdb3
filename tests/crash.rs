//! A `SIGKILL` at any moment of an install, an upgrade or a purge leaves each agent old or new and whole, and the next
//! start finishes the job. 50 times the real `machinesd` is killed at a random moment of its work (and sometimes its
//! restart too) and must then converge, while observers look at the agents all the time and check every byte.
//!
//! `MACHINES_CRASH_SEED=…` repeats a run's choices, though not its timing; `MACHINES_SOAK=20` makes 20 times as many
//! (`make soak`).

#![cfg(test)]

#[path = "crash/agents.rs"]
mod agents;
#[path = "crash/node.rs"]
mod node;
#[path = "crash/observer.rs"]
mod observer;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agents::{Agents, NAMES, VERSIONS};
use node::{Manner, Node, Progress, Wanted};
use observer::{Allowed, Observers};

/// Of the normal suite.
const ROUNDS: u64 = 50;

/// After a kill, the restart may be killed as well: so many kills at most before one may converge.
const KILLS_IN_A_ROW: usize = 3;

/// About how long the changes of the disk take; kills are aimed at it.
const WORK_ON_DISK: Duration = Duration::from_millis(60);

#[test]
fn no_kill_at_any_moment_leaves_a_missing_or_mixed_agent_and_each_restart_converges() {
    let seed = number("MACHINES_CRASH_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
    let rounds = usize::try_from(ROUNDS * number("MACHINES_SOAK").unwrap_or(1).max(1)).unwrap();
    println!("seed: MACHINES_CRASH_SEED={seed}");
    let mut random = Random(seed);
    let started = Instant::now();

    let directory = tempfile::tempdir().unwrap();
    let agents = Agents::build(directory.path());
    let mut node = Node::new(directory.path(), &agents);
    let observers = Observers::start(node.machines(), &agents);
    let mut tally = Tally::default();
    let mut pace = Pace::default();
    let mut wanted: Wanted = [None; NAMES.len()];

    while tally.rounds < rounds {
        let next = choose(wanted, &mut random);
        let step = Step::between(wanted, next);
        observers.expect(&allowed(wanted, next));
        let mut manner = random.manner();
        node.be_ready_for(manner);
        node.publish(next);
        let mut killed = 0;
        while killed == 0 || killed < KILLS_IN_A_ROW && random.share() < 0.2 {
            node.begin(manner);
            random.moment(&node, pace.of(manner));
            if node.kill() {
                tally.kill(step, node.progress(wanted, next));
                // Nothing works now, so what is there is what the crash left.
                observers.look_at_all();
                killed += 1;
            } else {
                tally.too_late += 1;
            }
            if random.share() < 0.3 {
                observers.between_observations(|| tally.aged += node.age_unused_copies());
            }
            manner = random.manner_of_a_restart();
        }
        let begun = node.begin(manner);
        node.converge(next);
        pace.took(manner, begun.elapsed());
        tally.rounds += 1;
        observers.look_at_all();
        wanted = next;
        observers.expect(&allowed(wanted, wanted));
    }
    node.stop();
    observers.look_at_all();
    let seen = observers.stop();
    node.check_what_is_left(wanted);

    println!("{tally}");
    println!("{seen}");
    println!("took {:.1} s", started.elapsed().as_secs_f64());
    let hit = |progress| tally.kills.keys().any(|(_, hit)| *hit == progress);
    assert!(
        rounds < 200 || hit(Progress::Staging) && hit(Progress::Stored),
        "kills fell into the work itself: {tally}"
    );
    assert!(seen.observations > rounds as u64, "the observers looked all the time: {seen}");
}

#[test]
fn a_restart_goes_on_with_what_was_accepted_last_also_while_the_store_is_away() {
    let directory = tempfile::tempdir().unwrap();
    let agents = Agents::build(directory.path());
    let mut node = Node::new(directory.path(), &agents);
    // The first is in the data that the manager's machine keeps, and the second is not: what it kept is older.
    for (wanted, manner) in [([Some(0), Some(0)], Manner::Daemon), ([Some(1), Some(1)], Manner::Once)] {
        node.be_ready_for(manner);
        node.publish(wanted);
        node.begin(manner);
        node.converge(wanted);
    }
    node.undo_the_flips([Some(0), None]);
    node.lose_the_store();
    node.begin(Manner::Daemon);
    node.converge([Some(1), Some(1)]);
    node.stop();
}

/// What each agent may be seen as while the node goes from one to the other.
fn allowed(from: Wanted, to: Wanted) -> [Allowed; NAMES.len()] {
    std::array::from_fn(|index| Allowed::between(from[index], to[index]))
}

/// The next desired state: never the one that is.
fn choose(now: Wanted, random: &mut Random) -> Wanted {
    loop {
        let mut next = now;
        next[0] = match now[0] {
            Some(_) if random.share() < 0.3 => None,
            _ => Some(random.below(VERSIONS)),
        };
        // The other agent is in every list, as an empty one is held.
        if now[1].is_none() || random.share() < 0.3 {
            next[1] = Some(random.below(VERSIONS));
        }
        if next != now {
            return next;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Install,
    Upgrade,
    Purge,
}

impl Step {
    fn between(from: Wanted, to: Wanted) -> Self {
        match (from[0], to[0]) {
            (None, _) => Self::Install,
            (Some(_), Some(_)) => Self::Upgrade,
            (Some(_), None) => Self::Purge,
        }
    }
}

#[derive(Default)]
struct Tally {
    /// By step and how far the work had come.
    kills: BTreeMap<(Step, Progress), usize>,
    /// `run --once` had ended before the signal came.
    too_late: usize,
    /// Copies that were made to look unused for long, so that kills hit their removal too.
    aged: usize,
    /// Each ends with a restart that converged: whatever does not fails the test at once.
    rounds: usize,
}

impl Tally {
    fn kill(&mut self, step: Step, progress: Progress) {
        *self.kills.entry((step, progress)).or_default() += 1;
    }

    fn kills(&self) -> usize {
        self.kills.values().sum()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(formatter, "kills: {} (and {} came after the end of `run --once`)", self.kills(), self.too_late)?;
        for ((step, progress), count) in &self.kills {
            writeln!(formatter, "  {step:?} {progress:?}: {count}")?;
        }
        writeln!(formatter, "unused copies aged: {}", self.aged)?;
        write!(formatter, "restarts after the last kill of a round: {0}, converged: {0}", self.rounds)
    }
}

/// How long undisturbed work takes, so that kills fall into all of it.
#[derive(Default)]
struct Pace(BTreeMap<Manner, Duration>);

impl Pace {
    fn of(&self, manner: Manner) -> Duration {
        self.0.get(&manner).copied().unwrap_or(Duration::from_millis(500)).mul_f64(1.1)
    }

    fn took(&mut self, manner: Manner, took: Duration) {
        self.0.entry(manner).and_modify(|known| *known = (*known * 3 + took) / 4).or_insert(took);
    }
}

/// Splitmix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In [0, 1).
    fn share(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).unwrap()) / (f64::from(u32::MAX) + 1.0)
    }

    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % count as u64).unwrap()
    }

    /// Lets time pass up to the moment of the kill: any of the whole duration, or, since the changes of the disk are
    /// only a small part of it, one of those that follow the first change.
    fn moment(&mut self, node: &Node<'_>, whole: Duration) {
        let share = self.share();
        if self.below(2) == 0 {
            return std::thread::sleep(whole.mul_f64(share));
        }
        node.wait_for_a_change(whole);
        std::thread::sleep(WORK_ON_DISK.mul_f64(share));
    }

    fn manner(&mut self) -> Manner {
        [Manner::RunningDaemon, Manner::Daemon, Manner::Once][self.below(3)]
    }

    fn manner_of_a_restart(&mut self) -> Manner {
        [Manner::Daemon, Manner::Once][self.below(2)]
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a number")))
}
