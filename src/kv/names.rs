//! The names of buckets and keys, and the patterns that watches take, by the rules of NATS (ADR-8), which the embedded
//! store keeps too, so that a bucket can move between them.

use super::KvError;

/// Longest accepted name; beyond it subjects get unwieldy and nobody means it.
const MAXIMUM_BYTES: usize = 255;

/// Accepts `^[a-zA-Z0-9_-]+$`.
///
/// # Errors
/// [`KvError::InvalidBucket`].
pub fn check_bucket(name: &str) -> Result<(), KvError> {
    let valid = !name.is_empty()
        && name.len() <= MAXIMUM_BYTES
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if valid { Ok(()) } else { Err(KvError::InvalidBucket { bucket: shortened(name) }) }
}

/// Accepts `^[-/_=.a-zA-Z0-9]+$` without a dot at either end or two in a row (an empty token is no subject).
///
/// # Errors
/// [`KvError::InvalidKey`], with the rule that is broken.
pub fn check_key(key: &str) -> Result<(), KvError> {
    let refuse = |reason| Err(KvError::InvalidKey { key: shortened(key), reason });
    if key.is_empty() {
        return refuse("it is empty");
    }
    if key.len() > MAXIMUM_BYTES {
        return refuse("it is longer than 255 bytes");
    }
    if !key.bytes().all(is_key_byte) {
        return refuse("only letters, digits and - / _ = . are allowed");
    }
    check_dots(key).or_else(refuse)
}

/// Accepts a key in which whole tokens may be `*`, and the last one `>`.
pub(super) fn check_pattern(pattern: &str) -> Result<(), KvError> {
    let refuse = |reason| Err(KvError::InvalidKey { key: shortened(pattern), reason });
    if pattern.is_empty() {
        return refuse("it is empty");
    }
    if pattern.len() > MAXIMUM_BYTES {
        return refuse("it is longer than 255 bytes");
    }
    let mut tokens = pattern.split('.').peekable();
    while let Some(token) = tokens.next() {
        let wildcard = token == "*" || (token == ">" && tokens.peek().is_none());
        if !wildcard && !token.bytes().all(is_key_byte) {
            return refuse("* must be a whole token, > the last one, and others made of letters, digits and - / _ =");
        }
    }
    check_dots(pattern).or_else(refuse)
}

/// Whether a key matches a NATS subject pattern: `*` stands for one token, a final `>` for one or more.
pub fn pattern_matches(pattern: &str, key: &str) -> bool {
    let mut key_tokens = key.split('.');
    for token in pattern.split('.') {
        let Some(key_token) = key_tokens.next() else { return false };
        match token {
            ">" => return true,
            "*" => {}
            _ if token == key_token => {}
            _ => return false,
        }
    }
    key_tokens.next().is_none()
}

fn check_dots(key: &str) -> Result<(), &'static str> {
    if key.starts_with('.') || key.ends_with('.') {
        return Err("it must not begin or end with a dot");
    }
    if key.contains("..") {
        return Err("it must not have two dots in a row");
    }
    Ok(())
}

fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-/_=.".contains(&byte)
}

/// For messages: a hostile name must not flood a log.
fn shortened(name: &str) -> String {
    name.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_letters_digits_underscore_and_dash() {
        for good in ["MACHINES", "a_b-9"] {
            assert!(check_bucket(good).is_ok(), "{good}");
        }
        for bad in ["", "a.b", "a b", "a*", ">", "a/b", "é", "a\n", &"a".repeat(256)] {
            let error = check_bucket(bad).unwrap_err().to_string();
            assert!(error.contains("is not a valid bucket name"), "{error}");
        }
    }

    #[test]
    fn keys_follow_the_rules_of_nats() {
        for good in ["machines", "a.b/c=d_e-f", "9"] {
            assert!(check_key(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "a.", "a..b", "a b", "a*", ">", "é", "a\r\n", &"a".repeat(256)] {
            let error = check_key(bad).unwrap_err().to_string();
            assert!(error.contains("is not a valid key"), "{error}");
        }
    }

    #[test]
    fn patterns_match_as_subjects_do() {
        let cases = [
            ("machines", "machines", true),
            ("machines", "machines.a", false),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("a.*", "a", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("*.b", "a.b", true),
        ];
        for (pattern, key, expected) in cases {
            assert!(check_pattern(pattern).is_ok(), "{pattern}");
            assert_eq!(pattern_matches(pattern, key), expected, "{pattern} {key}");
        }
        for bad in ["", "a*", ">.a", "a..*", ".>", "a b"] {
            assert!(check_pattern(bad).is_err(), "{bad}");
        }
    }
}
