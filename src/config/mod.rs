//! The daemon's settings: file and environment → raw shape → the validated settings of the rooms below. Only programs
//! use this room; every other takes its own settings and nothing else.

mod changes;
mod environment;
mod raw;
mod service;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::archive::{FetchSettings, Limits};
use crate::control::listener;
use crate::kv::{ConnectionSettings, CreateDatabase, Credentials, Nkey, Target, Tls};
use crate::machine::problem::{Place, Problem, Problems};
use crate::names::Identity;
use crate::process;
use crate::secret::{self, Secret, SecretUrl};
use crate::spec::Trust;
use crate::suggest::nearest;

pub use changes::{Change, Effect, Setting};
pub use environment::{FILE_ONLY, KEYS};

/// Where settings are read from unless `--config` says otherwise; that it is missing is fine.
pub const DEFAULT_PATH: &str = "/etc/machines/machinesd.toml";

const MAXIMUM_BYTES: u64 = 1024 * 1024;

/// Settings in which every value has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `None`: the host's name.
    pub identity: Option<Identity>,
    pub state_dir: PathBuf,
    pub local_dir: PathBuf,
    pub facts: Vec<PathBuf>,
    pub kv: ConnectionSettings,
    pub sync: Sync,
    pub trust: Trust,
    pub fetch: FetchSettings,
    pub archive: Limits,
    /// Where commands are bounded.
    pub process: process::Setting,
    pub socket: PathBuf,
    /// `None`: no HTTP listener.
    pub http: Option<listener::Settings>,
    /// For `node_exporter`; `None`: no files are written.
    pub textfile_directory: Option<PathBuf>,
    pub log: Log,
    written: changes::Written,
}

/// How the specification is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sync {
    pub enabled: bool,
    pub bucket: String,
    pub key: String,
    pub interval: Duration,
    pub manage_interval: Duration,
    pub purge_unknown: bool,
    pub hold_removals_over_percent: u8,
}

/// How the daemon logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    pub level: tracing::Level,
}

