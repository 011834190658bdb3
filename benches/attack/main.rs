//! Attacks a real daemon, one attack after the other, and prints as a Markdown table what it stood: the control socket's
//! longest answer, memory, descriptors, and what became of it. Nothing is asserted: the table is to be read. In: nothing,
//! or words of which one must be in an attack's name; `MACHINES_ATTACK_BASE=path/to/machinesd` attacks that one first,
//! with the `mms` beside it, to compare. Every attack is bounded in time, processes and memory, and stays on loopback.

#![cfg(test)]

mod agents;
#[path = "../../tests/support/nats.rs"]
mod nats;
mod node;
mod observer;
mod outside;
mod servers;

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use node::Program;
use observer::Seen;

/// What the control socket is given for an answer.
const BUDGET: Duration = Duration::from_millis(20);

/// An attack: what it is, and how it is made. It tells what it saw, and what came of it.
type Attack = (&'static str, fn(&Program) -> (Seen, String));

const ATTACKS: [Attack; 16] = [
    ("none, for 3 s", agents::none),
    ("a GJSON path of 5 KB of nested brackets in a template", agents::nested_path),
    ("a template whose variable doubles 60 times", agents::doubling_template),
    ("60 commands cancelled, twice, among 600 other processes", agents::cancelled_commands),
    ("a chain of forks with its own session and an empty environment, time limit 2 s", agents::fork_chain),
    ("the same, confined", agents::confined_fork_chain),
    ("20 commands that print without end, time limit 4 s", agents::flood),
    ("PID 1, and a command that orphans 100 processes", agents::orphans_of_the_first_process),
    ("5 agents from a server of 1.2 KiB/s, one from another", outside::slow_artefacts),
    ("an archive watcher's download, cancelled", outside::slow_archive),
    ("120 slow connections to the HTTP listener", outside::slow_connections),
    ("no descriptors left, 60 connections", outside::no_descriptors),
    ("a NATS server whose first line has no end", outside::endless_line),
    ("a NATS server that announces a message of 9 GB and sends it", outside::endless_message),
    ("a NATS server that announces a message of 2^64 - 1 bytes, then a good one", outside::overflowing_message),
    ("a state.db of noise", agents::damaged_state),
];

fn main() {
    // Cargo itself passes options such as `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let base = std::env::var_os("MACHINES_ATTACK_BASE").filter(|path| !path.is_empty());
    let ours = Path::new(env!("CARGO_BIN_EXE_machinesd"));
    for path in base.iter().map(Path::new).chain([ours]) {
        table(&Program::at(path), &words);
    }
}

fn table(program: &Program, words: &[String]) {
    println!("{}\n", program.describe());
    println!("| attack | longest answer of | own delay | memory before → most, MB | descriptors | outcome |");
    println!("|---|---|---|---|---|---|");
    let mut slow = 0;
    for (name, attack) in ATTACKS {
        if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
            let (seen, outcome) = attack(program);
            slow += usize::from(seen.longest() > BUDGET);
            println!("| {name} | {seen} | {} |", cell(&outcome));
            _ = std::io::stdout().flush();
        }
    }
    println!("\n{slow} above {BUDGET:?}. {}\n", observer::METHOD);
}

/// What came from outside as a cell of a table.
fn cell(text: &str) -> String {
    let plain = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect::<String>();
    plain.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
