//! HTTP for fetching: in goes a URL, out comes an answer with status 200 whose body is yet to be read. Redirects are
//! followed here and not by the client, because the rules are ours: few, never to another scheme, to nothing that only this
//! node can reach (see `reach`), and credentials go to the first server only.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use reqwest::header::{ACCEPT_ENCODING, LOCATION};
use reqwest::{Certificate, Client, ClientBuilder, Proxy, Response, StatusCode, redirect};
use url::Url;

use super::fetch::{FetchError, FetchSettings, describe_url};
use super::reach::{Guard, Reach, TooNear};
use crate::fs;
use crate::spec::Credentials;

/// Largest file of authorities' certificates; a system's whole bundle has a quarter of it.
const CA_MAXIMUM_BYTES: u64 = 1024 * 1024;

/// Sent with each request, so that a server's operator can tell who asks.
const USER_AGENT: &str = concat!("machinesd/", env!("CARGO_PKG_VERSION"));

/// Whether a server must prove who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Certificates {
    Checked,
    /// For archive watchers with `insecure`; what arrives is still judged by its checksum.
    Ignored,
}

/// The clients, each made with the first request of its scheme.
pub(super) struct Clients {
    plain: Client,
    authorities: Authorities,
    settings: FetchSettings,
    certificates: Certificates,
    tls: std::sync::OnceLock<Client>,
    /// For redirects, by how near the source is and whether it is `https`. Their connections are made only to addresses
    /// that a redirect may lead to, and are used for nothing else.
    redirected: Mutex<HashMap<(Reach, bool), Client>>,
}

struct Authorities {
    path: Option<PathBuf>,
}

/// One TLS provider in the whole process. That one is installed already is fine: it can only be the same.
pub(super) fn install_tls_provider() {
    _ = rustls::crypto::ring::default_provider().install_default();
}

/// Refuses settings that no fetch could work with.
pub(super) fn check(settings: &FetchSettings) -> Result<(), FetchError> {
    Authorities { path: settings.ca.clone() }.read()?;
    builder(settings).map(|_| ())
}

impl Authorities {
    fn read(&self) -> Result<Vec<Certificate>, FetchError> {
        let Some(path) = &self.path else { return Ok(Vec::new()) };
        let pem = fs::read(path, CA_MAXIMUM_BYTES).map_err(|source| FetchError::ReadCa { source })?;
        let invalid = |reason: String| FetchError::InvalidCa { path: path.clone(), reason };
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| invalid(reason(&error)))?;
        if certificates.is_empty() {
            return Err(invalid("there is none in it".into()));
        }
        // A block that is PEM but no certificate shows only when a trust store is made of it.
        let store = ClientBuilder::new().no_proxy().tls_certs_only(certificates.iter().cloned()).build();
        store.map_err(|error| invalid(reason(&error)))?;
        Ok(certificates)
    }
}

fn builder(settings: &FetchSettings) -> Result<ClientBuilder, FetchError> {
    let builder = ClientBuilder::new()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .referer(false)
        // What the environment says about proxies is not ours: the settings decide.
        .no_proxy()
        .connect_timeout(settings.connect_timeout)
        .pool_max_idle_per_host(2)
        .pool_idle_timeout(std::time::Duration::from_secs(20));
    let Some(proxy) = &settings.proxy else { return Ok(builder) };
    let invalid = |reason| FetchError::InvalidProxy { reason };
    let proxy = proxy.expose();
    if !matches!(proxy.scheme(), "http" | "https") {
        return Err(invalid(format!("the scheme is {:?}, not http or https", proxy.scheme())));
    }
    let proxy = Proxy::all(proxy.clone()).map_err(|error| invalid(reason(&error)))?;
    Ok(builder.proxy(proxy))
}

impl Clients {
    pub(super) fn new(settings: &FetchSettings, certificates: Certificates) -> Result<Self, FetchError> {
        // Without authorities no TLS connection can succeed; this client makes none, unless to a proxy.
        let needs_tls = settings.proxy.as_ref().is_some_and(|proxy| proxy.expose().scheme() == "https");
        let authorities = Authorities { path: settings.ca.clone() };
        let plain = if needs_tls {
            tls_client(settings, &authorities, Certificates::Checked)?
        } else {
            let builder = builder(settings)?.tls_certs_only([]);
            builder.build().map_err(|error| FetchError::Client { reason: reason(&error) })?
        };
        let (tls, redirected) = (std::sync::OnceLock::new(), Mutex::default());
        Ok(Self { plain, authorities, settings: settings.clone(), certificates, tls, redirected })
    }