/// The form of log lines on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Settings that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("could not read the settings")]
    Read(#[source] crate::fs::FileError),
    #[error("the settings are not valid")]
    Invalid(#[source] Problems),
    #[error("environment variable {variable}: {reason}")]
    Environment { variable: String, reason: String },
}

/// A file that must be there, or the default one that need not.
#[derive(Debug, Clone)]
pub enum File {
    Required(PathBuf),
    Default,
}

impl Settings {
    /// Reads the file, lays the `MACHINESD_*` variables over it and validates the result; `compiled_in` is the public
    /// key that is in the binary.
    ///
    /// # Errors
    /// Every fault of the file, each with its place; or the first fault of a variable, with its name.
    pub fn load(
        file: &File,
        variables: impl Iterator<Item = (String, String)>,
        compiled_in: Option<&str>,
    ) -> Result<Self, ConfigError> {
        let (path, text) = match file {
            File::Required(path) => {
                (path.clone(), crate::fs::read_text(path, MAXIMUM_BYTES).map_err(ConfigError::Read)?)
            }
            File::Default => {
                let path = PathBuf::from(DEFAULT_PATH);
                match crate::fs::read_text(&path, MAXIMUM_BYTES) {
                    Ok(text) => (path, text),
                    Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => (path, String::new()),
                    Err(error) => return Err(ConfigError::Read(error)),
                }
            }
        };
        Self::parse(&path, &text, variables, compiled_in)
    }

    /// As [`Settings::load`], from a text; `path` is for messages.
    ///
    /// # Errors
    /// As there.
    pub fn parse(
        path: &Path,
        text: &str,
        variables: impl Iterator<Item = (String, String)>,
        compiled_in: Option<&str>,
    ) -> Result<Self, ConfigError> {
        let keys = || KEYS.iter().map(|(_, key, _)| *key).chain(FILE_ONLY.iter().map(|(_, key)| *key));
        let is_known = |name: &str| keys().any(|key| key == name);
        let seen = secret::masked_settings(text, is_known);
        let invalid = |problems| ConfigError::Invalid(Problems::new(path, &seen, problems));
        // The file by itself first, so that its faults come with their place.
        let parsed: Result<raw::File, _> = toml::from_str(text);
        parsed.map_err(|error| invalid(vec![problem_of(text, &error)]))?;
        let variables: Vec<_> = variables.collect();
        let mut table: toml::Table = toml::from_str(text).map_err(|error| invalid(vec![problem_of(text, &error)]))?;
        environment::overlay(&mut table, variables.iter().cloned())?;
        let raw: raw::File = table.try_into().map_err(|error: toml::de::Error| ConfigError::Environment {
            variable: "MACHINESD_*".to_owned(),
            reason: reason(&error),
        })?;
        let mut problems = Vec::new();
        let mut overlaid = None;
        let settings = validate(raw, compiled_in, &mut |section, key, message| {
            let variable = environment::variable(section, key);
            if variables.iter().any(|(name, _)| *name == variable) {
                // The file is not to blame.
                overlaid.get_or_insert(ConfigError::Environment { variable, reason: message });
                return;
            }
            problems.push(Problem::new(place_of(text, section, key), format!("{key}: {message}")));
        });
        if let Some(error) = overlaid {
            return Err(error);
        }
        match settings {
            Some(settings) if problems.is_empty() => Ok(settings),
            _ => Err(invalid(problems)),
        }
    }
}

fn validate(raw: raw::File, compiled_in: Option<&str>, fault: &mut dyn FnMut(&str, &str, String)) -> Option<Settings> {
    let written = changes::Written::of(&raw);
    let identity = raw.identity.as_deref().map(Identity::new).transpose();
    let identity = identity.map_err(|error| fault("", "identity", error.to_string())).ok();
    for (key, path) in [("state_dir", &raw.state_dir), ("local_dir", &raw.local_dir)] {
        if !path.is_absolute() {
            fault("", key, format!("{} is not an absolute path", path.display()));
        }
    }
    let kv = connection(&raw.kv, &raw.state_dir, fault);
    let trust = Trust::with_compiled_in(compiled_in, &raw.trust.public_keys);
    let trust = trust.map_err(|error| fault("trust", "public_keys", error.to_string())).ok();
    let trust = match trust {
        Some(trust) if raw.trust.allow_unsigned => {
            trust.allow_unsigned().map_err(|error| fault("trust", "allow_unsigned", error.to_string())).ok()
        }
        trust => trust,
    };
    let sync = sync(raw.sync, fault);
    let proxy = raw.fetch.proxy.as_deref().map(url::Url::parse).transpose();
    let proxy = proxy.map(|proxy| proxy.map(SecretUrl::new));
    let proxy = proxy.map_err(|error| fault("fetch", "proxy", error.to_string())).ok();
    for (key, is_zero) in [
        ("archive_bytes", raw.archive.archive_bytes == 0),
        ("expanded_bytes", raw.archive.expanded_bytes == 0),
        ("expansion_ratio", raw.archive.expansion_ratio == 0),
        ("entries", raw.archive.entries == 0),
        ("depth", raw.archive.depth == 0),
        ("component_bytes", raw.archive.component_bytes == 0),
    ] {
        if is_zero {
            fault("archive", key, "must be at least 1".to_owned());
        }
    }
    if raw.fetch.deadline < Duration::from_secs(1) {
        fault("fetch", "deadline", "must be at least 1s".to_owned());
    }
    let process = cgroup(&raw.process.cgroup).map_err(|reason| fault("process", "cgroup", reason)).ok();
    let http = http(raw.http, fault);
    let textfile_directory = Some(raw.metrics.textfile_directory).filter(|path| !path.as_os_str().is_empty());
    if let Some(path) = textfile_directory.as_ref().filter(|path| !path.is_absolute()) {
        fault("metrics", "textfile_directory", format!("{} is not an absolute path", path.display()));
    }
    let level = raw.log.level.parse();
    let level = level.map_err(|_| fault("log", "level", "use error, warn, info, debug or trace".to_owned())).ok();
    Some(Settings {
        identity: identity?,
        kv: kv?,
        sync: sync?,
        trust: trust?,
        fetch: FetchSettings {
            proxy: proxy?,
            ca: raw.fetch.ca,
            deadline: raw.fetch.deadline,
            minimum_rate_bytes_per_second: raw.fetch.minimum_rate,
            maximum_bytes: raw.archive.archive_bytes,
            ..FetchSettings::default()
        },
        archive: Limits {
            archive_bytes: raw.archive.archive_bytes,
            expanded_bytes: raw.archive.expanded_bytes,
            expansion_ratio: raw.archive.expansion_ratio,
            entries: raw.archive.entries,
            depth: raw.archive.depth,
            component_bytes: raw.archive.component_bytes,
        },
        state_dir: raw.state_dir,
        local_dir: raw.local_dir,
        facts: raw.facts,
        process: process?,
        socket: raw.control.socket,
        http,
        textfile_directory,
        log: Log {
            format: match raw.log.format {
                raw::LogFormat::Text => LogFormat::Text,
                raw::LogFormat::Json => LogFormat::Json,
            },
            level: level?,
        },
        written,
    })
}

fn cgroup(text: &str) -> Result<process::Setting, String> {
    match text {
        "auto" => Ok(process::Setting::Auto),
        "off" => Ok(process::Setting::Off),
        path if Path::new(path).is_absolute() => Ok(process::Setting::Directory(path.into())),
        other => Err(format!("{other:?} is not \"auto\", \"off\" or the absolute path of a cgroup")),
    }
}

fn http(raw: raw::Http, fault: &mut dyn FnMut(&str, &str, String)) -> Option<listener::Settings> {
    if raw.listen.is_empty() {
        return None;
    }
    let Ok(address) = raw.listen.parse::<std::net::SocketAddr>() else {
        let message = format!("{:?} is not an address with a port, such as 127.0.0.1:8098", raw.listen);
        fault("http", "listen", message);
        return None;
    };
    if !address.ip().is_loopback() && raw.token_file.is_none() {
        let message = format!("{address} is open to other nodes and needs a token; set token_file under [http]");
        fault("http", "listen", message);
    }
    Some(listener::Settings { address, token_file: raw.token_file })
}

fn sync(raw: raw::Sync, fault: &mut dyn FnMut(&str, &str, String)) -> Option<Sync> {
    if let Err(error) = crate::kv::check_bucket(&raw.bucket) {
        fault("sync", "bucket", error.to_string());
    }
    if let Err(error) = crate::kv::check_key(&raw.key) {
        fault("sync", "key", error.to_string());
    }
    for (key, interval) in [("interval", raw.interval), ("manage_interval", raw.manage_interval)] {
        if interval < Duration::from_secs(1) {
            fault("sync", key, "must be at least 1s".to_owned());
        }
    }
    let percent = raw.hold_removals_over.strip_suffix('%').and_then(|number| number.trim().parse::<u8>().ok());
    let percent = percent.filter(|percent| *percent <= 100);
    if percent.is_none() {
        let message = format!("{:?} is not a percentage from 0% to 100%", raw.hold_removals_over);
        fault("sync", "hold_removals_over", message);
    }
    Some(Sync {
        enabled: raw.enabled,
        bucket: raw.bucket,
        key: raw.key,
        interval: raw.interval,
        manage_interval: raw.manage_interval,
        purge_unknown: raw.purge_unknown,
        hold_removals_over_percent: percent?,
    })
}

fn connection(
    raw: &raw::Kv,
    state_dir: &Path,
    fault: &mut dyn FnMut(&str, &str, String),
) -> Option<ConnectionSettings> {
    if raw.url == "local" {
        let given = [
            ("creds", raw.creds.is_some()),
            ("nkey", raw.nkey.is_some()),
            ("user", raw.user.is_some()),
            ("password", raw.password.is_some()),
            ("token", raw.token.is_some()),
            ("ca", raw.ca.is_some()),
            ("cert", raw.cert.is_some()),
            ("key", raw.key.is_some()),
            ("context", raw.context.is_some()),
        ];
        for (key, _) in given.into_iter().filter(|(_, given)| *given) {
            let remedy = "set url under [kv] to that of a NATS server, or remove this";
            fault("kv", key, format!("the embedded store (url = \"local\") makes no use of it; {remedy}"));
        }
        return Some(ConnectionSettings::local(state_dir.join("kv.db"), CreateDatabase::Yes));
    }
    let target = match Target::parse(&raw.url) {
        Ok(target) => target,
        Err(error) => {
            fault("kv", "url", error.to_string());
            return None;
        }
    };
    if raw.password.is_some() && raw.user.is_none() {
        let message = "a password needs a user as well; set kv.user or MACHINESD_KV_USER, or remove the password";
        fault("kv", "password", message.to_owned());
    }
    let given = [raw.creds.is_some(), raw.nkey.is_some(), raw.user.is_some(), raw.token.is_some()];
    if given.into_iter().filter(|given| *given).count() > 1 {
        fault("kv", "url", "only one of creds, nkey, user and token can be used".to_owned());
    }
    let credentials = match (&raw.creds, &raw.nkey, &raw.user, &raw.token) {
        (Some(path), ..) => Credentials::CredentialsFile(path.clone()),
        (_, Some(nkey), ..) => Credentials::Nkey(Nkey::from_text(nkey)),
        (_, _, Some(user), _) => match &raw.password {
            Some(password) => Credentials::UserPassword { user: user.clone(), password: Secret::new(password.clone()) },
            None => {
                fault(
                    "kv",
                    "user",
                    "a user needs a password as well; set kv.password or MACHINESD_KV_PASSWORD".to_owned(),
                );
                Credentials::None
            }
        },
        (.., Some(token)) => Credentials::Token(Secret::new(token.clone())),
        _ => Credentials::None,
    };
    let tls = Tls { ca: raw.ca.clone(), certificate: raw.cert.clone(), key: raw.key.clone() };
    let mut settings = ConnectionSettings {
        credentials,
        tls,
        name: "machinesd".to_owned(),
        create_database: CreateDatabase::Yes,
        ..ConnectionSettings::new(target)
    };
    if let Some(context) = &raw.context
        && let Err(error) = settings.use_context(context, &|name| std::env::var(name).ok())
    {
        fault("kv", "context", error.to_string());
    }
    Some(settings)
}

fn problem_of(text: &str, error: &toml::de::Error) -> Problem {
    let place = error.span().map(|span| place_at(text, span.start));
    // "unknown field `a`, expected one of `b`, `c`"
    if let Some(rest) = error.message().strip_prefix("unknown field `")
        && let Some((unknown, expected)) = rest.split_once('`')
    {
        let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        let problem = Problem::new(place, format!("unknown key {unknown:?}"));
        let section = match section_at(text, error.span().map_or(0, |span| span.start)) {
            "" => String::new(),
            section => format!(" under [{section}]"),
        };
        return match nearest(unknown, known.iter().copied()) {
            Some(meant) => problem.help(format!("did you mean {meant:?}?")),
            None => problem.help(format!("known{section} are: {}", known.join(", "))),
        };
    }
    Problem::new(place, reason(error))
}

/// What the parser says, without the text that it quotes: that may be a secret, and the place shows where it stands.
fn reason(error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', ", ");
    let Some((before, quoted)) = message.split_once(": string \"") else { return plain(message) };
    let after = quoted.rfind('"').and_then(|end| quoted.get(end + 1..)).unwrap_or_default();
    plain(format!("{before}: a text{after}"))
}

/// What the parser expected, in words of the file in the place of a programmer's.
fn plain(message: String) -> String {
    let Some((before, expected)) = message.rsplit_once(", expected ") else { return message };
    let expected = match expected {
        "a string" => "a text in quotes".to_owned(),
        "a sequence" => "a list, such as [\"…\"]".to_owned(),
        "a boolean" => "true or false, without quotes".to_owned(),
        "u64" | "usize" => "a whole number, without quotes".to_owned(),
        _ => match expected.strip_prefix("struct ") {
            Some(section) => format!("a section, [{}]", section.to_lowercase()),
            None => return message,
        },
    };
    format!("{before}, expected {expected}")
}

fn place_at(text: &str, offset: usize) -> Place {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
    Place { line: before.matches('\n').count() + 1, column }
}

/// The section that a place is in; empty above the first one.
fn section_at(text: &str, offset: usize) -> &str {
    let before = text.get(..offset).unwrap_or(text);
    let headers = before.lines().filter_map(|line| line.trim_start().strip_prefix('['));
    headers.filter_map(|rest| rest.split_once(']')).next_back().map_or("", |(name, _)| name.trim())
}

/// The line of a key in its section; a value from the environment has none.
fn place_of(text: &str, section: &str, key: &str) -> Option<Place> {
    let mut current = "";
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            current = header.trim();
        } else if current == section && line.split('=').next().is_some_and(|name| name.trim() == key) {
            return Some(Place { line: index + 1, column: 1 });
        }
    }
    None
}

#[cfg(test)]
mod tests;
