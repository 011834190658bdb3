//! `machinesd graph`: draws a machine.

use std::path::Path;

use machines::machine::graph::{Drawing, dot, mermaid, svg};
use machines::machine::lint::Examined;
use machines::machine::rule::Stage;
use machines::watchers::KINDS;

use crate::arguments::DrawingFormat;
use crate::shared::{Failure, lines};

pub fn graph(directory: &Path, format: DrawingFormat) -> Result<(), Failure> {
    let mut machine = Examined::directory(directory, KINDS);
    let Some(drawing) = Drawing::of(&machine) else {
        machine.problems.retain(|problem| problem.rule.stage == Stage::Definition);
        return Err(machine.to_problems().into());
    };
    let text = match format {
        DrawingFormat::Dot => dot(&drawing),
        DrawingFormat::Mermaid => mermaid(&drawing),
        DrawingFormat::Svg => svg(&drawing)?,
    };
    lines(text);
    Ok(())
}
