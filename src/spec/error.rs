//! Why a specification is refused. In every case nothing changes on the node.

use std::fmt;

/// Most problems that are listed one by one.
pub(super) const LISTED_PROBLEMS: usize = 50;

/// Why an envelope or the specification in it is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecificationError {
    #[error(
        "no key is trusted here, and without one nothing of a specification is taken: make keys with \"mms keys\" and \
         set [trust] public_keys to the public one; or set allow_unsigned = true there, in the file, where whoever \
         writes to the bucket may decide what runs"
    )]
    NoTrustedKey,
    #[error("the specification has {bytes} bytes, the limit is {limit_bytes}")]
    TooLarge { bytes: usize, limit_bytes: usize },
    #[error("the envelope is not valid at line {line}, column {column}: {reason}")]
    Envelope { line: usize, column: usize, reason: String },
    #[error("the envelope has no \"machines\"; make one with \"mms pack\"")]
    NoMachines,
    #[error("this is an envelope of the \"plugins\" form; a machines specification needs \"machines\"")]
    PluginsForm,
    #[error("this is an envelope of the \"machines\" form; a plugins specification needs \"plugins\"")]
    MachinesForm,
    #[error("the envelope has no \"plugins\"")]
    NoPlugins,
    #[error(
        "the envelope has both \"machines\" and \"plugins\", but its signature can cover only one; send them apart"
    )]
    BothForms,
    #[error("\"{field}\" is not standard base64 with padding: {reason}")]
    Base64 { field: &'static str, reason: String },
    #[error("\"signature\" is not a signature: {reason}")]
    SignatureEncoding { reason: String },
    #[error(
        "the specification is not signed, but a trusted key is configured; sign it with \"mms pack FILE --key-file KEYFILE\""
    )]
    Unsigned,
    #[error(
        "the signature covers the base64 text, not the decoded bytes, as in the \"plugins\" form; sign it with \
         \"mms pack FILE --key-file KEYFILE\""
    )]
    SignatureCoversText,
    #[error(
        "the signature covers the decoded bytes, as in the \"machines\" form; that of a plugins specification must \
         cover the base64 text"
    )]
    SignatureCoversBytes,
    #[error("the signature was not made over this content by a trusted key; trusted: {keys}")]
    SignatureInvalid { keys: String },
    #[error("the list of machines is not valid at line {line}, column {column}: {reason}")]
    Payload { line: usize, column: usize, reason: String },
    #[error("the specification lists {machines} machines, the limit is {limit}")]
    TooManyMachines { machines: usize, limit: usize },
    #[error("{}", list(problems, *total))]
    Entries {
        /// The first ones, at most 50, in the order of the list.
        problems: Vec<EntryProblem>,
        /// How many there are.
        total: usize,
    },
}

/// One thing wrong with one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryProblem {
    /// The place of the entry in the list, from 1.
    pub entry: usize,
    /// The entry's name as given, cut to 80 characters, where it has one.
    pub name: Option<String>,
    /// The key concerned.
    pub field: Option<&'static str>,
    /// Line and column in the payload, from 1: of the key's value where the key is there, else of the entry.
    pub line: usize,
    pub column: usize,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl fmt::Display for EntryProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "entry {}", self.entry)?;
        if let Some(name) = &self.name {
            write!(formatter, " ({name:?})")?;
        }
        write!(formatter, " at line {}, column {}: ", self.line, self.column)?;
        if let Some(field) = self.field {
            write!(formatter, "{field}: ")?;
        }
        formatter.write_str(&self.reason)
    }
}

impl SpecificationError {
    /// Whether it is refused for who signed it, or that nobody did, and not for what it is.
    pub fn is_of_trust(&self) -> bool {
        matches!(self, Self::NoTrustedKey | Self::Unsigned | Self::SignatureInvalid { .. })
    }

    pub(super) fn envelope(error: &serde_json::Error) -> Self {
        Self::Envelope { line: error.line(), column: error.column(), reason: reason(error) }
    }

    pub(super) fn payload(error: &serde_json::Error) -> Self {
        Self::Payload { line: error.line(), column: error.column(), reason: reason(error) }
    }

    pub(super) fn base64(form: super::Form, error: &base64::DecodeError) -> Self {
        use base64::DecodeError;
        let reason = match error {
            DecodeError::InvalidByte(at, byte) => {
                let character = char::from(*byte);
                format!("character {} is {character:?}", at + 1)
            }
            DecodeError::InvalidLength(length) => format!("{length} characters can't be a whole number of bytes"),
            DecodeError::InvalidLastSymbol(at, _) => format!("character {} has bits that would be lost", at + 1),
            DecodeError::InvalidPadding => "the padding with \"=\" is missing or too long".to_owned(),
        };
        Self::Base64 { field: form.field(), reason }
    }
}

/// The parser's message without the place, which ours gives already.
fn reason(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.rsplit_once(" at line ").map_or(message.clone(), |(reason, _)| reason.to_owned())
}

fn list(problems: &[EntryProblem], total: usize) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    if let ([line], 1) = (lines.as_slice(), total) {
        return line.clone();
    }
    let mut text = format!("the specification has {total} problems:");
    for line in &lines {
        text += "\n  ";
        text += line;
    }
    if total > lines.len() {
        text += "\n  and ";
        text += &(total - lines.len()).to_string();
        text += " more";
    }
    text
}
