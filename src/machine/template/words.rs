//! Words of a command, as a shell reads them (<https://pubs.opengroup.org/onlinepubs/9699919799/utilities/V3_chap02.html>),
//! without what a shell expands. In: what the author wrote, and values, in order. Out: words.
//!
//! The author's quotes are the author's: a value that stands within them is part of the word whatever it holds, and one
//! that stands outside is split as if it were written there, but ends where it ends: what it opens it must close.

/// Why a text has no words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    #[error("missing closing quote")]
    OpenQuote,
    #[error(
        "a value outside of quotes opens a quote that it does not close, or ends in a backslash; put the template in quotes"
    )]
    OpenValue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Between,
    /// After a backslash that begins a word.
    Backslash,
    Unquoted,
    UnquotedBackslash,
    Single,
    Double,
    DoubleBackslash,
    Comment,
}

/// Where a value would stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quoting {
    Quoted,
    Unquoted,
    /// It would not be looked at.
    Comment,
}

/// Takes a command apart.
#[derive(Debug, Default)]
pub struct Splitter {
    words: Vec<String>,
    word: String,
    state: State,
}

impl Splitter {
    /// What the author wrote.
    pub fn literal(&mut self, text: &str) {
        text.chars().for_each(|character| self.take(character));
    }

    /// What came from a value.
    ///
    /// # Errors
    /// When it stands outside of quotes and does not close what it opens.
    pub fn value(&mut self, text: &str) -> Result<(), WordsError> {
        match self.state {
            State::Single | State::Double => self.word.push_str(text),
            State::DoubleBackslash => {
                self.word.push('\\');
                self.word.push_str(text);
                self.state = State::Double;
            }
            State::Comment => {}
            State::Between | State::Backslash | State::Unquoted | State::UnquotedBackslash => {
                text.chars().for_each(|character| self.take(character));
                self.state = match self.state {
                    // A comment in a value ends with it, and so does a backslash before an empty one.
                    State::Between | State::Comment => State::Between,
                    State::Backslash if text.is_empty() => State::Between,
                    State::UnquotedBackslash if text.is_empty() => State::Unquoted,
                    State::Unquoted => State::Unquoted,
                    _ => return Err(WordsError::OpenValue),
                };
            }
        }
        Ok(())
    }

    /// How a value would be taken now.
    pub fn quoting(&self) -> Quoting {
        match self.state {
            State::Single | State::Double | State::DoubleBackslash => Quoting::Quoted,
            State::Comment => Quoting::Comment,
            State::Between | State::Backslash | State::Unquoted | State::UnquotedBackslash => Quoting::Unquoted,
        }
    }

    /// The words that are complete.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// # Errors
    /// When a quote is open.
    pub fn finish(mut self) -> Result<Vec<String>, WordsError> {
        match self.state {
            State::Between | State::Comment => {}
            State::Unquoted => self.end_word(),
            State::Backslash | State::UnquotedBackslash => {
                self.word.push('\\');
                self.end_word();
            }
            State::Single | State::Double | State::DoubleBackslash => return Err(WordsError::OpenQuote),
        }
        Ok(self.words)
    }

    fn end_word(&mut self) {
        self.words.push(std::mem::take(&mut self.word));
    }

