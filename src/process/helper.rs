//! The other side of every command: `machinesd exec-helper`. The daemon can't prepare a child between its fork and its start
//! without unsafe code, so a fresh process, with nothing in its arguments and environment that an agent wrote, reads an
//! order, prepares itself and becomes the command; or, as `exec-helper supervise`, stays above it. In: an order on standard
//! input, which is a socket. Out: answers on the same socket.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Pid, Resource, Rlimit, WaitOptions, getpid, set_child_subreaper, setrlimit, setsid, umask};
use rustix::thread::{Gid, Uid, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

pub use super::order::COMMAND;
use super::order::{Answer, End, MAXIMUM_ANSWER_BYTES, MAXIMUM_ORDER_BYTES, Order, Privileges, Refusal, Rights};
use super::order::{SUPERVISE, Step};

/// As shells end when a command can't be started.
const EXIT_CODE: u8 = 126;

/// A program that is open for writing can't be started. Another command that is being started holds, for a moment, every
/// file that the daemon is writing, so a program that was just installed may need a few attempts, this far apart.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
const BUSY_ATTEMPTS: u32 = 10;

/// It was called by somebody else than the daemon.
#[derive(Debug, thiserror::Error)]
#[error("{COMMAND} is for machinesd itself, which gives it an order on a socket")]
pub struct Misuse;

/// Carries out the order on standard input. Comes back when the command was not started, or has ended below its supervisor;
/// that was told on the socket. For a process with one thread.
///
/// # Errors
/// When there is no socket to get an order from.
pub fn run(mut words: impl Iterator<Item = OsString>) -> Result<ExitCode, Misuse> {
    let supervise = match words.next() {
        None => false,
        Some(word) if word == SUPERVISE => true,
        Some(_) => return Err(Misuse),
    };
    let mut channel = Channel::take()?;
    let refusal = match channel.order() {
        Ok(order) if supervise => match stand_above(&order, &mut channel) {
            Ok(()) => return Ok(ExitCode::SUCCESS),
            Err(refusal) => refusal,
        },
        Ok(order) => turn_into(&order, &mut channel),
        Err(refusal) => refusal,
    };
    channel.say(&Answer::Refused(refusal));
    Ok(ExitCode::from(EXIT_CODE))
}

/// The socket to the daemon, which a program that is started does not inherit.
struct Channel(UnixStream);

impl Channel {
    /// Takes it from standard input, which reads nothing from then on.
    fn take() -> Result<Self, Misuse> {
        let input = rustix::stdio::stdin();
        let is_socket =
            rustix::fs::fstat(input).is_ok_and(|it| FileType::from_raw_mode(it.st_mode) == FileType::Socket);
        if !is_socket {
            return Err(Misuse);
        }
        let socket = rustix::io::fcntl_dupfd_cloexec(input, 3).map_err(|_| Misuse)?;
        rustix::stdio::dup2_stdin(null().map_err(|_| Misuse)?).map_err(|_| Misuse)?;
        Ok(Self(UnixStream::from(socket)))
    }

    fn order(&mut self) -> Result<Order, Refusal> {
        let mut content = Vec::new();
        let refused = |error: io::Error| Refusal::new(Step::Order, &error);
        (&self.0).take(MAXIMUM_ORDER_BYTES).read_to_end(&mut content).map_err(refused)?;
        serde_json::from_slice(&content).map_err(|error| refused(error.into()))
    }

    /// Whether the daemon is still there to hear it.
    fn say(&mut self, answer: &Answer) -> bool {
        let Ok(mut line) = serde_json::to_vec(answer) else { return false };
        line.push(b'\n');
        self.0.write_all(&line).is_ok()
    }
}

fn null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// Becomes the command; comes back only when that fails.
fn turn_into(order: &Order, channel: &mut Channel) -> Refusal {
    let mut command = match order.prepare() {
        Ok(command) => command,
        Err(refusal) => return refusal,
    };
    // Without a daemon that waits for it, nothing would end the command.
    if !channel.say(&Answer::Ready) {
        return Refusal::new(Step::Start, &io::Error::from(io::ErrorKind::BrokenPipe));
    }
    let mut attempts = 1;
    loop {
        let error = command.exec();
        if !is_passing(&error, &mut attempts) {
            return Refusal::new(Step::Start, &error);
        }
    }
}

/// Starts the command, adopts what it orphans, and waits for its end. It tells that, and stays above what is left until
/// nothing is, or the daemon ends it: when a command is asked to end, what it orphans by that must still be found below.
fn stand_above(order: &Order, channel: &mut Channel) -> Result<(), Refusal> {
    setsid().map_err(|error| Refusal::new(Step::Session, &error.into()))?;
    set_child_subreaper(Some(getpid())).map_err(|error| Refusal::new(Step::Adopt, &error.into()))?;
    let command = if order.is_plain() { start_plain(order, channel) } else { start_below(order, channel) }?;
    // Whoever reads the command's output is told of its end.
    if let Ok(null) = null() {
        _ = rustix::stdio::dup2_stdout(&null);
        _ = rustix::stdio::dup2_stderr(&null);
    }
    let refused = |error: io::Error| Refusal::new(Step::Adopt, &error);
    let command = Pid::from_child(&command);
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((child, status))) if child == command => {
                let status = std::process::ExitStatus::from_raw(status.as_raw());
                channel.say(&Answer::Ended(match (status.code(), status.signal()) {
                    (_, Some(signal)) => End::Signal(signal),
                    (code, None) => End::Code(code.unwrap_or_default()),
                }));
                _ = channel.0.shutdown(Shutdown::Both);
                while matches!(rustix::process::wait(WaitOptions::empty()), Ok(_) | Err(rustix::io::Errno::INTR)) {}
                return Ok(());
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(refused(error.into())),
        }
    }
}

