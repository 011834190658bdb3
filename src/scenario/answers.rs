//! Answers in the place of commands.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::process::{Command, Commands, Ended, ProcessError};

use super::file::Answer;

/// What commands answer, and how often each watcher ran one.
#[derive(Default)]
pub struct Answers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    answers: Vec<Answer>,
    runs: BTreeMap<String, u64>,
    /// Commands that nothing answers.
    unanswered: Vec<String>,
}

impl Answers {
    /// These count before those that were given earlier.
    pub fn add(&self, answers: &[Answer]) {
        self.state().answers.splice(0..0, answers.iter().cloned());
    }

    /// How often each watcher ran a command since the last call.
    pub fn take_runs(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut self.state().runs)
    }

    /// The commands that nothing answered, once each.
    pub fn take_unanswered(&self) -> Vec<String> {
        std::mem::take(&mut self.state().unanswered)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, command: &Command) -> Option<Answer> {
        let mut state = self.state();
        *state.runs.entry(command.watcher.clone()).or_default() += 1;
        let words = command.words.join(" ");
        let fits = |answer: &&mut Answer| {
            answer.times != Some(0)
                && answer.watcher.as_ref().is_none_or(|watcher| *watcher == command.watcher)
                && answer.command.as_ref().is_none_or(|part| words.contains(part))
        };
        if let Some(answer) = state.answers.iter_mut().find(fits) {
            answer.times = answer.times.map(|times| times.saturating_sub(1));
            return Some(answer.clone());
        }
        let unanswered = format!("\"{words}\" of watcher \"{}\"", command.watcher);
        if !state.unanswered.contains(&unanswered) {
            state.unanswered.push(unanswered);
        }
        None
    }
}

#[async_trait]
impl Commands for Answers {
    async fn run(&self, command: Command) -> Result<Ended, ProcessError> {
        let ended = |exit_code, failure, output: String| Ended {
            exit_code,
            failure,
            standard_output: output.clone().into_bytes(),
            output: output.into_bytes(),
            truncated: false,
        };
        let Some(answer) = self.answer(&command) else {
            return Ok(ended(None, Some("the scenario has no answer for it".to_owned()), String::new()));
        };
        if answer.takes > command.timeout {
            tokio::time::sleep(command.timeout).await;
            let limit = crate::duration::format(command.timeout);
            return Ok(ended(None, Some(format!("took longer than {limit} and was killed")), String::new()));
        }
        tokio::time::sleep(answer.takes).await;
        let failure = (answer.exit != 0).then(|| format!("exited with code {}", answer.exit));
        Ok(ended(Some(i32::from(answer.exit)), failure, answer.output))
    }
}
