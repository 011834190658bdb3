//! The planner: what the specification wants here, what is installed, and the policies, into one step per machine.
//! Pure: no clock, no disk, no network, so that every decision is a row in the table of cases below, and so that
//! `machinesd run --once`, the daemon and any dry run decide alike.
//!
//! In: verified and evaluated entries, the inventory, the policies. Out: a [`Plan`].

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Sha256Digest;
use crate::names::MachineName;

/// The guard on removals looks at shares only from this many installed machines on: below it, one machine is already
/// a large share.
const SHARE_GUARD_FROM: usize = 4;

/// One entry of a verified specification with the answer of its match expression on this node.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The machine.
    pub name: MachineName,
    /// SHA-256 of its archive.
    pub checksum: Sha256Digest,
    /// SHA-256 of the checksums file in it.
    pub verify_checksum: Sha256Digest,
    /// Whether it is for this node.
    pub matching: Matching,
}

/// What a match expression said. That it failed is an answer of its own and never "no": counting it as "no" would
/// uninstall the machine on every node that can't evaluate it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matching {
    /// For this node.
    Matches,
    /// Not for this node.
    DoesNotMatch,
    /// Unknown, and why.
    Failed(String),
}

/// A machine that is installed: a link of ours in the machines directory.
#[derive(Debug, Clone)]
pub struct Installed {
    /// SHA-256 of the archive that it came from.
    pub checksum: Sha256Digest,
    /// SHA-256 of its checksums file as recorded when it was installed; `None` when that record is lost.
    pub verify_checksum: Option<Sha256Digest>,
    /// What a check of its files found.
    pub condition: Condition,
}

/// What a check of an installed machine's files found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Exactly what was installed.
    Sound,
    /// Changed since; one line per difference, never empty.
    Drifted(Vec<String>),
}

/// All that is in the machines directory.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// Installed by sync.
    pub machines: BTreeMap<MachineName, Installed>,
    /// Not installed by sync and therefore never touched: the file name as it can be shown, and what it is.
    pub foreign: BTreeMap<String, String>,
}

/// What to do with installed machines that the specification does not want on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purge {
    /// Remove them.
    Unknown,
    /// Leave them.
    Keep,
}

/// Whether the guard on removals is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removals {
    /// An operator allowed them for this specification.
    Allowed,
    /// An empty list, or one that removes too large a share, is held.
    Guarded,
}

/// The policies of a pass.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// What to do with machines that are not wanted.
    pub purge: Purge,
    /// Whether large removals are held.
    pub removals: Removals,
    /// The share of the installed machines, in percent, above which removals are held.
    pub hold_removals_over_percent: u8,
}

/// What to do with one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum Action {
    /// It is not there; put it there.
    Install,
    /// Another content is there; replace it.
    Upgrade {
        /// The archive that is installed now.
        from: Sha256Digest,
    },
    /// The right archive is installed and its files are not what they were; replace it by a fresh copy.
    Repair {
        /// One line per difference.
        differences: Vec<String>,
    },
    /// It should not be here.
    Remove,
    /// It is as it should be.
    Keep,
    /// Nothing is to be done, and why.
    Skip {
        /// For people.
        reason: String,
    },
    /// Something should be done and is not; someone has to look. It stays as it is.
    Hold {
        /// For people, with what to do about it.
        reason: String,
    },
}

impl Action {
    /// The word for status, logs and events.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Upgrade { .. } => "upgrade",
            Self::Repair { .. } => "repair",
            Self::Remove => "remove",
            Self::Keep => "keep",
            Self::Skip { .. } => "skip",
            Self::Hold { .. } => "hold",
        }
    }

    /// Whether it brings what was not there before, rather than to care for what is.
    fn is_news(&self) -> bool {
        matches!(self, Self::Install | Self::Upgrade { .. })
    }

    /// Whether carrying it out changes the node.
    pub fn changes_the_node(&self) -> bool {
        matches!(self, Self::Install | Self::Upgrade { .. } | Self::Repair { .. } | Self::Remove)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upgrade { from } => write!(formatter, "upgrade from {}", from.short()),
            Self::Repair { differences } => write!(formatter, "repair ({})", differences.join("; ")),
            Self::Skip { reason } => write!(formatter, "skip ({reason})"),
            Self::Hold { reason } => write!(formatter, "hold ({reason})"),
            Self::Install | Self::Remove | Self::Keep => formatter.write_str(self.word()),
        }
    }
}

/// One machine and what to do with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The machine, or the name of the foreign thing in its place. Text, as a foreign name need not be a valid one.
    pub name: String,
    /// What to do.
    pub action: Action,
}

