//! Connection settings as the users of NATS tools expect them: an address given on the command line, the `NATS_*`
//! variables, and contexts. The variables come in as a lookup, so that nothing here reads the process' environment.

use std::path::PathBuf;

use super::KvError;
use super::contexts::Context;
use super::settings::{ConnectionSettings, Credentials, Nkey, Target, Tls};
use crate::secret::Secret;

/// Finds a variable's value. `|name| std::env::var(name).ok()` in programs.
pub type EnvironmentLookup<'a> = &'a dyn Fn(&str) -> Option<String>;

const DEFAULT_URL: &str = "nats://127.0.0.1:4222";

impl ConnectionSettings {
    /// Finds the store for a command. The address is `url` when given, else `NATS_URL`, else the context's, else the
    /// server on this machine. The context is the one named by `NATS_CONTEXT`; when no address is given, the selected
    /// one. Variables win over the context's fields; credentials are taken as a whole from one or the other.
    ///
    /// # Errors
    /// An address that is malformed, a context that can't be read, or half a pair (user and password, certificate and
    /// key).
    pub fn from_environment(url: Option<&str>, lookup: EnvironmentLookup<'_>) -> Result<Self, KvError> {
        if let Some(url) = url.filter(|url| url.trim_start().starts_with("local:")) {
            return Ok(Self::new(Target::parse(url)?));
        }
        let variable = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let address = url.map(str::to_owned).or_else(|| variable("NATS_URL"));
        let context = match (variable("NATS_CONTEXT"), configuration_directory(&variable)) {
            (Some(name), Some(directory)) => Context::load(&directory, &name)?,
            (Some(name), None) => {
                let reason = "neither XDG_CONFIG_HOME nor HOME is set".to_owned();
                return Err(KvError::Context { name, reason });
            }
            (None, Some(directory)) if address.is_none() => match Context::selected(&directory) {
                Some(name) => Context::load(&directory, &name)?,
                None => Context::default(),
            },
            (None, _) => Context::default(),
        };
        let address = address.or_else(|| context.url.clone()).unwrap_or_else(|| DEFAULT_URL.to_owned());
        let path = |name: &str, other: &Option<String>| variable(name).or_else(|| other.clone()).map(PathBuf::from);
        Ok(Self {
            credentials: match Self::credentials_of_variables(&variable)? {
                Credentials::None => Self::credentials_of_context(&context)?,
                credentials => credentials,
            },
            tls: Tls {
                ca: path("NATS_CA", &context.ca),
                certificate: path("NATS_CERT", &context.cert),
                key: path("NATS_KEY", &context.key),
            },
            jetstream_domain: context.jetstream_domain,
            jetstream_api_prefix: context.jetstream_api_prefix,
            ..Self::new(Target::parse(&address)?)
        })
    }

    /// As [`Self::complete_from_context`], with the context of this name from its usual place.
    ///
    /// # Errors
    /// When there is no such context, or it can't be read or used.
    pub fn use_context(&mut self, name: &str, lookup: EnvironmentLookup<'_>) -> Result<(), KvError> {
        let directory = configuration_directory(lookup).ok_or_else(|| KvError::Context {
            name: name.to_owned(),
            reason: "neither XDG_CONFIG_HOME nor HOME is set".to_owned(),
        })?;
        let context = Context::load(&directory, name)?;
        self.context = Some(Context::path(&directory, name));
        self.complete_from_context(&context)
    }

    /// Takes credentials, certificates and JetStream settings from a context, where these settings have none. The
    /// address stays: the daemon's settings name it.
    ///
    /// # Errors
    /// When the context has a user without a password.
    pub fn complete_from_context(&mut self, context: &Context) -> Result<(), KvError> {
        if self.credentials == Credentials::None {
            self.credentials = Self::credentials_of_context(context)?;
        }
        let path = |text: &Option<String>| text.as_ref().map(PathBuf::from);
        self.tls.ca = self.tls.ca.take().or_else(|| path(&context.ca));
        if self.tls.certificate.is_none() && self.tls.key.is_none() {
            self.tls.certificate = path(&context.cert);
            self.tls.key = path(&context.key);
        }
        if self.jetstream_domain.is_none() && self.jetstream_api_prefix.is_none() {
            self.jetstream_domain.clone_from(&context.jetstream_domain);
            self.jetstream_api_prefix.clone_from(&context.jetstream_api_prefix);
        }
        Ok(())
    }

    fn credentials_of_variables(variable: &dyn Fn(&str) -> Option<String>) -> Result<Credentials, KvError> {
        choose(Given {
            creds: variable("NATS_CREDS"),
            nkey: variable("NATS_NKEY"),
            user: variable("NATS_USER"),
            password: variable("NATS_PASSWORD").map(Secret::new),
            token: variable("NATS_TOKEN").map(Secret::new),
            place: "NATS_USER",
        })
    }

    fn credentials_of_context(context: &Context) -> Result<Credentials, KvError> {
        choose(Given {
            creds: context.creds.clone(),
            nkey: context.nkey.clone(),
            user: context.user.clone(),
            password: context.password.clone(),
            token: context.token.clone(),
            place: "user",
        })
    }
}

struct Given {
    creds: Option<String>,
    nkey: Option<String>,
    user: Option<String>,
    password: Option<Secret>,
    token: Option<Secret>,
    /// How the user's setting is called where these were given.
    place: &'static str,
}

