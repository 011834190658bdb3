//! What both programs share: the one place that prints, and the one that ends with an exit code.
//!
//! Whatever is printed may hold text from outside, so everything goes through `machines::shown` here and not in the
//! commands: [`line`], [`note`] and [`warn`] print exactly one line, [`lines`] and [`note_lines`] those that are in the
//! text, and only [`raw`] prints bytes as they are.

#![expect(clippy::print_stderr, reason = "the only file of the programs that prints")]
#![allow(dead_code, reason = "shared by two programs, of which each uses a part")]

pub mod definition;
pub mod events;
pub mod table;

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use machines::machine::problem::{Problems, Styled};
use machines::shown;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// Why a command ends without success.
pub enum Failure {
    /// Exit code 1: an error, printed with its causes.
    Error(Box<dyn std::error::Error + Send + Sync>),
    /// Exit code 1: a negative result that has been printed already.
    Negative,
    /// The exit code of a command that was run, which has said what there is to say.
    Code(u8),
    /// Exit code 2: settings or arguments that can't be used; trying again won't help.
    Usage(Box<dyn std::error::Error + Send + Sync>),
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Ends a program: prints the failure, once, and gives the exit code.
pub fn finish(result: Result<(), Failure>) -> ExitCode {
    let (error, code) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Negative) => return ExitCode::FAILURE,
        Err(Failure::Code(code)) => return ExitCode::from(code),
        Err(Failure::Error(error)) => (error, ExitCode::FAILURE),
        Err(Failure::Usage(error)) => (error, ExitCode::from(2)),
    };
    let mut causes = std::iter::successors(Some(&*error as &(dyn std::error::Error + 'static)), |error| error.source());
    // Faults in a file are shown with their lines.
    match causes.find_map(|cause| cause.downcast_ref::<Problems>()) {
        Some(found) => problems(found),
        None => note(format!("error: {}", machines::errors::chain(&*error))),
    }
    code
}

/// The arguments of a program, or the code to end with; what is wrong with them, or the help, has been printed then.
pub fn arguments<A: clap::Parser>() -> Result<A, ExitCode> {
    let error = match A::try_parse() {
        Ok(arguments) => return Ok(arguments),
        Err(error) => error,
    };
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Ours alone, with its colours.
        _ = error.print();
    } else {
        // It repeats what was typed, which may be a file's name that somebody else chose.
        note_lines(error.render());
    }
    Err(u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Prints the faults of a file to standard error, each with its line. They make their own text safe, as the colours are
/// theirs.
pub fn problems(problems: &Problems) {
    eprintln!("{}", problems.render(styled()));
}

/// Whether messages have colours: on a terminal, unless `NO_COLOR` is set.
fn styled() -> Styled {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if wanted && std::io::stderr().is_terminal() { Styled::Yes } else { Styled::No }
}

/// Prints one line of the result, whatever is in the text. A reader that went away (`| head`) ends the program as a
/// signal would.
pub fn line(text: impl Display) {
    write_line(&shown::line(&text.to_string()));
}

/// Prints lines of the result that the text itself breaks.
pub fn lines(text: impl Display) {
    write_line(shown::lines(&text.to_string()).trim_end_matches('\n'));
}

/// Prints a JSON document on one line.
pub fn json_line(document: &serde_json::Value) {
    write_line(&shown::json(&document.to_string()));
}

/// Prints a JSON document, readable.
pub fn json(value: &impl serde::Serialize) -> Result<(), Failure> {
    write_line(&shown::json(&serde_json::to_string_pretty(value)?));
    Ok(())
}

/// Prints bytes of the result as they are: for other programs.
pub fn raw(bytes: &[u8]) {
    let mut output = std::io::stdout().lock();
    if let Err(error) = output.write_all(bytes).and_then(|()| output.flush()) {
        drop(output);
        end_without_output(&error);
    }
}

/// Prints a value that somebody stored, and ends its last line: safely where a person reads it, else as it is.
pub fn value(bytes: &[u8]) {
    if std::io::stdout().is_terminal() {
        lines(String::from_utf8_lossy(bytes));
        return;
    }
    raw(bytes);
    if !bytes.ends_with(b"\n") {
        raw(b"\n");
    }
}

fn write_line(text: &str) {
    let mut output = std::io::stdout().lock();
    if let Err(error) = writeln!(output, "{text}").and_then(|()| output.flush()) {
        drop(output);
        end_without_output(&error);
    }
}

/// A result that nobody can read is no success: a script that asks for the exit code must not take it for one.
#[expect(clippy::exit, reason = "there is no way to go on without the output")]
fn end_without_output(error: &std::io::Error) {
    /// 128 and the number of SIGPIPE, as shells show a program that this signal ended.
    const BROKEN_PIPE: i32 = 141;
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(BROKEN_PIPE);
    }
    eprintln!("error: could not write the result: {error}");
    std::process::exit(1);
}

/// Prints the result of a sync pass: what keeps the node from its desired state, and that it has converged or not.
pub fn converged_unless(complaints: &[String]) -> Result<(), Failure> {
    for complaint in complaints {
        note(complaint);
    }
    if complaints.is_empty() {
        line("converged");
        return Ok(());
    }
    line("not converged");
    Err(Failure::Negative)
}

/// Prints a message for people to standard error, on one line whatever is in it.
pub fn note(text: impl Display) {
    eprintln!("{}", shown::line(&text.to_string()));
}

/// Prints lines to standard error that the text itself breaks.
pub fn note_lines(text: impl Display) {
    eprintln!("{}", shown::lines(&text.to_string()).trim_end_matches('\n'));
}

/// Prints a warning to standard error.
pub fn warn(text: impl Display) {
    note(format!("warning: {text}"));
}
