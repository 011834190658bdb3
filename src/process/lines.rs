//! A command's output in the log, line by line as it comes, within bounds: a line's length, and how many in a time.

use tokio::time::Instant;

/// Longer lines are cut.
const MAXIMUM_LINE_BYTES: usize = 1_024;
/// So many lines at once …
const BURST: f64 = 100.0;
/// … and as many each second after that; what is more is counted.
const LINES_PER_SECOND: f64 = 20.0;

/// One output stream of a run. The target of the log lines is `machines::output`.
pub(super) struct Lines<'a> {
    machine: &'a str,
    watcher: &'a str,
    line: Vec<u8>,
    cut: bool,
    allowance: f64,
    counted: Instant,
    left_out: u64,
}

impl<'a> Lines<'a> {
    /// `None` when nobody reads such lines, so that no work is done for them.
    pub(super) fn new(machine: &'a str, watcher: &'a str) -> Option<Self> {
        tracing::enabled!(target: "machines::output", tracing::Level::DEBUG).then(|| Self {
            machine,
            watcher,
            line: Vec::new(),
            cut: false,
            allowance: BURST,
            counted: Instant::now(),
            left_out: 0,
        })
    }

    /// Takes what has come.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match part.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (part, false),
            };
            let room = MAXIMUM_LINE_BYTES - self.line.len();
            self.cut |= text.len() > room;
            self.line.extend_from_slice(text.get(..text.len().min(room)).unwrap_or_default());
            if ended {
                self.tell();
            }
        }
    }

    /// The stream has ended.
    pub(super) fn end(&mut self) {
        if !self.line.is_empty() {
            self.tell();
        }
        let (machine, watcher, left_out) = (self.machine, self.watcher, self.left_out);
        if left_out > 0 {
            tracing::debug!(target: "machines::output", machine, watcher, "output: {left_out} more lines, not shown");
            self.left_out = 0;
        }
    }

    fn tell(&mut self) {
        let now = Instant::now();
        let gained = (now - self.counted).as_secs_f64() * LINES_PER_SECOND;
        self.allowance = (self.allowance + gained).min(BURST);
        self.counted = now;
        if self.allowance >= 1.0 {
            self.allowance -= 1.0;
            let text = String::from_utf8_lossy(&self.line);
            let mark = if self.cut { "…" } else { "" };
            let (machine, watcher, text) = (self.machine, self.watcher, text.trim_end());
            tracing::debug!(target: "machines::output", machine, watcher, "output: {text}{mark}");
        } else {
            self.left_out += 1;
        }
        self.line.clear();
        self.cut = false;
    }
}
