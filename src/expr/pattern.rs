//! Regular expressions that are compiled once and matched once or twice: a specification may have ten thousand, each for
//! one name. So they are compiled for the engines that need nothing prepared (a bounded backtracker, and a simulation of
//! the automaton for what is too large for it), which also search in linear time. In: a pattern. Out: whether it
//! matches.

use regex_automata::meta;
use regex_automata::nfa::thompson::WhichCaptures;

use super::error::Problem;
use super::lexer::shorten;
use super::limits;

/// A compiled pattern, in the syntax of the `regex` crate.
#[derive(Debug)]
pub(super) struct Pattern(meta::Regex);

impl Pattern {
    /// Compiles within the size limit; the error is one line.
    pub(super) fn compile(pattern: &str) -> Result<Self, Problem> {
        let config = meta::Config::new()
            .nfa_size_limit(Some(limits::REGEX_BYTES))
            .which_captures(WhichCaptures::None)
            .auto_prefilter(false)
            .hybrid(false)
            .onepass(false)
            .dfa(false);
        let compiled = meta::Builder::new().configure(config).build(pattern);
        compiled.map(Self).map_err(|error| {
            let reason = match (error.syntax_error(), error.size_limit()) {
                // The library's message is a drawing over several lines whose last one says what is wrong.
                (Some(syntax), _) => {
                    let message = syntax.to_string();
                    let last = message.lines().last().unwrap_or_default();
                    last.strip_prefix("error: ").unwrap_or(last).to_owned()
                }
                (None, Some(limit)) => format!("compiled, it is larger than the limit of {limit} bytes"),
                (None, None) => error.to_string(),
            };
            Problem::Regex { pattern: shorten(pattern), reason }
        })
    }

    /// Whether the text has a match anywhere in it.
    pub(super) fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}
