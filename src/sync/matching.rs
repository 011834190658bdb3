//! Asks the match expressions of a specification, each with a time limit: `has_file` on a dead mount never returns, and
//! one such expression must not stop the care for all other machines.
//!
//! In: expressions, a way to evaluate them. Out: an answer for each, in order.

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use super::plan::Matching;
use crate::expr::MatchExpression;

/// Threads that hang in the kernel at most. A thread can't be ended, so each costs its stack until the mount is back.
const MAXIMUM_HANGING: usize = 8;

/// Answers that may wait to be taken; bounds the memory.
const ANSWERS_AHEAD: usize = 64;

/// Evaluates; remembers what hangs.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    /// By expression, the token that its hanging thread holds.
    hanging: Mutex<BTreeMap<String, Weak<()>>>,
}

impl Matcher {
    /// Blocks for at most `limit` for each expression that hangs and did not hang before.
    pub fn ask<F>(&self, expressions: &[MatchExpression], limit: Duration, evaluate: &F) -> Vec<Matching>
    where
        F: Fn(&MatchExpression) -> Result<bool, String> + Clone + Send + 'static,
    {
        let mut answers = Vec::with_capacity(expressions.len());
        while let Some(rest) = expressions.get(answers.len()..).filter(|rest| !rest.is_empty()) {
            let hanging = self.hanging();
            if let Some(expression) = rest.first().filter(|first| hanging.contains(first.source())) {
                answers.push(no_answer(&format!("{:?} has not answered since an earlier pass", expression.source())));
            } else if hanging.len() >= MAXIMUM_HANGING {
                answers.push(no_answer("other match expressions hang, too many to try this one"));
            } else {
                let askable = rest.iter().take_while(|expression| !hanging.contains(expression.source()));
                self.ask_some(askable.cloned().collect(), limit, evaluate, &mut answers);
            }
        }
        answers
    }

    /// Asks on a thread until one hangs; adds at least one answer.
    fn ask_some<F>(&self, expressions: Vec<MatchExpression>, limit: Duration, evaluate: &F, answers: &mut Vec<Matching>)
    where
        F: Fn(&MatchExpression) -> Result<bool, String> + Clone + Send + 'static,
    {
        let token = Arc::new(());
        let held = Arc::downgrade(&token);
        let (sender, receiver) = sync_channel(ANSWERS_AHEAD);
        let (work, evaluate) = (expressions.clone(), evaluate.clone());
        let started = thread::Builder::new().name("match".into()).spawn(move || {
            answer_all(&work, &sender, &evaluate);
            drop(token);
        });
        if let Err(error) = started {
            return answers.push(Matching::Failed(format!("could not start a thread to evaluate it: {error}")));
        }
        for expression in expressions {
            match receiver.recv_timeout(limit) {
                Ok(answer) => answers.push(answer),
                Err(RecvTimeoutError::Disconnected) => {
                    let message = "the evaluation was broken off by a fault in machinesd; please report it";
                    return answers.push(Matching::Failed(message.to_owned()));
                }
                Err(RecvTimeoutError::Timeout) => {
                    let source = expression.source().to_owned();
                    let waited = crate::duration::format(limit);
                    answers.push(no_answer(&format!("{source:?} did not answer within {waited}")));
                    self.lock().insert(source, held);
                    return;
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Weak<()>>> {
        self.hanging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What hangs now; what has come back is forgotten.
    fn hanging(&self) -> std::collections::BTreeSet<String> {
        let mut hanging = self.lock();
        hanging.retain(|_, token| token.strong_count() > 0);
        hanging.keys().cloned().collect()
    }
}

/// Stops when nobody waits any more.
fn answer_all<F>(expressions: &[MatchExpression], answers: &SyncSender<Matching>, evaluate: &F)
where
    F: Fn(&MatchExpression) -> Result<bool, String>,
{
    for expression in expressions {
        let answer = match evaluate(expression) {
            Ok(true) => Matching::Matches,
            Ok(false) => Matching::DoesNotMatch,
            Err(why) => Matching::Failed(why),
        };
        if answers.send(answer).is_err() {
            return;
        }
    }
}

fn no_answer(what: &str) -> Matching {
    Matching::Failed(format!("{what}: a file system that it looks at may hang"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn expressions(names: &[&str]) -> Vec<MatchExpression> {
        let parse = |name: &&str| MatchExpression::parse(&format!("has_file('/{name}')")).unwrap();
        names.iter().map(parse).collect()
    }

    fn why(answer: &Matching) -> &str {
        match answer {
            Matching::Failed(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_expression_that_hangs_is_an_error_of_its_own_and_the_others_are_answered() {
        let matcher = Matcher::default();
        let (release, released) = channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let evaluate = move |expression: &MatchExpression| {
            if expression.source().contains("dead") {
                _ = released.lock().unwrap().recv();
            }
            Ok(!expression.source().contains("none"))
        };
        let all = expressions(&["a", "dead", "none", "b"]);
        let limit = Duration::from_secs(2);
        for message in ["did not answer within 2s", "has not answered since an earlier pass"] {
            let answers = matcher.ask(&all, limit, &evaluate);
            assert_eq!([&answers[0], &answers[3]], [&Matching::Matches; 2]);
            assert_eq!(answers[2], Matching::DoesNotMatch);
            let why = why(&answers[1]);
            assert!(why.contains("\"has_file('/dead')\"") && why.contains(message), "{why}");
            assert!(why.ends_with("a file system that it looks at may hang"), "{why}");
        }
        // The mount is back: the thread ends, and the next pass asks again.
        drop(release);
        while !matcher.hanging().is_empty() {
            thread::yield_now();
        }
        assert_eq!(matcher.ask(&all, limit, &evaluate)[1], Matching::Matches);
    }

    #[test]
    fn hanging_expressions_never_take_more_than_their_share_of_threads() {
        let matcher = Matcher::default();
        let (_release, released) = channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let hang = move |_: &MatchExpression| {
            _ = released.lock().unwrap().recv();
            Ok(true)
        };
        let names: Vec<String> = (0..MAXIMUM_HANGING + 4).map(|number| number.to_string()).collect();
        let all = expressions(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let answers = matcher.ask(&all, Duration::from_millis(1), &hang);
        assert_eq!(matcher.hanging().len(), MAXIMUM_HANGING);
        assert!(why(&answers[MAXIMUM_HANGING]).contains("other match expressions hang"), "{answers:?}");
        assert_eq!(answers.len(), all.len());
    }

    #[test]
    fn a_defect_in_one_evaluation_is_an_error_of_that_one() {
        let evaluate = |expression: &MatchExpression| {
            assert!(!expression.source().contains("defect"), "as a defect would");
            Ok(true)
        };
        let answers = Matcher::default().ask(&expressions(&["a", "defect", "b"]), Duration::from_secs(30), &evaluate);
        assert_eq!([&answers[0], &answers[2]], [&Matching::Matches; 2]);
        assert!(why(&answers[1]).contains("please report it"));
    }
}
