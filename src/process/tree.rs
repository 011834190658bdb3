//! All that a command has started, found in `/proc`: what is in its process group, what descends from it, and what has its
//! environment, wherever it hid. For ending it without a survivor, and for adding up what it uses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::confine::Limits;

/// Rounds of stopping and killing; each finds what the one before did not see being born.
const ROUNDS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(5);

/// A process of the moment.
#[derive(Debug, Clone, Copy)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    threads: u64,
    /// In clock ticks, with those of its children that it has waited for.
    processor_ticks: u64,
    /// Since the start of the system, in clock ticks; tells processes with one number apart.
    started: u64,
    resident_pages: u64,
}

impl Process {
    /// `None` for one that is gone, or dead and not yet waited for.
    fn read(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        let signed = |index: usize| fields.get(index).and_then(|field| field.parse::<i32>().ok());
        if matches!(*fields.first()?, "Z" | "X" | "x") {
            return None;
        }
        Some(Self {
            pid,
            parent: signed(1)?,
            group: signed(2)?,
            processor_ticks: (11..=14).filter_map(number).sum(),
            threads: number(17)?,
            started: number(19)?,
            resident_pages: number(21)?,
        })
    }
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Threads that run as this user.
pub(super) fn tasks_of(uid: u32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let own = |pid: &i32| std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|metadata| metadata.uid() == uid);
    pids().filter(own).filter_map(Process::read).map(|process| process.threads).sum()
}

/// How far members are looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Search {
    /// By group and descent.
    Relatives,
    /// Also by environment, which reads one more file of every process.
    Everywhere,
}

/// A command and all that it has started.
pub(super) struct Family {
    leader: Pid,
    /// What only its members have in their environment.
    mark: Vec<u8>,
    /// Seen before, by number and start.
    known: BTreeSet<(i32, u64)>,
}

impl Family {
    pub(super) fn new(leader: Pid, mark: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt;
        Self { leader, mark: mark.as_os_str().as_bytes().to_vec(), known: BTreeSet::new() }
    }

    fn members(&mut self, search: Search) -> Vec<Process> {
        let leader = self.leader.as_raw_nonzero().get();
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let all: BTreeMap<i32, Process> =
            pids().filter(|pid| *pid != own && *pid != 1).filter_map(Process::read).map(|it| (it.pid, it)).collect();
        let is_root = |process: &&Process| {
            process.pid == leader
                || process.group == leader
                || self.known.contains(&(process.pid, process.started))
                || (search == Search::Everywhere && self.has_mark(process.pid))
        };
        let mut members: BTreeSet<i32> = all.values().filter(is_root).map(|process| process.pid).collect();
        loop {
            let before = members.len();
            let born = all.values().filter(|process| members.contains(&process.parent)).map(|process| process.pid);
            let born: Vec<i32> = born.collect();
            members.extend(born);
            if members.len() == before {
                break;
            }
        }
        let members: Vec<Process> = members.iter().filter_map(|pid| all.get(pid).copied()).collect();
        self.known.extend(members.iter().map(|process| (process.pid, process.started)));
        members
    }

    fn has_mark(&self, pid: i32) -> bool {
        let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else { return false };
        environment.windows(self.mark.len().max(1)).any(|window| window == self.mark)
    }

    /// Remembers who belongs to it: one whose parent dies can't be found by descent any more.
    pub(super) fn look(&mut self) {
        self.members(Search::Relatives);
    }

    /// Ends every member. Each is stopped first, so that none can start another while the others are looked for.
    pub(super) fn kill(&mut self) {
        let mut stopped = BTreeSet::new();
        for _ in 0..ROUNDS {
            let members = self.members(Search::Everywhere);
            if members.is_empty() {
                return;
            }
            let new: Vec<i32> =
                members.iter().map(|process| process.pid).filter(|pid| !stopped.contains(pid)).collect();
            new.iter().for_each(|pid| signal(*pid, Signal::STOP));
            if new.is_empty() {
                members.iter().for_each(|process| signal(process.pid, Signal::KILL));
                std::thread::sleep(PAUSE);
            }
            stopped.extend(new);
        }
        // A family that grows faster than it is stopped; its user's limit of tasks is what bounds it.
        self.members(Search::Everywhere).iter().for_each(|process| signal(process.pid, Signal::KILL));
    }

    /// Why the family is to be ended: it uses more than its limits together.
    pub(super) fn excess(&mut self, limits: &Limits) -> Option<String> {
        let members = self.members(Search::Relatives);
        let pages: u64 = members.iter().map(|process| process.resident_pages).sum();
        let resident = pages.saturating_mul(u64::try_from(rustix::param::page_size()).unwrap_or(4_096));
        if let Some(limit) = limits.memory_bytes.filter(|limit| resident > *limit) {
            return Some(format!("used {resident} bytes of memory, more than its limit of {limit}"));
        }
        let ticks: u64 = members.iter().map(|process| process.processor_ticks).sum();
        let used = Duration::from_millis(ticks.saturating_mul(1_000) / rustix::param::clock_ticks_per_second().max(1));
        if let Some(limit) = limits.cpu.filter(|limit| used > *limit) {
            let (used, limit) = (crate::duration::format(used), crate::duration::format(limit));
            return Some(format!("used {used} of processor time, more than its limit of {limit}"));
        }
        let threads: u64 = members.iter().map(|process| process.threads).sum();
        let limit = limits.tasks.filter(|limit| threads > u64::from(*limit))?;
        Some(format!("had {threads} tasks at one time, more than its limit of {limit}"))
    }
}

fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        _ = kill_process(pid, signal);
    }
}
