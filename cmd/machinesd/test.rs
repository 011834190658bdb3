//! `machinesd test`: plays the scenarios of machines, and says of each whether it holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use machines::machine::problem::Problems;
use machines::scenario::{self, Player};
use serde::Serialize;

use crate::shared::{self, Failure, Format, definition, json, line, note};

/// What became of one scenario.
#[derive(Serialize)]
struct Verdict {
    directory: PathBuf,
    scenario: String,
    holds: bool,
    milliseconds: u64,
    #[serde(serialize_with = "list")]
    problems: Problems,
}

fn list<S: serde::Serializer>(problems: &Problems, serializer: S) -> Result<S::Ok, S::Error> {
    problems.problems.serialize(serializer)
}

pub fn test(directories: &[PathBuf], filter: Option<&str>, format: Format) -> Result<(), Failure> {
    let mut verdicts = Vec::new();
    let mut unusable = Vec::new();
    for directory in directories {
        match play(directory, filter, format) {
            Ok(played) => verdicts.extend(played),
            Err(problems) => unusable.push(problems),
        }
    }
    let failed = verdicts.iter().filter(|verdict| !verdict.holds).count();
    match format {
        Format::Json => json(&verdicts)?,
        Format::Text if unusable.is_empty() => line(summary(verdicts.len(), failed)),
        Format::Text => {}
    }
    for problems in &unusable {
        shared::problems(problems);
    }
    if verdicts.is_empty() && unusable.is_empty() {
        return Err(Failure::Usage("no scenario has that in its name".into()));
    }
    if failed == 0 && unusable.is_empty() { Ok(()) } else { Err(Failure::Negative) }
}

fn summary(all: usize, failed: usize) -> String {
    let scenarios = if all == 1 { "scenario" } else { "scenarios" };
    match failed {
        0 => format!("{all} {scenarios}, all hold"),
        failed => format!("{all} {scenarios}, {failed} {} not hold", if failed == 1 { "does" } else { "do" }),
    }
}

fn play(directory: &Path, filter: Option<&str>, format: Format) -> Result<Vec<Verdict>, Problems> {
    let definition = Arc::new(definition::load(directory)?);
    let scenarios = scenario::load(directory)?;
    let player = Player {
        directory,
        definition: Arc::clone(&definition),
        kinds: machines::watchers::KINDS,
        scenarios: &scenarios,
    };
    let mut verdicts = Vec::new();
    for (index, scenario) in scenarios.scenarios.iter().enumerate() {
        if filter.is_some_and(|filter| !scenario.name.contains(filter)) {
            continue;
        }
        let begun = Instant::now();
        let problems = player.play(index);
        let verdict = Verdict {
            directory: directory.to_owned(),
            scenario: scenario.name.clone(),
            holds: problems.is_empty(),
            milliseconds: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            problems: Problems::new(&scenarios.path, &scenarios.text, problems),
        };
        if format == Format::Text {
            show(&definition.name, &verdict);
        }
        verdicts.push(verdict);
    }
    Ok(verdicts)
}

fn show(machine: &machines::names::MachineName, verdict: &Verdict) {
    let time = Duration::from_millis(verdict.milliseconds);
    let word = if verdict.holds { "holds " } else { "FAILS " };
    line(format!("{word} {machine}: {} ({:.2}s)", verdict.scenario, time.as_secs_f64()));
    if !verdict.holds {
        shared::problems(&verdict.problems);
        note("");
    }
}
