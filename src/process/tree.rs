//! All that a command has started, found in `/proc`: what descends from it, and what was seen below it before. For ending it
//! without a survivor, and for adding up what it uses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::confine::Limits;

/// A family that is stopped faster than it grows is complete after a few walks; one that is not is killed as it is, so that
/// the others that wait have their turn.
const STOPPING: Duration = Duration::from_millis(500);

/// A process of the moment.
#[derive(Debug, Clone, Copy)]
struct Process {
    pid: i32,
    parent: i32,
    threads: u64,
    /// In clock ticks.
    own_ticks: u64,
    /// Those of its children that it has waited for.
    waited_ticks: u64,
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
        let threads = number(17)?;
        // One whose first thread has ended looks dead while the others run.
        if matches!(*fields.first()?, "Z" | "X" | "x") && threads <= 1 {
            return None;
        }
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            own_ticks: (11..=12).filter_map(number).sum(),
            waited_ticks: (13..=14).filter_map(number).sum(),
            threads,
            started: number(19)?,
            resident_pages: number(21)?,
        })
    }

    fn member(&self) -> Member {
        Member { pid: self.pid, started: self.started }
    }
}

/// One process, and no other that has its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    pid: i32,
    started: u64,
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

/// The children of a process, alive or dead: those of each of its threads.
pub(super) fn children(parent: Pid) -> Vec<i32> {
    static TOLD: OnceLock<bool> = OnceLock::new();
    let parent = parent.as_raw_nonzero().get();
    // A kernel may be built without these files.
    if !TOLD.get_or_init(|| Path::new("/proc/thread-self/children").exists()) {
        let all = pids().filter_map(Process::read);
        return all.filter(|process| process.parent == parent).map(|process| process.pid).collect();
    }
    let threads = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().filter_map(Result::ok);
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let mut found = Vec::new();
    for list in lists {
        found.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    found
}

/// Reads the environments of all processes once, and sorts out whose marks they have.
pub(super) fn marked<'a>(marks: impl Iterator<Item = &'a [u8]>) -> BTreeMap<&'a [u8], Vec<i32>> {
    let mut found: BTreeMap<&[u8], Vec<i32>> = marks.map(|mark| (mark, Vec::new())).collect();
    let own = rustix::process::getpid().as_raw_nonzero().get();
    for pid in pids().filter(|pid| *pid != own && *pid != 1) {
        let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else { continue };
        for value in environment.split(|byte| *byte == 0).filter_map(|line| line.strip_prefix(MARK)) {
            if let Some(list) = found.get_mut(value) {
                list.push(pid);
            }
        }
    }
    found
}

/// The variable whose value only the processes of one command have.
const MARK: &[u8] = b"WATCHER_DATA=";

/// A command and all that it has started.
pub(super) struct Family {
    leader: Pid,
    /// The leader is ours, and adopts what the command orphans: it is no part of the command, and goes last.
    has_supervisor: bool,
    /// The value of `WATCHER_DATA`.
    mark: Vec<u8>,
    /// Alive when last looked for, each with its ticks of then.
    seen: BTreeMap<Member, u64>,
    /// Of members that have died.
    dead_ticks: u64,
}

impl Family {
    pub(super) fn new(leader: Pid, form: super::order::Form, mark: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let mut family = Self {
            leader,
            has_supervisor: form == super::order::Form::Supervise,
            mark: mark.as_os_str().as_bytes().to_vec(),
            seen: BTreeMap::new(),
            dead_ticks: 0,
        };
        // Now, while nobody else can have its number.
        family.seen.extend(Process::read(family.leader_number()).map(|process| (process.member(), 0)));
        family
    }

    pub(super) fn mark(&self) -> &[u8] {
        &self.mark
    }

    fn leader_number(&self) -> i32 {
        self.leader.as_raw_nonzero().get()
    }

    fn is_supervisor(&self, pid: i32) -> bool {
        self.has_supervisor && pid == self.leader_number()
    }

    /// Who belongs to it now, without its supervisor.
    fn members(&mut self, others: &[i32]) -> Vec<Process> {
        let mut all = self.all(others);
        all.retain(|process| !self.is_supervisor(process.pid));
        all
    }

