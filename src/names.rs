//! Newtypes for names that come from outside: one constructor each, so that nothing unchecked can become a path,
//! a subject or a log line.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest machine name in bytes.
pub const MACHINE_NAME_MAXIMUM_BYTES: usize = 63;

/// Longest state, transition or watcher name in bytes.
pub const LABEL_MAXIMUM_BYTES: usize = 128;

/// Why a text is not an acceptable name. The message quotes the text, so that control characters are visible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a valid {kind}: {reason}")]
pub struct NameError {
    /// What kind of name was expected, for example "machine name".
    pub kind: &'static str,
    /// The refused text, cut to 80 characters.
    pub name: String,
    /// What is wrong with it and what would be right.
    pub reason: &'static str,
}

impl NameError {
    fn new(kind: &'static str, name: &str, reason: &'static str) -> Self {
        let name = name.chars().take(80).collect();
        Self { kind, name, reason }
    }
}

macro_rules! string_newtype {
    ($type:ident) => {
        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl std::str::FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }
        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.as_ref().to_owned()
            }
        }
    };
}

/// The name of a machine; also the name of its directory, which is why it is so narrow: it can never be `..`, never
/// hold a separator and never collide with what the host skips.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineName(std::sync::Arc<str>);

impl MachineName {
    /// Accepts `^[a-zA-Z][a-zA-Z0-9_-]{0,62}$` that is not reserved.
    ///
    /// # Errors
    /// Names the rule that the text breaks.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let refuse = |reason| Err(NameError::new("machine name", text, reason));
        if text.is_empty() {
            return refuse("it is empty; use a letter, then letters, digits, '_' or '-'");
        }
        if text.len() > MACHINE_NAME_MAXIMUM_BYTES {
            return refuse("it is longer than 63 characters");
        }
        if !text.starts_with(|first: char| first.is_ascii_alphabetic()) {
            return refuse("it must start with a letter from a to z");
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-') {
            return refuse("only letters, digits, '_' and '-' are allowed");
        }
        // The host skips these directories (reference behaviour), so such a machine would be installed and never run.
        let lower = text.to_ascii_lowercase();
        if lower == "tmp" || lower.ends_with("-temp") {
            return refuse("\"tmp\" and names that end in \"-temp\" are reserved for unfinished work");
        }
        Ok(Self(text.into()))
    }

    /// The form in which names are compared for uniqueness: file systems may ignore case.
    pub fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}
string_newtype!(MachineName);

/// The version of a machine: `^\d+\.\d+\.\d+$`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(std::sync::Arc<str>);

impl Version {
    /// # Errors
    /// When the text is not three numbers separated by dots.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let parts: Vec<&str> = text.split('.').collect();
        let numeric =
            |part: &&str| !part.is_empty() && part.len() <= 10 && part.bytes().all(|byte| byte.is_ascii_digit());
        if parts.len() == 3 && parts.iter().all(numeric) {
            Ok(Self(text.into()))
        } else {
            Err(NameError::new("version", text, "use three numbers such as 1.2.3"))
        }
    }
}
string_newtype!(Version);

/// The name of a state, a transition or a watcher: printable, short, without white space, so that it can stand in a
/// log line, an event and a drawing as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(std::sync::Arc<str>);

impl Label {
    /// # Errors
    /// Names the rule that the text breaks.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let refuse = |reason| Err(NameError::new("name", text, reason));
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text.len() > LABEL_MAXIMUM_BYTES {
            return refuse("it is longer than 128 bytes");
        }
        if text.chars().any(|character| character.is_control() || character.is_whitespace()) {
            return refuse("white space and control characters are not allowed");
        }
        Ok(Self(text.into()))
    }
}
string_newtype!(Label);

/// The unique name of a node, its fully qualified host name unless the settings say otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity(std::sync::Arc<str>);

impl Identity {
    /// Accepts letters, digits, `.`, `-`, `_` and `:`, at most 253 bytes: what a host name, a serial number or an
    /// address can hold, and nothing that has a meaning in a NATS subject, a path or a log line.
    ///
    /// # Errors
    /// Names the rule that the text breaks.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let refuse = |reason| Err(NameError::new("identity", text, reason));
        if text.is_empty() || text.len() > 253 {
            return refuse("it must have 1 to 253 characters");
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte)) {
            return refuse("only letters, digits, '.', '-', '_' and ':' are allowed");
        }
        Ok(Self(text.into()))
    }
}
string_newtype!(Identity);

/// The name of a governor: a fleet-wide limit on how many do something at once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GovernorName(std::sync::Arc<str>);

impl GovernorName {
    /// Accepts `^[a-zA-Z0-9_-]{1,128}$`: it becomes part of a stream's name and of a NATS subject.
    ///
    /// # Errors
    /// Names the rule that the text breaks.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let valid = (1..=LABEL_MAXIMUM_BYTES).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        if valid {
            return Ok(Self(text.into()));
        }
        Err(NameError::new("governor name", text, "it has 1 to 128 letters, digits, '_' and '-'"))
    }
}
string_newtype!(GovernorName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_names_are_plain_directory_names() {
        for good in ["facts", "a", "Web-Server_2", &"a".repeat(63)] {
            assert_eq!(MachineName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "..", ".", "a/b", "1a", "-a", "tmp", "TMP", "x-temp", "a b", "a\0", "é", "a\n", &"a".repeat(64)]
        {
            let error = MachineName::new(bad).unwrap_err();
            assert!(error.to_string().contains("is not a valid machine name"), "{error}");
        }
    }

    #[test]
    fn versions_are_three_numbers() {
        assert!(Version::new("1.20.3").is_ok());
        for bad in ["", "1", "1.2", "1.2.3.4", "1.2.x", "v1.2.3", "1..3", "1.2.99999999999"] {
            assert!(Version::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_quotes_control_characters() {
        let error = Label::new("up\u{1b}[2J").unwrap_err();
        assert!(error.to_string().contains("\\u{1b}"), "{error}");
    }

    #[test]
    fn governor_names_cannot_hold_subject_syntax() {
        for good in ["UPDATES", "a", "9_-", &"a".repeat(128)] {
            assert_eq!(GovernorName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a.b", "a b", ">", "*", "é", "a\n", &"a".repeat(129)] {
            let error = GovernorName::new(bad).unwrap_err().to_string();
            assert!(error.contains("is not a valid governor name: it has 1 to 128"), "{error}");
        }
    }

    #[test]
    fn identities_cannot_hold_subject_or_path_syntax() {
        assert!(Identity::new("web1.example.net").is_ok());
        for bad in ["", "a b", "a/b", "a*", ">", "a\n"] {
            assert!(Identity::new(bad).is_err(), "{bad:?}");
        }
    }
}
