//! The daemon's side of a start: a helper in a process of its own, with an empty environment, gets its order and answers.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;

use super::ProcessError;
use super::order::{Answer, COMMAND, End, Form, MAXIMUM_ANSWER_BYTES, Order, SUPERVISE};
use super::orphans::{self, Own};
use super::reaper;

/// A helper that runs and waits for its order.
pub(super) struct Helper {
    pub child: Child,
    own: Own,
    form: Form,
    channel: tokio::net::UnixStream,
}

impl Helper {
    /// Its environment is empty and its arguments are ours: what an agent chooses acts in the command alone.
    #[expect(clippy::disallowed_methods, reason = "the one place of the daemon that starts processes")]
    pub(super) fn spawn(program: &Path, form: Form) -> Result<Self, ProcessError> {
        let failed = ProcessError::Helper;
        reaper::ready().map_err(ProcessError::NoEnd)?;
        let (ours, its) = UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let channel = tokio::net::UnixStream::from_std(ours).map_err(failed)?;
        let mut command = tokio::process::Command::new(program);
        command.arg(COMMAND).env_clear().stdin(OwnedFd::from(its)).stdout(Stdio::piped()).stderr(Stdio::piped());
        if form == Form::Supervise {
            command.arg(SUPERVISE);
        }
        let (child, own) = orphans::spawning(|| command.spawn()).map_err(failed)?;
        Ok(Self { child, own, form, channel })
    }

    /// Its process, which stays the first of all that the command starts.
    pub(super) fn leader(&self) -> Pid {
        self.own.0
    }

    /// Gives the order, and waits for the command's end.
    pub(super) async fn carry_out(&mut self, order: &Order) -> Result<End, ProcessError> {
        let failed = ProcessError::Helper;
        let content = serde_json::to_vec(order).map_err(|error| failed(error.into()))?;
        // One that ended meanwhile is told by its status.
        let _: io::Result<()> = async {
            self.channel.write_all(&content).await?;
            self.channel.shutdown().await
        }
        .await;
        // To its end: the command does not have the other end of this socket, and the helper keeps it while it can speak.
        let mut said = Vec::new();
        _ = (&mut self.channel).take(MAXIMUM_ANSWER_BYTES).read_to_end(&mut said).await;
        let answers = said.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        let (mut is_ready, mut end) = (false, None);
        for answer in answers {
            match answer {
                Answer::Ready => is_ready = true,
                Answer::Ended(told) => end = Some(told),
                Answer::Refused(refusal) => return Err(ProcessError::refused(order, refusal)),
            }
        }
        // A supervisor stays above what the command left.
        if let (Form::Supervise, Some(end)) = (self.form, end) {
            return Ok(end);
        }
        let status = self.child.wait().await.map_err(ProcessError::Wait)?;
        match (self.form, is_ready) {
            (Form::Become, true) => Ok(End::of(status)),
            _ => Err(failed(io::Error::other(format!("it ended with {status} before its command did")))),
        }
    }
}

impl End {
    fn of(status: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match status.signal() {
            Some(signal) => Self::Signal(signal),
            None => Self::Code(status.code().unwrap_or_default()),
        }
    }
}
