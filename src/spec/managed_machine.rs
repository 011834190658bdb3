//! Entries, validated. In: raw entries. Out: managed machines, or every problem of every entry.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use super::error::{EntryProblem, LISTED_PROBLEMS, SpecificationError};
use super::raw::RawEntry;
use super::{place, raw};
use crate::digest::Sha256Digest;
use crate::expr::{MatchExpression, Scope};
use crate::names::{GovernorName, MachineName};
use crate::secret::{Secret, SecretUrl, masked};

/// The checksums file of an archive; the format knows no other.
const CHECKSUMS_FILE: &str = "SHA256SUMS";

/// Longest source in bytes.
const SOURCE_MAXIMUM_BYTES: usize = 2048;

/// Where an archive comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `https://` or `http://`; shown without what may be secret in it.
    Http(SecretUrl),
    /// `file:///absolute/path`.
    File(PathBuf),
    /// `obj://BUCKET/NAME`, a NATS object store.
    Object { bucket: String, name: String },
}

/// A text that is no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a source: {reason}")]
pub struct SourceError {
    text: String,
    reason: String,
}

impl Source {
    /// Reads `https://…`, `http://…`, `file:///absolute/path` or `obj://BUCKET/NAME`.
    ///
    /// # Errors
    /// Quotes the text, without what is secret in it, and says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        read_source(text).map_err(|reason| SourceError { text: masked(text).chars().take(200).collect(), reason })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(url) => write!(formatter, "{url}"),
            Self::File(path) => write!(formatter, "file://{}", path.display()),
            Self::Object { bucket, name } => write!(formatter, "obj://{bucket}/{name}"),
        }
    }
}

/// Basic authentication for the download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: Secret,
}

/// One validated entry of the specification.
#[derive(Debug, Clone)]
pub struct ManagedMachine {
    pub name: MachineName,
    pub source: Source,
    pub credentials: Option<Credentials>,
    /// SHA-256 of the archive.
    pub checksum: Sha256Digest,
    /// SHA-256 of the `SHA256SUMS` file in it.
    pub verify_checksum: Sha256Digest,
    pub matcher: MatchExpression,
    /// Taken while it is installed, upgraded or repaired.
    pub governor: Option<GovernorName>,
}

/// Reads and validates the whole list, whose matches may use what the scope has.
pub(super) fn validate(payload: &[u8], limit: usize, scope: &Scope) -> Result<Vec<ManagedMachine>, SpecificationError> {
    let entries = raw::read(payload).map_err(|error| SpecificationError::payload(&error))?;
    if entries.len() > limit {
        return Err(SpecificationError::TooManyMachines { machines: entries.len(), limit });
    }
    let mut machines = Vec::with_capacity(entries.len());
    let mut names: HashMap<String, usize> = HashMap::with_capacity(entries.len());
    let mut matchers: HashMap<String, MatchExpression> = HashMap::new();
    let mut problems = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let mut checked = Checked { index, raw: entry, scope, problems: &mut problems };
        machines.extend(checked.machine(&mut names, &mut matchers));
    }
    if problems.is_empty() {
        return Ok(machines);
    }
    let total = problems.len();
    problems.truncate(LISTED_PROBLEMS);
    let places = place::entries(payload);
    for problem in &mut problems {
        let entry = places.get(problem.entry - 1);
        (problem.line, problem.column) = entry.map_or((1, 1), |entry| entry.of(problem.field));
    }
    Err(SpecificationError::Entries { problems, total })
}

/// One entry on its way through validation.
struct Checked<'a, 'p> {
    index: usize,
    raw: RawEntry<'p>,
    scope: &'a Scope,
    problems: &'a mut Vec<EntryProblem>,
}

impl Checked<'_, '_> {
    fn problem(&mut self, field: Option<&'static str>, reason: String) {
        let name = self.raw.get("name").map(|name| name.chars().take(80).collect());
        self.problems.push(EntryProblem { entry: self.index + 1, name, field, line: 0, column: 0, reason });
    }

    /// The value of a key that must be there, through its parser.
    fn required<T>(&mut self, field: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let result = match self.raw.get(field) {
            Some(text) => parse(text),
            // A value of the wrong type was reported already.
            None if self.raw.problems.iter().any(|(named, _)| *named == Some(field)) => return None,
            None => Err("it is required".to_owned()),
        };
        result.map_err(|reason| self.problem(Some(field), reason)).ok()
    }

