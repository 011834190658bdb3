//! The table: rows as plain text in 100 columns, with the method below each.

use std::io::Write as _;
use std::process::Command;

const WIDTH: usize = 100;

/// Whether a budget was met.
#[derive(Clone, Copy)]
pub enum Verdict {
    Met,
    Missed,
    /// Measured beside a budget, for comparison.
    NoBudget,
}

impl Verdict {
    pub fn of(met: bool) -> Self {
        if met { Self::Met } else { Self::Missed }
    }
}

/// What stands in the peer's column where the reference is not on this machine: no figure is better than a wrong one.
pub const NOT_MEASURED: &str = "not measured here";

/// One line of the table.
pub struct Row {
    pub what: String,
    pub budget: String,
    pub measured: String,
    pub peer: String,
    pub verdict: Verdict,
    pub method: String,
}

impl Row {
    pub fn print(&self) {
        let verdict = match self.verdict {
            Verdict::Met => "yes",
            Verdict::Missed => "NO",
            Verdict::NoBudget => "",
        };
        columns(&self.what, &self.budget, &self.measured, &self.peer, verdict);
        for line in wrap(&self.method, WIDTH - 4) {
            println!("    {line}");
        }
        _ = std::io::stdout().flush();
    }
}

fn columns(what: &str, budget: &str, measured: &str, peer: &str, verdict: &str) {
    let line = format!("{what:<36} {budget:<10} {measured:<29} {peer:<17} {verdict:<3}");
    println!("{}", line.trim_end());
}

/// What was measured where, so that figures of two machines are not mixed up.
pub fn print_head() {
    let version = Command::new(env!("CARGO_BIN_EXE_machinesd")).arg("--version").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    println!("{version}, {}", jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC"));
    println!("{cores} cores of {processor}, memory {memory}, load {}\n", load());
    columns("what", "budget", "measured", "peer", "ok?");
    println!("{}", "-".repeat(WIDTH));
}

/// A busy machine shows in the figures, so its load is told at both ends.
pub fn print_foot() {
    println!("{}\nload at the end {}; {NOT_MEASURED}: the reference is not on this machine", "-".repeat(WIDTH), load());
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().unwrap();
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