/// Why all removals of a plan are held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeldRemovals {
    /// How many machines would go.
    pub removals: usize,
    /// Of how many.
    pub installed: usize,
    /// For people, with what to do about it.
    pub reason: String,
}

/// What to do, ordered by name: one step for each entry, each installed machine and each foreign thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The steps; they are independent of each other.
    pub steps: Vec<Step>,
    /// Set when the guard turned the removals into holds.
    pub held: Option<HeldRemovals>,
}

/// Puts what is broken and what must go before what is new: only so many steps are under way at one time, and all of them
/// may wait for a server.
pub fn urgent_first(steps: &mut [Step]) {
    steps.sort_by_key(|step| step.action.is_news());
}

/// Decides what to do.
pub fn plan(wanted: &[Wanted], inventory: &Inventory, policy: Policy) -> Plan {
    let mut actions: BTreeMap<&str, Action> = BTreeMap::new();
    for (name, what) in &inventory.foreign {
        let reason = format!("{what}; sync did not install it and leaves it alone");
        actions.insert(name, Action::Skip { reason });
    }
    for name in inventory.machines.keys() {
        actions.insert(name.as_str(), unwanted("the specification does not list it", policy.purge));
    }
    for entry in wanted {
        let action = match (inventory.foreign.get(entry.name.as_str()), inventory.machines.get(&entry.name)) {
            (Some(what), _) => in_the_way(what, entry),
            (None, installed) => decide(entry, installed, policy.purge),
        };
        actions.insert(entry.name.as_str(), action);
    }
    let removals = actions.values().filter(|action| matches!(action, Action::Remove)).count();
    let held = guard(wanted.is_empty(), removals, inventory.machines.len(), policy);
    let steps = actions.into_iter().map(|(name, action)| {
        let action = match (&held, action) {
            (Some(held), Action::Remove) => Action::Hold { reason: held.reason.clone() },
            (_, action) => action,
        };
        Step { name: name.to_owned(), action }
    });
    Plan { steps: steps.collect(), held }
}

fn decide(entry: &Wanted, installed: Option<&Installed>, purge: Purge) -> Action {
    match (&entry.matching, installed) {
        (Matching::Failed(why), _) => Action::Hold { reason: format!("its match expression failed: {why}") },
        (Matching::DoesNotMatch, None) => Action::Skip { reason: "its match expression is false here".to_owned() },
        (Matching::DoesNotMatch, Some(_)) => unwanted("its match expression is false here", purge),
        (Matching::Matches, None) => Action::Install,
        (Matching::Matches, Some(installed)) => {
            // A lost record is no other content: the check then went against the entry's own `verify_checksum`.
            let same_list = installed.verify_checksum.is_none_or(|recorded| recorded == entry.verify_checksum);
            match &installed.condition {
                _ if installed.checksum != entry.checksum || !same_list => Action::Upgrade { from: installed.checksum },
                Condition::Sound => Action::Keep,
                Condition::Drifted(differences) => Action::Repair { differences: differences.clone() },
            }
        }
    }
}

fn unwanted(why: &str, purge: Purge) -> Action {
    match purge {
        Purge::Unknown => Action::Remove,
        Purge::Keep => Action::Skip { reason: format!("{why}; it stays, as purge_unknown is off") },
    }
}

fn in_the_way(what: &str, entry: &Wanted) -> Action {
    match entry.matching {
        Matching::DoesNotMatch => Action::Skip { reason: format!("its match expression is false here; {what}") },
        _ => Action::Hold { reason: format!("{what}, and sync did not install it: move it aside") },
    }
}

/// A mistake at the publisher, such as an empty list or a wrong filter, must not clear a fleet.
fn guard(list_is_empty: bool, removals: usize, installed: usize, policy: Policy) -> Option<HeldRemovals> {
    if removals == 0 || policy.removals == Removals::Allowed {
        return None;
    }
    let percent = usize::from(policy.hold_removals_over_percent);
    let share_exceeded = installed >= SHARE_GUARD_FROM && removals * 100 > installed * percent;
    let what = match (list_is_empty, share_exceeded) {
        (true, _) => format!("the specification is empty and would remove all {installed} installed machines"),
        (false, true) => {
            format!("the specification would remove {removals} of {installed} installed machines, over {percent}%")
        }
        (false, false) => return None,
    };
    let reason = format!("{what}: if that is meant, run `machinesd sync --allow-removals` on this node");
    Some(HeldRemovals { removals, installed, reason })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
