//! Fetches an archive into a new file: in go a source and perhaps credentials, out come the file, its digest and its
//! size. Whatever the other side does, a fetch ends: it has a size cap, a total deadline and a minimum rate. What a
//! failed or cancelled fetch wrote is removed.

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use url::Url;

use super::http::{self, Certificates, Clients};
use super::path::shown;
use super::places::{Place, Places, Purpose};
use super::sink::{Partial, Sink};
use crate::digest::Sha256Digest;
use crate::duration;
use crate::fs::{Beneath, FileError};
use crate::kv::{KvError, ObjectReader, Store};
use crate::secret::{SecretUrl, address};
use crate::spec::{Credentials, Source};

/// Files and objects are read in pieces of this size.
const PIECE_BYTES: usize = 256 * 1024;

/// How archives are fetched. That no certificate is checked is not among the choices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchSettings {
    /// For `http` and `https` sources; a user and password in it are sent to the proxy.
    pub proxy: Option<SecretUrl>,
    /// A PEM file with certificates of authorities to trust beside those of the system.
    pub ca: Option<PathBuf>,
    /// How long connecting may take, TLS included.
    pub connect_timeout: Duration,
    /// How long a whole fetch may take, redirects included.
    pub deadline: Duration,
    /// Fewer bytes per second than this, over `minimum_rate_window`, end the fetch.
    pub minimum_rate_bytes_per_second: u64,
    /// The time over which the rate is measured; also how long a server may take to begin its answer.
    pub minimum_rate_window: Duration,
    /// Largest archive.
    pub maximum_bytes: u64,
    /// How many redirects are followed.
    pub redirects: usize,
}

impl Default for FetchSettings {
    fn default() -> Self {
        Self {
            proxy: None,
            ca: None,
            connect_timeout: Duration::from_secs(10),
            deadline: Duration::from_mins(15),
            minimum_rate_bytes_per_second: 1024,
            minimum_rate_window: Duration::from_secs(30),
            maximum_bytes: 256 * 1024 * 1024,
            redirects: 5,
        }
    }
}

/// What was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// Of the whole file; the caller compares it.
    pub digest: Sha256Digest,
    pub bytes: u64,
}

/// A failed fetch. URLs in the messages have no user, password or query, which may hold secrets.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The file of `[fetch] ca` can't be read.
    #[error("could not read the authorities' certificates of [fetch] ca")]
    ReadCa { source: FileError },
    /// The file of `[fetch] ca` holds no certificates.
    #[error("[fetch] ca, {}, holds no valid PEM certificate: {reason}; give a file of certificates", path.display())]
    InvalidCa { path: PathBuf, reason: String },
    /// `[fetch] proxy` is not usable.
    #[error("[fetch] proxy is not a proxy's URL: {reason}; write for example http://proxy.example.net:3128")]
    InvalidProxy { reason: String },
    /// No HTTP client, for example because the system has no certificates of authorities.
    #[error("could not set up TLS: {reason}; install the system's certificates (ca-certificates) or set [fetch] ca")]
    Client { reason: String },
    /// A source of another scheme.
    #[error("could not fetch {url}: only http and https are fetched over the network")]
    Scheme { url: String },

    /// No connection.
    #[error("could not connect to {url}: {reason}; check the address, the server and [fetch] proxy")]
    Connect { url: String, reason: String },
    /// The certificate is not acceptable.
    #[error("could not connect to {url}: the server's certificate is not trusted: {reason}")]
    Certificate { url: String, reason: String },
    /// The request failed on an established connection.
    #[error("could not request {url}: {reason}")]
    Request { url: String, reason: String },
    /// No answer at all.
    #[error("{url} did not begin to answer within {}; check the server", duration::format(*waited))]
    NoAnswer { url: String, waited: Duration },
    /// An answer other than 200.
    #[error("{url} answered {status} instead of 200; check the source and the credentials")]
    Status { url: String, status: String },
    /// A redirect without a usable target.
    #[error("{url} redirects to no valid location; correct the server")]
    RedirectLocation { url: String },
    /// A redirect to another scheme.
    #[error("{url} redirects to {to}; redirects to another scheme are not followed: correct the source")]
    RedirectScheme { url: String, to: String },
    /// A redirect to what only this node can reach.
    #[error(
        "{url} redirects to {to}, and {why}: a redirect may lead there only from a source that is there itself; correct \
         the server or the source"
    )]
    RedirectNear { url: String, to: String, why: String },
    /// Too many redirects, or a loop.
    #[error("{url} redirects more than {limit} times; correct the source or the server")]
    TooManyRedirects { url: String, limit: usize },
    /// The body ended early or the connection broke.
    #[error("the download of {url} broke off after {bytes} bytes: {reason}")]
    Body { url: String, bytes: u64, reason: String },

    /// More than [`FetchSettings::maximum_bytes`].
    #[error("{url} is larger than the limit of {limit_bytes} bytes; make it smaller or raise the limit")]
    TooLarge { url: String, limit_bytes: u64 },
    /// Slower than the minimum rate.
    #[error(
        "the download of {url} is too slow: {bytes} bytes in {}, less than {minimum} bytes per second",
        duration::format(*window)
    )]
    TooSlow { url: String, bytes: u64, window: Duration, minimum: u64 },
    /// Not done within [`FetchSettings::deadline`].
    #[error("the download of {url} was not done within {}; raise [fetch] deadline or use a nearer server",
        duration::format(*deadline))]
    Deadline { url: String, deadline: Duration },

    /// A `file://` source can't be opened or read.
    #[error("could not read {url}")]
    ReadFile { url: String, source: io::Error },
    /// A `file://` source that is a directory or something else.
    #[error("{url} is not a regular file; give the path of an archive")]
    NotRegular { url: String },
    /// An `obj://` source without NATS.
    #[error("could not fetch {url}: no object store is configured; set [kv] url")]
    NoObjectStore { url: String },
    /// The object can't be opened.
    #[error("could not fetch {url}")]
    Object { url: String, source: KvError },

    /// The new file can't be made.
    #[error("could not make the file for a download")]
    Create { source: FileError },
    /// The new file can't be written.
    #[error("could not write the download to {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Fetches archives; one for all fetches, as it keeps connections.