    fn machine(
        &mut self,
        names: &mut HashMap<String, usize>,
        matchers: &mut HashMap<String, MatchExpression>,
    ) -> Option<ManagedMachine> {
        let before = self.problems.len();
        for (field, reason) in self.raw.problems.clone() {
            self.problem(field, reason);
        }
        if self.raw.not_an_object {
            return None;
        }
        let index = self.index;
        let name = self.required("name", |text| {
            let name = MachineName::new(text).map_err(|error| error.to_string())?;
            match names.insert(name.folded(), index) {
                None => Ok(name),
                Some(first) => {
                    names.insert(name.folded(), first);
                    Err(format!("entry {} has this name already; names must differ by more than case", first + 1))
                }
            }
        });
        let source = self.required("source", read_source);
        let digest = |text: &str| Sha256Digest::parse(text).map_err(|error| error.to_string());
        let checksum = self.required("checksum", digest);
        let verify_checksum = self.required("verify_checksum", digest);
        let matcher = match matchers.get(self.raw.get("match").unwrap_or_default()) {
            Some(matcher) => Some(matcher.clone()),
            None => self.matcher(matchers),
        };
        if let Some(verify) = self.raw.get("verify").filter(|verify| *verify != CHECKSUMS_FILE) {
            let shown: String = verify.chars().take(80).collect();
            self.problem(Some("verify"), format!("it is {shown:?}; it must be {CHECKSUMS_FILE:?} or absent"));
        }
        let governor = self.raw.get("governor").map(GovernorName::new).transpose();
        if governor.is_err() {
            let reason = "a governor's name has 1 to 128 letters, digits, '_' and '-'".to_owned();
            self.problem(Some("governor"), reason);
        }
        let credentials = self.credentials();
        // Anything found makes the entry unusable, also what has no field of its own in the machine.
        if self.problems.len() > before {
            return None;
        }
        Some(ManagedMachine {
            name: name?,
            source: source?,
            credentials,
            checksum: checksum?,
            verify_checksum: verify_checksum?,
            matcher: matcher?,
            governor: governor.ok().flatten(),
        })
    }

    /// Expressions repeat in a list, and parsing one compiles its regular expressions.
    fn matcher(&mut self, matchers: &mut HashMap<String, MatchExpression>) -> Option<MatchExpression> {
        let text = self.raw.get("match").unwrap_or_default().to_owned();
        match MatchExpression::parse_in(&text, self.scope) {
            Ok(matcher) => {
                matchers.insert(text, matcher.clone());
                Some(matcher)
            }
            Err(error) => {
                self.problem(Some("match"), error.to_string());
                None
            }
        }
    }

    fn credentials(&mut self) -> Option<Credentials> {
        let (username, password) = (self.raw.get("username"), self.raw.get("password"));
        let (username, password) = match (username, password) {
            (Some(username), Some(password)) => (username.to_owned(), password.to_owned()),
            (None, None) => return None,
            (Some(_), None) => {
                self.problem(Some("password"), "\"username\" is given without \"password\"".to_owned());
                return None;
            }
            (None, Some(_)) => {
                self.problem(Some("username"), "\"password\" is given without \"username\"".to_owned());
                return None;
            }
        };
        // RFC 7617: a colon ends the user name, and control characters could end the header.
        if username.contains(':') || username.chars().chain(password.chars()).any(char::is_control) {
            let reason = "a user name must not contain ':', and neither it nor the password a control character";
            self.problem(Some("username"), reason.to_owned());
            return None;
        }
        Some(Credentials { username, password: Secret::new(password) })
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

fn read_source(text: &str) -> Result<Source, String> {
    const KNOWN: &str = "use https://, http://, file:///absolute/path or obj://BUCKET/NAME";
    if text.len() > SOURCE_MAXIMUM_BYTES {
        return Err(format!("it is longer than {SOURCE_MAXIMUM_BYTES} bytes"));
    }
    // The URL parser would quietly drop or convert these.
    if text.chars().any(|character| character.is_control() || character.is_whitespace() || character == '\\') {
        return Err("it contains white space, a control character or a backslash; encode it as %20 and the like".into());
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        let what = if text.contains(':') { "it has no \"://\"" } else { "it has no scheme" };
        return Err(format!("{what}; {KNOWN}"));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "https" | "http" => http_source(text),
        "file" => file_source(text, rest),
        "obj" => object_source(rest),
        scheme => {
            let shown: String = scheme.chars().take(20).collect();
            Err(format!("the scheme {shown:?} is not supported; {KNOWN}"))
        }
    }
}

fn http_source(text: &str) -> Result<Source, String> {
    let url = url::Url::parse(text).map_err(|error| format!("it is not a valid URL: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        // URLs are logged and shown; the two keys are not.
        return Err("it contains a user name or password; put them into \"username\" and \"password\"".into());
    }
    Ok(Source::Http(SecretUrl::new(url)))
}

fn file_source(text: &str, rest: &str) -> Result<Source, String> {
    if !rest.starts_with('/') {
        return Err("a file source must be absolute, with three slashes: file:///absolute/path".into());
    }
    let url = url::Url::parse(text).map_err(|error| format!("it is not a valid URL: {error}"))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a file source has no \"?\" or \"#\"; encode them as %3F and %23".into());
    }
    match url.to_file_path() {
        Ok(path) if !path.as_os_str().as_encoded_bytes().contains(&0) => Ok(Source::File(path)),
        _ => Err("it is not a path on this system; use file:///absolute/path".into()),
    }
}

fn object_source(rest: &str) -> Result<Source, String> {
    let (bucket, name) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() || name.is_empty() {
        return Err("an object source needs a bucket and a name: obj://BUCKET/NAME".into());
    }
    if !bucket.bytes().all(is_name_byte) {
        return Err("a bucket's name has only letters, digits, '_' and '-'".into());
    }
    Ok(Source::Object { bucket: bucket.to_owned(), name: name.to_owned() })
}