/// With the supervisor's own rights and no limits there is nothing that the command would have to do to itself.
fn start_plain(order: &Order, channel: &mut Channel) -> Result<Child, Refusal> {
    order.rights.set_mask();
    let mut command = order.command();
    command.current_dir(&order.directory).process_group(0);
    let mut attempts = 1;
    loop {
        match command.spawn() {
            Ok(child) => {
                channel.say(&Answer::Ready);
                return Ok(child);
            }
            Err(error) if is_passing(&error, &mut attempts) => {}
            Err(error) => {
                // The system tells the two apart by what it was doing, and not by the error.
                let directory = rustix::fs::access(&order.directory, rustix::fs::Access::EXEC_OK);
                let step = directory.map_or_else(|_| Step::Directory(order.directory.clone()), |()| Step::Start);
                return Err(Refusal::new(step, &error));
            }
        }
    }
}

/// A second helper takes the rights and limits and becomes the command; the supervisor keeps its own, so that the command
/// can't end it. What the second says is passed on.
#[expect(clippy::disallowed_methods, reason = "as in `Order::command`")]
fn start_below(order: &Order, channel: &mut Channel) -> Result<Child, Refusal> {
    let refused = |error: io::Error| Refusal::new(Step::Start, &error);
    let (mut ours, its) = UnixStream::pair().map_err(refused)?;
    let order = serde_json::to_vec(order).map_err(|error| refused(error.into()))?;
    let mut second = Command::new(super::OWN_PROGRAM);
    let child = second.arg(COMMAND).env_clear().stdin(Stdio::from(OwnedFd::from(its))).spawn().map_err(refused)?;
    // The description of the child keeps a copy of the other end.
    drop(second);
    ours.write_all(&order).and_then(|()| ours.shutdown(Shutdown::Write)).map_err(refused)?;
    let mut said = Vec::new();
    ours.take(MAXIMUM_ANSWER_BYTES).read_to_end(&mut said).map_err(refused)?;
    channel.0.write_all(&said).map_err(refused)?;
    Ok(child)
}