    /// For the target of a redirect. A proxy resolves names itself, so that only what they say is judged then.
    fn client_for_redirect(&self, url: &Url, source: Reach) -> Result<Client, FetchError> {
        if self.settings.proxy.is_some() {
            return self.client(url);
        }
        let is_tls = url.scheme() == "https";
        let known = |clients: &HashMap<(Reach, bool), Client>| clients.get(&(source, is_tls)).cloned();
        if let Some(client) = known(&self.redirected.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(client);
        }
        let builder = builder(&self.settings)?.dns_resolver(Guard::shared(source));
        let builder = match (is_tls, self.certificates) {
            (false, _) => builder.tls_certs_only([]),
            (true, Certificates::Checked) => builder.tls_certs_merge(self.authorities.read()?),
            (true, Certificates::Ignored) => builder.tls_certs_only([]).tls_danger_accept_invalid_certs(true),
        };
        let client = builder.build().map_err(|error| FetchError::Client { reason: reason(&error) })?;
        let mut clients = self.redirected.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(clients.entry((source, is_tls)).or_insert(client).clone())
    }

    fn client(&self, url: &Url) -> Result<Client, FetchError> {
        match url.scheme() {
            "http" => Ok(self.plain.clone()),
            "https" => {
                if let Some(client) = self.tls.get() {
                    return Ok(client.clone());
                }
                // Two first requests at once may both make one; the first stays.
                let client = tls_client(&self.settings, &self.authorities, self.certificates)?;
                Ok(self.tls.get_or_init(|| client).clone())
            }
            _ => Err(FetchError::Scheme { url: describe_url(url) }),
        }
    }
}

/// Trusts the system's authorities and the configured ones; a system without any is fine when some are configured.
fn tls_client(
    settings: &FetchSettings,
    authorities: &Authorities,
    certificates: Certificates,
) -> Result<Client, FetchError> {
    let builder = match certificates {
        Certificates::Checked => builder(settings)?.tls_certs_merge(authorities.read()?),
        Certificates::Ignored => builder(settings)?.tls_certs_only([]).tls_danger_accept_invalid_certs(true),
    };
    builder.build().map_err(|error| FetchError::Client { reason: reason(&error) })
}

