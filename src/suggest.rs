//! "Did you mean": the known word nearest to what was written.
//!
//! In: a word, and the words that are known. Out: the one that was meant, if any.

/// Of a word, so many characters are looked at; no known one is as long.
const MAXIMUM_CHARACTERS: usize = 128;

/// The known word nearest to a mistyped one, when it is near enough to be meant: a third of the letters and one more may
/// be wrong. Case, `_` and `-` don't count, so that `hasCommand` is near `has_command`.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = word.chars().take(MAXIMUM_CHARACTERS).count() / 3 + 1;
    let letters = letters(word);
    known
        .into_iter()
        .map(|candidate| (distance(&letters, &self::letters(candidate)), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean "has_command"?`, or the list of what is known when nothing is near.
pub fn did_you_mean(word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(meant) => format!("did you mean {meant:?}?"),
        None => format!("known are {}", known.join(", ")),
    }
}

fn letters(word: &str) -> Vec<char> {
    let counts = |character: &char| !matches!(character, '_' | '-');
    word.chars().filter(counts).take(MAXIMUM_CHARACTERS).flat_map(char::to_lowercase).collect()
}

/// The Levenshtein distance.
fn distance(left: &[char], right: &[char]) -> usize {
    let mut previous: Vec<usize> = (0..=right.len()).collect();
    for (row, left) in left.iter().enumerate() {
        let mut current = vec![row + 1];
        for ((right, diagonal), above) in right.iter().zip(&previous).zip(previous.iter().skip(1)) {
            let beside = current.last().copied().unwrap_or_default();
            current.push((diagonal + usize::from(left != right)).min(above + 1).min(beside + 1));
        }
        previous = current;
    }
    previous.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant_and_nothing_far_fetched() {
        assert_eq!(nearest("intial_state", ["initial_state", "name"]), Some("initial_state"));
        assert_eq!(nearest("exce", ["exec", "kv"]), Some("exec"));
        assert_eq!(nearest("HasCommand", ["has_file", "has_command"]), Some("has_command"));
        assert_eq!(nearest("banana", ["exec", "kv"]), None);
        assert_eq!(nearest("", ["exec", "kv"]), None);
        assert_eq!(nearest(&"x".repeat(100_000), ["exec"]), None);
    }

    #[test]
    fn says_what_is_known_when_nothing_is_near() {
        assert_eq!(did_you_mean("fcts", &["facts", "identity"]), "did you mean \"facts\"?");
        assert_eq!(did_you_mean("weather", &["facts", "identity"]), "known are facts, identity");
    }
}
