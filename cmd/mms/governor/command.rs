//! `mms governor run`: a command under a slot. It stands where `mms` stands: the same terminal, the same process group,
//! the same environment; its exit code becomes ours, and the signals that we get become its.

#![expect(
    clippy::disallowed_methods,
    reason = "the command is the person's own and stays in his terminal's process group"
)]

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use machines::governor::{Governors as _, Left, StoreGovernors};
use machines::kv::Store;
use machines::names::GovernorName;
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc;

use crate::shared::{Failure, note, warn};

/// How long the store may take to be told that the slot is left.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// Signals that end us or the command, and those that mean something to it.
const SIGNALS: [Signal; 6] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];

pub async fn run(
    store: &dyn Store,
    name: &GovernorName,
    max_wait: Duration,
    command: &[OsString],
) -> Result<(), Failure> {
    let Some((program, arguments)) = command.split_first() else { return Err(Failure::Usage("no command".into())) };
    let governors = StoreGovernors::new(store);
    // From here on a signal ends nothing before the slot is left.
    let mut signals = listen()?;
    let description =
        format!("{} @ {}", program.to_string_lossy(), rustix::system::uname().nodename().to_string_lossy());
    let slot = tokio::select! {
        slot = governors.enter(name, &description, max_wait) => slot,
        Some(signal) = signals.recv() => {
            // What the waiting has got meanwhile is left.
            governors.settle(LEAVE_PATIENCE).await;
            return Err(Failure::Code(killed_by(signal.as_raw())));
        }
    };
    let slot = match slot {
        Ok(slot) => slot,
        Err(error) => {
            governors.settle(LEAVE_PATIENCE).await;
            // The store's own errors are known where its address is.
            return Err(match error {
                machines::governor::GovernorError::Store { source, .. } => source.into(),
                error => error.into(),
            });
        }
    };
    let ended = execute(program, arguments, &mut signals).await;
    match tokio::time::timeout(LEAVE_PATIENCE, slot.leave()).await {
        Ok(Left::Held) => {}
        Ok(Left::Gone) => warn(format!(
            "the slot was gone before the command ended: it expired or was evicted, and others may have run beside it; \
             governor \"{name}\" may need a longer expiry"
        )),
        Ok(Left::Untold) | Err(_) => {
            warn(format!("the slot of governor \"{name}\" could not be left; it is free when it expires"));
        }
    }
    // A slot of which we can't be sure is looked for.
    governors.settle(LEAVE_PATIENCE / 5).await;
    match code_of(ended?) {
        0 => Ok(()),
        code => Err(Failure::Code(code)),
    }
}

async fn execute(
    program: &OsString,
    arguments: &[OsString],
    signals: &mut mpsc::Receiver<Signal>,
) -> Result<ExitStatus, Failure> {
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .spawn()
        .map_err(|error| format!("could not start {}: {error}", program.to_string_lossy()))?;
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    // A terminal sends these to the whole foreground group, so the command has had them.
    let from_terminal = std::io::stdin().is_terminal();
    loop {
        tokio::select! {
            status = child.wait() => return Ok(status?),
            Some(signal) = signals.recv() => {
                let is_known = from_terminal && [Signal::INT, Signal::QUIT].contains(&signal);
                if let (Some(id), false) = (id, is_known)
                    && let Err(error) = kill_process(id, signal)
                {
                    note(format!("the signal could not be passed on: {error}"));
                }
            }
        }
    }
}

/// The signals that arrive from now on.
fn listen() -> Result<mpsc::Receiver<Signal>, Failure> {
    let (sender, receiver) = mpsc::channel(16);
    for signal in SIGNALS {
        let mut stream = unix::signal(SignalKind::from_raw(signal.as_raw()))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if sender.send(signal).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(receiver)
}

/// As shells show a program that a signal ended.
fn killed_by(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// An exit status as one number.
fn code_of(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => killed_by(signal),
        (None, None) => u8::MAX,
    }
}
