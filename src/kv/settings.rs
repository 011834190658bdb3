//! How to reach a store: the address, who we are, and whom we trust. Built from the daemon's settings, or from the NATS
//! environment variables and contexts (`environment.rs`, `contexts.rs`). Secrets never show in debug output, and
//! passwords in URLs never in messages.

use std::fmt;
use std::path::{Path, PathBuf};

use url::Url;

use super::KvError;
use crate::secret::{Secret, looks_like_seed};

/// Which store.
#[derive(Clone, PartialEq, Eq)]
pub enum Target {
    /// The embedded store, in this SQLite file.
    Local(PathBuf),
    /// NATS servers, as URLs `nats://HOST:PORT` or `tls://HOST:PORT`.
    Nats { servers: Vec<Url> },
}

impl fmt::Debug for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.display())
    }
}

impl Target {
    /// Reads `local:PATH`, or NATS servers separated by commas (`nats://a:4222,tls://b:4222`, also without a scheme).
    ///
    /// # Errors
    /// [`KvError::InvalidUrl`]; a password in the text is not repeated.
    pub fn parse(text: &str) -> Result<Self, KvError> {
        let text = text.trim();
        if let Some(path) = text.strip_prefix("local:") {
            return match path.strip_prefix("//").unwrap_or(path) {
                "" => Err(invalid(text, "the path of the database is missing")),
                path => Ok(Self::Local(PathBuf::from(path))),
            };
        }
        let servers = text
            .split(',')
            .map(str::trim)
            .filter(|server| !server.is_empty())
            .map(parse_server)
            .collect::<Result<Vec<_>, _>>()?;
        if servers.is_empty() { Err(invalid("", "it is empty")) } else { Ok(Self::Nats { servers }) }
    }

    /// For messages and status: without passwords.
    pub fn display(&self) -> String {
        match self {
            Self::Local(path) => format!("local:{}", path.display()),
            Self::Nats { servers } => servers.iter().map(display_server).collect::<Vec<_>>().join(","),
        }
    }
}

fn parse_server(text: &str) -> Result<Url, KvError> {
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("nats://{text}") };
    let url = Url::parse(&with_scheme).map_err(|error| invalid(text, &error.to_string()))?;
    if !matches!(url.scheme(), "nats" | "tls") {
        return Err(invalid(text, "the scheme must be nats, tls or local"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(invalid(text, "the host is missing"));
    }
    Ok(url)
}

fn invalid(text: &str, reason: &str) -> KvError {
    let url = match text.rsplit_once('@') {
        // What is before an '@' may be a password, and so may what is behind a host where no port can be.
        Some((_, host)) => format!("…@{}", without_port(host)),
        None => without_port(text),
    };
    KvError::InvalidUrl { url, reason: reason.to_owned() }
}

/// An address with nothing behind its host but a port.
fn without_port(text: &str) -> String {
    let text: String = text.chars().take(200).collect();
    let host_starts = text.find("://").map_or(0, |scheme| scheme + "://".len());
    let (scheme, rest) = text.split_at(host_starts);
    match rest.split_once(':') {
        Some((host, port)) if !port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{scheme}{host}:…")
        }
        _ => crate::secret::masked(&text).into_owned(),
    }
}

fn display_server(server: &Url) -> String {
    let host = server.host_str().unwrap_or_default();
    format!("{}://{host}:{}", server.scheme(), server.port().unwrap_or(4222))
}

/// An nkey seed, or the file that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nkey {
    File(PathBuf),
    Seed(Secret),
}

impl Nkey {
    /// Reads what `NATS_NKEY` and contexts may hold: a user seed (`SU…`) itself or the path of a file with one.
    pub fn from_text(text: &str) -> Self {
        if is_user_seed(text) { Self::Seed(Secret::new(text)) } else { Self::File(PathBuf::from(text)) }
    }
}

/// Whether a text has the form of a user's nkey seed.
pub(super) fn is_user_seed(text: &str) -> bool {
    looks_like_seed(text) && text.starts_with("SU")
}

/// Who we are to the NATS server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Credentials {
    #[default]
    None,
    /// A `.creds` file: a JWT and its nkey seed.
    CredentialsFile(PathBuf),
    Nkey(Nkey),
    UserPassword {
        user: String,
        password: Secret,
    },
    Token(Secret),
}

/// Whom we trust, and our own certificate. The system's authorities are trusted when `ca` is not set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// PEM file of the authorities that may sign the server's certificate.
    pub ca: Option<PathBuf>,
    /// PEM file of our certificate; needs `key`.
    pub certificate: Option<PathBuf>,
    /// PEM file of our certificate's private key.
    pub key: Option<PathBuf>,
}

/// Whether opening may make the database and its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CreateDatabase {
    /// The daemon: the file and its directory are made when missing.
    Yes,
    /// The file must exist. For commands that only read.
    #[default]
    No,
}