/// Requests a URL and follows redirects until an answer is final.
pub(super) async fn open(
    clients: &Clients,
    settings: &FetchSettings,
    source: &Url,
    credentials: Option<&Credentials>,
) -> Result<Response, FetchError> {
    let mut url = source.clone();
    let mut credentials = credentials.cloned();
    if credentials.is_some() {
        strip_credentials(&mut url);
    }
    let mut client = clients.client(&url)?;
    let mut reach = None;
    let near = |to: &Url, too_near: TooNear| FetchError::RedirectNear {
        url: describe_url(source),
        to: describe_url(to),
        why: too_near.to_string(),
    };
    for _ in 0..=settings.redirects {
        let response = match request(&client, settings, &url, credentials.as_ref()).await {
            Err(RequestError::TooNear(too_near)) => return Err(near(&url, too_near)),
            Err(RequestError::Fetch(error)) => return Err(error),
            Ok(response) => response,
        };
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        if !is_redirect(status) {
            return Err(FetchError::Status { url: describe_url(&url), status: status.to_string() });
        }
        let mut next = location(&response, &url)?;
        if origin(&next) == origin(&url) {
            // Those that the source's URL itself has.
            _ = next.set_username(url.username());
            _ = next.set_password(url.password());
        } else {
            // Once dropped they stay dropped, also when a later redirect leads back.
            credentials = None;
        }
        let reach = *reach.get_or_insert_with(|| reach_of_source(settings, &url, &response));
        reach.permits_url(&next).map_err(|too_near| near(&next, too_near))?;
        client = clients.client_for_redirect(&next, reach)?;
        url = next;
    }
    Err(FetchError::TooManyRedirects { url: describe_url(source), limit: settings.redirects })
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn origin(url: &Url) -> (&str, Option<&str>, Option<u16>) {
    (url.scheme(), url.host_str(), url.port_or_known_default())
}

fn location(response: &Response, url: &Url) -> Result<Url, FetchError> {
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let next = location.and_then(|location| url.join(location).ok());
    let mut next = next.ok_or_else(|| FetchError::RedirectLocation { url: describe_url(url) })?;
    if next.scheme() != url.scheme() {
        return Err(FetchError::RedirectScheme { url: describe_url(url), to: describe_url(&next) });
    }
    strip_credentials(&mut next);
    Ok(next)
}

/// How near the source is: by where it was reached, which is what its name came to.
fn reach_of_source(settings: &FetchSettings, source: &Url, response: &Response) -> Reach {
    match response.remote_addr() {
        Some(address) if settings.proxy.is_none() => Reach::of(address.ip()),
        _ => Reach::of_name(source),
    }
}

/// Why there is no answer.
enum RequestError {
    /// Nothing was connected to.
    TooNear(TooNear),
    Fetch(FetchError),
}

async fn request(
    client: &Client,
    settings: &FetchSettings,
    url: &Url,
    credentials: Option<&Credentials>,
) -> Result<Response, RequestError> {
    // A server that compressed on the way would change the bytes that the checksum is of.
    let mut request = client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
    if let Some(credentials) = credentials {
        request = request.basic_auth(&credentials.username, Some(credentials.password.expose()));
    }
    // A server may take as long to begin its answer as it may stay silent later; connecting has its own limit.
    let waited = settings.minimum_rate_window.max(settings.connect_timeout);
    match tokio::time::timeout(waited, request.send()).await {
        Ok(answer) => answer.map_err(|error| match chain(&error).find_map(|error| error.downcast_ref::<TooNear>()) {
            Some(too_near) => RequestError::TooNear(*too_near),
            None => RequestError::Fetch(failure(url, &error)),
        }),
        Err(_) => Err(RequestError::Fetch(FetchError::NoAnswer { url: describe_url(url), waited })),
    }
}

fn strip_credentials(url: &mut Url) {
    // Fails only for URLs that can have none.
    _ = url.set_username("");
    _ = url.set_password(None);
}

fn failure(url: &Url, error: &reqwest::Error) -> FetchError {
    let url = describe_url(url);
    if let Some(problem) = certificate_problem(error) {
        return FetchError::Certificate { url, reason: problem };
    }
    let reason = reason(error);
    if error.is_connect() || error.is_timeout() {
        FetchError::Connect { url, reason }
    } else {
        FetchError::Request { url, reason }
    }
}

/// What is wrong with the server's certificate, when that is why the connection failed.
fn certificate_problem(error: &(dyn Error + 'static)) -> Option<String> {
    use rustls::CertificateError as Problem;
    let problem = chain(error).find_map(|error| match error.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(problem) => Some(problem.clone()),
        _ => None,
    })?;
    Some(match problem {
        // A bad signature is what an authority of the same name with another key gives.
        Problem::UnknownIssuer | Problem::BadSignature => {
            "no authority that is trusted here has signed it; set [fetch] ca to the authority's certificate".into()
        }
        Problem::Expired | Problem::ExpiredContext { .. } => "it has expired; renew it, or correct the clock".into(),
        Problem::NotValidYet | Problem::NotValidYetContext { .. } => "it is not valid yet; correct the clock".into(),
        Problem::NotValidForName | Problem::NotValidForNameContext { .. } => {
            "it is for another host name; correct the source's host name".into()
        }
        other => format!("{other}; renew it"),
    })
}

/// An error and its sources. The error inside an [`io::Error`] is not among the sources that it reports.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| {
        let error: &'a (dyn Error + 'static) = *error;
        match error.downcast_ref::<io::Error>().and_then(|error| error.get_ref()) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}

/// The innermost cause in one line; the layers above it only say that something failed.
pub(super) fn reason(error: &reqwest::Error) -> String {
    let texts: Vec<String> = chain(error).skip(1).map(ToString::to_string).collect();
    match texts.last() {
        Some(last) => last.clone(),
        // Never with its URL, which may hold secrets.
        None if error.is_timeout() => "it took too long".into(),
        None => "the request is not valid".into(),
    }
}