    fn take(&mut self, character: char) {
        self.state = match (self.state, character) {
            (State::Between | State::Unquoted, '\'') => State::Single,
            (State::Between | State::Unquoted, '"') | (State::DoubleBackslash, '\n') => State::Double,
            (State::Between, '\\') => State::Backslash,
            (State::Unquoted, '\\') => State::UnquotedBackslash,
            (State::Between, '\t' | ' ' | '\n') | (State::Backslash | State::Comment, '\n') => State::Between,
            (State::Between, '#') | (State::Comment, _) => State::Comment,
            (State::Unquoted, '\t' | ' ' | '\n') => {
                self.end_word();
                State::Between
            }
            (State::UnquotedBackslash, '\n') | (State::Single, '\'') | (State::Double, '"') => State::Unquoted,
            (State::Double, '\\') => State::DoubleBackslash,
            (State::Between | State::Backslash | State::Unquoted | State::UnquotedBackslash, character) => {
                self.word.push(character);
                State::Unquoted
            }
            (state @ (State::Single | State::Double), character) => {
                self.word.push(character);
                state
            }
            (State::DoubleBackslash, character) => {
                if !matches!(character, '$' | '`' | '"' | '\\') {
                    self.word.push('\\');
                }
                self.word.push(character);
                State::Double
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Vec<String>, WordsError> {
        let mut splitter = Splitter::default();
        splitter.literal(text);
        splitter.finish()
    }

    #[test]
    fn a_command_without_values_has_the_words_that_the_library_gives_it() {
        let pieces = ["a", "é", " ", "\t", "\n", "'", "\"", "\\", "#", "$", "`", "''", "\"\"", "\\\n", "b c"];
        let mut state = 11_u64;
        let mut next = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for _ in 0..20_000 {
            let text: String = (0..next(12)).map(|_| pieces[next(pieces.len())]).collect();
            assert_eq!(words(&text).ok(), shell_words::split(&text).ok(), "{text:?}");
        }
    }

    #[test]
    fn a_value_in_quotes_stays_in_its_word_whatever_it_holds() {
        for (begin, end) in [("'", "'"), ("\"", "\""), ("a='", "'b"), ("x\\\\\"", "\"'' "), ("\"'", "'\"")] {
            for value in HOSTILE {
                let mut splitter = Splitter::default();
                splitter.literal(&format!("first {begin}"));
                splitter.value(value).unwrap();
                splitter.literal(&format!("{end} last"));
                let plain = words(&format!("first {begin}%{end} last")).unwrap();
                let expected: Vec<String> = plain.iter().map(|word| word.replace('%', value)).collect();
                assert_eq!(splitter.finish().unwrap(), expected, "{begin}{value:?}{end}");
            }
        }
    }

    const HOSTILE: [&str; 14] = [
        "",
        "'; rm -rf /; '",
        "\"; rm -rf /; \"",
        "\\",
        "\\\\",
        "'",
        "\"",
        "$(id)",
        "`id`",
        "a\nb",
        "a b\tc",
        "# x",
        "\0",
        "\u{1}",
    ];

    #[test]
    fn a_value_outside_of_quotes_never_changes_how_the_rest_is_read() {
        for value in HOSTILE.into_iter().chain(["a 'b c' d", "a\\ b", "x #y", "'", "a'b"]) {
            for before in ["run ", "run \\", "run a", "run ''", "run a\\", "# note "] {
                let mut splitter = Splitter::default();
                splitter.literal(before);
                let alone = words(value);
                match splitter.value(value) {
                    Err(error) => {
                        assert!(
                            alone.is_err() || value.ends_with('\\') || before.ends_with('\\'),
                            "{value:?}: {error}"
                        );
                    }
                    Ok(()) => {
                        splitter.literal(" '");
                        let quoting = splitter.quoting();
                        assert_eq!(quoting == Quoting::Quoted, !before.starts_with('#'), "{before}{value:?}");
                        splitter.value("'; id '").unwrap();
                        splitter.literal("' last");
                        let all = splitter.finish().unwrap();
                        if !before.starts_with('#') {
                            assert_eq!(all[all.len() - 2..], ["'; id '", "last"], "{before}{value:?}");
                        }
                    }
                }
            }
        }
        let mut splitter = Splitter::default();
        splitter.literal("run ");
        splitter.value("-a 'b c' d\\ e # f").unwrap();
        splitter.literal(" g");
        assert_eq!(splitter.finish().unwrap(), ["run", "-a", "b c", "d e", "g"]);
    }
}