    /// What was seen before, these, and all that descends from them.
    fn all(&mut self, others: &[i32]) -> Vec<Process> {
        let mut found: BTreeMap<i32, Process> = BTreeMap::new();
        let known = self.seen.keys().filter_map(|member| {
            let process = Process::read(member.pid)?;
            (process.member() == *member).then_some(process)
        });
        let mut open: Vec<Process> = known.chain(others.iter().filter_map(|pid| Process::read(*pid))).collect();
        while let Some(process) = open.pop() {
            if found.insert(process.pid, process).is_some() {
                continue;
            }
            let born = Pid::from_raw(process.pid).map(children).unwrap_or_default();
            open.extend(born.into_iter().filter(|pid| !found.contains_key(pid)).filter_map(Process::read));
        }
        let alive: BTreeSet<Member> = found.values().map(Process::member).collect();
        self.seen.retain(|member, ticks| {
            let is_alive = alive.contains(member);
            if !is_alive {
                self.dead_ticks = self.dead_ticks.saturating_add(*ticks);
            }
            is_alive
        });
        self.seen.extend(found.values().map(|process| (process.member(), process.own_ticks)));
        found.into_values().collect()
    }

    /// Asks every member to end.
    pub(super) fn terminate(&mut self, others: &[i32]) {
        for process in self.members(others) {
            signal(process.pid, Signal::TERM);
        }
    }

    /// Stops member after member until none is found that was not stopped before: none can start another then, and what
    /// it started before is found below it.
    pub(super) fn stop(&mut self, others: &[i32]) {
        let mut stopped = BTreeSet::new();
        let begun = Instant::now();
        while begun.elapsed() < STOPPING {
            let before = stopped.len();
            for process in self.members(others) {
                if stopped.insert(process.member()) {
                    signal(process.pid, Signal::STOP);
                }
            }
            if stopped.len() == before {
                return;
            }
        }
    }

    /// Kills all but the supervisor. How many were still there.
    pub(super) fn kill(&mut self, others: &[i32]) -> usize {
        let members = self.members(others);
        members.iter().for_each(|process| signal(process.pid, Signal::KILL));
        members.len()
    }

    /// Ends the supervisor, once nothing below it needs to be found any more. Whether it is gone.
    pub(super) fn dismiss(&mut self) -> bool {
        let supervisor = self.leader_number();
        let is_there = self.has_supervisor
            && Process::read(supervisor).is_some_and(|process| self.seen.contains_key(&process.member()));
        if is_there {
            signal(supervisor, Signal::KILL);
        }
        !is_there
    }

    /// Why the family is to be ended: it uses more than its limits together.
    pub(super) fn excess(&mut self, limits: &Limits, others: &[i32]) -> Option<String> {
        let all = self.all(others);
        // A supervisor waits for orphans, so what those used is told of it; the rest of it is ours.
        let waited: u64 = all.iter().map(|process| process.waited_ticks).sum();
        let members: Vec<&Process> = all.iter().filter(|process| !self.is_supervisor(process.pid)).collect();
        let pages: u64 = members.iter().map(|process| process.resident_pages).sum();
        let resident = pages.saturating_mul(u64::try_from(rustix::param::page_size()).unwrap_or(4_096));
        if let Some(limit) = limits.memory_bytes.filter(|limit| resident > *limit) {
            return Some(format!("used {resident} bytes of memory, more than its limit of {limit}"));
        }
        let own: u64 = members.iter().map(|process| process.own_ticks).sum();
        // Of the dead: what those who waited for them were told, or what was seen of them, whatever is more. One that was
        // both waited for and seen counts once.
        let ticks = own.saturating_add(waited.max(self.dead_ticks));
        let used = Duration::from_millis(ticks.saturating_mul(1_000) / rustix::param::clock_ticks_per_second().max(1));
        if let Some(excess) = excess_of_processor(used, limits) {
            return Some(excess);
        }
        let threads: u64 = members.iter().map(|process| process.threads).sum();
        let limit = limits.tasks.filter(|limit| threads > u64::from(*limit))?;
        Some(format!("had {threads} tasks at one time, more than its limit of {limit}"))
    }
}

/// Why a command that has used so much is to be ended.
pub(super) fn excess_of_processor(used: Duration, limits: &Limits) -> Option<String> {
    let limit = limits.cpu.filter(|limit| used > *limit)?;
    let (used, limit) = (crate::duration::format(used), crate::duration::format(limit));
    Some(format!("used {used} of processor time, more than its limit of {limit}"))
}

fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        _ = kill_process(pid, signal);
    }
}