pub struct Fetcher {
    settings: FetchSettings,
    certificates: Certificates,
    /// Shared with [`Self::without_certificate_check`]: they are of the node, not of a way to fetch.
    places: Arc<Places>,
    objects: Option<Arc<dyn Store>>,
    /// Made with the first fetch that needs them: loading the system's certificates costs time and memory.
    clients: OnceCell<Clients>,
}

/// A source's bytes.
pub(super) enum Body {
    Http(reqwest::Response),
    Reader(ObjectReader),
}

impl Fetcher {
    /// Checks the settings and reads `ca`; connects to nothing yet.
    ///
    /// # Errors
    /// When `ca` or `proxy` is not usable.
    pub fn new(settings: FetchSettings, objects: Option<Arc<dyn Store>>) -> Result<Self, FetchError> {
        http::install_tls_provider();
        http::check(&settings)?;
        let (certificates, places) = (Certificates::Checked, Arc::default());
        Ok(Self { settings, certificates, places, objects, clients: OnceCell::new() })
    }

    /// One of the same settings that takes any certificate of a server.
    #[must_use]
    pub fn without_certificate_check(&self) -> Self {
        Self {
            settings: self.settings.clone(),
            certificates: Certificates::Ignored,
            places: Arc::clone(&self.places),
            objects: self.objects.clone(),
            clients: OnceCell::new(),
        }
    }

    /// Waits for a place to fetch from a source. A server that stalls takes the places of no other.
    pub async fn place(&self, source: &Source, purpose: Purpose) -> Place {
        self.places.take(source, purpose).await
    }

    /// As [`Self::fetch_at`], once there is a place for something new.
    ///
    /// # Errors
    /// As there.
    pub async fn fetch(
        &self,
        source: &Source,
        credentials: Option<&Credentials>,
        into: &Path,
    ) -> Result<Fetched, FetchError> {
        let into = Beneath::at(into).map_err(|source| FetchError::Create { source })?;
        let place = self.place(source, Purpose::Install).await;
        self.fetch_at(&place, source, credentials, into).await
    }

    /// Fetches a source into the new file `into` (mode 0600), which must not exist. That there is a place shows that
    /// somebody has waited for it; that does not count against the deadline.
    ///
    /// # Errors
    /// Whatever keeps the whole of it from arriving; no file is then left. Dropping the future does the same.
    pub async fn fetch_at(
        &self,
        _place: &Place,
        source: &Source,
        credentials: Option<&Credentials>,
        into: Beneath,
    ) -> Result<Fetched, FetchError> {
        let path = into.path().to_owned();
        let url = describe(source);
        let (partial, file) = Partial::create(into)?;
        let sink = Sink::start(file, &path);
        let deadline = self.settings.deadline;
        let transfer = self.transfer(source, credentials, &url, sink);
        let fetched =
            tokio::time::timeout(deadline, transfer).await.map_err(|_| FetchError::Deadline { url, deadline })??;
        partial.keep();
        Ok(fetched)
    }