/// Whether it is worth another attempt; waits before it.
#[expect(clippy::disallowed_methods, reason = "a helper has one thread and no runtime")]
fn is_passing(error: &io::Error, attempts: &mut u32) -> bool {
    let is_passing = error.kind() == io::ErrorKind::ExecutableFileBusy && *attempts < BUSY_ATTEMPTS;
    if is_passing {
        *attempts += 1;
        std::thread::sleep(BUSY_PAUSE);
    }
    is_passing
}

impl Order {
    fn is_plain(&self) -> bool {
        self.cgroup.is_none() && self.rights == Rights { umask: self.rights.umask, ..Rights::default() }
    }

    #[expect(clippy::disallowed_methods, reason = "this process is nothing but the start of that one")]
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear();
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Makes the process what the command is to be, and describes the program that is then started.
    fn prepare(&self) -> Result<Command, Refusal> {
        if let Some(cgroup) = &self.cgroup {
            let joined = join(cgroup);
            joined.map_err(|error| Refusal::new(Step::Cgroup(cgroup.clone()), &error))?;
        }
        // A terminal of the daemon is no terminal of the command: it could type into it.
        setsid().map_err(|error| Refusal::new(Step::Session, &error.into()))?;
        let entered = std::env::set_current_dir(&self.directory);
        entered.map_err(|error| Refusal::new(Step::Directory(self.directory.clone()), &error))?;
        self.rights.take()?;
        Ok(self.command())
    }
}

/// Zero is who writes it.
fn join(cgroup: &std::path::Path) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let members = rustix::fs::open(cgroup.join("cgroup.procs"), flags, Mode::empty())?;
    rustix::io::write(&members, b"0")?;
    Ok(())
}

impl Rights {
    fn set_mask(&self) {
        if let Some(mask) = self.umask {
            umask(Mode::from_raw_mode(mask));
        }
    }

    fn take(&self) -> Result<(), Refusal> {
        self.set_mask();
        // The data of a process, not its address space, of which many runtimes reserve far more than they use.
        limit("memory", Resource::Data, self.memory_bytes, self.memory_bytes)?;
        let after = self.cpu_seconds.map(|seconds| seconds.saturating_add(1));
        limit("cpu", Resource::Cpu, self.cpu_seconds, after)?;
        if self.cpu_seconds.is_some() {
            limit("core", Resource::Core, Some(0), Some(0))?;
        }
        // Before the user changes: only then may a limit be higher than the daemon's own.
        limit("tasks", Resource::Nproc, self.tasks, self.tasks)?;
        let refused = |what: String| move |error: rustix::io::Errno| Refusal::new(Step::Become(what), &error.into());
        if let Some(groups) = &self.groups {
            let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            set_thread_groups(&groups).map_err(refused("a member of the user's groups".to_owned()))?;
        }
        if let Some(number) = self.gid {
            let gid = Some(Gid::from_raw(number));
            set_thread_res_gid(gid, gid, gid).map_err(refused(format!("group {number}")))?;
        }
        if let Some(number) = self.uid {
            let uid = Some(Uid::from_raw(number));
            set_thread_res_uid(uid, uid, uid).map_err(refused(format!("user {number}")))?;
        }
        if self.privileges == Privileges::NoNew {
            set_no_new_privs(true).map_err(|error| Refusal::new(Step::Privileges, &error.into()))?;
        }
        Ok(())
    }
}

fn limit(name: &str, resource: Resource, soft: Option<u64>, hard: Option<u64>) -> Result<(), Refusal> {
    if soft.is_none() {
        return Ok(());
    }
    let new = Rlimit { current: soft, maximum: hard };
    setrlimit(resource, new).map_err(|error| Refusal::new(Step::Limit(name.to_owned()), &error.into()))
}