/// The strongest kind of those given.
fn choose(given: Given) -> Result<Credentials, KvError> {
    if let Some(creds) = given.creds {
        return Ok(Credentials::CredentialsFile(PathBuf::from(creds)));
    }
    if let Some(nkey) = given.nkey {
        return Ok(Credentials::Nkey(Nkey::from_text(&nkey)));
    }
    match (given.user, given.password, given.token) {
        (Some(user), Some(password), _) => Ok(Credentials::UserPassword { user, password }),
        (_, _, Some(token)) => Ok(Credentials::Token(token)),
        // The nats command line takes a user without a password as a token.
        (Some(_), None, None) => Err(KvError::Setting { setting: given.place, reason: "the password is missing" }),
        (None, Some(_), None) => Err(KvError::Setting { setting: given.place, reason: "a password needs a user" }),
        (None, None, None) => Ok(Credentials::None),
    }
}

fn configuration_directory(variable: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".config")))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings(url: Option<&str>, variables: &[(&str, &str)]) -> Result<ConnectionSettings, KvError> {
        ConnectionSettings::from_environment(url, &|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn context(home: &Path, name: &str, content: &str) {
        let directory = home.join("nats/context");
        fs::create_directory(&directory, 0o700).unwrap();
        fs::write(&directory.join(format!("{name}.json")), content.as_bytes(), 0o600).unwrap();
    }

    use crate::fs;

    #[test]
    fn variables_give_address_credentials_and_certificates() {
        let found = settings(
            None,
            &[
                ("NATS_URL", "tls://a"),
                ("NATS_USER", "ann"),
                ("NATS_PASSWORD", "p"),
                ("NATS_CA", "/ca.pem"),
                ("NATS_CERT", "/c.pem"),
                ("NATS_KEY", "/k.pem"),
            ],
        )
        .unwrap();
        assert_eq!(found.target.display(), "tls://a:4222");
        let expected = Credentials::UserPassword { user: "ann".to_owned(), password: Secret::new("p") };
        assert_eq!(found.credentials, expected);
        assert_eq!(found.tls.ca.as_deref(), Some(Path::new("/ca.pem")));
        assert_eq!(found.tls.certificate.as_deref(), Some(Path::new("/c.pem")));
        assert_eq!(found.tls.key.as_deref(), Some(Path::new("/k.pem")));
        let found = settings(None, &[("NATS_CREDS", "/a.creds"), ("NATS_TOKEN", "t")]).unwrap();
        assert_eq!(found.credentials, Credentials::CredentialsFile("/a.creds".into()));
        assert_eq!(found.target.display(), "nats://127.0.0.1:4222");
        let found = settings(None, &[("NATS_NKEY", "/a.nk")]).unwrap();
        assert_eq!(found.credentials, Credentials::Nkey(Nkey::File("/a.nk".into())));
        let found = settings(None, &[("NATS_TOKEN", "t")]).unwrap();
        assert_eq!(found.credentials, Credentials::Token(Secret::new("t")));
    }

    #[test]
    fn a_user_without_a_password_is_refused() {
        let error = settings(None, &[("NATS_USER", "ann")]).unwrap_err();
        assert_eq!(error.to_string(), "NATS_USER can't be used: the password is missing");
    }

    #[test]
    fn a_local_address_needs_no_variables() {
        let found = settings(Some("local:/kv.db"), &[("NATS_CONTEXT", "absent")]).unwrap();
        assert_eq!(found.target, Target::Local("/kv.db".into()));
    }

    #[test]
    fn the_selected_context_is_used_and_variables_win() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().to_str().unwrap();
        context(
            directory.path(),
            "lab",
            r#"{"description":"x","url":"nats://lab:1","token":"","creds":"/lab.creds","jetstream_domain":"edge","colour":[1]}"#,
        );
        context(directory.path(), "other", r#"{"url":"nats://other:1","user":"u","password":"hunter2"}"#);
        fs::write(&directory.path().join("nats/context.txt"), b"lab\n", 0o600).unwrap();

        let found = settings(None, &[("XDG_CONFIG_HOME", home)]).unwrap();
        assert_eq!(found.target.display(), "nats://lab:1");
        assert_eq!(found.credentials, Credentials::CredentialsFile("/lab.creds".into()));
        assert_eq!(found.jetstream_domain.as_deref(), Some("edge"));

        let found =
            settings(None, &[("XDG_CONFIG_HOME", home), ("NATS_CONTEXT", "other"), ("NATS_TOKEN", "t")]).unwrap();
        assert_eq!(found.target.display(), "nats://other:1");
        assert_eq!(found.credentials, Credentials::Token(Secret::new("t")));

        // An address of one's own does not send the selected context's credentials to a stranger.
        let found = settings(Some("nats://mine:1"), &[("XDG_CONFIG_HOME", home)]).unwrap();
        assert_eq!(found.credentials, Credentials::None);
    }

    #[test]
    fn a_bad_context_is_refused_without_showing_its_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().to_str().unwrap();
        context(directory.path(), "bad", r#"{"password": ["hunter2"]}"#);
        let load = |name: &str| settings(None, &[("XDG_CONFIG_HOME", home), ("NATS_CONTEXT", name)]).unwrap_err();
        let error = load("bad").to_string();
        assert!(error.contains("is not a context, see line 1") && !error.contains("hunter2"), "{error}");
        let error = load("absent").to_string();
        assert!(error.contains("absent.json") && error.contains("nats context ls"), "{error}");
        let error = load("../bad").to_string();
        assert!(error.contains("it is not a plain name"), "{error}");
    }
}