/// Everything needed to open a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionSettings {
    pub target: Target,
    pub credentials: Credentials,
    pub tls: Tls,
    pub jetstream_domain: Option<String>,
    /// Instead of `$JS.API`, for JetStream imported from another account.
    pub jetstream_api_prefix: Option<String>,
    /// The connection's name, which operators see on the server.
    pub name: String,
    pub create_database: CreateDatabase,
    /// The file of the context that completed these settings.
    pub context: Option<PathBuf>,
}

impl ConnectionSettings {
    /// Settings with nothing but the address.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            credentials: Credentials::None,
            tls: Tls::default(),
            jetstream_domain: None,
            jetstream_api_prefix: None,
            name: "machines".to_owned(),
            create_database: CreateDatabase::No,
            context: None,
        }
    }

    /// That a password or a token may travel in clear text, and what to do about it. Keys of NATS only sign.
    pub fn exposure(&self) -> Option<String> {
        let Target::Nats { servers } = &self.target else { return None };
        let requires_tls = self.tls.ca.is_some() || self.tls.certificate.is_some();
        // Those in the address of one server are sent to whichever answers.
        let given = match &self.credentials {
            Credentials::UserPassword { .. } | Credentials::Token(_) => true,
            Credentials::None => servers.iter().any(|server| !server.username().is_empty()),
            Credentials::CredentialsFile(_) | Credentials::Nkey(_) => false,
        };
        let is_exposed = |server: &&Url| {
            let is_local = match server.host() {
                // Of a scheme that the library does not know it reads no address.
                Some(url::Host::Domain(name)) => {
                    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
                }
                Some(url::Host::Ipv4(address)) => address.is_loopback(),
                Some(url::Host::Ipv6(address)) => address.is_loopback(),
                None => true,
            };
            server.scheme() == "nats" && !is_local
        };
        let server = servers.iter().find(is_exposed).filter(|_| given && !requires_tls)?;
        Some(format!(
            "the password or token for {} may travel in clear text: write tls:// instead of nats://, or use an nkey or \
             credentials file, of which only signatures travel",
            display_server(server)
        ))
    }

    /// The embedded store in this file.
    pub fn local(path: impl AsRef<Path>, create_database: CreateDatabase) -> Self {
        Self { create_database, ..Self::new(Target::Local(path.as_ref().to_owned())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_local_paths_and_lists_of_servers() {
        assert_eq!(Target::parse("local:a/kv.db").unwrap(), Target::Local("a/kv.db".into()));
        assert_eq!(Target::parse("local:/var/kv.db").unwrap(), Target::Local("/var/kv.db".into()));
        let target = Target::parse("nats://a:4222, tls://b,c:1").unwrap();
        assert_eq!(target.display(), "nats://a:4222,tls://b:4222,nats://c:1");
    }

    #[test]
    fn refuses_other_addresses_and_says_what_to_write() {
        for bad in ["", ",", "local:", "http://a", "nats://", "nats://a:x", "a b"] {
            let error = Target::parse(bad).unwrap_err().to_string();
            assert!(error.contains("use local:PATH/kv.db or nats://HOST:4222"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_password_in_clear_text_is_told_of_away_from_this_host() {
        let exposed = |url: &str, credentials: Credentials| {
            let settings = ConnectionSettings { credentials, ..ConnectionSettings::new(Target::parse(url).unwrap()) };
            settings.exposure()
        };
        let token = || Credentials::Token(Secret::new("hunter2"));
        for url in ["nats://a", "tls://b,nats://192.0.2.1:4222"] {
            let message = exposed(url, token()).unwrap();
            assert!(message.contains("clear text") && !message.contains("hunter2"), "{message}");
        }
        assert!(exposed("nats://ann:hunter2@a", Credentials::None).is_some_and(|told| !told.contains("hunter2")));
        for url in ["tls://a", "nats://127.0.0.1", "nats://localhost:4222", "nats://[::1]", "local:/kv.db"] {
            assert_eq!(exposed(url, token()), None, "{url}");
        }
        assert_eq!(exposed("nats://a", Credentials::CredentialsFile("/a".into())), None);
        assert_eq!(exposed("nats://a", Credentials::None), None);
    }

    #[test]
    fn never_shows_a_password() {
        let target = Target::parse("nats://ann:hunter2@a:4222").unwrap();
        let mut settings = ConnectionSettings::new(target);
        settings.credentials = Credentials::UserPassword { user: "ann".to_owned(), password: Secret::new("hunter2") };
        assert!(!format!("{settings:?}").contains("hunter2"));
        settings.credentials = Credentials::Token(Secret::new("hunter2"));
        assert!(!format!("{settings:?}").contains("hunter2"));
        for text in ["http://ann:hunter2@a", "nats://ann:hunter2", "ann:hunter2", "nats://ann:hunter2@a:hunter2"] {
            let error = Target::parse(text).unwrap_err();
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
        }
    }
}