    async fn transfer(
        &self,
        source: &Source,
        credentials: Option<&Credentials>,
        url: &str,
        sink: Sink,
    ) -> Result<Fetched, FetchError> {
        let mut body = self.open(source, credentials, url).await?;
        let maximum = self.settings.maximum_bytes;
        let too_large = || FetchError::TooLarge { url: url.to_owned(), limit_bytes: maximum };
        if let Body::Http(response) = &body
            && response.content_length().is_some_and(|length| length > maximum)
        {
            return Err(too_large());
        }
        let mut pace = Pace::new(&self.settings);
        let mut bytes = 0u64;
        loop {
            let Some(piece) = pace.next(&mut body, url, bytes).await? else { break };
            bytes += piece.len() as u64;
            if bytes > maximum {
                return Err(too_large());
            }
            if !sink.write(piece).await {
                break;
            }
        }
        let digest = sink.finish().await?;
        Ok(Fetched { digest, bytes })
    }

    async fn open(
        &self,
        source: &Source,
        credentials: Option<&Credentials>,
        shown_url: &str,
    ) -> Result<Body, FetchError> {
        match source {
            Source::Http(url) => {
                let clients =
                    self.clients.get_or_try_init(|| async { Clients::new(&self.settings, self.certificates) }).await?;
                http::open(clients, &self.settings, url.expose(), credentials).await.map(Body::Http)
            }
            Source::File(path) => open_file(path.clone(), shown_url).await,
            Source::Object { bucket, name } => {
                let store =
                    self.objects.as_ref().ok_or_else(|| FetchError::NoObjectStore { url: shown_url.to_owned() })?;
                let reader = store.get_object(bucket, name).await;
                let reader = reader.map_err(|source| FetchError::Object { url: shown_url.to_owned(), source })?;
                Ok(Body::Reader(reader))
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "only reads, with a flag that crate::fs does not offer")]
async fn open_file(path: PathBuf, url: &str) -> Result<Body, FetchError> {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let opened = tokio::task::spawn_blocking(move || {
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        Ok((file, metadata))
    });
    let opened = opened.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let (file, metadata) = opened.map_err(|source| FetchError::ReadFile { url: url.to_owned(), source })?;
    if !metadata.is_file() {
        return Err(FetchError::NotRegular { url: url.to_owned() });
    }
    let mut file = tokio::fs::File::from_std(file);
    file.set_max_buf_size(PIECE_BYTES);
    Ok(Body::Reader(Box::pin(file)))
}

impl Body {
    /// The next piece; `None` at the end.
    async fn next(&mut self, url: &str, bytes: u64) -> Result<Option<Bytes>, FetchError> {
        let broke_off = |reason| FetchError::Body { url: url.to_owned(), bytes, reason };
        match self {
            Self::Http(response) => response.chunk().await.map_err(|error| broke_off(http::reason(&error))),
            Self::Reader(reader) => {
                let mut piece = BytesMut::with_capacity(PIECE_BYTES);
                let count = reader.read_buf(&mut piece).await.map_err(|error| broke_off(error.to_string()))?;
                Ok((count > 0).then(|| piece.freeze()))
            }
        }
    }
}

/// Watches that bytes come fast enough: in each window, at least the minimum.
struct Pace {
    window: Duration,
    minimum: u64,
    started: Instant,
    bytes: u64,
}

impl Pace {
    fn new(settings: &FetchSettings) -> Self {
        let window = settings.minimum_rate_window;
        Self { window, minimum: settings.minimum_rate_bytes_per_second, started: Instant::now(), bytes: 0 }
    }

    async fn next(&mut self, body: &mut Body, url: &str, total: u64) -> Result<Option<Bytes>, FetchError> {
        loop {
            // `next` of both kinds of body may be cancelled and called again without losing bytes.
            let received = tokio::time::timeout_at(self.started + self.window, body.next(url, total)).await;
            if let Ok(piece) = received {
                let piece = piece?;
                self.bytes += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                return Ok(piece);
            }
            let needed = u128::from(self.minimum) * self.window.as_millis() / 1_000;
            if u128::from(self.bytes) < needed {
                let (bytes, window, minimum) = (self.bytes, self.window, self.minimum);
                return Err(FetchError::TooSlow { url: url.to_owned(), bytes, window, minimum });
            }
            self.started = Instant::now();
            self.bytes = 0;
        }
    }
}

/// A source for messages: without user, password, query and fragment.
pub(super) fn describe(source: &Source) -> String {
    match source {
        Source::Http(url) => describe_url(url.expose()),
        Source::File(path) => shown(format!("file://{}", path.display()).as_bytes()),
        Source::Object { bucket, name } => shown(format!("obj://{bucket}/{name}").as_bytes()),
    }
}

pub(super) fn describe_url(url: &Url) -> String {
    shown(address(url).as_bytes())
}
