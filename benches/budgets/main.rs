//! Measures the budgets of ARCHITECTURE.md against the programs as they are released, and prints them as a table with
//! the peer's figure where the peer is on this machine. Nothing is asserted: a missed budget is a line to read, not a
//! failed build. In: nothing, or words of which one must be in a measurement's name. Out: the table, exit code 0.

#![cfg(test)]

mod download;
mod fleet;
mod idle;
#[path = "../../tests/support/nats.rs"]
mod nats;
mod node;
mod publish;
mod specification;
mod table;
mod web;

use table::Row;

/// A measurement by its name.
type Measurement = (&'static str, fn() -> Vec<Row>);

const MEASUREMENTS: [Measurement; 5] = [
    ("publish", publish::measure),
    ("download", download::measure),
    ("start", idle::measure_start),
    ("specification", specification::measure),
    ("idle", idle::measure_idle),
];

fn main() {
    // Cargo itself passes options such as `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    table::print_head();
    for (name, measure) in MEASUREMENTS {
        if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
            measure().iter().for_each(Row::print);
        }
    }
    table::print_foot();
}

/// A runtime for what the benchmark itself does.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The middle one.
fn median<T: Ord + Copy>(values: &[T]) -> T {
    percentile(values, 50)
}

/// The smallest value that is not below `percent` of all.
fn percentile<T: Ord + Copy>(values: &[T], percent: usize) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}
