//! From connection settings to the client's options: who we are and whom we trust. Every file is read once here, so that
//! a missing one is an error that names it and its setting, not a connection that never comes.

use std::path::Path;

use async_nats::ConnectOptions;
use url::Url;

use crate::fs;
use crate::kv::KvError;
use crate::kv::settings::{ConnectionSettings, Credentials, Nkey, Tls, is_user_seed};

/// Credentials and certificates are small.
const MAXIMUM_BYTES: u64 = 1024 * 1024;

pub(super) fn authenticate(
    options: ConnectOptions,
    settings: &ConnectionSettings,
    servers: &[Url],
) -> Result<ConnectOptions, KvError> {
    let options = trust(options, &settings.tls)?;
    Ok(match &settings.credentials {
        Credentials::CredentialsFile(path) => {
            let content = read("creds", path)?;
            options.credentials(&content).map_err(|_| KvError::SettingContent {
                setting: "creds",
                path: path.clone(),
                reason: "it holds no JWT and nkey seed; make one with `nsc generate creds`",
            })?
        }
        Credentials::Nkey(Nkey::Seed(seed)) => options.nkey(seed.expose().to_owned()),
        Credentials::Nkey(Nkey::File(path)) => {
            let content = read("nkey", path)?;
            match content.lines().map(str::trim).find(|line| is_user_seed(line)) {
                Some(seed) => options.nkey(seed.to_owned()),
                None => {
                    let reason = "it holds no seed of a user (58 characters that begin with SU)";
                    return Err(KvError::SettingContent { setting: "nkey", path: path.clone(), reason });
                }
            }
        }
        Credentials::UserPassword { user, password } => {
            options.user_and_password(user.clone(), password.expose().to_owned())
        }
        Credentials::Token(token) => options.token(token.expose().to_owned()),
        Credentials::None => from_url(options, servers),
    })
}

/// `nats://USER:PASSWORD@HOST` and `nats://TOKEN@HOST`; the client itself ignores them.
fn from_url(options: ConnectOptions, servers: &[Url]) -> ConnectOptions {
    let Some(server) = servers.iter().find(|server| !server.username().is_empty()) else { return options };
    let decoded = |text: &str| {
        // A form field's decoding is the URL's, but for '+', which stands for itself here.
        let pair = format!("x={}", text.replace('+', "%2B"));
        url::form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
    };
    match server.password() {
        Some(password) => options.user_and_password(decoded(server.username()), decoded(password)),
        None => options.token(decoded(server.username())),
    }
}

fn trust(mut options: ConnectOptions, tls: &Tls) -> Result<ConnectOptions, KvError> {
    if let Some(ca) = &tls.ca {
        check_pem("ca", ca)?;
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    match (&tls.certificate, &tls.key) {
        (Some(certificate), Some(key)) => {
            check_pem("cert", certificate)?;
            check_pem("key", key)?;
            Ok(options.add_client_certificate(certificate.clone(), key.clone()).require_tls(true))
        }
        (None, None) => Ok(options),
        (Some(_), None) => Err(KvError::Setting { setting: "cert", reason: "it needs `key`, its private key" }),
        (None, Some(_)) => Err(KvError::Setting { setting: "key", reason: "it needs `cert`, its certificate" }),
    }
}

fn check_pem(setting: &'static str, path: &Path) -> Result<(), KvError> {
    if read(setting, path)?.contains("-----BEGIN ") {
        Ok(())
    } else {
        Err(KvError::SettingContent { setting, path: path.to_owned(), reason: "it is not a PEM file" })
    }
}

fn read(setting: &'static str, path: &Path) -> Result<String, KvError> {
    fs::read_text(path, MAXIMUM_BYTES).map_err(|source| KvError::SettingFile { setting, source })
}
