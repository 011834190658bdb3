//! Watches a daemon while it is attacked: asks its control socket for the status every few milliseconds, and reads its
//! memory and its descriptors.

use std::fmt;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const METHOD: &str = "Longest answer: of so many `GET /v1/status`, one every 5 ms, each on a new connection \
                          unless no descriptor is left for one. Own delay: the longest that a thread of this program, \
                          which only sleeps, waited for a core; an answer waits for one too. Memory: resident, the most \
                          as the kernel kept it.";

const BETWEEN_ASKS: Duration = Duration::from_millis(5);
/// An answer that takes longer is none.
const LONGEST_ANSWER: Duration = Duration::from_secs(10);

/// How the control socket is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asking {
    /// As `machinesd status` does.
    OnNewConnections,
    /// On one that was made before the attack.
    OnOneConnection,
}

/// What was seen while an attack ran.
#[derive(Debug, Default)]
pub struct Seen {
    answers: Vec<Duration>,
    /// Asked in vain, while the daemon lived.
    unanswered: usize,
    own_delay: Duration,
    memory_bytes: (u64, u64),
    descriptors: (usize, usize),
}

impl Seen {
    pub fn longest(&self) -> Duration {
        self.answers.iter().max().copied().unwrap_or_default()
    }

    /// For an attack that is there when the daemon starts: with what another daemon had before it.
    pub fn compared_with(mut self, before: &Self) -> Self {
        (self.memory_bytes.0, self.descriptors.0) = (before.memory_bytes.0, before.descriptors.0);
        self
    }
}

impl fmt::Display for Seen {
    /// Four cells of the table.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        if self.answers.is_empty() {
            return write!(formatter, "– | – | – | –");
        }
        write!(formatter, "{:.1} ms of {}", milliseconds(self.longest()), self.answers.len())?;
        if self.unanswered > 0 {
            write!(formatter, ", {} without", self.unanswered)?;
        }
        write!(formatter, " | {:.1} ms", milliseconds(self.own_delay))?;
        let (before, most) = self.memory_bytes;
        write!(formatter, " | {:.1} → {:.1}", megabytes(before), megabytes(most))?;
        write!(formatter, " | {} → {}", self.descriptors.0, self.descriptors.1)
    }
}

/// Watches until it is told to end.
pub struct Observer {
    process: u32,
    before: (u64, usize),
    ends: Arc<AtomicBool>,
    asker: JoinHandle<Seen>,
    sleeper: JoinHandle<Duration>,
}

impl Observer {
    pub fn start(process: u32, socket: &Path, asking: Asking) -> Self {
        let before = (memory(process, "VmRSS:").unwrap_or_default(), descriptors(process).unwrap_or_default());
        // The most from now on; needs to be the owner, which we are.
        _ = fs::write(format!("/proc/{process}/clear_refs"), "5");
        let ends = Arc::new(AtomicBool::new(false));
        let (socket, until) = (socket.to_owned(), Arc::clone(&ends));
        let asker = std::thread::spawn(move || watch(process, &socket, asking, &until));
        let until = Arc::clone(&ends);
        let sleeper = std::thread::spawn(move || sleep(&until));
        Self { process, before, ends, asker, sleeper }
    }

    pub fn end(self) -> Seen {
        let most = memory(self.process, "VmHWM:");
        self.ends.store(true, Ordering::Relaxed);
        let mut seen = self.asker.join().unwrap();
        seen.own_delay = self.sleeper.join().unwrap();
        let (memory, descriptors) = self.before;
        seen.memory_bytes = (memory, seen.memory_bytes.1.max(most.unwrap_or_default()).max(memory));
        seen.descriptors = (descriptors, seen.descriptors.1.max(descriptors));
        seen
    }
}

fn watch(process: u32, socket: &Path, asking: Asking, ends: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut kept = (asking == Asking::OnOneConnection).then(|| connect(socket).unwrap());
    while !ends.load(Ordering::Relaxed) {
        // One that is gone, and not yet waited for, has no descriptors.
        let (Some(now), Some(most)) = (descriptors(process), memory(process, "VmHWM:")) else { break };
        seen.descriptors.1 = seen.descriptors.1.max(now);
        seen.memory_bytes.1 = seen.memory_bytes.1.max(most);
        let asked = Instant::now();
        let answer = match &mut kept {
            Some(stream) => ask_on(stream),
            None => ask(socket),
        };
        match answer {
            Ok(_) => seen.answers.push(asked.elapsed()),
            Err(_) => {
                seen.unanswered += usize::from(descriptors(process).is_some());
                // The wait for an answer that did not come is the longest answer.
                if asked.elapsed() >= LONGEST_ANSWER {
                    seen.answers.push(asked.elapsed());
                }
            }
        }
        std::thread::sleep(BETWEEN_ASKS);
    }
    seen
}

fn sleep(ends: &AtomicBool) -> Duration {
    let mut latest = Duration::ZERO;
    while !ends.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let planned = Duration::from_millis(1);
        std::thread::sleep(planned);
        latest = latest.max(begun.elapsed() - planned);
    }
    latest
}

fn memory(process: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

fn descriptors(process: u32) -> Option<usize> {
    let count = fs::read_dir(format!("/proc/{process}/fd")).ok()?.count();
    (count > 0).then_some(count)
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(PathBuf::from(socket))?;
    stream.set_read_timeout(Some(LONGEST_ANSWER))?;
    stream.set_write_timeout(Some(LONGEST_ANSWER))?;
    Ok(stream)
}

/// Asks the control socket for the status on a new connection.
pub fn ask(socket: &Path) -> io::Result<Vec<u8>> {
    ask_on(&mut connect(socket)?)
}

/// One request of HTTP/1.1, as plainly as it goes: a client of this project's own would be part of what is measured.
fn ask_on(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&buffer[..count]);
        let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let length = length.ok_or(io::ErrorKind::InvalidData)?;
        if answer.len() >= end + 4 + length {
            return Ok(answer.split_off(end + 4));
        }
    }
}
