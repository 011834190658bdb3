//! May what the daemon reads be believed? It runs as root what its files say, so it does not start on a path that somebody
//! else owns or may write to. In: the settings and their file. Out: nothing, or every such path with what mends it.

use std::fmt;
use std::path::Path;

use machines::config::{DEFAULT_PATH, File, Settings};
use machines::fs::{Directory, Distrust, trusted};
use machines::kv::{Credentials, Nkey};

use crate::shared::Failure;

/// What the daemon keeps in its state directory and takes for its own. A stranger who made the directory may have left
/// them there, and to give them to root would not make them ours.
const OWN: [&str; 15] = [
    "lock",
    "maintenance.json",
    "facts-seen.json",
    "state.db",
    "state.db-wal",
    "state.db-shm",
    "state.db-journal",
    "kv.db",
    "kv.db-wal",
    "kv.db-shm",
    "kv.db-journal",
    "objects",
    "store",
    "machines",
    "data",
];

/// No settings file is larger.
const MAXIMUM_BYTES: u64 = 1024 * 1024;

/// All that others could change.
#[derive(Debug)]
struct Untrusted(Vec<(&'static str, Distrust)>);

impl fmt::Display for Untrusted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_known = self.0.iter().any(|(_, distrust)| matches!(distrust, Distrust::Others { .. }));
        let doubt = if is_known { "" } else { "it is not known whether " };
        write!(formatter, "{doubt}others could decide what this daemon does")?;
        self.0
            .iter()
            .try_for_each(|(setting, distrust)| write!(formatter, ": {setting}: {}", machines::errors::chain(distrust)))
    }
}

impl std::error::Error for Untrusted {}

impl Untrusted {
    /// Takes what somebody else could change, and of what that is not known: a doubt is no answer. What is missing has its
    /// own message where it is used.
    fn note(&mut self, setting: &'static str, checked: Result<(), Distrust>) {
        match checked {
            Err(distrust) if !distrust.is_missing() => self.0.push((setting, distrust)),
            _ => {}
        }
    }

    /// Exit code 2: another start won't help.
    fn result(self) -> Result<(), Failure> {
        if self.0.is_empty() { Ok(()) } else { Err(Failure::Usage(self.into())) }
    }
}

/// The settings file, before it is read.
pub fn settings_file(file: &File) -> Result<(), Failure> {
    let mut untrusted = Untrusted(Vec::new());
    untrusted.note("settings", trusted::open(path_of(file)).map(drop));
    untrusted.result()
}

fn path_of(file: &File) -> &Path {
    match file {
        File::Required(path) => path,
        File::Default => Path::new(DEFAULT_PATH),
    }
}

/// What the settings name, at start and at each reload. Makes the state directory when it is missing.
pub fn check(file: &File, settings: &Settings) -> Result<(), Failure> {
    let path = path_of(file);
    if trusted::open(path).is_ok_and(|opened| opened.others_may_read()) && holds_secret(path) {
        warn_of_readers("settings", path);
    }
    let mut untrusted = Untrusted(Vec::new());
    state_directory(&settings.state_dir, &mut untrusted);
    untrusted.note("local_dir", trusted::check(&settings.local_dir));
    let tls = &settings.kv.tls;
    let public = [("[fetch] ca", &settings.fetch.ca), ("[kv] ca", &tls.ca), ("[kv] cert", &tls.certificate)];
    for (setting, path) in public {
        if let Some(path) = path {
            untrusted.note(setting, trusted::open(path).map(drop));
        }
    }
    let token = settings.http.as_ref().and_then(|http| http.token_file.as_ref());
    let (credentials, nkey) = match &settings.kv.credentials {
        Credentials::CredentialsFile(path) => (Some(path), None),
        Credentials::Nkey(Nkey::File(path)) => (None, Some(path)),
        _ => (None, None),
    };
    let secret = [
        ("[http] token_file", token),
        ("[kv] creds", credentials),
        ("[kv] nkey", nkey),
        ("[kv] key", tls.key.as_ref()),
        ("[kv] context", settings.kv.context.as_ref()),
    ];
    for (setting, path) in secret {
        let Some(path) = path else { continue };
        let opened = trusted::open(path);
        if opened.as_ref().is_ok_and(trusted::TrustedFile::others_may_read) {
            warn_of_readers(setting, path);
        }
        untrusted.note(setting, opened.map(drop));
    }
    untrusted.result()
}

/// No reason not to start: a group of readers may be meant.
fn warn_of_readers(setting: &str, path: &Path) {
    let path = path.display();
    tracing::warn!("{setting}: others may read {path}, which holds a secret; `chmod go-r {path}`");
}

/// Whether a password, a token or a seed stands in the settings file itself.
fn holds_secret(path: &Path) -> bool {
    let text = machines::fs::read_text(path, MAXIMUM_BYTES).unwrap_or_default();
    let table: toml::Table = toml::from_str(&text).unwrap_or_default();
    let value = |section: &str, key: &str| table.get(section)?.get(key)?.as_str();
    let is_seed = value("kv", "nkey").is_some_and(|nkey| matches!(Nkey::from_text(nkey), Nkey::Seed(_)));
    let has_user = |url: Option<&str>| url.is_some_and(|url| url.contains('@'));
    let given = ["password", "token"].iter().any(|key| value("kv", key).is_some_and(|text| !text.is_empty()));
    given || is_seed || has_user(value("kv", "url")) || has_user(value("fetch", "proxy"))
}

/// The directory of the control socket; made when it is missing.
pub fn socket_directory(settings: &Settings) -> Result<(), Failure> {
    let mut untrusted = Untrusted(Vec::new());
    if let Some(directory) = settings.socket.parent() {
        untrusted.note("[control] socket", Directory::trusted_or_made(directory, 0o755).map(drop));
    }
    untrusted.result()
}

fn state_directory(path: &Path, untrusted: &mut Untrusted) {
    let directory = match Directory::trusted_or_made(path, 0o755) {
        Ok(directory) => directory,
        Err(distrust) => return untrusted.note("state_dir", Err(distrust)),
    };
    for name in OWN {
        untrusted.note("state_dir", trusted::check(&path.join(name)));
    }
    let copies = directory.enter("store").and_then(|store| store.names()).unwrap_or_default();
    for name in copies {
        untrusted.note("state_dir", trusted::check(&path.join("store").join(name)));
    }
}
